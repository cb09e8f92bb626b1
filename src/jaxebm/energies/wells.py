"""Densities that are hard to explore: a ring, and two wells with a barrier between them.

Energy, log Z, score, moments and exact sampler are as in ``jaxebm.energies.analytic``, which exports both. A
tilted ``double_well`` has no symmetry, so a wrong sign shows in its mean.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from jaxebm import checks
from jaxebm.energies.target import (
    LOG_TWO_PI,
    AnalyticTarget,
    check_shape,
    compiled_sampler,
    norm,
    scalar,
)
from jaxebm.types import Array

__all__ = ["double_well", "ring"]


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


# Ring


class RingParams(NamedTuple):
    """``radius`` and ``width`` of the ring, each of shape ()."""

    radius: Array
    width: Array


def _ring_energy(params: RingParams, x: Array) -> Array:
    check_shape("x", x, (2,), "(2,)")
    # At the origin, the tip of a cone, the gradient of the norm is taken to be 0.
    return 0.5 * ((norm(x) - params.radius) / params.width) ** 2


def _ring_radial_moments(params: RingParams) -> tuple[Array, Array]:
    """Integrals J_1 and J_3 of J_n = int_0^inf r^n exp(-(r - R)^2 / 2 w^2) dr.

    By parts, J_1 = R J_0 + w^2 exp(-R^2 / 2 w^2) and J_{n+1} = R J_n + n w^2 J_{n-1} for n >= 1.
    """
    radius, variance = params.radius, params.width**2
    first = params.width * math.sqrt(2 * math.pi) * ndtr(radius / params.width)
    second = radius * first + variance * jnp.exp(-0.5 * radius**2 / variance)
    third = radius * second + variance * first
    return second, radius * third + 2 * variance * second


def _ring_log_partition(params: RingParams) -> Array:
    return LOG_TWO_PI + jnp.log(_ring_radial_moments(params)[0])


@compiled_sampler
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
    params = RingParams(scalar("radius", radius), scalar("width", width))
    return AnalyticTarget(_ring_energy, params, _ring_log_partition, _ring_sample, _ring_moments, 2)


# Double well


class DoubleWellParams(NamedTuple):
    """``barrier``, ``separation`` and ``tilt``, each of shape ()."""

    barrier: Array
    separation: Array
    tilt: Array


def _double_well_energy(params: DoubleWellParams, x: Array) -> Array:
    check_shape("x", x, (None,), "(dimension,)")
    u = 2 * x[0] / params.separation
    well = params.barrier * (u**2 - 1) ** 2 - 0.5 * params.tilt * u
    return well + 0.5 * jnp.sum(x[1:] ** 2)


def _double_well_quadrature(params: DoubleWellParams) -> tuple[Array, Array]:
    """Nodes of x_0 and the log of their weight in integral exp(-E) dx_0, by the trapezoidal rule.

    On an analytic integrand that is negligible at both ends the rule converges exponentially; 2048 nodes
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
    return jax.nn.logsumexp(_double_well_quadrature(params)[1]) + 0.5 * (dimension - 1) * LOG_TWO_PI


def _double_well_moments(dimension: int, params: DoubleWellParams) -> tuple[Array, Array]:
    nodes, log_weights = _double_well_quadrature(params)
    probabilities = jax.nn.softmax(log_weights)
    mean = probabilities @ nodes
    variance = probabilities @ (nodes - mean) ** 2
    first = jnp.arange(dimension) == 0
    return jnp.where(first, mean, 0.0), jnp.diag(jnp.where(first, variance, 1.0))


@functools.partial(compiled_sampler, static=("dimension",))
def _double_well_sample(
    rng_key: Array, params: DoubleWellParams, num_samples: int, *, dimension: int
) -> Array:
    """Exact rejection from two normals, one per well.

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
    checks.positive_integer("dimension", dimension)
    return AnalyticTarget(
        _double_well_energy,
        DoubleWellParams(scalar("barrier", barrier), scalar("separation", separation), scalar("tilt", tilt)),
        functools.partial(_double_well_log_partition, dimension),
        functools.partial(_double_well_sample, dimension=dimension),
        functools.partial(_double_well_moments, dimension),
        dimension,
    )
