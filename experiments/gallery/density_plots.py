"""The picture of density_2d.py: a density, the learnt density, and samples of the learnt one."""

from pathlib import Path

import jax
import numpy as np

from gallery.densities import window
from jaxebm.data import ToyDensity
from jaxebm.evaluation import grid
from jaxebm.report.figures import drawing

__all__ = ["density_panels", "true_density"]


def true_density(density: ToyDensity, num_points: int) -> np.ndarray:
    """Returns the densities on a grid over the window, ``(n, n)``, first axis x."""
    points, _ = grid(*window(density), num_points)
    return np.exp(jax.jit(jax.vmap(density.log_density))(points)).reshape(num_points, num_points)


def density_panels(
    path: Path,
    density: ToyDensity,
    log_model: np.ndarray | None,
    samples: np.ndarray,
    *,
    title: str,
) -> None:
    """Draws a true density, a learnt one on the same colour scale, and samples of the model, side by side.

    Args:
      path: the PNG.
      density: the true one.
      log_model: log-densities of the model on a grid over the window, ``(n^2,)``; or None.
      samples: ``(m, 2)``.
      title: the heading.
    """
    low, high = window(density)
    side = 400 if log_model is None else round(len(log_model) ** 0.5)
    true = true_density(density, side)
    learnt = None if log_model is None else np.exp(log_model).reshape(side, side)
    with drawing(path, 1, 3, figsize=(9.6, 3.4)) as (figure, panels):
        axes = panels[0]
        top = float(np.quantile(true, 0.999))
        for axis, values in zip(axes, (true, learnt), strict=False):
            extent = (low, high, low, high)
            if values is None:
                axis.set_facecolor("#eeeeee")
            else:
                axis.imshow(values.T, origin="lower", extent=extent, cmap="inferno", vmin=0, vmax=top)
        axes[2].set_facecolor("black")
        axes[2].plot(samples[:, 0], samples[:, 1], ".", color="#f2c14e", markersize=1.2, alpha=0.6)
        for axis, name in zip(axes, ("true density", "learnt density", "samples"), strict=True):
            axis.set(xlim=(low, high), ylim=(low, high), xticks=[], yticks=[], aspect="equal", title=name)
        figure.suptitle(title)
        figure.tight_layout()
