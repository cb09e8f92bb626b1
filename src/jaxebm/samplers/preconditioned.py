"""Preconditioned Langevin dynamics: each coordinate's step from a running average of its gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.langevin import LangevinInfo, check_numbers, scalar_target
from jaxebm.trees import euclidean_norm, normal_like, square_root, widened
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["PreconditionedState", "preconditioned_sgld"]


class PreconditionedState(NamedTuple):
    """The position of the chain, and the running average of its squared gradients.

    Attributes:
      position: the state x of the chain, any pytree of floating-point arrays.
      square_average: V, the running average of (dE/dx)^2, in the shapes of the position, float32 or wider.
    """

    position: Position
    square_average: Position


def preconditioned_sgld(
    target: Target,
    step_size: Array | float,
    *,
    decay: Array | float = 0.99,
    damping: Array | float = 1e-5,
    noise_scale: Array | float | None = None,
) -> Kernel:
    r"""Langevin dynamics whose steps are divided by the root mean square of each coordinate's gradient.

    .. math:: g = \partial E / \partial x, \qquad V \leftarrow \alpha V + (1 - \alpha)\, g^2, \qquad
              G = 1 / (\lambda + \sqrt V)

    .. math:: x \leftarrow x - \epsilon\, G g + \sigma \sqrt G\, n, \qquad n \sim N(0, I)

    pSGLD with RMSprop's preconditioner, in ``sgld``'s two numbers: the paper writes epsilon / 2 for the
    step. V begins at the square of the first gradient rather than at 0, where G would be 1 / lambda. Where
    curvatures span a factor c, relaxation times span sqrt(c) instead of c.

    **Its bias.** Langevin dynamics with a G that depends on x needs an additional drift Gamma = dG/dx; it is
    left out here, as usual in practice, because it needs second derivatives. The bias is known at both ends,
    for temperature 1:

    - alpha -> 1: V hardly changes while the chain explores the target, so G is constant and the chain is
      ``sgld`` with step epsilon G: on E = k x^2 / 2 the variance is (1 / k) / (1 - epsilon G k / 2).
    - alpha = 0: as epsilon -> 0 the density is not exp(-E) but exp(-E) (lambda + abs(dE/dx)) for each
      coordinate of an energy that is their sum: too little weight where the energy is flat.

    In between, what counts is whether V averages over many more steps, 1 / (1 - alpha), than the chain's own
    relaxation time, 1 / (epsilon G k) steps. So a smaller step at the same alpha brings *more* of this bias:
    on E = x^2 / 2 with alpha = 0.99 and lambda = 0.5 the variance is 1.08 at step 0.1 and 1.19 at step 0.02.
    Let 1 - alpha shrink in proportion to the step. The bias does not vanish in long chains; ``hmc`` with a
    fixed mass has none.

    Args:
      target: position -> energy ``()``.
      step_size: epsilon > 0, ``()``, in units of position: G divides by a gradient.
      decay: alpha in [0, 1], ``()``. At 1 the square of the first gradient is never updated.
      damping: lambda > 0, ``()``, in units of gradient. G never exceeds 1 / lambda: what a coordinate on
        which the energy does not depend gets, so it bounds how far such a one is thrown.
      noise_scale: sigma >= 0, ``()``, in units of sqrt(position); ``None`` means sqrt(2 epsilon),
        temperature 1; at sigma the temperature is ``langevin_temperature(step_size, noise_scale)``.

    Returns:
      A kernel over ``PreconditionedState`` and ``LangevinInfo``; its ``init`` takes one gradient. The
      position is any pytree of floating-point arrays and keeps its dtypes. In ``run_annealed_chain`` use
      ``keep_state=True``: a state initialised at every step forgets V, which is alpha = 0.

    Raises:
      ValueError: if the step or the damping is not positive, the decay not in [0, 1] or the noise negative
        (numbers only: traced values pass), or if the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> stiffness = jnp.array([1.0, 1e4])
      >>> kernel = preconditioned_sgld(lambda x: 0.5 * jnp.sum(stiffness * x**2), step_size=0.01)
      >>> state = kernel.init(jnp.array([1.0, 1.0]))
      >>> state, info = kernel.step(jax.random.key(0), state)
      >>> state.square_average.tolist()
      [1.0, 100000000.0]

    Reference:
      Li, Chen, Carlson & Carin 2016, Preconditioned stochastic gradient Langevin dynamics for deep neural
      networks (arXiv:1512.07666), algorithm 1.
    """
    check_numbers(step_size, noise_scale)
    checks.in_range("decay", decay, 0.0, 1.0)
    checks.one_number("decay", decay)
    checks.positive_number("damping", damping)
    energy_and_gradient = jax.value_and_grad(scalar_target(target))
    noise = jnp.sqrt(2.0 * step_size) if noise_scale is None else noise_scale

    def init(position: Position, rng_key: Array | None = None) -> PreconditionedState:
        del rng_key
        checks.floating("position", position)
        position = jax.tree.map(jnp.asarray, position)
        _, gradient = energy_and_gradient(position)
        return PreconditionedState(position, jax.tree.map(lambda slope: jnp.square(widened(slope)), gradient))

    def step(rng_key: Array, state: PreconditionedState) -> tuple[PreconditionedState, LangevinInfo]:
        energy, gradient = energy_and_gradient(state.position)

        def update(average: Array, slope: Array) -> Array:
            return (decay * average + (1 - decay) * jnp.square(widened(slope))).astype(average.dtype)

        square_average = jax.tree.map(update, state.square_average, gradient)

        def move(x: Array, slope: Array, average: Array, normal: Array) -> Array:
            preconditioner = 1 / (damping + square_root(average))
            drift = step_size * preconditioner * widened(slope)
            return (widened(x) - drift + noise * jnp.sqrt(preconditioner) * normal).astype(x.dtype)

        normals = normal_like(rng_key, state.position)
        position = jax.tree.map(move, state.position, gradient, square_average, normals)
        return PreconditionedState(position, square_average), LangevinInfo(energy, euclidean_norm(gradient))

    return Kernel(init, step)
