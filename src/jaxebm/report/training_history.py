"""How did training go, and what did it cost? Metrics, telemetry, recoveries, seconds."""

from typing import Any

import numpy as np

from jaxebm.report.figures import training_curves
from jaxebm.report.markdown import escape_markdown
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow
from jaxebm.report.subject import Evaluation

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
METRICS = ("loss", "cross_entropy", "energy_gap", "gradient_norm")
"""Training metrics in the picture."""


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Draws the training metrics; returns the last telemetry and the recoveries, None without training."""
    records = evaluation.records
    if not records:
        return {"telemetry": None, "recoveries": None}
    recovered = [record["step"] for record in evaluation.recoveries]
    evaluation.draw(training_curves, "training.png", records, METRICS, recovered)
    names = sorted({name for record in records for name in record if name.startswith(TELEMETRY)})
    watched = [TELEMETRY + name for name in WATCHED]
    evaluation.draw(training_curves, "telemetry.png", records, watched, recovered)
    last = {name.removeprefix(TELEMETRY): records[-1][name] for name in names if name in records[-1]}
    return {
        "telemetry": {name: value if np.isfinite(value) else None for name, value in last.items()} or None,
        "recoveries": [dict(recovery) for recovery in evaluation.recoveries],
    }


def summary(card: Card) -> list[SummaryRow]:
    """The cost of the whole run, if it is known."""
    if card.get("seconds") is None:
        return []
    cost = f"{card['parameters']} parameters, {card['environment']['device']}"
    if card.get("updates") is not None:
        cost = f"{card['updates']} updates, {cost}"
    return [("seconds in total", f"{card['seconds']:.0f}", cost)]


def sections(card: Card) -> list[Section]:
    """The recoveries, and pictures of the metrics."""
    if card.get("recoveries") is None:
        return []
    pictures = [Picture("training", "Metrics of training; dotted lines are recoveries.")]
    if card["telemetry"]:
        pictures.append(Picture("telemetry", "Telemetry of the chains while training, on validation images."))
    notes = ["No update diverged: the run needed no recovery."]
    if card["recoveries"]:
        notes = [f"The run recovered {len(card['recoveries'])} times (lines in the pictures)."]
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
    return [section]


def _told(recovery: Card) -> str:
    in_force = recovery["in_force"] or "nothing else"
    return escape_markdown(
        f"{recovery['said']}: back to step {recovery['back_to']} with {recovery['remedy']}; "
        f"in force: {in_force}."
    )


FILES = ("training.png", "telemetry.png")
TRAINING_HISTORY = Question("training history", judge, summary, sections, FILES)
