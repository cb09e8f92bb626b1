"""Can the sampler solve other tasks? Inpainting, denoising, composition of classes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.energies import (
    clamp,
    complement_energy,
    fill,
    joint_energy,
    marginal_energy,
    mixture,
    product,
)
from jaxebm.objectives import ignore_label
from jaxebm.report.chains import advance, is_finite, start_chains
from jaxebm.report.figures import labelled_rows
from jaxebm.report.judges import Judges, independent_judges
from jaxebm.report.markdown import escape_markdown
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, plural, table_row
from jaxebm.report.subject import Evaluation, flat, log_probabilities
from jaxebm.samplers import run_chain
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, JointEnergyFn, Params

__all__ = ["TASKS"]

SHOWN = 10
"""Images in each row of the pictures."""
DRAWS = 4
"""Inpainting chains for each image."""


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Runs all tasks on the first test images and draws them; None if they are off."""
    settings = evaluation.settings
    if not settings.tasks:
        return {"tasks": None}
    images, judges = evaluation.images["test"][: settings.task_images], evaluation.once(independent_judges)
    entry = {
        "images": len(images),
        "steps": settings.task_steps,
        "inpainting": _inpaint(evaluation, judges, images),
        "denoising": _denoise(evaluation, images),
        "composition": _compose(evaluation, judges),
    }
    return {"tasks": entry}


def _inpaint(evaluation: Evaluation, judges: Judges, images: np.ndarray) -> dict[str, Any]:
    """The lower half is hidden; chains of p(x) given the upper half fill it in, from noise."""
    model, settings = evaluation.model, evaluation.settings
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
            # Each image has its own conditional energy.
            kernel = model.kernel(lambda x: clamp(marginal, mask, values)(params, x))
            state, _ = run_chain(rng_key, kernel, start, settings.task_steps)
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

    def error(filled: np.ndarray) -> float | None:
        return _mean_square((filled - images)[:, ~seen])

    def kept(filled: np.ndarray) -> float:
        return float(np.mean(_classes(judges, filled) == labels))

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


def _mean_square(differences: np.ndarray) -> float | None:
    """The mean over the images whose chain did not diverge; None if all diverged."""
    rows = differences.reshape(len(differences), -1)
    rows = rows[np.isfinite(rows).all(axis=1)]
    return float(np.mean(rows**2)) if len(rows) else None


def _classes(judges: Judges, images: np.ndarray) -> np.ndarray:
    """The class of each image to an independent classifier, -1 for chains that diverged."""
    whole, classes = is_finite(images), np.full(len(images), -1)
    if whole.any():
        classes[whole] = judges.predict(images[whole])
    return classes


def _denoise(evaluation: Evaluation, images: np.ndarray) -> dict[str, Any]:
    """Gaussian noise is added; the sampler starts from the noisy image."""
    settings = evaluation.settings
    keys = jax.random.split(evaluation.key(9))
    noise = np.asarray(jax.random.normal(keys[0], images.shape))
    noisy = np.clip(images + settings.task_noise * noise, -1.0, 1.0).astype(np.float32)
    after = _refined(evaluation, keys[1], noisy)
    rows = {"test image": images} | {f"after {plural(steps, 'step')}": xs for steps, xs in after.items()}
    _draw_rows(evaluation, "denoising", rows)
    return {
        "noise": settings.task_noise,
        "mse": {str(steps): _mean_square(xs - images) for steps, xs in after.items()},
        "accuracy": _accuracies(evaluation, after),
    }


def _refined(evaluation: Evaluation, rng_key: Array, images: np.ndarray) -> dict[int, np.ndarray]:
    """Returns images before refinement and after each number of steps of chains on p(x)."""
    model = evaluation.model
    run = advance(model.kernel, ignore_label(marginal_energy(model.logits)))
    labels = jnp.zeros(len(images), jnp.int32)
    after = {0: images}
    for steps in evaluation.settings.refinement_steps:
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
        hits = (predicted == evaluation.dataset.test.label[: len(xs)]) & is_finite(xs)
        found[str(steps)] = float(np.mean(hits))
    return found


def _compose(evaluation: Evaluation, judges: Judges) -> dict[str, Any] | None:
    """Chains on compositions of the energies of two classes, those whose mean images are closest."""
    model, dataset, settings = evaluation.model, evaluation.dataset, evaluation.settings
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
    titles = _titles(*names)
    card: dict[str, Any] = {"this_class": names[0], "that_class": names[1]}
    rows = {}
    for part, (name, energy) in enumerate(composed.items()):
        count = 1 if name == "this" else 2
        keys = jax.random.split(jax.random.fold_in(evaluation.key(12), part), 3)
        labels = jnp.where(jax.random.bernoulli(keys[0], shape=(settings.task_images,)), first, second)
        starts = start_chains(keys[1], model.initial, labels)
        run = advance(model.kernel, ignore_label(energy))
        xs = np.asarray(
            run(
                keys[2],
                params=(model.params,) * count,
                positions=starts,
                labels=labels,
                num_steps=settings.task_steps,
            )
        )
        predicted, whole = _classes(judges, xs), xs[is_finite(xs)]
        card[name] = {
            "share_this": float(np.mean(predicted == first)),
            "share_that": float(np.mean(predicted == second)),
            "probability_this": None,
            "probability_that": None,
        }
        if len(whole):
            probability = np.exp(log_probabilities(model.logits, model.params, whole)).mean(axis=0)
            card[name] |= {
                "probability_this": float(probability[first]),
                "probability_that": float(probability[second]),
            }
        rows[titles[name]] = xs
    _draw_rows(evaluation, "composition", rows)
    return card


def _alike(evaluation: Evaluation) -> tuple[int, int]:
    """The two classes whose mean training images are closest: a fixed rule, without selection by hand."""
    train, labels = evaluation.images["train"], evaluation.dataset.train.label
    means = np.stack([flat(train)[labels == y].mean(axis=0) for y in range(evaluation.dataset.num_classes)])
    distances = np.sum((means[:, None] - means[None]) ** 2, axis=2)
    np.fill_diagonal(distances, np.inf)
    first, second = np.unravel_index(np.argmin(distances), distances.shape)
    return int(first), int(second)


def _draw_rows(evaluation: Evaluation, name: str, rows: dict[str, np.ndarray]) -> None:
    shown = {title: np.asarray(evaluation.dataset.restore(xs[:SHOWN])) for title, xs in rows.items()}
    evaluation.draw(labelled_rows, f"{name}.png", shown)


def _titles(this: str, that: str) -> dict[str, str]:
    return {
        "this": this,
        "and": f"{this} AND {that}",
        "or": f"{this} OR {that}",
        "not": f"{this} AND NOT {that}",
    }


def summary(card: Card) -> list[SummaryRow]:
    """No row: the tasks have sections of their own."""
    del card
    return []


def sections(card: Card) -> list[Section]:
    """One section per task."""
    tasks = card.get("tasks")
    if tasks is None:
        return []
    found = [_inpainting(tasks), _denoising(tasks["denoising"])]
    return found if tasks["composition"] is None else [*found, _composition(tasks["composition"])]


def _inpainting(tasks: Card) -> Section:
    entry = tasks["inpainting"]
    rows = [
        table_row("one chain", entry["mse"], entry["class_kept"]),
        table_row(f"mean of {entry['draws']} chains", entry["mse_of_mean"], None),
        table_row("mean training image", entry["mse_mean_fill"], entry["class_kept_mean_fill"]),
        table_row("whole image", 0.0, entry["class_kept_whole"]),
    ]
    return Section(
        "Inpainting",
        f"The lower half of {plural(tasks['images'], 'test image')} is hidden; chains of p(x) given the "
        f"upper half fill it in, {plural(tasks['steps'], 'step')} from noise. Class kept: an independent "
        "classifier still sees the image's class.",
        tables=[Table("Of the hidden half", ["filled in by", "mean squared error", "class kept"], rows)],
        pictures=[Picture("inpainting", "The first test images; one chain each, none is selected.")],
    )


def _denoising(entry: Card) -> Section:
    rows = [table_row("mean squared error", *entry["mse"].values())]
    if entry["accuracy"] is not None:
        rows.append(table_row("accuracy", *entry["accuracy"].values()))
    caption = f"Gaussian noise of standard deviation {entry['noise']:g}"
    return Section(
        "Denoising",
        "The sampler starts from a noisy image and runs on p(x). Accuracy is that of the model's own "
        "classifier.",
        tables=[Table(caption, ["sampler steps", *entry["mse"]], rows)],
        pictures=[Picture("denoising", "The first test images, with noise, and after the sampler.")],
    )


def _composition(entry: Card) -> Section:
    this, that = (escape_markdown(entry[name]) for name in ("this_class", "that_class"))
    measures = [f"{kind}_{which}" for kind in ("share", "probability") for which in ("this", "that")]
    rows = [
        table_row(title, *(entry[name][measure] for measure in measures))
        for name, title in _titles(this, that).items()
    ]
    header = ["energy", f"judged {this}", f"judged {that}", f"p({this}|x)", f"p({that}|x)"]
    return Section(
        "Composition",
        "Energies add up: AND is E(x, a) + E(x, b), OR is -logsumexp of both, AND NOT is "
        "E(x, a) - log(1 - p(b|x)). The two classes are those whose mean images are closest. Judged: by "
        "an independent classifier; p(y|x): the mean over samples, by the model itself.",
        tables=[Table("Shares of the samples", header, rows)],
        pictures=[Picture("composition", "The first chains of each composed energy.")],
    )


TASKS = Question("tasks", judge, summary, sections, ("inpainting.png", "denoising.png", "composition.png"))
