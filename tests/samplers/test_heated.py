"""Heated Langevin dynamics: descent while it is cold, the stationary variance once it is hot, a stop."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers import heated_sgld, run_chain, run_chains, sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def skewed(x):
    return jnp.sum(0.5 * x**2 + 0.1 * jnp.exp(-x))


def test_cold_steps_are_gradient_descent():
    key, start = jax.random.key(0), jnp.array([3.0, -1.0])
    cold, _ = run_chain(key, heated_sgld(skewed, 0.1, temperature=5.0, cold_steps=20), start, 20)
    descent, _ = run_chain(key, sgld(skewed, 0.1, 0.0), start, 20)
    chex.assert_trees_all_equal(cold.position, descent.position)
    assert int(cold.step) == 20


def test_temperature_rises_linearly_to_its_value():
    flat = partial(heated_sgld, lambda x: 0.0 * jnp.sum(x), 0.5, 2.0, cold_steps=1, heating_steps=4)
    start = jnp.zeros((4000, 1))
    collect = lambda state, info: state.position  # noqa: E731
    _, path = run_chains(jax.random.key(1), flat(), start, 8, collect=collect)
    variances = np.var(np.diff(np.asarray(path)[..., 0], axis=1, prepend=0.0), axis=0)
    expected = 2 * 0.5 * 2.0 * np.array([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert np.all(np.abs(variances - expected) <= 5 * expected * np.sqrt(2 / 4000))


def test_hot_chains_have_the_stationary_variance_of_their_temperature():
    kernel = heated_sgld(lambda x: 0.5 * jnp.sum(3.0 * x**2), 0.1, 0.4, cold_steps=5, heating_steps=5)
    state, _ = run_chains(jax.random.key(2), kernel, jnp.ones((8000, 1)), 60)
    expected = 0.4 / 3 / (1 - 0.1 * 3 / 2)
    assert abs(float(jnp.var(state.position)) - expected) < 5 * expected * np.sqrt(2 / 8000)


def test_a_chain_stops_where_it_is_told():
    kernel = heated_sgld(skewed, 0.1, 1.0, stop_after=3)
    short, _ = run_chain(jax.random.key(3), kernel, jnp.array([3.0]), 3)
    long, _ = run_chain(jax.random.key(3), kernel, jnp.array([3.0]), 30)
    chex.assert_trees_all_equal(short.position, long.position)


def test_bad_arguments_are_named():
    for name, value in (("temperature", -1.0), ("cold_steps", -1), ("heating_steps", -2), ("stop_after", 0)):
        with pytest.raises(ValueError, match=name):
            heated_sgld(skewed, 0.1, **{name: value})
