"""The contrastive gradient against exact likelihoods: all states of a few spins, and a grid in the plane."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.partition.quadrature import (
    enumerate_states,
    grid,
    log_partition_by_enumeration,
    log_partition_on_grid,
)
from jaxebm.objectives.contrastive import batch_energy, binary_energy_loss, contrastive_loss
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# --- two models whose Z is a sum ---


def spin_energy(params, x):
    """A Boltzmann machine, E(x) = -x.Wx / 2 - b.x."""
    return -0.5 * x @ params["weights"] @ x - params["bias"] @ x


def plane_energy(params, x):
    """A small network inside a quadratic well that keeps Z finite."""
    hidden = jnp.tanh(params["weights"] @ x + params["bias"])
    return params["readout"] @ hidden + 0.5 * params["width"] * jnp.sum(x**2)


RNG = np.random.default_rng(0)


def normal(scale, *shape):
    return jnp.asarray(RNG.normal(scale=scale, size=shape), jnp.float32)


SPIN_PARAMS = {"weights": normal(0.3, 6, 6), "bias": normal(0.4, 6)}
SPIN_STATES = enumerate_states(6)
SPIN_DATA = jnp.asarray(np.where(RNG.random((50, 6)) < [0.9, 0.8, 0.2, 0.7, 0.5, 0.3], 1, -1), jnp.float32)

PLANE_PARAMS = {
    "weights": normal(1.0, 8, 2),
    "bias": normal(1.0, 8),
    "readout": normal(0.7, 8),
    "width": jnp.array(0.8),
}
PLANE_POINTS, LOG_CELL_VOLUME = grid(-7.0, 7.0, 64)
# Skewed in both coordinates, and correlated.
PLANE_DATA = jnp.asarray(RNG.gamma(2.0, 0.5, (50, 2)) @ [[1.0, 0.6], [0.0, -0.8]], jnp.float32)

MODELS = {
    "enumeration": (
        spin_energy,
        SPIN_PARAMS,
        SPIN_STATES,
        SPIN_DATA,
        lambda params: log_partition_by_enumeration(spin_energy, params, SPIN_STATES),
    ),
    "grid": (
        plane_energy,
        PLANE_PARAMS,
        PLANE_POINTS,
        PLANE_DATA,
        lambda params: log_partition_on_grid(plane_energy, params, PLANE_POINTS, LOG_CELL_VOLUME),
    ),
}


def exact_probabilities(energy, params, states):
    """Of every state or grid cell, in float64."""
    energies = np.asarray(batch_energy(energy, params, states), np.float64)
    weights = np.exp(-(energies - energies.min()))
    return weights / weights.sum()


def mean_under(probabilities, per_state):
    return jax.tree.map(lambda leaf: np.tensordot(probabilities, np.asarray(leaf, np.float64), 1), per_state)


@pytest.fixture(scope="module", params=MODELS)
def exact(request):
    """Energy gradients of every state, their moments under the model, and d log p of every example."""
    energy, params, states, data, log_partition = MODELS[request.param]
    slopes_at = jax.jit(jax.vmap(jax.grad(energy), (None, 0)))
    probabilities = exact_probabilities(energy, params, states)
    slopes = slopes_at(params, states)
    mean = mean_under(probabilities, slopes)
    spread = jax.tree.map(
        lambda leaf, centre: np.sqrt(np.tensordot(probabilities, (np.asarray(leaf) - centre) ** 2, 1)),
        slopes,
        mean,
    )

    def log_likelihoods(params):
        return -batch_energy(energy, params, data) - log_partition(params)

    return {
        "model": MODELS[request.param],
        "probabilities": probabilities,
        "data_slopes": slopes_at(params, data),
        "mean": mean,
        "spread": spread,
        "gradients": jax.jit(jax.jacrev(log_likelihoods))(params),  # leaves (examples, ...)
        "estimate": jax.jit(
            jax.grad(lambda params, x_model: contrastive_loss(energy, params, data, x_model)[0])
        ),
    }


def test_the_identity_holds_at_every_example(exact):
    # d log p(x) / d theta = -dE(x) / d theta + E_p[dE / d theta]: REFERENCE section 1.
    by_identity = jax.tree.map(lambda slope, mean: -slope + mean[None], exact["data_slopes"], exact["mean"])
    chex.assert_trees_all_close(by_identity, exact["gradients"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_with_exact_samples_the_gradient_is_that_of_the_likelihood(exact, seed):
    _, params, states, _, _ = exact["model"]
    num_samples = 20_000
    picked = np.random.default_rng(seed).choice(len(states), num_samples, p=exact["probabilities"])
    gradient = exact["estimate"](params, np.asarray(states)[picked])
    wanted = jax.tree.map(lambda leaf: -np.mean(leaf, axis=0), exact["gradients"])
    errors = jax.tree.map(lambda spread: spread / np.sqrt(num_samples), exact["spread"])
    sigmas = jax.tree.map(lambda a, b, e: np.max(np.abs(a - b) / (e + 1e-6)), gradient, wanted, errors)
    assert max(jax.tree.leaves(sigmas)) < 5
    # The data are skewed enough that a term with the wrong sign would be far out.
    signal = jax.tree.map(lambda a, e: np.max(np.abs(a) / (e + 1e-6)), wanted, errors)
    assert min(jax.tree.leaves(signal)) > 10


def test_a_multiset_with_the_models_own_frequencies_gives_the_gradient_exactly():
    # A chain of three spins with a field on the first: first spin and bonds are independent, and up or
    # aligned with probability e^{2h} / (1 + e^{2h}). Fields of log(3) / 2, log(3) / 2 and log(2) / 2 make
    # every probability a multiple of 1 / 48.
    coupling = np.zeros((3, 3))
    coupling[0, 1], coupling[1, 2] = np.log(3) / 2, np.log(2) / 2
    params = {
        "weights": jnp.asarray(coupling + coupling.T, jnp.float32),
        "bias": jnp.array([np.log(3) / 2, 0.0, 0.0], jnp.float32),
    }
    states = enumerate_states(3)
    first, bond, other_bond = states[:, 0], states[:, 0] * states[:, 1], states[:, 1] * states[:, 2]
    counts = jnp.where(first > 0, 3, 1) * jnp.where(bond > 0, 3, 1) * jnp.where(other_bond > 0, 2, 1)
    np.testing.assert_allclose(counts / 48, exact_probabilities(spin_energy, params, states), atol=1e-6)
    x_model = jnp.repeat(states, counts, axis=0, total_repeat_length=48)
    data = jnp.array([[1, 1, -1], [1, -1, -1], [1, 1, 1], [1, 1, -1]], jnp.float32)

    def log_likelihood(params):
        log_z = log_partition_by_enumeration(spin_energy, params, states)
        return jnp.mean(-batch_energy(spin_energy, params, data) - log_z)

    @jax.jit
    def estimate(params, x_data):
        return jax.grad(lambda params: contrastive_loss(spin_energy, params, x_data, x_model)[0])(params)

    wanted = jax.jit(jax.grad(lambda params: -log_likelihood(params)))(params)
    chex.assert_trees_all_close(estimate(params, data), wanted, atol=1e-5)
    # And at the data's own distribution there is nothing left to learn.
    chex.assert_trees_all_close(estimate(params, x_model), jax.tree.map(jnp.zeros_like, params), atol=1e-6)


# --- what the loss is made of ---


def quadratic(params, x):
    return 0.5 * params["scale"] * jnp.sum((x - params["mean"]) ** 2)


QUADRATIC = {"scale": jnp.array(2.0), "mean": jnp.array([0.5, -1.0])}
X_DATA, X_MODEL = normal(1.0, 5, 2), normal(2.0, 7, 2)


def test_value_and_metrics():
    loss, metrics = jax.jit(partial(contrastive_loss, quadratic))(QUADRATIC, X_DATA, X_MODEL)
    data, model = (np.mean(np.sum((np.asarray(x) - [0.5, -1.0]) ** 2, axis=1)) for x in (X_DATA, X_MODEL))
    np.testing.assert_allclose(loss, data - model, rtol=1e-5)
    assert set(metrics) == {"energy_data", "energy_model", "energy_gap"}
    np.testing.assert_allclose(metrics["energy_data"], data, rtol=1e-5)
    np.testing.assert_allclose(metrics["energy_model"], model, rtol=1e-5)
    np.testing.assert_allclose(metrics["energy_gap"], data - model, rtol=1e-5)
    chex.assert_shape([loss, *metrics.values()], ())


def test_energy_l2_adds_the_mean_squares_and_their_gradient():
    def energy(params, x):
        return params["slope"] * x

    params, alpha = {"slope": jnp.array(1.5)}, 0.3
    data, model = jnp.array([1.0, 2.0]), jnp.array([-1.0, 0.5, 3.0])
    (loss, metrics), gradient = jax.jit(
        jax.value_and_grad(
            lambda params: contrastive_loss(energy, params, data, model, energy_l2=alpha), has_aux=True
        )
    )(params)
    second = 2.5 + (1 + 0.25 + 9) / 3  # the mean squares of data and of model
    gap = 1.5 - 2.5 / 3
    np.testing.assert_allclose(loss, 1.5 * gap + alpha * 1.5**2 * second, rtol=1e-6)
    chex.assert_trees_all_close(gradient, {"slope": gap + 2 * alpha * 1.5 * second}, rtol=1e-6)
    np.testing.assert_allclose(metrics["energy_gap"], 1.5 * gap, rtol=1e-6)


@pytest.mark.parametrize("energy_l2", [0.0, 0.5])
def test_no_gradient_flows_through_the_samples(energy_l2):
    def sampled(params):  # one Langevin step: its output depends on the parameters
        return X_MODEL - 0.1 * jax.vmap(jax.grad(quadratic, 1), (None, 0))(params, X_MODEL)

    def through_sampler(params):
        return contrastive_loss(quadratic, params, X_DATA, sampled(params), energy_l2=energy_l2)[0]

    def with_fixed_samples(params):
        return contrastive_loss(quadratic, params, X_DATA, fixed, energy_l2=energy_l2)[0]

    fixed = sampled(QUADRATIC)
    through, past = jax.jit(
        lambda params: (jax.grad(through_sampler)(params), jax.grad(with_fixed_samples)(params))
    )(QUADRATIC)
    chex.assert_trees_all_close(through, past, rtol=1e-5)
    of_samples = jax.grad(lambda x: contrastive_loss(quadratic, QUADRATIC, X_DATA, x)[0])(X_MODEL)
    np.testing.assert_array_equal(of_samples, 0)


def test_batch_normalised_energies_see_the_batch_axis():
    def energy(params, x):
        return params * jnp.sum((x - jax.lax.pmean(x, BATCH_AXIS)) ** 2)

    loss, _ = contrastive_loss(energy, 3.0, X_DATA, X_MODEL)
    variance_data, variance_model = (np.sum(np.var(np.asarray(x), axis=0)) for x in (X_DATA, X_MODEL))
    # Each batch is normalised by itself, so that the samples do not leak into the data's statistics.
    np.testing.assert_allclose(loss, 3 * (variance_data - variance_model), rtol=1e-5)


def test_examples_may_be_any_pytree():
    def energy(params, x):
        return params * (jnp.sum(x["image"]) + x["scale"])

    data = {"image": jnp.ones((3, 2, 2)), "scale": jnp.arange(3.0)}
    model = {"image": np.zeros((2, 2, 2), np.float32), "scale": np.zeros(2, np.float32)}
    assert batch_energy(energy, 2.0, data).tolist() == [8.0, 10.0, 12.0]
    assert float(contrastive_loss(energy, 2.0, data, model)[0]) == 10.0


def test_new_values_do_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(params, x_data, x_model, energy_l2):
        return contrastive_loss(quadratic, params, x_data, x_model, energy_l2=energy_l2)

    for alpha in (0.0, 0.1):
        params = QUADRATIC | {"scale": jnp.array(1.0 + alpha)}
        chex.assert_tree_all_finite(loss(params, X_DATA + alpha, X_MODEL, alpha))


# --- data told from negatives by a cross-entropy, on a table of energies ---

DATA_COUNTS, MODEL_COUNTS = np.array([4, 1, 2, 1]), np.array([1, 5, 2, 2])
# Examples are rows of the identity, since an energy is of a floating-point x.
TABLE_DATA = jnp.repeat(jnp.eye(4), DATA_COUNTS, axis=0, total_repeat_length=8)
TABLE_MODEL = jnp.repeat(jnp.eye(4), MODEL_COUNTS, axis=0, total_repeat_length=10)
P, Q = DATA_COUNTS / 8, MODEL_COUNTS / 10


def table(params, x):
    return params @ x


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def binary(params):
    return binary_energy_loss(table, params, TABLE_DATA, TABLE_MODEL)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_binary_loss_and_its_gradient_are_their_closed_forms():
    params = np.array([0.3, -1.2, 2.0, 0.0])
    (loss, metrics), gradient = binary(jnp.asarray(params, jnp.float32))
    # D = sigmoid(-E) is the probability of being data.
    cross_entropy = -P @ np.log(sigmoid(-params)) - Q @ np.log(1 - sigmoid(-params))
    np.testing.assert_allclose(loss, cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(gradient, P * sigmoid(params) - Q * sigmoid(-params), atol=1e-6)
    assert set(metrics) == {"energy_data", "energy_model", "energy_gap", "binary_cross_entropy"}
    np.testing.assert_allclose(metrics["binary_cross_entropy"], cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["energy_gap"], P @ params - Q @ params, rtol=1e-5)


def test_its_minimiser_is_the_log_ratio_of_the_negatives_to_the_data():
    """The loss is convex in a table, so that a zero of its gradient is its minimum: found here by descent."""
    (smallest, _), gradient = binary(jnp.asarray(np.log(Q / P), jnp.float32))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)

    @jax.jit
    def descend(params):
        return jax.lax.fori_loop(0, 400, lambda _, params: params - 4.0 * binary(params)[1], params)

    found = descend(jnp.zeros(4))
    np.testing.assert_allclose(found, np.log(Q / P), atol=1e-3)
    np.testing.assert_allclose(binary(found)[0][0], smallest, rtol=1e-6)


def test_where_energies_are_zero_its_gradient_is_half_of_the_contrast():
    (loss, _), gradient = binary(jnp.zeros(4))
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
    contrast = jax.grad(lambda params: contrastive_loss(table, params, TABLE_DATA, TABLE_MODEL)[0])
    np.testing.assert_allclose(gradient, 0.5 * contrast(jnp.zeros(4)), atol=1e-7)


def test_binary_energy_l2_and_stopped_samples():
    def loss(params, x_model, energy_l2):
        return binary_energy_loss(quadratic, params, X_DATA, x_model, energy_l2=energy_l2)[0]

    plain, penalised = (loss(QUADRATIC, X_MODEL, alpha) for alpha in (0.0, 0.3))
    squares = sum(np.mean(np.square(batch_energy(quadratic, QUADRATIC, x))) for x in (X_DATA, X_MODEL))
    np.testing.assert_allclose(penalised - plain, 0.3 * squares, rtol=1e-4)
    np.testing.assert_array_equal(jax.grad(loss, 1)(QUADRATIC, X_MODEL, 0.3), 0)


# --- errors ---


def call(loss, x_data=X_DATA, x_model=X_MODEL, energy=quadratic, **options):
    return loss(energy, QUADRATIC, x_data, x_model, **options)


@pytest.mark.parametrize("loss", [contrastive_loss, binary_energy_loss])
@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ({"x_data": jnp.ones((5, 2), jnp.int32)}, TypeError, "x_data has dtype int32"),
        ({"x_model": np.ones((5, 2), np.uint8)}, TypeError, "x_model has dtype uint8"),
        ({"x_model": jnp.ones((7, 3))}, ValueError, r"x_data .*\(2,\).* x_model .*\(3,\)"),
        ({"x_model": {"x": X_MODEL}}, ValueError, "x_model"),
        ({"x_data": jnp.ones((0, 2))}, ValueError, r"x_data has leaves of shapes \[\(0, 2\)\]"),
        ({"x_model": jnp.ones((0, 2))}, ValueError, "x_model .*at least 1"),
        ({"x_model": None}, ValueError, "x_model has no arrays"),
        ({"x_data": jnp.array(1.0)}, ValueError, "x_data .*batch"),
        ({"x_data": {"a": jnp.ones((2, 2)), "b": jnp.ones((3, 2))}}, ValueError, "x_data"),
        ({"energy_l2": -0.1}, ValueError, "energy_l2=-0.1.*at least 0"),
        ({"energy_l2": float("nan")}, ValueError, "energy_l2=nan"),
        ({"energy_l2": "much"}, TypeError, "energy_l2='much'"),
        ({"energy": lambda params, x: x}, ValueError, r"energy returned shape \(2,\).*marginal_energy"),
    ],
)
def test_bad_input_is_refused_while_tracing(loss, arguments, kind, named):
    with pytest.raises(kind, match=named):
        jax.eval_shape(lambda: call(loss=loss, **arguments))


def test_batch_energy_needs_a_batch():
    with pytest.raises(ValueError, match="xs has leaves"):
        batch_energy(quadratic, QUADRATIC, jnp.ones((0, 2)))
