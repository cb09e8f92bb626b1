"""Exact recall by one spin at a time, with the cost of one flip instead of a product with all memories."""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.hopfield.family import LEVELS, PatternMemory, settle
from jaxebm.hopfield.pairwise import PairwiseMemory
from jaxebm.hopfield.retrieval import Retrieval, check_query
from jaxebm.hopfield.validation import memory_arrays, vector
from jaxebm.types import Array

__all__ = ["retrieve_asynchronously"]


def retrieve_asynchronously(
    memory: PatternMemory | PairwiseMemory,
    query: Any,
    *,
    order: Any = None,
    max_sweeps: int = 100,
    clamped: Any = None,
) -> Retrieval:
    """Recalls by flipping one spin at a time to lower energy, until no flip lowers the energy.

    x_i <- argmin E(x with x_i = -1 or 1), exactly, for i in order, over and over; on a tie the spin stays.
    The energy never rises, for any couplings, so this always converges.

    The overlaps (K of them) or fields (D) are carried along, so that a visit costs K or D and not K D. With
    couplings, no time is spent on spins that do not flip: the next spin in the order that flips is found
    directly, and the sequence of flips is that of the plain loop.

    Args:
      memory: of spins or bits.
      query: shape (D,). Of spins, 0 stands for an unknown entry: all of these are first put where the known
        ones point.
      order: in which the coordinates are visited, a permutation of 0..D-1, such as
        ``jax.random.permutation(rng_key, D)``; None for 0, 1, ..., D-1. Each sweep repeats it.
      max_sweeps: when to give up, at least 1.
      clamped: shape (D,), True for coordinates that are held; None for none.

    Returns:
      A `Retrieval`; its steps are the sweeps in which a coordinate moved. The period is 1 or 0.

    Raises:
      ValueError: if the memory's states are real, or an argument is of the wrong shape or kind.
      TypeError: if ``clamped`` is not boolean.

    Example:
      >>> from jaxebm.hopfield.pairwise import pairwise
      >>> memory = pairwise([[0.0, -1.0], [-1.0, 0.0]])
      >>> found = retrieve_asynchronously(memory, jnp.array([1.0, 1.0]))
      >>> print(found.state, bool(found.converged))
      [-1.  1.] True
    """
    checks.positive_integer("max_sweeps", max_sweeps)
    memory_arrays("memory", memory)
    if not isinstance(memory, PatternMemory | PairwiseMemory) or memory.states == "reals":
        raise ValueError(
            f"memory is a {type(memory).__name__} of real states: one coordinate at a time is for spins and "
            f"bits; use `retrieve`."
        )
    query = check_query(memory, query, clamped)
    free = jnp.ones(query.shape, bool) if clamped is None else ~jnp.asarray(clamped)
    low, high = LEVELS[memory.states]
    unknown = checks.is_traced(query) or not np.all(np.isin(np.asarray(query), (low, high)))
    order, rank = _visiting_order(order, memory.dimension)
    if isinstance(memory, PairwiseMemory):
        return _flip_discontented(memory, query, order, rank, max_sweeps, free, unknown)
    return _walk(memory, query, order, max_sweeps, free, unknown)


def _visiting_order(order: Any, dimension: int) -> tuple[Array, Array]:
    """Returns which coordinate has each rank, and which rank has each coordinate."""
    if order is None:
        return jnp.arange(dimension), jnp.arange(dimension, dtype=jnp.uint32)
    vector("order", order, dimension, "a permutation of the coordinates")
    if not checks.is_traced(order) and not np.array_equal(np.sort(np.asarray(order)), np.arange(dimension)):
        raise ValueError(f"order must hold each of 0..{dimension - 1} once, to visit every coordinate.")
    order = jnp.asarray(order, jnp.int32)
    return order, jnp.argsort(order).astype(jnp.uint32)


def _resolve(states: str, x: Array, preferences: Array, free: Array) -> Array:
    """Sets coordinates without a level, such as unknown spins, to the sign of their field."""
    low, high = LEVELS[states]
    nowhere = (x != low) & (x != high) & free
    return jnp.where(nowhere, jnp.where(preferences < 0, low, high), x).astype(x.dtype)


def _least(keys: Array) -> Array:
    """Returns min keys. On a CPU, XLA's own reduction of a vector is sequential and three times as slow."""
    width = -(-keys.size // 32)
    keys = jax.lax.optimization_barrier(keys)
    slices = [keys[start : start + width] for start in range(0, keys.size - width, width)]
    return jnp.min(reduce(jnp.minimum, slices, keys[-width:]))


@partial(jax.jit, static_argnames="unknown")
def _flip_discontented(
    memory: PairwiseMemory,
    query: Array,
    order: Array,
    rank: Array,
    max_sweeps: Array | int,
    free: Array,
    unknown: bool,
) -> Retrieval:
    low, high = LEVELS[memory.states]
    middle, dimension = 0.5 * (low + high), memory.dimension
    never = jnp.uint32(2**32 - 1)

    # A coordinate is stable if side and pull agree in sign: side = x - middle, and pull, the field without
    # the part of the coordinate's own coupling, does not change when it flips. Clamped ones have no side.

    def resolve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, fields, _ = carry
        x = _resolve(memory.states, x, memory.preferences(fields, x), free)
        return x, memory.carry(x), jnp.zeros((), bool)

    x, fields = query, memory.carry(query)
    if unknown:  # a loop of one round or none, because a cond under vmap would do both sides for all
        at_a_level = (query == low) | (query == high) | ~free
        x, fields, _ = jax.lax.while_loop(lambda carry: carry[2], resolve, (x, fields, ~jnp.all(at_a_level)))
    pull = memory.preferences(fields, x) / (high - low)
    side = jnp.where(free, x - middle, 0.0)
    # Pulls are carried through the flips. What is smaller than their rounding error is a tie; otherwise a
    # coordinate could flip back and forth without end.
    slack = 4 * dimension**0.5 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(pull)) * (high - middle)

    def next_flip(side: Array, pull: Array, place: Array) -> Array:
        """Visits until the next unstable coordinate, for ranks from ``place`` on, wrapped around."""
        return _least(jnp.where(side * pull < -slack, rank - place, never))

    def go_on(carry: tuple[Array, Array, Array, Array, Array]) -> Array:
        _, _, place, sweeps, wait = carry
        begins_a_sweep = (place + wait < place).astype(jnp.int32)
        return (wait != never) & (sweeps + begins_a_sweep <= max_sweeps)

    def flip(
        carry: tuple[Array, Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array, Array]:
        side, pull, place, sweeps, wait = carry
        found = place + wait  # modulo 2^32, so that this is the rank, wrapped around or not
        index = order[found]
        here = side[index]
        following = (pull - 2 * here * memory.weights[index]).at[index].set(pull[index])
        side = side.at[index].set(-here)
        sweeps = sweeps + (found < place).astype(jnp.int32)
        return side, following, found + 1, sweeps, next_flip(side, following, found + 1)

    # ``place`` is the rank to look from: one past the last flip. A sweep begins where it wraps around.
    zero = jnp.zeros((), jnp.uint32)
    wait = next_flip(side, pull, zero)
    start = (side, pull, zero, (wait != never).astype(jnp.int32), wait)
    side, _, _, sweeps, wait = jax.lax.while_loop(go_on, flip, start)
    state = jnp.where(free, side + middle, query)
    return Retrieval(state, sweeps, (wait == never).astype(jnp.int32))


@partial(jax.jit, static_argnames="unknown")
def _walk(
    memory: PatternMemory, query: Array, order: Array, max_sweeps: Array | int, free: Array, unknown: bool
) -> Retrieval:
    columns = memory.columns()

    def preference(overlaps: Array, x: Array, index: Array) -> Array:
        return memory.preference(overlaps, x, index, columns[index], exact=False)

    def visit(place: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, overlaps, moved = carry
        index = order[place]
        prefers = preference(overlaps, x, index)
        wanted = settle(memory.states, x[index], prefers)
        change = jnp.where(free[index], wanted - x[index], 0.0).astype(x.dtype)
        return (
            x.at[index].add(change),
            memory.carried(overlaps, columns[index], change),
            moved | (change != 0),
        )

    def sweep(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, overlaps, sweeps, _ = carry
        start = (x, overlaps, jnp.zeros((), bool))
        x, overlaps, moved = jax.lax.fori_loop(0, memory.dimension, visit, start)
        return x, overlaps, sweeps + moved.astype(jnp.int32), moved

    def go_on(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, _, sweeps, moved = carry
        return moved & (sweeps < max_sweeps)

    x = query
    if unknown:
        preferences = memory.preferences(memory.carry(query), query)
        x = _resolve(memory.states, query, preferences, free)
    start = (x, memory.carry(x), jnp.zeros((), jnp.int32), jnp.ones((), bool))
    x, _, sweeps, moved = jax.lax.while_loop(go_on, sweep, start)
    return Retrieval(x, sweeps, (~moved).astype(jnp.int32))
