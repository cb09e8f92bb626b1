"""The training state: everything that a run needs to continue, in one pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax

from jaxebm.types import Array, Metrics, Params

__all__ = ["Health", "Learner", "TrainState", "TrainStep", "init_health"]

WATCHED = ("energy_gap", "joint_energy_gap", "gradient_norm", "update_norm")
"""Metrics that have a running band; the norms are followed by their logarithms."""


class Health(NamedTuple):
    """Statistics that `jaxebm.training.health.Monitor` keeps of a run, and the effects of recoveries.

    Attributes:
      mean: running means of the `WATCHED` metrics, ``(4,)``.
      variance: running variances around them, ``(4,)``.
      seen: number of values in each band, ``(4,)``.
      streaks: updates in a row in which the chains were frozen, saturated, identical, ``(3,)``.
      optimizer_norm: norm of the optimiser's state after the last update, a scalar.
      recoveries: number of rollbacks of the run, a scalar.
      last_change: the update of the last fault, or at which a remedy was lifted, a scalar; -1 before any.
      in_a_row: consecutive faults, each within the probation of the one before, a scalar.
      remedies: number of remedies in force, a scalar.
      learning_rate_factor: the factor of every update, a scalar.
      reach: the greatest |x| among the data so far, at least 1, a scalar.
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
    reach: Array


def init_health() -> Health:
    """Returns the health of a run that has not begun.

    Example:
      >>> int(init_health().recoveries), float(init_health().learning_rate_factor)
      (0, 1.0)
    """
    # Every leaf is a separate array: a shared one could not be donated.
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
        reach=jnp.ones(()),
    )


class TrainState(NamedTuple):
    """The whole state of a training run; a run resumed from its checkpoint continues bit for bit.

    Attributes:
      step: updates done, a scalar.
      params: the parameters.
      optimizer_state: the state of the Optax transformation.
      ema_params: the exponential moving average of ``params``, which evaluations use.
      sampler_state: the negative sampler's state (a replay buffer and the initial distribution, or nothing).
      streams: positions in the data, any pytree of `StreamState`.
      rng_key: the run's key; step n uses ``fold_in(rng_key, n)``, so that no step depends on how steps are
        grouped.
      health: the state of fault detection and recovery.
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
    """A training algorithm: a pair of functions in the style of an Optax transformation.

    `jaxebm.training.learner` makes one from an objective; `jaxebm.training.fit` runs any learner.

    Attributes:
      init: ``(rng_key, params, data) -> state``, the `TrainState` before the first update.
      step: ``(state, data) -> (state, metrics)``, one update; pure, metrics are scalars.
      place: ``data -> data``, puts training data where the step needs them (devices, a mesh).
    """

    init: Callable[[Array, Params, Any], TrainState]
    step: TrainStep
    place: Callable[[Any], Any] = _as_it_is
