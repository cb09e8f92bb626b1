"""What the harness adds to fair timing: aims computed from the run, peers that cannot be built."""

import os
import shutil
from typing import Any

import pytest

from benchmarks import harness
from benchmarks.harness import Aim

RESULTS: dict[str, Any] = {
    "walk": {
        "contenders": {
            "ours": {"rounds": [1.0, 2.0, 3.0]},
            "theirs": {"rounds": [2.0, 8.0, 9.0]},
            "missing": {"missing": "torch is not installed"},
        }
    }
}


@pytest.mark.parametrize(
    ("aim", "ratio", "met"),
    [
        # Ratios within rounds are 1/2, 1/4 and 1/3: their median is not the ratio of the medians, 1/4.
        (Aim("a", "walk", "ours", "theirs", 0.34), 1 / 3, True),
        (Aim("b", "walk", "ours", "theirs", 0.33), 1 / 3, False),
        (Aim("c", "walk", "theirs", "ours", 2.9, at_least=True), 3.0, True),
        (Aim("d", "walk", "theirs", "ours", 3.1, at_least=True), 3.0, False),
        (Aim("e", "walk", "missing", "ours", 1.0), None, None),
        (Aim("f", "walk", "unknown", "ours", 1.0), None, None),
    ],
)
def test_verdicts_follow_from_ratios_within_rounds(aim: Aim, ratio: float | None, met: bool | None):
    (found,) = harness.judge([aim], RESULTS)
    assert found["ratio"] == (None if ratio is None else pytest.approx(ratio))
    assert found["met"] is met
    row = harness.aims_table([found]).splitlines()[-1]
    assert {True: "| met |", False: "| missed |", None: "| not measured |"}[met] in row


def test_aims_of_what_did_not_run_are_left_out():
    assert harness.judge([Aim("a", "swim", "ours", "theirs", 1.0)], RESULTS) == []


def test_torch_compile_says_why_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    def unbuildable() -> None:
        raise RuntimeError("CppCompileError: C++ compile error\nand many lines")

    def uninstalled() -> Any:
        raise ModuleNotFoundError(name="torch")

    broken = harness.compiled_peer("compiled", lambda: unbuildable)
    assert broken.run is None
    assert broken.note == "it could not be built: RuntimeError: CppCompileError: C++ compile error"
    assert "pip install torch" in harness.compiled_peer("compiled", uninstalled).note
    built = harness.compiled_peer("compiled", lambda: lambda: 1, items=7)
    assert built.run is not None
    assert (built.items, built.note) == (7, "first call 0 s")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    without = harness.compiled_peer("compiled", lambda: lambda: 1)
    assert without.run is None
    assert "no-such-compiler" in without.note


def test_threads_are_set_for_all(monkeypatch: pytest.MonkeyPatch):
    names = ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "9")
    harness.set_threads(3)
    assert [os.environ[name] for name in names] == ["3"] * 4
