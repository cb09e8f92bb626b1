"""What the networks have in common: norms, and a dtype that energies and parameters do not share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.network_layers import CastConvolution
from jaxebm.energies.networks import MLP, ConvNet
from jaxebm.samplers.chains import run_chains
from jaxebm.samplers.langevin import sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# bfloat16 keeps 8 bits: one rounding changes a number by at most 2^-9 of it. On the way to an energy some ten
# are rounded in a row, twice as many on the way to a gradient, with signs that partly cancel.
ROUNDING = 2.0**-9
NARROW = {
    "mlp": (functools.partial(MLP, None, (16, 16)), (4, 4, 1)),
    "convnet": (functools.partial(ConvNet, None, (4,), norm="group", spectral_norm=True), (8, 8, 1)),
}


# The tests compile much and compute little: unoptimised code compiles four times sooner.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _init(module, shape):
    return _jit(module.init)(jax.random.key(0), jnp.zeros(shape))


def test_group_norm_standardises_each_example_by_itself():
    """Scale and shift of the convolved image cancel: the network after it cannot see them."""
    module = ConvNet(4, channels=(16,), norm="group")
    variables = _init(module, (8, 8, 1))
    assert set(variables) == {"params"}
    look = _jit(functools.partial(module.apply, capture_intermediates=True))
    captured = look(variables, jax.random.normal(jax.random.key(1), (8, 8, 1)))[1]
    normalised = captured["intermediates"]["GroupNorm_0"]["__call__"][0].reshape(16, 8, 2)
    np.testing.assert_allclose(normalised.mean((0, 2)), np.zeros(8), atol=1e-5)
    np.testing.assert_allclose(normalised.var((0, 2)), np.ones(8), rtol=1e-3)


def _relative_error(narrow, wide):
    narrow, wide = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (narrow, wide)
    )
    return np.linalg.norm(narrow - wide) / np.linalg.norm(wide)


@pytest.mark.parametrize("name", NARROW)
def test_bfloat16_energies_and_gradients_are_those_of_float32_to_rounding(name):
    make, shape = NARROW[name]
    wide, narrow = make(), make(dtype=jnp.bfloat16)
    variables = _init(wide, shape)
    shapes = jax.eval_shape(narrow.init, jax.random.key(0), jnp.zeros(shape))
    assert shapes == jax.eval_shape(lambda: variables)  # float32, under the same names
    xs = jax.random.normal(jax.random.key(1), (16, *shape))

    @functools.partial(_jit, static_argnums=0)
    def energies_and_gradients(module, params, x):
        def total(params, x):
            energies = jax.vmap(module.apply, (None, 0))({**variables, "params": params}, x)
            return jnp.sum(energies), energies

        gradients, energies = jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)
        return energies, *gradients

    ours = energies_and_gradients(narrow, variables["params"], xs)
    expected = energies_and_gradients(wide, variables["params"], xs)
    for leaf in jax.tree.leaves(ours):
        assert leaf.dtype == jnp.float32
    for error, bound in zip(map(_relative_error, ours, expected), (6, 10, 10), strict=True):
        assert ROUNDING / 100 < error < bound * ROUNDING


def test_the_last_layer_and_the_statistics_leave_bfloat16():
    module = ConvNet(3, (4,), norm="batch", dtype=jnp.bfloat16)
    variables = _init(module, (8, 8, 1))
    look = functools.partial(module.apply, capture_intermediates=True)
    _, captured = jax.eval_shape(look, variables, jnp.zeros((8, 8, 1)))
    dtypes = {
        name: layer["__call__"][0].dtype
        for name, layer in captured["intermediates"].items()
        if name != "__call__"
    }
    assert dtypes == {"level_0": jnp.bfloat16, "BatchNorm_0": jnp.bfloat16, "output": jnp.float32}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    # At a level of a thousand bfloat16 could not tell energies apart that differ by less than 4.
    module = MLP(None, (4,), dtype=jnp.bfloat16)
    variables = _init(module, (2,))
    output = variables["params"]["output"]
    shifted = {"params": {**variables["params"], "output": {**output, "bias": output["bias"] + 1000.0}}}
    x = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(module.apply(shifted, x) - 1000.0, module.apply(variables, x), atol=2e-4)


def test_a_chain_on_a_bfloat16_network_keeps_positions_and_noise_in_float32():
    wide, narrow = MLP(None, (16, 16)), MLP(None, (16, 16), dtype=jnp.bfloat16)
    variables = _init(wide, (2,))
    start = jax.random.normal(jax.random.key(1), (64, 2))

    @functools.partial(_jit, static_argnums=0)
    def last(module, scale):
        kernel = sgld(lambda x: scale * module.apply(variables, x), 0.1, 0.1)
        return run_chains(jax.random.key(2), kernel, start, 10)[0].position

    ours, expected, noise = last(narrow, 1.0), last(wide, 1.0), last(narrow, 0.0)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(noise, last(wide, 0.0))
    # What the gradients moved, against float32, within the bound of one gradient.
    assert 0.0 < _relative_error(ours - noise, expected - noise) < 10 * ROUNDING


def test_a_cast_convolution_stores_its_parameters_as_initialised():
    layer = CastConvolution(5, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((4, 4, 1), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
