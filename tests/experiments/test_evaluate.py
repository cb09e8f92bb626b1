"""Evaluating a run again: the same card for the same flags, whatever the flags are, and no run lost to it."""

import base64
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image

import evaluate
import jem
from card_classes import judge_predictions, scale
from card_html import command_of
from card_ood import outlier_sets
from card_parts import Evaluation, ModelUnderTest
from card_samples import Samples, finite, make_judges
from command_line import as_json, run_experiment
from evaluation_config import EvaluationFlags
from jaxebm.data import Dataset, Split, load_dataset
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import RunFolder
from jem_card import evaluate as evaluate_model
from jem_config import Config, recipe_for

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")
LIGHT = {
    "samples_per_class": 7,
    "sample_steps": (2,),
    "long_run_factors": (2,),
    "long_run_chains": 8,
    "likelihood_steps": 0,
    "features": False,
    "attack_images": 6,
    "attack_radii_linf": (0.1,),
    "attack_radii_l2": (),
    "attack_steps": 2,
    "attack_restarts": 1,
    "refinement_steps": (0, 1),
    "task_images": 8,
    "task_steps": 3,
}
TOY = jem.Config(
    progress=False,
    widths=(16,),
    epochs=1,
    batch_size=62,
    num_chains=20,
    sampler_steps=3,
    buffer_size=200,
    steps_per_dispatch=10,
    checkpoint_every=10,
    telemetry_every=0,
    **LIGHT,
)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("evaluate") / "run"
    return output, jem.main(replace(TOY, output=output))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def measured(card: dict) -> dict:
    """The card without what depends on the clock."""

    def clean(entry):
        if not isinstance(entry, dict):
            return entry
        return {name: clean(value) for name, value in entry.items() if not name.startswith("seconds")}

    return json.loads(json.dumps(clean(card)))


def evaluate_again(run: Path, *flags: str) -> dict:
    """What the command line does."""
    cards: list[dict] = []
    arguments = [str(run), *flags]
    defaults = evaluate.defaults_for(arguments)
    run_experiment(
        evaluate.EvaluateConfig,
        lambda config: cards.append(evaluate.main(config)),
        arguments,
        default=defaults,
    )
    return cards[0]


@pytest.fixture(scope="module")
def again(toy_run) -> dict:
    """The run evaluated again, by the flags that it had."""
    return evaluate_again(toy_run[0])


def test_the_same_flags_give_the_card_that_the_run_ended_with(toy_run, again):
    output, card = toy_run
    assert measured(again) == measured(card)
    saved = json.loads((output / "evaluation" / "card.json").read_text())
    assert measured(saved) == measured(json.loads((output / "card.json").read_text())) == measured(card)
    pictures = {path.name for path in output.glob("*.png")}
    assert {"samples.png", "ood.png", "robustness.png", "long_run.png", "inpainting.png"} <= pictures
    for name in pictures:
        assert (output / "evaluation" / name).read_bytes() == (output / name).read_bytes()


def test_an_evaluation_is_replaced_only_where_that_is_asked_for(toy_run, again, tmp_path: Path, capsys):
    output, _ = toy_run
    there = shutil.copytree(output / "evaluation", tmp_path / "there")
    before = files_of(there), files_of(output)
    flags = ["--no-tasks", "--attack-images", "0", "--long-run-factors", "--export-samples", "23"]
    flags += ["--sample-steps", "1", "--output", str(there)]
    with pytest.raises(SystemExit):
        evaluate_again(output, *flags)
    assert "--overwrite" in capsys.readouterr().err
    assert files_of(there) == before[0]
    card = evaluate_again(output, *flags, "--overwrite")
    assert files_of(output) == before[1]
    assert card["tasks"] is card["robustness"] is card["long_run"] is None
    assert set(card["samples"]["fresh"]["by_steps"]) == {"1"}
    assert card["samples"]["exported"]["count"] == 23
    files = sorted((there / card["samples"]["exported"]["folder"]).glob("*.png"))
    assert len(files) == 23
    # The 14th file is the second chain of class 3, the classes taking turns.
    arrays = np.load(there / "samples.npz")
    expected = arrays["fresh_1"][arrays["label"] == 3][1, :, :, 0]
    shown = np.asarray(Image.open(files[13]), float) / 255 * 2 - 1
    np.testing.assert_allclose(shown, np.clip(expected, -1, 1), atol=1 / 255 + 1e-6)


@pytest.mark.parametrize("flags", [["--overwrite"], []])
def test_a_run_is_never_written_over(toy_run, flags: list[str], capsys):
    output, _ = toy_run
    before = files_of(output / "checkpoints")
    with pytest.raises(SystemExit):
        evaluate_again(output, "--output", str(output), *flags)
    assert "holds a run and its checkpoints" in capsys.readouterr().err
    assert files_of(output / "checkpoints") == before


@pytest.fixture
def copied(toy_run, tmp_path: Path) -> Path:
    """A run that may be damaged, without what it ended with."""
    output, _ = toy_run
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(output / name, tmp_path / "run" / name)
    shutil.copytree(output / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def one_line_of(run: Path, capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        evaluate_again(run, *flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert not (run / "evaluation").exists()
    return error


def test_a_damaged_checkpoint_is_refused(copied: Path, capsys):
    newest = max((int(path.name), path) for path in (copied / "checkpoints").iterdir())[1]
    damaged = max(newest.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    assert "is damaged" in one_line_of(copied, capsys)


def test_a_foreign_checkpoint_is_refused(copied: Path, capsys):
    saved = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(saved | {"learning_rate": 0.5}))
    assert "learning_rate" in one_line_of(copied, capsys)


def test_what_is_no_run_is_refused(copied: Path, tmp_path: Path, capsys):
    assert "holds no run" in one_line_of(tmp_path / "nowhere", capsys)
    saved = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(saved | {"number_of_spins": 3}))
    assert "number_of_spins" in one_line_of(copied, capsys)
    (copied / "config.json").write_text("[1, 2")
    assert "no readable configuration" in one_line_of(copied, capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--select", "best"], "--select last"),
        (["--attack-radii-l2", "1", "0.5"], "attack_radii_l2"),
        (["--refinement-steps", "-1"], "refinement_steps"),
        (["--ood-sets", "mnist", "mnist"], "named once"),
        (["--ood-sets", "no_such_set"], "no_such_set"),
        (["--samples-per-class", "0"], "samples_per_class=0"),
    ],
)
def test_bad_flags_are_told_before_anything_is_written(copied: Path, capsys, flags: list[str], message: str):
    assert message in one_line_of(copied, capsys, *flags)


def test_an_interrupted_run_has_a_card_without_its_twin(copied: Path):
    shutil.rmtree(copied / "checkpoints" / "20")  # as if it had been stopped after the first checkpoint
    flags = ["--no-tasks", "--attack-images", "0", "--sample-steps", "1", "--long-run-factors"]
    card = evaluate_again(copied, *flags)
    assert card["evaluated_update"] == 10
    assert card["updates"] == 20
    assert card["twin"] is None
    assert card["seconds_training"] is None
    assert np.isfinite(card["nll"])


def test_the_twin_is_kept_and_recognised(toy_run, tmp_path: Path):
    output, card = toy_run
    saved = json.loads((output / "config.json").read_text())
    template = {"params": {"w": np.zeros((2, 3), np.float32)}}
    mine = RunFolder(tmp_path, saved)
    assert evaluate.load_twin(mine, template) is None
    params = jax.tree.map(lambda leaf: leaf + 1, template)
    evaluate.save_twin(mine, params)
    jax.tree.map(np.testing.assert_array_equal, evaluate.load_twin(mine, template), params)
    assert evaluate.load_twin(RunFolder(tmp_path, saved | {"epochs": 99}), template) is None
    assert evaluate.load_twin(RunFolder(tmp_path, saved | {"samples_per_class": 99}), template) is not None
    assert evaluate.load_twin(mine, {"params": {"w": np.zeros(3, np.float32)}}) is None
    assert card["twin"] is not None


def test_every_key_of_the_card_is_documented(toy_run):
    _, card = toy_run
    documented = (Path(evaluate.__file__).parents[1] / "docs" / "card.md").read_text()
    assert all(f"`{key}" in documented for key in card)
    for part in ("tasks", "robustness", "long_run", "samples", "temperature_scaled"):
        for key in card[part]:
            assert f"{part}.{key}" in documented or f"`{key}`" in documented or f"<{key}" in documented, key


def test_attacks_never_gain_with_the_radius_and_tasks_have_their_numbers(toy_run):
    _, card = toy_run
    entry = card["robustness"]["linf"]
    assert entry["radii"] == [0, 0.1]
    assert set(entry["refined"]) == {"0", "1"}
    for curve in (*entry["refined"].values(), entry["twin"]):
        assert len(curve) == 2
        assert curve[0] >= curve[1]
    found = [min(entry["adaptive"]["1"][1], entry["transfer"]["1"][1], entry["refined"]["1"][0])]
    assert entry["refined"]["1"][1:] == found
    assert card["robustness"]["l2"] is None
    tasks = card["tasks"]
    assert tasks["inpainting"]["mse_of_mean"] <= tasks["inpainting"]["mse"]  # variance is never negative
    assert set(tasks["denoising"]["mse"]) == {"0", "1"}
    for entry in (tasks["composition"][name] for name in ("this", "and", "or", "not")):
        assert 0 <= entry["share_this"] + entry["share_that"] <= 1


class Page(HTMLParser):
    """What a page asks for, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.sources, self.links, self.anchors = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.anchors |= {attributes["id"]} if "id" in attributes else set()
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(toy_run):
    output, card = toy_run
    text = (output / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.open
    assert all(link.startswith("#") and link[1:] in page.anchors for link in page.links)
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in page.sources)
    pictures = {base64.b64decode(source.removeprefix(prefix)) for source in page.sources}
    shown = {name for name in output.glob("*.png") if name.read_bytes() in pictures}
    assert shown == set(output.glob("*.png"))
    assert "url(" not in text
    assert not re.search(r"https?://", text)
    assert f"{card['accuracy']:.4f}" in text


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--network", "convnet", "--epochs", "7", "--sample-steps", "10", "20", "--no-twin"],
        [
            "--recipe",
            "jempp",
            "--dataset",
            "mnist",
            "--sampler-gradient-clip",
            "None",
            "--output",
            "a folder",
        ],
        ["--long-run-factors", "--exclude-classes", "3", "8", "--recovery-steps", "None"][:4],
    ],
)
def test_the_command_on_the_page_gives_the_configuration_back(flags: list[str]):
    config = tyro.cli(Config, args=flags, default=recipe_for(flags))
    command = shlex.split(command_of(json.loads(json.dumps(as_json(config)))))
    assert command[:2] == ["python", "experiments/jem.py"]
    again = tyro.cli(Config, args=command[2:], default=recipe_for(command[2:]))
    assert again == config
    assert len(command) <= len(flags) + 2


def test_temperature_scaling_by_hand():
    logits = np.array([[3.0, 0.0], [0.0, 1.0]])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(scale(log_p, 2.0)), expected, rtol=1e-12)
    measures = judge_predictions(scale(log_p, 2.0), np.array([0, 0]))
    assert measures["accuracy"] == 0.5
    assert measures["nll"] == pytest.approx(-np.log(expected[:, 0]).mean())


def test_chains_that_diverged_are_counted_and_left_out():
    images = np.zeros((4, 2, 2, 1))
    images[1, 0, 0, 0], images[3, 1, 1, 0] = np.nan, np.inf
    kept = finite(Samples(images, np.arange(4)))
    assert kept.images.shape == (2, 2, 2, 1)
    np.testing.assert_array_equal(kept.labels, [0, 2])
    with pytest.raises(RuntimeError, match="all 1 chains"):
        finite(Samples(images[1:2], None))


def test_images_of_one_class_need_no_judge_of_classes(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), np.uint8)
    split = Split(image, np.zeros(30, np.int32))
    dataset = Dataset("mine", split, split, split, 1, (0, 255), ("thing",))
    images = dict.fromkeys(("train", "validation", "test"), np.asarray(dataset.rescale(image)))
    evaluation = Evaluation(tmp_path, None, dataset, images, EvaluationFlags(), 0, classes=False)
    judges = make_judges(evaluation)
    assert judges.network is judges.features is None
    np.testing.assert_array_equal(judges.predict(images["test"]), 0)
    np.testing.assert_array_equal(judges.real, images["train"])
    assert set(outlier_sets(evaluation)) == {"uniform_noise", "constant", "permuted_pixels"}


def test_a_model_without_classes_is_judged_by_its_density_alone(tmp_path: Path):
    def minus_energy(params, x):  # a Gaussian about the mean training image, as one logit
        return -0.5 * jnp.sum((x - params) ** 2, keepdims=True).reshape(1) / 0.3

    dataset = load_dataset("digits")
    mean = jnp.asarray(dataset.rescale(dataset.train.image).mean(axis=0))
    model = ModelUnderTest(
        logits=minus_energy,
        params=mean,
        twin_params=None,
        kernel=lambda target: sgld(target, step_size=0.05),
        num_steps=5,
        initial=UniformInitial(-1.0, 1.0, shape=dataset.image_shape),
        buffer=None,
        conditional=False,
    )
    flags = EvaluationFlags(**LIGHT | {"sample_steps": (60,), "task_steps": 60, "task_images": 100})
    run = RunFolder(tmp_path)
    card = evaluate_model(run, model, dataset, flags, seed=0)
    assert card["accuracy"] is card["robustness"] is card["samples"]["fresh"] is None
    assert set(card["ood"]) == {
        f"{score}{kind}"
        for score in ("log_density", "gradient_norm", "typicality")
        for kind in ("", "_auprc", "_fpr95")
    }
    assert card["ood"]["log_density"]["uniform_noise"] > 0.9
    # Half of this Gaussian given the other half is the same Gaussian: a chain fills in with its stationary
    # variance, 0.3 / (1 - 0.05 / 0.6), about the mean; the mean of four chains has a quarter of that.
    inpainting, variance = card["tasks"]["inpainting"], 0.3 / (1 - 0.05 / 0.6)
    assert inpainting["mse"] - inpainting["mse_mean_fill"] == pytest.approx(variance, rel=0.1)
    assert inpainting["mse_of_mean"] - inpainting["mse_mean_fill"] == pytest.approx(variance / 4, rel=0.2)
    assert card["tasks"]["composition"] is None
    assert len(card["samples"]["unconditional"]["by_steps"]["60"]["class_shares"]) == 10
