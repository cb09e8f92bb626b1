"""Can the sampler solve other tasks? Inpainting, denoising, composition of classes."""

from collections.abc import Callable
from typing import Any, get_args

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
from jaxebm.report.level_tasks import (
    Relation,
    compose_along,
    denoise_along,
    fill_along,
    num_filling_gradients,
    num_filling_levels,
)
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
        "along_levels": evaluation.model.path is not None,
        "inpainting": _inpaint(evaluation, judges, images),
        "denoising": _denoise(evaluation, images),
        "composition": _compose(evaluation, judges),
    }
    return {"tasks": entry}


def _inpaint(evaluation: Evaluation, judges: Judges, images: np.ndarray) -> dict[str, Any]:
    """The lower half is hidden; chains of p(x) given the upper half fill it in, from noise."""
    model = evaluation.model
    labels = evaluation.dataset.test.label[: len(images)]
    seen = np.zeros(evaluation.dataset.image_shape, bool)
    seen[: seen.shape[0] // 2] = True
    run = _filling_chains(evaluation, jnp.asarray(seen))

    @jax.jit
    def draw(rng_key: Array, params: Params, observed: Array) -> Array:
        keys = jax.random.split(rng_key, 3)
        classes = jax.random.randint(keys[0], (len(observed),), 0, evaluation.dataset.num_classes)
        return run(keys[2], params, start_chains(keys[1], model.initial, classes), observed)

    draws = (
        np.asarray(draw(key, model.params, jnp.asarray(images)))
        for key in jax.random.split(evaluation.key(8), DRAWS)
    )
    drawn = np.stack(list(draws))
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


def _filling_chains(evaluation: Evaluation, mask: Array) -> Callable[..., Array]:
    """Returns chains of p(x) given the pixels of a mask, which start from noise."""
    model, steps = evaluation.model, evaluation.settings.task_steps
    if model.path is not None:
        spread = max(float(evaluation.images["train"].std()), model.path.lowest)  # above 0 for blank images
        return fill_along(model.path, mask, spread, steps)
    marginal = marginal_energy(model.logits)

    def run(rng_key: Array, params: Params, positions: Array, observed: Array) -> Array:
        starts = jax.vmap(fill, (0, None, 0))(positions, mask, observed)

        def one(rng_key: Array, start: Array, values: Array) -> Array:
            # Each image has its own conditional energy.
            kernel = model.kernel(lambda x: clamp(marginal, mask, values)(params, x))
            state, _ = run_chain(rng_key, kernel, start, steps)
            return fill(state.position, mask, values)

        keys = jax.random.split(rng_key, len(observed))
        return jax.vmap(one, axis_name=BATCH_AXIS)(keys, starts, observed)

    return run


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
    """Returns images before refinement and after each number of steps of chains on p(x).

    A model that is told noise levels goes down its path from the level of the noise, in one step and in ten,
    whatever the settings, because it costs little.
    """
    model, settings = evaluation.model, evaluation.settings
    after = {0: images}
    if model.path is not None:
        for steps in sorted({1, 10, *settings.refinement_steps} - {0}):
            after[steps] = denoise_along(
                model.path, model.params, rng_key, images, settings.task_noise, num_steps=steps
            )
        return after
    run = advance(model.kernel, ignore_label(marginal_energy(model.logits)))
    labels = jnp.zeros(len(images), jnp.int32)
    for steps in settings.refinement_steps:
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
    run = _composed_chains(evaluation, first, second)
    names = dataset.class_names[first], dataset.class_names[second]
    titles = _titles(*names)
    card: dict[str, Any] = {"this_class": names[0], "that_class": names[1]}
    rows = {}
    for part, name in enumerate(get_args(Relation)):
        keys = jax.random.split(jax.random.fold_in(evaluation.key(12), part), 3)
        labels = jnp.where(jax.random.bernoulli(keys[0], shape=(settings.task_images,)), first, second)
        xs = run(keys[2], name, start_chains(keys[1], model.initial, labels), labels)
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


def _composed_chains(
    evaluation: Evaluation, first: int, second: int
) -> Callable[[Array, Relation, Array, Array], np.ndarray]:
    """Returns chains of two composed classes, of a key, the relation, their starts and those' labels."""
    model, steps = evaluation.model, evaluation.settings.task_steps
    path = model.path
    if path is not None:
        return lambda rng_key, relation, starts, labels: compose_along(
            path, model.params, rng_key, starts, relation, (first, second), steps
        )
    joint, complement = joint_energy(model.logits), complement_energy(model.logits)

    def of(energy: JointEnergyFn, label: int) -> EnergyFn:
        return lambda params, x: energy(params, x, jnp.asarray(label))

    this, that = of(joint, first), of(joint, second)
    composed: dict[Relation, tuple[EnergyFn, int]] = {
        "this": (product(this), 1),
        "and": (product(this, that), 2),
        "or": (mixture(this, that), 2),
        "not": (product(this, of(complement, second)), 2),
    }

    def run(rng_key: Array, relation: Relation, starts: Array, labels: Array) -> np.ndarray:
        energy, count = composed[relation]
        chains = advance(model.kernel, ignore_label(energy))
        params = (model.params,) * count
        return np.asarray(chains(rng_key, params=params, positions=starts, labels=labels, num_steps=steps))

    return run


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
    found = [_inpainting(tasks), _denoising(tasks)]
    return found if tasks["composition"] is None else [*found, _composition(tasks)]


def _inpainting(tasks: Card) -> Section:
    entry = tasks["inpainting"]
    rows = [
        table_row("one chain", entry["mse"], entry["class_kept"]),
        table_row(f"mean of {entry['draws']} chains", entry["mse_of_mean"], None),
        table_row("mean training image", entry["mse_mean_fill"], entry["class_kept_mean_fill"]),
        table_row("whole image", 0.0, entry["class_kept_whole"]),
    ]
    how = f"{plural(tasks['steps'], 'step')} from noise"
    if tasks.get("along_levels"):
        levels, gradients = num_filling_levels(tasks["steps"]), num_filling_gradients(tasks["steps"])
        how = f"from noise through {plural(levels, 'noise level')}, {plural(gradients, 'gradient')} each"
    return Section(
        "Inpainting",
        f"The lower half of {plural(tasks['images'], 'test image')} is hidden; chains of p(x) given the "
        f"upper half fill it in, {how}. Class kept: an independent "
        "classifier still sees the image's class.",
        tables=[Table("Of the hidden half", ["filled in by", "mean squared error", "class kept"], rows)],
        pictures=[Picture("inpainting", "The first test images; one chain each, none is selected.")],
    )


def _denoising(tasks: Card) -> Section:
    entry = tasks["denoising"]
    rows = [table_row("mean squared error", *entry["mse"].values())]
    if entry["accuracy"] is not None:
        rows.append(table_row("accuracy", *entry["accuracy"].values()))
    caption = f"Gaussian noise of standard deviation {entry['noise']:g}"
    how = "The sampler starts from a noisy image and runs on p(x)."
    if tasks.get("along_levels"):
        how = (
            "A path of p(x) starts from a noisy image at the level of its noise. One step is the posterior "
            "mean, which has the least mean squared error; more steps draw from the posterior."
        )
    return Section(
        "Denoising",
        f"{how} Accuracy is that of the model's own classifier.",
        tables=[Table(caption, ["sampler steps", *entry["mse"]], rows)],
        pictures=[Picture("denoising", "The first test images, with noise, and after the sampler.")],
    )


def _composition(tasks: Card) -> Section:
    entry = tasks["composition"]
    this, that = (escape_markdown(entry[name]) for name in ("this_class", "that_class"))
    measures = [f"{kind}_{which}" for kind in ("share", "probability") for which in ("this", "that")]
    rows = [
        table_row(title, *(entry[name][measure] for measure in measures))
        for name, title in _titles(this, that).items()
    ]
    header = ["energy", f"judged {this}", f"judged {that}", f"p({this}|x)", f"p({that}|x)"]
    how = (
        "Energies add up: AND is E(x, a) + E(x, b), OR is -logsumexp of both, AND NOT is "
        "E(x, a) - log(1 - p(b|x))."
    )
    if tasks.get("along_levels"):
        how = (
            "At every noise level the energy is E(x) - s log p, with the guidance s of the model's samples: "
            "p is p(a|x) p(b|x) for AND, p(a|x) + p(b|x) for OR and p(a|x) (1 - p(b|x)) for AND NOT."
        )
    return Section(
        "Composition",
        f"{how} The two classes are those whose mean images are closest. Judged: by "
        "an independent classifier; p(y|x): the mean over samples, by the model itself.",
        tables=[Table("Shares of the samples", header, rows)],
        pictures=[Picture("composition", "The first chains of each composed energy.")],
    )


TASKS = Question("tasks", judge, summary, sections, ("inpainting.png", "denoising.png", "composition.png"))
