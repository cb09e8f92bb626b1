"""The Hessian of an energy: its trace, and its products with random vectors.

Products are forward derivatives of the gradient. For the loss that is differentiated in the parameters this
took 0.6 to 1 of the time of the other orders (networks of 2 to 64 inputs, two cores).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxebm.energies.levels import depends_on_last
from jaxebm.trees import euclidean_norm, leaf_keys, normal_like, widened
from jaxebm.types import Array, Position

__all__ = [
    "Slope",
    "check_curved",
    "inner_product",
    "on_the_sphere",
    "signs",
    "square_norm",
    "with_curvatures",
    "with_laplacian",
]

Slope: TypeAlias = Callable[[Position], Position]
"""x -> dE/dx of one example."""

_BLOCK = 8
"""Coordinates of the exact trace that are computed at once. The gradient of the loss keeps what one block
needs, and computes each block twice: for 64 coordinates that took 0.8 of the time of all at once and a
seventh of the memory (MLP of 3 x 256, batch 64, two cores)."""


def check_curved(slope: Slope, x: Position) -> None:
    """Raises ``ValueError`` if the Hessian is zero by the program of the energy."""
    flat, unravel = ravel_pytree(x)

    def product(direction: Array) -> Position:
        return jax.jvp(slope, (x,), (unravel(direction),))[1]

    if not depends_on_last(product, flat):
        raise ValueError(
            "energy has second derivatives of zero in x by its program, and score matching learns from them. "
            "Give a network a smooth activation (swish, softplus or gelu instead of relu), or use "
            "denoising_score_matching, which needs no second derivatives in x."
        )


def with_laplacian(slope: Slope, x: Position) -> tuple[Position, Array]:
    """dE/dx and the exact trace of the Hessian at x."""
    flat, unravel = ravel_pytree(x)
    size = flat.size

    def flat_slope(flat: Array) -> Array:
        return ravel_pytree(slope(unravel(flat)))[0]

    def second_derivative(index: Array) -> tuple[Array, Array]:
        gradient, column = jax.jvp(flat_slope, (flat,), (jax.nn.one_hot(index, size, dtype=flat.dtype),))
        return gradient, widened(column[index])

    if size <= _BLOCK:
        gradient, diagonal = jax.vmap(second_derivative, out_axes=(None, 0))(jnp.arange(size))
        return unravel(gradient), jnp.sum(diagonal)

    @partial(jax.checkpoint, prevent_cse=False)
    def add_block(total: Array, indices: Array) -> tuple[Array, None]:
        return total + jnp.sum(jax.vmap(second_derivative)(indices)[1]), None

    # Indices beyond the last coordinate are vectors of zeros, whose product is zero.
    indices = jnp.arange(-(-size // _BLOCK) * _BLOCK).reshape(-1, _BLOCK)
    return slope(x), jax.lax.scan(add_block, jnp.zeros((), widened(flat).dtype), indices)[0]


def with_curvatures(slope: Slope, x: Position, directions: Position) -> tuple[Position, Array]:
    """dE/dx, and v' (d^2 E/dx^2) v of each direction v, shape (m,)."""

    def along(direction: Position) -> tuple[Position, Array]:
        gradient, product = jax.jvp(slope, (x,), (direction,))
        return gradient, inner_product(direction, product)

    if jax.tree.leaves(directions)[0].shape[0] == 1:
        # Without a second axis of length 1, which costs a third on small networks.
        gradient, curvature = along(jax.tree.map(lambda leaf: leaf[0], directions))
        return gradient, curvature[None]
    return jax.vmap(along, out_axes=(None, 0))(directions)


def signs(rng_key: Array, x: Position, count: int) -> Position:
    """Vectors of independent signs, leaves ``(count, ...)`` of the dtypes of x."""

    def draw(leaf: Array, leaf_key: Array) -> Array:
        return jax.random.rademacher(leaf_key, (count, *leaf.shape), leaf.dtype)

    return jax.tree.map(draw, x, leaf_keys(rng_key, x))


def on_the_sphere(rng_key: Array, x: Position, count: int) -> Position:
    """Independent vectors of norm 1 over all leaves, leaves ``(count, ...)``, float32 or wider."""

    def draw(direction_key: Array) -> Position:
        normal = normal_like(direction_key, x)
        return optax.tree.scale(1 / euclidean_norm(normal), normal)

    return jax.vmap(draw)(jax.random.split(rng_key, count))


def square_norm(tree: Position) -> Array:
    """The squared Euclidean norm over all leaves, in float32 or wider."""
    return inner_product(tree, tree)


def inner_product(a: Position, b: Position) -> Any:
    """The inner product over all leaves, in float32 or wider.

    By sums, which no accelerator computes in less precision.
    """
    products = jax.tree.map(lambda one, other: jnp.sum(widened(one) * widened(other)), a, b)
    return sum(jax.tree.leaves(products))
