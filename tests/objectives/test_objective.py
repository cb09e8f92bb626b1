"""Objectives against the losses that they are made of, and against exact gradients where Z is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.classifier import joint_energy, marginal_energy
from jaxebm.objectives import (
    Batch,
    Negatives,
    binary_energy_loss,
    classification_loss,
    classifier,
    contrastive_loss,
    ignore_label,
    jem,
    joint_loss,
    likelihood,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def logits(params, x):
    return params["readout"] @ jnp.tanh(params["weights"] @ x)


def other_logits(params, x):
    """What is learnt where a network normalises by its batch while it learns."""
    return 0.5 * logits(params, x)


def energy(params, x):
    return jnp.sum(logits(params, x) ** 2)


def other_energy(params, x):
    return energy(params, x) + 1.0


PARAMS = {"weights": normal(5, 2), "readout": normal(3, 5)}
X, LABELS, X_DATA = normal(6, 2), jnp.array([0, 2, 1, 1, 0, 2]), normal(9, 2)
BATCH = Batch(X, LABELS, X_DATA)
NEGATIVES = Negatives(normal(7, 2), jnp.arange(7) % 3)


def evaluated(loss):
    """``((value, metrics), gradient)`` of a function of the parameters, as one program."""
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)


def of(objective, batch=BATCH, negatives=NEGATIVES):
    return evaluated(lambda params: objective.loss(params, KEY, batch, negatives))


def assert_same(found, wanted):
    assert set(found[0][1]) == set(wanted[0][1])
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


# --- the losses beneath ---


@pytest.mark.parametrize(
    ("contrast", "beneath"), [("likelihood", contrastive_loss), ("binary", binary_energy_loss)]
)
def test_likelihood_is_the_weighted_contrast_of_data_and_samples(contrast, beneath):
    objective = likelihood(energy, energy_l2=0.3, contrast=contrast, weight=2.5, training_energy=other_energy)

    def wanted(params):
        value, metrics = beneath(other_energy, params, X_DATA, NEGATIVES.positions, energy_l2=0.3)
        return 2.5 * value, metrics

    assert_same(of(objective), evaluated(wanted))
    # Data without labels are as good, and the chains run on the energy itself, whatever their class.
    assert_same(
        of(objective, Batch(None, None, X_DATA), Negatives(NEGATIVES.positions, None)), evaluated(wanted)
    )
    assert float(objective.energy(PARAMS, X[0], 1)) == float(energy(PARAMS, X[0]))
    assert_same(
        of(likelihood(energy)),
        evaluated(lambda params: contrastive_loss(energy, params, X_DATA, NEGATIVES.positions)),
    )


OPTIONS = {
    "p_y_given_x_weight": 0.5,
    "p_x_weight": 2.0,
    "p_xy_weight": 3.0,
    "contrast": "binary",
    "energy_l2": 0.1,
    "label_smoothing": 0.2,
}


@pytest.mark.parametrize("options", [{}, {"p_x_weight": 0.5}, OPTIONS], ids=["default", "p_x", "all"])
def test_jem_is_the_joint_loss(options):
    def wanted(params):
        return joint_loss(
            other_logits,
            params,
            X,
            LABELS,
            X_DATA,
            NEGATIVES.positions,
            labels_model=NEGATIVES.labels,
            **options,
        )

    assert_same(of(jem(logits, training_logits=other_logits, **options)), evaluated(wanted))


def test_the_chains_of_jem_run_on_the_energy_that_its_weights_need():
    marginal, conditional = marginal_energy(logits)(PARAMS, X[0]), joint_energy(logits)(PARAMS, X[0], 2)
    assert abs(float(marginal - conditional)) > 0.1
    for options, wanted in (
        ({}, marginal),
        ({"p_xy_weight": 1.0}, conditional),
        ({"chains": "marginal"}, marginal),
        ({"chains": "conditional"}, conditional),  # p(x) from class-wise chains
        ({"training_logits": other_logits}, marginal),
        ({"chain_energy": lambda params, x, label: jnp.array(4.0)}, 4.0),
    ):
        np.testing.assert_allclose(jem(logits, **options).energy(PARAMS, X[0], 2), wanted, rtol=1e-6)


def test_classifier_is_the_cross_entropy_and_needs_no_negatives():
    def wanted(params):
        return classification_loss(other_logits, params, X, LABELS, label_smoothing=0.1)

    objective = classifier(logits, label_smoothing=0.1, training_logits=other_logits)
    for negatives in (NEGATIVES, Negatives(None, None)):
        assert_same(of(objective, negatives=negatives), evaluated(wanted))
    np.testing.assert_allclose(objective.energy(PARAMS, X[0], 1), marginal_energy(logits)(PARAMS, X[0]))


# --- exact gradients ---


def test_likelihood_of_a_spin_has_the_closed_gradient():
    """E(x) = -b x on {-1, 1} at b = log(3) / 2 is up with probability 3/4: d(-log p)/db = tanh b - mean x."""
    field = jnp.log(3.0) / 2
    data, exact = jnp.array([1.0, -1.0, -1.0, -1.0, 1.0]), jnp.array([1.0, 1.0, 1.0, -1.0])
    objective = likelihood(lambda params, x: -params * x, weight=2.0)
    gradient = jax.grad(
        lambda params: objective.loss(params, KEY, Batch(None, None, data), Negatives(exact, None))[0]
    )
    np.testing.assert_allclose(gradient(field), 2.0 * (0.5 - (-0.2)), rtol=1e-5)


COUNTS = np.array([[1, 3], [2, 2]])  # of each class in each of two states, in eighths


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.7, 1.3, 0.4)])
def test_jem_on_exact_samples_has_the_gradient_of_the_log_likelihoods(weights):
    """Two states, one-hot, with f(x)[y] = T[y, x]: p(x, y) = exp T[y, x] / sum exp T, here in eighths."""
    states, classes = (
        jnp.repeat(jnp.tile(jnp.arange(2), 2), COUNTS.ravel()),
        jnp.repeat(jnp.repeat(jnp.arange(2), 2), COUNTS.ravel()),
    )
    samples = Negatives(jnp.eye(2)[states], classes)
    at, labels, at_data = jnp.array([0, 0, 1, 0, 1]), jnp.array([1, 1, 0, 0, 1]), jnp.array([1, 1, 0])
    batch = Batch(jnp.eye(2)[at], labels, jnp.eye(2)[at_data])
    names = ("p_y_given_x_weight", "p_x_weight", "p_xy_weight")
    objective = jem(lambda params, x: params @ x, **dict(zip(names, weights, strict=True)))

    def negative_log_likelihood(table):
        log_joint = table - jax.nn.logsumexp(table)
        log_x = jax.nn.logsumexp(log_joint, axis=0)
        terms = (
            jnp.mean(log_joint[labels, at] - log_x[at]),
            jnp.mean(log_x[at_data]),
            jnp.mean(log_joint[labels, at]),
        )
        return -sum(weight * term for weight, term in zip(weights, terms, strict=True))

    table = jnp.asarray(np.log(COUNTS), jnp.float32)
    found = jax.jit(jax.grad(lambda table: objective.loss(table, KEY, batch, samples)[0]))(table)
    np.testing.assert_allclose(found, jax.jit(jax.grad(negative_log_likelihood))(table), atol=1e-6)


def test_the_gradient_of_a_linear_classifier_is_its_closed_form():
    """d CE / d W = mean (softmax(W x) - one_hot(y)) x^T."""
    weights = jnp.array([[1.0, -0.5], [0.2, 0.7]])
    x, labels = jnp.array([[0.3, 0.1], [-0.2, 0.4], [0.1, -0.3]]), jnp.array([0, 1, 1])

    def linear(params, x):
        return params @ x

    probabilities = np.exp(x @ weights.T)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    wanted = (probabilities - np.eye(2)[np.asarray(labels)]).T @ np.asarray(x) / 3

    def loss(params):
        return classifier(linear).loss(params, KEY, Batch(x, labels, x), Negatives(None, None))[0]

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(weights), wanted, atol=1e-6)


# --- energies ---


def test_energies_without_labels_compare_by_what_they_are_of():
    assert ignore_label(energy) == ignore_label(energy)
    assert hash(ignore_label(energy)) == hash(ignore_label(energy))
    assert ignore_label(energy) != ignore_label(other_energy)
    assert likelihood(energy).energy == likelihood(energy, energy_l2=1.0).energy


def test_an_energy_that_binds_a_target_is_left_as_it_is():
    class Bindable:
        def bind(self, params, label):
            raise NotImplementedError

        def __call__(self, params, x, label):
            return jnp.sum(x) + label

    bindable = Bindable()
    assert ignore_label(bindable) is bindable
    assert likelihood(bindable).energy is bindable


# --- what is refused ---

UNLABELLED, NONE = Batch(None, None, X_DATA), Negatives(None, None)


@pytest.mark.parametrize(
    ("objective", "batch", "negatives", "named"),
    [
        (likelihood(energy), BATCH, NONE, "likelihood compares data with samples.*negatives=.*persistent"),
        (jem(logits), BATCH, NONE, "jem compares data with samples"),
        (jem(logits), UNLABELLED, NEGATIVES, r"jem needs labels, .*have none: give data=\(x, labels\)"),
        (classifier(logits), UNLABELLED, NONE, "classifier needs labels"),
    ],
)
def test_what_a_loss_misses_is_named_while_tracing(objective, batch, negatives, named):
    with pytest.raises(ValueError, match=named):
        jax.eval_shape(lambda params: objective.loss(params, KEY, batch, negatives), PARAMS)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: likelihood(energy, energy_l2=-0.1), "energy_l2=-0.1"),
        (lambda: likelihood(energy, weight=-1.0), "weight=-1.0"),
        (lambda: likelihood(energy, contrast="ratio"), "contrast='ratio'"),
        (lambda: jem(logits, p_x_weight=-0.5), "p_x_weight=-0.5"),
        (lambda: jem(logits, p_y_given_x_weight=-0.5), "p_y_given_x_weight=-0.5"),
        (lambda: jem(logits, p_xy_weight=float("nan")), "p_xy_weight=nan"),
        (lambda: jem(logits, energy_l2=-1.0), "energy_l2=-1.0"),
        (lambda: jem(logits, label_smoothing=1.5), "label_smoothing=1.5"),
        (lambda: jem(logits, p_x_weight=0.0, p_y_given_x_weight=0.0), "are all 0: nothing would be learnt"),
        (lambda: jem(logits, contrast="ratio"), "contrast='ratio'"),
        (lambda: jem(logits, chains="joint"), "chains='joint'"),
        (lambda: jem(logits, chains="marginal", p_xy_weight=1.0), "chains='marginal': p_xy_weight"),
        (lambda: classifier(logits, label_smoothing=-0.1), "label_smoothing=-0.1"),
    ],
)
def test_bad_options_are_refused_when_the_objective_is_made(make, named):
    with pytest.raises(ValueError, match=named):
        make()
