"""The speed run at toy size: it learns both halves of its task, and writes what it promises."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jem_cifar10_speedrun as speedrun
from jaxebm.data import Dataset, Split, init_stream
from jaxebm.energies import MLP
from jaxebm.objectives import persistent
from jaxebm.samplers import fit_class_gaussians, sgld
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


def test_the_weight_of_the_images_is_faded_in_and_only_labelled_ones_are_augmented(shades: Dataset):
    plan = speedrun.make_plan(TOY, 128)
    assert plan == (24, 12, 4, 4)
    take = jax.jit(speedrun.make_take(TOY, shades, plan))
    places = init_stream(jax.random.key(0), 128), init_stream(jax.random.key(1), 128)
    streams = speedrun.Streams(*places, updates=jnp.zeros((), jnp.int32))
    weights, known = [], {image.tobytes() for image in shades.rescale(shades.train.image)}
    for update in range(24):
        batch, streams = take(jax.random.key(update), jax.tree.map(jnp.asarray, shades.train), streams)
        weights.append(float(batch.fade))
        assert {image.tobytes() for image in np.asarray(batch.x_data)} <= known
    assert weights == [0.0] * 12 + [0.25, 0.5, 0.75, 1.0] + [1.0] * 8
    assert not {image.tobytes() for image in np.asarray(batch.x_labelled)} <= known


@pytest.mark.usefixtures("cheap_compilation")
def test_chains_are_those_of_the_plain_buffer():
    """Carrying the Gaussians in the memory changes where they are kept, and no number."""
    images = np.random.default_rng(0).uniform(-1, 1, (40, 2, 2, 1))
    initial = fit_class_gaussians(images, np.arange(40) % 2, 2, clamp=(-1.0, 1.0))
    ours = speedrun.make_negatives(TOY, 2, initial)
    theirs = persistent(
        partial(sgld, step_size=1.0, noise_scale=0.0, gradient_clip=1.0, state_clamp=(-1.0, 1.0)),
        num_steps=2,
        initial=initial,
        num_chains=16,
        capacity=64,
        num_classes=2,
    )

    def energy(params, x, label):
        return 0.1 * jnp.sum((x - label) ** 2)

    @partial(jax.jit, static_argnums=0)
    def drawn(sampler):
        memory = sampler.init(jax.random.key(0))
        return sampler.draw(jax.random.key(1), energy, None, None, None, memory)

    (found, memory), (expected, buffer) = drawn(ours), drawn(theirs)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(memory[0].positions, buffer.positions)
    np.testing.assert_array_equal(memory[1].factors, initial.factors)


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
