"""Common parts of the pictures: style, writing of files, grids of images, training curves.

matplotlib is imported when a picture is drawn, and its global state is not changed: no backend is selected
and all settings are restored. Draw inside `drawing`, which makes a figure in the report's style and saves it:

    with drawing(folder / "losses.png", 1, 2, figsize=(6.4, 3.2)) as (figure, axes):
        axes[0, 0].plot(losses, color=ACCENT)
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxebm.training import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "FILLED",
    "INK",
    "OUTLINED",
    "PALETTE",
    "SECOND",
    "drawing",
    "image_grid",
    "image_grids",
    "labelled_rows",
    "legend_below",
    "show_image",
    "tile",
    "training_curves",
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


@contextmanager
def drawing(
    path: Path, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple["Figure", np.ndarray]]:
    """Makes a figure in the report's style, and writes it when the block ends without an exception.

    Args:
      path: The PNG file, written atomically.
      rows: Rows of panels.
      columns: Columns of panels.
      **options: Options of ``matplotlib.pyplot.subplots``: ``figsize``, ``sharex``, ``width_ratios``, ...

    Yields:
      The figure and its axes, ``(rows, columns)``.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=options.pop("figsize", None))
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)
        picture = io.BytesIO()
        figure.savefig(picture, bbox_inches="tight", format="png")
    write_atomically(path, picture.getvalue())


def tile(images: np.ndarray, columns: int, pad: int = 1) -> np.ndarray:
    """Arranges images (n, H, W, C) in [0, 1] in a grid of ``columns`` columns, on white."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + pad) + pad, columns * (width + pad) + pad, channels))
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + pad) + pad, (index % columns) * (width + pad) + pad
        sheet[top : top + height, left : left + width] = image
    return sheet


def show_image(axes: "Axes", sheet: np.ndarray) -> None:
    """Shows an image (H, W, C) in [0, 1], of one or three channels, without axes."""
    shown = sheet if sheet.shape[2] == 3 else sheet.mean(axis=2)
    axes.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def legend_below(axes: "Axes", **options: Any) -> None:
    """Puts the legend below the panel, where it hides no curves."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), **options)


def image_grid(path: Path, images: np.ndarray, *, columns: int, title: str = "") -> None:
    """Draws one sheet of images (n, H, W, C) in [0, 1]."""
    image_grids(path, {title: images}, columns=columns)


def image_grids(
    path: Path, sheets: Mapping[str, np.ndarray], *, columns: int, per_row: int | None = None
) -> None:
    """Draws several sheets of images side by side, each with its title, ``per_row`` (or all) in a row."""
    grids = {title: tile(images, columns) for title, images in sheets.items()}
    aspect = max(grid.shape[0] / grid.shape[1] for grid in grids.values())
    across = len(grids) if per_row is None else per_row
    down = -(-len(grids) // across)
    size = (3.4 * across, (3.4 * aspect + 0.4) * down)
    with drawing(path, down, across, figsize=size) as (figure, axes):
        for axis in axes.flat[len(grids) :]:
            axis.set_axis_off()
        for axis, (title, grid) in zip(axes.flat, grids.items(), strict=False):
            show_image(axis, grid)
            axis.set_title(title)
        figure.tight_layout()


def labelled_rows(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Draws rows of images (n, H, W, C) in [0, 1], each row with its title."""
    count = max(len(images) for images in rows.values())
    height, width = next(iter(rows.values())).shape[1:3]
    size = 0.62 * height / width + 0.3
    with drawing(path, len(rows), figsize=(0.62 * count, size * len(rows))) as (figure, axes):
        for axis, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
            sheet = np.ones((height, count * (width + 1), images.shape[3]))
            for index, image in enumerate(images):
                sheet[:, index * (width + 1) : index * (width + 1) + width] = image
            show_image(axis, sheet)
            axis.set_title(title, loc="left", fontsize=8)
        figure.tight_layout(h_pad=0.4)


def training_curves(
    path: Path,
    records: Sequence[Mapping[str, float]],
    names: Sequence[str],
    recoveries: Sequence[int] = (),
) -> None:
    """Plots the named metrics against the update, each from the records that have it.

    Args:
      path: the picture.
      records: lines of ``metrics.jsonl``.
      names: metrics, some of which may be missing.
      recoveries: updates at which the run was rolled back, marked by lines.
    """
    measured = {name: [record for record in records if name in record] for name in names}
    present = [name for name in names if measured[name]]
    if not present:
        return
    columns = min(len(present), 4)
    rows = -(-len(present) // columns)
    with drawing(path, rows, columns, figsize=(3.0 * columns, 2.5 * rows)) as (figure, axes):
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
