"""Schedules of temperatures for an annealing path: fixed rules, and one that is fitted to the path.

Of a schedule t_0 = 0, ..., t_{T-1} = 1 with a kernel that mixes well, the log weights of annealed importance
sampling have variance sum_k (t_k - t_{k-1})^2 sd_k^2, where sd_k is the standard deviation of E_0 - E_1 at
t_k. For a given T it is least where (t_k - t_{k-1}) sd_k is the same for all k.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.target import AnalyticTarget
from jaxebm.evaluation.partition.annealing_path import Base, check_problem, geometric_path
from jaxebm.samplers.binding import StaticKernel, bind_once, unbind
from jaxebm.samplers.chains import run_annealed_chain, run_chains
from jaxebm.types import Array, EnergyFn, Kernel, Params, Position

__all__ = ["AnnealingPath", "fit_annealing_path", "linear_schedule", "sigmoid_schedule"]


def linear_schedule(num_temperatures: int) -> Array:
    """Returns t_k = k / (T - 1), shape ``(num_temperatures,)``, for T of at least 2.

    Example:
      >>> linear_schedule(5).tolist()
      [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return jnp.asarray(
        np.linspace(0.0, 1.0, _at_least_two("num_temperatures", num_temperatures)), dtype=float
    )


def sigmoid_schedule(num_temperatures: int, steepness: float = 4.0) -> Array:
    r"""Returns a schedule whose steps are short near both ends, where distributions change fast.

    .. math:: t_k = \frac{s_k - s_0}{s_{T-1} - s_0}, \qquad s_k = \mathrm{sigmoid}(\delta (2 k / (T - 1) - 1))

    Args:
      num_temperatures: T, at least 2.
      steepness: delta > 0; toward 0 the schedule is linear.

    Returns:
      t, shape ``(num_temperatures,)``, from 0 to 1.

    Raises:
      ValueError: if num_temperatures is not an integer of at least 2, or the steepness is not positive.

    Example:
      >>> [round(t, 3) for t in sigmoid_schedule(5).tolist()]
      [0.0, 0.105, 0.5, 0.895, 1.0]

    Reference:
      Grosse, Ghahramani & Adams 2015 (arXiv:1511.02543), whose released code has delta = 4.
    """
    checks.positive_number("steepness", steepness)
    along = np.linspace(-1.0, 1.0, _at_least_two("num_temperatures", num_temperatures))
    curve = np.tanh(0.5 * steepness * along)  # 2 sigmoid - 1, which the normalisation does not see
    return jnp.asarray((curve - curve[0]) / (curve[-1] - curve[0]), dtype=float)


class AnnealingPath(NamedTuple):
    """A fitted schedule, and the statistics of the pilot chains along it; all of shape ``(T,)``.

    Attributes:
      schedule: t, from 0 to 1.
      kernel_schedule: ``{"step_size": (T,)}`` for ``annealed_importance_sampling``, or empty where no step
        was tuned.
      spread: of E_0 - E_1 over the pilot chains, 1.2533 times the mean absolute deviation (the standard
        deviation where it is normal), in nats.
      non_finite: the greatest number of pilot chains, over the temperatures, at which E_0 - E_1 was NaN,
        ``()``: the energy's fault, unlike +inf, which is a density of 0.
    """

    schedule: Array
    kernel_schedule: dict[str, Array]
    spread: Array
    non_finite: Array | int = 0

    @property
    def length(self) -> Array:
        """The integral of the spread over t: AIS needs some (length / sd wanted)^2 temperatures, ``()``."""
        return jnp.trapezoid(self.spread, self.schedule)


def fit_annealing_path(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    base: Base | AnalyticTarget,
    make_kernel: Callable[..., Kernel],
    num_temperatures: int,
    *,
    step_size: float | Array | None = None,
    target_acceptance_rate: float = 0.65,
    num_chains: int = 100,
    num_pilot_temperatures: int = 100,
    num_steps_per_temperature: int = 5,
    num_rounds: int = 3,
) -> AnnealingPath:
    r"""Fits schedule and step sizes to a path by pilot chains, for annealed importance sampling.

    .. math:: \Lambda(t) = \int_0^t \mathrm{sd}_s(E_0 - E_1)\, ds, \qquad
              \Lambda(t_k) = \tfrac{k}{T - 1} \Lambda(1)

    Chains walk the path on a coarse schedule, which the spread that they see refines for the next round.
    Where a step size is given, it is moved toward the wanted acceptance at every temperature, in all chains
    alike. Chains at which an energy is infinite or NaN count neither for the spread nor for the acceptance.

    The schedule and steps depend on the pilot chains alone: runs with other keys keep all that is proved of
    fixed ones.

    Args:
      rng_key: one key; use another for the run itself.
      energy: ``energy(params, x) -> ()``, E_1.
      params: its parameters.
      base: E_0, with exact samples.
      make_kernel: ``make_kernel(target, step_size=...) -> Kernel`` whose info has ``acceptance_rate``; or
        ``make_kernel(target)`` where step_size is None.
      num_temperatures: T, at least 2.
      step_size: where tuning starts, ``()``; None for kernels that have none to tune.
      target_acceptance_rate: strictly between 0 and 1.
      num_chains: pilot chains, at least 2.
      num_pilot_temperatures: of a round, at least 2.
      num_steps_per_temperature: kernel steps of the pilot chains at each temperature.
      num_rounds: each finer than the one before, at least 1.

    Returns:
      An `AnnealingPath`.

    Raises:
      ValueError: if a number is out of its range, the kernel refuses its parameters, or E_0 - E_1 is finite
        at no pilot chain at any temperature (where it is traced, the spread is NaN instead).
      TypeError: if an argument is of another type, or a step is to be tuned of a kernel whose info has no
        ``acceptance_rate``.

    Example:
      Toward a narrow normal the path changes fastest at its start:

      >>> from jaxebm.energies import gaussian
      >>> from jaxebm.samplers import mala
      >>> wide, narrow = gaussian([0.0], [[1.0]]), gaussian([0.0], [[0.01]])
      >>> path = fit_annealing_path(
      ...     jax.random.key(0), narrow.energy, narrow.params, wide, mala, 9, step_size=0.1)
      >>> bool(path.schedule[4] < 0.2), path.kernel_schedule["step_size"].shape
      (True, (9,))

    Reference:
      Gelman & Meng 1998, Simulating normalizing constants, section 4; Grosse, Maddison & Salakhutdinov 2013,
      Annealing between distributions by averaging moments, section 4.
    """
    check_problem(rng_key, energy, params, base, make_kernel)
    _at_least_two("num_temperatures", num_temperatures)
    _at_least_two("num_pilot_temperatures", num_pilot_temperatures)
    _at_least_two("num_chains", num_chains)
    checks.positive_integer("num_steps_per_temperature", num_steps_per_temperature)
    checks.positive_integer("num_rounds", num_rounds)
    checks.fraction("target_acceptance_rate", target_acceptance_rate)
    if step_size is not None:
        checks.positive_number("step_size", step_size, "It is where tuning starts, at every temperature.")
    numbers_at = {} if step_size is None else {"step_size": step_size}
    bind_once(make_kernel, functools.partial(energy, params), numbers_at)
    static, numbers = unbind(make_kernel)
    with checks.shapes_noted(params=params, base=base.params):
        schedule, steps, spread, finite, non_finite = _fit(
            rng_key,
            (base.params, params, numbers),
            jnp.zeros(()) if step_size is None else jnp.log(step_size),
            target_acceptance_rate,
            base=(base.energy, base.sample),
            energy=energy,
            make_kernel=static,
            tuned=step_size is not None,
            counts=(
                num_temperatures, num_pilot_temperatures, num_chains, num_steps_per_temperature, num_rounds,
            ),
        )  # fmt: skip
    if not checks.is_traced(finite) and finite == 0:
        raise ValueError(
            f"energy={checks.function_name(energy)}: E_0 - E_1 is finite at none of {num_chains} pilot "
            f"chains from samples of base, at no temperature; it is NaN at {non_finite} of them. An energy "
            f"of +inf is a density of 0: no place was found where both densities are positive."
        )
    kernel_schedule = {} if step_size is None else {"step_size": steps}
    return AnnealingPath(schedule, kernel_schedule, jnp.where(finite > 0, spread, jnp.nan), non_finite)


_AT_REST = 20
"""Pilot temperatures at t = 0, where the first step size is found."""
_FLOOR = 0.02
"""Fraction of the mean spread that is added everywhere, so that every part of the path has temperatures."""


class _Population(NamedTuple):
    """All pilot chains and the step size that they share, as the position of one chain.

    ``is_finite`` tells at which of them E_0 - E_1 is finite, shape (num_chains,).
    """

    chains: Position
    log_step_size: Array
    is_finite: Array


class _PopulationState(NamedTuple):
    position: _Population


@functools.partial(jax.jit, static_argnames=("base", "energy", "make_kernel", "tuned", "counts"))
def _fit(
    rng_key: Array,
    parameters: tuple[Params, Params, dict[str, Any]],
    log_step_size: Array,
    target_acceptance_rate: Array | float,
    *,
    base: tuple[EnergyFn, Callable[..., Position]],
    energy: EnergyFn,
    make_kernel: StaticKernel,
    tuned: bool,
    counts: tuple[int, int, int, int, int],
) -> tuple[Array, Array, Array, Array, Array]:
    base_params, params, constant = parameters
    num_temperatures, num_pilots, num_chains, num_steps, num_rounds = counts
    target_at, difference = geometric_path((base[0], energy), base_params, params)

    def kernel_at(t: Array) -> Kernel:
        def step(rng_key: Array, state: _PopulationState) -> tuple[_PopulationState, tuple[Array, ...]]:
            chains, log_step, is_finite = state.position
            numbers = {"step_size": jnp.exp(log_step)} if tuned else {}
            kernel = make_kernel.bind(target_at(t), constant, numbers)
            states, rates = run_chains(
                rng_key,
                kernel,
                chains,
                num_steps,
                collect=lambda _, info: _acceptance_rate(info) if tuned else None,
            )
            # Where all are finite, as a rule, each number is rounded as in the plain formula.
            if tuned:
                seen = is_finite[:, None] & jnp.isfinite(rates)
                plain = log_step + jnp.mean(rates) - target_acceptance_rate
                some = log_step + _mean(rates - target_acceptance_rate, seen)
                log_step = jnp.where(jnp.all(seen), plain, some)
            differences = jax.vmap(difference)(states.position)
            is_finite = jnp.isfinite(differences)
            plain = 1.2533 * jnp.mean(jnp.abs(differences - jnp.median(differences)))
            centre = jnp.nanmedian(jnp.where(is_finite, differences, jnp.nan))
            some = 1.2533 * _mean(jnp.abs(differences - centre), is_finite)
            deviation = jnp.where(jnp.all(is_finite), plain, some)
            counts = jnp.sum(is_finite), jnp.sum(jnp.isnan(differences))
            population = _Population(states.position, log_step, is_finite)
            return _PopulationState(population), (deviation, *counts)

        return Kernel(lambda position, rng_key=None: _PopulationState(position), step)

    def walk(carry: tuple[Array, Array], rng_key: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        schedule, log_step = carry
        sample_key, walk_key = jax.random.split(rng_key)
        chains = base[1](sample_key, base_params, num_chains)
        start = _Population(chains, log_step, jnp.isfinite(jax.vmap(difference)(chains)))
        along = jnp.concatenate([jnp.zeros(_AT_REST), schedule])
        _, (steps, (spreads, *counts)) = run_annealed_chain(
            walk_key,
            kernel_at,
            along,
            start,
            collect=lambda state, seen: (state.position.log_step_size, seen),
        )
        steps, spreads = steps[_AT_REST:], spreads[_AT_REST:]
        mean = jnp.mean(spreads)
        density = jnp.where(mean > 0, spreads / mean, 1.0) + _FLOOR
        lengths = jnp.cumsum(0.5 * (density[1:] + density[:-1]) * jnp.diff(schedule))
        place = jnp.concatenate([jnp.zeros(1), lengths / lengths[-1]])  # Lambda(t) / Lambda(1) at the pilots

        def at(count: int) -> tuple[Array, Array, Array]:
            wanted = jnp.linspace(0.0, 1.0, count)
            t = jnp.interp(wanted, place, schedule).at[0].set(0.0).at[-1].set(1.0)
            return t, jnp.interp(wanted, place, steps), jnp.interp(wanted, place, spreads)

        greatest = tuple(jnp.max(count) for count in counts)
        return (at(num_pilots)[0], steps[0]), (*at(num_temperatures), *greatest)

    first = (sigmoid_schedule(num_pilots), log_step_size)
    _, fitted = jax.lax.scan(walk, first, jax.random.split(rng_key, num_rounds))
    schedule, log_steps, *rest = jax.tree.map(lambda leaf: leaf[-1], fitted)
    return schedule, jnp.exp(log_steps), *rest


def _mean(values: Array, kept: Array) -> Array:
    """The mean of the kept entries, 0 where there are none."""
    return jnp.sum(jnp.where(kept, values, 0.0)) / jnp.maximum(jnp.sum(kept), 1)


def _acceptance_rate(info: Any) -> Array:
    rate = getattr(info, "acceptance_rate", None)
    if rate is None:
        raise TypeError(
            f"make_kernel gives a kernel whose info, a {type(info).__name__}, has no acceptance_rate: "
            f"step_size cannot be tuned to it. Without step_size the schedule alone is fitted."
        )
    return rate


def _at_least_two(name: str, value: int) -> int:
    checks.integer(name, value, 2)
    return int(value)
