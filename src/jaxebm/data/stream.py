"""Batches from arrays, drawn inside the compiled step: every example once an epoch, in a fresh order each.

The place in the data is a small pytree that lives in the training state, so a checkpoint holds it too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["StreamState", "init_stream", "next_batch"]


class StreamState(NamedTuple):
    """A place in the data.

    Attributes:
      permutation: the order of this epoch, ``(num_examples,)``.
      offset: examples of this epoch already taken, a scalar.
    """

    permutation: Array
    offset: Array


def init_stream(rng_key: Array, num_examples: int) -> StreamState:
    """Starts a stream with a first random order.

    Args:
      rng_key: for that order.
      num_examples: length of the arrays that the stream will read.

    Returns:
      The state before the first batch.

    Raises:
      ValueError: if ``num_examples`` is not an integer of at least 1.

    Example:
      >>> import jax
      >>> sorted(init_stream(jax.random.key(0), 4).permutation.tolist())
      [0, 1, 2, 3]
    """
    checks.positive_integer("num_examples", num_examples)
    permutation = jax.random.permutation(rng_key, num_examples)
    return StreamState(permutation.astype(jnp.int32), jnp.zeros((), jnp.int32))


def next_batch(rng_key: Array, stream: StreamState, arrays: Any, batch_size: int) -> tuple[Any, StreamState]:
    """Takes the next ``batch_size`` examples of the epoch.

    A remainder smaller than a batch is left, and a new epoch begins, in a new order.

    Args:
      rng_key: for the order of the next epoch, should it begin here.
      stream: the place in the data.
      arrays: a pytree of arrays with one leading axis, ``(num_examples, ...)``, those that `init_stream` was
        told of.
      batch_size: examples to take, at most ``num_examples``.

    Returns:
      ``(batch, stream)``: the same pytree with leading axis ``batch_size``, and the new place.

    Raises:
      ValueError: if ``batch_size`` is not an integer of at least 1 or exceeds the examples there are, or if
        ``arrays`` hold another number of examples than the stream was started with.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> stream = init_stream(jax.random.key(0), 4)
      >>> first, stream = next_batch(jax.random.key(1), stream, jnp.arange(4), 2)
      >>> second, stream = next_batch(jax.random.key(2), stream, jnp.arange(4), 2)
      >>> sorted(first.tolist() + second.tolist())
      [0, 1, 2, 3]
    """
    num_examples = stream.permutation.shape[0]
    checks.positive_integer("batch_size", batch_size)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size={batch_size} exceeds the {num_examples} examples there are: use at most that."
        )
    if checks.batch_length("arrays", arrays) != num_examples:
        raise ValueError(
            f"arrays hold {checks.batch_length('arrays', arrays)} examples and the stream was started with "
            f"{num_examples}: pass the arrays whose length init_stream was given."
        )
    exhausted = stream.offset + batch_size > num_examples
    permutation = jax.lax.cond(
        exhausted,
        lambda order: jax.random.permutation(rng_key, order),
        lambda order: order,
        stream.permutation,
    )
    offset = jnp.where(exhausted, 0, stream.offset)
    rows = jax.lax.dynamic_slice_in_dim(permutation, offset, batch_size)
    # A NumPy array cannot be read at rows that are known only to the compiled program: hence asarray.
    batch = jax.tree.map(lambda array: jnp.asarray(array)[rows], arrays)
    return batch, StreamState(permutation, offset + batch_size)
