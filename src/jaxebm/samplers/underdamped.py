"""Underdamped Langevin dynamics: positions with momenta, under friction and noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.langevin import check_numbers, scalar_target
from jaxebm.trees import dimension, euclidean_norm, normal_like, widened
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["UnderdampedInfo", "UnderdampedState", "underdamped"]


class UnderdampedState(NamedTuple):
    """Where the chain is, how it moves, and what is known of the energy there.

    Attributes:
      position: the state x of the chain, any pytree of floating-point arrays.
      momentum: p, in the shapes of the position, float32 or wider.
      energy: E(x), shape ``()``.
      gradient: dE/dx, in the shapes of the position: stale as soon as the target changes.
    """

    position: Position
    momentum: Position
    energy: Array
    gradient: Position


class UnderdampedInfo(NamedTuple):
    """What one step saw, at the state that it *started* from.

    Attributes:
      energy: E(x), shape ``()``.
      gradient_norm: Euclidean norm of dE/dx over all leaves, shape ``()``.
      kinetic_temperature: the mean of p^2 / m over all coordinates, shape ``()``. Its average over a chain
        lies below ``temperature`` by a relative h^2 k / (4 m), k the mean curvature of the energy: what is
        missing tells how coarse the step is.
    """

    energy: Array
    gradient_norm: Array
    kinetic_temperature: Array


def underdamped(
    target: Target,
    step_size: Array | float,
    friction: Array | float,
    *,
    temperature: Array | float = 1.0,
    mass: Any = 1.0,
) -> Kernel:
    r"""Langevin dynamics with inertia, by the BAOAB splitting, with one gradient per step.

    .. math:: dx = \frac{p}{m} dt, \qquad
              dp = -\frac{\partial E}{\partial x} dt - \gamma p\, dt + \sqrt{2 \gamma m T}\, dW

    .. math::
       \text{B:}\; p \leftarrow p - \tfrac h2 \tfrac{\partial E}{\partial x}, \quad
       \text{A:}\; x \leftarrow x + \tfrac h2 \tfrac pm, \quad
       \text{O:}\; p \leftarrow c p + \sqrt{(1 - c^2) m T}\, n,\; c = e^{-\gamma h}, \quad
       \text{A}, \quad \text{B}

    Momentum carries the chain along valleys where ``sgld`` diffuses, and no step is ever refused.

    **Its law.** On E = k x^2 / 2, for every friction and every step h < 2 sqrt(m / k): x and p are
    independent Gaussians with var x = T / k exactly and var p = m T (1 - h^2 k / (4 m)). On other energies
    the law of x has an error of order h^2, of order h^4 as the friction grows. There p is drawn anew at each
    step and the chain is ``sgld``'s with step h^2 / (2 m), but with the mean of the last step's and this
    step's noise in place of one noise.

    Args:
      target: position -> energy ``()``.
      step_size: h > 0, ``()``, a time. Compare an ``sgld`` step of h^2 / (2 m).
      friction: gamma > 0, ``()``, per time. The slowest direction, of curvature k, relaxes fastest at
        2 sqrt(k / m).
      temperature: T >= 0, ``()``: the law is exp(-E / T). At 0 it is gradient descent with momentum.
      mass: m > 0: ``()``, or a pytree like the position whose leaves have its shapes or ``()``.

    Returns:
      A kernel over ``UnderdampedState`` and ``UnderdampedInfo``. ``init(position, rng_key)`` takes one
      gradient and draws p from N(0, m T); without a key, p is 0 and warms up within a time 1 / gamma. The
      position is any pytree of floating-point arrays and keeps its dtypes. In ``run_annealed_chain``,
      ``keep_state=True`` keeps the momenta: right while the target stays the same.

    Raises:
      ValueError: if the step, the friction or the mass is not positive or the temperature negative (numbers
        only: traced values pass), if the mass has other shapes than the position, or if the energy is not a
        scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = underdamped(lambda x: 0.5 * jnp.sum(x**2), step_size=0.5, friction=1.0)
      >>> state = kernel.init(jnp.ones(3), jax.random.key(0))
      >>> state, info = kernel.step(jax.random.key(1), state)
      >>> state.position.shape, float(info.energy)
      ((3,), 1.5)

    Reference:
      Leimkuhler & Matthews 2013, Rational construction of stochastic numerical methods for molecular
      sampling (arXiv:1203.5428), BAOAB and section 3; the same, 2013, Robust and efficient configurational
      molecular sampling via Langevin dynamics (arXiv:1304.3269).
    """
    check_numbers(step_size)
    checks.positive_number("friction", friction)
    checks.non_negative_number("temperature", temperature)
    for leaf in jax.tree.leaves(mass):
        checks.positive("mass", leaf)
    energy_and_gradient = jax.value_and_grad(scalar_target(target))
    half = 0.5 * step_size
    kept = jnp.exp(-friction * jnp.asarray(step_size))

    def kick(momentum: Position, gradient: Position) -> Position:  # B
        return jax.tree.map(lambda p, slope: p - half * widened(slope), momentum, gradient)

    def drift(position: Position, momentum: Position, masses: Position) -> Position:  # A
        return jax.tree.map(lambda x, p, m: x + half * p / m, position, momentum, masses)

    def damp(momentum: Position, normals: Position, masses: Position) -> Position:  # O
        return jax.tree.map(
            lambda p, n, m: kept * p + jnp.sqrt((1 - kept**2) * m * temperature) * n,
            momentum,
            normals,
            masses,
        )

    def init(position: Position, rng_key: Array | None = None) -> UnderdampedState:
        checks.floating("position", position)
        position = jax.tree.map(jnp.asarray, position)
        masses = _masses(mass, position)
        if rng_key is None:
            momentum = jax.tree.map(lambda x: jnp.zeros_like(widened(x)), position)
        else:
            momentum = jax.tree.map(
                lambda n, m: (jnp.sqrt(jnp.asarray(m * temperature)) * n).astype(n.dtype),
                normal_like(rng_key, position),
                masses,
            )
        return UnderdampedState(position, momentum, *energy_and_gradient(position))

    def step(rng_key: Array, state: UnderdampedState) -> tuple[UnderdampedState, UnderdampedInfo]:
        masses = _masses(mass, state.position)
        momentum = kick(state.momentum, state.gradient)
        position = drift(jax.tree.map(widened, state.position), momentum, masses)
        momentum = damp(momentum, normal_like(rng_key, state.position), masses)
        position = drift(position, momentum, masses)
        position = jax.tree.map(lambda x, like: x.astype(like.dtype), position, state.position)
        energy, gradient = energy_and_gradient(position)
        momentum = jax.tree.map(
            lambda p, like: p.astype(like.dtype), kick(momentum, gradient), state.momentum
        )
        info = UnderdampedInfo(
            state.energy, euclidean_norm(state.gradient), _kinetic_temperature(state.momentum, masses)
        )
        return UnderdampedState(position, momentum, energy, gradient), info

    return Kernel(init, step)


def _masses(mass: Any, position: Position) -> Any:
    if jax.tree.structure(mass) == jax.tree.structure(0.0) and jnp.ndim(mass) == 0:
        return jax.tree.map(lambda x: mass, position)
    shapes = jax.tree.map(jnp.shape, position)
    if jax.tree.structure(mass) != jax.tree.structure(position) or any(
        jnp.shape(m) not in ((), jnp.shape(x))
        for m, x in zip(jax.tree.leaves(mass), jax.tree.leaves(position), strict=True)
    ):
        raise ValueError(
            f"mass has leaves of shapes {jax.tree.map(jnp.shape, mass)} and the position {shapes}: mass must "
            f"be one number, or a pytree like the position whose leaves have its shapes or ()."
        )
    return mass


def _kinetic_temperature(momentum: Position, masses: Position) -> Array:
    scaled = jax.tree.map(lambda p, m: p / jnp.sqrt(jnp.asarray(m)), momentum, masses)
    return euclidean_norm(scaled) ** 2 / dimension(momentum)
