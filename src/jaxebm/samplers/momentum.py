"""Gradient descent with momentum: heavy ball, Nesterov, and the look-ahead steps of equilibrium matching."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.langevin import LangevinInfo, check_clamp, check_numbers, scalar_target
from jaxebm.trees import euclidean_norm, normal_like, widened
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["MomentumForm", "MomentumState", "momentum_descent"]

MomentumForm = Literal["heavy_ball", "nesterov", "look_ahead"]
"""How the velocity enters a step of ``momentum_descent``."""


class MomentumState(NamedTuple):
    """Where the chain is, and how it moved last.

    Attributes:
      position: the state x of the chain, any pytree of floating-point arrays.
      velocity: v, the last step before it was clamped, in the shapes of the position, float32 or wider.
    """

    position: Position
    velocity: Position


def momentum_descent(
    target: Target,
    step_size: Array | float,
    momentum: Array | float = 0.9,
    form: MomentumForm = "heavy_ball",
    *,
    noise_scale: Array | float = 0.0,
    gradient_clip: Array | float | None = None,
    state_clamp: tuple[Array | float, Array | float] | None = None,
) -> Kernel:
    r"""Descends the target with momentum; with noise it is Langevin dynamics with momentum.

    .. math:: v \leftarrow \mu' v - \epsilon\, g + \sigma n, \qquad x \leftarrow x + v, \qquad n \sim N(0, I)

    ================  ============================================  ============
    form              gradient g of E at                            mu'
    ================  ============================================  ============
    ``heavy_ball``    x                                             mu
    ``nesterov``      x + mu v                                      mu
    ``look_ahead``    x + mu v                                      0
    ================  ============================================  ============

    Energies whose gradient is learnt all the way from noise to data (`equilibrium_matching`,
    `energy_matching`) are descended from noise. Equilibrium matching takes plain descent, ``momentum=0``, of
    step .003, or ``look_ahead`` of step .0017 and mu = .3; its authors call that Nesterov's, but each of its
    steps is a gradient step and no velocity adds up. A step with momentum goes 1 / (1 - mu) times as far
    where the gradient is constant, and ``look_ahead`` as far as without.

    **Its law.** With noise, ``heavy_ball`` on E = k x^2 / 2 has the stationary variance

    .. math:: \frac{\sigma^2}{2 (1 - \mu) \epsilon k} \Big/ \left(1 - \frac{\epsilon k}{2 (1 + \mu)}\right),

    so sigma = sqrt(2 (1 - mu) epsilon) samples at temperature 1 as the step goes to 0. ``underdamped`` has no
    error of the step on such an energy.

    Args:
      target: position -> energy ``()``.
      step_size: epsilon > 0, ``()``, in units of position^2 per unit of energy.
      momentum: mu in [0, 1), ``()``. On a quadratic energy heavy balls are stable for curvatures up to
        2 (1 + mu) / epsilon.
      form: ``"heavy_ball"``, ``"nesterov"`` or ``"look_ahead"``.
      noise_scale: sigma >= 0, ``()``, in units of position; the noise is part of the velocity.
      gradient_clip: g > 0: each entry of the gradient is clipped to [-g, g] before the step.
      state_clamp: ``(low, high)``: each entry of the new position is projected onto [low, high], last of all.

    Returns:
      A kernel over ``MomentumState`` and ``LangevinInfo``, with one gradient per step; the info is that of
      the place where the gradient was taken. ``init`` starts at rest. The position is any pytree of
      floating-point arrays and keeps its dtypes. In ``run_annealed_chain`` use ``keep_state=True``: a state
      initialised at every step has no velocity.

    Raises:
      ValueError: if the step is not positive, the momentum not in [0, 1), the form unknown, the noise
        negative, the clip not positive or the clamp not low < high (numbers only: traced values pass), or if
        the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = momentum_descent(lambda x: 0.5 * jnp.sum(x**2), step_size=0.1, momentum=0.5)
      >>> state = kernel.init(jnp.array([1.0]))
      >>> for _ in range(2):
      ...     state, info = kernel.step(jax.random.key(0), state)
      >>> [round(float(value), 3) for value in (*state.position, *state.velocity)]
      [0.76, -0.14]

    Reference:
      Polyak 1964, Some methods of speeding up the convergence of iteration methods; Nesterov 1983, in the
      form of Sutskever et al. 2013, On the importance of initialization and momentum in deep learning,
      equations 3 and 4; Chen, Fox & Guestrin 2014 (arXiv:1402.4102), with noise; Wang & Du 2025
      (arXiv:2510.02300), its sampling by optimisation, ``look_ahead``.
    """
    check_numbers(step_size)
    checks.non_negative_number("noise_scale", noise_scale)
    _check_momentum(momentum)
    checks.one_of("form", form, get_args(MomentumForm))
    if gradient_clip is not None:
        checks.positive_number("gradient_clip", gradient_clip)
    if state_clamp is not None:
        check_clamp(state_clamp)
    energy_and_gradient = jax.value_and_grad(scalar_target(target))
    kept = 0.0 if form == "look_ahead" else momentum

    def init(position: Position, rng_key: Array | None = None) -> MomentumState:
        del rng_key
        checks.floating("position", position)
        position = jax.tree.map(jnp.asarray, position)
        return MomentumState(position, jax.tree.map(lambda x: jnp.zeros_like(widened(x)), position))

    def step(rng_key: Array, state: MomentumState) -> tuple[MomentumState, LangevinInfo]:
        ahead = state.position
        if form != "heavy_ball":
            ahead = jax.tree.map(
                lambda x, v: (widened(x) + momentum * v).astype(x.dtype), state.position, state.velocity
            )
        energy, gradient = energy_and_gradient(ahead)
        info = LangevinInfo(energy, euclidean_norm(gradient))

        def push(v: Array, slope: Array, normal: Array | float) -> Array:
            slope = widened(slope)
            if gradient_clip is not None:
                slope = jnp.clip(slope, -gradient_clip, gradient_clip)
            return (kept * v - step_size * slope + noise_scale * normal).astype(v.dtype)

        def move(x: Array, v: Array) -> Array:
            moved = widened(x) + v
            if state_clamp is not None:
                moved = jnp.clip(moved, *state_clamp)
            return moved.astype(x.dtype)

        normals = jax.tree.map(jnp.zeros_like, state.velocity)
        if not _is_zero(noise_scale):
            normals = normal_like(rng_key, state.position)
        velocity = jax.tree.map(push, state.velocity, gradient, normals)
        return MomentumState(jax.tree.map(move, state.position, velocity), velocity), info

    return Kernel(init, step)


def _check_momentum(momentum: Any) -> None:
    checks.in_range("momentum", momentum, 0.0, 1.0)
    checks.one_number("momentum", momentum)
    if not checks.is_traced(momentum) and float(momentum) == 1.0:
        raise ValueError(f"momentum={momentum!r}: momentum must be below 1, at which no step is ever damped.")


def _is_zero(noise_scale: Any) -> bool:
    """Whether there is certainly no noise, so that none is drawn."""
    return not checks.is_traced(noise_scale) and float(noise_scale) == 0.0
