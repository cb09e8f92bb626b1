"""The methods of objective_gallery.py on the embedded digits, as a density of images alone.

`DIGIT_METHODS` is the one table: a constructor of gallery/methods.py, and the settings that were tuned for
it, lightly. Pixels lie in [-1, 1]. All methods learn the density of images with noise of `NOISE`: it is added
to the data, or it is the lowest level of methods that add noise themselves. Samples lose it at the end, but
those of equilibrium matching and of the cooperative generator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gallery.methods import (
    Draw,
    Method,
    Settings,
    Space,
    cooperative,
    energy_matching,
    equilibrium_matching,
    flow_contrastive,
    likelihood,
    of_energy,
    of_levels,
    of_proposal,
    recovery,
    without_noise,
)
from jaxebm import objectives
from jaxebm.data import Dataset
from jaxebm.energies import MLP, gaussian_log_reference, tilt
from jaxebm.objectives import gaussian_proposal
from jaxebm.samplers import (
    UniformInitial,
    heated_sgld,
    momentum_descent,
    power_levels,
    predictor_corrector,
    sample,
    sgld,
)
from jaxebm.types import Array, EnergyFn, LevelEnergyFn, MakeKernel, Params

__all__ = ["DIGIT_METHODS", "NOISE", "DigitSettings", "digit_space", "settings_of"]

NOISE = 0.06
"""Standard deviation of the noise of the data: about half a step of the 17 grey values."""
MEAN, SPREAD = -0.39, 0.75
"""Of all pixels."""
HIGHEST = 20.0
"""The highest noise level of the methods that are told one."""
SAMPLING_LEVELS = 50
"""Levels of the path from noise that draws from them."""
REACH = -1.25, 1.25
"""Chains are clamped to this: the range of the pixels, and four standard deviations of their noise."""


@dataclass(frozen=True)
class DigitSettings:
    """The numbers of a training; those of maximum likelihood, where a method has no others."""

    seed: int = 0
    """Of all random numbers."""
    progress: bool = False
    """Show progress."""
    recovery: bool = True
    """Go back to the last healthy state after divergence, with a remedy."""

    widths: tuple[int, ...] = (256, 256)
    """Of the hidden layers."""
    activation: str = "swish"
    """Of the hidden layers."""
    input_gain: float = 1.0
    """What standardised inputs are multiplied by."""
    updates: int = 2000
    """Of the optimiser."""
    batch_size: int = 128
    """Images of an update."""
    learning_rate: float = 1e-3
    """Greatest learning rate."""
    gradient_clip: float = 0.0
    """Greatest norm of the gradient of the loss; 0 clips nothing."""
    ema_decay: float = 0.995
    """Of the average of the weights, which is judged."""
    energy_l2: float = 0.0
    """Weight of E(x)^2 on data and samples."""
    data_noise: float = NOISE
    """Standard deviation of the noise on the data; 0 for methods that add it themselves."""

    num_chains: int = 128
    """Persistent chains."""
    sampler_steps: int = 10
    """Of the chains of the training, in an update."""
    sampler_step_size: float = 0.001
    """Of all Langevin chains, at temperature 1."""
    restart_probability: float = 0.01
    """Probability that a chain is restarted from noise."""
    sample_steps: int = 500
    """Steps of the chains from noise that draw the samples."""


def digit_space(dataset: Dataset) -> Space:
    """Returns what the methods need to know of images.

    Args:
      dataset: the digits, or other small images.
    """
    shape = dataset.image_shape
    images = np.asarray(dataset.rescale(dataset.train.image))
    scale = np.sqrt(images.var(axis=0) + NOISE**2)
    of_each_pixel = gaussian_log_reference(jnp.asarray(images.mean(axis=0)), jnp.asarray(scale))
    broad = gaussian_log_reference(MEAN, SPREAD)

    def tilted(settings: Settings, log_reference: Any) -> tuple[Any, EnergyFn]:
        network = MLP(None, widths=settings.widths, activation=settings.activation)

        def standardised(params: Params, x: Array) -> Array:
            return cast(Array, network.apply(params, settings.input_gain * (x - MEAN) / SPREAD))

        return network, tilt(standardised, log_reference)

    def kernel(settings: Settings) -> MakeKernel:
        return partial(sgld, step_size=settings.sampler_step_size, state_clamp=REACH)

    initial = UniformInitial(-1.0, 1.0, shape=shape)

    def draw(settings: Settings, energy: EnergyFn) -> Draw:
        def chains(rng_key: Array, params: Params, num_samples: int) -> Array:
            key_start, key_chains = jax.random.split(rng_key)
            keys = jax.random.split(key_start, num_samples)
            start = jax.vmap(initial, (0, None))(keys, jnp.zeros((), jnp.int32))
            xs = sample(
                key_chains, energy, params, start, settings.sample_steps,
                kernel=sgld, step_size=settings.sampler_step_size, state_clamp=REACH,
            )  # fmt: skip
            return without_noise(energy, params, xs, NOISE)

        return chains

    return Space(
        shape=shape,
        mean=MEAN,
        spread=SPREAD,
        source_scale=1.0,
        smallest_level=NOISE,
        make_energy=lambda settings: tilted(settings, of_each_pixel),
        # Where a pixel has little variance the other one is so steep that descent from noise would diverge.
        make_potential=lambda settings: tilted(settings, broad),
        make_kernel=kernel,
        transition_gradients=1,
        initial=initial,
        proposal=gaussian_proposal(images, regularisation=NOISE**2),
        draw=draw,
        gradients_per_sample=lambda settings: settings.sample_steps + 1,
        draw_levels=_predict,
        level_gradients=SAMPLING_LEVELS,
    )


def _predict(rng_key: Array, energy_at: LevelEnergyFn, params: Params, xs: Array, highest: float) -> Array:
    """Ancestral steps down to the lowest level, whose noise the last one removes."""
    levels = power_levels(highest, NOISE, SAMPLING_LEVELS)
    return predictor_corrector(
        rng_key, energy_at, params, xs, levels, predictor="ancestral", num_corrector_steps=0
    )


TEMPERATURE = 0.02
"""Of energy matching: exp(-V / T) is its density. V is about as steep as the way from noise to data is long,
so that noise of .06 needs a T well below 1."""
HEATED = partial(
    heated_sgld, step_size=0.02, temperature=TEMPERATURE, cold_steps=100, heating_steps=50, state_clamp=REACH
)
"""Its samples."""
DESCENT = partial(momentum_descent, step_size=0.005, momentum=0.0, state_clamp=REACH)
"""Those of equilibrium matching, whose velocity is four times as high."""
TOLD_LEVELS: Mapping[str, Any] = {"data_noise": 0.0, "gradient_clip": 10.0}
OWN_NOISE: Mapping[str, Any] = {"data_noise": 0.0}
EXACT_TRACE = 56 * 4.0
"""Gradients of the columns of the Hessian that XLA does not count, 56 of 64: 4 for each, as for the rest."""

MOVED = 0.03
"""How far objectives move the data that compare both: at .2 the energy of a Gaussian of the pixels rises by
dozens of nats, so that the moved images are told at once."""

DIGIT_METHODS: Mapping[str, Method] = {
    "likelihood": Method(likelihood, {}),
    "explicit_score_matching": Method(
        of_energy(objectives.score_matching, loop_gradients=EXACT_TRACE), {"updates": 300, "batch_size": 64}
    ),
    "hutchinson": Method(of_energy(objectives.score_matching, trace="hutchinson"), {}),
    "sliced": Method(of_energy(objectives.sliced_score_matching), {}),
    "finite_difference": Method(of_energy(objectives.finite_difference_score_matching), {}),
    "denoising": Method(of_energy(objectives.denoising_score_matching, noise_level=NOISE), OWN_NOISE),
    "multilevel_denoising": Method(
        of_levels(objectives.denoising_at_levels, HIGHEST / SPREAD, unit_slope=True), TOLD_LEVELS
    ),
    "noise_contrastive": Method(of_proposal(objectives.noise_contrastive, ratio=4), {}),
    "conditional_noise_contrastive": Method(
        of_energy(objectives.conditional_noise_contrastive, noise_scale=MOVED, num_samples=4), {}
    ),
    "flow_contrastive": Method(flow_contrastive(8, (128, 128)), {"gradient_clip": 1.0}),
    "energy_discrepancy": Method(
        of_energy(objectives.energy_discrepancy, noise_variance=MOVED**2, num_samples=4), {}
    ),
    "self_normalised": Method(
        of_proposal(objectives.self_normalised, num_samples=1024), {"gradient_clip": 10.0}
    ),
    "recovery_likelihood": Method(
        recovery(8.0, 7, denoise=True, num_steps=15), {**TOLD_LEVELS, "updates": 1500}
    ),
    "dual_score_matching": Method(
        of_levels(
            objectives.dual_score_matching, HIGHEST / SPREAD, unit_slope=True,
            level_median=0.5, level_spread=1.2, data_scale=SPREAD, level_weight=10.0, anchor_weight=0.0,
        ),
        TOLD_LEVELS,
    ),
    "level_classification": Method(
        of_levels(objectives.level_classification, HIGHEST / SPREAD, unit_slope=True),
        {**TOLD_LEVELS, "updates": 1500},
    ),
    "energy_matching": Method(
        energy_matching(TEMPERATURE, 0.1, HEATED, 200, denoise=True), {"sampler_step_size": 0.0004}
    ),
    "equilibrium_matching": Method(equilibrium_matching(DESCENT, 200), {}),
    "cooperative": Method(
        cooperative(16, 0.3, num_latent_steps=10), {"updates": 1000, "sampler_steps": 15}
    ),
}  # fmt: skip
"""By the names of gallery/objectives.py."""


def settings_of(objective: str, **changes: Any) -> DigitSettings:
    """Returns the settings tuned for an objective, with changes."""
    return DigitSettings(**(dict(DIGIT_METHODS[objective].defaults) | changes))
