"""Sets of images that are not the data: same histogram, flat, between classes, by exact counting."""

import numpy as np
import pytest

from jaxebm.evaluation.classifier.ood_sets import (
    OOD_SETS,
    constant_images,
    interpolations,
    permute_pixels,
    uniform_noise,
)


def example_images(n=12, shape=(4, 5, 3), seed=7):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (n, *shape)).astype(np.float32), rng.integers(0, 3, n)


@pytest.mark.parametrize("name", list(OOD_SETS))
def test_sets_are_deterministic_bounded_and_in_shape(name):
    images, labels = example_images()
    before = images.copy()
    one, again, other = (OOD_SETS[name](np.random.default_rng(seed), images, labels) for seed in (0, 0, 1))
    assert one.shape == images.shape
    assert one.dtype == images.dtype
    assert np.abs(one).max() <= 1.0
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(images, before)
    assert not np.array_equal(one, images)


def test_uniform_noise_has_uniform_moments():
    noise = uniform_noise(np.random.default_rng(8), (50, 8, 8, 1))
    n = noise.size
    assert abs(noise.mean()) < 4 * np.sqrt(1 / 3 / n)
    assert abs((noise**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)  # Var x^2 = 1/5 - 1/9.


def test_constant_images_vary_only_between_images_and_channels():
    images = constant_images(np.random.default_rng(9), 20, (4, 5, 3))
    assert images.shape == (20, 4, 5, 3)
    assert np.ptp(images, axis=(1, 2)).max() == 0.0
    assert np.unique(images).size == 60
    with pytest.raises(ValueError, match="n=0"):
        constant_images(np.random.default_rng(9), 0, (4, 5, 3))


def test_permuted_pixels_keep_the_histogram_and_each_colour_exactly():
    images, _ = example_images()
    permuted = permute_pixels(np.random.default_rng(10), images)

    def colours(image):  # Rows are pixels, sorted as triples: equality shows that channels stayed together.
        flat = image.reshape(-1, 3)
        return flat[np.lexsort(flat.T)]

    for image, shuffled in zip(images, permuted, strict=True):
        np.testing.assert_array_equal(colours(image), colours(shuffled))


def test_each_image_is_permuted_on_its_own_and_uniformly():
    position = np.broadcast_to(np.arange(6.0).reshape(1, 2, 3, 1), (3000, 2, 3, 1))
    permuted = permute_pixels(np.random.default_rng(11), position).reshape(3000, 6)
    assert (
        np.unique(permuted, axis=0).shape[0] > 700
    )  # 720 orders exist; 11 expected to be missed, 700 is safe.
    table = np.stack([np.bincount(column.astype(int), minlength=6) for column in permuted.T])
    assert np.abs(table - 500).max() < 5 * np.sqrt(3000 * (1 / 6) * (5 / 6))  # 36 cells, 5 sigmas.


def test_interpolations_are_midpoints_of_different_classes_only():
    # The first pixel carries 4^label, so the midpoint tells which two classes it mixes.
    labels = np.repeat([0, 1, 2], [10, 3, 1])
    images = np.zeros((14, 1, 2, 1))
    images[:, 0, 0, 0], images[:, 0, 1, 0] = 4.0**labels, np.arange(14)
    mixed = interpolations(np.random.default_rng(12), images, labels)
    other = 2 * mixed[:, 0, 0, 0] - images[:, 0, 0, 0]
    assert set(other) <= {1.0, 4.0, 16.0}
    assert np.all(other != images[:, 0, 0, 0])
    partner = (2 * mixed[:, 0, 1, 0] - np.arange(14)).astype(int)
    np.testing.assert_array_equal(4.0 ** labels[partner], other)
    many = [interpolations(np.random.default_rng(s), images, labels)[0, 0, 1, 0] * 2 for s in range(60)]
    assert set(many) == {10.0, 11.0, 12.0, 13.0}  # Every image of another class can be the partner.


def test_bad_images_are_named():
    rng, (images, labels) = np.random.default_rng(13), example_images()
    with pytest.raises(ValueError, match=r"images has shape \(12, 20, 3\)"):
        permute_pixels(rng, images.reshape(12, 20, 3))
    with pytest.raises(TypeError, match="images has dtype uint8"):
        permute_pixels(rng, (images * 100).astype(np.uint8))
    with pytest.raises(ValueError, match=r"labels has shape \(11,\)"):
        interpolations(rng, images, labels[:11])
    with pytest.raises(TypeError, match="labels has dtype float64"):
        interpolations(rng, images, labels.astype(float))
    with pytest.raises(ValueError, match="single class 2"):
        interpolations(rng, images, np.full(12, 2))
