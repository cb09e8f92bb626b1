"""Each published recipe: its numbers, that it fits every network and data set, and some updates of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxebm
from jaxebm.data import Dataset
from jaxebm.recipes import RECIPES, Config, TrainedRun, base_config, build, replace_settings, train
from jaxebm.recipes.build import make_optimizer
from jaxebm.training import Checkpoints

PUBLISHED = sorted(RECIPES.keys() - {"tuned"})


def setting(config: Config, name: str) -> Any:
    group, _, inner = name.partition(".")
    value = getattr(config, group)
    return getattr(value, inner) if inner else value


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", ["convnet", "wide-resnet"])
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "svhn_cropped"])
def test_recipes_compose_with_networks_and_data_sets(recipe: str, network: str, dataset: str):
    if network not in RECIPES[recipe].networks:
        with pytest.raises(ValueError, match=f"network='{network}': recipe {recipe} has mlp and convnet"):
            base_config(recipe, network=network, dataset=dataset)
        return
    config = base_config(recipe, network=network, dataset=dataset)
    config.check()
    assert (config.recipe, config.network, config.dataset) == (recipe, network, dataset)
    assert config.data.flip == (dataset == "cifar10")
    assert config.data.crop_padding == (0 if dataset == "digits" else 4)
    overridden = RECIPES[recipe].learning
    if network == "convnet":
        overridden = dict(RECIPES[recipe].convnet)
        if dataset == "cifar10":
            overridden |= dict(RECIPES[recipe].larger) | dict(RECIPES[recipe].colour)
    share = 8 * 8 / (32 * 32 * 3) if dataset == "digits" and recipe in ("igebm", "improved_cd") else 1.0
    matched = "objective.matching_scale" in RECIPES[recipe].method
    if matched:
        share = (8 * 8 if dataset == "digits" else 32 * 32 * 3) / 784
    for name, value in RECIPES[recipe].method.items():
        if name in ("sampler.step_size", "objective.matching_scale"):
            value *= share
        if name == "sampler.gradient_clip" and value is not None:
            value /= share
        assert setting(config, name) == overridden.get(name, value)


def test_the_papers_network_takes_the_papers_learning_and_another_does_not():
    for name in PUBLISHED:
        if "wide-resnet" not in RECIPES[name].networks:
            assert not RECIPES[name].learning
            continue
        wide = base_config(name, network="wide-resnet")
        for path, value in RECIPES[name].learning.items():
            assert setting(wide, path) == value
    small, tuned = base_config("jempp", network="convnet"), base_config(network="convnet")
    assert small.optimizer == tuned.optimizer
    assert small.optimizer.kind == "adamw"
    assert small.epochs == tuned.epochs


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"recipe": "nope"}, "recipe='nope': choose among tuned, jem"),
        ({"network": "vit"}, "network='vit': choose among mlp"),
        ({"task": "regression"}, "task='regression'"),
    ],
)
def test_an_unknown_choice_is_refused(choice: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        base_config(**choice)


def test_unconditional_is_a_task_of_any_recipe():
    for name in ("tuned", "jem", "igebm", "improved_cd"):
        config = base_config(name, network="convnet", task="unconditional")
        config.check()
        weights = config.objective
        assert (weights.p_x_weight, weights.p_xy_weight, weights.p_y_given_x_weight) == (1.0, 0.0, 0.0)
        assert config.generative


@pytest.mark.parametrize(
    ("schedule", "floor"), [("cosine", 0.01), ("cosine", 0.4), ("steps", 0.01), ("constant", 0.01)]
)
def test_the_rate_rises_and_falls_as_it_should(schedule: str, floor: float):
    changes = {
        "kind": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5, "schedule": schedule,
        "learning_rate_floor": floor, "decay_epochs": (5, 8), "decay_factor": 0.1, "warmup_steps": 10,
    }  # fmt: skip
    changes = {f"optimizer.{name}": value for name, value in changes.items()} | {"epochs": 10}
    optimizer = make_optimizer(replace_settings(Config(), changes), 100)
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


LOADS_WITHOUT_DATA = """
import json, pickle, sys
import jax, numpy as np, scipy.stats  # imports may read pickled caches; what comes after may not
import jaxebm, jaxebm.recipes, jaxebm.data

def refuse(*arguments, **options):
    raise AssertionError("something is unpickled, or the data are looked for")

for name in ("load", "loads", "Unpickler"):
    setattr(pickle, name, refuse)
original = np.load
np.load = lambda *arguments, **options: original(*arguments, **options | {"allow_pickle": False})
jaxebm.data.load_dataset = jaxebm.recipes.judge.load_dataset = jaxebm.recipes.run.load_dataset = refuse

found, images = {}, np.load(sys.argv[1])
for path in sys.argv[2:]:
    model = jaxebm.load(path)
    labels = {"label": 1} if model.knows_classes else {}
    found[path] = {
        "log_density": model.log_density(images).tolist(),
        "sample": model.sample(jax.random.key(3), 4, num_steps=2, **labels).ravel().tolist(),
        "class_probabilities": model.class_probabilities(images).tolist() if model.knows_classes else None,
        "class_names": model.class_names,
        "bits": [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(model.params)],
    }
print(json.dumps(found))
"""
"""Run by another process, with the images to judge and the folders of runs."""


ONE_LEVEL = {
    "dual_score_matching": {"architecture.blocks": (1,)},
    "drl": {"architecture.blocks": (1,), "levels.count": 2},
}
"""The networks of these tests have one resolution, and samples take two steps."""
RUNS: tuple[tuple[str, dict[str, str], dict[str, Any]], ...] = (
    *((name, {"recipe": name, "network": "convnet"}, ONE_LEVEL.get(name, {})) for name in PUBLISHED),
    ("images_alone", {"task": "unconditional"}, {"sampler.initial": "gaussian"}),
    (
        "given_classes",
        {},
        {"sampler.chains": "conditional", "objective.p_xy_weight": 0.5, "data.labels_per_class": 14},
    ),
    ("from_data", {}, {"sampler.negatives": "contrastive-divergence", "objective.energy_l2": 0.1}),
    ("no_sampler", {}, {"objective.p_x_weight": 0.0}),
)
SHORT: dict[str, Any] = {
    "report": False,
    "epochs": 1,
    "optimizer.warmup_steps": 1,
    "optimizer.ema_decay": 0.5,
    "run.pretrain_epochs": 0,
}


@pytest.fixture(scope="module")
def runs(
    toy: Callable[..., Config], blobs: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainedRun]:
    """A short run of each recipe on `convnet`, and of what no recipe has."""
    folder, made = tmp_path_factory.mktemp("published"), {}
    for name, choices, changes in RUNS:
        pretrained = {"run.pretrain_epochs": 1} if name == "dat" else {}
        settings = SHORT | pretrained | changes | {"output": folder / name}
        made[name] = train(toy(settings, **choices), blobs)
    return made


@pytest.mark.parametrize("name", [name for name, _, _ in RUNS])
def test_every_weight_learns(runs, blobs: Dataset, name: str):
    run = runs[name]
    chex.assert_tree_all_finite((run.result.params, run.result.history))
    assert (run.model.step, run.card) == (6, None)
    start = build(run.model.config, blobs)
    before = start.learner.init(jax.random.key(0), start.params, start.data).params
    after = run.result.state.params
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after["params"], before["params"])
    assert all(jax.tree.leaves(moved))
    if name in ("jempp", "sadajem"):
        assert not jax.tree.all(jax.tree.map(jnp.array_equal, after["batch_stats"], before["batch_stats"]))


def test_frozen_statistics_are_those_of_the_pretraining(runs):
    run = runs["dat"]
    with Checkpoints(run.folder / "pretraining" / "checkpoints") as checkpoints:
        pretrained = checkpoints.read(prefix=".ema_params['batch_stats']")
    frozen = jax.tree.leaves(run.result.state.params["batch_stats"])
    assert len(frozen) == len(pretrained) > 0
    for array, expected in zip(frozen, pretrained.values(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_metrics_tell_what_a_recipe_adds(runs):
    metrics = {name: run.result.history[-1] for name, run in runs.items()}
    assert "binary_cross_entropy" in metrics["dat"]
    assert {"last_step_energy", "neighbour_entropy"} <= set(metrics["improved_cd"])
    assert metrics["sadajem"]["sharpness"] != 0.0
    assert "cross_entropy" not in metrics["images_alone"]
    assert "energy_gap" not in metrics["no_sampler"]


def test_each_loads_in_another_process_without_the_data(
    runs, blobs: Dataset, compiled_before: dict[str, Any], tmp_path: Path
):
    images, here = blobs.test.image, {}
    for run in runs.values():  # first, so that the other process need not compile
        model = run.model
        labels = {"label": 1} if model.knows_classes else {}
        here[str(run.folder)] = {
            "log_density": model.log_density(images),
            "sample": model.sample(jax.random.key(3), 4, num_steps=2, **labels).ravel(),
            "class_probabilities": model.class_probabilities(images) if model.knows_classes else None,
            "class_names": ["dark", "grey", "bright"],
            "bits": [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(run.result.params)],
        }
    np.save(tmp_path / "images.npy", images)
    settings = {name.upper(): str(value) for name, value in compiled_before.items()}
    there = json.loads(
        printed_elsewhere(LOADS_WITHOUT_DATA, str(tmp_path / "images.npy"), *here, settings=settings)
    )
    assert there.keys() == here.keys()
    for folder, expected in here.items():
        found = there[folder]
        for name in ("class_names", "bits"):
            assert found[name] == expected[name]
        np.testing.assert_allclose(found["log_density"], expected["log_density"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["sample"], expected["sample"], rtol=1e-3, atol=0.1)
        if expected["class_probabilities"] is None:
            assert found["class_probabilities"] is None
        else:
            np.testing.assert_allclose(
                found["class_probabilities"], expected["class_probabilities"], rtol=1e-4, atol=1e-5
            )


@pytest.mark.slow
def test_a_wide_resnet_trains_and_loads(toy, blobs: Dataset, tmp_path: Path):
    small = {"architecture.depth": 10, "architecture.width": 1, "output": tmp_path / "wide"}
    for recipe in [name for name in RECIPES if "wide-resnet" in RECIPES[name].networks]:
        changes = SHORT | small | {"optimizer.decay_epochs": (1,), "overwrite": recipe != "tuned"}
        pretrained = {"run.pretrain_epochs": 1} if recipe == "dat" else {}
        run = train(toy(changes | pretrained, recipe=recipe, network="wide-resnet"), blobs)
        model = jaxebm.load(run.folder)
        chex.assert_trees_all_equal(model.params, run.result.params)
        assert model.config.recipe == recipe
        np.testing.assert_allclose(
            model.log_density(blobs.test.image), run.model.log_density(blobs.test.image), rtol=1e-5
        )


def printed_elsewhere(program: str, *arguments: str, settings: dict[str, str]) -> str:
    """What another process prints that runs ``program``."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
