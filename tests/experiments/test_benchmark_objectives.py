"""Objectives without chains against their formulas by hand: one loss, one gradient. No time is judged."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

import benchmark
from benchmarks import objectives, suite
from benchmarks.objective_formulas import FORMULAS, Formula
from jaxebm import objectives as library

pytestmark = pytest.mark.usefixtures("cheap_compilation")

SIZES = objectives.Sizes(batch_size=6, widths=(3,), num_images=2, pixels=4, channels=(2,), flow_layers=1)


@pytest.fixture(scope="module")
def problem():
    return objectives.make_problem(SIZES, "mlp", 0)


def test_every_objective_without_chains_is_measured():
    """Those that need negatives or a generator are measured elsewhere, with their chains."""
    names = {name.replace("-", "_") for name in FORMULAS}
    without_chains = {
        *("score_matching", "sliced_score_matching", "finite_difference_score_matching"),
        *("denoising_score_matching", "denoising_at_levels", "energy_discrepancy"),
        *("noise_contrastive", "conditional_noise_contrastive", "flow_contrastive", "self_normalised"),
        *("dual_score_matching", "level_classification", "energy_matching", "equilibrium_matching"),
    }
    assert without_chains <= set(library.__all__)
    for objective in without_chains:
        assert any(name.startswith(objective) for name in names)
    assert suite.GROUPS["objectives"] == tuple(FORMULAS)


@pytest.mark.parametrize("name", ["finite-difference-score-matching", "denoising-at-levels"])
def test_loss_and_gradient_are_those_of_the_formula(problem, name: str):
    _, differences = objectives.compare(problem, name, FORMULAS[name], 0)
    assert set(differences) == {"loss", "gradient", "operations"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMULAS)
def test_all_agree(name: str):
    found = objectives.compared_workloads(SIZES, name, 0)
    assert f"{name}, mlp" in found


def test_another_formula_is_caught(problem):
    right = FORMULAS["denoising-score-matching"]

    def other_gradient(*arguments):  # the same loss, half of its gradient
        value = right.loss(*arguments)
        return 0.5 * (value + jax.lax.stop_gradient(value))

    wrong: Formula = right._replace(loss=other_gradient)
    with pytest.raises(RuntimeError, match="gradients differ"):
        objectives.compare(problem, "denoising-score-matching", wrong, 0)


def test_the_command_writes_one_table_of_each_network(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = benchmark.Config(
        only=("conditional-noise-contrastive",),
        losses=SIZES,
        rounds=2,
        seconds=0.0,
        clock="processor",
        output=tmp_path / "card.json",
    )
    card = benchmark.main(config)
    assert list(card["workloads"]) == [
        "conditional-noise-contrastive, mlp",
        "conditional-noise-contrastive, convnet",
    ]
    printed = capsys.readouterr().out.split("Above 1.10")
    assert "| 2-D energy, MLP 3, batch 6 |" in printed[-3]
    assert "| `conditional-noise-contrastive` | 2 energies |" in printed[-2]
    with pytest.raises(ValueError, match="clock"):
        replace(config, clock="sun").check()  # pyright: ignore[reportArgumentType]


BAD = [({"batch_size": 1}, "batch_size"), ({"pixels": 3}, "pixels"), ({"channels": (0,)}, "channels")]


@pytest.mark.parametrize(("changes", "name"), BAD)
def test_bad_sizes_are_refused(changes: dict, name: str):
    with pytest.raises(ValueError, match=name):
        replace(SIZES, **changes).check()
