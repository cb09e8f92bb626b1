"""The card of hopfield_mil.py: figures over seeds, the table, the pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxebm.report.figures import ACCENT, INK, SECOND, drawing
from jaxebm.report.markdown import markdown_table

__all__ = ["as_markdown", "compare", "dots_with_spread", "spread", "weighted_images"]


def spread(by_seed: Sequence[float]) -> dict[str, Any]:
    """Returns mean, standard deviation (n - 1; none for a single seed) and the values themselves."""
    sd = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    return {"mean": float(np.mean(by_seed)), "sd": sd, "by_seed": list(by_seed)}


def compare(cards: Mapping[str, dict[str, Any]]) -> None:
    """Adds to each card by how much the first pooling's accuracy is higher, seed by seed."""
    first, *others = cards.values()
    for card in others:
        pairs = zip(first["accuracy"]["by_seed"], card["accuracy"]["by_seed"], strict=True)
        card["below_first"] = spread([ahead - behind for ahead, behind in pairs])


def as_markdown(
    cards: Mapping[str, dict[str, Any]], *, dataset: str, target: int, seeds: Sequence[int]
) -> str:
    """Returns the card as text.

    Args:
      cards: figures by pooling.
      dataset: whose images the bags hold.
      target: the class that makes a bag positive.
      seeds: of the runs.
    """

    def cell(card: Mapping[str, Any], name: str) -> str:
        if name not in card:
            return ""
        sd = card[name]["sd"]
        return f"{card[name]['mean']:.4f}" + ("" if sd is None else f" ± {sd:.4f}")

    lines = [
        f"# Bags of {dataset}, target {target}, seeds {', '.join(map(str, seeds))}",
        "",
        "Test bags, mean ± standard deviation over seeds. 'Below first': how much higher the accuracy of the",
        "first pooling is on the same bags. The AUROC of the weights is the chance that a target weighs more",
        "than another image of its bag. Chosen on validation bags: learning rate, weight decay, updates.",
        "",
    ]
    header = ("pooling", "accuracy", "below first", "AUROC", "AUROC of weights", "parameters", "validation")
    rows = []
    for name, card in cards.items():
        quantities = ("accuracy", "below_first", "auroc", "instance_auroc")
        cells = [name, *(cell(card, quantity) for quantity in quantities)]
        chosen = card["chosen"]
        setting = ", ".join(str(chosen[part]) for part in ("learning_rate", "weight_decay", "updates"))
        cells += [str(card["parameters"]), f"{chosen['validation_accuracy']:.4f}", setting]
        rows.append(cells)
    lines += markdown_table((*header, "chosen"), rows)
    pictures = ["accuracy"] + ["attention"] * any("instance_auroc" in card for card in cards.values())
    return "\n".join([*lines, "", *(f"![{name}]({name}.png)" for name in pictures), ""])


def dots_with_spread(path: Path, values: Mapping[str, Sequence[float]], *, ylabel: str) -> None:
    """Draws a column of values for each name, with mean and standard deviation (n - 1)."""
    with drawing(path, figsize=(1.2 * len(values) + 1.2, 3.2)) as (_, panels):
        axis = panels[0, 0]
        for place, column in enumerate(values.values()):
            mean, sd = float(np.mean(column)), np.std(column, ddof=1) if len(column) > 1 else 0.0
            axis.plot([place - 0.15] * len(column), column, "o", color=INK, alpha=0.35, markersize=4)
            axis.errorbar(place + 0.1, mean, sd, fmt="o", color=ACCENT, capsize=5, markersize=7)
            axis.annotate(f"{mean:.3f}", (place + 0.2, mean), color=ACCENT, va="center")
        axis.set(xlim=(-0.5, len(values) - 0.2), ylabel=ylabel, title="Seeds, mean and standard deviation")
        axis.set_xticks(range(len(values)), [name.replace("_", "\n") for name in values])


def weighted_images(
    path: Path, images: np.ndarray, weights: Mapping[str, np.ndarray], marked: np.ndarray
) -> None:
    """Draws images (n, H, W, C) in [0, 1] in a row and, below each, its bar in every named set of weights.

    Images where ``marked`` (n,) is True have another colour. A dashed line shows equal weights.
    """
    count = len(images)
    rows = len(weights)
    size, ratios = (0.34 * count + 1, 0.9 + 1.1 * rows), [0.5] + [1] * rows
    with drawing(path, 1 + rows, figsize=size, height_ratios=ratios, sharex=True) as (figure, axes):
        top = axes[0, 0]
        for place, image in enumerate(images):
            shown = image if image.shape[2] == 3 else image.mean(axis=2)
            top.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(place - 0.47, place + 0.47, 0, 0.94))
        top.set(xlim=(-0.6, count - 0.4), ylim=(0, 1), aspect="equal", anchor="S")
        top.set_axis_off()
        for axis, (name, weight) in zip(axes[1:, 0], weights.items(), strict=True):
            axis.bar(range(count), weight, 0.8, color=[SECOND if mark else ACCENT for mark in marked])
            axis.axhline(1 / count, color=INK, linewidth=0.8, linestyle="--")
            axis.set(xticks=[], ylabel="weight")
            axis.set_title(name.replace("_", " "), loc="left")
        figure.tight_layout()
