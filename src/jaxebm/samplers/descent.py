"""Steepest descent by steps of fixed length, in a ball and a box: the chain of adversarial examples."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.chains import run_annealed_chain
from jaxebm.samplers.langevin import LangevinInfo, LangevinState, check_clamp, check_numbers, scalar_target
from jaxebm.trees import euclidean_norm, widened
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["DescentNorm", "project_to_ball", "projected_gradient_descent", "steepest_descent"]

DescentNorm = Literal["l2", "linf"]
"""The norm of a step's length: Euclidean over all leaves, or the largest absolute entry."""


def steepest_descent(
    target: Target,
    step_size: Array | float,
    norm: DescentNorm = "l2",
    *,
    state_clamp: tuple[Array | float, Array | float] | None = None,
    center: Position | None = None,
    radius: Array | float | None = None,
) -> Kernel:
    r"""Descends the target by steps of fixed length, without noise: projected gradient descent, "PGD".

    .. math:: x \leftarrow \Pi\!\left(x - \epsilon\, d(\partial E / \partial x)\right), \qquad
              d_2(g) = g / \|g\|_2, \qquad d_\infty(g) = \mathrm{sign}(g)

    d(g) is the direction of length one in which E falls fastest, by its gradient. Pi projects onto the ball
    of the same norm around ``center``, then onto the box ``state_clamp``. Where the center lies in the box
    the result is in both: the clip to the box leaves the center where it is and brings no two points further
    apart. For linf it is the nearest such point, for l2 one that need not be the nearest.

    With E the energy of a classifier it makes the negatives of adversarial training; with E *minus* the
    classifier's loss it is the attack that raises this loss.

    Args:
      target: position -> energy ``()``, to be lowered.
      step_size: epsilon > 0, ``()``, the length of a step before it is projected, in units of position.
      norm: ``"l2"``, Euclidean over all leaves together, or ``"linf"``, every entry moves by epsilon.
      state_clamp: ``(low, high)``: each entry of the new position is projected onto [low, high], last of all.
      center: middle of the ball, of the structure and shapes of the position; together with radius, or not.
      radius: r >= 0, ``()``, in units of position.

    Returns:
      A kernel over ``LangevinState`` and ``LangevinInfo``; it takes a key, as any kernel, and does not use
      it. Where the gradient is zero, in l2 all of it and in linf an entry of it, the position stays. The
      first state is the given position, inside of ball and box or not. The position is any pytree of
      floating-point arrays and keeps its dtypes; it is in the ball up to their rounding.

    Raises:
      ValueError: if the step is not positive, the norm unknown, the radius negative, the clamp not low <
        high or the center outside of it (numbers only: traced values pass); if of center and radius only one
        is given, or the center has other shapes than the position; or if the energy is not a scalar.
      TypeError: if the position or the center is not floating-point.

    Example:
      >>> kernel = steepest_descent(lambda x: jnp.sum(x**4), 0.5, center=jnp.array([3.0, 4.0]), radius=1.0)
      >>> state = kernel.init(jnp.array([3.0, 4.0]))
      >>> state, info = kernel.step(jax.random.key(0), state)
      >>> round(float(jnp.linalg.norm(state.position - jnp.array([3.0, 4.0]))), 4)
      0.5

    Reference:
      Madry et al. 2018, Towards deep learning models resistant to adversarial attacks (arXiv:1706.06083),
      section 2.1; on energies, Yin et al. 2020 (arXiv:2012.06568) and 2025 (arXiv:2510.13872).
    """
    check_numbers(step_size)
    checks.one_of("norm", norm, get_args(DescentNorm))
    if state_clamp is not None:
        check_clamp(state_clamp)
    if (center is None) != (radius is None):
        missing, given = ("center", "radius") if center is None else ("radius", "center")
        raise ValueError(
            f"{missing}=None with a {given}: a ball needs both, center and radius; or give neither."
        )
    if center is not None:
        checks.floating("center", center)
        checks.non_negative_number("radius", radius)
        center = jax.tree.map(jnp.asarray, center)
        if state_clamp is not None:
            _check_center(center, state_clamp)
    energy_and_gradient = jax.value_and_grad(scalar_target(target))

    def init(position: Position, rng_key: Array | None = None) -> LangevinState:
        del rng_key
        checks.floating("position", position)
        if center is not None:
            checks.same_shapes("center", center, "the position", position)
        return LangevinState(jax.tree.map(jnp.asarray, position))

    def step(rng_key: Array, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        del rng_key
        energy, gradient = energy_and_gradient(state.position)
        moved = jax.tree.map(
            lambda x, slope: widened(x) - step_size * slope, state.position, _unit(gradient, norm)
        )
        if center is not None and radius is not None:
            moved = project_to_ball(moved, center, radius, norm)
        if state_clamp is not None:
            moved = _clamped(moved, state_clamp)
        position = jax.tree.map(lambda x, like: x.astype(like.dtype), moved, state.position)
        return LangevinState(position), LangevinInfo(energy, euclidean_norm(gradient))

    return Kernel(init, step)


def projected_gradient_descent(
    rng_key: Array,
    target_at: Callable[[Any], Target],
    schedule: Any,
    start: Position,
    *,
    step_size: Array | float,
    norm: DescentNorm = "l2",
    center: Position,
    radius: Array | float,
    state_clamp: tuple[Array | float, Array | float] | None = None,
) -> Position:
    r"""Runs ``steepest_descent`` in a ball and a box, one target per step: the loop of every attack here.

    .. math:: x_0 = \Pi(\mathrm{start}), \qquad
              x_k = \Pi\!\left(x_{k-1} - \epsilon\, d(\partial E_k / \partial x)\right)

    with d and Pi as in ``steepest_descent``. Targets differ from step to step where an attacked defence uses
    noise.

    Args:
      rng_key: one key, as for any chain; nothing is drawn from it.
      target_at: one slice of the schedule -> the target of that step.
      schedule: pytree with leaves ``(num_steps, ...)``.
      start: where the chain starts, in the ball and the box or not; any pytree of floating-point arrays.
      step_size: epsilon > 0, ``()``, the length of a step, in units of position.
      norm: of the steps and of the ball, ``"l2"`` or ``"linf"``.
      center: middle of the ball, of the structure and shapes of ``start``.
      radius: r >= 0, ``()``, in units of position.
      state_clamp: ``(low, high)`` that every entry stays in, or None.

    Returns:
      The last position, in the dtypes of ``center``.

    Raises:
      ValueError, TypeError: as ``steepest_descent``; ValueError if the schedule has no steps.

    Example:
      The sum falls fastest toward the lowest corner of the ball:

      >>> x = projected_gradient_descent(
      ...     jax.random.key(0), lambda index: jnp.sum, jnp.arange(4), jnp.zeros(2),
      ...     step_size=0.25, norm="linf", center=jnp.zeros(2), radius=0.5)
      >>> x.tolist()
      [-0.5, -0.5]

    Reference:
      Madry et al. 2018 (arXiv:1706.06083), section 2.1.
    """
    checks.rng_key("rng_key", rng_key)
    checks.function("target_at", target_at, "schedule_slice")
    check_numbers(step_size)
    checks.floating("start", start)
    checks.floating("center", center)
    checks.same_shapes("start", start, "center", center)
    if state_clamp is not None:
        check_clamp(state_clamp)
    start = project_to_ball(start, center, radius, norm)
    if state_clamp is not None:
        start = _clamped(start, state_clamp)
    start = jax.tree.map(lambda x, like: x.astype(jnp.asarray(like).dtype), start, center)

    def kernel_at(at: Any) -> Kernel:
        return steepest_descent(
            target_at(at), step_size, norm, state_clamp=state_clamp, center=center, radius=radius
        )

    return run_annealed_chain(rng_key, kernel_at, schedule, start)[0].position


def project_to_ball(
    position: Position, center: Position, radius: Array | float, norm: DescentNorm = "l2"
) -> Position:
    r"""Returns the nearest point of the ball of a norm.

    .. math:: c + (x - c) \min(1,\, r / \|x - c\|_2) \qquad\text{or}\qquad \min(\max(x, c - r), c + r)

    Args:
      position: x, any pytree of floating-point arrays.
      center: c, of its structure and shapes.
      radius: r >= 0, ``()``, in units of position.
      norm: ``"l2"``, Euclidean over all leaves together, or ``"linf"``, the largest absolute entry.

    Returns:
      The projected position, in float32 or wider.

    Raises:
      ValueError: if the radius is negative, the norm unknown, or the center of other shapes.

    Example:
      >>> project_to_ball(jnp.array([3.0, 4.0]), jnp.zeros(2), 2.5).tolist()
      [1.5, 2.0]
      >>> project_to_ball(jnp.array([3.0, 0.5]), jnp.zeros(2), 1.0, "linf").tolist()
      [1.0, 0.5]
    """
    checks.non_negative_number("radius", radius)
    checks.one_of("norm", norm, get_args(DescentNorm))
    checks.floating("position", position)
    checks.floating("center", center)
    checks.same_shapes("center", center, "position", position)
    position, center = (
        jax.tree.map(lambda leaf: widened(jnp.asarray(leaf)), part) for part in (position, center)
    )
    if norm == "linf":
        return jax.tree.map(lambda x, c: jnp.clip(x, c - radius, c + radius), position, center)
    offset = jax.tree.map(lambda x, c: x - c, position, center)
    length = euclidean_norm(offset)
    # Not minimum(1, radius / length), which is NaN at the center for radius 0.
    shrink = jnp.where(length > radius, radius / jnp.where(length > 0, length, 1.0), 1.0)
    return jax.tree.map(lambda c, o: c + shrink * o, center, offset)


def _clamped(position: Position, state_clamp: tuple[Array | float, Array | float]) -> Position:
    low, high = state_clamp
    return jax.tree.map(lambda x: jnp.clip(x, low, high), position)


def _unit(gradient: Any, norm: DescentNorm) -> Any:
    """The gradient at length one in the norm, in float32 or wider; zero stays zero."""
    gradient = jax.tree.map(widened, gradient)
    if norm == "linf":
        return jax.tree.map(jnp.sign, gradient)
    # Divided by the largest entry first: the gradients of a confident classifier are so small that their
    # squares are zero in float32, and the chain would not move.
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(gradient)]).max()
    scaled = jax.tree.map(lambda leaf: leaf / jnp.where(largest > 0, largest, 1.0), gradient)
    length = euclidean_norm(scaled)
    return jax.tree.map(lambda leaf: leaf / jnp.where(length > 0, length, 1.0), scaled)


def _check_center(center: Position, state_clamp: tuple[Any, Any]) -> None:
    low, high = state_clamp
    if checks.is_traced(low) or checks.is_traced(high):
        return
    for leaf in jax.tree.leaves(center):
        checks.in_range("center", leaf, low, high)
