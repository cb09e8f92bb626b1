"""Bounds of log Z against targets whose log Z is exact; every seed is fixed and every bound in sigmas."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxebm.energies import gaussian, gaussian_mixture, skewed
from jaxebm.evaluation.partition.annealing_path import Base
from jaxebm.evaluation.partition.importance_sampling import (
    AISResult,
    annealed_importance_sampling,
    interval_of_bounds,
    log_partition_interval,
    reverse_annealed_importance_sampling,
)
from jaxebm.evaluation.partition.path_fitting import linear_schedule, sigmoid_schedule
from jaxebm.evaluation.partition.quadrature import enumerate_states, log_partition_by_enumeration
from jaxebm.hopfield import classical, glauber
from jaxebm.samplers import LangevinState, hmc, mala
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

FOUR_SIGMA = math.erf(4 / math.sqrt(2))
"""Coverage of an interval whose ends lie four standard errors out."""

HMC = partial(hmc, step_size=0.3, num_integration_steps=5)
SPINS = 6


@partial(jax.jit, static_argnums=(0, 3))
def sample_of(sample, rng_key, params, num_samples):
    """Compiled whole: eagerly, every small operation is compiled on its own."""
    return sample(rng_key, params, num_samples)


def interval_of(seed, model, base, kernel, schedule, num_chains, coverage=FOUR_SIGMA, **options):
    sample_key, run_key = jax.random.split(jax.random.key(seed))
    samples = sample_of(model.sample, sample_key, model.params, num_chains)
    problem = (model.energy, model.params, base, kernel, schedule)
    return log_partition_interval(run_key, *problem, num_chains, samples, coverage=coverage, **options)


def exact(model):
    return float(jax.jit(model.log_partition)(model.params))


def wide_gaussian():
    """50 dimensions, standard deviations 0.5 to 2 along random axes, shifted: half of log det is not 0."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    variances = np.geomspace(0.25, 4.0, 50) * 1.3
    covariance = axes * variances @ axes.T
    return gaussian(0.5 * rng.normal(size=50), (covariance + covariance.T) / 2)


MODELS = {
    "gaussian_50d": (wide_gaussian, lambda: gaussian(np.zeros(50), np.eye(50)), 100, 100, 1.2),
    "skewed": (skewed, lambda: gaussian([0.5, 0.5], [[1.5, 0.0], [0.0, 1.5]]), 60, 500, 0.3),
    "mixture": (
        lambda: gaussian_mixture([1.0, 2.0, 0.5], [[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]], [0.5, 0.8, 0.4]),
        lambda: gaussian([0.0, 0.0], [[4.0, 0.0], [0.0, 4.0]]),
        60,
        500,
        0.3,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_exact_log_partition_lies_in_a_short_interval(name):
    """Four standard errors, three seeds; a wrong sign anywhere puts log Z whole nats outside."""
    make_model, make_base, num_temperatures, num_chains, width = MODELS[name]
    model, base = make_model(), make_base()
    log_partition = exact(model)
    assert abs(log_partition - exact(base)) > 0.6
    for seed in range(3):
        interval = interval_of(seed, model, base, HMC, sigmoid_schedule(num_temperatures), num_chains)
        assert interval.low < log_partition < interval.high
        assert interval.high - interval.low < width


def boltzmann_energy(params, x):
    couplings, fields = params
    return -0.5 * x @ couplings @ x - fields @ x


def free_spins(rng_key, params, num_samples):
    return jax.random.rademacher(rng_key, (num_samples, SPINS), dtype=jnp.float32)


def gibbs(target):
    """One site at random, drawn from its conditional."""

    def step(rng_key, state):
        site_key, flip_key = jax.random.split(rng_key)
        x = state.position
        flipped = x * jnp.where(jnp.arange(x.size) == jax.random.randint(site_key, (), 0, x.size), -1.0, 1.0)
        flips = jax.random.bernoulli(flip_key, jax.nn.sigmoid(target(x) - target(flipped)))
        return LangevinState(jnp.where(flips, flipped, x)), None

    return Kernel(lambda position, rng_key=None: LangevinState(position), step)


def test_the_interval_holds_the_enumerated_log_partition_of_six_spins():
    """Four standard errors, three seeds, and a new model each time."""
    base = Base(lambda params, x: 0.0, (), lambda params: jnp.asarray(6 * math.log(2)), free_spins)
    states = enumerate_states(6)

    @jax.jit
    def problem_of(seed):
        coupling_key, field_key, sample_key, run_key = jax.random.split(jax.random.key(seed), 4)
        upper = jnp.triu(0.5 * jax.random.normal(coupling_key, (6, 6)), 1)
        params = (upper + upper.T, 0.4 + 0.3 * jax.random.normal(field_key, (6,)))
        log_partition = log_partition_by_enumeration(boltzmann_energy, params, states)
        energies = jax.vmap(boltzmann_energy, (None, 0))(params, states)
        samples = states[jax.random.categorical(sample_key, -energies, shape=(500,))]
        return run_key, params, log_partition, samples

    for seed in range(3):
        run_key, params, log_partition, samples = problem_of(seed)
        interval = log_partition_interval(
            run_key, boltzmann_energy, params, base, gibbs, linear_schedule(50), 500, samples, 3,
            coverage=FOUR_SIGMA,
        )  # fmt: skip
        assert abs(log_partition - 6 * math.log(2)) > 0.5
        assert interval.low < log_partition < interval.high
        assert interval.high - interval.low < 0.6
        assert set(np.unique(interval.forward.positions)) == {-1.0, 1.0}


NARROW, WIDE = gaussian([1.0], [[0.25]]), gaussian([0.0], [[1.0]])


@pytest.mark.parametrize("kernel", [partial(mala, step_size=0.1), partial(mala, step_size=5.0)])
def test_weights_are_unbiased_in_both_directions_even_where_the_kernel_hardly_moves(kernel):
    """E[w] Z_0 / Z = 1 within 4 standard errors; at step 5 nearly every proposal is refused."""
    n, schedule = 10_000, linear_schedule(8)
    ratio = math.exp(exact(NARROW) - exact(WIDE))
    problem = (NARROW.energy, NARROW.params, WIDE, kernel, schedule)
    forward = annealed_importance_sampling(jax.random.key(0), *problem, n)
    samples = sample_of(NARROW.sample, jax.random.key(1), NARROW.params, n)
    reverse = reverse_annealed_importance_sampling(jax.random.key(2), *problem, samples)
    for result, expected in ((forward, ratio), (reverse, 1 / ratio)):
        normalised = np.exp(np.asarray(result.log_weights, np.float64)) / expected
        assert abs(normalised.mean() - 1) < 4 * normalised.std() / n**0.5


def test_bounds_come_from_their_own_side_and_meet_as_the_schedule_lengthens():
    """Too short a schedule: forward is nats below and reverse above; then they close in."""
    model, base = wide_gaussian(), gaussian(np.zeros(50), np.eye(50))
    log_partition, gaps = exact(model), []
    for num_temperatures in (3, 20, 100):
        # Repeating t = 1 changes no weight, and all three run one program.
        schedule = np.ones(100, np.float32)
        schedule[:num_temperatures] = sigmoid_schedule(num_temperatures)
        interval = interval_of(0, model, base, HMC, schedule, 100)
        below = log_partition - interval.forward.log_partition
        above = interval.reverse.log_partition - log_partition
        gaps.append((float(below), float(above), float(interval.high - interval.low)))
    assert min(gaps[0][:2]) > 0.5
    assert gaps[0][2] > 2 * gaps[1][2] > 4 * gaps[2][2]


def test_an_energy_equal_to_its_base_gives_its_log_partition_without_variance():
    interval = interval_of(0, WIDE, WIDE, partial(mala, step_size=0.1), linear_schedule(20), 50)
    for result in (interval.forward, interval.reverse):
        np.testing.assert_allclose(result.log_partition, exact(WIDE), rtol=1e-6)
        np.testing.assert_allclose(result.standard_error, 0.0, atol=1e-6)
        np.testing.assert_allclose(result.effective_sample_size, 50.0, rtol=1e-6)
    np.testing.assert_allclose([interval.low, interval.high], exact(WIDE), rtol=1e-6)


def test_result_and_interval_are_their_formulas():
    interval = interval_of(
        3, NARROW, WIDE, partial(mala, step_size=0.1), linear_schedule(20), 50, coverage=0.9
    )
    ends = []
    for result, sign in ((interval.forward, 1), (interval.reverse, -1)):
        weights = np.exp(np.asarray(result.log_weights, np.float64))
        expected = exact(WIDE) + sign * np.log(weights.mean())
        error = weights.std(ddof=1) / weights.mean() / 50**0.5
        np.testing.assert_allclose(result.log_partition, expected, rtol=1e-5)
        np.testing.assert_allclose(result.standard_error, error, rtol=1e-5)
        np.testing.assert_allclose(
            result.effective_sample_size, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-5
        )
        ends.append(expected - sign * scipy.stats.norm.ppf(0.95) * error)
    np.testing.assert_allclose([interval.low, interval.high], ends, rtol=1e-5)


def test_an_interval_of_two_runs_widens_them_by_their_own_errors():
    """No chain is needed: 1.6449 standard errors for 90%, and runs that contradict each other show it."""
    empty = np.zeros(0)
    forward = AISResult(jnp.asarray(2.0), jnp.asarray(0.1), jnp.asarray(9.0), empty, empty)
    reverse = AISResult(jnp.asarray(3.0), jnp.asarray(0.2), jnp.asarray(8.0), empty, empty)
    interval = interval_of_bounds(forward, reverse, coverage=0.9)
    np.testing.assert_allclose([interval.low, interval.high], [2 - 0.16449, 3 + 0.32897], rtol=1e-5)
    assert interval.forward is forward
    assert interval.reverse is reverse
    crossed = interval_of_bounds(reverse, forward)  # 2.5758 standard errors for the default of 99%
    np.testing.assert_allclose([crossed.low, crossed.high], [3 - 0.51517, 2 + 0.25758], rtol=1e-5)
    for coverage in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=f"coverage={coverage}"):
            interval_of_bounds(forward, reverse, coverage=coverage)


@pytest.mark.slow
def test_the_interval_covers_as_often_as_it_says():
    """At least 95% of 400 intervals, less 3 standard deviations of that count."""
    hits = []
    for seed in range(400):
        interval = interval_of(seed, NARROW, WIDE, HMC, sigmoid_schedule(50), 1_000, coverage=0.95)
        hits.append(bool(interval.low < exact(NARROW) < interval.high))
    assert np.mean(hits) > 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5


def test_log_weights_of_any_size_neither_overflow_nor_vanish():
    """An energy lowered by 1,000 nats has a log Z that is 1,000 nats higher."""

    def energy(height, x):
        return NARROW.energy(NARROW.params, x) + height

    def estimate(height):
        kernel, schedule = partial(mala, step_size=0.1), linear_schedule(20)
        key = jax.random.key(0)
        return annealed_importance_sampling(key, energy, jnp.asarray(height), WIDE, kernel, schedule, 50)

    plain, shifted = estimate(0.0), estimate(-1000.0)
    np.testing.assert_allclose(shifted.log_partition - 1000.0, plain.log_partition, atol=2e-3)
    np.testing.assert_allclose(shifted.standard_error, plain.standard_error, rtol=1e-2)


def test_a_kernel_schedule_keeps_its_place_when_the_path_is_reversed():
    """Kernels that move only at t = 0 and t = 1 show which slice of their schedule they were given."""

    def push(target, shift):
        def step(rng_key, state):
            return LangevinState(state.position + shift), None

        return Kernel(lambda position, rng_key=None: LangevinState(position), step)

    shifts = {"shift": jnp.array([100.0, 1.0, 2.0, 10.0])}
    problem = (NARROW.energy, NARROW.params, WIDE, push, linear_schedule(4))
    interval = log_partition_interval(
        jax.random.key(0), *problem, 2, jnp.zeros((2, 1)), kernel_schedule=shifts
    )
    chex.assert_trees_all_close(interval.reverse.positions, jnp.full((2, 1), 103.0))
    start = WIDE.sample(jax.random.split(jax.random.split(jax.random.key(0))[0])[0], WIDE.params, 2)
    chex.assert_trees_all_close(interval.forward.positions, start + 13.0, rtol=1e-5)


def test_both_runs_share_one_program_and_new_numbers_run_it_again():
    traces = []

    def energy(params, x):
        traces.append(None)
        return NARROW.energy(params, x)

    def run(params, base, step_size, schedule):
        problem = (energy, params, base, partial(mala, step_size=step_size), schedule)
        annealed_importance_sampling(jax.random.key(0), *problem, 8)
        after_forward = len(traces)
        log_partition_interval(jax.random.key(0), *problem, 8, jnp.ones((8, 1)), coverage=1 - step_size)
        assert len(traces) == after_forward

    run(NARROW.params, WIDE, 0.1, linear_schedule(6))
    after_first = len(traces)
    run(WIDE.params, gaussian([2.0], [[3.0]]), 0.2, sigmoid_schedule(6))
    assert len(traces) == after_first > 0


def test_the_whole_estimate_may_be_traced():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def estimate(rng_key, params, schedule, step_size):
        kernel = partial(mala, step_size=step_size)
        return annealed_importance_sampling(rng_key, NARROW.energy, params, WIDE, kernel, schedule, 50)

    result = estimate(jax.random.key(0), NARROW.params, linear_schedule(20), 0.1)
    again = estimate(jax.random.key(1), NARROW.params, sigmoid_schedule(20), 0.2)
    for each in (result, again):
        assert abs(each.log_partition - exact(NARROW)) < 5 * each.standard_error


def arguments(**changes):
    problem = {
        "energy": NARROW.energy, "params": NARROW.params, "base": WIDE, "num_chains": 4,
        "make_kernel": partial(mala, step_size=0.1), "schedule": linear_schedule(4),
        "exact_samples": jnp.zeros((4, 1)),
    }  # fmt: skip
    return problem | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": jnp.array([0.1, 1.0])}, r"schedule runs from 0.1.* start at 0, end at 1"),
        ({"schedule": jnp.array([0.0, 0.9])}, r"schedule runs from 0 to 0.9"),
        ({"schedule": jnp.array([0.0, 0.6, 0.4, 1.0])}, r"smallest step is -0.2.*never decrease"),
        ({"schedule": jnp.array([0.0, jnp.nan, 1.0])}, r"smallest step is nan"),
        ({"schedule": jnp.array([1.0])}, r"schedule has shape \(1,\)"),
        ({"num_chains": 1}, r"num_chains gives 1 weight: a standard error needs at least 2"),
        ({"num_chains": 2.0}, r"num_chains=2.0: num_chains must be an integer"),
        ({"exact_samples": jnp.zeros((1, 1))}, r"exact_samples gives 1 weight"),
        ({"exact_samples": jnp.zeros((4, 2))}, r"x has shape \(2,\): \(1,\) is needed"),
        ({"num_steps_per_temperature": 0}, r"num_steps_per_temperature=0"),
        ({"coverage": 1.0}, r"coverage=1.0: coverage must be strictly between 0 and 1"),
    ],
)
def test_errors_name_the_argument(changes, message):
    with pytest.raises(ValueError, match=message):
        log_partition_interval(jax.random.key(0), **arguments(**changes))


def test_a_base_that_draws_another_number_of_samples_is_refused():
    problem = arguments(base=WIDE._replace(sample=lambda *_: jnp.zeros((3, 1))))
    del problem["exact_samples"]
    with pytest.raises(ValueError, match=r"base.sample.* leading axis of 3: 4 is needed.*num_chains"):
        annealed_importance_sampling(jax.random.key(0), **problem)


HOPFIELD = classical(np.random.default_rng(0).choice([-1, 1], (2, SPINS)))
EVEN_SPINS = Base(lambda params, x: 0.0, (), lambda params: jnp.asarray(SPINS * math.log(2)), free_spins)


def hopfield_energy(memory, x):
    return memory.energy(x)


def heated_glauber(target, temperature):
    return glauber(HOPFIELD, temperature)


def test_glauber_anneals_a_hopfield_network_by_its_temperature():
    """exp(-t E) is exp(-E / T) at T = 1 / t; both bounds hold the sum over all 64 states, at 4 sigma."""
    states, schedule = enumerate_states(SPINS), linear_schedule(20)
    exact_value = log_partition_by_enumeration(hopfield_energy, HOPFIELD, states)
    energies = jax.vmap(hopfield_energy, (None, 0))(HOPFIELD, states)
    samples = states[jax.random.categorical(jax.random.key(0), -energies, shape=(500,))]
    interval = log_partition_interval(
        jax.random.key(1), hopfield_energy, HOPFIELD, EVEN_SPINS, heated_glauber, schedule, 500, samples,
        kernel_schedule={"temperature": 1 / schedule}, coverage=FOUR_SIGMA,
    )  # fmt: skip
    assert abs(exact_value - SPINS * math.log(2)) > 0.5
    assert interval.low < exact_value < interval.high
    assert interval.high - interval.low < 0.3


@pytest.mark.parametrize("make_kernel", [glauber, lambda target: glauber(HOPFIELD)])
def test_a_kernel_of_a_memory_is_bound_with_a_temperature(make_kernel):
    problem = (hopfield_energy, HOPFIELD, EVEN_SPINS, make_kernel, linear_schedule(4), 4)
    varying = {"temperature": jnp.ones(4)}
    says = (
        r"called as make_kernel\(target, temperature=...\).*lambda target, temperature: glauber\(memory, temp"
    )
    with pytest.raises((TypeError, ValueError), match=f"(?s){says}"):
        annealed_importance_sampling(jax.random.key(0), *problem, kernel_schedule=varying)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rng_key": 0}, "rng_key=0: rng_key must be a typed key"),
        ({"energy": lambda x: 0.0}, r"energy=<lambda> takes \(x\): it is called as energy\(params, x\)"),
        ({"params": "normal"}, r"params is .*str: arrays"),
        ({"base": gaussian}, "base is of type function: base must be an AnalyticTarget or a Base"),
        ({"base": WIDE._replace(energy=None)}, r"base.energy is .*NoneType"),
        ({"make_kernel": mala(WIDE.target, 0.1)}, "make_kernel is a kernel that is bound"),
        ({"make_kernel": "mala"}, "make_kernel='mala'"),
        ({"make_kernel": lambda target: None}, r"make_kernel\(target\)=None"),
        ({"make_kernel": mala}, r"(?s)step_size.*make_kernel=mala was called as make_kernel\(target\)"),
        ({"exact_samples": jnp.ones((4, 1)) * 1j}, "exact_samples has dtype complex64"),
        ({"exact_samples": jnp.ones((4, 3))}, r"(?s)exact_samples of \(4, 3\)"),
        ({"kernel_schedule": [0.1]}, r"kernel_schedule is .*list"),
        ({"kernel_schedule": {"step_size": "ab"}}, r"kernel_schedule\['step_size'\] is .*str"),
        ({"coverage": "0.9"}, "coverage='0.9' is no real number"),
        (
            {"params": jax.tree.map(lambda leaf: jnp.ones((3,)), NARROW.params)},
            r"(?s)The shapes were params of",
        ),
    ],
)
def test_errors_of_other_types_name_the_argument(changes, message):
    problem = {"rng_key": jax.random.key(0)} | arguments() | changes
    with pytest.raises((TypeError, ValueError), match=message):
        log_partition_interval(**problem)
