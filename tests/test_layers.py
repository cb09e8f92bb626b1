"""Imports run downward only.

types, checks < cpu < trees < energies, samplers, data < hopfield, objectives, evaluation < training < report
< recipes < experiments
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "jaxebm"
LAYERS = {
    "signals_at_start": 0,
    "types": 0,
    "checks": 0,
    "cpu": 1,
    "trees": 2,
    "energies": 3,
    "samplers": 3,
    "data": 3,
    "hopfield": 4,
    "objectives": 4,
    "evaluation": 4,
    "training": 5,
    "report": 6,
    "recipes": 7,
}
ONLY_IN_EXPERIMENTS = {
    "PIL",
    "jinja2",
    "markdown_it",
    "matplotlib",
    "rich",
    "sklearn",
    "tabulate",
    "tensorflow_datasets",
    "tqdm",
    "tyro",
}
FLAX_FILES = {
    Path("cpu/convolution.py"),
    Path("energies/adapters.py"),
    Path("energies/flows.py"),
    Path("energies/level_networks.py"),
    Path("energies/network_layers.py"),
    Path("energies/networks.py"),
    Path("energies/statistics.py"),
    Path("energies/submodules.py"),
    Path("energies/wide_resnet.py"),
    Path("hopfield/layers.py"),
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported_modules(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Every module that a file imports, ``from a import b`` as both ``a`` and ``a.b``."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downward(module: Path):
    here = layer_of(module)
    if here == "__init__":
        return
    assert here in LAYERS, f"{module} belongs to no layer: add it to docs/design.md and to this table"
    for name in imported_modules(PACKAGE / module):
        parts = name.split(".")
        if parts[0] != "jaxebm" or len(parts) < 2 or parts[1] == here or parts[1] not in LAYERS:
            continue
        assert LAYERS[parts[1]] < LAYERS[here], f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_needs_the_experiments_extra_when_it_is_imported(module: Path):
    roots = {name.split(".")[0] for name in imported_modules(PACKAGE / module, top_level_only=True)}
    # The command line is imported by the command alone, never by a library user.
    allowed = {"tyro"} if module.match("recipes/command*.py") else set()
    assert not roots & (ONLY_IN_EXPERIMENTS - allowed)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_flax_stays_in_the_network_files(module: Path):
    roots = {name.split(".")[0] for name in imported_modules(PACKAGE / module)}
    assert "flax" not in roots or module in FLAX_FILES


def test_only_chains_scans_over_kernels():
    scanning = {
        path.relative_to(PACKAGE).as_posix()
        for path in (PACKAGE / "samplers").rglob("*.py")
        if "lax.scan" in path.read_text().split('"""', 2)[-1] and "jax.lax.scan(" in path.read_text()
    }
    # A warm-up changes its kernel from one step to the next, by what the last step returned.
    assert scanning == {"samplers/chains.py", "samplers/warm_up.py"}
