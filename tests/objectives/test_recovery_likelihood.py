"""Recovery likelihood: its gradient against quadrature, its samples against their exact law, a short fit."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies import joint_energy_at
from jaxebm.objectives import Batch, Negatives, recovery_likelihood, recovery_samples
from jaxebm.samplers import mala, momentum_descent
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NONE = Negatives(None, None)
LEVELS = np.array([2.0, 1.0, 0.5])
WEIGHTS, SCALES = jnp.array([0.3, 0.7]), jnp.array([0.6, 0.4])
TRUE = {"means": jnp.array([-1.0, 1.5]), "tilt": jnp.array(0.0)}


def mixture_at(params, x, level):
    """A skewed mixture under noise; a tilt other than 0 makes it wrong at every level."""
    variances = SCALES**2 + level**2
    terms = jnp.log(WEIGHTS) - 0.5 * (x - params["means"]) ** 2 / variances - 0.5 * jnp.log(variances)
    return -jax.nn.logsumexp(terms) + params["tilt"] * jnp.sin(x)


def draw(rng_key, *shape):
    key_mode, key_noise = jax.random.split(rng_key)
    mode = jax.random.choice(key_mode, 2, shape, p=WEIGHTS)
    return TRUE["means"][mode] + SCALES[mode] * jax.random.normal(key_noise, shape)


def exact_gradient(params):
    """Of the mean over pairs of levels of -log p(x | y), by the trapezoid rule in x and y."""
    x = jnp.linspace(-9.0, 10.0, 300)
    y = jnp.linspace(-12.0, 13.0, 300)
    width_x, width_y = 19 / 299, 25 / 299

    def loss(params):
        total = 0.0
        for higher, lower in itertools.pairwise(LEVELS):
            spread = np.sqrt(higher**2 - lower**2)
            energies = jax.vmap(mixture_at, (None, 0, None))(params, x, lower)
            true = jax.vmap(mixture_at, (None, 0, None))(TRUE, x, lower)
            p_x = jnp.exp(-true) / (jnp.sum(jnp.exp(-true)) * width_x)
            log_given_x = -0.5 * jnp.square((y[:, None] - x[None]) / spread)  # (y, x)
            p_y = jnp.exp(log_given_x) @ p_x * width_x / (spread * np.sqrt(2 * np.pi))
            log_z = jax.nn.logsumexp(log_given_x - energies[None], axis=1)
            total = total + jnp.sum(p_x * energies) * width_x + jnp.sum(p_y * log_z) * width_y
        return total / (len(LEVELS) - 1)

    return jax.grad(loss)(params)


def test_the_gradient_is_that_of_the_conditional_likelihood_and_zero_at_the_truth():
    objective = recovery_likelihood(mixture_at, levels=LEVELS, num_steps=80, step_factor=0.8, kernel=mala)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def gradient(params, rng_key):
        key_data, key_loss = jax.random.split(rng_key)
        batch = Batch(None, None, draw(key_data, 400))
        return jax.grad(objective.loss, has_aux=True)(params, key_loss, batch, NONE)[0]

    exact_at = jax.jit(exact_gradient)
    wrong = {"means": jnp.array([-1.6, 1.2]), "tilt": jnp.array(0.4)}
    for params in (TRUE, wrong):
        found = gradient(params, jax.random.split(jax.random.key(0), 16))
        exact = exact_at(params)
        for name in ("means", "tilt"):
            values = np.asarray(found[name], np.float64)
            standard_error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
            assert np.all(np.abs(values.mean(axis=0) - exact[name]) < 5 * standard_error)
            if params is wrong:  # the test has the power to see it
                assert np.all(np.abs(exact[name]) > 5 * standard_error)
            else:
                np.testing.assert_allclose(exact[name], 0.0, atol=1e-5)


def gaussian_at(params, x, level):
    variance = jnp.exp(params["log_variance"]) + level**2
    return 0.5 * jnp.sum((x - params["mean"]) ** 2) / variance


GAUSSIAN = {"mean": jnp.array([1.5]), "log_variance": jnp.array(np.log(0.25))}


@pytest.mark.parametrize("num_steps", [1, 10])
def test_samples_follow_the_closed_form_of_their_chains_on_a_gaussian(num_steps):
    n, step_factor = 20_000, 0.3
    levels = np.array([6.0, 3.0, 1.5, 0.5, 0.1])
    starts = 1.0 + levels[0] * jax.random.normal(jax.random.key(1), (n, 1))
    x = recovery_samples(
        jax.random.key(0), gaussian_at, GAUSSIAN, starts, levels, num_steps=num_steps, step_factor=step_factor
    )
    offset, variance = 1.0 - 1.5, levels[0] ** 2
    for higher, lower in itertools.pairwise(levels):
        spread = higher**2 - lower**2
        step = step_factor * spread * lower**2 / higher**2
        curvature = 1 / spread + 1 / (0.25 + lower**2)
        kept, noise = 1.0, 0.0  # x = kept y + noise n, from x = y
        for _ in range(num_steps):
            shrink = 1 - step * curvature
            kept, noise = shrink * kept + step / spread, shrink**2 * noise + 2 * step
        offset, variance = kept * offset, kept**2 * variance + noise
    x = np.asarray(x, np.float64)[:, 0] - 1.5
    assert abs(x.mean() - offset) < 5 * np.sqrt(variance / n)
    assert abs(np.mean((x - offset) ** 2) - variance) < 5 * variance * np.sqrt(2 / n)


def test_samples_keep_the_state_of_the_kernel_within_a_level_as_the_loss_does():
    """Heavy ball without noise, whose first step is that of gradient descent: the state makes the second."""
    levels, factor, momentum, start = np.array([2.0, 1.0, 0.5]), 0.5, 0.8, 4.0
    kernel = functools.partial(momentum_descent, momentum=momentum)
    x = recovery_samples(
        jax.random.key(0),
        gaussian_at,
        GAUSSIAN,
        jnp.full((1, 1), start),
        levels,
        num_steps=4,
        step_factor=factor,
        kernel=kernel,
    )
    y = start
    for higher, lower in itertools.pairwise(levels):
        spread, position, velocity = higher**2 - lower**2, y, 0.0
        for _ in range(4):
            slope = (position - 1.5) / (0.25 + lower**2) + (position - y) / spread
            velocity = momentum * velocity - factor * spread * lower**2 / higher**2 * slope
            position += velocity
        y = position
    assert float(x[0, 0]) == pytest.approx(y, rel=1e-5)


def test_long_chains_draw_the_data_from_noise():
    n = 4000
    levels = np.geomspace(16.0, 0.05, 10)
    x = recovery_samples(
        jax.random.key(0), mixture_at, TRUE, 16.0 * jax.random.normal(jax.random.key(1), (n,)), levels
    )
    x = np.asarray(x, np.float64)
    means, scales, weights = (np.asarray(value) for value in (TRUE["means"], SCALES, WEIGHTS))
    mean = weights @ means
    variance = weights @ (scales**2 + (means - mean) ** 2)
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / n) + 0.05
    assert abs(x.var() / variance - 1) < 0.15  # of the unadjusted steps, above all
    assert abs(np.mean(x < 0.3) - weights[0]) < 5 * np.sqrt(0.21 / n) + 0.02


def test_a_fit_recovers_the_data():
    x = 1.5 + 0.5 * jax.random.normal(jax.random.key(2), (2000, 1))
    objective = recovery_likelihood(gaussian_at, levels=LEVELS, num_steps=5, step_factor=1.0, kernel=mala)
    learn = learner(objective, optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 300)), batch_size=128)
    start = {"mean": jnp.zeros(1), "log_variance": jnp.array(1.0)}
    params = fit(jax.random.key(0), learn, start, x, num_steps=300).params
    assert abs(float(params["mean"][0]) - float(x.mean())) < 0.1
    assert float(jnp.exp(0.5 * params["log_variance"])) == pytest.approx(float(x.std()), rel=0.15)


@pytest.mark.parametrize(("num_steps", "step_factor"), [(8, 0.2), (40, 0.2)])
def test_chains_that_keep_a_share_of_their_start_make_wide_directions_too_steep(num_steps, step_factor):
    """The gradient is zero at the curvature that the docstring's factor predicts, and not at the true one."""
    n, variance, levels = 200_000, 400.0, np.array([2.0, 1.0])
    kept = (1 - step_factor / 4) ** num_steps
    factor = (2 - kept**2) / (2 - 2 * kept)

    def energy_at(curvature, x, level):
        return 0.5 * curvature * x**2 / variance

    objective = recovery_likelihood(energy_at, levels=levels, num_steps=num_steps, step_factor=step_factor)
    x = np.sqrt(variance - 1) * jax.random.normal(jax.random.key(0), (n,))
    gradient = jax.jit(jax.grad(objective.loss, has_aux=True))
    at = {k: float(gradient(k, jax.random.key(1), Batch(None, None, x), NONE)[0]) for k in (1.0, factor)}
    # Differences of squares, 2 x (x' - x) with x of the variance and x' - x of about s^2 = 3 (1 + kept).
    error = np.sqrt(3 * (1 + kept) / variance / n)
    assert abs(at[factor]) < 5 * error
    if num_steps == 8:  # elsewhere the data do not tell them apart
        assert at[1.0] < -5 * error


def logits_at(params, x, level):
    return params * x / (1 + level)


def test_a_joint_energy_learns_from_the_labelled_examples_and_pytrees_keep_their_dtypes():
    objective = recovery_likelihood(joint_energy_at(logits_at), levels=LEVELS, num_steps=2)
    x, labels = jnp.arange(8.0).reshape(4, 2), jnp.array([0, 1, 1, 0])
    batch = Batch(x, labels, jnp.full((9, 2), jnp.nan))
    loss, metrics = jax.jit(objective.loss)(1.0, jax.random.key(0), batch, NONE)
    chex.assert_tree_all_finite((loss, metrics))
    assert float(objective.energy(1.0, x[1], 1)) == pytest.approx(-3.0 / 1.5)  # at the last level
    with pytest.raises(ValueError, match="recovery_likelihood needs labels"):
        objective.loss(1.0, jax.random.key(0), Batch(None, None, x), NONE)

    def tree_at(params, x, level):
        return params * sum(jnp.sum(jnp.asarray(leaf, jnp.float32) ** 2) for leaf in x.values()) / level

    positions = {"a": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(3)}
    objective = recovery_likelihood(tree_at, levels=LEVELS, num_steps=2)
    run = functools.partial(jax.eval_shape, objective.loss, 1.0, jax.random.key(0))
    chex.assert_shape(jax.tree.leaves(run(Batch(None, None, positions), NONE)), ())

    def draw_trees(rng_key):
        return recovery_samples(rng_key, tree_at, 1.0, positions, LEVELS, num_steps=2)

    found = jax.eval_shape(draw_trees, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(found, positions)


def test_an_energy_that_ignores_its_level_is_refused_where_there_are_several():
    def ignores(params, x, level):
        return 0.5 * params * jnp.sum(x**2)

    batch = Batch(None, None, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="energy_at ignores the level"):
        recovery_likelihood(ignores, levels=LEVELS).loss(1.0, jax.random.key(0), batch, NONE)
    one = recovery_likelihood(ignores, levels=LEVELS[:2], num_steps=1)
    jax.eval_shape(one.loss, 1.0, jax.random.key(0), batch, NONE)


BAD = [
    ({"levels": np.array([1.0, 2.0])}, ValueError, "levels.*must fall"),
    ({"levels": np.array([1.0, 0.0])}, ValueError, "levels.*greater than 0"),
    ({"levels": np.array([1.0])}, ValueError, r"levels has shape \(1,\).*at least 2"),
    ({"num_steps": 0}, ValueError, "num_steps=0"),
    ({"step_factor": 0.0}, ValueError, "step_factor=0.0"),
    ({"step_factor": 2.0}, ValueError, r"step_factor=2\.0.*above 0 and below 2"),
    ({"kernel": "sgld"}, TypeError, "kernel='sgld'"),
    ({"energy_at": lambda params, x: 0.0}, TypeError, r"energy_at.*params, x, level"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), [*BAD, ({"weight": -1.0}, ValueError, "weight=-1")]
)
def test_bad_arguments_of_the_objective_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        recovery_likelihood(**({"energy_at": gaussian_at, "levels": LEVELS} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [*BAD, ({"positions": jnp.zeros((2, 1), int)}, TypeError, "positions has dtype int32")],
)
def test_bad_arguments_of_the_sampler_are_named(arguments, error, message):
    accepted = {
        "rng_key": jax.random.key(0),
        "energy_at": gaussian_at,
        "params": GAUSSIAN,
        "positions": jnp.zeros((2, 1)),
        "levels": LEVELS,
    }
    with pytest.raises(error, match=message):
        recovery_samples(**(accepted | arguments))
