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

from jaxebm.energies.networks import MLP
from jaxebm.objectives import likelihood, persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import Checkpointing, RunFolder, fit, learner, open_run

NUM_STEPS = 33  # no multiple of the steps a dispatch
CONFIG = {"seed": 0}
KEY = jax.random.key(0)


def problem():
    """A network's energy, persistent chains, shuffled minibatches and Adam: all that a state can hold."""
    data = jax.random.normal(jax.random.key(1), (24, 2)) + jnp.array([[2.0, -1.0]])
    network = MLP(num_outputs=None, widths=(4,))
    chains = persistent(
        partial(sgld, step_size=0.05), num_steps=2, num_chains=6, capacity=12, restart_probability=0.1,
        initial=UniformInitial(-3.0, 3.0, shape=(2,)),
    )
    learn = learner(
        likelihood(network.apply), optimizer=optax.adam(1e-2), negatives=chains, batch_size=7
    )
    return learn, network.init, data


def train(folder, num_steps=NUM_STEPS, learn=None, params=None, data=None):
    if learn is None:
        learn, params, data = problem()
    kept = Checkpointing(open_run(folder, CONFIG, resume=True), every=10)
    return fit(KEY, learn, params, data, num_steps=num_steps, steps_per_dispatch=4, checkpointing=kept)


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
            self.kept[key] = self._compiled, self.compile_seconds, self.device_memory
        self._compiled, self.compile_seconds, self.device_memory = self.kept[key]


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
