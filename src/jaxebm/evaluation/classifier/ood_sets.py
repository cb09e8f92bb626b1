"""Sets of images that are not the data: noise, constants, pixels out of order, two images at once.

``OOD_SETS`` names them, so that an experiment is a loop. Everything here is NumPy on the host.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxebm import checks

__all__ = ["OOD_SETS", "constant_images", "interpolations", "permute_pixels", "uniform_noise"]


def _check_generator(rng: np.random.Generator) -> None:
    checks.instance("rng", rng, np.random.Generator, "Make one by numpy.random.default_rng(seed).")


def _check_shape(shape: tuple[int, ...], length: int, accepted: str) -> None:
    if not isinstance(shape, tuple | list) or len(shape) != length:
        raise TypeError(f"shape={shape!r}: {accepted} is needed.")
    for size in shape:
        checks.positive_integer("shape", size)


def _checked_images(images: ArrayLike) -> np.ndarray:
    checks.floating("images", images)
    if np.ndim(images) != 4 or np.size(images) == 0:
        raise ValueError(
            f"images has shape {np.shape(images)}: non-empty (n, height, width, channels) is needed."
        )
    return np.asarray(images)


def uniform_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Images of independent pixels, uniform on [-1, 1].

    Args:
      rng: NumPy generator; one seed, one set.
      shape: ``(n, height, width, channels)``.

    Returns:
      float32 array of that shape, in [-1, 1].

    Raises:
      ValueError: if ``shape`` holds something else than positive integers.
      TypeError: if ``rng`` is no generator, or ``shape`` not four numbers.

    Example:
      >>> uniform_noise(np.random.default_rng(0), (5, 8, 8, 1)).shape
      (5, 8, 8, 1)
    """
    _check_generator(rng)
    _check_shape(shape, 4, "(n, height, width, channels)")
    return rng.uniform(-1.0, 1.0, shape).astype(np.float32)


def constant_images(rng: np.random.Generator, n: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Flat images: one value for each image and channel, uniform on [-1, 1].

    Args:
      rng: NumPy generator; one seed, one set.
      n: number of images.
      shape: ``(height, width, channels)`` of one image.

    Returns:
      float32 array ``(n, height, width, channels)``, in [-1, 1].

    Raises:
      ValueError: if ``n`` or an entry of ``shape`` is not a positive integer.
      TypeError: if ``rng`` is no generator, or ``shape`` not three numbers.

    Example:
      >>> images = constant_images(np.random.default_rng(0), 5, (8, 8, 3))
      >>> images.shape, float(np.ptp(images, axis=(1, 2)).max())
      ((5, 8, 8, 3), 0.0)
    """
    _check_generator(rng)
    checks.positive_integer("n", n)
    _check_shape(shape, 3, "(height, width, channels)")
    height, width, channels = shape
    values = rng.uniform(-1.0, 1.0, (n, 1, 1, channels)).astype(np.float32)
    return np.tile(values, (1, height, width, 1))


def permute_pixels(rng: np.random.Generator, images: ArrayLike) -> np.ndarray:
    """Each image with its pixels in a random order: the same histogram, no structure.

    Positions are permuted and a pixel's channels stay together, so colours are kept.

    Args:
      rng: NumPy generator; one seed, one set.
      images: ``(n, height, width, channels)``.

    Returns:
      Array of the same shape and dtype.

    Raises:
      ValueError: if ``images`` is empty or not of rank four.
      TypeError: if ``images`` is not floating point, or ``rng`` no generator.

    Example:
      >>> images = np.linspace(-1.0, 1.0, 8).reshape(1, 2, 4, 1)
      >>> permuted = permute_pixels(np.random.default_rng(0), images)
      >>> np.array_equal(np.sort(permuted, axis=None), images.ravel())
      True
    """
    _check_generator(rng)
    pixels = _checked_images(images)
    n, height, width, channels = pixels.shape
    order = rng.permuted(np.tile(np.arange(height * width), (n, 1)), axis=1)
    flat = pixels.reshape(n, height * width, channels)
    return np.take_along_axis(flat, order[:, :, None], axis=1).reshape(pixels.shape)


def interpolations(rng: np.random.Generator, images: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Midpoints of two images of different classes: close to the data in every pixel, but of no class.

    x_i <- (x_i + x_j) / 2, with j uniform among the images whose label differs from that of i.

    Args:
      rng: NumPy generator; one seed, one set.
      images: ``(n, height, width, channels)``.
      labels: ``(n,)`` integers.

    Returns:
      Array of the same shape and dtype as ``images``; row i mixes image i with another.

    Raises:
      ValueError: if shapes do not agree, or all labels are the same.
      TypeError: if ``images`` is not floating point, ``labels`` not integer, or ``rng`` no generator.

    Example:
      >>> images = np.stack([np.full((2, 2, 1), -1.0), np.full((2, 2, 1), 1.0)])
      >>> float(np.abs(interpolations(np.random.default_rng(0), images, np.array([0, 1]))).max())
      0.0

    Reference:
      Grathwohl et al. 2020 (JEM, arXiv 1912.03263), section 5.3, the "Interp" set, there of any two images.
    """
    _check_generator(rng)
    pixels = _checked_images(images)
    checks.array("labels", labels)
    classes = np.asarray(labels)
    checks.one_label_each("labels", classes, len(pixels))
    present = np.unique(classes)
    if present.size < 2:
        raise ValueError(
            f"labels holds the single class {int(present[0])}: images of two classes or more are needed."
        )
    partners = np.empty(classes.size, np.intp)
    for one_class in present:
        members, others = np.flatnonzero(classes == one_class), np.flatnonzero(classes != one_class)
        partners[members] = rng.choice(others, members.size)
    return (0.5 * (pixels + pixels[partners])).astype(pixels.dtype)


def _uniform_noise_like(rng: np.random.Generator, images: Any, labels: Any) -> np.ndarray:
    return uniform_noise(rng, _checked_images(images).shape)


def _constant_images_like(rng: np.random.Generator, images: Any, labels: Any) -> np.ndarray:
    n, height, width, channels = _checked_images(images).shape
    return constant_images(rng, n, (height, width, channels))


def _permute_pixels_of(rng: np.random.Generator, images: Any, labels: Any) -> np.ndarray:
    return permute_pixels(rng, images)


OOD_SETS: dict[str, Callable[[np.random.Generator, Any, Any], np.ndarray]] = {
    "uniform_noise": _uniform_noise_like,
    "constant": _constant_images_like,
    "permuted_pixels": _permute_pixels_of,
    "interpolation": interpolations,
}
"""Name -> ``(rng, images, labels) -> images`` of the same shape, made from a test set or in its shape."""
