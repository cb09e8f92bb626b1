"""Chains whose every moment is known in closed form, step by step: Langevin on a quadratic and on a slope."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.chains.probe import long_run_drift, probe_chains
from jaxebm.samplers.chains import run_chains
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.metropolis import mala
from jaxebm.types import BATCH_AXIS, Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

STIFFNESS, STEP_SIZE, START, NUM_CHAINS = 2.0, 0.1, 3.0, 4000
CHECKPOINTS = [1, 3, 10, 40]


def quadratic(params, x):
    return 0.5 * params * jnp.sum(x["a"] ** 2) + 0.5 * params * x["b"] ** 2


def slope(params, x):
    return params * jnp.sum(x)


def tree(count, value):
    """Positions of two coordinates in two leaves."""
    return {"a": jnp.full((count, 1), value), "b": jnp.full(count, value)}


@pytest.fixture(scope="module")
def probe():
    run = partial(probe_chains, jax.random.key(0), quadratic, STIFFNESS, partial(sgld, step_size=STEP_SIZE))
    with jax.numpy_rank_promotion("raise"):  # conftest's comes later than a module's fixtures
        return run(tree(NUM_CHAINS, START), CHECKPOINTS)


def moments(steps):
    """Mean and variance of one coordinate: x_t = rho x_{t-1} + sqrt(2 eps) n, rho = 1 - eps k."""
    rho = 1 - STEP_SIZE * STIFFNESS
    mean = START * rho**steps
    return mean, 2 * STEP_SIZE * (1 - rho ** (2 * steps)) / (1 - rho**2)


def test_energies_are_those_of_the_exact_law(probe):
    """E = k |x|^2 / 2 of two normals: mean k (m^2 + v), variance k^2 (v^2 + 2 m^2 v), at each checkpoint."""
    mean, variance = moments(np.array([0, *CHECKPOINTS]))
    expected = STIFFNESS * (mean**2 + variance)
    deviation = STIFFNESS * np.sqrt(variance**2 + 2 * mean**2 * variance)
    assert probe.steps.tolist() == [0, *CHECKPOINTS]
    assert np.all(np.abs(probe.energy - expected) <= 5 * deviation / np.sqrt(NUM_CHAINS) + 1e-5)
    # The energy's kurtosis is at most 9, chi-squared's of two degrees: sd(s) / s = sqrt((9 - 1) / n) / 2.
    np.testing.assert_allclose(probe.energy_deviation, deviation, atol=1e-5, rtol=5 * np.sqrt(2 / NUM_CHAINS))


def test_gradients_and_distances_are_those_of_the_exact_law(probe):
    """Root mean squares are closed; means lie below them, by the exact Rice law, integrated here."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(2, 400_000))
    mean, variance = moments(np.array([0, *CHECKPOINTS]))
    for row in range(1, len(mean)):
        radius = np.hypot(*(mean[row] + np.sqrt(variance[row]) * normal))
        moved = np.hypot(*(mean[row] - START + np.sqrt(variance[row]) * normal))
        for found, exact in (
            (probe.gradient_norm[row], STIFFNESS * radius),
            (probe.distance[row], moved),
        ):
            assert abs(found - exact.mean()) < 5 * exact.std() / np.sqrt(NUM_CHAINS)
    assert probe.gradient_norm[0] == pytest.approx(STIFFNESS * START * np.sqrt(2), rel=1e-6)
    assert probe.distance[0] == 0
    np.testing.assert_array_equal(probe.non_finite, 0)
    assert probe.acceptance is None  # unadjusted


def test_checkpoints_are_looks_at_one_chain_not_restarts():
    """Positions on the way equal those of ``run_chains``, which the wrapped kernel must not disturb."""
    kernel, positions = partial(sgld, step_size=0.05), jnp.linspace(-1.0, 2.0, 6).reshape(3, 2)

    def energy(params, x):
        return params * jnp.sum(x**4)

    probe = probe_chains(jax.random.key(1), energy, 0.5, kernel, positions, [2, 7])
    _, history = run_chains(
        jax.random.key(1),
        kernel(partial(energy, 0.5)),
        positions,
        7,
        collect=lambda state, info: state.position,
    )
    at = np.stack([positions, history[:, 1], history[:, 6]], axis=1).astype(np.float64)
    np.testing.assert_allclose(probe.energy, 0.5 * (at**4).sum(axis=2).mean(axis=0), rtol=1e-5)
    distances = np.linalg.norm(at - at[:, :1], axis=2).mean(axis=0)
    np.testing.assert_allclose(probe.distance, distances, rtol=1e-5, atol=1e-7)


class CountingState(NamedTuple):
    position: Any
    count: Any


class CountingInfo(NamedTuple):
    acceptance_rate: Any


def counting(target, jump=1.0):
    """A kernel that counts its steps: the t-th moves by t times the jump and reports acceptance t / 10."""
    del target

    def init(position, rng_key=None):
        del rng_key
        return CountingState(position, 0.0)

    def step(rng_key, state):
        del rng_key
        count = state.count + 1.0
        return CountingState(state.position + jump * count, count), CountingInfo(count / 10)

    return Kernel(init, step)


def test_state_is_kept_and_acceptance_averaged_between_checkpoints():
    """A kernel re-initialised at a checkpoint would count from 1 again."""
    probe = probe_chains(
        jax.random.key(0), slope, 1.0, partial(counting, jump=2.0), jnp.zeros((3, 1)), [1, 4, 5]
    )
    np.testing.assert_allclose(probe.energy, [0.0, 2.0, 20.0, 30.0])
    np.testing.assert_allclose(probe.distance, [0.0, 2.0, 20.0, 30.0])
    assert probe.acceptance is not None
    np.testing.assert_allclose(probe.acceptance, [np.nan, 0.1, 0.3, 0.5], rtol=1e-6)


def test_looks_are_taken_at_checkpoints_only():
    """Chains count alike, so ``vmap`` must leave the look a branch: every step would pay for a select."""

    def program(rng_key, positions):
        return probe_chains(rng_key, slope, 1.0, partial(sgld, step_size=0.1), positions, [2, 7]).energy

    jaxpr = str(jax.make_jaxpr(program)(jax.random.key(0), jnp.ones((4, 2))))
    by_platform = jaxpr.count("platform_index[")  # the noise has two of those
    assert jaxpr.count("cond[") - by_platform == 1


def test_an_energy_may_average_over_its_batch():
    """As batch normalisation does, by the axis name of every batch in this package."""

    def energy(params, x):
        return params * jnp.sum(x) + jax.lax.pmean(jnp.sum(x), BATCH_AXIS)

    starts = jnp.array([[1.0], [3.0]])
    probe = probe_chains(jax.random.key(0), energy, 1.0, partial(counting, jump=1.0), starts, [1])
    np.testing.assert_allclose(probe.energy, [4.0, 6.0])


def test_broken_chains_are_counted_and_left_out():
    """Below -1 a chain falls off: its energy is the logarithm of a negative number."""

    def energy(params, x):
        return jnp.log(params + jnp.sum(x))

    starts = jnp.array([[1.5], [3.5], [0.5], [jnp.nan]])
    probe = probe_chains(jax.random.key(0), energy, 1.0, partial(counting, jump=-1.0), starts, [1, 2])
    np.testing.assert_allclose(probe.non_finite, [0.25, 0.25, 0.75])
    np.testing.assert_allclose(probe.energy[0], np.log([2.5, 4.5, 1.5]).mean(), rtol=1e-5)
    np.testing.assert_allclose(probe.energy[2], np.log(1.5), rtol=1e-5)  # 3.5 - 3 is left alone
    assert np.isnan(probe.energy_deviation[2])


@pytest.fixture(scope="module")
def stationary():
    """Chains that begin in the exact law of the unadjusted chain: nothing may drift."""
    variance = (1 / STIFFNESS) / (1 - STEP_SIZE * STIFFNESS / 2)
    positions = np.sqrt(variance) * jax.random.normal(jax.random.key(5), (2000, 2))
    with jax.numpy_rank_promotion("raise"):
        return long_run_drift(
            jax.random.key(6),
            lambda params, x: 0.5 * params * jnp.sum(x**2),
            STIFFNESS,
            partial(sgld, step_size=STEP_SIZE),
            positions,
            num_steps=10,
            multiple=10,
        )


def test_no_drift_in_equilibrium(stationary):
    assert abs(stationary.energy_change) < 4 * stationary.energy_change_error
    assert abs(stationary.energy_slope) < 4 * stationary.energy_slope_error
    assert abs(stationary.relative_change) < 0.15
    assert stationary.gradient_ratio == pytest.approx(1, abs=0.1)
    # E = k |x|^2 / 2 has mean and deviation k v, v = (1/k) / 0.9. After 90 steps its correlation is
    # (1 - eps k)^180, none: the difference's standard error is sqrt(2 / n) deviations.
    exact_error = 1 / 0.9 * np.sqrt(2 / 2000)
    assert stationary.energy_change_error == pytest.approx(exact_error, rel=0.15)
    assert stationary.probe.steps.tolist() == [0, 10, 18, 32, 56, 100]


def test_change_and_slope_of_a_chain_without_chance():
    """The counting kernel stands at t (t + 1) after t steps: 30 after 5, 110 after 10."""
    drift = long_run_drift(
        jax.random.key(0), slope, 1.0, partial(counting, jump=2.0), jnp.zeros((2, 1)), 5, multiple=2
    )
    assert drift.probe.steps.tolist() == [0, 5, 10]
    assert float(drift.energy_change) == 80.0
    assert float(drift.energy_slope) == pytest.approx(80 / np.log10(2), rel=1e-5)
    assert float(drift.energy_change_error) == 0.0


def test_a_slope_without_end_is_seen_at_its_exact_rate():
    """E = g x: each step lowers the mean energy by exactly eps g^2, with noise of variance 2 eps g^2."""
    gradient, num_chains, steps = 1.5, 400, np.array([5, 16, 50, 158, 500])
    drift = long_run_drift(
        jax.random.key(2),
        slope,
        gradient,
        partial(sgld, step_size=STEP_SIZE),
        jnp.zeros((num_chains, 1)),
        5,
        multiple=100,
        checkpoints_per_decade=2,
    )
    assert drift.probe.steps.tolist() == [0, *steps]
    rate, taken = STEP_SIZE * gradient**2, 495
    deviation = np.sqrt(2 * rate * taken)
    assert abs(drift.energy_change + rate * taken) < 4 * deviation / np.sqrt(num_chains)
    assert drift.energy_change_error == pytest.approx(
        deviation / np.sqrt(num_chains), rel=5 / np.sqrt(2 * num_chains)
    )
    relative = -rate * taken / np.sqrt(2 * rate * 5)
    assert drift.relative_change == pytest.approx(relative, rel=5 * np.sqrt(1 / (2 * num_chains)) + 0.02)
    # The least squares line through the exact means.
    exact_slope = np.polyfit(np.log10(steps), -rate * steps, 1)[0]
    assert abs(drift.energy_slope - exact_slope) < 4 * drift.energy_slope_error
    assert drift.energy_slope < -20 * drift.energy_slope_error
    assert drift.gradient_ratio == pytest.approx(1, rel=1e-6)
    assert drift.non_finite == 0


def test_chains_that_diverge_later_are_reported():
    """Energy -x^4 with steps that grow: finite at 2 steps, gone at 40."""
    drift = long_run_drift(
        jax.random.key(3),
        lambda params, x: -params * jnp.sum(x**4),
        1.0,
        partial(sgld, step_size=0.1, noise_scale=0.0),
        jnp.array([[0.0], [0.0], [1.0], [2.0]]),
        2,
        multiple=20,
    )
    assert drift.probe.non_finite[1] == 0
    assert drift.non_finite == 0.5
    assert drift.energy_change == 0  # of those that stand still at 0


def test_new_numbers_and_checkpoints_do_not_compile_again():
    traces = []

    def energy(params, x):
        traces.append(x)
        return params * jnp.sum(x**2)

    run = partial(probe_chains, jax.random.key(0), energy)
    run(1.0, partial(mala, step_size=0.1), jnp.ones((4, 2)), [1, 5])
    before = len(traces)
    second = run(2.0, partial(mala, step_size=0.2), jnp.zeros((4, 2)), [3, 5])
    assert len(traces) == before
    assert second.steps.tolist() == [0, 3, 5]
    assert second.acceptance is not None
    assert 0 < second.acceptance[1] <= 1


@pytest.mark.parametrize("checkpoints", [[], [0, 1], [3, 3], [5, 2], [1.5], 4])
def test_bad_checkpoints_are_refused(checkpoints):
    with pytest.raises(ValueError, match="checkpoints="):
        probe_chains(
            jax.random.key(0), slope, 1.0, partial(sgld, step_size=0.1), jnp.ones((4, 2)), checkpoints
        )


def test_other_bad_input_is_refused():
    kernel = partial(sgld, step_size=0.1)
    run = partial(probe_chains, jax.random.key(0))
    with pytest.raises(ValueError, match="positions has"):
        run(slope, 1.0, kernel, jnp.ones(()), [1])
    with pytest.raises(TypeError, match="positions has dtype int32"):
        run(slope, 1.0, kernel, jnp.ones((4, 2), int), [1])
    with pytest.raises(ValueError, match="step_size"):
        run(slope, 1.0, partial(sgld, step_size=-0.1), jnp.ones((4, 2)), [1])
    with pytest.raises(ValueError, match="returned shape"):
        run(lambda params, x: x, 1.0, kernel, jnp.ones((4, 2)), [1])
    drift = partial(long_run_drift, jax.random.key(0), slope, 1.0, kernel)
    with pytest.raises(ValueError, match="multiple=1"):
        drift(jnp.ones((4, 2)), 5, multiple=1)
    with pytest.raises(ValueError, match="num_steps=0"):
        drift(jnp.ones((4, 2)), 0)
    with pytest.raises(ValueError, match="checkpoints_per_decade=0"):
        drift(jnp.ones((4, 2)), 5, checkpoints_per_decade=0)
    with pytest.raises(ValueError, match="positions holds 1 chain"):
        drift(jnp.ones((1, 2)), 5)


def test_energies_whose_squares_overflow_have_a_deviation():
    """A slope of 2^100 and steps of 2^-100: the chains of a slope of 1, with energies in units of 2^100."""
    unit = np.float32(2.0**100)
    positions = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    plain, steep = (
        long_run_drift(
            jax.random.key(0),
            slope,
            params,
            partial(sgld, step_size=0.5 / params, noise_scale=0.0),
            positions,
            1,
            multiple=2,
        )
        for params in (np.float32(1), unit)
    )
    np.testing.assert_array_equal(steep.probe.energy_deviation, plain.probe.energy_deviation * unit)
    np.testing.assert_array_equal(steep.energy_change_error, plain.energy_change_error * unit)


@pytest.mark.parametrize(("make_kernel", "dtype"), [(sgld, jnp.float32), (mala, jnp.float16)])
def test_narrow_positions_under_x64(make_kernel, dtype):
    with jax.enable_x64(True):
        kernel, positions = partial(make_kernel, step_size=0.1), jnp.ones((3, 2), dtype)
        probe = probe_chains(jax.random.key(0), slope, 1.0, kernel, positions, [1, 2])
        assert np.isfinite(probe.energy).all()


def test_what_is_no_function_or_key_is_named():
    run = partial(probe_chains, positions=jnp.ones((3, 2)), checkpoints=[1])
    with pytest.raises(TypeError, match="energy"):
        run(jax.random.key(0), "slope", 1.0, partial(sgld, step_size=0.1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="make_kernel"):
        run(jax.random.key(0), slope, 1.0, "sgld")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="rng_key"):
        run(jax.random.PRNGKey(0), slope, 1.0, partial(sgld, step_size=0.1))
