"""The experiment on associative memories: its parts are right, and small runs write what they promise."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import hopfield
from jaxebm.data import load_dataset
from jaxebm.recipes.command_line import run_experiment
from memories import capacity, images, networks
from memories.plots import PICTURES

SMALL = hopfield.Config(
    progress=False,
    networks=("modern",),
    num_memories=4,
    memory_counts=(2,),
    shown_memories=2,
    draws=2,
    masked_memories=60,
    capacities=False,
)
pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture(scope="module")
def stored():
    return images.stored_images(load_dataset("digits"), 0.5)


def test_stored_images_differ_and_binary_ones_are_the_grey_ones_cut(stored):
    assert len(np.unique(stored.spins, axis=0)) == len(stored.spins)
    np.testing.assert_array_equal(stored.spins, np.where(stored.grey > 0, 1, -1))
    assert stored.grey.min() == -1
    assert stored.grey.max() == 1


def test_corruption_is_what_it_says(stored):
    rng = np.random.default_rng(0)
    spins = stored.spins[:500]
    flipped, observed = images.corrupt(rng, spins, "flips", 0.2, spins=True)
    assert observed.all()
    wrong = np.mean(flipped != spins)
    assert abs(wrong - 0.2) < 5 * np.sqrt(0.2 * 0.8 / spins.size)
    noisy, _ = images.corrupt(rng, stored.grey[:500], "noise", 0.5, spins=False)
    spread = np.std(noisy - stored.grey[:500])
    assert abs(spread - 0.5) < 5 * 0.5 / np.sqrt(2 * spins.size)
    signs, _ = images.corrupt(rng, spins, "noise", 0.5, spins=True)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    hidden, observed = images.corrupt(rng, spins, "mask", 0.25, spins=True)
    np.testing.assert_array_equal(observed[0].reshape(8, 8).sum(1), [8, 8, 8, 8, 8, 8, 0, 0])
    np.testing.assert_array_equal(hidden, np.where(observed, spins, 0))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_recalls_two_memories_from_each_corruption(name, stored):
    network = networks.NETWORKS[name]
    patterns = (stored.spins if network.spins else stored.grey)[[0, 1]]  # a 0 and a 1
    memory = network.make(jnp.asarray(patterns))
    for kind, level in (("flips", 0.02), ("noise", 0.05), ("mask", 0.125)):
        queries, observed = images.corrupt(
            np.random.default_rng(1), patterns, kind, level, spins=network.spins
        )
        states = networks.recall_all(network.recall, memory, jnp.asarray(queries), jnp.asarray(observed))
        assert images.recalled(np.asarray(states), patterns).all(), kind


def test_a_memory_is_recalled_within_two_percent():
    target = np.zeros((1, 100))
    assert images.recalled(target + 0.039, target)[0]
    assert not images.recalled(target + 0.041, target)[0]


def test_metrics_find_the_memory_they_define():
    memories = np.array([[1.0, 0.0], [3.0, 3.0], [0.0, 0.9]])
    query = np.array([[0.9, 0.1]])
    found = {name: int(images.nearest_by(name, query, memories)[0]) for name in images.METRICS}
    assert found == {"dot product": 1, "cosine": 0, "Euclidean": 0, "Manhattan": 0}


def test_capacities_agree_with_theory_at_small_size(monkeypatch: pytest.MonkeyPatch):
    dense = capacity.dense_errors(0, (0.1,), degree=3, dimension=60, num_networks=4)
    entry = dense["measured"][0]
    assert abs(entry["mean"] - dense["theory"][0]) < 5 * entry["error"] + 0.003  # and a correction of 1 / D
    modern = capacity.modern_errors(0, 300)
    assert modern["violations"] == 0
    assert modern["trials"] == 300
    for name in ("Storkey", "probability flow"):  # tests/hopfield/test_storage.py measures what these store
        monkeypatch.delitem(capacity.RULES, name)
    stable = capacity.stable_fractions(0, (5, 30), dimension=60, num_networks=3)
    assert [entry["mean"] for entry in stable["fractions"]["projection"]] == [1.0, 1.0]
    assert stable["fractions"]["Hebb"][1]["mean"] < 0.1


@pytest.mark.slow
def test_capacities_are_measured_drawn_and_told(tmp_path: Path):
    config = replace(SMALL, output=tmp_path / "run", networks=("modern",), capacities=True)
    card = hopfield.main(replace(config, capacity_dimension=60, capacity_networks=2))
    assert card["capacity"]["modern"]["violations"] == 0
    assert (tmp_path / "run" / "capacity.png").read_bytes().startswith(b"\x89PNG")
    assert "violations of the error bound" in (tmp_path / "run" / "card.md").read_text()


def test_it_runs_and_writes_its_folder(tmp_path: Path):
    config = replace(SMALL, output=tmp_path / "run")
    card = hopfield.main(config)
    written = json.loads((tmp_path / "run" / "card.json").read_text())
    assert written["masked"] == card["masked"]
    assert written["masked"]["recalled"]["modern network, hidden pixels integrated out"] > 0.99
    assert written["diffusion"]["ends_on_a_memory"] == 1.0
    assert written["capacity"] is None
    text = (tmp_path / "run" / "card.md").read_text()
    for name in set(PICTURES) - {"capacity"}:
        assert (tmp_path / "run" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in text
    for energies in written["energies"].values():
        assert max(np.diff(energies)) <= 1e-5 * max(np.abs(energies))
    with pytest.raises(FileExistsError, match="overwrite"):
        hopfield.main(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"networks": ("brain",)},
        {"num_memories": 1},
        {"memory_counts": ()},
        {"draws": 1},
        {"flips": 0.7},
        {"threshold": 2.0},
    ],
    ids=str,
)
def test_bad_settings_are_refused(changes: dict):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(SMALL, **changes).check()


def test_a_wrong_argument_ends_with_one_line(tmp_path: Path, capsys):
    arguments = ["--num-memories", "100000", "--output", str(tmp_path / "run"), "--no-progress"]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(hopfield.Config, hopfield.main, arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: num_memories=100000")
    assert not (tmp_path / "run").exists()
