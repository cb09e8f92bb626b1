"""Networks that are told a level are energies of one example, or logits, or fields in the shape of x."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxebm.energies import EnergyUNet, LevelConvNet, LevelMLP, level_features
from jaxebm.energies.level_networks import _blocks_to_pixels
from jaxebm.energies.levels import uses_level

pytestmark = pytest.mark.usefixtures("cheap_compilation")

SMALL = {
    "mlp": (functools.partial(LevelMLP, widths=(8, 8)), (4, 4, 1)),
    "waves": (functools.partial(LevelMLP, widths=(8, 8), num_waves=4), (4, 4, 1)),
    "convnet": (functools.partial(LevelConvNet, channels=(4, 8)), (8, 8, 1)),
    "residual": (
        functools.partial(LevelConvNet, channels=(4, 8), blocks=(1, 2), widths=(8,), level_offset=True),
        (8, 8, 1),
    ),
    "unet": (functools.partial(EnergyUNet, channels=(4, 8), field=False), (8, 8, 1)),
}
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _init(module, shape, level=1.0):
    arguments = (jnp.zeros(shape),) if level is None else (jnp.zeros(shape), level)
    return _jit(module.init)(jax.random.key(0), *arguments)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("num_outputs", [None, 1, 7])
def test_output_is_a_scalar_energy_or_logits(name, num_outputs):
    make, shape = SMALL[name]
    module = make(num_outputs)
    output = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros(shape), 1.0)[0]
    assert output.shape == (() if num_outputs is None else (num_outputs,))


@pytest.mark.parametrize("shape", [(4, 4, 1), (5, 7, 2), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("level", [None, 0.5])
def test_fields_have_the_shape_of_x(shape, level):
    arguments = () if level is None else (level,)
    module = EnergyUNet(channels=(4, 8, 8))
    field, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), jnp.zeros(shape), *arguments
    )
    assert field.shape == shape
    assert ("level" in variables["params"]) == (level is not None)


@pytest.mark.parametrize("name", SMALL)
def test_output_depends_on_the_level_and_is_of_order_one(name):
    make, shape = SMALL[name]
    module = make(None)
    variables = _init(module, shape)
    assert uses_level(module.apply, variables, jnp.zeros(shape))
    xs = np.random.default_rng(1).uniform(-1, 1, (16, *shape)).astype("float32")
    levels = np.geomspace(1e-3, 1e2, 16).astype("float32")
    outputs = _jit(jax.vmap(module.apply, (None, 0, 0)))(variables, xs, levels)
    chex.assert_tree_all_finite(outputs)
    assert 1e-3 < np.std(outputs) < 10.0
    same_x = _jit(jax.vmap(module.apply, (None, None, 0)))(variables, xs[0], levels)
    assert np.std(same_x) > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_gradients_by_x_and_level_are_those_of_differences(name):
    make, shape = SMALL[name]
    module = make(None)
    variables = _init(module, shape)
    x = np.random.default_rng(2).uniform(-1, 1, shape).astype("float32")
    apply = jax.jit(module.apply)
    check_grads(lambda x, u: apply(variables, x, jnp.exp(u)), (x, 0.3), 1, ["rev"], rtol=2e-2, eps=1e-2)


@pytest.mark.parametrize(("before", "after"), [(1.0, None), (None, 1.0)])
def test_a_unet_is_told_a_level_at_both_initialisation_and_application_or_at_neither(before, after):
    module, x = EnergyUNet(channels=(4, 8), field=False), jnp.zeros((8, 8, 1))
    variables = jax.eval_shape(module.init, jax.random.key(0), x, before)
    assert jax.eval_shape(module.apply, variables, x, before).shape == ()
    with pytest.raises(ValueError, match="a level must be given to both init and apply, or to neither"):
        jax.eval_shape(module.apply, variables, x, after)


def test_gradients_of_a_field_are_those_of_differences():
    module = EnergyUNet(channels=(2, 4))
    variables = _init(module, (5, 4, 1), None)
    x = np.random.default_rng(2).uniform(-1, 1, (5, 4, 1)).astype("float32")
    apply = jax.jit(module.apply)
    check_grads(lambda x: jnp.sum(apply(variables, x) ** 2), (x,), 1, ["rev"], rtol=2e-2, eps=1e-2)


def test_features_are_smooth_and_of_order_one():
    levels = np.geomspace(1e-3, 1e3, 50).astype("float32")
    features = jax.vmap(level_features)(levels)
    chex.assert_shape(features, (50, 17))
    assert float(jnp.max(jnp.abs(features))) < 2.0
    slopes = jax.vmap(lambda level: level * jax.jacobian(level_features)(level))(levels)
    assert float(jnp.max(jnp.abs(slopes))) < 4.01  # by log sigma: a factor of two moves none around once
    # No two of these levels look alike.
    distances = jnp.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * jnp.eye(50)
    assert float(jnp.min(distances)) > 0.3


def test_blocks_become_pixels():
    channels = jnp.arange(4.0)[None, None, :]
    chex.assert_trees_all_equal(
        _blocks_to_pixels(channels, (2, 2, 1))[..., 0], jnp.array([[0.0, 1.0], [2.0, 3.0]])
    )
    chex.assert_shape(_blocks_to_pixels(jnp.zeros((4, 3, 8)), (7, 5, 2)), (7, 5, 2))


@pytest.mark.parametrize("name", SMALL)
def test_computation_in_bfloat16(name):
    make, shape = SMALL[name]
    module = make(None, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), 1.0)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)} == {"float32"}
    gradient = jax.grad(lambda x, variables: module.apply(variables, x, 1.0))
    output = jax.eval_shape(module.apply, shapes, jnp.zeros(shape), 1.0)
    assert output.dtype == jnp.float32
    assert jax.eval_shape(gradient, jnp.zeros(shape), shapes).dtype == jnp.float32


@pytest.mark.parametrize("name", SMALL)
def test_bad_levels_and_options(name):
    make, shape = SMALL[name]
    variables = _init(make(None), shape)
    for level in (0.0, -1.0, np.nan, np.ones(2)):
        with pytest.raises(ValueError, match="level"):
            make(None).apply(variables, jnp.zeros(shape), level)
    with pytest.raises(ValueError, match="activation"):
        make(None, activation="sine").init(jax.random.key(0), jnp.zeros(shape), 1.0)
    with pytest.raises(ValueError, match="embedding_width"):
        make(None, embedding_width=0).init(jax.random.key(0), jnp.zeros(shape), 1.0)
    with pytest.raises(ValueError, match="without a batch axis"):
        make(None).apply(variables, jnp.zeros((3, *shape)), 1.0)


def test_the_level_offset_moves_all_logits_by_a_function_of_the_level_times_the_entries_of_x():
    make, shape = SMALL["residual"]
    module = make(3)
    variables = _init(module, shape)
    x = jnp.ones(shape)
    before = module.apply(variables, x, 0.3)
    variables["params"]["offset"]["bias"] = variables["params"]["offset"]["bias"] + 0.25
    chex.assert_trees_all_close(module.apply(variables, x, 0.3) - before, jnp.full(3, 0.25 * 64), rtol=1e-4)


def test_residual_layers_keep_the_features_where_they_are_zero():
    plain, residual = (LevelConvNet(2, channels=(4, 8), blocks=blocks) for blocks in ((), (0, 1)))
    variables = _init(residual, (8, 8, 1))
    zeroed = variables["params"] | {
        "block_1_0": jax.tree.map(jnp.zeros_like, variables["params"]["block_1_0"])
    }
    zeroed["block_modulation_1_0"] = jax.tree.map(jnp.zeros_like, zeroed["block_modulation_1_0"])
    x = jnp.linspace(-1, 1, 64).reshape(8, 8, 1)
    both = [module.apply({"params": zeroed}, x, 0.5) for module in (plain, residual)]
    chex.assert_trees_all_close(*both, rtol=1e-6)


def test_bad_options_of_the_networks():
    with pytest.raises(ValueError, match="more than the 1 resolutions"):
        LevelConvNet(None, channels=(4,), blocks=(1, 1)).init(jax.random.key(0), jnp.zeros((8, 8, 1)), 1.0)
    with pytest.raises(ValueError, match="blocks"):
        LevelConvNet(None, channels=(4,), blocks=(-1,)).init(jax.random.key(0), jnp.zeros((8, 8, 1)), 1.0)
    with pytest.raises(ValueError, match="widths"):
        LevelConvNet(None, widths=(0,)).init(jax.random.key(0), jnp.zeros((8, 8, 1)), 1.0)
    with pytest.raises(TypeError, match="level_offset"):
        LevelConvNet(None, level_offset=1).init(jax.random.key(0), jnp.zeros((8, 8, 1)), 1.0)
    with pytest.raises(ValueError, match="num_waves"):
        LevelMLP(None, num_waves=-1).init(jax.random.key(0), jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match="wave_frequency"):
        LevelMLP(None, num_waves=1, wave_frequency=0.0).init(jax.random.key(0), jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match="channels"):
        EnergyUNet(channels=()).init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    with pytest.raises(TypeError, match="field"):
        EnergyUNet(field=1).init(jax.random.key(0), jnp.zeros((8, 8, 1)))
