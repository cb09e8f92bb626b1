r"""Denoising score matching: the gradient of the energy finds the noise that was added to an example.

With x~ = x + sigma z, z ~ N(0, I), the mean of z given x~ is -sigma d log p_sigma(x~)/dx~ (Tweedie), where
p_sigma is the density of the noisy data. So E that minimises the mean of norm(sigma dE(x~)/dx - z)^2 is
-log p_sigma, up to a constant. No second derivative in x and no chain is needed, and the data may lie on the
edge of a box, on a surface or on integers: noise makes their density smooth.

`denoising_score_matching` learns one level of noise, `denoising_at_levels` all between two with an energy
that is told the level. There the loss weighs level sigma by sigma^2: an energy that is constant has a mean
loss of d, the number of coordinates, at every level. The gradient of a network of ``relu`` is constant piece
by piece: a smooth activation (swish, softplus, gelu) fits better.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.levels import JointLevelEnergy, uses_level
from jaxebm.objectives.examples import (
    example_size,
    learnt_energy,
    learnt_level_energy,
    objective_at,
    over_examples,
)
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.noisy_data import floating_levels, spread_evenly
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.objectives.second_derivatives import Slope, square_norm
from jaxebm.trees import noisy, wide_dtype, widened
from jaxebm.types import Array, EnergyFn, JointEnergyFn, LevelEnergyFn, Metrics, Params, Position

__all__ = ["denoising_at_levels", "denoising_score_matching"]


def denoising_score_matching(
    energy: EnergyFn | JointEnergyFn,
    *,
    noise_level: float | Array,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Denoising score matching at one level of noise.

    .. math:: L = w \, \frac{1}{n} \sum_i \| \sigma \nabla E(x_i + \sigma z_i) - z_i \|^2,
              \qquad z_i \sim N(0, I)

    Its minimiser is the energy of the *noisy* data, of density p convolved with N(0, sigma^2 I): the variance
    of every coordinate is too large by sigma^2. The smaller sigma, the closer to the data and the noisier the
    learning: z has variance 1, what is to be found in it has size sigma. It costs one gradient in x for each
    example.

    Args:
      energy: E(params, x) of one example; or E(params, x, y) of `jaxebm.energies.joint_energy`, which learns
        p_sigma(x | y) from labelled examples.
      noise_level: sigma > 0, the standard deviation of the noise, in the units of x.
      weight: w >= 0.

    Returns:
      An objective that needs no negatives. Its metrics: ``denoising_error``, the mean square for each
      coordinate, 1 for a constant energy and at the best the variance of z given x~; and ``score_norm``, the
      root of the mean square of norm(dE/dx) at the noisy data.

    Raises:
      TypeError: if ``energy`` is no function of parameters and an example, or the examples are not
        floating-point.
      ValueError: if ``noise_level`` is not one number above 0 or ``weight`` not one of at least 0.

    Example:
      >>> import jax
      >>> objective = denoising_score_matching(lambda k, x: 0.5 * k * jnp.sum(x**2), noise_level=1.0)
      >>> batch = Batch(None, None, jnp.zeros((8, 2)))
      >>> loss, metrics = objective.loss(1.0, jax.random.key(0), batch, Negatives(None, None))
      >>> float(loss)  # all data at 0: x~ is the noise itself, and E the energy of the noise
      0.0

    Reference:
      Vincent 2011, "A connection between score matching and denoising autoencoders", times 2 sigma^2.
    """
    learnt = learnt_energy(energy)
    checks.positive_number("noise_level", noise_level)
    checks.non_negative_number("weight", weight)

    def one(params: Params, rng_key: Array, x: Position, label: Array) -> tuple[Array, Array]:
        def slope(position: Position) -> Position:
            return jax.grad(learnt.energy, argnums=1)(params, position, label)

        return _error_and_square(rng_key, slope, x, noise_level)

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        errors, squares = over_examples(
            one, params, rng_key, batch, conditional=learnt.conditional, objective="denoising_score_matching"
        )
        return weight * jnp.mean(errors), _metrics(
            errors, squares, example_size(batch, conditional=learnt.conditional)
        )

    return Objective(learnt.energy, loss)


def denoising_at_levels(
    energy_at: LevelEnergyFn | JointLevelEnergy,
    *,
    lowest: float | Array,
    highest: float | Array,
    num_levels: int | None = None,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Denoising score matching at all levels of noise, with an energy that is told the level.

    .. math:: L = w \, \frac{1}{n} \sum_i \| \sigma_i \nabla E(x_i + \sigma_i z_i; \sigma_i) - z_i \|^2,
              \qquad \log \sigma_i \sim U(\log \sigma_{\min}, \log \sigma_{\max})

    Its minimiser is the energy of the noisy data at each level, up to a constant for each level: chains that
    go down the levels need no more (`jaxebm.samplers.annealed_langevin`); densities of different levels
    cannot be compared. The levels of one batch are equally spaced in log sigma from a random start, so that
    every batch covers the range evenly while each example's level is log-uniform. It costs one gradient in x
    for each example.

    Args:
      energy_at: E(params, x, sigma) of one example; or E(params, x, y, sigma) of
        `jaxebm.energies.joint_energy_at`, which learns p_sigma(x | y) from labelled examples.
      lowest: sigma_min > 0, in the units of x: the noise that remains in the samples.
      highest: sigma_max > sigma_min, about the largest distance between two examples, so that the noisy data
        are nearly Gaussian there and chains may start from noise.
      num_levels: draw from that many levels in geometric progression, both ends among them, at least 2; None
        for all levels between.
      weight: w >= 0.

    Returns:
      An objective that needs no negatives; its ``energy`` is that at the lowest level. Its metrics are those
      of `denoising_score_matching`, over all levels, and the errors of the levels below and above the
      geometric mean of the two, ``denoising_error_low`` and ``denoising_error_high``.

    Raises:
      TypeError: if ``energy_at`` is no function of parameters, an example and a level, or the examples are
        not floating-point.
      ValueError: if the levels are not numbers with 0 < lowest < highest, ``num_levels`` no integer of at
        least 2, or ``weight`` not one number of at least 0; from the loss, if the gradient in x of the energy
        ignores the level.

    Example:
      Data all at 3, whose energy under noise is known:

      >>> energy_at = lambda mean, x, level: 0.5 * jnp.sum((x - mean) ** 2) / level**2
      >>> objective = denoising_at_levels(energy_at, lowest=0.1, highest=10.0)
      >>> batch = Batch(None, None, jnp.full((8, 2), 3.0))
      >>> loss, metrics = objective.loss(3.0, jax.random.key(0), batch, Negatives(None, None))
      >>> float(loss) < 1e-6
      True

    Reference:
      Song & Ermon 2019 (arXiv 1907.05600), equations 5 and 6, their lambda(sigma) = sigma^2; the spacing of
      Kingma et al. 2021 (arXiv 2107.00630), appendix I.1.
    """
    learnt = learnt_level_energy(energy_at)
    lowest, highest = floating_levels(lowest, highest)
    if num_levels is not None:
        checks.integer("num_levels", num_levels, 2)
    checks.non_negative_number("weight", weight)

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        key_levels, key_noise = jax.random.split(rng_key)
        start = jax.random.uniform(key_levels, dtype=jnp.float32)

        def one(params: Params, rng_key: Array, x: Position, label: Array) -> tuple[Array, Array, Array]:
            def slope_at(params: Params, x: Position, level: Array) -> Position:
                return jax.grad(learnt.energy_at, argnums=1)(params, x, label, level)

            _check_level_used(slope_at, params, x)
            height = _height(start, num_levels)
            level = (lowest * (highest / lowest) ** height).astype(wide_dtype(x))
            return *_error_and_square(rng_key, lambda x: slope_at(params, x, level), x, level), height

        errors, squares, heights = over_examples(
            one, params, key_noise, batch, conditional=learnt.conditional, objective="denoising_at_levels"
        )
        size = example_size(batch, conditional=learnt.conditional)
        halves = {"denoising_error_low": heights < 0.5, "denoising_error_high": heights >= 0.5}
        metrics = {name: _mean_over(half, errors) / size for name, half in halves.items()}
        return weight * jnp.mean(errors), _metrics(errors, squares, size) | metrics

    return objective_at(energy_at, lowest, loss)


def _height(start: Array, num_levels: int | None) -> Array:
    """log(sigma / lowest) / log(highest / lowest) of one example of a batch, in [0, 1]."""
    height = spread_evenly(start)
    if num_levels is None:
        return height
    return jnp.minimum(jnp.floor(height * num_levels), num_levels - 1) / (num_levels - 1)


def _error_and_square(rng_key: Array, slope: Slope, x: Position, level: float | Array) -> tuple[Array, Array]:
    """norm(sigma dE(x~)/dx - z)^2 and norm(dE(x~)/dx)^2 of one example."""
    perturbed, noise = noisy(rng_key, x, level)
    gradient = slope(perturbed)
    residual = jax.tree.map(lambda leaf, noise: level * widened(leaf) - noise, gradient, noise)
    return square_norm(residual), square_norm(gradient)


def _check_level_used(slope_at: Any, params: Params, x: Position) -> None:
    """Raises ``ValueError`` if dE/dx at a level ignores the level."""
    if not uses_level(slope_at, params, x):
        raise ValueError(
            "energy_at ignores the level that it is told, or only adds to the energy what does not depend on "
            "x: no one gradient is that of the noisy data at several levels. Let its network read the level, "
            "such as LevelMLP of jaxebm.energies; denoising_score_matching learns one level."
        )


def _mean_over(chosen: Array, values: Array) -> Array:
    """The mean over those chosen; 0 if there are none."""
    return jnp.sum(jnp.where(chosen, values, 0)) / jnp.maximum(jnp.sum(chosen), 1)


def _metrics(errors: Array, squares: Array, size: int) -> Metrics:
    return {"denoising_error": jnp.mean(errors) / size, "score_norm": jnp.sqrt(jnp.mean(squares))}
