"""NCE and conditional NCE: exact where every state is listed, within their standard error elsewhere."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies import gaussian, gaussian_mixture, joint_energy, offset_params, with_offset
from jaxebm.objectives import (
    Batch,
    Negatives,
    Proposal,
    conditional_noise_contrastive,
    gaussian_proposal,
    noise_contrastive,
)
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
NONE = Negatives(None, None)

# Two modes of unequal mass and width, no symmetry; weights that sum to 2, so that log Z = log 2.
MIXTURE = gaussian_mixture([0.6, 1.4], [[-1.0, 0.5], [1.5, -0.5]], [0.6, 1.0])
TRUTH = offset_params(MIXTURE.params, math.log(2.0))
WRONG = offset_params(MIXTURE.params._replace(means=MIXTURE.params.means + 0.3), math.log(2.0))


def draw_mixture(rng_key, num_samples):
    return MIXTURE.sample(rng_key, MIXTURE.params, num_samples)


NOISE = gaussian_proposal(draw_mixture(KEY, 500), widening=1.3)

# Eight states, how often the data and the noise hold each: p(x) = counts / 48, q(x) = noise / 48, skewed.
COUNTS = np.array([1, 2, 3, 4, 6, 8, 10, 14])
NOISE_COUNTS = np.array([12, 9, 8, 7, 5, 3, 3, 1])


def listed(counts, times=1):
    return jnp.asarray(np.repeat(np.arange(8.0), times * counts), jnp.float32)[:, None]


def table_energy(params, x):
    return params[x[0].astype(int)]


def listed_noise(ratio):
    return Proposal(
        lambda rng_key, num_samples: listed(NOISE_COUNTS, ratio),
        lambda x: jnp.log(jnp.asarray(NOISE_COUNTS / 48.0))[x[0].astype(int)],
    )


def gradient(objective, params, batch, rng_key=KEY):
    return jax.jit(jax.grad(objective.loss, has_aux=True))(params, rng_key, batch, NONE)[0]


# --- noise-contrastive estimation ---


@pytest.mark.parametrize("ratio", [1, 3])
def test_the_gradient_is_exactly_zero_at_the_truth_of_an_enumerable_model(ratio):
    objective = noise_contrastive(table_energy, listed_noise(ratio), ratio=ratio)
    truth = -jnp.log(COUNTS / 48.0)
    batch = Batch(None, None, listed(COUNTS))
    np.testing.assert_allclose(gradient(objective, truth, batch), 0.0, atol=1e-7)
    # A table of another normalisation, or of another shape, is not the minimum.
    assert np.all(np.abs(gradient(objective, truth + 0.1, batch)) > 1e-4)
    assert np.max(np.abs(gradient(objective, truth + 0.1 * jnp.arange(8), batch))) > 1e-2


def test_the_value_is_the_cross_entropy_of_the_classifier():
    ratio = 3
    objective = noise_contrastive(table_energy, listed_noise(ratio), ratio=ratio, weight=2.0)
    p, q = COUNTS / 48.0, NOISE_COUNTS / 48.0
    posterior = p / (p + ratio * q)
    wanted = -2.0 * (p @ np.log(posterior) + ratio * q @ np.log(1 - posterior))
    right = (p @ (posterior > 0.5) + ratio * q @ (posterior < 0.5)) / (1 + ratio)
    value, metrics = objective.loss(-jnp.log(p), KEY, Batch(None, None, listed(COUNTS)), NONE)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-5)
    np.testing.assert_allclose(metrics["energy_data"], -p @ np.log(p), rtol=1e-5)
    np.testing.assert_allclose(metrics["energy_noise"], -q @ np.log(p), rtol=1e-5)


def test_an_energy_of_classes_learns_the_density_of_each_class():
    # Of each four examples three are of class 0, and each state of the noise meets all four labels.
    counts = np.array([[1, 2, 3, 4, 5, 6, 7, 8], [4, 2, 1, 1, 1, 1, 1, 1]])
    each = [listed(row) for row in counts]
    xs = jnp.concatenate([each[0].reshape(12, 3, 1), each[1].reshape(12, 1, 1)], axis=1).reshape(48, 1)
    labels = jnp.tile(jnp.array([0, 0, 0, 1]), 12)
    noise = np.array([3, 2, 2, 1, 1, 1, 1, 1])
    proposal = Proposal(
        lambda rng_key, num_samples: listed(4 * noise),
        lambda x: jnp.log(jnp.asarray(noise / 12.0))[x[0].astype(int)],
    )

    def logits(params, x):
        return params[:, x[0].astype(int)]

    truth = jnp.log(counts / counts.sum(axis=1, keepdims=True))
    objective = noise_contrastive(joint_energy(logits), proposal)
    batch = Batch(xs, labels, jnp.zeros((48, 1)))
    np.testing.assert_allclose(gradient(objective, truth, batch), 0.0, atol=1e-7)
    assert np.all(np.abs(gradient(objective, truth + 0.1, batch)) > 1e-4)
    assert objective.energy(truth, xs[0], 1) == -truth[1, 0]
    with pytest.raises(ValueError, match="noise_contrastive needs labels"):
        objective.loss(truth, KEY, Batch(None, None, xs), NONE)


@pytest.mark.parametrize("ratio", [1, 4])
def test_the_gradient_is_zero_within_its_error_at_the_truth(gradient_scores, ratio):
    objective = noise_contrastive(with_offset(MIXTURE.energy), NOISE, ratio=ratio)
    assert np.max(np.abs(gradient_scores(objective, TRUTH, draw_mixture))) < 5
    assert np.max(np.abs(gradient_scores(objective, WRONG, draw_mixture))) > 20


def test_a_short_fit_recovers_the_gaussian_and_its_log_partition():
    target = gaussian([1.0, -0.5], [[2.0, 0.8], [0.8, 0.6]])
    data = target.sample(KEY, target.params, 4096)
    objective = noise_contrastive(with_offset(target.energy), gaussian_proposal(data, widening=1.2), ratio=4)
    start = target.params._replace(mean=jnp.zeros(2), precision=jnp.eye(2))
    learn = learner(objective, optimizer=optax.adam(0.02), batch_size=256, ema_decay=0.98)
    params = fit(KEY, learn, offset_params(start), data, num_steps=500).params
    # 4096 examples: the standard error of a mean is 1.4 / 64, and NCE loses some of it.
    np.testing.assert_allclose(params["energy"].mean, target.params.mean, atol=0.1)
    np.testing.assert_allclose(
        np.linalg.inv(params["energy"].precision), np.linalg.inv(target.params.precision), atol=0.2
    )
    found = float(target.log_partition(params["energy"]))
    np.testing.assert_allclose(params["offset"], found, atol=0.05)
    np.testing.assert_allclose(params["offset"], target.log_partition(target.params), atol=0.1)


def test_noise_of_the_energy_itself_cannot_be_told_apart():
    objective = noise_contrastive(lambda params, x: -NOISE.log_density(x), NOISE)
    value, metrics = objective.loss(None, KEY, Batch(None, None, draw_mixture(KEY, 50)), NONE)
    np.testing.assert_allclose(value, 2 * math.log(2), rtol=1e-6)
    assert metrics["accuracy"] == 0.5


# --- conditional noise-contrastive estimation ---


@pytest.mark.parametrize(("noise_scale", "num_samples"), [(0.3, 2), (1.0, 1)])
def test_the_conditional_gradient_is_zero_within_its_error_at_the_truth(
    gradient_scores, noise_scale, num_samples
):
    objective = conditional_noise_contrastive(
        MIXTURE.energy, noise_scale=noise_scale, num_samples=num_samples
    )
    assert np.max(np.abs(gradient_scores(objective, TRUTH["energy"], draw_mixture))) < 5
    assert np.max(np.abs(gradient_scores(objective, WRONG["energy"], draw_mixture))) > 10


def test_small_noise_gives_explicit_score_matching():
    x = np.random.default_rng(1).normal(size=(20_000, 1)).astype(np.float32)
    objective = conditional_noise_contrastive(
        lambda precision, x: 0.5 * precision * jnp.sum(x**2), noise_scale=0.2, num_samples=16
    )
    value, _ = jax.jit(objective.loss)(0.5, KEY, Batch(None, None, x), NONE)
    # Mean of score^2 / 2 - curvature, -0.375. Opposite pairs cancel the noise of the first order.
    wanted = np.mean(0.5**2 * x**2 / 2 - 0.5)
    np.testing.assert_allclose((value - 2 * math.log(2)) * 2 / 0.2**2, wanted, atol=0.01)


def test_a_constant_of_the_energy_cancels():
    objective = conditional_noise_contrastive(with_offset(MIXTURE.energy), noise_scale=0.5)
    found = gradient(objective, TRUTH, Batch(None, None, draw_mixture(KEY, 64)))
    np.testing.assert_allclose(found["offset"], 0.0, atol=1e-6)
    assert np.max(np.abs(found["energy"].means)) > 1e-3


def test_the_conditional_energy_is_compared_within_its_class():
    def logits(params, x):
        return params["constant"] - params["slope"] * jnp.sum(x**2)

    params = {"constant": jnp.array([1.0, -2.0]), "slope": jnp.array([0.5, 2.0])}
    x, labels = jnp.asarray(np.random.default_rng(2).normal(size=(40, 3)), jnp.float32), jnp.arange(40) % 2
    objective = conditional_noise_contrastive(joint_energy(logits), noise_scale=0.5)
    found = gradient(objective, params, Batch(x, labels, x))
    chex.assert_trees_all_close(found["constant"], jnp.zeros(2), atol=1e-6)
    assert np.all(np.abs(found["slope"]) > 1e-3)


# --- both ---


def objectives(energy, data):
    yield noise_contrastive(energy, gaussian_proposal(data))
    yield conditional_noise_contrastive(energy, noise_scale=0.5, num_samples=2)


def test_positions_keep_their_dtypes_and_may_be_any_pytree():
    rng = np.random.default_rng(3)
    data = {
        "a": jnp.asarray(rng.normal(size=(16, 2)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16),
    }

    def energy(params, x):
        assert x["a"].dtype == jnp.float32
        assert x["b"].dtype == jnp.bfloat16
        return params * (jnp.sum(x["a"] ** 2) + x["b"] ** 2)

    for objective in objectives(energy, data):
        value, metrics = jax.jit(objective.loss)(0.5, KEY, Batch(None, None, data), NONE)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert all(np.shape(metric) == () for metric in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"noise_scale": 0.0}, "noise_scale=0.0"), ({"noise_scale": 1.0, "num_samples": 0}, "num_samples=0")],
)
def test_conditional_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        conditional_noise_contrastive(MIXTURE.energy, **options)
