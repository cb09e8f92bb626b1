"""Settings that every test runs under."""

import os
from importlib.metadata import version

# Before JAX starts. Tests run on the CPU, in as many processes as there are cores: one thread each. Most of
# their time is compilation of programs that run for milliseconds, so XLA optimises less. The CPU poses as
# 8 devices, for tests/training/test_placement.py; the first of them runs all else, at no cost that shows.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_force_host_platform_device_count=8"
    # The older code generator takes two thirds of the time for the small programs of tests. Only where it is
    # known to exist: XLA stops at a flag that it does not know.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import builtins
import contextlib
import ctypes
import gc
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

MEMORY_LIMIT = 2000
"""Megabytes. JAX keeps every program that it compiled, 4.2 GB over the suite: at the end of a file with more
than this, all are dropped. Tests of one file share their programs, those of different files hardly any."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Silent broadcasting between ranks hides bugs: (n,) against (n, 1) gives (n, n).

    No fixture, which would come after those of modules: programs are compiled anew under another setting.
    """
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The examples in the source and the pages run as a reader would run them."""
    jax.config.update("jax_numpy_rank_promotion", "allow")
    if (nextitem is None or nextitem.path != item.path) and _resident_megabytes() > MEMORY_LIMIT:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(
            OSError, AttributeError
        ):  # glibc alone keeps what was freed, and can give it back
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident_megabytes() -> float:
    """The memory of this process; 0 where /proc does not tell it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def hide_package(monkeypatch):
    """Returns a function: from its call on, imports of that package fail as if it were not installed."""
    original_import = builtins.__import__

    def hide(package):
        def import_without(module, *arguments, **options):
            if module.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named '{package}'")
            return original_import(module, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", import_without)

    return hide


@pytest.fixture(scope="module")
def cheap_compilation():
    """Compiles without XLA's optimisations: where each program runs once, they cost more than they save."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def programs_folder(tmp_path_factory):
    """A folder for compiled programs that all workers share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return str(folder / "programs")


@pytest.fixture(scope="module")
def kept_programs(programs_folder):
    """Programs are kept on disk: what a run has compiled, its resumption and other tests read back."""
    settings = {
        "jax_compilation_cache_dir": programs_folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it looks at its settings once
        if values is settings:
            yield
