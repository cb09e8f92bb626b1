"""The associative memories by name, from 1982 to attention: cases of the formula in `jaxebm.hopfield.family`.

| constructor | Phi | states | from |
|---|---|---|---|
| `classical` | z^2 / 2 | spins | Hopfield 1982 |
| `dense` | relu(z)^n / n | spins | Krotov & Hopfield 2016 |
| `exponential` | e^z | spins | Demircigil et al. 2017 |
| `modern` | logsumexp | real | Ramsauer et al. 2020; x <- Xi^T softmax(beta Xi x), attention |
| `sparse` | conjugate of Tsallis' entropy | real | Santos et al. 2024 |
| `epanechnikov` | log sum relu(1 + z), of s = c - |x - xi|^2 / 2 | real | Hoover et al. 2025 |
| `restricted_boltzmann` | softplus | bits | the free energy of an RBM |
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.target import check_shape
from jaxebm.hopfield.family import PatternMemory
from jaxebm.hopfield.lagrangians import Entmax, Exponential, LogSumRelu, Power, Quadratic, Softmax, Softplus
from jaxebm.hopfield.tsallis import checked_alpha
from jaxebm.hopfield.validation import pattern_matrix, spins, vector
from jaxebm.types import Array

__all__ = [
    "PATTERN_MEMORIES",
    "classical",
    "dense",
    "epanechnikov",
    "exponential",
    "modern",
    "restricted_boltzmann",
    "sparse",
]


def _spin_patterns(patterns: Any) -> Array:
    matrix = pattern_matrix("patterns", patterns)
    spins("patterns", matrix)
    return matrix


def _bias(bias: Any, patterns: Array, name: str = "bias") -> Array | None:
    if bias is None:
        return None
    vector(name, bias, patterns.shape[1], "one number for each coordinate of the memories")
    checks.finite(name, bias)
    return jnp.asarray(bias, patterns.dtype)


def _beta(beta: Any, patterns: Array) -> Array:
    checks.array("beta", beta)
    check_shape("beta", beta, (), "a scalar, shape (),")
    checks.positive("beta", beta)
    return jnp.asarray(beta, patterns.dtype)


def classical(patterns: Any, *, bias: Any = None) -> PatternMemory:
    """Returns Hopfield's network with Hebb's rule, stored as patterns instead of couplings.

    E(x) = -sum_mu (xi_mu.x)^2 / (2 D) - b.x, x in {-1, 1}^D. It is -x.Wx / 2 - b.x with W = Xi^T Xi / D,
    diagonal included, so synchronous steps never raise it.

    Args:
      patterns: Xi, shape (K, D), entries -1 and 1.
      bias: b, shape (D,), or None.

    Returns:
      The memory; beta = 1/D.

    Raises:
      ValueError: if an entry is no spin, or a shape is wrong.

    Example:
      >>> memory = classical([[1, -1, 1, 1], [1, 1, -1, -1]])
      >>> float(memory.energy(memory.patterns[0]))
      -2.5

    Reference:
      Hopfield 1982, "Neural networks and physical systems with emergent collective computational abilities".
    """
    matrix = _spin_patterns(patterns)
    beta = _beta(1.0 / matrix.shape[1], matrix)
    return PatternMemory(matrix, beta, _bias(bias, matrix), None, Quadratic(), "spins")


def dense(patterns: Any, degree: int = 3, *, rectified: bool = True) -> PatternMemory:
    """Returns a dense associative memory with a polynomial interaction.

    E(x) = -D sum_mu F(xi_mu.x / D), F(z) = relu(z)^n / n (z^n / n if not rectified), x in {-1, 1}^D. Some
    D^(n-1) memories can be separated. The published energy, of xi.x and not of xi.x / D, is D^(n-1) times
    this one.

    Args:
      patterns: Xi, shape (K, D), entries -1 and 1.
      degree: n, at least 2.
      rectified: whether negative overlaps count for nothing, as `dense_bit_error` and `dense_capacity` take
        it, too. An odd power that is not rectified is not convex: then only asynchronous retrieval is sure
        to descend.

    Returns:
      The memory; beta = 1/D.

    Raises:
      ValueError: if an entry is no spin, a shape is wrong, or the degree is below 2.

    Example:
      >>> memory = dense([[1, -1, 1, 1], [1, 1, -1, -1]], degree=3)
      >>> round(float(memory.energy(memory.patterns[0])), 4)
      -1.3333

    Reference:
      Krotov & Hopfield 2016, "Dense associative memory for pattern recognition" (arXiv 1606.01164), eq. 1-3.
    """
    matrix = _spin_patterns(patterns)
    beta = _beta(1.0 / matrix.shape[1], matrix)
    return PatternMemory(matrix, beta, None, None, Power(degree, rectified), "spins")


def exponential(patterns: Any, beta: Any = 1.0) -> PatternMemory:
    """Returns a memory with an exponential interaction.

    E(x) = -sum_mu exp(beta (xi_mu.x - D)) / beta, x in {-1, 1}^D. About 2^(D/2) memories can be separated.
    The published energy is e^(beta D) times this one, and so could not be written down beyond D = 88 in
    float32.

    Args:
      patterns: Xi, shape (K, D), entries -1 and 1.
      beta: positive; 1 in the paper.

    Returns:
      The memory.

    Raises:
      ValueError: if an entry is no spin, a shape is wrong, or beta is not positive.

    Example:
      >>> memory = exponential([[1, -1, 1, 1], [1, 1, -1, -1]])
      >>> round(float(memory.energy(memory.patterns[0])), 4)
      -1.0025

    Reference:
      Demircigil et al. 2017, "On a model of associative memory with huge storage capacity" (arXiv
      1702.01929).
    """
    matrix = _spin_patterns(patterns)
    offsets = jnp.full(matrix.shape[:1], -float(matrix.shape[1]), matrix.dtype)
    return PatternMemory(matrix, _beta(beta, matrix), None, offsets, Exponential(), "spins")


def _zero_level(patterns: Array, equal_weights: bool, bias: Array | None) -> Array:
    """Offsets that put the energy's zero where it is published, or that give all memories the same mass."""
    checks.boolean("equal_weights", equal_weights)
    squared = jnp.sum(patterns**2, axis=1)
    if (
        equal_weights and bias is not None
    ):  # the bias moves the memories, and the masses are of where they are
        squared = jnp.sum((patterns + bias[None, :]) ** 2, axis=1)
    return -0.5 * (squared if equal_weights else jnp.full_like(squared, jnp.max(squared)))


def modern(patterns: Any, beta: Any, *, equal_weights: bool = False, bias: Any = None) -> PatternMemory:
    """Returns the modern Hopfield network, whose step is attention.

    E(x) = |x|^2 / 2 - lse(beta, Xi x) + ln K / beta + M^2 / 2,  lse(beta, z) = ln(sum_mu e^(beta z_mu)) /
    beta, x <- Xi^T softmax(beta Xi x), M the greatest norm of a memory. Within the ball of radius M, 0 <= E
    <= 2 M^2.

    exp(-beta E) is a mixture of Gaussians N(xi_mu, I / beta): see `jaxebm.hopfield.as_gaussian_mixture`. In
    the published network their masses are as e^(beta |xi_mu|^2 / 2), so that memories of great norm swallow
    the others; with ``equal_weights`` M^2 gives way to |xi_mu|^2 in the sum, and every memory has the same
    mass.

    Args:
      patterns: Xi, shape (K, D), any real numbers.
      beta: inverse temperature, positive.
      equal_weights: whether offsets -|xi_mu + b|^2 / 2 make the masses equal. Where all norms are equal it
        changes nothing.
      bias: b, shape (D,), or None; it moves every memory by b.

    Returns:
      The memory.

    Raises:
      ValueError: if a shape is wrong, an entry is not finite, or beta is not positive.

    Example:
      >>> memory = modern([[3.0, 0.0], [0.0, 1.0]], beta=2.0)
      >>> print(jnp.round(memory.update(jnp.array([0.5, 0.2])), 1))  # softmax(2 * [1.5, 0.2]) = [.93, .07]
      [2.8 0.1]

    Reference:
      Ramsauer et al. 2020, "Hopfield networks is all you need" (arXiv 2008.02217), eq. 2-3.
    """
    matrix = pattern_matrix("patterns", patterns)
    bias = _bias(bias, matrix)
    offsets = _zero_level(matrix, equal_weights, bias)
    return PatternMemory(matrix, _beta(beta, matrix), bias, offsets, Softmax())


def sparse(
    patterns: Any, beta: Any, alpha: float = 2.0, *, equal_weights: bool = False, bias: Any = None
) -> PatternMemory:
    """Returns a Hopfield-Fenchel-Young network: the modern one with a sparse softmax.

    E(x) = |x|^2 / 2 - Phi_alpha(beta Xi x) / beta + M^2 / 2, x <- Xi^T entmax_alpha(beta Xi x). Memories that
    are far enough have no weight at all, so that a memory with a margin is recalled exactly, in one step.

    Args:
      patterns: Xi, shape (K, D), any real numbers.
      beta: inverse temperature, positive.
      alpha: 1 is the modern network, 1.5 is 1.5-entmax, 2 is sparsemax; at least 1.
      equal_weights: as in `modern`.
      bias: as in `modern`.

    Returns:
      The memory.

    Raises:
      ValueError: if a shape is wrong, an entry is not finite, beta is not positive, or alpha is below 1.

    Example:
      >>> memory = sparse([[3.0, 0.0], [0.0, 1.0]], beta=2.0)
      >>> print(memory.update(jnp.array([1.0, 0.0])))
      [3. 0.]

    Reference:
      Santos et al. 2024, "Hopfield-Fenchel-Young networks" (arXiv 2411.08590); Hu et al. 2023, "On sparse
      modern Hopfield model" (arXiv 2309.12673).
    """
    matrix = pattern_matrix("patterns", patterns)
    bias = _bias(bias, matrix)
    offsets = _zero_level(matrix, equal_weights, bias)
    return PatternMemory(matrix, _beta(beta, matrix), bias, offsets, Entmax(checked_alpha(alpha)))


def epanechnikov(patterns: Any, beta: Any, *, epsilon: float = 1e-6) -> PatternMemory:
    """Returns the log-sum-ReLU network: a density estimate with Epanechnikov's kernel.

    E(x) = -ln(epsilon + sum_mu relu(1 - beta |x - xi_mu|^2 / 2)) / beta. Only memories within sqrt(2 / beta)
    of x take part; x moves to their mean, and memories whose balls do not meet are recalled exactly, however
    many there are.

    Args:
      patterns: Xi, shape (K, D), any real numbers.
      beta: inverse temperature, positive: the radius of a memory's ball is sqrt(2 / beta).
      epsilon: at least 0. Where no memory is near, the energy is -ln(epsilon) / beta and the state stays.

    Returns:
      The memory.

    Raises:
      ValueError: if a shape is wrong, an entry is not finite, beta is not positive or epsilon negative.

    Example:
      >>> memory = epanechnikov([[3.0, 0.0], [0.0, 1.0]], beta=0.5)
      >>> print(memory.update(jnp.array([2.0, 0.0])))
      [3. 0.]

    Reference:
      Hoover et al. 2025, "Dense associative memory with Epanechnikov energy" (arXiv 2506.10801).
    """
    matrix = pattern_matrix("patterns", patterns)
    lagrangian = LogSumRelu(epsilon)
    return PatternMemory(matrix, _beta(beta, matrix), None, None, lagrangian, "reals", "distance")


def restricted_boltzmann(weights: Any, visible_bias: Any = None, hidden_bias: Any = None) -> PatternMemory:
    """Returns a restricted Boltzmann machine whose hidden units are summed out: each is a memory.

    F(x) = -b.x - sum_mu log(1 + e^(xi_mu.x + c_mu)), x in {0, 1}^D: the free energy, so p(x) = exp(-F(x)) /
    Z.

    Args:
      weights: Xi, shape (K, D): K hidden and D visible units.
      visible_bias: b, shape (D,), or None.
      hidden_bias: c, shape (K,), or None.

    Returns:
      The memory; beta = 1.

    Raises:
      ValueError: if a shape is wrong or an entry is not finite.

    Example:
      >>> memory = restricted_boltzmann([[2.0, -1.0]], hidden_bias=[0.5])
      >>> round(float(memory.energy(jnp.array([1.0, 0.0]))), 4)
      -2.5789

    Reference:
      Smolensky 1986; Hinton 2002, "Training products of experts by minimizing contrastive divergence".
    """
    matrix = pattern_matrix("weights", weights)
    offsets = None
    if hidden_bias is not None:
        vector("hidden_bias", hidden_bias, matrix.shape[0], "one number for each hidden unit")
        checks.finite("hidden_bias", hidden_bias)
        offsets = jnp.asarray(hidden_bias, matrix.dtype)
    bias = _bias(visible_bias, matrix, "visible_bias")
    return PatternMemory(matrix, _beta(1.0, matrix), bias, offsets, Softplus(), "bits")


PATTERN_MEMORIES: dict[str, Callable[..., PatternMemory]] = {
    "classical": classical,
    "dense": dense,
    "exponential": exponential,
    "modern": modern,
    "sparse": sparse,
    "epanechnikov": epanechnikov,
    "restricted_boltzmann": restricted_boltzmann,
}
"""Constructors by name."""
