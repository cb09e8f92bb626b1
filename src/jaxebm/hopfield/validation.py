"""Errors about memories and queries, raised before anything compiles."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["COLUMNS", "floating_dtype", "memory_arrays", "pattern_matrix", "spins", "vector"]


COLUMNS = "one number for each column of the memory's patterns or weights"
"""What the entries of a state are, for messages of `vector`."""


def pattern_matrix(name: str, patterns: Any) -> Array:
    """Returns ``patterns`` as a floating-point array, or raises unless it is a finite matrix (K, D).

    Args:
      name: the argument's name, for the message.
      patterns: K memories of D numbers, shape (K, D), K and D at least 1.

    Returns:
      The array: integers become the default width, floating-point numbers keep theirs.

    Raises:
      TypeError: if it is no array of real numbers.
      ValueError: if it has another number of axes, is empty, or holds NaN or infinity.

    Example:
      >>> pattern_matrix("patterns", [[1, -1, 1]]).dtype
      dtype('float32')
    """
    checks.array(name, patterns)
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
      TypeError: if it is no array of real numbers.
      ValueError: naming how many entries are wrong, and one of them.

    Example:
      >>> spins("patterns", jnp.array([1.0, -1.0]))
    """
    if checks.is_traced(values):
        return
    checks.array(name, values)
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
      TypeError: if it is no array of real numbers.
      ValueError: if the shape is another.

    Example:
      >>> vector("bias", jnp.zeros(3), 3, "one number for each coordinate")
    """
    checks.array(name, value)
    if np.shape(value) != (length,):
        raise ValueError(f"{name} has shape {np.shape(value)}: ({length},) is needed, {meaning}.")


def floating_dtype(name: str, value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` names a dtype of real floating-point numbers.

    Args:
      name: the argument's name, for the message.
      value: a dtype, or what ``jnp.dtype`` makes one of.

    Raises:
      TypeError: if it is none, or one of integers, booleans or complex numbers.

    Example:
      >>> floating_dtype("param_dtype", jnp.bfloat16)
    """
    try:
        accepted = value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        accepted = False
    if not accepted:
        raise TypeError(f"{name}={value!r}: {name} must be a floating-point dtype, such as jnp.float32.")


_AXES = {
    "patterns": "KD",
    "weights": "DD",
    "bias": "D",
    "offsets": "K",
    "beta": "",
    "gain": "",
    "observed": "D",
}
"""The axes of the arrays that a memory may hold: K memories, D coordinates."""


def memory_arrays(name: str, memory: Any) -> None:
    """Raises unless ``memory`` is an associative memory whose arrays fit each other.

    Args:
      name: the argument's name, for the message.
      memory: a memory of this package, its arrays traced or not, or one of the same protocol.

    Raises:
      TypeError: if it is no memory, or an array of it holds no real numbers.
      ValueError: if an array has another shape: a batch of memories is for ``jax.vmap``.

    Example:
      >>> from jaxebm.hopfield.memories import classical
      >>> memory_arrays("memory", classical([[1, -1, 1]]))
    """
    if not all(hasattr(memory, part) for part in ("states", "energy", "update")):
        raise TypeError(
            f"{name} is a {type(memory).__name__}: {name} must be an associative memory, such as "
            f"jaxebm.hopfield.modern(patterns, beta=1.0) or jaxebm.hopfield.pairwise(weights)."
        )
    own = dataclasses.is_dataclass(memory) and type(memory).__module__.startswith("jaxebm.")
    fields: dict[str, Any] = dict(vars(memory)) if own else {}  # others know what their arrays are
    optional = ("bias", "offsets") if "patterns" in fields else ()
    lengths: dict[str, tuple[int, str]] = {}
    if "memory" in fields:  # of a MaskedMemory
        memory_arrays(f"{name}.memory", fields["memory"])
        lengths["D"] = (fields["memory"].dimension, "memory")
    for part, axes in _AXES.items():
        if part not in fields or (fields[part] is None and part in optional):
            continue
        checks.array(f"{name}.{part}", fields[part])
        shape = np.shape(fields[part])
        fits = len(shape) == len(axes) and 0 not in shape
        if fits:
            found = [lengths.setdefault(axis, (n, part))[0] for axis, n in zip(axes, shape, strict=True)]
            fits = found == list(shape)
        if not fits:
            needed = ", ".join(axes) + ("," if len(axes) == 1 else "")
            known = "".join(f", {a} = {lengths[a][0]} as in {lengths[a][1]}" for a in axes if a in lengths)
            raise ValueError(
                f"{name}.{part} has shape {shape}: ({needed}) is needed{known}, for K memories of D numbers. "
                f"A batch of memories is for jax.vmap."
            )
