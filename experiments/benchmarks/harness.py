"""Timing of several implementations of one computation: same inputs, equal results, in turn, as ratios.

    from benchmarks.harness import Contender, Workload, check_agreement, compete

Contenders (implementations) are timed in turn, in an order that is reversed every round, and compared by the
ratio of their times within a round, so that a temporary load of the machine affects all of them.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxebm.report.markdown import markdown_table

__all__ = [
    "Aim",
    "Contender",
    "Workload",
    "aims_table",
    "check_agreement",
    "compete",
    "compiled_peer",
    "count_compilations",
    "describe_machine",
    "heading",
    "judge",
    "peer",
    "set_threads",
    "tables",
]

THREAD_VARIABLES = ("PJRT_NPROC", "XLA_FLAGS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Contender(NamedTuple):
    """One way to compute a workload.

    Attributes:
      name: name of its row.
      run: computes everything and returns the result; None if a package is missing.
      items: number by which the time of a call is divided.
      agrees: whether the result must equal those of the others, in the items that both have.
      note: the missing package.
    """

    name: str
    run: Callable[[], Any] | None
    items: int = 1
    agrees: bool = True
    note: str = ""


class Workload(NamedTuple):
    """A computation that is timed.

    Attributes:
      title: title of its table.
      contenders: the implementations; ratios are to the time of the first, which must not be missing.
      item: name of the item that a time is for.
      tolerance: tolerated difference between results, relative to their largest number.
      speed: whether ratios are of speeds ("times as fast") instead of times ("times as long").
    """

    title: str
    contenders: Sequence[Contender]
    item: str = "call"
    tolerance: float = 1e-4
    speed: bool = False


def peer(name: str, packages: str, make: Callable[[], Callable[[], Any]], **options: Any) -> Contender:
    """Returns a contender that needs a package, or one that names the missing package."""
    try:
        return Contender(name, make(), **options)
    except ModuleNotFoundError as missing:
        return Contender(name, None, note=f"{missing.name} is not installed: pip install {packages}")


def compiled_peer(name: str, make: Callable[[], Callable[[], Any]], **options: Any) -> Contender:
    """Returns a contender of ``torch.compile`` after its first call, or one with the reason of a failure."""
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    contender = peer(name, "torch", make, **options)
    if contender.run is None:
        return contender
    if not any(map(shutil.which, compilers)):
        return Contender(name, None, note=f"no C++ compiler ({' or '.join(compilers)}) is on the path")
    started = time.perf_counter()
    try:
        contender.run()
    except RuntimeError as failure:  # the base class of all errors of Dynamo and Inductor
        first_line = str(failure).strip().splitlines()[0]
        return Contender(name, None, note=f"it could not be built: {type(failure).__name__}: {first_line}")
    return contender._replace(note=f"first call {time.perf_counter() - started:.0f} s")


def check_agreement(workload: Workload) -> None:
    """Runs every contender and raises ``RuntimeError`` if results that must agree do not."""
    expected: list[np.ndarray] = []
    for contender in workload.contenders:
        if contender.run is None:
            continue
        result = [np.asarray(leaf) for leaf in jax.tree.leaves(contender.run())]
        if not contender.agrees:
            continue
        expected = expected or result
        allowed = workload.tolerance * max(float(np.max(np.abs(leaf))) for leaf in expected)
        for first, other in zip(expected, result, strict=True):
            items = min(len(first), len(other))
            error = float(np.max(np.abs(first[:items] - other[:items])))
            if not error <= allowed:
                raise RuntimeError(
                    f"{workload.title}: the result of {contender.name!r} differs from the others' by "
                    f"{error:.3g}, more than {allowed:.3g}."
                )


def _seconds_an_item(contender: Contender, at_least: float, clock: Callable[[], float]) -> float:
    assert contender.run is not None
    jax.block_until_ready(contender.run())  # Warm-up of caches and threads.
    calls, started = 0, clock()
    while calls == 0 or clock() - started < at_least:
        jax.block_until_ready(contender.run())
        calls += 1
    return (clock() - started) / calls / contender.items


def compete(
    workload: Workload, rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Times the contenders in turns.

    Args:
      workload: the computation, compiled and compared by `check_agreement`.
      rounds: number of rounds; each times every contender once.
      seconds: duration of the repeated calls in a round; at least one call is made.
      clock: what tells the time in seconds.

    Returns:
      Plain values for JSON: for each contender its times of all rounds and their median in seconds per item,
      and the median and range over rounds of their ratio to the first contender's (or, for a workload of
      ``speed``, of the first one's to theirs).
    """
    present = [contender for contender in workload.contenders if contender.run is not None]
    times = {contender.name: np.zeros(rounds) for contender in present}
    for number in range(rounds):
        for contender in present[:: -1 if number % 2 else 1]:
            times[contender.name][number] = _seconds_an_item(contender, seconds, clock)
    rows: dict[str, Any] = {one.name: {"missing": one.note} for one in workload.contenders}
    for name, values in times.items():
        ratios = values / times[present[0].name]
        if workload.speed:
            ratios = 1 / ratios
        rows[name] = {
            "seconds": float(np.median(values)),
            "ratio": float(np.median(ratios)),
            "ratio_range": [float(ratios.min()), float(ratios.max())],
            "rounds": values.tolist(),
        }
    for one in present:
        if one.note:
            rows[one.name]["note"] = one.note
    return {"title": workload.title, "item": workload.item, "speed": workload.speed, "contenders": rows}


def count_compilations(run: Callable[[], Any]) -> int:
    """Returns how many programs XLA compiles during a call."""
    count = 0

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal count
        del duration_secs, kwargs
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(run())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return count


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Returns the environment of the timing: processor, threads, versions of packages (None if missing)."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), processor)
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    threads: dict[str, Any] = {"cores": os.cpu_count()}
    if versions.get("torch"):
        import torch  # pyright: ignore[reportMissingImports]

        threads["torch"] = torch.get_num_threads()
    threads |= {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    device = jax.devices()[0].device_kind
    return {"processor": processor, "jax_device": device, "threads": threads, "versions": versions}


class Aim(NamedTuple):
    """A goal for the ratio of two times.

    Attributes:
      wanted: description of the goal.
      workload: key of the workload in the results.
      numerator: the row whose time is divided,
      denominator: the row by whose time it is divided, round by round.
      limit: limit of the median over the rounds.
      at_least: whether the limit is a lower bound instead of an upper bound.
    """

    wanted: str
    workload: str
    numerator: str
    denominator: str
    limit: float
    at_least: bool = False


def judge(aims: Sequence[Aim], results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares goals with the measurements of `compete` in this run.

    Args:
      aims: the goals; those of workloads that did not run are left out.
      results: results of `compete`, by key.

    Returns:
      For each goal its description, its limit, the median ratio and its range, and whether it is met; None
      if a row is missing.
    """
    judged = []
    for aim in aims:
        if aim.workload not in results:
            continue
        rows = results[aim.workload]["contenders"]
        times = [rows.get(name, {}).get("rounds") for name in (aim.numerator, aim.denominator)]
        found: dict[str, Any] = {"wanted": aim.wanted, "limit": aim.limit, "at_least": aim.at_least}
        found |= {"ratio": None, "ratio_range": None, "met": None}
        if all(times):
            ratios = np.divide(*times)
            ratio = float(np.median(ratios))
            found["ratio"], found["ratio_range"] = ratio, [float(ratios.min()), float(ratios.max())]
            found["met"] = ratio >= aim.limit if aim.at_least else ratio <= aim.limit
        judged.append(found)
    return judged


def aims_table(judged: Sequence[dict[str, Any]]) -> str:
    """Returns the results of `judge` as a Markdown table."""
    rows = []
    for found in judged:
        cells = ["not measured", "", ""]
        if found["ratio"] is not None:
            low, high = found["ratio_range"]
            cells = [
                f"{found['ratio']:.3g}",
                f"{low:.3g} to {high:.3g}",
                "met" if found["met"] else "missed",
            ]
        rows.append((found["wanted"], *cells))
    return "\n".join(markdown_table(("goal", "measured", "over the rounds", ""), rows))


def set_threads(count: int) -> None:
    """Gives JAX, PyTorch and BLAS this many threads each; has an effect only before JAX has started."""
    for name in ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)


def heading(card: Mapping[str, Any]) -> str:
    """Returns the machine, threads, versions and load of the measurement of a card, in one paragraph."""
    machine, (before, after) = card["machine"], card["load"]
    versions = ", ".join(f"{name} {number or 'missing'}" for name, number in machine["versions"].items())
    threads = ", ".join(f"{name} {number}" for name, number in machine["threads"].items())
    return (
        f"{machine['processor']}, JAX on {machine['jax_device']}; threads: {threads}; {versions}; "
        f"load {before:.1f} before and {after:.1f} after; {card['config']['rounds']} rounds."
    )


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Returns the results of `compete` as Markdown tables."""
    lines = []
    for result in results:
        ratio = "times as fast" if result["speed"] else "times as long"
        header, rows = (result["title"], f"ms per {result['item']}", ratio, "over the rounds"), []
        for name, row in result["contenders"].items():
            cells = [row.get("missing", ""), "", ""]
            if "seconds" in row:
                low, high = row["ratio_range"]
                cells = [f"{1000 * row['seconds']:.3g}", f"{row['ratio']:.3g}", f"{low:.3g} to {high:.3g}"]
            rows.append((name, *cells))
        lines += [*markdown_table(header, rows), ""]
    return "\n".join(lines)
