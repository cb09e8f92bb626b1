"""How did training go, and what did it cost? Metrics, telemetry, recoveries, seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxebm.report.figures import training_curves
from jaxebm.report.markdown import escape_markdown
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, plural, table_row
from jaxebm.report.subject import Evaluation
from jaxebm.training import SLOW_COLLAPSE, measure_collapse, slow_collapse

__all__ = ["TELEMETRY", "TRAINING_HISTORY"]

TELEMETRY = "telemetry_"
"""Prefix of the names of the telemetry's metrics, which separates them from those of training."""
WATCHED = (
    "energy_gap",
    "chain_distance",
    "gradient_norm_last",
    "buffer_age_mean",
    "long_run_energy_change",
    "long_run_gradient_ratio",
    "mmd_squared",
    "ksd_squared",
)
"""Telemetry metrics in the picture; the card has the last values of all."""
TITLES = {
    "gap_below": "energy gap, samples less likely than data",
    "gap_above": "energy gap, samples more likely than data",
    "gap_drifts": "drift of the energy gap",
    "samples_alike": "spread of samples over that of data, alike",
    "samples_wander": "spread of samples over that of data, apart",
    "grain": "grain of samples against that of data",
    "chains_stuck": "share of chains that do not move",
    "error_rises": "error of the learnt slopes over its least",
}
"""The measures of slow changes."""
METRICS = (
    "loss",
    "cross_entropy",
    "energy_gap",
    "gradient_norm",
    "score_error",
    "level_error",
    "velocity_error",
)
"""Training metrics in the picture."""


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Draws the training metrics; returns the last telemetry and the recoveries, None without training."""
    records = evaluation.records
    if not records:
        return {"telemetry": None, "recoveries": None, "slow_changes": None}
    recovered = [record["step"] for record in evaluation.recoveries]
    evaluation.draw(training_curves, "training.png", records, METRICS, recovered)
    names = sorted({name for record in records for name in record if name.startswith(TELEMETRY)})
    watched = [TELEMETRY + name for name in WATCHED]
    evaluation.draw(training_curves, "telemetry.png", records, watched, recovered)
    last = {name.removeprefix(TELEMETRY): records[-1][name] for name in names if name in records[-1]}
    return {
        "telemetry": {name: value if np.isfinite(value) else None for name, value in last.items()} or None,
        "recoveries": [dict(recovery) for recovery in evaluation.recoveries],
        "slow_changes": _slow_changes(records),
    }


def _slow_changes(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each measure of a slow collapse, where it would be reported, and the words on it if it is."""
    found = {finding.name: finding.text for finding in slow_collapse(records)}
    return {
        name: {
            "measure": measure,
            "threshold": SLOW_COLLAPSE[name].threshold,
            "side": "below" if SLOW_COLLAPSE[name].below else "above",
            "text": found.get(name),
        }
        for name, measure in measure_collapse(records).items()
    }


def summary(card: Card) -> list[SummaryRow]:
    """Slow changes where there are any, and the cost of the whole run, if it is known."""
    changes = card.get("slow_changes") or {}
    unusual = [_title(name) for name, entry in changes.items() if entry["text"] is not None]
    rows = [("slow changes in training", str(len(unusual)), ", ".join(unusual))] if unusual else []
    if card.get("seconds") is None:
        return rows
    cost = f"{card['parameters']} parameters, {card['environment']['device']}"
    if card.get("updates") is not None:
        cost = f"{card['updates']} updates, {cost}"
    return [*rows, ("seconds in total", f"{card['seconds']:.0f}", cost)]


def sections(card: Card) -> list[Section]:
    """The recoveries, and pictures of the metrics."""
    if card.get("recoveries") is None:
        return []
    pictures = [Picture("training", "Metrics of training; dotted lines are recoveries.")]
    if card["telemetry"]:
        pictures.append(Picture("telemetry", "Telemetry of the chains while training, on validation images."))
    notes = ["No update diverged: the run needed no recovery."]
    if card["recoveries"]:
        notes = [f"The run recovered {plural(len(card['recoveries']), 'time')} (lines in the pictures)."]
        notes += [_told(recovery) for recovery in card["recoveries"]]
    if not card.get("recovery", True):
        notes = ["Recovery was off."]
    section = Section(
        "Training",
        "The energy gap, E(data) - E(samples), should stay near 0: far below 0, samples are much less likely "
        "than data; far above 0, they are more likely than data.",
        notes,
        pictures=pictures,
    )
    return [section, *_slow_section(card.get("slow_changes"))]


def _slow_section(changes: Mapping[str, Card] | None) -> list[Section]:
    if not changes:
        return []
    rows = [
        table_row(
            _title(name),
            entry["measure"],
            f"{entry['side']} {entry['threshold']:g}",
            "usual" if entry["text"] is None else "unusual",
        )
        for name, entry in changes.items()
    ]
    notes = [escape_markdown(entry["text"]) for entry in changes.values() if entry["text"] is not None]
    section = Section(
        "Slow changes",
        "What goes wrong too slowly to be seen from one update to the next, measured at the end of training.",
        notes or ["Nothing unusual."],
        [Table("", ["measure", "value", "unusual", "this run"], rows)],
    )
    return [section]


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def _told(recovery: Card) -> str:
    in_force = recovery["in_force"] or "nothing else"
    return escape_markdown(
        f"{recovery['said']}: back to step {recovery['back_to']} with {recovery['remedy']}; "
        f"in force: {in_force}."
    )


FILES = ("training.png", "telemetry.png")
TRAINING_HISTORY = Question("training history", judge, summary, sections, FILES)
