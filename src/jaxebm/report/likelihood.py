"""How likely are the test images under the model? An interval in bits per dimension.

The density is exp(-E(x) / T) with E = -logsumexp f(x), on the box of the pixels' cells and normalised there.
log Z comes from annealed importance sampling between the uniform density and this one, in both directions.

Where -E of all noise levels is log p but for one constant, as dual score matching learns it, the density is
that of the lowest level on all of space. log Z comes from annealing through the levels, and once more from
importance sampling at the highest level, where it is that constant.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm.data import Dataset
from jaxebm.energies import at_level, marginal_energy, marginal_energy_at
from jaxebm.evaluation import (
    AISResult,
    BoxProblem,
    annealed_importance_sampling,
    bits_per_dimension,
    dequantised_log_likelihood,
    fit_annealing_path,
    interval_of_bounds,
    level_importance_sampling,
    restrict_to_box,
    reverse_annealed_importance_sampling,
    reverse_level_importance_sampling,
)
from jaxebm.report.question import Card, Question, Section, SummaryRow, Table, table_row
from jaxebm.report.subject import Evaluation, LevelPath
from jaxebm.samplers import geometric_levels, hmc, power_levels, predictor_corrector, sample
from jaxebm.types import Array, EnergyFn, LogitsFn, Params

__all__ = ["LIKELIHOOD", "LikelihoodSettings", "bound_likelihood"]

KERNEL = partial(hmc, num_integration_steps=5)
SETTLING_STEPS = 200
"""Transitions of the reverse chains on the model itself, before they are annealed back."""
DRAWS = 4, 20
"""Fewest and most points within the cell of each image over which its mass is averaged."""
CELL_POINTS = 40_000
"""Points in the cells of all images together, as long as that leaves the fewest points to each."""
COVERAGE = 0.99
LEVEL_STEP = 0.2
"""Step of the kernel at a noise level, in units of the level."""
LEVEL_SETTLING_STEPS = 20
"""Transitions of the samples of a path at its lowest level, before they are annealed back."""
SAMPLING_LEVELS = 200
"""Levels of the path that draws them."""
CONSTANT_DRAWS = 2000
"""Draws of the Gaussian at the highest level that find the constant there."""
ALONG_LEVELS = (
    " This model is told noise levels: at T = 1 its density is that of its lowest level on all of space, "
    "noise included, and log Z comes from annealing through the levels. Where the energies of all levels are "
    "one normalised family, log Z is the same at each level: that of the highest one, found by importance "
    "sampling (standard error), should lie in the interval. Noisy images have noise of the lowest level; "
    "their log p is in nats an image. Where the bounds contradict each other, annealed chains found places "
    "off the data that the model makes likelier than data: -E is then normalised near the data alone."
)


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
    entry = bound_likelihood(key, model.logits, model.params, evaluation.dataset, settings, path=model.path)
    return {"likelihood": entry}


def bound_likelihood(
    rng_key: Array,
    logits: LogitsFn,
    params: Params,
    dataset: Dataset,
    settings: LikelihoodSettings,
    *,
    path: LevelPath | None = None,
) -> dict[str, Any] | None:
    """Returns the card's entry on the likelihood of the test images, or None if it is off.

    Images without discrete pixel levels (floating-point images of a user) have no cells, and get None, too.

    Args:
      rng_key: One key.
      logits: f(params, x) of one image.
      params: Its parameters.
      dataset: The data set, whose test split is evaluated.
      settings: Settings of the estimate.
      path: The noise levels of a model that is told them: T = 1 is then on all of space, along them, if its
        energies are one normalised family.

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
    by_temperature, normalised = {}, {}
    for index, temperature in enumerate(settings.temperatures):
        key = jax.random.fold_in(rng_key, index)
        if path is not None and path.normalised and temperature == 1:
            found, normalised = _bound_along(
                key, path, params, dataset, images=images, bin_width=bin_width, settings=settings
            )
        else:
            found = _bound_at_temperature(key, at=(params, jnp.asarray(temperature, float)), **parts)
        by_temperature[f"{temperature:g}"] = found
    return {
        "by_temperature": by_temperature,
        **({"normalised": normalised} if normalised else {}),
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
    masses = dequantised_log_likelihood(keys[5], energy, at, images, 0.0, bin_width, num_draws=_draws(images))
    return _entry(forward, reverse, change, float(jnp.mean(masses)), math.prod(images.shape[1:]))


def _bound_along(
    rng_key: Array,
    path: LevelPath,
    params: Params,
    dataset: Dataset,
    *,
    images: Array,
    bin_width: float,
    settings: LikelihoodSettings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same at the lowest level on all of space, and with the constant of the highest level."""
    keys = jax.random.split(rng_key, 8)
    energy_at = marginal_energy_at(path.logits_at)
    energy = at_level(energy_at, path.lowest)
    training = jnp.asarray(dataset.rescale(dataset.train.image))
    problem = (energy_at, params, training.mean(axis=0), training.var(axis=0))
    levels = geometric_levels(path.highest, path.lowest, settings.steps)
    forward = level_importance_sampling(
        keys[0], *problem, levels, KERNEL, settings.chains, step_size=LEVEL_STEP
    )
    noise = jax.random.normal(keys[1], (2, settings.chains, *dataset.image_shape))
    clean = predictor_corrector(
        keys[2], energy_at, params, path.highest * noise[0],
        power_levels(path.highest, path.lowest, SAMPLING_LEVELS),
        predictor="ancestral", num_corrector_steps=0,
    )  # fmt: skip
    settled, log_densities = sample(
        keys[3], energy, params, clean + path.lowest * noise[1], LEVEL_SETTLING_STEPS,
        kernel=hmc, num_integration_steps=5, step_size=LEVEL_STEP * path.lowest, collect=_log_density,
    )  # fmt: skip
    reverse = reverse_level_importance_sampling(
        keys[4], *problem, levels, KERNEL, settled, step_size=LEVEL_STEP
    )
    change = log_densities[:, -1] - log_densities[:, 0]
    masses = dequantised_log_likelihood(
        keys[5], energy, params, images, 0.0, bin_width, num_draws=_draws(images)
    )
    mean, dimension = float(jnp.mean(masses)), math.prod(dataset.image_shape)
    constant = level_importance_sampling(keys[6], *problem, levels[:1], KERNEL, CONSTANT_DRAWS)
    log_partition = float(constant.log_partition)
    noisy = images + path.lowest * jax.random.normal(keys[7], images.shape)
    energies = jax.jit(lambda params, xs: jax.lax.map(partial(energy, params), xs, batch_size=256))
    normalised = {
        "log_partition": log_partition,
        "standard_error": float(constant.standard_error),
        "level": path.lowest,
        "nats": mean - log_partition,
        "bits_per_dimension": float(bits_per_dimension(mean - log_partition, dimension)),
        "log_density_of_noisy_images": -float(jnp.mean(energies(params, noisy))) - log_partition,
    }
    return _entry(forward, reverse, change, mean, dimension), normalised


def _draws(images: Array) -> int:
    """Points in the cell of each image: fewer for thousands of images, whose mean needs fewer."""
    fewest, most = DRAWS
    return min(max(CELL_POINTS // len(images), fewest), most)


def _entry(
    forward: AISResult, reverse: AISResult, change: Array, mean: float, dimension: int
) -> dict[str, Any]:
    """The entry of one temperature: ``mean`` is the mean log mass of the images' cells without log Z."""
    interval = interval_of_bounds(forward, reverse, coverage=COVERAGE)
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
            "standard_error": float(jnp.std(change, ddof=1)) / math.sqrt(len(change)),
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
    if "normalised" in likelihood:
        beside += f"; normalised {likelihood['normalised']['bits_per_dimension']:.3f}"
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
    tables = [Table("Intervals between lower and upper bounds", header, rows)]
    normalised = likelihood.get("normalised")
    if normalised is not None:
        tables.append(_normalised_table(normalised))
    section = Section(
        "Likelihood",
        "Test images under exp(-E / T), on the box of their cells. Annealed importance sampling over "
        f"{likelihood['steps']} temperatures, forward and reverse; uniform noise costs "
        f"{likelihood['uniform_bits_per_dimension']:.3f} bits. Settling (standard error): the increase of "
        "log p in the chains that the reverse run starts from; far from 0, the upper bound of log Z is not "
        "reliable." + (ALONG_LEVELS if normalised else ""),
        tables=tables,
    )
    return [section]


def _normalised_table(entry: Mapping[str, float]) -> Table:
    header = ["log Z at the highest level", "bits per dimension", "nats per image", "log p of noisy images"]
    constant = f"{entry['log_partition']:.2f} ({entry['standard_error']:.2f})"
    row = table_row(
        constant,
        f"{entry['bits_per_dimension']:.3f}",
        f"{entry['nats']:.2f}",
        f"{entry['log_density_of_noisy_images']:.2f}",
    )
    return Table("-E as a normalised log-density, but for the constant of the highest level", header, [row])


LIKELIHOOD = Question("likelihood", judge, summary, sections)
