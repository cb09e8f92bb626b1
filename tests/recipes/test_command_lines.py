"""Command lines with a mistake: each ends with one line that names it, before anything is written."""

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxebm.recipes import command
from jaxebm.recipes.command import main
from jaxebm.recipes.command_line import parse
from jaxebm.recipes.config import Config

HUGE = 99999999999999999999
MISTAKES: dict[str, str] = {
    # values of another kind, and missing ones
    "train --seed": "Missing value for argument '--seed'",
    "train --seed abc": "--seed",
    "train --seed 1.5": "--seed",
    "train --epochs nan": "--epochs",
    "train --recipe": "Missing value for argument '--recipe'",
    "train --architecture.widths 8 a": "--architecture.widths",
    "train --sampler.gradient-clip x": "--sampler.gradient-clip",
    "train --data.exclude-classes a": "--data.exclude-classes",
    "train --task foo": "Expected one of ('supervised', 'unconditional')",
    "train --optimizer.kind foo": "--optimizer.kind",
    "train --resume=maybe": "maybe",
    # flags that there are not
    "train --nonsense 3": "Unrecognized options: --nonsense, 3",
    "train extra": "Unrecognized options: extra",
    "train --output a b": "Unrecognized options: b",
    "train --sampler-step-size 3": "Did you mean --sampler.step-size?",
    "train --resume-step 3": "--run.resume-step",
    "evaluate --run full": "Unrecognized options: --run, full",
    "evaluate full extra": "Unrecognized options: extra",
    # numbers out of range
    f"train --seed {HUGE}": f"seed={HUGE}: seed must be an integer from 0 to 4294967295",
    "train --seed 4294967296": "seed=4294967296",
    "train --seed -1": "seed=-1",
    f"train --epochs {HUGE}": "fewer than 2^31",
    "train --architecture.widths": "architecture.widths=()",
    "train --architecture.widths 8 0": "architecture.widths=(8, 0)",
    "train --network convnet --architecture.channels": "architecture.channels=()",
    "train --network wide-resnet --architecture.depth 11": "depth=11",
    "train --data.batch-size 0": "data.batch_size=0",
    "train --data.noise nan": "data.noise=nan",
    "train --data.exclude-classes 99": "exclude_classes=[99]",
    "train --data.labels-per-class 0": "data.labels_per_class=0",
    "train --optimizer.learning-rate 1e400": "optimizer.learning_rate=inf",
    "train --optimizer.ema-decay 2": "optimizer.ema_decay=2.0",
    "train --optimizer.adam-b1 1": "optimizer.adam_b1=1.0",
    "train --objective.label-smoothing -1": "objective.label_smoothing=-1.0",
    "train --objective.p-x-weight 0 --objective.p-y-given-x-weight 0": "objective.p_y_given_x_weight",
    "train --sampler.restart-probability 2": "sampler.restart_probability=2.0",
    "train --sampler.num-steps 0": "sampler.num_steps=0",
    "train --sampler.gradient-clip 0": "sampler.gradient_clip=0.0",
    "train --run.checkpoint-every -5": "run.checkpoint_every=-5",
    "train --run.resume-step -1 --resume": "run.resume_step=-1",
    "train --devices 0": "devices=0",
    "train --devices -1": "devices=-1",
    "train --parallel.strata 0": "parallel.strata=0",
    "train --parallel.strata 7": "parallel.strata=7",
    "train --parallel.processes 2": "parallel.distributed",
    "train --parallel.generator foo": "parallel.generator='foo'",
    "train --evaluation.samples-per-class 0": "evaluation.samples_per_class=0",
    "train --evaluation.sample-steps": "evaluation.sample_steps=()",
    "train --evaluation.likelihood-temperatures": "evaluation.likelihood_temperatures=()",
    "train --evaluation.likelihood-temperatures nan": "evaluation.likelihood_temperatures=(nan,)",
    "train --evaluation.attack-images -1": "evaluation.attack_images=-1",
    "train --evaluation.ood-sets nosuch": "nosuch",
    f"sample full --seed {HUGE}": f"seed={HUGE}",
    "sample full --count 0": "count=0",
    # files and folders
    'train --output ""': "output=''",
    "train --output=": "output=''",
    "train --output file": "output=file is a file",
    "train --output file/run": "output=file/run cannot be written",
    "train --output full": "output=full is not empty",
    "train --output full --overwrite": "full holds files but no run",
    "train --output closed/run": "output=closed/run cannot be written",
    'train --dataset ""': "dataset=''",
    "train --dataset npz:": "dataset='npz:'",
    "train --dataset mine.npz": "Did you mean npz:mine.npz?",
    "train --dataset npz:empty.npz": "'empty.npz' is not an .npz file",
    "train --dataset npz:full": "'full' is not an .npz file",
    "train --dataset npz:other.npz": "'other.npz' has no array 'image'",
    "train --dataset npz:other.npz?size=8": "'size' is no option; npz: takes value_range",
    "train --dataset ./full": "Did you mean folder:./full?",
    "train --dataset folder:full": "'full' holds no images",
    "train --dataset folder:absent": "'absent' does not exist",
    "train --dataset folder:full?size=0": "size=0",
    "train --dataset tfds:../x": "a set of tensorflow-datasets, such as tfds:omniglot",
    "train --evaluation.ood-sets folder:absent": "'absent' does not exist",
    "train --dataset npz:unlabelled.npz": "'npz:unlabelled.npz' has one class, or no labels",
    "evaluate": "the folder of a run is needed",
    'evaluate ""': "run=''",
    "evaluate file": "file holds no run",
    "evaluate full": "full holds no run",
    'evaluate full --output ""': "output=''",
    'sample full --output ""': "output=''",
    "sample full --output full": "the name of an .npz file is needed",
    'sample ""': "run=''",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what may be named by mistake, where no training begins."""
    monkeypatch.chdir(tmp_path)
    for name in ("file", "empty.npz"):
        (tmp_path / name).touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "closed").mkdir(mode=0o500)
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    np.savez(tmp_path / "unlabelled.npz", image=np.random.default_rng(0).integers(0, 256, (500, 8, 8)))
    monkeypatch.setattr("jaxebm.recipes.run.fit", lambda *arguments, **options: pytest.fail("it trains"))
    return tmp_path


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_written(line: str, place: Path, capsys: Any):
    if "closed" in line and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    (said,) = printed.err.splitlines()
    assert said.startswith("error: ")
    assert MISTAKES[line] in said
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1 EiB"),
        OverflowError("too large"),
        ModuleNotFoundError("no matplotlib"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_no_check_foresaw_is_one_line_too(error: Exception, place: Path, capsys, monkeypatch):
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("jaxebm.recipes.run.load_images", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {type(error).__name__}: {error}\n"
    monkeypatch.setenv("JAXEBM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["train"])


def test_a_folder_that_is_the_present_one_may_be_named():
    assert parse(Config, ["--output", "."], base=command._of_recipe).output == Path()
