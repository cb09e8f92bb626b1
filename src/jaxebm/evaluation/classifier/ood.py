r"""Which inputs look like the data? Scores of an example, and how well they separate.

Every score is higher for an example that looks more in-distribution; three are those of JEM. ``OOD_SCORES``
names them, and ``OOD_SETS`` (`jaxebm.evaluation.classifier.ood_sets`) what to separate from, so that an
experiment is two loops. ``typicality_score`` is not in the table, as it needs a number from the training
data.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from jaxebm import checks
from jaxebm.energies.classifier import log_class_probability, marginal_energy
from jaxebm.evaluation.samples.scale import power_of_two
from jaxebm.trees import square_root
from jaxebm.types import Array, LogitsFn, Params, Position

__all__ = [
    "OOD_SCORES",
    "auprc",
    "auroc",
    "confidence_score",
    "false_positive_rate",
    "gradient_norm_score",
    "joint_maximum_score",
    "log_density_score",
    "typicality_score",
]

Score = Callable[[Params, Position], Array]


def log_density_score(logits: LogitsFn) -> Score:
    r"""Unnormalised log-density: higher is more in-distribution.

    s(x) = log p(x) + log Z = logsumexp_y f(x)[y] = -E(x). The unknown log Z is the same for every x, so
    ranking does not need it. The "energy score" of energy-based detection (Liu et al. 2020) is the same
    number, so ``OOD_SCORES`` has no entry ``energy``.

    Args:
      logits: ``(params, x) -> (K,)``, for one example.

    Returns:
      ``score(params, x) -> ()`` in nats, for one example; batch it with ``jax.vmap(score, (None, 0))``.

    Raises:
      TypeError: if the logits are no such function.
      ValueError: when called, if the logits of one example are not of rank one.

    Example:
      >>> score = log_density_score(lambda params, x: params @ x)
      >>> round(float(score(jnp.eye(2), jnp.array([0.0, 0.0]))), 4)
      0.6931

    Reference:
      Grathwohl et al. 2020 (JEM, arXiv 1912.03263), equation 7 and section 5.3.1; Liu et al. 2020 (arXiv
      2010.03759).
    """
    checks.function("logits", logits, "params", "x")
    energy = marginal_energy(logits)

    def score(params: Params, x: Position) -> Array:
        return -energy(params, x)

    return score


def confidence_score(logits: LogitsFn) -> Score:
    r"""Probability of the most probable class: higher is more in-distribution.

    s(x) = max_y p(y|x) = max_y softmax(f(x))[y]. In float32 it rounds to exactly 1 when the runner-up lies
    more than about 17 nats behind; such examples tie.

    Args:
      logits: ``(params, x) -> (K,)``, for one example.

    Returns:
      ``score(params, x) -> ()`` in [1/K, 1], for one example; batch it with ``jax.vmap(score, (None, 0))``.

    Raises:
      TypeError: if the logits are no such function.
      ValueError: when called, if the logits of one example are not of rank one.

    Example:
      >>> score = confidence_score(lambda params, x: params @ x)
      >>> round(float(score(jnp.eye(2), jnp.array([0.0, 0.0]))), 4)
      0.5

    Reference:
      Hendrycks & Gimpel 2017 (arXiv 1610.02136); JEM (arXiv 1912.03263), section 5.3.2.
    """
    checks.function("logits", logits, "params", "x")
    log_probability = log_class_probability(logits)

    def score(params: Params, x: Position) -> Array:
        return jnp.exp(jnp.max(log_probability(params, x)))

    return score


def gradient_norm_score(logits: LogitsFn) -> Score:
    r"""Minus the length of the score vector (JEM's approximate mass): higher is more in-distribution.

    s(x) = -|| d log p(x) / dx ||_2, with log p(x) = logsumexp_y f(x)[y] - log Z. A point may have high
    density and yet lie outside the typical set; there the density changes fast.

    Args:
      logits: ``(params, x) -> (K,)``, for one example, differentiable in ``x``.

    Returns:
      ``score(params, x) -> ()``, at most 0, in nats per unit of ``x``, for one example; batch it with
      ``jax.vmap(score, (None, 0))``. Its own derivative is 0 where the score vector is 0.

    Raises:
      ValueError: when called, if the logits of one example are not of rank one.
      TypeError: if the logits are no such function; when called, if ``x`` is not floating point.

    Example:
      >>> score = gradient_norm_score(lambda params, x: params @ x)
      >>> round(float(score(jnp.eye(2), jnp.array([0.0, 0.0]))), 4)
      -0.7071

    Reference:
      Grathwohl et al. 2020 (JEM, arXiv 1912.03263), section 5.3.3.
    """
    log_density = log_density_score(logits)

    def score(params: Params, x: Position) -> Array:
        checks.floating("x", x)
        gradient, _ = ravel_pytree(jax.grad(log_density, argnums=1)(params, x))
        # Slopes of a sure classifier are so small that their squares vanish.
        unit = power_of_two(gradient)
        return -square_root(jnp.sum(jnp.square(gradient / unit))) * unit

    return score


def joint_maximum_score(logits: LogitsFn) -> Score:
    r"""Unnormalised log-density of an example with its most probable class: higher is more in-distribution.

    s(x) = max_y f(x)[y] = max_y log p(x, y) + log Z. It lies within log K below ``log_density_score``, and is
    least where no class owns the example: log p(x) + log max_y p(y|x) (+ log Z) is the same number, a density
    and a confidence in one.

    Args:
      logits: ``(params, x) -> (K,)``, for one example.

    Returns:
      ``score(params, x) -> ()`` in nats, for one example; batch it with ``jax.vmap(score, (None, 0))``.

    Raises:
      TypeError: if the logits are no such function.
      ValueError: when called, if the logits of one example are not of rank one.

    Example:
      >>> score = joint_maximum_score(lambda params, x: params @ x)
      >>> float(score(jnp.eye(2), jnp.array([3.0, 1.0])))
      3.0

    Reference:
      Hendrycks et al. 2022 (arXiv 1911.11132), the maximum logit; log p(x, y) after JEM (arXiv 1912.03263),
      equation 5.
    """
    log_density, confidence = log_density_score(logits), log_class_probability(logits)

    def score(params: Params, x: Position) -> Array:
        return log_density(params, x) + jnp.max(confidence(params, x))

    return score


def typicality_score(logits: LogitsFn, mean_log_density: Array | float) -> Score:
    r"""Minus the distance of an example's log-density from that of the data: higher is more in-distribution.

    s(x) = -| log p(x) - (1/N) \sum_n log p(x_n) |, with x_n the training examples. In high dimension data are
    not where the density is highest: a flat image may be likelier than any photograph, and this score then
    ranks it low. Both log-densities may be unnormalised, as log Z cancels. It is the test of Nalisnick et
    al. for a batch of a single example.

    Args:
      logits: ``(params, x) -> (K,)``, for one example.
      mean_log_density: ``()``, the mean of ``log_density_score`` over the training data, at the same params,
        in nats.

    Returns:
      ``score(params, x) -> ()``, at most 0, in nats, for one example; batch it with
      ``jax.vmap(score, (None, 0))``.

    Raises:
      TypeError: if the logits are no such function.
      ValueError: if ``mean_log_density`` is not one finite number; when called, if the logits of one example
        are not of rank one.

    Example:
      >>> logits, training = (lambda params, x: params * x), jnp.array([[2.0], [4.0]])
      >>> mean = jax.vmap(log_density_score(logits), (None, 0))(1.0, training).mean()
      >>> score = typicality_score(logits, mean)
      >>> float(score(1.0, jnp.array([3.5]))), float(score(1.0, jnp.array([9.0])))
      (-0.5, -6.0)

    Reference:
      Nalisnick et al. 2019, "Detecting out-of-distribution inputs to deep generative models using typicality"
      (arXiv 1906.02994), section 3, with M = 1.
    """
    checks.array("mean_log_density", mean_log_density, (), "one number, the mean over the training data,")
    checks.finite("mean_log_density", mean_log_density)
    log_density = log_density_score(logits)

    def score(params: Params, x: Position) -> Array:
        return -jnp.abs(log_density(params, x) - mean_log_density)

    return score


OOD_SCORES: dict[str, Callable[[LogitsFn], Score]] = {
    "log_density": log_density_score,
    "confidence": confidence_score,
    "gradient_norm": gradient_norm_score,
    "joint_maximum": joint_maximum_score,
}
"""Name -> maker of a score from logits; every score is higher in-distribution."""


def _score_pair(in_scores: ArrayLike, out_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores in float64; infinite ones are in order like any other, NaN are refused."""
    for name, scores in (("in_scores", in_scores), ("out_scores", out_scores)):
        checks.array(name, scores)
        if np.ndim(scores) != 1 or np.size(scores) == 0:
            raise ValueError(f"{name} has shape {np.shape(scores)}: (n,) with n >= 1 scores is needed.")
        numbers = np.asarray(scores, np.float64)
        checks.finite(name, numbers[~np.isinf(numbers)])
    return np.asarray(in_scores, np.float64), np.asarray(out_scores, np.float64)


def _scikit_learn_pair(in_scores: ArrayLike, out_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the truth (1 inside, 0 outside) and the scores, as scikit-learn takes them."""
    inside, outside = _score_pair(in_scores, out_scores)
    is_inside = np.concatenate([np.ones(inside.size), np.zeros(outside.size)])
    scores = np.concatenate([inside, outside])
    if np.isinf(scores).any():  # scikit-learn takes none, and only the order counts
        scores = np.unique(scores, return_inverse=True)[1]
    return is_inside, scores


def auroc(in_scores: ArrayLike, out_scores: ArrayLike) -> float:
    r"""Area under the ROC curve: the probability that an inside example scores above an outside one.

    AUROC = P(s_in > s_out) + P(s_in = s_out) / 2, the Mann-Whitney statistic: 1 separates, 0.5 is blind, and
    below 0.5 the score points the wrong way. Unchanged by any increasing transformation of the scores.

    Args:
      in_scores: ``(n,)`` scores of in-distribution examples, higher meaning more in-distribution; may be
        infinite.
      out_scores: ``(m,)`` scores of the others.

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: for empty or not one-dimensional scores, or NaN.
      ImportError: if scikit-learn is missing.

    Example:
      >>> auroc([2.0, 3.0, 1.0], [0.0, 1.0])  # five pairs in order and one tie, of six
      0.9166666666666666

    Reference:
      Hendrycks & Gimpel 2017 (arXiv 1610.02136); Hanley & McNeil 1982 for the pair-counting
      identity.
    """
    is_inside, scores = _scikit_learn_pair(in_scores, out_scores)
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ImportError(
            "auroc needs scikit-learn: pip install scikit-learn, or jaxebm[experiments]."
        ) from error
    return float(roc_auc_score(is_inside, scores))


def auprc(in_scores: ArrayLike, out_scores: ArrayLike) -> float:
    r"""Area under the precision-recall curve, the in-distribution examples being the positive ones.

    AUPR = \sum_t (R_t - R_{t-1}) P_t over thresholds t from the highest score down, with P_t the fraction of
    inside ones among all examples that score at least t, and R_t the fraction of inside ones that do: the
    average precision, no interpolation. 1 separates; a blind score gives n / (n + m). Unlike the AUROC it
    depends on how many of either kind there are, so state n and m.

    Args:
      in_scores: ``(n,)`` scores of in-distribution examples, higher meaning more in-distribution; may be
        infinite.
      out_scores: ``(m,)`` scores of the others. With the two exchanged and both negated, the outside ones are
        the positive ones ("AUPR-out").

    Returns:
      A float in (0, 1].

    Raises:
      ValueError: for empty or not one-dimensional scores, or NaN.
      ImportError: if scikit-learn is missing.

    Example:
      >>> auprc([3.0, 1.0], [2.0])  # precision 1 at recall 1/2, then 2/3 at recall 1
      0.8333333333333333

    Reference:
      Hendrycks & Gimpel 2017 (arXiv 1610.02136), "AUPR In"; Davis & Goadrich 2006 on why the curve is not
      interpolated linearly.
    """
    is_inside, scores = _scikit_learn_pair(in_scores, out_scores)
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise ImportError(
            "auprc needs scikit-learn: pip install scikit-learn, or jaxebm[experiments]."
        ) from error
    return float(average_precision_score(is_inside, scores))


def false_positive_rate(
    in_scores: ArrayLike, out_scores: ArrayLike, true_positive_rate: float = 0.95
) -> float:
    r"""Fraction of outside examples that pass the strictest threshold which enough inside ones pass (FPR95).

    FPR = (1/m) \#{s_out >= t}, where t is the ceil(n * true_positive_rate)-th largest inside score, the
    highest threshold with P(s_in >= t) >= true_positive_rate. Lower is better.

    Args:
      in_scores: ``(n,)`` scores of in-distribution examples, higher meaning more in-distribution; may be
        infinite.
      out_scores: ``(m,)`` scores of the others.
      true_positive_rate: the fraction of inside examples to accept, in (0, 1].

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: for empty or not one-dimensional scores, NaN, or a rate outside (0, 1].

    Example:
      >>> false_positive_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.5, 2.0, 5.0], true_positive_rate=0.75)
      0.75

    Reference:
      Liang et al. 2018 (ODIN, arXiv 1706.02690), "FPR at 95% TPR".
    """
    checks.number("true_positive_rate", true_positive_rate)
    checks.positive("true_positive_rate", true_positive_rate)
    checks.in_range("true_positive_rate", true_positive_rate, 0.0, 1.0)
    inside, outside = _score_pair(in_scores, out_scores)
    # 0.07 * 100 is 7.000000000000001 in floating point: the small slack keeps ceil at 7.
    accepted = max(1, math.ceil(inside.size * true_positive_rate - 1e-9))
    threshold = np.sort(inside)[inside.size - accepted]
    return float(np.mean(outside >= threshold))
