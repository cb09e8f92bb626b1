"""Powers of two that bring numbers near 1, so that squares of very large or small ones are in range."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.types import Array

__all__ = ["check_precision", "extreme_unit", "power_of_two"]


def power_of_two(*arrays: Array, axis: tuple[int, ...] | None = None) -> Array:
    """Returns a power of two near the largest absolute value in these arrays, within a factor of 4.

    A division by it changes no digit, except of numbers that are about 1e-38 times the largest. It counts as
    a constant where it is differentiated.

    Args:
      arrays: floating-point arrays of one dtype.
      axis: axes to reduce, kept with length 1; ``None`` gives one number for all of them, ``()``.

    Returns:
      The power; 1 where all numbers are 0 (or below the smallest normal number) or one is not finite.

    Example:
      >>> float(power_of_two(jnp.array([0.3, -6.0, 1.0])))
      4.0
    """
    reduced = [jnp.max(jnp.abs(array), axis=axis, keepdims=axis is not None, initial=0.0) for array in arrays]
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack(reduced), axis=0))
    # An exact quotient: jnp.ldexp and 2.0**n go through approximations of exp on some devices.
    mantissa, _ = jnp.frexp(largest)
    tiny = jnp.finfo(largest.dtype).tiny
    usable = (largest >= tiny) & jnp.isfinite(largest)
    power = jnp.where(usable, largest / jnp.where(usable, 2 * mantissa, 1.0), 1.0).astype(largest.dtype)
    # Compilers divide by multiplying with 1 / power, which must be a normal number.
    return jnp.minimum(power, (1 / tiny).astype(largest.dtype))


def extreme_unit(*arrays: np.ndarray, ordinary: float = 1e100) -> float:
    """Returns a power of two near the largest number, or 1 where that is between 1 / ordinary and ordinary.

    By default the squares of what is ordinary are in the range of float64.
    """
    largest = max(float(np.max(np.abs(array), initial=0.0)) for array in arrays)
    if largest == 0.0 or 1 / ordinary < largest < ordinary:
        return 1.0
    return 2.0 ** (math.frexp(largest)[1] - 1)


def check_precision(name: str, array: Any) -> None:
    """Raises ``ValueError`` if the numbers of a NumPy array leave the range of their dtype in JAX."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float64 or array.size == 0:
        return
    narrow = np.dtype(jnp.result_type(array))
    if narrow == np.float64:
        return
    largest = float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
    limits = np.finfo(narrow)
    if largest > float(limits.max) or 0 < largest < float(limits.tiny):
        raise ValueError(
            f"{name} has dtype float64 and a largest absolute value of {largest:g}, which {narrow} does not "
            f"hold ({limits.tiny:g} to {limits.max:g}): rescale it, or set jax_enable_x64."
        )
