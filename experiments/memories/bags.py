"""Bags of images, for hopfield_mil.py."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxebm.types import Array

__all__ = ["Bags", "draw_bags", "within_bag_auroc"]


class Bags(NamedTuple):
    """B bags of up to N images, as indices in an array of images.

    Attributes:
      image: the images themselves, in [-1, 1], ``(n, H, W, C)``.
      member: which images a bag holds, ``(B, N)``; anything where ``mask`` is False.
      mask: ``(B, N)``, False where a bag is padded.
      is_target: ``(B, N)``, whether the image is of the target class; never seen in training.
      label: ``(B,)``, 1 for a bag with a target, else 0.
    """

    image: Array
    member: Array
    mask: Array
    is_target: Array
    label: Array


def draw_bags(
    seed: Sequence[int],
    image: Array,
    label: np.ndarray,
    num_bags: int,
    *,
    target: int,
    bag_size: tuple[int, int],
    max_targets: int,
) -> Bags:
    """Draws bags, half of them positive; within a bag no image occurs twice.

    Args:
      seed: of this set of bags.
      image: ``(n, H, W, C)``, in [-1, 1].
      label: classes of the images, ``(n,)``.
      num_bags: B.
      target: the class that makes a bag positive.
      bag_size: fewest and most images of a bag, all sizes equally likely.
      max_targets: a positive bag holds 1..max_targets of them, all equally likely.

    Returns:
      The bags, in no order.

    Raises:
      ValueError: if there are too few images to fill a bag.
    """
    generator = np.random.default_rng(seed)
    targets, others = np.flatnonzero(label == target), np.flatnonzero(label != target)
    low, high = bag_size
    if len(targets) < max_targets or len(others) < high:
        raise ValueError(
            f"target={target}, bag_size={bag_size}, max_targets={max_targets}: {len(targets)} images of the "
            f"target and {len(others)} others cannot fill a bag."
        )
    bag_label = generator.permutation(np.arange(num_bags) % 2)
    size = generator.integers(low, high + 1, num_bags)
    count = bag_label * generator.integers(1, max_targets + 1, num_bags)
    member = np.zeros((num_bags, high), np.int32)
    for bag in range(num_bags):
        chosen = [
            generator.choice(targets, count[bag], replace=False),
            generator.choice(others, size[bag] - count[bag], replace=False),
        ]
        member[bag, : size[bag]] = generator.permutation(np.concatenate(chosen))
    mask = np.arange(high)[None] < size[:, None]
    is_target = mask & (label[member] == target)
    return Bags(image, *(jnp.asarray(part) for part in (member, mask, is_target, bag_label)))


def within_bag_auroc(weights: np.ndarray, bags: Bags) -> float:
    """Chance that a target weighs more than another image of its bag, ties half; mean over positive bags."""
    chances = []
    masks, targets = np.asarray(bags.mask), np.asarray(bags.is_target)
    for weight, mask, is_target in zip(weights, masks, targets, strict=True):
        if is_target.any():
            difference = weight[is_target][:, None] - weight[mask & ~is_target][None]
            chances.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
    return float(np.mean(chances))
