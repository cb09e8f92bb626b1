"""Annealed Langevin dynamics against the exact law of its chain: closed form, transition matrices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2, norm

from jaxebm.samplers.noise_levels import annealed_langevin, geometric_levels, power_levels

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CHAINS = 10_000
LEVELS = np.array([4.0, 2.0, 1.0, 0.5])
STEP_SIZE, NUM_STEPS = 0.02, 12


def gaussian_at(params, x, level):
    """Data N(mean, scale^2) under noise: N(mean, scale^2 + level^2)."""
    mean, scale = params
    return 0.5 * jnp.sum((x - mean) ** 2) / (scale**2 + level**2)


@pytest.mark.parametrize("denoise", [False, True])
def test_on_gaussians_every_step_is_a_known_linear_map(denoise):
    mean, scale, start = 1.5, 0.3, -3.0
    x = annealed_langevin(
        jax.random.key(0), gaussian_at, (jnp.array(mean), jnp.array(scale)), jnp.full((NUM_CHAINS, 1), start),
        LEVELS, STEP_SIZE, NUM_STEPS, denoise=denoise,
    )  # fmt: skip
    # Algorithm 1, moment by moment: its alpha / 2 is this step.
    offset, variance = start - mean, 0.0
    for level in LEVELS:
        step = STEP_SIZE * level**2 / LEVELS[-1] ** 2
        shrink = 1 - step / (scale**2 + level**2)
        for _ in range(NUM_STEPS):
            offset, variance = shrink * offset, shrink**2 * variance + 2 * step
    if denoise:
        shrink = 1 - LEVELS[-1] ** 2 / (scale**2 + LEVELS[-1] ** 2)
        offset, variance = shrink * offset, shrink**2 * variance
    x = np.asarray(x, np.float64)[:, 0] - mean
    assert abs(x.mean() - offset) < 5 * np.sqrt(variance / NUM_CHAINS)
    assert abs(np.mean((x - offset) ** 2) - variance) < 5 * variance * np.sqrt(2 / NUM_CHAINS)


MEANS, SCALES, WEIGHTS = np.array([-3.0, 1.0, 4.0]), np.array([0.3, 0.5, 0.2]), np.array([0.2, 0.5, 0.3])


def mixture_at(params, x, level):
    """A mixture under noise is the mixture of the same means and weights, each variance raised by level^2."""
    means, scales, weights = params
    variances = scales**2 + level**2
    return -jax.nn.logsumexp(jnp.log(weights) - 0.5 * jnp.log(variances) - 0.5 * (x - means) ** 2 / variances)


def test_on_a_mixture_the_whole_law_is_that_of_the_transition_matrices():
    levels = np.geomspace(4.0, 0.25, 8)
    step_size, num_steps = 0.005, 20
    start = 0.5
    params = tuple(map(jnp.asarray, (MEANS, SCALES, WEIGHTS)))
    x = annealed_langevin(
        jax.random.key(1), mixture_at, params, jnp.full(NUM_CHAINS, start), levels, step_size, num_steps
    )

    grid = np.linspace(-14.0, 16.0, 1201)  # the trapezoid rule, exact to rounding at this spacing
    law = None
    for level in levels:
        variances = SCALES**2 + level**2
        joint = WEIGHTS * norm.pdf(grid[:, None], MEANS, np.sqrt(variances))
        slope = np.sum(joint * (grid[:, None] - MEANS) / variances, axis=1) / joint.sum(axis=1)
        step = step_size * (level / levels[-1]) ** 2
        mean = grid - step * slope
        transition = norm.pdf(grid[None, :], mean[:, None], np.sqrt(2 * step))
        transition /= transition.sum(axis=1, keepdims=True)
        for _ in range(num_steps):
            law = transition[np.argmin(np.abs(grid - start))] if law is None else law @ transition
    # Cells of equal probability, whose edges lie midway between grid points.
    cell = np.floor(np.cumsum(law) * 30 * (1 - 1e-12)).astype(int)
    edges = 0.5 * (grid[1:] + grid[:-1])[np.diff(cell) > 0]
    counts = np.bincount(np.searchsorted(edges, np.asarray(x)), minlength=len(edges) + 1)
    expected = NUM_CHAINS * np.bincount(np.searchsorted(edges, grid), weights=law)
    assert len(edges) > 25
    assert np.sum((counts - expected) ** 2 / expected) < chi2.ppf(1 - 1e-5, len(edges))
    # From one point, and yet that law has all modes, nearly in their proportions.
    nearest = np.argmin(np.abs(grid[:, None] - MEANS), axis=1)
    np.testing.assert_allclose(np.bincount(nearest, weights=law), WEIGHTS, atol=0.05)


def test_geometric_levels():
    levels = geometric_levels(10.0, 0.01, 7)
    assert levels.dtype == jnp.float32
    np.testing.assert_allclose(levels[1:] / levels[:-1], (0.01 / 10) ** (1 / 6), rtol=1e-5)
    assert (float(levels[0]), float(levels[-1])) == (10.0, np.float32(0.01))


def test_power_levels_are_those_of_karras_and_tend_to_a_geometric_sequence():
    # The first three of 18 levels from 80 to .002 at rho = 7, from equation 5.
    levels = power_levels(80.0, 0.002, 18)
    np.testing.assert_allclose(levels[:3], [80.0, 57.586, 40.786], rtol=1e-4)
    assert (float(levels[0]), float(levels[-1])) == (80.0, np.float32(0.002))
    np.testing.assert_allclose(power_levels(9.0, 1.0, 5, power=1.0), [9.0, 7.0, 5.0, 3.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(
        power_levels(10.0, 0.1, 6, power=1e4), geometric_levels(10.0, 0.1, 6), rtol=1e-2
    )


def pytree_at(params, x, level):
    return 0.5 * params * (jnp.sum(x["a"] ** 2) + jnp.sum(x["b"] ** 2)) / level**2


def test_pytrees_and_dtypes_are_kept_and_new_numbers_run_the_same_program():
    traces = []

    def traced(params, x, level):
        traces.append(None)
        return pytree_at(params, x, level)

    positions = {"a": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(3)}
    run = functools.partial(annealed_langevin, jax.random.key(0), traced)
    for denoise in (False, True):
        end = run(jnp.array(1.0), positions, np.array([2.0, 1.0]), 0.1, 2, denoise=denoise)
        chex.assert_trees_all_equal_shapes_and_dtypes(end, positions)
        chex.assert_tree_all_finite(end)
    first = len(traces)
    run(jnp.array(2.0), positions, np.array([3.0, 1.5]), 0.2, 2)
    assert len(traces) == first


def test_every_floating_dtype_is_kept_under_x64_and_float32_numbers_are_the_same():
    def run(dtype, levels):
        positions = jnp.ones((2, 2), dtype)
        return annealed_langevin(
            jax.random.key(0), gaussian_at, (0.0, 1.0), positions, levels, 0.1, 2, denoise=True
        )

    plain = run("float32", np.array([2.0, 1.0]))
    with jax.enable_x64(True):
        np.testing.assert_allclose(run("float32", np.array([2.0, 1.0])), plain, rtol=1e-6)
        for dtype in ("bfloat16", "float16", "float64"):
            found = jax.eval_shape(lambda: run(dtype, np.array([2.0, 1.0])))  # noqa: B023
            assert found.dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"levels": np.array([1.0, 2.0])}, ValueError, "levels.*must fall"),
        ({"levels": np.array([1.0, 0.0])}, ValueError, "levels.*greater than 0"),
        ({"levels": np.array(1.0)}, ValueError, r"levels has shape \(\)"),
        ({"step_size": 0.0}, ValueError, "step_size=0.0"),
        ({"num_steps_per_level": 0}, ValueError, "num_steps_per_level=0"),
        ({"step_size": jnp.full(2, 0.1)}, ValueError, r"step_size has shape \(2,\)"),
        ({"energy_at": "gaussian"}, TypeError, "energy_at"),
        ({"energy_at": lambda x: 0.0}, TypeError, r"energy_at.*params, x, level"),
        ({"rng_key": jax.random.PRNGKey(0)}, TypeError, "rng_key.*typed key"),
        ({"denoise": "yes"}, TypeError, "denoise='yes'"),
        ({"positions": jnp.zeros(())}, ValueError, "positions"),
        ({"positions": jnp.zeros((2, 1), int)}, TypeError, "positions has dtype int32"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    accepted = {
        "rng_key": jax.random.key(0),
        "energy_at": gaussian_at,
        "params": (0.0, 1.0),
        "positions": jnp.zeros((2, 1)),
        "levels": np.array([2.0, 1.0]),
        "step_size": 0.1,
        "num_steps_per_level": 1,
    }
    with pytest.raises(error, match=message):
        annealed_langevin(**(accepted | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 2.0, 3), "last=2.0 is not below first=1.0"),
        ((1.0, 0.0, 3), "last=0.0"),
        ((1.0, 0.5, 1), "num_levels=1.*at least 2"),
    ],
)
def test_bad_levels_are_named(arguments, message):
    for levels in (geometric_levels, power_levels):
        with pytest.raises(ValueError, match=message):
            levels(*arguments)


def test_a_power_below_one_is_named():
    with pytest.raises(ValueError, match=r"power=0.5: a number of at least 1"):
        power_levels(2.0, 1.0, 3, power=0.5)
