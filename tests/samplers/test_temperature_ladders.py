"""Tuned ladders against Gaussians, whose optimal ladder, barrier and swap rates are known in closed form."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betainc, gamma

from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.metropolis import mala
from jaxebm.samplers.temperature_ladders import tune_ladder
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

SHAPE = 2.0
"""x has four coordinates of precision params, so that E is a Gamma(2) variable over b."""
HOTTEST = 0.02


class State(NamedTuple):
    position: object


def energy(params, x):
    return 0.5 * params * jnp.sum(x**2)


def redraw(target, scale):
    """Exact independent draws at temperature ``scale``^2."""
    del target

    def step(rng_key, state):
        return State(scale * jax.random.normal(rng_key, state.position.shape)), None

    return Kernel(lambda position, rng_key=None: State(position), step)


def scale_at(b):
    return {"scale": b**-0.5}


def exact_swap_rates(ladder):
    return 2 * betainc(SHAPE, SHAPE, ladder[:-1] / (ladder[:-1] + ladder[1:]))


tune = functools.partial(
    tune_ladder,
    jax.random.key(0),
    energy,
    jnp.array(1.0),
    jnp.zeros((200, 4)),
    redraw,
    parameters_at=scale_at,
    num_steps=100,
)


@pytest.fixture(scope="module")
def fixed_length():
    return tune(np.linspace(HOTTEST, 1.0, 6), num_temperatures=6)


def test_the_ladder_of_a_gaussian_is_geometric(fixed_length):
    # Its local barrier is Gamma(a + 1/2) / (sqrt(pi) Gamma(a) b): equal shares are equal ratios of b.
    ladder = np.asarray(fixed_length.inverse_temperatures, np.float64)
    np.testing.assert_allclose(np.log(ladder), np.linspace(np.log(HOTTEST), 0.0, 6), atol=0.06)
    assert ladder[0] == np.float32(HOTTEST)
    assert ladder[-1] == 1.0


def test_swap_rates_and_barrier_are_the_exact_ones_of_that_ladder(fixed_length):
    rates = np.asarray(fixed_length.swap_rates, np.float64)
    exact = exact_swap_rates(np.asarray(fixed_length.inverse_temperatures, np.float64))
    # Independent draws: 200 chains of 50 settled steps, one acceptance of sd below 1/2 each.
    np.testing.assert_array_less(np.abs(rates - exact), 4.5 * 0.5 / np.sqrt(200 * 50))
    assert float(fixed_length.barrier) == pytest.approx(np.sum(1 - rates), rel=1e-5)
    assert fixed_length.positions.shape == (200, 6, 4)


def test_round_trips_are_those_of_syed_et_al(fixed_length):
    rejection = 1 - exact_swap_rates(np.asarray(fixed_length.inverse_temperatures, np.float64))
    bound = 100 / (2 + 2 * np.sum(rejection / (1 - rejection)))
    # The replicas begin anew in each round, and so complete a few fewer than the stationary rate.
    assert 0.5 * bound < float(fixed_length.round_trips) < bound


def test_the_length_meets_the_wanted_swap_rate():
    tuned = tune(np.linspace(HOTTEST, 1.0, 5), target_swap_rate=0.6, num_rounds=3)
    rates, barrier = np.asarray(tuned.swap_rates), float(tuned.barrier)
    # R rounds the barrier over 0.4 up, so the rates are at least the wanted one, and by less than a rung.
    assert np.all(rates > 0.6 - 4.5 * 0.5 / np.sqrt(200 * 50) - 0.02)
    assert 0 <= len(rates) - barrier / 0.4 < 1.5
    # In the limit of a fine ladder the barrier is the integral of the local one.
    limit = gamma(SHAPE + 0.5) / (np.sqrt(np.pi) * gamma(SHAPE)) * np.log(1 / HOTTEST)
    assert 0.9 * limit < barrier < limit


def test_a_reference_may_begin_at_zero():
    # E and its reference are both quadratic: along the path the precision is 0.1 (1 - b) + b.
    def precision_at(b):
        return {"scale": (0.1 * (1 - b) + b) ** -0.5}

    tuned = tune(
        np.linspace(0.0, 1.0, 4),
        num_temperatures=4,
        reference=energy,
        reference_params=jnp.array(0.1),
        parameters_at=precision_at,
    )
    precision = 0.1 + 0.9 * np.asarray(tuned.inverse_temperatures, np.float64)
    np.testing.assert_allclose(np.log(precision), np.linspace(np.log(0.1), 0.0, 4), atol=0.1)


def test_numbers_of_a_partial_do_not_recompile():
    traces = []

    def traced_energy(params, x):
        traces.append(None)
        return energy(params, x)

    def run(step_size):
        return tune_ladder(
            jax.random.key(0), traced_energy, jnp.array(1.0), jnp.zeros((2, 3)),
            functools.partial(sgld, step_size=step_size), np.array([0.5, 1.0]),
            num_temperatures=2, num_rounds=2, num_steps=2,
        )  # fmt: skip

    run(0.1)
    first = len(traces)
    run(0.2)
    assert len(traces) == first


def test_divergence_is_reported():
    with pytest.raises(ValueError, match=r"diverged.*smaller step size"):
        tune_ladder(
            jax.random.key(0), lambda params, x: jnp.sum(x**4), None, jnp.full((2, 3), 10.0),
            functools.partial(sgld, step_size=1.0), np.array([0.5, 1.0]), num_steps=20,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_swap_rate": 1.0}, "target_swap_rate=1.0"),
        ({"num_temperatures": 1}, "num_temperatures=1.*at least 2"),
        ({"num_rounds": 1}, "num_rounds=1.*at least 2"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps_per_swap": 0}, "num_steps_per_swap=0"),
        ({"inverse_temperatures": np.array([1.0, 0.5])}, "rise strictly"),
        ({"inverse_temperatures": np.array([0.0, 1.0])}, "give a reference"),
        ({"parameters_at": lambda b: {"step_size": -b}}, "step_size=.*greater than 0"),
        ({"positions": jnp.zeros(())}, "positions"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    accepted = {"positions": jnp.zeros((2, 3)), "inverse_temperatures": np.array([0.5, 1.0])}
    with pytest.raises(ValueError, match=message):
        tune_ladder(
            jax.random.key(0),
            energy,
            jnp.array(1.0),
            make_kernel=mala,
            **({"parameters_at": lambda b: {"step_size": 0.1 / b}} | accepted | arguments),
        )
