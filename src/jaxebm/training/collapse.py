"""Slow collapse: what goes wrong too slowly for the bands of a `Monitor`, found in the records of a run.

A band follows its metric with a time constant of some hundred updates, so a run whose energy gap grows by a
nat every hundred updates has no fault and ends with a useless model. Each kind has a measure here, taken
from the last tenth of the records, and a threshold beyond the values of healthy runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxebm import checks

__all__ = ["SLOW_COLLAPSE", "Finding", "measure_collapse", "slow_collapse"]

_FEWEST = 10
"""Records below which nothing is measured: the last tenth would be less than one."""


class Finding(NamedTuple):
    """One kind of slow collapse that was found.

    Attributes:
      name: its name in `SLOW_COLLAPSE`.
      measure: its value.
      threshold: the value beyond which it is reported.
      text: what it says of the model, and what helps.
    """

    name: str
    measure: float
    threshold: float
    text: str


class _Kind(NamedTuple):
    threshold: float
    below: bool  # whether values below the threshold are reported, instead of those above
    text: str


SLOW_COLLAPSE: Mapping[str, _Kind] = {
    "gap_below": _Kind(
        -10.0,
        True,
        "E(data) - E(samples) = {measure:.3g} nats at the end: samples are far less likely than the data. "
        "The chains do not follow the energy, or the network tells data from samples by something that no "
        "chain can change, such as statistics of the batch. More sampler steps, or an energy-L2 term, help.",
    ),
    "gap_above": _Kind(
        10.0,
        False,
        "E(data) - E(samples) = {measure:.3g} nats at the end: the chains found energies far below those of "
        "the data. Smaller sampler steps, more restarts, or an energy-L2 term help.",
    ),
    "gap_drifts": _Kind(
        3.0,
        False,
        "the energy gap moved by {measure:.3g} nats from the second quarter of the training to the last, "
        "beyond its own scatter, and was still moving. A smaller learning rate or energy-L2 term stops it.",
    ),
    "samples_alike": _Kind(
        0.5,
        True,
        "the samples spread over {measure:.3g} times the standard deviation of the data at the end: they "
        "collapse to few places. More noise in the sampler, more chains or a larger buffer helps.",
    ),
    "samples_wander": _Kind(
        2.0,
        False,
        "the samples spread over {measure:.3g} times the standard deviation of the data at the end: the "
        "chains leave the data. Smaller sampler steps, or a clamp on x, help.",
    ),
    "grain": _Kind(
        1.5,
        False,
        "neighbouring pixels of samples and of data differ by amounts in the ratio {measure:.3g} (or its "
        "inverse): the samples are told from data by their grain. Less noise in the sampler, or "
        "smaller and more steps, help.",
    ),
    "chains_stuck": _Kind(
        0.8,
        False,
        "a share of {measure:.3g} of the chains did not move, or of the entries were at the ends of their "
        "range where those of the data were not, at the end. Larger steps, or a wider clamp, help.",
    ),
    "error_rises": _Kind(
        1.5,
        False,
        "the error of the learnt slopes is {measure:.3g} times as large at the end as it was at its least: "
        "without chains, training has diverged. A smaller learning rate or a longer warm-up helps.",
    ),
}
"""The kinds of slow collapse: threshold, side, and the text of their `Finding`."""


ERRORS = ("score_error", "velocity_error", "denoising_error")
"""Metrics of objectives without chains that fall while they learn."""


def _series(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """The finite values of a metric, in the order of the records."""
    values = np.array([record[name] for record in records if name in record], float)
    return values[np.isfinite(values)]


def _end(values: np.ndarray) -> float:
    return float(np.mean(values[-max(len(values) // 10, 1) :]))


def measure_collapse(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    r"""Measures each kind of slow collapse that the metrics of a run show.

    ``gap_below``, ``gap_above``: the mean energy gap, E(data) - E(samples), in nats;
    ``gap_drifts``: :math:`\max(0, |m_4 - m_2| - 2 s)`, of the means of its second and last quarter and the
    standard deviation s around a line through the second half, in nats;
    ``samples_alike``, ``samples_wander``: ``chain_spread``, sd of samples / sd of data;
    ``grain``: ``max(g, 1 / g)`` of ``sample_grain``, the ratio of the differences of neighbouring pixels;
    ``chains_stuck``: the larger of ``frozen_chains`` and ``saturated_chains``;
    ``error_rises``: the error of the slopes of an objective without chains over its least mean of a tenth of
    the records in a row; all but the third averaged over the last tenth of the records.

    Args:
      records: metrics by name, one mapping for each dispatch, oldest first: ``FitResult.history``, or
        ``RunFolder.read_metrics()``. Values that are not finite are left out, and so are metrics that a run
        has not.

    Returns:
      The measures by name of `SLOW_COLLAPSE`; empty for fewer than 10 records.

    Raises:
      TypeError: if ``records`` is no sequence of mappings.

    Example:
      >>> found = measure_collapse([{"energy_gap": -0.1 * step} for step in range(1000)])
      >>> {name: round(value, 1) for name, value in found.items()}
      {'gap_below': -95.0, 'gap_above': -95.0, 'gap_drifts': 50.0}
    """
    _check_records(records)
    gaps = _series(records, "energy_gap")
    found: dict[str, float] = {}
    if len(gaps) >= _FEWEST:
        found |= dict.fromkeys(("gap_below", "gap_above"), _end(gaps))
        quarter = len(gaps) // 4
        drift = abs(np.mean(gaps[-quarter:]) - np.mean(gaps[quarter : 2 * quarter]))
        half = gaps[-2 * quarter :]
        places = np.arange(len(half))
        scatter = np.std(half - np.polyval(np.polyfit(places, half, 1), places))
        found["gap_drifts"] = float(max(drift - 2.0 * scatter, 0.0))
    spread, grain = _series(records, "chain_spread"), _series(records, "sample_grain")
    if len(spread) >= _FEWEST:
        found |= dict.fromkeys(("samples_alike", "samples_wander"), _end(spread))
    if len(grain) >= _FEWEST:
        ratio = _end(grain)
        found["grain"] = max(ratio, 1.0 / max(ratio, 1e-30))
    stuck = [_series(records, name) for name in ("frozen_chains", "saturated_chains")]
    shares = [_end(values) for values in stuck if len(values) >= _FEWEST]
    if shares:
        found["chains_stuck"] = max(shares)
    for name in ERRORS:
        errors = _series(records, name)
        if len(errors) >= _FEWEST:
            width = len(errors) // 10
            least = np.min(np.convolve(errors, np.full(width, 1.0 / width), mode="valid"))
            found["error_rises"] = _end(errors) / max(float(least), 1e-30)
    return found


def slow_collapse(records: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Returns the kinds of slow collapse that the metrics of a run show: none for a healthy run.

    A kind is found if its measure (`measure_collapse`) lies beyond its threshold in `SLOW_COLLAPSE`. Nothing
    is measured, and so nothing found, in fewer than 10 records.

    Args:
      records: as for `measure_collapse`.

    Returns:
      A `Finding` for each kind that was found, in the order of `SLOW_COLLAPSE`.

    Raises:
      TypeError: if ``records`` is no sequence of mappings.

    Example:
      >>> healthy = [{"energy_gap": 0.1, "chain_spread": 0.9}] * 20
      >>> slow_collapse(healthy)
      ()
      >>> [found.name for found in slow_collapse([*healthy, *[{"chain_spread": 0.1}] * 20])]
      ['samples_alike']
    """
    findings = []
    for name, measure in measure_collapse(records).items():
        kind = SLOW_COLLAPSE[name]
        if (measure < kind.threshold) if kind.below else (measure > kind.threshold):
            text = kind.text.format(measure=measure)
            findings.append(Finding(name, measure, kind.threshold, text[0].upper() + text[1:]))
    return tuple(findings)


def _check_records(records: Any) -> None:
    checks.instance("records", records, Sequence, "A FitResult has them as its history.")
    for index, record in enumerate(records):
        checks.instance(f"records[{index}]", record, Mapping)
