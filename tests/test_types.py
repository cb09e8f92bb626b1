"""The protocols: that they are what BlackJAX, Flax and a bare lambda already are."""

import ast
import inspect
from functools import partial

import blackjax
import blackjax.util
import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import types
from jaxebm.samplers.chains import run_chain
from jaxebm.samplers.langevin import sgld
from jaxebm.types import BATCH_AXIS, EnergyFn, Kernel


def energy(params, x):
    return 0.5 * params * jnp.sum(x**2)


def test_every_public_name_exists():
    assert all(hasattr(types, name) for name in types.__all__)


def test_types_stands_on_jax_and_typing_alone():
    imports = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(types)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert modules == {"collections.abc", "typing", "jax"}


def test_a_kernel_is_a_pair_in_blackjaxs_order():
    assert Kernel._fields == blackjax.base.SamplingAlgorithm._fields == ("init", "step")
    init, step = sgld(partial(energy, 1.0), step_size=0.1)
    state, _ = step(jax.random.key(0), init(jnp.ones(2), rng_key=jax.random.key(1)))
    assert state.position.shape == (2,)


def test_our_runner_runs_blackjaxs_kernels():
    kernel = blackjax.mala(lambda x: -energy(2.0, x), 0.5)
    chains = jax.jit(jax.vmap(lambda key: run_chain(key, kernel, jnp.zeros(1), 50)[0].position))
    x = np.asarray(chains(jax.random.split(jax.random.key(0), 4000)), np.float64)
    # MALA has no bias: the variance is 1 / k = 0.5, to five standard errors.
    assert abs(x.mean()) < 5 * np.sqrt(0.5 / x.size)
    assert abs(x.var() - 0.5) < 5 * 0.5 * np.sqrt(2 / x.size)


def test_blackjaxs_runner_runs_our_kernels():
    kernel = sgld(partial(energy, 1.0), step_size=0.1, noise_scale=0.0)
    state, history = blackjax.util.run_inference_algorithm(
        jax.random.key(0), kernel, 10, initial_position=jnp.ones(2), transform=lambda state, info: info.energy
    )
    np.testing.assert_allclose(state.position, 0.9**10, rtol=1e-5)
    np.testing.assert_allclose(history, 0.81 ** np.arange(10), rtol=1e-5)


def test_any_function_of_params_and_one_example_is_an_energy():
    function: EnergyFn = lambda params, x: params * x  # noqa: E731
    batched = jax.vmap(function, (None, 0), axis_name=BATCH_AXIS)(2.0, jnp.arange(3.0))
    np.testing.assert_array_equal(batched, [0.0, 2.0, 4.0])
