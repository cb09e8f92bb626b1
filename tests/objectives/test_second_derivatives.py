"""The Hessian: its exact trace against JAX's, random traces against enumeration, directions and sums."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.objectives.second_derivatives import (
    check_curved,
    inner_product,
    on_the_sphere,
    signs,
    square_norm,
    with_curvatures,
    with_laplacian,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

RNG = np.random.default_rng(1)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def network_energy(params, x):
    return jnp.sum(params["readout"] * jnp.sin(params["weights"] @ x)) + 0.1 * jnp.sum(x**4)


def network(size):
    return {"weights": normal(5, size), "readout": normal(5)}


MATRIX = np.array([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.25], [0.5, 0.25, -1.0]], np.float32)


def slope_of(matrix):
    return jax.grad(lambda x: 0.5 * x @ jnp.asarray(matrix) @ x)


# --- the exact trace ---


@pytest.mark.parametrize("size", [8, 13])
def test_the_exact_trace_is_that_of_the_hessian(size):
    params, x = network(size), normal(size)
    gradient, laplacian = jax.jit(partial(with_laplacian, jax.grad(partial(network_energy, params))))(x)
    np.testing.assert_allclose(gradient, jax.grad(network_energy, argnums=1)(params, x), rtol=1e-5)
    hessian = jax.jit(jax.hessian(network_energy, argnums=1))(params, x)
    np.testing.assert_allclose(laplacian, jnp.trace(hessian), rtol=1e-4)


def test_the_exact_trace_is_over_all_leaves():
    def energy(x):
        return jnp.sum(x["a"] ** 2) + 3.0 * x["b"] ** 2 * x["a"][0]

    x = {"a": jnp.array([2.0, 1.0]), "b": jnp.asarray(5.0)}
    gradient, laplacian = with_laplacian(jax.grad(energy), x)
    np.testing.assert_allclose(gradient["a"], [79.0, 2.0])
    assert float(laplacian) == 4.0 + 6.0 * 2.0


# --- random traces ---


def test_signs_give_the_trace_of_a_diagonal_exactly_and_of_any_matrix_in_the_mean():
    """Over all 2^3 vectors of signs, each as likely: the mean of v' A v is tr A."""
    every = jnp.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    x = jnp.array([0.3, -0.2, 1.0])
    diagonal = np.diag(np.diag(MATRIX))
    gradient, curvatures = jax.jit(partial(with_curvatures, slope_of(diagonal)))(x, every)
    np.testing.assert_allclose(gradient, diagonal @ x, rtol=1e-6)
    np.testing.assert_allclose(curvatures, np.full(8, np.trace(MATRIX)), rtol=1e-6)
    _, curvatures = jax.jit(partial(with_curvatures, slope_of(MATRIX)))(x, every)
    np.testing.assert_allclose(curvatures, np.einsum("vi,ij,vj->v", every, MATRIX, every), rtol=1e-5)
    assert float(jnp.mean(curvatures)) == pytest.approx(np.trace(MATRIX), rel=1e-5)


def test_one_direction_gives_what_several_give():
    x, direction = normal(3), normal(1, 3)
    one = with_curvatures(slope_of(MATRIX), x, direction)
    several = with_curvatures(slope_of(MATRIX), x, jnp.tile(direction, (2, 1)))
    assert one[1].shape == (1,)
    np.testing.assert_allclose(several[1], jnp.tile(one[1], 2), rtol=1e-6)
    np.testing.assert_allclose(several[0], one[0], rtol=1e-6)


def test_signs_are_even_and_independent():
    x = {"a": jnp.zeros(2), "b": jnp.zeros((), jnp.bfloat16)}
    drawn = signs(jax.random.key(0), x, 4000)
    assert {name: leaf.dtype for name, leaf in drawn.items()} == {"a": jnp.float32, "b": jnp.bfloat16}
    vectors = np.concatenate([np.asarray(drawn["a"]), np.asarray(drawn["b"], np.float32)[:, None]], axis=1)
    assert set(np.unique(vectors)) == {-1.0, 1.0}
    covariance = vectors.T @ vectors / 4000  # of standard error 1 / sqrt(n) beside the diagonal
    np.testing.assert_allclose(covariance, np.eye(3), atol=4.5 / np.sqrt(4000))
    np.testing.assert_allclose(vectors.mean(axis=0), np.zeros(3), atol=4.5 / np.sqrt(4000))


def test_directions_have_length_one_over_all_leaves_and_give_the_trace_over_d():
    """E v v' = I / d on the sphere."""
    count = 4000
    x = {"a": jnp.zeros(2), "b": jnp.zeros((), jnp.bfloat16)}
    drawn = on_the_sphere(jax.random.key(1), x, count)
    vectors = np.concatenate([np.asarray(drawn["a"]), np.asarray(drawn["b"])[:, None]], axis=1)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.ones(count), rtol=1e-5)
    products = np.einsum("vi,ij,vj->v", vectors, MATRIX, vectors)
    error = products.std(ddof=1) / np.sqrt(count)
    assert abs(products.mean() - np.trace(MATRIX) / 3) < 4.5 * error
    # The same over vectors that are all of one key: each direction has its own.
    assert len(np.unique(vectors, axis=0)) == count


# --- the rest ---


def test_an_energy_without_second_derivatives_is_refused():
    check_curved(slope_of(MATRIX), jnp.ones(3))
    check_curved(jax.grad(lambda x: jnp.sum(x["a"] ** 3)), {"a": jnp.ones(2)})
    for flat in (lambda x: 3.0 * jnp.sum(x), lambda x: jnp.sum(jax.nn.relu(x))):
        with pytest.raises(ValueError, match=r"second derivatives of zero in x.*denoising_score_matching"):
            check_curved(jax.grad(flat), jnp.ones(3))


def test_inner_products_are_summed_in_float32_over_all_leaves():
    ones = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.asarray(2.0)}
    assert float(square_norm(ones)) == 1004.0  # bfloat16 has no integers between 1000 and 1004
    assert square_norm(ones).dtype == jnp.float32
    other = {"a": jnp.full(1000, 0.5, jnp.bfloat16), "b": jnp.asarray(-3.0)}
    assert float(inner_product(ones, other)) == 500.0 - 6.0
