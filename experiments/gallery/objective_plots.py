"""The pictures of objective_gallery.py: what each objective learnt of each density, its samples of digits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gallery.densities import window
from gallery.density_plots import true_density
from jaxebm.data import ToyDensity
from jaxebm.report.figures import INK, drawing, labelled_rows

__all__ = ["digit_samples", "learnt_densities"]

SIDE = 100


def learnt_densities(
    path: Path,
    densities: Mapping[str, ToyDensity],
    arrays: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    divergences: Mapping[str, Mapping[str, float | None]],
) -> None:
    """Draws the true densities, and in a row for each objective the learnt ones, on the colours of the true.

    Where no density is learnt samples are drawn; an empty panel is a training that diverged.

    Args:
      path: the PNG.
      densities: by name, the columns.
      arrays: by objective and density, ``density`` (n, n) or else ``samples`` (m, 2).
      divergences: KL(data || model) by objective and density, or None.
    """
    rows, columns = len(arrays) + 1, len(densities)
    size = (1.3 * columns, 1.3 * rows)
    with drawing(path, rows, columns, figsize=size) as (figure, axes):
        for column, (name, density) in enumerate(densities.items()):
            low, high = window(density)
            extent = (low, high, low, high)
            true = true_density(density, SIDE)
            colours = {"cmap": "inferno", "vmin": 0.0, "vmax": float(np.quantile(true, 0.999))}
            axes[0, column].imshow(true.T, origin="lower", extent=extent, **colours)
            axes[0, column].set_title(name.replace("_", " "), fontsize=8, fontweight="normal")
            for row, (objective, by_density) in enumerate(arrays.items(), start=1):
                axis, found = axes[row, column], by_density[name]
                kl = divergences[objective][name]
                if "density" in found:
                    axis.imshow(found["density"].T, origin="lower", extent=extent, **colours)
                elif "samples" in found:
                    axis.set_facecolor("black")
                    axis.plot(*found["samples"].T, ".", color="#f2c14e", markersize=0.5, alpha=0.6)
                else:
                    axis.set_facecolor("#eeeeee")
                text = "" if kl is None else f"{kl:.3f}"
                axis.text(0.97, 0.03, text, transform=axis.transAxes, ha="right", color="white", fontsize=7)
                axis.set(xlim=(low, high), ylim=(low, high))
        for axis, label in zip(axes[:, 0], ("true density", *arrays), strict=True):
            text = label.replace("_", "\n") if len(label) > 14 else label.replace("_", " ")
            axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=7, color=INK)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], aspect="equal")
            axis.spines[:].set_visible(False)
        figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.04, hspace=0.04)


def digit_samples(
    path: Path,
    training: np.ndarray,
    samples: Mapping[str, np.ndarray | None],
    figures: Mapping[str, Mapping[str, Any]],
    count: int,
) -> None:
    """Draws a row of training images, and a row of the first samples of each name; none is selected.

    Args:
      path: the PNG.
      training: training images ``(n, H, W, C)`` in [-1, 1].
      samples: by name, such images; None of a training that diverged.
      figures: by name, with ``frechet_distance`` where it is known.
      count: samples of a row.
    """
    rows = {"training images": training}
    for name, images in samples.items():
        distance = figures[name].get("frechet_distance")
        found = "diverged" if images is None else "" if distance is None else f"Fréchet {distance:.1f}"
        title = f"{name.replace('_', ' ')}: {found}" if found else name.replace("_", " ")
        rows[title] = training[:0] if images is None else images[:count]
    labelled_rows(path, {title: 0.5 * (images + 1) for title, images in rows.items()})
