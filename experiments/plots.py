"""The pictures of the experiments. Only this file draws; everything it shows is computed elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # before pyplot: runs have no screen
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "density_panels",
    "dots_with_spread",
    "energy_histogram",
    "image_grid",
    "image_grids",
    "reliability_diagram",
    "save",
    "score_histograms",
    "training_curves",
    "weighted_images",
]

INK, ACCENT, SECOND = "#1f2933", "#0b6e99", "#d9730d"
PALETTE = ("#0b6e99", "#d9730d", "#4d8b31", "#9b3d8f", "#c0392b", "#7f8c8d", "#b08d00", "#34495e")
STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
}
FILLED: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.4}
OUTLINED: dict[str, Any] = {"histtype": "step", "alpha": 1.0}
mpl.rcParams.update(STYLE)  # pyright: ignore[reportCallIssue, reportArgumentType]


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all, and closes it."""
    temporary = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(temporary, bbox_inches="tight")
    plt.close(figure)
    temporary.replace(path)


def _tile(images: np.ndarray, columns: int, pad: int = 1) -> np.ndarray:
    """Lays images (n, H, W, C) in [0, 1] side by side, ``columns`` to a row, on white."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + pad) + pad, columns * (width + pad) + pad, channels))
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + pad) + pad, (index % columns) * (width + pad) + pad
        sheet[top : top + height, left : left + width] = image
    return sheet


def _show(axes: Axes, sheet: np.ndarray) -> None:
    shown = sheet if sheet.shape[2] == 3 else sheet.mean(axis=2)
    axes.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def _legend_below(axes: Axes, **style: Any) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), **style)  # inside it would hide curves


def image_grid(path: Path, images: np.ndarray, *, columns: int, title: str = "") -> None:
    """Draws one sheet of images (n, H, W, C) in [0, 1]."""
    image_grids(path, {title: images}, columns=columns)


def image_grids(
    path: Path, sheets: Mapping[str, np.ndarray], *, columns: int, per_row: int | None = None
) -> None:
    """Draws several sheets of images side by side, each under its title, ``per_row`` to a row if not all."""
    tiles = {title: _tile(images, columns) for title, images in sheets.items()}
    aspect = max(tile.shape[0] / tile.shape[1] for tile in tiles.values())
    across = len(tiles) if per_row is None else per_row
    down = -(-len(tiles) // across)
    size = (3.4 * across, (3.4 * aspect + 0.4) * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
    for axis in axes.flat[len(tiles) :]:
        axis.set_axis_off()
    for axis, (title, tile) in zip(axes.flat, tiles.items(), strict=False):
        _show(axis, tile)
        axis.set_title(title)
    figure.tight_layout()
    save(figure, path)


def reliability_diagram(path: Path, curves: Mapping[str, tuple[Any, float]]) -> None:
    """Draws accuracy against confidence, a panel for each ``label: (ReliabilityCurve, ece)``."""
    figure, axes = plt.subplots(
        2, len(curves), figsize=(3.6 * len(curves), 4.4), squeeze=False, sharex=True, height_ratios=(3, 1)
    )
    for column, (label, (curve, ece)) in enumerate(curves.items()):
        edges, weight = np.asarray(curve.edges), np.asarray(curve.weight)
        filled = weight > 0
        middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges) * 0.92
        top, bottom = axes[0, column], axes[1, column]
        accuracy, confidence = np.asarray(curve.accuracy)[filled], np.asarray(curve.confidence)[filled]
        top.bar(
            middle[filled], accuracy, width[filled], color=ACCENT, alpha=0.35, label="accuracy in the bin"
        )
        top.plot(confidence, accuracy, "o", color=ACCENT, markersize=4)
        top.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="perfect calibration")
        top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"{label}: ECE {ece:.3f}")
        top.legend(loc="upper left", fontsize=7)
        bottom.bar(middle, weight, width, color=INK, alpha=0.6)
        bottom.set(xlabel="confidence, max p(y|x)", ylabel="share", yscale="log")
    figure.tight_layout()
    save(figure, path)


def energy_histogram(path: Path, energies: Mapping[str, np.ndarray]) -> None:
    """Draws histograms of E(x) = -log p(x) - log Z of several sets on one axis.

    Far tails are gathered at the edges.
    """
    values = np.concatenate([np.asarray(value, float) for value in energies.values()])
    low, high = np.quantile(values, [0.005, 0.995])
    bins = list(np.linspace(low, max(high, low + 1e-6), 60))
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for index, (name, value) in enumerate(energies.items()):
        style = FILLED if index < 3 else OUTLINED  # model and data filled, so that all can be told apart
        color = PALETTE[index % len(PALETTE)]
        shown = np.clip(value, low, high)
        axes.hist(shown, bins, density=True, label=name, color=color, linewidth=1.4, **style)
    axes.set(xlabel="energy E(x), low is likely", ylabel="density", yscale="log", title="Energies")
    _legend_below(axes, fontsize=7, ncols=4)
    figure.tight_layout()
    save(figure, path)


def score_histograms(
    path: Path, scores: Mapping[str, Mapping[str, np.ndarray]], aurocs: Mapping[str, Mapping[str, float]]
) -> None:
    """Draws a panel for each out-of-distribution score, test data against each named set, with the AUROC."""
    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    lines = -(-max(map(len, scores.values())) // 2)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, (3.3 + 0.15 * lines) * rows), squeeze=False
    )
    for axis in axes.flat[len(scores) :]:
        axis.axis("off")
    for axis, (score, sets) in zip(axes.flat, scores.items(), strict=False):
        values = np.concatenate([np.asarray(value, float) for value in sets.values()])
        low, high = np.quantile(values, [0.01, 0.995])
        bins = list(np.linspace(low, max(high, low + 1e-6), 50))
        for index, (name, value) in enumerate(sets.items()):
            auroc = aurocs[score].get(name)
            label = name if auroc is None else f"{name}  {auroc:.3f}"
            style = FILLED if index == 0 else OUTLINED
            color = PALETTE[index % len(PALETTE)]
            shown = np.clip(value, low, high)
            axis.hist(shown, bins, density=True, label=label, color=color, linewidth=1.3, **style)
        axis.set(title=score.replace("_", " "), xlabel="score, high is in-distribution", yscale="log")
        _legend_below(axis, fontsize=6.5, ncols=2, title="AUROC", title_fontsize=7)
    figure.tight_layout()
    save(figure, path)


def training_curves(
    path: Path,
    records: Sequence[Mapping[str, float]],
    names: Sequence[str],
    recoveries: Sequence[int] = (),
) -> None:
    """Draws the named metrics against the update, each from the records that have it.

    Args:
      path: the picture.
      records: lines of ``metrics.jsonl``.
      names: metrics, some of which may be missing.
      recoveries: updates at which the run was taken back, marked by lines.
    """
    measured = {name: [record for record in records if name in record] for name in names}
    present = [name for name in names if measured[name]]
    if not present:
        return
    columns = min(len(present), 4)
    rows = -(-len(present) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.0 * columns, 2.5 * rows), squeeze=False)
    for axis in axes.flat[len(present) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, present, strict=False):
        steps = [record["step"] for record in measured[name]]
        values = [record[name] for record in measured[name]]
        axis.plot(steps, values, color=ACCENT, linewidth=1, marker="." if len(steps) < 30 else None)
        axis.set(title=name.removeprefix("telemetry_").replace("_", " "), xlabel="update")
        if name.endswith(("energy_gap", "energy_change")):
            axis.axhline(0, color=INK, linewidth=0.8, linestyle="--")
        for step in recoveries:
            axis.axvline(step, color=INK, linewidth=0.8, linestyle=":")
    figure.tight_layout()
    save(figure, path)


def survival(path: Path, records: Sequence[Mapping[str, Any]], runaway: float) -> None:
    """Draws the energy gaps of all runs, with recovery and without, and how recovered runs turned out."""
    figure, axes = plt.subplots(1, 3, figsize=(11.0, 3.2), width_ratios=(1.3, 1.3, 1.0))
    for axis, recovery, title in ((axes[0], False, "without recovery"), (axes[1], True, "with recovery")):
        for record in (record for record in records if record["recovery"] == recovery):
            steps, gaps = np.array(record["gaps"]).T
            sick = record["diverged"] or record["recoveries"]
            axis.plot(steps, gaps, color=ACCENT if sick else INK, linewidth=0.6, alpha=0.9 if sick else 0.25)
            for one in record["recoveries"]:
                axis.axvline(one["step"], ymax=0.06, color=ACCENT, linewidth=0.7)
        axis.set_yscale("symlog", linthresh=10.0)
        axis.set(title=title, xlabel="update", ylabel="energy gap, nats")
        axis.axhline(-runaway, color=INK, linewidth=0.8, linestyle="--")
    axes[1].sharey(axes[0])
    finished = [record for record in records if record["recovery"] and not record["diverged"]]
    for label, color, rows in (
        ("never sick", INK, [record for record in finished if not record["recoveries"]]),
        ("recovered", ACCENT, [record for record in finished if record["recoveries"]]),
    ):
        accuracy, coverage = ([record[name] for record in rows] for name in ("accuracy", "coverage"))
        axes[2].scatter(accuracy, coverage, s=12, color=color, label=label, alpha=0.7)
    axes[2].set(title="finished runs", xlabel="test accuracy", ylabel="coverage of fresh samples")
    axes[2].legend(fontsize=7)
    figure.tight_layout()
    save(figure, path)


def density_panels(
    path: Path,
    bounds: tuple[float, float],
    true: np.ndarray,
    learnt: np.ndarray,
    samples: np.ndarray,
    *,
    title: str,
) -> None:
    """Draws a true density, a learnt one on the same colour scale, and samples of the model, side by side.

    Args:
      path: the PNG.
      bounds: the window [low, high]^2.
      true: densities on a grid, ``(n, n)``, first axis x.
      learnt: the same of the model.
      samples: ``(m, 2)``.
      title: the heading.
    """
    low, high = bounds
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4))
    top = float(np.quantile(true, 0.999))
    for axis, density in zip(axes, (true, learnt), strict=False):
        extent = (low, high, low, high)
        axis.imshow(density.T, origin="lower", extent=extent, cmap="inferno", vmin=0, vmax=top)
    axes[2].set_facecolor("black")
    axes[2].plot(samples[:, 0], samples[:, 1], ".", color="#f2c14e", markersize=1.2, alpha=0.6)
    for axis, name in zip(axes, ("true density", "learnt density", "samples"), strict=True):
        axis.set(xlim=(low, high), ylim=(low, high), xticks=[], yticks=[], aspect="equal", title=name)
    figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)


def dots_with_spread(path: Path, values: Mapping[str, Sequence[float]], *, ylabel: str) -> None:
    """Draws a column of values for each name, with mean and standard deviation (n - 1)."""
    figure, axis = plt.subplots(figsize=(1.2 * len(values) + 1.2, 3.2))
    for place, column in enumerate(values.values()):
        mean, sd = float(np.mean(column)), np.std(column, ddof=1) if len(column) > 1 else 0.0
        axis.plot([place - 0.15] * len(column), column, "o", color=INK, alpha=0.35, markersize=4)
        axis.errorbar(place + 0.1, mean, sd, fmt="o", color=ACCENT, capsize=5, markersize=7)
        axis.annotate(f"{mean:.3f}", (place + 0.2, mean), color=ACCENT, va="center")
    axis.set(xlim=(-0.5, len(values) - 0.2), ylabel=ylabel, title="Seeds, mean and standard deviation")
    axis.set_xticks(range(len(values)), [name.replace("_", "\n") for name in values])
    save(figure, path)


def weighted_images(
    path: Path, images: np.ndarray, weights: Mapping[str, np.ndarray], marked: np.ndarray
) -> None:
    """Draws images (n, H, W, C) in [0, 1] in a row and, under each, its bar in every named set of weights.

    Images where ``marked`` (n,) is True stand out by colour. A dashed line shows equal weights.
    """
    count = len(images)
    rows = len(weights)
    figure, axes = plt.subplots(
        *(1 + rows, 1),
        figsize=(0.34 * count + 1, 0.9 + 1.1 * rows),
        height_ratios=[0.5] + [1] * rows,
        sharex=True,
        squeeze=False,
    )
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
    save(figure, path)
