"""Descent that turns into Langevin dynamics: no noise on the way to the data, a temperature once there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.langevin import LangevinInfo, LangevinState, check_clamp, check_numbers, sgld
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["HeatedState", "heated_sgld"]


class HeatedState(NamedTuple):
    """Where the chain is, and how long it has run.

    Attributes:
      position: the state x of the chain, any pytree of floating-point arrays.
      step: steps done, ``()``.
    """

    position: Position
    step: Array


def heated_sgld(
    target: Target,
    step_size: Array | float,
    temperature: Array | float = 0.0,
    *,
    cold_steps: int = 0,
    heating_steps: int = 0,
    stop_after: int | None = None,
    gradient_clip: Array | float | None = None,
    state_clamp: tuple[Array | float, Array | float] | None = None,
) -> Kernel:
    r"""Langevin dynamics whose temperature is 0 at first and then rises linearly, as in energy matching.

    .. math:: x \leftarrow x - \epsilon\, \partial E / \partial x + \sqrt{2 \epsilon T_k}\, n, \qquad
              T_k = T \min(1, \max(0, (k + 1 - c) / h))

    k is the number of steps since ``init``, c the cold steps and h the heating steps (h = 0: T at once after
    the cold ones). A chain from noise follows the gradient to the data without disturbance, and then mixes.
    With ``stop_after`` it ends there: later steps leave it as it is. So the samples of a model that was not
    learnt for long chains do not depend on how much longer a chain is run. A step costs one gradient.
    ``run_annealed_chain`` calls ``init`` at every step, so that k stays 0, unless ``keep_state=True``.

    Args:
      target: position -> energy ``()``.
      step_size: epsilon > 0, ``()``, in units of position^2 per unit of energy.
      temperature: T >= 0, ``()``, in units of energy; 0 is gradient descent.
      cold_steps: c >= 0, steps without noise.
      heating_steps: h >= 0, steps over which the temperature rises.
      stop_after: the number of steps after which the chain stands still; None never stops it.
      gradient_clip: g > 0: each entry of the gradient is clipped to [-g, g] before the step.
      state_clamp: ``(low, high)``: each entry of the new position is projected onto [low, high].

    Returns:
      A kernel over `HeatedState` and ``LangevinInfo``.

    Raises:
      ValueError: if the step is not positive, the temperature negative, a number of steps not an integer of
        at least 0 (``stop_after``: 1), or clip or clamp out of range; from ``step``, if the energy is not a
        scalar.
      TypeError: if the target is no function of a position, or a number of steps no integer.

    Example:
      >>> kernel = heated_sgld(lambda x: 0.5 * jnp.sum(x**2), 0.5, temperature=1.0, cold_steps=2)
      >>> state = kernel.init(jnp.array([8.0]))
      >>> for key in jax.random.split(jax.random.key(0), 2):
      ...     state, info = kernel.step(key, state)
      >>> float(state.position[0]), int(state.step)
      (2.0, 2)

    Reference:
      Balcerak et al. 2025 (arXiv 2504.10612), equation 8: epsilon(t) is 0 up to tau*, then linear.
    """
    check_numbers(step_size)
    checks.function("target", target, "position")
    checks.non_negative_number("temperature", temperature)
    checks.integer("cold_steps", cold_steps, 0)
    checks.integer("heating_steps", heating_steps, 0)
    if stop_after is not None:
        checks.integer("stop_after", stop_after, 1)
    if gradient_clip is not None:
        checks.positive_number("gradient_clip", gradient_clip)
    if state_clamp is not None:
        check_clamp(state_clamp)

    def init(position: Position, rng_key: Array | None = None) -> HeatedState:
        del rng_key
        first = sgld(target, step_size).init(position)
        return HeatedState(first.position, jnp.zeros((), jnp.int32))

    def step(rng_key: Array, state: HeatedState) -> tuple[HeatedState, LangevinInfo]:
        risen = jnp.clip((state.step + 1 - cold_steps) / max(heating_steps, 1), 0.0, 1.0)
        kernel = sgld(
            target,
            step_size,
            jnp.sqrt(2.0 * step_size * temperature * risen),
            gradient_clip=gradient_clip,
            state_clamp=state_clamp,
        )
        moved, info = kernel.step(rng_key, LangevinState(state.position))
        position = moved.position
        if stop_after is not None:
            stands = state.step >= stop_after
            position = jax.tree.map(lambda old, new: jnp.where(stands, old, new), state.position, position)
        return HeatedState(position, state.step + 1), info

    return Kernel(init, step)
