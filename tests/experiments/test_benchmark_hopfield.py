"""The benchmark at toy size: contenders agree, what is counted and reported is right. No time is judged."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hopfield
from benchmarks import hopfield_peers as peers
from benchmarks.harness import (
    Contender,
    Workload,
    check_agreement,
    compete,
    count_compilations,
    peer,
    tables,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

TOY = hopfield.Sizes(
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


@pytest.mark.parametrize("name", ["retrieval", "asynchronous", "attention"])
def test_contenders_agree(name: str):
    for workload in hopfield.WORKLOADS[name](TOY, 0).values():
        check_agreement(workload)


def test_the_loops_are_the_walk_that_jaxebm_makes_and_end_where_no_spin_wants_to_move():
    for workload in hopfield.asynchronous(replace(TOY, num_loop=4, flipped=0.3), 0).values():
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
    patterns, queries = hopfield.broken_memories(TOY, 9, 0)
    scores = TOY.beta * queries.astype(np.float64) @ patterns.T
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        peers.update_in_numpy(patterns, queries, TOY.beta), weights @ patterns, atol=1e-5
    )


@pytest.mark.parametrize("package", ["torch", "hamux"])
def test_a_peer_computes_the_same_update(package: str):
    pytest.importorskip(package)
    patterns, queries = hopfield.broken_memories(TOY, 9, 0)
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
    monkeypatch.setattr(
        "benchmarks.harness._seconds_an_item", lambda contender, seconds, clock: next(durations)
    )
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
    ({"loads": (80, 0)}, "loads"),
    ({"flipped": 0.7}, "flipped"),
    ({"num_batch": 2, "num_loop": 3}, "num_batch"),
]


@pytest.mark.parametrize(("changes", "name"), BAD)
def test_bad_settings_are_refused(changes: dict, name: str):
    with pytest.raises(ValueError, match=name):
        hopfield.Sizes(**changes).check()
