"""What `jaxebm.training.fit` is told about a run's folder, and what it returns."""

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
"""What to measure now and then, beside the metrics of the step itself."""
MetricsRecord: TypeAlias = dict[str, float]
"""The metrics of one dispatch as plain numbers, with ``step`` and ``seconds``."""
OnMetrics: TypeAlias = Callable[[MetricsRecord], None]
"""Receives each record as it is made."""


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: after the last update.
      history: a record of metrics for each dispatch of the run, plain numbers with ``step`` and ``seconds``,
        those before a resume included; also in the run's ``metrics.jsonl``.
      recoveries: a record of every rollback of the run, those before a resume included; also in the run's
        ``recoveries.jsonl``.
      seconds: wall-clock time of this call's updates, compilation included.
      compile_seconds: of which compilation.
      device_memory: of the compiled step, on one device; None where the backend does not tell.
      best_state: of the best checkpoint, read back; None without a ``best_metric``.
    """

    state: TrainState
    history: tuple[MetricsRecord, ...]
    recoveries: tuple[RecoveryRecord, ...]
    seconds: float
    compile_seconds: float
    device_memory: DeviceMemory | None
    best_state: TrainState | None = None

    @property
    def params(self) -> Params:
        """The averaged parameters: of the best checkpoint where one was kept, else after the last update."""
        return (self.state if self.best_state is None else self.best_state).ema_params


@dataclass(frozen=True)
class Checkpointing:
    """What a run keeps on disk.

    Attributes:
      run: the run's folder, from `jaxebm.training.open_run`.
      every: updates between checkpoints; rounded up to whole dispatches.
      resume_step: the checkpoint to go on from, instead of the newest; newer ones are removed.
      best_metric: an observed metric by which the best checkpoint is kept beside the newest ones.
      best_mode: whether its least or its greatest value is best.
      fingerprint: what a checkpoint remembers of the data; by default `jaxebm.training.fingerprint` of them.

    Example:
      >>> import tempfile
      >>> from jaxebm.training import open_run
      >>> Checkpointing(open_run(tempfile.mkdtemp(), {"seed": 0}), every=200).check()
    """

    run: RunFolder
    every: int = 1000
    resume_step: int | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    fingerprint: str | None = None

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range."""
        checks.positive_integer("every", self.every)
        if not isinstance(self.run, RunFolder):
            raise ValueError(f"run={self.run!r}: a folder from jaxebm.training.open_run is needed.")
