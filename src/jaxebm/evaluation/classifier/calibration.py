r"""Is the confidence of the classifier right? Accuracy, proper scores, calibration error, temperature.

Everything here looks at finished predictions on the host, in float64: arrays in, Python floats out, no
compile. Confidence is the largest class probability, max_y p(y|x).
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from jaxebm import checks
from jaxebm.evaluation.samples.scale import extreme_unit

__all__ = [
    "ReliabilityCurve",
    "accuracy",
    "brier_score",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability_curve",
]

_NORMALISATION_TOLERANCE = 1e-2
"""Tolerance of the sum of probabilities: wide enough for bfloat16, narrow enough to reject logits."""


class ReliabilityCurve(NamedTuple):
    """Accuracy against confidence, bin by bin; bin b is the interval (edges[b], edges[b + 1]].

    Attributes:
      confidence: ``(B,)`` mean confidence of the examples in each bin; NaN where a bin is empty.
      accuracy: ``(B,)`` fraction of them classified correctly; NaN where a bin is empty.
      weight: ``(B,)`` fraction of all examples that fall in each bin; sums to one.
      edges: ``(B + 1,)`` the bins' edges, from 0 to 1.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    weight: np.ndarray
    edges: np.ndarray


def _scores_and_labels(name: str, scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``scores`` (n, K) as float64 and ``labels`` (n,), or raises an error about their shapes."""
    checks.array(name, scores)
    checks.floating(name, scores)
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise ValueError(
            f"{name} has shape {scores.shape}: (n, K) with n >= 1 examples and K >= 2 classes is needed."
        )
    if np.shape(labels) != scores.shape[:1]:
        raise ValueError(
            f"labels has shape {np.shape(labels)}: {scores.shape[:1]} is needed, one for each row of {name}."
        )
    checks.integer_labels("labels", labels, scores.shape[1])
    return scores, np.asarray(labels)


def _predictions(log_probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """As ``_scores_and_labels``, and rejects rows that are not log-probabilities (logits, probabilities)."""
    log_p, classes = _scores_and_labels("log_probabilities", log_probabilities, labels)
    # log 0 = -inf is a probability like any other; NaN and +inf are not, and fail the comparison as well.
    # exp may overflow on logits passed by mistake, which the comparison below then detects.
    with np.errstate(over="ignore"):
        totals = np.exp(log_p).sum(axis=1)
    wrong = ~(np.abs(totals - 1.0) <= _NORMALISATION_TOLERANCE)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"log_probabilities: the probabilities of row {row} sum to {totals[row]:.6g} (and those of "
            f"{int(wrong.sum())} rows of {totals.size} not to 1): normalised log-probabilities are needed, "
            f"for example jax.nn.log_softmax(logits)."
        )
    return log_p, classes


def accuracy(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    r"""Fraction of examples whose most probable class is the label.

    accuracy = (1/n) \sum_i 1[argmax_k log p_ik = y_i]; of classes that tie, the first counts.

    Args:
      log_probabilities: ``(n, K)`` log p(y|x) in nats, normalised over K.
      labels: ``(n,)`` integers in 0..K-1.

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: for wrong shapes, labels out of range, or rows that do not sum to one.
      TypeError: for labels that are not integers, or log-probabilities that are not floating point.

    Example:
      >>> accuracy(np.log([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]]), np.array([0, 1, 1, 1]))
      0.75
    """
    log_p, classes = _predictions(log_probabilities, labels)
    return float(np.mean(log_p.argmax(axis=1) == classes))


def negative_log_likelihood(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    r"""Mean negative log-probability of the labels, in nats: the cross-entropy of the classifier.

    NLL = -(1/n) \sum_i log p(y_i | x_i); infinite when a label was given probability zero.

    Args:
      log_probabilities: ``(n, K)`` log p(y|x) in nats, normalised over K.
      labels: ``(n,)`` integers in 0..K-1.

    Returns:
      A float in [0, inf], nats per example.

    Raises:
      ValueError: for wrong shapes, labels out of range, or rows that do not sum to one.
      TypeError: for labels that are not integers, or log-probabilities that are not floating point.

    Example:
      >>> round(negative_log_likelihood(np.log([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])), 4)
      0.4904
    """
    log_p, classes = _predictions(log_probabilities, labels)
    return float(-np.mean(log_p[np.arange(classes.size), classes]))


def brier_score(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    r"""Mean squared distance between the predicted distribution and the one-hot label; lower is better.

    Brier = (1/n) \sum_i \sum_k (p_ik - 1[y_i = k])^2, the sum over all K classes, so in [0, 2].

    Args:
      log_probabilities: ``(n, K)`` log p(y|x) in nats, normalised over K.
      labels: ``(n,)`` integers in 0..K-1.

    Returns:
      A float in [0, 2].

    Raises:
      ValueError: for wrong shapes, labels out of range, or rows that do not sum to one.
      TypeError: for labels that are not integers, or log-probabilities that are not floating point.

    Example:
      >>> round(brier_score(np.log([[0.8, 0.2]]), np.array([1])), 4)
      1.28

    Reference:
      Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    log_p, classes = _predictions(log_probabilities, labels)
    error = np.exp(log_p)
    error[np.arange(classes.size), classes] -= 1.0
    return float(np.mean(np.sum(error**2, axis=1)))


def reliability_curve(
    log_probabilities: ArrayLike,
    labels: ArrayLike,
    num_bins: int = 15,
    *,
    binning: Literal["uniform", "mass"] = "uniform",
) -> ReliabilityCurve:
    """Accuracy and mean confidence of the examples in each bin of confidence.

    Bins are the half-open intervals (lower, upper] of Guo et al., so a confidence exactly on an edge belongs
    to the bin below it, and confidence 1 to the last bin. ``"uniform"`` bins have equal width 1/B; ``"mass"``
    bins have their inner edges at the quantiles of the confidences, so that each holds the same number of
    examples, save that examples of equal confidence always share a bin.

    Args:
      log_probabilities: ``(n, K)`` log p(y|x) in nats, normalised over K.
      labels: ``(n,)`` integers in 0..K-1.
      num_bins: B, the number of bins.
      binning: ``"uniform"`` or ``"mass"``.

    Returns:
      A ``ReliabilityCurve``.

    Raises:
      ValueError: for wrong shapes, labels out of range, rows that do not sum to one, no bins, or unknown
        binning.
      TypeError: for labels that are not integers, or log-probabilities that are not floating point.

    Example:
      >>> log_p = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
      >>> curve = reliability_curve(log_p, np.array([0, 1, 1]), num_bins=2)
      >>> curve.weight.tolist(), round(float(curve.accuracy[1]), 3), round(float(curve.confidence[1]), 3)
      ([0.0, 1.0], 0.667, 0.767)

    Reference:
      Guo et al. 2017, "On calibration of modern neural networks" (arXiv 1706.04599), section 2; equal-mass
      bins as in Nguyen & O'Connor 2015 (arXiv 1508.05154).
    """
    checks.positive_integer("num_bins", num_bins)
    checks.one_of("binning", binning, ("uniform", "mass"))
    log_p, classes = _predictions(log_probabilities, labels)
    confidence = np.minimum(np.exp(log_p.max(axis=1)), 1.0)
    correct = (log_p.argmax(axis=1) == classes).astype(np.float64)

    edges = np.linspace(0.0, 1.0, num_bins + 1)
    if binning == "mass":
        edges[1:-1] = np.quantile(confidence, edges[1:-1])
    members = np.searchsorted(edges[1:-1], confidence, side="left")

    count = np.bincount(members, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # An empty bin is 0/0: NaN, which plots leave out.
        mean_confidence = np.bincount(members, confidence, num_bins) / count
        mean_correct = np.bincount(members, correct, num_bins) / count
    return ReliabilityCurve(mean_confidence, mean_correct, count / confidence.size, edges)


def expected_calibration_error(
    log_probabilities: ArrayLike,
    labels: ArrayLike,
    num_bins: int = 15,
    *,
    binning: Literal["uniform", "mass"] = "uniform",
) -> float:
    r"""Mean distance between confidence and accuracy over bins of confidence (ECE).

    ECE = \sum_b (|B_b| / n) |accuracy(B_b) - confidence(B_b)|. It is biased upwards: a perfectly calibrated
    model scores about \sum_b w_b sqrt(2 c_b (1 - c_b) / (pi n w_b)) on n examples, so compare at one n and
    one B.

    Args:
      log_probabilities: ``(n, K)`` log p(y|x) in nats, normalised over K.
      labels: ``(n,)`` integers in 0..K-1.
      num_bins: B, the number of bins.
      binning: ``"uniform"`` (equal width, Guo et al.) or ``"mass"`` (equal numbers of examples).

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: for wrong shapes, labels out of range, rows that do not sum to one, no bins, or unknown
        binning.
      TypeError: for labels that are not integers, or log-probabilities that are not floating point.

    Example:
      >>> always_sure = np.log([[0.9, 0.1]] * 4)  # confidence 0.9, right three times in four
      >>> round(expected_calibration_error(always_sure, np.array([0, 0, 0, 1])), 4)
      0.15

    Reference:
      Guo et al. 2017, "On calibration of modern neural networks" (arXiv 1706.04599), equation 3.
    """
    curve = reliability_curve(log_probabilities, labels, num_bins, binning=binning)
    filled = curve.weight > 0
    return float(np.sum(curve.weight[filled] * np.abs(curve.accuracy - curve.confidence)[filled]))


def _slope(inverse_temperature: float, logits: np.ndarray, labels: np.ndarray, used: np.ndarray) -> float:
    """Derivative of the mean NLL in the inverse temperature; rows of ``logits`` have maximum 0."""
    weight = np.where(used, np.exp(inverse_temperature * logits), 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    mean = np.sum(weight * logits, axis=1)
    return float(np.mean(mean - logits[np.arange(labels.size), labels]))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    r"""The temperature T that makes softmax(logits / T) most likely on held-out labels (temperature scaling).

    T = argmin_T -(1/n) \sum_i log softmax(f(x_i) / T)[y_i]. In b = 1/T this is convex, with slope
    E_p[f] - f_y averaged over examples; Brent's method finds its root. T > 1 softens an overconfident model.
    Accuracy is unchanged.

    Args:
      logits: ``(n, K)`` of a validation split, never of the test split. -inf means that a class has
        probability 0, at any temperature.
      labels: ``(n,)`` integers in 0..K-1.

    Returns:
      T > 0.

    Raises:
      ValueError: for wrong shapes, logits that are NaN or +inf, labels out of range or of a logit of -inf;
        and when no finite positive T is best: every label has its row's largest logit (T -> 0), or the logits
        are no better than chance (T -> infinity).
      TypeError: for labels that are not integers, or logits that are not floating point.
      RuntimeError: if Brent's method has not converged in 200 steps.

    Example:
      >>> logits = np.array([[3.0, 0.0]] * 4)  # 95% sure, right three times in four
      >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 4) == round(3.0 / float(np.log(3.0)), 4)
      True

    Reference:
      Guo et al. 2017, "On calibration of modern neural networks" (arXiv 1706.04599), section 4.2, equation 9.
    """
    scores, classes = _scores_and_labels("logits", logits, labels)
    used = ~np.isneginf(scores)
    checks.finite("logits", scores[used])
    impossible = ~used[np.arange(classes.size), classes]
    if impossible.any():
        raise ValueError(
            f"logits: {int(impossible.sum())} labels of {classes.size} have a logit of -inf, so their "
            f"likelihood is 0 at every temperature."
        )
    unit = extreme_unit(scores[used], ordinary=1e9)  # Brent's method starts from 1
    scores = np.where(used, scores, 0.0) / unit
    scores = scores - np.where(used, scores, -np.inf).max(axis=1, keepdims=True)
    scores = np.where(used, scores, 0.0)
    if np.all(scores[np.arange(classes.size), classes] == 0.0):
        raise ValueError(
            f"logits: all {classes.size} labels have the largest logit of their row, so the likelihood "
            f"rises for ever as T -> 0; a validation split with at least one error is needed."
        )
    if _slope(0.0, scores, classes, used) >= 0.0:
        raise ValueError(
            "logits: the labels' logits are on average no larger than the other classes', so the best "
            "temperature is infinite; logits that predict these labels better than chance are needed "
            "(are labels in the same order?)."
        )

    lower, upper = 0.0, 1.0
    while _slope(upper, scores, classes, used) < 0.0:
        lower, upper = upper, 2.0 * upper
    # Only the relative tolerance may stop it, because logits have any scale; scipy needs xtol above zero.
    root: Any = brentq(_slope, lower, upper, args=(scores, classes, used), xtol=1e-300, maxiter=200)
    return unit / root
