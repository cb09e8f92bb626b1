"""Labelled images of a user from a folder of image files, read with pillow."""

import contextlib
import logging
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxebm import checks
from jaxebm.data.arrays import dataset_from_arrays
from jaxebm.data.images import Dataset, check_value_range
from jaxebm.data.resizing import default_size, resized_integers
from jaxebm.data.tfds_images import DatasetNotAvailableError

__all__ = ["IMAGE_FILES", "checked_size", "load_folder", "note_resizing"]

logger = logging.getLogger(__name__)

IMAGE_FILES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The ends of names of image files, in lower or upper case; other files are left alone."""

_PARTS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
_GREY = re.compile(r"1|L|LA|La|I|I;16.*")  # pillow's names of modes without colour
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_ORIENTATION = 0x0112
_CHUNK = 10_000  # images between two lines of progress


class _Header(NamedTuple):
    """What the beginning of an image file says."""

    size: tuple[int, int]
    is_grey: bool
    is_deep: bool


class _Part(NamedTuple):
    """The image files of a part, and the class of each; no class where they lie in no folders of classes."""

    files: list[Path]
    classes: list[str] | None


def load_folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> Dataset:
    """Loads a folder of image files, one folder a class, as a data set of images of one size.

    The files are ``PATH/<class>/...``, split 70, 10 and 20 percent of each class, or, with given splits,
    ``PATH/train/<class>/...``, ``PATH/validation/<class>/...`` (or ``val``) and ``PATH/test/<class>/...``;
    a part that is not there is taken from ``train``. Without folders of classes, images have no labels.
    Files in folders within that of a class count, too; hidden files, and those that are no images by their
    name, do not.

    Images of another size are cropped in their middle to the proportions of (H, W) and resized
    (`to_image_shape`). One logged line says how many, where the size was not chosen.

    Args:
      path: The folder.
      size: (H, W) in pixels, or one number for both; None takes the commonest size, at most 32 a side.
      channels: 1 for grey images, 3 for colour; None takes 3 if some image has colours.
      value_range: Lowest and highest raw pixel value; None means (0, 255), or the range of masks and other
        images with few values: see `dataset_from_arrays`.

    Returns:
      The data set; its classes are the names of the folders in the order of the alphabet. Its name is the one
      for `load_dataset`, ``folder:PATH`` with the options.

    Raises:
      DatasetNotAvailableError: If pillow is missing; the message is one line.
      FileNotFoundError: If there is no such folder.
      ValueError: If the folder holds no images, one cannot be read, or an argument is not as described.
      TypeError: If an argument is of another type.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> folder, random = Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> for name in ("cat", "dog"):
      ...     (folder / name).mkdir()
      ...     for index in range(10):
      ...         image = Image.fromarray(random.integers(0, 256, (20 + index, 24, 3), np.uint8))
      ...         image.save(folder / name / f"{index}.png")
      >>> dataset = load_folder(folder, size=16)
      >>> dataset.image_shape, dataset.class_names, len(dataset.train.image)
      ((16, 16, 3), ('cat', 'dog'), 14)
    """
    checks.instance("path", path, (str, Path))
    folder = Path(path).expanduser()
    wanted = checked_size(size, channels)
    value_range = None if value_range is None else check_value_range(value_range)
    if not folder.exists():
        raise FileNotFoundError(f"'{folder}' does not exist. Give folder: the path of a folder of images.")
    if not folder.is_dir():
        _fail(folder, "is no folder", "Give folder: the path of a folder of images")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DatasetNotAvailableError(
            f"data set 'folder:{folder}' needs pillow, which is missing: pip install 'jaxebm[experiments]'."
        ) from error
    parts = _parts(folder)
    headers = {file: _header(file) for part in parts.values() for file in part.files}
    if len({header.is_deep for header in headers.values()}) > 1:
        deep = next(file for file, header in headers.items() if header.is_deep)
        _fail(folder, f"holds images of 8 bits and of 16 ('{deep.relative_to(folder)}')", "Store all alike")
    if wanted is None:
        wanted = default_size(header.size for header in headers.values())
        sizes = [header.size for header in headers.values()]
        note_resizing(f"'{folder}'", sizes, wanted, f"folder:{path}")
    given_channels = channels
    if channels is None:
        channels = 1 if all(header.is_grey for header in headers.values()) else 3
    arrays = {name: _read_all(part.files, (*wanted, channels)) for name, part in parts.items()}
    given: dict[str, Any] = {
        name: (arrays[name], part.classes) for name, part in parts.items() if name != "train"
    }
    name = f"folder:{path}{_query(size=size and wanted, channels=given_channels, value_range=value_range)}"
    try:
        return dataset_from_arrays(
            arrays["train"], parts["train"].classes, name=name, value_range=value_range, **given
        )
    except ValueError as error:
        raise ValueError(f"'{folder}': {error}") from error


def checked_size(size: Any, channels: Any) -> tuple[int, int] | None:
    """Returns (H, W), None where it was not chosen, or raises if an argument is not as in `load_folder`."""
    if channels is not None and (isinstance(channels, bool) or channels not in (1, 3)):
        raise ValueError(f"channels={channels!r}: channels must be 1, 3 or None.")
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size={size!r}: size must be (H, W), or one number for both.")
    for side in sides:
        checks.positive_integer("size", side)
    return int(sides[0]), int(sides[1])


def note_resizing(where: str, sizes: Iterable[tuple[int, int]], size: tuple[int, int], name: str) -> None:
    """Logs one line where images have another size than one that the user did not choose.

    Args:
      where: What they are images of.
      sizes: (h, w) of each image.
      size: (H, W) of the data set.
      name: For `load_dataset`, to show how another size is chosen.
    """
    sizes = list(sizes)
    count = sum(tuple(one) != size for one in sizes)
    if count:
        logger.warning(
            "%s: %d of %d images are resized to %d x %d pixels, the commonest size, at most 32 a side. "
            "Another size: %s?size=64.",
            where, count, len(sizes), *size, name,
        )  # fmt: skip


def _query(**options: Any) -> str:
    """Returns the options that are not None as at the end of a name: ``?size=28x32&channels=1``."""
    form = {"size": "x".join, "value_range": ",".join}
    shown = [
        f"{key}={form[key](f'{part:g}' for part in value) if key in form else value}"
        for key, value in options.items()
        if value is not None
    ]
    return f"?{'&'.join(shown)}" if shown else ""


def _parts(folder: Path) -> dict[str, _Part]:
    """Returns the files of train, and of each other part that has a folder of its own."""
    names = {sub.name: _PARTS.get(sub.name.lower()) for sub in _folders(folder)}
    found = [part for part in names.values() if part]
    if "train" not in found or (len(found) == 1 < len(names)):  # a class may be named train
        return {"train": _part(folder)}
    others = [name for name, part in names.items() if not part]
    if others:
        _fail(
            folder,
            f"holds '{others[0]}' beside {' and '.join(found)}",
            "Leave nothing but train, validation and test",
        )
    if len(set(found)) < len(found):
        _fail(folder, f"holds two folders of one part ({', '.join(names)})", "Leave one of each")
    return {part: _part(folder / name) for name, part in names.items() if part}


def _part(folder: Path) -> _Part:
    classes = _folders(folder)
    loose = [file for file in sorted(folder.iterdir()) if _is_image(file)]
    if not classes:
        if not loose:
            _fail(
                folder,
                f"holds no images ({', '.join(IMAGE_FILES)})",
                "Give a folder of images, one folder a class",
            )
        return _Part(loose, None)
    if loose:
        _fail(
            folder,
            f"holds images beside folders ('{loose[0].name}')",
            "Put each image into the folder of its class",
        )
    files, labels = [], []
    for sub in classes:
        inside = [file for file in sorted(sub.rglob("*")) if _is_image(file)]
        if not inside:
            _fail(
                sub,
                f"holds no images ({', '.join(IMAGE_FILES)})",
                "Put the images of its class into it, or remove it",
            )
        files += inside
        labels += [sub.name] * len(inside)
    return _Part(files, labels)


def _folders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith((".", "__")))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_FILES and not file.name.startswith(".") and file.is_file()


def _header(file: Path) -> _Header:
    """Reads the size and the kind of an image, and none of its pixels."""
    with _reading(file):
        from PIL import Image

        with Image.open(file) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
                height, width = width, height
            return _Header((height, width), bool(_GREY.fullmatch(image.mode)), image.mode.startswith("I"))


def _read_all(files: list[Path], image_shape: tuple[int, int, int]) -> np.ndarray:
    images = None
    for index, file in enumerate(files):
        image = resized_integers(_read(file), image_shape)
        if images is None:
            images = np.empty((len(files), *image_shape), image.dtype)
        images[index] = image
        if (index + 1) % _CHUNK == 0:
            logger.info("%s: read %d of %d images", file.parent, index + 1, len(files))
    assert images is not None  # a part has an image
    return images


def _read(file: Path) -> np.ndarray:
    """Returns an image as it is to be seen, (h, w, c) uint8 or uint16."""
    with _reading(file):
        from PIL import Image, ImageOps

        with Image.open(file) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):
                deep = np.asarray(image)
                if deep.min() < 0 or deep.max() > np.iinfo(np.uint16).max:
                    raise ValueError(f"pixels of {deep.min()} to {deep.max()}, not 8 or 16 bits")
                return deep.astype(np.uint16)[..., None]
            if image.mode == "F":
                raise ValueError("floating-point pixels, not 8 or 16 bits")
            if image.mode in ("1", "L"):
                return np.asarray(image.convert("L"))[..., None]
            has_opacity = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
            return np.asarray(image.convert("RGBA" if has_opacity else "RGB"))


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what pillow raises of a file that it cannot read into one line."""
    from PIL import Image

    try:
        yield
    # Its readers raise SyntaxError of a PNG file that is damaged, and struct.error of others.
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"'{file}' cannot be read as an image ({reason}). Replace it, or remove it."
        ) from error


def _fail(path: Path, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"'{path}' {what}. {remedy}.")
