"""On a linear classifier the worst point of a ball is known; elsewhere, what holds of every attack."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.objectives import adversarial_examples

WEIGHTS = jnp.array([[1.0, -2.0, 0.5], [-1.0, 1.0, 2.0]])


def linear(params, x):
    return params @ x


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_finds_the_worst_point_of_a_linear_classifier(norm):
    x = jnp.array([[0.3, -0.2, 0.1], [2.0, 1.0, -3.0], [0.0, 0.0, 0.0]])
    labels, radius = jnp.array([0, 1, 1]), 0.7
    options = {"norm": norm, "num_steps": 40, "step_size": 0.35, "state_clamp": None}
    found = adversarial_examples(jax.random.key(0), linear, WEIGHTS, x, labels, radius=radius, **options)
    away = WEIGHTS[1 - labels] - WEIGHTS[labels]
    unit = jnp.sign(away) if norm == "linf" else away / jnp.linalg.norm(away, axis=1, keepdims=True)
    chex.assert_trees_all_close(found, x + radius * unit, atol=2e-3)


def test_stays_in_the_ball_and_in_the_box_and_raises_the_loss():
    key = jax.random.key(1)
    params = jax.random.normal(key, (3, 16))
    x = jax.random.uniform(jax.random.fold_in(key, 1), (50, 4, 4), minval=-1.0, maxval=1.0)
    labels = jax.random.randint(jax.random.fold_in(key, 2), (50,), 0, 3)

    def logits(params, x):
        return jnp.tanh(params @ x.reshape(-1))

    found = adversarial_examples(key, logits, params, x, labels, radius=0.5)
    lengths = jnp.sqrt(jnp.sum((found - x) ** 2, axis=(1, 2)))
    assert float(lengths.max()) <= 0.5 + 1e-5
    assert float(jnp.abs(found).max()) <= 1.0

    def log_probabilities(x):
        return jax.nn.log_softmax(jax.vmap(logits, (None, 0))(params, x))[jnp.arange(50), labels]

    assert bool(jnp.all(log_probabilities(found) <= log_probabilities(x) + 1e-6))


def test_no_gradient_passes_and_radius_zero_leaves_the_examples():
    x, labels = jnp.array([[0.3, -0.2, 0.1]]), jnp.array([0])

    def total(params, radius):
        return jnp.sum(adversarial_examples(jax.random.key(0), linear, params, x, labels, radius=radius))

    assert float(jnp.abs(jax.grad(total)(WEIGHTS, 0.5)).max()) == 0.0
    chex.assert_trees_all_close(
        adversarial_examples(jax.random.key(0), linear, WEIGHTS, x, labels, radius=0.0), x
    )


def test_bfloat16_is_kept():
    x = jnp.array([[0.25, -0.25, 0.125]], jnp.bfloat16)
    found = adversarial_examples(jax.random.key(0), linear, WEIGHTS, x, jnp.array([0]), radius=0.5)
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"radius": -1.0}, ValueError, "radius"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"labels": jnp.array([0, 1])}, ValueError, "labels has shape"),
        ({"x": jnp.array([[1, 2, 3]])}, TypeError, "x has dtype"),
        ({"norm": "l1"}, ValueError, "norm"),
    ],
)
def test_refuses(change, error, message):
    given = {"x": jnp.zeros((1, 3)), "labels": jnp.array([0]), "radius": 0.5} | change
    x, labels = given.pop("x"), given.pop("labels")
    with pytest.raises(error, match=message):
        adversarial_examples(jax.random.key(0), linear, WEIGHTS, x, labels, **given)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 1], [5, 5]])
def test_a_class_that_does_not_exist_is_refused_or_nan(labels):
    """Clamped to the nearest class, the attack would have moved the example away from another one."""

    def attack(labels):
        return adversarial_examples(
            jax.random.key(0), lambda params, x: params @ x, jnp.eye(3), jnp.ones((2, 3)), labels, radius=0.5
        )

    with pytest.raises(ValueError, match=r"labels spans .*0\.\.2"):
        attack(jnp.array(labels))
    moved = jax.jit(attack)(jnp.array(labels))
    outside = np.array([label not in (0, 1, 2) for label in labels])
    np.testing.assert_array_equal(np.isnan(moved).all(axis=1), outside)
    assert np.isfinite(moved[~outside]).all()
