"""Speed of jaxebm, in one run: samplers, the JEM update, scaling, utilisation, and the cost of protection.

    pip install torch torchebm numpyro     # the peers; without one, its row says so and the rest runs
    python experiments/benchmark.py
    python experiments/benchmark.py --only jem-8 --rounds 9 --threads 1
    python experiments/benchmark.py --only --curves chains steps width devices
    python experiments/benchmark.py --only utilisation    # wants a GPU; see benchmark_utilisation.py
    python experiments/benchmark.py --only recovery --rounds 15 --seconds 1

Each workload is run by jaxebm, PyTorch (eager, and with torch.compile, warm), TorchEBM and BlackJAX, with
the same inputs and weights, and beside its floor: as many bare gradients. Before the clock starts energies
and gradients are compared to 1e-4, the laws of samplers in standard errors, and one JEM update from equal
negatives in its parameters. Then contenders take turns; the median over the rounds of the ratio of times
within a round is what counts. What the project wants is compared with what this run measured. Let the
machine do nothing else.

Prints tables, and writes them as Markdown beside the JSON, and the curves as a picture. docs/performance.md
has figures and what they mean.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

import benchmark_curves as scaling
import benchmark_recovery as recovery
import benchmark_samplers as samplers
import benchmark_training as training
import benchmark_utilisation as utilisation
from benchmark_harness import (
    Aim,
    Workload,
    aims_table,
    check_agreement,
    compete,
    describe_machine,
    heading,
    judge,
    set_threads,
    tables,
)
from command_line import as_json, refuse_existing, run_experiment
from jaxebm import checks
from jaxebm.training import write_atomically

SAMPLED = {
    "images": ("images", "sgld"),
    "sgld": ("mlp", "sgld"),
    "mala": ("mlp", "mala"),
    "hmc": ("mlp", "hmc"),
}
"""Target and sampler of `benchmark_samplers`, by name."""
UPDATES = {"jem-8": (8, 1), "jem-32": (32, 3)}
"""Pixels and channels of the images of a JEM update, by name."""
WORKLOADS = (*SAMPLED, *UPDATES)
PARTS = (*WORKLOADS, "recovery", "utilisation")

SAMPLE, UPDATE, FLOOR = "jaxebm, `sample`", training.OURS, "bare gradients, JAX"
EAGER, TORCHEBM = "PyTorch, eager", "TorchEBM"
AIMS = (
    Aim("SGLD on images: time over PyTorch's, at most 0.70", "images", SAMPLE, EAGER, 0.70),
    Aim("SGLD on the network: time over PyTorch's, at most 0.57", "sgld", SAMPLE, EAGER, 0.57),
    Aim("SGLD on the network: TorchEBM's time over ours, at least 1.9", "sgld", TORCHEBM, SAMPLE, 1.9, True),
    Aim("HMC on the network: TorchEBM's time over ours, at least 3.5", "hmc", TORCHEBM, SAMPLE, 3.5, True),
    Aim("SGLD on the network: time over its bare gradients, at most 1.05", "sgld", SAMPLE, FLOOR, 1.05),
    Aim("SGLD on images: time over its bare gradients, at most 1.10", "images", SAMPLE, FLOOR, 1.10),
    Aim("JEM update 8 x 8 x 1: time over PyTorch's, at most 0.70", "jem-8", UPDATE, EAGER, 0.70),
    Aim("JEM update 32 x 32 x 3: time over PyTorch's, at most 1.3", "jem-32", UPDATE, EAGER, 1.3),
    Aim(
        "Detection and snapshots: time over that without, at most 1.02",
        "recovery",
        recovery.PROTECTED,
        recovery.UNPROTECTED,
        1.02,
    ),
)


@dataclass(frozen=True)
class Config:
    """Measure samplers, training, scaling and utilisation beside their peers and floors."""

    only: tuple[str, ...] = WORKLOADS
    """Which parts: images, sgld, mala, hmc, jem-8, jem-32, recovery, utilisation; with no name, none."""
    curves: tuple[str, ...] = ()
    """Which scaling curves: chains, steps, width, devices."""
    output: Path = Path("runs/benchmark.json")
    """The file to write; tables (.md) and curves (.png) go beside it."""
    overwrite: bool = False
    """Replace the file if there is one."""
    rounds: int = 5
    """In each of which every contender is timed once."""
    seconds: float = 0.2
    """For which a contender is called over and over in a round; at least one call is made."""
    seed: int = 0
    """Of weights, positions and noise."""
    threads: int | None = None
    """For JAX and PyTorch each; as many as there are cores if not given."""
    sampling: samplers.Sizes = field(default_factory=samplers.Sizes)
    """Sizes of the samplers' workloads; whether torch.compile takes part there and in training."""
    jem: training.JemSizes = field(default_factory=training.JemSizes)
    """Sizes of the JEM updates."""
    wide: utilisation.WideSizes = field(default_factory=utilisation.WideSizes)
    """Sizes of the utilisation's network."""
    curve: scaling.CurveSizes = field(default_factory=scaling.CurveSizes)
    """Where the curves are measured."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is unknown or out of range, or ``FileExistsError``."""
        for name, known in (("only", PARTS), ("curves", scaling.CURVES)):
            chosen = getattr(self, name)
            if not set(chosen) <= set(known):
                raise ValueError(f"{name}={chosen}: choose among {', '.join(known)}.")
        if not self.only and not self.curves:
            raise ValueError("only=() and curves=(): nothing would be measured.")
        checks.positive_integer("rounds", self.rounds)
        checks.non_negative("seconds", self.seconds)
        if self.threads is not None:
            checks.positive_integer("threads", self.threads)
        for sizes in (self.sampling, self.jem, self.wide, self.curve):
            sizes.check()
        refuse_existing("output", self.output, overwrite=self.overwrite)


def sampler_workload(config: Config, name: str) -> tuple[Workload, dict[str, float]]:
    """Returns a workload of `benchmark_samplers`, compared, and its differences in standard errors."""
    target, sampler = SAMPLED[name]
    settings = samplers.Config(**asdict(config.sampling), seed=config.seed)
    problem = samplers.TARGETS[target](settings)
    samplers.check_same_energy(problem)
    workload = samplers.make_workload(settings, problem, sampler)
    return workload, samplers.check_same_law(problem, workload)


def update_workload(config: Config, name: str) -> tuple[Workload, dict[str, float]]:
    """Returns a workload of `benchmark_training`, compared, and its differences."""
    problem = training.jem_problem(config.jem, *UPDATES[name], config.seed)
    differences = training.check_same_update(problem)
    workload = training.jem_workload(problem, torch_compile=config.sampling.torch_compile)
    check_agreement(workload)  # which compiles; none of them is to agree
    return workload, differences


def protected_workload(config: Config, name: str) -> tuple[Workload, dict[str, float]]:
    """Returns the workload of `benchmark_recovery`, compared: the losses of the first dispatch agree."""
    del name
    workload = recovery.digits_workload(config.seed)
    check_agreement(workload)
    return workload, {}


def make_workload(config: Config, name: str) -> tuple[Workload, dict[str, float]]:
    """Returns a workload by its name, compiled and compared, and the differences that were found."""
    make: Callable[[Config, str], tuple[Workload, dict[str, float]]] = protected_workload
    if name in SAMPLED:
        make = sampler_workload
    elif name in UPDATES:
        make = update_workload
    # Digits are trained as `jaxebm.training.fit` does: at JAX's default precision.
    with nullcontext() if name == "recovery" else jax.default_matmul_precision("float32"):
        return make(config, name)


def as_markdown(card: Mapping[str, Any]) -> str:
    """Returns the card for a reader."""
    parts = [heading(card)]
    if card["aims"]:
        parts.append(aims_table(card["aims"]))
    if card["workloads"]:
        parts.append(tables(list(card["workloads"].values())).rstrip())
    if card["utilisation"]:
        parts.append(utilisation.as_markdown(card["utilisation"]))
    if card["curves"]:
        parts.append(scaling.as_markdown(card["curves"]).rstrip())
    return "\n\n".join(parts) + "\n"


def main(config: Config) -> dict[str, Any]:
    """Measures the chosen parts, writes the card and returns it."""
    config.check()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    if config.threads is not None:
        set_threads(config.threads)
    load = os.getloadavg()[0]
    results: dict[str, dict[str, Any]] = {}
    for name in config.only:
        if name == "utilisation":
            continue
        print(f"{name}: compiling and comparing", flush=True)
        workload, differences = make_workload(config, name)
        with nullcontext() if name == "recovery" else jax.default_matmul_precision("float32"):
            results[name] = compete(workload, config.rounds, config.seconds) | {"differences": differences}
        print(
            tables([results[name]]), flush=True
        )  # at once: a long run that is stopped has said what it knew
    used = None
    if "utilisation" in config.only:
        used = utilisation.measure_utilisation(config.wide, rounds=config.rounds, seed=config.seed)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in config.curves:
        print(f"scaling in {name}", flush=True)
        curves[name] = scaling.measure_curve(name, config.curve, rounds=config.rounds, seed=config.seed)
    card = {
        "schema": 1,
        "experiment": "benchmark",
        "machine": describe_machine((*samplers.PACKAGES, "optax")),
        "load": [load, os.getloadavg()[0]],
        "workloads": results,
        "aims": judge(AIMS, results),
        "utilisation": used,
        "curves": curves,
        "config": as_json(config),
    }
    text = as_markdown(card)
    write_atomically(config.output, json.dumps(card, indent=2, default=str) + "\n")
    write_atomically(config.output.with_suffix(".md"), text)
    if curves:
        scaling.draw(config.output.with_suffix(".png"), curves)
    print(text)
    return card


if __name__ == "__main__":
    run_experiment(Config, main)
