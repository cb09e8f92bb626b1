"""Sequential Monte Carlo: a population moves from a reference to the model, with resampling.

Annealed importance sampling lets the weights of its chains become unequal. Here each step of the temperature
is limited by the weights; then unlikely particles are replaced by copies of likely ones, and all of them
move.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.binding import StaticKernel, bind_once, unbind
from jaxebm.samplers.chains import run_chains
from jaxebm.samplers.langevin import scalar_target
from jaxebm.samplers.paths import between
from jaxebm.samplers.tempering import check_energies
from jaxebm.types import Array, EnergyFn, Kernel, Params, Position, Target

__all__ = ["SMCResult", "sequential_monte_carlo"]


class SMCResult(NamedTuple):
    """The population, and the record of its steps. M is the greatest number of temperatures.

    Attributes:
      particles: equally weighted, leaves ``(n, ...)``.
      log_partition_ratio: the estimate of log Z_1 - log Z_0 in nats, ``()``; NaN unless ``completed``.
      completed: whether inverse temperature 1 was reached within M steps, by particles whose weights were all
        known (``non_finite`` is 0), ``()``. If it was not reached, the particles are those of a hotter
        model; if no particle had a weight above 0, the walk stopped there, with the particles that it had.
      num_temperatures: steps taken, ``()``.
      inverse_temperatures: b, ``(M,)``, after each step; NaN beyond the last.
      effective_fraction: effective sample size over n before each resampling, ``(M,)``; NaN beyond the last.
      acceptance_rate: the mean ``acceptance_rate`` of the moves at each step, ``(M,)``, NaN beyond the last;
        None if the infos of the kernel have none.
      non_finite: how many weights, of all particles over all steps, were not defined, and how many of the
        last particles have no energy, ``()``: an energy of NaN or -inf, or a reference energy of +inf at a
        particle that was drawn from the reference. Such particles have weight 0 and leave no copies.
    """

    particles: Position
    log_partition_ratio: Array
    completed: Array
    num_temperatures: Array
    inverse_temperatures: Array
    effective_fraction: Array
    acceptance_rate: Array | None
    non_finite: Array


def sequential_monte_carlo(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    reference: EnergyFn,
    reference_params: Params,
    particles: Position,
    make_kernel: Callable[..., Kernel],
    *,
    num_steps_per_temperature: int = 5,
    target_effective_fraction: Array | float = 0.5,
    max_num_temperatures: int = 100,
    parameters_at: Callable[[Array], Mapping[str, Any]] | None = None,
) -> SMCResult:
    r"""Moves n particles along E_b = (1 - b) E_0 + b E_1 in adaptive steps, compiled.

    .. math:: w_i = e^{-(b' - b) D(x_i)}, \quad D = E_1 - E_0, \qquad
              \frac{(\sum_i w_i)^2}{n \sum_i w_i^2} = \rho, \qquad
              \log \frac{Z_1}{Z_0} = \sum_{steps} \log \frac{1}{n} \sum_i w_i

    Each step finds by bisection the b' that leaves the effective fraction rho (or takes 1, if more is left
    there), resamples systematically, and moves every particle by a kernel that leaves exp(-E_b') invariant.
    As b' depends on the particles, the ratio of partition functions is biased by O(1/n); with given
    temperatures it would be unbiased. Particles share ancestors: their n is not that of independent samples,
    so take error bars from repeated runs (and with few of those Student's t). A kernel that is not invariant
    (``sgld``) biases all of it.

    An energy of +inf is a density of 0: weight 0, where the reference may have mass. Particles keep their
    dtypes; those of 16 bits are rounded at each temperature (``RoundedState``).

    One program is compiled for each pair of energies, kernel and shape; new parameters, kernel numbers and
    rho run it again. Energies, kernels and ``parameters_at`` are recognised by identity: define them once.

    Args:
      rng_key: one key.
      energy: E_1, ``energy(params, x) -> ()``.
      params: its parameters.
      reference: E_0, whose density must be positive where that of E_1 is.
      reference_params: its parameters.
      particles: independent exact draws from exp(-E_0), leaves ``(n, ...)``, n at least 2.
      make_kernel: ``make_kernel(target) -> Kernel``. The floats and arrays that a ``functools.partial`` holds
        by keyword are traced, so ``partial(mala, step_size=0.1)`` may be made again for each call.
      num_steps_per_temperature: moves of each particle at each temperature, at least 1.
      target_effective_fraction: rho, strictly between 0 and 1. Higher: smaller steps, more of them.
      max_num_temperatures: M, which bounds the work and sets the length of the record.
      parameters_at: ``b () -> {name: value}``, keyword arguments of ``make_kernel`` at inverse temperature b,
        as ``lambda b: {"step_size": 1.0 / (1 + 9 * b)}``.

    Returns:
      The result. Check ``completed``; if it is False, ``non_finite`` tells whether energies were the reason.

    Raises:
      ValueError: if a number is out of its range, the particles are ragged or fewer than two, the kernel
        refuses its parameters, or an energy is not a scalar.

    Example:
      >>> from jaxebm.samplers import mala
      >>> energy = lambda variance, x: 0.5 * jnp.sum(x**2) / variance
      >>> particles = jax.random.normal(jax.random.key(1), (500, 1))
      >>> result = sequential_monte_carlo(
      ...     jax.random.key(0), energy, jnp.array(0.01), energy, jnp.array(1.0), particles,
      ...     functools.partial(mala, step_size=0.005))
      >>> bool(result.completed), bool(abs(result.log_partition_ratio - jnp.log(0.1)) < 0.3)
      (True, True)

    Reference:
      Del Moral, Doucet & Jasra 2006, Sequential Monte Carlo samplers; Jasra et al. 2011 (adaptive steps);
      Beskos et al. 2016, On the convergence of adaptive SMC methods (arXiv:1306.6462); blackjax.smc.
    """
    checks.rng_key("rng_key", rng_key)
    checks.function("reference", reference, "reference_params", "x")
    check_energies(energy, params, reference, reference_params)
    if (found := checks.batch_length("particles", particles)) < 2:
        raise ValueError(f"particles has a batch of {found}: at least 2 are needed to compare their weights.")
    checks.floating("particles", particles)
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.positive_integer("num_steps_per_temperature", num_steps_per_temperature)
    checks.positive_integer("max_num_temperatures", max_num_temperatures)
    checks.fraction("target_effective_fraction", target_effective_fraction)
    if parameters_at is not None:
        checks.function("parameters_at", parameters_at, "b")
    for b in (0.0, 1.0):  # the kernel's own checks, while the numbers can be seen
        numbers_at = _parameters(parameters_at, jnp.asarray(b))
        checks.instance("parameters_at(b)", numbers_at, Mapping)
        bind_once(make_kernel, functools.partial(energy, params), numbers_at)
    kernel, numbers = unbind(make_kernel)
    with checks.shapes_noted(params=params, reference_params=reference_params, particles=particles):
        return _walk(
            rng_key,
            (reference_params, params, numbers),
            jax.tree.map(jnp.asarray, particles),
            jnp.asarray(target_effective_fraction, dtype=float),
            energies=(reference, energy),
            kernel=kernel,
            parameters_at=parameters_at,
            num_steps=num_steps_per_temperature,
            max_num_temperatures=max_num_temperatures,
        )


@functools.partial(
    jax.jit, static_argnames=("energies", "kernel", "parameters_at", "num_steps", "max_num_temperatures")
)
def _walk(
    rng_key: Array,
    parameters: tuple[Params, Params, dict[str, Any]],
    particles: Position,
    fraction: Array,
    *,
    energies: tuple[EnergyFn, EnergyFn],
    kernel: StaticKernel,
    parameters_at: Callable[[Array], Mapping[str, Any]] | None,
    num_steps: int,
    max_num_temperatures: int,
) -> SMCResult:
    from blackjax.smc.ess import ess_solver, log_ess
    from blackjax.smc.resampling import systematic
    from blackjax.smc.solver import dichotomy

    reference_params, params, numbers = parameters
    begin = scalar_target(functools.partial(energies[0], reference_params), "reference")
    end = scalar_target(functools.partial(energies[1], params), "energy")
    num_particles = checks.batch_length("particles", particles)
    dtype = fraction.dtype

    def path(b: Array) -> Target:
        # Once weighted, particles stay where the density of E_1 is positive: b = 0 is the limit from above.
        above = jnp.maximum(b, jnp.finfo(dtype).tiny)
        return lambda x: between(above, jnp.asarray(begin(x), dtype), jnp.asarray(end(x), dtype))

    def log_density_ratio(x: Position) -> tuple[Array, Array]:
        """-D(x), -inf where the weight is 0; and whether it is not defined."""
        ratio = -(jnp.asarray(end(x), dtype) - jnp.asarray(begin(x), dtype))
        undefined = jnp.isnan(ratio) | jnp.isposinf(ratio)
        return jnp.where(undefined, -jnp.inf, ratio), undefined

    def moved(rng_key: Array, b: Array, particles: Position) -> tuple[Position, Array | None]:
        bound = kernel.bind(path(b), numbers, _parameters(parameters_at, b))
        states, rates = run_chains(rng_key, bound, particles, num_steps, collect=_acceptance_rate)
        return states.position, None if rates is None else jnp.mean(rates).astype(dtype)

    def one_step(walk: _Walk) -> _Walk:
        resample_key, move_key = jax.random.split(jax.random.fold_in(rng_key, walk.steps_taken))
        log_density_ratios, undefined = jax.vmap(log_density_ratio)(walk.particles)
        stranded = jnp.all(jnp.isneginf(log_density_ratios))  # weight 0 everywhere: there is nothing to copy
        remaining = 1 - walk.b
        step = ess_solver(lambda _: log_density_ratios, walk.particles, fraction, remaining, dichotomy)
        b = jnp.where(stranded, walk.b, jnp.where(step >= remaining, 1.0, walk.b + step))
        # 0 * inf is NaN, but a particle of infinite energy has weight 0 for any step.
        log_weights = jnp.where(jnp.isneginf(log_density_ratios), -jnp.inf, step * log_density_ratios)
        log_mean_weight = jax.nn.logsumexp(log_weights) - jnp.log(num_particles)
        weights = jax.nn.softmax(log_weights)
        ancestors = systematic(resample_key, weights, num_particles)
        particles = jax.tree.map(lambda leaf: leaf[ancestors], walk.particles)
        particles, rate = moved(move_key, b, particles)
        particles = jax.tree.map(lambda new, old: jnp.where(stranded, old, new), particles, walk.particles)
        return _Walk(
            steps_taken=walk.steps_taken + 1,
            b=b,
            particles=particles,
            stranded=stranded,
            non_finite=walk.non_finite + jnp.sum(undefined),
            log_ratio=walk.log_ratio + log_mean_weight,
            inverse_temperatures=walk.inverse_temperatures.at[walk.steps_taken].set(b),
            effective=walk.effective.at[walk.steps_taken].set(jnp.exp(log_ess(log_weights)) / num_particles),
            acceptance=None if rate is None else _set(walk.acceptance, walk.steps_taken, rate),
        )

    record = jnp.full(max_num_temperatures, jnp.nan, dtype)
    has_rate = jax.eval_shape(moved, rng_key, fraction, particles)[1] is not None
    zero = jnp.zeros((), dtype)
    none, false = jnp.zeros((), int), jnp.zeros((), bool)
    start = _Walk(none, zero, particles, false, none, zero, record, record, record if has_rate else None)
    walk = jax.lax.while_loop(
        lambda walk: (walk.b < 1) & (walk.steps_taken < max_num_temperatures) & ~walk.stranded,
        one_step,
        start,
    )
    last = jax.vmap(lambda x: jnp.asarray(end(x), dtype))(walk.particles)
    non_finite = walk.non_finite + jnp.sum(jnp.isnan(last) | jnp.isneginf(last))
    completed = (walk.b >= 1) & (non_finite == 0)
    return SMCResult(
        particles=walk.particles,
        log_partition_ratio=jnp.where(completed, walk.log_ratio, jnp.nan),
        completed=completed,
        num_temperatures=walk.steps_taken,
        inverse_temperatures=walk.inverse_temperatures,
        effective_fraction=walk.effective,
        acceptance_rate=walk.acceptance,
        non_finite=non_finite,
    )


class _Walk(NamedTuple):
    steps_taken: Array
    b: Array
    particles: Position
    stranded: Array
    non_finite: Array
    log_ratio: Array
    inverse_temperatures: Array
    effective: Array
    acceptance: Array | None


def _set(record: Any, index: Array, value: Array) -> Array:
    return record.at[index].set(value)


def _acceptance_rate(state: Any, info: Any) -> Array | None:
    del state
    return getattr(info, "acceptance_rate", None)


def _parameters(parameters_at: Callable[[Array], Mapping[str, Any]] | None, b: Array) -> Mapping[str, Any]:
    return {} if parameters_at is None else parameters_at(b)
