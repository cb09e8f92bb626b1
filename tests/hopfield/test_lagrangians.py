"""Lagrangians: gradients, convexity, the symmetry that tames large numbers, and values known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.lagrangians import (
    Entmax,
    Exponential,
    LayerNormalisation,
    LogCosh,
    LogSumRelu,
    Power,
    Quadratic,
    Softmax,
    Softplus,
    Spherical,
)

CONVEX = [
    Quadratic(),
    Power(2),
    Power(7),
    Power(4, rectified=False),
    Exponential(),
    Softmax(),
    Softplus(),
    Entmax(1.0),
    Entmax(1.5),
    Entmax(2.0),
    LogCosh(gain=3.0),
    Spherical(epsilon=0.1),
    LayerNormalisation(),
]
NOT_CONVEX = [Power(3, rectified=False), LogSumRelu(), LogSumRelu(epsilon=0.5)]
EVERY_ONE = CONVEX + NOT_CONVEX
every_one = pytest.mark.parametrize("phi", EVERY_ONE, ids=str)


pytestmark = pytest.mark.usefixtures("cheap_compilation")


def _points(num_points=200, size=5, scale=1.5):
    return scale * np.random.default_rng(0).standard_normal((num_points, size))


def _together(function, *arrays, lagrangians=EVERY_ONE):
    """One program for all Lagrangians, in place of many small ones: what takes the time is to compile."""
    found = jax.jit(lambda *arrays: [function(phi, *arrays) for phi in lagrangians])(*arrays)
    return dict(zip(lagrangians, jax.tree.map(np.asarray, found), strict=True))


@pytest.fixture(scope="module")
def derivatives():
    """Gradient, differentiated value, values ahead, here and behind along a direction."""
    z = _points()
    direction = np.random.default_rng(1).standard_normal(z.shape)

    def differentiate(phi, z, direction):
        around = jnp.stack([z + 1e-6 * direction, z, z - 1e-6 * direction])
        values = jax.vmap(jax.vmap(phi.value))(around)
        return jax.vmap(phi.gradient)(z), jax.vmap(jax.grad(phi.value))(z), values

    with jax.enable_x64(True):
        found = _together(differentiate, z, direction)
    return z, direction, found


@every_one
def test_gradient_is_the_derivative_of_the_value(phi, derivatives):
    z, direction, found = derivatives
    gradient, differentiated, (ahead, here, behind) = found[phi]
    assert gradient.dtype == np.float64
    assert gradient.shape == z.shape
    np.testing.assert_allclose(gradient, differentiated, rtol=1e-9, atol=1e-12)
    # And of the numbers, so that a derivative given by hand cannot agree with itself alone.
    finite = np.isfinite(here)  # LogSumRelu without epsilon is -inf where no memory is near
    quotient = (ahead[finite] - behind[finite]) / 2e-6
    expected = np.sum(gradient * direction, axis=1)
    np.testing.assert_allclose(quotient, expected[finite], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def gaps():
    """How far the chord lies above the curve, and the size of the values, on random segments."""

    def gap(phi, first, second, share):
        # LogSumRelu promises only that its exponential is convex.
        transform = jnp.exp if isinstance(phi, LogSumRelu) else lambda value: value
        value = jax.vmap(lambda z: transform(phi.value(z)))
        middle = value(share[:, None] * first + (1 - share[:, None]) * second)
        ends = value(first), value(second)
        return share * ends[0] + (1 - share) * ends[1] - middle, jnp.maximum(*map(jnp.abs, ends))

    with jax.enable_x64(True):
        first, second = _points(4000, scale=2.0).reshape(2, 2000, 5)
        share = np.random.default_rng(2).uniform(size=2000)
        return _together(gap, first, second, share)


@every_one
def test_convex_on_random_segments(phi, gaps):
    gap, sizes = gaps[phi]
    assert bool(np.all(gap >= -1e-12 * (1 + sizes))) == (phi != Power(3, rectified=False))


def test_what_is_not_convex_is_said_not_to_be():
    values = [float(LogSumRelu().value(jnp.array([z]))) for z in (0.0, 1.0, 2.0)]
    assert values[1] > (values[0] + values[2]) / 2


@pytest.fixture(scope="module")
def rescaled():
    """Gradients and values of points, and of the same points rescaled together."""

    def both(phi, z):
        points = jnp.stack([z, phi.rescale(z)])
        return jax.vmap(jax.vmap(phi.gradient))(points), jax.vmap(jax.vmap(phi.value))(points)

    return _together(both, _points(6).astype(np.float32))


@every_one
def test_rescaling_multiplies_gradients_by_one_positive_number(phi, rescaled):
    """Also where many rows move together, so that the sign of a difference of values survives."""
    (before, after), (values, moved_values) = (pair.astype(np.float64) for pair in rescaled[phi])
    factor = np.sum(before * after) / np.sum(after * after)
    assert factor > 0
    np.testing.assert_allclose(before, factor * after, rtol=1e-4, atol=1e-6 * np.max(np.abs(before)))
    finite = np.isfinite(values)
    differences, moved_differences = (np.subtract.outer(v[finite], v[finite]) for v in (values, moved_values))
    np.testing.assert_array_equal(np.sign(differences), np.sign(moved_differences))


def test_rescaling_tames_large_numbers():
    z = np.array([[1e4, 9.9e3, -1e4], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]], np.float32)

    def tamed(phi, z):
        moved = jax.vmap(phi.rescale)(z)
        return jax.vmap(phi.gradient)(moved), jax.vmap(phi.value)(moved)

    lagrangians = [Power(2), Power(30), Power(30, rectified=False), Exponential()]
    for gradients, values in _together(tamed, z, lagrangians=lagrangians).values():
        assert np.all(np.isfinite(gradients))
        assert np.all(np.isfinite(values))
        assert np.any(np.asarray(gradients[0]) > 0)


def test_finite_at_extreme_numbers():
    """Value, both gradients and the Hessian, with the limits that the values have."""

    def everything(phi, points):
        def of_one(z):
            return phi.value(z), phi.gradient(z), jax.grad(phi.value)(z), jax.jacfwd(phi.gradient)(z)

        return jax.vmap(of_one)(points)

    points = [[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [-1e4, -9999.0, 0.0], [0.0, 0.0, 0.0]]
    lagrangians = [Softmax(), Softplus(), LogCosh(), LogCosh(50.0), Entmax(1.2), Entmax(2.0)]
    found = _together(everything, np.array(points, np.float32), lagrangians=lagrangians)
    for phi, (values, gradients, differentiated, hessians) in found.items():
        assert np.all(np.isfinite(values))
        assert np.all(np.isfinite(hessians))
        np.testing.assert_allclose(gradients, differentiated, atol=1e-6)
        assert np.max(np.abs(gradients)) <= 1
        assert np.isclose(values[0], 2e4 if isinstance(phi, LogCosh) else 1e4, rtol=1e-3)


BY_HAND = [
    (Quadratic(), 2.5, [-1.0, 0.0, 2.0]),
    (Power(3), 8 / 3, [0.0, 0.0, 4.0]),
    (Power(3, rectified=False), 7 / 3, [1.0, 0.0, 4.0]),
    (Exponential(), 1 + np.exp(-1) + np.exp(2), [np.exp(-1), 1.0, np.exp(2)]),
    (
        Softmax(),
        np.log((1 + np.exp(-1) + np.exp(2)) / 3),
        np.exp([-1, 0, 2]) / np.sum(np.exp([-1, 0, 2])),
    ),
    (Softplus(), np.sum(np.log1p(np.exp([-1, 0, 2]))), 1 / (1 + np.exp([1, 0, -2]))),
    # Sparsemax: p = (0, 0, 1), so p.z = 2, Omega(p) = 0, and Omega(uniform) = (1/3 - 1) / 2.
    (Entmax(2.0), 2 - 1 / 3, [0.0, 0.0, 1.0]),
    (LogSumRelu(), np.log(4), [0.0, 0.25, 0.25]),
    (LogSumRelu(epsilon=1.0), np.log(5), [0.0, 0.2, 0.2]),
    (LogCosh(2.0), np.sum(np.log(np.cosh([-2, 0, 4]))) / 2, np.tanh([-2, 0, 4])),
    (Spherical(epsilon=4.0), 3.0, [-1 / 3, 0.0, 2 / 3]),
    (LayerNormalisation(epsilon=4 / 9), np.sqrt(18), np.array([-4, -1, 5]) / np.sqrt(18)),
]


def test_values_known_by_hand():
    found = _together(
        lambda phi, z: (phi.value(z), phi.gradient(z)),
        jnp.array([-1.0, 0.0, 2.0]),
        lagrangians=[phi for phi, _, _ in BY_HAND],
    )
    for phi, value, gradient in BY_HAND:
        np.testing.assert_allclose(found[phi][0], value, rtol=1e-6, err_msg=str(phi))
        np.testing.assert_allclose(found[phi][1], gradient, rtol=1e-5, atol=1e-7, err_msg=str(phi))


def test_zero_at_zero_where_said():
    lagrangians = [Quadratic(), Power(3), Softmax(), Entmax(1.5), Entmax(2.0), LogCosh()]
    for value in _together(lambda phi, z: phi.value(z), jnp.zeros(7), lagrangians=lagrangians).values():
        np.testing.assert_allclose(value, 0.0, atol=1e-6)


def test_no_memory_near_gives_no_weight():
    z = jnp.array([-2.0, -1.0])
    np.testing.assert_array_equal(LogSumRelu().gradient(z), np.zeros(2))
    assert LogSumRelu().value(z) == -np.inf
    np.testing.assert_array_equal(jax.grad(LogSumRelu().value)(z), np.zeros(2))
    np.testing.assert_allclose(LogSumRelu(epsilon=0.5).value(z), np.log(0.5), rtol=1e-6)


def test_entmax_at_one_is_softmax(derivatives):
    _, _, found = derivatives
    for entmax, softmax in zip(found[Entmax(1.0)], found[Softmax()], strict=True):
        np.testing.assert_allclose(entmax, softmax, rtol=1e-12, atol=1e-14)


def test_equal_by_value_so_that_programs_are_shared():
    """A static argument that is equal does not compile anew."""
    traces = []

    def counted(phi, z):
        traces.append(phi)
        return phi.value(z)

    value = jax.jit(counted, static_argnums=0)
    for make in (
        lambda: Power(3),
        lambda: Entmax(1.5),
        lambda: LogCosh(2.0),
        lambda: Softmax(),
        lambda: Spherical(),
    ):
        assert make() == make()
        assert make() is not make()
        assert hash(make()) == hash(make())
        before = len(traces)
        value(make(), jnp.ones(3))
        value(make(), jnp.zeros(3))
        assert len(traces) == before + 1
    every = EVERY_ONE
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Power(1), ValueError, "degree=1"),
        (lambda: Power(2.5), ValueError, "degree=2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: Power(True), ValueError, "degree=True"),
        (lambda: Entmax(0.5), ValueError, "alpha=0.5"),
        (lambda: Entmax(float("nan")), ValueError, "alpha=nan"),
        (lambda: LogSumRelu(epsilon=-0.1), ValueError, "epsilon=-0.1"),
        (lambda: LogCosh(gain=0.0), ValueError, "gain=0.0"),
        (lambda: LogCosh(gain="much"), TypeError, "gain='much'"),  # pyright: ignore[reportArgumentType]
        (lambda: Spherical(epsilon=0.0), ValueError, "epsilon=0.0"),
        (lambda: LayerNormalisation(epsilon=-1.0), ValueError, "epsilon=-1.0"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
