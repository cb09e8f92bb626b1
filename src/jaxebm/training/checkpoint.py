"""Checkpoints of the training state, by Orbax: written in the background to a temporary folder, then renamed.

A kill at any moment leaves the last checkpoint intact. Its manifest (`jaxebm.training.manifest`) holds a
checksum of every file. The checksums are compared before Orbax reads, so damaged files are never restored.
"""

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxebm import checks
from jaxebm.training import manifest as manifests
from jaxebm.training.health import DivergenceError, check_state
from jaxebm.training.manifest import CheckpointCorruptError, CheckpointMismatchError, check_names, is_step
from jaxebm.training.state import TrainState
from jaxebm.training.write_errors import advise, check_space, error_number, explain

__all__ = ["CheckpointWriteError", "Checkpoints"]

ITEM = "default"
"""Orbax's name of the only item in a checkpoint."""
TEMPORARY = ".orbax-checkpoint-tmp"
"""Part of the name of a folder that Orbax is writing, or that this module is removing."""


class CheckpointWriteError(OSError):
    """Raised when a checkpoint could not be written; names the reason, and an earlier one that is intact."""


class Checkpoints:
    """The checkpoints of one run: the newest, and the best by a metric.

    Only one run at a time may write into a folder: `save` and `discard_after` remove the remains of killed
    writes, and would also remove what another process is writing. Reading changes nothing. Several processes
    of one run share the folder; all of them must call each method together.

    Args:
      directory: their folder; made by the first `save` if missing.
      max_to_keep: how many of the newest are kept, at least 1; older ones are removed.
      best_metric: the name of a metric given to `save`; the checkpoint that is best by it is kept too. A
        checkpoint without that metric, or with a value that is not finite, is not considered.
      best_mode: whether small or large values are good.
      manifest: description of the run, JSON-serialisable: ``config`` (its settings), ``data`` (its
        `fingerprint`) and other entries that must be the same in a run that resumes it.
      uncompared: dotted names of settings in ``config`` that need not be the same (``"run.output"``); the
        name of a group includes all its settings.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if ``max_to_keep`` is not an integer of at least 1, ``best_mode`` is unknown, or
        ``manifest`` holds a NaN or an infinity.

    Example:
      >>> import tempfile
      >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
      ...     print(checkpoints.latest_step())
      None
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        max_to_keep: int = 2,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        manifest: Mapping[str, Any] | None = None,
        uncompared: Collection[str] = (),
    ) -> None:
        checks.instance("directory", directory, (str, os.PathLike))
        checks.positive_integer("max_to_keep", max_to_keep)
        if best_metric is not None:
            checks.text("best_metric", best_metric)
        checks.one_of("best_mode", best_mode, ("min", "max"))
        checks.instance("manifest", manifest, (Mapping, type(None)))
        check_names("uncompared", uncompared)
        # As it will be read back: tuples become lists.
        self._run: dict[str, Any] = json.loads(json.dumps(dict(manifest or {}), allow_nan=False))
        self._uncompared = frozenset(uncompared)
        self.directory = Path(directory).absolute()
        self._max_to_keep = max_to_keep
        self._best_metric, self._sign = best_metric, 1.0 if best_mode == "max" else -1.0
        self._writing: dict[str, Any] | None = None  # the manifest of what is being written
        self._writer: ocp.AsyncCheckpointer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointWriteError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the error that ended the run comes first

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None; waits for the one that is being written."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint by ``best_metric``, or None; waits like `latest_step`."""
        self.wait()
        scores: dict[int, float] = {}
        for step in self._steps() if self._best_metric is not None else ():
            # A checkpoint that cannot be read is skipped here; `restore` reports it.
            with suppress(CheckpointCorruptError, CheckpointMismatchError):
                score = manifests.read_manifest(self._item(step), step)["metrics"].get(self._best_metric)
                if isinstance(score, float):  # a NaN or an infinity is text there
                    scores[step] = self._sign * score
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def all_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in order; waits like `latest_step`."""
        self.wait()
        return self._steps()

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Copies ``state`` to the host and writes it in the background, unless its step is already there.

        The state may be donated as soon as this returns. A failure to write it is raised by the next call of
        any method, or when the folder is closed.

        Args:
          state: the whole training state.
          metrics: its metrics by name, for the manifest and for ``best_metric``.

        Raises:
          DivergenceError: if parameters or chains are not finite; such a state would replace a good one.
          CheckpointWriteError: if this one cannot be written, or the last one could not.
          ValueError: if there are checkpoints of later steps (see `discard_after`).
        """
        writer = self._open()
        step, newest = int(state.step), self.latest_step()
        with self._clear_errors("written", step):
            if not self.directory.is_dir():  # Orbax would silently make a new, empty one
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if newest is not None and step > newest:
                # Orbax would notice a full disk too, but prints a traceback of many lines for every array.
                check_space(self.directory / str(newest))
        if step == newest:
            return
        if newest is not None and step < newest:
            raise ValueError(
                f"the state of step {step} cannot be saved before the checkpoint of step {newest} in "
                f"{self.directory}: remove the later checkpoints with discard_after({step})."
            )
        with self._name_newest(newest):
            check_state(jax.tree.map(manifests.finite_if_all, state))
        arrays = manifests.to_arrays(state)
        self._writing = manifests.make_manifest(step, self._run, metrics or {}, manifests.describe(arrays))
        with self._clear_errors("written", step):
            # Orbax copies arrays of the host before this returns.
            writer.save(
                self.directory / str(step), args=ocp.args.Composite(default=ocp.args.StandardSave(arrays))
            )

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk, and removes the one that it replaces.

        Raises:
          CheckpointWriteError: if it could not be written.
        """
        if self._writing is None or self._writer is None:
            return
        step = self._writing["step"]
        with self._clear_errors("written", step):
            self._writer.wait_until_finished()
            if not (self._item(step) / manifests.MANIFEST).is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if jax.process_index() == 0:
                manifests.flush([self.directory])  # the renaming
        self._writing = None
        steps = self._steps()
        kept = {*steps[-self._max_to_keep :], self.best_step()}
        self._remove([other for other in steps if other not in kept], f"save_{step}")

    def close(self) -> None:
        """Waits like `wait`, and closes the writer."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Reads a checkpoint into the structure of ``template``; on several hosts, each reads all of it.

        Args:
          template: a state of the same configuration, for instance a new one. Its leaves may lie on other and
            on more or fewer devices than those that were saved.
          step: which checkpoint; the newest by default. It never falls back to an older one.

        Returns:
          The state, bit for bit as it was saved, its leaves on the devices of those of ``template``.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          CheckpointCorruptError: if it is damaged; the message names an older one that is intact.
          CheckpointMismatchError: if it is of another configuration or other data, or holds other arrays.

        Warns:
          UserWarning: if it was written with other versions of the packages on which the numbers depend.
        """
        step = self._existing(step)
        where = f"the checkpoint of step {step} in {self.directory}"
        manifest = self.read_manifest(step)
        manifests.check_same_run(where, manifest, self._run, self._uncompared)
        manifests.check_same_arrays(where, manifest, manifests.describe(manifests.named_leaves(template)))
        arrays = self.read(step)
        if changed := manifests.changed_versions(manifest):
            warnings.warn(f"{where} was written with {changed}", stacklevel=2)
        return manifests.from_arrays(template, arrays)

    def read(self, step: int | None = None, *, prefix: str = "") -> dict[str, np.ndarray]:
        """Returns the arrays of a checkpoint by their paths, verified; needs no template.

        Args:
          step: which checkpoint; the newest by default.
          prefix: only arrays whose path begins with it, for instance ``".ema_params"``.

        Returns:
          Arrays on the host; typed keys as their data, uint32.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          CheckpointCorruptError: if it is damaged; the message names an older one that is intact.
          CheckpointMismatchError: if it is of another format.
        """
        step = self._existing(step)
        with self._name_whole_one(step):
            manifest = self._verified(step)
        item: Any = self._item(step)
        on_host = ocp.RestoreArgs(restore_type=np.ndarray)
        wanted = {name: on_host for name in manifest["arrays"] if name.startswith(prefix)}
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=wanted, partial_restore=True)
        return ocp.PyTreeCheckpointHandler().restore(item, args=args) if wanted else {}

    def read_manifest(self, step: int | None = None) -> dict[str, Any]:
        """Returns the verified manifest of a checkpoint.

        Args:
          step: which checkpoint; the newest by default.

        Returns:
          JSON values by name: ``step``, ``run`` (the ``manifest`` that it was saved with), ``metrics``,
          ``versions``, ``devices``, ``arrays`` (shape and dtype by path) and ``files`` (SHA-256 by name).

        Raises:
          FileNotFoundError, CheckpointCorruptError, CheckpointMismatchError: as `read`.
        """
        step = self._existing(step)
        with self._name_whole_one(step):
            return manifests.read_manifest(self._item(step), step)

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which a run resumed from ``step`` will write again.

        Raises:
          CheckpointWriteError: if one cannot be removed.
        """
        self._open()
        self._remove([other for other in self.all_steps() if other > step], f"discard_after_{step}")

    def _open(self) -> ocp.AsyncCheckpointer:
        """Waits, removes unfinished checkpoints, and makes the folder the first time."""
        self.wait()
        if jax.process_index() == 0 and self.directory.is_dir():
            for leftover in self.directory.glob(f"*{TEMPORARY}*"):
                # Errors are ignored: TensorStore may still write other arrays of a checkpoint that failed.
                shutil.rmtree(leftover, ignore_errors=True)
        if self._writer is None:
            with self._clear_errors("made"):
                self.directory.mkdir(parents=True, exist_ok=True)
            options = ocp.options.AsyncOptions(
                post_finalization_callback=self._complete, create_directories_asynchronously=False
            )
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)
        return self._writer

    def _item(self, step: int) -> Path:
        return self.directory / str(step) / ITEM

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if is_step(path))

    def _existing(self, step: int | None) -> int:
        steps = self.all_steps()
        if step not in steps and (step is not None or not steps):
            of_step = "" if step is None else f" of step {step}"
            raise FileNotFoundError(f"no checkpoint{of_step} in {self.directory}.")
        return steps[-1] if step is None else step

    def _verified(self, step: int) -> dict[str, Any]:
        manifest = manifests.read_manifest(self._item(step), step)
        manifests.verify_files(self._item(step), manifest)
        return manifest

    def _complete(self) -> None:
        """Runs in the background of the first process, after all have written and before the renaming."""
        assert self._writing is not None
        folder = self.directory / f"{self._writing['step']}{TEMPORARY}"
        # Orbax continues without an error if there are no arrays, for instance in a folder that was removed.
        if not (folder / ITEM / "manifest.ocdbt").is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / ITEM))
        manifests.write_manifest(folder / ITEM, self._writing)
        manifests.flush([folder, *folder.rglob("*")])

    def _remove(self, steps: Iterable[int], reason: str) -> None:
        with self._clear_errors("cleaned"):
            if jax.process_index() == 0:
                for step in sorted(steps, reverse=True):  # the newest first: a kill in between leaves no gap
                    # Renamed first, so that a partly removed folder is not taken for a checkpoint.
                    removed = self.directory / f"{step}{TEMPORARY}-removed"
                    os.replace(self.directory / str(step), removed)
                    shutil.rmtree(removed)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(reason)

    def _newest_whole(self, before: float = math.inf) -> int | None:
        """Returns the newest checkpoint whose files are intact."""
        if not os.access(self.directory, os.R_OK | os.X_OK):  # missing, or not readable
            return None
        for step in reversed(self._steps()):
            if step < before:
                with suppress(CheckpointCorruptError, CheckpointMismatchError, OSError):
                    self._verified(step)
                    return step
        return None

    @contextmanager
    def _name_whole_one(self, step: int) -> Iterator[None]:
        try:
            yield
        except CheckpointCorruptError as error:
            older = self._newest_whole(before=step)
            way_out = "No older one is intact: start again with overwrite=True, or choose another output."
            if older is not None:
                way_out = (
                    f"The newest intact one before it is of step {older}: continue from it with "
                    f"resume_step={older}, which removes the later ones."
                )
            raise CheckpointCorruptError(
                f"the checkpoint of step {step} in {self.directory} is damaged: {error}. {way_out}"
            ) from error.__cause__

    @contextmanager
    def _name_newest(self, newest: int | None) -> Iterator[None]:
        try:
            yield
        except DivergenceError as error:
            kept = "No checkpoint had been written before."
            if newest is not None:
                kept = f"The checkpoint of step {newest} is kept."
            raise DivergenceError(f"{error} {kept}") from None

    @contextmanager
    def _clear_errors(self, done: str, step: int | None = None) -> Iterator[None]:
        """Turns errors of the operating system into one clear line; other errors are not changed."""
        try:
            yield
        except Exception as error:
            number = error_number(error)
            if step is not None:
                self._writing = None
            if number is None:
                raise
            what = "the folder of checkpoints" if step is None else f"the checkpoint of step {step}"
            whole = self._newest_whole()
            kept = "there is no checkpoint that could be read back"
            if whole is not None:
                kept = f"the checkpoint of step {whole} is intact (its checksums were compared)"
            failure = CheckpointWriteError(
                f"{what} could not be {done} in {self.directory}: {explain(number)}; {kept}{advise(number)}."
            )
            failure.errno = number
            raise failure from error
