"""Does the interval of annealed importance sampling contain log Z? A hundred intervals on each of 4 targets.

    python experiments/log_partition.py

    expected  97 to 100 of 100 intervals contain log Z, at a nominal 99%; width in nats (sd) at 64 and at 1024
              temperatures: gaussian_50 1.95 (.37) and .52 (.12), mixture_50 1.44 (.35) and .52 (.13),
              many_well_32 6.70 (1.28) and 1.64 (.35), hopfield_64 .15 (.04) and .04 (.01)
    time      10 minutes
    device    two CPU cores

For each target and each length of the schedule, forward and reverse annealed importance sampling are repeated
with new keys. The results are the number of intervals that contain the exact log Z, their widths, and on
which side they miss. Schedule and step sizes are fitted once per target by pilot chains
(`fit_annealing_path`).

Writes card.json, card.md and a picture of every interval to the output folder.

Reference: Neal 2001, "Annealed importance sampling"; Grosse, Ghahramani & Adams 2015 (arXiv 1511.02543).
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gallery.plots import interval_panels
from jaxebm import checks
from jaxebm.energies import AnalyticTarget, gaussian, gaussian_mixture, many_well
from jaxebm.evaluation import fit_annealing_path, log_partition_interval
from jaxebm.hopfield import as_gaussian_mixture, modern
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.report.markdown import markdown_table
from jaxebm.samplers import hmc
from jaxebm.training import open_run

KERNEL = partial(hmc, num_integration_steps=5)


def gaussian_50() -> tuple[AnalyticTarget, AnalyticTarget]:
    """A shifted normal in 50 dimensions, condition number 16 along random axes, from the standard normal."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    covariance = axes * np.geomspace(0.33, 5.2, 50) @ axes.T
    target = gaussian(0.5 * rng.normal(size=50), (covariance + covariance.T) / 2)
    return target, gaussian(np.zeros(50), np.eye(50))


def mixture_50() -> tuple[AnalyticTarget, AnalyticTarget]:
    """Five normals in 50 dimensions, weights 0.5 to 3, ten deviations apart, from one that covers all."""
    means = np.random.default_rng(1).normal(size=(5, 50))
    target = gaussian_mixture([1.0, 2.0, 3.0, 0.5, 1.5], means, [0.7, 0.8, 0.9, 1.0, 0.75])
    return target, gaussian(np.zeros(50), 1.5 * np.eye(50))


def many_well_32() -> tuple[AnalyticTarget, AnalyticTarget]:
    """Sixteen double wells, 65,536 modes, from a normal that covers all of them."""
    return many_well(32), gaussian(np.zeros(32), np.diag(np.tile([4.0, 1.0], 16)))


def hopfield_64() -> tuple[AnalyticTarget, AnalyticTarget]:
    """A modern Hopfield network of 8 memories in 64 dimensions, of unequal masses."""
    directions = np.random.default_rng(0).normal(size=(8, 64))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    memory = modern(directions * np.linspace(0.9, 2.1, 8)[:, None], 1.0)
    return as_gaussian_mixture(memory), gaussian(np.zeros(64), 1.1 * np.eye(64))


TARGETS: Mapping[str, Callable[[], tuple[AnalyticTarget, AnalyticTarget]]] = {
    "gaussian_50": gaussian_50,
    "mixture_50": mixture_50,
    "many_well_32": many_well_32,
    "hopfield_64": hopfield_64,
}
"""By name: the target, and the base that it is annealed from."""


@dataclass(frozen=True)
class Config(RunFlags):
    """Count how often the interval contains log Z, and measure its width for each length of the schedule."""

    targets: tuple[str, ...] = tuple(TARGETS)
    """Targets: any of gaussian_50, mixture_50, many_well_32, hopfield_64."""
    lengths: tuple[int, ...] = (64, 256, 1024)
    """Numbers of temperatures of the schedule, evaluated separately."""
    repetitions: int = 100
    """Intervals for each target and length."""
    chains: int = 100
    """Annealed chains in each direction of one interval."""
    coverage: float = 0.99
    """Nominal coverage of one interval."""
    output: Path = Path("runs/log_partition")
    """Folder of this run."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"targets={self.targets}: unknown {unknown}; choose among {', '.join(TARGETS)}.")
        checks.positive_integer("repetitions", self.repetitions)
        for name in ("lengths", "chains"):
            values = np.atleast_1d(getattr(self, name))
            if values.size == 0 or values.min() < 2:
                raise ValueError(f"{name}={getattr(self, name)}: integers of at least 2 are needed.")
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage={self.coverage}: strictly between 0 and 1 is needed.")


def repeat_intervals(
    config: Config, target: AnalyticTarget, base: AnalyticTarget, length: int
) -> dict[str, Any]:
    """Returns coverage, width and the ends of all intervals less the exact log Z, for one length."""
    started = time.monotonic()
    fit_key, runs_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), length))
    problem = (target.energy, target.params, base, KERNEL)
    path = fit_annealing_path(fit_key, *problem, length, step_size=0.1)
    exact = float(target.log_partition(target.params))
    ends, weights = np.zeros((config.repetitions, 2)), np.zeros((config.repetitions, 2))
    for index, key in enumerate(jax.random.split(runs_key, config.repetitions)):
        sample_key, run_key = jax.random.split(key)
        interval = log_partition_interval(
            run_key,
            *problem,
            path.schedule,
            config.chains,
            target.sample(sample_key, target.params, config.chains),
            coverage=config.coverage,
            kernel_schedule=path.kernel_schedule,
        )
        ends[index] = float(interval.low) - exact, float(interval.high) - exact
        weights[index] = interval.forward.effective_sample_size, interval.reverse.effective_sample_size
    return {
        "log_partition": exact,
        "covered": int(np.sum((ends[:, 0] < 0) & (ends[:, 1] > 0))),
        "missed_below": int(np.sum(ends[:, 1] <= 0)),
        "missed_above": int(np.sum(ends[:, 0] >= 0)),
        "width": {
            "mean": float(np.mean(ends[:, 1] - ends[:, 0])),
            "sd": float(np.std(np.diff(ends), ddof=1)),
        },
        "effective_sample_size": {"forward": weights[:, 0].mean(), "reverse": weights[:, 1].mean()},
        "path_length": float(path.length),
        "ends": ends.tolist(),
        "seconds": time.monotonic() - started,
    }


def as_markdown(config: Config, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table as text."""
    lines = [
        f"# Intervals that contain log Z, of {config.repetitions}, nominal coverage {config.coverage:g}",
        "",
    ]
    header = ("target", "exact log Z", "temperatures", "held", "missed below / above", "width, nats (sd)")
    rows = []
    for name, by_length in results.items():
        for length, one in by_length.items():
            missed = f"{one['missed_below']} / {one['missed_above']}"
            width = f"{one['width']['mean']:.3f} ({one['width']['sd']:.3f})"
            weights = "{forward:.0f} / {reverse:.0f}".format(**one["effective_sample_size"])
            cells = (name, f"{one['log_partition']:.4f}", length, one["covered"], missed, width, weights)
            rows.append([str(cell) for cell in cells])
    weighed = f"effective weights of {config.chains}, forward / reverse"
    return "\n".join(
        [*lines, *markdown_table((*header, weighed), rows), "", "![intervals](intervals.png)", ""]
    )


def main(config: Config) -> dict[str, Any]:
    """Repeats, counts and writes the card; returns it."""
    started = time.monotonic()
    config.check()
    run = open_run(config.output, as_json(config), overwrite=config.overwrite, resumable=False)
    results: dict[str, dict[str, Any]] = {}
    for name in config.targets:
        target, base = TARGETS[name]()
        results[name] = {}
        for length in config.lengths:
            if config.progress:
                print(f"{name}, {length} temperatures", flush=True)
            results[name][str(length)] = repeat_intervals(config, target, base, length)
    interval_panels(
        run.file("intervals.png"),
        {
            name: {length: np.asarray(one["ends"]) for length, one in by.items()}
            for name, by in results.items()
        },
    )
    card = {
        "schema": 1,
        "experiment": "log_partition",
        "seed": config.seed,
        "targets": results,
        "seconds": time.monotonic() - started,
        "config": as_json(config),
    }
    publish_card(run, card, as_markdown(config, results))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
