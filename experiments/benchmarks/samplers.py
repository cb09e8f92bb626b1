"""Chains of SGLD, MALA and HMC against the same chains of BlackJAX, NumPyro, TorchEBM and plain PyTorch.

All implementations run the same number of chains from the same positions on the same float32 energy, and keep
only the last positions. Their results are compared before they are timed: energies and gradients in PyTorch
with those in JAX, and after the chains the moments of displacements and energies, in standard errors. The row
of bare gradients is a lower bound: only a loop of the same number of gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sampler_peers as peers
from benchmarks import sampler_problems as problems
from benchmarks.harness import Contender, Workload, compiled_peer, peer
from benchmarks.sampler_peers import Job
from benchmarks.sampler_problems import Problem
from jaxebm import checks
from jaxebm.samplers import hmc, mala, sample, sgld

__all__ = [
    "LARGEST_SIGMA",
    "TARGETS",
    "WORKLOADS",
    "Sizes",
    "check_same_energy",
    "check_same_law",
    "compared_workload",
    "make_job",
    "make_workload",
]

WORKLOADS = {
    "sgld": ("mlp", "sgld"),
    "mala": ("mlp", "mala"),
    "hmc": ("mlp", "hmc"),
    "gaussian-sgld": ("gaussian", "sgld"),
    "gaussian-mala": ("gaussian", "mala"),
    "gaussian-hmc": ("gaussian", "hmc"),
    "images": ("images", "sgld"),
}
"""Target and sampler, by name of the workload."""
LARGEST_SIGMA = 6.0
"""Greatest difference of moments between implementations of one distribution, in standard errors."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the sampling problems."""

    num_steps: int = 200
    """Steps of SGLD and MALA on the network and on the Gaussian."""
    num_trajectories: int = 20
    """Trajectories of HMC on the network and on the Gaussian."""
    num_leapfrog: int = 10
    """Leapfrog steps of a trajectory, with one gradient each."""
    num_chains: int = 1000
    """Chains on the network and on the Gaussian."""
    widths: tuple[int, ...] = (128, 128, 128)
    """Widths of the network's hidden layers; its input has two coordinates."""
    dimension: int = 100
    """Dimensions of the Gaussian."""
    num_images: int = 128
    """Chains of images."""
    num_image_steps: int = 60
    """Steps of SGLD on images."""
    pixels: int = 28
    """Height and width of an image, of one channel."""
    channels: tuple[int, int] = (64, 128)
    """Channels of the convolutional network of the images."""
    torch_compile: bool = True
    """Whether to time torch.compile, which needs a C++ compiler and about ten seconds per sampler."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        names = (
            "num_steps num_trajectories num_leapfrog num_chains dimension num_images num_image_steps pixels"
        )
        for name in names.split():
            checks.positive_integer(name, getattr(self, name))
        for number in self.widths + self.channels:
            checks.positive_integer("widths and channels", number)


def _mlp(sizes: Sizes, seed: int) -> Problem:
    return problems.mlp(seed, sizes.num_chains, sizes.widths, _runs(sizes, 0.02, 0.5, 0.8))


def _gaussian(sizes: Sizes, seed: int) -> Problem:
    return problems.gaussian(seed, sizes.num_chains, sizes.dimension, _runs(sizes, 0.02, 0.12, 0.5))


def _images(sizes: Sizes, seed: int) -> Problem:
    runs = {"sgld": (0.01, sizes.num_image_steps)}
    return problems.images(seed, sizes.num_images, sizes.pixels, sizes.channels, runs)


def _runs(sizes: Sizes, sgld: float, mala: float, hmc: float) -> problems.Runs:
    steps = sizes.num_steps
    return {"sgld": (sgld, steps), "mala": (mala, steps), "hmc": (hmc, sizes.num_trajectories)}


TARGETS: dict[str, Callable[[Sizes, int], Problem]] = {"mlp": _mlp, "gaussian": _gaussian, "images": _images}
"""By name: ``(sizes, seed) -> problem``."""


def make_job(sizes: Sizes, problem: Problem, sampler: str, seed: int) -> Job:
    """Returns the chains of one sampler on one problem."""
    step_size, num_steps = problem.runs[sampler]
    return Job(
        sampler,
        problem.energy,
        problem.params,
        problem.positions,
        step_size,
        num_steps,
        sizes.num_leapfrog,
        problem.in_torch,
        seed,
    )


def run_in_jaxebm(job: Job) -> Callable[[], jax.Array]:
    """Makes the call of `sample`, arguments checked and all."""
    options: dict[str, Any] = {"kernel": {"sgld": sgld, "mala": mala, "hmc": hmc}[job.sampler]}
    if job.sampler == "hmc":
        options["num_integration_steps"] = job.num_leapfrog
    rng_key = jax.random.key(job.seed)
    arguments = (rng_key, job.energy, job.params, job.positions, job.num_steps)
    return partial(sample, *arguments, step_size=job.step_size, **options)


def make_workload(sizes: Sizes, problem: Problem, sampler: str, seed: int) -> Workload:
    """Returns the contenders that have the sampler; a time is of one transition of all chains."""
    job = make_job(sizes, problem, sampler, seed)
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
    if sizes.torch_compile:
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
    """Runs every contender and compares the results of its chains, which also compiles all programs.

    Compared are the means over chains of each coordinate's displacement, of the squared displacement and of
    the energy. Chains are independent and start at the same places, so that the differences between two
    contenders of the same distribution are of the size of their standard errors.

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
                f"{workload.title}: the final positions of {contender.name!r} differ from the others by "
                f"{worst:.3g} standard errors, more than {LARGEST_SIGMA:g}."
            )
        largest[contender.name] = worst
    return largest


def compared_workload(sizes: Sizes, name: str, seed: int) -> tuple[Workload, dict[str, float]]:
    """Returns one of `WORKLOADS`, compiled and compared, and its differences in standard errors."""
    target, sampler = WORKLOADS[name]
    problem = TARGETS[target](sizes, seed)
    check_same_energy(problem)
    workload = make_workload(sizes, problem, sampler, seed)
    return workload, check_same_law(problem, workload)
