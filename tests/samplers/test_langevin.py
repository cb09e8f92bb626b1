"""Langevin dynamics against its closed-form stationary law, and its options one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.chains import run_chain, run_chains
from jaxebm.samplers.langevin import LangevinState, langevin_temperature, scalar_target, sgld

NUM_CHAINS = 20_000


def quadratic(x):
    return 0.5 * jnp.sum(x**2)


@jax.jit
def _final_positions(rng_key, stiffness, step_size, noise_scale, start):
    kernel = sgld(lambda x: 0.5 * stiffness * x**2, step_size, noise_scale)
    states, _ = run_chains(rng_key, kernel, jnp.full(NUM_CHAINS, start), 200)
    return states.position


@pytest.mark.parametrize(
    ("stiffness", "step_size"), [(1.0, 0.1), (4.0, 0.25), (1.0, 1.5), (0.5, 0.2), (2.0, 0.05)]
)
def test_stationary_variance_of_a_quadratic_is_exact(stiffness, step_size):
    # Started 30 away; after 200 steps the start is forgotten to a factor (1 - k eps)^200 <= 7e-10.
    x = np.asarray(
        _final_positions(jax.random.key(0), stiffness, step_size, jnp.sqrt(2 * step_size), 30.0), np.float64
    )
    variance = (1 / stiffness) / (1 - step_size * stiffness / 2)
    assert abs(x.mean()) < 5 * np.sqrt(variance / NUM_CHAINS)
    # The state is Gaussian with a known mean, 0, so the mean square has standard deviation variance * sqrt(2
    # / n).
    assert abs(np.mean(x**2) - variance) < 5 * variance * np.sqrt(2 / NUM_CHAINS)


@pytest.mark.parametrize(("step_size", "noise_scale"), [(0.05, 0.1), (0.1, 1.0)])
def test_a_pair_samples_at_its_temperature(step_size, noise_scale):
    x = np.asarray(_final_positions(jax.random.key(1), 1.0, step_size, noise_scale, 0.0), np.float64)
    temperature = float(langevin_temperature(step_size, noise_scale))
    assert temperature == pytest.approx(noise_scale**2 / (2 * step_size))
    variance = temperature / (1 - step_size / 2)  # at temperature T: T / k, and the known factor of the step
    assert abs(np.mean(x**2) - variance) < 5 * variance * np.sqrt(2 / NUM_CHAINS)


def test_the_temperature_at_a_curvature_is_exact_on_that_quadratic():
    # The same closed form as above, read as a temperature: variance = T / stiffness at every step.
    for stiffness, step_size, noise_scale in ((1.0, 1.5, 0.7), (4.0, 0.25, 0.1), (0.5, 0.2, 2.0)):
        variance = noise_scale**2 / (1 - (1 - step_size * stiffness) ** 2)
        temperature = langevin_temperature(step_size, noise_scale, stiffness)
        assert float(temperature) == pytest.approx(variance * stiffness, rel=1e-5)
    spectrum = langevin_temperature(0.1, np.sqrt(0.2), np.array([0.0, 1.0, 10.0]))
    np.testing.assert_allclose(spectrum, [1.0, 1 / 0.95, 2.0], rtol=1e-5)
    assert float(jax.jit(langevin_temperature)(0.1, 0.2, 3.0)) == pytest.approx(0.2 / 0.85)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.0, 1.0), "step_size"),
        ((0.1, -1.0), "noise_scale"),
        ((0.1, 1.0, -1.0), "curvature"),
        ((0.1, 1.0, 20.0), r"curvature=20\.0 at step_size=0\.1.*below 2"),
        ((0.1, 1.0, np.array([1.0, 30.0])), r"is 3 and must be below 2"),
    ],
)
def test_a_temperature_that_does_not_exist_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        langevin_temperature(*arguments)


def test_no_noise_scale_means_temperature_one():
    start = LangevinState(jnp.arange(3.0))
    implicit, _ = sgld(quadratic, 0.3).step(jax.random.key(2), start)
    explicit, _ = sgld(quadratic, 0.3, np.sqrt(0.6)).step(jax.random.key(2), start)
    np.testing.assert_allclose(implicit.position, explicit.position, rtol=1e-6)
    assert float(langevin_temperature(0.3, np.sqrt(0.6))) == pytest.approx(1.0)


def test_one_step_without_noise_is_the_papers_line():
    x = jnp.array([1.0, -2.0, 3.0])
    state, info = sgld(lambda x: jnp.sum(x**3) / 3, 0.1, 0.0).step(jax.random.key(0), LangevinState(x))
    np.testing.assert_allclose(state.position, x - 0.1 * x**2, rtol=1e-6)
    # Info speaks of where the step started from.
    assert float(info.energy) == pytest.approx((1 - 8 + 27) / 3)
    assert float(info.gradient_norm) == pytest.approx(np.sqrt(1 + 16 + 81))


def test_gradient_clip_bounds_each_entry():
    x = jnp.array([10.0, -10.0, 0.5])
    kernel = sgld(quadratic, 0.1, 0.0, gradient_clip=1.0)
    state, info = kernel.step(jax.random.key(0), LangevinState(x))
    np.testing.assert_allclose(state.position, x - 0.1 * jnp.array([1.0, -1.0, 0.5]), rtol=1e-6)
    assert float(info.gradient_norm) == pytest.approx(float(jnp.linalg.norm(x)))


def test_state_clamp_holds_at_every_step_whatever_the_noise():
    kernel = sgld(quadratic, 0.1, 5.0, state_clamp=(-1.0, 1.5))
    _, history = run_chain(
        jax.random.key(3), kernel, jnp.zeros(50), 20, collect=lambda state, info: state.position
    )
    assert float(history.min()) == -1.0
    assert float(history.max()) == 1.5


def test_noise_is_independent_across_leaves_steps_and_keys():
    kernel = sgld(lambda x: 0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(x)), 1.0, 1.0)
    position = {"a": jnp.zeros(4000), "b": jnp.zeros(4000)}
    _, history = run_chain(jax.random.key(4), kernel, position, 2, collect=lambda state, info: state.position)
    first = jax.tree.map(lambda leaf: leaf[0], history)
    second = jax.tree.map(lambda leaf: leaf[1] - leaf[0], history)
    draws = np.stack([first["a"], first["b"], second["a"], second["b"]])
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    assert np.abs(draws.std(axis=1) - 1).max() < 5 / np.sqrt(2 * 4000)


def test_bfloat16_noise_reaches_its_tails():
    # Normals drawn in bfloat16 are cut off near 2.7; the kernel draws them in float32.
    kernel = sgld(lambda x: jnp.sum(0 * x), 1.0, 1.0)
    state, _ = kernel.step(jax.random.key(5), kernel.init(jnp.zeros(20_000, jnp.bfloat16)))
    assert state.position.dtype == jnp.bfloat16
    assert float(jnp.abs(state.position).max()) > 3.2  # fails for true normals with probability exp(-27)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"step_size": 0.1, "noise_scale": -0.1}, "noise_scale"),
        ({"step_size": 0.1, "gradient_clip": 0.0}, "gradient_clip"),
        ({"step_size": 0.1, "state_clamp": (1.0, -1.0)}, "state_clamp"),
        ({"step_size": 0.1, "state_clamp": (1.0, 1.0)}, "state_clamp"),
        ({"step_size": 0.1, "state_clamp": 1.0}, "state_clamp"),
    ],
)
def test_bad_parameters_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        sgld(quadratic, **arguments)


def test_an_integer_position_is_refused():
    with pytest.raises(TypeError, match=r"position.*int32"):
        sgld(quadratic, 0.1).init(jnp.arange(3))


def test_an_energy_that_is_not_a_scalar_is_refused_by_name():
    def elementwise(x):
        return x**2

    with pytest.raises(ValueError, match=r"elementwise.*\(3,\)"):
        run_chain(jax.random.key(0), sgld(elementwise, 0.1), jnp.ones(3), 2)
    with pytest.raises(ValueError, match=r"elementwise.*\(1,\)"):
        scalar_target(jax.tree_util.Partial(elementwise))(jnp.ones(1))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"step_size": jnp.full(2, 0.1)}, r"step_size has shape \(2,\).*run_annealed_chain"),
        ({"step_size": 0.1, "noise_scale": np.ones(3)}, r"noise_scale has shape \(3,\).*run_annealed_chain"),
        ({"step_size": 0.1, "gradient_clip": np.ones(3)}, r"gradient_clip has shape \(3,\)"),
        (
            {"step_size": 0.1, "state_clamp": (np.zeros(3), 1.0)},
            r"state_clamp has shape \(3,\).*box\(low, high\)",
        ),
        ({"step_size": 0.1, "state_clamp": (np.nan, 1.0)}, r"state_clamp=\(nan"),
    ],
)
def test_one_number_is_needed_not_several(arguments, named):
    with pytest.raises(ValueError, match=named):
        sgld(quadratic, **arguments)


def test_several_temperatures_at_once():
    steps, curvature = np.array([0.1, 1.0]), np.array([15.0, 1.0])
    found = langevin_temperature(steps, np.sqrt(2 * steps), curvature)  # curvature * step_size = 1.5 and 1
    np.testing.assert_allclose(found, 1 / (1 - steps * curvature / 2), rtol=1e-6)
