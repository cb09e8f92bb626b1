"""Cost of detection of divergence and snapshots in a healthy run: the digits JEM update with and without."""

from typing import Any

import jax
import numpy as np

from benchmarks.harness import Contender, Workload
from jaxebm.data import load_dataset
from jaxebm.recipes import Config, build
from jaxebm.training import TrainState, TrainStep, compile_steps
from jaxebm.training.dispatch import compile_monitored_steps
from jaxebm.training.health import name_faults
from jaxebm.training.recovery import DEFAULT_RECOVERY, Snapshots
from jaxebm.types import Metrics

__all__ = ["PROTECTED", "UNPROTECTED", "Protected", "Unprotected", "digits_workload", "recovery_workload"]

ONLY_FOR_DETECTION = (
    "frozen_chains",
    "saturated_chains",
    "chain_spread",
    "largest_chain",
    "sample_grain",
    "largest_data",
)
PROTECTED = "with detection and snapshots"
UNPROTECTED = "without"


class Unprotected:
    """Only dispatches of updates, each continuing from the last."""

    def __init__(self, train_step: TrainStep, state: TrainState, data: Any, num_updates: int) -> None:
        def bare(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
            state, metrics = train_step(state, data)
            # Metrics only for detection; the compiler removes unused ones.
            kept = {name: value for name, value in metrics.items() if name not in ONLY_FOR_DETECTION}
            return state, kept

        # A copy: the state is donated, and the other contender starts from the same.
        self.state, self.data = jax.tree.map(jax.numpy.copy, state), data
        self.dispatch = compile_steps(bare, num_updates)

    def __call__(self) -> np.ndarray:
        """Dispatches once, reads the metrics, and returns the mean loss, (1,)."""
        self.state, metrics = self.dispatch(self.state, self.data)
        return np.atleast_1d(jax.device_get(metrics)["loss"])


class Protected:
    """The same as in `jaxebm.training.fit`: monitored updates, and snapshots."""

    def __init__(self, train_step: TrainStep, state: TrainState, data: Any, num_updates: int) -> None:
        self.state, self.data = jax.tree.map(jax.numpy.copy, state), data
        self.num_updates = num_updates
        self.snapshots = Snapshots(DEFAULT_RECOVERY)
        self.dispatch = compile_monitored_steps(train_step, DEFAULT_RECOVERY.monitor)

    def __call__(self) -> np.ndarray:
        """Dispatches once, reads the report, and returns the mean loss, (1,).

        Raises ``RuntimeError`` if the run was not healthy.
        """
        self.snapshots.offer(self.state, int(self.state.step))
        self.state, report = self.dispatch(self.state, self.data, self.num_updates)
        report = jax.device_get(report)
        if report.faults:
            raise RuntimeError(f"The timed run was not healthy: {name_faults(int(report.faults))}.")
        return np.atleast_1d(report.metrics["loss"])


def recovery_workload(
    title: str, train_step: TrainStep, state: TrainState, data: Any, num_updates: int
) -> Workload:
    """Returns the two contenders; after the first dispatch their losses agree.

    Args:
      title: title of the table.
      train_step: step of a `jaxebm.training.learner`.
      state: initial state of both.
      data: training data, passed to every step.
      num_updates: updates per dispatch.
    """
    arguments = (train_step, state, data, num_updates)
    contenders = [
        Contender(UNPROTECTED, Unprotected(*arguments), num_updates),
        Contender(PROTECTED, Protected(*arguments), num_updates),
    ]
    # The two programs are fused differently, and the updates of a dispatch amplify rounding.
    return Workload(title, contenders, "update", tolerance=1e-2)


def digits_workload(seed: int) -> Workload:
    """The digits of experiments/jem.py, with its settings."""
    config = Config(seed=seed)
    training = build(config, load_dataset("digits"))
    learn, updates = training.learner, config.run.steps_per_dispatch
    state = learn.init(jax.random.key(seed), training.params, training.data)
    title = f"JEM update on digits, {config.network}, {updates} per dispatch"
    return recovery_workload(title, learn.step, state, learn.place(training.data), updates)
