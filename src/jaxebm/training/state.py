"""Everything that training needs to go on from where it was, in one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxebm.objectives.negatives import NegativeSampler
from jaxebm.types import Array, Params

__all__ = ["Health", "TrainState", "init_health", "init_state"]

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
      rung: how many remedies of the ladder are in force, a scalar.
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
    rung: Array
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
        rung=jnp.zeros((), jnp.int32),
        learning_rate_factor=jnp.ones(()),
    )


class TrainState(NamedTuple):
    """The whole of a training run; a checkpoint of it resumes bit for bit.

    Attributes:
      step: updates done, a scalar.
      params: what is learnt.
      optimizer_state: Optax's state.
      ema_params: the exponential moving average of ``params``, which evaluations use.
      memory: the negative sampler's memory (a replay buffer, or nothing).
      streams: places in the data, any pytree of `StreamState`.
      rng_key: the run's key; step n uses ``fold_in(rng_key, n)``, so that no step depends on how steps are
        grouped.
      health: what detection and recovery remember.
    """

    step: Array
    params: Params
    optimizer_state: optax.OptState
    ema_params: Params
    memory: Any
    streams: Any
    rng_key: Array
    health: Health


def init_state(
    rng_key: Array,
    params: Params,
    *,
    optimizer: optax.GradientTransformation,
    negatives: NegativeSampler,
    streams: Any = (),
) -> TrainState:
    """Returns the state before the first update.

    Args:
      rng_key: the run's key.
      params: initial parameters.
      optimizer: the Optax transformation that will update them.
      negatives: the sampler whose memory is to be filled.
      streams: places in the data, from `jaxebm.data.stream.init_stream`.

    Returns:
      A `TrainState` at step 0, all copies: the compiled step donates its state, and only that.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from functools import partial
      >>> from jaxebm.objectives.negatives import contrastive_divergence
      >>> from jaxebm.samplers.langevin import sgld
      >>> negatives = contrastive_divergence(partial(sgld, step_size=0.1), num_steps=1)
      >>> state = init_state(jax.random.key(0), jnp.ones(2), optimizer=optax.adam(1e-3), negatives=negatives)
      >>> int(state.step)
      0
    """
    memory_key, run_key = jax.random.split(rng_key)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=optimizer.init(params),
        ema_params=params,
        memory=negatives.init(memory_key),
        streams=streams,
        rng_key=run_key,
        health=init_health(),
    )
    # A buffer that two leaves share (some optimisers keep the parameters themselves) could not be donated.
    return jax.tree.map(jnp.array, state)
