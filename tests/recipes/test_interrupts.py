"""Whole processes of the command that are killed or interrupted, and resumed: nothing is lost or changed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxebm
from jaxebm.training import Checkpoints

pytestmark = pytest.mark.slow  # tests/training/test_loop.py kills and interrupts `fit` itself
COMMAND = [str(Path(sys.executable).parent / "jaxebm"), "train"]
LIGHT = [
    "--epochs=3",
    "--run.no-twin",
    "--evaluation.samples-per-class=7",
    "--evaluation.sample-steps=2",
    "--evaluation.likelihood-steps=0",
    "--evaluation.no-features",
    "--evaluation.no-tasks",
    "--evaluation.attack-images=0",
    "--evaluation.long-run-factors",
]
"""Flags of a run with a card that costs little."""
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TOY_FLAGS = [
    "--run.no-progress",
    "--no-report",
    "--architecture.widths=16",
    "--sampler.num-chains=20",
    "--sampler.num-steps=3",
    "--sampler.buffer-size=200",
    "--run.steps-per-dispatch=8",
    "--run.checkpoint-every=16",
]


def arrays_of(output: Path) -> dict[str, np.ndarray]:
    with Checkpoints(output / "checkpoints") as checkpoints:
        return checkpoints.read()


def start(output: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--output", str(output), *TOY_FLAGS, *flags],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_after(process: subprocess.Popen[str], output: Path, lines: int, number: int) -> None:
    """Sends a signal once ``lines`` metrics lines are written."""
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.002)
    process.wait(timeout=60)


def killed_and_resumed(tmp_path: Path, epochs: str, stops: list[tuple[int, int]]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(whole, "--epochs", epochs)
    assert process.wait(timeout=180) == 0, process.stderr and process.stderr.read()
    for lines, number in stops:
        process = start(broken, "--epochs", epochs, "--resume")
        stop_after(process, broken, lines, number)
        assert process.returncode in (-number, 130), "the run ended before it was stopped"
        if number == signal.SIGINT:
            assert process.stderr is not None
            assert "--resume" in process.stderr.read()
        if any((broken / "checkpoints").glob("[0-9]*")):
            assert jaxebm.load(broken).step > 0
    process = start(broken, "--epochs", epochs, "--resume")
    assert process.wait(timeout=180) == 0, process.stderr and process.stderr.read()
    assert set(arrays_of(broken)) == set(arrays_of(whole))
    jax.tree.map(np.testing.assert_array_equal, arrays_of(broken), arrays_of(whole))
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_killed_and_an_interrupted_run_resume_bit_for_bit(tmp_path: Path):
    # 30 epochs are 570 updates, 72 lines: enough that neither signal can come too late.
    killed_and_resumed(tmp_path, "30", [(5, signal.SIGKILL), (20, signal.SIGINT)])


def test_many_kills_resume_bit_for_bit(tmp_path: Path):
    lines = (1, 3, 9, 17, 40)
    signals = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    killed_and_resumed(tmp_path, "60", list(zip(lines, signals, strict=True)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [COMMAND, [sys.executable, str(EXPERIMENTS / "density_2d.py")]])
def test_a_signal_while_packages_are_imported_is_one_line(command: list[str], number: int, tmp_path: Path):
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "run")],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)  # JAX takes longer
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert error == "\ninterrupted before anything was begun.\n"
    assert not (tmp_path / "run").exists()


def test_a_sigterm_in_the_card_is_one_line_and_the_card_is_written_later(tmp_path: Path):
    run, toy = tmp_path / "run", [flag for flag in TOY_FLAGS if "no-" not in flag]
    command = [*COMMAND, "--output", str(run), *toy, *LIGHT]
    process = subprocess.Popen(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("evaluating 6/"):
            process.send_signal(signal.SIGTERM)
            break
    *_, last = process.stderr.read().splitlines()
    assert process.wait(timeout=120) == 130
    assert last.startswith(f"interrupted: {run} keeps what was done up to the checkpoint of step 57. Go on: ")
    assert not (run / "card.json").exists()
    before = arrays_of(run)
    subprocess.run([*command, "--resume"], check=True, timeout=300)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(run), before)
    assert json.loads((run / "card.json").read_text())["evaluated_update"] == 57
