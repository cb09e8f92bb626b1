"""Killing and resuming: what counts as a difference, what a killed run was doing, and the script itself."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kill_and_resume
from jaxebm.objectives import likelihood
from jaxebm.training import Checkpoints, TrainState, learner, open_run
from kill_and_resume import Config, differences, phase_of, without_times

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def some_state() -> TrainState:
    learn = learner(likelihood(lambda params, x: x @ params), optimizer=optax.sgd(0.1), batch_size=1)
    return learn.init(jax.random.key(0), jnp.ones(3), jnp.zeros((2, 3)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    run = open_run(tmp_path_factory.mktemp("finished") / "run", {"seed": 0})
    state = some_state()
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(state._replace(step=jnp.array(20)))
    for step in (10, 20):
        run.append_metrics({"step": step, "seconds": 0.5 * step, "updates_per_second": 7.0, "loss": 1.0})
    run.write_json("card.json", {"accuracy": 0.9, "seconds": 3.0, "config": {"output": "a", "seed": 0}})
    np.savez(run.path / "samples.npz", fresh=np.zeros(3))
    return run.path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_equal_runs_differ_in_times_alone(finished, copy):
    card = json.loads((copy / "card.json").read_text())
    card |= {"seconds": 99.0, "device_memory": None, "config": {"output": "b", "seed": 0}}
    (copy / "card.json").write_text(json.dumps(card))
    assert differences(finished, copy) == []
    records = [{"step": 1, "seconds": 2.0, "inner": {"seconds_compiling": 1.0, "loss": 0.5}}]
    assert without_times(records) == [{"step": 1, "inner": {"loss": 0.5}}]


def test_every_difference_is_named(finished, copy):
    (copy / "card.json").write_text(json.dumps({"accuracy": 0.91, "config": {"seed": 0}}))
    (copy / "metrics.jsonl").write_text('{"step": 20, "loss": 1.0}\n')
    np.savez(copy / "samples.npz", fresh=np.full(3, 1e-30))
    shutil.rmtree(copy / "checkpoints")
    state = some_state()
    with Checkpoints(copy / "checkpoints") as checkpoints:
        params = jnp.array([1.0, 1.0, jnp.nextafter(1.0, 2.0)])
        checkpoints.save(state._replace(step=jnp.array(20), params=params))
    found = differences(finished, copy)
    assert found == ["checkpoint: .params", "metrics.jsonl", "card.json: accuracy", "samples.npz: fresh"]


def test_what_a_killed_run_was_doing(finished, copy):
    assert phase_of(copy, 0, set(), 40) == "training"
    assert phase_of(copy, 2, set(), 40) == "start-up"
    assert phase_of(copy, 0, set(), 20) == "evaluation"
    (copy / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()
    assert phase_of(copy, 0, set(), 40) == "checkpoint"
    # What an earlier life left unfinished says nothing of this one.
    assert phase_of(copy, 2, {"30.orbax-checkpoint-tmp"}, 40) == "start-up"


@pytest.mark.slow
def test_three_kills(tmp_path):
    config = Config(output=tmp_path / "run", kills=3, flags="--epochs 4", progress=False)
    card = kill_and_resume.main(config)
    assert card["kills"] == sum(card["phases"].values()) == 3
    assert card["differences"] == []
    assert len((tmp_path / "run" / "kills.jsonl").read_text().splitlines()) == 3


def test_somebody_must_be_killed(tmp_path):
    with pytest.raises(ValueError, match="kills"):
        kill_and_resume.main(replace(Config(output=tmp_path), kills=0))


def test_a_run_that_cannot_start_says_so(tmp_path):
    with pytest.raises(RuntimeError, match=r"status 2; its output is in .*whole.log"):
        kill_and_resume.main(Config(output=tmp_path / "run", kills=1, flags="--no-such-flag", progress=False))
