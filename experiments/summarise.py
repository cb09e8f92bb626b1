"""Mean and standard deviation over runs, as the table of experiments/RESULTS.md.

    for seed in 0 1 2 3 4; do python experiments/jem.py --seed $seed --output runs/jem-$seed; done
    python experiments/summarise.py --runs runs/jem-*

Reads each run's card.json; refuses runs whose settings differ in anything but the seed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from command_line import run_experiment
from jaxebm.training.manifest import UNCOMPARED

VARYING = UNCOMPARED | {"seed"}


@dataclass(frozen=True)
class Config:
    """Print a table of mean and standard deviation over finished runs."""

    runs: tuple[Path, ...]
    """Folders that hold card.json."""


def read_cards(runs: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Reads the cards and checks that they are of one configuration and of different seeds."""
    cards = []
    for run in runs:
        card = run / "card.json"
        if not card.is_file():
            raise FileNotFoundError(f"{card} is missing: the run is not finished; go on with --resume.")
        cards.append(json.loads(card.read_text()))
    if not cards:
        raise ValueError("runs is empty: name at least one folder that holds card.json.")
    first = cards[0]["config"]
    for run, card in zip(runs, cards, strict=True):
        config = card["config"]
        names = (config.keys() | first.keys()) - VARYING
        differing = ", ".join(sorted(name for name in names if config.get(name) != first.get(name)))
        if differing:
            raise ValueError(f"{run} differs from {runs[0]} in {differing}: a mean over both says nothing.")
    seeds = [card["seed"] for card in cards]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds {seeds} repeat: each seed counts once.")
    return cards


def numbers(card: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flattens a card to its numbers by dotted name."""
    found: dict[str, float] = {}
    for name, value in card.items():
        if name in ("config", "environment", "schema", "seed"):
            continue
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[prefix + name] = float(value)
    return found


def table(cards: list[dict[str, Any]]) -> str:
    """Returns the markdown table: mean, standard deviation (n - 1), lowest and highest of every number."""
    rows = [numbers(card) for card in cards]
    lines = [
        f"n = {len(cards)}, seeds {', '.join(str(card['seed']) for card in cards)}",
        "",
        "| quantity | mean | sd | lowest | highest |",
        "|---|---|---|---|---|",
    ]
    for name in rows[0]:
        values = np.array([row[name] for row in rows if name in row])
        sd = values.std(ddof=1) if len(values) > 1 else float("nan")
        lines.append(f"| {name} | {values.mean():.4f} | {sd:.4f} | {values.min():.4f} | {values.max():.4f} |")
    return "\n".join(lines)


def main(config: Config) -> None:
    """Prints the table."""
    print(table(read_cards(config.runs)))


if __name__ == "__main__":
    run_experiment(Config, main)
