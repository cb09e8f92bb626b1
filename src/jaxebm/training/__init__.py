"""State, the compiled step, and the loop that survives."""

from jaxebm.training.checkpoint import CheckpointMismatchError, Checkpoints
from jaxebm.training.health import DivergenceError, check_metrics, check_state
from jaxebm.training.loop import FitResult, Observe, TrainingInterrupted, fit
from jaxebm.training.progress import Progress, make_progress
from jaxebm.training.run_folder import RunFolder, open_run, write_atomically
from jaxebm.training.state import TrainState, init_state
from jaxebm.training.step import Batch, NextBatch, TrainStep, compile_steps, make_train_step

__all__ = [
    "Batch",
    "CheckpointMismatchError",
    "Checkpoints",
    "DivergenceError",
    "FitResult",
    "NextBatch",
    "Observe",
    "Progress",
    "RunFolder",
    "TrainState",
    "TrainStep",
    "TrainingInterrupted",
    "check_metrics",
    "check_state",
    "compile_steps",
    "fit",
    "init_state",
    "make_progress",
    "make_train_step",
    "open_run",
    "write_atomically",
]
