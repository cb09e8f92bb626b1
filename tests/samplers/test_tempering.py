"""Parallel tempering: swaps by enumeration, rates and round trips in closed form, forty modes."""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betainc
from scipy.stats import chi2, norm

from jaxebm.energies.analytic import gaussian_mixture
from jaxebm.hopfield.memories import classical
from jaxebm.hopfield.stochastic import glauber
from jaxebm.samplers.chains import run_chain, run_chains
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.metropolis import mala
from jaxebm.samplers.tempering import check_ladder, parallel_tempering
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")


class State(NamedTuple):
    position: object


def stay(target):
    """The kernel that leaves everything where it is, so that only the swaps are seen."""
    del target
    return Kernel(lambda position, rng_key=None: State(position), lambda rng_key, state: (state, None))


ENERGIES = np.array([0.0, 1.3, -0.4, 2.0])
REFERENCE = np.array([0.5, -0.2, 0.1, 0.0])
LADDER = np.array([0.1, 0.4, 1.0])


def lookup(table):
    return lambda x: jnp.asarray(table, jnp.float32)[x]


def rung_laws(ladder, reference):
    log_laws = -(ladder[:, None] * ENERGIES + (1 - ladder[:, None]) * reference)
    laws = np.exp(log_laws)
    return laws / laws.sum(axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnames="with_reference")
def swap_once(rng_keys, joint, parity, with_reference):
    reference = lookup(REFERENCE) if with_reference else None
    kernel = parallel_tempering(lookup(ENERGIES), stay, LADDER, reference=reference)

    def one(rng_key, position):
        state, info = kernel.step(rng_key, kernel.init(position)._replace(parity=parity))
        return state.position, info.swap_acceptance, info.energy

    return jax.vmap(jax.vmap(one, (0, None)), (None, 0))(rng_keys, joint)


@pytest.mark.parametrize("with_reference", [False, True])
def test_swaps_keep_detailed_balance_by_enumeration(with_reference):
    num_draws, size = 2_000, ENERGIES.size
    joint = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    laws = rung_laws(LADDER, REFERENCE if with_reference else np.zeros(size))
    stationary = laws[0][joint[:, 0]] * laws[1][joint[:, 1]] * laws[2][joint[:, 2]]
    rng_keys = jax.random.split(jax.random.key(0), num_draws)
    for parity in (0, 1):
        ends, acceptance, energy = swap_once(rng_keys, jnp.asarray(joint), parity, with_reference)
        exchanged = joint.copy()
        exchanged[:, [parity, parity + 1]] = joint[:, [parity + 1, parity]]
        number = exchanged @ np.array([size**2, size, 1])
        probability = np.asarray(acceptance, np.float64)[:, 0, parity]
        # pi(s) P(s, s') = pi(s') P(s', s), with s' the exchange of s.
        flow = stationary * probability
        np.testing.assert_allclose(flow, flow[number], rtol=2e-6)
        # Exchanges happen as often as the probability says, and nothing else ever happens.
        ends = np.asarray(ends)
        moved = np.all(ends == exchanged[:, None], axis=-1)
        assert np.all(moved | np.all(ends == joint[:, None], axis=-1))
        differ = np.any(exchanged != joint, axis=1)
        error = np.sqrt(probability * (1 - probability) / num_draws)
        frequency = moved.mean(axis=1)
        assert np.all(np.abs(frequency - probability)[differ] <= 4.5 * error[differ] + 1e-6)
        np.testing.assert_allclose(energy, ENERGIES[ends], rtol=1e-6)


def uniform_metropolis(target):
    """Metropolis on the four states, the proposal uniform."""

    def step(rng_key, state):
        propose_key, accept_key = jax.random.split(rng_key)
        proposal = jax.random.randint(propose_key, (), 0, ENERGIES.size)
        accept = jax.random.uniform(accept_key) < jnp.exp(target(state.position) - target(proposal))
        return State(jnp.where(accept, proposal, state.position)), None

    return Kernel(lambda position, rng_key=None: State(position), step)


def test_the_joint_law_is_the_product_of_the_rungs():
    kernel = parallel_tempering(
        lookup(ENERGIES), uniform_metropolis, LADDER, reference=lookup(REFERENCE), num_steps_per_swap=2
    )
    num_chains = 10_000
    run = jax.jit(functools.partial(run_chains, kernel=kernel, num_steps=25))
    states, _ = run(jax.random.key(1), positions=jnp.zeros((num_chains, 3), int))
    x = np.asarray(states.position)
    counts = np.bincount(x @ np.array([16, 4, 1]), minlength=64)
    laws = rung_laws(LADDER, REFERENCE)
    expected = num_chains * np.einsum("i,j,k->ijk", *laws).ravel()
    assert np.sum((counts - expected) ** 2 / expected) < chi2.ppf(1 - 1e-5, 63)


# Gaussians, redrawn exactly at each step: swap rates and round trips are then known.

SHAPE = 2.0
"""x has four coordinates, so b |x|^2 / 2 is a Gamma(2) variable on each rung."""
GAUSSIAN_LADDER = np.array([0.1, 0.25, 0.5, 1.0])


def gaussian(x):
    return 0.5 * jnp.sum(x["a"] ** 2) + 0.5 * jnp.sum(x["b"] ** 2)


def redraw(target, scale):
    del target

    def step(rng_key, state):
        normal = scale * jax.random.normal(rng_key, (4,))
        return State({"a": normal[:1], "b": normal[1:].reshape(3, 1)}), None

    return Kernel(lambda position, rng_key=None: State(position), step)


def exact_swap_rates(ladder):
    """2 P(G / (G + G') < b / (b + b')), G and G' of Gamma(SHAPE): their ratio is a Beta variable."""
    return 2 * betainc(SHAPE, SHAPE, ladder[:-1] / (ladder[:-1] + ladder[1:]))


@pytest.fixture(scope="module")
def gaussian_run():
    kernel = parallel_tempering(
        gaussian, redraw, GAUSSIAN_LADDER, kernel_schedule={"scale": GAUSSIAN_LADDER**-0.5}
    )

    def collect(state, info):
        return info, state.replica, state.round_trips

    run = jax.jit(functools.partial(run_chains, kernel=kernel, num_steps=200, collect=collect))
    start = {"a": jnp.zeros((400, 4, 1)), "b": jnp.zeros((400, 4, 3, 1))}
    return run(jax.random.key(2), positions=start)


def test_swap_rates_of_gaussians(gaussian_run):
    info = gaussian_run[1][0]
    rates = np.asarray(info.swap_acceptance, np.float64).mean(axis=1)  # one number a chain: independent
    error = rates.std(axis=0) / np.sqrt(len(rates))
    np.testing.assert_array_less(np.abs(rates.mean(axis=0) - exact_swap_rates(GAUSSIAN_LADDER)), 4.5 * error)
    # What was exchanged is what was to be tried, at that rate: even pairs first, then odd ones.
    swapped = np.asarray(info.swapped, np.float64)
    assert not swapped[:, 0::2, 1].any()
    assert not swapped[:, 1::2, 0::2].any()
    tried = np.stack([swapped[:, 0::2, 0], swapped[:, 1::2, 1], swapped[:, 0::2, 2]], axis=-1).mean(axis=1)
    error = tried.std(axis=0) / np.sqrt(len(tried))
    np.testing.assert_array_less(np.abs(tried.mean(axis=0) - exact_swap_rates(GAUSSIAN_LADDER)), 4.5 * error)
    assert info.acceptance_rate is None


def test_energies_of_the_rungs_are_those_of_their_temperatures(gaussian_run):
    energy = np.asarray(gaussian_run[1][0].energy, np.float64).mean(axis=1)
    error = energy.std(axis=0) / np.sqrt(len(energy))
    np.testing.assert_array_less(np.abs(energy.mean(axis=0) - SHAPE / GAUSSIAN_LADDER), 4.5 * error)


def test_round_trips_come_at_the_rate_of_syed_et_al(gaussian_run):
    # Theorem 1: with independent draws the replicas complete 1 / (2 + 2 sum r / (1 - r)) trips a step.
    rejection = 1 - exact_swap_rates(GAUSSIAN_LADDER)
    expected = 1 / (2 + 2 * np.sum(rejection / (1 - rejection)))
    trips = np.asarray(gaussian_run[1][2], np.float64)
    rate = (trips[:, -1] - trips[:, 59]) / 140  # the first sixty steps are the way into equilibrium
    assert abs(rate.mean() - expected) < 4.5 * rate.std() / np.sqrt(len(rate))


def test_round_trips_are_those_that_the_replicas_made(gaussian_run):
    replica = np.asarray(gaussian_run[1][1])
    chains = np.arange(len(replica))
    has_been_hot, on_the_way_back = np.zeros((2, len(replica), 4), bool)  # by replica, not by rung
    has_been_hot[:, 0] = True
    trips = np.zeros((len(replica), 200), int)
    for step in range(200):
        hot, cold = replica[:, step, 0], replica[:, step, -1]
        trips[:, step] = on_the_way_back[chains, hot]
        on_the_way_back[chains, hot] = False
        has_been_hot[chains, hot] = True
        on_the_way_back[chains, cold] = has_been_hot[chains, cold]
    np.testing.assert_array_equal(gaussian_run[1][2], np.cumsum(trips, axis=1))


def test_each_replica_is_on_one_rung_and_moves_by_one(gaussian_run):
    replica = np.asarray(gaussian_run[1][1])
    assert np.all(np.sort(replica, axis=-1) == np.arange(4))
    rung = np.argsort(replica, axis=-1)
    assert np.abs(np.diff(rung, axis=1)).max() == 1
    chex.assert_trees_all_equal_shapes(
        gaussian_run[0].position, {"a": jnp.zeros((400, 4, 1)), "b": jnp.zeros((400, 4, 3, 1))}
    )


# Forty modes


@functools.cache
def forty_modes():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.3, 1.7, 40)
    means = rng.uniform(-20, 20, (40, 2))
    return gaussian_mixture(weights / weights.sum(), means, np.full(40, 0.7))


def responsibilities(params, x):
    """Posterior probability of each mode: its expectation under the target is the mode's weight."""
    distance = ((x[:, None] - params.means) ** 2).sum(axis=-1) / (2 * params.scales**2)
    log_joint = params.log_weights - 2 * np.log(params.scales) - distance
    joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
    return joint / joint.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def tempered_forty_modes():
    target = forty_modes()
    ladder = np.geomspace(0.001, 1.0, 8)

    def wide(x):
        return 0.5 * jnp.sum((x / 15.0) ** 2)

    def run(rng_key, positions):
        kernel = parallel_tempering(
            target.target, mala, ladder, reference=wide, num_steps_per_swap=2,
            kernel_schedule={"step_size": np.minimum(0.4 / ladder, 100.0)},
        )  # fmt: skip
        return run_chains(
            rng_key,
            kernel,
            positions,
            120,
            collect=lambda state, info: (info.swap_acceptance, info.acceptance_rate),
        )

    start = jnp.broadcast_to(target.params.means[0], (500, 8, 2))
    return jax.jit(run)(jax.random.key(3), start)


def test_forty_modes_in_their_proportions_where_sgld_stays(tempered_forty_modes):
    target = forty_modes()
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), target.params)
    weights = np.exp(params.log_weights)
    x = np.asarray(tempered_forty_modes[0].position[:, -1], np.float64)
    rng = np.random.default_rng(4)
    draws = params.means[rng.choice(40, 20_000, p=weights / weights.sum())] + 0.7 * rng.standard_normal(
        (20_000, 2)
    )
    exact = responsibilities(params, draws)
    # One state of each independent chain: the mean of n draws of known covariance, so chi-squared of 39
    # degrees of freedom (the shares sum to one).
    covariance = np.cov(exact[:, :-1].T)

    def statistic(x):
        gap = (responsibilities(params, x).mean(axis=0) - weights)[:-1]
        return len(x) * gap @ np.linalg.solve(covariance, gap)

    assert statistic(x) < chi2.ppf(1 - 1e-5, 39)
    # As many evaluations of the gradient by one chain at temperature 1, from the same place.
    run = jax.jit(functools.partial(run_chains, kernel=sgld(target.target, 0.1), num_steps=120 * 2 * 8))
    start = jnp.broadcast_to(target.params.means[0], (50, 2))
    plain = np.asarray(run(jax.random.key(5), positions=start)[0].position, np.float64)
    assert np.sum(responsibilities(params, plain).mean(axis=0) > 1e-3) < 10
    assert statistic(plain) > 4 * chi2.ppf(1 - 1e-5, 39)


# Arguments and compilation


def quadratic(x):
    return 0.5 * jnp.sum(x**2)


def test_new_numbers_run_the_same_program():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(rng_key, ladder, step_size):
        kernel = parallel_tempering(
            quadratic, sgld, ladder, kernel_schedule={"step_size": step_size / ladder}
        )
        return run_chain(rng_key, kernel, jnp.zeros((3, 2)), 4)[0].position

    for first in (0.1, 0.2):
        chex.assert_tree_all_finite(run(jax.random.key(0), jnp.array([first, 0.5, 1.0]), first))


def test_a_diverged_replica_is_not_passed_on():
    kernel = parallel_tempering(lambda x: x, stay, jnp.array([0.5, 1.0]))
    state, info = jax.jit(kernel.step)(jax.random.key(0), kernel.init(jnp.array([jnp.nan, 1.0])))
    assert np.isnan(info.swap_acceptance[0])
    np.testing.assert_array_equal(state.position, [np.nan, 1.0])


@pytest.mark.parametrize(
    ("start", "probability"),
    [
        ([1.0, -1.0], 1.0),  # the cold replica is where the density is 0: it leaves
        ([-1.0, 1.0], 0.0),
        ([-1.0, -1.0], 0.0),  # inf - inf
    ],
)
def test_replicas_at_infinite_energy(start, probability):
    kernel = parallel_tempering(lambda x: jnp.where(x < 0, jnp.inf, x), stay, jnp.array([0.5, 1.0]))
    state, info = jax.jit(kernel.step)(jax.random.key(0), kernel.init(jnp.array(start)))
    assert float(info.swap_acceptance[0]) == probability
    np.testing.assert_array_equal(state.position, start[::-1] if probability else start)


def test_at_zero_the_hot_end_is_the_reference_wherever_the_energy_is_infinite():
    # 0 times an infinite energy would be NaN, and the hot replica frozen below 0.
    def half(x):
        return jnp.where(x < 0, jnp.inf, 0.5 * (x - 1) ** 2)

    kernel = parallel_tempering(
        half, lambda target: mala(target, 1.0), jnp.array([0.0, 1.0]), reference=lambda x: 0.5 * x**2
    )
    run = jax.jit(jax.vmap(lambda key: run_chain(key, kernel, jnp.full(2, -1.0), 40)[0].position))
    hot, cold = np.asarray(run(jax.random.split(jax.random.key(0), 2_000)), np.float64).T
    assert abs(hot.mean()) < 5 / np.sqrt(2_000)
    assert cold.min() >= 0
    exact = 1 + norm.pdf(1.0) / norm.cdf(1.0)
    assert abs(cold.mean() - exact) < 5 * cold.std() / np.sqrt(2_000)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_replicas_keep_their_dtype(dtype, x64):
    with jax.enable_x64(x64):
        ladder = jnp.array([0.2, 1.0])
        kernel = parallel_tempering(quadratic, mala, ladder, kernel_schedule={"step_size": 0.5 / ladder})
        start = jnp.ones((2, 3), dtype)
        state, _ = jax.eval_shape(lambda key: run_chain(key, kernel, start, 2), jax.random.key(0))
        assert state.position.dtype == start.dtype


def test_glauber_takes_its_temperature_from_the_schedule():
    # Two pairs of spins: E = -x^T Xi^T Xi x / 2 of one memory, whose law is a table of 16 states.
    memory = classical(jnp.ones((1, 4)))
    ladder = jnp.array([0.3, 1.0])
    kernel = parallel_tempering(
        memory.energy,
        lambda target, temperature: glauber(memory, temperature),
        ladder,
        kernel_schedule={"temperature": 1 / ladder},
    )
    run = jax.jit(jax.vmap(lambda key: run_chain(key, kernel, jnp.ones((2, 4)), 20)[0].position))
    total = np.asarray(run(jax.random.split(jax.random.key(0), 4_000))).sum(axis=-1)
    states = np.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    energy = np.array([float(memory.energy(jnp.asarray(x))) for x in states])
    for rung, b in enumerate(np.asarray(ladder)):
        law = np.exp(-b * energy) / np.exp(-b * energy).sum()
        for count in (0.0, 4.0):
            share = law[np.abs(states.sum(axis=1)) == count].sum()
            found = np.mean(np.abs(total[:, rung]) == count)
            assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / 4_000)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        parallel_tempering(memory.energy, glauber, ladder)
    assert any("lambda target, temperature: glauber" in note for note in caught.value.__notes__)


def test_the_moves_acceptance_is_reported(tempered_forty_modes):
    rates = np.asarray(tempered_forty_modes[1][1])
    assert rates.shape == (500, 120, 8)
    assert np.all((rates.mean(axis=(0, 1)) > 0.1) & (rates.mean(axis=(0, 1)) < 0.99))


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        ([0.5, 0.2, 1.0], "rise strictly"),
        ([0.2, 0.9], "to 1"),
        ([-0.1, 1.0], "from 0 or above"),
        ([0.0, 1.0], "give a reference"),
        ([np.nan, 1.0], "non-finite"),
        ([1.0], r"shape \(1,\)"),
        ([[0.5, 1.0]], r"shape \(1, 2\)"),
    ],
)
def test_bad_ladders_are_named(ladder, message):
    with pytest.raises(ValueError, match=f"inverse_temperatures.*{message}"):
        parallel_tempering(quadratic, stay, np.array(ladder))


def test_a_reference_permits_zero():
    check_ladder(np.array([0.0, 1.0]), quadratic)


def test_bad_arguments_are_named():
    ladder = np.array([0.5, 1.0])
    with pytest.raises(
        ValueError, match=r"kernel_schedule\['step_size'\] has a leading axis of 3: 2 is needed"
    ):
        parallel_tempering(quadratic, sgld, ladder, kernel_schedule={"step_size": np.ones(3)})
    with pytest.raises(ValueError, match=r"step_size=.*-1.0.*greater than 0"):
        parallel_tempering(quadratic, sgld, ladder, kernel_schedule={"step_size": np.array([1.0, -1.0])})
    with pytest.raises(ValueError, match="num_steps_per_swap=0"):
        parallel_tempering(quadratic, stay, ladder, num_steps_per_swap=0)
    kernel = parallel_tempering(quadratic, stay, ladder)
    with pytest.raises(ValueError, match="leading axis of 3: 2 is needed"):
        kernel.init(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="scalar"):
        run_chain(jax.random.key(0), parallel_tempering(jnp.square, stay, ladder), jnp.zeros((2, 4)), 1)
    with pytest.raises(TypeError, match="make_kernel is a kernel that is bound"):
        parallel_tempering(quadratic, kernel, ladder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"reference is .*float.*must be a function"):
        parallel_tempering(quadratic, stay, ladder, reference=0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"kernel_schedule is .*float"):
        parallel_tempering(quadratic, stay, ladder, kernel_schedule=0.5)  # pyright: ignore[reportArgumentType]
    pair = parallel_tempering(lambda x: (x, x), stay, ladder)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"returned .*tuple") as caught:
        run_chain(jax.random.key(0), pair, jnp.zeros(2), 1)
    assert any("target" in note for note in caught.value.__notes__)
