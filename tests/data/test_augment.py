"""Translation: exact on whole pixels, linear between them, and it keeps what it should."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import shift as scipy_shift

from jaxebm.data import random_translation, translate

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 9, 3)).astype(np.float32)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, 0.0), (0.0, -2.0), (0.3, -1.7), (-2.5, 0.25)])
def test_it_agrees_with_scipy(image, shift):
    expected = scipy_shift(image, (*shift, 0), order=1, mode="nearest")
    np.testing.assert_allclose(translate(jnp.asarray(image), jnp.array(shift)), expected, atol=2e-6)


def test_a_constant_image_stays_and_the_range_is_kept(image):
    moved = translate(jnp.full((5, 5, 1), 0.7), jnp.array([0.4, -3.3]))
    np.testing.assert_allclose(moved, 0.7, rtol=1e-6)
    moved = translate(jnp.asarray(image), jnp.array([0.4, -0.3]))
    assert image.min() - 1e-6 <= float(moved.min()) <= float(moved.max()) <= image.max() + 1e-6


def test_shifts_are_uniform_in_both_directions():
    # A ramp has slope one, so away from the edges the moved value tells the shift.
    ramp = jnp.arange(9.0)[:, None, None] + 10 * jnp.arange(9.0)[None, :, None]
    keys = jax.random.split(jax.random.key(0), 4000)
    moved = jax.vmap(random_translation, (0, None, None))(keys, ramp, 0.8)[:, 4, 4, 0] - ramp[4, 4, 0]
    # moved = -shift_0 - 10 shift_1, with both shifts uniform on [-.8, .8]: variance (1 + 100) * .8^2 / 3.
    values = np.asarray(moved, np.float64)
    variance = 101 * 0.8**2 / 3
    assert abs(values.mean()) < 5 * np.sqrt(variance / len(values))
    assert abs(values.var() / variance - 1) < 5 * np.sqrt(0.8 / len(values))  # kurtosis of a uniform is 1.8
    assert np.abs(values).max() <= 11 * 0.8 + 1e-4


def test_new_shifts_do_not_recompile(image):
    chex.clear_trace_counter()
    moved = jax.jit(chex.assert_max_traces(translate, n=1))
    for shift in ([0.1, 0.2], [1.0, -1.0]):
        moved(jnp.asarray(image), jnp.array(shift))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((jnp.ones((4, 4)), jnp.zeros(2)), "image"), ((jnp.ones((4, 4, 1)), jnp.zeros(3)), "shift")],
)
def test_bad_shapes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        translate(*arguments)


def test_a_negative_range_is_named():
    with pytest.raises(ValueError, match="max_shift"):
        random_translation(jax.random.key(0), jnp.ones((4, 4, 1)), -1.0)
