"""Memories learnt by gradient descent through their own retrieval."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxebm import checks
from jaxebm.hopfield.family import AssociativeMemory
from jaxebm.hopfield.retrieval import retrieve, trajectory
from jaxebm.hopfield.validation import memory_arrays, pattern_matrix
from jaxebm.types import Array

__all__ = ["learn_patterns", "recall_loss"]


def recall_loss(
    memory: AssociativeMemory, queries: Array, targets: Array, *, num_steps: int | None = 1
) -> Array:
    """Returns the distance of the recalled states from their targets.

    L = 1/n sum_j |recall(q_j) - t_j|^2 / D, differentiable with respect to the memory: through ``num_steps``
    steps, or, if that is None, at the fixed point by the implicit function theorem.

    Args:
      memory: of real states, such as `jaxebm.hopfield.modern`'s.
      queries: shape (n, D).
      targets: shape (n, D).
      num_steps: steps of recall to differentiate through, or None to recall to the fixed point.

    Returns:
      L, shape ().

    Raises:
      ValueError: if the shapes disagree, an entry is not finite, or the memory's states are discrete, so that
        they have no gradient.
      TypeError: if ``memory`` is no memory, or an array holds no real numbers.

    Example:
      >>> from jaxebm.hopfield.memories import modern
      >>> memory = modern(jnp.eye(2), beta=50.0)
      >>> print(jnp.round(recall_loss(memory, jnp.array([[0.9, 0.2]]), jnp.array([[1.0, 0.0]])), 6))
      0.0
    """
    memory_arrays("memory", memory)
    if num_steps is not None:
        checks.positive_integer("num_steps", num_steps)
    if memory.states == "reals":
        recall = (
            (lambda query: retrieve(memory, query).state)
            if num_steps is None
            else (lambda query: trajectory(memory, query, num_steps)[0][-1])
        )
    else:
        raise ValueError(f"memory has states {memory.states!r}: recall has a gradient only for real states.")
    checks.array("queries", queries)
    checks.array("targets", targets)
    if jnp.shape(queries) != jnp.shape(targets) or jnp.ndim(queries) != 2:
        raise ValueError(
            f"queries has shape {jnp.shape(queries)} and targets {jnp.shape(targets)}: (n, D) is needed of "
            f"both."
        )
    if np.shape(queries)[1] != memory.dimension:
        raise ValueError(
            f"queries has shape {np.shape(queries)}, so a query has shape ({np.shape(queries)[1]},): "
            f"({memory.dimension},) is needed, one number for each coordinate of the memory."
        )
    for name, value in (("queries", queries), ("targets", targets)):
        checks.finite(name, value)
    return jnp.mean((jax.vmap(recall)(jnp.asarray(queries)) - jnp.asarray(targets)) ** 2)


def learn_patterns(
    make_memory: Callable[[Array], AssociativeMemory],
    patterns: Any,
    queries: Array,
    targets: Array,
    *,
    optimizer: optax.GradientTransformation,
    num_updates: int,
    num_steps: int | None = 1,
) -> tuple[Array, Array]:
    """Learns the patterns to store by gradient descent on `recall_loss`.

    Args:
      make_memory: patterns (K, D) -> memory, such as ``partial(modern, beta=4.0)``. Known by identity: define
        it once.
      patterns: where to start, shape (K, D).
      queries: shape (n, D), all used in every update.
      targets: shape (n, D).
      optimizer: from Optax.
      num_updates: at least 1.
      num_steps: as in `recall_loss`.

    Returns:
      ``(patterns, losses)``, shapes (K, D) and (num_updates,); the losses are those before each update.

    Raises:
      ValueError: if the shapes disagree, a number is not finite, or num_updates is below 1.
      TypeError: if ``make_memory`` is no function that makes a memory, or ``optimizer`` not of Optax.

    Example:
      >>> from jaxebm.hopfield.memories import modern
      >>> targets = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> start = 0.1 * jax.random.normal(jax.random.key(0), (2, 2))
      >>> learnt, losses = learn_patterns(
      ...     partial(modern, beta=8.0), start, 0.8 * targets, targets,
      ...     optimizer=optax.adam(0.1), num_updates=100)
      >>> bool(losses[-1] < 0.01 * losses[0])
      True

    Reference:
      Ramsauer et al. 2020 (arXiv 2008.02217), section 3: stored patterns that are trained by backpropagation.
    """
    checks.positive_integer("num_updates", num_updates)
    checks.function("make_memory", make_memory, "patterns")
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: optimizer must be one of Optax, such as "
            f"optax.adam(0.1)."
        )
    patterns = pattern_matrix("patterns", patterns)
    memory = make_memory(patterns)
    memory_arrays("make_memory(patterns)", memory)
    if np.ndim(queries) == 2 and np.shape(queries)[1] != memory.dimension:
        raise ValueError(
            f"queries has shape {np.shape(queries)}: (n, {memory.dimension}) is needed, because patterns has "
            f"shape {patterns.shape}."
        )
    recall_loss(memory, queries, targets, num_steps=num_steps)  # its checks, before compiling
    return _learn(make_memory, patterns, queries, targets, optimizer, num_updates, num_steps)


@partial(jax.jit, static_argnames=("make_memory", "optimizer", "num_updates", "num_steps"))
def _learn(
    make_memory: Callable[[Array], AssociativeMemory],
    patterns: Array,
    queries: Array,
    targets: Array,
    optimizer: optax.GradientTransformation,
    num_updates: int,
    num_steps: int | None,
) -> tuple[Array, Array]:
    def loss(patterns: Array) -> Array:
        return recall_loss(make_memory(patterns), queries, targets, num_steps=num_steps)

    def advance(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], Array]:
        patterns, state = carry
        value, gradient = jax.value_and_grad(loss)(patterns)
        updates, state = optimizer.update(gradient, state, patterns)
        return (jnp.asarray(optax.apply_updates(patterns, updates)), state), value

    (patterns, _), losses = jax.lax.scan(advance, (patterns, optimizer.init(patterns)), length=num_updates)
    return patterns, losses
