"""Pytrees leaf by leaf: dtypes, norms, keys and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.trees import (
    dimension,
    euclidean_norm,
    leaf_keys,
    noisy,
    normal_like,
    square_root,
    wide_dtype,
    widened,
)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("int8", "float32")],
)
def test_narrow_types_become_float32(dtype, wide):
    leaf = jnp.ones((2, 3), dtype)
    assert wide_dtype(leaf) == jnp.dtype(wide)
    assert widened(leaf).dtype == jnp.dtype(wide)
    assert widened(leaf).shape == (2, 3)


def test_float64_is_kept():
    with jax.enable_x64(True):
        assert widened(jnp.ones(2, jnp.float64)).dtype == jnp.float64


def test_numbers_are_widened_too():
    assert widened(2.0).dtype == jnp.float32


def test_the_norm_is_over_all_leaves_and_summed_in_float32():
    narrow = jnp.ones(1000, jnp.bfloat16)  # in bfloat16 a sum of ones stands still at 256
    found = euclidean_norm({"a": narrow, "b": jnp.full((2, 2), 10.0)})
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.sqrt(1400.0), rtol=1e-6)


def test_each_leaf_has_its_own_key():
    tree = {"a": jnp.zeros(2), "b": [jnp.zeros(2), jnp.zeros(2)]}
    keys = leaf_keys(jax.random.key(0), tree)
    assert jax.tree.structure(keys) == jax.tree.structure(tree)
    words = {tuple(np.asarray(jax.random.key_data(key))) for key in jax.tree.leaves(keys)}
    assert len(words) == 3


def test_a_single_leaf_takes_the_key_itself():
    assert bool(leaf_keys(jax.random.key(0), jnp.zeros(2)) == jax.random.key(0))


def test_noise_has_the_shapes_of_the_tree_and_is_standard_normal():
    tree = {"a": jnp.zeros((100, 50), jnp.bfloat16), "b": jnp.zeros(10)}
    noise = normal_like(jax.random.key(0), tree)
    assert jax.tree.map(jnp.shape, noise) == {"a": (100, 50), "b": (10,)}
    assert noise["a"].dtype == jnp.float32
    assert abs(float(jnp.mean(noise["a"]))) < 5 / np.sqrt(5000)
    assert abs(float(jnp.var(noise["a"])) - 1) < 5 * np.sqrt(2 / 5000)


def test_the_gradient_of_a_norm_is_zero_at_zero_and_unit_elsewhere():
    tree = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2), jnp.bfloat16)}
    at_zero = jax.grad(euclidean_norm)(tree)
    assert all(np.array_equal(leaf, np.zeros_like(leaf)) for leaf in jax.tree.leaves(at_zero))
    x = jnp.array([3.0, 0.0, -4.0])
    np.testing.assert_allclose(jax.grad(euclidean_norm)(x), x / 5, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(euclidean_norm)(x), x / 5, rtol=1e-6)
    # The second derivative of a norm, (I - u u^T) / |x|, and of its square also at zero's neighbour.
    unit = x / 5
    np.testing.assert_allclose(
        jax.hessian(euclidean_norm)(x), (np.eye(3) - np.outer(unit, unit)) / 5, rtol=1e-5, atol=1e-7
    )
    assert np.isfinite(jax.hessian(euclidean_norm)(jnp.zeros(3))).all()


def test_a_norm_hides_no_nan():
    assert np.isnan(euclidean_norm(jnp.array([0.0, jnp.nan])))
    assert np.isnan(jax.grad(euclidean_norm)(jnp.array([0.0, jnp.nan]))).any()
    assert np.isnan(square_root(jnp.array(-1.0)))


def test_noise_of_kernels_takes_typed_keys_only():
    with pytest.raises(TypeError, match="rng_key has dtype uint32"):
        normal_like(jax.random.PRNGKey(0), {"a": jnp.zeros(2), "b": jnp.zeros(2)})
    with pytest.raises(TypeError, match="rng_key=7"):
        normal_like(7, jnp.zeros(2))


def test_entries_of_all_leaves_are_counted():
    tree = {"a": np.zeros((3, 2)), "b": (jnp.zeros(()), 1.0)}
    assert dimension(tree) == 8
    assert dimension({}) == 0
    assert jax.jit(lambda x: jnp.zeros(dimension(x)))(tree).shape == (8,)


def test_noise_of_a_level_is_added_in_the_dtypes_of_the_position():
    x = {"a": jnp.full((2000,), 3.0), "b": jnp.zeros(4, jnp.bfloat16)}
    y, z = noisy(jax.random.key(0), x, 0.5)
    assert jax.tree.map(jnp.result_type, y) == jax.tree.map(jnp.result_type, x)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(z)} == {"float32"}
    np.testing.assert_allclose(y["a"], 3 + 0.5 * z["a"], rtol=1e-6)
    np.testing.assert_array_equal(y["b"], (0.5 * z["b"]).astype(jnp.bfloat16))
    assert abs(float(jnp.std(y["a"])) - 0.5) < 5 * 0.5 / np.sqrt(2 * 2000)
