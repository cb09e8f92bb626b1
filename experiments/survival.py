"""Does recovery work? Training of many seeds at a setting where some diverge, with recovery and without.

    python experiments/survival.py
    python experiments/survival.py --seeds 8 --epochs 30

    expected  62 of 100 seeds diverge without recovery; with it 100 of 100 finish, 62 of them after 125
              recoveries. Test accuracy, mean (sd): recovered .9809 (.0033), healthy .9806 (.0026)
    time      an hour: 100 seeds, twice
    device    two CPU cores

The setting is the sampler of the JEM paper on digits: step 1, noise .01, no clip of gradients or pixels.
Where the curvature of the energy exceeds 2, its chains overshoot, the energy gap grows without bound, and
about a hundred updates later the optimiser has numbers that are not finite. Every seed is trained twice, with
the recovery of `jaxebm.training.fit` and without. Test accuracy and samples of the runs that recovered are
compared with those of the healthy runs, which needed no recovery: fresh class-conditional chains, 100 steps
of the same sampler, against the training images of their class. A run without recovery has diverged if it
ends at a number that is not finite, or if its energy gap at the end is beyond 100 nats; that of healthy runs
is below 15.

Writes a folder: config.json, runs.jsonl (one line per run; --resume continues after the last), card.json,
card.md, survival.png.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import json
import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.data import Dataset, load_dataset
from jaxebm.energies import joint_energy
from jaxebm.evaluation import prdc_by_class
from jaxebm.objectives import run_labelled_chains
from jaxebm.recipes import Config as JemConfig
from jaxebm.recipes import Training, build, replace_settings
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.recipes.run import run_training
from jaxebm.recipes.sampler import make_initial, make_kernel
from jaxebm.report.figures import ACCENT, INK, drawing
from jaxebm.report.markdown import markdown_table
from jaxebm.training import DivergenceError, RunFolder, TrainState, open_run

MEASURES = ("accuracy", "precision", "recall", "density", "coverage")
RUNAWAY_GAP = 100.0
"""|E(data) - E(samples)| in nats, mean over the last dispatch, at which a finite run has diverged."""
SAMPLE_STEPS = 100
NEIGHBOURS = 5


@dataclass(frozen=True)
class Config(RunFlags):
    """Train many seeds where training may diverge, with recovery and without."""

    output: Path = Path("runs/survival")
    """Folder of this run."""
    seeds: int = 100
    """Number of seeds, beginning with --seed."""
    epochs: int = 60
    """Epochs of each run."""
    workers: int = 2
    """Runs in parallel, each a process with one thread."""
    samples_per_class: int = 60
    """Fresh chains per class for the evaluation of a finished run."""
    resume: bool = False
    """Continue with the runs that are missing in the folder."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range."""
        for name in ("seeds", "epochs", "workers"):
            checks.positive_integer(name, getattr(self, name))
        if self.samples_per_class <= 5:
            raise ValueError(
                f"samples_per_class={self.samples_per_class}: more than the 5 neighbours are needed."
            )


def setting(config: Config, seed: int, recovery: bool) -> JemConfig:
    """Returns the configuration of one run: the paper's sampler."""
    changes = {
        "seed": seed,
        "epochs": config.epochs,
        "sampler.step_size": 1.0,
        "sampler.noise": 0.01,
        "sampler.gradient_clip": None,
        "sampler.clamp": False,
        "run.recovery": recovery,
        "run.telemetry_every": 0,
        "run.progress": False,
    }
    return replace_settings(JemConfig(), changes)


@cache
def _digits() -> Dataset:
    return load_dataset("digits")


def survive(config: JemConfig, samples_per_class: int) -> dict[str, Any]:
    """Trains one seed, in its own process, and returns the outcome as plain values for JSON.

    Args:
      config: of a JEM run.
      samples_per_class: fresh chains of each class.

    Returns:
      seed, recovery (whether it could), diverged, ended (the error, if one ended it), recoveries (their
      records), gaps (pairs of update and energy gap, of the updates that counted in the end), seconds; and,
      if it has not diverged, accuracy and what `prdc_by_class` measures of its samples.
    """
    started = time.monotonic()
    often = {"run.steps_per_dispatch": 10, "run.checkpoint_every": 10**9}
    training = build(replace_settings(config, often), _digits())
    ended, state = "", None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # recoveries are in the record
        run = open_run(folder, {})
        try:
            state = run_training(training, run).state
        except DivergenceError as error:
            ended = str(error).split(". ")[0]
        records, recoveries = run.read_metrics(), run.read_recoveries()
    gaps = [(record["step"], record["energy_gap"]) for record in records]
    diverged = state is None or abs(gaps[-1][1]) > RUNAWAY_GAP
    record: dict[str, Any] = {
        "seed": config.seed,
        "recovery": config.run.recovery,
        "diverged": diverged,
        "ended": ended,
        "recoveries": recoveries,
        "gaps": gaps,
    }
    if state is not None and not diverged:
        record |= _judge(training, state, samples_per_class)
    return record | {"seconds": time.monotonic() - started}


def _judge(training: Training, state: TrainState, samples_per_class: int) -> dict[str, float]:
    """Test accuracy and fresh chains of the setting's sampler, without the remedies in force."""
    dataset, config = _digits(), training.config
    logits = jax.jit(jax.vmap(partial(training.network.apply, state.ema_params)))
    classes = np.argmax(logits(jnp.asarray(dataset.rescale(dataset.test.image))), axis=1)
    labels = jnp.repeat(jnp.arange(dataset.num_classes, dtype=jnp.int32), samples_per_class)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    start = jax.vmap(make_initial(config, dataset))(jax.random.split(keys[0], len(labels)), labels)
    advance = jax.jit(
        partial(
            run_labelled_chains,
            make_kernel=make_kernel(config),
            energy=joint_energy(training.network.apply),
            num_steps=SAMPLE_STEPS,
        )
    )
    samples = np.asarray(advance(keys[1], params=state.ema_params, positions=start, labels=labels))
    real = np.asarray(dataset.rescale(dataset.train.image)).reshape(len(dataset.train.label), -1)
    generated = samples.reshape(len(samples), -1)
    quality = prdc_by_class(
        real, dataset.train.label, generated, np.asarray(labels), dataset.num_classes, k=NEIGHBOURS
    ).mean
    measured = {name: float(value) for name, value in quality._asdict().items()}
    if not all(math.isfinite(value) for value in measured.values()):
        raise RuntimeError(f"seed {config.seed}: the samples' measures are not finite, {measured}.")
    return {"accuracy": float(np.mean(classes == dataset.test.label))} | measured


def run_all(config: Config, run: RunFolder) -> list[dict[str, Any]]:
    """Trains every seed with and without recovery, in processes, and writes one line per run; returns all."""
    path = run.file("runs.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(record["seed"], record["recovery"]) for record in records}
    wanted = [
        (seed, recovery)
        for seed in range(config.seed, config.seed + config.seeds)
        for recovery in (True, False)
        if (seed, recovery) not in done
    ]
    started = time.monotonic()
    # Spawned, because JAX does not work after a fork.
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
    """Returns the results of all runs as plain values for JSON.

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
    """Returns the card as text."""
    alone, protected = summary["without_recovery"], summary["with_recovery"]
    lines = [
        f"# Survival of {config.seeds} seeds of the digits JEM, {config.epochs} epochs, the paper's sampler",
        "",
        f"Without recovery {alone['diverged']} of {alone['runs']} diverged. "
        f"With it {protected['finished']} of {protected['runs']} finished; {protected['recovered']} of them "
        f"recovered, {protected['recoveries']} times in total.",
        "",
        f"Faults: {_counts(protected['by_fault'])}. Remedies: {_counts(protected['by_remedy'])}.",
        "",
    ]
    header = ("", "recovered, mean (sd)", "healthy, mean (sd)", "difference (standard error)")
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


def draw(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws the energy gaps of all runs, with recovery and without, and the results of recovered runs."""
    size = (11.0, 3.2)
    with drawing(path, 1, 3, figsize=size, width_ratios=(1.3, 1.3, 1.0)) as (figure, panels):
        axes = panels[0]
        for axis, recovery, title in ((axes[0], False, "without recovery"), (axes[1], True, "with recovery")):
            for record in (record for record in records if record["recovery"] == recovery):
                steps, gaps = np.array(record["gaps"]).T
                sick = record["diverged"] or record["recoveries"]
                color, alpha = (ACCENT, 0.9) if sick else (INK, 0.25)
                axis.plot(steps, gaps, color=color, linewidth=0.6, alpha=alpha)
                for one in record["recoveries"]:
                    axis.axvline(one["step"], ymax=0.06, color=ACCENT, linewidth=0.7)
            axis.set_yscale("symlog", linthresh=10.0)
            axis.set(title=title, xlabel="update", ylabel="energy gap, nats")
            axis.axhline(-RUNAWAY_GAP, color=INK, linewidth=0.8, linestyle="--")
        axes[1].sharey(axes[0])
        finished = [record for record in records if record["recovery"] and not record["diverged"]]
        for label, color, rows in (
            ("healthy", INK, [record for record in finished if not record["recoveries"]]),
            ("recovered", ACCENT, [record for record in finished if record["recoveries"]]),
        ):
            accuracy, coverage = ([record[name] for record in rows] for name in ("accuracy", "coverage"))
            axes[2].scatter(accuracy, coverage, s=12, color=color, label=label, alpha=0.7)
        axes[2].set(title="finished runs", xlabel="test accuracy", ylabel="coverage of fresh samples")
        axes[2].legend(fontsize=7)
        figure.tight_layout()


def main(config: Config) -> dict[str, Any]:
    """Runs all seeds, writes the folder and returns the card."""
    started = time.monotonic()
    config.check()
    run = open_run(
        config.output,
        as_json(config),
        resume=config.resume,
        overwrite=config.overwrite,
        uncompared=("output", "overwrite", "progress", "resume"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        records = run_all(config, run)
    summary = summarise(records)
    draw(run.file("survival.png"), records)
    card = {"schema": 1, "experiment": "survival", "seed": config.seed, "config": as_json(config)}
    card |= summary | {"seconds": time.monotonic() - started}
    publish_card(run, card, as_markdown(config, summary))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
