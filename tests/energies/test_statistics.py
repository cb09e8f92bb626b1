"""Statistics are those of the batch that vmap names; optimisers leave them alone."""

import functools

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxebm.energies.networks import MLP, ConvNet
from jaxebm.energies.statistics import refresh_statistics, trainable, training_apply
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# The tests compile much and compute little: unoptimised code compiles four times sooner.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _init(module, shape):
    return _jit(module.init)(jax.random.key(0), jnp.zeros(shape))


def _apply(module, variables, xs):
    return _jit(jax.vmap(module.apply, (None, 0)))(variables, xs)


def _apply_training(module, variables, xs):
    return _jit(jax.vmap(training_apply(module), (None, 0), axis_name=BATCH_AXIS))(variables, xs)


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
