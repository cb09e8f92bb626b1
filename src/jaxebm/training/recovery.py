"""Back to the last healthy state, with a remedy: what `fit` does when an update turns out sick.

Snapshots of the whole training state are kept in memory. A fault takes the run back to one of them, with new
random numbers; a fault soon after that goes back further and puts the next one of a list of remedies in
force. When the list is exhausted the run ends with a diagnosis. Every recovery leaves a record.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.training.health import ADVICE, DivergenceError, Monitor, describe_faults
from jaxebm.training.state import Learner, TrainState

__all__ = [
    "DEFAULT_RECOVERY",
    "REMEDIES",
    "Recovery",
    "RecoveryRecord",
    "Remedy",
    "Snapshots",
    "lift",
    "remedies_in_force",
    "roll_back",
]

RecoveryRecord: TypeAlias = dict[str, Any]
"""One recovery as plain values: recovery, step, faults, metrics, back_to, remedy, in_force, said."""


class Remedy(NamedTuple):
    """What a recovery changes in the training step, besides its random numbers.

    Attributes:
      name: for the log.
      sampler_steps_factor: chains take so many times as many steps, each so many times smaller, at the same
        temperature: as far a way, in a finer discretisation. A step that is too large for the energy's
        curvature is what lets chains overshoot and the energy gap run away.
      learning_rate_factor: every update is multiplied by it.
      energy_l2: least weight of E(x)^2 on data and samples.
    """

    name: str
    sampler_steps_factor: int = 1
    learning_rate_factor: float = 1.0
    energy_l2: float = 0.0


REMEDIES = (
    Remedy("more, smaller steps", sampler_steps_factor=2),
    Remedy("smaller rate", learning_rate_factor=0.5),
    Remedy("energy-L2", energy_l2=0.1),
    Remedy("smaller rate", learning_rate_factor=0.5),
    Remedy("smaller rate", learning_rate_factor=0.5),
)
"""The remedies after fresh noise, in the order in which they are put in force."""


@dataclass(frozen=True)
class Recovery:
    """How a run recovers.

    The first fault brings fresh noise alone: back to the newest snapshot that is at least ``lookback``
    updates old, under a new key. Each further fault within ``probation`` updates of the last one goes one
    snapshot further back and puts the next remedy in force.

    Attributes:
      remake: ``(remedy) -> learner`` with these remedies in force, whose step is compiled when first needed;
        None if the learner cannot be made anew, which leaves the remedies that need none (the smaller rates).
      remedies: what is tried after fresh noise, in this order.
      monitor: what counts as sick.
      snapshot_every: updates between snapshots; rounded up to whole dispatches.
      num_snapshots: how many are kept; the memory of so many training states.
      lookback: updates that the first choice of a snapshot lies before the fault.
      probation: healthy updates after which a fault is no longer the last one's, and a remedy is lifted.
      keep_on: "device", or "host": its pinned memory, for states that fill the device.

    Raises:
      ValueError: from `check`, if a number is out of range.

    Example:
      >>> [remedy.name for remedy in Recovery().usable_remedies]
      ['smaller rate', 'smaller rate', 'smaller rate']
    """

    remake: Callable[[Remedy], Learner] | None = None
    remedies: tuple[Remedy, ...] = REMEDIES
    monitor: Monitor = field(default_factory=Monitor)
    snapshot_every: int = 100
    num_snapshots: int = 3
    lookback: int = 50
    probation: int = 300
    keep_on: Literal["device", "host"] = "device"

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range."""
        self.monitor.check()
        for name in ("snapshot_every", "num_snapshots", "probation"):
            checks.positive_integer(name, getattr(self, name))
        checks.non_negative("lookback", self.lookback)
        if self.keep_on not in ("device", "host"):
            raise ValueError(f"keep_on={self.keep_on!r}: 'device' or 'host' is needed.")
        for remedy in self.remedies:
            checks.positive_integer("sampler_steps_factor", remedy.sampler_steps_factor)
            checks.positive("learning_rate_factor", remedy.learning_rate_factor)
            checks.non_negative("energy_l2", remedy.energy_l2)

    @property
    def usable_remedies(self) -> tuple[Remedy, ...]:
        """The remedies that can be applied: without ``remake``, those that need no new step."""
        if self.remake is not None:
            return self.remedies
        return tuple(
            remedy for remedy in self.remedies if remedy.sampler_steps_factor == 1 and remedy.energy_l2 == 0
        )


DEFAULT_RECOVERY = Recovery()
"""That of `jaxebm.training.fit`."""


def remedies_in_force(remedies: Sequence[Remedy], count: int) -> Remedy:
    """Returns the first ``count`` remedies as one.

    Args:
      remedies: all of them.
      count: how many are in force.

    Returns:
      Their names joined, their factors multiplied, the greatest energy-L2.

    Example:
      >>> remedies_in_force(REMEDIES, 2)  # doctest: +NORMALIZE_WHITESPACE
      Remedy(name='more, smaller steps; smaller rate',
             sampler_steps_factor=2, learning_rate_factor=0.5, energy_l2=0.0)
    """
    chosen = remedies[:count]
    return Remedy(
        "; ".join(remedy.name for remedy in chosen),
        int(np.prod([remedy.sampler_steps_factor for remedy in chosen], dtype=np.int64)),
        float(np.prod([remedy.learning_rate_factor for remedy in chosen])),
        max((remedy.energy_l2 for remedy in chosen), default=0.0),
    )


@jax.jit
def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


class Snapshots:
    """The last healthy states, copies that no dispatch can consume.

    Args:
      recovery: how many, how often, and where they are kept.

    Example:
      >>> from jaxebm.training.state import init_health
      >>> snapshots = Snapshots(Recovery(snapshot_every=10))
      >>> for step in range(0, 40, 5):
      ...     snapshots.offer(TrainState(jnp.array(step), *[()] * 6, health=init_health()), step)
      >>> snapshots.steps
      [10, 20, 30]
    """

    def __init__(self, recovery: Recovery) -> None:
        self.recovery = recovery
        self._kept: deque[tuple[int, TrainState]] = deque(maxlen=recovery.num_snapshots)

    @property
    def steps(self) -> list[int]:
        """After how many updates each was taken, oldest first."""
        return [step for step, _ in self._kept]

    def offer(self, state: TrainState, step: int) -> None:
        """Takes a snapshot if one is due: the first, or ``snapshot_every`` updates after the last."""
        every = self.recovery.snapshot_every
        if not self._kept or step // every > self._kept[-1][0] // every:
            self._kept.append((step, self._put(state)))

    def restart(self, state: TrainState, step: int) -> None:
        """Forgets all snapshots but this one.

        Called at every checkpoint, because a run that is resumed from it has no older ones either, and is to
        recover to the same state bit for bit.
        """
        newest = self._kept[-1] if self._kept else None
        self._kept.clear()
        self._kept.append(newest if newest and newest[0] == step else (step, self._put(state)))

    def choose(self, fault: int, in_a_row: int) -> tuple[int, TrainState]:
        """Returns ``(step, copy of the state)`` to go back to, and forgets the newer ones.

        Args:
          fault: the sick update.
          in_a_row: faults without a healthy stretch between them, this one included.
        """
        old_enough = [i for i, step in enumerate(self.steps) if step <= fault - self.recovery.lookback]
        index = max((old_enough[-1] if old_enough else 0) - (in_a_row - 1), 0)
        while len(self._kept) > index + 1:
            self._kept.pop()
        step, state = self._kept[-1]
        return step, self._get(state)

    def _put(self, state: TrainState) -> TrainState:
        return self._copied_to("pinned_host", state)

    def _get(self, state: TrainState) -> TrainState:
        return self._copied_to("device", state)

    def _copied_to(self, memory_kind: str, state: TrainState) -> TrainState:
        if self.recovery.keep_on == "device":
            return _copy(state)
        shardings = jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind(memory_kind), state)
        return jax.device_put(state, shardings)


def roll_back(
    recovery: Recovery,
    snapshots: Snapshots,
    sick: TrainState,
    faults: Sequence[str],
    metrics: Mapping[str, float],
) -> tuple[TrainState, RecoveryRecord]:
    """Returns the state to go on from, and the record of what was done.

    Args:
      recovery: the settings.
      snapshots: healthy states.
      sick: the state after the sick update; only its ``step`` and the counts in its ``health`` are read.
      faults: what is wrong with it, names of `jaxebm.training.health.FAULTS`.
      metrics: of the sick update.

    Returns:
      ``(state, record)``: a snapshot with a new key, its learning rate lowered if a remedy says so; and plain
      values for JSON, in which numbers that are not finite are text.

    Raises:
      DivergenceError: if the remedies are exhausted, with all that was found and tried.
    """
    fault, health = int(sick.step), sick.health
    again = int(health.last_change) >= 0 and fault <= int(health.last_change) + recovery.probation
    in_a_row = int(health.in_a_row) + 1 if again else 1
    active = int(health.remedies) + again
    remedies, count = recovery.usable_remedies, int(health.recoveries) + 1
    said = describe_faults(fault, faults, metrics)
    if active > len(remedies):
        tried = remedies_in_force(remedies, len(remedies)).name
        raise DivergenceError(
            f"{said}. {in_a_row} faults in a row, {count - 1} recoveries in all; tried: fresh noise, "
            f"{tried}. {ADVICE} An older one may lie further from the fault: resume=True with resume_step."
        )
    back_to, state = snapshots.choose(fault, in_a_row)
    in_force = remedies_in_force(remedies, active)
    remedy = remedies[active - 1].name if again else "fresh noise"

    # A key of its own for each recovery; training's are fold_in(rng_key, step), of a step no run reaches.
    apart = jax.random.fold_in(state.rng_key, jnp.iinfo(jnp.uint32).max)
    rng_key = jax.device_put(jax.random.fold_in(apart, (1 << 31) + count), state.rng_key.sharding)
    state = _with_health(
        state,
        recoveries=count,
        last_change=fault,
        in_a_row=in_a_row,
        remedies=active,
        learning_rate_factor=in_force.learning_rate_factor,
    )
    record = {
        "recovery": count,
        "step": fault,
        "faults": list(faults),
        "metrics": {name: _plain(value) for name, value in sorted(metrics.items())},
        "back_to": back_to,
        "remedy": remedy,
        "in_force": in_force.name,
        "said": said,
    }
    return state._replace(rng_key=rng_key), record


def lift(recovery: Recovery, state: TrainState) -> tuple[TrainState, str | None]:
    """Lifts the last remedy, if the run has been healthy for long enough.

    Args:
      recovery: the settings.
      state: a healthy one.

    Returns:
      ``(state, name)``: with one remedy less in force, and its name; or as it was, and None.

    Example:
      >>> from jaxebm.training.state import init_health
      >>> health = init_health()._replace(remedies=jnp.array(1), learning_rate_factor=jnp.array(0.5))
      >>> state = TrainState(jnp.array(900), *[()] * 6, health=health._replace(last_change=jnp.array(100)))
      >>> state, name = lift(Recovery(), state)
      >>> name, float(state.health.learning_rate_factor)
      ('smaller rate', 1.0)
    """
    step, active = int(state.step), int(state.health.remedies)
    if not active or step < int(state.health.last_change) + recovery.probation:
        return state, None
    in_force = remedies_in_force(recovery.usable_remedies, active - 1)
    changed = _with_health(
        state,
        last_change=step,
        in_a_row=0,
        remedies=active - 1,
        learning_rate_factor=in_force.learning_rate_factor,
    )
    return changed, recovery.usable_remedies[active - 1].name


def _with_health(state: TrainState, **values: float) -> TrainState:
    def put(name: str, value: float) -> Any:
        old = getattr(state.health, name)
        return jax.device_put(np.asarray(value, old.dtype), old.sharding)

    return state._replace(health=state.health._replace(**{name: put(name, v) for name, v in values.items()}))


def _plain(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
