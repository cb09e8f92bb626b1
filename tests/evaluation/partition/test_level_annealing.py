"""Annealing through noise levels, on noisy mixtures and Gaussians whose log Z is known at every level."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxebm.evaluation import (
    interval_of_bounds,
    level_importance_sampling,
    reverse_level_importance_sampling,
)
from jaxebm.samplers import geometric_levels, hmc

OFFSET = 2.5
WEIGHTS, CENTRES, WIDTH = np.array([0.3, 0.7]), np.array([-1.5, 1.0]), 0.2
LEVELS = geometric_levels(5.0, 0.1, 40)
KERNEL = partial(hmc, num_integration_steps=3)
MOMENTS = (
    jnp.full((2,), WEIGHTS @ CENTRES),
    jnp.full((2,), WIDTH**2 + WEIGHTS @ CENTRES**2 - (WEIGHTS @ CENTRES) ** 2),
)


def energy_at(offset, x, level):
    """-log p of two independent coordinates, each a skewed mixture with noise, less the offset log Z."""
    scale = jnp.sqrt(WIDTH**2 + level**2)
    terms = jnp.log(WEIGHTS)[None] + jax.scipy.stats.norm.logpdf(x[:, None], CENTRES[None], scale)
    return -jnp.sum(jax.nn.logsumexp(terms, axis=1)) - offset


def exact_samples(seed, n):
    rng = np.random.default_rng(seed)
    centres = CENTRES[(rng.random((n, 2)) < WEIGHTS[1]).astype(int)]
    return jnp.asarray(centres + np.hypot(WIDTH, 0.1) * rng.normal(size=(n, 2)), jnp.float32)


@pytest.fixture(scope="module")
def both():
    problem = (energy_at, jnp.asarray(OFFSET), *MOMENTS, LEVELS, KERNEL)
    forward = level_importance_sampling(jax.random.key(0), *problem, 400)
    reverse = reverse_level_importance_sampling(jax.random.key(1), *problem, exact_samples(0, 400))
    return forward, reverse


def test_the_energy_of_the_test_is_normalised_but_for_its_offset():
    grid = np.linspace(-8, 8, 4001)
    for level in (0.1, 5.0):
        density = sum(
            w * norm.pdf(grid, c, np.hypot(WIDTH, level)) for w, c in zip(WEIGHTS, CENTRES, strict=True)
        )
        one = -float(energy_at(0.0, jnp.array([0.4, -1.0]), level))
        expected = np.log(np.interp(0.4, grid, density)) + np.log(np.interp(-1.0, grid, density))
        assert one == pytest.approx(expected, abs=1e-3)


def test_both_directions_find_log_z(both):
    for result in both:
        assert float(result.effective_sample_size) > 20
        assert float(result.log_partition) == pytest.approx(OFFSET, abs=5 * float(result.standard_error))


def test_the_interval_holds_log_z_and_is_narrow(both):
    interval = interval_of_bounds(*both, coverage=0.999)
    assert float(interval.low) < OFFSET < float(interval.high)
    assert float(interval.high - interval.low) < 1.5


def test_forward_chains_end_at_the_lowest_level(both):
    """Weighted by w they are draws of it: the mean of each coordinate is that of the mixture."""
    forward, _ = both
    weights = jax.nn.softmax(forward.log_weights)
    mean = np.asarray(weights @ forward.positions)
    spread = float(jnp.sqrt(MOMENTS[1][0] + 0.1**2))
    error = spread / np.sqrt(float(forward.effective_sample_size))
    np.testing.assert_allclose(mean, MOMENTS[0], atol=5 * error)


def test_a_gaussian_costs_no_weight_however_few_levels():
    """The contraction is exact for it: every chain has the same weight, Z itself."""
    variance = jnp.array([0.5, 0.0, 2.0])
    mean = jnp.array([1.0, -1.0, 0.3])

    def gaussian_at(params, x, level):
        return 0.5 * jnp.sum((x - mean) ** 2 / (variance + level**2))

    for levels in (jnp.array([4.0]), jnp.array([4.0, 1.0, 0.2])):
        problem = (gaussian_at, None, mean, variance, levels, KERNEL)
        exact = 0.5 * float(jnp.sum(jnp.log(2 * jnp.pi * (variance + levels[-1] ** 2))))
        forward = level_importance_sampling(jax.random.key(2), *problem, 8)
        spread = jnp.sqrt(variance + levels[-1] ** 2)
        samples = mean[None] + spread[None] * jax.random.normal(jax.random.key(3), (8, 3))
        reverse = reverse_level_importance_sampling(jax.random.key(4), *problem, samples)
        for result in (forward, reverse):
            assert float(result.log_partition) == pytest.approx(exact, abs=1e-4)
            assert float(jnp.std(result.log_weights)) < 1e-4


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"levels": jnp.array([0.1, 1.0])}, ValueError, "must fall"),
        ({"levels": jnp.array([1.0, 0.0])}, ValueError, "levels"),
        ({"variance": jnp.array([-1.0, 1.0])}, ValueError, "variance"),
        ({"variance": jnp.ones(3)}, ValueError, "variance"),
        ({"num_chains": 1}, ValueError, "num_chains=1"),
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"energy_at": lambda params, x: 0.0}, TypeError, "energy_at"),
    ],
)
def test_wrong_arguments_are_named(changed, error, message):
    arguments = {
        "rng_key": jax.random.key(0),
        "energy_at": energy_at,
        "params": jnp.asarray(OFFSET),
        "mean": MOMENTS[0],
        "variance": MOMENTS[1],
        "levels": LEVELS,
        "make_kernel": KERNEL,
        "num_chains": 4,
    } | changed
    with pytest.raises(error, match=message):
        level_importance_sampling(**arguments)


@pytest.mark.parametrize(
    ("samples", "message"), [(jnp.zeros((1, 2)), "exact_samples"), (jnp.zeros((5, 3)), "mean")]
)
def test_wrong_samples_are_named(samples, message):
    with pytest.raises(ValueError, match=message):
        reverse_level_importance_sampling(
            jax.random.key(0), energy_at, jnp.asarray(OFFSET), *MOMENTS, LEVELS, KERNEL, samples
        )
