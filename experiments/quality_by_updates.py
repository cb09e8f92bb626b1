"""How do accuracy and fresh samples grow with the updates of a run? One row for each checkpoint that it kept.

    jaxebm train --recipe dual_score_matching --network convnet --dataset cifar10 --output runs/cifar10 \\
        --run.keep-checkpoints 100
    python experiments/quality_by_updates.py --run runs/cifar10

    expected  experiments/RESULTS.md, "CIFAR-10 in an hour": accuracy and samples at each checkpoint
    time      one to two minutes for each checkpoint of CIFAR-10, and as much to train the judges
    device    two CPU cores

A run keeps its two newest checkpoints, unless --run.keep-checkpoints says more. Each is evaluated with its
averaged weights: as a classifier of the test images, and by fresh samples of each class, from the same noise.
Learning rates fall during a run: a shorter run, with a schedule of its own, is better than an early
checkpoint.

Writes card.json, card.md and two pictures to the output folder: the curves, and samples of every checkpoint.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gallery.plots import quality_curves
from jaxebm import checks, load
from jaxebm.data import Dataset, load_dataset
from jaxebm.recipes import Model
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.report import ReportSettings, evaluate
from jaxebm.report.figures import labelled_rows
from jaxebm.report.markdown import markdown_table
from jaxebm.training import Checkpoints, open_run, read_run

MEASURES = ("class_agreement", "precision", "coverage", "frechet_distance")
"""Of fresh samples; all but the first in the features of an independent network."""
PICTURED = 2
"""Samples of each class of each checkpoint in the picture, the first ones."""
QUESTIONS = ("classes", "samples")


@dataclass(frozen=True)
class Config(RunFlags):
    """Evaluate the accuracy and the samples of every checkpoint that a run kept."""

    run: Path = Path("runs/jem")
    """Folder of the run."""
    samples_per_class: int = 20
    """Fresh samples of each class, and test images of each class beside them."""
    sample_steps: int | None = None
    """Gradients that a sample takes; by default the largest number of the run's own evaluation."""
    output: Path = Path("runs/quality_by_updates")
    """Folder of this evaluation."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range."""
        checks.positive_integer("samples_per_class", self.samples_per_class)
        if self.sample_steps is not None:
            checks.positive_integer("sample_steps", self.sample_steps)


def measures_of(samples: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the `MEASURES` of one set of samples; None where there are too few of them."""
    features = samples.get("features", {})
    return {name: samples.get(name) if name == "class_agreement" else features.get(name) for name in MEASURES}


def draw(model: Model, dataset: Dataset, settings: ReportSettings, seed: int) -> np.ndarray:
    """Returns `PICTURED` samples of each class in [0, 1], class by class, the same noise for every model."""
    (steps,) = settings.sample_steps
    keys = jax.random.split(jax.random.key(seed), dataset.num_classes)
    drawn = [model.sample(key, PICTURED, label=label, num_steps=steps) for label, key in enumerate(keys)]
    return np.asarray(dataset.restore(dataset.rescale(np.concatenate(drawn))))


def as_markdown(config: Config, rows: Sequence[Mapping[str, Any]], test: Mapping[str, Any]) -> str:
    """Returns the table as text."""
    header = ("updates", "accuracy", "NLL", *(name.replace("_", " ") for name in MEASURES))

    def cells(name: str, accuracy: str, nll: str, one: Mapping[str, Any]) -> list[str]:
        found = ["-" if one[measure] is None else f"{one[measure]:.3f}" for measure in MEASURES]
        return [name, accuracy, nll, *found]

    table = [cells(str(row["step"]), f"{row['accuracy']:.4f}", f"{row['nll']:.3f}", row) for row in rows]
    table.append(cells("test images", "-", "-", test))
    title = f"# {config.run}: each checkpoint, {rows[0]['sample_steps']} gradients a sample"
    pictures = ["![curves](curves.png)", "", "![samples](samples.png)", ""]
    return "\n".join([title, "", *markdown_table(header, table), "", *pictures])


def main(config: Config) -> dict[str, Any]:
    """Evaluates every checkpoint and writes the card; returns it."""
    started = time.monotonic()
    config.check()
    with Checkpoints(read_run(config.run).checkpoints) as checkpoints:
        steps = [step for step in checkpoints.all_steps() if step > 0]
    if not steps:
        raise FileNotFoundError(f"{config.run} holds no checkpoint: train a run there, or name another one.")
    last = load(config.run)
    if not last.knows_classes:
        raise ValueError(f"{config.run} knows no classes: a run of --task supervised is needed.")
    dataset = load_dataset(last.config.dataset, exclude_classes=last.config.data.exclude_classes)
    longest = max(last.config.evaluation.sample_steps)
    settings = ReportSettings(
        samples_per_class=config.samples_per_class,
        sample_steps=(longest if config.sample_steps is None else config.sample_steps,),
    )
    run = open_run(config.output, as_json(config), overwrite=config.overwrite, resumable=False)
    rows: list[dict[str, Any]] = []
    sheets: dict[str, np.ndarray] = {}
    test: dict[str, float | None] = {}
    for step in steps:
        model = load(config.run, step=step)
        card = evaluate(
            model.logits,
            model.params,
            dataset,
            settings=settings,
            kernel=model.kernel,
            initial=jax.tree.map(jnp.asarray, model.initial),
            path=model.network.path if model.config.uses_levels else None,
            seed=config.seed,
            questions=QUESTIONS,
        )
        found = card["samples"]
        (fresh,) = found["fresh"]["by_steps"].values()
        row = {"step": step, "accuracy": card["accuracy"], "nll": card["nll"], **measures_of(fresh)}
        rows.append(row | {"sample_steps": settings.sample_steps[0]})
        sheets[f"{step} updates"] = draw(model, dataset, settings, config.seed)
        test = measures_of(found["test"])
        if config.progress:
            shown = [f"{name}={row[name]:.3f}" for name in ("accuracy", *MEASURES) if row[name] is not None]
            print(f"step {step}  {', '.join(shown)}  ({time.monotonic() - started:.0f} s)", flush=True)
    quality_curves(run.file("curves.png"), rows, test, ("accuracy", *MEASURES))
    labelled_rows(run.file("samples.png"), sheets)
    card = {
        "schema": 1,
        "experiment": "quality_by_updates",
        "seed": config.seed,
        "checkpoints": rows,
        "test": test,
        "seconds": time.monotonic() - started,
        "config": as_json(config),
    }
    publish_card(run, card, as_markdown(config, rows, test))
    return card


if __name__ == "__main__":
    run_experiment(Config, main)
