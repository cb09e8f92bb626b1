"""Speed of jaxebm.samplers against BlackJAX, NumPyro, TorchEBM and plain PyTorch, in one run.

    pip install numpyro torch torchebm   # the peers; without one, its row says so and the rest runs
    python experiments/benchmark_samplers.py
    python experiments/benchmark_samplers.py --targets mlp --samplers sgld --num-steps 1000 --rounds 9

All contenders run the same number of chains from the same positions on the same float32 energy, by default on
all cores, and keep nothing but the last positions. Before the clock starts their laws are compared: energies
and gradients in PyTorch against JAX, and after the chains the moments of displacements and energies, in
standard errors. The row of bare gradients is the floor: as many gradients in a loop, and nothing else.
Contenders take turns and are compared by the ratio of their times within a round: the median over the rounds,
and the range. Let the machine do nothing else: its load is recorded, and PyTorch, whose threads wait for one
another, suffers most from it. For one thread each: PJRT_NPROC=1 OMP_NUM_THREADS=1.

Prints tables and writes them as JSON. docs/performance.md has the figures and what they mean.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import benchmark_sampler_peers as peers
import benchmark_sampler_problems as problems
from benchmark_harness import (
    Contender,
    Workload,
    compete,
    compiled_peer,
    describe_machine,
    heading,
    peer,
    tables,
)
from benchmark_sampler_peers import Job
from benchmark_sampler_problems import Problem
from command_line import as_json, refuse_existing, run_experiment
from jaxebm import checks
from jaxebm.samplers import hmc, mala, sample, sgld
from jaxebm.training import write_atomically

PACKAGES = ("jaxebm", "jax", "jaxlib", "flax", "blackjax", "numpyro", "torch", "torchebm", "numpy")
SAMPLERS = ("sgld", "mala", "hmc")
LARGEST_SIGMA = 6.0


@dataclass(frozen=True)
class Sizes:
    """How much is sampled."""

    num_steps: int = 200
    """Of SGLD and MALA on the network and the Gaussian."""
    num_trajectories: int = 20
    """Of HMC, there."""
    num_leapfrog: int = 10
    """Leapfrog steps, so gradients, of a trajectory."""
    num_chains: int = 1000
    """At once, there."""
    widths: tuple[int, ...] = (128, 128, 128)
    """Of the network's hidden layers; it takes two numbers."""
    dimension: int = 100
    """Of the Gaussian."""
    num_images: int = 128
    """Chains of images."""
    num_image_steps: int = 60
    """Of SGLD on images."""
    pixels: int = 28
    """Height and width of an image, of one channel."""
    channels: tuple[int, int] = (64, 128)
    """Of the convolutional network."""
    torch_compile: bool = True
    """Whether torch.compile takes part; it needs a C++ compiler and some ten seconds for each sampler."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        names = (
            "num_steps num_trajectories num_leapfrog num_chains dimension num_images num_image_steps pixels"
        )
        for name in names.split():
            checks.positive_integer(name, getattr(self, name))
        for number in self.widths + self.channels:
            checks.positive_integer("widths and channels", number)


@dataclass(frozen=True)
class Config(Sizes):
    """Measure SGLD, MALA and HMC on a small network, a Gaussian and images."""

    targets: tuple[str, ...] = ("mlp", "gaussian", "images")
    """Which energies."""
    samplers: tuple[str, ...] = SAMPLERS
    """Which samplers; images are sampled by SGLD alone."""
    output: Path = Path("runs/benchmark_samplers.json")
    """The file to write."""
    overwrite: bool = False
    """Replace the file if there is one."""
    rounds: int = 5
    """In each of which every contender is timed once."""
    seconds: float = 0.2
    """For which a contender is called over and over in a round; at least one call is made."""
    seed: int = 0
    """Of weights, positions and noise."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is unknown or out of range, or ``FileExistsError``."""
        for name, known in (("targets", tuple(TARGETS)), ("samplers", SAMPLERS)):
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(known):
                raise ValueError(f"{name}={chosen}: choose among {', '.join(known)}.")
        super().check()
        checks.positive_integer("rounds", self.rounds)
        refuse_existing("output", self.output, overwrite=self.overwrite)


def _mlp(config: Config) -> Problem:
    return problems.mlp(config.seed, config.num_chains, config.widths, _runs(config, 0.02, 0.5, 0.8))


def _gaussian(config: Config) -> Problem:
    return problems.gaussian(config.seed, config.num_chains, config.dimension, _runs(config, 0.02, 0.12, 0.5))


def _images(config: Config) -> Problem:
    runs = {"sgld": (0.01, config.num_image_steps)}
    return problems.images(config.seed, config.num_images, config.pixels, config.channels, runs)


def _runs(config: Config, sgld: float, mala: float, hmc: float) -> problems.Runs:
    steps = config.num_steps
    return {"sgld": (sgld, steps), "mala": (mala, steps), "hmc": (hmc, config.num_trajectories)}


TARGETS: dict[str, Callable[[Config], Problem]] = {"mlp": _mlp, "gaussian": _gaussian, "images": _images}


def make_job(config: Config, problem: Problem, sampler: str) -> Job:
    """Returns the chains of one sampler on one problem."""
    step_size, num_steps = problem.runs[sampler]
    return Job(
        sampler,
        problem.energy,
        problem.params,
        problem.positions,
        step_size,
        num_steps,
        config.num_leapfrog,
        problem.in_torch,
        config.seed,
    )


def run_in_jaxebm(job: Job) -> Callable[[], jax.Array]:
    """Makes the call of `sample`, arguments checked and all."""
    options: dict[str, Any] = {"kernel": {"sgld": sgld, "mala": mala, "hmc": hmc}[job.sampler]}
    if job.sampler == "hmc":
        options["num_integration_steps"] = job.num_leapfrog
    rng_key = jax.random.key(job.seed)
    arguments = (rng_key, job.energy, job.params, job.positions, job.num_steps)
    return partial(sample, *arguments, step_size=job.step_size, **options)


def make_workload(config: Config, problem: Problem, sampler: str) -> Workload:
    """Returns the contenders that have the sampler; a time is of one transition of all chains."""
    job = make_job(config, problem, sampler)
    options: dict[str, Any] = {"items": job.num_steps}
    no_tests = {**options, "agrees": False}
    contenders = [
        Contender("jaxebm, `sample`", run_in_jaxebm(job), **options),
        Contender("bare gradients, JAX", peers.bare_gradients(job), **no_tests),
        Contender("BlackJAX", peers.run_in_blackjax(job), **options),
    ]
    if problem.plain:
        plain = job._replace(energy=problem.plain)
        contenders.append(Contender("BlackJAX, `lax.conv`", peers.run_in_blackjax(plain), **options))
    if sampler != "sgld":
        contenders.append(peer("NumPyro", "numpyro", lambda: peers.run_in_numpyro(job), **options))
    contenders.append(peer("PyTorch, eager", "torch", lambda: peers.run_in_torch(job), **options))
    if config.torch_compile:
        compiled = partial(peers.run_in_torch, job, compiled=True)
        contenders.append(compiled_peer("PyTorch, torch.compile", compiled, **options))
    if sampler != "mala":
        contenders.append(peer("TorchEBM", "torch torchebm", lambda: peers.run_in_torchebm(job), **options))
    name = f"HMC, {job.num_leapfrog} leapfrog steps" if sampler == "hmc" else sampler.upper()
    return Workload(f"{name}: {problem.title}", contenders, "step")


def check_same_energy(problem: Problem) -> None:
    """Raises ``RuntimeError`` if the energy has another value or gradient in another form, or in PyTorch."""

    def compare(form: str, ours: Any, theirs: Any) -> None:
        for name, here, there in zip(("energies", "gradients"), ours, theirs, strict=False):
            error = float(np.max(np.abs(np.asarray(here) - np.asarray(there))) / np.max(np.abs(here)))
            if not error < 1e-4:
                raise RuntimeError(f"{problem.title}: {name} {form} differ by {error:.2g} of the largest.")

    value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(problem.energy, argnums=1), (None, 0)))
    ours = value_and_grad(problem.params, problem.positions)
    if problem.plain:
        plain = jax.jit(jax.vmap(problem.plain, (None, 0)))
        compare("by lax.conv", ours, [plain(problem.params, problem.positions)])
    job = Job("sgld", problem.energy, problem.params, problem.positions, 1.0, 1, 1, problem.in_torch)
    try:
        x, energies = peers.energies_in_torch(job)
    except ModuleNotFoundError:
        return
    x.requires_grad_(True)
    theirs = energies(x)
    theirs.sum().backward()
    compare("in PyTorch", ours, [theirs.detach(), x.grad])


def check_same_law(problem: Problem, workload: Workload) -> dict[str, float]:
    """Runs every contender and compares where its chains got to, which compiles all programs, too.

    Compared are the means over chains of each coordinate's displacement, of the squared displacement and of
    the energy. Chains are independent and start at the same places, so that the differences between two
    contenders of the same law are of the size of their standard errors.

    Returns:
      The largest difference to the first contender of the workload, in standard errors, for each of the
      others that are to agree.

    Raises:
      RuntimeError: if one exceeds ``LARGEST_SIGMA``, or is not a number.
    """
    energies = jax.jit(jax.vmap(problem.energy, (None, 0)))
    expected: np.ndarray | None = None
    largest = {}
    for contender in workload.contenders:
        if contender.run is None:
            continue
        last = jax.block_until_ready(contender.run())
        if not contender.agrees:
            continue
        moved = (np.asarray(last) - np.asarray(problem.positions)).reshape(len(problem.positions), -1)
        energy = np.asarray(energies(problem.params, jnp.asarray(last)))
        features = np.column_stack([moved, np.sum(moved**2, axis=1), energy]).astype(np.float64)
        if expected is None:
            expected = features
            continue
        variances = (features.var(axis=0) + expected.var(axis=0)) / len(features)
        worst = float(np.max(np.abs(features.mean(axis=0) - expected.mean(axis=0)) / np.sqrt(variances)))
        if not worst < LARGEST_SIGMA:
            raise RuntimeError(
                f"{workload.title}: where the chains of {contender.name!r} end differs from the others by "
                f"{worst:.3g} standard errors, more than {LARGEST_SIGMA:g}."
            )
        largest[contender.name] = worst
    return largest


def as_markdown(card: dict[str, Any]) -> str:
    """Returns the card for a reader."""
    worst = max((sigma for row in card["differences"] for sigma in row.values()), default=0.0)
    lines = [
        heading(card),
        "",
        tables(card["workloads"]),
        f"Largest difference in law between contenders: {worst:.1f} standard errors.",
    ]
    return "\n".join(lines)


def make_workloads(config: Config) -> list[tuple[Problem, Workload]]:
    """Returns every chosen sampler on every chosen target that runs on it."""
    chosen: Sequence[Problem] = [TARGETS[name](config) for name in config.targets]
    return [
        (problem, make_workload(config, problem, sampler))
        for problem in chosen
        for sampler in config.samplers
        if sampler in problem.runs
    ]


def main(config: Config) -> dict[str, Any]:
    """Runs the workloads, writes the card and returns it."""
    config.check()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    with jax.default_matmul_precision("float32"):
        workloads = make_workloads(config)
        for problem, _ in workloads:
            check_same_energy(problem)
        differences = [check_same_law(problem, workload) for problem, workload in workloads]
        results = [compete(workload, config.rounds, config.seconds) for _, workload in workloads]
    card = {
        "schema": 1,
        "experiment": "benchmark_samplers",
        "machine": describe_machine(PACKAGES),
        "load": [load, os.getloadavg()[0]],
        "workloads": results,
        "differences": differences,
        "config": as_json(config),
    }
    write_atomically(config.output, json.dumps(card, indent=2) + "\n")
    print(as_markdown(card))
    return card


if __name__ == "__main__":
    run_experiment(Config, main)
