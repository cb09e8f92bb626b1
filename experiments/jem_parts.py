"""The parts of a JEM run, made from its configuration: data, network, sampler, optimiser, step, training."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from devices import choose_generator, place
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
    Placement,
    Recovery,
    RunFolder,
    TrainState,
    TrainStep,
    fingerprint,
    fit,
    init_state,
    make_train_step,
)
from jaxebm.types import Array, LogitsFn, MakeKernel, Metrics, Params
from jem_config import Config
from recoveries import recovery_for

__all__ = ["Training", "make_initial", "make_kernel", "prepare", "train"]

PIXELS = (-1.0, 1.0)
"""Range of the images that the network sees."""
VALIDATION_BATCH = 500
"""Validation images that are classified at once while training."""


class Data(NamedTuple):
    """Training arrays, raw pixels: labelled examples, and the images log p(x) learns from."""

    labelled: tuple[Array | np.ndarray, Array | np.ndarray]
    images: Array | np.ndarray


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
    recovery: Recovery | None
    fingerprint: str


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


def make_negatives(config: Config, dataset: Dataset, placement: Placement | None) -> NegativeSampler:
    """Returns where the model's samples come from."""
    sharding = None if placement is None else placement.split
    if not config.generative:
        return no_negatives()
    kernel = make_kernel(config)
    if config.negatives == "contrastive-divergence":
        return contrastive_divergence(kernel, num_steps=config.sampler_steps, sharding=sharding)
    chains: dict[str, Any] = {
        "num_steps": config.sampler_steps,
        "initial": make_initial(config, dataset),
        "num_chains": config.num_chains,
        "num_classes": dataset.num_classes,
        "sharding": sharding,
    }
    if config.negatives == "short-run":
        return short_run(kernel, **chains)
    return persistent(
        kernel,
        capacity=config.buffer_size,
        restart_probability=config.restart_probability,
        num_strata=1 if placement is None else placement.num_strata,
        **chains,
    )


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
    placement: Placement | None,
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
        placement=placement,
    )


def make_observe(
    config: Config, dataset: Dataset, logits: LogitsFn, negatives: NegativeSampler
) -> Observe | None:
    """Returns what looks at a run now and then, on validation images: the averaged weights as a classifier,
    and the chains (`make_telemetry` on p(x)).

    The samples are the replay buffer's where there is one, else what the sampler would train on next.
    """
    if not config.telemetry_every and config.select == "last":
        return None
    images = jnp.asarray(dataset.rescale(dataset.validation.image))
    labels = jnp.asarray(dataset.validation.label, jnp.int32)

    @jax.jit
    def classify(params: Params) -> Metrics:
        outputs = jax.lax.map(partial(logits, params), images, batch_size=VALIDATION_BATCH)
        hits = jnp.argmax(outputs, axis=1) == labels
        nll = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        return {"validation_accuracy": jnp.mean(hits), "validation_nll": jnp.mean(nll)}

    if not (config.generative and config.telemetry_every):
        return lambda state: classify(state.ema_params)
    energy, joint = marginal_energy(logits), joint_energy(logits)
    telemetry = make_telemetry(energy, make_kernel(config), images, num_steps=config.sampler_steps)
    start = images[: config.batch_size], labels[: config.batch_size]

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
        return {TELEMETRY + name: value for name, value in found.items()} | classify(state.ema_params)

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
    digest = fingerprint(data)
    network = make_network(config, dataset.num_classes)
    num_steps = config.epochs * (len(data.images) // config.batch_size)
    placement = place(config)
    strata = 1 if placement is None else placement.num_strata
    for name in ("batch_size", "num_chains", "buffer_size"):
        if getattr(config, name) % strata:
            raise ValueError(f"{name}={getattr(config, name)} must be a multiple of strata={strata}.")
    optimizer, negatives = make_optimizer(config, num_steps), make_negatives(config, dataset, placement)

    @jax.jit  # one program: op by op, each of them would be compiled by itself
    def start(rng_key: Array) -> TrainState:
        keys = jax.random.split(rng_key, 4)
        params = network.init(keys[1], jnp.zeros(dataset.image_shape))
        streams = Streams(
            init_stream(keys[2], len(data.labelled[1]), num_strata=strata),
            init_stream(keys[3], len(data.images), num_strata=strata),
        )
        return init_state(keys[0], params, optimizer=optimizer, negatives=negatives, streams=streams)

    def step_of(remedied: Config) -> TrainStep:
        negatives = make_negatives(remedied, dataset, placement)
        return make_step(remedied, dataset, network, optimizer, negatives, placement)

    state = start(jax.random.key(config.seed, impl=choose_generator(config)))
    if placement is not None:
        state, data = placement.place_state(state), placement.place_data(data)
    else:
        data = jax.tree.map(jnp.asarray, data)
    observe = make_observe(config, dataset, network.apply, negatives)
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
        best_metric="validation_nll" if config.select == "best" and run is not None else None,
        data_fingerprint=training.fingerprint,
        recovery=training.recovery,
        progress=config.progress and run is not None,
        observe=training.observe,
        observe_every=config.telemetry_every or training.num_steps,
    )
