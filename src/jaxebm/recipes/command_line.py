"""The command line of every experiment: parses documented flags, ends with one clear line on an error."""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import tyro

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
    return tyro.cli(config_type, **options)


def run_experiment(
    config_type: type[Config],
    main: Callable[[Config], Any],
    arguments: Sequence[str] | None = None,
    *,
    base: Callable[[Config], Config] | None = None,
    default: Config | None = None,
    small_networks: Callable[[Config], bool] = lambda config: False,
    program: str | None = None,
) -> None:
    """Parses the flags of ``config_type`` (`parse`) and runs ``main``.

    Errors that a user can fix (a wrong argument, a missing file, a folder in use, divergence) are printed as
    one line on standard error, with exit status 2; an interrupt ends with status 130. Set
    ``JAXEBM_TRACEBACK=1`` to see the whole traceback.

    Args:
      config_type: a frozen dataclass.
      main: the function to run.
      arguments: instead of ``sys.argv[1:]``.
      base: as in `parse`.
      default: as in `parse`.
      small_networks: whether to call `quicken_small_networks_on_cpu` for a configuration.
      program: the program name in the help text.
    """
    config = parse(config_type, arguments, base=base, default=default, program=program)
    if small_networks(config):
        quicken_small_networks_on_cpu()
    try:
        if getattr(config, "resume_step", None) is not None and not getattr(config, "resume", False):
            raise ValueError("resume_step is the checkpoint to continue from: it needs resume=True.")
        main(config)
    except TrainingInterrupted as stopped:
        print(f"\n{_as_flags(str(stopped))}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        again = "what was done up to the last checkpoint can be resumed with --resume."
        if not hasattr(config, "resume"):
            again = "start it again with --overwrite."
        print(f"\ninterrupted; {again}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        # RuntimeError covers DivergenceError, DatasetNotAvailableError and JAX's own out-of-memory errors.
        if os.environ.get("JAXEBM_TRACEBACK") == "1":
            raise
        says_all = isinstance(error, DivergenceError | FloatingPointError | ValueError | OSError)
        kind = "" if says_all else f"{type(error).__name__}: "
        print(f"error: {kind}{_as_flags(str(error))}", file=sys.stderr)
        sys.exit(2)


def _as_flags(message: str) -> str:
    """Replaces arguments of the library in a message by the flags that set them."""
    return message.replace("overwrite=True", "--overwrite").replace("resume=True", "--resume")
