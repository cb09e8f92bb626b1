"""Augmentation of one image inside the compiled step; batches come by ``vmap``."""

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Array

__all__ = [
    "gaussian_blur",
    "random_blur",
    "random_colour",
    "random_crop",
    "random_flip",
    "random_translation",
    "translate",
]


def translate(image: Array, shift: Array) -> Array:
    """Shifts an image by a fraction of a pixel or more, bilinearly; new pixels repeat the edge.

    out[i, j] = image[i - shift_0, j - shift_1], linear between pixels, coordinates clamped to the image.
    It is the product A image B^T with one interpolation matrix per axis, whose rows sum to one.

    Args:
      image: ``(H, W, C)``.
      shift: ``(2,)``, pixels down and to the right.

    Returns:
      The shifted image, ``(H, W, C)``, within the range of ``image`` and of its dtype, if that is a
      floating-point one.

    Raises:
      ValueError: if ``image`` is not of rank three, or empty, or ``shift`` not of shape ``(2,)``.
      TypeError: if one holds no real numbers.

    Example:
      >>> image = jnp.array([[0.0, 0.0, 1.0, 0.0]])[:, :, None]
      >>> translate(image, jnp.array([0.0, 0.5]))[0, :, 0].tolist()
      [0.0, 0.0, 0.5, 0.5]
    """
    _check_image(image)
    checks.array("shift", shift, (2,), "(2,), pixels down and to the right,")

    def interpolation(size: int, offset: Array) -> Array:
        source = jnp.clip(jnp.arange(size) - offset, 0, size - 1)
        return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, None] - jnp.arange(size)[None, :]))

    rows, columns = interpolation(image.shape[0], shift[0]), interpolation(image.shape[1], shift[1])
    moved = jnp.einsum("ih,jw,hwc->ijc", rows, columns, image)
    return moved.astype(image.dtype) if jnp.issubdtype(image.dtype, jnp.floating) else moved


def random_translation(rng_key: Array, image: Array, max_shift: float | Array) -> Array:
    """Shifts an image by a vector that is uniform on [-max_shift, max_shift]^2 pixels.

    Args:
      rng_key: one key per image.
      image: ``(H, W, C)``.
      max_shift: at least 0, in pixels.

    Returns:
      The shifted image, ``(H, W, C)``.

    Raises:
      ValueError: if ``max_shift`` is negative or ``image`` not of rank three, or empty.
      TypeError: if ``image`` holds no real numbers, or ``rng_key`` is no typed key.

    Example:
      >>> random_translation(jax.random.key(0), jnp.ones((8, 8, 1)), 0.5).shape
      (8, 8, 1)
    """
    checks.rng_key("rng_key", rng_key)
    checks.non_negative_number("max_shift", max_shift)
    return translate(image, jax.random.uniform(rng_key, (2,), minval=-max_shift, maxval=max_shift))


def random_crop(rng_key: Array, image: Array, padding: int = 4) -> Array:
    """Pads an image by reflection and crops a window of the old size at a uniformly random position.

    out[i, j] = image[r(i + s_0), r(j + s_1)], both s uniform on the integers -padding..padding, where r
    reflects at the centre of the outermost pixels: r(-1) = 1, r(H) = H - 2. There is no interpolation.

    Args:
      rng_key: one key per image.
      image: ``(H, W, C)``, of any dtype.
      padding: pixels on each side, an integer of at least 0 and below H and W; static.

    Returns:
      The window, ``(H, W, C)``, with the dtype of the image.

    Raises:
      ValueError: if ``padding`` is not such an integer or ``image`` not of rank three, or empty.
      TypeError: if ``image`` holds no real numbers, or ``rng_key`` is no typed key.

    Example:
      >>> image = jnp.arange(9.0).reshape(3, 3, 1)
      >>> random_crop(jax.random.key(0), image, 1)[:, :, 0].tolist()
      [[1.0, 0.0, 1.0], [4.0, 3.0, 4.0], [7.0, 6.0, 7.0]]

    Reference:
      Zagoruyko & Komodakis 2016, Wide residual networks (arXiv:1605.07146), section 3: 4 pixels, reflected.
    """
    checks.rng_key("rng_key", rng_key)
    _check_image(image)
    height, width = image.shape[:2]
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < min(height, width):
        raise ValueError(
            f"padding={padding!r}: padding must be an integer from 0 to {min(height, width) - 1}, below both "
            f"sides of an image of shape {jnp.shape(image)}."
        )
    shift = jax.random.randint(rng_key, (2,), -padding, padding + 1)

    def source(size: int, offset: Array) -> Array:
        # Reflected indices, so that no padded image is made: |i| on the left, mirrored on the right.
        return (size - 1) - jnp.abs((size - 1) - jnp.abs(jnp.arange(size) + offset))

    rows = jnp.take(image, source(height, shift[0]), axis=0)
    return jnp.take(rows, source(width, shift[1]), axis=1)


def random_flip(rng_key: Array, image: Array) -> Array:
    """Mirrors an image left to right with probability one half.

    Args:
      rng_key: one key per image.
      image: ``(H, W, C)``, of any dtype.

    Returns:
      The image, mirrored or not, ``(H, W, C)``.

    Raises:
      ValueError: if ``image`` is not of rank three, or empty.
      TypeError: if ``image`` holds no real numbers, or ``rng_key`` is no typed key.

    Example:
      >>> random_flip(jax.random.key(1), jnp.array([[[1.0], [2.0]]]))[0, :, 0].tolist()
      [2.0, 1.0]
    """
    checks.rng_key("rng_key", rng_key)
    _check_image(image)
    return jnp.where(jax.random.bernoulli(rng_key), image[:, ::-1], image)


def random_colour(rng_key: Array, image: Array, strength: float | Array) -> Array:
    r"""Jitters brightness and contrast of an image in [-1, 1], and clips it to that range.

    .. math:: x \leftarrow \mathrm{clip}(m + (1 + s u_0)(x - m) + s u_1,\; -1,\; 1),
              \qquad u_0, u_1 \sim U(-1, 1)

    m is the mean of the image over all pixels and channels, so hue does not change.

    Args:
      rng_key: one key per image.
      image: ``(H, W, C)`` in [-1, 1], floating-point.
      strength: s in [0, 1], ``()``; 0 leaves an image in [-1, 1] as it is.

    Returns:
      The jittered image, ``(H, W, C)``, in [-1, 1].

    Raises:
      ValueError: if ``strength`` is not in [0, 1] or ``image`` not of rank three, or empty.
      TypeError: if ``image`` is not floating-point, or ``rng_key`` is no typed key.

    Example:
      >>> jittered = random_colour(jax.random.key(0), jnp.linspace(-1.0, 1.0, 12).reshape(2, 2, 3), 0.5)
      >>> jittered.shape, float(jnp.abs(jittered).max()) <= 1.0
      ((2, 2, 3), True)

    Reference:
      Du, Li, Tenenbaum & Mordatch 2021, Improved contrastive divergence training of energy based models
      (arXiv:2012.01316): colour, blur, crop and flip of the replay buffer, so that its chains mix.
    """
    checks.rng_key("rng_key", rng_key)
    checks.one_number("strength", strength)
    checks.in_range("strength", strength, 0.0, 1.0)
    _check_image(image)
    checks.floating("image", image)
    contrast, brightness = strength * jax.random.uniform(rng_key, (2,), minval=-1.0, maxval=1.0)
    mean = jnp.mean(image)
    return jnp.clip(mean + (1 + contrast) * (image - mean) + brightness, -1.0, 1.0).astype(image.dtype)


def gaussian_blur(image: Array, sigma: float | Array) -> Array:
    r"""Blurs an image by a Gaussian; pixels outside of the image are left out of the average.

    .. math:: y_{ij} = \sum_{hw} A_{ih} B_{jw} x_{hw}, \qquad
              A_{ih} = e^{-(i - h)^2 / 2 \sigma^2} \Big/ \sum_{h'} e^{-(i - h')^2 / 2 \sigma^2}

    and B is the same along the width. Rows sum to one, so constant images and the range do not change.

    Args:
      image: ``(H, W, C)``, floating-point.
      sigma: at least 0, ``()``, in pixels; may be traced. 0 does not change the image.

    Returns:
      The blurred image, ``(H, W, C)``.

    Raises:
      ValueError: if ``sigma`` is negative or ``image`` not of rank three, or empty.
      TypeError: if ``image`` is not floating-point.

    Example:
      >>> blurred = gaussian_blur(jnp.array([[0.0, 1.0, 0.0]])[:, :, None], 1.0)
      >>> [round(value, 3) for value in blurred[0, :, 0].tolist()]
      [0.348, 0.452, 0.348]
    """
    checks.non_negative_number("sigma", sigma)
    _check_image(image)
    checks.floating("image", image)
    # Far below a pixel the neighbours' weights are zero in any precision, so the bound changes no value.
    variance = jnp.maximum(jnp.square(jnp.asarray(sigma, jnp.float32)), 1e-4)

    def average(size: int) -> Array:
        distance = jnp.arange(size)[:, None] - jnp.arange(size)[None, :]
        return jax.nn.softmax(-jnp.square(distance) / (2 * variance), axis=1)

    rows, columns = average(image.shape[0]), average(image.shape[1])
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image).astype(image.dtype)


def random_blur(rng_key: Array, image: Array, max_sigma: float | Array) -> Array:
    """Blurs an image by a Gaussian whose sigma is uniform on [0, max_sigma] pixels.

    Args:
      rng_key: one key per image.
      image: ``(H, W, C)``, floating-point.
      max_sigma: at least 0, ``()``, in pixels.

    Returns:
      The blurred image, ``(H, W, C)``, within the range of ``image``.

    Raises:
      ValueError: if ``max_sigma`` is negative or ``image`` not of rank three, or empty.
      TypeError: if ``image`` is not floating-point, or ``rng_key`` is no typed key.

    Example:
      >>> random_blur(jax.random.key(0), jnp.ones((8, 8, 1)), 2.0).shape
      (8, 8, 1)
    """
    checks.rng_key("rng_key", rng_key)
    checks.non_negative_number("max_sigma", max_sigma)
    return gaussian_blur(image, max_sigma * jax.random.uniform(rng_key))


def _check_image(image: Array) -> None:
    if jnp.ndim(image) != 3 or 0 in jnp.shape(image):
        raise ValueError(
            f"image has shape {jnp.shape(image)}: one image (H, W, C) is needed; batch with jax.vmap."
        )
    checks.array("image", image)
