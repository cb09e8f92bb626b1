"""Errors that name the argument, what was wrong and what is accepted, raised before anything compiles.

Values that are being traced cannot be looked at and pass unchecked; shapes and dtypes always can.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["finite", "floating", "in_range", "integer_labels", "is_traced", "non_negative", "positive", "positive_integer"]


def is_traced(value: Any) -> bool:
    """Returns whether ``value`` is abstract (inside ``jit``, ``vmap`` or ``grad``), so that its numbers are unknown."""
    return isinstance(value, jax.core.Tracer)


def _fail(name: str, value: Any, accepted: str) -> None:
    raise ValueError(f"{name}={value!r}: {name} must be {accepted}.")


def positive(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` is finite and above zero."""
    if not is_traced(value) and not bool(np.all(np.isfinite(value) & (np.asarray(value) > 0))):
        _fail(name, value, "finite and greater than 0")


def non_negative(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` is finite and at least zero."""
    if not is_traced(value) and not bool(np.all(np.isfinite(value) & (np.asarray(value) >= 0))):
        _fail(name, value, "finite and at least 0")


def in_range(name: str, value: Any, low: float, high: float) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` lies in [low, high]."""
    if not is_traced(value) and not bool(np.all((np.asarray(value) >= low) & (np.asarray(value) <= high))):
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


def integer_labels(name: str, labels: Any, num_classes: int) -> None:
    """Raises unless ``labels`` is an integer array with entries in 0..num_classes-1."""
    dtype = jnp.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {dtype}: integer class labels 0..{num_classes - 1} are needed.")
    if is_traced(labels) or np.size(labels) == 0:
        return
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} spans {low}..{high}: labels must lie in 0..{num_classes - 1} for {num_classes} classes.")
