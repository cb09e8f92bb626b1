"""The main job at toy size: what it writes and refuses, and that killing and resuming it changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jem
from command_line import run_experiment
from jaxebm.training import CheckpointMismatchError
from jem_config import recipe_for

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")
SCRIPT = Path(jem.__file__)
TOY = jem.Config(
    progress=False,
    widths=(16,),
    epochs=2,
    batch_size=62,  # 20 updates an epoch, two whole dispatches: the rest of a dispatch is another program
    num_chains=20,
    sampler_steps=3,
    buffer_size=200,
    steps_per_dispatch=10,
    checkpoint_every=10,
    samples_per_class=7,
    sample_steps=(2, 4),
    telemetry_every=20,
    likelihood_steps=6,
    likelihood_chains=4,
    # What test_evaluate.py looks at:
    features=False,
    tasks=False,
    attack_images=0,
    long_run_factors=(),
)
TOY_FLAGS = [
    "--no-progress",
    "--no-twin",
    "--widths=16",
    "--num-chains=20",
    "--sampler-steps=3",
    "--buffer-size=200",
    "--steps-per-dispatch=8",
    "--checkpoint-every=16",
    "--samples-per-class=7",
    "--sample-steps=2",
    "--likelihood-steps=0",
    "--no-features",
    "--no-tasks",
    "--attack-images=0",
    "--long-run-factors",
]
PICTURES = ("samples.png", "neighbours.png", "reliability.png", "ood.png", "energies.png", "training.png")
RUN = {"experiment", "dataset", "seed", "updates", "parameters", "seconds"}
CLASSIFICATION = {"accuracy", "nll", "ece", "adaptive_ece", "brier"}
SAMPLES = {"class_agreement", "precision", "recall", "density", "coverage", "in_range"}
SETS = {"uniform_noise", "constant", "permuted_pixels", "interpolation"}


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("jem") / "run"
    return output, jem.main(replace(TOY, output=output))


def test_the_run_writes_what_docs_card_md_promises(toy_run):
    output, card = toy_run
    assert json.loads((output / "card.json").read_text()) == json.loads(json.dumps(card))
    assert set(card) >= {"schema"} | RUN | CLASSIFICATION
    assert set(card["validation"]) == set(card["twin"]) == CLASSIFICATION
    for score in ("log_density", "confidence", "gradient_norm"):
        assert set(card["ood"][score]) == set(card["ood"][f"{score}_fpr95"]) == SETS
        assert all(0 <= value <= 1 for value in card["ood"][score].values())
    fresh = card["samples"]["fresh"]
    assert set(fresh["by_steps"]) == {"2", "4"}
    for name in SAMPLES:
        assert fresh[name] == min(entry[name] for entry in fresh["by_steps"].values())
    assert fresh["by_steps"]["2"]["count"] == 70
    assert fresh["in_range"] == 1.0
    assert card["samples"]["buffer"]["count"] == 200
    documented = Path(SCRIPT.parents[1] / "docs" / "card.md").read_text()
    assert all(f"`{key}" in documented for key in card), "a key of the card is missing in docs/card.md"


def test_pictures_metrics_and_samples_are_there(toy_run):
    output, card = toy_run
    for name in PICTURES:
        assert (output / name).read_bytes().startswith(b"\x89PNG")
        assert name in (output / "card.md").read_text()
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == card["updates"] == 2 * (1257 // 62)
    assert {"loss", "cross_entropy", "energy_gap", "gradient_norm", "samples_per_second"} <= set(records[0])
    samples = np.load(output / "samples.npz")
    assert samples["fresh_4"].shape == (70, 8, 8, 1)
    np.testing.assert_array_equal(np.bincount(samples["label"]), np.full(10, 7))


def test_likelihood_and_telemetry_are_on_the_card(toy_run):
    output, card = toy_run
    entry = card["likelihood"]["by_temperature"]["1"]
    assert card["likelihood"]["uniform_bits_per_dimension"] == pytest.approx(np.log2(17))
    assert entry["consistent"] == (entry["log_partition"]["low"] <= entry["log_partition"]["high"])
    assert (output / "telemetry.png").exists()
    assert {"energy_gap", "mmd_squared", "ksd_squared", "buffer_age_mean"} <= set(card["telemetry"])
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    looked = [record["step"] for record in records if "telemetry_energy_gap" in record]
    assert looked == [20, 40]
    assert records[-1]["telemetry_energy_gap"] == card["telemetry"]["energy_gap"]


def test_training_lowers_the_cross_entropy(toy_run):
    output, _ = toy_run
    lines = (output / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["cross_entropy"] for line in lines]
    assert losses[-1] < losses[0]


def test_an_existing_run_is_not_overwritten(toy_run):
    output, _ = toy_run
    before = (output / "card.json").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        jem.main(replace(TOY, output=output))
    with pytest.raises(CheckpointMismatchError, match="learning_rate"):
        jem.main(replace(TOY, output=output, resume=True, learning_rate=0.5))
    assert (output / "card.json").read_bytes() == before


def test_a_finished_run_resumes_to_the_same_card(toy_run):
    output, card = toy_run
    again = jem.main(replace(TOY, output=output, resume=True))
    assert without_seconds(again | {"config": None}) == without_seconds(card | {"config": None})


def without_seconds(entry):
    if not isinstance(entry, dict):
        return entry
    measured = ("seconds", "device_memory")  # of what this call did: a finished run compiles nothing
    return {name: without_seconds(value) for name, value in entry.items() if not name.startswith(measured)}


@pytest.mark.parametrize(
    "changes",
    [
        {"p_x_weight": 0.0},
        {"negatives": "short-run", "initial": "gaussian", "telemetry_every": 20},
        {"negatives": "contrastive-divergence", "energy_l2": 0.1},
        {
            "chains": "conditional",
            "p_xy_weight": 0.5,
            "initial": "class-gaussian",
            "labels_per_class": 7,
            "exclude_classes": (3, 8),
            "buffer_size": 160,
            "batch_size": 49,  # of 56 labels; 20 updates
        },
        pytest.param(  # test_recipes.py takes an update of it
            {"network": "convnet", "channels": (4,), "norm": "batch"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"network": "convnet", "channels": (4, 4), "norm": "group", "spectral_norm": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"network": "wide-resnet", "depth": 10, "width": 1, "activation": "leaky_relu"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda changes: "-".join(f"{value}" for value in changes.values()),
)
def test_every_recipe_runs(tmp_path: Path, changes: dict):
    # The toy run above takes telemetry, the likelihood and a second length of chains.
    short = replace(TOY, output=tmp_path / "run", epochs=1, twin=False, sample_steps=(2,))
    short = replace(short, telemetry_every=0, likelihood_steps=0)
    card = jem.main(replace(short, **changes))
    assert np.isfinite(card["nll"])
    assert card["likelihood"] is None
    assert (card["telemetry"] is not None) == ("telemetry_every" in changes)
    has_buffer = changes.get("p_x_weight", 1) > 0 and "negatives" not in changes
    assert (card["samples"]["buffer"] is not None) == has_buffer
    if "exclude_classes" in changes:
        assert "excluded_classes" in card["ood"]["log_density"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--buffer-size", "32"], "buffer_size=32 is smaller than num_chains=64"),
        (["--sampler-step-size", "0"], "sampler_step_size=0.0"),
        (["--sampler-step-size", "-1"], "sampler_step_size=-1.0"),
        (["--learning-rate", "-1e-3"], "learning_rate"),
        (["--batch-size", "5000"], "batch_size=5000 exceeds the 1257"),
        (["--buffer-size", "2001"], "multiple of num_classes=10"),
        (["--p-xy-weight", "1"], "--chains conditional"),
        (["--labels-per-class", "9999"], "labels_per_class=9999"),
        (["--dataset", "mnits"], "mnits"),
        (["--dataset", "npz:/nowhere/x.npz"], "/nowhere/x.npz"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--sample-steps", "10", "5"], "sample_steps"),
        (["--likelihood-steps", "1"], "likelihood_steps=1"),
        (["--likelihood-chains", "1"], "likelihood_chains=1"),
        (["--likelihood-temperatures", "0"], "likelihood_temperatures=(0.0,)"),
        (["--telemetry-every", "-1"], "telemetry_every=-1"),
        (["--activation", "swosh"], "swosh"),
        (["--output", "/proc/nowhere"], "--output /proc/nowhere"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_left(
    tmp_path: Path, capsys, flags: list[str], message: str
):
    output = [] if "--output" in flags else ["--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(jem.Config, jem.main, [*output, "--no-progress", *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((40, 8, 8), np.int64), np.arange(40) % 2, "image"),
        (np.full((40, 8, 8), np.nan, np.float32), np.arange(40) % 2, "image"),
        (np.zeros((40, 8), np.float32), np.arange(40) % 2, "image"),
        (np.zeros((40, 8, 8), np.float32), np.arange(40) % 2 - 1, "label"),
        (np.zeros((40, 8, 8), np.float32), np.arange(39) % 2, "label"),
    ],
    ids=["integer-images", "nan-images", "rank-two", "label-minus-one", "lengths"],
)
def test_a_bad_npz_is_refused_before_anything_is_written(tmp_path: Path, image, label, message: str):
    np.savez(tmp_path / "mine.npz", image=image, label=label)
    with pytest.raises((ValueError, TypeError), match=message):
        jem.main(replace(TOY, dataset=f"npz:{tmp_path / 'mine.npz'}", output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_users_own_colour_images_of_odd_size(tmp_path: Path):
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 60)
    image = (rng.integers(0, 60, (180, 7, 9, 3)) + 60 * label[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", image=image, label=label)
    mine = replace(TOY, dataset=f"npz:{tmp_path / 'mine.npz'}", output=tmp_path / "run", twin=False)
    mine = replace(mine, telemetry_every=0, likelihood_steps=0)
    learn = {"epochs": 40, "learning_rate": 1e-2, "max_shift": 0.0, "max_shift_p_x": 0.0}
    card = jem.main(replace(mine, buffer_size=210, batch_size=32, **learn))
    assert card["accuracy"] > 0.8  # brightness alone tells the classes apart


def test_one_flag_picks_what_suits_a_network():
    assert recipe_for([]) == recipe_for(["--seed", "3"]) == jem.Config()
    convnet = recipe_for(["--seed", "3", "--network=convnet"])
    assert (convnet.network, convnet.epochs, convnet.max_shift) == ("convnet", 120, 0.6)
    seen: list[jem.Config] = []
    flags = ["--network", "convnet", "--epochs", "7"]
    run_experiment(jem.Config, seen.append, flags, default=recipe_for(flags))
    assert seen == [replace(convnet, epochs=7)]


def arrays_of(output: Path) -> dict[str, np.ndarray]:
    with ocp.CheckpointManager((output / "checkpoints").absolute()) as manager:
        step = manager.latest_step()
        assert step is not None
        return manager.restore(step, args=ocp.args.StandardRestore())


def start(output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "--output", str(output), *TOY_FLAGS, *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def stop_after(process: subprocess.Popen, output: Path, lines: int, number: int) -> None:
    """Sends a signal once ``lines`` metrics lines are written."""
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.002)
    process.wait(timeout=60)


def killed_and_resumed(tmp_path: Path, epochs: str, stops: list[tuple[int, int]]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(whole, "--epochs", epochs)
    assert process.wait(timeout=180) == 0, process.stderr
    for lines, number in stops:
        process = start(broken, "--epochs", epochs, "--resume")
        stop_after(process, broken, lines, number)
        assert process.returncode in (-number, 130), "the run ended before it was stopped"
    process = start(broken, "--epochs", epochs, "--resume")
    assert process.wait(timeout=180) == 0
    jax.tree.map(np.testing.assert_array_equal, arrays_of(broken), arrays_of(whole))
    assert set(arrays_of(broken)) == set(arrays_of(whole))
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.slow  # whole processes, twice; tests/training/test_loop.py kills and interrupts `fit` itself
def test_a_killed_and_an_interrupted_run_resume_bit_for_bit(tmp_path: Path):
    # 30 epochs are 570 updates, 72 lines: enough that neither signal can come too late.
    killed_and_resumed(tmp_path, "30", [(5, signal.SIGKILL), (20, signal.SIGINT)])


@pytest.mark.slow
def test_many_kills_resume_bit_for_bit(tmp_path: Path):
    lines = (1, 3, 9, 17, 40)
    signals = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    killed_and_resumed(tmp_path, "60", list(zip(lines, signals, strict=True)))
