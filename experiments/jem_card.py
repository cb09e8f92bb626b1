"""The evaluation of a classifier that is an energy-based model: what was learnt, in numbers and pictures.

The entries that `evaluate` returns are documented in docs/card.md; card_text.py and card_html.py write them.
Its parts are card_classes.py, card_ood.py, card_robustness.py, card_samples.py, card_tasks.py and
jem_likelihood.py.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

import plots
from card_classes import judge_classes
from card_ood import judge_strangeness
from card_parts import Evaluation, Images, ModelUnderTest, map_batches, num_outputs
from card_robustness import judge_robustness
from card_samples import judge_long_runs, judge_samples, make_judges
from card_tasks import judge_tasks
from card_text import write_card
from environment import describe_environment
from evaluation_config import EvaluationFlags
from jaxebm.data import Dataset
from jaxebm.energies import marginal_energy
from jaxebm.training import RunFolder
from jem_likelihood import LikelihoodSettings, judge_likelihood
from jem_parts import TELEMETRY

__all__ = ["ModelUnderTest", "evaluate", "write_card"]

SCHEMA = 2
WATCHED = (
    *("energy_gap", "chain_distance", "gradient_norm_last", "buffer_age_mean"),
    *("long_run_energy_change", "long_run_gradient_ratio", "mmd_squared", "ksd_squared"),
)
"""Telemetry in the picture; card.json has the last of all."""
METRICS = ("loss", "cross_entropy", "energy_gap", "gradient_norm")
"""Metrics of training in the picture."""


def evaluate(
    run: RunFolder,
    model: ModelUnderTest,
    dataset: Dataset,
    flags: EvaluationFlags,
    *,
    seed: int,
    history: RunFolder | None = None,
) -> dict[str, Any]:
    """Evaluates on the test split, draws the pictures, and returns the card's entries.

    Args:
      run: where pictures and ``samples.npz`` go.
      model: what to evaluate.
      dataset: its test split is looked at here, once, and nothing is selected on it.
      flags: what to look at, and what that may cost.
      seed: of everything that is drawn.
      history: the run that trained the model, for its metrics; ``run`` itself by default.

    Returns:
      A dictionary as documented in docs/card.md.

    Raises:
      ValueError: if a flag is out of range.
      DatasetNotAvailableError: if an out-of-distribution set is not there.
    """
    EvaluationFlags.check(flags)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    images = {name: np.asarray(dataset.rescale(split.image)) for name, split in splits.items()}
    classes = num_outputs(model.logits, model.params, dataset.image_shape) > 1
    evaluation = Evaluation(run.path, model, dataset, images, flags, seed, classes)
    card: dict[str, Any] = {"schema": SCHEMA}

    # What it knows of classes, and how well that holds.
    card |= judge_classes(evaluation)
    card["robustness"] = judge_robustness(evaluation)

    # How likely it finds what it should find likely, and what it finds strange.
    settings = LikelihoodSettings(
        flags.likelihood_temperatures, flags.likelihood_steps, flags.likelihood_chains
    )
    card["likelihood"] = judge_likelihood(evaluation.key(2), model.logits, model.params, dataset, settings)
    strangeness, log_densities = judge_strangeness(evaluation)
    card |= strangeness

    # What it dreams: new chains, told apart from those that trained it; and what its sampler is good for.
    judges = make_judges(evaluation)
    samples, longest = judge_samples(evaluation, judges)
    card |= samples
    card["long_run"] = judge_long_runs(evaluation, judges)
    card["tasks"] = judge_tasks(evaluation, judges)

    # Energies of everything on one axis.
    fresh = f"fresh, {flags.sample_steps[-1]} steps"
    known = {"train": images["train"], "test": images["test"], fresh: longest.images}
    card["energy"] = _judge_energies(evaluation, known, log_densities)

    # What it took.
    card["telemetry"] = _draw_history(run, run if history is None else history)
    card["parameters"] = sum(int(leaf.size) for leaf in jax.tree.leaves(model.params))
    card["environment"] = describe_environment()
    return card


def _judge_energies(
    evaluation: Evaluation, known: Images, log_densities: Images
) -> dict[str, dict[str, float]]:
    """Mean and spread of E(x) on known images, drawn beside those of the out-of-distribution sets."""
    model = evaluation.model
    batch = jax.jit(jax.vmap(partial(marginal_energy(model.logits), model.params)))
    energies = {name: map_batches(batch, xs) for name, xs in known.items()}
    strange = {name.replace("_", " "): -values for name, values in log_densities.items() if name != "test"}
    plots.energy_histogram(evaluation.folder / "energies.png", energies | strange)
    return {
        name.split(",")[0]: {"mean": float(np.mean(values)), "sd": float(np.std(values))}
        for name, values in energies.items()
    }


def _draw_history(run: RunFolder, history: RunFolder) -> Mapping[str, float | None] | None:
    """Draws the metrics of training; returns the last telemetry."""
    records = history.read_metrics()
    recovered = [record["step"] for record in history.read_recoveries()]
    plots.training_curves(run.path / "training.png", records, METRICS, recovered)
    telemetry = sorted({name for record in records for name in record if name.startswith(TELEMETRY)})
    watched = [TELEMETRY + name for name in WATCHED]
    plots.training_curves(run.path / "telemetry.png", records, watched, recovered)
    last = {name.removeprefix(TELEMETRY): records[-1][name] for name in telemetry if name in records[-1]}
    return {name: value if np.isfinite(value) else None for name, value in last.items()} or None
