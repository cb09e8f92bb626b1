"""Evaluating a run again: the same card for the same settings, and no run lost to it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxebm
from jaxebm.data import Dataset
from jaxebm.recipes import Evaluate, evaluate_run, train
from jaxebm.recipes.command import evaluate_command
from jaxebm.recipes.twin import load_twin, save_twin
from jaxebm.report import ReportSettings
from jaxebm.training import CheckpointCorruptError, CheckpointMismatchError, RunFolder, read_run

MEASURED = ("seconds", "device_memory")
"""First letters of the card's entries that depend on the clock."""
LIGHT = ("--evaluation.likelihood-steps", "0", "--evaluation.sample-steps", "1")
"""Flags of an evaluation that costs less than that of the run."""


def without_measured(card: dict[str, Any]) -> dict[str, Any]:
    def clean(entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        return {name: clean(value) for name, value in entry.items() if not name.startswith(MEASURED)}

    return json.loads(json.dumps(clean(card)))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def images_are_back(finished, arrays) -> Iterator[None]:
    """The file that the run was trained on, for the tests of this module."""
    np.savez(finished.file, image=arrays[0], label=arrays[1])
    yield
    finished.file.unlink()


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, where evaluations of it may lie."""
    return shutil.copytree(finished.folder, tmp_path_factory.mktemp("judge") / "run")


@pytest.fixture(scope="module")
def again(run: Path) -> dict[str, Any]:
    """The card of the run evaluated again, by its own settings."""
    return evaluate_run(Evaluate(run=run))


@pytest.fixture
def copied(finished, tmp_path: Path) -> Path:
    """A run that may be damaged, without what it ended with."""
    (tmp_path / "run").mkdir()
    for name in ("config.json", "metrics.jsonl", "model.json"):
        shutil.copy(finished.folder / name, tmp_path / "run" / name)
    shutil.copytree(finished.folder / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def test_the_same_settings_give_the_card_that_the_run_ended_with(finished, run: Path, again: dict[str, Any]):
    card = without_measured(finished.trained.card)
    assert without_measured(again) | {"command": 0} == card | {"command": 0}
    saved = json.loads((run / "evaluation" / "card.json").read_text())
    assert without_measured(saved) == without_measured(again)
    assert again["seconds_training"] == finished.trained.card["seconds_training"]
    pictures = {path.name for path in finished.folder.glob("*.png")}
    assert {"samples.png", "ood.png", "telemetry.png"} <= pictures
    for name in pictures:
        assert (run / "evaluation" / name).read_bytes() == (finished.folder / name).read_bytes()
    assert "evaluation" in read_run(run).claimed()
    asked = json.loads((run / "evaluation" / "config.json").read_text())["evaluation"]
    assert asked == json.loads((run / "config.json").read_text())["evaluation"]


def test_the_interval_of_an_evaluation_is_read_where_the_run_has_none(run: Path, again, tmp_path: Path):
    moved = shutil.copytree(run, tmp_path / "run")
    before = jaxebm.load(moved).log_partition
    (moved / "card.json").unlink()
    assert jaxebm.load(moved).log_partition == before
    interval = again["likelihood"]["by_temperature"]["1"]["log_partition"]
    assert before == (interval["low"], interval["high"])


def test_an_evaluation_is_replaced_only_where_that_is_asked_for(run: Path, again, tmp_path: Path, capsys):
    there = shutil.copytree(run / "evaluation", tmp_path / "there")
    before = files_of(there), files_of(run)
    flags = [str(run), *LIGHT, "--evaluation.export-samples", "5", "--output", str(there)]
    with pytest.raises(SystemExit):
        evaluate_command(flags)
    assert "--overwrite" in capsys.readouterr().err
    assert files_of(there) == before[0]
    evaluate_command([*flags, "--overwrite"])
    assert files_of(run) == before[1]
    card = json.loads((there / "card.json").read_text())
    assert card["likelihood"] is None
    assert set(card["samples"]["fresh"]["by_steps"]) == {"1"}
    assert len(list((there / card["samples"]["exported"]["folder"]).glob("*.png"))) == 5
    assert f"written to {there}" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--overwrite"], []])
def test_a_run_is_never_written_over(run: Path, flags: list[str], capsys):
    before = files_of(run / "checkpoints")
    with pytest.raises(SystemExit):
        evaluate_command([str(run), "--output", str(run), *flags])
    assert "holds a run and its checkpoints" in capsys.readouterr().err
    assert files_of(run / "checkpoints") == before


def test_what_cannot_be_evaluated_is_refused(copied: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        evaluate_run(Evaluate(run=tmp_path / "nowhere"))
    saved = json.loads((copied / "config.json").read_text())
    for content, kind, message in (
        (json.dumps(saved | {"number_of_spins": 3}), ValueError, "number_of_spins"),
        ("[1, 2", ValueError, "not a readable configuration"),
        (json.dumps(saved | {"seed": 5}), CheckpointMismatchError, "seed: saved 0, now 5"),
    ):
        (copied / "config.json").write_text(content)
        with pytest.raises(kind, match=message):
            evaluate_run(Evaluate(run=copied))
    (copied / "config.json").write_text(json.dumps(saved))
    largest = max((copied / "checkpoints" / "12").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    with pytest.raises(CheckpointCorruptError, match="is damaged"):
        evaluate_run(Evaluate(run=copied))
    assert not (copied / "evaluation").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluation.attack-radii-l2", "1", "0.5"], "attack_radii_l2"),
        (["--evaluation.refinement-steps", "-1"], "refinement_steps"),
        (["--evaluation.ood-sets", "mnist", "mnist"], "named once"),
        (["--evaluation.ood-sets", "no_such_set"], "no_such_set"),
        (["--evaluation.samples-per-class", "0"], "samples_per_class=0"),
    ],
)
def test_bad_flags_are_one_line_before_anything_is_written(
    copied: Path, capsys, flags: list[str], message: str
):
    with pytest.raises(SystemExit) as stopped:
        evaluate_command([str(copied), *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (copied / "evaluation").exists()


def test_an_interrupted_run_has_a_card_without_its_twin(copied: Path):
    shutil.rmtree(copied / "checkpoints" / "12")  # as if it had been stopped after the one before
    looked_at = ReportSettings(
        samples_per_class=7, sample_steps=(1,), features=False, long_run_factors=(), likelihood_steps=0,
        attack_images=0, tasks=False,
    )  # fmt: skip
    card = evaluate_run(Evaluate(run=str(copied), evaluation=looked_at))  # type: ignore[arg-type]
    assert (card["evaluated_update"], card["updates"]) == (9, 12)
    assert card["twin"] is card["seconds_training"] is None
    assert np.isfinite(card["nll"])


def test_a_data_set_of_ones_own_is_to_be_given_again(toy, blobs: Dataset, tmp_path: Path, capsys):
    train(toy({"output": tmp_path / "run", "report": False, "epochs": 1}), blobs)
    with pytest.raises(ValueError, match=r"'blobs', that no name loads. Set dataset=npz:PATH.*evaluate_run"):
        evaluate_run(Evaluate(run=tmp_path / "run"))
    with pytest.raises(ValueError, match="select='newest'"):
        evaluate_run(Evaluate(run=tmp_path / "run", select="newest"), blobs)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="has a validation_nll"):
        evaluate_run(Evaluate(run=tmp_path / "run", select="best"), blobs)
    card = evaluate_run(Evaluate(run=tmp_path / "run"), blobs)
    assert card["dataset"] == "blobs"
    assert "command" not in card
    text = capsys.readouterr().out
    assert "jaxebm train" not in text


def test_the_twin_is_kept_and_recognised(finished, tmp_path: Path):
    saved = json.loads((finished.folder / "config.json").read_text())
    template = {"params": {"w": np.zeros((2, 3), np.float32)}}
    mine = RunFolder(tmp_path, saved)
    assert load_twin(mine, template) is None
    params = jax.tree.map(lambda leaf: leaf + 1, template)
    save_twin(mine, params)
    jax.tree.map(np.testing.assert_array_equal, load_twin(mine, template), params)

    def changed(group: str, **values: Any) -> RunFolder:
        return RunFolder(tmp_path, saved | {group: saved[group] | values})

    assert load_twin(RunFolder(tmp_path, saved | {"epochs": 99}), template) is None
    assert load_twin(changed("optimizer", learning_rate=0.5), template) is None
    for same in (
        RunFolder(tmp_path, saved | {"output": "elsewhere", "resume": True}),
        changed("evaluation", samples_per_class=99),
        changed("run", progress=True, resume_step=3),
    ):
        assert load_twin(same, template) is not None
    assert load_twin(mine, {"params": {"w": np.zeros(3, np.float32)}}) is None
    assert finished.trained.card["twin"] is not None


def test_a_refused_evaluation_claims_nothing(copied: Path):
    mine = copied / "evaluation" / "thesis.txt"
    shutil.rmtree(copied / "evaluation", ignore_errors=True)
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        evaluate_run(Evaluate(run=copied))
    assert mine.read_text() == "mine"


def test_the_settings_of_an_evaluation_are_checked_at_once(copied: Path):
    looked_at = replace(ReportSettings(), sample_steps=(10, 5))
    with pytest.raises(ValueError, match="sample_steps"):
        evaluate_run(Evaluate(run=copied, evaluation=looked_at))
