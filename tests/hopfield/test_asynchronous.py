"""One spin at a time: exactly the plain loop, and never uphill."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.asynchronous import retrieve_asynchronously
from jaxebm.hopfield.family import energy
from jaxebm.hopfield.memories import classical, dense, exponential, modern, restricted_boltzmann
from jaxebm.hopfield.pairwise import PairwiseMemory, pairwise
from jaxebm.hopfield.storage import hebb

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def plain_walk(energy_of, x, low, order, max_sweeps=100, free=None):
    """Visits every coordinate in order and puts it where the energy, computed afresh, is lower."""
    x = np.array(x, np.float64)
    free = np.ones(x.size, bool) if free is None else free
    energies, sweeps = [energy_of(x)], 0
    for _ in range(max_sweeps):
        moved = False
        for index in order:
            if not free[index]:
                continue
            sides = []
            for level in (low, 1.0):
                side = x.copy()
                side[index] = level
                sides.append(energy_of(side))
            wanted = x[index] if abs(sides[0] - sides[1]) < 1e-12 else (low, 1.0)[int(sides[1] < sides[0])]
            moved |= wanted != x[index]
            x[index] = wanted
            energies.append(energy_of(x))
        if not moved:
            break
        sweeps += 1
    return x, sweeps, np.array(energies)


def random_pairwise(seed, dimension, states):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((dimension, dimension))
    weights = (weights + weights.T).astype(np.float32)
    bias = rng.standard_normal(dimension).astype(np.float32)
    low = -1.0 if states == "spins" else 0.0
    query = np.where(rng.random(dimension) < 0.5, low, 1.0).astype(np.float32)
    return weights, bias, query, rng.permutation(dimension)


@pytest.mark.parametrize("states", ["spins", "bits"])
def test_couplings_give_the_plain_walk(states):
    """100 random networks with any diagonal, each in its own order: the same state after as many sweeps."""
    parts = [random_pairwise(seed, 12, states) for seed in range(100)]
    weights, bias, queries, orders = (np.stack(column) for column in zip(*parts, strict=True))
    memories = PairwiseMemory(jnp.asarray(weights), jnp.asarray(bias), states)

    def recall(memory, query, order):
        return retrieve_asynchronously(memory, query, order=order)

    found = jax.jit(jax.vmap(recall))(memories, jnp.asarray(queries), jnp.asarray(orders))
    assert bool(jnp.all(found.converged))
    low = -1.0 if states == "spins" else 0.0
    for index in range(100):
        w, b = weights[index].astype(np.float64), bias[index].astype(np.float64)
        expected, sweeps, energies = plain_walk(
            lambda x, w=w, b=b: -0.5 * x @ w @ x - b @ x, queries[index], low, orders[index]
        )
        np.testing.assert_array_equal(found.state[index], expected)
        assert int(found.steps[index]) == sweeps
        assert np.max(np.diff(energies)) <= 1e-9


MEMORIES = {
    "classical": lambda patterns: classical(patterns, bias=0.1 * patterns[0]),
    "dense": lambda patterns: dense(patterns, 3),
    "dense_odd_unrectified": lambda patterns: dense(patterns, 3, rectified=False),
    "exponential": lambda patterns: exponential(patterns, 0.3),
    "restricted_boltzmann": lambda patterns: restricted_boltzmann(0.7 * patterns, 0.2 * patterns[1]),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_patterns_give_the_plain_walk(name, random_spins):
    patterns = random_spins(1, 6, 12)
    memory = MEMORIES[name](patterns)
    low = -1.0 if memory.states == "spins" else 0.0
    queries = np.maximum(random_spins(2, 20, 12), low)
    orders = np.stack([np.random.default_rng(seed).permutation(12) for seed in range(20)])
    found = jax.jit(jax.vmap(lambda query, order: retrieve_asynchronously(memory, query, order=order)))(
        jnp.asarray(queries), jnp.asarray(orders)
    )
    assert bool(jnp.all(found.converged))
    states = np.where((np.arange(2**12)[:, None] >> np.arange(12)) & 1, 1.0, low).astype(np.float32)
    with jax.enable_x64(True):
        exact = MEMORIES[name](patterns.astype(np.float64))
        energies = np.asarray(jax.jit(jax.vmap(energy, (None, 0)))(exact, jnp.asarray(states, jnp.float64)))

    def look_up(x):
        return energies[int(np.sum((x > 0) << np.arange(12)))]

    for index in range(20):
        expected, sweeps, path = plain_walk(look_up, queries[index], low, orders[index])
        np.testing.assert_array_equal(found.state[index], expected)
        assert int(found.steps[index]) == sweeps
        assert np.max(np.diff(path)) <= 1e-6


def test_it_always_converges_and_never_climbs(random_spins):
    """2,000 random symmetric networks with a non-negative diagonal, after 0, 1, 2 .. sweeps."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((2000, 16, 16)).astype(np.float32)
    weights = weights + np.swapaxes(weights, 1, 2)
    weights[:, np.arange(16), np.arange(16)] = np.abs(weights[:, np.arange(16), np.arange(16)])
    memories = PairwiseMemory(jnp.asarray(weights), jnp.zeros((2000, 16)))
    queries = jnp.asarray(random_spins(4, 2000, 16))

    @jax.jit
    @jax.vmap
    def path(memory, query):
        states = [query] + [
            retrieve_asynchronously(memory, query, max_sweeps=sweeps).state for sweeps in (1, 2, 3)
        ]
        last = retrieve_asynchronously(memory, query)
        return jnp.stack([energy(memory, x) for x in [*states, last.state]]), last.converged

    energies, converged = path(memories, queries)
    assert bool(jnp.all(converged))
    assert float(jnp.max(jnp.diff(energies, axis=1))) < 1e-3  # energies of about 100 in float32
    assert np.mean(np.asarray(energies[:, -1] < energies[:, 0] - 1)) > 0.99


def test_couplings_and_patterns_recall_alike(random_spins):
    """Hebb's rule as couplings and as patterns: two algorithms, one answer, ties included (K D is even)."""
    patterns = random_spins(5, 4, 32)
    queries = jnp.asarray(random_spins(6, 50, 32))
    by_patterns = jax.jit(jax.vmap(retrieve_asynchronously, (None, 0)))(classical(patterns), queries)
    by_couplings = jax.jit(jax.vmap(retrieve_asynchronously, (None, 0)))(pairwise(hebb(patterns)), queries)
    chex.assert_trees_all_equal(by_patterns, by_couplings)


@pytest.mark.parametrize("as_couplings", [True, False])
def test_clamped_spins_are_held_and_unknown_ones_resolved(as_couplings, random_spins):
    patterns = random_spins(7, 2, 40)
    memory = pairwise(hebb(patterns)) if as_couplings else classical(patterns)
    query = patterns[0].copy()
    query[:15] = 0  # unknown
    found = retrieve_asynchronously(memory, query)
    np.testing.assert_array_equal(found.state, patterns[0])

    wrong = patterns[0].copy()
    wrong[:4] *= -1
    held = retrieve_asynchronously(memory, wrong, clamped=jnp.arange(40) < 4)
    np.testing.assert_array_equal(held.state[:4], wrong[:4])
    np.testing.assert_array_equal(held.state[4:], patterns[0][4:])
    freed = retrieve_asynchronously(memory, wrong)
    np.testing.assert_array_equal(freed.state, patterns[0])
    assert int(freed.steps) == 1


def test_running_out_of_sweeps_is_reported(random_spins):
    memory = pairwise(hebb(random_spins(8, 30, 60)))
    query = random_spins(9, 60)
    assert bool(retrieve_asynchronously(memory, query).converged)
    cut = retrieve_asynchronously(memory, query, max_sweeps=1)
    assert int(cut.steps) == 1
    assert not bool(cut.converged)
    weights = np.asarray(memory.weights, np.float64)
    once, _, _ = plain_walk(lambda x: -0.5 * x @ weights @ x, query, -1.0, np.arange(60), max_sweeps=1)
    np.testing.assert_array_equal(cut.state, once)


def test_new_memories_of_one_shape_do_not_retrace(random_spins):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def recall(memory, query):
        return retrieve_asynchronously(memory, query)

    for seed in range(3):
        recall(pairwise(hebb(random_spins(seed, 3, 20))), jnp.asarray(random_spins(10 + seed, 20)))


@pytest.mark.slow
def test_the_measured_overlap_curve_at_a_thousand_spins(random_spins):
    """The reference's curve: N = 1000, asynchronous, started at the pattern."""
    reference = {0.10: 0.998, 0.12: 0.991, 0.138: 0.952, 0.15: 0.900, 0.16: 0.765, 0.18: 0.482, 0.20: 0.369}
    recall = jax.jit(jax.vmap(retrieve_asynchronously, (None, 0)))
    nets, starts = 24, 20
    for load, expected in reference.items():
        means = []
        for seed in range(nets):
            patterns = random_spins(1000 + seed, round(1000 * load), 1000)
            found = recall(pairwise(hebb(patterns)), jnp.asarray(patterns[:starts]))
            assert bool(jnp.all(found.converged))
            means.append(float(jnp.mean(jnp.sum(found.state * patterns[:starts], axis=1))) / 1000)
        mean, spread = np.mean(means), np.std(means, ddof=1)
        # The reference's error is not stated; it is taken to be as great as ours: sqrt(2) for the difference.
        error = np.sqrt(2) * spread / np.sqrt(nets)
        assert abs(mean - expected) < 3 * error + 5e-4, (load, mean, error, expected)


def test_errors_name_what_is_wrong():
    spins = classical([[1, -1, 1]])
    with pytest.raises(ValueError, match="real states"):
        retrieve_asynchronously(modern(jnp.eye(3), 1.0), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"order must hold each of 0\.\.2 once"):
        retrieve_asynchronously(spins, jnp.ones(3), order=[0, 0, 1])
    with pytest.raises(ValueError, match=r"order has shape \(2,\)"):
        retrieve_asynchronously(spins, jnp.ones(3), order=[0, 1])
    with pytest.raises(ValueError, match="max_sweeps=0"):
        retrieve_asynchronously(spins, jnp.ones(3), max_sweeps=0)
    with pytest.raises(ValueError, match="no spins"):
        retrieve_asynchronously(spins, jnp.array([0.3, 1.0, 1.0]))
