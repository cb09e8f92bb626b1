"""Recall at a temperature, against enumeration of all states; seeds are fixed and bounds stated in sigmas."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from jaxebm.hopfield import family
from jaxebm.hopfield.asynchronous import retrieve_asynchronously
from jaxebm.hopfield.family import LEVELS
from jaxebm.hopfield.memories import classical, dense, exponential, modern, restricted_boltzmann
from jaxebm.hopfield.pairwise import graded, pairwise
from jaxebm.hopfield.stochastic import as_pairwise, block_gibbs, gaussian_hidden_energy, glauber
from jaxebm.objectives import contrastive_loss
from jaxebm.samplers import run_chain, run_chains

pytestmark = pytest.mark.usefixtures("cheap_compilation")

FIVE_SIGMA = scipy.stats.norm.sf(5)
DIMENSION = 4
NUM_CHAINS = 8_000
SWEEPS = (1, 2, 20)
"""After how many sweeps the chains are counted; by the last they have forgotten where they began."""


def symmetric_couplings(seed, dimension=DIMENSION):
    """Diagonal included, which spins ignore and bits do not."""
    couplings = np.random.default_rng(seed).normal(size=(dimension, dimension))
    return (couplings + couplings.T) / 4


def skewed_bias(dimension=DIMENSION):
    return np.linspace(-0.6, 0.8, dimension)


PATTERNS = np.array([[1, 1, -1, 1], [1, -1, -1, -1], [1, 1, 1, -1]])
NETWORKS = {
    "couplings": lambda: pairwise(symmetric_couplings(0), skewed_bias()),
    "couplings_of_bits": lambda: pairwise(4 * symmetric_couplings(1), skewed_bias(), states="bits"),
    "classical": lambda: classical(PATTERNS, bias=skewed_bias()),
    "dense": lambda: dense(PATTERNS, 3),
    "exponential": lambda: exponential(PATTERNS, 0.2),
    "restricted_boltzmann": lambda: restricted_boltzmann(
        2 * symmetric_couplings(2)[:3], skewed_bias(), [0.5, -0.5, 0]
    ),
}


def states_of(memory, all_spins):
    low, high = LEVELS[memory.states]
    return (0.5 * (high + low) + 0.5 * (high - low) * all_spins(memory.dimension)).astype(np.float32)


def enumerated(memory, temperature, states):
    """Energies and law of all states, summed in float64."""
    energies = np.asarray(jax.jit(jax.vmap(family.energy, (None, 0)))(memory, states), np.float64)
    return energies, scipy.special.softmax(-energies / temperature)


def one_sweep(energies, temperature, dimension):
    """The transition matrix of Glauber's sweep, from nothing but the energies of the states."""
    index = np.arange(2**dimension)
    sweep = np.eye(2**dimension)
    for i in range(dimension):
        low, high = index & ~(1 << i), index | (1 << i)
        to_high = scipy.special.expit((energies[low] - energies[high]) / temperature)
        visit = np.zeros((2**dimension, 2**dimension))
        visit[index, high] = to_high
        visit[index, low] = 1 - to_high
        sweep = sweep @ visit
    return sweep


def one_block(memory, temperature, states):
    """The transition matrix of block Gibbs: hidden units are integrated out by Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() / (2 * np.pi)
    scale, patterns = np.sqrt(float(memory.beta)), np.asarray(memory.patterns, np.float64)
    hidden = scale * states @ patterns.T
    hidden = hidden[:, None, :] + np.sqrt(temperature) * noise[None, :, :]
    field = scale * hidden @ patterns + np.asarray(memory.bias)
    law = scipy.special.expit(2 * field[:, :, None, :] * states[None, None, :, :] / temperature).prod(-1)
    return np.einsum("q,sqt->st", mass, law)


def visits(kernel_of, memory, temperature, start):
    """How many of the chains are in each state after each number of SWEEPS, and the chains' last infos."""

    @jax.jit
    def run(memory, temperature):
        positions = jnp.broadcast_to(start, (NUM_CHAINS, DIMENSION))
        kernel = kernel_of(memory, temperature)
        low, _ = LEVELS[memory.states]

        def collect(state, info):
            number = jnp.sum((state.position > low) * 2 ** jnp.arange(DIMENSION))
            error = jnp.max(jnp.abs(state.carry - memory.carry(state.position)))
            return number, info.flips, error, info.energy - memory.energy(state.position)

        return run_chains(jax.random.key(3), kernel, positions, max(SWEEPS), collect=collect)[1]

    numbers, flips, carry_errors, energy_errors = run(memory, temperature)
    assert float(jnp.max(carry_errors)) < 1e-4
    assert float(jnp.max(jnp.abs(energy_errors))) < 1e-4
    counts = [np.bincount(np.asarray(numbers)[:, sweep - 1], minlength=2**DIMENSION) for sweep in SWEEPS]
    return counts, np.asarray(numbers), np.asarray(flips)


def assert_law(counts, law):
    """Pearson's chi-square; states that few chains would visit are counted as one."""
    expected = counts.sum() * law
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    assert observed[~keep].sum() == 0
    statistic = np.sum((observed - expected)[keep] ** 2 / expected[keep])
    assert statistic < scipy.stats.chi2.isf(FIVE_SIGMA, max(keep.sum() - 1, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_glaubers_sweeps_have_the_enumerated_law(name, all_spins):
    memory, temperature = NETWORKS[name](), 0.7
    states = states_of(memory, all_spins)
    energies, law = enumerated(memory, temperature, states)
    sweep = one_sweep(energies, temperature, DIMENSION)
    assert law.max() / law.min() > 3  # skewed enough to show a sign error
    np.testing.assert_allclose(law @ sweep, law, atol=1e-12)
    start = int(np.argmin(law))
    counts, numbers, flips = visits(glauber, memory, temperature, states[start])
    for power, count in zip(SWEEPS, counts, strict=True):
        assert_law(count, np.linalg.matrix_power(sweep, power)[start])
    np.testing.assert_allclose(np.linalg.matrix_power(sweep, max(SWEEPS))[start], law, atol=1e-3)
    assert_law(counts[-1], law)
    changed = np.array([number.bit_count() for number in range(2**DIMENSION)])[
        numbers[:, 1:] ^ numbers[:, :-1]
    ]
    np.testing.assert_array_equal(flips[:, 1:], changed)


def test_block_gibbs_has_the_enumerated_law(all_spins):
    memory, temperature = classical(PATTERNS[:2], bias=skewed_bias()), 0.7
    states = all_spins(DIMENSION)
    _, law = enumerated(memory, temperature, states)
    block = one_block(memory, temperature, states.astype(np.float64))
    np.testing.assert_allclose(block.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(law @ block, law, atol=1e-6)
    start = int(np.argmin(law))
    counts, numbers, flips = visits(block_gibbs, memory, temperature, states[start])
    for power, count in zip(SWEEPS, counts, strict=True):
        assert_law(count, np.linalg.matrix_power(block, power)[start])
    np.testing.assert_allclose(np.linalg.matrix_power(block, max(SWEEPS))[start], law, atol=1e-3)
    assert_law(counts[-1], law)
    changed = np.array([number.bit_count() for number in range(2**DIMENSION)])[
        numbers[:, 1:] ^ numbers[:, :-1]
    ]
    np.testing.assert_array_equal(flips[:, 1:], changed)


COLD = {
    "couplings": lambda spins: pairwise(symmetric_couplings(4, 31), np.linspace(-1, 1, 31)),
    "classical": lambda spins: classical(spins(5, 7, 31), bias=np.linspace(-0.2, 0.3, 31)),
    "dense": lambda spins: dense(spins(6, 40, 31), 3),
    "exponential": lambda spins: exponential(spins(7, 40, 31), 0.5),
    "restricted_boltzmann": lambda spins: restricted_boltzmann(symmetric_couplings(8, 31)[:9]),
}


@pytest.mark.parametrize("name", COLD)
def test_at_temperature_zero_it_is_asynchronous_retrieval(name, random_spins):
    memory = COLD[name](random_spins)
    queries = random_spins(9, 16, 31)
    queries = queries if memory.states == "spins" else (queries + 1) / 2

    @jax.jit
    def both(memory, queries):
        found = jax.vmap(retrieve_asynchronously, (None, 0))(memory, queries)
        chains, _ = run_chains(jax.random.key(10), glauber(memory, 1e-20), queries, 25)
        return found, chains.position

    found, positions = both(memory, queries)
    assert bool(jnp.all(found.converged))
    assert int(jnp.max(found.steps)) <= 25
    assert np.mean(positions != queries) > 0.05
    np.testing.assert_array_equal(positions, found.state)


def magnetised(dimension, temperature):
    """The exact mean of m, given m > 0, for one pattern: binomials times exp(D m^2 / 2T), in float64."""
    up = np.arange(dimension // 2 + 1, dimension + 1)
    m = 2 * up / dimension - 1
    log_law = -scipy.special.betaln(up + 1, dimension - up + 1) + 0.5 * dimension * m**2 / temperature
    law = scipy.special.softmax(log_law)
    return law @ m, np.sqrt(law @ m**2 - (law @ m) ** 2)


@pytest.mark.parametrize("make_kernel", [glauber, block_gibbs])
def test_one_pattern_has_the_overlap_of_mean_field(make_kernel, random_spins):
    """m = tanh(m / T), 0.9575 at T = 0.5, up to O(1/D)."""
    dimension, temperature, num_chains = 2000, 0.5, 32
    pattern = random_spins(11, 1, dimension)
    mean, deviation = magnetised(dimension, temperature)
    mean_field = scipy.optimize.brentq(lambda m: m - np.tanh(m / temperature), 0.1, 1)
    assert mean_field == pytest.approx(0.9575, abs=5e-5)
    assert mean == pytest.approx(mean_field, abs=1 / dimension)

    @jax.jit
    def overlaps(memory, temperature):
        positions = jnp.broadcast_to(memory.patterns[0], (num_chains, dimension))
        chains, _ = run_chains(jax.random.key(12), make_kernel(memory, temperature), positions, 15)
        return chains.position @ memory.patterns[0] / dimension

    found = np.mean(overlaps(classical(pattern), temperature))
    assert found == pytest.approx(mean, abs=5 * deviation / np.sqrt(num_chains))


def test_mixtures_of_three_patterns_are_states_too(all_spins):
    """Overlaps 1/2 and E/D = -3/8 where patterns are orthogonal; at T, m = (tanh(3m/T) + tanh(m/T)) / 4."""
    dimension, num_chains, temperature = 800, 32, 0.3
    patterns = np.tile(all_spins(3), (dimension // 8, 1)).T
    memory = classical(patterns)
    mixture = jnp.asarray(np.sign(patterns.sum(0)))
    np.testing.assert_array_equal(patterns @ mixture / dimension, [0.5, 0.5, 0.5])
    assert float(memory.energy(mixture)) / dimension == pytest.approx(-0.375, rel=1e-6)
    np.testing.assert_array_equal(memory.update(mixture), mixture)

    @jax.jit
    def overlaps(memory, temperature):
        positions = jnp.broadcast_to(mixture, (num_chains, dimension))
        chains, _ = run_chains(jax.random.key(13), glauber(memory, temperature), positions, 20)
        return chains.position @ memory.patterns.T / dimension

    def excess(m):
        return m - (np.tanh(3 * m / temperature) + np.tanh(m / temperature)) / 4

    expected = scipy.optimize.brentq(excess, 0.1, 1)
    found = np.asarray(overlaps(memory, temperature), np.float64)
    error = np.std(found, axis=0, ddof=1) / np.sqrt(num_chains)
    assert np.all(np.abs(found.mean(0) - expected) < 5 * error + 4 / dimension)
    assert expected < 0.485  # so that the temperature is seen


@pytest.mark.parametrize("num_memories", [1, 2])
def test_integrating_the_hidden_units_out_gives_the_network(num_memories, all_spins):
    temperature, states = 0.6, all_spins(DIMENSION)
    memory = classical(PATTERNS[:num_memories], bias=skewed_bias())
    axis = np.linspace(-9, 9, 121)  # the trapezoid rule, on a Gaussian, is exact to rounding
    points = np.stack(np.meshgrid(*[axis] * num_memories), -1).reshape(-1, num_memories).astype(np.float32)

    @jax.jit
    def energies(memory):
        joint = jax.vmap(jax.vmap(gaussian_hidden_energy, (None, None, 0)), (None, 0, None))
        optimum = jnp.sqrt(memory.beta) * states @ memory.patterns.T
        least = jax.vmap(gaussian_hidden_energy, (None, 0, 0))(memory, states, optimum)
        return joint(memory, states, points), least, jax.vmap(memory.energy)(states)

    joint, least, energy = (np.asarray(values, np.float64) for values in energies(memory))
    np.testing.assert_allclose(least, energy, atol=1e-5)
    assert np.all(joint >= energy[:, None] - 1e-5)
    integral = np.exp(-joint / temperature).sum(1) * (axis[1] - axis[0]) ** num_memories
    expected = (2 * np.pi * temperature) ** (num_memories / 2) * np.exp(-energy / temperature)
    np.testing.assert_allclose(integral, expected, rtol=1e-4)


@pytest.mark.parametrize("bias", [None, skewed_bias()], ids=["no_bias", "bias"])
def test_the_classical_network_is_a_boltzmann_machine(bias, all_spins):
    memory, states = classical(PATTERNS, bias=bias), all_spins(DIMENSION)
    both = [jax.vmap(network.energy)(states) for network in (memory, as_pairwise(memory))]
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


def test_boltzmann_machine_learning_follows_the_likelihood(all_spins):
    """Contrastive gradients: exact with the enumerated law, and within 5 sigma with Glauber's samples."""
    memory = pairwise(symmetric_couplings(14), skewed_bias())
    states = jnp.asarray(all_spins(DIMENSION))
    data = states[np.random.default_rng(15).choice(16, 50, p=np.arange(16) / 120)]
    _, law = enumerated(memory, 1.0, states)

    @jax.jit
    def gradients(memory):
        def negative_log_likelihood(memory):
            energies = jax.vmap(family.energy, (None, 0))(memory, states)
            return jnp.mean(jax.vmap(family.energy, (None, 0))(memory, data)) + jax.nn.logsumexp(-energies)

        def contrast(memory, samples):
            return contrastive_loss(family.energy, memory, data, samples)[0]

        chains, _ = run_chains(jax.random.key(16), glauber(memory), jnp.ones((NUM_CHAINS, DIMENSION)), 20)
        one_state = jax.vmap(jax.grad(contrast), (None, 0))(memory, states[:, None, :])
        return (
            jax.grad(negative_log_likelihood)(memory),
            one_state,
            jax.grad(contrast)(memory, chains.position),
        )

    exact, one_state, sampled = (
        np.concatenate([gradient.weights, gradient.bias[..., None, :]], axis=-2)
        for gradient in gradients(memory)
    )
    assert np.max(np.abs(exact)) > 0.1
    np.testing.assert_allclose(np.einsum("s,sij->ij", law, one_state), exact, atol=1e-5)
    variance = np.einsum("s,sij->ij", law, (one_state - exact) ** 2)
    error = np.sqrt(variance / NUM_CHAINS)
    assert np.all(np.abs(sampled - exact) <= 5 * error + 1e-5)


@pytest.mark.parametrize("make_kernel", [glauber, block_gibbs])
def test_new_memories_and_temperatures_run_the_same_program(make_kernel):
    def run(rng_key, memory, temperature, position):
        return run_chain(rng_key, make_kernel(memory, temperature), position, 3)[0].position

    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(run, n=1))
    position = jnp.ones(DIMENSION)
    hot = run(jax.random.key(0), classical(PATTERNS), 1e6, position)
    assert bool(jnp.any(hot != position))
    patterns = jnp.ones((3, DIMENSION))
    np.testing.assert_array_equal(run(jax.random.key(0), classical(patterns), 1e-6, position), position)
    np.testing.assert_array_equal(run(jax.random.key(0), classical(-patterns), 1e-6, position), position)


@pytest.mark.parametrize("make_kernel", [glauber, block_gibbs])
@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_the_temperature_must_be_positive(make_kernel, temperature):
    with pytest.raises(ValueError, match="temperature"):
        make_kernel(classical(PATTERNS), temperature)


@pytest.mark.parametrize("make_kernel", [glauber, block_gibbs])
def test_real_states_and_positions_of_another_shape_are_refused(make_kernel):
    for memory in (modern(np.eye(3), 1.0), graded(np.eye(3))):
        with pytest.raises(ValueError, match="of real states: spins or bits are needed"):
            make_kernel(memory)
    kernel = make_kernel(classical(PATTERNS))
    with pytest.raises(ValueError, match=r"position has shape \(5,\): \(4,\)"):
        kernel.init(jnp.ones(5))


@pytest.mark.parametrize("memory", [dense(PATTERNS, 3), pairwise(np.eye(4))], ids=["dense", "couplings"])
def test_hidden_units_are_those_of_the_classical_network_alone(memory):
    for use in (
        block_gibbs,
        as_pairwise,
        lambda memory: gaussian_hidden_energy(memory, jnp.ones(4), jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match="a classical network, kept as patterns, is needed"):
            use(memory)


def test_the_hidden_energy_checks_its_shapes():
    memory = classical(PATTERNS)
    with pytest.raises(ValueError, match=r"x has shape \(3,\): \(4,\)"):
        gaussian_hidden_energy(memory, jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"hidden has shape \(4,\): \(3,\)"):
        gaussian_hidden_energy(memory, jnp.ones(4), jnp.ones(4))
