"""A state comes back onto whatever devices there are: more, fewer, or those of several processes."""

import os
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.training import TrainState
from jaxebm.training.manifest import describe, finite_if_all, from_arrays, named_leaves, to_arrays

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def small(rng_key):
    drawn, streams = np.arange(2, dtype=np.int32), {"keys": jax.random.split(rng_key, 4)}
    health: Any = ()
    return TrainState(
        jnp.array(3, jnp.int32), {"w": jnp.arange(3.0)}, (), (), drawn, streams, rng_key, health
    )


def test_there_and_back(bits):
    state = small(jax.random.key(0, impl="rbg"))
    arrays = to_arrays(state)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert describe(named_leaves(state)) == describe(arrays)
    assert describe(arrays)[".rng_key"] == {"shape": [4], "dtype": "uint32"}
    template = small(jax.random.key(1, impl="rbg"))
    restored = from_arrays(template, arrays)
    assert bits(restored) == bits(state)
    assert not any(leaf.committed for leaf in jax.tree.leaves(restored))
    committed = jax.device_put(template, jax.devices()[0])
    assert all(leaf.committed for leaf in jax.tree.leaves(from_arrays(committed, arrays)))


def test_one_number_stands_for_floats_that_span_hosts(monkeypatch):
    """It is finite if all of them are; everything else stands for itself."""
    array = jnp.array([1.0, jnp.nan])
    assert finite_if_all(array) is array
    monkeypatch.setattr("jaxebm.training.manifest.spans_hosts", lambda leaf: True)
    assert np.isfinite(finite_if_all(jnp.arange(3.0)))
    assert not np.isfinite(finite_if_all(jnp.array([1.0, jnp.nan, 2.0])))
    assert not np.isfinite(finite_if_all(jnp.array([1.0, -jnp.inf, 2.0])))
    integers, key = jnp.arange(3), jax.random.key(0)
    assert finite_if_all(integers) is integers
    assert finite_if_all(key) is key


PROGRAM = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxebm.training import Checkpoints, DivergenceError, TrainState, fingerprint

folder, process = sys.argv[1], int(sys.argv[2])
if process >= 0:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[3], 2, process)

def on(num_devices):
    mesh = jax.make_mesh((num_devices,), ("shards",), devices=jax.devices()[:num_devices])
    split, whole = NamedSharding(mesh, P("shards")), NamedSharding(mesh, P())
    columns = NamedSharding(mesh, P(None, "shards"))
    def make(seed):
        key = jax.random.key(seed)
        values = np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)
        def put(value, sharding):
            return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
        keys = put(np.asarray(jax.random.key_data(jax.random.split(key, 16))), split)
        return TrainState(
            put(np.int32(10 + seed), whole),
            {"rows": put(values, split), "columns": put(values.astype(jnp.bfloat16), columns)},
            jnp.array(seed),  # of this process alone, the same on all
            put(values + 1, whole),
            put(values - 1, split),
            jax.random.wrap_key_data(keys),
            jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(key)), whole)),
            (),
        )
    return make

def data(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return leaf

def check(restored, expected, template):
    for got, want, like in zip(*map(jax.tree.leaves, (restored, expected, template)), strict=True):
        assert got.dtype == want.dtype
        assert got.sharding.is_equivalent_to(like.sharding, got.ndim), (got.sharding, like.sharding)
        got, want = data(got), data(want)
        assert got.sharding.is_equivalent_to(data(like).sharding, got.ndim)
        theirs = {str(shard.index): np.asarray(shard.data) for shard in want.addressable_shards}
        for shard in got.addressable_shards:
            if want.is_fully_addressable:
                value = np.asarray(want)[shard.index]
            else:
                value = theirs[str(shard.index)]
            assert np.asarray(shard.data).tobytes() == value.tobytes()
"""
VIRTUAL = (
    PROGRAM
    + """
with Checkpoints(folder) as checkpoints:
    expected = on(8)(1)
    checkpoints.save(expected)
    for number in (8, 2, 1):
        template = on(number)(2)
        assert len(template.params["rows"].sharding.device_set) == number
        check(checkpoints.restore(template), expected, template)
"""
)
PROCESSES = (
    PROGRAM
    + """
expected = on(4)(1)
assert not expected.params["rows"].is_fully_addressable
with Checkpoints(folder, best_metric="loss") as checkpoints:
    bad = jax.jit(lambda rows: rows / 0, out_shardings=expected.params["rows"].sharding)
    try:
        checkpoints.save(expected._replace(params={"rows": bad(expected.params["rows"])}))
    except DivergenceError as error:
        assert "['rows'] is not finite" in str(error)
    else:
        raise SystemExit("what is not finite on another host was saved")
    checkpoints.save(expected, {"loss": 1.0})
    checkpoints.save(on(4)(2), {"loss": 2.0})
    checkpoints.save(on(4)(3), {"loss": 3.0})
    checkpoints.save(on(4)(4), {"loss": 4.0})
    assert checkpoints.all_steps() == [11, 13, 14]
    assert checkpoints.best_step() == 11
    template = on(4)(0)
    check(checkpoints.restore(template, step=11), expected, template)
    checkpoints.discard_after(11)
    assert checkpoints.all_steps() == [11]
    try:
        fingerprint(expected.params)
    except ValueError as error:
        assert "several hosts" in str(error)
    else:
        raise SystemExit("a fingerprint of what is elsewhere")
"""
)
SINGLE = (
    PROGRAM
    + """
with Checkpoints(folder) as checkpoints:
    template = on(1)(0)
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= {
        name.split("/")[0] for name in checkpoints.read_manifest(11)["files"]
    }
    check(checkpoints.restore(template), on(1)(1), template)
"""
)


def start(program, folder, process, address, devices):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-c", program, str(folder), str(process), address]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def assert_all_end_well(processes):
    errors = [process.communicate(timeout=180)[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error


def test_saved_on_eight_devices_and_restored_on_two_and_one(tmp_path):
    assert_all_end_well([start(VIRTUAL, tmp_path, -1, "", 8)])


@pytest.mark.slow  # three processes that import everything: 15 seconds of one core
def test_saved_by_two_processes_and_restored_by_them_and_by_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert_all_end_well([start(PROCESSES, tmp_path, process, address, 2) for process in (0, 1)])
    assert_all_end_well([start(SINGLE, tmp_path, -1, "", 1)])
