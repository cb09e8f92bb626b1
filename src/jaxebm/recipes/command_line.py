"""The command line of every experiment: parses documented flags, ends with one clear line on an error."""

import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass, fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import tyro

from jaxebm import checks
from jaxebm.recipes.interrupts import command_to_go_on, ignore_signals, signals_as_interrupts, what_is_kept
from jaxebm.recipes.lock import only_writer
from jaxebm.recipes.serialisation import as_json
from jaxebm.training import DivergenceError, RunFolder, TrainingInterrupted

__all__ = [
    "ResumableFlags",
    "RunFlags",
    "as_json",
    "parse",
    "publish_card",
    "quicken_small_networks_on_cpu",
    "refuse_existing",
    "run_experiment",
]

ACCELERATORS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin", "libtpu")
SMALL_NETWORKS = {"PJRT_NPROC": "1", "XLA_FLAGS": "--xla_backend_optimization_level=1"}

ERRORS = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, MemoryError, ImportError)
"""Errors that end with one line. RuntimeError covers DivergenceError, DatasetNotAvailableError and JAX's own
out-of-memory errors; ImportError a package that is missing."""

Config = TypeVar("Config")


@dataclass(frozen=True)
class RunFlags:
    """Flags of every run that writes a folder; an experiment adds ``output`` and its own flags."""

    overwrite: bool = False
    """Replace the run in the folder."""
    progress: bool = True
    """Show progress (lines of text without a terminal)."""
    seed: int = 0
    """Seed of all random numbers: weights, batches, chains. The splits of data sets never change."""


@dataclass(frozen=True)
class ResumableFlags(RunFlags):
    """Flags of a run that writes checkpoints."""

    resume: bool = False
    """Continue the run in the folder, bit for bit as if it had not been stopped."""
    resume_step: int | None = None
    """The checkpoint to continue from, instead of the newest; newer ones are removed."""
    recovery: bool = True
    """After divergence, go back to the last healthy state with a remedy; otherwise end the run."""


def quicken_small_networks_on_cpu() -> None:
    """Sets flags of XLA, before it starts, for many small matrix products on a CPU; existing flags stay.

    Splitting a product of 64 rows over threads costs more than it gains, and much of the time of a short
    run is compilation. experiments/RESULTS.md has the measured times with and without these flags.
    """
    if any(importlib.util.find_spec(name) for name in ACCELERATORS):
        return
    for name, value in SMALL_NETWORKS.items():
        os.environ.setdefault(name, value)


def publish_card(run: RunFolder, card: Mapping[str, Any], text: str) -> None:
    """Writes the card as JSON and as text, and prints the text and the folder."""
    run.write_json("card.json", card)
    run.write("card.md", text)
    print(f"{text}\nwritten to {run.path}")


def refuse_existing(name: str, path: Path, *, overwrite: bool) -> None:
    """Raises if the file or folder to write, set by the flag ``name``, exists, unless ``overwrite``."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another --{name}, or give --overwrite.")


def parse(
    config_type: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    base: Callable[[Config], Config] | None = None,
    default: Config | None = None,
    program: str | None = None,
) -> Config:
    """Parses the flags of a configuration dataclass; the docstrings of its fields are the help texts.

    Args:
      config_type: a frozen dataclass, groups of which are dataclasses.
      arguments: instead of ``sys.argv[1:]``.
      base: ``(first) -> default``: the defaults of a second parse, chosen from the result of a first parse of
        the same flags (the recipe of a run, the settings of an old run).
      default: the defaults of the first parse; those of ``config_type`` if None.
      program: the program name in the help text.

    Returns:
      The configuration.

    Raises:
      ValueError: if the path of a file or folder is empty.
      SystemExit: with status 2 after one line about flags that cannot be read; with 0 after the help text.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options: dict[str, Any] = {"args": arguments, "config": (tyro.conf.AvoidSubcommands,), "prog": program}
    if default is not None:
        options["default"] = default
    if base is not None:
        # Errors and the help text come from the second parse below, with the right defaults.
        known: dict[str, Any] = dict(options)
        known["args"] = [one for one in arguments if one not in ("--help", "-h")]
        with suppress(SystemExit), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            first, _ = tyro.cli(config_type, return_unknown_args=True, add_help=False, **known)
            options["default"] = base(first)
    with _one_line():
        config = tyro.cli(config_type, **options)
    if any(one == "" or one.endswith("=") for one in arguments):  # which pathlib reads as the folder "."
        for name, value in _settings(config):
            if value == Path(""):
                raise ValueError(f"{name}='': the path of a file or a folder is needed.")
    return config


@contextmanager
def _one_line() -> Iterator[None]:
    """Replaces the box in which tyro explains flags that cannot be read by one line."""
    printed = StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except SystemExit as stopped:
        if stopped.code in (None, 0):
            raise
        print(f"error: {_unboxed(printed.getvalue())}", file=sys.stderr)
        raise SystemExit(2) from None


def _unboxed(text: str) -> str:
    """What is wrong, the flags that may have been meant, and where the help is, out of tyro's box."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        words = line.strip(" │|")
        if words.startswith("╭") or not words.strip("─-╰╯ "):  # between two parts
            parts.append([])
        else:
            parts[-1].append(words)
    parts = [part for part in parts if part]
    if not text.lstrip().startswith("╭"):
        parts = parts[1:]  # without a box, the first part is the title
    said = []
    for first, *others in parts:
        if first.startswith("Perhaps you meant"):
            flags = [other.split()[0] for other in others if other.startswith("-")]
            said.append(f"Did you mean {' or '.join(dict.fromkeys(flags))}?")
        elif first.startswith("For full helptext"):
            said.append(f"{first.partition(', ')[2].partition(' ')[2]} shows all flags.")
        elif not first.startswith("Argument helptext"):
            sentence, _, _ = " ".join([first, *others]).partition(" Got errors:")
            said.append(sentence.rstrip(".") + ".")
    return " ".join(said)


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each setting."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def run_experiment(
    config_type: type[Config],
    main: Callable[[Config], Any],
    arguments: Sequence[str] | None = None,
    *,
    base: Callable[[Config], Config] | None = None,
    default: Config | None = None,
    small_networks: Callable[[Config], bool] = lambda config: False,
    program: str | None = None,
    folder: Callable[[Config], Path | None] = lambda config: getattr(config, "output", None),
) -> None:
    """Parses the flags of ``config_type`` (`parse`) and runs ``main``.

    Errors that a user can fix (a wrong argument, a missing file, a folder in use, divergence, no memory) are
    printed as one line on standard error, with exit status 2. SIGINT and SIGTERM end with status 130, and one
    line with what is kept and the command to go on. Set ``JAXEBM_TRACEBACK=1`` to see the whole traceback.

    Args:
      config_type: a frozen dataclass.
      main: the function to run.
      arguments: instead of ``sys.argv[1:]``.
      base: as in `parse`.
      default: as in `parse`.
      small_networks: whether to call `quicken_small_networks_on_cpu` for a configuration.
      program: the program name in the help text.
      folder: ``(config) -> path``, the folder that ``main`` writes, or None.
    """
    since = time.time()
    given = list(sys.argv[1:] if arguments is None else arguments)
    config = None
    with signals_as_interrupts():
        try:
            config = parse(config_type, given, base=base, default=default, program=program)
            if small_networks(config):
                quicken_small_networks_on_cpu()
            if hasattr(config, "seed"):
                checks.seed("seed", config.seed)  # type: ignore[attr-defined]
            if getattr(config, "resume_step", None) is not None and not getattr(config, "resume", False):
                raise ValueError("resume_step is the checkpoint to continue from: it needs resume=True.")
            with _alone(config, folder(config)):
                main(config)
        except KeyboardInterrupt as stopped:
            ignore_signals()
            written = isinstance(stopped, TrainingInterrupted) and "resume=True" in str(stopped)
            again, go_on = (command_to_go_on(program, given, flag) for flag in ("--overwrite", "--resume"))
            where = None if config is None else folder(config)
            said = _as_flags(str(stopped)) if written else what_is_kept(config, where, since, again, go_on)
            print(f"\n{said}", file=sys.stderr, flush=True)
            sys.exit(130)
        except ERRORS as error:
            if os.environ.get("JAXEBM_TRACEBACK") == "1":
                raise
            says_all = isinstance(error, DivergenceError | FloatingPointError | ValueError | OSError)
            kind = "" if says_all else f"{type(error).__name__}: "
            notes = [note for note in getattr(error, "__notes__", ()) if "JAX_TRACEBACK" not in note]
            said = " ".join([str(error), *notes]).split()
            message = _as_flags(" ".join(said))
            if config is not None and not hasattr(config, "resume"):
                message = message.replace(", then resume", ", then begin again with --overwrite")
            print(f"error: {kind}{message}", file=sys.stderr)
            sys.exit(2)


def _alone(config: Any, folder: Path | None) -> AbstractContextManager[None]:
    """The lock of an experiment's folder, taken after its settings were checked."""
    if not isinstance(config, RunFlags) or folder is None or not hasattr(config, "check"):
        return nullcontext()  # `jaxebm.recipes.train` and `evaluate_run` lock their own
    config.check()  # type: ignore[attr-defined]
    return only_writer(folder)


def _as_flags(message: str) -> str:
    """Replaces arguments of the library in a message by the flags that set them."""
    message = re.sub(r"resume_step=(\d+)", r"--resume --run.resume-step \1", message)
    message = message.replace("choose another output", "choose another --output")
    return message.replace("overwrite=True", "--overwrite").replace("resume=True", "--resume")
