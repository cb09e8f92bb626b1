"""Labelled images of a user, checked before training."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from jaxebm import checks
from jaxebm.data.images import Dataset, Split, check_value_range
from jaxebm.data.splits import stratified_split

__all__ = ["dataset_from_arrays"]

_MINIMUM_PER_CLASS = 3  # one each for train, validation and test


def dataset_from_arrays(
    image: Any,
    label: Any = None,
    *,
    name: str = "mine",
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
) -> Dataset:
    """Makes a data set from a user's arrays, with fixed, stratified train, validation and test splits.

    From each class of n_k images, max(1, round(fraction * n_k)) go to validation and to test, always the
    same; the rest is train.

    Args:
      image: Images (n, H, W) or (n, H, W, C): uint8 in 0..255, or floating-point numbers in [0, 1] or in
        [-1, 1]; with ``value_range``, real numbers in that range.
      label: Classes (n,), the integers 0..K-1, each at least three times; None puts all images in one class.
      name: The name of the data set.
      class_names: The names of the K classes, all different; None names them by their numbers.
      value_range: Lowest and highest raw pixel value; None means (0, 255) for uint8 and, for floating-point
        images, (-1, 1) if any pixel is negative, else (0, 1).
      validation_fraction: Part of each class for validation, between 0 and 1.
      test_fraction: Part of each class for test, between 0 and 1.

    Returns:
      The data set. Images stay uint8, or become float32.

    Raises:
      ValueError: If an argument is not as described.
      TypeError: If one is of another type.

    Example:
      >>> images = np.zeros((100, 4, 4), np.uint8)
      >>> dataset_from_arrays(images, np.arange(100) % 2)
      Dataset('mine', image_shape=(4, 4, 1), num_classes=2, train=70, validation=10, test=20)
    """
    checks.text("name", name)
    image, value_range = _checked_image(_as_array("image", image), value_range)
    label = np.zeros(len(image), np.int32) if label is None else _as_array("label", label)
    label, num_classes = _checked_label(label, len(image))
    names = _checked_names(class_names, num_classes)
    train, validation, test = stratified_split(label, validation_fraction, test_fraction)
    return Dataset(
        name,
        train=Split(image[train], label[train]),
        validation=Split(image[validation], label[validation]),
        test=Split(image[test], label[test]),
        num_classes=num_classes,
        value_range=value_range,
        class_names=names,
    )


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # nested sequences of unequal length
        _fail(name, f"is no array ({error})", "Give all images one shape")


def _checked_names(class_names: Any, num_classes: int) -> tuple[str, ...]:
    if class_names is None:
        return tuple(str(index) for index in range(num_classes))
    if isinstance(class_names, str) or not hasattr(class_names, "__len__"):
        raise TypeError(
            f"class_names is of type {type(class_names).__name__}: a sequence of names is needed."
        )
    names = tuple(str(class_name) for class_name in class_names)
    if len(names) != num_classes:
        raise ValueError(
            f"class_names has {len(names)} entries: {num_classes} are needed, one for each class."
        )
    if len(set(names)) < num_classes or "" in names:
        raise ValueError(f"class_names={names}: the names must be different, and none empty.")
    return names


def _checked_image(
    image: np.ndarray, value_range: tuple[float, float] | None
) -> tuple[np.ndarray, tuple[float, float]]:
    if image.ndim not in (3, 4):
        _fail("image", f"has shape {image.shape}", "Give it shape (n, H, W) or (n, H, W, C)")
    if image.size == 0:
        _fail("image", f"has shape {image.shape}, which is empty", "Give at least one image")
    if image.ndim == 3:
        image = image[..., None]
    if image.shape[1] in (1, 3) and image.shape[3] > 4:
        _fail(
            "image",
            f"has shape {image.shape}, which looks like (n, C, H, W)",
            "Give it shape (n, H, W, C), np.moveaxis(image, 1, -1)",
        )
    is_integer = np.issubdtype(image.dtype, np.integer)
    allowed = image.dtype == np.uint8 if value_range is None else is_integer
    if not (allowed or np.issubdtype(image.dtype, np.floating)):
        remedy = "Store uint8 in 0..255, or floating point in [0, 1] or [-1, 1]"
        _fail("image", f"has dtype {image.dtype}", remedy)
    num_bad = 0 if is_integer else int(image.size - np.count_nonzero(np.isfinite(image)))
    if num_bad:
        what = f"holds {num_bad} non-finite pixels (NaN or infinity) of {image.size}"
        _fail("image", what, "Drop or repair those images")
    low, high = float(image.min()), float(image.max())
    if value_range is None:
        remedy = (
            "Rescale floating-point pixels to [0, 1] or [-1, 1], or store uint8, or give dataset_from_arrays "
            "their value_range"
        )
        lowest, highest = (0.0, 255.0) if is_integer else (-1.0 if low < 0.0 else 0.0, 1.0)
    else:
        lowest, highest = check_value_range(value_range)
        remedy = f"Give a value_range that holds all pixels, not {value_range}"
    if low < lowest or high > highest:
        _fail("image", f"spans {low:g} to {high:g}", remedy)
    return image if image.dtype == np.uint8 else image.astype(np.float32), (lowest, highest)


def _checked_label(label: np.ndarray, num_images: int) -> tuple[np.ndarray, int]:
    if label.ndim != 1:
        _fail("label", f"has shape {label.shape}", "Give it shape (n,), one class number for each image")
    if len(label) != num_images:
        what = f"has {len(label)} entries, but 'image' has {num_images}"
        _fail("label", what, "Give one label for each image")
    if not np.issubdtype(label.dtype, np.integer):
        _fail("label", f"has dtype {label.dtype}", "Store integers 0..K-1")
    classes, counts = np.unique(label, return_counts=True)
    if classes[0] < 0:
        _fail("label", f"has negative entries (smallest {classes[0]})", "Number the classes 0..K-1")
    if classes[-1] != len(classes) - 1:
        first_missing = int(np.flatnonzero(classes != np.arange(len(classes)))[0])
        what = f"has {len(classes)} classes up to {classes[-1]}, but none numbered {first_missing}"
        remedy = "Number the classes 0..K-1 without gaps: np.unique(label, return_inverse=True)[1]"
        _fail("label", what, remedy)
    if counts.min() < _MINIMUM_PER_CLASS:
        rarest = int(counts.argmin())
        what = f"has only {counts[rarest]} of class {rarest}"
        remedy = (
            f"Give each class {_MINIMUM_PER_CLASS} images or more: train, validation and test need one each"
        )
        _fail("label", what, remedy)
    return label.astype(np.int32), len(classes)


def _fail(name: str, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"'{name}' {what}. {remedy}.")
