"""The networks are energies of one example, or its logits."""

import functools

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jaxebm.energies.networks import (
    ACTIVATIONS,
    MLP,
    ConvNet,
    WideResNet,
    training_apply,
)

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
        (ConvNet(3, activation="tanhh"), (8, 8, 1), "activation='tanhh'.*'swish', 'leaky_relu'"),
        (ConvNet(3, norm="layer"), (8, 8, 1), "norm='layer'.*'group', 'batch'"),
        (ConvNet(3, channels=(4, -1)), (8, 8, 1), "channels=-1"),
        (ConvNet(3), (5, 8, 8, 1), r"shape \(5, 8, 8, 1\).*without a batch axis.*vmap"),
        (WideResNet(3), (8, 8), r"shape \(8, 8\)"),
        (ConvNet(3), (3, 8, 1), r"shape \(3, 8, 1\).*at least 4 x 4"),
        (MLP(0), (3,), "num_outputs=0"),
        (MLP(3, dtype=jnp.int32), (3,), "dtype=.*int32.*floating-point"),
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
