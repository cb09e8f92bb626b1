"""The speed run at toy size: it learns both halves of its task, and writes what it promises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jem_cifar10_speedrun as speedrun
from jaxebm.data import Dataset, Split
from jaxebm.energies import MLP
from jaxebm.samplers import fit_class_gaussians
from jaxebm.training import TrainingInterrupted

TOY = speedrun.Config(
    progress=False,
    depth=10,
    width=1,
    norm="group",  # its statistics need no time to settle
    precision="float32",
    epochs=6,
    classifier_epochs=3,
    fade_epochs=1,
    batch_size=32,
    learning_rate=0.05,
    ema_decay=0.9,
    crop_padding=1,
    flip=False,
    num_chains=16,
    buffer_size=64,
    sampler_steps=2,
    steps_per_dispatch=8,
    observe_epochs=3,
    samples_per_class=10,
    sample_steps=2,
    judge_epochs=2,
)


@pytest.fixture
def shades() -> Dataset:
    """Two classes of 4x4 images, dark and bright, as bytes."""
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        label = np.arange(count, dtype=np.int32) % 2
        image = random.normal(70 + 110 * label[:, None, None, None], 30, (count, 4, 4, 1))
        return Split(image.clip(0, 255).astype(np.uint8), label)

    parts = {name: split(count) for name, count in (("train", 128), ("validation", 32), ("test", 32))}
    return Dataset("shades", **parts, num_classes=2, value_range=(0.0, 255.0), class_names=("dark", "bright"))


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles in a tenth of the time of a residual network."""
    monkeypatch.setattr(speedrun, "make_network", lambda config, num_classes: MLP(num_classes, (16,)))


def run_of(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Runs it, and returns what it wrote, after what holds of every run."""
    config = replace(TOY, output=tmp_path / "run", **changes)
    result = speedrun.main(config)
    stored = json.loads((config.output / "speedrun.json").read_text())
    assert stored["test_accuracy"] == result["test_accuracy"] > 0.9
    assert stored["updates"] == 4 * config.epochs
    assert [look["update"] for look in stored["validation"]] == [12, 4 * config.epochs]
    assert stored["images_per_second"] == pytest.approx(
        4 * config.epochs * config.batch_size / stored["seconds_training"]
    )
    return stored


@pytest.mark.usefixtures("cheap_compilation", "small_network")
def test_it_learns_both_halves_and_writes_its_folder(
    tmp_path: Path, shades: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(speedrun, "load_dataset", lambda name: shades)
    stored = run_of(tmp_path)
    assert stored["recoveries"] == 0
    assert stored["seconds"] > stored["seconds_training"] + stored["seconds_compiling"]
    assert stored["samples"]["number"] == 20
    assert stored["samples"]["within_range"] == 1.0
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["image"].shape == (20, 4, 4, 1)
        assert samples["label"].tolist() == [0, 1] * 10
        # Samples of the bright class are brighter: they belong to their classes.
        bright = samples["image"].mean((1, 2, 3))
    assert bright[1::2].mean() > bright[0::2].mean() + 0.3
    with pytest.raises(FileExistsError, match="not empty"):
        speedrun.main(replace(TOY, output=tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_compilation")
def test_the_network_of_the_run_learns_as_the_run_computes(
    tmp_path: Path, shades: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(speedrun, "load_dataset", lambda name: shades)
    run_of(tmp_path, norm="none", precision="bfloat16", epochs=12, observe_epochs=12)


def test_the_weight_of_the_images_is_faded_in():
    plan = speedrun.make_plan(TOY, 128)
    assert plan == (24, 12, 4, 4)
    weights = [float(speedrun.fade_at(jnp.asarray(step), plan)) for step in range(24)]
    assert weights == [0.0] * 12 + [0.25, 0.5, 0.75, 1.0] + [1.0] * 8


@pytest.mark.usefixtures("cheap_compilation", "small_network")
def test_both_halves_share_a_state_and_the_first_leaves_the_buffer_alone(shades: Dataset):
    plan = speedrun.make_plan(TOY, 128)
    images = np.asarray(shades.rescale(shades.train.image))
    initial = fit_class_gaussians(images, shades.train.label, 2, clamp=(-1.0, 1.0))
    config = replace(TOY, label_smoothing=0.0)  # so that the loss is the cross-entropy
    alone, joint = speedrun.make_learners(config, shades, initial, plan)
    data = alone.place(tuple(shades.train))
    assert data.x.dtype == np.uint8
    state = alone.init(jax.random.key(0), speedrun.make_network(TOY, 2).init, data)
    after, metrics = jax.jit(alone.step)(state, data)
    assert "energy_gap" not in metrics
    np.testing.assert_array_equal(after.sampler_state.buffer.ages, state.sampler_state.buffer.ages)
    # Before the fade log p(x) weighs nothing, but the chains move.
    faded, metrics = jax.jit(joint.step)(state, data)
    assert int(faded.sampler_state.buffer.ages.max()) == TOY.sampler_steps
    np.testing.assert_allclose(metrics["loss"], metrics["cross_entropy"], rtol=1e-6)
    _, metrics = jax.jit(joint.step)(state._replace(step=jnp.asarray(plan.total)), data)
    assert abs(metrics["loss"] - metrics["cross_entropy"]) > 1e-6


@pytest.mark.usefixtures("cheap_compilation", "small_network")
def test_an_interrupt_ends_it_cleanly(tmp_path: Path, shades: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speedrun, "load_dataset", lambda name: shades)

    def interrupted(*arguments: object, **options: object) -> None:
        raise TrainingInterrupted("stopped at step 3 of 24.")

    monkeypatch.setattr(speedrun, "fit", interrupted)
    with pytest.raises(SystemExit) as ended:
        speedrun.run_experiment(
            speedrun.Config,
            lambda config: speedrun.main(replace(TOY, output=config.output)),
            ["--output", str(tmp_path / "run")],
        )
    assert ended.value.code == 130
    assert not (tmp_path / "run" / "speedrun.json").exists()


BAD = [
    {"classifier_epochs": 6},
    {"epochs": 0},
    {"warmup": 0.0},
    {"fade_epochs": -1},
    {"samples_per_class": 0},
]


@pytest.mark.parametrize("changes", BAD)
def test_bad_settings_are_refused(changes: dict):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(TOY, **changes).check()


def test_batches_larger_than_the_data_are_refused():
    with pytest.raises(ValueError, match="batch_size=32 and num_chains=16 must be at most the 31"):
        speedrun.make_plan(TOY, 31)
