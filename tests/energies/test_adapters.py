"""A user's own networks as functions of one example: values, gradients, and no second trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxebm.energies import from_nnx, marginal_energy, unbatched

XS = jax.random.normal(jax.random.key(1), (5, 4))


class BatchedNetwork(nn.Module):
    """Wants a batch axis, as most users' modules do: the image is flattened behind it."""

    @nn.compact
    def __call__(self, xs):
        hidden = nn.swish(nn.Conv(3, (2, 2))(xs))
        return nn.Dense(2)(hidden.reshape(xs.shape[0], -1))


class OwnModel(nnx.Module):
    """Holds what is no parameter: running averages, and random numbers for dropout."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, xs):
        return self.second(self.dropout(jax.nn.swish(self.norm(self.first(xs)))))


def test_a_batched_linen_module_becomes_one_of_a_single_example():
    module = BatchedNetwork()
    images = jax.random.normal(jax.random.key(0), (4, 5, 5, 1))
    variables = module.init(jax.random.key(1), images)
    logits = unbatched(module.apply)
    assert logits(variables, images[0]).shape == (2,)
    together = jax.vmap(logits, (None, 0))(variables, images)
    np.testing.assert_allclose(together, module.apply(variables, images), rtol=1e-5, atol=1e-6)
    gradients = jax.vmap(jax.grad(marginal_energy(logits), argnums=1), (None, 0))(variables, images)
    expected = jax.grad(lambda xs: -jax.nn.logsumexp(module.apply(variables, xs), axis=1).sum())(images)
    np.testing.assert_allclose(gradients, expected, rtol=1e-4, atol=1e-6)


def test_an_energy_of_a_batch_becomes_a_scalar_and_x_may_be_a_pytree():
    def apply(params, xs):
        return params * jnp.sum(xs["a"], axis=1) + xs["b"]

    xs = {"a": XS, "b": jnp.arange(5.0)}
    energy = unbatched(apply)
    one = jax.tree.map(lambda leaf: leaf[2], xs)
    assert energy(2.0, one).shape == ()
    np.testing.assert_allclose(jax.vmap(energy, (None, 0))(2.0, xs), apply(2.0, xs), rtol=1e-6)
    gradient = jax.grad(energy, argnums=1)(2.0, one)
    np.testing.assert_array_equal(gradient["a"], np.full(4, 2.0))
    assert float(gradient["b"]) == 1.0


@pytest.mark.parametrize("apply", [lambda params, xs: jnp.sum(xs), lambda params, xs: xs.T])
def test_outputs_without_a_batch_axis_are_named(apply):
    with pytest.raises(ValueError, match=r"apply\(params, xs\) has shape .*a leading axis of 1 is needed"):
        unbatched(apply)(None, XS[0])


def test_an_nnx_module_and_its_parameters():
    model = OwnModel(nnx.Rngs(0))
    model.norm.mean[...] = jnp.full(8, 0.3)
    logits, params = from_nnx(model)
    assert jax.tree.structure(params) == jax.tree.structure(nnx.state(model, nnx.Param))
    together = jax.jit(jax.vmap(logits, (None, 0)))(params, XS)
    assert not model.dropout.deterministic  # the module itself stays in training mode
    model.eval()
    np.testing.assert_allclose(together, model(XS), rtol=1e-5, atol=1e-6)

    def loss(params):
        return jnp.mean(jax.vmap(logits, (None, 0))(params, XS) ** 2)

    gradients = jax.jit(jax.grad(loss))(params)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    learnt = jax.tree.map(lambda value, slope: value - 0.1 * slope, params, gradients)
    assert float(loss(learnt)) < float(loss(params))
    nnx.update(model, learnt)
    np.testing.assert_allclose(jax.vmap(logits, (None, 0))(learnt, XS), model(XS), rtol=1e-5, atol=1e-6)


def test_an_nnx_module_of_one_example():
    class Energy(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.linear(x)[0]

    model = Energy(nnx.Rngs(0))
    energy, params = from_nnx(model, batched=False)
    assert energy(params, XS[0]).shape == ()
    np.testing.assert_allclose(
        jax.vmap(energy, (None, 0))(params, XS), model.linear(XS)[:, 0], rtol=1e-5, atol=1e-6
    )
    with pytest.raises(TypeError, match=r"model is a function: a flax.nnx.Module is needed.*unbatched"):
        from_nnx(lambda x: x)


def test_made_twice_they_are_traced_once():
    module, model, traces = BatchedNetwork(), OwnModel(nnx.Rngs(0)), []

    def run(logits, params, x):
        traces.append(logits)
        return logits(params, x)

    run = jax.jit(run, static_argnums=0)
    image = jnp.ones((5, 5, 1))
    variables = module.init(jax.random.key(0), image[None])
    for _ in range(2):
        run(unbatched(module.apply), variables, image)
    assert len(traces) == 1
    logits, params = from_nnx(model)
    for _ in range(2):
        run(from_nnx(model)[0], params, XS[0])
    assert len(traces) == 2
    # Other running averages make another function: they are held by it.
    model.norm.mean[...] = jnp.ones(8)
    other, params = from_nnx(model)
    assert other != logits
    assert not np.allclose(run(other, params, XS[0]), run(logits, params, XS[0]))
    # Other parameters do not.
    plain, again = (from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(seed)))[0] for seed in range(2))
    assert plain == again
    assert hash(plain) == hash(again)
