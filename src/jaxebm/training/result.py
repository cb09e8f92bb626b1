"""The checkpointing options of `jaxebm.training.fit`, and its result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from jaxebm import checks
from jaxebm.training.dispatch import DeviceMemory
from jaxebm.training.recovery import RecoveryRecord
from jaxebm.training.run_folder import RunFolder
from jaxebm.training.state import TrainState
from jaxebm.types import Metrics, Params

__all__ = ["Checkpointing", "FitResult", "MetricsRecord", "Observe", "OnMetrics"]

Observe: TypeAlias = Callable[[TrainState], Metrics]
"""``state -> metrics``: additional measurements, less frequent than the metrics of the step."""
MetricsRecord: TypeAlias = dict[str, float]
"""The metrics of one dispatch as plain numbers, with ``step`` and ``seconds``."""
OnMetrics: TypeAlias = Callable[[MetricsRecord], None]
"""``record -> None``, called with each new record."""


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
      state: the training state after the last update.
      history: a record of metrics for each dispatch of the run, plain numbers with ``step`` and ``seconds``,
        those before a resume included; also in the run's ``metrics.jsonl``.
      recoveries: a record of every rollback of the run, those before a resume included; also in the run's
        ``recoveries.jsonl``.
      seconds: wall-clock time of this call's updates, compilation included.
      compile_seconds: the part of it that compilation took.
      device_memory: memory of the compiled step, on one device; None where the backend does not report it.
      best_state: the state of the best checkpoint, read back; None without a ``best_metric``.
    """

    state: TrainState
    history: tuple[MetricsRecord, ...]
    recoveries: tuple[RecoveryRecord, ...]
    seconds: float
    compile_seconds: float
    device_memory: DeviceMemory | None
    best_state: TrainState | None = None

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        shown = {name: last[name] for name in ("step", "loss", "energy_gap") if name in last}
        listed = ", ".join(f"{name}={value:.6g}" for name, value in shown.items())
        return f"FitResult({listed}, recoveries={len(self.recoveries)}, seconds={self.seconds:.1f})"

    @property
    def params(self) -> Params:
        """The averaged parameters: of the best checkpoint if there is one, else after the last update."""
        return (self.state if self.best_state is None else self.best_state).ema_params


@dataclass(frozen=True)
class Checkpointing:
    """How a run saves checkpoints.

    Attributes:
      run: the run's folder, from `jaxebm.training.open_run`.
      every: updates between checkpoints; rounded up to whole dispatches.
      resume_step: the checkpoint to continue from, instead of the newest; newer ones are removed.
      best_metric: an observed metric; the checkpoint that is best by it is kept in addition to the newest.
      best_mode: whether its least or its greatest value is best.
      fingerprint: a digest of the data, saved to compare; by default `jaxebm.training.fingerprint` of them.
      keep: how many of the newest checkpoints are kept; older ones are removed.

    Raises:
      TypeError: if a setting has the wrong type.
      ValueError: if a number is out of range, or ``best_mode`` unknown.

    Example:
      >>> import tempfile
      >>> from jaxebm.training import open_run
      >>> Checkpointing(open_run(tempfile.mkdtemp(), {"seed": 0}), every=200).best_mode
      'min'
    """

    run: RunFolder
    every: int = 1000
    resume_step: int | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    fingerprint: str | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        checks.instance("run", self.run, RunFolder, "open_run of jaxebm.training makes one.")
        checks.positive_integer("every", self.every)
        checks.positive_integer("keep", self.keep)
        if self.resume_step is not None:
            checks.integer("resume_step", self.resume_step, 0)
        for name in ("best_metric", "fingerprint"):
            if getattr(self, name) is not None:
                checks.text(name, getattr(self, name))
        checks.one_of("best_mode", self.best_mode, ("min", "max"))
