"""Images of other data sets, in the shape of a model's images, for out-of-distribution detection."""

from pathlib import Path

import numpy as np

from jaxebm import checks
from jaxebm.data.datasets import check_folders, load_dataset
from jaxebm.data.folder import load_folder
from jaxebm.data.resizing import check_image_shape, to_image_shape
from jaxebm.data.sources import as_source, suggested_source
from jaxebm.data.tfds_images import (
    SET_NAME,
    DatasetNotAvailableError,
    PreparedSet,
    cache_folder,
    find_tfds_set,
    read_cache,
    read_first_images,
    write_cache,
)

__all__ = ["load_outliers"]

_INK_IS_DARK = ("omniglot",)  # black on white, while digits are white on black
_HIGHEST = {"uint8": 255.0, "uint16": 65535.0}
_INSTEAD = "leave it out"


def load_outliers(
    name: str,
    image_shape: tuple[int, int, int],
    *,
    limit: int = 1000,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    download: bool = False,
) -> np.ndarray:
    """Loads the first test images of any image set in the shape and range of a model's images.

    They come from the split ``test``; where a set has none, from ``validation``, else from its first split
    that is not ``train``, else from ``train``. `to_image_shape` describes their conversion. Omniglot
    is inverted, because it is black on white.

    Args:
      name: ``digits``, ``npz:PATH``, ``folder:PATH`` (all as in `load_dataset`, which splits off test images
        where they are not given), or any set of tensorflow-datasets whose records hold one ``image``, with
        its configuration where it has some: ``omniglot``, ``emnist/letters``, or ``tfds:omniglot``.
      image_shape: (H, W, C) of the model's images, C 1 or 3.
      limit: Greatest number of images.
      data_dir: Folder of prepared sets; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      cache_dir: Folder of the converted arrays; default ``$JAXEBM_CACHE_DIR``, else ``~/.cache/jaxebm``.
      download: Whether to download a set that is not prepared. False makes no network attempt.

    Returns:
      Images, (n, H, W, C) float32 in [-1, 1], n at most ``limit``.

    Raises:
      DatasetNotAvailableError: If the set is missing, cannot be read or holds no images; the message is one
        line.
      FileNotFoundError: If ``npz:PATH`` names no file, or ``folder:PATH`` no folder.
      ValueError: If ``name`` is not the name of a set, or ``image_shape`` or ``limit`` is invalid.
      TypeError: If an argument is of another type.

    Example:
      >>> outliers = load_outliers("digits", (28, 28, 3), limit=100)
      >>> outliers.shape, float(outliers.min()), float(outliers.max())
      ((100, 28, 28, 3), -1.0, 1.0)
    """
    checks.instance("name", name, str)
    check_image_shape(image_shape)
    checks.positive_integer("limit", limit)
    check_folders(data_dir, cache_dir, download)
    source = as_source(name)
    if name == "digits" or (source is not None and source.kind != "tfds"):
        if source is not None and source.kind == "folder":  # in the model's shape at once
            folder_options = {"size": image_shape[:2], "channels": image_shape[2]} | source.options
            dataset = load_folder(source.path, **folder_options)
        else:
            dataset = load_dataset(name)
        images = dataset.rescale(dataset.test.image[:limit])
        return np.stack([to_image_shape(image, image_shape) for image in images])
    name = name.removeprefix("tfds:")
    if not SET_NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r}: name must be digits, npz:PATH, folder:PATH or a set of tensorflow-datasets, "
            f"such as omniglot.{suggested_source(name)}"
        )
    prepared = find_tfds_set(name, data_dir=data_dir, download=download, instead=_INSTEAD)
    split = _split_to_read(prepared)
    height, width, channels = image_shape
    # The number goes up when the same file would come out otherwise.
    file = f"{prepared.stem}-{split}-outliers-1-{limit}-{height}x{width}x{channels}.npz"
    cache_file = cache_folder(cache_dir) / file
    cached = read_cache(cache_file, ("image",), stacklevel=3)
    if cached is not None:
        return cached[0]
    sign = -1.0 if name.split("/")[0] in _INK_IS_DARK else 1.0
    images = [
        sign * to_image_shape(_rescaled(name, image), image_shape)
        for image in read_first_images(prepared, split, limit, instead=_INSTEAD)
    ]
    if not images:
        raise DatasetNotAvailableError(f"data set '{name}' has no images in its split '{split}': {_INSTEAD}.")
    result = np.stack(images)
    write_cache(cache_file, {"image": result}, stacklevel=3)
    return result


def _split_to_read(prepared: PreparedSet) -> str:
    """Returns the split that is least likely to be used for training."""
    splits = prepared.splits
    others = [split for split in splits if split != "train"]
    for split in ("test", "validation", *others, "train"):
        if split in splits:
            return split
    raise DatasetNotAvailableError(
        f"data set '{prepared.name}' is prepared in {prepared.version_dir} without any split: {_INSTEAD}."
    )


def _rescaled(name: str, image: np.ndarray) -> np.ndarray:
    """Maps stored pixels to [-1, 1]."""
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise DatasetNotAvailableError(
            f"data set '{name}' holds images of shape {image.shape}, not (h, w, c) with 1, 3 or 4 channels: "
            f"{_INSTEAD}."
        )
    if image.dtype.name not in _HIGHEST:
        raise DatasetNotAvailableError(
            f"data set '{name}' holds pixels of type {image.dtype}, not uint8 or uint16: {_INSTEAD}."
        )
    return image.astype(np.float32) * (2.0 / _HIGHEST[image.dtype.name]) - 1.0
