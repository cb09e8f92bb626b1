"""A Gaussian of independent entries: its density, draws and noisy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxebm.energies.independent_gaussian import IndependentGaussian

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def test_density_and_draws_are_those_of_the_gaussian():
    gaussian = IndependentGaussian({"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([0.25, 9.0])})
    draws = jax.vmap(gaussian.sample)(jax.random.split(jax.random.key(0), 4000))["a"]
    standard = (np.asarray(draws) - [1.0, -2.0]) / [0.5, 3.0]
    for coordinate in standard.T:
        assert scipy.stats.kstest(coordinate, "norm").pvalue > 1e-3
    found = jax.vmap(gaussian.log_density)({"a": draws[:20]})
    expected = scipy.stats.norm([1.0, -2.0], [0.5, 3.0]).logpdf(draws[:20]).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_noise_adds_its_variance_to_each_entry():
    noisy = IndependentGaussian(jnp.array([1.0, -2.0]), jnp.array([0.25, 9.0])).at_level(2.0)
    x = jnp.array([0.5, 3.0])
    expected = scipy.stats.norm([1.0, -2.0], np.sqrt([4.25, 13.0])).logpdf(x).sum()
    assert float(noisy.log_density(x)) == pytest.approx(expected, rel=1e-6)


def test_narrow_positions_keep_their_dtype_and_a_wide_density():
    gaussian = IndependentGaussian(jnp.zeros(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16)).at_level(0.5)
    drawn = gaussian.sample(jax.random.key(0))
    assert drawn.dtype == jnp.bfloat16
    assert gaussian.log_density(drawn).dtype == jnp.float32
