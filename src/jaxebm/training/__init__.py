"""State, the compiled step, and the loop that survives."""

from jaxebm.training.checkpoint import Checkpoints, CheckpointWriteError
from jaxebm.training.dispatch import Dispatch, Memory, MonitoredSteps, Report, compile_monitored_steps
from jaxebm.training.health import (
    FAULTS,
    DivergenceError,
    Monitor,
    check_metrics,
    check_state,
    diagnose,
    measure_chains,
    name_faults,
)
from jaxebm.training.loop import FitResult, Observe, TrainingInterrupted, fit
from jaxebm.training.manifest import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    describe_versions,
    fingerprint,
)
from jaxebm.training.placement import (
    SHARDS,
    SMALLEST_SPLIT,
    Placement,
    fetch,
    initialize_distributed,
    make_placement,
)
from jaxebm.training.progress import Progress, make_progress
from jaxebm.training.recovery import (
    DEFAULT_RECOVERY,
    LADDER,
    Recovery,
    RecoveryRecord,
    Remedy,
    Snapshots,
    lift,
    remedies_in_force,
    roll_back,
)
from jaxebm.training.run_folder import RunFolder, open_run, write_atomically
from jaxebm.training.sharpness import Sharpness, ascend
from jaxebm.training.state import Health, TrainState, init_health, init_state
from jaxebm.training.step import Batch, NextBatch, TrainStep, compile_steps, make_train_step

__all__ = [
    "DEFAULT_RECOVERY",
    "FAULTS",
    "LADDER",
    "SHARDS",
    "SMALLEST_SPLIT",
    "Batch",
    "CheckpointCorruptError",
    "CheckpointMismatchError",
    "CheckpointWriteError",
    "Checkpoints",
    "Dispatch",
    "DivergenceError",
    "FitResult",
    "Health",
    "Memory",
    "Monitor",
    "MonitoredSteps",
    "NextBatch",
    "Observe",
    "Placement",
    "Progress",
    "Recovery",
    "RecoveryRecord",
    "Remedy",
    "Report",
    "RunFolder",
    "Sharpness",
    "Snapshots",
    "TrainState",
    "TrainStep",
    "TrainingInterrupted",
    "ascend",
    "check_metrics",
    "check_state",
    "compile_monitored_steps",
    "compile_steps",
    "describe_versions",
    "diagnose",
    "fetch",
    "fingerprint",
    "fit",
    "init_health",
    "init_state",
    "initialize_distributed",
    "lift",
    "make_placement",
    "make_progress",
    "make_train_step",
    "measure_chains",
    "name_faults",
    "open_run",
    "remedies_in_force",
    "roll_back",
    "write_atomically",
]
