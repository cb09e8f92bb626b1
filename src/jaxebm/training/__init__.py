"""Training: the learner, its state, and a loop that detects divergence, recovers, and can be resumed."""

from jaxebm.training.batches import AugmentExample, Streams
from jaxebm.training.chain_measures import measure_chains
from jaxebm.training.checkpoint import Checkpoints, CheckpointWriteError
from jaxebm.training.collapse import SLOW_COLLAPSE, Finding, measure_collapse, slow_collapse
from jaxebm.training.dispatch import (
    DeviceMemory,
    Dispatch,
    MonitoredSteps,
    Report,
    compile_monitored_steps,
    compile_steps,
)
from jaxebm.training.health import (
    FAULTS,
    DivergenceError,
    Monitor,
    check_metrics,
    check_state,
    diagnose,
    name_faults,
)
from jaxebm.training.loop import fit
from jaxebm.training.manifest import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    describe_versions,
    fingerprint,
)
from jaxebm.training.parameters import read_params
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
    REMEDIES,
    Recovery,
    RecoveryRecord,
    Remedy,
    Snapshots,
    lift,
    remedies_in_force,
    roll_back,
)
from jaxebm.training.result import Checkpointing, FitResult, MetricsRecord, Observe, OnMetrics
from jaxebm.training.run_folder import RunFolder, open_run, read_run, write_atomically
from jaxebm.training.sharpness import Sharpness, ascend
from jaxebm.training.signals import TrainingInterrupted
from jaxebm.training.state import Health, Learner, TrainState, TrainStep, init_health
from jaxebm.training.update import InitParams, learner

__all__ = [
    "DEFAULT_RECOVERY",
    "FAULTS",
    "REMEDIES",
    "SHARDS",
    "SLOW_COLLAPSE",
    "SMALLEST_SPLIT",
    "AugmentExample",
    "CheckpointCorruptError",
    "CheckpointMismatchError",
    "CheckpointWriteError",
    "Checkpointing",
    "Checkpoints",
    "DeviceMemory",
    "Dispatch",
    "DivergenceError",
    "Finding",
    "FitResult",
    "Health",
    "InitParams",
    "Learner",
    "MetricsRecord",
    "Monitor",
    "MonitoredSteps",
    "Observe",
    "OnMetrics",
    "Placement",
    "Progress",
    "Recovery",
    "RecoveryRecord",
    "Remedy",
    "Report",
    "RunFolder",
    "Sharpness",
    "Snapshots",
    "Streams",
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
    "initialize_distributed",
    "learner",
    "lift",
    "make_placement",
    "make_progress",
    "measure_chains",
    "measure_collapse",
    "name_faults",
    "open_run",
    "read_params",
    "read_run",
    "remedies_in_force",
    "roll_back",
    "slow_collapse",
    "write_atomically",
]
