"""Gaussian initial distributions fitted to data: of all of it, or one for each class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.samplers.initial import ClassGaussianInitial, GaussianInitial
from jaxebm.types import Array, Position

__all__ = ["fit_class_gaussians", "fit_gaussian"]


def fit_gaussian(
    images: Any, *, regularisation: float = 1e-4, clamp: tuple[float, float] | None = None
) -> GaussianInitial:
    r"""Fits one Gaussian to data, in float64 on the host.

    .. math:: \mu = \tfrac1n \sum_i x_i, \qquad L L^T = \tfrac1n \sum_i (x_i - \mu)(x_i - \mu)^T + \lambda I

    Args:
      images: ``(n, ...)``, floating-point, any position shape with d entries; n may be below d. Or any pytree
        of such arrays, of d entries in all: one Gaussian over all of them.
      regularisation: lambda > 0, ``()``, in squared units of the data; it makes the covariance positive
        definite.
      clamp: ``(low, high)`` that every draw is clamped to, or ``None``.

    Returns:
      The initial distribution, whose draws have the dtypes of the data (float64 becomes float32 unless x64 is
      enabled); the ``(d, d)`` factor is its largest array (37 MB at 32x32x3).

    Raises:
      ValueError: if there are no images or non-finite ones, or if regularisation or clamp are out of range.
      TypeError: if the images are not floating-point.

    Example:
      >>> images = np.random.default_rng(0).normal(size=(50, 4, 4))
      >>> initial = fit_gaussian(images, clamp=(-1.0, 1.0))
      >>> initial.factor.shape, bool(jnp.max(initial(jax.random.key(0), jnp.array(0))) <= 1)
      ((16, 16), True)

    Reference:
      Yang & Ji 2021 (JEM++, arXiv:2109.09032), sec. 3.3, "informative initialization", without its classes.
    """
    images = _checked_images(images)
    checks.positive_number("regularisation", regularisation)
    low, high = _checked_clamp(clamp)
    return GaussianInitial(*_fit(images, regularisation), low, high)


def fit_class_gaussians(
    images: Any,
    labels: Any,
    num_classes: int,
    *,
    regularisation: float = 1e-4,
    clamp: tuple[float, float] | None = None,
) -> ClassGaussianInitial:
    """Fits one Gaussian to each class, as ``fit_gaussian`` does: the initial distribution of JEM++.

    Args:
      images: ``(n, ...)``, floating-point, or any pytree of such arrays.
      labels: ``(n,)``, integers 0..num_classes-1.
      num_classes: K, at least 1; each class needs at least one image.
      regularisation: as in ``fit_gaussian``.
      clamp: as in ``fit_gaussian``.

    Returns:
      The initial distribution; ``(K, d, d)`` is its largest array.

    Raises:
      ValueError: if a class has no image, if images and labels differ in length, or as ``fit_gaussian``.
      TypeError: if images are not floating-point or labels not integers.

    Example:
      >>> images = np.random.default_rng(0).normal(size=(50, 4, 4))
      >>> initial = fit_class_gaussians(images, np.arange(50) % 5, 5)
      >>> initial.means.shape, initial.factors.shape
      ((5, 4, 4), (5, 16, 16))

    Reference:
      Yang & Ji 2021 (JEM++, arXiv:2109.09032), sec. 3.3, "informative initialization".
    """
    images = _checked_images(images)
    checks.positive_number("regularisation", regularisation)
    low, high = _checked_clamp(clamp)
    checks.positive_integer("num_classes", num_classes)
    checks.integer_labels("labels", labels, num_classes)
    labels = np.asarray(labels)
    num_images = checks.batch_length("images", images)
    if labels.shape != (num_images,):
        raise ValueError(
            f"labels has shape {labels.shape}: one label for each of {num_images} images is needed."
        )
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            f"labels holds no example of classes {missing}: each of {num_classes} classes needs an image."
        )
    fits = [
        _fit(jax.tree.map(lambda leaf, label=label: leaf[labels == label], images), regularisation)
        for label in range(num_classes)
    ]
    means, factors = zip(*fits, strict=True)
    return ClassGaussianInitial(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *means), jnp.stack(factors), low, high
    )


def _checked_images(images: Any) -> Any:
    """Returns the images as NumPy arrays of the dtypes that JAX computes with, or raises."""
    checks.arrays("images", images)
    images = jax.tree.map(np.asarray, images)
    for leaf in jax.tree.leaves(images):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"images has dtype {leaf.dtype}: floating-point images, scaled like the model's inputs, are "
                f"needed."
            )
        if leaf.shape[:1] in ((), (0,)) or (leaf is images and leaf.ndim < 2):
            raise ValueError(f"images has shape {leaf.shape}: (n, ...) with at least one image is needed.")
    checks.batch_length("images", images, "(n, ...) with at least one image")
    checks.finite("images", images)
    return images


def _checked_clamp(clamp: tuple[float, float] | None) -> tuple[float | None, float | None]:
    if clamp is None:
        return None, None
    checks.interval("clamp", clamp)
    low, high = clamp
    return low, high


def _fit(images: Any, regularisation: float) -> tuple[Position, Array]:
    """The mean in the dtypes of the images, and the factor in float32 or wider."""
    leaves, structure = jax.tree.flatten(images)
    rows = [leaf.reshape(leaf.shape[0], -1).astype(np.float64) for leaf in leaves]
    flat = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
    mean = flat.mean(axis=0)
    centred = flat - mean
    covariance = centred.T @ centred / flat.shape[0] + regularisation * np.eye(flat.shape[1])
    factor = np.linalg.cholesky(covariance)
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    ends = np.cumsum([row.shape[1] for row in rows])
    means = [
        jnp.asarray(part.reshape(leaf.shape[1:]), dtype)
        for leaf, dtype, part in zip(leaves, dtypes, np.split(mean, ends[:-1]), strict=True)
    ]
    return jax.tree.unflatten(structure, means), jnp.asarray(
        factor, jnp.promote_types(jnp.result_type(*dtypes), jnp.float32)
    )
