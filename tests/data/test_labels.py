"""Labels as users store them: their classes in order, and misreadings named with their remedy."""

from typing import Any

import numpy as np
import pytest

from jaxebm.data import Dataset, dataset_from_arrays

LABEL = np.arange(40) % 3
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
NAMES = np.array(["wolf", "ape", "cow"])


def labels_in_order(dataset: Dataset) -> list[str]:
    """The name of each image's class, in the order of ``IMAGE``."""
    found = {
        image.tobytes(): dataset.class_names[label]
        for part in (dataset.train, dataset.validation, dataset.test)
        for image, label in zip(*part, strict=True)
    }
    return [found[image.tobytes()] for image in IMAGE]


@pytest.mark.parametrize(
    "label",
    [NAMES[LABEL], NAMES[LABEL].tolist(), NAMES[LABEL].astype("S"), NAMES[LABEL].astype(object)],
    ids=["array", "list", "bytes", "objects"],
)
def test_names_are_classes(label: Any) -> None:
    dataset = dataset_from_arrays(IMAGE, label)
    assert dataset.class_names == ("ape", "cow", "wolf")
    assert labels_in_order(dataset) == NAMES[LABEL].tolist()
    ordered = dataset_from_arrays(IMAGE, label, class_names=("wolf", "ape", "cow"))
    assert ordered.class_names == ("wolf", "ape", "cow")
    assert labels_in_order(ordered) == NAMES[LABEL].tolist()


@pytest.mark.parametrize(
    "label", [LABEL.astype(float), LABEL.astype(np.float16), LABEL.astype(np.uint8)], ids=["f64", "f16", "u8"]
)
def test_whole_numbers_are_classes(label: np.ndarray) -> None:
    dataset = dataset_from_arrays(IMAGE, label, class_names=NAMES.tolist())
    assert dataset.train.label.dtype == np.int32
    assert labels_in_order(dataset) == NAMES[LABEL].tolist()


def test_booleans_are_two_classes() -> None:
    assert dataset_from_arrays(IMAGE, LABEL == 0).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (np.eye(3)[LABEL], {}, r"\(40, 3\) and is one-hot. Give class numbers, label\.argmax\(axis=1\)"),
        (np.eye(3, dtype=bool)[LABEL], {}, "is one-hot"),
        (LABEL[:, None], {}, r"has shape \(40, 1\).*label\[:, 0\]"),
        (np.ones((40, 3)), {}, r"has shape \(40, 3\). Give it shape \(n,\)"),
        (LABEL + 1, {}, r"starts at 1 \(classes 1..3\). Subtract 1: .* label - 1"),
        (np.where(LABEL, LABEL, -1), {}, r"starts at 1 .*np\.where\(label > 0, label - 1, -1\)"),
        (np.where(LABEL, 1, -1), {}, r"has the entries -1 and 1 alone.*\(label \+ 1\) // 2"),
        (np.full(40, -1), {}, "is -1 or NaN for all images. Leave it out"),
        (np.full(40, np.nan), {}, "is -1 or NaN for all images"),
        (np.full(40, ""), {}, "names no class"),
        (LABEL - 3, {}, "has the negative entry -3"),
        (np.where(LABEL, np.inf, 0), {}, "holds inf"),
        (np.where(LABEL, 1e300, 0), {}, r"holds 1e\+300"),
        (LABEL.astype("datetime64[s]"), {}, "has dtype datetime64"),
        (np.array([*NAMES[LABEL][:-1], 3], object), {}, "holds 3 beside names"),
        (NAMES[LABEL], {"class_names": ["ape", "cow"]}, "it has no 'wolf', which is in 'label'"),
        (
            NAMES[LABEL],
            {"class_names": ["ape", "cow", "wolf", "elk"]},
            "no image of 'label' is of class 'elk'",
        ),
        (
            NAMES[LABEL],
            {"test": (IMAGE, np.where(LABEL, NAMES[LABEL], "elk"))},
            "'test_label' has the class 'elk'",
        ),
        (
            NAMES[LABEL],
            {"test": (IMAGE, np.where(LABEL, NAMES[LABEL], ""))},
            "'test_label' has images without",
        ),
    ],
)
def test_misreadings_are_named_with_their_remedy(label: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        dataset_from_arrays(IMAGE, label, **options)
    assert "\n" not in str(caught.value)
