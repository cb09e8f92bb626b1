"""Speed of jaxebm.hopfield against the same mathematics in PyTorch, hamux and NumPy, in one run.

    pip install torch hamux fastcore     # the peers; without one, its row says so and the rest runs
    python experiments/benchmark_hopfield.py
    python experiments/benchmark_hopfield.py --workloads asynchronous --rounds 11 --output runs/walk.json

Contenders get the same float32 inputs, and before the clock starts their results must agree. They then take
turns and are judged by the ratio of their times within a round: the median over the rounds, and the range.
NumPy and PyTorch run on the CPU. Let the machine do nothing else; its load is recorded.

Prints tables and writes them as JSON. docs/performance.md has the figures and what they mean.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import benchmark_peers as peers
from benchmark_harness import (
    Contender,
    Workload,
    check_agreement,
    compete,
    count_compilations,
    describe_machine,
    heading,
    peer,
    tables,
)
from command_line import as_json, refuse_existing, run_experiment
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
from jaxebm.training import write_atomically

PACKAGES = ("jaxebm", "jax", "jaxlib", "flax", "numpy", "torch", "hamux")
NEW_MEMORIES = 5


@dataclass(frozen=True)
class Config:
    """Measure retrieval, asynchronous recall, recompilation, sparse updates and the Flax layer."""

    workloads: tuple[str, ...] = ("retrieval", "asynchronous", "compilations", "sparse", "attention")
    """Which to run."""
    output: Path = Path("runs/benchmark_hopfield.json")
    """The file to write."""
    overwrite: bool = False
    """Replace the file if there is one."""
    rounds: int = 7
    """In each of which every contender is timed once."""
    seconds: float = 0.2
    """For which a contender is called over and over in a round; at least one call is made."""
    seed: int = 0
    """Of memories and queries."""

    batch: int = 1000
    """Queries at once, of retrieval and of sparse updates."""
    dimension: int = 784
    """Coordinates of a memory, there."""
    num_memories: int = 10_000
    """Of retrieval."""
    num_sparse: int = 1000
    """Memories of the sparse updates."""
    beta: float = 20.0
    """Inverse temperature; memories have norms of about 1."""
    num_spins: int = 1000
    """Of asynchronous recall."""
    loads: tuple[int, ...] = (80, 138)
    """Memories of asynchronous recall; 0.138 a spin is what Hebb's rule can hold."""
    flipped: float = 0.125
    """Of a query's spins."""
    num_loop: int = 10
    """Queries for NumPy's loops, and for recall one by one."""
    num_batch: int = 100
    """Queries for recall by vmap."""
    attention: tuple[int, int, int, int, int] = (32, 64, 256, 128, 4)
    """Batch, queries, memories, features and heads of the layer."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is unknown or out of range, or ``FileExistsError``."""
        known = ("compilations", *WORKLOADS)
        if not self.workloads or not set(self.workloads) <= set(known):
            raise ValueError(f"workloads={self.workloads}: choose among {', '.join(known)}.")
        for name in ("rounds", "batch", "dimension", "num_memories", "num_sparse", "num_spins", "num_loop"):
            checks.positive_integer(name, getattr(self, name))
        for number in self.loads + self.attention:
            checks.positive_integer("loads and attention", number)
        checks.in_range("flipped", self.flipped, 0.0, 0.5)
        checks.positive("beta", self.beta)
        if self.num_batch < self.num_loop:
            raise ValueError(f"num_batch={self.num_batch} must not be below num_loop={self.num_loop}.")
        refuse_existing("output", self.output, overwrite=self.overwrite)


def broken_memories(config: Config, num_memories: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns memories of norm about 1, (K, D), and the first of them with noise of norm 0.5, (B, D)."""
    rng = np.random.default_rng(config.seed)
    scale = np.float32(config.dimension**-0.5)
    patterns = scale * rng.standard_normal((num_memories, config.dimension), dtype=np.float32)
    noise = scale * rng.standard_normal((config.batch, config.dimension), dtype=np.float32)
    return patterns, patterns[np.arange(config.batch) % num_memories] + np.float32(0.5) * noise


def retrieval(config: Config) -> list[Workload]:
    """One update of the modern network: two products, with a softmax between them."""
    patterns, queries = broken_memories(config, config.num_memories)
    beta, (p, q) = config.beta, (jnp.asarray(patterns), jnp.asarray(queries))
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
    size = f"K = {config.num_memories}, D = {config.dimension}, {config.batch} queries"
    return [Workload(f"Modern retrieval, one update: {size}", contenders)]


def one_by_one(recall: Callable[..., Any], memory: Any, queries: Sequence[Any]) -> np.ndarray:
    """Recalls query after query, each waited for."""
    return np.stack([np.asarray(recall(memory, query)) for query in queries])


def asynchronous(config: Config) -> list[Workload]:
    """Recall one spin at a time, from Hebb's couplings without their diagonal."""
    workloads, spins, few = [], config.num_spins, config.num_loop
    one = jax.jit(lambda memory, query: retrieve_asynchronously(memory, query).state)
    many = jax.jit(jax.vmap(one, (None, 0)))
    loops = {"NumPy loop": peers.loop_over_spins, "NumPy, from flip to flip": peers.loop_over_flips}
    for load in config.loads:
        rng = np.random.default_rng(config.seed)
        patterns = rng.choice(np.array([-1, 1], np.float32), (load, spins))
        wrong = rng.random((config.num_batch, spins)).argsort(axis=1) < config.flipped * spins
        queries = patterns[np.arange(config.num_batch) % load] * np.where(wrong, -1, 1).astype(np.float32)
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
        title = f"Asynchronous recall: N = {spins}, K = {load}, {config.flipped:.1%} of spins flipped"
        workloads.append(Workload(title, in_numpy + ours, "query", tolerance=0.0, speed=True))
    return workloads


def sparse_updates(config: Config) -> list[Workload]:
    """One update with entmax in place of the softmax."""
    patterns, queries = (jnp.asarray(array) for array in broken_memories(config, config.num_sparse))
    step = jax.jit(jax.vmap(update, (None, 0)))
    memories = {
        "jaxebm, `modern`": modern(patterns, config.beta),
        "jaxebm, `sparse`, alpha = 1.5": sparse(patterns, config.beta, alpha=1.5),
        "jaxebm, `sparse`, alpha = 2": sparse(patterns, config.beta, alpha=2.0),
    }
    contenders = [
        Contender(name, partial(step, memory, queries), agrees=False) for name, memory in memories.items()
    ]
    size = f"K = {config.num_sparse}, D = {config.dimension}, {config.batch} queries"
    return [Workload(f"Sparse updates: {size}", contenders)]


def attention(config: Config) -> list[Workload]:
    """The layer of one step against Flax's attention, with the same weights."""
    batch, num_queries, num_memories, features, heads = config.attention
    keys = jax.random.split(jax.random.key(config.seed), 3)
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
    return [
        Workload(f"Attention, forward: {size}", forward),
        Workload(f"Attention, forward and backward: {size}", backward),
    ]


WORKLOADS: dict[str, Callable[[Config], list[Workload]]] = {
    "retrieval": retrieval,
    "asynchronous": asynchronous,
    "sparse": sparse_updates,
    "attention": attention,
}


def compilations(config: Config) -> dict[str, int]:
    """Returns how often XLA compiles while new memories of one shape are recalled from."""
    rng = np.random.default_rng(config.seed)
    patterns = rng.choice(np.array([-1, 1], np.float32), (NEW_MEMORIES, 20, config.num_spins))
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


def as_markdown(card: dict[str, Any]) -> str:
    """Returns the card for a reader."""
    lines = [
        heading(card),
        "",
        tables(card["workloads"]),
    ]
    for name, count in card["compilations"].items():
        lines.append(f"Programs compiled for {NEW_MEMORIES} memories of one shape, `{name}`: {count}")
    return "\n".join(lines)


def main(config: Config) -> dict[str, Any]:
    """Runs the workloads, writes the card and returns it."""
    config.check()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    with jax.default_matmul_precision("float32"):
        workloads = [one for name in config.workloads if name in WORKLOADS for one in WORKLOADS[name](config)]
        for workload in workloads:
            check_agreement(workload)
        counts = compilations(config) if "compilations" in config.workloads else {}
        results = [compete(workload, config.rounds, config.seconds) for workload in workloads]
    card = {
        "schema": 1,
        "experiment": "benchmark_hopfield",
        "machine": describe_machine(PACKAGES),
        "load": [load, os.getloadavg()[0]],
        "workloads": results,
        "compilations": counts,
        "config": as_json(config),
    }
    write_atomically(config.output, json.dumps(card, indent=2) + "\n")
    print(as_markdown(card))
    return card


if __name__ == "__main__":
    run_experiment(Config, main)
