"""How robust is the classifier against attacks, alone and after refinement by the sampler?"""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxebm.evaluation import DefendedFn, attack_batch, deterministic, refined_logits, robust_accuracy
from jaxebm.report.figures import INK, PALETTE, drawing
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, plural, table_row
from jaxebm.report.subject import Evaluation
from jaxebm.samplers import DescentNorm
from jaxebm.types import BATCH_AXIS, Array

__all__ = ["ROBUSTNESS"]

NORMS: dict[DescentNorm, str] = {"linf": "attack_radii_linf", "l2": "attack_radii_l2"}
"""The norms of the attacks, and the settings with their radii."""
NAMES = {"linf": "L-infinity", "l2": "L2"}
SYMBOLS = {"linf": "$L_\\infty$", "l2": "$L_2$"}


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy against the attack radius: one curve for each number of refinement steps, and for the twin.

    A refined classifier is attacked twice. The adaptive attack differentiates through the refinement and
    averages its gradient over the refinement's noise; the transferred attack is made against the classifier
    alone. With many refinement steps, noise dominates the gradient of the adaptive attack, and the
    transferred one is stronger: the curve is the lower of the two. Both are evaluated with fresh noise.
    """
    settings, model = evaluation.settings, evaluation.model
    if not settings.attack_images or not evaluation.classes:
        return {"robustness": None}
    started = time.monotonic()
    entry: dict[str, Any] = {
        "images": min(settings.attack_images, len(evaluation.images["test"])),
        "steps": settings.attack_steps,
        "restarts": settings.attack_restarts,
        "expectation_samples": settings.attack_expectation_samples,
    }
    defences = {
        str(steps): refined_logits(model.logits, model.kernel, steps)
        for steps in settings.refinement_steps
        if steps
    }
    for part, (norm, name) in enumerate(NORMS.items()):
        radii = getattr(settings, name)
        entry[norm] = _curves(evaluation.key(6 + part), evaluation, norm, radii, defences) if radii else None
    curves = {norm: entry[norm] for norm in NORMS if entry[norm]}
    if curves:
        evaluation.draw(robustness_curves, "robustness.png", curves)
    return {"robustness": entry | {"seconds": time.monotonic() - started}}


def _curves(
    rng_key: Array,
    evaluation: Evaluation,
    norm: DescentNorm,
    radii: tuple[float, ...],
    defences: dict[str, DefendedFn],
) -> dict[str, Any]:
    """The curves of one norm: the classifier alone, its refinements, the twin."""
    settings, model = evaluation.settings, evaluation.model
    count = settings.attack_images
    images = np.clip(evaluation.images["test"][:count], -1.0, 1.0)  # rounding can exceed the range
    labels = evaluation.dataset.test.label[:count]
    key, transfer_key, judge_key = jax.random.split(rng_key, 3)
    cost: dict[str, Any] = {"num_steps": settings.attack_steps, "num_restarts": settings.attack_restarts}
    measure = partial(
        robust_accuracy, key, images=images, labels=labels, norm=norm, radii=(0.0, *radii), **cost
    )
    plain = deterministic(model.logits)
    alone = twin = None
    if 0 in settings.refinement_steps:
        alone = _numbers(measure(defended=plain, params=model.params))
    if model.twin_params is not None:
        twin = _numbers(measure(defended=plain, params=model.twin_params))

    transferred = [images]
    for index, radius in enumerate(radii if defences else ()):
        one = jax.random.fold_in(transfer_key, index)
        found = attack_batch(one, plain, model.params, images, labels, norm=norm, radius=radius, **cost)
        transferred.append(found.x_adversarial)
    refined, adaptive, transfer = {} if alone is None else {"0": alone}, {}, {}
    for steps, defended in defences.items():
        found = measure(
            defended=defended,
            params=model.params,
            num_expectation_samples=settings.attack_expectation_samples,
        )
        classify = jax.jit(jax.vmap(defended, (0, None, 0), axis_name=BATCH_AXIS))
        hits = []
        for index, xs in enumerate(transferred):
            keys = jax.random.split(jax.random.fold_in(judge_key, index), len(xs))
            outputs = np.asarray(classify(keys, model.params, xs))
            # A refinement that diverged has no class.
            hits.append(np.mean((outputs.argmax(axis=1) == labels) & np.isfinite(outputs).all(axis=1)))
        adaptive[steps], transfer[steps] = _numbers(found), _numbers(hits)
        # A smaller ball lies in a larger one: misclassified in the smaller means misclassified in the larger.
        lowest = np.minimum.accumulate(np.minimum(found[1:], hits[1:]))
        refined[steps] = _numbers([found[0], *np.minimum(lowest, found[0])])
    return {
        "radii": [0.0, *radii],
        "refined": refined,
        "adaptive": adaptive,
        "transfer": transfer,
        "twin": twin,
    }


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]


def robustness_curves(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Plots accuracy against the attack radius: one panel per norm, one curve per number of refinement steps.

    Args:
      path: The picture.
      curves: ``norm: {"radii", "refined": {steps: accuracies}, "twin": accuracies or None}``.
    """
    with drawing(path, 1, len(curves), figsize=(4.4 * len(curves), 3.4)) as (figure, axes):
        for axis, (norm, entry) in zip(axes[0], curves.items(), strict=True):
            for index, (steps, accuracies) in enumerate(entry["refined"].items()):
                label = "JEM" if steps == "0" else f"JEM, {plural(steps, 'refinement step')}"
                color = PALETTE[index % len(PALETTE)]
                axis.plot(entry["radii"], accuracies, "o-", color=color, label=label)
            if entry["twin"] is not None:
                axis.plot(entry["radii"], entry["twin"], "s--", color=INK, label="cross-entropy twin")
            axis.set(ylim=(-0.02, 1.02), ylabel="accuracy under attack", title=f"{SYMBOLS[norm]} attacks")
            axis.set_xlabel("radius, pixels in [-1, 1]")
            axis.legend(fontsize=7)
        figure.tight_layout()


def summary(card: Card) -> list[SummaryRow]:
    """Accuracy at the middle radius of each norm, next to that of refined classifiers and of the twin."""
    rows = []
    for norm, name in NAMES.items():
        entry: Mapping[str, Any] | None = (card.get("robustness") or {}).get(norm)
        if entry is None:
            continue
        middle = len(entry["radii"]) // 2
        (_, alone), *others = entry["refined"].items()
        beside = [f"{curve[middle]:.3f} after {plural(steps, 'sampler step')}" for steps, curve in others]
        if entry["twin"]:
            beside.append(f"cross-entropy twin {entry['twin'][middle]:.3f}")
        title = f"accuracy, {name} attack of radius {entry['radii'][middle]:g}"
        rows.append((title, f"{alone[middle]:.3f}", ", ".join(beside)))
    return rows


def sections(card: Card) -> list[Section]:
    """One table per norm, and the curves."""
    found = card.get("robustness")
    if found is None:
        return []
    tables = []
    for norm, name in NAMES.items():
        entry = found[norm]
        if entry is None:
            continue
        rows = [table_row(_refinement(steps), *curve) for steps, curve in entry["refined"].items()]
        for kind in ("adaptive", "transfer"):
            rows += [
                table_row(f"of which {kind}, {plural(steps, 'step')}", *curve)
                for steps, curve in entry[kind].items()
            ]
        if entry["twin"] is not None:
            rows.append(table_row("cross-entropy twin", *entry["twin"]))
        header = ["accuracy at radius", *(f"{radius:g}" for radius in entry["radii"])]
        tables.append(Table(f"{name} attacks", header, rows))
    section = Section(
        "Robustness",
        f"Projected gradient descent, {plural(found['steps'], 'step')}, "
        f"{plural(found['restarts'], 'random start')}, on the first "
        f"{plural(found['images'], 'test image')}. Radii are of pixels in [-1, 1]: 8/255 of pixels "
        "in [0, 1] is 16/255 = 0.0627 here. Refinement runs the sampler from the input before the classifier "
        "looks. The adaptive attack differentiates through it and averages over "
        f"{plural(found['expectation_samples'], 'draw')} of its noise; the transferred one is made against "
        "the classifier alone. A curve is the lower of the two, and an upper bound: a stronger attack may "
        "find more.",
        tables=tables,
        pictures=[Picture("robustness", "Accuracy at each radius; higher is better.")],
    )
    return [section]


def _refinement(steps: str) -> str:
    return "JEM alone" if steps == "0" else f"JEM after {plural(steps, 'sampler step')}"


ROBUSTNESS = Question("robustness", judge, summary, sections, ("robustness.png",))
