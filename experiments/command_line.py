"""What every experiment's command line does: parse documented flags, end with one clear line on an error."""

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from jaxebm.training import DivergenceError, RunFolder, TrainingInterrupted, write_atomically

__all__ = [
    "ResumableFlags",
    "RunFlags",
    "as_json",
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
    """The checkpoint to go on from with --resume, instead of the newest; newer ones are removed."""
    recovery: bool = True
    """Take a run that diverges back to its last healthy state, with a remedy, and tell; or let it end."""


def as_json(config: Any) -> dict[str, Any]:
    """Returns a configuration dataclass as plain JSON values; paths become text."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
    }


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
    write_atomically(run.path / "card.md", text)
    print(f"{text}\nwritten to {run.path}")


def refuse_existing(name: str, path: Path, *, overwrite: bool) -> None:
    """Raises if what the flag ``name`` names, a file or folder to write, exists, unless ``overwrite``."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another --{name}, or give --overwrite.")


def run_experiment(
    config_type: type[Config],
    main: Callable[[Config], Any],
    arguments: list[str] | None = None,
    *,
    default: Config | None = None,
    small_networks: Callable[[Config], bool] = lambda config: False,
) -> None:
    """Parses the flags of ``config_type`` and runs ``main``.

    Errors that a user can mend (a wrong argument, a missing file, a folder in use, divergence) end as one
    line on standard error and exit status 2; an interrupt ends with status 130. Set ``JAXEBM_TRACEBACK=1`` to
    see the whole traceback.

    Args:
      config_type: a frozen dataclass; the docstrings of its fields are the help texts.
      main: the experiment.
      arguments: instead of ``sys.argv[1:]``.
      default: values of the flags that are not given; those of ``config_type`` itself if None.
      small_networks: whether a configuration wants `quicken_small_networks_on_cpu`.
    """
    settings = (tyro.conf.AvoidSubcommands,)
    if default is None:
        config = tyro.cli(config_type, args=arguments, config=settings)
    else:
        config = tyro.cli(config_type, args=arguments, default=default, config=settings)
    if small_networks(config):
        quicken_small_networks_on_cpu()
    try:
        if getattr(config, "resume_step", None) is not None and not getattr(config, "resume", False):
            raise ValueError("resume_step is the checkpoint to go on from: add --resume.")
        main(config)
    except TrainingInterrupted as stopped:
        print(f"\n{stopped}", file=sys.stderr)
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
        print(f"error: {kind}{error}", file=sys.stderr)
        sys.exit(2)
