"""Data with Gaussian noise of a level added, for the objectives whose energies are told the level."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.levels import uses_level
from jaxebm.trees import normal_like, widened
from jaxebm.types import Array, Position

__all__ = ["check_level_used", "dimension", "floating_levels", "noisy"]


def noisy(rng_key: Array, x: Position, level: Any) -> tuple[Position, Position]:
    """Returns (x + level z in the dtypes of x, z), z standard normal."""
    z = normal_like(rng_key, x)
    return jax.tree.map(lambda x, z: (widened(x) + level * z).astype(x.dtype), x, z), z


def dimension(x: Position) -> int:
    """Returns the number of entries of one example."""
    return sum(int(jnp.size(leaf)) for leaf in jax.tree.leaves(x))


def check_level_used(energy_at: Any, params: Any, x: Position, objective: str) -> None:
    """Raises ``ValueError`` if an energy of (params, x, level) ignores the level: nothing could be learnt."""
    if not uses_level(energy_at, params, x):
        raise ValueError(
            f"energy_at ignores the level that it is told: {objective} learns how the energy changes with "
            "the level, so the network must read it, such as LevelMLP of jaxebm.energies."
        )


def floating_levels(lowest: Any, highest: Any) -> tuple[Any, Any]:
    """Returns both as floating-point numbers; raises unless 0 < lowest < highest, each one number."""
    checks.positive_number("lowest", lowest)
    checks.positive_number("highest", highest)
    if not (checks.is_traced(lowest) or checks.is_traced(highest)) and not lowest < highest:
        raise ValueError(f"highest={highest!r}: highest must be above lowest={lowest!r}.")
    return _floating(lowest), _floating(highest)


def _floating(level: Any) -> Any:
    return widened(level) if checks.is_traced(level) else float(level)
