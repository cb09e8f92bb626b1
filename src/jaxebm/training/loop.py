"""The loop that survives: it recovers from divergence, writes metrics and checkpoints, stops when told to."""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeAlias

import jax

from jaxebm import checks
from jaxebm.training.checkpoint import Checkpoints
from jaxebm.training.dispatch import Dispatch, Memory
from jaxebm.training.health import ADVICE, DivergenceError, Monitor, describe_faults, name_faults
from jaxebm.training.manifest import fingerprint
from jaxebm.training.progress import Progress, make_progress
from jaxebm.training.recovery import (
    DEFAULT_RECOVERY,
    Recovery,
    RecoveryRecord,
    Snapshots,
    lift,
    remedies_in_force,
    roll_back,
)
from jaxebm.training.run_folder import RunFolder
from jaxebm.training.state import TrainState
from jaxebm.training.step import TrainStep
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
      compile_seconds: of which compilation.
      memory: of the compiled step, on one device; None where the backend does not tell.
      recoveries: a record of every rollback of the run, those before a resume included; also in the run's
        ``recoveries.jsonl``.
      best_state: of the best checkpoint, read back; None without a ``best_metric`` or a run.
    """

    state: TrainState
    seconds: float
    compile_seconds: float
    memory: Memory | None
    recoveries: tuple[RecoveryRecord, ...]
    best_state: TrainState | None = None


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
    resume_step: int | None = None,
    best_metric: str | None = None,
    best_mode: Literal["min", "max"] = "min",
    data_fingerprint: str | None = None,
    recovery: Recovery | None = DEFAULT_RECOVERY,
    progress: bool = False,
    observe: Observe | None = None,
    observe_every: int = 1000,
) -> FitResult:
    """Runs updates until ``state.step`` is ``num_steps``.

    Dispatches end at multiples of ``steps_per_dispatch`` however often the run was stopped, so a resumed run
    executes the same compiled program as one that never stopped, and its parameters agree bit for bit.

    The program looks for divergence after every update (`jaxebm.training.health.Monitor`) and stops there.
    Then the run is taken back to its last healthy state with a remedy (`jaxebm.training.recovery`), in the
    open: a warning, a line in ``recoveries.jsonl``, ``recoveries`` in every line of metrics, and a record in
    the result.

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
      resume_step: the checkpoint to go on from, instead of the newest; newer ones are removed.
      best_metric: an observed metric by which the best checkpoint is kept beside the newest ones.
      best_mode: whether its least or its greatest value is best.
      data_fingerprint: what a checkpoint remembers of the data; by default that of ``data``.
      recovery: how to recover, or None to raise at the first number that is not finite.
      progress: show a bar (or lines where there is no terminal).
      observe: ``state -> metrics``, scalars that join the line of the dispatch after which they were measured
        (`jaxebm.evaluation.make_telemetry` makes them). It must keep no reference to the state's arrays,
        which the next dispatch consumes. Its numbers may be non-finite: they stop nothing.
      observe_every: updates between observations; rounded up to whole dispatches. The last update is observed
        too, and with ``best_metric`` every one that is kept.

    Returns:
      A `FitResult`.

    Raises:
      DivergenceError: if the updates diverge and there is no recovery, or no remedy helps; the last good
        checkpoint stays.
      TrainingInterrupted: after a clean stop.
      ValueError: if a count is not an integer of at least 1, or ``best_metric`` is not observed.

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
      >>> int(result.state.step), result.recoveries
      (120, ())
    """
    for name, value in (
        ("num_steps", num_steps),
        ("steps_per_dispatch", steps_per_dispatch),
        ("checkpoint_every", checkpoint_every),
        ("observe_every", observe_every),
    ):
        checks.positive_integer(name, value)
    if recovery is not None:
        recovery.check()
    settings = _Settings(
        *(num_steps, steps_per_dispatch, samples_per_step, checkpoint_every, best_metric),
        *(recovery, progress, observe or _nothing, observe_every),
    )
    if run is None:
        return _Training(train_step, data, None, None, settings).run(state, ())
    if data_fingerprint is None:
        data_fingerprint = fingerprint(data)
    with Checkpoints(
        run.checkpoints,
        best_metric=best_metric,
        best_mode=best_mode,
        manifest={"config": run.config, "data": data_fingerprint},
    ) as checkpoints:
        if checkpoints.latest_step() is not None or resume_step is not None:
            state = checkpoints.restore(state, resume_step)
            checkpoints.discard_after(int(state.step))
        if jax.process_index() == 0:
            run.truncate_metrics(int(state.step))
            run.truncate_recoveries(int(state.health.recoveries))
        recoveries = tuple(run.read_recoveries())
        result = _Training(train_step, data, run, checkpoints, settings).run(state, recoveries)
        if best_metric is None:
            return result
        return result._replace(best_state=checkpoints.restore(result.state, checkpoints.best_step()))


def _nothing(state: TrainState) -> Metrics:
    del state
    return {}


def _wait(leaves: list[Any]) -> None:
    """Waits for a dispatch in Python, where signals are heard; inside XLA two of them merge into one."""
    ready = attrgetter("is_ready")  # a method of every concrete array that jax's stubs leave out
    while not all(ready(value)() for value in leaves):
        time.sleep(0.001)


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(jax.device_get(metrics).items())}


class _Settings(NamedTuple):
    num_steps: int
    steps_per_dispatch: int
    samples_per_step: int
    checkpoint_every: int
    best_metric: str | None
    recovery: Recovery | None
    progress: bool
    observe: Observe
    observe_every: int

    def observes(self, before: int, after: int) -> bool:
        """Whether an observation falls between two updates, the later one included."""
        return after == self.num_steps or after // self.observe_every > before // self.observe_every

    def saves(self, before: int, after: int) -> bool:
        """Whether a checkpoint does."""
        return after == self.num_steps or after // self.checkpoint_every > before // self.checkpoint_every


class _Training:
    """One call of `fit`, with what it collects on the way."""

    def __init__(
        self,
        train_step: TrainStep,
        data: Any,
        run: RunFolder | None,
        checkpoints: Checkpoints | None,
        settings: _Settings,
    ) -> None:
        self.train_step, self.data, self.settings = train_step, data, settings
        self.checkpoints = checkpoints
        # Every process saves its part of a checkpoint; of the rest one copy is enough.
        self.folder = run if jax.process_index() == 0 else None
        self.snapshots = Snapshots(settings.recovery) if settings.recovery is not None else None
        self.dispatches: dict[int, Dispatch] = {}
        self.recoveries: list[RecoveryRecord] = []
        self.started = time.monotonic()

    def run(self, state: TrainState, recoveries: tuple[RecoveryRecord, ...]) -> FitResult:
        """Runs the updates from a state, after the recoveries that the run has behind it."""
        self.recoveries.extend(recoveries)
        first, last = int(state.step), self.settings.num_steps
        if self.snapshots is not None and first < last:
            self.snapshots.restart(state, first)
        with _stop_on_signal() as stop, make_progress(self.settings.progress, first=first, total=last) as bar:
            while (step := int(state.step)) < last:
                state = self._advance(state, step, stop, bar)
                if stop.requested:
                    kept = self.checkpoints is not None
                    said = "; the checkpoint is written, resume with --resume" if kept else ""
                    raise TrainingInterrupted(f"stopped at step {int(state.step)} of {last}{said}.")
        compile_seconds = sum(dispatch.compile_seconds for dispatch in self.dispatches.values())
        memory = next((dispatch.memory for dispatch in self.dispatches.values()), None)
        seconds = time.monotonic() - self.started
        return FitResult(state, seconds, compile_seconds, memory, tuple(self.recoveries))

    def _advance(self, state: TrainState, before: int, stop: _StopRequest, bar: Progress) -> TrainState:
        """One dispatch, and what follows from it."""
        settings = self.settings
        if self.snapshots is not None:
            self.snapshots.offer(state, before)
        length = settings.steps_per_dispatch - before % settings.steps_per_dispatch
        dispatch = self._dispatch_for(state)
        dispatch.compile(state, self.data)
        dispatched = time.monotonic()
        state, report = dispatch(state, self.data, min(length, settings.num_steps - before))
        _wait(jax.tree.leaves(report))
        seconds = time.monotonic() - dispatched
        if faults := name_faults(int(report.faults)):
            return self._recover(state, faults, _numbers(report.last_metrics), stop)
        step = before + int(report.updates)
        values = _numbers(report.metrics)
        saves = self.checkpoints is not None and settings.saves(before, step)
        if settings.observes(before, step) or (saves and settings.best_metric is not None):
            values |= self._observe(state)
        if settings.samples_per_step:
            values["samples_per_second"] = settings.samples_per_step * int(report.updates) / seconds
        if settings.recovery is not None:
            values |= {"recoveries": len(self.recoveries), "remedies": int(state.health.rung)}
            state, lifted = lift(settings.recovery, state)
            if lifted is not None:
                self._tell(f"step {step}: healthy again, {lifted} is lifted.")
        if self.folder is not None:
            elapsed = time.monotonic() - self.started
            self.folder.append_metrics({"step": step, "seconds": elapsed} | values)
        if saves or (self.checkpoints is not None and stop.requested):
            self._save(state, values)
        bar.update(step, values)
        return state

    def _dispatch_for(self, state: TrainState) -> Dispatch:
        """The program with the remedies in force, compiled when it is first needed."""
        rung, recovery = int(state.health.rung), self.settings.recovery
        if rung not in self.dispatches:
            train_step = self.train_step
            if recovery is not None and recovery.remake is not None and rung:
                train_step = recovery.remake(remedies_in_force(recovery.usable_ladder, rung))
            monitor = Monitor(bands=False) if recovery is None else recovery.monitor
            self.dispatches[rung] = Dispatch(train_step, monitor)
        return self.dispatches[rung]

    def _recover(
        self, sick: TrainState, faults: list[str], metrics: dict[str, float], stop: _StopRequest
    ) -> TrainState:
        if self.settings.recovery is None or self.snapshots is None:
            raise DivergenceError(f"{describe_faults(int(sick.step), faults, metrics)}. {ADVICE}")
        state, record = roll_back(self.settings.recovery, self.snapshots, sick, faults, metrics)
        self.recoveries.append(record)
        if self.folder is not None:
            self.folder.append_recovery(record)
            self.folder.truncate_metrics(record["back_to"])
        back = f"back to step {record['back_to']} with {record['remedy']}"
        self._tell(f"{record['said']}: {back} (recovery {record['recovery']}).")
        if stop.requested and self.checkpoints is not None:
            self._save(state, {})
        return state

    @staticmethod
    def _tell(said: str) -> None:
        warnings.warn(said, RuntimeWarning, stacklevel=6)

    def _observe(self, state: TrainState) -> dict[str, float]:
        try:
            observed = _numbers(self.settings.observe(state))
        except BaseException:
            if self.checkpoints is not None and self.settings.best_metric is None:
                self._save(state, {})  # what was learnt is not to be lost by what looks at it
            raise
        wanted = self.settings.best_metric
        if wanted is not None and wanted not in observed:
            known = ", ".join(sorted(observed)) or "nothing"
            raise ValueError(f"best_metric={wanted!r} is not observed: observe returns {known}.")
        return observed

    def _save(self, state: TrainState, metrics: dict[str, float]) -> None:
        assert self.checkpoints is not None
        self.checkpoints.save(state, metrics)
        if self.snapshots is not None:
            self.snapshots.restart(state, int(state.step))
