"""Step schedules: their formulas, and what they do to the variance of a chain, which is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.chains import run_annealed_chain
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.step_schedules import cyclical_schedule, polynomial_schedule

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CHAINS = 10_000
NUM_STEPS = 120
STIFFNESS = 2.0


def test_polynomial_steps_are_a_times_b_plus_t_to_the_minus_gamma():
    num_steps, first, last, exponent = 50, 0.3, 0.004, 0.7
    schedule = polynomial_schedule(num_steps, first, last, exponent=exponent, temperature=0.5)
    b = (num_steps - 1) / ((first / last) ** (1 / exponent) - 1)
    a = first * b**exponent
    step_size = a * (b + np.arange(num_steps)) ** -exponent
    np.testing.assert_allclose(schedule["step_size"], step_size, rtol=1e-5)
    np.testing.assert_allclose(schedule["noise_scale"], np.sqrt(2 * step_size * 0.5), rtol=1e-5)
    assert step_size[0] == pytest.approx(first)
    assert step_size[-1] == pytest.approx(last)


def test_polynomial_steps_that_do_not_shrink_are_constant():
    for num_steps in (1, 5):
        schedule = polynomial_schedule(num_steps, 0.1, 0.1)
        np.testing.assert_allclose(schedule["step_size"], np.full(num_steps, 0.1), rtol=1e-6)


@pytest.mark.parametrize(("num_steps", "num_cycles"), [(12, 3), (14, 4), (7, 1), (5, 5)])
def test_cyclical_steps_are_the_papers(num_steps, num_cycles):
    peak, fraction, temperature = 0.4, 0.6, 0.25
    schedule = cyclical_schedule(
        num_steps, peak, num_cycles, exploration_fraction=fraction, temperature=temperature
    )
    length = int(np.ceil(num_steps / num_cycles))
    for k in range(1, num_steps + 1):  # eq. 1, which counts from 1
        elapsed = ((k - 1) % length) / length
        step_size = peak / 2 * (np.cos(np.pi * elapsed) + 1)
        assert float(schedule["step_size"][k - 1]) == pytest.approx(step_size, rel=1e-4, abs=1e-7)
        noise_scale = 0.0 if elapsed < fraction else np.sqrt(2 * step_size * temperature)
        assert float(schedule["noise_scale"][k - 1]) == pytest.approx(noise_scale, rel=1e-4, abs=1e-7)
    assert float(schedule["step_size"].min()) > 0


def test_the_whole_cycle_may_explore_or_sample():
    assert not np.any(cyclical_schedule(8, 0.1, 2, exploration_fraction=1.0)["noise_scale"])
    assert np.all(cyclical_schedule(8, 0.1, 2, exploration_fraction=0.0)["noise_scale"] > 0)


# --- on a quadratic: v <- (1 - k eps_t)^2 v + sigma_t^2, exactly ---


@pytest.fixture(scope="module")
def runs():
    """Each schedule, with the mean and the variance of many chains after each step."""
    schedules = {
        "polynomial": polynomial_schedule(NUM_STEPS, 0.6, 0.02),
        "cyclical": cyclical_schedule(NUM_STEPS, 0.4, 3, exploration_fraction=0.5),
    }

    @jax.jit
    def run(schedule):
        def one_chain(rng_key):
            _, path = run_annealed_chain(
                rng_key,
                lambda at: sgld(lambda x: 0.5 * STIFFNESS * x**2, **at),
                schedule,
                jnp.array(4.0),
                collect=lambda state, info: state.position,
            )
            return path

        paths = jax.vmap(one_chain)(jax.random.split(jax.random.key(0), NUM_CHAINS))
        return jnp.mean(paths, axis=0), jnp.var(paths, axis=0)

    return {name: (schedule, *run(schedule)) for name, schedule in schedules.items()}


@pytest.mark.parametrize("name", ["polynomial", "cyclical"])
def test_a_scheduled_chain_has_the_predicted_mean_and_variance(runs, name):
    mean, variance = 4.0, 0.0
    schedule, found_mean, found_variance = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), runs[name])
    steps = (schedule[key] for key in ("step_size", "noise_scale"))
    for t, (step_size, noise_scale) in enumerate(zip(*steps, strict=True)):
        mean = (1 - STIFFNESS * step_size) * mean
        variance = (1 - STIFFNESS * step_size) ** 2 * variance + noise_scale**2
        assert abs(found_mean[t] - mean) < 5.5 * np.sqrt(variance / NUM_CHAINS) + 1e-5
        assert abs(found_variance[t] - variance) < 5.5 * variance * np.sqrt(2 / NUM_CHAINS) + 1e-6
    if name == "polynomial":
        first = (
            1 / STIFFNESS / (1 - 0.6 * STIFFNESS / 2)
        )  # what a constant first step would end at: 2.5 times
        assert abs(variance * STIFFNESS - 1) < 0.1 < abs(first * STIFFNESS - 1)


def test_the_bias_of_shrinking_steps_goes_to_zero():
    # Of the average weighted by the steps, from the same recursion, in float64, started in the true law.
    errors = []
    for num_steps, last in ((1_000, 0.1 * 100**-0.55), (100_000, 0.1 * 10_000**-0.55)):
        step_size = np.asarray(polynomial_schedule(num_steps, 0.1, last)["step_size"], np.float64)
        variance, path = 1 / STIFFNESS, []
        for step in step_size:
            variance = (1 - STIFFNESS * step) ** 2 * variance + 2 * step
            path.append(variance)
        errors.append(abs(np.average(path, weights=step_size) * STIFFNESS - 1))
    assert errors[1] < errors[0] / 4


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"first": 0.0}, "first"),
        ({"last": -0.1}, "last"),
        ({"last": 0.2}, "last=0.2"),
        ({"exponent": 0.0}, "exponent"),
        ({"exponent": 1.5}, "exponent"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_polynomials_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        polynomial_schedule(**{"num_steps": 5, "first": 0.1, "last": 0.01, **arguments})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_steps": 1.5}, "num_steps"),
        ({"num_cycles": 0}, "num_cycles"),
        ({"num_cycles": 6}, "num_cycles=6"),
        ({"peak": 0.0}, "peak"),
        ({"exploration_fraction": 1.1}, "exploration_fraction"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_cycles_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        cyclical_schedule(**{"num_steps": 5, "peak": 0.1, "num_cycles": 2, **arguments})


def test_traced_numbers_pass():
    made = jax.jit(lambda first, last, gamma: polynomial_schedule(6, first, last, exponent=gamma))(
        0.3, 0.1, 0.5
    )
    np.testing.assert_allclose(
        made["step_size"], polynomial_schedule(6, 0.3, 0.1, exponent=0.5)["step_size"], rtol=1e-5
    )
    made = jax.jit(lambda peak, beta: cyclical_schedule(6, peak, 2, exploration_fraction=beta))(0.3, 0.5)
    np.testing.assert_allclose(
        made["noise_scale"], cyclical_schedule(6, 0.3, 2, exploration_fraction=0.5)["noise_scale"], rtol=1e-5
    )
