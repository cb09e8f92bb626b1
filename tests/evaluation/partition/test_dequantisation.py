"""The mass of a cell against its integral, by quadrature and in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxebm.evaluation.partition.dequantisation import dequantised_log_likelihood
from jaxebm.evaluation.partition.likelihood import bits_per_dimension

pytestmark = pytest.mark.usefixtures("cheap_compilation")

WIDTH = 0.5
LEVELS = jnp.arange(-2.0, 2.01, WIDTH)
LOG_PARTITION = 0.5 * math.log(2 * math.pi)


def normal_energy(params, x):
    return 0.5 * jnp.sum((x - params) ** 2)


def exact_log_masses(shift):
    law = scipy.stats.norm(shift)
    return np.log(law.cdf(np.asarray(LEVELS) + WIDTH / 2) - law.cdf(np.asarray(LEVELS) - WIDTH / 2))


def test_many_draws_are_the_integral_over_the_cell():
    """The mean of 20,000 draws, whose relative sd in a cell of this width is below .4: 5 sigma are .015."""
    found = dequantised_log_likelihood(
        jax.random.key(0), normal_energy, 0.3, LEVELS[:, None], LOG_PARTITION, WIDTH, num_draws=20_000
    )
    np.testing.assert_allclose(found, exact_log_masses(0.3), atol=0.015)


def test_one_draw_bounds_the_log_mass_from_below_by_the_gap_of_jensen():
    """E[-E(x + u)] = -((x - shift)^2 + h^2 / 12) / 2, which is h^2 / 24 below that of the level itself."""
    n, shift = 20_000, 0.3
    data = jnp.tile(LEVELS[:, None], (n, 1))
    found = dequantised_log_likelihood(
        jax.random.key(1), normal_energy, shift, data, LOG_PARTITION, WIDTH, batch_size=10_000
    )
    by_level = np.asarray(found, np.float64).reshape(n, len(LEVELS))
    offsets = np.asarray(LEVELS, np.float64) - shift
    expected = -0.5 * offsets**2 - WIDTH**2 / 24 - LOG_PARTITION + math.log(WIDTH)
    errors = by_level.std(axis=0) / n**0.5
    assert np.all(np.abs(by_level.mean(axis=0) - expected) < 5 * errors)
    assert np.all(expected < exact_log_masses(shift))


def test_masses_of_all_levels_sum_to_one():
    """Whatever the density between the levels: bits of a model on this scale can be compared."""
    found = dequantised_log_likelihood(
        jax.random.key(2), lambda params, x: jnp.sum(jnp.cos(9 * x)), None, LEVELS[:, None], 0.0, WIDTH,
        num_draws=20_000,
    )  # fmt: skip
    edges = np.linspace(-2 - WIDTH / 2, 2 + WIDTH / 2, 200_001)
    middle = 0.5 * (edges[1:] + edges[:-1])
    log_partition = np.log(np.sum(np.exp(-np.cos(9 * middle))) * (edges[1] - edges[0]))
    # Each of 9 masses has a relative error of about .8 / sqrt(20,000).
    assert np.exp(np.asarray(found, np.float64) - log_partition).sum() == pytest.approx(1.0, abs=0.01)


def test_a_tree_has_the_sum_of_its_leaves_dimensions():
    data = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((3, 1))}
    found = dequantised_log_likelihood(
        jax.random.key(0), lambda params, x: 0.0, None, data, 3 * math.log(4.0), 1.0, batch_size=2
    )
    np.testing.assert_allclose(bits_per_dimension(found, 3), 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bin_width": 0.0}, ValueError, "bin_width=0.0"),
        ({"num_draws": 0}, ValueError, "num_draws=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"data": jnp.zeros((0, 1))}, ValueError, "data has leaves"),
        ({"data": jnp.zeros((2, 1), jnp.int32)}, TypeError, "data has dtype int32"),
    ],
)
def test_errors_name_the_argument(changes, error, message):
    arguments = {"data": jnp.zeros((2, 1)), "bin_width": 1.0} | changes
    data, width = arguments.pop("data"), arguments.pop("bin_width")
    with pytest.raises(error, match=message):
        dequantised_log_likelihood(jax.random.key(0), normal_energy, 0.0, data, 0.0, width, **arguments)
