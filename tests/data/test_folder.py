"""A folder of image files: every kind that pillow writes, one size, given parts, and faults named."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxebm.data import Dataset, DatasetNotAvailableError, load_dataset, load_folder

pillow: Any = pytest.importorskip("PIL.Image")


def write(
    folder: Path, count: int, shape: tuple[int, ...] = (6, 5), *, end: str = "png", seed: int = 0
) -> None:
    """Writes random images of a shape into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng([seed, index]).integers(0, 256, shape, np.uint8)
        pillow.fromarray(pixels).save(folder / f"{seed}-{index:02}.{end}")


def sizes_of(dataset: Dataset) -> list[int]:
    return [len(part.label) for part in (dataset.train, dataset.validation, dataset.test)]


def test_one_folder_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "dog", 20, seed=1)
    write(tmp_path / "cat", 10, seed=2)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    (tmp_path / ".cache").mkdir()
    dataset = load_dataset(f"folder:{tmp_path}")
    assert repr(dataset) == (
        f"Dataset('folder:{tmp_path}', image_shape=(6, 5, 1), num_classes=2, train=21, validation=3, test=6)"
    )
    assert (dataset.class_names, dataset.value_range, dataset.num_levels) == (("cat", "dog"), (0, 255), 256)
    files = {
        np.asarray(pillow.open(file)).tobytes(): file.parent.name
        for file in sorted(tmp_path.glob("*/[12]*.png"))
    }
    for part in (dataset.train, dataset.validation, dataset.test):
        for image, label in zip(*part, strict=True):
            assert files.pop(image.tobytes()) == dataset.class_names[label]
    assert not files
    assert caplog.text == ""


def test_parts_that_are_given(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for index, name in enumerate(("cat", "dog")):
            write(tmp_path / part / name, count, seed=count * 10 + index)
    assert sizes_of(load_folder(tmp_path)) == [8, 4, 6]
    (tmp_path / "val").rename(tmp_path / "Validation")
    assert sizes_of(load_folder(tmp_path)) == [8, 4, 6]
    (tmp_path / "Validation").rename(tmp_path / ".away")
    assert sizes_of(load_folder(tmp_path)) == [6, 2, 6]
    # A class may have the name of a part.
    write(tmp_path / "vehicles" / "train", 5, seed=1)
    write(tmp_path / "vehicles" / "car", 5, seed=2)
    assert load_folder(tmp_path / "vehicles").class_names == ("car", "train")


def test_images_in_no_folders_of_classes_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path, 20)
    assert (load_folder(tmp_path).num_classes, sizes_of(load_folder(tmp_path))) == (1, [14, 2, 4])
    write(tmp_path / "parts" / "train", 7)
    write(tmp_path / "parts" / "test", 4)
    assert sizes_of(load_folder(tmp_path / "parts")) == [6, 1, 4]


def test_images_of_several_sizes_come_in_one_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a", 5, (12, 16, 3), seed=1)
    write(tmp_path / "a" / "more", 2, (24, 32, 3), end="jpg", seed=2)
    write(tmp_path / "b", 4, (40, 30), end="BMP", seed=3)
    dataset = load_folder(tmp_path)
    assert (dataset.image_shape, dataset.train.image.dtype) == ((12, 16, 3), np.uint8)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"'{tmp_path}': 6 of 11 images are resized to 12 x 16 pixels, the commonest size, at most 32 a side. "
        f"Another size: folder:{tmp_path}?size=64."
    )
    caplog.clear()
    for name, expected in (("size=8", (8, 8, 3)), ("size=64x48&channels=1", (64, 48, 1))):
        chosen = load_dataset(f"folder:{tmp_path}?{name}")
        assert (chosen.name, chosen.image_shape) == (f"folder:{tmp_path}?{name}", expected)
    same = load_folder(tmp_path, size=(64, 48), channels=1)
    assert same.name == f"folder:{tmp_path}?size=64x48&channels=1"
    np.testing.assert_array_equal(same.train.image, load_dataset(same.name).train.image)
    assert caplog.text == ""


def test_large_images_come_at_32_pixels_a_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a", 4, (64, 48, 3))
    assert load_folder(tmp_path).image_shape == (32, 24, 3)
    assert "4 of 4 images are resized to 32 x 24 pixels" in caplog.text


def stored(tmp_path: Path, image: Any, end: str = "png", **options: Any) -> np.ndarray:
    """The image that is read where three times this one is stored, with a little of another."""
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "a"
    folder.mkdir(parents=True)
    for index in range(3):
        image.save(folder / f"{index}.{end}", **options)
    dataset = load_folder(folder.parent, value_range=(0, 65535))
    return dataset.train.image[0]


GREY = np.random.default_rng(0).integers(0, 256, (6, 5), np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def test_kinds_of_images(tmp_path: Path) -> None:
    mask = GREY > 127
    np.testing.assert_array_equal(stored(tmp_path, pillow.fromarray(mask))[..., 0], mask * 255)
    np.testing.assert_array_equal(
        stored(tmp_path, pillow.fromarray(COLOUR), end="webp", lossless=True), COLOUR
    )
    np.testing.assert_array_equal(stored(tmp_path, pillow.fromarray(COLOUR), end="tiff"), COLOUR)
    palette = pillow.fromarray(COLOUR).quantize(30)
    np.testing.assert_array_equal(stored(tmp_path, palette), np.asarray(palette.convert("RGB")))
    cmyk = pillow.fromarray(COLOUR).convert("CMYK")
    read = stored(tmp_path, cmyk, end="jpg", quality=100)
    assert read.shape == (6, 5, 3)
    # Opacity blends with black, in grey, too.
    opacity = np.where(mask, 255, 0).astype(np.uint8)
    image = pillow.fromarray(np.dstack([COLOUR, opacity]))
    np.testing.assert_array_equal(stored(tmp_path, image), COLOUR * mask[..., None])
    image = pillow.merge("LA", [pillow.fromarray(GREY), pillow.fromarray(opacity)])
    np.testing.assert_allclose(stored(tmp_path, image)[..., 0], GREY * mask, atol=1)
    deep = (GREY.astype(np.uint16) << 8) + 7
    np.testing.assert_array_equal(stored(tmp_path, pillow.fromarray(deep))[..., 0], deep)


def test_photographs_stand_upright(tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image = stored(tmp_path, pillow.fromarray(COLOUR), exif=exif)
    np.testing.assert_array_equal(image, np.rot90(COLOUR, -1))


def test_masks_and_deep_images_have_their_own_range(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    for name, image in (("mask", random.integers(0, 2, (9, 4, 4), np.uint8)), ("deep", None)):
        (tmp_path / name / "a").mkdir(parents=True)
        for index in range(9):
            pixels = random.integers(0, 4096, (4, 4)).astype(np.uint16) if image is None else image[index]
            pillow.fromarray(pixels).save(tmp_path / name / "a" / f"{index}.png")
    masks = load_folder(tmp_path / "mask")
    assert (masks.value_range, masks.num_levels) == ((0, 1), 2)
    assert "read as 0 to 1" in caplog.text
    assert load_dataset(f"folder:{tmp_path / 'mask'}?value_range=0,255").num_levels == 256
    deep = load_folder(tmp_path / "deep", value_range=(0, 4095))
    assert (deep.value_range, deep.num_levels, deep.name[-19:]) == ((0, 4095), 4096, "?value_range=0,4095")


def test_faults_are_named(tmp_path: Path) -> None:
    def fault(
        message: str, error: type[Exception] = ValueError, folder: Path = tmp_path, **options: Any
    ) -> None:
        with pytest.raises(error, match=message) as caught:
            load_folder(folder, **options)
        assert "\n" not in str(caught.value)

    fault("absent' does not exist. Give folder:", FileNotFoundError, tmp_path / "absent")
    fault(r"holds no images \(.bmp, .*Give a folder of images, one folder a class")
    write(tmp_path / "a", 3)
    (tmp_path / "b").mkdir()
    fault("b' holds no images .*Put the images of its class into it, or remove it")
    write(tmp_path / "b", 2)
    fault("has only 2 of class b. Give each class 3 images or more: train, validation and test need one each")
    write(tmp_path, 1)
    fault("holds images beside folders .*'0-00.png'.*Put each image into the folder of its class")
    fault("is no folder", folder=tmp_path / "0-00.png")
    (tmp_path / "0-00.png").unlink()
    (tmp_path / "b" / "2.png").write_text("not an image")
    fault(r"b/2\.png' cannot be read as an image .*Replace it, or remove it")
    whole = (tmp_path / "a" / "0-00.png").read_bytes()
    (tmp_path / "b" / "2.png").write_bytes(whole[: len(whole) // 2])
    fault(r"b/2\.png' cannot be read as an image")
    pillow.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "b" / "2.tiff")
    (tmp_path / "b" / "2.png").unlink()
    fault("floating-point pixels, not 8 or 16 bits")
    (tmp_path / "b" / "2.tiff").unlink()
    pillow.fromarray(np.ones((3, 3), np.uint16)).save(tmp_path / "b" / "2.png")
    fault("holds images of 8 bits and of 16 .*2.png.*Store all alike")
    for options, message in (
        ({"size": 0}, "size=0"),
        ({"size": (1, 2, 3)}, r"size=\(1, 2, 3\): size must be \(H, W\)"),
        ({"channels": 2}, "channels=2: channels must be 1, 3 or None"),
        ({"value_range": (1, 0)}, r"value_range=\(1, 0\)"),
    ):
        fault(message, **options)


def test_faults_of_parts_are_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part / "a", 4)
    write(tmp_path / "extra" / "a", 4)
    with pytest.raises(
        ValueError, match=r"holds 'extra' beside .*Leave nothing but train, validation and test"
    ):
        load_folder(tmp_path)
    (tmp_path / "extra").rename(tmp_path / "test" / "b")
    with pytest.raises(ValueError, match="'test_label' has the class 'b', which 'label' does not have"):
        load_folder(tmp_path)
    for name in ("val", "validation"):
        write(tmp_path / name / "a", 4)
    with pytest.raises(ValueError, match="holds two folders of one part"):
        load_folder(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path: Path, hide_package: Callable[[str], None]) -> None:
    write(tmp_path / "a", 3)
    hide_package("PIL")
    with pytest.raises(DatasetNotAvailableError, match=r"needs pillow.*pip install 'jaxebm\[experiments\]'"):
        load_folder(tmp_path)


def test_progress_of_many_images_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("jaxebm.data.folder._CHUNK", 3)
    write(tmp_path / "a", 7)
    with caplog.at_level(logging.INFO):
        load_folder(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a'}: read {count} of 7 images" for count in (3, 6)
    ]
