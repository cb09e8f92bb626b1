"""The benchmark at toy size: contenders agree, what is counted and reported is right. No time is judged."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import benchmark_hopfield
import benchmark_peers as peers
from benchmark_harness import Contender, Workload, check_agreement, compete, count_compilations, peer, tables
from command_line import run_experiment

pytestmark = pytest.mark.usefixtures("cheap_compilation")

TOY = benchmark_hopfield.Config(
    rounds=2,
    seconds=0.0,
    batch=6,
    dimension=12,
    num_memories=9,
    num_sparse=5,
    num_spins=30,
    loads=(2, 7),
    num_loop=3,
    num_batch=4,
    attention=(2, 3, 4, 8, 2),
)


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "hamux", "equinox"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_peers")
def test_it_runs_without_peers_and_writes_its_card(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        benchmark_hopfield, "PACKAGES", ("jaxebm", "jax", "numpy", "a-package-that-is-missing")
    )
    output = tmp_path / "new" / "card.json"
    config = replace(TOY, workloads=("retrieval", "compilations", "sparse"), output=output)
    card = benchmark_hopfield.main(config)
    assert json.loads(output.read_text()) == json.loads(json.dumps(card))
    assert card["compilations"] == {"retrieve": 1, "retrieve_asynchronously": 1}
    assert len(card["workloads"]) == 2
    for workload in card["workloads"]:
        first, *others = workload["contenders"].values()
        assert first["ratio_range"] == [1, 1]
        for row in others:
            assert "is not installed: pip install" in row.get("missing", "") or len(row["rounds"]) == 2
    printed = capsys.readouterr().out
    assert "torch is not installed: pip install torch" in printed
    assert "a-package-that-is-missing missing" in printed
    with pytest.raises(FileExistsError, match="--overwrite"):
        benchmark_hopfield.main(config)


def test_an_existing_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "card.json").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run_experiment(
            benchmark_hopfield.Config, benchmark_hopfield.main, ["--output", str(tmp_path / "card.json")]
        )
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "card.json").read_text() == "mine"


@pytest.mark.parametrize("name", ["retrieval", "asynchronous", "attention"])
def test_contenders_agree(name: str):
    for workload in benchmark_hopfield.WORKLOADS[name](TOY):
        check_agreement(workload)


def test_the_loops_are_the_walk_that_jaxebm_makes_and_end_where_no_spin_wants_to_move():
    for workload in benchmark_hopfield.asynchronous(replace(TOY, num_loop=4, flipped=0.3)):
        runs = {contender.name: contender.run for contender in workload.contenders}
        loop = runs["NumPy loop"]
        assert loop is not None
        weights = loop.args[1]  # type: ignore[attr-defined]
        assert np.all(np.diag(weights) == 0)
        finals = loop()
        assert np.all(finals * (finals @ weights) >= 0)
        for run in runs.values():
            assert run is not None
            np.testing.assert_array_equal(np.asarray(run()), finals)


def test_the_dense_update_is_the_formula_in_float64():
    patterns, queries = benchmark_hopfield.broken_memories(TOY, 9)
    scores = TOY.beta * queries.astype(np.float64) @ patterns.T
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        peers.update_in_numpy(patterns, queries, TOY.beta), weights @ patterns, atol=1e-5
    )


@pytest.mark.parametrize("package", ["torch", "hamux"])
def test_a_peer_computes_the_same_update(package: str):
    pytest.importorskip(package)
    patterns, queries = benchmark_hopfield.broken_memories(TOY, 9)
    makers = {
        "torch": [peers.update_in_torch(patterns, queries, TOY.beta)],
        "hamux": [peers.update_in_hamux(patterns, queries, TOY.beta, layers=layers) for layers in (1, 2)],
    }
    for run in makers[package]:
        np.testing.assert_allclose(run(), peers.update_in_numpy(patterns, queries, TOY.beta), atol=1e-5)


def test_a_contender_that_differs_is_caught():
    right = Contender("right", lambda: {"a": jnp.array([0.0, 1.0]), "b": jnp.zeros(2)})
    wrong = Contender("wrong", lambda: {"a": jnp.array([0.0, 1.0]), "b": jnp.array([0.0, 0.01])})
    broken = Contender("broken", lambda: {"a": jnp.array([0.0, jnp.nan]), "b": jnp.zeros(2)})
    check_agreement(Workload("same", [right, right]))
    check_agreement(Workload("loose", [right, wrong], tolerance=0.02))
    check_agreement(Workload("not compared", [wrong._replace(agrees=False), right]))
    for other in (wrong, broken):
        with pytest.raises(RuntimeError, match=other.name):
            check_agreement(Workload("differs", [right, other]))


def test_ratios_are_of_one_round_and_turn_around_for_speeds(monkeypatch: pytest.MonkeyPatch):
    durations = iter([2.0, 4.0, 9.0, 3.0])  # first, second; then second, first
    monkeypatch.setattr("benchmark_harness._seconds_an_item", lambda contender, seconds: next(durations))
    contenders = [Contender("first", lambda: 0), Contender("missing", None), Contender("second", lambda: 0)]
    result = compete(Workload("times", contenders), rounds=2, seconds=0.0)
    assert result["contenders"]["second"]["rounds"] == [4.0, 9.0]
    assert result["contenders"]["second"]["ratio_range"] == [2.0, 3.0]
    assert result["contenders"]["second"]["ratio"] == 2.5
    durations = iter([2.0, 4.0, 9.0, 3.0])
    result = compete(Workload("speeds", contenders, speed=True), rounds=2, seconds=0.0)
    np.testing.assert_allclose(result["contenders"]["second"]["ratio_range"], [1 / 3, 1 / 2])
    assert "times as fast" in tables([result])


def test_compilations_are_counted():
    program = jax.jit(lambda x: x + 1)
    inputs = [np.zeros(length, np.float32) for length in (2, 2, 3)]
    assert count_compilations(lambda: [program(x) for x in inputs]) == 2
    assert count_compilations(lambda: [program(x) for x in inputs]) == 0


def test_only_a_missing_package_makes_a_missing_row():
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        peer("name", "package", broken)  # type: ignore[arg-type]


BAD = [
    ({"workloads": ("nap",)}, "workloads"),
    ({"workloads": ()}, "workloads"),
    ({"rounds": 0}, "rounds"),
    ({"loads": (80, 0)}, "loads"),
    ({"flipped": 0.7}, "flipped"),
    ({"num_batch": 2, "num_loop": 3}, "num_batch"),
]


@pytest.mark.parametrize(("changes", "name"), BAD)
def test_bad_settings_are_refused(changes: dict, name: str):
    with pytest.raises(ValueError, match=name):
        benchmark_hopfield.Config(**changes).check()
