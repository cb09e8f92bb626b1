"""Do chains that run far longer than in training stay near the data? New chains of p(x), several lengths."""

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxebm.energies import marginal_energy
from jaxebm.evaluation import prdc, within_range
from jaxebm.objectives import ignore_label
from jaxebm.report.chains import Samples, finite, fresh_chains
from jaxebm.report.figures import image_grids
from jaxebm.report.judges import NEIGHBOURS, independent_judges
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, plural, table_row
from jaxebm.report.subject import Evaluation, flat, map_batches

__all__ = ["LONG_CHAINS"]

COLUMNS = 10
"""Chains in each row of the picture."""
MEASURES = {
    "energy": "mean energy",
    "saturated": "pixels at the edge",
    "in_range": "in range",
    "precision": "precision",
    "coverage": "coverage",
}
"""The measures of chains of each length in the card, and their titles."""


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Runs new chains of p(x) for 1, 10, 100 ... times the training length, and shows their positions."""
    model, dataset, settings = evaluation.model, evaluation.dataset, evaluation.settings
    if not settings.long_run_factors:
        return {"long_run": None}
    judges = evaluation.once(independent_judges)
    factors = sorted({1, *settings.long_run_factors})
    steps = [factor * model.num_steps for factor in factors]
    energy = marginal_energy(model.logits)
    key, label_key = jax.random.split(evaluation.key(5))
    labels = jax.random.randint(label_key, (settings.long_run_chains,), 0, dataset.num_classes)
    found = fresh_chains(key, evaluation, ignore_label(energy), labels, steps)
    energies = jax.jit(jax.vmap(partial(energy, model.params)))
    by_factor = {}
    for factor, every in zip(factors, found.values(), strict=True):
        xs = finite(Samples(every, None)).images
        entry: dict[str, Any] = {
            "steps": factor * model.num_steps,
            "finite": len(xs) / len(every),
            **dict.fromkeys(MEASURES),
        }
        if len(xs):
            entry |= {
                "energy": float(np.mean(map_batches(energies, xs))),
                "saturated": float(np.mean(np.abs(xs) >= 1.0)),
                "in_range": within_range(xs, -1.0, 1.0),
            }
        if min(len(xs), len(judges.real)) > NEIGHBOURS:
            quality = prdc(flat(judges.real), flat(xs), k=NEIGHBOURS, real_radii=judges.radii["pixels"])
            entry |= {"precision": quality.precision, "coverage": quality.coverage}
        by_factor[str(factor)] = entry
    sheets = {
        f"{factor} x {plural(model.num_steps, 'step')}": np.asarray(dataset.restore(xs))
        for factor, xs in zip(factors, found.values(), strict=True)
    }
    evaluation.draw(image_grids, "long_run.png", sheets, columns=COLUMNS)
    test = float(np.mean(map_batches(energies, evaluation.images["test"])))
    return {
        "long_run": {"by_factor": by_factor, "chains": settings.long_run_chains, "test_energy": test},
    }


def summary(card: Card) -> list[SummaryRow]:
    """No row: its numbers have a meaning only together."""
    del card
    return []


def sections(card: Card) -> list[Section]:
    """The chains at each length, as numbers and as images."""
    found = card.get("long_run")
    if found is None:
        return []
    rows = [
        table_row(f"{factor} x training", str(entry["steps"]), *(entry[name] for name in MEASURES))
        for factor, entry in found["by_factor"].items()
    ]
    section = Section(
        "Long chains",
        f"{plural(found['chains'], 'new chain')}, run for many times the length of one update of training. A "
        f"converged model keeps them on the data, where test images have energy {found['test_energy']:.4g}. "
        "Where chains sink far below it, or saturate, the mass of the model's own density is elsewhere.",
        tables=[Table("", ["chains of p(x)", "steps", *MEASURES.values()], rows)],
        pictures=[Picture("long_run", "The same chains at each length.")],
    )
    return [section]


LONG_CHAINS = Question("long chains", judge, summary, sections, ("long_run.png",))
