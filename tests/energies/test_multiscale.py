"""Energies at several resolutions: closed forms on images whose means are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import MLP, average_pool, marginal_energy, multiscale_energy, product


def image_of(shape=(8, 12, 2)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_pixel_is_the_mean_of_its_block(factor):
    image = image_of()
    pooled = np.asarray(average_pool(jnp.asarray(image), factor))
    assert pooled.shape == (8 // factor, 12 // factor, 2)
    for row in range(pooled.shape[0]):
        for column in range(pooled.shape[1]):
            block = image[factor * row : factor * (row + 1), factor * column : factor * (column + 1)]
            np.testing.assert_allclose(pooled[row, column], block.mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_quadratics_at_three_scales_make_one_quadratic():
    # E = sum_s k_s |pool_s(x)|^2 / 2, of which the gradient is sum_s k_s upsample(pool_s(x)) / s^2.
    image = image_of()
    stiffness = (1.0, 10.0, 100.0)
    energy = multiscale_energy(lambda k, x: 0.5 * k * jnp.sum(x**2), scales=(1, 2, 4))
    value, gradient = jax.value_and_grad(energy, argnums=1)(stiffness, jnp.asarray(image))
    expected, expected_gradient = 0.0, np.zeros_like(image)
    for k, scale in zip(stiffness, (1, 2, 4), strict=True):
        pooled = image.reshape(8 // scale, scale, 12 // scale, scale, 2).mean(axis=(1, 3))
        expected += 0.5 * k * np.sum(pooled**2)
        expected_gradient += k * pooled.repeat(scale, axis=0).repeat(scale, axis=1) / scale**2
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_a_constant_image_has_the_same_energies_at_all_scales():
    energy = multiscale_energy((lambda c, x: c * jnp.mean(x), lambda c, x: c * jnp.max(x)), scales=(1, 4))
    assert float(energy((2.0, 3.0), jnp.full((4, 4, 1), 0.5))) == pytest.approx(2.5)


def test_it_is_the_product_of_models_of_the_pooled_images():
    module, image = MLP(None, widths=(4,)), jnp.asarray(image_of((4, 4, 1)))
    params = tuple(
        module.init(jax.random.key(seed), average_pool(image, scale)) for seed, scale in enumerate((1, 2))
    )
    found = multiscale_energy(module.apply, scales=(1, 2))(params, image)
    experts = [lambda p, x, s=scale: module.apply(p, average_pool(x, s)) for scale in (1, 2)]
    assert float(found) == pytest.approx(float(product(*experts)(params, image)), rel=1e-6)


def test_logits_and_labels_pass_through():
    logits = multiscale_energy(lambda p, x: p * jnp.mean(x), scales=(1, 2))
    params = (jnp.arange(3.0), jnp.ones(3))
    image = jnp.ones((2, 2, 1))
    energy = marginal_energy(logits)(params, image)
    assert float(energy) == pytest.approx(-np.log(np.exp([1.0, 2.0, 3.0]).sum()), rel=1e-6)
    joint = multiscale_energy(lambda p, x, y: p[y] * jnp.mean(x), scales=(1, 2))
    assert float(joint(params, image, 2)) == 3.0


def test_equal_arguments_make_equal_energies():
    module = MLP(None)
    assert multiscale_energy(module.apply, (1, 2)) == multiscale_energy([module.apply] * 2, [1, 2])
    assert hash(multiscale_energy(module.apply, (1, 2))) == hash(multiscale_energy(module.apply, (1, 2)))
    assert multiscale_energy(module.apply, (1, 2)) != multiscale_energy(module.apply, (1, 4))


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: average_pool(jnp.ones((8, 12, 1)), 3), ValueError, r"factor=3.*8 x 12"),
        (lambda: average_pool(jnp.ones((8, 8)), 2), ValueError, r"image has shape \(8, 8\)"),
        (lambda: average_pool(jnp.ones((8, 8, 1)), 0), ValueError, "factor=0"),
        (lambda: multiscale_energy(jnp.sum, ()), ValueError, r"scales=\(\)"),
        (lambda: multiscale_energy(jnp.sum, (1, 0.5)), ValueError, r"scales=0\.5"),
        (lambda: multiscale_energy((jnp.sum,), (1, 2)), ValueError, "energies has 1 entries"),
        (lambda: multiscale_energy((jnp.sum, 1), (1, 2)), TypeError, r"energies\[1\] must be a function"),
        (
            lambda: multiscale_energy(jnp.sum)((1.0, 2.0), jnp.ones((4, 4, 1))),
            ValueError,
            "params is 2 entries",
        ),
        (lambda: multiscale_energy(jnp.sum)({}, jnp.ones((4, 4, 1))), ValueError, "params is a dict"),
    ],
)
def test_bad_arguments_are_named(call, error, named):
    with pytest.raises(error, match=named):
        call()
