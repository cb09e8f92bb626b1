"""Measurements during the training of a JEM: its classifier and its chains, on validation images."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxebm.data import Dataset
from jaxebm.energies import marginal_energy
from jaxebm.evaluation import make_telemetry
from jaxebm.objectives import NegativeSampler, chains_of
from jaxebm.recipes.config import Config
from jaxebm.recipes.sampler import make_kernel
from jaxebm.samplers import ReplayBuffer
from jaxebm.training import Observe, TrainState
from jaxebm.types import Array, JointEnergyFn, LogitsFn, Metrics, Params

__all__ = ["BEST_METRIC", "TELEMETRY", "make_observe"]

VALIDATION_BATCH = 500
"""Batch size of the classification of validation images."""
BEST_METRIC = "validation_nll"
"""The metric that selects the best checkpoint."""
TELEMETRY = "telemetry_"
"""Prefix of the names of these metrics, which separates them from those of the training step."""


def make_observe(
    config: Config,
    dataset: Dataset,
    logits: LogitsFn,
    chain_energy: JointEnergyFn,
    negatives: NegativeSampler | None,
) -> Observe | None:
    """Returns the observation of a run: the averaged weights as a classifier, and the chains
    (`make_telemetry`).

    The samples are those of the replay buffer if there is one, else the next negatives of the sampler.

    Args:
      config: the configuration of the run.
      dataset: the data set, whose validation split is used.
      logits: f(params, x) of one image.
      chain_energy: E(params, x, label), on which the training chains run.
      negatives: the sampler of training, or None.

    Returns:
      ``state -> metrics``, or None if there is nothing to observe.
    """
    if not config.run.telemetry_every and config.run.select == "last":
        return None
    images = jnp.asarray(dataset.rescale(dataset.validation.image))
    labels = jnp.asarray(dataset.validation.label, jnp.int32)

    @jax.jit
    def classify(params: Params) -> Metrics:
        if config.task == "unconditional":
            return {}
        outputs = jax.lax.map(partial(logits, params), images, batch_size=VALIDATION_BATCH)
        hits = jnp.argmax(outputs, axis=1) == labels
        nll = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        return {"validation_accuracy": jnp.mean(hits), BEST_METRIC: jnp.mean(nll)}

    if negatives is None or not config.run.telemetry_every:
        return lambda state: classify(state.ema_params)
    telemetry = make_telemetry(
        marginal_energy(logits), make_kernel(config), images, num_steps=config.sampler.num_steps
    )
    start = images[: config.data.batch_size], labels[: config.data.batch_size]
    sampler = negatives

    @jax.jit
    def draw(rng_key: Array, state: TrainState) -> Array:
        return sampler.draw(rng_key, chain_energy, state.params, *start, state.sampler_state)[0].positions

    def observe(state: TrainState) -> Metrics:
        # Training uses the keys fold_in(rng_key, step); no step reaches the number used here.
        other_key = jax.random.fold_in(state.rng_key, jnp.iinfo(jnp.uint32).max)
        keys = jax.random.split(jax.random.fold_in(other_key, state.step))
        chains = chains_of(state.sampler_state)
        if isinstance(chains, ReplayBuffer):
            found = telemetry(keys[0], state.params, chains.positions, chains.ages)
        else:
            found = telemetry(keys[0], state.params, draw(keys[1], state))
        return {TELEMETRY + name: value for name, value in found.items()} | classify(state.ema_params)

    return observe
