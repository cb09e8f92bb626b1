"""How a command ends that is stopped or cannot go on: one line with what is kept, and nothing is lost."""

import errno
import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxebm
from jaxebm.recipes.command import main
from jaxebm.recipes.interrupts import command_to_go_on, signals_as_interrupts, what_is_kept


@pytest.fixture(scope="module", autouse=True)
def images_are_back(finished, arrays) -> Iterator[None]:
    """The file that the run was trained on, for the tests of this module."""
    np.savez(finished.file, image=arrays[0], label=arrays[1])
    yield
    finished.file.unlink()


@pytest.fixture
def run(finished, tmp_path: Path) -> Path:
    """The finished run, which may be damaged."""
    return shutil.copytree(finished.folder, tmp_path / "run")


@pytest.fixture
def arguments(finished, run: Path) -> list[str]:
    """Of the command that goes on with it."""
    return [*shlex.split(finished.trained.card["command"])[1:], "--output", str(run), "--run.no-progress"]


def ended(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status and the only line on standard error."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, line


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def terminated(*arguments: Any, **options: Any) -> None:
    """In the place of a stage: the process gets a SIGTERM while it runs."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("load_images", "interrupted before anything was written"),
        ("build", "interrupted before anything was written"),
        ("open_shared_run", "interrupted before anything was written"),
        ("run_training", "has no checkpoint yet. Begin again: "),
    ],
)
def test_a_sigterm_before_the_first_checkpoint(
    stage: str, said: str, arguments: list[str], tmp_path: Path, capsys, monkeypatch
):
    fresh = [*arguments, "--output", str(tmp_path / "fresh")]
    with monkeypatch.context() as patch:
        patch.setattr(f"jaxebm.recipes.run.{stage}", terminated)
        before = signal.getsignal(signal.SIGTERM)
        status, line = ended(fresh, capsys)
    assert status == 130
    assert said in line
    assert (tmp_path / "fresh").exists() == (stage == "run_training")
    assert signal.getsignal(signal.SIGTERM) in (before, signal.SIG_IGN)


@pytest.mark.parametrize("stage", ["load_twin", "judge_run", "publish"])
def test_a_sigterm_after_the_training_keeps_it(
    stage: str, run: Path, arguments: list[str], finished, capsys, monkeypatch
):
    before = files_of(run / "checkpoints")
    # The evaluation itself has tests of its own.
    monkeypatch.setattr(
        "jaxebm.recipes.run.judge_run", lambda *arguments, **options: dict(finished.trained.card)
    )
    with monkeypatch.context() as patch:
        patch.setattr(f"jaxebm.recipes.run.{stage}", terminated)
        status, line = ended([*arguments, "--resume"], capsys)
    assert status == 130
    assert line.startswith(f"interrupted: {run} keeps what was done up to the checkpoint of step 12. Go on: ")
    assert line.endswith(" --resume")
    assert files_of(run / "checkpoints") == before
    (run / "card.json").unlink()
    trained = []
    monkeypatch.setattr("jaxebm.recipes.run.twin_config", trained.append)
    main([*arguments, "--resume"])
    assert (run / "card.json").exists()
    assert trained == []  # the twin is read back


def test_a_full_disk_during_the_report(run: Path, arguments: list[str], finished, capsys, monkeypatch):
    monkeypatch.setattr(
        "jaxebm.recipes.run.judge_run", lambda *arguments, **options: dict(finished.trained.card)
    )
    before = files_of(run)
    fsync = os.fsync

    def full(handle: int) -> None:
        if "report.html" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        status, line = ended([*arguments, "--resume"], capsys)
    assert status == 2
    assert f"{run / 'report.html'} could not be written: No space left on device (ENOSPC)" in line
    assert "free some space on the disk, then resume" in line
    after = files_of(run)
    assert {name for name in before if before[name] != after[name]} <= {
        str(run / name) for name in ("config.json", "contents.json", "twin.npz")
    }
    main([*arguments, "--resume"])
    assert (run / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("what", ["file", "manifest"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_goes_on(
    what: str, run: Path, arguments: list[str], capsys
):
    checkpoint = run / "checkpoints" / "12"
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size]
    largest = max(
        files, key=lambda path: ("manifest" in path.name) == (what == "manifest") and path.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    before = files_of(run)
    status, line = ended([*arguments, "--resume"], capsys)
    assert status == 2
    assert "step 12" in line
    assert "damaged" in line
    assert "9" in line.partition("damaged")[2]  # the older one that is whole
    assert files_of(run) == before
    assert jaxebm.load(run, step=9).step == 9


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_a_finaliser_is_not_lost():
    class Finalised:
        def __del__(self) -> None:
            terminated()

    def drop() -> None:
        one = Finalised()
        del one
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt), signals_as_interrupts():
        drop()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--seed", "3"], "--seed 3"),
        (["--overwrite", "--epochs=2", "--resume"], "--epochs=2"),
        (["--no-overwrite", "--run.resume-step", "3", "--seed", "1"], "--seed 1"),
        (["--resume-step=3", "--output", "a folder"], "--output 'a folder'"),
        (["--run.resume_step", "3"], ""),
    ],
)
def test_the_command_to_go_on(given: list[str], kept: str):
    parts = " ".join(part for part in ("jaxebm train", kept, "--resume") if part)
    assert command_to_go_on("jaxebm train", given, "--resume") == parts


def test_what_an_older_process_wrote_is_not_ones_own(finished):
    folder = finished.folder
    for resume, since, said in (
        (False, time.time() + 60, "before anything was written"),
        (True, time.time() + 60, "checkpoint of step 12"),
        (False, 0.0, "checkpoint of step 12"),
    ):
        config = type("Config", (), {"resume": resume})()
        assert said in what_is_kept(config, folder, since, "again", "go on")
    assert "is not complete. Begin again: again" in what_is_kept(object(), folder, 0.0, "again", "go on")
    assert "before anything" in what_is_kept(object(), None, 0.0, "again", "go on")
