"""Out-of-distribution scores against closed forms and finite differences; AUROC against counted pairs."""

from itertools import pairwise
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jaxebm.evaluation.classifier.ood import (
    OOD_SCORES,
    auprc,
    auroc,
    confidence_score,
    false_positive_rate,
    gradient_norm_score,
    joint_maximum_score,
    log_density_score,
    typicality_score,
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
        "joint_maximum": f.max(),
    }
    assert set(expected) == set(OOD_SCORES)
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


def counted_auprc(inside, outside):
    """The sum over inside examples of the precision at their score, in order, written out."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(inside) | set(outside), reverse=True):
        accepted_inside = sum(score >= threshold for score in inside)
        accepted = accepted_inside + sum(score >= threshold for score in outside)
        recall = accepted_inside / len(inside)
        total += (recall - recall_before) * accepted_inside / accepted
        recall_before = recall
    return total


def test_auprc_counts_precision_at_each_recall():
    assert auprc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auprc([1.0, 1.0, 1.0], [1.0]) == pytest.approx(3 / 4)  # blind: the part that is inside
    assert auprc([1.0], [2.0, 3.0]) == pytest.approx(1 / 3)  # wrong way round
    rng = np.random.default_rng(14)
    inside, outside = rng.integers(0, 8, 60).astype(float), rng.integers(-3, 6, 45).astype(float)
    assert auprc(inside, outside) == pytest.approx(counted_auprc(inside, outside), abs=1e-12)
    assert auprc(np.exp(inside), np.exp(outside)) == pytest.approx(auprc(inside, outside), abs=1e-12)


def test_joint_maximum_is_density_and_confidence_in_one():
    """max_y log p(x, y) = log p(x) + log max_y p(y|x), and lies within log K below log p(x)."""
    xs = jnp.asarray(np.random.default_rng(15).normal(size=(20, 2)), jnp.float32)
    joint, density, confidence = (
        np.asarray(jax.vmap(make(linear_logits), (None, 0))(LINEAR, xs))
        for make in (joint_maximum_score, log_density_score, confidence_score)
    )
    np.testing.assert_allclose(joint, density + np.log(confidence), rtol=1e-5, atol=1e-5)
    assert np.all(joint <= density)
    assert np.all(joint >= density - np.log(3) - 1e-5)


def test_typicality_turns_away_what_is_too_likely():
    """In d dimensions a standard normal's log-density is -d/2 in the mean and 0 at its mode."""
    dimension = 200

    def logits(params, x):  # two equal classes: log p(x) + log Z = -|x|^2 / 2
        return jnp.full(2, -0.5 * jnp.sum(x**2) - jnp.log(2.0))

    training = jax.random.normal(jax.random.key(0), (200, dimension))
    density = jax.jit(jax.vmap(log_density_score(logits), (None, 0)))
    mean = density(None, training).mean()
    assert float(mean) == pytest.approx(-dimension / 2, abs=4 * np.sqrt(dimension / 2 / 200))
    score = jax.jit(jax.vmap(typicality_score(logits, mean), (None, 0)))
    inside = jax.random.normal(jax.random.key(1), (200, dimension))
    flat = jnp.linspace(-0.5, 0.5, 200)[:, None] * jnp.ones(
        (1, dimension)
    )  # near the mode, likelier than data
    assert auroc(density(None, inside), density(None, flat)) < 0.05
    assert auroc(score(None, inside), score(None, flat)) > 0.95
    assert float(score(None, jnp.zeros((200, dimension)))[0]) == pytest.approx(-dimension / 2, rel=0.05)
    # log Z cancels: a constant added to every logit shifts both densities alike.
    shifted = typicality_score(lambda params, x: logits(params, x) + 7.0, mean + 7.0)
    np.testing.assert_allclose(shifted(None, inside[0]), score(None, inside)[0], atol=1e-3)


def test_typicality_refuses_no_number():
    with pytest.raises(ValueError, match=r"mean_log_density has shape \(2,\)"):
        typicality_score(linear_logits, jnp.zeros(2))
    with pytest.raises(ValueError, match="mean_log_density holds 1 non-finite"):
        typicality_score(linear_logits, float("nan"))


@pytest.mark.parametrize("measure", [auroc, auprc, false_positive_rate])
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


@pytest.mark.parametrize("measure", [auroc, auprc])
def test_missing_scikit_learn_is_said(measure, hide_package):
    hide_package("sklearn")
    with pytest.raises(ImportError, match=f"{measure.__name__} needs scikit-learn"):
        measure([1.0], [0.0])


def test_infinite_scores_are_in_order_like_any_other():
    """log p = -inf outside of a support; infinities tie with themselves alone."""
    inside, outside = [np.inf, 2.0, -np.inf], [-np.inf, 1.0, -np.inf, np.inf]
    finite = {np.inf: 9.0, -np.inf: -9.0}
    as_finite = [[finite.get(score, score) for score in scores] for scores in (inside, outside)]
    for measure in (auroc, auprc, false_positive_rate):
        assert measure(inside, outside) == measure(*as_finite)
    # Of 12 pairs: inf wins 3 and ties 1, 2.0 wins 3, -inf ties 2.
    assert auroc(inside, outside) == pytest.approx((3 + 0.5 + 3 + 1) / 12)
    assert auroc([0.0], [-np.inf]) == 1.0
    with pytest.raises(ValueError, match="in_scores holds 1 non-finite"):
        auroc([np.nan, np.inf], [0.0])


@pytest.mark.parametrize("ties", [[1.0, 1.0], [np.inf, np.inf]])
def test_scores_that_all_tie_are_blind(ties):
    assert auroc(ties, ties[:1]) == 0.5
    assert auprc(ties, ties[:1]) == pytest.approx(2 / 3)
    assert false_positive_rate(ties, ties) == 1.0


@pytest.mark.parametrize("slope", [1e-30, 1.0, 1e30])
def test_the_length_of_a_slope_of_any_size(slope):
    """Its square vanishes or overflows in float32: a sure classifier is as flat."""
    score = gradient_norm_score(lambda params, x: jnp.stack([params @ x, params @ x]))
    params = slope * jnp.array([3.0, -4.0])
    assert float(score(params, jnp.zeros(2))) == pytest.approx(-5.0 * slope, rel=1e-6)


def test_the_score_has_a_derivative_where_the_slope_is_zero():
    score = gradient_norm_score(lambda params, x: jnp.stack([-jnp.sum(x**2), -jnp.sum(x**2)]))
    assert jax.grad(score, argnums=1)(None, jnp.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(
        jax.grad(score, argnums=1)(None, jnp.array([3.0, 4.0])), [-1.2, -1.6], rtol=1e-6
    )
    assert np.isnan(score(None, jnp.array([jnp.nan, 0.0])))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_scores_of_narrow_examples_under_x64(dtype):
    with jax.enable_x64(True):
        x = jnp.array([0.3, -1.1], dtype)
        for make_score in OOD_SCORES.values():
            assert np.isfinite(make_score(linear_logits)(LINEAR, x))
