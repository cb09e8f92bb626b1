"""Kill a run many times, at random moments, resume it, and compare its end with that of an uninterrupted run.

    python experiments/kill_and_resume.py
    python experiments/kill_and_resume.py --kills 10 --flags "--network convnet --epochs 4"

    expected  100 kills of a run of 304 updates: start-up 23, training 6, checkpoint 11, evaluation 60; 61
              runs end by themselves, and none differs from the uninterrupted run
    time      12 minutes
    device    two CPU cores

Runs experiments/jem.py (small, on digits) once to its end. Then it runs it again, killed by SIGKILL at a
moment drawn uniformly over the time of a whole run, and continued by ``--resume``, until one of its processes
ends before it is killed. This is repeated up to the requested number of kills. Each run must end with the
checkpoint of the first run, bit for bit, and with the same metrics, card and samples, except for times.

Writes a folder: config.json, kills.jsonl (one line per kill), card.json, card.md, and in lives/ the first run
and the last of the others; a run that ends differently stays there, and the script ends with status 2.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxebm import checks
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.training import Checkpoints, RunFolder, open_run

__all__ = ["Config", "differences", "main"]

SCRIPT = Path(__file__).with_name("jem.py")
SMALL = shlex.split(
    "--epochs 16 --architecture.widths 64 64 --sampler.num-steps 5 --sampler.buffer-size 400 "
    "--run.steps-per-dispatch 10 --run.checkpoint-every 10 --run.telemetry-every 100 --run.no-twin "
    "--run.no-progress --evaluation.samples-per-class 7 --evaluation.sample-steps 10 "
    "--evaluation.likelihood-steps 0"
)
"""Settings of the run: about 300 updates, a checkpoint every ten, and the smallest evaluation."""
PHASES = ("start-up", "training", "checkpoint", "evaluation")
MEASURED = ("seconds", "updates_per_second", "device_memory")
"""Prefixes of the names of numbers that depend on the clock, or on the call that finished the run."""
FOR_EACH_RUN = ("output", "resume", "overwrite", "command")
"""Names of entries with the folder and the command of a run."""


@dataclass(frozen=True)
class Config(RunFlags):
    """Kill and resume a JEM run at random moments, and compare it with an uninterrupted run."""

    output: Path = Path("runs/kill_and_resume")
    """Folder of the card and of the runs."""
    kills: int = 100
    """Number of kills."""
    flags: str = ""
    """More flags of experiments/jem.py, as one string."""

    def check(self) -> None:
        """Raises ``ValueError`` unless the number of kills is positive."""
        checks.positive_integer("kills", self.kills)


def start(config: Config, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts or resumes the run; compiled programs are cached for the next time."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, str(SCRIPT), *SMALL, *shlex.split(config.flags)]
    command += ["--seed", str(config.seed), "--output", str(folder), "--resume"]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def run_to_end(config: Config, folder: Path, log: Path) -> float:
    """Runs without a kill and returns its seconds."""
    started = time.monotonic()
    process = start(config, folder, log)
    try:
        process.wait()
    finally:
        process.kill()
    check_ended_well(process, log)
    return time.monotonic() - started


def check_ended_well(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises ``RuntimeError`` if a run ended with an error; ``log`` has its output."""
    if process.returncode != 0:
        raise RuntimeError(f"the run ended with status {process.returncode}; its output is in {log}.")


def newest_record(folder: Path) -> int:
    """Returns the update of the last complete line of metrics, 0 if there is none."""
    records = RunFolder(folder).read_metrics()
    return records[-1]["step"] if records else 0


def unfinished_checkpoints(folder: Path) -> set[str]:
    """Returns the names of unfinished checkpoints, N.orbax-checkpoint-tmp, which Orbax renames at the end."""
    entries = os.listdir(folder / "checkpoints") if (folder / "checkpoints").exists() else []
    return {name for name in entries if not name.isdigit() and name[:1].isdigit()}


def phase_of(folder: Path, lines_before: int, unfinished_before: set[str], last_step: int) -> str:
    """Returns the phase in which a run was killed, by the files that are new since its last start."""
    if unfinished_checkpoints(folder) - unfinished_before:
        return "checkpoint"
    if newest_record(folder) == last_step:
        return "evaluation"
    return "training" if len(RunFolder(folder).read_metrics()) > lines_before else "start-up"


def without_times(value: Any) -> Any:
    """Returns plain values without those that differ between any two runs."""
    if isinstance(value, list):
        return [without_times(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = {name: entry for name, entry in value.items() if not name.startswith(MEASURED)}
    return {name: without_times(entry) for name, entry in kept.items() if name not in FOR_EACH_RUN}


def differences(whole: Path, killed: Path) -> list[str]:
    """Returns the differences of two finished runs: checkpoint, metrics, card, samples; empty if equal."""
    found = []
    with Checkpoints(whole / "checkpoints") as one, Checkpoints(killed / "checkpoints") as other:
        arrays, others = one.read(), other.read()
    if arrays.keys() != others.keys():
        found.append("checkpoint: other arrays")
    else:
        found += [
            f"checkpoint: {name}"
            for name, array in arrays.items()
            if array.tobytes() != others[name].tobytes()
        ]
    if without_times(RunFolder(whole).read_metrics()) != without_times(RunFolder(killed).read_metrics()):
        found.append("metrics.jsonl")
    cards = [without_times(json.loads((folder / "card.json").read_text())) for folder in (whole, killed)]
    found += [f"card.json: {name}" for name in cards[0] if cards[0][name] != cards[1].get(name)]
    with np.load(whole / "samples.npz") as here, np.load(killed / "samples.npz") as there:
        found += [
            f"samples.npz: {name}" for name in here.files if here[name].tobytes() != there[name].tobytes()
        ]
    return found


def kill_until_done(
    config: Config, run: RunFolder, moments: random.Random, seconds: float, last_step: int, kills: list[str]
) -> Path:
    """Runs again, killed at random moments (at most the remaining kills), and returns the finished run."""
    lives = run.file("lives")
    folder, log = lives / "killed", lives / "killed.log"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    while True:
        lines, unfinished = len(RunFolder(folder).read_metrics()), unfinished_checkpoints(folder)
        process = start(config, folder, log)
        try:
            process.wait(timeout=moments.uniform(0.0, seconds) if len(kills) < config.kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append(phase_of(folder, lines, unfinished, last_step))
            record = {"kill": len(kills), "phase": kills[-1], "step": newest_record(folder)}
            with run.file("kills.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            if config.progress:
                print(f"kill {len(kills)}/{config.kills}: {kills[-1]}, update {record['step']}", flush=True)
            continue
        finally:
            process.kill()
        check_ended_well(process, log)
        return folder


def as_markdown(card: dict[str, Any]) -> str:
    """Returns the card as text."""
    phases = ", ".join(f"{name} {card['phases'][name]}" for name in PHASES)
    said = "none" if not card["differences"] else "; ".join(card["differences"])
    return "\n".join(
        [
            f"# {card['kills']} kills of a JEM run of {card['updates']} updates",
            "",
            f"Killed in: {phases}. Runs that were killed and ended by themselves: {card['runs']}.",
            "",
            f"Differences between their ends and that of the uninterrupted run: {said}.",
            "",
        ]
    )


def main(config: Config) -> dict[str, Any]:
    """Kills, resumes, compares, writes the card and returns it."""
    started = time.monotonic()
    config.check()
    run = open_run(config.output, as_json(config), overwrite=config.overwrite, resumable=False)
    lives = run.file("lives")
    lives.mkdir()
    whole, again, moments = lives / "whole", lives / "again", random.Random(config.seed)
    run_to_end(config, whole, lives / "whole.log")
    # Again, with all programs compiled: the time of a killed run.
    seconds = run_to_end(config, again, lives / "again.log")
    found = differences(whole, again)
    last_step, kills, runs = newest_record(whole), [], 0
    while not found and len(kills) < config.kills:
        found = differences(whole, kill_until_done(config, run, moments, seconds, last_step, kills))
        runs += 1
    counts = Counter(kills)
    card = {
        "schema": 1,
        "experiment": "kill_and_resume",
        "seed": config.seed,
        "kills": len(kills),
        "phases": {name: counts[name] for name in PHASES},
        "runs": runs,
        "updates": last_step,
        "seconds_of_a_run": seconds,
        "differences": found,
        "seconds": time.monotonic() - started,
        "config": as_json(config),
    }
    publish_card(run, card, as_markdown(card))
    if found:
        raise RuntimeError(f"the runs differ in {', '.join(found)}; both are in {lives}.")
    return card


if __name__ == "__main__":
    run_experiment(Config, main)
