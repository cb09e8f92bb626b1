"""Energies of +inf, density 0, and of NaN or -inf, faults: what estimates and likelihoods make of them."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxebm.evaluation.partition.annealing_path import Base, anneal
from jaxebm.evaluation.partition.bounded import restrict_to_box
from jaxebm.evaluation.partition.dequantisation import dequantised_log_likelihood
from jaxebm.evaluation.partition.importance_sampling import (
    annealed_importance_sampling,
    log_partition_interval,
    reverse_annealed_importance_sampling,
)
from jaxebm.evaluation.partition.likelihood import log_likelihood
from jaxebm.evaluation.partition.path_fitting import fit_annealing_path, linear_schedule
from jaxebm.evaluation.partition.quadrature import (
    grid,
    kl_divergence_on_grid,
    log_density_on_grid,
    log_partition_on_grid,
)
from jaxebm.samplers import mala

pytestmark = pytest.mark.usefixtures("cheap_compilation")

INF, NAN = math.inf, math.nan
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
NUM_CHAINS = 2_000


class Bounded(NamedTuple):
    """(y - centre)^2 / 2, or 0 if flat, from low to high, ``beyond`` elsewhere: one program for all tests."""

    low: float = -INF
    high: float = INF
    centre: float = 0.0
    beyond: float = INF
    scale: float = 1.0


def energy(params, y):
    value = 0.5 * params.scale * jnp.sum(jnp.square(y - params.centre))
    inside = (y[0] >= params.low) & (y[0] <= params.high)
    return jnp.where(inside, value, params.beyond)


def of_floats(params):
    return Bounded(*(jnp.asarray(value, jnp.float32) for value in params))


def log_z(params):
    """Exact: of a normal that is cut off, or of a uniform density."""
    if params.scale == 0:
        return math.log(params.high - params.low)
    ends = scipy.stats.norm.cdf([params.low - params.centre, params.high - params.centre])
    return HALF_LOG_TWO_PI + math.log(ends[1] - ends[0])


def base_of(params, draws=None):
    def sample(rng_key, _, n):
        if draws is not None:
            return draws
        if params.scale == 0:
            return jax.random.uniform(rng_key, (n, 1), minval=params.low, maxval=params.high)
        return jax.random.normal(rng_key, (n, 1))

    return Base(energy, of_floats(params), lambda _: jnp.asarray(log_z(params)), sample)


def exact_samples(seed, params, n):
    uniform = np.random.default_rng(seed).uniform(size=(n, 1))
    ends = scipy.stats.norm.cdf([params.low - params.centre, params.high - params.centre])
    return jnp.asarray(
        params.centre + scipy.stats.norm.ppf(ends[0] + uniform * (ends[1] - ends[0])), jnp.float32
    )


NORMAL, HALF, BOX = Bounded(), Bounded(low=0.0, centre=1.0), Bounded(low=-1.0, high=1.5, scale=0.0)
KERNEL = partial(mala, step_size=0.3)
SCHEDULE = linear_schedule(16)


def forward(target, base, draws=None, schedule=SCHEDULE):
    problem = (energy, of_floats(target), base_of(base, draws), KERNEL, schedule)
    return annealed_importance_sampling(jax.random.key(0), *problem, NUM_CHAINS)


def reverse(target, base, samples, schedule=SCHEDULE):
    problem = (energy, of_floats(target), base_of(base), KERNEL, schedule)
    return reverse_annealed_importance_sampling(jax.random.key(1), *problem, samples)


def repeated(points):
    return jnp.tile(jnp.array(points)[:, None], (NUM_CHAINS // len(points), 1))


@pytest.mark.parametrize(
    ("target", "base", "support"),
    [
        (HALF, NORMAL, HALF),  # log Z = log(sqrt(2 pi) Phi(1)) = .7462
        (Bounded(low=-1.0, high=2.0, centre=0.5), NORMAL, Bounded(low=-1.0, high=2.0, centre=0.5)),
        (Bounded(low=1.0, high=2.0), NORMAL, Bounded(low=1.0, high=2.0)),  # six of seven chains start beyond
        (NORMAL, BOX, Bounded(low=-1.0, high=1.5)),  # the base sees no more of the model than its own box
        (HALF, BOX, Bounded(low=0.0, high=1.5, centre=1.0)),
    ],
)
def test_chains_that_start_at_infinite_energy_weigh_nothing(target, base, support):
    result = forward(target, base)
    assert abs(result.log_partition - log_z(support)) < 4 * result.standard_error < 0.3
    start = base_of(base).sample(jax.random.split(jax.random.key(0))[0], None, NUM_CHAINS)
    beyond = np.asarray((start < target.low) | (start > target.high))[:, 0]
    np.testing.assert_array_equal(np.isneginf(result.log_weights), beyond)
    assert np.all(np.isfinite(result.log_weights[~beyond]))
    weights = np.exp(np.asarray(result.log_weights, np.float64))
    error = weights.std(ddof=1) / weights.mean() / NUM_CHAINS**0.5
    np.testing.assert_allclose(result.standard_error, error, rtol=1e-4)
    assert result.non_finite == 0
    assert np.all(np.isfinite(result.positions))


def test_the_case_of_the_half_line_has_its_known_value():
    assert log_z(HALF) == pytest.approx(0.7462, abs=1e-4)


def test_an_energy_that_is_infinite_everywhere_has_no_mass():
    """Z = 0: log Z is -inf, and nothing is known of its error."""
    nowhere = Bounded(low=5.0, high=4.0)
    result = forward(nowhere, NORMAL)
    assert result.log_partition == -INF
    assert result.standard_error == INF
    assert result.effective_sample_size == 0
    assert result.non_finite == 0
    assert np.all(np.isneginf(result.log_weights))


def test_temperatures_that_stand_still_at_either_end_see_one_energy_alone():
    """0 times inf: at t = 0 chains move through places without mass of the model, and are not weighed."""
    schedule = jnp.concatenate([jnp.zeros(2), linear_schedule(12), jnp.ones(2)])
    for target, base in ((HALF, NORMAL), (NORMAL, BOX)):
        result = forward(target, base, schedule=schedule)
        support = BOX._replace(scale=1.0) if base is BOX else HALF
        assert abs(result.log_partition - log_z(support)) < 4 * result.standard_error < 0.3
        assert result.non_finite == 0
        assert np.all(np.isfinite(result.positions))
    # Beyond its base the model's own samples move on at t = 1, and come back with the right weight.
    result = reverse(NORMAL, BOX, exact_samples(3, NORMAL, NUM_CHAINS), schedule)
    assert abs(result.log_partition - log_z(NORMAL)) < 4 * result.standard_error < 0.3


@pytest.mark.parametrize("beyond", [NAN, -INF])
def test_chains_at_nan_are_counted_and_refused_and_the_others_are_not_touched(beyond):
    """The estimate is that of the energy with +inf in the place of NaN, so it stays a lower bound."""
    faulty, clean = forward(HALF._replace(beyond=beyond), NORMAL), forward(HALF, NORMAL)
    assert not np.any(np.isnan(faulty.log_weights))
    assert np.isfinite(faulty.log_partition)
    assert faulty.non_finite >= np.isneginf(clean.log_weights).sum() > 900
    if math.isnan(beyond):  # Metropolis refuses proposals at NaN as it does those at +inf
        assert faulty.non_finite == np.isneginf(clean.log_weights).sum()
        np.testing.assert_array_equal(faulty.log_weights, clean.log_weights)
        assert faulty.log_partition == clean.log_partition
        assert faulty.standard_error == clean.standard_error


def test_a_start_beyond_its_own_support_is_a_fault_and_on_the_border_it_is_none():
    draws = repeated([-1.0, 1.5, 0.3, 1.5001, -7.0])
    result = forward(NORMAL, BOX, draws)
    assert result.non_finite == NUM_CHAINS * 2 / 5
    np.testing.assert_array_equal(np.isneginf(result.log_weights[:5]), [False, False, False, True, True])
    both = forward(Bounded(low=0.35), BOX, draws)  # inf - inf at the fifth, density 0 at the first and third
    assert both.non_finite == NUM_CHAINS * 2 / 5
    np.testing.assert_array_equal(np.isfinite(both.log_weights[:5]), [False, True, False, False, False])
    back = reverse(HALF, NORMAL, repeated([-0.1, 0.0, 2.0, 1.0]))
    assert back.non_finite == NUM_CHAINS / 4
    assert np.isfinite(back.log_partition)


def test_the_log_weights_of_a_walk_tell_density_zero_from_a_fault():
    start = repeated([0.5, -0.5, NAN, INF])
    log_weights, _ = anneal(
        jax.random.key(0), energy, of_floats(HALF), base_of(NORMAL), KERNEL, SCHEDULE, start
    )
    assert np.isfinite(log_weights[0])
    assert log_weights[1] == -INF
    assert np.all(np.isnan(log_weights[2:4]))


def test_backward_a_model_wider_than_its_base_gives_its_own_log_partition():
    samples = exact_samples(0, NORMAL, NUM_CHAINS)
    result = reverse(NORMAL, BOX, samples)
    assert abs(result.log_partition - log_z(NORMAL)) < 4 * result.standard_error < 0.3
    outside = np.asarray((samples < BOX.low) | (samples > BOX.high))[:, 0]
    np.testing.assert_array_equal(np.isneginf(result.log_weights), outside)
    assert result.non_finite == 0


def test_backward_a_model_narrower_than_its_base_is_bounded_above_by_a_known_distance():
    """E[w] = (1 - P) Z_0 / Z, with the base's mass P = 1/2 where the model has none: log 2 too high."""
    result = reverse(HALF, NORMAL, exact_samples(1, HALF, NUM_CHAINS))
    assert abs(result.log_partition - log_z(HALF) - math.log(2)) < 4 * result.standard_error < 0.3
    assert np.all(np.isfinite(result.log_weights))
    assert result.non_finite == 0


def test_the_interval_holds_log_z_and_ends_without_weights_are_infinite():
    problem = (base_of(NORMAL), KERNEL, SCHEDULE, NUM_CHAINS)
    samples = exact_samples(2, HALF, NUM_CHAINS)
    interval = log_partition_interval(jax.random.key(3), energy, of_floats(HALF), *problem, samples)
    assert interval.low < log_z(HALF) < interval.high
    assert interval.high - interval.low < 1.2  # log 2 and both errors
    nowhere = of_floats(Bounded(low=5.0, high=4.0))
    vacuous = log_partition_interval(jax.random.key(3), energy, nowhere, *problem, samples)
    assert (vacuous.low, vacuous.high) == (-INF, INF)
    assert vacuous.reverse.non_finite == NUM_CHAINS


def test_a_path_is_fitted_on_the_chains_that_have_weight():
    """Steps and schedule are finite, count no faults, and the estimate along them is right."""
    path = fit(HALF)
    for leaf in jax.tree.leaves(path):
        assert np.all(np.isfinite(leaf))
    assert path.schedule[0] == 0
    assert path.schedule[-1] == 1
    assert np.all(np.diff(path.schedule) > 0)
    assert np.all(path.kernel_schedule["step_size"] > 0.05)
    assert path.non_finite == 0
    # sd of E_0 - E_1 = 1/2 - y at t = 0, of a normal above 0: sqrt(1 - 2 / pi)
    assert path.spread[0] == pytest.approx((1 - 2 / math.pi) ** 0.5, rel=0.35)


NORMAL_BASE = base_of(NORMAL)  # one, because programs are recognised by it


def fit(target):
    key = jax.random.key(5)
    return fit_annealing_path(
        key, energy, of_floats(target), NORMAL_BASE, mala, 9, step_size=0.3, num_chains=50,
        num_pilot_temperatures=20, num_rounds=2,
    )  # fmt: skip


def test_a_path_of_nan_energies_is_counted_and_one_without_any_mass_is_refused():
    path = fit(HALF._replace(beyond=NAN))
    assert 10 < path.non_finite < 40
    for leaf in jax.tree.leaves(path):
        assert np.all(np.isfinite(leaf))
    for beyond, number in ((INF, 0), (NAN, 50)):
        with pytest.raises(
            ValueError, match=f"energy=energy: E_0 - E_1 is finite at none of 50.*NaN at {number}"
        ):
            fit(Bounded(low=5.0, high=4.0, beyond=beyond))


def test_a_grid_gives_density_zero_to_infinite_energies_and_names_the_point_of_nan():
    points, log_cell_volume = grid(-9.0, 9.0, 360, dimension=1)
    params = of_floats(HALF)
    found = log_partition_on_grid(energy, params, points, log_cell_volume)
    assert float(found) == pytest.approx(log_z(HALF), abs=1e-4)
    log_p = log_density_on_grid(energy, params, points, log_cell_volume)
    np.testing.assert_array_equal(np.isneginf(log_p), np.asarray(points[:, 0]) < 0)
    assert float(jnp.sum(jnp.exp(log_p + log_cell_volume))) == pytest.approx(1.0, abs=1e-5)
    gradient = jax.grad(lambda centre: log_partition_on_grid(
        energy, params._replace(centre=centre), points, log_cell_volume))(1.0)  # fmt: skip
    mean = 1 + scipy.stats.norm.pdf(1) / scipy.stats.norm.cdf(1)
    assert float(gradient) == pytest.approx(mean - 1, abs=1e-3)  # of y - centre
    nowhere = of_floats(Bounded(low=50.0, high=40.0))
    assert log_partition_on_grid(energy, nowhere, points, log_cell_volume) == -INF
    with pytest.raises(ValueError, match=r"energy=energy is \+inf at all 360 points"):
        log_density_on_grid(energy, nowhere, points, log_cell_volume)
    for beyond in (NAN, -INF):
        with pytest.raises(
            ValueError,
            match=r"energy=energy is NaN or -inf at 180 of 360 points, first at points\[0\] = \[-8.9",
        ):
            log_density_on_grid(energy, params._replace(beyond=jnp.float32(beyond)), points, log_cell_volume)
    for bad in (NAN, INF):
        for name, pair in (("log_density_data", (bad, 0.0)), ("log_density_model", (0.0, bad))):
            with pytest.raises(ValueError, match=rf"{name} holds NaN or \+inf"):
                kl_divergence_on_grid(*(jnp.array([value, -1.0]) for value in pair), 0.0)


def test_likelihoods_are_minus_infinity_beyond_the_support_and_nan_stays_with_its_example():
    data, params = jnp.array([[0.5], [-0.5], [2.0]]), of_floats(HALF)
    values = log_likelihood(energy, params, data, log_z(HALF))
    np.testing.assert_allclose(values, [-0.125 - log_z(HALF), -INF, -0.5 - log_z(HALF)], rtol=1e-5)
    faulty = log_likelihood(energy, params._replace(beyond=jnp.float32(NAN)), data, log_z(HALF))
    np.testing.assert_array_equal(np.isnan(faulty), [False, True, False])
    np.testing.assert_array_equal(faulty[::2], values[::2])
    assert np.all(np.isneginf(log_likelihood(energy, params, data, INF)))  # an upper bound without weights


def test_the_mass_of_a_cell_counts_the_draws_within_the_support():
    """A uniform density on [0, 1]: the cell around 0 has half the mass of one inside, one below has none."""
    params, data = of_floats(Bounded(low=0.0, high=1.0, scale=0.0)), jnp.array([[0.0], [0.5], [-0.5]])
    masses = dequantised_log_likelihood(jax.random.key(0), energy, params, data, 0.0, 0.2, num_draws=4_000)
    fraction = math.exp(masses[0]) / 0.2
    assert abs(fraction - 0.5) < 4 * 0.5 / 4_000**0.5
    np.testing.assert_allclose(masses[1:], [math.log(0.2), -INF], rtol=1e-4)
    faulty = params._replace(beyond=jnp.float32(NAN))
    nan = dequantised_log_likelihood(jax.random.key(0), energy, faulty, data, 0.0, 0.2, num_draws=4_000)
    np.testing.assert_array_equal(np.isnan(nan), [True, False, True])


def test_an_energy_that_is_infinite_in_a_part_of_its_box():
    problem = restrict_to_box(energy, (1,), -2.0, 2.0)
    result = annealed_importance_sampling(
        jax.random.key(0), problem.energy, of_floats(HALF), problem.base, partial(mala, step_size=0.5),
        linear_schedule(10), NUM_CHAINS,
    )  # fmt: skip
    exact = log_z(Bounded(low=0.0, high=2.0, centre=1.0))
    assert abs(result.log_partition - exact) < 4 * result.standard_error < 0.3
    assert result.non_finite == 0


def test_float32_positions_and_params_under_x64():
    """Weights are float64, positions stay float32, and every number is right."""
    with jax.enable_x64(True):
        params = of_floats(HALF)
        draws = jnp.asarray(np.random.default_rng(4).normal(size=(NUM_CHAINS, 1)), jnp.float32)
        base = base_of(NORMAL)._replace(sample=lambda rng_key, _, n: draws[:n])
        problem = (energy, params, base)
        samples = exact_samples(5, HALF, NUM_CHAINS)
        interval = log_partition_interval(
            jax.random.key(0), *problem, KERNEL, linear_schedule(16), NUM_CHAINS, samples
        )
        for result in (interval.forward, interval.reverse):
            assert result.log_weights.dtype == jnp.float64
            assert result.positions.dtype == jnp.float32
        assert interval.low < log_z(HALF) < interval.high
        options = {"num_chains": 20, "num_pilot_temperatures": 5, "num_rounds": 1, "step_size": 0.3}
        path = fit_annealing_path(jax.random.key(0), *problem, mala, 4, **options)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(path))
        values = log_likelihood(energy, params, samples[:3], log_z(HALF))
        np.testing.assert_allclose(values, -0.5 * (samples[:3, 0] - 1) ** 2 - log_z(HALF), rtol=1e-5)
        masses = dequantised_log_likelihood(jax.random.key(0), energy, params, samples[:3], 0.0, 0.1)
        assert np.all(np.isfinite(masses))
        points, log_cell_volume = grid(-9.0, 9.0, 360, dimension=1)
        found = log_partition_on_grid(energy, params, points, log_cell_volume)
        assert float(found) == pytest.approx(log_z(HALF), abs=1e-4)
