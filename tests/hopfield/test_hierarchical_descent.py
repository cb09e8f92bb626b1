"""Hierarchical memories fall: random nets of many kinds, by small steps, by layers, and with neurons held."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.hierarchical import HierarchicalMemory, Tempered
from jaxebm.hopfield.lagrangians import (
    Entmax,
    Exponential,
    LayerNormalisation,
    LogCosh,
    Power,
    Quadratic,
    Softmax,
    Softplus,
    Spherical,
)
from jaxebm.hopfield.synapses import BiasSynapse, DenseSynapse, FunctionSynapse, RecurrentSynapse

NUM_NETS = 100


pytestmark = pytest.mark.usefixtures("cheap_compilation")


CONVEX = [
    Quadratic(),
    Power(3),
    Power(4, rectified=False),
    Exponential(),
    Tempered(Softmax(), beta=4.0),
    Softplus(),
    Entmax(1.5),
    LogCosh(gain=3.0),
    Spherical(epsilon=0.1),
    LayerNormalisation(),
]


def _convolution(kernel, image, features):
    return -jnp.vdot(features, jnp.convolve(image, kernel, mode="same"))


def _gate(strength, low, middle, high):
    return -strength * jnp.sum(jnp.tanh(low)) * jnp.sum(middle) * jnp.sum(jnp.tanh(high))


def _two_layers(first, second, recurrent):
    """A square of 4 joined to 3 hidden neurons; one of the layers sees itself, and there is an input."""
    synapses = [DenseSynapse("hidden", "visible"), RecurrentSynapse(recurrent), BiasSynapse("visible")]
    memory = HierarchicalMemory({"visible": first, "hidden": second}, synapses)
    return memory, {"visible": (2, 2), "hidden": (3,)}


def _three_layers(first, second, third):
    """A chain with a convolution below, a dense synapse above, and one synapse of all three layers."""
    synapses = [
        FunctionSynapse(
            ("low", "middle"), _convolution, lambda rng_key, *_: jax.random.normal(rng_key, (3,)) / 2
        ),
        DenseSynapse("high", "middle"),
        FunctionSynapse(
            ("low", "middle", "high"), _gate, lambda rng_key, *_: 0.2 * jax.random.normal(rng_key)
        ),
        BiasSynapse("high"),
    ]
    layers = {"low": first, "middle": second, "high": third}
    return HierarchicalMemory(layers, synapses), {"low": (5,), "middle": (5,), "high": (2,)}


ARCHITECTURES = [
    # A layer whose activation grows without bound is kept within bounds by the layer that drives it.
    _two_layers(LogCosh(), Exponential(), recurrent="visible"),
    _two_layers(LogCosh(gain=3.0), Power(4, rectified=False), recurrent="visible"),
    _two_layers(Spherical(epsilon=0.1), Softplus(), recurrent="visible"),
    _two_layers(Quadratic(), Tempered(Softmax(), beta=3.0), recurrent="hidden"),
    _two_layers(Power(3), Entmax(1.5), recurrent="hidden"),
    _three_layers(Quadratic(), LogCosh(), Tempered(Softmax(), beta=5.0)),
    _three_layers(LayerNormalisation(), Softplus(), Entmax(2.0)),
]


def _random_nets(memory, shapes, scale=1.0):
    """Weights, biases and states of many nets, float64 where that is enabled."""
    rng = np.random.default_rng(0)

    def normal(leaf, factor):
        return jnp.asarray(factor * rng.standard_normal((NUM_NETS, *leaf.shape)))

    shape_of = jax.eval_shape(lambda: memory.init_params(jax.random.key(0), shapes))
    params = jax.tree.map(lambda leaf: normal(leaf, 0.4 * scale / max(1, sum(leaf.shape)) ** 0.25), shape_of)
    states = {name: normal(np.empty(shape), 1.0) for name, shape in shapes.items()}
    return params, states


def _tree_dot(first, second):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, first, second)))


@pytest.mark.parametrize("architecture", range(len(ARCHITECTURES)))
def test_energy_never_rises_and_falls_at_the_known_rate(architecture):
    """A hundred random nets of each kind, with layers of different speeds: no step of 60 goes up.

    And dE/dt = -sum_l f_l . (Hessian of L_l) f_l, against a difference quotient along the forces f_l.
    """
    memory, shapes = ARCHITECTURES[architecture]
    step_size = dict(zip(shapes, (0.05, 0.02, 0.04), strict=False))

    @jax.jit
    @jax.vmap
    def follow(params, states):
        energy = functools.partial(memory.energy, params)
        forces = memory.forces(params, states)
        nearby = jax.vmap(lambda time: jax.tree.map(lambda x, f: x + time * f, states, forces))
        history = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]),
            nearby(jnp.array([-1e-5, 1e-5])),
            memory.trajectory(params, states, 60, step_size),
        )
        _, curved = jax.jvp(memory.activations, (states,), (forces,))
        return jax.vmap(energy)(history), -_tree_dot(forces, curved)

    with jax.enable_x64(True):
        energies, rates = map(np.asarray, follow(*_random_nets(memory, shapes)))
    assert energies.dtype == np.float64
    assert np.all(np.isfinite(energies))
    assert np.max(np.diff(energies[:, 2:], axis=1)) < 1e-12
    quotients = (energies[:, 1] - energies[:, 0]) / 2e-5
    assert np.all(rates <= 0)
    np.testing.assert_allclose(quotients, rates, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lagrangian", CONVEX, ids=str)
def test_a_layer_alone_descends_in_steps_up_to_one(lagrangian):
    """However strong the synapses: up to a constant, E is the divergence from where the layer is drawn."""
    synapses = [DenseSynapse("hidden", "visible"), BiasSynapse("hidden")]
    memory = HierarchicalMemory({"visible": LogCosh(), "hidden": lagrangian}, synapses)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def energies(params, states, step_size):
        after = memory.step(params, states, step_size, clamped=["visible"])
        return memory.energy(params, states), memory.energy(params, after)

    with jax.enable_x64(True):
        params, states = _random_nets(memory, {"visible": (4,), "hidden": (3,)}, scale=5.0)
        for step_size in (0.3, 1.0):
            before, after = energies(params, states, step_size)
            assert np.all(np.asarray(after - before) <= 1e-12 * (1 + np.abs(before)))


@pytest.mark.parametrize(
    ("lagrangian", "falls"), [(LogCosh(), True), (Exponential(), True), (Softmax(), False)]
)
def test_a_part_of_a_layer_may_be_held_where_neurons_are_apart(lagrangian, falls):
    """As ``step`` warns: where activations depend on each other, holding some can drive the energy up."""
    memory = HierarchicalMemory({"a": LogCosh(), "b": lagrangian}, [DenseSynapse("b", "a")])

    @jax.jit
    @jax.vmap
    def rate(params, states):
        after = memory.step(params, states, 1e-4, {"a": True, "b": jnp.arange(4) < 2})
        return memory.energy(params, after) - memory.energy(params, states)

    with jax.enable_x64(True):
        rates = np.asarray(rate(*_random_nets(memory, {"a": (3,), "b": (4,)}, scale=3.0)))
    assert np.all(rates < 0) == falls
