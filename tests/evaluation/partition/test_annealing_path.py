"""The weighted walk: its moments by enumeration, its order, precision, memory use and traces."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import gaussian
from jaxebm.evaluation.partition.annealing_path import Base, anneal
from jaxebm.evaluation.partition.path_fitting import linear_schedule, sigmoid_schedule
from jaxebm.evaluation.partition.quadrature import enumerate_states
from jaxebm.samplers import LangevinState, mala, nuts
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NORMAL = gaussian([0.0], [[1.0]])
SPINS = 6


def boltzmann_energy(params, x):
    couplings, fields = params
    return -0.5 * x @ couplings @ x - fields @ x


def boltzmann_params():
    coupling_key, field_key = jax.random.split(jax.random.key(7))
    square = 0.5 * jax.random.normal(coupling_key, (SPINS, SPINS))
    return jnp.triu(square, 1) + jnp.triu(square, 1).T, 0.4 + 0.3 * jax.random.normal(field_key, (SPINS,))


def free_energy(params, x):
    return 0.0


def free_spins(rng_key, params, num_samples):
    return jax.random.rademacher(rng_key, (num_samples, SPINS), dtype=jnp.float32)


FREE = Base(free_energy, (), lambda params: jnp.asarray(SPINS * np.log(2.0)), free_spins)


def heat_bath(target):
    """One site at random, drawn from its conditional."""

    def step(rng_key, state):
        site_key, flip_key = jax.random.split(rng_key)
        x = state.position
        flipped = x * jnp.where(jnp.arange(x.size) == jax.random.randint(site_key, (), 0, x.size), -1.0, 1.0)
        flips = jax.random.bernoulli(flip_key, jax.nn.sigmoid(target(x) - target(flipped)))
        return LangevinState(jnp.where(flips, flipped, x)), None

    return Kernel(lambda position, rng_key=None: LangevinState(position), step)


def heat_bath_matrix(energies):
    """The same kernel over all states, in float64; the state's index is its bits, the first spin highest."""
    matrix = np.zeros((energies.size, energies.size))
    index = np.arange(energies.size)
    for site in range(SPINS):
        flipped = index ^ (1 << site)
        matrix[index, flipped] = 1 / (1 + np.exp(energies[flipped] - energies)) / SPINS
    matrix[index, index] = 1 - matrix.sum(axis=1)
    return matrix


def weight_moments(schedule, energies, num_steps):
    """Exact E[w] and E[w^2] of the walk from exp(-t_0 E) over all spins."""
    boltzmann = np.exp(-schedule[0] * energies)
    vectors = [boltzmann / boltzmann.sum()] * 2
    for previous_t, t in itertools.pairwise(schedule):
        transition = np.linalg.matrix_power(heat_bath_matrix(t * energies), num_steps)
        weight = np.exp((previous_t - t) * energies)
        vectors = [(vector * weight**power) @ transition for power, vector in enumerate(vectors, start=1)]
    return vectors[0].sum(), vectors[1].sum()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_both_moments_of_the_weights_are_those_of_the_enumerated_walk(backward, num_steps):
    """Within 4 standard errors. The second moment depends on the kernel and on weighing before moving."""
    n, params, states = 20_000, boltzmann_params(), enumerate_states(SPINS)
    energies = np.asarray(jax.vmap(boltzmann_energy, (None, 0))(params, states), np.float64)
    schedule = np.array([0.0, 0.2, 0.5, 1.0])[:: -1 if backward else 1]
    start = states[
        jax.random.categorical(jax.random.key(0), jnp.asarray(-schedule[0] * energies), shape=(n,))
    ]
    log_weights, _ = anneal(
        jax.random.key(1), boltzmann_energy, params, FREE, heat_bath, schedule, start, num_steps
    )
    weights = np.exp(np.asarray(log_weights, np.float64))
    first, second = weight_moments(schedule, energies, num_steps)
    log_partitions = np.log(np.exp(-np.outer(schedule[[0, -1]], energies)).sum(axis=1))
    np.testing.assert_allclose(np.log(first), log_partitions[1] - log_partitions[0], rtol=1e-12)
    assert abs(weights.mean() - first) < 4 * weights.std() / n**0.5
    assert abs((weights**2).mean() - second) < 4 * (weights**2).std() / n**0.5


def test_the_kernel_of_a_step_has_that_temperature_and_its_slice_of_the_kernel_schedule():
    def adds(target, shift, scale):
        def step(rng_key, state):
            return LangevinState(state.position + scale * target(state.position) + shift), None

        return Kernel(lambda position, rng_key=None: LangevinState(position), step)

    schedule, shifts = jnp.array([0.0, 0.25, 0.5, 1.0]), jnp.array([1000.0, 1.0, 2.0, 3.0])
    base = FREE._replace(energy=lambda params, x: 0.0)
    _, ends = anneal(
        jax.random.key(0), lambda params, x: 1.0, None, base, partial(adds, scale=10.0), schedule,
        jnp.zeros(3), 2, kernel_schedule={"shift": shifts},
    )  # fmt: skip
    chex.assert_trees_all_close(ends, jnp.full(3, 2 * (10 * 1.75 + 6.0)))


def test_positions_may_be_any_pytree_and_of_integers():
    def energy(params, x):
        return params * jnp.sum(x["spins"] * x["more"])

    def stay(target):
        return Kernel(lambda x, rng_key=None: LangevinState(x), lambda rng_key, state: (state, None))

    start = {"spins": jnp.array([[1, -1], [1, 1]]), "more": jnp.array([[2, 2], [3, 4]])}
    log_weights, ends = anneal(
        jax.random.key(0),
        energy,
        0.5,
        Base(free_energy, (), jnp.sum, free_spins),
        stay,
        linear_schedule(5),
        start,
    )
    chex.assert_trees_all_equal(ends, start)
    chex.assert_trees_all_close(log_weights, jnp.array([0.0, -3.5]))


def shifted_energy(params, x):
    return NORMAL.energy(NORMAL.params, x) + params


def test_rounding_does_not_grow_with_the_schedule():
    """An energy raised by a constant has just this log weight; a plain float32 sum is 0.1 off."""
    start, kernel = jnp.zeros((2, 1)), partial(mala, step_size=0.1)
    schedule = linear_schedule(30_000)
    log_weights, _ = anneal(
        jax.random.key(0), shifted_energy, jnp.asarray(500.3), NORMAL, kernel, schedule, start
    )
    np.testing.assert_allclose(log_weights, np.full(2, -500.3, np.float32), rtol=2e-7)


def test_narrow_energies_are_weighed_in_float32():
    def narrow(params, x):
        return jnp.asarray(3.0, jnp.bfloat16)

    kernel = partial(mala, step_size=0.1)
    log_weights, _ = anneal(
        jax.random.key(0), narrow, None, FREE, kernel, linear_schedule(1_000), jnp.zeros((2, SPINS))
    )
    assert log_weights.dtype == jnp.float32
    np.testing.assert_allclose(log_weights, -3.0, rtol=1e-6)


def test_memory_does_not_grow_with_the_number_of_temperatures():
    positions, kernel = jnp.zeros((256, 1)), partial(mala, step_size=0.1)

    def temporary_bytes(num_temperatures):
        walk = partial(anneal, jax.random.key(0), shifted_energy, jnp.asarray(1.0), NORMAL, kernel)
        compiled = jax.jit(walk).lower(linear_schedule(num_temperatures), positions).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(10), temporary_bytes(10_000)
    assert many - few < 10_000 * 4 * 6  # copies of the schedule; one scalar of each chain would be 10 MB


def test_new_numbers_run_the_same_program():
    traces = []

    def energy(params, x):
        traces.append(None)
        return 0.5 * jnp.sum(params * x**2)

    def walk(params, step_size, schedule, **varying):
        start = jnp.ones((8, 1))
        anneal(jax.random.key(0), energy, params, NORMAL, partial(mala, step_size=step_size), schedule, start)

    walk(jnp.ones(1), 0.1, linear_schedule(6))
    assert (after_first := len(traces)) > 0
    walk(2 * jnp.ones(1), 0.2, sigmoid_schedule(6))
    assert len(traces) == after_first
    walk(jnp.ones(1), 0.1, linear_schedule(7))
    assert len(traces) > after_first


def test_integers_of_a_partial_are_compiled_in():
    kernel = partial(nuts, step_size=0.5, max_num_doublings=2)
    log_weights, _ = anneal(
        jax.random.key(0), NORMAL.energy, NORMAL.params, NORMAL, kernel, linear_schedule(3), jnp.ones((2, 1))
    )
    chex.assert_trees_all_close(log_weights, jnp.zeros(2), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": jnp.zeros(1)}, r"schedule has shape \(1,\): \(T,\)"),
        ({"schedule": jnp.zeros((2, 2))}, r"schedule has shape \(2, 2\)"),
        ({"schedule": jnp.array([0.0, 1.5])}, "schedule=.*between 0.0 and 1.0"),
        ({"schedule": jnp.array([0.0, jnp.nan, 1.0])}, "schedule=.*between 0.0 and 1.0"),
        ({"positions": jnp.zeros(())}, "positions has leaves"),
        ({"num_steps_per_temperature": 0}, "num_steps_per_temperature=0"),
        (
            {"kernel_schedule": {"step_size": jnp.ones(4)}},
            r"kernel_schedule\['step_size'\] has a leading axis of 4",
        ),
        ({"kernel_schedule": {"step_size": 1.0}}, r"kernel_schedule\['step_size'\] has leaves"),
        ({"kernel_schedule": {"step_size": -jnp.ones(3)}}, "step_size=.*greater than 0"),
        ({"make_kernel": partial(mala, step_size=0.0), "kernel_schedule": None}, "step_size=0.0"),
        ({"energy": lambda params, x: x}, r"returned shape \(1,\)"),
    ],
)
def test_errors_name_the_argument(changes, message):
    arguments = {
        "energy": NORMAL.energy, "params": NORMAL.params, "base": NORMAL, "make_kernel": mala,
        "schedule": linear_schedule(3), "positions": jnp.zeros((2, 1)),
        "kernel_schedule": {"step_size": jnp.ones(3)},
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        anneal(jax.random.key(0), **(arguments | changes))
