"""A network that is told noise levels, as a recipe uses it: a classifier at its lowest level, and a path."""

from dataclasses import dataclass
from typing import Any

from jaxebm.energies import at_level, preconditioned_logits
from jaxebm.recipes.config import LevelsConfig
from jaxebm.report.subject import LevelPath
from jaxebm.types import Array, LevelLogitsFn, Params

__all__ = ["LevelNetwork"]


@dataclass(frozen=True)
class LevelNetwork:
    """Logits of one image and a noise level; ``init`` and ``apply`` are those of the lowest level.

    Attributes:
      module: F, a Flax module of an image and a level, such as `jaxebm.energies.LevelConvNet`.
      levels: its levels and the mean and standard deviation of the images.
      state_clamp: the range to which samples are clipped, or None.
      recovers: whether samples are drawn by the conditional chains of recovery likelihood.
    """

    module: Any
    levels: LevelsConfig
    state_clamp: tuple[float, float] | None = None
    recovers: bool = False

    def init(self, rng_key: Array, x: Array) -> Params:
        """Returns initial parameters for images of the shape of ``x``."""
        return self.module.init(rng_key, x, 1.0)  # the level's shape alone matters

    @property
    def logits_at(self) -> LevelLogitsFn:
        """f(params, x, level) of one image in [-1, 1]."""
        levels = self.levels
        return preconditioned_logits(
            self.module.apply, mean=levels.data_mean, scale=levels.data_scale, unit_slope=True
        )

    @property
    def apply(self) -> Any:
        """f(params, x) at the lowest level."""
        return at_level(self.logits_at, self.levels.lowest)

    @property
    def path(self) -> LevelPath:
        """How fresh chains go from noise to images."""
        levels = self.levels
        path = LevelPath(self.logits_at, levels.lowest, levels.highest, levels.guidance, self.state_clamp)
        if not self.recovers:
            return path._replace(normalised=True)
        return path._replace(num_levels=levels.count, step_factor=levels.step_factor, mean=levels.data_mean)
