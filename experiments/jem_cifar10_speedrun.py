"""JEM on CIFAR-10 in the shortest time: one file, from raw pixels to samples, everything on the device.

    python experiments/jem_cifar10_speedrun.py          # not yet measured on a GPU

    aim       92.9% test accuracy (the JEM paper's, after 36 hours) and samples that look like their classes,
              inside 10 minutes on one H200
    measured  on a GPU: not yet
    device    one GPU with 16 GB or more; on a CPU only for tests with smaller settings (--help)
    n         1 seed per run; --seed for others

Why it is fast: images stay on the device as bytes; batches are drawn, augmented and scaled inside the
compiled step, one epoch per dispatch. The network computes in bfloat16 and in the layout (NHWC) of its
convolutions; parameters, energies and chains are float32. It is first trained as a classifier, which takes
few epochs and no chains (`--classifier-epochs`), then the weight of log p(x) increases (`--fade-epochs`).
Chains are few (a quarter of a batch) and short: 10 steps without noise, clipped and clamped, from the buffer
or a Gaussian of each class (SADA-JEM's sampler). There is no normalisation, so that a gradient is one pass;
energies are bounded by their squares (`--energy-l2`). One cycle of the learning rate, label smoothing,
averaged weights.

Estimate, to be replaced by a measurement: an update is 256 x 3 + 64 x (10 x 2 + 2 x 3) forward passes (a
gradient with respect to images costs two, to parameters three) of 1.75 GFLOP each (wide residual network
16-6), 4.3 TFLOP; 60 epochs of 175 updates are 45 PFLOP, 3.7 minutes at 200 TFLOP/s and 7.5 at 100.

Writes config.json, speedrun.json (accuracy, seconds of training without compilation, seconds of compilation,
images per second, updates, the validation accuracy along the way, what the samples are like), samples.png and
samples.npz. An interrupt ends it cleanly, with nothing to resume.

References: Grathwohl et al. 2020 (JEM, arXiv 1912.03263); Yang et al. 2022 (SADA-JEM, arXiv 2209.07959);
Smith & Topin 2018 (one cycle, arXiv 1708.07120); Jordan 2024 (airbench, arXiv 2404.00498): how to be fast.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxebm import checks
from jaxebm.data import Dataset, load_dataset, random_crop, random_flip
from jaxebm.energies import WideResNet, joint_energy, refresh_statistics, trainable, training_apply
from jaxebm.evaluation import class_agreement, fit_feature_network, frechet_distance, prdc, within_range
from jaxebm.objectives import (
    Batch,
    Negatives,
    NegativeSampler,
    classifier,
    jem,
    persistent,
    run_labelled_chains,
)
from jaxebm.recipes.command_line import RunFlags, as_json, run_experiment
from jaxebm.report.figures import image_grid
from jaxebm.samplers import ClassGaussianInitial, fit_class_gaussians, sgld
from jaxebm.training import (
    AugmentExample,
    Learner,
    TrainState,
    fit,
    init_health,
    learner,
    open_run,
)
from jaxebm.types import Array, MakeKernel, Metrics, Params

PIXELS = (-1.0, 1.0)
EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Config(RunFlags):
    """Train a joint energy-based model on CIFAR-10 as fast as possible."""

    dataset: str = "cifar10"
    """cifar10, or any other data set of experiments/jem.py."""
    output: Path = Path("runs/speedrun")
    """Folder of this run."""

    depth: int = 16
    """Depth of the wide residual network, 6 n + 4."""
    width: int = 6
    """Widening factor of the wide residual network."""
    activation: str = "leaky_relu"
    """Activation: leaky_relu, or a smooth one (swish, gelu, softplus, elu)."""
    norm: Literal["none", "group", "batch"] = "none"
    """Normalisation. With `batch`, chains use running statistics and the loss those of its batches."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the network; parameters, energies and chains are float32."""

    epochs: int = 60
    """Total number of epochs over the labelled images."""
    classifier_epochs: int = 6
    """Number of first epochs with cross-entropy alone, without chains."""
    fade_epochs: int = 6
    """Epochs after these in which the weight of log p(x) rises from 0 to --p-x-weight."""
    batch_size: int = 256
    """Labelled images per update."""
    p_x_weight: float = 1.0
    """Weight of log p(x); that of log p(y|x) is 1."""
    energy_l2: float = 0.1
    """Weight of the mean squared energies of images and samples; it rises with that of log p(x)."""
    learning_rate: float = 0.05
    """Greatest learning rate of the cycle, for SGD with Nesterov momentum .9."""
    warmup: float = 0.2
    """Fraction of the updates before the greatest learning rate."""
    weight_decay: float = 5e-4
    """Weight decay, added to the gradient."""
    gradient_clip_norm: float = 1.0
    """Clip of the gradient's norm, needed while the weight of log p(x) rises."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross-entropy."""
    ema_decay: float = 0.999
    """Decay of the average of the weights, which is evaluated."""
    crop_padding: int = 4
    """Reflected pixels by which labelled images are padded before cropping; not for log p(x)."""
    flip: bool = True
    """Labelled images are mirrored left to right with probability 1/2."""

    num_chains: int = 64
    """Chains per update, and images per update in log p(x)."""
    buffer_size: int = 10_000
    """Chains in the buffer."""
    restart_probability: float = 0.05
    """Probability that a drawn chain is restarted."""
    sampler_steps: int = 10
    """Sampler steps per update."""
    sampler_step_size: float = 1.0
    """Factor of the energy's gradient, whose entries are clipped to +-1; pixels stay in [-1, 1]."""
    sampler_noise: float = 0.0
    """Standard deviation of the noise added to each pixel in each step."""
    initial_images: int = 10_000
    """Number of training images for the Gaussians of the classes."""

    steps_per_dispatch: int = 175
    """Updates per compiled call; 175 are one epoch."""
    observe_epochs: int = 10
    """Epochs between measurements of the validation accuracy."""
    samples_per_class: int = 100
    """Number of fresh class-conditional chains that are evaluated; ten of each class are shown."""
    sample_steps: int = 100
    """Their steps."""
    judge_epochs: int = 15
    """Epochs of the independent classifier in whose features samples are compared."""

    def check(self) -> None:
        """Raises ``ValueError`` for settings that are wrong for every data set."""
        for name in ("epochs", "batch_size", "initial_images", "observe_epochs", "samples_per_class"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("sample_steps", "judge_epochs"):
            checks.positive_integer(name, getattr(self, name))
        if not 0 <= self.classifier_epochs < self.epochs:
            raise ValueError(
                f"classifier_epochs={self.classifier_epochs}: it must be at least 0, and below "
                f"epochs={self.epochs}."
            )
        checks.non_negative("fade_epochs", self.fade_epochs)
        checks.in_range("warmup", self.warmup, 0.01, 0.99)


class Plan(NamedTuple):
    """Numbers of updates: in total, with cross-entropy alone, of the fade, per epoch."""

    total: int
    classifier: int
    fade: int
    epoch: int


def make_plan(config: Config, num_examples: int) -> Plan:
    """Returns the numbers of updates of each kind."""
    if max(config.batch_size, config.num_chains) > num_examples:
        raise ValueError(
            f"batch_size={config.batch_size} and num_chains={config.num_chains} must be at most the "
            f"{num_examples} training images there are."
        )
    epoch = num_examples // config.batch_size
    first, fade = config.classifier_epochs * epoch, max(1, config.fade_epochs * epoch)
    return Plan(config.epochs * epoch, first, fade, epoch)


def make_network(config: Config, num_classes: int) -> Any:
    """Returns the network, of one image in NHWC's order (H, W, C)."""
    return WideResNet(
        num_classes,
        depth=config.depth,
        width=config.width,
        activation=config.activation,
        norm=None if config.norm == "none" else config.norm,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
    )


def make_augment(config: Config) -> AugmentExample:
    """Returns how a labelled image is cropped and mirrored."""

    def augment(rng_key: Array, image: Array) -> Array:
        key_crop, key_flip = jax.random.split(rng_key)
        image = random_crop(key_crop, image, config.crop_padding)
        return random_flip(key_flip, image) if config.flip else image

    return augment


def make_kernel(config: Config) -> MakeKernel:
    """Returns the kernel, not yet bound to an energy."""
    step, noise = config.sampler_step_size, config.sampler_noise
    return partial(sgld, step_size=step, noise_scale=noise, gradient_clip=1.0, state_clamp=PIXELS)


def make_initial(config: Config, dataset: Dataset) -> ClassGaussianInitial:
    """Returns the Gaussians of the classes, fitted to the first images."""
    images, labels = (part[: config.initial_images] for part in dataset.train)
    return fit_class_gaussians(dataset.rescale(images), labels, dataset.num_classes, clamp=PIXELS)


def make_negatives(config: Config, num_classes: int, initial: ClassGaussianInitial) -> NegativeSampler:
    """Returns persistent chains of each class."""
    return persistent(
        make_kernel(config),
        num_steps=config.sampler_steps,
        initial=initial,
        num_chains=config.num_chains,
        capacity=config.buffer_size,
        restart_probability=config.restart_probability,
        num_classes=num_classes,
    )


def make_optimizer(config: Config, plan: Plan) -> optax.GradientTransformation:
    """Returns SGD over one cycle of the learning rate, on the parameters but not on running statistics."""
    cycle = optax.cosine_onecycle_schedule(plan.total, config.learning_rate, config.warmup)
    descent = optax.sgd(cycle, momentum=0.9, nesterov=True)
    clip = optax.clip_by_global_norm(config.gradient_clip_norm)
    return trainable(optax.chain(clip, optax.add_decayed_weights(config.weight_decay), descent))


def fade_at(step: Array, plan: Plan) -> Array:
    """Returns the factor of log p(x) in an update, in [0, 1]; ``step`` counts the updates before it."""
    return jnp.clip((step - plan.classifier + 1) / plan.fade, 0.0, 1.0)


def make_learners(
    config: Config, dataset: Dataset, initial: ClassGaussianInitial, plan: Plan
) -> tuple[Learner, Learner]:
    """Returns the learners of the cross-entropy and of the JEM, which use the same state."""
    network = make_network(config, dataset.num_classes)
    training_logits = training_apply(network) if config.norm == "batch" else None
    make_learner = partial(
        learner,
        optimizer=make_optimizer(config, plan),
        batch_size=config.batch_size,
        augment=make_augment(config),
        augment_x_data=None,
        rescale=dataset.rescale,
        refresh=partial(refresh_statistics, network),
        ema_decay=config.ema_decay,
    )

    def joint(fade: float | Array) -> Learner:
        objective = jem(
            network.apply,
            chains="conditional",
            p_x_weight=config.p_x_weight * fade,
            energy_l2=config.energy_l2 * fade,
            label_smoothing=config.label_smoothing,
            training_logits=training_logits,
        )

        def loss(params: Params, rng_key: Array, batch: Batch, samples: Negatives) -> tuple[Array, Metrics]:
            # As many images as chains: more would cost forward passes, and log p(x) has the chains' noise.
            few = batch._replace(x_data=batch.x_data[: config.num_chains])
            return objective.loss(params, rng_key, few, samples)

        negatives = make_negatives(config, dataset.num_classes, initial)
        return make_learner(objective._replace(loss=loss), negatives=negatives)

    def joint_step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        return joint(fade_at(state.step, plan)).step(state, data)

    # The buffer waits in the state, untouched, while nothing is drawn.
    alone = make_learner(
        classifier(network.apply, label_smoothing=config.label_smoothing, training_logits=training_logits)
    )
    whole = joint(1.0)
    return whole._replace(step=alone.step), whole._replace(step=joint_step)


def train(config: Config, dataset: Dataset, initial: ClassGaussianInitial) -> tuple[Params, dict[str, Any]]:
    """Runs both parts of the training; returns the averaged weights, and their cost."""
    network = make_network(config, dataset.num_classes)
    plan = make_plan(config, len(dataset.train.label))
    alone, joint = make_learners(config, dataset, initial, plan)
    data = alone.place(tuple(dataset.train))  # bytes, scaled inside the compiled step
    state = alone.init(jax.random.key(config.seed), network.init, data)
    began = time.monotonic()
    classify_all(network.apply, state.ema_params, dataset, "validation")  # so that it is compiled
    compiling, training, recoveries, curve = time.monotonic() - began, 0.0, 0, []

    def observe(state: TrainState) -> Metrics:
        accuracy, _ = classify_all(network.apply, state.ema_params, dataset, "validation")
        curve.append({"update": int(state.step), "validation_accuracy": accuracy})
        return {"validation_accuracy": jnp.asarray(accuracy)}

    for half, until in ((alone, plan.classifier), (joint, plan.total)):
        if not until:
            continue
        # With another loss the usual norm of a gradient is different.
        fresh = init_health()._replace(optimizer_norm=state.health.optimizer_norm)
        begun = state._replace(health=fresh)
        result = fit(
            jax.random.key(config.seed),
            half._replace(init=lambda *_, begun=begun: begun),  # the second part continues from the first
            begun.params,
            data,
            num_steps=until,
            steps_per_dispatch=config.steps_per_dispatch,
            progress=config.progress,
            observe=observe,
            observe_every=config.observe_epochs * plan.epoch,
        )
        state = result.state
        compiling += result.compile_seconds
        training += result.seconds - result.compile_seconds
        recoveries += len(result.recoveries)
    took = {
        "updates": plan.total,
        "seconds_training": training,
        "seconds_compiling": compiling,
        "images_per_second": plan.total * config.batch_size / training,
        "recoveries": recoveries,
        "validation": curve,
    }
    return state.ema_params, took


@partial(jax.jit, static_argnums=0)
def _outputs(logits: Any, params: Params, images: Array) -> Array:
    return jax.lax.map(partial(logits, params), images, batch_size=EVALUATION_BATCH)


def classify_all(logits: Any, params: Params, dataset: Dataset, part: str) -> tuple[float, float]:
    """Returns the accuracy on a split, from one view of each image, and the mean of E(x) there."""
    split = getattr(dataset, part)
    outputs = _outputs(logits, params, jnp.asarray(dataset.rescale(split.image)))
    hits = jnp.argmax(outputs, axis=1) == jnp.asarray(split.label)
    return float(jnp.mean(hits)), float(-jnp.mean(jax.nn.logsumexp(outputs, axis=1)))


def judge_samples(
    config: Config, dataset: Dataset, params: Params, initial: ClassGaussianInitial
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Draws fresh chains of each class; returns them, their classes, and what an independent network says."""
    logits = make_network(config, dataset.num_classes).apply
    keys = jax.random.split(jax.random.key(config.seed + 1), 3)
    classes = jnp.tile(jnp.arange(dataset.num_classes), config.samples_per_class)

    @jax.jit
    def draw(params: Params, initial: ClassGaussianInitial) -> Array:
        start = jax.vmap(initial)(jax.random.split(keys[0], len(classes)), classes)
        return run_labelled_chains(
            keys[1],
            make_kernel(config),
            joint_energy(logits),
            params,
            start,
            classes,
            config.sample_steps,
        )

    samples, intended = np.asarray(draw(params, initial)), np.asarray(classes)
    images, labels = dataset.train
    judge = fit_feature_network(
        keys[2], dataset.rescale(images), labels, dataset.num_classes, epochs=config.judge_epochs
    )
    # The same number of real images as samples if possible, because the measures depend on it.
    real = judge.features(dataset.rescale(dataset.test.image[: len(samples)]))
    fake = judge.features(samples)
    compared = prdc(real, fake)
    found = {
        "number": len(samples),
        "rule": f"all fresh chains of {config.sample_steps} steps from the Gaussian of their class",
        "energy": float(-jnp.mean(jax.nn.logsumexp(_outputs(logits, params, jnp.asarray(samples)), axis=1))),
        "within_range": within_range(samples, *PIXELS),
        "judge": judge.name,
        "class_agreement": class_agreement(judge.predict(samples), intended),
        "precision": float(compared.precision),
        "coverage": float(compared.coverage),
        "frechet_distance": frechet_distance(real, fake),
    }
    return samples, intended, found


def main(config: Config) -> dict[str, Any]:
    """Trains, evaluates and writes the run's folder; returns the contents of speedrun.json."""
    began = time.monotonic()
    config.check()
    dataset = load_dataset(config.dataset)
    make_plan(config, len(dataset.train.label))
    run = open_run(config.output, as_json(config), overwrite=config.overwrite, resumable=False)
    fitting = time.monotonic()
    initial = make_initial(config, dataset)
    seconds_preparing = time.monotonic() - fitting
    params, took = train(config, dataset, initial)
    logits = make_network(config, dataset.num_classes).apply
    accuracy, energy_data = classify_all(logits, params, dataset, "test")
    samples, intended, found = judge_samples(config, dataset, params, initial)
    shown = np.asarray(dataset.restore(samples[: 10 * dataset.num_classes]))
    title = f"fresh chains of {config.sample_steps} steps, one column per class"
    image_grid(run.file("samples.png"), shown, columns=dataset.num_classes, title=title)
    np.savez_compressed(run.file("samples.npz"), image=samples, label=intended)
    result = {
        "experiment": "jem_cifar10_speedrun",
        "device": jax.devices()[0].device_kind,
        "seed": config.seed,
        "test_accuracy": accuracy,
        "energy_gap": energy_data - found["energy"],
        "seconds_preparing": seconds_preparing,
        **took,
        "seconds": time.monotonic() - began,
        "samples": found,
        "config": as_json(config),
    }
    run.write_json("speedrun.json", result)
    print(
        f"test accuracy {accuracy:.2%}, {took['seconds_training']:.1f} s of training "
        f"(+ {took['seconds_compiling']:.1f} s of compilation, {seconds_preparing:.1f} s for the Gaussians), "
        f"{took['images_per_second']:.0f} images/s on {result['device']}; samples: precision "
        f"{found['precision']:.2f}, coverage {found['coverage']:.2f}\nwritten to {run.path}"
    )
    return result


if __name__ == "__main__":
    run_experiment(Config, main)
