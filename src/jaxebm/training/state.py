"""Everything that training needs to go on from where it was, in one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxebm.objectives.negatives import NegativeSampler
from jaxebm.types import Array, Params

__all__ = ["TrainState", "init_state"]


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
    """

    step: Array
    params: Params
    optimizer_state: optax.OptState
    ema_params: Params
    memory: Any
    streams: Any
    rng_key: Array


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
    )
    # A buffer that two leaves share (some optimisers keep the parameters themselves) could not be donated.
    return jax.tree.map(jnp.array, state)
