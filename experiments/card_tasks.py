"""What the sampler is good for: filling in, removing noise, composing classes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jem_plots
from card_parts import Evaluation, advance, flat, log_probabilities, start_chains, without_label
from card_samples import Judges
from jaxebm.energies import (
    clamp,
    complement_energy,
    fill,
    joint_energy,
    marginal_energy,
    mixture,
    product,
)
from jaxebm.samplers import run_chain
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, JointEnergyFn, Params

__all__ = ["judge_tasks"]

SHOWN = 10
"""Images in a row of the pictures."""
DRAWS = 4
"""Chains that fill in each image."""


def judge_tasks(evaluation: Evaluation, judges: Judges) -> dict[str, Any] | None:
    """Runs all of them on the first test images and draws them; None where they are not asked for."""
    if not evaluation.flags.tasks:
        return None
    images = evaluation.images["test"][: evaluation.flags.task_images]
    return {
        "images": len(images),
        "steps": evaluation.flags.task_steps,
        "inpainting": _inpaint(evaluation, judges, images),
        "denoising": _denoise(evaluation, images),
        "composition": _compose(evaluation, judges),
    }


def _inpaint(evaluation: Evaluation, judges: Judges, images: np.ndarray) -> dict[str, Any]:
    """The lower half is hidden; chains of p(x) given the upper half fill it in, from noise."""
    model, flags = evaluation.model, evaluation.flags
    labels = evaluation.dataset.test.label[: len(images)]
    seen = np.zeros(evaluation.dataset.image_shape, bool)
    seen[: seen.shape[0] // 2] = True
    mask, marginal = jnp.asarray(seen), marginal_energy(model.logits)

    @jax.jit
    def draw(rng_key: Array, params: Params, observed: Array) -> Array:
        keys = jax.random.split(rng_key, 3)
        classes = jax.random.randint(keys[0], (len(observed),), 0, evaluation.dataset.num_classes)
        noise = start_chains(keys[1], model.initial, classes)
        starts = jax.vmap(fill, (0, None, 0))(noise, mask, observed)

        def one(rng_key: Array, start: Array, values: Array) -> Array:
            # Each image conditions the energy by itself.
            kernel = model.kernel(lambda x: clamp(marginal, mask, values)(params, x))
            state, _ = run_chain(rng_key, kernel, start, flags.task_steps)
            return fill(state.position, mask, values)

        chain_keys = jax.random.split(keys[2], len(observed))
        return jax.vmap(one, axis_name=BATCH_AXIS)(chain_keys, starts, observed)

    drawn = np.stack(
        [
            np.asarray(draw(key, model.params, jnp.asarray(images)))
            for key in jax.random.split(evaluation.key(8), DRAWS)
        ]
    )
    average = np.asarray(evaluation.images["train"].mean(axis=0))
    plain = np.where(seen, images, average)

    def error(filled: np.ndarray) -> float:
        return float(np.mean((filled - images)[:, ~seen] ** 2))

    def kept(filled: np.ndarray) -> float:
        return float(np.mean(judges.predict(filled) == labels))

    hidden = np.where(seen, images, 0.0)
    rows = {"test image": images, "what is seen": hidden, "filled in": drawn[0], "mean filled in": plain}
    _draw_rows(evaluation, "inpainting", rows)
    return {
        "mse": error(drawn[0]),
        "mse_of_mean": error(drawn.mean(axis=0)),
        "mse_mean_fill": error(plain),
        "class_kept": kept(drawn[0]),
        "class_kept_mean_fill": kept(plain),
        "class_kept_whole": kept(images),
        "draws": DRAWS,
    }


def _denoise(evaluation: Evaluation, images: np.ndarray) -> dict[str, Any]:
    """Gaussian noise is added; the sampler starts from the noisy image."""
    flags = evaluation.flags
    keys = jax.random.split(evaluation.key(9))
    noise = np.asarray(jax.random.normal(keys[0], images.shape))
    noisy = np.clip(images + flags.task_noise * noise, -1.0, 1.0).astype(np.float32)
    after = _refined(evaluation, keys[1], noisy)
    rows = {"test image": images} | {f"after {steps} steps": xs for steps, xs in after.items()}
    _draw_rows(evaluation, "denoising", rows)
    return {
        "noise": flags.task_noise,
        "mse": {str(steps): float(np.mean((xs - images) ** 2)) for steps, xs in after.items()},
        "accuracy": _accuracies(evaluation, after),
    }


def _refined(evaluation: Evaluation, rng_key: Array, images: np.ndarray) -> dict[int, np.ndarray]:
    """Returns images before, and after each number of refinement steps of chains on p(x)."""
    model = evaluation.model
    run = advance(model, without_label(marginal_energy(model.logits)))
    labels = jnp.zeros(len(images), jnp.int32)
    after = {0: images}
    for steps in evaluation.flags.refinement_steps:
        if steps:
            xs = run(
                rng_key, params=model.params, positions=jnp.asarray(images), labels=labels, num_steps=steps
            )
            after[steps] = np.asarray(xs)
    return after


def _accuracies(evaluation: Evaluation, after: dict[int, np.ndarray]) -> dict[str, float] | None:
    """Accuracy of the model's own classifier after each number of steps."""
    model = evaluation.model
    if not evaluation.classes:
        return None
    found = {}
    for steps, xs in after.items():
        predicted = log_probabilities(model.logits, model.params, xs).argmax(axis=1)
        found[str(steps)] = float(np.mean(predicted == evaluation.dataset.test.label[: len(xs)]))
    return found


def _compose(evaluation: Evaluation, judges: Judges) -> dict[str, Any] | None:
    """Chains on energies that are made of those of two classes, of those whose mean images are closest."""
    model, dataset, flags = evaluation.model, evaluation.dataset, evaluation.flags
    if not evaluation.classes or dataset.num_classes < 2:
        return None
    first, second = _alike(evaluation)
    joint, complement = joint_energy(model.logits), complement_energy(model.logits)

    def of(energy: JointEnergyFn, label: int) -> EnergyFn:
        return lambda params, x: energy(params, x, jnp.asarray(label))

    this, that = of(joint, first), of(joint, second)
    composed: dict[str, Callable[..., Array]] = {
        "this": product(this),
        "and": product(this, that),
        "or": mixture(this, that),
        "not": product(this, of(complement, second)),
    }
    names = dataset.class_names[first], dataset.class_names[second]
    titles = {
        "this": names[0],
        "and": f"{names[0]} AND {names[1]}",
        "or": f"{names[0]} OR {names[1]}",
        "not": f"{names[0]} AND NOT {names[1]}",
    }
    card: dict[str, Any] = {"this_class": names[0], "that_class": names[1]}
    rows = {}
    for part, (name, energy) in enumerate(composed.items()):
        count = 1 if name == "this" else 2
        keys = jax.random.split(jax.random.fold_in(evaluation.key(12), part), 3)
        labels = jnp.where(jax.random.bernoulli(keys[0], shape=(flags.task_images,)), first, second)
        starts = start_chains(keys[1], model.initial, labels)
        run = advance(model, without_label(energy))
        xs = np.asarray(
            run(
                keys[2],
                params=(model.params,) * count,
                positions=starts,
                labels=labels,
                num_steps=flags.task_steps,
            )
        )
        predicted = judges.predict(xs)
        probability = np.exp(log_probabilities(model.logits, model.params, xs)).mean(axis=0)
        card[name] = {
            "share_this": float(np.mean(predicted == first)),
            "share_that": float(np.mean(predicted == second)),
            "probability_this": float(probability[first]),
            "probability_that": float(probability[second]),
        }
        rows[titles[name]] = xs
    _draw_rows(evaluation, "composition", rows)
    return card


def _alike(evaluation: Evaluation) -> tuple[int, int]:
    """The two classes whose mean training images are closest: a rule, so that nobody chooses."""
    train, labels = evaluation.images["train"], evaluation.dataset.train.label
    means = np.stack([flat(train)[labels == y].mean(axis=0) for y in range(evaluation.dataset.num_classes)])
    distances = np.sum((means[:, None] - means[None]) ** 2, axis=2)
    np.fill_diagonal(distances, np.inf)
    first, second = np.unravel_index(np.argmin(distances), distances.shape)
    return int(first), int(second)


def _draw_rows(evaluation: Evaluation, name: str, rows: dict[str, np.ndarray]) -> None:
    shown = {title: np.asarray(evaluation.dataset.restore(xs[:SHOWN])) for title, xs in rows.items()}
    jem_plots.labelled_rows(evaluation.folder / f"{name}.png", shown)
