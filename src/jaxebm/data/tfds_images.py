"""Image data sets of tensorflow-datasets as numpy arrays, decoded once and cached.

A prepared set is read through ``tfds.data_source``, which needs no TensorFlow and no network. Decoding tens
of thousands of PNG files takes seconds, reading the arrays back takes a fraction of a second, so every
decoded split is cached as one ``.npz`` file.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxebm.data.npz import check_header

__all__ = [
    "SET_NAME",
    "TFDS_NUM_CLASSES",
    "DatasetNotAvailableError",
    "PreparedSet",
    "TfdsArrays",
    "cache_folder",
    "class_names",
    "find_tfds_set",
    "read_cache",
    "read_first_images",
    "read_records",
    "read_tfds_arrays",
    "write_cache",
]

logger = logging.getLogger(__name__)

TFDS_NUM_CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "svhn_cropped": 10}
"""The sets that can be read as training data, with their numbers of classes."""

SET_NAME = re.compile(r"\w+(/[\w.-]+)?")
"""The name of a set of tensorflow-datasets, with its configuration where it has some."""

_CHUNK = 10_000  # records decoded between two lines of progress
_CHUNK_OF_ANY_SIZE = 100  # records decoded at once where an image may be large
_CALLER_OF_LOAD_DATASET = 6  # frames up from a warning about the cache
_HARMLESS = ("was created with group size", "OpenCV is not installed", "has no dataset_info.json")


class DatasetNotAvailableError(RuntimeError):
    """Raised when a known data set is not available; the message is one line with advice."""


class PreparedSet(NamedTuple):
    """A set that is prepared on disk.

    Attributes:
      name: Its name in tensorflow-datasets, with its configuration: ``mnist``, ``emnist/letters``.
      version_dir: The folder of its newest version.
      splits: The names of its splits, in the order of its own metadata.
      stem: Name, version and a digest of its files: the prefix of the names of cache files.
    """

    name: str
    version_dir: Path
    splits: tuple[str, ...]
    stem: str


class TfdsArrays(NamedTuple):
    """The two splits of a set as stored: images uint8 (n, H, W, C), labels int32 (n,)."""

    train_image: np.ndarray
    train_label: np.ndarray
    test_image: np.ndarray
    test_label: np.ndarray
    class_names: tuple[str, ...]


def read_tfds_arrays(
    name: str,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
) -> TfdsArrays:
    """Reads the train and test split of one tensorflow-datasets image set completely.

    Args:
      name: A key of ``TFDS_NUM_CLASSES``.
      data_dir: Folder of prepared sets; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      cache_dir: Folder of decoded arrays; default ``$JAXEBM_CACHE_DIR``, else ``~/.cache/jaxebm``.
      download: Whether to try a download if the set is not prepared. False makes no network attempt.

    Returns:
      Images (n, H, W, C) uint8 and labels (n,) int32 of both splits, and the classes' names.

    Raises:
      DatasetNotAvailableError: If the set is neither prepared nor downloadable, or cannot be read.
    """
    prepared = find_tfds_set(name, data_dir=data_dir, download=download)
    version_dir, stem = prepared.version_dir, prepared.stem
    cache = cache_folder(cache_dir)
    train_image, train_label = _read_split(version_dir, "train", cache / f"{stem}-train.npz")
    test_image, test_label = _read_split(version_dir, "test", cache / f"{stem}-test.npz")
    names = class_names(version_dir, name)
    if len(names) != TFDS_NUM_CLASSES[name]:
        names = tuple(str(index) for index in range(TFDS_NUM_CLASSES[name]))
    return TfdsArrays(train_image, train_label, test_image, test_label, names)


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Returns the folder of decoded arrays: the argument, ``$JAXEBM_CACHE_DIR`` or ``~/.cache/jaxebm``."""
    return Path(cache_dir or os.environ.get("JAXEBM_CACHE_DIR") or "~/.cache/jaxebm").expanduser()


def find_tfds_set(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    instead: str = "load digits instead",
) -> PreparedSet:
    """Finds the newest prepared version of a set, after a download if needed.

    Args:
      name: Any set of tensorflow-datasets, not only those of ``TFDS_NUM_CLASSES``.
      data_dir: Folder of prepared sets; default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      download: Whether to try a download if the set is not prepared. False makes no network attempt.
      instead: Advice in the error message if the set is not available.

    Returns:
      The set.

    Raises:
      DatasetNotAvailableError: If the set is neither prepared nor downloadable, or is prepared in a form that
        only TensorFlow reads.
    """
    origin = "data_dir" if data_dir is not None else "TFDS_DATA_DIR"
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    version_dir = _find_prepared(folder, name)
    if version_dir is None:
        reason = _try_download(folder, name) if download else "download=False"
        version_dir = _find_prepared(folder, name)
        if version_dir is None:
            raise DatasetNotAvailableError(
                f"data set '{name}' is neither prepared in {folder} ({origin}) nor downloadable ({reason}). "
                f"Set TFDS_DATA_DIR to a folder that holds {name}/, or {instead}."
            )
    splits = tuple(split["name"] for split in _metadata(name, version_dir, instead).get("splits", ()))
    stem = f"{name.replace('/', '-')}-{version_dir.name}-{_fingerprint(version_dir)}"
    return PreparedSet(name, version_dir, splits, stem)


def _find_prepared(folder: Path, name: str) -> Path | None:
    """Returns the newest ``folder/name/x.y.z`` that holds a complete set, or None."""

    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in path.name.split("."))

    # tfds writes dataset_info.json last, so a broken preparation has none.
    found = [info.parent for info in folder.glob(f"{name}/*.*.*/dataset_info.json")]
    numbered = [path for path in found if all(part.isdecimal() for part in path.name.split("."))]
    return max(numbered, key=version, default=None)


def _metadata(name: str, version_dir: Path, instead: str) -> dict[str, Any]:
    """Returns what ``dataset_info.json`` says, of which each split has a name; any fault becomes one line."""
    try:
        metadata = json.loads((version_dir / "dataset_info.json").read_text())
        for split in metadata.get("splits", ()):
            str.strip(split["name"])
        str.strip(metadata.get("fileFormat", ""))
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise DatasetNotAvailableError(
            f"data set '{name}' is prepared in {version_dir}, but its dataset_info.json cannot be read "
            f"({_in_one_line(error)}). Prepare or copy it again, or {instead}."
        ) from error
    return metadata


def _tensorflow_is_installed() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _try_download(folder: Path, name: str) -> str:
    """Downloads and prepares a set; returns the reason if that failed, else an empty string."""
    # Checked first, because tfds checks it only after it has downloaded everything, or retried for minutes.
    if not _tensorflow_is_installed():
        return "preparing it needs TensorFlow, which is not installed"
    logger.warning("'%s' is not in %s: downloading (without a network, failing takes minutes)", name, folder)
    try:
        import tensorflow_datasets as tfds

        with _without_harmless_lines():
            tfds.data_source(name, split="train", data_dir=folder, download=True)
    except (
        Exception
    ) as error:  # tfds, TensorFlow and the network raise many types; the caller reports one line
        logger.debug("preparing '%s' failed", name, exc_info=True)
        return _in_one_line(error)
    return ""


def _read_split(version_dir: Path, split: str, cache_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns (image, label) of one split from the cache, or decoded and then cached."""
    name = version_dir.parent.name
    cached = read_cache(cache_file, ("image", "label"), stacklevel=_CALLER_OF_LOAD_DATASET)
    if cached is not None:
        fault = _fault_of_split(name, *cached)
        if not fault:
            return cached[0], cached[1]
        _warn_of_cache(cache_file, fault, stacklevel=_CALLER_OF_LOAD_DATASET - 1)
    with _decoding(name, version_dir, split, "load digits instead"):
        image, label = _decode(version_dir, split)
        if fault := _fault_of_split(name, image, label):
            raise ValueError(fault)
    write_cache(cache_file, {"image": image, "label": label}, stacklevel=_CALLER_OF_LOAD_DATASET)
    return image, label


def _fault_of_split(name: str, image: np.ndarray, label: np.ndarray) -> str:
    """Returns what is wrong with the images and labels of a split, or an empty string."""
    if image.ndim != 4 or image.dtype != np.uint8 or image.size == 0:
        return f"its images have shape {image.shape} and dtype {image.dtype}, not (n, H, W, C) uint8"
    if label.shape != image.shape[:1] or not np.issubdtype(label.dtype, np.integer):
        return f"its labels have shape {label.shape} and dtype {label.dtype} for {len(image)} images"
    if label.min() < 0 or label.max() >= TFDS_NUM_CLASSES[name]:
        return f"its labels span {label.min()}..{label.max()}, not 0..{TFDS_NUM_CLASSES[name] - 1}"
    return ""


def read_first_images(prepared: PreparedSet, split: str, limit: int, *, instead: str) -> Iterator[np.ndarray]:
    """Decodes the first images of one split, which may differ in size, one by one.

    Args:
      prepared: The set.
      split: One of its splits.
      limit: Greatest number of images.
      instead: Advice in the error message if they cannot be read.

    Yields:
      Images as stored, each (H, W, C).

    Raises:
      DatasetNotAvailableError: If the split cannot be read, or its records hold no ``image``.
    """
    for record in read_records(prepared, split, limit, instead=instead):
        yield np.asarray(record["image"])


def read_records(
    prepared: PreparedSet, split: str, limit: int | None = None, *, instead: str
) -> Iterator[dict[str, Any]]:
    """Decodes the first records of one split, or all, one by one.

    Args:
      prepared: The set.
      split: One of its splits.
      limit: Greatest number of records; None reads all.
      instead: Advice in the error message if they cannot be read.

    Yields:
      Records as stored, each with an ``image``.

    Raises:
      DatasetNotAvailableError: If the split cannot be read, or its records hold no ``image``.
    """
    name, version_dir = prepared.name, prepared.version_dir
    source: Any = None
    start, count = 0, 1
    while start < count:
        with _decoding(name, version_dir, split, instead), _without_harmless_lines():
            if source is None:
                import tensorflow_datasets as tfds

                # From its folder, because a set prepared by a custom program has no other name.
                builder: Any = tfds.builder_from_directory(version_dir)
                source = builder.as_data_source(split=split)
                count = len(source) if limit is None else min(limit, len(source))
            stop = min(start + _CHUNK_OF_ANY_SIZE, count)
            records = source.__getitems__(list(range(start, stop)))
        if records and "image" not in records[0]:
            raise DatasetNotAvailableError(
                f"data set '{name}' has no feature 'image' (it has {', '.join(sorted(records[0]))}): name a "
                f"set of single images, or {instead}."
            )
        yield from records
        if limit is None and stop // _CHUNK > start // _CHUNK:
            logger.info("%s %s: decoded %d of %d images", name, split, stop, count)
        start = stop


@contextlib.contextmanager
def _decoding(name: str, version_dir: Path, split: str, instead: str) -> Iterator[None]:
    """Turns any error of the decoding of a prepared set into one line."""
    stored_as = _metadata(name, version_dir, instead).get("fileFormat", "tfrecord")
    if stored_as == "tfrecord":
        raise DatasetNotAvailableError(
            f"data set '{name}' is stored as tfrecord in {version_dir}, which only TensorFlow reads. "
            f"Set TFDS_DATA_DIR to a folder that holds {name}/ as array_record, or {instead}."
        )
    try:
        yield
    except (
        ImportError
    ) as error:  # tfds imports array_record, importlib_resources and pillow when it needs them
        raise DatasetNotAvailableError(
            f"data set '{name}' needs packages that are not installed ({_in_one_line(error)}): "
            f"pip install 'jaxebm[experiments]'."
        ) from error
    except Exception as error:  # array_record and the PNG decoder raise many types on damaged files
        raise DatasetNotAvailableError(
            f"data set '{name}' is prepared in {version_dir}, but its split '{split}' cannot be read "
            f"({_in_one_line(error)}). Prepare or copy it again, or {instead}."
        ) from error


def _decode(version_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes every record of one split of a prepared set."""
    import tensorflow_datasets as tfds

    name, version = version_dir.parent.name, version_dir.name
    with _without_harmless_lines():
        # For a single split this is a sequence with __getitems__, which the annotation of tfds leaves out.
        source: Any = tfds.data_source(
            f"{name}:{version}", split=split, data_dir=version_dir.parent.parent, download=False
        )
        count = len(source)
        images, labels = [], []
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            records = source.__getitems__(list(range(start, stop)))
            images.append(np.stack([record["image"] for record in records]))
            labels.append(np.asarray([record["label"] for record in records], np.int32))
            logger.info("%s %s: decoded %d of %d images", name, split, stop, count)
    return np.concatenate(images), np.concatenate(labels)


def read_cache(cache_file: Path, names: tuple[str, ...], *, stacklevel: int) -> tuple[np.ndarray, ...] | None:
    """Returns the arrays of those names from a cache file, or None if there is no readable file."""
    try:
        with np.load(cache_file, allow_pickle=False) as arrays:
            for name in names:
                check_header(cache_file, name)
            return tuple(arrays[name] for name in names)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (
        OSError,
        ValueError,
        EOFError,
        LookupError,
        RuntimeError,
        AttributeError,  # a .npy file, which has no members
        TypeError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        _warn_of_cache(cache_file, _in_one_line(error), stacklevel=stacklevel)
        return None


def _warn_of_cache(cache_file: Path, fault: str, *, stacklevel: int) -> None:
    warnings.warn(
        f"cache file {cache_file} cannot be read ({fault}); decoding again.",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def write_cache(cache_file: Path, arrays: dict[str, np.ndarray], *, stacklevel: int) -> None:
    """Writes through a temporary file, so that other processes see the whole file or none."""
    temporary = None
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache_file.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, cache_file)
    except OSError as error:
        warnings.warn(
            f"decoded images cannot be cached in {cache_file.parent} ({_in_one_line(error)}); continuing "
            f"without a cache. Set JAXEBM_CACHE_DIR to a writable folder.",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _fingerprint(version_dir: Path) -> str:
    """Returns a short digest of the metadata and of every file's name and size, equal for all copies."""
    digest = hashlib.sha256((version_dir / "dataset_info.json").read_bytes())
    for path in sorted(version_dir.iterdir()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]


def class_names(version_dir: Path, name: str) -> tuple[str, ...]:
    """Returns the names of the classes in a folder of a prepared set; none where it does not tell them.

    Raises:
      DatasetNotAvailableError: If their file cannot be read.
    """
    path = version_dir / "label.labels.txt"
    if not path.exists():
        return ()
    try:
        names = tuple(path.read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetNotAvailableError(
            f"data set '{name}' is prepared in {version_dir}, but its {path.name} cannot be read "
            f"({_in_one_line(error)}). Prepare or copy it again, or load digits instead."
        ) from error
    return names if len(names) == len(set(names)) and all(names) else ()


def _in_one_line(error: BaseException) -> str:
    """Returns the error's type and the beginning of its text, without line breaks."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."


@contextlib.contextmanager
def _without_harmless_lines() -> Iterator[None]:
    """Drops the log lines that every read of a good data set causes."""

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(harmless in message for harmless in _HARMLESS)

    absl_logger = logging.getLogger("absl")
    absl_logger.addFilter(keep)
    try:
        yield
    finally:
        absl_logger.removeFilter(keep)
