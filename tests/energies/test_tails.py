"""Energies far out, at their singular points and under x64: values and gradients that are never NaN.

A float32 square is infinite from 1.8e19 on, so that there the value of a quadratic energy is +infinity. Its
gradient is not: it is that of the formula, or points outward, so that a chain is drawn back.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import (
    ANALYTIC_TARGETS,
    MLP,
    ConvNet,
    WideResNet,
    average_pool,
    box_transform,
    clamp,
    convolve,
    funnel,
    gaussian,
    gaussian_log_reference,
    gaussian_mixture,
    mixture,
    mueller_brown,
    nearest_mode,
    negation,
    product,
    reparametrise,
    responsibilities,
    ring,
    tempered,
    tilt,
)
from jaxebm.energies.target import norm

pytestmark = pytest.mark.usefixtures("cheap_compilation")

COORDINATES = [0.0, *(sign * size for size in (1e-30, 1.0, 1e2, 1e5, 1e10, 1e20, 1e30) for sign in (-1, 1))]
FAR = np.array(list(itertools.product(COORDINATES, COORDINATES)), np.float32)


@pytest.mark.parametrize("name", ANALYTIC_TARGETS)
def test_no_finite_point_has_a_nan(name: str) -> None:
    target = ANALYTIC_TARGETS[name]()
    points = FAR[:, : target.dimension]
    if name == "skewed":  # beyond, the slopes of exp(x_0) and of the bend may both overflow, with either sign
        points = points[points[:, 0] < 80]
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(target.target)))(points)
    assert not np.isnan(values).any()
    assert not np.isneginf(values).any()
    assert not np.isnan(gradients).any()
    nan = np.full(target.dimension, np.nan, np.float32)
    assert np.isnan(target.target(nan))  # it is not hidden


def test_far_gradients_are_those_of_the_formulas() -> None:
    x = jnp.array([3e20, -4e20])
    gradient = jax.grad(ring(radius=2.0, width=0.5).target)(x)
    np.testing.assert_allclose(gradient, 4 * x, rtol=1e-6)  # (|x| - R) / w^2 x / |x|
    gradient = jax.grad(gaussian_mixture([1.0, 3.0], [[0.0, 0.0], [1.0, 1.0]], [1.0, 0.5]).target)(x)
    np.testing.assert_allclose(gradient, 2.5 * x, rtol=1e-6)  # the mean of 1 / scale^2, as documented
    assert float(mueller_brown().target(x)) == np.inf
    assert float(jax.grad(mueller_brown().target)(x) @ (x / 1e20)) > 0  # outward


def test_a_gaussian_never_has_the_energy_of_minus_infinity() -> None:
    # The two products of the far coordinates are -inf and inf; the form is positive.
    target = gaussian([0.0, 0.0], [[1.5, 0.6], [0.6, 0.8]])
    assert float(target.target(jnp.array([1e10, 1e30]))) == np.inf


def test_the_funnel_is_right_where_exp_overflows() -> None:
    target = funnel(dimension=3, scale=3.0)
    # v^2 / 18 + e^-v |x|^2 / 2 + v, in float64: e^100 |x|^2 / 2 with |x|^2 = 2e-40 is 2688.117.
    for v, other, squares in (
        (-100.0, 1e-20, 2e-40 * np.exp(100.0)),
        (-100.0, 0.0, 0.0),
        (90.0, 1e20, 2e40 * np.exp(-90.0)),
    ):
        value = float(target.target(jnp.array([v, other, other])))
        assert value == pytest.approx(v**2 / 18 + 0.5 * squares + v, rel=1e-5)


def test_the_norm_has_its_gradient_everywhere() -> None:
    points = jnp.array([[3.0, 4.0], [3e-25, 4e-25], [3e25, -4e25], [0.0, 0.0]])
    values, gradients = jax.vmap(jax.value_and_grad(norm))(points)
    np.testing.assert_allclose(values, [5.0, 5e-25, 5e25, 0.0], rtol=1e-6)
    np.testing.assert_allclose(gradients, [[0.6, 0.8], [0.6, 0.8], [0.6, -0.8], [0.0, 0.0]], rtol=1e-6)


def test_modes_are_told_where_all_densities_underflow() -> None:
    params = gaussian_mixture([1.0, 1.0, 1.0], [[-1.0], [0.0], [1.0]], [1.0, 2.0, 1.0]).params
    for x in (jnp.array([1e25]), jnp.array([-1e25])):
        assert int(nearest_mode(params, x)) == 1  # |x - mean| / scale: the widest
        np.testing.assert_array_equal(responsibilities(params, x), [0.0, 1.0, 0.0])


def test_a_mode_of_weight_zero_holds_nothing() -> None:
    target = gaussian_mixture([1.0, 1.0], [[0.0], [5.0]], [1.0, 1.0])
    params = target.params._replace(log_weights=jnp.array([0.0, -jnp.inf]))
    value, gradient = jax.value_and_grad(target.energy, argnums=1)(params, jnp.array([5.0]))
    assert float(value) == pytest.approx(12.5 + 0.5 * np.log(2 * np.pi))
    assert float(gradient[0]) == pytest.approx(5.0)
    np.testing.assert_array_equal(responsibilities(params, jnp.array([5.0])), [1.0, 0.0])
    assert float(jnp.abs(target.sample(jax.random.key(0), params, 100)).max()) < 5


# A half line: E = inf below 0.
def half(params, x):
    return jnp.where(x[0] < 0, jnp.inf, 0.5 * jnp.sum((x - params) ** 2))


LEFT, RIGHT = jnp.array([-1.0]), jnp.array([1.0])


@pytest.mark.parametrize(
    ("energy", "params", "left", "right"),
    [
        (tempered(half, 2.0), 0.0, np.inf, 0.25),
        (negation(half, 2.0), 0.0, -np.inf, -1.0),
        (negation(half, 0.0), 0.0, 0.0, 0.0),
        (product(half, half), (0.0, 3.0), np.inf, 2.5),
        (mixture(half, half), (0.0, 0.0), np.inf, 0.5 - np.log(2)),
        (mixture(half, half, log_weights=jnp.array([0.0, -jnp.inf])), (0.0, 1.0), np.inf, 0.5),
        (tilt(half, gaussian_log_reference(0.0, 1.0)), 0.0, np.inf, 1.0 + 0.5 * np.log(2 * np.pi)),
        (clamp(half, np.array([False]), np.array([np.nan])), 0.0, np.inf, 0.5),
    ],
)
def test_infinite_energies_pass_through(energy, params, left: float, right: float) -> None:
    for x, expected in ((LEFT, left), (RIGHT, right)):
        value, gradient = jax.value_and_grad(energy, argnums=1)(params, x)
        np.testing.assert_allclose(float(value), expected, rtol=1e-6, atol=1e-7)
        assert np.isfinite(gradient).all()


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one must be above -infinity"):
        mixture(half, half, log_weights=jnp.full(2, -jnp.inf))


@pytest.mark.parametrize(
    "covariance",
    [
        [[1.0, 2.0], [2.0, 1.0]],  # indefinite
        [[1.0, 1.0], [1.0, 1.0]],  # singular
        [[1.0, 1.0 - 1e-9], [1.0 - 1e-9, 1.0]],  # singular in float32
        [[1e-10, 5e-11], [0.0, 1e-10]],  # asymmetric, and small
        [[1e10, 1.0], [1.0, 0.0]],  # a variance of 0
        [[-1.0, 0.0], [0.0, 1.0]],
    ],
)
def test_what_is_no_covariance_is_refused(covariance) -> None:
    with pytest.raises(ValueError, match="covariance must be symmetric positive definite"):
        gaussian([0.0, 0.0], covariance)


def test_units_do_not_make_a_covariance_singular() -> None:
    target = gaussian([0.0, 0.0], [[1e-12, 5e-7], [5e-7, 1.0]])
    samples = target.sample(jax.random.key(0), target.params, 4000)
    assert float(jnp.corrcoef(samples.T)[0, 1]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("low", "high"), [(-3e38, 3e38), (1.0, 1.0 + 1e-12)])
def test_a_box_whose_width_float32_does_not_hold_is_refused(low: float, high: float) -> None:
    box = box_transform(low, high)
    with pytest.raises(ValueError, match="high - low must be positive and finite in float32"):
        box(None, jnp.zeros(2))


def test_a_box_is_finite_at_any_position() -> None:
    energy = reparametrise(lambda params, x: 0.0 * jnp.sum(x), box_transform(-1.0, 1.0))
    for z in (1e20, -1e20, 3e38):
        value, gradient = jax.value_and_grad(energy, argnums=1)(None, jnp.array([z]))
        assert float(value) == pytest.approx(abs(z), rel=1e-6)
        assert float(gradient[0]) == np.sign(z)


DTYPES = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("x64", [False, True])
def test_networks_keep_the_dtypes_of_positions_and_parameters(x64: bool) -> None:
    # Traced only, never compiled: the dtypes are known then.
    with jax.enable_x64(x64):
        image = jnp.zeros((8, 8, 1), jnp.float32)
        for network, dtypes in (
            (MLP(None, widths=(4,)), DTYPES),
            (ConvNet(None, channels=(4,), norm="group", spectral_norm=True), DTYPES[:1]),
            (ConvNet(None, channels=(4,), dtype=jnp.bfloat16), DTYPES[2:]),
            (WideResNet(None, depth=10, width=1), DTYPES[2:]),
        ):
            variables = jax.eval_shape(network.init, jax.random.key(0), image)
            derivative = jax.value_and_grad(network.apply, argnums=(0, 1))
            for dtype in dtypes:
                value, (by_params, by_x) = jax.eval_shape(derivative, variables, image.astype(dtype))
                assert (value.dtype, by_x.dtype) == (jnp.float32, dtype)
                assert {leaf.dtype.name for leaf in jax.tree.leaves(by_params)} == {"float32"}
        for dtype in DTYPES:
            x, kernel = image.astype(dtype), jnp.ones((3, 3, 1, 2), dtype)
            derivative = jax.value_and_grad(lambda x, kernel: jnp.sum(convolve(x, kernel)), argnums=(0, 1))
            value, slopes = jax.eval_shape(derivative, x, kernel)
            assert {value.dtype, slopes[0].dtype, slopes[1].dtype} == {jnp.dtype(dtype)}
            assert average_pool(x, 2).dtype == dtype


@pytest.mark.parametrize("name", ANALYTIC_TARGETS)
def test_targets_work_under_x64(name: str) -> None:
    with jax.enable_x64(True):
        target = ANALYTIC_TARGETS[name]()
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), target.params)
        for params in (target.params, narrow):
            draw = jax.eval_shape(lambda params: target.sample(jax.random.key(0), params, 3), params)
            assert draw.shape == (3, target.dimension)
            for dtype in DTYPES:
                x = jnp.zeros(target.dimension, dtype)
                value, slope = jax.eval_shape(jax.value_and_grad(target.energy, argnums=1), params, x)
                assert slope.dtype == dtype
                assert value.dtype in (jnp.float64, params[0].dtype)
