"""Many devices compute what one computes, and say nothing to each other but gradients and metrics.

The programs run on 8 virtual CPU devices (tests/conftest.py). What they say is read off the compiled program.
"""

import os
import re
import runpy
import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxebm.objectives import SamplerState, classifier, persistent, short_run
from jaxebm.samplers import ClassGaussianInitial, UniformInitial, sgld
from jaxebm.training import TrainState, init_health, learner
from jaxebm.training.placement import (
    SHARDS,
    SMALLEST_SPLIT,
    fetch,
    initialize_distributed,
    make_placement,
)

pytestmark = [
    pytest.mark.usefixtures("cheap_compilation"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices; XLA_FLAGS was set by the caller"),
]

PROGRAM = Path(__file__).with_name("placement_program.py")
TINY = runpy.run_path(str(PROGRAM))
COLLECTIVE = (
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(?:-start)?\("
)
BUFFER_ROWS = TINY["CAPACITY"]


@cache
def trained(num_devices, shard_parameters=False):
    placement = make_placement(num_devices, num_strata=TINY["NUM_STRATA"], shard_parameters=shard_parameters)
    data = TINY["make_learner"](placement).place(TINY["make_data"]())
    program, state, metrics = TINY["train"](placement, data)
    return program, state, metrics


def collectives(text):
    """The kind of each collective of a program and how many loops it lies in.

    Loops are counted along the calls from the entry, over ``body=`` of its while instructions.
    """
    computations = {}
    for block in re.split(r"\n(?=%|ENTRY)", text):
        found = re.match(r"(ENTRY )?%(\S+) ", block)
        if found:
            computations[found[2]] = block
            if found[1]:
                entry = found[2]
    depths, queue = {entry: 0}, [entry]
    while queue:
        name = queue.pop()
        for called in re.findall(r"(body|condition|calls|to_apply)=%([\w.\-]+)", computations[name]):
            depth = depths[name] + (called[0] == "body")
            if depth > depths.get(called[1], -1):
                depths[called[1]] = depth
                queue.append(called[1])
    found = [(kind, depths[name]) for name in depths for kind in re.findall(COLLECTIVE, computations[name])]
    return found, max(depths.values())


# --- what devices say to each other ---


@cache
def compiled_draw(num_devices):
    placement = make_placement(num_devices, num_strata=TINY["NUM_STRATA"])
    negatives, state = TINY["make_negatives"](placement), TINY["make_state"](placement)
    energy = TINY["OBJECTIVE"].energy
    draw = jax.jit(lambda key, params, chains: negatives.draw(key, energy, params, None, None, chains))
    return draw.lower(state.rng_key, state.params, state.sampler_state).compile()


def test_persistent_chains_need_no_communication():
    program = compiled_draw(8)
    assert collectives(program.as_text())[0] == []
    samples, state = program.output_shardings
    split = jax.tree.leaves((samples, state.buffer))
    assert all(sharding.spec == PartitionSpec(SHARDS) for sharding in split)


def test_twice_the_devices_half_the_work_for_each():
    flops = [compiled_draw(num_devices).cost_analysis()["flops"] for num_devices in (4, 8)]
    assert abs(flops[0] / flops[1] - 2) < 0.1


def test_short_runs_need_no_communication_and_are_the_same():
    def sampler(sharding=None):
        return short_run(
            partial(sgld, step_size=0.1),
            num_steps=3,
            initial=UniformInitial(-1.0, 1.0, (2,)),
            num_chains=16,
            num_classes=3,
            sharding=sharding,
        )

    def energy(params, x, label):
        return 0.5 * jnp.sum((x - params - label) ** 2)

    def draw(sampler, params):
        state = sampler.init(jax.random.key(1), jnp.zeros(2))
        return sampler.draw(jax.random.key(0), energy, params, None, None, state)[0]

    placement = make_placement(8)
    params = jax.device_put(jnp.ones(2), placement.replicated)
    program = jax.jit(partial(draw, sampler(placement.split))).lower(params).compile()
    assert collectives(program.as_text())[0] == []
    split = program(params)
    assert {shard.data.shape for shard in split.positions.addressable_shards} == {(2, 2)}
    for a, b in zip(split, jax.jit(partial(draw, sampler()))(jnp.ones(2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_sums_gradients_and_metrics_and_nothing_else():
    found, deepest = collectives(trained(8)[0].as_text())
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert deepest >= 2  # the loop over updates, and in it the loop of the chains
    assert {depth for _, depth in found} == {1}


def test_split_parameters_are_gathered_once_and_never_in_the_chains():
    found, _ = collectives(trained(8, shard_parameters=True)[0].as_text())
    kinds = {kind for kind, _ in found}
    assert "all-gather" in kinds
    assert kinds <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert max(depth for _, depth in found) == 1


@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_buffer_is_updated_in_place(num_devices):
    program = trained(num_devices)[0]
    shape = (BUFFER_ROWS // num_devices, *TINY["IMAGE"])
    text, memory = program.as_text(), program.memory_analysis()
    listed = ",".join(map(str, shape))
    assert re.search(rf"f32\[{listed}\]", text)
    # No copy of its shape, nor of as many numbers in another one.
    copies = [
        line.strip()[:120]
        for dimensions, line in re.findall(r"= f32\[([\d,]+)\]\S* (?=copy|transpose)(.*)", text)
        if np.prod([int(length) for length in dimensions.split(",")]) == np.prod(shape)
    ]
    assert copies == []
    assert memory.alias_size_in_bytes >= 4 * np.prod(shape)


# --- results ---


@pytest.mark.parametrize("shard_parameters", [False, True])
def test_eight_devices_train_as_one_does(shard_parameters):
    _, one, one_metrics = trained(1)
    _, many, metrics = trained(8, shard_parameters)
    assert int(many.step) == TINY["UPDATES"] * TINY["DISPATCHES"]
    # Choices are the same, numbers differ by the order of sums.
    np.testing.assert_array_equal(many.sampler_state.buffer.ages, one.sampler_state.buffer.ages)
    for a, b in zip(many.streams, one.streams, strict=True):
        np.testing.assert_array_equal(a.permutation, b.permutation)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    for name in one_metrics:
        np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=1e-3, atol=1e-5, err_msg=name)
    start = fetch(TINY["make_state"](make_placement(1, num_strata=TINY["NUM_STRATA"])))
    assert not np.allclose(one.sampler_state.buffer.positions, start.sampler_state.buffer.positions)


def test_two_processes_train_as_one_does(tmp_path):
    """Each with two devices and its own half of the data; they meet on loopback."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), address, "2", str(index), str(tmp_path / "two.npz")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    *params, positions, loss = np.load(tmp_path / "two.npz").values()
    _, one, metrics = trained(1)
    for a, b in zip(params, jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(positions, one.sampler_state.buffer.positions, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-3)


# --- where things live ---


def test_a_state_lies_where_it_is_said_to():
    placement = make_placement(8, shard_parameters=True)
    state = TINY["make_state"](placement)
    one = make_placement(1, num_strata=TINY["NUM_STRATA"])
    shardings = placement.state_shardings(TINY["make_state"](one))
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    positions = state.sampler_state.buffer.positions
    assert {shard.data.shape for shard in positions.addressable_shards} == {(24, 4, 4, 1)}
    for stream in (state.streams.labelled, state.streams.x_data):
        assert {shard.data.shape for shard in stream.permutation.addressable_shards} == {(1, 13)}
    for tree in (state.params, state.ema_params, state.optimizer_state[0].mu):
        for leaf in jax.tree.leaves(tree):
            # (16, 64) weights along their longest axis; biases and the small last layer stay whole.
            expected = PartitionSpec(None, SHARDS) if leaf.size >= SMALLEST_SPLIT else PartitionSpec()
            assert leaf.sharding.spec == expected, leaf.shape
    assert state.rng_key.sharding.is_fully_replicated
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.health))


def state_of(params, **parts):
    empty = TrainState(jnp.zeros((), jnp.int32), params, (), params, (), (), jax.random.key(0), init_health())
    return empty._replace(**parts)


def test_every_device_has_the_whole_distribution_that_its_chains_start_from():
    """Three classes, which 8 devices do not divide; an update leaves it where it was."""
    placement = make_placement(8)
    initial = ClassGaussianInitial(jnp.zeros((3, 8)), jnp.stack([jnp.eye(8)] * 3), low=-1.0)
    chains = persistent(
        partial(sgld, step_size=0.1),
        num_steps=1,
        num_chains=8,
        capacity=24,
        num_classes=3,
        initial=initial,
        num_strata=8,
        sharding=placement.split,
    )
    learn = learner(
        classifier(lambda params, x: params @ x),
        optimizer=optax.sgd(0.1),
        negatives=chains,
        batch_size=8,
        placement=placement,
    )
    data = (np.eye(8, dtype=np.float32), np.arange(8) % 3)
    state = learn.init(jax.random.key(0), jnp.ones((3, 8)), data)
    for held in (state, jax.jit(learn.step)(state, learn.place(data))[0]):
        initial = held.sampler_state.initial
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(initial))
        assert len(initial.factors.sharding.device_set) == 8
        assert all(leaf.sharding.spec == PartitionSpec(SHARDS) for leaf in held.sampler_state.buffer)


def test_parameters_that_the_devices_do_not_divide_stay_whole():
    placement = make_placement(8, shard_parameters=True)
    state = state_of({"odd": jnp.ones((41, 43)), "first": jnp.ones((64, 35))})
    specs = jax.tree.map(lambda sharding: sharding.spec, placement.state_shardings(state).params)
    assert specs == {"odd": PartitionSpec(), "first": PartitionSpec(SHARDS)}


def test_the_original_state_survives_the_donation_of_its_copy():
    state = state_of(jnp.ones(3))
    placed = make_placement(2).place_state(state)
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf, state), donate_argnums=0)(placed)
    np.testing.assert_array_equal(state.params, np.ones(3))


def test_data_is_split_in_whole_strata():
    placement = make_placement(4, num_strata=8)
    data = {"image": np.arange(2 * 21).reshape(21, 2), "label": np.arange(18, dtype=np.uint8)}
    placed = placement.place_data(data)
    np.testing.assert_array_equal(placed["image"], data["image"][:16])
    assert placed["label"].dtype == jnp.uint8
    for index, shard in enumerate(placed["label"].addressable_shards):
        np.testing.assert_array_equal(shard.data, 4 * index + np.arange(4))
    local = placement.place_data(data, local=True)  # one process has all
    np.testing.assert_array_equal(local["image"], placed["image"])


def test_everything_comes_back():
    placement = make_placement(8)
    keys = jax.random.split(jax.random.key(3), 8)
    tree = {"x": placement.place_data(np.arange(16)), "keys": jax.device_put(keys, placement.split), "y": 2.0}
    back = fetch(tree | {"y": np.float32(2.0)})
    np.testing.assert_array_equal(back["x"], np.arange(16))
    np.testing.assert_array_equal(jax.random.key_data(back["keys"]), jax.random.key_data(keys))
    assert back["y"] == 2.0


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_devices": 0}, "num_devices=0"),
        ({"num_devices": 100}, r"num_devices=100: there are \d+ \(cpu\).*device_count=100"),
        ({"num_devices": 4, "num_strata": 6}, "num_strata=6 must be a multiple of num_devices=4"),
        ({"num_strata": 2.5}, "num_strata=2.5"),
    ],
)
def test_bad_placements_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        make_placement(**arguments)


def test_what_cannot_be_split_is_named():
    placement = make_placement(8)
    with pytest.raises(ValueError, match=r"batch has a leaf of shape \(12, 2\).*8 devices.*num_strata=8"):
        jax.eval_shape(placement.shard_batch, jnp.ones((12, 2)))
    with pytest.raises(ValueError, match=r"state.streams has a leaf of shape \(12,\)"):
        placement.place_state(state_of(jnp.ones(2), streams=jnp.arange(12)))
    buffer = SamplerState(buffer=jnp.zeros((12, 2)))
    with pytest.raises(ValueError, match=r"state.sampler_state.buffer has a leaf of shape \(12, 2\)"):
        placement.place_state(state_of(jnp.ones(2), sampler_state=buffer))
    with pytest.raises(ValueError, match="7 examples: at least 8 are needed"):
        placement.place_data(np.ones((7, 2)))
    with pytest.raises(ValueError, match="no examples"):
        placement.place_data(np.float32(1.0))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"coordinator": "localhost:1"}, "num_processes, process_id missing"),
        ({"num_processes": 2, "process_id": 0}, "coordinator missing"),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 0}, "coordinator='localhost'"),
        ({"coordinator": "localhost:1", "num_processes": 0, "process_id": 0}, "num_processes=0"),
        ({"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}, r"process_id=2: .*0\.\.1"),
    ],
)
def test_bad_processes_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        initialize_distributed(**arguments)
