"""The one formula: its energy, its step, and that the step never raises the energy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.family import PatternMemory, energy, settle, update
from jaxebm.hopfield.lagrangians import Entmax, Exponential, LogSumRelu, Power, Quadratic, Softmax, Softplus
from jaxebm.hopfield.memories import classical, dense, exponential, modern, sparse

pytestmark = pytest.mark.usefixtures("cheap_compilation")

CASES = {
    "classical": (Quadratic(), "spins", "dot", True),
    "dense_3": (Power(3), "spins", "dot", False),
    "dense_4_unrectified": (Power(4, rectified=False), "spins", "dot", False),
    "exponential": (Exponential(), "spins", "dot", False),
    "modern": (Softmax(), "reals", "dot", True),
    "sparsemax": (Entmax(2.0), "reals", "dot", True),
    "entmax_1.5": (Entmax(1.5), "reals", "dot", True),
    "entmax_1.3": (Entmax(1.3), "reals", "dot", True),
    "epanechnikov": (LogSumRelu(1e-3), "reals", "distance", False),
    "epanechnikov_no_floor": (LogSumRelu(0.0), "reals", "distance", False),
    "kernel_softmax": (Softmax(), "reals", "distance", True),
    "restricted_boltzmann": (Softplus(), "bits", "dot", True),
    "classical_bits": (Quadratic(), "bits", "dot", True),
}


def random_networks(name: str, seed: int, num_networks: int, num_memories: int = 12, dimension: int = 16):
    """A batch of random memories of one family, and a random state for each."""
    lagrangian, states, similarity, with_bias = CASES[name]
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal((num_networks, *shape)).astype(np.float32)

    patterns = normal(num_memories, dimension)
    x = normal(dimension)
    if states == "spins":
        patterns, x = np.sign(patterns), np.sign(x)
    elif states == "bits":
        x = (x > 0).astype(np.float32)
    scale = 1 / dimension if states != "reals" else 1.0
    beta = (scale * rng.uniform(0.1, 3.0, num_networks)).astype(np.float32)
    if similarity == "distance":
        beta = rng.uniform(0.02, 0.3, num_networks).astype(np.float32)  # so that a few memories are near
    bias = 0.3 * normal(dimension) if with_bias else None
    memories = PatternMemory(patterns, beta, bias, 0.3 * normal(num_memories), lagrangian, states, similarity)
    return jax.tree.map(jnp.asarray, memories), jnp.asarray(x)


def plain_lagrangian(lagrangian, z: np.ndarray) -> float:
    match lagrangian:
        case Quadratic():
            return 0.5 * np.sum(z**2)
        case Power(degree, rectified):
            return np.sum((np.maximum(z, 0) if rectified else z) ** degree) / degree
        case Exponential():
            return np.sum(np.exp(z))
        case Softmax():
            return np.log(np.mean(np.exp(z)))
        case Softplus():
            return np.sum(np.log1p(np.exp(z)))
        case LogSumRelu(epsilon):
            with np.errstate(divide="ignore"):  # no memory is near
                return np.log(epsilon + np.sum(np.maximum(1 + z, 0)))
        case Entmax(alpha):
            # Maximise p.z - Omega(p) by bisection on the multiplier of sum p = 1.
            def weights(u):
                return np.maximum((alpha - 1) * (z - u), 0) ** (1 / (alpha - 1))

            low, high = z.min() - 1 / (alpha - 1), z.max()
            for _ in range(100):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if weights(middle).sum() > 1 else (low, middle)
            p, uniform = weights(low), np.full(z.size, 1 / z.size)

            def negentropy(p):
                return (np.sum(p**alpha) - 1) / (alpha * (alpha - 1))

            return p @ z - negentropy(p) + negentropy(uniform)
    raise AssertionError(lagrangian)


def plain_energy(memory: PatternMemory, x: np.ndarray) -> float:
    """The formula once more, in float64 and without vector notation."""
    xi, b, c, beta = (
        None if leaf is None else np.asarray(leaf, np.float64)
        for leaf in (memory.patterns, memory.bias, memory.offsets, memory.beta)
    )
    x = np.asarray(x, np.float64)
    similarity = np.array(
        [
            (row @ x if memory.similarity == "dot" else -0.5 * np.sum((x - row) ** 2)) + c[index]
            for index, row in enumerate(xi)
        ]
    )
    value = -plain_lagrangian(memory.lagrangian, beta * similarity) / beta
    if memory.states == "reals" and memory.similarity == "dot":
        value += 0.5 * x @ x
    return value - (0.0 if b is None else b @ x)


@pytest.mark.parametrize("name", CASES)
def test_the_energy_is_the_formula(name):
    memories, states = random_networks(name, seed=1, num_networks=5)
    found = jax.jit(jax.vmap(energy))(memories, states)
    for index in range(5):
        memory = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], memories)
        expected = plain_energy(memory, np.asarray(states[index]))
        np.testing.assert_allclose(found[index], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_synchronous_steps_never_raise_the_energy(name):
    """2,000 random networks of each family, 8 steps: concave-convex steps descend."""
    memories, states = random_networks(name, seed=2, num_networks=2000)

    @jax.jit
    def descend(memories, states):
        def step(x, _):
            return jax.vmap(update)(memories, x), jax.vmap(energy)(memories, x)

        last, energies = jax.lax.scan(step, states, length=8)
        return energies, last

    energies, last = descend(memories, states)
    chex.assert_tree_all_finite(last)
    energies = np.asarray(energies)
    reachable = np.isfinite(energies[0])  # without a floor, a state far from all memories has infinite energy
    assert reachable.mean() > 0.3
    energies = energies[:, reachable]
    # float32: an energy is a sum of some K + D terms of its own size.
    rise = np.max(np.diff(energies, axis=0) / np.maximum(np.abs(energies[:-1]), 1.0))
    assert rise < 1e-5
    assert np.mean(energies[-1] < energies[0] - 1e-3 * np.abs(energies[0])) > 0.3  # and they do move


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] == "reals"])
def test_the_step_moves_against_the_gradient_and_rests_where_it_vanishes(name):
    memories, states = random_networks(name, seed=3, num_networks=50)

    @jax.jit
    def settle_down(memories, states):
        moved = jax.lax.fori_loop(0, 300, lambda _, x: jax.vmap(update)(memories, x), states)
        further = jax.vmap(update)(memories, moved)
        return jnp.max(jnp.abs(further - moved), axis=1), jax.vmap(PatternMemory.residual)(memories, moved)

    moves, slopes = settle_down(memories, states)
    at_rest = np.asarray(moves) < 1e-5
    assert at_rest.mean() > 0.9
    assert np.max(np.abs(np.asarray(slopes)[at_rest])) < 2e-4


@pytest.mark.parametrize("states", ["spins", "bits"])
def test_discrete_steps_minimise_the_tangent_bound(states, random_spins):
    """Of all 2^D states, the step takes one that minimises -(b + Xi^T w).x."""
    lagrangian = Quadratic() if states == "spins" else Softplus()
    rng = np.random.default_rng(4)
    dimension = 6
    patterns = random_spins(5, 4, dimension)
    memory = PatternMemory(
        jnp.asarray(patterns),
        jnp.asarray(0.4),
        jnp.asarray(rng.standard_normal(dimension), jnp.float32),
        jnp.zeros(4),
        lagrangian,
        states,
    )
    low = -1.0 if states == "spins" else 0.0
    bits = (np.arange(2**dimension)[:, None] >> np.arange(dimension)) & 1
    every = np.where(bits, 1.0, low)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def slope_and_choice(memory, x):
        return memory.bias + memory.weights(x) @ memory.patterns, update(memory, x)

    for slope, chosen in zip(*slope_and_choice(memory, jnp.asarray(every, jnp.float32)), strict=True):
        slope, chosen = np.asarray(slope), np.asarray(chosen)
        assert -slope @ chosen == pytest.approx(np.min(-every @ slope), abs=1e-5)


def test_a_tie_keeps_the_state():
    memory = classical([[1, 1], [1, -1]])
    x = jnp.array([1.0, -1.0])
    silent = PatternMemory(jnp.zeros((1, 2)), jnp.asarray(1.0), None, None, Quadratic(), "spins")
    np.testing.assert_array_equal(update(silent, x), x)
    np.testing.assert_array_equal(settle("bits", jnp.array([0.0, 1.0]), jnp.zeros(2)), [0.0, 1.0])
    np.testing.assert_array_equal(update(memory, x), x)


def test_steep_interactions_do_not_overflow(random_spins):
    """Overlaps of 2,000: e^2000 and 2000^12 are beyond float32, but the sign of the step is not."""
    patterns = random_spins(6, 20, 2000)
    noisy = patterns[3] * np.where(np.random.default_rng(7).random(2000) < 0.3, -1, 1).astype(np.float32)
    for memory in (exponential(patterns), dense(patterns, 12), dense(patterns, 30)):
        np.testing.assert_array_equal(update(memory, jnp.asarray(noisy)), patterns[3])
        assert np.isfinite(energy(memory, jnp.asarray(noisy)))


def test_a_small_overlap_still_points_the_way(random_spins):
    """exp(xi.x - D) underflows for every memory here; the step must not take that for a tie."""
    patterns = random_spins(8, 5, 400)
    x = jnp.asarray(random_spins(9, 400))
    moved = update(exponential(patterns), x)
    nearest = int(np.argmax(patterns @ np.asarray(x)))
    np.testing.assert_array_equal(moved, patterns[nearest])


def test_the_modern_step_is_attention():
    rng = np.random.default_rng(10)
    keys = jnp.asarray(rng.standard_normal((7, 8)), jnp.float32)
    queries = jnp.asarray(rng.standard_normal((3, 8)), jnp.float32)
    recalled = jax.vmap(update, (None, 0))(modern(keys, beta=8**-0.5), queries)
    attention = jax.nn.dot_product_attention(queries[:, None, :], keys[:, None, :], keys[:, None, :])[:, 0]
    np.testing.assert_allclose(recalled, attention, atol=1e-6)


def test_memories_are_parameters():
    """Gradients reach patterns, beta, offsets; a memory is a pytree that jit takes without retracing."""
    rng = np.random.default_rng(11)
    x = jnp.asarray(rng.standard_normal(6), jnp.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def slope(memory, x):
        return jax.grad(energy)(memory, x)

    for seed in range(3):
        patterns = np.random.default_rng(seed).standard_normal((4, 6))
        gradient = slope(modern(patterns, beta=1.0 + seed), x)
        chex.assert_tree_all_finite(gradient)
        assert float(jnp.abs(gradient.patterns).max()) > 0
        assert float(jnp.abs(gradient.beta)) > 0


def test_energies_have_exact_gradients():
    rng = np.random.default_rng(12)
    with jax.enable_x64(True):
        patterns = jnp.asarray(rng.standard_normal((5, 4)))
        x = jnp.asarray(rng.standard_normal(4))
        for memory in (modern(patterns, 1.3), sparse(patterns, 0.8, 1.5), sparse(patterns, 0.8, 2.0)):
            jax.test_util.check_grads(jax.jit(partial(energy, memory)), (x,), order=1, atol=1e-6)


def test_errors_name_what_is_wrong():
    memory = modern(jnp.eye(3), 1.0)
    with pytest.raises(ValueError, match=r"x has shape \(2,\)"):
        energy(memory, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\)"):
        update(memory, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="bias is given with Power"):
        PatternMemory(jnp.eye(2), jnp.ones(()), jnp.zeros(2), None, Power(3), "spins")
    with pytest.raises(ValueError, match="states='spins'"):
        PatternMemory(jnp.eye(2), jnp.ones(()), None, None, Softmax(), "spins", "distance")
