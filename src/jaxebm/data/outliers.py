"""Images of other data sets, in the shape of a model's images, for out-of-distribution detection."""

import re
from pathlib import Path

import numpy as np

from jaxebm import checks
from jaxebm.data.datasets import check_folders, load_dataset
from jaxebm.data.tfds_images import (
    DatasetNotAvailableError,
    PreparedSet,
    cache_folder,
    find_tfds_set,
    read_cache,
    read_first_images,
    write_cache,
)

__all__ = ["load_outliers", "to_image_shape"]

_INK_IS_DARK = ("omniglot",)  # black on white, while digits are white on black
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PNG readers make grey of RGB
_HIGHEST = {"uint8": 255.0, "uint16": 65535.0}
_NAME = re.compile(r"\w+(/[\w.-]+)?")
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
      name: ``digits``, ``npz:PATH`` (both as in `load_dataset`), or any set of tensorflow-datasets whose
        records hold one ``image``, with its configuration where it has some: ``omniglot``,
        ``emnist/letters``.
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
      FileNotFoundError: If ``npz:PATH`` names no file.
      ValueError: If ``name`` is not the name of a set, or ``image_shape`` or ``limit`` is invalid.
      TypeError: If an argument is of another type.

    Example:
      >>> outliers = load_outliers("digits", (28, 28, 3), limit=100)
      >>> outliers.shape, float(outliers.min()), float(outliers.max())
      ((100, 28, 28, 3), -1.0, 1.0)
    """
    checks.instance("name", name, str)
    _check_image_shape(image_shape)
    checks.positive_integer("limit", limit)
    check_folders(data_dir, cache_dir, download)
    if name == "digits" or name.startswith("npz:"):
        dataset = load_dataset(name)
        images = dataset.rescale(dataset.test.image[:limit])
        return np.stack([to_image_shape(image, image_shape) for image in images])
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r}: name must be digits, npz:PATH or a set of tensorflow-datasets, such as omniglot."
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


def to_image_shape(image: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Converts an image to another size and number of channels, with the same proportions.

    1. Its centre is cropped to the proportions of (H, W).
    2. Grey is repeated over three channels; RGB is converted to one channel by its luminance,
       0.299 R + 0.587 G + 0.114 B. A fourth channel, opacity, first blends the image with -1.
    3. It is resized with the triangle filter (bilinear; widened where the image shrinks, against aliasing),
       as in Pillow and ``jax.image.resize(method="linear")``.

    Args:
      image: (h, w, c) float in [-1, 1], c 1, 3 or 4.
      image_shape: (H, W, C), C 1 or 3.

    Returns:
      (H, W, C) float32 in [-1, 1].

    Raises:
      ValueError: If either shape is invalid.

    Example:
      >>> to_image_shape(np.ones((40, 30, 3)), (8, 8, 1)).shape
      (8, 8, 1)
    """
    _check_image_shape(image_shape)
    checks.array("image", image)
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"image has shape {image.shape}: (h, w, c) is needed, with 1, 3 or 4 channels and no empty side."
        )
    height, width, channels = image_shape
    image = _channels(_middle(image.astype(np.float32), height / width), channels)
    rows, columns = _triangle_filter(image.shape[0], height), _triangle_filter(image.shape[1], width)
    resized = (rows @ image.transpose(2, 0, 1) @ columns.T).transpose(1, 2, 0)
    return np.clip(resized, -1.0, 1.0)  # rounding may exceed the range by 1e-7


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


def _middle(image: np.ndarray, proportion: float) -> np.ndarray:
    """Crops the largest central part with ``height / width`` as close to ``proportion`` as possible."""
    height, width = image.shape[:2]
    kept_height = min(height, max(1, round(width * proportion)))
    kept_width = min(width, max(1, round(height / proportion)))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    return image[top : top + kept_height, left : left + kept_width]


def _channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] == 4:
        opacity = (image[..., 3:] + 1.0) / 2.0
        image = opacity * (image[..., :3] + 1.0) - 1.0
    if image.shape[2] == channels:
        return image
    return image @ _LUMINANCE[:, None] if channels == 1 else np.repeat(image, channels, axis=2)


def _triangle_filter(size: int, new_size: int) -> np.ndarray:
    """Returns the matrix (new_size, size) that resizes a row; each of its rows sums to one."""
    factor = size / new_size
    centre = (np.arange(new_size) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(size)[None, :] - centre[:, None]) / max(factor, 1.0)
    weight = np.maximum(0.0, 1.0 - distance)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def _check_image_shape(image_shape: tuple[int, int, int]) -> None:
    if not isinstance(image_shape, tuple | list) or len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise ValueError(f"image_shape={image_shape!r}: (H, W, C) is needed, with 1 or 3 channels.")
    for side in image_shape[:2]:
        checks.positive_integer("image_shape", side)
