"""The sampler of a JEM run, made from its configuration: where chains start, what moves and keeps them."""

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxebm.data import Dataset, random_blur, random_colour, random_flip
from jaxebm.energies import first_submodule, joint_energy, marginal_energy, split_energy
from jaxebm.objectives import (
    NegativeSampler,
    contrastive_divergence,
    no_negatives,
    persistent,
    short_run,
)
from jaxebm.samplers import (
    Initial,
    UniformInitial,
    first_layer_sgld,
    fit_class_gaussians,
    fit_gaussian,
    sgld,
    steepest_descent,
)
from jaxebm.training import Placement
from jaxebm.types import Array, JointEnergyFn, MakeKernel, Params
from jem_config import Config

__all__ = ["PIXELS", "make_chain_energy", "make_initial", "make_kernel", "make_negatives"]

PIXELS = (-1.0, 1.0)
"""Range of the images that the network sees."""
BUFFER_COLOUR = 0.1
"""Strength of the changes of brightness and contrast with --augment-buffer."""
BUFFER_BLUR = 0.5
"""Greatest standard deviation, in pixels, of its blur."""


def make_initial(config: Config, dataset: Dataset) -> Initial:
    """Returns the distribution that new chains start from."""
    if config.initial == "uniform":
        return UniformInitial(*PIXELS, shape=dataset.image_shape)
    images = np.asarray(dataset.rescale(dataset.train.image))
    if config.initial == "gaussian":
        return fit_gaussian(images, clamp=PIXELS)
    return fit_class_gaussians(images, dataset.train.label, dataset.num_classes, clamp=PIXELS)


def make_kernel(config: Config) -> MakeKernel:
    """Returns the kernel that moves chains on any target, still to be bound to it.

    Of ``--sampler first-layer`` this is the plain kernel that does the same: the first layers of this
    package's networks are affine, so that N inner updates are one of N times the size
    (`jaxebm.samplers.first_layer_sgld` says why), with noise of N times the variance.
    """
    clamp = PIXELS if config.sampler_clamp else None
    if config.sampler == "descent":
        return partial(steepest_descent, step_size=config.sampler_step_size, state_clamp=clamp)
    repeats = config.inner_steps if config.sampler == "first-layer" else 1
    return partial(
        sgld,
        step_size=repeats * config.sampler_step_size,
        noise_scale=repeats**0.5 * config.sampler_noise,
        gradient_clip=config.sampler_gradient_clip,
        state_clamp=clamp,
    )


def make_training_kernel(config: Config) -> MakeKernel:
    """Returns the kernel of training, which with ``--sampler first-layer`` needs a target taken apart."""
    if config.sampler != "first-layer":
        return make_kernel(config)
    kernel: Any = partial(
        first_layer_sgld,
        step_size=config.sampler_step_size,
        noise_scale=config.sampler_noise,
        num_inner_steps=config.inner_steps,
        gradient_clip=config.sampler_gradient_clip,
        state_clamp=PIXELS if config.sampler_clamp else None,
    )
    return kernel


def make_chain_energy(config: Config, network: Any, image_shape: tuple[int, ...]) -> JointEnergyFn:
    """Returns E(params, x, label), on which the chains of training run."""
    kind = "joint" if config.chains == "conditional" else "marginal"
    if config.sampler == "first-layer":
        example = jax.ShapeDtypeStruct(image_shape, np.float32)
        return split_energy(network, first_submodule(network, example), kind)
    marginal, joint = marginal_energy(network.apply), joint_energy(network.apply)

    def energy(params: Params, x: Array, label: Array) -> Array:
        return joint(params, x, label) if kind == "joint" else marginal(params, x)

    return energy


def make_negatives(config: Config, dataset: Dataset, placement: Placement | None) -> NegativeSampler:
    """Returns where the model's samples come from."""
    sharding = None if placement is None else placement.split
    if not config.generative:
        return no_negatives()
    kernel = make_training_kernel(config)
    if config.negatives == "contrastive-divergence":
        return contrastive_divergence(kernel, num_steps=config.sampler_steps, sharding=sharding)
    chains: dict[str, Any] = {
        "num_steps": config.sampler_steps,
        "initial": make_initial(config, dataset),
        "num_chains": config.num_chains,
        "num_classes": 1 if config.task == "unconditional" else dataset.num_classes,
        "sharding": sharding,
    }
    if config.negatives == "short-run":
        return short_run(kernel, **chains)
    return persistent(
        kernel,
        capacity=config.buffer_size,
        restart_probability=config.restart_probability,
        num_strata=1 if placement is None else placement.num_strata,
        augment=partial(_augment, flip=config.flip) if config.augment_buffer else None,
        **chains,
    )


def _augment(rng_key: Array, image: Array, *, flip: bool) -> Array:
    keys = jax.random.split(rng_key, 3)
    image = random_flip(keys[0], image) if flip else image
    return random_blur(keys[1], random_colour(keys[2], image, BUFFER_COLOUR), BUFFER_BLUR)
