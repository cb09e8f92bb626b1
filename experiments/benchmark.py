"""Speed of jaxebm and other packages: samplers, objectives, JEM, associative memories, scaling, utilisation.

    pip install torch torchebm numpyro hamux fastcore     # other packages; a missing one is named in its row
    python experiments/benchmark.py                       # images, sgld, mala, hmc, jem-8, jem-32
    python experiments/benchmark.py --only samplers --rounds 9
    python experiments/benchmark.py --only hopfield --rounds 7 --output runs/benchmark_hopfield.json
    python experiments/benchmark.py --only recovery --rounds 9 --seconds 1
    python experiments/benchmark.py --only objectives --threads 1 --clock processor --rounds 7
    python experiments/benchmark.py --only curves
    python experiments/benchmark.py --only utilisation

    expected  ratios of times, median (range over the rounds): SGLD on the network over PyTorch's .47 (.42 to
              .73); JEM update over PyTorch's .46 (.40 to .64) on 8 x 8 images and 1.02 (.92 to 1.03) on
              32 x 32 x 3; modern retrieval over its two bare products 1.13 (1.08 to 1.38); detection and
              snapshots over an update without 1.01 (.998 to 1.02). docs/performance.md has all tables
    time      5 minutes without --only; samplers 4, curves 3, hopfield 1
    device    two cores of an AMD EPYC; utilisation needs a GPU

All implementations get the same float32 inputs and weights, and their results are compared before they are
timed: energies and gradients to 1e-4, samplers by the moments of their chains in standard errors, a JEM
update by its new parameters. Then they are timed in turn, in an order that is reversed every round; the
result is the median over the rounds of the ratio of times within a round. The row of bare gradients is a
lower bound: only the same number of gradients. Run nothing else on the machine; its load is recorded.

Prints tables, writes them as Markdown next to the JSON file, and draws the curves.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import curves, hopfield, objectives, samplers, suite, utilisation
from benchmarks.harness import aims_table, compete, describe_machine, heading, judge, set_threads, tables
from jaxebm import checks
from jaxebm.recipes.command_line import as_json, refuse_existing, run_experiment
from jaxebm.training import write_atomically

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Config(suite.Sizes):
    """Measure samplers, training, associative memories, scaling and utilisation against other packages."""

    only: tuple[str, ...] = suite.DEFAULT
    """Groups, or parts of them: samplers (sgld, mala, hmc, gaussian-sgld, gaussian-mala, gaussian-hmc,
    images), training (jem-8, jem-32), hopfield (retrieval, asynchronous, sparse, attention, compilations),
    curves (curve-chains, curve-steps, curve-width, curve-devices), objectives (each objective without chains,
    by the name of its function with hyphens), recovery, utilisation."""
    output: Path = Path("runs/benchmark.json")
    """The file to write; tables (.md) and curves (.png) get the same name."""
    overwrite: bool = False
    """Replace the file if it exists."""
    rounds: int = 5
    """Number of rounds; each round times every implementation once."""
    seconds: float = 0.2
    """Seconds of repeated calls of an implementation in a round; at least one call is made."""
    clock: Literal["wall", "processor"] = "wall"
    """Wall time, or the time of the processor over all threads: with one thread, what a busy machine
    disturbs less. It does not count a GPU."""
    seed: int = 0
    """Seed of weights, positions and noise."""
    threads: int | None = None
    """Threads of JAX and of PyTorch; the number of cores by default."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is unknown or out of range, or ``FileExistsError``."""
        suite.check_parts(self.only)
        checks.positive_integer("rounds", self.rounds)
        checks.non_negative("seconds", self.seconds)
        checks.one_of("clock", self.clock, tuple(CLOCKS))
        if self.threads is not None:
            checks.positive_integer("threads", self.threads)
        super().check()
        refuse_existing("output", self.output, overwrite=self.overwrite)


def as_markdown(card: Mapping[str, Any]) -> str:
    """Returns the card as text."""
    parts = [heading(card)]
    if card["aims"]:
        parts.append(aims_table(card["aims"]))
    others = [found for name, found in card["workloads"].items() if not objectives.is_objective(name)]
    if others:
        parts.append(tables(others).rstrip())
    if len(others) < len(card["workloads"]):
        parts.append(objectives.as_markdown(card["workloads"]))
    sampled = [card["workloads"][name] for name in samplers.WORKLOADS if name in card["workloads"]]
    if sampled:
        worst = max((sigma for one in sampled for sigma in one["differences"].values()), default=0.0)
        parts.append(f"Largest difference between distributions of chains: {worst:.1f} standard errors.")
    for name, count in card["compilations"].items():
        memories = hopfield.NEW_MEMORIES
        parts.append(f"Programs compiled for {memories} memories of one shape, `{name}`: {count}")
    if card["utilisation"]:
        parts.append(utilisation.as_markdown(card["utilisation"]))
    if card["curves"]:
        parts.append(curves.as_markdown(card["curves"]).rstrip())
    return "\n\n".join(parts) + "\n"


def main(config: Config) -> dict[str, Any]:
    """Measures the chosen parts, writes the card and returns it."""
    config.check()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    if config.threads is not None:
        set_threads(config.threads)
    parts, load = suite.expand(config.only), os.getloadavg()[0]
    rounds, seed = config.rounds, config.seed
    results: dict[str, dict[str, Any]] = {}
    scaling: dict[str, list[dict[str, Any]]] = {}
    compilations: dict[str, int] = {}
    used = None
    for part in parts:
        print(f"{part}: compiling and measuring", flush=True)
        if part in suite.CURVES:
            name = suite.CURVES[part]
            scaling[name] = curves.measure_curve(name, config.curve, rounds=rounds, seed=seed)
        elif part == "utilisation":
            used = utilisation.measure_utilisation(config.wide, rounds=rounds, seed=seed)
        elif part == "compilations":
            with suite.precision_of(part):
                compilations = hopfield.compilations(config.memories, seed)
        else:
            for name, (workload, differences) in suite.make_workloads(config, part, seed).items():
                with suite.precision_of(part):
                    found = compete(workload, rounds, config.seconds, CLOCKS[config.clock])
                results[name] = found | {"differences": differences}
                print(tables([results[name]]), flush=True)  # now, in case the run is stopped
    card = {
        "schema": 2,
        "experiment": "benchmark",
        "machine": describe_machine(suite.packages_of(parts)),
        "load": [load, os.getloadavg()[0]],
        "workloads": results,
        "compilations": compilations,
        "aims": judge(suite.AIMS, results),
        "utilisation": used,
        "curves": scaling,
        "config": as_json(config),
    }
    text = as_markdown(card)
    write_atomically(config.output, json.dumps(card, indent=2, default=str) + "\n")
    write_atomically(config.output.with_suffix(".md"), text)
    if scaling:
        curves.draw(config.output.with_suffix(".png"), scaling)
    print(text)
    return card


if __name__ == "__main__":
    run_experiment(Config, main)
