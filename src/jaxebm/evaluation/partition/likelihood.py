"""Likelihoods of data, given log Z: log p(x) in nats, and the code length in bits per dimension."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.langevin import scalar_target
from jaxebm.types import Array, EnergyFn, Params, Position

__all__ = ["bits_per_dimension", "log_likelihood"]


def log_likelihood(
    energy: EnergyFn, params: Params, data: Position, log_partition: Array | float, *, batch_size: int = 256
) -> Array:
    """Returns log p(x) = -E(x) - log Z of each example, in nats.

    With a lower bound of log Z it flatters the model: quote it with the upper end of an interval. An energy
    of +inf gives -inf; one of NaN gives NaN for its own example alone.

    Args:
      energy: ``energy(params, x) -> ()``.
      params: its parameters.
      data: n examples, leaves ``(n, ...)``.
      log_partition: log Z in nats, ``()``.
      batch_size: examples evaluated at once.

    Returns:
      Log-likelihoods, ``(n,)``.

    Raises:
      ValueError: if data is empty or ragged, log_partition is NaN or no single number, the batch size is
        below 1, or the energy is not a scalar.
      TypeError: if an argument is of another type.

    Example:
      >>> energy = lambda params, x: 0.5 * jnp.sum(x**2)
      >>> values = log_likelihood(energy, None, jnp.array([[0.0], [1.0]]), 0.5 * math.log(2 * math.pi))
      >>> [round(float(value), 3) for value in values]
      [-0.919, -1.419]
    """
    checks.function("energy", energy, "params", "x")
    checks.arrays("params", params)
    checks.real_arrays("data", data)
    check_log_partition(log_partition)
    checks.positive_integer("batch_size", batch_size)
    size = min(batch_size, checks.batch_length("data", data))
    with checks.shapes_noted(params=params, data=data):
        energies = _energies(params, data, energy=energy, batch_size=size)
    return -energies - log_partition


def check_log_partition(log_partition: Any) -> None:
    """Raises unless it is one number; infinite ones pass, as an interval without weights has such ends."""
    checks.in_range("log_partition", log_partition, -math.inf, math.inf)
    checks.one_number("log_partition", log_partition)


def bits_per_dimension(log_likelihood: Array | float, dimension: int, bin_width: float = 1.0) -> Array:
    r"""Returns the code length of one coordinate, -(log p(x) / D + log h) / log 2, in bits.

    Args:
      log_likelihood: log p(x) in nats, any shape.
      dimension: D, the coordinates of x.
      bin_width: h, the distance of the data's levels in the units of x: 1 for discrete x, 1/255 for bytes
        scaled to [0, 1] (a density then stands for the mass of a cell of volume h^D).

    Returns:
      Bits, of the shape of log_likelihood; infinite where it is -inf.

    Raises:
      ValueError: if dimension is not an integer of at least 1, or bin_width is not one positive number.
      TypeError: if log_likelihood is no array of real numbers.

    Example:
      >>> bits_per_dimension(-8 * math.log(2), dimension=8).tolist()  # fair coins
      1.0
    """
    checks.array("log_likelihood", log_likelihood)
    checks.positive_integer("dimension", dimension)
    checks.positive_number("bin_width", bin_width)
    return -(jnp.asarray(log_likelihood) / dimension + jnp.log(bin_width)) / math.log(2)


@functools.partial(jax.jit, static_argnames=("energy", "batch_size"))
def _energies(params: Params, data: Position, energy: EnergyFn, batch_size: int) -> Array:
    return jax.lax.map(scalar_target(functools.partial(energy, params)), data, batch_size=batch_size)
