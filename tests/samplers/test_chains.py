"""Runners: fresh states, no history unless asked, one trace, and BlackJAX in both directions."""

from functools import partial
from typing import Any, NamedTuple

import blackjax
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import run_inference_algorithm

from jaxebm.samplers.chains import run_annealed_chain, run_chain, run_chains, sample
from jaxebm.samplers.langevin import LangevinState, sgld
from jaxebm.samplers.metropolis import hmc, mala, nuts
from jaxebm.types import BATCH_AXIS, Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def energy(params, x):
    """A Gaussian about ``centre``, lifted by ``offset``, which changes no probability."""
    return 0.5 * jnp.sum((x - params["centre"]) ** 2) + params["offset"]


PARAMS = {"centre": jnp.array([1.0, -2.0]), "offset": jnp.array(0.0)}
TARGET = partial(energy, PARAMS)


# --- one chain ---


def test_a_chain_keeps_nothing_unless_asked():
    state, history = run_chain(jax.random.key(0), sgld(TARGET, 0.1), jnp.zeros(2), 7)
    assert history is None
    assert isinstance(state, LangevinState)


def test_memory_does_not_grow_with_the_number_of_steps():
    def memory(num_steps, collect):
        run = jax.jit(
            lambda key, start: run_chains(key, sgld(TARGET, 0.1), start, num_steps, collect=collect)
        )
        analysis = run.lower(jax.random.key(0), jnp.zeros((50, 2))).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    def nothing(state, info):
        return None

    def everything(state, info):
        return state.position

    # Only the scanned-over step number grows: four bytes a step, whatever the number of chains.
    assert memory(10_000, nothing) - memory(10, nothing) <= 4 * 10_000
    assert memory(10_000, everything) - memory(10, everything) > 50 * 2 * 4 * 9_000


def test_the_history_is_every_step_in_order():
    _, (positions, energies) = run_chain(
        jax.random.key(0),
        sgld(TARGET, 0.1),
        jnp.zeros(2),
        5,
        collect=lambda state, info: (state.position, info.energy),
    )
    assert positions.shape == (5, 2)
    # info speaks of the state before the step: the next energy is this position's.
    np.testing.assert_allclose(energies[1:], jax.vmap(TARGET)(positions)[:-1], rtol=1e-5)
    assert float(energies[0]) == pytest.approx(2.5)


def test_a_chain_starts_from_a_position_so_that_nothing_is_stale():
    # The update raises every energy by 100. A state kept over it remembers the old energy and refuses every
    # move.
    updated = {**PARAMS, "offset": jnp.array(100.0)}
    kept = mala(TARGET, 0.1).init(PARAMS["centre"])
    kernel = mala(partial(energy, updated), 0.1)
    keys = jax.random.split(jax.random.key(0), 100)
    _, stale = jax.vmap(lambda key: kernel.step(key, kept))(keys)
    assert float(stale.acceptance_rate.max()) < 1e-6
    _, fresh = jax.vmap(
        lambda key: run_chain(key, kernel, kept.position, 1, collect=lambda state, info: info.acceptance_rate)
    )(keys)
    assert float(fresh.mean()) > 0.9


# --- many chains ---


def test_many_chains_are_one_chain_each_key():
    kernel = sgld(TARGET, 0.1)
    keys = jax.random.split(jax.random.key(0), 3)
    starts = jnp.arange(6.0).reshape(3, 2)
    together, _ = run_chains(jax.random.key(0), kernel, starts, 4)
    given, _ = run_chains(keys, kernel, starts, 4)
    alone = jnp.stack([run_chain(k, kernel, x, 4)[0].position for k, x in zip(keys, starts, strict=True)])
    np.testing.assert_array_equal(together.position, given.position)
    np.testing.assert_allclose(together.position, alone, rtol=1e-5)


def test_an_energy_can_average_over_the_chains():
    def coupled(x):  # attracted by the mean of all chains, as batch normalisation would see it
        return 0.5 * jnp.sum((x - jax.lax.stop_gradient(jax.lax.pmean(x, BATCH_AXIS))) ** 2)

    starts = jnp.array([[0.0], [2.0], [4.0]])
    states, _ = run_chains(jax.random.key(0), sgld(coupled, 0.5, 0.0), starts, 1)
    np.testing.assert_allclose(states.position, jnp.array([[1.0], [2.0], [3.0]]), rtol=1e-6)


@pytest.mark.parametrize(
    "positions", [{}, jnp.zeros((0, 2)), jnp.zeros(()), {"a": jnp.zeros((2, 1)), "b": jnp.zeros((3, 1))}]
)
def test_positions_without_one_leading_axis_are_refused(positions):
    with pytest.raises(ValueError, match=r"positions.*a batch of chains.*leading axis"):
        run_chains(jax.random.key(0), sgld(TARGET, 0.1), positions, 2)


def test_keys_are_checked():
    kernel, starts = sgld(TARGET, 0.1), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"rng_key has shape \(2,\).*\(3,\)"):
        run_chains(jax.random.split(jax.random.key(0), 2), kernel, starts, 2)
    with pytest.raises(TypeError, match="typed key"):
        run_chains(jax.random.PRNGKey(0), kernel, starts, 2)
    with pytest.raises(ValueError, match="num_steps"):
        run_chains(jax.random.key(0), kernel, starts, 0)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 3, None], ids=["legacy", "integer", "None"])
def test_one_rule_for_keys_in_every_runner(key):
    kernel = sgld(TARGET, 0.1)
    for run in (
        lambda: run_chain(key, kernel, jnp.zeros(2), 2),
        lambda: run_chains(key, kernel, jnp.zeros((3, 2)), 2),
        lambda: run_annealed_chain(key, lambda at: kernel, jnp.zeros(2), jnp.zeros(2)),
        lambda: sample(key, energy, PARAMS, jnp.zeros((3, 2)), 2, step_size=0.1),
    ):
        with pytest.raises(TypeError, match=r"rng_key.*typed key, jax\.random\.key\(seed\)"):
            run()


def test_kernels_and_functions_are_told_from_other_things():
    key, kernel, start = jax.random.key(0), sgld(TARGET, 0.1), jnp.zeros((3, 2))
    for run in (run_chain, run_chains):
        with pytest.raises(TypeError, match=r"kernel is the function sgld, not yet bound"):
            run(key, sgld, start, 2)
        with pytest.raises(TypeError, match="kernel='sgld'"):
            run(key, "sgld", start, 2)
        with pytest.raises(TypeError, match=r"collect.*state, info"):
            run(key, kernel, start, 2, collect=lambda state: state)
    with pytest.raises(TypeError, match=r"kernel is a kernel that is bound"):
        sample(key, energy, PARAMS, start, 2, kernel=kernel)
    with pytest.raises(TypeError, match=r"kernel=sgld .*unexpected keyword argument 'schedule'"):
        sample(key, energy, PARAMS, start, 2, step_size=0.1, schedule=3)
    with pytest.raises(TypeError, match=r"energy=TARGET|energy=energy"):
        sample(key, TARGET, PARAMS, start, 2, step_size=0.1)
    with pytest.raises(TypeError, match=r"kernel_at\(schedule_slice\) is the function sgld, not yet bound"):
        run_annealed_chain(key, lambda at: sgld, jnp.zeros(2), jnp.zeros(2))


def test_shapes_that_the_energy_refuses_are_told():
    with pytest.raises(TypeError) as caught:
        sample(jax.random.key(0), energy, PARAMS, jnp.zeros((4, 3)), 2, step_size=0.1)
    notes = " ".join(caught.value.__notes__)
    assert "positions of (4, 3)" in notes
    assert "'centre': (2,)" in notes
    with pytest.raises(TypeError) as caught:
        run_chain(jax.random.key(0), sgld(TARGET, 0.1), jnp.zeros(3), 2)
    assert "position of (3,)" in " ".join(caught.value.__notes__)


def test_a_schedule_of_steps_belongs_to_an_annealed_chain():
    with pytest.raises(ValueError, match=r"step_size has shape \(5,\).*run_annealed_chain"):
        sample(jax.random.key(0), energy, PARAMS, jnp.zeros((5, 2)), 2, step_size=jnp.full(5, 0.1))


# --- BlackJAX in both directions ---


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda logdensity: blackjax.hmc(logdensity, 0.5, jnp.ones(2), 4),
        lambda logdensity: blackjax.barker_proposal(logdensity, 0.5),
        lambda logdensity: blackjax.ghmc(logdensity, 0.5, jnp.ones(2), 0.5, 0.1),  # its init needs a key
    ],
    ids=["hmc", "barker", "ghmc"],
)
def test_our_runner_runs_blackjaxs_kernels(algorithm):
    kernel = algorithm(lambda x: -TARGET(x))
    states, _ = run_chains(jax.random.key(0), kernel, jnp.zeros((1000, 2)), 60)
    x = np.asarray(states.position, np.float64)
    assert np.all(np.abs(x.mean(0) - np.array([1.0, -2.0])) < 5 / np.sqrt(1000))
    assert np.all(np.abs(x.var(0) - 1) < 5 * np.sqrt(2 / 1000))


def test_blackjaxs_runner_runs_our_kernel():
    state, positions = run_inference_algorithm(
        jax.random.key(0),
        sgld(TARGET, 0.2),  # pyright: ignore[reportArgumentType]
        num_steps=20_000,
        initial_position=jnp.zeros(2),
        transform=lambda state, info: state.position,
    )
    assert state.position.shape == (2,)
    x = np.asarray(positions[200:], np.float64)
    # An autoregression with coefficient .8: n (1 - .8) / (1 + .8) effective samples for the mean.
    effective = len(x) * 0.2 / 1.8
    variance = 1 / (1 - 0.1)
    assert np.all(np.abs(x.mean(0) - np.array([1.0, -2.0])) < 5 * np.sqrt(variance / effective))
    # And n (1 - .64) / (1 + .64) for the variance.
    assert np.all(np.abs(x.var(0) - variance) < 5 * variance * np.sqrt(2 / (len(x) * 0.36 / 1.64)))


# --- annealing ---


def test_an_annealed_chain_takes_one_slice_a_step():
    schedule = {"step_size": jnp.array([0.1, 0.2, 0.5]), "centre": jnp.array([0.0, 1.0, 2.0])}

    def kernel_at(at):
        return sgld(lambda x: 0.5 * (x - at["centre"]) ** 2, at["step_size"], 0.0)

    state, path = run_annealed_chain(
        jax.random.key(0), kernel_at, schedule, jnp.array(1.0), collect=lambda state, info: state.position
    )
    first = 1.0 - 0.1 * 1.0
    second = first - 0.2 * (first - 1.0)
    third = second - 0.5 * (second - 2.0)
    np.testing.assert_allclose(path, [first, second, third], rtol=1e-6)
    assert float(state.position) == pytest.approx(third)


def test_an_annealed_chain_refreshes_what_the_kernel_caches():
    # Raising the energy by 100 a step would make every acceptance of a stale cache 0.
    _, acceptance = run_annealed_chain(
        jax.random.key(0),
        lambda offset: mala(lambda x: 0.5 * jnp.sum(x**2) + offset, 0.05),
        100.0 * jnp.arange(50),
        jnp.zeros(2),
        collect=lambda state, info: info.acceptance_rate,
    )
    assert float(acceptance.min()) > 0.3


class CountingState(NamedTuple):
    position: Any
    count: Any


def counting(step_size):
    """sgld that counts its steps in its state."""
    kernel = sgld(TARGET, step_size)

    def step(rng_key, state):
        moved, info = kernel.step(rng_key, LangevinState(state.position))
        return CountingState(moved.position, state.count + 1), info

    return Kernel(lambda position, rng_key=None: CountingState(position, jnp.array(0)), step)


def test_a_kept_state_is_handed_on_and_a_fresh_one_is_not():
    schedule = jnp.array([0.1, 0.2, 0.3, 0.4])
    run = partial(run_annealed_chain, jax.random.key(2), counting, schedule, jnp.zeros(2))
    fresh, kept = run()[0], run(keep_state=True)[0]
    assert int(fresh.count) == 1
    assert int(kept.count) == 4
    np.testing.assert_allclose(kept.position, fresh.position, rtol=1e-6)  # the same noise, either way


def test_a_kept_cache_is_stale_where_the_target_changes():
    # What the docstring warns of, and the default saves from: the same 100 a step as above.
    _, acceptance = run_annealed_chain(
        jax.random.key(0),
        lambda offset: mala(lambda x: 0.5 * jnp.sum(x**2) + offset, 0.05),
        100.0 * jnp.arange(50),
        jnp.zeros(2),
        collect=lambda state, info: info.acceptance_rate,
        keep_state=True,
    )
    assert float(acceptance[1:].max()) < 1e-6


def test_annealing_ends_in_the_last_target():
    inverse_temperatures = jnp.concatenate([jnp.linspace(0.1, 1.0, 50), jnp.ones(50)])

    def run(key, start):
        return run_annealed_chain(
            key, lambda beta: hmc(lambda x: beta * TARGET(x), 0.5, 3), inverse_temperatures, start
        )[0].position

    x = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 2000), jnp.zeros((2000, 2)))
    x = np.asarray(x, np.float64)
    assert np.all(np.abs(x.mean(0) - np.array([1.0, -2.0])) < 5 / np.sqrt(2000))
    assert np.all(np.abs(x.var(0) - 1) < 5 * np.sqrt(2 / 2000))


def test_a_ragged_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule"):
        run_annealed_chain(
            jax.random.key(0),
            lambda at: sgld(TARGET, 0.1),
            {"a": jnp.ones(2), "b": jnp.ones(3)},
            jnp.zeros(2),
        )


# --- sample ---


def _counted():
    """The energy above, and how often it was traced."""
    traces = []

    def counted(params, x):
        traces.append(1)
        return energy(params, x)

    return counted, traces


@pytest.mark.parametrize(
    ("kernel", "first", "second"),
    [
        (sgld, {"step_size": 0.1}, {"step_size": 0.2}),
        (
            sgld,
            {"step_size": 0.1, "noise_scale": 0.1, "gradient_clip": 1.0, "state_clamp": (-3.0, 3.0)},
            {"step_size": 0.2, "noise_scale": 0.0, "gradient_clip": 2.0, "state_clamp": (-1.0, 2.5)},
        ),
        (mala, {"step_size": 0.1}, {"step_size": 0.2}),
        (
            hmc,
            {"step_size": 0.1, "num_integration_steps": 3, "inverse_mass_matrix": jnp.ones(2)},
            {"step_size": 0.2, "num_integration_steps": 3, "inverse_mass_matrix": 2 * jnp.ones(2)},
        ),
        (nuts, {"step_size": 0.1, "max_num_doublings": 3}, {"step_size": 0.2, "max_num_doublings": 3}),
    ],
    ids=["sgld", "sgld with options", "mala", "hmc", "nuts"],
)
def test_sample_compiles_once_for_all_values(kernel, first, second):
    counted, traces = _counted()
    start = jnp.zeros((4, 2))
    sample(jax.random.key(0), counted, PARAMS, start, 3, kernel=kernel, **first)
    after_one = len(traces)
    moved = {"centre": jnp.ones(2), "offset": jnp.array(3.0)}
    positions = sample(jax.random.key(1), counted, moved, start + 1, 3, kernel=kernel, **second)
    assert len(traces) == after_one > 0
    chex.assert_tree_all_finite(positions)
    sample(jax.random.key(1), counted, moved, start, 4, kernel=kernel, **second)
    assert len(traces) > after_one  # num_steps is compiled in, so the count does count


def test_traced_parameters_are_the_ones_that_were_given():
    start = jnp.array([[5.0, 0.0]])
    parameters = {"step_size": 0.5, "noise_scale": 0.0, "gradient_clip": 2.0, "state_clamp": (-1.0, 3.5)}
    positions = sample(jax.random.key(0), energy, PARAMS, start, 1, **parameters)
    np.testing.assert_allclose(positions, jnp.array([[3.5, -1.0]]), rtol=1e-6)


def test_num_integration_steps_as_an_array_is_traced():
    counted, traces = _counted()
    start = jnp.zeros((4, 2))
    run = partial(sample, jax.random.key(0), counted, PARAMS, start, 2, kernel=hmc, step_size=0.3)
    short = run(num_integration_steps=jnp.array(2))
    after_one = len(traces)
    long = run(num_integration_steps=jnp.array(6))
    assert len(traces) == after_one
    assert not np.allclose(short, long)


def test_sample_keeps_a_history_when_asked():
    positions, history = sample(
        jax.random.key(0), energy, PARAMS, jnp.zeros((4, 2)), 3, step_size=0.1, collect=_energy_of_info
    )
    assert positions.shape == (4, 2)
    assert history.shape == (4, 3)


def _energy_of_info(state, info):
    return info.energy


def test_sample_draws_from_the_model():
    positions = sample(
        jax.random.key(0),
        energy,
        PARAMS,
        jnp.zeros((4000, 2)),
        60,
        kernel=hmc,
        step_size=0.5,
        num_integration_steps=3,
    )
    x = np.asarray(positions, np.float64)
    assert np.all(np.abs(x.mean(0) - np.array([1.0, -2.0])) < 5 / np.sqrt(4000))
    assert np.all(np.abs(x.var(0) - 1) < 5 * np.sqrt(2 / 4000))


def test_sample_names_what_is_wrong_before_it_compiles():
    counted, traces = _counted()
    run = partial(sample, jax.random.key(0), counted, PARAMS)
    with pytest.raises(ValueError, match=r"step_size=-1\.0"):
        run(jnp.zeros((4, 2)), 3, step_size=-1.0)
    with pytest.raises(ValueError, match="positions"):
        run(jnp.zeros(()), 3, step_size=0.1)
    with pytest.raises(ValueError, match="num_steps"):
        run(jnp.zeros((4, 2)), 0, step_size=0.1)
    with pytest.raises(TypeError, match="step_size"):
        run(jnp.zeros((4, 2)), 3)
    with pytest.raises(TypeError, match="floating"):
        run(jnp.zeros((4, 2), int), 3, step_size=0.1)
    assert not traces

    def batched(params, x):
        return jnp.sum(x**2, axis=-1, keepdims=True)

    with pytest.raises(ValueError, match=r"batched.*\(1,\)"):
        sample(jax.random.key(0), batched, None, jnp.zeros((4, 2)), 3, step_size=0.1)


def test_a_kernel_of_ones_own():
    def still(target):
        return Kernel(
            lambda position, rng_key=None: LangevinState(position), lambda rng_key, state: (state, None)
        )

    start = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(sample(jax.random.key(0), energy, PARAMS, start, 2, kernel=still), start)
