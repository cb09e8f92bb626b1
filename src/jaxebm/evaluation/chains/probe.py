r"""Measurements of chains at several lengths, without storing their whole history.

A model trained with short chains may hold its energy low where those chains end, and lower still where longer
ones go: its samples are then no samples of exp(-E). ``long_run_drift`` runs chains far beyond the length used
in training and says whether their energy stays.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.evaluation.samples.scale import power_of_two
from jaxebm.samplers.binding import StaticKernel, bind_once, unbind
from jaxebm.samplers.chains import run_chains
from jaxebm.samplers.langevin import scalar_target
from jaxebm.trees import euclidean_norm, widened
from jaxebm.types import Array, EnergyFn, Kernel, Params, Position, Target

__all__ = ["ChainProbe", "LongRunDrift", "long_run_drift", "probe_chains"]


class ChainProbe(NamedTuple):
    """Statistics of n chains at the start and at each of C checkpoints; every field ``(C + 1,)``.

    Means are over the chains that were finite at that moment; ``non_finite`` says how many were not.

    Attributes:
      steps: step counts, the first 0.
      energy: mean energy.
      energy_deviation: standard deviation of the energy over the chains.
      gradient_norm: mean Euclidean norm of dE/dx.
      distance: mean Euclidean distance from where each chain started.
      acceptance: mean acceptance probability since the checkpoint before, NaN at the start; ``None`` for a
        kernel whose info has no ``acceptance_rate``.
      non_finite: fraction of chains whose position, energy or gradient is not finite.
    """

    steps: Array
    energy: Array
    energy_deviation: Array
    gradient_norm: Array
    distance: Array
    acceptance: Array | None
    non_finite: Array


class LongRunDrift(NamedTuple):
    """How chains change after the length used in training; each field but the last ``()``.

    Standard errors are over chains, which are independent. Chains that have converged by num_steps keep their
    energies: ``energy_change`` is then within a few of its errors of 0.

    Attributes:
      energy_change: mean energy at the end minus at num_steps, chain by chain.
      energy_change_error: its standard error.
      relative_change: the same in standard deviations of the energy at num_steps: -10 is a chain that has run
        far below the energies it was trained at.
      energy_slope: change of energy for each tenfold of steps after num_steps, by least squares.
      energy_slope_error: its standard error.
      gradient_ratio: mean gradient norm at the end over that at num_steps.
      non_finite: fraction of chains that are not finite at the end; the others make up all else.
      probe: the chains from the start, through num_steps, to the end.
    """

    energy_change: Array
    energy_change_error: Array
    relative_change: Array
    energy_slope: Array
    energy_slope_error: Array
    gradient_ratio: Array
    non_finite: Array
    probe: ChainProbe


class _Records(NamedTuple):
    """One chain at each checkpoint; leaves ``(C + 1,)``."""

    energy: Array
    gradient_norm: Array
    distance: Array
    acceptance: Array | None
    finite: Array


class _RecordingState(NamedTuple):
    """A kernel's state with its records; ``position`` is the current position of the chain."""

    inner: Any
    start: Position
    step_count: Array
    accepted: Array
    records: _Records

    @property
    def position(self) -> Position:
        return self.inner.position


def probe_chains(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    make_kernel: Callable[..., Kernel],
    positions: Position,
    checkpoints: Sequence[int],
) -> ChainProbe:
    """Runs chains and measures them at their start and after each of these numbers of steps, compiled.

    The chains run on through the checkpoints: what a kernel keeps in its state (a momentum, a preconditioner)
    is kept. One program is compiled for each energy, kernel, shape, number of checkpoints and last of them;
    new parameters and kernel parameters run it again. Energies and kernels are recognised by identity: define
    them once. Memory is that of one state and C + 1 rows of five numbers per chain: no history is kept.

    Args:
      rng_key: one key.
      energy: ``energy(params, x) -> ()``, of one example.
      params: its parameters.
      make_kernel: ``make_kernel(target) -> Kernel``. The floats and arrays that a ``functools.partial`` holds
        by keyword are traced, so ``partial(sgld, step_size=0.1)`` may be made again for each call.
      positions: where the n chains start, leaves ``(n, ...)``.
      checkpoints: C increasing numbers of steps, each at least 1.

    Returns:
      A ``ChainProbe``.

    Raises:
      ValueError: if the checkpoints are not increasing positive integers, positions is no batch, the kernel
        refuses its parameters, or the energy is not a scalar.
      TypeError: if the positions are not floating-point, rng_key not a typed key, or energy or make_kernel no
        such function.

    Example:
      >>> from jaxebm.samplers import sgld
      >>> energy = lambda params, x: 0.5 * params * jnp.sum(x**2)
      >>> probe = probe_chains(
      ...     jax.random.key(0), energy, 1.0, functools.partial(sgld, step_size=0.1), jnp.full((100, 2), 5.0),
      ...     [1, 10, 100])
      >>> probe.steps.tolist(), float(probe.energy[0]), bool(probe.energy[-1] < 2)
      ([0, 1, 10, 100], 25.0, True)

    Reference:
      Nijkamp et al. 2020, On the anatomy of MCMC-based maximum likelihood learning (arXiv:1903.12370),
      section 3.
    """
    steps = _checked_steps(checkpoints)
    records = _records(rng_key, energy, params, make_kernel, positions, steps)
    return _summary(steps, records)


def long_run_drift(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    make_kernel: Callable[..., Kernel],
    positions: Position,
    num_steps: int,
    *,
    multiple: int = 100,
    checkpoints_per_decade: int = 4,
) -> LongRunDrift:
    r"""Runs chains far longer than in training, and measures the change of their energies.

    With L = num_steps and m = multiple, :math:`\Delta = \overline{E(x_{mL})} - \overline{E(x_L)}` and the
    slope of the mean energy against log10 of the steps, at logarithmic checkpoints from L to mL. Both are 0
    for a model whose chains have converged by L, and far below 0 for one whose density differs from
    its short chains.

    Args:
      rng_key: one key.
      energy: ``energy(params, x) -> ()``, of one example.
      params: its parameters.
      make_kernel: as in ``probe_chains``; the kernel of training.
      positions: where training's chains start, leaves ``(n, ...)``, n at least 2.
      num_steps: L, the number of steps in training.
      multiple: m, at least 2; 10 to 1000 is telling.
      checkpoints_per_decade: how many times to look for each tenfold of steps, at least 1.

    Returns:
      A ``LongRunDrift``.

    Raises:
      ValueError: if a count is too small, positions is not a batch of at least 2, the kernel refuses its
        parameters, or the energy is not a scalar.
      TypeError: if the positions are not floating-point, rng_key not a typed key, or energy or make_kernel no
        such function.

    Example:
      A slope without end, which any number of steps descends further:

      >>> from jaxebm.samplers import sgld
      >>> drift = long_run_drift(
      ...     jax.random.key(0), lambda params, x: params * jnp.sum(x), 1.0,
      ...     functools.partial(sgld, step_size=0.1), jnp.zeros((100, 2)), num_steps=5, multiple=20)
      >>> bool(drift.energy_change < -10 * drift.energy_change_error), float(drift.gradient_ratio)
      (True, 1.0)

    Reference:
      Nijkamp et al. 2020 (arXiv:1903.12370), section 3: convergent and non-convergent learning.
    """
    checks.positive_integer("num_steps", num_steps)
    checks.positive_integer("multiple", multiple)
    checks.positive_integer("checkpoints_per_decade", checkpoints_per_decade)
    if multiple < 2:
        raise ValueError(f"multiple={multiple}: at least 2 is needed, chains longer than in training.")
    if (found := checks.batch_length("positions", positions)) < 2:
        raise ValueError(f"positions holds {found} chain: at least 2 are needed for a standard error.")
    count = max(2, 1 + round(checkpoints_per_decade * np.log10(multiple)))
    steps = np.unique(np.round(np.geomspace(num_steps, multiple * num_steps, count)).astype(int))
    return _drift(steps, _records(rng_key, energy, params, make_kernel, positions, steps))


def _checked_steps(checkpoints: Sequence[int]) -> np.ndarray:
    checks.array("checkpoints", checkpoints)
    steps = np.asarray(checkpoints)
    if (
        steps.ndim != 1
        or steps.size == 0
        or not np.issubdtype(steps.dtype, np.integer)
        or steps[0] < 1
        or np.any(np.diff(steps) <= 0)
    ):
        raise ValueError(f"checkpoints={checkpoints!r}: increasing integers of at least 1 are needed.")
    return steps


def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _records(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    make_kernel: Callable[..., Kernel],
    positions: Position,
    steps: np.ndarray,
) -> _Records:
    checks.rng_key("rng_key", rng_key)
    checks.function("energy", energy, "params", "x")
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.batch_length("positions", positions)
    checks.floating("positions", positions)
    bind_once(make_kernel, functools.partial(energy, params), {})
    static, numbers = unbind(make_kernel)
    at = jnp.asarray([0, *steps])
    with checks.shapes_noted(params=params, positions=positions):
        return _run(rng_key, params, numbers, positions, at, energy, static, int(steps[-1]))


@functools.partial(jax.jit, static_argnames=("energy", "make_kernel", "num_steps"))
def _run(
    rng_key: Array,
    params: Params,
    numbers: dict[str, Any],
    positions: Position,
    at: Array,
    energy: EnergyFn,
    make_kernel: StaticKernel,
    num_steps: int,
) -> _Records:
    target = scalar_target(functools.partial(energy, params))
    kernel = _recording(make_kernel.bind(target, numbers), target, at)
    states, _ = run_chains(rng_key, kernel, positions, num_steps)
    return states.records


def _recording(kernel: Kernel, target: Target, at: Array) -> Kernel:
    """A kernel that records its statistics when its step count is one of ``at``, which begins with 0."""

    def look(position: Position, start: Position) -> tuple[Array, Array, Array, Array]:
        energy, gradient = jax.value_and_grad(target)(position)
        moved = jax.tree.map(lambda x, origin: widened(x) - widened(origin), position, start)
        finite = _all_finite((position, energy, gradient))
        return widened(energy), euclidean_norm(gradient), euclidean_norm(moved), finite

    def init(position: Position, rng_key: Array | None = None) -> _RecordingState:
        position = jax.tree.map(jnp.asarray, position)
        inner = kernel.init(position, rng_key=rng_key)
        _, info = jax.eval_shape(kernel.step, jax.random.key(0) if rng_key is None else rng_key, inner)
        energy, slope, distance, finite = look(position, position)
        blank = jnp.full(at.shape, jnp.nan, energy.dtype)
        acceptance = blank if hasattr(info, "acceptance_rate") else None
        records = _Records(
            blank.at[0].set(energy),
            blank.at[0].set(slope),
            blank.at[0].set(distance),
            acceptance,
            jnp.zeros(at.shape, bool).at[0].set(finite),
        )
        return _RecordingState(inner, position, jnp.zeros((), at.dtype), jnp.zeros((), energy.dtype), records)

    def step(rng_key: Array, state: _RecordingState) -> tuple[_RecordingState, None]:
        inner, info = kernel.step(rng_key, state.inner)
        count = state.step_count + 1
        row = jnp.searchsorted(at, count)
        accepted = state.accepted
        if state.records.acceptance is not None:
            rate = jnp.mean(widened(info.acceptance_rate))  # one per replica, in some kernels
            accepted = accepted + rate.astype(accepted.dtype)  # BlackJAX's is of the widest type

        def record(records: _Records) -> tuple[_Records, Array]:
            energy, slope, distance, finite = look(inner.position, state.start)
            acceptance = records.acceptance
            if acceptance is not None:
                acceptance = acceptance.at[row].set(accepted / (count - at[row - 1]))
            written = _Records(
                records.energy.at[row].set(energy),
                records.gradient_norm.at[row].set(slope),
                records.distance.at[row].set(distance),
                acceptance,
                records.finite.at[row].set(finite),
            )
            return written, jnp.zeros_like(accepted)

        # All chains count alike, so vmap leaves this a branch: the gradient is only paid for at a checkpoint.
        records, accepted = jax.lax.cond(
            at[row] == count, record, lambda records: (records, accepted), state.records
        )
        return _RecordingState(inner, state.start, count, accepted, records), None

    return Kernel(init, step)


@jax.jit
def _summary(steps: np.ndarray, records: _Records) -> ChainProbe:
    count = jnp.sum(records.finite, axis=0)

    def mean(values: Array) -> Array:
        return jnp.sum(jnp.where(records.finite, values, 0.0), axis=0) / count

    energy = mean(records.energy)
    centred = records.energy - energy[None]
    # Of diverging chains even the squares may overflow.
    unit = power_of_two(jnp.where(records.finite, centred, 0.0))
    deviation = jnp.sqrt(mean(jnp.square(centred / unit)) * count / (count - 1)) * unit
    return ChainProbe(
        steps=jnp.concatenate([jnp.zeros(1, int), jnp.asarray(steps, int)]),
        energy=energy,
        energy_deviation=deviation,
        gradient_norm=mean(records.gradient_norm),
        distance=mean(records.distance),
        acceptance=None if records.acceptance is None else mean(records.acceptance),
        non_finite=jnp.mean(~records.finite, axis=0),
    )


@jax.jit
def _drift(steps: np.ndarray, records: _Records) -> LongRunDrift:
    """Row 0 is the start, row 1 is at num_steps, the last row at the end."""
    kept = records.finite[:, 1] & records.finite[:, -1]
    every = jnp.all(records.finite[:, 1:], axis=1)

    def mean_and_error(values: Array, used: Array) -> tuple[Array, Array]:
        count = jnp.sum(used)
        mean = jnp.sum(jnp.where(used, values, 0.0)) / count
        centred = jnp.where(used, values - mean, 0.0)
        unit = power_of_two(centred)
        return mean, jnp.sqrt(jnp.sum(jnp.square(centred / unit)) / (count - 1) / count) * unit

    change, change_error = mean_and_error(records.energy[:, -1] - records.energy[:, 1], kept)
    decades = jnp.log10(jnp.asarray(steps, float))
    centred = decades - jnp.mean(decades)
    slopes = records.energy[:, 1:] @ (centred / jnp.sum(jnp.square(centred)))
    slope, slope_error = mean_and_error(slopes, every)
    probe = _summary(steps, records)
    return LongRunDrift(
        energy_change=change,
        energy_change_error=change_error,
        relative_change=change / probe.energy_deviation[1],
        energy_slope=slope,
        energy_slope_error=slope_error,
        gradient_ratio=probe.gradient_norm[-1] / probe.gradient_norm[1],
        non_finite=probe.non_finite[-1],
        probe=probe,
    )
