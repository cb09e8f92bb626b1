"""Energies between two others: the path along which tempering, SMC and annealing move."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxebm.types import Array

__all__ = ["between"]


@jax.custom_jvp
def between(t: Array, first: Array, last: Array) -> Array:
    """Returns (1 - t) first + t last, in which 0 times an infinite energy is 0.

    At t = 0 and t = 1 the other energy has no part, so that it may be infinite or NaN there.

    Args:
      t: ``()``, in [0, 1].
      first: E_0 of one position, ``()``.
      last: E_1 of the same position, ``()``.

    Returns:
      The energy, ``()``.

    Example:
      >>> float(between(1.0, jnp.inf, 2.0)), float(between(0.5, 1.0, 2.0))
      (2.0, 1.5)
    """
    value = (1 - t) * first + t * last
    return jnp.where(t == 0, first, jnp.where(t == 1, last, value))


def _between_jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """That of the plain sum: autodiff through the choice rounds gradients of finite energies otherwise."""
    t, first, last = primals
    value = between(t, first, last)
    factors = (last - first, 1 - t, t)
    terms = [
        factor * tangent
        for factor, tangent in zip(factors, tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return value, functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(value)


between.defjvp(_between_jvp, symbolic_zeros=True)
