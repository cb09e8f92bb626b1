"""Score norms at several noise levels, against NumPy's on Gaussians whose gradients are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation import auroc, fit_score_norms, log_density_score, score_norms_score
from jaxebm.evaluation.classifier.multiscale import log_score_norms

VARIANCES = np.array([0.25, 1.0, 4.0, 9.0])
LEVELS = (0.3, 1.0, 4.0)


def energy_at(params, x, level):
    """-log N(x; 0, diag(variances) + level^2) up to its constant: data of unequal variances, noisy."""
    return 0.5 * jnp.sum(x**2 / (params + level**2))


def normal_data(seed, n):
    return np.random.default_rng(seed).normal(size=(n, 4)) * np.sqrt(VARIANCES)


def expected_norms(x):
    gradients = [level * x / (VARIANCES + level**2) for level in LEVELS]
    return np.log(np.stack([np.linalg.norm(gradient, axis=1) for gradient in gradients], axis=1))


@pytest.fixture(scope="module")
def fitted():
    x = jnp.asarray(normal_data(0, 600), jnp.float32)
    return fit_score_norms(energy_at, jnp.asarray(VARIANCES), x, levels=LEVELS)


def test_norms_of_a_gaussian_have_their_closed_form():
    x = normal_data(1, 20)
    found = jax.vmap(log_score_norms(energy_at, LEVELS), (None, 0))(jnp.asarray(VARIANCES), jnp.asarray(x))
    np.testing.assert_allclose(found, expected_norms(x), rtol=1e-5, atol=1e-5)


def test_the_score_is_the_mahalanobis_distance_from_the_training_data(fitted):
    training, x = expected_norms(normal_data(0, 600)), normal_data(2, 50)
    precision = np.linalg.inv(np.cov(training.T))
    offset = expected_norms(x) - training.mean(axis=0)
    score = jax.vmap(score_norms_score(energy_at, fitted), (None, 0))
    found = score(jnp.asarray(VARIANCES), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, -np.einsum("ij,jk,ik->i", offset, precision, offset), rtol=2e-3)


def test_the_mean_distance_of_the_training_data_is_the_number_of_levels(fitted):
    # The mean of u' C^-1 u over the fitted data is (n - 1) / n L, but for the ridge.
    score = jax.vmap(score_norms_score(energy_at, fitted), (None, 0))
    distances = -score(jnp.asarray(VARIANCES), jnp.asarray(normal_data(0, 600), jnp.float32))
    assert float(distances.mean()) == pytest.approx(len(LEVELS) * 599 / 600, rel=2e-3)


def test_simple_inputs_are_likely_and_yet_told_from_data(fitted):
    data, simple = normal_data(3, 300), 0.02 * normal_data(4, 300)
    params = jnp.asarray(VARIANCES)
    density = jax.vmap(log_density_score(lambda params, x: -energy_at(params, x, 0.0)[None]), (None, 0))
    norms = jax.vmap(score_norms_score(energy_at, fitted), (None, 0))
    data, simple = jnp.asarray(data, jnp.float32), jnp.asarray(simple, jnp.float32)
    assert auroc(density(params, data), density(params, simple)) < 0.01
    assert auroc(norms(params, data), norms(params, simple)) > 0.99


def test_a_gradient_of_zero_has_a_finite_score(fitted):
    assert bool(jnp.isfinite(score_norms_score(energy_at, fitted)(jnp.asarray(VARIANCES), jnp.zeros(4))))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"levels": ()}, ValueError, "one or more noise levels"),
        ({"levels": (0.0, 1.0)}, ValueError, "levels"),
        ({"levels": 1.0}, ValueError, "levels has shape"),
        ({"x": jnp.ones((3, 4))}, ValueError, "more than the 3 levels"),
        ({"x": jnp.ones((5, 4), int)}, TypeError, "x has dtype int32"),
        ({"x": jnp.full((5, 4), jnp.nan)}, ValueError, "not finite at 5 of 5"),
        ({"energy_at": lambda params, x: 0.0}, TypeError, "energy_at"),
    ],
)
def test_wrong_arguments_are_named(changed, error, message):
    arguments = {"energy_at": energy_at, "x": jnp.asarray(normal_data(0, 9)), "levels": LEVELS} | changed
    with pytest.raises(error, match=message):
        fit_score_norms(arguments.pop("energy_at"), jnp.asarray(VARIANCES), arguments.pop("x"), **arguments)


def test_the_score_needs_fitted_norms():
    with pytest.raises(TypeError, match="fit_score_norms"):
        score_norms_score(energy_at, (1.0, 2.0))
