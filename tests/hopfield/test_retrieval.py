"""Synchronous recall: where it ends, how it says so, and its derivative."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.family import energy, update
from jaxebm.hopfield.memories import classical, dense, exponential, modern, restricted_boltzmann, sparse
from jaxebm.hopfield.mixture import marginalise
from jaxebm.hopfield.pairwise import graded, pairwise
from jaxebm.hopfield.retrieval import retrieve, trajectory
from jaxebm.hopfield.storage import hebb, projection

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def test_the_two_cycle_is_reported_as_one():
    """W = -[[0, 1], [1, 0]] from (1, 1) takes turns with (-1, -1) for ever."""
    found = retrieve(pairwise([[0.0, -1.0], [-1.0, 0.0]]), jnp.array([1.0, 1.0]))
    assert int(found.period) == 2
    assert not bool(found.converged)
    assert int(found.steps) == 2
    states, energies = trajectory(pairwise([[0.0, -1.0], [-1.0, 0.0]]), jnp.array([1.0, 1.0]), 4)
    np.testing.assert_array_equal(states, [[1, 1], [-1, -1], [1, 1], [-1, -1], [1, 1]])
    np.testing.assert_array_equal(energies, [1, 1, 1, 1, 1])


def test_zeroing_the_diagonal_is_what_makes_cycles(random_spins):
    """Random Hebbian nets: with its diagonal none cycles, without it some do, and no period is above 2."""
    patterns = jnp.asarray(random_spins(0, 500, 8, 12))
    queries = jnp.asarray(random_spins(1, 500, 12))
    couplings = jnp.einsum("nki,nkj->nij", patterns, patterns) / 12

    @jax.jit
    @jax.vmap
    def periods(weights, query):
        bare = weights - jnp.diag(jnp.diagonal(weights))
        return retrieve(pairwise(weights), query).period, retrieve(pairwise(bare), query).period

    kept, zeroed = (np.asarray(period) for period in periods(couplings, queries))
    assert np.all(kept == 1)
    assert np.all((zeroed == 1) | (zeroed == 2))
    assert np.sum(zeroed == 2) > 10


def test_the_rule_of_differences_minimises_each_spin_with_the_others_fixed(random_spins):
    """x_i <- argmin E(x_i | the others), by trying both values; a tie keeps the spin. Spins and bits."""
    patterns, x = random_spins(8, 6, 7), jnp.asarray(random_spins(9, 7))
    memories = (
        dense(patterns, 3),
        exponential(patterns),
        restricted_boltzmann(0.7 * patterns, patterns[0], patterns[:, 1]),
        pairwise(hebb(patterns), patterns[1] / 3),
    )

    @jax.jit
    def tried_and_stepped(x):
        def both(memory):
            levels = (-1.0, 1.0) if memory.states == "spins" else (0.0, 1.0)
            state = x if memory.states == "spins" else 0.5 * (x + 1)
            energies = [
                jax.vmap(lambda i, v=v: energy(memory, state.at[i].set(v)))(jnp.arange(7)) for v in levels
            ]
            fall = energies[0] - energies[1]
            tried = jnp.where(fall > 1e-4, levels[1], jnp.where(fall < -1e-4, levels[0], state))
            return tried, state, retrieve(memory, state, rule="difference", max_steps=1).state

        return [both(memory) for memory in memories]

    moves = 0
    for tried, state, stepped in tried_and_stepped(x):
        np.testing.assert_array_equal(stepped, tried)
        moves += np.sum(tried != state)
    assert moves > 5


def test_the_two_rules_of_exponential_recall(random_spins):
    """N = 30, K = 2^15, 3 flips, one step: the published rule recalls .37 and the tangent rule .86.

    100 memories: four standard errors are .19 and .14. The theorem's rate at this radius is .184, below the
    load ln(2) / 2 = .347: the tangent rule holds more than the theorem says, because it holds the spins.
    """
    patterns = random_spins(10, 2**15, 30)
    targets = patterns[:100]
    flipped = np.argsort(np.random.default_rng(11).random(targets.shape), axis=1) < 3
    queries = jnp.asarray(np.where(flipped, -targets, targets))
    memory = exponential(patterns)
    recalled = {
        rule: np.all(jax.vmap(lambda q, rule=rule: update(memory, q, rule=rule))(queries) == targets, axis=1)
        for rule in ("tangent", "difference")
    }
    assert abs(np.mean(recalled["tangent"]) - 0.86) < 0.14
    assert abs(np.mean(recalled["difference"]) - 0.37) < 0.19


def test_projection_is_recalled_by_a_rule_that_leaves_the_spin_out(random_spins):
    """K = 100, D = 200, a tenth flipped: the tangent rule recalls none, that of differences .35."""
    patterns = random_spins(12, 100, 200)
    flipped = np.argsort(np.random.default_rng(13).random(patterns.shape), axis=1) < 20
    queries = jnp.asarray(np.where(flipped, -patterns, patterns))
    memory = pairwise(projection(patterns))

    @jax.jit
    def recall(queries):
        return [
            jax.vmap(lambda q, r=rule: retrieve(memory, q, rule=r))(queries)
            for rule in ("tangent", "difference")
        ]

    held, corrected = (np.mean(np.all(found.state == patterns, axis=1)) for found in recall(queries))
    assert held < 0.03
    assert 0.15 < corrected < 0.55


def test_running_out_of_steps_is_reported():
    memory = modern(jnp.eye(3), beta=2.0)
    found = retrieve(memory, jnp.array([0.9, 0.3, 0.1]), max_steps=1)
    assert int(found.period) == 0
    assert int(found.steps) == 1
    assert not bool(found.converged)
    settled = retrieve(memory, jnp.array([0.9, 0.3, 0.1]), max_steps=1000)
    assert bool(settled.converged)
    assert 1 < int(settled.steps) < 1000


def test_recall_of_a_batch_is_recall_of_each(random_spins):
    patterns = random_spins(2, 4, 40)
    queries = jnp.asarray(
        patterns * np.where(np.random.default_rng(3).random((4, 40)) < 0.1, -1, 1), jnp.float32
    )
    memory = classical(patterns)
    together = jax.vmap(retrieve, (None, 0))(memory, queries)
    for index in range(4):
        alone = retrieve(memory, queries[index])
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=index: leaf[i], together), alone)
    np.testing.assert_array_equal(together.state, patterns)


def test_clamped_coordinates_are_held():
    rng = np.random.default_rng(4)
    patterns = jnp.asarray(rng.standard_normal((5, 6)), jnp.float32)
    query = jnp.asarray(rng.standard_normal(6), jnp.float32)
    clamped = jnp.arange(6) < 3
    found = retrieve(modern(patterns, 1.0), query, clamped=clamped)
    assert bool(found.converged)
    np.testing.assert_array_equal(found.state[:3], query[:3])
    # The free ones rest where the energy has no slope along them.
    slope = jax.grad(energy, argnums=1)(modern(patterns, 1.0), found.state)
    assert float(jnp.max(jnp.abs(slope[3:]))) < 1e-4
    states, energies = trajectory(modern(patterns, 1.0), query, 5, clamped=clamped)
    np.testing.assert_array_equal(states[:, :3], np.broadcast_to(query[:3], (6, 3)))
    assert float(jnp.max(jnp.diff(energies))) < 1e-5


def networks(patterns):
    """Networks of real states, smoothly dependent on their patterns."""
    symmetric = patterns[:4] @ patterns[:4].T / 4
    return {
        "modern": (modern(patterns, 1.5), {}),
        "modern_with_bias": (modern(patterns, 0.8, equal_weights=True, bias=patterns[0] / 4), {}),
        "sparsemax": (sparse(patterns, 0.7), {}),
        "entmax": (sparse(patterns, 0.7, 1.5), {}),
        "graded": (graded(symmetric, bias=patterns[5, :4], gain=0.9), {"step_size": 0.5}),
        "masked": (marginalise(modern(patterns, 1.5), jnp.arange(6) < 4), {}),
    }


@pytest.mark.parametrize("name", ["modern", "modern_with_bias", "sparsemax", "entmax", "graded", "masked"])
def test_the_fixed_point_is_differentiated_implicitly(name):
    """Reverse and forward mode against central differences in a random direction, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        patterns, direction = jnp.asarray(rng.standard_normal((2, 8, 6)))
        target = jnp.asarray(rng.standard_normal(6))

        def loss(patterns):
            memory, settings = networks(patterns)[name]
            query = patterns[3, : memory.dimension]
            found = retrieve(
                memory, jax.lax.stop_gradient(query), tolerance=1e-13, max_steps=3000, **settings
            )
            return found.state @ target[: memory.dimension], found.converged

        @jax.jit
        def derivatives(patterns):
            (_, converged), reverse = jax.value_and_grad(loss, has_aux=True)(patterns)
            forward = jax.jvp(lambda p: loss(p)[0], (patterns,), (direction,))[1]
            step = 1e-6
            quotient = (loss(patterns + step * direction)[0] - loss(patterns - step * direction)[0]) / (
                2 * step
            )
            return converged, jnp.sum(reverse * direction), forward, quotient

        converged, reverse, forward, quotient = derivatives(patterns)
        assert bool(converged)
        assert abs(float(quotient)) > 1e-3
        np.testing.assert_allclose(reverse, quotient, rtol=1e-4)
        np.testing.assert_allclose(forward, quotient, rtol=1e-4)


def test_gradients_reach_clamped_coordinates_and_not_the_free_start():
    rng = np.random.default_rng(6)
    patterns = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    query = jnp.asarray(rng.standard_normal(4), jnp.float32)

    @jax.jit
    def slope(clamped):
        def recalled(query):
            return jnp.sum(retrieve(modern(patterns, 0.5), query, clamped=clamped, max_steps=500).state[2:])

        return jax.grad(recalled)(query)

    gradient = slope(jnp.arange(4) < 2)
    assert float(jnp.min(jnp.abs(gradient[:2]))) > 1e-5
    np.testing.assert_array_equal(gradient[2:], 0)


def test_a_trajectory_is_differentiable_and_descends():
    rng = np.random.default_rng(7)
    patterns = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    query = jnp.asarray(rng.standard_normal(4), jnp.float32)
    states, energies = trajectory(modern(patterns, 1.0), query, 6)
    assert states.shape == (7, 4)
    np.testing.assert_array_equal(states[0], query)
    assert float(jnp.max(jnp.diff(energies))) < 1e-6
    gradient = jax.grad(lambda q: jnp.sum(trajectory(modern(patterns, 1.0), q, 6)[0][-1]))(query)
    assert float(jnp.max(jnp.abs(gradient))) > 0


def test_new_memories_of_one_shape_do_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def recall(memory, query):
        return retrieve(memory, query)

    for seed in range(4):
        rng = np.random.default_rng(seed)
        recall(
            modern(rng.standard_normal((5, 3)), 0.5 + seed), jnp.asarray(rng.standard_normal(3), jnp.float32)
        )


def test_errors_name_what_is_wrong():
    spins, grey = classical([[1, -1, 1]]), modern(jnp.eye(3), 1.0)
    with pytest.raises(ValueError, match=r"query has shape \(2,\): \(3,\)"):
        retrieve(grey, jnp.zeros(2))
    with pytest.raises(ValueError, match="query holds 1 entries of 3 that are no spins, such as"):
        retrieve(spins, jnp.array([1.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="query"):
        retrieve(restricted_boltzmann(jnp.eye(2)), jnp.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match="non-finite"):
        retrieve(grey, jnp.array([1.0, jnp.nan, 1.0]))
    with pytest.raises(ValueError, match="max_steps=0"):
        retrieve(grey, jnp.zeros(3), max_steps=0)
    with pytest.raises(ValueError, match="tolerance=-1"):
        retrieve(grey, jnp.zeros(3), tolerance=-1.0)
    with pytest.raises(ValueError, match=r"step_size=0\.5: spins and bits move by whole steps"):
        retrieve(spins, jnp.ones(3), step_size=0.5)
    with pytest.raises(TypeError, match="clamped has dtype float32"):
        retrieve(grey, jnp.zeros(3), clamped=jnp.ones(3))
    with pytest.raises(ValueError, match=r"clamped has shape \(2,\)"):
        retrieve(grey, jnp.zeros(3), clamped=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="num_steps=0"):
        trajectory(grey, jnp.zeros(3), 0)
    for recall in (retrieve, lambda memory, x, **options: trajectory(memory, x, 2, **options), update):
        with pytest.raises(ValueError, match=r"rule='published'.*'tangent', 'difference'"):
            recall(spins, jnp.ones(3), rule="published")
        with pytest.raises(ValueError, match="rule='difference' of a PatternMemory of real states"):
            recall(grey, jnp.ones(3), rule="difference")
        with pytest.raises(TypeError, match=r"memory is (of type|a) str"):
            recall("modern", jnp.ones(3))
    with pytest.raises(ValueError, match=r"memory.patterns has shape \(1, 1, 3\).*jax.vmap"):
        retrieve(jax.tree.map(lambda leaf: leaf[None], spins), jnp.ones(3))
