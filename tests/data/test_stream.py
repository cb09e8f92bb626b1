"""Batches: every example once an epoch, and the same order however the steps are grouped into programs."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data.stream import init_stream, next_batch

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_EXAMPLES, BATCH_SIZE = 11, 3  # three batches an epoch, and two examples left
ROWS = jnp.arange(NUM_EXAMPLES)
KEYS = jax.random.split(jax.random.key(1), 30)


@jax.jit
def batches_by_scan(stream, keys):
    """Rows of the batches, ``(keys, BATCH_SIZE)``, and the stream after them."""

    def step(stream, key):
        return next_batch(key, stream, ROWS, BATCH_SIZE)[::-1]

    stream, rows = jax.lax.scan(step, stream, keys)
    return rows, stream


START = init_stream(jax.random.key(0), NUM_EXAMPLES)


def test_a_stream_starts_with_a_random_order():
    chex.assert_shape(START.permutation, (NUM_EXAMPLES,))
    chex.assert_type([START.permutation, START.offset], jnp.int32)
    assert sorted(START.permutation.tolist()) == list(range(NUM_EXAMPLES))
    assert START.permutation.tolist() != init_stream(jax.random.key(1), NUM_EXAMPLES).permutation.tolist()
    assert int(START.offset) == 0


def test_each_example_at_most_once_an_epoch_and_the_remainder_is_left():
    rows, _ = batches_by_scan(START, KEYS)
    epochs = np.asarray(rows).reshape(10, 9)
    assert all(len(set(epoch)) == 9 for epoch in epochs.tolist())
    # Which two are left changes, so that no example is lost for good.
    assert set(epochs.ravel().tolist()) == set(range(NUM_EXAMPLES))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 10  # reshuffled


def test_a_batch_that_divides_the_set_leaves_nothing():
    @jax.jit
    def two_epochs(stream):
        def step(stream, key):
            return next_batch(key, stream, jnp.arange(12), 4)[::-1]

        return jax.lax.scan(step, stream, KEYS[:6])[1]

    epochs = np.asarray(two_epochs(init_stream(jax.random.key(0), 12))).reshape(2, 12)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(12), (2, 1)))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_the_place_in_the_data():
    _, stream = batches_by_scan(START, KEYS[:3])
    assert int(stream.offset) == 9
    np.testing.assert_array_equal(stream.permutation, START.permutation)
    _, stream = batches_by_scan(START, KEYS[:4])
    assert int(stream.offset) == 3  # 9 + 3 > 11: a new epoch
    assert stream.permutation.tolist() != START.permutation.tolist()


def test_orders_are_uniform():
    # The first row of the second epoch, over many keys: each example equally often, to five sigma.
    num_keys = 4000
    keys = jax.random.split(jax.random.key(2), num_keys)
    exhausted = START._replace(offset=jnp.array(9, jnp.int32))
    first = jax.jit(jax.vmap(lambda key: next_batch(key, exhausted, ROWS, BATCH_SIZE)[0][0]))(keys)
    counts = np.bincount(np.asarray(first), minlength=NUM_EXAMPLES)
    share = 1 / NUM_EXAMPLES
    assert np.all(np.abs(counts - num_keys * share) < 5 * np.sqrt(num_keys * share * (1 - share)))


def test_the_order_does_not_depend_on_how_steps_are_dispatched():
    together, end = batches_by_scan(START, KEYS[:12])
    stream, parts = START, []
    for keys in (KEYS[:1], KEYS[1:6], KEYS[6:12]):
        rows, stream = batches_by_scan(stream, keys)
        parts.append(np.asarray(rows))
    np.testing.assert_array_equal(np.concatenate(parts), together)
    chex.assert_trees_all_equal(stream, end)
    # Nor on compilation.
    stream = START
    for key, rows in zip(KEYS[:4], together, strict=False):
        batch, stream = next_batch(key, stream, ROWS, BATCH_SIZE)
        np.testing.assert_array_equal(batch, rows)


def test_a_pytree_of_arrays_stays_aligned_and_keeps_its_dtypes():
    arrays = {
        "image": jnp.arange(NUM_EXAMPLES * 4, dtype=jnp.uint8).reshape(NUM_EXAMPLES, 2, 2),
        "label": jnp.arange(NUM_EXAMPLES, dtype=jnp.int32),
    }
    batch, _ = jax.jit(partial(next_batch, batch_size=BATCH_SIZE))(KEYS[0], START, arrays)
    assert batch["image"].dtype == jnp.uint8
    np.testing.assert_array_equal(batch["label"], START.permutation[:BATCH_SIZE])
    np.testing.assert_array_equal(batch["image"], np.asarray(arrays["image"])[batch["label"]])


def test_numpy_arrays_can_be_closed_over():
    on_host = np.arange(NUM_EXAMPLES, dtype=np.float32)
    batch, _ = jax.jit(lambda key, stream: next_batch(key, stream, on_host, BATCH_SIZE))(KEYS[0], START)
    np.testing.assert_array_equal(batch, START.permutation[:BATCH_SIZE])


# --- strata ---

STRATA = 4  # of 2 examples each in 11: the last 3 are left out


def test_every_stratum_gives_its_share_of_its_own_examples():
    stream = init_stream(jax.random.key(0), 23, num_strata=STRATA)  # 5 each
    chex.assert_shape(stream.permutation, (STRATA, 5))
    arrays = {"row": jnp.arange(23), "image": jnp.arange(46).reshape(23, 2, 1)}

    @jax.jit
    def batches(stream):
        def step(stream, key):
            return next_batch(key, stream, arrays, 2 * STRATA)[::-1]

        return jax.lax.scan(step, stream, KEYS)

    stream, found = batches(stream)
    rows = np.asarray(found["row"]).reshape(len(KEYS), STRATA, 2)
    strata = np.arange(STRATA)[:, None]
    np.testing.assert_array_equal(rows // 5, np.broadcast_to(strata, rows.shape))
    np.testing.assert_array_equal(np.asarray(found["image"])[..., 0, 0], 2 * np.asarray(found["row"]))
    epochs = rows.reshape(15, 2, STRATA, 2).transpose(0, 2, 1, 3).reshape(15 * STRATA, 4)
    assert all(len(set(epoch)) == 4 for epoch in epochs.tolist())  # two batches an epoch, one example left
    assert set(rows.ravel().tolist()) == set(range(20))  # in the end all, but for the last 23 mod 4
    # Each stratum has an order of its own.
    assert len({tuple(order) for order in np.asarray(stream.permutation).tolist()}) > 1
    # Arrays that end with the last stratum give the same batches.
    cut = jax.tree.map(lambda array: array[:20], arrays)
    again = init_stream(jax.random.key(0), 23, num_strata=STRATA)
    batch, _ = next_batch(KEYS[0], again, cut, 2 * STRATA)
    chex.assert_trees_all_equal(batch, jax.tree.map(lambda leaf: leaf[0], found))


def test_one_stratum_orders_as_ever():
    # The order of this key before there were strata: seeds mean what they meant.
    assert START.permutation.tolist() == [0, 1, 8, 5, 6, 4, 3, 10, 2, 7, 9]


def test_bad_strata_are_refused():
    with pytest.raises(ValueError, match="num_strata=0"):
        init_stream(KEYS[0], 4, num_strata=0)
    with pytest.raises(ValueError, match="num_strata=5 exceeds num_examples=4"):
        init_stream(KEYS[0], 4, num_strata=5)
    stream = init_stream(KEYS[0], NUM_EXAMPLES, num_strata=STRATA)
    with pytest.raises(
        ValueError, match=r"batch_size=6 must be a multiple of the stream's 4 strata.*8 is the next"
    ):
        next_batch(KEYS[0], stream, ROWS, 6)
    with pytest.raises(ValueError, match="batch_size=12 exceeds the number of examples, 8"):
        next_batch(KEYS[0], stream, ROWS, 12)
    with pytest.raises(ValueError, match="arrays hold 12 examples and the stream was started with 8"):
        next_batch(KEYS[0], stream, jnp.arange(12), 4)


def test_one_program_for_every_place_and_order():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, stream, arrays):
        return next_batch(key, stream, arrays, BATCH_SIZE)

    stream = START
    for key in KEYS[:5]:
        _, stream = step(key, stream, ROWS)


@pytest.mark.parametrize("num_examples", [0, -1, 2.0, None])
def test_num_examples_is_a_count(num_examples):
    with pytest.raises(ValueError, match=r"num_examples=.*at least 1"):
        init_stream(jax.random.key(0), num_examples)


@pytest.mark.parametrize(
    ("arrays", "batch_size", "named"),
    [
        (ROWS, 0, "batch_size=0"),
        (ROWS, 2.5, "batch_size=2.5"),
        (ROWS, 12, "batch_size=12 exceeds the number of examples, 11"),
        # Rows past the end would silently be the last one.
        (ROWS[:7], 3, "arrays hold 7 examples and the stream was started with 11"),
        (jnp.arange(20), 3, "arrays hold 20 examples"),
        ({"image": ROWS, "label": ROWS[:7]}, 3, "arrays has leaves of shapes"),
        ({}, 3, "arrays has no arrays"),
    ],
)
def test_bad_input_is_refused_while_tracing(arrays, batch_size, named):
    with pytest.raises(ValueError, match=named):
        jax.eval_shape(lambda key, stream: next_batch(key, stream, arrays, batch_size), KEYS[0], START)
