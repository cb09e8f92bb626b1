"""How good is the classifier? Accuracy and calibration, before and after temperature scaling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxebm.evaluation import (
    accuracy,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)
from jaxebm.report.figures import ACCENT, INK, drawing
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, table_row
from jaxebm.report.subject import Evaluation, log_probabilities, test_logits

__all__ = ["CLASSES", "judge_predictions", "scale"]

CLASS_MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL, nats",
    "ece": "ECE, 15 bins",
    "adaptive_ece": "ECE, 15 bins of equal mass",
    "brier": "Brier",
}
"""The measures of every classifier in the card, and their titles."""
EMPTY = dict.fromkeys(CLASS_MEASURES) | {"validation": None, "twin": None, "temperature_scaled": None}
TITLES = {"model": "JEM", "twin": "cross-entropy twin"}


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy and calibration of the model and of its twin on the test split, and the reliability diagram.

    Temperature scaling is fitted on the validation split.
    """
    if not evaluation.classes:
        return dict(EMPTY)
    model, dataset, images = evaluation.model, evaluation.dataset, evaluation.images
    label = {"validation": dataset.validation.label, "test": dataset.test.label}

    predicted = {
        "model": {
            "validation": log_probabilities(model.logits, model.params, images["validation"]),
            "test": np.asarray(jax.nn.log_softmax(evaluation.once(test_logits))),
        }
    }
    if model.twin_params is not None:
        predicted["twin"] = {
            split: log_probabilities(model.logits, model.twin_params, images[split]) for split in label
        }
    judged = {name: judge_predictions(splits["test"], label["test"]) for name, splits in predicted.items()}
    curves = {}
    scaled: dict[str, Any] = {"twin": None}
    for name, splits in predicted.items():
        title = TITLES[name]
        curves[title] = reliability_curve(splits["test"], label["test"]), judged[name]["ece"]
        try:
            temperature = fit_temperature(splits["validation"], label["validation"])
        except ValueError as error:  # there is no finite best temperature: the card gives the reason
            scaled[name] = {"temperature": None, "reason": str(error)}
            continue
        softened = scale(splits["test"], temperature)
        scaled[name] = {"temperature": temperature} | judge_predictions(softened, label["test"])
        curve = reliability_curve(softened, label["test"])
        curves[f"{title}, T = {temperature:.2f}"] = curve, scaled[name]["ece"]
    evaluation.draw(reliability_diagram, "reliability.png", curves)
    return judged["model"] | {
        "validation": judge_predictions(predicted["model"]["validation"], label["validation"]),
        "twin": judged.get("twin"),
        "temperature_scaled": scaled,
    }


def judge_predictions(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the measures of log p(y|x), ``(n, K)``, against labels ``(n,)``."""
    return {
        "accuracy": accuracy(predictions, labels),
        "nll": negative_log_likelihood(predictions, labels),
        "ece": expected_calibration_error(predictions, labels),
        "adaptive_ece": expected_calibration_error(predictions, labels, binning="mass"),
        "brier": brier_score(predictions, labels),
    }


def scale(predictions: np.ndarray, temperature: float) -> np.ndarray:
    """Returns log softmax(f / T) from log softmax f."""
    heated = predictions.astype(np.float64) / temperature
    heated -= heated.max(axis=1, keepdims=True)
    return heated - np.log(np.exp(heated).sum(axis=1, keepdims=True))


def reliability_diagram(path: Path, curves: Mapping[str, tuple[Any, float]]) -> None:
    """Draws accuracy against confidence, a panel for each ``label: (ReliabilityCurve, ece)``."""
    size = (3.6 * len(curves), 4.4)
    with drawing(path, 2, len(curves), figsize=size, sharex=True, height_ratios=(3, 1)) as (figure, axes):
        for column, (label, (curve, ece)) in enumerate(curves.items()):
            edges, weight = np.asarray(curve.edges), np.asarray(curve.weight)
            filled = weight > 0
            middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges) * 0.92
            top, bottom = axes[0, column], axes[1, column]
            right, confidence = np.asarray(curve.accuracy)[filled], np.asarray(curve.confidence)[filled]
            style: dict[str, Any] = {"color": ACCENT, "alpha": 0.35, "label": "accuracy in the bin"}
            top.bar(middle[filled], right, width[filled], **style)
            top.plot(confidence, right, "o", color=ACCENT, markersize=4)
            top.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="perfect calibration")
            top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"{label}: ECE {ece:.3f}")
            top.legend(loc="upper left", fontsize=7)
            bottom.bar(middle, weight, width, color=INK, alpha=0.6)
            bottom.set(xlabel="confidence, max p(y|x)", ylabel="share", yscale="log")
        figure.tight_layout()


def summary(card: Card) -> list[SummaryRow]:
    """Accuracy and calibration error, next to those of the twin."""
    if card.get("accuracy") is None:
        return []
    twin, scaled = card["twin"], card["temperature_scaled"]["twin"]
    beside = {
        name: "" if twin is None else f"cross-entropy twin {twin[name]:.4f}" for name in ("accuracy", "ece")
    }
    if scaled and scaled["temperature"] is not None:
        beside["ece"] += f", temperature-scaled {scaled['ece']:.4f}"
    return [
        ("test accuracy", f"{card['accuracy']:.4f}", beside["accuracy"]),
        ("calibration error (ECE)", f"{card['ece']:.4f}", beside["ece"]),
    ]


def sections(card: Card) -> list[Section]:
    """The table of all measures and the reliability diagram."""
    if card.get("accuracy") is None:
        return []
    scaled: Mapping[str, Any] = card["temperature_scaled"]
    columns: dict[str, Mapping[str, Any]] = {"JEM": card}
    notes = []
    for name, title in TITLES.items():
        if scaled[name] is None:  # no twin
            continue
        if name == "twin":
            columns[title] = card["twin"]
        if scaled[name]["temperature"] is None:
            notes.append(f"No temperature fits {title}: {scaled[name]['reason']}")
        else:
            columns[f"{title}, T = {scaled[name]['temperature']:.3g}"] = scaled[name]
    rows = [
        table_row(label, *(column[name] for column in columns.values()))
        for name, label in CLASS_MEASURES.items()
    ]
    section = Section(
        "Classes",
        "p(y|x) = softmax f(x) on the test split. ECE is the mean distance between the confidence of the "
        "classifier and its accuracy. The temperature T is fitted on the validation split: it shows how well "
        "a classifier can be calibrated without generative training.",
        notes,
        [Table("Test split", ["", *columns], rows)],
        [Picture("reliability", "Accuracy in each bin of confidence; on the dashed line both are equal.")],
    )
    return [section]


CLASSES = Question("classes", judge, summary, sections, ("reliability.png",))
