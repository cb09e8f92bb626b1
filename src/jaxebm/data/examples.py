"""Training data: examples with labels, without labels, or both, or a function that draws examples."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.data.images import Split
from jaxebm.types import Array, Position

__all__ = ["Examples", "Sampler", "as_examples"]

Sampler: TypeAlias = Callable[[Array, int], Position]
"""``(rng_key, batch_size) -> x`` or ``-> (x, labels)``: draws a new batch from unlimited data."""


_PYTREE = "A tuple of two is read as (x, labels); for an x that is such a tuple, give Examples(x)."


class Examples(NamedTuple):
    """Training data, as arrays with one leading axis or as a function that draws batches.

    Attributes:
      x: examples, a pytree of arrays ``(n, ...)``; or a `Sampler`.
      labels: their classes, integers ``(n,)``; None where there are none.
      unlabelled: more examples, ``(m, ...)``, for log p(x) instead of ``x``; None takes ``x``.
    """

    x: Any
    labels: Any = None
    unlabelled: Any = None

    @property
    def x_data(self) -> Any:
        """The examples for log p(x)."""
        return self.x if self.unlabelled is None else self.unlabelled

    @property
    def is_sampler(self) -> bool:
        """Whether batches are drawn by a function."""
        return callable(self.x)


def as_examples(data: Any) -> Examples:
    """Converts the training data of a user to `Examples`.

    - `Examples`: returned unchanged;
    - a function ``(rng_key, batch_size) -> x`` or ``-> (x, labels)``: draws new examples for every batch;
    - a plain tuple or list of two, ``(x, labels)``, or a `jaxebm.data.Split`: labels are integers, one per
      example;
    - anything else: ``x`` itself, a pytree of arrays with one leading axis. For a pytree that is a tuple or
      list of two, give ``Examples(x)``.

    Args:
      data: see above.

    Returns:
      The examples; a function is wrapped so that it passes through ``jax.jit``.

    Raises:
      ValueError: if there is no example, leading axes differ, or labels are negative or not one per
        example.
      TypeError: if labels are not integers, or the examples not real numbers.

    Example:
      >>> as_examples((np.zeros((3, 2)), np.array([0, 1, 0]))).labels.shape
      (3,)
      >>> as_examples({"a": np.zeros((3, 2)), "b": np.zeros(3)}).labels is None
      True
    """
    if not isinstance(data, Examples):
        data = Examples(*data) if _is_labelled(data) else Examples(data)
    if callable(data.x):
        if data.labels is not None or data.unlabelled is not None:
            raise ValueError(
                "data.x is a function that draws examples: it has no labels or unlabelled arrays."
            )
        already = isinstance(data.x, jax.tree_util.Partial)
        return data if already else Examples(jax.tree_util.Partial(data.x))
    checks.real_arrays("data", data.x)
    length = checks.batch_length("data", data.x)
    if data.labels is not None:
        data = data._replace(labels=_checked_labels(data.labels, length))
    if data.unlabelled is not None:
        checks.real_arrays("data.unlabelled", data.unlabelled)
        checks.batch_length("data.unlabelled", data.unlabelled)
        kinds = [jax.tree.map(_kind, part) for part in (data.x, data.unlabelled)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"data.unlabelled holds examples of {kinds[1]} and data.x of {kinds[0]}: both must be of one "
                "shape and dtype, and scaled alike."
            )
    return data


def _kind(leaf: Any) -> str:
    return f"{jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)).name}{np.shape(leaf)[1:]}"


def _checked_labels(labels: Any, length: int) -> Any:
    abstract = checks.is_traced(labels) or isinstance(labels, jax.ShapeDtypeStruct)
    if not hasattr(labels, "dtype"):
        try:
            labels = np.asarray(labels)
        except ValueError as error:
            raise ValueError(f"data has labels that are not an array ({error}). {_PYTREE}") from None
    if labels.shape != (length,):
        raise ValueError(
            f"data has labels of shape {labels.shape} for {length} examples: one class number for each "
            f"example, shape ({length},), is needed; of one-hot labels take the argmax. {_PYTREE}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"data has labels of dtype {labels.dtype}: integer class numbers 0..K-1 are needed. {_PYTREE}"
        )
    if not abstract and (least := int(np.min(np.asarray(labels)))) < 0:
        raise ValueError(
            f"data has the label {least}: class numbers 0..K-1 are needed. Give unlabelled examples "
            "separately, jaxebm.data.Examples(x, labels, unlabelled)."
        )
    return labels


def split_labels(drawn: Any) -> tuple[Any, Any]:
    """Returns ``(x, labels)`` from the output of a `Sampler`; labels are None if it drew only ``x``."""
    if not _is_labelled(drawn) or np.ndim(drawn[1]) != 1 or not jnp.issubdtype(drawn[1].dtype, jnp.integer):
        return drawn, None
    return drawn[0], drawn[1]


def _is_labelled(data: Any) -> bool:
    if isinstance(data, Split):
        return True
    return type(data) in (tuple, list) and len(data) == 2
