"""What is used of Orbax: how one checkpoint is written in the background, kept, and read."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxebm.training import manifest as manifests
from jaxebm.training.manifest import CheckpointCorruptError

__all__ = []

ITEM = "default"
"""Orbax's name for the only thing in a checkpoint."""
NEEDED = (manifests.MANIFEST, "manifest.ocdbt")
"""What no checkpoint is without: where its arrays are, in our words and in TensorStore's."""
TEMPORARY = ".orbax-checkpoint-tmp"
"""What Orbax puts into the name of a folder that is being written, and this module of one being removed."""


class _StateHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler of arrays, which also writes the manifest; checksums are computed in the background."""

    async def async_save(
        self, directory: Any, item: Any = None, save_args: Any = None, args: Any = None
    ) -> Any:
        writes = await super().async_save(directory, item, save_args, args=ocp.args.StandardSave(args.item))
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint_manifest")
        write = executor.submit(manifests.write_manifest, Path(directory), args.manifest, args.pieces)
        executor.shutdown(wait=False)
        return [*(writes or []), write]


@ocp.args.register_with_handler(_StateHandler, for_save=True, for_restore=True)
@dataclass
class StateArgs(ocp.args.CheckpointArgs):
    """What `_StateHandler` writes."""

    item: dict[str, Any]
    manifest: dict[str, Any]
    pieces: manifests.Pieces


class KeepStep(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps one checkpoint.

    Orbax's own `BestN` reads a file of metrics beside the manifest; one cut short would keep the folder from
    being opened at all.
    """

    def __init__(self, step: Callable[[], int | None]) -> None:
        self.step = step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = self.step()
        return [checkpoint.step == kept for checkpoint in checkpoints]


class _NoTracebacks(logging.Filter):
    """Drops what Orbax logs of an error in the background: it is raised here, with its cause."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "/orbax/checkpoint/" not in record.pathname


class _NoLateErrors(logging.Filter):
    """Drops what asyncio logs of an array that nobody waited for, because another one had failed."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return "never retrieved" not in record.getMessage() or "OCDBT database" not in str(error)


class _NoClosedLoops:
    """A hook for exceptions that nobody can catch: drops those of TensorStore's calls to a closed loop."""

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        self.hook = hook

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (closed and unraisable.object is None):  # those of Python's own loops name an object
            self.hook(unraisable)


NO_LATE_ERRORS = _NoLateErrors()


@contextmanager
def one_error_at_a_time() -> Iterator[None]:
    """Of an error in the background, lets only that be seen which is raised.

    Orbax reads and writes many arrays at once and closes its event loop at the first that fails. It logs that
    error too; and when the others come to their end, each of them complains. That may be late, so what drops
    those complaints stays.
    """
    if not isinstance(sys.unraisablehook, _NoClosedLoops):
        sys.unraisablehook = _NoClosedLoops(sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(NO_LATE_ERRORS)
    log, noise = logging.getLogger("absl"), _NoTracebacks()
    log.addFilter(noise)
    try:
        yield
    finally:
        log.removeFilter(noise)


def flush(paths: Iterable[Path]) -> None:
    """Asks for files and folders to be on the disk, not only in the system's memory."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 100 else f"{line[:100]} ..."


def make_manager(
    directory: Path,
    max_to_keep: int,
    best_step: Callable[[], int | None],
    writing: Callable[[], int | None],
) -> ocp.CheckpointManager:
    """Returns Orbax's manager of a folder that exists.

    Args:
      directory: where the checkpoints live.
      max_to_keep: the newest ones that are kept.
      best_step: which one is kept besides, asked after every save.
      writing: the step that is being saved.
    """

    def flush_written() -> None:
        """Runs in the background, after everything is written and before the renaming."""
        for folder in directory.glob(f"{writing()}{TEMPORARY}*"):
            # Orbax goes on where it finds no arrays, for instance in a folder that has gone.
            for name in NEEDED:
                if not (folder / ITEM / name).is_file():
                    raise FileNotFoundError(
                        errno.ENOENT, os.strerror(errno.ENOENT), str(folder / ITEM / name)
                    )
            flush([folder, *folder.rglob("*")])

    managers = ocp.checkpoint_managers
    policy = managers.AnyPreservationPolicy([managers.LatestN(max_to_keep), KeepStep(best_step)])
    in_background = ocp.options.AsyncOptions(
        post_finalization_callback=flush_written, create_directories_asynchronously=False
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, async_options=in_background)
    # Named here, because a manager that has not saved yet could not read what another process saved.
    return ocp.CheckpointManager(directory, options=options, item_handlers=_StateHandler())


def read_arrays(folder: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays in an item's folder, on the host and compared with the checksums of their manifest.

    Raises:
      CheckpointCorruptError: if they cannot be read, or are not what was written.
    """
    targets = {
        # NumPy's: of a jax.Array, Orbax would want the devices on which it lay when it was saved.
        name: np.broadcast_to(np.zeros((), jnp.dtype(entry["dtype"])), entry["shape"])
        for name, entry in manifest["arrays"].items()
    }
    item: Any = folder
    try:
        arrays = ocp.StandardCheckpointHandler().restore(item, args=ocp.args.StandardRestore(targets))
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes Orbax, TensorStore or zstd say
        raise CheckpointCorruptError(f"its arrays cannot be read ({_first_line(error)})") from error
    manifests.verify_arrays(manifest, arrays)
    return arrays
