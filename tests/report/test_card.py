"""The card: its questions alone and together, what it takes, and what it writes."""

import base64
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxebm import report
from jaxebm.report import CARD_FILES, QUESTIONS, Question, ReportSettings, Section, Table
from jaxebm.samplers import sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")
RECORDS = [
    {"step": 1, "loss": 2.0, "telemetry_energy_gap": 0.1, "telemetry_ksd_squared": float("nan")},
    {"step": 2, "loss": 1.0, "telemetry_energy_gap": 0.2, "telemetry_ksd_squared": float("inf")},
]
RECOVERY = {"step": 2, "said": "step 2: the loss", "back_to": 1, "remedy": "more steps", "in_force": ""}
DETAILS = {
    "experiment": "jem",
    "updates": 2,
    "evaluated_update": 2,
    "seconds": 3.0,
    "config": {"seed": 0, "note": "</pre><script>"},
    "command": "jaxebm train --seed 0",
}
COMMON = ("schema", "dataset", "seed", "evaluation")


def logits(params, x):
    return params["weights"] @ x.reshape(-1) + params["biases"]


def measured(entry):
    """A card without what depends on the clock, as it would be read back."""
    if not isinstance(entry, dict):
        return entry
    return {name: measured(value) for name, value in entry.items() if not name.startswith("seconds")}


def evaluate(toy, **options):
    given = {
        "settings": toy.settings,
        "num_steps": 2,
        "buffer": toy.buffer,
        "twin_params": toy.twin_params,
        "records": RECORDS,
        "recoveries": [RECOVERY],
    }
    return report.evaluate(logits, toy.params, toy.dataset, **given | options)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> tuple[Path, dict]:
    """The card of all questions, written."""
    folder = tmp_path_factory.mktemp("card") / "made" / "if need be"
    settings = replace(toy.settings, export_samples=5)
    card = evaluate(toy, folder=folder, settings=settings, details=DETAILS)
    report.write_card(folder, card)
    return folder, card


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_a_question_alone_gives_the_same_entries_and_writes_its_own_files(
    toy, whole, question: Question, tmp_path: Path
):
    settings = replace(toy.settings, export_samples=5)
    alone = evaluate(toy, folder=tmp_path, settings=settings, questions=(question,))
    entries = {name: value for name, value in alone.items() if name not in ("environment", "parameters")}
    assert len(entries) > len(COMMON)  # something is the question's own
    assert measured(entries) == measured({name: whole[1][name] for name in entries})
    assert {path.name for path in tmp_path.iterdir()} == set(question.files)
    for name in question.files:
        if name.endswith(".png"):
            assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


def test_without_a_folder_nothing_is_written(toy, whole, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = evaluate(toy)
    assert not list(tmp_path.iterdir())
    expected = {
        name: value for name, value in whole[1].items() if name not in DETAILS and name != "evaluation"
    }
    expected["samples"] = expected["samples"] | {"exported": None}  # no files are written
    assert measured({name: card[name] for name in expected}) == measured(expected)
    assert set(card) == {*expected, "evaluation"}


def test_all_files_are_named_beforehand(whole):
    assert {path.name for path in whole[0].iterdir()} == set(CARD_FILES)
    assert len(set(CARD_FILES)) == len(CARD_FILES)


def test_a_card_is_json_and_says_what_it_was_asked(toy, whole):
    folder, card = whole
    assert json.loads((folder / "card.json").read_text()) == json.loads(json.dumps(card, allow_nan=False))
    assert card["schema"] == 2
    assert (card["dataset"], card["seed"], card["parameters"]) == ("toy", 0, 3 * 36 + 3)
    assert card["evaluation"]["sample_steps"] == [1, 2]
    assert set(card["evaluation"]) == set(ReportSettings.__dataclass_fields__)
    assert {name: card[name] for name in DETAILS} == DETAILS
    assert card["telemetry"] == {"energy_gap": 0.2, "ksd_squared": None}
    assert card["recoveries"] == [RECOVERY]


def test_every_key_of_the_card_is_documented(whole):
    _, card = whole
    documented = (Path(__file__).parents[2] / "docs" / "card.md").read_text()
    assert all(f"`{key}" in documented for key in card)
    for part in ("tasks", "robustness", "long_run", "samples", "temperature_scaled"):
        for key in card[part]:
            assert f"{part}.{key}" in documented or f"`{key}`" in documented or f"<{key}" in documented, key


def test_attacks_never_gain_with_the_radius_and_tasks_have_their_numbers(whole):
    _, card = whole
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


def test_exported_samples_are_the_first_of_each_class_in_turn(toy, whole):
    folder, card = whole
    assert card["samples"]["exported"]["count"] == 5
    files = sorted((folder / card["samples"]["exported"]["folder"]).glob("*.png"))
    assert len(files) == 5
    # The 5th file is the second chain of class 1, the three classes taking turns.
    arrays = np.load(folder / "samples.npz")
    expected = arrays["fresh_2"][arrays["label"] == 1][1, :, :, 0]
    shown = np.asarray(Image.open(files[4]), float) / 255 * 2 - 1
    np.testing.assert_allclose(shown, np.clip(expected, -1, 1), atol=1 / 255 + 1e-6)


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
        assert tag not in ("script", "link", "iframe", "i", "em")
        assert tag != "figure" or self.open[-1] == "section"  # no paragraph may hold one
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(whole):
    folder, card = whole
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.open
    assert all(link.startswith("#") and link[1:] in page.anchors for link in page.links)
    assert "#how-to-get-it-again" in page.links
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in page.sources)
    pictures = {base64.b64decode(source.removeprefix(prefix)) for source in page.sources}
    assert pictures == {path.read_bytes() for path in folder.glob("*.png")}
    assert "url(" not in text
    assert not re.search(r"https?://", text)
    assert f"<td>{card['accuracy']:.4f}</td>" in text
    assert '<pre class="command">jaxebm train --seed 0\n</pre>' in text
    # The second class, and the third where it takes part, are two of those whose mean images are closest.
    shown = {"plain": "plain", "with_under_scores": "with_under_scores", "a|b <i>*c*": "a|b &lt;i&gt;*c*"}
    for name in ("this_class", "that_class"):
        assert f"<th>judged {shown[card['tasks']['composition'][name]]}</th>" in text


def test_sections_are_left_out_where_nothing_is_known(toy, tmp_path: Path):
    settings = replace(toy.settings, tasks=False, long_run_factors=(), likelihood_steps=0, attack_images=0)
    chosen = [one for one in QUESTIONS if one.name != "samples" and one.name != "energies"]
    card = evaluate(toy, settings=settings, records=(), recoveries=(), questions=chosen)
    assert card["tasks"] is card["long_run"] is card["likelihood"] is card["robustness"] is None
    assert card["recoveries"] is card["telemetry"] is None
    text = report.write_card(tmp_path, card)
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert titles == ["Classes", "Out of distribution", "How to get it again"]
    assert "seconds in total" not in text
    assert "```sh" not in text
    assert "Settings of the evaluation" in text
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "card.md", "report.html"}


def test_a_question_of_ones_own_takes_part(toy, tmp_path: Path):
    table = Table("All", ["", "a|b"], [])
    mine = Question(
        "brightness",
        judge=lambda evaluation: {"brightness": float(evaluation.images["test"].mean())},
        summary=lambda card: [("brightness", f"{card['brightness']:.3f}", "")],
        sections=lambda card: [Section("Brightness", "Of test images.", tables=[table])],
    )
    card = evaluate(toy, questions=(mine,))
    text = report.write_card(tmp_path, card, questions=(mine,))
    assert card["brightness"] == pytest.approx(toy.dataset.rescale(toy.dataset.test.image).mean(), abs=1e-6)
    assert f"| brightness | {card['brightness']:.3f} |  |" in text
    assert "## Brightness\n\nOf test images.\n\n### All\n\n|  | a&#124;b |\n" in text


def test_no_number_of_a_card_may_be_infinite(toy, tmp_path: Path):
    card = evaluate(toy, questions=QUESTIONS[:1]) | {"mine": {"values": [0.0, float("nan")]}}
    with pytest.raises(ValueError, match=r"card\.mine\.values\[1\] is nan"):
        report.write_card(tmp_path, card)
    assert not list(tmp_path.iterdir())


def test_an_energy_is_judged_by_its_density_alone(toy):
    """A Gaussian of variance 0.3 about the mean training image."""
    dataset, mean = toy.dataset, jnp.asarray(toy.dataset.rescale(toy.dataset.train.image).mean(axis=0))

    def energy(params, x):
        return 0.5 * jnp.sum((x - params) ** 2) / 0.3

    settings = replace(toy.settings, sample_steps=(60,), task_steps=60, task_images=90)
    card = report.evaluate(
        energy,
        mean,
        dataset,
        settings=settings,
        kernel=lambda target: sgld(target, step_size=0.05),
        num_steps=5,
    )
    assert card["accuracy"] is card["robustness"] is card["samples"]["fresh"] is None
    assert set(card["ood"]) == {
        f"{score}{kind}"
        for score in ("log_density", "gradient_norm", "typicality")
        for kind in ("", "_auprc", "_fpr95")
    }
    inside, outside = (
        0.5 * np.sum((dataset.rescale(images) - np.asarray(mean)) ** 2, axis=(1, 2, 3)) / 0.3
        for images in (dataset.test.image, dataset.held_out.image)
    )
    assert card["energy"]["test"]["mean"] == pytest.approx(inside.mean(), rel=1e-5)
    expected = np.mean(inside[:, None] < outside)
    assert card["ood"]["log_density"]["excluded_classes"] == pytest.approx(expected)
    # Half of this Gaussian given the other half is the same Gaussian: a chain fills in with its stationary
    # variance, 0.3 / (1 - 0.05 / 0.6), about the mean; the mean of four chains has a quarter of that.
    inpainting, variance = card["tasks"]["inpainting"], 0.3 / (1 - 0.05 / 0.6)
    assert inpainting["mse"] - inpainting["mse_mean_fill"] == pytest.approx(variance, rel=0.2)
    assert inpainting["mse_of_mean"] - inpainting["mse_mean_fill"] == pytest.approx(variance / 4, rel=0.3)
    assert card["tasks"]["composition"] is None
    assert len(card["samples"]["unconditional"]["by_steps"]["60"]["class_shares"]) == 3


def logits_at(params, x, level):
    return logits(params, x) / level


PATH = report.LevelPath(logits_at, lowest=0.5, highest=4.0)


def test_the_tasks_of_a_model_that_is_told_levels_follow_its_path(toy, tmp_path: Path):
    """Of a Gaussian about each prototype under noise, and of images that are all seen before."""
    dataset = toy.dataset
    images, labels = np.asarray(dataset.rescale(dataset.train.image)), dataset.train.label
    means = jnp.asarray(np.stack([images[labels == y].mean(axis=0) for y in range(3)]))
    variance = float(np.mean((images - np.asarray(means)[labels]) ** 2))

    def gaussians_at(params, x, level):
        total = variance + level**2
        return -0.5 * jnp.sum((x[None] - params) ** 2, axis=(1, 2, 3)) / total - 18.0 * jnp.log(total)

    settings = replace(
        toy.settings, task_steps=40, task_images=60, refinement_steps=(0, 3), sample_steps=(2,)
    )
    card = report.evaluate(
        lambda params, x: gaussians_at(params, x, 0.05),
        means,
        dataset,
        settings=settings,
        num_steps=2,
        initial=lambda rng_key, label: jax.random.normal(rng_key, dataset.image_shape),
        path=report.LevelPath(gaussians_at, lowest=0.05, highest=20.0, state_clamp=(-1.0, 1.0)),
        questions=("tasks",),
        folder=tmp_path,
    )
    tasks = card["tasks"]
    denoising, inpainting, composition = (tasks[name] for name in ("denoising", "inpainting", "composition"))
    assert list(denoising["mse"]) == ["0", "1", "3", "10"]
    posterior = variance * 0.3**2 / (variance + 0.3**2)  # of pixels whose noise is not clipped
    assert denoising["mse"]["1"] < 1.1 * posterior < denoising["mse"]["10"] < 2.5 * posterior
    # The class is told by the half that is seen: a draw is the prototype with noise, clipped as images are.
    test = np.asarray(dataset.rescale(dataset.test.image[:60]))
    noise = np.random.default_rng(0).normal(size=(4, *test.shape))
    drawn = np.clip(np.asarray(means)[dataset.test.label[:60]] + np.sqrt(variance) * noise, -1, 1)
    for name, filled in (("mse", drawn[0]), ("mse_of_mean", drawn.mean(axis=0))):
        expected = np.mean((filled - test)[:, 3:] ** 2)  # of 1080 pixels
        assert inpainting[name] == pytest.approx(expected, rel=5 * np.sqrt(2 * 2 / 1080))
    assert inpainting["class_kept"] == 1.0
    assert composition["this"]["share_this"] > 0.95
    assert composition["not"]["share_this"] > 0.95
    assert composition["or"]["share_this"] + composition["or"]["share_that"] > 0.95
    assert min(composition["or"]["share_this"], composition["or"]["share_that"]) > 0.2
    chosen = [question for question in QUESTIONS if question.name == "tasks"]
    text = report.write_card(tmp_path, card, questions=chosen)
    assert "from noise through 10 noise levels, 38 gradients each" in text
    assert "One step is the posterior mean" in text
    assert "At every noise level the energy is E(x) - s log p" in text.replace("\\", "")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataset": (np.zeros(3), np.zeros(3))}, TypeError, "dataset is of type tuple"),
        ({"settings": {"tasks": False}}, TypeError, "settings is of type dict"),
        ({"settings": ReportSettings(attack_radii_l2=(1.0, 0.5))}, ValueError, "attack_radii_l2"),
        ({"settings": ReportSettings(ood_sets=("no_such_set",))}, RuntimeError, "no_such_set"),
        ({"num_steps": 0}, ValueError, "num_steps=0"),
        ({"seed": 0.5}, ValueError, "seed=0.5"),
        ({"model": None}, TypeError, "model=None is not a function"),
        (
            {"model": lambda params, x: logits(params, x)[:2]},
            ValueError,
            r"returns shape \(2,\) for one image",
        ),
        ({"model": lambda params, x: (logits(params, x), x)}, TypeError, r"logits \(K,\) or an energy"),
        (
            {"model": lambda params, x: logits(params, x[:-1])},
            ValueError,
            r"one image x of shape \(6, 6, 1\)",
        ),
        ({"twin_params": {}}, ValueError, "fails on one image"),
        ({"kernel": sgld(lambda x: x.sum(), 0.1)}, TypeError, "kernel is a kernel that is bound"),
        ({"initial": lambda rng_key, label: jnp.zeros(3)}, ValueError, r"initial gives .*\(6, 6, 1\)"),
        ({"records": [{"loss": 1.0}]}, ValueError, "records has .*: each record needs its step"),
        ({"details": {"mine": object()}}, TypeError, r"details\['mine'\] is of type object"),
        ({"questions": "classes"}, TypeError, "questions='classes'"),
        ({"conditional": 1}, TypeError, "conditional=1"),
        ({"path": (0.1, 1.0)}, TypeError, "path is of type tuple"),
        ({"path": PATH._replace(highest=0.1)}, ValueError, r"path.highest=0.1: highest must be above"),
        ({"path": PATH._replace(guidance=-1.0)}, ValueError, r"path.guidance=-1.0"),
        ({"path": PATH._replace(state_clamp=(1.0, -1.0))}, ValueError, "path.state_clamp"),
        ({"path": PATH._replace(logits_at=logits)}, TypeError, "path.logits_at"),
        ({"path": PATH, "num_steps": 1}, ValueError, "num_steps=1: with a path .* at least 2"),
        ({"path": PATH._replace(num_levels=1)}, ValueError, "path.num_levels=1"),
        ({"path": PATH._replace(step_factor=2.0)}, ValueError, "path.step_factor=2.0"),
        ({"path": PATH._replace(mean=np.nan)}, ValueError, "path.mean"),
        ({"path": PATH._replace(num_levels=5), "num_steps": 4}, ValueError, "num_steps=4: .* at least 5"),
    ],
)
def test_unfit_arguments_are_refused_before_anything_is_compiled(
    toy, change, error, message, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr("jax.jit", lambda *arguments, **options: pytest.fail("a program was made"))
    given = {"model": logits, "params": toy.params, "dataset": toy.dataset} | change
    with pytest.raises(error, match=message):
        report.evaluate(**given, folder=tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refinement_steps": (-1,)}, "refinement_steps"),
        ({"sample_steps": ()}, "sample_steps"),
        ({"ood_sets": ("mnist", "mnist")}, "named once"),
        ({"samples_per_class": 0}, "samples_per_class=0"),
        ({"likelihood_steps": 1}, "likelihood_steps=1"),
        ({"task_noise": -0.1}, "task_noise=-0.1"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ReportSettings(**change).check()


def test_heavy_packages_are_imported_when_they_are_used():
    modules = [module.name for module in pkgutil.iter_modules(report.__path__, "jaxebm.report.")]
    assert "jaxebm.report.card" in modules
    hidden = ["matplotlib", "sklearn", "PIL", "tabulate", "markdown_it", "tensorflow_datasets", "tyro"]
    program = f"""
import sys
sys.modules.update(dict.fromkeys({hidden}))  # as if they were not installed
import importlib
for name in {modules}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert all(importlib.util.find_spec(name) for name in hidden)


@pytest.mark.parametrize("how", [report.evaluate, report.write_card], ids=["evaluate", "write_card"])
def test_a_file_in_the_place_of_the_folder_is_named(toy, whole, how, tmp_path: Path):
    (tmp_path / "file").touch()
    arguments = (logits, toy.params, toy.dataset) if how is report.evaluate else (tmp_path / "file", whole[1])
    options = {"folder": tmp_path / "file"} if how is report.evaluate else {}
    with pytest.raises(FileExistsError, match=f"folder={tmp_path / 'file'} is a file"):
        how(*arguments, **options)


def test_numbers_of_numpy_are_written_as_numbers(whole, tmp_path: Path):
    mine = {"a": np.float32(0.5), "b": [np.int64(3)], "c": np.arange(2.0), "d": jnp.ones(()), "e": tmp_path}
    report.write_card(tmp_path, whole[1] | {"mine": mine})
    written = json.loads((tmp_path / "card.json").read_text())["mine"]
    assert written == {"a": 0.5, "b": [3], "c": [0.0, 1.0], "d": 1.0, "e": str(tmp_path)}
    with pytest.raises(ValueError, match=r"card\.mine is nan"):
        report.write_card(tmp_path, whole[1] | {"mine": np.float32("nan")})
