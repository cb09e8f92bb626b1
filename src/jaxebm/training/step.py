"""One compiled, donated update: a batch, negatives, the gradient of the loss, the update, the metrics."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxebm import checks
from jaxebm.objectives.negatives import Negatives, NegativeSampler
from jaxebm.training.health import measure_chains, sample_norm
from jaxebm.training.placement import Placement
from jaxebm.training.sharpness import Sharpness, ascend
from jaxebm.training.state import TrainState
from jaxebm.types import Array, JointEnergyFn, Metrics, Params, Position

__all__ = ["Batch", "NextBatch", "TrainStep", "compile_steps", "make_train_step"]

Batch = Any
"""Any pytree; `make_train_step` only asks ``start_of(batch)`` for positions and labels."""
NextBatch = Callable[[Array, Any, Any], tuple[Batch, Any]]
"""``(rng_key, data, streams) -> (batch, streams)``: prepared, augmented, scaled examples."""
Loss = Callable[[Params, Array, Batch, Negatives], tuple[Array, Metrics]]
"""``(params, rng_key, batch, negatives) -> (loss, metrics)``."""
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
"""``(state, data) -> (state, metrics)``, pure; `compile_steps` makes it fast."""


def _no_start(batch: Batch) -> tuple[None, None]:
    del batch
    return None, None


def make_train_step(
    *,
    energy: JointEnergyFn,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    negatives: NegativeSampler,
    next_batch: NextBatch,
    start_of: Callable[[Batch], tuple[Position, Array]] | Callable[[Batch], tuple[None, None]] = _no_start,
    refresh: Callable[[Params, Batch], Params] | None = None,
    ema_decay: float = 0.999,
    placement: Placement | None = None,
    sharpness: Sharpness | None = None,
) -> TrainStep:
    """Returns the pure function of one update.

    theta <- theta + f optimizer(d loss(theta; batch, negatives) / d theta), negatives ~ chain on
    E(x, y; theta), f = 1 unless a recovery has lowered ``health.learning_rate_factor``
    ema <- d ema + (1 - d) theta,  d = min(ema_decay, (1 + step) / (10 + step)), so that early steps do not
    linger; step counts the updates done before this one.

    Args:
      energy: E(params, x, label), on which the chains run; it may ignore the label.
      loss: ``(params, rng_key, batch, negatives) -> (loss, metrics)``.
      optimizer: an Optax transformation.
      negatives: where the model's samples come from.
      next_batch: ``(rng_key, data, streams) -> (batch, streams)``.
      start_of: ``(batch) -> (positions, labels)`` for chains that start at the data (CD-k).
      refresh: ``(params, batch) -> params`` after the update, where a network keeps statistics in its
        variables (`jaxebm.energies.networks.refresh_statistics`).
      ema_decay: in [0, 1); 0 makes the average equal to the parameters.
      placement: where batches, chains and parameters lie on several devices; None for one device.
      sharpness: takes the gradient where `jaxebm.training.ascend` leads from theta, with the same batch,
        negatives and key, at the cost of a second gradient of the loss; None takes it at theta.

    Returns:
      ``step(state, data) -> (state, metrics)``; metrics are the loss's, at theta, and gain ``loss``,
      ``gradient_norm``, ``update_norm``, ``optimizer_norm`` (of some entries of its state before the update)
      and those of `jaxebm.training.health.measure_chains`. With ``sharpness`` they also gain ``sharpness``,
      the loss at the ascended point less that at theta, and ``gradient_norm`` is of the gradient there.

    Raises:
      ValueError: if ``ema_decay`` lies outside [0, 1), or the radius of ``sharpness`` is not positive.

    Example:
      >>> from functools import partial
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxebm.objectives import contrastive_divergence, contrastive_loss
      >>> from jaxebm.samplers import sgld
      >>> from jaxebm.training import init_state
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> parts = dict(optimizer=optax.sgd(0.1),
      ...              negatives=contrastive_divergence(partial(sgld, step_size=0.5), num_steps=4))
      >>> step = make_train_step(
      ...     energy=lambda params, x, label: energy(params, x),
      ...     loss=lambda params, key, batch, negatives: contrastive_loss(
      ...         energy, params, batch, negatives.positions),
      ...     next_batch=lambda key, data, streams: (data, streams),
      ...     start_of=lambda batch: (batch, jnp.zeros(len(batch), jnp.int32)), **parts)
      >>> state = init_state(jax.random.key(0), jnp.zeros(1), **parts)
      >>> state, metrics = compile_steps(step, 200)(state, jnp.full((64, 1), 3.0))
      >>> abs(float(state.params[0]) - 3.0) < 0.3
      True
    """
    checks.in_range("ema_decay", ema_decay, 0.0, 1.0)
    if ema_decay == 1:
        raise ValueError("ema_decay=1: the average would never move; use a number in [0, 1), such as 0.999.")
    if sharpness is not None:
        checks.positive("sharpness.rho", sharpness.rho)
    value_and_gradient = jax.value_and_grad(loss, has_aux=True)

    def train_step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        key_batch, key_negatives, key_loss = jax.random.split(
            jax.random.fold_in(state.rng_key, state.step), 3
        )
        batch, streams = next_batch(key_batch, data, state.streams)
        whole_params = state.params
        if placement is not None:
            batch, whole_params = placement.shard_batch(batch), placement.gather(state.params)
        x_start, labels_start = start_of(batch)
        samples, memory = negatives.draw(
            key_negatives, energy, whole_params, x_start, labels_start, state.memory
        )

        (value, metrics), gradient = value_and_gradient(whole_params, key_loss, batch, samples)
        if sharpness is not None:
            ascended = ascend(whole_params, gradient, sharpness.rho, adaptive=sharpness.adaptive)
            (ascended_value, _), gradient = value_and_gradient(ascended, key_loss, batch, samples)
            metrics = metrics | {"sharpness": ascended_value - value}
        if placement is not None:
            gradient = placement.scatter(gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        updates = optax.tree.scale(state.health.learning_rate_factor, updates)
        params = optax.apply_updates(state.params, updates)
        if refresh is not None:
            params = refresh(params, batch)

        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        # The float32 decay would widen the average of bfloat16 parameters.
        ema_params = optax.tree.cast_like(ema_params, params)
        metrics = metrics | {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "optimizer_norm": sample_norm(state.optimizer_state),
        }
        if samples.positions is not None:
            metrics |= measure_chains(x_start, samples.positions, samples.displacement)
        new_state = TrainState(
            state.step + 1, params, optimizer_state, ema_params, memory, streams, state.rng_key, state.health
        )
        return (new_state if placement is None else placement.constrain(new_state)), metrics

    return train_step


def compile_steps(train_step: TrainStep, num_steps: int) -> TrainStep:
    """Compiles ``num_steps`` updates into one dispatch, an outer scan whose state is donated.

    Args:
      train_step: from `make_train_step`.
      num_steps: updates a call.

    Returns:
      ``steps(state, data) -> (state, metrics)``; metrics are means over the updates. The state passed in is
      consumed: use the one that is returned.

    Raises:
      ValueError: if ``num_steps`` is not an integer of at least 1.

    Example:
      See `make_train_step`.
    """
    checks.positive_integer("num_steps", num_steps)

    @partial(jax.jit, donate_argnums=0)
    def steps(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        state, metrics = jax.lax.scan(lambda carry, _: train_step(carry, data), state, length=num_steps)
        return state, jax.tree.map(partial(jnp.mean, axis=0), metrics)

    return steps
