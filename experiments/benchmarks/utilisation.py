"""Utilisation of the device by a Langevin chain on a wide residual network, relative to its peak.

    python experiments/benchmark.py --only utilisation                      # WRN-28-10, bfloat16, on a GPU
    python experiments/benchmark.py --only utilisation --wide.profile /tmp/trace
    python experiments/benchmark.py --only utilisation --wide.depth 10 --wide.width 1 --wide.batch-size 8
        --wide.matrix-size 1024 --wide.copy-megabytes 64                    # on a CPU

First the device is measured: the largest rate of a bare product of two square matrices in the data type of
the chain, and of copying. Then the chain, and the same number of bare gradients. The operations of the model
are counted from its shapes, two for each multiplication and addition: those of the forward pass, and the same
number for the gradient with respect to the image. Additions of the compiler are not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies import WideResNet, marginal_energy
from jaxebm.report.markdown import markdown_table
from jaxebm.samplers import run_chains, sgld
from jaxebm.types import Array, LogitsFn, Params

__all__ = ["WideSizes", "as_markdown", "count_operations", "measure_utilisation", "seconds_of"]

WANTED = 0.5


@dataclass(frozen=True)
class WideSizes:
    """Sizes of the network, its chains, and the measurement of the device."""

    depth: int = 28
    """Layers of the network, 6n + 4."""
    width: int = 10
    """Widening factor of the network."""
    batch_size: int = 128
    """Chains."""
    sampler_steps: int = 20
    """Steps of SGLD."""
    pixels: int = 32
    """Height and width of an image, of three channels."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the network; energies, positions and noise are float32."""
    matrix_size: int = 8192
    """Rows and columns of the matrix product for the peak."""
    copy_megabytes: int = 1024
    """Size of the array that is copied for the bandwidth."""
    profile: Path | None = None
    """Folder for a trace of one chain, for ui.perfetto.dev."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        names = "depth width batch_size sampler_steps pixels matrix_size copy_megabytes"
        for name in names.split():
            checks.positive_integer(name, getattr(self, name))


class _Compiled(NamedTuple):
    program: Any
    seconds: float


def _compile(function: Callable[..., Any], *arguments: Any) -> _Compiled:
    started = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return _Compiled(program, time.perf_counter() - started)


def seconds_of(run: Callable[[], Any], rounds: int) -> list[float]:
    """Returns the time of each of some calls, after a first that is not timed."""
    jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - started)
    return times


def matrix_peak(size: int, dtype: str, rounds: int) -> float:
    """Returns the largest rate of a bare product, in operations per second."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.float32).astype(dtype) for key in keys)
    length = 10  # products per call, so that its overhead is negligible

    @jax.jit
    def products(a: Array, b: Array) -> Array:
        # Scaled, or ten of them would overflow; the factor is fused into the product.
        step: Any = lambda at, _: ((a @ at) * jnp.asarray(size**-0.5, a.dtype), None)  # noqa: E731
        return jax.lax.scan(step, b, length=length)[0]

    return 2.0 * size**3 * length / min(seconds_of(partial(products, a, b), rounds))


def bandwidth(megabytes: int, rounds: int) -> float:
    """Returns the largest rate of reading an array and writing another, in bytes per second."""
    x = jnp.ones(megabytes * 2**18, jnp.float32)
    return 2.0 * x.nbytes / min(seconds_of(partial(jax.jit(lambda x: x + 1), x), rounds))


def count_operations(params: Params, pixels: int) -> int:
    """Operations of one forward pass of `WideResNet` for one image: convolutions and the last layer.

    Args:
      params: the network's variables.
      pixels: height and width of the image.

    Returns:
      2 x the multiplications.
    """
    layers = params["params"]
    total = 2 * layers["output"]["kernel"].size
    for name, layer in layers.items():
        if layer.get("kernel") is None or layer["kernel"].ndim != 4:
            continue
        group = int(name.split("_")[1]) if name.startswith("group") else 0
        side = -(-pixels // 2**group)
        total += 2 * layer["kernel"].size * side**2
    return int(total)


def measure_utilisation(sizes: WideSizes, *, rounds: int, seed: int = 0) -> dict[str, Any]:
    """Measures the device, the chain and its bare gradients.

    Args:
      sizes: of everything.
      rounds: calls of each.
      seed: of weights, positions and noise.

    Returns:
      Plain values for JSON: ``peak`` (operations per second), ``bandwidth`` (bytes per second),
      ``operations`` and ``bytes`` of one step of all chains, and for ``chain`` and ``gradients`` their
      seconds per step, the fractions of peak and bandwidth, and temporary memory in bytes.
    """
    sizes.check()
    network = WideResNet(10, depth=sizes.depth, width=sizes.width, dtype=jnp.dtype(sizes.dtype))
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (sizes.pixels, sizes.pixels, 3)
    params = jax.jit(network.init)(keys[0], jnp.zeros(shape))
    positions = jax.random.uniform(keys[1], (sizes.batch_size, *shape), minval=-1.0)
    energy = marginal_energy(cast(LogitsFn, network.apply))
    slopes = jax.vmap(jax.grad(energy, argnums=1), (None, 0))

    def chain(params: Params, rng_key: Array, x: Array) -> Array:
        kernel = sgld(partial(energy, params), step_size=1.0, noise_scale=0.01)
        return run_chains(rng_key, kernel, x, sizes.sampler_steps)[0].position

    def descend(params: Params, x: Array) -> Array:
        return x - slopes(params, x)

    # One step by itself, called over and over: the compiler's count of a loop has its body once.
    one_step = _compile(descend, params, positions)

    def gradients() -> Array:
        x = positions
        for _ in range(sizes.sampler_steps):
            x = one_step.program(params, x)
        return x

    whole_chain = _compile(chain, params, keys[2], positions)
    run_chain = partial(whole_chain.program, params, keys[2], positions)
    cost = one_step.program.cost_analysis() or {}
    found: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "dtype": sizes.dtype,
        "peak": matrix_peak(sizes.matrix_size, sizes.dtype, rounds),
        "bandwidth": bandwidth(sizes.copy_megabytes, rounds),
        "operations": 2 * sizes.batch_size * count_operations(params, sizes.pixels),
        "compiled_operations": float(cost.get("flops", float("nan"))),
        "bytes": float(cost.get("bytes accessed", float("nan"))),
        "wanted": WANTED,
    }
    for name, compiled, run in (("chain", whole_chain, run_chain), ("gradients", one_step, gradients)):
        seconds = float(np.median(seconds_of(run, rounds))) / sizes.sampler_steps
        memory = compiled.program.memory_analysis()
        found[name] = {
            "seconds": seconds,
            "compile_seconds": compiled.seconds,
            "of_peak": found["operations"] / seconds / found["peak"],
            "of_bandwidth": found["bytes"] / seconds / found["bandwidth"],
            "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        }
    if sizes.profile is not None:
        with jax.profiler.trace(str(sizes.profile), create_perfetto_trace=True):
            jax.block_until_ready(run_chain())
    return found


def as_markdown(found: dict[str, Any]) -> str:
    """Returns what was measured for a reader."""
    lines = [
        f"{found['device']}, {found['dtype']}: peak of a bare product {found['peak'] / 1e12:.3g} TFLOP/s, "
        f"copying {found['bandwidth'] / 1e9:.3g} GB/s. A step: {found['operations'] / 1e12:.3g} TFLOP by the "
        f"model's shapes ({found['compiled_operations'] / 1e12:.3g} as compiled), "
        f"{found['bytes'] / 1e9:.3g} GB by the compiler's count.",
        "",
    ]
    header = ("a step of all chains", "ms", "TFLOP/s", "of the peak", "of the bandwidth", "temporary MB")
    rows = []
    for name, title in (("chain", "SGLD"), ("gradients", "bare gradients")):
        row = found[name]
        memory = "" if row["temporary_bytes"] is None else f"{row['temporary_bytes'] / 2**20:.3g}"
        rows.append(
            (
                title,
                f"{1000 * row['seconds']:.3g}",
                f"{found['operations'] / row['seconds'] / 1e12:.3g}",
                f"{row['of_peak']:.1%}",
                f"{row['of_bandwidth']:.1%}",
                memory,
                f"{row['compile_seconds']:.3g}",
            )
        )
    lines += markdown_table((*header, "compiled in s"), rows)
    wanted = f"Goal on an accelerator: {found['wanted']:.0%} of the peak"
    if found["platform"] == "cpu":
        lines += ["", f"{wanted}; this is a CPU."]
    else:
        lines += ["", f"{wanted}: {'met' if found['chain']['of_peak'] >= found['wanted'] else 'missed'}."]
    return "\n".join(lines)
