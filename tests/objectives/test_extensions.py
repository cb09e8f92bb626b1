"""Extensions of an objective against the losses that they add, and the gradients of both."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.classifier import joint_energy
from jaxebm.objectives import (
    Batch,
    Negatives,
    Objective,
    adversarial_examples,
    classification_loss,
    classifier,
    energy_matching,
    ignore_label,
    jem,
    last_step_loss,
    with_adversarial_examples,
    with_classification,
    with_last_step,
)
from jaxebm.samplers import sgld

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


def keyed(params, rng_key, batch, negatives):
    """A loss that shows the key and the examples that it is given."""
    value, metrics = jem(logits).loss(params, rng_key, batch, negatives)
    return value, metrics | {"key": jax.random.uniform(rng_key), "x": batch.x_labelled}


KEYED = Objective(ignore_label(energy), keyed)


# --- adversarial examples ---


def test_adversarial_examples_take_the_place_of_the_labelled_ones():
    objective = with_adversarial_examples(KEYED, logits, radius=0.3, num_steps=4, state_clamp=(-1.0, 1.0))
    key_attack, key_loss = jax.random.split(KEY)
    attack = jax.jit(
        partial(adversarial_examples, key_attack, logits, radius=0.3, num_steps=4, state_clamp=(-1.0, 1.0))
    )
    moved = attack(PARAMS, X, LABELS)  # constants: no gradient flows through the attack
    wanted = evaluated(lambda params: keyed(params, key_loss, BATCH._replace(x_labelled=moved), NEGATIVES))
    assert_same(of(objective), wanted)
    assert objective.energy is KEYED.energy


def test_a_ball_of_radius_zero_changes_nothing():
    plain = classifier(logits)
    assert_same(of(with_adversarial_examples(plain, logits, radius=0.0, state_clamp=None)), of(plain))


# --- cross-entropy ---


def test_cross_entropy_adds_its_value_its_gradient_and_its_metrics():
    def loss(params, rng_key, batch, negatives):
        value = jnp.mean(jax.vmap(energy, (None, 0))(params, batch.x_data))
        return value, {"key": jax.random.uniform(rng_key)}

    plain = Objective(ignore_label(energy), loss)
    both = with_classification(plain, logits, weight=0.7, label_smoothing=0.1)
    (value, metrics), gradient = of(plain)
    (entropy, found), of_entropy = evaluated(
        lambda params: classification_loss(logits, params, X, LABELS, label_smoothing=0.1)
    )
    added = jax.tree.map(lambda one, other: one + 0.7 * other, gradient, of_entropy)
    assert_same(of(both), ((value + 0.7 * entropy, metrics | found), added))
    assert both.energy is plain.energy
    assert both.logits is logits


def test_only_the_cross_entropy_sees_augmented_examples_and_the_training_logits():
    def mirrored(rng_key, x):
        return jnp.where(jax.random.bernoulli(rng_key), -x, x)

    both = with_classification(
        KEYED._replace(logits=None), logits, augment=mirrored, training_logits=other_logits
    )
    key_loss, key_augment = jax.random.split(KEY)
    moved = jax.vmap(mirrored)(jax.random.split(key_augment, len(X)), X)
    assert 0 < int(jnp.sum(jnp.any(moved != X, axis=1))) < len(X)

    def wanted(params):
        value, metrics = keyed(params, key_loss, BATCH, NEGATIVES)
        entropy, found = classification_loss(other_logits, params, moved, LABELS)
        return value + entropy, metrics | found

    assert_same(of(both), evaluated(wanted))


def test_cross_entropy_is_added_once():
    def logits(params, x):
        return params @ x

    hybrid = with_classification(energy_matching(joint_energy(logits)), logits)
    with pytest.raises(ValueError, match="learns classes already"):
        with_classification(hybrid, logits)


# --- the last step ---


def test_the_last_step_adds_its_loss():
    kernel = partial(sgld, step_size=0.1)
    key_loss, key_step = jax.random.split(KEY)
    conditional = joint_energy(logits)
    for energy_of_step in (None, conditional):
        objective = with_last_step(KEYED, kernel, weight=0.7, entropy_weight=0.4, energy=energy_of_step)

        def wanted(params, energy_of_step=energy_of_step):
            value, metrics = keyed(params, key_loss, BATCH, NEGATIVES)
            stepped = KEYED.energy if energy_of_step is None else energy_of_step
            more, found = last_step_loss(
                key_step, kernel, stepped, params, NEGATIVES.positions, NEGATIVES.labels, entropy_weight=0.4
            )
            return value + 0.7 * more, metrics | found

        assert_same(of(objective), evaluated(wanted))
        assert objective.energy is KEYED.energy


def test_additions_compose():
    whole = with_last_step(
        with_adversarial_examples(jem(logits, p_xy_weight=1.0), logits, radius=0.1),
        partial(sgld, step_size=0.1),
    )
    (value, metrics), gradient = of(whole)
    chex.assert_tree_all_finite((value, metrics, gradient))
    assert {"cross_entropy", "joint_energy_gap", "last_step_energy", "neighbour_entropy"} <= set(metrics)
    np.testing.assert_allclose(whole.energy(PARAMS, X[0], 1), joint_energy(logits)(PARAMS, X[0], 1))


# --- what is refused ---

UNLABELLED, NONE = Batch(None, None, X_DATA), Negatives(None, None)
ROBUST, STEPPED = with_adversarial_examples(KEYED, logits, radius=0.1), with_last_step(KEYED, sgld)


@pytest.mark.parametrize(
    ("objective", "batch", "negatives", "named"),
    [
        (ROBUST, UNLABELLED, NEGATIVES, "with_adversarial_examples needs labels"),
        (with_classification(KEYED, logits), UNLABELLED, NEGATIVES, "with_classification needs labels"),
        (STEPPED, BATCH, NONE, "with_last_step compares data with samples"),
    ],
)
def test_what_a_loss_misses_is_named_while_tracing(objective, batch, negatives, named):
    with pytest.raises(ValueError, match=named):
        jax.eval_shape(lambda params: objective.loss(params, KEY, batch, negatives), PARAMS)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (with_adversarial_examples, {"radius": -0.1}, "radius=-0.1"),
        (with_adversarial_examples, {"radius": 0.1, "num_steps": 0}, "num_steps=0"),
        (with_adversarial_examples, {"radius": 0.1, "state_clamp": (1.0, 0.0)}, "state_clamp"),
        (with_classification, {"weight": -1.0}, "weight=-1.0"),
        (with_classification, {"label_smoothing": 1.5}, "label_smoothing=1.5"),
    ],
)
def test_bad_options_are_refused_when_the_objective_is_made(make, options, named):
    with pytest.raises(ValueError, match=named):
        make(KEYED, logits, **options)


def test_arguments_of_another_type_are_refused_by_name():
    for make in (partial(with_adversarial_examples, radius=0.1), with_classification):
        with pytest.raises(TypeError, match="objective is of type function"):
            make(energy, logits)
        with pytest.raises(TypeError, match="logits"):
            make(KEYED, lambda x: x)
    with pytest.raises(TypeError, match="augment"):
        with_classification(KEYED, logits, augment=lambda x: x)
    with pytest.raises(TypeError, match="make_kernel"):
        with_last_step(KEYED, "sgld")
    for options, named in (({"weight": -1.0}, "weight=-1"), ({"entropy_weight": -1.0}, "entropy_weight=-1")):
        with pytest.raises(ValueError, match=named):
            with_last_step(KEYED, sgld, **options)
    with pytest.raises(TypeError, match="energy"):
        with_last_step(KEYED, sgld, energy=energy)
