"""What a checkpoint says of itself: what it is of, and checksums that tell whether it is whole."""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "CheckpointCorruptError",
    "CheckpointMismatchError",
    "describe_versions",
    "fingerprint",
]

FORMAT = 1
PACKAGES = ("jaxebm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
UNCOMPARED = frozenset(
    {
        *("output", "resume", "resume_step", "overwrite", "progress"),
        *("devices", "distributed", "coordinator", "processes", "process_id"),
    }
)
"""Settings in which a resumed run may differ from the one that it resumes."""
OTHER = {"config": "another configuration", "data": "other data"}
MANIFEST = "manifest.json"

Pieces: TypeAlias = Mapping[str, list[tuple[tuple[slice, ...], np.ndarray]]]
"""By the array's name: which part of it a piece is, and its values."""


class CheckpointMismatchError(ValueError):
    """Raised when a checkpoint does not fit the run that wants to resume from it."""


class CheckpointCorruptError(ValueError):
    """Raised when a checkpoint is not what was written: cut short, altered, or with a file missing."""


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf is an array of typed PRNG keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bytes_of(array: np.ndarray) -> memoryview | bytes:
    contiguous = np.ascontiguousarray(array)
    # As bytes, because the buffer protocol knows no bfloat16; and an empty array has no bytes to be viewed.
    return contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""


def fingerprint(data: Any) -> str:
    """Returns a digest of a pytree of arrays: SHA-256 over paths, shapes, dtypes and bytes.

    Args:
      data: arrays, typed keys or numbers, all of them on this host (before they are spread over several).

    Returns:
      64 hexadecimal digits, equal for equal data on any machine of the same byte order.

    Raises:
      ValueError: if an array's values are not all on this host.
      TypeError: if a leaf is no array of numbers.

    Example:
      >>> fingerprint({"x": np.zeros(2)}) == fingerprint({"x": np.zeros(2)})
      True
      >>> fingerprint({"x": np.zeros(2)}) == fingerprint({"x": np.zeros((2, 1))})
      False
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        name = jax.tree_util.keystr(path)
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise ValueError(
                f"data{name} of shape {leaf.shape} is spread over several hosts: take the fingerprint of the "
                "host's own arrays, before they are placed."
            )
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        if array.dtype.hasobject:
            raise TypeError(f"data{name} is {type(leaf).__name__}: arrays of numbers are needed.")
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(_bytes_of(array))
    return digest.hexdigest()


def describe_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a run's numbers depend on.

    Returns:
      Versions by name.

    Example:
      >>> sorted(describe_versions())
      ['flax', 'jax', 'jaxebm', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint', 'python']
    """
    return dict(_versions())


@functools.cache  # read once, for each checkpoint has them
def _versions() -> tuple[tuple[str, str], ...]:
    return (("python", platform.python_version()), *((name, version(name)) for name in PACKAGES))


def differing_entries(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns ``name: saved ..., now ...`` for each setting in which two configurations differ."""
    return [
        f"{name}: saved {saved.get(name)!r}, now {now.get(name)!r}"
        for name in sorted((saved.keys() | now.keys()) - UNCOMPARED)
        if saved.get(name) != now.get(name)
    ]


def pieces_of(array: np.ndarray | jax.Array) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """Returns what this process vouches for: all of a host's array, or its own shards of a global one."""
    if isinstance(array, np.ndarray):
        whole = tuple(slice(0, length) for length in array.shape)
        return [(whole, array)] if jax.process_index() == 0 else []
    return [
        (shard.index, np.array(shard.data)) for shard in array.addressable_shards if shard.replica_id == 0
    ]


def describe_arrays(arrays: Mapping[str, np.ndarray | jax.Array]) -> dict[str, Any]:
    """Returns the shape and dtype of each array, by its name."""
    return {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}


def make_manifest(
    step: int, run: Mapping[str, Any], metrics: Mapping[str, float], arrays: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the manifest of a checkpoint, all but its checksums, as plain JSON values.

    Args:
      step: of the checkpoint.
      run: what it is of: ``config``, ``data`` and whatever else must be the same in a run that resumes it.
      metrics: of the state; a NaN or an infinity becomes text, for which JSON has no number.
      arrays: from `describe_arrays`.
    """
    devices = jax.devices()
    return {
        "format": FORMAT,
        "step": step,
        "run": dict(run),
        "versions": describe_versions(),
        "devices": f"{devices[0].device_kind} x{len(devices)}",
        "processes": jax.process_count(),
        "metrics": {
            name: float(value) if np.isfinite(value) else str(float(value)) for name, value in metrics.items()
        },
        "arrays": dict(arrays),
    }


def _index_text(index: Iterable[slice], shape: Iterable[int]) -> str:
    return ",".join(
        f"{part.start or 0}:{length if part.stop is None else part.stop}"
        for part, length in zip(index, shape, strict=True)
    )


def _sealed(content: Mapping[str, Any]) -> str:
    text = json.dumps(dict(content), sort_keys=True, allow_nan=False)
    return json.dumps(
        {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": json.loads(text)}, indent=1
    )


def _unsealed(path: Path) -> dict[str, Any]:
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        content = sealed["content"]
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
            raise CheckpointCorruptError(f"{path.name} was altered: its checksum is another")
    except FileNotFoundError:
        raise CheckpointCorruptError(f"{path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise CheckpointCorruptError(f"{path.name} is cut short or altered: it cannot be read") from None
    return content


def _part(process: int) -> str:
    return MANIFEST if process == 0 else f"manifest.{process}.json"


def write_manifest(folder: Path, content: Mapping[str, Any], pieces: Pieces) -> None:
    """Writes this process's part: the checksums of its pieces; and, as the first process, all the rest."""
    shapes = {name: entry["shape"] for name, entry in content["arrays"].items()}
    checksums = {
        name: {
            _index_text(index, shapes[name]): hashlib.sha256(_bytes_of(piece)).hexdigest()
            for index, piece in parts
        }
        for name, parts in pieces.items()
    }
    process = jax.process_index()
    body = {"checksums": checksums} | (dict(content) if process == 0 else {"step": content["step"]})
    with (folder / _part(process)).open("w", encoding="utf-8") as file:
        file.write(_sealed(body))
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Returns the manifest in an item's folder, with the checksums of all processes.

    Raises:
      CheckpointCorruptError: if it is missing, cut short, altered, or of another step.
      CheckpointMismatchError: if it is of another format.
    """
    content = _unsealed(folder / MANIFEST)
    if content.get("format") != FORMAT:
        raise CheckpointMismatchError(
            f"the checkpoint of step {step} has a manifest of format {content.get('format')}, and this "
            f"jaxebm reads format {FORMAT}: resume it with the version that wrote it."
        )
    parts = [content] + [_unsealed(folder / _part(process)) for process in range(1, content["processes"])]
    if any(part["step"] != step for part in parts):
        raise CheckpointCorruptError(f"it is of step {parts[0]['step']}, and was renamed")
    merged: dict[str, dict[str, str]] = {}
    for part in parts:
        for name, checksums in part["checksums"].items():
            merged.setdefault(name, {}).update(checksums)
    return content | {"checksums": merged}


def verify_arrays(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises `CheckpointCorruptError` naming the first array that is not what was saved, bit for bit.

    Args:
      manifest: from `read_manifest`.
      arrays: all of them, whole.
    """
    for name, entry in manifest["arrays"].items():
        array, covered = arrays[name], 0
        if list(array.shape) != entry["shape"] or str(array.dtype) != entry["dtype"]:
            raise CheckpointCorruptError(f"the array {name} has shape {array.shape} and dtype {array.dtype}")
        for text, checksum in manifest["checksums"].get(name, {}).items():
            bounds = [tuple(map(int, part.split(":"))) for part in text.split(",") if part]
            piece = array[tuple(slice(*bound) for bound in bounds)]
            covered += piece.size
            if hashlib.sha256(_bytes_of(piece)).hexdigest() != checksum:
                raise CheckpointCorruptError(f"the array {name} was altered: its checksum is another")
        if covered != array.size:
            raise CheckpointCorruptError(f"{covered} of the {array.size} entries of {name} have a checksum")


def check_same_run(where: str, manifest: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raises `CheckpointMismatchError` naming what a checkpoint and the run that resumes it differ in.

    Args:
      where: the checkpoint, as messages call it.
      manifest: from `read_manifest`.
      run: of the one that resumes; entries that it has not are not compared.
    """
    # As it would be read back: tuples become lists.
    now_run = json.loads(json.dumps(dict(run)))
    for name, now in now_run.items():
        saved = manifest["run"].get(name)
        if saved == now:
            continue
        if isinstance(saved, dict) and isinstance(now, dict):
            differing = differing_entries(saved, now)
            if not differing:
                continue
            found = "; ".join(differing)
        else:
            found = f"saved {saved!r}, now {now!r}"
        raise CheckpointMismatchError(
            f"{where} is of {OTHER.get(name, f'another {name}')} ({found}). Resume with what it was made "
            "with, or start elsewhere with another --output."
        )


def check_same_arrays(where: str, manifest: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises `CheckpointMismatchError` naming the first array of another shape, dtype or name.

    Args:
      where: the checkpoint, as messages call it.
      manifest: from `read_manifest`.
      wanted: from `describe_arrays`.
    """
    found = manifest["arrays"]
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differing:

        def text(arrays: Mapping[str, Any]) -> str:
            entry = arrays.get(differing[0])
            return str((tuple(entry["shape"]), entry["dtype"])) if entry else "nothing"

        raise CheckpointMismatchError(
            f"{where} is of another configuration: {len(differing)} arrays differ, the first is "
            f"{differing[0]}: saved {text(found)}, needed {text(wanted)}. Resume with the configuration in "
            "config.json, or start elsewhere with another --output."
        )
