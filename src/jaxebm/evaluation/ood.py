r"""Which inputs look like the data? Scores of an example, how well they separate, and sets to separate from.

Every score is higher for an example that looks more in-distribution; the three are those of JEM.
``OOD_SCORES`` and ``OOD_SETS`` name them, so that an experiment is two loops.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from jaxebm import checks
from jaxebm.energies.classifier import log_class_probability, marginal_energy
from jaxebm.types import Array, LogitsFn, Params, Position

__all__ = [
    "OOD_SCORES",
    "OOD_SETS",
    "auroc",
    "confidence_score",
    "constant_images",
    "false_positive_rate",
    "gradient_norm_score",
    "interpolations",
    "log_density_score",
    "permute_pixels",
    "uniform_noise",
]

Score = Callable[[Params, Position], Array]


def log_density_score(logits: LogitsFn) -> Score:
    r"""Unnormalised log-density: higher is more in-distribution.

    s(x) = log p(x) + log Z = logsumexp_y f(x)[y] = -E(x). The unknown log Z is the same for every x, so
    ranking needs it not. Energy-based detection (Liu et al. 2020) is this score.

    Args:
      logits: ``(params, x) -> (K,)``, for one example.

    Returns:
      ``score(params, x) -> ()`` in nats, for one example; batch it with ``jax.vmap(score, (None, 0))``.

    Raises:
      ValueError: when called, if the logits of one example are not of rank one.

    Example:
      >>> score = log_density_score(lambda params, x: params @ x)
      >>> round(float(score(jnp.eye(2), jnp.array([0.0, 0.0]))), 4)
      0.6931

    Reference:
      Grathwohl et al. 2020 (JEM, arXiv 1912.03263), equation 7 and section 5.3.1; Liu et al. 2020 (arXiv
      2010.03759).
    """
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
      ValueError: when called, if the logits of one example are not of rank one.

    Example:
      >>> score = confidence_score(lambda params, x: params @ x)
      >>> round(float(score(jnp.eye(2), jnp.array([0.0, 0.0]))), 4)
      0.5

    Reference:
      Hendrycks & Gimpel 2017 (arXiv 1610.02136); JEM (arXiv 1912.03263), section 5.3.2.
    """
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
      ``jax.vmap(score, (None, 0))``.

    Raises:
      ValueError: when called, if the logits of one example are not of rank one.
      TypeError: when called, if ``x`` is not floating point.

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
        return -jnp.linalg.norm(gradient)

    return score


OOD_SCORES: dict[str, Callable[[LogitsFn], Score]] = {
    "log_density": log_density_score,
    "confidence": confidence_score,
    "gradient_norm": gradient_norm_score,
}
"""Name -> maker of a score from logits; every score is higher in-distribution."""


def _score_pair(in_scores: ArrayLike, out_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    for name, scores in (("in_scores", in_scores), ("out_scores", out_scores)):
        if np.ndim(scores) != 1 or np.size(scores) == 0:
            raise ValueError(f"{name} has shape {np.shape(scores)}: (n,) with n >= 1 scores is needed.")
        checks.finite(name, scores)
    return np.asarray(in_scores, np.float64), np.asarray(out_scores, np.float64)


def auroc(in_scores: ArrayLike, out_scores: ArrayLike) -> float:
    r"""Area under the ROC curve: the chance that an in-distribution example scores above an outside one.

    AUROC = P(s_in > s_out) + P(s_in = s_out) / 2, the Mann-Whitney statistic: 1 separates, 0.5 is blind, and
    below 0.5 the score points the wrong way. Unchanged by any increasing transformation of the scores.

    Args:
      in_scores: ``(n,)`` scores of in-distribution examples, higher meaning more in-distribution.
      out_scores: ``(m,)`` scores of the others.

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: for empty, non-finite or not one-dimensional scores.
      ImportError: if scikit-learn is missing.

    Example:
      >>> auroc([2.0, 3.0, 1.0], [0.0, 1.0])  # five pairs in order and one tie, of six
      0.9166666666666666

    Reference:
      Hendrycks & Gimpel 2017 (arXiv 1610.02136); Hanley & McNeil 1982 for the pair-counting
      identity.
    """
    inside, outside = _score_pair(in_scores, out_scores)
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ImportError(
            "auroc needs scikit-learn: pip install scikit-learn, or jaxebm[experiments]."
        ) from error
    is_inside = np.concatenate([np.ones(inside.size), np.zeros(outside.size)])
    return float(roc_auc_score(is_inside, np.concatenate([inside, outside])))


def false_positive_rate(
    in_scores: ArrayLike, out_scores: ArrayLike, true_positive_rate: float = 0.95
) -> float:
    r"""Fraction of outside examples that pass the strictest threshold which enough inside ones pass (FPR95).

    FPR = (1/m) \#{s_out >= t}, where t is the ceil(n * true_positive_rate)-th largest inside score, the
    highest threshold with P(s_in >= t) >= true_positive_rate. Lower is better.

    Args:
      in_scores: ``(n,)`` scores of in-distribution examples, higher meaning more in-distribution.
      out_scores: ``(m,)`` scores of the others.
      true_positive_rate: the fraction of inside examples to accept, in (0, 1].

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: for empty, non-finite or not one-dimensional scores, or a rate outside (0, 1].

    Example:
      >>> false_positive_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.5, 2.0, 5.0], true_positive_rate=0.75)
      0.75

    Reference:
      Liang et al. 2018 (ODIN, arXiv 1706.02690), "FPR at 95% TPR".
    """
    checks.positive("true_positive_rate", true_positive_rate)
    checks.in_range("true_positive_rate", true_positive_rate, 0.0, 1.0)
    inside, outside = _score_pair(in_scores, out_scores)
    # 0.07 * 100 is 7.000000000000001 in floating point: the small slack keeps ceil at 7.
    accepted = max(1, math.ceil(inside.size * true_positive_rate - 1e-9))
    threshold = np.sort(inside)[inside.size - accepted]
    return float(np.mean(outside >= threshold))


def _checked_images(images: ArrayLike) -> np.ndarray:
    checks.floating("images", images)
    if np.ndim(images) != 4 or np.size(images) == 0:
        raise ValueError(
            f"images has shape {np.shape(images)}: non-empty (n, height, width, channels) is needed."
        )
    return np.asarray(images)


def uniform_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Images of independent pixels, uniform on [-1, 1].

    Args:
      rng: NumPy generator; one seed, one set.
      shape: ``(n, height, width, channels)``.

    Returns:
      float32 array of that shape, in [-1, 1].

    Example:
      >>> uniform_noise(np.random.default_rng(0), (5, 8, 8, 1)).shape
      (5, 8, 8, 1)
    """
    return rng.uniform(-1.0, 1.0, shape).astype(np.float32)


def constant_images(rng: np.random.Generator, n: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Flat images: one value for each image and channel, uniform on [-1, 1].

    Args:
      rng: NumPy generator; one seed, one set.
      n: number of images.
      shape: ``(height, width, channels)`` of one image.

    Returns:
      float32 array ``(n, height, width, channels)``, in [-1, 1].

    Raises:
      ValueError: if ``n`` is not a positive integer.

    Example:
      >>> images = constant_images(np.random.default_rng(0), 5, (8, 8, 3))
      >>> images.shape, float(np.ptp(images, axis=(1, 2)).max())
      ((5, 8, 8, 3), 0.0)
    """
    checks.positive_integer("n", n)
    height, width, channels = shape
    values = rng.uniform(-1.0, 1.0, (n, 1, 1, channels)).astype(np.float32)
    return np.tile(values, (1, height, width, 1))


def permute_pixels(rng: np.random.Generator, images: ArrayLike) -> np.ndarray:
    """Each image with its pixels in a random order of its own: the same histogram, no structure.

    Positions are permuted and a pixel's channels stay together, so colours are kept.

    Args:
      rng: NumPy generator; one seed, one set.
      images: ``(n, height, width, channels)``.

    Returns:
      Array of the same shape and dtype.

    Raises:
      ValueError: if ``images`` is empty or not of rank four.
      TypeError: if ``images`` is not floating point.

    Example:
      >>> images = np.linspace(-1.0, 1.0, 8).reshape(1, 2, 4, 1)
      >>> permuted = permute_pixels(np.random.default_rng(0), images)
      >>> bool((np.sort(permuted, axis=None) == images.ravel()).all())
      True
    """
    pixels = _checked_images(images)
    n, height, width, channels = pixels.shape
    order = rng.permuted(np.tile(np.arange(height * width), (n, 1)), axis=1)
    flat = pixels.reshape(n, height * width, channels)
    return np.take_along_axis(flat, order[:, :, None], axis=1).reshape(pixels.shape)


def interpolations(rng: np.random.Generator, images: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Midpoints of two images of different classes: near the data in every pixel, yet of no class.

    x_i <- (x_i + x_j) / 2, with j uniform among the images whose label differs from that of i.

    Args:
      rng: NumPy generator; one seed, one set.
      images: ``(n, height, width, channels)``.
      labels: ``(n,)`` integers.

    Returns:
      Array of the same shape and dtype as ``images``; row i mixes image i with another.

    Raises:
      ValueError: if shapes do not agree, or all labels are the same.
      TypeError: if ``images`` is not floating point or ``labels`` not integer.

    Example:
      >>> images = np.stack([np.full((2, 2, 1), -1.0), np.full((2, 2, 1), 1.0)])
      >>> float(np.abs(interpolations(np.random.default_rng(0), images, np.array([0, 1]))).max())
      0.0

    Reference:
      Grathwohl et al. 2020 (JEM, arXiv 1912.03263), section 5.3, the "Interp" set, there of any two images.
    """
    pixels = _checked_images(images)
    classes = np.asarray(labels)
    if classes.shape != pixels.shape[:1]:
        raise ValueError(
            f"labels has shape {classes.shape}: {pixels.shape[:1]} is needed, one label for each image."
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise TypeError(f"labels has dtype {classes.dtype}: integer class labels are needed.")
    present = np.unique(classes)
    if present.size < 2:
        raise ValueError(
            f"labels holds the single class {int(present[0])}: images of two classes or more are needed."
        )
    partners = np.empty(classes.size, np.intp)
    for one_class in present:
        members, others = np.flatnonzero(classes == one_class), np.flatnonzero(classes != one_class)
        partners[members] = rng.choice(others, members.size)
    return (0.5 * (pixels + pixels[partners])).astype(pixels.dtype)


def _uniform_noise_like(rng: np.random.Generator, images: Any, labels: Any) -> np.ndarray:
    return uniform_noise(rng, _checked_images(images).shape)


def _constant_images_like(rng: np.random.Generator, images: Any, labels: Any) -> np.ndarray:
    n, height, width, channels = _checked_images(images).shape
    return constant_images(rng, n, (height, width, channels))


def _permute_pixels_of(rng: np.random.Generator, images: Any, labels: Any) -> np.ndarray:
    return permute_pixels(rng, images)


OOD_SETS: dict[str, Callable[[np.random.Generator, Any, Any], np.ndarray]] = {
    "uniform_noise": _uniform_noise_like,
    "constant": _constant_images_like,
    "permuted_pixels": _permute_pixels_of,
    "interpolation": interpolations,
}
"""Name -> ``(rng, images, labels) -> images`` of the same shape, made from a test set or in its shape."""
