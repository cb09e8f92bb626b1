"""Mixtures and many wells: published log Z, modes and their shares, against closed forms and float64 sums."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.many_modes import (
    gaussian_mixture,
    many_well,
    mode_probabilities,
    nearest_mode,
    random_mixture,
    responsibilities,
    right_hand_probability,
)
from jaxebm.energies.wells import double_well

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_SAMPLES = 20_000
KOLMOGOROV_BOUND = 2.69  # P(sqrt(n) sup|F_n - F| > 2.69) = 1e-6; the seeds are fixed.
LINE = np.linspace(-4, 4, 8001)


def _pair_masses(barrier, separation, tilt):
    """exp(-E) of one pair's first coordinate on LINE, in float64."""
    u = 2 * LINE / separation
    return np.exp(-(barrier * (u**4 - 2 * u**2) - tilt * u / 2))


# Mixtures


def test_mixture_is_stable_far_away():
    target = gaussian_mixture([1.0, 1.0], [[-1.0], [1.0]], [0.1, 0.1])
    energy, score = jax.jit(lambda x: (target.target(x), target.score(x)))(jnp.array([1e3]))
    assert np.isfinite(float(energy))
    np.testing.assert_allclose(score, [-(1e3 - 1.0) / 0.01], rtol=1e-5)


def test_random_mixture_is_what_it_says():
    forty, again, other = random_mixture(), random_mixture(), random_mixture(seed=1)
    means = np.asarray(forty.params.means)
    assert means.shape == (40, 2)
    assert 30 < np.abs(means).max() < 40
    np.testing.assert_array_equal(means, again.params.means)
    assert not np.any(means == np.asarray(other.params.means))
    np.testing.assert_allclose(forty.params.scales, math.log1p(math.e), rtol=1e-6)
    np.testing.assert_allclose(forty.log_partition(forty.params), math.log(40), rtol=1e-6)
    uneven = np.asarray(mode_probabilities(random_mixture(weights="uneven").params))
    np.testing.assert_allclose(uneven[1:] / uneven[:-1], 10 ** (1 / 39), rtol=1e-5)
    given = random_mixture(num_modes=2, extent=1.0, scale=0.1, dimension=5, weights=[1.0, 3.0]).params
    assert given.means.shape == (2, 5)
    np.testing.assert_allclose(mode_probabilities(given), [0.25, 0.75], rtol=1e-6)


@pytest.fixture(scope="module")
def modes():
    """Responsibilities and nearest modes of samples, one program for the mixtures of one shape."""
    return jax.jit(
        lambda params, samples: (
            jax.vmap(responsibilities, (None, 0))(params, samples),
            jax.vmap(nearest_mode, (None, 0))(params, samples),
        )
    )


@pytest.mark.parametrize("extent", [40.0, 2.0])  # modes apart, and modes that overlap
def test_exact_samples_have_the_mode_probabilities(extent, modes):
    target = random_mixture(extent=extent, weights="uneven")
    params = target.params
    samples = target.sample(jax.random.key(11), params, NUM_SAMPLES)
    shares, nearest = (np.asarray(value) for value in modes(params, samples))
    expected = np.geomspace(1, 10, 40) / np.geomspace(1, 10, 40).sum()
    np.testing.assert_allclose(mode_probabilities(params), expected, rtol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)
    deviation = shares.std(axis=0) / np.sqrt(NUM_SAMPLES)
    assert np.all(np.abs(shares.mean(axis=0) - expected) < 5 * deviation)

    log_weights, means, scales = (np.asarray(value, np.float64) for value in params)
    offsets = np.asarray(samples[:50], np.float64)[:, None, :] - means[None]
    log_terms = log_weights - 0.5 * np.sum(offsets**2, axis=2) / scales**2 - 2 * np.log(scales)
    posterior = np.exp(log_terms - log_terms.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares[:50], posterior, atol=1e-4)
    np.testing.assert_array_equal(nearest[:50], np.argmin(np.sum(offsets**2, axis=2), axis=1))


def test_nearest_mode_counts_where_modes_are_apart(modes):
    """Eight deviations apart, so that counts are multinomial: Pearson's sum is chi-square."""
    means = 8.0 * np.array(list(itertools.product(range(8), range(5))))
    weights = np.geomspace(1, 10, 40)
    target = gaussian_mixture(weights, means, np.ones(40))
    samples = target.sample(jax.random.key(12), target.params, NUM_SAMPLES)
    counts = np.bincount(np.asarray(modes(target.params, samples)[1]), minlength=40)
    expected = NUM_SAMPLES * weights / weights.sum()
    pearson = np.sum((counts - expected) ** 2 / expected)
    assert abs(pearson - 39) < 5 * np.sqrt(2 * 39)


def test_nearest_is_in_units_of_the_deviation():
    target = gaussian_mixture([1.0, 1.0], [[0.0], [10.0]], [0.1, 10.0])
    assert int(nearest_mode(target.params, jnp.array([1.0]))) == 1


# Many wells


def test_log_partition_is_the_published_one():
    """Noe et al.'s pair in 32 dimensions: FAB's Z of one first coordinate is 11784.50927."""
    target = many_well()
    log_partition, energies, mean, covariance = jax.jit(
        lambda params, xs: (
            target.log_partition(params),
            jax.vmap(target.energy, (None, 0))(params, xs),
            *target.moments(params),
        )
    )(target.params, np.zeros((1, 32), np.float32))
    published = 16 * (math.log(11784.50927) + 0.5 * math.log(2 * math.pi))
    np.testing.assert_allclose(published, 164.6957, atol=5e-5)
    np.testing.assert_allclose(log_partition, published, rtol=1e-6)
    assert energies[0] == 0

    points = 1.5 * np.random.default_rng(3).normal(size=(64, 32))
    first, second = points[:, 0::2], points[:, 1::2]
    expected = np.sum(first**4 - 6 * first**2 - 0.5 * first + 0.5 * second**2, axis=1)
    energies = jax.jit(jax.vmap(target.target))(np.asarray(points, np.float32))
    np.testing.assert_allclose(energies, expected, rtol=1e-5, atol=1e-4)

    masses = _pair_masses(9.0, 2 * math.sqrt(3), math.sqrt(3))
    probabilities = masses / masses.sum()
    pair_mean = probabilities @ LINE
    pair_variance = probabilities @ (LINE - pair_mean) ** 2
    np.testing.assert_allclose(mean, np.tile([pair_mean, 0.0], 16), rtol=1e-5)
    np.testing.assert_allclose(covariance, np.diag(np.tile([pair_variance, 1.0], 16)), rtol=1e-5)


def test_samples_fill_the_modes_of_four_dimensions(kolmogorov):
    target = many_well(dimension=4)
    samples = np.asarray(target.sample(jax.random.key(5), target.params, NUM_SAMPLES), np.float64)
    assert samples.shape == (NUM_SAMPLES, 4)
    masses = _pair_masses(9.0, 2 * math.sqrt(3), math.sqrt(3))
    probabilities = masses / masses.sum()
    normal = np.exp(-0.5 * (2 * LINE) ** 2)
    for axis in range(4):
        if axis % 2 == 0:
            distance = kolmogorov(samples[:, axis], LINE, probabilities)
        else:
            distance = kolmogorov(samples[:, axis], 2 * LINE, normal / normal.sum())
        assert distance < KOLMOGOROV_BOUND
    right = float(right_hand_probability(target.params))
    shares = np.array([(1 - right) ** 2, (1 - right) * right, right * (1 - right), right**2])
    counts = np.bincount(2 * (samples[:, 0] > 0) + (samples[:, 2] > 0), minlength=4)
    pearson = np.sum((counts - NUM_SAMPLES * shares) ** 2 / (NUM_SAMPLES * shares))
    assert pearson < 30.7  # chi-square of 3: P = 1e-6


def test_right_hand_probability_is_the_integral():
    compiled = jax.jit(right_hand_probability)
    cases = [(9.0, 2 * math.sqrt(3), math.sqrt(3)), (1.0, 2.0, 0.0), (2.0, 2.0, -1.0), (30.0, 3.0, 8.0)]
    for barrier, separation, tilt in cases:
        masses = _pair_masses(barrier, separation, tilt)
        expected = (masses[LINE > 0].sum() + 0.5 * masses[LINE == 0].sum()) / masses.sum()
        params = many_well(2, barrier, separation, tilt).params
        np.testing.assert_allclose(compiled(params), expected, rtol=1e-5, atol=1e-6)
    assert compiled._cache_size() == 1
    assert float(compiled(double_well(tilt=3.0).params)) > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gaussian_mixture([1.0, -1.0], [[0.0], [1.0]], [1.0, 1.0]),
            "weights must be finite and greater",
        ),
        (
            lambda: gaussian_mixture([1.0, 1.0], [[0.0], [1.0]], [1.0, 0.0]),
            "scales must be finite and greater",
        ),
        (lambda: gaussian_mixture([1.0], [[0.0], [1.0]], [1.0, 1.0]), r"weights has shape \(1,\)"),
        (lambda: gaussian_mixture([1.0], [0.0], [1.0]), r"means has shape \(1,\)"),
        (lambda: random_mixture(num_modes=0), "num_modes must be an integer of at least 1"),
        (lambda: random_mixture(extent=0.0), "extent must be finite and greater than 0"),
        (lambda: random_mixture(scale=-1.0), "scale must be finite and greater than 0"),
        (lambda: random_mixture(dimension=0), "dimension must be an integer of at least 1"),
        (lambda: random_mixture(seed=-1), "seed=-1: seed must be an integer from 0 to 4294967295"),
        (lambda: random_mixture(weights="odd"), 'weights=\'odd\': "equal", "uneven" or 40 numbers'),
        (lambda: random_mixture(weights=[1.0, 2.0]), r"weights has shape \(2,\): \(40,\), one for each mode"),
        (lambda: random_mixture(num_modes=1, weights=[0.0]), "weights must be finite and greater than 0"),
        (lambda: nearest_mode(random_mixture().params, jnp.zeros(3)), r"x has shape \(3,\): \(2,\) is"),
        (lambda: responsibilities(random_mixture().params, jnp.zeros(3)), r"x has shape \(3,\): \(2,\) is"),
        (lambda: many_well(dimension=5), "dimension=5: dimension must be even"),
        (lambda: many_well(dimension=0), "dimension must be an integer of at least 1"),
        (lambda: many_well(barrier=0.0), "barrier must be finite and greater than 0"),
        (lambda: many_well().target(jnp.zeros(3)), r"x has shape \(3,\): \(dimension,\), an even number"),
        (lambda: many_well().sample(jax.random.key(0), many_well().params, 0), "num_samples must be an"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
