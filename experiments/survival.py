"""Does training survive? Many seeds at a setting where some diverge, with recovery and without.

    python experiments/survival.py                      # 100 seeds, twice: an hour on 2 CPU cores
    python experiments/survival.py --seeds 8 --epochs 30

The setting is the JEM paper's own sampler on the embedded digits: step 1, noise .01, gradients and pixels
left as they are. Where the energy's curvature exceeds 2, its chains overshoot, the energy gap runs away, and
some hundred updates later the optimiser holds numbers that are not finite. Every seed is trained twice, with
the recovery of `jaxebm.training.fit` and without. Test accuracy and samples of the runs that recovered are
compared with those of the runs that never had to: fresh class-conditional chains, 100 steps of the setting's
own sampler, against the training images of their class. A run without recovery has diverged if it ends at a
number that is not finite, or if its energy gap at the end is beyond 100 nats; no healthy one comes to 15.

Writes a folder: config.json, runs.jsonl (a line a run; --resume goes on after the last), card.json, card.md,
survival.png. experiments/RESULTS.md has the figures.
"""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import plots
from command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm import checks
from jaxebm.training import RunFolder, open_run
from jem_config import Config as JemConfig
from markdown_tables import markdown_table
from survival_run import RUNAWAY_GAP, survive

MEASURES = ("accuracy", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Config(RunFlags):
    """Train many seeds where training may diverge, with recovery and without."""

    output: Path = Path("runs/survival")
    """Folder of this run."""
    seeds: int = 100
    """How many, from --seed on."""
    epochs: int = 60
    """Passes over the training images of a run."""
    workers: int = 2
    """Runs at once, a process each of one thread."""
    samples_per_class: int = 60
    """Fresh chains of a class that a finished run is judged by."""
    resume: bool = False
    """Go on with the runs that are missing in the folder."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range."""
        for name in ("seeds", "epochs", "workers"):
            checks.positive_integer(name, getattr(self, name))
        if self.samples_per_class <= 5:
            raise ValueError(
                f"samples_per_class={self.samples_per_class}: more than the 5 neighbours are needed."
            )


def setting(config: Config, seed: int, recovery: bool) -> JemConfig:
    """Returns the flags of experiments/jem.py that a run has: the paper's sampler."""
    return replace(
        JemConfig(),
        seed=seed,
        epochs=config.epochs,
        recovery=recovery,
        sampler_step_size=1.0,
        sampler_noise=0.01,
        sampler_gradient_clip=None,
        sampler_clamp=False,
        telemetry_every=0,
        progress=False,
    )


def run_all(config: Config, run: RunFolder) -> list[dict[str, Any]]:
    """Trains every seed both ways, in processes, writing a line a run; returns all of them."""
    path = run.path / "runs.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(record["seed"], record["recovery"]) for record in records}
    wanted = [
        (seed, recovery)
        for seed in range(config.seed, config.seed + config.seeds)
        for recovery in (True, False)
        if (seed, recovery) not in done
    ]
    started = time.monotonic()
    # Spawned, because JAX is no friend of a fork.
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        futures: list[Future[dict[str, Any]]] = [
            pool.submit(survive, setting(config, seed, recovery), config.samples_per_class)
            for seed, recovery in wanted
        ]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                record = future.result()
                records.append(record)
                file.write(json.dumps(record) + "\n")
                file.flush()
                if config.progress:
                    left = (time.monotonic() - started) / count * (len(wanted) - count)
                    print(f"{count}/{len(wanted)}  {_line(record)}  {left:.0f} s left", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(records, key=lambda record: (record["seed"], not record["recovery"]))


def _line(record: Mapping[str, Any]) -> str:
    how = "with recovery" if record["recovery"] else "without"
    said = (
        f"diverged: {record['ended'] or 'energy gap'}" if record["diverged"] else f"{record['accuracy']:.3f}"
    )
    return f"seed {record['seed']} {how}: {said}, {len(record['recoveries'])} recoveries"


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what the runs say, as plain values for JSON.

    The difference of a measure between recovered and healthy runs comes with its standard error, of two
    independent means.
    """
    alone = [record for record in records if not record["recovery"]]
    protected = [record for record in records if record["recovery"]]
    finished = [record for record in protected if not record["diverged"]]
    groups = {
        "recovered": [record for record in finished if record["recoveries"]],
        "healthy": [record for record in finished if not record["recoveries"]],
    }
    measures = {}
    for name in MEASURES:
        values = {group: np.array([record[name] for record in rows]) for group, rows in groups.items()}
        entry: dict[str, Any] = {
            group: {"mean": float(of.mean()), "sd": float(of.std(ddof=1))}
            for group, of in values.items()
            if len(of) > 1
        }
        if len(entry) == 2:
            variance = sum(of.var(ddof=1) / len(of) for of in values.values())
            entry["difference"] = entry["recovered"]["mean"] - entry["healthy"]["mean"]
            entry["standard_error"] = float(np.sqrt(variance))
        measures[name] = entry
    recoveries = [one for record in protected for one in record["recoveries"]]
    remedies = [one["remedy"] for one in recoveries]
    faults = [fault for one in recoveries for fault in one["faults"]]
    return {
        "without_recovery": {"runs": len(alone), "diverged": sum(record["diverged"] for record in alone)},
        "with_recovery": {
            "runs": len(protected),
            "finished": len(finished),
            "recovered": len(groups["recovered"]),
            "recoveries": len(recoveries),
            "by_remedy": {name: remedies.count(name) for name in sorted(set(remedies))},
            "by_fault": {name: faults.count(name) for name in sorted(set(faults))},
        },
        "measures": measures,
    }


def as_markdown(config: Config, summary: Mapping[str, Any]) -> str:
    """Returns the card for a reader."""
    alone, protected = summary["without_recovery"], summary["with_recovery"]
    lines = [
        f"# Survival of {config.seeds} seeds of the digits JEM, {config.epochs} epochs, the paper's sampler",
        "",
        f"Without recovery {alone['diverged']} of {alone['runs']} diverged. "
        f"With it {protected['finished']} of {protected['runs']} finished; {protected['recovered']} of them "
        f"recovered, {protected['recoveries']} times in all.",
        "",
        f"Faults: {_counts(protected['by_fault'])}. Remedies: {_counts(protected['by_remedy'])}.",
        "",
    ]
    header = ("", "recovered, mean (sd)", "never sick, mean (sd)", "difference (standard error)")
    rows = []
    for name, entry in summary["measures"].items():
        cells = [_mean_sd(entry.get(group)) for group in ("recovered", "healthy")]
        difference = "-"
        if "difference" in entry:
            difference = f"{entry['difference']:+.4f} ({entry['standard_error']:.4f})"
        rows.append((name, *cells, difference))
    return "\n".join([*lines, *markdown_table(header, rows), "", "![survival](survival.png)", ""])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _mean_sd(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{entry['mean']:.4f} ({entry['sd']:.4f})"


def main(config: Config) -> dict[str, Any]:
    """Runs all seeds, writes the folder and returns the card."""
    started = time.monotonic()
    config.check()
    run = open_run(config.output, as_json(config), resume=config.resume, overwrite=config.overwrite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        records = run_all(config, run)
    summary = summarise(records)
    plots.survival(run.path / "survival.png", records, RUNAWAY_GAP)
    card = {"schema": 1, "experiment": "survival", "seed": config.seed, "config": as_json(config)}
    card |= summary | {"seconds": time.monotonic() - started}
    publish_card(run, card, as_markdown(config, summary))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
