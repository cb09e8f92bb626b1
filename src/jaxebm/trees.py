"""Pytrees of arrays, leaf by leaf: wider floating-point types, norms, keys and normal noise."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxebm.cpu.noise import standard_normal
from jaxebm.types import Array

__all__ = ["euclidean_norm", "leaf_keys", "normal_like", "wide_dtype", "widened"]


def wide_dtype(leaf: Any) -> jnp.dtype:
    """Returns float32, or the wider floating-point type of ``leaf``.

    Args:
      leaf: an array or a number, whose dtype is read.

    Returns:
      A dtype.

    Example:
      >>> str(wide_dtype(jnp.zeros(2, jnp.bfloat16)))
      'float32'
    """
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


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
      The norm, shape ``()``.

    Example:
      >>> float(euclidean_norm({"a": jnp.array([3.0]), "b": jnp.array(4.0)}))
      5.0
    """
    return optax.tree.norm(jax.tree.map(widened, tree))


def leaf_keys(rng_key: Array, tree: Any) -> Any:
    """Returns one key for each leaf.

    Args:
      rng_key: one key.
      tree: any pytree.

    Returns:
      Keys in the structure of ``tree``; a single leaf gets ``rng_key`` itself.

    Example:
      >>> sorted(leaf_keys(jax.random.key(0), {"a": 1.0, "b": 2.0}))
      ['a', 'b']
    """
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

    Example:
      >>> normal_like(jax.random.key(0), {"a": jnp.zeros((3, 2))})["a"].shape
      (3, 2)
    """

    def draw(leaf: Array, leaf_key: Array) -> Array:
        return standard_normal(leaf_key, leaf.shape, wide_dtype(leaf))

    return jax.tree.map(draw, tree, leaf_keys(rng_key, tree))
