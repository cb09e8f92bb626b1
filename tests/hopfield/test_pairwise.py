"""Couplings with spins and bits, and graded neurons."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.family import energy, update
from jaxebm.hopfield.pairwise import GradedMemory, graded, pairwise
from jaxebm.hopfield.retrieval import retrieve, trajectory
from jaxebm.hopfield.storage import hebb

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def random_couplings(seed: int, dimension: int, *, diagonal: float = 0.0) -> np.ndarray:
    weights = np.random.default_rng(seed).standard_normal((dimension, dimension))
    weights = (weights + weights.T) / np.sqrt(2 * dimension)
    np.fill_diagonal(weights, diagonal)
    return weights.astype(np.float32)


@pytest.mark.parametrize("states", ["spins", "bits"])
def test_energy_and_preference_are_those_of_the_quadratic_form(states):
    dimension = 7
    weights = random_couplings(0, dimension, diagonal=0.6)
    bias = np.random.default_rng(1).standard_normal(dimension).astype(np.float32)
    memory = pairwise(weights, bias, states=states)
    low = -1.0 if states == "spins" else 0.0
    x = np.where(np.random.default_rng(2).random(dimension) < 0.5, low, 1.0).astype(np.float32)

    def plain(x):
        return -0.5 * x @ weights.astype(np.float64) @ x - bias @ x

    assert float(energy(memory, x)) == pytest.approx(plain(x), abs=1e-5)
    fields = memory.carry(jnp.asarray(x))
    everywhere = memory.preferences(fields, jnp.asarray(x))
    for index in range(dimension):
        lower, higher = x.copy(), x.copy()
        lower[index], higher[index] = low, 1.0
        expected = plain(lower) - plain(higher)
        alone = memory.preference(
            fields, jnp.asarray(x), jnp.asarray(index), jnp.asarray(weights[index]), exact=True
        )
        assert float(alone) == pytest.approx(expected, abs=1e-5)
        assert float(everywhere[index]) == pytest.approx(expected, abs=1e-5)
        moved = memory.carried(fields, jnp.asarray(weights[index]), jnp.asarray(higher[index] - x[index]))
        np.testing.assert_allclose(moved, weights @ higher + bias, atol=1e-5)


def test_graded_energy_is_the_integral_formula():
    """sum int_0^v artanh(s) / gain ds, by quadrature, against the form in potentials."""
    weights, gain = random_couplings(3, 5), 1.7
    bias = np.random.default_rng(4).standard_normal(5).astype(np.float32)
    memory = graded(weights, bias, gain=gain)
    potentials = np.random.default_rng(5).standard_normal(5).astype(np.float32)
    v = np.tanh(gain * potentials.astype(np.float64))
    nodes, node_weights = np.polynomial.legendre.leggauss(60)
    integral = sum(
        0.5 * value * np.sum(node_weights * np.arctanh(0.5 * value * (nodes + 1)) / gain) for value in v
    )
    expected = -0.5 * v @ weights @ v - bias @ v + integral
    assert float(energy(memory, potentials)) == pytest.approx(expected, rel=1e-5)


def test_graded_energy_falls_along_the_flow():
    """dE/dt = -sum v'(u) (du/dt)^2, over 1,000 random networks; and small Euler steps never raise E."""
    rng = np.random.default_rng(6)
    dimension, count = 10, 1000
    weights = rng.standard_normal((count, dimension, dimension)).astype(np.float32)
    weights = (weights + np.swapaxes(weights, 1, 2)) / np.sqrt(dimension)
    memories = GradedMemory(
        jnp.asarray(weights),
        jnp.asarray(0.3 * rng.standard_normal((count, dimension)), jnp.float32),
        jnp.asarray(rng.uniform(0.3, 5.0, count), jnp.float32),
    )
    potentials = jnp.asarray(rng.standard_normal((count, dimension)), jnp.float32)

    @jax.jit
    @jax.vmap
    def slopes(memory, u):
        velocity = -memory.residual(u)
        slope = jax.grad(energy, argnums=1)(memory, u) @ velocity
        steepness = memory.gain * (1 - memory.activations(u) ** 2)
        return slope, -jnp.sum(steepness * velocity**2), trajectory(memory, u, 60, step_size=0.02)[1]

    found, expected, energies = slopes(memories, potentials)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    energies = np.asarray(energies)
    assert np.max(np.diff(energies, axis=1) / np.maximum(1, np.abs(energies[:, :-1]))) < 1e-5
    assert np.all(energies[:, -1] < energies[:, 0])


def test_graded_neurons_of_high_gain_settle_where_spins_do(random_spins):
    patterns = random_spins(7, 3, 60)
    weights = patterns.T @ patterns / 60
    noisy = patterns[1] * np.where(np.arange(60) % 7 == 0, -1.0, 1.0)
    found = retrieve(graded(weights, gain=20.0), noisy, step_size=0.3, max_steps=500)
    assert bool(found.converged)
    np.testing.assert_array_equal(np.sign(found.state), patterns[1])
    np.testing.assert_array_equal(update(pairwise(weights), jnp.asarray(noisy)), patterns[1])


def test_new_couplings_do_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def recall(memory, x):
        return retrieve(memory, x, step_size=0.5).state

    for seed in range(3):
        assert recall(graded(random_couplings(seed, 4), gain=1.0 + seed), jnp.ones(4)).shape == (4,)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"weights has shape \(2, 3\): \(D, D\)"):
        pairwise(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="differs from its transpose by up to 1"):
        pairwise([[0.0, 1.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="non-finite"):
        graded([[0.0, jnp.inf], [jnp.inf, 0.0]])
    with pytest.raises(ValueError, match=r"bias has shape \(3,\): \(2,\)"):
        pairwise(jnp.eye(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="states='reals'"):
        pairwise(jnp.eye(2), states="reals")
    with pytest.raises(ValueError, match="gain=0"):
        graded(jnp.eye(2), gain=0.0)
    with pytest.raises(ValueError, match=r"gain has shape \(2,\)"):
        graded(jnp.eye(2), gain=jnp.ones(2))


@pytest.mark.parametrize(("dimension", "count"), [(12, 8), (11, 4)])
def test_ties_of_the_published_rule_keep_the_spin(dimension, count):
    """Against fields in whole numbers: N h_i = sum_k xi_ki (xi_k . x - xi_ki x_i), without rounding."""
    rng = np.random.default_rng(0)
    patterns = np.sign(rng.normal(size=(count, dimension))).astype(int)
    states = np.sign(rng.normal(size=(40, dimension))).astype(int)
    fields = (states @ patterns.T) @ patterns - count * states
    expected = np.where(fields == 0, states, np.sign(fields))
    assert np.any(fields == 0)
    memory = pairwise(hebb(patterns.astype(np.float32)))
    step = jax.vmap(lambda x: update(memory, x, rule="difference"))
    np.testing.assert_array_equal(step(jnp.asarray(states, jnp.float32)), expected)
