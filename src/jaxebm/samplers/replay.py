"""The persistent buffer: chains that outlive a parameter update.

A buffer holds positions, never sampler states, because a cached energy is stale after an update. The slots
drawn for one step are all different, and what was read from a slot goes back to it, so every slot is one
chain.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.samplers.initial import Initial
from jaxebm.types import Array, Position

__all__ = ["BufferDraw", "ReplayBuffer", "draw", "init_buffer", "write"]

_INIT_BATCH = 256


class ReplayBuffer(NamedTuple):
    """Chains at rest; a pytree, to be donated to the step that advances them.

    Attributes:
      positions: leaves ``(capacity, ...)``.
      labels: ``(capacity,)`` int32, fixed: slot i belongs to class i % num_classes.
      ages: ``(capacity,)`` int32, sampler steps since the slot's last restart.
    """

    positions: Position
    labels: Array
    ages: Array


class BufferDraw(NamedTuple):
    """The chains to advance in one training step.

    Attributes:
      slots: ``(n,)`` int32, all different: where each chain came from and goes back to.
      positions: leaves ``(n, ...)``, where the chains start.
      labels: ``(n,)`` int32, the classes of the slots.
      restarted: ``(n,)`` bool, which chains start from the initial distribution instead of their slot.
    """

    slots: Array
    positions: Position
    labels: Array
    restarted: Array


def init_buffer(rng_key: Array, initial: Initial, capacity: int, *, num_classes: int = 1) -> ReplayBuffer:
    """Makes a buffer full of fresh chains.

    Args:
      rng_key: one key.
      initial: ``(rng_key, label) -> position``.
      capacity: number of slots, a multiple of num_classes.
      num_classes: slot i belongs to class i % num_classes; 1 for chains without a class.

    Returns:
      The buffer, with ages 0.

    Raises:
      ValueError: if capacity or num_classes is not a positive integer, or capacity not a multiple of
        num_classes.

    Example:
      >>> from jaxebm.samplers.initial import UniformInitial
      >>> buffer = init_buffer(jax.random.key(0), UniformInitial(-1.0, 1.0, shape=(3,)), 6, num_classes=2)
      >>> buffer.positions.shape, buffer.labels.tolist()
      ((6, 3), [0, 1, 0, 1, 0, 1])
    """
    checks.positive_integer("capacity", capacity)
    checks.positive_integer("num_classes", num_classes)
    if capacity % num_classes:
        raise ValueError(
            f"capacity={capacity}: capacity must be a multiple of num_classes={num_classes}, so that every "
            f"class has as many slots; {-(-capacity // num_classes) * num_classes} is the next one."
        )
    labels = jnp.arange(capacity, dtype=jnp.int32) % num_classes
    keys = jax.random.split(rng_key, capacity)
    # In batches: an initial distribution with many classes needs room for all of them for each of its draws.
    positions = jax.lax.map(lambda at: initial(*at), (keys, labels), batch_size=min(capacity, _INIT_BATCH))
    return ReplayBuffer(positions, labels, jnp.zeros(capacity, jnp.int32))


def draw(
    rng_key: Array,
    buffer: ReplayBuffer,
    num_chains: int,
    restart_probability: Array | float,
    initial: Initial,
    *,
    labels: Array | None = None,
    num_classes: int | None = None,
) -> BufferDraw:
    """Draws the chains of one step: different slots, each restarted with a small probability.

    Without labels the slots are uniform over the buffer. With labels, chain j comes from a slot of class
    ``labels[j]``, uniform over that class's slots; num_classes is then needed, the one that the buffer was
    made with.

    Args:
      rng_key: one key.
      buffer: the buffer.
      num_chains: n, at most the capacity, and with labels at most capacity // num_classes, because all n may
        be of one class.
      restart_probability: of each chain, in [0, 1], ``()``; JEM's is 0.05.
      initial: ``(rng_key, label) -> position``, for the restarts.
      labels: ``(n,)`` integers, or ``None``.
      num_classes: with labels, the number of classes of the buffer.

    Returns:
      The draw; its slots are all different.

    Raises:
      ValueError: if num_chains is too large for the buffer, the probability outside of [0, 1], labels come
        without num_classes or in another shape or range, or num_classes is not the buffer's.
      TypeError: if labels are not integers.

    Example:
      >>> from jaxebm.samplers.initial import UniformInitial
      >>> initial = UniformInitial(-1.0, 1.0, shape=(3,))
      >>> buffer = init_buffer(jax.random.key(0), initial, 100)
      >>> chains = draw(jax.random.key(1), buffer, 8, 0.05, initial)
      >>> chains.positions.shape, len(set(chains.slots.tolist()))
      ((8, 3), 8)

    Reference:
      Tieleman 2008 (PCD); Grathwohl et al. 2019 (JEM, arXiv:1912.03263), algorithm 1.
    """
    capacity = buffer.labels.shape[0]
    checks.positive_integer("num_chains", num_chains)
    checks.in_range("restart_probability", restart_probability, 0, 1)
    slots_key, restart_key, initial_key = jax.random.split(rng_key, 3)
    if labels is None:
        if num_chains > capacity:
            raise ValueError(
                f"num_chains={num_chains}: the buffer has {capacity} slots and every chain needs its own; "
                f"make the buffer with a capacity of at least {num_chains}, or draw fewer chains."
            )
        slots = jax.random.choice(slots_key, capacity, (num_chains,), replace=False)
        labels = buffer.labels[slots]
    else:
        num_classes = _checked_classes(buffer, num_chains, labels, num_classes)
        labels = jnp.asarray(labels, jnp.int32)
        slots = _class_slots(slots_key, labels, capacity, num_classes)
    restarted = jax.random.bernoulli(restart_key, restart_probability, (num_chains,))
    fresh = jax.vmap(initial)(jax.random.split(initial_key, num_chains), labels)
    kept = jax.tree.map(lambda leaf: leaf[slots], buffer.positions)
    return BufferDraw(slots, jax.vmap(_choose)(restarted, fresh, kept), labels, restarted)


def write(buffer: ReplayBuffer, draw: BufferDraw, positions: Position, num_steps: int) -> ReplayBuffer:
    """Puts advanced chains back into the slots that they came from.

    Args:
      buffer: the buffer that the chains were drawn from. Under ``jit``, donate it and it is updated in place.
      draw: what was drawn.
      positions: where the chains ended, leaves ``(n, ...)``, in the draw's order.
      num_steps: sampler steps that were taken, at least 0.

    Returns:
      The buffer, other slots untouched; ages of the drawn slots are num_steps if restarted, else num_steps
      more.

    Raises:
      ValueError: if the positions' shapes are not the draw's, or num_steps is negative.

    Example:
      >>> from jaxebm.samplers.initial import UniformInitial
      >>> initial = UniformInitial(-1.0, 1.0, shape=(3,))
      >>> buffer = init_buffer(jax.random.key(0), initial, 4)
      >>> chains = draw(jax.random.key(1), buffer, 2, 0.0, initial)
      >>> buffer = write(buffer, chains, chains.positions + 1, num_steps=20)
      >>> sorted(buffer.ages.tolist())
      [0, 0, 20, 20]
    """
    checks.non_negative("num_steps", num_steps)
    given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (positions, draw.positions))
    if given != wanted:
        raise ValueError(f"positions has shapes {given}: the chains were drawn with shapes {wanted}.")
    slots = draw.slots

    def put(leaf: Array, new: Array) -> Array:
        return leaf.at[slots].set(new.astype(leaf.dtype), unique_indices=True)

    ages = jnp.where(draw.restarted, 0, buffer.ages[slots]) + num_steps
    return buffer._replace(
        positions=jax.tree.map(put, buffer.positions, positions), ages=put(buffer.ages, ages)
    )


def _choose(restarted: Array, fresh: Position, kept: Position) -> Position:
    return jax.tree.map(lambda new, old: jnp.where(restarted, new.astype(old.dtype), old), fresh, kept)


def _class_slots(rng_key: Array, labels: Array, capacity: int, num_classes: int) -> Array:
    """The r-th chain of a class takes the r-th slot of a random order of that class's slots."""
    per_class = capacity // num_classes
    orders = jax.vmap(lambda key: jax.random.permutation(key, per_class))(
        jax.random.split(rng_key, num_classes)
    )
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.int32)
    ranks = jnp.sum(jnp.cumsum(one_hot, axis=0) * one_hot, axis=1) - 1
    return labels + num_classes * orders[labels, ranks]


def _checked_classes(buffer: ReplayBuffer, num_chains: int, labels: Any, num_classes: int | None) -> int:
    capacity = buffer.labels.shape[0]
    if num_classes is None:
        raise ValueError(
            "labels was given without num_classes: pass the number of classes that the buffer was made with."
        )
    checks.positive_integer("num_classes", num_classes)
    checks.integer_labels("labels", labels, num_classes)
    if jnp.shape(labels) != (num_chains,):
        raise ValueError(
            f"labels has shape {jnp.shape(labels)}: ({num_chains},) is needed, one for each of num_chains."
        )
    if not checks.is_traced(buffer.labels) and not np.array_equal(
        buffer.labels, np.arange(capacity) % num_classes
    ):
        raise ValueError(
            f"num_classes={num_classes}: the buffer was made with {int(jnp.max(buffer.labels)) + 1} classes; "
            f"pass that."
        )
    if capacity // num_classes < num_chains:
        raise ValueError(
            f"num_chains={num_chains}: the buffer has {capacity // num_classes} slots a class, and all "
            f"chains may be of one class; make the buffer with a capacity of at least num_classes * "
            f"num_chains = {num_classes * num_chains}, or draw fewer chains."
        )
    return num_classes
