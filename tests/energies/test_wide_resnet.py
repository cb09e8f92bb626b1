"""The wide residual network: its size, its invariance, and the same gradients from fewer kept values."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.statistics import refresh_statistics
from jaxebm.energies.wide_resnet import WideResNet

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# The tests compile much and compute little: unoptimised code compiles four times sooner.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _init(module, shape):
    return _jit(module.init)(jax.random.key(0), jnp.zeros(shape))


def _apply(module, variables, xs):
    return _jit(jax.vmap(module.apply, (None, 0)))(variables, xs)


@pytest.mark.slow
def test_a_deep_network_without_normalisation_keeps_its_scale():
    module = WideResNet(5, depth=40, width=1, activation="swish")
    xs = np.random.default_rng(1).uniform(-1, 1, (16, 8, 8, 3)).astype("float32")
    outputs = _apply(module, _init(module, (8, 8, 3)), xs)
    chex.assert_tree_all_finite(outputs)
    assert 1e-3 < np.std(outputs) < 10.0


def test_wide_resnet_28_10_has_the_published_number_of_parameters():
    """36.5M with batch normalisation and without convolution biases (arXiv 1605.07146, table 5)."""
    module = WideResNet(10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((32, 32, 3)))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert abs(count - 36.5e6) < 0.05e6


def test_wide_resnet_without_first_group_of_strides_sees_translations_as_equal():
    """Mean pooling: an object far from the border, moved by the total stride of 4, keeps its energy."""
    module = WideResNet(None, depth=10, width=1)
    variables = _init(module, (48, 48, 1))
    patch = jax.random.normal(jax.random.key(1), (4, 4, 1))
    images = np.zeros((3, 48, 48, 1), np.float32)  # the last stays blank
    images[0, 20:24, 20:24] = images[1, 24:28, 24:28] = patch
    energies = _apply(module, variables, images)
    assert abs(float(energies[0] - energies[2])) > 1e-5
    np.testing.assert_allclose(energies[0], energies[1], rtol=1e-4)


def _residual_bytes(module, variables, xs):
    """What reverse mode keeps between the two passes, the parameters and the batch left out."""

    def total(variables):
        return jnp.sum(jax.vmap(module.apply, (None, 0))(variables, xs))

    kept = jax.tree.leaves(jax.eval_shape(lambda variables: jax.vjp(total, variables)[1], variables))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)


def test_rematerialised_blocks_keep_their_inputs_only():
    shape = (8, 8, 3)
    plain, remat = WideResNet(None, depth=16, width=1), WideResNet(None, depth=16, width=1, remat=True)
    variables = jax.eval_shape(plain.init, jax.random.key(0), jnp.zeros(shape))
    assert variables == jax.eval_shape(remat.init, jax.random.key(0), jnp.zeros(shape))
    parameters = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    xs = jnp.zeros((32, *shape))
    assert _residual_bytes(plain, variables, xs) - parameters > 4 * (
        _residual_bytes(remat, variables, xs) - parameters
    )


def test_rematerialisation_and_bfloat16_change_gradients_by_rounding_only():
    shape = (4, 4, 1)
    make = functools.partial(WideResNet, None, 10, 1, "swish")
    variables, xs = _init(make(), shape), jax.random.normal(jax.random.key(1), (8, *shape))

    @functools.partial(_jit, static_argnums=0)
    def value_and_grad(module, variables, xs):
        def total(variables, xs):
            return jnp.sum(jax.vmap(module.apply, (None, 0))(variables, xs))

        return jax.value_and_grad(total, argnums=(0, 1))(variables, xs)

    plain, remat, narrow = (
        value_and_grad(module, variables, xs)
        for module in (make(), make(remat=True), make(dtype=jnp.bfloat16))
    )
    chex.assert_trees_all_close(remat, plain, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal_dtypes(narrow, plain)
    for ours, expected in zip(narrow[1], plain[1], strict=True):
        ours, expected = (
            np.concatenate(jax.tree.leaves(jax.tree.map(np.ravel, tree))) for tree in (ours, expected)
        )
        # 2^-9 a rounding, some twenty in a row.
        assert 1e-5 < np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 20 * 2.0**-9


def test_rematerialised_blocks_keep_names_and_statistics():
    options = {"depth": 16, "width": 1, "norm": "batch", "spectral_norm": True}
    plain, remat = WideResNet(3, **options), WideResNet(3, **options, remat=True)
    variables = jax.eval_shape(plain.init, jax.random.key(0), jnp.zeros((8, 8, 3)))
    refresh = functools.partial(refresh_statistics, remat)
    assert jax.eval_shape(refresh, variables, jnp.zeros((4, 8, 8, 3))) == variables
