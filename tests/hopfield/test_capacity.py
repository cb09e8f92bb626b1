"""The capacities against simulated steps of the networks that they speak of."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from jaxebm.hopfield import Power, capacity, dense

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def random_patterns(seed, shape):
    return np.random.default_rng(seed).choice(np.array([-1.0, 1.0], np.float32), shape)


def signal(function, patterns, queries):
    """sum_mu F(xi_i + m_-i) - F(-xi_i + m_-i) for each query and spin, from the full overlaps m.

    m_-i = m - xi_i x_i, so a memory adds x_i a where it agrees with the query, a = F(m) - F(m - 2), and x_i b
    where not, b = F(m) - F(m + 2): together x_i (a + b) / 2 + xi_i (a - b) / 2.
    """
    overlaps = (queries @ patterns.T).astype(np.float64)
    agree = function(overlaps) - function(overlaps - 2)
    differ = function(overlaps) - function(overlaps + 2)
    common = 0.5 * (agree + differ).sum(axis=1, keepdims=True)
    return queries * common + (0.5 * (agree - differ)) @ patterns


def test_the_simulated_step_is_the_printed_one():
    """The matrix form above against the sum as Krotov & Hopfield print it, spin by spin."""
    patterns = random_patterns(0, (5, 7))
    queries = random_patterns(1, (2, 7))
    for function in (lambda z: z**3, lambda z: np.maximum(z, 0) ** 3, lambda z: z**4, np.exp):
        for query, computed in zip(queries, signal(function, patterns, queries), strict=True):
            for i in range(7):
                rest = patterns @ query - patterns[:, i] * query[i]
                printed = np.sum(function(patterns[:, i] + rest) - function(-patterns[:, i] + rest))
                assert computed[i] == pytest.approx(float(printed), rel=1e-5, abs=1e-3)


# Hebb's rule


@pytest.mark.parametrize("load", [0.1, 0.15, 0.25])
def test_hebb_bit_error_by_simulation(load):
    """N = 2000, W_ii = 0, 8 sets of patterns, within 4 standard errors.

    A bit turns over if a sum of (N - 1)(K - 1) independent signs is below -(N - 1): exactly a binomial tail,
    which the simulation must match too. The formula lies above it by K - 1 in place of K and the lattice of
    the sums: by 3% of the error at alpha = 0.1 and less beyond, which is within the simulation's error.
    """
    num_spins = 2000
    num_memories = round(load * num_spins)
    fractions = []
    for seed in range(8):
        patterns = random_patterns((2, seed), (num_memories, num_spins))
        fields = (patterns @ patterns.T) @ patterns - num_memories * patterns  # N times the field, W_ii = 0
        fractions.append(np.mean(patterns * fields < 0))
    error = np.std(fractions, ddof=1) / np.sqrt(len(fractions))
    predicted = float(capacity.hebb_bit_error(load))
    num_signs = (num_spins - 1) * (num_memories - 1)
    exact = binom.cdf(math.ceil((num_signs - num_spins + 1) / 2) - 1, num_signs, 0.5)
    assert abs(np.mean(fractions) - predicted) <= 4 * error
    assert abs(np.mean(fractions) - exact) <= 4 * error
    assert predicted == pytest.approx(exact, rel=0.035)


def test_hebb_bit_error_of_arrays():
    errors = capacity.hebb_bit_error(jnp.array([[0.0, 0.105, 0.138, 0.185, 0.37, 0.61]]))
    # Hertz, Krogh & Palmer 1991, table 2.1: the loads of these errors
    np.testing.assert_allclose(errors, [[0.0, 0.001, 0.0036, 0.01, 0.05, 0.1]], rtol=0.03)


def test_error_free_capacity_by_simulation():
    """N = 1000: at half of N / (4 ln N) all memories are fixed points; at N / (2 ln N) a given one mostly is.

    There a memory has about N erfc(sqrt(ln N)) / 2 = 0.10 wrong bits, at twice that load about 5.
    """
    num_spins = 1000

    def held(num_memories):
        patterns = random_patterns((3, num_memories), (num_memories, num_spins))
        fields = (patterns @ patterns.T) @ patterns - num_memories * patterns
        return np.all(patterns * fields > 0, axis=1).mean()

    assert held(round(capacity.error_free_capacity(num_spins, every_pattern=True) / 2)) == 1.0
    assert held(round(capacity.error_free_capacity(num_spins))) > 0.8
    assert held(round(2 * capacity.error_free_capacity(num_spins))) < 0.2


# Dense memories


FUNCTIONS = {False: lambda z: z**3, True: lambda z: np.maximum(z, 0) ** 3}


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("ratio", [3.0, 5.0])
def test_dense_bit_error_by_simulation(rectified, ratio):
    """n = 3, N = 300, signal^2 / noise^2 = 3 and 5 (errors 4.2% and 1.3%), within 4 standard errors + 2%.

    The 2% are the formula's O(1/N): exactly, the ratio is smaller by a factor 1 - 1.5 / N, which raises these
    errors by 1 to 1.5%. 400 memories of all K are probed; rectified, K is twice as large at the same error.
    """
    num_spins = 300
    num_memories = round(num_spins**2 / (3 * ratio) * (2 if rectified else 1))
    predicted = float(capacity.dense_bit_error(num_memories, num_spins, 3, rectified=rectified))
    patterns = random_patterns((4, rectified, int(ratio)), (num_memories, num_spins))
    queries = patterns[:400]
    wrong = np.mean(queries * signal(FUNCTIONS[rectified], patterns, queries) < 0, axis=1)
    error = wrong.std(ddof=1) / np.sqrt(len(wrong))
    assert abs(wrong.mean() - predicted) <= 4 * error + 0.02 * predicted


@pytest.mark.parametrize("rectified", [False, True])
def test_dense_crosstalk_moments(rectified):
    """Its mean is 0 and its variance K (2n-3)!! N^(n-1) 4 n^2, half of it if rectified; signal 2 n N^(n-1).

    n = 3, N = 300, within 4 standard errors of the 400 queries and the 2% of O(1/N).
    """
    num_spins, num_memories = 300, 3000
    patterns = random_patterns((5, rectified), (num_memories, num_spins))
    queries = patterns[:400]
    own = FUNCTIONS[rectified](np.float64(num_spins)) - FUNCTIONS[rectified](np.float64(num_spins - 2))
    crosstalk = queries * signal(FUNCTIONS[rectified], patterns, queries) - own
    assert own == pytest.approx(6 * num_spins**2, rel=0.02)
    means, squares = crosstalk.mean(axis=1), (crosstalk**2).mean(axis=1)
    assert abs(means.mean()) <= 4 * means.std(ddof=1) / 20
    expected = num_memories * 3 * num_spins**2 * 36 * (0.5 if rectified else 1.0)
    assert abs(squares.mean() - expected) <= 4 * squares.std(ddof=1) / 20 + 0.02 * expected


def test_dense_formulas_meet_hebb_and_each_other():
    for num_memories in (50, 200):
        error = capacity.dense_bit_error(num_memories, 1000, 2, rectified=False)
        np.testing.assert_allclose(error, capacity.hebb_bit_error(num_memories / 1000), rtol=1e-4)
    plain = functools.partial(capacity.dense_capacity, rectified=False)
    assert plain(1000, 2) == pytest.approx(capacity.error_free_capacity(1000))
    assert capacity.dense_capacity(100, 4, rectified=True) == pytest.approx(2 * plain(100, 4))
    # N^4 / (2 * 105 ln N)
    assert plain(50, 5) == pytest.approx(50**4 / (2 * 105 * math.log(50)))
    # at capacity: N errors of erfc(sqrt(ln N)) / 2 < 1 / (2 sqrt(pi ln N)) together
    error = float(capacity.dense_bit_error(capacity.dense_capacity(100, 3), 100, 3))
    assert 100 * error == pytest.approx(1 / (2 * math.sqrt(math.pi * math.log(100))), rel=0.12)


def test_theory_and_memory_have_one_default():
    """`dense`, `dense_bit_error` and `dense_capacity` speak of one network, if nothing is said."""
    functions = (dense, capacity.dense_bit_error, capacity.dense_capacity)
    assert {inspect.signature(each).parameters["rectified"].default for each in functions} == {True}
    assert dense([[1, -1]]).lagrangian == Power(3, True)


def test_bit_errors_have_slopes():
    """d/da erfc((2a)^-1/2) / 2 = e^(-1 / 2a) (2 pi)^-1/2 a^(-3/2) / 2, and 0 at 0."""
    loads = jnp.array([0.0, 0.1, 0.4])
    slopes = jax.jit(jax.grad(lambda a: jnp.sum(capacity.hebb_bit_error(a))))(loads)
    a = np.asarray(loads[1:], np.float64)
    expected = 0.5 * np.exp(-0.5 / a) / np.sqrt(2 * np.pi) * a**-1.5
    np.testing.assert_allclose(slopes, [0.0, *expected], rtol=1e-4)


def test_dense_formulas_do_not_overflow():
    assert float(capacity.dense_bit_error(1e30, 1000, 60)) == 0.0
    assert capacity.dense_bit_error(jnp.array([1e3, 1e4]), 100, 3).shape == (2,)
    assert math.isfinite(capacity.dense_capacity(1000, 60))


# Exponential memories


def recalled(num_spins, radius, rate, seed):
    """The part of exp(rate N) memories (200 probed) that one step recalls from radius * N random flips."""
    generator = np.random.default_rng(seed)
    num_memories = math.floor(math.exp(rate * num_spins)) + 1
    patterns = random_patterns(generator, (num_memories, num_spins))
    targets = patterns[:200]
    order = np.argsort(generator.random(targets.shape), axis=1)
    queries = np.where(order < round(radius * num_spins), -targets, targets)
    return np.mean(np.all(np.sign(signal(np.exp, patterns, queries)) == targets, axis=1))


@pytest.mark.parametrize(
    ("num_spins", "radius", "below"), [(60, 0.1, 0.13), (60, 0.1, 0.15), (60, 0.2, 0.06), (50, 0.0, 0.19)]
)
def test_below_the_rate_every_memory_is_recalled(num_spins, radius, below):
    """K from 37 to 13,000. By the union bound fewer than exp((2 rate - I) N) = 0.02 failures are expected."""
    assert below < float(capacity.exponential_capacity_rate(radius))
    for seed in range(3):
        assert recalled(num_spins, radius, below, (6, seed)) == 1.0


def test_above_the_rate_memories_are_lost():
    """N = 40, a fifth flipped, rate 0.096: at 0.15 some are lost, above twice the rate (0.193) all are."""
    assert float(capacity.exponential_capacity_rate(0.2)) == pytest.approx(0.0964, abs=1e-4)
    for seed in range(3):
        assert 0.7 < recalled(40, 0.2, 0.15, (7, seed)) < 1.0
        assert recalled(40, 0.2, 0.25, (8, seed)) < 0.05


def test_exponential_rate_is_half_the_rate_function():
    radii = np.array([0.0, 0.01, 0.1, 0.25, 0.4, 0.5])
    a = 1 - 2 * radii[1:]
    expected = ((1 + a) * np.log(1 + a) + (1 - a) * np.log(1 - a)) / 4
    rates = capacity.exponential_capacity_rate(radii)
    np.testing.assert_allclose(rates[0], math.log(2) / 2, rtol=1e-6)
    np.testing.assert_allclose(rates[1:], expected, atol=1e-6)
    # exp(-N I(a)): the chance of an overlap of at least a N, to leading order
    chance = binom.sf(0.9 * 2000 - 1, 2000, 0.5, loc=0)
    assert -np.log(chance) / 2000 == pytest.approx(2 * float(rates[2]), rel=0.01)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="load"):
        capacity.hebb_bit_error(-1.0)
    with pytest.raises(ValueError, match="dimension=1"):
        capacity.error_free_capacity(1)
    with pytest.raises(ValueError, match="degree=1"):
        capacity.dense_capacity(10, 1)
    with pytest.raises(ValueError, match=r"degree=2\.5"):
        capacity.dense_bit_error(10, 10, 2.5)
    with pytest.raises(ValueError, match="num_memories"):
        capacity.dense_bit_error(0, 10, 2)
    with pytest.raises(ValueError, match="radius"):
        capacity.exponential_capacity_rate(0.6)
