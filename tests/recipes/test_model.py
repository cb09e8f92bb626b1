"""A trained model as an object: it says what its network says, in raw pixels; bad folders are refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxebm
from jaxebm.data import Dataset, ImageSpace
from jaxebm.recipes import Config, LogDensityBounds, Model, replace_settings, train
from jaxebm.samplers import UniformInitial
from jaxebm.training import CheckpointCorruptError, Checkpoints, RunFolder


@pytest.fixture(scope="module")
def model(finished) -> Model:
    return jaxebm.load(str(finished.folder))


@pytest.fixture(scope="module")
def rescaled(finished) -> jax.Array:
    return jnp.asarray(finished.dataset.rescale(finished.dataset.test.image))


@pytest.fixture
def copied(finished, tmp_path: Path) -> Path:
    """A run that may be damaged."""
    return shutil.copytree(finished.folder, tmp_path / "run")


@pytest.fixture(scope="module")
def interrupted(toy, blobs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 9 of 12 updates, by Ctrl-C."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    original = RunFolder.append_metrics

    def append_then_stop(self: RunFolder, record: dict[str, Any]) -> None:
        original(self, record)
        if record["step"] == 9:
            raise KeyboardInterrupt

    RunFolder.append_metrics = append_then_stop  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            train(toy({"output": folder}), blobs)
    finally:
        RunFolder.append_metrics = original  # type: ignore[method-assign]
    return folder


def entries_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of change of all that is in a folder."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]
    }


def test_it_is_the_model_that_was_trained(finished, model: Model):
    assert (
        repr(model) == f"Model(recipe='tuned', network='mlp', dataset={finished.config.dataset!r}, step=12)"
    )
    chex.assert_trees_all_equal(model.params, finished.trained.result.params)
    chex.assert_trees_all_equal(model.params, finished.trained.model.params)
    assert model.space == finished.dataset.space == finished.trained.model.space
    assert model.class_names == ("0", "1", "2")
    assert model.config.sampler == finished.config.sampler
    assert model.log_partition is not None
    assert not finished.file.exists()


def test_log_density_is_minus_the_energy_of_the_rescaled_pixels(finished, model: Model, rescaled):
    expected = -jax.vmap(model.energy, (None, 0))(model.params, rescaled)
    found = model.log_density(finished.dataset.test.image)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(found, model.log_density(finished.dataset.test.image[..., 0]))
    of_floats = model.log_density(finished.dataset.test.image.astype(np.float64))
    np.testing.assert_array_equal(found, of_floats)


def test_class_probabilities_are_the_softmax_of_the_logits(finished, model: Model, rescaled):
    logits = jax.vmap(model.logits, (None, 0))(model.params, rescaled)
    found = model.class_probabilities(finished.dataset.test.image)
    np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-5)
    accuracy = np.mean(found.argmax(1) == finished.dataset.test.label)
    assert accuracy == pytest.approx(finished.trained.card["accuracy"])


def test_many_images_go_by_batches(model: Model, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 1), np.uint8)
    whole = model.log_density(images), model.score(images)
    monkeypatch.setattr("jaxebm.recipes.model.BATCH", 10)
    for found, expected in zip((model.log_density(images), model.score(images)), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_the_score_is_the_slope_of_log_density_in_raw_pixels(model: Model):
    rng = np.random.default_rng(1)
    images = rng.uniform(20, 230, (5, 4, 4, 1))
    score = model.score(images)
    assert score.shape == images.shape
    for direction in rng.normal(size=(3, 4, 4, 1)):
        step = 3.0  # raw pixels of 255
        ends = [model.log_density(images + sign * step * direction) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(score * direction, (1, 2, 3)), slope, rtol=2e-2, atol=2e-5)


def test_bounds_are_as_far_apart_as_those_of_log_z(finished, model: Model):
    card = json.loads((finished.folder / "card.json").read_text())
    interval = card["likelihood"]["by_temperature"]["1"]["log_partition"]
    assert model.log_partition == (interval["low"], interval["high"])
    images = finished.dataset.test.image
    bounds, log_density = model.log_density(images, normalised=True), model.log_density(images)
    assert isinstance(bounds, LogDensityBounds)
    width = interval["high"] - interval["low"]
    np.testing.assert_allclose(bounds.high - bounds.low, width, rtol=1e-4, atol=1e-5)
    scale = 16 * math.log(2 / 255)
    np.testing.assert_allclose(bounds.high, log_density - interval["low"] + scale, rtol=1e-5)


def one_pixel(value_range: tuple[float, float], log_partition: tuple[float, float] | None) -> Model:
    """A model of a single pixel, whose log Z a sum tells."""
    config = replace_settings(Config(), {"architecture.widths": (16,)})
    space = ImageSpace((1, 1, 1), value_range, ("a", "b"))
    network = Model(config, None, space, UniformInitial(-1.0, 1.0, (1, 1, 1)), 0).network
    params = network.init(jax.random.key(3), jnp.zeros((1, 1, 1)))
    params = jax.tree.map(lambda leaf: 3.0 * leaf, params)  # not flat
    return Model(config, params, space, UniformInitial(-1.0, 1.0, (1, 1, 1)), 0, log_partition)


def test_a_normalised_density_integrates_to_one_over_raw_pixels():
    value_range = (-3.0, 7.0)
    grid = np.linspace(-1.0, 1.0, 2001)[:, None, None, None]
    plain = one_pixel(value_range, None)
    log_density = -np.asarray(jax.vmap(plain.energy, (None, 0))(plain.params, jnp.asarray(grid, jnp.float32)))
    log_z = float(np.log(np.trapezoid(np.exp(log_density), grid.ravel())))
    model = one_pixel(value_range, (log_z, log_z))
    raw = np.linspace(*value_range, 2001)
    bounds = model.log_density(raw[:, None, None, None], normalised=True)
    np.testing.assert_array_equal(bounds.low, bounds.high)
    assert np.ptp(bounds.low) > 0.5
    assert np.trapezoid(np.exp(bounds.low), raw) == pytest.approx(1.0, abs=1e-4)


def test_samples_are_raw_pixels_within_their_range(model: Model):
    images = model.sample(jax.random.key(0), 6, num_steps=3)
    assert images.shape == (6, 4, 4, 1)
    assert images.dtype == np.float32
    assert images.min() >= 0.0
    assert images.max() <= 255.0
    assert images.std() > 20
    np.testing.assert_array_equal(images, model.sample(jax.random.key(0), 6, num_steps=3))
    assert not np.array_equal(images, model.sample(jax.random.key(1), 6, num_steps=3))
    assert not np.array_equal(images, model.sample(jax.random.key(0), 6, num_steps=4))


def test_the_trained_model_and_the_loaded_one_draw_the_same(finished, model: Model):
    drawn = model.sample(jax.random.key(5), 6, label=2, num_steps=3)
    again = finished.trained.model.sample(jax.random.key(5), 6, label=2, num_steps=3)
    np.testing.assert_allclose(drawn, again, rtol=1e-5, atol=1e-3)


def test_chains_of_a_class_go_down_its_energy(model: Model):
    labels = np.arange(60) % 3

    def energies(num_steps: int) -> np.ndarray:
        images = model.sample(jax.random.key(2), 60, label=labels, num_steps=num_steps)
        logits = jax.vmap(model.logits, (None, 0))(model.params, jnp.asarray(model.space.rescale(images)))
        return -np.asarray(logits)[np.arange(60), labels]

    start, end = energies(1), energies(60)
    for label in range(3):
        assert end[labels == label].mean() < start[labels == label].mean()


def test_one_label_is_that_label_for_all(model: Model):
    one = model.sample(jax.random.key(0), 3, label=1, num_steps=2)
    np.testing.assert_array_equal(one, model.sample(jax.random.key(0), 3, label=[1, 1, 1], num_steps=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 3}, r"label.*0\.\.2"),
        ({"label": -1}, "label"),
        ({"label": [0, 1]}, r"label has shape \(2,\): \(\) or \(4,\)"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_samples": 0}, "num_samples=0"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(model: Model, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        model.sample(jax.random.key(0), **({"num_samples": 4, "num_steps": 2} | options))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 5, 4)), r"images has shape \(2, 5, 4\): \(n, 4, 4, 1\)"),
        (np.zeros((4, 4)), "images has shape"),
        (np.zeros((0, 4, 4)), "at least one image"),
        (np.full((2, 4, 4), np.nan), "images must be finite numbers in 0 to 255"),
        (np.full((2, 4, 4), "a"), "images must be finite numbers"),
    ],
    ids=["shape", "one-image", "none", "nan", "text"],
)
@pytest.mark.parametrize("method", ["log_density", "class_probabilities", "score"])
def test_images_that_do_not_fit_are_refused(model: Model, method: str, images, message: str):
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(images)


def test_an_energy_alone_knows_no_classes(toy, blobs: Dataset, tmp_path: Path):
    settings = {"output": tmp_path / "run", "report": False, "epochs": 1}
    model = train(toy(settings, task="unconditional"), blobs).model
    for one in (model, jaxebm.load(tmp_path / "run")):
        assert not one.knows_classes
        with pytest.raises(ValueError, match=r"class_probabilities: .* knows no classes"):
            one.class_probabilities(blobs.test.image)
        with pytest.raises(ValueError, match=r"label: .* knows no classes"):
            one.sample(jax.random.key(0), 3, label=0)
        assert one.sample(jax.random.key(0), 3, num_steps=2).shape == (3, 4, 4, 1)
        assert one.logits(one.params, jnp.zeros((4, 4, 1))).shape == (1,)
        with pytest.raises(ValueError, match=r"needs bounds of log Z.*evaluation\.likelihood_steps"):
            one.log_density(blobs.test.image, normalised=True)


def test_a_run_that_was_stopped_midway_loads_at_its_last_checkpoint(interrupted: Path, blobs: Dataset):
    model = jaxebm.load(interrupted)
    assert model.step in (6, 9)
    assert model.log_partition is None
    assert np.isfinite(model.log_density(blobs.test.image)).all()
    assert not (interrupted / "card.json").exists()
    early = jaxebm.load(interrupted, step=jaxebm.load(interrupted).step - 3)
    assert early.step == model.step - 3
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(early.params, model.params)


def test_loading_changes_nothing_of_a_run_that_is_being_written(interrupted: Path, tmp_path: Path):
    run = shutil.copytree(interrupted, tmp_path / "run")
    being_written = run / "checkpoints" / "12.orbax-checkpoint-tmp" / "default"
    being_written.mkdir(parents=True)
    (being_written / "d").write_bytes(b"half an arr")
    (run / "metrics.jsonl").open("a").write('{"step": 12, "lo')
    before = entries_of(run)
    model = jaxebm.load(run)
    model.sample(jax.random.key(0), 2, num_steps=1)
    assert entries_of(run) == before
    assert model.step == jaxebm.load(interrupted).step


def test_the_best_checkpoint_is_read_where_the_run_kept_one(
    toy, interrupted: Path, blobs: Dataset, tmp_path: Path
):
    with pytest.raises(FileNotFoundError, match="has a validation_nll: use select='last'"):
        jaxebm.load(interrupted, select="best")
    with pytest.raises(ValueError, match="select='newest': select must be one of 'last', 'best'"):
        jaxebm.load(interrupted, select="newest")  # type: ignore[arg-type]
    settings = {"output": tmp_path / "run", "report": False, "run.select": "best", "run.telemetry_every": 3}
    trained = train(toy(settings), blobs)
    with Checkpoints(tmp_path / "run" / "checkpoints", best_metric="validation_nll") as checkpoints:
        best = checkpoints.best_step()
    assert jaxebm.load(tmp_path / "run").step == trained.model.step == best
    assert jaxebm.load(tmp_path / "run", select="last").step == 12
    chex.assert_trees_all_equal(jaxebm.load(tmp_path / "run").params, trained.result.params)


class TestDamage:
    def test_there_is_no_run(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match="holds no run"):
            jaxebm.load(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="holds no run"):
            jaxebm.load(tmp_path)

    def test_no_such_checkpoint(self, copied: Path):
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 7 in"):
            jaxebm.load(copied, step=7)
        for path in (copied / "checkpoints").iterdir():
            shutil.rmtree(path)
        with pytest.raises(FileNotFoundError, match="holds a run without a checkpoint"):
            jaxebm.load(copied)

    def test_the_configuration_is_missing_or_not_readable(self, copied: Path):
        saved = (copied / "config.json").read_text()
        (copied / "config.json").write_text(saved.replace('"seed"', '"sede"'))
        with pytest.raises(ValueError, match=r"config\.json: there is no setting sede"):
            jaxebm.load(copied)
        (copied / "config.json").write_text(saved[:40])
        with pytest.raises(ValueError, match="not a readable configuration"):
            jaxebm.load(copied)
        (copied / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match="holds no run"):
            jaxebm.load(copied)

    @pytest.mark.parametrize(
        "content",
        ["{", "[]", "{}", '{"space": {}}', '{"space": {"image_shape": [4, 4], "value_range": [0, 1]}}'],
    )
    def test_the_description_of_the_images_is_damaged(self, copied: Path, content: str):
        (copied / "model.json").write_text(content)
        with pytest.raises(ValueError, match=r"model\.json cannot be read"):
            jaxebm.load(copied)

    def test_the_description_of_the_images_is_missing(self, copied: Path):
        (copied / "model.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"model\.json is missing"):
            jaxebm.load(copied)

    def test_the_description_is_of_other_images(self, copied: Path):
        saved = json.loads((copied / "model.json").read_text())
        saved["space"]["image_shape"] = [5, 5, 1]
        (copied / "model.json").write_text(json.dumps(saved))
        with pytest.raises(ValueError, match="the checkpoint has shape"):
            jaxebm.load(copied)

    def test_the_checkpoint_is_damaged(self, copied: Path):
        newest = copied / "checkpoints" / "12"
        largest = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 255
        largest.write_bytes(content)
        with pytest.raises(CheckpointCorruptError, match="is damaged"):
            jaxebm.load(copied)
        assert jaxebm.load(copied, step=9).step == 9

    def test_a_card_that_is_none_costs_the_bounds_only(self, copied: Path):
        (copied / "card.json").write_text("{")
        assert jaxebm.load(copied).log_partition is None
        assert jaxebm.load(copied, step=9).log_partition is None
