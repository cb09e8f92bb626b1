"""Images of other sets in a model's own shape, and sets that are not there.

Nothing here writes outside of pytest's temporary folders, and nothing uses a network.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxebm.data import DatasetNotAvailableError, load_dataset, outliers
from jaxebm.data.outliers import load_outliers
from jaxebm.data.tfds_images import PreparedSet

RANDOM = np.random.default_rng(0)


def test_digits_and_own_files(tmp_path: Path):
    dataset = load_dataset("digits")
    own = load_outliers("digits", (8, 8, 1), limit=1000)
    np.testing.assert_allclose(own, dataset.rescale(dataset.test.image), atol=1e-6)
    image = RANDOM.integers(0, 256, (30, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", image=image, label=np.arange(30) % 3)
    assert load_outliers(f"npz:{tmp_path / 'own.npz'}", (4, 4, 3), limit=5).shape == (5, 4, 4, 3)


def test_own_folder_comes_in_the_shape_of_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pillow = pytest.importorskip("PIL.Image")
    for part, level in (("train", 40), ("test", 200)):
        (tmp_path / part).mkdir()
        for index in range(6):
            image = np.full((50, 40 + index, 3), level + index, np.uint8)
            pillow.fromarray(image).save(tmp_path / part / f"{index}.png")
    loaded = load_outliers(f"folder:{tmp_path}", (12, 9, 1), limit=4)
    assert (loaded.shape, loaded.dtype) == ((4, 12, 9, 1), np.float32)
    levels = (200 + np.arange(4)) / 127.5 - 1  # those of the test part, resized once and in grey
    np.testing.assert_allclose(loaded, levels[:, None, None, None] * np.ones((1, 12, 9, 1)), atol=5e-3)
    assert "resized" not in caplog.text  # the size is the model's


Stored = list[np.ndarray]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``stand_in(name, splits, images)``: a folder that looks as if the set were prepared in it.

    Its ``reads`` lists the (split, limit) of every decoding.
    """
    reads: list[tuple[str, int]] = []

    def prepare(name: str, splits: list[str], images: Stored, file_format: str = "array_record") -> Path:
        version_dir = tmp_path / "prepared" / name / "1.0.0"
        version_dir.mkdir(parents=True, exist_ok=True)
        listed = ", ".join(f'{{"name": "{split}"}}' for split in splits)
        (version_dir / "dataset_info.json").write_text(
            f'{{"fileFormat": "{file_format}", "splits": [{listed}]}}'
        )

        def read(prepared: PreparedSet, split: str, limit: int, *, instead: str) -> Iterator[np.ndarray]:
            reads.append((split, limit))
            return iter(images[:limit])

        monkeypatch.setattr(outliers, "read_first_images", read)
        return tmp_path / "prepared"

    return SimpleNamespace(prepare=prepare, reads=reads)


def test_images_of_any_size_come_in_one_shape_and_from_the_cache(stand_in: Any, tmp_path: Path):
    images = [np.full((size, 2 * size, 1 + 2 * (size % 2)), 255, np.uint8) for size in range(3, 9)]
    images += [np.full((5, 5, 1), 65535, np.uint16)]
    folder = stand_in.prepare("many/sizes", ["train", "test"], images)
    options = {"data_dir": folder, "cache_dir": tmp_path / "cache"}
    loaded = load_outliers("many/sizes", (4, 4, 1), **options)
    assert (loaded.shape, loaded.dtype) == ((7, 4, 4, 1), np.float32)
    np.testing.assert_allclose(loaded, 1.0, atol=1e-6)
    np.testing.assert_array_equal(load_outliers("many/sizes", (4, 4, 1), **options), loaded)
    assert stand_in.reads == [("test", 1000)]
    # What would come out otherwise is kept apart.
    assert load_outliers("many/sizes", (4, 4, 3), **options).shape == (7, 4, 4, 3)
    assert load_outliers("many/sizes", (4, 4, 1), limit=2, **options).shape == (2, 4, 4, 1)
    assert stand_in.reads == [("test", 1000), ("test", 1000), ("test", 2)]


@pytest.mark.parametrize(
    ("splits", "read"),
    [
        (["train", "test"], "test"),
        (["train", "extra", "validation"], "validation"),
        (["small1", "small2"], "small1"),
        (["train", "extra"], "extra"),
        (["train"], "train"),
    ],
)
def test_split_that_is_read(stand_in: Any, splits: list[str], read: str):
    folder = stand_in.prepare("mnist", splits, [np.zeros((2, 2, 1), np.uint8)])
    load_outliers("mnist", (2, 2, 1), data_dir=folder)
    assert stand_in.reads == [(read, 1000)]


def test_only_omniglot_is_inverted(stand_in: Any):
    image = np.array([[0, 255], [255, 51]], np.uint8)[..., None]
    for name, sign in (("omniglot", -1.0), ("mnist", 1.0)):
        folder = stand_in.prepare(name, ["test"], [image])
        (loaded,) = load_outliers(name, (2, 2, 1), data_dir=folder)
        np.testing.assert_allclose(loaded[..., 0], sign * np.array([[-1, 1], [1, -0.6]]), atol=1e-6)


def one_line_of(name: str, **options: Any) -> str:
    with pytest.raises(DatasetNotAvailableError) as caught:
        load_outliers(name, (4, 4, 1), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"data set '{name}' ")
    return message


def test_sets_that_cannot_be_had(stand_in: Any, tmp_path: Path):
    message = one_line_of("kmnist", data_dir=tmp_path)
    assert message == (
        f"data set 'kmnist' is neither prepared in {tmp_path} (data_dir) nor downloadable (download=False). "
        "Set TFDS_DATA_DIR to a folder that holds kmnist/, or leave it out."
    )
    folder = stand_in.prepare("kmnist", [], [])
    assert "without any split" in one_line_of("kmnist", data_dir=folder)
    stand_in.prepare("kmnist", ["test"], [])
    assert "no images in its split 'test'" in one_line_of("kmnist", data_dir=folder)
    stand_in.prepare("kmnist", ["test"], [np.zeros((4, 4, 1), np.float32)])
    assert "pixels of type float32" in one_line_of("kmnist", data_dir=folder)
    stand_in.prepare("kmnist", ["test"], [np.zeros((3, 4, 4, 1), np.uint8)])
    assert "images of shape (3, 4, 4, 1)" in one_line_of("kmnist", data_dir=folder)


def test_prepared_sets_that_cannot_be_read(stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    original = outliers.read_first_images
    folder = stand_in.prepare("kmnist", ["test"], [])
    monkeypatch.setattr(outliers, "read_first_images", original)
    message = one_line_of("kmnist", data_dir=folder)
    assert "its split 'test' cannot be read" in message
    assert message.endswith("or leave it out.")

    class Source(list):
        def __getitems__(self, rows: list[int]) -> list:
            return [self[row] for row in rows]

    records = Source({"text": "a", "label": 0} for _ in range(3))
    builder = SimpleNamespace(as_data_source=lambda split: records)
    monkeypatch.setattr(tfds, "builder_from_directory", lambda version_dir: builder)
    assert "has no feature 'image' (it has label, text)" in one_line_of("kmnist", data_dir=folder)
    # In chunks, of which the last is short, and no further than the limit.
    records[:] = [{"image": np.full((1, 1, 1), row % 256, np.uint8)} for row in range(230)]
    options = {"data_dir": folder, "cache_dir": tmp_path}
    loaded = load_outliers("kmnist", (1, 1, 1), **options)
    expected = (np.arange(230) % 256) / 127.5 - 1
    np.testing.assert_allclose(loaded.ravel(), expected, atol=1e-6)
    np.testing.assert_allclose(
        load_outliers("kmnist", (1, 1, 1), limit=150, **options).ravel(), expected[:150], atol=1e-6
    )
    stand_in.prepare("kmnist", ["test"], [], file_format="tfrecord")
    monkeypatch.setattr(outliers, "read_first_images", original)
    assert "stored as tfrecord" in one_line_of("kmnist", data_dir=folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "../mnist",
            {},
            "name='../mnist': name must be digits, npz:PATH, folder:PATH or a set of tensorflow-datasets",
        ),
        ("mnist*", {}, "name must be"),
        ("", {}, "name must be"),
        ("mnist", {"limit": 0}, "limit=0: limit must be an integer of at least 1"),
    ],
)
def test_arguments_that_are_wrong(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        load_outliers(name, (4, 4, 1), **options)


@pytest.mark.parametrize("name", ["omniglot", "mnist", "fashion_mnist", "cifar10"])
def test_prepared_set(name: str, tmp_path: Path):
    beside = Path(__file__).resolve().parents[3] / "shared" / "tensorflow_datasets"
    folder = Path(os.environ.get("TFDS_DATA_DIR") or beside)
    if not any(folder.glob(f"{name}/*/dataset_info.json")):
        pytest.skip(f"'{name}' is not prepared in {folder}: set TFDS_DATA_DIR to a folder that holds {name}/")
    loaded = load_outliers(name, (28, 28, 1), limit=50, data_dir=folder, cache_dir=tmp_path)
    assert (loaded.shape, loaded.dtype) == ((50, 28, 28, 1), np.float32)
    assert loaded.min() >= -1.0
    assert loaded.max() <= 1.0
    corners = loaded[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    if name != "cifar10":  # light on a dark ground, omniglot too
        assert np.median(corners) == -1.0
    # Omniglot's pixels are black on white: ink covers less than a tenth of them.
    if name == "omniglot":
        assert -0.95 < loaded.mean() < -0.75
