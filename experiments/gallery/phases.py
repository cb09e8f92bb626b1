"""The training of a method: its phases one after another, each with its optimiser and its remedies."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax

from gallery.methods import Phase, Problem, Settings
from jaxebm.recipes.recovery import SamplerNumbers, refine
from jaxebm.training import Checkpointing, Learner, Recovery, RecoveryRecord, Remedy, fit, learner
from jaxebm.types import Params

__all__ = ["Trained", "train"]


class Trained(NamedTuple):
    """A method, its averaged parameters, and the seconds and the recoveries of all its phases."""

    problem: Problem
    params: Params
    seconds: float
    recoveries: tuple[RecoveryRecord, ...]


def train(
    settings: Settings,
    make_problem: Callable[[Settings], Problem],
    data: Any,
    *,
    checkpointing: Callable[[int], Checkpointing | None] = lambda phase: None,
    **options: Any,
) -> Trained:
    """Trains a method phase by phase.

    Args:
      settings: the numbers of the training.
      make_problem: builds the method; again with other settings after a divergence.
      data: for `jaxebm.training.fit`.
      checkpointing: of each phase, by its number; None writes nothing.
      **options: of `jaxebm.training.learner`, about the data.

    Returns:
      The trained method.

    Raises:
      DivergenceError: if the training diverges, and no remedy helps.
    """
    problem = make_problem(settings)
    params: Any = problem.init
    seconds, recoveries = 0.0, ()
    for number, phase in enumerate(problem.phases):

        def learner_of(settings: Settings, number: int = number) -> Learner:
            return _make_learner(settings, make_problem(settings).phases[number], options)

        result = fit(
            jax.random.key(settings.seed),
            learner_of(settings),
            params,
            data,
            num_steps=_updates_of(settings, phase),
            steps_per_dispatch=200,
            checkpointing=checkpointing(number),
            recovery=_make_recovery(settings, learner_of),
            progress=settings.progress,
        )
        params = result.params
        seconds += result.seconds
        recoveries += result.recoveries
    return Trained(problem, params, seconds, recoveries)


def _updates_of(settings: Settings, phase: Phase) -> int:
    return max(round(phase.share * settings.updates), 1)


def _make_learner(settings: Settings, phase: Phase, options: dict[str, Any]) -> Learner:
    updates = _updates_of(settings, phase)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, max(updates // 20, 1), updates, settings.learning_rate / 100
    )
    optimizer = optax.adam(schedule)
    if settings.gradient_clip > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(settings.gradient_clip), optimizer)
    return learner(
        phase.objective,
        negatives=phase.negatives,
        optimizer=optimizer,
        batch_size=settings.batch_size,
        ema_decay=settings.ema_decay,
        **options,
    )


def _make_recovery(settings: Settings, learner_of: Callable[[Settings], Learner]) -> Recovery | None:
    """The recovery from divergence, or None where the settings want none."""
    if not settings.recovery:
        return None
    # The noise of the chains follows from their step size and cannot be changed.
    numbers = SamplerNumbers(settings.sampler_steps, settings.sampler_step_size, 0.0, settings.energy_l2)

    def remake(remedy: Remedy) -> Learner:
        changed = refine(numbers, remedy)
        remedied = replace(
            settings,
            sampler_steps=changed.num_steps,
            sampler_step_size=changed.step_size,
            energy_l2=changed.energy_l2,
        )
        return learner_of(remedied)

    return Recovery(remake=remake)
