"""Classifier guidance is Bayes' rule where the classifier is the model's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import (
    at_level,
    clamp,
    clamp_at,
    guided_energy,
    guided_energy_at,
    joint_energy,
    joint_energy_at,
    marginal_energy,
    tempered,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

MEANS, SCALES, WEIGHTS = jnp.array([-3.0, 1.0, 4.0]), jnp.array([0.3, 1.5, 0.6]), jnp.array([0.2, 0.5, 0.3])
PARAMS = (MEANS, SCALES, WEIGHTS)
GRID = np.linspace(-12.0, 14.0, 4001)  # the trapezoid rule, exact to rounding at this spacing


def log_joint(params, x, level=0.0):
    """log p(x, y) of a skewed mixture, one component a class, under noise of a level."""
    means, scales, weights = params
    variances = scales**2 + level**2
    return jnp.log(weights) - 0.5 * (x - means) ** 2 / variances - 0.5 * jnp.log(2 * jnp.pi * variances)


def logits(params, x):
    """The classifier of the same joint density, which leaves a function of x open."""
    return log_joint(params, x) + jnp.sin(3 * x)


def energy(params, x):
    return -jax.nn.logsumexp(log_joint(params, x)) + 1.7  # log Z = -1.7


@pytest.mark.parametrize("label", [0, 1, 2])
def test_on_a_mixture_it_is_the_posterior_and_its_normaliser_the_class_probability(label):
    guided = guided_energy(energy, logits, label)
    energies = np.asarray(jax.vmap(guided, (None, 0))((PARAMS, PARAMS), jnp.asarray(GRID)), np.float64)
    density = np.exp(-energies)
    total = np.trapezoid(density, GRID)
    assert np.log(total) == pytest.approx(-1.7 + np.log(WEIGHTS[label]), abs=1e-5)
    joint = jax.vmap(log_joint, (None, 0))(PARAMS, jnp.asarray(GRID))[:, label]
    component = np.exp(np.asarray(joint)) / float(WEIGHTS[label])
    np.testing.assert_allclose(density / total, component, rtol=2e-4, atol=1e-7)


def test_the_strength_is_the_power_of_the_classifier():
    x = jnp.asarray(GRID[::400])

    def at(strength):
        guided = guided_energy(energy, logits, 1, strength)
        return np.asarray(jax.vmap(guided, (None, 0))((PARAMS, PARAMS), x))

    plain = np.asarray(jax.vmap(energy, (None, 0))(PARAMS, x))
    np.testing.assert_allclose(at(0.0), plain, rtol=1e-6)
    np.testing.assert_allclose(at(3.0) - plain, 3 * (at(1.0) - plain), rtol=1e-4, atol=1e-4)


def test_of_one_network_it_is_the_joint_energy_and_it_composes():
    def network(params, x):
        return params @ x

    params, x = jnp.array([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]]), jnp.array([0.3, -0.7])
    guided = guided_energy(marginal_energy(network), network, 2)
    expected = joint_energy(network)(params, x, 2)
    np.testing.assert_allclose(guided((params, params), x), expected, rtol=1e-6)
    np.testing.assert_allclose(tempered(guided, 2.0)((params, params), x), expected / 2, rtol=1e-6)


def test_classes_and_strengths_may_be_traced_and_a_class_that_does_not_exist_is_nan():
    labels = jnp.array([0, 1, 2, 3])

    def of_class(label, strength):
        return guided_energy(energy, logits, label, strength)((PARAMS, PARAMS), jnp.array(0.5))

    values = jax.jit(jax.vmap(of_class, (0, None)))(labels, 2.0)
    np.testing.assert_allclose(values[:3], [of_class(label, 2.0) for label in range(3)], rtol=1e-6)
    assert bool(jnp.isnan(values[3]))


def test_at_a_level_it_is_the_posterior_of_noisy_data():
    def energy_at(params, x, level):
        return -jax.nn.logsumexp(log_joint(params, x, level))

    def guided_at(params, x, level):
        return guided_energy(at_level(energy_at, level), at_level(log_joint, level), 2)(params, x)

    x = jnp.asarray(GRID[::400])
    values = jax.jit(jax.vmap(guided_at, (None, 0, None)))((PARAMS, PARAMS), x, 1.3)
    chex.assert_trees_all_close(
        values, -jax.vmap(log_joint, (None, 0, None))(PARAMS, x, 1.3)[:, 2], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"energy": 1}, TypeError, "energy"),
        ({"logits": lambda x: x}, TypeError, "logits"),
        ({"label": 1.0}, TypeError, "label has dtype float32"),
        ({"label": -1}, ValueError, "label=-1"),
        ({"label": jnp.array([0, 1])}, ValueError, r"label has shape \(2,\)"),
        ({"label": 3}, ValueError, "label"),
        ({"strength": -0.5}, ValueError, "strength=-0.5"),
        ({"logits": lambda params, x: x}, ValueError, r"logits\(params, x\) has shape \(\)"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    accepted = {"energy": energy, "logits": logits, "label": 0}
    with pytest.raises(error, match=message):
        guided_energy(**(accepted | arguments))((PARAMS, PARAMS), jnp.array(0.5))


def test_params_must_be_a_pair():
    with pytest.raises(ValueError, match="params is 3 entries: a pair"):
        guided_energy(energy, logits, 0)(PARAMS, jnp.array(0.5))


def test_guidance_of_one_network_at_a_level_is_that_of_its_two_parts():
    def logits_at(params, x, level):
        return logits(params, x) / (1 + level)

    guided_at = guided_energy_at(logits_at, 2.5)
    two_parts = guided_energy(marginal_energy(at_level(logits_at, 0.7)), at_level(logits_at, 0.7), 1, 2.5)
    x = jnp.array(0.4)
    chex.assert_trees_all_close(guided_at(PARAMS, x, 1, 0.7), two_parts((PARAMS, PARAMS), x), rtol=1e-5)
    joint = joint_energy_at(logits_at)
    chex.assert_trees_all_close(
        guided_energy_at(logits_at)(PARAMS, x, 1, 0.7), joint(PARAMS, x, 1, 0.7), rtol=1e-6
    )
    with pytest.raises(TypeError, match="logits_at"):
        guided_energy_at(logits)
    with pytest.raises(ValueError, match=r"strength=-1\.0"):
        guided_energy_at(logits_at, -1.0)
    with pytest.raises(ValueError, match="y"):
        guided_at(PARAMS, x, 9, 0.7)


def independent_at(params, x, level):
    """Data whose entries are independent, N(mean, scale^2), under noise."""
    mean, scale = params
    return 0.5 * sum(jnp.sum((leaf - mean) ** 2) for leaf in jax.tree.leaves(x)) / (scale**2 + level**2)


def test_independent_coordinates_are_clamped_to_their_values_with_noise():
    """Exactly N(value, level^2) where observed, and as they were elsewhere; in any pytree."""
    x = {"a": jnp.array([0.3, -2.0]), "b": jnp.array(1.5)}
    mask = {"a": jnp.array([True, False]), "b": jnp.array(True)}
    values = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array(-0.5)}
    mean, scale, level = 0.7, 1.3, 0.9
    observed = clamp_at(independent_at, mask, values, scale)
    slope = jax.jit(jax.grad(observed, argnums=1))((mean, scale), x, level)
    np.testing.assert_allclose(slope["a"][0], (0.3 - 1.0) / level**2, rtol=1e-5)
    np.testing.assert_allclose(slope["b"], (1.5 + 0.5) / level**2, rtol=1e-5)
    np.testing.assert_allclose(slope["a"][1], (-2.0 - mean) / (scale**2 + level**2), rtol=1e-5)


def test_as_the_level_falls_clamping_at_a_level_is_clamping():
    """The slope of the hidden coordinate, where the observed one has its value."""
    precision = jnp.array([[2.0, 0.8], [0.8, 1.0]])

    def correlated_at(params, x, level):
        return 0.5 * x @ jnp.linalg.solve(jnp.linalg.inv(params) + level**2 * jnp.eye(2), x)

    mask, values, x = jnp.array([True, False]), jnp.array([1.0, 0.0]), jnp.array([1.0, 0.5])
    expected = jax.grad(clamp(lambda params, x: 0.5 * x @ params @ x, mask, values), argnums=1)(precision, x)
    errors = [
        float(jax.grad(clamp_at(correlated_at, mask, values, 1.0), argnums=1)(precision, x, level)[1])
        - float(expected[1])
        for level in (0.2, 0.05)
    ]
    assert abs(errors[1]) < abs(errors[0]) / 8
    assert abs(errors[1]) < 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"energy_at": lambda params, x: 0.0}, TypeError, r"energy_at.*params, x, level"),
        ({"mask": jnp.array([1.0, 0.0])}, TypeError, "mask has dtype float32"),
        ({"values": jnp.zeros(3)}, ValueError, r"values has shape \(3,\)"),
        ({"scale": 0.0}, ValueError, "scale=0.0"),
        ({"x": jnp.zeros(3)}, ValueError, r"x has shape \(3,\)"),
        ({"x": jnp.zeros(2, int)}, TypeError, "x has dtype int32"),
        ({"level": 0.0}, ValueError, "level=0.0"),
        ({"energy_at": lambda params, x, level: x}, ValueError, r"energy_at returned shape \(2,\)"),
    ],
)
def test_what_cannot_be_clamped_at_a_level_is_named(change, error, message):
    given = {
        "energy_at": independent_at,
        "mask": jnp.array([True, False]),
        "values": jnp.zeros(2),
        "scale": 1.0,
        "x": jnp.zeros(2),
        "level": 0.5,
    } | change
    with pytest.raises(error, match=message):
        clamp_at(*(given[name] for name in ("energy_at", "mask", "values", "scale")))(
            (0.0, 1.0), given["x"], given["level"]
        )
