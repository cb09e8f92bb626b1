"""Each published recipe: its numbers, that it fits every network and flag, and one update of it."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import pytest

from command_line import run_experiment
from jaxebm.data import load_dataset
from jem_config import Config, recipe_for
from jem_parts import make_optimizer, prepare
from recipes import RECIPES

pytestmark = pytest.mark.usefixtures("cheap_compilation")
PUBLISHED = sorted(RECIPES.keys() - {"tuned"})


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", ["convnet", "wide-resnet"])
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "svhn_cropped"])
def test_recipes_compose_with_networks_and_data_sets(recipe, network, dataset):
    config = recipe_for(["--recipe", recipe, f"--network={network}", "--dataset", dataset])
    config.check()
    assert (config.recipe, config.network, config.dataset) == (recipe, network, dataset)
    assert config.flip == (dataset == "cifar10")
    assert config.crop_padding == (0 if dataset == "digits" else 4)
    overridden = RECIPES[recipe].learning if network == "wide-resnet" else {}
    share = 8 * 8 / (32 * 32 * 3) if dataset == "digits" and recipe in ("igebm", "improved_cd") else 1.0
    for name, value in RECIPES[recipe].method.items():
        if name == "sampler_step_size":
            value *= share
        if name == "sampler_gradient_clip" and value is not None:
            value /= share
        assert getattr(config, name) == overridden.get(name, value)


def test_the_papers_network_takes_the_papers_learning_and_another_does_not():
    for name in PUBLISHED:
        wide = recipe_for(["--recipe", name, "--network", "wide-resnet"])
        for field, value in RECIPES[name].learning.items():
            assert getattr(wide, field) == value
    small = recipe_for(["--recipe", "jempp", "--network", "convnet"])
    tuned = recipe_for(["--network", "convnet"])
    assert (small.optimizer, small.learning_rate, small.epochs) == (
        "adamw",
        tuned.learning_rate,
        tuned.epochs,
    )


def test_an_unknown_recipe_is_refused(capsys):
    flags = ["--recipe", "nope"]
    with pytest.raises(SystemExit):
        run_experiment(Config, lambda config: None, flags, default=recipe_for(flags))
    assert "nope" in capsys.readouterr().err


def test_unconditional_is_a_task_of_any_recipe():
    for name in ("tuned", "jem", "igebm", "improved_cd"):
        config = recipe_for(["--recipe", name, "--network", "convnet", "--task", "unconditional"])
        config.check()
        assert (config.p_x_weight, config.p_xy_weight, config.p_y_given_x_weight) == (1.0, 0.0, 0.0)
        assert config.generative


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "batch"}, "norm=batch is for --network convnet"),
        ({"spectral_norm": True}, "spectral_norm is for --network convnet"),
        ({"freeze_statistics": True}, "freeze_statistics is about batch"),
        ({"schedule": "steps"}, "decay-epochs"),
        ({"task": "unconditional"}, "knows no classes"),
        ({"sampler": "descent"}, "steps of one length"),
        ({"last_step_weight": 1.0, "p_x_weight": 0.0}, "last_step_weight"),
        ({"sharpness_rho": -1.0}, "sharpness_rho"),
        ({"p_xy_weight": 1.0}, "chains conditional"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Config(), **change).check()


@pytest.mark.parametrize(
    ("schedule", "floor"), [("cosine", 0.01), ("cosine", 0.4), ("steps", 0.01), ("constant", 0.01)]
)
def test_the_rate_rises_and_falls_as_it_should(schedule, floor):
    config = replace(
        Config(), optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5, schedule=schedule,
        learning_rate_floor=floor, decay_epochs=(5, 8), decay_factor=0.1, warmup_steps=10, epochs=10,
    )  # fmt: skip
    optimizer = make_optimizer(config, 100)
    params = {"params": jnp.zeros(())}
    state, moves = optimizer.init(params), []
    for _ in range(100):
        update, state = optimizer.update({"params": jnp.ones(())}, state, params)
        moves.append(-float(update["params"]))
    assert moves[0] == 0.0
    assert moves[5] == pytest.approx(0.25)
    expected = {"cosine": (None, 0.5 * floor), "steps": (0.05, 0.005), "constant": (0.5, 0.5)}[schedule]
    if expected[0] is not None:
        assert moves[49:51] == pytest.approx([0.5, expected[0]])
    assert moves[99] == pytest.approx(expected[1], rel=0.2)


def toy(name: str, **changes) -> Config:
    small = {
        "channels": (4,), "batch_size": 8, "num_chains": 10, "buffer_size": 40, "sampler_steps": 2,
        "adversarial_steps": 2, "warmup_steps": 0, "twin": False, "telemetry_every": 0, "progress": False,
    }  # fmt: skip
    return replace(recipe_for(["--recipe", name, "--network", "convnet"]), **(small | changes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_update_of_each_recipe(name, digits):
    training = prepare(toy(name), digits)
    training.config.check()
    state, metrics = jax.jit(training.step)(training.state, training.data)
    chex.assert_tree_all_finite((state.params, metrics))
    moved = jax.tree.map(
        lambda a, b: jnp.any(a != b), state.params["params"], training.state.params["params"]
    )
    assert all(jax.tree.leaves(moved)), "every weight learns"
    if name in ("jempp", "sadajem"):  # batch normalisation is a pure function of its state
        assert not jax.tree.all(
            jax.tree.map(jnp.array_equal, state.params["batch_stats"], training.state.params["batch_stats"])
        )
        again, _ = jax.jit(training.step)(training.state, training.data)
        chex.assert_trees_all_equal(again.params, state.params)
    if name == "dat":
        chex.assert_trees_all_equal(state.params["batch_stats"], training.state.params["batch_stats"])
        assert "binary_cross_entropy" in metrics
    if name == "sadajem":
        assert float(metrics["sharpness"]) != 0.0
    if name == "improved_cd":
        assert {"last_step_energy", "neighbour_entropy"} <= set(metrics)


def test_an_unconditional_energy_learns_from_images_alone(digits):
    config = replace(toy("tuned"), task="unconditional", p_y_given_x_weight=0.0, p_x_weight=1.0)
    config.check()
    training = prepare(config, digits)
    _, metrics = jax.jit(training.step)(training.state, training.data)
    assert "cross_entropy" not in metrics
    assert training.logits(training.state.params, jnp.zeros((8, 8, 1))).shape == (1,)
