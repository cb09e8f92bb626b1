"""PRDC against hand counts, a slow transcription of the paper, and its exact expectations."""

import numpy as np
import pytest

from jaxebm.evaluation.samples import generation
from jaxebm.evaluation.samples.generation import (
    class_agreement,
    nearest_neighbours,
    prdc,
    prdc_by_class,
    squared_radii,
    within_range,
)


def slow_prdc(real, fake, k):
    """The four sums of Naeem et al. 2020, one pair of points at a time."""

    def radius(points, i):
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, j) for j in range(len(fake))]
    inside_real = np.array(
        [[np.linalg.norm(x - y) < r for y in fake] for x, r in zip(real, real_radii, strict=True)]
    )
    inside_fake = np.array(
        [[np.linalg.norm(x - y) < r for y, r in zip(fake, fake_radii, strict=True)] for x in real]
    )
    return (
        inside_real.any(axis=0).mean(),
        inside_fake.any(axis=1).mean(),
        inside_real.sum(axis=0).mean() / k,
        inside_real.any(axis=1).mean(),
    )


def test_hand_made_points_on_a_line():
    # Real at 0, 1, 3, 7: with k = 1 the radii are 1, 1, 2, 4. Fake at 0.5, 4.5, 20: radii 4, 4, 15.5.
    real, fake = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([[0.5], [4.5], [20.0]])
    value = prdc(real, fake, k=1)
    assert value.precision == pytest.approx(2 / 3)  # 0.5 and 4.5; not 20.
    assert value.recall == 1.0  # 0, 1, 3 near 0.5; 7 near 4.5.
    assert value.density == pytest.approx((2 + 2) / 3)  # 0.5 in balls of 0, 1; 4.5 in balls of 3 and 7.
    assert value.coverage == 1.0


def test_balls_are_open():
    # The fake point lies exactly on the spheres about 0 and 2, whose radius is 2.
    value = prdc(np.array([[0.0], [2.0]]), np.array([[4.0], [-2.0]]), k=1)
    assert value[0] == value[2] == value[3] == 0.0


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_equals_the_slow_transcription(k, shift, monkeypatch):
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(31, 3)), rng.normal(size=(23, 3)) * [1.0, 0.3, 1.0] + shift
    expected = slow_prdc(real, fake, k)
    np.testing.assert_allclose(prdc(real, fake, k), expected, atol=1e-12)
    assert prdc(real, fake, k, real_radii=squared_radii(real, k)) == prdc(real, fake, k)
    monkeypatch.setattr(generation, "_BLOCK_ENTRIES", 50)  # Many ragged blocks: two or one rows at a time.
    np.testing.assert_allclose(prdc(real, fake, k), expected, atol=1e-12)


def test_copies_of_the_data_score_exactly_one():
    """An open ball holds its centre and k - 1 others, so density is k / k; ties must not leak in."""
    real = np.random.default_rng(1).normal(size=(60, 20)) * 1e3 + 0.1
    assert prdc(real, real[::-1], k=5) == (1.0, 1.0, 1.0, 1.0)


def test_identical_distributions_match_the_exact_expectations():
    """Coverage 1 - (n-1)...(n-k) / ((m+n-1)...(m+n-k)) and density 1, precision = recall by symmetry."""
    rng, n, m, k, repeats = np.random.default_rng(2), 90, 90, 3, 250
    values = np.array([prdc(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k) for _ in range(repeats)])
    steps = np.arange(1, k + 1)
    coverage = 1 - np.prod((n - steps) / (m + n - steps))
    assert coverage == pytest.approx(1 - 2.0**-k, abs=0.01)
    error = values.std(axis=0) / np.sqrt(repeats)
    mean = values.mean(axis=0)
    assert abs(mean[3] - coverage) < 4 * error[3]
    assert abs(mean[2] - 1.0) < 4 * error[2]
    difference = values[:, 0] - values[:, 1]
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(repeats)


def test_coverage_expectation_with_unequal_numbers():
    rng, n, m, k, repeats = np.random.default_rng(3), 80, 30, 4, 250
    values = np.array([prdc(rng.random((n, 3)), rng.random((m, 3)), k).coverage for _ in range(repeats)])
    steps = np.arange(1, k + 1)
    expected = 1 - np.prod((n - steps) / (m + n - steps))
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(repeats)


def test_mode_collapse_keeps_precision_and_loses_coverage():
    rng = np.random.default_rng(4)
    centres = 20.0 * np.eye(4)
    real = np.concatenate([c + rng.normal(size=(50, 4)) for c in centres])
    collapsed = centres[0] + 0.3 * rng.normal(size=(200, 4))
    value = prdc(real, collapsed, k=5)
    assert value.precision > 0.95
    assert value.coverage <= 0.25
    assert value.recall < 0.1


def test_an_outlier_among_real_points_cannot_buy_density():
    """One real outlier's huge ball makes stray samples precise; density barely counts them (section 3)."""
    rng = np.random.default_rng(5)
    real = np.concatenate([rng.normal(size=(200, 2)), [[30.0, 30.0]]])
    stray = np.array([25.0, 25.0]) + rng.normal(size=(50, 2))
    value = prdc(real, stray, k=5)
    assert value.precision == 1.0
    assert value.density == pytest.approx(0.2)
    assert value.coverage == pytest.approx(1 / 201)


def test_invariance_under_motions_and_scale():
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(50, 3)), rng.normal(0.5, 1.0, size=(40, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    value = prdc(real, fake, 4)
    np.testing.assert_allclose(prdc(7 * real @ rotation + 2, 7 * fake @ rotation + 2, 4), value, atol=1e-12)
    np.testing.assert_allclose(prdc(rng.permutation(real), rng.permutation(fake), 4), value, atol=1e-12)
    swapped = prdc(fake, real, 4)
    assert (swapped.precision, swapped.recall) == (value.recall, value.precision)
    assert prdc(real.reshape(50, 1, 3, 1), fake.reshape(40, 1, 3, 1), 4) == value


def test_by_class_equals_each_class_alone_and_sees_swapped_classes():
    rng = np.random.default_rng(7)
    labels = np.repeat([0, 1, 2], 20)
    centres = 10.0 * np.eye(3)
    order = rng.permutation(60)
    real, fake = (centres[labels] + rng.normal(size=(60, 3)) for _ in range(2))
    value = prdc_by_class(real[order], labels[order], fake, labels, num_classes=3, k=4)
    for c in range(3):
        alone = prdc(real[labels == c], fake[labels == c], k=4)
        np.testing.assert_allclose([column[c] for column in value[1:]], alone)
    np.testing.assert_allclose(value.mean, [column.mean() for column in value[1:]])
    swapped = prdc_by_class(real, labels, fake, np.roll(labels, 20), num_classes=3, k=4)
    assert swapped.mean == (0.0, 0.0, 0.0, 0.0)
    assert prdc(real, fake, k=4).precision > 0.5


def test_bad_points_are_named():
    points = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"real holds 5 points: at least k \+ 1 = 6"):
        prdc(points[:5], points, k=5)
    with pytest.raises(ValueError, match="fake holds 5 points"):
        prdc(points, points[:5], k=5)
    with pytest.raises(ValueError, match=r"shape \(2,\) and fake of shape \(3,\)"):
        prdc(points, np.zeros((6, 3)))
    with pytest.raises(ValueError, match="fake holds 1 non-finite"):
        prdc(points, np.where(np.arange(12).reshape(6, 2) == 3, np.nan, points))
    with pytest.raises(ValueError, match="k=0"):
        prdc(points, points, k=0)
    with pytest.raises(ValueError, match=r"real_radii has shape \(5,\): \(6,\)"):
        prdc(points, points, k=2, real_radii=np.ones(5))
    with pytest.raises(ValueError, match="points holds 6 points"):
        squared_radii(points, k=6)
    with pytest.raises(ValueError, match=r"real has shape \(6,\)"):
        prdc(points[:, 0], points[:, 0])
    labels = np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="class 1 of fake holds 0 points"):
        prdc_by_class(points, labels, points, np.zeros(6, int), 2, k=2)
    with pytest.raises(ValueError, match=r"fake_labels has shape \(5,\)"):
        prdc_by_class(points, labels, points, labels[:5], 2, k=2)
    with pytest.raises(ValueError, match=r"real_labels spans 0\.\.1"):
        prdc_by_class(points, labels, points, labels, 1, k=2)


def test_class_agreement():
    assert class_agreement(np.array([0, 1, 1, 2, 2]), np.array([0, 1, 2, 2, 0])) == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match=r"intended has shape \(1,\)"):
        class_agreement(np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match=r"predicted has shape \(0,\)"):
        class_agreement(np.array([], int), np.array([], int))
    with pytest.raises(TypeError, match="predicted has dtype float64"):
        class_agreement(np.array([0.0]), np.array([0]))


def test_nearest_neighbours_equal_sorting_all_distances(monkeypatch):
    rng = np.random.default_rng(8)
    queries, references = rng.normal(size=(17, 2, 2)), rng.normal(size=(29, 2, 2))
    monkeypatch.setattr(generation, "_BLOCK_ENTRIES", 100)
    indices, distances = nearest_neighbours(queries, references, k=4)
    full = np.linalg.norm(queries.reshape(17, 1, 4) - references.reshape(1, 29, 4), axis=2)
    np.testing.assert_array_equal(indices, np.argsort(full, axis=1)[:, :4])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :4], rtol=1e-12)


def test_nearest_neighbours_find_copies_at_distance_zero_and_break_ties_by_index():
    references = np.array([[0.1, 1e6], [0.3, 1e6], [0.1, 1e6]])
    indices, distances = nearest_neighbours(references, references, k=2)
    np.testing.assert_array_equal(distances[:, 0], 0.0)
    np.testing.assert_array_equal(indices, [[0, 2], [1, 0], [0, 2]])
    with pytest.raises(ValueError, match="references holds 3 points: at least k = 4"):
        nearest_neighbours(references, references, k=4)


def test_within_range_counts_the_border_in_and_nan_out():
    assert within_range(np.array([[-1.0, 1.0], [1.0001, np.nan]]), -1.0, 1.0) == 0.5
    assert within_range(np.zeros((2, 2)), 0.0, 0.0) == 1.0
    with pytest.raises(ValueError, match=r"low=1\.0 and high=0\.0"):
        within_range(np.zeros(2), 1.0, 0.0)
    with pytest.raises(ValueError, match=r"images has shape \(0,\)"):
        within_range(np.zeros(0), -1.0, 1.0)


@pytest.mark.parametrize("factor", [1e-200, 1e-19, 1e18, 1e200])
def test_points_of_any_size(factor):
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=(31, 3)), rng.normal(size=(23, 3)) * [1.0, 0.3, 1.0]
    assert prdc(real * factor, fake * factor, 3) == prdc(real, fake, 3)
    near, scaled = nearest_neighbours(fake, real, 2), nearest_neighbours(fake * factor, real * factor, 2)
    np.testing.assert_array_equal(scaled.indices, near.indices)
    np.testing.assert_allclose(scaled.distances, near.distances * factor, rtol=1e-12)


def test_points_that_coincide_have_empty_balls():
    same = np.full((8, 2), 0.1)
    assert prdc(same, same, 3) == (0.0, 0.0, 0.0, 0.0)
    assert prdc(same, same, 3, real_radii=np.ones(8)).coverage == 1.0


def test_arguments_that_are_no_real_numbers_are_named():
    points = np.ones((8, 2))
    for bad in (points * 1j, points.astype(str), {"a": points}):
        with pytest.raises(TypeError, match="fake"):
            prdc(points, bad)
        with pytest.raises(TypeError, match="images"):
            within_range(bad, 0.0, 1.0)
    with pytest.raises(TypeError, match="real_radii"):
        prdc(points, points, real_radii="all")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"low has shape \(2,\)"):
        within_range(points, np.zeros(2), 1.0)  # pyright: ignore[reportArgumentType]
    assert within_range(points, -np.inf, np.inf) == 1.0
