"""How an experiment recovers from divergence: remedies change its configuration; the step is made anew."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from jaxebm.training import Recovery, Remedy, TrainStep

__all__ = ["recovery_for"]


def recovery_for(
    config: Any, step_of: Callable[[Any], TrainStep], keep_on: Literal["device", "host"] = "device"
) -> Recovery | None:
    """Returns the recovery of a run, or None with ``--no-recovery``.

    Args:
      config: the flags, a dataclass with ``recovery``, ``sampler_steps``, ``sampler_step_size`` and
        ``energy_l2`` and, where the sampler's noise is a flag, ``sampler_noise``.
      step_of: makes the training step of a configuration.
      keep_on: where snapshots are kept.
    """
    if not config.recovery:
        return None

    def remake(remedy: Remedy) -> TrainStep:
        factor = remedy.sampler_steps_factor
        changed: dict[str, Any] = {
            "sampler_steps": factor * config.sampler_steps,
            "sampler_step_size": config.sampler_step_size / factor,
            "energy_l2": max(remedy.energy_l2, config.energy_l2),
        }
        if hasattr(config, "sampler_noise"):  # of temperature noise^2 / (2 step size), which is to stay
            changed["sampler_noise"] = config.sampler_noise / math.sqrt(factor)
        return step_of(replace(config, **changed))

    return Recovery(remake=remake, keep_on=keep_on)
