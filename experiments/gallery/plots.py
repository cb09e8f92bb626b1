"""Pictures of samplers: trajectories over energies, marginals against exact ones, intervals for log Z."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gallery.judge import Judgement
from gallery.targets import Setting
from jaxebm.report.figures import ACCENT, INK, PALETTE, SECOND, drawing

__all__ = ["error_map", "interval_panels", "level_errors", "marginals", "quality_curves", "trajectories"]

Judgements = Mapping[str, Mapping[str, Judgement]]


def error_map(path: Path, results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Draws the Kolmogorov-Smirnov distance of every sampler (columns) on every target (rows)."""
    targets, samplers = list(results), list(next(iter(results.values())))
    values = np.array([[results[t][s]["kolmogorov"] for s in samplers] for t in targets], np.float64)
    size = (0.8 * len(samplers) + 2.5, 0.4 * len(targets) + 1.6)
    with drawing(path, figsize=size) as (_, panels):
        axis = panels[0, 0]
        axis.imshow(np.log10(np.maximum(values, 1e-3)), cmap="YlOrBr", vmin=-2.3, vmax=0, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = "diverged" if np.isnan(value) else f"{value:.3f}"
            colour = "white" if value > 0.15 else INK
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(samplers)), [name.replace("_", "\n") for name in samplers], fontsize=7)
        axis.set_yticks(range(len(targets)), targets, fontsize=8)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.set_title("Kolmogorov-Smirnov distance from exact samples, worst coordinate")


def _energies(setting: Setting, low: np.ndarray, high: np.ndarray, points: int = 160) -> tuple[Any, ...]:
    """Energies above the least on a grid over the window."""
    axes = [np.linspace(a, b, points) for a, b in zip(low, high, strict=True)]
    mesh = np.stack(np.meshgrid(*axes, indexing="xy"), axis=-1)
    energy = jax.jit(jax.vmap(jax.vmap(setting.target.target)))
    values = np.asarray(energy(jnp.asarray(mesh, jnp.float32)), np.float64)
    return *axes, values - np.nanmin(values)


def trajectories(path: Path, settings: Mapping[str, Setting], judgements: Judgements) -> None:
    """Draws the first steps of one chain over each two-dimensional landscape; a population as points."""
    flat = [name for name, setting in settings.items() if setting.target.dimension == 2]
    if not flat:
        return
    samplers = list(judgements[flat[0]])
    size = (1.35 * len(samplers), 1.4 * len(flat))
    with drawing(path, len(flat), len(samplers), figsize=size) as (figure, grid):
        for row, name in zip(grid, flat, strict=True):
            low, high = np.quantile(settings[name].exact, [0.002, 0.998], axis=0)
            margin = 0.08 * (high - low)
            low, high = low - margin, high + margin
            x, y, energies = _energies(settings[name], low, high)
            for axis, sampler in zip(row, samplers, strict=True):
                judgement = judgements[name][sampler]
                levels = np.linspace(0, 9, 10)
                axis.contourf(x, y, energies, levels=levels, cmap="Blues_r", extend="max", alpha=0.8)
                walk = judgement.path
                if len(walk):
                    axis.plot(*walk.T, color=SECOND, linewidth=0.5, alpha=0.9)
                else:
                    points = judgement.samples[:300]
                    axis.plot(*points.T, ".", color=SECOND, markersize=1.2)
                axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            row[0].set_ylabel(name, fontsize=7)
        for axis, sampler in zip(grid[0], samplers, strict=True):
            axis.set_title(sampler.replace("_", "\n"), fontsize=7, fontweight="normal")
        figure.subplots_adjust(wspace=0.05, hspace=0.05)


def marginals(path: Path, settings: Mapping[str, Setting], judgements: Judgements) -> None:
    """Draws the marginals of the first two coordinates: exact samples filled, every sampler as a line."""
    columns = min(len(settings), 4)
    rows = -(-len(settings) // columns)
    with drawing(path, 2 * rows, columns, figsize=(2.9 * columns, 3.0 * rows)) as (figure, axes):
        for axis in axes.flat:
            axis.axis("off")
        lines: dict[str, Any] = {}
        for place, (name, setting) in enumerate(settings.items()):
            for coordinate in range(2):
                axis = axes[2 * (place // columns) + coordinate, place % columns]
                axis.axis("on")
                lines |= _marginal(axis, setting.exact[:, coordinate], judgements[name], coordinate)
                axis.set_title(f"{name}, x{'₀₁'[coordinate]}", fontsize=8, fontweight="normal")
        figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=5, fontsize=8)
        figure.tight_layout(rect=(0, 0.3 / rows / 3, 1, 1))


def _marginal(
    axis: Any, exact: np.ndarray, judgements: Mapping[str, Judgement], coordinate: int
) -> dict[str, Any]:
    """Draws one panel and returns the line of each sampler; one without finite samples has none."""
    low, high = np.quantile(exact, [0.001, 0.999])
    bins = np.linspace(low, high, 50)
    axis.hist(exact, bins=bins, density=True, color="#d5dbe1")
    lines = {}
    for colour, (sampler, judgement) in zip((*PALETTE, INK), judgements.items(), strict=False):
        values = judgement.samples[:, coordinate]
        values = values[np.isfinite(values)]
        if values.size == 0:
            continue
        heights, _ = np.histogram(values, bins=bins)
        heights = heights / (values.size * np.diff(bins))
        (lines[sampler],) = axis.step(bins[:-1], heights, where="post", color=colour, linewidth=0.8)
    axis.set_yticks([])
    axis.tick_params(labelsize=6)
    return lines


def interval_panels(path: Path, ends: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws every interval as a line, less the exact value, sorted by its middle; those that miss in colour.

    Args:
      path: the PNG.
      ends: by target and schedule, ``(repetitions, 2)``: both ends less the exact log Z.
    """
    columns = max(len(by_length) for by_length in ends.values())
    size = (2.4 * columns, 1.9 * len(ends))
    with drawing(path, len(ends), columns, figsize=size, sharey="row") as (figure, axes):
        for row, (target, by_length) in zip(axes, ends.items(), strict=True):
            for axis, (length, intervals) in zip(row, by_length.items(), strict=True):
                ordered = intervals[np.argsort(intervals.mean(axis=1))]
                missed = (ordered[:, 0] >= 0) | (ordered[:, 1] <= 0)
                places = np.arange(len(ordered))
                for these, colour in ((~missed, ACCENT), (missed, SECOND)):
                    axis.vlines(places[these], *ordered[these].T, color=colour, linewidth=0.9)
                axis.axhline(0, color=INK, linewidth=0.8)
                axis.set_xticks([])
                axis.set_title(f"{length} temperatures", fontsize=8, fontweight="normal")
            row[0].set_ylabel(f"{target}\nnats from exact", fontsize=8)
        figure.tight_layout()


def quality_curves(
    path: Path, rows: Sequence[Mapping[str, Any]], test: Mapping[str, float | None], measures: Sequence[str]
) -> None:
    """Draws each measure against the updates of a run, and that of test images as a line.

    Args:
      path: the PNG.
      rows: of each checkpoint its ``step`` and measures, None where one could not be computed.
      test: the measures of test images, where they have them.
      measures: the names, a panel each.
    """
    with drawing(path, 1, len(measures), figsize=(2.6 * len(measures), 2.4)) as (figure, axes):
        for axis, name in zip(axes[0], measures, strict=True):
            known = [(row["step"], row[name]) for row in rows if row[name] is not None]
            if known:
                axis.plot(*zip(*known, strict=True), color=ACCENT, marker="o", markersize=3)
            reference = test.get(name)
            if reference is not None:
                axis.axhline(reference, color=INK, linewidth=0.8, linestyle="--")
            axis.set(title=name.replace("_", " "), xlabel="updates")
        figure.tight_layout()


def level_errors(path: Path, results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Draws the error of log p at every noise level, its mean and standard deviation over draws.

    Args:
      path: the PNG.
      results: by dimension and objective, with ``levels`` and ``error`` (``mean`` and ``sd``), in nats.
    """
    size = (3.6 * len(results), 3.0)
    with drawing(path, 1, len(results), figsize=size) as (figure, axes):
        for axis, (dimension, by_objective) in zip(axes[0], results.items(), strict=True):
            for color, (name, one) in zip(PALETTE, by_objective.items(), strict=False):
                levels = np.asarray(one["levels"])
                mean, sd = np.asarray(one["error"]["mean"]), np.asarray(one["error"]["sd"])
                axis.plot(levels, mean, color=color, label=name.replace("_", " "))
                axis.fill_between(levels, mean - sd, mean + sd, color=color, alpha=0.2, linewidth=0)
            axis.axhline(0, color=INK, linewidth=0.8)
            axis.set(xscale="log", xlabel="noise level", title=f"{dimension} dimensions")
        axes[0][0].set_ylabel("-E less the exact log p, nats")
        axes[0][0].legend(fontsize=7, frameon=False)
        figure.tight_layout()
