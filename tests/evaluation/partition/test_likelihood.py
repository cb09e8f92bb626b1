"""Likelihoods given an exact log Z, and their code lengths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxebm.energies import gaussian
from jaxebm.evaluation.partition.likelihood import bits_per_dimension, log_likelihood

WIDE, NARROW = gaussian([0.0], [[1.0]]), gaussian([1.0], [[0.25]])


def test_log_likelihood_is_the_exact_log_density():
    data = NARROW.sample(jax.random.key(0), NARROW.params, 7)
    expected = scipy.stats.norm(1.0, 0.5).logpdf(np.asarray(data)[:, 0])
    exact = NARROW.log_partition(NARROW.params)
    for batch_size in (3, 100):
        values = log_likelihood(NARROW.energy, NARROW.params, data, exact, batch_size=batch_size)
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_bits_per_dimension_of_bytes_under_a_uniform_density_are_eight():
    """A uniform density on the 256 cells of width 1/256 has log p = 0, and a byte needs 8 bits."""
    np.testing.assert_allclose(bits_per_dimension(0.0, dimension=3, bin_width=1 / 256), 8.0)
    np.testing.assert_allclose(
        bits_per_dimension(jnp.array([-6.0, 0.0]) * math.log(2), dimension=3), [2.0, 0.0], atol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_likelihood(WIDE.energy, WIDE.params, jnp.zeros((0, 1)), 0.0), "data has leaves"),
        (
            lambda: log_likelihood(WIDE.energy, WIDE.params, jnp.zeros((2, 1)), 0.0, batch_size=0),
            "batch_size=0",
        ),
        (lambda: log_likelihood(lambda params, x: x, (), jnp.zeros((2, 1)), 0.0), r"returned shape \(1,\)"),
        (lambda: bits_per_dimension(0.0, dimension=0), "dimension=0"),
        (lambda: bits_per_dimension(0.0, dimension=1, bin_width=0.0), "bin_width=0.0"),
    ],
)
def test_errors_of_likelihoods_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
