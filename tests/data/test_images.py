"""Pixels there and back, and what a model keeps of its data set."""

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import Dataset, ImageSpace, Split, dataset_from_arrays, load_dataset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_rescale_and_restore(digits: Dataset) -> None:
    image = digits.train.image[:20]
    rescaled = digits.rescale(image)
    assert isinstance(rescaled, np.ndarray)
    assert rescaled.dtype == np.float32
    assert (rescaled.min(), rescaled.max()) == (-1.0, 1.0)
    np.testing.assert_allclose(digits.restore(rescaled) * 16.0, image, atol=1e-5)
    np.testing.assert_array_equal(digits.restore(np.array([-3.0, 3.0])), [0.0, 1.0])
    on_device = jax.jit(lambda x: digits.restore(digits.rescale(x)))(jnp.asarray(image))
    assert on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, image / 16.0, atol=1e-6)


@pytest.mark.parametrize("value_range", [(0.0, 16.0), (0.0, 255.0), (-1.0, 1.0), (0.0, 1.0), (-3.0, 7.5)])
def test_unscale_is_the_inverse_of_rescale(value_range: tuple[float, float]) -> None:
    low, high = value_range
    space = ImageSpace((3, 4, 1), value_range, ("a",))
    pixels = np.linspace(low, high, 101, dtype=np.float32)
    back = space.unscale(space.rescale(pixels))
    assert isinstance(back, np.ndarray)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, pixels, atol=3e-7 * (high - low))
    # Nothing is clipped, and traced arrays pass too.
    outside = jax.jit(space.unscale)(jnp.array([-2.0, 0.0, 2.0], jnp.bfloat16))
    assert outside.dtype == jnp.float32
    np.testing.assert_allclose(outside, [low - (high - low) / 2, (low + high) / 2, high + (high - low) / 2])


def test_bytes_come_back_as_they_were() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    dataset = dataset_from_arrays(pixels)
    back = dataset.unscale(dataset.rescale(pixels))
    np.testing.assert_array_equal(np.rint(back).astype(np.uint8), pixels)


@pytest.mark.parametrize(
    ("pixels", "value_range", "expected"),
    [
        ([0, 3, 16], (0.0, 16.0), 17),
        ([0, 3, 16], (0.0, 255.0), 256),
        ([1, 3, 4], (1.0, 4.0), 4),
        ([0, 1, 1], (0.0, 1.0), 2),
        ([-1, 1, 1], (-1.0, 1.0), 2),
        ([-1, 0, 1], (-1.0, 1.0), 3),
        ([0, 0.5, 1], (0.0, 1.0), None),
        ([0, 3, 16.5], (0.0, 17.0), None),
        ([0, 3, 4], (-0.5, 4.0), None),
        ([0, 3, 16], (0.0, 1.0), None),
        ([0, 3, 16], (1.0, 16.0), None),
    ],
)
def test_num_levels_are_the_values_that_a_pixel_can_take(
    pixels: list[float], value_range: tuple[float, float], expected: int | None
) -> None:
    image = np.array(pixels, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)
    part = Split(image, np.zeros(3, np.int32))
    dataset = Dataset("levels", part, part, part, 1, value_range, ("0",))
    assert dataset.num_levels == dataset.space.num_levels == expected


def test_num_levels_of_digits(digits: Dataset) -> None:
    assert digits.num_levels == len(np.unique(digits.train.image)) == 17


def test_images_without_labels_are_checked_against_the_others(digits: Dataset) -> None:
    more = digits.test.image[:7]
    assert repr(replace(digits, unlabelled=more)).endswith("test=360, unlabelled=7)")
    for wrong, message in (
        (more[:0], "unlabelled holds 0 images"),
        (more.astype(np.uint8), "unlabelled holds 7 images of dtype uint8: at least one of dtype float32"),
        (more[:, :4], r"unlabelled has shape \(7, 4, 8, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(digits, unlabelled=wrong)


def test_a_space_says_what_the_data_set_says(digits: Dataset) -> None:
    space = digits.space
    assert space == ImageSpace((8, 8, 1), (0.0, 16.0), tuple("0123456789"), 17)
    assert (space.num_classes, space.image_shape) == (digits.num_classes, digits.image_shape)
    image = digits.test.image[:5]
    np.testing.assert_array_equal(space.rescale(image), digits.rescale(image))
    text = json.dumps(space.as_json())
    assert ImageSpace.from_json(json.loads(text)) == space
    assert hash(ImageSpace.from_json(json.loads(text))) == hash(space)
    few = load_dataset("digits", exclude_classes=[0, 7]).space
    assert few.class_names == tuple("12345689")


GOOD = {"image_shape": (8, 8, 1), "value_range": (0.0, 1.0), "class_names": ("a",)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (8, 8)}, r"image_shape=\(8, 8\): \(H, W, C\) is needed"),
        ({"image_shape": (8, 0, 1)}, "image_shape=0"),
        ({"value_range": (1.0, 1.0)}, r"value_range=\(1.0, 1.0\): two finite numbers, low < high"),
        ({"value_range": (0.0, float("inf"))}, "value_range=.*two finite numbers"),
        ({"class_names": ()}, r"class_names=\(\)"),
        ({"num_levels": 1}, "num_levels=1"),
    ],
)
def test_impossible_spaces_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSpace(**(GOOD | changes))


def test_a_missing_entry_is_named() -> None:
    values = ImageSpace(**GOOD).as_json()
    del values["value_range"]
    with pytest.raises(ValueError, match=r"no entry 'value_range'.*ImageSpace\.as_json"):
        ImageSpace.from_json(values)
