"""Composed energies against Gaussian closed forms and quadrature in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.analytic import double_well, gaussian, gaussian_mixture, skewed
from jaxebm.energies.compose import (
    clamp,
    fill,
    gaussian_log_reference,
    mixture,
    negation,
    product,
    tempered,
    tilt,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

MEAN = np.array([1.0, -0.5, 0.3])
COVARIANCE = np.array([[1.5, 0.6, -0.3], [0.6, 0.8, 0.1], [-0.3, 0.1, 0.9]])
OTHER_MEAN = np.array([-1.0, 0.4, 0.0])
OTHER_COVARIANCE = np.array([[0.7, -0.2, 0.0], [-0.2, 1.1, 0.3], [0.0, 0.3, 1.3]])


@pytest.fixture(scope="module")
def first():
    return gaussian(MEAN, COVARIANCE)


@pytest.fixture(scope="module")
def second():
    return gaussian(OTHER_MEAN, OTHER_COVARIANCE)


def quadratic_form(energy, params, dimension=3):
    """Mean, covariance and log Z of a quadratic energy, from its value, gradient and Hessian at 0."""
    origin = np.zeros(dimension, np.float32)

    @jax.jit
    def taylor(params):
        hessian = jax.hessian(energy, argnums=1)(params, origin)
        return *jax.value_and_grad(energy, argnums=1)(params, origin), hessian

    value, gradient, precision = taylor(params)
    precision = np.asarray(precision, np.float64)
    covariance = np.linalg.inv(precision)
    mean = -covariance @ np.asarray(gradient, np.float64)
    log_z = 0.5 * (dimension * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + mean @ precision @ mean)
    return mean, covariance, log_z - float(value)


def evaluate(energy, params, nodes):
    """The energies of all nodes, compiled in one piece, as float64."""
    energies = jax.jit(jax.vmap(energy, (None, 0)))(params, np.asarray(nodes, np.float32))
    return np.asarray(energies, np.float64)


def line_integral(energy, params, low=-12.0, high=12.0, number=4001):
    """log Z, mean and variance of an energy of one coordinate, summed in float64."""
    nodes = np.linspace(low, high, number)
    energies = evaluate(energy, params, nodes[:, None])
    masses = np.exp(-energies) * (nodes[1] - nodes[0])
    mean = masses @ nodes / masses.sum()
    return np.log(masses.sum()), mean, masses @ (nodes - mean) ** 2 / masses.sum()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_tempered_gaussian_has_covariance_t_sigma(first, temperature):
    mean, covariance, log_z = quadratic_form(tempered(first.energy, temperature), first.params)
    np.testing.assert_allclose(mean, MEAN, atol=1e-5)
    np.testing.assert_allclose(covariance, temperature * COVARIANCE, rtol=1e-4, atol=1e-5)
    expected = 0.5 * (3 * np.log(2 * np.pi * temperature) + np.linalg.slogdet(COVARIANCE)[1])
    np.testing.assert_allclose(log_z, expected, atol=1e-5)


def test_tempered_is_the_power_of_a_density():
    well = double_well(barrier=2.0, tilt=1.0)
    nodes = np.linspace(-4, 4, 801)
    energies = evaluate(well.energy, well.params, nodes[:, None])
    log_z = np.log(np.sum(np.exp(-energies) ** (1 / 0.7)) * (nodes[1] - nodes[0]))
    np.testing.assert_allclose(line_integral(tempered(well.energy, 0.7), well.params)[0], log_z, atol=1e-5)


def test_product_of_gaussians_adds_precisions(first, second):
    mean, covariance, log_z = quadratic_form(
        product(first.energy, second.energy), (first.params, second.params)
    )
    precision, other = np.linalg.inv(COVARIANCE), np.linalg.inv(OTHER_COVARIANCE)
    expected = np.linalg.inv(precision + other)
    expected_mean = expected @ (precision @ MEAN + other @ OTHER_MEAN)
    np.testing.assert_allclose(covariance, expected, atol=1e-5)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-5)
    # integral exp(-E1 - E2) = Z1 Z2 integral N1 N2 = Z1 Z2 N(mean1; mean2, covariance1 + covariance2)
    offset, total = MEAN - OTHER_MEAN, COVARIANCE + OTHER_COVARIANCE
    overlap = -0.5 * (offset @ np.linalg.solve(total, offset) + np.linalg.slogdet(2 * np.pi * total)[1])
    log_z_1, log_z_2 = (float(target.log_partition(target.params)) for target in (first, second))
    np.testing.assert_allclose(log_z, log_z_1 + log_z_2 + overlap, atol=1e-5)


def test_negation_in_a_product_subtracts_precisions(second):
    """p_this / p_that^strength of two Gaussians, with `that` wide enough for the quotient to be proper."""
    wide = gaussian([2.0, 0.0, 0.0], np.diag([4.0, 5.0, 6.0]))
    energy = product(second.energy, negation(wide.energy, 0.5))
    mean, covariance, _ = quadratic_form(energy, (second.params, wide.params))
    precision, other = np.linalg.inv(OTHER_COVARIANCE), -0.5 * np.diag([1 / 4, 1 / 5, 1 / 6])
    expected = np.linalg.inv(precision + other)
    np.testing.assert_allclose(covariance, expected, atol=1e-5)
    expected_mean = expected @ (precision @ OTHER_MEAN + other @ [2.0, 0.0, 0.0])
    np.testing.assert_allclose(mean, expected_mean, atol=1e-5)
    assert mean[0] < OTHER_MEAN[0]  # pushed away from what is negated, which lies to the right


@pytest.fixture(scope="module")
def components():
    """A Gaussian and a tilted double well, with the log Z and the mean of each."""
    left, right = gaussian([-3.0], [[0.25]]), double_well(barrier=2.0, tilt=1.0)

    @jax.jit
    def exact(all_params):
        pairs = list(zip((left, right), all_params, strict=True))
        return (
            jnp.stack([target.log_partition(params) for target, params in pairs]),
            jnp.stack([target.moments(params)[0][0] for target, params in pairs]),
        )

    log_z, means = exact((left.params, right.params))
    return left, right, np.asarray(log_z, np.float64), np.asarray(means, np.float64)


@pytest.mark.parametrize("log_weights", [None, np.array([0.3, -1.2]), np.array([0.0, -np.inf])])
def test_mixture_log_partition_and_shares(log_weights, components):
    """log Z = logsumexp(log w_i + log Z_i), and the shares of the samples are w_i Z_i, not w_i."""
    left, right, log_terms, means = components
    energy = mixture(left.energy, right.energy, log_weights=log_weights)
    log_z, mean, _ = line_integral(energy, (left.params, right.params))
    log_terms = log_terms + (0 if log_weights is None else log_weights)
    np.testing.assert_allclose(log_z, np.log(np.sum(np.exp(log_terms))), atol=1e-5)
    shares = np.exp(log_terms) / np.exp(log_terms).sum()
    np.testing.assert_allclose(mean, shares @ means, atol=1e-4)


def test_mixture_of_gaussians_is_the_analytic_one():
    whole = gaussian_mixture([0.3, 0.7], [[-1.0], [1.5]], [0.5, 0.8])
    parts = [gaussian([-1.0], [[0.25]]), gaussian([1.5], [[0.64]])]
    log_z = np.array([float(part.log_partition(part.params)) for part in parts])
    log_weights = jnp.asarray(np.log([0.3, 0.7]) - log_z)
    energy = mixture(*(part.energy for part in parts), log_weights=log_weights)
    x = np.linspace(-4, 4, 50)[:, None]
    composed = evaluate(energy, tuple(part.params for part in parts), x)
    np.testing.assert_allclose(composed, evaluate(whole.energy, whole.params, x), atol=1e-5)


def test_clamped_gaussian_is_the_conditional_gaussian(first):
    """Schur complement for the free coordinates; standard normals around the observed values for the rest."""
    mask, values = np.array([True, False, False]), np.array([2.0, np.nan, np.nan], np.float32)
    mean, covariance, log_z = quadratic_form(clamp(first.energy, mask, values), first.params)
    gain = COVARIANCE[1:, :1] / COVARIANCE[0, 0]
    conditional_mean = MEAN[1:] + gain[:, 0] * (2.0 - MEAN[0])
    conditional = COVARIANCE[1:, 1:] - gain @ COVARIANCE[:1, 1:]
    np.testing.assert_allclose(mean, [2.0, *conditional_mean], atol=1e-5)
    np.testing.assert_allclose(covariance[1:, 1:], conditional, atol=1e-5)
    np.testing.assert_allclose(covariance[0], [1.0, 0.0, 0.0], atol=1e-6)
    # integral exp(-E(2, rest)) d rest = Z N(2; mean_0, variance_0); then one clamped coordinate.
    marginal = -0.5 * ((2.0 - MEAN[0]) ** 2 / COVARIANCE[0, 0] + np.log(2 * np.pi * COVARIANCE[0, 0]))
    expected = float(first.log_partition(first.params)) + marginal + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_z, expected, atol=2e-5)


def test_clamped_log_partition_on_a_skewed_density():
    """log Z = log of the integral over the free coordinate + 1/2 log(2 pi), by quadrature in the plane."""
    target = skewed()
    mask, values = jnp.array([False, True]), jnp.array([0.0, 1.2])
    line = np.linspace(-10, 4, 281), np.linspace(1.2 - 7, 1.2 + 7, 141)
    nodes = np.stack(np.meshgrid(*line, indexing="ij"), axis=-1).reshape(-1, 2)
    energy = clamp(target.energy, mask, values)
    energies = evaluate(energy, target.params, nodes)
    cell = (line[0][1] - line[0][0]) * (line[1][1] - line[1][0])
    log_z = np.log(np.sum(np.exp(-energies)) * cell)
    log_z_free = line_integral(
        lambda params, x: target.energy(params, jnp.stack([x[0], jnp.asarray(1.2)])), target.params, -10, 4
    )[0]
    np.testing.assert_allclose(log_z, log_z_free + 0.5 * np.log(2 * np.pi), atol=1e-5)


def test_clamp_never_reads_unobserved_values(first):
    mask, values = jnp.array([True, False, False]), jnp.array([2.0, jnp.nan, jnp.inf])
    energy = clamp(first.energy, mask, values)
    x = jnp.array([0.5, 0.1, -0.2])
    value, gradient = jax.jit(jax.value_and_grad(energy, argnums=1))(first.params, x)
    expected = float(first.target(jnp.array([2.0, 0.1, -0.2]))) + 0.5 * 1.5**2
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    chex.assert_tree_all_finite(gradient)
    np.testing.assert_allclose(gradient[0], -1.5, rtol=1e-6)


def test_clamp_and_fill_on_pytrees():
    def energy(params, x):
        return params * (jnp.sum(x["image"] ** 2) + jnp.sum(jnp.sin(x["label"])))

    x = {"image": np.ones((2, 2), np.float32), "label": np.zeros(3, np.float32)}
    mask = {"image": np.eye(2, dtype=bool), "label": np.array([False, True, False])}
    values = {"image": np.full((2, 2), 3.0, np.float32), "label": np.full(3, 0.5, np.float32)}
    filled, filled_energy, clamped_energy = jax.jit(
        lambda x: (
            fill(x, mask, values),
            energy(2.0, fill(x, mask, values)),
            clamp(energy, mask, values)(2.0, x),
        )
    )(x)
    expected = {"image": jnp.array([[3.0, 1.0], [1.0, 3.0]]), "label": jnp.array([0.0, 0.5, 0.0])}
    chex.assert_trees_all_equal(filled, expected)
    tether = 0.5 * (2 * 2.0**2 + 0.5**2)
    np.testing.assert_allclose(clamped_energy, filled_energy + tether, rtol=1e-6)


def test_tilted_gaussian_is_another_gaussian(first):
    """E_q = E + |x - m|^2 / 2 s^2 + const: precisions add; the tilt of E = 0 is the reference, with Z = 1."""
    reference = gaussian_log_reference(jnp.asarray(OTHER_MEAN, jnp.float32), 1.5)
    mean, covariance, _ = quadratic_form(tilt(first.energy, reference), first.params)
    precision = np.linalg.inv(COVARIANCE)
    expected = np.linalg.inv(precision + np.eye(3) / 1.5**2)
    np.testing.assert_allclose(covariance, expected, atol=1e-5)
    np.testing.assert_allclose(mean, expected @ (precision @ MEAN + OTHER_MEAN / 1.5**2), atol=1e-5)
    flat = tilt(lambda params, x: jnp.zeros(()), reference)
    mean, covariance, log_z = quadratic_form(flat, None)
    np.testing.assert_allclose(mean, OTHER_MEAN, atol=1e-5)
    np.testing.assert_allclose(covariance, 1.5**2 * np.eye(3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_z, 0.0, atol=1e-5)


def test_tilt_partition_is_the_mean_of_exp_minus_e():
    """Z = E_{x~q} exp(-E(x)), on an energy that alone is not integrable."""

    def slope(params, x):
        return jnp.sum(params * jnp.tanh(x))

    params = jnp.array([1.5])
    log_z, _, _ = line_integral(tilt(slope, gaussian_log_reference(0.5, 0.8)), params)
    nodes = np.linspace(-8, 8, 2001)
    density = np.exp(-0.5 * ((nodes - 0.5) / 0.8) ** 2) / (0.8 * np.sqrt(2 * np.pi))
    expected = np.log(np.sum(density * np.exp(-1.5 * np.tanh(nodes))) * (nodes[1] - nodes[0]))
    np.testing.assert_allclose(log_z, expected, atol=1e-5)


def test_reference_with_a_scale_for_each_coordinate():
    mean, scale = np.array([0.3, -0.2, 1.0], np.float32), np.array([0.5, 1.0, 2.0], np.float32)
    x = np.array([0.1, 0.4, -1.0], np.float32)
    expected = np.sum(-0.5 * ((x - mean) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi)))
    np.testing.assert_allclose(gaussian_log_reference(mean, scale)(x), expected, rtol=1e-6)


def composed(first, second, temperature, strength, log_weights, mask, values, scale):
    """Every numeric argument of the module in one energy."""
    energy = mixture(
        clamp(first.energy, mask, values), tempered(second.energy, temperature), log_weights=log_weights
    )
    energy = product(energy, negation(second.energy, strength))
    return tilt(energy, gaussian_log_reference(values, scale)), (
        (first.params, second.params),
        second.params,
    )


def composed_gradient(x, temperature, strength, log_weights, mask, values, scale):
    """dE/dx of `composed` in NumPy: the shares of the mixture weigh the gradients of its parts."""
    offset, other_offset = np.where(mask, values, x) - MEAN, x - OTHER_MEAN
    gradient = np.linalg.solve(COVARIANCE, offset)
    other_gradient = np.linalg.solve(OTHER_COVARIANCE, other_offset)
    tether = np.where(mask, x - values, 0.0)
    energies = [
        0.5 * offset @ gradient + 0.5 * tether @ tether,
        0.5 * other_offset @ other_gradient / temperature,
    ]
    weights = np.exp(log_weights - energies)
    share, other_share = weights / weights.sum()
    return (
        share * np.where(mask, tether, gradient)
        + (other_share / temperature - strength) * other_gradient
        + (x - values) / scale**2
    )


def test_no_number_recompiles(first, second):
    """Every number is traced: three settings, one trace, and the closed form each time."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def gradient(x, temperature, strength, log_weights, mask, values, scale):
        energy, params = composed(first, second, temperature, strength, log_weights, mask, values, scale)
        return jax.grad(energy, argnums=1)(params, x)

    x = np.array([0.1, -0.4, 0.8], np.float32)
    for setting in range(3):
        numbers = (
            0.5 + setting,
            0.1 * setting,
            np.array([0.0, setting], np.float32),
            np.arange(3) == setting,
            np.arange(3, dtype=np.float32) + setting,
            1.0 + setting,
        )
        np.testing.assert_allclose(
            gradient(x, *numbers), composed_gradient(x, *numbers), rtol=1e-5, atol=1e-5
        )


def test_gradients(assert_differentiable):
    with jax.enable_x64(True):
        one, two = gaussian(MEAN, COVARIANCE), gaussian(OTHER_MEAN, OTHER_COVARIANCE)
        mask = jnp.array([False, True, False])
        energy, params = composed(one, two, 0.7, 0.2, jnp.array([0.3, -0.3]), mask, jnp.ones(3), 1.3)
        assert_differentiable(energy, params, np.array([0.3, -0.7, 1.1]))


def test_compositions_of_functions_are_hashable_and_equal(first, second):
    reference = gaussian_log_reference(0.0, 1.0)
    for make in (
        lambda: product(first.energy, second.energy),
        lambda: mixture(first.energy, second.energy),
        lambda: tilt(first.energy, reference),
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
    assert product(first.energy, second.energy) != mixture(first.energy, second.energy)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda energy: tempered(energy, 0.0), ValueError, "temperature must be finite and greater than 0"),
        (lambda energy: tempered(energy, -1.0), ValueError, "temperature must be"),
        (lambda energy: negation(energy, -0.1), ValueError, "strength must be finite and at least 0"),
        (lambda energy: product(), ValueError, "at least one energy"),
        (lambda energy: mixture(), ValueError, "at least one energy"),
        (
            lambda energy: product(energy, 3.0),
            TypeError,
            r"energies\[1\] is of type float.*must be a function",
        ),  # type: ignore[arg-type]
        (lambda energy: product(energy)((1, 2), 0.0), ValueError, "params is 2 entries: a tuple of 1"),
        (lambda energy: product(energy)({"a": 1}, 0.0), ValueError, "params is a dict"),
        (
            lambda energy: mixture(energy, log_weights=np.zeros(2)),
            ValueError,
            r"log_weights has shape \(2,\)",
        ),
        (lambda energy: mixture(energy, log_weights=np.array([np.nan])), ValueError, "below \\+infinity"),
        (lambda energy: clamp(energy, np.ones(2), np.ones(2)), TypeError, "mask has dtype float"),
        (lambda energy: clamp(energy, np.ones(2, bool), np.ones(2, int)), TypeError, "values has dtype int"),
        (lambda energy: clamp(energy, np.ones(2, bool), np.ones(3)), ValueError, r"values has shape \(3,\)"),
        (lambda energy: clamp(energy, np.ones(2, bool), {"a": np.ones(2)}), ValueError, "tree structure"),
        (
            lambda energy: clamp(energy, np.ones(2, bool), np.ones(2))(None, jnp.ones(3)),
            ValueError,
            r"x has shape \(3,\)",
        ),
        (lambda energy: fill(jnp.ones((2, 1)), np.ones(2, bool), np.ones(2)), ValueError, "x has shape"),
        (lambda energy: tilt(energy, 0.0), TypeError, "log_reference is of type float.*must be a function"),  # type: ignore[arg-type]
        (lambda energy: gaussian_log_reference(0.0, 0.0), ValueError, "scale must be finite and greater"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make(lambda params, x: jnp.sum(x))
