"""Devices and processes of a run: the settings, and the placement that they define."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxebm.training import Placement, RunFolder, initialize_distributed, make_placement, open_run

__all__ = ["ParallelConfig", "choose_generator", "join_processes", "open_shared_run", "place"]


GENERATORS = ("auto", "threefry2x32", "rbg")
"""The known random number generators."""


@dataclass(frozen=True)
class ParallelConfig:
    """Settings for many devices and processes; the numbers of a run depend on ``strata`` alone."""

    strata: int | None = None
    """Blocks of buffer, data and batches, a multiple of the devices; fixes the numbers of a run."""
    shard_parameters: bool = False
    """Also split parameters, their average and the optimiser state over the devices."""
    distributed: bool = False
    """Train with several processes, which JAX detects (SLURM, TPU pods, Open MPI)."""
    coordinator: str | None = None
    """host:port of process 0, if JAX detects no cluster; needs processes and process-id."""
    processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    generator: str = "auto"
    """Random number generator: threefry2x32, rbg (fast on TPUs), or auto (rbg on TPUs only)."""


def join_processes(parallel: ParallelConfig) -> None:
    """Makes this process one of several if the settings say so; call it before other functions of JAX.

    Raises:
      ValueError: if the settings about processes do not fit each other, or none are found.
    """
    named = (parallel.coordinator, parallel.processes, parallel.process_id)
    if not parallel.distributed:
        if any(value is not None for value in named):
            raise ValueError(
                "parallel.coordinator, processes and process_id are for parallel.distributed=True."
            )
        return
    initialize_distributed(*named)


def open_shared_run(
    output: Path,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    uncompared: frozenset[str] = frozenset(),
) -> RunFolder:
    """Opens a run's folder with `jaxebm.training.open_run`, once for all processes, which must share it."""
    open_folder = partial(open_run, output, config, uncompared=uncompared)
    if jax.process_index() == 0:
        run = open_folder(resume=resume, overwrite=overwrite)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the run's folder is open")
        return run
    multihost_utils.sync_global_devices("the run's folder is open")
    return open_folder(resume=True)


def place(devices: int | None, parallel: ParallelConfig) -> Placement | None:
    """Returns the placement of the run's arrays, or None for the single default device.

    Raises:
      ValueError: if there are fewer devices, or the strata are not a multiple of their number.
    """
    devices = devices if parallel.distributed else devices or 1
    if devices == 1 and parallel.strata in (None, 1):
        return None
    return make_placement(devices, num_strata=parallel.strata, shard_parameters=parallel.shard_parameters)


def choose_generator(parallel: ParallelConfig) -> str:
    """Returns the implementation of `jax.random.key` that the settings ask for.

    Raises:
      ValueError: if the name is unknown.
    """
    known = GENERATORS
    if parallel.generator not in known:
        raise ValueError(f"parallel.generator={parallel.generator!r}: choose among {', '.join(known)}.")
    if parallel.generator != "auto":
        return parallel.generator
    return "rbg" if jax.default_backend() == "tpu" else "threefry2x32"
