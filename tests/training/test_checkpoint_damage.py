"""What is written is on the disk before it has its name; what is damaged there is refused, never taken."""

import hashlib
import os
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from jaxebm.training import CheckpointCorruptError, Checkpoints, CheckpointWriteError, TrainState
from jaxebm.training.checkpoint import TEMPORARY

pytestmark = pytest.mark.usefixtures("cheap_compilation")
NO_HEALTH: Any = ()


def small(step):
    """Few arrays: the tests here read them many times."""
    params = {"w": jnp.arange(40.0) + step}
    return TrainState(jnp.array(step, jnp.int32), params, (), (), (), (), jax.random.key(step), NO_HEALTH)


def save(path, *states):
    with Checkpoints(path, max_to_keep=9) as checkpoints:
        for state in states:
            checkpoints.save(state)


def test_everything_is_on_the_disk_before_the_renaming(tmp_path, monkeypatch):
    """So that a power failure cannot leave a folder of the right name with empty files in it."""
    flushed, fsync = set(), os.fsync

    def record(number):
        flushed.add(os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    monkeypatch.setattr(os, "fsync", record)
    save(tmp_path, small(10))
    unnamed = {re.sub(r"\.orbax-checkpoint-tmp[^/]*", "", name) for name in flushed if TEMPORARY in name}
    written = {str(path) for path in (tmp_path / "10").rglob("*")} | {str(tmp_path / "10")}
    assert len(written) > 5
    assert written - unnamed <= {str(tmp_path / "10" / "commit_success.txt")}  # Orbax's own mark, empty
    assert str(tmp_path) in flushed  # and the renaming itself


def test_what_lacks_its_arrays_gets_no_name(tmp_path, monkeypatch):
    """Orbax puts the processes' arrays together where it finds some, and says nothing where it finds none."""
    save(tmp_path, small(10))
    finalize = ocp.StandardCheckpointHandler.finalize

    def lose(self, directory):
        finalize(self, directory)
        (directory / "manifest.ocdbt").unlink()

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", lose)
    with pytest.raises(CheckpointWriteError, match=r"step 20 .*No such file.* step 10 is intact"):
        save(tmp_path, small(20))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [10]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
class TestDamage:
    """What is read back is what was written, or it is refused in one line that names an older whole one.

    Nothing else is said of it: Orbax, which would print tracebacks, is not given what is damaged.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("whole")
        save(path, small(10), small(20))
        return path

    @staticmethod
    def files(path, step):
        return sorted(name for name in (path / str(step)).rglob("*") if name.is_file())

    @pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "flipped"])
    def test_of_any_file(self, whole, tmp_path, bits, damage, capfd):
        refused = {}
        for number, original in enumerate(self.files(whole, 20)):
            path = tmp_path / str(number)
            shutil.copytree(whole, path)
            file = path / original.relative_to(whole)
            content = bytearray(file.read_bytes())
            if damage == "removed":
                file.unlink()
            elif damage == "flipped" and content:
                content[len(content) // 2] ^= 0x10
                file.write_bytes(content)
            else:
                file.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
            with Checkpoints(path) as checkpoints:
                assert checkpoints.latest_step() == 20
                try:
                    restored = checkpoints.restore(small(0))
                except CheckpointCorruptError as error:
                    refused[original] = str(error)
                    assert bits(checkpoints.restore(small(0), step=10)) == bits(small(10))
                    with pytest.raises(CheckpointCorruptError, match="is damaged"):
                        checkpoints.read(prefix=".params")
                else:  # not every file is needed
                    assert bits(restored) == bits(small(20))
        for message in refused.values():
            assert re.search(r"step 20 in .* is damaged: .*step 10: .*resume_step=10", message)
        names = {file.name for file in refused}
        assert {"manifest.json", "manifest.ocdbt"} <= names
        assert any(file.parent.name == "d" for file in refused)  # where TensorStore keeps the arrays
        assert capfd.readouterr() == ("", "")

    def test_of_every_checkpoint(self, tmp_path):
        """The newest whole one is named, not merely the one before; and if there is none, that is said."""
        save(tmp_path, *map(small, (10, 20, 30)))
        way_out = {
            30: "of step 20: .*resume_step=20",
            20: "of step 10",
            10: "No older one is intact.*overwrite=True",
        }
        for step, expected in way_out.items():
            (tmp_path / str(step) / "default" / "manifest.ocdbt").unlink()
            with Checkpoints(tmp_path) as checkpoints:
                match = rf"step 30 .*damaged: the file manifest.ocdbt is missing.*{expected}"
                with pytest.raises(CheckpointCorruptError, match=match):
                    checkpoints.restore(small(0))

    def test_arrays_of_another_checkpoint(self, tmp_path):
        """Whole in themselves: only the checksums tell."""
        save(tmp_path, small(10), small(20))
        shutil.copy(tmp_path / "20" / "default" / "manifest.json", tmp_path / "manifest.json")
        shutil.copytree(tmp_path / "10" / "default", tmp_path / "20" / "default", dirs_exist_ok=True)
        shutil.move(tmp_path / "manifest.json", tmp_path / "20" / "default" / "manifest.json")
        with Checkpoints(tmp_path) as checkpoints:
            with pytest.raises(CheckpointCorruptError, match=r"the file .* (was changed|is missing)"):
                checkpoints.restore(small(0))
            with pytest.raises(CheckpointCorruptError, match="damaged"):
                checkpoints.read()

    def test_a_renamed_checkpoint(self, tmp_path):
        save(tmp_path, small(10))
        (tmp_path / "10").rename(tmp_path / "40")
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.raises(CheckpointCorruptError, match="of step 10, and was"),
        ):
            checkpoints.restore(small(0))

    def test_a_file_that_the_disk_cannot_read(self, tmp_path, monkeypatch):
        """A bad sector is damage; a file that we may not read is not."""
        save(tmp_path, small(10), small(20))
        for error, kind, match in (
            (OSError(5, "Input/output error"), CheckpointCorruptError, "cannot be read: Input.*step 10"),
            (PermissionError(13, "Permission denied"), PermissionError, "Permission denied"),
        ):
            digest = hashlib.file_digest

            def fail(file, name, error=error, digest=digest):
                if f"{tmp_path}/20/" in file.name:
                    raise error
                return digest(file, name)

            with monkeypatch.context() as patch, Checkpoints(tmp_path) as checkpoints:
                patch.setattr(hashlib, "file_digest", fail)
                with pytest.raises(kind, match=match):
                    checkpoints.restore(small(0))
