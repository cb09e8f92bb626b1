r"""Exact log Z where possible: on a grid in low dimension, over all states of a few spins.

log Z = log \int exp(-E(x)) dx, or the sum over states. These are the oracles that estimators are held
against, and the exact likelihoods of two-dimensional experiments. Pure JAX, differentiable in the parameters.
In a loop, put the call under ``jax.jit``: outside it, the scan over chunks is compiled each time.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.samplers.langevin import scalar_target
from jaxebm.types import Array, EnergyFn, Params

__all__ = [
    "enumerate_states",
    "grid",
    "kl_divergence_on_grid",
    "log_density_on_grid",
    "log_partition_by_enumeration",
    "log_partition_on_grid",
]

_MAX_POINTS = 2**24
"""Greatest number of points; more would need too much memory, and sampling is better."""
_MAX_COMPARED = 2**22
"""Points of up to this many numbers in all are searched for one that is there twice, in a second at most."""


def grid(low: float, high: float, num_points: int, dimension: int = 2) -> tuple[Array, float]:
    r"""Midpoints of the equal cells of the cube [low, high]^d, and the log-volume of one cell.

    x_i = low + (i + 1/2) h with h = (high - low) / num_points along each axis; \int g dx ~ h^d \sum_i g(x_i),
    the midpoint rule, whose error is O(h^2), and smaller than any power of h for a smooth g that vanishes at
    the border.

    Args:
      low: lower end of every axis.
      high: upper end of every axis.
      num_points: cells along each axis.
      dimension: d.

    Returns:
      ``(points (num_points**d, d) float32, log_cell_volume)``; the last axis of space varies fastest, so
      ``values.reshape((num_points,) * d)`` is the picture, indexed [x_0, x_1, ...].

    Raises:
      ValueError: unless low < high, both finite; for counts below one, or more than 2**24 points.

    Example:
      >>> points, log_cell_volume = grid(-1.0, 1.0, 2)
      >>> points.tolist(), round(log_cell_volume, 3)
      ([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]], 0.0)
    """
    checks.positive_integer("num_points", num_points)
    checks.positive_integer("dimension", dimension)
    for name, end in (("low", low), ("high", high)):
        checks.array(name, end)
        checks.one_number(name, end)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low={low!r} and high={high!r}: finite numbers with low < high are needed.")
    _few_enough("num_points ** dimension", num_points, dimension)
    width = (high - low) / num_points
    axis = low + width * (np.arange(num_points) + 0.5)
    return _product(axis, dimension), dimension * math.log(width)


def _few_enough(name: str, base: int, exponent: int) -> None:
    if exponent * math.log2(base) > math.log2(_MAX_POINTS):
        raise ValueError(f"{name} = {base}**{exponent}: at most 2**24 = {_MAX_POINTS} points can be listed.")


def _product(axis: np.ndarray, dimension: int) -> Array:
    """All tuples of ``dimension`` entries of ``axis``, the last varying fastest, as float32."""
    axes = np.meshgrid(*[axis.astype(np.float32)] * dimension, indexing="ij")
    return jnp.asarray(np.stack(axes, axis=-1).reshape(-1, dimension))


def _negative_energies(
    energy: EnergyFn, params: Params, points: Array, batch_size: int, name: str = "points"
) -> Array:
    """-E at each point, in chunks; the backward pass recomputes, so a gradient needs one chunk's memory."""
    checks.function("energy", energy, "params", "x")
    checks.arrays("params", params)
    checks.array(name, points)
    checks.positive_integer("batch_size", batch_size)
    if np.ndim(points) != 2 or np.shape(points)[0] == 0:
        raise ValueError(f"{name} has shape {np.shape(points)}: non-empty ({name}, dimension) is needed.")
    _refuse_repeated(name, points)
    points = jnp.asarray(points)
    target = scalar_target(partial(energy, params), "energy")

    # lax.map is a scan, inside which nothing need keep the recomputation from being merged away.
    @partial(jax.checkpoint, prevent_cse=False)
    def negative_energy(x: Array) -> Array:
        return -target(x)

    with checks.shapes_noted(**{"params": params, name: points}):
        values = jax.lax.map(negative_energy, points, batch_size=min(batch_size, points.shape[0]))
    _refuse_undefined(energy, name, points, values)
    return values


def _refuse_repeated(name: str, points: Any) -> None:
    """Raises ``ValueError`` where a known point is there twice, which would count it twice."""
    if checks.is_traced(points) or np.size(points) > _MAX_COMPARED:
        return
    rows = np.asarray(points)
    order = np.lexsort(rows.T) if rows.shape[1] else np.arange(len(rows))
    same = np.all(rows[order[1:]] == rows[order[:-1]], axis=1)
    if np.any(same):
        first, second = sorted(order[[np.argmax(same), np.argmax(same) + 1]].tolist())
        raise ValueError(
            f"{name}[{first}] and {name}[{second}] are both {rows[first].tolist()}: each of the {name} is "
            f"needed once."
        )


def _refuse_undefined(energy: EnergyFn, name: str, points: Array, negative_energies: Array) -> None:
    """Raises ``ValueError`` where a known energy is NaN or -inf: one such point would spoil the sum."""
    if checks.is_traced(negative_energies):
        return
    values = np.asarray(negative_energies, float)
    is_bad = np.isnan(values) | np.isposinf(values)
    if np.any(is_bad):
        first = int(np.argmax(is_bad))
        raise ValueError(
            f"energy={checks.function_name(energy)} is NaN or -inf at {np.count_nonzero(is_bad)} of "
            f"{values.size} {name}, first at {name}[{first}] = {np.asarray(points[first]).tolist()}: finite "
            f"energies are needed, or +inf where the density is 0."
        )


def log_partition_on_grid(
    energy: EnergyFn, params: Params, points: Array, log_cell_volume: float | Array, *, batch_size: int = 4096
) -> Array:
    r"""Log Z of an energy by the midpoint rule, differentiable in its parameters.

    log Z = logsumexp_i(-E(x_i)) + log h^d. Mass outside the grid is not seen: widen it until log Z stands
    still. An energy of +inf is density 0; log Z is -inf where all are. Under a transformation of JAX, where
    energies are not known, one of NaN makes log Z NaN.

    Args:
      energy: ``(params, x) -> ()``, for one point.
      params: its parameters.
      points: ``(points, d)``, from ``grid``.
      log_cell_volume: log h^d, from ``grid``.
      batch_size: points evaluated at once; memory grows with it and not with the grid.

    Returns:
      log Z in nats, shape ``()``.

    Raises:
      ValueError: for points of the wrong rank or a repeated one, an energy that is not scalar, is NaN or
        -inf at a point, or a batch size below one.
      TypeError: if an argument is of another type.

    Example:
      >>> points, log_cell_volume = grid(-8.0, 8.0, 64)
      >>> energy = lambda scale, x: 0.5 * scale * jnp.sum(x**2)
      >>> log_z = log_partition_on_grid(energy, 1.0, points, log_cell_volume)
      >>> round(float(log_z), 3), round(math.log(2 * math.pi), 3)
      (1.838, 1.838)
    """
    checks.number("log_cell_volume", log_cell_volume)
    return jax.nn.logsumexp(_negative_energies(energy, params, points, batch_size)) + log_cell_volume


def log_density_on_grid(
    energy: EnergyFn, params: Params, points: Array, log_cell_volume: float | Array, *, batch_size: int = 4096
) -> Array:
    r"""Normalised log-density at each point of a grid: what ``kl_divergence_on_grid`` compares.

    log p(x_i) = -E(x_i) - log Z, with log Z from the same grid, so that h^d \sum_i p(x_i) = 1. It is -inf
    where the energy is +inf.

    Args:
      energy: ``(params, x) -> ()``, for one point.
      params: its parameters.
      points: ``(points, d)``, from ``grid``.
      log_cell_volume: log h^d, from ``grid``.
      batch_size: points evaluated at once.

    Returns:
      log p, shape ``(points,)``, in nats.

    Raises:
      ValueError: for points of the wrong rank or a repeated one, an energy that is not scalar, is NaN or
        -inf at a point or +inf at all of them, or a batch size below one.
      TypeError: if an argument is of another type.

    Example:
      >>> points, log_cell_volume = grid(0.0, 2.0, 4, dimension=1)
      >>> flat = lambda params, x: params  # uniform on [0, 2]
      >>> log_p = log_density_on_grid(flat, jnp.array(3.0), points, log_cell_volume)
      >>> [round(float(value), 3) for value in jnp.exp(log_p)]
      [0.5, 0.5, 0.5, 0.5]
    """
    checks.number("log_cell_volume", log_cell_volume)
    negative_energies = _negative_energies(energy, params, points, batch_size)
    if not checks.is_traced(negative_energies) and np.all(np.isneginf(np.asarray(negative_energies, float))):
        raise ValueError(
            f"energy={checks.function_name(energy)} is +inf at all {negative_energies.size} points: there is "
            f"no density to normalise."
        )
    return negative_energies - jax.nn.logsumexp(negative_energies) - log_cell_volume


def kl_divergence_on_grid(
    log_density_data: Array, log_density_model: Array, log_cell_volume: float | Array
) -> Array:
    r"""KL divergence of the model from the data, by the midpoint rule.

    KL(p || q) = h^d \sum_i p(x_i) (log p(x_i) - log q(x_i)), in nats, with 0 log 0 = 0: cells with p = 0 add
    nothing, whatever q; a cell with p > 0 and q = 0 makes it infinite. Both densities must be normalised on
    this grid.

    Args:
      log_density_data: ``(points,)`` log p, -inf where p = 0.
      log_density_model: ``(points,)`` log q.
      log_cell_volume: log h^d, from ``grid``.

    Returns:
      KL in nats, shape ``()``; differentiable in both densities.

    Raises:
      ValueError: if the densities differ in shape, are not of rank one, or hold NaN or +inf.
      TypeError: if one is no array of real numbers.

    Example:
      >>> p, q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.25, 0.25, 0.5]))
      >>> round(float(kl_divergence_on_grid(p, q, 0.0)), 4)
      0.6931

    Reference:
      Kullback & Leibler 1951, "On information and sufficiency".
    """
    densities = {"log_density_data": log_density_data, "log_density_model": log_density_model}
    for name, log_density in densities.items():
        checks.array(name, log_density)
        if not checks.is_traced(log_density):
            values = np.asarray(log_density, float)
            if np.any(np.isnan(values) | np.isposinf(values)):
                raise ValueError(f"{name} holds NaN or +inf: finite log-densities, or -inf, are needed.")
    checks.number("log_cell_volume", log_cell_volume)
    if jnp.ndim(log_density_data) != 1 or jnp.shape(log_density_data) != jnp.shape(log_density_model):
        raise ValueError(
            f"log_density_data has shape {jnp.shape(log_density_data)} and log_density_model "
            f"{jnp.shape(log_density_model)}: (points,) alike is needed."
        )
    # Both are made finite before the difference, or inf - inf would leave NaN in value and gradient.
    is_zero = jnp.isneginf(log_density_data)
    log_p = jnp.where(is_zero, 0.0, log_density_data)
    log_q = jnp.where(is_zero, 0.0, log_density_model)
    mass = jnp.where(is_zero, 0.0, jnp.exp(log_p + log_cell_volume))
    return jnp.sum(mass * (log_p - log_q))


def enumerate_states(dimension: int, values: tuple[float, ...] = (-1, 1)) -> Array:
    """Every state of ``dimension`` sites that each take one of ``values``.

    Args:
      dimension: number of sites d.
      values: what a site can be; (-1, 1) for spins, (0, 1) for bits.

    Returns:
      ``(len(values)**d, d)`` float32, the last site varying fastest.

    Raises:
      ValueError: if ``dimension`` is not a positive integer, ``values`` is empty or repeats, or there are
        more than 2**24 states.

    Example:
      >>> enumerate_states(2).tolist()
      [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    checks.positive_integer("dimension", dimension)
    checks.array("values", values, (None,), "a sequence of numbers")
    checks.finite("values", np.asarray(values))
    if len(values) == 0 or len(set(values)) != len(values):
        raise ValueError(f"values={values!r}: at least one value is needed, each once.")
    _few_enough("len(values) ** dimension", len(values), dimension)
    return _product(np.asarray(values), dimension)


def log_partition_by_enumeration(
    energy: EnergyFn, params: Params, states: Array, *, batch_size: int = 4096
) -> Array:
    r"""Log Z of a discrete model, summed over all its states; differentiable in its parameters.

    log Z = log \sum_s exp(-E(s)), with d log Z / d theta = -E_p[dE / d theta].

    Args:
      energy: ``(params, state) -> ()``, for one state.
      params: its parameters.
      states: ``(states, d)``, every state once, from ``enumerate_states``.
      batch_size: states evaluated at once.

    Returns:
      log Z in nats, shape ``()``.

    Raises:
      ValueError: for states of the wrong rank or a repeated one, an energy that is not scalar, is NaN or
        -inf at a state, or a batch size below one.
      TypeError: if an argument is of another type.

    Example:
      >>> log_z = log_partition_by_enumeration(lambda field, s: -jnp.sum(field * s), 0.5, enumerate_states(3))
      >>> round(float(log_z), 3), round(3 * math.log(2 * math.cosh(0.5)), 3)  # free spins
      (2.44, 2.44)
    """
    return jax.nn.logsumexp(_negative_energies(energy, params, states, batch_size, "states"))
