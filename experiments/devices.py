"""Over how many devices and processes an experiment runs: its flags, and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxebm.training import Placement, RunFolder, initialize_distributed, make_placement, open_run

__all__ = ["DeviceFlags", "choose_generator", "join_processes", "open_shared_run", "place"]


@dataclass(frozen=True)
class DeviceFlags:
    """Where a run computes; its numbers depend on ``strata`` alone."""

    devices: int | None = None
    """Devices that share the chains, batches and buffer; 1, or with --distributed all of all processes."""
    strata: int | None = None
    """Blocks into which buffer, data and batches are divided, a multiple of --devices; as many by default.
    Runs of as many strata compute the same on any number of devices."""
    shard_parameters: bool = False
    """Split parameters, their average and the optimiser's state over the devices, too."""
    distributed: bool = False
    """Be one of several processes that train together, found by JAX itself (SLURM, TPU pods, Open MPI)."""
    coordinator: str | None = None
    """host:port of process 0, where nothing is found; with --processes and --process-id."""
    processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    generator: str = "auto"
    """Of random numbers: threefry2x32, rbg (fast on TPUs), or auto, which takes rbg on TPUs only."""


def join_processes(config: DeviceFlags) -> None:
    """Makes this process one of several, where the flags say so; before anything else of JAX.

    Raises:
      ValueError: if the flags about processes do not fit each other, or none are found.
    """
    named = (config.coordinator, config.processes, config.process_id)
    if not config.distributed:
        if any(value is not None for value in named):
            raise ValueError("--coordinator, --processes and --process-id need --distributed.")
        return
    initialize_distributed(*named)


def open_shared_run(
    output: Path, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
) -> RunFolder:
    """Opens a run's folder as `jaxebm.training.open_run` does, once, for all processes; it must be shared."""
    if jax.process_index() == 0:
        run = open_run(output, config, resume=resume, overwrite=overwrite)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the run's folder is open")
        return run
    multihost_utils.sync_global_devices("the run's folder is open")
    return open_run(output, config, resume=True)


def place(config: DeviceFlags) -> Placement | None:
    """Returns where the run's arrays live, or None for the one device that is the default.

    Raises:
      ValueError: if there are fewer devices, or the strata are no multiple of them.
    """
    devices = config.devices if config.distributed else config.devices or 1
    if devices == 1 and config.strata in (None, 1):
        return None
    return make_placement(devices, num_strata=config.strata, shard_parameters=config.shard_parameters)


def choose_generator(config: DeviceFlags) -> str:
    """Returns the implementation of `jax.random.key` that the flags ask for.

    Raises:
      ValueError: if there is none of that name.
    """
    known = ("auto", "threefry2x32", "rbg")
    if config.generator not in known:
        raise ValueError(f"generator={config.generator!r}: choose among {', '.join(known)}.")
    if config.generator != "auto":
        return config.generator
    return "rbg" if jax.default_backend() == "tpu" else "threefry2x32"
