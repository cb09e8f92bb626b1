"""A user's own arrays: taken as they are, with labels or without, and their faults named."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import dataset_from_arrays, load_dataset

LABEL = np.repeat(np.arange(3), [20, 10, 4])
GREY = np.random.default_rng(0).uniform(size=(len(LABEL), 5, 7)).astype(np.float32)


def test_arrays_and_a_file_of_them_are_one_data_set(tmp_path: Any) -> None:
    dataset = dataset_from_arrays(GREY, LABEL)
    np.savez(tmp_path / "own.npz", image=GREY, label=LABEL)
    stored = load_dataset(f"npz:{tmp_path / 'own.npz'}")
    assert repr(dataset) == (
        "Dataset('mine', image_shape=(5, 7, 1), num_classes=3, train=23, validation=4, test=7)"
    )
    assert dataset.space == stored.space
    for part in ("train", "validation", "test"):
        for own, read in zip(getattr(dataset, part), getattr(stored, part), strict=True):
            np.testing.assert_array_equal(own, read)
            assert own.dtype == read.dtype


def test_names_fractions_and_arrays_of_jax() -> None:
    dataset = dataset_from_arrays(
        jnp.asarray(GREY),
        jnp.asarray(LABEL),
        name="shades",
        class_names=["dark", "middle", "bright"],
        validation_fraction=0.25,
        test_fraction=0.5,
    )
    assert dataset.name == "shades"
    assert dataset.class_names == ("dark", "middle", "bright")
    assert isinstance(dataset.train.image, np.ndarray)
    assert [len(part.label) for part in (dataset.train, dataset.validation, dataset.test)] == [9, 8, 17]
    assert (dataset.train.image.dtype, dataset.train.label.dtype) == (np.float32, np.int32)


def test_without_labels_there_is_one_class() -> None:
    dataset = dataset_from_arrays((GREY * 255).astype(np.uint8))
    assert (dataset.num_classes, dataset.class_names, dataset.num_levels) == (1, ("0",), 256)
    assert [len(part.label) for part in (dataset.train, dataset.validation, dataset.test)] == [24, 3, 7]
    assert not dataset.train.label.any()


@pytest.mark.parametrize(
    ("image", "value_range", "dtype", "num_levels"),
    [
        (np.rint(GREY * 16), (0, 16), np.float32, 17),
        (GREY * 16, (0.0, 16.0), np.float32, None),
        (np.rint(GREY * 4000).astype(np.uint16), (0, 4095), np.float32, 4096),
        ((GREY * 16).astype(np.uint8), (0, 16), np.uint8, 17),
        ((GREY > 0.5).astype(np.int64), (0, 1), np.float32, None),
        (np.rint(GREY * 4), (-0.5, 4.0), np.float32, None),
    ],
    ids=["whole floats", "floats", "uint16", "uint8", "binary", "a range of halves"],
)
def test_a_range_of_ones_own(image: np.ndarray, value_range: Any, dtype: Any, num_levels: int | None) -> None:
    dataset = dataset_from_arrays(image, LABEL, value_range=value_range)
    assert dataset.train.image.dtype == dtype
    assert dataset.num_levels == num_levels
    assert dataset.value_range == value_range
    np.testing.assert_allclose(
        dataset.unscale(dataset.rescale(dataset.test.image)), dataset.test.image, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (GREY.astype(np.int32), LABEL, "'image' has dtype int32. Store uint8"),
        (GREY > 0.5, LABEL, "'image' has dtype bool"),
        (GREY.astype(np.complex64), LABEL, "'image' has dtype complex64"),
        (np.where(GREY > 0.9, np.nan, GREY), LABEL, r"'image' holds \d+ non-finite pixels"),
        (np.where(GREY > 0.9, np.inf, GREY), LABEL, r"'image' holds \d+ non-finite pixels"),
        (GREY * 255, LABEL, r"'image' spans 0\.\d+ to 2\d\d.*Rescale.*value_range"),
        (GREY - 1.5, LABEL, r"'image' spans -1\.\d+ to"),
        (GREY.reshape(len(LABEL), -1), LABEL, r"'image' has shape \(34, 35\). Give it shape \(n, H, W\)"),
        (GREY[None, None], LABEL, "'image' has shape"),
        (GREY[:, :0], LABEL, r"'image' .* \(34, 0, 7\), which is empty"),
        (GREY[:0], LABEL[:0], "'image' .* which is empty"),
        (GREY[:-1], LABEL, "'label' has 34 entries, but 'image' has 33"),
        (GREY, LABEL[:, None], r"'label' has shape \(34, 1\)"),
        (GREY, LABEL.astype(np.float32), "'label' has dtype float32. Store integers"),
        (GREY, LABEL.astype(str), "'label' has dtype <U"),
        (GREY, LABEL - 1, r"'label' has negative entries \(smallest -1\)"),
        (GREY, LABEL * 2, "'label' has 3 classes up to 4, but none numbered 1. Number the classes"),
        (GREY, LABEL + 1, "'label' .* none numbered 0"),
        (GREY, np.where(np.arange(34) < 2, 3, LABEL), "'label' has only 2 of class 3. Give each class 3"),
    ],
)
def test_unfit_arrays_are_named(image: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        dataset_from_arrays(image, label)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names has 2 entries: 3 are needed"),
        ({"value_range": (1.0, 0.0)}, r"value_range=\(1.0, 0.0\): two finite numbers, low < high"),
        ({"value_range": (0.0, 0.5)}, r"'image' spans .* Give a value_range that holds all pixels"),
        ({"validation_fraction": 0.0}, "validation_fraction=0.0"),
        ({"test_fraction": 0.9}, "leave none of the .* examples of class"),
    ],
)
def test_unfit_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_from_arrays(GREY, LABEL, **options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"class_names": "ab"}, TypeError, "class_names is of type str"),
        ({"class_names": ["a", "a"]}, ValueError, "must be different"),
        ({"class_names": ["a", ""]}, ValueError, "none empty"),
        ({"value_range": (0.0, 1e300)}, ValueError, "value_range=.*in float32"),
        ({"value_range": (1e8, 1e8 + 1)}, ValueError, "value_range=.*in float32"),
        ({"value_range": 1.0}, ValueError, "value_range=1.0"),
        ({"test_fraction": "0.1"}, TypeError, "test_fraction='0.1'"),
        ({"label": [[0], [1, 2]]}, ValueError, "'label' is no array"),
    ],
)
def test_arguments_of_another_kind_are_named(changes: dict, error: type[Exception], message: str) -> None:
    arguments = {"image": np.zeros((20, 4, 4), np.uint8), "label": np.arange(20) % 2}
    with pytest.raises(error, match=message):
        dataset_from_arrays(**(arguments | changes))
