"""The pictures of hopfield.py; everything they show is computed elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from plots import INK, PALETTE, save

__all__ = [
    "PICTURES",
    "accuracy_panels",
    "capacities",
    "energy_landscapes",
    "energy_paths",
    "image_rows",
    "recall_steps",
]

PICTURES = ("accuracy", "recall", "energy", "masked", "diffusion", "landscape", "capacity")
MARKERS = "osD^v<>pP*Xh"
AXIS_OF = {
    "flips": "part of the pixels flipped",
    "noise": "noise, standard deviation",
    "mask": "part of the rows hidden",
}


def _style(index: int) -> dict[str, Any]:
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "-" if index < len(PALETTE) else "--",
        "markersize": 4,
    }


def _image(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    image = np.clip(0.5 * (np.asarray(values).reshape(shape) + 1), 0, 1)
    return image if shape[-1] == 3 else image.mean(axis=-1)


def _show(axes: Any, values: np.ndarray, shape: tuple[int, ...]) -> None:
    axes.imshow(_image(values, shape), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)


def accuracy_panels(path: Path, accuracy: Mapping[str, Any], by_count: Mapping[str, Any]) -> None:
    """Draws the part of memories recalled against each corruption, and against the number of memories."""
    figure, axes = plt.subplots(1, len(accuracy) + 1, figsize=(3.3 * (len(accuracy) + 1), 3.4), sharey=True)
    panels = [(AXIS_OF[kind], found["levels"], found["networks"]) for kind, found in accuracy.items()]
    panels.append((f"memories, {by_count['flips']:.0%} flipped", by_count["counts"], by_count["networks"]))
    for axis, (label, positions, networks) in zip(axes, panels, strict=True):
        for index, (name, row) in enumerate(networks.items()):
            means, spreads = [entry["mean"] for entry in row], [entry["sd"] for entry in row]
            axis.errorbar(positions, means, spreads, label=name, linewidth=1.2, capsize=2, **_style(index))
        axis.set(xlabel=label, ylim=(-0.03, 1.03))
    axes[-1].set_xscale("log")
    axes[0].set_ylabel("part of the memories recalled")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    save(figure, path)


def recall_steps(
    path: Path,
    paths: Mapping[str, np.ndarray],
    energies: Mapping[str, Sequence[float]],
    shape: tuple[int, ...],
) -> None:
    """Draws, a row a network: the memory, the query, and the states of recall with their energies."""
    columns = len(next(iter(paths.values())))
    figure, axes = plt.subplots(
        len(paths), columns, figsize=(1.05 * columns, 1.25 * len(paths)), squeeze=False
    )
    for row, (name, states) in zip(axes, paths.items(), strict=True):
        for column, (axis, state) in enumerate(zip(row, states, strict=True)):
            _show(axis, state, shape)
            if column:
                axis.set_title(f"{energies[name][column - 1]:.3g}", fontsize=6, fontweight="normal", pad=2)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for axis, label in zip(axes[-1], ["stored", "query", *range(1, columns - 1)], strict=True):
        axis.set_xlabel(str(label), fontsize=8)
    figure.suptitle("Recall step by step; above each state its energy", fontsize=10, y=0.91)
    figure.subplots_adjust(hspace=0.35, wspace=0.05)
    save(figure, path)


def energy_paths(path: Path, energies: Mapping[str, Sequence[float]]) -> None:
    """Draws the energy along recall, 1 at the query and 0 at the end, so that networks can be compared."""
    figure, axis = plt.subplots(figsize=(6.0, 3.4))
    for index, (name, values) in enumerate(energies.items()):
        fall = values[0] - values[-1]
        scaled = [(value - values[-1]) / fall if fall > 0 else 0.0 for value in values]
        axis.plot(scaled, label=name, linewidth=1.2, **_style(index))
    axis.set(xlabel="step or sweep", ylabel="energy, of its fall", title="The energy never rises")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    save(figure, path)


def image_rows(path: Path, rows: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Draws images in [-1, 1], a labelled row for each entry."""
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.0 * columns, 1.02 * len(rows)), squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            _show(axis, image, shape)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(hspace=0.06, wspace=0.06)
    save(figure, path)


def energy_landscapes(
    path: Path, memories: np.ndarray, energies: Mapping[str, np.ndarray], half_width: float
) -> None:
    """Draws energies (n, n) over the square, dark where low, with the memories as dots."""
    figure, axes = plt.subplots(1, len(energies), figsize=(3.0 * len(energies), 3.2))
    for axis, (name, values) in zip(axes, energies.items(), strict=True):
        side = np.linspace(-half_width, half_width, len(values))
        axis.contourf(side, side, values, levels=24, cmap="viridis")
        axis.set_aspect("equal")
        axis.plot(*memories.T, "o", color=PALETTE[1], markersize=4)
        axis.set(xticks=[], yticks=[], title=name)
    figure.tight_layout()
    save(figure, path)


def _measured(
    axis: Any, positions: Sequence[float], entries: Sequence[Mapping[str, float]], **style: Any
) -> None:
    means, errors = [entry["mean"] for entry in entries], [entry["error"] for entry in entries]
    axis.errorbar(positions, means, errors, capsize=2, **style)


def capacities(path: Path, found: Mapping[str, Any]) -> None:
    """Draws the capacity curves: points measured (with standard errors), lines and marks from theory."""
    figure, axes = plt.subplots(1, 5, figsize=(18.5, 3.4))
    hebb, stable, dense, modern = found["hebb"], found["stable"], found["dense"], found["modern"]

    curve = hebb["curve"]
    axes[0].plot(curve["loads"], curve["overlaps"], color=INK, linewidth=1, label="theory, D infinite")
    _measured(axes[0], hebb["loads"], hebb["measured"], label="measured", **_style(0) | {"linestyle": ""})
    axes[0].set(xlabel="K / D", ylabel="overlap with the start", title=f"Hebb, D = {hebb['dimension']}")
    axes[0].legend(fontsize=7)

    for index, (name, row) in enumerate(stable["fractions"].items()):
        _measured(axes[1], stable["counts"], row, label=name, **_style(index))
    axes[1].set(xlabel="K", ylabel="stable patterns", title=f"storage rules, D = {stable['dimension']}")
    axes[1].legend(fontsize=7)

    axes[2].plot(dense["loads"], dense["theory"], color=INK, linewidth=1, label="law")
    _measured(axes[2], dense["loads"], dense["measured"], label="measured", **_style(0) | {"linestyle": ""})
    axes[2].set(xlabel=f"K / D^{dense['degree'] - 1}", ylabel="error of a bit, one step")
    axes[2].set_title(f"dense, n = {dense['degree']}, D = {dense['dimension']}")
    axes[2].legend(fontsize=7)

    for index, basin in enumerate(found["exponential"]):
        _measured(
            axes[3],
            basin["rates"],
            basin["measured"],
            label=f"{basin['radius']:.0%} flipped",
            **_style(index),
        )
        axes[3].axvline(basin["bound"], color=PALETTE[index], linestyle="--", linewidth=1)
    axes[3].set(xlabel="ln K / D  (dashed: sure recall of all, D infinite)", ylabel="recalled in one step")
    axes[3].set_title(f"exponential, D = {found['exponential'][0]['dimension']}")
    axes[3].legend(fontsize=7)

    shown = np.clip(modern["bound"], 1e-9, 1e9), np.clip(modern["error"], 1e-9, None)
    axes[4].loglog(*shown, ".", markersize=2, color=PALETTE[0], alpha=0.4)
    axes[4].plot([1e-9, 1e9], [1e-9, 1e9], color=INK, linewidth=1)
    axes[4].set(xlabel="bound", ylabel="error after one step", xlim=(1e-10, 1e10), ylim=(1e-10, 1e2))
    axes[4].set_title(f"modern: {modern['violations']} violations of {modern['trials']}")
    figure.tight_layout()
    save(figure, path)
