"""The evaluation card of a classifier that is an energy-based model: what was learnt, said with numbers and pictures.

The schema of card.json is documented in docs/card.md; `write_card` checks that every number in it is finite.
"""

import io
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import plots

import jaxebm
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

__all__ = ["ModelUnderTest", "evaluate", "write_card"]

SCHEMA = 1
BATCH = 2048
"""Images a compiled call of the evaluation."""
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
CLASSIFIER_IMAGES = 5000
"""At most this many training images teach the independent classifier."""


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


def _map_batches(function: Callable[[Any], Array], images: np.ndarray) -> np.ndarray:
    """Applies a compiled batched function block by block, so that memory does not grow with the data set."""
    return np.concatenate([np.asarray(function(images[i : i + BATCH])) for i in range(0, len(images), BATCH)])


def _log_probabilities(model: ModelUnderTest, params: Params, images: np.ndarray) -> np.ndarray:
    @jax.jit
    def batch(xs: Array) -> Array:
        return jax.nn.log_softmax(jax.vmap(model.logits, (None, 0))(params, xs))

    return _map_batches(batch, images)


def _classification(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy(log_probabilities, labels),
        "nll": negative_log_likelihood(log_probabilities, labels),
        "ece": expected_calibration_error(log_probabilities, labels),
        "brier": brier_score(log_probabilities, labels),
    }


def _fresh_samples(
    rng_key: Array, model: ModelUnderTest, num_classes: int, per_class: int, steps: Sequence[int]
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Runs new class-conditional chains on E(x, y), keeping where they are after each of ``steps``."""
    labels = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), per_class)
    keys = jax.random.split(rng_key, len(steps) + 1)
    positions = jax.vmap(model.initial)(jax.random.split(keys[0], len(labels)), labels)
    advance = jax.jit(partial(run_labelled_chains, make_kernel=model.kernel, energy=joint_energy(model.logits)),
                      static_argnames="num_steps")  # fmt: skip
    kept, done = {}, 0
    for key, total in zip(keys[1:], steps, strict=True):
        positions = advance(
            key, params=model.params, positions=positions, labels=labels, num_steps=total - done
        )
        kept[total], done = np.asarray(positions), total
    return kept, np.asarray(labels)


def _judge_samples(
    images: np.ndarray, labels: np.ndarray, dataset: Dataset, predict: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Class agreement, and how samples compare with the training images of their class, in pixel space."""
    real = np.asarray(dataset.rescale(dataset.train.image))
    quality = prdc_by_class(
        _flat(real), dataset.train.label, _flat(images), labels, dataset.num_classes, k=NEIGHBOURS
    )
    return {
        "class_agreement": float(np.mean(predict(images) == labels)),
        "precision": float(quality.mean.precision),
        "recall": float(quality.mean.recall),
        "density": float(quality.mean.density),
        "coverage": float(quality.mean.coverage),
        "in_range": float(np.mean(within_range(images, -1.0, 1.0))),
        "count": len(labels),
    }


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1)


def _out_of_distribution(
    rng: np.random.Generator, model: ModelUnderTest, dataset: Dataset
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """AUROC of each score between the test images and each named set; returns it and the scores themselves."""
    test = np.asarray(dataset.rescale(dataset.test.image))
    sets = {name: make(rng, test, dataset.test.label) for name, make in OOD_SETS.items()}
    if dataset.held_out is not None:
        sets["excluded_classes"] = np.asarray(dataset.rescale(dataset.held_out.image))
    aurocs: dict[str, Any] = {}
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, make_score in OOD_SCORES.items():
        batch = jax.jit(jax.vmap(partial(make_score(model.logits), model.params)))
        scores[name] = {"test": _map_batches(batch, test)} | {
            key: _map_batches(batch, xs) for key, xs in sets.items()
        }
        inside = scores[name]["test"]
        aurocs[name] = {key: auroc(inside, scores[name][key]) for key in sets}
        aurocs[f"{name}_fpr95"] = {key: false_positive_rate(inside, scores[name][key]) for key in sets}
    return aurocs, scores


def evaluate(
    run: RunFolder,
    model: ModelUnderTest,
    dataset: Dataset,
    *,
    seed: int,
    samples_per_class: int,
    sample_steps: Sequence[int],
) -> dict[str, Any]:
    """Evaluates on the test split, draws the pictures, and returns the card's entries.

    Args:
      run: where pictures and ``samples.npz`` go.
      model: what to evaluate.
      dataset: its test split is looked at here, once, and nothing is selected on it.
      seed: of the fresh chains and the out-of-distribution sets.
      samples_per_class: fresh chains a class.
      sample_steps: increasing lengths at which they are judged.

    Returns:
      A dictionary as documented in docs/card.md.
    """
    images = {
        name: np.asarray(dataset.rescale(getattr(dataset, name).image))
        for name in ("train", "validation", "test")
    }
    card: dict[str, Any] = {"schema": SCHEMA}

    # What it knows of classes.
    log_probabilities = _log_probabilities(model, model.params, images["test"])
    card |= _classification(log_probabilities, dataset.test.label)
    validation = _log_probabilities(model, model.params, images["validation"])
    card["validation"] = _classification(validation, dataset.validation.label)
    curves = {"JEM": (reliability_curve(log_probabilities, dataset.test.label), card["ece"])}
    card["twin"] = None
    if model.twin_params is not None:
        twin = _log_probabilities(model, model.twin_params, images["test"])
        card["twin"] = _classification(twin, dataset.test.label)
        curves["cross-entropy twin"] = (reliability_curve(twin, dataset.test.label), card["twin"]["ece"])
    plots.reliability_diagram(run.path / "reliability.png", curves)

    # What it finds strange.
    card["ood"], scores = _out_of_distribution(np.random.default_rng(seed), model, dataset)
    plots.score_histograms(run.path / "ood.png", scores, card["ood"])

    # What it dreams: new chains, told apart from those that trained it.
    key = jax.random.fold_in(jax.random.key(seed), 1)
    fresh, labels = _fresh_samples(key, model, dataset.num_classes, samples_per_class, sample_steps)
    predict = _independent_classifier(images["train"], dataset.train.label)
    by_steps = {str(steps): _judge_samples(xs, labels, dataset, predict) for steps, xs in fresh.items()}
    worst = {name: min(entry[name] for entry in by_steps.values())
             for name in ("class_agreement", "precision", "recall", "density", "coverage", "in_range")}  # fmt: skip
    card["samples"] = {"fresh": worst | {"by_steps": by_steps}, "buffer": None}
    sheets = {f"fresh chains, {steps} steps": xs for steps, xs in fresh.items()}
    if model.buffer is not None:
        buffered = np.asarray(model.buffer.positions)
        buffer_labels = np.asarray(model.buffer.labels)
        if not model.conditional:  # a marginal chain has no class of its own: the model says which it is
            buffer_labels = _log_probabilities(model, model.params, buffered).argmax(axis=1).astype(np.int32)
        card["samples"]["buffer"] = _judge_buffer(buffered, buffer_labels, dataset, predict)
        card["samples"]["buffer"]["mean_age"] = float(np.mean(np.asarray(model.buffer.ages)))
        sheets["replay buffer (training chains)"] = buffered
    else:
        buffer_labels = labels
    _draw_samples(run, sheets, labels, buffer_labels, dataset)

    longest = fresh[sample_steps[-1]]
    card["nearest_training_image"] = _draw_neighbours(run, longest, labels, images, dataset)
    write_samples = {f"fresh_{steps}": xs for steps, xs in fresh.items()} | {"label": labels}
    _save_arrays(run, write_samples)

    # Energies of everything on one axis.
    batch = jax.jit(jax.vmap(partial(marginal_energy(model.logits), model.params)))
    energies = {name: _map_batches(batch, images[name]) for name in ("train", "test")}
    energies[f"fresh, {sample_steps[-1]} steps"] = _map_batches(batch, longest)
    energies |= {
        name.replace("_", " "): -values for name, values in scores["log_density"].items() if name != "test"
    }
    plots.energy_histogram(run.path / "energies.png", energies)
    card["energy"] = {name.split(",")[0]: {"mean": float(np.mean(value)), "sd": float(np.std(value))}
                      for name, value in energies.items() if name.split(",")[0] in ("train", "test", "fresh")}  # fmt: skip

    plots.training_curves(run.path / "training.png", run.read_metrics(),
                          ("loss", "cross_entropy", "energy_gap", "gradient_norm"))  # fmt: skip
    card["parameters"] = sum(int(leaf.size) for leaf in jax.tree.leaves(model.params))
    card["environment"] = {
        "jaxebm": jaxebm.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
    }
    return card


def _independent_classifier(images: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A classifier that never saw the model: trained on real images alone (a fixed subset where there are many)."""
    rows = np.random.default_rng(0).permutation(len(images))[:CLASSIFIER_IMAGES]
    return fit_independent_classifier(images[rows], labels[rows])


def _judge_buffer(
    images: np.ndarray, labels: np.ndarray, dataset: Dataset, predict: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    counts = np.bincount(labels, minlength=dataset.num_classes)
    if counts.min() <= NEIGHBOURS:  # a class that no chain visits has no neighbours to measure
        return {"class_agreement": float(np.mean(predict(images) == labels)), "count": len(labels),
                "in_range": float(np.mean(within_range(images, -1.0, 1.0))), "smallest_class": int(counts.min())}  # fmt: skip
    return _judge_samples(images, labels, dataset, predict) | {"smallest_class": int(counts.min())}


def _draw_samples(
    run: RunFolder,
    sheets: Mapping[str, np.ndarray],
    labels: np.ndarray,
    buffer_labels: np.ndarray,
    dataset: Dataset,
) -> None:
    """A row a class, the first ten samples of each: no selection."""
    columns = 10

    def rows(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        chosen = [np.flatnonzero(classes == y)[:columns] for y in range(dataset.num_classes)]
        blank = np.full((columns, *dataset.image_shape), 1.0, np.float32)
        return np.concatenate([np.concatenate([images[rows], blank[len(rows) :]]) for rows in chosen])

    tiles = {name: np.asarray(dataset.restore(rows(xs, buffer_labels if "buffer" in name else labels)))
             for name, xs in sheets.items()}  # fmt: skip
    real = rows(np.asarray(dataset.rescale(dataset.train.image)), dataset.train.label)
    plots.image_grids(
        run.path / "samples.png",
        tiles | {"training images": np.asarray(dataset.restore(real))},
        columns=columns,
    )


def _draw_neighbours(
    run: RunFolder,
    samples: np.ndarray,
    labels: np.ndarray,
    images: Mapping[str, np.ndarray],
    dataset: Dataset,
) -> dict[str, float]:
    """Samples beside their nearest training images; the distances beside those of test images tell copying from learning."""
    indices, distances = nearest_neighbours(_flat(samples), _flat(images["train"]))
    _, test_distances = nearest_neighbours(_flat(images["test"]), _flat(images["train"]))
    first = np.concatenate([np.flatnonzero(labels == y)[:2] for y in range(dataset.num_classes)])
    pairs = np.stack([samples[first], images["train"][indices[first, 0]]], axis=1).reshape(
        -1, *dataset.image_shape
    )
    plots.image_grid(run.path / "neighbours.png", np.asarray(dataset.restore(pairs)), columns=8,
                     title="fresh sample | its nearest training image")  # fmt: skip
    return {
        "fresh_median_distance": float(np.median(distances)),
        "test_median_distance": float(np.median(test_distances)),
    }


def _save_arrays(run: RunFolder, arrays: Mapping[str, np.ndarray]) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(run.path / "samples.npz", stream.getvalue())


def _check_finite(path: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _check_finite(f"{path}.{name}", entry)
    elif isinstance(value, float) and not np.isfinite(value):
        raise ValueError(f"card{path} is {value}: a card holds finite numbers only.")


def write_card(run: RunFolder, card: Mapping[str, Any]) -> None:
    """Writes card.json and card.md, and prints the latter."""
    _check_finite("", {name: value for name, value in card.items() if name != "config"})
    run.write_json("card.json", card)
    text = _markdown(card)
    write_atomically(run.path / "card.md", text)
    sys.stdout.write(f"{text}\nwritten to {run.path}\n")


def _markdown(card: Mapping[str, Any]) -> str:
    """The card for a reader: the same numbers, the questions that they answer, and the pictures."""

    def row(name: str, *values: Any) -> str:
        return f"| {name} | " + " | ".join(v if isinstance(v, str) else f"{v:.4g}" for v in values) + " |"

    twin = card["twin"]
    lines = [f"# JEM on {card['dataset']}, seed {card['seed']}", "",
             f"{card['updates']} updates, {card['parameters']} parameters, {card['seconds']:.0f} s on {card['environment']['device']}.",
             "", "## Classes (test split)", "", "| | JEM | cross-entropy twin |", "|---|---|---|"]  # fmt: skip
    for name, label in (
        ("accuracy", "accuracy"),
        ("nll", "NLL, nats"),
        ("ece", "ECE, 15 bins"),
        ("brier", "Brier"),
    ):
        lines.append(row(label, card[name], "-" if twin is None else twin[name]))
    lines += [
        "",
        "![reliability](reliability.png)",
        "",
        "## Out of distribution (AUROC against test images)",
        "",
    ]
    sets = list(next(iter(card["ood"].values())))
    lines += [f"| score | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    lines += [row(score, *card["ood"][score].values()) for score in OOD_SCORES]
    lines += ["", "![scores](ood.png)", "", "## Samples (against the training images of their class, pixel space, k = 5)", "",
              "| chains | class agreement | precision | recall | density | coverage | pixels in range |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    names = ("class_agreement", "precision", "recall", "density", "coverage", "in_range")
    for steps, entry in card["samples"]["fresh"]["by_steps"].items():
        lines.append(row(f"fresh, {steps} steps", *(entry[name] for name in names)))
    buffer = card["samples"]["buffer"]
    if buffer is not None:
        lines.append(row("replay buffer (training chains)", *(buffer.get(name, "-") for name in names)))
    near = card["nearest_training_image"]
    lines += ["", "![samples](samples.png)", "",
              f"Median distance to the nearest training image: fresh samples {near['fresh_median_distance']:.3g}, "
              f"test images {near['test_median_distance']:.3g}.", "",
              "![neighbours](neighbours.png)", "", "## Energies and training", "",
              "![energies](energies.png)", "", "![training](training.png)", "",
              "## Configuration", "", "```json", json.dumps(card["config"], indent=2), "```", ""]  # fmt: skip
    return "\n".join(lines)
