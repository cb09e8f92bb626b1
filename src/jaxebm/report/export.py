"""Samples as files: all of them as arrays, the first ones as PNG files."""

import io
from typing import Any

import numpy as np

from jaxebm.report.chains import Samples
from jaxebm.report.subject import Evaluation, Images
from jaxebm.training import write_atomically

__all__ = ["EXPORTED", "SAMPLES_FILE", "export_samples"]

SAMPLES_FILE = "samples.npz"
EXPORTED = "exported"
"""The folder of the PNG files."""
RULES = {
    True: "the first fresh chains of each class, one class after another; none is selected or left out",
    False: "the first fresh chains; none is selected or left out",
}


def export_samples(evaluation: Evaluation, arrays: Images, samples: Samples) -> dict[str, Any] | None:
    """Writes all fresh samples as arrays, and the requested number of the longest chains as PNG files.

    They are the first chains of each class, one class after another: none is selected.

    Args:
      evaluation: The files are written into its folder; nothing is written if it has none.
      arrays: All samples, by name.
      samples: The samples of the longest chains.

    Returns:
      The card's entry, or None where no PNG files are written.
    """
    if evaluation.folder is None:
        return None
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(evaluation.folder / SAMPLES_FILE, stream.getvalue())
    wanted = min(evaluation.settings.export_samples, len(samples.images))
    if not wanted:
        return None
    from PIL import Image

    folder = evaluation.folder / EXPORTED
    folder.mkdir(exist_ok=True)
    for left in folder.glob("*.png"):  # files of an earlier evaluation
        left.unlink()
    order = np.arange(len(samples.images))
    if samples.labels is not None:
        rank = np.empty_like(order)  # number of each chain within its class
        for y in range(evaluation.dataset.num_classes):
            members = np.flatnonzero(samples.labels == y)
            rank[members] = np.arange(len(members))
        order = np.argsort(rank, kind="stable")
    pixels = np.asarray(evaluation.dataset.restore(samples.images[order[:wanted]]))
    for index, image in enumerate(np.rint(pixels * 255).astype(np.uint8)):
        shown = image[:, :, 0] if image.shape[2] == 1 else image
        stream = io.BytesIO()
        Image.fromarray(shown).save(stream, format="PNG")
        write_atomically(folder / f"{index:06d}.png", stream.getvalue())
    return {
        "count": wanted,
        "steps": evaluation.settings.sample_steps[-1],
        "rule": RULES[samples.labels is not None],
        "folder": EXPORTED,
    }
