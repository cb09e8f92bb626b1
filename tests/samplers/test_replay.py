"""The persistent buffer: every slot is one chain, and nothing else is touched."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.initial import UniformInitial, uniform_like
from jaxebm.samplers.replay import BufferDraw, draw, init_buffer, write

CAPACITY, NUM_CHAINS, NUM_CLASSES = 60, 6, 5
INITIAL = UniformInitial(2.0, 3.0, shape=(2,))


def far_below(rng_key, label):
    """Never overlaps INITIAL, and tells the label: positions in -10 * (label + 1) + [0, 1)."""
    return jax.random.uniform(rng_key, (2,)) - 10.0 * (label + 1)


BUFFER = init_buffer(jax.random.key(0), INITIAL, CAPACITY)
CLASS_BUFFER = init_buffer(jax.random.key(0), far_below, CAPACITY, num_classes=NUM_CLASSES)

draw_plain = jax.jit(lambda key, probability: draw(key, BUFFER, NUM_CHAINS, probability, far_below))


@jax.jit
def draw_classes(key, probability, labels):
    return draw(key, CLASS_BUFFER, NUM_CHAINS, probability, far_below, labels=labels, num_classes=NUM_CLASSES)


KEYS = jax.random.split(jax.random.key(1), 1000)


def test_a_fresh_buffer():
    assert BUFFER.positions.shape == (CAPACITY, 2)
    assert float(BUFFER.positions.min()) >= 2
    assert len(np.unique(np.asarray(BUFFER.positions))) == 2 * CAPACITY  # every slot its own draw
    assert BUFFER.labels.dtype == BUFFER.ages.dtype == jnp.int32
    np.testing.assert_array_equal(BUFFER.labels, 0)
    np.testing.assert_array_equal(BUFFER.ages, 0)


def test_a_fresh_buffer_of_classes_is_interleaved_and_drawn_by_label():
    np.testing.assert_array_equal(CLASS_BUFFER.labels, np.arange(CAPACITY) % NUM_CLASSES)
    np.testing.assert_array_equal(_label_of(CLASS_BUFFER.positions), CLASS_BUFFER.labels)


def _label_of(positions):
    return np.floor(-np.asarray(positions)[..., 0] / 10).astype(int).clip(0)


def test_a_buffer_larger_than_one_batch_and_of_any_pytree():
    def initial(rng_key, label):
        return {"u": jax.random.normal(rng_key, (3,)), "v": label.astype(jnp.bfloat16)}

    buffer = init_buffer(jax.random.key(0), initial, 300, num_classes=3)
    assert buffer.positions["u"].shape == (300, 3)
    np.testing.assert_array_equal(buffer.positions["v"].astype(jnp.int32), buffer.labels)
    chains = draw(jax.random.key(1), buffer, 4, 0.5, initial)
    chex.assert_trees_all_equal_dtypes(chains.positions, buffer.positions)
    after = write(buffer, chains, chains.positions, 1)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, buffer)


# --- slots ---


def test_slots_are_unique_and_uniform_for_many_keys():
    slots = np.asarray(jax.vmap(lambda key: draw_plain(key, 0.1).slots)(KEYS))
    assert all(len(set(row)) == NUM_CHAINS for row in slots.tolist())
    share = NUM_CHAINS / CAPACITY
    counts = np.bincount(slots.ravel(), minlength=CAPACITY)
    assert np.all(np.abs(counts - len(KEYS) * share) < 5 * np.sqrt(len(KEYS) * share * (1 - share)))


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, 0], [2, 2, 2, 2, 2, 2], [4, 0, 4, 0, 0, 3]])
def test_class_slots_are_unique_uniform_and_of_their_class(labels):
    labels = np.array(labels)
    chains = jax.vmap(lambda key: draw_classes(key, 0.3, jnp.asarray(labels)))(KEYS)
    slots = np.asarray(chains.slots)
    assert all(len(set(row)) == NUM_CHAINS for row in slots.tolist())
    expected = np.broadcast_to(labels, slots.shape)
    np.testing.assert_array_equal(slots % NUM_CLASSES, expected)
    np.testing.assert_array_equal(chains.labels, expected)
    np.testing.assert_array_equal(_label_of(chains.positions), expected)  # restarted or not
    per_class = CAPACITY // NUM_CLASSES
    for label in set(labels.tolist()):
        share = np.sum(labels == label) / per_class
        counts = np.bincount(slots[slots % NUM_CLASSES == label], minlength=CAPACITY)[label::NUM_CLASSES]
        assert np.all(np.abs(counts - len(KEYS) * share) <= 5 * np.sqrt(len(KEYS) * share * (1 - share)))


def test_without_labels_a_class_buffer_tells_each_slots_class():
    chains = draw(jax.random.key(3), CLASS_BUFFER, 40, 0.5, far_below)
    np.testing.assert_array_equal(chains.labels, np.asarray(chains.slots) % NUM_CLASSES)
    np.testing.assert_array_equal(_label_of(chains.positions), chains.labels)


def test_the_whole_buffer_can_be_drawn():
    chains = draw(jax.random.key(0), BUFFER, CAPACITY, 0.0, far_below)
    assert sorted(chains.slots.tolist()) == list(range(CAPACITY))


# --- strata ---

STRATA, SHARE = 4, 3  # CLASS_BUFFER holds 15 slots a stratum, 3 of each class
STRATA_LABELS = jnp.array([0, 1, 1, 4, 4, 4, 2, 0, 3, 3, 3, 1])


@jax.jit
def draw_strata(key):
    return (
        draw(key, BUFFER, STRATA * SHARE, 0.3, far_below, num_strata=STRATA),
        draw(
            key,
            CLASS_BUFFER,
            STRATA * SHARE,
            0.3,
            far_below,
            labels=STRATA_LABELS,
            num_classes=NUM_CLASSES,
            num_strata=STRATA,
        ),
    )


def test_every_stratum_gives_its_share_of_its_own_slots():
    plain, classes = jax.vmap(draw_strata)(KEYS)
    expected = np.broadcast_to(np.repeat(np.arange(STRATA), SHARE), plain.slots.shape)
    for slots in (np.asarray(plain.slots), np.asarray(classes.slots)):
        np.testing.assert_array_equal(slots // (CAPACITY // STRATA), expected)
        assert all(len(set(row)) == STRATA * SHARE for row in slots.tolist())
    share = STRATA * SHARE / CAPACITY
    counts = np.bincount(np.asarray(plain.slots).ravel(), minlength=CAPACITY)
    assert np.all(np.abs(counts - len(KEYS) * share) < 5 * np.sqrt(len(KEYS) * share * (1 - share)))
    # Strata draw by keys of their own: two agree about their first slot once in 15.
    first = np.asarray(plain.slots).reshape(len(KEYS), STRATA, SHARE)[..., 0] % 15
    same = np.mean(first[:, 0] == first[:, 1])
    assert abs(same - 1 / 15) < 5 * np.sqrt(1 / 15 * 14 / 15 / len(KEYS))
    np.testing.assert_array_equal(
        classes.slots % NUM_CLASSES, np.broadcast_to(STRATA_LABELS, classes.slots.shape)
    )
    np.testing.assert_array_equal(_label_of(classes.positions), classes.labels)
    kept = ~np.asarray(plain.restarted)
    np.testing.assert_array_equal(
        np.asarray(plain.positions)[kept], np.asarray(BUFFER.positions)[np.asarray(plain.slots)[kept]]
    )


def test_one_stratum_draws_as_ever():
    # What was drawn from this key before there were strata: seeds mean what they meant.
    slots = draw(jax.random.key(1), BUFFER, NUM_CHAINS, 0.3, far_below).slots
    assert slots.tolist() == [59, 35, 57, 6, 30, 28]


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
@pytest.mark.parametrize("num_devices", [2, 4])
def test_devices_read_and_write_their_own_slots(num_devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), ("devices",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))

    def advance(buffer, key, sharding=None):
        chains = draw(key, buffer, STRATA * SHARE, 0.3, far_below, num_strata=STRATA, sharding=sharding)
        return chains, write(buffer, chains, chains.positions + 100, 7, sharding=sharding)

    one = jax.jit(advance)(BUFFER, KEYS[0])
    many = jax.jit(partial(advance, sharding=sharding))(jax.device_put(BUFFER, sharding), KEYS[0])
    chex.assert_trees_all_close(many, one, rtol=1e-6)
    assert many[1].positions.sharding.is_equivalent_to(sharding, 2)
    slots = np.asarray(one[0].slots)
    np.testing.assert_array_equal(one[1].positions[slots], one[0].positions + 100)
    assert int(np.sum(np.asarray(one[1].ages) == 7)) == STRATA * SHARE
    with pytest.raises(ValueError, match=rf"num_strata=1 must be a multiple of the {num_devices} devices"):
        draw(KEYS[0], BUFFER, 4, 0.3, far_below, sharding=sharding)


# --- restarts ---


def test_restart_frequency():
    probability = 0.05
    restarted = np.asarray(jax.vmap(lambda key: draw_plain(key, probability).restarted)(KEYS))
    error = np.sqrt(probability * (1 - probability) / restarted.size)
    assert abs(restarted.mean() - probability) < 5 * error


def test_restarted_chains_are_fresh_and_others_are_their_slots():
    chains = jax.vmap(lambda key: draw_plain(key, 0.5))(KEYS)
    restarted = np.asarray(chains.restarted)
    positions, slots = np.asarray(chains.positions), np.asarray(chains.slots)
    assert np.all(positions[restarted] < 0)
    np.testing.assert_array_equal(positions[~restarted], np.asarray(BUFFER.positions)[slots[~restarted]])
    assert len(np.unique(positions[restarted])) > 0.99 * positions[restarted].size  # each its own draw


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always(probability):
    chains = jax.vmap(lambda key: draw_plain(key, probability))(KEYS[:50])
    np.testing.assert_array_equal(chains.restarted, bool(probability))


# --- writing back ---


def test_writing_touches_the_drawn_slots_only():
    chains = draw_plain(jax.random.key(6), 0.5)
    moved = chains.positions + 100
    buffer = BUFFER._replace(ages=jnp.arange(CAPACITY, dtype=jnp.int32))
    after = write(buffer, chains, moved, 20)
    slots, others = np.asarray(chains.slots), np.setdiff1d(np.arange(CAPACITY), chains.slots)
    np.testing.assert_array_equal(after.positions[slots], moved)
    np.testing.assert_array_equal(after.positions[others], buffer.positions[others])
    np.testing.assert_array_equal(after.labels, buffer.labels)
    np.testing.assert_array_equal(after.ages[others], others)
    assert 0 < int(chains.restarted.sum()) < NUM_CHAINS
    np.testing.assert_array_equal(after.ages[slots], np.where(chains.restarted, 20, slots + 20))


def test_under_jit_the_donated_buffer_is_updated_in_place():
    @partial(jax.jit, donate_argnums=0)
    def advance(buffer, key):
        chains = draw(key, buffer, NUM_CHAINS, 0.05, INITIAL)
        return write(buffer, chains, chains.positions + 1, 1)

    buffer = init_buffer(jax.random.key(0), INITIAL, CAPACITY)
    before = buffer.positions
    compiled = advance.lower(buffer, jax.random.key(0)).compile()
    aliased = compiled.memory_analysis().alias_size_in_bytes
    assert aliased >= buffer.positions.nbytes + buffer.ages.nbytes
    after = advance(buffer, jax.random.key(0))
    assert before.is_deleted()
    assert int(after.ages.sum()) == NUM_CHAINS


def test_ages_are_geometric():
    # A slot's age, in draws since its last restart, is geometric: mean 1 / p, variance (1 - p) / p^2.
    probability, capacity, num_chains, steps = 0.2, 500, 100, 400  # a slot is drawn 80 times: 0.8^80 = 2e-8

    def advance(buffer, key):
        chains = draw(key, buffer, num_chains, probability, INITIAL)
        return write(buffer, chains, chains.positions, 1), None

    buffer = init_buffer(jax.random.key(0), INITIAL, capacity)
    buffer, _ = jax.jit(partial(jax.lax.scan, advance))(buffer, jax.random.split(jax.random.key(1), steps))
    error = np.sqrt((1 - probability) / probability**2 / capacity)
    assert abs(float(buffer.ages.mean()) - 1 / probability) < 5 * error


def test_after_many_steps_of_an_exact_kernel_the_buffer_is_the_target():
    # The kernel x <- a x + sqrt(1 - a^2) n leaves N(0, 1) alone. Slots are independent chains, so the buffer
    # is an independent sample of the target: a slot that two chains wrote, or that got another's state, would
    # not be.
    capacity, num_chains, steps, keep = 4000, 1000, 120, 0.5

    def advance(buffer, key):
        draw_key, noise_key = jax.random.split(key)
        chains = draw(draw_key, buffer, num_chains, 0.0, INITIAL)
        noise = jax.random.normal(noise_key, chains.positions.shape)
        return write(buffer, chains, keep * chains.positions + np.sqrt(1 - keep**2) * noise, 1), None

    buffer = init_buffer(jax.random.key(0), INITIAL, capacity)
    buffer, _ = jax.jit(partial(jax.lax.scan, advance))(buffer, jax.random.split(jax.random.key(1), steps))
    assert int(buffer.ages.sum()) == num_chains * steps
    assert int(buffer.ages.min()) >= 5
    x = np.asarray(buffer.positions, np.float64).ravel()
    x = x[np.repeat(np.asarray(buffer.ages), 2) >= 15]  # the start, 2.5, is forgotten to 2.5 * 2^-15
    assert x.size > 0.99 * 2 * capacity
    assert abs(x.mean()) < 5 / np.sqrt(x.size)
    assert abs(np.mean(x**2) - 1) < 5 * np.sqrt(2 / x.size)
    assert abs(np.mean(x**4) - 3) < 5 * np.sqrt(96 / x.size)


# --- errors ---


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: init_buffer(KEYS[0], INITIAL, 0), "capacity"),
        (
            lambda: init_buffer(KEYS[0], INITIAL, 10, num_classes=3),
            r"capacity=10.*multiple of num_classes=3.*12",
        ),
        (
            lambda: init_buffer(KEYS[0], INITIAL, 60, num_classes=5, num_strata=8),
            r"capacity=60.*num_classes=5 \* num_strata=8 = 40.*80 is the next",
        ),
        (lambda: init_buffer(KEYS[0], INITIAL, 60, num_strata=0), "num_strata=0"),
        (
            lambda: draw(KEYS[0], BUFFER, 6, 0.1, INITIAL, num_strata=4),
            "num_strata=4 must divide.*num_chains=6",
        ),
        (
            lambda: draw(KEYS[0], BUFFER, 7, 0.1, INITIAL, num_strata=7),
            "num_strata=7 must divide.*capacity=60",
        ),
        (
            lambda: draw(
                KEYS[0],
                CLASS_BUFFER,
                10,
                0.1,
                far_below,
                labels=jnp.zeros(10, int),
                num_classes=NUM_CLASSES,
                num_strata=10,
            ),
            "num_strata=10: a stratum of 6 slots does not hold as many of each of num_classes=5",
        ),
        (lambda: draw(KEYS[0], BUFFER, CAPACITY + 1, 0.1, INITIAL), r"num_chains=61.*60 slots"),
        (lambda: draw(KEYS[0], BUFFER, 2, 1.5, INITIAL), r"restart_probability=1.5.*between 0 and 1"),
        (lambda: draw(KEYS[0], BUFFER, 2, -0.1, INITIAL), "restart_probability"),
        (lambda: _class_draw(jnp.zeros(6, int), num_classes=None), "num_classes"),
        (lambda: _class_draw(jnp.zeros(6, int), num_classes=3), r"num_classes=3.*5 classes"),
        (lambda: _class_draw(jnp.zeros(5, int)), r"labels has shape \(5,\)"),
        (lambda: _class_draw(jnp.full(6, 5)), "labels spans 5..5"),
        (lambda: _class_draw(jnp.zeros(13, int), num_chains=13), r"num_chains=13.*12 slots per class.*65"),
        (lambda: write(BUFFER, _two_chains(), jnp.zeros((2, 1)), 1), r"positions has shape \(2, 1\)"),
        (lambda: write(BUFFER, _two_chains(), jnp.zeros((2, 2)), -1), "num_steps"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def _class_draw(labels, num_chains=6, num_classes=NUM_CLASSES):
    return draw(KEYS[0], CLASS_BUFFER, num_chains, 0.1, far_below, labels=labels, num_classes=num_classes)


def _two_chains():
    return BufferDraw(jnp.arange(2), jnp.zeros((2, 2)), jnp.zeros(2, jnp.int32), jnp.zeros(2, bool))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_buffer_keeps_its_dtypes_under_x64(dtype):
    def cycle(key):
        initial = uniform_like(jnp.zeros((2,), dtype))
        buffer = init_buffer(key, initial, 10, num_classes=5)
        chains = draw(key, buffer, 2, 0.5, initial, labels=jnp.arange(2), num_classes=5)
        plain = draw(key, buffer, 2, 0.5, initial)
        return buffer, chains, plain, write(buffer, chains, chains.positions, 3)

    with jax.enable_x64(True):
        buffer, chains, plain, written = jax.eval_shape(cycle, jax.random.key(0))
    assert buffer.positions.dtype == chains.positions.dtype == written.positions.dtype == jnp.dtype(dtype)
    assert {x.dtype.name for x in (buffer.labels, buffer.ages, written.ages, plain.labels)} == {"int32"}
    assert {x.dtype.name for x in (chains.slots, plain.slots, chains.labels)} == {"int32"}


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: init_buffer(0, INITIAL, 5), TypeError, "rng_key=0"),
        (lambda: init_buffer(jax.random.PRNGKey(0), INITIAL, 5), TypeError, "rng_key has dtype uint32"),
        (lambda: init_buffer(KEYS[0], lambda: 0, 5), TypeError, "initial"),
        (lambda: draw(jax.random.PRNGKey(0), BUFFER, 2, 0.1, INITIAL), TypeError, "rng_key"),
        (lambda: draw(KEYS[0], BUFFER.positions, 2, 0.1, INITIAL), TypeError, "buffer is .*init_buffer"),
        (
            lambda: draw(KEYS[0], BUFFER, 2, jnp.zeros(2), INITIAL),
            ValueError,
            "restart_probability has shape",
        ),
        (lambda: draw(KEYS[0], BUFFER, 2, 0.1, INITIAL, num_classes="5"), ValueError, "num_classes='5'"),
        (lambda: draw(KEYS[0], BUFFER, 2, 0.1, INITIAL, sharding=3), TypeError, "sharding"),
        (lambda: write(BUFFER, BUFFER, jnp.zeros((2, 2)), 1), TypeError, "draw is"),
        (lambda: write(BUFFER, _two_chains(), jnp.zeros((2, 2)), 1.5), TypeError, "num_steps=1.5"),
        (lambda: write(BUFFER, _two_chains(), np.full((2, 2), "a"), 1), TypeError, "positions"),
    ],
)
def test_what_is_no_buffer_draw_or_key_is_named(call, error, named):
    with pytest.raises(error, match=named):
        call()
