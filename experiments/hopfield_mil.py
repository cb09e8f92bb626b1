"""Multiple-instance learning: does a bag of digits contain a 9? Hopfield, mean, max and attention pooling.

    python experiments/hopfield_mil.py                                  # five poolings, five seeds
    python experiments/hopfield_mil.py --target 8 --poolings hopfield max

    expected  test accuracy, mean ± sd over seeds 0 to 4: hopfield .895 ± .009, hopfield_sparse .895 ± .039,
              attention .892 ± .040, max .916 ± .041, mean .625 ± .035
    time      99 s
    device    two CPU cores

A bag has a label, its images have none; a positive bag contains the target digit (by default once), a
negative bag does not. All poolings share encoder, value and output maps, optimiser, bags and batches, and
differ in the weights of the images of a bag. Learning rate, weight decay and number of updates are chosen for
each pooling by its mean accuracy over the seeds on validation bags; then it is trained again with these
settings and evaluated on test bags. Bags for training, validation and test come from those splits of the data
set, and each seed draws its own.

Writes config.json, metrics.jsonl (one line per trial), card.json, card.md, accuracy.png and attention.png
(the first positive test bag of the first seed, with its weights).
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.data import Dataset, load_dataset
from jaxebm.evaluation import auroc
from jaxebm.recipes.command_line import as_json, publish_card, run_experiment
from jaxebm.training import Progress, RunFolder, make_progress, open_run
from memories.bag_card import as_markdown, compare, dots_with_spread, spread, weighted_images
from memories.bags import Bags, draw_bags, within_bag_auroc
from memories.poolings import BagClassifier, Pooling, Trial, instance_weights, make_trial


@dataclass(frozen=True)
class Config:
    """Compare poolings of bags of digits on multiple-instance learning."""

    poolings: tuple[Pooling, ...] = get_args(Pooling)
    """Poolings to compare; hopfield_sparse uses 1.5-entmax weights, attention is gated."""
    dataset: str = "digits"
    """digits (scikit-learn), mnist, fashion_mnist, or another data set of jaxebm.data.load_dataset."""
    target: int = 9
    """The class that makes a bag positive."""
    output: Path = Path("runs/hopfield_mil")
    """Folder of this run."""
    resume: bool = False
    """Continue the run in the folder: finished trials of the grid are not repeated."""
    overwrite: bool = False
    """Replace the run in the folder."""
    progress: bool = True
    """Show a progress bar over trials (lines of text without a terminal)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds; each has its own bags, initial weights and batches."""

    train_bags: int = 150
    """Training bags, half of them positive."""
    judged_bags: int = 500
    """Number of validation bags, and of test bags."""
    bag_size: tuple[int, int] = (16, 40)
    """Least and greatest number of images in a bag, all equally likely."""
    max_targets: int = 1
    """Greatest number of targets in a positive bag; 1..max_targets are equally likely."""

    widths: tuple[int, ...] = (64, 16)
    """Widths of the encoder's layers."""
    num_heads: int = 8
    """Heads of the Hopfield poolings."""
    beta: float = 0.2
    """Inverse temperature of the Hopfield poolings; a small one starts near the mean."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Learning rates of AdamW, constant; one is chosen."""
    weight_decays: tuple[float, ...] = (0.03, 0.3, 1.0)
    """Weight decays of the kernels, decoupled, times the learning rate; one is chosen."""
    updates: int = 1000
    """Greatest number of updates, a multiple of stops."""
    stops: int = 5
    """Number of candidates for the number of updates, evenly spaced up to the greatest."""
    batch_size: int = 16
    """Bags per update."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        for name in ("train_bags", "judged_bags", "max_targets", "updates", "stops", "batch_size"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("poolings", "seeds", "learning_rates", "weight_decays"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: at least one value is needed, and each once.")
        unknown = [name for name in self.poolings if name not in get_args(Pooling)]
        if unknown:
            raise ValueError(f"poolings: unknown {unknown}; choose among {', '.join(get_args(Pooling))}.")
        for name in ("widths", "num_heads"):
            for value in np.atleast_1d(getattr(self, name)):
                checks.positive_integer(name, value)
        for name in ("learning_rates", "beta"):
            checks.positive(name, getattr(self, name))
        checks.non_negative("seeds", self.seeds)
        checks.non_negative("weight_decays", self.weight_decays)
        low, high = self.bag_size
        if not self.max_targets < low <= high:
            raise ValueError(
                f"bag_size={self.bag_size}: sizes above max_targets={self.max_targets} are needed."
            )
        if not self.widths or self.widths[-1] % self.num_heads:
            raise ValueError(f"widths={self.widths}: num_heads={self.num_heads} must divide the last.")
        if self.updates % self.stops:
            raise ValueError(f"updates={self.updates}: a multiple of stops={self.stops} is needed.")
        if self.judged_bags < 2:
            raise ValueError(f"judged_bags={self.judged_bags}: at least 2, one of each kind, are needed.")
        if self.batch_size > self.train_bags:
            raise ValueError(
                f"batch_size={self.batch_size}: at most train_bags={self.train_bags} is possible."
            )

    @property
    def grid(self) -> list[tuple[float, float]]:
        """The pairs of learning rate and weight decay."""
        return list(itertools.product(self.learning_rates, self.weight_decays))


def draw_all_bags(config: Config, dataset: Dataset) -> dict[int, tuple[Bags, Bags, Bags]]:
    """Returns the training, validation and test bags of every seed."""
    bags = {}
    parts = (dataset.train, dataset.validation, dataset.test)
    images = [jnp.asarray(dataset.rescale(part.image)) for part in parts]
    for seed in config.seeds:
        bags[seed] = tuple(
            draw_bags(
                (seed, number),
                images[number],
                part.label,
                config.train_bags if number == 0 else config.judged_bags,
                target=config.target,
                bag_size=config.bag_size,
                max_targets=config.max_targets,
            )
            for number, part in enumerate(parts)
        )
    return bags


def select(
    config: Config,
    pooling: str,
    trial: Trial,
    bags: Mapping[int, tuple[Bags, Bags, Bags]],
    run: RunFolder,
    shown: Progress,
) -> dict[str, Any]:
    """Runs the grid for one pooling and returns the setting of highest mean accuracy on validation bags.

    Finished trials are read from metrics.jsonl, not run again; of equal settings the first is chosen.
    """
    done = {record["trial"]: record["validation_accuracy"] for record in run.read_metrics()}
    grid = config.grid
    accuracies = np.zeros((len(grid), len(config.seeds), config.stops))
    step = config.poolings.index(pooling) * len(grid) * len(config.seeds)
    for place, column in np.ndindex(accuracies.shape[:2]):
        seed, setting = config.seeds[column], grid[place]
        name = f"{pooling} {seed} {setting}"
        step += 1
        if name not in done:
            train, validation, _ = bags[seed]
            done[name] = np.asarray(trial(seed, train, validation, *setting)[1], float).tolist()
            run.append_metrics({"step": step, "trial": name, "validation_accuracy": done[name]})
            shown.update(step, {})
        accuracies[place, column] = done[name]
    means = accuracies.mean(axis=1)
    place, stop = (int(index) for index in np.unravel_index(np.argmax(means), means.shape))
    return {
        "learning_rate": grid[place][0],
        "weight_decay": grid[place][1],
        "updates": (stop + 1) * config.updates // config.stops,
        "validation_accuracy": float(means[place, stop]),
    }


def judge(
    config: Config,
    model: BagClassifier,
    trial: Trial,
    bags: Mapping[int, tuple[Bags, Bags, Bags]],
    chosen: Mapping[str, Any],
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Trains again with the chosen setting; returns figures on test bags, and the first seed's weights."""
    stop = chosen["updates"] * config.stops // config.updates - 1
    values: dict[str, list[float]] = {"accuracy": [], "auroc": []}
    first_weights = params = None
    predict: Any = jax.jit(model.apply)
    weigh: Any = jax.jit(partial(instance_weights, model))
    for seed, (train, validation, test) in bags.items():
        stages, _ = trial(seed, train, validation, chosen["learning_rate"], chosen["weight_decay"])
        params = jax.tree.map(lambda leaf: leaf[stop], stages)
        logits = np.asarray(predict(params, test.image[test.member], test.mask))
        positive = np.asarray(test.label) == 1
        values["accuracy"].append(float(np.mean((logits > 0) == positive)))
        values["auroc"].append(auroc(logits[positive], logits[~positive]))
        weights = weigh(params, test)
        if weights is not None:
            weights = np.asarray(weights)
            values.setdefault("instance_auroc", []).append(within_bag_auroc(weights, test))
            first_weights = weights if first_weights is None else first_weights
    card: dict[str, Any] = {name: spread(by_seed) for name, by_seed in values.items()}
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return card | {"parameters": num_parameters, "chosen": chosen}, first_weights


def draw(
    run: RunFolder, cards: Mapping[str, Any], test: Bags, image: np.ndarray, weights: Mapping[str, np.ndarray]
) -> None:
    """Draws the accuracies and, where a pooling has weights, the first positive test bag with them."""
    accuracies = {name: card["accuracy"]["by_seed"] for name, card in cards.items()}
    dots_with_spread(run.file("accuracy.png"), accuracies, ylabel="accuracy on test bags")
    if weights:
        bag = int(np.argmax(test.label))
        inside = np.asarray(test.mask[bag])
        weighted_images(
            run.file("attention.png"),
            image[np.asarray(test.member[bag])[inside]],
            {name: weight[bag][inside] for name, weight in weights.items()},
            np.asarray(test.is_target[bag])[inside],
        )


def main(config: Config) -> dict[str, Any]:
    """Compares the poolings and writes the card; returns it."""
    started = time.monotonic()
    config.check()
    dataset = load_dataset(config.dataset)
    bags = draw_all_bags(config, dataset)
    settings = as_json(config)
    run = open_run(
        config.output,
        settings,
        resume=config.resume,
        overwrite=config.overwrite,
        uncompared=("output", "overwrite", "progress", "resume"),
    )
    total = len(config.poolings) * len(config.grid) * len(config.seeds)
    run.truncate_metrics(total)  # to whole lines: a kill may have cut the last one short
    cards, weights = {}, {}
    with make_progress(config.progress, first=len(run.read_metrics()), total=total) as shown:
        for pooling in config.poolings:
            model = BagClassifier(pooling, config.widths, config.num_heads, config.beta)
            trial = make_trial(
                model, updates=config.updates, stops=config.stops, batch_size=config.batch_size
            )
            chosen = select(config, pooling, trial, bags, run, shown)
            cards[pooling], first_weights = judge(config, model, trial, bags, chosen)
            if first_weights is not None:
                weights[pooling] = first_weights
    compare(cards)
    test = bags[config.seeds[0]][2]
    draw(run, cards, test, dataset.restore(np.asarray(test.image)), weights)
    card = {
        "schema": 1,
        "experiment": "hopfield_mil",
        "seeds": list(config.seeds),
        "poolings": cards,
        "seconds": time.monotonic() - started,
        "config": settings,
    }
    text = as_markdown(cards, dataset=config.dataset, target=config.target, seeds=config.seeds)
    publish_card(run, card, text)
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
