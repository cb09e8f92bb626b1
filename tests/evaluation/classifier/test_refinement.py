"""Refinement against closed forms: where the chain goes, and the gradient through it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxebm.energies import ConvNet, marginal_energy
from jaxebm.evaluation.classifier.refinement import deterministic, refine, refined_logits
from jaxebm.samplers import run_chain, sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation")
KEY = jax.random.key(0)
QUIET = partial(sgld, step_size=0.1, noise_scale=0.0)


def quadratic(params, x):
    return 0.5 * jnp.sum(params * x**2)


def mlp(params, x):
    return params["out"] @ jnp.tanh(params["in"] @ x)


def mlp_params(seed=0):
    rng = np.random.default_rng(seed)
    return {"in": jnp.asarray(rng.normal(size=(6, 4))), "out": jnp.asarray(rng.normal(size=(3, 6)))}


def test_a_quadratic_contracts_and_so_does_the_gradient():
    """x_T = (1 - epsilon k)^T x, in each coordinate with its own k."""
    curvature, x = jnp.array([1.0, 3.0]), jnp.array([2.0, -1.0])
    refinement = refine(QUIET, quadratic, 5)
    shrunk = (1 - 0.1 * curvature) ** 5
    np.testing.assert_allclose(refinement(KEY, curvature, x), shrunk * x, rtol=1e-5)
    jacobian = jax.jacrev(refinement, argnums=2)(KEY, curvature, x)
    np.testing.assert_allclose(jacobian, np.diag(shrunk), rtol=1e-5, atol=1e-7)


def test_it_is_the_chain_of_the_sampler():
    params, x = mlp_params(), jnp.array([0.3, -0.2, 0.9, 0.1])
    noisy = partial(sgld, step_size=0.1, noise_scale=0.3)
    energy = marginal_energy(mlp)
    expected = run_chain(KEY, noisy(partial(energy, params)), x, 4)[0].position
    np.testing.assert_allclose(refine(noisy, energy, 4)(KEY, params, x), expected, rtol=1e-6)
    np.testing.assert_allclose(
        refined_logits(mlp, noisy, 4)(KEY, params, x), mlp(params, expected), rtol=1e-5
    )
    other = refine(noisy, energy, 4)(jax.random.key(1), params, x)
    assert np.abs(other - expected).max() > 0.05  # the key is the noise


def test_no_steps_are_the_plain_classifier():
    params, x = mlp_params(), jnp.array([0.3, -0.2, 0.9, 0.1])
    np.testing.assert_array_equal(refined_logits(mlp, QUIET, 0)(KEY, params, x), mlp(params, x))
    np.testing.assert_array_equal(deterministic(mlp)(KEY, params, x), mlp(params, x))


def test_the_gradient_runs_through_the_chain():
    """Against finite differences; and it differs from that of the classifier at the refined point."""
    params, x = mlp_params(), jnp.array([0.3, -0.2, 0.9, 0.1])
    noisy = partial(sgld, step_size=0.3, noise_scale=0.1)
    defended = refined_logits(mlp, noisy, 3)

    def loss(x):
        return -jax.nn.log_softmax(defended(KEY, params, x))[1]

    check_grads(loss, (x,), order=1, modes=("rev",), atol=2e-2, rtol=2e-2)
    refined = refine(noisy, marginal_energy(mlp), 3)(KEY, params, x)
    stopped = jax.grad(lambda x: -jax.nn.log_softmax(mlp(params, x))[1])(refined)
    through = jax.grad(loss)(x)
    assert float(jnp.linalg.norm(through - stopped)) > 0.1 * float(jnp.linalg.norm(stopped))


def test_the_gradient_is_finite_at_rest():
    """At the minimum the energy's gradient is zero, where its norm, which kernels report, has no slope."""
    gradient = jax.grad(lambda x: jnp.sum(refine(QUIET, quadratic, 3)(KEY, jnp.ones(2), x)))(jnp.zeros(2))
    np.testing.assert_allclose(gradient, 0.9**3, rtol=1e-5)


def test_it_differentiates_a_convolution_twice():
    """The package's convolution has derivatives of its own: a step needs one, the attack one more."""
    module = ConvNet(num_outputs=3, channels=(4,))
    variables = jax.jit(module.init)(KEY, jnp.zeros((4, 4, 1)))
    x = jax.random.uniform(jax.random.key(1), (4, 4, 1), minval=-0.9, maxval=0.9)
    direction = jax.random.normal(jax.random.key(2), x.shape)
    defended = refined_logits(module.apply, partial(sgld, step_size=1.0, noise_scale=0.0), 2)

    @jax.jit
    def loss(x):
        return defended(KEY, variables, x)[0]

    slope = jnp.vdot(jax.jit(jax.grad(loss))(x), direction)
    step = 1e-2
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float(difference), rel=2e-2)


def test_equal_refinements_are_equal_so_jit_does_not_trace_again():
    assert refined_logits(mlp, QUIET, 3) == refined_logits(mlp, QUIET, 3)
    assert hash(refined_logits(mlp, QUIET, 3)) == hash(refined_logits(mlp, QUIET, 3))
    assert refined_logits(mlp, QUIET, 3) != refined_logits(mlp, QUIET, 4)
    assert deterministic(mlp) == deterministic(mlp)


@pytest.mark.parametrize("num_steps", [-1, 1.5, True, None])
def test_bad_num_steps_are_named(num_steps):
    with pytest.raises(ValueError, match="num_steps="):
        refined_logits(mlp, QUIET, num_steps)
