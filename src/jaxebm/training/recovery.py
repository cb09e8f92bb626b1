"""Recovery from divergence: after a faulty update, `fit` goes back to a healthy state, with a remedy.

Snapshots of the whole training state are kept in memory. After a fault the run goes back to one of them, with
new random numbers; after another fault soon after that, it goes back further and applies the next remedy of a
list. When the list is exhausted, the run ends with a diagnosis. Every recovery is recorded.
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
    """Changes that a recovery makes to the training step, besides new random numbers.

    Attributes:
      name: its name in logs and records.
      sampler_steps_factor: factor of the number of sampler steps and divisor of their size, at the same
        temperature: the same total length, in a finer discretisation. Steps that are too large for the
        curvature of the energy make chains overshoot, and then the energy gap diverges.
      learning_rate_factor: factor of every update.
      energy_l2: lower bound of the weight of E(x)^2 on data and samples.

    Example:
      >>> Remedy("much smaller rate", learning_rate_factor=0.1).sampler_steps_factor
      1
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
"""The remedies after fresh noise, in the order in which they are applied."""


@dataclass(frozen=True)
class Recovery:
    """Settings of the recovery of a run.

    After the first fault only the random numbers change: the run goes back to the newest snapshot that is at
    least ``lookback`` updates old, with a new key. After each further fault within ``probation`` updates of
    the last one, it goes one snapshot further back and applies the next remedy.

    Attributes:
      remake: ``(remedy) -> learner`` with these remedies in force, whose step is compiled when first needed;
        None if there is no such function: then only the remedies that need no new learner (the smaller
        learning rates) are used.
      remedies: the remedies after fresh noise, in this order.
      monitor: defines which updates are faulty.
      snapshot_every: updates between snapshots; rounded up to whole dispatches.
      num_snapshots: how many snapshots are kept; each needs the memory of one training state.
      lookback: the least number of updates between the snapshot of a first recovery and the fault.
      probation: healthy updates after which a new fault counts as a first one, and a remedy is lifted.
      keep_on: "device", or "host": pinned host memory, for states that fill the device.

    Raises:
      TypeError: if a setting has the wrong type.
      ValueError: if a number is out of range.

    Example:
      >>> [remedy.name for remedy in Recovery(snapshot_every=500).usable_remedies]
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

    def __post_init__(self) -> None:
        if self.remake is not None:
            checks.function("remake", self.remake, "remedy")
        _check_remedies(self.remedies)
        checks.instance("monitor", self.monitor, Monitor)
        for name in ("snapshot_every", "num_snapshots", "probation"):
            checks.positive_integer(name, getattr(self, name))
        checks.integer("lookback", self.lookback, 0)
        checks.one_of("keep_on", self.keep_on, ("device", "host"))

    @property
    def usable_remedies(self) -> tuple[Remedy, ...]:
        """The remedies that can be applied: without ``remake``, those that need no new step."""
        if self.remake is not None:
            return self.remedies
        return tuple(
            remedy for remedy in self.remedies if remedy.sampler_steps_factor == 1 and remedy.energy_l2 == 0
        )


def _check_remedies(remedies: Any) -> None:
    checks.instance("remedies", remedies, Sequence)
    for index, remedy in enumerate(remedies):
        name = f"remedies[{index}]"
        checks.instance(name, remedy, Remedy)
        checks.instance(f"{name}.name", remedy.name, str)
        checks.positive_integer(f"{name}.sampler_steps_factor", remedy.sampler_steps_factor)
        checks.positive_number(f"{name}.learning_rate_factor", remedy.learning_rate_factor)
        checks.non_negative_number(f"{name}.energy_l2", remedy.energy_l2)


DEFAULT_RECOVERY = Recovery()
"""The default recovery of `jaxebm.training.fit`."""


def remedies_in_force(remedies: Sequence[Remedy], count: int) -> Remedy:
    """Returns the first ``count`` remedies as one.

    Args:
      remedies: all of them.
      count: how many are in force.

    Returns:
      Their names joined, their factors multiplied, the greatest energy-L2.

    Raises:
      TypeError: if ``remedies`` is no sequence of `Remedy`.
      ValueError: if ``count`` is not an integer from 0 to their number.

    Example:
      >>> remedies_in_force(REMEDIES, 2)  # doctest: +NORMALIZE_WHITESPACE
      Remedy(name='more, smaller steps; smaller rate',
             sampler_steps_factor=2, learning_rate_factor=0.5, energy_l2=0.0)
    """
    _check_remedies(remedies)
    checks.integer("count", count, 0, len(remedies))
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
    """Copies of the last healthy states, which no dispatch donates.

    Args:
      recovery: the settings: how many, how often, and where they are kept.

    Example:
      >>> from jaxebm.training.state import init_health
      >>> snapshots = Snapshots(Recovery(snapshot_every=10))
      >>> for step in range(0, 40, 5):
      ...     snapshots.offer(TrainState(jnp.array(step), *[()] * 6, health=init_health()), step)
      >>> snapshots.steps
      [10, 20, 30]
    """

    def __init__(self, recovery: Recovery) -> None:
        checks.instance("recovery", recovery, Recovery)
        self.recovery = recovery
        self._kept: deque[tuple[int, TrainState]] = deque(maxlen=recovery.num_snapshots)

    @property
    def steps(self) -> list[int]:
        """The update at which each snapshot was taken, oldest first."""
        return [step for step, _ in self._kept]

    def offer(self, state: TrainState, step: int) -> None:
        """Takes a snapshot if one is due: the first, or ``snapshot_every`` updates after the last."""
        every = self.recovery.snapshot_every
        if not self._kept or step // every > self._kept[-1][0] // every:
            self._kept.append((step, self._put(state)))

    def restart(self, state: TrainState, step: int) -> None:
        """Drops all snapshots except this one.

        Called at every checkpoint: a run that is resumed from it has no older snapshots, and must recover
        to the same state bit for bit.
        """
        newest = self._kept[-1] if self._kept else None
        self._kept.clear()
        self._kept.append(newest if newest and newest[0] == step else (step, self._put(state)))

    def choose(self, fault: int, in_a_row: int) -> tuple[int, TrainState]:
        """Returns ``(step, copy of the state)`` to go back to, and drops the newer snapshots.

        Args:
          fault: the faulty update.
          in_a_row: consecutive faults, this one included.
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
    """Returns the state to continue from, and a record of the recovery.

    Args:
      recovery: the settings.
      snapshots: healthy states.
      sick: the state after the faulty update; only its ``step`` and the counts in its ``health`` are read.
      faults: the faults that were found, names of `jaxebm.training.health.FAULTS`.
      metrics: metrics of the faulty update.

    Returns:
      ``(state, record)``: a snapshot with a new key, its learning rate lowered if a remedy requires it; and
      plain values for JSON, in which numbers that are not finite are text.

    Raises:
      DivergenceError: if the remedies are exhausted; its message lists the faults and the remedies tried.
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
            f"{said}. {in_a_row} faults in a row, {count - 1} recoveries in total; tried: fresh noise, "
            f"{tried}. {ADVICE}"
        )
    back_to, state = snapshots.choose(fault, in_a_row)
    in_force = remedies_in_force(remedies, active)
    remedy = remedies[active - 1].name if again else "fresh noise"

    # A new key for each recovery. Steps use fold_in(rng_key, step); no step reaches the number used here.
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
      state: a healthy state.

    Returns:
      ``(state, name)``: the state with one remedy less in force, and its name; or the same state, and None.

    Raises:
      TypeError: if ``recovery`` is no `Recovery`, or ``state`` no `TrainState` of JAX arrays.

    Example:
      >>> from jaxebm.training.state import init_health
      >>> health = init_health()._replace(remedies=jnp.array(1), learning_rate_factor=jnp.array(0.5))
      >>> state = TrainState(jnp.array(900), *[()] * 6, health=health._replace(last_change=jnp.array(100)))
      >>> state, name = lift(Recovery(), state)
      >>> name, float(state.health.learning_rate_factor)
      ('smaller rate', 1.0)
    """
    checks.instance("recovery", recovery, Recovery)
    _check_state(state)
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


def _check_state(state: Any) -> None:
    checks.instance("state", state, TrainState, "The init of a learner makes it.")
    for name, leaf in (("step", state.step), *state.health._asdict().items()):
        checks.instance(f"state.{name}", leaf, jax.Array)


def _with_health(state: TrainState, **values: float) -> TrainState:
    def put(name: str, value: float) -> Any:
        old = getattr(state.health, name)
        return jax.device_put(np.asarray(value, old.dtype), old.sharding)

    return state._replace(health=state.health._replace(**{name: put(name, v) for name, v in values.items()}))


def _plain(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
