"""Out-of-distribution scores against closed forms and finite differences; AUROC against counted pairs."""

import builtins
from itertools import pairwise
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jaxebm.evaluation.ood import (
    OOD_SCORES,
    OOD_SETS,
    auroc,
    confidence_score,
    constant_images,
    false_positive_rate,
    gradient_norm_score,
    interpolations,
    log_density_score,
    permute_pixels,
    uniform_noise,
)


class Linear(NamedTuple):
    """f(x) = weight x + bias: skewed, so that a wrong sign or axis shows."""

    weight: jax.Array
    bias: jax.Array


LINEAR = Linear(jnp.array([[1.0, -2.0], [0.5, 0.3], [-0.7, 1.5]]), jnp.array([0.2, -1.0, 0.4]))


def linear_logits(params, x):
    return params.weight @ x + params.bias


def mlp_logits(params, x):
    return params["out"] @ jnp.tanh(params["in"] @ x.ravel())


def test_linear_logits_have_closed_form_scores():
    x = np.array([0.3, -1.1])
    weight, bias = np.asarray(LINEAR.weight, float), np.asarray(LINEAR.bias, float)
    f = weight @ x + bias
    expected = {
        "log_density": logsumexp(f),
        "confidence": softmax(f).max(),
        "gradient_norm": -np.linalg.norm(weight.T @ softmax(f)),
    }
    for name, make_score in OOD_SCORES.items():
        value = make_score(linear_logits)(LINEAR, jnp.asarray(x, jnp.float32))
        assert value.shape == ()
        assert float(value) == pytest.approx(expected[name], rel=1e-5), name


def test_gradient_norm_equals_central_differences():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(7, 12)), "out": rng.normal(size=(3, 7))}
    x, step = rng.normal(size=(2, 3, 2)), 1e-6

    def log_density(flat):  # In float64, on the host.
        return logsumexp(params["out"] @ np.tanh(params["in"] @ flat))

    gradient = [
        (log_density(x.ravel() + step * e) - log_density(x.ravel() - step * e)) / (2 * step)
        for e in np.eye(12)
    ]
    as_float32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    value = gradient_norm_score(mlp_logits)(as_float32, jnp.asarray(x, jnp.float32))
    assert float(value) == pytest.approx(-np.linalg.norm(gradient), rel=1e-4)


def test_scores_point_up_inside_for_a_mixture_of_gaussians():
    """log p(x) = logsumexp of -(x - m_y)^2 / 2: far points have less density and a longer gradient."""
    means = jnp.array([[-1.0, 0.0], [1.0, 0.0]])

    def logits(params, x):
        return -0.5 * jnp.sum((x[None, :] - params) ** 2, axis=1)

    near, far = jnp.array([1.0, 0.1]), jnp.array([1.0, 6.0])
    for make_score in (log_density_score, gradient_norm_score):
        score = make_score(logits)
        assert float(score(means, near)) > float(score(means, far))
    # Confidence sees the direction between classes only, and is blind to the second coordinate.
    score = confidence_score(logits)
    assert float(score(means, near)) == pytest.approx(float(score(means, far)), abs=1e-6)
    assert float(score(means, near)) > float(score(means, jnp.zeros(2))) == pytest.approx(0.5)


@pytest.mark.parametrize("name", list(OOD_SCORES))
def test_scores_batch_jit_and_do_not_recompile(name):
    score = OOD_SCORES[name](linear_logits)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)), jnp.float32)
    batched = jax.jit(jax.vmap(chex.assert_max_traces(score, n=1), (None, 0)))
    values = batched(LINEAR, xs)
    chex.assert_shape(values, (5,))
    chex.assert_tree_all_finite(values)
    np.testing.assert_allclose(values, [score(LINEAR, x) for x in xs], rtol=1e-5)
    batched(jax.tree.map(lambda leaf: 2 * leaf, LINEAR), xs + 1)


@pytest.mark.parametrize("name", list(OOD_SCORES))
def test_batched_logits_are_refused(name):
    with pytest.raises(ValueError, match=r"logits\(params, x\) has shape \(1, 3\)"):
        OOD_SCORES[name](lambda params, x: linear_logits(params, x)[None])(LINEAR, jnp.zeros(2))


def test_gradient_norm_refuses_integers():
    with pytest.raises(TypeError, match="x has dtype int"):
        gradient_norm_score(linear_logits)(LINEAR, jnp.zeros(2, int))


def counted_auroc(inside, outside):
    return np.mean([(i > o) + 0.5 * (i == o) for i in inside for o in outside])


def test_auroc_counts_pairs_with_ties_half():
    assert auroc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auroc([1.0, 2.0], [3.0, 4.0]) == 0.0
    assert auroc([1.0, 1.0, 1.0], [1.0, 1.0]) == 0.5
    assert auroc([1.0, 3.0], [2.0]) == 0.5
    rng = np.random.default_rng(2)
    inside, outside = (
        rng.integers(0, 8, 60).astype(float),
        rng.integers(-3, 6, 45).astype(float),
    )  # Many ties.
    assert auroc(inside, outside) == pytest.approx(counted_auroc(inside, outside), abs=1e-12)


def test_auroc_is_unchanged_by_increasing_maps_and_mirrored_by_decreasing_ones():
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(0.7, 1.0, 80), rng.normal(0.0, 2.0, 50)
    value = auroc(inside, outside)
    for increasing in (np.exp, np.arctan, lambda s: 3 * s - 100, lambda s: s**3):
        assert auroc(increasing(inside), increasing(outside)) == pytest.approx(value, abs=1e-12)
    assert auroc(-inside, -outside) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(outside, inside) == pytest.approx(1 - value, abs=1e-12)


def test_auroc_of_two_gaussians_is_the_normal_integral():
    """P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2) = 0.76025; its error is at most sqrt(A (1 - A) / n)."""
    rng = np.random.default_rng(4)
    value = auroc(rng.normal(1.0, 1.0, 4000), rng.normal(0.0, 1.0, 4000))
    assert abs(value - 0.7602499) < 4 * np.sqrt(0.76 * 0.24 / 4000)


def test_false_positive_rate_by_hand_and_by_brute_force():
    inside = np.arange(1.0, 21.0)  # 95% of 20 is 19: the threshold is the second smallest, 2.
    assert false_positive_rate(inside, [0.0, 1.0, 1.9, 2.0, 30.0]) == pytest.approx(2 / 5)
    assert false_positive_rate([5.0, 5.0], [5.0, 4.0]) == 0.5
    assert false_positive_rate([5.0], [4.0]) == 0.0
    rng = np.random.default_rng(5)
    inside, outside = rng.integers(0, 12, 70).astype(float), rng.integers(-5, 9, 50).astype(float)
    for rate in (0.07, 0.5, 0.8, 0.95, 1.0):
        threshold = max(t for t in inside if np.mean(inside >= t) >= rate - 1e-12)
        assert false_positive_rate(inside, outside, rate) == np.mean(outside >= threshold)


def test_false_positive_rate_is_monotone_in_the_rate_and_blind_to_increasing_maps():
    rng = np.random.default_rng(6)
    inside, outside = rng.normal(1.0, 1.0, 90), rng.normal(0.0, 1.0, 90)
    rates = [false_positive_rate(inside, outside, rate) for rate in np.linspace(0.01, 1.0, 40)]
    assert all(a <= b for a, b in pairwise(rates))
    assert false_positive_rate(np.exp(inside), np.exp(outside)) == false_positive_rate(inside, outside)


@pytest.mark.parametrize("measure", [auroc, false_positive_rate])
def test_bad_scores_are_named(measure):
    with pytest.raises(ValueError, match=r"in_scores has shape \(0,\)"):
        measure([], [1.0])
    with pytest.raises(ValueError, match=r"out_scores has shape \(1, 2\)"):
        measure([1.0], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="out_scores holds 1 non-finite"):
        measure([1.0], [np.nan, 0.0])


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, float("nan")])
def test_bad_rate_is_named(rate):
    with pytest.raises(ValueError, match="true_positive_rate"):
        false_positive_rate([1.0], [0.0], rate)


def test_missing_scikit_learn_is_said(monkeypatch):
    real_import = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ImportError, match="auroc needs scikit-learn"):
        auroc([1.0], [0.0])


def example_images(n=12, shape=(4, 5, 3), seed=7):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (n, *shape)).astype(np.float32), rng.integers(0, 3, n)


@pytest.mark.parametrize("name", list(OOD_SETS))
def test_sets_are_deterministic_bounded_and_in_shape(name):
    images, labels = example_images()
    before = images.copy()
    one, again, other = (OOD_SETS[name](np.random.default_rng(seed), images, labels) for seed in (0, 0, 1))
    assert one.shape == images.shape
    assert one.dtype == images.dtype
    assert np.abs(one).max() <= 1.0
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(images, before)
    assert not np.array_equal(one, images)


def test_uniform_noise_has_uniform_moments():
    noise = uniform_noise(np.random.default_rng(8), (50, 8, 8, 1))
    n = noise.size
    assert abs(noise.mean()) < 4 * np.sqrt(1 / 3 / n)
    assert abs((noise**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)  # Var x^2 = 1/5 - 1/9.


def test_constant_images_vary_only_between_images_and_channels():
    images = constant_images(np.random.default_rng(9), 20, (4, 5, 3))
    assert images.shape == (20, 4, 5, 3)
    assert np.ptp(images, axis=(1, 2)).max() == 0.0
    assert np.unique(images).size == 60
    with pytest.raises(ValueError, match="n=0"):
        constant_images(np.random.default_rng(9), 0, (4, 5, 3))


def test_permuted_pixels_keep_the_histogram_and_each_colour_exactly():
    images, _ = example_images()
    permuted = permute_pixels(np.random.default_rng(10), images)

    def colours(image):  # Rows are pixels, sorted as triples: equality shows that channels stayed together.
        flat = image.reshape(-1, 3)
        return flat[np.lexsort(flat.T)]

    for image, shuffled in zip(images, permuted, strict=True):
        np.testing.assert_array_equal(colours(image), colours(shuffled))


def test_each_image_is_permuted_on_its_own_and_uniformly():
    position = np.broadcast_to(np.arange(6.0).reshape(1, 2, 3, 1), (3000, 2, 3, 1))
    permuted = permute_pixels(np.random.default_rng(11), position).reshape(3000, 6)
    assert (
        np.unique(permuted, axis=0).shape[0] > 700
    )  # 720 orders exist; 11 expected to be missed, 700 is safe.
    table = np.stack([np.bincount(column.astype(int), minlength=6) for column in permuted.T])
    assert np.abs(table - 500).max() < 5 * np.sqrt(3000 * (1 / 6) * (5 / 6))  # 36 cells, 5 sigmas.


def test_interpolations_are_midpoints_of_different_classes_only():
    # The first pixel carries 4^label, so the midpoint tells which two classes it mixes.
    labels = np.repeat([0, 1, 2], [10, 3, 1])
    images = np.zeros((14, 1, 2, 1))
    images[:, 0, 0, 0], images[:, 0, 1, 0] = 4.0**labels, np.arange(14)
    mixed = interpolations(np.random.default_rng(12), images, labels)
    other = 2 * mixed[:, 0, 0, 0] - images[:, 0, 0, 0]
    assert set(other) <= {1.0, 4.0, 16.0}
    assert np.all(other != images[:, 0, 0, 0])
    partner = (2 * mixed[:, 0, 1, 0] - np.arange(14)).astype(int)
    np.testing.assert_array_equal(4.0 ** labels[partner], other)
    many = [interpolations(np.random.default_rng(s), images, labels)[0, 0, 1, 0] * 2 for s in range(60)]
    assert set(many) == {10.0, 11.0, 12.0, 13.0}  # Every image of another class can be the partner.


def test_bad_images_are_named():
    rng, (images, labels) = np.random.default_rng(13), example_images()
    with pytest.raises(ValueError, match=r"images has shape \(12, 20, 3\)"):
        permute_pixels(rng, images.reshape(12, 20, 3))
    with pytest.raises(TypeError, match="images has dtype uint8"):
        permute_pixels(rng, (images * 100).astype(np.uint8))
    with pytest.raises(ValueError, match=r"labels has shape \(11,\)"):
        interpolations(rng, images, labels[:11])
    with pytest.raises(TypeError, match="labels has dtype float64"):
        interpolations(rng, images, labels.astype(float))
    with pytest.raises(ValueError, match="single class 2"):
        interpolations(rng, images, np.full(12, 2))
