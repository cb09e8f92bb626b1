"""The gallery of objectives: every method has a loss and an energy; the script fills and resumes a folder.

On the digits, too.
"""

import json
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import density_2d
import objective_gallery
from gallery import digits
from gallery.digit_objectives import DIGIT_METHODS, NOISE, DigitSettings, digit_space, settings_of
from gallery.methods import Method, Problem, without_noise
from gallery.objective_cost import gradients_per_update
from gallery.objective_tables import digit_table
from gallery.objectives import METHODS, uniform_proposal
from jaxebm.data import TOY_DENSITIES
from jaxebm.objectives import Batch, Negatives
from jaxebm.recipes.command_line import run_experiment
from jaxebm.training import DivergenceError

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")

DENSITY = TOY_DENSITIES["two_moons"]
TOY = objective_gallery.Config(
    objectives=("noise_contrastive", "equilibrium_matching"),
    parts=("densities",),
    densities=("two_moons",),
    quick=True,
    grid_points=40,
    num_samples=40,
    likelihood_steps=5,
    likelihood_chains=4,
    progress=False,
)


def problem_of(objective: str) -> Problem:
    return density_2d.make_problem(density_2d.config_of(objective, **objective_gallery.QUICK), DENSITY)


def digit_problem_of(objective: str) -> Problem:
    settings = settings_of(objective, **objective_gallery.QUICK_DIGITS)
    return DIGIT_METHODS[objective].build(settings, digit_space(digits.load_digits()))


def test_the_digits_have_every_method():
    assert list(DIGIT_METHODS) == list(METHODS)


@pytest.mark.parametrize("shape", [(2,), (8, 8, 1)], ids=["plane", "digits"])
@pytest.mark.parametrize("objective", METHODS)
def test_every_method_has_a_loss_and_an_energy(objective: str, shape: tuple[int, ...]):
    density_2d.config_of(objective).check()
    problem = problem_of(objective) if shape == (2,) else digit_problem_of(objective)
    params = jax.eval_shape(problem.init, jax.random.key(0), jnp.zeros(shape))
    xs = jnp.zeros((8, *shape))
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


def test_a_gradient_removes_the_noise_of_an_energy_that_knows_it():
    """Where all images are one, the expected clean image is that one."""
    image = digits.test_images(1)[0]

    def energy(params, x):
        return 0.5 * jnp.sum((x - params) ** 2) / NOISE**2

    noisy = image[None] + NOISE * jax.random.normal(jax.random.key(0), (3, *image.shape))
    found = without_noise(energy, image, noisy, NOISE)
    np.testing.assert_allclose(found, np.broadcast_to(image, found.shape), atol=1e-6)


def test_digits_start_as_the_gaussian_of_each_pixel():
    """Without a network, whose output begins small, an energy is -log q of the pixels' own Gaussian."""
    space = digit_space(digits.load_digits())
    network, energy = space.make_energy(DigitSettings(widths=(16,)))
    images = digits.training_images(2000)
    params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0), images[0]))
    scale = np.sqrt(images.var(axis=0) + NOISE**2)
    expected = 0.5 * np.sum(((images[3] - images.mean(axis=0)) / scale) ** 2)
    expected += np.sum(np.log(scale)) + 32 * np.log(2 * np.pi)
    assert float(energy(params, images[3])) == pytest.approx(expected, rel=1e-4)


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
    assert "digits" not in card

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


@pytest.fixture(scope="module")
def digit_run(tmp_path_factory: pytest.TempPathFactory):
    """``(settings, card)`` of an objective that learns a density of images, and of one that learns none."""
    output = tmp_path_factory.mktemp("gallery_digits") / "run"
    config = replace(TOY, parts=("digits",), output=output)
    return config, objective_gallery.main(config)


def test_the_digits_have_a_likelihood_and_samples_of_each_objective(digit_run):
    config, card = digit_run
    assert json.loads((config.output / "card.json").read_text()) == json.loads(json.dumps(card))
    assert "cells" not in card
    assert list(card["digits"]) == ["test_images", *config.objectives]
    contrast, matching = (card["digits"][name] for name in config.objectives)
    assert set(contrast["bits_per_dimension"]) == {"low", "high"}
    assert all(0 < bits < 30 for bits in contrast["bits_per_dimension"].values())
    assert matching["bits_per_dimension"] is None
    assert contrast["gradients_per_sample"] == objective_gallery.QUICK_DIGITS["sample_steps"] + 1
    assert matching["gradients_per_sample"] == 200
    for found in (contrast, matching):
        assert found["failure"] is None
        assert found["finite_samples"] == 1
        assert found["frechet_distance"] > card["digits"]["test_images"]["frechet_distance"]
        assert 0 <= found["precision"] <= 1
        assert found["updates"] == objective_gallery.QUICK_DIGITS["updates"]
        assert found["gradients_per_update"] > 0
    with np.load(config.output / "cells/equilibrium_matching-digits.npz") as arrays:
        samples = arrays["samples"]
    assert samples.shape == (config.num_samples, 8, 8, 1)
    assert np.abs(samples).max() <= 1
    text = (config.output / "card.md").read_text()
    bits = contrast["bits_per_dimension"]
    assert f"| noise_contrastive | {bits['low']:.2f} to {bits['high']:.2f}" in text
    assert "| equilibrium_matching | - |" in text
    assert "| test images, for comparison | - |" in text
    assert (config.output / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert not (config.output / "densities.png").exists()


def test_resumed_digits_keep_cells_and_tell_of_a_divergence(digit_run, monkeypatch):
    config, card = digit_run
    asked = []

    def diverge(settings, make_problem, data, **options):
        asked.append((settings.updates, options["noise"]))
        raise DivergenceError("step 5: the chains left the data.")

    monkeypatch.setattr(digits, "train", diverge)
    resumed = objective_gallery.main(
        replace(config, resume=True, objectives=("noise_contrastive", "denoising"))
    )
    assert asked == [(objective_gallery.QUICK_DIGITS["updates"], 0.0)]
    assert resumed["digits"]["noise_contrastive"] == card["digits"]["noise_contrastive"]
    assert resumed["digits"]["denoising"] == {"failure": "step 5: the chains left the data."}
    text = (config.output / "card.md").read_text()
    assert "| denoising | diverged | diverged |" in text
    assert "- denoising, digits: step 5" in text


def test_the_table_marks_bounds_that_contradict_each_other_and_lost_samples():
    figures = {
        "bits_per_dimension": {"low": 2.5, "high": 2.25},
        "consistent": False,
        "finite_samples": 0.75,
        "frechet_distance": 12.34,
        "failure": None,
    }
    text = "\n".join(digit_table({"sliced": figures}, 100, 32))
    assert "| sliced | 2.50 to 2.25 \\* | 12.3 | - |" in text
    assert "the bounds contradict each other" in text
    assert "- sliced: 25% of its samples are not finite" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("letters",)}, r"parts=.*unknown \['letters'\]; choose among densities, digits"),
        ({"parts": ()}, "parts="),
        ({"likelihood_steps": 1}, "likelihood_steps"),
        ({"likelihood_chains": 1}, "likelihood_chains"),
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


@pytest.mark.parametrize(
    ("methods", "settings"),
    [(METHODS, density_2d.Config), (DIGIT_METHODS, DigitSettings)],
    ids=["plane", "digits"],
)
def test_defaults_of_every_method_are_settings(methods, settings):
    names = {field.name for field in fields(settings)}
    assert all(isinstance(method, Method) and set(method.defaults) <= names for method in methods.values())


def test_an_unknown_objective_ends_with_one_line(tmp_path: Path, capsys):
    arguments = ["--objectives", "moments", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(objective_gallery.Config, objective_gallery.main, arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: objectives=('moments',): unknown ['moments']")
