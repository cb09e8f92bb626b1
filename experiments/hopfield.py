"""Associative memories on real images: what each network recalls, from what, and how many it holds.

    python experiments/hopfield.py                                    # scikit-learn's digits, embedded
    python experiments/hopfield.py --dataset mnist --output runs/hopfield-mnist
    python experiments/hopfield.py --dataset cifar10 --output runs/hopfield-cifar10

Images are stored as spins (binary networks) or grey values (modern, sparse, Epanechnikov), corrupted by
flipped signs, Gaussian noise or hidden rows, and recalled by each network. Hidden pixels are integrated out
where that is exact, which is compared with nearest neighbours on an image whose hidden pixels are black.
Random patterns measure capacities beside theory.

Writes config.json, card.json, card.md and the pictures: accuracy.png, recall.png, energy.png, masked.png,
diffusion.png, landscape.png, capacity.png. Figures with their spread are in experiments/RESULTS.md.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import hopfield_capacity as capacity
import hopfield_plots as plots
from command_line import RunFlags, as_json, publish_card, run_experiment
from hopfield_parts import (
    METRICS,
    NETWORKS,
    Stored,
    corrupt,
    landscapes,
    nearest_by,
    path_of_recall,
    recall_all,
    recalled,
    resolving_beta,
    stored_images,
)
from hopfield_text import as_markdown
from jaxebm import checks
from jaxebm.data import load_dataset
from jaxebm.hopfield import modern, reverse_diffusion
from jaxebm.training import RunFolder, open_run

LEVELS: dict[str, tuple[float, ...]] = {
    "flips": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4),
    "noise": (0.0, 0.2, 0.5, 1.0, 1.5, 2.0),
    "mask": (0.0, 0.125, 0.25, 0.5, 0.75),
}


@dataclass(frozen=True)
class Config(RunFlags):
    """Store images in associative memories, corrupt them, recall them, and measure capacities."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, any tfds name, or npz:FILE."""
    output: Path = Path("runs/hopfield")
    """Folder of this run."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which networks to compare."""
    num_memories: int = 50
    """Memories stored where the corruption varies."""
    memory_counts: tuple[int, ...] = (2, 5, 20, 100, 500)
    """Memories stored where their number varies."""
    flips: float = 0.1
    """Part of the pixels flipped where the number of memories varies."""
    draws: int = 5
    """Independent choices of memories; figures are mean and standard deviation over them."""
    shown_memories: int = 5
    """Memories stored where one recall is drawn step by step."""
    queries: int = 100
    """At most this many memories of a choice are asked for."""
    threshold: float = 0.5
    """Part of the range of values above which a pixel is 1."""

    masked_memories: int = 1000
    """Memories stored for recall from half an image (all there are, if fewer)."""
    capacities: bool = True
    """Measure also how many random patterns the networks hold."""
    capacity_dimension: int = 1000
    """Spins of the random networks whose overlap curve is measured."""
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


def accuracy_of(
    config: Config, stored: Stored, name: str, num_memories: int, trials: list[tuple[str, float]]
) -> list[dict[str, float]]:
    """Returns the part of memories recalled for each (corruption, level): mean and sd over draws."""
    network = NETWORKS[name]
    rows: list[list[float]] = [[] for _ in trials]
    for draw in range(config.draws):
        rng = np.random.default_rng([config.seed, draw, num_memories])
        chosen = rng.permutation(len(stored.spins))[:num_memories]
        patterns = (stored.spins if network.spins else stored.grey)[chosen]
        memory = network.make(jnp.asarray(patterns))
        targets = patterns[: config.queries]
        for row, (kind, level) in zip(rows, trials, strict=True):
            queries, observed = corrupt(rng, targets, kind, level, spins=network.spins)
            states = recall_all(network.recall, memory, jnp.asarray(queries), jnp.asarray(observed))
            row.append(float(np.mean(recalled(np.asarray(states), targets))))
    return [{"mean": float(np.mean(row)), "sd": float(np.std(row, ddof=1))} for row in rows]


def compare_networks(config: Config, stored: Stored, show: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns accuracy by corruption, level and network, and accuracy by number of memories and network."""
    trials = [(kind, level) for kind, levels in LEVELS.items() for level in levels]
    by_corruption: dict[str, Any] = {kind: {"levels": LEVELS[kind], "networks": {}} for kind in LEVELS}
    counts = sorted({min(count, len(stored.spins)) for count in config.memory_counts})
    by_count: dict[str, Any] = {"counts": counts, "flips": config.flips, "networks": {}}
    for name in config.networks:
        show.set_description(name)
        entries = accuracy_of(config, stored, name, config.num_memories, trials)
        for (kind, _), entry in zip(trials, entries, strict=True):
            by_corruption[kind]["networks"].setdefault(name, []).append(entry)
        flipped = [("flips", config.flips)]
        by_count["networks"][name] = [
            accuracy_of(config, stored, name, count, flipped)[0] for count in counts
        ]
        show.update()
    return by_corruption, by_count


def recall_from_half(config: Config, stored: Stored, run: RunFolder) -> dict[str, Any]:
    """Returns how often an image is recalled from its upper half, by each measure of similarity."""
    rng = np.random.default_rng([config.seed, 1])
    memories = stored.grey[rng.permutation(len(stored.grey))[: config.masked_memories]]
    queries, observed = corrupt(rng, memories, "mask", 0.5, spins=False)
    # Where memories agree on all that is seen, nothing can tell them apart: those are left out, and counted.
    seen = memories[:, observed[0]]
    first, index, count = np.unique(seen, axis=0, return_index=True, return_inverse=True, return_counts=True)[
        1:
    ]
    distinct = count[index] == 1
    memory = modern(memories, resolving_beta(jnp.asarray(seen[first]), 0.0), equal_weights=True)
    recall = NETWORKS["modern"].recall
    states = np.asarray(recall_all(recall, memory, jnp.asarray(queries), jnp.asarray(observed)))
    black = np.where(observed, memories, -1.0)
    found = {name: nearest_by(name, 0.5 * (black + 1), 0.5 * (memories + 1)) for name in METRICS}
    rates = {
        f"{name}, hidden pixels black": float(np.mean((index == np.arange(len(memories)))[distinct]))
        for name, index in found.items()
    }
    right = recalled(states, memories)[distinct]
    rates["modern network, hidden pixels integrated out"] = float(np.mean(right))
    rows = {"stored": memories[:8], "seen": black[:8]}
    rows |= {name: memories[index[:8]] for name, index in found.items()} | {"integrated out": states[:8]}
    plots.image_rows(run.path / "masked.png", rows, stored.shape)
    return {
        "memories": len(memories),
        "exact_ties": int(np.sum(~distinct)),
        "beta": float(memory.beta),
        "recalled": rates,
    }


def draw_recall(config: Config, stored: Stored, run: RunFolder) -> dict[str, list[float]]:
    """Draws recall step by step among few memories, and the energies, returned, of one among many."""
    order = np.random.default_rng([config.seed, 2]).permutation(len(stored.spins))

    def path(name: str, count: int, flips: float, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        network = NETWORKS[name]
        patterns = (stored.spins if network.spins else stored.grey)[order[:count]]
        corruption = ("flips", flips) if network.spins else ("noise", noise)
        rng = np.random.default_rng([config.seed, 3])
        query, _ = corrupt(rng, patterns[:1], *corruption, spins=network.spins)
        memory = network.make(jnp.asarray(patterns))
        states, energies = path_of_recall(network, memory, jnp.asarray(query[0]), num_steps=6)
        return patterns[0], np.asarray(states), np.asarray(energies)

    easy = {name: path(name, config.shown_memories, 0.1, 0.3) for name in config.networks}
    paths = {
        name: np.concatenate([stored_one[None], states]) for name, (stored_one, states, _) in easy.items()
    }
    heights = {name: energies.tolist() for name, (_, _, energies) in easy.items()}
    plots.recall_steps(run.path / "recall.png", paths, heights, stored.shape)
    hard = {name: path(name, config.num_memories, 0.2, 0.7)[2].tolist() for name in config.networks}
    plots.energy_paths(run.path / "energy.png", hard)
    return hard


def draw_diffusion(config: Config, stored: Stored, run: RunFolder) -> dict[str, float]:
    """Draws diffusion run backwards over the memories, and returns how many chains end on one."""
    rng = np.random.default_rng([config.seed, 4])
    patterns = jnp.asarray(stored.grey[rng.permutation(len(stored.grey))[: config.masked_memories]])
    # From noise that drowns every difference between memories to noise that drowns none.
    levels = jnp.concatenate([jnp.geomspace(30.0, 0.05, 24), jnp.zeros(1)])
    key, keys = jax.random.key(config.seed), jax.random.split(jax.random.key(config.seed + 1), 200)
    start = levels[0] * jax.random.normal(key, (len(keys), patterns.shape[1]))

    def run_backwards(num_levels: int, chains: int) -> np.ndarray:
        step = partial(reverse_diffusion, patterns=patterns, noise_levels=levels[:num_levels])
        return np.asarray(jax.jit(jax.vmap(lambda key, x: step(key, x=x)))(keys[:chains], start[:chains]))

    last = run_backwards(len(levels), len(keys))
    distance = np.array([np.min(np.max(np.abs(np.asarray(patterns) - x), axis=1)) for x in last])
    shown = 8
    frames = {f"{float(levels[n - 1]):.2g}": run_backwards(n, shown) for n in (6, 10, 14, 18, 24)}
    frames = {f"{float(levels[0]):.2g}": np.asarray(start[:shown])} | frames | {"0": last[:shown]}
    rows = {f"noise {level}": images for level, images in frames.items()}
    plots.image_rows(run.path / "diffusion.png", rows, stored.shape)
    return {
        "ends_on_a_memory": float(np.mean(distance < 1e-5)),
        "different_memories": len(np.unique(last.round(4), axis=0)),
        "chains": len(last),
    }


def measure_capacities(config: Config, run: RunFolder, show: Any) -> dict[str, Any]:
    """Returns the capacities of random patterns beside theory, and draws them."""
    seed, nets = config.seed, config.capacity_networks
    show.set_description("capacities")
    loads = (0.05, 0.1, 0.12, 0.138, 0.15, 0.16, 0.18, 0.2)
    counts = (10, 20, 40, 60, 100, 150, 199)
    rates = tuple(float(rate) for rate in np.round(np.linspace(0.02, 0.24, 8), 3))
    dimension = config.capacity_dimension
    found = {
        "hebb": capacity.hebb_curve(seed, loads, dimension=dimension, num_networks=nets, num_starts=20),
        "stable": capacity.stable_fractions(seed, counts, dimension=200, num_networks=nets),
        "dense": capacity.dense_errors(
            seed, (0.05, 0.1, 0.2, 0.4), degree=3, dimension=100, num_networks=nets
        ),
        "exponential": [
            capacity.exponential_basins(seed, rates, radius=radius, dimension=40, num_networks=nets)
            for radius in (0.1, 0.2, 0.3)
        ],
        "modern": capacity.modern_errors(seed, 10_000),
    }
    show.update()
    plots.capacities(run.path / "capacity.png", found)
    return found | {"modern": {name: found["modern"][name] for name in ("trials", "violations")}}


def main(config: Config) -> dict[str, Any]:
    """Runs all of it, writes the card and returns it."""
    started = time.monotonic()
    config.check()
    stored = stored_images(load_dataset(config.dataset), config.threshold)
    if config.num_memories > len(stored.spins):
        raise ValueError(
            f"num_memories={config.num_memories}: the training images of {config.dataset} make "
            f"{len(stored.spins)} different binary ones."
        )
    run = open_run(config.output, as_json(config), resume=False, overwrite=config.overwrite, resumable=False)
    with tqdm(total=len(config.networks) + config.capacities, disable=not config.progress) as show:
        accuracy, by_count = compare_networks(config, stored, show)
        plots.accuracy_panels(run.path / "accuracy.png", accuracy, by_count)
        energies = draw_recall(config, stored, run)
        masked = recall_from_half(config, stored, run)
        diffusion = draw_diffusion(config, stored, run)
        plots.energy_landscapes(run.path / "landscape.png", *landscapes(half_width=1.6), half_width=1.6)
        capacities = measure_capacities(config, run, show) if config.capacities else None
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
