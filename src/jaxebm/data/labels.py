"""Labels as users store them: class numbers, whole floating-point numbers or names, and missing ones."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxebm.data.pixels import fail

__all__ = ["UNLABELLED", "Labels", "read_labels"]

logger = logging.getLogger(__name__)

UNLABELLED = -1
"""The class number of an image without a label."""
_LARGEST_EXACT = 2.0**53  # floating-point numbers beyond it are not all the integers


class Labels(NamedTuple):
    """The labels of all parts of a data set.

    Attributes:
      labels: Class numbers (n,) int32 of each part by its name; -1 without a label, in the first part only.
      class_names: The names of the K classes.
    """

    labels: dict[str, np.ndarray]
    class_names: tuple[str, ...]


def read_labels(
    labels: Mapping[str, np.ndarray], lengths: Mapping[str, int], class_names: Any, *, source: str
) -> Labels:
    """Checks the labels of all parts of a data set and numbers the classes of the first one.

    Args:
      labels: The labels of each part by their names, for the messages.
      lengths: The number of images of each part.
      class_names: The names of the classes; None takes the labels, in their order.
      source: The name of the data set, for the log.

    Returns:
      The class numbers of each part, and the names.

    Raises:
      ValueError: If labels are not as described in `dataset_from_arrays`.
      TypeError: If ``class_names`` is no sequence.
    """
    for name, label in labels.items():
        _check_shape(name, label, lengths[name])
    first, *others = labels
    names = None if class_names is None else _checked_names(class_names)
    is_text = _is_text(labels[first])
    for name in others:
        if _is_text(labels[name]) != is_text:
            fail(
                name,
                f"has dtype {labels[name].dtype} and '{first}' has {labels[first].dtype}",
                "Store both alike",
            )
    if is_text:
        numbered, names = _of_names({name: _as_text(name, label) for name, label in labels.items()}, names)
    else:
        numbered = {name: _as_numbers(name, label) for name, label in labels.items()}
        num_classes = _checked_classes(first, numbered[first])
        names = tuple(str(index) for index in range(num_classes)) if names is None else names
        if len(names) != num_classes:
            raise ValueError(
                f"class_names has {len(names)} entries: {num_classes} are needed, one for each class."
            )
    for name in others:
        _check_part(name, numbered[name], first, len(names))
    missing = int(np.count_nonzero(numbered[first] == UNLABELLED))
    if missing and labels[first].dtype.kind == "i":  # NaN and "" cannot be meant otherwise
        logger.warning(
            "%s: '%s' is -1 for %d of %d images: they are read as unlabelled.",
            source, first, missing, lengths[first],
        )  # fmt: skip
    return Labels({name: label.astype(np.int32) for name, label in numbered.items()}, names)


def _check_shape(name: str, label: np.ndarray, num_images: int) -> None:
    if label.ndim == 2 and label.shape[1] > 1 and _is_one_hot(label):
        fail(name, f"has shape {label.shape} and is one-hot", f"Give class numbers, {name}.argmax(axis=1)")
    if label.ndim != 1:
        remedy = "Give it shape (n,), one class number for each image"
        is_column = label.ndim == 2 and label.shape[1] == 1
        fail(name, f"has shape {label.shape}", f"{remedy}, {name}[:, 0]" if is_column else remedy)
    if len(label) != num_images:
        image = name.replace("label", "image")
        fail(
            name, f"has {len(label)} entries, but '{image}' has {num_images}", "Give one label for each image"
        )


def _is_one_hot(label: np.ndarray) -> bool:
    if label.dtype != bool and not np.issubdtype(label.dtype, np.number):
        return False
    return bool(np.all((label == 0) | (label == 1)) and np.all(np.sum(label != 0, axis=1) == 1))


def _checked_names(class_names: Any) -> tuple[str, ...]:
    if isinstance(class_names, str) or not hasattr(class_names, "__len__"):
        raise TypeError(
            f"class_names is of type {type(class_names).__name__}: a sequence of names is needed."
        )
    names = tuple(str(class_name) for class_name in class_names)
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"class_names={names}: the names must be different, and none empty.")
    return names


def _is_text(label: np.ndarray) -> bool:
    return label.dtype.kind in "UST" or (
        label.dtype == object and any(isinstance(entry, str) for entry in label.tolist())
    )


def _as_text(name: str, label: np.ndarray) -> list[str]:
    """Returns names, empty where there is none: the empty text, None or NaN."""
    entries = np.char.decode(label, "utf-8").tolist() if label.dtype.kind == "S" else label.tolist()
    missing = [entry is None or (isinstance(entry, float) and np.isnan(entry)) for entry in entries]
    for entry, is_missing in zip(entries, missing, strict=True):
        if not is_missing and not isinstance(entry, str):
            fail(name, f"holds {entry!r} beside names", "Give names to all classes, or numbers")
    return ["" if is_missing else str(entry) for entry, is_missing in zip(entries, missing, strict=True)]


def _of_names(
    labels: dict[str, list[str]], names: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Numbers the classes in the order of ``names``, else in the order of the alphabet."""
    first = next(iter(labels))
    found = sorted({entry for entry in labels[first] if entry})
    if not found:
        fail(first, "names no class", "Leave it out, for images without labels")
    if names is not None and sorted(names) != found:
        missing = sorted(set(found) - set(names))
        if missing:
            raise ValueError(f"class_names={names}: it has no {missing[0]!r}, which is in '{first}'.")
        extra = sorted(set(names) - set(found))
        raise ValueError(f"class_names={names}: no image of '{first}' is of class {extra[0]!r}.")
    names = tuple(found) if names is None else names
    number = {name: index for index, name in enumerate(names)} | {"": UNLABELLED}
    for part, entries in labels.items():
        unknown = sorted(set(entries) - set(number))
        if unknown:
            fail(
                part, f"has the class {unknown[0]!r}, which '{first}' does not have", "Leave those images out"
            )
    return {part: np.array([number[entry] for entry in entries]) for part, entries in labels.items()}, names


def _as_numbers(name: str, label: np.ndarray) -> np.ndarray:
    """Returns integers, -1 where a floating-point label is NaN."""
    if label.dtype == bool:
        return label.astype(np.int64)
    if label.dtype.kind in "iu":  # times are a subtype of NumPy's integers
        return label
    if not np.issubdtype(label.dtype, np.floating):
        fail(name, f"has dtype {label.dtype}", "Store integers 0..K-1, or the names of the classes")
    label = label.astype(np.float64)
    given = label[~np.isnan(label)]
    fractional = given[(given != np.rint(given)) | (np.abs(given) > _LARGEST_EXACT)]
    if len(fractional):
        fail(
            name,
            f"holds {fractional[0]:g}",
            "Store the whole numbers 0..K-1; NaN is an image without a label",
        )
    return np.where(np.isnan(label), UNLABELLED, np.nan_to_num(label)).astype(np.int64)


def _checked_classes(name: str, label: np.ndarray) -> int:
    """Returns the number of classes, or raises unless they are 0..K-1 without gaps, besides -1."""
    found = np.unique(label)
    if found[0] < UNLABELLED:
        fail(
            name,
            f"has the negative entry {found[0]}",
            "Number the classes 0..K-1; -1 is an image without a label",
        )
    classes = found[found != UNLABELLED]
    if not len(classes):
        fail(name, "is -1 or NaN for all images", "Leave it out, for images without labels")
    if found.tolist() == [-1, 1]:
        remedy = f"Number the classes 0 and 1, ({name} + 1) // 2; -1 is an image without a label"
        fail(name, "has the entries -1 and 1 alone", remedy)
    if classes.tolist() == list(range(1, len(classes) + 1)):
        start = f"{name} - 1" if found[0] == 1 else f"np.where({name} > 0, {name} - 1, -1)"
        fail(
            name,
            f"starts at 1 (classes 1..{classes[-1]})",
            f"Subtract 1: classes are numbered 0..K-1, {start}",
        )
    if classes[-1] != len(classes) - 1:
        first_missing = int(np.flatnonzero(classes != np.arange(len(classes)))[0])
        what = f"has {len(classes)} classes up to {classes[-1]}, but none numbered {first_missing}"
        remedy = f"Number the classes 0..K-1 without gaps: np.unique({name}, return_inverse=True)[1]"
        fail(name, what, remedy)
    return len(classes)


def _check_part(name: str, label: np.ndarray, first: str, num_classes: int) -> None:
    if label.min() == UNLABELLED:
        image = name.replace("label", "image")
        remedy = f"Leave those images out of '{image}', or put them into 'image'"
        fail(name, f"has images without labels ({np.count_nonzero(label == UNLABELLED)})", remedy)
    if label.min() < 0 or label.max() >= num_classes:
        what = f"spans {label.min()}..{label.max()}, and '{first}' has the classes 0..{num_classes - 1}"
        fail(name, what, "Number the classes of both alike")
