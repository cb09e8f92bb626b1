"""What every analytic target shares, on one with known answers: independent logarithms of gamma variables.

E(x) = sum_i rate_i exp(x_i) - shape_i x_i has log Z = sum_i log Gamma(shape_i) - shape_i log(rate_i). Both
coordinates are skewed, in different ways, and Z is not 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import digamma, gammaln, polygamma

from jaxebm.energies.target import LOG_TWO_PI, AnalyticTarget, array, check_shape, compiled_sampler, scalar

pytestmark = pytest.mark.usefixtures("cheap_compilation")


class LogGamma(NamedTuple):
    rate: jax.Array
    shape: jax.Array


PARAMS = LogGamma(rate=array([2.0, 0.5]), shape=array([1.5, 3.0]))
OTHER_PARAMS = LogGamma(rate=array([1.0, 4.0]), shape=array([2.5, 1.2]))
POINTS = array([[0.0, 0.0], [-2.0, 1.5], [1.0, -3.0]])


def energy(params, x):
    return jnp.sum(params.rate * jnp.exp(x) - params.shape * x)


def draw(rng_key, params, num_samples):
    """Returns independent draws."""
    return jnp.log(jax.random.gamma(rng_key, params.shape[None], (num_samples, 2)) / params.rate[None])


TARGET = AnalyticTarget(
    energy,
    PARAMS,
    log_partition=lambda params: jnp.sum(gammaln(params.shape) - params.shape * jnp.log(params.rate)),
    sample=compiled_sampler(draw),
    moments=lambda params: (
        digamma(params.shape) - jnp.log(params.rate),
        jnp.diag(polygamma(1, params.shape)),
    ),
    dimension=2,
)


def test_score_is_the_downhill_gradient():
    expected = np.asarray(PARAMS.shape)[None] - np.asarray(PARAMS.rate)[None] * np.exp(POINTS)
    np.testing.assert_allclose(jax.vmap(TARGET.score)(POINTS), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(TARGET.score)(POINTS), jax.vmap(jax.grad(TARGET.log_density))(POINTS), rtol=1e-6
    )


def test_log_density_is_normalised_for_all_params():
    """It is -E - log Z, exp of it integrates to one, and so E_p[d log p / d params] = 0."""
    expected = -float(energy(PARAMS, POINTS[1])) - float(TARGET.log_partition(PARAMS))
    np.testing.assert_allclose(TARGET.log_density(POINTS[1]), expected, rtol=1e-6)

    # The trapezoid rule on smooth functions that vanish at both ends; exp(-1.2 * 18) = 4e-10 lies outside.
    axis = jnp.linspace(-18.0, 6.0, 241)
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    cell = float(axis[1] - axis[0]) ** 2

    @jax.jit
    def density_and_gradient(params):
        def log_density(params, x):
            return TARGET._replace(params=params).log_density(x)

        log_p, gradient = jax.vmap(jax.value_and_grad(log_density), in_axes=(None, 0))(params, grid)
        return jnp.exp(log_p), gradient

    for params in (PARAMS, OTHER_PARAMS):
        density, gradient = density_and_gradient(params)
        masses = np.asarray(density, np.float64) * cell
        np.testing.assert_allclose(masses.sum(), 1.0, atol=2e-5)
        for leaf in gradient:
            assert np.abs(leaf).max() > 1.0
            np.testing.assert_allclose(masses @ np.asarray(leaf, np.float64), 0.0, atol=5e-5)


def test_target_binds_the_params():
    x = POINTS[1]
    assert float(TARGET.target(x)) == float(energy(PARAMS, x))
    other = TARGET._replace(params=OTHER_PARAMS)
    assert float(other.target(x)) == float(energy(OTHER_PARAMS, x)) != float(TARGET.target(x))
    np.testing.assert_allclose(jax.grad(other.target)(x), -other.score(x), rtol=1e-6)
    # Inside of jit the params may be traced: a gradient reaches them through the bound energy.
    gradient = jax.jit(jax.grad(lambda params: TARGET._replace(params=params).target(x)))(PARAMS)
    np.testing.assert_allclose(gradient.rate, np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(gradient.shape, -x, rtol=1e-6)


def test_arrays_have_the_default_width():
    np.testing.assert_allclose(LOG_TWO_PI, np.log(2 * np.pi), rtol=1e-12)
    for value in (1, 2.5, [1, 2], np.ones(3, np.float64), np.ones((2, 2), np.int32)):
        assert array(value).dtype == jnp.float32
        np.testing.assert_array_equal(array(value), value)
    assert (scalar("width", 3).shape, scalar("width", 3).dtype) == ((), jnp.float32)
    with jax.enable_x64(True):
        assert array([1, 2]).dtype == scalar("width", np.float32(1.0)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("value", "shape"),
    [(1.0, ()), ([1.0, 2.0], (2,)), (np.zeros((0, 3)), (None, 3)), (np.zeros((4, 4)), (None, None))],
)
def test_fitting_shapes_pass(value, shape):
    check_shape("mean", value, shape, "another")
    jax.jit(lambda traced: check_shape("mean", traced, shape, "another"))(array(value))


@pytest.mark.parametrize(
    ("value", "shape"),
    [(1.0, (None,)), ([1.0], ()), (np.zeros(3), (2,)), (np.zeros((3, 2)), (None, 3)), (np.zeros(9), (3, 3))],
)
def test_other_shapes_are_named(value, shape):
    message = rf"^mean has shape \({', '.join(map(str, np.shape(value)))},?\): \(d,\) is needed\."
    with pytest.raises(ValueError, match=message):
        check_shape("mean", value, shape, "(d,)")
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda traced: check_shape("mean", traced, shape, "(d,)"))(array(value))


def test_scalar_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"^width has shape \(1,\): a scalar, shape \(\), is needed\.$"):
        scalar("width", [1.0])


def test_compiled_sampler_traces_once_for_each_number_of_samples():
    traced = []

    def counted(rng_key, params, num_samples, num_columns=1):
        """Returns uniform columns."""
        traced.append((num_samples, num_columns))
        return params.rate[0] * jax.random.uniform(rng_key, (num_samples, num_columns))

    sample = compiled_sampler(counted, static=("num_columns",))
    assert (sample.__name__, sample.__doc__) == ("counted", "Returns uniform columns.")
    first = sample(jax.random.key(0), PARAMS, 3)
    np.testing.assert_allclose(first, 2.0 * jax.random.uniform(jax.random.key(0), (3, 1)), rtol=1e-6)
    assert np.all(sample(jax.random.key(1), PARAMS, 3) != first)  # another key, the same program
    np.testing.assert_allclose(sample(jax.random.key(0), OTHER_PARAMS, 3), first / 2.0, rtol=1e-6)
    np.testing.assert_array_equal(sample(jax.random.key(0), PARAMS, num_samples=3), first)
    assert traced == [(3, 1)]
    assert sample(jax.random.key(0), PARAMS, 4).shape == (4, 1)
    assert sample(jax.random.key(0), PARAMS, 4, num_columns=2).shape == (4, 2)
    sample(jax.random.key(2), OTHER_PARAMS, 4, num_columns=2)
    assert traced == [(3, 1), (4, 1), (4, 2)]

    for num_samples in (0, -1, 2.0, True, None, array(3)):
        with pytest.raises(ValueError, match="num_samples"):
            sample(jax.random.key(0), PARAMS, num_samples)
    assert len(traced) == 3  # refused before anything is compiled


def test_compiled_sampler_draws_from_the_target():
    """Mean and variance of each coordinate within five standard errors of the exact ones."""
    count = 20_000
    samples = np.asarray(TARGET.sample(jax.random.key(0), PARAMS, count), np.float64)
    assert samples.shape == (count, TARGET.dimension)
    mean, covariance = (np.asarray(moment) for moment in TARGET.moments(PARAMS))
    variance = np.diag(covariance)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * np.sqrt(variance / count))
    fourth = 3 * variance**2 + np.asarray(polygamma(3, PARAMS.shape))
    spread = np.sqrt((fourth - variance**2) / count)
    assert np.all(np.abs(samples.var(axis=0) - variance) < 5 * spread)
