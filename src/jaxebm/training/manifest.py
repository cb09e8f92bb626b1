"""The contents of a checkpoint: arrays by their paths, and a manifest that describes them.

The manifest has a checksum of every file, so that damage is found before the files are used.
"""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks

__all__ = [
    "CheckpointCorruptError",
    "CheckpointMismatchError",
    "describe_versions",
    "fingerprint",
]

FORMAT = 2
PACKAGES = ("jaxebm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
OTHER = {"config": "another configuration", "data": "other data"}
MANIFEST = "manifest.json"

State = TypeVar("State")


class CheckpointMismatchError(ValueError):
    """Raised when a checkpoint does not fit the run that is resumed from it."""


class CheckpointCorruptError(ValueError):
    """Raised when a checkpoint is damaged: a file is truncated, changed or missing."""


def is_step(path: Path) -> bool:
    """Returns whether a path is a folder with a number for its name, as that of a checkpoint."""
    return path.name.isascii() and path.name.isdigit() and path.is_dir()


def check_names(name: str, value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` is a collection of strings, and not one string."""
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"{name}={value!r}: {name} must be a collection of names.")
    for one in value:
        checks.instance(f"each of {name}", one, str)


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf is an array of typed PRNG keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def spans_hosts(leaf: Any) -> bool:
    """Returns whether this process holds only a part of a leaf's values."""
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def finite_if_all(leaf: Any) -> Any:
    """Returns a leaf; for floats that span hosts, one number that is finite if all of them are."""
    return jnp.max(jnp.abs(leaf)) if spans_hosts(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their paths, typed keys as their data."""
    return {
        jax.tree_util.keystr(path): jax.random.key_data(leaf) if is_key(leaf) else leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shape and dtype of each array, by its path."""
    return {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}


def to_arrays(state: Any) -> dict[str, np.ndarray | jax.Array]:
    """Returns the leaves of a state by their paths, on the host except for those that span hosts."""
    leaves = named_leaves(state)
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    return {name: leaf if spans_hosts(leaf) else np.asarray(leaf) for name, leaf in leaves.items()}


def from_arrays(template: State, arrays: Mapping[str, Any]) -> State:
    """Returns the arrays in the structure and with the sharding of ``template``."""

    def place(leaf: Any, array: np.ndarray) -> jax.Array:
        if is_key(leaf):
            return jax.random.wrap_key_data(
                place(jax.random.key_data(leaf), array), impl=jax.random.key_impl(leaf)
            )
        if not isinstance(leaf, jax.Array) or not leaf.committed:
            return jnp.array(array)
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    leaves, structure = jax.tree.flatten(template)
    return structure.unflatten(map(place, leaves, (arrays[name] for name in named_leaves(template))))


def fingerprint(data: Any) -> str:
    """Returns a digest of a pytree of arrays: SHA-256 over paths, shapes, dtypes and bytes.

    Args:
      data: arrays, typed keys or numbers, all of them on this host (before they are placed on several).

    Returns:
      64 hexadecimal digits, equal for equal data on any machine of the same byte order.

    Raises:
      ValueError: if an array's values are not all on this host.
      TypeError: if a leaf is not an array of numbers.

    Example:
      >>> fingerprint({"x": np.zeros(2)}) == fingerprint({"x": np.zeros(2)})
      True
      >>> fingerprint({"x": np.zeros(2)}) == fingerprint({"x": np.zeros((2, 1))})
      False
    """
    digest = hashlib.sha256()
    for name, leaf in named_leaves(data).items():
        if spans_hosts(leaf):
            raise ValueError(
                f"data{name} of shape {leaf.shape} is spread over several hosts: compute the fingerprint of "
                "the host's own arrays, before they are placed."
            )
        array = np.asarray(leaf)
        if not (jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(array.dtype, jnp.bool_)):
            raise TypeError(f"data{name} is {type(leaf).__name__}: arrays of numbers are needed.")
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        if array.size:  # as bytes, because the buffer protocol does not support bfloat16
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
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


@functools.cache  # read once, because every checkpoint needs them
def _versions() -> tuple[tuple[str, str], ...]:
    return (("python", platform.python_version()), *((name, version(name)) for name in PACKAGES))


def differing_entries(
    saved: Mapping[str, Any], now: Mapping[str, Any], uncompared: Collection[str] = (), *, group: str = ""
) -> list[str]:
    """Returns ``group.name: saved ..., now ...`` for each setting in which two configurations differ.

    Args:
      saved: one configuration, JSON values; groups of settings are dictionaries in it.
      now: the other one. A missing setting counts as None, a missing group as empty.
      uncompared: dotted names of settings or whole groups that may differ.
      group: the dotted name of the compared group, with a dot at its end.

    Example:
      >>> differing_entries({"sampler": {"step_size": 0.2}}, {"sampler": {"step_size": 0.5}})
      ['sampler.step_size: saved 0.2, now 0.5']
    """
    differing = []
    for name in sorted(saved.keys() | now.keys()):
        path, before, after = f"{group}{name}", saved.get(name), now.get(name)
        if path in uncompared:
            continue
        groups = saved.get(name, {}), now.get(name, {})
        if all(isinstance(entries, Mapping) for entries in groups):
            differing += differing_entries(*groups, uncompared, group=f"{path}.")
        elif before != after:
            differing.append(f"{path}: saved {before!r}, now {after!r}")
    return differing


def changed_versions(manifest: Mapping[str, Any]) -> str:
    """Returns which versions differ from those that wrote a checkpoint; empty if none does."""
    saved, now = manifest["versions"], describe_versions()
    changed = [f"{name} {saved.get(name)} (now {now[name]})" for name in now if saved.get(name) != now[name]]
    if not changed:
        return ""
    return (
        f"{', '.join(changed)}: the run continues, but its numbers may differ in their last bits from those "
        "of an uninterrupted run."
    )


def make_manifest(
    step: int, run: Mapping[str, Any], metrics: Mapping[str, float], arrays: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the manifest of a checkpoint without its checksums, as plain JSON values.

    Args:
      step: the step of the checkpoint.
      run: description of the run: ``config``, ``data`` and other entries that must be equal to resume it.
      metrics: metrics of the state; a NaN or an infinity becomes text, because JSON has no number for it.
      arrays: from `describe`.
    """
    devices = jax.devices()
    return {
        "format": FORMAT,
        "step": step,
        "run": dict(run),
        "versions": describe_versions(),
        "devices": f"{devices[0].device_kind} x{len(devices)}",
        "metrics": {
            name: float(value) if np.isfinite(value) else str(float(value)) for name, value in metrics.items()
        },
        "arrays": dict(arrays),
    }


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest into a folder whose files are complete, with the checksum of each file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {path.relative_to(folder).as_posix(): _file_checksum(path) for path in files}
    content = {**content, "files": checksums}
    text = json.dumps({"sha256": _checksum(content), "content": content}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def flush(paths: Iterable[Path]) -> None:
    """Flushes files and folders from the system's memory to the disk."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Returns the manifest in a folder, verified by its own checksum.

    Raises:
      CheckpointCorruptError: if it is missing, truncated, changed, or of another step.
      CheckpointMismatchError: if it is of another format.
    """
    try:
        sealed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = sealed["content"]
        intact = _checksum(content) == sealed["sha256"]
    except FileNotFoundError:
        raise CheckpointCorruptError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError):  # JSONDecodeError and UnicodeDecodeError are of the first kind
        raise CheckpointCorruptError(f"{MANIFEST} cannot be read: it was truncated or changed") from None
    if not intact:
        raise CheckpointCorruptError(f"{MANIFEST} was changed: its checksum differs")
    if content.get("format") != FORMAT:
        raise CheckpointMismatchError(
            f"the checkpoint of step {step} has a manifest of format {content.get('format')}, and this "
            f"jaxebm reads format {FORMAT}: resume it with the version that wrote it."
        )
    if content["step"] != step:
        raise CheckpointCorruptError(f"it is of step {content['step']}, and was renamed")
    return content


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises `CheckpointCorruptError` naming the first file whose bytes differ from those written.

    Args:
      folder: where the files are.
      manifest: from `read_manifest`.
    """
    for name, checksum in manifest["files"].items():
        try:
            found = _file_checksum(folder / name)
        except FileNotFoundError:
            raise CheckpointCorruptError(f"the file {name} is missing") from None
        except PermissionError:
            raise
        except OSError as error:
            raise CheckpointCorruptError(f"the file {name} cannot be read: {error.strerror}") from error
        if found != checksum:
            raise CheckpointCorruptError(f"the file {name} was changed: its checksum differs")


def check_same_run(
    where: str, manifest: Mapping[str, Any], run: Mapping[str, Any], uncompared: Collection[str] = ()
) -> None:
    """Raises `CheckpointMismatchError` naming the differences of a checkpoint and the run that resumes it.

    Args:
      where: the name of the checkpoint in messages.
      manifest: from `read_manifest`.
      run: description of the run that resumes it, as it would be read back from JSON; only its entries are
        compared.
      uncompared: dotted names of settings that may differ, within each entry.
    """
    for name, now in run.items():
        saved = manifest["run"].get(name)
        if isinstance(saved, dict) and isinstance(now, dict):
            differing = "; ".join(differing_entries(saved, now, uncompared))
        else:
            differing = "" if saved == now else f"saved {saved!r}, now {now!r}"
        if differing:
            raise CheckpointMismatchError(
                f"{where} is of {OTHER.get(name, f'another {name}')} ({differing}). Resume with the same, or "
                "choose another output."
            )


def check_same_arrays(where: str, manifest: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises `CheckpointMismatchError` naming the first array of another shape, dtype or name.

    Args:
      where: the name of the checkpoint in messages.
      manifest: from `read_manifest`.
      wanted: from `describe`.
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
            "config.json, or choose another output."
        )
