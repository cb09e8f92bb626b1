"""Where negatives come from: where chains start, which target they are on, and what is remembered."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.objectives.contrastive import contrastive_loss
from jaxebm.objectives.labelled_chains import run_labelled_chains
from jaxebm.objectives.negatives import (
    SamplerState,
    _init_buffer,
    chains_of,
    contrastive_divergence,
    no_negatives,
    persistent,
    short_run,
)
from jaxebm.samplers.initial import ClassGaussianInitial, UniformInitial
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.replay import draw, init_buffer
from jaxebm.training.placement import make_placement
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CHAINS, NUM_CLASSES = 8, 4
INITIAL = UniformInitial(2.0, 3.0, shape=(2,))
STILL = partial(sgld, step_size=1e-9, noise_scale=0.0)
DOWNHILL = partial(sgld, step_size=0.1, noise_scale=0.0)
LANGEVIN = partial(sgld, step_size=0.1)
KEY = jax.random.key(0)
EXAMPLE = jnp.zeros(2)


def quadratic(params, x, label):
    """E(x) = k ||x - m||^2 / 2, whatever the class."""
    del label
    return 0.5 * params["k"] * jnp.sum((x - params["mean"]) ** 2)


def class_wells(params, x, label):
    """One well a class, at 3 y."""
    return 5.0 * params["k"] * jnp.sum((x - 3.0 * label) ** 2)


QUADRATIC = {"k": jnp.array(2.0), "mean": jnp.array([1.0, -2.0])}
X_DATA = jnp.asarray(np.random.default_rng(0).normal(size=(NUM_CHAINS, 2)), jnp.float32)
LABELS = jnp.array([3, 0, 1, 1, 2, 0, 3, 2], jnp.int32)

CONSTRUCTORS = {
    "contrastive_divergence": contrastive_divergence,
    "short_run": partial(short_run, initial=INITIAL, num_chains=NUM_CHAINS, num_classes=NUM_CLASSES),
    "persistent": partial(
        persistent, initial=INITIAL, num_chains=NUM_CHAINS, capacity=20, num_classes=NUM_CLASSES
    ),
}


# --- what all have in common ---


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_invariants_of_every_sampler(name):
    sampler = CONSTRUCTORS[name](LANGEVIN, num_steps=3)
    chex.clear_trace_counter()  # it counts by name, and each sampler has a function of its own

    @jax.jit
    @chex.assert_max_traces(n=1)
    def drawn(key, params, x_data, state):
        return sampler.draw(key, quadratic, params, x_data, LABELS, state)

    first, state = drawn(KEY, QUADRATIC, X_DATA, sampler.init(KEY, EXAMPLE))
    again, _ = drawn(KEY, QUADRATIC, X_DATA, sampler.init(KEY, EXAMPLE))
    chex.assert_trees_all_equal(first, again)  # all randomness comes from the key
    # New parameters, data and state run the same program.
    second, after = drawn(jax.random.key(1), QUADRATIC | {"k": jnp.array(1.0)}, X_DATA + 1, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after, sampler.init(KEY, EXAMPLE))
    chex.assert_shape(first.positions, (NUM_CHAINS, 2))
    chex.assert_shape(first.labels, (NUM_CHAINS,))
    chex.assert_type(first.labels, jnp.int32)
    chex.assert_tree_all_finite(second)
    assert not np.any(np.asarray(first.positions) == np.asarray(second.positions))
    assert len(np.unique(first.positions)) == 2 * NUM_CHAINS  # every chain has noise of its own


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_class_conditional_chains_stay_on_their_own_target(name):
    sampler = CONSTRUCTORS[name](DOWNHILL, num_steps=40)
    draw_jit = jax.jit(lambda key, state: sampler.draw(key, class_wells, {"k": 1.0}, X_DATA, LABELS, state))
    state = sampler.init(KEY, EXAMPLE)
    for seed in range(3):
        negatives, state = draw_jit(jax.random.key(seed), state)
        wells = 3.0 * np.repeat(np.asarray(negatives.labels)[:, None], 2, axis=1)
        np.testing.assert_allclose(negatives.positions, wells, atol=1e-4)
        assert len(set(negatives.labels.tolist())) > 1


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_batch_normalised_energies_see_the_chains_as_their_batch(name):
    def energy(params, x, label):
        del params, label
        # Each chain is pulled to the mean of all.
        return 0.5 * jnp.sum((x - jax.lax.stop_gradient(jax.lax.pmean(x, BATCH_AXIS))) ** 2)

    sampler = CONSTRUCTORS[name](partial(sgld, step_size=0.5, noise_scale=0.0), num_steps=30)
    draw_jit = jax.jit(lambda: sampler.draw(KEY, energy, None, X_DATA, LABELS, sampler.init(KEY, EXAMPLE))[0])
    positions = np.asarray(draw_jit().positions)
    np.testing.assert_allclose(positions, np.broadcast_to(positions[0], positions.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("make_kernel", "named"),
    [
        (partial(sgld, step_size=0.0), "step_size=0.0"),
        (partial(sgld, step_size=-0.1), "step_size=-0.1"),
        (partial(sgld, step_size=0.1, noise_scale=-1.0), "noise_scale=-1.0"),
    ],
)
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_bad_kernels_are_refused_while_tracing(name, make_kernel, named):
    sampler = CONSTRUCTORS[name](make_kernel, num_steps=3)
    state = jax.eval_shape(sampler.init, KEY, EXAMPLE)
    with pytest.raises(ValueError, match=named):
        jax.eval_shape(lambda state: sampler.draw(KEY, quadratic, QUADRATIC, X_DATA, LABELS, state), state)


@pytest.mark.parametrize("name", CONSTRUCTORS)
@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True])
def test_num_steps_is_a_count(name, num_steps):
    with pytest.raises(ValueError, match=f"num_steps={num_steps}.*at least 1"):
        CONSTRUCTORS[name](LANGEVIN, num_steps=num_steps)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_displacement_is_the_root_mean_square_from_the_start(name):
    """Downhill x - m shrinks by 0.8 a step: a chain that ends at e began at m + (e - m) / 0.8^3."""
    sampler = CONSTRUCTORS[name](DOWNHILL, num_steps=3)
    negatives = jax.jit(
        lambda: sampler.draw(KEY, quadratic, QUADRATIC, X_DATA, LABELS, sampler.init(KEY, EXAMPLE))[0]
    )()
    offsets = np.asarray(negatives.positions - QUADRATIC["mean"][None, :])
    expected = np.sqrt(np.mean((offsets / 0.8**3 - offsets) ** 2, axis=1))
    assert negatives.displacement.dtype == jnp.float32
    np.testing.assert_allclose(negatives.displacement, expected, rtol=1e-4)


def test_displacement_of_a_pytree_is_over_all_its_entries():
    def energy(params, x, label):
        return jnp.sum(x["u"]) + 2.0 * x["v"]

    start = {"u": jnp.zeros((4, 3), jnp.bfloat16), "v": jnp.ones(4)}
    sampler = contrastive_divergence(partial(sgld, step_size=0.5, noise_scale=0.0), num_steps=1)
    negatives, _ = sampler.draw(KEY, energy, None, start, None, SamplerState())
    np.testing.assert_allclose(negatives.displacement, np.sqrt((3 * 0.5**2 + 1.0**2) / 4), rtol=1e-6)


# --- contrastive divergence ---


def test_cd_starts_at_the_data_and_keeps_their_labels():
    sampler = contrastive_divergence(STILL, num_steps=2)
    draw_jit = jax.jit(lambda labels: sampler.draw(KEY, quadratic, QUADRATIC, X_DATA, labels, SamplerState()))
    negatives, state = draw_jit(LABELS)
    np.testing.assert_allclose(negatives.positions, X_DATA, atol=1e-6)
    np.testing.assert_array_equal(negatives.labels, LABELS)
    assert state == sampler.init(KEY, EXAMPLE) == SamplerState()
    unlabelled, _ = draw_jit(None)
    np.testing.assert_array_equal(unlabelled.labels, np.zeros(NUM_CHAINS, np.int32))


def test_cd_k_descends_by_k_steps():
    # Without noise x - m shrinks by 1 - epsilon k a step: 0.8 at step 0.1 and k = 2.
    sampler = contrastive_divergence(DOWNHILL, num_steps=3)
    negatives = jax.jit(lambda: sampler.draw(KEY, quadratic, QUADRATIC, X_DATA, LABELS, SamplerState())[0])()
    mean = np.broadcast_to(QUADRATIC["mean"], X_DATA.shape)
    np.testing.assert_allclose(negatives.positions, mean + 0.8**3 * (X_DATA - mean), rtol=1e-5, atol=1e-6)


def test_cd_of_many_steps_samples_the_model_and_forgets_the_data():
    # Unadjusted Langevin's stationary variance is exactly (1 / k) / (1 - epsilon k / 2).
    num_chains, step_size, k = 20_000, 0.2, 2.0
    sampler = contrastive_divergence(partial(sgld, step_size=step_size), num_steps=40)  # 0.6^40 = 1e-9
    draw_jit = jax.jit(
        lambda x: sampler.draw(KEY, quadratic, QUADRATIC, x, None, SamplerState())[0].positions
    )
    positions = np.asarray(draw_jit(jnp.full((num_chains, 2), 10.0)), np.float64)
    variance = (1 / k) / (1 - step_size * k / 2)
    error = np.sqrt(variance / num_chains)
    np.testing.assert_allclose(positions.mean(axis=0), QUADRATIC["mean"], atol=5 * error)
    np.testing.assert_allclose(positions.var(axis=0), variance, atol=5 * variance * np.sqrt(2 / num_chains))


def test_cd_says_what_it_misses():
    sampler = contrastive_divergence(LANGEVIN, num_steps=1)
    with pytest.raises(ValueError, match=r"x_data is None.*start"):
        sampler.draw(KEY, quadratic, QUADRATIC, None, None, SamplerState())
    with pytest.raises(ValueError, match=r"labels has shape \(3,\): \(8,\)"):
        sampler.draw(KEY, quadratic, QUADRATIC, X_DATA, LABELS[:3], SamplerState())
    with pytest.raises(TypeError, match="position has dtype int32"):
        sampler.draw(KEY, quadratic, QUADRATIC, X_DATA.astype(jnp.int32), LABELS, SamplerState())


# --- short runs ---


def test_short_run_starts_anew_at_every_draw():
    sampler = short_run(STILL, num_steps=1, initial=INITIAL, num_chains=1000, num_classes=3)
    state = sampler.init(KEY, EXAMPLE)
    draws = jax.jit(jax.vmap(lambda key: sampler.draw(key, quadratic, QUADRATIC, None, None, state)[0]))(
        jax.random.split(KEY, 2)
    )
    first, second = np.asarray(draws.positions)
    for positions in (first, second):
        assert positions.min() >= 2 - 1e-5
        assert positions.max() <= 3 + 1e-5
        assert abs(positions.mean() - 2.5) < 5 * np.sqrt(1 / 12 / positions.size)
    assert np.mean(first == second) < 0.01
    np.testing.assert_array_equal(draws.labels[0], np.arange(1000) % 3)


def test_short_run_gives_each_chain_its_classes_start():
    def by_class(rng_key, label):
        return jax.random.uniform(rng_key, (1,)) + 10.0 * label

    sampler = short_run(STILL, num_steps=1, initial=by_class, num_chains=12, num_classes=4)
    state = sampler.init(KEY, jnp.zeros(1))
    negatives = jax.jit(
        lambda: sampler.draw(KEY, lambda params, x, y: jnp.sum(x**2), None, None, None, state)[0]
    )()
    np.testing.assert_array_equal(np.floor(negatives.positions[:, 0] / 10), negatives.labels)


# --- persistent chains ---

PERSISTENT = persistent(LANGEVIN, num_steps=5, initial=INITIAL, num_chains=6, capacity=30)
init_persistent = partial(PERSISTENT.init, example=EXAMPLE)
draw_persistent = jax.jit(
    lambda key, params, state: PERSISTENT.draw(key, quadratic, params, None, None, state)
)


def test_persistent_chains_are_written_back_where_they_came_from():
    before = init_persistent(KEY)
    negatives, after = draw_persistent(jax.random.key(1), QUADRATIC, before)
    before, after = before.buffer, after.buffer
    moved = np.flatnonzero(after.ages)
    assert len(moved) == 6  # unique slots
    np.testing.assert_array_equal(np.asarray(after.ages)[moved], 5)
    np.testing.assert_array_equal(
        np.unique(np.asarray(after.positions)[moved], axis=0), np.unique(negatives.positions, axis=0)
    )
    others = np.setdiff1d(np.arange(30), moved)
    np.testing.assert_array_equal(np.asarray(after.positions)[others], np.asarray(before.positions)[others])


def test_the_buffer_advances():
    never = persistent(STILL, num_steps=5, initial=INITIAL, num_chains=6, capacity=6, restart_probability=0.0)
    always = persistent(
        STILL, num_steps=5, initial=INITIAL, num_chains=6, capacity=6, restart_probability=1.0
    )
    for sampler, ages in ((never, 20), (always, 5)):

        @jax.jit
        def four_draws(state, sampler=sampler):
            def step(state, key):
                return sampler.draw(key, quadratic, QUADRATIC, None, None, state)[::-1]

            return jax.lax.scan(step, state, jax.random.split(KEY, 4))[0]

        start = sampler.init(KEY, EXAMPLE)
        after = four_draws(start).buffer
        np.testing.assert_array_equal(after.ages, ages)
        # Without restarts a chain is where it was, with them it is somewhere else.
        same = np.isclose(after.positions, start.buffer.positions, atol=1e-5)
        assert np.all(same) if sampler is never else not np.any(same)


def test_a_draw_is_run_labelled_chains_on_the_drawn_slots():
    key = jax.random.key(7)
    state = init_persistent(KEY)
    negatives, after = draw_persistent(key, QUADRATIC, state)

    @jax.jit
    def by_hand(buffer):
        key_draw, key_chain = jax.random.split(key)
        chains = draw(key_draw, buffer, 6, 0.05, INITIAL)
        return chains, run_labelled_chains(
            key_chain, LANGEVIN, quadratic, QUADRATIC, chains.positions, chains.labels, 5
        )

    chains, positions = by_hand(state.buffer)
    np.testing.assert_allclose(negatives.positions, positions, rtol=1e-5, atol=1e-6)
    written = np.asarray(after.buffer.positions)[chains.slots]
    np.testing.assert_allclose(written, positions, rtol=1e-5, atol=1e-6)


# --- where chains start ---

DEFAULTED = {
    "short_run": partial(short_run, num_chains=NUM_CHAINS),
    "persistent": partial(persistent, num_chains=NUM_CHAINS, capacity=20, restart_probability=1.0),
}


@pytest.mark.parametrize("name", DEFAULTED)
def test_chains_start_from_uniform_noise_in_the_shape_of_an_example_by_default(name):
    """In every leaf of a pytree; arrays, or no more than their shapes."""

    def energy(params, x, label):
        return jnp.sum(x["u"] ** 2) + x["v"] ** 2

    sampler = DEFAULTED[name](STILL, num_steps=1)
    example = {"u": jnp.full((2, 3), 7.0), "v": jax.ShapeDtypeStruct((), jnp.float32)}
    state = sampler.init(KEY, example)
    negatives, _ = jax.jit(lambda state: sampler.draw(KEY, energy, None, None, None, state))(state)
    assert jax.tree.map(jnp.shape, negatives.positions) == {"u": (8, 2, 3), "v": (8,)}
    numbers = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(negatives.positions)])
    assert np.all(np.abs(numbers) <= 1 + 1e-5)
    assert len(np.unique(numbers)) == 8 * 7
    assert abs(numbers.mean()) < 5 * np.sqrt(1 / 3 / numbers.size)
    assert numbers.min() < -0.5
    assert numbers.max() > 0.5


@pytest.mark.parametrize("name", ["short_run", "persistent"])
def test_the_initial_distribution_is_state_and_not_part_of_the_program(name):
    """Of another one of the same shape the same program draws, and nobody's arrays are changed."""
    sampler = CONSTRUCTORS[name](STILL, num_steps=1)
    if name == "persistent":
        sampler = persistent(
            STILL, num_steps=1, num_chains=NUM_CHAINS, capacity=20, initial=INITIAL, restart_probability=1.0
        )
    draw_jit = jax.jit(chex.assert_max_traces(sampler.draw, n=1), static_argnums=1)
    state = sampler.init(KEY, EXAMPLE)
    assert jax.tree.leaves(state.initial) == [2.0, 3.0]
    elsewhere = state._replace(initial=UniformInitial(jnp.array(7.0), jnp.array(8.0), shape=(2,)))
    chex.clear_trace_counter()
    for each, low in ((state, 2.0), (elsewhere, 7.0)):
        negatives, after = draw_jit(KEY, quadratic, QUADRATIC, None, None, each)
        assert np.all((negatives.positions > low - 1e-3) & (negatives.positions < low + 1.001))
        chex.assert_trees_all_equal(after.initial, each.initial)


def test_a_plain_function_may_say_where_chains_start():
    """It has no arrays to pass, and compares equal to itself: made again, nothing is compiled again."""

    def initial(rng_key, label):
        return 5.0 + jax.random.uniform(rng_key, (2,))

    make = partial(persistent, STILL, num_steps=1, num_chains=4, capacity=8)
    first, second = (make(initial=initial).init(KEY, EXAMPLE) for _ in range(2))
    assert jax.tree.leaves(first.initial) == []
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert float(first.buffer.positions.min()) >= 5.0


def test_the_first_filling_takes_the_distribution_as_an_argument():
    factors = jax.random.uniform(KEY, (20, 100, 100))
    initial = ClassGaussianInitial(jnp.zeros((20, 100)), factors)
    text = _init_buffer.lower(KEY, initial, capacity=20, num_classes=20, num_strata=1).as_text()
    assert len(text) < 100_000  # as a constant, 200,000 numbers are 1.6 million digits
    chains = persistent(STILL, num_steps=1, num_chains=4, capacity=20, num_classes=20, initial=initial)
    state = chains.init(KEY, jnp.zeros(100))
    by_hand = jax.jit(lambda initial: init_buffer(KEY, initial, 20, num_classes=20))(initial)
    chex.assert_trees_all_equal(state.buffer, by_hand)


def test_what_updates_change_is_the_buffer():
    state = init_persistent(KEY)
    assert chains_of(state) is state.buffer
    assert chains_of({"mine": 3}) == {"mine": 3}


# --- augmented chains ---


def far_away(rng_key, position):
    return position + 100.0 + jax.random.uniform(rng_key, position.shape)


def augmented(augment=far_away, restart_probability=0.5, **options):
    arguments = {"num_steps": 3, "initial": INITIAL, "num_chains": 40, "capacity": 80} | options
    return persistent(STILL, restart_probability=restart_probability, augment=augment, **arguments)


def test_chains_that_live_on_are_augmented_before_their_steps_and_others_are_not():
    sampler = augmented()
    before = sampler.init(KEY, EXAMPLE)
    draw_jit = jax.jit(lambda key, state: sampler.draw(key, quadratic, QUADRATIC, None, None, state))
    negatives, after = draw_jit(jax.random.key(1), before)
    far = np.asarray(negatives.positions) > 50
    assert 10 < np.sum(np.all(far, axis=1)) < 30
    np.testing.assert_array_equal(far[:, 0], far[:, 1])
    # Both kinds lie in the buffer, each in one slot, and started there: displacement counts from that start.
    ages = np.asarray(after.buffer.ages)
    moved = np.asarray(after.buffer.positions)[ages > 0]
    np.testing.assert_array_equal(np.unique(moved, axis=0), np.unique(negatives.positions, axis=0))
    np.testing.assert_allclose(negatives.displacement, 0, atol=1e-4)
    # Each chain has a key of its own, so that their shifts differ.
    assert len(np.unique(np.asarray(negatives.positions)[far])) == np.sum(far)


def test_an_augmentation_that_changes_nothing_leaves_chains_where_they_were():
    sampler = augmented(augment=lambda rng_key, position: position, restart_probability=0.0)
    before = sampler.init(KEY, EXAMPLE)
    draw_jit = jax.jit(lambda state: sampler.draw(KEY, quadratic, QUADRATIC, None, None, state))
    np.testing.assert_allclose(draw_jit(before)[1].buffer.positions, before.buffer.positions, atol=1e-5)


def test_chains_that_all_start_anew_are_never_augmented():
    sampler = augmented(restart_probability=1.0)
    draw_jit = jax.jit(
        lambda: sampler.draw(KEY, quadratic, QUADRATIC, None, None, sampler.init(KEY, EXAMPLE))[0]
    )
    positions = np.asarray(draw_jit().positions)
    assert np.all((positions > 2 - 1e-4) & (positions < 3 + 1e-4))


def test_augmented_chains_keep_their_dtype():
    sampler = augmented(
        augment=lambda rng_key, position: position.astype(jnp.float32) + 1.0,
        initial=lambda rng_key, label: jax.random.uniform(rng_key, (2,), jnp.bfloat16),
    )
    negatives, state = jax.eval_shape(
        lambda key: sampler.draw(key, quadratic, QUADRATIC, None, None, sampler.init(key, EXAMPLE)), KEY
    )
    assert negatives.positions.dtype == state.buffer.positions.dtype == jnp.bfloat16


def test_an_augmentation_that_changes_shapes_is_refused_while_tracing():
    sampler = augmented(augment=lambda rng_key, position: position[:1])
    with pytest.raises(ValueError, match=r"augment returned shapes \(1,\) for a position of shapes \(2,\)"):
        jax.eval_shape(
            lambda key: sampler.draw(key, quadratic, QUADRATIC, None, None, sampler.init(key, EXAMPLE)), KEY
        )


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices; XLA_FLAGS was set by the caller")
def test_devices_augment_their_own_chains():
    split = make_placement(8, num_strata=8).split
    draws = []
    for sharding in (None, split):
        sampler = augmented(num_strata=8, sharding=sharding)
        state = sampler.init(KEY, EXAMPLE)
        if sharding is not None:
            state = state._replace(buffer=jax.device_put(state.buffer, sharding))
        program = jax.jit(
            lambda state, sampler=sampler: sampler.draw(KEY, quadratic, QUADRATIC, None, None, state)
        )
        draws.append(program(state))
        text = program.lower(state).compile().as_text()
        assert not re.search(r" (all-reduce|all-gather|all-to-all|collective-permute)(-start)?\(", text)
    chex.assert_trees_all_close(*draws, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"capacity": 5}, "capacity=5 is smaller than num_chains=8"),
        ({"capacity": 0}, "capacity=0"),
        ({"num_chains": 0}, "num_chains=0"),
        ({"num_chains": 2.5}, "num_chains=2.5"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_strata": 0, "capacity": 16}, "num_strata=0"),
        ({"num_strata": 3, "capacity": 24}, "num_strata=3 must divide.*num_chains=8"),
        ({"num_strata": 8, "capacity": 20}, "num_strata=8 must divide.*capacity=20"),
        ({"restart_probability": 1.1}, "restart_probability=1.1.*between 0.0 and 1.0"),
        ({"restart_probability": -0.1}, "restart_probability=-0.1"),
    ],
)
def test_bad_buffers_are_refused_at_once(arguments, named):
    arguments = {"num_steps": 1, "initial": INITIAL, "num_chains": 8} | arguments
    with pytest.raises(ValueError, match=named):
        persistent(LANGEVIN, **arguments)


def test_a_capacity_that_classes_do_not_divide_is_refused_before_compiling():
    sampler = persistent(LANGEVIN, num_steps=1, initial=INITIAL, num_chains=4, capacity=10, num_classes=3)
    with pytest.raises(ValueError, match=r"capacity=10.*multiple of num_classes=3"):
        jax.eval_shape(sampler.init, KEY, EXAMPLE)


@pytest.mark.parametrize("argument", ["num_chains", "num_classes"])
def test_short_run_needs_counts(argument):
    arguments = {"num_steps": 1, "initial": INITIAL, "num_chains": 8, argument: 0}
    with pytest.raises(ValueError, match=f"{argument}=0"):
        short_run(LANGEVIN, **arguments)


# --- chains, one class each ---


def test_chains_need_one_label_each():
    run = partial(run_labelled_chains, KEY, LANGEVIN, quadratic, QUADRATIC)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\): \(8,\)"):
        run(X_DATA, LABELS[:2], 1)
    with pytest.raises(ValueError, match="positions has leaves"):
        run(jnp.ones((0, 2)), LABELS[:0], 1)
    with pytest.raises(ValueError, match="num_steps=0"):
        run(X_DATA, LABELS, 0)


def test_no_negatives():
    sampler = no_negatives()
    state = sampler.init(KEY, EXAMPLE)
    negatives, after = jax.jit(lambda key, state: sampler.draw(key, None, None, None, None, state))(
        KEY, state
    )
    assert negatives.positions is None
    assert negatives.labels is None
    assert negatives.displacement is None
    assert state == after == SamplerState()
    assert jax.tree.leaves(negatives) == []  # nothing to carry through a scan


# --- learning with them ---


def test_persistent_chains_learn_a_gaussian():
    """A maximum-likelihood fit whose answer is known, up to Langevin's known bias.

    At the optimum the sampler's moments equal the data's: mean m, variance v = (1/k) / (1 - epsilon k / 2).
    The average over the last T updates has the errors of an average over N = T num_chains samples of
    autocorrelation time tau: sqrt(v tau / N) for the mean, and for log k sqrt(2 tau / N) times
    |d log k / d log v| = (1 - epsilon k / 2) / (1 - epsilon k) = 1.1 at most.
    """
    rng = np.random.default_rng(3)
    data = jnp.asarray(rng.normal(size=(500, 2)) * [0.6, 1.5] + [2.0, -1.0], jnp.float32)
    num_chains, step_size, num_updates, kept = 300, 0.1, 1500, 1000

    def energy(params, x):
        return 0.5 * jnp.sum(jnp.exp(params["log_k"]) * (x - params["mean"]) ** 2)

    sampler = persistent(
        partial(sgld, step_size=step_size),
        num_steps=10,
        initial=UniformInitial(-1.0, 1.0, shape=(2,)),
        num_chains=num_chains,
        capacity=num_chains,
        restart_probability=0.0,
    )
    optimizer = optax.sgd(0.1)

    def update(state, key):
        params, optimizer_state, chains = state
        negatives, chains = sampler.draw(
            key, lambda params, x, label: energy(params, x), params, None, None, chains
        )
        gradient = jax.grad(lambda params: contrastive_loss(energy, params, data, negatives.positions)[0])(
            params
        )
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        params = optax.apply_updates(params, updates)
        return (params, optimizer_state, chains), params

    params = {"mean": jnp.zeros(2), "log_k": jnp.zeros(2)}
    start = (params, optimizer.init(params), sampler.init(KEY, EXAMPLE))
    _, path = jax.jit(partial(jax.lax.scan, update))(start, jax.random.split(KEY, num_updates))
    learnt = jax.tree.map(lambda leaf: np.mean(np.asarray(leaf)[-kept:], axis=0), path)

    mean, variance = np.mean(np.asarray(data), axis=0), np.var(np.asarray(data), axis=0)
    # k (1 - epsilon k / 2) = 1 / v
    k = (1 - np.sqrt(1 - 2 * step_size / variance)) / step_size
    kept_by_one_draw = (1 - step_size * k) ** 10
    tau = (1 + kept_by_one_draw) / (1 - kept_by_one_draw)
    num_samples = kept * num_chains
    assert np.all(np.abs(learnt["mean"] - mean) < 5 * np.sqrt(variance * tau / num_samples) + 1e-3)
    slope = (1 - step_size * k / 2) / (1 - step_size * k)
    assert np.all(np.abs(learnt["log_k"] - np.log(k)) < 5 * np.sqrt(2 * tau / num_samples) * slope + 2e-3)


@pytest.mark.parametrize("make", [short_run, persistent])
def test_an_initial_distribution_has_a_gaussian_for_each_class(make):
    initial = ClassGaussianInitial(jnp.zeros((2, 3)), jnp.stack([jnp.eye(3)] * 2))
    make_kernel = partial(sgld, step_size=0.1)
    with pytest.raises(ValueError, match="num_classes=5, but initial has Gaussians of 2 classes"):
        make(make_kernel, num_steps=1, num_chains=5, num_classes=5, initial=initial)
