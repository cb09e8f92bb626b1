"""The ascended point against the papers' formulas, and the updates against Optax's own implementation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.objectives import Objective
from jaxebm.training import Sharpness, ascend, compile_steps, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, Y = normal(12, 3), normal(12)
PARAMS = {"first": normal(3, 5), "second": normal(5)}


def network(params, x):
    """Positively homogeneous: (c W_1, W_2 / c) is the same function."""
    return jax.nn.relu(x @ params["first"]) @ params["second"]


def squared_error(params):
    return jnp.mean((network(params, X) - Y) ** 2)


GRADIENT = jax.grad(squared_error)(PARAMS)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


# --- the ascended point ---


def test_the_plain_step_is_equation_2():
    wanted = flat(PARAMS) + 0.3 * flat(GRADIENT) / np.linalg.norm(flat(GRADIENT))
    np.testing.assert_allclose(flat(ascend(PARAMS, GRADIENT, 0.3)), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stabiliser", [0.0, 0.01, 0.5])
def test_the_adaptive_step_is_equation_4(stabiliser):
    scale = np.abs(flat(PARAMS)) + stabiliser
    wanted = flat(PARAMS) + 0.3 * scale**2 * flat(GRADIENT) / np.linalg.norm(scale * flat(GRADIENT))
    moved = ascend(PARAMS, GRADIENT, 0.3, adaptive=True, stabiliser=stabiliser)
    np.testing.assert_allclose(flat(moved), wanted, rtol=1e-5, atol=1e-6)
    default = ascend(PARAMS, GRADIENT, 0.3, adaptive=True)
    assert np.allclose(flat(default), flat(moved), rtol=1e-6) == (stabiliser == 0.01)


@pytest.mark.parametrize("adaptive", [False, True])
def test_no_other_step_of_that_length_climbs_higher(adaptive):
    """The step maximises g.e over |T^-1 e| <= rho: on a linear loss, against many steps on the sphere."""
    params, gradient, rho = normal(6), normal(6), 0.7
    scale = np.abs(params) + 0.01 if adaptive else np.ones(6)
    step = np.asarray(ascend(params, gradient, rho, adaptive=adaptive) - params)
    np.testing.assert_allclose(np.linalg.norm(step / scale), rho, rtol=1e-5)
    directions = RNG.normal(size=(1000, 6))
    others = scale * rho * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.max(others @ np.asarray(gradient)) < step @ np.asarray(gradient)


@pytest.mark.parametrize("factor", [0.1, 8.0])
def test_the_adaptive_step_does_not_depend_on_how_layers_share_their_scale(factor):
    def ascended_loss(params, **options):
        return squared_error(ascend(params, jax.grad(squared_error)(params), 0.3, **options))

    rescaled = {"first": factor * PARAMS["first"], "second": PARAMS["second"] / factor}
    np.testing.assert_allclose(squared_error(rescaled), squared_error(PARAMS), rtol=1e-5)
    options = {"adaptive": True, "stabiliser": 0.0}
    np.testing.assert_allclose(
        ascended_loss(rescaled, **options), ascended_loss(PARAMS, **options), rtol=1e-4
    )
    assert abs(ascended_loss(rescaled) / ascended_loss(PARAMS) - 1) > 0.05  # the plain one does


def variables_of(first):
    return {
        "params": {"weights": jnp.array([1.0, -2.0])},
        "batch_stats": {"mean": jnp.array([first]), "var": jnp.array([3.0])},
    }


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_statistics_neither_move_nor_count_in_the_norm(adaptive, several):
    variables, gradient = variables_of(0.1), jax.tree.map(lambda leaf: 4.0 * leaf, variables_of(7.0))
    if several:  # the parameters of an energy that is a sum of networks
        variables, gradient = (variables, variables_of(0.2)), (gradient, gradient)
    moved = ascend(variables, gradient, 0.5, adaptive=adaptive)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, variables)
    nodes = zip(moved, variables, strict=True) if several else [(moved, variables)]
    weights = []
    for after, before in nodes:
        chex.assert_trees_all_equal(after["batch_stats"], before["batch_stats"])
        weights.append((before["params"]["weights"], after["params"]["weights"]))
    before, after = (jnp.concatenate(leaves) for leaves in zip(*weights, strict=True))
    slope = jnp.tile(jnp.array([4.0, -8.0]), 2 if several else 1)
    chex.assert_trees_all_close(after, ascend(before, slope, 0.5, adaptive=adaptive), rtol=1e-6)


@pytest.mark.parametrize("adaptive", [False, True])
def test_where_the_gradient_is_zero_nothing_moves(adaptive):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    chex.assert_trees_all_equal(ascend(PARAMS, zeros, 0.3, adaptive=adaptive), PARAMS)


def test_narrow_parameters_keep_their_dtype():
    params = jnp.array([1.0, 2.0], jnp.bfloat16)
    moved = ascend(params, jnp.array([3.0, 4.0], jnp.bfloat16), 1.0)
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_allclose(moved.astype(jnp.float32), [1.6, 2.8], rtol=2**-8)


def test_new_radii_do_not_recompile():
    moved = jax.jit(chex.assert_max_traces(lambda rho: ascend(PARAMS, GRADIENT, rho), n=1))
    assert not np.allclose(flat(moved(0.1)), flat(moved(0.2)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"rho": 0.0}, "rho=0.0"),
        ({"rho": -1.0}, "rho=-1.0"),
        ({"rho": 0.1, "stabiliser": -0.1}, "stabiliser=-0.1.*at least 0"),
    ],
)
def test_bad_input_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        ascend(PARAMS, GRADIENT, **arguments)


# --- in the step ---


NO_DATA = np.zeros((1, 1), np.float32)


def learner_of(loss, optimizer, sharpness, batch_size=1):
    objective = Objective(lambda params, x, label: jnp.zeros(()), loss)
    return learner(objective, optimizer=optimizer, batch_size=batch_size, sharpness=sharpness)


def updated(learn, params, data=NO_DATA, num_updates=1):
    state = learn.init(jax.random.key(0), params, data)
    return compile_steps(learn.step, num_updates)(state, learn.place(data))


def test_an_update_on_a_quadratic_follows_its_closed_form():
    curvature, start, rho, rate = np.array([1.0, 10.0]), np.array([2.0, -1.0]), 0.4, 0.05

    def loss(params, key, batch, negatives):
        return 0.5 * jnp.sum(batch.x_data[0] * params**2), {"at": params[0]}

    learn = learner_of(loss, optax.sgd(rate), Sharpness(rho))
    state, metrics = updated(
        learn, jnp.asarray(start, jnp.float32), jnp.asarray(curvature[None], jnp.float32)
    )
    gradient = curvature * start
    ascended = start + rho * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(state.params, start - rate * curvature * ascended, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(curvature * ascended), rtol=1e-5)
    value, highest = (0.5 * np.sum(curvature * point**2) for point in (start, ascended))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["sharpness"], highest - value, rtol=1e-4)
    assert metrics["at"] == start[0]  # the loss's metrics are of the first evaluation


@pytest.mark.parametrize("optimizer", [optax.sgd(0.05, momentum=0.9), optax.adam(0.05)], ids=["sgd", "adam"])
def test_updates_are_those_of_optax(optimizer):
    rho, num_updates = 0.3, 6

    def loss_of(params, batch):
        x, y = batch
        return jnp.mean((network(params, x) - y) ** 2)

    def draw(key, batch_size):
        return jax.tree.map(lambda leaf: jax.random.choice(key, leaf, (batch_size,)), (X, Y))

    learn = learner_of(
        lambda params, key, batch, negatives: (loss_of(params, batch.x_data), {}),
        optimizer,
        Sharpness(rho),
        batch_size=4,
    )
    rng_key = learn.init(jax.random.key(0), PARAMS, draw).rng_key
    state, _ = updated(learn, PARAMS, draw, num_updates)

    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    sam = optax.contrib.sam(optimizer, adversary, sync_period=2, opaque_mode=True)

    @jax.jit
    def update(params, sam_state, index):
        key_batch = jax.random.split(jax.random.fold_in(rng_key, index), 3)[0]
        batch = draw(key_batch, 4)
        updates, sam_state = sam.update(
            jax.grad(loss_of)(params, batch),
            sam_state,
            params,
            grad_fn=lambda params, _: jax.grad(loss_of)(params, batch),
        )
        return optax.apply_updates(params, updates), sam_state

    params, sam_state = PARAMS, sam.init(PARAMS)
    for index in range(num_updates):
        params, sam_state = update(params, sam_state, index)
    chex.assert_trees_all_close(state.params, params, rtol=1e-5, atol=1e-6)


def test_both_evaluations_have_the_same_key():
    def loss(params, key, batch, negatives):
        return jnp.sum(params) + jax.random.normal(key), {}

    _, metrics = updated(learner_of(loss, optax.sgd(0.1), Sharpness(0.5)), jnp.ones(4), num_updates=3)
    np.testing.assert_allclose(metrics["sharpness"], 0.5 * 2.0, rtol=1e-5)  # rho |g|: no noise is left


def test_without_it_the_step_is_as_it_was():
    def loss(params, key, batch, negatives):
        return jnp.sum(params**2), {}

    state, metrics = updated(learner_of(loss, optax.sgd(0.1), None), jnp.ones(2))
    assert "sharpness" not in metrics
    np.testing.assert_allclose(state.params, [0.8, 0.8], rtol=1e-6)


def test_a_bad_radius_is_refused_at_once():
    for bad in (-0.1, 0.0, float("nan"), jnp.ones(2), "small", None):
        with pytest.raises((TypeError, ValueError), match=r"sharpness\.rho"):
            Sharpness(bad, adaptive=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="adaptive"):
        Sharpness(0.1, adaptive="yes")  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match="gradient"):
        ascend(jnp.ones(2), jnp.ones(3), 0.1)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_flag_reaches_the_ascent(adaptive):
    def loss(params, key, batch, negatives):
        return squared_error(params), {}

    state, _ = updated(learner_of(loss, optax.sgd(0.1), Sharpness(0.3, adaptive)), PARAMS)
    ascended = ascend(PARAMS, GRADIENT, 0.3, adaptive=adaptive)
    wanted = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, PARAMS, jax.grad(squared_error)(ascended))
    chex.assert_trees_all_close(state.params, wanted, rtol=1e-5, atol=1e-6)
