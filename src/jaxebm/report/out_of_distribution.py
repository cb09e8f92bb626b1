"""Does the model detect images from other data sets? How well its scores separate them from test images."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxebm import checks
from jaxebm.data import load_outliers
from jaxebm.evaluation import (
    OOD_SCORES,
    OOD_SETS,
    auprc,
    auroc,
    false_positive_rate,
    log_density_score,
    typicality_score,
)
from jaxebm.report.figures import FILLED, OUTLINED, PALETTE, drawing, legend_below
from jaxebm.report.markdown import escape_markdown
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, table_row
from jaxebm.report.settings import ReportSettings
from jaxebm.report.subject import Evaluation, Images, map_batches

__all__ = ["OUT_OF_DISTRIBUTION", "find_outliers", "log_densities", "outlier_sets"]

TYPICAL_IMAGES = 10_000
"""Greatest number of training images, the first ones, that define the typical log p(x)."""
CLASS_SCORES = ("confidence", "joint_maximum")
"""Scores from p(y|x) or p(x, y), which a model without classes does not have."""
SCORES = {
    "log_density": "log p(x)",
    "confidence": "max p(y|x)",
    "gradient_norm": "-||d log p/dx||",
    "joint_maximum": "max log p(x, y)",
    "typicality": "typicality",
}
"""The scores in the order of the card, with their titles."""


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """AUROC, area under precision-recall and FPR95 of each score and set, and histograms of the scores."""
    model = evaluation.model
    sets = evaluation.once(outlier_sets)
    density = jax.jit(jax.vmap(partial(log_density_score(model.logits), model.params)))
    typical = float(np.mean(map_batches(density, evaluation.images["train"][:TYPICAL_IMAGES]), dtype=float))
    makers: dict[str, Callable[..., Any]] = {
        name: make for name, make in OOD_SCORES.items() if evaluation.classes or name not in CLASS_SCORES
    }
    makers["typicality"] = partial(typicality_score, mean_log_density=typical)
    entry: dict[str, Any] = {}
    scores: dict[str, Images] = {}
    for name, make_score in makers.items():
        if name == "log_density":
            found = evaluation.once(log_densities)
        else:
            found = _score_sets(evaluation, make_score(model.logits))
        scores[name] = found
        measures = {"": auroc, "_auprc": auprc, "_fpr95": false_positive_rate}
        for kind, measure in measures.items():
            entry[name + kind] = {key: measure(found["test"], found[key]) for key in sets}
    evaluation.draw(score_histograms, "ood.png", scores, entry)
    counts = {key: len(xs) for key, xs in sets.items()}
    return {"ood": entry, "ood_sets": counts, "typical_log_density": typical}


def log_densities(evaluation: Evaluation) -> Images:
    """Returns log p(x) + log Z of the ``test`` images and of each out-of-distribution set."""
    return _score_sets(evaluation, log_density_score(evaluation.model.logits))


def _score_sets(evaluation: Evaluation, score: Callable[..., Any]) -> Images:
    batch = jax.jit(jax.vmap(partial(score, evaluation.model.params)))
    sets = {"test": evaluation.images["test"]} | evaluation.once(outlier_sets)
    return {name: map_batches(batch, xs) for name, xs in sets.items()}


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
    """The AUROC of log p(x) for the set that it separates worst."""
    if "ood" not in card:
        return []
    density = card["ood"]["log_density"]
    hardest = min(density, key=density.__getitem__)
    return [("AUROC of log p(x), hardest set", f"{density[hardest]:.3f}", _shown(hardest))]


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
        "0.5 means that the score ranks the other set higher.",
        tables=tables,
        pictures=[Picture("ood", "Scores of test images (filled) and of the other sets, with the AUROC.")],
    )
    return [section]


def _shown(name: str) -> str:
    return escape_markdown(name.replace("_", " "))


OUT_OF_DISTRIBUTION = Question("out of distribution", judge, summary, sections, ("ood.png",))
