"""Capacities of networks of spins, and the fraction of wrong bits after one step from a memory.

N is the number of spins, K that of random memories, alpha = K / N the load. Loads and radii may be arrays;
every result then has their shape. What the classical network does after the first step is in
``jaxebm.hopfield.theory``.

    ==================================  ====================  =============================
    network                             bits of error         free of errors up to
    ==================================  ====================  =============================
    classical, Hebb's rule              ``hebb_bit_error``    ``error_free_capacity``
    dense, F(z) = relu(z)^n or z^n      ``dense_bit_error``   ``dense_capacity``
    exponential, F(z) = e^z                                   ``exponential_capacity_rate``
    ==================================  ====================  =============================

All are about the step that leaves a spin out of the overlaps which decide about it, as the papers do:
``update(memory, x, rule="difference")``, and W_ii = 0 in the classical network. The other rule, "tangent",
keeps the spin in, and so holds more: these formulas are not about it, nor is the fraction that it recalls
above their capacities a measure of basins.
"""

import math

import jax.numpy as jnp
from jax.scipy.special import erfc, xlog1py, xlogy

from jaxebm import checks
from jaxebm.types import Array

__all__ = [
    "dense_bit_error",
    "dense_capacity",
    "error_free_capacity",
    "exponential_capacity_rate",
    "hebb_bit_error",
]


def _check_dimension(dimension: int) -> None:
    checks.positive_integer("dimension", dimension)
    if dimension < 2:
        raise ValueError(f"dimension={dimension!r}: dimension must be an integer of at least 2.")


# The classical network


def hebb_bit_error(load: float | Array) -> Array:
    """Returns the fraction of a memory's bits that flip in one step from it: Hebb's rule with W_ii = 0.

    erfc(1 / sqrt(2 alpha)) / 2, that is P(crosstalk < -1) for crosstalk N(0, alpha), the sum over the other
    memories. Kept, the diagonal would add alpha to the signal 1.

    Args:
      load: alpha = K / N, at least 0, any shape.

    Returns:
      The probability, in [0, 1/2], of the load's shape.

    Raises:
      ValueError: if a load is negative.

    Example:
      >>> print(jnp.round(hebb_bit_error(0.138), 4))
      0.0036

    Reference:
      Hertz, Krogh & Palmer 1991, Introduction to the theory of neural computation, section 2.2.
    """
    checks.array("load", load)
    checks.non_negative("load", load)
    load = jnp.asarray(load, dtype=float)
    # The slope of the square root at 0 is kept out of the derivative, which is 0 there.
    error = 0.5 * erfc(1.0 / jnp.sqrt(2.0 * jnp.where(load > 0, load, 1.0)))
    return jnp.where(load > 0, error, 0.0)


def error_free_capacity(dimension: int, *, every_pattern: bool = False) -> float:
    """Returns the number of memories that Hebb's rule stores without a single wrong bit, N -> infinity.

    N / (2 ln N): a given memory is a fixed point; N / (4 ln N): every one of them is.

    Args:
      dimension: N, at least 2.
      every_pattern: whether all memories must be held at once.

    Returns:
      The number K, a Python float.

    Raises:
      ValueError: if the dimension is not an integer of at least 2.

    Example:
      >>> round(error_free_capacity(1000), 1), round(error_free_capacity(1000, every_pattern=True), 1)
      (72.4, 36.2)

    Reference:
      McEliece, Posner, Rodemich & Venkatesh 1987, The capacity of the Hopfield associative memory.
    """
    _check_dimension(dimension)
    checks.boolean("every_pattern", every_pattern)
    return dimension / ((4 if every_pattern else 2) * math.log(dimension))


# Dense and exponential networks


def _log_capacity(dimension: int, degree: int, rectified: bool) -> float:
    """ln of K times the squared signal-to-noise ratio: N^(n-1) / (2n-3)!!, twice that if rectified."""
    _check_dimension(dimension)
    checks.positive_integer("degree", degree)
    if degree < 2:
        raise ValueError(f"degree={degree!r}: degree must be an integer of at least 2 (2 is Hebb's rule).")
    checks.boolean("rectified", rectified)
    # The logarithm of a Python integer, so that no degree overflows.
    log_double_factorial = math.log(math.prod(range(1, 2 * degree - 2, 2)))
    return (degree - 1) * math.log(dimension) - log_double_factorial + (math.log(2) if rectified else 0.0)


def dense_bit_error(
    num_memories: float | Array, dimension: int, degree: int, *, rectified: bool = True
) -> Array:
    """Returns the fraction of a memory's bits that flip in one step from it, in a dense associative memory.

    erfc(sqrt(s / 2)) / 2, s = N^(n-1) / (K (2n-3)!!): signal^2 / variance of the crosstalk, for

    x_i <- sign sum_mu [F(xi_i^mu + m_i^mu) - F(-xi_i^mu + m_i^mu)], m_i^mu = sum_{j != i} xi_j^mu x_j.

    F(z) = z^n; relu(z)^n if rectified, as ``jaxebm.hopfield.dense`` is unless told otherwise. A term of the
    crosstalk is xi_i^mu times a number that does not depend on it, so its mean is 0 in both. Rectified, half
    of the terms are 0: s is twice as large. n = 2, not rectified, is Hebb's rule. Leading order in 1/N and
    1/K.

    Args:
      num_memories: K, positive, any shape.
      dimension: N, at least 2.
      degree: n, at least 2.
      rectified: whether F(z) = relu(z)^n instead of z^n; as in ``jaxebm.hopfield.dense``.

    Returns:
      The probability, in [0, 1/2], of the shape of ``num_memories``.

    Raises:
      ValueError: if ``num_memories`` is not positive, or ``dimension`` or ``degree`` no integer of at least
        2.

    Example:
      >>> print(jnp.round(dense_bit_error(num_memories=1000, dimension=100, degree=3), 4))
      0.0049
      >>> print(jnp.round(dense_bit_error(num_memories=1000, dimension=100, degree=3, rectified=False), 4))
      0.0339

    Reference:
      Krotov & Hopfield 2016, Dense associative memory for pattern recognition (arXiv:1606.01164), section 2.
    """
    checks.array("num_memories", num_memories)
    checks.positive("num_memories", num_memories)
    log_capacity = _log_capacity(dimension, degree, rectified)
    log_ratio = log_capacity - jnp.log(jnp.asarray(num_memories, dtype=float))
    return 0.5 * erfc(jnp.sqrt(0.5 * jnp.exp(log_ratio)))


def dense_capacity(dimension: int, degree: int, *, rectified: bool = True) -> float:
    """Returns the number of memories that a dense network stores without a wrong bit, N -> infinity.

    N^(n-1) / (2 (2n-3)!! ln N) for F(z) = z^n, twice as many for relu(z)^n: a given memory is a fixed point
    of the step in ``dense_bit_error``. n = 2, not rectified, gives ``error_free_capacity``.

    Args:
      dimension: N, at least 2.
      degree: n, at least 2.
      rectified: whether F(z) = relu(z)^n instead of z^n; as in ``jaxebm.hopfield.dense``.

    Returns:
      The number K, a Python float.

    Raises:
      ValueError: if ``dimension`` or ``degree`` is not an integer of at least 2.

    Example:
      >>> [round(dense_capacity(100, n)) for n in (2, 3, 4)]
      [22, 724, 14476]
      >>> [round(dense_capacity(100, n, rectified=False)) for n in (2, 3, 4)]
      [11, 362, 7238]

    Reference:
      Krotov & Hopfield 2016 (arXiv:1606.01164), section 2.
    """
    return math.exp(_log_capacity(dimension, degree, rectified) - math.log(2 * math.log(dimension)))


def exponential_capacity_rate(radius: float | Array) -> Array:
    """Returns r: exp(r N) memories of the exponential network keep basins of radius * N flipped bits.

    All are recalled in one step of F(z) = e^z, x_i <- sign sum_mu xi_i^mu exp(m_i^mu), for K = exp(alpha N),
    alpha < r, N -> infinity:

    r = I(1 - 2 rho) / 2, I(a) = ((1 + a) ln(1 + a) + (1 - a) ln(1 - a)) / 2.

    rho = 0 gives ln(2) / 2, that is 2^(N/2) memories.

    exp(-N I(a)) is the chance that two memories overlap by a or more. Half of I is there because *all* K must
    be recalled, and K^2 pairs can go wrong; one given memory among K is lost only at about twice the rate,
    where another one comes as near to the query as it.

    Args:
      radius: rho, the part of the bits that are flipped, in [0, 1/2], any shape.

    Returns:
      r >= 0, in nats per spin, of the radius's shape.

    Raises:
      ValueError: if a radius lies outside [0, 1/2].

    Example:
      >>> print(jnp.round(exponential_capacity_rate(jnp.array([0.0, 0.1, 0.5])), 4))
      [0.3466 0.184  0.    ]

    Reference:
      Demircigil et al. 2017, On a model of associative memory with huge storage capacity (arXiv:1702.01929),
      theorem 3.
    """
    checks.array("radius", radius)
    checks.in_range("radius", radius, 0.0, 0.5)
    radius = jnp.asarray(radius, dtype=float)
    # With a = 1 - 2 rho: 1 + a = 2 (1 - rho) and 1 - a = 2 rho.
    rate = math.log(2) + xlogy(radius, radius) + xlog1py(1 - radius, -radius)
    return 0.5 * jnp.maximum(rate, 0.0)
