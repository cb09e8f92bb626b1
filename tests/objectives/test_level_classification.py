"""Classification of noise levels: its minimiser is -log p at every level, normalised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies import joint_energy_at
from jaxebm.objectives import Batch, Negatives, level_classification
from jaxebm.objectives.level_classification import default_num_levels
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NONE = Negatives(None, None)
# A skewed mixture in two dimensions of modes that do not overlap at the lowest level.
TRUE = {
    "logits": jnp.log(jnp.array([0.8, 0.2])),
    "means": jnp.array([[-2.0, 0.5], [2.5, 0.0]]),
    "log_scales": jnp.log(jnp.array([0.3, 0.6])),
    "offset": jnp.zeros(()),
    "slope": jnp.zeros(()),
}


def mixture_energy(params, x, level):
    """-log p of the mixture, plus two terms that change its constant: 0 if it is normalised."""
    variances = jnp.exp(2 * params["log_scales"]) + level**2
    squares = jnp.sum((x[None] - params["means"]) ** 2, axis=1)
    terms = jax.nn.log_softmax(params["logits"]) - 0.5 * squares / variances - jnp.log(2 * jnp.pi * variances)
    return -jax.nn.logsumexp(terms) + params["offset"] + params["slope"] * jnp.log(level)


def mixture_sample(rng_key, n):
    key_component, key_normal = jax.random.split(rng_key)
    component = jax.random.categorical(key_component, TRUE["logits"], shape=(n,))
    noise = jax.random.normal(key_normal, (n, 2))
    return TRUE["means"][component] + jnp.exp(TRUE["log_scales"])[component][:, None] * noise


OBJECTIVE = level_classification(mixture_energy, lowest=0.2, highest=20.0)


@functools.cache
def compiled_gradients(objective, num_batches):
    """Of the loss over fresh batches of 200: compiled once for all parameters."""

    @jax.jit
    def gradients(params):
        def gradient(rng_key):
            key_data, key_loss = jax.random.split(rng_key)
            batch = Batch(None, None, mixture_sample(key_data, 200))
            return jax.grad(lambda params: objective.loss(params, key_loss, batch, NONE)[0])(params)

        return jax.lax.map(gradient, jax.random.split(jax.random.key(0), num_batches))

    return gradients


def gradient_and_error(objective, params, num_batches=60):
    """By name, the mean gradient of the loss over fresh batches, and its standard error."""
    found = compiled_gradients(objective, num_batches)(params)
    return {
        name: (np.mean(leaf, axis=0), np.std(leaf, axis=0) / np.sqrt(num_batches))
        for name, leaf in found.items()
    }


@pytest.mark.parametrize("options", [{}, {"num_levels": 5, "num_classes": 3}])
def test_gradient_is_zero_at_the_truth(options):
    objective = OBJECTIVE
    if options:
        objective = level_classification(mixture_energy, lowest=0.2, highest=20.0, **options)
    for mean, error in gradient_and_error(objective, TRUE).values():
        assert np.all(np.abs(mean) <= 4 * error + 1e-6)
        assert np.max(error) < 0.04


def test_classification_sees_the_weights_of_separate_modes_and_denoising_does_not():
    """With levels at which the modes are apart, denoising alone has no gradient in their weights."""
    wrong = TRUE | {"logits": jnp.log(jnp.array([0.5, 0.5]))}
    options = {"lowest": 0.05, "highest": 0.5, "num_levels": 4, "anchor_weight": 0.0}
    blind = level_classification(mixture_energy, classification_weight=0.0, **options)
    assert np.max(np.abs(gradient_and_error(blind, wrong, 20)["logits"][0])) < 0.01
    # The cross-entropy compares levels, so one of them must mix the modes: here, up to 20.
    options |= {"highest": 20.0, "num_levels": 12}
    mean, error = gradient_and_error(level_classification(mixture_energy, **options), wrong, 20)["logits"]
    assert mean[0] < -6 * error[0]  # the first mode weighs more


def test_gradient_sees_the_constant_of_each_level_and_of_all():
    for name in ("offset", "slope"):
        mean, error = gradient_and_error(OBJECTIVE, TRUE | {name: jnp.float32(0.3)})[name]
        assert mean > 6 * error


def test_metrics_of_levels_that_are_told_with_certainty_and_of_those_that_are_not():
    batch = Batch(None, None, jnp.zeros((200, 100)))

    def energy_at(params, x, level):  # exact: all data are 0
        return 0.5 * jnp.sum(x**2) / level**2 + x.size * jnp.log(level)

    far = level_classification(energy_at, lowest=1e-3, highest=1e3, num_levels=4)
    near = level_classification(energy_at, lowest=1.0, highest=1.0001, num_levels=4)
    _, certain = jax.jit(far.loss)(0.0, jax.random.key(0), batch, NONE)
    _, guessed = jax.jit(near.loss)(0.0, jax.random.key(0), batch, NONE)
    assert float(certain["level_cross_entropy"]) < 1e-3
    assert float(certain["level_accuracy"]) == 1.0
    assert float(guessed["level_cross_entropy"]) == pytest.approx(np.log(4), abs=0.01)
    assert float(guessed["score_error"]) < 1e-9  # y = level z: the score tells z


def test_neighbours_overlap_by_default():
    """The log ratio of two levels of pure noise has a standard deviation of 1 or a little less."""
    count = default_num_levels(0.01, 10.0, 128)
    assert count == 112
    ratio = 1000.0 ** (1 / (count - 1))
    squares = np.random.default_rng(0).chisquare(128, 10_000)
    assert 0.9 < np.std(0.5 * squares * (1 - ratio**-2)) < 1.05


def test_fit_recovers_a_mixture_with_its_constant():
    start = TRUE | {
        "logits": jnp.zeros(2),
        "log_scales": jnp.zeros(2),
        "offset": jnp.asarray(0.3),
        "slope": jnp.asarray(-0.1),
    }
    objective = OBJECTIVE
    learn = learner(
        objective,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, 400)),
        batch_size=256,
        ema_decay=0.99,
    )
    found = fit(jax.random.key(4), learn, start, mixture_sample, num_steps=400).params
    xs = mixture_sample(jax.random.key(5), 2000)
    energies = jax.vmap(objective.energy, (None, 0, None))
    differences = np.asarray(energies(found, xs, 0) - energies(TRUE, xs, 0))
    # Of 102,000 examples: log p of a point, and its mean, the KL divergence at the lowest level.
    assert np.sqrt(np.mean(differences**2)) < 0.12
    assert abs(differences.mean()) < 0.08


def test_energies_of_classes_learn_from_the_labelled_examples():
    def logits_at(params, x, level):
        variance = 1 + level**2
        squares = jnp.sum((x[None] - params) ** 2, axis=1)
        return -0.5 * squares / variance - jnp.log(2 * jnp.pi * variance)

    means = jnp.array([[-2.0, 0.0], [1.0, 1.0]])
    objective = level_classification(joint_energy_at(logits_at), lowest=0.1, highest=20.0)
    labels = jnp.arange(1000) % 2
    xs = means[labels] + jax.random.normal(jax.random.key(7), (1000, 2))
    gradients = jax.jit(
        lambda key: jax.grad(lambda p: objective.loss(p, key, Batch(xs, labels, xs), NONE)[0])(means)
    )
    assert jnp.max(jnp.abs(gradients(jax.random.key(8)))) < 0.1
    with pytest.raises(ValueError, match="level_classification needs labels"):
        objective.loss(means, jax.random.key(0), Batch(None, None, xs), NONE)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels_are_floats_as_wide_as_the_data(dtype):
    """Under x64, from levels given as integers, and so is the loss."""
    told = []

    def energy_at(params, x, level):
        told.append(level)
        return 0.5 * jnp.sum(x**2) / (params + level**2) + x.size * jnp.log(level)

    with jax.enable_x64(True):
        objective = level_classification(energy_at, lowest=np.array(1), highest=jnp.array(8))
        xs = jnp.ones((4, 2), dtype)
        batch = Batch(None, None, xs)
        found = jax.eval_shape(objective.loss, jnp.ones((), dtype), jax.random.key(0), batch, NONE)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {dtype}
        # The first is that of the check whether the level is used.
        assert {str(level.dtype) for level in told[1:]} == {dtype}
        objective.energy(1.0, xs[0], 0)
        assert isinstance(told[-1], float)


def test_an_energy_that_ignores_the_level_is_refused():
    objective = level_classification(lambda p, x, level: p * jnp.sum(x**2), lowest=0.1, highest=2.0)
    batch = Batch(None, None, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="energy_at ignores the level"):
        jax.eval_shape(objective.loss, 1.0, jax.random.key(0), batch, NONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": -1.0, "highest": 1.0}, "lowest"),
        ({"lowest": 1.0, "highest": 0.5}, "highest must be above"),
        ({"lowest": 0.1, "highest": 1.0, "num_classes": 1}, "num_classes"),
        ({"lowest": 0.1, "highest": 1.0, "num_levels": 3}, "num_levels"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        level_classification(mixture_energy, **options)
