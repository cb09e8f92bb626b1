"""Checkpoints of everything, by Orbax: written aside in the background, then renamed.

So a kill at any moment leaves the last one whole. What is read back is compared with the checksums of its
manifest (`jaxebm.training.manifest`), and nothing damaged or foreign is ever taken.
"""

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxebm import checks
from jaxebm.training import manifest as manifests
from jaxebm.training.health import check_state
from jaxebm.training.manifest import CheckpointCorruptError, CheckpointMismatchError
from jaxebm.training.orbax_store import (
    ITEM,
    TEMPORARY,
    StateArgs,
    flush,
    make_manager,
    one_error_at_a_time,
    read_arrays,
)
from jaxebm.training.state import TrainState
from jaxebm.training.state_arrays import describe_state, from_arrays, to_arrays, witness
from jaxebm.training.write_errors import advise, error_number, explain

__all__ = ["CheckpointWriteError", "Checkpoints"]


class CheckpointWriteError(OSError):
    """Raised when a checkpoint could not be written; says why, and which earlier one is intact."""


class Checkpoints:
    """The checkpoints of one run: the newest, and the best by a metric.

    A folder belongs to one run at a time: opening it removes what a killed write has left in it, which would
    also be what another process is writing just now. With several processes every one of them opens it, and
    calls `save`, `restore` and `discard_after` together with the others; they share the folder.

    Args:
      directory: where they live; made if missing.
      max_to_keep: older ones are removed, at least 1.
      best_metric: the name of a metric given to `save`, whose best checkpoint is kept too; one without that
        metric, or with a value that is not finite, is no candidate.
      best_mode: whether small or large values are good.
      manifest: what the run is of, JSON-serialisable: ``config`` (its settings), ``data`` (its `fingerprint`)
        and whatever else has to be the same in a run that resumes it.

    Raises:
      ValueError: if ``max_to_keep`` is not an integer of at least 1, or ``best_mode`` is unknown.
      CheckpointWriteError: if the folder cannot be made or cleaned.

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
    ) -> None:
        checks.positive_integer("max_to_keep", max_to_keep)
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode={best_mode!r}: best_mode must be 'min' or 'max'.")
        # As it will be read back: tuples become lists.
        self._run: dict[str, Any] = json.loads(json.dumps(dict(manifest or {}), allow_nan=False))
        self.directory = Path(directory).absolute()
        self._best_metric, self._sign = best_metric, 1.0 if best_mode == "max" else -1.0
        self._writing: int | None = None
        self._failed = self._told = False
        with self._clear_errors("opened"):
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for leftover in self.directory.glob(f"*{TEMPORARY}*"):
                    shutil.rmtree(leftover)
        with ExitStack() as quiet:
            quiet.enter_context(one_error_at_a_time())
            self._manager = make_manager(
                self.directory, max_to_keep, self._best_of_all, lambda: self._writing
            )
            self._scores = self._read_scores()
            self._quiet = quiet.pop_all()  # until `close`

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
            error.add_note(str(failure))  # what ended the run comes first

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None; waits for the one that is being written."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint by ``best_metric``, or None; waits like `latest_step`."""
        self.wait()
        return self._best_of_all()

    def all_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in order; waits like `latest_step`."""
        self.wait()
        if (
            self._failed
        ):  # Orbax has forgotten those that it would have removed then, and they are still there
            self._manager.reload()
            self._failed = False
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Copies ``state`` to the host and writes it in the background, unless its step is already there.

        The state may be donated as soon as this returns. A failure to write it is raised by the next call of
        any method, or when the folder is closed.

        Args:
          state: the whole training state.
          metrics: its numbers by name, for the manifest and for ``best_metric``.

        Raises:
          DivergenceError: if parameters or chains are not finite; such a state would replace a good one.
          CheckpointWriteError: if this one cannot be written, or the last one could not.
          ValueError: if there are checkpoints of later steps (see `discard_after`).
        """
        step, newest = int(state.step), self.latest_step()
        with self._clear_errors("written", step):
            if not self.directory.is_dir():  # Orbax would make it anew, without what was in it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if step == newest:
            return
        if newest is not None and step < newest:
            raise ValueError(
                f"the state of step {step} cannot be saved before the checkpoint of step {newest} in "
                f"{self.directory}: remove what comes after the step that was resumed, discard_after({step})."
            )
        arrays = to_arrays(state)
        check_state(jax.tree.unflatten(jax.tree.structure(state), map(witness, arrays.values())))
        described = manifests.describe_arrays(arrays)
        args = StateArgs(
            item=arrays,
            manifest=manifests.make_manifest(step, self._run, metrics or {}, described),
            pieces={name: manifests.pieces_of(array) for name, array in arrays.items()},
        )
        score = (metrics or {}).get(self._best_metric or "")
        if score is not None and math.isfinite(score):
            self._scores[step] = self._sign * float(score)
        self._writing = step
        with self._clear_errors("written", step):
            self._manager.save(step, args=args)

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk.

        Raises:
          CheckpointWriteError: if it could not be written.
        """
        step = self._writing
        if step is None:
            return
        with self._clear_errors("written", step):
            self._manager.wait_until_finished()
            if not self._item(step).is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if jax.process_index() == 0:
                flush([self.directory])  # the renaming
        self._writing = None

    def close(self) -> None:
        """Waits like `wait`, and frees what writing needs."""
        with self._quiet:
            try:
                self.wait()
            finally:
                self._close_manager()

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Reads a checkpoint into the structure of ``template``; on several hosts, each reads all of it.

        Args:
          template: a state of the same configuration, for instance a new one. Its leaves may lie on other and
            on more or fewer devices than those that were saved.
          step: which checkpoint; the newest by default. There is no falling back to an older one.

        Returns:
          The state, bit for bit as it was saved, its leaves where those of ``template`` are.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          CheckpointCorruptError: if it is not what was written; the message names an older one that is.
          CheckpointMismatchError: if it is of another configuration or other data, or holds other arrays.

        Warns:
          UserWarning: if it was written with other versions of what the numbers depend on.
        """
        step = self._existing(step)
        where = f"the checkpoint of step {step} in {self.directory}"
        with self._name_whole_one(step):
            manifest = manifests.read_manifest(self._item(step), step)
        manifests.check_same_run(where, manifest, self._run)
        manifests.check_same_arrays(where, manifest, describe_state(template))
        with self._name_whole_one(step):
            arrays = read_arrays(self._item(step), manifest)
        saved, now = manifest["versions"], manifests.describe_versions()
        changed = [
            f"{name} {saved.get(name)} (now {now[name]})" for name in now if saved.get(name) != now[name]
        ]
        if changed:
            warnings.warn(
                f"{where} was written with {', '.join(changed)}: the run goes on, but its numbers may "
                "differ in their last bits from those of a run that was never stopped.",
                stacklevel=2,
            )
        return from_arrays(template, arrays)

    def read(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns the manifest and the arrays of a checkpoint by their paths, verified; needs no template.

        Args:
          step: which checkpoint; the newest by default.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          CheckpointCorruptError: if it is not what was written.
        """
        step = self._existing(step)
        with self._name_whole_one(step):
            return self._read(step)

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which a run that goes on from ``step`` will write again.

        Raises:
          CheckpointWriteError: if one cannot be removed.
        """
        later = [other for other in self.all_steps() if other > step]
        with self._clear_errors("cleaned"):
            if jax.process_index() == 0:
                for other in reversed(later):  # the newest first: a kill in between leaves no gap
                    # Renamed before it is emptied, so that no part of it is taken for a checkpoint.
                    removed = self.directory / f"{other}{TEMPORARY}-removed"
                    os.replace(self.directory / str(other), removed)
                    shutil.rmtree(removed)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"discard_after_{step}")
            self._manager.reload()
        self._scores = {other: score for other, score in self._scores.items() if other <= step}

    def _close_manager(self) -> None:
        told = self._told
        try:
            with self._clear_errors("closed"):
                self._manager.close()
        except CheckpointWriteError:
            if not told:  # Orbax remembers a write that failed, and raises its error again
                raise

    def _item(self, step: int) -> Path:
        return self.directory / str(step) / ITEM

    def _existing(self, step: int | None) -> int:
        steps = self.all_steps()
        if step not in steps and (step is not None or not steps):
            of_step = "" if step is None else f" of step {step}"
            raise FileNotFoundError(f"no checkpoint{of_step} in {self.directory}.")
        return steps[-1] if step is None else step

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        manifest = manifests.read_manifest(self._item(step), step)
        return manifest, read_arrays(self._item(step), manifest)

    def _newest_whole(self, before: float = math.inf) -> int | None:
        """Returns the newest checkpoint that reads back as it was written."""
        if not os.access(self.directory, os.R_OK | os.X_OK):  # gone, or closed to us
            return None
        names = [path.name for path in self.directory.iterdir()]
        for step in sorted(
            (int(name) for name in names if name.isdigit() and int(name) < before), reverse=True
        ):
            try:
                self._read(step)
            except (CheckpointCorruptError, CheckpointMismatchError, OSError):
                continue
            return step
        return None

    @contextmanager
    def _name_whole_one(self, step: int) -> Iterator[None]:
        try:
            yield
        except CheckpointCorruptError as error:
            older = self._newest_whole(before=step)
            way_out = (
                "No older one is whole: start anew with --overwrite, or elsewhere with another --output."
            )
            if older is not None:
                way_out = (
                    f"The newest older one that is whole is of step {older}: go on from it with "
                    f"--resume-step {older}, which removes those after it."
                )
            raise CheckpointCorruptError(
                f"the checkpoint of step {step} in {self.directory} is damaged: {error}. {way_out}"
            ) from error.__cause__

    @contextmanager
    def _clear_errors(self, done: str, step: int | None = None) -> Iterator[None]:
        """Turns what the operating system refused into one clear line; other errors pass as they are."""
        try:
            yield
        except Exception as error:
            number = error_number(error) or self._closed_to_us()
            if step is not None:
                self._writing, self._failed, self._told = None, True, True
                self._scores.pop(step, None)
            if number is None:
                raise
            what = "the folder of checkpoints" if step is None else f"the checkpoint of step {step}"
            whole = self._newest_whole()
            kept = "no checkpoint is there that could be read back"
            if whole is not None:
                kept = f"the checkpoint of step {whole} is intact (it was read back and verified)"
            failure = CheckpointWriteError(
                f"{what} could not be {done} in {self.directory}: {explain(number)}; {kept}{advise(number)}."
            )
            failure.errno = number
            raise failure from error

    def _closed_to_us(self) -> int | None:
        """The reason behind whatever Orbax may say, where the folder has gone or may not be written."""
        if not self.directory.is_dir():
            return errno.ENOENT
        return None if os.access(self.directory, os.R_OK | os.W_OK | os.X_OK) else errno.EACCES

    def _read_scores(self) -> dict[int, float]:
        scores: dict[int, float] = {}
        for step in self._manager.all_steps() if self._best_metric else ():
            try:
                metrics = manifests.read_manifest(self._item(step), step)["metrics"]
            except (CheckpointCorruptError, CheckpointMismatchError):
                continue  # not to be restored, and so no candidate; `restore` tells of it
            score = metrics.get(self._best_metric)
            if isinstance(score, float):
                scores[step] = self._sign * score
        return scores

    def _best_of_all(self) -> int | None:
        return max(self._scores, key=lambda step: (self._scores[step], step), default=None)
