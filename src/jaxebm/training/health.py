"""Detection of divergence, on the device, after every update.

`diagnose` checks the metrics and the state of one update by the settings of a `Monitor`, and returns the
faults as the bits of one integer, so that the compiled loop can stop at the first faulty update without the
host. `jaxebm.training.recovery` decides what follows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.objectives.negatives import chains_of
from jaxebm.training.state import WATCHED, Health, TrainState
from jaxebm.types import Array, Metrics, Position

__all__ = [
    "FAULTS",
    "DivergenceError",
    "Monitor",
    "check_metrics",
    "check_state",
    "diagnose",
    "inspect",
    "measure_chains",
    "name_faults",
    "sample_norm",
]

ADVICE = (
    "Training has diverged. Lower the learning rate or the sampler's step size, add an energy-L2 term "
    "(energy_l2=0.1), clip gradients, use a smooth activation, or try another seed; the last good checkpoint "
    "is kept."
)

CHAINS = ("frozen_chains", "saturated_chains", "chain_spread")
"""Metrics of the chains that `measure_chains` takes and `diagnose` judges, where a step has them."""

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
}
"""Descriptions of the faults by name; fault number i is bit i of the integer that `diagnose` returns."""
SAMPLED = 4096
"""Entries of each leaf of the optimiser's state that are checked after every update."""


class DivergenceError(RuntimeError):
    """Raised when training has diverged and recovery has failed or is off."""


class Monitor(NamedTuple):
    """Settings that define a faulty update.

    Non-finite numbers are always a fault. A watched metric is a fault if it leaves its running band, mean +-
    ``deviations`` standard deviations. Bands are exponential averages with a time constant of ``window``
    updates, and are not used before they have ``warmup`` values. An outlier enters a band as two standard
    deviations at most, so that a slow divergence does not widen the band that should detect it.

    Attributes:
      deviations: half-width of the bands in running standard deviations.
      smallest_deviation: the least standard deviation of a band: in nats for energies, in units of the
        natural logarithm for norms.
      window: time constant of the bands, in updates.
      warmup: updates before a band is used.
      patience: updates in a row after which frozen, saturated or identical chains are a fault.
      bands: whether metrics outside of their bands and stuck chains are faults, besides non-finite numbers.

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

    def check(self) -> None:
        """Raises ``ValueError`` naming the first number that is out of range."""
        checks.positive("deviations", self.deviations)
        checks.positive("smallest_deviation", self.smallest_deviation)
        for name in ("window", "warmup", "patience"):
            checks.positive_integer(name, getattr(self, name))


def name_faults(faults: int) -> list[str]:
    """Returns the names of the bits that are set.

    Args:
      faults: from `diagnose`, 0 for a healthy update.

    Example:
      >>> name_faults(0), name_faults(0b1001)
      ([], ['metrics', 'chains'])
    """
    return [name for bit, name in enumerate(FAULTS) if faults >> bit & 1]


def _floating(tree: Any) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _finite_norm(tree: Any) -> Array:
    """Whether the norm of all floating-point entries is finite."""
    # Not finite if an entry is not, or if its square overflows, which is a fault as well.
    # On a CPU a product is three times as fast as a test of each entry.
    squares = [jnp.vdot(leaf, leaf) for leaf in _floating(tree)]
    return jnp.isfinite(sum(squares, jnp.zeros(())))


def measure_chains(x_data: Position | None, x_model: Position, displacement: Array | None) -> Metrics:
    """Returns metrics that detect frozen, saturated and identical chains.

    frozen_chains = share of chains whose displacement is exactly 0
    saturated_chains = share of entries at the least or the greatest value, minus that share of the data
    chain_spread = sd over chains / sd over data (each the root mean square over entries)

    Args:
      x_data: examples, leaves ``(n, ...)``, or None where a step has none.
      x_model: the final positions of the chains, leaves ``(m, ...)``.
      displacement: how far each chain moved, ``(m,)``, or None if it was not measured.

    Returns:
      The metrics that `diagnose` checks; metrics whose argument is None are left out.

    Example:
      >>> found = measure_chains(jnp.array([[0.0], [1.0]]), jnp.array([[0.5], [0.5]]), jnp.zeros(2))
      >>> {name: float(value) for name, value in found.items()}
      {'frozen_chains': 1.0, 'saturated_chains': 0.0, 'chain_spread': 0.0}
    """
    found: Metrics = {}
    if displacement is not None:
        found["frozen_chains"] = jnp.mean(displacement == 0, dtype=jnp.float32)
    if x_data is not None:
        excess = _share_at_ends(x_model) - _share_at_ends(x_data)
        found["saturated_chains"] = jnp.maximum(excess, 0.0)
        found["chain_spread"] = _spread(x_model) / jnp.maximum(_spread(x_data), 1e-30)
    return found


def _share_at_ends(xs: Position) -> Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(xs)]
    at_ends = [jnp.sum((leaf == leaf.min()) | (leaf == leaf.max())) for leaf in leaves]
    return sum(at_ends, jnp.zeros((), jnp.int32)) / sum(leaf.size for leaf in leaves)


def _spread(xs: Position) -> Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(xs)]
    squares = [jnp.sum(jnp.var(leaf, axis=0)) for leaf in leaves]
    return jnp.sqrt(sum(squares, jnp.zeros(())) / sum(leaf[0].size for leaf in leaves))


def diagnose(monitor: Monitor, state: TrainState, metrics: Metrics) -> tuple[Health, Array]:
    """Checks one update by quantities that are cheap to compute, and updates the running bands.

    Args:
      monitor: the thresholds.
      state: the state after the update; its ``health`` is still that before it.
      metrics: metrics of the update, scalars by name. All must be finite. `WATCHED` ones are compared with
        their bands; those of `measure_chains` must not stay at a fault for ``patience`` updates;
        ``optimizer_norm``, of the state before the update, is compared with that after the last update.

    Returns:
      ``(health, faults)``: the new health, and the faults as bits of an integer, 0 if there is none.

    Example:
      >>> from jaxebm.training.state import init_health
      >>> state = TrainState(*[jnp.ones(())] * 7, health=init_health())
      >>> health, faults = diagnose(Monitor(), state, {"loss": jnp.array(jnp.nan)})
      >>> name_faults(int(faults))
      ['metrics']
    """
    health = state.health
    norm = sample_norm(state.optimizer_state)
    found = {
        # The norms of gradients and updates are among the metrics, so all parameters are covered.
        "metrics": ~jnp.isfinite(jnp.stack([jnp.asarray(value) for value in metrics.values()])).all(),
        "optimizer_state": ~jnp.isfinite(norm),
        "chains": ~_finite_norm(chains_of(state.sampler_state)),
    }
    if monitor.bands:
        # The state before the update must be that after the last one.
        began = metrics.get("optimizer_norm", health.optimizer_norm)
        changed = jnp.abs(began - health.optimizer_norm) > 0.01 * health.optimizer_norm
        found["optimizer_lost"] = changed & (state.step > 1)
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
      >>> from jaxebm.training.state import init_health
      >>> state = TrainState(*[jnp.ones(())] * 7, health=init_health())
      >>> name_faults(int(inspect(state._replace(ema_params=jnp.array([0.0, jnp.inf])))))
      ['parameters']
    """

    def broken(tree: Any) -> Array:
        return ~jnp.stack([jnp.isfinite(leaf).all() for leaf in [jnp.zeros(()), *_floating(tree)]]).all()

    found = {
        "parameters": broken((state.params, state.ema_params)),
        "optimizer_state": broken(state.optimizer_state),
        "chains": broken(chains_of(state.sampler_state)),
    }
    return _as_bits(found)


def _as_bits(found: Mapping[str, Array]) -> Array:
    bits = [found[name].astype(jnp.int32) << bit for bit, name in enumerate(FAULTS) if name in found]
    return sum(bits, jnp.zeros((), jnp.int32))


def sample_norm(tree: Any) -> Array:
    """Returns the norm of the first entries of each leaf: enough to detect a changed optimiser state.

    Example:
      >>> float(sample_norm((jnp.array([3.0, 0.0]), jnp.array([4.0]))))
      5.0
    """
    samples = [leaf.reshape(-1)[:SAMPLED].astype(jnp.float32) for leaf in _floating(tree)]
    return jnp.sqrt(sum((jnp.vdot(sample, sample) for sample in samples), jnp.zeros(())))


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
    shown = broken | {name: metrics[name] for name in WATCHED if name in faults and name in metrics}
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
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        listed = ", ".join(f"{name}={value}" for name, value in sorted(broken.items()))
        raise DivergenceError(f"step {step}: {listed}. {ADVICE}")


def check_state(state: TrainState) -> None:
    """Raises `DivergenceError` naming the first parameters or buffer entries that are not finite.

    Args:
      state: a training state, before it is written to a checkpoint.

    Raises:
      DivergenceError: if a parameter, an average or a chain holds NaN or infinity.
    """
    parts = {"params": state.params, "ema_params": state.ema_params, "chains": chains_of(state.sampler_state)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        # jnp.issubdtype, because NumPy does not know bfloat16 and typed keys.
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            raise DivergenceError(
                f"step {int(state.step)}: {jax.tree_util.keystr(path)} is not finite. {ADVICE}"
            )
