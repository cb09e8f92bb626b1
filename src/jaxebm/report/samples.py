"""How good are new samples? Fresh chains, separate from those of the replay buffer, used in training."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.energies import joint_energy, marginal_energy
from jaxebm.evaluation import (
    frechet_distance,
    nearest_neighbours,
    prdc,
    prdc_by_class,
    within_range,
)
from jaxebm.objectives import ignore_label
from jaxebm.report.chains import Samples, finite, fresh_chains
from jaxebm.report.export import EXPORTED, SAMPLES_FILE, export_samples
from jaxebm.report.figures import image_grid, image_grids
from jaxebm.report.judges import NEIGHBOURS, Judges, first_of_each_class, independent_judges
from jaxebm.report.question import (
    Card,
    Picture,
    Question,
    Section,
    SummaryRow,
    Table,
    as_text,
    plural,
    table_row,
)
from jaxebm.report.subject import Evaluation, flat, log_probabilities

__all__ = ["SAMPLES", "class_samples", "longest_samples", "unconditional_samples"]

SAMPLE_MEASURES = ("class_agreement", "precision", "recall", "density", "coverage", "in_range")
"""The measures of each set of class samples in the card, in this order; higher is better."""
FEATURE_MEASURES = {
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "frechet_distance": "Fréchet distance",
}
"""The same in the features of an independent network, with their titles."""
TEST_IMAGES = 1000
"""Greatest number of test images, the first ones, whose distance to the training images is the reference."""
COLUMNS = 10
"""Samples per class in the picture."""


def unconditional_samples(evaluation: Evaluation) -> dict[int, np.ndarray]:
    """Returns fresh chains of p(x) after each number of steps; call it through `Evaluation.once`."""
    settings, logits = evaluation.settings, evaluation.model.logits
    key, label_key = jax.random.split(evaluation.key(4))
    count, num_classes = settings.samples_per_class, evaluation.dataset.num_classes
    labels = jax.random.randint(label_key, (count,), 0, num_classes)
    energy = ignore_label(marginal_energy(logits))
    return fresh_chains(key, evaluation, energy, labels, settings.sample_steps)


def class_samples(evaluation: Evaluation) -> dict[int, Samples] | None:
    """Returns fresh chains of p(x, y), of all classes, after each number of steps; None without classes."""
    if not evaluation.classes:
        return None
    settings, num_classes = evaluation.settings, evaluation.dataset.num_classes
    labels = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), settings.samples_per_class)
    energy = joint_energy(evaluation.model.logits)
    found = fresh_chains(evaluation.key(1), evaluation, energy, labels, settings.sample_steps)
    return {steps: Samples(xs, np.asarray(labels)) for steps, xs in found.items()}


def longest_samples(evaluation: Evaluation) -> Samples:
    """Returns the fresh samples of the longest chains that did not diverge, by class where there are any."""
    return finite(_longest(evaluation))


def _longest(evaluation: Evaluation) -> Samples:
    steps = evaluation.settings.sample_steps[-1]
    by_class = evaluation.once(class_samples)
    if by_class is None:
        return Samples(evaluation.once(unconditional_samples)[steps], None)
    return by_class[steps]


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Draws, evaluates and shows fresh samples after each number of steps, and the replay buffer.

    Writes ``samples.npz``, and the requested PNG files.
    """
    model, dataset, settings = evaluation.model, evaluation.dataset, evaluation.settings
    count, longest = settings.samples_per_class, settings.sample_steps[-1]
    free = evaluation.once(unconditional_samples)
    by_class = evaluation.once(class_samples)
    judges = evaluation.once(independent_judges)
    sheets: dict[str, np.ndarray] = {}
    entry: dict[str, Any] = {"fresh": None, "buffer": None}
    arrays = {f"unconditional_{steps}": xs for steps, xs in free.items()}
    if by_class is not None:
        by_steps = {str(steps): _judge(one, evaluation, judges) for steps, one in by_class.items()}
        worst = {
            name: min(found[name] for found in by_steps.values())
            for name in SAMPLE_MEASURES
            if all(name in found for found in by_steps.values())  # with few samples some are not defined
        }
        entry["fresh"] = worst | {"by_steps": by_steps}
        sheets |= {
            f"fresh chains by class, {plural(steps, 'step')}": _sheet(one, evaluation)
            for steps, one in by_class.items()
        }
        arrays |= {f"fresh_{steps}": one.images for steps, one in by_class.items()}
        arrays["label"] = np.asarray(by_class[longest].labels)
    entry["unconditional"] = {
        "by_steps": {str(steps): _judge(Samples(xs, None), evaluation, judges) for steps, xs in free.items()}
    }
    sheets[f"fresh chains of p(x), {plural(longest, 'step')}"] = _sheet(
        Samples(free[longest], None), evaluation
    )
    buffered = _buffered(evaluation)
    if buffered is not None and model.buffer is not None:
        entry["buffer"] = _judge(buffered, evaluation, judges)
        entry["buffer"]["mean_age"] = float(np.mean(np.asarray(model.buffer.ages)))
        sheets["replay buffer (training chains)"] = _sheet(buffered, evaluation)
    train, test = evaluation.images["train"], evaluation.images["test"]
    # As many as there are samples: coverage and Fréchet distance depend on the count.
    rows = np.arange(min(count, len(test)))
    if evaluation.classes:
        rows = first_of_each_class(dataset.test.label, dataset.num_classes, count)
    entry["test"] = _judge(Samples(test[rows], dataset.test.label[rows]), evaluation, judges)
    entry["judge"] = None if judges.network is None else judges.network.name
    sheets["training images"] = _sheet(Samples(train, dataset.train.label), evaluation)
    evaluation.draw(image_grids, "samples.png", sheets, columns=COLUMNS)
    entry["exported"] = export_samples(evaluation, arrays, _longest(evaluation))
    return {"samples": entry, "nearest_training_image": _judge_neighbours(evaluation)}


def _buffered(evaluation: Evaluation) -> Samples | None:
    """The chains of the replay buffer, with their own classes, or those that the model predicts."""
    model = evaluation.model
    if model.buffer is None:
        return None
    images = np.asarray(model.buffer.positions)
    if not evaluation.classes:
        return Samples(images, None)
    if model.conditional:
        return Samples(images, np.asarray(model.buffer.labels))
    # A marginal chain has no class of its own: the model predicts it.
    predicted = log_probabilities(model.logits, model.params, images).argmax(axis=1)
    return Samples(images, predicted.astype(np.int32))


def _judge(samples: Samples, evaluation: Evaluation, judges: Judges) -> dict[str, Any]:
    """How samples compare with training images, of their own class where they have one.

    In pixels and in the independent network's features.
    """
    drawn = len(samples.images)
    images, labels = finite(samples)
    count = evaluation.dataset.num_classes
    entry: dict[str, Any] = {"count": drawn, "finite": len(images) / drawn}
    if not len(images):  # all diverged: there is nothing to measure
        return entry | ({} if labels is None else {"smallest_class": 0}) | {"features": {}}
    entry["in_range"] = within_range(images, -1.0, 1.0)
    predicted = judges.predict(images)
    if labels is None:
        shares = np.bincount(predicted, minlength=count) / len(images)
        entry["class_shares"] = [float(share) for share in shares]
    else:
        entry["class_agreement"] = float(np.mean(predicted == labels))
        entry["smallest_class"] = int(np.bincount(labels, minlength=count).min())
    smallest = min(len(images), len(judges.real))
    if labels is not None:
        of_data = np.bincount(judges.labels, minlength=count)
        smallest = min(entry["smallest_class"], int(of_data.min()))
    views = {"pixels": (flat(judges.real), flat(images))}
    if judges.network is not None and judges.features is not None:
        views["features"] = judges.features, judges.network.features(images)
        entry["features"] = {}
        if min(len(points) for points in views["features"]) > 1:  # a covariance needs two
            entry["features"]["frechet_distance"] = frechet_distance(*views["features"])
    if smallest <= NEIGHBOURS:  # too few chains or images for nearest neighbours
        return entry
    for name, (real, fake) in views.items():
        if labels is None:
            quality = prdc(real, fake, k=NEIGHBOURS, real_radii=judges.radii[name])
        else:
            quality = prdc_by_class(real, judges.labels, fake, labels, count, k=NEIGHBOURS).mean
        values = {measure: float(value) for measure, value in quality._asdict().items()}
        if name == "pixels":
            entry |= values
        else:
            entry["features"] |= values
    return entry


def _sheet(samples: Samples, evaluation: Evaluation) -> np.ndarray:
    """One row per class with its first samples, white if there are fewer; none is selected."""
    dataset, (images, classes) = evaluation.dataset, samples
    if classes is None:
        return np.asarray(dataset.restore(images[: COLUMNS * dataset.num_classes]))
    blank = np.full((COLUMNS, *dataset.image_shape), 1.0, np.float32)
    chosen = [np.flatnonzero(classes == y)[:COLUMNS] for y in range(dataset.num_classes)]
    rows = [np.concatenate([images[indices], blank[len(indices) :]]) for indices in chosen]
    return np.asarray(dataset.restore(np.concatenate(rows)))


def _judge_neighbours(evaluation: Evaluation) -> dict[str, float | None]:
    """Draws samples next to their nearest training images; returns the distances.

    If samples are much closer than test images, the model copies training images.
    """
    dataset, images = evaluation.dataset, evaluation.images
    samples = evaluation.once(longest_samples)
    _, test_distances = nearest_neighbours(flat(images["test"][:TEST_IMAGES]), flat(images["train"]))
    found: dict[str, float | None] = {
        "fresh_median_distance": None,
        "test_median_distance": float(np.median(test_distances)),
    }
    if not len(samples.images):
        return found
    indices, distances = nearest_neighbours(flat(samples.images), flat(images["train"]))
    first = np.arange(min(20, len(samples.images)))
    if samples.labels is not None:
        first = first_of_each_class(samples.labels, dataset.num_classes, 2)
    pairs = np.stack([samples.images[first], images["train"][indices[first, 0]]], axis=1)
    sheet = np.asarray(dataset.restore(pairs.reshape(-1, *dataset.image_shape)))
    title = "fresh sample | its nearest training image"
    evaluation.draw(image_grid, "neighbours.png", sheet, columns=8, title=title)
    return found | {"fresh_median_distance": float(np.median(distances))}


def summary(card: Card) -> list[SummaryRow]:
    """Class agreement, precision, coverage and Fréchet distance of the longest fresh chains."""
    if "samples" not in card:
        return []
    fresh, test = card["samples"]["fresh"] or card["samples"]["unconditional"], card["samples"]["test"]
    steps, longest = list(fresh["by_steps"].items())[-1]
    rows = []
    for name in ("class_agreement", "precision", "coverage"):
        if name in longest:
            beside = f"{plural(steps, 'step')} from noise" + (
                f"; test images {test[name]:.3f}" if name in test else ""
            )
            rows.append((f"fresh samples: {name.replace('_', ' ')}", f"{longest[name]:.3f}", beside))
    distance = longest.get("features", {}).get("frechet_distance")
    if distance is not None:
        reference = test["features"].get("frechet_distance")
        beside = "features of an independent network"
        beside += "" if reference is None else f"; test images {reference:.3g}"
        rows.append(("fresh samples: Fréchet distance", f"{distance:.3g}", beside))
    return rows


def sections(card: Card) -> list[Section]:
    """All sets of samples compared with test images, in pixels and in features, and their pictures."""
    if "samples" not in card:
        return []
    samples = card["samples"]
    chains: dict[str, Mapping[str, Any]] = {}
    for kind, name in (("fresh", "fresh, by class"), ("unconditional", "fresh, p(x)")):
        if samples[kind] is not None:
            chains |= {
                f"{name}, {plural(steps, 'step')}": one for steps, one in samples[kind]["by_steps"].items()
            }
    if samples["buffer"] is not None:
        chains["replay buffer (training chains)"] = samples["buffer"]
    chains["test images, for comparison"] = samples["test"]
    header = ["chains", "count", *(name.replace("_", " ") for name in SAMPLE_MEASURES)]
    rows = [
        table_row(name, str(entry["count"]), *(entry.get(measure) for measure in SAMPLE_MEASURES))
        for name, entry in chains.items()
    ]
    tables = [Table("Against training images (of their class), pixel space, k = 5", header, rows)]
    near = card["nearest_training_image"]
    notes = [
        "Median distance to the nearest training image: fresh samples "
        f"{as_text(near['fresh_median_distance'])}, test images {as_text(near['test_median_distance'])}; far "
        "smaller for samples would mean copying."
    ]
    diverged = [name for name, entry in chains.items() if entry["finite"] == 0]
    if diverged:
        notes.append(
            f"All chains diverged ({', '.join(diverged)}): give the sampler a clamp to the range of the "
            "images, or a smaller step size."
        )
    if samples["judge"] is not None:
        header = ["chains", *FEATURE_MEASURES.values()]
        rows = [
            table_row(name, *(entry["features"].get(measure) for measure in FEATURE_MEASURES))
            for name, entry in chains.items()
        ]
        tables.append(Table("In the features of an independent network", header, rows))
        notes.append(f"The independent network: {samples['judge']}. Not comparable with published FID.")
    if samples["exported"] is not None:
        exported = samples["exported"]
        notes.append(f"{plural(exported['count'], 'file')} in {exported['folder']}/: {exported['rule']}.")
    section = Section(
        "Samples",
        "Fresh chains start from noise and were not used in training; those of the replay buffer were. "
        "Precision and density: are samples like data? Recall and coverage: do samples cover the data? "
        "Class agreement: an independent classifier predicts the requested class.",
        notes,
        tables,
        [
            Picture("samples", "The first samples of each kind, one row per class; none is selected."),
            Picture("neighbours", "Fresh samples, each with its nearest training image on its right."),
        ],
    )
    return [section]


FILES = ("samples.png", "neighbours.png", SAMPLES_FILE, EXPORTED)
SAMPLES = Question("samples", judge, summary, sections, FILES)
