"""What a JEM run learns by, made from its configuration: batches, the loss, one update."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxebm.data import Dataset, next_batch, random_crop, random_flip, random_translation
from jaxebm.energies import marginal_energy, refresh_statistics, training_apply
from jaxebm.objectives import (
    Negatives,
    NegativeSampler,
    adversarial_examples,
    binary_energy_loss,
    classification_loss,
    contrastive_loss,
    joint_loss,
    last_step_loss,
)
from jaxebm.training import Placement, Sharpness, TrainStep, make_train_step
from jaxebm.types import Array, JointEnergyFn, LogitsFn, Metrics, Params
from jem_config import Config
from jem_sampler import PIXELS, make_chain_energy, make_kernel

__all__ = ["Batch", "Data", "Streams", "make_step"]


class Data(NamedTuple):
    """Training arrays, raw pixels: labelled examples, and the images log p(x) learns from."""

    labelled: tuple[Array | np.ndarray, Array | np.ndarray]
    images: Array | np.ndarray


class Streams(NamedTuple):
    """Places in the two halves of `Data`."""

    labelled: Any
    images: Any


class Batch(NamedTuple):
    """Rescaled, augmented, noisy examples."""

    x_labelled: Array
    labels: Array
    x_data: Array


def make_step(
    config: Config,
    dataset: Dataset,
    network: Any,
    optimizer: optax.GradientTransformation,
    negatives: NegativeSampler,
    placement: Placement | None,
) -> TrainStep:
    """Returns the pure function of one update."""
    # Batch normalisation learns with the statistics of the batch at hand; chains run on the running ones.
    learns_statistics = config.norm == "batch" and not config.freeze_statistics
    logits: LogitsFn = training_apply(network) if learns_statistics else network.apply
    chain_energy = make_chain_energy(config, network, dataset.image_shape)
    return make_train_step(
        energy=chain_energy,
        loss=_make_loss(config, logits, network.apply, chain_energy),
        optimizer=optimizer,
        negatives=negatives,
        next_batch=_make_take(config, dataset),
        start_of=lambda batch: (batch.x_labelled, batch.labels),
        refresh=None if config.freeze_statistics else partial(_refresh, network),
        ema_decay=config.ema_decay,
        placement=placement,
        sharpness=Sharpness(config.sharpness_rho, config.sharpness_adaptive)
        if config.sharpness_rho
        else None,
    )


def _refresh(network: Any, params: Params, batch: Batch) -> Params:
    return refresh_statistics(network, params, batch.x_data)


def _make_take(config: Config, dataset: Dataset) -> Any:
    """Returns ``(rng_key, data, streams) -> (batch, streams)``."""

    def noisy(rng_key: Array, x: Array) -> Array:
        return x + config.input_noise * jax.random.normal(rng_key, x.shape, x.dtype)

    def moved(rng_key: Array, x: Array, max_shift: float) -> Array:
        if max_shift == 0:
            return x
        keys = jax.random.split(rng_key, len(x))
        return jax.vmap(partial(random_translation, max_shift=max_shift))(keys, x)

    def cropped(rng_key: Array, x: Array) -> Array:
        key_crop, key_flip = jax.random.split(rng_key)
        if config.crop_padding > 0:
            crop = partial(random_crop, padding=config.crop_padding)
            x = jax.vmap(crop)(jax.random.split(key_crop, len(x)), x)
        return jax.vmap(random_flip)(jax.random.split(key_flip, len(x)), x) if config.flip else x

    def take(rng_key: Array, data: Data, streams: Streams) -> tuple[Batch, Streams]:
        keys = jax.random.split(rng_key, 8)
        size = config.batch_size
        (images, labels), labelled = next_batch(keys[0], streams.labelled, data.labelled, size)
        unlabelled, rest = next_batch(keys[1], streams.images, data.images, size)
        x_labelled, x_data = dataset.rescale(images), dataset.rescale(unlabelled)
        x_labelled = cropped(keys[6], moved(keys[3], x_labelled, config.max_shift))
        if config.augment_p_x:
            x_data = cropped(keys[7], moved(keys[5], x_data, config.max_shift_p_x))
        batch = Batch(noisy(keys[2], x_labelled), labels, noisy(keys[4], x_data))
        return batch, Streams(labelled, rest)

    return take


def _make_loss(
    config: Config, logits: LogitsFn, attacked_logits: LogitsFn, chain_energy: JointEnergyFn
) -> Any:
    """Returns ``(params, rng_key, batch, negatives) -> (loss, metrics)``."""

    def classify(params: Params, x: Array, batch: Batch) -> tuple[Array, Metrics]:
        return classification_loss(logits, params, x, batch.labels, label_smoothing=config.label_smoothing)

    def unconditional(params: Params, batch: Batch, samples: Negatives) -> tuple[Array, Metrics]:
        compare = binary_energy_loss if config.p_x_objective == "binary" else contrastive_loss
        value, metrics = compare(
            marginal_energy(logits), params, batch.x_data, samples.positions, energy_l2=config.energy_l2
        )
        return config.p_x_weight * value, metrics

    def joint(params: Params, x: Array, batch: Batch, samples: Negatives) -> tuple[Array, Metrics]:
        return joint_loss(
            logits,
            params,
            x,
            batch.labels,
            batch.x_data,
            samples.positions,
            labels_model=samples.labels,
            p_y_given_x_weight=config.p_y_given_x_weight,
            p_x_weight=config.p_x_weight,
            p_xy_weight=config.p_xy_weight,
            p_x_objective=config.p_x_objective,
            energy_l2=config.energy_l2,
            label_smoothing=config.label_smoothing,
        )

    def loss(params: Params, rng_key: Array, batch: Batch, samples: Negatives) -> tuple[Array, Metrics]:
        keys = jax.random.split(rng_key)
        x = batch.x_labelled
        if config.adversarial_radius > 0:
            x = adversarial_examples(
                *(keys[0], attacked_logits, params, x, batch.labels),
                radius=config.adversarial_radius,
                num_steps=config.adversarial_steps,
                state_clamp=PIXELS,
            )
        if not config.generative:
            return classify(params, x, batch)
        if config.task == "unconditional":
            value, metrics = unconditional(params, batch, samples)
        else:
            value, metrics = joint(params, x, batch, samples)
        if config.last_step_weight > 0:
            assert samples.labels is not None
            more, found = last_step_loss(
                *(keys[1], make_kernel(config), chain_energy, params, samples.positions, samples.labels),
                entropy_weight=config.neighbour_entropy_weight,
            )
            value, metrics = value + config.last_step_weight * more, metrics | found
        return value, metrics

    return loss
