"""Several cheap updates through a network's first layer for each gradient through all of it, as in JEM++."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.cpu.noise import fold_in
from jaxebm.samplers.langevin import LangevinInfo, LangevinState, check_clamp, check_numbers, scalar_target
from jaxebm.trees import euclidean_norm, normal_like, widened
from jaxebm.types import Array, Kernel, Position

__all__ = ["TargetInTwo", "first_layer_sgld"]


class TargetInTwo(Protocol):
    """A target in two parts, E(x) = rest(x, first(x)), as ``energies.split_energy(...).bind`` makes them."""

    def __call__(self, x: Position, /) -> Array:
        """Returns E(x), shape ``()``."""
        ...

    def first(self, x: Position, /) -> Any:
        """Returns h, the output of the first layer for x; any pytree."""
        ...

    def rest(self, x: Position, h: Any, /) -> Array:
        """Returns E(x), given h, shape ``()``."""
        ...


def first_layer_sgld(
    target: TargetInTwo,
    step_size: Array | float,
    noise_scale: Array | float = 0.0,
    *,
    num_inner_steps: int = 5,
    full_step_size: Array | float = 0.0,
    gradient_clip: Array | float | None = None,
    state_clamp: tuple[Array | float, Array | float] | None = None,
) -> Kernel:
    r"""One gradient through the whole network, then N updates through its first layer: JEM++'s "PYLD".

    .. math:: p = \partial E / \partial h \quad\text{at}\quad h = f_0(x)

    .. math:: x \leftarrow \mathrm{clamp}\big(x - \epsilon\, \mathrm{clip}(
                \partial (p \cdot f_0(x)) / \partial x) + \sigma n\big), \quad n \sim N(0, I),
              \qquad N \text{ times with } p \text{ kept}

    f_0 is ``target.first``, the first layer, and one step of this kernel is all of that.

    **Where the first layer is affine**, a convolution or dense layer alone, as in JEM++'s own code, its
    gradient W^T p is the same at every x. Without noise each coordinate then takes N equal steps until it
    meets a bound of the clamp, where it stays: from within the clamp, N inner updates *are one* step of
    ``sgld`` with step_size N epsilon and the same clip and clamp, at a higher price. They differ where the
    first part is not affine (split after its activation, or after a block), and then only by the curvature of
    that part: the rest is linearised at the x of the full gradient.

    Args:
      target: a target with the methods ``first`` and ``rest``: ``split_energy(module, name).bind(params)`` of
        `jaxebm.energies`, or your own. Paths from x to the energy besides ``first`` are not in the gradient.
      step_size: epsilon > 0, ``()``, of one inner update.
      noise_scale: sigma >= 0, ``()``, of one inner update, in units of position. As the number 0, the
        default, none is drawn.
      num_inner_steps: N, an integer of at least 1; compiled in.
      full_step_size: at least 0, ``()``: x first moves by this times the full gradient, neither clipped nor
        clamped. JEM++'s released code (``sgld_lr``) takes 1.0 here before its inner updates.
      gradient_clip: g > 0: each entry of an inner gradient is clipped to [-g, g].
      state_clamp: ``(low, high)``: each entry is projected onto [low, high] after every inner update.

    Returns:
      A kernel over ``LangevinState`` and ``LangevinInfo``; the info's energy and gradient norm are those of
      the start of the step, the gradient as far as it comes through ``first``. The position is any pytree of
      floating-point arrays and keeps its dtypes.

    Raises:
      TypeError: if the target has no ``first`` and ``rest``, or the position is not floating-point.
      ValueError: if the step is not positive, the noise or the full step negative, the number of steps no
        positive integer, the clip not positive or the clamp not low < high (numbers only: traced values
        pass), or if the energy is not a scalar.

    Example:
      >>> class Quartic:  # E(x) = sum of (x^2)^2, split after the square
      ...     first = staticmethod(jnp.square)
      ...     rest = staticmethod(lambda x, h: jnp.sum(h**2))
      ...     __call__ = staticmethod(lambda x: jnp.sum(x**4))
      >>> kernel = first_layer_sgld(Quartic(), step_size=0.125, num_inner_steps=2)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(1)))
      >>> state.position.tolist()  # p = 2: 1 -> 1 - 4/8 -> 0.5 - 2/8
      [0.25]

    Reference:
      Yang & Ji 2021, JEM++: improved techniques for training JEM (arXiv:2109.09032), algorithm 1;
      after Zhang et al. 2019, You only propagate once (arXiv:1905.00877).
    """
    target = _in_two(target)
    check_numbers(step_size)
    checks.non_negative_number("noise_scale", noise_scale)
    checks.positive_integer("num_inner_steps", num_inner_steps)
    checks.non_negative_number("full_step_size", full_step_size)
    if gradient_clip is not None:
        checks.positive_number("gradient_clip", gradient_clip)
    if state_clamp is not None:
        check_clamp(state_clamp)
    without_noise, without_full_step = (
        not checks.is_traced(number) and not np.any(number) for number in (noise_scale, full_step_size)
    )

    def init(position: Position, rng_key: Array | None = None) -> LangevinState:
        del rng_key
        checks.floating("position", position)
        return LangevinState(jax.tree.map(jnp.asarray, position))

    def step(rng_key: Array, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        start = state.position
        h, pullback = jax.vjp(target.first, start)
        energy, p = jax.value_and_grad(scalar_target(functools.partial(target.rest, start)))(h)
        (full_gradient,) = pullback(p)

        # Between inner updates the position stays wide: rounded to bfloat16, small steps would be lost.
        def narrowed(position: Position) -> Position:
            return jax.tree.map(lambda x, like: x.astype(like.dtype), position, start)

        def move(index: Array | int, position: Position, gradient: Position) -> Position:
            def move_leaf(x: Array, slope: Array, normal: Array | float) -> Array:
                slope = widened(slope)
                if gradient_clip is not None:
                    slope = jnp.clip(slope, -gradient_clip, gradient_clip)
                moved = x - step_size * slope + noise_scale * normal
                if state_clamp is not None:
                    moved = jnp.clip(moved, *state_clamp)
                return moved.astype(x.dtype)

            if without_noise:
                normals = jax.tree.map(lambda x: 0.0, position)
            else:
                normals = normal_like(fold_in(rng_key, index), position)
            return jax.tree.map(move_leaf, position, gradient, normals)

        def update(index: Array | int, position: Position) -> Position:
            (gradient,) = jax.vjp(target.first, narrowed(position))[1](p)
            return move(index, position, gradient)

        position = jax.tree.map(widened, start)
        if without_full_step:  # then the first inner gradient is the full one, which is there already
            position = move(0, position, full_gradient)
        else:
            position = jax.tree.map(
                lambda x, slope: (x - full_step_size * slope).astype(x.dtype), position, full_gradient
            )
            position = update(0, position)
        position = jax.lax.fori_loop(1, num_inner_steps, update, position)
        return LangevinState(narrowed(position)), LangevinInfo(energy, euclidean_norm(full_gradient))

    return Kernel(init, step)


def _in_two(target: Any) -> TargetInTwo:
    """Returns a target with ``first`` and ``rest``, or raises ``TypeError`` saying where to find one."""
    parts: Any = target
    maker: Any = getattr(target, "func", None)
    # What `sample` makes of an energy and its parameters; an energy in two parts knows how to bind them.
    if isinstance(target, functools.partial) and hasattr(maker, "bind"):
        parts = maker.bind(*target.args, **target.keywords)
    if not (hasattr(parts, "first") and hasattr(parts, "rest")):
        raise TypeError(
            f"target is a {type(target).__name__} without methods first and rest: first_layer_sgld needs an "
            f"energy in two parts; jaxebm.energies.split_energy(module, name) makes one of a Flax module."
        )
    return parts
