r"""Telemetry of training: scalars that show whether the chains still sample the energy.

The loss of maximum likelihood is not a likelihood and is near 0 whether training works or not. These numbers
show the difference: ``make_telemetry`` puts them into one compiled function, to be called every few hundred
updates.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.evaluation.chains.probe import long_run_drift
from jaxebm.evaluation.chains.stein import kernel_stein_discrepancy
from jaxebm.evaluation.samples.discrepancy import (
    check_points,
    check_same_shape,
    maximum_mean_discrepancy,
    median_bandwidth,
)
from jaxebm.evaluation.samples.scale import power_of_two
from jaxebm.samplers.langevin import scalar_target
from jaxebm.samplers.replay import ReplayBuffer
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, Kernel, Metrics, Params, Position

__all__ = ["BufferSummary", "EnergyGap", "buffer_summary", "energy_gap", "make_telemetry"]


class EnergyGap(NamedTuple):
    """Energies of data against those of samples, each field ``()``.

    Attributes:
      gap: mean E(data) - mean E(samples).
      standard_error: of the gap, both sets taken as independent draws.
      energy_data: mean E(data).
      energy_model: mean E(samples).
    """

    gap: Array
    standard_error: Array
    energy_data: Array
    energy_model: Array


class BufferSummary(NamedTuple):
    """The state of a replay buffer, each field ``()``.

    Attributes:
      age_mean: mean age of the slots, in sampler steps since their restart.
      age_median: the median.
      age_max: the oldest.
      fresh: fraction of slots of age 0, never advanced since their restart.
      non_finite: fraction of slots that hold a non-finite number.
    """

    age_mean: Array
    age_median: Array
    age_max: Array
    fresh: Array
    non_finite: Array


def energy_gap(energy: EnergyFn, params: Params, x_data: Position, x_model: Position) -> EnergyGap:
    r"""The difference that maximum likelihood closes, with its standard error.

    .. math:: d = \frac1n \sum_i E(x_i) - \frac1m \sum_j E(x'_j), \qquad
              \mathrm{se}^2 = s_{data}^2 / n + s_{model}^2 / m

    Args:
      energy: ``energy(params, x) -> ()``, of one example.
      params: its parameters.
      x_data: examples, leaves ``(n, ...)``, n at least 2.
      x_model: samples, leaves ``(m, ...)``, m at least 2.

    Returns:
      An ``EnergyGap``: below 0 the data are likelier than the samples, above 0 the samples than the data.

    Raises:
      ValueError: if either holds fewer than two examples, or the energy is not a scalar.
      TypeError: if either is no tree of real arrays, or energy no such function.

    Example:
      >>> gap = energy_gap(lambda params, x: params * x, 2.0, jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]))
      >>> float(gap.gap), float(gap.standard_error)
      (4.0, 2.0)

    Reference:
      Nijkamp et al. 2020 (arXiv:1903.12370), section 3, d_s.
    """
    checks.function("energy", energy, "params", "x")
    for name, batch in (("x_data", x_data), ("x_model", x_model)):
        checks.real_arrays(name, batch)
        _at_least_two(name, batch)
    with checks.shapes_noted(params=params, x_data=x_data, x_model=x_model):
        return _gap(energy, params, x_data, x_model)


def buffer_summary(buffer: ReplayBuffer) -> BufferSummary:
    """Returns the ages of the chains of a replay buffer, and whether any is not finite.

    Args:
      buffer: the buffer. Its ages count sampler steps.

    Returns:
      A ``BufferSummary``. With restart probability p and L steps per visit, ages are geometric: mean L / p.

    Raises:
      ValueError: if the ages are not ``(capacity,)``, or the positions no batch of that length.
      TypeError: if it is no ``ReplayBuffer`` of real arrays.

    Example:
      >>> buffer = ReplayBuffer(jnp.zeros((4, 2)), jnp.zeros(4, int), jnp.array([0, 20, 40, 100]))
      >>> summary = buffer_summary(buffer)
      >>> float(summary.age_mean), int(summary.age_max), float(summary.fresh), float(summary.non_finite)
      (40.0, 100, 0.25, 0.0)
    """
    checks.instance("buffer", buffer, ReplayBuffer, "init_buffer makes one.")
    checks.array("buffer.ages", buffer.ages, (None,), "(capacity,)")
    checks.real_arrays("buffer.positions", buffer.positions)
    checks.batch_of("buffer.positions", buffer.positions, len(buffer.ages), "one for each of buffer.ages")
    return _summary(buffer.positions, buffer.ages)


def make_telemetry(
    energy: EnergyFn,
    make_kernel: Callable[..., Kernel],
    x_data: Position,
    *,
    num_steps: int,
    multiple: int = 10,
    max_points: int = 512,
    max_chains: int = 32,
) -> Callable[..., Metrics]:
    """Returns one compiled function that measures a model during training.

    ``telemetry(rng_key, params, x_model, ages=None, x_start=None)`` gives flat metrics, each ``()``:

    ==========================================  ============================================================
    ``energy_data``, ``energy_model``,          ``energy_gap``'s: data minus samples, and its standard error
    ``energy_gap``, ``energy_gap_error``
    ``gradient_norm_first``,                    mean norm of dE/dx where chains start and after num_steps
    ``gradient_norm_last``
    ``chain_distance``                          mean distance that num_steps carry a chain
    ``chain_acceptance``                        mean acceptance probability, for kernels that have one
    ``long_run_energy_change``,                 ``long_run_drift``'s: from num_steps to multiple * num_steps
    ``long_run_energy_change_error``,
    ``long_run_relative_change``,
    ``long_run_gradient_ratio``,
    ``long_run_non_finite``
    ``mmd_squared``                             samples against data, at the data's median bandwidth
    ``ksd_squared``                             samples against exp(-E), the U-statistic, at the same scale
    ``buffer_age_mean``, ``buffer_age_max``     if ages are given
    ==========================================  ============================================================

    Params, samples and starts of one shape run the same program. It costs about max_chains * multiple *
    num_steps gradients of the energy. The bandwidth is that of ``x_data``, once, so values of different
    updates compare.

    Args:
      energy: ``energy(params, x) -> ()``, of one example.
      make_kernel: ``make_kernel(target) -> Kernel``, the kernel of training.
      x_data: examples, leaves ``(n, ...)``, n at least 2; preferably held-out ones.
      num_steps: steps of a chain in training, at least 1.
      multiple: how much longer the long chains are, at least 2.
      max_points: of x_data and x_model, at most as many evenly spaced ones are used, at least 2.
      max_chains: of the starts, likewise, at least 2.

    Returns:
      The function. Its ``x_model`` are samples, leaves ``(m, ...)``, m at least 2; ``ages`` the buffer's,
      ``(capacity,)``; ``x_start`` where training's chains start, leaves ``(k, ...)``, ``None`` for x_model.
      Broken chains are counted by ``long_run_non_finite`` and left out of the chains' other metrics; broken
      samples make the rest NaN, and nothing is raised.

    Raises:
      ValueError: if a count is too small or x_data is not a finite batch of at least 2 different points; when
        called, if x_model or x_start is too small or of another shape than x_data, the kernel refuses its
        parameters, or the energy is not a scalar.
      TypeError: if x_data is not floating-point, or energy or make_kernel no such function.

    Example:
      >>> from jaxebm.samplers import sgld
      >>> energy = lambda params, x: 0.5 * params * jnp.sum(x**2)
      >>> x_data = jax.random.normal(jax.random.key(0), (100, 2))
      >>> telemetry = make_telemetry(energy, functools.partial(sgld, step_size=0.1), x_data, num_steps=5)
      >>> metrics = telemetry(jax.random.key(1), 1.0, 2.0 * x_data, jnp.array([0, 5, 25]))
      >>> bool(metrics["energy_gap"] < 0), bool(metrics["mmd_squared"] > 0), float(metrics["buffer_age_mean"])
      (True, True, 10.0)

    Reference:
      Nijkamp et al. 2020, On the anatomy of MCMC-based maximum likelihood learning (arXiv:1903.12370),
      section 3.
    """
    checks.function("energy", energy, "params", "x")
    checks.kernel_constructor("make_kernel", make_kernel)
    check_points("x_data", x_data)
    for name, value in (("multiple", multiple), ("max_points", max_points), ("max_chains", max_chains)):
        checks.positive_integer(name, value)
        if value < 2:
            raise ValueError(f"{name}={value}: at least 2 is needed.")
    checks.positive_integer("num_steps", num_steps)
    data = _spread(x_data, max_points)
    bandwidth = median_bandwidth(data)
    if not bandwidth > 0:
        raise ValueError("x_data holds one point many times: two different ones are needed for a bandwidth.")

    @jax.jit
    def compiled(
        rng_key: Array,
        params: Params,
        data: Position,
        bandwidth: Array,
        model: Position,
        start: Position,
        ages: Array | None,
    ) -> Metrics:
        gap = energy_gap(energy, params, data, model)
        drift = long_run_drift(
            rng_key,
            energy,
            params,
            make_kernel,
            start,
            num_steps,
            multiple=multiple,
            checkpoints_per_decade=1,
        )
        metrics = {
            "energy_data": gap.energy_data,
            "energy_model": gap.energy_model,
            "energy_gap": gap.gap,
            "energy_gap_error": gap.standard_error,
            "gradient_norm_first": drift.probe.gradient_norm[0],
            "gradient_norm_last": drift.probe.gradient_norm[1],
            "chain_distance": drift.probe.distance[1],
            "long_run_energy_change": drift.energy_change,
            "long_run_energy_change_error": drift.energy_change_error,
            "long_run_relative_change": drift.relative_change,
            "long_run_gradient_ratio": drift.gradient_ratio,
            "long_run_non_finite": drift.non_finite,
            "mmd_squared": maximum_mean_discrepancy(data, model, bandwidth=bandwidth),
            "ksd_squared": kernel_stein_discrepancy(energy, params, model, scale=bandwidth).u_statistic,
        }
        if drift.probe.acceptance is not None:
            metrics["chain_acceptance"] = drift.probe.acceptance[1]
        if ages is not None:
            metrics |= {"buffer_age_mean": jnp.mean(ages), "buffer_age_max": jnp.max(ages)}
        return metrics

    def telemetry(
        rng_key: Array,
        params: Params,
        x_model: Position,
        ages: Array | None = None,
        x_start: Position | None = None,
    ) -> Metrics:
        checks.rng_key("rng_key", rng_key)
        x_start = x_model if x_start is None else x_start
        for name, batch in (("x_model", x_model), ("x_start", x_start)):
            _at_least_two(name, batch)
            check_same_shape("x_data", data, name, batch)
        if ages is not None:
            checks.array("ages", ages, (None,), "(capacity,)")
        model, start = _spread(x_model, max_points), _spread(x_start, max_chains)
        return compiled(rng_key, params, data, bandwidth, model, start, ages)

    return telemetry


def _at_least_two(name: str, batch: Position) -> None:
    if (found := checks.batch_length(name, batch)) < 2:
        raise ValueError(f"{name} holds {found} example: at least 2 are needed for a standard error.")


def _spread(batch: Position, most: int) -> Position:
    count = checks.batch_length("batch", batch)
    kept = np.arange(min(count, most)) * count // min(count, most)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[kept], batch)


@functools.partial(jax.jit, static_argnames=("energy",))
def _gap(energy: EnergyFn, params: Params, x_data: Position, x_model: Position) -> EnergyGap:
    target = scalar_target(functools.partial(energy, params))
    energies = jax.vmap(lambda x: jnp.asarray(target(x), float), axis_name=BATCH_AXIS)
    data, model = energies(x_data), energies(x_model)
    mean_data, mean_model = jnp.mean(data), jnp.mean(model)
    unit = power_of_two(data, model)  # of samples that left, even the squares of energies may overflow
    squared_error = jnp.var(data / unit, ddof=1) / data.size + jnp.var(model / unit, ddof=1) / model.size
    return EnergyGap(mean_data - mean_model, jnp.sqrt(squared_error) * unit, mean_data, mean_model)


@jax.jit
def _summary(positions: Position, ages: Array) -> BufferSummary:
    def finite(position: Position) -> Array:
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(position)]))

    return BufferSummary(
        age_mean=jnp.mean(ages),
        age_median=jnp.median(ages),
        age_max=jnp.max(ages),
        fresh=jnp.mean(ages == 0),
        non_finite=jnp.mean(~jax.vmap(finite)(positions)),
    )
