"""The parts of the benchmark by name, their workloads, and the goals for ratios of times."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import jax

from benchmarks import curves, hopfield, objectives, recovery, samplers, training, utilisation
from benchmarks.harness import Aim, Workload, check_agreement

__all__ = [
    "AIMS",
    "CURVES",
    "DEFAULT",
    "GROUPS",
    "PACKAGES",
    "PARTS",
    "Sizes",
    "check_parts",
    "expand",
    "make_workloads",
    "packages_of",
    "precision_of",
]

UPDATES = {"jem-8": (8, 1), "jem-32": (32, 3)}
"""Pixels and channels of the images of a JEM update, by name."""
CURVES = {f"curve-{name}": name for name in curves.CURVES}
GROUPS: dict[str, tuple[str, ...]] = {
    "samplers": tuple(samplers.WORKLOADS),
    "training": tuple(UPDATES),
    "hopfield": (*hopfield.WORKLOADS, "compilations"),
    "curves": tuple(CURVES),
    "recovery": ("recovery",),
    "objectives": tuple(objectives.FORMULAS),
    "utilisation": ("utilisation",),
}
"""The parts of each group; a group is chosen by its name, and so is each part."""
PARTS = tuple(part for parts in GROUPS.values() for part in parts)
DEFAULT = ("images", "sgld", "mala", "hmc", "jem-8", "jem-32")

PACKAGES = {
    "samplers": ("blackjax", "numpyro", "torch", "torchebm"),
    "training": ("blackjax", "optax", "torch", "torchebm"),
    "hopfield": ("torch", "hamux"),
}
"""The packages on whose versions the times of a group depend, besides this package."""

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
class Sizes:
    """Sizes of all workloads."""

    sampling: samplers.Sizes = field(default_factory=samplers.Sizes)
    """Sizes of the sampling problems; also whether torch.compile is timed there and in training."""
    jem: training.JemSizes = field(default_factory=training.JemSizes)
    """Sizes of the JEM updates."""
    memories: hopfield.Sizes = field(default_factory=hopfield.Sizes)
    """Sizes of the associative memories."""
    losses: objectives.Sizes = field(default_factory=objectives.Sizes)
    """Sizes of the objectives without chains."""
    wide: utilisation.WideSizes = field(default_factory=utilisation.WideSizes)
    """Sizes of the network whose utilisation is measured."""
    curve: curves.CurveSizes = field(default_factory=curves.CurveSizes)
    """Points of the curves."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        for sizes in (self.sampling, self.jem, self.memories, self.losses, self.wide, self.curve):
            sizes.check()


def check_parts(names: Sequence[str]) -> None:
    """Raises ``ValueError`` if no part is named, or an unknown one."""
    if not names:
        raise ValueError("only=(): nothing would be measured.")
    unknown = [name for name in names if name not in GROUPS and name not in PARTS]
    if unknown:
        raise ValueError(
            f"only: unknown {', '.join(unknown)}; choose among the groups {', '.join(GROUPS)} and their "
            f"parts {', '.join(PARTS)}."
        )


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the parts that names of groups and parts stand for, in the order given and each once."""
    parts = [part for name in names for part in GROUPS.get(name, (name,))]
    return tuple(dict.fromkeys(parts))


def packages_of(parts: Sequence[str]) -> tuple[str, ...]:
    """Returns the packages whose versions the times of the parts depend on."""
    groups = [group for group, members in GROUPS.items() if set(members) & set(parts)]
    peers = [package for group in groups for package in PACKAGES.get(group, ())]
    return tuple(dict.fromkeys(["jaxebm", "jax", "jaxlib", "flax", "numpy", *peers]))


def precision_of(part: str) -> AbstractContextManager[None]:
    """Returns the context in which a part computes: float32 products, as in the other packages."""
    if part == "recovery":  # digits are trained as `jaxebm.training.fit` does, at JAX's default precision
        return nullcontext()
    return jax.default_matmul_precision("float32")


def make_workloads(sizes: Sizes, part: str, seed: int) -> dict[str, tuple[Workload, dict[str, float]]]:
    """Makes the workloads of one part, compiled and compared.

    Args:
      sizes: of everything.
      part: any of `PARTS` that has contenders: neither a curve, compilations nor utilisation.
      seed: of weights, positions and noise.

    Returns:
      By name, each workload and the differences that were found: of samplers in standard errors, of updates
      and gradients relative to the largest number.

    Raises:
      RuntimeError: if contenders that must agree do not.
    """
    with precision_of(part):
        if part in objectives.FORMULAS:
            return objectives.compared_workloads(sizes.losses, part, seed)
        if part in samplers.WORKLOADS:
            return {part: samplers.compared_workload(sizes.sampling, part, seed)}
        if part in UPDATES:
            problem = training.jem_problem(sizes.jem, *UPDATES[part], seed)
            differences = training.check_same_update(problem)
            workload = training.jem_workload(problem, torch_compile=sizes.sampling.torch_compile)
            check_agreement(workload)  # compiles all programs; none of their results are to agree
            return {part: (workload, differences)}
        workloads = (
            {part: recovery.digits_workload(seed)}
            if part == "recovery"
            else hopfield.WORKLOADS[part](sizes.memories, seed)
        )
        for workload in workloads.values():
            check_agreement(workload)
        return {name: (workload, {}) for name, workload in workloads.items()}
