"""Labelled images as whole numpy arrays with splits that never change.

Images stay raw, as stored (uint8 where possible: a quarter of the memory); ``Dataset.rescale`` brings a batch
to [-1, 1], where the models work. The splits are fixed and have nothing to do with an experiment's seed, so
that results of different seeds are results on the same test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxebm.data.npz import read_npz_arrays, stratified_indices
from jaxebm.data.tfds_images import TFDS_NUM_CLASSES, DatasetNotAvailableError, read_tfds_arrays

__all__ = ["DATASETS", "Dataset", "DatasetNotAvailableError", "Split", "load_dataset"]

DATASETS = ("digits", *TFDS_NUM_CLASSES)
"""Names that ``load_dataset`` knows, beside ``npz:PATH``."""

_NUM_VALIDATION = 5000  # images of each tfds training split that are kept for validation
_NPZ_PREFIX = "npz:"


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
    """Labelled images, split once and for all.

    Attributes:
      name: What ``load_dataset`` was asked for.
      train: Images to learn from.
      validation: Images to choose by, taken from the original training split where there is one.
      test: Images to report on.
      num_classes: K; labels lie in 0..K-1.
      value_range: Lowest and highest raw pixel value: (0, 16) for digits, (0, 255) for uint8.
      class_names: The K classes' own names; ``class_names[label]`` is right after ``exclude_classes`` too.
      held_out: The test images of the excluded classes, with their original labels, for out-of-distribution
        tests; None if no class was excluded.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    value_range: tuple[float, float]
    class_names: tuple[str, ...]
    held_out: Split | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image."""
        height, width, channels = self.train.image.shape[1:]
        return height, width, channels

    @property
    def num_levels(self) -> int | None:
        """How many values a raw pixel can take: 17 in digits, 256 in bytes; None where pixels are continuous.

        Continuous pixels, of a user's own file, lie in [0, 1] or [-1, 1]; levels are further apart.
        """
        low, high = self.value_range
        return int(high - low) + 1 if high - low > 2 else None

    def rescale(self, image: Any) -> Any:
        """Maps raw pixels to [-1, 1]: 2 * (image - low) / (high - low) - 1.

        Args:
          image: Raw pixels of any shape, numpy or JAX (traced too), in ``value_range`` = (low, high).

        Returns:
          float32 of the same shape and kind.
        """
        low, high = self.value_range
        return (image.astype(np.float32) - low) * (2.0 / (high - low)) - 1.0

    def restore(self, image: Any) -> Any:
        """Maps [-1, 1] to [0, 1] for pictures: (image + 1) / 2, samples that stray outside being clipped.

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
        return f"Dataset({self.name!r}, image_shape={self.image_shape}, {classes}, {sizes})"


def load_dataset(
    name: str,
    *,
    exclude_classes: Sequence[int] = (),
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """Loads a whole labelled image set with fixed, stratified train, validation and test splits.

    ``digits`` comes with scikit-learn: 1797 images 8x8x1 with pixels 0..16, split 1257 / 180 / 360.
    ``mnist``, ``fashion_mnist``, ``cifar10``, ``cifar100`` and ``svhn_cropped`` come from
    tensorflow-datasets, keep their test split and give 5000 training images to validation. ``npz:PATH`` is
    a file of your own (see ``jaxebm.data.npz.read_npz_arrays``), 70, 10 and 20 percent of each class.

    Args:
      name: One of ``DATASETS``, or ``npz:PATH``.
      exclude_classes: Classes to leave out of all three splits; the others are renumbered 0..K'-1 in their
        order, and ``held_out`` receives the test images of the excluded ones.
      data_dir: Where prepared tensorflow-datasets sets lie; default ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``.
      cache_dir: Where decoded arrays are kept; default ``$JAXEBM_CACHE_DIR``, else ``~/.cache/jaxebm``.
      download: Whether to download a set that is not prepared. False makes no network attempt.

    Returns:
      The data set.

    Raises:
      DatasetNotAvailableError: If the set, or a package that reads it, is not there; the message is one line.
      FileNotFoundError: If ``npz:PATH`` names no file.
      ValueError: If the name is unknown, the file's arrays are unfit, or ``exclude_classes`` is.

    Example:
      >>> dataset = load_dataset("digits", exclude_classes=[8, 9])
      >>> dataset
      Dataset('digits', image_shape=(8, 8, 1), num_classes=8, train=1010, validation=144, test=289)
      >>> dataset.rescale(dataset.train.image[:32]).shape
      (32, 8, 8, 1)

    Reference:
      Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """
    if name == "digits":
        dataset = _load_digits()
    elif name in TFDS_NUM_CLASSES:
        dataset = _load_tfds(name, data_dir, cache_dir, download)
    elif name.startswith(_NPZ_PREFIX) and name != _NPZ_PREFIX:
        dataset = _load_npz(name)
    else:
        raise ValueError(f"name={name!r}: name must be one of {', '.join(DATASETS)}, or npz:PATH.")
    return _without_classes(dataset, exclude_classes) if len(exclude_classes) else dataset


def _load_digits() -> Dataset:
    train_test_split = _stratifier("digits")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    image, label = bunch.images.astype(np.float32)[..., None], bunch.target.astype(np.int32)
    rest, test = train_test_split(np.arange(len(label)), test_size=360, stratify=label, random_state=0)
    train, validation = train_test_split(rest, test_size=180, stratify=label[rest], random_state=0)
    return Dataset(
        "digits",
        train=Split(image[train], label[train]),
        validation=Split(image[validation], label[validation]),
        test=Split(image[test], label[test]),
        num_classes=10,
        value_range=(0.0, 16.0),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _load_tfds(
    name: str, data_dir: str | Path | None, cache_dir: str | Path | None, download: bool
) -> Dataset:
    train_test_split = _stratifier(name)
    arrays = read_tfds_arrays(name, data_dir=data_dir, cache_dir=cache_dir, download=download)
    image, label = arrays.train_image, arrays.train_label
    train, validation = train_test_split(
        np.arange(len(label)), test_size=_NUM_VALIDATION, stratify=label, random_state=0
    )
    return Dataset(
        name,
        train=Split(image[train], label[train]),
        validation=Split(image[validation], label[validation]),
        test=Split(arrays.test_image, arrays.test_label),
        num_classes=TFDS_NUM_CLASSES[name],
        value_range=(0.0, 255.0),
        class_names=arrays.class_names,
    )


def _load_npz(name: str) -> Dataset:
    image, label, value_range, num_classes = read_npz_arrays(name.removeprefix(_NPZ_PREFIX))
    train, validation, test = stratified_indices(label)
    return Dataset(
        name,
        train=Split(image[train], label[train]),
        validation=Split(image[validation], label[validation]),
        test=Split(image[test], label[test]),
        num_classes=num_classes,
        value_range=value_range,
        class_names=tuple(str(index) for index in range(num_classes)),
    )


def _stratifier(name: str) -> Any:
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DatasetNotAvailableError(
            f"data set '{name}' needs scikit-learn, which is missing: pip install 'jaxebm[experiments]'."
        ) from error
    return train_test_split


def _without_classes(dataset: Dataset, exclude_classes: Sequence[int]) -> Dataset:
    excluded = [int(label) for label in exclude_classes]
    given, count = list(exclude_classes), dataset.num_classes
    if len(set(excluded)) < len(excluded):
        raise ValueError(f"exclude_classes={given}: exclude_classes must name each class once.")
    unknown = [label for label in excluded if not 0 <= label < count]
    if unknown:
        raise ValueError(
            f"exclude_classes={given}: '{dataset.name}' has classes 0..{count - 1}, no {unknown[0]}."
        )
    kept = [label for label in range(count) if label not in excluded]
    if len(kept) < 2:
        raise ValueError(
            f"exclude_classes={given}: two of the {count} classes must remain at least, not {len(kept)}."
        )
    new_label = np.full(count, -1, np.int32)
    new_label[kept] = np.arange(len(kept), dtype=np.int32)

    def keep(split: Split) -> Split:
        selected = new_label[split.label] >= 0
        return Split(split.image[selected], new_label[split.label[selected]])

    in_held_out = new_label[dataset.test.label] < 0
    return Dataset(
        dataset.name,
        train=keep(dataset.train),
        validation=keep(dataset.validation),
        test=keep(dataset.test),
        num_classes=len(kept),
        value_range=dataset.value_range,
        class_names=tuple(dataset.class_names[label] for label in kept),
        held_out=Split(dataset.test.image[in_held_out], dataset.test.label[in_held_out]),
    )
