"""A training state as plain arrays by path, for a checkpoint, and back onto whatever devices there are."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.training import manifest as manifests
from jaxebm.training.state import TrainState

__all__ = []


def to_arrays(state: TrainState) -> dict[str, np.ndarray | jax.Array]:
    """Flattens a state by path, typed keys as their data: copies on the host, but for what spans hosts.

    Copies, because the next dispatch consumes the state while these are still being written.
    """
    arrays: dict[str, np.ndarray | jax.Array] = {}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    leaves = [(path, jax.random.key_data(leaf) if manifests.is_key(leaf) else leaf) for path, leaf in leaves]
    for _, leaf in leaves:
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    for path, leaf in leaves:
        here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        arrays[jax.tree_util.keystr(path)] = np.array(leaf) if here else leaf
    return arrays


def describe_state(template: TrainState) -> dict[str, Any]:
    """The shapes and dtypes that `to_arrays` would give, without copying anything."""
    described: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(template):
        like = jax.eval_shape(jax.random.key_data, leaf) if manifests.is_key(leaf) else leaf
        described[jax.tree_util.keystr(path)] = like
    return manifests.describe_arrays(described)


def from_arrays(template: TrainState, arrays: Mapping[str, np.ndarray]) -> TrainState:
    """Puts arrays where the leaves of ``template`` are, each process and device its own part."""

    def place(path: Any, leaf: Any) -> jax.Array:
        array = arrays[jax.tree_util.keystr(path)]
        if manifests.is_key(leaf):
            return jax.random.wrap_key_data(
                put(array, jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        return put(array, leaf)

    def put(array: np.ndarray, like: Any) -> jax.Array:
        if not isinstance(like, jax.Array) or not like.committed:
            return jnp.array(array)
        return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(place, template)


def witness(array: np.ndarray | jax.Array) -> np.ndarray:
    """Of an array that spans hosts, one number that is finite if all of its entries are."""
    if isinstance(array, np.ndarray) or not jnp.issubdtype(array.dtype, jnp.inexact):
        return array if isinstance(array, np.ndarray) else np.zeros(())
    return np.asarray(jnp.max(jnp.abs(array)))
