"""Batches from arrays, drawn inside the compiled step: every example once per epoch, in a new random order.

The position in the data is a small pytree in the training state, so it is part of every checkpoint.

A stream can have *strata*: contiguous blocks of examples of the same size, each with its own order. Each
gives an equal share of every batch. Batches depend only on the number of strata: any number of devices that
divides it reads the same batches, and a device that holds whole strata needs no data of the others.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["StreamState", "init_stream", "next_batch"]


class StreamState(NamedTuple):
    """A position in the data.

    Attributes:
      permutation: the order of this epoch, ``(num_examples,)``; with S > 1 strata one order per stratum, of
        its own rows counted from its first, ``(S, num_examples // S)``.
      offset: examples of this epoch already taken from each stratum, a scalar, equal for all strata.
    """

    permutation: Array
    offset: Array


def init_stream(rng_key: Array, num_examples: int, *, num_strata: int = 1) -> StreamState:
    """Starts a stream with a first random order.

    Args:
      rng_key: key of that order.
      num_examples: length of the arrays that the stream will read.
      num_strata: S, contiguous blocks of num_examples // S examples; the last num_examples mod S are
        left out.

    Returns:
      The state before the first batch.

    Raises:
      ValueError: if ``num_examples`` or ``num_strata`` is not an integer of at least 1, or there are more
        strata than examples.
      TypeError: if ``rng_key`` is no typed key.

    Example:
      >>> import jax
      >>> sorted(init_stream(jax.random.key(0), 4).permutation.tolist())
      [0, 1, 2, 3]
    """
    checks.rng_key("rng_key", rng_key)
    checks.positive_integer("num_examples", num_examples)
    checks.positive_integer("num_strata", num_strata)
    if num_strata > num_examples:
        raise ValueError(f"num_strata={num_strata} exceeds num_examples={num_examples}: use at most that.")
    if num_strata == 1:
        permutation = jax.random.permutation(rng_key, num_examples)
    else:
        keys = jax.random.split(rng_key, num_strata)
        permutation = jax.vmap(lambda key: jax.random.permutation(key, num_examples // num_strata))(keys)
    return StreamState(permutation.astype(jnp.int32), jnp.zeros((), jnp.int32))


def next_batch(rng_key: Array, stream: StreamState, arrays: Any, batch_size: int) -> tuple[Any, StreamState]:
    """Takes the next ``batch_size`` examples of the epoch, with S strata ``batch_size / S`` of each.

    A remainder smaller than a batch is dropped, and a new epoch begins, in a new order. Stratum s of S gives
    the s-th block of the batch.

    Args:
      rng_key: key of the order of the next epoch, if it begins here.
      stream: the position in the data.
      arrays: a pytree of arrays with one leading axis, ``(num_examples, ...)``, as given to `init_stream`;
        the examples that strata leave out may be missing.
      batch_size: examples to take, at most ``num_examples`` and a multiple of the strata.

    Returns:
      ``(batch, stream)``: the same pytree with leading axis ``batch_size``, and the new position.

    Raises:
      ValueError: if ``batch_size`` is not an integer of at least 1, exceeds the number of examples or is not
        a multiple of the strata, or if ``arrays`` hold another number of examples than the stream was started
        with.
      TypeError: if ``rng_key`` is no typed key, ``stream`` no ``StreamState`` of integers, or ``arrays`` are
        not of real numbers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> stream = init_stream(jax.random.key(0), 4)
      >>> first, stream = next_batch(jax.random.key(1), stream, jnp.arange(4), 2)
      >>> second, stream = next_batch(jax.random.key(2), stream, jnp.arange(4), 2)
      >>> sorted(first.tolist() + second.tolist())
      [0, 1, 2, 3]
    """
    checks.rng_key("rng_key", rng_key)
    _check_stream(stream)
    num_strata = 1 if stream.permutation.ndim == 1 else stream.permutation.shape[0]
    in_stratum = stream.permutation.shape[-1]
    num_examples = num_strata * in_stratum
    checks.positive_integer("batch_size", batch_size)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size={batch_size} exceeds the number of examples, {num_examples}: use at most that."
        )
    if batch_size % num_strata:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of the stream's {num_strata} strata, which give "
            f"equal shares of a batch; {-(-batch_size // num_strata) * num_strata} is the next one."
        )
    checks.real_arrays("arrays", arrays)
    given = checks.batch_length("arrays", arrays)
    if given // num_strata != in_stratum:
        raise ValueError(
            f"arrays hold {given} examples and the stream was started with {num_examples}: pass the arrays "
            "whose length init_stream was given."
        )
    share = batch_size // num_strata
    exhausted = stream.offset + share > in_stratum
    permutation = jax.lax.cond(
        exhausted, lambda order: _shuffle(rng_key, order), lambda order: order, stream.permutation
    )
    offset = jnp.where(exhausted, 0, stream.offset)
    rows = jax.lax.dynamic_slice_in_dim(permutation, offset, share, axis=-1)

    def take(array: Array) -> Array:
        # asarray, because a NumPy array cannot be indexed by a traced array.
        array = jnp.asarray(array)
        if num_strata == 1:
            return array[rows]
        strata = array[:num_examples].reshape(num_strata, in_stratum, *array.shape[1:])
        return jax.vmap(lambda examples, at: examples[at])(strata, rows).reshape(batch_size, *array.shape[1:])

    return jax.tree.map(take, arrays), StreamState(permutation, offset + share)


def _check_stream(stream: StreamState) -> None:
    checks.instance("stream", stream, StreamState, "init_stream makes one.")
    for value, ranks in ((stream.permutation, (1, 2)), (stream.offset, (0,))):
        checks.array("stream", value)
        if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise TypeError(
                f"stream holds dtype {jnp.result_type(value)}: integers are needed, as init_stream's."
            )
        if jnp.ndim(value) not in ranks or 0 in jnp.shape(value):
            raise ValueError(
                f"stream has permutation and offset of shapes {jnp.shape(stream.permutation)} and "
                f"{jnp.shape(stream.offset)}: (n,) or (strata, n), and (), are needed."
            )


def _shuffle(rng_key: Array, order: Array) -> Array:
    if order.ndim == 1:
        return jax.random.permutation(rng_key, order)
    return jax.vmap(jax.random.permutation)(jax.random.split(rng_key, len(order)), order)
