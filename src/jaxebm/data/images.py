"""Labelled images as numpy arrays: the space of an image, and data sets with fixed splits.

Images stay raw, as stored (uint8 if possible: a quarter of the memory); ``rescale`` maps a batch to [-1, 1],
the range of the models, and ``unscale`` maps samples back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from jaxebm import checks

__all__ = ["Dataset", "ImageSpace", "Split"]


def check_value_range(value_range: Any) -> tuple[float, float]:
    """Returns (low, high), or raises unless they are finite numbers with low < high, in float32, too."""
    if not isinstance(value_range, tuple | list) or len(value_range) != 2:
        raise ValueError(f"value_range={value_range!r}: two finite numbers, low < high, are needed.")
    for end in value_range:
        checks.array("value_range", end, ())
    low, high = (float(end) for end in value_range)
    with np.errstate(over="ignore"):
        width = np.float32(high) - np.float32(low)
    if not (low < high and width > 0 and np.isfinite(width)):
        raise ValueError(
            f"value_range={value_range!r}: two finite numbers, low < high, are needed, in float32, too."
        )
    return low, high


def _check_names(class_names: Any) -> None:
    checks.instance("class_names", class_names, (tuple, list), "The classes' names, in order.")
    if not class_names:
        raise ValueError("class_names=(): the name of at least one class is needed.")
    for class_name in class_names:
        checks.text("class_names", class_name)


@dataclass(frozen=True)
class ImageSpace:
    """The description of images that a model needs without the data set: shape, pixel range, classes.

    Attributes:
      image_shape: (H, W, C) of one image.
      value_range: Lowest and highest raw pixel value (low, high).
      class_names: The K classes' names, in the order of their numbers.
      num_levels: How many values a raw pixel can take; None where pixels are continuous.

    Raises:
      ValueError: If the shape is not three integers of at least 1, the range is not low < high, there is no
        class, or ``num_levels`` is no integer of at least 2.
      TypeError: If an attribute is of another type.

    Example:
      >>> space = ImageSpace((8, 8, 1), (0.0, 16.0), ("even", "odd"))
      >>> space.rescale(np.array([0.0, 8.0, 16.0])).tolist(), space.num_classes
      ([-1.0, 0.0, 1.0], 2)
      >>> space.from_json(space.as_json()) == space
      True
    """

    image_shape: tuple[int, int, int]
    value_range: tuple[float, float]
    class_names: tuple[str, ...]
    num_levels: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.image_shape, tuple | list) or len(self.image_shape) != 3:
            raise ValueError(f"image_shape={self.image_shape!r}: (H, W, C) is needed.")
        for side in self.image_shape:
            checks.positive_integer("image_shape", side)
        check_value_range(self.value_range)
        _check_names(self.class_names)
        if self.num_levels is not None:
            checks.integer("num_levels", self.num_levels, 2)

    @property
    def num_classes(self) -> int:
        """K, the number of classes; labels lie in 0..K-1."""
        return len(self.class_names)

    def rescale(self, image: Any) -> Any:
        """Maps raw pixels to [-1, 1]: 2 * (image - low) / (high - low) - 1.

        Args:
          image: Raw pixels of any shape, numpy or JAX (traced too), in ``value_range`` = (low, high).

        Returns:
          float32 of the same shape and kind.
        """
        low, high = self.value_range
        return (image.astype(np.float32) - low) * (2.0 / (high - low)) - 1.0

    def unscale(self, x: Any) -> Any:
        """Maps [-1, 1] to raw pixels, the inverse of ``rescale``: low + (x + 1) * (high - low) / 2.

        Nothing is clipped or rounded: a sample outside [-1, 1] lies outside ``value_range`` too.

        Args:
          x: Rescaled pixels of any shape, numpy or JAX (traced too).

        Returns:
          float32 of the same shape and kind.
        """
        low, high = self.value_range
        return (x.astype(np.float32) + 1.0) * ((high - low) / 2.0) + low

    def as_json(self) -> dict[str, Any]:
        """Returns the attributes as a dictionary of plain values, for ``json.dumps``."""
        return {
            "image_shape": [int(side) for side in self.image_shape],
            "value_range": [float(end) for end in self.value_range],
            "class_names": list(self.class_names),
            "num_levels": self.num_levels,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ImageSpace":
        """Returns the space from the output of ``as_json``.

        Args:
          values: A dictionary as from ``as_json``; ``num_levels`` may be missing.

        Returns:
          The space.

        Raises:
          ValueError: If another entry is missing, or one is not as described.
        """
        missing = [name for name in ("image_shape", "value_range", "class_names") if name not in values]
        if missing:
            raise ValueError(f"values has no entry '{missing[0]}': use what ImageSpace.as_json returns.")
        shape = values["image_shape"]
        if not isinstance(shape, tuple | list) or len(shape) != 3:
            raise ValueError(f"values has image_shape={shape!r}: (H, W, C) is needed.")
        height, width, channels = (int(side) for side in shape)
        low, high = check_value_range(values["value_range"])
        names = tuple(str(name) for name in values["class_names"])
        return cls((height, width, channels), (low, high), names, values.get("num_levels"))


class Split(NamedTuple):
    """One part of a data set.

    Attributes:
      image: Raw pixels (n, H, W, C), uint8 or float32, in ``Dataset.value_range``.
      label: Class numbers (n,), int32.
    """

    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images with fixed splits.

    Attributes:
      name: The ``name`` given to ``load_dataset`` or ``dataset_from_arrays``.
      train: Images for training.
      validation: Images for model selection, taken from the original training split if there is one.
      test: Images for the final evaluation.
      num_classes: K; labels lie in 0..K-1.
      value_range: Lowest and highest raw pixel value: (0, 16) for digits, (0, 255) for uint8.
      class_names: The names of the K classes, in the order of the labels, also after ``exclude_classes``.
      held_out: The test images of the excluded classes, with their original labels, for out-of-distribution
        tests; None if no class was excluded.
      unlabelled: More training images, (m, H, W, C) as in ``train``, for log p(x) alone; None if all have
        labels.

    Raises:
      ValueError: If a split has no images or not one label in 0..K-1 for each, images differ in shape, the
        range is not low < high, or there are not K names.
      TypeError: If an attribute is of another type.

    Example:
      >>> part = Split(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1]))
      >>> Dataset("mine", part, part, part, 2, (0.0, 255.0), ("even", "odd"))
      Dataset('mine', image_shape=(8, 8, 1), num_classes=2, train=4, validation=4, test=4)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    value_range: tuple[float, float]
    class_names: tuple[str, ...]
    held_out: Split | None = None
    unlabelled: np.ndarray | None = None

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        checks.positive_integer("num_classes", self.num_classes)
        check_value_range(self.value_range)
        _check_names(self.class_names)
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} entries: {self.num_classes} are needed."
            )
        for name in ("train", "validation", "test", "held_out"):
            if name != "held_out" or self.held_out is not None:
                self._check_split(name)
        if self.unlabelled is not None:
            checks.array("unlabelled", self.unlabelled, (None, *self.image_shape))
            if self.unlabelled.dtype != self.train.image.dtype or not len(self.unlabelled):
                raise ValueError(
                    f"unlabelled holds {len(self.unlabelled)} images of dtype {self.unlabelled.dtype}: at "
                    f"least one of dtype {self.train.image.dtype}, that of train, or None, is needed."
                )

    def _check_split(self, name: str) -> None:
        split = getattr(self, name)
        checks.instance(name, split, Split, "Split(image, label) makes one.")
        checks.array(f"{name}.image", split.image, (None, None, None, None), "(n, H, W, C)")
        checks.one_label_each(f"{name}.label", split.label, len(split.image))
        if name == "held_out":  # with labels of its own, and perhaps empty
            return
        if not len(split.label):
            raise ValueError(f"{name} has no images: at least one is needed.")
        checks.integer_labels(f"{name}.label", split.label, self.num_classes)
        if split.image.shape[1:] != self.train.image.shape[1:]:
            raise ValueError(
                f"{name} has images of shape {split.image.shape[1:]} and train of {self.image_shape}: one "
                f"shape is needed."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image."""
        height, width, channels = self.train.image.shape[1:]
        return height, width, channels

    @cached_property
    def num_levels(self) -> int | None:
        """How many values a raw pixel can take: 17 in digits, 256 in bytes; None where pixels are continuous.

        Levels are the whole numbers of a range whose ends are whole. If some pixel of the training split is
        not a whole number, or lies outside the range, pixels count as continuous. Pixels at both ends of
        [-1, 1] alone have 2 levels.
        """
        low, high = self.value_range
        pixels = self.train.image
        whole = np.issubdtype(pixels.dtype, np.integer) or bool(np.all(pixels == np.rint(pixels)))
        if not whole or low % 1 or high % 1 or pixels.min() < low or pixels.max() > high:
            return None
        levels = int(high - low) + 1
        return 2 if levels == 3 and not np.any(pixels == low + 1) else levels

    @property
    def space(self) -> ImageSpace:
        """The description of these images that a model needs without the data set."""
        return ImageSpace(self.image_shape, self.value_range, self.class_names, self.num_levels)

    def rescale(self, image: Any) -> Any:
        """Maps raw pixels to [-1, 1]: see `ImageSpace.rescale`."""
        return self.space.rescale(image)

    def unscale(self, x: Any) -> Any:
        """Maps [-1, 1] to raw pixels, not clipped: see `ImageSpace.unscale`."""
        return self.space.unscale(x)

    def restore(self, image: Any) -> Any:
        """Maps [-1, 1] to [0, 1] for pictures: (image + 1) / 2, clipped to [0, 1].

        Args:
          image: Rescaled pixels of any shape, numpy or JAX (traced too).

        Returns:
          float32 of the same shape and kind, in [0, 1].
        """
        return ((image.astype(np.float32) + 1.0) / 2.0).clip(0.0, 1.0)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{part}={len(getattr(self, part).label)}" for part in ("train", "validation", "test")
        )
        classes = f"num_classes={self.num_classes}"
        if self.unlabelled is not None:
            sizes += f", unlabelled={len(self.unlabelled)}"
        return f"Dataset({self.name!r}, image_shape={self.image_shape}, {classes}, {sizes})"
