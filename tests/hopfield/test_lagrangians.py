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
    Power(3),
    Power(7),
    Power(2, rectified=False),
    Power(4, rectified=False),
    Exponential(),
    Softmax(),
    Softplus(),
    Entmax(1.0),
    Entmax(1.3),
    Entmax(1.5),
    Entmax(2.0),
    LogCosh(),
    LogCosh(gain=3.0),
    Spherical(),
    Spherical(epsilon=0.1),
    LayerNormalisation(),
]
NOT_CONVEX = [Power(3, rectified=False), LogSumRelu(), LogSumRelu(epsilon=0.5)]
every_one = pytest.mark.parametrize("phi", CONVEX + NOT_CONVEX, ids=str)


pytestmark = pytest.mark.usefixtures("cheap_compilation")


def _points(num_points=200, size=5, scale=1.5):
    return scale * np.random.default_rng(0).standard_normal((num_points, size))


@every_one
def test_gradient_is_the_derivative_of_the_value(phi):
    with jax.enable_x64(True):
        z = jnp.asarray(_points())
        gradient = jax.jit(jax.vmap(phi.gradient))(z)
        differentiated = jax.jit(jax.vmap(jax.grad(phi.value)))(z)
        assert gradient.shape == z.shape
        np.testing.assert_allclose(gradient, differentiated, rtol=1e-9, atol=1e-12)
        # And of the numbers, so that a derivative given by hand cannot agree with itself alone.
        direction = np.random.default_rng(1).standard_normal(z.shape)
        value = jax.jit(jax.vmap(phi.value))
        quotient = (value(z + 1e-6 * direction) - value(z - 1e-6 * direction)) / 2e-6
        expected = np.sum(gradient * direction, axis=1)
        finite = np.isfinite(value(z))  # LogSumRelu without epsilon is -inf where no memory is near
        np.testing.assert_allclose(quotient[finite], expected[finite], rtol=1e-5, atol=1e-6)


@every_one
def test_convex_on_random_segments(phi):
    with jax.enable_x64(True):
        first, second = jnp.asarray(_points(4000, scale=2.0)).reshape(2, 2000, 5)
        share = np.random.default_rng(2).uniform(size=2000)

        @jax.jit
        @jax.vmap
        def gap(first, second, share):
            """The chord above the curve."""
            values = jnp.stack(
                [phi.value(first), phi.value(second), phi.value(share * first + (1 - share) * second)]
            )
            # LogSumRelu promises only that its exponential is convex.
            values = jnp.exp(values) if isinstance(phi, LogSumRelu) else values
            return share * values[0] + (1 - share) * values[1] - values[2], jnp.max(jnp.abs(values))

        gaps, sizes = gap(first, second, share)
        convex = bool(np.all(np.asarray(gaps) >= -1e-12 * (1 + np.asarray(sizes))))
    assert convex == (phi != Power(3, rectified=False))


def test_what_is_not_convex_is_said_not_to_be():
    values = [float(LogSumRelu().value(jnp.array([z]))) for z in (0.0, 1.0, 2.0)]
    assert values[1] > (values[0] + values[2]) / 2


@every_one
def test_rescaling_multiplies_gradients_by_one_positive_number(phi):
    """Also where many rows move together, so that the sign of a difference of values survives."""
    z = jnp.asarray(_points(6), jnp.float32)
    moved = phi.rescale(z)
    assert moved.shape == z.shape
    gradients, values_of = jax.jit(jax.vmap(phi.gradient)), jax.jit(jax.vmap(phi.value))
    before, after = (np.asarray(gradients(points), np.float64) for points in (z, moved))
    factor = np.sum(before * after) / np.sum(after * after)
    assert factor > 0
    np.testing.assert_allclose(before, factor * after, rtol=1e-4, atol=1e-6 * np.max(np.abs(before)))
    values, moved_values = (np.asarray(values_of(points)) for points in (z, moved))
    finite = np.isfinite(values)
    differences, moved_differences = (np.subtract.outer(v[finite], v[finite]) for v in (values, moved_values))
    np.testing.assert_array_equal(np.sign(differences), np.sign(moved_differences))


@pytest.mark.parametrize("phi", [Power(2), Power(30), Power(30, rectified=False), Exponential()], ids=str)
def test_rescaling_tames_large_numbers(phi):
    for z in (jnp.array([1e4, 9.9e3, -1e4]), jnp.zeros(3), -jnp.ones(3)):
        moved = phi.rescale(z)
        assert np.all(np.isfinite(phi.gradient(moved)))
        assert np.isfinite(phi.value(moved))
    gradient = phi.gradient(phi.rescale(jnp.array([1e4, 9.9e3, -2e4])))
    assert np.any(np.asarray(gradient) > 0)


@pytest.mark.parametrize(
    "phi", [Softmax(), Softplus(), LogCosh(), LogCosh(50.0), Entmax(1.2), Entmax(1.5), Entmax(2.0)], ids=str
)
def test_finite_at_extreme_numbers(phi):
    """Value, both gradients and the Hessian, with the limits that the values have."""

    @jax.jit
    def everything(z):
        return phi.value(z), phi.gradient(z), jax.grad(phi.value)(z), jax.jacfwd(phi.gradient)(z)

    for z in ([1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [-1e4, -9999.0, 0.0], [0.0, 0.0, 0.0]):
        value, gradient, differentiated, hessian = everything(jnp.array(z))
        assert np.isfinite(value)
        assert np.all(np.isfinite(hessian))
        np.testing.assert_allclose(gradient, differentiated, atol=1e-6)
        assert np.max(np.abs(gradient)) <= 1
    assert np.isclose(
        everything(jnp.array([1e4, -1e4, 0.0]))[0], 2e4 if isinstance(phi, LogCosh) else 1e4, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("phi", "value", "gradient"),
    [
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
    ],
    ids=str,
)
def test_values_known_by_hand(phi, value, gradient):
    z = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(phi.value(z), value, rtol=1e-6)
    np.testing.assert_allclose(phi.gradient(z), gradient, rtol=1e-5, atol=1e-7)


def test_zero_at_zero_where_said():
    for phi in (Quadratic(), Power(3), Softmax(), Entmax(1.5), Entmax(2.0), LogCosh()):
        np.testing.assert_allclose(phi.value(jnp.zeros(7)), 0.0, atol=1e-6)


def test_no_memory_near_gives_no_weight():
    z = jnp.array([-2.0, -1.0])
    np.testing.assert_array_equal(LogSumRelu().gradient(z), np.zeros(2))
    assert LogSumRelu().value(z) == -np.inf
    np.testing.assert_allclose(LogSumRelu(epsilon=0.5).value(z), np.log(0.5), rtol=1e-6)


def test_entmax_at_one_is_softmax():
    z = jnp.asarray(_points(1)[0])
    np.testing.assert_allclose(Entmax(1.0).value(z), Softmax().value(z), rtol=1e-5)
    np.testing.assert_allclose(Entmax(1.0).gradient(z), Softmax().gradient(z), rtol=1e-5)


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
    every = CONVEX + NOT_CONVEX
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
