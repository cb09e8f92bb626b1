"""People import the samplers into other JAX code: that must not pull in what only experiments need."""

import subprocess
import sys
from importlib.metadata import version

import jaxebm

PACKAGES = (
    "samplers",
    "energies",
    "hopfield",
    "objectives",
    "evaluation",
    "training",
    "data",
    "report",
    "recipes",
)
IMPORTS = "import sys, jaxebm, " + ", ".join(f"jaxebm.{name}" for name in PACKAGES)
EXPERIMENTS_EXTRA = {
    "tensorflow_datasets",
    "tensorflow",
    "sklearn",
    "matplotlib",
    "tyro",
    "tqdm",
    "PIL",
    "array_record",
    "tabulate",
    "markdown_it",
}


def printed_by_a_fresh_interpreter(expression: str) -> str:
    program = f"{IMPORTS}\nprint({expression})"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_a_fresh_interpreter_loads_nothing_of_the_experiments_extra():
    loaded = printed_by_a_fresh_interpreter("*{name.split('.')[0] for name in sys.modules}").split()
    assert "jaxebm" in loaded
    assert not EXPERIMENTS_EXTRA & set(loaded)


def test_importing_does_not_start_jax():
    """Users choose devices, or call jax.distributed.initialize, after their imports."""
    bridge = "__import__('jax._src.xla_bridge', fromlist=['_'])"
    assert printed_by_a_fresh_interpreter(f"{bridge}.backends_are_initialized()") == "False"


def test_the_core_does_without_recipes_and_report():
    """Somebody who imports the samplers waits for nothing else."""
    program = "import sys, jaxebm; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert "jaxebm.training" in loaded
    assert not {"jaxebm.recipes", "jaxebm.report"} & set(loaded)


def test_the_version_is_the_installed_one():
    assert jaxebm.__version__ == version("jaxebm")


def test_every_public_name_exists():
    for name in jaxebm.__all__:
        assert getattr(jaxebm, name) is not None
