"""The card on paper: card.json for machines, whose schema docs/card.md documents, and card.md for readers."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from command_line import publish_card
from jaxebm.evaluation import OOD_SCORES
from jaxebm.training import RunFolder

__all__ = ["SAMPLE_MEASURES", "write_card"]

SAMPLE_MEASURES = ("class_agreement", "precision", "recall", "density", "coverage", "in_range")
"""What the card says of every set of samples, in this order; more is better in each."""
CLASS_MEASURES = {"accuracy": "accuracy", "nll": "NLL, nats", "ece": "ECE, 15 bins", "brier": "Brier"}

Card = Mapping[str, Any]


def write_card(run: RunFolder, card: Card) -> None:
    """Writes card.json and card.md, and prints the latter.

    Raises:
      ValueError: if a number outside ``config`` is not finite.
    """
    _check_finite("", {name: value for name, value in card.items() if name != "config"})
    publish_card(run, card, _markdown(card))


def _check_finite(path: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _check_finite(f"{path}.{name}", entry)
    elif isinstance(value, float) and not np.isfinite(value):
        raise ValueError(f"card{path} is {value}: a card holds finite numbers only.")


def _markdown(card: Card) -> str:
    """The card for a reader: the same numbers, the questions that they answer, and the pictures."""
    sections = (_heading, _classes, _out_of_distribution, _samples, _neighbours, _training, _configuration)
    return "\n".join(line for section in sections for line in (*section(card), ""))


def _row(name: str, *values: Any) -> str:
    cells = (value if isinstance(value, str) else f"{value:.4g}" for value in values)
    return f"| {name} | {' | '.join(cells)} |"


def _heading(card: Card) -> list[str]:
    cost = f"{card['seconds']:.0f} s on {card['environment']['device']}"
    return [
        f"# JEM on {card['dataset']}, seed {card['seed']}",
        "",
        f"{card['updates']} updates, {card['parameters']} parameters, {cost}.",
    ]


def _classes(card: Card) -> list[str]:
    twin = card["twin"] or dict.fromkeys(CLASS_MEASURES, "-")
    return [
        "## Classes (test split)",
        "",
        "| | JEM | cross-entropy twin |",
        "|---|---|---|",
        *(_row(label, card[name], twin[name]) for name, label in CLASS_MEASURES.items()),
        "",
        "![reliability](reliability.png)",
    ]


def _out_of_distribution(card: Card) -> list[str]:
    sets = next(iter(card["ood"].values())).keys()
    return [
        "## Out of distribution (AUROC against test images)",
        "",
        f"| score | {' | '.join(sets)} |",
        "|---" * (len(sets) + 1) + "|",
        *(_row(score, *card["ood"][score].values()) for score in OOD_SCORES),
        "",
        "![scores](ood.png)",
    ]


def _samples(card: Card) -> list[str]:
    fresh, buffer = card["samples"]["fresh"]["by_steps"], card["samples"]["buffer"]
    chains = {f"fresh, {steps} steps": entry for steps, entry in fresh.items()}
    if buffer is not None:
        chains["replay buffer (training chains)"] = buffer
    return [
        "## Samples (against the training images of their class, pixel space, k = 5)",
        "",
        "| chains | class agreement | precision | recall | density | coverage | pixels in range |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, *(entry.get(m, "-") for m in SAMPLE_MEASURES)) for name, entry in chains.items()),
        "",
        "![samples](samples.png)",
    ]


def _neighbours(card: Card) -> list[str]:
    near = card["nearest_training_image"]
    fresh = f"fresh samples {near['fresh_median_distance']:.3g}"
    test = f"test images {near['test_median_distance']:.3g}"
    return [
        f"Median distance to the nearest training image: {fresh}, {test}.",
        "",
        "![neighbours](neighbours.png)",
    ]


def _training(card: Card) -> list[str]:
    del card
    return ["## Energies and training", "", "![energies](energies.png)", "", "![training](training.png)"]


def _configuration(card: Card) -> list[str]:
    return ["## Configuration", "", "```json", json.dumps(card["config"], indent=2), "```"]
