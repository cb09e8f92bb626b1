"""Potential forms have the gradients that their docstrings state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import (
    EnergyUNet,
    at_level,
    inner_product_energy,
    marginal_energy_at,
    preconditioned_energy,
    preconditioned_logits,
    squared_norm_energy,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

MATRIX = jnp.array([[1.0, 2.0], [-0.5, 3.0]])
X = jnp.array([0.3, -1.2])


def linear(matrix, x):
    return matrix @ x


def linear_at(matrix, x, level):
    return matrix @ x * level


def test_gradients_of_linear_fields():
    inner = jax.grad(inner_product_energy(linear), 1)(MATRIX, X)
    chex.assert_trees_all_close(inner, -(MATRIX + MATRIX.T) @ X, rtol=1e-6)
    squared = jax.grad(squared_norm_energy(linear), 1)(MATRIX, X)
    chex.assert_trees_all_close(squared, MATRIX.T @ MATRIX @ X, rtol=1e-6)


@pytest.mark.parametrize("form", [inner_product_energy, squared_norm_energy])
def test_descent_of_the_energy_ascends_the_potential_of_the_paper(form):
    """Equilibrium matching ascends g = x.f or -|f|^2 / 2."""
    potential = {
        inner_product_energy: lambda x: x @ linear(MATRIX, x),
        squared_norm_energy: lambda x: -0.5 * jnp.sum(linear(MATRIX, x) ** 2),
    }[form]
    chex.assert_trees_all_close(jax.grad(form(linear), 1)(MATRIX, X), -jax.grad(potential)(X), rtol=1e-6)


@pytest.mark.parametrize("form", [inner_product_energy, squared_norm_energy])
def test_fields_that_are_told_a_level(form):
    energy = at_level(form(linear_at), 2.0)
    doubled = form(lambda matrix, x: 2.0 * linear(matrix, x))
    chex.assert_trees_all_close(energy(MATRIX, X), doubled(MATRIX, X))
    assert form(linear_at) == form(linear_at)
    assert hash(form(linear_at)) == hash(form(linear_at))


@pytest.mark.parametrize("form", [inner_product_energy, squared_norm_energy])
def test_fields_of_pytrees_and_of_images(form):
    tree = {"a": jnp.ones(2), "b": jnp.full((1, 3), 2.0, jnp.bfloat16)}
    value = form(lambda scale, x: jax.tree.map(lambda leaf: scale * leaf, x))(1.0, tree)
    assert float(value) == {inner_product_energy: -14.0, squared_norm_energy: 7.0}[form]
    assert value.dtype == jnp.float32
    network = EnergyUNet(channels=(2, 4))
    image = jnp.ones((6, 6, 1))
    variables = network.init(jax.random.key(0), image)
    chex.assert_shape(jax.eval_shape(form(network.apply), variables, image), ())


@pytest.mark.parametrize("form", [inner_product_energy, squared_norm_energy])
def test_a_field_of_another_shape_is_refused(form):
    with pytest.raises(ValueError, match="the output of field has shape"):
        form(lambda params, x: x[:1])(None, X)
    with pytest.raises(TypeError, match="module EnergyUNet: give its function"):
        form(EnergyUNet())


def test_preconditioned_energy_with_no_network_is_that_of_a_gaussian():
    energy_at = preconditioned_energy(lambda params, u, level: 0.0 * level, mean=1.0, scale=2.0)
    level, axis = 1.5, np.linspace(-30, 32, 4001, dtype=np.float32)
    energies = jax.vmap(lambda x: energy_at(None, x[None], level))(axis)
    density = np.exp(-np.asarray(energies, np.float64))
    step = axis[1] - axis[0]
    assert density.sum() * step == pytest.approx(1.0, abs=1e-3)
    assert (density * axis).sum() * step == pytest.approx(1.0, abs=2e-3)
    assert (density * (axis - 1) ** 2).sum() * step == pytest.approx(2.0**2 + 1.5**2, rel=1e-3)


def test_the_network_sees_inputs_and_levels_of_order_one():
    def network(params, u, level):
        return u[0] + 100 * level

    energy_at = preconditioned_energy(network, mean=1.0, scale=3.0)
    plain = preconditioned_energy(lambda params, u, level: 0.0 * level, mean=1.0, scale=3.0)
    x = jnp.array([11.0])
    difference = energy_at(None, x, 4.0) - plain(None, x, 4.0)
    assert float(difference) == pytest.approx(10 / 5 + 100 * 4 / 3, rel=1e-6)


def test_with_unit_slope_the_network_finds_the_denoised_part_of_the_noise():
    """sigma dU/dy = (sigma / sqrt(v)) u + dF/du, at levels far below and far above the scale."""

    def network(params, u, level):
        return params @ u * jnp.log(level)

    energy_at = preconditioned_energy(network, mean=1.0, scale=3.0, unit_slope=True)
    x, slope = jnp.array([4.0, -2.0]), jnp.array([0.3, -0.7])
    for level in (0.01, 2.0, 500.0):
        root = np.sqrt(3.0**2 + level**2)
        found = level * jax.grad(energy_at, 1)(slope, x, level)
        expected = level / root * (x - 1) / root + slope * np.log(level / 3)
        chex.assert_trees_all_close(found, expected, rtol=1e-4)
    logits_at = preconditioned_logits(
        lambda *args: network(*args)[None], mean=1.0, scale=3.0, unit_slope=True
    )
    chex.assert_trees_all_close(logits_at(-slope, x, 0.5)[0], -energy_at(slope, x, 0.5), rtol=1e-5)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": -1.0}, {"mean": np.nan}, {"unit_slope": 1}])
def test_bad_options(options):
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        preconditioned_energy(linear_at, **options)


def test_logits_and_energy_have_the_same_gaussian():
    def network(params, u, level):
        return params @ u * level

    logits_at = preconditioned_logits(network, mean=1.0, scale=2.0)
    marginal = marginal_energy_at(logits_at)
    energy_at = preconditioned_energy(
        lambda params, u, level: -jax.nn.logsumexp(network(params, u, level)), mean=1.0, scale=2.0
    )
    chex.assert_trees_all_close(marginal(MATRIX, X, 0.7), energy_at(MATRIX, X, 0.7), rtol=1e-6)
    u = (X - 1.0) / np.sqrt(2.0**2 + 0.7**2)
    classes = jax.nn.softmax(network(MATRIX, u, 0.35))
    chex.assert_trees_all_close(jax.nn.softmax(logits_at(MATRIX, X, 0.7)), classes, rtol=1e-5)
    with pytest.raises(ValueError, match="the output of network"):
        preconditioned_logits(lambda params, u, level: level)(None, X, 1.0)
