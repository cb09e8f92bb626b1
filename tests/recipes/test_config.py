"""Nested configurations: to JSON and back, changed by dotted name, refused by name, as a command and back."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from jaxebm.recipes import (
    RECIPES,
    Config,
    RunConfig,
    SamplerConfig,
    as_json,
    base_config,
    from_json,
    replace_settings,
)
from jaxebm.recipes.command import _of_recipe
from jaxebm.recipes.command_line import parse
from jaxebm.recipes.config import UNCOMPARED
from jaxebm.recipes.shell import command_for

ON_NETWORKS = [(recipe, network) for recipe, found in RECIPES.items() for network in found.networks]


@pytest.mark.parametrize(("recipe", "network"), ON_NETWORKS)
def test_json_gives_the_configuration_back(recipe: str, network: str):
    for task in ("supervised", "unconditional"):
        config = base_config(recipe, network=network, dataset="cifar10", task=task)
        saved = json.loads(json.dumps(as_json(config), allow_nan=False))
        assert from_json(Config, saved) == config


def test_what_is_missing_has_its_default():
    assert from_json(Config, {}) == Config()
    assert from_json(Config, {"sampler": {"noise": 0}}).sampler == dataclasses.replace(
        SamplerConfig(), noise=0.0
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"number_of_spins": 3}, "run.json: there is no setting number_of_spins in this version"),
        ({"sampler": {"steps": 3}}, "there is no setting sampler.steps"),
        ({"sampler": 3}, "sampler is not a dictionary of settings"),
        ({"sampler": {"step_size": "fast"}}, "run.json: sampler.step_size='fast': float is needed"),
        ({"sampler": {"num_steps": 2.5}}, "sampler.num_steps=2.5: int is needed"),
        ({"sampler": {"num_steps": True}}, "sampler.num_steps=True: int is needed"),
        ({"sampler": {"gradient_clip": "no"}}, "sampler.gradient_clip='no': float or None is needed"),
        (
            {"sampler": {"kernel": "hmc"}},
            "sampler.kernel='hmc': one of sgld, first-layer, descent, heated",
        ),
        ({"network": "convnett"}, "network='convnett': one of mlp, convnet, wide-resnet is needed"),
        ({"network": ["mlp"]}, "network=['mlp']"),
        ({"resume": 1}, "resume=1: bool is needed"),
        ({"architecture": {"widths": 3}}, "architecture.widths=3: a tuple of int is needed"),
        ({"architecture": {"widths": ["a"]}}, "architecture.widths=['a']: a tuple of int is needed"),
        ({"output": 3}, "output=3: the path of a file or a folder is needed"),
        ([1, 2], "the configuration (values) is not a dictionary"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(values, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_json(Config, values, where="run.json")


def test_settings_are_replaced_by_dotted_name():
    changes = {"epochs": 7, "sampler.step_size": 1, "sampler.gradient_clip": None, "output": "runs/mine"}
    config = replace_settings(Config(), changes | {"architecture.widths": [16, 8]})
    assert config.epochs == 7
    assert config.sampler == dataclasses.replace(SamplerConfig(), step_size=1.0, gradient_clip=None)
    assert isinstance(config.sampler.step_size, float)
    assert config.output == Path("runs/mine")
    assert config.architecture.widths == (16, 8)
    assert Config() == replace_settings(config, as_changes(Config()))


def as_changes(config: Config) -> dict[str, object]:
    """Each setting by its dotted name."""
    return {
        name if inner is None else f"{name}.{inner}": value
        for name, group in as_json(config).items()
        for inner, value in (group.items() if isinstance(group, dict) else [(None, group)])
    }


def test_numbers_of_numpy_are_numbers():
    changes = {
        "sampler.step_size": np.float32(0.5),
        "epochs": np.int64(3),
        "optimizer.decay_epochs": (np.int8(1),),
    }
    config = replace_settings(Config(), changes)
    assert json.loads(json.dumps(as_json(config)))["sampler"]["step_size"] == 0.5
    by_hand = dataclasses.replace(Config(), epochs=np.int64(3))
    by_hand.check()
    assert json.dumps(as_json(by_hand)["epochs"]) == "3"


def test_a_group_is_replaced_as_a_whole():
    run = RunConfig(twin=False)
    config = replace_settings(Config(), {"run": run, "run.recovery": False})
    assert config.run == dataclasses.replace(run, recovery=False)
    with pytest.raises(ValueError, match="run is a group of settings: a RunConfig is needed"):
        replace_settings(Config(), {"run": {"twin": False}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "epoch: there is no such setting in Config"),
        ({"sampler.stepsize": 3}, "sampler.stepsize: there is no such setting in SamplerConfig"),
        ({"epochs.x": 3}, "epochs.x: there is no such setting"),
        ({"sampler.step_size.x": 3}, "sampler.step_size.x: there is no such setting"),
        ({"sampler.": 3}, "sampler.: there is no such setting"),
        ({"sampler.kernel": "hmc"}, "sampler.kernel='hmc': one of sgld"),
        ({"epochs": "7"}, "epochs='7': int is needed"),
    ],
    ids=str,
)
def test_a_wrong_name_or_value_is_refused(changes, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace_settings(Config(), changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture.norm": "batch"}, "architecture.norm=batch is for network=convnet"),
        ({"architecture.spectral_norm": True}, "architecture.spectral_norm is for network=convnet"),
        ({"architecture.freeze_statistics": True}, "architecture.freeze_statistics is about batch"),
        ({"architecture.remat": True}, "architecture.remat is for network=wide-resnet"),
        ({"optimizer.schedule": "steps"}, "optimizer.decay_epochs"),
        ({"optimizer.learning_rate": -1e-3}, "optimizer.learning_rate=-0.001"),
        ({"optimizer.sharpness_rho": -1.0}, "optimizer.sharpness_rho"),
        ({"optimizer.momentum": 1.5}, "optimizer.momentum"),
        ({"task": "unconditional"}, "knows no classes"),
        ({"sampler.kernel": "descent"}, "steps of one length"),
        ({"sampler.step_size": 0.0}, "sampler.step_size=0.0"),
        ({"sampler.buffer_size": 32}, "sampler.buffer_size=32 is smaller than sampler.num_chains=64"),
        ({"objective.last_step_weight": 1.0, "objective.p_x_weight": 0.0}, "objective.last_step_weight"),
        ({"objective.p_xy_weight": 1.0}, "sampler.chains=conditional"),
        ({"epochs": 0}, "epochs=0"),
        ({"run.telemetry_every": -1}, "run.telemetry_every=-1"),
        ({"run.resume_step": 10}, "run.resume_step is the checkpoint to go on from: it needs resume=True"),
        ({"evaluation.likelihood_steps": 1}, "likelihood_steps=1"),
        ({"evaluation.sample_steps": (10, 5)}, "sample_steps"),
        ({"objective.coupling": "independent"}, "objective.coupling is for objective.method=energy-matching"),
        ({"objective.matching_scale": 7.0}, "objective.matching_scale is for objective.method"),
        ({"sampler.stop_after": 5}, "sampler.stop_after is for sampler.kernel=heated"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(changes, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace_settings(Config(), changes).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.p_x_weight": 1.0}, "learns one energy"),
        ({"objective.energy_l2": 0.1}, "objective.energy_l2"),
        ({"objective.adversarial_radius": 1.0}, "objective.adversarial_radius"),
        ({"objective.last_step_weight": 1.0}, "objective.last_step_weight is about the chains"),
        ({"objective.contrast": "binary"}, "objective.contrast=binary"),
        ({"objective.matching_scale": 0.0}, "objective.matching_scale=0.0"),
        ({"architecture.norm": "batch"}, "architecture.norm=batch"),
        ({"sampler.cold_steps": 5}, "sampler.noise=0"),
        ({"sampler.stop_after": 0}, "sampler.stop_after"),
        ({"sampler.negatives": "short-run"}, "sampler.negatives is for objective.method=chains"),
        ({"sampler.buffer_size": 100}, "sampler.buffer_size is for objective.method=chains"),
        ({"data.labels_per_class": 10}, "data.labels_per_class"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_a_method_without_chains_are_refused(changes, message: str):
    config = base_config("energy_matching", network="convnet")
    config.check()
    with pytest.raises(ValueError, match=re.escape(message)):
        replace_settings(config, changes).check()


def test_a_configuration_made_by_hand_is_checked_for_its_types():
    with pytest.raises(ValueError, match="network='convnett'"):
        Config(network="convnett").check()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epochs=2\.5"):
        Config(epochs=2.5).check()  # type: ignore[arg-type]


def test_settings_that_a_resumed_run_may_change_exist():
    assert set(as_changes(Config())) >= UNCOMPARED


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--network", "convnet", "--epochs", "7", "--evaluation.sample-steps", "10", "20", "--run.no-twin"],
        [
            "--recipe",
            "jempp",
            "--dataset",
            "mnist",
            "--sampler.gradient-clip",
            "None",
            "--output",
            "a folder",
        ],
        ["--evaluation.long-run-factors", "--data.exclude-classes", "3", "8"],
        [
            "--recipe",
            "igebm",
            "--network",
            "convnet",
            "--task",
            "unconditional",
            "--sampler.step-size",
            "0.1",
        ],
    ],
    ids=" ".join,
)
def test_the_command_of_a_run_gives_its_configuration_back(flags: list[str]):
    config = parse(Config, flags, base=_of_recipe)
    command = shlex.split(command_for(from_json(Config, json.loads(json.dumps(as_json(config))))))
    assert command[:2] == ["jaxebm", "train"]
    assert parse(Config, command[2:], base=_of_recipe) == config
    assert len(command) <= len(flags) + 2


@pytest.mark.parametrize(("recipe", "network"), ON_NETWORKS)
def test_the_command_of_a_published_recipe_is_short(recipe: str, network: str):
    command = shlex.split(command_for(base_config(recipe, network=network, dataset="svhn_cropped")))
    expected = ["--recipe", recipe] * (recipe != "tuned") + ["--network", network] * (network != "mlp")
    assert command == ["jaxebm", "train", *expected, "--dataset", "svhn_cropped"]


def test_the_first_reading_chooses_the_defaults_and_flags_change_them():
    convnet = parse(Config, ["--seed", "3", "--network=convnet"], base=_of_recipe)
    assert (convnet.network, convnet.epochs, convnet.data.max_shift) == ("convnet", 120, 0.6)
    again = parse(Config, ["--epochs", "7", "--network", "convnet", "--seed", "3"], base=_of_recipe)
    assert again == dataclasses.replace(convnet, epochs=7)
