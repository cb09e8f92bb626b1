"""The parts of a JEM run, made from its configuration: data, network, sampler, optimiser, step, training."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from devices import choose_generator, place
from jaxebm import checks
from jaxebm.data import Dataset, init_stream
from jaxebm.energies import MLP, ConvNet, WideResNet, marginal_energy, trainable
from jaxebm.evaluation import make_telemetry
from jaxebm.objectives import NegativeSampler
from jaxebm.samplers import ReplayBuffer
from jaxebm.training import (
    FitResult,
    Observe,
    Recovery,
    RunFolder,
    TrainState,
    TrainStep,
    fingerprint,
    fit,
    init_state,
)
from jaxebm.types import Array, LogitsFn, Metrics, Params
from jem_config import Config
from jem_objective import Data, Streams, make_step
from jem_sampler import make_chain_energy, make_initial, make_kernel, make_negatives
from recoveries import recovery_for

__all__ = ["BEST_METRIC", "Training", "make_initial", "make_kernel", "num_outputs", "prepare", "train"]

VALIDATION_BATCH = 500
"""Validation images that are classified at once while training."""
BEST_METRIC = "validation_nll"
"""By what the best checkpoint is told."""
TELEMETRY = "telemetry_"
"""What the names of its metrics begin with, so that they are told from those of the training step."""


class Training(NamedTuple):
    """Everything that `train` needs; made, and so checked, before anything is compiled or written."""

    config: Config
    logits: LogitsFn
    step: TrainStep
    state: TrainState
    data: Data
    num_steps: int
    observe: Observe | None
    recovery: Recovery | None
    fingerprint: str


def num_outputs(config: Config, dataset: Dataset) -> int:
    """Returns how many logits the network has: one a class, or a single one, minus the energy itself."""
    return 1 if config.task == "unconditional" else dataset.num_classes


def make_network(config: Config, num_classes: int) -> Any:
    """Returns the Flax module that maps one image to its logits."""
    dtype = None if config.precision == "float32" else jnp.dtype(config.precision)
    common: dict[str, Any] = {"activation": config.activation, "dtype": dtype}
    if config.network == "mlp":
        return MLP(num_classes, widths=config.widths, **common)
    common |= {"norm": None if config.norm == "none" else config.norm, "spectral_norm": config.spectral_norm}
    if config.network == "convnet":
        return ConvNet(num_classes, channels=config.channels, **common)
    return WideResNet(num_classes, depth=config.depth, width=config.width, remat=config.remat, **common)


def make_data(config: Config, dataset: Dataset) -> Data:
    """Returns the training split, on this host, with ``labels_per_class`` labels where that is asked for."""
    images, labels = dataset.train
    rows = np.arange(len(labels))
    if config.labels_per_class is not None:
        wanted = config.labels_per_class
        checks.positive_integer("labels_per_class", wanted)
        scarce = int(np.bincount(labels, minlength=dataset.num_classes).min())
        if wanted > scarce:
            raise ValueError(f"labels_per_class={wanted}: the smallest class has {scarce} training images.")
        order = np.random.default_rng(config.seed).permutation(len(labels))
        by_class = [order[labels[order] == y][:wanted] for y in range(dataset.num_classes)]
        rows = np.concatenate(by_class)
    for name, count in (("labelled", len(rows)), ("training", len(images))):
        if config.batch_size > count:
            message = (
                f"batch_size={config.batch_size} exceeds the {count} {name} images: use at most {count}."
            )
            raise ValueError(message)
    return Data((images[rows], labels[rows]), images)


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """The optimiser and its schedule, on the parameters but not on running statistics."""
    peak = config.learning_rate
    warmup = min(config.warmup_steps, max(num_steps // 10, 1))
    if config.schedule == "cosine":
        floor = peak * config.learning_rate_floor
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, num_steps, end_value=floor)
    else:
        epochs = config.decay_epochs if config.schedule == "steps" else ()
        falls = {num_steps * epoch // config.epochs - warmup: config.decay_factor for epoch in epochs}
        schedule = optax.join_schedules(
            [optax.linear_schedule(0.0, peak, warmup), optax.piecewise_constant_schedule(peak, falls)],
            [warmup],
        )
    decay = config.weight_decay
    if config.optimizer == "adamw":
        optimizer = optax.adamw(schedule, b1=config.adam_b1, weight_decay=decay)
    elif config.optimizer == "adam":
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.adam(schedule, b1=config.adam_b1))
    else:
        optimizer = optax.chain(
            optax.add_decayed_weights(decay), optax.sgd(schedule, momentum=config.momentum)
        )
    if config.gradient_clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.gradient_clip_norm), optimizer)
    return trainable(optimizer)


def make_observe(
    config: Config, dataset: Dataset, network: Any, negatives: NegativeSampler
) -> Observe | None:
    """Returns what looks at a run now and then, on validation images: the averaged weights as a classifier,
    and the chains (`make_telemetry` on p(x)).

    The samples are the replay buffer's where there is one, else what the sampler would train on next.
    """
    if not config.telemetry_every and config.select == "last":
        return None
    logits = network.apply
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

    if not (config.generative and config.telemetry_every):
        return lambda state: classify(state.ema_params)
    energy = marginal_energy(network.apply)
    telemetry = make_telemetry(energy, make_kernel(config), images, num_steps=config.sampler_steps)
    start = images[: config.batch_size], labels[: config.batch_size]
    chain_energy = make_chain_energy(config, network, dataset.image_shape)

    @jax.jit
    def draw(rng_key: Array, params: Params) -> Array:
        return negatives.draw(rng_key, chain_energy, params, *start, ())[0].positions

    def observe(state: TrainState) -> Metrics:
        # Training's own keys are fold_in(rng_key, step): these are others, of a step that no run reaches.
        other_key = jax.random.fold_in(state.rng_key, jnp.iinfo(jnp.uint32).max)
        keys = jax.random.split(jax.random.fold_in(other_key, state.step))
        if isinstance(state.memory, ReplayBuffer):
            found = telemetry(keys[0], state.params, state.memory.positions, state.memory.ages)
        else:
            found = telemetry(keys[0], state.params, draw(keys[1], state.params))
        return {TELEMETRY + name: value for name, value in found.items()} | classify(state.ema_params)

    return observe


def prepare(config: Config, dataset: Dataset, params: Params | None = None) -> Training:
    """Makes every part of a run; bad settings are told here, before a folder is made or anything is compiled.

    Args:
      config: the flags.
      dataset: the images.
      params: where to start from, such as those of a pretraining; None draws them.

    Returns:
      What `train` needs.

    Raises:
      ValueError: for settings that do not fit the data or each other.
    """
    data = make_data(config, dataset)
    digest = fingerprint(data)
    network = make_network(config, num_outputs(config, dataset))
    num_steps = config.epochs * (len(data.images) // config.batch_size)
    placement = place(config)
    strata = 1 if placement is None else placement.num_strata
    for name in ("batch_size", "num_chains", "buffer_size"):
        if getattr(config, name) % strata:
            raise ValueError(f"{name}={getattr(config, name)} must be a multiple of strata={strata}.")
    optimizer, negatives = make_optimizer(config, num_steps), make_negatives(config, dataset, placement)

    @jax.jit  # one program: op by op, each of them would be compiled by itself
    def start(rng_key: Array, params: Params | None) -> TrainState:
        keys = jax.random.split(rng_key, 4)
        if params is None:
            params = network.init(keys[1], jnp.zeros(dataset.image_shape))
        streams = Streams(
            init_stream(keys[2], len(data.labelled[1]), num_strata=strata),
            init_stream(keys[3], len(data.images), num_strata=strata),
        )
        return init_state(keys[0], params, optimizer=optimizer, negatives=negatives, streams=streams)

    def step_of(remedied: Config) -> TrainStep:
        negatives = make_negatives(remedied, dataset, placement)
        return make_step(remedied, dataset, network, optimizer, negatives, placement)

    state = start(jax.random.key(config.seed, impl=choose_generator(config)), params)
    if placement is not None:
        state, data = placement.place_state(state), placement.place_data(data)
    else:
        data = jax.tree.map(jnp.asarray, data)
    observe = make_observe(config, dataset, network, negatives)
    recovery = recovery_for(config, step_of, config.snapshots)
    return Training(config, network.apply, step_of(config), state, data, num_steps, observe, recovery, digest)


def train(training: Training, run: RunFolder | None = None) -> FitResult:
    """Runs the updates, in a run's folder or without one."""
    config = training.config
    return fit(
        training.step,
        training.state,
        training.data,
        num_steps=training.num_steps,
        steps_per_dispatch=config.steps_per_dispatch,
        samples_per_step=config.num_chains if config.generative else config.batch_size,
        run=run,
        checkpoint_every=config.checkpoint_every,
        resume_step=config.resume_step if run is not None else None,
        best_metric=BEST_METRIC if config.select == "best" and run is not None else None,
        data_fingerprint=training.fingerprint,
        recovery=training.recovery,
        progress=config.progress and run is not None,
        observe=training.observe,
        observe_every=config.telemetry_every or training.num_steps,
    )
