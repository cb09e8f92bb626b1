"""Exact normalisers against Gaussian closed forms, published Ising values and d log Z = -E[dE]."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxebm.evaluation.partition.quadrature import (
    enumerate_states,
    grid,
    kl_divergence_on_grid,
    log_density_on_grid,
    log_partition_by_enumeration,
    log_partition_on_grid,
)

MEAN = np.array([0.4, -0.8])
COVARIANCE = np.array([[1.3, 0.5], [0.5, 0.6]])
GRID_2D = grid(-8.0, 8.0, 96)
ISING_STATES = enumerate_states(16)


def gaussian_energy(params, x):
    """(x - mean)^T precision (x - mean) / 2, unnormalised."""
    offset = x - params["mean"]
    return 0.5 * offset @ params["precision"] @ offset


def gaussian_params(mean, covariance):
    return {
        "mean": jnp.asarray(mean, jnp.float32),
        "precision": jnp.asarray(np.linalg.inv(covariance), jnp.float32),
    }


def ising_energy(beta, spins):
    """Periodic 4x4 square lattice, J = 1: each site meets its right and its lower neighbour."""
    lattice = spins.reshape(4, 4)
    return -beta * jnp.sum(lattice * (jnp.roll(lattice, 1, axis=0) + jnp.roll(lattice, 1, axis=1)))


ising_log_z = jax.jit(lambda beta: log_partition_by_enumeration(ising_energy, beta, ISING_STATES))
gaussian_log_z = jax.jit(lambda params: log_partition_on_grid(gaussian_energy, params, *GRID_2D))


def test_grid_holds_the_midpoints_of_equal_cells_in_row_major_order():
    points, log_cell_volume = grid(-1.0, 2.0, 3, dimension=3)
    assert points.shape == (27, 3)
    assert points.dtype == jnp.float32
    assert log_cell_volume == pytest.approx(0.0)
    picture = np.asarray(points).reshape(3, 3, 3, 3)
    np.testing.assert_allclose(picture[2, 0, 1], [1.5, -0.5, 0.5])
    assert np.exp(grid(0.0, 5.0, 10, dimension=4)[1]) == pytest.approx(0.5**4)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_constant_energy_gives_the_volume(dimension):
    points, log_cell_volume = grid(-2.0, 1.0, 7, dimension)
    log_z = log_partition_on_grid(
        lambda level, x: level, jnp.array(1.5), points, log_cell_volume, batch_size=5
    )
    assert float(log_z) == pytest.approx(dimension * np.log(3.0) - 1.5, abs=1e-5)


def test_gaussian_log_partition():
    exact = np.log(2 * np.pi) + 0.5 * np.log(np.linalg.det(COVARIANCE))
    assert float(gaussian_log_z(gaussian_params(MEAN, COVARIANCE))) == pytest.approx(exact, abs=2e-5)


def test_gaussian_log_partition_in_one_dimension_with_large_energies():
    points, log_cell_volume = grid(-10.0, 10.0, 400, dimension=1)
    for offset in (-3000.0, 0.0, 3000.0):  # exp of these overflows or vanishes: logsumexp must not.
        log_z = log_partition_on_grid(
            lambda level, x: 0.5 * (x[0] - 1.0) ** 2 / 4.0 + level, jnp.array(offset), points, log_cell_volume
        )
        assert float(log_z) + offset == pytest.approx(0.5 * np.log(2 * np.pi * 4.0), abs=1e-3)


def test_midpoint_rule_is_second_order_where_the_density_meets_the_border():
    """Z = int_0^1 e^-x = 1 - 1/e: halving h divides the error by four."""
    errors = []
    for num_points in (4, 8, 16):
        points, log_cell_volume = grid(0.0, 1.0, num_points, dimension=1)
        log_z = log_partition_on_grid(lambda rate, x: rate * x[0], 1.0, points, log_cell_volume)
        errors.append(abs(np.exp(float(log_z)) - (1 - np.exp(-1))))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("batch_size", [1, 7, 36, 1000])
def test_chunks_change_nothing(batch_size):
    points, log_cell_volume = grid(-5.0, 5.0, 6)
    params = gaussian_params(MEAN, COVARIANCE)

    def log_z(params):
        return log_partition_on_grid(gaussian_energy, params, points, log_cell_volume, batch_size=batch_size)

    value, gradient = jax.jit(jax.value_and_grad(log_z))(params)

    def plain_log_z(params):
        return jax.nn.logsumexp(-jax.vmap(gaussian_energy, (None, 0))(params, points)) + log_cell_volume

    chex.assert_trees_all_close(
        (value, gradient), jax.value_and_grad(plain_log_z)(params), rtol=1e-4, atol=1e-5
    )


def test_gradient_of_log_partition_is_minus_the_expected_gradient_of_the_energy():
    """d log Z / d mean = 0 and d log Z / d precision = -covariance / 2, E[dE / d precision] being that."""
    gradient = jax.grad(gaussian_log_z)(gaussian_params(MEAN, COVARIANCE))
    np.testing.assert_allclose(gradient["mean"], [0.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(gradient["precision"], -COVARIANCE / 2, atol=1e-4)


def test_new_parameters_do_not_recompile():
    log_z = jax.jit(
        chex.assert_max_traces(lambda params: log_partition_on_grid(gaussian_energy, params, *GRID_2D), n=1)
    )
    values = [float(log_z(gaussian_params(MEAN + shift, COVARIANCE))) for shift in (0.0, 0.5)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_log_density_is_normalised_and_exact():
    points, log_cell_volume = GRID_2D
    params = gaussian_params(MEAN, COVARIANCE)
    log_p = log_density_on_grid(gaussian_energy, params, points, log_cell_volume)
    assert np.exp(np.asarray(log_p, float) + log_cell_volume).sum() == pytest.approx(1.0, abs=1e-4)
    offset = np.asarray(points, float) - MEAN
    exact = -0.5 * np.einsum("ni,ij,nj->n", offset, np.linalg.inv(COVARIANCE), offset) - 0.5 * np.log(
        (2 * np.pi) ** 2 * np.linalg.det(COVARIANCE)
    )
    np.testing.assert_allclose(log_p, exact, rtol=1e-5, atol=1e-4)


def gaussian_kl(mean_p, covariance_p, mean_q, covariance_q):
    precision_q = np.linalg.inv(covariance_q)
    offset = np.asarray(mean_q) - mean_p
    log_determinants = np.log(np.linalg.det(covariance_q) / np.linalg.det(covariance_p))
    return 0.5 * (np.trace(precision_q @ covariance_p) + offset @ precision_q @ offset - 2 + log_determinants)


def test_kl_between_gaussians_in_both_directions():
    points, log_cell_volume = GRID_2D
    p, q = (MEAN, COVARIANCE), (np.array([-0.2, 0.3]), np.array([[0.9, -0.2], [-0.2, 1.1]]))
    log_p, log_q = (
        log_density_on_grid(gaussian_energy, gaussian_params(*which), points, log_cell_volume)
        for which in (p, q)
    )
    forward = float(kl_divergence_on_grid(log_p, log_q, log_cell_volume))
    backward = float(kl_divergence_on_grid(log_q, log_p, log_cell_volume))
    assert forward == pytest.approx(gaussian_kl(*p, *q), abs=1e-4)
    assert backward == pytest.approx(gaussian_kl(*q, *p), abs=1e-4)
    assert abs(forward - backward) > 0.1  # Skewed enough that swapped arguments would show.
    assert float(kl_divergence_on_grid(log_p, log_p, log_cell_volume)) == 0.0


def test_kl_where_densities_vanish():
    infinity = np.inf
    log_half = float(np.log(0.5))
    p, q = jnp.array([log_half, log_half, -infinity, -infinity]), jnp.full(4, np.log(0.25))
    assert float(kl_divergence_on_grid(p, q, 0.0)) == pytest.approx(np.log(2.0), abs=1e-6)
    assert float(kl_divergence_on_grid(q, p, 0.0)) == infinity
    assert float(kl_divergence_on_grid(p, p, 0.0)) == 0.0  # 0 log (0 / 0) = 0.
    # The gradient in log q is -p, and finite where p = 0, even if q = 0 as well.
    gradient = jax.grad(kl_divergence_on_grid, argnums=1)(p, q.at[3].set(-infinity), 0.0)
    np.testing.assert_allclose(gradient, [-0.5, -0.5, 0.0, 0.0], atol=1e-6)
    chex.assert_tree_all_finite(jax.grad(kl_divergence_on_grid, argnums=0)(p, q, 0.0))


def test_states_are_all_and_each_once():
    states = np.asarray(enumerate_states(4))
    assert states.shape == (16, 4)
    assert np.unique(states, axis=0).shape == (16, 4)
    assert set(states.ravel()) == {-1.0, 1.0}
    bits = np.asarray(enumerate_states(3, values=(0, 1)))
    np.testing.assert_array_equal(bits @ [4, 2, 1], np.arange(8))  # Counting, the last site fastest.
    assert enumerate_states(3, values=(0, 1, 2, 3)).shape == (64, 3)


@pytest.mark.parametrize(
    ("beta", "log_z"), [(0.2, 11.7714704), (0.3, 12.7855233), (0.44068679, 15.5219155), (0.5, 17.1053671)]
)
def test_ising_4x4_partition(beta, log_z):
    assert float(ising_log_z(jnp.float32(beta))) == pytest.approx(log_z, abs=1e-4)
    # In float64, where the reference's digits are all meaningful.
    lattice = np.asarray(ISING_STATES, float).reshape(-1, 4, 4)
    bonds = np.sum(lattice * (np.roll(lattice, 1, axis=1) + np.roll(lattice, 1, axis=2)), axis=(1, 2))
    assert logsumexp(beta * bonds) == pytest.approx(log_z, abs=6e-8 if beta != 0.44068679 else 1e-6)


def test_ising_gradient_is_the_expected_number_of_bonds():
    beta = 0.35
    lattice = np.asarray(ISING_STATES, float).reshape(-1, 4, 4)
    bonds = np.sum(lattice * (np.roll(lattice, 1, axis=1) + np.roll(lattice, 1, axis=2)), axis=(1, 2))
    probability = np.exp(beta * bonds - logsumexp(beta * bonds))
    mean = probability @ bonds
    first, second = jax.grad(ising_log_z), jax.grad(jax.grad(ising_log_z))
    assert float(first(jnp.float32(beta))) == pytest.approx(mean, rel=1e-5)
    assert float(second(jnp.float32(beta))) == pytest.approx(probability @ (bonds - mean) ** 2, rel=1e-4)


def test_free_spins_and_skewed_fields():
    fields = jnp.array([0.3, -1.2, 2.0])
    log_z = log_partition_by_enumeration(
        lambda field, s: -field @ s, fields, enumerate_states(3), batch_size=3
    )
    assert float(log_z) == pytest.approx(np.sum(np.log(2 * np.cosh(np.asarray(fields, float)))), rel=1e-6)
    gradient = jax.grad(
        lambda field: log_partition_by_enumeration(lambda field, s: -field @ s, field, enumerate_states(3))
    )(fields)
    np.testing.assert_allclose(gradient, np.tanh(fields), rtol=1e-5)


def test_bad_input_is_named():
    points, log_cell_volume = grid(-1.0, 1.0, 3)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="low < high"):
            grid(low, high, 4)
    with pytest.raises(ValueError, match="num_points=0"):
        grid(-1.0, 1.0, 0)
    with pytest.raises(ValueError, match=r"257\*\*3: at most"):
        grid(-1.0, 1.0, 257, dimension=3)
    with pytest.raises(ValueError, match=r"2\*\*25: at most"):
        enumerate_states(25)
    with pytest.raises(ValueError, match="dimension=0"):
        enumerate_states(0)
    with pytest.raises(ValueError, match="each once"):
        enumerate_states(2, values=(1, 1))
    with pytest.raises(ValueError, match=r"points has shape \(9,\)"):
        log_partition_on_grid(gaussian_energy, None, points[:, 0], log_cell_volume)
    with pytest.raises(ValueError, match=r"energy <lambda> returned shape \(2,\)"):
        log_partition_on_grid(lambda params, x: x, None, points, log_cell_volume)
    with pytest.raises(ValueError, match="batch_size=0"):
        log_partition_on_grid(gaussian_energy, None, points, log_cell_volume, batch_size=0)
    with pytest.raises(ValueError, match=r"\(3,\) and log_density_model \(4,\)"):
        kl_divergence_on_grid(jnp.zeros(3), jnp.zeros(4), 0.0)
    for estimate in (log_partition_on_grid, log_density_on_grid):
        with pytest.raises(ValueError, match=r"points\[1\] and points\[9\] are both \[-0.66.*once"):
            estimate(gaussian_energy, None, jnp.concatenate([points, points[1:2]]), log_cell_volume)
    with pytest.raises(ValueError, match=r"states\[0\] and states\[4\]"):
        log_partition_by_enumeration(
            gaussian_energy, None, jnp.concatenate([enumerate_states(2), -jnp.ones((1, 2))])
        )
    for bad in ("0", None, 1j, np.zeros(2)):
        with pytest.raises((TypeError, ValueError), match="low"):
            grid(bad, 1.0, 3)
        with pytest.raises((TypeError, ValueError), match="log_cell_volume"):
            log_partition_on_grid(gaussian_energy, None, points, bad)
    with pytest.raises(TypeError, match="<lambda> returned dtype int32"):
        log_partition_on_grid(lambda params, x: jnp.int32(0), None, points, log_cell_volume)
    with pytest.raises(TypeError, match="values="):
        enumerate_states(2, values="ab")
