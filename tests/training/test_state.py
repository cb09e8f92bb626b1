"""The initial state: complete, reproducible, and its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.data.stream import init_stream
from jaxebm.objectives import contrastive_divergence, persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import compile_steps, init_state, make_train_step

pytestmark = pytest.mark.usefixtures("cheap_compilation")

CHAINS = persistent(
    partial(sgld, step_size=0.1),
    num_steps=1,
    num_chains=2,
    capacity=8,
    initial=UniformInitial(-1.0, 1.0, shape=(2,)),
)
NO_MEMORY = contrastive_divergence(partial(sgld, step_size=0.1), num_steps=1)


def test_state_before_the_first_update():
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    stream = init_stream(jax.random.key(1), 5)
    optimizer = optax.adam(1e-3)
    state = init_state(jax.random.key(0), params, optimizer=optimizer, negatives=CHAINS, streams=stream)

    assert (int(state.step), state.step.dtype, state.step.shape) == (0, jnp.int32, ())
    for tree in (state.params, state.ema_params):
        assert jax.tree.map(np.asarray, tree).keys() == params.keys()
        np.testing.assert_array_equal(tree["w"], params["w"])
    assert jax.tree.structure(state.optimizer_state) == jax.tree.structure(optimizer.init(params))
    assert state.memory.positions.shape == (8, 2)
    np.testing.assert_array_equal(state.streams.permutation, stream.permutation)
    assert jnp.issubdtype(state.rng_key.dtype, jax.dtypes.prng_key)


def test_one_key_gives_one_state_and_another_gives_another(bits):
    make = partial(init_state, params=jnp.ones(2), optimizer=optax.sgd(0.1), negatives=CHAINS)
    first, again, other = (bits(make(jax.random.key(seed))) for seed in (0, 0, 1))
    assert first == again
    assert first[".memory.positions"] != other[".memory.positions"]
    assert first[".rng_key"] != other[".rng_key"]
    # The run's key and the memory's are children: the caller's key itself drives no update.
    assert first[".rng_key"] != bits({"rng_key": jax.random.key(0)})["['rng_key']"]


def test_donating_the_state_costs_the_caller_nothing():
    """Parameters and streams are copied, also where an optimiser's state is the parameters themselves."""

    def keep_params(params):
        return params

    def descend(updates, state, params=None):
        return jax.tree.map(lambda update: -0.1 * update, updates), state

    optimizer = optax.GradientTransformation(keep_params, descend)
    params, stream = jnp.ones(2), init_stream(jax.random.key(1), 5)
    state = init_state(jax.random.key(0), params, optimizer=optimizer, negatives=NO_MEMORY, streams=stream)
    leaves = [leaf for leaf in jax.tree.leaves(state) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    pointers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    assert len(pointers) == len(leaves)

    step = make_train_step(
        energy=lambda params, x, label: jnp.sum((x - params) ** 2),
        loss=lambda params, key, batch, drawn: (jnp.sum(params**2), {}),
        optimizer=optimizer,
        negatives=NO_MEMORY,
        next_batch=lambda key, data, streams: (data, streams),
        start_of=lambda batch: (batch, jnp.zeros(len(batch), jnp.int32)),
    )
    state, _ = compile_steps(step, 1)(state, jnp.ones((3, 2)))
    np.testing.assert_allclose(state.params, 0.8, rtol=1e-6)
    np.testing.assert_array_equal(params, 1.0)
    assert not stream.permutation.is_deleted()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_of_parameters_is_kept(dtype):
    state = init_state(jax.random.key(0), jnp.ones(2, dtype), optimizer=optax.adam(0.1), negatives=NO_MEMORY)
    assert state.params.dtype == state.ema_params.dtype == dtype
