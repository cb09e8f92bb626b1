"""The folder of one run: configuration, metrics and results, never overwritten unless asked for."""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from jaxebm import checks
from jaxebm.training.manifest import CheckpointMismatchError, check_names, differing_entries, is_step
from jaxebm.training.write_errors import advise, error_number, explain

__all__ = ["RunFolder", "open_run", "read_run", "write_atomically"]

CONFIG, METRICS, RECOVERIES, CHECKPOINTS = "config.json", "metrics.jsonl", "recoveries.jsonl", "checkpoints"
CONTENTS = "contents.json"
"""The file with the names of all files of a run; ``overwrite=True`` removes only these."""


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Adds the file's name and advice to the operating system's error, which gives only the reason."""
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
    """Writes a file atomically: readers see the old or the new content, never a part, also after a kill.

    Args:
      path: the file.
      content: text (written as UTF-8) or bytes.

    Raises:
      TypeError: if ``path`` is no path, or ``content`` neither text nor bytes.
      OSError: if it cannot be written; the message names the file and the reason.

    Example:
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_atomically(folder / "a.txt", "whole")
      >>> (folder / "a.txt").read_text()
      'whole'
    """
    checks.instance("path", path, (str, os.PathLike))
    checks.instance("content", content, (str, bytes))
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
            # mkstemp gives 0600, so that other users could not read the results
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


def _check_name(path: Path, name: Any) -> None:
    """Raises ``ValueError`` unless a name is a path inside a folder, also after links are followed."""
    plain = isinstance(name, str) and "\0" not in name and PurePosixPath(name).as_posix() == name
    parts = PurePosixPath(name).parts if plain and not Path(name).is_absolute() else ()
    if not parts or ".." in parts or not (path / name).parent.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{name!r} is not the name of a file or folder inside {path}")


class RunFolder:
    """An open run folder; made by `open_run` and `read_run`.

    Attributes:
      path: the folder.
      config: the settings, as they would be read back (tuples as lists).
      uncompared: dotted names of the settings that may change when the run is resumed.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any] | None = None, uncompared: Collection[str] = ()
    ) -> None:
        self.path = path
        self.config: dict[str, Any] = dict(config or {})
        self.uncompared = frozenset(uncompared)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    def claim(self, *names: str) -> None:
        """Records names of files or folders that the run is about to write, in ``contents.json``.

        Call it before they are written, so that `open_run` with ``overwrite=True`` finds them even after
        a kill. The writing methods of this class call it themselves.

        Args:
          *names: relative to the folder, with ``/`` between their parts. A folder includes all its contents.

        Raises:
          ValueError: if a name is absolute or points outside of the folder.
          FileExistsError: if the record cannot be read.

        Example:
          >>> run = open_run(tempfile.mkdtemp(), {})
          >>> run.claim("samples.png", "evaluation")
          >>> run.claimed()
          ['checkpoints', 'config.json', 'evaluation', 'metrics.jsonl', 'samples.png']
        """
        for name in names:
            _check_name(self.path, name)
        claimed = self.claimed()
        if not set(names) <= set(claimed):
            text = json.dumps(sorted({*claimed, *names}), indent=1) + "\n"
            write_atomically(self.path / CONTENTS, text)

    def claimed(self) -> list[str]:
        """Returns the names that were claimed, in order.

        Raises:
          FileExistsError: if the record cannot be read, or holds a name that points outside of the folder.
        """
        path = self.path / CONTENTS
        if not path.exists():
            return []
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(names, list):
                raise ValueError("it holds no list of names")
            for name in names:
                _check_name(self.path, name)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of this kind too
            raise FileExistsError(
                f"{path}, the record of what the run wrote, cannot be used ({error}): choose another output, "
                "or remove the folder yourself."
            ) from None
        return names

    def file(self, name: str) -> Path:
        """Claims a name and returns its path, for code that writes the file itself (pictures, arrays)."""
        self.claim(name)
        return self.path / name

    def write(self, name: str, content: str | bytes) -> None:
        """Claims a name and writes its file atomically, as `write_atomically` does."""
        write_atomically(self.file(name), content)

    def write_json(self, name: str, value: Any) -> None:
        """Writes ``value`` as indented JSON, atomically; NaN and infinity raise ``ValueError``."""
        self.write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

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
        """Appends one line to ``recoveries.jsonl``; a run without recoveries does not have this file."""
        self.claim(RECOVERIES)
        self._append(RECOVERIES, record)

    def read_recoveries(self) -> list[dict[str, Any]]:
        """Returns the records of ``recoveries.jsonl``; a last line cut short by a kill is left out."""
        return _read_lines(self.path / RECOVERIES)

    def truncate_recoveries(self, count: int) -> None:
        """Drops the records after the first ``count``, which a resumed run will write again."""
        if count:
            self.claim(RECOVERIES)
            self._rewrite(RECOVERIES, self.read_recoveries()[:count])
        else:
            (self.path / RECOVERIES).unlink(missing_ok=True)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with _clear_errors(self.path / name), (self.path / name).open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def _rewrite(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.path / name, "".join(json.dumps(dict(record)) + "\n" for record in records))


def _is_run(path: Path) -> bool:
    # All three, because other programs write a config.json too.
    return all((path / name).is_file() for name in (CONFIG, METRICS, CONTENTS))


def _remove_run(path: Path) -> None:
    """Removes the files and folders that a run has claimed; other files in its folder stay."""
    # Rewritten, not removed: after a kill in the middle, the folder is still recognised as a run.
    kept = (CONFIG, METRICS, CONTENTS)
    for name in RunFolder(path).claimed():
        if name in kept:
            continue
        if (path / name).is_dir() and not (path / name).is_symlink():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)
    write_atomically(path / METRICS, "")
    write_atomically(path / CONTENTS, json.dumps([CONFIG, METRICS]))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__} instead of settings by name")
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of this kind too
        raise ValueError(f"{path / CONFIG} is not a readable configuration ({error})") from None
    return saved


def _check_same_config(path: Path, config: Mapping[str, Any], uncompared: Collection[str]) -> None:
    try:
        saved = _read_config(path)
    except ValueError as error:
        raise CheckpointMismatchError(
            f"{error}: it cannot be resumed. Choose another output, or replace the run with overwrite=True."
        ) from None
    differing = differing_entries(saved, config, uncompared)
    if differing:
        raise CheckpointMismatchError(
            f"resume=True: {path} holds a run of another configuration ({'; '.join(differing)}). "
            "Give the same settings, choose another output, or replace the run with overwrite=True."
        )


def read_run(path: str | Path) -> RunFolder:
    """Opens the folder of a run, finished or stopped, for reading; writes nothing.

    Args:
      path: the folder.

    Returns:
      The folder, its configuration read from ``config.json``.

    Raises:
      FileNotFoundError: if there is no run, or it has no checkpoint.
      ValueError: if its configuration cannot be read.

    Example:
      >>> read_run("nowhere")
      Traceback (most recent call last):
      FileNotFoundError: nowhere holds no run: path must be a folder with config.json and checkpoints/.
    """
    checks.instance("path", path, (str, os.PathLike))
    run = RunFolder(Path(path))
    if not (run.path / CONFIG).is_file():
        raise FileNotFoundError(
            f"{path} holds no run: path must be a folder with {CONFIG} and {CHECKPOINTS}/."
        )
    if not run.checkpoints.is_dir() or not any(map(is_step, run.checkpoints.iterdir())):
        raise FileNotFoundError(
            f"{path} holds a run without a checkpoint yet: train it for longer, or choose another folder."
        )
    try:
        run.config = _read_config(run.path)
    except ValueError as error:
        raise ValueError(f"{error}.") from None
    return run


def open_run(
    output: str | Path,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    resumable: bool = True,
    uncompared: Collection[str] = (),
) -> RunFolder:
    """Opens a run's folder and writes its configuration; replaces a run only with ``overwrite=True``.

    Args:
      output: the folder.
      config: the settings, JSON-serialisable; groups of settings are dictionaries in it.
      resume: continue the run in the folder; a folder without a run starts one.
      overwrite: replace the run in the folder: what it has claimed (`RunFolder.claim`) is removed, and
        other files stay.
      resumable: whether the caller supports ``resume``; error messages then suggest it.
      uncompared: dotted names of settings that may change when the run is resumed (``"run.output"``); the
        name of a group includes all its settings.

    Returns:
      The open folder.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if both ``resume`` and ``overwrite`` are given, or a setting is NaN or infinite.
      FileExistsError: if the folder is not empty and neither is given, or holds no run to overwrite.
      CheckpointMismatchError: if the run in the folder has another configuration.
      PermissionError: if the folder cannot be written.

    Example:
      >>> folder = open_run(tempfile.mkdtemp(), {"seed": 0})
      >>> folder.append_metrics({"step": 1, "loss": 0.5})
      >>> folder.read_metrics()
      [{'step': 1, 'loss': 0.5}]
    """
    checks.instance("output", output, (str, os.PathLike))
    checks.instance("config", config, Mapping)
    for name, value in (("resume", resume), ("overwrite", overwrite), ("resumable", resumable)):
        checks.boolean(name, value)
    check_names("uncompared", uncompared)
    path = Path(output)
    # As it will be read back (tuples become lists), and refused here, before anything is removed.
    config = json.loads(json.dumps(dict(config), allow_nan=False))
    if resume and overwrite:
        raise ValueError(
            "resume=True and overwrite=True exclude each other: one keeps the run in the folder, the other "
            "replaces it."
        )
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"output={path} is a file: give a folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise PermissionError(
            f"output={path} cannot be written ({error.strerror}): choose another folder."
        ) from None
    occupied = any(path.iterdir())
    if occupied and not (resume or overwrite):
        go_on = "Continue with resume=True, replace" if resumable else "Replace"
        raise FileExistsError(
            f"output={path} is not empty. {go_on} the run with overwrite=True, or choose another folder."
        )
    if overwrite and occupied:
        if not _is_run(path):
            raise FileExistsError(
                f"overwrite=True: {path} holds files but no run ({CONFIG}, {METRICS} and {CONTENTS}): choose "
                "another folder."
            )
        _remove_run(path)
    folder = RunFolder(path, config, uncompared)
    goes_on = resume and (path / CONFIG).exists()
    if goes_on:
        _check_same_config(path, config, folder.uncompared)
    elif resume and (path / CHECKPOINTS).exists():
        raise CheckpointMismatchError(
            f"resume=True: {path} holds {CHECKPOINTS}/ but no {CONFIG}, so their configuration is unknown: "
            "restore the file, or choose another output."
        )
    folder.claim(CONFIG, METRICS, CHECKPOINTS)
    if not goes_on:
        (path / METRICS).touch()
        folder.write_json(CONFIG, config)
    return folder
