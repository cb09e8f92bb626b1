"""Augmentation of one image inside the compiled step; batches come by ``vmap``."""

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["random_translation", "translate"]


def translate(image: Array, shift: Array) -> Array:
    """Moves an image by a fraction of a pixel or more, bilinearly; what enters at an edge repeats the edge.

    out[i, j] = image[i - shift_0, j - shift_1], linear between pixels, coordinates clamped to the image.
    It is a product with one interpolation matrix a side, A image B^T, each row of which sums to one.

    Args:
      image: ``(H, W, C)``.
      shift: ``(2,)``, pixels down and to the right.

    Returns:
      The moved image, ``(H, W, C)``, within the range of ``image``.

    Raises:
      ValueError: if ``image`` is not of rank three or ``shift`` not of shape ``(2,)``.

    Example:
      >>> image = jnp.array([[0.0, 0.0, 1.0, 0.0]])[:, :, None]
      >>> translate(image, jnp.array([0.0, 0.5]))[0, :, 0].tolist()
      [0.0, 0.0, 0.5, 0.5]
    """
    if jnp.ndim(image) != 3:
        raise ValueError(
            f"image has shape {jnp.shape(image)}: one image (H, W, C) is needed; batch with jax.vmap."
        )
    if jnp.shape(shift) != (2,):
        raise ValueError(f"shift has shape {jnp.shape(shift)}: (2,) is needed, pixels down and to the right.")

    def interpolation(size: int, offset: Array) -> Array:
        source = jnp.clip(jnp.arange(size) - offset, 0, size - 1)
        return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, None] - jnp.arange(size)[None, :]))

    rows, columns = interpolation(image.shape[0], shift[0]), interpolation(image.shape[1], shift[1])
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image)


def random_translation(rng_key: Array, image: Array, max_shift: float | Array) -> Array:
    """Moves an image by a shift uniform on [-max_shift, max_shift]^2 pixels.

    Args:
      rng_key: one key an image.
      image: ``(H, W, C)``.
      max_shift: at least 0, in pixels.

    Returns:
      The moved image, ``(H, W, C)``.

    Raises:
      ValueError: if ``max_shift`` is negative or ``image`` not of rank three.

    Example:
      >>> random_translation(jax.random.key(0), jnp.ones((8, 8, 1)), 0.5).shape
      (8, 8, 1)
    """
    checks.non_negative("max_shift", max_shift)
    return translate(image, jax.random.uniform(rng_key, (2,), minval=-max_shift, maxval=max_shift))
