"""The replay buffer: chains that persist over parameter updates.

A buffer holds positions and no sampler states, because a cached energy is out of date after an update. The
slots drawn for one step are all different, and each chain is written back to its slot, so every slot is one
chain.

A buffer can be read and written in *strata*: contiguous blocks of slots of the same size. Each gives an equal
share of every draw. Draws depend only on the number of strata: any number of devices that divides it computes
the same numbers, and a device that holds whole strata needs no data of the others. With the sharding of such
a buffer, each device reads and writes only its own slots.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxebm import checks
from jaxebm.samplers.initial import Initial
from jaxebm.types import Array, Position

__all__ = ["BufferDraw", "ReplayBuffer", "check_strata", "draw", "init_buffer", "write"]

_INIT_BATCH = 256


class ReplayBuffer(NamedTuple):
    """The stored chains; a pytree, to be donated to the step that advances them.

    Attributes:
      positions: leaves ``(capacity, ...)``.
      labels: ``(capacity,)`` int32, fixed: slot i belongs to class i % num_classes.
      ages: ``(capacity,)`` int32, sampler steps since the last restart of each slot.
    """

    positions: Position
    labels: Array
    ages: Array


class BufferDraw(NamedTuple):
    """The chains to advance in one training step.

    Attributes:
      slots: ``(n,)`` int32, all different: the slot of each chain.
      positions: leaves ``(n, ...)``, the initial positions of the chains.
      labels: ``(n,)`` int32, the classes of the slots.
      restarted: ``(n,)`` bool, which chains start from the initial distribution instead of their slot.
    """

    slots: Array
    positions: Position
    labels: Array
    restarted: Array


def init_buffer(
    rng_key: Array, initial: Initial, capacity: int, *, num_classes: int = 1, num_strata: int = 1
) -> ReplayBuffer:
    """Makes a buffer full of fresh chains.

    Args:
      rng_key: one key.
      initial: ``(rng_key, label) -> position``.
      capacity: number of slots, a multiple of num_classes * num_strata.
      num_classes: slot i belongs to class i % num_classes; 1 for chains without a class.
      num_strata: number of blocks for draws; each has the same number of slots of every class.

    Returns:
      The buffer, with ages 0. Its contents do not depend on num_strata.

    Raises:
      ValueError: if capacity, num_classes or num_strata is not a positive integer, or capacity not a multiple
        of num_classes * num_strata.
      TypeError: if rng_key is not a typed key, or initial no function of a key and a label.

    Example:
      >>> from jaxebm.samplers.initial import UniformInitial
      >>> buffer = init_buffer(jax.random.key(0), UniformInitial(-1.0, 1.0, shape=(3,)), 6, num_classes=2)
      >>> buffer.positions.shape, buffer.labels.tolist()
      ((6, 3), [0, 1, 0, 1, 0, 1])
    """
    checks.rng_key("rng_key", rng_key)
    checks.function("initial", initial, "rng_key", "label")
    checks.positive_integer("capacity", capacity)
    checks.positive_integer("num_classes", num_classes)
    checks.positive_integer("num_strata", num_strata)
    unit = num_classes * num_strata
    if capacity % unit:
        strata = f" * num_strata={num_strata} = {unit}" if num_strata > 1 else ""
        every = "class of every stratum" if num_strata > 1 else "class"
        raise ValueError(
            f"capacity={capacity}: capacity must be a multiple of num_classes={num_classes}{strata}, so that "
            f"every {every} has as many slots; {-(-capacity // unit) * unit} is the next one."
        )
    labels = jnp.arange(capacity, dtype=jnp.int32) % num_classes
    keys = jax.random.split(rng_key, capacity)
    # In batches, because an initial distribution may need memory for all classes in each draw.
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
    num_strata: int = 1,
    sharding: NamedSharding | None = None,
) -> BufferDraw:
    """Draws the chains of one step: different slots, each restarted with a small probability.

    Without labels the slots are uniform over the buffer. With labels, chain j comes from a slot of class
    ``labels[j]``, uniform over that class's slots; num_classes of the buffer is
    then needed. With S strata, chain j comes from stratum j // (n / S), the j-th of S equal blocks of slots.

    Args:
      rng_key: one key.
      buffer: the buffer.
      num_chains: n, at most the capacity, and with labels at most capacity // num_classes, because all n may
        be of one class; a multiple of num_strata. With strata both limits hold for each stratum's share.
      restart_probability: probability that a chain is restarted, in [0, 1], ``()``; 0.05 in JEM.
      initial: ``(rng_key, label) -> position``, for the restarts.
      labels: ``(n,)`` integers, or ``None``.
      num_classes: with labels, the number of classes of the buffer.
      num_strata: contiguous blocks of slots; each gives n / num_strata chains.
      sharding: sharding of the leading axis of the buffer, and of the chains, if split over devices.

    Returns:
      The draw; its slots are all different.

    Raises:
      ValueError: if num_chains is too large for the buffer, the probability outside of [0, 1], labels come
        without num_classes or in another shape or range, num_classes is not the buffer's, num_strata does
        not divide the slots (with labels, the slots of a class) and num_chains, or the sharding's devices do
        not divide num_strata.
      TypeError: if rng_key is not a typed key, the buffer no ``ReplayBuffer``, labels are not integers, or
        initial is no function of a key and a label.

    Example:
      >>> from jaxebm.samplers.initial import UniformInitial
      >>> initial = UniformInitial(-1.0, 1.0, shape=(3,))
      >>> buffer = init_buffer(jax.random.key(0), initial, 100, num_classes=5)
      >>> chains = draw(
      ...     jax.random.key(1), buffer, 8, 0.05, initial, labels=jnp.arange(8) % 5, num_classes=5)
      >>> chains.positions.shape, len(set(chains.slots.tolist())), chains.labels.tolist()
      ((8, 3), 8, [0, 1, 2, 3, 4, 0, 1, 2])

    Reference:
      Tieleman 2008 (PCD); Grathwohl et al. 2019 (JEM, arXiv:1912.03263), algorithm 1.
    """
    checks.rng_key("rng_key", rng_key)
    capacity = _checked_capacity(buffer)
    checks.positive_integer("num_chains", num_chains)
    checks.in_range("restart_probability", restart_probability, 0, 1)
    checks.one_number("restart_probability", restart_probability)
    checks.function("initial", initial, "rng_key", "label")
    if num_classes is not None:
        checks.positive_integer("num_classes", num_classes)
    check_strata(num_strata, capacity, num_chains, sharding)
    slots_key, restart_key, initial_key = jax.random.split(rng_key, 3)
    slots_keys = slots_key[None] if num_strata == 1 else jax.random.split(slots_key, num_strata)
    in_stratum, share = capacity // num_strata, num_chains // num_strata
    if labels is None:
        if num_chains > capacity:
            raise ValueError(
                f"num_chains={num_chains}: the buffer has {capacity} slots and every chain needs its own; "
                f"make the buffer with a capacity of at least {num_chains}, or draw fewer chains."
            )
        own = jax.vmap(lambda key: jax.random.choice(key, in_stratum, (share,), replace=False))(slots_keys)
        slots = _from_first_slots(own, capacity)
        labels = _take(buffer.labels, slots, sharding)
    else:
        num_classes = _checked_classes(buffer, num_chains, labels, num_classes, num_strata)
        labels = jnp.asarray(labels, jnp.int32)
        own = jax.vmap(lambda key, wanted: _class_slots(key, wanted, in_stratum, num_classes))(
            slots_keys, labels.reshape(num_strata, share)
        )
        slots = _from_first_slots(own, capacity)
    restarted = jax.random.bernoulli(restart_key, restart_probability, (num_chains,))
    fresh = jax.vmap(initial)(jax.random.split(initial_key, num_chains), labels)
    kept = jax.tree.map(lambda leaf: _take(leaf, slots, sharding), buffer.positions)
    return BufferDraw(slots, jax.vmap(_choose)(restarted, fresh, kept), labels, restarted)


def write(
    buffer: ReplayBuffer,
    draw: BufferDraw,
    positions: Position,
    num_steps: int,
    *,
    sharding: NamedSharding | None = None,
) -> ReplayBuffer:
    """Writes advanced chains back to their slots.

    Args:
      buffer: the buffer that the chains were drawn from. Under ``jit``, donate it and it is updated in place.
      draw: the draw.
      positions: final positions of the chains, leaves ``(n, ...)``, in the order of the draw.
      num_steps: sampler steps that were taken, at least 0.
      sharding: the sharding of the draw.

    Returns:
      The buffer, other slots untouched; ages of the drawn slots are num_steps if restarted, else num_steps
      more.

    Raises:
      ValueError: if the positions' shapes are not the draw's, the draw's not the buffer's, or num_steps is
        negative.
      TypeError: if the buffer is no ``ReplayBuffer``, the draw no ``BufferDraw``, or num_steps no integer.

    Example:
      >>> from jaxebm.samplers.initial import UniformInitial
      >>> initial = UniformInitial(-1.0, 1.0, shape=(3,))
      >>> buffer = init_buffer(jax.random.key(0), initial, 4)
      >>> chains = draw(jax.random.key(1), buffer, 2, 0.0, initial)
      >>> buffer = write(buffer, chains, chains.positions + 1, num_steps=20)
      >>> sorted(buffer.ages.tolist())
      [0, 0, 20, 20]
    """
    _checked_capacity(buffer)
    _check_draw(draw, buffer)
    checks.real_arrays("positions", positions)
    checks.same_shapes("positions", positions, "draw.positions", draw.positions)
    checks.non_negative_number("num_steps", num_steps)
    if not jnp.issubdtype(jnp.result_type(num_steps), jnp.integer):
        raise TypeError(f"num_steps={num_steps!r}: num_steps must be an integer of at least 0.")
    _check_sharding(sharding)

    def put(leaf: Array, new: Array) -> Array:
        return _on_each_device(_write_slots, sharding)(leaf, draw.slots, new.astype(leaf.dtype))

    ages = jnp.where(draw.restarted, 0, _take(buffer.ages, draw.slots, sharding)) + num_steps
    return buffer._replace(
        positions=jax.tree.map(put, buffer.positions, positions), ages=put(buffer.ages, ages)
    )


def check_strata(num_strata: int, capacity: int, num_chains: int, sharding: NamedSharding | None) -> None:
    """Raises ``ValueError`` unless strata divide slots and chains, and devices divide strata."""
    checks.positive_integer("num_strata", num_strata)
    _check_sharding(sharding)
    if capacity % num_strata or num_chains % num_strata:
        raise ValueError(
            f"num_strata={num_strata} must divide the buffer's capacity={capacity} and "
            f"num_chains={num_chains}, so that every stratum has as many slots and gives as many chains."
        )
    if sharding is not None and num_strata % sharding.mesh.size:
        raise ValueError(
            f"num_strata={num_strata} must be a multiple of the {sharding.mesh.size} devices of the "
            "sharding: each holds whole strata."
        )


def _check_sharding(sharding: Any) -> None:
    checks.instance("sharding", sharding, (NamedSharding, type(None)))


def _checked_capacity(buffer: Any) -> int:
    """Returns the number of slots, or raises unless it is a buffer, its leaves of one length."""
    checks.instance("buffer", buffer, ReplayBuffer, "init_buffer makes one.")
    capacity = checks.batch_length("buffer", buffer, "a ReplayBuffer of init_buffer")
    checks.real_arrays("buffer.positions", buffer.positions)
    for name, values in (("buffer.labels", buffer.labels), ("buffer.ages", buffer.ages)):
        _check_integers(name, values, capacity, "one for each slot")
    return capacity


def _check_draw(draw: Any, buffer: ReplayBuffer) -> None:
    checks.instance("draw", draw, BufferDraw, "jaxebm.samplers.draw makes one.")
    num_chains = checks.batch_length("draw", draw, "a BufferDraw of jaxebm.samplers.draw")
    _check_integers("draw.slots", draw.slots, num_chains, "one for each chain")
    checks.array("draw.restarted", draw.restarted, (num_chains,))
    one, another = (
        jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], tree) for tree in (draw.positions, buffer.positions)
    )
    if one != another:
        raise ValueError(
            f"draw.positions has chains of shapes {one}: those of the buffer, {another}, are needed."
        )


def _check_integers(name: str, values: Any, length: int, what: str) -> None:
    checks.array(name, values, (length,), f"({length},), {what},")
    dtype = jnp.result_type(values)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {dtype}: integers are needed, {what}.")


def _from_first_slots(own: Array, capacity: int) -> Array:
    """Slots ``(n,)`` from places in their stratum ``(num_strata, n / num_strata)``."""
    first_slots = jnp.arange(0, capacity, capacity // len(own), dtype=jnp.int32)
    return (own + first_slots[:, None]).reshape(own.size).astype(jnp.int32)  # int64 under x64


def _take(leaf: Array, slots: Array, sharding: NamedSharding | None) -> Array:
    return _on_each_device(lambda block, at: block[at], sharding)(leaf, slots)


def _write_slots(leaf: Array, slots: Array, new: Array) -> Array:
    return leaf.at[slots].set(new, unique_indices=True)


def _on_each_device(function: Callable[..., Array], sharding: NamedSharding | None) -> Callable[..., Array]:
    """Applies ``function(its block of slots, slots counted from its first, ...)`` on every device.

    With a leading axis of strata the compiler could detect that no device needs the slots of another, but for
    images of one channel, reshaping to that axis copies the whole buffer at every step.
    """
    if sharding is None:
        return function

    def own(block: Array, slots: Array, *others: Array) -> Array:
        return function(block, slots - jax.lax.axis_index(sharding.spec[0]) * len(block), *others)

    return jax.shard_map(own, mesh=sharding.mesh, in_specs=sharding.spec, out_specs=sharding.spec)


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


def _checked_classes(
    buffer: ReplayBuffer, num_chains: int, labels: Any, num_classes: int | None, num_strata: int
) -> int:
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
    if capacity % (num_classes * num_strata):
        raise ValueError(
            f"num_strata={num_strata}: a stratum of {capacity // num_strata} slots does not hold as many of "
            f"each of num_classes={num_classes} classes; make the buffer with this num_strata."
        )
    if capacity // num_classes < num_chains:
        raise ValueError(
            f"num_chains={num_chains}: the buffer has {capacity // num_classes} slots per class, and all "
            f"chains may be of one class; make the buffer with a capacity of at least num_classes * "
            f"num_chains = {num_classes * num_chains}, or draw fewer chains."
        )
    return num_classes
