"""Descent with momentum: its three forms by hand, its law with noise, and what it keeps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers import momentum_descent, run_annealed_chain, run_chain, sample, sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation")

FORMS = ("heavy_ball", "nesterov", "look_ahead")


def quartic(x):
    """Skewed and not quadratic, in two leaves."""
    return sum(jnp.sum(leaf**4 / 4 - leaf**3 / 3 + leaf) for leaf in jax.tree.leaves(x))


def slope(x):
    return x**3 - x**2 + 1


def by_hand(form, x, step_size, momentum, num_steps):
    velocity = np.zeros_like(x)
    for _ in range(num_steps):
        at = x if form == "heavy_ball" else x + momentum * velocity
        kept = 0.0 if form == "look_ahead" else momentum
        velocity = kept * velocity - step_size * slope(at)
        x = x + velocity
    return x, velocity


@pytest.mark.parametrize("form", FORMS)
def test_steps_are_those_of_the_papers(form):
    start = {"a": np.array([0.7, -0.4]), "b": np.array([[1.3]])}
    kernel = momentum_descent(quartic, 0.05, 0.6, form)
    state, _ = run_chain(jax.random.key(0), kernel, jax.tree.map(jnp.asarray, start), 7)
    for name, x in start.items():
        position, velocity = by_hand(form, x, 0.05, 0.6, 7)
        np.testing.assert_allclose(state.position[name], position, rtol=1e-5)
        np.testing.assert_allclose(state.velocity[name], velocity, rtol=1e-4)


def test_look_ahead_is_the_published_sampler_of_equilibrium_matching():
    # x_{k+1} = x_k + eta f(x_k + eta mu f_k), f_k the last output and f = -grad E.
    x, output = np.array([0.9, -0.3]), np.zeros(2)
    for _ in range(20):
        output = -slope(x + 0.0017 * 0.3 * output)
        x = x + 0.0017 * output
    kernel = momentum_descent(quartic, 0.0017, 0.3, "look_ahead")
    state, _ = run_chain(jax.random.key(0), kernel, jnp.array([0.9, -0.3]), 20)
    np.testing.assert_allclose(state.position, x, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_without_momentum_it_is_gradient_descent(form):
    start = jnp.array([0.7, -0.4])
    kernel = momentum_descent(quartic, 0.05, 0.0, form, gradient_clip=0.9, state_clamp=(-0.5, 2.0))
    plain = sgld(quartic, 0.05, 0.0, gradient_clip=0.9, state_clamp=(-0.5, 2.0))
    state, seen = run_chain(jax.random.key(0), kernel, start, 9, collect=lambda state, info: info)
    expected, expected_seen = run_chain(jax.random.key(1), plain, start, 9, collect=lambda state, info: info)
    chex.assert_trees_all_close((state.position, seen), (expected.position, expected_seen), atol=1e-6)


def test_along_a_narrow_valley_momentum_arrives_earlier():
    stiffness = jnp.array([1.0, 100.0])

    def energy(x):
        return 0.5 * jnp.sum(stiffness * x**2)

    # The best step and momentum for these curvatures contract by (sqrt(100) - 1) / (sqrt(100) + 1) a step.
    rate = 9 / 11
    heavy = momentum_descent(energy, 4 / 11**2, rate**2)
    state, _ = run_chain(jax.random.key(0), heavy, jnp.ones(2), 100)
    plain, _ = run_chain(jax.random.key(0), sgld(energy, 2 / 101, 0.0), jnp.ones(2), 100)
    assert float(jnp.abs(state.position).max()) < 100 * 20 * rate**100
    assert float(jnp.abs(plain.position[0])) > 0.1


@pytest.mark.parametrize(("curvature", "step_size", "momentum"), [(1.0, 0.3, 0.5), (4.0, 0.4, 0.8)])
def test_with_noise_the_law_of_heavy_balls_on_a_gaussian_is_the_stated_one(curvature, step_size, momentum):
    noise = np.sqrt(2 * (1 - momentum) * step_size)
    num_chains = 20_000  # independent coordinates of one position

    def energy(x):
        return 0.5 * curvature * jnp.sum((x - 1) ** 2)

    kernel = momentum_descent(energy, step_size, momentum, noise_scale=noise)
    state, _ = run_chain(jax.random.key(0), kernel, jnp.ones(num_chains), 200)
    x = np.asarray(state.position, np.float64) - 1
    variance = 1 / curvature / (1 - step_size * curvature / (2 * (1 + momentum)))
    assert abs(np.mean(x)) < 5 * np.sqrt(variance / num_chains)
    assert abs(np.mean(x**2) - variance) < 5 * variance * np.sqrt(2 / num_chains)


def test_a_schedule_of_steps_keeps_the_velocity():
    start, steps = jnp.array([0.7]), jnp.full(5, 0.05)

    def kernel_at(step_size):
        return momentum_descent(quartic, step_size, 0.6)

    state, _ = run_annealed_chain(jax.random.key(0), kernel_at, steps, start, keep_state=True)
    np.testing.assert_allclose(
        state.position, by_hand("heavy_ball", np.array([0.7]), 0.05, 0.6, 5)[0], rtol=1e-5
    )


def test_dtypes_are_kept_and_new_numbers_run_the_same_program():
    start = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones((2, 2))}
    traces = []

    def energy(params, x):
        traces.append(None)
        return params * sum(jnp.sum(jnp.asarray(leaf, jnp.float32) ** 2) for leaf in jax.tree.leaves(x))

    run = functools.partial(sample, jax.random.key(0), energy, kernel=momentum_descent, form="nesterov")
    for noise_scale in (0.0, 0.1):
        end = run(1.0, start, 3, step_size=0.1, momentum=0.3, noise_scale=noise_scale)
        chex.assert_trees_all_equal_shapes_and_dtypes(end, start)
        chex.assert_tree_all_finite(end)
    first = len(traces)
    run(2.0, start, 3, step_size=0.2, momentum=0.1, noise_scale=0.2)
    assert len(traces) == first
    with jax.enable_x64(True):
        kernel = momentum_descent(lambda x: 0.5 * jnp.sum(x**2), 0.1)
        state, _ = kernel.step(jax.random.key(0), kernel.init(jnp.ones(2, jnp.float32)))
        assert (state.position.dtype, state.velocity.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"step_size": 0.0}, ValueError, "step_size=0.0"),
        ({"momentum": 1.0}, ValueError, "momentum=1.0"),
        ({"momentum": -0.1}, ValueError, "momentum=-0.1"),
        ({"momentum": jnp.ones(2) / 2}, ValueError, r"momentum has shape \(2,\)"),
        ({"form": "polyak"}, ValueError, "form='polyak'.*'heavy_ball', 'nesterov', 'look_ahead'"),
        ({"noise_scale": -1.0}, ValueError, "noise_scale=-1.0"),
        ({"gradient_clip": 0.0}, ValueError, "gradient_clip=0.0"),
        ({"state_clamp": (1.0, -1.0)}, ValueError, "state_clamp"),
    ],
)
def test_bad_parameters_are_named(arguments, error, named):
    with pytest.raises(error, match=named):
        momentum_descent(quartic, **({"step_size": 0.1} | arguments))
    with pytest.raises(TypeError, match="position has dtype int32"):
        momentum_descent(quartic, 0.1).init(jnp.ones(2, int))
