"""Further pictures of the evaluation card: curves of robustness, and rows of images under their names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from plots import INK, PALETTE, save

__all__ = ["labelled_rows", "robustness_curves"]

NORM_NAMES = {"linf": "$L_\\infty$", "l2": "$L_2$"}


def robustness_curves(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws accuracy against the radius of the attack, a panel a norm, a curve a number of refinement steps.

    Args:
      path: the picture.
      curves: ``norm: {"radii", "refined": {steps: accuracies}, "twin": accuracies or None}``.
    """
    if not curves:
        return
    figure, axes = plt.subplots(1, len(curves), figsize=(4.4 * len(curves), 3.4), squeeze=False)
    for axis, (norm, entry) in zip(axes[0], curves.items(), strict=True):
        for index, (steps, accuracies) in enumerate(entry["refined"].items()):
            label = "JEM" if steps == "0" else f"JEM, {steps} refinement step{'s' * (steps != '1')}"
            axis.plot(entry["radii"], accuracies, "o-", color=PALETTE[index % len(PALETTE)], label=label)
        if entry["twin"] is not None:
            axis.plot(entry["radii"], entry["twin"], "s--", color=INK, label="cross-entropy twin")
        name = NORM_NAMES[norm]
        axis.set(ylim=(-0.02, 1.02), ylabel="accuracy under attack", title=f"{name} attacks")
        axis.set_xlabel("radius, pixels in [-1, 1]")
        axis.legend(fontsize=7)
    figure.tight_layout()
    save(figure, path)


def labelled_rows(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Draws rows of images (n, H, W, C) in [0, 1], each row under its title."""
    count = max(len(images) for images in rows.values())
    height, width = next(iter(rows.values())).shape[1:3]
    size = 0.62 * height / width + 0.3
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.62 * count, size * len(rows)), squeeze=False)
    for axis, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
        sheet = np.ones((height, count * (width + 1), images.shape[3]))
        for index, image in enumerate(images):
            sheet[:, index * (width + 1) : index * (width + 1) + width] = image
        shown = sheet if sheet.shape[2] == 3 else sheet.mean(axis=2)
        axis.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(title, loc="left", fontsize=8)
    figure.tight_layout(h_pad=0.4)
    save(figure, path)
