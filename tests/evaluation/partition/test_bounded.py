"""Densities on a box against quadrature over the box."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.partition.bounded import restrict_to_box
from jaxebm.evaluation.partition.importance_sampling import log_partition_interval
from jaxebm.evaluation.partition.path_fitting import linear_schedule
from jaxebm.evaluation.partition.quadrature import grid, log_partition_on_grid
from jaxebm.samplers import hmc

pytestmark = pytest.mark.usefixtures("cheap_compilation")

LOW, HIGH = -1.0, 0.5


def rising_energy(params, x):
    """Not integrable over the plane, skewed, and highest in density at a corner of the box."""
    return -params * (2 * x[0] + x[1] + 0.5) + jnp.sin(3 * x[0] * x[1])


def test_the_interval_holds_the_integral_over_the_box():
    """Four standard errors about a log Z by quadrature; reverse chains start from exact samples of a grid."""
    problem = restrict_to_box(rising_energy, (2,), LOW, HIGH)
    points, log_cell = grid(LOW, HIGH, 400)
    energies = np.asarray(jax.vmap(rising_energy, (None, 0))(1.5, points), np.float64)
    exact = float(log_partition_on_grid(rising_energy, 1.5, points, log_cell))
    probabilities = np.exp(-energies) / np.exp(-energies).sum()
    rng = np.random.default_rng(0)
    x = np.asarray(points)[rng.choice(len(points), 1_000, p=probabilities)]
    x = x + rng.uniform(-0.5, 0.5, x.shape) * (HIGH - LOW) / 400
    samples = problem.transform.inverse(None, jnp.asarray(x, jnp.float32))
    interval = log_partition_interval(
        jax.random.key(0), problem.energy, 1.5, problem.base,
        partial(hmc, step_size=0.8, num_integration_steps=3),
        linear_schedule(30), 1_000, samples, coverage=0.99994,
    )  # fmt: skip
    assert float(interval.low) < exact < float(interval.high)
    assert float(interval.high - interval.low) < 0.2
    assert abs(exact - float(problem.base.log_partition(None))) > 0.3
    ends, _ = jax.vmap(problem.transform, (None, 0))(None, interval.forward.positions)
    assert float(ends.min()) >= LOW
    assert float(ends.max()) <= HIGH


def test_the_base_is_uniform():
    problem = restrict_to_box(rising_energy, (2, 3), LOW, HIGH)
    z = problem.base.sample(jax.random.key(0), None, 5_000)
    x = np.sort(np.asarray(jax.vmap(problem.transform, (None, 0))(None, z)[0]).ravel())
    steps = (np.arange(x.size) + 0.5) / x.size
    assert np.abs((x - LOW) / (HIGH - LOW) - steps).max() * x.size**0.5 < 2.69  # probability 1e-6
    assert float(problem.base.log_partition(None)) == pytest.approx(6 * np.log(HIGH - LOW))


@pytest.mark.parametrize(
    ("shape", "low", "high", "message"),
    [
        ((2,), 1.0, 1.0, "low must be below high"),
        ((2,), -np.inf, 1.0, "low=-inf: low must be finite"),
        ((0,), 0.0, 1.0, "shape=0"),
        ((2.0,), 0.0, 1.0, "shape=2.0"),
    ],
)
def test_errors_name_the_argument(shape, low, high, message):
    with pytest.raises(ValueError, match=message):
        restrict_to_box(rising_energy, shape, low, high)
