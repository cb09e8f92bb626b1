"""Six densities in the plane with exact log-density and exact samples, against which models can be measured.

They are those of the FFJORD paper, which only defines samplers; here each also has a normalised density in
closed form. With log p known, KL(p || q) of a trained q needs no estimate of the entropy, and samplers can be
tested against exact samples.

Reference:
  Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud, "FFJORD: Free-form continuous dynamics for scalable
  reversible generative models", ICLR 2019, figure 2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, logsumexp

from jaxebm import checks
from jaxebm.types import Array

__all__ = [
    "TOY_DENSITIES",
    "ToyDensity",
    "checkerboard",
    "eight_gaussians",
    "pinwheel",
    "rings",
    "spiral",
    "two_moons",
]

LogDensity = Callable[[Array], Array]
Sample = Callable[[Array, int], Array]


@dataclass(frozen=True, eq=False)
class ToyDensity:
    """A density p in the plane that can be evaluated and sampled exactly.

    ``lambda params, x: -density.log_density(x)`` is its energy, with log Z = 0.

    Attributes:
      name: Its key in ``TOY_DENSITIES``.
      log_density: x (2,) -> log p(x), shape (); ``jax.vmap`` it over a batch.
      sample: (rng_key, num_samples) -> independent draws (num_samples, 2); ``num_samples`` is static.
      bounds: (low, high) of a square window that holds all but at most 1e-6 of the mass.

    Raises:
      TypeError: If one of the first three is of another type.
      ValueError: If the bounds are not low < high.

    Example:
      >>> sample = lambda rng_key, num_samples: jax.random.normal(rng_key, (num_samples, 2))
      >>> log_density = lambda x: -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi)
      >>> ToyDensity("normal", log_density, sample, (-6.0, 6.0)).bounds
      (-6.0, 6.0)
    """

    name: str
    log_density: LogDensity
    sample: Sample
    bounds: tuple[float, float]

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        checks.function("log_density", self.log_density, "x")
        checks.function("sample", self.sample, "rng_key", "num_samples")
        checks.interval("bounds", self.bounds)
        checks.finite("bounds", self.bounds)


def two_moons() -> ToyDensity:
    """Two interleaved half circles: 64 Gaussians along the arcs.

    p(x) = mean_k N(x; m_k, 0.2^2 I), with m_k = 2 (cos t, sin t) - (1, 0.2) on one arc and
    m_k = 2 (1 - cos t, 0.5 - sin t) - (1, 0.2) on the other, t at 32 midpoints of [0, pi].

    Returns:
      The density.

    Example:
      >>> two_moons().sample(jax.random.key(0), 5).shape
      (5, 2)

    Reference:
      Pedregosa et al., "Scikit-learn", JMLR 12, 2011: ``make_moons(noise=0.1)``, doubled as in FFJORD.
    """
    angles = np.pi * (np.arange(32) + 0.5) / 32
    outer = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    inner = np.stack([1.0 - np.cos(angles), 0.5 - np.sin(angles)], axis=1)
    means = 2.0 * np.concatenate([outer, inner]) - np.array([[1.0, 0.2]])
    return _gaussian_mixture("two_moons", means, scale=0.2, bounds=(-4.5, 4.5))


def spiral() -> ToyDensity:
    """Two spiral arms, symmetric about the origin: 64 Gaussians along each.

    p(x) = mean_k N(x; m_k, 0.15^2 I), m_k = +- t (-cos t, sin t) / 3, with t = 3 pi sqrt(u) at 64 midpoints u
    of [0, 1], which spaces the means about evenly along the arm.

    Returns:
      The density.

    Example:
      >>> spiral().sample(jax.random.key(0), 5).shape
      (5, 2)

    Reference:
      Grathwohl et al. 2019, the authors' code: ``2spirals``, its uniform jitter replaced by Gaussian noise.
    """
    angles = 3.0 * np.pi * np.sqrt((np.arange(64) + 0.5) / 64)
    arm = (angles / 3.0)[:, None] * np.stack([-np.cos(angles), np.sin(angles)], axis=1)
    return _gaussian_mixture("spiral", np.concatenate([arm, -arm]), scale=0.15, bounds=(-4.0, 4.0))


def eight_gaussians() -> ToyDensity:
    """Eight Gaussians on a circle of radius 2 sqrt(2).

    p(x) = mean_k N(x; 2 sqrt(2) (cos(k pi / 4), sin(k pi / 4)), I / 8).

    Returns:
      The density.

    Example:
      >>> eight_gaussians().sample(jax.random.key(0), 5).shape
      (5, 2)

    Reference:
      Grathwohl et al. 2019, the authors' code: ``8gaussians``.
    """
    angles = np.pi * np.arange(8) / 4
    means = np.sqrt(8.0) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _gaussian_mixture("eight_gaussians", means, scale=np.sqrt(1 / 8), bounds=(-5.0, 5.0))


def rings() -> ToyDensity:
    """Four thin concentric rings: uniform points on circles plus Gaussian noise.

    With R_k in {0.75, 1.5, 2.25, 3}, s = 0.08 and r = |x|, the mean over the angle a of
    N(x; R_k (cos a, sin a), s^2 I) is a Bessel function, so that the radius has a Rice distribution:

      p(x) = mean_k exp(-(r - R_k)^2 / (2 s^2)) I0e(r R_k / s^2) / (2 pi s^2),   I0e(z) = exp(-z) I0(z).

    Returns:
      The density.

    Example:
      >>> rings().sample(jax.random.key(0), 5).shape
      (5, 2)

    Reference:
      Grathwohl et al. 2019, the authors' code: ``rings``.
      Rice, "Mathematical analysis of random noise", Bell System Technical Journal 24, 1945, section 3.10.
    """
    radii = np.array([0.75, 1.5, 2.25, 3.0], np.float32)
    scale = 0.08

    def log_density(x: Array) -> Array:
        # The gradient of |x| at the origin is NaN; that of this expression is 0, as it is for p.
        squared = jnp.sum(x**2)
        near = squared < 1e30
        # Beyond, where squares overflow: |x| along its own direction.
        largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(x)), 1.0))
        unit = x / largest
        along = jnp.sum(x * jax.lax.stop_gradient(unit / jnp.sqrt(jnp.maximum(jnp.sum(unit**2), 1.0))))
        radius = jnp.where(near, jnp.sqrt(jnp.where(near, squared, 1.0) + 1e-12), along)
        log_ring = -((radius - radii) ** 2) / (2 * scale**2) + jnp.log(i0e(radius * radii / scale**2))
        return _log_sum_exp(log_ring) - jnp.log(len(radii) * 2 * jnp.pi * scale**2)

    def sample(rng_key: Array, num_samples: int) -> Array:
        ring_key, angle_key, noise_key = jax.random.split(rng_key, 3)
        radius = jax.random.choice(ring_key, jnp.asarray(radii), (num_samples, 1))
        angle = jax.random.uniform(angle_key, (num_samples,), maxval=2 * jnp.pi)
        noise = jax.random.normal(noise_key, (num_samples, 2))
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) + scale * noise

    return _checked("rings", log_density, sample, bounds=(-4.0, 4.0))


def pinwheel() -> ToyDensity:
    """Pinwheel with five blades: a Gaussian mixture rotated by an angle that grows with the radius.

    x = R(0.15 |z|^2) z, z ~ mean_k N(Q_k (1.5, 0), Q_k diag(0.45^2, 0.15^2) Q_k^T), where R(a) is the
    rotation by a and Q_k = R(2 pi k / 5). The map keeps |z|, so its inverse is R(-0.15 |x|^2) x, and its
    Jacobian has determinant 1: p(x) is the mixture's density at R(-0.15 |x|^2) x.

    Returns:
      The density.

    Example:
      >>> pinwheel().sample(jax.random.key(0), 5).shape
      (5, 2)

    Reference:
      Johnson, Duvenaud, Wiltschko, Datta and Adams, "Composing graphical models with neural networks for
      structured representations and fast inference", NeurIPS 2016, figure 1. There the angle grows with the
      position along the blade, which does not preserve volume; here with |z|^2, which does.
    """
    blades = 2 * np.pi * np.arange(5) / 5
    scales = np.array([0.45, 0.15], np.float32)
    length, winding = 1.5, 0.15

    def log_density(x: Array) -> Array:
        near = jnp.sum(x**2) < 1e24
        x_near = jnp.where(near, x, 0.0)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        z = _rotate(x_near, -winding * jnp.sum(x_near**2))
        along_blade: Array = jax.vmap(_rotate, (None, 0))(z, jnp.asarray(-blades, dtype))
        standardised = (along_blade - jnp.array([[length, 0.0]], dtype)) / scales[None, :]
        log_blade = -0.5 * jnp.sum(standardised**2, axis=1)
        # Beyond, float32 holds no digit of the angle: the length of the blades alone.
        log_blades = jnp.where(near, logsumexp(log_blade), -0.5 * jnp.sum((x / scales[0]) ** 2))
        return log_blades - jnp.log(len(blades) * 2 * jnp.pi * scales.prod())

    def sample(rng_key: Array, num_samples: int) -> Array:
        blade_key, noise_key = jax.random.split(rng_key)
        angle = jax.random.choice(blade_key, jnp.asarray(blades), (num_samples,))
        noise = jax.random.normal(noise_key, (num_samples, 2))
        z = jnp.asarray(scales)[None, :] * noise + jnp.array([[length, 0.0]])
        # Both rotations commute and keep the radius: one rotation by the sum of the angles.
        return jax.vmap(_rotate)(z, angle + winding * jnp.sum(z**2, axis=1))

    return _checked("pinwheel", log_density, sample, bounds=(-4.0, 4.0))


def checkerboard() -> ToyDensity:
    """Uniform on the eight squares of one colour of a 4 x 4 board on [-4, 4)^2.

    p(x) = 1/32 where floor(x_1 / 2) + floor(x_2 / 2) is even, 0 elsewhere: log p is -log 32 or minus
    infinity, and its gradient is 0.

    Returns:
      The density.

    Example:
      >>> float(checkerboard().log_density(jnp.array([1.0, 3.0])))
      -inf

    Reference:
      Grathwohl et al. 2019, the authors' code: ``checkerboard``.
    """

    def log_density(x: Array) -> Array:
        on_board = jnp.all((x >= -4.0) & (x < 4.0))
        in_square = jnp.sum(jnp.floor(x / 2)) % 2 == 0
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.where(on_board & in_square, -jnp.log(32.0), -jnp.inf).astype(dtype)

    def sample(rng_key: Array, num_samples: int) -> Array:
        square_key, place_key = jax.random.split(rng_key)
        square = jax.random.randint(square_key, (num_samples,), 0, 8)
        column, half_row = square // 2, square % 2
        corner = 2.0 * jnp.stack([column - 2, 2 * half_row + column % 2 - 2], axis=1)
        # In this order the sum is exact in floating point, so rounding moves no point into the next square.
        return corner + 2.0 * jax.random.uniform(place_key, (num_samples, 2))

    return _checked("checkerboard", log_density, sample, bounds=(-4.0, 4.0))


def _log_sum_exp(terms: Array) -> Array:
    """log sum_i exp(terms_i); where all are -infinity, their gradients count alike instead of being NaN."""
    nowhere = jnp.isneginf(jnp.max(terms))
    return jnp.where(nowhere, jnp.mean(terms), logsumexp(jnp.where(nowhere, 0.0, terms)))


def _rotate(x: Array, angle: Array) -> Array:
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cosine * x[0] - sine * x[1], sine * x[0] + cosine * x[1]])


def _gaussian_mixture(name: str, means: np.ndarray, scale: float, bounds: tuple[float, float]) -> ToyDensity:
    """Returns the mixture of equally likely N(m_k, scale^2 I), means (K, 2)."""
    means = means.astype(np.float32)

    def log_density(x: Array) -> Array:
        log_components = -jnp.sum((x[None, :] - means) ** 2, axis=1) / (2 * scale**2)
        return _log_sum_exp(log_components) - jnp.log(len(means) * 2 * jnp.pi * scale**2)

    def sample(rng_key: Array, num_samples: int) -> Array:
        component_key, noise_key = jax.random.split(rng_key)
        component = jax.random.randint(component_key, (num_samples,), 0, len(means))
        return jnp.asarray(means)[component] + scale * jax.random.normal(noise_key, (num_samples, 2))

    return _checked(name, log_density, sample, bounds)


def _checked(name: str, log_density: LogDensity, sample: Sample, bounds: tuple[float, float]) -> ToyDensity:
    """Wraps both functions in checks of their arguments."""

    def checked_log_density(x: Array) -> Array:
        if jnp.shape(x) != (2,):
            raise ValueError(
                f"x has shape {jnp.shape(x)}: log_density takes one point (2,); jax.vmap it over a batch."
            )
        checks.array("x", x)
        x = jnp.asarray(x)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        return log_density(x).astype(jnp.promote_types(x.dtype, jnp.float32))

    def checked_sample(rng_key: Array, num_samples: int) -> Array:
        checks.rng_key("rng_key", rng_key)
        checks.positive_integer("num_samples", num_samples)
        return sample(rng_key, num_samples)

    return ToyDensity(name, checked_log_density, checked_sample, bounds)


TOY_DENSITIES: dict[str, ToyDensity] = {
    density.name: density
    for density in (two_moons(), pinwheel(), rings(), eight_gaussians(), checkerboard(), spiral())
}
"""The six densities by name."""
