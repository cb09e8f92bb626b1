"""Tasks along noise levels, where denoising, hidden pixels and compositions are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import at_level, complement_energy, guided_energy_at, joint_energy, marginal_energy
from jaxebm.report import LevelPath
from jaxebm.report.level_tasks import (
    compose_along,
    denoise_along,
    fill_along,
    num_filling_gradients,
    num_filling_levels,
    relation_energy_at,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

MEANS = np.array([-2.0, 0.0, 3.0])
WEIGHTS = np.array([0.2, 0.5, 0.3])
SCALE = 0.5


def mixture_at(params, x, level):
    """Three classes of one pixel, N(mean, .5^2) each, under noise."""
    variance = SCALE**2 + level**2
    return jnp.log(WEIGHTS) - 0.5 * (x.ravel()[0] - params) ** 2 / variance - 0.5 * jnp.log(variance)


CLASSES = LevelPath(mixture_at, lowest=0.02, highest=40.0)


def test_one_step_of_denoising_is_the_posterior_mean_and_many_draw_from_the_posterior():
    noise, n = 0.8, 4000
    gain = SCALE**2 / (SCALE**2 + noise**2)

    def posterior(at):
        """The mean of the clean pixel, and its variance."""
        joint = WEIGHTS * np.exp(-0.5 * (at[:, None] - MEANS) ** 2 / (SCALE**2 + noise**2))
        shares = joint / joint.sum(axis=1, keepdims=True)
        each = MEANS + gain * (at[:, None] - MEANS)
        mean = np.sum(shares * each, axis=1)
        return mean, np.sum(shares * (each**2 + gain * noise**2), axis=1) - mean**2

    at = np.linspace(-3.0, 4.0, 8, dtype=np.float32)
    found = denoise_along(CLASSES, MEANS, jax.random.key(0), at.reshape(8, 1, 1, 1), noise, 1)
    np.testing.assert_allclose(found.ravel(), posterior(at)[0], rtol=1e-4, atol=1e-5)
    # Many draws from one noisy image.
    noisy = np.full((n, 1, 1, 1), 1.3, np.float32)
    many = denoise_along(CLASSES, MEANS, jax.random.key(1), noisy, noise, 60).ravel()
    mean, variance = (value.item() for value in posterior(np.array([1.3])))
    assert abs(many.mean() - mean) < 5 * np.sqrt(variance / n) + 0.02
    assert many.var() == pytest.approx(variance, rel=0.1)
    # Noise below the lowest level is none.
    np.testing.assert_array_equal(denoise_along(CLASSES, MEANS, jax.random.key(2), noisy, 0.01, 5), noisy)
    least = denoise_along(CLASSES, MEANS, jax.random.key(2), noisy, CLASSES.lowest, 5)
    assert 0 < np.abs(least - noisy).max() < 0.01


def correlated_at(params, x, level):
    """A Gaussian of four pixels under noise, as one logit; of its mean, axes and the variances along them."""
    mean, axes, variances = params
    along = (x.ravel() - mean) @ axes
    return -0.5 * jnp.sum(along**2 / (variances + level**2), keepdims=True)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_hidden_pixels_follow_the_conditional_of_a_correlated_gaussian(correlation):
    mean = np.array([0.5, -0.5, 0.2, -0.2])
    distance = np.abs(np.arange(4)[:, None] - np.arange(4))
    covariance = 0.36 * np.where(distance == 0, 1.0, correlation**distance)
    variances, axes = np.linalg.eigh(covariance)
    seen, n = np.array([True, True, False, False]), 2000
    values = np.array([1.3, 0.4, np.nan, np.nan], np.float32)
    mask = jnp.asarray(seen.reshape(2, 2, 1))
    run = jax.jit(fill_along(LevelPath(correlated_at, 0.02, 20.0), mask, 0.6, num_steps=200))
    starts = jax.random.normal(jax.random.key(0), (n, 2, 2, 1))
    observed = jnp.broadcast_to(values.reshape(2, 2, 1), starts.shape)
    x = run(jax.random.key(1), jax.tree.map(jnp.asarray, (mean, axes, variances)), starts, observed)
    x = np.asarray(x, np.float64).reshape(n, 4)
    np.testing.assert_array_equal(x[:, seen], np.broadcast_to(values[seen], (n, 2)))
    gain = covariance[2:, :2] @ np.linalg.inv(covariance[:2, :2])
    expected = mean[2:] + gain @ (values[:2] - mean[:2])
    spread = covariance[2:, 2:] - gain @ covariance[:2, 2:]
    # 5 standard errors, and the error of 50 levels.
    assert np.all(np.abs(x[:, 2:].mean(axis=0) - expected) < 5 * np.sqrt(np.diag(spread) / n) + 0.01)
    np.testing.assert_allclose(np.cov(x[:, 2:].T), spread, atol=5 * np.sqrt(2 / n) * 0.36 + 0.03)


@pytest.mark.parametrize(("num_steps", "levels"), [(1, 1), (2, 1), (6, 2), (100, 25)])
def test_inpainting_costs_the_gradients_it_is_given(num_steps, levels):
    assert num_filling_levels(num_steps) == levels
    assert num_filling_gradients(num_steps) == 2 * (2 * levels - 1) <= max(2, num_steps)
    seen = []

    def counted(params, x, level):
        jax.debug.callback(lambda level: seen.append(float(level)), level)
        return -0.5 * jnp.sum(x**2, keepdims=True).ravel() / (1 + level**2)

    run = fill_along(LevelPath(counted, 0.1, 5.0), jnp.ones((1, 1, 1), bool), 1.0, num_steps)
    jax.block_until_ready(run(jax.random.key(0), None, jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1))))
    jax.effects_barrier()
    # A predictor and a corrector between two levels, and the last step: each reads the network once.
    assert len(seen) == 2 * levels - 1


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_compositions_are_those_of_the_classifier_at_each_level(strength):
    level, x, (this, that) = 0.7, jnp.array(0.4).reshape(1, 1, 1), (1, 2)
    logits = at_level(mixture_at, level)
    marginal, joint, complement = (
        make(logits) for make in (marginal_energy, joint_energy, complement_energy)
    )
    a, b = (joint(MEANS, x, y) - marginal(MEANS, x) for y in (this, that))  # -log p(y | x)
    expected = {"this": a, "and": a + b, "or": -jnp.logaddexp(-a, -b), "not": a + complement(MEANS, x, that)}
    for relation, evidence in expected.items():
        energy_at = relation_energy_at(mixture_at, relation, (this, that), strength)
        assert float(energy_at(MEANS, x, level)) == pytest.approx(
            float(marginal(MEANS, x) + strength * evidence), rel=1e-5
        )
    guided = guided_energy_at(mixture_at, strength)(MEANS, x, this, level)
    alone = relation_energy_at(mixture_at, "this", (this, that), strength)(MEANS, x, level)
    assert float(alone) == pytest.approx(float(guided), rel=1e-5)


def test_composed_classes_have_the_shares_and_moments_of_the_mixture():
    n = 1000
    starts = jax.random.normal(jax.random.key(0), (n, 1, 1, 1))

    def drawn(relation, classes):
        x = compose_along(CLASSES, MEANS, jax.random.key(1), starts, relation, classes, 150)
        return np.asarray(x, np.float64).ravel()

    for relation in ("this", "not"):
        x = drawn(relation, (0, 2))
        assert abs(x.mean() + 2.0) < 5 * SCALE / np.sqrt(n) + 0.02
        assert x.std() == pytest.approx(SCALE, rel=0.1)
    either = drawn("or", (0, 2))
    expected = float(WEIGHTS[0] / (WEIGHTS[0] + WEIGHTS[2]))
    assert abs(np.mean(either < 0.5) - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 0.02
    assert np.abs(either[:, None] - np.array([-2.0, 3.0])).min(axis=1).max() < 5 * SCALE
    # Two classes at once: between the two, with the probability of both.
    both = drawn("and", (0, 2))
    assert abs(both.mean()) < 1.5
    with pytest.raises(ValueError, match=r"path\.logits_at returns 3 logits"):
        drawn("and", (0, 3))
