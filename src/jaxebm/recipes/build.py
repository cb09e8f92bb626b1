"""The parts of a JEM run, built from its configuration: data, network, objective, learner, recovery."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxebm import checks
from jaxebm.data import Dataset, Examples, random_crop, random_flip, random_translation, stratified_subset
from jaxebm.energies import (
    MLP,
    ConvNet,
    LevelConvNet,
    LevelMLP,
    WideResNet,
    joint_energy,
    joint_energy_at,
    marginal_energy,
    marginal_energy_at,
    refresh_statistics,
    trainable,
    training_apply,
)
from jaxebm.objectives import (
    NegativeSampler,
    Objective,
    classifier,
    dual_score_matching,
    energy_matching,
    equilibrium_matching,
    jem,
    likelihood,
    recovery_likelihood,
    with_adversarial_examples,
    with_classification,
    with_last_step,
)
from jaxebm.recipes.config import Config
from jaxebm.recipes.devices import place
from jaxebm.recipes.level_network import LevelNetwork
from jaxebm.recipes.observe import make_observe
from jaxebm.recipes.recovery import recovery_for
from jaxebm.recipes.sampler import PIXELS, make_chain_energy, make_initial, make_kernel, make_negatives
from jaxebm.samplers import geometric_levels
from jaxebm.training import AugmentExample, Learner, Observe, Recovery, Sharpness, fingerprint, learner
from jaxebm.types import Array, LogitsFn, Params

__all__ = ["Training", "build", "make_network", "make_optimizer", "num_outputs"]


class Training(NamedTuple):
    """Everything that a run needs; built and checked before anything is compiled or written.

    Attributes:
      config: the configuration of the run.
      network: the Flax module, from one image to its logits.
      learner: the learner for `jaxebm.training.fit`.
      params: the initial parameters, or the network's ``init``.
      data: the training images, on this host.
      num_steps: updates in total.
      observe: the observation of the run, or None.
      recovery: the recovery from divergence, or None.
      fingerprint: the digest of the data.
    """

    config: Config
    network: Any
    learner: Learner
    params: Params
    data: Examples
    num_steps: int
    observe: Observe | None
    recovery: Recovery | None
    fingerprint: str


def num_outputs(config: Config, num_classes: int) -> int:
    """Returns the number of logits of the network: one per class, or one, which is minus the energy."""
    return 1 if config.task == "unconditional" else num_classes


def make_network(config: Config, num_classes: int) -> Any:
    """Returns the Flax module (or `LevelNetwork`) that maps one image to its logits."""
    parts = config.architecture
    dtype = None if parts.precision == "float32" else jnp.dtype(parts.precision)
    common: dict[str, Any] = {"activation": parts.activation, "dtype": dtype}
    outputs = num_outputs(config, num_classes)
    if config.uses_levels:
        clamp = PIXELS if config.sampler.clamp else None
        if config.network == "mlp":
            module: Any = LevelMLP(outputs, widths=parts.widths, **common)
        else:
            layers = {"channels": parts.channels, "blocks": parts.blocks, "widths": parts.hidden_widths}
            # Recovery likelihood does not see a constant of the level.
            module = LevelConvNet(outputs, level_offset=not config.recovers, **layers, **common)
        return LevelNetwork(module, config.levels, clamp, config.recovers)
    if config.network == "mlp":
        return MLP(outputs, widths=parts.widths, **common)
    common |= {"norm": None if parts.norm == "none" else parts.norm, "spectral_norm": parts.spectral_norm}
    if config.network == "convnet":
        return ConvNet(outputs, channels=parts.channels, **common)
    return WideResNet(outputs, depth=parts.depth, width=parts.width, remat=parts.remat, **common)


def make_data(config: Config, dataset: Dataset) -> Examples:
    """Returns the training split, on this host, with as many labels as the configuration sets.

    log p(x) learns from the training images with a label and those without.
    """
    images, labels = dataset.train
    x_data = images if dataset.unlabelled is None else np.concatenate([images, dataset.unlabelled])
    batch_size = config.data.batch_size
    checks.positive_integer("data.batch_size", batch_size)
    if batch_size > len(x_data):
        raise ValueError(f"data.batch_size={batch_size} exceeds the {len(x_data)} training images.")
    if config.task == "unconditional":
        return Examples(x_data)
    if dataset.num_classes < 2:
        raise ValueError(
            f"task='supervised' learns classes, and '{dataset.name}' has one class, or no labels: give "
            "labels of two classes or more, or set task='unconditional' (--task unconditional)."
        )
    if dataset.unlabelled is not None and config.generative and not config.uses_chains:
        raise ValueError(
            f"'{dataset.name}' has {len(dataset.unlabelled)} images without labels: "
            f"objective.method={config.objective.method} learns E(x, y) from labelled images alone. Leave "
            "them out, or take a recipe with chains, such as recipe=tuned."
        )
    wanted = config.data.labels_per_class
    if wanted is not None:
        rows = stratified_subset(labels, wanted, config.seed)
        images, labels = images[rows], labels[rows]
    if batch_size > len(images):
        raise ValueError(
            f"data.batch_size={batch_size} exceeds the {len(images)} labelled images: use at most "
            f"{len(images)}."
        )
    everything_labelled = wanted is None and dataset.unlabelled is None
    return Examples(images, labels, None if everything_labelled else x_data)


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """The optimiser and its schedule, for the parameters and not for running statistics."""
    settings = config.optimizer
    peak = settings.learning_rate
    warmup = min(settings.warmup_steps, max(num_steps // 10, 1))
    if settings.schedule == "cosine":
        floor = peak * settings.learning_rate_floor
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, num_steps, end_value=floor)
    else:
        epochs = settings.decay_epochs if settings.schedule == "steps" else ()
        falls = {num_steps * epoch // config.epochs - warmup: settings.decay_factor for epoch in epochs}
        schedule = optax.join_schedules(
            [optax.linear_schedule(0.0, peak, warmup), optax.piecewise_constant_schedule(peak, falls)],
            [warmup],
        )
    decay = settings.weight_decay
    if settings.kind == "muon":
        optimizer = muon(
            schedule,
            weight_decay=decay,
            adam_b1=settings.adam_b1,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=hidden_kernels,
            consistent_rms=1.0,  # the root mean square of an update is the learning rate, as in Adam
        )
    elif settings.kind == "adamw":
        optimizer = optax.adamw(schedule, b1=settings.adam_b1, weight_decay=decay)
    elif settings.kind == "adam":
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.adam(schedule, b1=settings.adam_b1))
    else:
        optimizer = optax.chain(
            optax.add_decayed_weights(decay), optax.sgd(schedule, momentum=settings.momentum)
        )
    if settings.gradient_clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(settings.gradient_clip_norm), optimizer)
    return trainable(optimizer)


def hidden_kernels(params: Params) -> Params:
    """Returns how Muon sees the kernels of hidden layers as matrices, and None of all other parameters.

    Hidden are convolutions of more than one channel and linear layers named ``hidden``. The first layer of
    grey images, the output, and layers of the noise level are left to Adam, as Muon's authors advise.
    """

    def dimensions(path: tuple[Any, ...], leaf: Array) -> MuonDimensionNumbers | None:
        *_, layer, parameter = ("", *(str(getattr(entry, "key", entry)) for entry in path))
        if parameter != "kernel":
            return None
        if leaf.ndim == 4 and leaf.shape[2] > 1:
            return MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
        if leaf.ndim == 2 and layer.startswith("hidden_"):
            return MuonDimensionNumbers(reduction_axis=0, output_axis=1)
        return None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def make_augment(config: Config, max_shift: float) -> AugmentExample | None:
    """Returns the augmentation of one image (shift, crop, mirror); None without augmentation."""
    data = config.data
    if not data.crop_padding and not data.flip:
        return partial(random_translation, max_shift=max_shift) if max_shift else None

    def augment(rng_key: Array, image: Array) -> Array:
        keys = jax.random.split(rng_key, 3)
        if max_shift:
            image = random_translation(keys[0], image, max_shift)
        if data.crop_padding:
            image = random_crop(keys[1], image, data.crop_padding)
        return random_flip(keys[2], image) if data.flip else image

    return augment


def make_objective(config: Config, network: Any, image_shape: tuple[int, ...]) -> Objective:
    """Returns the training objective."""
    settings, architecture = config.objective, config.architecture
    logits: LogitsFn = network.apply
    # Batch normalisation uses the statistics of the batch in the loss, and running statistics in chains.
    learns_statistics = architecture.norm == "batch" and not architecture.freeze_statistics
    training_logits = training_apply(network) if learns_statistics else None
    chain_energy = make_chain_energy(config, network, image_shape)
    if config.generative and not config.uses_chains:
        return make_without_chains(config, network)
    if not config.generative:
        objective = classifier(
            logits, label_smoothing=settings.label_smoothing, training_logits=training_logits
        )
    elif config.task == "unconditional":
        objective = likelihood(
            marginal_energy(logits),
            energy_l2=settings.energy_l2,
            contrast=settings.contrast,
            weight=settings.p_x_weight,
            training_energy=None if training_logits is None else marginal_energy(training_logits),
        )
        if chain_energy is not None:
            objective = objective._replace(energy=chain_energy)
    else:
        objective = jem(
            logits,
            p_y_given_x_weight=settings.p_y_given_x_weight,
            p_x_weight=settings.p_x_weight,
            p_xy_weight=settings.p_xy_weight,
            chains=config.sampler.chains,
            contrast=settings.contrast,
            energy_l2=settings.energy_l2,
            label_smoothing=settings.label_smoothing,
            training_logits=training_logits,
            chain_energy=chain_energy,
        )
    if settings.adversarial_radius > 0:
        objective = with_adversarial_examples(
            objective,
            logits,
            radius=settings.adversarial_radius,
            num_steps=settings.adversarial_steps,
            state_clamp=PIXELS,
        )
    if settings.last_step_weight > 0:
        objective = with_last_step(
            objective,
            make_kernel(config),
            weight=settings.last_step_weight,
            entropy_weight=settings.neighbour_entropy_weight,
        )
    return objective


def make_without_chains(config: Config, network: Any) -> Objective:
    """Returns the objective of a method that is given no negatives: E(x) or E(x, y), and cross-entropy."""
    settings = config.objective
    conditional = settings.p_xy_weight > 0
    logits: LogitsFn = network.apply
    weight = settings.p_xy_weight if conditional else settings.p_x_weight
    levels = config.levels
    if config.recovers:
        objective = recovery_likelihood(
            (joint_energy_at if conditional else marginal_energy_at)(network.logits_at),
            levels=geometric_levels(levels.highest, levels.lowest, levels.count),
            num_steps=config.sampler.num_steps,
            step_factor=levels.step_factor,
            weight=weight,
        )
    elif config.uses_levels:
        objective = dual_score_matching(
            (joint_energy_at if conditional else marginal_energy_at)(network.logits_at),
            lowest=levels.lowest,
            highest=levels.highest,
            level_median=levels.median,
            level_spread=levels.spread,
            data_scale=levels.data_scale,
            level_weight=levels.derivative_weight,
            class_weight=levels.p_y_given_x_weight if conditional else 0.0,
            anchor_weight=0.0,
            weight=weight,
        )
    else:
        make = energy_matching if settings.method == "energy-matching" else equilibrium_matching
        objective = make(
            joint_energy(logits) if conditional else marginal_energy(logits),
            scale=settings.matching_scale,
            coupling=settings.coupling,
            weight=weight,
        )
    if settings.p_y_given_x_weight == 0:
        return objective
    return with_classification(
        objective,
        logits,
        weight=settings.p_y_given_x_weight,
        label_smoothing=settings.label_smoothing,
        augment=make_augment(config, config.data.max_shift),
    )


def build(config: Config, dataset: Dataset, params: Params | None = None) -> Training:
    """Builds all parts of a run, and checks the settings before a folder is made or anything is compiled.

    Args:
      config: the configuration of the run.
      dataset: the images.
      params: initial parameters, such as those of a pretraining; None initialises them at random.

    Returns:
      The parts of the run.

    Raises:
      ValueError: for settings that do not fit the data or each other.

    Example:
      >>> from jaxebm.data import load_dataset
      >>> build(Config(), load_dataset("digits")).num_steps
      1900
    """
    checks.instance("config", config, Config, "jaxebm.recipes.base_config makes one.")
    checks.instance("dataset", dataset, Dataset, "jaxebm.data.load_dataset gives one.")
    config.check()
    data = make_data(config, dataset)
    batch_size = config.data.batch_size
    smallest = min(dataset.image_shape[:2])
    if config.data.crop_padding >= smallest:
        raise ValueError(
            f"data.crop_padding={config.data.crop_padding} must be below the side of the images, {smallest}."
        )
    num_steps = config.epochs * (len(data.x_data) // batch_size)
    if num_steps > jnp.iinfo(jnp.int32).max:
        raise ValueError(f"epochs={config.epochs} are {num_steps} updates: fewer than 2^31 can be counted.")
    network = make_network(config, dataset.num_classes)
    # Checks the network, too.
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(dataset.image_shape))
    if params is not None and not callable(params):
        checks.same_shapes("params", params, "those of the network", shapes)
    placement = place(config.devices, config.parallel)
    strata = 1 if placement is None else placement.num_strata
    for name, size in (
        ("data.batch_size", batch_size),
        ("sampler.num_chains", config.sampler.num_chains),
        ("sampler.buffer_size", config.sampler.buffer_size),
    ):
        if size % strata:
            raise ValueError(f"{name}={size} must be a multiple of parallel.strata={strata}.")
    num_classes = num_outputs(config, dataset.num_classes)
    if config.uses_chains and config.sampler.negatives == "persistent":
        slots, unit = config.sampler.buffer_size, num_classes * strata
        if slots % unit:
            raise ValueError(
                f"sampler.buffer_size={slots} must be a multiple of num_classes={num_classes} times "
                f"parallel.strata={strata}; {-(-slots // unit) * unit} is the next one."
            )
    starts_anew = config.uses_chains and config.sampler.negatives != "contrastive-divergence"
    initial = make_initial(config, dataset) if starts_anew else None
    optimizer = make_optimizer(config, num_steps)
    augment = make_augment(config, config.data.max_shift)
    augment_x_data = make_augment(config, config.data.max_shift_p_x) if config.data.augment_p_x else None
    if config.generative and not config.uses_chains and config.task == "supervised":
        # Shifts and crops of the labelled images are for the cross-entropy alone (`make_without_chains`).
        augment = random_flip if config.data.flip and config.data.augment_p_x else None
    frozen = config.architecture.freeze_statistics
    rho = config.optimizer.sharpness_rho

    def make_parts(config: Config) -> tuple[Objective, NegativeSampler | None]:
        objective = make_objective(config, network, dataset.image_shape)
        return objective, make_negatives(config, initial, num_classes, placement)

    def make_learner(objective: Objective, negatives: NegativeSampler | None) -> Learner:
        return learner(
            objective,
            optimizer=optimizer,
            negatives=negatives,
            batch_size=batch_size,
            noise=config.data.noise,
            augment=augment_x_data if config.task == "unconditional" else augment,
            augment_x_data=augment_x_data,
            rescale=dataset.rescale,
            ema_decay=config.optimizer.ema_decay,
            refresh=None if frozen or config.uses_levels else partial(refresh_statistics, network),
            sharpness=Sharpness(rho, config.optimizer.sharpness_adaptive) if rho else None,
            placement=placement,
        )

    objective, negatives = make_parts(config)
    return Training(
        config,
        network,
        make_learner(objective, negatives),
        network.init if params is None else params,
        data,
        num_steps,
        make_observe(config, dataset, network.apply, objective.energy, negatives),
        recovery_for(config, lambda remedied: make_learner(*make_parts(remedied)), config.run.snapshots),
        fingerprint(data),
    )
