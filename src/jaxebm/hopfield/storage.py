"""Rules that turn patterns into the symmetric weights of a pairwise network.

Each takes K patterns of D spins -1/+1, shape (K, D), and returns weights W for E(x) = -x.Wx/2 - b.x. From
Hebb to minimum probability flow they store more and cost more; all but the last are closed forms.

On random patterns, D = 200, the fraction that is a fixed point of sign(Wx) with the diagonal set to 0 (mean
and its standard error over 400 sets of patterns; the last two rules over 10):

    ============================  =============  ===============  ================
    rule                          K = 40         K = 60           K = 199
    ============================  =============  ===============  ================
    ``hebb``                      .124 +- .003   .0015 +- .0003   0
    ``storkey``                   1              .9923 +- .0006   .0561 +- .0005
    ``projection``                1              1                1 (diagonal kept)
    ``minimum_probability_flow``  1              1                1
    ============================  =============  ===============  ================

The diagonal W_ii holds x_i where it is. Kept, it raises the fractions of the first two (``hebb``'s to .546
and .197) without storing anything, since states near a pattern become fixed points with it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxebm import checks
from jaxebm.hopfield.validation import pattern_matrix, spins, vector
from jaxebm.trees import wide_dtype
from jaxebm.types import Array, Params

__all__ = ["hebb", "minimum_probability_flow", "minimum_probability_flow_loss", "projection", "storkey"]


def _spin_patterns(patterns: Array) -> Array:
    matrix = pattern_matrix("patterns", patterns)
    spins("patterns", matrix)
    return matrix


def _without_diagonal(weights: Array) -> Array:
    return jnp.fill_diagonal(weights, 0.0, inplace=False)


def hebb(patterns: Array, *, zero_diagonal: bool = False) -> Array:
    """Returns Hebb's weights: the sum of the outer products of the patterns, divided by D.

    W = Xi^T Xi / D, that is W_ij = sum_mu xi_i^mu xi_j^mu / D; the diagonal is K / D.

    Local (W_ij sees neurons i and j alone), incremental (the weights of two sets of patterns add), and
    limited to K = 0.138 D. With the diagonal kept, W is positive semi-definite, so E(x) = -x.Wx/2 is
    concave and the synchronous step x <- sign(Wx) never raises it; with a zero diagonal only asynchronous
    steps never raise it.

    Args:
      patterns: Xi, K memories of D spins -1/+1, shape (K, D).
      zero_diagonal: whether to set W_ii = 0, so that a neuron has no effect on itself.

    Returns:
      W, symmetric, shape (D, D).

    Raises:
      ValueError: if ``patterns`` is not a (K, D) matrix of -1 and 1.

    Example:
      >>> hebb(jnp.array([[1.0, -1.0]])).tolist()
      [[0.5, -0.5], [-0.5, 0.5]]

    Reference:
      Hopfield 1982, Neural networks and physical systems with emergent collective computational abilities.
    """
    checks.boolean("zero_diagonal", zero_diagonal)
    patterns = _spin_patterns(patterns)
    weights = patterns.T @ patterns / patterns.shape[1]
    return _without_diagonal(weights) if zero_diagonal else weights


def storkey(patterns: Array, *, zero_diagonal: bool = False) -> Array:
    """Returns Storkey's weights: Hebb's rule with a correction by the local fields of the earlier weights.

    W_ij <- W_ij + (xi_i xi_j - xi_i h_ji - h_ij xi_j) / D, with h_ij = sum_{k != i, j} W_ik xi_k,

    for one pattern after the other, from W = 0. Local and incremental like Hebb's rule, but the order of the
    patterns matters. The diagonal follows the same formula, in which h_ii leaves out one term only: W_ii is
    about K / D, as in Hebb's rule. No other weight depends on it, since h_ij leaves out W_ii; so setting it
    to zero at the end is the same as not learning it.

    Args:
      patterns: Xi, K memories of D spins -1/+1, shape (K, D), in the order of learning.
      zero_diagonal: whether to set W_ii = 0.

    Returns:
      W, symmetric, shape (D, D).

    Raises:
      ValueError: if ``patterns`` is not a (K, D) matrix of -1 and 1.

    Example:
      >>> storkey(jnp.array([[1.0, -1.0]])).tolist()  # the first pattern is learnt as by Hebb's rule
      [[0.5, -0.5], [-0.5, 0.5]]

    Reference:
      Storkey & Valabregue 1999, The basins of attraction of a new Hopfield learning rule.
    """
    checks.boolean("zero_diagonal", zero_diagonal)
    weights = _storkey(_spin_patterns(patterns))
    return _without_diagonal(weights) if zero_diagonal else weights


@jax.jit
def _storkey(patterns: Array) -> Array:
    dimension = patterns.shape[1]

    def learn(weights: Array, pattern: Array) -> tuple[Array, None]:
        # The whole field less its terms k = i and k = j, which are one and the same where i = j.
        without_own = jnp.matmul(weights, pattern, precision="highest") - jnp.diag(weights) * pattern
        fields = without_own[:, None] - _without_diagonal(weights * pattern[None, :])
        known = pattern[:, None] * fields.T  # xi_i h_ji; its transpose is h_ij xi_j
        return weights + (jnp.outer(pattern, pattern) - (known + known.T)) / dimension, None

    return jax.lax.scan(learn, jnp.zeros((dimension, dimension), patterns.dtype), patterns)[0]


def projection(patterns: Array, *, zero_diagonal: bool = False) -> Array:
    """Returns the orthogonal projector on the span of the patterns (the pseudo-inverse rule).

    W = pinv(Xi) Xi = V_r V_r^T, where Xi = U S V^T and r is the number of singular values above the cut-off
    s_max max(K, D) eps, eps being the machine's.

    W xi = xi for every pattern, so all of them are fixed points as long as r < D; at r = D the weights are
    the identity, which holds every state and corrects none. Correlated and linearly dependent patterns do
    no harm. The rule is not local: one more pattern changes every weight. With the diagonal zeroed the
    field on a pattern is (1 - W_ii) xi_i, of the right sign still wherever W_ii < 1, and errors are
    corrected from further away; near r = D, 1 - W_ii sinks below float32's rounding, so keep it there.

    Recall by ``retrieve_asynchronously``, or by ``retrieve(..., rule="difference")``: both leave W_ii out,
    whatever it is. W_ii, about K / D, holds wrong spins too, so that sign(W x), which ``retrieve`` takes if
    nothing is said, corrects few of them near K = D / 2. Part of K random patterns that is recalled, D = 200,
    a tenth of the spins flipped (mean over 5 sets of patterns, standard errors up to .03):

        ================================  ======  ======  =======
        recall                            K = 60  K = 80  K = 100
        ================================  ======  ======  =======
        ``retrieve``                      .997    .370    .002
        ``retrieve``, rule "difference"   1       1       .354
        ``retrieve_asynchronously``       1       .983    .542
        ================================  ======  ======  =======

    Args:
      patterns: Xi, K memories of D spins -1/+1, shape (K, D).
      zero_diagonal: whether to set W_ii = 0.

    Returns:
      W, symmetric, with eigenvalues 0 and 1 (unless the diagonal is zeroed), shape (D, D).

    Raises:
      ValueError: if ``patterns`` is not a (K, D) matrix of -1 and 1.

    Example:
      >>> patterns = jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])  # of rank 2
      >>> weights = projection(patterns)
      >>> round(float(jnp.trace(weights)), 3), bool(jnp.allclose(weights @ weights, weights, atol=1e-5))
      (2.0, True)

    Reference:
      Personnaz, Guyon & Dreyfus 1985, Information storage and retrieval in spin-glass like neural networks;
      Kanter & Sompolinsky 1987, Associative recall of memory without errors (zero diagonal).
    """
    checks.boolean("zero_diagonal", zero_diagonal)
    weights = _projection(_spin_patterns(patterns))
    return _without_diagonal(weights) if zero_diagonal else weights


@jax.jit
def _projection(patterns: Array) -> Array:
    # Not by the eigenvectors of Xi^T Xi: squared, the small singular values fall below float32's rounding
    # (measured, K = 199, D = 200: W xi - xi up to 5e-3, against 5e-6).
    wide = patterns.astype(wide_dtype(patterns))  # there is no decomposition of 16-bit matrices
    _, singular_values, right = jnp.linalg.svd(wide, full_matrices=False)
    cut_off = singular_values[0] * max(wide.shape) * jnp.finfo(wide.dtype).eps
    kept = jnp.where((singular_values > cut_off)[:, None], right, 0.0)
    weights = jnp.matmul(kept.T, kept, precision="highest")
    return (0.5 * (weights + weights.T)).astype(patterns.dtype)


def minimum_probability_flow_loss(weights: Array, bias: Array, patterns: Array) -> Array:
    """Returns how fast probability flows from the patterns to their neighbours, one flip away.

    K(W, b) = mean_x sum_i exp((E(x) - E(x^i)) / 2), where x^i is x with spin i flipped. For E = -x.Wx/2 - b.x

    E(x) - E(x^i) = -2 x_i (h_i - W_ii x_i), h = Wx + b,

    so all D differences come from one field, in O(K D^2). The exponents are linear in (W, b), hence K is
    convex; it is small only where each pattern is a deep local minimum of the energy, and as the flow from
    a state to its neighbour weighs sqrt(p(x^i) / p(x)), its gradient vanishes at the parameters that
    generated the data. For that, neighbours that are data themselves count like all others.

    Args:
      weights: W, shape (D, D); only its symmetric part matters, and its diagonal does not.
      bias: b, shape (D,).
      patterns: states x of D spins -1/+1, shape (K, D).

    Returns:
      The flow, shape ``()``: D at W = 0, b = 0.

    Raises:
      ValueError: if ``patterns`` is not a (K, D) matrix of -1 and 1, or ``weights`` or ``bias`` have other
        shapes.
      TypeError: if one of them is no array of real numbers.

    Example:
      >>> patterns = jnp.array([[1.0, 1.0, -1.0]])
      >>> float(minimum_probability_flow_loss(jnp.zeros((3, 3)), jnp.zeros(3), patterns))
      3.0

    Reference:
      Sohl-Dickstein, Battaglino & DeWeese 2011 (arXiv:0906.4779); Hillar, Sohl-Dickstein & Koepsell 2012
      (arXiv:1204.2916).
    """
    patterns = _spin_patterns(patterns)
    dimension = patterns.shape[1]
    vector("bias", bias, dimension, "one number for each column of patterns")
    checks.array("weights", weights)
    if jnp.shape(weights) != (dimension, dimension):
        raise ValueError(
            f"weights has shape {jnp.shape(weights)}: ({dimension}, {dimension}) is needed, because patterns "
            f"has shape {patterns.shape}."
        )
    weights, bias = jnp.asarray(weights), jnp.asarray(bias)
    coupling = _without_diagonal(0.5 * (weights + weights.T))
    fields = patterns @ coupling + bias[None, :]
    return jnp.mean(jnp.sum(jnp.exp(-patterns * fields), axis=1))


def minimum_probability_flow(
    patterns: Array, *, num_steps: int = 100, penalty: float | Array = 1e-4
) -> tuple[Array, Array]:
    """Returns the weights and bias of least probability flow from the patterns, by L-BFGS.

    argmin K(W, b) + penalty (|W|^2 + |b|^2) / 2, K being ``minimum_probability_flow_loss``.

    Where the patterns can all be strict minima K falls to 0 as the weights grow for ever; the penalty makes
    the objective strongly convex, with one minimum at a finite size, and as it goes to 0 the weights turn
    to those of the largest margin, min x_i h_i / sqrt(|W|^2 + |b|^2). There is no other stopping rule:
    ``num_steps`` steps are taken. The first of them, from 0, goes along Hebb's weights.

    Args:
      patterns: Xi, K memories of D spins -1/+1, shape (K, D).
      num_steps: L-BFGS steps, at least 1; 100 bring the gradient on random patterns to below 1e-3 for K up to
        1.2 D, and to 1e-2 at 1.4 D (D = 200).
      penalty: strength of the pull of W and b to 0, positive. At 1e-4 all of K = 1.4 D random patterns are
        stored (D = 200); a larger one trades depth of the minima for smaller weights.

    Returns:
      ``(weights, bias)``: W, symmetric with zero diagonal, shape (D, D), and b, shape (D,).

    Raises:
      ValueError: if ``patterns`` is not a (K, D) matrix of -1 and 1, ``num_steps`` no integer of at least 1,
        or the penalty not positive.

    Example:
      >>> patterns = jnp.array([[1.0, 1.0, -1.0, -1.0, 1.0], [-1.0, 1.0, 1.0, -1.0, -1.0]])
      >>> weights, bias = minimum_probability_flow(patterns, num_steps=20)
      >>> print(jnp.round(weights[0], 1))
      [ 0.   0.  -3.9  0.   3.9]

    Reference:
      Hillar, Sohl-Dickstein & Koepsell 2012, Efficient and optimal binary Hopfield associative memory
      storage using minimum probability flow (arXiv:1204.2916).
    """
    patterns = _spin_patterns(patterns)
    checks.positive_integer("num_steps", num_steps)
    checks.positive("penalty", penalty)
    checks.one_number("penalty", penalty)
    wide = patterns.astype(wide_dtype(patterns))  # a line search in 16 bits goes nowhere
    weights, bias = _minimum_probability_flow(wide, jnp.asarray(penalty, wide.dtype), num_steps)
    return weights.astype(patterns.dtype), bias.astype(patterns.dtype)


@partial(jax.jit, static_argnums=2)
def _minimum_probability_flow(patterns: Array, penalty: Array, num_steps: int) -> tuple[Array, Array]:
    def objective(parameters: Params) -> Array:
        weights, bias = parameters
        flow = minimum_probability_flow_loss(weights, bias, patterns)
        return flow + 0.5 * penalty * optax.tree.norm(parameters, squared=True)

    optimiser = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def step(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
        parameters, state = carry
        value, gradient = value_and_gradient(parameters, state=state)
        updates, state = optimiser.update(
            gradient, state, parameters, value=value, grad=gradient, value_fn=objective
        )
        return (optax.apply_updates(parameters, updates), state), None

    dimension = patterns.shape[1]
    start = (jnp.zeros((dimension, dimension), patterns.dtype), jnp.zeros(dimension, patterns.dtype))
    ((weights, bias), _), _ = jax.lax.scan(step, (start, optimiser.init(start)), None, length=num_steps)
    # Every gradient is symmetric with zero diagonal; L-BFGS's sums of them are so up to rounding.
    return _without_diagonal(0.5 * (weights + weights.T)), bias
