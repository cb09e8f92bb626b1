"""The self-normalised likelihood: b = log Z exactly where Z_hat is exact, and its gradient at the truth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import gaussian_mixture, joint_energy, offset_params, with_offset
from jaxebm.objectives import Batch, Negatives, Proposal, gaussian_proposal, self_normalised

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
NONE = Negatives(None, None)
MIXTURE = gaussian_mixture([0.6, 1.4], [[-1.0, 0.5], [1.5, -0.5]], [0.6, 1.0])


def draw_mixture(rng_key, num_samples):
    return MIXTURE.sample(rng_key, MIXTURE.params, num_samples)


def grid_proposal(low, high, length):
    """The midpoints of a grid, each once, under the uniform density: Z_hat is the sum of quadrature."""
    edges = jnp.linspace(low, high, length + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    xs = jnp.stack(jnp.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    return Proposal(lambda rng_key, num_samples: xs, lambda x: -2 * jnp.log(high - low)), length**2


def gradient(objective, params, batch):
    return jax.jit(jax.grad(objective.loss, has_aux=True))(params, KEY, batch, NONE)[0]


def test_the_optimum_of_the_offset_is_log_z_where_z_hat_is_exact():
    proposal, num_samples = grid_proposal(-8.0, 8.0, 64)
    objective = self_normalised(with_offset(MIXTURE.energy), proposal, num_samples=num_samples)
    batch = Batch(None, None, draw_mixture(KEY, 100))

    @jax.jit
    def descend(offset):
        def step(offset, _):
            params = offset_params(MIXTURE.params, offset)
            slope = jax.grad(objective.loss, has_aux=True)(params, KEY, batch, NONE)[0]["offset"]
            return offset - slope, None

        return jax.lax.scan(step, offset, length=20)[0]

    found = descend(jnp.float32(1.5))
    np.testing.assert_allclose(found, math.log(2.0), atol=1e-5)
    # There the loss is the negative log-likelihood, and above it elsewhere.
    at, metrics = objective.loss(offset_params(MIXTURE.params, found), KEY, batch, NONE)
    wanted = -np.mean(jax.vmap(MIXTURE.log_density)(batch.x_data))
    np.testing.assert_allclose(at, wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["log_mass"], 0.0, atol=1e-5)
    np.testing.assert_allclose(metrics["log_likelihood"], -wanted, rtol=1e-5)
    for other in (0.0, 2.0):
        value, metrics = objective.loss(offset_params(MIXTURE.params, other), KEY, batch, NONE)
        assert value > at + 0.1
        np.testing.assert_allclose(metrics["log_mass"], math.log(2.0) - other, atol=1e-5)
        np.testing.assert_allclose(metrics["log_likelihood"], -wanted, rtol=1e-5)


COUNTS = np.array([1, 2, 3, 4, 6, 8, 10, 14])
NOISE_COUNTS = np.array([12, 9, 8, 7, 5, 3, 3, 1])


def listed(counts):
    return jnp.asarray(np.repeat(np.arange(8.0), counts), jnp.float32)[:, None]


LISTED = Proposal(
    lambda rng_key, num_samples: listed(NOISE_COUNTS),
    lambda x: jnp.log(jnp.asarray(NOISE_COUNTS / 48.0))[x[0].astype(int)],
)


def test_the_gradient_is_exactly_zero_at_the_truth_of_an_enumerable_model():
    p = COUNTS / 48.0
    objective = self_normalised(
        lambda params, x: params[x[0].astype(int)], LISTED, num_samples=48, weight=2.0
    )
    batch = Batch(None, None, listed(COUNTS))
    truth = -jnp.log(p)
    np.testing.assert_allclose(gradient(objective, truth, batch), 0.0, atol=1e-6)
    # 2 (p - exp(-U)) elsewhere.
    np.testing.assert_allclose(
        gradient(objective, truth + 0.5, batch), 2 * p * (1 - math.exp(-0.5)), rtol=1e-4
    )
    value, metrics = objective.loss(truth, KEY, batch, NONE)
    np.testing.assert_allclose(value, -2 * p @ np.log(p), rtol=1e-5)
    weights = p / NOISE_COUNTS * 48
    q = NOISE_COUNTS / 48
    np.testing.assert_allclose(metrics["sample_efficiency"], (q @ weights) ** 2 / (q @ weights**2), rtol=1e-5)


def test_an_energy_of_classes_learns_the_density_of_each_class():
    # Of each four examples three are of class 0, and each state of the samples meets all four labels.
    counts = np.array([[1, 2, 3, 4, 5, 6, 7, 8], [4, 2, 1, 1, 1, 1, 1, 1]])
    each = [listed(row) for row in counts]
    xs = jnp.concatenate([each[0].reshape(12, 3, 1), each[1].reshape(12, 1, 1)], axis=1).reshape(48, 1)
    noise = np.array([3, 2, 2, 1, 1, 1, 1, 1])
    proposal = Proposal(
        lambda rng_key, num_samples: listed(4 * noise),
        lambda x: jnp.log(jnp.asarray(noise / 12.0))[x[0].astype(int)],
    )
    objective = self_normalised(
        joint_energy(lambda params, x: params[:, x[0].astype(int)]), proposal, num_samples=48
    )
    truth = jnp.log(counts / counts.sum(axis=1, keepdims=True))
    batch = Batch(xs, jnp.tile(jnp.array([0, 0, 0, 1]), 12), xs)
    np.testing.assert_allclose(gradient(objective, truth, batch), 0.0, atol=1e-6)
    assert np.all(np.abs(gradient(objective, truth + 0.1, batch)) > 1e-4)


def test_the_gradient_is_zero_within_its_error_at_the_truth(gradient_scores):
    noise = gaussian_proposal(draw_mixture(KEY, 500), widening=1.3)
    objective = self_normalised(with_offset(MIXTURE.energy), noise, num_samples=512)
    truth = offset_params(MIXTURE.params, math.log(2.0))
    moved = offset_params(MIXTURE.params._replace(means=MIXTURE.params.means + 0.3), math.log(2.0))
    assert np.max(np.abs(gradient_scores(objective, truth, draw_mixture))) < 5
    assert np.max(np.abs(gradient_scores(objective, moved, draw_mixture))) > 20


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match="num_samples=0"):
        self_normalised(MIXTURE.energy, LISTED, num_samples=0)
    with pytest.raises(ValueError, match="weight=-1"):
        self_normalised(MIXTURE.energy, LISTED, weight=-1.0)
