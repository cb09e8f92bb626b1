"""Hierarchical memories: special cases are known networks; retrieval, clamping, learning and errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.hopfield.hierarchical import HierarchicalMemory, Tempered
from jaxebm.hopfield.lagrangians import (
    Exponential,
    LogCosh,
    Power,
    Quadratic,
    Softmax,
)
from jaxebm.hopfield.synapses import BiasSynapse, DenseSynapse, FunctionSynapse, RecurrentSynapse

pytestmark = pytest.mark.usefixtures("cheap_compilation")


MODERN = HierarchicalMemory(
    {"visible": Quadratic(), "hidden": Tempered(Softmax(), beta=2.5)}, [DenseSynapse("hidden", "visible")]
)


def _modern_problem(num_patterns=5, size=7):
    rng = np.random.default_rng(3)
    return rng.standard_normal((num_patterns, size)), rng.standard_normal(size)


def _softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def test_two_layers_are_the_modern_network():
    """At h = Xi v the energy is |v|^2 / 2 - Phi(beta Xi v) / beta; a visible step of 1 is attention."""
    patterns, visible = _modern_problem()
    scores = 2.5 * patterns @ visible
    states = {"visible": jnp.asarray(visible), "hidden": jnp.ones(5)}
    step = jax.jit(MODERN.step, static_argnames="clamped")
    states = step([patterns], states, 1.0, clamped="visible")
    np.testing.assert_allclose(states["hidden"], patterns @ visible, rtol=1e-5)
    expected = visible @ visible / 2 - (np.log(np.mean(np.exp(scores)))) / 2.5
    np.testing.assert_allclose(jax.jit(MODERN.energy)((patterns,), states), expected, rtol=1e-5)
    states = step([patterns], states, 1.0, clamped=("hidden",))
    np.testing.assert_allclose(states["visible"], patterns.T @ _softmax(scores), rtol=1e-5, atol=1e-6)


def test_rest_is_where_no_force_is_and_the_modern_network_rests():
    patterns, query = _modern_problem()
    states = {"visible": jnp.asarray(query), "hidden": jnp.zeros(5)}
    found = MODERN.retrieve([patterns], states, step_size={"visible": 0.1, "hidden": 0.5}, tolerance=1e-5)
    assert found.converged
    assert 0 < found.steps < 1000
    for force in MODERN.forces([patterns], found.states).values():
        assert np.max(np.abs(force)) <= 1.01e-5
    visible = np.asarray(found.states["visible"])
    np.testing.assert_allclose(visible, patterns.T @ _softmax(2.5 * patterns @ visible), atol=1e-4)
    np.testing.assert_allclose(found.energy, MODERN.energy([patterns], found.states), rtol=1e-6)
    slopes = jax.jit(jax.grad(MODERN.energy, argnums=1))([patterns], found.states)
    chex.assert_trees_all_close(slopes, jax.tree.map(jnp.zeros_like, slopes), atol=1e-4)


def test_retrieval_reports_what_it_did():
    patterns, query = _modern_problem()
    states = {"visible": jnp.asarray(query), "hidden": jnp.zeros(5)}
    cut_short = MODERN.retrieve([patterns], states, max_steps=3)
    assert (int(cut_short.steps), bool(cut_short.converged)) == (3, False)
    history = MODERN.trajectory([patterns], states, 3, 0.1)
    chex.assert_trees_all_close(cut_short.states, jax.tree.map(lambda leaf: leaf[-1], history), rtol=1e-6)
    chex.assert_trees_all_equal(states, jax.tree.map(lambda leaf: leaf[0], history))
    at_rest = MODERN.retrieve([patterns], cut_short.states, tolerance=100.0)
    assert (int(at_rest.steps), bool(at_rest.converged)) == (0, True)
    quadratic = HierarchicalMemory({"x": Quadratic()}, [RecurrentSynapse("x")])
    diverged = quadratic.retrieve([5.0 * jnp.eye(2)], {"x": jnp.ones(2)}, max_steps=2000)
    assert not diverged.converged
    assert diverged.steps < 2000  # it stops where the numbers end


def test_retrieval_of_a_batch_is_retrieval_of_each():
    patterns, _ = _modern_problem()
    queries = jnp.asarray(np.random.default_rng(4).standard_normal((6, 7)), jnp.float32)
    batch = {"visible": queries, "hidden": jnp.zeros((6, 5))}
    together = jax.vmap(lambda states: MODERN.retrieve([patterns], states, step_size=0.2))(batch)
    assert len(set(np.asarray(together.steps).tolist())) > 1
    for index, query in enumerate(queries):
        states = {"visible": query, "hidden": jnp.zeros(5)}
        alone = MODERN.retrieve([patterns], states, step_size=0.2)
        assert abs(int(together.steps[index]) - int(alone.steps)) <= 1  # float32 may stop a step apart
        np.testing.assert_allclose(together.states["visible"][index], alone.states["visible"], atol=1e-4)


def test_logcosh_with_itself_is_the_graded_network():
    """Hopfield 1984: du/dt = -u + W v + b, v = tanh(gain u), E = -v.Wv/2 - b.v + sum int_0^v g^-1."""
    gain, size = 1.7, 6
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((size, size))
    bias, internal = rng.standard_normal(size), rng.standard_normal(size)
    symmetric = (weights + weights.T) / 2
    memory = HierarchicalMemory(
        {"neurons": LogCosh(gain)}, [RecurrentSynapse("neurons"), BiasSynapse("neurons")]
    )
    states = {"neurons": jnp.asarray(internal)}
    activation = np.tanh(gain * internal)
    np.testing.assert_allclose(memory.activations(states)["neurons"], activation, rtol=1e-5)
    # int_0^v artanh(s) / gain ds = (v artanh(v) + log(1 - v^2) / 2) / gain
    integral = np.sum(activation * np.arctanh(activation) + np.log(1 - activation**2) / 2) / gain
    expected = -activation @ symmetric @ activation / 2 - bias @ activation + integral
    np.testing.assert_allclose(jax.jit(memory.energy)((weights, bias), states), expected, rtol=1e-5)
    velocity = -internal + symmetric @ activation + bias
    np.testing.assert_allclose(
        jax.jit(memory.forces)((weights, bias), states)["neurons"], velocity, rtol=1e-5, atol=1e-5
    )
    after = jax.jit(memory.step)((weights, bias), states, 0.25)
    np.testing.assert_allclose(after["neurons"], internal + 0.25 * velocity, rtol=1e-5, atol=1e-5)


def test_clamped_layers_and_neurons_stay():
    """A masked query: the known half is held, the other half is recalled."""
    patterns = np.sign(np.random.default_rng(6).standard_normal((3, 16)))
    known = np.arange(16) < 8
    query = {"visible": jnp.asarray(np.where(known, patterns[1], 0.0)), "hidden": jnp.zeros(3)}
    found = MODERN.retrieve([patterns], query, step_size=0.2, clamped={"visible": known})
    np.testing.assert_array_equal(found.states["visible"][:8], patterns[1, :8])
    np.testing.assert_allclose(found.states["visible"][8:], patterns[1, 8:], atol=1e-3)
    assert found.converged  # what pulls at clamped neurons does not count
    for clamped in ("visible", {"visible": jnp.ones(16, bool)}):
        held = MODERN.trajectory([patterns], query, 4, 0.2, clamped=clamped)
        np.testing.assert_array_equal(held["visible"], np.tile(query["visible"], (5, 1)))
        assert np.all(np.any(np.diff(held["hidden"], axis=0) != 0, axis=1))
    infinite = [jnp.full((3, 16), jnp.inf)]
    np.testing.assert_array_equal(MODERN.step(infinite, query, 0.1, "visible")["visible"], query["visible"])


def test_learning_through_unrolled_steps():
    """Gradients reach all synapses through the dynamics: memories are learnt that mend a masked half."""
    targets = jnp.sign(jax.random.normal(jax.random.key(7), (4, 10)))
    queries = targets.at[:, 5:].set(0.0)
    memory = HierarchicalMemory(dict(MODERN.layers), [*MODERN.synapses, BiasSynapse("visible")])
    params = memory.init_params(jax.random.key(8), {"visible": (10,), "hidden": (4,)})
    chex.assert_shape(params, [(4, 10), (10,)])

    def loss(params):
        def mended(query):
            states = {"visible": query, "hidden": jnp.zeros(4)}
            return memory.trajectory(params, states, 8, {"visible": 0.5, "hidden": 1.0})["visible"][-1]

        return jnp.mean((jax.vmap(mended)(queries) - targets) ** 2)

    optimiser = optax.adam(0.1)

    @jax.jit
    def learn(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(params, updates), state, value, gradients

    state = optimiser.init(params)
    losses = []
    for _ in range(300):
        params, state, value, gradients = learn(params, state)
        losses.append(float(value))
    assert all(np.any(np.asarray(leaf) != 0) for leaf in gradients)
    assert losses[0] > 0.7
    assert losses[-1] < 0.1 * losses[0]


def test_new_values_do_not_recompile():
    traces = []

    def counted(weights, hidden, visible):
        traces.append(weights)
        return -jnp.vdot(hidden, weights @ visible)

    memory = HierarchicalMemory(dict(MODERN.layers), [FunctionSynapse(("hidden", "visible"), counted)])
    states = {"visible": jnp.ones(4), "hidden": jnp.zeros(3)}
    other = jax.tree.map(lambda leaf: leaf + 1.5, states)
    for call in (
        lambda *args, **options: memory.retrieve(*args, **options),
        lambda *args, step_size, clamped, **_: memory.trajectory(*args, 3, step_size, clamped),
    ):
        call([jnp.ones((3, 4))], states, step_size=0.1, clamped=(), max_steps=10, tolerance=1e-3)
        before = len(traces)
        call([jnp.zeros((3, 4))], other, step_size=0.2, clamped="hidden", max_steps=20, tolerance=1e-2)
        sizes = {"visible": jnp.asarray(0.3), "hidden": 0.1}
        masks = {"visible": np.arange(4) < 2}
        call([jnp.ones((3, 4))], states, step_size=sizes, clamped=masks, max_steps=5, tolerance=0.0)
        assert len(traces) == before
    # Equal descriptions share their programs.
    twin = HierarchicalMemory(dict(memory.layers), list(memory.synapses))
    assert twin == memory
    assert hash(twin) == hash(memory)
    twin.retrieve([jnp.ones((3, 4))], states)
    before = len(traces)
    memory.retrieve([jnp.ones((3, 4))], other)
    assert len(traces) == before


def test_states_keep_their_dtype():
    states = {"visible": jnp.ones(4, jnp.bfloat16), "hidden": np.zeros(3, np.float16)}
    found = MODERN.retrieve([jnp.ones((3, 4))], states, tolerance=0.1)
    assert {name: state.dtype for name, state in found.states.items()} == {
        "visible": jnp.bfloat16,
        "hidden": np.float16,
    }


PATTERNS = jnp.ones((3, 4))
STATES = {"visible": jnp.ones(4), "hidden": jnp.zeros(3)}
SELF = FunctionSynapse(("a",), lambda _, a: a)  # not a scalar
step = functools.partial(MODERN.step, [PATTERNS], STATES)
retrieve = functools.partial(MODERN.retrieve, [PATTERNS])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HierarchicalMemory({}, []), "layers is empty"),
        (
            lambda: HierarchicalMemory({"a": Quadratic()}, [DenseSynapse("a", "b")]),
            r"Dense.*unknown layers \['b'\]",
        ),
        (
            lambda: HierarchicalMemory({"a": Quadratic()}, [SELF]).energy([0], {"a": jnp.ones(2)}),
            r"shape \(2,\)",
        ),
        (lambda: MODERN.energy([PATTERNS], {"visible": jnp.ones(4)}), r"states lacks .*'hidden'"),
        (lambda: MODERN.energy([PATTERNS], {**STATES, "top": 0}), r"states names unknown .*'top'"),
        (lambda: MODERN.energy([PATTERNS.T], STATES), r"\(4, 3\): \(3, 4\) is needed, neurons of 'hidden'"),
        (lambda: MODERN.energy([], STATES), "params has 0 entries: 1 are needed"),
        (lambda: step(0.0), "step_size=0.0"),
        (lambda: step(jnp.ones(2)), "step_size has shape"),
        (lambda: step({"hidden": 0.1}), r"step_size lacks .*'visible'"),
        (lambda: step(0.1, ("top",)), r"clamped names unknown .*'top'"),
        (
            lambda: step(0.1, {"hidden": jnp.ones(4, bool)}),
            r"clamped\['hidden'\] has shape \(4,\): \(3,\) is",
        ),
        (lambda: retrieve(STATES, max_steps=0), "max_steps=0"),
        (lambda: retrieve(STATES, tolerance=-1.0), "tolerance=-1.0"),
        (lambda: retrieve({**STATES, "hidden": jnp.array([0, 1, jnp.nan])}), "states holds 1 non-finite"),
        (lambda: retrieve({**STATES, "visible": jnp.ones((2, 4))}), r"\(3, 8\) is needed.*jax.vmap"),
        (lambda: MODERN.trajectory([PATTERNS], STATES, 0, 0.1), "num_steps=0"),
        (lambda: MODERN.init_params(jax.random.key(0), {"visible": (3,)}), "shapes lacks"),
        (lambda: Tempered(Softmax(), beta=-1.0), "beta=-1.0"),
    ],
)
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MODERN.energy([PATTERNS], jnp.ones(4)), "states is of type"),
        (lambda: MODERN.energy(PATTERNS, STATES), "params is of type"),
        (
            lambda: MODERN.energy([PATTERNS], {**STATES, "visible": jnp.ones(4, int)}),
            r"states\['visible'\] has dtype",
        ),
        (lambda: step(0.1, {"hidden": jnp.ones(3)}), r"clamped\['hidden'\] has dtype float32"),
        (lambda: Tempered(Softmax(), beta=jnp.ones(())), "beta is static"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_tempered_is_the_lagrangian_at_another_temperature():
    z = jnp.array([-1.0, 0.3, 2.0])
    for phi in (Softmax(), Exponential(), Power(3)):
        tempered = Tempered(phi, beta=2.0)

        @jax.jit
        def compared(z, phi=phi, tempered=tempered):
            values = tempered.value(z), phi.value(2 * z) / 2
            gradient, rescaled = tempered.gradient(z), tempered.gradient(tempered.rescale(z))
            return values, (gradient, jax.grad(tempered.value)(z)), gradient[1:] / rescaled[1:]

        values, gradients, ratio = compared(z)
        np.testing.assert_allclose(*values, rtol=1e-6)
        np.testing.assert_allclose(*gradients, rtol=1e-5)
        np.testing.assert_allclose(ratio, np.full(2, ratio[0]), rtol=1e-5)
