"""Ladders of temperatures for parallel tempering, spaced for equal swap rates."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.samplers.binding import StaticKernel, unbind
from jaxebm.samplers.chains import run_chains
from jaxebm.samplers.tempering import check_energies, check_ladder, parallel_tempering
from jaxebm.types import Array, EnergyFn, Kernel, Params, Position, Target

__all__ = ["Ladder", "tune_ladder"]


class Ladder(NamedTuple):
    """A tuned ladder, and its results in the last round.

    Attributes:
      inverse_temperatures: b, ``(R,)``, from the given b_0 to 1.
      swap_rates: mean swap acceptance between neighbours, ``(R - 1,)``.
      barrier: Lambda, ``()``: the sum of the rejection rates 1 - swap_rates, which hardly depends on R once
        they are small. However many rungs, at best about 1 / (2 + 2 Lambda) round trips come a step.
      round_trips: completed in the last round by all replicas of one chain, its mean over chains, ``()``.
      positions: where the replicas ended, leaves ``(n, R, ...)``: a warm start.
    """

    inverse_temperatures: Array
    swap_rates: Array
    barrier: Array
    round_trips: Array
    positions: Position


def tune_ladder(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    positions: Position,
    make_kernel: Callable[..., Kernel],
    inverse_temperatures: Array,
    *,
    reference: EnergyFn | None = None,
    reference_params: Params = None,
    target_swap_rate: float = 0.6,
    num_temperatures: int | None = None,
    num_rounds: int = 4,
    num_steps: int = 200,
    num_steps_per_swap: int = 1,
    parameters_at: Callable[[Array], Mapping[str, Any]] | None = None,
) -> Ladder:
    r"""Spaces the temperatures so that every swap is rejected equally often, by pilot rounds.

    .. math:: \Lambda(b_r) = \sum_{s < r} (1 - a_s), \qquad
              \Lambda(b'_r) = r \Lambda(1) / (R' - 1), \qquad
              R' = 1 + \lceil \Lambda(1) / (1 - a^*) \rceil

    with a_s the swap rate of rungs s and s + 1 and a* the wanted one. Each round runs the ladder, estimates
    Lambda from the second half of its steps, interpolates it (monotone cubic, over log b where b_0 is above
    0) and respaces; the last round only measures. A ladder much too short underestimates Lambda, and grows
    over the rounds.

    Args:
      rng_key: one key.
      energy: ``energy(params, x) -> ()``.
      params: its parameters.
      positions: where n independent ensembles start, leaves ``(n, ...)``: each position on all rungs.
      make_kernel: as in ``parallel_tempering``; numbers that a ``functools.partial`` holds are traced.
      inverse_temperatures: the first ladder, ``(R,)``, from the hottest b_0, which is kept, to 1.
      reference: E_ref(reference_params, x), or None.
      reference_params: its parameters.
      target_swap_rate: a*, strictly between 0 and 1; it sets R. The most round trips for the work are had
        near 0.5.
      num_temperatures: R itself, at least 2; ``target_swap_rate`` is then not used.
      num_rounds: pilot rounds, at least 2. Each new R compiles once.
      num_steps: steps of parallel tempering in a round, at least 2.
      num_steps_per_swap: as in ``parallel_tempering``.
      parameters_at: ``b () -> {name: value}``, the keyword arguments of ``make_kernel`` at inverse
        temperature b, as ``lambda b: {"step_size": 0.1 / b}``; recognised by identity.

    Returns:
      The ladder. Continue with ``parallel_tempering(..., ladder.inverse_temperatures, kernel_schedule=
      jax.vmap(parameters_at)(ladder.inverse_temperatures))`` from ``ladder.positions``.

    Raises:
      ValueError: if an argument is out of its range, or the replicas diverged (a swap rate is NaN).
      TypeError: if an argument is of another type.

    Example:
      >>> from jaxebm.samplers import sgld
      >>> energy = lambda params, x: 0.5 * params * jnp.sum(x**2)
      >>> ladder = tune_ladder(
      ...     jax.random.key(0), energy, jnp.array(1.0), jnp.zeros((50, 2)), sgld, jnp.array([0.1, 0.6, 1.0]),
      ...     num_temperatures=3, parameters_at=lambda b: {"step_size": 0.5 / b})
      >>> abs(round(float(jnp.log10(ladder.inverse_temperatures[1])), 1))  # midway: the optimum is geometric
      0.5

    Reference:
      Syed et al. 2022 (arXiv:1905.02939), sections 5.1 to 5.3, algorithm 4.
    """
    checks.rng_key("rng_key", rng_key)
    check_energies(energy, params, reference, reference_params)
    check_ladder(inverse_temperatures, reference)
    num_chains = checks.batch_length("positions", positions)
    checks.real_arrays("positions", positions)
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.fraction("target_swap_rate", target_swap_rate)
    checks.integer("num_rounds", num_rounds, 2)
    checks.integer("num_steps", num_steps, 2)
    if num_temperatures is not None:
        checks.integer("num_temperatures", num_temperatures, 2)
    if parameters_at is not None:
        checks.function("parameters_at", parameters_at, "b")
    first = jnp.asarray(inverse_temperatures, dtype=float)
    parallel_tempering(  # the checks of the rest, while the numbers can be seen
        functools.partial(energy, params),
        make_kernel,
        first,
        reference=None if reference is None else functools.partial(reference, reference_params),
        num_steps_per_swap=num_steps_per_swap,
        kernel_schedule=_parameters_along(parameters_at, first),
    )
    static, numbers = unbind(make_kernel)

    def run(index: int, ladder: np.ndarray, replicas: Position) -> tuple[Array, Array, Position]:
        with checks.shapes_noted(params=params, reference_params=reference_params, positions=positions):
            swap_rates, round_trips, replicas = _pilot(
                jax.random.split(jax.random.fold_in(rng_key, index), num_chains),
                (params, reference_params, numbers),
                jnp.asarray(ladder, dtype=float),
                replicas,
                energies=(energy, reference),
                kernel=static,
                parameters_at=parameters_at,
                num_steps=(num_steps, num_steps_per_swap),
            )
        if not np.all(np.isfinite(swap_rates)):
            raise ValueError(
                f"The replicas diverged: swap rates {swap_rates} at inverse temperatures {ladder}. A smaller "
                f"step size, or a reference that confines the hot end, is needed, if the energy itself is "
                f"nowhere NaN."
            )
        return swap_rates, round_trips, replicas

    ladder = np.asarray(inverse_temperatures, np.float64)
    replicas = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], ladder.size, axis=1), positions)
    swap_rates, round_trips, replicas = run(0, ladder, replicas)
    for index in range(1, num_rounds):
        rejection = 1 - np.asarray(swap_rates, np.float64)
        needed = 1 + max(1, int(np.ceil(rejection.sum() / (1 - target_swap_rate))))
        spaced = _respaced(ladder, rejection, num_temperatures or needed)
        nearest = np.argmin(np.abs(spaced[:, None] - ladder), axis=1)
        replicas = jax.tree.map(lambda leaf, rungs=nearest: leaf[:, rungs], replicas)
        ladder = spaced
        swap_rates, round_trips, replicas = run(index, ladder, replicas)
    return Ladder(
        jnp.asarray(ladder, dtype=float), swap_rates, jnp.sum(1 - swap_rates), round_trips, replicas
    )


@functools.partial(jax.jit, static_argnames=("energies", "kernel", "parameters_at", "num_steps"))
def _pilot(
    rng_keys: Array,
    parameters: tuple[Params, Params, dict[str, Any]],
    ladder: Array,
    replicas: Position,
    *,
    energies: tuple[EnergyFn, EnergyFn | None],
    kernel: StaticKernel,
    parameters_at: Callable[[Array], Mapping[str, Any]] | None,
    num_steps: tuple[int, int],
) -> tuple[Array, Array, Position]:
    """Swap rates (R - 1,), round trips (), and where the replicas ended."""
    params, reference_params, numbers = parameters
    energy, reference = energies

    def make_kernel(target: Target, **varying: Any) -> Kernel:
        return kernel.bind(target, numbers, varying)

    tempering = parallel_tempering(
        functools.partial(energy, params),
        make_kernel,
        ladder,
        reference=None if reference is None else functools.partial(reference, reference_params),
        num_steps_per_swap=num_steps[1],
        kernel_schedule=_parameters_along(parameters_at, ladder),
    )
    states, acceptance = run_chains(
        rng_keys, tempering, replicas, num_steps[0], collect=lambda state, info: info.swap_acceptance
    )
    settled = acceptance[:, num_steps[0] // 2 :]
    return jnp.mean(settled, axis=(0, 1)), jnp.mean(states.round_trips * 1.0), states.position


def _parameters_along(
    parameters_at: Callable[[Array], Mapping[str, Any]] | None, ladder: Array
) -> Mapping[str, Any] | None:
    if parameters_at is None:
        return None
    along = jax.vmap(parameters_at)(ladder)
    checks.instance("parameters_at(b)", along, Mapping)
    return along


def _respaced(ladder: np.ndarray, rejection: np.ndarray, num_temperatures: int) -> np.ndarray:
    """The ladder of equal shares of the barrier."""
    from scipy.interpolate import PchipInterpolator

    # A pair that is never refused would give two knots at one place.
    barrier = np.concatenate([[0.0], np.cumsum(np.maximum(rejection, 1e-4))])
    shares = np.linspace(0.0, barrier[-1], num_temperatures)
    if ladder[0] > 0:  # over log b the barrier is nearly straight, so few rounds suffice
        spaced = np.exp(PchipInterpolator(barrier, np.log(ladder))(shares))
    else:
        spaced = PchipInterpolator(barrier, ladder)(shares)
    spaced[0], spaced[-1] = ladder[0], ladder[-1]
    return spaced
