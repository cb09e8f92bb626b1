"""The networks are energies of one example; their statistics are those of the batch that vmap names."""

import functools

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.test_util import check_grads

from jaxebm.energies.networks import (
    ACTIVATIONS,
    MLP,
    ConvNet,
    WideResNet,
    refresh_statistics,
    trainable,
    training_apply,
)
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")

SMALL = {
    "mlp": (functools.partial(MLP, widths=(8, 8)), (4, 4, 1)),
    "convnet": (functools.partial(ConvNet, channels=(4, 8)), (8, 8, 1)),
    "wide_resnet": (functools.partial(WideResNet, depth=10, width=1), (8, 8, 3)),
}


# The tests compile much and compute little: unoptimised code compiles four times sooner.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _init(module, shape):
    return _jit(module.init)(jax.random.key(0), jnp.zeros(shape))


def _apply(module, variables, xs):
    return _jit(jax.vmap(module.apply, (None, 0)))(variables, xs)


def _apply_training(module, variables, xs):
    return _jit(jax.vmap(training_apply(module), (None, 0), axis_name=BATCH_AXIS))(variables, xs)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("num_outputs", [None, 1, 7])
def test_output_is_a_scalar_energy_or_logits(name, num_outputs):
    make, shape = SMALL[name]
    module = make(num_outputs)
    outputs = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros(shape))[0]
    assert outputs.shape == (() if num_outputs is None else (num_outputs,))


@pytest.mark.parametrize("shape", [(4, 4, 1), (5, 7, 2), (8, 8, 1), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("module", [ConvNet(3), WideResNet(3, depth=10, width=1)])
def test_any_image_size_and_channel_count(module, shape):
    outputs = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros(shape))[0]
    assert outputs.shape == (3,)


def _assert_finite_and_of_order_one(module, shape, apply=_apply):
    variables = _init(module.clone(activation="swish"), shape)  # which no activation changes
    outputs = apply(
        module, variables, np.random.default_rng(1).uniform(-1, 1, (16, *shape)).astype("float32")
    )
    chex.assert_tree_all_finite(outputs)
    assert 1e-3 < np.std(outputs) < 10.0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_at_initialisation_by_activation(activation):
    def apply(module, variables, xs):  # op by op: six networks share all operations but one
        return jax.vmap(module.apply, (None, 0))(variables, xs)

    _assert_finite_and_of_order_one(WideResNet(5, 10, 1, activation), (8, 8, 3), apply)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_outputs_at_initialisation_by_norm(norm):
    _assert_finite_and_of_order_one(WideResNet(5, 10, 1, norm=norm), (8, 8, 3))
    _assert_finite_and_of_order_one(ConvNet(5, channels=(4, 8), norm=norm), (8, 8, 1))


@pytest.mark.slow
def test_a_deep_network_without_normalisation_keeps_its_scale():
    _assert_finite_and_of_order_one(WideResNet(5, depth=40, width=1), (8, 8, 3))


def test_wide_resnet_28_10_has_the_published_number_of_parameters():
    """36.5M with batch normalisation and without convolution biases (arXiv 1605.07146, table 5)."""
    module = WideResNet(10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((32, 32, 3)))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert abs(count - 36.5e6) < 0.05e6


def test_convnet_is_small():
    shapes = jax.eval_shape(ConvNet(10).init, jax.random.key(0), jnp.zeros((8, 8, 1)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 80_074


@pytest.mark.parametrize(
    ("name", "activation"), [("mlp", "swish"), ("convnet", "swish"), ("convnet", "gelu")]
)
def test_gradients_match_finite_differences(name, activation):
    make, _ = SMALL[name]
    module, shape = make(None, activation=activation), (4, 4, 1)
    variables, x = _init(module, shape), jax.random.normal(jax.random.key(1), shape)
    check_grads(jax.jit(module.apply), (variables, x), order=1, atol=2e-2, rtol=2e-2)


def test_mlp_is_its_formula_and_ignores_the_shape_of_x():
    module = MLP(3, widths=(5,), activation="softplus")
    variables = _init(module, (2, 3))
    x = jax.random.normal(jax.random.key(1), (2, 3))
    hidden, output = (variables["params"][name] for name in ("hidden_0", "output"))
    expected = jax.nn.softplus(x.reshape(-1) @ hidden["kernel"] + hidden["bias"]) @ output["kernel"]
    np.testing.assert_allclose(module.apply(variables, x), expected + output["bias"], rtol=1e-5)
    np.testing.assert_array_equal(module.apply(variables, x.reshape(6)), module.apply(variables, x))


def test_mlp_permuted_with_its_first_kernel_is_the_same_energy():
    module = MLP(None, widths=(8,))
    variables = _init(module, (6,))
    x, order = jax.random.normal(jax.random.key(1), (6,)), jnp.array([3, 1, 0, 5, 4, 2])
    permuted = flax.core.copy(variables)
    kernel = variables["params"]["hidden_0"]["kernel"]
    permuted["params"]["hidden_0"] = {**variables["params"]["hidden_0"], "kernel": kernel[order]}
    np.testing.assert_allclose(module.apply(permuted, x[order]), module.apply(variables, x), rtol=1e-5)


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


def test_batch_norm_under_vmap_equals_the_batched_reference():
    module = ConvNet(3, channels=(4,), norm="batch")
    variables = _init(module, (8, 8, 1))
    xs = 3.0 + 2.0 * jax.random.normal(jax.random.key(1), (16, 8, 8, 1))

    class Batched(nn.Module):
        @nn.compact
        def __call__(self, xs):
            h = nn.Conv(4, (4, 4), (2, 2), name="level_0")(xs)
            h = nn.BatchNorm(use_running_average=False, name="BatchNorm_0")(h)
            return nn.Dense(3, name="output")(nn.swish(h).reshape(len(xs), -1))

    reference = _jit(functools.partial(Batched().apply, mutable=["batch_stats"]))
    expected, updated = reference(variables, xs)
    actual = _apply_training(module, variables, xs)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    refreshed = _jit(functools.partial(refresh_statistics, module))(variables, xs)
    chex.assert_trees_all_close(refreshed["batch_stats"], updated["batch_stats"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal(refreshed["params"], variables["params"])
    assert jax.tree.structure(refreshed) == jax.tree.structure(variables)


def test_running_statistics_converge_to_those_of_the_batch():
    module = ConvNet(3, channels=(4,), norm="batch")
    variables = _init(module, (8, 8, 1))
    xs = 3.0 + 2.0 * jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    refresh = jax.jit(functools.partial(refresh_statistics, module))
    variables = jax.lax.fori_loop(0, 1500, lambda _, variables: refresh(variables, xs), variables)
    batch = _apply_training(module, variables, xs)
    # Momentum .99 leaves .99^1500 = 3e-7 of the start.
    np.testing.assert_allclose(_apply(module, variables, xs), batch, rtol=1e-3, atol=1e-3)


def test_batch_statistics_outside_the_named_axis_are_refused():
    module = ConvNet(3, channels=(4,), norm="batch")
    variables = _init(module, (8, 8, 1))
    with pytest.raises(ValueError, match="axis_name=BATCH_AXIS"):
        training_apply(module)(variables, jnp.zeros((8, 8, 1)))


def test_spectral_norm_divides_by_the_largest_singular_value():
    module = ConvNet(3, channels=(4, 8), spectral_norm=True)
    variables = _init(module, (8, 8, 1))
    xs = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    refresh = jax.jit(functools.partial(refresh_statistics, module))
    variables = jax.lax.fori_loop(0, 200, lambda _, variables: refresh(variables, xs), variables)
    divided = flax.core.copy(variables["params"])
    for layer in divided.values():
        matrix = layer["kernel"].reshape(-1, layer["kernel"].shape[-1])
        layer["kernel"] = layer["kernel"] / np.linalg.svd(matrix, compute_uv=False)[0]
    expected = _apply(ConvNet(3, channels=(4, 8)), {"params": divided}, xs)
    np.testing.assert_allclose(_apply(module, variables, xs), expected, rtol=1e-3, atol=1e-4)


def test_refresh_without_statistics_is_the_identity():
    module = MLP(2, widths=(4,))
    variables = _init(module, (3,))
    assert refresh_statistics(module, variables, jnp.ones((5, 3))) is variables


def test_trainable_updates_parameters_only():
    module = ConvNet(None, channels=(4,), norm="batch")
    variables = _init(module, (8, 8, 1))
    xs = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    optimizer = trainable(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)))

    @jax.jit
    def step(variables):
        gradients = jax.grad(lambda v: jnp.mean(jax.vmap(module.apply, (None, 0))(v, xs)))(variables)
        updates, _ = optimizer.update(gradients, optimizer.init(variables), variables)
        return optax.apply_updates(variables, updates), gradients

    updated, gradients = step(variables)
    assert float(optax.tree.norm(gradients["batch_stats"])) > 0.0
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), updated["params"], variables["params"])
    assert all(jax.tree.leaves(moved))
    with pytest.raises(ValueError, match="collection 'params'"):
        trainable(optax.sgd(1.0)).init({"weights": jnp.ones(2)})


@pytest.mark.parametrize("name", SMALL)
def test_equal_modules_hash_equal(name):
    make, _ = SMALL[name]
    assert make(3) == make(3)
    assert hash(make(3)) == hash(make(3))
    assert make(3) != make(4)
    assert training_apply(make(3)) == training_apply(make(3))
    assert hash(training_apply(make(3))) == hash(training_apply(make(3)))


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_second_call_does_not_trace_again(name):
    make, shape = SMALL[name]
    module, variables, traces = make(3), _init(make(3), shape), []

    @functools.partial(_jit, static_argnums=0)
    def logits(function, variables, x):
        traces.append(function)
        return function(variables, x)

    for function in (module.apply, module.apply, training_apply(make(3)), training_apply(make(3))):
        variables = jax.tree.map(lambda leaf: leaf + 1.0, variables)
        logits(function, variables, jnp.zeros(shape))
    assert len(traces) == 2


def test_nnx_models_are_energies_by_split_and_merge():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 8, rngs=rngs)
            self.second = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.second(jax.nn.swish(self.first(x)))[0]

    model = Model(nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    energy = lambda params, x: nnx.merge(graphdef, params)(x)  # noqa: E731
    xs = jax.random.normal(jax.random.key(1), (5, 2))
    energies = jax.jit(jax.vmap(energy, (None, 0)))(params, xs)
    np.testing.assert_allclose(energies, [model(x) for x in xs], rtol=1e-5)
    scores = jax.jit(jax.vmap(jax.grad(energy, argnums=1), (None, 0)))(params, xs)
    assert scores.shape == (5, 2)
    gradients = jax.jit(jax.grad(lambda p: jnp.mean(jax.vmap(energy, (None, 0))(p, xs))))(params)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    check_grads(functools.partial(energy, params), (xs[0],), order=1, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (WideResNet(3, depth=12), (8, 8, 3), r"depth=12.*6n \+ 4"),
        (WideResNet(3, depth=4), (8, 8, 3), "depth=4"),
        (WideResNet(3, width=0), (8, 8, 3), "width=0"),
        (ConvNet(3, activation="tanhh"), (8, 8, 1), "activation='tanhh'.*swish, leaky_relu"),
        (ConvNet(3, norm="layer"), (8, 8, 1), "norm='layer'.*'group', 'batch'"),
        (ConvNet(3, channels=(4, -1)), (8, 8, 1), "channels=-1"),
        (ConvNet(3), (5, 8, 8, 1), r"shape \(5, 8, 8, 1\).*without a batch axis.*vmap"),
        (WideResNet(3), (8, 8), r"shape \(8, 8\)"),
        (ConvNet(3), (3, 8, 1), r"shape \(3, 8, 1\).*at least 4 x 4"),
        (MLP(0), (3,), "num_outputs=0"),
        (MLP(3, activation="sine"), (3,), "activation='sine'"),
    ],
)
def test_bad_input_is_named(module, shape, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), jnp.zeros(shape))


def test_a_batch_where_one_example_belongs_is_named():
    for module, shape in ((MLP(3, widths=(4,)), (6,)), (ConvNet(3, channels=(4,)), (8, 8, 1))):
        variables = _init(module, shape)
        larger = jnp.zeros((5, *shape)) if len(shape) == 1 else jnp.zeros((12, 12, 1))
        with pytest.raises(ValueError, match="initialised for"):
            module.apply(variables, larger)
