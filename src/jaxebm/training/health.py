"""Divergence is detected and reported, never papered over."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.training.state import TrainState

__all__ = ["DivergenceError", "check_metrics", "check_state"]

ADVICE = (
    "Training has diverged. Lower --learning-rate or --sampler-step-size, add an energy-L2 term "
    "(--energy-l2 0.1), clip gradients, use a smooth activation, or try another --seed; "
    "the last good checkpoint is kept."
)


class DivergenceError(RuntimeError):
    """Raised when a loss, a metric or a parameter stops being finite."""


def check_metrics(step: int, metrics: Mapping[str, float]) -> None:
    """Raises `DivergenceError` naming each metric that is not finite.

    Args:
      step: the update after which they were measured.
      metrics: numbers by name.

    Raises:
      DivergenceError: if any number is NaN or infinite.

    Example:
      >>> check_metrics(3, {"loss": 1.0})
    """
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        listed = ", ".join(f"{name}={value}" for name, value in sorted(broken.items()))
        raise DivergenceError(f"step {step}: {listed}. {ADVICE}")


def check_state(state: TrainState) -> None:
    """Raises `DivergenceError` naming the first parameters or buffer entries that are not finite.

    Args:
      state: a training state, before it is written to a checkpoint.

    Raises:
      DivergenceError: if a parameter, an average or a chain holds NaN or infinity.
    """
    parts = {"params": state.params, "ema_params": state.ema_params, "memory": state.memory}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        # jnp.issubdtype, because to NumPy bfloat16 is no inexact number, and a typed key no array at all.
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            raise DivergenceError(
                f"step {int(state.step)}: {jax.tree_util.keystr(path)} is not finite. {ADVICE}"
            )
