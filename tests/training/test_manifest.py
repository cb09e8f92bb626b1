"""What a checkpoint says of itself, and that a foreign one is refused by what differs."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any, ClassVar

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
NO_HEALTH: Any = ()
RUN = {"config": {"seed": 0, "widths": (8, 8), "run": {"output": "here"}}, "data": "d" * 64}


def small(step):
    params = {"w": jnp.arange(3.0)}
    return TrainState(jnp.array(step, jnp.int32), params, (), (), (), (), jax.random.key(step), NO_HEALTH)


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
    """`write_manifest`, `read_manifest` and `verify_files`, without Orbax."""

    FILES: ClassVar = {"a": b"one", "b/c": b"two", "b/empty": b""}

    def write(self, folder, **changes):
        for name, content in self.FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        arrays = manifests.describe({"a": np.zeros((2, 3), np.int16)})
        manifests.write_manifest(folder, manifests.make_manifest(10, RUN, {"loss": 0.1}, arrays) | changes)

    def test_says_what_was_written(self, tmp_path):
        self.write(tmp_path)
        manifest = manifests.read_manifest(tmp_path, 10)
        assert manifest["step"] == 10
        assert manifest["run"]["config"] == {"seed": 0, "widths": [8, 8], "run": {"output": "here"}}
        assert manifest["metrics"] == {"loss": 0.1}
        assert manifest["versions"] == describe_versions()
        assert manifest["devices"] == f"{jax.devices()[0].device_kind} x{jax.device_count()}"
        assert manifest["arrays"]["a"] == {"shape": [2, 3], "dtype": "int16"}
        assert manifest["files"] == {
            name: hashlib.sha256(content).hexdigest() for name, content in self.FILES.items()
        }
        manifests.verify_files(tmp_path, manifest)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a", b"One", "the file a was changed"),
            ("b/c", b"tw", "the file b/c was changed"),
            ("b/empty", b"!", "the file b/empty was changed"),
            ("b/c", None, "the file b/c is missing"),
        ],
    )
    def test_tells_altered_files(self, tmp_path, name, content, message):
        self.write(tmp_path)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointCorruptError, match=message):
            manifests.verify_files(tmp_path, manifests.read_manifest(tmp_path, 10))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"seed": 0', '"seed": 1', r"manifest\.json was changed"),
            ('"seed": 0', '"seed": NaN', r"manifest\.json cannot be read"),
            ("{", "[", r"manifest\.json cannot be read"),
            ('"content"', '"contents"', r"manifest\.json cannot be read"),
        ],
    )
    def test_tells_a_changed_word(self, tmp_path, old, new, message):
        self.write(tmp_path)
        path = tmp_path / "manifest.json"
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(CheckpointCorruptError, match=message):
            manifests.read_manifest(tmp_path, 10)

    def test_of_another_format(self, tmp_path):
        self.write(tmp_path, format=99)
        with pytest.raises(CheckpointMismatchError, match="format 99, and this jaxebm reads format 2"):
            manifests.read_manifest(tmp_path, 10)


class TestDifferingEntries:
    @pytest.mark.parametrize(
        ("saved", "now", "found"),
        [
            ({}, {}, []),
            ({"seed": 0}, {"seed": 0}, []),
            ({"seed": 0}, {"seed": 1}, ["seed: saved 0, now 1"]),
            (
                {"b": {"y": {"z": 1}, "x": 1}, "a": 1},
                {"b": {"y": {"z": 2}, "x": 2}, "a": 1},
                ["b.x: saved 1, now 2", "b.y.z: saved 1, now 2"],
            ),
            ({"b": {"x": 1}}, {}, ["b.x: saved 1, now None"]),
            ({}, {"b": {"x": None, "y": 1}}, ["b.y: saved None, now 1"]),
            ({"b": "adam"}, {"b": {"x": 1}}, ["b: saved 'adam', now {'x': 1}"]),
            ({"b": None}, {"b": {"x": None}}, ["b: saved None, now {'x': None}"]),
            ({"b": [1, {"x": 1}]}, {"b": [1, {"x": 2}]}, ["b: saved [1, {'x': 1}], now [1, {'x': 2}]"]),
        ],
    )
    def test_are_named_by_dotted_path(self, saved, now, found):
        assert manifests.differing_entries(saved, now) == found

    def test_those_that_need_not_be_compared(self):
        saved = {"seed": 0, "run": {"output": "a", "seed": 0}, "devices": {"count": 1}, "output": "a"}
        now = {"seed": 1, "run": {"output": "b", "seed": 1}, "devices": {"count": 2, "more": {"x": 1}}}
        assert manifests.differing_entries(saved, now, {"run.output", "devices", "seed"}) == [
            "output: saved 'a', now None",
            "run.seed: saved 0, now 1",
        ]


class TestRestoring:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory) -> Path:
        path = tmp_path_factory.mktemp("checkpoints")
        with Checkpoints(path, manifest=RUN) as checkpoints:
            checkpoints.save(small(10), {"loss": 2.0})
        return path

    @staticmethod
    def restore(folder, run, uncompared=("run.output",)):
        with Checkpoints(folder, manifest=run, uncompared=uncompared) as checkpoints:
            return checkpoints.restore(small(0))

    def test_the_same_run(self, folder):
        assert int(self.restore(folder, RUN).step) == 10
        moved = RUN["config"] | {"run": {"output": "there"}}
        assert int(self.restore(folder, RUN | {"config": moved}).step) == 10
        assert int(self.restore(folder, RUN | {"config": moved | {"run": {}}}, {"run"}).step) == 10
        assert int(self.restore(folder, {"data": RUN["data"]}).step) == 10
        assert int(self.restore(folder, None).step) == 10  # who says nothing, compares nothing

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"config": {"seed": 1, "widths": (8, 8)}}, r"another configuration \(seed: saved 0, now 1\)"),
            (
                {"config": {"seed": 0, "widths": (8, 8), "run": {"epochs": 3}}},
                r"another configuration \(run.epochs: saved None, now 3\)",
            ),
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
