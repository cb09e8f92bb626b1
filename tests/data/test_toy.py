"""Each density is held to account twice: it integrates to one, and its own samples follow it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from jaxebm.data.toy import TOY_DENSITIES, ToyDensity

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_POINTS = (
    800  # midpoints a side; 0.0125 at most between them against the thinnest scale, 0.08 of the rings
)
NUM_CELLS = 20  # cells a side of the coarse histogram; divides NUM_POINTS
NUM_SAMPLES = 40_000

densities = pytest.mark.parametrize("density", TOY_DENSITIES.values(), ids=TOY_DENSITIES.keys())
smooth_densities = pytest.mark.parametrize("name", [name for name in TOY_DENSITIES if name != "checkerboard"])


@functools.cache
def compiled_log_density(density: ToyDensity) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jax.vmap(jax.vmap(density.log_density)))


def log_density_on_grid(density: ToyDensity, low: float, high: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns midpoints of the square [low, high]^2, log p there in float64, and the area of one."""
    step = (high - low) / NUM_POINTS
    middle = low + step * (np.arange(NUM_POINTS) + 0.5)
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
    log_p = compiled_log_density(density)(jnp.asarray(grid, jnp.float32))
    return grid, np.asarray(log_p, np.float64), step**2


@functools.cache
def quadrature(density: ToyDensity) -> tuple[np.ndarray, np.ndarray, float]:
    """Midpoint rule over the window: log p and p on the grid, and the area of a point."""
    _, log_p, area = log_density_on_grid(density, *density.bounds)
    return log_p, np.exp(log_p), area


@functools.cache
def samples_of(density: ToyDensity) -> tuple[np.ndarray, np.ndarray]:
    """Draws (NUM_SAMPLES, 2) and their log-densities (NUM_SAMPLES,) in float64."""

    @jax.jit
    def draw(rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = density.sample(rng_key, NUM_SAMPLES)
        return x, jax.vmap(density.log_density)(x)

    x, log_p = draw(jax.random.key(0))
    return np.asarray(x, np.float64), np.asarray(log_p, np.float64)


def test_the_six_densities() -> None:
    assert list(TOY_DENSITIES) == [
        "two_moons",
        "pinwheel",
        "rings",
        "eight_gaussians",
        "checkerboard",
        "spiral",
    ]
    assert all(name == density.name for name, density in TOY_DENSITIES.items())


@densities
def test_density_integrates_to_one_within_its_bounds(density: ToyDensity) -> None:
    # The midpoint rule converges faster than any power of the step on smooth densities, and the
    # checkerboard's squares are unions of its cells: 1e-5 is rounding and the mass beyond the window.
    _, p, area = quadrature(density)
    assert p.sum() * area == pytest.approx(1.0, abs=1e-5)


@densities
def test_bounds_hold_nearly_all_mass(density: ToyDensity) -> None:
    # By quadrature over the frame between the window and one twice as wide, in which nothing is rounded away.
    low, high = density.bounds
    grid, log_p, area = log_density_on_grid(density, 2 * low, 2 * high)
    outside = (np.abs(grid) > high).any(axis=-1)
    assert np.exp(log_p[outside]).sum() * area < 1e-6
    assert np.abs(samples_of(density)[0]).max() < high


@densities
def test_samples_follow_the_density(density: ToyDensity) -> None:
    # Pearson's chi-square over the cells where at least 5 samples are expected, the rest in one:
    # (statistic - dof) / sqrt(2 dof) is about N(0, 1); beyond 5 sigma is wrong.
    low, high = density.bounds
    _, p, area = quadrature(density)
    size = NUM_POINTS // NUM_CELLS
    expected = NUM_SAMPLES * area * p.reshape(NUM_CELLS, size, NUM_CELLS, size).sum(axis=(1, 3)).ravel()
    edges = np.linspace(low, high, NUM_CELLS + 1)
    x, _ = samples_of(density)
    observed = np.histogram2d(x[:, 0], x[:, 1], bins=(edges, edges))[0].ravel()
    assert observed.sum() == NUM_SAMPLES
    dense = expected >= 5
    observed = np.append(observed[dense], observed[~dense].sum())
    expected = np.append(expected[dense], expected[~dense].sum())
    present = expected > 1e-9  # the checkerboard has nothing in the rest
    assert observed[~present].sum() == 0
    observed, expected = observed[present], expected[present]
    degrees_of_freedom = len(expected) - 1
    assert degrees_of_freedom >= 30
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert abs(statistic - degrees_of_freedom) / np.sqrt(2 * degrees_of_freedom) < 5


@densities
def test_mean_log_density_of_samples_is_minus_the_entropy(density: ToyDensity) -> None:
    log_p, p, area = quadrature(density)
    finite = np.where(p > 0, log_p, 0.0)
    minus_entropy = np.sum(p * finite) * area
    deviation = np.sqrt(max(np.sum(p * finite**2) * area - minus_entropy**2, 0.0))
    mean = np.mean(samples_of(density)[1])
    assert abs(mean - minus_entropy) <= 5 * deviation / np.sqrt(NUM_SAMPLES) + 1e-5  # 1e-5: float32


def test_known_entropies() -> None:
    # Checkerboard: log 32. Eight Gaussians 6.1 standard deviations apart: log 8 + log(2 pi e / 8), nearly.
    for name, entropy, tolerance in (
        ("checkerboard", np.log(32), 1e-5),
        ("eight_gaussians", np.log(2 * np.pi * np.e), 2e-2),
    ):
        log_p, p, area = quadrature(TOY_DENSITIES[name])
        assert -np.sum(p * np.where(p > 0, log_p, 0.0)) * area == pytest.approx(entropy, abs=tolerance)


def test_ring_is_the_mean_of_gaussians_around_the_circle() -> None:
    # The Bessel function against 4096 Gaussians a ring, in float64.
    x = np.random.default_rng(0).uniform(-3.2, 3.2, (50, 2))
    angles = 2 * np.pi * np.arange(4096) / 4096
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    means = (np.array([0.75, 1.5, 2.25, 3.0])[:, None, None] * circle[None]).reshape(-1, 2)
    squared = ((x[:, None, :] - means[None]) ** 2).sum(-1)
    largest = -squared.min(axis=1) / (2 * 0.08**2)
    log_sum = largest + np.log(np.exp(-squared / (2 * 0.08**2) - largest[:, None]).sum(axis=1))
    expected = log_sum - np.log(len(means) * 2 * np.pi * 0.08**2)
    actual = jax.jit(jax.vmap(TOY_DENSITIES["rings"].log_density))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_pinwheel_turns_without_changing_volume() -> None:
    # log p(x) at x = R(0.15 |z|^2) z is the unturned mixture's at z, written out in polar coordinates.
    z = np.random.default_rng(1).normal(size=(50, 2)) * 1.5
    radius, angle = np.hypot(z[:, 0], z[:, 1]), np.arctan2(z[:, 1], z[:, 0])
    turned = angle + 0.15 * radius**2
    x = radius[:, None] * np.stack([np.cos(turned), np.sin(turned)], axis=1)
    blades = angle[:, None] - 2 * np.pi * np.arange(5)[None] / 5
    along, across = radius[:, None] * np.cos(blades), radius[:, None] * np.sin(blades)
    log_blades = -0.5 * (((along - 1.5) / 0.45) ** 2 + (across / 0.15) ** 2)
    expected = np.asarray(logsumexp(log_blades, axis=1)) - np.log(5 * 2 * np.pi * 0.45 * 0.15)
    log_density = jax.jit(jax.vmap(TOY_DENSITIES["pinwheel"].log_density))
    np.testing.assert_allclose(log_density(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-3)
    mirrored = jnp.asarray(x * np.array([[1.0, -1.0]]), jnp.float32)
    assert not np.allclose(log_density(mirrored), expected, atol=0.1)


@smooth_densities
def test_score_is_finite_and_true(name: str) -> None:
    # Central differences of a float32 log-density, at the origin too, where |x| alone has no gradient:
    # rounding is about 1e-6 / 1e-2, the third derivative times step^2 / 6 below 1e-2.
    points = jnp.array([[0.0, 0.0], [1.3, -0.4], [-0.5, 2.1]])
    offsets = 5e-3 * jnp.eye(2)

    @jax.jit
    @jax.vmap
    def score_and_differences(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_density = TOY_DENSITIES[name].log_density
        ahead, behind = (jax.vmap(log_density)(x[None, :] + sign * offsets) for sign in (1.0, -1.0))
        return jax.grad(log_density)(x), (ahead - behind) / 1e-2

    score, differences = score_and_differences(points)
    np.testing.assert_allclose(score, differences, rtol=2e-2, atol=2e-2)


def test_checkerboard_samples_never_leave_their_squares() -> None:
    # One sample on the wrong side of an edge would make a mean log-density minus infinity.
    density = TOY_DENSITIES["checkerboard"]
    log_density = jax.jit(jax.vmap(density.log_density))
    x = jax.jit(density.sample, static_argnums=1)(jax.random.key(2), 200_000)
    assert np.all(np.asarray(log_density(x)) == -jnp.log(32.0))
    # The largest float32 that jax.random.uniform can return, in every square.
    last = np.float32(1.0) - np.float32(2.0**-23)
    squares = [(column, row) for column in range(-2, 2) for row in range(-2 + column % 2, 2, 2)]
    corners = 2 * np.array(squares, np.float32) + 2 * last
    np.testing.assert_allclose(log_density(corners), -np.log(32), atol=1e-5)
    outside = np.array([[1.0, -1.0], [5.0, 5.0]], np.float32)
    np.testing.assert_array_equal(log_density(outside), -np.inf)


@densities
def test_sampling_is_reproducible_and_compiles_once(density: ToyDensity) -> None:
    traces = []

    def sample(rng_key: jax.Array) -> jax.Array:
        traces.append(None)
        x = density.sample(rng_key, 64)
        return jnp.concatenate([x, jax.vmap(density.log_density)(x)[:, None]], axis=1)

    compiled = jax.jit(sample)
    first, again, other = (compiled(jax.random.key(seed)) for seed in (0, 0, 1))
    assert len(traces) == 1
    assert first.shape == (64, 3)
    assert first.dtype == jnp.float32
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first[:, :2], other[:, :2])


@densities
def test_bad_arguments_are_named(density: ToyDensity) -> None:
    with pytest.raises(ValueError, match=r"x has shape \(5, 2\).*jax.vmap"):
        density.log_density(jnp.zeros((5, 2)))
    for num_samples in (0, 2.0, True):
        with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
            density.sample(jax.random.key(0), num_samples)
