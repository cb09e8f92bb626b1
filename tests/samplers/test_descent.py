"""Steepest descent: its line by hand, its balls by their definition, and where it comes to rest."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxebm.samplers import (
    project_to_ball,
    projected_gradient_descent,
    run_chain,
    run_chains,
    sample,
    steepest_descent,
)
from jaxebm.samplers.langevin import LangevinState

pytestmark = pytest.mark.usefixtures("cheap_compilation")

SLOPES = np.random.default_rng(0).normal(size=6).astype(np.float32)


def linear(x):
    return jnp.sum(jnp.asarray(SLOPES) * x)


def length(x, norm):
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)])
    return np.linalg.norm(flat, ord={"l2": 2, "linf": np.inf}[norm])


def one_step(kernel, position):
    return kernel.step(jax.random.key(0), kernel.init(position))


# --- the step ---


def test_one_step_is_the_papers_line():
    x = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
    gradient = np.array([1.0, 4.0, 9.0])  # of sum |x|^3 / 3, up to sign

    def energy(x):
        return sum(jnp.sum(jnp.abs(leaf) ** 3) / 3 for leaf in jax.tree.leaves(x))

    state, info = one_step(steepest_descent(energy, 0.5), x)
    unit = gradient / np.sqrt(1 + 16 + 81)
    np.testing.assert_allclose(state.position["a"], [1 - 0.5 * unit[0], -2 + 0.5 * unit[1]], rtol=1e-6)
    np.testing.assert_allclose(state.position["b"], [[3 - 0.5 * unit[2]]], rtol=1e-6)
    # Info speaks of where the step started from.
    assert float(info.energy) == pytest.approx(36 / 3)
    assert float(info.gradient_norm) == pytest.approx(np.sqrt(98))
    state, _ = one_step(steepest_descent(energy, 0.5, "linf"), x)
    np.testing.assert_allclose(state.position["a"], [0.5, -1.5])
    np.testing.assert_allclose(state.position["b"], [[2.5]])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_direction_of_that_length_lowers_a_linear_energy_more(norm):
    state, _ = one_step(steepest_descent(linear, 0.3, norm), jnp.zeros(6))
    assert length(state.position, norm) == pytest.approx(0.3, rel=1e-6)
    others = np.random.default_rng(1).normal(size=(1000, 6))
    others *= 0.3 / np.linalg.norm(others, ord={"l2": 2, "linf": np.inf}[norm], axis=1, keepdims=True)
    assert float(linear(state.position)) < np.min(others @ SLOPES)
    # The best is minus the length times the dual norm of the slopes.
    dual = np.linalg.norm(SLOPES, ord={"l2": 2, "linf": 1}[norm])
    assert float(linear(state.position)) == pytest.approx(-0.3 * dual, rel=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_where_it_is_flat_it_stays(norm):
    state, info = one_step(steepest_descent(lambda x: jnp.sum(0 * x), 0.3, norm), jnp.ones(3))
    np.testing.assert_array_equal(state.position, np.ones(3))
    assert float(info.gradient_norm) == 0
    # A slope in one coordinate only: the others stay in either norm.
    state, _ = one_step(steepest_descent(lambda x: x[1], 0.3, norm), jnp.ones(3))
    np.testing.assert_allclose(state.position, [1.0, 0.7, 1.0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_scale_of_the_energy_makes_no_difference(norm, scale):
    # The squares of such slopes are 0 or infinite in float32, as a confident classifier's are.
    state, _ = one_step(steepest_descent(lambda x: scale * linear(x), 0.3, norm), jnp.zeros(6))
    expected, _ = one_step(steepest_descent(linear, 0.3, norm), jnp.zeros(6))
    np.testing.assert_allclose(state.position, expected.position, rtol=1e-5)


# --- the projection ---


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_projection_is_the_nearest_point_of_the_ball(norm):
    random = np.random.default_rng(2)
    for radius in (0.5, 2.0, 30.0):
        x, center = random.normal(size=(2, 4))
        projected = np.asarray(project_to_ball(jnp.asarray(x), jnp.asarray(center), radius, norm))
        assert length(projected - center, norm) <= radius * (1 + 1e-6)
        inside = radius - 1e-9 if norm == "l2" else radius
        constraint = {
            "l2": {"type": "ineq", "fun": lambda v, c=center, r=inside: r**2 - np.sum((v - c) ** 2)},
            "linf": {"type": "ineq", "fun": lambda v, c=center, r=inside: r - np.abs(v - c)},
        }[norm]
        best = minimize(lambda v, x=x: np.sum((v - x) ** 2), center, constraints=constraint, tol=1e-14)
        np.testing.assert_allclose(projected, best.x, atol=2e-4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_ball_over_leaves_is_the_ball_of_all_entries(norm):
    x = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([[12.0]])}
    center = {"a": jnp.array([0.0, 1.0]), "b": jnp.array([[-1.0]])}
    joined = project_to_ball(jnp.array([3.0, -4.0, 12.0]), jnp.array([0.0, 1.0, -1.0]), 2.0, norm)
    apart = project_to_ball(x, center, 2.0, norm)
    np.testing.assert_allclose(np.append(apart["a"], apart["b"]), joined, rtol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_ball_of_radius_zero_is_its_center(norm):
    kernel = steepest_descent(linear, 0.3, norm, center=jnp.ones(6), radius=0.0)
    state, _ = one_step(kernel, jnp.ones(6))
    np.testing.assert_array_equal(state.position, np.ones(6))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_stays_in_the_ball_and_in_the_box(norm):
    # Non-expansiveness: |clip(x) - c| = |clip(x) - clip(c)| <= |x - c|, for c in the box. Many centers, some
    # of them in corners, and an energy that pulls beyond both.
    centers = jnp.asarray(np.clip(np.random.default_rng(3).normal(size=(200, 6)), -1, 1), jnp.float32)

    def chain(rng_key, center):
        kernel = steepest_descent(linear, 0.4, norm, state_clamp=(-1.0, 1.0), center=center, radius=0.75)
        return run_chain(rng_key, kernel, center, 5, collect=lambda state, info: state.position)[1]

    paths = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 200), centers))
    assert np.abs(paths).max() == 1
    distances = np.linalg.norm(
        paths - np.asarray(centers)[:, None, :], ord={"l2": 2, "linf": np.inf}[norm], axis=2
    )
    assert 0.75 * 0.9 < distances.max() <= 0.75 * (1 + 1e-6)
    if norm == "linf":  # the box within the box: the lowest corner of it, in closed form
        corner = np.clip(np.asarray(centers) - 0.75 * np.sign(SLOPES), -1, 1)
        np.testing.assert_allclose(paths[:, -1], corner, atol=1e-6)


def test_in_a_ball_it_comes_to_rest_at_the_lowest_point():
    # E = |x - m|^2 / 2 with m outside of the ball: the lowest point of the ball lies towards m.
    m = jnp.array([3.0, 4.0])
    kernel = steepest_descent(lambda x: 0.5 * jnp.sum((x - m) ** 2), 0.3, center=jnp.zeros(2), radius=1.0)
    state, _ = run_chain(jax.random.key(0), kernel, jnp.array([1.0, 0.0]), 100)
    np.testing.assert_allclose(state.position, [0.6, 0.8], atol=1e-3)


# --- the loop of the attacks ---


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_loop_is_the_kernel_after_the_projection_of_its_start(norm):
    center, start = 0.5 * jnp.sign(SLOPES), 3.0 * jnp.ones(6)
    box = {"state_clamp": (-0.9, 0.9), "center": center, "radius": 0.75}
    found = projected_gradient_descent(
        jax.random.key(0), lambda _: linear, jnp.arange(4), start, step_size=0.2, norm=norm, **box
    )
    begin = jnp.clip(project_to_ball(start, center, 0.75, norm), -0.9, 0.9)
    state, _ = run_chain(jax.random.key(1), steepest_descent(linear, 0.2, norm, **box), begin, 4)
    np.testing.assert_array_equal(found, state.position)


def test_the_loop_takes_one_target_a_step():
    directions = jnp.array([[1.0, 0.0], [0.0, -1.0], [0.0, -1.0]])
    found = projected_gradient_descent(
        jax.random.key(0),
        lambda direction: lambda x: x @ direction,
        directions,
        jnp.zeros(2),
        step_size=0.25,
        center=jnp.zeros(2),
        radius=10.0,
    )
    np.testing.assert_allclose(found, [-0.25, 0.5])


def test_the_loop_keeps_the_dtype_of_the_center():
    center = jnp.zeros(6, jnp.bfloat16)
    found = projected_gradient_descent(
        jax.random.key(0),
        lambda _: linear,
        jnp.arange(2),
        jnp.ones(6),
        step_size=0.25,
        center=center,
        radius=0.5,
    )
    assert found.dtype == jnp.bfloat16


# --- as a kernel ---


def test_keys_make_no_difference_and_radii_do_not_recompile():
    chex.clear_trace_counter()

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def run(rng_key, step_size, center, radius):
        kernel = steepest_descent(linear, step_size, center=center, radius=radius)
        return run_chains(rng_key, kernel, jnp.zeros((2, 6)), 3)[0].position

    first = run(jax.random.key(0), 0.1, jnp.zeros(6), 0.25)
    np.testing.assert_array_equal(first, run(jax.random.key(1), 0.1, jnp.zeros(6), 0.25))
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 0.25, rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(run(jax.random.key(0), 0.5, jnp.zeros(6), 1.25), axis=1), 1.25, rtol=1e-6
    )


def test_sample_takes_it():
    found = sample(
        jax.random.key(0),
        lambda params, x: jnp.sum(params * x),
        jnp.asarray(SLOPES),
        jnp.zeros((3, 6)),
        4,
        kernel=steepest_descent,
        step_size=1.0,
        norm="linf",
        state_clamp=(-1.0, 1.0),
        center=jnp.zeros(6),
        radius=0.5,
    )
    np.testing.assert_allclose(found, np.broadcast_to(-0.5 * np.sign(SLOPES), (3, 6)))


def test_bfloat16_is_kept():
    center = jnp.ones(6, jnp.bfloat16)
    kernel = steepest_descent(linear, 0.1, state_clamp=(-1.0, 1.0), center=center, radius=0.5)
    state, _ = one_step(kernel, center)
    assert state.position.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"norm": "l1"}, ValueError, "norm='l1'.*'l2', 'linf'"),
        ({"state_clamp": (1.0, -1.0)}, ValueError, "state_clamp"),
        ({"center": jnp.zeros(6)}, ValueError, "radius=None"),
        ({"radius": 1.0}, ValueError, "center=None"),
        ({"center": jnp.zeros(6), "radius": -1.0}, ValueError, "radius=-1.0"),
        ({"center": jnp.arange(6), "radius": 1.0}, TypeError, "center.*int32"),
        ({"center": jnp.full(6, 2.0), "radius": 1.0, "state_clamp": (-1.0, 1.0)}, ValueError, "center"),
    ],
)
def test_bad_parameters_are_named(arguments, error, named):
    with pytest.raises(error, match=named):
        steepest_descent(linear, **{"step_size": 0.1} | arguments)


def test_a_center_of_another_shape_is_refused():
    kernel = steepest_descent(linear, 0.1, center=jnp.zeros(1), radius=1.0)
    with pytest.raises(ValueError, match=r"center has shape \(1,\).*\(6,\)"):
        kernel.init(jnp.zeros(6))
    with pytest.raises(ValueError, match="center has the structure"):
        project_to_ball({"a": jnp.zeros(2)}, jnp.zeros(2), 1.0)


def test_a_clamped_step_ends_at_the_wall():
    kernel = steepest_descent(lambda x: x[0], 5.0, state_clamp=(-1.0, 1.0))
    state, _ = kernel.step(jax.random.key(0), LangevinState(jnp.array([0.5, 2.0])))
    np.testing.assert_array_equal(state.position, [-1.0, 1.0])


def test_the_gradient_through_a_projection_is_finite_at_the_center():
    # Inside of the ball the projection is the identity, at its center too.
    def projected(x):
        return project_to_ball(x, jnp.ones(2), 0.5)

    for x in (jnp.ones(2), jnp.array([1.2, 0.9])):
        np.testing.assert_allclose(jax.jacobian(projected)(x), np.eye(2), atol=1e-6)
