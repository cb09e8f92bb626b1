"""What hopfield.py stores, how it corrupts that, and the networks that recall it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.data import Dataset
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
    "CORRUPTIONS",
    "METRICS",
    "NETWORKS",
    "Network",
    "Stored",
    "corrupt",
    "landscapes",
    "nearest_by",
    "path_of_recall",
    "recall_all",
    "recalled",
    "resolving_beta",
    "stored_images",
]

CLOSE = 0.02
"""A memory counts as recalled if the mean error of a pixel is at most this part of the range of values."""


class Stored(NamedTuple):
    """Images as memories, no two of them equal.

    Attributes:
      grey: in [-1, 1], shape (n, D).
      spins: -1 and 1, shape (n, D): grey, cut at ``threshold``.
      shape: of one image, (H, W, C).
    """

    grey: np.ndarray
    spins: np.ndarray
    shape: tuple[int, ...]


def stored_images(dataset: Dataset, threshold: float) -> Stored:
    """Returns the training images whose binary versions all differ, in the data set's order.

    Args:
      dataset: any image set.
      threshold: part of the range of values above which a pixel is 1.
    """
    low, high = dataset.value_range
    images = dataset.train.image.reshape(len(dataset.train.image), -1)
    unit = (images.astype(np.float32) - low) / (high - low)
    spins = np.where(unit > threshold, 1.0, -1.0).astype(np.float32)
    first = np.sort(np.unique(np.packbits(spins > 0, axis=1), axis=0, return_index=True)[1])
    return Stored(2 * unit[first] - 1, spins[first], dataset.train.image.shape[1:])


# Corruption

CORRUPTIONS = {
    "flips": "part of the pixels with their sign flipped",
    "noise": "standard deviation of Gaussian noise, of a range of 2",
    "mask": "part of the rows hidden, from the bottom",
}


def corrupt(
    rng: np.random.Generator, images: np.ndarray, kind: str, level: float, *, spins: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``(queries, observed)``, shapes (n, D): what is asked, and which pixels of it are known.

    Args:
      rng: of the corruption.
      images: (n, D), in [-1, 1].
      kind: one of `CORRUPTIONS`.
      level: how much of it.
      spins: whether queries must be spins; then noise is followed by the sign. Hidden pixels are 0.
    """
    observed = np.ones(images.shape, bool)
    if kind == "flips":
        queries = np.where(rng.random(images.shape) < level, -images, images)
    elif kind == "noise":
        queries = images + level * rng.standard_normal(images.shape)
        queries = np.where(queries >= 0, 1.0, -1.0) if spins else queries
    else:
        hidden = round(level * images.shape[1])
        observed[:, images.shape[1] - hidden :] = False
        queries = np.where(observed, images, 0.0)
    return queries.astype(np.float32), observed


def recalled(states: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns which states, (n, D), are their targets to within `CLOSE` of the range of values, (n,) bool."""
    return np.mean(np.abs(np.asarray(states) - targets), axis=1) / 2 <= CLOSE


# Networks


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
    """Known pixels are held only where some are hidden: with all known, nothing could move."""
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
"""By name; `classical` is "hebb" kept as patterns, and recalls alike."""


@partial(jax.jit, static_argnames="recall")
def recall_all(recall: Callable[..., Array], memory: Any, queries: Array, observed: Array) -> Array:
    """Returns the states, (n, D), in which the queries end."""
    return jax.vmap(recall, (None, 0, 0))(memory, queries, observed)


# Nearest neighbours on an image with its hidden pixels filled in, to compare with

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "dot product": lambda query, memories: memories @ query,
    "cosine": lambda query, memories: memories @ query / np.linalg.norm(memories, axis=1),
    "Euclidean": lambda query, memories: -np.sum((memories - query) ** 2, axis=1),
    "Manhattan": lambda query, memories: -np.sum(np.abs(memories - query), axis=1),
}


def nearest_by(metric: str, queries: np.ndarray, memories: np.ndarray) -> np.ndarray:
    """Returns the index of the memory most similar to each query, (n,), every pixel compared."""
    similarity = METRICS[metric]
    return np.array([int(np.argmax(similarity(query, memories))) for query in queries])


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
