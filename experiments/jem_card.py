"""The evaluation of a classifier that is an energy-based model: what was learnt, in numbers and pictures.

The entries that `evaluate` returns are documented in docs/card.md; card_text.py writes them.
"""

import io
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

import jaxebm
import plots
from card_text import SAMPLE_MEASURES, write_card
from jaxebm.data import Dataset
from jaxebm.energies import joint_energy, marginal_energy
from jaxebm.evaluation import (
    OOD_SCORES,
    OOD_SETS,
    accuracy,
    auroc,
    brier_score,
    expected_calibration_error,
    false_positive_rate,
    fit_independent_classifier,
    nearest_neighbours,
    negative_log_likelihood,
    prdc_by_class,
    reliability_curve,
    within_range,
)
from jaxebm.objectives import run_labelled_chains
from jaxebm.samplers import Initial, ReplayBuffer
from jaxebm.training import RunFolder, write_atomically
from jaxebm.types import Array, LogitsFn, MakeKernel, Params
from jem_likelihood import LikelihoodSettings, judge_likelihood
from jem_parts import TELEMETRY

__all__ = ["ModelUnderTest", "evaluate", "write_card"]

SCHEMA = 1
BATCH = 2048
"""Images a compiled call of the evaluation."""
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
CLASSIFIER_IMAGES = 5000
"""At most this many training images teach the independent classifier."""
REFERENCES_PER_CLASS = 500
"""At most this many training images of each class, the first ones, are what samples are compared with."""
TEST_IMAGES = 1000
"""At most this many test images, the first ones, tell how far new images lie from the training images."""
WATCHED = (
    *("energy_gap", "chain_distance", "gradient_norm_last", "buffer_age_mean"),
    *("long_run_energy_change", "long_run_gradient_ratio", "mmd_squared", "ksd_squared"),
)
"""Telemetry in the picture; card.json has the last of all."""
COLUMNS = 10
"""Samples of each class in the picture."""

Images = Mapping[str, np.ndarray]
Predict = Callable[[np.ndarray], np.ndarray]


class ModelUnderTest(NamedTuple):
    """What is evaluated.

    Attributes:
      logits: f(params, x) of one image.
      params: the averaged weights.
      twin_params: of the same network trained by cross-entropy alone, or None.
      kernel: the sampler that trained it.
      initial: where fresh chains start.
      buffer: the replay buffer at the end of training, or None.
      conditional: whether its chains belong to classes.
    """

    logits: LogitsFn
    params: Params
    twin_params: Params | None
    kernel: MakeKernel
    initial: Initial
    buffer: ReplayBuffer | None
    conditional: bool


def evaluate(
    run: RunFolder,
    model: ModelUnderTest,
    dataset: Dataset,
    *,
    seed: int,
    samples_per_class: int,
    sample_steps: Sequence[int],
    likelihood: LikelihoodSettings,
) -> dict[str, Any]:
    """Evaluates on the test split, draws the pictures, and returns the card's entries.

    Args:
      run: where pictures and ``samples.npz`` go.
      model: what to evaluate.
      dataset: its test split is looked at here, once, and nothing is selected on it.
      seed: of the fresh chains and the out-of-distribution sets.
      samples_per_class: fresh chains a class.
      sample_steps: increasing lengths at which they are judged.
      likelihood: what the bounds of log Z may cost.

    Returns:
      A dictionary as documented in docs/card.md.
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    images = {name: np.asarray(dataset.rescale(split.image)) for name, split in splits.items()}
    card: dict[str, Any] = {"schema": SCHEMA}

    # What it knows of classes.
    card |= _judge_classes(run, model, dataset, images)

    # How likely it finds what it should find likely.
    key = jax.random.fold_in(jax.random.key(seed), 2)
    card["likelihood"] = judge_likelihood(key, model.logits, model.params, dataset, likelihood)

    # What it finds strange.
    card["ood"], scores = _judge_scores(np.random.default_rng(seed), model, dataset, images["test"])
    plots.score_histograms(run.path / "ood.png", scores, card["ood"])

    # What it dreams: new chains, told apart from those that trained it.
    key = jax.random.fold_in(jax.random.key(seed), 1)
    fresh, labels = _fresh_samples(key, model, dataset.num_classes, samples_per_class, sample_steps)
    card["samples"] = _judge_chains(run, model, dataset, images["train"], fresh, labels)
    longest = fresh[sample_steps[-1]]
    card["nearest_training_image"] = _judge_neighbours(run, dataset, images, longest, labels)
    _save_arrays(run, {f"fresh_{steps}": xs for steps, xs in fresh.items()} | {"label": labels})

    # Energies of everything on one axis.
    known = {"train": images["train"], "test": images["test"], f"fresh, {sample_steps[-1]} steps": longest}
    card["energy"] = _judge_energies(run, model, known, scores["log_density"])

    # What it took.
    metrics = ("loss", "cross_entropy", "energy_gap", "gradient_norm")
    records = run.read_metrics()
    recovered = [record["step"] for record in run.read_recoveries()]
    plots.training_curves(run.path / "training.png", records, metrics, recovered)
    telemetry = sorted({name for record in records for name in record if name.startswith(TELEMETRY)})
    plots.training_curves(
        run.path / "telemetry.png", records, [TELEMETRY + name for name in WATCHED], recovered
    )
    last = {name.removeprefix(TELEMETRY): records[-1][name] for name in telemetry if name in records[-1]}
    card["telemetry"] = {name: v if np.isfinite(v) else None for name, v in last.items()} or None
    card["parameters"] = sum(int(leaf.size) for leaf in jax.tree.leaves(model.params))
    card["environment"] = {
        "jaxebm": jaxebm.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
    }
    return card


def _map_batches(function: Callable[[Any], Array], images: np.ndarray) -> np.ndarray:
    """Applies a compiled batched function block by block, so that memory does not grow with the data set."""
    return np.concatenate([np.asarray(function(images[i : i + BATCH])) for i in range(0, len(images), BATCH)])


def _log_probabilities(model: ModelUnderTest, params: Params, images: np.ndarray) -> np.ndarray:
    @jax.jit
    def batch(xs: Array) -> Array:
        return jax.nn.log_softmax(jax.vmap(model.logits, (None, 0))(params, xs))

    return _map_batches(batch, images)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _classification(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy(log_probabilities, labels),
        "nll": negative_log_likelihood(log_probabilities, labels),
        "ece": expected_calibration_error(log_probabilities, labels),
        "brier": brier_score(log_probabilities, labels),
    }


def _judge_classes(run: RunFolder, model: ModelUnderTest, dataset: Dataset, images: Images) -> dict[str, Any]:
    """Accuracy and calibration of the model and of its twin, with the reliability diagram of both."""
    labels = dataset.test.label
    jem = _log_probabilities(model, model.params, images["test"])
    validation = _log_probabilities(model, model.params, images["validation"])
    card: dict[str, Any] = _classification(jem, labels) | {
        "validation": _classification(validation, dataset.validation.label),
        "twin": None,
    }
    curves = {"JEM": (reliability_curve(jem, labels), card["ece"])}
    if model.twin_params is not None:
        twin = _log_probabilities(model, model.twin_params, images["test"])
        card["twin"] = _classification(twin, labels)
        curves["cross-entropy twin"] = (reliability_curve(twin, labels), card["twin"]["ece"])
    plots.reliability_diagram(run.path / "reliability.png", curves)
    return card


def _judge_scores(
    rng: np.random.Generator, model: ModelUnderTest, dataset: Dataset, test: np.ndarray
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """AUROC of each score between the test images and each named set, and the scores themselves."""
    sets = {name: make(rng, test, dataset.test.label) for name, make in OOD_SETS.items()}
    if dataset.held_out is not None:
        sets["excluded_classes"] = np.asarray(dataset.rescale(dataset.held_out.image))
    aurocs: dict[str, Any] = {}
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, make_score in OOD_SCORES.items():
        batch = jax.jit(jax.vmap(partial(make_score(model.logits), model.params)))
        inside = _map_batches(batch, test)
        outside = {key: _map_batches(batch, xs) for key, xs in sets.items()}
        scores[name] = {"test": inside} | outside
        aurocs[name] = {key: auroc(inside, values) for key, values in outside.items()}
        aurocs[f"{name}_fpr95"] = {
            key: false_positive_rate(inside, values) for key, values in outside.items()
        }
    return aurocs, scores


def _fresh_samples(
    rng_key: Array, model: ModelUnderTest, num_classes: int, per_class: int, steps: Sequence[int]
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Runs new class-conditional chains on E(x, y), keeping where they are after each of ``steps``."""
    labels = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), per_class)
    keys = jax.random.split(rng_key, len(steps) + 1)
    positions = jax.vmap(model.initial)(jax.random.split(keys[0], len(labels)), labels)
    chains = partial(run_labelled_chains, make_kernel=model.kernel, energy=joint_energy(model.logits))
    advance = jax.jit(chains, static_argnames="num_steps")
    kept, done = {}, 0
    for key, total in zip(keys[1:], steps, strict=True):
        more = total - done
        positions = advance(key, params=model.params, positions=positions, labels=labels, num_steps=more)
        kept[total], done = np.asarray(positions), total
    return kept, np.asarray(labels)


def _judge_chains(
    run: RunFolder,
    model: ModelUnderTest,
    dataset: Dataset,
    train: np.ndarray,
    fresh: Mapping[int, np.ndarray],
    labels: np.ndarray,
) -> dict[str, Any]:
    """Judges and draws fresh samples after each number of steps, and the replay buffer where there is one."""
    predict = _independent_classifier(train, dataset.train.label)
    by_steps = {
        str(steps): _judge_samples(xs, labels, dataset, train, predict) for steps, xs in fresh.items()
    }
    worst = {name: min(entry[name] for entry in by_steps.values()) for name in SAMPLE_MEASURES}
    sheets = {f"fresh chains, {steps} steps": _sheet(xs, labels, dataset) for steps, xs in fresh.items()}
    judged: dict[str, Any] = {"fresh": worst | {"by_steps": by_steps}, "buffer": None}
    if model.buffer is not None:
        buffered, classes = np.asarray(model.buffer.positions), np.asarray(model.buffer.labels)
        if not model.conditional:  # a marginal chain has no class of its own: the model says which it is
            classes = _log_probabilities(model, model.params, buffered).argmax(axis=1).astype(np.int32)
        judged["buffer"] = _judge_buffer(buffered, classes, dataset, train, predict)
        judged["buffer"]["mean_age"] = float(np.mean(np.asarray(model.buffer.ages)))
        sheets["replay buffer (training chains)"] = _sheet(buffered, classes, dataset)
    sheets["training images"] = _sheet(train, dataset.train.label, dataset)
    plots.image_grids(run.path / "samples.png", sheets, columns=COLUMNS)
    return judged


def _independent_classifier(images: np.ndarray, labels: np.ndarray) -> Predict:
    """A classifier that never saw the model: real images alone taught it, a fixed subset of many."""
    rows = np.random.default_rng(0).permutation(len(images))[:CLASSIFIER_IMAGES]
    return fit_independent_classifier(images[rows], labels[rows])


def _judge_samples(
    images: np.ndarray, labels: np.ndarray, dataset: Dataset, train: np.ndarray, predict: Predict
) -> dict[str, Any]:
    """Class agreement, and how samples compare with the training images of their class, in pixel space."""
    by_class = [np.flatnonzero(dataset.train.label == y) for y in range(dataset.num_classes)]
    rows = np.concatenate([members[:REFERENCES_PER_CLASS] for members in by_class])
    real, classes = _flat(train[rows]), dataset.train.label[rows]
    quality = prdc_by_class(real, classes, _flat(images), labels, dataset.num_classes, k=NEIGHBOURS).mean
    return {
        "class_agreement": float(np.mean(predict(images) == labels)),
        "precision": float(quality.precision),
        "recall": float(quality.recall),
        "density": float(quality.density),
        "coverage": float(quality.coverage),
        "in_range": float(np.mean(within_range(images, -1.0, 1.0))),
        "count": len(labels),
    }


def _judge_buffer(
    images: np.ndarray, labels: np.ndarray, dataset: Dataset, train: np.ndarray, predict: Predict
) -> dict[str, Any]:
    smallest = int(np.bincount(labels, minlength=dataset.num_classes).min())
    if smallest > NEIGHBOURS:
        entry = _judge_samples(images, labels, dataset, train, predict)
    else:  # a class that no chain visits has no neighbours to measure
        entry = {
            "class_agreement": float(np.mean(predict(images) == labels)),
            "count": len(labels),
            "in_range": float(np.mean(within_range(images, -1.0, 1.0))),
        }
    return entry | {"smallest_class": smallest}


def _sheet(images: np.ndarray, classes: np.ndarray, dataset: Dataset) -> np.ndarray:
    """A row a class, the first samples of each, white where there are fewer: no selection."""
    blank = np.full((COLUMNS, *dataset.image_shape), 1.0, np.float32)
    chosen = [np.flatnonzero(classes == y)[:COLUMNS] for y in range(dataset.num_classes)]
    rows = [np.concatenate([images[indices], blank[len(indices) :]]) for indices in chosen]
    return np.asarray(dataset.restore(np.concatenate(rows)))


def _judge_neighbours(
    run: RunFolder, dataset: Dataset, images: Images, samples: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Draws samples beside their nearest training images; returns the distances.

    Those of samples beside those of test images tell copying from learning.
    """
    indices, distances = nearest_neighbours(_flat(samples), _flat(images["train"]))
    _, test_distances = nearest_neighbours(_flat(images["test"][:TEST_IMAGES]), _flat(images["train"]))
    first = np.concatenate([np.flatnonzero(labels == y)[:2] for y in range(dataset.num_classes)])
    pairs = np.stack([samples[first], images["train"][indices[first, 0]]], axis=1)
    sheet = np.asarray(dataset.restore(pairs.reshape(-1, *dataset.image_shape)))
    title = "fresh sample | its nearest training image"
    plots.image_grid(run.path / "neighbours.png", sheet, columns=8, title=title)
    return {
        "fresh_median_distance": float(np.median(distances)),
        "test_median_distance": float(np.median(test_distances)),
    }


def _judge_energies(
    run: RunFolder, model: ModelUnderTest, known: Images, log_densities: Images
) -> dict[str, dict[str, float]]:
    """Mean and spread of E(x) on known images, drawn beside those of the out-of-distribution sets."""
    batch = jax.jit(jax.vmap(partial(marginal_energy(model.logits), model.params)))
    energies = {name: _map_batches(batch, xs) for name, xs in known.items()}
    strange = {name.replace("_", " "): -values for name, values in log_densities.items() if name != "test"}
    plots.energy_histogram(run.path / "energies.png", energies | strange)
    return {
        name.split(",")[0]: {"mean": float(np.mean(values)), "sd": float(np.std(values))}
        for name, values in energies.items()
    }


def _save_arrays(run: RunFolder, arrays: Images) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(run.path / "samples.npz", stream.getvalue())
