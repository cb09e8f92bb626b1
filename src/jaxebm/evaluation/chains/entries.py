"""The entries of a history one by one, each at a scale where its squares neither overflow nor vanish."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.evaluation.samples.scale import check_precision, power_of_two
from jaxebm.types import Array

__all__ = ["as_history", "compiled_diagnostic", "mean_of_draws"]


def as_history(history: Any, least_chains: int = 1) -> Any:
    """Returns a history with arrays as leaves, ``(num_chains, num_steps, ...)`` alike, or raises."""
    leaves = jax.tree.leaves(history)
    if leaves and all(
        isinstance(leaf, int | float) for leaf in leaves
    ):  # nested lists of numbers are one array
        checks.array("history", history)
        history = np.asarray(history)
    checks.floating("history", history)
    lengths = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(history)[0]:
        where, shape = jax.tree_util.keystr(path), jnp.shape(leaf)
        if len(shape) < 2 or shape[0] < least_chains or shape[1] < 4:
            raise ValueError(
                f"history{where} has shape {shape}: (num_chains, num_steps, ...) is needed, with at least "
                f"{least_chains} chain{'s' if least_chains > 1 else ''} and 4 steps."
            )
        check_precision(f"history{where}", leaf)
        lengths.add(shape[:2])
    if len(lengths) != 1:
        found = f"leaves that begin with {sorted(lengths)}" if lengths else "no arrays"
        raise ValueError(
            f"history has {found}: the same (num_chains, num_steps, ...) is needed in all of its leaves."
        )
    return jax.tree.map(jnp.asarray, history)


def _each_entry(diagnostic: Callable[[Array], Array], history: Array, *, has_units: bool = False) -> Array:
    """Maps ``(num_chains, num_steps) -> ()`` over a history's entries; NaN for one that is not finite.

    Each entry is divided by a power of two near its largest draw, which changes no digit: the diagnostics
    square the draws. Those that have the units of the entry are multiplied by it again.
    """
    wide = history.astype(jnp.promote_types(history.dtype, jnp.float32))
    columns = wide.reshape(*wide.shape[:2], -1)

    def guarded(draws: Array) -> Array:
        # BlackJAX lets an infinity through, and its truncation of a NaN sum then gives a large sample size.
        finite = jnp.all(jnp.isfinite(draws))
        unit = power_of_two(draws)
        scaled = draws / unit
        # Only differences count: centred, a float32 energy of 1e5 keeps its digits in every product.
        value = diagnostic(scaled - scaled[0, 0])
        return jnp.where(finite, value * unit if has_units else value, jnp.nan)

    return jax.vmap(guarded, in_axes=2)(columns).reshape(history.shape[2:])


def compiled_diagnostic(
    diagnostic: Callable[[Array], Array], *, has_units: bool = False
) -> Callable[[Any], Any]:
    """Returns the compiled function that maps a diagnostic over the entries of a history of any structure."""
    each = jax.jit(functools.partial(_each_entry, diagnostic, has_units=has_units))
    return lambda history: jax.tree.map(each, history)


def mean_of_draws(history: Any) -> Any:
    """Returns the mean over all chains and steps, of each entry, whose sum may be out of range."""

    def mean(draws: Array) -> Array:
        if draws.dtype.itemsize < 4:  # summed in float32
            return jnp.mean(draws, axis=(0, 1))
        unit = power_of_two(draws, axis=(0, 1))
        return jnp.mean(draws / unit, axis=(0, 1)) * unit.reshape(draws.shape[2:])

    return jax.tree.map(mean, history)
