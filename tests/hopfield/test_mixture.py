"""The modern network as a density, against quadrature and enumeration; bounds are stated in sigmas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxebm.evaluation import grid, log_partition_on_grid
from jaxebm.hopfield.family import update
from jaxebm.hopfield.memories import classical, epanechnikov, modern, sparse
from jaxebm.hopfield.mixture import (
    as_epanechnikov_mixture,
    as_gaussian_mixture,
    density_energy,
    marginalise,
)
from jaxebm.hopfield.retrieval import retrieve, trajectory

pytestmark = pytest.mark.usefixtures("cheap_compilation")

PLANE = np.array([[1.2, 0.3], [-0.5, 0.9], [0.1, -0.4], [-1.0, -1.1]])
"""Norms from 0.4 to 1.5: in the published network the masses differ."""
BIAS = np.array([0.7, -0.2])
NUM_SAMPLES = 20_000

networks = pytest.mark.parametrize(
    "options",
    [{}, {"equal_weights": True}, {"bias": BIAS}, {"equal_weights": True, "bias": BIAS}],
    ids=["published", "equal_weights", "bias", "equal_weights_bias"],
)


def assert_moments(samples, mean, covariance):
    """The mean and every entry of the covariance, each within five of its own standard errors."""
    samples = np.asarray(samples, np.float64)
    centred = samples - np.asarray(mean, np.float64)
    error = np.std(samples, axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(centred.mean(0)) < 5 * error)
    products = centred[:, :, None] * centred[:, None, :]
    error = np.std(products, axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * error)


@networks
def test_the_network_is_a_gaussian_mixture(options):
    """Energy, log Z by quadrature, score and samples."""
    beta = 2.5
    points = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)), jnp.float32)
    box, log_cell_volume = grid(-6.0, 6.0, 96)

    @jax.jit
    def known(memory):
        target = as_gaussian_mixture(memory)
        energies = jax.vmap(density_energy, (None, 0))(memory, points)
        mixture_energies = jax.vmap(target.energy, (None, 0))(target.params, points)
        scores = jax.vmap(target.score)(points)
        steps = memory.beta * (jax.vmap(update, (None, 0))(memory, points) - points)
        quadrature = log_partition_on_grid(density_energy, memory, box, log_cell_volume)
        samples = target.sample(jax.random.key(1), target.params, NUM_SAMPLES)
        exact = target.log_partition(target.params), target.moments(target.params)
        log_density = jax.vmap(target.log_density)(points)
        return energies, mixture_energies, scores, steps, quadrature, samples, exact, log_density

    energies, mixture_energies, scores, steps, quadrature, samples, exact, log_density = known(
        modern(PLANE, beta, **options)
    )
    log_partition, (mean, covariance) = exact
    np.testing.assert_allclose(mixture_energies, energies, atol=2e-5)
    np.testing.assert_allclose(scores, steps, atol=2e-5)
    assert float(log_partition) == pytest.approx(float(quadrature), abs=2e-5)
    np.testing.assert_allclose(log_density, -energies - quadrature, atol=5e-5)
    assert_moments(samples, mean, covariance)


def test_log_z_is_the_published_formula():
    """log Z = -ln K - beta M^2 / 2 + (D/2) ln(2 pi / beta) + ln sum e^(beta |xi|^2 / 2), D = 64."""
    patterns, beta = np.random.default_rng(2).normal(size=(9, 64)), 0.3
    norms = np.sum(patterns**2, axis=1)
    published = (
        -np.log(9)
        - beta * norms.max() / 2
        + 32 * np.log(2 * np.pi / beta)
        + scipy.special.logsumexp(beta * norms / 2)
    )

    @jax.jit
    def exact(memory):
        target = as_gaussian_mixture(memory)
        return target.log_partition(target.params), target.moments(target.params)

    log_partition, (mean, covariance) = exact(modern(patterns, beta))
    assert float(log_partition) == pytest.approx(published, rel=1e-6)
    weights = scipy.special.softmax(beta * norms / 2)
    np.testing.assert_allclose(mean, weights @ patterns, atol=1e-5)
    offsets = patterns - weights @ patterns
    np.testing.assert_allclose(covariance, (weights * offsets.T) @ offsets + np.eye(64) / beta, atol=1e-4)


def test_a_traced_network_is_a_mixture_too():
    """In jit, vmap and grad, even where the first mixture of a dimension is made while tracing."""
    patterns = jnp.asarray(np.random.default_rng(3).normal(size=(4, 11)), jnp.float32)
    betas = jnp.array([0.5, 1.0, 2.0])

    def log_partition(beta):
        target = as_gaussian_mixture(modern(patterns, beta))
        return target.log_partition(target.params)

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_partition)))(betas)
    norms = np.sum(np.asarray(patterns, np.float64) ** 2, axis=1)

    def published(beta):
        masses = scipy.special.logsumexp(beta * norms / 2)
        return -np.log(4) - beta * norms.max() / 2 + 5.5 * np.log(2 * np.pi / beta) + masses

    exact = np.array([published(float(beta)) for beta in betas])
    quotients = np.array([(published(b + 1e-5) - published(b - 1e-5)) / 2e-5 for b in (0.5, 1.0, 2.0)])
    np.testing.assert_allclose(values, exact, rtol=1e-5)
    np.testing.assert_allclose(slopes, quotients, rtol=1e-3)
    assert float(log_partition(2.0)) == pytest.approx(exact[2], rel=1e-5)


@pytest.mark.parametrize(("dimension", "num_points"), [(1, 20_000), (2, 700)])
def test_the_epanechnikov_network_is_a_mixture_of_balls(dimension, num_points):
    """Some of the balls meet: Z is their sum all the same."""
    patterns, beta = PLANE[:, :dimension], 2 / 0.9**2
    box, log_cell_volume = grid(-2.5, 2.5, num_points, dimension)

    @jax.jit
    def known(memory):
        target = as_epanechnikov_mixture(memory)
        samples = target.sample(jax.random.key(4), target.params, NUM_SAMPLES)
        exact = target.log_partition(target.params), target.moments(target.params)
        quadrature = log_partition_on_grid(target.energy, target.params, box, log_cell_volume)
        return samples, exact, quadrature, jax.vmap(target.energy, (None, 0))(memory, samples[:100])

    samples, (log_partition, moments), quadrature, energies = known(epanechnikov(patterns, beta, epsilon=0.0))
    assert float(log_partition) == pytest.approx(float(quadrature), abs=1e-4)
    assert_moments(samples, *moments)
    heights = 1 - beta * np.sum((np.asarray(samples[:100, None], np.float64) - patterns) ** 2, axis=2) / 2
    np.testing.assert_allclose(np.exp(-energies), np.maximum(heights, 0).sum(1), rtol=1e-3, atol=1e-5)


def test_epanechnikov_samples_have_the_radial_law_of_a_paraboloid():
    """p(r) ~ r^(D-1) (1 - r^2 / R^2), so (r / R)^2 has Beta's law with D/2 and 2; directions are uniform."""
    dimension = 7
    centre = np.linspace(-1, 2, dimension)
    target = as_epanechnikov_mixture(epanechnikov(centre[None, :], 0.5, epsilon=0.0))
    samples = np.asarray(target.sample(jax.random.key(5), target.params, 5000), np.float64) - centre
    radii = np.linalg.norm(samples, axis=1)
    assert radii.max() <= 2 * (1 + 1e-5)
    statistic = scipy.stats.kstest((radii / 2) ** 2, scipy.stats.beta(dimension / 2, 2).cdf).statistic
    assert np.sqrt(5000) * statistic < 2.69  # of probability 1e-6
    mean, covariance = target.moments(target.params)
    np.testing.assert_allclose(mean, centre, atol=1e-6)
    assert_moments(samples + centre, mean, covariance)


def test_mixtures_are_of_their_own_networks():
    with pytest.raises(ValueError, match=r"made by jaxebm.hopfield.modern is needed"):
        as_gaussian_mixture(sparse(PLANE, 1.0))
    with pytest.raises(ValueError, match=r"memory has Quadratic\(\)"):
        as_gaussian_mixture(classical([[1, -1]]))
    with pytest.raises(ValueError, match=r"made by jaxebm.hopfield.epanechnikov is needed"):
        as_epanechnikov_mixture(modern(PLANE, 1.0))
    with pytest.raises(ValueError, match=r"epsilon=1e-06: .* infinite"):
        as_epanechnikov_mixture(epanechnikov(PLANE, 1.0))
    with pytest.raises(ValueError, match=r"x has shape \(3,\): \(2,\)"):
        density_energy(modern(PLANE, 1.0), jnp.zeros(3))


OBSERVED = np.array([True, False, True, False, False])


@networks
def test_marginal_weights_are_those_of_the_marginal_mixture(options):
    """p(mu | x_o), E[xi + b | x_o] and p(x_o), component by component in float64; vmapped over masks."""
    rng, beta = np.random.default_rng(6), 1.3
    patterns, x = rng.normal(size=(6, 5)), rng.normal(size=(20, 5))
    bias = rng.normal(size=5) if "bias" in options else np.zeros(5)
    equal = options.get("equal_weights", False)
    memory = modern(patterns, beta, equal_weights=equal, bias=bias if "bias" in options else None)
    masks = np.stack([OBSERVED, ~OBSERVED, np.ones(5, bool)])

    @jax.jit
    def recall(memory, masks, x):
        def one(mask):
            part = marginalise(memory, mask)
            weights, updates = jax.vmap(part.weights)(x), jax.vmap(part.update)(x)
            return weights, updates, jax.vmap(part.energy)(x), jax.vmap(part.residual)(x)

        return jax.vmap(one)(masks), jax.vmap(memory.update)(x), jax.vmap(memory.energy)(x)

    parts, network_updates, network_energies = recall(memory, masks, jnp.asarray(x, jnp.float32))
    centres = patterns + bias
    log_mass = 0.0 if equal else beta * np.sum(centres**2, axis=1) / 2
    for mask, weights, updates, energies, residuals in zip(masks, *parts, strict=True):
        seen = (x[:, None, :] - centres)[:, :, mask]
        log_joint = log_mass - beta * np.sum(seen**2, axis=2) / 2
        expected = scipy.special.softmax(log_joint, axis=1)
        np.testing.assert_allclose(weights, expected, atol=1e-5)
        np.testing.assert_allclose(updates, expected @ centres, atol=1e-5)
        np.testing.assert_allclose(residuals, x - expected @ centres, atol=1e-5)
        differences = scipy.special.logsumexp(log_joint, axis=1) + beta * np.asarray(energies, np.float64)
        assert np.ptp(differences) < 1e-4

    # With everything observed it is the network.
    np.testing.assert_allclose(parts[1][-1], network_updates, atol=1e-5)
    assert np.ptp(np.asarray(parts[2][-1]) - np.asarray(network_energies)) < 1e-5


@networks
def test_the_marginal_density_is_the_integral_over_what_is_missing(options):
    """log of the integral of exp(-beta E(x0, x1)) over x1, by quadrature, for many x0."""
    memory = modern(PLANE, 2.5, **options)
    seen = jnp.linspace(-2, 2, 9)
    axis, log_width = grid(-7.0, 7.0, 300, dimension=1)

    @jax.jit
    def both(memory):
        part = marginalise(memory, jnp.array([True, False]))

        def integral(x0):
            energies = jax.vmap(lambda x1: density_energy(memory, jnp.stack([x0, x1])))(axis[:, 0])
            return jax.nn.logsumexp(-energies) + log_width

        marginal = jax.vmap(lambda x0: -memory.beta * part.energy(jnp.stack([x0, jnp.zeros(())])))(seen)
        return jax.vmap(integral)(seen), marginal

    integrals, marginal = both(memory)
    assert np.ptp(integrals) > 1
    assert np.ptp(np.asarray(integrals) - np.asarray(marginal)) < 5e-5


def test_what_the_query_holds_under_the_mask_has_no_effect():
    rng = np.random.default_rng(7)
    memory = modern(rng.normal(size=(6, 5)), 1.3)
    x = jnp.asarray(rng.normal(size=5), jnp.float32)
    other = jnp.where(OBSERVED, x, 1e3)

    @jax.jit
    def results(memory, x):
        part = marginalise(memory, OBSERVED)
        values = part.energy(x), part.weights(x), part.update(x)
        return values, retrieve(part, x).state, jax.grad(part.energy)(x), jax.jacobian(part.update)(x)

    values, state, slope, jacobian = results(memory, x)
    other_values, other_state, _, _ = results(memory, other)
    np.testing.assert_allclose(state, other_state, atol=1e-6)
    for value, same in zip(values, other_values, strict=True):
        np.testing.assert_array_equal(value, same)
    np.testing.assert_array_equal(slope[~OBSERVED], 0)
    np.testing.assert_array_equal(jacobian[:, ~OBSERVED], 0)
    assert np.all(slope[OBSERVED] != 0)


@pytest.mark.parametrize("dimension", [64, 784])
def test_grey_images_are_recalled_from_a_random_half(dimension):
    """1000 memories, bright and dark, another half missing of each: zeros filled in would favour the dark."""
    rng, num_queries = np.random.default_rng(9), 1000
    patterns = rng.uniform(0.3, 1, (1000, 1)) * rng.random((1000, dimension))
    masks = rng.permuted(np.tile(np.arange(dimension) < dimension // 2, (num_queries, 1)), axis=1)
    queries = np.where(masks, patterns + 0.03 * rng.normal(size=patterns.shape), 0)

    @jax.jit
    def recalled(memory, masks, queries):
        def one(mask, query):
            return trajectory(marginalise(memory, mask), query, 1)[0][-1]

        def found(states):
            return jnp.mean(jnp.max(jnp.abs(states - memory.patterns), axis=1) < 0.01)

        return found(jax.vmap(one)(masks, queries)), found(jax.vmap(memory.update)(queries))

    memory = modern(patterns, 500.0, equal_weights=True)
    marginal, filled = recalled(memory, masks, queries.astype(np.float32))
    assert float(marginal) >= 0.99
    assert float(filled) < 0.5


def test_masks_are_checked():
    memory = modern(PLANE, 1.0)
    with pytest.raises(ValueError, match="observed is False everywhere"):
        marginalise(memory, jnp.zeros(2, bool))
    with pytest.raises(TypeError, match="observed has dtype float32: booleans"):
        marginalise(memory, jnp.ones(2))
    with pytest.raises(ValueError, match=r"observed has shape \(3,\): \(2,\)"):
        marginalise(memory, jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"made by jaxebm.hopfield.modern is needed"):
        marginalise(sparse(PLANE, 1.0), jnp.ones(2, bool))
