"""Recovery of a run from divergence: remedies change its sampler and objective, in a new learner."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from jaxebm.recipes.config import Config
from jaxebm.training import Learner, Monitor, Recovery, Remedy

__all__ = ["SamplerNumbers", "recovery_for", "refine"]


class SamplerNumbers(NamedTuple):
    """The numbers that a remedy changes.

    Attributes:
      num_steps: sampler steps per update.
      step_size: factor of the gradient.
      noise: standard deviation of the noise.
      energy_l2: weight of E(x)^2.
    """

    num_steps: int
    step_size: float
    noise: float
    energy_l2: float


def refine(numbers: SamplerNumbers, remedy: Remedy) -> SamplerNumbers:
    """Returns the numbers with a remedy in force: more and smaller steps at the same temperature, a larger
    energy-L2 weight.

    The temperature of a step is noise^2 / (2 step_size).

    Example:
      >>> refine(SamplerNumbers(20, 0.2, 0.1, 0.0), Remedy("more, smaller steps", sampler_steps_factor=4))
      SamplerNumbers(num_steps=80, step_size=0.05, noise=0.05, energy_l2=0.0)
    """
    factor = remedy.sampler_steps_factor
    return SamplerNumbers(
        factor * numbers.num_steps,
        numbers.step_size / factor,
        numbers.noise / math.sqrt(factor),
        max(remedy.energy_l2, numbers.energy_l2),
    )


def recovery_for(
    config: Config, make_learner: Callable[[Config], Learner], keep_on: Literal["device", "host"] = "device"
) -> Recovery | None:
    """Returns the recovery of a run, or None with ``run.recovery=False``.

    Args:
      config: the configuration of the run.
      make_learner: makes the learner of a configuration.
      keep_on: where snapshots are kept, "device" or "host".
    """
    if not config.run.recovery:
        return None

    def remake(remedy: Remedy) -> Learner:
        sampler, objective, levels = config.sampler, config.objective, config.levels
        if config.recovers:  # the chains of its objective have a step of their own
            levels = replace(levels, step_factor=levels.step_factor / remedy.sampler_steps_factor)
        before = SamplerNumbers(sampler.num_steps, sampler.step_size, sampler.noise, objective.energy_l2)
        after = refine(before, remedy)
        remedied = replace(
            config,
            sampler=replace(sampler, num_steps=after.num_steps, step_size=after.step_size, noise=after.noise),
            levels=levels,
            objective=replace(objective, energy_l2=after.energy_l2),
        )
        return make_learner(remedied)

    # Without chains a batch of rare noise levels may have a large gradient: that alone is no divergence.
    monitor = Monitor(bands=config.uses_chains or config.recovers or not config.generative)
    return Recovery(remake=remake, monitor=monitor, keep_on=keep_on)
