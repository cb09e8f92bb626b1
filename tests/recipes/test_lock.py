"""One writer a folder: other processes are refused while it lives, and not after it."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxebm.recipes import Evaluate, evaluate_run, train
from jaxebm.recipes.lock import only_writer

HOLDS = """
import sys, time
from importlib import util
spec = util.spec_from_file_location("lock", sys.argv[1])
lock = util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.only_writer(sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_again_after_a_kill(tmp_path: Path):
    folder, source = tmp_path / "run", sys.modules["jaxebm.recipes.lock"].__file__
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(source), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(FileExistsError, match=f"output={folder} is being written by another"):
        only_writer(folder).__enter__()
    other.kill()
    other.wait()
    other.stdout.close()
    with only_writer(folder):
        assert folder.is_dir()
        with only_writer(tmp_path):  # the lock is one of a folder, not of what is in it
            pass


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path):
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a" / "b").exists()
    with only_writer(tmp_path / "b"):
        (tmp_path / "b" / "file").touch()
    assert (tmp_path / "b" / "file").exists()
    (tmp_path / "file").touch()
    with only_writer(tmp_path / "file"), only_writer(tmp_path / "file" / "run"):
        pass  # what is wrong there is said by who opens the folder


def test_a_run_and_an_evaluation_in_use_are_left_alone(finished, toy, blobs):
    before = (finished.folder / "config.json").stat().st_mtime_ns
    with only_writer(finished.folder), pytest.raises(FileExistsError, match="by another process"):
        train(toy({"output": finished.folder, "overwrite": True}), blobs)
    assert (finished.folder / "config.json").stat().st_mtime_ns == before
    there = finished.folder.parent / "evaluation"
    with only_writer(there), pytest.raises(FileExistsError, match="by another process"):
        evaluate_run(Evaluate(run=finished.folder, output=there), finished.dataset)
