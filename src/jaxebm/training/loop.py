"""The training loop: it recovers from divergence, writes metrics and checkpoints, and stops on signals."""

import time
import warnings
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import jax

from jaxebm import checks
from jaxebm.training.checkpoint import Checkpoints
from jaxebm.training.dispatch import Dispatch
from jaxebm.training.health import (
    ADVICE,
    DivergenceError,
    Monitor,
    check_scalars,
    describe_faults,
    name_faults,
)
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
from jaxebm.training.result import Checkpointing, FitResult, MetricsRecord, Observe, OnMetrics
from jaxebm.training.run_folder import RunFolder
from jaxebm.training.signals import StopRequest, TrainingInterrupted, stop_on_signal
from jaxebm.training.state import Learner, TrainState
from jaxebm.types import Array, Metrics, Params

__all__ = ["fit"]


def fit(
    rng_key: Array,
    learner: Learner,
    params: Params,
    data: Any,
    *,
    num_steps: int,
    steps_per_dispatch: int = 50,
    checkpointing: Checkpointing | None = None,
    recovery: Recovery | None = DEFAULT_RECOVERY,
    observe: Observe | None = None,
    observe_every: int = 1000,
    on_metrics: OnMetrics | None = None,
    progress: bool = False,
) -> FitResult:
    """Trains: runs updates of a learner until ``num_steps`` are done.

    Dispatches end at multiples of ``steps_per_dispatch`` however often the run was stopped, so a resumed run
    executes the same compiled program as one that never stopped, and its parameters agree bit for bit.

    The program looks for divergence after every update (`jaxebm.training.health.Monitor`) and stops there.
    Then the run is rolled back to its last healthy state with a remedy (`jaxebm.training.recovery`). Each
    recovery is reported: by a warning, a line in ``recoveries.jsonl``, ``recoveries`` in every record of
    metrics, and a record in the result.

    With ``checkpointing``, the newest checkpoint in the run's folder is restored first, one record of metrics
    per dispatch is appended to ``metrics.jsonl``, and checkpoints are written in the background, at the end,
    and on an interrupt (SIGINT or SIGTERM; a second one stops at once).

    Args:
      rng_key: key of all random numbers: parameters, batches, chains.
      learner: from `jaxebm.training.learner`, or a `Learner` of your own.
      params: initial parameters, a pytree; or a function ``(rng_key, example) -> params``, such as the
        ``init`` of a Flax module.
      data: the training data: ``x``, ``(x, labels)``, a function ``(rng_key, batch_size) -> x``,
        or `jaxebm.data.Examples`.
      num_steps: updates in total, those before a resume included.
      steps_per_dispatch: updates per compiled call; metrics are means over them.
      checkpointing: the run's folder and what is kept in it; None keeps nothing.
      recovery: how to recover, or None to raise at the first number that is not finite.
      observe: ``state -> metrics``, scalars that join the record of the dispatch after which they were
        measured (`jaxebm.evaluation.make_telemetry` makes them). It must keep no reference to the state's
        arrays, because the next dispatch donates them. Its numbers may be non-finite: they do not stop the
        training.
      observe_every: updates between observations; rounded up to whole dispatches. The last update is observed
        too, and with ``best_metric`` every state that is saved.
      on_metrics: called with the record of each dispatch, a dictionary of plain numbers with ``step`` and
        ``seconds``, for a logger of your own.
      progress: show a bar (or lines where there is no terminal).

    Returns:
      A `FitResult`; ``result.params`` are the averaged parameters.

    Raises:
      DivergenceError: if the updates diverge and there is no recovery, or no remedy helps; the message names
        the newest checkpoint, if there is one.
      TrainingInterrupted: after a clean stop.
      TypeError: if an argument has the wrong type, or ``observe`` returns something else than scalars.
      ValueError: if a count is not an integer of at least 1, ``best_metric`` is not observed, or data or
        initial parameters are not finite or do not fit the learner. Entries that are not finite in a later
        batch, of a function that draws examples or of ``rescale`` or ``augment``, raise it too.

    Example:
      >>> from functools import partial
      >>> import jax.numpy as jnp, optax
      >>> from jaxebm.objectives import contrastive_divergence, likelihood
      >>> from jaxebm.samplers import sgld
      >>> from jaxebm.training import learner
      >>> energy = lambda params, x: 0.5 * (x - params) @ (x - params)
      >>> chains = contrastive_divergence(partial(sgld, step_size=0.5), num_steps=4)
      >>> learn = learner(likelihood(energy), negatives=chains, optimizer=optax.sgd(0.1))
      >>> result = fit(jax.random.key(0), learn, jnp.zeros(1), jnp.full((64, 1), 3.0), num_steps=120)
      >>> int(result.state.step), [record["step"] for record in result.history]
      (120, [50, 100, 120])
    """
    for name, value in (
        ("num_steps", num_steps),
        ("steps_per_dispatch", steps_per_dispatch),
        ("observe_every", observe_every),
    ):
        checks.positive_integer(name, value)
    for name, value, kind in (
        ("learner", learner, Learner),
        ("recovery", recovery, Recovery | None),
        ("checkpointing", checkpointing, Checkpointing | None),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} is a {type(value).__name__}: {_NEEDED[name]}.")
    checks.rng_key("rng_key", rng_key)
    checks.boolean("progress", progress)
    for name, value, argument in (("observe", observe, "state"), ("on_metrics", on_metrics, "record")):
        if value is not None:
            checks.function(name, value, argument)
    if checkpointing is not None and checkpointing.best_metric is not None and observe is None:
        raise ValueError(f"best_metric={checkpointing.best_metric!r} is not observed: observe is None.")
    settings = _Settings(
        num_steps,
        steps_per_dispatch,
        checkpointing.every if checkpointing is not None else num_steps,
        checkpointing.best_metric if checkpointing is not None else None,
        recovery,
        progress,
        observe or _nothing,
        observe_every,
        on_metrics or _ignore,
    )
    state = learner.init(rng_key, params, data)
    if checkpointing is None:
        return _Training(learner, learner.place(data), None, None, settings).run(state)
    run = checkpointing.run
    digest = checkpointing.fingerprint
    if digest is None:
        # A function that draws examples has no bytes to hash; a custom learner may take other data.
        digest = fingerprint(jax.tree.map(lambda leaf: () if callable(leaf) else leaf, data))
    with Checkpoints(
        run.checkpoints,
        max_to_keep=checkpointing.keep,
        best_metric=checkpointing.best_metric,
        best_mode=checkpointing.best_mode,
        manifest={"config": run.config, "data": digest},
        uncompared=run.uncompared,
    ) as checkpoints:
        if checkpoints.latest_step() is not None or checkpointing.resume_step is not None:
            state = checkpoints.restore(state, checkpointing.resume_step)
            checkpoints.discard_after(int(state.step))
        if jax.process_index() == 0:
            run.truncate_metrics(int(state.step))
            run.truncate_recoveries(int(state.health.recoveries))
        training = _Training(learner, learner.place(data), run, checkpoints, settings)
        # Other processes may read the file before the first process has truncated it.
        behind = [record for record in run.read_metrics() if record["step"] <= int(state.step)]
        result = training.run(state, run.read_recoveries()[: int(state.health.recoveries)], behind)
        if checkpointing.best_metric is None:
            return result
        return result._replace(best_state=checkpoints.restore(result.state, checkpoints.best_step()))


_NEEDED = {
    "learner": "a Learner is needed, such as learner(...) of jaxebm.training",
    "recovery": "a Recovery is needed, or None",
    "checkpointing": "Checkpointing(run) is needed, or None",
}


def _nothing(state: TrainState) -> Metrics:
    del state
    return {}


def _ignore(record: Mapping[str, float]) -> None:
    del record


def _wait(leaves: list[Any]) -> None:
    """Waits for a dispatch in Python, so that signal handlers run; inside XLA two signals would merge."""
    ready = attrgetter("is_ready")  # a method of every concrete array, missing in the stubs of jax
    while not all(ready(value)() for value in leaves):
        time.sleep(0.001)


def _numbers(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(jax.device_get(metrics).items())}


class _Settings(NamedTuple):
    num_steps: int
    steps_per_dispatch: int
    checkpoint_every: int
    best_metric: str | None
    recovery: Recovery | None
    progress: bool
    observe: Observe
    observe_every: int
    on_metrics: OnMetrics

    def observes(self, before: int, after: int) -> bool:
        """Whether an observation falls between two updates, the later one included."""
        return after == self.num_steps or after // self.observe_every > before // self.observe_every

    def saves(self, before: int, after: int) -> bool:
        """Whether a checkpoint falls between two updates, the later one included."""
        return after == self.num_steps or after // self.checkpoint_every > before // self.checkpoint_every


class _Training:
    """One call of `fit`, with its records."""

    def __init__(
        self,
        learner: Learner,
        data: Any,
        run: RunFolder | None,
        checkpoints: Checkpoints | None,
        settings: _Settings,
    ) -> None:
        self.learner, self.data, self.settings = learner, data, settings
        self.checkpoints = checkpoints
        # Every process saves its part of a checkpoint; the first process alone writes the other files.
        self.folder = run if jax.process_index() == 0 else None
        self.snapshots = Snapshots(settings.recovery) if settings.recovery is not None else None
        self.dispatches: dict[int, Dispatch] = {}
        self.recoveries: list[RecoveryRecord] = []
        self.history: list[MetricsRecord] = []
        self.started = time.monotonic()

    def run(
        self,
        state: TrainState,
        recoveries: Sequence[RecoveryRecord] = (),
        history: Sequence[MetricsRecord] = (),
    ) -> FitResult:
        """Runs the updates from a state; ``recoveries`` and ``history`` are the records of the run so far."""
        self.recoveries.extend(recoveries)
        self.history.extend(history)
        first, last = int(state.step), self.settings.num_steps
        if self.snapshots is not None and first < last:
            self.snapshots.restart(state, first)
        with stop_on_signal() as stop, make_progress(self.settings.progress, first=first, total=last) as bar:
            while (step := int(state.step)) < last and not stop.requested:
                state = self._advance(state, step, stop, bar)
            if self.checkpoints is not None:
                self.checkpoints.wait()  # while a signal is a request: it does not cut the last write
            if stop.requested:
                kept = self.checkpoints is not None
                said = "; the checkpoint is written, resume with resume=True" if kept else ""
                raise TrainingInterrupted(f"stopped at step {int(state.step)} of {last}{said}.")
        compile_seconds = sum(dispatch.compile_seconds for dispatch in self.dispatches.values())
        device_memory = next((dispatch.device_memory for dispatch in self.dispatches.values()), None)
        return FitResult(
            state,
            tuple(self.history),
            tuple(self.recoveries),
            time.monotonic() - self.started,
            compile_seconds,
            device_memory,
        )

    def _advance(self, state: TrainState, before: int, stop: StopRequest, bar: Progress) -> TrainState:
        """Runs one dispatch, then recovers, observes and saves as needed."""
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
        rate = {"updates_per_second": int(report.updates) / seconds}
        saves = self.checkpoints is not None and settings.saves(before, step)
        if settings.observes(before, step) or (saves and settings.best_metric is not None):
            try:
                values |= self._observe(state)
            except BaseException:
                # An error of observe must not lose the training so far, nor its record.
                state, _ = self._recorded(state, step, values | rate)
                if self.checkpoints is not None and settings.best_metric is None:
                    self._save(state, {})
                raise
        values |= rate
        state, record = self._recorded(state, step, values)
        settings.on_metrics(dict(record))  # a copy, because the function may change it
        if saves or (self.checkpoints is not None and stop.requested):
            self._save(state, values)
        bar.update(step, values)
        return state

    def _recorded(
        self, state: TrainState, step: int, values: dict[str, float]
    ) -> tuple[TrainState, MetricsRecord]:
        """Lifts a remedy if it is time, and appends the record of a dispatch."""
        settings = self.settings
        if settings.recovery is not None:
            values |= {"recoveries": len(self.recoveries), "remedies": int(state.health.remedies)}
            state, lifted = lift(settings.recovery, state)
            if lifted is not None:
                self._tell(f"step {step}: healthy again, the remedy '{lifted}' is lifted.")
        record = {"step": step, "seconds": time.monotonic() - self.started}
        record |= {name: value for name, value in values.items() if name not in record}
        self.history.append(record)
        if self.folder is not None:
            self.folder.append_metrics(record)
        return state, record

    def _dispatch_for(self, state: TrainState) -> Dispatch:
        """The program with the remedies in force, compiled when it is first needed."""
        count, recovery = int(state.health.remedies), self.settings.recovery
        if count not in self.dispatches:
            learner = self.learner
            if recovery is not None and recovery.remake is not None and count:
                learner = recovery.remake(remedies_in_force(recovery.usable_remedies, count))
                checks.instance("what remake returns", learner, Learner)
            monitor = Monitor(bands=False) if recovery is None else recovery.monitor
            self.dispatches[count] = Dispatch(learner.step, monitor)
        return self.dispatches[count]

    def _recover(
        self, sick: TrainState, faults: list[str], metrics: dict[str, float], stop: StopRequest
    ) -> TrainState:
        if "data" in faults:
            raise ValueError(
                f"{describe_faults(int(sick.step), ['data'], {})}: data, rescale or augment gave NaN or "
                f"infinity. Drop or repair such examples. {self._kept()}"
            )
        if self.settings.recovery is None or self.snapshots is None:
            said = describe_faults(int(sick.step), faults, metrics)
            raise DivergenceError(f"{said}. {ADVICE} {self._kept()}")
        try:
            state, record = roll_back(self.settings.recovery, self.snapshots, sick, faults, metrics)
        except DivergenceError as error:
            raise DivergenceError(f"{error} {self._kept()}") from None
        self.recoveries.append(record)
        self.history = [before for before in self.history if before["step"] <= record["back_to"]]
        if self.folder is not None:
            self.folder.append_recovery(record)
            self.folder.truncate_metrics(record["back_to"])
        back = f"back to step {record['back_to']} with {record['remedy']}"
        self._tell(f"{record['said']}: {back} (recovery {record['recovery']}).")
        if stop.requested and self.checkpoints is not None:
            self._save(state, {})
        return state

    def _kept(self) -> str:
        """What is left of a run that ends with an error, in a sentence."""
        if self.checkpoints is None:
            return "No checkpoint was written, because checkpointing is None."
        steps = self.checkpoints.all_steps()
        if not steps:
            return "No checkpoint had been written before."
        kept = f"The checkpoint of step {steps[-1]} is kept."
        if len(steps) > 1:
            kept += f" That of step {steps[-2]} lies further from the fault: resume=True with resume_step."
        return kept

    @staticmethod
    def _tell(said: str) -> None:
        warnings.warn(said, RuntimeWarning, stacklevel=6)

    def _observe(self, state: TrainState) -> dict[str, float]:
        found = self.settings.observe(state)
        check_scalars("what observe returns", found)
        observed = _numbers(found)
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
