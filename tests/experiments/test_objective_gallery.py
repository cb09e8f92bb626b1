"""The gallery of objectives: every method has a loss and an energy; the script fills and resumes a folder."""

import json
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import density_2d
import objective_gallery
from gallery.methods import Method, Problem
from gallery.objective_cost import gradients_per_update
from gallery.objectives import METHODS, uniform_proposal
from jaxebm.data import TOY_DENSITIES
from jaxebm.objectives import Batch, Negatives
from jaxebm.recipes.command_line import run_experiment
from jaxebm.training import DivergenceError

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")

DENSITY = TOY_DENSITIES["two_moons"]
TOY = objective_gallery.Config(
    objectives=("noise_contrastive", "equilibrium_matching"),
    densities=("two_moons",),
    quick=True,
    grid_points=40,
    num_samples=40,
    progress=False,
)


def problem_of(objective: str) -> Problem:
    return density_2d.make_problem(density_2d.config_of(objective, **objective_gallery.QUICK), DENSITY)


@pytest.mark.parametrize("objective", METHODS)
def test_every_method_has_a_loss_and_an_energy(objective: str):
    density_2d.config_of(objective).check()
    problem = problem_of(objective)
    params = jax.eval_shape(problem.init, jax.random.key(0), jnp.zeros(2))
    xs = jnp.zeros((8, 2))
    for phase in problem.phases:
        chains = phase.negatives is not None
        negatives = Negatives(xs, jnp.zeros(8, jnp.int32)) if chains else Negatives(None, None)
        loss, metrics = jax.eval_shape(
            phase.objective.loss, params, jax.random.key(0), Batch(None, None, xs), negatives
        )
        assert loss.shape == ()
        assert all(value.shape == () for value in metrics.values())
    assert (problem.energy is None) == (objective == "equilibrium_matching")
    if problem.energy is not None:
        assert jax.eval_shape(problem.energy, params, xs[0]).shape == ()
    assert problem.gradients_per_sample > 0
    assert sum(phase.share for phase in problem.phases) == 1


def test_costs_are_those_of_the_formulas():
    """In gradients dE/dx of one example, each of two to three evaluations of E."""
    costs = {
        name: gradients_per_update(problem_of(name), 32)
        for name in ("likelihood", "finite_difference", "hutchinson", "explicit_score_matching")
    }
    # The loss of E at data and samples, about one gradient each; and five transitions of two gradients.
    assert 11 < costs["likelihood"] < 13
    assert costs["finite_difference"] < costs["hutchinson"] < costs["explicit_score_matching"]


def test_the_uniform_proposal_is_normalised():
    proposal = uniform_proposal(DENSITY)
    low, high = np.min(xs := np.asarray(proposal.sample(jax.random.key(0), 1000))), np.max(xs)
    side = np.exp(-0.5 * float(proposal.log_density(jnp.zeros(2))))
    assert (high - low) < side < 1.02 * (high - low)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory):
    """``(folder, card)``"""
    output = tmp_path_factory.mktemp("gallery") / "run"
    return output, objective_gallery.main(replace(TOY, output=output))


def test_the_folder_holds_what_it_should(toy_run):
    output, card = toy_run
    assert json.loads((output / "card.json").read_text()) == json.loads(json.dumps(card))
    contrast, matching = (card["cells"][name]["two_moons"] for name in TOY.objectives)
    assert contrast["kl"] > 0
    assert matching["kl"] is None
    assert contrast["gradients_per_sample"] == 2 * objective_gallery.QUICK["sample_steps"]
    assert matching["gradients_per_sample"] == 200
    for found in (contrast, matching):
        assert found["failure"] is None
        assert found["seconds_training"] > 0
        assert found["gradients_per_update"] > 0
    assert (output / "densities.png").read_bytes().startswith(b"\x89PNG")
    assert "| noise_contrastive |" in (output / "card.md").read_text()
    with pytest.raises(FileExistsError, match="overwrite"):
        objective_gallery.main(replace(TOY, output=output))


def test_a_resumed_run_does_only_what_is_missing_and_tells_of_a_divergence(toy_run, monkeypatch):
    output, card = toy_run
    asked = []

    def diverge(config, density, run):
        asked.append((config.objective, density.name))
        raise DivergenceError("step 3: the loss is not finite.")

    monkeypatch.setattr(density_2d, "train", diverge)
    more = replace(TOY, output=output, resume=True, objectives=("noise_contrastive", "sliced"))
    resumed = objective_gallery.main(more)
    assert asked == [("sliced", "two_moons")]
    assert resumed["cells"]["noise_contrastive"] == card["cells"]["noise_contrastive"]
    assert resumed["cells"]["sliced"]["two_moons"] == {"failure": "step 3: the loss is not finite."}
    text = (output / "card.md").read_text()
    assert "| sliced | diverged |" in text
    assert "- sliced, two_moons: step 3" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("moments",)}, r"objectives=.*unknown \['moments'\]; choose among likelihood"),
        ({"objectives": ()}, "objectives="),
        ({"densities": ("donut",)}, r"densities=.*unknown \['donut'\]; choose among two_moons"),
        ({"num_samples": 1}, "num_samples"),
        ({"grid_points": 0}, "grid_points"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TOY, **changes).check()


def test_defaults_of_every_method_are_flags():
    flags = {field.name for field in fields(density_2d.Config)}
    assert all(isinstance(method, Method) and set(method.defaults) <= flags for method in METHODS.values())


def test_an_unknown_objective_ends_with_one_line(tmp_path: Path, capsys):
    arguments = ["--objectives", "moments", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(objective_gallery.Config, objective_gallery.main, arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: objectives=('moments',): unknown ['moments']")
