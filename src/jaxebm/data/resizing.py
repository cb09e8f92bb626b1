"""Images of any size and number of channels in one shape."""

import functools
from collections import Counter
from collections.abc import Iterable
from statistics import median

import numpy as np

from jaxebm import checks

__all__ = ["LARGEST_SIDE", "check_image_shape", "default_size", "resized_integers", "to_image_shape"]

LARGEST_SIDE = 32
"""The longer side of images of a user, in pixels, unless another size is chosen."""

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PNG readers make grey of RGB


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
    check_image_shape(image_shape)
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


def resized_integers(image: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Converts an image of integers by `to_image_shape`, rounded to integers again.

    Args:
      image: (h, w, c) uint8 or uint16, c 1, 3 or 4.
      image_shape: (H, W, C), C 1 or 3.

    Returns:
      (H, W, C) of the same dtype; the image itself if it has that shape.
    """
    if image.shape == tuple(image_shape):
        return image
    highest = float(np.iinfo(image.dtype).max)
    resized = to_image_shape(image.astype(np.float32) * (2.0 / highest) - 1.0, image_shape)
    return np.rint((resized + 1.0) * (highest / 2.0)).astype(image.dtype)


def default_size(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Chooses one size for images of several sizes: the commonest, at most `LARGEST_SIDE` a side.

    Of equally common sizes it is the smallest. Where all sizes differ, it is a square, whose side is the
    median of the images' shorter sides.

    Args:
      sizes: (h, w) of each image, at least one.

    Returns:
      (H, W), with the proportions of the commonest size if that is too large.
    """
    counts = Counter(sizes)
    height, width = min(counts, key=lambda size: (-counts[size], size[0] * size[1], size))
    if len(counts) > 1 and counts[height, width] == 1:
        height = width = round(median(min(size) for size in counts))
    factor = min(1.0, LARGEST_SIDE / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


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


@functools.lru_cache(maxsize=256)
def _triangle_filter(size: int, new_size: int) -> np.ndarray:
    """Returns the matrix (new_size, size) that resizes a row; each of its rows sums to one."""
    factor = size / new_size
    centre = (np.arange(new_size) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(size)[None, :] - centre[:, None]) / max(factor, 1.0)
    weight = np.maximum(0.0, 1.0 - distance)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def check_image_shape(image_shape: tuple[int, int, int]) -> None:
    """Raises unless this is (H, W, C) with 1 or 3 channels."""
    if not isinstance(image_shape, tuple | list) or len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise ValueError(f"image_shape={image_shape!r}: (H, W, C) is needed, with 1 or 3 channels.")
    for side in image_shape[:2]:
        checks.positive_integer("image_shape", side)
