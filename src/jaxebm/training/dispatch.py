"""Many updates in one compiled call, which stops at the first faulty update."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.training.health import Monitor, check_scalars, diagnose, inspect
from jaxebm.training.state import TrainState, TrainStep
from jaxebm.types import Array, Metrics

__all__ = ["DeviceMemory", "Dispatch", "MonitoredSteps", "Report", "compile_monitored_steps", "compile_steps"]


class Report(NamedTuple):
    """What happened in one dispatch of `compile_monitored_steps`.

    Attributes:
      metrics: means over its healthy updates; zeros if there was none.
      updates: updates done, the faulty one included, a scalar.
      faults: faults of the last update, bits for `jaxebm.training.health.name_faults`; 0 if all went well.
      last_metrics: metrics of the last update.
    """

    metrics: Metrics
    updates: Array
    faults: Array
    last_metrics: Metrics


MonitoredSteps = Callable[[TrainState, Any, Array | int], tuple[TrainState, Report]]
"""``(state, data, num_steps) -> (state, report)``, compiled, the state donated."""


def compile_monitored_steps(train_step: TrainStep, monitor: Monitor | None = None) -> MonitoredSteps:
    """Compiles updates into one dispatch that stops, on the device, at the first faulty update.

    Args:
      train_step: the step of a learner.
      monitor: defines which updates are faulty; `Monitor()` by default.

    Returns:
      ``steps(state, data, num_steps) -> (state, report)``: one program for any ``num_steps``, and a `Report`
      of at most ``num_steps`` updates. The state passed in is donated: use the one that is returned. After a
      fault it is the state after the faulty update.

    Raises:
      TypeError: if ``train_step`` is not a function of two arguments, or ``monitor`` no `Monitor`; from
        ``steps``, if the step returns something else than a state and scalars by name.
      ValueError: from ``steps``, if it returns no metric, or one that is no scalar.

    Example:
      >>> from jaxebm.training import TrainState, init_health, name_faults
      >>> def explode(state, data):
      ...     params = 10.0 * state.params
      ...     return state._replace(params=params, step=state.step + 1), {"loss": params}
      >>> state = TrainState(jnp.zeros((), jnp.int32), jnp.ones(()), *[()] * 5, health=init_health())
      >>> state, report = compile_monitored_steps(explode)(state, None, 100)
      >>> int(report.updates), name_faults(int(report.faults))
      (39, ['metrics', 'parameters'])
    """
    checks.function("train_step", train_step, "state", "data")
    monitor = Monitor() if monitor is None else monitor
    checks.instance("monitor", monitor, Monitor)

    def checked_step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        return _checked(train_step(state, data))

    @partial(jax.jit, donate_argnums=0)
    def steps(state: TrainState, data: Any, num_steps: Array) -> tuple[TrainState, Report]:
        def update(carry: tuple[TrainState, Report]) -> tuple[TrainState, Report]:
            state, report = carry
            state, metrics = checked_step(state, data)
            health, faults = diagnose(monitor, state, metrics)
            sums = jax.tree.map(
                lambda total, value: jnp.where(faults == 0, total + value, total), report.metrics, metrics
            )
            return state._replace(health=health), Report(sums, report.updates + 1, faults, metrics)

        def unfinished(carry: tuple[TrainState, Report]) -> Array:
            return (carry[1].updates < num_steps) & (carry[1].faults == 0)

        shapes = jax.eval_shape(checked_step, state, data)[1]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        zero = jnp.zeros((), jnp.int32)
        state, report = jax.lax.while_loop(unfinished, update, (state, Report(nothing, zero, zero, nothing)))
        healthy = jnp.maximum(report.updates - (report.faults != 0), 1)
        means = jax.tree.map(lambda total: total / healthy, report.metrics)
        return state, report._replace(metrics=means, faults=report.faults | inspect(state))

    return steps


def _checked(returned: Any) -> tuple[TrainState, Metrics]:
    """What a train step returned, or an error that says what it must return."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], TrainState)):
        raise TypeError(
            f"train_step returned a {type(returned).__name__}: it must return (state, metrics), the new "
            f"TrainState and a dictionary of scalars."
        )
    check_scalars("metrics", returned[1], "the step of a learner must return at least its loss")
    return returned


class DeviceMemory(NamedTuple):
    """Bytes on one device, as the compiler counts them.

    Attributes:
      state_and_data: the inputs of a dispatch.
      donated: inputs whose memory the outputs reuse.
      temporary: memory that it needs in addition to its inputs and outputs.
    """

    state_and_data: int
    donated: int
    temporary: int


class Dispatch:
    """A program of `compile_monitored_steps`, compiled at its first call, with its cost.

    Args:
      train_step: the step of a learner.
      monitor: defines which updates are faulty.
    """

    def __init__(self, train_step: TrainStep, monitor: Monitor) -> None:
        self.train_step, self.monitor = train_step, monitor
        self._compiled: Any = None
        self.compile_seconds = 0.0
        self.device_memory: DeviceMemory | None = None
        """None before the first call, and where the backend does not report it."""

    def compile(self, state: TrainState, data: Any) -> None:
        """Compiles for arguments of these shapes, unless that has been done already."""
        if self._compiled is not None:
            return
        started = time.monotonic()
        steps: Any = compile_monitored_steps(self.train_step, self.monitor)
        self._compiled = steps.lower(state, data, np.int32(1)).compile()
        self.compile_seconds = time.monotonic() - started
        found = self._compiled.memory_analysis()
        if found is not None:
            self.device_memory = DeviceMemory(
                found.argument_size_in_bytes, found.alias_size_in_bytes, found.temp_size_in_bytes
            )

    def __call__(self, state: TrainState, data: Any, num_steps: int) -> tuple[TrainState, Report]:
        """Runs at most ``num_steps`` updates, as described for `compile_monitored_steps`."""
        self.compile(state, data)
        return self._compiled(state, data, np.int32(num_steps))


def compile_steps(train_step: TrainStep, num_steps: int) -> TrainStep:
    """Compiles ``num_steps`` updates into one dispatch, an outer scan whose state is donated.

    Args:
      train_step: the step of a learner.
      num_steps: updates per call.

    Returns:
      ``steps(state, data) -> (state, metrics)``; metrics are means over the updates. The state passed in is
      donated: use the one that is returned.

    Raises:
      TypeError: if ``train_step`` is not a function of two arguments.
      ValueError: if ``num_steps`` is not an integer of at least 1.

    Example:
      >>> from jaxebm.training import TrainState, init_health
      >>> def halve(state, data):
      ...     return state._replace(params=0.5 * state.params), {"loss": state.params}
      >>> state = TrainState(jnp.zeros((), jnp.int32), jnp.ones(()), *[()] * 5, health=init_health())
      >>> state, metrics = compile_steps(halve, 3)(state, None)
      >>> float(state.params), round(float(metrics["loss"]), 4)
      (0.125, 0.5833)
    """
    checks.function("train_step", train_step, "state", "data")
    checks.positive_integer("num_steps", num_steps)

    @partial(jax.jit, donate_argnums=0)
    def steps(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        state, metrics = jax.lax.scan(lambda carry, _: train_step(carry, data), state, length=num_steps)
        return state, jax.tree.map(partial(jnp.mean, axis=0), metrics)

    return steps
