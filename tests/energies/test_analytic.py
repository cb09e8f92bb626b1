"""Each analytic target against quadrature in float64, closed forms, and its own exact samples."""

import functools

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxebm.energies.analytic import (
    ANALYTIC_TARGETS,
    AnalyticTarget,
    double_well,
    funnel,
    gaussian,
    gaussian_mixture,
    ring,
    skewed,
)

NUM_SAMPLES = 20_000
# Kolmogorov: P(sqrt(n) sup|F_n - F| > 2.69) = 1e-6; and five sigmas are 6e-7. The seeds are fixed.
KOLMOGOROV_BOUND = 2.69


def _product_grid(*axes):
    """Nodes (n, d) and the cell volume of a product of evenly spaced axes, each (low, high, number)."""
    lines = [np.linspace(*axis) for axis in axes]
    nodes = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, len(lines))
    return nodes, np.full(len(nodes), np.prod([line[1] - line[0] for line in lines]))


def _funnel_grid(target):
    nodes, volumes = _product_grid((-8, 8, 257), (-8, 8, 257))  # (v, u), x_1 = e^(v/2) u
    stretch = np.exp(nodes[:, 0] / 2)
    return np.stack([nodes[:, 0], stretch * nodes[:, 1]], axis=1), volumes * stretch


def _skewed_grid(target):
    nodes, volumes = _product_grid((-16, 4, 401), (-8, 8, 201))  # (x_0, u), x_1 = shear x_0^2 + width u
    _, shear, width = (float(value) for value in target.params)
    return np.stack([nodes[:, 0], shear * nodes[:, 0] ** 2 + width * nodes[:, 1]], axis=1), volumes * width


GRIDS = {
    "gaussian": lambda _: _product_grid((-9, 11, 301), (-8, 7, 301)),
    "gaussian_mixture": lambda _: _product_grid((-7, 8, 301), (-6, 8, 301)),
    "ring": lambda _: _product_grid((-4.5, 4.5, 451), (-4.5, 4.5, 451)),
    "funnel": _funnel_grid,
    "double_well": lambda _: _product_grid((-4, 4, 2001)),
    "tilted_double_well": lambda _: _product_grid((-4, 4, 301), (-8, 8, 201)),
    "skewed": _skewed_grid,
}


def _quadrature(target: AnalyticTarget, nodes, volumes):
    """log Z, probabilities of the nodes, mean, covariance and d log Z / d params, all summed in float64."""
    points = jnp.asarray(nodes, jnp.float32)
    energies = np.asarray(jax.vmap(target.energy, (None, 0))(target.params, points), np.float64)
    masses = volumes * np.exp(-energies)
    probabilities = masses / masses.sum()
    mean = probabilities @ nodes
    covariance = (probabilities[:, None] * (nodes - mean)).T @ (nodes - mean)
    gradients = jax.vmap(jax.grad(target.energy), (None, 0))(target.params, points)
    # Nodes of no mass (where a gradient may overflow float32) carry nothing to the expectation.
    alive = probabilities > 1e-30

    def minus_expectation(gradient):
        gradient = np.asarray(gradient, np.float64)[alive]
        return -np.tensordot(probabilities[alive], gradient, axes=1)

    return np.log(masses.sum()), probabilities, mean, covariance, jax.tree.map(minus_expectation, gradients)


@functools.cache
def _case(name):
    target = ANALYTIC_TARGETS[name]()
    nodes, volumes = GRIDS[name](target)
    return target, nodes, _quadrature(target, nodes, volumes)


@functools.cache
def _samples(name):
    target = ANALYTIC_TARGETS[name]()
    return np.asarray(target.sample(jax.random.key(7), target.params, NUM_SAMPLES), np.float64)


every_target = pytest.mark.parametrize("name", list(ANALYTIC_TARGETS))


def _kolmogorov(samples, nodes, probabilities):
    """sqrt(n) sup|F_n - F|, F interpolated between the nodes at half their own mass."""
    values, index = np.unique(nodes, return_inverse=True)
    mass = np.bincount(index, weights=probabilities)
    cumulative = np.interp(np.sort(samples), values, np.cumsum(mass) - mass / 2)
    steps = np.arange(len(samples) + 1) / len(samples)
    distance = max(np.max(cumulative - steps[:-1]), np.max(steps[1:] - cumulative))
    return np.sqrt(len(samples)) * distance


def test_every_target_has_a_grid():
    assert set(GRIDS) == set(ANALYTIC_TARGETS)


@every_target
def test_log_partition_is_the_integral(name):
    target, _, (log_z, *_) = _case(name)
    value = target.log_partition(target.params)
    chex.assert_shape(value, ())
    np.testing.assert_allclose(value, log_z, atol=2e-5)


@every_target
def test_moments_are_the_integrals(name):
    target, _, (_, _, mean, covariance, _) = _case(name)
    exact_mean, exact_covariance = target.moments(target.params)
    chex.assert_shape(exact_mean, (target.dimension,))
    chex.assert_shape(exact_covariance, (target.dimension, target.dimension))
    np.testing.assert_allclose(exact_mean, mean, atol=1e-4)
    np.testing.assert_allclose(exact_covariance, covariance, atol=2e-4)


@every_target
def test_gradient_of_log_partition_is_minus_the_expected_gradient(name):
    target, _, (*_, expected) = _case(name)
    gradient = jax.grad(target.log_partition)(target.params)
    chex.assert_trees_all_equal_shapes(gradient, target.params)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=2e-4, atol=2e-4), gradient, expected)


@every_target
def test_samples_have_the_exact_moments(name):
    target, nodes, (_, probabilities, *_) = _case(name)
    samples = _samples(name)
    assert samples.shape == (NUM_SAMPLES, target.dimension)
    mean, covariance = (np.asarray(moment, np.float64) for moment in target.moments(target.params))
    error = np.sqrt(np.diag(covariance) / NUM_SAMPLES)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * error)

    products = (samples - mean)[:, :, None] * (samples - mean)[:, None, :]
    node_products = (nodes - mean)[:, :, None] * (nodes - mean)[:, None, :]
    fourth = np.tensordot(probabilities, node_products**2, axes=1)
    error = np.sqrt((fourth - covariance**2) / NUM_SAMPLES)
    assert np.all(np.abs(products.mean(axis=0) - covariance) < 5 * error)


@every_target
def test_samples_have_the_exact_marginals(name):
    """Kolmogorov-Smirnov along each axis and along an oblique one, which sees dependence."""
    target, nodes, (_, probabilities, *_) = _case(name)
    directions = [*np.eye(target.dimension), np.arange(1, target.dimension + 1) * 0.6180339]
    for direction in directions:
        assert _kolmogorov(_samples(name) @ direction, nodes @ direction, probabilities) < KOLMOGOROV_BOUND


def test_a_wrong_sign_would_be_seen():
    """The same test on mirrored samples of the skewed target fails by far: it can tell a sign error."""
    _, nodes, (_, probabilities, mean, *_) = _case("skewed")
    for axis in range(2):
        mirrored = 2 * mean[axis] - _samples("skewed")[:, axis]
        assert _kolmogorov(mirrored, nodes[:, axis], probabilities) > 2 * KOLMOGOROV_BOUND


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


SCORES = {
    "gaussian": lambda params, x: -params[1] @ (x - params[0]),
    "gaussian_mixture": _mixture_score,
    "ring": lambda params, x: -(1 - params[0] / np.linalg.norm(x)) / params[1] ** 2 * x,
    "funnel": _funnel_score,
    "double_well": _double_well_score,
    "tilted_double_well": _double_well_score,
    "skewed": _skewed_score,
}


@every_target
def test_score_is_the_closed_form(name):
    target = ANALYTIC_TARGETS[name]()
    points = _samples(name)[:64]
    params = [np.asarray(value, np.float64) for value in target.params]
    expected = np.stack([SCORES[name](params, x) for x in points])
    scores = jax.vmap(target.score)(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(scores, expected, rtol=2e-4, atol=2e-4)


@every_target
def test_energies_differentiate(name):
    with jax.enable_x64(True):
        target = ANALYTIC_TARGETS[name]()
        x = jnp.linspace(0.7, -0.4, target.dimension)
        jax.test_util.check_grads(jax.jit(target.energy), (target.params, x), order=1, atol=1e-5, rtol=1e-5)


@every_target
def test_log_density_is_normalised(name):
    target, nodes, (log_z, probabilities, *_) = _case(name)
    mode = jnp.asarray(nodes[np.argmax(probabilities)], jnp.float32)
    np.testing.assert_allclose(target.log_density(mode), -float(target.target(mode)) - log_z, atol=1e-4)


@every_target
def test_params_may_be_traced(name):
    target = ANALYTIC_TARGETS[name]()
    again = ANALYTIC_TARGETS[name]()
    chex.clear_trace_counter()
    assert target.energy == again.energy
    assert hash(target.energy) == hash(again.energy)

    @jax.jit
    @chex.assert_max_traces(1)
    def everything(rng_key, params):
        return target.log_partition(params), target.moments(params), target.sample(rng_key, params, 3)

    for factor in (1.0, 1.1):
        params = jax.tree.map(lambda value, factor=factor: factor * value, target.params)
        chex.assert_tree_all_finite(everything(jax.random.key(0), params))


@pytest.mark.parametrize(
    ("barrier", "tilt"), [(0.1, 0.0), (0.3, -6.0), (2.0, 30.0), (20.0, 0.5), (5.0, -2.0), (100.0, 0.0)]
)
def test_double_well_far_from_its_defaults(barrier, tilt):
    """Wells from flat to narrow, tilts that leave one of them: log Z, moments and sampler still agree."""
    target = double_well(barrier=barrier, separation=3.0, tilt=tilt)
    nodes = np.linspace(-12, 12, 200_001)
    u = 2 * nodes / 3.0
    energies = barrier * (u**2 - 1) ** 2 - tilt * u / 2
    lowest = energies.min()
    masses = np.exp(lowest - energies) * (nodes[1] - nodes[0])
    probabilities = masses / masses.sum()
    np.testing.assert_allclose(target.log_partition(target.params), np.log(masses.sum()) - lowest, rtol=2e-5)
    mean, covariance = target.moments(target.params)
    np.testing.assert_allclose(mean[0], probabilities @ nodes, atol=1e-4)
    np.testing.assert_allclose(covariance[0, 0], probabilities @ (nodes - float(mean[0])) ** 2, rtol=1e-3)
    samples = np.asarray(target.sample(jax.random.key(3), target.params, NUM_SAMPLES))[:, 0]
    assert _kolmogorov(samples, nodes, probabilities) < KOLMOGOROV_BOUND


@pytest.mark.parametrize(("radius", "width"), [(0.0, 1.0), (0.5, 0.5), (1.0, 2.0), (5.0, 0.1)])
def test_ring_far_from_its_defaults(radius, width):
    """In polar coordinates, where the cone at the origin is no obstacle."""
    target = ring(radius=radius, width=width)
    distances = np.linspace(0, radius + 9 * width, 40_001)
    masses = distances * np.exp(-0.5 * ((distances - radius) / width) ** 2) * (distances[1] - distances[0])
    np.testing.assert_allclose(
        target.log_partition(target.params), np.log(2 * np.pi * masses.sum()), atol=2e-5
    )
    second = masses @ distances**2 / masses.sum()
    np.testing.assert_allclose(target.moments(target.params)[1], np.eye(2) * second / 2, rtol=1e-4)
    samples = np.asarray(target.sample(jax.random.key(5), target.params, NUM_SAMPLES))
    drawn = np.linalg.norm(samples, axis=1)
    assert _kolmogorov(drawn, distances, masses / masses.sum()) < KOLMOGOROV_BOUND
    angles = np.arctan2(samples[:, 1], samples[:, 0])
    line = np.linspace(-np.pi, np.pi, 10_001)
    assert _kolmogorov(angles, line, np.full(10_001, 1 / 10_001)) < KOLMOGOROV_BOUND


def test_ring_score_at_the_origin_is_finite():
    chex.assert_trees_all_close(ring().score(jnp.zeros(2)), jnp.zeros(2))


def test_neals_funnel_in_ten_dimensions():
    """Given v the others are normal, so Z is v's integral of exp(-E(v, 0)) (2 pi e^v)^((d-1)/2)."""
    target = funnel()
    v = np.linspace(-30, 30, 4001)
    points = np.concatenate([v[:, None], np.zeros((len(v), 9))], axis=1)
    energies = jax.vmap(target.target)(jnp.asarray(points, jnp.float32))
    log_terms = -np.asarray(energies, np.float64) + 4.5 * (np.log(2 * np.pi) + v)
    log_z = np.log(np.sum(np.exp(log_terms)) * (v[1] - v[0]))
    np.testing.assert_allclose(target.log_partition(target.params), log_z, rtol=1e-5)
    samples = np.asarray(target.sample(jax.random.key(1), target.params, NUM_SAMPLES), np.float64)
    standard = samples[:, 1:] / np.exp(samples[:, :1] / 2)
    assert np.all(np.abs(standard.mean(axis=0)) < 5 / np.sqrt(NUM_SAMPLES))
    assert np.all(np.abs((standard**2).mean(axis=0) - 1) < 5 * np.sqrt(2 / NUM_SAMPLES))
    assert abs(samples[:, 0].mean()) < 5 * 3 / np.sqrt(NUM_SAMPLES)


def test_mixture_is_stable_far_away():
    target = gaussian_mixture([1.0, 1.0], [[-1.0], [1.0]], [0.1, 0.1])
    far = jnp.array([1e3])
    assert np.isfinite(float(target.target(far)))
    np.testing.assert_allclose(target.score(far), [-(1e3 - 1.0) / 0.01], rtol=1e-5)


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
        (
            lambda: gaussian_mixture([1.0, -1.0], [[0.0], [1.0]], [1.0, 1.0]),
            "weights must be finite and greater",
        ),
        (
            lambda: gaussian_mixture([1.0, 1.0], [[0.0], [1.0]], [1.0, 0.0]),
            "scales must be finite and greater",
        ),
        (lambda: gaussian_mixture([1.0], [[0.0], [1.0]], [1.0, 1.0]), r"weights has shape \(1,\)"),
        (lambda: gaussian_mixture([1.0], [0.0], [1.0]), r"means has shape \(1,\)"),
        (lambda: ring(radius=-1.0), "radius must be finite and at least 0"),
        (lambda: ring(width=0.0), "width must be finite and greater than 0"),
        (lambda: ring(radius=[1.0, 2.0]), r"radius has shape \(2,\)"),  # type: ignore[arg-type]
        (lambda: funnel(dimension=1), "dimension must be at least 2"),
        (lambda: funnel(scale=-3.0), "scale must be finite and greater than 0"),
        (lambda: double_well(barrier=0.0), "barrier must be finite and greater than 0"),
        (lambda: double_well(separation=-1.0), "separation must be finite and greater than 0"),
        (lambda: double_well(tilt=np.inf), "tilt holds 1 non-finite"),
        (lambda: double_well(dimension=0), "dimension must be an integer of at least 1"),
        (lambda: skewed(shape=0.0), "shape must be finite and greater than 0"),
        (lambda: skewed(width=-1.0), "width must be finite and greater than 0"),
        (lambda: ring().target(jnp.zeros(3)), r"x has shape \(3,\): \(2,\) is needed"),
        (lambda: double_well().target(jnp.zeros(())), r"x has shape \(\)"),
        (lambda: gaussian([0.0], [[1.0]]).target(jnp.zeros(2)), r"x has shape \(2,\)"),
        (lambda: ring().sample(jax.random.key(0), ring().params, 0), "num_samples must be an integer"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
