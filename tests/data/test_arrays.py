"""A user's own arrays: taken as they are, with labels or without, and their faults named."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import Dataset, Split, dataset_from_arrays, load_dataset

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
        ((GREY > 0.5).astype(np.int64), (0, 1), np.uint8, 2),
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
        (GREY.astype(np.int32), LABEL, "'image' is constant: every pixel is 0. Check what was stored"),
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
        (GREY, LABEL + 0.5, "'label' holds 0.5. Store the whole numbers"),
        (GREY, LABEL + 1j, "'label' has dtype complex128. Store integers"),
        (GREY, LABEL - 2, "'label' has the negative entry -2"),
        (GREY, LABEL * 2, "'label' has 3 classes up to 4, but none numbered 1. Number the classes"),
        (GREY, LABEL + 1, r"'label' starts at 1 \(classes 1..3\). Subtract 1: .* label - 1"),
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
        ({"test": 3}, TypeError, r"test is of type int: test must be \(image, label\)"),
        ({"validation": "many"}, TypeError, "validation is of type str"),
    ],
)
def test_arguments_of_another_kind_are_named(changes: dict, error: type[Exception], message: str) -> None:
    image = np.arange(320, dtype=np.uint8).reshape(20, 4, 4)
    arguments = {"image": image, "label": np.arange(20) % 2}
    with pytest.raises(error, match=message):
        dataset_from_arrays(**(arguments | changes))


# Parts that are given.

MORE = np.random.default_rng(1).uniform(size=(9, 5, 7)).astype(np.float32)


def sizes_of(dataset: Dataset) -> list[int]:
    return [len(part.label) for part in (dataset.train, dataset.validation, dataset.test)]


def test_given_parts_are_taken_as_they_are() -> None:
    test, validation = (MORE, np.arange(9) % 3), (MORE[:4], np.array([2, 0, 1, 1]))
    both = dataset_from_arrays(GREY, LABEL, validation=validation, test=test)
    assert sizes_of(both) == [34, 4, 9]
    np.testing.assert_array_equal(both.train.image[..., 0], GREY)
    np.testing.assert_array_equal(both.test.image[..., 0], MORE)
    np.testing.assert_array_equal(both.validation.label, [2, 0, 1, 1])
    # One of both: the other is taken from train, with its share of each class.
    with_test = dataset_from_arrays(GREY, LABEL, test=test)
    assert sizes_of(with_test) == [30, 4, 9]
    np.testing.assert_array_equal(np.bincount(with_test.validation.label), [2, 1, 1])
    together = np.concatenate([with_test.train.image, with_test.validation.image])
    assert {image.tobytes() for image in together} == {image.tobytes() for image in GREY}
    assert sizes_of(dataset_from_arrays(GREY, LABEL, validation=Split(MORE, np.zeros(9, int)))) == [27, 9, 7]


def test_given_parts_leave_classes_of_two_images_or_of_one() -> None:
    rare = np.where(np.arange(34) < 2, 3, LABEL)
    with_test = dataset_from_arrays(GREY, rare, test=(MORE, np.arange(9) % 4))
    np.testing.assert_array_equal(np.bincount(with_test.train.label), [16, 9, 3, 1])
    alone = np.where(np.arange(34) < 1, 3, LABEL)
    with pytest.raises(
        ValueError, match=r"only 1 of class 3\. Give each class 2 images or more: train and validation"
    ):
        dataset_from_arrays(GREY, alone, test=(MORE, np.arange(9) % 4))
    dataset_from_arrays(GREY, alone, test=(MORE, np.arange(9) % 4), validation=(MORE, np.arange(9) % 4))


def test_given_parts_without_labels() -> None:
    dataset = dataset_from_arrays(GREY, test=MORE, validation=(MORE[:3], None))
    assert (sizes_of(dataset), dataset.num_classes) == ([34, 3, 9], 1)


@pytest.mark.parametrize(
    ("label", "test", "message"),
    [
        (LABEL, MORE, r"'test_label' is missing, but there is 'label'. Give test=\(image, label\)"),
        (None, (MORE, np.zeros(9, int)), "'label' is missing, but there is 'test_label'"),
        (LABEL, (MORE, np.zeros(8, int)), "'test_label' has 8 entries, but 'test_image' has 9"),
        (
            LABEL,
            (MORE[:, :4], np.zeros(9, int)),
            r"'test_image' has images of shape \(4, 7, 1\) and 'image' of",
        ),
        (
            LABEL,
            (np.uint8(MORE * 255), np.zeros(9, int)),
            "'test_image' has dtype uint8 and 'image' has float32",
        ),
        (LABEL, (MORE, np.full(9, 3)), r"'test_label' spans 3..3, and 'label' has the classes 0..2"),
        (LABEL, (MORE, np.array([-1, *[0] * 8])), r"'test_label' has images without labels \(1\)"),
        (LABEL, (MORE, np.array(["a"] * 9)), "'test_label' has dtype <U1 and 'label' has int64"),
        (LABEL, (MORE * np.nan, np.zeros(9, int)), "'test_image' holds 315 non-finite pixels"),
        (LABEL, (MORE.reshape(9, -1), np.zeros(9, int)), r"'test_image' has shape \(9, 35\)"),
    ],
)
def test_parts_that_do_not_fit_are_named(label: Any, test: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_from_arrays(GREY, label, test=test)


# Images without labels.


@pytest.mark.parametrize(
    "label",
    [
        np.where(np.arange(34) % 4, LABEL, -1),
        np.where(np.arange(34) % 4, LABEL, np.nan),
        np.where(np.arange(34) % 4, np.array(["a", "b", "c"])[LABEL], ""),
        [None if row % 4 == 0 else "abc"[label] for row, label in enumerate(LABEL)],
    ],
    ids=["minus one", "NaN", "no name", "None"],
)
def test_images_without_labels_are_kept_apart(label: Any, caplog: pytest.LogCaptureFixture) -> None:
    dataset = dataset_from_arrays(GREY, label)
    assert dataset.unlabelled is not None
    np.testing.assert_array_equal(dataset.unlabelled[..., 0], GREY[::4])
    assert sum(sizes_of(dataset)) + len(dataset.unlabelled) == 34
    kept = np.arange(34) % 4 > 0
    same = dataset_from_arrays(GREY[kept], LABEL[kept])
    assert sizes_of(dataset) == sizes_of(same)
    np.testing.assert_array_equal(dataset.train.image, same.train.image)
    np.testing.assert_array_equal(dataset.test.label, same.test.label)
    is_doubtful = np.asarray(label).dtype == np.int64  # -1 may have been meant as a class
    assert ("'label' is -1 for 9 of 34 images" in caplog.text) == is_doubtful


def test_their_pixels_count_for_the_range() -> None:
    image = np.where(np.arange(34)[:, None, None] % 4, GREY, GREY - 1)
    dataset = dataset_from_arrays(image, np.where(np.arange(34) % 4, LABEL, -1))
    assert dataset.value_range == (-1.0, 1.0)
