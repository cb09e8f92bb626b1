"""A user's own file: read as it is, and its faults named. What is in it is tested in `test_arrays.py`."""

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
        (GREY.astype(np.int32), LABEL, "'image' has dtype int32. Store uint8"),
        (GREY, LABEL + 1, "'label' .* none numbered 0"),
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
    with pytest.raises(ValueError, match=r"'image' is not a numpy array"):
        load_dataset(f"npz:{tmp_path / 'other.npz'}")
    written(tmp_path, image=GREY, label=LABEL)
    damaged = bytearray((tmp_path / "own.npz").read_bytes())
    damaged[300] ^= 0xFF  # a pixel: the archive's checksum no longer agrees
    (tmp_path / "own.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        load_dataset(f"npz:{tmp_path / 'own.npz'}")
