"""A problem small enough to train, kill and resume many times, and the comparison of states bit for bit."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.training import Dispatch, loop

# A file of its own, because the tests that kill a run start it as a process too.
PROGRAM = '''
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxebm.data.stream import init_stream, next_batch
from jaxebm.energies.networks import MLP
from jaxebm.objectives import contrastive_loss, persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import RunFolder, fit, init_state, make_train_step, open_run

NUM_STEPS = 33  # no multiple of the steps a dispatch
CONFIG = {"seed": 0}


def problem():
    """A network's energy, persistent chains, shuffled minibatches and Adam: all that a state can hold."""
    key_data, key_stream, key_params, key_state = jax.random.split(jax.random.key(0), 4)
    data = jax.random.normal(key_data, (24, 2)) + jnp.array([[2.0, -1.0]])
    module = MLP(num_outputs=None, widths=(4,))
    optimizer = optax.adam(1e-2)
    negatives = persistent(
        partial(sgld, step_size=0.05), num_steps=2, num_chains=6, capacity=12, restart_probability=0.1,
        initial=UniformInitial(-3.0, 3.0, shape=(2,)),
    )
    step = make_train_step(
        energy=lambda params, x, label: module.apply(params, x),
        loss=lambda params, key, batch, drawn: contrastive_loss(
            module.apply, params, batch, drawn.positions
        ),
        optimizer=optimizer,
        negatives=negatives,
        next_batch=lambda key, arrays, stream: next_batch(key, stream, arrays, 7),
    )

    @jax.jit  # one program: op by op, each of them would be compiled by itself
    def make_state():
        params = module.init(key_params, jnp.zeros(2))
        stream = init_stream(key_stream, 24)
        return init_state(key_state, params, optimizer=optimizer, negatives=negatives, streams=stream)

    return step, make_state, data


def train(folder, num_steps=NUM_STEPS, step=None, make_state=None, data=None):
    if step is None:
        step, make_state, data = problem()
    run = open_run(folder, CONFIG, resume=True)
    settings = {"num_steps": num_steps, "steps_per_dispatch": 4, "checkpoint_every": 10}
    return fit(step, make_state(), data, run=run, **settings)


if __name__ == "__main__":
    append = RunFolder.append_metrics

    def append_slowly(self, record):
        append(self, record)
        time.sleep(float(sys.argv[2]))

    RunFolder.append_metrics = append_slowly
    train(sys.argv[1])
'''


class KeptDispatch(Dispatch):
    """A program compiled once for a step, a monitor and shapes, however many runs there are."""

    kept: ClassVar[dict[Any, Any]] = {}

    def compile(self, state: Any, data: Any) -> None:
        shapes = tuple((jnp.shape(leaf), str(leaf.dtype)) for leaf in jax.tree.leaves((state, data)))
        key = (self.train_step, self.monitor, shapes)
        if key not in self.kept:
            super().compile(state, data)
            self.kept[key] = self._compiled, self.compile_seconds, self.memory
        self._compiled, self.compile_seconds, self.memory = self.kept[key]


@pytest.fixture(scope="module")
def compile_once(cheap_compilation):
    """Runs of this process share their compiled steps; those that start processes compile anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Dispatch", KeptDispatch)
        yield
    KeptDispatch.kept.clear()


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Path:
    """The program as a file, ``python FILE FOLDER SECONDS_BETWEEN_DISPATCHES``."""
    path = tmp_path_factory.mktemp("program") / "tiny_program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="session")
def tiny(program) -> Any:
    """The program's names, in this process."""
    return runpy.run_path(str(program))


@pytest.fixture(scope="session")
def bits() -> Callable[[Any], dict[str, tuple]]:
    """``bits(tree)``: each leaf's dtype, shape and bytes by its path, so that ``==`` compares bit for bit."""

    def bits(tree: Any) -> dict[str, tuple]:
        found = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            dtype = str(leaf.dtype)
            if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            array = np.asarray(leaf)
            found[jax.tree_util.keystr(path)] = (dtype, array.shape, array.tobytes())
        return found

    return bits
