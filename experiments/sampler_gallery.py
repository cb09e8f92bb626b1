"""Every sampler on every analytic target, against exact answers: moments, marginals, log Z, cost.

    python experiments/sampler_gallery.py
    python experiments/sampler_gallery.py --targets skewed ring --samplers mala hmc

    expected  seed 0, Kolmogorov-Smirnov distance of the worst coordinate: at most .05 for every sampler on
              the skewed target; on 40 modes .85 to .90 for single chains, .021 for parallel tempering and
              .062 for sequential Monte Carlo (experiments/RESULTS.md has all tables)
    time      7 to 15 minutes, most of it compilation
    device    two CPU cores

All chains start from one exact sample, which shows whether a sampler moves between modes. MALA, HMC and NUTS
are tuned (`warm_up`, one chain); SGLD and its variants use a fixed fraction of these step sizes. Each chain
uses the same number of gradients, and the first quarter of its steps is discarded. Times are of one machine,
without compilation.

Writes card.json, card.md and pictures: trajectories, marginals, and a map of all errors.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gallery import plots
from gallery.judge import SAMPLERS, Budget, Judgement, judge
from gallery.targets import TARGETS, Setting, make_setting
from jaxebm import checks
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.report.markdown import markdown_table
from jaxebm.training import open_run


@dataclass(frozen=True)
class Config(RunFlags):
    """Run every sampler on every analytic target and compare with the exact answers."""

    targets: tuple[str, ...] = tuple(TARGETS)
    """Targets, by their names in the table."""
    samplers: tuple[str, ...] = SAMPLERS
    """Samplers, by their names in the table."""
    chains: int = 64
    """Chains of each sampler."""
    gradients: int = 4000
    """Gradient evaluations per chain (NUTS has the same number of transitions as HMC)."""
    output: Path = Path("runs/sampler_gallery")
    """Folder of this run."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        for name, known in (("targets", TARGETS), ("samplers", SAMPLERS)):
            chosen = getattr(self, name)
            unknown = [one for one in chosen if one not in known]
            if unknown or not chosen:
                raise ValueError(
                    f"{name}={chosen}: unknown {unknown}; choose among {', '.join(map(repr, known))}."
                )
        checks.positive_integer("chains", self.chains)
        checks.positive_integer("gradients", self.gradients)
        if self.chains < 2 or self.gradients < 100:
            raise ValueError(
                f"chains={self.chains}, gradients={self.gradients}: at least 2 chains of 100 gradients "
                "are needed."
            )


def as_entry(judgement: Judgement) -> dict[str, Any]:
    """Returns the results for JSON; None for values that are not finite, as when a chain diverged."""
    numbers = {name: value for name, value in judgement._asdict().items() if name not in ("samples", "path")}
    entry = {
        name: None if value is None or not np.isfinite(value) else float(value)
        for name, value in numbers.items()
    }
    effective, seconds = entry["effective_samples"], judgement.seconds
    known = effective is not None
    entry["diverged"] = not np.isfinite(judgement.mean_error)
    entry["effective_samples_per_1000_gradients"] = 1000 * effective / judgement.gradients if known else None
    entry["effective_samples_per_second"] = effective / seconds if known else None
    return entry


COLUMNS: Mapping[str, tuple[str, str]] = {
    "mean_error": ("mean, off by sd", ".3f"),
    "deviation_error": ("sd, off by", ".1%"),
    "kolmogorov": ("Kolmogorov-Smirnov", ".3f"),
    "log_partition_error": ("log Z, off by nats", "+.3f"),
    "r_hat": ("R-hat", ".3f"),
    "acceptance_rate": ("acceptance", ".2f"),
    "effective_samples_per_1000_gradients": ("ESS per 1000 gradients", ".3g"),
    "effective_samples_per_second": ("ESS per second", ".3g"),
}


def as_markdown(config: Config, results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns one table per target."""
    lines = [
        f"# Samplers on analytic targets, seed {config.seed}",
        "",
        f"{config.chains} chains of {config.gradients} gradients each, from one start; each column has the "
        "worst coordinate; ESS is of all chains together.",
        "",
    ]
    for target, by_sampler in results.items():
        header, rows = ("sampler", *(title for title, _ in COLUMNS.values())), []
        for sampler, entry in by_sampler.items():
            cells = [
                "-" if entry[name] is None else format(entry[name], form)
                for name, (_, form) in COLUMNS.items()
            ]
            rows.append((f"{sampler}{' (diverged)' if entry['diverged'] else ''}", *cells))
        lines += [f"## {target}", "", *markdown_table(header, rows), ""]
    pictures = ("errors", "trajectories", "marginals")
    return "\n".join([*lines, *(f"![{name}]({name}.png)" for name in pictures), ""])


def main(config: Config) -> dict[str, Any]:
    """Evaluates every pair and writes the card; returns it."""
    started = time.monotonic()
    config.check()
    run = open_run(config.output, as_json(config), overwrite=config.overwrite, resumable=False)
    budget = Budget(config.chains, config.gradients)
    settings: dict[str, Setting] = {}
    judgements: dict[str, dict[str, Judgement]] = {}
    for name in config.targets:
        setting_key, judge_key = jax.random.split(
            jax.random.fold_in(jax.random.key(config.seed), list(TARGETS).index(name))
        )
        settings[name] = make_setting(setting_key, TARGETS[name]())
        judgements[name] = {}
        for sampler in config.samplers:
            if config.progress:
                print(f"{name}: {sampler}", flush=True)
            judgements[name][sampler] = judge(judge_key, sampler, settings[name], budget)
    results = {
        target: {sampler: as_entry(one) for sampler, one in by_sampler.items()}
        for target, by_sampler in judgements.items()
    }
    plots.error_map(run.file("errors.png"), results)
    plots.trajectories(run.file("trajectories.png"), settings, judgements)
    plots.marginals(run.file("marginals.png"), settings, judgements)
    card = {
        "schema": 1,
        "experiment": "sampler_gallery",
        "seed": config.seed,
        "targets": results,
        "seconds": time.monotonic() - started,
        "config": as_json(config),
    }
    publish_card(run, card, as_markdown(config, results))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
