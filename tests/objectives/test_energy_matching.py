"""Energy matching against its closed form on Gaussians, and its contrast against exact samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import joint_energy
from jaxebm.objectives import (
    Batch,
    Negatives,
    energy_matching,
    equilibrium_matching,
    truncated_decay,
    with_classification,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NONE = Negatives(None, None)
MEAN = jnp.array([1.0, -0.5])
COVARIANCE = jnp.array([[0.5, 0.3], [0.3, 1.5]])  # skewed: neither centred nor isotropic


def quadratic(params, x):
    return 0.5 * x @ params["precision"] @ x - params["field"] @ x


def least_squares(factor):
    """The quadratic potential nearest to the velocity, for x_0 ~ N(0, I) independent of x_1 ~ N(m, S).

    grad V = K x - b minimises E |K x_t - b + c(t) v|^2 where E[(K x_t - b + c v) (x_t, 1)] = 0; moments of
    (v, x_t, 1) are polynomials in t, integrated here by Gauss-Legendre quadrature on the pieces of c.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    pieces = [(0.0, 0.8), (0.8, 1.0)]
    t = np.concatenate([(b - a) / 2 * nodes + (a + b) / 2 for a, b in pieces])
    w = np.concatenate([(b - a) / 2 * weights for a, b in pieces])
    c = np.asarray(factor(t), np.float64)
    m, S = np.asarray(MEAN, np.float64), np.asarray(COVARIANCE, np.float64)
    second = sum(
        wi * (ti**2 * (S + np.outer(m, m)) + (1 - ti) ** 2 * np.eye(2)) for ti, wi in zip(t, w, strict=True)
    )
    first = sum(wi * ti * m for ti, wi in zip(t, w, strict=True))
    cross = sum(  # E[c v x_t^T]
        wi * ci * (ti * (S + np.outer(m, m)) - (1 - ti) * np.eye(2))
        for ti, wi, ci in zip(t, w, c, strict=True)
    )
    velocity = sum(wi * ci * m for wi, ci in zip(w, c, strict=True))
    design = np.block([[second, first[:, None]], [first[None], np.ones((1, 1))]])
    solution = -np.concatenate([cross, velocity[:, None]], axis=1) @ np.linalg.inv(design)
    return solution[:, :2], -solution[:, 2]


@pytest.mark.parametrize("kind", ["energy", "equilibrium"])
def test_gradient_at_the_closed_form_is_zero_within_its_standard_error(kind):
    make = energy_matching if kind == "energy" else equilibrium_matching
    factor = np.ones_like if kind == "energy" else truncated_decay
    matrix, field = least_squares(factor)
    scale = 3.0
    # An energy with a matrix of its own gradient: any K, so that the closed form needs no symmetry.
    params = {"matrix": jnp.asarray(matrix, jnp.float32), "field": jnp.asarray(field, jnp.float32)}

    def slope_energy(params, x):
        slope = params["matrix"] @ jax.lax.stop_gradient(x) - params["field"]
        return slope @ x / scale

    objective = make(slope_energy, coupling="independent", scale=scale)
    root = jnp.linalg.cholesky(COVARIANCE)

    def gradient(key):
        key_data, key_loss = jax.random.split(key)
        data = MEAN[None] + jax.random.normal(key_data, (256, 2)) @ root.T
        return jax.grad(lambda p: objective.loss(p, key_loss, Batch(None, None, data), NONE)[0])(params)

    found = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), 200))  # 51,200 examples
    for leaf in jax.tree.leaves(found):
        error = leaf.std(axis=0, ddof=1) / np.sqrt(len(leaf))
        assert np.all(np.abs(leaf.mean(axis=0)) < 4 * error), (leaf.mean(axis=0), error)
    # Elsewhere it is not: with the sign of the velocity reversed, for one.
    wrong = jax.tree.map(jnp.negative, params)
    objective_gradient = jax.grad(
        lambda p: objective.loss(p, jax.random.key(1), Batch(None, None, jnp.tile(MEAN, (256, 1))), NONE)[0]
    )(wrong)
    assert float(jnp.linalg.norm(objective_gradient["field"])) > 0.5


def test_value_is_the_mean_square_of_an_entry_of_the_residual():
    # A linear potential c a.x: the residual is c a + x_1 - x_0, whatever t.
    objective = energy_matching(lambda params, x: params @ x, scale=2.0, coupling="independent")
    data = jnp.tile(jnp.array([5.0, 1.0]), (4096, 1))
    value, metrics = objective.loss(jnp.array([1.0, -1.0]), jax.random.key(0), Batch(None, None, data), NONE)
    expected = (7.0**2 + (-1.0) ** 2 + 2) / 2  # |2 a + x_1|^2 + E |x_0|^2, per entry
    assert abs(float(value) - expected) < 4 * 7.2 / np.sqrt(4096) * 2
    chex.assert_trees_all_equal(value, metrics["velocity_error"])


def test_contrast_has_no_gradient_at_the_density_of_the_negatives():
    """Phase 2: data and negatives from exp(-c E / T), so the contrast vanishes in the mean."""
    objective = energy_matching(quadratic, scale=2.0, contrastive_weight=1.0, coupling="independent")
    plain = energy_matching(quadratic, scale=2.0, coupling="independent")
    params = {"precision": jnp.eye(2), "field": jnp.array([0.5, 0.0])}

    def difference(key):
        keys = jax.random.split(key, 3)
        data, negatives = (jnp.array([[0.5, 0.0]]) + jax.random.normal(k, (64, 2)) for k in keys[:2])
        batch, samples = Batch(None, None, data), Negatives(negatives, jnp.zeros(64, int))
        both = [
            jax.grad(lambda p, one=one: one.loss(p, keys[2], batch, samples)[0])(params)
            for one in (objective, plain)
        ]
        return jax.tree.map(jnp.subtract, *both)

    found = jax.jit(jax.vmap(difference))(jax.random.split(jax.random.key(3), 300))
    for leaf in jax.tree.leaves(found):
        error = leaf.std(axis=0, ddof=1) / np.sqrt(len(leaf))
        assert np.all(np.abs(leaf.mean(axis=0)) < 4 * error)


def test_a_joint_energy_learns_from_the_labelled_examples_of_each_class():
    def logits(params, x):
        return params @ x

    objective = with_classification(energy_matching(joint_energy(logits)), logits, weight=0.5)
    params = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.3, 0.1]])
    x, labels = jax.random.normal(jax.random.key(0), (6, 2)), jnp.array([0, 1, 2, 0, 1, 1])
    batch = Batch(x, labels, jnp.full((6, 2), jnp.nan))  # which is not read
    gradient, metrics = jax.grad(lambda p: objective.loss(p, jax.random.key(1), batch, NONE), has_aux=True)(
        params
    )
    chex.assert_tree_all_finite((gradient, metrics))
    assert set(metrics) == {"velocity_error", "cross_entropy", "train_accuracy"}
    of_class = energy_matching(joint_energy(logits))
    with pytest.raises(ValueError, match="energy_matching needs labels"):
        of_class.loss(params, jax.random.key(1), Batch(None, None, x), NONE)


def test_negatives_need_labels_only_where_the_energy_has_classes():
    x = jax.random.normal(jax.random.key(0), (4, 2))
    batch, samples = Batch(x, jnp.zeros(4, int), x), Negatives(x[:3], None)
    params = {"precision": jnp.eye(2), "field": jnp.zeros(2)}
    contrast = energy_matching(quadratic, contrastive_weight=0.1)
    metrics = contrast.loss(params, jax.random.key(0), batch, samples)[1]
    expected = jnp.mean(0.5 * jnp.sum(x[:3] ** 2, axis=1))
    chex.assert_trees_all_close(metrics["energy_model"], expected, rtol=1e-5)
    of_class = energy_matching(joint_energy(lambda params, x: params @ x), contrastive_weight=0.1)
    with pytest.raises(ValueError, match="negatives have no labels"):
        of_class.loss(jnp.eye(2), jax.random.key(0), batch, samples)


def test_decay_is_constant_then_linear_to_zero():
    time = jnp.array([0.0, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(truncated_decay(time, start=0.5, height=2.0), [2.0, 2.0, 1.0, 0.0])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="scale"):
        energy_matching(quadratic, scale=0.0)
    with pytest.raises(ValueError, match="contrastive_weight"):
        energy_matching(quadratic, contrastive_weight=-1.0)
    with pytest.raises(ValueError, match="coupling"):
        equilibrium_matching(quadratic, coupling="best")
    with pytest.raises(ValueError, match=r"start=1\.0"):
        equilibrium_matching(quadratic, start=1.0)
    with pytest.raises(TypeError, match="energy"):
        energy_matching(lambda x: jnp.sum(x))
    needs = energy_matching(quadratic, contrastive_weight=1.0)
    params = {"precision": jnp.eye(2), "field": jnp.zeros(2)}
    with pytest.raises(ValueError, match="negatives="):
        needs.loss(params, jax.random.key(0), Batch(None, None, jnp.ones((4, 2))), NONE)
