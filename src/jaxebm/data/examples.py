"""What a learner learns from: examples with labels, without, or both, or a function that draws them."""

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
"""``(rng_key, batch_size) -> x`` or ``-> (x, labels)``: a batch drawn anew, where data have no end."""


class Examples(NamedTuple):
    """Training data, as arrays with one leading axis or as a function that draws batches.

    Attributes:
      x: examples, a pytree of arrays ``(n, ...)``; or a `Sampler`.
      labels: their classes, integers ``(n,)``; None where there are none.
      unlabelled: more examples, ``(m, ...)``, that log p(x) learns from instead of ``x``; None takes ``x``.
    """

    x: Any
    labels: Any = None
    unlabelled: Any = None

    @property
    def x_data(self) -> Any:
        """What log p(x) learns from."""
        return self.x if self.unlabelled is None else self.unlabelled

    @property
    def is_sampler(self) -> bool:
        """Whether batches are drawn by a function."""
        return callable(self.x)


def as_examples(data: Any) -> Examples:
    """Reads what a user hands over as training data.

    - `Examples`: taken as it is;
    - a function ``(rng_key, batch_size) -> x`` or ``-> (x, labels)``: examples drawn anew for every batch;
    - a plain tuple ``(x, labels)`` whose second member is an integer vector of one label an example, or a
      `jaxebm.data.Split`;
    - anything else: ``x`` itself, a pytree of arrays with one leading axis. For a pytree that would be taken
      for ``(x, labels)``, give ``Examples(x)``.

    Args:
      data: see above.

    Returns:
      The examples; a function is wrapped so that it passes through ``jax.jit``.

    Raises:
      ValueError: if there is no example, leading axes differ, or labels are not one an example.
      TypeError: if labels are not integers.

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
    length = checks.batch_length("data", data.x)
    if data.labels is not None:
        labels = data.labels
        if jnp.shape(labels) != (length,):
            raise ValueError(
                f"data has labels of shape {jnp.shape(labels)} for {length} examples: one label for each "
                f"example, shape ({length},), is needed."
            )
        if not jnp.issubdtype(jnp.asarray(labels[:1]).dtype, jnp.integer):
            raise TypeError("data has labels that are not integers: class numbers 0..K-1 are needed.")
    if data.unlabelled is not None:
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


def split_labels(drawn: Any) -> tuple[Any, Any]:
    """Returns ``(x, labels)`` of what a `Sampler` drew; labels are None where it drew ``x`` alone."""
    return (drawn[0], drawn[1]) if _is_labelled(drawn) else (drawn, None)


def _is_labelled(data: Any) -> bool:
    if isinstance(data, Split):
        return True
    if type(data) not in (tuple, list) or len(data) != 2:
        return False
    labels = data[1]
    return (
        hasattr(labels, "dtype") and np.ndim(labels) == 1 and bool(jnp.issubdtype(labels.dtype, jnp.integer))
    )
