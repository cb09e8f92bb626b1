"""Samples of every checkpoint of a run, at toy size: the table, what is kept, wrong folders."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import quality_by_updates
from jaxebm.recipes import base_config, replace_settings, train

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    there = tmp_path_factory.mktemp("quality_by_updates")
    settings = {
        "output": there / "run",
        "epochs": 1,
        "report": False,
        "data.batch_size": 300,
        "architecture.widths": (8,),
        "evaluation.sample_steps": (2, 3),
        "run.steps_per_dispatch": 1,
        "run.checkpoint_every": 1,
        "run.keep_checkpoints": 3,
        "run.telemetry_every": 0,
        "run.progress": False,
    }
    train(replace_settings(base_config("dual_score_matching"), settings))
    config = quality_by_updates.Config(
        run=there / "run", output=there / "quality", samples_per_class=7, progress=False
    )
    return there / "quality", quality_by_updates.main(config)


def test_every_checkpoint_that_was_kept_has_a_row(toy_run):
    output, card = toy_run
    rows = card["checkpoints"]
    assert [row["step"] for row in rows] == [2, 3, 4]
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert row["sample_steps"] == 3  # the largest number of the run
        assert all(np.isfinite(row[name]) for name in quality_by_updates.MEASURES)
    assert json.loads((output / "card.json").read_text()) == json.loads(json.dumps(card))


def test_test_images_are_the_reference(toy_run):
    _, card = toy_run
    assert card["test"]["class_agreement"] > 0.9
    assert card["test"]["frechet_distance"] < card["checkpoints"][-1]["frechet_distance"]


def test_the_table_and_the_pictures_are_written(toy_run):
    output, _ = toy_run
    text = (output / "card.md").read_text()
    assert "| 4 |" in text
    assert "| test images |" in text
    for name in ("curves.png", "samples.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        quality_by_updates.main(quality_by_updates.Config(run=tmp_path / "nothing", output=tmp_path / "out"))


@pytest.mark.parametrize("name", ["samples_per_class", "sample_steps"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=name):
        replace(quality_by_updates.Config(), **{name: 0}).check()
