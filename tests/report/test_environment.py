"""Where a result comes from: the commit is that of the code, and says so where files differ from it."""

import subprocess
from datetime import date
from pathlib import Path

import pytest

from jaxebm.report import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def source(tmp_path: Path, monkeypatch) -> Path:
    """The package's own source file, in a folder that no repository holds yet."""
    path = tmp_path / "lib" / "environment.py"
    path.parent.mkdir()
    path.write_text("1\n")
    monkeypatch.setattr(environment, "__file__", str(path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return path


def test_commit_is_marked_where_files_differ_from_it(source: Path, tmp_path: Path):
    assert environment.describe_environment()["commit"] is None
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    assert environment.describe_environment()["commit"] is None  # nothing is committed yet
    git(tmp_path, "commit", "--quiet", "--message", "first")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert environment.describe_environment()["commit"] == commit
    (tmp_path / "untracked.txt").write_text("1\n")
    assert environment.describe_environment()["commit"] == commit
    source.write_text("2\n")
    assert environment.describe_environment()["commit"] == commit + "+"


def test_a_repository_that_does_not_track_the_package_is_not_its_own(source: Path, tmp_path: Path):
    """An environment inside the user's own repository: its commit says nothing about this code."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("lib/\n")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "--quiet", "--message", "the user's own")
    assert environment.describe_environment()["commit"] is None


def test_a_checkout_tells_its_commit():
    root = Path(environment.__file__).resolve().parents[3]
    if not (root / ".git").exists():
        pytest.skip("the package under test is no checkout")
    commit = environment.describe_environment()["commit"]
    assert str(commit).removesuffix("+") == git(root, "rev-parse", "--short", "HEAD")


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
