"""Counting intervals for log Z: at toy size they hold it, shorten with the path, and fill the folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import log_partition
from jaxebm.recipes.command_line import run_experiment

TOY = log_partition.Config(
    targets=("hopfield_64",), lengths=(4, 16), repetitions=5, chains=50, progress=False
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("log_partition") / "run"
    return output, log_partition.main(replace(TOY, output=output))


def test_every_interval_holds_log_z_and_longer_paths_make_shorter_ones(toy_run):
    _, card = toy_run
    short, long = (card["targets"]["hopfield_64"][str(length)] for length in TOY.lengths)
    for entry in (short, long):
        ends = np.array(entry["ends"])
        assert ends.shape == (5, 2)
        assert np.all((ends[:, 0] < 0) & (ends[:, 1] > 0))
        assert (entry["covered"], entry["missed_below"], entry["missed_above"]) == (5, 0, 0)
        widths = ends[:, 1] - ends[:, 0]
        np.testing.assert_allclose(entry["width"]["mean"], widths.mean())
        np.testing.assert_allclose(entry["width"]["sd"], widths.std(ddof=1))
        assert all(1 < value < 50 for value in entry["effective_sample_size"].values())
        assert entry["log_partition"] == short["log_partition"]
    error = np.hypot(short["width"]["sd"], long["width"]["sd"]) / 5**0.5
    assert short["width"]["mean"] - long["width"]["mean"] > 3 * error


def test_the_folder_holds_what_it_should(toy_run):
    output, card = toy_run
    assert json.loads((output / "card.json").read_text()) == json.loads(json.dumps(card))
    assert (output / "intervals.png").read_bytes().startswith(b"\x89PNG")
    text = (output / "card.md").read_text()
    assert "intervals.png" in text
    for length in TOY.lengths:
        assert f"| hopfield_64 | 57.9886 | {length} | 5 | 0 / 0 |" in text
    with pytest.raises(FileExistsError, match="overwrite"):
        log_partition.main(replace(TOY, output=output))


@pytest.mark.parametrize("name", log_partition.TARGETS)
def test_targets_and_their_bases_fit(name):
    target, base = log_partition.TARGETS[name]()
    assert target.dimension == base.dimension


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("hopfield_64", "ising")}, r"targets=.*unknown \['ising'\]; choose among gaussian_50"),
        ({"targets": ()}, "targets="),
        ({"lengths": (64, 1)}, r"lengths=\(64, 1\)"),
        ({"lengths": ()}, "lengths="),
        ({"chains": 1}, "chains=1"),
        ({"repetitions": 0}, "repetitions"),
        ({"coverage": 1.0}, "coverage=1.0"),
        ({"coverage": 0.0}, "coverage=0.0"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TOY, **changes).check()


def test_a_wrong_argument_ends_with_one_line(tmp_path: Path, capsys):
    arguments = ["--coverage", "2", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(log_partition.Config, log_partition.main, arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: coverage=2.0")
    assert not (tmp_path / "run").exists()
