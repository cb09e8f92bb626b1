"""Modules taken apart: the parts make the whole, and are what the layers' own formulas say."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxebm.energies import (
    MLP,
    ConvNet,
    Convolution,
    WideResNet,
    first_submodule,
    joint_energy,
    marginal_energy,
    split_energy,
    submodule_input,
    submodule_output,
)
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(jnp.tanh(nn.Dense(5)(x)))


class OfAUser(nn.Module):
    """Submodules from ``setup``, one inside of another, and an input that reaches the output past both."""

    def setup(self):
        self.encoder = Encoder()
        self.head = nn.Dense(3)

    def __call__(self, x):
        return self.head(self.encoder(x)) + jnp.sum(x**2)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        return nn.Dense(3)(shared(shared(x)))


class WithoutLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return self.param("scale", nn.initializers.ones, ()) * x[:3]


class Case(NamedTuple):
    module: nn.Module
    name: str
    shape: tuple[int, ...]
    first: str
    gradients: tuple[int, ...] = (0, 1)  # of variables and x; those of large networks take seconds to compile


IMAGE = (8, 8, 1)
SMALL = {"num_outputs": 3, "channels": (4, 3)}
RESNET = {"num_outputs": 3, "depth": 10, "width": 1}
CASES = {
    "mlp": Case(MLP(3, widths=(5, 4)), "hidden_0", (4,), "hidden_0"),
    "scalar": Case(MLP(None, widths=(5, 4)), "hidden_1", (4,), "hidden_0"),
    "convnet": Case(ConvNet(**SMALL), "level_0", IMAGE, "level_0"),
    "spectral": Case(ConvNet(**SMALL, norm="batch", spectral_norm=True), "level_0", IMAGE, "level_0"),
    "wrapper": Case(ConvNet(**SMALL, spectral_norm=True), "SpectralNorm_1", IMAGE, "level_0", ()),
    "resnet": Case(WideResNet(**RESNET, norm="batch"), "stem", IMAGE, "stem", (1,)),
    # Inside of a rematerialised block, which Flax calls under a transformation of its own.
    "remat": Case(WideResNet(**RESNET, remat=True), "group_1_block_0_second", IMAGE, "stem", ()),
    "user": Case(OfAUser(), "encoder", (4,), "encoder"),
    "nested": Case(OfAUser(), "encoder/Dense_0", (4,), "encoder"),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def make_variables(module, x):
    """Parameters and running statistics at random, without compiling an initialisation."""
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(scale=0.4, size=leaf.shape), variables["params"])
    rest = {name: variables[name] for name in variables if name != "params"}
    rest = jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, size=leaf.shape), rest)  # variances among them
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {"params": params, **rest})


@all_cases
def test_the_parts_make_the_whole_and_its_gradients(case):
    x = jax.random.normal(jax.random.key(1), case.shape)
    variables = make_variables(case.module, x)
    energy = split_energy(case.module, case.name)

    def apart(variables, x):
        target = energy.bind(variables)
        return target.rest(x, target.first(x))

    def whole(variables, x):
        output = case.module.apply(variables, x)
        return output if output.ndim == 0 else -jax.nn.logsumexp(output)

    def evaluate(variables, x):
        values = apart(variables, x), whole(variables, x)
        if not case.gradients:
            return values, ()
        return values, tuple(jax.grad(function, case.gradients)(variables, x) for function in (apart, whole))

    (found, expected), gradients = jax.jit(evaluate)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if case.gradients:
        chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)
        assert float(jnp.abs(gradients[0][-1]).max()) > 0


@all_cases
def test_the_first_layer_is_named_by_itself(case):
    assert first_submodule(case.module, jax.ShapeDtypeStruct(case.shape, jnp.float32)) == case.first


# --- what the parts are ---


def test_the_first_dense_layer_is_its_formula():
    x = jax.random.normal(jax.random.key(1), (4,))
    module = MLP(3, widths=(5,))
    variables = make_variables(module, x)
    layers = variables["params"]
    h = submodule_output(module, "hidden_0")(variables, x)
    np.testing.assert_allclose(h, x @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"], rtol=1e-5)
    # The rest, given another h than x's: swish and the last layer.
    h = jnp.linspace(-2.0, 2.0, 5)
    logits = jax.nn.swish(h) @ layers["output"]["kernel"] + layers["output"]["bias"]
    rest = split_energy(module, "hidden_0").bind(variables).rest(x, h)
    assert float(rest) == pytest.approx(-float(jax.nn.logsumexp(logits)), rel=1e-5)
    rest = split_energy(module, "hidden_0", "joint").bind(variables, 2).rest(x, h)
    assert float(rest) == pytest.approx(-float(logits[2]), rel=1e-5)


def test_the_first_convolution_is_its_module_and_features_go_into_the_last_layer():
    x = jax.random.normal(jax.random.key(1), IMAGE)
    module = ConvNet(**SMALL)
    variables = make_variables(module, x)
    layers = variables["params"]
    found, features, logits, expected = jax.jit(
        lambda variables, x: (
            submodule_output(module, "level_0")(variables, x),
            submodule_input(module, "output")(variables, x),
            module.apply(variables, x),
            Convolution(4, (4, 4), (2, 2)).apply({"params": variables["params"]["level_0"]}, x),
        )
    )(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        features @ layers["output"]["kernel"] + layers["output"]["bias"], logits, rtol=1e-4, atol=1e-5
    )


def test_a_layer_and_its_wrapper_return_the_same():
    x = jax.random.normal(jax.random.key(1), IMAGE)
    module = ConvNet(**SMALL, spectral_norm=True)
    variables = make_variables(module, x)
    layer, wrapper = jax.jit(
        lambda variables, x: tuple(
            submodule_output(module, name)(variables, x) for name in ("level_0", "SpectralNorm_0")
        )
    )(variables, x)
    np.testing.assert_array_equal(layer, wrapper)


# --- as an energy ---


def test_it_is_the_energy_of_the_classifier_in_a_batch_of_classes():
    module = MLP(3, widths=(5,))
    xs = jax.random.normal(jax.random.key(2), (6, 4))
    variables = make_variables(module, xs[0])
    labels = jnp.arange(6) % 3
    marginal, joint = split_energy(module, "hidden_0"), split_energy(module, "hidden_0", "joint")

    def bound(x, label):
        return marginal.bind(variables, label)(x), joint.bind(variables, label)(x)

    found = jax.vmap(bound, axis_name=BATCH_AXIS)(xs, labels)
    expected = (
        jax.vmap(marginal_energy(module.apply), (None, 0))(variables, xs),
        jax.vmap(joint_energy(module.apply), (None, 0, 0))(variables, xs, labels),
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    # Called as an EnergyFn, and as a JointEnergyFn that ignores its label.
    for label in ((), (1,)):
        assert float(marginal(variables, xs[0], *label)) == pytest.approx(float(found[0][0]), rel=1e-6)


def test_equal_modules_do_not_trace_again():
    chex.clear_trace_counter()

    def evaluate(energy, variables, x):
        target = energy.bind(variables)
        return target.rest(x, target.first(x))

    evaluate = jax.jit(chex.assert_max_traces(evaluate, n=1), static_argnums=0)
    x = jnp.ones(4)
    variables = MLP(3, widths=(5,)).init(jax.random.key(0), x)
    for scale in (1.0, 2.0):
        energy = split_energy(MLP(3, widths=(5,)), "hidden_0")
        evaluate(energy, jax.tree.map(lambda leaf, scale=scale: scale * leaf, variables), x)
    assert submodule_input(MLP(3), "output") == submodule_input(MLP(3), "output")
    assert submodule_input(MLP(3), "output") != submodule_output(MLP(3), "output")


# --- refusals ---


def test_an_unknown_name_is_told_which_there_are():
    module, x = OfAUser(), jnp.ones(4)
    variables = module.init(jax.random.key(0), x)
    for call in (
        lambda: submodule_output(module, "decoder")(variables, x),
        lambda: submodule_input(module, "decoder")(variables, x),
        lambda: split_energy(module, "decoder").bind(variables).rest(x, x),
    ):
        with pytest.raises(ValueError, match=r"name='decoder': OfAUser.*encoder, head"):
            call()


def test_a_submodule_that_is_called_twice_is_refused():
    module, x = Twice(), jnp.ones(4)
    variables = module.init(jax.random.key(0), x)
    for call in (
        lambda: submodule_output(module, "shared")(variables, x),
        lambda: split_energy(module, "shared").bind(variables).rest(x, x),
    ):
        with pytest.raises(ValueError, match=r"name='shared': Twice calls this submodule 2 times"):
            call()


def test_a_joint_energy_needs_logits_and_a_class():
    x = jnp.ones(4)
    module = MLP(None, widths=(5,))
    variables = module.init(jax.random.key(0), x)
    energy = split_energy(module, "hidden_0", "joint")
    with pytest.raises(ValueError, match=r"logits.*shape \(\)"):
        energy(variables, x, 0)
    with pytest.raises(ValueError, match="label=None"):
        energy.bind(variables)
    with pytest.raises(ValueError, match="label=None"):
        energy(variables, x)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: split_energy(jnp.sum, "stem"), TypeError, "module=.*flax.linen.Module"),
        (lambda: split_energy(MLP(3), "hidden_0", "conditional"), ValueError, "kind='conditional'.*'joint'"),
        (lambda: split_energy(MLP(3), ""), ValueError, "name=''"),
        (lambda: submodule_output(MLP(3), 0), ValueError, "name=0"),
        (lambda: first_submodule(lambda x: x, jnp.ones(4)), TypeError, "module"),
        (
            lambda: first_submodule(WithoutLayers(), jnp.ones(4)),
            ValueError,
            "WithoutLayers calls no submodule",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call()
