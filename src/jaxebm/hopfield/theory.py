"""Measures of a state of an associative memory, and theory of the classical network.

Of any state and its memories: ``overlap``, ``separation``, ``retrieval_error_bound``, ``metastable_size``. Of
Hebb's rule with N spins and K = alpha N random memories, N -> infinity: ``hebb_capacity``, ``hebb_overlap``,
``glauber_overlap``, ``mixture_energy``; loads and temperatures may be arrays. How many memories there may be
before the first bit goes wrong is in ``jaxebm.hopfield.capacity``.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.scipy.special import erf

from jaxebm import checks
from jaxebm.hopfield.validation import pattern_matrix, vector
from jaxebm.types import Array

__all__ = [
    "glauber_overlap",
    "hebb_capacity",
    "hebb_overlap",
    "metastable_size",
    "mixture_energy",
    "overlap",
    "retrieval_error_bound",
    "separation",
]


# Of a state and the memories


def overlap(patterns: Array, x: Array) -> Array:
    """Returns the overlap of a state with each memory: m = Xi x / D.

    Args:
      patterns: Xi, K memories of D numbers, shape (K, D).
      x: a state, shape (D,).

    Returns:
      m, shape (K,); of spins, 1 where x is the memory, -1 where it is its negative, of order D^(-1/2) by
      chance.

    Raises:
      ValueError: if ``patterns`` is no (K, D) matrix or ``x`` has another shape.

    Example:
      >>> overlap(jnp.array([[1.0, 1.0, -1.0, 1.0], [1.0, -1.0, 1.0, -1.0]]), jnp.ones(4))
      Array([0.5, 0. ], dtype=float32)
    """
    patterns = pattern_matrix("patterns", patterns)
    vector("x", x, patterns.shape[1], "one number for each column of patterns")
    return patterns @ jnp.asarray(x) / patterns.shape[1]


def separation(patterns: Array) -> Array:
    """Returns the separation of each memory from the others: Delta_i = x_i.x_i - max_{j != i} x_i.x_j.

    Args:
      patterns: K memories of D numbers, shape (K, D).

    Returns:
      Delta, shape (K,): 0 for a memory stored twice, below 0 where another, longer one hides it, infinite
      for a memory without others.

    Raises:
      ValueError: if ``patterns`` is no (K, D) matrix.

    Example:
      >>> separation(jnp.array([[2.0, 0.0], [1.0, 1.0]]))
      Array([2., 0.], dtype=float32)

    Reference:
      Ramsauer et al. 2020, Hopfield networks is all you need (arXiv:2008.02217).
    """
    patterns = pattern_matrix("patterns", patterns)
    products = patterns @ patterns.T
    others = jnp.fill_diagonal(products, -jnp.inf, inplace=False)
    return jnp.diag(products) - jnp.max(others, axis=1)


def retrieval_error_bound(patterns: Array, beta: float | Array, distance: float | Array) -> Array:
    """Returns a bound on |f(xi) - x_i|, the distance from memory i after one step of the modern network.

    2 (K - 1) M exp(-beta (Delta_i - 2 M distance)), M = max_j |x_j|, f(xi) = Xi^T softmax(beta Xi xi).

    Why: f(xi) - x_i averages x_j - x_i, none longer than 2 M, and the softmax gives each other memory at most
    exp(beta xi.(x_j - x_i)), where xi.(x_i - x_j) >= Delta_i - 2 M |xi - x_i|. Above 2 M it has no meaning.

    Args:
      patterns: Xi, K memories of D numbers, shape (K, D).
      beta: inverse temperature, positive, ``()``.
      distance: max(|xi - x_i|, |x_i* - x_i|), with x_i* the fixed point near x_i: at least 0, ``()`` or one
        for each memory, (K,). The proof above needs the first of the two only.

    Returns:
      The bounds, shape (K,), in units of x.

    Raises:
      ValueError: if ``patterns`` is no (K, D) matrix, ``beta`` not positive or ``distance`` negative.

    Example:
      >>> bound = retrieval_error_bound(10.0 * jnp.eye(3), beta=0.5, distance=1.0)  # M = 10, Delta = 100
      >>> print(jnp.round(1e16 * bound, 1))
      [1.7 1.7 1.7]

    Reference:
      Ramsauer et al. 2020 (arXiv:2008.02217), theorem 5 (exponentially small retrieval error).
    """
    patterns = pattern_matrix("patterns", patterns)
    checks.positive("beta", beta)
    checks.one_number("beta", beta)
    checks.non_negative("distance", distance)
    if np.shape(distance) not in ((), patterns.shape[:1]):
        raise ValueError(f"distance has shape {np.shape(distance)}: () or ({patterns.shape[0]},) is needed.")
    distance = jnp.asarray(distance, patterns.dtype)
    # The root of the greatest square, not the greatest root: the slope of a root at 0 would be NaN.
    square = jnp.max(jnp.sum(patterns * patterns, axis=1))
    largest = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    num_others = patterns.shape[0] - 1
    return 2.0 * num_others * largest * jnp.exp(-beta * (separation(patterns) - 2.0 * largest * distance))


def metastable_size(probabilities: Array, mass: float | Array = 0.9) -> Array:
    """Returns the number of memories that a state mixes: the fewest softmax terms with a sum of ``mass``.

    1 is the retrieval of one memory; K (or nearly) the average of all; between lie metastable states.

    Args:
      probabilities: p = softmax(beta Xi x), shape (K,): not negative, of sum 1.
      mass: the part of the probability to account for, in [0, 1], ``()``.

    Returns:
      The number, an integer in 1..K, ``()``. A sum that misses ``mass`` by float rounding alone reaches it.

    Raises:
      ValueError: if ``probabilities`` is no vector, has an entry below 0 or another sum than 1, or ``mass``
        lies outside [0, 1].

    Example:
      >>> int(metastable_size(jnp.array([0.1, 0.6, 0.05, 0.25])))  # 0.6 + 0.25 + 0.1
      3

    Reference:
      Ramsauer et al. 2020 (arXiv:2008.02217), the analysis of attention heads.
    """
    checks.array("probabilities", probabilities)
    shape = np.shape(probabilities)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"probabilities has shape {shape}: (K,) is needed, one for each of K >= 1 memories.")
    checks.non_negative("probabilities", probabilities)
    if not checks.is_traced(probabilities):
        total = float(np.sum(np.asarray(probabilities, np.float64)))
        dtype = np.asarray(probabilities).dtype
        rounding = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0
        if abs(total - 1) > max(2e-3, rounding):
            raise ValueError(
                f"probabilities has the sum {total:.6g}: a sum of 1 is needed, as that of softmax(beta Xi x)."
            )
    checks.in_range("mass", mass, 0.0, 1.0)
    checks.one_number("mass", mass)
    probabilities = jnp.asarray(probabilities, dtype=float)
    reached = jnp.cumsum(jnp.sort(probabilities, descending=True))
    rounding = 4 * shape[0] ** 0.5 * jnp.finfo(reached.dtype).eps
    return jnp.minimum(jnp.sum(reached < mass - rounding) + 1, shape[0])


# The classical network


def _largest_root(function: Callable[[Array], Array], level: Array, low: float) -> Array:
    """Solves f(u) = level for u >= ``low``, entry by entry, where f decreases from there and f(u) < 1 / u.

    Both mean fields below are of that kind. Beyond u = 30 their overlaps are 1 to float precision. The
    derivative is the implicit one.
    """

    def solve(equation: Callable[[Array], Array], start: Array) -> Array:
        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            lower, upper = bracket
            middle = 0.5 * (lower + upper)
            above = equation(middle) > 0
            return jnp.where(above, middle, lower), jnp.where(above, upper, middle)

        lower, upper = jax.lax.fori_loop(0, 60, halve, (jnp.full_like(start, low), start))
        return 0.5 * (lower + upper)

    def tangent_solve(linear: Callable[[Array], Array], right: Array) -> Array:
        return right / linear(jnp.ones_like(right))

    upper = jax.lax.stop_gradient(jnp.maximum(1.0 / jnp.maximum(level, 1 / 30), low))
    return jax.lax.custom_root(lambda u: function(u) - level, upper, solve, tangent_solve)


def _hebb_root_load(y: Array) -> Array:
    """sqrt(2 alpha) as a function of y = m / sqrt(2 alpha r), at T = 0."""
    return erf(y) / y - 2 / math.sqrt(math.pi) * jnp.exp(-(y**2))


@functools.cache
def _critical_field() -> float:
    """The y at which ``_hebb_root_load`` is largest; above it, it decreases."""

    def slope(y: float) -> float:
        gaussian = 2 / math.sqrt(math.pi) * math.exp(-(y**2))
        return gaussian / y - math.erf(y) / y**2 + 2 * y * gaussian

    return float(scipy.optimize.root_scalar(slope, bracket=(1.0, 2.0), xtol=1e-14).root)


def hebb_capacity() -> float:
    """Returns alpha_c = 0.1379, the load above which Hebb's rule retrieves nothing (replica symmetric).

    alpha_c = max_y (erf(y) / y - 2 e^(-y^2) / sqrt(pi))^2 / 2. Replica symmetry breaking moves it to 0.138;
    in a network of a thousand spins the fall is smoothed over 0.13 to 0.20.

    Returns:
      alpha_c, a Python float.

    Example:
      >>> round(hebb_capacity(), 4)
      0.1379

    Reference:
      Amit, Gutfreund & Sompolinsky 1985, Storing infinite numbers of patterns in a spin-glass model of neural
      networks, Phys. Rev. Lett. 55, 1530.
    """
    y = _critical_field()
    return 0.5 * (math.erf(y) / y - 2 / math.sqrt(math.pi) * math.exp(-(y**2))) ** 2


def hebb_overlap(load: float | Array) -> Array:
    """Returns m(alpha), the overlap of a memory with the state that Hebb's rule takes it to (T = 0).

    m = erf(y) at the largest root of y (sqrt(2 alpha) + 2 e^(-y^2) / sqrt(pi)) = erf(y), and 0 above
    ``hebb_capacity()``, where m jumps down from 0.967.

    That is the replica-symmetric mean field m = erf(m / sqrt(2 alpha r)), r = (1 - C)^-2,
    C = sqrt(2 / (pi alpha r)) exp(-m^2 / (2 alpha r)), with y = m / sqrt(2 alpha r).

    Args:
      load: alpha = K / N, at least 0, any shape. Differentiable; the slope goes to -infinity at the capacity.

    Returns:
      m, in [0, 1], of the load's shape.

    Raises:
      ValueError: if a load is negative.

    Example:
      >>> print(np.round(np.asarray(hebb_overlap(jnp.array([0.05, 0.1, 0.1379, 0.15]))), 3))
      [1.    0.998 0.968 0.   ]

    Reference:
      Amit, Gutfreund & Sompolinsky 1985, Phys. Rev. Lett. 55, 1530; 1987, Statistical mechanics of neural
      networks near saturation, Annals of Physics 173, 30.
    """
    checks.array("load", load)
    checks.non_negative("load", load)
    load = jnp.asarray(load, dtype=float)
    retrieved = load <= hebb_capacity()
    # Loads that have no root, and the slope of sqrt at 0, are kept out of the derivative.
    inside = jnp.where(retrieved & (load > 0), load, 0.01)
    memory = erf(_largest_root(_hebb_root_load, jnp.sqrt(2 * inside), _critical_field()))
    return jnp.where(retrieved, jnp.where(load > 0, memory, 1.0), 0.0)


def glauber_overlap(temperature: float | Array) -> Array:
    """Returns the overlap with a memory at temperature T, few memories being stored: m = tanh(m / T).

    The root m >= 0 is 1 at T = 0 and 0 from T = 1 on, where the memory melts.

    Args:
      temperature: T = 1 / beta, at least 0, in units in which W = Xi^T Xi / N; any shape.

    Returns:
      m, in [0, 1], of the temperature's shape; differentiable (its slope goes to -infinity at T = 1).

    Raises:
      ValueError: if a temperature is negative.

    Example:
      >>> print(np.round(np.asarray(glauber_overlap(jnp.array([0.0, 0.5, 1.0]))), 4))
      [1.     0.9575 0.    ]

    Reference:
      Amit, Gutfreund & Sompolinsky 1985, Spin-glass models of neural networks, Phys. Rev. A 32, 1007.
    """
    checks.array("temperature", temperature)
    checks.non_negative("temperature", temperature)
    temperature = jnp.asarray(temperature, dtype=float)
    frozen = temperature < 1.0
    inside = jnp.where(frozen, temperature, 0.5)
    u = _largest_root(lambda u: jnp.tanh(u) / u, inside, 0.0)  # u = m / T
    return jnp.where(frozen, jnp.tanh(u), 0.0)


def mixture_energy(num_patterns: int) -> float:
    """Returns E / N of the mixture sign(xi^1 + ... + xi^n), Hebb's rule, few memories being stored.

    E / N = -n m^2 / 2, with m = C(n - 1, (n - 1) / 2) / 2^(n - 1) the overlap with each of the n memories.

    Odd mixtures are spurious minima; the energies rise from -1/2 (a memory) over -3/8 towards -1 / pi.

    Args:
      num_patterns: n, odd.

    Returns:
      The energy of one spin, a Python float.

    Raises:
      ValueError: if ``num_patterns`` is no odd integer of at least 1.

    Example:
      >>> [mixture_energy(n) for n in (1, 3, 5)]
      [-0.5, -0.375, -0.3515625]

    Reference:
      Amit, Gutfreund & Sompolinsky 1985, Spin-glass models of neural networks, Phys. Rev. A 32, 1007.
    """
    checks.positive_integer("num_patterns", num_patterns)
    if num_patterns % 2 == 0:
        raise ValueError(f"num_patterns={num_patterns!r}: an odd number is needed, so that no spin is a tie.")
    shared = math.comb(num_patterns - 1, (num_patterns - 1) // 2) / 2 ** (num_patterns - 1)
    return -0.5 * num_patterns * shared**2
