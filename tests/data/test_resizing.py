"""Resizing against other programs' own, and the size that is chosen for images of several."""

import jax
import numpy as np
import pytest

from jaxebm.data.resizing import default_size, resized_integers, to_image_shape

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("size", "new_size"), [((105, 105), (28, 28)), ((28, 28), (32, 32)), ((9, 6), (6, 4))]
)
def test_resizing_is_that_of_jax_and_of_pillow(size: tuple[int, int], new_size: tuple[int, int]):
    image = RANDOM.uniform(-1.0, 1.0, (*size, 1)).astype(np.float32)
    ours = to_image_shape(image, (*new_size, 1))[..., 0]
    np.testing.assert_allclose(ours, jax.image.resize(image[..., 0], new_size, "linear"), atol=1e-5)
    pillow = pytest.importorskip("PIL.Image")
    theirs = pillow.fromarray(image[..., 0]).resize(new_size[::-1], pillow.Resampling.BILINEAR)
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-5)


def test_resizing_keeps_constants_and_symmetry_and_nothing_too_fine():
    for shape in ((28, 28, 1), (8, 8, 1), (64, 64, 1)):
        np.testing.assert_allclose(to_image_shape(np.full((31, 31, 1), 0.7), shape), 0.7, atol=1e-6)
    # Neither side is favoured: an image that turns into its negative in the mirror does so afterwards.
    ramp = to_image_shape(np.linspace(-1.0, 1.0, 64)[:, None, None] * np.ones((1, 64, 1)), (16, 16, 1))
    np.testing.assert_allclose(ramp[::-1], -ramp, atol=1e-6)
    assert ramp[-1].min() > 0.9
    # A pattern finer than the new pixels becomes grey instead of a coarser pattern.
    stripes = np.where(np.arange(64) % 2, 1.0, -1.0)[:, None, None] * np.ones((1, 64, 1))
    assert np.abs(to_image_shape(stripes, (16, 16, 1))[1:-1]).max() < 1e-6


def test_same_shape_changes_nothing():
    image = RANDOM.uniform(-1.0, 1.0, (7, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(to_image_shape(image, (7, 5, 3)), image, atol=1e-6)


def test_channels():
    colours = np.eye(3, dtype=np.float32)[None] * 2 - 1  # red, green and blue pixels
    np.testing.assert_allclose(
        to_image_shape(colours, (1, 3, 1))[0, :, 0], 2 * np.array([0.299, 0.587, 0.114]) - 1, atol=1e-6
    )
    grey = RANDOM.uniform(-1.0, 1.0, (4, 4, 1)).astype(np.float32)
    np.testing.assert_allclose(to_image_shape(grey, (4, 4, 3)), np.repeat(grey, 3, axis=2), atol=1e-6)
    np.testing.assert_allclose(to_image_shape(np.repeat(grey, 3, 2), (4, 4, 1)), grey, atol=1e-6)
    # White at opacity 1, 0.5 and 0 on the lowest value.
    faded = np.array([[[1.0, 1.0, 1.0, opacity] for opacity in (1.0, 0.0, -1.0)]])
    np.testing.assert_allclose(to_image_shape(faded, (1, 3, 1))[0, :, 0], [1.0, 0.0, -1.0], atol=1e-6)


def test_the_middle_is_kept_in_its_proportions():
    image = np.full((10, 20, 1), -1.0)
    image[:, 5:15] = 1.0  # a square that fills the middle
    np.testing.assert_allclose(to_image_shape(image, (4, 4, 1)), 1.0)
    np.testing.assert_allclose(to_image_shape(image.transpose(1, 0, 2), (4, 4, 1)), 1.0)
    whole = to_image_shape(image, (10, 20, 1))
    np.testing.assert_allclose(whole, image)


@pytest.mark.parametrize(
    ("image", "image_shape", "message"),
    [
        (np.zeros((4, 4)), (4, 4, 1), r"image has shape \(4, 4\)"),
        (np.zeros((4, 4, 2)), (4, 4, 1), "1, 3 or 4 channels"),
        (np.zeros((0, 4, 1)), (4, 4, 1), "no empty side"),
        (np.zeros((4, 4, 1)), (4, 4, 2), r"image_shape=\(4, 4, 2\)"),
        (np.zeros((4, 4, 1)), (4, 0, 1), "image_shape=0: image_shape must be an integer of at least 1"),
    ],
)
def test_shapes_that_do_not_fit(image: np.ndarray, image_shape: tuple[int, int, int], message: str):
    with pytest.raises(ValueError, match=message):
        to_image_shape(image, image_shape)


def test_integers_are_resized_as_pillow_does_and_stay_integers():
    pillow = pytest.importorskip("PIL.Image")
    image = RANDOM.integers(0, 256, (40, 40, 3), np.uint8)
    ours = resized_integers(image, (16, 16, 3))
    theirs = np.asarray(pillow.fromarray(image).resize((16, 16), pillow.Resampling.BILINEAR))
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert resized_integers(image, (40, 40, 3)) is image
    deep = np.full((4, 4, 1), 40_001, np.uint16)
    np.testing.assert_array_equal(resized_integers(deep, (3, 3, 1)), np.full((3, 3, 1), 40_001, np.uint16))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(8, 9)], (8, 9)),
        ([(8, 9), (20, 20), (20, 20)], (20, 20)),
        ([(20, 20), (20, 20), (8, 9), (8, 9)], (8, 9)),
        ([(64, 48)] * 3, (32, 24)),
        ([(500, 3)] * 2, (32, 1)),
        ([(300, 200), (310, 205), (400, 100)], (32, 32)),
        ([(12, 20), (14, 21), (30, 16)], (14, 14)),
    ],
    ids=["one", "commonest", "smallest of two", "too large", "very narrow", "photographs", "all differ"],
)
def test_default_size(sizes: list[tuple[int, int]], expected: tuple[int, int]):
    assert default_size(sizes) == expected
