"""The initial state: complete, reproducible, and its own."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.data import Examples
from jaxebm.objectives import contrastive_divergence, likelihood, persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import Streams, compile_steps, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
X, LABELS = np.arange(10.0, dtype=np.float32).reshape(5, 2), np.array([0, 1, 0, 1, 0])
PERSISTENT = persistent(
    partial(sgld, step_size=0.1),
    num_steps=1,
    num_chains=2,
    capacity=8,
    initial=UniformInitial(-1.0, 1.0, shape=(2,)),
)
STATELESS = contrastive_divergence(partial(sgld, step_size=0.1), num_steps=1)


def energy(params, x):
    return 0.5 * jnp.sum((x - jax.tree.leaves(params)[0]) ** 2)


def learner_of(optimizer=None, negatives=PERSISTENT, **options):
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    return learner(likelihood(energy), optimizer=optimizer, negatives=negatives, batch_size=3, **options)


def test_state_before_the_first_update():
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    optimizer = optax.adam(1e-3)
    state = learner_of(optimizer).init(KEY, params, Examples(X, LABELS, np.ones((7, 2), np.float32)))

    assert (int(state.step), state.step.dtype, state.step.shape) == (0, jnp.int32, ())
    for tree in (state.params, state.ema_params):
        assert jax.tree.map(np.asarray, tree).keys() == params.keys()
        np.testing.assert_array_equal(tree["w"], params["w"])
    assert jax.tree.structure(state.optimizer_state) == jax.tree.structure(optimizer.init(params))
    assert state.sampler_state.buffer.positions.shape == (8, 2)
    assert float(state.sampler_state.initial.high) == 1.0
    for stream, length in ((state.streams.labelled, 5), (state.streams.x_data, 7)):
        assert sorted(stream.permutation.tolist()) == list(range(length))
        assert int(stream.offset) == 0
    assert jnp.issubdtype(state.rng_key.dtype, jax.dtypes.prng_key)


def test_there_is_a_place_in_the_data_for_each_kind_of_batch():
    init = partial(learner_of(negatives=STATELESS).init, KEY, jnp.ones(2))
    unlabelled = init(X).streams
    assert isinstance(unlabelled, Streams)
    assert unlabelled.labelled is None
    assert init(lambda rng_key, batch_size: jnp.ones((batch_size, 2))).streams == ()
    labelled = init((X, LABELS)).streams
    assert not np.array_equal(labelled.labelled.permutation, labelled.x_data.permutation)


def test_one_key_gives_one_state_and_another_gives_another(bits):
    init = partial(learner_of(optax.sgd(0.1)).init, params=jnp.ones(2), data=(X, LABELS))
    first, again, other = (bits(init(jax.random.key(seed))) for seed in (0, 0, 1))
    assert first == again
    for drawn in (
        ".sampler_state.buffer.positions",
        ".rng_key",
        ".streams.labelled.permutation",
        ".streams.x_data.permutation",
    ):
        assert first[drawn] != other[drawn]
    # The run's key is a child: the caller's key itself drives no update.
    assert first[".rng_key"] != bits({"rng_key": KEY})["['rng_key']"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_parameters_may_be_made_by_a_function_of_a_key_and_an_example(wrapped):
    """The example is rescaled, as the network will see it; parameters depend on the key alone."""

    def make(rng_key, example):
        assert example.shape == (2,)
        assert example.dtype == jnp.float32
        return {"w": jax.random.normal(rng_key, example.shape), "x": example}

    init = learner_of(rescale=lambda x: x / jnp.float32(255)).init
    params = jax.tree_util.Partial(make) if wrapped else make
    pixels = np.full((5, 2), 7, np.uint8)
    first, again, other = (init(jax.random.key(seed), params, pixels).params for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["w"], again["w"])
    assert not np.any(first["w"] == other["w"])
    np.testing.assert_array_equal(first["x"], 0.0)


def test_parameters_that_can_be_called_are_parameters():
    """Models of some libraries are pytrees of their arrays, and functions too."""

    @jax.tree_util.register_dataclass
    @dataclass
    class Model:
        w: jax.Array

        def __call__(self, rng_key, example):
            pytest.fail("called")

    state = learner_of(negatives=STATELESS).init(KEY, Model(jnp.ones(2)), X)
    assert isinstance(state.params, Model)
    np.testing.assert_array_equal(state.params.w, 1.0)


def test_donating_the_state_costs_the_caller_nothing():
    """Parameters are copied, also where an optimiser's state is the parameters themselves."""

    def keep_params(params):
        return params

    def descend(updates, state, params=None):
        return jax.tree.map(lambda update: -0.1 * update, updates), state

    params, initial = jnp.zeros(2), UniformInitial(jnp.array(-1.0), jnp.array(1.0), shape=(2,))
    chains = persistent(partial(sgld, step_size=0.1), num_steps=1, num_chains=2, capacity=8, initial=initial)
    learn = learner_of(optax.GradientTransformation(keep_params, descend), chains)
    state = learn.init(KEY, params, X)
    leaves = [leaf for leaf in jax.tree.leaves(state) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    pointers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    assert len(pointers) == len(leaves)

    state, _ = compile_steps(learn.step, 1)(state, learn.place(X))
    assert not np.any(np.asarray(state.params) == 0.0)
    np.testing.assert_array_equal(params, 0.0)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(initial))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_of_parameters_is_kept(dtype):
    state = learner_of(optax.adam(0.1), STATELESS).init(KEY, jnp.ones(2, dtype), X)
    assert state.params.dtype == state.ema_params.dtype == dtype
