"""A checkpoint gives back every bit, refuses what does not fit, and outlives what a kill leaves behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data.stream import init_stream
from jaxebm.energies.networks import ConvNet
from jaxebm.samplers.replay import ReplayBuffer
from jaxebm.training import (
    CheckpointMismatchError,
    Checkpoints,
    DivergenceError,
    TrainState,
)
from jaxebm.training.state import init_health

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def make_state(step=0, seed=0, **changes):
    """A state with a leaf of every kind that may occur, written by hand, so that nothing has to compile."""
    numbers = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(numbers.normal(size=shape), jnp.float32)

    params = {"params": {"a/b.c": {"kernel": normal(2, 3)}, "scale": normal(3).astype(jnp.bfloat16)}}
    optimizer_state = (
        normal(2),
        (),
        {"count": jnp.array(7, jnp.int32), "half": normal(2).astype(jnp.float16)},
    )
    buffer = ReplayBuffer(
        {"pixels": jnp.arange(6, dtype=jnp.uint8).reshape(3, 2), "on": jnp.array([True, False, True])},
        jnp.arange(3, dtype=jnp.int32) % 2,
        jnp.array([5, 0, 2], jnp.int32),
    )
    streams = (init_stream(jax.random.key(seed), 4), {"keys": jax.random.split(jax.random.key(seed), 3)})
    state = TrainState(
        jnp.array(step, jnp.int32),
        params,
        optimizer_state,
        jax.tree.map(lambda leaf: leaf * 2, params),
        buffer,
        streams,
        jax.random.key(seed, impl="rbg"),
        init_health(),
    )
    return state._replace(**changes)


def restore_into(path, template):
    with Checkpoints(path) as checkpoints:
        return checkpoints.restore(template)


def save(path, *states):
    with Checkpoints(path) as checkpoints:
        for state in states:
            checkpoints.save(state)


def test_every_kind_of_leaf_survives_bit_for_bit(tmp_path, bits):
    """Three widths of float, a negative zero, a subnormal, uint8, int32, bool, typed keys of two kinds."""
    odd = jnp.array([-0.0, 1e-42, 1 / 3], jnp.float32)
    state = make_state(step=30, optimizer_state=(odd,))
    save(tmp_path, state)
    restored = restore_into(tmp_path, make_state(seed=1, optimizer_state=(jnp.zeros(3),)))
    assert bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    np.testing.assert_array_equal(
        jax.random.uniform(restored.rng_key, (3,)), jax.random.uniform(state.rng_key, (3,))
    )
    assert jax.random.key_impl(restored.rng_key) == "rbg"
    assert np.signbit(np.asarray(restored.optimizer_state[0])[0])


def test_batch_statistics_survive(tmp_path, bits):
    module = ConvNet(num_outputs=2, channels=(2,), norm="batch")
    variables = module.init(jax.random.key(0), jnp.zeros((4, 4, 1)))
    moved = jax.tree.map(lambda leaf: leaf + 0.25, variables)
    save(tmp_path, make_state(step=1, params=moved, ema_params=variables))
    restored = restore_into(tmp_path, make_state(params=variables, ema_params=variables))
    assert "batch_stats" in restored.params
    assert bits(restored.params) == bits(moved)
    assert bits(restored.ema_params) == bits(variables)


def test_newest_by_default_and_an_older_one_by_its_step(tmp_path, bits):
    states = [make_state(step, seed=step) for step in (10, 20)]
    with Checkpoints(tmp_path) as checkpoints:
        for state in states:
            checkpoints.save(state)
        assert checkpoints.latest_step() == 20
        assert bits(checkpoints.restore(make_state())) == bits(states[1])
        assert bits(checkpoints.restore(make_state(), step=10)) == bits(states[0])


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(make_state(step))
        assert checkpoints.latest_step() == 40
        checkpoints.restore(make_state(), step=30)
        with pytest.raises(FileNotFoundError, match="step 20"):
            checkpoints.restore(make_state(), step=20)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.isdigit()) == ["30", "40"]


@pytest.mark.parametrize("max_to_keep", [0, -1, 1.5, True])
def test_bad_number_to_keep_is_refused(tmp_path, max_to_keep):
    with pytest.raises(ValueError, match="max_to_keep"):
        Checkpoints(tmp_path / "new", max_to_keep=max_to_keep)
    assert not (tmp_path / "new").exists()


def test_saving_one_step_twice_writes_once(tmp_path, bits):
    first, second = make_state(10, seed=1), make_state(10, seed=2)
    save(tmp_path, first, second)
    assert bits(restore_into(tmp_path, make_state())) == bits(first)


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}"):
            checkpoints.restore(make_state())
        checkpoints.save(make_state(10))
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 11"):
            checkpoints.restore(make_state(), step=11)


def test_another_shape_dtype_or_name_is_refused_by_name(tmp_path):
    save(tmp_path, make_state(10))
    params = make_state().params["params"]

    def template(**changes):
        return make_state(params={"params": params | changes})

    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointMismatchError, match=r"1 arrays differ.*\['scale'\].*\(3,\).*\(4,\)"):
            checkpoints.restore(template(scale=jnp.zeros(4, jnp.bfloat16)))
        with pytest.raises(CheckpointMismatchError, match=r"\['scale'\].*'bfloat16'.*'float32'"):
            checkpoints.restore(template(scale=jnp.zeros(3, jnp.float32)))
        with pytest.raises(CheckpointMismatchError, match=r"\['extra'\]: saved nothing, needed"):
            checkpoints.restore(template(extra=jnp.zeros(1)))
        with pytest.raises(CheckpointMismatchError, match=r"\['a/b.c'\]\['kernel'\].*needed nothing"):
            checkpoints.restore(make_state(params={"params": {"scale": params["scale"]}}))
        with pytest.raises(CheckpointMismatchError, match=r"\.rng_key"):
            checkpoints.restore(make_state(rng_key=jax.random.key(0, impl="threefry2x32")))
        checkpoints.restore(make_state())  # and what fits is still taken


def test_a_diverged_state_is_refused_and_the_last_good_one_stays(tmp_path, bits):
    good = make_state(10)
    bad = make_state(20, ema_params={"w": jnp.array([jnp.nan])})
    save(tmp_path, good)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(DivergenceError, match="step 20"):
        checkpoints.save(bad)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 10
        assert bits(checkpoints.restore(make_state(seed=1))) == bits(good)


def test_what_a_killed_save_leaves_is_ignored(tmp_path, bits):
    """Orbax writes into a folder with a temporary name; a kill leaves it there, half full.

    Reading leaves it there, for it may be what a running job is writing; the next save removes it.
    """
    good = make_state(10)
    save(tmp_path, good)
    for name in ("20.orbax-checkpoint-tmp", "30.orbax-checkpoint-tmp-1700000000"):
        leftover = tmp_path / name / "default"
        leftover.mkdir(parents=True)
        (leftover / "manifest.ocdbt").write_bytes(b"half")
    newer = make_state(20, seed=3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with Checkpoints(tmp_path, best_metric="loss") as checkpoints:
        assert checkpoints.latest_step() == 10
        assert checkpoints.best_step() is None
        assert bits(checkpoints.restore(make_state(seed=1))) == bits(good)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        checkpoints.save(newer)  # the step whose first writing was killed
        checkpoints.wait()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "20"]
    assert bits(restore_into(tmp_path, make_state(seed=1))) == bits(newer)


def test_a_save_that_fails_half_way_leaves_the_last_good_one(tmp_path, bits, monkeypatch):
    """The process ends where Orbax would rename its finished folder."""
    import orbax.checkpoint as ocp

    good = make_state(10)
    save(tmp_path, good)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "finalize", killed)
        with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(make_state(20))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 10
        assert bits(checkpoints.restore(make_state(seed=1))) == bits(good)


def test_a_save_is_a_copy_though_it_is_written_later(tmp_path, bits):
    """The next dispatch consumes the state, and overwrites its memory, while the writing goes on."""
    state = make_state(10, params={"w": jnp.arange(300_000.0)}, ema_params={"w": jnp.zeros(3)})
    expected = bits(state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        overwrite(state.params)["w"].block_until_ready()
        assert state.params["w"].is_deleted()
        checkpoints.wait()
        assert [entry.name for entry in tmp_path.iterdir()] == ["10"]
        template = make_state(params={"w": jnp.zeros(300_000)}, ema_params={"w": jnp.zeros(3)})
        assert bits(checkpoints.restore(template)) == expected


def test_the_best_is_kept_beside_the_newest(tmp_path, bits):
    """Across openings; neither a NaN, nor an infinity, nor a state without the metric is a candidate."""
    losses = {10: 3.0, 20: 1.0, 30: float("nan"), 40: 2.0, 50: None, 60: float("-inf")}
    for step, loss in losses.items():
        with Checkpoints(tmp_path, max_to_keep=2, best_metric="loss") as checkpoints:
            checkpoints.save(
                make_state(step, seed=step), {"other": 0.0} | ({} if loss is None else {"loss": loss})
            )
            assert checkpoints.best_step() == (10 if step == 10 else 20)
    with Checkpoints(tmp_path, best_metric="loss") as checkpoints:
        assert checkpoints.all_steps() == [20, 50, 60]
        assert bits(checkpoints.restore(make_state(), step=20)) == bits(make_state(20, seed=20))
        assert checkpoints.read_manifest(60)["metrics"] == {"other": 0.0, "loss": "-inf"}
    with Checkpoints(tmp_path, best_metric="loss", best_mode="max") as checkpoints:
        checkpoints.save(make_state(70), {"loss": 1.0})
        assert checkpoints.best_step() == 70  # of equals the newest
        checkpoints.save(make_state(80), {"loss": 0.5})
        assert checkpoints.all_steps() == [70, 80]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() is None


def test_a_best_mode_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="best_mode='least'"):
        Checkpoints(tmp_path, best_mode="least")  # pyright: ignore[reportArgumentType]


def test_going_back_needs_the_later_ones_removed(tmp_path, bits):
    with Checkpoints(tmp_path, max_to_keep=4, best_metric="loss") as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(make_state(step, seed=step), {"loss": -step})
        with pytest.raises(
            ValueError, match=r"step 20 cannot be saved before .* step 30 .*discard_after\(20\)"
        ):
            checkpoints.save(make_state(20))
        with pytest.raises(ValueError, match=r"discard_after\(15\)"):
            checkpoints.save(make_state(15))
        checkpoints.discard_after(10)
        assert checkpoints.all_steps() == [10]
        assert checkpoints.best_step() == 10
        checkpoints.save(make_state(20, seed=5))
        assert bits(checkpoints.restore(make_state())) == bits(make_state(20, seed=5))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "20"]


def test_a_removal_that_was_killed_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, max_to_keep=4) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(make_state(step))
        checkpoints.wait()

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("jaxebm.training.checkpoint.shutil.rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.discard_after(10)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [10, 20]
        checkpoints.discard_after(20)  # the kill has left a folder without a checkpoint's name
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "20"]


def test_arrays_and_manifest_without_a_template(tmp_path):
    """As another process reads them: by path, typed keys as their data, all or those under a prefix."""
    state = make_state(10)
    with Checkpoints(tmp_path, manifest={"config": {"widths": (8, 8)}, "data": "d" * 64}) as checkpoints:
        checkpoints.save(state, {"loss": 0.5, "gap": float("nan")})
    with Checkpoints(tmp_path) as checkpoints:
        arrays = checkpoints.read()
        averaged = checkpoints.read(10, prefix=".ema_params")
        manifest = checkpoints.read_manifest()
        assert checkpoints.read(prefix=".nothing") == {}
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 11"):
            checkpoints.read(11)
    assert len(arrays) == len(jax.tree.leaves(state))
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert arrays[".rng_key"].dtype == np.uint32
    np.testing.assert_array_equal(arrays[".rng_key"], jax.random.key_data(state.rng_key))
    scale, saved = arrays[".params['params']['scale']"], np.asarray(jax.tree.leaves(state.params)[1])
    assert (scale.dtype, scale.tobytes()) == (jnp.bfloat16, saved.tobytes())
    assert sorted(averaged) == [".ema_params['params']['a/b.c']['kernel']", ".ema_params['params']['scale']"]
    np.testing.assert_array_equal(averaged[".ema_params['params']['scale']"], 2 * scale)
    assert manifest["step"] == 10
    assert manifest["run"] == {"config": {"widths": [8, 8]}, "data": "d" * 64}
    assert manifest["metrics"] == {"loss": 0.5, "gap": "nan"}
