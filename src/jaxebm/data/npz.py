"""Images of a user from one ``.npz`` file."""

import logging
import math
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxebm.data.arrays import dataset_from_arrays
from jaxebm.data.images import Dataset

__all__ = ["check_header", "load_npz"]

logger = logging.getLogger(__name__)

_NAMES = (
    "image",
    "label",
    "validation_image",
    "validation_label",
    "test_image",
    "test_label",
    "class_names",
    "value_range",
)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DEFLATE_RATIO = 1032  # bytes that deflate makes of one, at most


def load_npz(path: str | Path, *, name: str, value_range: tuple[float, float] | None = None) -> Dataset:
    """Reads the arrays of an ``.npz`` file and makes a data set of them.

    Args:
      path: A file written by ``numpy.savez(path, image=..., label=...)``, with arrays as described in
        `dataset_from_arrays`. All but ``image`` may be missing: ``label``, ``validation_image``,
        ``validation_label``, ``test_image``, ``test_label``, ``class_names``, ``value_range``.
      name: The name of the data set.
      value_range: Lowest and highest raw pixel value, instead of those in the file.

    Returns:
      The data set; of the parts that are not in the file, 10 percent of each class are validation and 20
      percent test.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file or an array is not as described.
    """
    file = Path(path).expanduser()
    arrays = _read(file)
    given: dict[str, Any] = {}
    for part in ("validation", "test"):
        if f"{part}_image" in arrays:
            given[part] = (arrays[f"{part}_image"], arrays.get(f"{part}_label"))
        elif f"{part}_label" in arrays:
            _fail(file, f"{part}_label", f"is there without '{part}_image'", "Store both, or neither")
    if "class_names" in arrays:
        given["class_names"] = _names(file, arrays["class_names"])
    if value_range is None and "value_range" in arrays:
        value_range = tuple(np.asarray(arrays["value_range"]).ravel().tolist())  # type: ignore[assignment]
    try:
        return dataset_from_arrays(
            arrays["image"], arrays.get("label"), name=name, value_range=value_range, **given
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{file}': {error}") from error


def _names(file: Path, class_names: np.ndarray) -> list[str]:
    if class_names.ndim != 1 or class_names.dtype.kind not in "US":
        what = f"has shape {class_names.shape} and dtype {class_names.dtype}"
        _fail(file, "class_names", what, "Store the names of the classes, numpy.array(['cat', 'dog'])")
    text = np.char.decode(class_names, "utf-8") if class_names.dtype.kind == "S" else class_names
    return text.tolist()


def _read(file: Path) -> dict[str, np.ndarray]:
    remedy = "Write it with numpy.savez(path, image=..., label=...)."
    if not file.exists():
        raise FileNotFoundError(f"'{file}' does not exist. Give npz: the path of an .npz file. {remedy}")
    if not file.is_file() or not zipfile.is_zipfile(file):
        raise ValueError(f"'{file}' is not an .npz file. {remedy}")
    try:
        with np.load(file, allow_pickle=False) as stored:
            found = ", ".join(stored.files) or "nothing"
            if "image" not in stored.files:
                raise ValueError(f"'{file}' has no array 'image' (it holds {found}). {remedy}")
            others = [name for name in stored.files if name not in _NAMES]
            if others and "label" not in stored.files:  # perhaps labels by another name
                raise ValueError(
                    f"'{file}' has no array 'label' (it holds {found}). {remedy} For images without labels, "
                    f"leave '{others[0]}' out."
                )
            if others:
                logger.warning("'%s': %s are not read; the names are %s.", file, others, ", ".join(_NAMES))
            return {name: _member(stored, file, name) for name in stored.files if name in _NAMES}
    # Of a file that is encrypted, or packed by a method that Python does not know, zipfile says RuntimeError.
    except (zipfile.BadZipFile, OSError, RuntimeError, OverflowError, struct.error) as error:
        raise ValueError(f"'{file}' is damaged ({error}). {remedy}") from error


def _member(stored: "np.lib.npyio.NpzFile", file: Path, name: str) -> np.ndarray:
    try:
        check_header(file, name)
        array = stored[name]
    except MemoryError:
        _fail(file, name, "does not fit into memory", "Store fewer or smaller images, as uint8")
    except (ValueError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        # numpy's own way to say that it would have to run pickled code to read this.
        if "allow_pickle" in str(error):
            _fail(file, name, "holds pickled Python objects", "Store a plain numeric array of one shape")
        _fail(file, name, f"is damaged ({error})", "Write the file again")
    if not isinstance(array, np.ndarray):
        _fail(file, name, "is not a numpy array", "Write the file with numpy.savez")
    return array


def check_header(file: Path, name: str) -> None:
    """Checks that an array in an ``.npz`` file is as large as its header says, before memory is taken for it.

    Args:
      file: The file.
      name: Of the array; one that is not stored as ``name.npy`` is left to numpy.

    Raises:
      ValueError: If the header and the bytes that are stored, packed or on disk, disagree.
    """
    with zipfile.ZipFile(file) as archive:
        if f"{name}.npy" not in archive.namelist():
            return
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version not in _HEADERS:
                raise ValueError(f"its format is version {version[0]}.{version[1]}, not one of plain arrays")
            shape, _, dtype = _HEADERS[version](member)
            start = member.tell()
    if dtype.hasobject:  # numpy says better what is wrong
        return
    claimed, stored = math.prod(shape) * dtype.itemsize, info.file_size - start
    if min(shape, default=0) < 0 or claimed != stored:
        raise ValueError(
            f"its header says shape {shape} of {dtype}, {claimed} bytes, and {stored} bytes are stored"
        )
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_RATIO}.get(info.compress_type, math.inf)
    if info.compress_size > os.path.getsize(file) or info.file_size > ratio * info.compress_size:
        raise ValueError(f"{info.file_size} bytes cannot come from the {info.compress_size} that are packed")


def _fail(file: Path, name: str, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"'{file}': '{name}' {what}. {remedy}.")
