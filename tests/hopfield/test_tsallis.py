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

ALPHAS = [1.0, 1.3, 1.5, 2.0, 3.0]
SCORES = np.array([-2.0, 0.0, 0.5])


def at_all_alphas(function):
    """One program for all alphas: what takes the time here is to compile, and few shapes are used."""
    return jax.jit(lambda *arrays: {alpha: function(*arrays, alpha) for alpha in ALPHAS})


solve = at_all_alphas(lambda z, alpha: (entmax(z, alpha), entmax_conjugate(z, alpha)))


@at_all_alphas
def differentiate(z, alpha):
    """Of every row: the Jacobian forwards and in reverse, the conjugate's gradient and its Hessian."""

    def of_row(row):
        def p(v):
            return entmax(v, alpha)

        def phi(v):
            return entmax_conjugate(v, alpha)

        return jax.jacfwd(p)(row), jax.jacrev(p)(row), jax.grad(phi)(row), jax.hessian(phi)(row)

    return jax.vmap(of_row)(z)


def probabilities(z, alpha):
    return np.asarray(solve(z)[alpha][0])


def conjugate(z, alpha):
    return np.asarray(solve(z)[alpha][1])


def padded(rows, dtype):
    """A few short rows in the shape of random_scores, masked entries behind them."""
    z = np.full((NUM_ROWS, NUM_ENTRIES), -np.inf)
    z[:, 0] = 0.0
    z[: len(rows), : len(rows[0])] = rows
    return z.astype(dtype)


NUM_ROWS, NUM_ENTRIES = 400, 17


def random_scores(seed: int, num_rows: int = NUM_ROWS, num_entries: int = NUM_ENTRIES) -> np.ndarray:
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
    p = probabilities(padded([SCORES], np.float32), alpha)
    np.testing.assert_allclose(p[0, :3], published, atol=5e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
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


def test_bisection_agrees_with_newton():
    with jax.enable_x64(True):
        z = jnp.asarray(random_scores(1))
        z = z - jnp.max(z, axis=-1, keepdims=True)

        @jax.jit
        def bisected(z):
            return {alpha: module._bisect(jnp.maximum(z, -1 / (alpha - 1)), alpha) for alpha in (1.3, 2.0)}

        for alpha, p in bisected(z).items():
            np.testing.assert_allclose(p, probabilities(z, alpha), atol=1e-13)


def test_newton_steps_are_few():
    """Scores that fall geometrically or evenly, huge or hardly apart; and another row's need changes none."""
    falling = -(np.array([0.5, 0.9, 0.97])[:, None] ** np.arange(200))
    even = -np.linspace(0, 1, 200) * np.array([1e-3, 1.0, 30.0])[:, None]
    z = np.concatenate([falling, -falling, even]).astype(np.float32)

    def solved(z, alpha, most_steps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_MOST_STEPS", most_steps)
            return entmax(z, alpha)

    @jax.jit
    def compared(z):
        alone = jax.lax.map(lambda row: (entmax(row, 1.3), entmax(row, 2.0)), z)
        return alone, [(entmax(z, alpha), solved(z, alpha, 12)) for alpha in (1.3, 2.0)]

    alone, together = compared(z)
    for row_by_row, (all_rows, cut_short) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(all_rows, cut_short)
        np.testing.assert_allclose(all_rows, row_by_row, rtol=1e-5, atol=1e-7)


def test_softmax_is_the_limit_at_one():
    z = jnp.asarray(random_scores(2), jnp.float32)
    gaps = (0.0, 2e-2, 2e-3, 1e-9)

    @jax.jit
    def near_one(z):
        return [entmax(z, 1 + gap) for gap in gaps], entmax_conjugate(z, 1 + gaps[-1])

    ps, phi = near_one(z)
    softmax = jax.nn.softmax(z, axis=-1)
    # To first order the distance is proportional to alpha - 1, and there is no cancellation very close to 1.
    distances = [float(jnp.max(jnp.abs(p - softmax))) for p in ps]
    assert distances[0] < 1e-6
    assert distances[1] < 0.1
    assert distances[2] < 0.15 * distances[1]
    assert distances[3] < 1e-6
    log_partition = jax.nn.logsumexp(z, axis=-1) - np.log(z.shape[-1])
    for value in (phi, conjugate(z, 1.0)):
        np.testing.assert_allclose(value, log_partition, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives(alpha):
    """The Jacobian against central differences; its structure; and it is the conjugate's Hessian."""
    width = 1e-6
    with jax.enable_x64(True):
        z = np.random.default_rng(3).normal(size=(20, 6))
        jacobian, reverse, gradient, hessian = map(np.asarray, differentiate(z)[alpha])
        steps = width * np.concatenate([np.zeros((1, 6)), np.eye(6), -np.eye(6)])
        moved = np.full((NUM_ROWS, NUM_ENTRIES), -np.inf)  # masked entries are as if absent
        moved[:, 0] = 0.0
        moved[: 13 * 20, :6] = (z[:, None] + steps).reshape(-1, 6)
        p, ahead, behind = np.split(
            probabilities(moved, alpha)[: 13 * 20, :6].reshape(20, 13, 6), [1, 7], axis=1
        )
    p, differences = p[:, 0], np.swapaxes(ahead - behind, 1, 2) / (2 * width)
    np.testing.assert_allclose(jacobian, differences, atol=2e-7)
    np.testing.assert_allclose(jacobian, reverse, atol=1e-14)
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-14)
    np.testing.assert_allclose(jacobian.sum(axis=-1), 0.0, atol=1e-13)
    assert np.linalg.eigvalsh(jacobian).min() > -1e-13
    np.testing.assert_allclose(gradient, p, atol=1e-15)
    np.testing.assert_allclose(hessian, jacobian, atol=1e-13)


def test_third_derivative_is_the_slope_of_the_jacobian():
    with jax.enable_x64(True):
        z = np.tile([0.3, -0.4, 0.1, -5.0, -np.inf, -6.0], (20, 1))
        direction = np.tile([0.5, -1.0, 0.2, 0.7, 0.0, 0.1], (20, 1))
        ahead, behind = (differentiate(z + width * direction) for width in (1e-6, -1e-6))

        @jax.jit
        def slopes(z, direction):
            def jacobians(z):
                return {alpha: jax.jacfwd(functools.partial(entmax, alpha=alpha))(z) for alpha in ALPHAS}

            return jax.jvp(jacobians, (z,), (direction,))[1]

        for alpha, slope in slopes(z[0], direction[0]).items():
            np.testing.assert_allclose(slope, (ahead[alpha][0] - behind[alpha][0])[0] / 2e-6, atol=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_conjugate_is_the_maximum(alpha):
    """Fenchel-Young: no other point of the simplex does better, and entmax attains it."""
    generator = np.random.default_rng(4)
    z = generator.normal(size=(NUM_ROWS, NUM_ENTRIES)) * 2
    rivals = generator.dirichlet(np.full(NUM_ENTRIES, 0.5), size=(500,))
    uniform = negentropy(np.full(NUM_ENTRIES, 1 / NUM_ENTRIES), alpha)
    with jax.enable_x64(True):
        phi = np.asarray(conjugate(jnp.asarray(z), alpha))
        best = np.asarray(probabilities(jnp.asarray(z), alpha))
        np.testing.assert_allclose(float(uniform_negentropy(NUM_ENTRIES, alpha)), uniform, rtol=1e-14)
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
        np.testing.assert_allclose(phi(np.zeros_like(left)), 0.0, atol=1e-14)


def test_one_entry_alone_and_a_thousand_alike():
    def at_zero(count):
        zeros = jnp.zeros(count)
        return [(entmax(zeros, alpha), entmax_conjugate(zeros, alpha)) for alpha in (1.0, 1.3, 3.0)]

    for count in (1, 1000):
        for p, phi in jax.jit(at_zero, static_argnums=0)(count):
            np.testing.assert_allclose(p, 1 / count, rtol=1e-6)
            np.testing.assert_allclose(phi, 0.0, atol=3e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_huge_scores_stay_finite(alpha):
    z = np.array([[1e4, -1e4, 9999.0], [3e38, -3e38, 0.0], [-1e30, -1e30, -1e30], [0.0, -np.inf, -1.0]])
    z = padded(z, np.float32)
    p, phi = probabilities(z, alpha)[:4, :3], conjugate(z, alpha)[:4]
    np.testing.assert_allclose(p[0], p[3], atol=1e-6)
    np.testing.assert_allclose(p[1:3], [[1.0, 0.0, 0.0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(phi, z[:4].max(axis=-1), atol=3.0)  # at alpha = 1, ln 17 below
    for derivative in differentiate(z[:20, :6])[alpha]:
        assert np.all(np.isfinite(derivative))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_masked_entries_are_as_if_absent(alpha):
    scattered = np.array([0.3, -np.inf, -0.2, 0.1, -np.inf, -np.inf], np.float32)
    kept = np.array([0, 2, 3])
    p, phi = (np.asarray(value) for value in solve(scattered)[alpha])
    p_kept, phi_kept = solve(scattered[kept])[alpha]
    np.testing.assert_allclose(p[kept], p_kept, atol=1e-7)
    assert not p[[1, 4, 5]].any()
    # The masked entries still count in K: Phi differs by the two entropies of the uniform.
    difference = negentropy(np.full(6, 1 / 6), alpha) - negentropy(np.full(3, 1 / 3), alpha)
    np.testing.assert_allclose(phi, phi_kept + difference, atol=1e-6)
    slope = np.where(p > 0, np.where(p > 0, p, 1.0) ** (2 - alpha), 0.0)
    expected = np.diag(slope) - np.outer(slope, slope) / slope.sum()
    *_, gradients, hessians = map(np.asarray, differentiate(np.tile(scattered, (20, 1)))[alpha])
    np.testing.assert_allclose(hessians[0], expected, atol=1e-6)
    np.testing.assert_allclose(gradients[0], p, atol=1e-6)
    only = probabilities(padded([[-np.inf, -3.0]], np.float32), alpha)
    np.testing.assert_array_equal(only[0, :2], [0.0, 1.0])


def test_gradients_pass_a_mask():
    def through_mask(values, alpha):
        return entmax(jnp.where(np.array([True, False, True]), values, -jnp.inf), alpha)[0]

    for gradient in at_all_alphas(jax.grad(through_mask))(np.array([0.1, 0.2, 0.3], np.float32)).values():
        assert np.all(np.isfinite(gradient))
        assert gradient[1] == 0.0


def test_one_memory_among_thousands_gets_everything():
    """Entries behind by more than 1 / (alpha - 1) get exactly 0, however many they are."""

    @jax.jit
    def alone(z):
        return [entmax(-jnp.where(z > 0, 0.0, 1.01 / (alpha - 1)), alpha) for alpha in ALPHAS[1:]]

    found = np.asarray(alone(jnp.zeros(5000).at[1234].set(1.0)))
    np.testing.assert_array_equal(found, np.tile(np.arange(5000) == 1234, (len(ALPHAS) - 1, 1)))


def test_dtype_is_kept():
    z = jnp.asarray(random_scores(7), jnp.bfloat16)

    @at_all_alphas
    def narrow(z, alpha):
        gradient = jax.grad(lambda v: entmax_conjugate(v, alpha).astype(jnp.float32).sum())(z)
        return entmax(z, alpha), entmax_conjugate(z, alpha), gradient

    wide = solve(z.astype(jnp.float32))
    for alpha, values in narrow(z).items():
        assert {value.dtype for value in values} == {jnp.dtype(jnp.bfloat16)}
        p, phi, gradient = (np.asarray(value.astype(jnp.float32)) for value in values)
        np.testing.assert_allclose(p, wide[alpha][0], atol=4e-3)
        np.testing.assert_allclose(phi, wide[alpha][1], atol=4e-3, rtol=4e-3)
        np.testing.assert_allclose(gradient, p, atol=4e-3)


def test_integers_become_floats():
    assert jax.eval_shape(lambda: entmax(jnp.array([0, 1]), 2.0)).dtype == jnp.float32


def test_axis_and_vmap():
    """Rows of very different spread, which Newton's steps settle at different times."""
    flat = random_scores(8).astype(np.float32)
    z = flat[:40].reshape(4, 10, NUM_ENTRIES)

    @at_all_alphas
    def along_axes(z, alpha):
        first, middle = jnp.moveaxis(z, -1, 0), jnp.moveaxis(z, -1, 1)
        row_by_row = jax.vmap(jax.vmap(jax.value_and_grad(lambda v: entmax_conjugate(v, alpha))))
        return (
            (entmax_conjugate(first, alpha, 0), jnp.moveaxis(entmax(first, alpha, 0), 0, -1)),
            (entmax_conjugate(middle, alpha, -2), jnp.moveaxis(entmax(middle, alpha, -2), 1, -1)),
            row_by_row(z),
        )

    for alpha, found in along_axes(z).items():
        for phi, p in found:
            np.testing.assert_allclose(phi.reshape(40), conjugate(flat, alpha)[:40], rtol=1e-6, atol=1e-6)
            expected = probabilities(flat, alpha)[:40]
            np.testing.assert_allclose(p.reshape(40, NUM_ENTRIES), expected, atol=1e-6)


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
