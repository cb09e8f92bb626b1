"""Changes of coordinates: log Z by quadrature, determinants against Jacobians, float32 far out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies.analytic import double_well, funnel
from jaxebm.energies.reparametrise import Bijection, box_transform, funnel_transform, reparametrise

pytestmark = pytest.mark.usefixtures("cheap_compilation")

LOW, HIGH = np.array([-1.0, 2.0], np.float32), np.array([0.5, 7.0], np.float32)


def _exponential(params, x):
    """In the box its partition function is prod_i (e^(-p low) - e^(-p high)) / p."""
    return jnp.sum(params * x)


# The transform in general


def test_log_partition_is_unchanged():
    """x = z + z^3 / 3 on the double well, by the trapezoidal rule in z; without log_det it is another."""
    target = double_well(tilt=1.0)

    def cubic(params, z):
        return z + z**3 / 3, jnp.log1p(z[0] ** 2)

    lines = np.linspace(-4, 4, 2001, dtype=np.float32)[:, None]
    energy, naked = (
        reparametrise(target.energy, cubic),
        reparametrise(target.energy, lambda p, z: (cubic(p, z)[0], 0.0)),
    )

    @jax.jit
    def energies(params, lines):
        values = [jax.vmap(e, (None, 0))(params, lines) for e in (energy, naked)]
        return target.log_partition(params), *values

    expected, right, wrong = (np.asarray(value, np.float64) for value in energies(target.params, lines))
    log_z, wrong_log_z = (np.log(np.exp(-values).sum() * 8 / 2000) for values in (right, wrong))
    np.testing.assert_allclose(log_z, expected, atol=1e-5)
    assert abs(wrong_log_z - expected) > 0.3


def test_it_hashes_by_its_functions():
    energy, transform = funnel().energy, funnel_transform()
    assert reparametrise(energy, transform) == reparametrise(energy, funnel_transform())
    assert hash(reparametrise(energy, transform)) == hash(reparametrise(energy, funnel_transform()))
    assert reparametrise(energy, transform) != reparametrise(energy, box_transform(0.0, 1.0))


# The box


def test_box_keeps_log_partition_and_moments():
    params = np.array([1.3, -0.4])
    energy = reparametrise(_exponential, box_transform(LOW, HIGH))
    line = np.linspace(-40, 40, 401)  # the density falls as e^-|z|
    nodes = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)

    @jax.jit
    def evaluate(params, nodes):
        positions, _ = jax.vmap(lambda z: box_transform(LOW, HIGH)(params, z))(nodes)
        return jax.vmap(energy, (None, 0))(params, nodes), positions

    energies, positions = (
        np.asarray(value, np.float64) for value in evaluate(params.astype(np.float32), nodes)
    )
    masses = np.exp(-energies) * (line[1] - line[0]) ** 2
    low, high = LOW.astype(np.float64), HIGH.astype(np.float64)
    ends = np.exp(-params * low), np.exp(-params * high)
    np.testing.assert_allclose(np.log(masses.sum()), np.sum(np.log((ends[0] - ends[1]) / params)), atol=1e-5)
    mean = 1 / params + (low * ends[0] - high * ends[1]) / (ends[0] - ends[1])
    np.testing.assert_allclose(masses @ positions / masses.sum(), mean, atol=1e-5)


@pytest.fixture(scope="module")
def box_program():
    """x, log_det, d log_det / dz, the Jacobian and the way back, with the bounds traced."""

    def program(low, high, z):
        box = box_transform(low, high)
        x, log_det = box(None, z)
        slope = jax.grad(lambda z: box(None, z)[1])(z)
        return x, log_det, slope, jax.jacfwd(lambda z: box(None, z)[0])(z), box.inverse(None, x)

    return jax.jit(jax.vmap(program, (None, None, 0)))


def test_box_determinant_is_the_jacobians_and_the_inverse_goes_back(box_program):
    z = np.random.default_rng(0).uniform(-6, 6, (64, 2)).astype(np.float32)
    x, log_det, slope, jacobian, back = (np.asarray(value, np.float64) for value in box_program(LOW, HIGH, z))
    assert np.all((x > LOW) & (x < HIGH))
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=2e-4)
    np.testing.assert_allclose(slope, -np.tanh(z.astype(np.float64) / 2), atol=1e-5)
    np.testing.assert_allclose(back, z, atol=2e-3)  # at |z| = 6, a rounding of x is 1e-4 of its distance


def test_box_is_stable_far_out(box_program):
    """log_det is log(width) - |z| - 2 log(1 + e^-|z|) to rounding, x never leaves, nothing is NaN."""
    distances = np.array([0.0, 5.0, 17.0, 80.0, 1e4], np.float32)
    z = np.concatenate([np.stack([distances, -distances], axis=1), np.stack([-distances, distances], axis=1)])
    exact = -np.abs(z.astype(np.float64)) - 2 * np.log1p(np.exp(-np.abs(z.astype(np.float64))))
    # In float32, -2 + (0.7 + 2) is above 0.7: a formula from one bound alone would leave the box.
    awkward = (np.array([-2.0, -1e6], np.float32), np.array([0.7, 1.0 / 3.0], np.float32))
    assert awkward[0][0] + (awkward[1][0] - awkward[0][0]) > awkward[1][0]
    for low, high in ((LOW, HIGH), awkward):
        x, log_det, slope, jacobian, _ = (np.asarray(value) for value in box_program(low, high, z))
        expected = np.sum(exact + np.log(high.astype(np.float64) - low.astype(np.float64)), axis=1)
        np.testing.assert_allclose(log_det, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(slope, -np.tanh(z / 2), atol=1e-6)
        assert np.all((x >= low) & (x <= high))
        assert np.all(np.isfinite(jacobian))
    assert box_program._cache_size() <= 2  # by the length of the batch; bounds are traced


def test_box_takes_any_pytree_and_keeps_dtypes():
    z = {"wide": np.ones((2, 3), np.float32), "narrow": jnp.full(4, -2.0, jnp.bfloat16)}

    @jax.jit
    def evaluate(z):
        one_box = box_transform(0.0, 2.0)
        boxes = box_transform(
            {"wide": -np.ones((2, 3)), "narrow": 0.0}, {"wide": 3.0 * np.ones((2, 3)), "narrow": 1.0}
        )
        return one_box(None, z), boxes(None, z), boxes.inverse(None, boxes(None, z)[0])

    (x, log_det), (other, other_log_det), back = evaluate(z)
    half = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(2.0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), z
    )
    np.testing.assert_allclose(x["wide"], 2 * half[0] * np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(x["narrow"], np.float32), 2 * half[1] * np.ones(4), rtol=1e-2)
    slopes = 6 * math.log(half[0] * (1 - half[0])) + 4 * math.log(half[1] * (1 - half[1]))
    assert log_det.dtype == jnp.float32
    np.testing.assert_allclose(log_det, slopes + 10 * math.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(other_log_det, slopes + 6 * math.log(4.0), rtol=1e-6)
    np.testing.assert_allclose(other["wide"], -1 + 4 * half[0] * np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(back["wide"], z["wide"], rtol=1e-5)


# The funnel


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_funnel_becomes_the_standard_normal(scale):
    """Exactly |z|^2 / 2 - log scale, so log Z is the funnel's, and normals become its exact samples."""
    target = funnel(dimension=10, scale=scale)
    straight = reparametrise(target.energy, funnel_transform())
    normal = jax.random.normal(jax.random.key(4), (256, 10))

    @jax.jit
    def evaluate(params, zs):
        x, log_det = jax.vmap(lambda z: funnel_transform()(params, z))(zs)
        back = jax.vmap(lambda x: funnel_transform().inverse(params, x))(x)
        jacobians = jax.vmap(jax.jacfwd(lambda z: funnel_transform()(params, z)[0]))(zs[:8])
        values, gradients = jax.vmap(jax.value_and_grad(straight, argnums=1), (None, 0))(params, zs)
        return x, log_det, back, jacobians, values, gradients

    x, log_det, back, jacobians, values, gradients = evaluate(target.params, normal)
    expected = 0.5 * np.sum(np.asarray(normal, np.float64) ** 2, axis=1) - math.log(scale)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradients, normal, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        log_det[:8], np.linalg.slogdet(np.asarray(jacobians, np.float64))[1], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(back, normal, rtol=1e-5, atol=1e-5)
    log_partition = 5 * math.log(2 * math.pi) + math.log(scale)  # of |z|^2 / 2 - log scale
    np.testing.assert_allclose(target.log_partition(target.params), log_partition, rtol=1e-6)
    np.testing.assert_allclose(target.sample(jax.random.key(4), target.params, 256), x, rtol=1e-4, atol=1e-5)


def _not_scalar(params, z):
    return z, z


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: reparametrise(_exponential, None), TypeError, "transform is of type NoneType"),  # type: ignore[arg-type]
        (
            lambda: reparametrise(_exponential, _not_scalar)(1.0, jnp.zeros(3)),
            ValueError,
            r"log_det of shape \(3,\): a scalar",
        ),
        (lambda: box_transform(1.0, 1.0), ValueError, "low must be below high"),
        (lambda: box_transform(np.zeros(2), np.array([1.0, -1.0])), ValueError, "low must be below high"),
        (lambda: box_transform(-np.inf, 1.0), ValueError, "low holds 1 non-finite"),
        (lambda: box_transform(0.0, np.nan), ValueError, "high holds 1 non-finite"),
        (lambda: box_transform({"a": 0.0}, 1.0), ValueError, "high has tree structure"),
        (
            lambda: box_transform(np.zeros(2), np.ones(2))(None, jnp.zeros(3)),
            ValueError,
            r"low has shape \(2,\)",
        ),
        (lambda: box_transform(0.0, np.ones(2))(None, jnp.zeros(3)), ValueError, r"high has shape \(2,\)"),
        (lambda: box_transform(0.0, 1.0)(None, jnp.zeros(3, int)), TypeError, "z has dtype int32"),
        (lambda: box_transform(0.0, 1.0).inverse(None, jnp.zeros(3, int)), TypeError, "x has dtype int32"),
        (lambda: funnel_transform()(funnel().params, jnp.zeros(())), ValueError, r"z has shape \(\)"),
        (lambda: funnel_transform().inverse(funnel().params, jnp.zeros(())), ValueError, r"x has shape \(\)"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_any_bijection_can_be_built():
    shift = Bijection(lambda params, z: (z + params, jnp.zeros(())), lambda params, x: x - params)
    energy = reparametrise(lambda params, x: 0.5 * jnp.sum(x**2), shift)
    value, back = jax.jit(lambda z: (energy(1.0, z), shift.inverse(1.0, shift(1.0, z)[0])))(jnp.ones(2))
    assert float(value) == 4.0
    np.testing.assert_array_equal(back, np.ones(2))
