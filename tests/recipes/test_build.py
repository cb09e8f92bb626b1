"""The training data that a run is built on: labelled images, images without labels, images alone."""

from typing import Any

import numpy as np
import pytest

from jaxebm.data import Dataset, dataset_from_arrays
from jaxebm.recipes.build import build, make_data


@pytest.fixture(scope="module")
def partly_labelled(arrays: tuple[np.ndarray, np.ndarray]) -> Dataset:
    """Of 120 images, 63 are for training with labels and 30 without."""
    return dataset_from_arrays(arrays[0], np.where(np.arange(120) % 4, arrays[1], -1))


def together(*images: Any) -> set[bytes]:
    return {image.tobytes() for part in images for image in part}


def test_images_without_labels_join_the_density(toy, partly_labelled: Dataset):
    train, unlabelled = partly_labelled.train, partly_labelled.unlabelled
    assert (len(train.label), len(unlabelled)) == (63, 30)
    data = make_data(toy(), partly_labelled)
    np.testing.assert_array_equal(data.x, train.image)
    np.testing.assert_array_equal(data.labels, train.label)
    assert len(data.x_data) == 93
    assert together(data.x_data) == together(train.image, unlabelled)
    few = make_data(toy({"data.labels_per_class": 5}), partly_labelled)
    np.testing.assert_array_equal(few.labels, np.repeat(np.arange(3), 5))
    assert together(few.x_data) == together(train.image, unlabelled)
    alone = make_data(toy(task="unconditional"), partly_labelled)
    assert alone.labels is None
    np.testing.assert_array_equal(alone.x, data.x_data)
    # An epoch is a pass over all of them: 93 images are 6 batches of 14.
    assert build(toy({"epochs": 2}), partly_labelled).num_steps == 12


def test_images_without_labels_are_not_for_energies_of_classes(toy, partly_labelled: Dataset):
    with pytest.raises(ValueError, match="30 images without labels"):
        make_data(toy(recipe="energy_matching"), partly_labelled)


def test_where_all_images_have_labels_nothing_is_copied(toy, blobs: Dataset):
    data = make_data(toy(), blobs)
    assert data.x is blobs.train.image
    assert data.unlabelled is None
    few = make_data(toy({"data.labels_per_class": 28}), blobs)  # all, in another order
    assert few.unlabelled is blobs.train.image


def test_images_of_one_class_are_for_unconditional_models(toy, arrays):
    dataset = dataset_from_arrays(arrays[0])
    with pytest.raises(
        ValueError, match=r"'mine' has one class, or no labels: .*--task unconditional"
    ) as caught:
        build(toy(), dataset)
    assert "\n" not in str(caught.value)
    assert build(toy(task="unconditional"), dataset).data.labels is None
