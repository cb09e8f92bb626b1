"""Labelled images of a user from one ``.npz`` file."""

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np

from jaxebm.data.arrays import dataset_from_arrays
from jaxebm.data.images import Dataset

__all__ = ["load_npz"]


def load_npz(path: str | Path, *, name: str) -> Dataset:
    """Reads ``image`` and ``label`` from an ``.npz`` file and makes a data set of them.

    Args:
      path: A file written by ``numpy.savez(path, image=..., label=...)``, with arrays as described in
        `dataset_from_arrays`.
      name: The name of the data set.

    Returns:
      The data set, split 70, 10 and 20 percent of each class.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file or an array is not as described.
    """
    file = Path(path).expanduser()
    image, label = _read(file)
    try:
        return dataset_from_arrays(image, label, name=name)
    except ValueError as error:
        raise ValueError(f"'{file}': {error}") from error


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    remedy = "Write it with numpy.savez(path, image=..., label=...)."
    if not file.exists():
        raise FileNotFoundError(f"'{file}' does not exist. Give npz: the path of an .npz file. {remedy}")
    if not file.is_file() or not zipfile.is_zipfile(file):
        raise ValueError(f"'{file}' is not an .npz file. {remedy}")
    arrays = {}
    try:
        with np.load(file, allow_pickle=False) as stored:
            for name in ("image", "label"):
                if name not in stored.files:
                    found = ", ".join(stored.files) or "nothing"
                    raise ValueError(f"'{file}' has no array '{name}' (it holds {found}). {remedy}")
                arrays[name] = _member(stored, file, name)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"'{file}' is damaged ({error}). {remedy}") from error
    return arrays["image"], arrays["label"]


def _member(stored: "np.lib.npyio.NpzFile", file: Path, name: str) -> np.ndarray:
    try:
        array = stored[name]
    except (ValueError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        # numpy's own way to say that it would have to run pickled code to read this.
        if "allow_pickle" in str(error):
            _fail(file, name, "holds pickled Python objects", "Store a plain numeric array of one shape")
        _fail(file, name, f"is damaged ({error})", "Write the file again")
    if not isinstance(array, np.ndarray):
        _fail(file, name, "is not a numpy array", "Write the file with numpy.savez")
    return array


def _fail(file: Path, name: str, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"'{file}': '{name}' {what}. {remedy}.")
