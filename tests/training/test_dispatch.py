"""A dispatch: the same numbers as one update after another, a stop at the first sick one, nothing copied."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.training import (
    Dispatch,
    Monitor,
    TrainState,
    compile_monitored_steps,
    compile_steps,
    init_health,
    name_faults,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture(scope="module")
def problem(tiny):
    """``(learner, make_state, placed data)``."""
    learn, params, data = tiny["problem"]()
    return learn, lambda: learn.init(tiny["KEY"], params, data), learn.place(data)


@pytest.fixture(scope="module")
def dispatch(problem):
    learn, make_state, data = problem
    dispatch = Dispatch(learn.step, Monitor())
    dispatch.compile(make_state(), data)
    return dispatch


def test_equals_updates_one_by_one(problem, dispatch, bits):
    """Bit for bit, whatever the length of a dispatch, and whoever watches."""
    learn, make_state, data = problem
    one, scanned = make_state(), make_state()
    for _ in range(6):
        one, report = dispatch(one, data, 1)
        assert int(report.updates) == 1
    many, report = dispatch(make_state(), data, 6)
    assert int(report.updates) == 6
    assert int(report.faults) == 0
    assert bits(one) == bits(many)
    scanned, metrics = compile_steps(learn.step, 6)(scanned, data)
    assert bits(scanned._replace(health=())) == bits(many._replace(health=()))
    for name, value in metrics.items():
        np.testing.assert_allclose(report.metrics[name], value, rtol=1e-5, atol=1e-6)


def exploding(state, data):
    params = data * state.params
    return state._replace(params=params, step=state.step + 1), {"loss": params}


@pytest.mark.parametrize("length", [1, 38, 39, 40, 100])
def test_stops_in_the_update_that_is_sick(length):
    """10^38 is a float, 10^39 is none; means are over the healthy updates."""
    state = TrainState(jnp.zeros((), jnp.int32), jnp.ones(()), *[()] * 5, health=init_health())
    state, report = compile_monitored_steps(exploding)(state, jnp.array(10.0), length)
    done = min(length, 39)
    assert int(report.updates) == int(state.step) == done
    assert name_faults(int(report.faults)) == (["metrics", "parameters"] if done == 39 else [])
    mean = np.mean(10.0 ** np.arange(1, min(length, 38) + 1))
    np.testing.assert_allclose(float(report.metrics["loss"]), mean, rtol=1e-5)
    assert float(report.last_metrics["loss"]) == float(state.params)


def test_one_program_for_all_lengths(problem, dispatch):
    _, make_state, data = problem
    before, state = dispatch._compiled, make_state()
    for length in (1, 2, 5):
        state, _ = dispatch(state, data, length)
    assert dispatch._compiled is before
    assert dispatch.compile_seconds > 0


def test_the_state_is_donated_and_the_host_is_not_asked(problem, dispatch):
    """All of the state goes out where it came in; there is no call to the host between updates."""
    _, make_state, data = problem
    state = make_state()
    arrays = jax.tree.leaves(state._replace(rng_key=jax.random.key_data(state.rng_key)))
    memory = dispatch.device_memory
    assert memory is not None
    assert memory.donated >= sum(leaf.nbytes for leaf in arrays)
    assert memory.state_and_data >= memory.donated + data.x.nbytes
    text = dispatch._compiled.as_text()
    assert not re.search(r"infeed|outfeed|send\(|recv\(|callback", text)
    dispatch(state, data, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state._replace(rng_key=())))
