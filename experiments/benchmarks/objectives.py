"""The workloads of objectives without chains: the gradient of each loss, and the derivatives that it needs.

The bare derivatives are the objective's formula by hand (`benchmarks.objective_formulas`), at random numbers
and pairs that are drawn beforehand. A third program draws them, too, by the same plain code: it separates
what random numbers cost from what the objective costs. All give the same loss and the same gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Contender, Workload
from benchmarks.objective_formulas import FORMULAS, Formula, Problem
from jaxebm import checks
from jaxebm.energies import MLP, ConvNet, CouplingFlow, LevelConvNet, LevelMLP
from jaxebm.objectives import Batch, Negatives, gaussian_proposal
from jaxebm.report.markdown import markdown_table
from jaxebm.types import Array

__all__ = [
    "FORMULAS",
    "PROBLEMS",
    "Sizes",
    "as_markdown",
    "compare",
    "compared_workloads",
    "is_objective",
    "make_problem",
]

BARE, DRAWN, OURS = "bare derivatives", "bare derivatives and draws", "jaxebm"
PROBLEMS = ("mlp", "convnet")
LIMIT = 1.1


@dataclass(frozen=True)
class Sizes:
    """Sizes of the batches and networks whose losses are differentiated."""

    batch_size: int = 512
    """Examples of two numbers."""
    widths: tuple[int, ...] = (128, 128, 128)
    """Hidden layers of the MLP."""
    num_images: int = 128
    """Images."""
    pixels: int = 28
    """Their height and width."""
    channels: tuple[int, ...] = (64, 128)
    """Channels of the ConvNet."""
    flow_layers: int = 8
    """Coupling layers of the flow."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        for name in ("batch_size", "num_images"):
            checks.integer(name, getattr(self, name), 2)
        checks.integer("pixels", self.pixels, 4)
        checks.positive_integer("flow_layers", self.flow_layers)
        for name in ("widths", "channels"):
            for number in getattr(self, name):
                checks.positive_integer(name, number)


@cache
def make_problem(sizes: Sizes, kind: str, seed: int) -> Problem:
    """Makes the networks and random data of one of `PROBLEMS`."""
    keys = jax.random.split(jax.random.key(seed), 4)
    if kind == "mlp":
        x = jax.random.normal(keys[0], (sizes.batch_size, 2))
        modules = MLP(None, widths=sizes.widths), LevelMLP(None, widths=sizes.widths)
        name = f"2-D energy, MLP {' x '.join(map(str, sizes.widths))}, batch {sizes.batch_size}"
    else:
        shape = (sizes.num_images, sizes.pixels, sizes.pixels, 1)
        x = jax.random.uniform(keys[0], shape, minval=-1.0)
        modules = ConvNet(None, channels=sizes.channels), LevelConvNet(None, channels=sizes.channels)
        name = f"images {sizes.pixels} x {sizes.pixels} x 1, ConvNet, batch {sizes.num_images}"
    flow = CouplingFlow(sizes.flow_layers)
    energy = jax.jit(modules[0].init)(keys[1], x[0])
    level = jax.jit(modules[1].init)(keys[2], x[0], 1.0)
    params = {
        "energy": energy,
        "level": level,
        "flow": {"energy": energy, "flow": jax.jit(flow.init)(keys[3], x[0])},
    }
    # A covariance of all pixels is for examples of few numbers.
    proposal = gaussian_proposal(
        np.asarray(x), widening=1.5, covariance="full" if kind == "mlp" else "diagonal"
    )
    plain: Any = modules[0].apply
    told: Any = modules[1].apply
    return Problem(name, x, plain, told, flow, proposal, params, exact=x[0].size <= 10)


def _program(loss: Callable[[Any, Any, Array], tuple[Array, Any]], *arguments: Any) -> Any:
    """Compiles ``(params, numbers, x) -> ({loss, gradient}, metrics)``."""

    def differentiated(params: Any, numbers: Any, x: Array) -> tuple[dict[str, Any], Any]:
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, numbers, x)
        return {"loss": value[None], "gradient": gradient}, metrics

    return jax.jit(differentiated).lower(*arguments).compile()


def compare(problem: Problem, name: str, formula: Formula, seed: int) -> tuple[Workload, dict[str, float]]:
    """Returns the workload of one objective, compiled and compared.

    Returns:
      The workload; and the relative differences of losses and of gradients, and the number of operations of
      the objective over that of the bare derivatives, as XLA counts them.

    Raises:
      RuntimeError: if losses or gradients differ by more than the formula's tolerance.
    """
    objective, params, x = formula.make(problem), problem.params[formula.params], problem.x
    key, nothing = jax.random.key(seed + 1), Negatives(None, None)

    def ours(params: Any, rng_key: Array, x: Array) -> tuple[Array, Any]:
        return objective.loss(params, rng_key, Batch(None, None, x), nothing)

    def bare(params: Any, numbers: Any, x: Array) -> tuple[Array, Any]:
        return formula.loss(problem, params, numbers, x), ()

    def with_draws(params: Any, rng_key: Array, x: Array) -> tuple[Array, Any]:
        return bare(params, formula.draw(problem, rng_key, x), x)

    numbers = jax.jit(lambda rng_key, x: formula.draw(problem, rng_key, x))(key, x)
    given: dict[str, Any] = {BARE: (bare, numbers), DRAWN: (with_draws, key), OURS: (ours, key)}
    programs, contenders = {}, []
    for label, (loss, random) in given.items():
        program = _program(loss, params, random, x)
        programs[label] = program
        contenders.append(
            Contender(label, lambda program=program, random=random: program(params, random, x)[0])
        )
    workload = Workload(f"{name}: {problem.title}", contenders, "gradient")
    expected, *others = (contender.run() for contender in contenders if contender.run is not None)
    differences = {
        part: max(_relative_difference(expected[part], other[part]) for other in others)
        for part in ("loss", "gradient")
    }
    for part, difference in differences.items():
        if not difference <= formula.tolerance:
            raise RuntimeError(
                f"{workload.title}: {part}s differ from the formula's by {difference:.2g}, more than "
                f"{formula.tolerance:g}."
            )
    counts = {label: program.cost_analysis().get("flops", np.nan) for label, program in programs.items()}
    return workload, differences | {"operations": counts[OURS] / counts[BARE]}


def _relative_difference(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest number of all leaves."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    largest = max(float(jnp.max(jnp.abs(a))) for a, _ in pairs)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) / largest


def compared_workloads(sizes: Sizes, name: str, seed: int) -> dict[str, tuple[Workload, dict[str, float]]]:
    """Makes the workloads of one objective, one for each of `PROBLEMS`; no exact Laplacian of images."""
    found, formula = {}, FORMULAS[name]
    for kind in PROBLEMS:
        problem = make_problem(sizes, kind, seed)
        if name != "score-matching" or problem.exact:
            found[f"{name}, {kind}"] = compare(problem, name, formula, seed)
    return found


def is_objective(name: str) -> bool:
    """Returns whether a workload of that name is one of these."""
    return name.split(", ")[0] in FORMULAS


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the results of `compete`, with their differences, as one table for each of `PROBLEMS`."""
    parts = []
    header = (
        *("derivatives of an example", "ms, bare", "ms, jaxebm", "times as long", "over the rounds"),
        *("over bare and draws", "operations"),
    )
    for kind in PROBLEMS:
        names = [name for name in results if is_objective(name) and name.endswith(f", {kind}")]
        if not names:
            continue
        rows, above = [], []
        for name in names:
            part, row = name.split(", ")[0], results[name]["contenders"]
            low, high = row[OURS]["ratio_range"]
            drawn = float(np.median(np.divide(row[OURS]["rounds"], row[DRAWN]["rounds"])))
            rows.append(
                (
                    f"`{part}`",
                    FORMULAS[part].derivatives,
                    *(f"{1000 * row[label]['seconds']:.3g}" for label in (BARE, OURS)),
                    f"{row[OURS]['ratio']:.3g}",
                    f"{low:.3g} to {high:.3g}",
                    f"{drawn:.3g}",
                    f"{results[name]['differences']['operations']:.3g}",
                )
            )
            if row[OURS]["ratio"] > LIMIT:
                above.append(part)
        title = results[names[0]]["title"].split(": ", 1)[1]
        parts.append("\n".join(markdown_table((title, *header), rows)))
        parts.append(f"Above {LIMIT:.2f} of the bare derivatives: {', '.join(above) or 'none'}.")
    return "\n\n".join(parts)
