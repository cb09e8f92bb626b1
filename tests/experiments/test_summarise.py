"""The table over seeds: right numbers, and no mean over runs that are not of one kind."""

import json
from pathlib import Path

import pytest

import summarise


def write(folder: Path, seed: int, accuracy: float, **config) -> Path:
    folder.mkdir()
    card = {
        "schema": 1,
        "seed": seed,
        "accuracy": accuracy,
        "twin": {"nll": 2 * accuracy},
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
    with pytest.raises(ValueError, match="epochs"):
        summarise.read_cards((first, write(tmp_path / "b", 1, 0.5, epochs=2)))
    with pytest.raises(ValueError, match="repeat"):
        summarise.read_cards((first, write(tmp_path / "c", 0, 0.5, epochs=1)))
    with pytest.raises(FileNotFoundError, match="not finished"):
        summarise.read_cards((first, tmp_path))
    with pytest.raises(ValueError, match="runs is empty"):
        summarise.read_cards(())
