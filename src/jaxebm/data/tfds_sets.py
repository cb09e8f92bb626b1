"""Any image set of tensorflow-datasets as a data set of images of one size."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxebm.data.arrays import dataset_from_arrays
from jaxebm.data.folder import checked_size, note_resizing
from jaxebm.data.images import Dataset
from jaxebm.data.labels import UNLABELLED
from jaxebm.data.resizing import default_size, resized_integers
from jaxebm.data.tfds_images import (
    SET_NAME,
    DatasetNotAvailableError,
    PreparedSet,
    cache_folder,
    class_names,
    find_tfds_set,
    read_cache,
    read_first_images,
    read_records,
    write_cache,
)

__all__ = ["load_tfds_set"]

_PARTS = ("train", "validation", "test")
_SEEN = 1000  # images, the first ones, by which size and channels are chosen
_INSTEAD = "load digits instead"
_CALLER_OF_LOAD_DATASET = 5  # frames up from a warning about the cache


def load_tfds_set(
    name: str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """Loads any set of tensorflow-datasets whose records hold an ``image``, and often a ``label``.

    The splits ``train``, ``validation`` and ``test`` are those of the set; one that it does not have, or that
    has no labels, is taken from ``train``. Classes without a training image are left out of the numbering.

    Args:
      name: Its name in tensorflow-datasets, with its configuration where it has some: ``emnist/letters``.
      size: (H, W); None takes the commonest size of the first 1000 training images, at most 32 a side.
      channels: 1 or 3; None takes 3 if some of those images has colours.
      data_dir: Folder of prepared sets; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      cache_dir: Folder of decoded arrays; default ``$JAXEBM_CACHE_DIR``, else ``~/.cache/jaxebm``.
      download: Whether to download a set that is not prepared. False makes no network attempt.

    Returns:
      The data set.

    Raises:
      DatasetNotAvailableError: If the set is missing, has no ``train`` or cannot be read.
      ValueError: If its images or labels are no data set, or an argument is not as described.
    """
    wanted = checked_size(size, channels)
    if not SET_NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r}: name must be that of a set of tensorflow-datasets, such as tfds:omniglot."
        )
    prepared = find_tfds_set(name, data_dir=data_dir, download=download, instead=_INSTEAD)
    if "train" not in prepared.splits:
        raise DatasetNotAvailableError(
            f"data set '{name}' has no split 'train' (it has {', '.join(prepared.splits) or 'none'}): "
            f"{_INSTEAD}."
        )
    if wanted is None or channels is None:
        seen = [image.shape for image in read_first_images(prepared, "train", _SEEN, instead=_INSTEAD)]
        if not seen or any(len(shape) != 3 for shape in seen):
            raise DatasetNotAvailableError(
                f"data set '{name}' holds no images (h, w, c) in its split 'train': {_INSTEAD}."
            )
        wanted = default_size(shape[:2] for shape in seen) if wanted is None else wanted
        channels = (1 if all(shape[2] == 1 for shape in seen) else 3) if channels is None else channels
    image_shape = (*wanted, channels)
    folder = cache_folder(cache_dir)
    arrays = {
        part: _read_part(prepared, part, image_shape, folder) for part in _PARTS if part in prepared.splits
    }
    if size is None:
        sizes = [tuple(one) for _, _, stored in arrays.values() for one in stored.tolist()]
        note_resizing(f"'{name}'", sizes, wanted, f"tfds:{name}")
    return _as_dataset(name, prepared, {part: (image, label) for part, (image, label, _) in arrays.items()})


def _as_dataset(
    name: str, prepared: PreparedSet, arrays: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Dataset:
    image, label = arrays.pop("train")
    has_classes = bool(np.any(label != UNLABELLED))
    known = class_names(prepared.version_dir, name)
    if len(known) <= label.max():
        known = tuple(str(index) for index in range(int(label.max()) + 1))
    # Named, because the classes of a set may have gaps: the letters of emnist begin at 1.
    names = [known[index] for index in np.unique(label[label != UNLABELLED])]
    texts = np.array(["", *known])

    def labels(label: np.ndarray) -> np.ndarray | None:
        return texts[np.where(label < len(known), label, UNLABELLED) + 1] if has_classes else None

    given: dict[str, Any] = {
        part: (images, labels(its_label))
        for part, (images, its_label) in arrays.items()
        if not has_classes or np.all(its_label != UNLABELLED)
    }
    try:
        return dataset_from_arrays(
            image, labels(label), name=f"tfds:{name}", class_names=names if has_classes else None, **given
        )
    except ValueError as error:
        raise ValueError(f"data set '{name}': {error}") from error


def _read_part(
    prepared: PreparedSet, part: str, image_shape: tuple[int, int, int], folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images of a split, their labels, -1 without, and their sizes (n, 2) as stored."""
    height, width, channels = image_shape
    # The number goes up when the same file would come out otherwise.
    cache_file = folder / f"{prepared.stem}-{part}-any-1-{height}x{width}x{channels}.npz"
    cached = read_cache(cache_file, ("image", "label", "size"), stacklevel=_CALLER_OF_LOAD_DATASET)
    if cached is not None:
        return cached[0], cached[1], cached[2]
    images: list[np.ndarray] = []
    labels: list[int] = []
    sizes: list[tuple[int, ...]] = []
    for record in read_records(prepared, part, instead=_INSTEAD):
        image, label = np.asarray(record["image"]), np.asarray(record.get("label", UNLABELLED))
        if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.dtype not in (np.uint8, np.uint16):
            raise DatasetNotAvailableError(
                f"data set '{prepared.name}' holds an image of shape {image.shape} and dtype {image.dtype} "
                f"in its split '{part}', not (h, w, c) of 1, 3 or 4 channels, uint8 or uint16: {_INSTEAD}."
            )
        if label.shape or not np.issubdtype(label.dtype, np.integer):
            raise DatasetNotAvailableError(
                f"data set '{prepared.name}' has a label of shape {label.shape} and dtype {label.dtype}, not "
                f"one class number for each image: {_INSTEAD}."
            )
        images.append(resized_integers(image, image_shape))
        labels.append(int(label))
        sizes.append(image.shape[:2])
    if not images:
        raise DatasetNotAvailableError(
            f"data set '{prepared.name}' has no images in its split '{part}': {_INSTEAD}."
        )
    arrays: dict[str, np.ndarray] = {
        "image": np.stack(images),
        "label": np.array(labels, np.int32),
        "size": np.array(sizes, np.int32),
    }
    write_cache(cache_file, arrays, stacklevel=_CALLER_OF_LOAD_DATASET)
    return arrays["image"], arrays["label"], arrays["size"]
