"""Any set of tensorflow-datasets as data, by a stand-in for its reader, and two that are prepared on disk.

Nothing here writes outside of pytest's temporary folders, and nothing uses a network.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxebm.data import Dataset, load_dataset

tfds: Any = pytest.importorskip("tensorflow_datasets")

OneLineOf = Callable[..., str]
Prepare = Callable[..., Path]


class Source(list):
    """What tensorflow-datasets returns of a split."""

    def __getitems__(self, rows: list[int]) -> list:
        return [self[row] for row in rows]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """``prepare(name, names=..., train=records, ...)``: a folder that looks as if the set were in it."""

    def prepare(name: str, names: tuple[str, ...] = (), **splits: list[dict[str, Any]]) -> Path:
        version_dir = tmp_path / "prepared" / name / "1.0.0"
        version_dir.mkdir(parents=True, exist_ok=True)
        listed = ", ".join(f'{{"name": "{split}"}}' for split in splits)
        (version_dir / "dataset_info.json").write_text(
            f'{{"fileFormat": "array_record", "splits": [{listed}]}}'
        )
        if names:
            (version_dir / "label.labels.txt").write_text("\n".join(names))
        builder = SimpleNamespace(as_data_source=lambda split: Source(splits[split]))
        monkeypatch.setattr(tfds, "builder_from_directory", lambda version_dir: builder)
        return tmp_path / "prepared"

    return prepare


def records(
    count: int, *shapes: tuple[int, ...], labels: Any = (0, 1), seed: int = 0
) -> list[dict[str, Any]]:
    """Records of random images, which go through the shapes and the labels in turn."""
    random = np.random.default_rng(seed)
    return [
        {
            "image": random.integers(0, 256, shapes[row % len(shapes)], np.uint8),
            "label": labels[row % len(labels)],
        }
        for row in range(count)
    ]


def sizes_of(dataset: Dataset) -> list[int]:
    return [len(part.label) for part in (dataset.train, dataset.validation, dataset.test)]


def test_given_splits_and_names_of_classes(prepare: Prepare, tmp_path: Path) -> None:
    train = records(230, (6, 5, 1), labels=(1, 3))  # no image is of class 0 or 2, as in emnist/letters
    test = records(8, (6, 5, 1), labels=(3, 1), seed=1)
    folder = prepare("pets/small", ("none", "cat", "emu", "dog"), train=train, test=test, extra=[])
    options: dict[str, Any] = {"data_dir": folder, "cache_dir": tmp_path / "cache", "download": False}
    dataset = load_dataset("tfds:pets/small", **options)
    assert repr(dataset) == (
        "Dataset('tfds:pets/small', image_shape=(6, 5, 1), num_classes=2, train=206, validation=24, test=8)"
    )
    assert (dataset.class_names, dataset.num_levels) == (("cat", "dog"), 256)
    np.testing.assert_array_equal(dataset.test.image, [record["image"] for record in test])
    np.testing.assert_array_equal(dataset.test.label, [1, 0] * 4)
    # From the cache: what is read again is only how large the images are.
    for record in train[:]:
        record["image"] = np.zeros((6, 5, 1), np.uint8)
    again = load_dataset("tfds:pets/small", **options)
    np.testing.assert_array_equal(again.train.image, dataset.train.image)


def test_images_of_several_sizes(prepare: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = records(30, (12, 9, 1), (12, 9, 1), (40, 40, 3))
    folder = prepare("mixed", train=train, validation=records(4, (50, 7, 4)), test=records(4, (12, 9, 1)))
    options: dict[str, Any] = {"data_dir": folder, "cache_dir": tmp_path / "cache", "download": False}
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        dataset = load_dataset("tfds:mixed", **options)
        assert (dataset.image_shape, dataset.class_names) == ((12, 9, 3), ("0", "1"))
        assert sizes_of(dataset) == [30, 4, 4]
        assert "'mixed': 14 of 38 images are resized to 12 x 9 pixels" in caplog.text
        assert "Another size: tfds:mixed?size=64." in caplog.text
    caplog.clear()
    small = load_dataset("tfds:mixed?size=5&channels=1", **options)
    assert (small.image_shape, small.name) == ((5, 5, 1), "tfds:mixed?size=5&channels=1")
    assert caplog.text == ""


def test_splits_and_sets_without_labels(prepare: Prepare, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "download": False}
    hidden = records(5, (4, 4, 1), labels=(-1,))
    folder = prepare("hidden", train=records(40, (4, 4, 1), labels=(0, 1, 0, -1)), test=hidden)
    dataset = load_dataset("tfds:hidden", data_dir=folder, **options)
    assert dataset.unlabelled is not None
    assert (sizes_of(dataset), len(dataset.unlabelled)) == ([21, 3, 6], 10)
    images = [{"image": record["image"]} for record in hidden * 4]
    folder = prepare("faces", train=images, test=images)
    dataset = load_dataset("tfds:faces", data_dir=folder, **options)
    assert (dataset.num_classes, sizes_of(dataset)) == (1, [18, 2, 20])


def test_faults_are_one_line(prepare: Prepare, tmp_path: Path, one_line_of: OneLineOf) -> None:
    def fault(**splits: list[dict[str, Any]]) -> str:
        options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "download": False}
        return one_line_of("tfds:odd", data_dir=prepare("odd", **splits), **options)

    assert "neither prepared" in one_line_of("tfds:absent", data_dir=tmp_path, download=False)
    assert "has no split 'train' (it has small1)" in fault(small1=[])
    assert "holds no images (h, w, c) in its split 'train'" in fault(train=[])
    assert "holds no images (h, w, c)" in fault(train=records(3, (2, 4, 4, 1)))
    assert "has no images in its split 'test'" in fault(train=records(3, (4, 4, 1)), test=[])
    assert "has no feature 'image' (it has label)" in fault(train=[{"label": 0}])
    floats = [{"image": np.ones((4, 4, 1)), "label": 0}]
    assert "image of shape (4, 4, 1) and dtype float64 in its split 'train'" in fault(train=floats)
    boxes = [{"image": np.ones((4, 4, 1), np.uint8), "label": np.zeros(3, int)}]
    assert "label of shape (3,) and dtype int64, not one class number" in fault(train=boxes)
    folder = prepare("few", train=records(4, (4, 4, 1)))
    with pytest.raises(ValueError, match="data set 'few': 'label' has only 2 of class 0"):
        load_dataset("tfds:few", data_dir=folder, cache_dir=tmp_path / "cache")


def prepared_folder(name: str) -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "tensorflow_datasets"
    folder = Path(os.environ.get("TFDS_DATA_DIR") or beside)
    if not any(folder.glob(f"{name}/*/dataset_info.json")):
        pytest.skip(f"'{name}' is not prepared in {folder}: set TFDS_DATA_DIR to a folder that holds {name}/")
    return folder


@pytest.mark.slow
def test_prepared_sets(tmp_path: Path) -> None:
    folder = prepared_folder("mnist")
    options: dict[str, Any] = {"data_dir": folder, "cache_dir": tmp_path, "download": False}
    known, same = load_dataset("mnist", **options), load_dataset("tfds:mnist", **options)
    assert same.name == "tfds:mnist"
    np.testing.assert_array_equal(known.validation.image, same.validation.image)
    small = load_dataset("tfds:mnist?size=14", **options)
    assert (small.image_shape, sizes_of(small)) == ((14, 14, 1), [54_001, 5999, 10_000])
    np.testing.assert_array_equal(small.test.label, known.test.label)
    assert abs(small.test.image.mean() - known.test.image.mean()) < 0.5
