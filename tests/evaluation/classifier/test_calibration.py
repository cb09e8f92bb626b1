"""Calibration: closed forms, hand-counted bins, and the sampling value of ECE on calibrated data."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxebm.evaluation.classifier.calibration import (
    accuracy,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)

SUMMARIES = {
    "accuracy": accuracy,
    "negative_log_likelihood": negative_log_likelihood,
    "brier_score": brier_score,
    "ece_uniform": expected_calibration_error,
    "ece_mass": lambda log_p, labels: expected_calibration_error(log_p, labels, binning="mass"),
}


def two_class(confidences):
    """Log-probabilities of two classes, of which class 0 has the given (winning) probability."""
    confidences = np.asarray(confidences, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(np.stack([confidences, 1.0 - confidences], axis=1))


def labels_from(correct):
    """Labels that make predictions of class 0 correct where asked."""
    return np.where(np.asarray(correct, bool), 0, 1)


def random_predictions(seed=0, n=400, num_classes=5, sharpness=2.0):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(n, num_classes))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_p, rng.integers(0, num_classes, n)


def test_uniform_prediction_has_the_closed_form_scores():
    num_classes, labels = 4, np.array([0, 1, 2, 3])
    log_p = np.full((4, num_classes), -np.log(num_classes))
    assert negative_log_likelihood(log_p, labels) == pytest.approx(np.log(4), abs=1e-12)
    assert brier_score(log_p, labels) == pytest.approx((1 - 1 / 4) ** 2 + 3 / 16, abs=1e-12)
    assert accuracy(log_p, labels) == 0.25  # Ties go to class 0.
    assert expected_calibration_error(log_p, labels) == pytest.approx(0.0, abs=1e-12)


def test_certain_and_right_is_perfect_certain_and_wrong_is_worst():
    log_p = two_class([1.0, 1.0])
    right, wrong = np.array([0, 0]), np.array([1, 1])
    assert [score(log_p, right) for score in SUMMARIES.values()] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [score(log_p, wrong) for score in SUMMARIES.values()] == [0.0, np.inf, 2.0, 1.0, 1.0]


def test_scores_equal_sums_over_examples():
    log_p, labels = random_predictions()
    p, n = np.exp(log_p), labels.size
    nll = -sum(log_p[i, labels[i]] for i in range(n)) / n
    brier = sum(sum((p[i, k] - (labels[i] == k)) ** 2 for k in range(5)) for i in range(n)) / n
    assert negative_log_likelihood(log_p, labels) == pytest.approx(nll, rel=1e-12)
    assert brier_score(log_p, labels) == pytest.approx(brier, rel=1e-12)
    assert accuracy(log_p, labels) == np.mean(p.argmax(axis=1) == labels)


@pytest.mark.parametrize("binning", ["uniform", "mass"])
@pytest.mark.parametrize(("confidence", "right"), [(0.9, 3), (0.6, 9), (0.75, 6)])
def test_constant_confidence_gives_the_gap_whatever_the_bins(binning, confidence, right):
    log_p, labels = two_class([confidence] * 12), labels_from(np.arange(12) < right)
    for num_bins in (1, 7, 15):
        gap = expected_calibration_error(log_p, labels, num_bins, binning=binning)
        assert gap == pytest.approx(abs(right / 12 - confidence), abs=1e-12)


def test_hand_counted_uniform_bins():
    # Bins of width 0.2. (.4, .6]: .55 right, .58 wrong. (.6, .8]: .7 right. (.8, 1]: .9 right, .95 wrong.
    log_p = two_class([0.55, 0.58, 0.7, 0.9, 0.95])
    labels = labels_from([1, 0, 1, 1, 0])
    curve = reliability_curve(log_p, labels, num_bins=5)
    np.testing.assert_allclose(curve.weight, [0, 0, 0.4, 0.2, 0.4])
    np.testing.assert_allclose(curve.confidence, [np.nan, np.nan, 0.565, 0.7, 0.925])
    np.testing.assert_allclose(curve.accuracy, [np.nan, np.nan, 0.5, 1.0, 0.5])
    np.testing.assert_allclose(curve.edges, [0, 0.2, 0.4, 0.6, 0.8, 1.0])
    expected = 0.4 * 0.065 + 0.2 * 0.3 + 0.4 * 0.425
    assert expected_calibration_error(log_p, labels, 5) == pytest.approx(expected, abs=1e-12)


def test_hand_counted_mass_bins():
    # Sorted and cut into three pairs: (.51 wrong, .52 right), (.6 right, .7 right), (.8 wrong, .99 right).
    log_p = two_class([0.99, 0.51, 0.7, 0.6, 0.8, 0.52])
    labels = labels_from([1, 0, 1, 1, 0, 1])
    curve = reliability_curve(log_p, labels, num_bins=3, binning="mass")
    np.testing.assert_allclose(curve.weight, [1 / 3] * 3)
    np.testing.assert_allclose(curve.confidence, [0.515, 0.65, 0.895])
    np.testing.assert_allclose(curve.accuracy, [0.5, 1.0, 0.5])
    expected = (0.015 + 0.35 + 0.395) / 3
    assert expected_calibration_error(log_p, labels, 3, binning="mass") == pytest.approx(expected, abs=1e-12)


def test_edges_belong_to_the_bin_below_and_certainty_to_the_last():
    # 0.5 and 0.75 are exact in binary; the first assertion makes sure that exp undoes log there.
    log_p = two_class([0.5, 0.75, 1.0])
    np.testing.assert_array_equal(np.exp(log_p.max(axis=1)), [0.5, 0.75, 1.0])
    curve = reliability_curve(log_p, np.zeros(3, int), num_bins=4)
    np.testing.assert_allclose(curve.weight, [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(curve.confidence, [np.nan, 0.5, 0.75, 1.0])


def test_probability_rounded_above_one_still_counts():
    log_p = np.array([[1e-7, -40.0]])
    assert reliability_curve(log_p, np.array([0]), num_bins=3).confidence[-1] == 1.0


def test_mass_bins_hold_equal_numbers_and_never_part_equal_confidences():
    log_p, labels = random_predictions(n=600)
    np.testing.assert_allclose(reliability_curve(log_p, labels, 15, binning="mass").weight, 1 / 15)
    tied = reliability_curve(two_class([0.6] * 7 + [0.9]), np.zeros(8, int), 4, binning="mass")
    assert sorted(tied.weight) == [0.0, 0.0, 0.125, 0.875]


@pytest.mark.parametrize("binning", ["uniform", "mass"])
def test_calibrated_data_give_the_exact_sampling_value(binning):
    """E[ECE] = sum_b w_b E|Binomial(n_b, c_b) / n_b - c_b| > 0, though the model is perfect."""
    levels, per_level, repeats = np.array([0.55, 0.65, 0.75, 0.85, 0.95]), 40, 400
    counts = np.arange(per_level + 1)
    expected = np.mean(
        [np.sum(stats.binom.pmf(counts, per_level, c) * np.abs(counts / per_level - c)) for c in levels]
    )
    confidence = np.repeat(levels, per_level)
    log_p, rng = two_class(confidence), np.random.default_rng(1)
    num_bins = {"uniform": 20, "mass": 5}[binning]  # Either way, one level to a bin.
    draws = []
    for _ in range(repeats):
        labels = labels_from(rng.random(confidence.size) < confidence)
        draws.append(expected_calibration_error(log_p, labels, num_bins, binning=binning))
    assert abs(np.mean(draws) - expected) < 4 * np.std(draws) / np.sqrt(repeats)  # 4 sigmas.
    assert expected > 0.02


def test_ece_bounds_and_invariances():
    log_p, labels = random_predictions()
    order = np.random.default_rng(3).permutation(labels.size)
    classes = np.random.default_rng(4).permutation(5)
    for name, score in SUMMARIES.items():
        value = score(log_p, labels)
        assert value == pytest.approx(score(log_p[order], labels[order]), abs=1e-12), name
        assert value == pytest.approx(score(log_p[:, np.argsort(classes)], classes[labels]), abs=1e-12), name
    # One bin gives |accuracy - mean confidence|, and refining bins can only raise the sum of absolute gaps.
    one = expected_calibration_error(log_p, labels, 1)
    assert one == pytest.approx(abs(accuracy(log_p, labels) - np.exp(log_p.max(axis=1)).mean()), abs=1e-12)
    nested = [expected_calibration_error(log_p, labels, bins) for bins in (1, 2, 4, 8, 16)]
    assert all(coarse <= fine + 1e-12 for coarse, fine in pairwise(nested))
    curve = reliability_curve(log_p, labels)
    assert curve.weight.sum() == pytest.approx(1.0)
    assert np.nansum(curve.weight * curve.accuracy) == pytest.approx(accuracy(log_p, labels))


def test_jax_float32_arrays_are_accepted():
    log_p, labels = random_predictions()
    as_jax = jax.nn.log_softmax(jnp.asarray(log_p, jnp.float32))
    for score in SUMMARIES.values():
        assert score(as_jax, jnp.asarray(labels)) == pytest.approx(score(log_p, labels), abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 0.4, 1.0, 3.0, 1000.0])
def test_temperature_recovers_the_scale_of_calibrated_logits(scale):
    """Labels from softmax(f), logits c f: T = c within 4 sigmas by the Fisher information."""
    rng = np.random.default_rng(5)
    logits = 2.0 * rng.normal(size=(4000, 3))
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    information = np.sum(p * logits**2) - np.sum(np.sum(p * logits, axis=1) ** 2)  # of 1/T, at T = 1.
    temperature = fit_temperature(scale * logits, labels)
    assert abs(scale / temperature - 1.0) < 4 / np.sqrt(information)
    assert temperature == pytest.approx(scale * fit_temperature(logits, labels), rel=1e-9)


def test_temperature_is_a_stationary_minimum_and_does_not_see_offsets():
    rng = np.random.default_rng(6)
    logits, labels = 5.0 * rng.normal(size=(300, 4)), rng.integers(0, 4, 300)
    labels[:200] = logits[:200].argmax(axis=1)

    def nll(temperature):
        scaled = logits / temperature
        return negative_log_likelihood(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)), labels)

    best = fit_temperature(logits, labels)
    assert all(nll(best) <= nll(best * factor) for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0))
    assert (nll(best * 1.001) - nll(best / 1.001)) / 0.002 == pytest.approx(0.0, abs=1e-4)
    assert fit_temperature(logits + 1e3 * rng.normal(size=(300, 1)), labels) == pytest.approx(best, rel=1e-9)
    assert nll(best) < nll(1.0)


def test_temperature_converges_when_newton_alone_would_overshoot():
    # Saturated logits: at T = 1 the curvature is zero in floating point, and bisection has to lead.
    logits = np.array([[1e4, 0.0]] * 9 + [[0.0, 1e4]] * 1)
    labels = np.zeros(10, int)  # 90% right: sigmoid(1e4 / T) = 0.9.
    assert fit_temperature(logits, labels) == pytest.approx(1e4 / np.log(9.0), rel=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), "T -> 0"),
        (np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([1, 0]), "infinite"),
        (np.zeros((3, 2)), np.array([0, 1, 0]), "T -> 0"),
        (np.array([[np.inf, 0.0]]), np.array([0]), "non-finite"),
    ],
)
def test_temperature_says_when_there_is_none(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


def test_wrong_input_is_named():
    log_p, labels = random_predictions(n=10)
    with pytest.raises(ValueError, match=r"labels has shape \(9,\)"):
        accuracy(log_p, labels[:9])
    with pytest.raises(ValueError, match=r"labels spans .*0\.\.4"):
        accuracy(log_p, labels + 5)
    with pytest.raises(TypeError, match="labels has dtype float"):
        accuracy(log_p, labels.astype(float))
    with pytest.raises(ValueError, match=r"log_probabilities.*sum to"):
        negative_log_likelihood(np.exp(log_p), labels)
    with pytest.raises(ValueError, match="10 rows of 10 not to 1"):
        brier_score(log_p + 1000.0, labels)
    with pytest.raises(ValueError, match="sum to nan"):
        brier_score(np.where(np.arange(5) == 2, np.nan, log_p), labels)
    with pytest.raises(TypeError, match="log_probabilities has dtype int"):
        accuracy(np.zeros((10, 5), int), labels)
    with pytest.raises(ValueError, match=r"log_probabilities has shape \(10,\)"):
        accuracy(log_p[:, 0], labels)
    with pytest.raises(ValueError, match="num_bins=0"):
        expected_calibration_error(log_p, labels, 0)
    with pytest.raises(ValueError, match="binning='equal'"):
        reliability_curve(log_p, labels, binning="equal")  # type: ignore[arg-type]


def test_temperature_with_impossible_classes():
    """A logit of -inf has probability 0 at every temperature: the class may as well be left out."""
    rng = np.random.default_rng(8)
    logits, labels = 3 * rng.normal(size=(300, 3)), rng.integers(0, 3, 300)
    labels[:200] = logits[:200].argmax(axis=1)
    padded = np.concatenate([logits, np.full((300, 2), -np.inf)], axis=1)
    assert fit_temperature(padded, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-12)
    with pytest.raises(ValueError, match="logits: 300 labels of 300 have a logit of -inf"):
        fit_temperature(padded, np.full(300, 4))
    with pytest.raises(ValueError, match="logits holds 1 non-finite"):
        fit_temperature(np.where(np.arange(3) == 1, np.nan, logits[:1]), labels[:1])


@pytest.mark.parametrize("factor", [1e-250, 1e-60, 1e60, 1e307])
def test_temperature_has_the_units_of_the_logits(factor):
    logits = np.array([[3.0, 0.0]] * 4)
    labels = np.array([0, 0, 0, 1])
    assert fit_temperature(logits * factor, labels) == pytest.approx(3.0 / np.log(3.0) * factor, rel=1e-9)


def test_labels_of_probability_zero_and_one_example():
    log_p = np.log([[1.0, 0.0]], where=[[True, False]], out=np.full((1, 2), -np.inf))
    assert accuracy(log_p, [0]) == 1.0
    assert negative_log_likelihood(log_p, [1]) == np.inf
    assert brier_score(log_p, [1]) == 2.0
    assert expected_calibration_error(log_p, [0]) == 0.0
    for labels in ([2], [-1]):
        with pytest.raises(ValueError, match="labels spans"):
            accuracy(log_p, labels)
    with pytest.raises(TypeError, match="log_probabilities"):
        accuracy(log_p.astype(str), [0])
