"""Gauges of training: their parts against hand counts, and the compiled whole against its parts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.chains.probe import long_run_drift
from jaxebm.evaluation.chains.stein import kernel_stein_discrepancy
from jaxebm.evaluation.chains.telemetry import buffer_summary, energy_gap, make_telemetry
from jaxebm.evaluation.samples.discrepancy import maximum_mean_discrepancy, median_bandwidth
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.metropolis import mala
from jaxebm.samplers.replay import ReplayBuffer

pytestmark = pytest.mark.usefixtures("cheap_compilation")

TRACES = []


def energy(params, x):
    TRACES.append(x)
    return 0.5 * params * jnp.sum(x**2)


def points(seed, count, width=1.0):
    return width * np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)


def test_energy_gap_and_its_error():
    data, model = points(0, 7), points(1, 5, 2.0)
    gap = energy_gap(energy, 1.5, data, model)
    at_data, at_model = (0.75 * (x.astype(np.float64) ** 2).sum(axis=1) for x in (data, model))
    assert float(gap.energy_data) == pytest.approx(at_data.mean(), rel=1e-5)
    assert float(gap.energy_model) == pytest.approx(at_model.mean(), rel=1e-5)
    assert float(gap.gap) == pytest.approx(at_data.mean() - at_model.mean(), rel=1e-5)
    error = np.sqrt(at_data.var(ddof=1) / 7 + at_model.var(ddof=1) / 5)
    assert float(gap.standard_error) == pytest.approx(error, rel=1e-5)


def test_the_error_of_the_gap_is_its_spread():
    """E of N(0, I_2) is exponential of mean 1: gaps of many pairs of sets, in units of their own errors."""
    x = np.random.default_rng(2).normal(size=(1000, 80, 2)).astype(np.float32)
    gaps = jax.jit(jax.vmap(partial(energy_gap, energy, 1.0)))(x[:, :50], x[:, 50:])
    spread = np.asarray(gaps.gap).std()
    assert spread == pytest.approx(np.sqrt(1 / 50 + 1 / 30), rel=5 / np.sqrt(2000))
    assert float(jnp.sqrt(jnp.mean(gaps.standard_error**2))) == pytest.approx(spread, rel=0.12)


def test_a_buffer_with_a_broken_slot():
    positions = {"a": jnp.zeros((5, 2)).at[3, 1].set(jnp.inf), "b": jnp.zeros(5).at[3].set(jnp.nan)}
    ages = jnp.array([0, 20, 60, 0, 200])
    summary = buffer_summary(ReplayBuffer(positions, jnp.zeros(5, jnp.int32), ages))
    assert [float(value) for value in summary] == pytest.approx([56.0, 20.0, 200.0, 0.4, 0.2])


KERNEL = partial(sgld, step_size=0.1)
DATA = points(3, 60)


@pytest.fixture(scope="module")
def telemetry():
    return make_telemetry(energy, KERNEL, DATA, num_steps=4)


@pytest.fixture
def metrics(telemetry):
    return telemetry(jax.random.key(0), 1.0, points(4, 40, 3.0), jnp.array([0, 10, 20]))


def test_metrics_are_their_parts(metrics):
    model = points(4, 40, 3.0)
    gap = energy_gap(energy, 1.0, DATA, model)
    starts = model[np.arange(32) * 40 // 32]  # at most 32 chains, evenly spaced
    drift = long_run_drift(
        jax.random.key(0), energy, 1.0, KERNEL, starts, 4, multiple=10, checkpoints_per_decade=1
    )
    bandwidth = median_bandwidth(DATA)
    expected = {
        "energy_data": gap.energy_data,
        "energy_model": gap.energy_model,
        "energy_gap": gap.gap,
        "energy_gap_error": gap.standard_error,
        "gradient_norm_first": np.linalg.norm(starts, axis=1).mean(),  # the gradient of |x|^2 / 2 is x
        "gradient_norm_last": drift.probe.gradient_norm[1],
        "chain_distance": drift.probe.distance[1],
        "long_run_energy_change": drift.energy_change,
        "long_run_energy_change_error": drift.energy_change_error,
        "long_run_relative_change": drift.relative_change,
        "long_run_gradient_ratio": drift.gradient_ratio,
        "long_run_non_finite": 0.0,
        "mmd_squared": maximum_mean_discrepancy(DATA, model, bandwidth=bandwidth),
        "ksd_squared": kernel_stein_discrepancy(energy, 1.0, model, scale=bandwidth).u_statistic,
        "buffer_age_mean": 10.0,
        "buffer_age_max": 20.0,
    }
    assert drift.probe.steps.tolist() == [0, 4, 40]
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        assert value.shape == ()
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-5), name


def test_they_tell_a_good_model_from_a_bad_one(telemetry, metrics):
    """Samples too wide for the data and the energy, against the data's own law."""
    good = telemetry(jax.random.key(1), 1.0, points(5, 40), jnp.array([0, 10, 20]))
    assert metrics["energy_gap"] < -4 * metrics["energy_gap_error"]
    assert abs(good["energy_gap"]) < 4 * good["energy_gap_error"]
    assert abs(good["long_run_energy_change"]) < 4 * good["long_run_energy_change_error"]
    assert metrics["mmd_squared"] > 3 * abs(good["mmd_squared"])
    assert metrics["ksd_squared"] > 3 * abs(good["ksd_squared"])


def test_new_parameters_and_samples_run_the_same_program(telemetry, metrics):
    before = len(TRACES)
    telemetry(jax.random.key(2), 2.0, points(6, 40), jnp.array([5, 6, 7]))
    assert len(TRACES) == before


def test_broken_samples_give_broken_metrics_and_no_exception(telemetry, metrics):
    broken = points(4, 40, 3.0)
    broken[0] = np.nan
    found = telemetry(jax.random.key(0), 1.0, broken, jnp.array([0, 10, 20]))
    assert float(found["long_run_non_finite"]) == pytest.approx(1 / 32)
    assert all(np.isnan(found[name]) for name in ("energy_gap", "mmd_squared", "ksd_squared"))
    assert found["energy_data"] == metrics["energy_data"]
    assert np.isfinite(found["long_run_energy_change"])


def test_acceptance_other_starts_and_limits():
    telemetry = make_telemetry(
        energy, partial(mala, step_size=0.5), DATA, num_steps=1, multiple=2, max_points=3, max_chains=2
    )
    starts = np.full((2, 2), 3.0, np.float32)
    found = telemetry(jax.random.key(0), 1.0, points(4, 6), x_start=starts)
    assert 0 < found["chain_acceptance"] <= 1
    assert "buffer_age_mean" not in found
    assert float(found["gradient_norm_first"]) == pytest.approx(3 * np.sqrt(2), rel=1e-5)
    kept = DATA[[0, 20, 40]].astype(np.float64)
    assert float(found["energy_data"]) == pytest.approx(0.5 * (kept**2).sum(axis=1).mean(), rel=1e-5)


def test_bad_input_is_refused(telemetry):
    with pytest.raises(ValueError, match="num_steps=0"):
        make_telemetry(energy, KERNEL, DATA, num_steps=0)
    for name in ("multiple", "max_points", "max_chains"):
        with pytest.raises(ValueError, match=f"{name}=1"):
            make_telemetry(energy, KERNEL, DATA, num_steps=1, **{name: 1})
    with pytest.raises(ValueError, match="x_data holds 1 point"):
        make_telemetry(energy, KERNEL, DATA[:1], num_steps=1)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="x_model holds 1 example"):
        telemetry(key, 1.0, DATA[:1])
    with pytest.raises(ValueError, match=r"x_model of shape \(3,\)"):
        telemetry(key, 1.0, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"x_start of shape \(3,\)"):
        telemetry(key, 1.0, DATA, x_start=jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="x_data holds 1 example"):
        energy_gap(energy, 1.0, DATA[:1], DATA)
    with pytest.raises(ValueError, match="step_size"):
        make_telemetry(energy, partial(sgld, step_size=-1.0), DATA, num_steps=1)(key, 1.0, DATA)


def test_energies_whose_squares_overflow_have_an_error():
    """Of samples that left; the energy is x itself."""
    data, model = np.array([1.0, 3.0, 8.0], np.float32), np.array([2.0, 4.0], np.float32)
    run = partial(energy_gap, lambda params, x: params * x)
    plain, far = (run(unit, data, model) for unit in (np.float32(1), np.float32(2.0**100)))
    np.testing.assert_array_equal(np.array(far), np.array(plain) * np.float32(2.0**100))


def test_what_is_no_buffer_and_data_of_one_point_are_named():
    with pytest.raises(TypeError, match="buffer is of type dict"):
        buffer_summary({})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"buffer\.ages has shape"):
        buffer_summary(ReplayBuffer(jnp.zeros((4, 2)), jnp.zeros(4, int), jnp.zeros((1, 4), int)))
    with pytest.raises(ValueError, match="x_data holds one point many times"):
        make_telemetry(energy, partial(sgld, step_size=0.1), jnp.full((5, 2), 0.1), num_steps=2)


def test_narrow_samples_under_x64():
    with jax.enable_x64(True):
        data, model = (jnp.asarray(points(seed, 5), jnp.float16) for seed in (0, 1))
        assert all(np.isfinite(value) for value in energy_gap(energy, 1.0, data, model))
