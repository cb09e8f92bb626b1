"""Sequential Monte Carlo against exact partition functions, laws and a mixture of forty modes."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from jaxebm.energies.analytic import double_well, gaussian, gaussian_mixture
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.metropolis import mala
from jaxebm.samplers.sequential import sequential_monte_carlo
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_RUNS = 48


class State(NamedTuple):
    position: object


def stay(target):
    del target
    return Kernel(lambda position, rng_key=None: State(position), lambda rng_key, state: (state, None))


def within(values, exact):
    """Whether the mean of independent runs is right to 5 sigma: Student's t of the error that they show."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    bound = student.ppf(1 - 3e-7, len(values) - 1)
    return np.all(np.abs(values.mean(axis=0) - exact) < bound * error)


# A skewed target: two wells of unequal depth in one direction, a normal in the other.

WELLS = double_well(barrier=4.0, separation=4.0, tilt=1.5, dimension=2)
WIDE = gaussian([0.5, 0.5], 9.0 * np.eye(2))


def steps_at(b):
    return {"step_size": 0.5 / (1 + 4 * b)}


@pytest.fixture(scope="module")
def wells():
    def one_run(rng_key):
        particles_key, walk_key = jax.random.split(rng_key)
        return sequential_monte_carlo(
            walk_key, WELLS.energy, WELLS.params, WIDE.energy, WIDE.params,
            WIDE.sample(particles_key, WIDE.params, 256), mala,
            num_steps_per_temperature=8, target_effective_fraction=0.7, max_num_temperatures=20,
            parameters_at=steps_at,
        )  # fmt: skip

    return jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(0), NUM_RUNS))


@jax.jit
def exact_answers():
    log_ratio = WELLS.log_partition(WELLS.params) - WIDE.log_partition(WIDE.params)
    return log_ratio, WELLS.moments(WELLS.params)


def test_the_ratio_of_partition_functions_is_exact_on_average(wells):
    ratio = np.exp(np.asarray(wells.log_partition_ratio, np.float64) - float(exact_answers()[0]))
    assert within(ratio, 1.0)
    assert ratio.std() < 0.25  # so that the bound above means something


def test_the_particles_have_the_moments_of_the_skewed_target(wells):
    mean, covariance = (np.asarray(moment, np.float64) for moment in exact_answers()[1])
    x = np.asarray(wells.particles, np.float64)
    assert x.shape == (NUM_RUNS, 256, 2)
    assert within(x.mean(axis=1), mean)
    second = np.einsum("rni,rnj->rij", x, x) / x.shape[1]
    assert within(second, covariance + np.outer(mean, mean))
    assert float(mean[0]) > 0.5  # a sign error could not pass


def test_the_record(wells):
    steps = np.asarray(wells.num_temperatures)
    assert np.all(wells.completed)
    assert np.all((steps > 1) & (steps < 20))
    for run in range(NUM_RUNS):
        taken = steps[run]
        b = np.asarray(wells.inverse_temperatures[run])
        assert np.all(np.diff(b[:taken]) > 0)
        assert b[taken - 1] == 1.0
        fraction = np.asarray(wells.effective_fraction[run])
        # Bisection meets the wanted fraction; what is left for the last step may be less.
        np.testing.assert_allclose(fraction[: taken - 1], 0.7, atol=2e-3)
        assert 0.699 < fraction[taken - 1] <= 1.0
        rate = np.asarray(wells.acceptance_rate[run])
        assert np.all((rate[:taken] > 0.3) & (rate[:taken] <= 1.0))
        for record in (b, fraction, rate):
            assert record.shape == (20,)
            assert np.all(np.isnan(record[taken:]))


# One walk of particles that never move: all is then arithmetic on given numbers.


def linear(params, x):
    return params * x


def flat(params, x):
    del params, x
    return jnp.zeros(())


def test_one_step_is_importance_sampling():
    x = np.linspace(0.0, 3.0, 50)
    result = sequential_monte_carlo(
        jax.random.key(0),
        linear,
        jnp.array(0.5),
        flat,
        None,
        jnp.asarray(x),
        stay,
        target_effective_fraction=0.1,
    )
    assert int(result.num_temperatures) == 1
    weights = np.exp(-0.5 * x)
    assert float(result.log_partition_ratio) == pytest.approx(np.log(weights.mean()), rel=1e-5)
    effective = weights.sum() ** 2 / np.sum(weights**2) / len(x)
    assert float(result.effective_fraction[0]) == pytest.approx(effective, rel=1e-5)
    # Systematic resampling copies each particle either the floor or the ceiling of n w times.
    copies = np.array([np.sum(np.isclose(result.particles, value)) for value in x])
    expected = len(x) * weights / weights.sum()
    assert np.all((copies >= np.floor(expected)) & (copies <= np.ceil(expected)))
    assert result.acceptance_rate is None


def test_a_walk_that_does_not_arrive_says_so():
    x = jnp.linspace(0.0, 1.0, 20)
    result = sequential_monte_carlo(
        jax.random.key(0), linear, jnp.array(1e4), flat, None, x, stay,
        target_effective_fraction=0.9, max_num_temperatures=2,
    )  # fmt: skip
    assert not result.completed
    assert np.isnan(result.log_partition_ratio)
    assert float(result.inverse_temperatures[-1]) < 1
    assert int(result.num_temperatures) == 2


def test_walls_of_infinite_energy_are_left():
    def wall(params, x):
        return jnp.where(x > params, jnp.inf, 0.0)

    x = (jnp.arange(100) + 0.5) / 100
    result = sequential_monte_carlo(
        jax.random.key(0), wall, jnp.array(0.75), flat, None, x, stay, target_effective_fraction=0.5
    )
    assert result.completed
    assert float(result.log_partition_ratio) == pytest.approx(np.log(0.75), rel=1e-4)
    assert float(result.particles.max()) < 0.75


def test_a_nan_energy_is_counted_and_not_spread():
    def broken(params, x):
        return jnp.where(x == params, jnp.nan, 0.1 * x)

    x = jnp.linspace(0.0, 1.0, 21)
    result = sequential_monte_carlo(jax.random.key(0), broken, x[7], flat, None, x, stay)
    assert int(result.non_finite) == 1
    assert not result.completed
    assert np.isnan(result.log_partition_ratio)
    assert not np.any(np.asarray(result.particles) == np.asarray(x[7]))
    assert np.unique(result.particles).size > 15  # of weights between 0.9 and 1


@pytest.mark.parametrize(
    ("value", "completed", "non_finite"), [(-jnp.inf, False, 1), (jnp.inf, True, 0), (1.0, True, 0)]
)
def test_infinite_energies_of_one_particle(value, completed, non_finite):
    # +inf is a density of 0, so the weight is 0; -inf is no density.
    def spiked(params, x):
        return jnp.where(x == 0, params, 0.0)

    x = jnp.linspace(0.0, 1.0, 20)
    result = sequential_monte_carlo(jax.random.key(0), spiked, jnp.array(value), flat, None, x, stay)
    assert (bool(result.completed), int(result.non_finite)) == (completed, non_finite)
    if value == jnp.inf:
        assert float(result.log_partition_ratio) == pytest.approx(np.log(19 / 20), rel=1e-4)


@pytest.mark.parametrize(("value", "count"), [(jnp.inf, 0), (jnp.nan, 20)])
def test_without_a_weight_the_walk_stops(value, count):
    x = jnp.linspace(0.0, 1.0, 20)
    result = sequential_monte_carlo(
        jax.random.key(0), lambda params, x: params + 0 * x, jnp.array(value), flat, None, x, stay
    )
    assert not result.completed
    assert np.isnan(result.log_partition_ratio)
    assert int(result.num_temperatures) == 1
    assert float(result.inverse_temperatures[0]) == 0
    np.testing.assert_array_equal(result.particles, x)
    assert int(result.non_finite) == 2 * count  # in the weights, and in the energies of the last particles


def test_a_draw_to_which_the_reference_gives_no_density_is_counted():
    x = jnp.linspace(-1.0, 1.0, 20)
    result = sequential_monte_carlo(
        jax.random.key(0), flat, None, lambda params, x: jnp.where(x < 0, jnp.inf, 0.0), None, x, stay
    )
    assert int(result.non_finite) == 10
    assert not result.completed
    assert float(result.particles.min()) > 0


def test_half_a_line():
    # E = (y - 1)^2 / 2 for y > 0: Z_1 / Z_0 = P(N(1, 1) > 0).
    def half(params, y):
        return jnp.where(y < 0, jnp.inf, 0.5 * (y - params) ** 2)

    def one_run(rng_key):
        particles_key, walk_key = jax.random.split(rng_key)
        particles = jax.random.normal(particles_key, (200,))
        return sequential_monte_carlo(
            walk_key, half, jnp.array(1.0), quadratic, jnp.array(1.0), particles,
            functools.partial(mala, step_size=0.5), max_num_temperatures=10,
        )  # fmt: skip

    runs = jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(1), NUM_RUNS))
    assert np.all(runs.completed)
    assert not np.any(runs.non_finite)
    assert float(runs.particles.min()) >= 0
    assert within(np.exp(runs.log_partition_ratio), norm.cdf(1.0))
    assert np.std(runs.log_partition_ratio) < 0.2
    assert within(np.asarray(runs.particles).mean(axis=1), 1 + norm.pdf(1.0) / norm.cdf(1.0))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_particles_keep_their_dtype(dtype, x64):
    with jax.enable_x64(x64):
        particles = jnp.linspace(-1.0, 1.0, 8, dtype=dtype)
        result = jax.eval_shape(
            lambda key: sequential_monte_carlo(
                key, quadratic, jnp.array(2.0), quadratic, jnp.array(1.0), particles,
                functools.partial(mala, step_size=0.5), num_steps_per_temperature=2,
            ),
            jax.random.key(0),
        )  # fmt: skip
        assert result.particles.dtype == particles.dtype
        assert result.log_partition_ratio.dtype == jnp.result_type(float)


# Forty modes


def test_forty_modes_in_their_proportions():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.3, 1.7, 40)
    weights /= weights.sum()
    target = gaussian_mixture(weights, rng.uniform(-20, 20, (40, 2)), np.full(40, 0.7))
    base = gaussian([0.0, 0.0], 225.0 * np.eye(2))

    def one_run(rng_key):
        particles_key, walk_key = jax.random.split(rng_key)
        result = sequential_monte_carlo(
            walk_key, target.energy, target.params, base.energy, base.params,
            base.sample(particles_key, base.params, 500), mala,
            num_steps_per_temperature=5, max_num_temperatures=30,
            parameters_at=lambda b: {"step_size": jnp.minimum(0.4 / b, 100.0)},
        )  # fmt: skip
        joint = jax.vmap(_log_joint, (None, 0))(target.params, result.particles)
        return jnp.mean(jax.nn.softmax(joint, axis=-1), axis=0), result.log_partition_ratio, result.completed

    shares, ratio, completed = jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(1), 24))
    assert np.all(completed)
    # The expected posterior probability of a mode is its weight, however the modes overlap.
    assert within(shares, weights)
    assert np.all(np.asarray(shares).mean(axis=0) > 0.5 * weights)
    assert within(np.exp(np.asarray(ratio, np.float64) + np.log(2 * np.pi * 225.0)), 1.0)


def _log_joint(params, x):
    distance = jnp.sum((x[None] - params.means) ** 2, axis=-1) / (2 * params.scales**2)
    return params.log_weights - 2 * jnp.log(params.scales) - distance


# Arguments and compilation


def quadratic(params, x):
    return 0.5 * params * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))


def test_pytrees_are_kept_and_new_numbers_run_the_same_program():
    traces = []

    def traced(params, x):
        traces.append(None)
        return quadratic(params, x)

    particles = {"a": jnp.ones((8, 2)), "b": jnp.ones((8,), jnp.bfloat16)}

    def run(step_size, precision, fraction):
        result = sequential_monte_carlo(
            jax.random.key(0), traced, jnp.array(precision), quadratic, jnp.array(1.0), particles,
            functools.partial(sgld, step_size=step_size), target_effective_fraction=fraction,
        )  # fmt: skip
        chex.assert_trees_all_equal_shapes_and_dtypes(result.particles, particles)
        chex.assert_tree_all_finite(result.particles)

    run(0.1, 2.0, 0.5)
    first = len(traces)
    run(0.2, 3.0, 0.6)
    assert len(traces) == first


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target_effective_fraction": 1.0}, ValueError, "target_effective_fraction=1.0.*between 0 and 1"),
        ({"num_steps_per_temperature": 0}, ValueError, "num_steps_per_temperature=0"),
        ({"max_num_temperatures": 0}, ValueError, "max_num_temperatures=0"),
        ({"particles": jnp.zeros((1, 2))}, ValueError, "particles has a batch of 1"),
        ({"particles": jnp.zeros(())}, ValueError, "particles"),
        ({"target_effective_fraction": "half"}, TypeError, "target_effective_fraction"),
        ({"make_kernel": sgld(jnp.sum, 0.1)}, TypeError, "make_kernel is a kernel that is bound"),
        ({"make_kernel": lambda target, step_size: target}, TypeError, r"make_kernel\(target\)"),
        ({"parameters_at": 0.1}, TypeError, "parameters_at"),
        ({"parameters_at": lambda b: b}, TypeError, r"parameters_at\(b\)"),
        ({"particles": jnp.zeros((2, 2), int)}, TypeError, "particles has dtype int32"),
        ({"parameters_at": lambda b: {"step_size": 0.5 - b}}, ValueError, "step_size=.*greater than 0"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    accepted = {"particles": jnp.zeros((4, 2)), "make_kernel": sgld, "parameters_at": steps_at}
    with pytest.raises(error, match=message):
        sequential_monte_carlo(
            jax.random.key(0), quadratic, jnp.array(1.0), quadratic, jnp.array(2.0), **(accepted | arguments)
        )


def test_an_energy_that_is_not_a_scalar_is_named():
    def vector(params, x):
        return x

    problems = {"energy": (vector, None, quadratic, jnp.array(1.0)), "reference": (flat, None, vector, None)}
    for name, problem in problems.items():
        with pytest.raises(ValueError, match=r"\(2,\).*scalar") as caught:
            sequential_monte_carlo(jax.random.key(0), *problem, jnp.zeros((4, 2)), stay)
        assert any(name in note for note in caught.value.__notes__)
