"""Have the chains converged, and how precise is their mean? Diagnostics of a history.

A history is what ``run_chains(..., collect=...)`` returns: an array ``(num_chains, num_steps, ...)``, or any
pytree of such arrays, whose entries, each a scalar quantity followed along every chain, are judged one by
one. Results have the structure of the history. The estimators are BlackJAX's, at any scale of the draws. An
entry that was not finite throughout gets NaN, never the number that its finite part would have had.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.evaluation.chains.entries import as_history, compiled_diagnostic, mean_of_draws
from jaxebm.types import Array, Position

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
_FEW_DIVERGENCES = 0.01
"""Fraction of divergent transitions above which ``summarise_chains`` warns."""


class ChainSummary(NamedTuple):
    """Diagnostics of each entry of a history; leaves have the shape of an entry, ``(...)``.

    The first seven have the structure of the history, the rest one number for each chain, ``(num_chains,)``.

    Attributes:
      mean: over all draws of all chains, in units of the entry.
      standard_deviation: of all draws, in the same units.
      standard_error: of the mean, ``monte_carlo_standard_error``, in the same units.
      effective_sample_size: for the mean, in draws.
      tail_effective_sample_size: for the 5% and 95% quantiles, the lesser, in draws.
      autocorrelation_time: in steps, ``integrated_autocorrelation_time``.
      r_hat: ``rank_normalised_r_hat``; NaN throughout for a single chain, which it cannot judge.
      acceptance_rate: of each chain, so that a frozen one shows; ``None`` if not given.
      never_moved: whether every draw of the chain is its first.
      divergences: number of divergent transitions of each chain; ``None`` if not given.
      divergence_rate: the same as a fraction of the steps; ``None`` if not given.
    """

    mean: Any
    standard_deviation: Any
    standard_error: Any
    effective_sample_size: Any
    tail_effective_sample_size: Any
    autocorrelation_time: Any
    r_hat: Any
    acceptance_rate: Array | None
    never_moved: Array
    divergences: Array | None
    divergence_rate: Array | None


def effective_sample_size(history: Position, kind: Literal["mean", "bulk", "tail"] = "mean") -> Any:
    r"""Effective sample size: the number of independent draws with the same precision.

    .. math:: n_{eff} = \frac{M N}{\tau}, \qquad \tau = 1 + 2 \sum_{t \ge 1} \rho_t

    for M chains of N steps. The autocorrelations rho_t are relative to the variance over *all* chains, so
    chains that disagree have few effective draws, and the sum is cut where Geyer's initial monotone sequence
    ends.

    Args:
      history: leaves ``(num_chains, num_steps, ...)``, at least 4 steps.
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
      >>> bool(jnp.all(abs(effective_sample_size(history) / 2000 - 1) < 0.2))
      True

    Reference:
      Geyer 1992, Practical Markov chain Monte Carlo; Vehtari et al. 2021 (arXiv:1903.08008),
      sections 3 and 4; blackjax.diagnostics.
    """
    checks.one_of("kind", kind, _KINDS)
    return _diagnostic(kind)(as_history(history))


def r_hat(history: Position) -> Any:
    r"""Potential scale reduction: by what factor chains that mixed longer might still shrink in width.

    .. math:: \hat R = \sqrt{\frac{N - 1}{N} + \frac{B}{N W}}

    with W the mean variance within chains and B / N the variance of the chains' means. It is 1 in the limit
    of many steps, and is blind where chains agree in their mean and not in their variance: for that, and for
    heavy tails, ``rank_normalised_r_hat``.

    Args:
      history: leaves ``(num_chains, num_steps, ...)``, at least 2 chains and 4 steps.

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
    return _diagnostic("r_hat")(as_history(history, least_chains=2))


def rank_normalised_r_hat(history: Position) -> Any:
    r"""The improved R-hat: of split chains, of normal scores, for location and for scale, the larger of both.

    Every chain is cut in halves (so a common drift shows), draws are replaced by
    Phi^{-1}((rank - 3/8) / (S + 1/4)) among all S of them (so heavy tails do no harm), and ``r_hat`` is taken
    of these and of the same for |x - median| (so chains of different width show).

    Args:
      history: leaves ``(num_chains, num_steps, ...)``, at least 2 chains and 4 steps.

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
    return _diagnostic("rank_normalised_r_hat")(as_history(history, least_chains=2))


def integrated_autocorrelation_time(history: Position) -> Any:
    r"""Integrated autocorrelation time: the number of steps per independent draw.

    .. math:: \tau = 1 + 2 \sum_{t \ge 1} \rho_t = M N / n_{eff}

    An AR(1) process of coefficient rho has (1 + rho) / (1 - rho). The estimate cannot see a time longer than
    the history: where tau is not far below num_steps, or R-hat far above 1, it is too low.

    Args:
      history: leaves ``(num_chains, num_steps, ...)``, at least 4 steps.

    Returns:
      ``(...)``, in steps: 1 for independent draws, infinite where no chain ever moved, NaN where a draw is
      not finite.

    Raises:
      ValueError: if the history has fewer than two axes or four steps.
      TypeError: if the history is not floating-point.

    Example:
      >>> history = jax.random.normal(jax.random.key(0), (4, 500))
      >>> bool(jnp.all(abs(integrated_autocorrelation_time(history) - 1) < 0.2))
      True

    Reference:
      Sokal 1997, Monte Carlo methods in statistical mechanics, section 3 (whose time is half of this one).
    """
    draws = as_history(history)
    return _autocorrelation_time(draws, _diagnostic("mean")(draws))


def monte_carlo_standard_error(history: Position) -> Any:
    r"""Standard error of the mean over all draws, with their correlation.

    .. math:: \mathrm{se} = s / \sqrt{n_{eff}}

    Args:
      history: leaves ``(num_chains, num_steps, ...)``, at least 4 steps.

    Returns:
      ``(...)``, in units of the entry; NaN where a draw is not finite or where no chain ever moved.

    Raises:
      ValueError: if the history has fewer than two axes or four steps.
      TypeError: if the history is not floating-point.

    Example:
      >>> history = jax.random.normal(jax.random.key(0), (4, 500))
      >>> bool(jnp.all(abs(monte_carlo_standard_error(history) * 2000**0.5 - 1) < 0.2))
      True

    Reference:
      Vehtari et al. 2021 (arXiv:1903.08008), section 3.
    """
    draws = as_history(history)
    return _standard_error(_diagnostic("standard_deviation")(draws), _diagnostic("mean")(draws))


def summarise_chains(
    history: Position, acceptance: Array | None = None, is_divergent: Array | None = None
) -> ChainSummary:
    """All of these diagnostics at once, and what they cannot say: which chains stood still or diverged.

    Args:
      history: leaves ``(num_chains, num_steps, ...)``, at least 4 steps.
      acceptance: ``(num_chains, num_steps)``, acceptance probabilities or decisions, where the kernel has
        them.
      is_divergent: ``(num_chains, num_steps)`` booleans, those of the infos of ``hmc`` and ``nuts``.

    Returns:
      A ``ChainSummary``. A ``RuntimeWarning`` says which chains never moved or hold a draw that is not
      finite, and how many transitions diverged where these are more than 1%: draws then miss a part of the
      density, and neither R-hat nor the standard errors need show it. None is given inside ``jit``.

    Raises:
      ValueError: if the history has fewer than two axes or four steps, or acceptance or is_divergent another
        shape.
      TypeError: if the history is not floating-point, or is_divergent not boolean.

    Example:
      ``run_chains`` gives all arguments if its ``collect`` returns
      ``(state.position, info.acceptance_rate, info.is_divergent)``. Of independent draws:

      >>> history = jax.random.normal(jax.random.key(0), (4, 500))
      >>> summary = summarise_chains(history, jnp.ones((4, 500)), jnp.zeros((4, 500), bool))
      >>> bool(abs(summary.mean) < 4 * summary.standard_error), bool(summary.r_hat < 1.01)
      (True, True)
      >>> summary.never_moved.tolist(), summary.divergences.tolist()
      ([False, False, False, False], [0, 0, 0, 0])

    Reference:
      Betancourt 2017, A conceptual introduction to Hamiltonian Monte Carlo (arXiv:1701.02434), section 6.2,
      for divergences.
    """
    draws = as_history(history)
    num_chains, num_steps = jax.tree.leaves(draws)[0].shape[:2]
    for name, value in (("acceptance", acceptance), ("is_divergent", is_divergent)):
        if value is not None:
            one_each = f"{(num_chains, num_steps)}, one for each chain and step of the history,"
            checks.array(name, value, (num_chains, num_steps), one_each)
    if is_divergent is not None and jnp.asarray(is_divergent).dtype != bool:
        raise TypeError(f"is_divergent has dtype {jnp.asarray(is_divergent).dtype}: booleans are needed.")
    effective, deviation = _diagnostic("mean")(draws), _diagnostic("standard_deviation")(draws)
    divergences = None if is_divergent is None else jnp.sum(jnp.asarray(is_divergent), axis=1)
    several = num_chains > 1
    summary = ChainSummary(
        mean=mean_of_draws(draws),
        standard_deviation=deviation,
        standard_error=_standard_error(deviation, effective),
        effective_sample_size=effective,
        tail_effective_sample_size=_diagnostic("tail")(draws),
        autocorrelation_time=_autocorrelation_time(draws, effective),
        r_hat=_diagnostic("rank_normalised_r_hat")(draws) if several else _all_nan(draws),
        acceptance_rate=None if acceptance is None else jnp.mean(jnp.asarray(acceptance, float), axis=1),
        never_moved=_for_each_chain(lambda leaf: leaf == leaf[:, :1], draws),
        divergences=divergences,
        divergence_rate=None if divergences is None else divergences / num_steps,
    )
    _warn(summary, ~_for_each_chain(jnp.isfinite, draws))
    return summary


def _warn(summary: ChainSummary, not_finite: Array) -> None:
    if checks.is_traced(not_finite) or checks.is_traced(summary.divergences):
        return
    count = len(summary.never_moved)
    for chains, said in (
        (summary.never_moved, "never moved: all of their draws are the first, and count for nothing"),
        (not_finite, "hold draws that are not finite: the diagnostics of these entries are NaN"),
    ):
        if found := np.flatnonzero(chains).tolist():
            warnings.warn(f"{_chains(found, count)} {said}.", RuntimeWarning, stacklevel=3)
    if summary.divergences is None or summary.divergence_rate is None:
        return
    rate = float(np.mean(summary.divergence_rate))
    if rate > _FEW_DIVERGENCES:
        found = np.flatnonzero(summary.divergences).tolist()
        warnings.warn(
            f"{int(np.sum(summary.divergences))} transitions diverged, {rate:.1%} of all, in "
            f"{_chains(found, count)}: the chains miss a part of the density, and their means may be wrong "
            f"by more than their standard errors say. Take a smaller step or other coordinates.",
            RuntimeWarning,
            stacklevel=3,
        )


def _chains(found: list[int], count: int) -> str:
    listed = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
    return f"{len(found)} of {count} chains ({listed})"


def _for_each_chain(holds: Callable[[Array], Array], draws: Any) -> Array:
    """Returns whether this holds for every entry of every step, ``(num_chains,)``."""
    leaves = jax.tree.leaves(draws)
    return jnp.all(
        jnp.stack([jnp.all(holds(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves]), axis=0
    )


def _standard_error(deviation: Any, effective: Any) -> Any:
    return jax.tree.map(lambda spread, number: spread / jnp.sqrt(number), deviation, effective)


def _autocorrelation_time(draws: Any, effective: Any) -> Any:
    return jax.tree.map(lambda leaf, number: leaf.shape[0] * leaf.shape[1] / number, draws, effective)


def _all_nan(draws: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape[2:], jnp.nan), draws)


@functools.cache
def _diagnostic(name: str) -> Callable[[Any], Any]:
    from blackjax import diagnostics

    if name == "standard_deviation":
        return compiled_diagnostic(lambda draws: jnp.std(draws, ddof=1), has_units=True)
    estimators = {
        "mean": diagnostics.effective_sample_size,
        "bulk": diagnostics.ess_bulk,
        "tail": diagnostics.ess_tail,
        "r_hat": diagnostics.potential_scale_reduction,
        "rank_normalised_r_hat": diagnostics.rhat,
    }
    return compiled_diagnostic(estimators[name])
