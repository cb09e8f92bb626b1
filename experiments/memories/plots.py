"""The pictures of hopfield.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxebm.report.figures import INK, PALETTE, drawing

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


def _curve(index: int) -> dict[str, Any]:
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "-" if index < len(PALETTE) else "--",
        "markersize": 4,
    }


def _image(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    image = np.clip(0.5 * (np.asarray(values).reshape(shape) + 1), 0, 1)
    return image if shape[-1] == 3 else image.mean(axis=-1)


def _show(axis: Any, values: np.ndarray, shape: tuple[int, ...]) -> None:
    axis.imshow(_image(values, shape), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)


def accuracy_panels(path: Path, accuracy: Mapping[str, Any], by_count: Mapping[str, Any]) -> None:
    """Draws the part of memories recalled against each corruption, and against the number of memories."""
    panels = [(AXIS_OF[kind], found["levels"], found["networks"]) for kind, found in accuracy.items()]
    panels.append((f"memories, {by_count['flips']:.0%} flipped", by_count["counts"], by_count["networks"]))
    with drawing(path, 1, len(panels), figsize=(3.3 * len(panels), 3.4), sharey=True) as (_, grid):
        axes = grid[0]
        for axis, (label, positions, networks) in zip(axes, panels, strict=True):
            for index, (name, row) in enumerate(networks.items()):
                means, spreads = [entry["mean"] for entry in row], [entry["sd"] for entry in row]
                axis.errorbar(
                    positions, means, spreads, label=name, linewidth=1.2, capsize=2, **_curve(index)
                )
            axis.set(xlabel=label, ylim=(-0.03, 1.03))
        axes[-1].set_xscale("log")
        axes[0].set_ylabel("part of the memories recalled")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)


def recall_steps(
    path: Path,
    paths: Mapping[str, np.ndarray],
    energies: Mapping[str, Sequence[float]],
    shape: tuple[int, ...],
) -> None:
    """Draws, a row a network: the memory, the query, and the states of recall with their energies."""
    columns = len(next(iter(paths.values())))
    size = (1.05 * columns, 1.25 * len(paths))
    with drawing(path, len(paths), columns, figsize=size) as (figure, axes):
        for row, (name, states) in zip(axes, paths.items(), strict=True):
            for column, (axis, state) in enumerate(zip(row, states, strict=True)):
                _show(axis, state, shape)
                if column:
                    title = f"{energies[name][column - 1]:.3g}"
                    axis.set_title(title, fontsize=6, fontweight="normal", pad=2)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axis, label in zip(axes[-1], ["stored", "query", *range(1, columns - 1)], strict=True):
            axis.set_xlabel(str(label), fontsize=8)
        figure.suptitle("Recall step by step; above each state its energy", fontsize=10, y=0.91)
        figure.subplots_adjust(hspace=0.35, wspace=0.05)


def energy_paths(path: Path, energies: Mapping[str, Sequence[float]]) -> None:
    """Draws the energy along recall, 1 at the query and 0 at the end, so that networks can be compared."""
    with drawing(path, figsize=(6.0, 3.4)) as (_, panels):
        axis = panels[0, 0]
        for index, (name, values) in enumerate(energies.items()):
            fall = values[0] - values[-1]
            scaled = [(value - values[-1]) / fall if fall > 0 else 0.0 for value in values]
            axis.plot(scaled, label=name, linewidth=1.2, **_curve(index))
        axis.set(xlabel="step or sweep", ylabel="energy, of its fall", title="The energy never rises")
        axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)


def image_rows(path: Path, rows: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Draws images in [-1, 1], a labelled row for each entry."""
    columns = len(next(iter(rows.values())))
    size = (1.0 * columns, 1.02 * len(rows))
    with drawing(path, len(rows), columns, figsize=size) as (figure, axes):
        for row, (name, images) in zip(axes, rows.items(), strict=True):
            for axis, image in zip(row, images, strict=True):
                _show(axis, image, shape)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        figure.subplots_adjust(hspace=0.06, wspace=0.06)


def energy_landscapes(
    path: Path, memories: np.ndarray, energies: Mapping[str, np.ndarray], half_width: float
) -> None:
    """Draws energies (n, n) over the square, dark where low, with the memories as dots."""
    with drawing(path, 1, len(energies), figsize=(3.0 * len(energies), 3.2)) as (figure, axes):
        for axis, (name, values) in zip(axes[0], energies.items(), strict=True):
            side = np.linspace(-half_width, half_width, len(values))
            axis.contourf(side, side, values, levels=24, cmap="viridis")
            axis.set_aspect("equal")
            axis.plot(*memories.T, "o", color=PALETTE[1], markersize=4)
            axis.set(xticks=[], yticks=[], title=name)
        figure.tight_layout()


def _measured(
    axis: Any, positions: Sequence[float], entries: Sequence[Mapping[str, float]], **options: Any
) -> None:
    means, errors = [entry["mean"] for entry in entries], [entry["error"] for entry in entries]
    axis.errorbar(positions, means, errors, capsize=2, **options)


def capacities(path: Path, found: Mapping[str, Any]) -> None:
    """Draws the capacity curves: points measured (with standard errors), lines and marks from theory."""
    with drawing(path, 1, 5, figsize=(18.5, 3.4)) as (figure, panels):
        axes = panels[0]
        _hebb_curve(axes[0], found["hebb"])
        _stable_fractions(axes[1], found["stable"])
        _dense_errors(axes[2], found["dense"])
        _exponential_basins(axes[3], found["exponential"])
        _modern_errors(axes[4], found["modern"])
        figure.tight_layout()


def _hebb_curve(axis: Any, hebb: Mapping[str, Any]) -> None:
    curve = hebb["curve"]
    axis.plot(curve["loads"], curve["overlaps"], color=INK, linewidth=1, label="theory, D infinite")
    _measured(axis, hebb["loads"], hebb["measured"], label="measured", **_curve(0) | {"linestyle": ""})
    axis.set(xlabel="K / D", ylabel="overlap with the start", title=f"Hebb, D = {hebb['dimension']}")
    axis.legend(fontsize=7)


def _stable_fractions(axis: Any, stable: Mapping[str, Any]) -> None:
    for index, (name, row) in enumerate(stable["fractions"].items()):
        _measured(axis, stable["counts"], row, label=name, **_curve(index))
    axis.set(xlabel="K", ylabel="stable patterns", title=f"storage rules, D = {stable['dimension']}")
    axis.legend(fontsize=7)


def _dense_errors(axis: Any, dense: Mapping[str, Any]) -> None:
    axis.plot(dense["loads"], dense["theory"], color=INK, linewidth=1, label="law")
    _measured(axis, dense["loads"], dense["measured"], label="measured", **_curve(0) | {"linestyle": ""})
    axis.set(xlabel=f"K / D^{dense['degree'] - 1}", ylabel="error of a bit, one step")
    axis.set_title(f"dense, n = {dense['degree']}, D = {dense['dimension']}")
    axis.legend(fontsize=7)


def _exponential_basins(axis: Any, basins: Sequence[Mapping[str, Any]]) -> None:
    for index, basin in enumerate(basins):
        label = f"{basin['radius']:.0%} flipped"
        _measured(axis, basin["rates"], basin["measured"], label=label, **_curve(index))
        axis.axvline(basin["bound"], color=PALETTE[index], linestyle="--", linewidth=1)
    axis.set(xlabel="ln K / D  (dashed: sure recall of all, D infinite)", ylabel="recalled in one step")
    axis.set_title(f"exponential, D = {basins[0]['dimension']}")
    axis.legend(fontsize=7)


def _modern_errors(axis: Any, modern: Mapping[str, Any]) -> None:
    shown = np.clip(modern["bound"], 1e-9, 1e9), np.clip(modern["error"], 1e-9, None)
    axis.loglog(*shown, ".", markersize=2, color=PALETTE[0], alpha=0.4)
    axis.plot([1e-9, 1e9], [1e-9, 1e9], color=INK, linewidth=1)
    axis.set(xlabel="bound", ylabel="error after one step", xlim=(1e-10, 1e10), ylim=(1e-10, 1e2))
    axis.set_title(f"modern: {modern['violations']} violations of {modern['trials']}")
