"""A run at toy size: what it writes and refuses, and that going on, replacing and repeating it are exact."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

from jaxebm.data import Dataset
from jaxebm.recipes import Config, base_config, replace_settings, train
from jaxebm.recipes.twin import pretraining_config
from jaxebm.training import CheckpointMismatchError, RunFolder, read_run

PICTURES = ("samples.png", "neighbours.png", "reliability.png", "ood.png", "energies.png", "training.png")
MEASURED = ("seconds", "device_memory")
"""Entries of the card, and their first letters, that depend on the clock or on what was compiled."""


def without_measured(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {name: without_measured(value) for name, value in entry.items() if not name.startswith(MEASURED)}


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TestWhatItWrites:
    def test_the_card_is_the_one_that_is_returned(self, finished):
        saved, card = json.loads((finished.folder / "card.json").read_text()), finished.trained.card
        assert saved == json.loads(json.dumps(card))
        assert (card["experiment"], card["dataset"]) == ("jem", finished.config.dataset)
        assert card["updates"] == card["evaluated_update"] == 12
        assert card["seconds"] > card["seconds_training"] > 0
        assert set(card["twin"]) == set(card["validation"])
        assert card["config"] == json.loads((finished.folder / "config.json").read_text())
        assert card["command"].startswith("jaxebm train --dataset npz:")
        assert card["command"] in (finished.folder / "card.md").read_text()

    def test_metrics_telemetry_pictures_and_samples_are_there(self, finished):
        records, card = records_of(finished.folder), finished.trained.card
        assert [record["step"] for record in records] == [3, 6, 9, 12]
        assert {"loss", "cross_entropy", "energy_gap", "gradient_norm"} <= set(records[0])
        assert [record["step"] for record in records if "telemetry_energy_gap" in record] == [6, 12]
        assert records[-1]["telemetry_energy_gap"] == card["telemetry"]["energy_gap"]
        assert [dict(record) for record in finished.trained.result.history] == records
        for name in (*PICTURES, "telemetry.png"):
            assert (finished.folder / name).read_bytes().startswith(b"\x89PNG")
            assert name in (finished.folder / "card.md").read_text()
        samples = np.load(finished.folder / "samples.npz")
        assert samples["fresh_4"].shape == (21, 4, 4, 1)
        np.testing.assert_array_equal(np.bincount(samples["label"]), [7, 7, 7])

    def test_each_entry_of_the_folder_is_claimed_by_the_run(self, finished):
        run = read_run(finished.folder)
        there = {path.name for path in finished.folder.iterdir()} - {"contents.json", "evaluation"}
        assert there <= set(run.claimed())
        assert {"config.json", "metrics.jsonl", "checkpoints", "model.json", "card.json", "twin.npz"} <= there

    def test_training_lowers_the_cross_entropy(self, finished):
        records = records_of(finished.folder)
        assert records[-1]["cross_entropy"] < records[0]["cross_entropy"]


class TestGoingOn:
    def test_a_run_is_not_replaced_by_accident(self, finished, blobs: Dataset):
        before = (finished.folder / "card.json").read_bytes()
        with pytest.raises(FileExistsError, match="overwrite=True"):
            train(finished.config, finished.dataset)
        changed = replace_settings(finished.config, {"resume": True, "sampler.step_size": 0.5})
        with pytest.raises(CheckpointMismatchError, match=r"sampler\.step_size: saved 0\.2, now 0\.5"):
            train(changed, finished.dataset)
        same = replace_settings(finished.config, {"resume": True})
        with pytest.raises(CheckpointMismatchError, match=r"other data|another configuration"):
            train(same, blobs)
        assert (finished.folder / "card.json").read_bytes() == before

    def test_a_finished_run_resumes_to_the_same_card_elsewhere(self, finished, tmp_path: Path, capsys):
        moved = shutil.copytree(finished.folder, tmp_path / "moved")
        changes = {"output": str(moved), "resume": True, "devices": 1, "run.progress": True}
        again = train(replace_settings(finished.config, changes), finished.dataset)
        assert again.folder == moved
        chex.assert_trees_all_equal(again.result.params, finished.trained.result.params)
        ours, theirs = (
            without_measured(one.card | {"command": 0, "config": 0}) for one in (again, finished.trained)
        )
        assert ours == theirs
        assert "written to" in capsys.readouterr().out

    def test_an_interrupted_run_goes_on_bit_for_bit(
        self, toy, blobs: Dataset, tmp_path: Path, monkeypatch, capfd
    ):
        whole = train(toy({"output": tmp_path / "whole", "report": False}), blobs)
        printed = capfd.readouterr()
        assert (printed.out, printed.err) == ("", "")
        config = toy({"output": tmp_path / "broken", "report": False})
        append = RunFolder.append_metrics

        def append_then_stop(self: RunFolder, record: dict[str, Any]) -> None:
            append(self, record)
            if record["step"] == 9:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "append_metrics", append_then_stop)
            with pytest.raises(KeyboardInterrupt):
                train(config, blobs)
        broken = train(dataclasses.replace(config, resume=True), blobs)
        chex.assert_trees_all_equal(broken.result.state, whole.result.state)
        assert [record["step"] for record in records_of(tmp_path / "broken")] == [3, 6, 9, 12]

    def test_overwriting_removes_what_the_run_wrote_and_nothing_else(
        self, finished, blobs: Dataset, toy, tmp_path: Path
    ):
        folder = shutil.copytree(finished.folder, tmp_path / "run")
        (folder / "notes.txt").write_text("mine")
        settings = {"output": folder, "overwrite": True, "report": False, "epochs": 1}
        run = train(toy(settings), blobs)
        assert (folder / "notes.txt").read_text() == "mine"
        left = {path.name for path in folder.iterdir()}
        assert left == {
            "notes.txt", "config.json", "contents.json", "metrics.jsonl", "model.json", "checkpoints",
        }  # fmt: skip
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"3", "6"}
        assert run.model.config.dataset == "blobs"

    def test_a_pretraining_is_a_run_in_the_run(self, toy, blobs: Dataset, tmp_path: Path):
        settings = {"output": tmp_path / "run", "report": False, "epochs": 1, "run.pretrain_epochs": 1}
        first = train(toy(settings), blobs)
        assert (tmp_path / "run" / "pretraining" / "checkpoints" / "6").is_dir()
        assert "pretraining" in read_run(tmp_path / "run").claimed()
        for how in ("resume", "overwrite"):
            again = train(toy(settings | {how: True}), blobs)
            chex.assert_trees_all_equal(again.result.params, first.result.params)


def test_one_run_takes_what_the_others_leave_out(toy, arrays, tmp_path: Path):
    """Chains of classes from Gaussians of classes, few labels, a class left out, and the card of it."""
    file = tmp_path / "images.npz"
    image, label = arrays
    np.savez(file, image=np.concatenate([image, 255 - image[:40]]), label=np.append(label, [3] * 40))
    changes = {
        "output": tmp_path / "run",
        "epochs": 1,
        "data.exclude_classes": (1,),
        "data.labels_per_class": 7,
        "sampler.chains": "conditional",
        "sampler.initial": "class-gaussian",
        "objective.p_xy_weight": 0.5,
    }
    trained = train(toy(changes, dataset=f"npz:{file}"))
    assert trained.card is not None
    assert np.isfinite(trained.card["nll"])
    assert "excluded_classes" in trained.card["ood"]["log_density"]
    assert trained.card["samples"]["buffer"]["count"] == 36
    assert trained.card["likelihood"] is trained.card["telemetry"] is trained.card["twin"] is None
    assert trained.model.class_names == ("0", "2", "3")


def test_a_run_with_few_labels_and_one_with_none(toy, arrays, tmp_path: Path):
    """From files: images without labels join the density, and without any label it is all that is learnt."""
    image, label = arrays
    few = np.where(np.arange(120) % 4, np.array(["dark", "grey", "bright"])[label], "")
    np.savez(tmp_path / "few.npz", image=image, label=few, test_image=image[:9], test_label=few[1:10])
    np.savez(tmp_path / "none.npz", image=image > 128)
    settings = {"epochs": 1, "evaluation.likelihood_steps": 4, "evaluation.likelihood_chains": 2}
    with pytest.raises(ValueError, match="'test_label' has images without labels"):
        train(toy(settings | {"output": tmp_path / "run"}, dataset=f"npz:{tmp_path / 'few.npz'}"))
    np.savez(tmp_path / "few.npz", image=image, label=few, test_image=image[:9], test_label=["dark"] * 9)
    trained = train(toy(settings | {"output": tmp_path / "run"}, dataset=f"npz:{tmp_path / 'few.npz'}"))
    assert trained.card is not None
    assert np.isfinite(trained.card["nll"])  # two of the three classes have no test image
    assert trained.model.class_names == ("bright", "dark", "grey")
    alone = settings | {"output": tmp_path / "alone"}
    trained = train(toy(alone, dataset=f"npz:{tmp_path / 'none.npz'}", task="unconditional"))
    assert trained.card is not None
    assert trained.card["likelihood"]["uniform_bits_per_dimension"] == 1.0  # of pixels 0 and 1


def test_a_users_own_colour_images_of_odd_size(toy, tmp_path: Path):
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 60)
    image = (rng.integers(0, 60, (180, 7, 9, 3)) + 60 * label[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", image=image, label=label)
    learn = {"epochs": 40, "optimizer.learning_rate": 1e-2, "data.max_shift": 0.0, "data.max_shift_p_x": 0.0}
    settings = {"output": tmp_path / "run", "report": False, "run.checkpoint_every": 100}
    trained = train(toy(settings | learn, dataset=f"npz:{tmp_path / 'mine.npz'}"))
    found = trained.model.class_probabilities(image).argmax(1)
    assert np.mean(found == label) > 0.8  # brightness alone tells the classes apart


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((40, 8, 8), np.int64), np.arange(40) % 2, "image"),
        (np.full((40, 8, 8), np.nan, np.float32), np.arange(40) % 2, "image"),
        (np.zeros((40, 8), np.float32), np.arange(40) % 2, "image"),
        (np.eye(8)[np.arange(40) % 8, None].repeat(8, 1), np.arange(40) % 2 + 1, "label"),
        (np.eye(8)[np.arange(40) % 8, None].repeat(8, 1), np.arange(39) % 2, "label"),
    ],
    ids=["constant-images", "nan-images", "rank-two", "label-from-one", "lengths"],
)
def test_a_bad_npz_is_refused_before_anything_is_written(tmp_path: Path, toy, image, label, message: str):
    np.savez(tmp_path / "mine.npz", image=image, label=label)
    with pytest.raises((ValueError, TypeError), match=message):
        train(toy({"output": tmp_path / "run"}, dataset=f"npz:{tmp_path / 'mine.npz'}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 5000}, "data.batch_size=5000 exceeds the 84 training images"),
        ({"sampler.buffer_size": 20}, "must be a multiple of num_classes=3"),
        ({"data.labels_per_class": 9999}, "labels_per_class"),
        ({"data.labels_per_class": 3}, "data.batch_size=14 exceeds the 9 labelled images"),
        (
            {"data.exclude_classes": (1,)},
            "data.exclude_classes is only for data sets that are loaded by name",
        ),
        ({"architecture.activation": "swosh"}, "swosh"),
        ({"devices": 4096}, "num_devices=4096"),
        ({"parallel.strata": 4}, "data.batch_size=14 must be a multiple of parallel.strata=4"),
        ({"parallel.processes": 2}, "parallel.distributed=True"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"run.checkpoint_every": 0}, "run.checkpoint_every=0"),
        ({"run.steps_per_dispatch": 0}, "run.steps_per_dispatch=0"),
        ({"sampler.gradient_clip": -1.0}, "sampler.gradient_clip=-1.0"),
        ({"optimizer.gradient_clip_norm": -1.0}, "optimizer.gradient_clip_norm=-1.0"),
        ({"optimizer.warmup_steps": -5}, "optimizer.warmup_steps=-5"),
        ({"optimizer.decay_epochs": (5, 1)}, "optimizer.decay_epochs=[5, 1]"),
        ({"data.crop_padding": 9}, "data.crop_padding=9"),
        ({"parallel.generator": "foo"}, "parallel.generator='foo'"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(
    toy, blobs: Dataset, tmp_path: Path, changes: dict[str, Any], message: str
):
    config = toy({"output": tmp_path / "run"} | changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(config, blobs)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_configuration_by_hand_takes_text_for_a_path_and_lists(toy, blobs: Dataset, tmp_path: Path):
    config = toy({"epochs": 1, "report": False})
    by_hand = dataclasses.replace(
        config,
        output=str(tmp_path / "run"),
        architecture=dataclasses.replace(config.architecture, widths=[8]),  # type: ignore[arg-type]
        run=dataclasses.replace(config.run, pretrain_epochs=1),
    )
    assert train(by_hand, blobs).folder == tmp_path / "run"
    with pytest.raises(ValueError, match="network='convnett'"):
        train(Config(network="convnett"), blobs)  # type: ignore[arg-type]


def test_a_setting_that_is_refused_leaves_the_run_that_is_there(
    finished, toy, blobs: Dataset, tmp_path: Path
):
    there = shutil.copytree(finished.folder, tmp_path / "there")
    before = sorted(path.relative_to(there) for path in there.rglob("*"))
    with pytest.raises(ValueError, match="checkpoint_every"):
        train(toy({"output": there, "overwrite": True, "run.checkpoint_every": 0}), blobs)
    assert sorted(path.relative_to(there) for path in there.rglob("*")) == before


def test_a_users_folder_in_the_place_of_the_pretraining_is_refused_first(toy, blobs: Dataset, tmp_path: Path):
    mine = tmp_path / "run" / "pretraining" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="pretraining holds files that no run wrote"):
        train(toy({"output": tmp_path / "run", "overwrite": True, "run.pretrain_epochs": 1}), blobs)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(("decays", "schedule"), [((1,), "cosine"), ((1, 9), "steps"), ((9,), "cosine")])
def test_pretraining_has_a_schedule_of_its_own_length(decays, schedule):
    config = replace_settings(
        base_config(),
        {
            "optimizer.schedule": "steps",
            "optimizer.decay_epochs": decays,
            "run.pretrain_epochs": 1 + (9 in decays),
        },
    )
    first = pretraining_config(config)
    first.check()
    assert first.optimizer.schedule == schedule


def test_a_resumption_with_other_data_leaves_the_description(finished, tmp_path: Path):
    there = shutil.copytree(finished.folder, tmp_path / "there")
    before = (there / "model.json").read_text()
    split = finished.dataset.train
    other = dataclasses.replace(
        finished.dataset, train=split._replace(image=split.image[::-1].copy()), value_range=(0.0, 300.0)
    )
    with pytest.raises(CheckpointMismatchError, match="other data"):
        train(dataclasses.replace(finished.config, output=there, resume=True, report=False), other)
    assert (there / "model.json").read_text() == before
