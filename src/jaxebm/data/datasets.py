"""Image data sets by name, with fixed splits.

The splits do not depend on the seed of an experiment, so that results of different seeds are on the same test
images.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxebm import checks
from jaxebm.data.folder import load_folder
from jaxebm.data.images import Dataset, Split
from jaxebm.data.npz import load_npz
from jaxebm.data.sources import SOURCES, Source, as_source, suggested_source
from jaxebm.data.splits import stratified_holdout
from jaxebm.data.tfds_images import TFDS_NUM_CLASSES, DatasetNotAvailableError, read_tfds_arrays
from jaxebm.data.tfds_sets import load_tfds_set

__all__ = ["DATASETS", "DatasetNotAvailableError", "is_loadable", "load_dataset"]

DATASETS = ("digits", *TFDS_NUM_CLASSES)
"""Names that ``load_dataset`` accepts, besides ``npz:PATH``, ``folder:PATH`` and ``tfds:NAME``."""

_NUM_VALIDATION = 5000  # images of each tfds training split that are kept for validation


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
    tensorflow-datasets, keep their test split and give 5000 training images to validation.

    Your own images (docs/your_data.md) are checked by `dataset_from_arrays`, which splits them where the
    splits are not given: 70, 10 and 20 percent of each class.

    - ``npz:PATH`` is a file written by ``numpy.savez(path, image=..., label=...)``; it may also hold
      ``validation_image``, ``validation_label``, ``test_image``, ``test_label``, ``class_names`` and
      ``value_range``;
    - ``folder:PATH`` is a folder of image files, one folder a class: see `load_folder`;
    - ``tfds:NAME`` is any other set of tensorflow-datasets whose records hold an ``image``, and a ``label``
      if it has classes.

    Options follow a question mark: ``folder:PATH?size=28&channels=1`` (also of tfds) chooses the size in
    pixels, ``28x32`` being height x width, and ``npz:PATH?value_range=0,255`` (also of a folder) the range of
    the pixels.

    Args:
      name: One of ``DATASETS``, or ``npz:PATH``, ``folder:PATH`` or ``tfds:NAME``.
      exclude_classes: Classes to leave out of all three splits; the others are renumbered 0..K'-1 in their
        order, and ``held_out`` receives the test images of the excluded ones. Images without labels stay.
      data_dir: Folder of prepared tensorflow-datasets sets; default ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``.
      cache_dir: Folder of decoded arrays; default ``$JAXEBM_CACHE_DIR``, else ``~/.cache/jaxebm``.
      download: Whether to download a set that is not prepared. False makes no network attempt.

    Returns:
      The data set.

    Raises:
      DatasetNotAvailableError: If the set, or a package that reads it, is missing; the message is one line.
      FileNotFoundError: If ``npz:PATH`` names no file, or ``folder:PATH`` no folder.
      ValueError: If the name is unknown, or the images, their labels or ``exclude_classes`` are invalid.
      TypeError: If an argument is of another type.

    Example:
      >>> dataset = load_dataset("digits", exclude_classes=[8, 9])
      >>> dataset
      Dataset('digits', image_shape=(8, 8, 1), num_classes=8, train=1010, validation=144, test=289)
      >>> dataset.rescale(dataset.train.image[:32]).shape
      (32, 8, 8, 1)

    Reference:
      Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """
    checks.instance("name", name, str)
    checks.instance("exclude_classes", exclude_classes, (tuple, list, range, set, frozenset, np.ndarray))
    exclude_classes = list(exclude_classes)
    for label in exclude_classes:
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise TypeError(f"exclude_classes={exclude_classes!r}: exclude_classes must hold integers.")
    check_folders(data_dir, cache_dir, download)
    if name == "digits":
        dataset = _load_digits()
    elif name in TFDS_NUM_CLASSES:
        dataset = _load_tfds(name, data_dir, cache_dir, download)
    elif (source := as_source(name)) is not None:
        dataset = replace(_load_source(source, data_dir, cache_dir, download), name=name)
    else:
        hint = suggested_source(name)
        raise ValueError(f"name={name!r}: name must be one of {', '.join(DATASETS)}, or {SOURCES}.{hint}")
    return _without_classes(dataset, exclude_classes) if len(exclude_classes) else dataset


def is_loadable(name: str) -> bool:
    """Whether `load_dataset` knows this kind of name; what it names may be missing all the same.

    Raises:
      ValueError: If options in it are not as described there.
    """
    return name in DATASETS or as_source(name) is not None


def _load_source(
    source: Source, data_dir: str | Path | None, cache_dir: str | Path | None, download: bool
) -> Dataset:
    if source.kind == "npz":
        return load_npz(source.path, name=source.path, **source.options)
    if source.kind == "folder":
        return load_folder(source.path, **source.options)
    if source.path in TFDS_NUM_CLASSES and not source.options:  # the splits of published results
        return _load_tfds(source.path, data_dir, cache_dir, download)
    return load_tfds_set(
        source.path, data_dir=data_dir, cache_dir=cache_dir, download=download, **source.options
    )


def check_folders(data_dir: Any, cache_dir: Any, download: Any) -> None:
    """Raises ``TypeError`` unless these are folders, or None, and a boolean."""
    for name, folder in (("data_dir", data_dir), ("cache_dir", cache_dir)):
        checks.instance(name, folder, (str, Path, type(None)))
    checks.boolean("download", download)


def _load_digits() -> Dataset:
    _require_scikit_learn("digits")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    image, label = bunch.images.astype(np.float32)[..., None], bunch.target.astype(np.int32)
    rest, test = stratified_holdout(label, 360)
    train, validation = (rest[rows] for rows in stratified_holdout(label[rest], 180))
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
    _require_scikit_learn(name)  # before the decoding, which can take minutes
    arrays = read_tfds_arrays(name, data_dir=data_dir, cache_dir=cache_dir, download=download)
    image, label = arrays.train_image, arrays.train_label
    train, validation = stratified_holdout(label, _NUM_VALIDATION)
    return Dataset(
        name,
        train=Split(image[train], label[train]),
        validation=Split(image[validation], label[validation]),
        test=Split(arrays.test_image, arrays.test_label),
        num_classes=TFDS_NUM_CLASSES[name],
        value_range=(0.0, 255.0),
        class_names=arrays.class_names,
    )


def _require_scikit_learn(name: str) -> None:
    try:
        import sklearn.model_selection  # noqa: F401
    except ImportError as error:
        raise DatasetNotAvailableError(
            f"data set '{name}' needs scikit-learn, which is missing: pip install 'jaxebm[experiments]'."
        ) from error


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
            f"exclude_classes={given}: at least two of the {count} classes must remain, not {len(kept)}."
        )
    new_label = np.full(count, -1, np.int32)
    new_label[kept] = np.arange(len(kept), dtype=np.int32)

    def keep(split: Split) -> Split:
        selected = new_label[split.label] >= 0
        return Split(split.image[selected], new_label[split.label[selected]])

    in_held_out = new_label[dataset.test.label] < 0
    return replace(
        dataset,
        train=keep(dataset.train),
        validation=keep(dataset.validation),
        test=keep(dataset.test),
        num_classes=len(kept),
        class_names=tuple(dataset.class_names[label] for label in kept),
        held_out=Split(dataset.test.image[in_held_out], dataset.test.label[in_held_out]),
    )
