"""What a checkpoint says of itself, and that a foreign one is refused by what differs."""

import hashlib
import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.training import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    Checkpoints,
    TrainState,
    describe_versions,
    fingerprint,
)
from jaxebm.training import manifest as manifests

pytestmark = pytest.mark.usefixtures("cheap_compilation")
ARRAYS = {
    "a": np.arange(6, dtype=np.int16).reshape(2, 3),
    "b": np.array(1.5, np.float32),
    "c": np.zeros((0, 2)),
}
RUN = {"config": {"seed": 0, "widths": (8, 8), "output": "here"}, "data": "d" * 64}


def small(step):
    return TrainState(
        step=jnp.array(step, jnp.int32), params={"w": jnp.arange(3.0)}, optimizer_state=(), ema_params=(),
        memory=(), streams=(), rng_key=jax.random.key(step), health=(),
    )  # fmt: skip


class TestFingerprint:
    def test_is_of_the_bytes(self):
        """By hand: the path, shape and dtype in words, then the bytes."""
        x = np.array([[1, 2]], np.int32)
        expected = hashlib.sha256(b"['x'] (1, 2) int32\n" + x.tobytes()).hexdigest()
        assert fingerprint({"x": x}) == fingerprint({"x": jnp.asarray(x)}) == expected

    def test_tells_what_differs(self):
        x = np.arange(6, dtype=np.float32)
        different = [
            {"x": x}, {"y": x}, {"x": x, "y": x}, {"x": x.reshape(2, 3)}, {"x": x.reshape(3, 2)},
            {"x": x.view(np.int32)}, {"x": x.astype(np.float64)}, {"x": -x}, {"x": x[::-1]}, (x,),
            {"x": x[:0]}, {"x": jax.random.key(0)}, {"x": jax.random.key(1)}, {"x": x.astype(jnp.bfloat16)},
            {},
        ]  # fmt: skip
        assert len({fingerprint(data) for data in different}) == len(different)

    def test_does_not_ask_how_memory_is_laid_out(self):
        x = np.arange(6.0).reshape(2, 3)
        assert (
            fingerprint(np.asfortranarray(x)) == fingerprint(x) == fingerprint(np.repeat(x, 2, axis=0)[::2])
        )

    def test_refuses_what_is_no_array(self):
        with pytest.raises(TypeError, match=r"data\['x'\] is object"):
            fingerprint({"x": object()})


def test_versions_are_those_that_are_installed():
    versions = describe_versions()
    assert versions["jax"] == jax.__version__
    assert versions["numpy"] == np.__version__
    assert versions["python"] == platform.python_version()


class TestFile:
    """`write_manifest` and `read_manifest`, without Orbax."""

    @staticmethod
    def write(folder, step=10, **changes):
        content = manifests.make_manifest(step, RUN, {"loss": 0.1}, manifests.describe_arrays(ARRAYS))
        pieces = {name: manifests.pieces_of(array) for name, array in ARRAYS.items()}
        manifests.write_manifest(folder, content | changes, pieces)

    def test_says_what_was_written(self, tmp_path):
        self.write(tmp_path)
        manifest = manifests.read_manifest(tmp_path, 10)
        assert manifest["step"] == 10
        assert manifest["run"]["config"] == {"seed": 0, "widths": [8, 8], "output": "here"}
        assert manifest["metrics"] == {"loss": 0.1}
        assert manifest["versions"] == describe_versions()
        assert manifest["devices"] == f"{jax.devices()[0].device_kind} x{jax.device_count()}"
        assert manifest["arrays"]["a"] == {"shape": [2, 3], "dtype": "int16"}
        manifests.verify_arrays(manifest, ARRAYS)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"a": ARRAYS["a"] + np.eye(2, 3, dtype=np.int16)}, "a was altered"),
            ({"a": ARRAYS["a"].T}, r"a has shape \(3, 2\)"),
            ({"b": np.array(1.5)}, "b has .*float64"),
            ({"b": np.array(-1.5, np.float32)}, "b was altered"),
        ],
    )
    def test_tells_altered_arrays(self, tmp_path, changed, message):
        self.write(tmp_path)
        with pytest.raises(CheckpointCorruptError, match=message):
            manifests.verify_arrays(manifests.read_manifest(tmp_path, 10), ARRAYS | changed)

    def test_wants_a_checksum_of_every_entry(self, tmp_path):
        """A process of several whose shards were not vouched for."""
        self.write(tmp_path)
        manifest = manifests.read_manifest(tmp_path, 10)
        manifest["checksums"]["a"] = {"0:1,0:3": hashlib.sha256(ARRAYS["a"][:1].tobytes()).hexdigest()}
        with pytest.raises(CheckpointCorruptError, match="3 of the 6 entries of a have a checksum"):
            manifests.verify_arrays(manifest, ARRAYS)

    def test_sharded_arrays_have_a_checksum_a_shard(self, tmp_path, monkeypatch):
        """Two processes, each with a row: what they write is put together."""
        content = manifests.make_manifest(10, RUN, {}, manifests.describe_arrays({"a": ARRAYS["a"]}))
        for process in (0, 1):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            row = (slice(process, process + 1), slice(None))
            pieces = {"a": [(row, ARRAYS["a"][row])]}
            manifests.write_manifest(tmp_path, content | {"processes": 2}, pieces)
        manifest = manifests.read_manifest(tmp_path, 10)
        assert set(manifest["checksums"]["a"]) == {"0:1,0:3", "1:2,0:3"}
        manifests.verify_arrays(manifest, {"a": ARRAYS["a"]})
        (tmp_path / "manifest.1.json").unlink()
        with pytest.raises(CheckpointCorruptError, match=r"manifest\.1\.json is missing"):
            manifests.read_manifest(tmp_path, 10)

    def test_tells_a_changed_word(self, tmp_path):
        self.write(tmp_path)
        path = tmp_path / "manifest.json"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
        with pytest.raises(CheckpointCorruptError, match=r"manifest\.json was altered"):
            manifests.read_manifest(tmp_path, 10)

    def test_of_another_format(self, tmp_path):
        self.write(tmp_path, format=99)
        with pytest.raises(CheckpointMismatchError, match="format 99, and this jaxebm reads format 1"):
            manifests.read_manifest(tmp_path, 10)


class TestRestoring:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory) -> Path:
        path = tmp_path_factory.mktemp("checkpoints")
        with Checkpoints(path, manifest=RUN) as checkpoints:
            checkpoints.save(small(10), {"loss": 2.0})
        return path

    @staticmethod
    def restore(folder, run):
        with Checkpoints(folder, manifest=run) as checkpoints:
            return checkpoints.restore(small(0))

    def test_the_same_run(self, folder):
        assert int(self.restore(folder, RUN).step) == 10
        moved = RUN["config"] | {"output": "there", "resume": True}
        assert int(self.restore(folder, RUN | {"config": moved}).step) == 10
        assert int(self.restore(folder, {"data": RUN["data"]}).step) == 10
        assert int(self.restore(folder, None).step) == 10  # who says nothing, compares nothing

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"config": {"seed": 1, "widths": (8, 8)}}, r"another configuration \(seed: saved 0, now 1\)"),
            (
                {"config": {"seed": 0, "widths": (8,)}},
                r"another configuration \(widths: saved \[8, 8\], now \[8\]",
            ),
            ({"data": "e" * 64}, r"other data \(saved 'dddd.*', now 'eeee"),
            ({"strata": 8}, r"another strata \(saved None, now 8\)"),
        ],
    )
    def test_another_run(self, folder, changes, message):
        with pytest.raises(CheckpointMismatchError, match=rf"step 10 in {folder} is of {message}"):
            self.restore(folder, RUN | changes)

    def test_another_version_is_told_and_taken(self, folder, monkeypatch):
        versions = describe_versions()
        monkeypatch.setattr(
            manifests, "describe_versions", lambda: versions | {"jax": "99.0", "numpy": "98.0"}
        )
        told = f"step 10 .*jax {versions['jax']} \\(now 99.0\\), numpy {versions['numpy']} \\(now 98.0\\)"
        with pytest.warns(UserWarning, match=told):
            assert int(self.restore(folder, RUN).step) == 10

    def test_what_json_cannot_hold(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            Checkpoints(tmp_path / "new", manifest={"rate": float("nan")})
        assert not (tmp_path / "new").exists()

    def test_the_file_is_for_people_too(self, folder):
        content = json.loads((folder / "10" / "default" / "manifest.json").read_text())["content"]
        assert content["metrics"] == {"loss": 2.0}
