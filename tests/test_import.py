"""People import the samplers into other JAX code: that must not pull in what only experiments need."""

import subprocess
import sys
from importlib.metadata import version

import jaxebm

FORBIDDEN = (
    "tensorflow_datasets",
    "tensorflow",
    "sklearn",
    "matplotlib",
    "tyro",
    "tqdm",
    "PIL",
    "array_record",
)
PROGRAM = """
import sys
import jaxebm.data, jaxebm.energies, jaxebm.evaluation, jaxebm.objectives, jaxebm.samplers, jaxebm.training
loaded = sorted({name.split(".")[0] for name in sys.modules} & set(%r))
print(",".join(loaded))
"""


def test_a_fresh_interpreter_loads_nothing_of_the_experiments_extra():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM % (FORBIDDEN,)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == ""


def test_the_version_is_the_installed_one():
    assert jaxebm.__version__ == version("jaxebm")


def test_every_public_name_exists():
    for name in jaxebm.__all__:
        assert getattr(jaxebm, name) is not None
