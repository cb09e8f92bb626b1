"""States, the retrieval bound and the mean fields against hand counts, simulation and printed equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, logsumexp

from jaxebm.hopfield import theory

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# Of a state and the memories


def test_overlap_and_separation_by_hand():
    patterns = jnp.array([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(theory.overlap(patterns, patterns[0]), [1.0, -0.5, -1.0])
    # products: 4 on the diagonal; -2 (0, 1), -4 (0, 2), 2 (1, 2)
    np.testing.assert_array_equal(theory.separation(patterns), [6.0, 2.0, 2.0])


def test_separation_of_odd_sets():
    assert theory.separation(jnp.ones((1, 3))).tolist() == [np.inf]
    assert theory.separation(jnp.array([[1.0, 2.0], [1.0, 2.0]])).tolist() == [0.0, 0.0]
    assert theory.separation(jnp.array([[1.0, 0.0], [3.0, 0.0]])).tolist() == [-2.0, 6.0]


@pytest.mark.parametrize(
    ("probabilities", "mass", "expected"),
    [
        ([1.0], 0.9, 1),
        ([0.05, 0.9, 0.05], 0.9, 1),  # exactly enough
        ([0.05, 0.89, 0.06], 0.9, 2),
        ([0.5, 0.3, 0.2], 0.9, 3),
        ([0.1] * 10, 0.9, 9),  # nine tenths, short of 0.9 by rounding
        ([0.1] * 10, 1.0, 10),
        ([0.2] * 5, 0.5, 3),
        ([0.7, 0.3], 0.0, 1),
    ],
)
def test_metastable_size_by_hand(probabilities, mass, expected):
    assert int(theory.metastable_size(jnp.array(probabilities), mass)) == expected


def test_metastable_size_of_many_equal_terms():
    """The slack for rounding stays below one term of 10,000."""
    assert int(theory.metastable_size(jnp.full(10_000, 1e-4))) == 9000
    sizes = jax.vmap(theory.metastable_size)(jnp.array([[0.95, 0.05], [0.5, 0.5]]))
    assert sizes.tolist() == [1, 2]


NUM_TRIALS = 10_000


def test_retrieval_error_never_exceeds_its_bound():
    """10,000 random networks: sizes, inverse temperatures, norms and distances all vary; not one violation.

    In float64 on our side. x_i* is the fixed point that iteration from x_i reaches. The bound is no idle one:
    where it says something (less than the trivial 2 M), it is often within a factor of 100.
    """
    bound_of = jax.jit(jax.vmap(theory.retrieval_error_bound))
    generator = np.random.default_rng(0)
    informative = close = 0
    for num_patterns, dimension in [(2, 2), (2, 10), (5, 3), (10, 20), (40, 8)]:
        count = NUM_TRIALS // 5
        scale = np.exp(generator.uniform(-1, 1, (count, 1, 1)))
        norms = np.exp(generator.normal(0, 0.3, (count, num_patterns, 1)))  # memories of unequal length
        patterns = generator.normal(size=(count, num_patterns, dimension)) * scale * norms
        patterns = patterns.astype(np.float32).astype(np.float64)
        beta = np.exp(generator.uniform(-2, 3, count)).astype(np.float32).astype(np.float64)

        def update(x, patterns=patterns, beta=beta):
            logits = beta[:, None] * np.einsum("tkd,td->tk", patterns, x)
            weights = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
            return np.einsum("tk,tkd->td", weights, patterns)

        target = patterns[:, 0]
        direction = generator.normal(size=(count, dimension))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        largest = np.linalg.norm(patterns, axis=2).max(axis=1)
        start = target + direction * (largest * 10 ** generator.uniform(-3, 0, count))[:, None]
        fixed = target
        for _ in range(200):
            fixed = update(fixed)
        distance = np.maximum(np.linalg.norm(start - target, axis=1), np.linalg.norm(fixed - target, axis=1))
        errors = np.linalg.norm(update(start) - target, axis=1)
        bounds = np.asarray(bound_of(patterns, beta, distance))[:, 0]
        # The bound is computed in float32, whose exponents of up to a hundred carry errors of 1e-5.
        assert np.all(errors <= bounds * (1 + 1e-3) + 1e-12 * largest)
        useful = bounds < 2 * largest
        informative += useful.sum()
        close += np.sum(useful & (errors > bounds / 100))
    assert informative > 1000
    assert close > 100


def test_retrieval_error_bound_by_hand():
    """x = (2, 0), (1, 1): M = 2, Delta = (2, 0)."""
    patterns = jnp.array([[2.0, 0.0], [1.0, 1.0]])
    bounds = theory.retrieval_error_bound(patterns, 3.0, jnp.array([0.1, 0.0]))
    np.testing.assert_allclose(bounds, [4 * np.exp(-3 * (2 - 0.4)), 4.0], rtol=1e-5)
    assert theory.retrieval_error_bound(jnp.ones((1, 2)), 1.0, 5.0).tolist() == [0.0]  # nothing to confuse it


# The classical network


def test_hebb_capacity_and_the_overlap_there():
    """Amit, Gutfreund & Sompolinsky 1985: alpha_c = 0.138 and m = 0.967, replica-symmetric."""
    capacity = theory.hebb_capacity()
    assert capacity == pytest.approx(0.137906, abs=1e-6)
    assert float(theory.hebb_overlap(capacity)) == pytest.approx(0.967, abs=5e-4)
    above = theory.hebb_overlap(jnp.array([capacity + 1e-4, 0.2, 10.0]))
    np.testing.assert_array_equal(above, 0.0)


def test_hebb_overlap_solves_the_mean_field_equations():
    """m = erf(m / sqrt(2 s)), C = sqrt(2 / pi s) exp(-m^2 / 2 s), s = alpha r = alpha (1 - C)^-2."""
    loads = np.array([0.01, 0.03, 0.05, 0.08, 0.1, 0.12, 0.13])
    m, c = np.ones_like(loads), np.zeros_like(loads)
    for _ in range(2000):
        noise = loads / (1 - c) ** 2
        m, c = erf(m / np.sqrt(2 * noise)), np.sqrt(2 / (np.pi * noise)) * np.exp(-(m**2) / (2 * noise))
    np.testing.assert_allclose(theory.hebb_overlap(loads), m, atol=2e-6)
    assert theory.hebb_overlap(0.0) == 1.0
    np.testing.assert_allclose(theory.hebb_overlap(jnp.array([1e-8, 1e-4])), 1.0, rtol=1e-6)


def test_glauber_overlap():
    temperatures = jnp.array([0.0, 1e-3, 0.2, 0.5, 0.9, 0.99])
    m = np.asarray(theory.glauber_overlap(temperatures), np.float64)
    np.testing.assert_allclose(m[1:], np.tanh(m[1:] / np.asarray(temperatures)[1:]), atol=1e-5)
    assert m[0] == 1.0
    assert m[3] == pytest.approx(0.9575, abs=5e-5)
    assert m[5] == pytest.approx(np.sqrt(3 * 0.01), rel=0.02)  # m^2 -> 3 (1 - T), and not the root m = 0
    np.testing.assert_array_equal(theory.glauber_overlap(jnp.array([1.0, 1.5, 100.0])), 0.0)


@pytest.mark.parametrize(
    ("function", "values"),
    [(theory.hebb_overlap, [0.05, 0.1, 0.13]), (theory.glauber_overlap, [0.3, 0.5, 0.9])],
)
def test_mean_fields_have_implicit_derivatives(function, values):
    """Against central differences, and finite where there is no root; one trace for all values of a shape."""
    values = jnp.array(values)
    compiled = jax.jit(function)
    slopes = jax.jit(jax.vmap(jax.grad(function)))(values)
    differences = (compiled(values + 2e-3) - compiled(values - 2e-3)) / 4e-3
    np.testing.assert_allclose(slopes, differences, rtol=0.02, atol=2e-3)
    assert jax.jit(jax.grad(function))(2.0) == 0.0
    assert compiled._cache_size() == 1
    np.testing.assert_array_equal(function(values.reshape(3, 1)), compiled(values).reshape(3, 1))


@pytest.mark.parametrize("num_patterns", [1, 3, 5])
def test_mixture_energy_by_simulation(num_patterns):
    """Hebb's energy of sign(sum of n patterns) in 200,000 spins: -n m^2 / 2, m a mean of N bits.

    -n m^2 / 2 moves by n m dm, dm < N^(-1/2): five of those are the bound (plus the O(1/N) bias within it).
    """
    num_spins = 200_000
    patterns = np.random.default_rng(num_patterns).choice([-1.0, 1.0], (num_patterns, num_spins))
    overlaps = patterns @ np.sign(patterns.sum(axis=0)) / num_spins
    expected = theory.mixture_energy(num_patterns)
    bound = 5 * np.sqrt(-2 * expected * num_patterns / num_spins)
    assert abs(-0.5 * np.sum(overlaps**2) - expected) <= bound


def test_mixture_energies_rise_towards_their_limit():
    energies = [theory.mixture_energy(n) for n in (1, 3, 5, 7, 501)]
    assert energies[:2] == [-0.5, -0.375]
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(-1 / np.pi, rel=2e-3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"x has shape \(2,\): \(3,\) is needed"):
        theory.overlap(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match="beta"):
        theory.retrieval_error_bound(jnp.ones((2, 3)), 0.0, 1.0)
    with pytest.raises(ValueError, match="distance"):
        theory.retrieval_error_bound(jnp.ones((2, 3)), 1.0, -1.0)
    with pytest.raises(ValueError, match=r"probabilities has shape \(2, 2\)"):
        theory.metastable_size(jnp.ones((2, 2)))
    for wrong in (
        [0.5, 0.4],
        [0.5, 0.6],
        [2.0, 3.0],
        [0.0, 0.0],
        [1.2, -0.2],
        [jnp.nan, 1.0],
        [jnp.inf, 0.0],
    ):
        with pytest.raises(ValueError, match="probabilities"):
            theory.metastable_size(jnp.array(wrong))
    with pytest.raises(ValueError, match="mass"):
        theory.metastable_size(jnp.ones(1), mass=1.5)
    with pytest.raises(ValueError, match="load"):
        theory.hebb_overlap(-0.1)
    with pytest.raises(ValueError, match="temperature"):
        theory.glauber_overlap(-0.1)
    with pytest.raises(ValueError, match="num_patterns=2: an odd number"):
        theory.mixture_energy(2)


def test_metastable_size_takes_rounded_probabilities():
    """Softmax of 16-bit scores has a sum that misses 1 by their rounding; typed figures by theirs."""
    scores = jnp.linspace(0.0, 1.0, 301)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        size = int(theory.metastable_size(jax.nn.softmax(scores.astype(dtype))))
        assert abs(size - int(theory.metastable_size(jax.nn.softmax(scores)))) <= 3
    assert int(theory.metastable_size([0.333, 0.333, 0.333])) == 3
    assert jax.vmap(theory.metastable_size)(jnp.eye(3)).tolist() == [1, 1, 1]


def test_the_error_bound_has_a_slope_at_a_memory_of_zeros():
    """|x| has no slope at 0: it is 0 there, and those of the other memories are as without it."""
    patterns = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    slope = jax.jit(jax.grad(lambda p: jnp.sum(theory.retrieval_error_bound(p, 0.1, 0.0))))
    assert np.all(np.isfinite(slope(patterns)))
    assert np.all(np.asarray(slope(jnp.zeros((3, 2)))) == 0)
    moved = patterns.at[0, 0].add(1e-2), patterns.at[0, 0].add(-1e-2)
    quotient = (
        theory.retrieval_error_bound(moved[0], 0.1, 0.0) - theory.retrieval_error_bound(moved[1], 0.1, 0.0)
    ) / 2e-2
    np.testing.assert_allclose(slope(patterns)[0, 0], np.sum(quotient), rtol=1e-2)
