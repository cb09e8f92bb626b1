"""The sampler of a JEM run, made from its configuration: where chains start, what moves and keeps them."""

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
    UniformInitial,
    first_layer_sgld,
    fit_class_gaussians,
    fit_gaussian,
    sgld,
    steepest_descent,
)
from jaxebm.training import Placement
from jaxebm.types import Array, JointEnergyFn, MakeKernel

__all__ = ["PIXELS", "make_chain_energy", "make_initial", "make_kernel", "make_negatives"]

PIXELS = (-1.0, 1.0)
"""Range of the images that the network sees."""
BUFFER_COLOUR = 0.1
"""Strength of the changes of brightness and contrast with sampler.augment_buffer."""
BUFFER_BLUR = 0.5
"""Greatest standard deviation, in pixels, of its blur."""


def make_initial(config: Config, dataset: Dataset) -> Initial:
    """Returns the distribution that new chains start from."""
    if config.sampler.initial == "uniform":
        return UniformInitial(*PIXELS, shape=dataset.image_shape)
    images = np.asarray(dataset.rescale(dataset.train.image))
    if config.sampler.initial == "gaussian":
        return fit_gaussian(images, clamp=PIXELS)
    return fit_class_gaussians(images, dataset.train.label, dataset.num_classes, clamp=PIXELS)


def make_kernel(config: Config) -> MakeKernel:
    """Returns the kernel that moves chains on any target, still to be bound to it.

    Of ``sampler.kernel="first-layer"`` this is the plain kernel that does the same: the first layers of this
    package's networks are affine, so that N inner updates are one of N times the size
    (`jaxebm.samplers.first_layer_sgld` says why), with noise of N times the variance.
    """
    clamp = PIXELS if config.sampler.clamp else None
    if config.sampler.kernel == "descent":
        return partial(steepest_descent, step_size=config.sampler.step_size, state_clamp=clamp)
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
    """Returns where the model's samples come from; None for a plain classifier.

    Args:
      config: of the run.
      initial: from `make_initial`; not needed by contrastive divergence.
      num_classes: that chains may belong to; 1 where there are none.
      placement: of the run's arrays.
    """
    sharding = None if placement is None else placement.split
    if not config.generative:
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
