"""The images of hopfield.py: stored, corrupted, counted as recalled, and found by nearest neighbours."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxebm.data import Dataset

__all__ = ["CORRUPTIONS", "METRICS", "Stored", "corrupt", "nearest_by", "recalled", "stored_images"]

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


CORRUPTIONS = {
    "flips": "part of the pixels with their sign flipped",
    "noise": "standard deviation of Gaussian noise, of a range of 2",
    "mask": "part of the rows hidden, from the bottom",
}
"""What the level of each kind of corruption means, by name."""


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


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "dot product": lambda query, memories: memories @ query,
    "cosine": lambda query, memories: memories @ query / np.linalg.norm(memories, axis=1),
    "Euclidean": lambda query, memories: -np.sum((memories - query) ** 2, axis=1),
    "Manhattan": lambda query, memories: -np.sum(np.abs(memories - query), axis=1),
}
"""Similarities of a query to each memory, by name; hidden pixels are filled in first."""


def nearest_by(metric: str, queries: np.ndarray, memories: np.ndarray) -> np.ndarray:
    """Returns the index of the memory most similar to each query, (n,), every pixel compared."""
    similarity = METRICS[metric]
    return np.array([int(np.argmax(similarity(query, memories))) for query in queries])
