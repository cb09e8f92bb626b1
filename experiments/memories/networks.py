"""The networks of hopfield.py: how each stores patterns and recalls from a query."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.hopfield import (
    dense,
    energy,
    epanechnikov,
    exponential,
    graded,
    hebb,
    marginalise,
    minimum_probability_flow,
    modern,
    pairwise,
    projection,
    retrieve,
    retrieve_asynchronously,
    sparse,
    storkey,
    trajectory,
)
from jaxebm.types import Array

__all__ = [
    "NETWORKS",
    "Network",
    "landscapes",
    "path_of_recall",
    "recall_all",
    "resolving_beta",
]


class Network(NamedTuple):
    """One way to store and to recall.

    Attributes:
      spins: whether it stores spins; if not, grey values.
      make: patterns (K, D) -> memory.
      recall: ``(memory, query, observed) -> state``, of one query.
    """

    spins: bool
    make: Callable[[Array], Any]
    recall: Callable[[Any, Array, Array], Array]


def _held(observed: Array) -> Array:
    """Known pixels are fixed only if some are hidden: with all known, nothing could move."""
    return observed & ~jnp.all(observed)


def _together(memory: Any, query: Array, observed: Array) -> Array:
    return retrieve(memory, query, clamped=_held(observed)).state


def _one_by_one(memory: Any, query: Array, observed: Array) -> Array:
    return retrieve_asynchronously(memory, query, clamped=_held(observed)).state


def _marginal(memory: Any, query: Array, observed: Array) -> Array:
    return retrieve(marginalise(memory, observed), query).state


def _continuous(memory: Any, query: Array, observed: Array) -> Array:
    found = retrieve(memory, query, step_size=0.3, max_steps=300, clamped=_held(observed))
    return memory.activations(found.state)


def _half_squared_distance(patterns: Array, quantile: float = 0.05) -> Array:
    """Returns half the squared distance of a memory to its nearest other, at a quantile over memories."""
    squared = jnp.sum(patterns**2, axis=1)
    between = squared[:, None] + squared[None, :] - 2 * patterns @ patterns.T
    nearest = jnp.min(jnp.where(jnp.eye(len(patterns), dtype=bool), jnp.inf, between), axis=1)
    return 0.5 * jnp.maximum(jnp.quantile(nearest, quantile), 1e-3)


def resolving_beta(patterns: Array, quantile: float = 0.05) -> Array:
    """Returns the beta at which a memory itself has 99% of the weight, all others being at that distance."""
    return jnp.log(100.0 * patterns.shape[0]) / _half_squared_distance(patterns, quantile)


def _modern(patterns: Array) -> Any:
    return modern(patterns, resolving_beta(patterns), equal_weights=True)


def _sparse(patterns: Array, alpha: float) -> Any:
    # At a memory, all others have no weight from half that distance on.
    beta = 2 / ((alpha - 1) * _half_squared_distance(patterns))
    return sparse(patterns, beta, alpha, equal_weights=True)


def _epanechnikov(patterns: Array) -> Any:
    # Balls of .9 of that distance as radius: at a memory, and some way off it, no other takes part.
    return epanechnikov(patterns, 1 / (0.81 * _half_squared_distance(patterns)))


NETWORKS: dict[str, Network] = {
    "hebb": Network(True, lambda patterns: pairwise(hebb(patterns)), _one_by_one),
    "storkey": Network(True, lambda patterns: pairwise(storkey(patterns)), _one_by_one),
    "projection": Network(True, lambda patterns: pairwise(projection(patterns)), _one_by_one),
    "probability flow": Network(
        True, lambda patterns: pairwise(*minimum_probability_flow(patterns)), _one_by_one
    ),
    "graded": Network(True, lambda patterns: graded(projection(patterns), gain=5.0), _continuous),
    "dense, n = 3": Network(True, partial(dense, degree=3), _together),
    "dense, n = 10": Network(True, partial(dense, degree=10), _together),
    "exponential": Network(True, exponential, _together),
    "modern": Network(False, _modern, _marginal),
    "entmax 1.5": Network(False, partial(_sparse, alpha=1.5), _together),
    "sparsemax": Network(False, partial(_sparse, alpha=2.0), _together),
    "epanechnikov": Network(False, _epanechnikov, _together),
}
"""The networks by name; `classical` is "hebb" stored as patterns, with the same recall."""


@partial(jax.jit, static_argnames="recall")
def recall_all(recall: Callable[..., Array], memory: Any, queries: Array, observed: Array) -> Array:
    """Returns the states, (n, D), in which the queries end."""
    return jax.vmap(recall, (None, 0, 0))(memory, queries, observed)


def landscapes(half_width: float = 1.6, points: int = 161) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns five memories in the plane, (5, 2), and energies of several networks on a grid around them."""
    angles = 2 * np.pi * np.array([0.03, 0.22, 0.46, 0.6, 0.83])
    memories = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(
        [[1.0], [0.8], [1.1], [0.9], [1.0]]
    )
    side = np.linspace(-half_width, half_width, points)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))
    networks = {
        "modern, beta = 1": modern(memories, 1.0, equal_weights=True),
        "modern, beta = 5": modern(memories, 5.0, equal_weights=True),
        "modern, beta = 30": modern(memories, 30.0, equal_weights=True),
        "sparsemax, beta = 5": sparse(memories, 5.0, equal_weights=True),
        "epanechnikov, beta = 8": epanechnikov(memories, 8.0, epsilon=1e-2),
    }
    return memories, {
        name: np.asarray(jax.vmap(energy, (None, 0))(memory, grid)).reshape(points, points)
        for name, memory in networks.items()
    }


def path_of_recall(network: Network, memory: Any, query: Array, num_steps: int) -> tuple[Array, Array]:
    """Returns the states after 0, 1, .. steps or sweeps, (num_steps + 1, D), and their energies."""
    if network.recall is not _one_by_one:
        continuous = network.recall is _continuous
        states, energies = trajectory(memory, query, num_steps, step_size=0.3 if continuous else 1.0)
        return (memory.activations(states) if continuous else states), energies
    later = [
        retrieve_asynchronously(memory, query, max_sweeps=sweeps).state for sweeps in range(1, num_steps + 1)
    ]
    states = jnp.stack([query, *later])
    return states, jax.vmap(energy, (None, 0))(memory, states)
