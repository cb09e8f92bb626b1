"""Rosenbrock and Mueller-Brown far from the defaults that `test_analytic.py` tests, against float64 sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import surfaces
from jaxebm.energies.surfaces import mueller_brown, rosenbrock

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_SAMPLES = 20_000  # as in test_analytic.py, so that one process compiles each sampler once
KOLMOGOROV_BOUND = 2.69  # P(sqrt(n) sup|F_n - F| > 2.69) = 1e-6; the seeds are fixed.
NORMAL_LINE = np.linspace(-7, 7, 2001)
NORMAL_MASSES = np.exp(-0.5 * NORMAL_LINE**2) / np.exp(-0.5 * NORMAL_LINE**2).sum()

# Mueller and Brown's printed constants, in float64: amplitude, a, b, c, x, y.
TERMS = np.array(
    [
        [-200.0, -1.0, 0.0, -10.0, 1.0, 0.0],
        [-100.0, -1.0, 0.0, -10.0, 0.0, 0.5],
        [-170.0, -6.5, 11.0, -6.5, -0.5, 1.5],
        [15.0, 0.7, 0.6, 0.7, -1.0, 1.0],
    ]
)
LOWEST = -146.69952  # their deepest minimum


def _surface(x, y):
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    for amplitude, a, b, c, centre_x, centre_y in TERMS:
        dx, dy = x - centre_x, y - centre_y
        total += amplitude * np.exp(a * dx**2 + b * dx * dy + c * dy**2)
    return total


# Rosenbrock


@pytest.fixture(scope="module")
def rosenbrock_exact():
    target = rosenbrock(dimension=4)
    return jax.jit(lambda params: (target.log_partition(params), *target.moments(params)))


@pytest.mark.parametrize(("curvature", "centre", "temperature"), [(100, 1, 20), (0.3, -2, 1), (5, 0, 0.2)])
def test_rosenbrock_is_its_own_quadrature(curvature, centre, temperature, rosenbrock_exact, kolmogorov):
    """Gauss-Hermite in the valley's own coordinates is exact for the moments, and samples are normal."""
    target = rosenbrock(curvature, centre, temperature, dimension=4)
    log_partition, mean, covariance = rosenbrock_exact(target.params)
    nodes, weights = np.polynomial.hermite.hermgauss(8)
    along, across = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    masses = np.outer(weights, weights).ravel()
    # x_0 = centre + sqrt(T) u and x_1 = x_0^2 + sqrt(T / b) v, with the energy u^2 + v^2.
    first = centre + np.sqrt(temperature) * along
    pair = np.stack([first, first**2 + np.sqrt(temperature / curvature) * across], axis=1)
    pair_log_z = np.log(masses.sum() * temperature / np.sqrt(curvature))
    probabilities = masses / masses.sum()
    pair_mean = probabilities @ pair
    pair_covariance = (probabilities[:, None] * (pair - pair_mean)).T @ (pair - pair_mean)
    np.testing.assert_allclose(log_partition, 2 * pair_log_z, rtol=1e-6)
    np.testing.assert_allclose(mean, np.tile(pair_mean, 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariance, np.kron(np.eye(2), pair_covariance), rtol=1e-5, atol=1e-5)

    samples = np.asarray(target.sample(jax.random.key(2), target.params, NUM_SAMPLES), np.float64)
    first, second = samples[:, 0::2], samples[:, 1::2]
    along = (first - centre) / np.sqrt(temperature / 2)
    across = (second - first**2) / np.sqrt(temperature / (2 * curvature))
    standard = np.concatenate([along, across], axis=1)
    # A correlation of independent normals has deviation 1/sqrt(n).
    correlations = standard.T @ standard / NUM_SAMPLES - np.eye(4)
    assert np.all(np.abs(correlations - np.diag(np.diag(correlations))) < 5 / np.sqrt(NUM_SAMPLES))
    for column in standard.T:
        assert kolmogorov(column, NORMAL_LINE, NORMAL_MASSES) < KOLMOGOROV_BOUND


def test_rosenbrock_energy_is_the_printed_function():
    target = rosenbrock(dimension=4)
    points = np.random.default_rng(0).normal(size=(16, 4))
    first, second = points[:, 0::2], points[:, 1::2]
    expected = np.sum(100 * (second - first**2) ** 2 + (1 - first) ** 2, axis=1) / 20
    energies = jax.jit(jax.vmap(target.target))(np.asarray(points, np.float32))
    np.testing.assert_allclose(energies, expected, rtol=1e-5)


# Mueller-Brown


@pytest.fixture(scope="module")
def mueller_brown_exact():
    target = mueller_brown()
    return jax.jit(
        lambda params: (
            target.log_partition(params),
            jax.grad(target.log_partition)(params).temperature,
            *target.moments(params),
        )
    )


def _gauss_legendre(temperature, nodes=400):
    """Nodes, V and masses exp((lowest - V) / T) in the square of half a side 4."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    line_x, line_y = -1 + 4 * points, 1 + 4 * points
    surface = _surface(line_x[:, None], line_y[None, :])
    masses = 16 * weights[:, None] * weights[None, :] * np.exp((LOWEST - surface) / temperature)
    grid = np.stack(np.meshgrid(line_x, line_y, indexing="ij"), axis=-1)
    return grid.reshape(-1, 2), surface.ravel(), masses.ravel()


@pytest.mark.parametrize("temperature", [1.0, 6.0, 20.0, 150.0, 1000.0])
def test_mueller_brown_integrals_in_float64(temperature, mueller_brown_exact):
    target = mueller_brown(temperature)
    nodes, surface, masses = _gauss_legendre(temperature)
    probabilities = masses / masses.sum()
    log_z = np.log(masses.sum()) - LOWEST / temperature
    mean = probabilities @ nodes
    covariance = (probabilities[:, None] * (nodes - mean)).T @ (nodes - mean)
    log_partition, slope, exact_mean, exact_covariance = mueller_brown_exact(target.params)
    np.testing.assert_allclose(log_partition, log_z, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(slope, probabilities @ surface / temperature**2, rtol=1e-4)
    np.testing.assert_allclose(exact_mean, mean, atol=5e-5)
    np.testing.assert_allclose(exact_covariance, covariance, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 8.0, 1000.0])
def test_mueller_brown_samples_have_the_exact_marginals(temperature, kolmogorov):
    target = mueller_brown(temperature)
    samples = np.asarray(target.sample(jax.random.key(4), target.params, NUM_SAMPLES), np.float64)
    points, weights = np.polynomial.legendre.leggauss(800)  # at one x the valley is 0.016 wide
    for axis, centre in enumerate((-1.0, 1.0)):
        line = np.linspace(centre - 4, centre + 4, 1501)
        other = 4 * points - centre
        surface = _surface(line[:, None], other) if axis == 0 else _surface(other, line[:, None])
        masses = np.exp((LOWEST - surface) / temperature) @ weights
        assert kolmogorov(samples[:, axis], line, masses / masses.sum()) < KOLMOGOROV_BOUND


def test_mueller_brown_stationary_points_are_the_published_ones():
    minima = [(-0.558, 1.442, -146.700), (0.623, 0.028, -108.167), (-0.050, 0.467, -80.768)]
    saddles = [(-0.822, 0.624, -40.665), (0.212, 0.293, -72.249)]
    points = np.array(minima + saddles)
    target = mueller_brown(1.0)
    energies, hessians, scores = jax.jit(
        jax.vmap(lambda x: (target.target(x), jax.hessian(target.target)(x), target.score(x)))
    )(np.asarray(points[:, :2], np.float32))
    np.testing.assert_allclose(energies, points[:, 2], atol=2e-3)
    # The printed digits leave a gradient: Newton's step from there is below half a unit of the last digit.
    steps = np.linalg.solve(np.asarray(hessians, np.float64), np.asarray(scores, np.float64)[:, :, None])
    assert np.all(np.abs(steps) < 5.5e-4)
    assert [np.sum(np.linalg.eigvalsh(hessian) < 0) for hessian in np.asarray(hessians)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("temperature", [1.0, 20.0, 1000.0])
def test_the_square_holds_the_mass(temperature):
    half_width = float(surfaces._mueller_brown_square(jnp.float32(temperature)))
    line = np.linspace(-half_width, half_width, 2001)
    edges = [
        _surface(line - 1, np.array(1 + sign * half_width))
        if across
        else _surface(np.array(-1 + sign * half_width), 1 + line)
        for sign in (-1, 1)
        for across in (True, False)
    ]
    assert (np.min(edges) - LOWEST) / temperature > 40


def test_the_envelope_lies_above_the_density():
    """In every fourth cell: the bound is below the surface at the corners, the middle and random points."""
    cells = surfaces._ENVELOPE_CELLS
    middles_on_axis = (2 * np.arange(0, cells, 4) + 1 - cells) / cells

    @jax.jit
    def envelope(temperature):
        half_width = surfaces._mueller_brown_square(temperature)
        middles = surfaces._centred_grid(half_width, jnp.asarray(middles_on_axis, jnp.float32))
        half_cell = half_width / cells
        return middles, half_cell, jax.vmap(surfaces._mueller_brown_bound, (0, None))(middles, half_cell)

    offsets = np.concatenate(
        [[(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)], np.random.default_rng(1).uniform(-1, 1, (10, 2))]
    )
    for temperature, accepted in ((1.0, 0.25), (20.0, 0.8), (1000.0, 0.95)):
        middles, half_cell, bounds = (
            np.asarray(value, np.float64) for value in envelope(np.float32(temperature))
        )
        points = middles[:, None, :] + half_cell * offsets[None, :, :]
        surface = _surface(points[..., 0], points[..., 1])
        assert np.all(bounds[:, None] <= surface + 1e-5 * (1 + np.abs(surface)))
        fraction = np.exp((LOWEST - surface[:, 5:]) / temperature).mean(axis=1).sum()
        assert fraction / np.exp((LOWEST - bounds) / temperature).sum() > accepted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rosenbrock(curvature=0.0), "curvature must be finite and greater than 0"),
        (lambda: rosenbrock(centre=np.nan), "centre=nan: centre must be finite"),
        (lambda: rosenbrock(temperature=-1.0), "temperature must be finite and greater than 0"),
        (lambda: rosenbrock(dimension=3), "dimension=3: dimension must be even"),
        (lambda: rosenbrock(dimension=0), "dimension must be an integer of at least 1"),
        (
            lambda: rosenbrock().target(jnp.zeros(3)),
            r"x has shape \(3,\): \(dimension,\), an even number, is",
        ),
        (lambda: rosenbrock().sample(jax.random.key(0), rosenbrock().params, 0), "num_samples must be an"),
        (lambda: mueller_brown(0.5), "temperature must be between 1.0 and 1000.0"),
        (lambda: mueller_brown(np.nan), "temperature must be between 1.0 and 1000.0"),
        (lambda: mueller_brown([20.0, 30.0]), r"temperature has shape \(2,\)"),  # type: ignore[arg-type]
        (lambda: mueller_brown().target(jnp.zeros(3)), r"x has shape \(3,\): \(2,\) is needed"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
