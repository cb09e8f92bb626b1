"""The measurements of hopfield.py: recall rates by corruption, and energies along recall."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.hopfield import modern, reverse_diffusion
from memories.images import METRICS, Stored, corrupt, nearest_by, recalled
from memories.networks import NETWORKS, path_of_recall, recall_all, resolving_beta

__all__ = ["LEVELS", "accuracy_of", "diffuse", "paths_of_recall", "recall_from_half"]

LEVELS: dict[str, tuple[float, ...]] = {
    "flips": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4),
    "noise": (0.0, 0.2, 0.5, 1.0, 1.5, 2.0),
    "mask": (0.0, 0.125, 0.25, 0.5, 0.75),
}
"""Levels of each corruption at which recall is measured."""


def accuracy_of(
    stored: Stored,
    name: str,
    num_memories: int,
    trials: Sequence[tuple[str, float]],
    *,
    draws: int,
    queries: int,
    seed: int,
) -> list[dict[str, float]]:
    """Measures which part of the memories one network recalls.

    Args:
      stored: what memories are drawn from.
      name: of the network, one of `NETWORKS`.
      num_memories: of a draw.
      trials: pairs of corruption and level.
      draws: independent choices of memories.
      queries: greatest number of memories of each choice that are recalled.
      seed: of choices and corruptions.

    Returns:
      For each trial the ``mean`` and the standard deviation ``sd`` over draws.
    """
    network = NETWORKS[name]
    rows: list[list[float]] = [[] for _ in trials]
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw, num_memories])
        chosen = rng.permutation(len(stored.spins))[:num_memories]
        patterns = (stored.spins if network.spins else stored.grey)[chosen]
        memory = network.make(jnp.asarray(patterns))
        targets = patterns[:queries]
        for row, (kind, level) in zip(rows, trials, strict=True):
            asked, observed = corrupt(rng, targets, kind, level, spins=network.spins)
            states = recall_all(network.recall, memory, jnp.asarray(asked), jnp.asarray(observed))
            row.append(float(np.mean(recalled(np.asarray(states), targets))))
    return [{"mean": float(np.mean(row)), "sd": float(np.std(row, ddof=1))} for row in rows]


def recall_from_half(
    stored: Stored, num_memories: int, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures how often an image is recalled from its upper half, by each measure of similarity.

    Args:
      stored: what memories are drawn from.
      num_memories: drawn.
      seed: of the choice.

    Returns:
      The rates as plain values for JSON, and rows of eight images by name for a picture.
    """
    rng = np.random.default_rng([seed, 1])
    memories = stored.grey[rng.permutation(len(stored.grey))[:num_memories]]
    queries, observed = corrupt(rng, memories, "mask", 0.5, spins=False)
    # Memories with equal visible pixels cannot be distinguished: they are left out, and counted.
    seen = memories[:, observed[0]]
    first, index, count = np.unique(seen, axis=0, return_index=True, return_inverse=True, return_counts=True)[
        1:
    ]
    distinct = count[index] == 1
    memory = modern(memories, resolving_beta(jnp.asarray(seen[first]), 0.0), equal_weights=True)
    recall = NETWORKS["modern"].recall
    states = np.asarray(recall_all(recall, memory, jnp.asarray(queries), jnp.asarray(observed)))
    black = np.where(observed, memories, -1.0)
    found = {name: nearest_by(name, 0.5 * (black + 1), 0.5 * (memories + 1)) for name in METRICS}
    rates = {
        f"{name}, hidden pixels black": float(np.mean((index == np.arange(len(memories)))[distinct]))
        for name, index in found.items()
    }
    right = recalled(states, memories)[distinct]
    rates["modern network, hidden pixels integrated out"] = float(np.mean(right))
    rows = {"stored": memories[:8], "seen": black[:8]}
    rows |= {name: memories[index[:8]] for name, index in found.items()} | {"integrated out": states[:8]}
    measured = {
        "memories": len(memories),
        "exact_ties": int(np.sum(~distinct)),
        "beta": float(memory.beta),
        "recalled": rates,
    }
    return measured, rows


def paths_of_recall(
    stored: Stored, names: Sequence[str], num_memories: int, *, flips: float, noise: float, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Follows the recall of one memory, step by step, in each network.

    Args:
      stored: what memories are drawn from.
      names: of the networks.
      num_memories: of each.
      flips: part of the pixels flipped, for networks of spins.
      noise: standard deviation of the noise, for the others.
      seed: of the choice and of the corruption.

    Returns:
      For each network the memory and the states from the query on, ``(2 + steps, D)``, and the states'
      energies.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(stored.spins))
    paths, heights = {}, {}
    for name in names:
        network = NETWORKS[name]
        patterns = (stored.spins if network.spins else stored.grey)[order[:num_memories]]
        corruption = ("flips", flips) if network.spins else ("noise", noise)
        rng = np.random.default_rng([seed, 3])
        query, _ = corrupt(rng, patterns[:1], *corruption, spins=network.spins)
        memory = network.make(jnp.asarray(patterns))
        states, energies = path_of_recall(network, memory, jnp.asarray(query[0]), num_steps=6)
        paths[name] = np.concatenate([patterns[:1], np.asarray(states)])
        heights[name] = np.asarray(energies).tolist()
    return paths, heights


def diffuse(stored: Stored, num_memories: int, seed: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Runs diffusion backwards over the memories.

    Args:
      stored: what memories are drawn from.
      num_memories: drawn.
      seed: of the choice and of the chains.

    Returns:
      How many chains end on a memory and on how many different ones, and rows of eight images by level of
      noise for a picture.
    """
    rng = np.random.default_rng([seed, 4])
    patterns = jnp.asarray(stored.grey[rng.permutation(len(stored.grey))[:num_memories]])
    # From noise far above the differences between memories to noise far below them.
    levels = jnp.concatenate([jnp.geomspace(30.0, 0.05, 24), jnp.zeros(1)])
    key, keys = jax.random.key(seed), jax.random.split(jax.random.key(seed + 1), 200)
    start = levels[0] * jax.random.normal(key, (len(keys), patterns.shape[1]))

    def run_backwards(num_levels: int, chains: int) -> np.ndarray:
        step = partial(reverse_diffusion, patterns=patterns, noise_levels=levels[:num_levels])
        return np.asarray(jax.jit(jax.vmap(lambda key, x: step(key, x=x)))(keys[:chains], start[:chains]))

    last = run_backwards(len(levels), len(keys))
    distance = np.array([np.min(np.max(np.abs(np.asarray(patterns) - x), axis=1)) for x in last])
    shown = 8
    frames = {f"{float(levels[n - 1]):.2g}": run_backwards(n, shown) for n in (6, 10, 14, 18, 24)}
    frames = {f"{float(levels[0]):.2g}": np.asarray(start[:shown])} | frames | {"0": last[:shown]}
    measured = {
        "ends_on_a_memory": float(np.mean(distance < 1e-5)),
        "different_memories": len(np.unique(last.round(4), axis=0)),
        "chains": len(last),
    }
    return measured, {f"noise {level}": images for level, images in frames.items()}
