"""What the model dreams: fresh samples told from those of its buffer, how good they are, and long chains."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import plots
from card_parts import (
    Evaluation,
    Images,
    advance,
    flat,
    log_probabilities,
    map_batches,
    start_chains,
    without_label,
)
from jaxebm.energies import joint_energy, marginal_energy
from jaxebm.evaluation import (
    FeatureNetwork,
    fit_feature_network,
    fit_independent_classifier,
    frechet_distance,
    nearest_neighbours,
    prdc,
    prdc_by_class,
    squared_radii,
    within_range,
)
from jaxebm.training import write_atomically

__all__ = [
    "SAMPLE_MEASURES",
    "Judges",
    "Samples",
    "finite",
    "judge_long_runs",
    "judge_samples",
    "make_judges",
]

SAMPLE_MEASURES = ("class_agreement", "precision", "recall", "density", "coverage", "in_range")
"""What the card says of every set of samples of classes, in this order; more is better in each."""
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
CLASSIFIER_IMAGES = 5000
"""At most this many training images teach the independent classifier, and the independent network."""
REFERENCES_PER_CLASS = 500
"""At most this many training images of each class, the first ones, are what samples are compared with."""
TEST_IMAGES = 1000
"""At most this many test images, the first ones, tell how far new images lie from the training images."""
COLUMNS = 10
"""Samples of each class in the picture."""

EXPORTED = "exported"
"""The folder of the PNG files."""
RULES = {
    True: "the first fresh chains of each class, class after class in turn; none is left out or chosen",
    False: "the first fresh chains; none is left out or chosen",
}

Predict = Callable[[np.ndarray], np.ndarray]


class Judges(NamedTuple):
    """Classifiers that never saw the model, and what samples are compared with.

    Attributes:
      predict: a support vector machine on pixels; 0 where there is one class.
      network: whose features samples are compared in, or None.
      real: training images of all classes, ``(n, H, W, C)``.
      labels: theirs.
      features: theirs, ``(n, F)``, or None.
      radii: `squared_radii` of those images by view, pixels and features, ``(n,)`` each.
    """

    predict: Predict
    network: FeatureNetwork | None
    real: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None
    radii: Mapping[str, np.ndarray]


class Samples(NamedTuple):
    """Images and the classes that they are meant to be of; None where they are of no class."""

    images: np.ndarray
    labels: np.ndarray | None


def make_judges(evaluation: Evaluation) -> Judges:
    """Teaches the independent classifiers, on real images alone, a fixed subset of many."""
    dataset, train = evaluation.dataset, evaluation.images["train"]
    label = dataset.train.label
    rows = np.random.default_rng(0).permutation(len(train))[:CLASSIFIER_IMAGES]
    chosen = _first_of_each_class(label, dataset.num_classes, REFERENCES_PER_CLASS)
    network = features = None
    several = dataset.num_classes > 1  # of one class there is nothing to tell: every image is of it
    if evaluation.flags.features and several:
        key = jax.random.key(0)  # the same judge for every seed of the model
        network = fit_feature_network(key, train[rows], label[rows], dataset.num_classes)
        features = network.features(train[chosen])
    predict = fit_independent_classifier(train[rows], label[rows]) if several else _of_one_class
    radii = {"pixels": squared_radii(flat(train[chosen]), NEIGHBOURS)}
    if features is not None:
        radii["features"] = squared_radii(features, NEIGHBOURS)
    return Judges(predict, network, train[chosen], label[chosen], features, radii)


def _of_one_class(images: np.ndarray) -> np.ndarray:
    return np.zeros(len(images), np.int64)


def _first_of_each_class(labels: np.ndarray, num_classes: int, count: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == y)[:count] for y in range(num_classes)])


def judge_samples(evaluation: Evaluation, judges: Judges) -> tuple[dict[str, Any], Samples]:
    """Draws, judges and shows fresh samples after each number of steps, and the replay buffer.

    Writes ``samples.npz``, and the PNG files that are asked for.

    Returns:
      The card's entries, and the fresh samples of the longest chains, by class where there are classes.
    """
    model, dataset, flags = evaluation.model, evaluation.dataset, evaluation.flags
    marginal = without_label(marginal_energy(model.logits))
    count, longest = flags.samples_per_class, flags.sample_steps[-1]
    free_key, free_label_key = jax.random.split(evaluation.key(4))
    free_labels = jax.random.randint(free_label_key, (count,), 0, dataset.num_classes)
    free = _fresh(free_key, evaluation, marginal, free_labels)
    sheets: dict[str, np.ndarray] = {}
    card: dict[str, Any] = {"fresh": None, "buffer": None}
    arrays = {f"unconditional_{steps}": xs for steps, xs in free.items()}
    chosen = Samples(free[longest], None)
    if evaluation.classes:
        labels = jnp.repeat(jnp.arange(dataset.num_classes, dtype=jnp.int32), count)
        fresh = _fresh(evaluation.key(1), evaluation, joint_energy(model.logits), labels)
        classes = np.asarray(labels)
        by_steps = {
            str(steps): _judge(Samples(xs, classes), evaluation, judges) for steps, xs in fresh.items()
        }
        worst = {name: min(entry[name] for entry in by_steps.values()) for name in SAMPLE_MEASURES}
        card["fresh"] = worst | {"by_steps": by_steps}
        sheets |= {
            f"fresh chains by class, {steps} steps": _sheet(xs, classes, evaluation)
            for steps, xs in fresh.items()
        }
        arrays |= {f"fresh_{steps}": xs for steps, xs in fresh.items()} | {"label": classes}
        chosen = Samples(fresh[longest], classes)
    card["unconditional"] = {
        "by_steps": {str(steps): _judge(Samples(xs, None), evaluation, judges) for steps, xs in free.items()}
    }
    sheets[f"fresh chains of p(x), {longest} steps"] = _sheet(free[longest], None, evaluation)
    buffered = _buffered(evaluation)
    if buffered is not None and model.buffer is not None:
        card["buffer"] = _judge(buffered, evaluation, judges)
        card["buffer"]["mean_age"] = float(np.mean(np.asarray(model.buffer.ages)))
        sheets["replay buffer (training chains)"] = _sheet(*buffered, evaluation)
    train, test = evaluation.images["train"], evaluation.images["test"]
    # As many as there are samples: coverage and Fréchet distance depend on the count.
    rows = np.arange(min(count, len(test)))
    if evaluation.classes:
        rows = _first_of_each_class(dataset.test.label, dataset.num_classes, count)
    card["test"] = _judge(Samples(test[rows], dataset.test.label[rows]), evaluation, judges)
    card["judge"] = None if judges.network is None else judges.network.name
    sheets["training images"] = _sheet(train, dataset.train.label, evaluation)
    plots.image_grids(evaluation.folder / "samples.png", sheets, columns=COLUMNS)
    card["exported"] = _export(evaluation, arrays, chosen)
    chosen = finite(chosen)
    near = _judge_neighbours(evaluation, chosen)
    return {"samples": card, "nearest_training_image": near}, chosen


def judge_long_runs(evaluation: Evaluation, judges: Judges) -> dict[str, Any] | None:
    """Runs new chains of p(x) for 1, 10, 100 ... times the training length, and shows where they are."""
    model, dataset, flags = evaluation.model, evaluation.dataset, evaluation.flags
    if not flags.long_run_factors:
        return None
    factors = sorted({1, *flags.long_run_factors})
    steps = [factor * model.num_steps for factor in factors]
    energy = marginal_energy(model.logits)
    key, label_key = jax.random.split(evaluation.key(5))
    labels = jax.random.randint(label_key, (flags.long_run_chains,), 0, dataset.num_classes)
    found = _fresh(key, evaluation, without_label(energy), labels, steps)
    energies = jax.jit(jax.vmap(partial(energy, model.params)))
    by_factor = {}
    for factor, every in zip(factors, found.values(), strict=True):
        xs = finite(Samples(every, None)).images
        entry: dict[str, Any] = {
            "steps": factor * model.num_steps,
            "finite": len(xs) / len(every),
            "energy": float(np.mean(map_batches(energies, xs))),
            "saturated": float(np.mean(np.abs(xs) >= 1.0)),
            "in_range": within_range(xs, -1.0, 1.0),
            "precision": None,
            "coverage": None,
        }
        if len(xs) > NEIGHBOURS:
            quality = prdc(flat(judges.real), flat(xs), k=NEIGHBOURS, real_radii=judges.radii["pixels"])
            entry |= {"precision": quality.precision, "coverage": quality.coverage}
        by_factor[str(factor)] = entry
    sheets = {
        f"{factor} x {model.num_steps} steps": np.asarray(dataset.restore(xs))
        for factor, xs in zip(factors, found.values(), strict=True)
    }
    plots.image_grids(evaluation.folder / "long_run.png", sheets, columns=COLUMNS)
    test = float(np.mean(map_batches(energies, evaluation.images["test"])))
    return {"by_factor": by_factor, "chains": flags.long_run_chains, "test_energy": test}


def _fresh(
    rng_key: Any, evaluation: Evaluation, energy: Any, labels: Any, steps: Sequence[int] | None = None
) -> dict[int, np.ndarray]:
    """Runs new chains on E(x, y), keeping where they are after each of ``steps``."""
    model, steps = evaluation.model, evaluation.flags.sample_steps if steps is None else steps
    keys = jax.random.split(rng_key, len(steps) + 1)
    positions = start_chains(keys[0], model.initial, labels)
    run = advance(model, energy)
    kept, done = {}, 0
    for key, total in zip(keys[1:], steps, strict=True):
        more = total - done
        positions = run(key, params=model.params, positions=positions, labels=labels, num_steps=more)
        kept[total], done = np.asarray(positions), total
    return kept


def finite(samples: Samples) -> Samples:
    """Leaves out the chains that diverged, which a sampler without a clamp allows; the card counts them.

    Raises:
      RuntimeError: if all of them did.
    """
    images, labels = samples
    whole = np.isfinite(images).all(axis=(1, 2, 3))
    if not whole.any():
        raise RuntimeError(
            f"all {len(images)} chains diverged: the samples of this model cannot be judged. Train or sample "
            "it with --sampler-clamp."
        )
    return Samples(images[whole], None if labels is None else labels[whole])


def _buffered(evaluation: Evaluation) -> Samples | None:
    """The chains of the replay buffer, with the classes that they are of, or that the model gives them."""
    model = evaluation.model
    if model.buffer is None:
        return None
    images = np.asarray(model.buffer.positions)
    if not evaluation.classes:
        return Samples(images, None)
    if model.conditional:
        return Samples(images, np.asarray(model.buffer.labels))
    # A marginal chain has no class of its own: the model says which it is.
    predicted = log_probabilities(model.logits, model.params, images).argmax(axis=1)
    return Samples(images, predicted.astype(np.int32))


def _judge(samples: Samples, evaluation: Evaluation, judges: Judges) -> dict[str, Any]:
    """How samples compare with training images, of their own class where they have one.

    In pixels and in the independent network's features.
    """
    drawn = len(samples.images)
    images, labels = finite(samples)
    count = evaluation.dataset.num_classes
    predicted = judges.predict(images)
    entry: dict[str, Any] = {"count": drawn, "in_range": within_range(images, -1.0, 1.0)}
    entry["finite"] = len(images) / drawn
    if labels is None:
        shares = np.bincount(predicted, minlength=count) / len(images)
        entry["class_shares"] = [float(share) for share in shares]
    else:
        entry["class_agreement"] = float(np.mean(predicted == labels))
        entry["smallest_class"] = int(np.bincount(labels, minlength=count).min())
    smallest = len(images) if labels is None else entry["smallest_class"]
    views = {"pixels": (flat(judges.real), flat(images))}
    if judges.network is not None and judges.features is not None:
        views["features"] = judges.features, judges.network.features(images)
        entry["features"] = {"frechet_distance": frechet_distance(*views["features"])}
    if smallest <= NEIGHBOURS:  # a class that no chain visits has no neighbours to measure
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


def _sheet(images: np.ndarray, classes: np.ndarray | None, evaluation: Evaluation) -> np.ndarray:
    """A row a class, the first samples of each, white where there are fewer: no selection."""
    dataset = evaluation.dataset
    if classes is None:
        return np.asarray(dataset.restore(images[: COLUMNS * dataset.num_classes]))
    blank = np.full((COLUMNS, *dataset.image_shape), 1.0, np.float32)
    chosen = [np.flatnonzero(classes == y)[:COLUMNS] for y in range(dataset.num_classes)]
    rows = [np.concatenate([images[indices], blank[len(indices) :]]) for indices in chosen]
    return np.asarray(dataset.restore(np.concatenate(rows)))


def _judge_neighbours(evaluation: Evaluation, samples: Samples) -> dict[str, float]:
    """Draws samples beside their nearest training images; returns the distances.

    Those of samples beside those of test images tell copying from learning.
    """
    dataset, images = evaluation.dataset, evaluation.images
    indices, distances = nearest_neighbours(flat(samples.images), flat(images["train"]))
    _, test_distances = nearest_neighbours(flat(images["test"][:TEST_IMAGES]), flat(images["train"]))
    first = np.arange(min(20, len(samples.images)))
    if samples.labels is not None:
        first = _first_of_each_class(samples.labels, dataset.num_classes, 2)
    pairs = np.stack([samples.images[first], images["train"][indices[first, 0]]], axis=1)
    sheet = np.asarray(dataset.restore(pairs.reshape(-1, *dataset.image_shape)))
    title = "fresh sample | its nearest training image"
    plots.image_grid(evaluation.folder / "neighbours.png", sheet, columns=8, title=title)
    return {
        "fresh_median_distance": float(np.median(distances)),
        "test_median_distance": float(np.median(test_distances)),
    }


def _export(evaluation: Evaluation, arrays: Images, samples: Samples) -> dict[str, Any] | None:
    """Writes all fresh samples as arrays, and as many of the longest chains as are asked for as PNG files.

    They are the first chains, class after class in turn: nothing is selected.
    """
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(evaluation.folder / "samples.npz", stream.getvalue())
    wanted = min(evaluation.flags.export_samples, len(samples.images))
    if not wanted:
        return None
    folder = evaluation.folder / EXPORTED
    folder.mkdir(exist_ok=True)
    for left in folder.glob("*.png"):  # of an evaluation that this one replaces
        left.unlink()
    order = np.arange(len(samples.images))
    if samples.labels is not None:
        rank = np.empty_like(order)  # of each chain among those of its class
        for y in range(evaluation.dataset.num_classes):
            members = np.flatnonzero(samples.labels == y)
            rank[members] = np.arange(len(members))
        order = np.argsort(rank, kind="stable")
    pixels = np.asarray(evaluation.dataset.restore(samples.images[order[:wanted]]))
    for index, image in enumerate(np.rint(pixels * 255).astype(np.uint8)):
        shown = image[:, :, 0] if image.shape[2] == 1 else image
        stream = io.BytesIO()
        Image.fromarray(shown).save(stream, format="PNG")
        write_atomically(folder / f"{index:06d}.png", stream.getvalue())
    return {
        "count": wanted,
        "steps": evaluation.flags.sample_steps[-1],
        "rule": RULES[samples.labels is not None],
        "folder": EXPORTED,
    }
