"""JEM: train one network as classifier and energy-based model at once, and say honestly what it learnt.

    python experiments/jem.py                       # real 8x8 digits, CPU, about a minute
    python experiments/jem.py --network convnet
    python experiments/jem.py --dataset mnist --network convnet
    python experiments/jem.py --dataset npz:PATH    # your own arrays `image` and `label`

Writes a folder: config.json, metrics.jsonl, checkpoints/, card.json (schema in docs/card.md), card.md, samples.npz and
pictures. Expected figures, with their spread, seeds, time and device, are in experiments/RESULTS.md.

Reference: Grathwohl et al. 2020, "Your classifier is secretly an energy based model" (arXiv 1912.03263).
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import as_json, run_experiment
from jem_card import ModelUnderTest, evaluate, write_card

from jaxebm import checks
from jaxebm.data import Dataset, init_stream, load_dataset, next_batch, random_translation
from jaxebm.energies import ConvNet, MLP, WideResNet, joint_energy, marginal_energy
from jaxebm.energies.networks import refresh_statistics, trainable
from jaxebm.objectives import (
    NegativeSampler,
    Negatives,
    classification_loss,
    contrastive_divergence,
    joint_loss,
    no_negatives,
    persistent,
    short_run,
)
from jaxebm.samplers import Initial, UniformInitial, fit_class_gaussians, fit_gaussian, sgld
from jaxebm.training import (
    FitResult,
    RunFolder,
    TrainState,
    TrainStep,
    fit,
    init_state,
    make_train_step,
    open_run,
)
from jaxebm.types import Array, LogitsFn, MakeKernel, Metrics, Params

PIXELS = (-1.0, 1.0)
"""Range of the images that the network sees."""


@dataclass(frozen=True)
class Config:
    """Train and evaluate a joint energy-based model (JEM) on images."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, cifar100, svhn_cropped, or npz:PATH with arrays `image` and `label`."""
    exclude_classes: tuple[int, ...] = ()
    """Classes left out of training and kept as an out-of-distribution set."""
    labels_per_class: int | None = None
    """Semi-supervised: how many labelled training images each class keeps; log p(x) still learns from all images."""
    output: Path = Path("runs/jem")
    """Folder of this run."""
    resume: bool = False
    """Go on with the run in the folder, bit for bit as if it had never stopped."""
    overwrite: bool = False
    """Replace the run in the folder."""
    progress: bool = True
    """Show a progress bar (lines of text where there is no terminal)."""
    seed: int = 0
    """Of initial weights, batches and chains; the split of the data never changes."""

    network: Literal["mlp", "convnet", "wide-resnet"] = "mlp"
    """Architecture."""
    widths: tuple[int, ...] = (384, 384, 384)
    """Of the hidden layers of `mlp`."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Of the levels of `convnet`."""
    depth: int = 28
    """Of `wide-resnet`, 6 n + 4."""
    width: int = 10
    """Of `wide-resnet`, the widening factor."""
    activation: str = "swish"
    """swish, gelu, softplus, elu, relu or leaky_relu; smooth ones keep Langevin dynamics stable."""
    norm: Literal["none", "group", "batch"] = "none"
    """Normalisation in `convnet` and `wide-resnet`."""
    spectral_norm: bool = False
    """Bound each layer's largest singular value, in `convnet` and `wide-resnet`."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 64
    """Images a batch, labelled and unlabelled alike."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then cosine decay to a hundredth."""
    warmup_steps: int = 100
    """Updates of warm-up."""
    weight_decay: float = 0.1
    """Decoupled (AdamW), times the learning rate."""
    gradient_clip_norm: float | None = None
    """Clip the global norm of the parameters' gradient."""
    ema_decay: float = 0.999
    """Of the average of the weights, which the evaluation uses."""
    input_noise: float = 0.03
    """Standard deviation of the Gaussian noise on training images, pixels in [-1, 1]."""

    max_shift: float = 0.4
    """Random translation of labelled images by up to this many pixels, for the cross-entropy only."""

    p_y_given_x_weight: float = 1.0
    """Weight of log p(y|x), the cross-entropy."""
    p_x_weight: float = 0.5
    """Weight of log p(x); 0 trains a plain classifier."""
    p_xy_weight: float = 0.0
    """Weight of log p(x, y) through class-conditional samples; needs --chains conditional."""
    energy_l2: float = 0.0
    """Weight of E(x)^2 on data and samples, against drift."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    negatives: Literal["persistent", "short-run", "contrastive-divergence"] = "persistent"
    """Where chains start: a replay buffer, the initial distribution, or the data."""
    chains: Literal["marginal", "conditional"] = "marginal"
    """Sample from p(x), or from p(x|y) with as many chains a class."""
    num_chains: int = 64
    """Negatives an update (contrastive divergence: the batch size)."""
    sampler_steps: int = 20
    """Langevin steps an update."""
    sampler_step_size: float = 0.2
    """Factor of the gradient, x <- x - step_size dE/dx + noise n."""
    sampler_noise: float = 0.1
    """Standard deviation of the noise; the pair's temperature is noise^2 / (2 step_size)."""
    sampler_gradient_clip: float | None = 1.0
    """Clip each entry of dE/dx to +- this."""
    sampler_clamp: bool = True
    """Keep pixels inside [-1, 1]."""
    initial: Literal["uniform", "gaussian", "class-gaussian"] = "uniform"
    """Where new chains start: uniform noise, or a Gaussian fitted to the training images, as a whole or by class."""
    buffer_size: int = 2000
    """Slots of the replay buffer, a multiple of the number of classes."""
    restart_probability: float = 0.05
    """Chance that a chain drawn from the buffer starts anew."""

    steps_per_dispatch: int = 100
    """Updates a compiled call; metrics are means over them."""
    checkpoint_every: int = 1000
    """Updates between checkpoints."""

    twin: bool = True
    """Also train the same network by cross-entropy alone, for comparison."""
    samples_per_class: int = 140
    """Fresh class-conditional chains of the evaluation."""
    sample_steps: tuple[int, ...] = (100, 1000)
    """Lengths, in Langevin steps, at which fresh chains are judged."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "num_chains",
            "sampler_steps",
            "buffer_size",
            "samples_per_class",
        ):
            checks.positive_integer(name, getattr(self, name))
        for name in ("learning_rate", "sampler_step_size"):
            checks.positive(name, getattr(self, name))
        for name in ("sampler_noise", "input_noise", "max_shift", "weight_decay", "energy_l2"):
            checks.non_negative(name, getattr(self, name))
        for name in ("p_y_given_x_weight", "p_x_weight", "p_xy_weight"):
            checks.non_negative(name, getattr(self, name))
        if self.p_xy_weight > 0 and self.chains != "conditional":
            raise ValueError("p_xy_weight needs samples of p(x, y): add --chains conditional.")
        if self.negatives == "persistent" and self.buffer_size < self.num_chains:
            raise ValueError(
                f"buffer_size={self.buffer_size} is smaller than num_chains={self.num_chains}: every chain needs a slot "
                f"of its own; use a buffer_size of at least {self.num_chains}."
            )
        if (
            not self.sample_steps
            or list(self.sample_steps) != sorted(set(self.sample_steps))
            or self.sample_steps[0] < 1
        ):
            raise ValueError(
                f"sample_steps={self.sample_steps}: increasing numbers of at least 1 are needed, such as 100 1000."
            )

    @property
    def generative(self) -> bool:
        """Whether anything goes through the sampler."""
        return self.p_x_weight > 0 or self.p_xy_weight > 0


class Data(NamedTuple):
    """Training arrays on the device, raw pixels: the labelled examples, and the images that log p(x) learns from."""

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


def make_network(config: Config, num_classes: int) -> Any:
    """Returns the Flax module that maps one image to its logits."""
    norm = None if config.norm == "none" else config.norm
    if config.network == "mlp":
        return MLP(num_classes, widths=config.widths, activation=config.activation)
    if config.network == "convnet":
        return ConvNet(num_classes, channels=config.channels, activation=config.activation, norm=norm,
                       spectral_norm=config.spectral_norm)  # fmt: skip
    return WideResNet(num_classes, depth=config.depth, width=config.width, activation=config.activation, norm=norm,
                      spectral_norm=config.spectral_norm)  # fmt: skip


def make_data(config: Config, dataset: Dataset) -> Data:
    """Puts the training split on the device, with ``labels_per_class`` labels where that is asked for."""
    images, labels = dataset.train
    rows = np.arange(len(labels))
    if config.labels_per_class is not None:
        checks.positive_integer("labels_per_class", config.labels_per_class)
        scarce = int(np.bincount(labels, minlength=dataset.num_classes).min())
        if config.labels_per_class > scarce:
            raise ValueError(
                f"labels_per_class={config.labels_per_class}: the smallest class has {scarce} training images."
            )
        order = np.random.default_rng(config.seed).permutation(len(labels))
        rows = np.concatenate(
            [order[labels[order] == y][: config.labels_per_class] for y in range(dataset.num_classes)]
        )
    for name, count in (("labelled", len(rows)), ("training", len(images))):
        if config.batch_size > count:
            raise ValueError(
                f"batch_size={config.batch_size} exceeds the {count} {name} images: use at most {count}."
            )
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
    kernel, initial = make_kernel(config), make_initial(config, dataset)
    if config.negatives == "contrastive-divergence":
        return contrastive_divergence(kernel, num_steps=config.sampler_steps)
    chains = {"num_steps": config.sampler_steps, "initial": initial, "num_chains": config.num_chains,
              "num_classes": dataset.num_classes}  # fmt: skip
    if config.negatives == "short-run":
        return short_run(kernel, **chains)
    return persistent(
        kernel, capacity=config.buffer_size, restart_probability=config.restart_probability, **chains
    )


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay, on the parameters but not on running statistics."""
    warmup = min(config.warmup_steps, max(num_steps // 10, 1))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, num_steps, end_value=config.learning_rate / 100
    )
    clip = (
        optax.identity()
        if config.gradient_clip_norm is None
        else optax.clip_by_global_norm(config.gradient_clip_norm)
    )
    return trainable(optax.chain(clip, optax.adamw(schedule, weight_decay=config.weight_decay)))


def make_step(
    config: Config,
    dataset: Dataset,
    network: Any,
    optimizer: optax.GradientTransformation,
    negatives: NegativeSampler,
) -> TrainStep:
    """Returns the pure function of one JEM update."""
    logits: LogitsFn = network.apply
    marginal, joint = marginal_energy(logits), joint_energy(logits)

    def energy(params: Params, x: Array, label: Array) -> Array:
        return joint(params, x, label) if config.chains == "conditional" else marginal(params, x)

    def noisy(rng_key: Array, x: Array) -> Array:
        return x + config.input_noise * jax.random.normal(rng_key, x.shape, x.dtype)

    def moved(rng_key: Array, x: Array) -> Array:
        if config.max_shift == 0:
            return x
        return jax.vmap(partial(random_translation, max_shift=config.max_shift))(jax.random.split(rng_key, len(x)), x)

    def take(rng_key: Array, data: Data, streams: Streams) -> tuple[Batch, Streams]:
        keys = jax.random.split(rng_key, 5)
        (images, labels), labelled = next_batch(keys[0], streams.labelled, data.labelled, config.batch_size)
        unlabelled, rest = next_batch(keys[1], streams.images, data.images, config.batch_size)
        x_labelled = noisy(keys[2], moved(keys[4], dataset.rescale(images)))
        return Batch(x_labelled, labels, noisy(keys[3], dataset.rescale(unlabelled))), Streams(labelled, rest)

    def loss(params: Params, rng_key: Array, batch: Batch, samples: Negatives) -> tuple[Array, Metrics]:
        del rng_key
        if not config.generative:
            return classification_loss(
                logits, params, batch.x_labelled, batch.labels, label_smoothing=config.label_smoothing
            )
        return joint_loss(
            logits, params, batch.x_labelled, batch.labels, batch.x_data, samples.positions,
            labels_model=samples.labels, p_y_given_x_weight=config.p_y_given_x_weight, p_x_weight=config.p_x_weight,
            p_xy_weight=config.p_xy_weight, energy_l2=config.energy_l2, label_smoothing=config.label_smoothing,
        )  # fmt: skip

    return make_train_step(
        energy=energy, loss=loss, optimizer=optimizer, negatives=negatives, next_batch=take,
        start_of=lambda batch: (batch.x_labelled, batch.labels), ema_decay=config.ema_decay,
        refresh=lambda params, batch: refresh_statistics(network, params, batch.x_data),
    )  # fmt: skip


def train(config: Config, dataset: Dataset, run: RunFolder | None) -> tuple[FitResult, LogitsFn, int]:
    """Trains one network; returns the result, its logits function and the number of updates."""
    data = make_data(config, dataset)
    network = make_network(config, dataset.num_classes)
    num_steps = config.epochs * (len(data.images) // config.batch_size)
    optimizer, negatives = make_optimizer(config, num_steps), make_negatives(config, dataset)
    keys = jax.random.split(jax.random.key(config.seed), 4)
    state: TrainState = init_state(
        keys[0],
        network.init(keys[1], jnp.zeros(dataset.image_shape)),
        optimizer=optimizer,
        negatives=negatives,
        streams=Streams(init_stream(keys[2], len(data.labelled[1])), init_stream(keys[3], len(data.images))),
    )
    result = fit(
        make_step(config, dataset, network, optimizer, negatives),
        state,
        data,
        num_steps=num_steps,
        steps_per_dispatch=config.steps_per_dispatch,
        samples_per_step=config.num_chains if config.generative else config.batch_size,
        run=run,
        checkpoint_every=config.checkpoint_every,
        progress=config.progress and run is not None,
    )
    return result, network.apply, num_steps


def main(config: Config) -> dict[str, Any]:
    """Trains, evaluates and writes the run's folder; returns the card."""
    started = time.monotonic()
    dataset = load_dataset(config.dataset, exclude_classes=config.exclude_classes)
    make_data(config, dataset)  # a batch larger than the data is told before a folder is made
    run = open_run(config.output, as_json(config), resume=config.resume, overwrite=config.overwrite)
    result, logits, num_steps = train(config, dataset, run)

    twin = None
    if config.twin and config.generative:
        plain = replace(config, p_x_weight=0.0, p_xy_weight=0.0, p_y_given_x_weight=1.0)
        twin = train(plain, dataset, run=None)[0].state.ema_params
    model = ModelUnderTest(
        logits=logits,
        params=result.state.ema_params,
        twin_params=twin,
        kernel=make_kernel(config),
        initial=make_initial(config, dataset),
        buffer=result.state.memory if config.generative and config.negatives == "persistent" else None,
        conditional=config.chains == "conditional",
    )
    card = evaluate(run, model, dataset, seed=config.seed, samples_per_class=config.samples_per_class,
                    sample_steps=config.sample_steps)  # fmt: skip
    card |= {
        "experiment": "jem",
        "dataset": config.dataset,
        "seed": config.seed,
        "updates": num_steps,
        "config": as_json(config),
        "seconds": time.monotonic() - started,
        "seconds_training": result.seconds,
    }
    write_card(run, card)
    return card


if __name__ == "__main__":
    run_experiment(Config, main)
