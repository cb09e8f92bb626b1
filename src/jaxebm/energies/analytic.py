"""Densities with known energy, log Z, score, moments and an exact sampler.

Samplers, objectives and estimators of log Z are tested on them. The energies are module-level functions of
``(params, x)`` with all numbers in ``params``, and are *not* normalised: log Z is rarely 0, so an estimator
that ignores it fails the tests. The constructors take concrete numbers and check them; to
differentiate or to sweep, trace ``params`` through ``energy``, ``log_partition``, ``sample`` or ``moments``.

``skewed`` and a tilted ``double_well`` have no symmetry, so a wrong sign shows in their means. The families
are ``wells``, ``many_modes`` and ``surfaces``; this module adds the single ones, and the table of them all.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma

from jaxebm import checks
from jaxebm.energies.many_modes import GaussianMixtureParams, gaussian_mixture, many_well, random_mixture
from jaxebm.energies.surfaces import mueller_brown, rosenbrock
from jaxebm.energies.target import (
    LOG_TWO_PI,
    AnalyticTarget,
    array,
    check_shape,
    compiled_sampler,
    infinite_energy,
    scalar,
)
from jaxebm.energies.wells import double_well, ring
from jaxebm.types import Array

__all__ = [
    "ANALYTIC_TARGETS",
    "AnalyticTarget",
    "GaussianMixtureParams",
    "double_well",
    "funnel",
    "gaussian",
    "gaussian_mixture",
    "many_well",
    "mueller_brown",
    "random_mixture",
    "ring",
    "rosenbrock",
    "skewed",
]


# Gaussian


class GaussianParams(NamedTuple):
    """``mean`` (d,) and ``precision`` (d, d), the inverse covariance: the energy then costs one product."""

    mean: Array
    precision: Array


def _gaussian_energy(params: GaussianParams, x: Array) -> Array:
    check_shape("x", x, np.shape(params.mean), f"{np.shape(params.mean)}")
    offset = x - params.mean
    energy = 0.5 * offset @ params.precision @ offset
    # Products of far coordinates overflow with either sign, though the form is positive.
    return jnp.where(jnp.isfinite(energy), energy, infinite_energy(offset))


def _gaussian_log_partition(params: GaussianParams) -> Array:
    return 0.5 * (params.mean.size * LOG_TWO_PI - jnp.linalg.slogdet(params.precision)[1])


@compiled_sampler
def _gaussian_sample(rng_key: Array, params: GaussianParams, num_samples: int) -> Array:
    normal = jax.random.normal(rng_key, (params.mean.size, num_samples))
    # precision = L L', so x = mean + L'^-1 n has the covariance
    cholesky = jnp.linalg.cholesky(params.precision)
    return params.mean[None, :] + jax.scipy.linalg.solve_triangular(cholesky.T, normal, lower=False).T


def _gaussian_moments(params: GaussianParams) -> tuple[Array, Array]:
    return params.mean, jnp.linalg.inv(params.precision)


def _check_covariance(covariance: np.ndarray) -> None:
    variance = np.diagonal(covariance)
    # Of the correlations, so that the units of the coordinates do not matter.
    scale = np.sqrt(np.outer(variance, variance), where=np.all(variance > 0), out=np.ones_like(covariance))
    correlation = covariance / scale
    smallest = np.linalg.eigvalsh(correlation).min()
    rounding = variance.size * float(jnp.finfo(array(0.0).dtype).eps)
    if np.abs(correlation - correlation.T).max() > 1e-5 or smallest <= rounding:
        raise ValueError(
            f"covariance={covariance!r}: covariance must be symmetric positive definite; the smallest "
            f"eigenvalue of {'its correlations' if np.all(variance > 0) else 'it'} is {smallest:.3g}, and "
            f"more than {rounding:.1g} is needed."
        )


def gaussian(mean: Any, covariance: Any) -> AnalyticTarget:
    """Returns the multivariate normal.

    E(x) = 1/2 (x - mean)' covariance^-1 (x - mean), log Z = d/2 log(2 pi) + 1/2 log det covariance.

    Args:
      mean: shape (d,).
      covariance: shape (d, d), symmetric positive definite, by more than its params' dtype rounds off.

    Returns:
      The target; its params are ``(mean, precision)``, precision = covariance^-1.

    Raises:
      ValueError: if the shapes disagree, or the covariance is not symmetric positive definite.
      TypeError: if one is no array of real numbers.

    Example:
      >>> target = gaussian([0.0, 0.0], [[2.0, 0.0], [0.0, 2.0]])
      >>> round(float(target.log_partition(target.params)), 3)
      2.531
    """
    checks.array("mean", mean, (None,), "(d,)")
    dimension = np.size(mean)
    shape = f"({dimension}, {dimension}), by mean,"
    checks.array("covariance", covariance, (dimension, dimension), shape)
    if dimension == 0:
        raise ValueError("mean has shape (0,): at least one coordinate is needed.")
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    checks.finite("mean", mean)
    checks.finite("covariance", covariance)
    _check_covariance(covariance)
    params = GaussianParams(array(mean), array(np.linalg.inv(covariance)))
    return AnalyticTarget(
        _gaussian_energy, params, _gaussian_log_partition, _gaussian_sample, _gaussian_moments, mean.size
    )


# Funnel


class FunnelParams(NamedTuple):
    """``scale``, shape (): the standard deviation of the funnel's first coordinate."""

    scale: Array


def _funnel_energy(params: FunnelParams, x: Array) -> Array:
    check_shape("x", x, (None,), "(dimension,)")
    log_variance, others = x[0], x[1:]
    # Beyond 80, exp overflows, and 0 inf is NaN: there each coordinate is divided by its deviation first.
    near = jnp.abs(log_variance) < 80
    near_log_variance = jnp.where(near, log_variance, 0.0)
    near_neck = 0.5 * jnp.sum(others**2) * jnp.exp(-near_log_variance) + 0.5 * others.size * near_log_variance
    bounded = jnp.where(jnp.abs(log_variance) < 160, log_variance, 160 * jnp.sign(log_variance))
    far_squares = jnp.sum((others * jnp.exp(-0.5 * jnp.where(near, 0.0, bounded))) ** 2)
    neck = jnp.where(near, near_neck, 0.5 * far_squares + 0.5 * others.size * log_variance)
    return 0.5 * (log_variance / params.scale) ** 2 + neck


def _funnel_log_partition(dimension: int, params: FunnelParams) -> Array:
    return 0.5 * dimension * LOG_TWO_PI + jnp.log(params.scale)


@functools.partial(compiled_sampler, static=("dimension",))
def _funnel_sample(rng_key: Array, params: FunnelParams, num_samples: int, *, dimension: int) -> Array:
    normal = jax.random.normal(rng_key, (num_samples, dimension))
    log_variance = params.scale * normal[:, :1]
    return jnp.concatenate([log_variance, jnp.exp(0.5 * log_variance) * normal[:, 1:]], axis=1)


def _funnel_moments(dimension: int, params: FunnelParams) -> tuple[Array, Array]:
    variance = params.scale**2
    others = jnp.broadcast_to(jnp.exp(0.5 * variance), (dimension - 1,))
    return jnp.zeros(dimension), jnp.diag(jnp.concatenate([variance[None], others]))


def funnel(dimension: int = 10, scale: float = 3.0) -> AnalyticTarget:
    """Returns Neal's funnel, whose width varies by orders of magnitude along its first coordinate v = x_0.

    v ~ N(0, scale^2), x_i ~ N(0, e^v):
    E(x) = v^2 / (2 scale^2) + e^-v sum_i x_i^2 / 2 + (d - 1) v / 2, log Z = d/2 log(2 pi) + log scale.

    Args:
      dimension: d, at least 2; Neal's is 10.
      scale: standard deviation of v, positive; Neal's is 3.

    Returns:
      The target; its params are ``(scale,)``.

    Raises:
      ValueError: if the dimension is below 2 or the scale is not positive.

    Example:
      >>> target = funnel(dimension=2, scale=1.0)
      >>> round(float(target.log_partition(target.params)), 3)
      1.838

    Reference:
      Neal, "Slice sampling", Annals of Statistics 31, 2003, section 8.
    """
    checks.integer("dimension", dimension, 2)
    checks.positive("scale", scale)
    return AnalyticTarget(
        _funnel_energy,
        FunnelParams(scalar("scale", scale)),
        functools.partial(_funnel_log_partition, dimension),
        functools.partial(_funnel_sample, dimension=dimension),
        functools.partial(_funnel_moments, dimension),
        dimension,
    )


# Skewed


class SkewedParams(NamedTuple):
    """``shape``, ``shear`` and ``width``, each of shape ()."""

    shape: Array
    shear: Array
    width: Array


def _skewed_energy(params: SkewedParams, x: Array) -> Array:
    check_shape("x", x, (2,), "(2,)")
    bend = (x[1] - params.shear * x[0] ** 2) / params.width
    return jnp.exp(x[0]) - params.shape * x[0] + 0.5 * bend**2


def _skewed_log_partition(params: SkewedParams) -> Array:
    return gammaln(params.shape) + jnp.log(params.width) + 0.5 * LOG_TWO_PI


@compiled_sampler
def _skewed_sample(rng_key: Array, params: SkewedParams, num_samples: int) -> Array:
    gamma_key, normal_key = jax.random.split(rng_key)
    first = jax.random.loggamma(gamma_key, params.shape, (num_samples,))
    second = params.shear * first**2 + params.width * jax.random.normal(normal_key, (num_samples,))
    return jnp.stack([first, second], axis=1)


def _skewed_moments(params: SkewedParams) -> tuple[Array, Array]:
    mean = digamma(params.shape)  # the cumulants of log-gamma are polygammas
    second, third, fourth = (polygamma(order, params.shape) for order in (1, 2, 3))
    mean_square = mean**2 + second
    covariance = params.shear * (third + 2 * mean * second)  # shear Cov(x_0, x_0^2)
    square_variance = fourth + 2 * second**2 + 4 * mean * third + 4 * mean**2 * second  # Var(x_0^2)
    variance = params.shear**2 * square_variance + params.width**2
    return (
        jnp.stack([mean, params.shear * mean_square]),
        jnp.stack([second, covariance, covariance, variance]).reshape(2, 2),
    )


def skewed(shape: float = 2.0, shear: float = 0.5, width: float = 0.7) -> AnalyticTarget:
    """Returns a skewed banana: the log of a gamma variable, sheared, without any symmetry.

    x_0 ~ log Gamma(shape), x_1 ~ N(shear x_0^2, width^2):
    E(x) = exp(x_0) - shape x_0 + (x_1 - shear x_0^2)^2 / (2 width^2),
    log Z = log Gamma(shape) + log width + 1/2 log(2 pi), because the shear preserves volume.

    A sampler with a wrong sign in its gradient, drift or acceptance, which a symmetric target hides, misses
    its mean.

    Args:
      shape: shape of the gamma variable, positive; the smaller, the more skewed.
      shear: curvature of the banana; any finite number.
      width: thickness of the banana, positive.

    Returns:
      The target, of dimension 2; its params are ``(shape, shear, width)``.

    Raises:
      ValueError: if the shape or width is not positive, or the shear is not finite.

    Example:
      >>> target = skewed(shape=1.0, shear=0.0, width=1.0)
      >>> mean, covariance = target.moments(target.params)
      >>> round(float(mean[0]), 4)  # minus Euler's constant
      -0.5772
    """
    checks.positive("shape", shape)
    checks.positive("width", width)
    params = SkewedParams(scalar("shape", shape), scalar("shear", shear), scalar("width", width))
    return AnalyticTarget(_skewed_energy, params, _skewed_log_partition, _skewed_sample, _skewed_moments, 2)


ANALYTIC_TARGETS: dict[str, Callable[[], AnalyticTarget]] = {
    "gaussian": functools.partial(gaussian, [1.0, -0.5], [[1.5, 0.6], [0.6, 0.8]]),
    "gaussian_mixture": functools.partial(
        gaussian_mixture, [1.0, 2.0, 0.5], [[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]], [0.5, 0.8, 0.4]
    ),
    "ring": ring,
    "funnel": functools.partial(funnel, dimension=2, scale=1.0),
    "double_well": double_well,
    "tilted_double_well": functools.partial(double_well, tilt=1.0, dimension=2),
    "skewed": skewed,
    "rosenbrock": functools.partial(rosenbrock, curvature=4.0, temperature=1.0),
    "mueller_brown": mueller_brown,
    "many_well": functools.partial(many_well, dimension=2),
    "random_mixture": functools.partial(
        random_mixture, num_modes=6, extent=3.0, scale=0.5, weights="uneven", seed=1
    ),
}
"""Every target by name, with parameters that are not too hard for samplers; a table for tests."""
