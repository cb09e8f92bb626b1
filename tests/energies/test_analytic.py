"""Each analytic target against quadrature in float64, closed forms, and its own exact samples.

What a target computes is compiled once, in one program with the params traced, and shared by the tests.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.analytic import (
    ANALYTIC_TARGETS,
    AnalyticTarget,
    funnel,
    gaussian,
    skewed,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_SAMPLES = 20_000
# Kolmogorov: P(sqrt(n) sup|F_n - F| > 2.69) = 1e-6; and five sigmas are 6e-7. The seeds are fixed.
SEED = 7
KOLMOGOROV_BOUND = 2.69


def _product_grid(*axes):
    """Nodes (n, d) and the cell volume of a product of evenly spaced axes, each (low, high, number)."""
    lines = [np.linspace(*axis) for axis in axes]
    nodes = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, len(lines))
    return nodes, np.full(len(nodes), np.prod([line[1] - line[0] for line in lines]))


def _funnel_grid(target):
    nodes, volumes = _product_grid((-8, 8, 193), (-8, 8, 193))  # (v, u), x_1 = e^(v/2) u
    stretch = np.exp(nodes[:, 0] / 2)
    return np.stack([nodes[:, 0], stretch * nodes[:, 1]], axis=1), volumes * stretch


def _skewed_grid(target):
    nodes, volumes = _product_grid((-16, 4, 301), (-8, 8, 161))  # (x_0, u), x_1 = shear x_0^2 + width u
    _, shear, width = (float(value) for value in target.params)
    return np.stack([nodes[:, 0], shear * nodes[:, 0] ** 2 + width * nodes[:, 1]], axis=1), volumes * width


def _rosenbrock_grid(target):
    curvature, centre, temperature = (float(value) for value in target.params)
    wide, narrow = np.sqrt(temperature / 2), np.sqrt(temperature / 2 / curvature)
    nodes, volumes = _product_grid(
        (-8, 8, 161), (-8, 8, 161)
    )  # (v, u), x_0 = a + wide v, x_1 = x_0^2 + narrow u
    first = centre + wide * nodes[:, 0]
    return np.stack([first, first**2 + narrow * nodes[:, 1]], axis=1), volumes * wide * narrow


GRIDS = {
    "gaussian": lambda _: _product_grid((-9, 11, 201), (-8, 7, 201)),
    "gaussian_mixture": lambda _: _product_grid((-7, 8, 241), (-6, 8, 241)),
    "ring": lambda _: _product_grid((-4.5, 4.5, 301), (-4.5, 4.5, 301)),
    "funnel": _funnel_grid,
    "double_well": lambda _: _product_grid((-4, 4, 2001)),
    "tilted_double_well": lambda _: _product_grid((-4, 4, 241), (-8, 8, 161)),
    "skewed": _skewed_grid,
    "rosenbrock": _rosenbrock_grid,
    "mueller_brown": lambda _: _product_grid((-3.7, 1.7, 217), (-1.7, 3.7, 217)),
    "many_well": lambda _: _product_grid((-3.2, 3.2, 257), (-7, 7, 85)),
    "random_mixture": lambda _: _product_grid((-6.5, 6.5, 201), (-6.5, 6.5, 201)),
}


class Case(NamedTuple):
    """A target, what its functions return (`exact`, `samples`), and the same by float64 sums on a grid."""

    target: AnalyticTarget
    nodes: np.ndarray
    everything: Callable
    traces: list
    exact: dict
    samples: np.ndarray
    log_z: float
    probabilities: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    gradient: Any  # d log Z / d params


def _make_everything(target):
    """All that a target computes, but for the samples (their sampler is compiled already), as one function.

    `traces` grows by one when it compiles.
    """
    traces = []

    @jax.jit
    def everything(params, nodes, samples):
        traces.append(params)
        bound = target._replace(params=params)
        values = jax.vmap(jax.value_and_grad(target.energy), (None, 0))(params, nodes)
        return {
            "log_partition": target.log_partition(params),
            "log_partition_gradient": jax.grad(target.log_partition)(params),
            "moments": target.moments(params),
            "scores": jax.vmap(bound.score)(samples),
            "energies": values[0],
            "energy_gradients": values[1],
            "log_densities": jax.vmap(bound.log_density)(nodes),
        }

    return everything, traces


@functools.cache
def _case(name):
    target = ANALYTIC_TARGETS[name]()
    nodes, volumes = GRIDS[name](target)
    everything, traces = _make_everything(target)
    samples = np.asarray(target.sample(jax.random.key(SEED), target.params, NUM_SAMPLES))
    exact = everything(target.params, np.asarray(nodes, np.float32), samples[:64])
    masses = volumes * np.exp(-np.asarray(exact["energies"], np.float64))
    probabilities = masses / masses.sum()
    mean = probabilities @ nodes
    covariance = (probabilities[:, None] * (nodes - mean)).T @ (nodes - mean)
    # Nodes of no mass (where a gradient may overflow float32) carry nothing to the expectation.
    alive = probabilities > 1e-30

    def minus_expectation(gradient):
        gradient = np.asarray(gradient, np.float64)[alive]
        return -np.tensordot(probabilities[alive], gradient, axes=1)

    gradient = jax.tree.map(minus_expectation, exact["energy_gradients"])
    log_z = np.log(masses.sum())
    return Case(
        target,
        nodes,
        everything,
        traces,
        exact,
        samples.astype(np.float64),
        log_z,
        probabilities,
        mean,
        covariance,
        gradient,
    )


# Of module scope, so that tests run target by target.
every_target = pytest.mark.parametrize("name", list(ANALYTIC_TARGETS), scope="module")


def test_every_target_has_a_grid():
    assert set(GRIDS) == set(ANALYTIC_TARGETS)


@every_target
def test_log_partition_is_the_integral(name):
    case = _case(name)
    chex.assert_shape(case.exact["log_partition"], ())
    np.testing.assert_allclose(case.exact["log_partition"], case.log_z, atol=2e-5)


@every_target
def test_moments_are_the_integrals(name):
    case = _case(name)
    mean, covariance = case.exact["moments"]
    chex.assert_shape(mean, (case.target.dimension,))
    chex.assert_shape(covariance, (case.target.dimension, case.target.dimension))
    np.testing.assert_allclose(mean, case.mean, atol=1e-4)
    np.testing.assert_allclose(covariance, case.covariance, atol=2e-4)


@every_target
def test_gradient_of_log_partition_is_minus_the_expected_gradient(name):
    case = _case(name)
    gradient = case.exact["log_partition_gradient"]
    chex.assert_trees_all_equal_shapes(gradient, case.target.params)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=2e-4, atol=2e-4), gradient, case.gradient)


@every_target
def test_samples_have_the_exact_moments(name):
    case = _case(name)
    samples = case.samples
    assert samples.shape == (NUM_SAMPLES, case.target.dimension)
    mean, covariance = (np.asarray(moment, np.float64) for moment in case.exact["moments"])
    error = np.sqrt(np.diag(covariance) / NUM_SAMPLES)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * error)

    products = (samples - mean)[:, :, None] * (samples - mean)[:, None, :]
    node_products = (case.nodes - mean)[:, :, None] * (case.nodes - mean)[:, None, :]
    fourth = np.tensordot(case.probabilities, node_products**2, axes=1)
    error = np.sqrt((fourth - covariance**2) / NUM_SAMPLES)
    assert np.all(np.abs(products.mean(axis=0) - covariance) < 5 * error)


@every_target
def test_samples_have_the_exact_marginals(name, kolmogorov):
    """Kolmogorov-Smirnov along each axis and along an oblique one, which sees dependence."""
    case = _case(name)
    samples, dimension = case.samples, case.target.dimension
    for direction in [*np.eye(dimension), np.arange(1, dimension + 1) * 0.6180339]:
        distance = kolmogorov(samples @ direction, case.nodes @ direction, case.probabilities)
        assert distance < KOLMOGOROV_BOUND


def test_a_wrong_sign_would_be_seen(kolmogorov):
    """The same test on mirrored samples of the skewed target fails by far: it can tell a sign error."""
    case = _case("skewed")
    for axis in range(2):
        mirrored = 2 * case.mean[axis] - case.samples[:, axis]
        assert kolmogorov(mirrored, case.nodes[:, axis], case.probabilities) > 2 * KOLMOGOROV_BOUND


def _mixture_score(params, x):
    log_weights, means, scales = params
    log_terms = log_weights - 0.5 * np.sum((x - means) ** 2, axis=1) / scales**2 - len(x) * np.log(scales)
    posterior = np.exp(log_terms - log_terms.max())
    posterior /= posterior.sum()
    return np.sum(posterior[:, None] * (means - x) / scales[:, None] ** 2, axis=0)


def _double_well_score(params, x):
    barrier, separation, tilt = params
    u = 2 * x[0] / separation
    return np.concatenate([[-(4 * barrier * u * (u**2 - 1) - tilt / 2) * 2 / separation], -x[1:]])


def _funnel_score(params, x):
    v, others = x[0], x[1:]
    first = -v / params[0] ** 2 + 0.5 * np.sum(others**2) * np.exp(-v) - 0.5 * len(others)
    return np.concatenate([[first], -others * np.exp(-v)])


def _skewed_score(params, x):
    shape, shear, width = params
    bend = (x[1] - shear * x[0] ** 2) / width**2
    return np.array([shape - np.exp(x[0]) + 2 * shear * x[0] * bend, -bend])


def _rosenbrock_score(params, x):
    curvature, centre, temperature = params
    bend = 2 * curvature * (x[1] - x[0] ** 2) / temperature
    return np.array([2 * x[0] * bend - 2 * (x[0] - centre) / temperature, -bend])


def _mueller_brown_score(params, x):
    """The surface as it was printed, in scalars."""
    terms = zip(
        (-200.0, -100.0, -170.0, 15.0),
        (-1.0, -1.0, -6.5, 0.7),
        (0.0, 0.0, 11.0, 0.6),
        (-10.0, -10.0, -6.5, 0.7),
        (1.0, 0.0, -0.5, -1.0),
        (0.0, 0.5, 1.5, 1.0),
        strict=True,
    )
    score = np.zeros(2)
    for amplitude, a, b, c, centre_x, centre_y in terms:
        dx, dy = x[0] - centre_x, x[1] - centre_y
        height = amplitude * np.exp(a * dx**2 + b * dx * dy + c * dy**2)
        score -= height * np.array([2 * a * dx + b * dy, b * dx + 2 * c * dy])
    return score / params[0]


def _many_well_score(params, x):
    barrier, separation, tilt = params
    u = 2 * x[0] / separation
    return np.array([-(4 * barrier * u * (u**2 - 1) - tilt / 2) * 2 / separation, -x[1]])


SCORES = {
    "gaussian": lambda params, x: -params[1] @ (x - params[0]),
    "gaussian_mixture": _mixture_score,
    "ring": lambda params, x: -(1 - params[0] / np.linalg.norm(x)) / params[1] ** 2 * x,
    "funnel": _funnel_score,
    "double_well": _double_well_score,
    "tilted_double_well": _double_well_score,
    "skewed": _skewed_score,
    "rosenbrock": _rosenbrock_score,
    "mueller_brown": _mueller_brown_score,
    "many_well": _many_well_score,
    "random_mixture": _mixture_score,
}


@every_target
def test_score_is_the_closed_form(name):
    case = _case(name)
    params = [np.asarray(value, np.float64) for value in case.target.params]
    expected = np.stack([SCORES[name](params, x) for x in case.samples[:64]])
    np.testing.assert_allclose(case.exact["scores"], expected, rtol=2e-4, atol=2e-4)


@every_target
def test_energies_differentiate(name, assert_differentiable):
    with jax.enable_x64(True):
        target = ANALYTIC_TARGETS[name]()
        assert_differentiable(target.energy, target.params, np.linspace(0.7, -0.4, target.dimension))


@every_target
def test_log_density_is_normalised(name):
    case = _case(name)
    mode = np.argmax(case.probabilities)
    expected = -float(case.exact["energies"][mode]) - case.log_z
    np.testing.assert_allclose(case.exact["log_densities"][mode], expected, atol=1e-4)


@every_target
def test_params_may_be_traced(name):
    case = _case(name)
    again = ANALYTIC_TARGETS[name]()
    assert case.target.energy == again.energy
    assert hash(case.target.energy) == hash(again.energy)
    params = jax.tree.map(lambda value: np.float32(1.1) * np.asarray(value), case.target.params)
    samples = case.target.sample(jax.random.key(0), params, NUM_SAMPLES)
    moved = case.everything(params, np.asarray(case.nodes, np.float32), case.samples[:64].astype(np.float32))
    chex.assert_tree_all_finite((samples, moved["log_partition"], moved["moments"]))
    assert len(case.traces) == 1
    traced = jax.eval_shape(lambda params: case.target.sample(jax.random.key(0), params, 3), params)
    assert traced.shape == (3, case.target.dimension)


def test_neals_funnel_in_ten_dimensions():
    """Given v the others are normal, so Z is v's integral of exp(-E(v, 0)) (2 pi e^v)^((d-1)/2)."""
    target = funnel()
    v = np.linspace(-30, 30, 4001)
    points = np.concatenate([v[:, None], np.zeros((len(v), 9))], axis=1)
    log_partition, energies = jax.jit(
        lambda params, points: (
            target.log_partition(params),
            jax.vmap(target.energy, (None, 0))(params, points),
        )
    )(target.params, np.asarray(points, np.float32))
    log_terms = -np.asarray(energies, np.float64) + 4.5 * (np.log(2 * np.pi) + v)
    log_z = np.log(np.sum(np.exp(log_terms)) * (v[1] - v[0]))
    np.testing.assert_allclose(log_partition, log_z, rtol=1e-5)
    samples = np.asarray(target.sample(jax.random.key(1), target.params, NUM_SAMPLES), np.float64)
    standard = samples[:, 1:] / np.exp(samples[:, :1] / 2)
    assert np.all(np.abs(standard.mean(axis=0)) < 5 / np.sqrt(NUM_SAMPLES))
    assert np.all(np.abs((standard**2).mean(axis=0) - 1) < 5 * np.sqrt(2 / NUM_SAMPLES))
    assert abs(samples[:, 0].mean()) < 5 * 3 / np.sqrt(NUM_SAMPLES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]),
            "covariance must be symmetric positive definite",
        ),
        (
            lambda: gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]),
            "covariance must be symmetric positive definite",
        ),
        (lambda: gaussian([0.0, 0.0], [1.0, 1.0]), r"covariance has shape \(2,\)"),
        (lambda: gaussian(0.0, [[1.0]]), r"mean has shape \(\)"),
        (lambda: gaussian([np.nan], [[1.0]]), "mean holds 1 non-finite"),
        (lambda: funnel(dimension=1), "dimension must be an integer of at least 2"),
        (lambda: funnel(scale=-3.0), "scale must be finite and greater than 0"),
        (lambda: skewed(shape=0.0), "shape must be finite and greater than 0"),
        (lambda: skewed(width=-1.0), "width must be finite and greater than 0"),
        (lambda: gaussian([0.0], [[1.0]]).target(jnp.zeros(2)), r"x has shape \(2,\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
