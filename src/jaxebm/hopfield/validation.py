"""Errors about memories and queries, raised before anything compiles."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["pattern_matrix", "spins", "vector"]


def pattern_matrix(name: str, patterns: Any) -> Array:
    """Returns ``patterns`` as a floating-point array, or raises unless it is a finite matrix (K, D).

    Args:
      name: the argument's name, for the message.
      patterns: K memories of D numbers, shape (K, D), K and D at least 1.

    Returns:
      The array: integers become the default width, floating-point numbers keep theirs.

    Raises:
      ValueError: if it has another number of axes, is empty, or holds NaN or infinity.

    Example:
      >>> pattern_matrix("patterns", [[1, -1, 1]]).dtype
      dtype('float32')
    """
    shape = np.shape(patterns)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}: (K, D) is needed, K >= 1 memories of D >= 1 numbers.")
    matrix = jnp.asarray(patterns)
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        matrix = jnp.asarray(patterns, dtype=float)
    checks.finite(name, matrix)
    return matrix


def spins(name: str, values: Any, *, unknown: bool = False) -> None:
    """Raises ``ValueError`` unless every entry is -1 or 1 (or 0, for unknown, where that is allowed).

    Args:
      name: the argument's name, for the message.
      values: an array; one that is being traced passes unchecked.
      unknown: whether 0 is accepted, as in a query of which a part is missing.

    Raises:
      ValueError: naming how many entries are wrong, and one of them.

    Example:
      >>> spins("patterns", jnp.array([1.0, -1.0]))
    """
    if checks.is_traced(values):
        return
    numbers = np.asarray(values)
    wrong = (np.abs(numbers) != 1) & ~((numbers == 0) & unknown)
    if np.any(wrong):
        accepted = "-1, 0 (unknown) and 1" if unknown else "-1 and 1"
        raise ValueError(
            f"{name} holds {np.count_nonzero(wrong)} entries of {numbers.size} that are no spins, such as "
            f"{numbers[wrong][0]!s}: {accepted} are accepted. Grey values need a network of real states "
            f"(modern, sparse, epanechnikov); binary images become spins by 2 * (x > 0.5) - 1."
        )


def vector(name: str, value: Any, length: int, meaning: str) -> None:
    """Raises ``ValueError`` unless ``value`` has shape (length,).

    Args:
      name: the argument's name, for the message.
      value: an array, traced or not.
      length: the length wanted.
      meaning: what the entries are, for the message.

    Raises:
      ValueError: if the shape is another.

    Example:
      >>> vector("bias", jnp.zeros(3), 3, "one number for each coordinate")
    """
    if np.shape(value) != (length,):
        raise ValueError(f"{name} has shape {np.shape(value)}: ({length},) is needed, {meaning}.")
