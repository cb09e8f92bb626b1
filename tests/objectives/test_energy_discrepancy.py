"""Energy discrepancy against Gauss-Hermite quadrature, and on exact samples at the true parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import ANALYTIC_TARGETS, joint_energy
from jaxebm.objectives import Batch, Negatives, energy_discrepancy

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY, NONE = jax.random.key(0), Negatives(None, None)


def evaluated(objective, params, xs, rng_key=KEY):
    """``((loss, metrics), gradient)`` of a batch without labels."""
    return jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(
        params, rng_key, Batch(None, None, xs), NONE
    )


def energy(params, x):
    """Skewed on the line."""
    return jnp.exp(params[0] * x) - params[1] * x


PARAMS, T = jnp.array([0.5, 1.5]), 0.3


@pytest.mark.parametrize(("num_samples", "stabilisation"), [(2, 0.4), (1, 0.0)])
def test_the_expected_loss_and_its_gradient_are_those_of_quadrature(num_samples, stabilisation):
    """All noises of one example by Gauss-Hermite quadrature, 24 points for each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights, shape = weights / weights.sum(), (24,) * (1 + num_samples)
    noises = jnp.asarray(np.stack(np.meshgrid(*(1 + num_samples) * [nodes], indexing="ij"), axis=-1))
    products = jnp.asarray(np.prod(np.meshgrid(*(1 + num_samples) * [weights], indexing="ij"), axis=0))
    x = jnp.array(0.4)

    def exact(params):
        points = x + jnp.sqrt(T) * (noises[..., :1] + noises[..., 1:])
        log_ratios = energy(params, x) - energy(params, points)
        log_stabilisation = jnp.full((*shape, 1), jnp.log(stabilisation) if stabilisation else -1e9)
        log_sum = jax.nn.logsumexp(jnp.concatenate([log_stabilisation, log_ratios], axis=-1), axis=-1)
        return jnp.sum(products.reshape(shape) * (log_sum - jnp.log(num_samples)))

    objective = energy_discrepancy(
        energy, noise_variance=T, num_samples=num_samples, stabilisation=stabilisation, weight=2.0
    )
    found = jax.vmap(lambda rng_key: evaluated(objective, PARAMS, jnp.full(500, x), rng_key))
    (loss, metrics), gradient = found(jax.random.split(KEY, 100))
    value, slope = jax.jit(jax.value_and_grad(exact))(PARAMS)
    for many, one in ((loss, value), (gradient, slope)):
        error = np.std(many, axis=0, ddof=1) / np.sqrt(len(many))
        assert np.all(np.abs(np.mean(many, axis=0) - 2.0 * one) < 4.5 * error)
    np.testing.assert_allclose(metrics["energy_data"], energy(PARAMS, x), rtol=1e-5)
    gap = metrics["energy_data"] - metrics["energy_perturbed"]
    np.testing.assert_allclose(metrics["energy_gap"], gap, rtol=1e-6)


@pytest.mark.parametrize(("name", "num_samples"), [("gaussian", 1), ("skewed", 4), ("gaussian_mixture", 2)])
def test_with_stabilisation_1_the_gradient_is_zero_at_the_true_parameters(name, num_samples, gradient_scores):
    """For any number of points, and not for any other stabilisation."""
    target = ANALYTIC_TARGETS[name]()

    def scores(**options):
        objective = energy_discrepancy(target.energy, num_samples=num_samples, **options)

        def sample(rng_key, num_samples):
            return target.sample(rng_key, target.params, num_samples)

        return np.abs(gradient_scores(objective, target.params, sample)).max()

    assert scores(noise_variance=0.8) < 5
    if name == "gaussian":
        assert scores(noise_variance=0.8, stabilisation=0.1) > 10


def test_energies_far_apart_stay_finite():
    def steep(params, x):
        return params * jnp.sum(x)

    objective = energy_discrepancy(steep, num_samples=3)
    found = evaluated(objective, jnp.array(1e5), jnp.ones((4, 2)))
    chex.assert_tree_all_finite(found)


def test_positions_may_be_trees_and_keep_their_dtype():
    seen = []

    def of_tree(params, x):
        seen.append((x["a"].dtype, x["b"].dtype))
        return params * (jnp.sum(x["a"] ** 2) + jnp.sum(x["b"].astype(jnp.float32) ** 2))

    with jax.enable_x64(True):
        xs = {"a": jnp.ones((6, 2, 2), jnp.float32), "b": jnp.zeros(6, jnp.bfloat16)}
        (loss, metrics), gradient = evaluated(energy_discrepancy(of_tree), jnp.float32(0.5), xs)
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("bfloat16"))}
    assert {value.dtype for value in (loss, gradient, *metrics.values())} == {jnp.dtype("float32")}
    assert float(metrics["energy_data"]) == 2.0


def test_the_energy_of_a_class_learns_from_the_examples_of_the_class():
    def logits(params, x):
        return -0.5 * jnp.sum((x[None] - params) ** 2, axis=1)

    means, labels = jnp.array([[0.0, 0.0], [3.0, 1.0]]), jnp.arange(200) % 2
    objective = energy_discrepancy(joint_energy(logits))
    batch = Batch(means[labels], labels, jnp.full((7, 2), jnp.nan))
    loss = jax.jit(lambda params: objective.loss(params, KEY, batch, NONE)[0])
    assert float(loss(means)) < float(loss(means[::-1])) - 1.0
    assert float(objective.energy(means, means[1], 1)) == 0.0
    with pytest.raises(ValueError, match="energy_discrepancy needs labels"):
        objective.loss(means, KEY, Batch(None, None, means), NONE)


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: energy_discrepancy(energy, noise_variance=0.0), ValueError, "noise_variance=0.0"),
        (lambda: energy_discrepancy(energy, num_samples=0), ValueError, "num_samples=0"),
        (lambda: energy_discrepancy(energy, stabilisation=-1.0), ValueError, "stabilisation=-1.0"),
        (lambda: energy_discrepancy(energy, weight=-1.0), ValueError, "weight=-1.0"),
        (lambda: energy_discrepancy(lambda x: x), TypeError, "energy"),
    ],
)
def test_bad_options_are_refused_when_the_objective_is_made(make, error, named):
    with pytest.raises(error, match=named):
        make()
