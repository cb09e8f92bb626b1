"""Predictor-corrector sampling: its exact law on a Gaussian, the true law of a mixture, its cost."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers import geometric_levels, predictor_corrector

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CHAINS = 20_000
LEVELS = np.array([8.0, 4.0, 1.5, 0.5])


def gaussian_at(params, x, level):
    """Data from N(mean, scale^2), under noise."""
    mean, scale = params
    return 0.5 * jnp.sum((x - mean) ** 2) / (scale**2 + level**2)


def law(mean, variance, levels, *, predictor, num_corrector_steps, r, denoise):
    """Mean offset and variance at the end, moment by moment, from N(mean + 1, first level^2 + variance)."""
    offset, spread = 1.0, levels[0] ** 2 + variance
    for before, after in itertools.pairwise(levels):
        tau = before * (before - after) if predictor == "flow" else before**2 - after**2
        shrink = 1 - tau / (variance + before**2)
        noise = tau * {"reverse_diffusion": 1.0, "ancestral": after**2 / before**2, "flow": 0.0}[predictor]
        offset, spread = shrink * offset, shrink**2 * spread + noise
        step = 2 * r**2 * after**2
        shrink = 1 - step / (variance + after**2)
        for _ in range(num_corrector_steps):
            offset, spread = shrink * offset, shrink**2 * spread + 2 * step
    if denoise:
        shrink = 1 - levels[-1] ** 2 / (variance + levels[-1] ** 2)
        offset, spread = shrink * offset, shrink**2 * spread
    return offset, spread


@pytest.mark.parametrize(
    ("predictor", "num_corrector_steps", "denoise"),
    [("reverse_diffusion", 2, True), ("ancestral", 1, False), ("flow", 0, True)],
)
def test_on_a_gaussian_the_law_is_the_closed_form(predictor, num_corrector_steps, denoise):
    mean, scale, r = -2.0, 0.7, 0.3
    starts = mean + 1 + np.hypot(LEVELS[0], scale) * jax.random.normal(jax.random.key(1), (NUM_CHAINS, 1))
    options = {"predictor": predictor, "num_corrector_steps": num_corrector_steps, "denoise": denoise}
    x = predictor_corrector(
        jax.random.key(0), gaussian_at, (mean, scale), starts, LEVELS, signal_to_noise=r, **options
    )
    offset, variance = law(mean, scale**2, LEVELS, r=r, **options)
    x = np.asarray(x, np.float64)[:, 0] - mean
    assert abs(x.mean() - offset) < 5 * np.sqrt(variance / NUM_CHAINS)
    assert abs(np.mean((x - offset) ** 2) - variance) < 5 * variance * np.sqrt(2 / NUM_CHAINS)


def test_the_closed_form_tends_to_the_data_and_correctors_remove_errors():
    def error(num_levels, num_corrector_steps, predictor="reverse_diffusion"):
        _, variance = law(
            0.0,
            0.49,
            np.geomspace(8.0, 0.05, num_levels),
            predictor=predictor,
            num_corrector_steps=num_corrector_steps,
            r=0.3,
            denoise=False,
        )
        return abs(variance / (0.49 + 0.05**2) - 1)

    assert error(400, 0) < error(100, 0) / 3 < error(25, 0) / 9
    assert error(400, 0, "ancestral") < error(100, 0, "ancestral") / 3
    assert error(1600, 0) < 0.02
    # Without noise the error is that of Euler's method, and small with few levels.
    assert error(100, 0, "flow") < error(25, 0, "flow") / 3
    assert error(25, 0, "flow") < error(25, 0) / 2
    assert error(25, 4) < error(25, 0) / 2
    # Ancestral steps are exact where all data are one point.
    _, variance = law(0.0, 0.0, LEVELS, predictor="ancestral", num_corrector_steps=0, r=0.3, denoise=False)
    assert variance == pytest.approx(LEVELS[-1] ** 2)


MEANS, SCALES, WEIGHTS = np.array([-3.0, 1.0, 4.0]), np.array([0.3, 0.5, 0.2]), np.array([0.2, 0.5, 0.3])


def mixture_at(params, x, level):
    """A skewed mixture under noise: the same means and weights, each variance raised by level^2."""
    means, scales, weights = params
    variances = scales**2 + level**2
    return -jax.nn.logsumexp(jnp.log(weights) - 0.5 * jnp.log(variances) - 0.5 * (x - means) ** 2 / variances)


def test_on_a_skewed_mixture_weights_and_moments_are_those_of_the_data():
    params = tuple(map(jnp.asarray, (MEANS, SCALES, WEIGHTS)))
    n = 4000
    levels = geometric_levels(30.0, 0.02, 150)
    starts = 30.0 * jax.random.normal(jax.random.key(1), (n,))
    x = predictor_corrector(jax.random.key(0), mixture_at, params, starts, levels)
    x = np.asarray(x, np.float64)
    nearest = np.argmin(np.abs(x[:, None] - MEANS), axis=1)
    shares = np.bincount(nearest, minlength=3) / n
    # 5 standard errors of each share, and .01 for 150 levels.
    np.testing.assert_array_less(np.abs(shares - WEIGHTS), 5 * np.sqrt(WEIGHTS * (1 - WEIGHTS) / n) + 0.01)
    for mode in range(3):
        members = x[nearest == mode]
        standard_error = SCALES[mode] / np.sqrt(len(members))
        assert abs(members.mean() - MEANS[mode]) < 5 * standard_error + 0.03
        assert abs(members.std() / SCALES[mode] - 1) < 5 / np.sqrt(2 * len(members)) + 0.1


@pytest.mark.parametrize(("num_corrector_steps", "denoise"), [(0, False), (2, True)])
def test_its_cost_in_gradients_is_the_stated_one(num_corrector_steps, denoise):
    seen = []

    def counted(params, x, level):
        jax.debug.callback(lambda level: seen.append(float(level)), level)
        return gaussian_at((0.0, 1.0), x, level)

    options = {"num_corrector_steps": num_corrector_steps, "denoise": denoise}
    predictor_corrector(jax.random.key(0), counted, None, jnp.ones((1, 1)), LEVELS, **options)
    jax.effects_barrier()
    assert len(seen) == (len(LEVELS) - 1) * (1 + num_corrector_steps) + denoise
    assert set(seen) <= set(LEVELS.tolist())


def test_pytrees_and_dtypes_are_kept_and_new_numbers_run_the_same_program():
    traces = []

    def traced(params, x, level):
        traces.append(None)
        return 0.5 * params * (jnp.sum(x["a"] ** 2) + jnp.sum(x["b"] ** 2)) / level**2

    positions = {"a": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(3)}
    run = functools.partial(predictor_corrector, jax.random.key(0), traced)
    end = run(jnp.array(1.0), positions, np.array([2.0, 1.0]))
    chex.assert_trees_all_equal_shapes_and_dtypes(end, positions)
    chex.assert_tree_all_finite(end)
    first = len(traces)
    run(jnp.array(2.0), positions, np.array([3.0, 1.5]), signal_to_noise=0.2)
    assert len(traces) == first
    with jax.enable_x64(True):
        for dtype in ("float16", "float32", "float64"):
            positions = jnp.ones((2, 2), dtype)
            run = functools.partial(predictor_corrector, energy_at=gaussian_at, levels=LEVELS)
            found = jax.eval_shape(run, jax.random.key(0), params=(0.0, 1.0), positions=positions)
            assert found.dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"levels": np.array([1.0, 2.0])}, ValueError, "levels.*must fall"),
        ({"levels": np.array([1.0, 0.0])}, ValueError, "levels.*greater than 0"),
        ({"levels": np.array([1.0]), "denoise": False}, ValueError, r"levels has shape \(1,\).*at least 2"),
        ({"levels": "many"}, TypeError, "levels"),
        ({"predictor": "euler"}, ValueError, "predictor='euler'"),
        ({"num_corrector_steps": -1}, ValueError, "num_corrector_steps=-1"),
        ({"signal_to_noise": 1.5}, ValueError, "signal_to_noise=1.5"),
        ({"energy_at": lambda x: 0.0}, TypeError, r"energy_at.*params, x, level"),
        ({"rng_key": jax.random.PRNGKey(0)}, TypeError, "rng_key.*typed key"),
        ({"denoise": "yes"}, TypeError, "denoise='yes'"),
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
    }
    with pytest.raises(error, match=message):
        predictor_corrector(**(accepted | arguments))


def test_one_level_gives_the_expected_clean_example():
    positions = jnp.array([[3.0], [-1.0]])
    x = predictor_corrector(jax.random.key(0), gaussian_at, (0.5, 2.0), positions, np.array([1.0]))
    np.testing.assert_allclose(x, 0.5 + (positions - 0.5) * 4 / 5, rtol=1e-6)
