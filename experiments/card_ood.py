"""What the model finds strange: how well its scores tell test images from sets of other images."""

from functools import partial
from typing import Any

import jax
import numpy as np

import plots
from card_parts import Evaluation, Images, map_batches
from evaluation_config import EvaluationFlags
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

__all__ = ["find_outliers", "judge_strangeness", "outlier_sets"]

TYPICAL_IMAGES = 10_000
"""At most this many training images, the first ones, say what log p(x) is typical."""
CLASS_SCORES = ("confidence", "joint_maximum")
"""Of p(y|x) or p(x, y): a model without classes has none."""


def judge_strangeness(evaluation: Evaluation) -> tuple[dict[str, Any], Images]:
    """Returns the card's entries on AUROC, area under precision-recall and FPR95, and log p(x) of each set.

    Draws the histograms of all scores.
    """
    model, test = evaluation.model, evaluation.images["test"]
    sets = outlier_sets(evaluation)
    density = jax.jit(jax.vmap(partial(log_density_score(model.logits), model.params)))
    typical = float(np.mean(map_batches(density, evaluation.images["train"][:TYPICAL_IMAGES]), dtype=float))
    makers = {
        name: make for name, make in OOD_SCORES.items() if evaluation.classes or name not in CLASS_SCORES
    }
    makers["typicality"] = partial(typicality_score, mean_log_density=typical)
    card: dict[str, Any] = {}
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, make_score in makers.items():
        batch = jax.jit(jax.vmap(partial(make_score(model.logits), model.params)))
        inside = map_batches(batch, test)
        outside = {key: map_batches(batch, xs) for key, xs in sets.items()}
        scores[name] = {"test": inside} | outside
        card[name] = {key: auroc(inside, values) for key, values in outside.items()}
        card[f"{name}_auprc"] = {key: auprc(inside, values) for key, values in outside.items()}
        card[f"{name}_fpr95"] = {key: false_positive_rate(inside, values) for key, values in outside.items()}
    plots.score_histograms(evaluation.folder / "ood.png", scores, card)
    counts = {key: len(xs) for key, xs in sets.items()}
    return {"ood": card, "ood_sets": counts, "typical_log_density": typical}, scores["log_density"]


def outlier_sets(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Those that need no other data, the classes left out of training, and the named ones, resized."""
    dataset, flags = evaluation.dataset, evaluation.flags
    rng = np.random.default_rng(evaluation.seed)
    makers = dict(OOD_SETS)
    if dataset.num_classes < 2:
        del makers["interpolation"]  # halfway between two classes
    sets = {name: make(rng, evaluation.images["test"], dataset.test.label) for name, make in makers.items()}
    if dataset.held_out is not None:
        sets["excluded_classes"] = np.asarray(dataset.rescale(dataset.held_out.image))
    return sets | find_outliers(flags, dataset.image_shape)


def find_outliers(flags: EvaluationFlags, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Returns the sets that are named in the flags, in the shape of the model's images.

    Call it before a long run, too: one that is missing is better told then than at the end.

    Raises:
      DatasetNotAvailableError: if one is not there.
    """
    return {name: load_outliers(name, image_shape, limit=flags.ood_images) for name in flags.ood_sets}
