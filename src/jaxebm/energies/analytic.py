"""Densities about which everything is known: energy, log Z, score, moments and an exact sampler.

They are what samplers, objectives and estimators of log Z are tested on. The energies are module-level
functions of ``(params, x)`` with all numbers in ``params``, and are *not* normalised: log Z is rarely 0, so
that an estimator that forgets it is found out. The constructors take concrete numbers and check them; to
differentiate or to sweep, trace ``params`` through ``energy``, ``log_partition``, ``sample`` or ``moments``.

``skewed`` and a tilted ``double_well`` have no symmetry, so a wrong sign shows in their means.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma
from jax.scipy.stats import norm

from jaxebm import checks
from jaxebm.types import Array, EnergyFn, Params, Target

__all__ = [
    "ANALYTIC_TARGETS",
    "AnalyticTarget",
    "double_well",
    "funnel",
    "gaussian",
    "gaussian_mixture",
    "ring",
    "skewed",
]

_LOG_TWO_PI = math.log(2 * math.pi)


class AnalyticTarget(NamedTuple):
    """An energy with all that is exactly known about it.

    Attributes:
      energy: ``energy(params, x) -> ()``, x of shape (dimension,).
      params: NamedTuple of arrays; everything below is a differentiable function of it (samples excepted).
      log_partition: ``log_partition(params) -> ()``, log Z = log integral exp(-E(x)) dx.
      sample: ``sample(rng_key, params, num_samples) -> (num_samples, dimension)``, independent exact draws.
      moments: ``moments(params) -> (mean (dimension,), covariance (dimension, dimension))``.
      dimension: the number of coordinates of x.
    """

    energy: EnergyFn
    params: Params
    log_partition: Callable[[Params], Array]
    sample: Callable[[Array, Params, int], Array]
    moments: Callable[[Params], tuple[Array, Array]]
    dimension: int

    @property
    def target(self) -> Target:
        """The energy with its parameters bound: x -> E(x), as a sampler takes it."""
        return functools.partial(self.energy, self.params)

    def score(self, x: Array) -> Array:
        """Returns the score d log p(x) / dx = -dE(x)/dx of one x, both of shape (dimension,)."""
        return -jax.grad(self.energy, argnums=1)(self.params, x)

    def log_density(self, x: Array) -> Array:
        """Returns the normalised log p(x) = -E(x) - log Z, shape (), of one x of shape (dimension,)."""
        return -self.energy(self.params, x) - self.log_partition(self.params)


def _array(value: Any) -> Array:
    return jnp.asarray(value, dtype=float)  # float: the default width, float32 unless x64 is enabled


def _check_shape(name: str, value: Any, shape: tuple[int | None, ...], accepted: str) -> None:
    found = np.shape(value)
    if len(found) != len(shape) or any(s is not None and s != f for s, f in zip(shape, found, strict=True)):
        raise ValueError(f"{name} has shape {found}: {accepted} is needed.")


def _scalar(name: str, value: Any) -> Array:
    _check_shape(name, value, (), "a scalar, shape (),")
    return _array(value)


def _compiled_sampler(draw: Callable[..., Array], static: tuple[str, ...] = ()) -> Callable[..., Array]:
    compiled = jax.jit(draw, static_argnames=("num_samples", *static))

    @functools.wraps(draw)
    def sample(rng_key: Array, params: Params, num_samples: int, **dimension: int) -> Array:
        checks.positive_integer("num_samples", num_samples)
        return compiled(rng_key, params, num_samples=num_samples, **dimension)

    return sample


def _rejection_sample(
    rng_key: Array, propose: Callable[[Array], tuple[Array, Array]], num_samples: int
) -> Array:
    """Draws scalars exactly; ``propose(rng_key) -> (candidate, log of its acceptance probability)``."""

    def retry(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rng_key, _, _ = carry
        rng_key, proposal_key, accept_key = jax.random.split(rng_key, 3)
        candidate, log_acceptance = propose(proposal_key)
        return rng_key, candidate, jnp.log(jax.random.uniform(accept_key)) < log_acceptance

    def first_accepted(rng_key: Array) -> Array:
        nothing_yet = (rng_key, jnp.zeros(()), jnp.zeros((), bool))
        return jax.lax.while_loop(lambda carry: ~carry[2], retry, nothing_yet)[1]

    return jax.vmap(first_accepted)(jax.random.split(rng_key, num_samples))


# Gaussian


class GaussianParams(NamedTuple):
    """``mean`` (d,) and ``precision`` (d, d), the inverse covariance: the energy then costs one product."""

    mean: Array
    precision: Array


def _gaussian_energy(params: GaussianParams, x: Array) -> Array:
    _check_shape("x", x, np.shape(params.mean), f"{np.shape(params.mean)}")
    offset = x - params.mean
    return 0.5 * offset @ params.precision @ offset


def _gaussian_log_partition(params: GaussianParams) -> Array:
    return 0.5 * (params.mean.size * _LOG_TWO_PI - jnp.linalg.slogdet(params.precision)[1])


@_compiled_sampler
def _gaussian_sample(rng_key: Array, params: GaussianParams, num_samples: int) -> Array:
    normal = jax.random.normal(rng_key, (params.mean.size, num_samples))
    cholesky = jnp.linalg.cholesky(
        params.precision
    )  # precision = L L', so x = mean + L'^-1 n has the covariance
    return params.mean[None, :] + jax.scipy.linalg.solve_triangular(cholesky.T, normal, lower=False).T


def _gaussian_moments(params: GaussianParams) -> tuple[Array, Array]:
    return params.mean, jnp.linalg.inv(params.precision)


def gaussian(mean: Any, covariance: Any) -> AnalyticTarget:
    """Returns the multivariate normal.

    E(x) = 1/2 (x - mean)' covariance^-1 (x - mean), log Z = d/2 log(2 pi) + 1/2 log det covariance.

    Args:
      mean: shape (d,).
      covariance: shape (d, d), symmetric positive definite.

    Returns:
      The target; its params are ``(mean, precision)``, precision = covariance^-1.

    Raises:
      ValueError: if the shapes disagree, or the covariance is not symmetric positive definite.

    Example:
      >>> target = gaussian([0.0, 0.0], [[2.0, 0.0], [0.0, 2.0]])
      >>> round(float(target.log_partition(target.params)), 3)
      2.531
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    _check_shape("mean", mean, (None,), "(d,)")
    _check_shape("covariance", covariance, (mean.size, mean.size), f"({mean.size}, {mean.size}), by mean,")
    checks.finite("mean", mean)
    checks.finite("covariance", covariance)
    smallest = np.linalg.eigvalsh(covariance).min()
    if not np.allclose(covariance, covariance.T) or smallest <= 0:
        raise ValueError(
            f"covariance={covariance!r}: covariance must be symmetric positive definite; "
            f"its smallest eigenvalue is {smallest:.3g}."
        )
    params = GaussianParams(_array(mean), _array(np.linalg.inv(covariance)))
    return AnalyticTarget(
        _gaussian_energy, params, _gaussian_log_partition, _gaussian_sample, _gaussian_moments, mean.size
    )


# Mixture of Gaussians


class GaussianMixtureParams(NamedTuple):
    """``log_weights`` (K,), normalised or not, ``means`` (K, d) and standard deviations ``scales`` (K,)."""

    log_weights: Array
    means: Array
    scales: Array


def _mixture_energy(params: GaussianMixtureParams, x: Array) -> Array:
    dimension = params.means.shape[1]
    _check_shape("x", x, (dimension,), f"({dimension},)")
    squared_distances = jnp.sum((x[None, :] - params.means) ** 2, axis=1)
    log_normal = -0.5 * squared_distances / params.scales**2 - dimension * (
        jnp.log(params.scales) + 0.5 * _LOG_TWO_PI
    )
    return -jax.nn.logsumexp(params.log_weights + log_normal)


def _mixture_log_partition(params: GaussianMixtureParams) -> Array:
    return jax.nn.logsumexp(params.log_weights)


@_compiled_sampler
def _mixture_sample(rng_key: Array, params: GaussianMixtureParams, num_samples: int) -> Array:
    component_key, normal_key = jax.random.split(rng_key)
    component = jax.random.categorical(component_key, params.log_weights, shape=(num_samples,))
    normal = jax.random.normal(normal_key, (num_samples, params.means.shape[1]))
    return params.means[component] + params.scales[component][:, None] * normal


def _mixture_moments(params: GaussianMixtureParams) -> tuple[Array, Array]:
    weights = jax.nn.softmax(params.log_weights)
    mean = weights @ params.means
    offsets = params.means - mean[None, :]
    between = (weights[:, None] * offsets).T @ offsets
    return mean, between + jnp.eye(mean.size) * jnp.sum(weights * params.scales**2)


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
      ValueError: if the shapes disagree, or a weight or scale is not positive.

    Example:
      >>> target = gaussian_mixture([1.0, 2.0], [[0.0], [3.0]], [1.0, 0.5])
      >>> mean, covariance = target.moments(target.params)
      >>> round(float(mean[0]), 3), round(float(covariance[0, 0]), 3)
      (2.0, 2.5)
    """
    weights, means, scales = (np.asarray(value, np.float64) for value in (weights, means, scales))
    _check_shape("means", means, (None, None), "(K, d)")
    _check_shape("weights", weights, means.shape[:1], f"{means.shape[:1]}, one for each mean,")
    _check_shape("scales", scales, means.shape[:1], f"{means.shape[:1]}, one for each mean,")
    checks.finite("means", means)
    checks.positive("weights", weights)
    checks.positive("scales", scales)
    params = GaussianMixtureParams(_array(np.log(weights)), _array(means), _array(scales))
    return AnalyticTarget(
        _mixture_energy, params, _mixture_log_partition, _mixture_sample, _mixture_moments, means.shape[1]
    )


# Ring


class RingParams(NamedTuple):
    """``radius`` and ``width`` of the ring, each of shape ()."""

    radius: Array
    width: Array


def _ring_energy(params: RingParams, x: Array) -> Array:
    _check_shape("x", x, (2,), "(2,)")
    squared = jnp.sum(x**2)
    # The gradient of the norm is NaN at the origin; there, at the tip of a cone, it is taken to be 0.
    distance = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return 0.5 * ((distance - params.radius) / params.width) ** 2


def _ring_radial_moments(params: RingParams) -> tuple[Array, Array]:
    """Integrals J_1 and J_3 of J_n = int_0^inf r^n exp(-(r - R)^2 / 2 w^2) dr.

    By parts, J_1 = R J_0 + w^2 exp(-R^2 / 2 w^2) and J_{n+1} = R J_n + n w^2 J_{n-1} for n >= 1.
    """
    radius, variance = params.radius, params.width**2
    first = params.width * math.sqrt(2 * math.pi) * norm.cdf(radius / params.width)
    second = radius * first + variance * jnp.exp(-0.5 * radius**2 / variance)
    third = radius * second + variance * first
    return second, radius * third + 2 * variance * second


def _ring_log_partition(params: RingParams) -> Array:
    return _LOG_TWO_PI + jnp.log(_ring_radial_moments(params)[0])


@_compiled_sampler
def _ring_sample(rng_key: Array, params: RingParams, num_samples: int) -> Array:
    """Exact rejection from a normal at the mode of the radial density r exp(-(r - R)^2 / 2 w^2).

    The mode is m = (R + sqrt(R^2 + 4 w^2)) / 2. Since log r <= log m + r/m - 1, the density lies below a
    multiple of N(r; m, w^2), and a proposal is accepted with probability (r/m) e^(1 - r/m): 0.65 of them at
    least (at R = 0).
    """
    radial_key, angle_key = jax.random.split(rng_key)
    mode = 0.5 * (params.radius + jnp.sqrt(params.radius**2 + 4 * params.width**2))

    def propose(rng_key: Array) -> tuple[Array, Array]:
        ratio = 1.0 + params.width / mode * jax.random.normal(rng_key)
        return mode * ratio, jnp.where(ratio > 0, jnp.log(jnp.abs(ratio)) + 1.0 - ratio, -jnp.inf)

    distance = _rejection_sample(radial_key, propose, num_samples)
    angle = jax.random.uniform(angle_key, (num_samples,), maxval=2 * math.pi)
    return distance[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def _ring_moments(params: RingParams) -> tuple[Array, Array]:
    first, third = _ring_radial_moments(params)
    return jnp.zeros(2), jnp.eye(2) * (0.5 * third / first)


def ring(radius: float = 2.0, width: float = 0.3) -> AnalyticTarget:
    """Returns a ring in the plane.

    E(x) = (|x| - R)^2 / (2 w^2),
    Z = 2 pi [w^2 exp(-R^2 / 2 w^2) + R w sqrt(2 pi) (1 + erf(R / (w sqrt 2))) / 2].

    Args:
      radius: R, at least 0.
      width: w, positive.

    Returns:
      The target, of dimension 2; its params are ``(radius, width)``. At the origin, where the energy has the
      tip of a cone, the score is given as 0.

    Raises:
      ValueError: if the radius is negative or the width is not positive.

    Example:
      >>> target = ring(radius=0.0, width=1.0)  # the standard normal
      >>> round(float(target.log_partition(target.params)), 3)
      1.838
    """
    checks.non_negative("radius", radius)
    checks.positive("width", width)
    params = RingParams(_scalar("radius", radius), _scalar("width", width))
    return AnalyticTarget(_ring_energy, params, _ring_log_partition, _ring_sample, _ring_moments, 2)


# Funnel


class FunnelParams(NamedTuple):
    """``scale``, shape (): the standard deviation of the funnel's first coordinate."""

    scale: Array


def _funnel_energy(params: FunnelParams, x: Array) -> Array:
    _check_shape("x", x, (None,), "(dimension,)")
    log_variance, others = x[0], x[1:]
    neck = 0.5 * jnp.sum(others**2) * jnp.exp(-log_variance) + 0.5 * others.size * log_variance
    return 0.5 * (log_variance / params.scale) ** 2 + neck


def _funnel_log_partition(dimension: int, params: FunnelParams) -> Array:
    return 0.5 * dimension * _LOG_TWO_PI + jnp.log(params.scale)


@functools.partial(_compiled_sampler, static=("dimension",))
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
    checks.positive_integer("dimension", dimension)
    if dimension < 2:
        raise ValueError(f"dimension={dimension}: dimension must be at least 2.")
    checks.positive("scale", scale)
    return AnalyticTarget(
        _funnel_energy,
        FunnelParams(_scalar("scale", scale)),
        functools.partial(_funnel_log_partition, dimension),
        functools.partial(_funnel_sample, dimension=dimension),
        functools.partial(_funnel_moments, dimension),
        dimension,
    )


# Double well


class DoubleWellParams(NamedTuple):
    """``barrier``, ``separation`` and ``tilt``, each of shape ()."""

    barrier: Array
    separation: Array
    tilt: Array


def _double_well_energy(params: DoubleWellParams, x: Array) -> Array:
    _check_shape("x", x, (None,), "(dimension,)")
    u = 2 * x[0] / params.separation
    well = params.barrier * (u**2 - 1) ** 2 - 0.5 * params.tilt * u
    return well + 0.5 * jnp.sum(x[1:] ** 2)


def _double_well_quadrature(params: DoubleWellParams) -> tuple[Array, Array]:
    """Nodes of x_0 and the log of their weight in integral exp(-E) dx_0, by the trapezoidal rule.

    On an analytic integrand that has died away at both ends the rule converges exponentially; 2048 nodes
    resolve wells of barrier up to 10^4 to float32. The ends -+L are where E >= 40: with w = L^2 - 1 and L <=
    1 + w, it is enough that barrier w^2 - |tilt|/2 (1 + w) = 40.
    """
    barrier, slope = jax.lax.stop_gradient((params.barrier, 0.5 * jnp.abs(params.tilt)))
    w = (slope + jnp.sqrt(slope**2 + 4 * barrier * (40 + slope))) / (2 * barrier)
    half_width = 0.5 * params.separation * jnp.sqrt(1 + w)
    nodes = half_width * jnp.linspace(-1.0, 1.0, 2048)
    spacing = 2 * half_width / 2047  # not nodes[1] - nodes[0], which cancels to four digits in float32
    energies = jax.vmap(_double_well_energy, (None, 0))(params, nodes[:, None])
    return nodes, jnp.log(spacing) - energies


def _double_well_log_partition(dimension: int, params: DoubleWellParams) -> Array:
    return jax.nn.logsumexp(_double_well_quadrature(params)[1]) + 0.5 * (dimension - 1) * _LOG_TWO_PI


def _double_well_moments(dimension: int, params: DoubleWellParams) -> tuple[Array, Array]:
    nodes, log_weights = _double_well_quadrature(params)
    probabilities = jax.nn.softmax(log_weights)
    mean = probabilities @ nodes
    variance = probabilities @ (nodes - mean) ** 2
    first = jnp.arange(dimension) == 0
    return jnp.where(first, mean, 0.0), jnp.diag(jnp.where(first, variance, 1.0))


@functools.partial(_compiled_sampler, static=("dimension",))
def _double_well_sample(
    rng_key: Array, params: DoubleWellParams, num_samples: int, *, dimension: int
) -> Array:
    """Exact rejection from two normals, one a well.

    For v >= 0 and any m, (v^2 - 1)^2 = (m^2 - 1)^2 + 4 m (m^2 - 1) (v - m) + (v - m)^2 (c + v (v + 2 m)), c =
    3 m^2 - 2, of which the last, cubic and quartic part is not negative. Dropped, it leaves a normal
    envelope. In the lower well m is the mode, 4 barrier m (m^2 - 1) = |tilt| / 2; in the upper one m = 1, and
    the tilt is dropped as well. The accepted fraction is at least 0.33 for barrier >= 0.1 at any tilt, and
    falls as barrier^(1/4) below.
    """
    well_key, other_key = jax.random.split(rng_key)
    barrier, slope = params.barrier, 0.5 * jnp.abs(params.tilt)
    cubic = 0.25 * slope / barrier

    def newton(_: int, m: Array) -> Array:
        return m - (m**3 - m - cubic) / (3 * m**2 - 1)

    # m^3 - m = cubic. Newton's method, from above the root of a convex increasing function, descends onto it.
    mode = jax.lax.fori_loop(0, 20, newton, 1.0 + jnp.cbrt(cubic))
    log_mass_ratio = slope * mode - barrier * (mode**2 - 1) ** 2 - 0.5 * jnp.log(3 * mode**2 - 2)

    def propose(rng_key: Array) -> tuple[Array, Array]:
        side_key, normal_key = jax.random.split(rng_key)
        lower = jax.random.bernoulli(side_key, jax.nn.sigmoid(log_mass_ratio))
        m = jnp.where(lower, mode, 1.0)
        offset = jax.random.normal(normal_key) / jnp.sqrt(2 * barrier * (3 * m**2 - 2))
        v = m + offset
        dropped = barrier * offset**2 * v * (v + 2 * m) + jnp.where(lower, 0.0, slope * v)
        return jnp.where(lower, v, -v), jnp.where(v > 0, -dropped, -jnp.inf)

    toward_tilt = jnp.where(params.tilt < 0, -1.0, 1.0)
    u = toward_tilt * _rejection_sample(well_key, propose, num_samples)
    others = jax.random.normal(other_key, (num_samples, dimension - 1))
    return jnp.concatenate([0.5 * params.separation * u[:, None], others], axis=1)


def double_well(
    barrier: float = 2.0, separation: float = 2.0, tilt: float = 0.0, dimension: int = 1
) -> AnalyticTarget:
    """Returns two wells along the first coordinate, and standard normals along the others.

    With u = 2 x_0 / separation, E(x) = barrier (u^2 - 1)^2 - tilt u / 2 + sum_{i >= 1} x_i^2 / 2.

    Untilted, the wells lie at -+separation/2 with energy 0 and the top between them, at 0, has energy
    ``barrier``. The tilt is E(-separation/2) - E(separation/2): above 0 it favours the right-hand well, and
    skews the density. log Z and the moments are one-dimensional quadratures, exact to float32 and
    differentiable.

    Args:
      barrier: height of the untilted barrier, in units of kT; positive.
      separation: distance between the untilted wells, positive.
      tilt: difference of energy between the wells; any finite number.
      dimension: d, at least 1.

    Returns:
      The target; its params are ``(barrier, separation, tilt)``.

    Raises:
      ValueError: if the barrier or separation is not positive, the tilt not finite, or the dimension not an
        integer of at least 1.

    Example:
      >>> target = double_well(barrier=3.0, separation=2.0, tilt=1.0)
      >>> import jax.numpy as jnp
      >>> float(target.target(jnp.array([-1.0])) - target.target(jnp.array([1.0])))
      1.0
    """
    checks.positive("barrier", barrier)
    checks.positive("separation", separation)
    checks.finite("tilt", tilt)
    checks.positive_integer("dimension", dimension)
    return AnalyticTarget(
        _double_well_energy,
        DoubleWellParams(
            _scalar("barrier", barrier), _scalar("separation", separation), _scalar("tilt", tilt)
        ),
        functools.partial(_double_well_log_partition, dimension),
        functools.partial(_double_well_sample, dimension=dimension),
        functools.partial(_double_well_moments, dimension),
        dimension,
    )


# Skewed


class SkewedParams(NamedTuple):
    """``shape``, ``shear`` and ``width``, each of shape ()."""

    shape: Array
    shear: Array
    width: Array


def _skewed_energy(params: SkewedParams, x: Array) -> Array:
    _check_shape("x", x, (2,), "(2,)")
    bend = (x[1] - params.shear * x[0] ** 2) / params.width
    return jnp.exp(x[0]) - params.shape * x[0] + 0.5 * bend**2


def _skewed_log_partition(params: SkewedParams) -> Array:
    return gammaln(params.shape) + jnp.log(params.width) + 0.5 * _LOG_TWO_PI


@_compiled_sampler
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
    """Returns a skewed banana: the log of a gamma variable, sheared, with no symmetry at all.

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
    checks.finite("shear", shear)
    checks.positive("width", width)
    params = SkewedParams(_scalar("shape", shape), _scalar("shear", shear), _scalar("width", width))
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
}
"""Every target by name with numbers that a sampler can manage, so that one table parametrises a test."""
