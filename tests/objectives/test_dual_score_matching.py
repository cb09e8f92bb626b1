"""Dual score matching: its minimiser is -log p at every level, normalised."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxebm.energies import LevelMLP, joint_energy_at, preconditioned_energy
from jaxebm.objectives import Batch, Negatives, dual_score_matching
from jaxebm.objectives.dual_score_matching import scaled_errors
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NONE = Negatives(None, None)
# A skewed mixture in two dimensions: weights, means and scales all differ.
TRUE = {
    "logits": jnp.log(jnp.array([0.7, 0.3])),
    "means": jnp.array([[-1.0, 0.5], [1.5, 0.0]]),
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


def batch_of(xs, labels=None):
    return Batch(None if labels is None else xs, labels, xs)


OBJECTIVE = dual_score_matching(mixture_energy, lowest=0.2, highest=12.0)


@functools.cache
def compiled_gradients(objective):
    """Of the loss over 60 fresh batches of 200, flat: compiled once for all parameters."""

    @jax.jit
    def gradients(params):
        def gradient(rng_key):
            key_data, key_loss = jax.random.split(rng_key)
            batch = batch_of(mixture_sample(key_data, 200))
            found = jax.grad(lambda params: objective.loss(params, key_loss, batch, NONE)[0])(params)
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])

        return jax.lax.map(gradient, jax.random.split(jax.random.key(0), 60))

    return gradients


def gradient_and_error(objective, params):
    """The mean gradient of the loss over fresh batches, and its standard error, each flat."""
    found = np.asarray(compiled_gradients(objective)(params))
    return found.mean(0), found.std(0) / np.sqrt(len(found))


IMAGES = {"level_median": 0.6, "level_spread": 0.8, "data_scale": 1.0}
"""Levels around a median, and a weight that grows with the level: the same minimiser."""


@pytest.mark.parametrize("options", [{}, {"level_weight": 0.0}, {"anchor_weight": 0.0}, IMAGES])
def test_gradient_is_zero_at_the_truth(options):
    objective = OBJECTIVE
    if options:
        objective = dual_score_matching(mixture_energy, lowest=0.2, highest=12.0, **options)
    mean, error = gradient_and_error(objective, TRUE)
    assert np.all(np.abs(mean) <= 4 * error + 1e-6)
    assert np.max(error) < 0.04


def test_gradient_is_not_zero_beside_the_truth():
    for name in ("offset", "slope"):  # which the gradient in x alone does not see
        mean, error = gradient_and_error(OBJECTIVE, TRUE | {name: jnp.float32(0.3)})
        place = sorted(TRUE).index(name) - len(TRUE)
        assert mean[place] > 6 * error[place]


def test_second_target_has_the_derivative_of_a_gaussian_as_its_conditional_mean():
    """Regression of the targets on 1 and y^2 gives d log p / d log sigma of N(0, s^2 + sigma^2)."""
    n, scale, level = 200_000, 0.7, 0.4
    key_x, key_z = jax.random.split(jax.random.key(1))
    x, z = scale * jax.random.normal(key_x, (n,)), jax.random.normal(key_z, (n,))
    y = np.asarray(x + level * z)
    variance = scale**2 + level**2

    def error(guess, z):
        return scaled_errors(jnp.zeros(1), guess / level, z[None], jnp.asarray(level))["level_error"]

    # The error is least at the target: half of its slope at 0, in units of 1 / (2 d).
    target = np.asarray(jax.vmap(lambda z: -jax.grad(error)(0.0, z))(z))
    design = np.stack([np.ones(n), y**2], axis=1)
    found, *_ = np.linalg.lstsq(design, target, rcond=None)
    expected = level**2 * np.array([1 / variance, -1 / variance**2])
    noise = np.sqrt(2.0 * np.diag(np.linalg.inv(design.T @ design)))
    assert np.all(np.abs(found - expected) < 4 * noise)


def test_targets_in_units_of_time():
    """sigma dU/dsigma = 2 t dU/dt: the target d - |z|^2 is that of arXiv 2506.05310 in other units."""
    x, z, level = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, -0.2]), 0.6
    t, y = level**2, x + level * z
    by_time = 3 / (2 * t) - jnp.sum((y - x) ** 2) / (2 * t**2)
    errors = scaled_errors(z / level, 2 * level * by_time, z, jnp.asarray(level))
    chex.assert_trees_all_close(errors, {"score_error": 0.0, "level_error": 0.0}, atol=1e-9)


def test_classes_of_noisy_examples_are_learnt_too():
    """Two Gaussians: the metric is the cross-entropy of the true posterior, and it adds to the loss."""

    def logits_at(params, x, level):
        return -0.5 * (x - jnp.array([-1.0, 1.0])) ** 2 / (1 + level**2) * params

    energy_at = joint_energy_at(logits_at)
    options = {"lowest": 0.5, "highest": 0.5001, "anchor_weight": 0.0}
    labels = jnp.arange(4000) % 2
    xs = 2.0 * labels - 1 + jax.random.normal(jax.random.key(1), labels.shape)
    batch = batch_of(xs, labels)
    plain = dual_score_matching(energy_at, **options)
    classes = dual_score_matching(energy_at, class_weight=0.5, **options)
    key = jax.random.key(2)
    (loss, metrics), (without, _) = (made.loss(1.0, key, batch, NONE) for made in (classes, plain))
    assert float(loss) == pytest.approx(
        float(without) + 0.5 * float(metrics["noisy_cross_entropy"]), rel=1e-5
    )
    points = np.linspace(-12, 12, 4001)
    density = scipy.stats.norm(1, np.sqrt(1.25)).pdf(points)
    exact = np.sum(density * np.log1p(np.exp(-2 * points / 1.25))) * (points[1] - points[0])
    assert float(metrics["noisy_cross_entropy"]) == pytest.approx(exact, abs=5 * 0.6 / np.sqrt(4000))


def test_classes_need_an_energy_of_classes():
    with pytest.raises(ValueError, match=r"class_weight=0.1: energy_at knows no classes"):
        dual_score_matching(mixture_energy, lowest=0.2, highest=12.0, class_weight=0.1)


def test_fit_recovers_a_mixture_with_its_constant():
    start = {
        "logits": jnp.zeros(2),
        "means": jnp.array([[-0.5, 0.0], [0.5, 0.0]]),
        "log_scales": jnp.zeros(2),
        "offset": jnp.asarray(1.0),
        "slope": jnp.asarray(-0.5),
    }
    objective = OBJECTIVE
    rate = optax.cosine_decay_schedule(0.03, 500)
    learn = learner(objective, optimizer=optax.adam(rate), batch_size=256, ema_decay=0.99)
    found = fit(jax.random.key(4), learn, start, mixture_sample, num_steps=500).params
    xs = mixture_sample(jax.random.key(5), 2000)
    energies = jax.vmap(objective.energy, (None, 0, None))
    differences = np.asarray(energies(found, xs, 0) - energies(TRUE, xs, 0))
    # Of 128,000 examples: log p of a point, and its mean, the KL divergence at the lowest level.
    assert np.sqrt(np.mean(differences**2)) < 0.1
    assert abs(differences.mean()) < 0.06


@pytest.mark.slow  # the fit of the mixture shows the mathematics
def test_network_in_two_dimensions_is_normalised():
    network = LevelMLP(None, (24, 24), embedding_width=8)
    energy_at = preconditioned_energy(network.apply, scale=1.0)
    objective = dual_score_matching(energy_at, lowest=0.2, highest=8.0)
    optimizer = optax.adam(optax.cosine_decay_schedule(8e-3, 400))
    learn = learner(objective, optimizer=optimizer, batch_size=128, ema_decay=0.99)
    params = network.init(jax.random.key(0), jnp.zeros(2), 1.0)
    found = fit(jax.random.key(6), learn, params, mixture_sample, num_steps=400).params
    axis = np.linspace(-5.0, 5.0, 101, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    energies = jax.jit(jax.vmap(objective.energy, (None, 0, None)))(found, grid, 0)
    exact = jax.vmap(mixture_energy, (None, 0, None))(TRUE, grid, 0.2)
    density = np.exp(-np.asarray(exact, np.float64))
    kl = np.sum(density * np.asarray(energies - exact, np.float64)) * 0.1**2
    assert np.exp(-np.asarray(energies, np.float64)).sum() * 0.1**2 == pytest.approx(1.0, abs=0.1)
    assert abs(kl) < 0.15


def test_energies_of_classes_learn_from_the_labelled_examples():
    def logits_at(params, x, level):
        variance = 1 + level**2
        squares = jnp.sum((x[None] - params) ** 2, axis=1)
        return -0.5 * squares / variance - jnp.log(2 * jnp.pi * variance)

    means = jnp.array([[-2.0, 0.0], [1.0, 1.0]])
    objective = dual_score_matching(joint_energy_at(logits_at), lowest=0.1, highest=20.0)
    labels = jnp.arange(1000) % 2
    xs = means[labels] + jax.random.normal(jax.random.key(7), (1000, 2))

    @jax.jit
    def gradients(rng_key):
        return jax.grad(lambda p: objective.loss(p, rng_key, batch_of(xs, labels), NONE)[0])(means)

    assert jnp.max(jnp.abs(gradients(jax.random.key(8)))) < 0.05
    assert float(objective.energy(means, means[1], 1)) == pytest.approx(float(np.log(2 * np.pi * 1.01)), 1e-5)
    with pytest.raises(ValueError, match="dual_score_matching needs labels"):
        objective.loss(means, jax.random.key(0), batch_of(xs), NONE)


def test_positions_may_be_pytrees():
    def energy_at(params, x, level):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)) * params / (1 + level**2)

    xs = {"a": jnp.ones((4, 3)), "b": (jnp.ones(4, jnp.bfloat16),)}
    objective = dual_score_matching(energy_at, lowest=0.1, highest=2.0)
    loss, metrics = jax.jit(objective.loss)(0.5, jax.random.key(0), batch_of(xs), NONE)
    chex.assert_shape([loss, *metrics.values()], ())
    chex.assert_tree_all_finite(metrics)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels_are_floats_as_wide_as_the_data(dtype):
    """Under x64, from levels given as integers, and so is the loss."""
    told = []

    def energy_at(params, x, level):
        told.append(level)
        return 0.5 * jnp.sum(x**2) / (params + level**2) + x.size * jnp.log(level)

    with jax.enable_x64(True):
        objective = dual_score_matching(energy_at, lowest=np.array(1), highest=jnp.array(8))
        xs = jnp.ones((4, 2), dtype)
        batch = Batch(None, None, xs)
        found = jax.eval_shape(objective.loss, jnp.ones((), dtype), jax.random.key(0), batch, NONE)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {dtype}
        # The first is that of the check whether the level is used.
        assert {str(level.dtype) for level in told[1:]} == {dtype}
        objective.energy(1.0, xs[0], 0)
        assert isinstance(told[-1], float)


def test_an_energy_that_ignores_the_level_is_refused():
    objective = dual_score_matching(lambda p, x, level: p * jnp.sum(x**2), lowest=0.1, highest=2.0)
    with pytest.raises(ValueError, match="energy_at ignores the level"):
        jax.eval_shape(objective.loss, 1.0, jax.random.key(0), batch_of(jnp.ones((4, 2))), NONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0.0, "highest": 1.0}, "lowest"),
        ({"lowest": 1.0, "highest": 1.0}, "highest must be above"),
        ({"lowest": 0.1, "highest": 1.0, "level_weight": -1.0}, "level_weight"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        dual_score_matching(mixture_energy, **options)
