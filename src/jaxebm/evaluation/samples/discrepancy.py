r"""How far samples are from a density, or from other samples, in one number.

``kernel_stein_discrepancy`` compares samples with an energy and needs neither log Z nor other samples; the
others compare two sets. Points are any pytree, a leading axis of examples, and are flattened to ``(n, D)``.
Pairs are summed by blocks of rows, so memory is block_size * n and never n^2. All but ``kolmogorov_smirnov``
may be traced.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxebm import checks
from jaxebm.types import Array, Position

__all__ = [
    "KolmogorovSmirnov",
    "check_points",
    "check_same_shape",
    "energy_distance",
    "exact_product",
    "flat_points",
    "kolmogorov_smirnov",
    "maximum_mean_discrepancy",
    "median_bandwidth",
    "squared_distances",
]

_MEDIAN_POINTS = 256
"""Number of points of each set for the median of distances."""


class KolmogorovSmirnov(NamedTuple):
    """Two-sample tests, one per coordinate.

    Attributes:
      statistic: ``(D,)``, the greatest difference between both empirical distribution functions, in [0, 1].
      p_value: ``(D,)``, of each coordinate on its own.
      smallest_p_value: Bonferroni's, min(1, D min p): a small one says that some coordinate differs.
    """

    statistic: np.ndarray
    p_value: np.ndarray
    smallest_p_value: float


def maximum_mean_discrepancy(
    x: Position, y: Position, *, bandwidth: Array | float | None = None, block_size: int = 256
) -> Array:
    r"""Squared maximum mean discrepancy of two sets of samples with a Gaussian kernel, unbiased.

    .. math:: \mathrm{MMD}^2 = \mathbb{E}\, k(x, x') + \mathbb{E}\, k(y, y') - 2\, \mathbb{E}\, k(x, y),
              \qquad k(x, y) = e^{-|x - y|^2 / (2 h^2)}

    Args:
      x: leaves ``(n, ...)``, n at least 2.
      y: leaves ``(m, ...)``, m at least 2.
      bandwidth: h > 0, ``()``, in units of the points; ``(k,)`` means the mean of k kernels, which sees
        differences at each of these scales; ``None`` is ``median_bandwidth(x, y)``. Hold it fixed to compare
        values.
      block_size: rows of pairs at once.

    Returns:
      MMD^2, ``()``: 0 on average for equal distributions, so it may be negative; at most 2.

    Raises:
      ValueError: if either set has fewer than two points or one that is not finite, if their shapes differ,
        or the bandwidth is not positive.
      TypeError: if the points are not floating-point.

    Example:
      >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 2))
      >>> same, shifted = (maximum_mean_discrepancy(x, y + shift, bandwidth=1.0) for shift in (0.0, 1.0))
      >>> bool(abs(same) < 0.01), bool(shifted > 0.1)
      (True, True)

    Reference:
      Gretton et al. 2012, A kernel two-sample test, lemma 6 and section 8.
    """
    checks.positive_integer("block_size", block_size)
    _check_pair(x, y)
    if bandwidth is None:
        bandwidth = median_bandwidth(x, y)
    else:
        checks.positive("bandwidth", bandwidth)
        if jnp.ndim(bandwidth) > 1 or jnp.size(bandwidth) == 0:
            raise ValueError(f"bandwidth has shape {jnp.shape(bandwidth)}: () or (k,) is needed.")
    return _mean_discrepancy(x, y, jnp.atleast_1d(jnp.asarray(bandwidth, float)), block_size)


def median_bandwidth(x: Position, y: Position | None = None) -> Array:
    """Returns the median distance between different points of x and y taken together.

    Args:
      x: leaves ``(n, ...)``, n at least 2.
      y: leaves ``(m, ...)``, m at least 2, or ``None``. Of each set 256 evenly spaced points are used.

    Returns:
      The median, ``()``, in units of the points; 0 where most of them coincide.

    Raises:
      ValueError: if either set has fewer than two points or one that is not finite, or their shapes differ.
      TypeError: if the points are not floating-point.

    Example:
      >>> float(median_bandwidth(jnp.array([[0.0], [3.0]])))
      3.0

    Reference:
      Gretton et al. 2012, A kernel two-sample test, section 8.
    """
    if y is None:
        check_points("x", x)
        return _median_distance(x)
    _check_pair(x, y)
    return _median_distance(x, y)


def energy_distance(x: Position, y: Position, *, block_size: int = 256) -> Array:
    r"""Squared energy distance of two sets of samples, unbiased: no kernel and no bandwidth to choose.

    .. math:: D^2 = 2\, \mathbb{E} |x - y| - \mathbb{E} |x - x'| - \mathbb{E} |y - y'|

    It uses no energy function: the name comes from physics.

    Args:
      x: leaves ``(n, ...)``, n at least 2.
      y: leaves ``(m, ...)``, m at least 2.
      block_size: rows of pairs at once.

    Returns:
      D^2, ``()``, in units of the points: 0 on average for equal distributions, so it may be negative.

    Raises:
      ValueError: if either set has fewer than two points or one that is not finite, or their shapes differ.
      TypeError: if the points are not floating-point.

    Example:
      >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[10.0], [11.0]])
      >>> round(float(energy_distance(x, y)), 3)  # 2 * 10 - 1 - 1
      18.0

    Reference:
      Székely & Rizzo 2013, Energy statistics: a class of statistics based on distances, section 2.
    """
    checks.positive_integer("block_size", block_size)
    _check_pair(x, y)
    return _energy_distance(x, y, block_size)


def kolmogorov_smirnov(x: Position, y: Position) -> KolmogorovSmirnov:
    r"""Two-sample Kolmogorov-Smirnov test of every coordinate, on the host.

    .. math:: D_i = \sup_t |F_{x, i}(t) - F_{y, i}(t)|

    It sees marginals only. The p-values are those of independent draws: thin a chain by its autocorrelation
    time.

    Args:
      x: leaves ``(n, ...)``, n at least 2.
      y: leaves ``(m, ...)``, m at least 2.

    Returns:
      A ``KolmogorovSmirnov`` over the D flattened coordinates.

    Raises:
      ValueError: if either set has fewer than two points or one that is not finite, or their shapes differ.
      TypeError: if the points are not floating-point.

    Example:
      >>> x = np.linspace(0.0, 1.0, 100)[:, None]
      >>> test = kolmogorov_smirnov(np.concatenate([x, x], 1), np.concatenate([x, x + 0.5], 1))
      >>> test.statistic.tolist(), float(test.p_value[0]), bool(test.smallest_p_value < 1e-9)
      ([0.0, 0.5], 1.0, True)

    Reference:
      Hodges 1958, The significance probability of the Smirnov two-sample test; scipy.stats.ks_2samp.
    """
    _check_pair(x, y)
    columns = (np.asarray(flat_points(points), np.float64).T for points in (x, y))
    tests: list[Any] = [scipy.stats.ks_2samp(one, other) for one, other in zip(*columns, strict=True)]
    p_values = np.array([test.pvalue for test in tests])
    smallest = min(1.0, float(p_values.min()) * len(tests))
    return KolmogorovSmirnov(np.array([test.statistic for test in tests]), p_values, smallest)


def check_points(name: str, points: Position) -> None:
    """Raises unless ``points`` is a batch of at least two points, floating-point and finite."""
    if (found := checks.batch_length(name, points)) < 2:
        raise ValueError(f"{name} holds {found} point: at least 2 are needed, for a pair.")
    checks.floating(name, points)
    checks.finite(name, points)


def check_same_shape(first_name: str, first: Position, second_name: str, second: Position) -> None:
    """Raises ``ValueError`` unless the points of both sets have the same structure and shapes."""
    shapes = [jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], points) for points in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{first_name} has points of shape {shapes[0]} and {second_name} of shape {shapes[1]}: "
            f"they must be equal."
        )


def _check_pair(x: Position, y: Position) -> None:
    check_points("x", x)
    check_points("y", y)
    check_same_shape("x", x, "y", y)


def flat_points(points: Position) -> Array:
    """Returns the points of a pytree, leaves ``(n, ...)``, as one array ``(n, D)``, at least float32."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(points)]
    wide = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(wide) for leaf in leaves], axis=1)


def exact_product(a: Array, b: Array) -> Array:
    """Returns a @ b in the precision of its arguments, where TPUs and GPUs would round to fewer digits."""
    return jnp.matmul(a, b, precision="highest")


def squared_distances(point: Array, others: Array) -> Array:
    """Returns |point - other|^2, ``(m,)``, of one point ``(D,)`` and others ``(m, D)``.

    A product, as differences would fill m * D numbers for each row.

    Its rounding is relative to the points' distance from the origin, which is why callers centre them.
    """
    squares = jnp.sum(jnp.square(others), axis=1) + jnp.sum(jnp.square(point))
    return jnp.maximum(squares - 2 * exact_product(others, point), 0.0)


def _pair_mean(
    x: Array, y: Array, value: Callable[[Array], Array], block_size: int, *, same: bool = False
) -> Array:
    """Mean of ``value(|x_i - y_j|^2)`` over pairs, over those of i != j if x and y are the same set."""

    def row(at: tuple[Array, Array]) -> Array:
        index, point = at
        values = value(squared_distances(point, y))
        return jnp.sum(jnp.where(jnp.arange(len(y)) == index, 0.0, values) if same else values)

    sums = jax.lax.map(row, (jnp.arange(len(x)), x), batch_size=min(block_size, len(x)))
    return jnp.mean(sums) / (len(y) - same)


def _centred(x: Position, y: Position) -> tuple[Array, Array]:
    x, y = flat_points(x), flat_points(y)
    centre = (jnp.mean(x, axis=0, keepdims=True) + jnp.mean(y, axis=0, keepdims=True)) / 2
    return x - centre, y - centre


@functools.partial(jax.jit, static_argnames=("block_size",))
def _mean_discrepancy(x: Position, y: Position, bandwidths: Array, block_size: int) -> Array:
    x, y = _centred(x, y)

    def kernel(squared: Array) -> Array:
        return jnp.mean(jax.vmap(lambda h: jnp.exp(-squared / (2 * h**2)))(bandwidths), axis=0)

    mean_kernel = functools.partial(_pair_mean, value=kernel, block_size=block_size)
    return mean_kernel(x, x, same=True) + mean_kernel(y, y, same=True) - 2 * mean_kernel(x, y)


@functools.partial(jax.jit, static_argnames=("block_size",))
def _energy_distance(x: Position, y: Position, block_size: int) -> Array:
    x, y = _centred(x, y)
    mean_distance = functools.partial(_pair_mean, value=jnp.sqrt, block_size=block_size)
    return 2 * mean_distance(x, y) - mean_distance(x, x, same=True) - mean_distance(y, y, same=True)


@jax.jit
def _median_distance(*sets: Position) -> Array:
    points = jnp.concatenate([_spread(flat_points(one)) for one in sets])
    points = points - jnp.mean(points, axis=0, keepdims=True)
    distances = jnp.sqrt(jax.vmap(squared_distances, (0, None))(points, points))
    return jnp.nanmedian(jnp.where(jnp.eye(len(points), dtype=bool), jnp.nan, distances))


def _spread(points: Array) -> Array:
    count = min(len(points), _MEDIAN_POINTS)
    return points[np.arange(count) * len(points) // count]
