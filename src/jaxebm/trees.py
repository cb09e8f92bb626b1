"""Pytrees of arrays, leaf by leaf: sizes, wider floating-point types, norms, keys and normal noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxebm import checks
from jaxebm.cpu.noise import standard_normal
from jaxebm.types import Array, Position

__all__ = [
    "dimension",
    "euclidean_norm",
    "leaf_keys",
    "noisy",
    "normal_like",
    "square_root",
    "wide_dtype",
    "widened",
]


def dimension(tree: Any) -> int:
    """Returns the number of entries of all leaves.

    Args:
      tree: any pytree of arrays, such as one example.

    Returns:
      Their number, 0 or more.

    Example:
      >>> dimension({"a": jnp.zeros((3, 2)), "b": jnp.zeros(())})
      7
    """
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def wide_dtype(tree: Any) -> jnp.dtype:
    """Returns float32, or the widest floating-point type of the leaves where that is wider.

    Args:
      tree: an array, a number or a pytree of them, whose dtypes are read.

    Returns:
      A dtype.

    Example:
      >>> str(wide_dtype(jnp.zeros(2, jnp.bfloat16)))
      'float32'
    """
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)


def widened(leaf: Any) -> Array:
    """Returns ``leaf`` in float32, or wider if it is: a sum of many small steps needs the digits.

    Args:
      leaf: an array or a number.

    Returns:
      An array of the same shape.

    Example:
      >>> str(widened(jnp.zeros(2, jnp.bfloat16)).dtype)
      'float32'
    """
    return jnp.asarray(leaf).astype(wide_dtype(leaf))


def euclidean_norm(tree: Any) -> Array:
    """Returns the Euclidean norm over all leaves, summed in float32 or wider.

    Args:
      tree: any pytree of arrays.

    Returns:
      The norm, shape ``()``. Where all entries are zero its gradient is zero, one of its subgradients.

    Example:
      >>> float(euclidean_norm({"a": jnp.array([3.0]), "b": jnp.array(4.0)}))
      5.0
    """
    return square_root(optax.tree.norm(jax.tree.map(widened, tree), squared=True))


@jax.custom_jvp
def square_root(square: Array) -> Array:
    r"""Returns the square root, with the derivative 0 at 0, where that of ``jnp.sqrt`` is infinite.

    The root of a square is an absolute value or a norm, whose derivative at 0 would be 0 times infinity, NaN;
    0 is one of its subgradients. A function of its own derivative costs nothing where nothing differentiates.

    Args:
      square: numbers >= 0, any shape.

    Returns:
      Their roots; NaN where a number is NaN or negative.

    Example:
      >>> float(jax.grad(lambda x: square_root(x * x))(0.0))
      0.0
    """
    return jnp.sqrt(square)


@square_root.defjvp
def _square_root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (square,), (tangent,) = primals, tangents
    root = square_root(square)
    is_zero = root == 0
    return root, jnp.where(is_zero, 0, tangent / (2 * jnp.where(is_zero, 1, root)))


def leaf_keys(rng_key: Array, tree: Any) -> Any:
    """Returns one key for each leaf.

    Args:
      rng_key: one key.
      tree: any pytree.

    Returns:
      Keys in the structure of ``tree``; a single leaf gets ``rng_key`` itself.

    Raises:
      TypeError: if rng_key is not a typed key.

    Example:
      >>> sorted(leaf_keys(jax.random.key(0), {"a": 1.0, "b": 2.0}))
      ['a', 'b']
    """
    checks.rng_key("rng_key", rng_key)
    structure = jax.tree.structure(tree)
    # A single leaf takes the key itself: on small positions each hash costs as much as the noise.
    keys = [rng_key] if structure.num_leaves == 1 else list(jax.random.split(rng_key, structure.num_leaves))
    return jax.tree.unflatten(structure, keys)


def normal_like(rng_key: Array, tree: Any) -> Any:
    """Returns standard normals in the shapes of ``tree``, drawn in float32 or wider.

    Args:
      rng_key: one key.
      tree: any pytree of arrays.

    Returns:
      Independent draws from N(0, 1), in the structure of ``tree``.

    Raises:
      TypeError: if rng_key is not a typed key.

    Example:
      >>> normal_like(jax.random.key(0), {"a": jnp.zeros((3, 2))})["a"].shape
      (3, 2)
    """

    def draw(leaf: Array, leaf_key: Array) -> Array:
        return standard_normal(leaf_key, leaf.shape, wide_dtype(leaf))

    return jax.tree.map(draw, tree, leaf_keys(rng_key, tree))


def noisy(rng_key: Array, x: Position, level: Array | float) -> tuple[Position, Position]:
    """Returns y = x + level z with standard normal z, and z.

    Args:
      rng_key: one key.
      x: one example, or a batch.
      level: standard deviation of the noise, ``()``, in the units of x.

    Returns:
      y in the dtypes of x, and z in float32 or wider.

    Raises:
      TypeError: if rng_key is not a typed key.

    Example:
      >>> y, z = noisy(jax.random.key(0), jnp.ones(3), 2.0)
      >>> bool(jnp.all(y == 1 + 2 * z))
      True
    """
    z = normal_like(rng_key, x)
    return jax.tree.map(lambda x, z: (widened(x) + level * z).astype(x.dtype), x, z), z
