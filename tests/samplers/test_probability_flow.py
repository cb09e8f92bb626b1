"""The probability flow against closed forms: ends, log-densities of a mixture, weights of modes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm import checks
from jaxebm.samplers import probability_flow, probability_flow_log_density

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
MEANS = jnp.array([[-3.0, 0.0], [1.0, 2.0], [4.0, -1.0]])
SCALES, WEIGHTS = jnp.array([0.3, 0.8, 0.5]), jnp.array([0.2, 0.5, 0.3])
PARAMS = (MEANS, SCALES, WEIGHTS)


def log_density_at(params, x, level):
    """A skewed mixture under noise, normalised."""
    means, scales, weights = params
    variances = scales**2 + level**2
    terms = jnp.log(weights) - 0.5 * jnp.sum((x[None] - means) ** 2, axis=1) / variances
    return jax.nn.logsumexp(terms - jnp.log(2 * jnp.pi * variances))


def mixture_at(params, x, level):
    """Its energy, up to a constant that changes with the level: energies need no normaliser."""
    return -log_density_at(params, x, level) + 3.0 / (1 + level)


log_densities_at = jax.jit(jax.vmap(log_density_at, (None, 0, None)))


@functools.partial(jax.jit, static_argnums=1)
def draw(rng_key, n, level):
    key_mode, key_noise = jax.random.split(rng_key)
    mode = jax.random.choice(key_mode, 3, (n,), p=WEIGHTS)
    noise = jax.random.normal(key_noise, (n, 2))
    return MEANS[mode] + jnp.sqrt(SCALES[mode] ** 2 + level**2)[:, None] * noise


def gaussian_at(params, x, level):
    mean, variance = params
    return sum(0.5 * jnp.sum((leaf - mean) ** 2) / (variance + level**2) for leaf in jax.tree.leaves(x))


def test_on_a_gaussian_the_ends_are_the_closed_form_in_every_leaf_and_dtype_at_the_stated_cost():
    calls = []

    def counted(params, x, level):
        jax.debug.callback(lambda: calls.append(None))
        return gaussian_at(params, x, level)

    starts = {"a": jnp.array([[9.0, -4.0]]), "b": jnp.array([12.0], jnp.bfloat16)}
    found = probability_flow(counted, (2.0, 0.7), starts, highest=10.0, lowest=0.01, tolerance=1e-5)
    jax.effects_barrier()
    assert len(calls) == int(found.num_gradients[0])
    shrink = np.sqrt((0.7 + 0.01**2) / (0.7 + 10.0**2))
    chex.assert_trees_all_equal_shapes_and_dtypes(found.positions, starts)
    np.testing.assert_allclose(found.positions["a"], 2 + shrink * (starts["a"] - 2), atol=2e-4)
    np.testing.assert_allclose(float(found.positions["b"][0]), 2 + shrink * 10, rtol=2**-8)


def test_log_densities_of_a_mixture_are_exact_within_the_tolerance():
    lowest, highest = 0.02, 20.0
    x = draw(jax.random.key(1), 50, lowest)
    exact = log_densities_at(PARAMS, x, lowest)
    found = probability_flow_log_density(
        KEY,
        mixture_at,
        PARAMS,
        x,
        lowest=lowest,
        highest=highest,
        log_prior=jax.jit(lambda x: log_density_at(PARAMS, x, highest)),
    )
    np.testing.assert_allclose(found.log_density, exact, atol=2e-3)
    np.testing.assert_array_equal(found.standard_error, np.zeros(50))
    # The Gaussian in its place, which ignores the data's mean and spread: off by what the docstring says.
    noise = np.asarray(found.noise, np.float64)
    plain = -0.5 * np.sum(noise**2, axis=1) / highest**2 - np.log(2 * np.pi * highest**2)
    prior = log_densities_at(PARAMS, found.noise, highest)
    mean = np.asarray(WEIGHTS) @ np.asarray(MEANS)
    spread = np.asarray(WEIGHTS) @ (
        np.sum((np.asarray(MEANS) - mean) ** 2, axis=1) / 2 + np.asarray(SCALES) ** 2
    )
    bound = np.sum(mean**2) / (2 * highest**2) + 2 * spread / highest**2
    assert abs(np.mean(np.asarray(prior) - plain)) < 3 * bound


def test_hutchinson_is_unbiased_and_its_standard_error_is_right():
    x = jnp.tile(jnp.array([[0.5, 1.0]]), (200, 1))  # between modes, where the Hessian is not diagonal
    options = {"lowest": 0.3, "highest": 5.0, "log_prior": jax.jit(lambda x: log_density_at(PARAMS, x, 5.0))}
    found = probability_flow_log_density(
        KEY, mixture_at, PARAMS, x, divergence="hutchinson", num_probes=4, **options
    )
    exact = float(log_density_at(PARAMS, x[0], 0.3))
    values = np.asarray(found.log_density, np.float64)
    assert np.std(values) > 0.01
    assert abs(values.mean() - exact) < 5 * values.std() / np.sqrt(200) + 2e-3
    stated = np.sqrt(np.mean(np.asarray(found.standard_error) ** 2))
    assert stated == pytest.approx(values.std(), rel=0.2)


def test_samples_of_a_mixture_have_its_weights_and_moments():
    n = 2000
    found = probability_flow(
        mixture_at, PARAMS, draw(jax.random.key(2), n, 20.0), highest=20.0, lowest=0.02, tolerance=1e-3
    )
    x = np.asarray(found.positions, np.float64)
    nearest = np.argmin(np.sum((x[:, None] - np.asarray(MEANS)) ** 2, axis=2) / np.asarray(SCALES), axis=1)
    weights = np.asarray(WEIGHTS)
    shares = np.bincount(nearest, minlength=3) / n
    np.testing.assert_array_less(np.abs(shares - weights), 5 * np.sqrt(weights * (1 - weights) / n) + 0.005)
    for mode in range(3):
        members = x[nearest == mode] - np.asarray(MEANS[mode])
        assert np.abs(members.mean(axis=0)).max() < 5 * SCALES[mode] / np.sqrt(len(members)) + 0.01
        assert abs(np.sqrt(np.mean(members**2)) / SCALES[mode] - 1) < 5 / np.sqrt(4 * len(members)) + 0.02


def test_too_few_steps_are_an_error_and_nan_where_no_error_can_be_raised(monkeypatch):
    def run():
        options = {"highest": 10.0, "lowest": 0.01, "tolerance": 1e-6, "max_steps": 3}
        return probability_flow(gaussian_at, (0.0, 1.0), jnp.ones((2, 1)), **options)

    with pytest.raises(RuntimeError, match="max_steps=3: 2 of 2 solutions"):
        run()
    monkeypatch.setattr(checks, "is_traced", lambda value: True)  # as if inside of jit
    assert bool(jnp.all(jnp.isnan(run().positions)))


def test_float32_positions_stay_so_under_x64():
    def run(x):
        return probability_flow_log_density(
            KEY, gaussian_at, (0.0, 1.0), x, lowest=0.1, highest=10.0, divergence="hutchinson"
        )

    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            found = jax.eval_shape(run, jnp.ones((1, 2), dtype))
            assert (found.noise.dtype, found.log_density.dtype) == (dtype, dtype)


def test_without_diffrax_the_error_names_the_extra(hide_package):
    hide_package("diffrax")
    with pytest.raises(ImportError, match=r"probability_flow needs diffrax.*jaxebm\[ode\]"):
        probability_flow(gaussian_at, (0.0, 1.0), jnp.ones((2, 1)), highest=2.0, lowest=1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lowest": 0.0}, ValueError, "lowest=0.0.*greater than 0"),
        ({"lowest": 3.0}, ValueError, "lowest=3.0 is not below highest=2.0"),
        ({"highest": -1.0}, ValueError, "highest=-1.0"),
        ({"tolerance": 0.0}, ValueError, "tolerance=0.0"),
        ({"max_steps": 0}, ValueError, "max_steps=0"),
        ({"divergence": "trace"}, ValueError, "divergence='trace'"),
        ({"num_probes": 0}, ValueError, "num_probes=0"),
        ({"log_prior": 1.0}, TypeError, "log_prior"),
        ({"energy_at": lambda params, x: 0.0}, TypeError, "energy_at"),
        ({"energy_at": lambda params, x, level: x}, ValueError, r"energy_at returned shape \(1,\)"),
        ({"rng_key": jax.random.PRNGKey(0)}, TypeError, "rng_key.*typed key"),
        ({"positions": jnp.zeros((2, 1), int)}, TypeError, "positions has dtype int32"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    accepted = {
        "rng_key": KEY,
        "energy_at": gaussian_at,
        "params": (0.0, 1.0),
        "positions": jnp.zeros((2, 1)),
        "lowest": 1.0,
        "highest": 2.0,
    }
    with pytest.raises(error, match=message):
        probability_flow_log_density(**(accepted | arguments))
