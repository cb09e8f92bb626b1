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
    sections = (
        _heading,
        _classes,
        _likelihood,
        _out_of_distribution,
        _samples,
        _neighbours,
        _training,
        _configuration,
    )
    written = [lines for section in sections if (lines := section(card))]
    return "\n".join(line for lines in written for line in (*lines, ""))


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


def _likelihood(card: Card) -> list[str]:
    likelihood = card["likelihood"]
    if likelihood is None:
        return []
    header = "| T | bits per dimension | nats an image | log Z | effective weights | settling, nats (se) |"

    def between(entry: Mapping[str, float]) -> str:
        return f"{entry['low']:.4g} to {entry['high']:.4g}"

    def row(temperature: str, entry: Mapping[str, Any]) -> str:
        bounds = [between(entry[name]) for name in ("bits_per_dimension", "nats", "log_partition")]
        if not entry["consistent"]:
            bounds[0] += " (the bounds contradict each other: not converged)"
        weights = entry["effective_sample_size"]
        return _row(
            temperature,
            *bounds,
            f"{weights['forward']:.0f} and {weights['reverse']:.0f} of {likelihood['chains']}",
            "{mean:+.2f} ({standard_error:.2f})".format(**entry["settling"]),
        )

    return [
        "## Likelihood of the test images under exp(-E / T), on the box of their cells",
        "",
        header,
        "|---|---|---|---|---|---|",
        *(row(temperature, entry) for temperature, entry in likelihood["by_temperature"].items()),
        "",
        f"Annealed importance sampling over {likelihood['steps']} temperatures, forward and reverse; uniform "
        f"noise costs {likelihood['uniform_bits_per_dimension']:.3f} bits. Settling: by how much log p rose "
        "in the chains that the reverse run starts from; far from 0, the upper bound of log Z means little.",
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
    pictures = ["energies", "training", *(["telemetry"] if card["telemetry"] else [])]
    told = ["No update was sick: the run never had to recover."]
    if card["recoveries"]:
        told = [f"The run recovered {len(card['recoveries'])} times (lines in the pictures):", ""]
        told += [
            f"- {one['said']}: back to step {one['back_to']} with {one['remedy']}; "
            f"in force: {one['in_force'] or 'nothing else'}."
            for one in card["recoveries"]
        ]
    if not card["config"].get("recovery", True):
        told = ["Recovery was off (`--no-recovery`)."]
    shown = [line for name in pictures for line in (f"![{name}]({name}.png)", "")]
    return ["## Energies and training", "", *told, "", *shown[:-1]]


def _configuration(card: Card) -> list[str]:
    return ["## Configuration", "", "```json", json.dumps(card["config"], indent=2), "```"]
