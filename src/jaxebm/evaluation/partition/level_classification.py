"""Do energies of different noise levels fit together? The levels are classified by their energies."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.noise_levels import bound_level_energy, chain_arrays, check_level_chains
from jaxebm.trees import noisy, widened
from jaxebm.types import Array, LevelEnergyFn, Params, Position

__all__ = ["LevelClassification", "classify_levels"]


class LevelClassification(NamedTuple):
    """What `classify_levels` returns.

    Attributes:
      cross_entropy: mean of -log p(j | y), nats, ``()``; log L by guessing.
      standard_error: of that mean, by the spread over the examples, ``()``.
      accuracy: share of noisy examples whose level has the greatest p(j | y), ``()``.
    """

    cross_entropy: Array
    standard_error: Array
    accuracy: Array


def classify_levels(
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    xs: Position,
    levels: Array,
    *,
    batch_size: int = 256,
) -> LevelClassification:
    r"""Classifies the noise level of noisy data by the energies of all levels.

    .. math::

      C = -\frac{1}{n L} \sum_{i, j} \log \frac{e^{-U(y_{ij}; \sigma_j)}}{\sum_k e^{-U(y_{ij}; \sigma_k)}},
      \qquad y_{ij} = x_i + \sigma_j z_{ij}

    For normalised energies, U = -log p_sigma, this is the posterior p(j | y) of levels that are equally
    frequent, and C is the least that any classifier reaches. Energies that have the right gradients and wrong
    constants, or wrong weights of separate modes, have a larger C: denoising score matching does not see
    either. A constant that all levels share does not change it. It costs L^2 values of the energy an example.

    Args:
      rng_key: one key.
      energy_at: U, ``energy_at(params, x, level) -> ()`` of one example.
      params: its parameters.
      xs: data that the energy was not fitted to, leaves ``(n, ...)``.
      levels: sigma_1 > ... > sigma_L > 0, ``(L,)``, L at least 2. Neighbours should overlap: their log ratio
        has a standard deviation of about log(sigma_j / sigma_{j+1}) sqrt(2 d).
      batch_size: examples that are computed at once.

    Returns:
      The cross-entropy, its standard error, and the accuracy.

    Raises:
      TypeError: if ``energy_at`` is no function of three arguments, ``rng_key`` no typed key, or the examples
        are not floating-point.
      ValueError: if the levels do not fall or are not positive, examples are missing or ragged, the batch
        size is no positive integer, or the energy is no scalar.

    Example:
      >>> def energy_at(variance, x, level):  # N(0, variance), under noise
      ...     return 0.5 * jnp.sum(x**2) / (variance + level**2) + 0.5 * jnp.log(variance + level**2)
      >>> xs = jax.random.normal(jax.random.key(0), (500, 1))
      >>> found = classify_levels(jax.random.key(1), energy_at, 1.0, xs, jnp.array([9.0, 3.0, 1.0]))
      >>> bool(found.cross_entropy < jnp.log(3))
      True

    Reference:
      OuYang, Grenioux & Hernandez-Lobato 2026 (arXiv 2601.21025), the classification loss, over all levels.
    """
    check_level_chains(rng_key, energy_at, xs, levels, name="xs")
    checks.positive_integer("batch_size", batch_size)
    with checks.shapes_noted(params=params, xs=xs):
        return _classify(
            rng_key,
            params,
            *chain_arrays(xs, levels),
            energy_at=energy_at,
            batch_size=batch_size,
        )


@functools.partial(jax.jit, static_argnames=("energy_at", "batch_size"))
def _classify(
    rng_key: Array,
    params: Params,
    xs: Position,
    levels: Array,
    *,
    energy_at: LevelEnergyFn,
    batch_size: int,
) -> LevelClassification:
    energy = bound_level_energy(energy_at, params)

    def of_example(given: tuple[Array, Position]) -> tuple[Array, Array]:
        rng_key, x = given

        def of_level(j: Array) -> tuple[Array, Array]:
            y, _ = noisy(jax.random.fold_in(rng_key, j), x, levels[j])
            energies = widened(jax.vmap(energy, (0, None))(levels, y))
            return energies[j] + jax.nn.logsumexp(-energies), jnp.argmin(energies) == j

        losses, hits = jax.vmap(of_level)(jnp.arange(len(levels)))
        return jnp.mean(losses), jnp.mean(hits)

    n = jax.tree.leaves(xs)[0].shape[0]
    given = jax.random.split(rng_key, n), xs
    losses, accuracies = jax.lax.map(of_example, given, batch_size=min(batch_size, n))
    error = jnp.std(losses, ddof=1) / jnp.sqrt(n) if n > 1 else jnp.full((), jnp.nan, losses.dtype)
    return LevelClassification(jnp.mean(losses), error, jnp.mean(accuracies))
