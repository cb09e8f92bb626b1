"""Errors that name the argument, what was wrong and what is accepted, raised before anything compiles.

Traced values are not known and pass unchecked; shapes and dtypes are always checked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = [
    "batch_length",
    "batch_of",
    "finite",
    "floating",
    "in_range",
    "integer_labels",
    "is_traced",
    "non_negative",
    "one_label_each",
    "positive",
    "positive_integer",
]


def is_traced(value: Any) -> bool:
    """Returns whether ``value`` is abstract (in ``jit``, ``vmap``, ``grad``), its numbers unknown."""
    return isinstance(value, Tracer)


def _fail(name: str, value: Any, accepted: str) -> None:
    raise ValueError(f"{name}={value!r}: {name} must be {accepted}.")


def _numbers(name: str, value: Any) -> np.ndarray:
    numbers = np.asarray(value)
    # jnp.issubdtype, because NumPy does not count bfloat16 among its numbers.
    if not jnp.issubdtype(numbers.dtype, jnp.number) or jnp.issubdtype(numbers.dtype, jnp.complexfloating):
        raise TypeError(
            f"{name}={value!r} is no real number: {name} must be a number or an array of numbers."
        )
    return numbers


def positive(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` is finite and above zero."""
    if is_traced(value):
        return
    numbers = _numbers(name, value)
    if not np.all(np.isfinite(numbers) & (numbers > 0)):
        _fail(name, value, "finite and greater than 0")


def non_negative(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` is finite and at least zero."""
    if is_traced(value):
        return
    numbers = _numbers(name, value)
    if not np.all(np.isfinite(numbers) & (numbers >= 0)):
        _fail(name, value, "finite and at least 0")


def in_range(name: str, value: Any, low: float, high: float) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` lies in [low, high]."""
    if is_traced(value):
        return
    numbers = _numbers(name, value)
    if not np.all((numbers >= low) & (numbers <= high)):
        _fail(name, value, f"between {low} and {high}")


def positive_integer(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless ``value`` is a concrete integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        _fail(name, value, "an integer of at least 1")


def floating(name: str, tree: Any) -> None:
    """Raises ``TypeError`` unless every leaf of ``tree`` has a floating-point dtype."""
    for leaf in jax.tree.leaves(tree):
        dtype = jnp.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} has dtype {dtype}: a floating-point array is needed, because the energy is "
                f"differentiated with respect to it. Convert it, for example {name}.astype(jnp.float32)."
            )


def batch_length(name: str, tree: Any, what: str = "a batch") -> int:
    """Returns the length of the leading axis that all leaves of ``tree`` share, at least 1, or raises.

    ``what`` says in the message what the tree should have been, such as ``"a batch of chains"``.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        found = f"leaves of shapes {shapes}" if shapes else "no arrays"
        raise ValueError(
            f"{name} has {found}: {what} is needed, one leading axis of at least 1 that all leaves share."
        )
    return shapes[0][0]


def batch_of(name: str, tree: Any, length: int, reason: str) -> None:
    """Raises ``ValueError`` unless all leaves of ``tree`` share a leading axis of that length.

    ``reason`` ends the message: where the length comes from.
    """
    found = batch_length(name, tree)
    if found != length:
        raise ValueError(f"{name} has a leading axis of {found}: {length} is needed, {reason}.")


def finite(name: str, tree: Any) -> None:
    """Raises ``ValueError`` unless every entry of every concrete leaf of ``tree`` is finite."""
    for leaf in jax.tree.leaves(tree):
        if is_traced(leaf):
            continue
        bad = int(np.size(leaf) - np.count_nonzero(np.isfinite(np.asarray(leaf))))
        if bad:
            raise ValueError(
                f"{name} holds {bad} non-finite entries (NaN or infinity) of {np.size(leaf)}: "
                f"drop or repair those examples first."
            )


def one_label_each(name: str, labels: np.ndarray, num_images: int) -> None:
    """Raises unless ``labels`` is an integer array ``(num_images,)``."""
    if labels.shape != (num_images,):
        raise ValueError(
            f"{name} has shape {labels.shape}: {(num_images,)} is needed, one label for each image."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} has dtype {labels.dtype}: integer class labels are needed.")


def integer_labels(name: str, labels: Any, num_classes: int) -> None:
    """Raises unless ``labels`` is an integer array with entries in 0..num_classes-1."""
    dtype = jnp.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {dtype}: integer class labels 0..{num_classes - 1} are needed.")
    if is_traced(labels) or np.size(labels) == 0:
        return
    values = np.asarray(labels)  # np.min of a JAX array would be traced inside another trace
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} spans {low}..{high}: labels must lie in 0..{num_classes - 1} for {num_classes} classes."
        )
