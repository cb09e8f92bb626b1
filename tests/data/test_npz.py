"""A user's own file: read as it is, and its faults named. What is in it is tested in `test_arrays.py`."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxebm.data import Dataset, Split, load_dataset

PartsOf = Callable[[Dataset], tuple[Split, Split, Split]]

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
    tmp_path: Path,
    image: np.ndarray,
    image_shape: tuple[int, ...],
    value_range: tuple[float, float],
    parts_of: PartsOf,
) -> None:
    dataset = load_dataset(written(tmp_path, image=image, label=LABEL.astype(np.uint16)))
    assert (dataset.image_shape, dataset.value_range, dataset.num_classes) == (image_shape, value_range, 3)
    expected_dtype = np.uint8 if image.dtype == np.uint8 else np.float32
    assert all(
        part.image.dtype == expected_dtype and part.label.dtype == np.int32 for part in parts_of(dataset)
    )
    counts = np.stack([np.bincount(part.label, minlength=3) for part in parts_of(dataset)])
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


GREY = images((5, 7), np.float32)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (GREY.astype(np.int32), LABEL, "'image' is constant"),
        (GREY, LABEL + 1, "'label' starts at 1"),
        (GREY, LABEL.astype(object), "'label' .* pickled Python objects. Store a plain"),
        (np.array([*GREY[:-1], None], object), LABEL, "'image' .* pickled Python objects"),
    ],
)
def test_unfit_arrays_are_named_with_the_file(
    tmp_path: Path, image: np.ndarray, label: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"'.*own\.npz': {message}") as caught:
        load_dataset(written(tmp_path, image=image, label=label))
    assert "\n" not in str(caught.value)


def test_missing_arrays_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no array 'image' \(it holds images, label\).*numpy.savez"):
        load_dataset(written(tmp_path, images=GREY, label=LABEL))
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
    with pytest.raises(ValueError, match=r"'image' is not a numpy array"):
        load_dataset(f"npz:{tmp_path / 'other.npz'}")
    written(tmp_path, image=GREY, label=LABEL)
    damaged = bytearray((tmp_path / "own.npz").read_bytes())
    damaged[300] ^= 0xFF  # a pixel: the archive's checksum no longer agrees
    (tmp_path / "own.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        load_dataset(f"npz:{tmp_path / 'own.npz'}")


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def members(path: Path, image: bytes, compression: int = zipfile.ZIP_STORED) -> str:
    label = io.BytesIO()
    np.save(label, LABEL)
    with zipfile.ZipFile(path / "own.npz", "w", compression) as archive:
        archive.writestr("image.npy", image)
        archive.writestr("label.npy", label.getvalue())
    return f"npz:{path / 'own.npz'}"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (header((10**6, 10**3, 10**3, 4)) + b"few", "its header says shape .*, and 3 bytes are stored"),
        (header((34, 4, 4)) + bytes(34 * 16 - 1), "544 bytes, and 543 bytes are stored"),
        (header((-34, -4, 4)) + bytes(34 * 16), "its header says shape"),
        (header((34, 4, 4))[:20], "EOF|header"),
        (b"no array", "magic"),
        (header((34, 4, 4), "|O") + bytes(34 * 16), "holds pickled Python objects"),
        (b"", "EOF|magic"),
    ],
    ids=["huge", "truncated", "negative", "cut header", "no array", "objects", "empty"],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_claims_too_much_takes_no_memory(
    tmp_path: Path, image: bytes, message: str, compression: int
) -> None:
    name = members(tmp_path, image, compression)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"own\.npz': 'image' .*({message})"):
            load_dataset(name)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("field", ["compress_size", "file_size"])
def test_a_directory_that_lies_is_named(tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 10**12
    name = members(tmp_path, header((size,)) + b"few", zipfile.ZIP_DEFLATED)
    getinfo = zipfile.ZipFile.getinfo

    def lying(self: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
        info = getinfo(self, member)
        info.file_size = size + len(header((size,)))
        if field == "compress_size":
            info.compress_size = size
        return info

    monkeypatch.setattr(zipfile.ZipFile, "getinfo", lying)
    # Newer releases of Python notice the one that is longer than the file themselves.
    with pytest.raises(ValueError, match=r"is damaged .*(bytes cannot come from|Overlapped entries)"):
        load_dataset(name)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (images((4, 4), np.uint8), LABEL.astype("m8[s]"), "'label' has dtype timedelta64"),
        (images((4, 4), np.uint8), LABEL[:-1], "'label' has 33 entries, but 'image' has 34"),
        (images((4, 4), np.uint8), LABEL * 2, "'label' has 3 classes .* none numbered 1"),
        (images((4, 4), np.uint8), LABEL * 10**15, "'label' has 3 classes .* none numbered 1"),
        (images((4, 4), np.uint8), LABEL + 0.5, "'label' holds 0.5"),
        (np.zeros((0, 4, 4), np.uint8), LABEL[:0], "'image' has shape .*empty"),
        (images((4, 4), np.uint8).astype(str), LABEL, "'image' has dtype <U"),
        (images((4, 4), np.float32) * 1j, LABEL, "'image' has dtype complex"),
        (np.full((34, 4, 4), np.nan, np.float16), LABEL, "'image' holds 544 non-finite pixels"),
        (np.zeros((34, 4, 4), [("a", "u1")]), LABEL, "'image' has dtype"),
    ],
)
def test_arrays_that_are_no_data_set(tmp_path: Path, image: Any, label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"own\.npz': {message}"):
        load_dataset(written(tmp_path, image=image, label=label))


# More than images and labels.


def test_given_parts_names_and_range(tmp_path: Path, parts_of: PartsOf) -> None:
    image = images((4, 4), np.uint8) // 16
    dataset = load_dataset(
        written(
            tmp_path,
            image=image,
            label=LABEL,
            test_image=image[:5],
            test_label=LABEL[:5],
            validation_image=image[3:6],
            validation_label=LABEL[3:6],
            class_names=np.array(["cat", "dog", "elk"]),
            value_range=np.array([0, 15]),
        )
    )
    assert [len(part.label) for part in parts_of(dataset)] == [34, 3, 5]
    assert (dataset.class_names, dataset.value_range, dataset.num_levels) == (
        ("cat", "dog", "elk"),
        (0, 15),
        16,
    )
    again = load_dataset(f"npz:{tmp_path / 'own.npz'}?value_range=0,255")
    assert (again.value_range, again.name) == ((0, 255), f"npz:{tmp_path / 'own.npz'}?value_range=0,255")
    with_test = load_dataset(
        written(tmp_path, image=image, label=LABEL, test_image=image[:5], test_label=LABEL[:5])
    )
    assert [len(part.label) for part in parts_of(with_test)] == [30, 4, 5]


def test_labels_may_be_missing_or_names(tmp_path: Path, parts_of: PartsOf) -> None:
    image = images((4, 4), np.uint8)
    assert load_dataset(written(tmp_path, image=image)).num_classes == 1
    named = np.array(["ant", "bee", ""])[np.arange(34) % 3]
    dataset = load_dataset(written(tmp_path, image=image, label=named))
    assert dataset.class_names == ("ant", "bee")
    assert dataset.unlabelled is not None
    assert len(dataset.unlabelled) == 11
    assert sum(len(part.label) for part in parts_of(dataset)) == 23


def test_arrays_by_other_names_are_not_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = images((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"no array 'label' \(it holds image, labels\).*leave 'labels' out"):
        load_dataset(written(tmp_path, image=image, labels=LABEL))
    with pytest.raises(ValueError, match="'test_label' is there without 'test_image'"):
        load_dataset(written(tmp_path, image=image, label=LABEL, test_label=LABEL))
    with pytest.raises(ValueError, match="'test_label' is missing, but there is 'label'"):
        load_dataset(written(tmp_path, image=image, label=LABEL, test_image=image))
    with pytest.raises(ValueError, match=r"'class_names' has shape \(3,\) and dtype int64"):
        load_dataset(written(tmp_path, image=image, label=LABEL, class_names=np.arange(3)))
    with pytest.raises(ValueError, match=r"own\.npz': class_names has 2 entries: 3 are needed"):
        load_dataset(written(tmp_path, image=image, label=LABEL, class_names=np.array(["a", "b"])))
    with pytest.raises(ValueError, match=r"own\.npz': value_range=\(0, 1, 2\): two finite numbers"):
        load_dataset(written(tmp_path, image=image, label=LABEL, value_range=np.arange(3)))
    assert caplog.text == ""
    load_dataset(written(tmp_path, image=image, label=LABEL, test_images=image))
    assert "['test_images'] are not read; the names are image, label, " in caplog.text
