"""The picture of objective_gallery.py: what each objective learnt of each density."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gallery.densities import window
from gallery.density_plots import true_density
from jaxebm.data import ToyDensity
from jaxebm.report.figures import INK, drawing

__all__ = ["learnt_densities"]

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
