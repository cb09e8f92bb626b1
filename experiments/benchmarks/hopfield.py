"""Retrieval, asynchronous recall, sparse updates and the Flax layer against PyTorch, hamux and NumPy.

Contenders get the same float32 inputs, and their results must agree before they are timed. NumPy and PyTorch
run on the CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import hopfield_peers as peers
from benchmarks.harness import Contender, Workload, count_compilations, peer
from jaxebm import checks
from jaxebm.hopfield import (
    HopfieldAssociation,
    hebb,
    modern,
    pairwise,
    retrieve,
    retrieve_asynchronously,
    sparse,
    update,
)

__all__ = ["NEW_MEMORIES", "WORKLOADS", "Sizes", "broken_memories", "compilations"]

NEW_MEMORIES = 5
"""Number of memories of one shape for which compilations are counted."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of memories and queries."""

    batch: int = 1000
    """Queries per batch, in retrieval and in sparse updates."""
    dimension: int = 784
    """Coordinates of a memory, in retrieval and in sparse updates."""
    num_memories: int = 10_000
    """Memories of retrieval."""
    num_sparse: int = 1000
    """Memories of the sparse updates."""
    beta: float = 20.0
    """Inverse temperature; memories have norms of about 1."""
    num_spins: int = 1000
    """Spins of asynchronous recall."""
    loads: tuple[int, ...] = (80, 138)
    """Memories of asynchronous recall; the capacity of Hebb's rule is 0.138 per spin."""
    flipped: float = 0.125
    """Fraction of the spins of a query that are flipped."""
    num_loop: int = 10
    """Queries of NumPy's loops, and of recall one by one."""
    num_batch: int = 100
    """Queries of recall by vmap."""
    attention: tuple[int, int, int, int, int] = (32, 64, 256, 128, 4)
    """Batch, queries, memories, features and heads of the layer."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        for name in ("batch", "dimension", "num_memories", "num_sparse", "num_spins", "num_loop"):
            checks.positive_integer(name, getattr(self, name))
        for number in self.loads + self.attention:
            checks.positive_integer("loads and attention", number)
        checks.in_range("flipped", self.flipped, 0.0, 0.5)
        checks.positive("beta", self.beta)
        if self.num_batch < self.num_loop:
            raise ValueError(f"num_batch={self.num_batch} must not be below num_loop={self.num_loop}.")


def broken_memories(sizes: Sizes, num_memories: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns memories of norm about 1, (K, D), and the first of them with noise of norm 0.5, (B, D)."""
    rng = np.random.default_rng(seed)
    scale = np.float32(sizes.dimension**-0.5)
    patterns = scale * rng.standard_normal((num_memories, sizes.dimension), dtype=np.float32)
    noise = scale * rng.standard_normal((sizes.batch, sizes.dimension), dtype=np.float32)
    return patterns, patterns[np.arange(sizes.batch) % num_memories] + np.float32(0.5) * noise


def retrieval(sizes: Sizes, seed: int) -> dict[str, Workload]:
    """One update of the modern network: two products, with a softmax between them."""
    patterns, queries = broken_memories(sizes, sizes.num_memories, seed)
    beta, (p, q) = sizes.beta, (jnp.asarray(patterns), jnp.asarray(queries))
    memory = modern(p, beta)
    products = jax.jit(lambda p, q: (q @ p.T) @ p)
    recall = jax.jit(jax.vmap(partial(retrieve, max_steps=1), (None, 0)))
    step = jax.jit(jax.vmap(update, (None, 0)))
    torch, hamux = (
        partial(make, patterns, queries) for make in (peers.update_in_torch, peers.update_in_hamux)
    )
    contenders = [
        Contender("two bare products, JAX", lambda: products(p, q), agrees=False),
        Contender("jaxebm, `retrieve`, one step", lambda: recall(memory, q).state),
        Contender("jaxebm, `update`", lambda: step(memory, q)),
        peer("PyTorch, hopfield-layers' maths", "torch", lambda: torch(beta)),
        peer("hamux, two layers", "hamux fastcore", lambda: hamux(beta, layers=2)),
        peer("hamux, hidden layer summed out", "hamux fastcore", lambda: hamux(beta, layers=1)),
        Contender("NumPy, dense", lambda: peers.update_in_numpy(patterns, queries, beta)),
        peer("two bare products, PyTorch", "torch", lambda: torch(None), agrees=False),
        Contender("two bare products, NumPy", lambda: (queries @ patterns.T) @ patterns, agrees=False),
    ]
    size = f"K = {sizes.num_memories}, D = {sizes.dimension}, {sizes.batch} queries"
    return {"retrieval": Workload(f"Modern retrieval, one update: {size}", contenders)}


def one_by_one(recall: Callable[..., Any], memory: Any, queries: Sequence[Any]) -> np.ndarray:
    """Recalls query after query, each to its end."""
    return np.stack([np.asarray(recall(memory, query)) for query in queries])


def asynchronous(sizes: Sizes, seed: int) -> dict[str, Workload]:
    """Recall one spin at a time, from Hebb's couplings without their diagonal."""
    workloads, spins, few = {}, sizes.num_spins, sizes.num_loop
    one = jax.jit(lambda memory, query: retrieve_asynchronously(memory, query).state)
    many = jax.jit(jax.vmap(one, (None, 0)))
    loops = {"NumPy loop": peers.loop_over_spins, "NumPy, from flip to flip": peers.loop_over_flips}
    for load in sizes.loads:
        rng = np.random.default_rng(seed)
        patterns = rng.choice(np.array([-1, 1], np.float32), (load, spins))
        wrong = rng.random((sizes.num_batch, spins)).argsort(axis=1) < sizes.flipped * spins
        queries = patterns[np.arange(sizes.num_batch) % load] * np.where(wrong, -1, 1).astype(np.float32)
        # Times N the couplings are whole numbers, all sums are exact, and so final states must be equal.
        weights = np.rint(spins * np.asarray(hebb(jnp.asarray(patterns), zero_diagonal=True)))
        memory, q = pairwise(weights), jnp.asarray(queries)
        in_numpy = [
            Contender(name, partial(one_by_one, loop, weights, tuple(queries[:few])), few)
            for name, loop in loops.items()
        ]
        ours = [
            Contender("jaxebm, one query", partial(one_by_one, one, memory, tuple(q[:few])), few),
            Contender(f"jaxebm, {len(q)} queries by vmap", partial(many, memory, q), len(q)),
        ]
        title = f"Asynchronous recall: N = {spins}, K = {load}, {sizes.flipped:.1%} of spins flipped"
        workload = Workload(title, in_numpy + ours, "query", tolerance=0.0, speed=True)
        workloads[f"asynchronous-{load}"] = workload
    return workloads


def sparse_updates(sizes: Sizes, seed: int) -> dict[str, Workload]:
    """One update with entmax in place of the softmax."""
    patterns, queries = (jnp.asarray(array) for array in broken_memories(sizes, sizes.num_sparse, seed))
    step = jax.jit(jax.vmap(update, (None, 0)))
    memories = {
        "jaxebm, `modern`": modern(patterns, sizes.beta),
        "jaxebm, `sparse`, alpha = 1.5": sparse(patterns, sizes.beta, alpha=1.5),
        "jaxebm, `sparse`, alpha = 2": sparse(patterns, sizes.beta, alpha=2.0),
    }
    contenders = [
        Contender(name, partial(step, memory, queries), agrees=False) for name, memory in memories.items()
    ]
    size = f"K = {sizes.num_sparse}, D = {sizes.dimension}, {sizes.batch} queries"
    return {"sparse": Workload(f"Sparse updates: {size}", contenders)}


def attention(sizes: Sizes, seed: int) -> dict[str, Workload]:
    """The layer of one step against Flax's attention, with the same weights."""
    batch, num_queries, num_memories, features, heads = sizes.attention
    keys = jax.random.split(jax.random.key(seed), 3)
    queries = jax.random.normal(keys[0], (batch, num_queries, features))
    memories = jax.random.normal(keys[1], (batch, num_memories, features))
    theirs, ours = nn.MultiHeadDotProductAttention(heads), HopfieldAssociation(num_heads=heads)
    inputs = (theirs.init(keys[2], queries, memories), queries, memories)
    layers = {"Flax, `MultiHeadDotProductAttention`": theirs, "jaxebm, `HopfieldAssociation`": ours}

    def loss(layer: nn.Module, *inputs: Any) -> jax.Array:
        return jnp.mean(cast(jax.Array, layer.apply(*inputs)) ** 2)

    def contenders(program: Callable[[nn.Module], Callable[..., Any]]) -> list[Contender]:
        return [Contender(name, partial(jax.jit(program(layer)), *inputs)) for name, layer in layers.items()]

    forward = contenders(lambda layer: layer.apply)
    backward = contenders(lambda layer: jax.grad(partial(loss, layer), (0, 1, 2)))
    size = f"({batch}, {num_queries}, {features}) to {num_memories} memories, {heads} heads"
    return {
        "attention-forward": Workload(f"Attention, forward: {size}", forward),
        "attention-backward": Workload(f"Attention, forward and backward: {size}", backward),
    }


WORKLOADS: dict[str, Callable[[Sizes, int], dict[str, Workload]]] = {
    "retrieval": retrieval,
    "asynchronous": asynchronous,
    "sparse": sparse_updates,
    "attention": attention,
}
"""By name: ``(sizes, seed) -> workloads``, each with a name of its own."""


def compilations(sizes: Sizes, seed: int) -> dict[str, int]:
    """Returns how often XLA compiles for recall from new memories of one shape."""
    rng = np.random.default_rng(seed)
    patterns = rng.choice(np.array([-1, 1], np.float32), (NEW_MEMORIES, 20, sizes.num_spins))
    queries = jnp.asarray(patterns[0])
    # All are made before counting, so that only recall counts. Temperatures differ, too.
    real = [modern(rows, beta=1.0 + number) for number, rows in enumerate(patterns)]
    coupled = [pairwise(hebb(jnp.asarray(rows))) for rows in patterns]

    def count(recall: Callable[..., Any], memories: Sequence[Any]) -> int:
        program = jax.jit(jax.vmap(lambda memory, query: recall(memory, query), (None, 0)))
        return count_compilations(lambda: [program(memory, queries) for memory in memories])

    return {
        "retrieve": count(retrieve, real),
        "retrieve_asynchronously": count(retrieve_asynchronously, coupled),
    }
