"""How well the classifier holds against attacks, alone and behind the sampler."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np

import jem_plots
from card_parts import Evaluation
from jaxebm.evaluation import DefendedFn, attack_batch, deterministic, refined_logits, robust_accuracy
from jaxebm.samplers import DescentNorm
from jaxebm.types import BATCH_AXIS, Array

__all__ = ["judge_robustness"]

NORMS: dict[DescentNorm, str] = {"linf": "attack_radii_linf", "l2": "attack_radii_l2"}
"""The norms of the attacks, and the flags that name their radii."""


def judge_robustness(evaluation: Evaluation) -> dict[str, Any] | None:
    """Accuracy against the radius of an attack, a curve for each number of refinement steps, and the twin's.

    A refined classifier is attacked twice. The adaptive attack differentiates through the refinement and
    averages its gradient over the refinement's noise; the transferred one fools the classifier alone. Noise
    blinds the first in deep refinements, where the second finds more: the curve is the lower of the two. Both
    are judged with fresh noise.
    """
    flags, model = evaluation.flags, evaluation.model
    if not flags.attack_images or not evaluation.classes:
        return None
    started = time.monotonic()
    card: dict[str, Any] = {
        "images": min(flags.attack_images, len(evaluation.images["test"])),
        "steps": flags.attack_steps,
        "restarts": flags.attack_restarts,
        "expectation_samples": flags.attack_expectation_samples,
    }
    defences = {
        str(steps): refined_logits(model.logits, model.kernel, steps)
        for steps in flags.refinement_steps
        if steps
    }
    for part, (norm, flag) in enumerate(NORMS.items()):
        radii = getattr(flags, flag)
        card[norm] = _curves(evaluation.key(6 + part), evaluation, norm, radii, defences) if radii else None
    curves = {norm: card[norm] for norm in NORMS if card[norm]}
    jem_plots.robustness_curves(evaluation.folder / "robustness.png", curves)
    return card | {"seconds": time.monotonic() - started}


def _curves(
    rng_key: Array,
    evaluation: Evaluation,
    norm: DescentNorm,
    radii: tuple[float, ...],
    defences: dict[str, DefendedFn],
) -> dict[str, Any]:
    """The curves of one norm: the classifier alone, its refinements, the twin."""
    flags, model = evaluation.flags, evaluation.model
    images = np.clip(evaluation.images["test"][: flags.attack_images], -1.0, 1.0)  # rounding goes beyond
    labels = evaluation.dataset.test.label[: flags.attack_images]
    key, transfer_key, judge_key = jax.random.split(rng_key, 3)
    cost: dict[str, Any] = {"num_steps": flags.attack_steps, "num_restarts": flags.attack_restarts}
    measure = partial(
        robust_accuracy, key, images=images, labels=labels, norm=norm, radii=(0.0, *radii), **cost
    )
    plain = deterministic(model.logits)
    alone = _numbers(measure(defended=plain, params=model.params)) if 0 in flags.refinement_steps else None
    twin = None
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
            num_expectation_samples=flags.attack_expectation_samples,
        )
        judge = jax.jit(jax.vmap(defended, (0, None, 0), axis_name=BATCH_AXIS))
        hits = []
        for index, xs in enumerate(transferred):
            keys = jax.random.split(jax.random.fold_in(judge_key, index), len(xs))
            predicted = np.asarray(judge(keys, model.params, xs)).argmax(axis=1)
            hits.append(np.mean(predicted == labels))
        adaptive[steps], transfer[steps] = _numbers(found), _numbers(hits)
        # A smaller ball lies in a larger one: what fell in it has fallen.
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
