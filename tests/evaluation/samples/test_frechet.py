"""Fréchet distance against closed forms and scipy's matrix root; the inception-type score in its limits."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from jaxebm.evaluation.samples.frechet import (
    FidelityNotAvailableError,
    frechet_distance,
    inception_score,
    standard_fidelity,
)


def skewed(n, d, seed):
    """Correlated, off-centre features, their axes of very different scale."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.logspace(-2, 1, d)[None, :]
    return rng.normal(size=(n, d)) @ mixing + rng.normal(size=d)


def textbook_distance(real, fake):
    root = sqrtm(np.cov(real, rowvar=False) @ np.cov(fake, rowvar=False))
    return (
        np.sum((real.mean(0) - fake.mean(0)) ** 2)
        + np.trace(np.cov(real, rowvar=False) + np.cov(fake, rowvar=False))
        - 2 * np.trace(root).real
    )


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 2), (500, 700, 16), (400, 400, 64)])
def test_distance_equals_scipys_matrix_square_root(n, m, d):
    real, fake = skewed(n, d, 0), skewed(m, d, 1)
    assert frechet_distance(real, fake) == pytest.approx(textbook_distance(real, fake), rel=1e-7)


def whitened(n, d, seed):
    """Points whose sample mean is 0 and whose sample covariance is I, exactly."""
    points = np.random.default_rng(seed).normal(size=(n, d))
    q, _ = np.linalg.qr(points - points.mean(0))
    return q * np.sqrt(n - 1)


def test_closed_forms_of_gaussians():
    # Diagonal: |m_1 - m_2|^2 + sum (s_1 - s_2)^2.
    one, two = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.5])
    shift = np.array([0.3, -1.0, 2.0])
    expected = np.sum(shift**2) + np.sum((one - two) ** 2)
    points, others = whitened(50, 3, 0), whitened(80, 3, 1)
    assert frechet_distance(points * one, others * two + shift) == pytest.approx(expected, rel=1e-12)
    # A rotation by 90 degrees of the axes 1, 2: covariances that share eigenvectors, in another order.
    turned = others * two @ np.eye(3)[[1, 0, 2]]
    expected = np.sum((one - two[[1, 0, 2]]) ** 2)
    assert frechet_distance(points * one, turned) == pytest.approx(expected, rel=1e-12)
    # One dimension: (m_1 - m_2)^2 + (s_1 - s_2)^2.
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[5.0], [5.0]])) == pytest.approx(16 + 2)


def test_covariances_that_do_not_commute():
    """2 x 2: tr (AB)^{1/2} = sqrt(tr AB + 2 sqrt(det A det B))."""
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    real = whitened(60, 2, 2) @ np.linalg.cholesky(a).T
    fake = whitened(60, 2, 3) @ np.linalg.cholesky(b).T
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    assert frechet_distance(real, fake) == pytest.approx(np.trace(a) + np.trace(b) - 2 * root, rel=1e-12)


def test_a_set_is_at_no_distance_from_itself_even_where_covariances_are_singular():
    for n, d in ((200, 8), (10, 40)):  # fewer points than features
        points = skewed(n, d, 4)
        scale = np.trace(np.cov(points, rowvar=False))
        assert frechet_distance(points, points[::-1]) <= 1e-12 * scale
    few, others = skewed(10, 40, 5), skewed(12, 40, 6)
    rank_deficient = frechet_distance(few, others)
    padded = frechet_distance(np.pad(few, ((0, 0), (0, 9))), np.pad(others, ((0, 0), (0, 9))))
    assert rank_deficient == pytest.approx(padded, rel=1e-10)  # constant features add nothing


def test_invariances():
    real, fake = skewed(100, 6, 7), skewed(90, 6, 8)
    value = frechet_distance(real, fake)
    rotation = np.linalg.qr(np.random.default_rng(9).normal(size=(6, 6)))[0]
    assert frechet_distance(fake, real) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(real @ rotation + 5, fake @ rotation + 5) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(3 * real, 3 * fake) == pytest.approx(9 * value, rel=1e-10)
    assert frechet_distance(real.astype(np.float32), fake) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.zeros(3), np.zeros((3, 2)), r"real_features has shape \(3,\)"),
        (np.zeros((3, 2)), np.zeros((1, 2)), r"fake_features has shape \(1, 2\)"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "fake_features holds 6 non-finite"),
        (np.zeros((3, 2)), np.zeros((3, 4)), "real_features has 2 features and fake_features 4"),
    ],
)
def test_bad_features_are_named(real, fake, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(real, fake)


def sure(labels, num_classes, doubt=1e-9):
    probabilities = np.full((len(labels), num_classes), doubt / (num_classes - 1))
    probabilities[np.arange(len(labels)), labels] = 1 - doubt
    return np.log(probabilities)


def test_inception_score_limits_and_closed_form():
    even = np.repeat(np.arange(10), 40)  # in order of classes: parts of consecutive rows would score 1
    assert inception_score(sure(even, 10), 1).mean == pytest.approx(10, rel=1e-6)
    assert 9 < inception_score(sure(even, 10), 10).mean < 10
    assert inception_score(sure(np.tile(np.arange(10), 40), 10), 10).mean > 9
    assert inception_score(sure(np.zeros(50, int), 10), 1).mean == pytest.approx(1, rel=1e-6)
    assert inception_score(np.full((50, 4), -np.log(4)), 5) == pytest.approx((1.0, 0.0))
    # Classes of unequal frequency q, each sure: exp of the entropy of q.
    frequencies = np.array([0.5, 0.3, 0.2])
    labels = np.repeat([0, 1, 2], (frequencies * 100).astype(int))
    expected = np.exp(-np.sum(frequencies * np.log(frequencies)))
    assert inception_score(sure(labels, 3), 1).mean == pytest.approx(expected, rel=1e-6)


def test_inception_score_is_mutual_information_in_each_part():
    logits = np.random.default_rng(10).normal(size=(60, 5)) * 2
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)

    def entropy(q):
        return -np.sum(q * np.log(q), axis=-1)

    whole = inception_score(log_p, 1)
    assert whole.mean == pytest.approx(np.exp(entropy(p.mean(0)) - entropy(p).mean()), rel=1e-12)
    assert whole.standard_deviation == 0.0
    parts = inception_score(log_p, 3)
    assert parts.standard_deviation > 0
    assert 1 <= parts.mean < whole.mean + 3 * parts.standard_deviation


def test_bad_probabilities_are_named():
    with pytest.raises(ValueError, match=r"log_probabilities has shape \(3,\)"):
        inception_score(np.zeros(3))
    with pytest.raises(ValueError, match=r"probabilities sum to 2\.\.2"):
        inception_score(np.zeros((30, 2)))
    with pytest.raises(ValueError, match="holds 30 examples for num_splits=20"):
        inception_score(sure(np.zeros(30, int), 3), 20)
    with pytest.raises(ValueError, match="num_splits=0"):
        inception_score(sure(np.zeros(30, int), 3), 0)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="non-finite"):
            inception_score(np.array([[0.0, bad]] * 4), 1)


IMAGES = np.random.default_rng(11).integers(0, 256, (4, 6, 5, 1), np.uint8)


def stand_in(monkeypatch, tmp_path, calls):
    """Packages of the names that are asked for, which record what they are given."""
    torch, fidelity = ModuleType("torch"), ModuleType("torch_fidelity")
    extractor = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    extractor.URL_INCEPTION_V3 = "scheme://nowhere/v0/weights.pth"
    torch.utils = SimpleNamespace(data=SimpleNamespace(Dataset=object))
    torch.hub = SimpleNamespace(get_dir=lambda: str(tmp_path))
    torch.cuda = SimpleNamespace(is_available=lambda: False)
    torch.from_numpy = lambda array: array

    def calculate_metrics(**options):
        calls.append(options)
        return {
            "frechet_inception_distance": 1.5,
            "inception_score_mean": 2.5,
            "inception_score_std": 0.5,
        }

    fidelity.calculate_metrics = calculate_metrics
    for module in (torch, fidelity, extractor):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_standard_fidelity_hands_rgb_images_and_weights_on_disk_to_torch_fidelity(monkeypatch, tmp_path):
    calls = []
    stand_in(monkeypatch, tmp_path, calls)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights.pth").touch()
    colour = np.repeat(IMAGES, 3, axis=3)[:3]
    assert standard_fidelity(IMAGES, colour, num_splits=2) == (1.5, 2.5, 0.5)
    (options,) = calls
    assert options["feature_extractor_weights_path"] == str(tmp_path / "checkpoints" / "weights.pth")
    assert options["isc_splits"] == 2
    assert options["save_cpu_ram"]  # which means: no forked workers
    assert (len(options["input1"]), len(options["input2"])) == (4, 3)
    np.testing.assert_array_equal(options["input1"][1], np.repeat(IMAGES, 3, axis=3)[1].transpose(2, 0, 1))
    elsewhere = tmp_path / "mine.pth"
    elsewhere.touch()
    standard_fidelity(IMAGES, colour, weights_path=elsewhere)
    assert calls[1]["feature_extractor_weights_path"] == str(elsewhere)


def test_standard_fidelity_never_downloads_and_says_what_is_missing(monkeypatch, tmp_path):
    calls = []
    stand_in(monkeypatch, tmp_path, calls)
    with pytest.raises(FidelityNotAvailableError, match=r"weights\.pth is not on disk"):
        standard_fidelity(IMAGES, IMAGES)
    with pytest.raises(FidelityNotAvailableError, match=r"no such file\.pth is not on disk"):
        standard_fidelity(IMAGES, IMAGES, weights_path="no such file.pth")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_fidelity" else 1)
    with pytest.raises(
        FidelityNotAvailableError, match="the package torch-fidelity, which is not installed"
    ) as e:
        standard_fidelity(IMAGES, IMAGES)
    assert "\n" not in str(e.value)
    assert calls == []


def test_bad_images_are_named():
    with pytest.raises(TypeError, match="reference has dtype float64"):
        standard_fidelity(IMAGES, IMAGES / 255)
    for bad in (IMAGES[0], IMAGES[:1], np.repeat(IMAGES, 2, axis=3)):
        with pytest.raises(ValueError, match="images has shape"):
            standard_fidelity(bad, IMAGES)


@pytest.mark.parametrize("least", [-800.0, -1e308, -np.inf])
def test_inception_score_with_probabilities_that_are_zero(least):
    """0 log 0 = 0: a class that no sample has adds nothing."""
    two = np.log([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    three = np.concatenate([two, np.full((4, 1), least)], axis=1)
    assert inception_score(three, 1).mean == pytest.approx(inception_score(two, 1).mean, rel=1e-12)
    # Two sure classes, even: 2.
    sure_of = np.where(np.eye(2)[[0, 1, 0, 1]] == 1, 0.0, least)
    assert inception_score(sure_of, 1).mean == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-170, 1e-60, 1e120])
def test_distance_has_the_units_of_the_features_squared(factor):
    real, fake = skewed(30, 3, 0), skewed(20, 3, 1)
    scaled = frechet_distance(real * factor, fake * factor) / factor / factor
    assert scaled == pytest.approx(frechet_distance(real, fake), rel=1e-9, abs=1e-300) or factor == 1e-170


def test_features_without_variance_and_of_too_few_examples():
    point = np.full((2, 5), 0.1)
    assert frechet_distance(point, point) == 0.0
    assert frechet_distance(point, point + 2.0) == pytest.approx(20.0)
    assert np.isfinite(frechet_distance(skewed(2, 5, 0), point))
    with pytest.raises(TypeError, match="fake_features has dtype complex128"):
        frechet_distance(point, point * 1j)
