"""The folder of one run: its configuration, metrics and results; nothing in it is lost without asking."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxebm.training.manifest import CheckpointMismatchError, differing_entries
from jaxebm.training.write_errors import advise, error_number, explain

__all__ = ["RunFolder", "open_run", "write_atomically"]

CONFIG, METRICS, RECOVERIES, CHECKPOINTS = "config.json", "metrics.jsonl", "recoveries.jsonl", "checkpoints"
PICTURES = (
    *("density", "energies", "neighbours", "ood", "reliability", "samples", "training", "telemetry"),
    *("accuracy", "attention", "recall", "energy", "masked", "diffusion", "landscape", "capacity"),
    *("intervals", "errors", "trajectories", "marginals", "survival"),
    *("robustness", "long_run", "inpainting", "denoising", "composition"),
)
RESULTS = (
    *(RECOVERIES, "card.json", "card.md", "report.html", "speedrun.json"),
    *("samples.npz", "twin.npz", "runs.jsonl", "kills.jsonl"),
    *(f"{name}.png" for name in PICTURES),
)
"""What a run writes beside those; ``overwrite`` removes no others, so that a person's own pictures stay."""
FOLDERS = (CHECKPOINTS, "lives", "pretraining", "evaluation", "exported")
"""The folders that it makes."""


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Says which file could not be written and why, where the operating system says only the latter."""
    try:
        yield
    except OSError as error:
        number = error_number(error)
        if number is None:
            raise
        raise type(error)(
            number, f"{path} could not be written: {explain(number)}{advise(number)}."
        ) from error


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that a reader or a kill sees the old content or the new, never a part.

    Args:
      path: the file.
      content: text (written as UTF-8) or bytes.

    Raises:
      OSError: if it cannot be written; the message names the file and the reason.

    Example:
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_atomically(folder / "a.txt", "whole")
      >>> (folder / "a.txt").read_text()
      'whole'
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    with _clear_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            # mkstemp gives 0600, which would lock colleagues out of results
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _read_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class RunFolder:
    """An open run folder; made by `open_run`.

    Attributes:
      path: the folder.
      config: the settings that `open_run` was given, as they would be read back (tuples as lists).
    """

    def __init__(self, path: Path, config: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.config: dict[str, Any] = dict(config or {})

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints live."""
        return self.path / CHECKPOINTS

    def write_json(self, name: str, value: Any) -> None:
        """Writes ``value`` as indented JSON, atomically; NaN and infinity raise ``ValueError``."""
        write_atomically(self.path / name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to ``metrics.jsonl``."""
        self._append(METRICS, record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the records of ``metrics.jsonl``; a last line cut short by a kill is left out."""
        return _read_lines(self.path / METRICS)

    def truncate_metrics(self, step: int) -> None:
        """Drops the records after ``step``, which a resumed run will write again."""
        self._rewrite(METRICS, [record for record in self.read_metrics() if record["step"] <= step])

    def append_recovery(self, record: Mapping[str, Any]) -> None:
        """Appends one line to ``recoveries.jsonl``, which a run that never recovered does not have."""
        self._append(RECOVERIES, record)

    def read_recoveries(self) -> list[dict[str, Any]]:
        """Returns the records of ``recoveries.jsonl``; a last line cut short by a kill is left out."""
        return _read_lines(self.path / RECOVERIES)

    def truncate_recoveries(self, count: int) -> None:
        """Drops the records after the first ``count``, which a resumed run will write again."""
        if count:
            self._rewrite(RECOVERIES, self.read_recoveries()[:count])
        else:
            (self.path / RECOVERIES).unlink(missing_ok=True)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with _clear_errors(self.path / name), (self.path / name).open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def _rewrite(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.path / name, "".join(json.dumps(dict(record)) + "\n" for record in records))


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / METRICS).is_file()  # many programs keep a config.json


def _remove_run(path: Path) -> None:
    """Removes what a run wrote, and nothing else that lies in its folder."""
    for name in FOLDERS:
        if (path / name).exists():
            shutil.rmtree(path / name)
    for name in RESULTS:
        (path / name).unlink(missing_ok=True)
    # Emptied, not removed: a removal that is killed half-way leaves a folder that is still known as a run.
    write_atomically(path / METRICS, "")


def _check_same_config(path: Path, config: Mapping[str, Any]) -> None:
    try:
        saved = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__} instead of settings by name")
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of this kind too
        raise CheckpointMismatchError(
            f"{path / CONFIG} is no readable configuration ({error}): nothing can be resumed. Choose another "
            "--output, or replace the run with --overwrite."
        ) from None
    differing = differing_entries(saved, config)
    if differing:
        raise CheckpointMismatchError(
            f"--resume: {path} holds a run of another configuration ({'; '.join(differing)}). "
            "Give the same settings, choose another --output, or replace the run with --overwrite."
        )


def open_run(
    output: str | Path,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    resumable: bool = True,
) -> RunFolder:
    """Opens a run's folder and writes its configuration, refusing to lose anything.

    Args:
      output: the folder.
      config: the settings, JSON-serialisable.
      resume: go on with the run that is there; a folder without a run starts one.
      overwrite: replace the run that is there; files that no run wrote stay.
      resumable: whether the experiment has a flag to resume, which a message may then name.

    Returns:
      The open folder.

    Raises:
      ValueError: if both flags are given, or a setting is NaN or infinite.
      FileExistsError: if the folder holds anything and neither flag is given, or holds no run to overwrite.
      CheckpointMismatchError: if the run that is there has another configuration.
      PermissionError: if the folder cannot be written.

    Example:
      >>> folder = open_run(tempfile.mkdtemp(), {"seed": 0})
      >>> folder.append_metrics({"step": 1, "loss": 0.5})
      >>> folder.read_metrics()
      [{'step': 1, 'loss': 0.5}]
    """
    path = Path(output)
    # As it will be read back (tuples become lists), and refused here, before anything is removed.
    config = json.loads(json.dumps(dict(config), allow_nan=False))
    if resume and overwrite:
        raise ValueError(
            "--resume and --overwrite exclude each other: one keeps the run that is there, one replaces it."
        )
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"--output {path} is a file: give a folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise PermissionError(
            f"--output {path} cannot be written ({error.strerror}): choose another folder."
        ) from None
    occupied = any(path.iterdir())
    if occupied and not (resume or overwrite):
        go_on = "Go on with --resume, replace" if resumable else "Replace"
        raise FileExistsError(
            f"--output {path} is not empty. {go_on} the run with --overwrite, or choose another folder."
        )
    if overwrite and occupied:
        if not _is_run(path):
            raise FileExistsError(
                f"--overwrite: {path} holds files but no run ({CONFIG} and {METRICS}): choose another folder."
            )
        _remove_run(path)
    folder = RunFolder(path, config)
    if resume and (path / CONFIG).exists():
        _check_same_config(path, config)
    elif resume and (path / CHECKPOINTS).exists():
        raise CheckpointMismatchError(
            f"--resume: {path} holds {CHECKPOINTS}/ but no {CONFIG}, so nobody can tell what they are of: "
            "put the configuration back, or choose another --output."
        )
    else:
        (path / METRICS).touch()
        folder.write_json(CONFIG, config)
    return folder
