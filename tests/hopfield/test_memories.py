"""The named memories: published formulas, limits in which one is another, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.family import energy, update
from jaxebm.hopfield.memories import (
    PATTERN_MEMORIES,
    classical,
    dense,
    epanechnikov,
    exponential,
    modern,
    restricted_boltzmann,
    sparse,
)
from jaxebm.hopfield.tsallis import entmax

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture
def patterns(random_spins):
    return random_spins(0, 6, 20)


@pytest.fixture
def grey():
    return np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)


def test_classical_is_hebbs_quadratic_form(patterns, random_spins):
    x, bias = random_spins(2, 20), np.random.default_rng(3).standard_normal(20).astype(np.float32)
    weights = patterns.T @ patterns / 20
    memory = classical(patterns, bias=bias)
    assert float(energy(memory, x)) == pytest.approx(-0.5 * x @ weights @ x - bias @ x, rel=1e-5)
    np.testing.assert_array_equal(update(memory, jnp.asarray(x)), np.sign(weights @ x + bias))


@pytest.mark.parametrize("degree", [2, 3, 5])
@pytest.mark.parametrize("rectified", [True, False])
def test_dense_is_the_published_energy_over_a_power_of_the_dimension(
    patterns, random_spins, degree, rectified
):
    x = random_spins(4, 20)
    overlaps = patterns @ x
    published = -np.sum((np.maximum(overlaps, 0) if rectified else overlaps) ** degree) / degree
    memory = dense(patterns, degree, rectified=rectified)
    assert float(energy(memory, x)) == pytest.approx(published / 20 ** (degree - 1), rel=1e-5)


def test_dense_of_degree_two_is_classical(patterns, random_spins):
    x = jnp.asarray(random_spins(5, 20))
    both = dense(patterns, 2, rectified=False), classical(patterns)
    assert float(energy(both[0], x)) == pytest.approx(float(energy(both[1], x)), rel=1e-6)
    np.testing.assert_array_equal(update(both[0], x), update(both[1], x))


def test_exponential_is_the_published_energy_times_a_constant(patterns, random_spins):
    x = random_spins(6, 20)
    published = -np.sum(np.exp((patterns @ x).astype(np.float64)))
    assert float(energy(exponential(patterns), x)) * np.exp(20.0) == pytest.approx(published, rel=1e-4)


def test_the_modern_energy_is_the_published_one(grey):
    """E = -lse + |x|^2/2 + ln N / beta + M^2/2, and 0 <= E <= 2 M^2 within the ball of radius M."""
    beta = 1.7
    memory = modern(grey, beta)
    largest = np.max(np.linalg.norm(grey, axis=1))
    rng = np.random.default_rng(7)
    directions = rng.standard_normal((2000, 5))
    x = (
        largest
        * directions
        / np.linalg.norm(directions, axis=1, keepdims=True)
        * rng.random((2000, 1)) ** 0.2
    )
    scores = beta * x @ grey.T.astype(np.float64)
    lse = np.log(np.sum(np.exp(scores), axis=1)) / beta
    published = -lse + 0.5 * np.sum(x**2, axis=1) + np.log(7) / beta + 0.5 * largest**2
    found = np.asarray(jax.vmap(energy, (None, 0))(memory, jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(found, published, rtol=1e-5, atol=1e-5)
    assert found.min() >= -1e-6
    assert found.max() <= 2 * largest**2


def test_equal_weights_change_nothing_on_a_sphere_and_free_small_memories_off_it():
    rng = np.random.default_rng(8)
    sphere = rng.standard_normal((6, 5))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    x = jnp.asarray(rng.standard_normal(5), jnp.float32)
    both = modern(sphere, 3.0), modern(sphere, 3.0, equal_weights=True)
    assert float(energy(both[0], x)) == pytest.approx(float(energy(both[1], x)), abs=1e-5)
    np.testing.assert_allclose(update(both[0], x), update(both[1], x), atol=1e-6)

    small_and_large = jnp.array([[1.0, 0.0], [4.0, 1.0]])
    query = small_and_large[0]  # the large memory has the greater product even with the small one itself
    swallowed = update(modern(small_and_large, 20.0), query)
    recalled = update(modern(small_and_large, 20.0, equal_weights=True), query)
    np.testing.assert_allclose(swallowed, small_and_large[1], atol=1e-3)
    np.testing.assert_allclose(recalled, small_and_large[0], atol=1e-3)


def test_sparse_of_alpha_one_is_modern(grey):
    x = jnp.asarray(np.random.default_rng(9).standard_normal(5), jnp.float32)
    both = sparse(grey, 0.9, alpha=1.0), modern(grey, 0.9)
    assert float(energy(both[0], x)) == pytest.approx(float(energy(both[1], x)), abs=1e-5)
    np.testing.assert_allclose(update(both[0], x), update(both[1], x), atol=1e-6)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_sparse_steps_by_entmax_and_recalls_exactly_with_a_margin(grey, alpha):
    x = jnp.asarray(np.random.default_rng(10).standard_normal(5), jnp.float32)
    memory = sparse(grey, 0.9, alpha)
    np.testing.assert_allclose(
        update(memory, x), entmax(0.9 * jnp.asarray(grey) @ x, alpha) @ jnp.asarray(grey), atol=1e-6
    )
    separated = 3.0 * np.eye(5, dtype=np.float32)
    sharp = sparse(separated, 1.0, alpha)
    np.testing.assert_array_equal(update(sharp, jnp.asarray(separated[2])), separated[2])


def test_epanechnikov_moves_to_the_mean_of_near_memories_and_stays_where_none_is():
    memories = jnp.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    network = epanechnikov(memories, beta=2 / 1.5**2)  # balls of radius 1.5
    np.testing.assert_allclose(update(network, jnp.array([0.4, 0.3])), [0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(update(network, jnp.array([8.0, 0.0])), [9.0, 0.0], atol=1e-6)
    far = jnp.array([5.0, 5.0])
    np.testing.assert_array_equal(update(network, far), far)
    assert float(energy(network, far)) == pytest.approx(-np.log(1e-6) / (2 / 1.5**2), rel=1e-5)
    assert np.all(np.isfinite(jax.grad(energy, argnums=1)(network, far)))


def test_the_rbm_free_energy_sums_its_hidden_units_out():
    rng = np.random.default_rng(11)
    weights, b, c = rng.standard_normal((3, 4)), rng.standard_normal(4), rng.standard_normal(3)
    memory = restricted_boltzmann(weights, b, c)
    hidden = (np.arange(8)[:, None] >> np.arange(3)) & 1
    for x in np.asarray([[0, 1, 1, 0], [1, 1, 0, 1]], float):
        joint = -x @ b - hidden @ c - hidden @ weights @ x
        assert float(energy(memory, jnp.asarray(x, jnp.float32))) == pytest.approx(
            -np.log(np.sum(np.exp(-joint))), rel=1e-5
        )


@pytest.mark.parametrize("constructor", PATTERN_MEMORIES.values(), ids=PATTERN_MEMORIES)
def test_every_constructor_refuses_bad_memories(constructor):
    arguments = {"beta": 1.0} if constructor in (modern, sparse, epanechnikov) else {}
    with pytest.raises(ValueError, match=r"\(K, D\) is needed"):
        constructor(jnp.zeros(3), **arguments)
    with pytest.raises(ValueError, match=r"\(K, D\) is needed"):
        constructor(jnp.zeros((0, 3)), **arguments)
    with pytest.raises(ValueError, match="non-finite"):
        constructor(jnp.array([[1.0, jnp.nan]]), **arguments)


@pytest.mark.parametrize("constructor", [classical, dense, exponential])
def test_binary_networks_want_spins(constructor):
    with pytest.raises(ValueError, match=r"patterns holds 1 entries of 2 that are no spins, such as 0.5"):
        constructor([[0.5, 1.0]])
    with pytest.raises(ValueError, match="no spins"):
        constructor([[0, 1]])


@pytest.mark.parametrize("constructor", [modern, sparse, epanechnikov, exponential])
@pytest.mark.parametrize("beta", [0.0, -1.0, np.inf, np.nan])
def test_beta_must_be_positive(constructor, beta):
    with pytest.raises(ValueError, match="beta"):
        constructor([[1.0, -1.0]], beta)
    with pytest.raises(ValueError, match=r"beta has shape \(1,\)"):
        constructor([[1.0, -1.0]], jnp.ones(1))


def test_further_arguments_are_checked():
    with pytest.raises(ValueError, match="degree=1"):
        dense([[1, -1]], 1)
    with pytest.raises(ValueError, match="alpha"):
        sparse([[1.0, 2.0]], 1.0, alpha=0.5)
    with pytest.raises(ValueError, match="epsilon"):
        epanechnikov([[1.0, 2.0]], 1.0, epsilon=-1.0)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\): \(2,\)"):
        modern([[1.0, 2.0]], 1.0, bias=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"hidden_bias has shape \(2,\): \(1,\)"):
        restricted_boltzmann([[1.0, 2.0]], hidden_bias=jnp.zeros(2))


def test_integers_and_lists_are_memories_too():
    assert classical([[1, -1, 1]]).patterns.dtype == jnp.float32
    assert modern(np.arange(6).reshape(2, 3), 1.0).patterns.dtype == jnp.float32
