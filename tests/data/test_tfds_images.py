"""Prepared tensorflow-datasets sets against their published moments, their cache, and sets out of reach.

Nothing here writes outside of pytest's temporary folders, and nothing uses a network.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxebm.data import Dataset, Split, load_dataset, tfds_images

PartsOf = Callable[[Dataset], tuple[Split, Split, Split]]
OneLineOf = Callable[..., str]


def prepared_folder(name: str) -> Path:
    """Returns a folder that holds a prepared set, or skips the test."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "tensorflow_datasets"
    folder = Path(os.environ.get("TFDS_DATA_DIR") or beside)
    if not any(folder.glob(f"{name}/*/dataset_info.json")):
        pytest.skip(f"'{name}' is not prepared in {folder}: set TFDS_DATA_DIR to a folder that holds {name}/")
    return folder


MOMENTS = {  # sizes, pixel mean and standard deviation of the whole training split on the 0-1 scale
    "mnist": ((28, 28, 1), 60_000, [0.1307], [0.3081]),
    "fashion_mnist": ((28, 28, 1), 60_000, [0.2860], [0.3530]),
    "cifar10": ((32, 32, 3), 50_000, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mnist", marks=pytest.mark.slow),
        pytest.param("fashion_mnist", marks=pytest.mark.slow),
        pytest.param("cifar10", marks=pytest.mark.slow),
    ],
)
def test_prepared_set(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    parts_of: PartsOf,
) -> None:
    folder = prepared_folder(name)
    image_shape, num_train, mean, deviation = MOMENTS[name]
    with caplog.at_level(logging.INFO):
        dataset = load_dataset(name, data_dir=folder, cache_dir=tmp_path / "cache", download=False)
    assert f"{name} train: decoded {num_train} of {num_train} images" in caplog.text
    assert "group size" not in caplog.text
    assert (dataset.image_shape, dataset.num_classes, dataset.value_range) == (image_shape, 10, (0.0, 255.0))
    assert [len(part.label) for part in parts_of(dataset)] == [num_train - 5000, 5000, 10_000]
    assert all(part.image.dtype == np.uint8 and part.label.dtype == np.int32 for part in parts_of(dataset))
    train_counts, validation_counts = (
        np.bincount(part.label, minlength=10) for part in parts_of(dataset)[:2]
    )
    share = 5000 / num_train
    assert np.abs(validation_counts - share * (train_counts + validation_counts)).max() <= 1

    histogram = np.zeros((image_shape[2], 256))
    for part in (dataset.train, dataset.validation):
        for channel in range(image_shape[2]):
            histogram[channel] += np.bincount(part.image[..., channel].ravel(), minlength=256)
    levels, weights = np.arange(256) / 255.0, histogram / histogram.sum(axis=1, keepdims=True)
    actual_mean = (weights * levels[None]).sum(axis=1)
    np.testing.assert_allclose(actual_mean, mean, atol=6e-5)
    np.testing.assert_allclose(
        np.sqrt((weights * levels[None] ** 2).sum(axis=1) - actual_mean**2), deviation, atol=6e-5
    )

    # Now from the cache: nothing is decoded, and nothing changes.
    assert len(list((tmp_path / "cache").iterdir())) == 2
    monkeypatch.setattr(tfds_images, "_decode", None)
    again = load_dataset(name, data_dir=folder, cache_dir=tmp_path / "cache", download=False)
    for part, other in zip(parts_of(dataset), parts_of(again), strict=True):
        np.testing.assert_array_equal(part.image, other.image)
        np.testing.assert_array_equal(part.label, other.label)


@pytest.mark.slow
def test_fashion_classes_have_their_names(tmp_path: Path) -> None:
    folder = prepared_folder("fashion_mnist")
    dataset = load_dataset(
        "fashion_mnist", exclude_classes=[0], data_dir=folder, cache_dir=tmp_path, download=False
    )
    assert (dataset.class_names[0], dataset.class_names[-1]) == ("Trouser", "Ankle boot")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks as if mnist were prepared in it, with a decoder that takes no time."""
    version_dir = tmp_path / "prepared" / "mnist" / "3.0.1"
    version_dir.mkdir(parents=True)
    (version_dir / "dataset_info.json").write_text('{"fileFormat": "array_record"}')

    def decode(version_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        count = 6000 if split == "train" else 100
        label = np.arange(count, dtype=np.int32) % 10
        return np.full((count, 2, 2, 1), int(version_dir.name.split(".")[1]), np.uint8), label

    monkeypatch.setattr(tfds_images, "_decode", decode)
    return tmp_path / "prepared"


def test_default_folders_come_from_the_environment(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_of: PartsOf
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(stand_in))
    dataset = load_dataset("mnist")
    assert [len(part.label) for part in parts_of(dataset)] == [1000, 5000, 100]
    assert dataset.class_names == tuple("0123456789")
    names = sorted(path.name for path in (tmp_path / "default_cache").iterdir())
    assert [name[:12] + name[24:] for name in names] == ["mnist-3.0.1--test.npz", "mnist-3.0.1--train.npz"]


def test_newest_version_is_read_and_has_its_own_cache(stand_in: Path, tmp_path: Path) -> None:
    assert load_dataset("mnist", data_dir=stand_in, cache_dir=tmp_path / "c").test.image.max() == 0
    shutil.copytree(stand_in / "mnist" / "3.0.1", stand_in / "mnist" / "3.10.0")
    (stand_in / "mnist" / "3.11.0.incomplete").mkdir()
    assert load_dataset("mnist", data_dir=stand_in, cache_dir=tmp_path / "c").test.image.max() == 10


def test_cache_that_cannot_be_used_is_a_warning(stand_in: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with pytest.warns(RuntimeWarning, match="cannot be cached in .* JAXEBM_CACHE_DIR"):
        assert len(load_dataset("mnist", data_dir=stand_in, cache_dir=in_the_way / "cache").test.label) == 100

    cache = tmp_path / "cache"
    load_dataset("mnist", data_dir=stand_in, cache_dir=cache)
    (test_file,) = cache.glob("*-test.npz")
    test_file.write_bytes(test_file.read_bytes()[:200])
    with pytest.warns(RuntimeWarning, match="cannot be read .* decoding again"):
        assert len(load_dataset("mnist", data_dir=stand_in, cache_dir=cache).test.label) == 100
    assert len(load_dataset("mnist", data_dir=stand_in, cache_dir=cache).test.label) == 100  # mended
    assert len(list(cache.iterdir())) == 2  # no temporary file is left


def test_set_that_is_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line_of: OneLineOf
) -> None:
    message = one_line_of("svhn_cropped", data_dir=tmp_path, download=False)
    assert message == (
        f"data set 'svhn_cropped' is neither prepared in {tmp_path} (data_dir) nor downloadable "
        "(download=False). Set TFDS_DATA_DIR to a folder that holds svhn_cropped/, or load digits instead."
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert f"prepared in {tmp_path} (TFDS_DATA_DIR)" in one_line_of("svhn_cropped", download=False)
    assert list(tmp_path.iterdir()) == []


def test_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line_of: OneLineOf) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    attempts = []

    def data_source(name: str, **options: Any) -> None:
        attempts.append((name, options["data_dir"], options["download"]))
        raise ConnectionError("no route to host\nsecond line " + "x" * 1000)

    monkeypatch.setattr(tfds, "data_source", data_source)
    monkeypatch.setattr(tfds_images, "_tensorflow_is_installed", lambda: True)
    message = one_line_of("cifar100", data_dir=tmp_path)
    assert attempts == [("cifar100", tmp_path, True)]
    assert "(ConnectionError: no route to host second line xxx" in message
    assert message.endswith("holds cifar100/, or load digits instead.")
    assert len(message) < 600
    # Without TensorFlow the download would only fail at its end: it is not begun.
    monkeypatch.setattr(tfds_images, "_tensorflow_is_installed", lambda: False)
    assert "needs TensorFlow, which is not installed" in one_line_of("cifar100", data_dir=tmp_path)
    assert len(attempts) == 1


def test_prepared_set_that_cannot_be_read(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line_of: OneLineOf
) -> None:
    def damaged(version_dir: Path, split: str) -> None:
        raise OSError("truncated record\nat 17")

    monkeypatch.setattr(tfds_images, "_decode", damaged)
    message = one_line_of("mnist", data_dir=stand_in)
    assert (
        "split 'train' cannot be read (OSError: truncated record at 17). Prepare or copy it again" in message
    )
    (stand_in / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")  # tfds's default format
    assert "stored as tfrecord" in one_line_of("mnist", data_dir=stand_in)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"splits": [{}]}', '{"splits": 3}', '{"fileFormat": 3}', "\\xff"]
)
def test_damaged_metadata_become_one_line(
    stand_in: Path, tmp_path: Path, damage: str, one_line_of: OneLineOf
) -> None:
    (stand_in / "mnist" / "3.0.1" / "dataset_info.json").write_text(damage)
    message = one_line_of("mnist", data_dir=stand_in, cache_dir=tmp_path / "cache", download=False)
    assert "its dataset_info.json cannot be read" in message
    assert "Prepare or copy it again" in message


@pytest.mark.parametrize(
    "arrays",
    [
        {"label": np.full(6000, 10, np.int32)},
        {"label": np.zeros(5, np.int32)},
        {"image": np.zeros((6000, 2, 2, 1), np.float32)},
    ],
)
def test_a_cache_of_other_arrays_is_decoded_again(
    stand_in: Path, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    options: dict[str, Any] = {"data_dir": stand_in, "cache_dir": tmp_path / "cache", "download": False}
    load_dataset("mnist", **options)
    (file,) = (tmp_path / "cache").glob("*-train.npz")
    good = {"image": np.zeros((6000, 2, 2, 1), np.uint8), "label": np.arange(6000, dtype=np.int32) % 10}
    np.savez(file, allow_pickle=False, **(good | arrays))
    with pytest.warns(RuntimeWarning, match="cannot be read .* decoding again"):
        dataset = load_dataset("mnist", **options)
    assert len(dataset.train.label) == 1000
