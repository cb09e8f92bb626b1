"""Densities of many modes: mixtures of normals, and wells in many dimensions.

Energy, log Z, score, moments and exact sampler are as in ``jaxebm.energies.analytic``, which exports them.
What share of the mass each mode holds is known exactly, so that a sampler which misses some of them is found
out: for a mixture, ``mode_probabilities`` against the mean of ``responsibilities`` or the counts of
``nearest_mode``; for a many-well, ``right_hand_probability`` against the signs of x_0, x_2, ...
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.target import (
    LOG_TWO_PI,
    AnalyticTarget,
    array,
    check_shape,
    compiled_sampler,
    log_sum_exp,
)
from jaxebm.energies.wells import DoubleWellParams, _double_well_quadrature, double_well
from jaxebm.types import Array

__all__ = [
    "GaussianMixtureParams",
    "gaussian_mixture",
    "many_well",
    "mode_probabilities",
    "nearest_mode",
    "random_mixture",
    "responsibilities",
    "right_hand_probability",
]


# Mixtures of normals


class GaussianMixtureParams(NamedTuple):
    """``log_weights`` (K,), normalised or not, ``means`` (K, d) and standard deviations ``scales`` (K,)."""

    log_weights: Array
    means: Array
    scales: Array


def _log_components(params: GaussianMixtureParams, x: Array) -> Array:
    """log N(x; mean_k, scale_k^2 I), shape (K,)."""
    dimension = params.means.shape[1]
    check_shape("x", x, (dimension,), f"({dimension},)")
    squared_distances = jnp.sum((x[None, :] - params.means) ** 2, axis=1)
    return -0.5 * squared_distances / params.scales**2 - dimension * (
        jnp.log(params.scales) + 0.5 * LOG_TWO_PI
    )


def _mixture_energy(params: GaussianMixtureParams, x: Array) -> Array:
    return -log_sum_exp(params.log_weights + _log_components(params, x))


def _mixture_log_partition(params: GaussianMixtureParams) -> Array:
    return jax.nn.logsumexp(params.log_weights)


@compiled_sampler
def _mixture_sample(rng_key: Array, params: GaussianMixtureParams, num_samples: int) -> Array:
    component_key, normal_key = jax.random.split(rng_key)
    component = jax.random.categorical(component_key, params.log_weights, shape=(num_samples,))
    normal = jax.random.normal(normal_key, (num_samples, params.means.shape[1]), params.means.dtype)
    return params.means[component] + params.scales[component][:, None] * normal


def _mixture_moments(params: GaussianMixtureParams) -> tuple[Array, Array]:
    weights = jax.nn.softmax(params.log_weights)
    mean = weights @ params.means
    offsets = params.means - mean[None, :]
    between = (weights[:, None] * offsets).T @ offsets
    return mean, between + jnp.eye(mean.size, dtype=mean.dtype) * jnp.sum(weights * params.scales**2)


def gaussian_mixture(weights: Any, means: Any, scales: Any) -> AnalyticTarget:
    """Returns a mixture of K isotropic normals.

    E(x) = -log sum_k w_k N(x; mean_k, scale_k^2 I), log Z = log sum_k w_k.

    Args:
      weights: w, shape (K,), positive; they need not sum to one, and log Z tells what they sum to.
      means: shape (K, d).
      scales: standard deviations, shape (K,), positive.

    Returns:
      The target; its params are ``(log_weights, means, scales)``.

    Raises:
      ValueError: if the shapes disagree, there is no mean, or a weight or scale is not positive.
      TypeError: if one is no array of real numbers.

    Example:
      >>> target = gaussian_mixture([1.0, 2.0], [[0.0], [3.0]], [1.0, 0.5])
      >>> mean, covariance = target.moments(target.params)
      >>> round(float(mean[0]), 3), round(float(covariance[0, 0]), 3)
      (2.0, 2.5)
    """
    checks.array("means", means, (None, None), "(K, d)")
    length = np.shape(means)[:1]
    checks.array("weights", weights, length, f"{length}, one for each mean,")
    checks.array("scales", scales, length, f"{length}, one for each mean,")
    weights, means, scales = (np.asarray(value, np.float64) for value in (weights, means, scales))
    if means.size == 0:
        raise ValueError(f"means has shape {means.shape}: at least one mean and one coordinate are needed.")
    checks.finite("means", means)
    checks.positive("weights", weights)
    checks.positive("scales", scales)
    params = GaussianMixtureParams(array(np.log(weights)), array(means), array(scales))
    return AnalyticTarget(
        _mixture_energy, params, _mixture_log_partition, _mixture_sample, _mixture_moments, means.shape[1]
    )


def random_mixture(
    num_modes: int = 40,
    extent: float = 40.0,
    scale: float = 1.3132617,
    dimension: int = 2,
    weights: Any = "equal",
    seed: int = 0,
) -> AnalyticTarget:
    """Returns a mixture of normals scattered at random over a square (a cube, in more dimensions).

    E(x) = -log sum_k w_k N(x; mean_k, scale^2 I), mean_k uniform in [-extent, extent]^d,
    log Z = log sum_k w_k.

    The defaults are in kind the 40 modes on which learnt samplers are compared: of deviation log(1 + e), in a
    square of side 80, between which a local sampler rarely crosses. Published figures belong to their own
    draw of the means.

    Args:
      num_modes: K, at least 1.
      extent: half the side of the square, positive.
      scale: standard deviation of every mode, positive.
      dimension: d, at least 1.
      weights: "equal", w_k = 1; "uneven", w_k rising geometrically from 1 to 10, so that a sampler which
        visits all modes alike is found out; or the weights themselves, shape (K,), positive.
      seed: of the means, from 0 to 2^32 - 1; NumPy draws them, so they do not depend on JAX's generator.

    Returns:
      The target; its params are those of ``gaussian_mixture``.

    Raises:
      ValueError: if a number is out of its range, or weights is another word or shape.

    Example:
      >>> target = random_mixture(num_modes=3, weights="uneven")
      >>> [round(float(share), 3) for share in mode_probabilities(target.params)]
      [0.071, 0.223, 0.706]

    Reference:
      Midgley et al., "Flow annealed importance sampling bootstrap", ICLR 2023, section 4.
    """
    checks.positive_integer("num_modes", num_modes)
    checks.positive_number("extent", extent)
    checks.positive_number("scale", scale)
    checks.positive_integer("dimension", dimension)
    checks.seed("seed", seed)
    if isinstance(weights, str):
        if weights not in ("equal", "uneven"):
            raise ValueError(f'weights={weights!r}: "equal", "uneven" or {num_modes} numbers are needed.')
        weights = np.geomspace(1.0, 1.0 if weights == "equal" else 10.0, num_modes)
    checks.array("weights", weights, (num_modes,), f"({num_modes},), one for each mode,")
    means = np.random.default_rng(seed).uniform(-extent, extent, (num_modes, dimension))
    return gaussian_mixture(weights, means, np.full(num_modes, scale))


def mode_probabilities(params: GaussianMixtureParams) -> Array:
    """Returns what share of the mass each component of a mixture holds.

    pi_k = w_k / sum_j w_j.

    Args:
      params: of ``gaussian_mixture`` or ``random_mixture``.

    Returns:
      Shape (K,), summing to 1.

    Raises:
      TypeError: if params are not those of a mixture.
      ValueError: if their shapes disagree.

    Example:
      >>> target = gaussian_mixture([1.0, 3.0], [[0.0], [9.0]], [1.0, 1.0])
      >>> [round(float(share), 3) for share in mode_probabilities(target.params)]
      [0.25, 0.75]
    """
    _check_mixture_params(params)
    return jax.nn.softmax(params.log_weights)


def responsibilities(params: GaussianMixtureParams, x: Array) -> Array:
    """Returns the probability that each component of a mixture gave this x.

    r_k(x) = w_k N(x; mean_k, scale_k^2 I) / sum_j w_j N(x; mean_j, scale_j^2 I).

    Its mean over exact samples is ``mode_probabilities`` exactly, however the modes overlap, with a variance
    of at most pi_k (1 - pi_k) a sample.

    Args:
      params: of ``gaussian_mixture`` or ``random_mixture``.
      x: one position, shape (d,).

    Returns:
      Shape (K,), summing to 1. So far out that all densities underflow, 1 for ``nearest_mode``.

    Raises:
      ValueError: if x has another shape.
      TypeError: if params are not those of a mixture.

    Example:
      >>> target = gaussian_mixture([1.0, 3.0], [[-1.0], [1.0]], [1.0, 1.0])
      >>> [round(float(share), 3) for share in responsibilities(target.params, jnp.zeros(1))]
      [0.25, 0.75]
    """
    _check_mixture_params(params)
    checks.array("x", x)
    terms = params.log_weights + _log_components(params, x)
    # Where all densities underflow, what is left of them in the limit: the widest mode, or the nearest.
    nowhere = jnp.isneginf(jnp.max(terms))
    limit = jnp.arange(terms.size) == _nearest_mode(params, x)
    return jnp.where(nowhere, limit, jax.nn.softmax(jnp.where(nowhere, 0.0, terms)))


def nearest_mode(params: GaussianMixtureParams, x: Array) -> Array:
    """Returns which mean of a mixture lies nearest, in units of its own deviation.

    argmin_k |x - mean_k| / scale_k.

    Where modes are further apart than a few deviations, the counts of exact samples follow
    ``mode_probabilities``; where they overlap, use ``responsibilities``.

    Args:
      params: of ``gaussian_mixture`` or ``random_mixture``.
      x: one position, shape (d,).

    Returns:
      The index k, an integer of shape ().

    Raises:
      ValueError: if x has another shape.
      TypeError: if params are not those of a mixture.

    Example:
      >>> target = random_mixture()
      >>> int(nearest_mode(target.params, target.params.means[7]))
      7
    """
    _check_mixture_params(params)
    checks.array("x", x)
    check_shape("x", x, np.shape(params.means)[1:], f"{np.shape(params.means)[1:]}")
    return _nearest_mode(params, x)


def _nearest_mode(params: GaussianMixtureParams, x: Array) -> Array:
    offsets = x[None, :] - params.means
    largest = jnp.max(jnp.abs(offsets))
    squares = jnp.sum((offsets / jnp.where(largest > 1e15, largest, 1.0)) ** 2, axis=1)
    return jnp.argmin(squares / params.scales**2)


def _check_mixture_params(params: Any) -> None:
    checks.instance("params", params, GaussianMixtureParams, "gaussian_mixture(...).params are such.")
    checks.arrays("params", params)
    length = np.shape(params.means)[:1]
    shapes = np.shape(params.log_weights), np.shape(params.scales)
    if np.ndim(params.means) != 2 or shapes != (length, length):
        raise ValueError(
            f"params has log_weights, means and scales of shapes {shapes[0]}, {np.shape(params.means)} and "
            f"{shapes[1]}: (K,), (K, d) and (K,) are needed."
        )


# Many wells


def _many_well_energy(params: DoubleWellParams, x: Array) -> Array:
    check_shape("x", x, (2 * (np.size(x) // 2),), "(dimension,), an even number,")
    u = 2 * x[0::2] / params.separation
    wells = params.barrier * u**2 * (u**2 - 2) - 0.5 * params.tilt * u
    return jnp.sum(wells) + 0.5 * jnp.sum(x[1::2] ** 2)


def _many_well_log_partition(
    pair_log_partition: Callable[[DoubleWellParams], Array], num_pairs: int, params: DoubleWellParams
) -> Array:
    # A double well's energy is barrier (u^2 - 1)^2, higher by one barrier than barrier (u^4 - 2 u^2) is.
    return num_pairs * (pair_log_partition(params) + params.barrier)


def _many_well_sample(
    pair_sample: Callable[..., Array],
    num_pairs: int,
    rng_key: Array,
    params: DoubleWellParams,
    num_samples: int,
) -> Array:
    checks.rng_key("rng_key", rng_key)
    checks.positive_integer("num_samples", num_samples)
    return pair_sample(rng_key, params, num_samples * num_pairs).reshape(num_samples, 2 * num_pairs)


def _many_well_moments(
    pair_moments: Callable[[DoubleWellParams], tuple[Array, Array]], num_pairs: int, params: DoubleWellParams
) -> tuple[Array, Array]:
    mean, covariance = pair_moments(params)
    return jnp.tile(mean, num_pairs), jnp.kron(jnp.eye(num_pairs), covariance)


def many_well(
    dimension: int = 32,
    barrier: float = 9.0,
    separation: float = 2 * math.sqrt(3.0),
    tilt: float = math.sqrt(3.0),
) -> AnalyticTarget:
    """Returns d/2 double wells side by side: 2^(d/2) modes, 65 536 of them in 32 dimensions.

    With u_i = 2 x_i / separation,
    E(x) = sum_{i = 0, 2, ...} [barrier (u_i^4 - 2 u_i^2) - tilt u_i / 2 + x_{i+1}^2 / 2],
    which with the default numbers is sum_i [x_i^4 - 6 x_i^2 - x_i / 2 + x_{i+1}^2 / 2], E(0) = 0.

    log Z is d/2 times that of one pair, a one-dimensional quadrature: 164.6957 in 32 dimensions. The pairs
    are those of ``double_well``, sampler included.

    Args:
      dimension: d, even, at least 2.
      barrier: height of the untilted barrier in each pair, positive.
      separation: distance between the untilted wells of a pair, positive.
      tilt: difference of energy between the wells; above 0 it favours the right-hand one. Any finite number.

    Returns:
      The target; its params are those of ``double_well``, ``(barrier, separation, tilt)``.

    Raises:
      ValueError: if the dimension is not even, or a number out of its range.

    Example:
      >>> target = many_well(dimension=32)
      >>> round(float(target.log_partition(target.params)), 2)
      164.7

    Reference:
      Noe, Olsson, Koehler and Wu, "Boltzmann generators", Science 365, 2019 (one pair); Midgley et al., "Flow
      annealed importance sampling bootstrap", ICLR 2023, section 4 (32 dimensions).
    """
    checks.positive_integer("dimension", dimension)
    if dimension % 2:
        raise ValueError(f"dimension={dimension}: dimension must be even, two coordinates a pair of wells.")
    pair, num_pairs = double_well(barrier, separation, tilt, dimension=2), dimension // 2
    return AnalyticTarget(
        _many_well_energy,
        pair.params,
        functools.partial(_many_well_log_partition, pair.log_partition, num_pairs),
        functools.partial(_many_well_sample, pair.sample, num_pairs),
        functools.partial(_many_well_moments, pair.moments, num_pairs),
        dimension,
    )


def right_hand_probability(params: DoubleWellParams) -> Array:
    """Returns the probability of the right-hand well in a double or many-well.

    P(x_0 > 0) = integral_0^inf exp(-E) dx_0 / integral exp(-E) dx_0.

    In a many-well the signs of x_0, x_2, ... are independent, so that a mode with k wells on the right has
    probability P^k (1 - P)^(d/2 - k).

    Args:
      params: of ``double_well`` or ``many_well``.

    Returns:
      Shape (), exact to float32 where 0 lies near the top of a barrier of 1 or more.

    Raises:
      TypeError: if params are not those of a well.
      ValueError: if one of them is not of shape ().

    Example:
      >>> round(float(right_hand_probability(many_well().params)), 4)
      0.8443
    """
    checks.instance("params", params, DoubleWellParams, "double_well(...).params are such.")
    for value in params:
        checks.array("params", value, ())
    nodes, log_weights = _double_well_quadrature(params)
    return jnp.sum(jax.nn.softmax(log_weights), where=nodes > 0)
