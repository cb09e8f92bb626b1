"""Pixels as users store them: the range that is read, and layouts that are not (n, H, W, C)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import dataset_from_arrays

LABEL = np.arange(40) % 2
UNIT = np.random.default_rng(0).uniform(size=(40, 5, 7))
WHOLE = np.random.default_rng(1).integers(0, 256, (40, 5, 7))


@pytest.mark.parametrize(
    ("image", "value_range", "dtype", "num_levels"),
    [
        (UNIT > 0.5, (0, 1), np.uint8, 2),
        (WHOLE, (0, 255), np.uint8, 256),
        (WHOLE.astype(np.uint16) * 257, (0, 65535), np.float32, 65536),
        (UNIT, (0, 1), np.float32, None),
        ((UNIT > 0.5).astype(np.float32), (0, 1), np.float32, 2),
        (np.sign(UNIT - 0.5), (-1, 1), np.float32, 2),
        (jnp.asarray(UNIT, jnp.bfloat16), (0, 1), np.float32, None),
    ],
    ids=["bool", "int64", "uint16", "float64", "floating mask", "spins", "bfloat16"],
)
def test_pixels_of_a_usual_range(
    image: Any, value_range: Any, dtype: Any, num_levels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dataset_from_arrays(image, LABEL)
    assert (dataset.value_range, dataset.num_levels) == (value_range, num_levels)
    assert dataset.train.image.dtype == dtype
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("image", "value_range", "num_levels"),
    [
        ((UNIT > 0.5).astype(np.uint8), (0, 1), 2),
        (WHOLE % 17, (0, 16), 17),
        ((WHOLE % 17).astype(float), (0, 16), 17),
        (WHOLE.astype(float), (0, 255), 256),
        ((WHOLE * 16).astype(np.uint16), (0, 4080), 4081),
        (WHOLE * 8 - 1000, (-1000, 1040), 2041),
        ((UNIT > 0.5) * 2 - 1, (-1, 1), 2),
        (WHOLE * 1000, (0, 255_000), 255_001),
    ],
    ids=["mask", "0..16", "0.0..16.0", "0.0..255.0", "12 bits", "Hounsfield", "spins", "large"],
)
def test_a_range_that_is_a_guess_is_told_in_one_line(
    image: np.ndarray, value_range: Any, num_levels: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dataset_from_arrays(image, LABEL)
    assert (dataset.value_range, dataset.num_levels) == (value_range, num_levels)
    assert dataset.rescale(dataset.train.image).max() == pytest.approx(1.0)
    (record,) = caplog.records
    text = record.getMessage()
    assert "\n" not in text
    assert f"read as {value_range[0]:g} to {value_range[1]:g}. Another range: value_range=(0, 255)" in text
    caplog.clear()
    wide = (min(0, value_range[0]), max(300_000, value_range[1]))
    assert dataset_from_arrays(image, LABEL, value_range=wide).value_range == wide
    assert caplog.text == ""  # it was chosen


def test_a_quarter_of_the_range_is_where_the_guess_begins(caplog: pytest.LogCaptureFixture) -> None:
    image = WHOLE.astype(np.uint8)
    image[0, 0, 0] = 0
    for highest, expected in ((63, (0, 63)), (64, (0, 255))):
        dim = np.minimum(image, highest)
        assert dataset_from_arrays(dim, LABEL).value_range == expected
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("image", "value_range"),
    [
        (UNIT - UNIT.min() - 1e-9, (0, 1)),
        (UNIT / UNIT.max() * (1 + 5e-7), (0, 1)),
        ((2 * UNIT - 1) / np.abs(2 * UNIT - 1).max() * (1 + 5e-7), (-1, 1)),
        ((UNIT / UNIT.max()).astype(np.float16) * np.float16(1.001), (0, 1)),
    ],
    ids=["below 0", "above 1", "beyond both", "half precision"],
)
def test_rounding_does_not_change_the_range(image: np.ndarray, value_range: Any) -> None:
    for given in (None, value_range):
        if given is not None and image.dtype == np.float16:
            image = image.astype(np.float32) / np.float32(image.max()) * np.float32(1 + 4e-7)
        dataset = dataset_from_arrays(image, LABEL, value_range=given)
        assert dataset.value_range == value_range
        for part in (dataset.train, dataset.validation, dataset.test):
            assert part.image.min() >= value_range[0]
            assert part.image.max() <= value_range[1]


def test_more_than_rounding_is_another_range() -> None:
    assert dataset_from_arrays(UNIT - UNIT.min() - 1e-4, LABEL).value_range == (-1, 1)
    with pytest.raises(ValueError, match=r"'image' spans 0.* Rescale .* value_range=\(0, 16\)"):
        dataset_from_arrays(UNIT / UNIT.max() * 1.001, LABEL)
    with pytest.raises(ValueError, match=r"'image' spans .* value_range=\(0, 255\)"):
        dataset_from_arrays(UNIT * 255, LABEL)


def test_pixels_that_were_divided_twice_are_asked_about(caplog: pytest.LogCaptureFixture) -> None:
    assert dataset_from_arrays(UNIT / 255, LABEL).value_range == (0, 1)
    assert "was it divided by 255 twice?" in caplog.text


def test_constant_images_are_refused_unless_their_range_is_given() -> None:
    for value, dtype in ((0, np.uint8), (1.0, np.float32), (True, bool)):
        with pytest.raises(
            ValueError, match=r"'image' is constant: every pixel is \d. Check what was stored"
        ):
            dataset_from_arrays(np.full((40, 5, 7), value, dtype), LABEL)
    assert dataset_from_arrays(np.zeros((40, 5, 7)), LABEL, value_range=(0, 1)).image_shape == (5, 7, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "shape",
    [
        (40, 3, 28, 28),
        (40, 3, 4, 4),
        (40, 3, 2, 2),
        (40, 3, 6, 4),
        (40, 1, 28, 28),
        (40, 1, 4, 4),
        (40, 4, 9, 9),
    ],
)
def test_channels_first_is_refused_with_the_transpose(shape: tuple[int, ...], dtype: Any) -> None:
    image = np.random.default_rng(0).uniform(0, 1 if dtype == np.float32 else 256, shape).astype(dtype)
    with pytest.raises(ValueError, match=r"looks like \(n, C, H, W\).*np\.moveaxis\(image, 1, -1\)"):
        dataset_from_arrays(image, LABEL)
    moved = np.moveaxis(image, 1, -1)
    assert dataset_from_arrays(moved, LABEL).image_shape == moved.shape[1:]


@pytest.mark.parametrize(
    "shape", [(3, 3, 3), (3, 5, 3), (3, 6, 1), (1, 20, 2), (1, 1, 1), (2, 2, 5), (4, 4, 4)]
)
def test_small_images_are_not_taken_for_channels_first(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).uniform(size=(40, *shape))
    assert dataset_from_arrays(image, LABEL).image_shape == shape


def test_images_along_the_last_axis_are_refused_with_the_transpose() -> None:
    for image in (np.moveaxis(UNIT, 0, -1), np.moveaxis(UNIT[..., None].repeat(3, 3), 0, -1)):
        with pytest.raises(
            ValueError, match=r"for 40 labels, which looks like .*np\.moveaxis\(image, -1, 0\)"
        ):
            dataset_from_arrays(image, LABEL)
        assert dataset_from_arrays(np.moveaxis(image, -1, 0), LABEL).image_shape[:2] == (5, 7)


def test_flat_images_are_refused_with_the_shape_of_a_square() -> None:
    with pytest.raises(ValueError, match=r"has shape \(40, 49\).*image\.reshape\(-1, 7, 7\)"):
        dataset_from_arrays(np.random.default_rng(0).uniform(size=(40, 49)), LABEL)
