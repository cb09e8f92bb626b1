"""What ``sample(..., check=True)`` says of its chains, and that it changes none of them."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.chains import run_chains, sample
from jaxebm.samplers.langevin import LangevinState, sgld
from jaxebm.samplers.metropolis import hmc, mala
from jaxebm.samplers.watch import SamplingWarning, watched
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

MODE = jnp.array([1.0, -2.0])


def energy(params, x):
    return 0.5 * jnp.sum((x - params) ** 2)


def _energy_of_info(state, info):
    return info.energy


def checked(positions=None, num_steps=6, **parameters):
    positions = jnp.zeros((4, 2)) if positions is None else positions
    return sample(jax.random.key(0), energy, MODE, positions, num_steps, check=True, **parameters)


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [(sgld, {}), (hmc, {"num_integration_steps": 2})],
    ids=["sgld", "hmc"],
)
def test_checked_samples_are_the_same_samples_without_a_word(kernel, parameters):
    run = partial(sample, jax.random.key(0), energy, MODE, jnp.zeros((4, 2)), 6)
    arguments = {"kernel": kernel, "step_size": 0.2, "collect": _energy_of_info, **parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chex.assert_trees_all_equal(run(check=True, **arguments), run(**arguments))


def test_chains_that_end_at_nan_are_an_error_that_counts_them():
    with pytest.raises(FloatingPointError, match=r"4 of 4 chains.*after 40 steps.*step_size=50\.0"):
        checked(num_steps=40, step_size=50.0)
    starts = jnp.zeros((4, 2)).at[1].set(jnp.nan)
    with pytest.raises(
        FloatingPointError, match=r"1 of 4 chains ended.*1 of 4 chains started where the energy"
    ):
        checked(starts, step_size=0.1)
    # Without the check nothing is said, and nothing is replaced.
    assert np.isnan(sample(jax.random.key(0), energy, MODE, starts, 6, step_size=0.1)[1]).all()


def test_chains_that_never_moved_are_counted():
    with pytest.warns(SamplingWarning, match=r"4 of 4 chains never moved in 6 steps.*step_size=1000000\.0"):
        positions = checked(kernel=mala, step_size=1e6)
    np.testing.assert_array_equal(positions, jnp.zeros((4, 2)))
    # The first stands at the mode, without noise; the rest move.
    starts = jnp.array([[1.0, -2.0], [0.0, 0.0], [3.0, 3.0], [5.0, 1.0]])
    with pytest.warns(SamplingWarning, match=r"1 of 4 chains never moved"):
        checked(starts, step_size=0.1, noise_scale=0.0)


def test_a_chain_that_moved_and_came_back_did_move():
    def there_and_back(target):
        def step(rng_key, state):
            return LangevinState(1 - state.position), None

        return Kernel(lambda position, rng_key=None: LangevinState(position), step)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(checked(kernel=there_and_back), jnp.zeros((4, 2)))


def test_divergent_transitions_are_counted():
    def diverges_from_the_third_step(target):
        def step(rng_key, state):
            count = state.position[0] + 1
            return LangevinState(state.position + 1), _Divergence(count >= 3)

        return Kernel(lambda position, rng_key=None: LangevinState(position), step)

    with pytest.warns(SamplingWarning, match=r"16 of 24 transitions \(66\.67%\) diverged"):
        checked(kernel=diverges_from_the_third_step)
    # A leapfrog step of 2.5 on a unit Gaussian is unstable: each trajectory diverges and is refused.
    with pytest.warns(SamplingWarning) as told:
        checked(kernel=hmc, step_size=2.5, num_integration_steps=12)
    assert ["never moved" in str(told[0].message), "24 of 24" in str(told[1].message)] == [True, True]
    assert told[0].filename == __file__


def test_a_check_inside_of_jit_is_refused():
    with pytest.raises(ValueError, match=r"check=True inside of jit"):
        jax.jit(lambda start: checked(start, step_size=0.1))(jnp.zeros((4, 2)))
    with pytest.raises(TypeError, match="check='yes'"):
        sample(jax.random.key(0), energy, MODE, jnp.zeros((4, 2)), 6, step_size=0.1, check="yes")


def test_a_checks_memory_is_free_of_the_number_of_steps():
    def memory(num_steps):
        kernel = watched(sgld(partial(energy, MODE), 0.1))
        run = jax.jit(lambda key, start: run_chains(key, kernel, start, num_steps)[0])
        analysis = run.lower(jax.random.key(0), jnp.zeros((50, 2))).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    assert memory(10_000) - memory(10) <= 4 * 10_000


class _Divergence(NamedTuple):
    is_divergent: Any


def test_chains_that_end_at_an_energy_of_nan_or_infinity_are_counted():
    def half(params, x):
        return jnp.where(x[0] < 0, params, 0.5 * jnp.sum(x**2))

    starts = jnp.array([[-9.0, 0.0], [9.0, 0.0], [9.0, 1.0], [-9.0, 1.0]])
    for outside in (jnp.nan, jnp.inf):  # where the gradient is 0, and the chain goes on by its noise alone
        with pytest.warns(
            SamplingWarning, match=r"2 of 4 chains ended where the energy.*2 of 4 chains started"
        ):
            sample(jax.random.key(0), half, outside, starts, 6, check=True, step_size=0.1)
