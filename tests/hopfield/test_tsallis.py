"""Entmax against published values, its optimality conditions, and finite differences."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield import tsallis as module
from jaxebm.hopfield.tsallis import entmax, entmax_conjugate, uniform_negentropy

pytestmark = pytest.mark.usefixtures("cheap_compilation")

ALPHAS = [1.0, 1.3, 1.5, 2.0]
SCORES = np.array([-2.0, 0.0, 0.5])
# Compiled whole: eagerly, every small operation is compiled on its own.
probabilities = jax.jit(entmax, static_argnums=(1, 2))
conjugate = jax.jit(entmax_conjugate, static_argnums=(1, 2))


@functools.partial(jax.jit, static_argnums=1)
def jacobian_of(z, alpha):
    return jax.jacfwd(lambda v: entmax(v, alpha))(z)


@functools.partial(jax.jit, static_argnums=1)
def hessian_of(z, alpha):
    return jax.hessian(lambda v: entmax_conjugate(v, alpha))(z)


def random_scores(seed: int, num_rows: int = 2000, num_entries: int = 17) -> np.ndarray:
    """Rows of very different spread, some entries tied."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(num_rows, num_entries)) * np.exp(
        generator.uniform(-3, 3, size=(num_rows, 1))
    )
    scores[::3, 1] = scores[::3, 0]
    return scores


def negentropy(p: np.ndarray, alpha: float) -> np.ndarray:
    """Omega straight from its definition, in NumPy."""
    if alpha == 1:
        return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)
    return (np.sum(p**alpha, axis=-1) - 1) / (alpha * (alpha - 1))


@pytest.mark.parametrize(
    ("alpha", "published"),
    [
        (1.0, np.exp(SCORES) / np.exp(SCORES).sum()),
        (1.5, [0.0, 0.326, 0.674]),
        (2.0, [0.0, 0.25, 0.75]),
    ],
)
def test_published_values(alpha, published):
    np.testing.assert_allclose(entmax(jnp.array(SCORES), alpha), published, atol=5e-4)


@pytest.mark.parametrize("alpha", [*ALPHAS, 3.0])
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 3e-6), (True, 1e-13)])
def test_optimality_conditions(alpha, x64, tolerance):
    """z_i = omega'(p_i) + tau on the support, and z_i <= omega'(0) + tau off it: necessary and sufficient."""
    with jax.enable_x64(x64):
        z = jnp.asarray(random_scores(0), jnp.float64 if x64 else jnp.float32)
        p = probabilities(z, alpha)
        assert p.dtype == z.dtype
        z, p = np.asarray(z, np.float64), np.asarray(p, np.float64)
    assert np.all(p >= 0)
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, atol=10 * tolerance)
    if alpha == 1:
        slope, at_zero = np.log(np.where(p > 0, p, 1.0)), -np.inf
    else:
        slope, at_zero = p ** (alpha - 1) / (alpha - 1), 0.0
    tau = np.where(p == p.max(axis=-1, keepdims=True), z - slope, -np.inf).max(axis=-1, keepdims=True)
    scale = np.maximum(1.0, np.abs(z).max(axis=-1, keepdims=True))
    residual = np.where(p > 1e-30, np.abs(z - slope - tau), np.maximum(z - at_zero - tau, 0.0))
    if alpha == 1:
        residual = np.where(p > 1e-30, residual, 0.0)
    assert np.max(residual / scale) < 10 * tolerance
    if alpha > 1:
        assert 0.2 < np.mean(p == 0) < 0.95  # the rows do exercise both cases


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_bisection_agrees_with_sorting(alpha):
    with jax.enable_x64(True):
        z = jnp.asarray(random_scores(1))
        z = z - jnp.max(z, axis=-1, keepdims=True)
        bisected = module._bisect(jnp.maximum(z, -1 / (alpha - 1)), alpha)
        np.testing.assert_allclose(bisected, entmax(z, alpha), atol=1e-13)


def test_softmax_is_the_limit_at_one():
    z = jnp.asarray(random_scores(2, num_rows=50), jnp.float32)
    softmax = jax.nn.softmax(z, axis=-1)
    np.testing.assert_allclose(probabilities(z, 1.0), softmax, atol=1e-6)
    # To first order the distance is proportional to alpha - 1, and there is no cancellation very close to 1.
    distances = [float(jnp.max(jnp.abs(probabilities(z, 1 + gap) - softmax))) for gap in (2e-2, 2e-3, 1e-9)]
    assert distances[0] < 0.1
    assert distances[1] < 0.15 * distances[0]
    assert distances[2] < 1e-6
    log_partition = jax.nn.logsumexp(z, axis=-1) - np.log(z.shape[-1])
    for alpha in (1.0, 1 + 1e-9):
        np.testing.assert_allclose(conjugate(z, alpha), log_partition, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("alpha", [*ALPHAS, 3.0])
def test_derivatives(alpha):
    """The Jacobian against central differences; its structure; and it is the conjugate's Hessian."""
    width = 1e-6

    @jax.jit
    @jax.vmap
    def derivatives(row):
        steps = width * jnp.eye(6)
        ahead = jax.vmap(lambda step: entmax(row + step, alpha))(steps)
        behind = jax.vmap(lambda step: entmax(row - step, alpha))(steps)
        reverse = jax.jacrev(lambda v: entmax(v, alpha))(row)
        gradient = jax.grad(lambda v: entmax_conjugate(v, alpha))(row)
        return (ahead - behind).T / (2 * width), reverse, gradient

    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(3).normal(size=(20, 6)))
        differences, reverse, gradient = (np.asarray(value) for value in derivatives(z))
        jacobian = np.asarray(jax.vmap(lambda row: jacobian_of(row, alpha))(z))
        hessian = np.asarray(jax.vmap(lambda row: hessian_of(row, alpha))(z))
        p = np.asarray(probabilities(z, alpha))
    np.testing.assert_allclose(jacobian, differences, atol=2e-7)
    np.testing.assert_allclose(jacobian, reverse, atol=1e-14)
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-14)
    np.testing.assert_allclose(jacobian.sum(axis=-1), 0.0, atol=1e-13)
    assert np.linalg.eigvalsh(jacobian).min() > -1e-13
    np.testing.assert_allclose(gradient, p, atol=1e-15)
    np.testing.assert_allclose(hessian, jacobian, atol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_third_derivative_is_the_slope_of_the_jacobian(alpha):
    with jax.enable_x64(True):
        z = jnp.array([0.3, -0.4, 0.1, -5.0, -jnp.inf])
        direction = jnp.array([0.5, -1.0, 0.2, 0.7, 0.0])
        slope = jax.jit(lambda v, v_dot: jax.jvp(lambda w: jacobian_of(w, alpha), (v,), (v_dot,))[1])(
            z, direction
        )
        ahead, behind = (jacobian_of(z + width * direction, alpha) for width in (1e-6, -1e-6))
        difference = (ahead - behind) / 2e-6
        np.testing.assert_allclose(slope, difference, atol=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_conjugate_is_the_maximum(alpha):
    """Fenchel-Young: no other point of the simplex does better, and entmax attains it."""
    generator = np.random.default_rng(4)
    z = generator.normal(size=(40, 5)) * 2
    rivals = generator.dirichlet(np.full(5, 0.5), size=(500,))
    uniform = negentropy(np.full(5, 0.2), alpha)
    with jax.enable_x64(True):
        phi = np.asarray(conjugate(jnp.asarray(z), alpha))
        best = np.asarray(probabilities(jnp.asarray(z), alpha))
        np.testing.assert_allclose(float(uniform_negentropy(5, alpha)), uniform, rtol=1e-14)
    np.testing.assert_allclose(phi, np.sum(best * z, -1) - negentropy(best, alpha) + uniform, atol=1e-13)
    assert np.all(phi[:, None] >= z @ rivals.T - negentropy(rivals, alpha)[None, :] + uniform - 1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_conjugate_is_convex_shifts_and_is_zero_at_zero(alpha):
    with jax.enable_x64(True):
        left, right = random_scores(5), random_scores(6)

        def phi(z):
            return np.asarray(conjugate(z, alpha))

        for share in (0.1, 0.5, 0.8):
            chord = share * phi(left) + (1 - share) * phi(right)
            assert np.all(phi(share * left + (1 - share) * right) <= chord + 1e-12)
        np.testing.assert_allclose(phi(left + 7.5), phi(left) + 7.5, atol=1e-12)
        np.testing.assert_allclose(probabilities(left + 7.5, alpha), probabilities(left, alpha), atol=1e-12)
        assert np.all((phi(left) >= left.mean(-1) - 1e-12) & (phi(left) <= left.max(-1) + 1e-12))
        for count in (1, 3, 1000):
            np.testing.assert_allclose(phi(np.zeros(count)), 0.0, atol=1e-14)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_huge_scores_stay_finite(alpha):
    z = np.array([[1e4, -1e4, 9999.0], [3e38, -3e38, 0.0], [-1e30, -1e30, -1e30]], np.float32)
    p = np.asarray(probabilities(z, alpha))
    near = np.asarray(probabilities(np.array([[0.0, -1.0]], np.float32), alpha))
    np.testing.assert_allclose(p[0], [near[0, 0], 0.0, near[0, 1]], atol=1e-6)
    np.testing.assert_allclose(p[1:], [[1.0, 0.0, 0.0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(conjugate(z, alpha), z.max(axis=-1), atol=1.2)
    assert all(np.all(np.isfinite(jacobian_of(row, alpha))) for row in z)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_masked_entries_are_as_if_absent(alpha):
    z = np.array([0.3, -np.inf, -0.2, 0.1, -np.inf], np.float32)
    kept = np.array([0, 2, 3])
    p = np.asarray(probabilities(z, alpha))
    np.testing.assert_allclose(p[kept], probabilities(z[kept], alpha), atol=1e-7)
    assert p[1] == p[4] == 0.0
    slope = np.where(p > 0, np.where(p > 0, p, 1.0) ** (2 - alpha), 0.0)
    expected = np.diag(slope) - np.outer(slope, slope) / slope.sum()
    np.testing.assert_allclose(hessian_of(z, alpha), expected, atol=1e-6)
    # The masked entries still count in K: Phi differs by the two entropies of the uniform.
    difference = uniform_negentropy(5, alpha) - uniform_negentropy(3, alpha)
    np.testing.assert_allclose(conjugate(z, alpha), conjugate(z[kept], alpha) + difference, atol=1e-6)
    np.testing.assert_array_equal(probabilities(np.array([-np.inf, -3.0], np.float32), alpha), [0.0, 1.0])

    def through_mask(values):
        return entmax(jnp.where(np.array([True, False, True]), values, -jnp.inf), alpha)[0]

    gradient = np.asarray(jax.jit(jax.grad(through_mask))(np.array([0.1, 0.2, 0.3], np.float32)))
    assert np.all(np.isfinite(gradient))
    assert gradient[1] == 0.0


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_one_memory_among_thousands_gets_everything(alpha):
    """Entries behind by more than 1 / (alpha - 1) get exactly 0, however many they are."""
    z = jnp.full(5000, -1.01 / (alpha - 1)).at[1234].set(0.0)
    np.testing.assert_array_equal(probabilities(z, alpha), jnp.zeros(5000).at[1234].set(1.0))
    np.testing.assert_allclose(probabilities(jnp.zeros(5000), alpha), 1 / 5000, rtol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_dtype_is_kept(alpha, dtype):
    z = jnp.asarray(random_scores(7, num_rows=30), dtype)
    p, phi = probabilities(z, alpha), conjugate(z, alpha)
    assert (p.dtype, phi.dtype) == (dtype, dtype)
    np.testing.assert_allclose(p.astype(jnp.float32), probabilities(z.astype(jnp.float32), alpha), atol=4e-3)
    gradient = jax.jit(jax.grad(lambda v: entmax_conjugate(v, alpha).astype(jnp.float32).sum()))(z)
    assert gradient.dtype == dtype
    chex.assert_tree_all_finite(gradient)


def test_integers_become_floats():
    assert entmax(jnp.array([0, 1]), 2.0).dtype == jnp.float32


@pytest.mark.parametrize("alpha", ALPHAS)
def test_axis_and_vmap(alpha):
    z = np.random.default_rng(8).normal(size=(3, 4, 5)).astype(np.float32)
    for axis in (0, -2):
        p = np.asarray(probabilities(z, alpha, axis))
        np.testing.assert_allclose(p.sum(axis=axis), 1.0, atol=1e-6)
        last = np.moveaxis(z, axis, -1)
        np.testing.assert_allclose(np.moveaxis(p, axis, -1), probabilities(last, alpha), atol=1e-6)
        np.testing.assert_allclose(conjugate(z, alpha, axis), conjugate(last, alpha), atol=1e-6)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda v: entmax_conjugate(v, alpha))))(z[0])
    np.testing.assert_allclose(value, conjugate(z[0], alpha), atol=1e-6)
    np.testing.assert_allclose(gradient, probabilities(z[0], alpha), atol=1e-6)


def test_new_scores_do_not_recompile():
    @jax.jit
    @chex.assert_max_traces(1)
    def total(z):
        return entmax(z, 1.5), entmax_conjugate(z, 1.3)

    total(jnp.zeros(4))
    total(jnp.arange(4.0))


@pytest.mark.parametrize("function", [entmax, entmax_conjugate])
def test_errors(function):
    for alpha in (0.9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"alpha=.*at least 1"):
            function(jnp.zeros(3), alpha)
    with pytest.raises(TypeError, match=r"alpha=.*plain number"):
        jax.jit(function)(jnp.zeros(3), 1.5)
    with pytest.raises(ValueError, match=r"axis=1 of an array of shape \(3,\)"):
        function(jnp.zeros(3), 1.5, 1)
    for shape in ((), (2, 0)):
        with pytest.raises(ValueError, match="an axis with at least one entry is needed"):
            function(jnp.zeros(shape), 1.5)


def test_uniform_negentropy():
    counts = jnp.array([1.0, 2.0, 10.0])
    np.testing.assert_allclose(uniform_negentropy(counts, 1.0), -np.log(counts), rtol=1e-6)
    np.testing.assert_allclose(uniform_negentropy(counts, 2.0), [0.0, -0.25, -0.45], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(uniform_negentropy)(4), uniform_negentropy(4))
    with pytest.raises(ValueError, match="count=0"):
        uniform_negentropy(0)
