"""The modern network in 64 dimensions, all of which is exactly known, as the judge of samplers and of AIS."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxebm.energies import gaussian
from jaxebm.evaluation.partition.importance_sampling import log_partition_interval
from jaxebm.evaluation.partition.path_fitting import sigmoid_schedule
from jaxebm.hopfield.memories import modern
from jaxebm.hopfield.mixture import as_gaussian_mixture, density_energy
from jaxebm.samplers import hmc, mala, sample, sgld

DIMENSION, NUM_MEMORIES, BETA = 64, 8, 1.0
NUM_CHAINS = 1000
FIVE_SIGMA = scipy.stats.norm.sf(5)
RUNS = {  # kernel, its numbers, steps
    "sgld": (sgld, {"step_size": 0.005}, 3000),
    "mala": (mala, {"step_size": 0.15}, 200),
    "hmc": (partial(hmc, num_integration_steps=5), {"step_size": 0.3}, 40),
}
"""Long enough to forget the start. Of sgld, variances are 1 / (1 - step / 2): 0.25 % too great."""


def patterns():
    """Norms from 0.9 to 2.1 standard deviations, so distances of about two, and masses of 1 to 6."""
    directions = np.random.default_rng(0).normal(size=(NUM_MEMORIES, DIMENSION))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * np.linspace(0.9, 2.1, NUM_MEMORIES)[:, None]


@pytest.fixture(scope="module")
def network():
    """The memory, its mixture, its exact moments in float64 and 30 000 exact samples' energies."""
    memory = modern(patterns(), BETA)
    target = as_gaussian_mixture(memory)

    @jax.jit
    def exact(memory):
        samples = target.sample(jax.random.key(1), target.params, 30_000)
        return target.moments(target.params), jax.vmap(density_energy, (None, 0))(memory, samples)

    (mean, covariance), energies = jax.tree.map(lambda found: np.asarray(found, np.float64), exact(memory))
    return memory, target, mean, covariance, energies


def standardised(values, expected):
    """How many of its own standard errors the mean of independent values is from what is expected."""
    return (np.mean(values) - expected) / (np.std(values, ddof=1) / np.sqrt(len(values)))


def discrepancies(positions, mean, covariance):
    """Standardised errors: of the mean, jointly, and along each memory; of variances; of the trace."""
    positions = np.asarray(positions, np.float64)
    centred = positions - mean
    shift = centred.mean(0)
    joint = len(positions) * shift @ np.linalg.solve(covariance, shift)
    found = {"mean": scipy.stats.norm.isf(scipy.stats.chi2.sf(joint, DIMENSION))}
    found["trace"] = standardised(np.sum(centred**2, axis=1), np.trace(covariance))
    memories = patterns()
    axes = {f"memory {k}": memory / np.linalg.norm(memory) for k, memory in enumerate(memories)}
    axes["widest"] = np.linalg.eigh(covariance)[1][:, -1]
    axes["between"] = (memories[-1] - memories[0]) / np.linalg.norm(memories[-1] - memories[0])
    for name, axis in axes.items():
        found[f"mean along {name}"] = standardised(centred @ axis, 0)
        found[f"variance along {name}"] = standardised((centred @ axis) ** 2, axis @ covariance @ axis)
    return found


def test_exact_samples_pass_and_those_of_equal_masses_do_not(network):
    """What the judge can see: with as many samples, the wrong masses are far beyond five sigmas."""
    _, target, mean, covariance, _ = network
    other = as_gaussian_mixture(modern(patterns(), BETA, equal_weights=True))
    right, wrong = (
        discrepancies(found.sample(jax.random.key(2), found.params, NUM_CHAINS), mean, covariance)
        for found in (target, other)
    )
    assert max(abs(value) for value in right.values()) < 5
    assert wrong["mean along between"] < -6
    assert wrong["mean"] > 6


@pytest.mark.parametrize("name", RUNS)
def test_samplers_reproduce_the_exact_moments_and_energy(network, name):
    """From one point far out: mean, covariance and mean energy, each within five standard errors."""
    memory, _, mean, covariance, exact_energies = network
    kernel, numbers, num_steps = RUNS[name]
    start = jnp.zeros((NUM_CHAINS, DIMENSION)).at[:, 0].set(5.0)
    positions = sample(jax.random.key(3), density_energy, memory, start, num_steps, kernel=kernel, **numbers)
    found = discrepancies(positions, mean, covariance)
    energies = np.asarray(jax.jit(jax.vmap(density_energy, (None, 0)))(memory, positions), np.float64)
    error = np.hypot(np.std(energies) / NUM_CHAINS**0.5, np.std(exact_energies) / exact_energies.size**0.5)
    found["energy"] = (energies.mean() - exact_energies.mean()) / error
    assert {name: value for name, value in found.items() if not abs(value) < 5} == {}


@pytest.mark.parametrize(
    "kernel", [sgld, mala, partial(hmc, num_integration_steps=10)], ids=["sgld", "mala", "hmc"]
)
def test_a_new_memory_runs_the_same_program(kernel):
    """Counted by how often Python sees the energy: once the program is compiled, never again."""
    traces = []

    def energy(memory, x):
        traces.append(x)
        return density_energy(memory, x)

    def mean_after(memory):
        positions = sample(
            jax.random.key(4), energy, memory, jnp.zeros((100, 2)), 100, kernel=kernel, step_size=0.02
        )
        return np.mean(positions, axis=0)

    first = mean_after(modern([[2.0, 0.0], [2.0, 0.1]], 50.0))
    count = len(traces)
    second = mean_after(modern([[0.0, -3.0], [0.1, -3.0]], 40.0))
    assert count > 0
    assert len(traces) == count
    np.testing.assert_allclose(first, [2.0, 0.05], atol=0.1)
    np.testing.assert_allclose(second, [0.05, -3.0], atol=0.1)


def test_annealed_importance_sampling_brackets_log_z(network):
    """Both directions, from a Gaussian: the interval holds the exact log Z, and is narrow."""
    memory, target, _, _, _ = network
    exact = float(target.log_partition(target.params))
    base = gaussian(np.zeros(DIMENSION), 1.1 * np.eye(DIMENSION))
    interval = log_partition_interval(
        jax.random.key(5),
        density_energy,
        memory,
        base,
        partial(hmc, step_size=0.3, num_integration_steps=3),
        sigmoid_schedule(40),
        300,
        target.sample(jax.random.key(6), target.params, 300),
        coverage=1 - 2 * float(FIVE_SIGMA),
    )
    assert float(interval.low) < exact < float(interval.high)
    assert float(interval.high - interval.low) < 0.5
