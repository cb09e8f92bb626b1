"""A small JEM on any number of devices and processes: what `test_placement` runs, here and as processes.

``python placement_program.py host:port num_processes process_id FILE`` trains and writes the parameters.
"""

import sys
from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxebm.data import Examples
from jaxebm.energies import MLP
from jaxebm.objectives import jem, persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import compile_steps, learner
from jaxebm.training.placement import Placement, fetch, initialize_distributed, make_placement

NUM_STRATA, NUM_CLASSES, BATCH_SIZE, CAPACITY, NUM_EXAMPLES = 8, 3, 16, 192, 107
UPDATES, DISPATCHES = 2, 2
IMAGE = (4, 4, 1)  # with the first layer's 64 units, 1024 weights: as many as are split
NETWORK = MLP(NUM_CLASSES, widths=(64,))
OBJECTIVE = jem(NETWORK.apply)


def make_negatives(placement: Placement):
    return persistent(
        partial(sgld, step_size=0.1),
        num_steps=3,
        initial=UniformInitial(-1.0, 1.0, IMAGE),
        num_chains=BATCH_SIZE,
        capacity=CAPACITY,
        restart_probability=0.2,
        num_classes=NUM_CLASSES,
        num_strata=NUM_STRATA,
        sharding=placement.split,
    )


def make_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, *IMAGE)).astype(np.float32)
    return Examples(x, np.arange(NUM_EXAMPLES) % NUM_CLASSES)


def make_learner(placement: Placement):
    return learner(
        OBJECTIVE,
        optimizer=optax.adam(1e-2),
        negatives=make_negatives(placement),
        batch_size=BATCH_SIZE,
        noise=0.03,
        placement=placement,
    )


def make_state(placement: Placement):
    return make_learner(placement).init(jax.random.key(0), NETWORK.init, make_data())


def train(placement: Placement, data):
    """Returns the compiled program, and the state and metrics after two dispatches of two updates."""
    state, metrics = make_state(placement), {}
    # Compiled ahead: the second dispatch fails unless the state comes out exactly as it goes in.
    program = compile_steps(make_learner(placement).step, UPDATES).lower(state, data).compile()
    for _ in range(DISPATCHES):
        state, metrics = program(state, data)
    return program, fetch(state), jax.device_get(metrics)


if __name__ == "__main__":
    address, num_processes, process_id, path = sys.argv[1:]
    with pytest.raises(ValueError, match="no cluster was detected"):
        initialize_distributed()
    initialize_distributed(address, int(num_processes), int(process_id))
    assert jax.process_count() == int(num_processes)
    placement = make_placement(num_strata=NUM_STRATA)
    # Each process reads its own block of the data, and no other.
    rows = NUM_EXAMPLES // NUM_STRATA * (NUM_STRATA // int(num_processes))
    own = slice(int(process_id) * rows, (int(process_id) + 1) * rows)
    whole = make_data()
    data = placement.place_data(jax.tree.map(lambda leaf: leaf[own], whole), local=True)
    from_all = placement.place_data(whole)
    for leaf, other in zip(jax.tree.leaves(data), jax.tree.leaves(from_all), strict=True):
        np.testing.assert_array_equal(fetch(leaf), fetch(other))
    _, state, metrics = train(placement, data)
    if int(process_id) == 0:
        np.savez(path, *jax.tree.leaves(state.params), state.sampler_state.buffer.positions, metrics["loss"])
    with pytest.raises(ValueError, match=r"\[\[8\], \[9\]\]"):
        placement.place_data(np.zeros((8 + int(process_id), 1)), local=True)
