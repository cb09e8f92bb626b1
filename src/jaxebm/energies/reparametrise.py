"""Energies in other coordinates: the same model, log Z unchanged, in a shape that a sampler finds easier.

A sampler that knows no bounds samples a bounded model through ``box_transform``; one that has a single step
size samples a funnel through ``funnel_transform``. Samples z of the new energy are carried back by
``jax.vmap(lambda z: transform(params, z)[0])``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.analytic import FunnelParams
from jaxebm.energies.target import check_shape
from jaxebm.trees import wide_dtype
from jaxebm.types import Array, EnergyFn, Params, Position

__all__ = ["Bijection", "box_transform", "funnel_transform", "reparametrise"]


@dataclass(frozen=True)
class Bijection:
    """A change of coordinates that knows its way back; calling it is calling ``forward``.

    Attributes:
      forward: ``(params, z) -> (x, log_det)``, log_det = log|det dx/dz|, shape ().
      inverse: ``(params, x) -> z``.

    Raises:
      TypeError: if one is no function of two arguments.

    Example:
      >>> shift = Bijection(lambda params, z: (z + params, jnp.zeros(())), lambda params, x: x - params)
      >>> float(shift.inverse(3.0, shift(3.0, 1.0)[0]))
      1.0
    """

    forward: Callable[[Params, Position], tuple[Position, Array]]
    inverse: Callable[[Params, Position], Position]

    def __post_init__(self) -> None:
        checks.function("forward", self.forward, "params", "z")
        checks.function("inverse", self.inverse, "params", "x")

    def __call__(self, params: Params, z: Position, /) -> tuple[Position, Array]:
        """Returns ``forward(params, z)``."""
        return self.forward(params, z)


@dataclass(frozen=True)
class _Reparametrised:
    energy: EnergyFn
    transform: Callable[[Params, Position], tuple[Position, Array]]

    def __call__(self, params: Params, z: Position, /) -> Array:
        moved = self.transform(params, z)
        if not isinstance(moved, tuple | list) or len(moved) != 2:
            raise TypeError(
                f"transform(params, z) returned a {type(moved).__name__}: (x, log_det) is needed."
            )
        x, log_det = moved
        if np.shape(log_det) != ():
            raise ValueError(
                f"transform(params, z) returned log_det of shape {np.shape(log_det)}: a scalar, shape (), is "
                "needed, log|det dx/dz| summed over all coordinates of one z."
            )
        energy = self.energy(params, x)
        checks.scalar_energy("energy", energy)
        return energy - log_det


def reparametrise(
    energy: EnergyFn, transform: Callable[[Params, Position], tuple[Position, Array]]
) -> EnergyFn:
    """Writes a model in the coordinates z of a one-to-one map x(z).

    E'(z) = E(x(z)) - log|det dx/dz|, so that z ~ exp(-E') makes x(z) ~ exp(-E), and log Z' = log Z.

    Args:
      energy: the energy E of x.
      transform: ``(params, z) -> (x, log_det)``, one-to-one and differentiable in z for any params, which are
        those of the energy: a ``Bijection`` of this module or a function.

    Returns:
      The energy ``(params, z) -> ()``, its params those of ``energy``. It compares and hashes by the two
      functions.

    Raises:
      TypeError: if energy is no function of (params, x) or transform none of (params, z) or, when it is
        called, transform returns no pair or energy no real number.
      ValueError: when it is called, if log_det or the energy is no scalar.

    Example:
      >>> uniform = lambda params, x: 0.0 * jnp.sum(x)
      >>> logistic = reparametrise(uniform, box_transform(0.0, 1.0))  # its density is e^z / (1 + e^z)^2
      >>> round(float(jnp.exp(-logistic(None, jnp.zeros(1)))), 4)
      0.25
    """
    checks.function("energy", energy, "params", "x")
    checks.function("transform", transform, "params", "z")
    return _Reparametrised(energy, transform)


def _check_bounds(low: Position, high: Position) -> None:
    for name, bounds in (("low", low), ("high", high)):
        checks.real_arrays(name, bounds)
        checks.finite(name, bounds)
    structure, high_structure = jax.tree.structure(low), jax.tree.structure(high)
    if structure != high_structure:
        raise ValueError(f"high has tree structure {high_structure}: it must be that of low, {structure}.")
    for below, above in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        concrete = not (checks.is_traced(below) or checks.is_traced(above))
        if concrete and not np.all(np.asarray(below) < np.asarray(above)):
            raise ValueError(f"low={below!r}, high={above!r}: low must be below high everywhere.")


def _check_width(low: Position, high: Position, like: Position) -> None:
    """Raises unless low and high differ, by a finite width, in the dtype in which the map is computed."""

    def check(below: Any, above: Any, leaf: Array) -> None:
        if checks.is_traced(below) or checks.is_traced(above):
            return
        dtype = wide_dtype(leaf)
        with np.errstate(over="ignore"):
            width = np.asarray(above, dtype) - np.asarray(below, dtype)
        if not np.all(np.isfinite(width) & (width > 0)):
            raise ValueError(
                f"low={below!r}, high={above!r}: high - low must be positive and finite in {dtype.name}."
            )

    jax.tree.map(check, *(jax.tree.broadcast(bounds, like) for bounds in (low, high)), like)


def _spread(name: str, bounds: Position, like: Position) -> Position:
    """The bounds as a pytree like ``like``, in its dtypes but not narrower than float32."""

    def spread(bound: Array, leaf: Array) -> Array:
        if np.shape(bound) not in ((), np.shape(leaf)):
            raise ValueError(
                f"{name} has shape {np.shape(bound)}: () or the position's, {np.shape(leaf)}, is needed."
            )
        return jnp.broadcast_to(jnp.asarray(bound, wide_dtype(leaf)), np.shape(leaf))

    return jax.tree.map(spread, jax.tree.broadcast(bounds, like), like)


def _into_box(z: Array, low: Array, high: Array) -> Array:
    wide, width = jnp.asarray(z, low.dtype), high - low
    # From the nearer bound, so that rounding cannot carry x past the other one.
    x = jnp.where(wide < 0, low + width * jax.nn.sigmoid(wide), high - width * jax.nn.sigmoid(-wide))
    return x.astype(jnp.asarray(z).dtype)


def _box_log_det(z: Array, low: Array, high: Array) -> Array:
    wide = jnp.asarray(z, low.dtype)
    return jnp.sum(jnp.log(high - low) + jax.nn.log_sigmoid(wide) + jax.nn.log_sigmoid(-wide))


def _out_of_box(x: Array, low: Array, high: Array) -> Array:
    wide = jnp.asarray(x, low.dtype)
    return (jnp.log(wide - low) - jnp.log(high - wide)).astype(jnp.asarray(x).dtype)


def box_transform(low: Position | float, high: Position | float) -> Bijection:
    """Maps all of space onto a box.

    x = low + (high - low) sigmoid(z), log|det dx/dz| = sum_i [log(high_i - low_i) + log sigmoid(z_i) + log
    sigmoid(-z_i)], and back, z = log(x - low) - log(high - x).

    x comes as near to either bound as its dtype can tell, and never passes it: in float32 it meets ``high``,
    and a ``low`` that is not 0, from |z| of about 17 on, where the energy must be finite. log|det dx/dz| and
    its derivative are right at any z.

    Args:
      low: lower bounds: a number for all coordinates, or a pytree of arrays, z's or a prefix of it, each leaf
        of shape () or that of the leaves of z that it bounds; may be traced.
      high: upper bounds, of the same tree structure, above ``low`` everywhere.

    Returns:
      The bijection, which ignores params. z is any pytree of floating-point arrays, and x has its dtypes. The
      inverse of a bound is infinite, and NaN beyond.

    Raises:
      ValueError: if a bound is not finite, if low is not below high, if their tree structures differ or, when
        it is called, if a bound's shape is neither () nor that of z, or if high - low is 0 or infinite in the
        dtype of z, at least float32.
      TypeError: if a bound holds no real numbers or, when it is called, if z or x is not floating-point.

    Example:
      >>> box = box_transform(-1.0, 3.0)
      >>> x, log_det = box(None, jnp.zeros(2))
      >>> print(x, float(log_det), box.inverse(None, x))
      [1. 1.] 0.0 [0. 0.]

    Reference:
      Stan Reference Manual, "Constraint transforms": lower and upper bounded scalar.
    """
    _check_bounds(low, high)

    def forward(params: Params, z: Position) -> tuple[Position, Array]:
        del params
        checks.floating("z", z)
        _check_width(low, high, z)
        lows, highs = _spread("low", low, z), _spread("high", high, z)
        log_dets = jax.tree.leaves(jax.tree.map(_box_log_det, z, lows, highs))
        return jax.tree.map(_into_box, z, lows, highs), sum(log_dets, start=jnp.zeros(()))

    def inverse(params: Params, x: Position) -> Position:
        del params
        checks.floating("x", x)
        _check_width(low, high, x)
        return jax.tree.map(_out_of_box, x, _spread("low", low, x), _spread("high", high, x))

    return Bijection(forward, inverse)


def _funnel_forward(params: FunnelParams, z: Array) -> tuple[Array, Array]:
    check_shape("z", z, (None,), "(dimension,)")
    log_variance = params.scale * z[0]
    x = jnp.concatenate([log_variance[None], jnp.exp(0.5 * log_variance) * z[1:]])
    return x, jnp.log(params.scale) + 0.5 * (z.size - 1) * log_variance


def _funnel_inverse(params: FunnelParams, x: Array) -> Array:
    check_shape("x", x, (None,), "(dimension,)")
    return jnp.concatenate([x[:1] / params.scale, jnp.exp(-0.5 * x[0]) * x[1:]])


def funnel_transform() -> Bijection:
    """Straightens ``funnel``: its non-centred parametrisation.

    x_0 = scale z_0, x_i = exp(x_0 / 2) z_i, log|det dx/dz| = log scale + (d - 1) x_0 / 2.

    On the funnel with the same params, E'(z) = |z|^2 / 2 - log scale: the standard normal, which any sampler
    manages. With another energy it is a change of coordinates like any other.

    Returns:
      The bijection; of params it reads ``scale``, the deviation of x_0. z and x have shape (d,).

    Example:
      >>> from jaxebm.energies.analytic import funnel
      >>> target = funnel(dimension=3, scale=1.0)
      >>> straight = reparametrise(target.energy, funnel_transform())
      >>> round(float(straight(target.params, jnp.array([2.0, 1.0, 1.0]))), 4)
      3.0

    Reference:
      Papaspiliopoulos, Roberts and Skoeld, "A general framework for the parametrization of hierarchical
      models", Statistical Science 22, 2007.
    """
    return Bijection(_funnel_forward, _funnel_inverse)
