"""The command ``jaxebm``: what it prints, what it runs, and that each error is one line and status 2."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxebm
from jaxebm.recipes import as_json, replace_settings
from jaxebm.recipes.command import evaluate_command, main, train_command

FIRST_FLAGS = (
    "recipe",
    "task",
    "dataset",
    "network",
    "epochs",
    "seed",
    "output",
    "resume",
    "overwrite",
    "devices",
    "report",
)


def stopped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit status, and what was printed to both streams."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, printed.out, printed.err


def one_line_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status, out, error = stopped(arguments, capsys)
    assert (status, out) == (2, "")
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("error: ")
    return error.strip()


class TestHelp:
    def test_version(self, capsys):
        main(["--version"])
        assert capsys.readouterr().out == f"jaxebm {version('jaxebm')}\n"

    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_no_command_shows_all(self, capsys, arguments: list[str]):
        main(arguments)
        text = capsys.readouterr().out
        assert text.startswith("usage: jaxebm COMMAND")
        assert all(f"\n  {command} " in text for command in ("train", "evaluate", "sample"))

    def test_an_unknown_command(self, capsys):
        assert "no command trian: choose one of train, evaluate, sample" in one_line_of(["trian"], capsys)

    def test_the_flags_that_matter_fill_the_first_screen(self, capsys):
        status, text, _ = stopped(["train", "--help"], capsys)
        assert status == 0
        first = "\n".join(text.splitlines()[:60])
        assert first.startswith("usage: jaxebm train")
        for name in FIRST_FLAGS:
            assert f"--{name}" in first
        places = [text.index(f"--{name}") for name in (*FIRST_FLAGS, "architecture.widths", "sampler.kernel")]
        assert places == sorted(places)

    @pytest.mark.parametrize(
        ("flags", "step_size"), [([], 0.2), (["--recipe", "jem"], 1.0), (["--recipe=sadajem"], 1.0)]
    )
    def test_defaults_are_those_of_the_recipe(self, capsys, flags: list[str], step_size: float):
        _, text, _ = stopped(["train", *flags, "--help"], capsys)
        words = text[text.index("--sampler.step-size") :].replace("│", " ").split()
        assert words[words.index("(default:") + 1] == f"{step_size})"

    @pytest.mark.parametrize("command", ["evaluate", "sample"])
    def test_a_command_on_a_run_names_it(self, capsys, command: str):
        status, text, _ = stopped([command, "--help"], capsys)
        assert status == 0
        assert f"usage: jaxebm {command} " in text
        assert "RUN" in text.splitlines()[0]
        assert "Folder of the run. (required)" in text
        assert "the folder of a run is needed" in one_line_of([command], capsys)
        assert "holds no run" in one_line_of([command, "nowhere"], capsys)

    def test_defaults_of_an_evaluation_are_those_of_the_run(self, finished, capsys):
        _, text, _ = stopped(["evaluate", str(finished.folder), "--help"], capsys)
        words = text[text.index("--evaluation.samples-per-class") :].replace("│", " ").split()
        assert words[words.index("(default:") + 1] == "7)"


class TestTrain:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--sampler.buffer-size", "32"], "sampler.buffer_size=32 is smaller than sampler.num_chains=64"),
            (["--sampler.step-size", "0"], "sampler.step_size=0.0"),
            (["--optimizer.learning-rate", "-1e-3"], "optimizer.learning_rate"),
            (["--data.batch-size", "5000"], "data.batch_size=5000 exceeds the 1257"),
            (["--sampler.buffer-size", "2001"], "multiple of num_classes=10"),
            (["--objective.p-xy-weight", "1"], "sampler.chains=conditional"),
            (["--data.labels-per-class", "9999"], "9999"),
            (["--dataset", "mnits"], "mnits"),
            (["--dataset", "npz:/nowhere/x.npz"], "/nowhere/x.npz"),
            (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
            (["--evaluation.sample-steps", "10", "5"], "sample_steps"),
            (["--evaluation.likelihood-chains", "1"], "likelihood_chains=1"),
            (["--evaluation.likelihood-temperatures", "0"], "likelihood_temperatures=(0.0,)"),
            (["--run.telemetry-every", "-1"], "run.telemetry_every=-1"),
            (["--run.resume-step", "3"], "it needs --resume"),
            (["--architecture.activation", "swosh"], "swosh"),
            (["--output", "/proc/nowhere"], "output=/proc/nowhere"),
        ],
    )
    def test_bad_input_is_one_clear_line_and_nothing_is_left(
        self, tmp_path: Path, capsys, flags: list[str], message: str
    ):
        output = [] if "--output" in flags else ["--output", str(tmp_path / "run")]
        assert message in one_line_of(["train", *output, "--run.no-progress", *flags], capsys)
        assert not (tmp_path / "run" / "config.json").exists()

    @pytest.mark.parametrize(
        "flags",
        [["--recipe", "nope"], ["--sampler.step-size", "fast"], ["--sampler-step-size", "3"], ["--epochs"]],
        ids=" ".join,
    )
    def test_a_flag_that_cannot_be_read_is_named(self, tmp_path: Path, capsys, flags: list[str]):
        status, out, error = stopped(["train", "--output", str(tmp_path / "run"), *flags], capsys)
        assert (status, out) == (2, "")
        assert flags[0] in error
        assert not (tmp_path / "run").exists()

    def test_the_command_on_the_card_trains_the_run_again(self, finished, arrays, tmp_path: Path, capsys):
        np.savez(finished.file, image=arrays[0], label=arrays[1])
        command = finished.trained.card["command"].split()
        assert command[:2] == ["jaxebm", "train"]
        main([*command[1:], "--output", str(tmp_path / "run"), "--no-report", "--run.no-progress"])
        finished.file.unlink()
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", "")
        model = jaxebm.load(tmp_path / "run")
        expected = as_json(replace_settings(finished.config, {"output": tmp_path / "run", "report": False}))
        assert json.loads((tmp_path / "run" / "config.json").read_text()) == expected | {"devices": None}
        for leaf, other in zip(
            jax.tree.leaves(model.params), jax.tree.leaves(finished.trained.result.params), strict=True
        ):
            np.testing.assert_array_equal(leaf, other)

    def test_the_script_is_the_command(self, capsys):
        for run, name in ((train_command, "jem.py"), (evaluate_command, "evaluate.py")):
            with pytest.raises(SystemExit):
                run(["--help"], program=name)
            assert capsys.readouterr().out.startswith(f"usage: {name} ")


class TestSample:
    @pytest.fixture
    def run(self, finished, tmp_path: Path) -> Path:
        return shutil.copytree(finished.folder, tmp_path / "run")

    def test_images_and_a_picture(self, run: Path, capsys):
        flags = ["sample", str(run), "--label", "2", "--count", "12", "--num-steps", "3", "--seed", "4"]
        main(flags)
        assert "12 images of class 2 after 3 sampler steps" in capsys.readouterr().out
        drawn = np.load(run / "drawn.npz", allow_pickle=False)
        expected = jaxebm.load(run).sample(jax.random.key(4), 12, label=2, num_steps=3)
        np.testing.assert_array_equal(drawn["image"], expected)
        np.testing.assert_array_equal(drawn["label"], np.full(12, 2))
        width, height = Image.open(run / "drawn.png").size
        assert width > height  # ten columns, two rows
        assert {"drawn.npz", "drawn.png"} <= set(json.loads((run / "contents.json").read_text()))
        before = (run / "drawn.npz").read_bytes()
        assert "--overwrite" in one_line_of([*flags, "--seed", "5"], capsys)
        assert (run / "drawn.npz").read_bytes() == before
        main([*flags, "--seed", "5", "--overwrite"])
        assert (run / "drawn.npz").read_bytes() != before

    def test_of_no_class_and_elsewhere(self, run: Path, tmp_path: Path):
        file = tmp_path / "new" / "images.npz"
        main(["sample", str(run), "--count", "3", "--num-steps", "2", "--output", str(file)])
        drawn = np.load(file, allow_pickle=False)
        assert drawn["image"].shape == (3, 4, 4, 1)
        np.testing.assert_array_equal(drawn["label"], [-1, -1, -1])
        assert file.with_suffix(".png").exists()
        assert not (run / "drawn.npz").exists()

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--label", "3"], "labels must lie in 0..2"),
            (["--label", "-1"], "label"),
            (["--count", "0"], "count=0"),
            (["--num-steps", "0"], "num_steps=0"),
            (["--output", "images.png"], "the name of an .npz file is needed"),
        ],
    )
    def test_what_cannot_be_drawn_is_one_line(self, run: Path, capsys, flags: list[str], message: str):
        before = sorted(run.rglob("*"))
        assert message in one_line_of(["sample", str(run), *flags], capsys)
        assert sorted(run.rglob("*")) == before
