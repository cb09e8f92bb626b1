"""Two-sample distances against closed forms of Gaussians and slow float64 transcriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from scipy.spatial.distance import cdist

from jaxebm.evaluation.samples.discrepancy import (
    energy_distance,
    exact_product,
    flat_points,
    kolmogorov_smirnov,
    maximum_mean_discrepancy,
    median_bandwidth,
    squared_distances,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def off_diagonal_mean(matrix):
    n = len(matrix)
    return (matrix.sum() - np.trace(matrix)) / (n * (n - 1))


def slow_mmd(x, y, bandwidths):
    def kernel(a, b):
        return np.mean([np.exp(-cdist(a, b, "sqeuclidean") / (2 * h**2)) for h in bandwidths], axis=0)

    return off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()


def slow_energy_distance(x, y):
    return 2 * cdist(x, y).mean() - off_diagonal_mean(cdist(x, x)) - off_diagonal_mean(cdist(y, y))


@pytest.fixture(scope="module")
def two_sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 3)).astype(np.float32), (0.5 + 2 * rng.normal(size=(5, 3))).astype(np.float32)


@pytest.mark.parametrize("block_size", [3, 256])
def test_equal_to_the_slow_transcriptions_in_blocks_of_any_size(two_sets, block_size):
    x, y = two_sets
    one = maximum_mean_discrepancy(x, y, bandwidth=np.array([1.5]), block_size=block_size)
    assert float(one) == pytest.approx(slow_mmd(x, y, [1.5]), abs=2e-6)
    distance = energy_distance(x, y, block_size=block_size)
    assert float(distance) == pytest.approx(slow_energy_distance(x, y), abs=5e-6)


def test_several_bandwidths_are_a_mean_of_kernels(two_sets):
    x, y = two_sets
    value = maximum_mean_discrepancy(x, y, bandwidth=np.array([0.5, 1.5, 4.0]))
    assert float(value) == pytest.approx(slow_mmd(x, y, [0.5, 1.5, 4.0]), abs=2e-6)


@pytest.mark.parametrize("exponent", [125, 62, -63, -100])
def test_distances_at_any_scale(two_sets, exponent):
    """A power of two changes no digit, also where the squares of the points overflow or vanish in float32."""
    (x, y), unit = two_sets, np.float32(2.0**exponent)
    far_x, far_y = x * unit, y * unit
    np.testing.assert_array_equal(energy_distance(far_x, far_y), energy_distance(x, y) * unit)
    np.testing.assert_array_equal(median_bandwidth(far_x, far_y), median_bandwidth(x, y) * unit)
    np.testing.assert_array_equal(maximum_mean_discrepancy(far_x, far_y), maximum_mean_discrepancy(x, y))
    one = maximum_mean_discrepancy(x, y, bandwidth=np.array([1.5]))
    np.testing.assert_array_equal(maximum_mean_discrepancy(far_x, far_y, bandwidth=1.5 * unit[None]), one)
    test, scaled = kolmogorov_smirnov(x, y), kolmogorov_smirnov(far_x, far_y)
    np.testing.assert_array_equal(test.statistic, scaled.statistic)


def test_points_that_coincide():
    """0.1 is not its own mean in float32, and 2 / 3 of the pairs are at distance 0."""
    same = jnp.full((7, 3), 0.1)
    assert float(median_bandwidth(same)) == float(median_bandwidth(same, same)) == 0.0
    assert abs(float(maximum_mean_discrepancy(same, same))) < 1e-6
    assert float(energy_distance(same, same)) == 0.0
    # Two places, most points at one: the bandwidth is the distance of the places.
    two = same.at[:1].add(jnp.array([3.0, 4.0, 0.0]))
    assert float(median_bandwidth(two)) == pytest.approx(5.0, rel=1e-6)
    assert float(median_bandwidth(two, same)) == pytest.approx(5.0, rel=1e-6)
    within, kernel = 15 / 21, np.exp(-0.5)
    exact = (within + (1 - within) * kernel) + 1 - 2 * (6 + kernel) / 7
    assert float(maximum_mean_discrepancy(two, same)) == pytest.approx(exact, abs=1e-6)
    # A tiny bandwidth is the limit 1[x = y].
    tiny = maximum_mean_discrepancy(jnp.zeros((7, 3)), jnp.ones((7, 3)), bandwidth=1e-30)
    assert float(tiny) == pytest.approx(2.0, abs=1e-6)


def test_derivatives_are_finite_where_points_coincide():
    """Of |x - x'|, at each point and itself too; against differences, away from other coincidences."""
    x = jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, -1.0]])
    distance = lambda x: energy_distance(x, 1 - x)  # noqa: E731
    gradient, direction = jax.grad(distance)(x), jnp.array([[1.0, 0.5], [-0.3, 0.2], [0.1, 1.0]])
    slope = (distance(x + 0.01 * direction) - distance(x - 0.01 * direction)) / 0.02
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(slope), rel=1e-2)
    for measure in (energy_distance, maximum_mean_discrepancy):
        assert np.isfinite(jax.grad(measure)(jnp.zeros((3, 2)), x)).all()


def test_numbers_out_of_the_precision_of_jax():
    x = np.random.default_rng(0).normal(size=(7, 3)) * 1e60
    for distance in (maximum_mean_discrepancy, energy_distance, median_bandwidth):
        with pytest.raises(ValueError, match="x has dtype float64 and a largest absolute value of"):
            distance(x, x)
    assert (
        kolmogorov_smirnov(x, x + 1e55).statistic.max() <= 1 / 7 + 1e-9
    )  # in float64, and no ties at infinity


def test_trees_are_their_concatenated_coordinates(two_sets):
    x, y = ({"a": points[:, :2].reshape(-1, 1, 2), "b": points[:, 2]} for points in two_sets)
    for measure in (maximum_mean_discrepancy, energy_distance, median_bandwidth):
        np.testing.assert_array_equal(measure(x, y), measure(*two_sets))
    np.testing.assert_array_equal(kolmogorov_smirnov(x, y).statistic, kolmogorov_smirnov(*two_sets).statistic)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_narrow_points_under_x64(two_sets, dtype):
    with jax.enable_x64(True):
        x, y = (jnp.asarray(points, dtype) for points in two_sets)
        exact = [np.asarray(points, np.float64) for points in (x, y)]
        assert float(energy_distance(x, y)) == pytest.approx(slow_energy_distance(*exact), abs=1e-5)
        value = maximum_mean_discrepancy(x, y, bandwidth=1.5)
        assert float(value) == pytest.approx(slow_mmd(*exact, [1.5]), abs=1e-5)
        assert float(median_bandwidth(x)) > 0


def test_the_median_bandwidth(two_sets):
    x, y = two_sets
    both = cdist(np.concatenate([x, y]), np.concatenate([x, y]))
    expected = np.median(both[np.triu_indices(12, 1)])
    assert float(median_bandwidth(x, y)) == pytest.approx(expected, rel=1e-5)
    default = maximum_mean_discrepancy(x, y)
    assert float(default) == pytest.approx(slow_mmd(x, y, [expected]), abs=2e-6)
    alone = cdist(x, x)[np.triu_indices(7, 1)]
    assert float(median_bandwidth(x)) == pytest.approx(np.median(alone), rel=1e-5)


def test_the_median_takes_evenly_spaced_points_of_a_large_set():
    # Points 0, 1, 2, ... of which every fourth is used: the distances of 256 points, four apart.
    line = np.arange(1024.0, dtype=np.float32)[:, None]
    steps = np.abs(np.subtract.outer(np.arange(256), np.arange(256)))[np.triu_indices(256, 1)]
    assert float(median_bandwidth(line)) == pytest.approx(4 * np.median(steps), rel=1e-4)


def test_points_far_from_the_origin_lose_no_digits(two_sets):
    """Uncentred, distances would be differences of squares of 3e6; these points are exact in float32."""
    x, y = (np.round(points * 256) / 256 for points in two_sets)
    far = maximum_mean_discrepancy(x + 1024, y + 1024, bandwidth=np.array([1.5]))
    assert float(far) == pytest.approx(slow_mmd(x, y, [1.5]), abs=2e-6)
    distance = energy_distance(x + 1024, y + 1024)
    assert float(distance) == pytest.approx(slow_energy_distance(x, y), abs=5e-6)


def test_trees_are_flattened_and_narrow_ones_widened(two_sets):
    x, y = two_sets

    def tree(points):
        return {"a": jnp.asarray(points[:, :2]).reshape(-1, 2, 1), "b": jnp.asarray(points[:, 2])}

    np.testing.assert_array_equal(flat_points(tree(x)), x)
    assert flat_points(jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.float32
    value = maximum_mean_discrepancy(tree(x), tree(y), bandwidth=np.array([1.5]))
    assert float(value) == pytest.approx(slow_mmd(x, y, [1.5]), abs=2e-6)
    assert squared_distances(jnp.zeros(3), jnp.asarray(x)).shape == (7,)
    np.testing.assert_allclose(exact_product(jnp.asarray(x), jnp.ones(3)), x.sum(axis=1), rtol=1e-5)


# Unbiased: means over many small sets are the closed forms.

REPLICATES, DIMENSION, BANDWIDTH, WIDTH, SHIFT = 2000, 2, 0.8, 1.5, 0.7


@pytest.fixture(scope="module")
def replicates():
    """Both distances of N(0, I) and N(shift, width^2 I), and of two sets of N(0, I): 6 and 4 points each."""

    @jax.jit
    @jax.vmap
    def distances(x, y):
        shifted = SHIFT + WIDTH * y
        return (
            maximum_mean_discrepancy(x, shifted, bandwidth=BANDWIDTH),
            maximum_mean_discrepancy(x, y, bandwidth=BANDWIDTH),
            energy_distance(x, shifted),
            energy_distance(x, y),
        )

    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(REPLICATES, count, DIMENSION)).astype(np.float32) for count in (6, 4))
    with jax.numpy_rank_promotion("raise"):
        return [np.asarray(values, np.float64) for values in distances(x, y)]


def close_to_mean(values, expected):
    return abs(values.mean() - expected) < 5 * values.std(ddof=1) / np.sqrt(len(values))


def test_mean_discrepancy_of_gaussians_in_closed_form(replicates):
    """E k(x, y) = (h^2 / s^2)^(d/2) exp(-|m|^2 / 2 s^2), s^2 = h^2 + the variances of both."""

    def expected_kernel(variances, shift):
        total = BANDWIDTH**2 + variances
        return (BANDWIDTH**2 / total) ** (DIMENSION / 2) * np.exp(-DIMENSION * shift**2 / (2 * total))

    within = expected_kernel(2.0, 0.0) + expected_kernel(2 * WIDTH**2, 0.0)
    exact = within - 2 * expected_kernel(1 + WIDTH**2, SHIFT)
    assert exact > 0.05
    assert close_to_mean(replicates[0], exact)
    assert close_to_mean(replicates[1], 0.0)


def test_energy_distance_of_gaussians_in_closed_form(replicates):
    """E |N(m, s^2 I_d)| = s sqrt(2) Gamma((d+1)/2) / Gamma(d/2) 1F1(-1/2; d/2; -|m|^2 / 2 s^2)."""

    def expected_norm(variance, shift):
        factor = np.sqrt(2 * variance) * np.exp(
            scipy.special.gammaln((DIMENSION + 1) / 2) - scipy.special.gammaln(DIMENSION / 2)
        )
        return factor * scipy.special.hyp1f1(-0.5, DIMENSION / 2, -DIMENSION * shift**2 / (2 * variance))

    within = expected_norm(2.0, 0.0) + expected_norm(2 * WIDTH**2, 0.0)
    exact = 2 * expected_norm(1 + WIDTH**2, SHIFT) - within
    assert exact > 0.3
    assert close_to_mean(replicates[2], exact)
    assert close_to_mean(replicates[3], 0.0)


def test_kolmogorov_smirnov_of_each_coordinate():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(200, 3)), rng.normal(np.array([0.0, 1.0, 0.0]), size=(150, 3))
    test = kolmogorov_smirnov(x.reshape(200, 3, 1), y.reshape(150, 3, 1))
    assert test.statistic.shape == test.p_value.shape == (3,)
    everywhere = np.concatenate([x, y])
    for i in range(3):
        below_x, below_y = ((p[:, i][:, None] <= everywhere[:, i]).mean(axis=0) for p in (x, y))
        assert test.statistic[i] == pytest.approx(np.abs(below_x - below_y).max(), abs=1e-9)
    assert test.p_value[1] < 1e-9
    assert test.p_value[0] > 0.01
    assert test.smallest_p_value == pytest.approx(3 * test.p_value[1])
    assert kolmogorov_smirnov(x, x).smallest_p_value == 1.0


def test_p_values_are_uniform_under_equality():
    """By a second test: 300 coordinates' p-values against U(0, 1); D is discrete, so only to 1 / 20."""
    rng = np.random.default_rng(3)
    p_values = kolmogorov_smirnov(rng.normal(size=(80, 300)), rng.normal(size=(90, 300))).p_value
    assert scipy.stats.kstest(p_values, "uniform").statistic < 1.95 / np.sqrt(300) + 0.05


@pytest.mark.parametrize("distance", [maximum_mean_discrepancy, energy_distance, kolmogorov_smirnov])
def test_bad_points_are_refused(distance):
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"y holds 1 point: at least 2"):
        distance(x, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"x has points of shape \(2,\) and y of shape \(3,\)"):
        distance(x, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="x holds 1 non-finite"):
        distance(x.at[0, 0].set(jnp.nan), x)
    with pytest.raises(TypeError, match="y has dtype int32"):
        distance(x, jnp.ones((4, 2), int))


def test_bad_numbers_are_refused():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="bandwidth=0"):
        maximum_mean_discrepancy(x, x, bandwidth=0.0)
    with pytest.raises(ValueError, match=r"bandwidth has shape \(1, 1\)"):
        maximum_mean_discrepancy(x, x, bandwidth=jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="block_size=0"):
        maximum_mean_discrepancy(x, x, block_size=0)
    with pytest.raises(ValueError, match="block_size=0"):
        energy_distance(x, x, block_size=0)
    with pytest.raises(ValueError, match="x holds 1 point"):
        median_bandwidth(x[:1])
