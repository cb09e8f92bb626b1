"""Noise levels of objectives whose energies are told the level: how they are drawn, and what is refused."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from jaxebm import checks
from jaxebm.energies.levels import uses_level
from jaxebm.trees import widened
from jaxebm.types import BATCH_AXIS, Array, Position

__all__ = ["LevelLaw", "check_level_used", "floating_levels", "spread_evenly"]


class LevelLaw(NamedTuple):
    """How noise levels are drawn: log sigma is uniform, or normal where there is a median, within two ends.

    Attributes:
      lowest: sigma_min > 0.
      highest: sigma_max > sigma_min.
      median: of the normal law before it is cut off; None for the uniform one.
      spread: standard deviation of log sigma of the normal law.
    """

    lowest: Any
    highest: Any
    median: Any = None
    spread: Any = 1.2

    def check(self) -> "LevelLaw":
        """Returns the same with floating-point ends; raises unless 0 < lowest < highest and the like."""
        lowest, highest = floating_levels(self.lowest, self.highest)
        if self.median is not None:
            checks.positive_number("level_median", self.median)
        checks.positive_number("level_spread", self.spread)
        return self._replace(lowest=lowest, highest=highest)

    def quantile(self, share: Array) -> Array:
        """Returns the level below which a share in [0, 1) of all levels lies, in the dtype of ``share``."""
        least, most = jnp.log(jnp.asarray([self.lowest, self.highest], share.dtype))
        if self.median is None:
            return jnp.exp(least + share * (most - least))
        middle = jnp.log(jnp.asarray(self.median, share.dtype))
        below, above = ndtr((least - middle) / self.spread), ndtr((most - middle) / self.spread)
        found = middle + self.spread * ndtri(below + share * (above - below))
        return jnp.exp(jnp.clip(found, least, most))  # far from the median, quantiles are rounded


def spread_evenly(start: Array) -> Array:
    """Returns the share of one example of a batch, in [0, 1): u = start + i / n modulo 1 for example i of n.

    The shares of a batch cover the interval evenly, from one random start.
    """
    share = jax.lax.axis_index(BATCH_AXIS) / jax.lax.axis_size(BATCH_AXIS)
    return (start + share.astype(start.dtype)) % 1.0


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
