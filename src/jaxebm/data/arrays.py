"""Images of a user, with or without labels, checked before training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxebm import checks
from jaxebm.data.images import Dataset, Split
from jaxebm.data.labels import UNLABELLED, read_labels
from jaxebm.data.pixels import as_array, fail, read_images
from jaxebm.data.splits import fraction_of_each_class

__all__ = ["dataset_from_arrays"]


def dataset_from_arrays(
    image: Any,
    label: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    name: str = "mine",
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
) -> Dataset:
    """Makes a data set from a user's arrays, with train, validation and test splits.

    From each class of n_k images, max(1, round(fraction * n_k)) go to validation and to test, always the
    same; the rest is train. A part that is given is taken as it is, and none is taken from ``image`` for it.

    The range of the pixels, where ``value_range`` is None:

    - floating-point pixels are in [0, 1], or in [-1, 1] if one is negative; beyond it by rounding alone
      (1e-6 of the range), they are clipped;
    - integers are in 0..255, uint16 above 255 in 0..65535;
    - integers whose largest value is at most a quarter of that (masks of 0 and 1, pixels 0..16, 12 bits in
      uint16), others, and whole floating-point numbers that leave [-1, 1], are in their own range, from the
      smallest to the largest. One logged line says so.

    Args:
      image: Images (n, H, W) or (n, H, W, C): booleans, integers or floating-point numbers.
      label: Classes (n,): the integers 0..K-1, or names, which are numbered in the order of ``class_names``
        or of the alphabet. -1, NaN or an empty name is an image without a label, for log p(x) alone. None
        puts all images in one class, for an unconditional model.
      validation: (image, label) of the validation part, or its images if ``label`` is None; None takes it
        from ``image``.
      test: The same of the test part.
      name: The name of the data set.
      class_names: The names of the K classes, all different; None names them by their numbers.
      value_range: Lowest and highest raw pixel value.
      validation_fraction: Part of each class for validation, between 0 and 1.
      test_fraction: Part of each class for test, between 0 and 1.

    Returns:
      The data set. Integers in 0..255 are uint8, other pixels float32.

    Raises:
      ValueError: If an argument is not as described. Messages call the arrays of ``test`` test_image and
        test_label.
      TypeError: If one is of another type.

    Example:
      >>> images = np.arange(1600, dtype=np.uint8).reshape(100, 4, 4)
      >>> dataset_from_arrays(images, np.arange(100) % 2)
      Dataset('mine', image_shape=(4, 4, 1), num_classes=2, train=70, validation=10, test=20)
      >>> names = ["cat", "dog", "dog", "cat"] * 20 + [""] * 20          # the last 20 are without a label
      >>> pets = dataset_from_arrays(images, names, test=(images[:8], names[:8]))
      >>> pets, pets.class_names
      (Dataset('mine', image_shape=(4, 4, 1), num_classes=2, train=72, validation=8, test=8, unlabelled=20),
       ('cat', 'dog'))
    """
    checks.text("name", name)
    given = {"image": as_array("image", image)}
    labels = {} if label is None else {"label": as_array("label", label)}
    fractions = {"validation": validation_fraction, "test": test_fraction}
    for part, pair in (("validation", validation), ("test", test)):
        checks.fraction(f"{part}_fraction", fractions[part])
        if pair is not None:
            del fractions[part]
            given[f"{part}_image"], part_label = _pair(part, pair, labelled=label is not None)
            if part_label is not None:
                labels[f"{part}_label"] = part_label
    images, value_range = read_images(
        given, value_range, {part: labels.get(_label_of(part)) for part in given}, source=name
    )
    lengths = {_label_of(part): len(images[part]) for part in images}
    if label is None:
        labels = {part: np.zeros(length, np.int32) for part, length in lengths.items()}
    numbers, names = read_labels(labels, lengths, class_names, source=name)
    image, label = images["image"], numbers["label"]
    unlabelled = None
    if np.any(label == UNLABELLED):
        unlabelled = image[label == UNLABELLED]
        image, label = image[label != UNLABELLED], label[label != UNLABELLED]
    _check_counts(label, names, list(fractions))
    taken = fraction_of_each_class(
        label, **{f"{part}_fraction": part_of for part, part_of in fractions.items()}
    )
    rows = dict(zip(fractions, taken, strict=True))
    is_train = np.ones(len(label), bool)
    is_train[np.concatenate([np.zeros(0, int), *taken])] = False

    def split(part: str) -> Split:
        if part in rows:
            return Split(image[rows[part]], label[rows[part]])
        return Split(images[f"{part}_image"], numbers[f"{part}_label"])

    return Dataset(
        name,
        train=Split(image[is_train], label[is_train]),
        validation=split("validation"),
        test=split("test"),
        num_classes=len(names),
        value_range=value_range,
        class_names=names,
        unlabelled=unlabelled,
    )


def _label_of(image: str) -> str:
    return image.replace("image", "label")


def _pair(part: str, given: Any, *, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the images and labels of a part that was given; the labels are None for images without."""
    image, label = given, None
    if isinstance(given, tuple | list) and len(given) == 2:
        image, label = given
    elif not hasattr(given, "shape"):
        raise TypeError(
            f"{part} is of type {type(given).__name__}: {part} must be (image, label), or an array of images "
            "where label is None."
        )
    if labelled and label is None:
        fail(f"{part}_label", "is missing, but there is 'label'", f"Give {part}=(image, label)")
    if label is not None and not labelled:
        fail("label", f"is missing, but there is '{part}_label'", "Give the labels of both, or of neither")
    image = as_array(f"{part}_image", image)
    return image, None if label is None else as_array(f"{part}_label", label)


def _check_counts(label: np.ndarray, names: Sequence[str], split_off: list[str]) -> None:
    """Raises unless each class has an image for train and for each part that is taken from it."""
    classes, counts = np.unique(label, return_counts=True)
    needed = 1 + len(split_off)
    if counts.min() < needed:
        rarest = int(counts.argmin())
        parts = " and ".join(", ".join(["train", *split_off]).rsplit(", ", 1))
        fail(
            "label",
            f"has only {counts[rarest]} of class {names[classes[rarest]]}",
            f"Give each class {needed} images or more: {parts} need one each",
        )
