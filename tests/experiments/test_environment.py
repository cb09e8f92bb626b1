"""Where a result comes from: the commit is that of the code, and says so where files differ from it."""

import subprocess
from datetime import date
from pathlib import Path

import pytest

import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_is_marked_where_files_differ_from_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.describe_environment()["commit"] is None
    git(tmp_path, "init", "--quiet")
    assert environment.describe_environment()["commit"] is None  # nothing is committed yet
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert environment.describe_environment()["commit"] == commit
    (tmp_path / "untracked.txt").write_text("1\n")
    assert environment.describe_environment()["commit"] == commit
    (tmp_path / "code.py").write_text("2\n")
    assert environment.describe_environment()["commit"] == commit + "+"


@pytest.mark.parametrize("threads", ["1", ""])
def test_the_rest_is_of_this_host(monkeypatch, threads):
    monkeypatch.setenv("PJRT_NPROC", threads)
    found = environment.describe_environment()
    processors = found["processors"]
    assert isinstance(processors, int)
    assert processors == 1 if threads else processors >= 1
    assert date.fromisoformat(str(found["date"])) >= date(2026, 1, 1)
    assert str(found["device"]).startswith("cpu")


def test_there_may_be_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.describe_environment()["commit"] is None
