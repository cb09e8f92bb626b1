"""The coupling flow: one density, seen by quadrature, by its Jacobian and by its samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import CouplingFlow

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)


def random_flow(shape, scale=0.4, **options):
    """A flow with all parameters moved from where they start, so that its density is skewed."""
    module = CouplingFlow(**{"num_layers": 4, "widths": (8,), **options})
    leaves, structure = jax.tree.flatten(jax.eval_shape(module.init, KEY, jnp.zeros(shape)))
    rng = np.random.default_rng(1)
    moved = [jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    return module, jax.tree.unflatten(structure, moved)


@pytest.fixture(scope="module")
def plane():
    return random_flow((2,))


@pytest.fixture(scope="module")
def quadrature(plane):
    """The density on a grid: points (n, 2) and the mass of each cell."""
    module, variables = plane
    edges = np.linspace(-30.0, 30.0, 1001)
    middles = (edges[1:] + edges[:-1]) / 2
    xs = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2).astype(np.float32)
    log_density = jax.jit(jax.vmap(lambda x: module.apply(variables, x, method="log_density")))(xs)
    return xs, np.exp(np.asarray(log_density, np.float64)) * (edges[1] - edges[0]) ** 2


def test_it_integrates_to_one_and_is_no_gaussian(quadrature):
    xs, mass = quadrature
    np.testing.assert_allclose(mass.sum(), 1.0, atol=2e-4)
    offset = xs - mass @ xs
    skewness = mass @ offset**3 / (mass @ offset**2) ** 1.5
    assert np.max(np.abs(skewness)) > 0.3


def test_samples_have_the_moments_of_the_density(plane, quadrature):
    module, variables = plane
    xs, mass = quadrature
    draws = np.asarray(
        jax.jit(lambda: module.apply(variables, jax.random.key(2), 20_000, method="sample"))(), np.float64
    )
    for power in (1, 2):
        wanted, spread = mass @ xs**power, np.std(draws**power, axis=0) / np.sqrt(len(draws))
        assert np.all(np.abs((draws**power).mean(axis=0) - wanted) < 5 * spread)
    products = draws[:, 0] * draws[:, 1]
    assert abs(products.mean() - mass @ (xs[:, 0] * xs[:, 1])) < 5 * products.std() / np.sqrt(len(draws))


@pytest.mark.parametrize("shape", [(2,), (5,), (3, 2, 1)])
def test_sample_and_density_agree_and_the_transform_is_inverted(shape):
    module, variables = random_flow(shape, scale=0.2)

    @jax.jit
    def both(rng_key):
        xs, log_densities = module.apply(variables, rng_key, 20, method="sample_and_log_density")
        again = jax.vmap(lambda x: module.apply(variables, x))(xs)
        z, change = jax.vmap(lambda x: module.apply(variables, x, method="transform"))(xs)
        back, opposite = jax.vmap(lambda z: module.apply(variables, z, inverse=True, method="transform"))(z)
        jacobian = jax.vmap(jax.jacobian(lambda x: module.apply(variables, x, method="transform")[0]))(xs)
        determinant = jnp.linalg.slogdet(jacobian.reshape(20, np.prod(shape), np.prod(shape)))[1]
        return xs, log_densities, again, back, change, opposite, determinant

    xs, log_densities, again, back, change, opposite, determinant = both(jax.random.key(3))
    assert xs.shape == (20, *shape)
    np.testing.assert_allclose(again, log_densities, atol=1e-3)
    np.testing.assert_allclose(back, xs, atol=1e-4)
    np.testing.assert_allclose(opposite, -change, atol=1e-4)
    np.testing.assert_allclose(determinant, change, atol=1e-3)
    only = jax.jit(partial(module.apply, method="sample"), static_argnums=2)(variables, jax.random.key(3), 20)
    np.testing.assert_allclose(only, xs, atol=1e-4)


def test_every_entry_depends_on_every_other():
    module, variables = random_flow((5,), num_layers=6)
    jacobian = jax.jit(jax.jacobian(lambda x: module.apply(variables, x, method="transform")[0]))(jnp.ones(5))
    assert np.all(np.abs(jacobian) > 0)


def test_it_starts_as_the_standard_normal():
    module = CouplingFlow(num_layers=3)
    variables = jax.jit(module.init)(KEY, jnp.zeros(3))
    x = jnp.array([0.5, -1.0, 2.0])
    wanted = -0.5 * jnp.sum(x**2) - 1.5 * jnp.log(2 * jnp.pi)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), wanted, rtol=1e-6)


def test_no_nan_far_from_the_data_and_bounded_scales():
    module, variables = random_flow((2,), scale=3.0, max_log_scale=1.0)
    x = jnp.array([[1e4, -1e4], [0.0, 1e6], [1e-30, -1e-30], [1e15, 1e15]])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(module.apply, argnums=1), (None, 0)))(variables, x)
    assert not np.any(np.isnan(value))
    assert np.all(np.isfinite(value[:3]))
    assert not np.any(np.isnan(slope[:3]))
    # Four layers and the elementwise scale: no log-determinant beyond their bounds.
    change = jax.jit(jax.vmap(lambda x: module.apply(variables, x, method="transform")[1]))(x)
    bound = 4 * 1.0 + np.abs(np.sum(variables["params"]["log_scale"]))
    assert np.all(np.abs(change) <= bound + 1e-4)


def test_dtypes():
    module = CouplingFlow(num_layers=2, widths=(4,))
    narrow = jnp.zeros(2, jnp.bfloat16)
    assert jax.eval_shape(module.init_with_output, KEY, narrow)[0].dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jnp.zeros(2, jnp.float64)
        value, variables = jax.eval_shape(module.init_with_output, KEY, wide)
        sample = partial(module.apply, num_samples=3, method="sample")
        assert value.dtype == jnp.float64
        assert jax.eval_shape(sample, variables, KEY).dtype == jnp.float64


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({}, jnp.zeros(1), r"x has shape \(1,\): a coupling needs at least two"),
        ({"num_layers": 0}, jnp.zeros(2), "num_layers=0"),
        ({"widths": (0,)}, jnp.zeros(2), "widths=0"),
        ({"activation": "sine"}, jnp.zeros(2), "activation='sine'"),
        ({"max_log_scale": 0.0}, jnp.zeros(2), "max_log_scale=0.0"),
    ],
)
def test_options_and_shapes_that_no_flow_has_are_named(options, x, message):
    with pytest.raises(ValueError, match=message):
        CouplingFlow(**options).init(KEY, x)


def test_other_shapes_than_at_initialisation_are_refused(plane):
    module, variables = plane
    with pytest.raises(ValueError, match=r"x has shape \(4, 2\) where the flow was initialised for \(2,\)"):
        module.apply(variables, jnp.zeros((4, 2)))
    with pytest.raises(TypeError, match="dtype int32"):
        module.apply(variables, jnp.zeros(2, int))
    with pytest.raises(ValueError, match="num_samples=0"):
        module.apply(variables, KEY, 0, method="sample")
    with pytest.raises(ValueError, match="variables are missing"):
        module.apply({}, KEY, 3, method="sample")
