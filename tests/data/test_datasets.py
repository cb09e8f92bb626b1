"""Splits that never change, an own file's errors, and prepared tfds sets against their published moments.

Nothing here writes outside of pytest's temporary folders, and nothing uses a network.
"""

import builtins
import hashlib
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import tfds_images
from jaxebm.data.datasets import DATASETS, Dataset, DatasetNotAvailableError, Split, load_dataset
from jaxebm.data.npz import stratified_indices


@pytest.fixture(autouse=True)
def _no_writing_to_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAXEBM_CACHE_DIR", str(tmp_path / "default_cache"))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def parts_of(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


def class_counts(split: Split, num_classes: int) -> np.ndarray:
    return np.bincount(split.label, minlength=num_classes)


def assert_stratified(dataset: Dataset) -> None:
    """Every part holds its share of every class, to within rounding."""
    counts = np.stack([class_counts(part, dataset.num_classes) for part in parts_of(dataset)])
    share = counts.sum(axis=1) / counts.sum()
    assert np.abs(counts - share[:, None] * counts.sum(axis=0)[None]).max() <= 2


# Digits: the embedded default.


def test_digits_sizes_kinds_and_stratification(digits: Dataset) -> None:
    assert [part.image.shape for part in parts_of(digits)] == [
        (1257, 8, 8, 1),
        (180, 8, 8, 1),
        (360, 8, 8, 1),
    ]
    assert all(part.image.dtype == np.float32 and part.label.dtype == np.int32 for part in parts_of(digits))
    assert (digits.num_classes, digits.image_shape, digits.value_range) == (10, (8, 8, 1), (0.0, 16.0))
    assert digits.class_names == tuple("0123456789")
    assert digits.held_out is None
    assert_stratified(digits)


def test_digits_parts_are_disjoint_and_together_the_whole_set(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    # No two of the 1797 digits have the same pixels, so that an image's bytes are its identity.
    whole = {image.tobytes() for image in load_digits(return_X_y=True)[0].astype(np.float32)}
    assert len(whole) == 1797
    seen = [{image.tobytes() for image in part.image} for part in parts_of(digits)]
    assert sum(len(part) for part in seen) == 1797
    assert set.union(*seen) == whole


def test_digits_split_is_the_one_of_all_published_results(digits: Dataset) -> None:
    # If this fails, every figure on digits becomes a figure on another test set.
    again = load_dataset("digits")
    digest = hashlib.sha256()
    for part, other in zip(parts_of(digits), parts_of(again), strict=True):
        np.testing.assert_array_equal(part.image, other.image)
        np.testing.assert_array_equal(part.label, other.label)
        digest.update(part.image.astype(np.uint8).tobytes() + part.label.astype(np.uint8).tobytes())
    assert digest.hexdigest()[:16] == "66831df22239c08b"


def test_rescale_and_restore(digits: Dataset) -> None:
    image = digits.train.image[:20]
    rescaled = digits.rescale(image)
    assert isinstance(rescaled, np.ndarray)
    assert rescaled.dtype == np.float32
    assert (rescaled.min(), rescaled.max()) == (-1.0, 1.0)
    np.testing.assert_allclose(digits.restore(rescaled) * 16.0, image, atol=1e-5)
    np.testing.assert_array_equal(digits.restore(np.array([-3.0, 3.0])), [0.0, 1.0])
    on_device = jax.jit(lambda x: digits.restore(digits.rescale(x)))(jnp.asarray(image))
    assert on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, image / 16.0, atol=1e-6)


# Leaving classes out.


def test_excluded_classes_are_held_out(digits: Dataset) -> None:
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


# A user's own file.

LABEL = np.repeat(np.arange(3), [20, 10, 4])


def images(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    values = np.random.default_rng(0).uniform(size=(len(LABEL), *shape))
    return (values * 255).astype(np.uint8) if dtype is np.uint8 else values.astype(dtype)


def written(path: Path, **arrays: Any) -> str:
    np.savez(path / "own.npz", **arrays)
    return f"npz:{path / 'own.npz'}"


@pytest.mark.parametrize(
    ("image", "image_shape", "value_range"),
    [
        (images((5, 7), np.uint8), (5, 7, 1), (0.0, 255.0)),
        (images((6, 4, 3), np.uint8), (6, 4, 3), (0.0, 255.0)),
        (images((5, 7), np.float64), (5, 7, 1), (0.0, 1.0)),
        (images((2, 2, 5), np.float16), (2, 2, 5), (0.0, 1.0)),
        (2 * images((3, 3, 1), np.float32) - 1, (3, 3, 1), (-1.0, 1.0)),
    ],
    ids=["grey uint8", "colour uint8", "grey float64", "five channels float16", "signed float32"],
)
def test_own_file(
    tmp_path: Path, image: np.ndarray, image_shape: tuple[int, ...], value_range: tuple[float, float]
) -> None:
    dataset = load_dataset(written(tmp_path, image=image, label=LABEL.astype(np.uint16)))
    assert (dataset.image_shape, dataset.value_range, dataset.num_classes) == (image_shape, value_range, 3)
    expected_dtype = np.uint8 if image.dtype == np.uint8 else np.float32
    assert all(
        part.image.dtype == expected_dtype and part.label.dtype == np.int32 for part in parts_of(dataset)
    )
    counts = np.stack([class_counts(part, 3) for part in parts_of(dataset)])
    np.testing.assert_array_equal(counts, [[14, 7, 2], [2, 1, 1], [4, 2, 1]])  # 70, 10 and 20 percent
    rescaled = dataset.rescale(dataset.train.image)
    assert rescaled.min() >= -1.0
    assert rescaled.max() <= 1.0
    low, high = value_range
    np.testing.assert_allclose(
        dataset.restore(rescaled) * (high - low) + low,
        dataset.train.image,
        rtol=1e-5,
        atol=1e-5 * (high - low),
    )
    # Random images are all different: together the parts are the file, each image with its label.
    together = {
        (one.tobytes(), int(label)) for part in parts_of(dataset) for one, label in zip(*part, strict=True)
    }
    stored = image.reshape(len(LABEL), *image_shape).astype(expected_dtype)
    assert together == {(one.tobytes(), int(label)) for one, label in zip(stored, LABEL, strict=True)}


def test_own_file_is_split_in_the_same_way_every_time() -> None:
    train, validation, test = stratified_indices(LABEL)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation, test])), np.arange(len(LABEL)))
    np.testing.assert_array_equal(validation, [10, 17, 23, 33])
    np.testing.assert_array_equal(test, [1, 8, 18, 19, 22, 25, 32])
    assert [len(part) for part in stratified_indices(np.zeros(3, np.int32))] == [1, 1, 1]


GREY = images((5, 7), np.float32)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (GREY.astype(np.int32), LABEL, "'image' .* has dtype int32. Store uint8"),
        (GREY > 0.5, LABEL, "'image' .* has dtype bool"),
        (GREY.astype(np.complex64), LABEL, "'image' .* has dtype complex64"),
        (np.where(GREY > 0.9, np.nan, GREY), LABEL, r"'image' .* \d+ non-finite pixels"),
        (np.where(GREY > 0.9, np.inf, GREY), LABEL, r"'image' .* \d+ non-finite pixels"),
        (GREY * 255, LABEL, r"'image' .* spans 0\.\d+ to 2\d\d.*Rescale"),
        (GREY - 1.5, LABEL, r"'image' .* spans -1\.\d+ to"),
        (GREY.reshape(len(LABEL), -1), LABEL, r"'image' .* has shape \(34, 35\). Give it shape \(n, H, W\)"),
        (GREY[None, None], LABEL, "'image' .* has shape"),
        (GREY[:, :0], LABEL, r"'image' .* \(34, 0, 7\), which is empty"),
        (GREY[:0], LABEL[:0], "'image' .* which is empty"),
        (GREY[:-1], LABEL, "'label' .* has 34 entries, but 'image' has 33"),
        (GREY, LABEL[:, None], r"'label' .* has shape \(34, 1\)"),
        (GREY, LABEL.astype(np.float32), "'label' .* has dtype float32. Store integers"),
        (GREY, LABEL.astype(str), "'label' .* has dtype <U"),
        (GREY, LABEL - 1, r"'label' .* negative entries \(smallest -1\)"),
        (GREY, LABEL * 2, "'label' .* 3 classes up to 4, but none numbered 1. Number the classes"),
        (GREY, LABEL + 1, "'label' .* none numbered 0"),
        (GREY, np.where(np.arange(34) < 2, 3, LABEL), "'label' .* only 2 of class 3. Give each class 3"),
        (GREY, LABEL.astype(object), "'label' .* pickled Python objects. Store a plain"),
        (np.array([*GREY[:-1], None], object), LABEL, "'image' .* pickled Python objects"),
    ],
)
def test_unfit_arrays_are_named(tmp_path: Path, image: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(written(tmp_path, image=image, label=label))
    assert "\n" not in str(caught.value)


def test_missing_arrays_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no array 'image' \(it holds images, label\).*numpy.savez"):
        load_dataset(written(tmp_path, images=GREY, label=LABEL))
    with pytest.raises(ValueError, match=r"no array 'label' \(it holds image\)"):
        load_dataset(written(tmp_path, image=GREY))
    with pytest.raises(FileNotFoundError, match=r"absent\.npz' does not exist.*numpy.savez"):
        load_dataset(f"npz:{tmp_path / 'absent.npz'}")
    np.save(tmp_path / "single.npy", GREY)
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    for name in ("single.npy", "text.npz", "empty.npz", ""):
        with pytest.raises(ValueError, match=r"is not an \.npz file"):
            load_dataset(f"npz:{tmp_path / name}")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("image", "pixels")
    with pytest.raises(ValueError, match=r"'image' .* is not a numpy array"):
        load_dataset(f"npz:{tmp_path / 'other.npz'}")
    written(tmp_path, image=GREY, label=LABEL)
    damaged = bytearray((tmp_path / "own.npz").read_bytes())
    damaged[300] ^= 0xFF  # a pixel: the archive's checksum no longer agrees
    (tmp_path / "own.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        load_dataset(f"npz:{tmp_path / 'own.npz'}")


# tensorflow-datasets.


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
        "mnist",
        pytest.param("fashion_mnist", marks=pytest.mark.slow),
        pytest.param("cifar10", marks=pytest.mark.slow),
    ],
)
def test_prepared_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    train_counts, validation_counts = (class_counts(part, 10) for part in parts_of(dataset)[:2])
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
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def one_line_of(name: str, **options: Any) -> str:
    with pytest.raises(DatasetNotAvailableError) as caught:
        load_dataset(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_set_that_is_not_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = one_line_of("svhn_cropped", data_dir=tmp_path, download=False)
    assert message == (
        f"data set 'svhn_cropped' is neither prepared in {tmp_path} (data_dir) nor downloadable "
        "(download=False). Set TFDS_DATA_DIR to a folder that holds svhn_cropped/, or use --dataset digits."
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert f"prepared in {tmp_path} (TFDS_DATA_DIR)" in one_line_of("svhn_cropped", download=False)
    assert list(tmp_path.iterdir()) == []


def test_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert message.endswith("holds cifar100/, or use --dataset digits.")
    assert len(message) < 600
    # Without TensorFlow the download would only fail at its end: it is not begun.
    monkeypatch.setattr(tfds_images, "_tensorflow_is_installed", lambda: False)
    assert "needs TensorFlow, which is not installed" in one_line_of("cifar100", data_dir=tmp_path)
    assert len(attempts) == 1


def test_prepared_set_that_cannot_be_read(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("mnist", "tensorflow_datasets")])
def test_missing_package_names_the_extra(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_dir = tmp_path / "mnist" / "3.0.1"
    version_dir.mkdir(parents=True)
    (version_dir / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    original_import = builtins.__import__

    def import_without(module: str, *arguments: Any, **options: Any) -> Any:
        if module.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'")
        return original_import(module, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", import_without)
    assert "pip install 'jaxebm[experiments]'" in one_line_of(
        name, data_dir=tmp_path, cache_dir=tmp_path / "cache"
    )
