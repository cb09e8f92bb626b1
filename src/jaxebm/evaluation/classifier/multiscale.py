"""Which inputs look like the data at every noise level? Multiscale score matching analysis."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from jaxebm import checks
from jaxebm.energies.levels import at_level
from jaxebm.evaluation.samples.scale import power_of_two
from jaxebm.trees import wide_dtype
from jaxebm.types import Array, LevelEnergyFn, Params, Position

__all__ = ["ScoreNorms", "fit_score_norms", "score_norms_score"]

BLOCK = 256
"""Examples whose gradients are computed at once."""
RIDGE = 1e-6
"""Share of the mean variance that is added to each variance, so that the covariance can be inverted."""


class ScoreNorms(NamedTuple):
    """The Gaussian that logarithms of score norms of the data follow; made by `fit_score_norms`.

    Attributes:
      levels: the noise levels, ``(L,)``, in units of x.
      mean: of log |sigma grad E(x; sigma)| over the data at each level, ``(L,)``.
      whitening: the inverse of the Cholesky factor of their covariance, ``(L, L)``.
    """

    levels: Array
    mean: Array
    whitening: Array


def fit_score_norms(
    energy_at: LevelEnergyFn, params: Params, x: Position, *, levels: ArrayLike
) -> ScoreNorms:
    r"""Fits a Gaussian to the norms of the scores of data at several noise levels.

    .. math:: u_l(x) = \log |\sigma_l \nabla_x E(x; \sigma_l)|, \qquad u(x) \sim N(m, C)

    How far a network would move an example to make it clean, at each level. Images that are simpler than the
    data are likely under the density, but their norms do not go together as those of data do.

    An example costs one gradient of the energy for each level. Eight levels and 1,000 examples suffice.

    Args:
      energy_at: ``energy_at(params, x, level) -> ()`` of one example, told the level; such as one of
        `jaxebm.energies.marginal_energy_at`.
      params: its parameters.
      x: examples of the data, leading axis ``n`` above the number of levels: training data.
      levels: noise levels sigma > 0, one or more, in units of x, such as ``jnp.geomspace(0.06, 20.0, 8)``.

    Returns:
      The fitted Gaussian, for `score_norms_score`.

    Raises:
      TypeError: if ``energy_at`` is no function of three arguments, or x is not floating point.
      ValueError: if there are no levels, one is not positive, there are too few examples, or the norms of
        one are not finite.

    Example:
      >>> energy_at = lambda params, x, level: 0.5 * jnp.sum(x**2) / (1.0 + level**2)
      >>> x = jax.random.normal(jax.random.key(0), (500, 4))
      >>> fitted = fit_score_norms(energy_at, None, x, levels=[0.5, 2.0])
      >>> fitted.mean.shape, fitted.whitening.shape
      ((2,), (2, 2))

    Reference:
      Mahmood, Oliva & Styner 2021 (arXiv 2010.13132), section 3, with the logarithm of the norms and one
      Gaussian; they fit a mixture of Gaussians, or nearest neighbours.
    """
    norms = log_score_norms(energy_at, levels)
    checks.floating("x", x)
    length, least = checks.batch_length("x", x), np.size(levels)
    if length <= least:
        raise ValueError(f"x holds {length} examples: more than the {least} levels are needed.")
    blocks = jax.jit(lambda params, x: jax.lax.map(lambda one: norms(params, one), x, batch_size=BLOCK))
    found = np.asarray(blocks(params, x), np.float64)
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found).all(axis=1)).sum())
        raise ValueError(f"the gradient of energy_at is not finite at {bad} of {length} examples of x.")
    covariance = np.atleast_2d(np.cov(found.T))
    covariance += (RIDGE * np.trace(covariance) / len(covariance) + np.finfo(np.float32).tiny) * np.eye(
        len(covariance)
    )
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    dtype = wide_dtype(x)
    return ScoreNorms(
        jnp.asarray(levels, dtype), jnp.asarray(found.mean(axis=0), dtype), jnp.asarray(whitening, dtype)
    )


def score_norms_score(energy_at: LevelEnergyFn, fitted: ScoreNorms) -> Callable[[Params, Position], Array]:
    r"""Minus the Mahalanobis distance of an example's score norms from those of data: higher is more alike.

    .. math:: s(x) = -(u(x) - m)^T C^{-1} (u(x) - m), \qquad u_l(x) = \log |\sigma_l \nabla_x E(x; \sigma_l)|

    For data, -s has a mean of the number of levels L. An AUROC of log p(x) far below that of this score says
    that the set is simple: likely under the model's density, and yet unlike data.

    Args:
      energy_at: ``energy_at(params, x, level) -> ()`` of one example, the one that was fitted.
      fitted: of `fit_score_norms` on training data, at the same parameters.

    Returns:
      ``score(params, x) -> ()``, at most 0, for one example; batch it with ``jax.vmap(score, (None, 0))``.

    Raises:
      TypeError: if ``energy_at`` is no function of three arguments, or ``fitted`` is no `ScoreNorms`.

    Example:
      >>> energy_at = lambda params, x, level: 0.5 * jnp.sum(x**2) / (1.0 + level**2)
      >>> x = jax.random.normal(jax.random.key(0), (500, 4))
      >>> score = score_norms_score(energy_at, fit_score_norms(energy_at, None, x, levels=[0.5, 2.0]))
      >>> bool(score(None, jnp.full(4, 0.01)) < score(None, jnp.ones(4)))  # 0 is the most likely point
      True

    Reference:
      Mahmood, Oliva & Styner 2021 (arXiv 2010.13132), section 3.
    """
    checks.instance("fitted", fitted, ScoreNorms, "fit_score_norms(...) makes one.")
    norms = log_score_norms(energy_at, fitted.levels)

    def score(params: Params, x: Position) -> Array:
        checks.floating("x", x)
        return -jnp.sum(jnp.square(fitted.whitening @ (norms(params, x) - fitted.mean)))

    return score


def log_score_norms(energy_at: LevelEnergyFn, levels: ArrayLike) -> Callable[[Params, Position], Array]:
    """Returns (params, x) -> log |sigma grad E(x; sigma)| of one example at every level, ``(L,)``."""
    checks.function("energy_at", energy_at, "params", "x", "level")
    checks.array("levels", levels)
    if np.ndim(levels) != 1 or np.size(levels) == 0:
        raise ValueError(
            f"levels has shape {np.shape(levels)}: (L,) with one or more noise levels is needed."
        )
    checks.finite("levels", levels)
    checks.positive("levels", levels)

    def norms(params: Params, x: Position) -> Array:
        dtype = wide_dtype(x)

        def of_level(level: Array) -> Array:
            gradient, _ = ravel_pytree(jax.grad(at_level(energy_at, level), argnums=1)(params, x))
            gradient = gradient.astype(dtype)
            unit = power_of_two(gradient)  # squares of small slopes vanish
            length = jnp.sqrt(jnp.sum(jnp.square(gradient / unit))) * unit
            return jnp.log(jnp.maximum(level * length, jnp.finfo(dtype).tiny))

        return jax.lax.map(of_level, jnp.asarray(levels, dtype))

    return norms
