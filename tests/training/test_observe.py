"""Looking at the state now and then: when it happens, where it is written, and that it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.training import Checkpointing, RunFolder, fit, open_run

pytestmark = pytest.mark.usefixtures("cheap_compilation", "compile_once")


class Observer:
    """Keeps the steps at which it was called."""

    def __init__(self, value=lambda state: jnp.asarray(state.step, float)):
        self.steps, self.value = [], value

    def __call__(self, state):
        self.steps.append(int(state.step))
        return {"observed": self.value(state)}


@pytest.fixture(scope="module")
def train(tiny, compile_once):
    """``train(run, num_steps=33, **options)``: dispatches of 4, a checkpoint every 10; compiled once."""
    problem = tiny["KEY"], *tiny["problem"]()
    settings = {"num_steps": tiny["NUM_STEPS"], "steps_per_dispatch": 4}

    def train(run=None, **options):
        kept = Checkpointing(run, every=10) if run is not None else None
        return fit(*problem, checkpointing=kept, **(settings | options))

    return train


@pytest.fixture(scope="module")
def unobserved(train, bits, tmp_path_factory):
    """``(bits of the state, records without times)`` of a run that nobody looked at."""
    run = open_run(tmp_path_factory.mktemp("unobserved"), {})
    return bits(train(run).state), timeless(run)


def timeless(run, *left_out):
    names = ("seconds", "updates_per_second", *left_out)
    return [
        {name: value for name, value in record.items() if name not in names} for record in run.read_metrics()
    ]


EXPECTED = {
    1: [4, 8, 12, 16, 20, 24, 28, 32, 33],
    4: [4, 8, 12, 16, 20, 24, 28, 32, 33],
    7: [8, 16, 24, 28, 33],  # crossings of 7, 14, 21, 28; the last update
    10: [12, 20, 32, 33],
    33: [33],
    1000: [33],
}


@pytest.mark.parametrize("observe_every", EXPECTED)
def test_it_is_called_after_each_crossing_and_at_the_end(train, tmp_path, observe_every):
    observe, run = Observer(), open_run(tmp_path, {})
    train(run, observe=observe, observe_every=observe_every)
    assert observe.steps == EXPECTED[observe_every]
    written = {record["step"]: record["observed"] for record in run.read_metrics() if "observed" in record}
    assert written == {step: float(step) for step in EXPECTED[observe_every]}


def test_nothing_else_changes(train, bits, unobserved, tmp_path):
    """Parameters, optimiser, chains and all other records, bit for bit."""
    final, records = unobserved
    run = open_run(tmp_path, {})
    observe = Observer(jax.jit(lambda state: optax.tree.norm(state.params)))
    assert bits(train(run, observe=observe, observe_every=4).state) == final
    assert timeless(run, "observed") == records
    assert all("observed" not in record for record in records)


def test_without_a_run_it_is_called_as_well(train):
    observe = Observer()
    result = train(observe=observe, observe_every=10)
    assert observe.steps == EXPECTED[10]
    observed = {record["step"]: record["observed"] for record in result.history if "observed" in record}
    assert observed == {step: float(step) for step in EXPECTED[10]}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_observation_stops_nothing(train, bits, unobserved, tmp_path, value):
    observe, run = Observer(lambda state: jnp.asarray(value)), open_run(tmp_path, {})
    assert bits(train(run, observe=observe, observe_every=10).state) == unobserved[0]
    observed = [record["observed"] for record in run.read_metrics() if "observed" in record]
    np.testing.assert_array_equal(observed, [value] * 4)


@pytest.mark.parametrize("step", [8, 12, 16, 28])
def test_a_resumed_run_has_the_same_records(train, bits, unobserved, tmp_path, monkeypatch, step):
    """Stopped before any checkpoint, at one, and after one: what was observed since is observed again."""
    whole = open_run(tmp_path / "whole", {})
    options = {"observe_every": 7}
    train(whole, observe=Observer(), **options)

    append = RunFolder.append_metrics

    def append_and_fail(self, record):
        append(self, record)
        if record["step"] == step:
            raise RuntimeError("the disk is full")

    run = open_run(tmp_path / "stopped", {})
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", append_and_fail)
        with pytest.raises(RuntimeError, match="disk is full"):
            train(run, observe=Observer(), **options)
    observe = Observer()
    assert bits(train(run, observe=observe, **options).state) == unobserved[0]
    assert timeless(run) == timeless(whole)
    kept = max(saved for saved in (0, 12, 20, 32, 33) if saved < step or saved == 0)
    assert observe.steps == [each for each in EXPECTED[7] if each > kept]


def test_a_failing_observer_loses_no_checkpoint(train, bits, unobserved, tmp_path):
    """What it raises ends the run; resumed without the fault, it goes on from the last checkpoint."""
    run = open_run(tmp_path, {})

    def fail(state):
        if int(state.step) > 20:
            raise RuntimeError("out of memory")
        return {}

    with pytest.raises(RuntimeError, match="out of memory"):
        train(run, observe=fail, observe_every=4)
    assert run.read_metrics()[-1]["step"] == 24  # of the state that was saved, so that none is missing
    result = train(run)
    assert bits(result.state) == unobserved[0]
    assert [record["step"] for record in result.history] == [record["step"] for record in unobserved[1]]


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (None, "what observe returns"),
        (jnp.ones(()), "what observe returns"),
        ({"a": jnp.ones(2)}, r"what observe returns\['a'\] has shape \(2,\)"),
        ({"a": "low"}, r"what observe returns\['a'\]"),
        ({"a": 1j}, r"what observe returns\['a'\]"),
    ],
)
def test_what_is_no_scalar_by_name_is_refused(train, returned, named):
    with pytest.raises((TypeError, ValueError), match=named):
        train(num_steps=4, observe=lambda state: returned)


@pytest.mark.parametrize("value", [0, -5, 2.5, True])
def test_bad_intervals_are_refused(train, value):
    with pytest.raises(ValueError, match="observe_every"):
        train(observe_every=value)


def test_progress_shows_it_not_as_divergence(train, capsys):
    train(num_steps=4, observe=Observer(lambda state: jnp.nan), progress=True)
    assert "step 4/4" in capsys.readouterr().err
