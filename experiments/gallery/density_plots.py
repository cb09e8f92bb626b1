"""The picture of density_2d.py: a density, the learnt density, and samples of the learnt one."""

from pathlib import Path

import numpy as np

from jaxebm.report.figures import drawing

__all__ = ["density_panels"]


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
    with drawing(path, 1, 3, figsize=(9.6, 3.4)) as (figure, panels):
        axes = panels[0]
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
