"""Fixed schedules by their formulas; the fitted one by the path between Gaussians, whose best is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import gaussian
from jaxebm.evaluation.partition.annealing_path import anneal
from jaxebm.evaluation.partition.path_fitting import fit_annealing_path, linear_schedule, sigmoid_schedule
from jaxebm.samplers import LangevinState, mala, sgld
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.mark.parametrize("num_temperatures", [2, 9, 1_000])
@pytest.mark.parametrize("make", [linear_schedule, sigmoid_schedule])
def test_schedules_run_from_0_to_1_and_are_symmetric(make, num_temperatures):
    schedule = np.asarray(make(num_temperatures))
    assert schedule.shape == (num_temperatures,)
    assert schedule[0] == 0
    assert schedule[-1] == 1
    assert np.all(np.diff(schedule) > 0)
    np.testing.assert_allclose(schedule + schedule[::-1], 1.0, atol=1e-6)


def test_sigmoid_schedule_is_its_formula():
    sigmoid = 1 / (1 + np.exp(-3.0 * (2 * np.arange(11) / 10 - 1)))
    expected = (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])
    np.testing.assert_allclose(sigmoid_schedule(11, steepness=3.0), expected, atol=1e-7)
    np.testing.assert_allclose(sigmoid_schedule(11, steepness=1e-3), linear_schedule(11), atol=1e-6)


@pytest.mark.parametrize("wrong", [1, 0, -3, 2.0, True, None])
@pytest.mark.parametrize("make", [linear_schedule, sigmoid_schedule])
def test_schedules_refuse_fewer_than_two_temperatures(make, wrong):
    with pytest.raises(ValueError, match=r"num_temperatures=.*at least 2"):
        make(wrong)


def test_sigmoid_schedule_refuses_a_steepness_that_is_not_positive():
    with pytest.raises(ValueError, match="steepness=0"):
        sigmoid_schedule(5, steepness=0.0)


DIMENSION, PRECISION, NUM_TEMPERATURES = 10, 50.0, 33
NORMAL = gaussian(np.zeros(DIMENSION), np.eye(DIMENSION))
NARROW = gaussian(np.zeros(DIMENSION), np.eye(DIMENSION) / PRECISION)


@pytest.fixture(scope="module")
def path():
    key = jax.random.key(0)
    return fit_annealing_path(
        key, NARROW.energy, NARROW.params, NORMAL, mala, NUM_TEMPERATURES, step_size=2.0
    )


def test_between_centred_normals_the_precisions_become_geometric(path):
    """At t the precision is l = 1 + t (p - 1), and sd(E_0 - E_1) = (p - 1) sqrt(d / 2) / l.

    The integral of sd is sqrt(d / 2) log l, hence the best l are a geometric sequence. The spread of 100
    chains at one temperature is off by about a tenth, and its integral over a hundred of them by far less.
    """
    schedule = np.asarray(path.schedule, np.float64)
    precisions = 1 + schedule * (PRECISION - 1)
    assert schedule[0] == 0
    assert schedule[-1] == 1
    assert np.all(np.diff(schedule) > 0)
    np.testing.assert_allclose(
        np.log(precisions) / np.log(PRECISION), np.linspace(0, 1, NUM_TEMPERATURES), atol=0.04
    )
    exact = (DIMENSION / 2) ** 0.5 * np.log(PRECISION)
    assert float(path.length) == pytest.approx(exact, rel=0.1)


def test_the_step_follows_the_width_of_the_path(path):
    """MALA keeps its acceptance if the step shrinks as the variance does; steps of one pilot are noisy."""
    precisions = 1 + np.asarray(path.schedule) * (PRECISION - 1)
    scaled = np.asarray(path.kernel_schedule["step_size"]) * precisions
    assert scaled.max() / scaled.min() < 2.0
    rates = []
    for t in (0.0, 1.0):
        index, precision = (-1 if t else 0), 1 + t * (PRECISION - 1)
        kernel = mala(
            lambda x, p=precision: 0.5 * p * jnp.sum(x**2), path.kernel_schedule["step_size"][index]
        )
        start = jax.random.normal(jax.random.key(1), (4_000, DIMENSION)) / precision**0.5
        step = jax.jit(
            jax.vmap(lambda key, x, kernel=kernel: kernel.step(key, kernel.init(x))[1].acceptance_rate)
        )
        rates.append(float(jnp.mean(step(jax.random.split(jax.random.key(2), 4_000), start))))
    np.testing.assert_allclose(rates, 0.65, atol=0.1)


def test_the_fitted_schedule_makes_the_weights_vary_less():
    """On a path that changes fast at its start, at equal cost; each step moves exactly, so theory holds."""

    def exact_move(target):
        """Draws from the path's own normal, whose precision the target's value at a known point tells."""

        def step(rng_key, state):
            unit = jnp.zeros(DIMENSION).at[0].set(1.0)
            precision = 2 * target(unit)
            return LangevinState(jax.random.normal(rng_key, (DIMENSION,)) / jnp.sqrt(precision)), None

        return Kernel(lambda position, rng_key=None: LangevinState(position), step)

    fitted = fit_annealing_path(
        jax.random.key(3), NARROW.energy, NARROW.params, NORMAL, exact_move, NUM_TEMPERATURES
    )
    assert fitted.kernel_schedule == {}
    start = NORMAL.sample(jax.random.key(4), NORMAL.params, 4_000)
    variances = []
    for schedule in (fitted.schedule, linear_schedule(NUM_TEMPERATURES)):
        log_weights, _ = anneal(
            jax.random.key(5), NARROW.energy, NARROW.params, NORMAL, exact_move, schedule, start
        )
        precisions = 1 + np.asarray(schedule, np.float64) * (PRECISION - 1)
        expected = np.sum(np.diff(precisions) ** 2 / precisions[:-1] ** 2) * DIMENSION / 2
        variances.append(float(jnp.var(log_weights)))
        # A sum of (shifted) chi-squares: its sample variance over 4,000 has a relative error below 4%.
        assert variances[-1] == pytest.approx(expected, rel=5 * 0.04)
    assert 3 * variances[0] < variances[1]


def test_a_path_that_leads_nowhere_keeps_an_even_schedule():
    path = fit_annealing_path(
        jax.random.key(0),
        NORMAL.energy,
        NORMAL.params,
        NORMAL,
        mala,
        5,
        step_size=0.1,
        num_pilot_temperatures=4,
    )
    np.testing.assert_allclose(path.schedule, linear_schedule(5), atol=0.05)
    np.testing.assert_allclose(path.spread, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_temperatures": 1}, "num_temperatures=1"),
        ({"num_pilot_temperatures": 1}, "num_pilot_temperatures=1"),
        ({"num_chains": 1}, "num_chains=1"),
        ({"num_rounds": 0}, "num_rounds=0"),
        ({"num_steps_per_temperature": 0}, "num_steps_per_temperature=0"),
        ({"target_acceptance_rate": 1.0}, "target_acceptance_rate=1.0"),
        ({"step_size": -1.0}, "step_size=-1.0"),
        ({"step_size": np.ones(5)}, r"step_size has shape \(5,\).*It is where tuning starts"),
    ],
)
def test_errors_name_the_argument(changes, message):
    arguments = {"num_temperatures": 5, "step_size": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        fit_annealing_path(jax.random.key(0), NARROW.energy, NARROW.params, NORMAL, mala, **arguments)


def test_a_step_can_only_be_tuned_of_a_kernel_that_tells_its_acceptance():
    with pytest.raises(TypeError, match=r"make_kernel.*LangevinInfo, has no acceptance_rate: step_size"):
        fit_annealing_path(jax.random.key(0), NARROW.energy, NARROW.params, NORMAL, sgld, 5, step_size=0.1)
