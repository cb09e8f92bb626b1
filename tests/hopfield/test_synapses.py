"""Synapses against plain NumPy; within memories they are tested in `test_hierarchical.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.synapses import BiasSynapse, DenseSynapse, FunctionSynapse, RecurrentSynapse

pytestmark = pytest.mark.usefixtures("cheap_compilation")

RNG = np.random.default_rng(0)
IMAGE, HIDDEN = RNG.standard_normal((2, 3)), RNG.standard_normal(4)


def test_dense_energy_and_its_derivatives():
    weights = RNG.standard_normal((4, 6))
    energy, (by_weights, by_hidden, by_image) = jax.value_and_grad(
        DenseSynapse("hidden", "image").energy, argnums=(0, 1, 2)
    )(jnp.asarray(weights), jnp.asarray(HIDDEN), jnp.asarray(IMAGE))
    np.testing.assert_allclose(energy, -HIDDEN @ weights @ IMAGE.ravel(), rtol=1e-5)
    np.testing.assert_allclose(by_weights, -np.outer(HIDDEN, IMAGE), rtol=1e-5)
    np.testing.assert_allclose(by_hidden, -weights @ IMAGE.ravel(), rtol=1e-5)
    np.testing.assert_allclose(by_image, -(weights.T @ HIDDEN).reshape(2, 3), rtol=1e-5)


def test_recurrent_energy_knows_only_the_symmetric_part():
    weights = RNG.standard_normal((6, 6))
    synapse = RecurrentSynapse("image")
    energy, slope = jax.value_and_grad(synapse.energy, argnums=1)(weights, jnp.asarray(IMAGE))
    symmetric = (weights + weights.T) / 2
    np.testing.assert_allclose(energy, -IMAGE.ravel() @ symmetric @ IMAGE.ravel() / 2, rtol=1e-5)
    np.testing.assert_allclose(slope, -(symmetric @ IMAGE.ravel()).reshape(2, 3), rtol=1e-5, atol=1e-6)


def test_bias_energy():
    bias = RNG.standard_normal((2, 3))
    np.testing.assert_allclose(
        BiasSynapse("image").energy(bias, jnp.asarray(IMAGE)), -np.sum(bias * IMAGE), rtol=1e-5
    )


def test_initial_weights_have_the_spectrum_that_they_promise():
    """At 300 the greatest singular value of a normal matrix is within a few per cent of its limit."""
    dense = DenseSynapse("a", "b").init(jax.random.key(0), (300,), (10, 10))
    assert dense.shape == (300, 100)
    np.testing.assert_allclose(np.linalg.norm(dense, 2), 1.0, atol=0.06)
    recurrent = np.asarray(RecurrentSynapse("a").init(jax.random.key(1), (300,)))
    np.testing.assert_array_equal(recurrent, recurrent.T)
    eigenvalues = np.linalg.eigvalsh(recurrent)
    np.testing.assert_allclose(eigenvalues[[0, -1]], [-1.0, 1.0], atol=0.06)
    np.testing.assert_array_equal(BiasSynapse("a").init(jax.random.key(2), (2, 3)), np.zeros((2, 3)))


def _times(strength, first, second):
    return strength * jnp.sum(first) * jnp.sum(second)


def test_function_synapse():
    synapse = FunctionSynapse(("a", "b"), _times, lambda rng_key, *shapes: jnp.full((), len(shapes)))
    np.testing.assert_allclose(synapse.energy(2.0, jnp.ones(2), jnp.ones(3)), 12.0)
    assert synapse.init(jax.random.key(0), (2,), (3,)) == 2


def test_equal_by_value():
    assert DenseSynapse("a", "b") == DenseSynapse("a", "b") != DenseSynapse("b", "a")
    assert hash(FunctionSynapse(("a", "b"), _times)) == hash(FunctionSynapse(("a", "b"), _times))
    assert BiasSynapse("a") != RecurrentSynapse("a")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DenseSynapse("a", "a"), ValueError, "both 'a': use RecurrentSynapse"),
        (
            lambda: DenseSynapse("a", "b").energy(jnp.ones((3, 4)), jnp.ones(4), jnp.ones(3)),
            ValueError,
            r"params of DenseSynapse\(first='a', second='b'\) has shape \(3, 4\): \(4, 3\) is needed",
        ),
        (
            lambda: RecurrentSynapse("a").energy(jnp.ones((3, 4)), jnp.ones(4)),
            ValueError,
            r"\(3, 4\): \(4, 4\) is needed, neurons of 'a'",
        ),
        (
            lambda: BiasSynapse("a").energy(jnp.ones(3), jnp.ones((1, 3))),
            ValueError,
            r"\(3,\): \(1, 3\) is needed",
        ),
        (lambda: FunctionSynapse("ab", _times), TypeError, "layers='ab'"),  # pyright: ignore[reportArgumentType]
        (lambda: FunctionSynapse(("a",), _times).init(jax.random.key(0)), ValueError, "has no init_function"),
    ],
)
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
