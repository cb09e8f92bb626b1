"""The gradient through a chain's last step against closed forms, and entropies against known ones."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies import MLP, ConvNet, WideResNet, joint_energy
from jaxebm.objectives import last_step_loss, nearest_neighbour_entropy
from jaxebm.samplers import sgld
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


# --- entropy from nearest neighbours ---


def by_definition(xs, references=None):
    """Every pair, in float64."""
    xs = np.asarray(xs, np.float64)
    others = xs if references is None else np.asarray(references, np.float64)
    distances = np.linalg.norm(xs[:, None] - others[None], axis=2)
    if references is None:
        np.fill_diagonal(distances, np.inf)
    return np.mean(np.log(distances.min(axis=1)))


XS, REFERENCES = normal(9, 4), normal(6, 4)
# One program each: op by op, each operation would be compiled by itself.
compiled_entropy = jax.jit(nearest_neighbour_entropy)
compiled_gradient = jax.jit(jax.value_and_grad(nearest_neighbour_entropy))


@pytest.mark.parametrize("references", [None, REFERENCES], ids=["others", "references"])
def test_value_and_gradient_are_those_of_the_definition(references):
    value, gradient = compiled_gradient(XS, references)
    np.testing.assert_allclose(value, by_definition(XS, references), rtol=1e-5)
    step = 1e-6
    wanted = np.zeros(XS.shape)
    for index in np.ndindex(*XS.shape):
        shift = np.zeros(XS.shape)
        shift[index] = step
        ends = [by_definition(np.asarray(XS, np.float64) + sign * shift, references) for sign in (1, -1)]
        wanted[index] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_to_the_references():
    of_references = jax.jit(jax.grad(nearest_neighbour_entropy, argnums=1))(XS, REFERENCES)
    np.testing.assert_array_equal(of_references, 0)


@pytest.mark.parametrize(("dimension", "scales"), [(1, [1.5]), (2, [0.5, 3.0])])
def test_with_its_constants_it_is_the_entropy_of_a_gaussian(dimension, scales):
    """H = sum log(sigma sqrt(2 pi e)); Kozachenko-Leonenko = d mean log + log(n - 1) + log V_d + 0.577.

    The variance of d log(distance) is pi^2 / 6 plus that of log p, d / 2; neighbours that are each other's
    at most double it. The bias of order n^(-2/d) is below 1 / n^(1/2) here.
    """
    num_points = 3000
    points = normal(num_points, dimension) * jnp.asarray(scales)[None, :]
    estimate = dimension * float(compiled_entropy(points))
    volume = {1: 2.0, 2: np.pi}[dimension]
    estimate += np.log(num_points - 1) + np.log(volume) + np.euler_gamma
    wanted = np.sum(np.log(np.asarray(scales) * np.sqrt(2 * np.pi * np.e)))
    error = np.sqrt(2 * (np.pi**2 / 6 + dimension / 2) / num_points)
    assert abs(estimate - wanted) < 4 * error


def test_copies_are_left_where_they_are():
    xs = jnp.array([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]])
    value, gradient = compiled_gradient(xs)
    np.testing.assert_allclose(value, (2 * np.log(1e-6) + np.log(5.0)) / 3, rtol=1e-5)
    chex.assert_tree_all_finite(gradient)
    # The third flees the first of the copies, which it pushes in turn; the distance of the copies pulls none.
    flight = np.array([0.6, 0.8]) / 5 / 3
    np.testing.assert_allclose(gradient, [-flight, [0, 0], flight], rtol=1e-5)
    _, at_the_reference = compiled_gradient(xs[:1], xs[:1])
    np.testing.assert_array_equal(at_the_reference, 0)


def test_neighbours_are_found_far_from_the_origin():
    xs = jnp.asarray(np.asarray(XS) + 1e4, jnp.float32)
    np.testing.assert_allclose(compiled_entropy(xs), by_definition(xs), rtol=1e-5)


def test_examples_are_flattened_and_their_leaves_joined():
    images = {"a": XS.reshape(9, 2, 2).astype(jnp.bfloat16), "b": normal(9)}
    flat = jnp.concatenate([images["a"].reshape(9, 4).astype(jnp.float32), images["b"][:, None]], axis=1)
    value = compiled_entropy(images)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, by_definition(flat), rtol=1e-5)


@pytest.mark.parametrize(
    ("xs", "references", "kind", "named"),
    [
        (XS[:1], None, ValueError, "xs holds one example"),
        (XS[:0], REFERENCES, ValueError, "xs has leaves of shapes"),
        (XS, REFERENCES[:0], ValueError, "references has leaves"),
        (XS, REFERENCES[:, :3], ValueError, r"xs .*\(4,\) and references .*\(3,\)"),
        (XS.astype(jnp.int32), None, TypeError, "xs has dtype int32"),
        (XS, REFERENCES > 0, TypeError, "references has dtype bool"),
    ],
)
def test_entropy_refuses_bad_input(xs, references, kind, named):
    with pytest.raises(kind, match=named):
        nearest_neighbour_entropy(xs, references)


# --- the last step on E(x) = k |x - m_y|^2 / 2, which leads to m + (1 - epsilon k)(x - m) ---

STEP, K, M = 0.2, 1.5, np.array([[0.5, -1.0], [2.0, 1.0]])
PARAMS = {"k": jnp.array(K), "m": jnp.asarray(M, jnp.float32)}
POSITIONS, LABELS = normal(5, 2), jnp.array([0, 1, 1, 0, 1], jnp.int32)
OFFSETS = np.asarray(POSITIONS, np.float64) - M[np.asarray(LABELS)]
MOVED = np.asarray(POSITIONS, np.float64) - STEP * K * OFFSETS
DOWNHILL = partial(sgld, step_size=STEP, noise_scale=0.0)
TARGETS = jnp.array([[3.0, 3.0], [-2.0, 0.0]])


def quadratic(params, x, label):
    return 0.5 * params["k"] * jnp.sum((x - params["m"][label]) ** 2)


def call(
    params=PARAMS, positions=POSITIONS, make_kernel=DOWNHILL, energy=quadratic, labels=LABELS, **options
):
    return last_step_loss(KEY, make_kernel, energy, params, positions, labels, **options)


def value_and_gradient(**options):
    return jax.jit(jax.value_and_grad(lambda params: call(params, **options), has_aux=True))(PARAMS)


def test_the_energy_term_is_its_closed_form():
    """d/dk of the step is -epsilon (x - m), d/dm epsilon k; dE/dx there is k (1 - epsilon k)(x - m)."""
    (loss, metrics), gradient = value_and_gradient(entropy_weight=0.0)
    shrunk = 1 - STEP * K
    energy = 0.5 * K * np.mean(np.sum((shrunk * OFFSETS) ** 2, axis=1))
    np.testing.assert_allclose(loss, energy, rtol=1e-5)
    np.testing.assert_allclose(metrics["last_step_energy"], energy, rtol=1e-5)
    by_k = -STEP * K * shrunk * np.mean(np.sum(OFFSETS**2, axis=1))
    np.testing.assert_allclose(gradient["k"], by_k, rtol=1e-5)
    of_class = np.asarray(LABELS)[None, :] == np.arange(2)[:, None]
    by_m = STEP * K**2 * shrunk * (of_class @ OFFSETS) / len(OFFSETS)
    np.testing.assert_allclose(gradient["m"], by_m, rtol=1e-4)


def test_the_entropy_term_is_its_closed_form():
    weight = 0.7
    (loss, metrics), gradient = value_and_gradient(references=TARGETS, entropy_weight=weight)
    differences = MOVED[:, None] - np.asarray(TARGETS)[None]
    nearest = np.argmin(np.linalg.norm(differences, axis=2), axis=1)
    assert len(set(nearest)) == 2
    difference = differences[np.arange(5), nearest]
    squares = np.sum(difference**2, axis=1)
    np.testing.assert_allclose(metrics["neighbour_entropy"], np.mean(0.5 * np.log(squares)), rtol=1e-5)
    np.testing.assert_allclose(
        loss, metrics["last_step_energy"] - weight * metrics["neighbour_entropy"], rtol=1e-5
    )
    by_k = -STEP * K * (1 - STEP * K) * np.mean(np.sum(OFFSETS**2, axis=1))
    by_k -= weight * np.mean(-STEP * np.sum(difference * OFFSETS, axis=1) / squares)
    np.testing.assert_allclose(gradient["k"], by_k, rtol=1e-4)


def test_without_references_the_other_chains_are_the_neighbours():
    (_, metrics), _ = value_and_gradient()
    np.testing.assert_allclose(metrics["neighbour_entropy"], by_definition(MOVED), rtol=1e-5)


def test_no_gradient_flows_to_where_the_chains_came_from():
    def loss(positions, references):
        return call(positions=positions, references=references)[0]

    for gradient in jax.jit(jax.grad(loss, (0, 1)))(POSITIONS, TARGETS):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("option", [{"gradient_clip": 1e-3}, {"state_clamp": (-1e-3, 1e-3)}], ids=str)
def test_clipped_and_clamped_entries_pass_no_gradient(option):
    _, gradient = value_and_gradient(make_kernel=partial(DOWNHILL, **option), references=TARGETS)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_each_chain_has_noise_of_its_own():
    still = partial(sgld, step_size=1e-9, noise_scale=1.0)
    _, metrics = jax.jit(lambda positions: call(positions=positions, make_kernel=still))(jnp.zeros((5, 2)))
    assert metrics["neighbour_entropy"] > np.log(1e-3)


def test_batch_normalised_energies_see_the_chains_as_their_batch():
    def energy(params, x, label):
        # Each chain is pulled to the mean of all.
        return 0.5 * params * jnp.sum((x - jax.lax.pmean(x, BATCH_AXIS)) ** 2)

    loss, _ = jax.jit(lambda k: call(params=k, energy=energy, entropy_weight=0.0))(1.0)
    assert loss < 0.5 * np.sum(np.var(np.asarray(POSITIONS), axis=0))


def test_new_values_do_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(params, positions, weight):
        return call(params, positions, entropy_weight=weight)[0]

    assert loss(PARAMS, POSITIONS, 0.1) != loss(PARAMS, POSITIONS + 1, 0.2)


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ({"entropy_weight": -1.0}, ValueError, "entropy_weight=-1.0"),
        ({"labels": LABELS[:3]}, ValueError, r"labels has shape \(3,\): \(5,\)"),
        ({"positions": POSITIONS.astype(jnp.int32)}, TypeError, "positions has dtype int32"),
        ({"positions": POSITIONS[:1], "labels": LABELS[:1]}, ValueError, "references is None"),
        ({"references": jnp.ones((2, 3))}, ValueError, "references"),
    ],
)
def test_bad_input_is_refused_while_tracing(arguments, kind, named):
    with pytest.raises(kind, match=named):
        jax.eval_shape(lambda: call(**arguments))


# --- through networks, whose convolutions state derivatives of their own ---

NETWORKS = {
    "MLP": (MLP(3, widths=(8, 8)), (4, 4, 1)),
    "ConvNet": (ConvNet(3, channels=(4,)), (10, 10, 1)),  # 25 pixels: its derivatives are stated apart
}
LARGE_NETWORKS = {
    "ConvNet, spectral": (ConvNet(3, channels=(4, 4), spectral_norm=True), (10, 10, 1)),
    "ConvNet, batch": (ConvNet(3, channels=(4, 4), norm="batch"), (10, 10, 1)),
    "WideResNet": (WideResNet(3, depth=10, width=1, activation="swish"), (8, 8, 3)),
}


@pytest.mark.parametrize(
    "name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE_NETWORKS)]
)
def test_through_a_network_it_is_the_mixed_second_derivative(name):
    """dL/dtheta = -epsilon d/dtheta [dE(x)/dx . v] with v = dE/dx at the end of the step.

    Here the derivative along v is a difference of two energies, so that no second derivative is taken.
    """
    module, shape = (NETWORKS | LARGE_NETWORKS)[name]
    variables = jax.jit(module.init)(KEY, jnp.zeros(shape))
    energy = joint_energy(module.apply)
    labels = jnp.array([2, 0, 1])
    step_size, h = 1.0, 3e-2

    @jax.jit
    def through_the_step(params, xs):
        kernel = partial(sgld, step_size=step_size, noise_scale=0.0)
        return jax.grad(
            lambda params: last_step_loss(KEY, kernel, energy, params, xs, labels, entropy_weight=0.0)[0]
        )(params)

    @jax.jit
    def by_differences(params, xs):
        slope = jax.vmap(jax.grad(energy, 1), (None, 0, 0))
        direction = slope(params, xs - step_size * slope(params, xs, labels), labels)
        length = jnp.sqrt(jnp.sum(direction**2, axis=(1, 2, 3)))

        def directional(params):
            unit = direction / length[:, None, None, None]
            ends = [jax.vmap(energy, (None, 0, 0))(params, xs + sign * h * unit, labels) for sign in (1, -1)]
            return -step_size * jnp.mean(length * (ends[0] - ends[1])) / (2 * h)

        return jax.grad(directional)(params)

    xs = normal(3, *shape)
    gradient, wanted = through_the_step(variables, xs)["params"], by_differences(variables, xs)["params"]
    chex.assert_tree_all_finite(gradient)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, wanted))
    assert difference < 0.01 * optax.tree.norm(wanted)
    kernels = [leaf for leaf in jax.tree.leaves(gradient) if leaf.ndim > 1]
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in kernels)
