"""Augmentation of an image: exact against NumPy and SciPy, every choice as likely as it should be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.ndimage import shift as scipy_shift
from scipy.stats import chi2, kstest

from jaxebm.data import (
    gaussian_blur,
    random_blur,
    random_colour,
    random_crop,
    random_flip,
    random_translation,
    translate,
)

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


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# --- crop and flip ---


@pytest.mark.parametrize(("shape", "padding"), [((5, 7, 3), 2), ((5, 5, 1), 3), ((3, 6, 2), 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_every_window_of_the_reflected_image_is_equally_likely(shape, padding, dtype):
    image = np.random.default_rng(1).permutation(np.arange(np.prod(shape))).reshape(shape).astype(dtype)
    side, num_draws = 2 * padding + 1, 4000
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    windows = {
        padded[top : top + shape[0], left : left + shape[1]].tobytes(): top * side + left
        for top in range(side)
        for left in range(side)
    }
    assert len(windows) == side**2
    cropped = np.asarray(jax.vmap(lambda key: random_crop(key, jnp.asarray(image), padding))(keys(num_draws)))
    assert cropped.dtype == dtype
    counts = np.bincount(
        [windows[one.tobytes()] for one in cropped], minlength=side**2
    )  # KeyError: no window
    if padding:
        statistic = np.sum((counts - num_draws / side**2) ** 2) / (num_draws / side**2)
        assert chi2.sf(statistic, side**2 - 1) > 1e-6


def test_a_flip_is_left_to_right_and_half_of_them(image):
    flipped = np.asarray(jax.vmap(random_flip, (0, None))(keys(4000), jnp.asarray(image)))
    mirrored = np.all(flipped == image[:, ::-1], axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], np.broadcast_to(image, flipped[~mirrored].shape))
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(flipped))


# --- colour ---


def test_colour_is_a_uniform_shift_and_a_uniform_stretch_about_the_mean():
    strength = 0.25
    image = np.random.default_rng(2).uniform(-0.4, 0.4, size=(4, 5, 3)).astype(np.float32)  # clips nowhere
    draws = jax.vmap(random_colour, (0, None, None))(keys(3000), jnp.asarray(image), strength)
    draws = np.asarray(draws, np.float64).reshape(3000, -1)
    mean = image.mean()
    design = np.stack([image.ravel() - mean, np.ones(image.size)], axis=1)
    (contrast, brightness), *_ = np.linalg.lstsq(design, (draws - mean).T)
    np.testing.assert_allclose(
        np.outer(contrast, design[:, 0]) + brightness[:, None] + mean, draws, atol=1e-5
    )
    for factor in (contrast - 1, brightness):
        assert kstest(factor, "uniform", (-strength, 2 * strength)).pvalue > 1e-6
    assert abs(np.corrcoef(contrast, brightness)[0, 1]) < 5 / np.sqrt(3000)


def test_colour_stays_in_range_and_no_strength_is_no_change(image):
    image = jnp.asarray(np.tanh(image))
    jittered = jax.vmap(random_colour, (0, None, None))(keys(50), image, 1.0)
    assert -1 == float(jittered.min()) < float(jittered.max()) == 1
    np.testing.assert_allclose(random_colour(jax.random.key(0), image, 0.0), image, atol=1e-6)


# --- blur ---

blur = jax.jit(gaussian_blur)


@pytest.mark.parametrize("sigma", [0.4, 0.8, 1.3])
def test_away_from_the_edges_a_blur_is_scipys(sigma):
    # SciPy reflects at edges; seven sigmas from them nothing of that is left in float32.
    image = np.random.default_rng(3).normal(size=(31, 29, 2)).astype(np.float32)
    expected = gaussian_filter1d(gaussian_filter1d(image, sigma, axis=0, radius=13), sigma, axis=1, radius=13)
    edge = int(np.ceil(7 * sigma))
    middle = np.s_[edge:-edge, edge:-edge]
    np.testing.assert_allclose(blur(jnp.asarray(image), sigma)[middle], expected[middle], atol=2e-6)


def test_at_an_edge_what_lies_beyond_is_left_out():
    weights = np.exp(-(np.arange(4.0) ** 2) / (2 * 1.5**2))
    column = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
    blurred = blur(jnp.asarray(column)[:, None, None], 1.5)
    np.testing.assert_allclose(blurred[0, 0, 0], weights @ column / weights.sum(), rtol=1e-5)


def test_a_blur_keeps_constants_and_the_range_and_none_is_none(image):
    np.testing.assert_allclose(blur(jnp.full((6, 5, 2), 0.7), 2.0), 0.7, rtol=1e-6)
    blurred = blur(jnp.asarray(image), 1.0)
    assert image.min() < float(blurred.min()) < float(blurred.max()) < image.max()
    np.testing.assert_array_equal(blur(jnp.asarray(image), 0.0), image)
    slope = jax.jit(jax.grad(lambda sigma: jnp.sum(blur(jnp.asarray(image), sigma) ** 2)))
    assert float(slope(0.0)) == 0.0  # and not NaN


def test_the_width_of_a_random_blur_is_uniform():
    # The middle of a blurred point has the squared weight of the middle, so its height tells sigma.
    point = jnp.zeros((15, 15, 1)).at[7, 7, 0].set(1.0)
    found = np.asarray(jax.vmap(random_blur, (0, None, None))(keys(2000), point, 2.0)[:, 7, 7, 0], np.float64)
    grid = np.linspace(0.02, 2.0, 4000)
    heights = np.exp(-((np.arange(15)[:, None] - 7.0) ** 2) / (2 * grid**2)).sum(axis=0) ** -2
    sigma = np.interp(-found, -heights, grid)
    seen = sigma > 0.4  # below, a blur moves nothing that float32 could tell
    assert abs(seen.mean() - 0.8) < 5 * np.sqrt(0.8 * 0.2 / 2000)
    assert kstest(sigma[seen], "uniform", (0.4, 1.6)).pvalue > 1e-6


# --- all of them ---


@pytest.mark.parametrize(
    "augment",
    [
        random_crop,
        random_flip,
        lambda key, x: random_colour(key, x, 0.3),
        lambda key, x: random_blur(key, x, 1.0),
    ],
    ids=["crop", "flip", "colour", "blur"],
)
def test_batches_are_images_one_by_one(augment):
    images = jax.random.uniform(jax.random.key(4), (3, 8, 6, 2), minval=-1.0)
    batch = jax.jit(jax.vmap(augment))(keys(3), images)
    for key, one, expected in zip(keys(3), images, batch, strict=True):
        np.testing.assert_allclose(augment(key, one), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda key: random_crop(key, jnp.ones((8, 8)), 1), ValueError, r"image has shape \(8, 8\)"),
        (lambda key: random_crop(key, jnp.ones((8, 4, 1)), 4), ValueError, r"padding=4.*from 0 to 3"),
        (lambda key: random_crop(key, jnp.ones((8, 4, 1)), -1), ValueError, "padding=-1"),
        (lambda key: random_crop(key, jnp.ones((8, 4, 1)), 1.0), ValueError, r"padding=1\.0"),
        (lambda key: random_flip(key, jnp.ones((1, 8, 8, 1))), ValueError, "image"),
        (lambda key: random_colour(key, jnp.ones((8, 8, 1)), 1.5), ValueError, r"strength=1\.5"),
        (lambda key: random_colour(key, jnp.ones((8, 8, 1), jnp.uint8), 0.5), TypeError, "image.*uint8"),
        (lambda key: random_blur(key, jnp.ones((8, 8, 1)), -1.0), ValueError, "max_sigma"),
        (lambda key: gaussian_blur(jnp.ones((8, 8, 1)), -1.0), ValueError, "sigma"),
        (lambda key: gaussian_blur(jnp.ones((8, 8, 1), jnp.uint8), 1.0), TypeError, "image.*uint8"),
    ],
)
def test_what_cannot_be_augmented_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(jax.random.key(0))
