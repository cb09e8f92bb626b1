"""The loop that survives: it shows progress, writes metrics and checkpoints, stops cleanly when told to."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

import jax

from jaxebm import checks
from jaxebm.training.checkpoint import Checkpoints
from jaxebm.training.health import check_metrics
from jaxebm.training.progress import make_progress
from jaxebm.training.run_folder import RunFolder
from jaxebm.training.state import TrainState
from jaxebm.training.step import TrainStep, compile_steps
from jaxebm.types import Metrics

__all__ = ["FitResult", "Observe", "TrainingInterrupted", "fit"]


Observe: TypeAlias = Callable[[TrainState], Metrics]
"""What to measure now and then, beside the metrics of the step itself."""


class TrainingInterrupted(KeyboardInterrupt):
    """Raised after a clean stop: the checkpoint is written, and the run can be resumed."""


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: after the last update.
      seconds: wall-clock time of this call's updates, compilation included.
      compile_seconds: of which the first dispatch of each length, compilation and its updates.
    """

    state: TrainState
    seconds: float
    compile_seconds: float


class _StopRequest:
    def __init__(self) -> None:
        self.requested = False


@contextmanager
def _stop_on_signal() -> Iterator[_StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request to stop after this dispatch; a second acts at once."""
    stop = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.requested = True
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()


def fit(
    train_step: TrainStep,
    state: TrainState,
    data: Any,
    *,
    num_steps: int,
    steps_per_dispatch: int = 50,
    samples_per_step: int = 0,
    run: RunFolder | None = None,
    checkpoint_every: int = 1000,
    progress: bool = False,
    observe: Observe | None = None,
    observe_every: int = 1000,
) -> FitResult:
    """Runs updates until ``state.step`` is ``num_steps``.

    Dispatches end at multiples of ``steps_per_dispatch`` however often the run was stopped, so a resumed run
    executes the same compiled programs as one that never stopped, and its parameters agree bit for bit.

    With a ``run``, the newest checkpoint in it is restored first, one metrics line a dispatch is appended to
    ``metrics.jsonl``, and a checkpoint is written every ``checkpoint_every`` updates, at the end, and on an
    interrupt (SIGINT or SIGTERM; a second one stops at once).

    Args:
      train_step: from `make_train_step`.
      state: where to begin; donated, so use the state that is returned.
      data: passed to every step.
      num_steps: updates in all, those before a resume included.
      steps_per_dispatch: updates a compiled call.
      samples_per_step: negatives an update draws, for the rate in samples a second.
      run: the run's folder, or None to keep nothing.
      checkpoint_every: updates between checkpoints; rounded up to whole dispatches.
      progress: show a bar (or lines where there is no terminal).
      observe: ``state -> metrics``, scalars that join the line of the dispatch after which they were measured
        (`jaxebm.evaluation.make_telemetry` makes them). It must keep no reference to the state's arrays,
        which the next dispatch consumes. Its numbers may be non-finite: they stop nothing.
      observe_every: updates between observations; rounded up to whole dispatches. The last update is observed
        too.

    Returns:
      A `FitResult`.

    Raises:
      DivergenceError: as soon as a metric is not finite; the last good checkpoint stays.
      TrainingInterrupted: after a clean stop.
      ValueError: if a count is not an integer of at least 1.

    Example:
      >>> from functools import partial
      >>> import jax.numpy as jnp, optax
      >>> from jaxebm.objectives import contrastive_divergence, contrastive_loss
      >>> from jaxebm.samplers import sgld
      >>> from jaxebm.training import init_state, make_train_step
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> parts = dict(optimizer=optax.sgd(0.1),
      ...              negatives=contrastive_divergence(partial(sgld, step_size=0.5), num_steps=4))
      >>> step = make_train_step(
      ...     energy=lambda params, x, label: energy(params, x),
      ...     loss=lambda params, key, batch, negatives: contrastive_loss(
      ...         energy, params, batch, negatives.positions),
      ...     next_batch=lambda key, data, streams: (data, streams),
      ...     start_of=lambda batch: (batch, jnp.zeros(len(batch), jnp.int32)), **parts)
      >>> state = init_state(jax.random.key(0), jnp.zeros(1), **parts)
      >>> result = fit(step, state, jnp.full((64, 1), 3.0), num_steps=120)
      >>> int(result.state.step)
      120
    """
    for name, value in (
        ("num_steps", num_steps),
        ("steps_per_dispatch", steps_per_dispatch),
        ("checkpoint_every", checkpoint_every),
        ("observe_every", observe_every),
    ):
        checks.positive_integer(name, value)
    settings = (
        *(num_steps, steps_per_dispatch, samples_per_step, checkpoint_every, progress),
        *(observe or _nothing, observe_every),
    )
    if run is None:
        return _run_updates(train_step, state, data, None, None, *settings)
    with Checkpoints(run.checkpoints) as checkpoints:
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state)
        run.truncate_metrics(int(state.step))
        return _run_updates(train_step, state, data, run, checkpoints, *settings)


def _nothing(state: TrainState) -> Metrics:
    del state
    return {}


def _wait(metrics: Metrics) -> None:
    """Waits for a dispatch in Python, where signals are heard; inside XLA two of them merge into one."""
    ready = attrgetter("is_ready")  # a method of every concrete array that jax's stubs leave out
    while not all(ready(value)() for value in metrics.values()):
        time.sleep(0.001)


def _run_updates(
    train_step: TrainStep,
    state: TrainState,
    data: Any,
    run: RunFolder | None,
    checkpoints: Checkpoints | None,
    num_steps: int,
    steps_per_dispatch: int,
    samples_per_step: int,
    checkpoint_every: int,
    progress: bool,
    observe: Observe,
    observe_every: int,
) -> FitResult:
    compiled: dict[int, TrainStep] = {}
    step = saved = int(state.step)
    started, compile_seconds = time.monotonic(), 0.0
    with _stop_on_signal() as stop, make_progress(progress, first=step, total=num_steps) as bar:
        while step < num_steps:
            length = min(steps_per_dispatch - step % steps_per_dispatch, num_steps - step)
            first = length not in compiled
            dispatch = compiled.setdefault(length, compile_steps(train_step, length))
            dispatched = time.monotonic()
            state, metrics = dispatch(state, data)
            _wait(metrics)
            values = {name: float(value) for name, value in sorted(jax.device_get(metrics).items())}
            seconds = time.monotonic() - dispatched
            compile_seconds += seconds if first else 0.0
            step += length

            check_metrics(step, values)
            if step == num_steps or step // observe_every > (step - length) // observe_every:
                observed = jax.device_get(observe(state))
                values |= {name: float(value) for name, value in sorted(observed.items())}
            if samples_per_step:
                values["samples_per_second"] = samples_per_step * length / seconds
            if run is not None:
                run.append_metrics({"step": step, "seconds": time.monotonic() - started} | values)
            if checkpoints is not None and (
                stop.requested or step == num_steps or step // checkpoint_every > saved // checkpoint_every
            ):
                checkpoints.save(state)
                saved = step
            bar.update(step, values)
            if stop.requested:
                kept = "; the checkpoint is written, resume with --resume" if checkpoints is not None else ""
                raise TrainingInterrupted(f"stopped at step {step} of {num_steps}{kept}.")
    return FitResult(state, time.monotonic() - started, compile_seconds)
