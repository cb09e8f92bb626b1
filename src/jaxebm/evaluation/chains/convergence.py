"""Have the chains converged, and how precise is their mean? Diagnostics of a history.

A history is what ``run_chains(..., collect=...)`` returns: one array ``(num_chains, num_steps, ...)``, whose
entries, each a scalar quantity followed along every chain, are judged one by one. The estimators are
BlackJAX's. An entry that was not finite throughout gets NaN, never the number that its finite part would have
had.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Array

__all__ = [
    "ChainSummary",
    "effective_sample_size",
    "integrated_autocorrelation_time",
    "monte_carlo_standard_error",
    "r_hat",
    "rank_normalised_r_hat",
    "summarise_chains",
]

_KINDS = ("mean", "bulk", "tail")


class ChainSummary(NamedTuple):
    """Diagnostics of each entry of a history; leaves have the shape of an entry, ``(...)``.

    Attributes:
      mean: over all draws of all chains, in units of the entry.
      standard_deviation: of all draws, in the same units.
      standard_error: of the mean, ``monte_carlo_standard_error``, in the same units.
      effective_sample_size: for the mean, in draws.
      tail_effective_sample_size: for the 5% and 95% quantiles, the lesser, in draws.
      autocorrelation_time: in steps, ``integrated_autocorrelation_time``.
      r_hat: ``rank_normalised_r_hat``; NaN throughout for a single chain, which it cannot judge.
      acceptance_rate: of each chain, ``(num_chains,)``, so that a frozen one shows; ``None`` if not given.
    """

    mean: Array
    standard_deviation: Array
    standard_error: Array
    effective_sample_size: Array
    tail_effective_sample_size: Array
    autocorrelation_time: Array
    r_hat: Array
    acceptance_rate: Array | None


def effective_sample_size(history: Array, kind: Literal["mean", "bulk", "tail"] = "mean") -> Array:
    r"""Effective sample size: the number of independent draws with the same precision.

    .. math:: n_{eff} = \frac{M N}{\tau}, \qquad \tau = 1 + 2 \sum_{t \ge 1} \rho_t

    for M chains of N steps. The autocorrelations rho_t are relative to the variance over *all* chains, so
    chains that disagree have few effective draws, and the sum is cut where Geyer's initial monotone sequence
    ends.

    Args:
      history: ``(num_chains, num_steps, ...)``, at least 4 steps.
      kind: "mean": for the mean of the entry itself; "bulk": of its normal scores, which exist where its
        variance does not; "tail": for its 5% and 95% quantiles, the lesser of both.

    Returns:
      ``(...)``, in draws. It exceeds M N where draws are anticorrelated, is 0 where no chain ever moved, and
      NaN where a draw is not finite.

    Raises:
      ValueError: if the history has fewer than two axes or four steps, or for another kind.
      TypeError: if the history is not floating-point.

    Example:
      >>> history = jax.random.normal(jax.random.key(0), (4, 500))  # 2,000 independent draws
      >>> bool(abs(effective_sample_size(history) / 2000 - 1) < 0.2)
      True

    Reference:
      Geyer 1992, Practical Markov chain Monte Carlo; Vehtari et al. 2021 (arXiv:1903.08008),
      sections 3 and 4; blackjax.diagnostics.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r}: kind must be one of {_KINDS}.")
    _check_history(history)
    return _effective_sample_size(jnp.asarray(history), kind)


def r_hat(history: Array) -> Array:
    r"""Potential scale reduction: by what factor chains that mixed longer might still shrink in width.

    .. math:: \hat R = \sqrt{\frac{N - 1}{N} + \frac{B}{N W}}

    with W the mean variance within chains and B / N the variance of the chains' means. It is 1 in the limit
    of many steps, and is blind where chains agree in their mean and not in their variance: for that, and for
    heavy tails, ``rank_normalised_r_hat``.

    Args:
      history: ``(num_chains, num_steps, ...)``, at least 2 chains and 4 steps.

    Returns:
      ``(...)``. Infinite where chains stand still at different places; NaN where all stand still at one, or
      where a draw is not finite.

    Raises:
      ValueError: if the history has fewer than two axes, two chains or four steps.
      TypeError: if the history is not floating-point.

    Example:
      >>> far_apart = jnp.array([[1.0, 2.0, 3.0, 4.0], [11.0, 12.0, 13.0, 14.0]])
      >>> round(float(r_hat(far_apart)), 3)
      5.545

    Reference:
      Gelman & Rubin 1992, Inference from iterative simulation using multiple sequences.
    """
    _check_history(history, least_chains=2)
    return _r_hat(jnp.asarray(history))


def rank_normalised_r_hat(history: Array) -> Array:
    r"""The improved R-hat: of split chains, of normal scores, for location and for scale, the larger of both.

    Every chain is cut in halves (so a common drift shows), draws are replaced by
    Phi^{-1}((rank - 3/8) / (S + 1/4)) among all S of them (so heavy tails do no harm), and ``r_hat`` is taken
    of these and of the same for |x - median| (so chains of different width show).

    Args:
      history: ``(num_chains, num_steps, ...)``, at least 2 chains and 4 steps.

    Returns:
      ``(...)``. Below 1.01 is what Vehtari et al. ask before draws are used; NaN where no draw differs, or
      where one is not finite.

    Raises:
      ValueError: if the history has fewer than two axes, two chains or four steps.
      TypeError: if the history is not floating-point.

    Example:
      >>> width = jnp.array([[1.0], [1.0], [1.0], [4.0]])
      >>> history = width * jax.random.normal(jax.random.key(0), (4, 500))
      >>> bool(r_hat(history) < 1.01), bool(rank_normalised_r_hat(history) > 1.1)
      (True, True)

    Reference:
      Vehtari et al. 2021, Rank-normalization, folding, and localization (arXiv:1903.08008), section 4.
    """
    _check_history(history, least_chains=2)
    return _rank_normalised_r_hat(jnp.asarray(history))


def integrated_autocorrelation_time(history: Array) -> Array:
    r"""Integrated autocorrelation time: the number of steps per independent draw.

    .. math:: \tau = 1 + 2 \sum_{t \ge 1} \rho_t = M N / n_{eff}

    An AR(1) process of coefficient rho has (1 + rho) / (1 - rho). The estimate cannot see a time longer than
    the history: where tau is not far below num_steps, or R-hat far above 1, it is too low.

    Args:
      history: ``(num_chains, num_steps, ...)``, at least 4 steps.

    Returns:
      ``(...)``, in steps: 1 for independent draws, infinite where no chain ever moved, NaN where a draw is
      not finite.

    Raises:
      ValueError: if the history has fewer than two axes or four steps.
      TypeError: if the history is not floating-point.

    Example:
      >>> history = jax.random.normal(jax.random.key(0), (4, 500))
      >>> bool(abs(integrated_autocorrelation_time(history) - 1) < 0.2)
      True

    Reference:
      Sokal 1997, Monte Carlo methods in statistical mechanics, section 3 (whose time is half of this one).
    """
    _check_history(history)
    return history.shape[0] * history.shape[1] / _effective_sample_size(jnp.asarray(history), "mean")


def monte_carlo_standard_error(history: Array) -> Array:
    r"""Standard error of the mean over all draws, with their correlation.

    .. math:: \mathrm{se} = s / \sqrt{n_{eff}}

    Args:
      history: ``(num_chains, num_steps, ...)``, at least 4 steps.

    Returns:
      ``(...)``, in units of the entry; NaN where a draw is not finite or where no chain ever moved.

    Raises:
      ValueError: if the history has fewer than two axes or four steps.
      TypeError: if the history is not floating-point.

    Example:
      >>> history = jax.random.normal(jax.random.key(0), (4, 500))
      >>> bool(abs(monte_carlo_standard_error(history) * 2000**0.5 - 1) < 0.2)
      True

    Reference:
      Vehtari et al. 2021 (arXiv:1903.08008), section 3.
    """
    _check_history(history)
    draws = jnp.asarray(history)
    return _standard_deviation(draws) / jnp.sqrt(_effective_sample_size(draws, "mean"))


def summarise_chains(history: Array, acceptance: Array | None = None) -> ChainSummary:
    """All of these diagnostics at once.

    Args:
      history: ``(num_chains, num_steps, ...)``, at least 4 steps.
      acceptance: ``(num_chains, num_steps)``, acceptance probabilities or decisions, where the kernel has
        them.

    Returns:
      A ``ChainSummary``.

    Raises:
      ValueError: if the history has fewer than two axes or four steps, or acceptance another shape.
      TypeError: if the history is not floating-point.

    Example:
      ``run_chains`` gives both arguments if its ``collect`` returns
      ``(state.position, info.acceptance_rate)``. Of independent draws:

      >>> history = jax.random.normal(jax.random.key(0), (4, 500))
      >>> summary = summarise_chains(history, jnp.ones((4, 500)))
      >>> bool(abs(summary.mean) < 4 * summary.standard_error), bool(summary.r_hat < 1.01)
      (True, True)
    """
    _check_history(history)
    draws = jnp.asarray(history)
    num_chains, num_steps = draws.shape[:2]
    if acceptance is not None and jnp.shape(acceptance) != (num_chains, num_steps):
        raise ValueError(
            f"acceptance has shape {jnp.shape(acceptance)}: {(num_chains, num_steps)} is needed, one for "
            f"each chain and step of the history."
        )
    effective = _effective_sample_size(draws, "mean")
    deviation = _standard_deviation(draws)
    return ChainSummary(
        mean=jnp.mean(draws, axis=(0, 1)),
        standard_deviation=deviation,
        standard_error=deviation / jnp.sqrt(effective),
        effective_sample_size=effective,
        tail_effective_sample_size=_effective_sample_size(draws, "tail"),
        autocorrelation_time=num_chains * num_steps / effective,
        r_hat=_rank_normalised_r_hat(draws) if num_chains > 1 else jnp.full(draws.shape[2:], jnp.nan),
        acceptance_rate=None if acceptance is None else jnp.mean(jnp.asarray(acceptance, float), axis=1),
    )


def _check_history(history: Any, least_chains: int = 1) -> None:
    shape = jnp.shape(history)
    if len(shape) < 2 or shape[0] < least_chains or shape[1] < 4:
        raise ValueError(
            f"history has shape {shape}: (num_chains, num_steps, ...) is needed, with at least "
            f"{least_chains} chain{'s' if least_chains > 1 else ''} and 4 steps."
        )
    checks.floating("history", history)


def _each_entry(diagnostic: Callable[[Array], Array], history: Array) -> Array:
    """Maps ``(num_chains, num_steps) -> ()`` over a history's entries; NaN for one that is not finite."""
    wide = history.astype(jnp.promote_types(history.dtype, jnp.float32))
    columns = wide.reshape(*wide.shape[:2], -1)

    def guarded(draws: Array) -> Array:
        # BlackJAX lets an infinity through, and its truncation of a NaN sum then gives a large sample size.
        finite = jnp.all(jnp.isfinite(draws))
        # Only differences count: centred, a float32 energy of 1e5 keeps its digits in every product.
        return jnp.where(finite, diagnostic(draws - draws[0, 0]), jnp.nan)

    return jax.vmap(guarded, in_axes=2)(columns).reshape(history.shape[2:])


@functools.partial(jax.jit, static_argnames=("kind",))
def _effective_sample_size(history: Array, kind: str) -> Array:
    from blackjax import diagnostics

    estimators = {
        "mean": diagnostics.effective_sample_size,
        "bulk": diagnostics.ess_bulk,
        "tail": diagnostics.ess_tail,
    }
    return _each_entry(estimators[kind], history)


@jax.jit
def _r_hat(history: Array) -> Array:
    from blackjax import diagnostics

    return _each_entry(diagnostics.potential_scale_reduction, history)


@jax.jit
def _rank_normalised_r_hat(history: Array) -> Array:
    from blackjax import diagnostics

    return _each_entry(diagnostics.rhat, history)


@jax.jit
def _standard_deviation(history: Array) -> Array:
    return _each_entry(lambda draws: jnp.std(draws, ddof=1), history)
