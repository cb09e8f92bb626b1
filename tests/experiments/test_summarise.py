"""The table over seeds: right numbers, and no mean over runs that are not of one kind."""

import json
from pathlib import Path

import numpy as np
import pytest

import summarise


def write(folder: Path, seed: int, accuracy: float, **config) -> Path:
    folder.mkdir()
    card = {
        "schema": 1,
        "experiment": "jem",
        "seed": seed,
        "accuracy": accuracy,
        "twin": {"nll": 2 * accuracy},
        "robustness": {"l2": {"radii": [0.0, 0.5], "refined": {"0": [1.0, 0.25]}, "twin": None}},
        "samples": {"fresh": {"by_steps": {"100": {"precision": 0.9, "features": {"precision": 0.1}}}}},
        "ood": {"log_density": {"constant": 0.7}},
        "recoveries": [{"step": 3}],
        "environment": {"date": "2026-11-28", "commit": "abc", "device": "cpu x1", "processors": 2},
        "seconds": 60.0,
        "seconds_training": 40.0,
        "config": {"seed": seed} | config,
    }
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_mean_and_standard_deviation(tmp_path: Path, capsys):
    runs = tuple(write(tmp_path / str(seed), seed, value) for seed, value in enumerate((0.2, 0.4, 0.6)))
    summarise.main(summarise.Config(runs))
    printed = capsys.readouterr().out
    assert "| accuracy | 0.4000 | 0.2000 | 0.2000 | 0.6000 |" in printed
    assert "| twin.nll | 0.8000 | 0.4000 | 0.4000 | 1.2000 |" in printed
    assert "n = 3, seeds 0, 1, 2" in printed


def test_runs_of_different_kinds_or_the_same_seed_are_refused(tmp_path: Path):
    first = write(tmp_path / "a", 0, 0.5, epochs=1)
    with pytest.raises(ValueError, match=r"differ in epochs: .* --compare"):
        summarise.main(summarise.Config((first, write(tmp_path / "b", 1, 0.5, epochs=2))))
    with pytest.raises(ValueError, match="repeat"):
        summarise.main(summarise.Config((first, write(tmp_path / "c", 0, 0.5, epochs=1))))
    with pytest.raises(FileNotFoundError, match="not finished"):
        summarise.read_cards((first, tmp_path))
    with pytest.raises(ValueError, match="runs is empty"):
        summarise.read_cards(())


def test_runs_that_differ_in_a_group_of_settings_are_of_two_kinds(tmp_path: Path):
    one = write(tmp_path / "one", 0, 0.5, sampler={"step_size": 0.1}, run={"progress": True})
    same = write(tmp_path / "same", 1, 0.5, sampler={"step_size": 0.1}, run={"progress": False})
    other = write(tmp_path / "other", 1, 0.5, sampler={"step_size": 0.2})
    assert [len(kind) for kind in summarise.group(summarise.read_cards((one, same, other)))] == [2, 1]
    with pytest.raises(ValueError, match=r"differ in sampler\.step_size"):
        summarise.main(summarise.Config((one, other)))


def test_only_the_runs_of_one_experiment_stand_side_by_side(tmp_path: Path):
    run = write(tmp_path / "a", 0, 0.5)
    card = json.loads((run / "card.json").read_text()) | {"experiment": "density_2d"}
    (run / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"compare is about .* not of density_2d"):
        summarise.main(summarise.Config((run,), compare=True))


def test_kinds_stand_side_by_side(tmp_path: Path, capsys):
    runs = [
        write(tmp_path / f"{recipe}-{seed}", seed, accuracy + seed / 10, recipe=recipe)
        for recipe, accuracy in (("jem", 0.5), ("dat", 0.6))
        for seed in (0, 2)
    ]
    summarise.main(summarise.Config((*runs[::2], *runs[1::2]), compare=True))
    printed = capsys.readouterr().out.splitlines()
    assert "|  | jem | dat |" in printed
    assert "| accuracy | 0.600 (0.141) | 0.700 (0.141) |" in printed
    assert "| L2, radius 0.5 | 0.250 (0.000) | 0.250 (0.000) |" in printed
    assert "| precision, 100 steps | 0.900 (0.000) | 0.900 (0.000) |" in printed
    assert "| constant | 0.700 (0.000) | 0.700 (0.000) |" in printed
    assert "| recoveries | 1.000 (0.000) | 1.000 (0.000) |" in printed
    origin = next(line for line in printed if line.startswith("| dat |"))
    assert "`jaxebm train --recipe dat" in origin
    assert "--seed S` | 0, 2 | 2026-11-28 |" in origin
    assert origin.endswith("| 60 (0) | 40 (0) |")


def test_chains_of_each_kind_are_drawn_a_column_a_class(tmp_path: Path, monkeypatch):
    label = np.array([0, 1, 2] * 4)
    for recipe in ("jem", "dat"):
        shift = 0.0 if recipe == "jem" else 0.5
        ranks = np.repeat(np.arange(4), 3)
        images = (label / 4 + shift - ranks)[:, None, None, None] * np.ones((1, 2, 2, 1))
        folder = write(tmp_path / recipe, 0, 0.5, recipe=recipe)
        np.savez(folder / "samples.npz", fresh_100=images, fresh_10=-images, label=label)
    seen = {}
    monkeypatch.setattr(summarise, "image_grids", lambda path, sheets, **sizes: seen.update(sheets, **sizes))
    picture = tmp_path / "chains.png"
    summarise.main(summarise.Config((tmp_path / "jem", tmp_path / "dat"), compare=True, picture=picture))
    assert [name for name in seen if "steps" in name] == [
        "jem, 10 steps",
        "jem, 100 steps",
        "dat, 10 steps",
        "dat, 100 steps",
    ]
    assert (seen["columns"], seen["per_row"]) == (3, 2)
    first_row = seen["dat, 100 steps"][:3, 0, 0, 0]
    np.testing.assert_allclose(first_row, (np.array([0.5, 0.75, 1.0]) + 1) / 2)
    assert len(seen["dat, 100 steps"]) == 9  # three chains of three classes


def test_a_picture_needs_several_kinds_and_a_free_name(tmp_path: Path, capsys):
    run = write(tmp_path / "a", 0, 0.5)
    with pytest.raises(ValueError, match="add --compare"):
        summarise.Config((run,), picture=tmp_path / "chains.png")
    with pytest.raises(ValueError, match=r"picture is .*chains: a name that ends in .png"):
        summarise.Config((run,), compare=True, picture=tmp_path / "chains")
    with pytest.raises(ValueError, match=r"picture is .*there is no folder .*nowhere"):
        summarise.Config((run,), compare=True, picture=tmp_path / "nowhere" / "chains.png")
    config = summarise.Config((run,), compare=True, picture=tmp_path / "chains.png")
    with pytest.raises(FileNotFoundError, match=r"samples\.npz is missing"):
        summarise.main(config)
    np.savez(run / "samples.npz", unconditional_10=np.zeros((40, 2, 2, 1)))
    summarise.main(config)
    assert (tmp_path / "chains.png").stat().st_size > 0
    with pytest.raises(FileExistsError, match="--overwrite"):
        summarise.Config((run,), compare=True, picture=tmp_path / "chains.png")
    other = write(tmp_path / "b", 0, 0.5, recipe="dat")
    np.savez(other / "samples.npz", fresh_10=np.zeros((4, 2, 2, 1)), label=np.arange(4) % 2)
    again = summarise.Config((run, other), compare=True, picture=tmp_path / "chains.png", overwrite=True)
    with pytest.raises(ValueError, match=r"runs of \[2, 10\] classes"):
        summarise.main(again)
