"""Initial distributions of chains: unbatched callables ``initial(rng_key, label) -> position``.

They are pytrees whose arrays are leaves, so they are arguments of compiled programs and not constants.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array, Position

__all__ = [
    "ClassGaussianInitial",
    "GaussianInitial",
    "Initial",
    "UniformInitial",
    "fit_class_gaussians",
    "fit_gaussian",
    "uniform_like",
]

Initial: TypeAlias = Callable[[Array, Array], Position]
"""``(rng_key, label) -> position``: one draw, for one class (an int32 scalar, 0 where there are none)."""

_static: Any = partial(field, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UniformInitial:
    """Uniform noise on [low, high), from which JEM restarts its chains; it ignores the label.

    Attributes:
      low: lower end, ``()``.
      high: upper end, ``()``.
      shape: shape of one position.

    Raises:
      ValueError: if low is not below high (Python numbers only).

    Example:
      >>> initial = UniformInitial(-1.0, 1.0, shape=(8, 8, 1))
      >>> initial(jax.random.key(0), jnp.array(3)).shape
      (8, 8, 1)
    """

    low: Array | float
    high: Array | float
    shape: tuple[int, ...] = _static()

    def __post_init__(self) -> None:
        # Only Python numbers, because jax rebuilds the object with tracers and placeholders.
        if (
            isinstance(self.low, int | float)
            and isinstance(self.high, int | float)
            and not self.low < self.high
        ):
            raise ValueError(f"low={self.low}, high={self.high}: low must be less than high.")

    def __call__(self, rng_key: Array, label: Array) -> Array:
        """Returns one draw, of ``shape``; the label is ignored."""
        del label
        return jax.random.uniform(rng_key, self.shape, minval=self.low, maxval=self.high)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianInitial:
    r"""A Gaussian with full covariance, optionally clamped; it ignores the label.

    .. math:: x = \mathrm{clip}(\mu + L n, low, high), \qquad n \sim N(0, I), \quad L L^T = \Sigma

    Attributes:
      mean: mu, of the shape of one position, with d entries.
      factor: L, ``(d, d)``.
      low: lower clamp ``()``, or ``None``.
      high: upper clamp ``()``, or ``None``.

    Example:
      >>> initial = GaussianInitial(jnp.zeros((2, 2)), 0.1 * jnp.eye(4))
      >>> initial(jax.random.key(0), jnp.array(0)).shape
      (2, 2)
    """

    mean: Array
    factor: Array
    low: Array | float | None = None
    high: Array | float | None = None

    def __call__(self, rng_key: Array, label: Array) -> Array:
        """Returns one draw, of the shape of the mean; the label is ignored."""
        del label
        noise = jax.random.normal(rng_key, (self.mean.size,), self.mean.dtype)
        return jnp.clip(self.mean + (self.factor @ noise).reshape(self.mean.shape), self.low, self.high)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassGaussianInitial:
    """One Gaussian per class, with full covariance: the label selects the mean and the factor.

    Attributes:
      means: ``(num_classes, ...)``, each of the shape of one position, with d entries.
      factors: ``(num_classes, d, d)``.
      low: lower clamp ``()``, or ``None``.
      high: upper clamp ``()``, or ``None``.

    Example:
      >>> initial = ClassGaussianInitial(jnp.zeros((10, 2, 2)), jnp.stack([0.1 * jnp.eye(4)] * 10))
      >>> initial(jax.random.key(0), jnp.array(7)).shape
      (2, 2)
    """

    means: Array
    factors: Array
    low: Array | float | None = None
    high: Array | float | None = None

    def __call__(self, rng_key: Array, label: Array) -> Array:
        """Returns one draw from the Gaussian of class ``label``, an integer scalar."""
        mean = self.means[label]
        noise = jax.random.normal(rng_key, (mean.size,), mean.dtype)
        # The products of all classes, then selection: under vmap this is one matrix product, while selecting
        # the factor first would copy a (d, d) matrix for each chain (37 MB at 32x32x3).
        offset = (self.factors @ noise)[label]
        return jnp.clip(mean + offset.reshape(mean.shape), self.low, self.high)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _UniformTree:
    """Uniform noise in every leaf of a pytree of positions."""

    low: Array | float
    high: Array | float
    shapes: tuple[tuple[int, ...], ...] = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})

    def __call__(self, rng_key: Array, label: Array) -> Position:
        del label
        keys = jax.random.split(rng_key, len(self.shapes))
        leaves = [
            jax.random.uniform(key, shape, minval=self.low, maxval=self.high)
            for key, shape in zip(keys, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def uniform_like(example: Position, low: float = -1.0, high: float = 1.0) -> Initial:
    """Uniform noise on [low, high) in the shape of an example: the default initial distribution of chains.

    Args:
      example: one position, any pytree of arrays or of their shapes.
      low: lower end.
      high: upper end.

    Returns:
      The initial distribution, a pytree: `UniformInitial` where the example is one array.

    Raises:
      ValueError: if low is not below high, or the example has no array.

    Example:
      >>> initial = uniform_like({"a": jnp.zeros(3), "b": jnp.zeros((2, 2))})
      >>> jax.tree.map(jnp.shape, initial(jax.random.key(0), jnp.array(0)))
      {'a': (3,), 'b': (2, 2)}
    """
    if not low < high:
        raise ValueError(f"low={low}, high={high}: low must be less than high.")
    leaves, structure = jax.tree.flatten(example)
    if not leaves:
        raise ValueError("example holds no array: chains need a shape to start from.")
    shapes = tuple(tuple(jnp.shape(leaf)) for leaf in leaves)
    if structure == jax.tree.structure(0):
        return UniformInitial(low, high, shape=shapes[0])
    return _UniformTree(low, high, shapes, structure)


def fit_gaussian(
    images: Any, *, regularisation: float = 1e-4, clamp: tuple[float, float] | None = None
) -> GaussianInitial:
    r"""Fits one Gaussian to data, in float64 on the host.

    .. math:: \mu = \tfrac1n \sum_i x_i, \qquad L L^T = \tfrac1n \sum_i (x_i - \mu)(x_i - \mu)^T + \lambda I

    Args:
      images: ``(n, ...)``, floating-point, any position shape with d entries; n may be below d.
      regularisation: lambda > 0, in squared units of the data; it makes the covariance positive definite.
      clamp: ``(low, high)`` that every draw is clamped to, or ``None``.

    Returns:
      The initial distribution; ``(d, d)`` float32 is its largest array (37 MB at 32x32x3).

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
    images = _checked_images(images, regularisation)
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
      images: ``(n, ...)``, floating-point.
      labels: ``(n,)``, integers 0..num_classes-1.
      num_classes: K, at least 1; each class needs at least one image.
      regularisation: as in ``fit_gaussian``.
      clamp: as in ``fit_gaussian``.

    Returns:
      The initial distribution; ``(K, d, d)`` float32 is its largest array.

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
    images = _checked_images(images, regularisation)
    low, high = _checked_clamp(clamp)
    checks.positive_integer("num_classes", num_classes)
    checks.integer_labels("labels", labels, num_classes)
    labels = np.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels has shape {labels.shape}: one label for each of {images.shape[0]} images is needed."
        )
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(
            f"labels holds no example of classes {missing}: each of {num_classes} classes needs an image."
        )
    fits = [_fit(images[labels == label], regularisation) for label in range(num_classes)]
    means, factors = zip(*fits, strict=True)
    return ClassGaussianInitial(jnp.stack(means), jnp.stack(factors), low, high)


def _checked_images(images: Any, regularisation: float) -> np.ndarray:
    images = np.asarray(images)
    checks.positive("regularisation", regularisation)
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(
            f"images has dtype {images.dtype}: floating-point images, scaled like the model's inputs, are "
            f"needed."
        )
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"images has shape {images.shape}: (n, ...) with at least one image is needed.")
    checks.finite("images", images)
    return images


def _checked_clamp(clamp: tuple[float, float] | None) -> tuple[float | None, float | None]:
    if clamp is None:
        return None, None
    low, high = clamp
    if not low < high:
        raise ValueError(f"clamp={clamp!r}: clamp must be a pair (low, high) with low < high.")
    return low, high


def _fit(images: np.ndarray, regularisation: float) -> tuple[Array, Array]:
    flat = images.reshape(images.shape[0], -1).astype(np.float64)
    mean = flat.mean(axis=0)
    centred = flat - mean
    covariance = centred.T @ centred / flat.shape[0] + regularisation * np.eye(flat.shape[1])
    factor = np.linalg.cholesky(covariance)
    return jnp.asarray(mean.reshape(images.shape[1:]), jnp.float32), jnp.asarray(factor, jnp.float32)
