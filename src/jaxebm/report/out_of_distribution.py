"""Does the model detect images from other data sets? How well its scores separate them from test images."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxebm import checks
from jaxebm.data import load_outliers
from jaxebm.energies import marginal_energy_at
from jaxebm.evaluation import (
    OOD_SCORES,
    OOD_SETS,
    auprc,
    auroc,
    false_positive_rate,
    fit_score_norms,
    gradient_norm_score,
    log_density_score,
    score_norms_score,
    typicality_score,
)
from jaxebm.report.figures import FILLED, OUTLINED, PALETTE, drawing, legend_below
from jaxebm.report.markdown import escape_markdown
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, table_row
from jaxebm.report.settings import ReportSettings
from jaxebm.report.subject import Evaluation, Images, LevelPath, map_batches, test_logits
from jaxebm.samplers import geometric_levels
from jaxebm.types import Array, LogitsFn

__all__ = [
    "OUT_OF_DISTRIBUTION",
    "find_outliers",
    "log_densities",
    "outlier_sets",
    "typical_log_densities",
]

TYPICAL_IMAGES = 10_000
"""Greatest number of training images, the first ones, that define the typical log p(x)."""
GRADIENT_IMAGES = 2000
"""Greatest number of images of each set, the first ones, whose gradients are computed."""
NORM_LEVELS = 8
"""Noise levels at which the norms of the score are compared, where the model has no levels of its own."""
NORM_IMAGES = 1000
"""Greatest number of images of each set, the first ones, whose norms are computed."""
NORMS_EXPLAINED = (
    " Score norms: how far the model would move an image at each noise level, compared with training images "
    f"(at most {NORM_IMAGES} images of a set): simple images stand out."
)
CLASS_SCORES = ("confidence", "joint_maximum")
"""Scores from p(y|x) or p(x, y), which a model without classes does not have."""
SCORES = {
    "log_density": "log p(x)",
    "confidence": "max p(y|x)",
    "gradient_norm": "-||d log p/dx||",
    "joint_maximum": "max log p(x, y)",
    "typicality": "typicality",
    "score_norms": "score norms at all noise levels",
}
"""The scores in the order of the card, with their titles."""


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """AUROC, area under precision-recall and FPR95 of each score and set, and histograms of the scores."""
    sets = evaluation.once(outlier_sets)
    typical = float(np.mean(evaluation.once(typical_log_densities), dtype=float))
    makers: dict[str, Callable[..., Any]] = {
        name: make for name, make in OOD_SCORES.items() if evaluation.classes or name not in CLASS_SCORES
    }
    del makers["gradient_norm"]  # the one that needs more than the logits
    makers["typicality"] = partial(typicality_score, mean_log_density=typical)
    scores: dict[str, Images] = {name: _of_logits(evaluation, make) for name, make in makers.items()}
    slope = gradient_norm_score(evaluation.model.logits)
    scores["gradient_norm"] = _score_sets(evaluation, slope, _all_sets(evaluation), GRADIENT_IMAGES)
    if evaluation.model.path is not None:
        scores["score_norms"] = _score_norms(evaluation, evaluation.model.path)
    scores = {name: scores[name] for name in SCORES if name in scores}  # in the order of the card
    measures = {"": auroc, "_auprc": auprc, "_fpr95": false_positive_rate}
    entry: dict[str, Any] = {}
    for name, found in scores.items():
        for kind, measure in measures.items():
            entry[name + kind] = {key: measure(found["test"], found[key]) for key in sets}
    evaluation.draw(score_histograms, "ood.png", scores, entry)
    counts = {key: len(xs) for key, xs in sets.items()}
    return {"ood": entry, "ood_sets": counts, "typical_log_density": typical}


def log_densities(evaluation: Evaluation) -> Images:
    """Returns log p(x) + log Z of the ``test`` images and of each out-of-distribution set."""
    return _of_logits(evaluation, log_density_score)


def _logits_of_sets(evaluation: Evaluation) -> Images:
    """Returns the logits of the ``test`` images and of each out-of-distribution set, ``(n, K)`` each."""
    outside = _score_sets(evaluation, evaluation.model.logits, evaluation.once(outlier_sets))
    return {"test": evaluation.once(test_logits), **outside}


def _of_logits(evaluation: Evaluation, make_score: Callable[[LogitsFn], Any]) -> Images:
    """Returns a score that needs nothing but the logits, of the ``test`` images and of each set."""
    score = jax.jit(jax.vmap(partial(make_score(_itself), None)))
    return {name: np.asarray(score(rows)) for name, rows in evaluation.once(_logits_of_sets).items()}


def _itself(params: None, logits: Array) -> Array:
    return logits


def typical_log_densities(evaluation: Evaluation) -> np.ndarray:
    """Returns log p(x) + log Z of the first training images."""
    model = evaluation.model
    density = jax.jit(jax.vmap(partial(log_density_score(model.logits), model.params)))
    return map_batches(density, evaluation.images["train"][:TYPICAL_IMAGES])


def _score_norms(evaluation: Evaluation, path: LevelPath) -> Images:
    """Returns the score of the norms at all noise levels, of the first images of each set."""
    energy_at, params = marginal_energy_at(path.logits_at), evaluation.model.params
    levels = geometric_levels(path.highest, path.lowest, path.num_levels or NORM_LEVELS)
    training = evaluation.images["train"][:NORM_IMAGES]
    score = score_norms_score(energy_at, fit_score_norms(energy_at, params, training, levels=levels))
    return _score_sets(evaluation, score, _all_sets(evaluation), NORM_IMAGES)


def _score_sets(
    evaluation: Evaluation, score: Callable[..., Any], sets: Images, limit: int | None = None
) -> Images:
    batch = jax.jit(jax.vmap(partial(score, evaluation.model.params)))
    return {name: map_batches(batch, xs[:limit]) for name, xs in sets.items()}


def _all_sets(evaluation: Evaluation) -> Images:
    """The ``test`` images and all out-of-distribution sets."""
    return {"test": evaluation.images["test"]} | evaluation.once(outlier_sets)


def outlier_sets(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The generated sets, the classes left out of training, and the named sets, resized."""
    dataset = evaluation.dataset
    rng = np.random.default_rng(evaluation.seed)
    makers = dict(OOD_SETS)
    if len(np.unique(dataset.test.label)) < 2:
        del makers["interpolation"]  # halfway between two classes
    sets = {name: make(rng, evaluation.images["test"], dataset.test.label) for name, make in makers.items()}
    if dataset.held_out is not None:
        sets["excluded_classes"] = np.asarray(dataset.rescale(dataset.held_out.image))
    return sets | find_outliers(evaluation.settings, dataset.image_shape)


def find_outliers(settings: ReportSettings, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Returns the sets that ``settings.ood_sets`` names, in the shape of the model's images.

    Call it before a long run, so that a missing set is reported before the run and not after it.

    Args:
      settings: Settings of the evaluation.
      image_shape: (H, W, C).

    Returns:
      Images (n, H, W, C) in [-1, 1] of each set.

    Raises:
      TypeError: If an argument is of the wrong type.
      DatasetNotAvailableError: If one is not available.

    Example:
      >>> found = find_outliers(ReportSettings(ood_sets=("digits",)), (4, 4, 1))
      >>> found["digits"].shape
      (360, 4, 4, 1)
    """
    checks.instance("settings", settings, ReportSettings)
    checks.sequence("image_shape", image_shape, int, "three integers")
    if len(image_shape) != 3:
        raise ValueError(f"image_shape={image_shape}: image_shape must be (H, W, C).")
    return {name: load_outliers(name, image_shape, limit=settings.ood_images) for name in settings.ood_sets}


def score_histograms(
    path: Path, scores: Mapping[str, Images], aurocs: Mapping[str, Mapping[str, float]]
) -> None:
    """Draws a panel for each out-of-distribution score, test data against each named set, with the AUROC."""
    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    lines = -(-max(map(len, scores.values())) // 2)
    size = (4.2 * columns, (3.3 + 0.15 * lines) * rows)
    with drawing(path, rows, columns, figsize=size) as (figure, axes):
        for axis in axes.flat[len(scores) :]:
            axis.axis("off")
        for axis, (score, sets) in zip(axes.flat, scores.items(), strict=False):
            values = np.concatenate([np.asarray(value, float) for value in sets.values()])
            low, high = np.quantile(values, [0.01, 0.995])
            bins = list(np.linspace(low, max(high, low + 1e-6), 50))
            for index, (name, value) in enumerate(sets.items()):
                area = aurocs[score].get(name)
                label = name if area is None else f"{name}  {area:.3f}"
                style = FILLED if index == 0 else OUTLINED
                color = PALETTE[index % len(PALETTE)]
                shown = np.clip(value, low, high)
                axis.hist(shown, bins, density=True, label=label, color=color, linewidth=1.3, **style)
            axis.set(title=score.replace("_", " "), xlabel="score, high is in-distribution", yscale="log")
            legend_below(axis, fontsize=6.5, ncols=2, title="AUROC", title_fontsize=7)
        figure.tight_layout()


def summary(card: Card) -> list[SummaryRow]:
    """The AUROC for the set that is separated worst, by log p(x) and by the norms at all noise levels."""
    rows = []
    for score, title in (("log_density", "log p(x)"), ("score_norms", "score norms")):
        found = card.get("ood", {}).get(score)
        if found:
            hardest = min(found, key=found.__getitem__)
            rows.append((f"AUROC of {title}, hardest set", f"{found[hardest]:.3f}", _shown(hardest)))
    return rows


def sections(card: Card) -> list[Section]:
    """A table for each measure, and the histograms."""
    if "ood" not in card:
        return []
    found = card["ood"]
    scores = [name for name in SCORES if name in found]
    sets = list(card["ood_sets"])
    header = ["score", *(_shown(name) for name in sets)]
    kinds = {
        "": "AUROC: the probability that a test image scores above one of the set; 0.5 is chance",
        "_auprc": "AUPR: area under precision-recall, test images positive",
        "_fpr95": "FPR95: share of the set accepted where 95% of test images are; lower is better",
    }
    tables = [
        Table(
            caption,
            header,
            [table_row(SCORES[name], *(found[name + kind][key] for key in sets)) for name in scores],
        )
        for kind, caption in kinds.items()
    ]
    section = Section(
        "Out of distribution",
        "Each score is higher for images that are more like the data. log p(x) is known up to log Z, and so "
        "equals minus the energy. Typicality is minus the distance from the training images' mean log p(x). "
        "Generative models often give simple images a higher likelihood than their own data: an AUROC below "
        "0.5 means that the score ranks the other set higher."
        + (NORMS_EXPLAINED if "score_norms" in found else ""),
        tables=tables,
        pictures=[Picture("ood", "Scores of test images (filled) and of the other sets, with the AUROC.")],
    )
    return [section]


def _shown(name: str) -> str:
    return escape_markdown(name.replace("_", " "))


OUT_OF_DISTRIBUTION = Question("out of distribution", judge, summary, sections, ("ood.png",))
