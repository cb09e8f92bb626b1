"""How likely are the test images under the model? An interval in bits per dimension.

The density is exp(-E(x) / T) with E = -logsumexp f(x), on the box of the pixels' cells and normalised there.
log Z comes from annealed importance sampling between the uniform density and this one, in both directions.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm.data import Dataset
from jaxebm.energies import marginal_energy
from jaxebm.evaluation import (
    BoxProblem,
    annealed_importance_sampling,
    bits_per_dimension,
    dequantised_log_likelihood,
    fit_annealing_path,
    interval_of_bounds,
    restrict_to_box,
    reverse_annealed_importance_sampling,
)
from jaxebm.report.question import Card, Question, Section, SummaryRow, Table, table_row
from jaxebm.report.subject import Evaluation
from jaxebm.samplers import hmc, sample
from jaxebm.types import Array, EnergyFn, LogitsFn, Params

__all__ = ["LIKELIHOOD", "LikelihoodSettings", "bound_likelihood"]

KERNEL = partial(hmc, num_integration_steps=5)
SETTLING_STEPS = 200
"""Transitions of the reverse chains on the model itself, before they are annealed back."""
DRAWS = 20
"""Points within the cell of each image over which its mass is averaged."""
COVERAGE = 0.99


class LikelihoodSettings(NamedTuple):
    """Settings and cost of the estimate.

    Attributes:
      temperatures: Values of T in exp(-E / T), evaluated separately; T = 1 is the model.
      steps: Temperatures of the annealing path; 0 leaves the likelihood out.
      chains: Annealed chains in each direction.
    """

    temperatures: Sequence[float]
    steps: int
    chains: int


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """The interval at each temperature; None if it is off or pixels have no discrete levels."""
    chosen, model = evaluation.settings, evaluation.model
    settings = LikelihoodSettings(
        chosen.likelihood_temperatures, chosen.likelihood_steps, chosen.likelihood_chains
    )
    key = evaluation.key(2)
    return {"likelihood": bound_likelihood(key, model.logits, model.params, evaluation.dataset, settings)}


def bound_likelihood(
    rng_key: Array, logits: LogitsFn, params: Params, dataset: Dataset, settings: LikelihoodSettings
) -> dict[str, Any] | None:
    """Returns the card's entry on the likelihood of the test images, or None if it is off.

    Images without discrete pixel levels (floating-point images of a user) have no cells, and get None, too.

    Args:
      rng_key: One key.
      logits: f(params, x) of one image.
      params: Its parameters.
      dataset: The data set, whose test split is evaluated.
      settings: Settings of the estimate.

    Returns:
      The entry ``likelihood`` of docs/card.md.
    """
    levels = dataset.num_levels
    if settings.steps == 0 or levels is None:
        return None
    started = time.monotonic()
    bin_width = 2.0 / (levels - 1)
    marginal = marginal_energy(logits)

    def heated(at: tuple[Params, Array], x: Array) -> Array:
        return marginal(at[0], x) / at[1]

    images = jnp.asarray(dataset.rescale(dataset.test.image))
    # Made once, because JAX caches compiled programs by the functions they were made from.
    box = restrict_to_box(heated, dataset.image_shape, -1.0 - bin_width / 2, 1.0 + bin_width / 2)
    parts = {"energy": heated, "box": box, "images": images, "bin_width": bin_width, "settings": settings}
    bound = partial(_bound_at_temperature, **parts)
    return {
        "by_temperature": {
            f"{temperature:g}": bound(
                jax.random.fold_in(rng_key, index), at=(params, jnp.asarray(temperature, float))
            )
            for index, temperature in enumerate(settings.temperatures)
        },
        "uniform_bits_per_dimension": math.log2(levels),
        "steps": settings.steps,
        "chains": settings.chains,
        "coverage": COVERAGE,
        "seconds": time.monotonic() - started,
    }


def _bound_at_temperature(
    rng_key: Array,
    *,
    energy: EnergyFn,
    box: BoxProblem,
    at: tuple[Params, Array],
    images: Array,
    bin_width: float,
    settings: LikelihoodSettings,
) -> dict[str, Any]:
    """Both bounds of log Z at one temperature, and the bounds of the images' mean likelihood."""
    keys = jax.random.split(rng_key, 6)
    problem = (box.energy, at, box.base, KERNEL)
    path = fit_annealing_path(
        keys[0],
        *problem,
        settings.steps,
        step_size=0.1,
        num_chains=settings.chains,
        num_steps_per_temperature=3,
    )
    forward = annealed_importance_sampling(
        keys[1], *problem, path.schedule, settings.chains, kernel_schedule=path.kernel_schedule
    )
    # There are no exact samples: the reverse chains start from the ends of long chains, which start from the
    # weighted ends of the forward ones.
    chosen = jax.random.categorical(keys[2], forward.log_weights, shape=(settings.chains,))
    settled, log_densities = sample(
        keys[3], box.energy, at, forward.positions[chosen], SETTLING_STEPS,
        kernel=hmc, num_integration_steps=5, step_size=path.kernel_schedule["step_size"][-1],
        collect=_log_density,
    )  # fmt: skip
    reverse = reverse_annealed_importance_sampling(
        keys[4], *problem, path.schedule, settled, kernel_schedule=path.kernel_schedule
    )
    change = log_densities[:, -1] - log_densities[:, 0]
    interval = interval_of_bounds(forward, reverse, coverage=COVERAGE)
    masses = dequantised_log_likelihood(keys[5], energy, at, images, 0.0, bin_width, num_draws=DRAWS)
    mean, dimension = float(jnp.mean(masses)), math.prod(images.shape[1:])
    low, high = float(interval.low), float(interval.high)
    return {
        "log_partition": {"low": low, "high": high},
        "consistent": low <= high,
        "effective_sample_size": {
            "forward": float(forward.effective_sample_size),
            "reverse": float(reverse.effective_sample_size),
        },
        "settling": {
            "mean": float(jnp.mean(change)),
            "standard_error": float(jnp.std(change, ddof=1)) / math.sqrt(settings.chains),
        },
        "nats": {"low": mean - high, "high": mean - low},
        "bits_per_dimension": {
            "low": float(bits_per_dimension(mean - low, dimension)),
            "high": float(bits_per_dimension(mean - high, dimension)),
        },
    }


def _log_density(state: Any, info: Any) -> Array:
    del info
    return state.logdensity


def summary(card: Card) -> list[SummaryRow]:
    """Bits per dimension of the model, T = 1."""
    likelihood = card.get("likelihood") or {}
    entry = likelihood.get("by_temperature", {}).get("1")
    if not entry:
        return []
    bounds = entry["bits_per_dimension"]
    beside = f"uniform noise {likelihood['uniform_bits_per_dimension']:.3f}"
    if not entry["consistent"]:
        beside += "; the bounds contradict each other: not converged"
    return [("bits per dimension", f"{bounds['low']:.3f} to {bounds['high']:.3f}", beside)]


def sections(card: Card) -> list[Section]:
    """The interval at each temperature, and diagnostics of its reliability."""
    likelihood = card.get("likelihood")
    if likelihood is None:
        return []

    def between(entry: Mapping[str, float], kind: str) -> str:
        return f"{entry['low']:{kind}} to {entry['high']:{kind}}"

    rows = []
    for temperature, entry in likelihood["by_temperature"].items():
        kinds = {"bits_per_dimension": ".3f", "nats": ".2f", "log_partition": ".2f"}
        bounds = [between(entry[name], kind) for name, kind in kinds.items()]
        if not entry["consistent"]:
            bounds[0] += " (the bounds contradict each other: not converged)"
        weights = entry["effective_sample_size"]
        of_chains = f"{weights['forward']:.0f} and {weights['reverse']:.0f} of {likelihood['chains']}"
        settling = "{mean:+.2f} ({standard_error:.2f})".format(**entry["settling"])
        rows.append(table_row(temperature, *bounds, of_chains, settling))
    header = ["T", "bits per dimension", "nats per image", "log Z", "effective weights", "settling, nats"]
    section = Section(
        "Likelihood",
        "Test images under exp(-E / T), on the box of their cells. Annealed importance sampling over "
        f"{likelihood['steps']} temperatures, forward and reverse; uniform noise costs "
        f"{likelihood['uniform_bits_per_dimension']:.3f} bits. Settling (standard error): the increase of "
        "log p in the chains that the reverse run starts from; far from 0, the upper bound of log Z is not "
        "reliable.",
        tables=[Table("Intervals between lower and upper bounds", header, rows)],
    )
    return [section]


LIKELIHOOD = Question("likelihood", judge, summary, sections)
