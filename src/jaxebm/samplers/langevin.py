"""Langevin dynamics: gradient steps on the energy plus Gaussian noise, without a Metropolis correction."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.trees import euclidean_norm, normal_like, widened
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["LangevinInfo", "LangevinState", "langevin_temperature", "scalar_target", "sgld"]


class LangevinState(NamedTuple):
    """Where the chain is.

    Attributes:
      position: the state x of the chain, any pytree of floating-point arrays.
    """

    position: Position


class LangevinInfo(NamedTuple):
    """What one step saw, at the state that it *started* from.

    Attributes:
      energy: E(x), shape ``()``.
      gradient_norm: Euclidean norm of dE/dx over all leaves, before any clipping, shape ``()``.
    """

    energy: Array
    gradient_norm: Array


def scalar_target(target: Target, name: str = "target") -> Target:
    """Wraps a target so that an output that is not one real scalar is refused when the target is traced.

    Args:
      target: position -> energy.
      name: of the caller's argument, for the message about a target that is no function of one position.

    Returns:
      The same function, which names the target where it raises: ``ValueError`` where its output is not of
      shape ``()``, ``TypeError`` where it is no real number.

    Raises:
      TypeError: if the target is not callable with one position.

    Example:
      >>> scalar_target(jnp.sum)(jnp.ones(3)).shape
      ()
    """

    checks.text("name", name)
    checks.function(name, target, "position")

    def checked(position: Position) -> Array:
        try:
            energy = target(position)
            checks.scalar_energy(checks.function_name(target), energy)
        except Exception as error:  # an energy's own error, of shapes above all, with what it was called on
            error.add_note(
                f"{name}={checks.function_name(target)} was called at {_shapes(target, position)}."
            )
            raise
        return energy

    return checked


def _shapes(target: Any, position: Position) -> str:
    shapes = f"a position of shape {jax.tree.map(jnp.shape, position)}"
    if isinstance(target, functools.partial) and target.args:  # partial(energy, params)
        shapes += f" with params of shape {jax.tree.map(np.shape, target.args[0])}"
    return shapes


def langevin_temperature(
    step_size: Array | float, noise_scale: Array | float, curvature: Array | float = 0.0
) -> Array:
    r"""Temperature at which a pair of step and noise samples.

    .. math:: T = \frac{\sigma^2}{2 \epsilon} \Big/ \left(1 - \frac{\epsilon k}{2}\right)

    On E(x) = k x^2 / 2 the stationary distribution is exactly exp(-E(x) / T), for any step size. On another
    energy it is so, up to an error of order epsilon, with T at k = 0, the default.

    Args:
      step_size: epsilon > 0, the factor of the gradient, ``()`` or any shape.
      noise_scale: sigma >= 0, the standard deviation of the noise of one step, ``()`` or any shape.
      curvature: k >= 0, the second derivative of the energy along one direction, in units of energy per
        position^2, any shape; below 2 / epsilon, where the chain stops being stable.

    Returns:
      The temperature, of the shape to which the three broadcast: 1 is the model itself; below 1 the samples
      are sharper than the model.

    Raises:
      ValueError: if the step is not positive, the noise or the curvature negative, or curvature * step_size
        not below 2 (numbers only: traced values pass).

    Example:
      JEM's pair samples far below the temperature of the model that it trains:

      >>> print(langevin_temperature(1.0, 0.01))
      5e-05

      A step of a tenth of the largest that is stable warms a direction by a ninth:

      >>> round(float(langevin_temperature(0.1, 0.2**0.5, curvature=2.0)), 4)
      1.1111
    """
    checks.positive("step_size", step_size)
    checks.non_negative("noise_scale", noise_scale)
    checks.non_negative("curvature", curvature)
    if not (checks.is_traced(step_size) or checks.is_traced(curvature)):
        largest = float(np.max(np.multiply(step_size, curvature)))
        if largest >= 2:
            raise ValueError(
                f"curvature={curvature!r} at step_size={step_size!r}: curvature * step_size is {largest:g} "
                f"and must be below 2, beyond which the chain diverges."
            )
    return jnp.square(jnp.asarray(noise_scale)) / (2 * step_size) / (1 - step_size * curvature / 2)


def sgld(
    target: Target,
    step_size: Array | float,
    noise_scale: Array | float | None = None,
    *,
    gradient_clip: Array | float | None = None,
    state_clamp: tuple[Array | float, Array | float] | None = None,
) -> Kernel:
    r"""Stochastic gradient Langevin dynamics, or unadjusted Langevin, its two numbers kept apart.

    .. math:: x \leftarrow x - \epsilon\, \partial E / \partial x + \sigma n, \qquad n \sim N(0, I)

    Papers write alpha/2 or epsilon/2 for the step, and often decouple the noise. In these two numbers:

    ==============================================  =========  ===========  ===========  ===================
    source                                          step_size  noise_scale  temperature  clip; clamp
    ==============================================  =========  ===========  ===========  ===================
    unadjusted Langevin algorithm, step h           h          None         1
    Welling & Teh 2011: eps/2 and N(0, eps)         eps / 2    None         1
    IGEBM as printed: lambda/2 and N(0, lambda)     lambda/2   None         1
    IGEBM as released, CIFAR-10 in [0, 1]           10.0       0.005        1.25e-6      0.01; (0.0, 1.0)
    JEM as printed: alpha/2 and N(0, alpha)         alpha / 2  None         1
    JEM as released ("alpha = 1, sigma = .01")      1.0        0.01         5e-5
    JEM++ as released, inner rate ("proximal")      0.2        0.0          0            1.0; (-1.0, 1.0)
    SADA-JEM                                        1.0        0.0          0            1.0; (-1.0, 1.0)
    ==============================================  =========  ===========  ===========  ===================

    The temperature is ``langevin_temperature(step_size, noise_scale)``, exact as the step goes to 0 and only
    nominal where clipping or clamping binds. At 0 the chain is projected gradient descent: all randomness
    comes from where it starts. The released IGEBM adds its noise before the gradient step instead of after
    it, and JEM++ repeats its update through the network's first layer alone; neither belongs to this kernel.

    ``conventions.from_convention`` does this arithmetic. On E(x) = k x^2 / 2 at temperature 1 the stationary
    variance is exactly (1 / k) / (1 - epsilon k / 2), so the bias of a step is known; ``mala`` removes it.

    Args:
      target: position -> energy ``()``.
      step_size: epsilon > 0, ``()``, in units of position^2 per unit of energy.
      noise_scale: sigma >= 0, ``()``, in units of position; ``None`` means sqrt(2 epsilon), temperature 1.
      gradient_clip: g > 0: each entry of the gradient is clipped to [-g, g] before the step.
      state_clamp: ``(low, high)``: each entry of the new position is projected onto [low, high], last of all.

    Returns:
      A kernel over ``LangevinState`` and ``LangevinInfo``. The position is any pytree of floating-point
      arrays and keeps its dtypes; narrow ones (bfloat16) are updated in float32 and rounded once.

    Raises:
      ValueError: if the step is not positive, the noise negative, the clip not positive or the clamp not low
        < high (numbers only: traced values pass), or if the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = sgld(lambda x: 0.5 * jnp.sum(x**2), step_size=0.1)
      >>> state = kernel.init(jnp.zeros(3))
      >>> state, info = kernel.step(jax.random.key(0), state)
      >>> state.position.shape, float(info.energy)
      ((3,), 0.0)

    Reference:
      Welling & Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics, eq. 4; Grathwohl et al.
      2019 (JEM, arXiv:1912.03263), eq. 3; Du & Mordatch 2019 (IGEBM, arXiv:1903.08689), eq. 1; Yang & Ji 2021
      (JEM++, arXiv:2109.09032); Yang et al. 2022 (SADA-JEM, arXiv:2209.07959).
    """
    check_numbers(step_size, noise_scale)
    if gradient_clip is not None:
        checks.positive_number("gradient_clip", gradient_clip)
    if state_clamp is not None:
        check_clamp(state_clamp)
    energy_and_gradient = jax.value_and_grad(scalar_target(target))
    noise = jnp.sqrt(2.0 * step_size) if noise_scale is None else noise_scale

    def init(position: Position, rng_key: Array | None = None) -> LangevinState:
        del rng_key
        checks.floating("position", position)
        return LangevinState(jax.tree.map(jnp.asarray, position))

    def step(rng_key: Array, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        energy, gradient = energy_and_gradient(state.position)
        info = LangevinInfo(energy, euclidean_norm(gradient))

        def move(x: Array, slope: Array, normal: Array) -> Array:
            slope = widened(slope)
            if gradient_clip is not None:
                slope = jnp.clip(slope, -gradient_clip, gradient_clip)
            moved = widened(x) - step_size * slope + noise * normal
            if state_clamp is not None:
                moved = jnp.clip(moved, *state_clamp)
            return moved.astype(x.dtype)

        position = jax.tree.map(move, state.position, gradient, normal_like(rng_key, state.position))
        return LangevinState(position), info

    return Kernel(init, step)


def check_numbers(step_size: Any, noise_scale: Any = None) -> None:
    """Raises unless the step is one number above 0 and the noise None or one of at least 0; traced pass."""
    reason = "Steps that change along a chain are given to run_annealed_chain."
    checks.positive_number("step_size", step_size, reason)
    if noise_scale is not None:
        checks.non_negative_number("noise_scale", noise_scale, reason)


def check_clamp(state_clamp: Any) -> None:
    """Raises unless it is a pair of numbers with low < high; traced ends pass."""
    checks.interval(
        "state_clamp",
        state_clamp,
        "A wall for each entry is the proximal map of proximal_sgld: box(low, high).",
    )
