"""The kernel Stein discrepancy against automatic derivatives of its kernel and its exact expectations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.analytic import skewed
from jaxebm.evaluation.chains.stein import kernel_stein_discrepancy

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def crooked(params, x):
    """No symmetry, and a score that is no linear function."""
    return params * jnp.sum(x**4) + jnp.sum(jnp.sin(x) * jnp.arange(1.0, 4.0)) + x[0] * x[1]


def slow_stein(energy, params, samples, scale, exponent):
    """The definition, every derivative of the kernel by automatic differentiation."""

    def kernel(x, y):
        return (scale**2 + jnp.sum((x - y) ** 2)) ** exponent

    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def u(x, y):
        s, t = (-jax.grad(energy, argnums=1)(params, at) for at in (x, y))
        trace = jnp.trace(jax.jacfwd(jax.grad(kernel, argnums=0), argnums=1)(x, y))
        return s @ t * kernel(x, y) + s @ jax.grad(kernel, 1)(x, y) + t @ jax.grad(kernel, 0)(x, y) + trace

    matrix = np.asarray(jax.jit(u)(samples, samples), np.float64)
    n = len(matrix)
    return (matrix.sum() - np.trace(matrix)) / (n * (n - 1)), matrix.mean()


@pytest.mark.parametrize(("scale", "exponent", "block_size"), [(1.0, -0.5, 256), (0.6, -0.3, 3)])
def test_equals_the_slow_transcription_in_blocks_of_any_size(scale, exponent, block_size):
    samples = jax.random.normal(jax.random.key(0), (7, 3))
    found = kernel_stein_discrepancy(
        crooked, 0.7, samples, scale=scale, exponent=exponent, block_size=block_size
    )
    u_statistic, v_statistic = slow_stein(crooked, 0.7, samples, scale, exponent)
    assert float(found.u_statistic) == pytest.approx(u_statistic, rel=2e-5)
    assert float(found.v_statistic) == pytest.approx(v_statistic, rel=2e-5)
    assert found.v_statistic > 0


def test_trees_are_flattened():
    samples = jax.random.normal(jax.random.key(0), (7, 3))

    def of_tree(params, x):
        return crooked(params, jnp.concatenate([x["a"].reshape(-1), x["b"][None]]))

    tree = {"a": samples[:, :2].reshape(7, 2, 1), "b": samples[:, 2]}
    found, expected = (
        kernel_stein_discrepancy(energy, 0.7, x) for energy, x in ((of_tree, tree), (crooked, samples))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


REPLICATES, COUNT = 1000, 8


def close_to_mean(values, expected):
    values = np.asarray(values, np.float64)
    return abs(values.mean() - expected) < 5 * values.std(ddof=1) / np.sqrt(len(values))


def test_expectation_for_a_shifted_gaussian():
    """KSD^2 = E (s_p - s_q)(x) k(x, x') (s_p - s_q)(x'), and for N(m, 1) under N(0, 1) that is m^2 E k.

    x - x' = sqrt(2) z, so E k is a one-dimensional Gauss-Hermite sum. At m = 0 all of it vanishes.
    """
    shift, scale, exponent = 0.8, 0.7, -0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    expected_kernel = weights @ (scale**2 + 2 * nodes**2) ** exponent / np.sqrt(2 * np.pi)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def discrepancy(x, mean):
        def energy(params, x):
            return 0.5 * jnp.sum((x - params) ** 2)

        return kernel_stein_discrepancy(energy, mean, x, scale=scale, exponent=exponent)

    x = jax.random.normal(jax.random.key(1), (REPLICATES, COUNT, 1))
    shifted, exact = discrepancy(x, shift), discrepancy(x, 0.0)
    assert close_to_mean(shifted.u_statistic, shift**2 * expected_kernel)
    assert close_to_mean(exact.u_statistic, 0.0)
    # E u(x, x) = E s^2 c^(2 beta) - 2 beta c^(2 beta - 2): the bias of V, n times.
    diagonal = scale ** (2 * exponent) - 2 * exponent * scale ** (2 * exponent - 2)
    assert close_to_mean(exact.v_statistic, diagonal / COUNT)
    mixed = diagonal + shift**2 * scale ** (2 * exponent) + (COUNT - 1) * shift**2 * expected_kernel
    assert close_to_mean(shifted.v_statistic, mixed / COUNT)


def test_zero_for_exact_samples_of_a_skewed_target_and_not_for_its_mirror():
    target = skewed()
    x = target.sample(jax.random.key(2), target.params, REPLICATES * COUNT)
    x = x.reshape(REPLICATES, COUNT, -1)
    discrepancy = jax.jit(jax.vmap(partial(kernel_stein_discrepancy, target.energy, target.params)))
    assert close_to_mean(discrepancy(x).u_statistic, 0.0)
    mirrored = np.asarray(discrepancy(-x).u_statistic, np.float64)
    assert mirrored.mean() > 10 * mirrored.std() / np.sqrt(REPLICATES)


def test_bad_input_is_refused():
    run = partial(kernel_stein_discrepancy, crooked, 0.7)
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"samples holds 1 point: at least 2"):
        run(x[:1])
    with pytest.raises(ValueError, match="samples holds 1 non-finite"):
        run(x.at[0, 0].set(jnp.inf))
    with pytest.raises(TypeError, match="samples has dtype int32"):
        run(jnp.ones((4, 3), int))
    with pytest.raises(ValueError, match=r"scale=0"):
        run(x, scale=0.0)
    for exponent in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"exponent={exponent}"):
            run(x, exponent=exponent)
    with pytest.raises(ValueError, match="block_size=0"):
        run(x, block_size=0)
    with pytest.raises(ValueError, match="returned shape"):
        kernel_stein_discrepancy(lambda params, x: x, None, x)


def bowl(width, x):
    return 0.5 * jnp.sum(jnp.square(x / width))


def test_the_discrepancy_at_any_scale():
    """u of positions in units of a is a^(2 beta - 2) u; at beta near 0 that is in range up to 1e18."""
    samples = jax.random.normal(jax.random.key(0), (7, 3))
    plain = kernel_stein_discrepancy(bowl, 1.0, samples, exponent=-0.01)
    for a in (2.0**60, 2.0**-60):
        scaled = kernel_stein_discrepancy(bowl, a, samples * a, scale=a, exponent=-0.01)
        for found, expected in zip(scaled, plain, strict=True):
            assert float(found) * a**2.02 == pytest.approx(float(expected), rel=1e-4)
    # A wide sample of a density of width 1: only the scores count, u = x x' k, and k = 1 / |x - x'|.
    far = np.asarray(samples, np.float64) * 1e17
    found = kernel_stein_discrepancy(bowl, 1.0, far.astype(np.float32))
    apart = np.linalg.norm(far[:, None] - far, axis=2) + np.diag(np.full(7, np.inf))
    assert float(found.u_statistic) == pytest.approx((far @ far.T / apart).sum() / 42, rel=1e-4)


def test_samples_that_coincide():
    """All distances 0: u = |s|^2 c^(2 beta) - 2 beta D c^(2 beta - 2) for every pair."""
    found = kernel_stein_discrepancy(bowl, 1.0, jnp.full((7, 3), 2.0), scale=2.0)
    np.testing.assert_allclose(found, 12 / 2 + 3 / 8, rtol=1e-6)


def test_bad_numbers_are_refused_by_name():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="scale has shape"):
        kernel_stein_discrepancy(bowl, 1.0, x, scale=jnp.ones(2))
    with pytest.raises(TypeError, match="exponent='a'"):
        kernel_stein_discrepancy(bowl, 1.0, x, exponent="a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="energy is of type str"):
        kernel_stein_discrepancy("bowl", 1.0, x)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_narrow_samples_under_x64(dtype):
    with jax.enable_x64(True):
        samples = jax.random.normal(jax.random.key(0), (7, 3)).astype(dtype)
        found = kernel_stein_discrepancy(bowl, 1.0, samples)
        expected = slow_stein(bowl, 1.0, samples.astype(jnp.float64), 1.0, -0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-3 if dtype == jnp.float16 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("outside", [np.nan, np.inf])
def test_a_sample_without_an_energy_has_no_score(outside):
    """Where the energy is a constant NaN or infinity its derivative is 0, which would be that of a mode."""

    def half(params, x):
        return jnp.where(x[0] < 0, params, 0.5 * jnp.sum(x**2))

    x = jax.random.normal(jax.random.key(0), (50, 1))
    assert np.isnan(kernel_stein_discrepancy(half, outside, x).u_statistic)
    assert np.isfinite(kernel_stein_discrepancy(half, outside, jnp.abs(x)).u_statistic)
