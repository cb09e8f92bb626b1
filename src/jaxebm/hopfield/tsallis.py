r"""Entmax: from scores to probabilities, softmax to sparsemax, and the convex functions behind the maps.

Over the simplex, with Tsallis' negentropy Omega_alpha (the sum of p log p at alpha = 1),

    Omega_alpha(p) = (sum_i p_i^alpha - 1) / (alpha (alpha - 1)),
    p(z)   = argmax_p  p.z - Omega_alpha(p),
    Phi(z) =    max_p  p.z - Omega_alpha(p)  + Omega_alpha(uniform).

The optimum is p_i = exp_alpha(z_i + u), with the deformed exponential exp_alpha(v) = [1 + (alpha - 1) v]_+ ^
(1 / (alpha - 1)) and the one number u that makes the sum 1. It is softmax at alpha = 1 (u = -logsumexp z) and
the Euclidean projection onto the simplex at alpha = 2. Above alpha = 1, scores that fall more than
1 / (alpha - 1) behind the highest get probability exactly 0. Phi is convex and its gradient is p: as the
Lagrangian of an associative memory it gives the sparse modern Hopfield network.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["checked_alpha", "entmax", "entmax_conjugate", "uniform_negentropy"]

_MOST_STEPS = 100
"""Greatest number of Newton steps; ten are usually enough."""


def entmax(z: Array, alpha: float = 1.5, axis: int = -1) -> Array:
    r"""Probabilities of scores; alpha = 1 is softmax, and above it low scores get exactly 0.

    .. math:: p(z) = \arg\max_{p \in \Delta}\; p \cdot z - \Omega_\alpha(p)

    For alpha in (1, 2] by Newton's method, which converges to the solution from one side in a few steps
    and at alpha = 2 (sparsemax) ends exactly, each step solving for the support that it sees; above 2, where
    what is solved is no longer convex, by bisection. Both go down to neighbouring floats, and neither sorts.
    The Jacobian is exact: diag(s) - s s^T / sum(s), s_i = p_i^(2 - alpha) on the support and 0 elsewhere.

    Args:
      z: scores, ``(..., K, ...)``; entries of -inf are masked and get probability 0. A row that is -inf
        throughout has no answer and gives NaN.
      alpha: at least 1, a plain number: it chooses the program.
      axis: the axis of length K that is normalised.

    Returns:
      Probabilities in the shape and dtype of ``z``; narrow dtypes are computed in float32.

    Raises:
      TypeError: if alpha is traced or no number, or ``z`` no array of real numbers.
      ValueError: if alpha is below 1, or if ``z`` has no such axis or nothing along it.

    Example:
      >>> scores = jnp.array([-2.0, 0.0, 0.5])
      >>> for alpha in (1.0, 1.5, 2.0):
      ...     print(np.round(np.asarray(entmax(scores, alpha)), 3))
      [0.049 0.359 0.592]
      [0.    0.326 0.674]
      [0.   0.25 0.75]

    Reference:
      Martins & Astudillo 2016 (sparsemax, arXiv:1602.02068); Peters, Niculae & Martins 2019 (entmax,
      arXiv:1905.05702), algorithm 1 (bisection) and proposition 2. At alpha = 2 Newton's steps are those of
      Michelot 1986 (J. Optim. Theory Appl. 50, 195-200); Condat 2016 (Math. Program. 158, 575-585) compares
      them with sorting.
    """
    z, alpha = _checked(z, alpha, axis)
    wide = jnp.moveaxis(z, axis, -1).astype(jnp.promote_types(z.dtype, jnp.float32))
    return jnp.moveaxis(_entmax(wide, alpha), -1, axis).astype(z.dtype)


def entmax_conjugate(z: Array, alpha: float = 1.5, axis: int = -1) -> Array:
    r"""The convex function whose gradient is ``entmax``, zero at z = 0.

    .. math:: \Phi(z) = \max_{p \in \Delta}\; p \cdot z - \Omega_\alpha(p) \; + \Omega_\alpha(1/K, \dots, 1/K)

    At alpha = 1 it is logsumexp(z) - ln K. It lies between mean(z) and max(z), and Phi(z + c) = Phi(z) + c.

    Args:
      z: scores, ``(..., K, ...)``; entries of -inf cannot be chosen, but still count in K.
      alpha: at least 1, a plain number.
      axis: the axis of length K that is reduced.

    Returns:
      Phi, the shape of ``z`` without ``axis``, in the dtype of ``z``. Its gradient is ``entmax`` and its
      Hessian the Jacobian of ``entmax``, both exact.

    Raises:
      TypeError: if alpha is traced or no number, or ``z`` no array of real numbers.
      ValueError: if alpha is below 1, or if ``z`` has no such axis or nothing along it.

    Example:
      >>> scores = jnp.array([-2.0, 0.0, 0.5])
      >>> for alpha in (1.0, 1.5, 2.0):
      ...     print(np.round(np.asarray(entmax_conjugate(scores, alpha)), 3))
      -0.075
      0.121
      0.229

    Reference:
      Blondel, Martins & Niculae 2020, Learning with Fenchel-Young losses (arXiv:1901.02324), section 4.
    """
    z, alpha = _checked(z, alpha, axis)
    wide = jnp.moveaxis(z, axis, -1).astype(jnp.promote_types(z.dtype, jnp.float32))
    return _conjugate(wide, alpha).astype(z.dtype)


def uniform_negentropy(count: Array | float, alpha: float = 1.5) -> Array:
    r"""Tsallis' negentropy of the uniform distribution over ``count`` outcomes.

    .. math:: \Omega_\alpha(1/n, \dots, 1/n) = \frac{n^{1 - \alpha} - 1}{\alpha (\alpha - 1)}, \qquad
              \Omega_1 = -\ln n

    Args:
      count: n, at least 1, of any shape; it may be traced.
      alpha: at least 1, a plain number.

    Returns:
      Omega in the shape of ``count``.

    Raises:
      TypeError: if alpha is traced.
      ValueError: if alpha is below 1 or the count is not positive.

    Example:
      >>> print(uniform_negentropy(2, alpha=2.0))
      -0.25
    """
    alpha = checked_alpha(alpha)
    checks.array("count", count)
    checks.positive("count", count)
    if not checks.is_traced(count) and np.any(np.asarray(count) < 1):
        raise ValueError(f"count={count!r}: count must be at least 1.")
    return _deformed_log(-jnp.log(jnp.asarray(count, jnp.result_type(count, float))), alpha) / alpha


def checked_alpha(alpha: float) -> float:
    """Returns alpha as a plain number of at least 1, or raises."""
    if checks.is_traced(alpha):
        raise TypeError(
            f"alpha={alpha!r} is traced: alpha chooses the program, so it must be a plain number (give it to "
            f"jax.jit as static, or close over it)."
        )
    checks.array("alpha", alpha)
    checks.one_number("alpha", alpha)
    if not (math.isfinite(alpha) and alpha >= 1):
        raise ValueError(f"alpha={alpha!r}: alpha must be a finite number of at least 1.")
    return float(alpha)


def _checked(z: Array, alpha: float, axis: int) -> tuple[Array, float]:
    alpha = checked_alpha(alpha)
    checks.array("z", z)
    z = jnp.asarray(z)
    z = jnp.asarray(z, jnp.result_type(z, float))
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis={axis!r}: axis must be an integer.")
    if not -z.ndim <= axis < z.ndim or z.shape[axis] == 0:
        raise ValueError(
            f"axis={axis} of an array of shape {z.shape}: an axis with at least one entry is needed in z."
        )
    return z, alpha


def _deformed_log(log_p: Array, alpha: float) -> Array:
    """(p^(alpha - 1) - 1) / (alpha - 1), the inverse of exp_alpha; it goes to log p as alpha goes to 1."""
    return log_p if alpha == 1 else jnp.expm1((alpha - 1) * log_p) / (alpha - 1)


def _negentropy(p: Array, alpha: float) -> Array:
    # Because the p sum to 1, sum p^alpha - 1 = sum p (p^(alpha - 1) - 1): no cancellation near alpha = 1.
    log_p = jnp.log(jnp.where(p > 0, p, 1.0))
    return jnp.sum(p * _deformed_log(log_p, alpha), axis=-1) / alpha


# Entmax along the last axis. The derivatives are given, so nothing below them is ever differentiated.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entmax(z: Array, alpha: float) -> Array:
    z = z - jnp.max(z, axis=-1, keepdims=True)
    if alpha == 1:
        p = jnp.exp(z)
    else:
        # The highest probability is at most 1, so u <= 0 and scores at or below this bound get exactly 0.
        bound = -1 / (alpha - 1)
        within = z > bound
        solve = _newton if alpha <= 2 else _bisect
        p = jnp.where(within, solve(jnp.maximum(z, bound), alpha), 0.0)
    return p / jnp.sum(p, axis=-1, keepdims=True)


@_entmax.defjvp
def _entmax_jvp(alpha: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (z_dot,) = primals, tangents
    p = _entmax(z, alpha)
    support = p > 0
    # The inner where keeps the derivative of the power finite at p = 0, for those who differentiate again.
    slope = jnp.where(support, jnp.where(support, p, 1.0) ** (2 - alpha), 0.0)
    mean = jnp.sum(slope * z_dot, axis=-1, keepdims=True) / jnp.sum(slope, axis=-1, keepdims=True)
    return p, slope * (z_dot - mean)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _conjugate(z: Array, alpha: float) -> Array:
    highest = jnp.max(z, axis=-1, keepdims=True)
    p = _entmax(z, alpha)
    gap = jnp.sum(jnp.where(p > 0, p * (z - highest), 0.0), axis=-1)
    omega = _negentropy(p, alpha) - uniform_negentropy(z.shape[-1], alpha).astype(z.dtype)
    return jnp.squeeze(highest, -1) + (gap - omega)


@_conjugate.defjvp
def _conjugate_jvp(alpha: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (z_dot,) = primals, tangents
    # Danskin's theorem: the gradient of a maximum is the gradient at the maximiser, held still.
    return _conjugate(z, alpha), jnp.sum(_entmax(z, alpha) * z_dot, axis=-1)


# Solvers. Each takes scores whose highest is 0 and whose lowest are clipped to -1 / (alpha - 1), and finds
# the one number u of every row.


def _newton(z: Array, alpha: float) -> Array:
    """Newton's method for 1 < alpha <= 2, where u falls monotonically from 0 to the solution.

    With y_i = [1 + (alpha - 1) (z_i + u)]_+, so that p_i = y_i^r with r = 1 / (alpha - 1) >= 1, the equation
    is |y(u)|_r = 1. A norm of clipped lines is convex and rises with u, and at u = 0 it is at least 1 (the
    highest score alone gives 1): so no step from there overshoots. The norm is straighter than the sum of p,
    and steps on it are longer: if all scores are equal, or alpha is close to 1, the first one arrives.
    """

    def powers(u: Array) -> tuple[Array, Array]:
        """The p of this u, and dp / du = p^(2 - alpha)."""
        past = jnp.maximum((alpha - 1) * (z + u), -1.0)
        y = 1 + past
        if alpha == 2:
            slope = (y > 0).astype(z.dtype)
        elif alpha == 1.5:
            slope = y
        else:
            slope = jnp.exp(jnp.log1p(past) * ((2 - alpha) / (alpha - 1)))
        return y * slope, slope

    def fall(u: Array) -> Array:
        p, slope = powers(u)
        total, slopes = jnp.sum(p, axis=-1, keepdims=True), jnp.sum(slope, axis=-1, keepdims=True)
        return _deformed_log(jnp.log(total), alpha) * total ** (2 - alpha) / slopes

    def unsettled(state: tuple[Array, Array, Array]) -> Array:
        step, _, change = state
        return (step < _MOST_STEPS) & jnp.any(change > 2 * jnp.finfo(z.dtype).eps)

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, u, _ = state
        # At the solution rounding could move u up and down without end. Rows that have converged stay.
        change = jnp.maximum(fall(u), 0.0)
        return step + 1, u - change, change

    start = jnp.zeros_like(z[..., :1])
    _, u, _ = jax.lax.while_loop(unsettled, advance, (jnp.asarray(0), start, start + 1))
    return powers(u)[0]


def _bisect(z: Array, alpha: float) -> Array:
    """Halves the bracket of u, the deformed log of the highest probability, down to neighbouring floats.

    For alpha > 2: there p = y^r with r < 1 rises ever more slowly but jumps to it from 0, so that the sum is
    neither convex nor concave in u, and Newton's steps may overshoot.
    """

    def probabilities(u: Array) -> Array:
        base = (alpha - 1) * (z + u)
        inside = base > -1
        return jnp.where(inside, jnp.exp(jnp.log1p(jnp.where(inside, base, 0.0)) / (alpha - 1)), 0.0)

    def total(p: Array) -> Array:
        return jnp.sum(p, axis=-1, keepdims=True)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        enough = total(probabilities(middle)) >= 1
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # The highest probability lies between 1/K and 1.
    high = jnp.zeros_like(z[..., :1])
    low = jnp.full_like(high, _lowest_u(z.shape[-1], alpha))
    low, high = jax.lax.fori_loop(0, jnp.finfo(z.dtype).nmant + 8, halve, (low, high))
    # Above alpha = 2 an entry at the edge of the support rises from 0 to far more than an ulp between two
    # neighbouring floats; the mean of both sides that sums to 1 is taken.
    p_low, p_high = probabilities(low), probabilities(high)
    gap = total(p_high) - total(p_low)
    weight = jnp.where(gap > 0, (1 - total(p_low)) / jnp.where(gap > 0, gap, 1.0), 0.0)
    return p_low + jnp.clip(weight, 0.0, 1.0) * (p_high - p_low)


def _lowest_u(count: int, alpha: float) -> float:
    return math.expm1(-(alpha - 1) * math.log(count)) / (alpha - 1)
