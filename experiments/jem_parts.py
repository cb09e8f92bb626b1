"""The parts of a JEM run, made from its configuration: data, network, sampler, optimiser, step, training."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxebm import checks
from jaxebm.data import Dataset, init_stream, next_batch, random_translation
from jaxebm.energies import (
    MLP,
    ConvNet,
    WideResNet,
    joint_energy,
    marginal_energy,
    refresh_statistics,
    trainable,
    training_apply,
)
from jaxebm.evaluation import make_telemetry
from jaxebm.objectives import (
    Negatives,
    NegativeSampler,
    classification_loss,
    contrastive_divergence,
    joint_loss,
    no_negatives,
    persistent,
    short_run,
)
from jaxebm.samplers import Initial, ReplayBuffer, UniformInitial, fit_class_gaussians, fit_gaussian, sgld
from jaxebm.training import (
    FitResult,
    Observe,
    RunFolder,
    TrainState,
    TrainStep,
    fit,
    init_state,
    make_train_step,
)
from jaxebm.types import Array, LogitsFn, MakeKernel, Metrics, Params
from jem_config import Config

__all__ = ["Training", "make_initial", "make_kernel", "prepare", "train"]

PIXELS = (-1.0, 1.0)
"""Range of the images that the network sees."""


class Data(NamedTuple):
    """Training arrays on the device, raw pixels: labelled examples, and the images log p(x) learns from."""

    labelled: tuple[Array, Array]
    images: Array


class Streams(NamedTuple):
    """Places in the two halves of `Data`."""

    labelled: Any
    images: Any


class Batch(NamedTuple):
    """Rescaled, noisy examples."""

    x_labelled: Array
    labels: Array
    x_data: Array


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


def make_network(config: Config, num_classes: int) -> Any:
    """Returns the Flax module that maps one image to its logits."""
    if config.network == "mlp":
        return MLP(num_classes, widths=config.widths, activation=config.activation)
    norm = None if config.norm == "none" else config.norm
    common = {"activation": config.activation, "norm": norm, "spectral_norm": config.spectral_norm}
    if config.network == "convnet":
        return ConvNet(num_classes, channels=config.channels, **common)
    return WideResNet(num_classes, depth=config.depth, width=config.width, **common)


def make_data(config: Config, dataset: Dataset) -> Data:
    """Puts the training split on the device, with ``labels_per_class`` labels where that is asked for."""
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
    return Data((jnp.asarray(images[rows]), jnp.asarray(labels[rows])), jnp.asarray(images))


def make_initial(config: Config, dataset: Dataset) -> Initial:
    """Returns the distribution that new chains start from."""
    if config.initial == "uniform":
        return UniformInitial(*PIXELS, shape=dataset.image_shape)
    images = np.asarray(dataset.rescale(dataset.train.image))
    if config.initial == "gaussian":
        return fit_gaussian(images, clamp=PIXELS)
    return fit_class_gaussians(images, dataset.train.label, dataset.num_classes, clamp=PIXELS)


def make_kernel(config: Config) -> MakeKernel:
    """Returns the Langevin kernel, still to be bound to a target."""
    return partial(
        sgld,
        step_size=config.sampler_step_size,
        noise_scale=config.sampler_noise,
        gradient_clip=config.sampler_gradient_clip,
        state_clamp=PIXELS if config.sampler_clamp else None,
    )


def make_negatives(config: Config, dataset: Dataset) -> NegativeSampler:
    """Returns where the model's samples come from."""
    if not config.generative:
        return no_negatives()
    kernel = make_kernel(config)
    if config.negatives == "contrastive-divergence":
        return contrastive_divergence(kernel, num_steps=config.sampler_steps)
    chains = {
        "num_steps": config.sampler_steps,
        "initial": make_initial(config, dataset),
        "num_chains": config.num_chains,
        "num_classes": dataset.num_classes,
    }
    if config.negatives == "short-run":
        return short_run(kernel, **chains)
    restart = config.restart_probability
    return persistent(kernel, capacity=config.buffer_size, restart_probability=restart, **chains)


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay, on the parameters but not on running statistics."""
    peak = config.learning_rate
    warmup = min(config.warmup_steps, max(num_steps // 10, 1))
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, num_steps, end_value=peak / 100)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    if config.gradient_clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.gradient_clip_norm), optimizer)
    return trainable(optimizer)


def make_step(
    config: Config,
    dataset: Dataset,
    network: Any,
    optimizer: optax.GradientTransformation,
    negatives: NegativeSampler,
) -> TrainStep:
    """Returns the pure function of one JEM update."""
    marginal, joint = marginal_energy(network.apply), joint_energy(network.apply)
    # Batch normalisation learns with the statistics of the batch at hand; chains run on the running ones.
    logits: LogitsFn = training_apply(network) if config.norm == "batch" else network.apply

    def energy(params: Params, x: Array, label: Array) -> Array:
        return joint(params, x, label) if config.chains == "conditional" else marginal(params, x)

    def noisy(rng_key: Array, x: Array) -> Array:
        return x + config.input_noise * jax.random.normal(rng_key, x.shape, x.dtype)

    def moved(rng_key: Array, x: Array, max_shift: float) -> Array:
        if max_shift == 0:
            return x
        keys = jax.random.split(rng_key, len(x))
        return jax.vmap(partial(random_translation, max_shift=max_shift))(keys, x)

    def take(rng_key: Array, data: Data, streams: Streams) -> tuple[Batch, Streams]:
        keys = jax.random.split(rng_key, 6)
        size = config.batch_size
        (images, labels), labelled = next_batch(keys[0], streams.labelled, data.labelled, size)
        unlabelled, rest = next_batch(keys[1], streams.images, data.images, size)
        x_labelled = noisy(keys[2], moved(keys[3], dataset.rescale(images), config.max_shift))
        x_data = noisy(keys[4], moved(keys[5], dataset.rescale(unlabelled), config.max_shift_p_x))
        return Batch(x_labelled, labels, x_data), Streams(labelled, rest)

    def loss(params: Params, rng_key: Array, batch: Batch, samples: Negatives) -> tuple[Array, Metrics]:
        del rng_key
        x, labels, smoothing = batch.x_labelled, batch.labels, config.label_smoothing
        if not config.generative:
            return classification_loss(logits, params, x, labels, label_smoothing=smoothing)
        return joint_loss(
            logits,
            params,
            x,
            labels,
            batch.x_data,
            samples.positions,
            labels_model=samples.labels,
            p_y_given_x_weight=config.p_y_given_x_weight,
            p_x_weight=config.p_x_weight,
            p_xy_weight=config.p_xy_weight,
            energy_l2=config.energy_l2,
            label_smoothing=smoothing,
        )

    return make_train_step(
        energy=energy,
        loss=loss,
        optimizer=optimizer,
        negatives=negatives,
        next_batch=take,
        start_of=lambda batch: (batch.x_labelled, batch.labels),
        refresh=lambda params, batch: refresh_statistics(network, params, batch.x_data),
        ema_decay=config.ema_decay,
    )


def make_observe(
    config: Config, dataset: Dataset, logits: LogitsFn, negatives: NegativeSampler
) -> Observe | None:
    """Returns what looks at the chains now and then: `make_telemetry` on p(x), against validation images.

    The samples are the replay buffer's where there is one, else what the sampler would train on next.
    """
    if not (config.generative and config.telemetry_every):
        return None
    images, labels = jnp.asarray(dataset.rescale(dataset.validation.image)), dataset.validation.label
    energy, joint = marginal_energy(logits), joint_energy(logits)
    telemetry = make_telemetry(energy, make_kernel(config), images, num_steps=config.sampler_steps)
    start = images[: config.batch_size], jnp.asarray(labels[: config.batch_size], jnp.int32)

    def conditional_or_marginal(params: Params, x: Array, label: Array) -> Array:
        return joint(params, x, label) if config.chains == "conditional" else energy(params, x)

    @jax.jit
    def draw(rng_key: Array, params: Params) -> Array:
        return negatives.draw(rng_key, conditional_or_marginal, params, *start, ())[0].positions

    def observe(state: TrainState) -> Metrics:
        # Training's own keys are fold_in(rng_key, step): these are others, of a step that no run reaches.
        other_key = jax.random.fold_in(state.rng_key, jnp.iinfo(jnp.uint32).max)
        keys = jax.random.split(jax.random.fold_in(other_key, state.step))
        if isinstance(state.memory, ReplayBuffer):
            found = telemetry(keys[0], state.params, state.memory.positions, state.memory.ages)
        else:
            found = telemetry(keys[0], state.params, draw(keys[1], state.params))
        return {TELEMETRY + name: value for name, value in found.items()}

    return observe


def prepare(config: Config, dataset: Dataset) -> Training:
    """Makes every part of a run; bad settings are told here, before a folder is made or anything is compiled.

    Args:
      config: the flags.
      dataset: the images.

    Returns:
      What `train` needs.

    Raises:
      ValueError: for settings that do not fit the data or each other.
    """
    data = make_data(config, dataset)
    network = make_network(config, dataset.num_classes)
    num_steps = config.epochs * (len(data.images) // config.batch_size)
    optimizer, negatives = make_optimizer(config, num_steps), make_negatives(config, dataset)

    @jax.jit  # one program: op by op, each of them would be compiled by itself
    def start(rng_key: Array) -> TrainState:
        keys = jax.random.split(rng_key, 4)
        params = network.init(keys[1], jnp.zeros(dataset.image_shape))
        labelled, images = init_stream(keys[2], len(data.labelled[1])), init_stream(keys[3], len(data.images))
        streams = Streams(labelled, images)
        return init_state(keys[0], params, optimizer=optimizer, negatives=negatives, streams=streams)

    state = start(jax.random.key(config.seed))
    step = make_step(config, dataset, network, optimizer, negatives)
    observe = make_observe(config, dataset, network.apply, negatives)
    return Training(config, network.apply, step, state, data, num_steps, observe)


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
        progress=config.progress and run is not None,
        observe=training.observe,
        observe_every=max(config.telemetry_every, 1),
    )
