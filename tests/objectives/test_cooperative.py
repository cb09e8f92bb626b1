"""Cooperative learning: its two gradients against closed forms, kept apart, and a fit of both."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.objectives import Batch, Negatives, cooperative, cooperative_samples
from jaxebm.samplers import mala, sgld
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NONE = Negatives(None, None)
NOISE = 0.6
"""The generator's own: with slope .8 its samples are N(mean, 1)."""


def energy(params, x):
    return 0.5 * jnp.sum(jnp.exp(params["log_precision"]) * (x - params["mean"]) ** 2)


def generator(params, z):
    return params["shift"] + params["slope"] * z


def params_of(mean, log_precision, shift, slope):
    return {
        "energy": {"mean": jnp.array([mean]), "log_precision": jnp.array([log_precision])},
        "generator": {"shift": jnp.array([shift]), "slope": jnp.array([slope])},
    }


TRUE = params_of(1.5, 0.0, 1.5, 0.8)


@cache
def compiled_gradients(objective):
    """Of 16 batches of 400 from N(data_mean, 1): compiled once for all parameters and means."""

    def gradient(params, data_mean, rng_key):
        key_data, key_loss = jax.random.split(rng_key)
        x = data_mean + jax.random.normal(key_data, (400, 1))
        return jax.grad(objective.loss, has_aux=True)(params, key_loss, Batch(None, None, x), NONE)[0]

    return jax.jit(jax.vmap(gradient, (None, None, 0)))


def gradients(objective, params, *, data_mean=1.5):
    """The gradient's mean over batches of data from N(data_mean, 1), and its standard error."""
    found = compiled_gradients(objective)(params, data_mean, jax.random.split(jax.random.key(0), 16))
    mean = jax.tree.map(lambda leaf: float(np.mean(np.asarray(leaf, np.float64))), found)
    error = jax.tree.map(lambda leaf: float(np.std(np.asarray(leaf), ddof=1) / np.sqrt(16)), found)
    return mean, error


def test_where_energy_generator_and_data_agree_both_gradients_are_zero():
    objective = cooperative(
        energy,
        generator,
        make_kernel=partial(mala, step_size=0.5),
        latent_size=1,
        num_steps=3,
        noise_level=NOISE,
        num_latent_steps=150,
        latent_step_size=0.02,
    )
    mean, error = gradients(objective, TRUE)
    # Unadjusted steps spread z' given x' by half a step too much, to first order.
    bias = 0.6 * 0.02 * 0.8 / NOISE**2
    for part, allowed in (("energy", 0.0), ("generator", bias)):
        for value, standard_error in zip(
            jax.tree.leaves(mean[part]), jax.tree.leaves(error[part]), strict=True
        ):
            assert abs(value) < 5 * standard_error + allowed
            assert standard_error < 0.05
    # The test can see a generator that spreads too little, and data that are elsewhere.
    mean, error = gradients(objective, params_of(1.5, 0.0, 1.5, 0.4))
    assert mean["generator"]["slope"] < -5 * error["generator"]["slope"]
    mean, error = gradients(objective, TRUE, data_mean=1.0)
    assert mean["energy"]["mean"] > 5 * error["energy"]["mean"]


def test_without_latent_steps_both_gradients_are_the_closed_form_which_narrows_the_generator():
    step_size, num_steps = 0.2, 4
    objective = cooperative(
        energy,
        generator,
        make_kernel=partial(sgld, step_size=step_size),
        latent_size=1,
        num_steps=num_steps,
        noise_level=NOISE,
        num_latent_steps=0,
        generator_weight=2.0,
        weight=3.0,
    )
    params = params_of(1.0, np.log(2.0), 0.5, 0.8)
    mean, error = gradients(objective, params)
    # x' - m = r (g(z) + s n - m) + noise: r, and the variance of x', step by step.
    kept, variance = 1.0, 0.8**2 + NOISE**2
    for _ in range(num_steps):
        shrink = 1 - step_size * 2
        kept, variance = shrink * kept, shrink**2 * variance + 2 * step_size
    revised = 1 + kept * (0.5 - 1)  # the mean of x'
    exact = {
        "energy": {
            "mean": 3 * 2 * (revised - 1.5),
            "log_precision": 3 * 0.5 * 2 * (1 + 0.5**2 - variance - (revised - 1) ** 2),
        },
        "generator": {
            "shift": -2 * (revised - 0.5) / NOISE**2,
            "slope": 2 * 0.8 * (1 - kept) / NOISE**2,
        },
    }
    chex.assert_trees_all_equal_structs(mean, exact)
    for value, expected, standard_error in zip(*map(jax.tree.leaves, (mean, exact, error)), strict=True):
        assert abs(value - expected) < 5 * standard_error
        assert abs(expected) > 5 * standard_error
    assert exact["generator"]["slope"] > 0  # descent lowers the slope, until all proposals are one point


def make_objective(**options):
    settings = {"make_kernel": partial(sgld, step_size=0.1), "latent_size": 1, "num_steps": 2}
    return cooperative(energy, generator, **(settings | options))


def test_a_fit_recovers_the_data_by_energy_generator_and_their_samples():
    scales, mean = np.array([0.6, 1.0]), np.array([1.0, -2.0])
    x = jnp.asarray(mean + scales * np.random.default_rng(0).normal(size=(2000, 2)), jnp.float32)
    options = {"make_kernel": partial(sgld, step_size=0.1), "latent_size": 2, "num_steps": 20}
    objective = cooperative(
        energy, generator, **options, noise_level=0.4, num_latent_steps=20, latent_step_size=0.05
    )
    start = {
        "energy": {"mean": jnp.zeros(2), "log_precision": jnp.zeros(2)},
        "generator": {"shift": jnp.zeros(2), "slope": jnp.ones(2)},
    }
    learn = learner(objective, optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 300)), batch_size=128)
    params = fit(jax.random.key(0), learn, start, x, num_steps=300).params
    learnt = params["energy"]
    np.testing.assert_allclose(learnt["mean"], x.mean(0), atol=0.15)
    np.testing.assert_allclose(jnp.exp(-0.5 * learnt["log_precision"]), x.std(0), rtol=0.15)
    spread = jnp.sqrt(params["generator"]["slope"] ** 2 + 0.4**2)
    np.testing.assert_allclose(params["generator"]["shift"], x.mean(0), atol=0.15)
    np.testing.assert_allclose(spread, x.std(0), rtol=0.2)
    drawn = cooperative_samples(
        jax.random.key(1), energy, generator, params, jnp.zeros(2), 2000, **options, noise_level=0.4
    )
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.2)
    np.testing.assert_allclose(drawn.std(0), x.std(0), rtol=0.2)


def test_pytrees_keep_their_dtypes_and_the_objective_has_the_energy():
    def tree_energy(params, x):
        return params * sum(jnp.sum(jnp.asarray(leaf, jnp.float32) ** 2) for leaf in x.values())

    def tree_generator(params, z):
        return {"a": params * z[:2], "b": params * z[2]}

    options = {"make_kernel": partial(sgld, step_size=0.1), "latent_size": 3, "num_steps": 2}
    params = {"energy": 1.0, "generator": 0.5}
    batch = Batch(None, None, {"a": jnp.ones((4, 2), jnp.bfloat16), "b": jnp.ones(4)})
    objective = cooperative(tree_energy, tree_generator, **options, num_samples=5)
    found = jax.eval_shape(objective.loss, params, jax.random.key(0), batch, NONE)
    chex.assert_shape(jax.tree.leaves(found), ())
    example = jax.tree.map(lambda leaf: leaf[0], batch.x_data)
    drawn = jax.eval_shape(
        lambda key: cooperative_samples(key, tree_energy, tree_generator, params, example, 3, **options),
        jax.random.key(0),
    )
    assert jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), drawn) == {
        "a": ((3, 2), "bfloat16"),
        "b": ((3,), "float32"),
    }
    assert float(objective.energy(params, example, 0)) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda params, z: jnp.zeros(3), ValueError, r"generator\(params, z\) has shape \(3,\).*\(1,\)"),
        (lambda params, z: {"x": z}, ValueError, r"generator\(params, z\) has the structure"),
        (lambda params, z: jnp.zeros(1, int), TypeError, r"generator\(params, z\) has dtype int32"),
    ],
)
def test_a_generator_of_another_output_is_refused(output, error, message):
    objective = cooperative(energy, output, make_kernel=partial(sgld, step_size=0.1), latent_size=2)
    batch = Batch(None, None, jnp.ones((2, 1)))
    with pytest.raises(error, match=message):
        jax.eval_shape(objective.loss, TRUE, jax.random.key(0), batch, NONE)


def test_params_must_have_both_entries():
    batch = Batch(None, None, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"params has the keys \['energy'\].*'generator'"):
        make_objective().loss({"energy": 1.0}, jax.random.key(0), batch, NONE)
    with pytest.raises(ValueError, match="params has a tuple"):
        make_objective().energy((1.0, 2.0), jnp.ones(1), 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"latent_size": 0}, ValueError, "latent_size=0"),
        ({"num_steps": 0}, ValueError, "num_steps=0"),
        ({"noise_level": 0.0}, ValueError, "noise_level=0.0"),
        ({"num_latent_steps": -1}, ValueError, "num_latent_steps=-1"),
        ({"latent_step_size": 0.0}, ValueError, "latent_step_size=0.0"),
        ({"latent_step_size": 2}, ValueError, "latent_step_size=2.*above 0 and below 2"),
        ({"num_samples": 0}, ValueError, "num_samples=0"),
        ({"generator_weight": -1.0}, ValueError, "generator_weight=-1.0"),
        ({"weight": -1.0}, ValueError, "weight=-1.0"),
        ({"make_kernel": sgld(lambda x: 0.0, 0.1)}, TypeError, "make_kernel"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        make_objective(**arguments)
