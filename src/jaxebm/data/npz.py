"""A user's own labelled images from one ``.npz`` file, checked before anything is trained on them."""

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

__all__ = ["NpzArrays", "read_npz_arrays", "stratified_indices"]

_MINIMUM_PER_CLASS = 3  # one each for train, validation and test


class NpzArrays(NamedTuple):
    """Checked arrays: image (n, H, W, C) uint8 or float32, label (n,) int32 in 0..num_classes-1."""

    image: np.ndarray
    label: np.ndarray
    value_range: tuple[float, float]
    num_classes: int


def read_npz_arrays(path: str | Path) -> NpzArrays:
    """Reads ``image`` and ``label`` from an ``.npz`` file and checks them.

    Args:
      path: A file written by ``numpy.savez(path, image=..., label=...)``. ``image`` has shape (n, H, W) or
        (n, H, W, C) and holds uint8, or floating-point numbers in [0, 1] or in [-1, 1]. ``label`` has shape
        (n,) and holds the integers 0..K-1, each at least three times.

    Returns:
      The arrays and what was found about them. ``value_range`` is (0, 255) for uint8; for floating-point
      images (-1, 1) if any pixel is negative, else (0, 1).

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file or either array is not as described.
    """
    file = Path(path).expanduser()
    image, label = _read(file)
    image, value_range = _checked_image(file, image)
    label, num_classes = _checked_label(file, label, len(image))
    return NpzArrays(image, label, value_range, num_classes)


def stratified_indices(
    label: np.ndarray, validation_fraction: float = 0.1, test_fraction: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits 0..n-1 into train, validation and test, each with every class, always in the same way.

    From each class of n_k examples, max(1, round(fraction * n_k)) go to validation and to test; the rest is
    train.

    Args:
      label: Integer labels (n,), each class at least three times.
      validation_fraction: Part of each class for validation.
      test_fraction: Part of each class for test.

    Returns:
      The indices of train, validation and test, each sorted.

    Example:
      >>> train, validation, test = stratified_indices(np.repeat([0, 1], 10))
      >>> len(train), len(validation), len(test)
      (14, 2, 4)
    """
    random = np.random.RandomState(0)  # its stream is frozen by numpy's policy, default_rng's is not
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for value in np.unique(label):
        members = random.permutation(np.flatnonzero(label == value))
        num_validation = max(1, round(validation_fraction * len(members)))
        num_test = max(1, round(test_fraction * len(members)))
        pieces = np.split(members, [num_test, num_test + num_validation])
        for part, piece in zip(parts, (pieces[2], pieces[1], pieces[0]), strict=True):
            part.append(piece)
    train, validation, test = (np.sort(np.concatenate(part)) for part in parts)
    return train, validation, test


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


def _checked_image(file: Path, image: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    if image.ndim not in (3, 4):
        _fail(file, "image", f"has shape {image.shape}", "Give it shape (n, H, W) or (n, H, W, C)")
    if image.size == 0:
        _fail(file, "image", f"has shape {image.shape}, which is empty", "Give at least one image")
    if image.ndim == 3:
        image = image[..., None]
    if image.dtype == np.uint8:
        return image, (0.0, 255.0)
    if not np.issubdtype(image.dtype, np.floating):
        remedy = "Store uint8 in 0..255, or floating point in [0, 1] or [-1, 1]"
        _fail(file, "image", f"has dtype {image.dtype}", remedy)
    num_bad = int(image.size - np.count_nonzero(np.isfinite(image)))
    if num_bad:
        what = f"holds {num_bad} non-finite pixels (NaN or infinity) of {image.size}"
        _fail(file, "image", what, "Drop or repair those images")
    low, high = float(image.min()), float(image.max())
    if low < -1.0 or high > 1.0:
        remedy = "Rescale floating-point pixels to [0, 1] or [-1, 1], or store uint8"
        _fail(file, "image", f"spans {low:g} to {high:g}", remedy)
    return image.astype(np.float32), ((-1.0, 1.0) if low < 0.0 else (0.0, 1.0))


def _checked_label(file: Path, label: np.ndarray, num_images: int) -> tuple[np.ndarray, int]:
    if label.ndim != 1:
        _fail(file, "label", f"has shape {label.shape}", "Give it shape (n,), one class number an image")
    if len(label) != num_images:
        what = f"has {len(label)} entries, but 'image' has {num_images}"
        _fail(file, "label", what, "Give one label an image")
    if not np.issubdtype(label.dtype, np.integer):
        _fail(file, "label", f"has dtype {label.dtype}", "Store integers 0..K-1")
    classes, counts = np.unique(label, return_counts=True)
    if classes[0] < 0:
        _fail(file, "label", f"has negative entries (smallest {classes[0]})", "Number the classes 0..K-1")
    if classes[-1] != len(classes) - 1:
        first_missing = int(np.flatnonzero(classes != np.arange(len(classes)))[0])
        what = f"has {len(classes)} classes up to {classes[-1]}, but none numbered {first_missing}"
        remedy = "Number the classes 0..K-1 without gaps: np.unique(label, return_inverse=True)[1]"
        _fail(file, "label", what, remedy)
    if counts.min() < _MINIMUM_PER_CLASS:
        rarest = int(counts.argmin())
        what = f"has only {counts[rarest]} of class {rarest}"
        remedy = (
            f"Give each class {_MINIMUM_PER_CLASS} images or more: train, validation and test need one each"
        )
        _fail(file, "label", what, remedy)
    return label.astype(np.int32), len(classes)


def _fail(file: Path, name: str, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"'{name}' in {file} {what}. {remedy}.")
