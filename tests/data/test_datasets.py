"""Splits that never change, classes left out, and the errors of a name or a package that is not there.

A user's own images are tested in `test_arrays.py` and `test_npz.py`, the sets of tensorflow-datasets in
`test_tfds_images.py`.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxebm.data import DATASETS, Dataset, Split, load_dataset

PartsOf = Callable[[Dataset], tuple[Split, Split, Split]]
OneLineOf = Callable[..., str]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def assert_stratified(parts: tuple[Split, Split, Split], num_classes: int) -> None:
    """Every part holds its share of every class, to within rounding."""
    counts = np.stack([np.bincount(part.label, minlength=num_classes) for part in parts])
    share = counts.sum(axis=1) / counts.sum()
    assert np.abs(counts - share[:, None] * counts.sum(axis=0)[None]).max() <= 2


# Digits: the embedded default.


def test_digits_sizes_kinds_and_stratification(digits: Dataset, parts_of: PartsOf) -> None:
    assert [part.image.shape for part in parts_of(digits)] == [
        (1257, 8, 8, 1),
        (180, 8, 8, 1),
        (360, 8, 8, 1),
    ]
    assert all(part.image.dtype == np.float32 and part.label.dtype == np.int32 for part in parts_of(digits))
    assert (digits.num_classes, digits.image_shape, digits.value_range) == (10, (8, 8, 1), (0.0, 16.0))
    assert digits.class_names == tuple("0123456789")
    assert digits.held_out is None
    assert_stratified(parts_of(digits), digits.num_classes)


def test_digits_parts_are_disjoint_and_together_the_whole_set(digits: Dataset, parts_of: PartsOf) -> None:
    from sklearn.datasets import load_digits

    # No two of the 1797 digits have the same pixels, so that an image's bytes are its identity.
    whole = {image.tobytes() for image in load_digits(return_X_y=True)[0].astype(np.float32)}
    assert len(whole) == 1797
    seen = [{image.tobytes() for image in part.image} for part in parts_of(digits)]
    assert sum(len(part) for part in seen) == 1797
    assert set.union(*seen) == whole


def test_digits_split_is_the_one_of_all_published_results(digits: Dataset, parts_of: PartsOf) -> None:
    # If this fails, every figure on digits becomes a figure on another test set.
    again = load_dataset("digits")
    digest = hashlib.sha256()
    for part, other in zip(parts_of(digits), parts_of(again), strict=True):
        np.testing.assert_array_equal(part.image, other.image)
        np.testing.assert_array_equal(part.label, other.label)
        digest.update(part.image.astype(np.uint8).tobytes() + part.label.astype(np.uint8).tobytes())
    assert digest.hexdigest()[:16] == "66831df22239c08b"


# Leaving classes out.


def test_excluded_classes_are_held_out(digits: Dataset, parts_of: PartsOf) -> None:
    dataset = load_dataset("digits", exclude_classes=[0, 7])
    assert dataset.num_classes == 8
    assert dataset.class_names == tuple("12345689")
    for part, original in zip(parts_of(dataset), parts_of(digits), strict=True):
        kept = ~np.isin(original.label, [0, 7])
        np.testing.assert_array_equal(part.image, original.image[kept])
        assert [dataset.class_names[label] for label in part.label] == [
            str(label) for label in original.label[kept]
        ]
        assert part.label.dtype == np.int32
    assert dataset.held_out is not None
    left_out = np.isin(digits.test.label, [0, 7])
    np.testing.assert_array_equal(dataset.held_out.image, digits.test.image[left_out])
    np.testing.assert_array_equal(dataset.held_out.label, digits.test.label[left_out])


@pytest.mark.parametrize(
    ("exclude_classes", "message"),
    [
        ([10], "no 10"),
        ([-1], "no -1"),
        ([3, 3], "each class once"),
        (list(range(9)), "two of the 10 classes"),
    ],
)
def test_impossible_exclusions_are_named(exclude_classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"exclude_classes=.*{message}"):
        load_dataset("digits", exclude_classes=exclude_classes)


@pytest.mark.parametrize("name", ["mnits", "", "npz:", "imagenet"])
def test_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"name must be one of digits, mnist, .*, or npz:PATH"):
        load_dataset(name)
    assert DATASETS == ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped")


# A package that is not installed.


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("mnist", "tensorflow_datasets")])
def test_missing_package_names_the_extra(
    name: str, package: str, tmp_path: Path, hide_package: Callable[[str], None], one_line_of: OneLineOf
) -> None:
    version_dir = tmp_path / "mnist" / "3.0.1"
    version_dir.mkdir(parents=True)
    (version_dir / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    hide_package(package)
    assert "pip install 'jaxebm[experiments]'" in one_line_of(
        name, data_dir=tmp_path, cache_dir=tmp_path / "cache"
    )
