"""A convolution that is fast where it runs: shaped for matrix products on a CPU, ``lax.conv`` elsewhere.

On a CPU, XLA's gradients of a convolution are slow inside ``lax.scan`` (measured, jax 0.10.2, one thread: the
input gradients of ``ConvNet`` and ``WideResNet`` 1.8 to 11 times slower than here, ``ConvNet``'s gradients by
its parameters 20 to 55 times), and Langevin sampling consists of the former. So:

- the value is the patches of the image (im2col) times the kernel as a matrix, one product. XLA's forward
  convolution is up to a third faster with one thread, but it stays on one thread however many there are;
- a tangent of the input is cut into the phases of the stride, shifted and multiplied by the kernel as a
  matrix. Its transpose, the input gradient, is one matrix product, sums of contiguous slices and a join;
- a tangent of the kernel multiplies the patches of the input; its transpose is one product, too;
- small images, and types other than float32, take the derivatives of the patches themselves.

The value's derivative is stated by ``jax.custom_jvp`` in plain operations, which JAX transposes and
differentiates by itself: forward mode, reverse mode and any nesting work, and a ``vmap`` over examples
becomes the leading dimension of the products. The price is memory: the tangents' patches hold kernel height x
width copies of the image, on the CPU only.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.custom_derivatives import SymbolicZero

from jaxebm import checks

__all__ = ["Convolution", "Padding", "convolve", "convolve_direct", "convolve_patches", "extract_patches"]

Padding: TypeAlias = str | Sequence[tuple[int, int]]
"""``"SAME"``, ``"VALID"`` or ((top, bottom), (left, right)) in pixels."""

_FEWEST_PIXELS = 16
"""Fewest output pixels for which the CPU's derivatives are stated apart from the value."""


def _resolve_padding(
    padding: Padding, shape: tuple[int, ...], kernel_size: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, str) and padding in ("SAME", "VALID"):
        rows, columns = jax.lax.padtype_to_pads(shape, kernel_size, strides, padding)
    elif _is_pair(padding) and all(_is_pair(pair) and all(map(_is_integer, pair)) for pair in padding):
        rows, columns = padding
    else:
        raise ValueError(
            f"padding={padding!r}: padding must be 'SAME', 'VALID' or ((top, bottom), (left, right))."
        )
    return (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_pair(name: str, value: Any) -> None:
    if not _is_pair(value):
        raise ValueError(
            f"{name}={value!r}: {name} must be two integers of at least 1, vertical and horizontal."
        )
    for entry in value:
        checks.positive_integer(name, entry)


def _check_image(x: jax.Array) -> None:
    if jnp.ndim(x) != 3 or 0 in jnp.shape(x):
        raise ValueError(
            f"x has shape {jnp.shape(x)}: one image (height, width, channels) without a batch axis is "
            f"needed; batch with jax.vmap."
        )
    checks.array("x", x)


def _check_arrays(x: jax.Array, kernel: jax.Array) -> None:
    _check_image(x)
    if jnp.ndim(kernel) != 4 or kernel.shape[2] != x.shape[2] or 0 in kernel.shape:
        raise ValueError(
            f"kernel has shape {jnp.shape(kernel)}: (height, width, {x.shape[2]}, features) is needed for "
            f"x of shape {jnp.shape(x)}."
        )
    checks.array("kernel", kernel)


def _count_windows(
    x: jax.Array, kernel_size: tuple[int, ...], strides: tuple[int, int], padding: Padding
) -> tuple[tuple[tuple[int, int], tuple[int, int]], tuple[int, int]]:
    """Returns the padding in pixels, and the height and width of the output."""
    pads = _resolve_padding(padding, x.shape[:2], kernel_size, strides)
    rows, columns = (
        (x.shape[axis] + sum(pads[axis]) - kernel_size[axis]) // strides[axis] + 1 for axis in (0, 1)
    )
    if min(rows, columns) < 1:
        raise ValueError(
            f"x has shape {x.shape}: too small for a window of {tuple(kernel_size)} with padding "
            f"{padding!r}; no output pixel is left."
        )
    return pads, (rows, columns)


def extract_patches(
    x: jax.Array, kernel_size: tuple[int, int], strides: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> jax.Array:
    """Lays out the window under each output pixel as one row (im2col).

    P[i, j, (a, b, c)] = x[i s_h + a - top, j s_w + b - left, c], zero outside the image.

    Args:
      x: One image, shape (H, W, C).
      kernel_size: Height and width of the window, in pixels.
      strides: Vertical and horizontal step between windows, in pixels.
      padding: ``"SAME"``, ``"VALID"`` or ((top, bottom), (left, right)) in pixels.

    Returns:
      The patches, shape (H', W', height * width * C).

    Raises:
      ValueError: If ``x`` is not one image, if ``padding`` is unknown, if no window fits, or if an integer is
        below 1.
      TypeError: If ``x`` holds no real numbers.

    Example:
      >>> extract_patches(jnp.ones((8, 8, 3)), (3, 3), (2, 2)).shape
      (4, 4, 27)
    """
    _check_image(x)
    _check_pair("kernel_size", kernel_size)
    _check_pair("strides", strides)
    pads, counts = _count_windows(x, kernel_size, strides, padding)
    padded = jnp.pad(x, (*pads, (0, 0)))
    # The last pixel that a window offset touches, plus one.
    spans = [stride * (count - 1) + 1 for stride, count in zip(strides, counts, strict=True)]
    slices = [
        jax.lax.slice(padded, (a, b, 0), (a + spans[0], b + spans[1], x.shape[2]), (*strides, 1))
        for a in range(kernel_size[0])
        for b in range(kernel_size[1])
    ]
    return jnp.concatenate(slices, axis=-1)


def convolve_patches(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Convolves by ``extract_patches`` and one product with the kernel as a matrix; see ``convolve``.

    Example:
      >>> convolve_patches(jnp.ones((8, 8, 3)), jnp.ones((3, 3, 3, 5)), (2, 2), "SAME").shape
      (4, 4, 5)
    """
    _check_arrays(x, kernel)
    patches = extract_patches(x, (kernel.shape[0], kernel.shape[1]), strides, padding)
    return patches @ kernel.reshape(-1, kernel.shape[3])


def convolve_direct(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Convolves by ``jax.lax.conv_general_dilated``; see ``convolve``.

    Example:
      >>> convolve_direct(jnp.ones((8, 8, 3)), jnp.ones((3, 3, 3, 5)), (2, 2), "SAME").shape
      (4, 4, 5)
    """
    _check_arrays(x, kernel)
    _check_pair("strides", strides)
    pads, _ = _count_windows(x, kernel.shape[:2], strides, padding)
    # A batch of one, which vmap over examples turns back into a plain batch.
    return jax.lax.conv_general_dilated(
        x[None], kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def _split_phases(x: jax.Array, strides: tuple[int, int]) -> list[Sequence[jax.Array]]:
    """Returns phase[p][q][i, j] = x[i s_h + p, j s_w + q], zero where the last window leaves the image.

    By reshapes and splits, because their transposes are reshapes and joins of contiguous rows; those of
    strided slices are sums of images full of holes.
    """
    zero = jnp.zeros((), x.dtype)
    (s_h, s_w), channels = strides, x.shape[2]
    x = jax.lax.pad(x, zero, ((0, -x.shape[0] % s_h, 0), (0, -x.shape[1] % s_w, 0), (0, 0, 0)))
    height, width = x.shape[0] // s_h, x.shape[1] // s_w
    rows = jax.lax.split(x.reshape(height, s_h, -1), [1] * s_h, axis=1)
    return [jax.lax.split(row.reshape(height, width, -1), [channels] * s_w, axis=2) for row in rows]


def _convolve_phases(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Convolves by one product, as ``convolve_patches``, in the form whose transpose in x is fast."""
    pads, counts = _count_windows(x, kernel.shape[:2], strides, padding)
    zero = jnp.zeros((), x.dtype)
    phases = _split_phases(x, strides)
    taps = []
    for a in range(kernel.shape[0]):
        down, p = divmod(a - pads[0][0], strides[0])
        for b in range(kernel.shape[1]):
            right, q = divmod(b - pads[1][0], strides[1])
            phase = phases[p][q]
            # tap[i, j] = phase[i + down, j + right]: negative padding cuts off.
            edges = [
                (-shift, count + shift - size, 0)
                for shift, count, size in zip((down, right), counts, phase.shape, strict=False)
            ]
            taps.append(jax.lax.pad(phase, zero, (*edges, (0, 0, 0))))
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[3])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Convolves by patches, with the derivatives whose transposes are fast."""
    return convolve_patches(x, kernel, strides, padding)


def _convolve_forward_jvp(
    strides: tuple[int, int], padding: Padding, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[jax.Array, Any]:
    x, kernel = primals
    x_tangent, kernel_tangent = tangents
    y = _convolve_forward(x, kernel, strides, padding)
    terms = []
    # What is not differentiated by comes as a symbolic zero, and costs nothing.
    if not isinstance(x_tangent, SymbolicZero):
        terms.append(_convolve_phases(x_tangent, kernel, strides, padding))
    if not isinstance(kernel_tangent, SymbolicZero):
        terms.append(convolve_patches(x, kernel_tangent, strides, padding))
    return y, sum(terms[1:], start=terms[0])


_convolve_forward.defjvp(_convolve_forward_jvp, symbolic_zeros=True)


def _convolve_on_cpu(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    _, (rows, columns) = _count_windows(x, kernel.shape[:2], strides, padding)
    # On few pixels there is nothing to gain, and in other types nothing has been measured.
    if rows * columns < _FEWEST_PIXELS or x.dtype != jnp.float32:
        return convolve_patches(x, kernel, strides, padding)
    return _convolve_forward(x, kernel, strides, padding)


def convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> jax.Array:
    """Convolves one image with a kernel, by the formulation that is fast on the platform it is lowered for.

    y[i, j, f] = sum_{a, b, c} x[i s_h + a - top, j s_w + b - left, c] kernel[a, b, c, f].

    Args:
      x: One image, shape (H, W, C).
      kernel: Shape (height, width, C, F).
      strides: Vertical and horizontal step, in pixels.
      padding: ``"SAME"``, ``"VALID"`` or ((top, bottom), (left, right)) in pixels.

    Returns:
      Shape (H', W', F); equal on every platform up to the order of summation.

    Raises:
      ValueError: If the shapes do not fit each other, ``padding`` is unknown, or a stride is below 1.
      TypeError: If an array holds no real numbers.

    Example:
      >>> jax.vmap(convolve, (0, None))(jnp.ones((16, 8, 8, 3)), jnp.ones((3, 3, 3, 5))).shape
      (16, 8, 8, 5)
    """
    _check_arrays(x, kernel)
    _check_pair("strides", strides)
    _resolve_padding(padding, x.shape[:2], kernel.shape[:2], strides)
    # As flax.linen.Conv does: integer images and mixed precisions meet at the wider floating-point type.
    x, kernel = promote_dtype(x, kernel)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _convolve_on_cpu(x, kernel, strides, padding),
        default=lambda x, kernel: convolve_direct(x, kernel, strides, padding),
    )


class Convolution(nn.Module):
    """``flax.linen.Conv`` for one image, by ``convolve``: same parameters, same initialisation, same result.

    y = convolve(x, kernel) + bias, with parameters ``kernel`` (height, width, C, F) and ``bias`` (F,).

    Attributes:
      features: F, the number of output channels.
      kernel_size: Height and width of the kernel, in pixels.
      strides: Vertical and horizontal step, in pixels.
      padding: ``"SAME"``, ``"VALID"`` or ((top, bottom), (left, right)) in pixels.
      use_bias: Whether ``bias`` is added.
      kernel_init: Initialiser of ``kernel``; LeCun's normal, as in ``flax.linen.Conv``.
      bias_init: Initialiser of ``bias``.

    Raises:
      ValueError: If ``x`` is not one image, if ``padding`` is unknown, or if an integer is below 1.

    Example:
      >>> layer = Convolution(features=5, strides=(2, 2))
      >>> variables = layer.init(jax.random.key(0), jnp.zeros((8, 8, 3)))
      >>> layer.apply(variables, jnp.zeros((8, 8, 3))).shape
      (4, 4, 5)
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the convolved image, shape (H', W', features), from one image (H, W, C)."""
        _check_image(x)
        if self.name is not None:
            checks.text("name", self.name)
        checks.positive_integer("features", self.features)
        _check_pair("kernel_size", self.kernel_size)
        _check_pair("strides", self.strides)
        checks.boolean("use_bias", self.use_bias)
        checks.function("kernel_init", self.kernel_init, "rng_key", "shape", "dtype")
        checks.function("bias_init", self.bias_init, "rng_key", "shape", "dtype")
        # In float32, as in flax.linen.Conv, under x64 too.
        shape = (*self.kernel_size, x.shape[2], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = convolve(x, kernel, self.strides, self.padding)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32).reshape(1, 1, -1)
        return y
