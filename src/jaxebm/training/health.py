"""Detection of divergence, on the device, after every update.

`diagnose` checks the metrics and the state of one update by the settings of a `Monitor`, and returns the
faults as the bits of one integer, so that the compiled loop can stop at the first faulty update without the
host. `jaxebm.training.recovery` decides what follows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.objectives.negatives import chains_of
from jaxebm.training.state import WATCHED, Health, TrainState, init_health
from jaxebm.types import Array, Metrics

__all__ = [
    "FAULTS",
    "DivergenceError",
    "Monitor",
    "check_metrics",
    "check_state",
    "diagnose",
    "inspect",
    "name_faults",
    "sample_norm",
]

ADVICE = (
    "Training has diverged. Lower the learning rate or the sampler's step size, add an energy-L2 term "
    "(energy_l2=0.1), clip gradients, use a smooth activation, or try another seed."
)

FAULTS: Mapping[str, str] = {
    "metrics": "the loss or another metric is not finite",
    "parameters": "a parameter or its average is not finite",
    "optimizer_state": "the optimiser's state is not finite",
    "chains": "the replay buffer holds entries that are not finite",
    "optimizer_lost": "the optimiser's state differs from that after the last update",
    "energy_gap": "the energy gap has left its running band",
    "joint_energy_gap": "the joint energy gap has left its running band",
    "gradient_norm": "the gradient's norm has left its running band",
    "update_norm": "the update's norm has left its running band",
    "frozen": "the chains do not move",
    "saturated": "the chains are at the ends of their range",
    "alike": "all chains are identical (the replay buffer has collapsed)",
    "data": "the batch holds entries that are not finite",
    "escaped": "the chains have left the range of the data",
    "runaway": "the energy gap or a norm is beyond all bounds before its band is known",
}
"""Descriptions of the faults by name; fault number i is bit i of the integer that `diagnose` returns."""
SHOWN: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in WATCHED},
    "escaped": ("largest_chain", "largest_data"),
    "runaway": WATCHED,
}
"""Metrics that show a fault, by its name."""
SAMPLED = 4096
"""Entries of each leaf of the optimiser's state that are checked after every update."""


class DivergenceError(RuntimeError):
    """Raised when training has diverged and recovery has failed or is off."""


@dataclass(frozen=True)
class Monitor:
    """Settings that define a faulty update.

    Non-finite numbers are always a fault. A watched metric is a fault if it leaves its running band, mean +-
    ``deviations`` standard deviations. Bands are exponential averages with a time constant of ``window``
    updates, and are not used before they have ``warmup`` values. An outlier enters a band as two standard
    deviations at most, so that a slow divergence does not widen the band that should detect it. Two limits
    need no band and hold from the first update: ``reach``, and during the warm-up ``floor``.

    Attributes:
      deviations: half-width of the bands in running standard deviations.
      smallest_deviation: the least standard deviation of a band: in nats for energies, in units of the
        natural logarithm for norms.
      window: time constant of the bands, in updates.
      warmup: updates before a band is used.
      patience: updates in a row after which frozen, saturated or identical chains are a fault.
      bands: whether metrics outside of their bands and stuck chains are faults, besides non-finite numbers
        and chains beyond ``reach``.
      reach: how far chains may go: to this multiple of the largest |x| among the data so far, or of 1 if
        that is less; infinity for any distance.
      floor: during the warm-up, an energy gap above this multiple of 1 + |E(data)| or of 1 + its own mean
        is a fault, and a norm above the square of this multiple of 1 or of its own mean, whichever is larger.

    Raises:
      TypeError: if a setting has the wrong type.
      ValueError: if one is out of range.

    Example:
      >>> Monitor(deviations=6.0).window
      200
    """

    deviations: float = 8.0
    smallest_deviation: float = 0.25
    window: int = 200
    warmup: int = 100
    patience: int = 5
    bands: bool = True
    reach: float = 20.0
    floor: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("deviations", "smallest_deviation", "reach", "floor"):
            value = getattr(self, name)
            if not (name == "reach" and isinstance(value, float) and value == math.inf):
                checks.number(name, value)
                checks.positive(name, value)
        for name in ("window", "warmup", "patience"):
            checks.positive_integer(name, getattr(self, name))
        checks.boolean("bands", self.bands)


def name_faults(faults: int) -> list[str]:
    """Returns the names of the bits that are set.

    Args:
      faults: from `diagnose`, 0 for a healthy update.

    Raises:
      ValueError: if it is not an integer from 0, or has bits that are no fault.

    Example:
      >>> name_faults(0), name_faults(0b1001)
      ([], ['metrics', 'chains'])
    """
    checks.integer("faults", faults, 0, (1 << len(FAULTS)) - 1)
    return [name for bit, name in enumerate(FAULTS) if faults >> bit & 1]


def _floating(tree: Any) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _finite_norm(tree: Any) -> Array:
    """Whether the norm of all floating-point entries is finite."""
    # Not finite if an entry is not, or if its square overflows, which is a fault as well.
    # On a CPU a product is three times as fast as a test of each entry.
    squares = [jnp.vdot(leaf, leaf) for leaf in _floating(tree)]
    return jnp.isfinite(sum(squares, jnp.zeros(())))


def diagnose(monitor: Monitor, state: TrainState, metrics: Metrics) -> tuple[Health, Array]:
    """Checks one update by quantities that are cheap to compute, and updates the running bands.

    Args:
      monitor: the thresholds.
      state: the state after the update; its ``health`` is still that before it.
      metrics: metrics of the update, scalars by name. All must be finite. `WATCHED` ones are compared with
        their bands; those of `measure_chains` must not stay at a fault for ``patience`` updates;
        ``optimizer_norm``, of the state before the update, is compared with that after the last update;
        ``largest_chain`` with the greatest ``largest_data`` so far.

    Returns:
      ``(health, faults)``: the new health, and the faults as bits of an integer, 0 if there is none.

    Raises:
      TypeError: if an argument has the wrong type, or a metric is no real number.
      ValueError: if a metric is no scalar, or there is none.

    Example:
      >>> state = TrainState(*[jnp.ones(())] * 7, health=init_health())
      >>> health, faults = diagnose(Monitor(), state, {"loss": jnp.array(jnp.nan)})
      >>> name_faults(int(faults))
      ['metrics']
    """
    checks.instance("monitor", monitor, Monitor)
    checks.instance("state", state, TrainState, "The init of a learner makes it.")
    checks.real_arrays("state.health", state.health)
    checks.same_shapes("state.health", state.health, "init_health()", jax.eval_shape(init_health))
    check_scalars("metrics", metrics, "the step of the learner must return at least its loss")
    health = state.health
    norm = sample_norm(state.optimizer_state)
    found = {
        # The norms of gradients and updates are among the metrics, so all parameters are covered.
        "metrics": ~jnp.isfinite(jnp.stack([jnp.asarray(value) for value in metrics.values()])).all(),
        "optimizer_state": ~jnp.isfinite(norm),
        "chains": ~_finite_norm(chains_of(state.sampler_state)),
    }
    if "largest_data" in metrics:
        found["data"] = ~jnp.isfinite(metrics["largest_data"])
        health = health._replace(reach=jnp.maximum(health.reach, metrics["largest_data"]))
    if "largest_chain" in metrics:
        found["escaped"] = metrics["largest_chain"] > monitor.reach * health.reach
    if monitor.bands:
        # The state before the update must be that after the last one.
        began = metrics.get("optimizer_norm", health.optimizer_norm)
        changed = jnp.abs(began - health.optimizer_norm) > 0.01 * health.optimizer_norm
        found["optimizer_lost"] = changed & (state.step > 1)
        found["runaway"] = _judge_warmup(monitor, health, metrics)
        health, outside = _judge_bands(monitor, health, metrics)
        health, stuck = _judge_chains(monitor, health, metrics)
        found |= outside | stuck
    return health._replace(optimizer_norm=norm), _as_bits(found)


def inspect(state: TrainState) -> Array:
    """Checks every number of a state, once per dispatch; `diagnose` checks only a part.

    Args:
      state: the state after the last update.

    Returns:
      Faults as bits of an integer, 0 if all is finite.

    Example:
      >>> state = TrainState(*[jnp.ones(())] * 7, health=init_health())
      >>> name_faults(int(inspect(state._replace(ema_params=jnp.array([0.0, jnp.inf])))))
      ['parameters']
    """

    def broken(tree: Any) -> Array:
        return ~jnp.stack([jnp.isfinite(leaf).all() for leaf in [jnp.zeros(()), *_floating(tree)]]).all()

    found = {
        "parameters": broken((state.params, state.ema_params)),
        "optimizer_state": broken(_counted(state.optimizer_state)),
        "chains": broken(chains_of(state.sampler_state)),
    }
    return _as_bits(found)


def _as_bits(found: Mapping[str, Array]) -> Array:
    bits = [found[name].astype(jnp.int32) << bit for bit, name in enumerate(FAULTS) if name in found]
    return sum(bits, jnp.zeros((), jnp.int32))


def sample_norm(tree: Any) -> Array:
    """Returns the norm of the first entries of each leaf: enough to detect a changed optimiser state.

    A scalar of +infinity counts as 0: some optimisers keep the least loss so far, and begin with that.

    Example:
      >>> float(sample_norm((jnp.array([3.0, 0.0]), jnp.array([4.0]))))
      5.0
    """
    samples = [leaf.reshape(-1)[:SAMPLED].astype(jnp.float32) for leaf in _counted(tree)]
    return jnp.sqrt(sum((jnp.vdot(sample, sample) for sample in samples), jnp.zeros(())))


def _counted(optimizer_state: Any) -> list[Array]:
    """The floating-point leaves, with 0 for a scalar of +infinity: the least loss before there is one."""
    leaves = _floating(optimizer_state)
    return [leaf if leaf.ndim else jnp.where(jnp.isposinf(leaf), 0.0, leaf) for leaf in leaves]


def _judge_bands(monitor: Monitor, health: Health, metrics: Metrics) -> tuple[Health, dict[str, Array]]:
    logarithmic = np.array([name.endswith("_norm") for name in WATCHED])
    raw = jnp.stack([jnp.asarray(metrics.get(name, 0.0), jnp.float32) for name in WATCHED])
    # A norm of zero (the first update of a warm-up) has no logarithm, so it does not enter its band.
    seen = np.array([name in metrics for name in WATCHED]) & ~(logarithmic & (raw == 0))
    values = jnp.where(logarithmic, jnp.log(jnp.where(seen, jnp.abs(raw), 1.0)), raw)

    deviation = jnp.maximum(jnp.sqrt(health.variance), monitor.smallest_deviation)
    distance = values - health.mean
    judged = seen & (health.seen >= monitor.warmup)
    # Learning rates and gradients may fall to zero at the end of training: only growth of a norm is a fault.
    magnitude = jnp.where(logarithmic, distance, jnp.abs(distance))
    outside = judged & (magnitude > monitor.deviations * deviation)

    # A plain mean of the first updates, then an exponential average.
    rate = jnp.maximum(1.0 / (health.seen + 1.0), 1.0 / monitor.window)
    limit = jnp.where(health.seen < monitor.warmup, jnp.inf, 2.0 * deviation)
    move = jnp.clip(distance, -limit, limit)
    mean = health.mean + rate * move
    variance = (1.0 - rate) * (health.variance + rate * move**2)
    health = health._replace(
        mean=jnp.where(seen, mean, health.mean),
        variance=jnp.where(seen, variance, health.variance),
        seen=health.seen + seen,
    )
    return health, {name: outside[i] for i, name in enumerate(WATCHED)}


def _judge_warmup(monitor: Monitor, health: Health, metrics: Metrics) -> Array:
    """Whether a watched metric is beyond all bounds while its band has too few values to be used."""
    of_data = jnp.abs(jnp.asarray(metrics.get("energy_data", 0.0), jnp.float32))
    faulty = jnp.zeros((), bool)
    for index, name in enumerate(WATCHED):
        if name not in metrics:
            continue
        value, mean = jnp.abs(jnp.asarray(metrics[name], jnp.float32)), health.mean[index]
        if name.endswith("_norm"):  # its band is one of logarithms
            limit = monitor.floor**2 * jnp.exp(jnp.maximum(mean, 0.0))
        else:
            limit = monitor.floor * (1.0 + jnp.maximum(jnp.abs(mean), of_data))
        # Without energies of data there is no scale before the first value.
        known = (health.seen[index] > 0) | ("energy_data" in metrics and not name.endswith("_norm"))
        faulty |= known & (health.seen[index] < monitor.warmup) & (value > limit)
    return faulty


def _judge_chains(monitor: Monitor, health: Health, metrics: Metrics) -> tuple[Health, dict[str, Array]]:
    no = jnp.zeros((), bool)
    now = jnp.stack(
        [
            metrics["frozen_chains"] == 1.0 if "frozen_chains" in metrics else no,
            metrics["saturated_chains"] > 0.99 if "saturated_chains" in metrics else no,
            metrics["chain_spread"] < 1e-3 if "chain_spread" in metrics else no,
        ]
    )
    streaks = jnp.where(now, health.streaks + 1, 0)
    stuck = streaks >= monitor.patience
    return health._replace(streaks=streaks), {
        name: stuck[i] for i, name in enumerate(("frozen", "saturated", "alike"))
    }


def describe_faults(step: int, faults: Sequence[str], metrics: Mapping[str, float]) -> str:
    """Describes the faults of an update in one sentence, with the metrics that show them.

    Args:
      step: the update.
      faults: names, from `name_faults`.
      metrics: metrics of that update.

    Returns:
      A sentence.

    Example:
      >>> describe_faults(7, ["chains"], {"loss": 0.5})
      'step 7: the replay buffer holds entries that are not finite'
    """
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    names = [name for fault in faults for name in SHOWN.get(fault, ())]
    shown = broken | {name: metrics[name] for name in names if name in metrics}
    numbers = ", ".join(f"{name}={value:.6g}" for name, value in sorted(shown.items()))
    said = " and ".join(FAULTS[name] for name in faults)
    return f"step {step}: {said}{f' ({numbers})' if numbers else ''}"


def check_metrics(step: int, metrics: Mapping[str, float]) -> None:
    """Raises `DivergenceError` naming each metric that is not finite.

    Args:
      step: the update after which they were measured.
      metrics: numbers by name.

    Raises:
      DivergenceError: if any number is NaN or infinite.

    Example:
      >>> check_metrics(3, {"loss": 1.0})
    """
    checks.integer("step", step, 0)
    check_scalars("metrics", metrics, "there is nothing to check")
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        listed = ", ".join(f"{name}={value}" for name, value in sorted(broken.items()))
        raise DivergenceError(f"step {step}: {listed}. {ADVICE}")


def check_scalars(name: str, metrics: Any, reason: str | None = None) -> None:
    """Raises unless ``metrics`` are real scalars by name, and at least one where a ``reason`` is given."""
    checks.instance(name, metrics, Mapping)
    if not metrics and reason is not None:
        raise ValueError(f"{name} is empty: {reason}.")
    for key, value in metrics.items():
        checks.arrays(f"{name}[{key!r}]", value)
        checks.array(f"{name}[{key!r}]", value, (), "a scalar, shape (),")


def check_state(state: TrainState) -> None:
    """Raises `DivergenceError` naming the first parameters or buffer entries that are not finite.

    Args:
      state: a training state, before it is written to a checkpoint.

    Raises:
      TypeError: if ``state`` is no `TrainState`.
      DivergenceError: if a parameter, an average or a chain holds NaN or infinity.

    Example:
      >>> check_state(TrainState(*[jnp.ones(())] * 7, health=init_health()))
    """
    checks.instance("state", state, TrainState, "The init of a learner makes it.")
    parts = {"params": state.params, "ema_params": state.ema_params, "chains": chains_of(state.sampler_state)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        # jnp.issubdtype, because NumPy does not know bfloat16 and typed keys.
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            raise DivergenceError(
                f"step {int(state.step)}: {jax.tree_util.keystr(path)} is not finite. {ADVICE}"
            )
