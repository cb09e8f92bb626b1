"""The samplers of the gallery, and the evaluation of one of them on a target with exact answers."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from gallery.targets import INTEGRATION_STEPS, Setting
from jaxebm.evaluation import (
    annealed_importance_sampling,
    effective_sample_size,
    kolmogorov_smirnov,
    r_hat,
    sigmoid_schedule,
)
from jaxebm.samplers import (
    hmc,
    mala,
    nuts,
    parallel_tempering,
    preconditioned_sgld,
    proximal_sgld,
    ridge,
    run_chains,
    sequential_monte_carlo,
    sgld,
    tune_ladder,
    underdamped,
)
from jaxebm.types import Array, Kernel, Target

__all__ = ["SAMPLERS", "Budget", "Judgement", "judge"]

SHRINKING = 0.25
"""Step size of uncorrected samplers, as a fraction of that of MALA; `underdamped` uses half of HMC's."""
AIS_TEMPERATURES, AIS_CHAINS = 100, 256
PARTICLES, MOVES = 1024, 10
"""Moves of sequential Monte Carlo at each temperature."""


class Budget(NamedTuple):
    """The budget of each sampler: ``chains``, and ``gradients`` of each, a quarter of them for burn-in."""

    chains: int
    gradients: int


class Judgement(NamedTuple):
    """One sampler on one target.

    Attributes:
      mean_error: greatest error of a coordinate's mean, in exact standard deviations.
      deviation_error: greatest relative error of a coordinate's standard deviation.
      kolmogorov: greatest Kolmogorov-Smirnov distance of a coordinate from exact samples.
      log_partition_error: of annealed importance sampling with this kernel, or of the sampler's own estimate,
        in nats; None where it has none.
      effective_samples: the least of the coordinates', of all chains; None for a population.
      r_hat: the greatest of the coordinates'; None for a population.
      gradients: evaluations of dE/dx by all chains together, without burn-in.
      seconds: their time, without compilation.
      acceptance_rate: mean, or None.
      samples: thinned, ``(k, d)``.
      path: one chain, step by step, ``(t, d)``; empty for a population.
    """

    mean_error: float
    deviation_error: float
    kolmogorov: float
    log_partition_error: float | None
    effective_samples: float | None
    r_hat: float | None
    gradients: float
    seconds: float
    acceptance_rate: float | None
    samples: np.ndarray
    path: np.ndarray


def _sgld(setting: Setting) -> tuple[Callable[..., Kernel], int]:
    return partial(sgld, step_size=SHRINKING * setting.tuned["mala"]["step_size"]), 1


def _preconditioned(setting: Setting) -> tuple[Callable[..., Kernel], int]:
    step_size = SHRINKING * setting.tuned["mala"]["step_size"] * setting.gradient_scale
    return partial(preconditioned_sgld, step_size=step_size, damping=0.1 * setting.gradient_scale), 1


def _underdamped(setting: Setting) -> tuple[Callable[..., Kernel], int]:
    step_size = jnp.asarray(0.5 * setting.tuned["hmc"]["step_size"])
    return partial(underdamped, step_size=step_size, friction=1 / float(setting.deviation.max())), 1


def _proximal(setting: Setting) -> tuple[Callable[..., Kernel], int]:
    """The target with a part of its curvature, that of its widest coordinate, taken implicitly."""
    strength, step_size = float(setting.deviation.max()) ** -2, SHRINKING * setting.tuned["mala"]["step_size"]

    def kernel(target: Target, step_size: Array) -> Kernel:
        return proximal_sgld(lambda x: target(x) - 0.5 * strength * jnp.sum(x**2), ridge(strength), step_size)

    return partial(kernel, step_size=step_size), 1


def _mala(setting: Setting) -> tuple[Callable[..., Kernel], int]:
    return partial(mala, **setting.tuned["mala"]), 1


def _hmc(setting: Setting) -> tuple[Callable[..., Kernel], int]:
    return partial(hmc, **setting.tuned["hmc"]), INTEGRATION_STEPS


def _nuts(setting: Setting) -> tuple[Callable[..., Kernel], int]:
    return partial(nuts, **setting.tuned["nuts"]), 0  # as many as it finds it needs


CHAINS: Mapping[str, Callable[[Setting], tuple[Callable[..., Kernel], int]]] = {
    "sgld": _sgld,
    "preconditioned_sgld": _preconditioned,
    "underdamped": _underdamped,
    "proximal_sgld": _proximal,
    "mala": _mala,
    "hmc": _hmc,
    "nuts": _nuts,
}
"""Samplers that are a kernel: it, and the gradients of a step (0: its info tells)."""
POPULATIONS = ("parallel_tempering", "sequential_monte_carlo")
SAMPLERS = (*CHAINS, *POPULATIONS)


def judge(rng_key: Array, sampler: str, setting: Setting, budget: Budget) -> Judgement:
    """Runs one sampler on one target and compares it with the exact answers."""
    if sampler == "parallel_tempering":
        return _judge_tempering(rng_key, setting, budget)
    if sampler == "sequential_monte_carlo":
        return _judge_population(rng_key, setting)
    return _judge_chain(rng_key, *CHAINS[sampler](setting), setting, budget)


def _timed(run: Callable[[Array], Any], rng_key: Array) -> tuple[Any, float]:
    """The result for one key, and the median time of three calls after the one that compiles."""
    result = jax.block_until_ready(run(rng_key))
    seconds = []
    for key in jax.random.split(rng_key, 3):
        started = time.perf_counter()
        jax.block_until_ready(run(key))
        seconds.append(time.perf_counter() - started)
    return result, float(np.median(seconds))


def _collect(state: Any, info: Any) -> tuple[Any, Any, Any]:
    return (
        state.position,
        getattr(info, "acceptance_rate", None),
        getattr(info, "num_integration_steps", None),
    )


def _judge_chain(
    rng_key: Array,
    make_kernel: Callable[..., Kernel],
    gradients_a_step: int,
    setting: Setting,
    budget: Budget,
) -> Judgement:
    """All chains from one start; the first quarter of their steps is discarded."""
    num_steps = budget.gradients // max(gradients_a_step, INTEGRATION_STEPS if gradients_a_step == 0 else 1)
    start = jnp.broadcast_to(setting.start, (budget.chains, setting.target.dimension))
    kernel = make_kernel(setting.target.target)
    run = jax.jit(lambda key: run_chains(key, kernel, start, num_steps, collect=_collect)[1])
    chain_key, ais_key = jax.random.split(rng_key)
    (positions, rates, integrations), seconds = _timed(run, chain_key)
    first = num_steps // 4
    kept = num_steps - first
    gradients = budget.chains * kept * gradients_a_step
    if gradients_a_step == 0:
        gradients = float(np.sum(integrations[:, first:]))
    estimate = annealed_importance_sampling(
        ais_key,
        setting.target.energy,
        setting.target.params,
        setting.base,
        make_kernel,
        sigmoid_schedule(AIS_TEMPERATURES),
        AIS_CHAINS,
    ).log_partition
    return _compare(
        np.asarray(positions[:, first:], np.float64),
        setting,
        log_partition=float(estimate),
        gradients=gradients,
        seconds=seconds * kept / num_steps,
        acceptance_rate=None if rates is None else float(np.mean(rates[:, first:])),
        path=np.asarray(positions[0, :300]),
    )


def _bridge_steps(setting: Setting) -> Callable[[Array], dict[str, Array]]:
    """MALA's step at each inverse temperature between base and target."""
    schedule, steps = setting.bridge.schedule, setting.bridge.kernel_schedule["step_size"]
    return lambda b: {"step_size": jnp.interp(b, schedule, steps)}


def _judge_tempering(rng_key: Array, setting: Setting, budget: Budget) -> Judgement:
    """MALA on each rung between base and target; the ladder is tuned to a swap rate of one half."""
    keys = jax.random.split(rng_key, 3)
    target, base, parameters_at = setting.target, setting.base, _bridge_steps(setting)
    starts = jnp.broadcast_to(setting.start, (8, target.dimension))
    ladder = tune_ladder(
        keys[0], target.energy, target.params, starts, mala, setting.bridge.schedule[::8],
        reference=base.energy, reference_params=base.params, target_swap_rate=0.5,
        parameters_at=parameters_at,
    )  # fmt: skip
    b = ladder.inverse_temperatures
    kernel = parallel_tempering(
        target.target, mala, b, reference=base.target, kernel_schedule=jax.vmap(parameters_at)(b)
    )
    num_steps = max(budget.gradients // len(b), 8)
    start = jnp.broadcast_to(setting.start, (budget.chains, len(b), target.dimension))

    def last_rung(state: Any, info: Any) -> tuple[Array, Array, Array]:
        difference = info.energy - jax.vmap(base.target)(state.position)
        return state.position[-1], info.acceptance_rate[-1], difference

    run = jax.jit(lambda key: run_chains(key, kernel, start, num_steps, collect=last_rung)[1])
    (positions, rates, differences), seconds = _timed(run, keys[1])
    first = num_steps // 4
    # Stepping stones: log Z_b' / Z_b = log E_b[exp(-(b' - b) D)] from rung to rung.
    exponents = -np.diff(np.asarray(b, np.float64)) * np.asarray(differences, np.float64)[:, first:, :-1]
    ratios = scipy.special.logsumexp(exponents, axis=(0, 1)) - np.log(exponents[..., 0].size)
    return _compare(
        np.asarray(positions[:, first:], np.float64),
        setting,
        log_partition=float(base.log_partition(base.params)) + float(ratios.sum()),
        gradients=budget.chains * (num_steps - first) * len(b),
        seconds=seconds * (num_steps - first) / num_steps,
        acceptance_rate=float(np.mean(rates[:, first:])),
        path=np.asarray(positions[0, :300]),
    )


def _judge_population(rng_key: Array, setting: Setting) -> Judgement:
    """Particles from the base, moved by MALA."""
    sample_key, run_key = jax.random.split(rng_key)
    target, base = setting.target, setting.base
    particles = base.sample(sample_key, base.params, PARTICLES)
    parameters_at = _bridge_steps(setting)

    def run(key: Array) -> Any:
        return sequential_monte_carlo(
            key, target.energy, target.params, base.energy, base.params, particles, mala,
            num_steps_per_temperature=MOVES, target_effective_fraction=0.7, parameters_at=parameters_at,
        )  # fmt: skip

    result, seconds = _timed(run, run_key)
    if not bool(result.completed):
        raise RuntimeError("sequential Monte Carlo needs more temperatures than the budget allows.")
    rates = np.asarray(result.acceptance_rate)
    return _compare(
        np.asarray(result.particles, np.float64)[None],
        setting,
        log_partition=float(base.log_partition(base.params)) + float(result.log_partition_ratio),
        gradients=float(result.num_temperatures) * MOVES * PARTICLES,
        seconds=seconds,
        acceptance_rate=float(np.nanmean(rates)),
        path=np.zeros((0, target.dimension)),
    )


def _compare(
    history: np.ndarray,
    setting: Setting,
    *,
    log_partition: float,
    gradients: float,
    seconds: float,
    acceptance_rate: float | None,
    path: np.ndarray,
) -> Judgement:
    """Compares histories ``(chains, steps, d)``, or one population ``(1, n, d)``, with the exact answers."""
    target = setting.target
    pooled = history.reshape(-1, target.dimension)
    thinned = pooled[:: max(len(pooled) // 20_000, 1)]
    errors = np.abs(pooled.mean(axis=0) - setting.mean) / setting.deviation
    ratios = pooled.std(axis=0) / setting.deviation
    distance = np.nan  # of a chain that diverged
    if np.isfinite(pooled).all():
        found = kolmogorov_smirnov(jnp.asarray(thinned, jnp.float32), jnp.asarray(setting.exact))
        distance = np.max(found.statistic)
    chains = len(history) > 1
    narrow = jnp.asarray(history, jnp.float32)
    return Judgement(
        mean_error=float(errors.max()),
        deviation_error=float(np.abs(ratios - 1).max()),
        kolmogorov=float(distance),
        log_partition_error=log_partition - float(target.log_partition(target.params)),
        effective_samples=float(jnp.min(effective_sample_size(narrow))) if chains else None,
        r_hat=float(jnp.max(r_hat(narrow))) if chains else None,
        gradients=float(gradients),
        seconds=seconds,
        acceptance_rate=acceptance_rate,
        samples=thinned,
        path=path,
    )
