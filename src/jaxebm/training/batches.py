"""Batches for the model: drawn inside the compiled update, rescaled, augmented and with noise added."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.data.examples import Examples, as_examples, split_labels
from jaxebm.data.stream import StreamState, init_stream, next_batch
from jaxebm.objectives.objective import Batch
from jaxebm.types import Array, Position

__all__ = ["AugmentExample", "Preparation", "Streams", "start_streams"]

AugmentExample: TypeAlias = Callable[[Array, Position], Position]
"""``(rng_key, x) -> x`` of one example, such as `jaxebm.data.random_flip`."""


class Streams(NamedTuple):
    """Positions in the data, a part of the training state.

    Attributes:
      labelled: position in the labelled examples; None if there are none.
      x_data: position in the examples that log p(x) learns from.
    """

    labelled: StreamState | None
    x_data: StreamState


class Preparation(NamedTuple):
    """Draws batches and prepares them for the model."""

    batch_size: int
    noise: float
    augment: AugmentExample | None
    augment_x_data: AugmentExample | None
    rescale: Callable[[Position], Position] | None

    def check(self, examples: Examples) -> None:
        """Raises unless the data are finite real numbers, hold at least one batch and fit the options."""
        if examples.is_sampler:
            checks.function("data", examples.x, "rng_key", "batch_size")
            if self.noise or any((self.augment, self.augment_x_data, self.rescale)):
                raise ValueError(
                    "data is a function that draws examples: noise, augment and rescale are only for arrays; "
                    "apply them inside the function."
                )
            return
        if examples.labels is None and self.augment_x_data not in (None, self.augment):
            raise ValueError("augment_x_data is only for data with labels: without labels use augment.")
        for name, part in (
            ("data" if examples.unlabelled is None else "labelled data", examples.x),
            ("data.unlabelled", examples.unlabelled),
        ):
            if part is None:
                continue
            length = checks.batch_length(name, part)
            _check_numbers(name, part)
            if self.batch_size > length:
                raise ValueError(
                    f"batch_size={self.batch_size} exceeds the {length} examples of {name}: use at most "
                    f"{length}."
                )

    def example(self, examples: Examples) -> Position:
        """One example with the shape and dtype that the model gets, all zeros."""
        if examples.is_sampler:
            shapes = jax.eval_shape(self._drawn, examples, jax.random.key(0))[0]
        else:
            shapes = jax.eval_shape(self._rescaled, jax.tree.map(_abstract, examples.x))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shapes)

    def check_first(self, rng_key: Array, examples: Examples, num_classes: int | None) -> None:
        """Raises ``ValueError`` if the first batch of a function that draws examples is not usable."""
        x, labels = _first(self, examples, rng_key)
        checks.finite("the first batch that data draws", x)
        if labels is not None and num_classes is not None:
            checks.integer_labels("the labels that data draws", labels, num_classes)

    def __call__(self, rng_key: Array, data: Any, streams: Any) -> tuple[Batch, Any]:
        """Returns the next batch, and the new positions in the data."""
        examples = as_examples(data)
        if examples.is_sampler:
            x, labels = self._drawn(examples, rng_key)
            return Batch(None if labels is None else x, labels, x), streams
        keys = jax.random.split(rng_key, 6)
        x_labelled = labels = labelled = None
        if examples.labels is not None:
            (x_labelled, labels), labelled = next_batch(
                keys[0], streams.labelled, (examples.x, examples.labels), self.batch_size
            )
        x_data, rest = next_batch(keys[1], streams.x_data, examples.x_data, self.batch_size)
        if x_labelled is not None:
            x_labelled = self._noisy(
                keys[2], self._augmented(keys[3], self.augment, self._rescaled(x_labelled))
            )
        augment = self.augment if x_labelled is None else self.augment_x_data
        x_data = self._noisy(keys[4], self._augmented(keys[5], augment, self._rescaled(x_data)))
        return Batch(x_labelled, labels, x_data), Streams(labelled, rest)

    def _drawn(self, examples: Examples, rng_key: Array) -> tuple[Position, Array | None]:
        x, labels = split_labels(examples.x(rng_key, self.batch_size))
        reason = f"because batch_size is {self.batch_size}"
        checks.batch_of("the batch that data draws", (x, labels), self.batch_size, reason)
        checks.real_arrays("the batch that data draws", x)
        return x, labels

    def _rescaled(self, x: Position) -> Position:
        if self.rescale is None:
            return x
        length = checks.batch_length("data", x)
        rescaled = self.rescale(x)
        checks.batch_of("what rescale returns", rescaled, length, "as many examples as it was given")
        return rescaled

    def _augmented(self, rng_key: Array, augment: AugmentExample | None, x: Position) -> Position:
        if augment is None:
            return x
        return jax.vmap(augment)(jax.random.split(rng_key, self.batch_size), x)

    def _noisy(self, rng_key: Array, x: Position) -> Position:
        leaves, structure = jax.tree.flatten(x)
        keys = [rng_key] if len(leaves) == 1 else jax.random.split(rng_key, len(leaves))

        def noisy(key: Array, leaf: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            return leaf + self.noise * jax.random.normal(key, leaf.shape, leaf.dtype)

        if not self.noise:
            return x
        return jax.tree.unflatten(structure, [noisy(*pair) for pair in zip(keys, leaves, strict=True)])


def _check_numbers(name: str, tree: Any) -> None:
    """Raises unless all leaves are finite real numbers; of arrays on several hosts only the dtype is read."""
    checks.real_arrays(name, tree)
    checks.finite(
        name, [leaf for leaf in jax.tree.leaves(tree) if getattr(leaf, "is_fully_addressable", True)]
    )


@partial(jax.jit, static_argnums=0)
def _first(prepare: "Preparation", examples: Examples, rng_key: Array) -> tuple[Position, Array | None]:
    return prepare._drawn(examples, rng_key)


_init_stream = jax.jit(init_stream, static_argnames=("num_examples", "num_strata"))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def start_streams(key_labelled: Array, key_x_data: Array, examples: Examples, num_strata: int) -> Streams:
    """Returns the positions in the data before the first batch."""
    labelled = None
    if examples.labels is not None:
        labelled = _init_stream(key_labelled, len(examples.labels), num_strata=num_strata)
    length = checks.batch_length("data", examples.x_data)
    return Streams(labelled, _init_stream(key_x_data, length, num_strata=num_strata))
