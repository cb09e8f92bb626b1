"""Divergence is named: which step, which metric, which array."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxebm.objectives import persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import DivergenceError, check_metrics, check_state, init_state

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture
def state():
    chains = persistent(
        partial(sgld, step_size=0.1),
        num_steps=1,
        num_chains=2,
        capacity=4,
        initial=UniformInitial(-1.0, 1.0, shape=(2,)),
    )
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    return init_state(jax.random.key(0), params, optimizer=optax.adam(0.1), negatives=chains)


def test_finite_numbers_pass(state):
    check_metrics(1, {"loss": -3.0, "gap": 1e30})
    check_state(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_broken_metric_is_named_and_no_other(value):
    with pytest.raises(DivergenceError, match=rf"step 70: gap={value}, loss={value}\.") as caught:
        check_metrics(70, {"loss": value, "accuracy": 0.5, "gap": value})
    assert "accuracy" not in str(caught.value)
    for advice in ("--learning-rate", "--sampler-step-size", "--energy-l2", "--seed"):
        assert advice in str(caught.value)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_one_broken_parameter_is_found(state, value, dtype):
    params = state.params | {"w": jnp.ones((2, 3), dtype).at[1, 2].set(value)}
    with pytest.raises(DivergenceError, match=r"step 0: \['params'\]\['w'\] is not finite"):
        check_state(state._replace(params=params))


def test_broken_averages_and_chains_are_found(state):
    with pytest.raises(DivergenceError, match=r"\['ema_params'\]\['b'\]"):
        check_state(state._replace(ema_params=state.ema_params | {"b": jnp.full(3, jnp.nan)}))
    broken = state.memory._replace(positions=state.memory.positions.at[3, 1].set(jnp.inf))
    with pytest.raises(DivergenceError, match=r"step 12: \['memory'\]\.positions"):
        check_state(state._replace(memory=broken, step=jnp.array(12)))


def test_memory_of_other_kinds_is_looked_over(state):
    """Integers, truth values and typed keys cannot be non-finite, and need not be arrays to NumPy."""
    memory = {"key": jax.random.key(1), "count": jnp.arange(3), "on": jnp.array([True]), "none": None}
    check_state(state._replace(memory=memory))
