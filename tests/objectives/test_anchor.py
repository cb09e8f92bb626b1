"""The anchor of a normalised energy: its Gaussian, its loss, and the loss of a batch that it ends."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.independent_gaussian import IndependentGaussian
from jaxebm.objectives import Batch
from jaxebm.objectives.anchor import anchor_loss, anchored_loss, fit_reference
from jaxebm.objectives.examples import learnt_level_energy

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def test_reference_has_the_moments_of_the_noisy_batch():
    xs = {"a": jnp.array([[1.0], [3.0]]), "b": jnp.array([0.0, 4.0])}
    reference = fit_reference(xs, 2.0)
    chex.assert_trees_all_close(reference.mean, {"a": jnp.array([2.0]), "b": jnp.array(2.0)})
    chex.assert_trees_all_close(reference.variance, {"a": jnp.array([5.0]), "b": jnp.array(8.0)})
    value = reference.log_density({"a": jnp.array([3.0]), "b": jnp.array(0.0)})
    expected = -0.5 * (1 / 5 + 4 / 8 + np.log(5) + np.log(8)) - np.log(2 * np.pi)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_where_energy_and_reference_agree_nothing_can_be_told():
    reference = IndependentGaussian(jnp.zeros(3), jnp.full(3, 17.0))

    def energy_at(y, level):
        return -reference.log_density(y)

    value = anchor_loss(jax.random.key(0), energy_at, jnp.ones(3), 4.0, reference)
    assert float(value) == pytest.approx(np.log(2), rel=1e-6)


def test_anchor_is_least_where_the_energy_is_normalised():
    """Against any Gaussian: here one of another mean and scale than the data's."""
    reference = IndependentGaussian(jnp.array([0.5]), jnp.array([30.0]))
    xs = 1.0 + jax.random.normal(jax.random.key(2), (40_000, 1))

    def loss(offset, rng_key, x):
        def energy_at(y, level):
            variance = 1 + level**2
            return 0.5 * (y[0] - 1) ** 2 / variance + 0.5 * jnp.log(2 * jnp.pi * variance) + offset

        return anchor_loss(rng_key, energy_at, x, 4.0, reference)

    keys = jax.random.split(jax.random.key(3), len(xs))
    slopes = np.asarray(jax.vmap(jax.grad(loss), (None, 0, 0))(0.0, keys, xs))
    assert abs(slopes.mean()) < 4 * slopes.std() / np.sqrt(len(xs))
    assert abs(np.asarray(jax.vmap(jax.grad(loss), (None, 0, 0))(0.2, keys, xs)).mean()) > 0.02


# --- the loss of a batch ---

XS = jnp.array([[0.5], [-1.0], [2.0], [0.0]])


def energy_at(params, x, level):
    return 0.5 * params * jnp.sum(x**2) / (1 + level**2)


def errors_of(energy, params, rng_keys, x, label):
    """A loss and metrics that show what they are given."""
    assert rng_keys.shape == (2,)
    value = energy(params, x, 1.0)
    return value, {"energy": value, "number": jax.random.uniform(rng_keys[1]), "label": label}


def of_batch(params, anchor_weight, energy_at=energy_at):
    return anchored_loss(
        learnt_level_energy(energy_at),
        errors_of,
        params,
        jax.random.key(3),
        Batch(None, None, XS),
        num_keys=2,
        highest=5.0,
        anchor_weight=anchor_weight,
        objective="this_objective",
    )


def test_the_loss_of_a_batch_is_the_mean_and_the_weighted_anchor():
    plain, plain_metrics = of_batch(2.0, 0.0)
    assert float(plain) == pytest.approx(0.5 * float(jnp.mean(XS**2)), rel=1e-6)
    assert set(plain_metrics) == {"energy", "number", "label"}
    assert float(plain_metrics["energy"]) == float(plain)
    both, metrics = of_batch(2.0, 0.7)
    assert set(metrics) == {"energy", "number", "label", "anchor_loss"}
    assert float(both) == pytest.approx(float(plain) + 0.7 * float(metrics["anchor_loss"]), rel=1e-6)
    # Each example has keys of its own, and the anchor another.
    examples = jax.random.split(jax.random.key(3), 4)
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(examples)
    expected = jnp.mean(jax.vmap(jax.random.uniform)(keys[:, 1]))
    assert float(metrics["number"]) == pytest.approx(float(expected), rel=1e-6)
    reference = fit_reference(XS, 5.0)
    anchors = [
        anchor_loss(key, lambda y, level: energy_at(2.0, y, level), x, 5.0, reference)
        for key, x in zip(keys[:, 2], XS, strict=True)
    ]
    assert float(metrics["anchor_loss"]) == pytest.approx(float(np.mean(anchors)), rel=1e-5)


def test_an_energy_that_ignores_the_level_is_refused_by_the_name_of_the_objective():
    with pytest.raises(ValueError, match=r"energy_at ignores the level.*this_objective learns"):
        of_batch(1.0, 0.0, energy_at=lambda params, x, level: params * jnp.sum(x**2))
