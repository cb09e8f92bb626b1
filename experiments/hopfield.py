"""Associative memories on real images: recall by each network, from several corruptions, and capacity.

    python experiments/hopfield.py                                    # scikit-learn's digits
    python experiments/hopfield.py --dataset mnist --output runs/hopfield-mnist
    python experiments/hopfield.py --dataset cifar10 --output runs/hopfield-cifar10

    expected  digits, 50 memories, lower half hidden: recalled .97 (.03) by modern, .99 (.02) by exponential,
              .00 (.00) by Hebb, mean (sd) over 5 choices; all of 1,000 memories recalled from their upper
              half where hidden pixels are integrated out; random patterns at D = 1000 and K / D = .138
              overlap .965 (standard error .019)
    time      digits 120 s, MNIST 255 s, CIFAR-10 609 s, on a machine with other load
    device    two CPU cores

Images are stored as spins (binary networks) or grey values (modern, sparse, Epanechnikov), corrupted by
flipped signs, Gaussian noise or hidden rows, and recalled by each network. Hidden pixels are integrated out
where that is exact; this is compared with nearest neighbours of an image whose hidden pixels are black.
Capacities are measured on random patterns and compared with theory.

Writes config.json, card.json, card.md and the pictures: accuracy.png, recall.png, energy.png, masked.png,
diffusion.png, landscape.png, capacity.png.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxebm import checks
from jaxebm.data import load_dataset
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.training import open_run
from memories import plots
from memories.capacity import measure_capacities
from memories.images import Stored, stored_images
from memories.networks import NETWORKS, landscapes
from memories.recall import LEVELS, accuracy_of, diffuse, paths_of_recall, recall_from_half
from memories.text import as_markdown


@dataclass(frozen=True)
class Config(RunFlags):
    """Store images in associative memories, corrupt them, recall them, and measure capacities."""

    dataset: str = "digits"
    """digits (scikit-learn), mnist, fashion_mnist, cifar10, any tfds name, or npz:FILE."""
    output: Path = Path("runs/hopfield")
    """Folder of this run."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Networks to compare."""
    num_memories: int = 50
    """Stored memories in the experiments on corruption."""
    memory_counts: tuple[int, ...] = (2, 5, 20, 100, 500)
    """Numbers of stored memories in the experiment on their number."""
    flips: float = 0.1
    """Share of flipped pixels in the experiment on the number of memories."""
    draws: int = 5
    """Independent choices of memories; figures are mean and standard deviation over them."""
    shown_memories: int = 5
    """Stored memories in the picture of one recall, step by step."""
    queries: int = 100
    """Greatest number of memories of each choice that are recalled."""
    threshold: float = 0.5
    """Threshold of a binary pixel, as a fraction of the range of values."""

    masked_memories: int = 1000
    """Stored memories for recall from half an image (all images if there are fewer)."""
    capacities: bool = True
    """Also measure the capacity of the networks for random patterns."""
    capacity_dimension: int = 1000
    """Spins of the random networks of the overlap curve."""
    capacity_networks: int = 5
    """Random networks for each point of a capacity curve."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        unknown = [name for name in self.networks if name not in NETWORKS]
        if unknown or not self.networks:
            known = ", ".join(NETWORKS)
            raise ValueError(f"networks={self.networks}: unknown {unknown}; choose among {known}.")
        for name in ("num_memories", "queries", "masked_memories", "capacity_dimension"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("num_memories", "shown_memories", "draws", "capacity_networks"):
            checks.positive_integer(name, getattr(self, name))
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)}: at least 2 are needed, to compare them.")
        if not self.memory_counts or min(self.memory_counts) < 2:
            raise ValueError(f"memory_counts={self.memory_counts}: numbers of at least 2 are needed.")
        checks.in_range("flips", self.flips, 0.0, 0.5)
        checks.in_range("threshold", self.threshold, 0.0, 1.0)


def compare_networks(config: Config, stored: Stored, show: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns accuracy by corruption, level and network, and accuracy by number of memories and network."""
    trials = [(kind, level) for kind, levels in LEVELS.items() for level in levels]
    by_corruption: dict[str, Any] = {kind: {"levels": LEVELS[kind], "networks": {}} for kind in LEVELS}
    counts = sorted({min(count, len(stored.spins)) for count in config.memory_counts})
    by_count: dict[str, Any] = {"counts": counts, "flips": config.flips, "networks": {}}
    sizes = {"draws": config.draws, "queries": config.queries, "seed": config.seed}
    for name in config.networks:
        show.set_description(name)
        entries = accuracy_of(stored, name, config.num_memories, trials, **sizes)
        for (kind, _), entry in zip(trials, entries, strict=True):
            by_corruption[kind]["networks"].setdefault(name, []).append(entry)
        flipped = [("flips", config.flips)]
        by_count["networks"][name] = [
            accuracy_of(stored, name, count, flipped, **sizes)[0] for count in counts
        ]
        show.update()
    return by_corruption, by_count


def main(config: Config) -> dict[str, Any]:
    """Runs all experiments, writes the card and returns it."""
    started = time.monotonic()
    config.check()
    stored = stored_images(load_dataset(config.dataset), config.threshold)
    if config.num_memories > len(stored.spins):
        raise ValueError(
            f"num_memories={config.num_memories}: the training images of {config.dataset} make "
            f"{len(stored.spins)} different binary ones."
        )
    run = open_run(config.output, as_json(config), resume=False, overwrite=config.overwrite, resumable=False)
    seed, capacities = config.seed, None
    with tqdm(total=len(config.networks) + config.capacities, disable=not config.progress) as show:
        accuracy, by_count = compare_networks(config, stored, show)
        plots.accuracy_panels(run.file("accuracy.png"), accuracy, by_count)
        easy = paths_of_recall(
            stored, config.networks, config.shown_memories, flips=0.1, noise=0.3, seed=seed
        )
        plots.recall_steps(run.file("recall.png"), *easy, stored.shape)
        _, energies = paths_of_recall(
            stored, config.networks, config.num_memories, flips=0.2, noise=0.7, seed=seed
        )
        plots.energy_paths(run.file("energy.png"), energies)
        masked, rows = recall_from_half(stored, config.masked_memories, seed)
        plots.image_rows(run.file("masked.png"), rows, stored.shape)
        diffusion, rows = diffuse(stored, config.masked_memories, seed)
        plots.image_rows(run.file("diffusion.png"), rows, stored.shape)
        plots.energy_landscapes(run.file("landscape.png"), *landscapes(half_width=1.6), half_width=1.6)
        if config.capacities:
            show.set_description("capacities")
            found = measure_capacities(seed, config.capacity_dimension, config.capacity_networks)
            show.update()
            plots.capacities(run.file("capacity.png"), found)
            counted = {name: found["modern"][name] for name in ("trials", "violations")}
            capacities = found | {"modern": counted}
    card = {
        "schema": 1,
        "experiment": "hopfield",
        "dataset": config.dataset,
        "seed": config.seed,
        "draws": config.draws,
        "num_memories": config.num_memories,
        "accuracy": accuracy,
        "by_count": by_count,
        "masked": masked,
        "diffusion": diffusion,
        "energies": energies,
        "capacity": capacities,
        "seconds": time.monotonic() - started,
        "config": as_json(config),
    }
    publish_card(run, card, as_markdown(card))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
