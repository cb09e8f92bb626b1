"""Proximal Langevin dynamics: a Langevin step on an energy's smooth part, a proximal map for the rest."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.samplers.langevin import LangevinInfo, LangevinState, check_numbers, scalar_target
from jaxebm.trees import euclidean_norm, normal_like, widened
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["Proximal", "box", "projected", "proximal_sgld", "ridge", "soft_threshold"]

Proximal: TypeAlias = Callable[[Position, Array | float], Position]
"""``(position, step_size) -> position``: the v that minimises r(v) + |v - x|^2 / (2 step_size)."""


def proximal_sgld(
    target: Target,
    proximal: Proximal,
    step_size: Array | float,
    noise_scale: Array | float | None = None,
) -> Kernel:
    r"""Samples exp(-E(x) - r(x)) where E is smooth and r need not be: an L1 penalty, a wall, a constraint.

    .. math:: x \leftarrow \mathrm{prox}_{\epsilon r}\!\left(
                x - \epsilon\, \partial E / \partial x + \sigma n\right), \qquad n \sim N(0, I)

    .. math:: \mathrm{prox}_{\epsilon r}(x) = \arg\min_v\; r(v) + \frac{\|v - x\|^2}{2 \epsilon}

    A large step is safe for r, however steep it is: the map is a contraction. With ``box`` this is ``sgld``
    with ``state_clamp``, projected Langevin.

    **Its bias** is of the order of the square root of the step near a kink or a wall, where the chain sits
    *exactly* with a probability of that order, which the true law does not have. Where both parts are
    quadratic it is known: with E = k x^2 / 2 and r = l x^2 / 2 (``ridge``) the chain is an autoregression
    with coefficient (1 - epsilon k) / (1 + epsilon l) and, at temperature 1, of variance

    .. math:: \frac{1}{(k + l)\,(1 + \epsilon (l - k) / 2)},

    exact where l = k, and at r = 0 ``sgld``'s. It is stable for epsilon (k - l) < 2.

    Args:
      target: position -> energy ``()``: E, the smooth part.
      proximal: ``(position, step_size) -> position``, the proximal map of step_size * r: ``soft_threshold``,
        ``box``, ``ridge``, ``projected`` or your own. Its argument is float32, or wider.
      step_size: epsilon > 0, ``()``, as in ``sgld``.
      noise_scale: sigma >= 0, ``()``; ``None`` means sqrt(2 epsilon), temperature 1. At 0 this is the
        proximal gradient method, which finds the mode.

    Returns:
      A kernel over ``LangevinState`` and ``LangevinInfo``, whose energy and gradient are those of E alone.
      The position is any pytree of floating-point arrays and keeps its dtypes. The first state is the given
      position, inside of the constraint or not.

    Raises:
      ValueError: if the step is not positive or the noise negative (numbers only: traced values pass), if the
        energy is not a scalar, or if the proximal map does not keep the shapes of the position.
      TypeError: if the position is not floating-point, or proximal no function of a position and a step.

    Example:
      Lasso's posterior; without noise, its mode, the first coordinate of which is exactly zero:

      >>> energy = lambda x: 0.5 * jnp.sum((x - jnp.array([0.5, 3.0])) ** 2)
      >>> kernel = proximal_sgld(energy, soft_threshold(1.0), step_size=1.0, noise_scale=0.0)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(2)))
      >>> state.position.tolist()
      [0.0, 2.0]

    Reference:
      Salim & Richtarik 2020, Primal dual interpretation of the proximal stochastic gradient Langevin
      algorithm (arXiv:2006.09270), PSGLA; Salim, Kovalev & Richtarik 2019 (arXiv:1905.11768); for a box or
      another convex set, Bubeck, Eldan & Lehec 2018, Sampling from a log-concave distribution with projected
      Langevin Monte Carlo (arXiv:1507.02564).
    """
    check_numbers(step_size, noise_scale)
    checks.function("proximal", proximal, "position", "step_size")
    energy_and_gradient = jax.value_and_grad(scalar_target(target))
    noise = jnp.sqrt(2.0 * step_size) if noise_scale is None else noise_scale

    def init(position: Position, rng_key: Array | None = None) -> LangevinState:
        del rng_key
        checks.floating("position", position)
        return LangevinState(jax.tree.map(jnp.asarray, position))

    def step(rng_key: Array, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        energy, gradient = energy_and_gradient(state.position)
        moved = jax.tree.map(
            lambda x, slope, normal: widened(x) - step_size * widened(slope) + noise * normal,
            state.position,
            gradient,
            normal_like(rng_key, state.position),
        )
        mapped = proximal(moved, step_size)
        _check_same_shapes(mapped, moved)
        position = jax.tree.map(lambda x, like: jnp.asarray(x).astype(like.dtype), mapped, state.position)
        return LangevinState(position), LangevinInfo(energy, euclidean_norm(gradient))

    return Kernel(init, step)


def soft_threshold(strength: Array | float) -> Proximal:
    r"""The proximal map of r(x) = lambda sum |x|: a Laplace prior, towards exact zeros.

    .. math:: x \mapsto \mathrm{sign}(x) \max(|x| - \epsilon \lambda,\, 0)

    Args:
      strength: lambda >= 0, ``()``, in units of energy per position.

    Returns:
      ``(position, step_size) -> position``, over any pytree.

    Raises:
      ValueError: if the strength is negative.

    Example:
      >>> soft_threshold(2.0)(jnp.array([-3.0, 0.5, 1.5]), 0.5).tolist()
      [-2.0, 0.0, 0.5]

    Reference:
      Parikh & Boyd 2014, Proximal algorithms, section 6.5.2.
    """
    checks.non_negative_number("strength", strength)

    def shrink(position: Position, step_size: Array | float) -> Position:
        return jax.tree.map(
            lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - step_size * strength, 0.0), position
        )

    return shrink


def ridge(strength: Array | float) -> Proximal:
    r"""The proximal map of r(x) = lambda |x|^2 / 2: a Gaussian prior, taken implicitly.

    .. math:: x \mapsto x / (1 + \epsilon \lambda)

    Args:
      strength: lambda >= 0, ``()``, in units of energy per position^2.

    Returns:
      ``(position, step_size) -> position``, over any pytree.

    Raises:
      ValueError: if the strength is negative.

    Example:
      >>> ridge(2.0)(jnp.array([-3.0, 1.0]), 0.5).tolist()
      [-1.5, 0.5]

    Reference:
      Parikh & Boyd 2014, Proximal algorithms, section 6.1.1.
    """
    checks.non_negative_number("strength", strength)

    def shrink(position: Position, step_size: Array | float) -> Position:
        return jax.tree.map(lambda x: x / (1 + step_size * strength), position)

    return shrink


def box(low: Array | float, high: Array | float) -> Proximal:
    r"""The proximal map of a box's walls, r(x) = 0 inside and infinite outside: the nearest point inside.

    .. math:: x \mapsto \min(\max(x, \mathrm{low}), \mathrm{high})

    Args:
      low: lower end, ``()``, or of a shape that broadcasts to that of every leaf; -inf for none.
      high: upper end > low, likewise; inf for none.

    Returns:
      ``(position, step_size) -> position``, over any pytree; the step makes no difference.

    Raises:
      ValueError: if low is not below high (numbers only: traced values pass), or, where it is applied, if an
        end has another shape than the leaf.

    Example:
      >>> box(-1.0, 2.0)(jnp.array([-3.0, 0.5, 4.0]), 0.1).tolist()
      [-1.0, 0.5, 2.0]
    """
    checks.array("low", low)
    checks.array("high", high)
    if not (checks.is_traced(low) or checks.is_traced(high)) and not np.all(np.less(low, high)):
        raise ValueError(f"low={low!r}, high={high!r}: every low must be below its high.")

    def clip(x: Array) -> Array:
        ends = []
        for name, end in (("low", low), ("high", high)):
            checks.broadcasts(name, end, np.shape(x), "a leaf of the position")
            ends.append(end if np.ndim(end) == 0 else jnp.broadcast_to(end, np.shape(x)))
        return jnp.clip(x, *ends)

    return projected(lambda position: jax.tree.map(clip, position))


def projected(projection: Callable[[Position], Position]) -> Proximal:
    """The proximal map of a convex set: the nearest point in it, for any step size.

    Args:
      projection: position -> the nearest position in the set, such as those of ``optax.projections``.

    Returns:
      ``(position, step_size) -> position``.

    Raises:
      TypeError: if the projection is not a function of one position.

    Example:
      >>> import optax
      >>> onto_simplex = projected(optax.projections.projection_simplex)
      >>> onto_simplex(jnp.array([0.75, 0.75, -1.0]), 0.1).tolist()
      [0.5, 0.5, 0.0]
    """
    checks.function("projection", projection, "position")

    def project(position: Position, step_size: Array | float) -> Position:
        del step_size
        return projection(position)

    return project


def _check_same_shapes(mapped: Position, position: Position) -> None:
    found, expected = (jax.tree.map(jnp.shape, tree) for tree in (mapped, position))
    if jax.tree.structure(mapped) != jax.tree.structure(position) or found != expected:
        raise ValueError(
            f"The proximal map returned shapes {found} for a position of shapes {expected}: proximal must be "
            f"(position, step_size) -> position of the same structure and shapes."
        )
