"""Scaling of SGLD on images: seconds, samples per second and memory against chains, steps, width, devices.

Each curve changes one number and keeps the others. Devices are virtual devices of the CPU, each point in its
own process. They share the cores: the curve shows how the work is divided (operations per device,
collectives), not a speed-up.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.utilisation import seconds_of
from jaxebm import checks
from jaxebm.energies import ConvNet
from jaxebm.report.figures import ACCENT, INK, drawing
from jaxebm.report.markdown import markdown_table
from jaxebm.samplers import run_chains, sgld
from jaxebm.types import Array, EnergyFn, Params

__all__ = ["CURVES", "CurveSizes", "Point", "as_markdown", "draw", "measure_curve", "measure_point"]

COLLECTIVES = re.compile(
    r"\s(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
CURVES = ("chains", "steps", "width", "devices")


@dataclass(frozen=True)
class Point:
    """One program: ``chains`` chains of ``steps`` steps, on ``devices`` devices."""

    chains: int = 128
    steps: int = 60
    width: int = 64
    """Channels of the network's first level; the second has twice as many."""
    devices: int = 1
    pixels: int = 28
    """Height and width of an image, of one channel."""


@dataclass(frozen=True)
class CurveSizes:
    """The points of the curves."""

    chains: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    """Numbers of chains."""
    steps: tuple[int, ...] = (15, 30, 60, 120, 240)
    """Numbers of steps."""
    width: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers of channels."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of virtual devices."""
    at: Point = Point()
    """The program that each curve changes in one number."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        for name in CURVES:
            for value in getattr(self, name):
                checks.positive_integer(name, value)
        for name, value in asdict(self.at).items():
            checks.positive_integer(f"at.{name}", value)
        for devices in self.devices:
            if self.at.chains % devices:
                raise ValueError(f"devices={devices}: at.chains={self.at.chains} must be a multiple of it.")


def measure_point(point: Point, *, rounds: int, seed: int = 0) -> dict[str, Any]:
    """Compiles and times one program.

    Args:
      point: the program; with several devices, chains and their keys are divided among the first ones.
      rounds: calls that are timed.
      seed: of weights, positions and noise.

    Returns:
      Plain values: the point's own, ``seconds`` of a call (the median), ``samples_per_second`` (chains run to
      their end), ``compile_seconds``, ``peak_bytes`` of a device (arguments, results and temporaries),
      ``temporary_bytes``, ``operations`` of one step on one device, and the number of ``collectives``.
    """
    network = ConvNet(None, channels=(point.width, 2 * point.width))
    energy = cast(EnergyFn, network.apply)
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (point.pixels, point.pixels, 1)
    params = jax.jit(network.init)(keys[0], jnp.zeros(shape))
    positions = jax.random.uniform(keys[1], (point.chains, *shape), minval=-1.0)
    chain_keys = jax.random.split(keys[2], point.chains)
    mesh = Mesh(np.array(jax.devices()[: point.devices]), ("shards",))
    chain_keys, positions = jax.device_put(
        (chain_keys, positions), NamedSharding(mesh, PartitionSpec("shards"))
    )
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    def chain(params: Params, chain_keys: Array, x: Array) -> Array:
        kernel = sgld(partial(energy, params), step_size=0.01)
        return run_chains(chain_keys, kernel, x, point.steps)[0].position

    started = time.perf_counter()
    compiled = jax.jit(chain).lower(params, chain_keys, positions).compile()
    compile_seconds = time.perf_counter() - started
    seconds = float(np.median(seconds_of(partial(compiled, params, chain_keys, positions), rounds)))
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return asdict(point) | {
        "seconds": seconds,
        "samples_per_second": point.chains / seconds,
        "compile_seconds": compile_seconds,
        "peak_bytes": peak,
        "temporary_bytes": memory.temp_size_in_bytes,
        "operations": float(cost.get("flops", float("nan"))),
        "collectives": len(COLLECTIVES.findall(compiled.as_text() or "")),
    }


def _in_a_process_of_its_own(point: Point, rounds: int, seed: int) -> dict[str, Any]:
    """Measures a point in a new process, because virtual devices must be set before JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={point.devices}"
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    task = json.dumps({"point": asdict(point), "rounds": rounds, "seed": seed})
    command = [sys.executable, "-m", "benchmarks.curves", task]
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{point.devices} virtual devices: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_curve(name: str, sizes: CurveSizes, *, rounds: int, seed: int = 0) -> list[dict[str, Any]]:
    """Measures the points of one curve.

    Args:
      name: one of `CURVES`.
      sizes: where.
      rounds: calls of each point.
      seed: of weights, positions and noise.

    Returns:
      `measure_point`'s for every value.

    Raises:
      RuntimeError: if a process with virtual devices fails.
    """
    points = [replace(sizes.at, **{name: value}) for value in getattr(sizes, name)]
    if name == "devices":
        return [_in_a_process_of_its_own(point, rounds, seed) for point in points]
    return [measure_point(point, rounds=rounds, seed=seed) for point in points]


COLUMNS = (
    "s per call",
    "samples per second",
    "peak MB per device",
    "temporary MB",
    "MFLOP per step and device",
    "collectives",
    "compiled in s",
)


def as_markdown(curves: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Returns the curves as tables."""
    lines = []
    for name, points in curves.items():
        header = (name, *COLUMNS)
        rows = [
            (
                f"{point[name]}",
                f"{point['seconds']:.3g}",
                f"{point['samples_per_second']:.3g}",
                f"{point['peak_bytes'] / 2**20:.3g}",
                f"{point['temporary_bytes'] / 2**20:.3g}",
                f"{point['operations'] / 1e6:.4g}",
                f"{point['collectives']}",
                f"{point['compile_seconds']:.2g}",
            )
            for point in points
        ]
        lines += [*markdown_table(header, rows), ""]
    if "devices" in curves:
        lines += [
            f"The devices are virtual and share {os.cpu_count()} cores: only their work is divided.",
            "",
        ]
    return "\n".join(lines)


def draw(path: Path, curves: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Draws the curves, one column each, on logarithmic axes."""
    rows = {
        "seconds per call": lambda point: point["seconds"],
        "samples per second": lambda point: point["samples_per_second"],
        "peak MB per device": lambda point: point["peak_bytes"] / 2**20,
        "MFLOP per step and device": lambda point: point["operations"] / 1e6,
    }
    size = (3.0 * len(curves), 2.2 * len(rows))
    with drawing(path, len(rows), len(curves), figsize=size, sharex="col", sharey="row") as (figure, panels):
        for column, (name, points) in zip(panels.T, curves.items(), strict=True):
            values = [point[name] for point in points]
            for axis, (label, read) in zip(column, rows.items(), strict=True):
                axis.plot(values, [read(point) for point in points], "o-", color=ACCENT, markersize=4)
                axis.set_xscale("log", base=2)
                axis.set_yscale("log", base=10)
                axis.set_xticks(values, [str(value) for value in values])
                axis.minorticks_off()
                axis.grid(color=INK, alpha=0.1)
                axis.set_ylabel(label if axis in panels[:, 0] else "")
            column[0].set_title("virtual devices" if name == "devices" else name)
        figure.tight_layout()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure_point(Point(**asked["point"]), rounds=asked["rounds"], seed=asked["seed"])))
