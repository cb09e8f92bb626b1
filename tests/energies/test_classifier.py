"""The identities between joint, marginal and conditional of one classifier, exactly."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxebm.energies.classifier import (
    class_conditional_target,
    complement_energy,
    joint_energy,
    log_class_probability,
    marginal_energy,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CLASSES = 4


def logits(params, x):
    hidden = jnp.tanh(params["first"] @ x)
    # The last term makes exp(f) integrable over the plane.
    return params["second"] @ hidden + params["bias"] - 0.5 * jnp.sum(x**2)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "first": jax.random.normal(keys[0], (5, 2)),
        "second": jax.random.normal(keys[1], (NUM_CLASSES, 5)),
        "bias": jax.random.normal(keys[2], (NUM_CLASSES,)),
    }


@pytest.fixture(scope="module")
def points():
    return jax.random.normal(jax.random.key(1), (32, 2))


@pytest.fixture(scope="module")
def labels():
    return jnp.arange(NUM_CLASSES)


def joint_energies(params, x, labels):
    return jax.vmap(joint_energy(logits), (None, None, 0))(params, x, labels)


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, None))
def at_points(params, x, labels):
    """Logits, E(x, y) of every class, E(x) and log p(y | x), at each of many points."""
    posterior = log_class_probability(logits)(params, x)
    joint = joint_energies(params, x, labels)
    return logits(params, x), joint, marginal_energy(logits)(params, x), posterior


def test_energies_are_the_negative_logits_and_their_logsumexp(params, points, labels):
    values, joint, marginal, posterior = at_points(params, points, labels)
    f = np.asarray(values, np.float64)
    log_sum = np.log(np.sum(np.exp(f), axis=1))
    np.testing.assert_allclose(joint, -f, atol=1e-6)
    np.testing.assert_allclose(marginal, -log_sum, atol=1e-6)
    np.testing.assert_allclose(posterior, f - log_sum[:, None], atol=1e-6)


def test_summing_the_classes_out_of_the_joint_gives_the_marginal(params, points, labels):
    _, joint, marginal, _ = at_points(params, points, labels)
    np.testing.assert_allclose(np.exp(-joint).sum(axis=1), np.exp(-marginal), rtol=1e-5)


def test_log_joint_is_log_posterior_plus_log_marginal(params, labels):
    """On a grid, with the *same* Z for p(x, y), summed over the pairs, and p(x), summed over x."""
    line = np.linspace(-7, 7, 141)
    grid = jnp.asarray(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2), jnp.float32)
    cell = (line[1] - line[0]) ** 2
    joint, marginal, posterior = (
        np.asarray(part, np.float64) for part in at_points(params, grid, labels)[1:]
    )
    log_z_joint = np.log(np.exp(-joint).sum() * cell)
    log_z_marginal = np.log(np.exp(-marginal).sum() * cell)
    assert abs(log_z_joint - log_z_marginal) < 1e-6
    log_joint, log_marginal = -joint - log_z_joint, -marginal - log_z_marginal
    near = np.sum(np.asarray(grid) ** 2, axis=1) < 9  # where float32 energies carry 1e-6
    np.testing.assert_allclose(log_joint[near], (posterior + log_marginal[:, None])[near], atol=5e-6)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda value: jnp.asarray(np.asarray(value, np.float64)), params)
        _, joint, marginal, posterior = at_points(exact, jnp.array([[0.3, -1.2]]), labels)
        np.testing.assert_allclose(-joint, posterior - marginal[:, None], atol=1e-13)


def test_gradient_of_the_marginal_is_the_posterior_mean_of_the_joint_gradients(params, points, labels):
    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def both_sides(params, x):
        posterior = jnp.exp(log_class_probability(logits)(params, x))
        joint_gradient = jax.vmap(jax.grad(joint_energy(logits), argnums=(0, 1)), (None, None, 0))
        expected = jax.tree.map(
            lambda gradient: jnp.tensordot(posterior, gradient, axes=1), joint_gradient(params, x, labels)
        )
        return jax.grad(marginal_energy(logits), argnums=(0, 1))(params, x), expected

    chex.assert_trees_all_close(*both_sides(params, points[:4]), atol=1e-6)


def test_gradients(params, points):
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda value: jnp.asarray(np.asarray(value, np.float64)), params)
        x = jnp.array([0.3, -1.2])
        for energy in (marginal_energy(logits), class_conditional_target_energy):
            jax.test_util.check_grads(jax.jit(energy), (exact, x), order=1, atol=1e-6, rtol=1e-6)


def class_conditional_target_energy(params, x):
    return class_conditional_target(logits, params, 2)(x)


def test_complement_is_what_the_other_classes_leave(params, points, labels):
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def both_sides(x, y):
        return complement_energy(logits)(params, x, y), log_class_probability(logits)(params, x)[y]

    found, posterior = (np.asarray(part, np.float64) for part in both_sides(points, labels))
    np.testing.assert_allclose(np.exp(-found), 1 - np.exp(posterior), rtol=2e-5)
    out_of_range = jax.vmap(complement_energy(logits), (None, None, 0))(params, points[0], jnp.array([-1, 4]))
    assert np.isnan(out_of_range).all()


def test_complement_is_stable_where_the_class_is_certain():
    energy = complement_energy(lambda params, x: jnp.stack([x, -x]))  # -log sigmoid(-2 x)
    value, gradient = jax.value_and_grad(energy, argnums=1)(None, jnp.asarray(300.0), 0)
    assert float(value) == pytest.approx(600.0)
    assert float(gradient) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="one class"):
        complement_energy(lambda params, x: x[None])(None, jnp.zeros(()), 0)
    with pytest.raises(ValueError, match="y spans 2"):
        energy(None, jnp.zeros(()), 2)


def test_marginal_is_stable_for_large_logits():
    energy = marginal_energy(lambda params, x: params + x)
    assert float(energy(jnp.array([1e4, 0.0]), jnp.zeros(()))) == pytest.approx(-1e4)
    assert float(energy(jnp.array([-1e4, -1e4]), jnp.zeros(()))) == pytest.approx(1e4 - np.log(2))


def test_adapters_of_one_function_are_equal_and_do_not_retrace(params, points):
    for adapter in (marginal_energy, joint_energy, complement_energy, log_class_probability):
        assert adapter(logits) == adapter(logits)
        assert hash(adapter(logits)) == hash(adapter(logits))
        assert adapter(logits) != adapter(lambda params, x: x)
    assert marginal_energy(logits) != joint_energy(logits)

    chex.clear_trace_counter()
    evaluate = jax.jit(
        chex.assert_max_traces(lambda energy, params, x: energy(params, x), n=1), static_argnums=0
    )
    first = evaluate(marginal_energy(logits), params, points[0])
    second = evaluate(marginal_energy(logits), params, points[0])
    chex.assert_trees_all_equal(first, second)


def test_class_conditional_target_is_the_joint_energy(params, points, labels):
    x = points[0]
    expected = joint_energies(params, x, labels)
    for y in range(NUM_CLASSES):
        for label in (y, np.int64(y), jnp.asarray(y)):
            chex.assert_trees_all_close(class_conditional_target(logits, params, label)(x), expected[y])
    by_vmap = jax.jit(jax.vmap(lambda y: class_conditional_target(logits, params, y)(x)))(labels)
    chex.assert_trees_all_close(by_vmap, expected, atol=1e-6)


@pytest.mark.parametrize("y", [1.0, np.float32(2), True])
def test_a_class_that_is_no_integer_is_refused(params, points, y):
    with pytest.raises(TypeError, match="y"):
        class_conditional_target(logits, params, y)
    with pytest.raises(TypeError, match="y has dtype"):
        joint_energy(logits)(params, points[0], y)


def test_a_class_out_of_range_is_refused(params, points, labels):
    with pytest.raises(ValueError, match="y=-1"):
        class_conditional_target(logits, params, -1)
    target = class_conditional_target(logits, params, NUM_CLASSES)  # K is not known before the logits are
    for call in (target, jax.jit(target), jax.grad(target)):
        with pytest.raises(ValueError, match=r"y spans 4\.\.4: labels must lie in 0\.\.3"):
            call(points[0])
    with pytest.raises(ValueError, match=r"y has shape \(4,\)"):
        class_conditional_target(logits, params, labels)
    with pytest.raises(ValueError, match=r"y has shape \(4,\)"):
        joint_energy(logits)(params, points[0], labels)


def test_a_traced_class_out_of_range_gives_nan_not_a_neighbour(params, points):
    energies = jax.vmap(joint_energy(logits), (None, None, 0))(params, points[0], jnp.array([-1, 0, 3, 4]))
    np.testing.assert_array_equal(np.isnan(energies), [True, False, False, True])


def test_batched_logits_are_refused(params, points):
    def batched(params, x):
        return jnp.zeros((8, NUM_CLASSES))

    for call in (
        lambda: marginal_energy(batched)(params, points),
        lambda: joint_energy(batched)(params, points, 0),
        lambda: log_class_probability(batched)(params, points),
    ):
        with pytest.raises(ValueError, match=r"logits\(params, x\) has shape \(8, 4\)"):
            call()


@pytest.mark.parametrize("make", [joint_energy, complement_energy])
@pytest.mark.parametrize("label", [-1, -3, 3, 100])
def test_a_traced_class_out_of_range_is_nan_with_all_its_derivatives(make, label):
    """A derivative of 0 would leave a chain of that class to its noise, and no monitor would see it."""
    energy = make(lambda params, x: params @ x)
    params, x = jnp.arange(6.0).reshape(3, 2), jnp.array([0.5, -1.0])
    found = jax.jit(jax.value_and_grad(energy, (0, 1)))(params, x, jnp.asarray(label))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))
    inside = jax.jit(jax.value_and_grad(energy, (0, 1)))(params, x, jnp.asarray(2))
    assert jax.tree.leaves(inside)[0] == energy(params, x, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(inside))
