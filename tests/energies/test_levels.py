"""Energies that are told a level: what they compute, how they compare, and which of them use the level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import ACTIVATIONS, MLP, at_level, joint_energy_at, marginal_energy_at
from jaxebm.energies.classifier import JointEnergy, joint_energy, marginal_energy
from jaxebm.energies.levels import depends_on_last, uses_level
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")

X = jnp.array([0.5, -1.0])
PARAMS = jnp.arange(6.0).reshape(3, 2) / 5


def energy_at(params, x, level):
    return jnp.sum(params @ x) ** 2 / (1 + level**2)


def logits_at(params, x, level):
    return params @ x / (1 + level)


# --- energies at a level ---


def test_a_bound_level_is_the_level_that_the_energy_is_told():
    for level in (0.0, 0.5, np.float32(2.0), jnp.array(3.0)):
        assert float(at_level(energy_at, level)(PARAMS, X)) == float(energy_at(PARAMS, X, level))
    # Levels may be traced.
    found = jax.vmap(lambda level: at_level(energy_at, level)(PARAMS, X))(jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(found, energy_at(PARAMS, X, 0.0) / jnp.array([1.0, 2.0, 5.0]), rtol=1e-6)


def test_the_energies_of_logits_are_those_of_the_logits_at_the_level():
    bound = at_level(logits_at, 0.5)
    wanted = marginal_energy(bound)(PARAMS, X), joint_energy(bound)(PARAMS, X, 2)
    found = marginal_energy_at(logits_at)(PARAMS, X, 0.5), joint_energy_at(logits_at)(PARAMS, X, 2, 0.5)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert isinstance(at_level(joint_energy_at(logits_at), 0.5), JointEnergy)
    np.testing.assert_allclose(at_level(joint_energy_at(logits_at), 0.5)(PARAMS, X, 2), wanted[1])
    np.testing.assert_allclose(at_level(marginal_energy_at(logits_at), 0.5)(PARAMS, X), wanted[0])


def test_energies_of_equal_parts_are_equal_and_compile_once():
    assert at_level(energy_at, 0.5) == at_level(energy_at, np.float32(0.5))
    assert hash(at_level(energy_at, 0.5)) == hash(at_level(energy_at, 0.5))
    assert at_level(energy_at, 0.5) != at_level(energy_at, 0.6)
    assert at_level(energy_at, 0.5) != at_level(logits_at, 0.5)
    assert marginal_energy_at(logits_at) == marginal_energy_at(logits_at)
    assert joint_energy_at(logits_at) == joint_energy_at(logits_at)
    assert at_level(joint_energy_at(logits_at), 0.5) == at_level(joint_energy_at(logits_at), 0.5)

    def of_a_traced_level(level):
        assert at_level(energy_at, level) != at_level(energy_at, level)
        assert hash(at_level(energy_at, level)) is not None
        return level

    jax.jit(of_a_traced_level)(1.0)


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: at_level(energy_at, -0.1), ValueError, "level=-0.1"),
        (lambda: at_level(energy_at, jnp.ones(2)), ValueError, r"level has shape \(2,\)"),
        (lambda: at_level(lambda params, x: 0.0, 1.0), TypeError, "energy_at"),
        (lambda: marginal_energy_at(lambda params, x: x), TypeError, "logits_at"),
        (lambda: joint_energy_at(3), TypeError, "logits_at"),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()


# --- which energies use the level ---


def computes_and_forgets(params, x, level):
    _ = jnp.exp(level) * x
    return jnp.sum(params @ x)


def in_a_loop(params, x, level):
    return jax.lax.scan(lambda carry, _: (carry * level, None), jnp.sum(params @ x), None, length=3)[0]


def adds_a_constant(params, x, level):
    return jnp.sum(params @ x) ** 2 + jnp.log(level)


def through_a_custom_derivative(params, x, level):
    return jnp.sum(params @ jax.nn.relu(x / level))


def ignored_by_a_custom_derivative(params, x, level):
    @jax.custom_jvp
    def first(x, level):
        return jnp.sin(x)

    first.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), jnp.cos(primals[0]) * tangents[0]))
    return jnp.sum(params @ first(x, level))


USES = [
    (energy_at, True),
    (lambda params, x, level: jnp.sum(params @ x), False),
    (computes_and_forgets, False),
    (in_a_loop, True),
    (adds_a_constant, True),
    (through_a_custom_derivative, True),
    (ignored_by_a_custom_derivative, False),
    (lambda params, x, level: level, True),
    (lambda params, x, level: 1.0, False),
    (marginal_energy_at(logits_at), True),
    (marginal_energy_at(lambda params, x, level: params @ x), False),
]


@pytest.mark.parametrize(("function", "uses"), USES)
@pytest.mark.parametrize("wrapped", [lambda function: function, jax.jit, jax.checkpoint])
def test_uses_level_looks_through_calls_and_past_what_is_not_used(function, uses, wrapped):
    assert uses_level(wrapped(function), PARAMS, X) is uses
    assert uses_level(wrapped(lambda *arguments: wrapped(function)(*arguments)), PARAMS, X) is uses


def test_a_level_that_adds_a_constant_is_not_used_by_the_gradient():
    for function, uses in ((adds_a_constant, False), (energy_at, True), (in_a_loop, True)):
        assert uses_level(jax.grad(function, argnums=1), PARAMS, X) is uses
        assert uses_level(jax.grad(jax.jit(function), argnums=1), PARAMS, X) is uses


def test_uses_level_works_where_a_loss_is_traced():
    """Under vmap over a named axis, jit and grad, on traced parameters and pytrees, and computes nothing."""

    def normalised(params, x, level):  # by the batch
        return jnp.sum(params["w"] @ (x["a"] - jax.lax.pmean(x["a"], BATCH_AXIS))) + 0 * jnp.sum(x["b"])

    def with_level(params, x, level):
        return normalised(params, x, level) * level

    found = []

    def loss(params, xs):
        def one(params, x):
            found.extend([uses_level(normalised, params, x), uses_level(with_level, params, x)])
            return with_level(params, x, 1.0)

        return jnp.sum(jax.vmap(one, (None, 0), axis_name=BATCH_AXIS)(params, xs))

    batch = {"a": jnp.ones((4, 2)), "b": jnp.ones(4)}
    jax.eval_shape(jax.jit(jax.grad(loss)), {"w": PARAMS}, batch)
    assert found == [False, True]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_piecewise_linear_networks_have_no_second_derivative(activation):
    network = MLP(1, (4, 4), activation=activation)
    params = jax.eval_shape(network.init, jax.random.key(0), X)

    def product(params, x, direction):
        slope = jax.grad(lambda x: network.apply(params, x).reshape(()))
        return jax.jvp(slope, (x,), (direction,))[1]

    assert depends_on_last(product, params, X, X) is (activation not in ("relu", "leaky_relu"))
