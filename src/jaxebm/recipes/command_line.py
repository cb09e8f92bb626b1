"""What every experiment's command line does: parse documented flags, end with one clear line on an error."""

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
    """What every run that fills a folder takes; an experiment adds ``output`` and its own."""

    overwrite: bool = False
    """Replace the run in the folder."""
    progress: bool = True
    """Show how far it is (lines of text where there is no terminal)."""
    seed: int = 0
    """Of everything that is drawn: weights, batches, chains. The splits of data sets never change."""


@dataclass(frozen=True)
class ResumableFlags(RunFlags):
    """Those of a run that writes checkpoints."""

    resume: bool = False
    """Go on with the run in the folder, bit for bit as if it had never stopped."""
    resume_step: int | None = None
    """The checkpoint to go on from when a run is resumed, instead of the newest; newer ones are removed."""
    recovery: bool = True
    """Take a run that diverges back to its last healthy state, with a remedy, and tell; or let it end."""


def quicken_small_networks_on_cpu() -> None:
    """Sets XLA, before it starts, to what suits many small products on a CPU; a user's own settings stay.

    Splitting a product of 64 rows over threads costs more than it gains, and much of a short run is
    compilation. experiments/RESULTS.md has the measured times with and without.
    """
    if any(importlib.util.find_spec(name) for name in ACCELERATORS):
        return
    for name, value in SMALL_NETWORKS.items():
        os.environ.setdefault(name, value)


def publish_card(run: RunFolder, card: Mapping[str, Any], text: str) -> None:
    """Writes the card for machines and for readers, and prints the latter and where they are."""
    run.write_json("card.json", card)
    run.write("card.md", text)
    print(f"{text}\nwritten to {run.path}")


def refuse_existing(name: str, path: Path, *, overwrite: bool) -> None:
    """Raises if what the flag ``name`` names, a file or folder to write, exists, unless ``overwrite``."""
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
      base: ``(first) -> default``: what the flags then change, chosen by what a first reading of the same
        flags gives (the recipe of a run, the settings of an old one).
      default: values of flags that are not given in the first reading; those of ``config_type`` if None.
      program: its name in the help text.

    Returns:
      The configuration.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options: dict[str, Any] = {"args": arguments, "config": (tyro.conf.AvoidSubcommands,), "prog": program}
    if default is not None:
        options["default"] = default
    if base is not None:
        # What is wrong with the flags is told by the reading below; so is the help, with the right defaults.
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

    Errors that a user can mend (a wrong argument, a missing file, a folder in use, divergence) end as one
    line on standard error and exit status 2; an interrupt ends with status 130. Set ``JAXEBM_TRACEBACK=1`` to
    see the whole traceback.

    Args:
      config_type: a frozen dataclass.
      main: what is run.
      arguments: instead of ``sys.argv[1:]``.
      base: as in `parse`.
      default: as in `parse`.
      small_networks: whether a configuration wants `quicken_small_networks_on_cpu`.
      program: its name in the help text.
    """
    config = parse(config_type, arguments, base=base, default=default, program=program)
    if small_networks(config):
        quicken_small_networks_on_cpu()
    try:
        if getattr(config, "resume_step", None) is not None and not getattr(config, "resume", False):
            raise ValueError("resume_step is the checkpoint to go on from: it needs resume=True.")
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
    """Arguments of the library that a message names, as the flags that set them."""
    return message.replace("overwrite=True", "--overwrite").replace("resume=True", "--resume")
