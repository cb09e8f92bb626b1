"""A full disk, lost permission, a folder that is gone: one clear line, the last good checkpoint intact."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest

from jaxebm.training import Checkpoints, CheckpointWriteError, open_run
from jaxebm.training.write_errors import advise, error_number, explain

pytestmark = [
    pytest.mark.usefixtures("cheap_compilation"),
    # When one array cannot be written, TensorStore still reports of the others, to a loop that Orbax closed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HELPERS = """
import jax
import jax.numpy as jnp
from jaxebm.training import Checkpoints, CheckpointWriteError, TrainState

def small(step, size=40):
    params = {"w": jax.random.normal(jax.random.key(step), (size,))}  # noise, which cannot be compressed
    return TrainState(jnp.array(step, jnp.int32), params, (), (), (), (), jax.random.key(step), ())
"""
NAMES: dict = {}
exec(HELPERS, NAMES)  # the same in this process and in those that give up their rights
small = NAMES["small"]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"),
            errno.ENOSPC,
        ),
        (ValueError('NOT_FOUND: Error opening "zarr" driver'), errno.ENOENT),
        (FileNotFoundError("gone"), errno.ENOENT),
        (ValueError("a bug"), None),
        (KeyError("28"), None),
    ],
)
def test_the_number_behind_an_error(error, number):
    assert error_number(error) == number
    chained = RuntimeError("outside")
    chained.__cause__ = error
    assert error_number(chained) == number


def test_the_error_that_was_being_handled_is_not_the_reason():
    bug = ValueError("a bug")
    bug.__context__ = OSError(errno.ENOSPC, "full")
    assert error_number(bug) is None


def test_words():
    assert explain(errno.EACCES) == "Permission denied (EACCES)"
    assert advise(errno.ENOSPC) == ": free some space on the disk, then resume"
    assert advise(errno.EIO) == ""


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of its own, of half a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this needs the right to mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(tiny_disk, bits):
    run = open_run(tiny_disk / "run", {})
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(small(10))
        checkpoints.save(small(20, size=200_000))  # returns: it is written later
        match = (
            rf"step 20 could not be written in {run.checkpoints}: No space left on device \(ENOSPC\); "
            r"the checkpoint of step 10 is intact \(its checksums were compared\): free some space"
        )
        with pytest.raises(CheckpointWriteError, match=match) as caught:
            checkpoints.save(small(30))
        assert caught.value.errno == errno.ENOSPC
        assert checkpoints.all_steps() == [10]
    with Checkpoints(run.checkpoints) as checkpoints:  # which makes room
        assert bits(checkpoints.restore(small(0))) == bits(small(10))
        checkpoints.save(small(30))
    run.claim("card.json")
    room = shutil.disk_usage(tiny_disk).free // 4096 * 4096
    (tiny_disk / "filler").write_bytes(b"x" * (room - 4096))

    def append_many():
        for step in range(10_000):
            run.append_metrics({"step": step})

    match = r"metrics\.jsonl could not be written: No space left .*free some space"
    with pytest.raises(OSError, match=match) as full:
        append_many()
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=r"card\.json could not be written: No space left"):
        run.write_json("card.json", {"long": "x" * 5000})
    assert not (run.path / "card.json").exists()
    (tiny_disk / "filler").unlink()
    written = len(run.read_metrics())  # a line cut short is not read
    run.truncate_metrics(5)
    assert written > 5
    assert [record["step"] for record in run.read_metrics()] == [0, 1, 2, 3, 4, 5]


def test_a_disk_without_room_for_another_checkpoint(tmp_path, monkeypatch, capfd):
    """Known before anything is written: one line, and none of Orbax's tracebacks."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(small(10))
        checkpoints.wait()
        size = sum(file.stat().st_size for file in (tmp_path / "10").rglob("*"))
        for free, enough in ((size - 1, False), (size, True)):
            usage = SimpleNamespace(free=free)
            monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
            if enough:
                checkpoints.save(small(20))
                continue
            with pytest.raises(CheckpointWriteError, match=r"step 20 .*ENOSPC.* step 10 is intact") as caught:
                checkpoints.save(small(20))
            assert caught.value.errno == errno.ENOSPC
            assert checkpoints.all_steps() == [10]
        assert checkpoints.all_steps() == [10, 20]
    assert capfd.readouterr() == ("", "")


def test_the_last_write_fails_at_the_end(tiny_disk):
    """On leaving; and an error that ends the run is not hidden by it, but told of it."""

    def fail_to_save(step, then):
        with Checkpoints(tiny_disk) as checkpoints:
            checkpoints.save(small(step, size=200_000))
            then()

    with Checkpoints(tiny_disk) as checkpoints:
        checkpoints.save(small(10))
    with pytest.raises(CheckpointWriteError, match=r"step 20 .*ENOSPC.* step 10 is intact"):
        fail_to_save(20, lambda: None)
    with pytest.raises(ZeroDivisionError) as caught:
        fail_to_save(30, lambda: 1 / 0)
    assert re.search(r"step 30 .*ENOSPC.* step 10 is intact", caught.value.__notes__[0])


def test_the_folder_has_gone(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(small(10))
        checkpoints.wait()
        shutil.rmtree(tmp_path / "run")
        match = r"step 20 could not .*No such file.*there is no checkpoint that could be read back: put the"
        with pytest.raises(CheckpointWriteError, match=match):
            checkpoints.save(small(20))
    assert not (tmp_path / "run").exists()  # nor is it made anew, as if nothing had happened


PROGRAM = (
    HELPERS
    + """
import grp  # what is imported later may be closed to a common user
import os
import pwd
import resource
import shutil
import sys

folder = sys.argv[1]
with Checkpoints(folder + "/rehearsal") as checkpoints:  # imports all that is only imported when needed
    checkpoints.save(small(10))
    checkpoints.restore(small(0))
shutil.rmtree(folder + "/rehearsal")
if os.geteuid() == 0:
    os.chown(folder, 65534, 65534)
    os.setuid(65534)

def failing(action):
    try:
        action()
    except CheckpointWriteError as error:
        print(error)
    else:
        raise SystemExit("this should have failed")

with Checkpoints(folder) as checkpoints:
    checkpoints.save(small(10))
    checkpoints.wait()
    os.chmod(folder, 0o500)
    failing(lambda: checkpoints.save(small(20)))
    os.chmod(folder, 0o700)
    checkpoints.save(small(20))  # goes on where it failed
    assert checkpoints.all_steps() == [10, 20]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    checkpoints.save(small(30, 60_000))
    failing(checkpoints.wait)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(small(30, 60_000))
    os.chmod(folder, 0o000)
    failing(checkpoints.wait)
    os.chmod(folder, 0o700)
"""
)


def test_permission_and_limits_of_a_common_user():
    """A process of its own, because the superuser may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HOME": folder, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        command = [sys.executable, "-c", PROGRAM, folder]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lost, large, gone = ended.stdout.splitlines()
    assert re.search(r"step 20 .*Permission denied \(EACCES\); .*step 10 is intact.*give back the perm", lost)
    assert re.search(r"step 30 .*File too large \(EFBIG\); .*step 20 is intact.*raise the limit", large)
    assert re.search(r"step 30 .*\(EACCES\); there is no checkpoint that could be read back", gone)
