"""What the tests of energies with known answers share."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree


def _kolmogorov(samples, nodes, probabilities):
    values, index = np.unique(nodes, return_inverse=True)
    mass = np.bincount(index, weights=probabilities)
    cumulative = np.interp(np.sort(samples), values, np.cumsum(mass) - mass / 2)
    steps = np.arange(len(samples) + 1) / len(samples)
    distance = max(np.max(cumulative - steps[:-1]), np.max(steps[1:] - cumulative))
    return np.sqrt(len(samples)) * distance


@pytest.fixture(scope="session")
def kolmogorov():
    """``kolmogorov(samples, nodes, probabilities)``: sqrt(n) sup|F_n - F|.

    F is interpolated between the nodes at half their own mass. P(sqrt(n) sup|F_n - F| > 2.69) = 1e-6.
    """
    return _kolmogorov


def _assert_differentiable(energy, params, x):
    assert jax.numpy.asarray(1.0).dtype == np.float64, "in float32 a difference quotient shows nothing"

    @jax.jit
    def derivatives(arguments):
        flat, unflatten = ravel_pytree(arguments)

        def value(flat):
            return energy(*unflatten(flat))

        steps = 1e-6 * jax.numpy.eye(flat.size)
        sides = jax.vmap(value)(flat[None, :] + steps), jax.vmap(value)(flat[None, :] - steps)
        return jax.grad(value)(flat), jax.jacfwd(value)(flat), (sides[0] - sides[1]) / 2e-6

    reverse, forward, quotients = derivatives((params, x))
    np.testing.assert_allclose(reverse, quotients, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(forward, quotients, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="session")
def assert_differentiable():
    """``assert_differentiable(energy, params, x)``: both modes against central differences.

    As `jax.test_util.check_grads` of first order, but in every direction and in one compiled program.
    """
    return _assert_differentiable
