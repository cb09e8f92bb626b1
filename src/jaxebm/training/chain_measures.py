"""Measures of the chains after an update, by which `jaxebm.training.health` finds those that are useless."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.contrastive import check_same_example_shape
from jaxebm.types import Array, Metrics, Position

__all__ = ["measure_chains", "reach_of"]


def measure_chains(x_data: Position | None, x_model: Position, displacement: Array | None) -> Metrics:
    """Returns metrics that detect frozen, saturated, identical and escaped chains, and the samples' grain.

    frozen_chains = share of chains whose displacement is exactly 0
    saturated_chains = share of entries at the least or the greatest value, minus that share of the data
    chain_spread = sd over chains / sd over data (each the root mean square over entries)
    largest_chain = max |x| over all entries of all chains
    sample_grain = root mean square difference of neighbouring entries, of chains / of data; of images and
    volumes, leaves ``(n, height, width[, ..., channels])``

    Args:
      x_data: examples, leaves ``(n, ...)``, or None where a step has none.
      x_model: the final positions of the chains, leaves ``(m, ...)``, of the same structure.
      displacement: how far each chain moved, ``(m,)``, or None if it was not measured.

    Returns:
      The metrics that `diagnose` checks; metrics whose argument is None are left out, and the grain of
      vectors, whose entries have no neighbours.

    Raises:
      TypeError: if an argument holds no arrays, or arrays of other than real numbers.
      ValueError: if ``x_data`` or ``x_model`` is no batch, their examples differ in shape, or
        ``displacement`` is not one number for each chain.

    Example:
      >>> found = measure_chains(jnp.array([[0.0], [1.0]]), jnp.array([[0.5], [0.5]]), jnp.zeros(2))
      >>> {name: float(value) for name, value in found.items()}
      {'frozen_chains': 1.0, 'saturated_chains': 0.0, 'chain_spread': 0.0, 'largest_chain': 0.5}
    """
    _check_chains(x_data, x_model, displacement)
    found: Metrics = {}
    if displacement is not None:
        found["frozen_chains"] = jnp.mean(displacement == 0, dtype=jnp.float32)
    if x_data is not None:
        excess = _share_at_ends(x_model) - _share_at_ends(x_data)
        found["saturated_chains"] = jnp.maximum(excess, 0.0)
        found["chain_spread"] = _spread(x_model) / jnp.maximum(_spread(x_data), 1e-30)
        found["largest_chain"] = reach_of(x_model)
        if _has_neighbours(x_data):
            found["sample_grain"] = _grain(x_model) / jnp.maximum(_grain(x_data), 1e-30)
    return found


def _check_chains(x_data: Any, x_model: Any, displacement: Any) -> None:
    num_chains = checks.batch_length("x_model", x_model)
    for name, tree in (("x_data", x_data), ("x_model", x_model)):
        for leaf in jax.tree.leaves(tree):
            checks.arrays(name, leaf)
            checks.array(name, leaf)
    if x_data is not None:
        check_same_example_shape("x_data", x_data, "x_model", x_model)
    if displacement is not None:
        checks.array("displacement", displacement, (num_chains,), f"({num_chains},), one for each chain,")


def reach_of(xs: Any) -> Array:
    """Returns the greatest |x| of all entries; NaN if one of them is."""
    largest = [jnp.max(jnp.abs(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(xs)]
    return jnp.max(jnp.stack(largest))


def _has_neighbours(xs: Position) -> bool:
    return any(leaf.ndim > 2 for leaf in jax.tree.leaves(xs))


def _grain(xs: Position) -> Array:
    """The root mean square difference of neighbours along the axes between examples and channels."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(xs) if leaf.ndim > 2]
    steps = [jnp.diff(leaf, axis=axis) for leaf in leaves for axis in range(1, max(leaf.ndim - 1, 3))]
    squares = sum((jnp.sum(jnp.square(step)) for step in steps), jnp.zeros(()))
    return jnp.sqrt(squares / max(sum(step.size for step in steps), 1))


def _share_at_ends(xs: Position) -> Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(xs)]
    at_ends = [jnp.sum((leaf == leaf.min()) | (leaf == leaf.max())) for leaf in leaves]
    return sum(at_ends, jnp.zeros((), jnp.int32)) / sum(leaf.size for leaf in leaves)


def _spread(xs: Position) -> Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(xs)]
    squares = [jnp.sum(jnp.var(leaf, axis=0)) for leaf in leaves]
    return jnp.sqrt(sum(squares, jnp.zeros(())) / sum(leaf[0].size for leaf in leaves))
