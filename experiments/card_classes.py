"""What the model knows of classes: accuracy and calibration, before and after temperature scaling."""

from typing import Any

import numpy as np

import plots
from card_parts import Evaluation, log_probabilities
from jaxebm.evaluation import (
    accuracy,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)

__all__ = ["CLASS_MEASURES", "judge_classes"]

CLASS_MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL, nats",
    "ece": "ECE, 15 bins",
    "adaptive_ece": "ECE, 15 bins of equal mass",
    "brier": "Brier",
}
"""What the card says of every classifier, and what it is called."""
EMPTY = dict.fromkeys(CLASS_MEASURES) | {"validation": None, "twin": None, "temperature_scaled": None}


def judge_classes(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy and calibration of the model and of its twin on the test split, and the reliability diagram.

    Temperature scaling is fitted on the validation split.
    """
    if not evaluation.classes:
        return dict(EMPTY)
    model, dataset, images = evaluation.model, evaluation.dataset, evaluation.images
    label = {"validation": dataset.validation.label, "test": dataset.test.label}

    def predict(params: Any) -> dict[str, np.ndarray]:
        return {split: log_probabilities(model.logits, params, images[split]) for split in label}

    predicted = {"model": predict(model.params)}
    if model.twin_params is not None:
        predicted["twin"] = predict(model.twin_params)
    judged = {name: judge_predictions(splits["test"], label["test"]) for name, splits in predicted.items()}
    curves = {}
    scaled: dict[str, Any] = {"twin": None}
    for name, splits in predicted.items():
        title = {"model": "JEM", "twin": "cross-entropy twin"}[name]
        curves[title] = reliability_curve(splits["test"], label["test"]), judged[name]["ece"]
        try:
            temperature = fit_temperature(splits["validation"], label["validation"])
        except ValueError as error:  # no finite temperature is best: the card says why
            scaled[name] = {"temperature": None, "reason": str(error)}
            continue
        softened = scale(splits["test"], temperature)
        scaled[name] = {"temperature": temperature} | judge_predictions(softened, label["test"])
        curves[f"{title}, T = {temperature:.2f}"] = (
            reliability_curve(softened, label["test"]),
            scaled[name]["ece"],
        )
    plots.reliability_diagram(evaluation.folder / "reliability.png", curves)
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
