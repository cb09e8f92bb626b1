"""The convolution equals lax.conv in value and in every derivative, however the platform forms it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from jaxebm.cpu.convolution import (
    Convolution,
    convolve,
    convolve_direct,
    extract_patches,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# (height, width, channels), (kernel height, kernel width), strides, padding
SHAPES = [
    ((8, 8, 1), (3, 3), (1, 1), "SAME"),
    ((8, 8, 1), (4, 4), (2, 2), "SAME"),
    ((7, 5, 3), (3, 2), (2, 3), "SAME"),
    ((9, 8, 2), (3, 3), (2, 2), "VALID"),
    ((6, 6, 4), (1, 1), (2, 2), "SAME"),
    ((5, 6, 2), (3, 3), (1, 1), ((0, 2), (1, 0))),
    ((4, 4, 3), (5, 3), (2, 1), "SAME"),
    # From here on with 16 output pixels or more, and whatever a phase of the stride can run into.
    ((15, 11, 3), (3, 2), (2, 3), "SAME"),
    ((11, 10, 2), (3, 3), (2, 2), "VALID"),
    ((13, 12, 2), (2, 1), (3, 3), "SAME"),
    ((12, 14, 2), (2, 2), (3, 3), "VALID"),
    ((9, 10, 2), (3, 3), (2, 2), ((0, 2), (1, 0))),
    ((9, 7, 2), (3, 5), (2, 1), ((5, 3), (2, 6))),
]


def _operands(shape, kernel_size, batch=3, features=4):
    keys = jax.random.split(jax.random.key(0), 2)
    xs = jax.random.normal(keys[0], (batch, *shape))
    return xs, jax.random.normal(keys[1], (*kernel_size, shape[-1], features))


# The tests compile much and compute little: unoptimised code compiles four times sooner.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(_jit, static_argnums=(0, 3, 4))
def _value_and_gradients(function, xs, kernel, strides, padding):
    def loss(xs, kernel):
        ys = jax.vmap(lambda x: function(x, kernel, strides, padding))(xs)
        return jnp.sum(jnp.sin(ys)), ys

    (_, ys), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(xs, kernel)
    return ys, gradients


@pytest.mark.parametrize(("shape", "kernel_size", "strides", "padding"), SHAPES)
def test_value_and_both_gradients_equal_lax_conv(shape, kernel_size, strides, padding):
    xs, kernel = _operands(shape, kernel_size)
    expected = _value_and_gradients(convolve_direct, xs, kernel, strides, padding)
    actual = _value_and_gradients(convolve, xs, kernel, strides, padding)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_equals_the_sum_of_the_definition():
    xs, kernel = _operands((5, 4, 2), (3, 2), batch=1)
    x, k = np.asarray(xs[0], np.float64), np.asarray(kernel, np.float64)
    padded = np.pad(x, ((1, 0), (0, 2), (0, 0)))
    expected = np.zeros((2, 3, 4))
    for i, j, f in np.ndindex(expected.shape):
        expected[i, j, f] = np.sum(padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 2] * k[..., f])
    actual = _jit(lambda x, kernel: convolve(x, kernel, (2, 2), ((1, 0), (0, 2))))(xs[0], kernel)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_patches_are_the_windows():
    x = jnp.arange(16.0).reshape(4, 4, 1)
    patches = extract_patches(x, (2, 2), (2, 2), "VALID")
    np.testing.assert_array_equal(patches[1, 0], [8, 9, 12, 13])


def test_chain_of_gradients_in_scan_under_jit_and_vmap():
    xs, kernel = _operands((8, 8, 3), (3, 3))

    def chain(function, x):
        energy = lambda x: jnp.sum(jax.nn.softplus(function(x, kernel, (2, 2), "SAME")))  # noqa: E731
        return jax.lax.scan(lambda x, _: (x - 0.1 * jax.grad(energy)(x), None), x, length=5)[0]

    actual = _jit(jax.vmap(functools.partial(chain, convolve)))(xs)
    expected = _jit(jax.vmap(functools.partial(chain, convolve_direct)))(xs)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [4, 8])
def test_second_derivatives_and_forward_mode(side):
    """Score matching differentiates the input gradient again, by kernel and by x."""
    xs, kernel = _operands((side, side, 2), (3, 3), batch=1, features=2)

    def score(function, x, kernel):
        return jax.grad(lambda x: jnp.sum(jnp.sin(function(x, kernel, (2, 2), "SAME"))))(x)

    def derivatives(function):
        both = lambda x, kernel: function(x, kernel, (2, 2), "SAME")  # noqa: E731
        forward = jax.jvp(both, (xs[0], kernel), (jnp.ones_like(xs[0]), jnp.cos(kernel)))
        by_kernel = jax.grad(lambda kernel: jnp.sum(score(function, xs[0], kernel) ** 2))(kernel)
        by_x = jax.grad(lambda x: jnp.sum(score(function, x, kernel) ** 2))(xs[0])
        product = jax.jvp(lambda x: score(function, x, kernel), (xs[0],), (jnp.sin(xs[0]),))
        return forward, by_kernel, by_x, product

    actual, expected = (_jit(functools.partial(derivatives, f))() for f in (convolve, convolve_direct))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_gradients_agree_with_finite_differences():
    xs, kernel = _operands((4, 4, 2), (3, 3), batch=1, features=2)
    check_grads(lambda x: convolve(x, kernel), (xs[0],), order=1, atol=2e-2, rtol=2e-2)


def test_kernels_and_images_mapped_together_and_apart():
    """An ensemble maps over kernels; gradients an example map over outputs that share one."""
    xs, kernel = _operands((8, 8, 2), (3, 3))
    kernels = jnp.stack([kernel, -kernel, 2.0 * kernel])

    def gradients(function):
        both = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel, (2, 2), "SAME"))), (0, 1))
        return [
            jax.vmap(both, axes)(xs if axes[0] == 0 else xs[0], kernels if axes[1] == 0 else kernel)
            for axes in ((0, 0), (None, 0), (0, None))
        ]

    actual, expected = (_jit(functools.partial(gradients, f))() for f in (convolve, convolve_direct))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("argnums", [0, 1])
@pytest.mark.parametrize("side", [4, 8])
def test_vmapped_gradient_is_matrix_products_and_never_a_convolution(side, argnums):
    """One product for the value, one for the gradient, and nothing for the other argument's."""
    xs, kernel = _operands((side, side, 3), (3, 3))
    gradient = jax.grad(
        lambda xs, kernel: jnp.sum(jnp.sin(jax.vmap(lambda x: convolve(x, kernel, (2, 2)))(xs))), argnums
    )
    text = jax.jit(gradient).lower(xs, kernel).compile().as_text() or ""
    assert "batch_dims={0}" not in text
    assert " convolution(" not in text
    assert text.count(" dot(") == 2


def test_other_types_than_float32_are_products():
    xs, kernel = _operands((8, 8, 2), (3, 3), batch=1)
    narrow = [x.astype(jnp.bfloat16) for x in (xs[0], kernel)]
    text = jax.jit(convolve).lower(*narrow).compile().as_text() or ""
    assert " convolution(" not in text
    np.testing.assert_allclose(
        jax.jit(convolve)(*narrow).astype(jnp.float32), convolve(xs[0], kernel), rtol=0.1, atol=0.2
    )


@pytest.mark.parametrize("use_bias", [True, False])
def test_parameters_are_those_of_flax(use_bias):
    x = jax.random.normal(jax.random.key(1), (7, 6, 3))
    ours = Convolution(4, (3, 2), (2, 1), use_bias=use_bias)
    theirs = nn.Conv(4, (3, 2), (2, 1), use_bias=use_bias)
    variables = ours.init(jax.random.key(2), x)
    chex.assert_trees_all_equal(variables, theirs.init(jax.random.key(2), x))
    if use_bias:
        variables["params"]["bias"] = jnp.arange(4.0)
    chex.assert_trees_all_close(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_shifting_the_image_shifts_the_result():
    xs, kernel = _operands((8, 8, 2), (3, 3), batch=1)
    compiled = _jit(convolve)
    shifted = compiled(jnp.roll(xs[0], (1, 2), (0, 1)), kernel)
    expected = jnp.roll(compiled(xs[0], kernel), (1, 2), (0, 1))
    np.testing.assert_allclose(shifted[3:-1, 4:-1], expected[3:-1, 4:-1], rtol=1e-4, atol=1e-5)


def test_integer_images_are_promoted():
    x = jnp.arange(16, dtype=jnp.int32).reshape(4, 4, 1)
    kernel = jnp.ones((2, 2, 1, 1))
    np.testing.assert_array_equal(convolve(x, kernel, (2, 2), "VALID")[..., 0], [[10.0, 18.0], [42.0, 50.0]])


@pytest.mark.parametrize("side", [2, 4])
def test_no_window_is_named_however_it_is_formed(side):
    with pytest.raises(ValueError, match="too small"):
        convolve(jnp.ones((side, side, 2)), jnp.ones((5, 5, 2, 4)), padding="VALID")


def test_bad_input_is_named():
    kernel = jnp.ones((3, 3, 2, 4))
    with pytest.raises(ValueError, match=r"x has shape \(5, 8, 8, 2\).*vmap"):
        convolve(jnp.ones((5, 8, 8, 2)), kernel)
    with pytest.raises(ValueError, match="kernel has shape"):
        convolve(jnp.ones((8, 8, 3)), kernel)
    with pytest.raises(ValueError, match="padding='CIRCULAR'"):
        convolve(jnp.ones((8, 8, 2)), kernel, padding="CIRCULAR")
    with pytest.raises(ValueError, match="padding"):
        convolve(jnp.ones((8, 8, 2)), kernel, padding=((1, 1),))
    with pytest.raises(ValueError, match="too small"):
        convolve(jnp.ones((2, 2, 2)), kernel, padding="VALID")
    with pytest.raises(ValueError, match="features=0"):
        Convolution(0).init(jax.random.key(0), jnp.ones((8, 8, 2)))
    with pytest.raises(ValueError, match="strides=0"):
        Convolution(1, strides=(0, 1)).init(jax.random.key(0), jnp.ones((8, 8, 2)))
