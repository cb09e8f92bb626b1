r"""How far samples are from a density, or from other samples, in one number.

``kernel_stein_discrepancy`` compares samples with an energy and needs neither log Z nor other samples; the
others compare two sets. Points are any pytree, a leading axis of examples, and are flattened to ``(n, D)``.
Pairs are summed by blocks of rows, so memory is block_size * n and never n^2. All but ``kolmogorov_smirnov``
may be traced. Points are divided by a power of two before distances are squared, so they may be of any size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxebm import checks
from jaxebm.evaluation.samples.scale import check_precision, power_of_two
from jaxebm.trees import square_root
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
        differences at each of these scales; ``None`` is ``median_bandwidth(x, y)``, and where that is 0, as
        all points coincide, the limit k(x, y) = 1[x = y]. Hold it fixed to compare values.
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
        if np.ndim(bandwidth) > 1 or np.size(bandwidth) == 0:
            raise ValueError(f"bandwidth has shape {np.shape(bandwidth)}: () or (k,) is needed.")
    unit, scaled = _rescaled(x, y)
    bandwidths = jnp.atleast_1d(jnp.asarray(bandwidth, float)) / unit
    # Its square must not vanish, or points that coincide would be 0 / 0 apart.
    bandwidths = jnp.maximum(bandwidths, 2 * jnp.sqrt(jnp.finfo(bandwidths.dtype).tiny))
    return _mean_discrepancy(*scaled, bandwidths, block_size)


def median_bandwidth(x: Position, y: Position | None = None) -> Array:
    """Returns the median distance between different points of x and y taken together.

    Args:
      x: leaves ``(n, ...)``, n at least 2.
      y: leaves ``(m, ...)``, m at least 2, or ``None``. Of each set 256 evenly spaced points are used.

    Returns:
      The median, ``()``, in units of the points. Where more than half of the pairs coincide, the median of
      the distances that are not 0; 0 where all points coincide.

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
        return _median_of(x)
    _check_pair(x, y)
    return _median_of(x, y)


def energy_distance(x: Position, y: Position, *, block_size: int = 256) -> Array:
    r"""Squared energy distance of two sets of samples, unbiased: no kernel and no bandwidth to choose.

    .. math:: D^2 = 2\, \mathbb{E} |x - y| - \mathbb{E} |x - x'| - \mathbb{E} |y - y'|

    It uses no energy function: the name comes from physics.

    Args:
      x: leaves ``(n, ...)``, n at least 2.
      y: leaves ``(m, ...)``, m at least 2.
      block_size: rows of pairs at once.

    Returns:
      D^2, ``()``, in units of the points: 0 on average for equal distributions, so it may be negative. Its
      derivative takes that of |x - x'| as 0 where points coincide.

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
    unit, scaled = _rescaled(x, y)
    return unit * _energy_distance(*scaled, block_size)


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
    _check_pair(x, y, on_host=True)
    columns = (
        np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in leaves], axis=1).T
        for leaves in (jax.tree.leaves(x), jax.tree.leaves(y))
    )
    tests: list[Any] = [scipy.stats.ks_2samp(one, other) for one, other in zip(*columns, strict=True)]
    p_values = np.array([test.pvalue for test in tests])
    smallest = min(1.0, float(p_values.min()) * len(tests))
    return KolmogorovSmirnov(np.array([test.statistic for test in tests]), p_values, smallest)


def check_points(name: str, points: Position, *, on_host: bool = False) -> None:
    """Raises unless ``points`` is a batch of at least two points, floating-point and finite (in JAX)."""
    checks.floating(name, points)
    if (found := checks.batch_length(name, points)) < 2:
        raise ValueError(f"{name} holds {found} point: at least 2 are needed, for a pair.")
    checks.finite(name, points)
    if not on_host:
        for leaf in jax.tree.leaves(points):
            check_precision(name, leaf)


def check_same_shape(first_name: str, first: Position, second_name: str, second: Position) -> None:
    """Raises ``ValueError`` unless the points of both sets have the same structure and shapes."""
    shapes = [jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], points) for points in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{first_name} has points of shape {shapes[0]} and {second_name} of shape {shapes[1]}: "
            f"they must be equal."
        )


def _check_pair(x: Position, y: Position, *, on_host: bool = False) -> None:
    check_points("x", x, on_host=on_host)
    check_points("y", y, on_host=on_host)
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


def _rescaled(*sets: Position) -> tuple[Array, list[Array]]:
    """Returns a power of two, and the points of the sets, ``(n, D)``, divided by it.

    A coordinate in which no point differs is 0: its mean would round, and points that coincide differ.
    """
    flat = [flat_points(points) for points in sets]
    unit = power_of_two(*flat)
    low, high = (
        functools.reduce(bound, [reduced(points, axis=0, keepdims=True) for points in flat])
        for bound, reduced in ((jnp.minimum, jnp.min), (jnp.maximum, jnp.max))
    )
    return unit, [jnp.where(low == high, 0.0, points) / unit for points in flat]


def _centred(x: Array, y: Array) -> tuple[Array, Array]:
    centre = (jnp.mean(x, axis=0, keepdims=True) + jnp.mean(y, axis=0, keepdims=True)) / 2
    return x - centre, y - centre


@functools.partial(jax.jit, static_argnames=("block_size",))
def _mean_discrepancy(x: Array, y: Array, bandwidths: Array, block_size: int) -> Array:
    x, y = _centred(x, y)

    def kernel(squared: Array) -> Array:
        return jnp.mean(jax.vmap(lambda h: jnp.exp(-squared / (2 * h**2)))(bandwidths), axis=0)

    mean_kernel = functools.partial(_pair_mean, value=kernel, block_size=block_size)
    return mean_kernel(x, x, same=True) + mean_kernel(y, y, same=True) - 2 * mean_kernel(x, y)


@functools.partial(jax.jit, static_argnames=("block_size",))
def _energy_distance(x: Array, y: Array, block_size: int) -> Array:
    x, y = _centred(x, y)
    mean_distance = functools.partial(_pair_mean, value=square_root, block_size=block_size)
    return 2 * mean_distance(x, y) - mean_distance(x, x, same=True) - mean_distance(y, y, same=True)


def _distances(points: Array) -> Array:
    points = points - jnp.mean(points, axis=0, keepdims=True)
    return square_root(jax.vmap(squared_distances, (0, None))(points, points))


@jax.jit
def _median_distance(*sets: Array) -> Array:
    points = jnp.concatenate([_spread(one) for one in sets])
    return jnp.nanmedian(jnp.where(jnp.eye(len(points), dtype=bool), jnp.nan, _distances(points)))


@jax.jit
def _equal_points(points: Array) -> Array:
    return jax.lax.map(lambda point: jnp.all(points == point[None], axis=1), points)


@jax.jit
def _median_distance_of_some_equal(points: Array, equal: Array) -> Array:
    """The same with distances of exactly 0 between equal points; if the median is 0, that of the others."""
    distances = jnp.where(equal, 0.0, _distances(points))
    median = jnp.nanmedian(jnp.where(jnp.eye(len(points), dtype=bool), jnp.nan, distances))
    apart = jnp.nanmedian(jnp.where(equal & ~jnp.all(equal), jnp.nan, distances))
    return jnp.where(median > 0, median, apart)


def _median_of(*sets: Position) -> Array:
    unit, flat = _rescaled(*sets)
    points = jnp.concatenate([_spread(one) for one in flat])
    equal = _equal_points(points)
    some_equal = jnp.sum(equal) > len(points)
    if checks.is_traced(some_equal):
        equal_median = _median_distance_of_some_equal(points, equal)
        return unit * jnp.where(some_equal, equal_median, _median_distance(*flat))
    return unit * (_median_distance_of_some_equal(points, equal) if some_equal else _median_distance(*flat))


def _spread(points: Array) -> Array:
    count = min(len(points), _MEDIAN_POINTS)
    return points[np.arange(count) * len(points) // count]
