"""The ring and the double well far from their defaults, in coordinates of their own.

Their defaults are tested with every other target, in `test_analytic.py`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.wells import double_well, ring

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_SAMPLES = 20_000  # as in test_analytic.py, so that one process compiles each sampler once
KOLMOGOROV_BOUND = 2.69  # P(sqrt(n) sup|F_n - F| > 2.69) = 1e-6; the seeds are fixed.


def _make_exact(target):
    """log Z, mean and covariance as one compiled function of the params, for the settings to share."""
    return jax.jit(lambda params: (target.log_partition(params), *target.moments(params)))


@pytest.fixture(scope="module")
def exact_double_well():
    return _make_exact(double_well())


@pytest.fixture(scope="module")
def exact_ring():
    return _make_exact(ring())


@pytest.mark.parametrize(
    ("barrier", "tilt"), [(0.1, 0.0), (0.3, -6.0), (2.0, 30.0), (20.0, 0.5), (5.0, -2.0), (100.0, 0.0)]
)
def test_double_well_far_from_its_defaults(barrier, tilt, exact_double_well, kolmogorov):
    """Wells from flat to narrow, tilts that leave one of them: log Z, moments and sampler still agree."""
    target = double_well(barrier=barrier, separation=3.0, tilt=tilt)
    log_partition, mean, covariance = exact_double_well(target.params)
    nodes = np.linspace(-12, 12, 100_001)
    u = 2 * nodes / 3.0
    energies = barrier * (u**2 - 1) ** 2 - tilt * u / 2
    lowest = energies.min()
    masses = np.exp(lowest - energies) * (nodes[1] - nodes[0])
    probabilities = masses / masses.sum()
    np.testing.assert_allclose(log_partition, np.log(masses.sum()) - lowest, rtol=2e-5)
    np.testing.assert_allclose(mean[0], probabilities @ nodes, atol=1e-4)
    np.testing.assert_allclose(covariance[0, 0], probabilities @ (nodes - float(mean[0])) ** 2, rtol=1e-3)
    samples = np.asarray(target.sample(jax.random.key(3), target.params, NUM_SAMPLES))
    assert kolmogorov(samples[:, 0], nodes, probabilities) < KOLMOGOROV_BOUND


@pytest.mark.parametrize(("radius", "width"), [(0.0, 1.0), (0.5, 0.5), (1.0, 2.0), (5.0, 0.1)])
def test_ring_far_from_its_defaults(radius, width, exact_ring, kolmogorov):
    """In polar coordinates, where the cone at the origin is no obstacle."""
    target = ring(radius=radius, width=width)
    log_partition, mean, covariance = exact_ring(target.params)
    distances = np.linspace(0, radius + 9 * width, 40_001)
    masses = distances * np.exp(-0.5 * ((distances - radius) / width) ** 2) * (distances[1] - distances[0])
    np.testing.assert_allclose(log_partition, np.log(2 * np.pi * masses.sum()), atol=2e-5)
    np.testing.assert_array_equal(mean, np.zeros(2))
    second = masses @ distances**2 / masses.sum()
    np.testing.assert_allclose(covariance, np.eye(2) * second / 2, rtol=1e-4)
    samples = np.asarray(target.sample(jax.random.key(5), target.params, NUM_SAMPLES))
    drawn = np.linalg.norm(samples, axis=1)
    assert kolmogorov(drawn, distances, masses / masses.sum()) < KOLMOGOROV_BOUND
    angles = np.arctan2(samples[:, 1], samples[:, 0])
    line = np.linspace(-np.pi, np.pi, 10_001)
    assert kolmogorov(angles, line, np.full(10_001, 1 / 10_001)) < KOLMOGOROV_BOUND


def test_ring_score_at_the_origin_is_finite():
    chex.assert_trees_all_close(jax.jit(ring().score)(jnp.zeros(2)), jnp.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ring(radius=-1.0), "radius must be finite and at least 0"),
        (lambda: ring(width=0.0), "width must be finite and greater than 0"),
        (lambda: ring(radius=[1.0, 2.0]), r"radius has shape \(2,\)"),  # type: ignore[arg-type]
        (lambda: double_well(barrier=0.0), "barrier must be finite and greater than 0"),
        (lambda: double_well(separation=-1.0), "separation must be finite and greater than 0"),
        (lambda: double_well(tilt=np.inf), "tilt=inf: tilt must be finite"),
        (lambda: double_well(dimension=0), "dimension must be an integer of at least 1"),
        (lambda: ring().target(jnp.zeros(3)), r"x has shape \(3,\): \(2,\) is needed"),
        (lambda: double_well().target(jnp.zeros(())), r"x has shape \(\)"),
        (lambda: ring().sample(jax.random.key(0), ring().params, 0), "num_samples must be an integer"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
