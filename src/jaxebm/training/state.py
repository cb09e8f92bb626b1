"""Everything that training needs to go on from where it was, in one pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax

from jaxebm.types import Array, Metrics, Params

__all__ = ["Health", "Learner", "TrainState", "TrainStep", "init_health"]

WATCHED = ("energy_gap", "joint_energy_gap", "gradient_norm", "update_norm")
"""Metrics that have a running band; the norms are followed by their logarithms."""


class Health(NamedTuple):
    """What `jaxebm.training.health.Monitor` remembers of a run, and what recoveries have changed in it.

    Attributes:
      mean: running means of the `WATCHED` metrics, ``(4,)``.
      variance: running variances around them, ``(4,)``.
      seen: values that each band has seen, ``(4,)``.
      streaks: updates in a row that chains have been frozen, saturated, alike, ``(3,)``.
      optimizer_norm: norm of the optimiser's state after the last update, a scalar.
      recoveries: how often the run has been rolled back, a scalar.
      last_change: the update of the last fault, or at which a remedy was lifted, a scalar; -1 before any.
      in_a_row: faults without a healthy stretch between them, a scalar.
      remedies: how many remedies are in force, a scalar.
      learning_rate_factor: by which every update is multiplied, a scalar.
    """

    mean: Array
    variance: Array
    seen: Array
    streaks: Array
    optimizer_norm: Array
    recoveries: Array
    last_change: Array
    in_a_row: Array
    remedies: Array
    learning_rate_factor: Array


def init_health() -> Health:
    """Returns the health of a run that has not begun.

    Example:
      >>> int(init_health().recoveries), float(init_health().learning_rate_factor)
      (0, 1.0)
    """
    # Every leaf an array of its own: one that two of them shared could not be donated.
    return Health(
        mean=jnp.zeros(len(WATCHED)),
        variance=jnp.zeros(len(WATCHED)),
        seen=jnp.zeros(len(WATCHED), jnp.int32),
        streaks=jnp.zeros(3, jnp.int32),
        optimizer_norm=jnp.zeros(()),
        recoveries=jnp.zeros((), jnp.int32),
        last_change=jnp.full((), -1, jnp.int32),
        in_a_row=jnp.zeros((), jnp.int32),
        remedies=jnp.zeros((), jnp.int32),
        learning_rate_factor=jnp.ones(()),
    )


class TrainState(NamedTuple):
    """The whole of a training run; a checkpoint of it resumes bit for bit.

    Attributes:
      step: updates done, a scalar.
      params: what is learnt.
      optimizer_state: Optax's state.
      ema_params: the exponential moving average of ``params``, which evaluations use.
      sampler_state: the negative sampler's state (a replay buffer and where chains start, or nothing).
      streams: places in the data, any pytree of `StreamState`.
      rng_key: the run's key; step n uses ``fold_in(rng_key, n)``, so that no step depends on how steps are
        grouped.
      health: what detection and recovery remember.
    """

    step: Array
    params: Params
    optimizer_state: optax.OptState
    ema_params: Params
    sampler_state: Any
    streams: Any
    rng_key: Array
    health: Health


TrainStep: TypeAlias = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
"""``(state, data) -> (state, metrics)``, pure; `jaxebm.training.fit` compiles many into one program."""


def _as_it_is(data: Any) -> Any:
    return data


class Learner(NamedTuple):
    """How parameters learn: a pair of functions in the shape of an Optax transformation.

    `jaxebm.training.learner` makes one of an objective; `jaxebm.training.fit` runs any.

    Attributes:
      init: ``(rng_key, params, data) -> state``, the `TrainState` before the first update.
      step: ``(state, data) -> (state, metrics)``, one update; pure, metrics are scalars.
      place: ``data -> data``, puts training data where the step wants them (devices, a mesh).
    """

    init: Callable[[Array, Params, Any], TrainState]
    step: TrainStep
    place: Callable[[Any], Any] = _as_it_is
