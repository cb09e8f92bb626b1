"""Arrays of images as users store them: checked, in one layout, with the range of their pixels."""

import logging
from collections.abc import Mapping
from math import isqrt
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from jaxebm.data.images import check_value_range

__all__ = ["as_array", "fail", "read_images"]

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
Range = tuple[float, float]

_ROUNDING = 1e-6  # of the range: pixels that are beyond it by less are clipped
_FAINT = 1 / 64  # floating-point pixels that span less were perhaps divided by 255 twice
_OTHER_RANGE = "Another range: value_range=(0, 255), or ?value_range=0,255 after the path of a file"


def fail(name: str, what: str, remedy: str) -> NoReturn:
    """Raises ``ValueError`` in one line: which array is wrong, in what, and what to do."""
    raise ValueError(f"'{name}' {what}. {remedy}.")


def read_images(
    arrays: Mapping[str, np.ndarray],
    value_range: tuple[float, float] | None,
    labels: Mapping[str, np.ndarray | None] | None = None,
    *,
    source: str,
) -> tuple[Arrays, Range]:
    """Checks the images of all parts of a data set, and finds the range of their pixels.

    Args:
      arrays: Images (n, H, W) or (n, H, W, C) by their names, for the messages; all alike.
      value_range: Lowest and highest raw pixel value; None finds it: see `dataset_from_arrays`.
      labels: Labels by the same names, if there are some: their number shows which axis counts the images.
      source: The name of the data set, for the log.

    Returns:
      The images (n, H, W, C) by the same names, uint8 or float32, and the range.

    Raises:
      ValueError: If an array is not as described.
    """
    arrays = {name: _in_layout(name, array, (labels or {}).get(name)) for name, array in arrays.items()}
    first, *others = arrays
    for name in others:
        if arrays[name].shape[1:] != arrays[first].shape[1:]:
            what = f"has images of shape {arrays[name].shape[1:]} and '{first}' of {arrays[first].shape[1:]}"
            fail(name, what, "Give both one shape")
    is_integer = _is_integer(first, arrays[first])
    for name in others:
        if _is_integer(name, arrays[name]) != is_integer:
            what = f"has dtype {arrays[name].dtype} and '{first}' has {arrays[first].dtype}"
            fail(name, what, "Give both one dtype, and pixels in one range")
    if not is_integer:
        arrays = {name: _finite(name, array) for name, array in arrays.items()}
    low = min(float(array.min()) for array in arrays.values())
    high = max(float(array.max()) for array in arrays.values())
    chosen = (
        _assumed_range(source, arrays, low, high) if value_range is None else check_value_range(value_range)
    )
    slack = _slack(arrays) * (chosen[1] - chosen[0])
    if low < chosen[0] - slack or high > chosen[1] + slack:
        but = "" if value_range is None else f", not {value_range}"
        remedy = f"Give a value_range that holds all pixels{but}"
        fail(first, f"spans {low:g} to {high:g}", remedy)
    return {name: _stored(array, chosen) for name, array in arrays.items()}, chosen


def _in_layout(name: str, image: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """Returns the images as (n, H, W, C), or raises where the axes are in another order."""
    shape = image.shape
    if image.ndim == 2 and isqrt(shape[1]) ** 2 == shape[1] > 1:
        side = isqrt(shape[1])
        remedy = f"Give it shape (n, H, W) or (n, H, W, C), such as {name}.reshape(-1, {side}, {side})"
        fail(name, f"has shape {shape}", remedy)
    if image.ndim not in (3, 4):
        fail(name, f"has shape {shape}", "Give it shape (n, H, W) or (n, H, W, C)")
    if image.size == 0:
        fail(name, f"has shape {shape}, which is empty", "Give at least one image")
    if label is not None and label.ndim == 1 and 4 < len(label) == shape[-1] != shape[0]:
        axes = "(H, W, n)" if image.ndim == 3 else "(H, W, C, n)"
        what = f"has shape {shape} for {len(label)} labels, which looks like {axes}"
        fail(name, what, f"Give it shape (n, H, W) or (n, H, W, C), np.moveaxis({name}, -1, 0)")
    if image.ndim == 3:
        return image[..., None]
    if _is_channels_first(*shape[1:]):
        what = f"has shape {shape}, which looks like (n, C, H, W)"
        fail(name, what, f"Give it shape (n, H, W, C), np.moveaxis({name}, 1, -1)")
    return image


def _is_channels_first(first: int, second: int, third: int) -> bool:
    """Whether the axes of an image are rather (C, H, W) than (H, W, C)."""
    if first == 3:  # three rows are less likely than red, green and blue
        return third not in (1, 3)
    if first == 1:  # one row may be a signal with a few channels
        return third > 4 or (third == second and third > 1)
    return first == 4 and min(second, third) > 4


def _is_integer(name: str, image: np.ndarray) -> bool:
    """Whether pixels are integers or booleans; raises where they are no real numbers at all."""
    if image.dtype.kind in "biu":
        return True
    if not jnp.issubdtype(image.dtype, jnp.floating):  # of jnp, which counts bfloat16
        remedy = "Store uint8 in 0..255, or floating point in [0, 1] or [-1, 1]"
        fail(name, f"has dtype {image.dtype}", remedy)
    return False


def _finite(name: str, image: np.ndarray) -> np.ndarray:
    image = image if np.issubdtype(image.dtype, np.floating) else image.astype(np.float32)
    num_bad = int(image.size - np.count_nonzero(np.isfinite(image)))
    if num_bad:
        what = f"holds {num_bad} non-finite pixels (NaN or infinity) of {image.size}"
        fail(name, what, "Drop or repair those images")
    return image


def _assumed_range(source: str, arrays: Arrays, low: float, high: float) -> Range:
    """Returns the range that pixels without a given one are in; says so where it is a guess."""
    name = next(iter(arrays))
    dtype = arrays[name].dtype
    if low == high:
        what = f"is constant: every pixel is {low:g}"
        fail(name, what, "Check what was stored, or give its value_range")
    if dtype.kind == "b":
        return 0.0, 1.0
    is_float = dtype.kind not in "iu"
    slack = _slack(arrays)
    if is_float and low >= -1.0 - slack and high <= 1.0 + slack:
        if high - low < _FAINT:
            logger.warning(
                "%s: '%s' spans %g to %g only, of floating-point pixels in [0, 1]: was it divided by 255 "
                "twice? %s.", source, name, low, high, _OTHER_RANGE,
            )  # fmt: skip
        return (0.0, 1.0) if low >= -slack else (-1.0, 1.0)
    if is_float and not all(np.array_equal(array, np.rint(array)) for array in arrays.values()):
        remedy = (
            "Rescale floating-point pixels to [0, 1] or [-1, 1], or store uint8, or give their value_range"
        )
        if low >= 0.0 and high <= 255.0:
            remedy += f", such as value_range=(0, {16 if high <= 16 else 255})"
        fail(name, f"spans {low:g} to {high:g}", remedy)
    highest = 255.0 if high <= 255 else 65535.0 if dtype == np.uint16 else 0.0
    is_usual = low >= 0.0 and high > highest / 4 and highest > 0
    chosen = (0.0, highest) if is_usual else check_value_range((low, high))
    if is_float or not is_usual:
        logger.warning(
            "%s: '%s' holds the whole numbers %g to %g: its pixels are read as %g to %g. %s.",
            source, name, low, high, *chosen, _OTHER_RANGE,
        )  # fmt: skip
    return chosen


def _slack(arrays: Arrays) -> float:
    """How far rounding may take pixels beyond their range, as a part of its length."""
    kinds = [array.dtype for array in arrays.values() if np.issubdtype(array.dtype, np.floating)]
    return max((_ROUNDING, *(float(np.finfo(kind).eps) for kind in kinds))) if kinds else 0.0


def _stored(image: np.ndarray, value_range: Range) -> np.ndarray:
    """Returns pixels as uint8, where they are integers that fit, or as float32; clipped to the range."""
    low, high = value_range
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        return image.astype(np.uint8 if low >= 0 and high <= 255 else np.float32, copy=False)
    image = image.astype(np.float32, copy=False)
    outside = bool(image.min() < low or image.max() > high)
    return np.clip(image, np.float32(low), np.float32(high)) if outside else image


def as_array(name: str, value: Any) -> np.ndarray:
    """Returns the value as a numpy array, or raises ``ValueError`` where its parts differ in shape."""
    try:
        return np.asarray(value)
    except ValueError as error:  # nested sequences of unequal length
        fail(name, f"is no array ({error})", "Give all images one shape")
