"""The sampler of a JEM run, made from its configuration: initial distribution, kernel, replay buffer."""

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxebm.data import Dataset, random_blur, random_colour, random_flip
from jaxebm.energies import first_submodule, split_energy
from jaxebm.objectives import (
    NegativeSampler,
    contrastive_divergence,
    persistent,
    short_run,
)
from jaxebm.recipes.config import Config
from jaxebm.samplers import (
    Initial,
    NormalInitial,
    UniformInitial,
    first_layer_sgld,
    fit_class_gaussians,
    fit_gaussian,
    heated_sgld,
    sgld,
    steepest_descent,
)
from jaxebm.training import Placement
from jaxebm.types import Array, JointEnergyFn, MakeKernel

__all__ = ["PIXELS", "make_chain_energy", "make_initial", "make_kernel", "make_negatives"]

PIXELS = (-1.0, 1.0)
"""Range of the images that the network gets."""
BUFFER_COLOUR = 0.1
"""Strength of the jitter of brightness and contrast with sampler.augment_buffer."""
BUFFER_BLUR = 0.5
"""Greatest standard deviation of the blur with sampler.augment_buffer, in pixels."""


def make_initial(config: Config, dataset: Dataset) -> Initial:
    """Returns the distribution that new chains start from."""
    if config.sampler.initial in ("uniform", "normal"):
        return noise_of(config, dataset.image_shape)
    images = np.asarray(dataset.rescale(dataset.train.image))
    if config.sampler.initial == "gaussian":
        return fit_gaussian(images, clamp=PIXELS)
    return fit_class_gaussians(images, dataset.train.label, dataset.num_classes, clamp=PIXELS)


def noise_of(config: Config, image_shape: tuple[int, ...]) -> Initial:
    """Returns the noise that chains start from if no distribution was fitted to the data."""
    if config.sampler.initial == "normal":
        return NormalInitial(1.0, shape=image_shape)
    return UniformInitial(*PIXELS, shape=image_shape)


def make_kernel(config: Config) -> MakeKernel:
    """Returns the kernel, not yet bound to a target, which can be any function.

    For ``sampler.kernel="first-layer"`` this is the equivalent plain kernel: the first layers of this
    package's networks are affine, so N inner updates equal one of N times the size (see
    `jaxebm.samplers.first_layer_sgld`), with noise of N times the variance.
    """
    clamp = PIXELS if config.sampler.clamp else None
    if config.sampler.kernel == "descent":
        return partial(steepest_descent, step_size=config.sampler.step_size, state_clamp=clamp)
    if config.sampler.kernel == "heated":
        return partial(
            heated_sgld,
            step_size=config.sampler.step_size,
            temperature=config.sampler.noise**2 / (2 * config.sampler.step_size),
            cold_steps=config.sampler.cold_steps,
            heating_steps=config.sampler.heating_steps,
            stop_after=config.sampler.stop_after,
            gradient_clip=config.sampler.gradient_clip,
            state_clamp=clamp,
        )
    repeats = config.sampler.inner_steps if config.sampler.kernel == "first-layer" else 1
    return partial(
        sgld,
        step_size=repeats * config.sampler.step_size,
        noise_scale=repeats**0.5 * config.sampler.noise,
        gradient_clip=config.sampler.gradient_clip,
        state_clamp=clamp,
    )


def make_training_kernel(config: Config) -> MakeKernel:
    """Returns the kernel of training; that of ``"first-layer"`` needs a target that can be split."""
    if config.sampler.kernel != "first-layer":
        return make_kernel(config)
    kernel: Any = partial(
        first_layer_sgld,
        step_size=config.sampler.step_size,
        noise_scale=config.sampler.noise,
        num_inner_steps=config.sampler.inner_steps,
        gradient_clip=config.sampler.gradient_clip,
        state_clamp=PIXELS if config.sampler.clamp else None,
    )
    return kernel


def make_chain_energy(config: Config, network: Any, image_shape: tuple[int, ...]) -> JointEnergyFn | None:
    """Returns the split energy that first-layer chains need; None for the objective's own."""
    if config.sampler.kernel != "first-layer":
        return None
    kind = "joint" if config.sampler.chains == "conditional" else "marginal"
    example = jax.ShapeDtypeStruct(image_shape, np.float32)
    return split_energy(network, first_submodule(network, example), kind)


def make_negatives(
    config: Config, initial: Initial | None, num_classes: int, placement: Placement | None
) -> NegativeSampler | None:
    """Returns the sampler of the negatives; None where nothing is learnt from chains.

    Args:
      config: the configuration of the run.
      initial: from `make_initial`; not needed by contrastive divergence.
      num_classes: number of classes that chains may belong to; 1 without classes.
      placement: the placement of the run's arrays.
    """
    sharding = None if placement is None else placement.split
    if not config.uses_chains:
        return None
    kernel = make_training_kernel(config)
    if config.sampler.negatives == "contrastive-divergence":
        return contrastive_divergence(kernel, num_steps=config.sampler.num_steps, sharding=sharding)
    chains: dict[str, Any] = {
        "num_steps": config.sampler.num_steps,
        "initial": initial,
        "num_chains": config.sampler.num_chains,
        "num_classes": num_classes,
        "sharding": sharding,
    }
    if config.sampler.negatives == "short-run":
        return short_run(kernel, **chains)
    return persistent(
        kernel,
        capacity=config.sampler.buffer_size,
        restart_probability=config.sampler.restart_probability,
        num_strata=1 if placement is None else placement.num_strata,
        augment=partial(_augment, flip=config.data.flip) if config.sampler.augment_buffer else None,
        **chains,
    )


def _augment(rng_key: Array, image: Array, *, flip: bool) -> Array:
    keys = jax.random.split(rng_key, 3)
    image = random_flip(keys[0], image) if flip else image
    return random_blur(keys[1], random_colour(keys[2], image, BUFFER_COLOUR), BUFFER_BLUR)
