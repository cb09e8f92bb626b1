"""Parallel tempering: replicas of the chain at rising temperatures, which exchange their places.

A hot replica crosses barriers that a chain of the target would not cross, and its positions move down the
ladder by swaps that leave the joint distribution of all replicas invariant.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.samplers.binding import bind_once, check_kernel_schedule
from jaxebm.samplers.chains import run_chain
from jaxebm.samplers.langevin import scalar_target
from jaxebm.samplers.paths import between
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["TemperingInfo", "TemperingState", "check_ladder", "parallel_tempering"]

_OUTWARD, _HOMEWARD = 1, 2
"""Legs of a round trip: from the hot end to the target, and back. 0 before the first visit to the hot end."""


class TemperingState(NamedTuple):
    """Where the replicas are, rung by rung; rung R - 1 is the target.

    Attributes:
      position: leaves ``(R, ...)``.
      parity: 0 or 1, ``()``: the next swaps are tried between rungs r and r + 1 for r of this parity.
      replica: ``(R,)``, which replica sits on each rung; replicas are named by the rung they started on.
      leg: ``(R,)``, of the replica on each rung: 1 on its way from rung 0 to rung R - 1, 2 on its way back, 0
        if it has not been at rung 0 yet.
      round_trips: ``()``, how many journeys 0 -> R - 1 -> 0 have been completed, by all replicas together.
    """

    position: Position
    parity: Array
    replica: Array
    leg: Array
    round_trips: Array


class TemperingInfo(NamedTuple):
    """What one step saw.

    Attributes:
      swap_acceptance: ``(R - 1,)``, the probability with which rungs r and r + 1 would exchange, after the
        moves. It is given for all pairs, tried or not: their mean over steps is the swap rate. NaN where an
        energy is NaN: such a pair is not exchanged, and the mean over steps is NaN.
      swapped: ``(R - 1,)``, which pairs were exchanged.
      energy: E of the target at the state that each rung *ends* with, ``(R,)``.
      acceptance_rate: the mean ``acceptance_rate`` of the moves on each rung, ``(R,)``; None if the infos of
        the kernel have none.
    """

    swap_acceptance: Array
    swapped: Array
    energy: Array
    acceptance_rate: Array | None


def parallel_tempering(
    target: Target,
    make_kernel: Callable[..., Kernel],
    inverse_temperatures: Array,
    *,
    reference: Target | None = None,
    num_steps_per_swap: int = 1,
    kernel_schedule: Mapping[str, Any] | None = None,
) -> Kernel:
    r"""Moves R replicas, one at each inverse temperature, and then lets neighbours exchange places.

    .. math:: E_r(x) = b_r E(x) + (1 - b_r) E_{ref}(x), \qquad
              \min\{1, e^{(b_{r+1} - b_r) (D(x_{r+1}) - D(x_r))}\}, \quad D = E - E_{ref}

    The swaps are deterministic even-odd: pairs (0, 1), (2, 3), ... in one step, (1, 2), (3, 4), ... in the
    next. Unlike swaps of randomly chosen pairs, they carry replicas along the ladder rather than let them
    diffuse. With kernels that leave their own exp(-E_r) invariant (``mala``, ``hmc``, ``nuts``), the last
    rung samples the target exactly; with ``sgld`` each rung has that kernel's bias of the step.

    An energy of +inf is a density of 0: such a state goes to a hotter rung where it can, and two of them do
    not exchange. Positions keep their dtypes; those of 16 bits are rounded at each step (``RoundedState``).

    Replicas of one ensemble are not independent samples. Standard errors of their means come from independent
    ensembles, and from few of those they are too small: with 16, use Student's t with 15 degrees of freedom.

    Args:
      target: position -> energy ``()``, of one replica.
      make_kernel: ``make_kernel(target) -> Kernel``, called once for all rungs, b traced (``vmap``). A
        kernel of something else than a target, as ``hopfield.glauber`` is of a memory, takes its temperature
        from the schedule: ``lambda target, temperature: glauber(memory, temperature)`` with
        ``{"temperature": 1 / b}``.
      inverse_temperatures: b, ``(R,)``, R at least 2, rising from b_0 to 1. b_0 must be above 0 without a
        reference and may be 0 with one.
      reference: E_ref, what the hot end tends to, position -> ``()``; None means 0, so that the hot replicas
        roam wherever the energy is low enough. Give one where exp(-b_0 E) has no finite mass.
      num_steps_per_swap: moves of each replica before each round of swaps, at least 1.
      kernel_schedule: keyword arguments that change with the temperature, leaves ``(R, ...)``: on rung r the
        kernel is ``make_kernel(target, **{name: value[r]})``, as ``{"step_size": 0.1 / b}``.

    Returns:
      A kernel over ``TemperingState`` and ``TemperingInfo``. Its position has leaves ``(R, ...)``: it runs
      through ``run_chain``, ``run_chains`` and ``sample`` (positions ``(n, R, ...)``) as any other, and
      ``[-1]`` of it is the sample. The state of the moves is initialised before each round.

    Raises:
      ValueError: if the ladder does not rise to 1, a shape is another, num_steps_per_swap is not a positive
        integer, the kernel refuses its parameters, or an energy is not a scalar.
      TypeError: if an argument is of another type.

    Example:
      >>> from jaxebm.samplers import mala, sample
      >>> energy = lambda params, x: params * jnp.sum((x**2 - 1) ** 2)
      >>> b, ones = jnp.array([0.1, 0.3, 1.0]), jnp.ones((100, 3, 1))
      >>> positions = sample(
      ...     jax.random.key(0), energy, jnp.array(8.0), ones, 100, kernel=parallel_tempering,
      ...     make_kernel=mala, inverse_temperatures=b, kernel_schedule={"step_size": 0.02 / b})
      >>> positions.shape, bool(abs(jnp.mean(positions[:, -1] > 0) - 0.5) < 0.2)
      ((100, 3, 1), True)

    Reference:
      Geyer 1991; Syed, Bouchard-Cote, Deligiannidis & Doucet 2022, Non-reversible parallel tempering, JRSS B
      84 (arXiv:1905.02939), algorithm 1.
    """
    energy_of = scalar_target(target)
    reference_of = None if reference is None else scalar_target(reference, "reference")
    check_ladder(inverse_temperatures, reference)
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.positive_integer("num_steps_per_swap", num_steps_per_swap)
    num_rungs = np.shape(inverse_temperatures)[0]
    varying = check_kernel_schedule(kernel_schedule, num_rungs, "inverse_temperatures")
    varying = jax.tree.map(jnp.asarray, varying)
    _check_kernel(make_kernel, target, varying, num_rungs)
    ladder = jnp.asarray(inverse_temperatures, dtype=float)

    def ends(x: Position) -> tuple[Array, Array]:
        """E and D = E - E_ref; an energy may be bfloat16, or the constant 0."""
        energy = jnp.asarray(energy_of(x), ladder.dtype)
        if reference_of is None:
            return energy, energy
        return energy, energy - jnp.asarray(reference_of(x), ladder.dtype)

    def move(rng_key: Array, b: Array, parameters: dict[str, Any], x: Position) -> tuple[Position, Any]:
        def tempered(x: Position) -> Array:
            energy = jnp.asarray(energy_of(x), b.dtype)
            if reference_of is None:
                return b * energy
            return between(b, jnp.asarray(reference_of(x), b.dtype), energy)

        kernel = make_kernel(tempered, **parameters)
        state, rates = run_chain(rng_key, kernel, x, num_steps_per_swap, collect=_acceptance_rate)
        return state.position, None if rates is None else jnp.mean(rates)

    def init(position: Position, rng_key: Array | None = None) -> TemperingState:
        del rng_key
        checks.batch_of("position", position, num_rungs, "one replica for each of inverse_temperatures")
        rungs = jnp.arange(num_rungs)
        leg = jnp.where(rungs == 0, _OUTWARD, 0)
        zero = jnp.zeros((), rungs.dtype)
        return TemperingState(jax.tree.map(jnp.asarray, position), zero, rungs, leg, zero)

    def step(rng_key: Array, state: TemperingState) -> tuple[TemperingState, TemperingInfo]:
        checks.rng_key("rng_key", rng_key)
        moves_key, swaps_key = jax.random.split(rng_key)
        rng_keys = jax.random.split(moves_key, num_rungs)
        position, acceptance_rate = jax.vmap(move)(rng_keys, ladder, varying, state.position)
        energy, difference = jax.vmap(ends)(position)

        gain = jnp.diff(ladder) * jnp.diff(difference)
        # inf - inf is no number, but two states of density 0 have nothing to exchange.
        gain = jnp.where(jnp.isposinf(difference[1:]) & jnp.isposinf(difference[:-1]), -jnp.inf, gain)
        probability = jnp.exp(jnp.minimum(0.0, gain))
        tried = jnp.arange(num_rungs - 1) % 2 == state.parity
        # A probability that is NaN compares as false: no swap, and the NaN shows in the info.
        swapped = tried & (jax.random.uniform(swaps_key, probability.shape) < probability)
        exchanged = swapped.astype(state.replica.dtype)
        source = jnp.arange(num_rungs) + jnp.pad(exchanged, (0, 1)) - jnp.pad(exchanged, (1, 0))

        leg = state.leg[source]
        came_home = leg[0] == _HOMEWARD
        leg = leg.at[0].set(_OUTWARD).at[-1].set(jnp.where(leg[-1] == _OUTWARD, _HOMEWARD, leg[-1]))
        state = TemperingState(
            position=jax.tree.map(lambda leaf: leaf[source], position),
            parity=1 - state.parity,
            replica=state.replica[source],
            leg=leg,
            round_trips=state.round_trips + came_home.astype(state.round_trips.dtype),
        )
        return state, TemperingInfo(probability, swapped, energy[source], acceptance_rate)

    return Kernel(init, step)


def _acceptance_rate(state: Any, info: Any) -> Array | None:
    del state
    return getattr(info, "acceptance_rate", None)


def check_ladder(inverse_temperatures: Any, reference: Any) -> None:
    """Raises ``ValueError`` unless these rise strictly to 1, from above 0 or, with a reference, from 0.

    Args:
      inverse_temperatures: ``(R,)``, R at least 2; traced values pass.
      reference: None, or a function.

    Raises:
      ValueError: if not.
      TypeError: if they are no numbers, or the reference is neither.

    Example:
      >>> check_ladder([0.5, 1.0], None)
    """
    name = "inverse_temperatures"
    checks.array(name, inverse_temperatures)
    if reference is not None and not callable(reference):
        raise TypeError(f"reference is a {type(reference).__name__}: reference must be a function or None.")
    shape = np.shape(inverse_temperatures)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"{name} has shape {shape}: (R,) with at least two temperatures is needed.")
    if checks.is_traced(inverse_temperatures):
        return
    checks.finite(name, inverse_temperatures)
    b = np.asarray(inverse_temperatures, np.float64)
    if not (np.all(np.diff(b) > 0) and b[0] >= 0 and abs(b[-1] - 1) < 1e-6):
        raise ValueError(f"{name}={b}: it must rise strictly, from 0 or above to 1, the target.")
    if b[0] == 0 and reference is None:
        raise ValueError(f"{name}={b} begins at 0, where there is no energy at all: give a reference.")


def check_energies(energy: Any, params: Any, reference: Any, reference_params: Any) -> None:
    """Raises ``TypeError`` unless these are energies ``(params, x)`` and parameters; no reference is None."""
    checks.function("energy", energy, "params", "x")
    checks.arrays("params", params)
    if reference is not None:
        checks.function("reference", reference, "reference_params", "x")
    checks.arrays("reference_params", reference_params)


def _check_kernel(
    make_kernel: Callable[..., Kernel], target: Target, varying: dict[str, Any], num_rungs: int
) -> None:
    """Lets the kernel check its parameters on every rung, where they can be seen."""
    if any(checks.is_traced(leaf) for leaf in jax.tree.leaves(varying)):
        return
    rungs = jax.tree.map(np.asarray, varying)
    for rung in range(num_rungs if varying else 1):
        bind_once(make_kernel, target, jax.tree.map(lambda leaf, rung=rung: leaf[rung], rungs))
