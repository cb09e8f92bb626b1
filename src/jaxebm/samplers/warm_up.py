"""Tuning of the exact kernels: step size and mass matrix, of one chain or of many.

Stan's schedule: a first phase adapts the step size alone, windows of doubling length estimate the mass matrix
from their own states, a last phase adapts the step size to the final matrix. Divergences are counted in the
last phase, when all else is settled.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cholesky, solve_triangular

from jaxebm import checks
from jaxebm.samplers.langevin import scalar_target
from jaxebm.samplers.metropolis import check_position, hmc, mala, nuts, widest
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["WarmUp", "warm_up", "warm_up_chains"]

_KERNELS: dict[str, Callable[..., Kernel]] = {"mala": mala, "hmc": hmc, "nuts": nuts}
_TARGET_ACCEPTANCE = {"mala": 0.574, "hmc": 0.8, "nuts": 0.8}
_MANY_DIVERGENCES = 0.1
"""A tuned kernel diverges in fewer transitions, unless the target has places too narrow for its step."""


class WarmUp(NamedTuple):
    """Tuned kernels, and how they did in the last L steps, in which only the step size still changed.

    Attributes:
      parameters: such that ``nuts(target, **parameters)`` is the tuned kernel: ``step_size``,
        ``inverse_mass_matrix`` and the further arguments. ``step_size`` ``()`` if pooled; else both have a
        leading axis ``(n,)``.
      positions: where the chains are, leaves ``(n, ...)``.
      acceptance_rate: mean over the last L steps, ``(n,)``. A chain near 0 is stuck.
      num_divergent: divergent transitions of each chain among the last L, ``(n,)``: ``is_divergent`` of HMC
        and NUTS (the trajectory lost the energy by more than 1000), an acceptance of exactly 0 of MALA.
      num_transitions: L, half of the last phase: its first steps are too long on purpose.
    """

    parameters: dict[str, Any]
    positions: Position
    acceptance_rate: Array
    num_divergent: Array
    num_transitions: int


def warm_up(
    rng_key: Array,
    target: Target,
    position: Position,
    *,
    algorithm: Literal["mala", "hmc", "nuts"] = "nuts",
    num_steps: int = 1000,
    target_acceptance_rate: float | None = None,
    dense_mass_matrix: bool = False,
    **parameters: Any,
) -> tuple[dict[str, Any], Position]:
    r"""Tunes the kernel of one chain to a target, and moves the chain to the typical set of the target.

    .. math:: M^{-1} = \mathrm{Cov}(x) \text{ (HMC, NUTS)}, \qquad
              M^{-1}_{ii} = \sqrt{\mathrm{Var}(x_i) / \mathrm{Var}(\partial_i E)}, \quad
              M^{-1} \mathrm{Cov}(\partial E) M^{-1} = \mathrm{Cov}(x) \text{ if dense (MALA)}

    Step sizes by dual averaging; the matrix from the states of each window, which for HMC and NUTS is shrunk
    towards 0.001 as in Stan. MALA's matrix is exact on a Gaussian (its diagonal on one of independent
    coordinates) before the chain has mixed. No history is kept. Samples drawn while tuning are not samples of
    the target, so none are returned.

    One tuned kernel is right where this chain has been. Chains that start elsewhere may diverge at its step
    size: tune many chains by ``warm_up_chains``.

    Args:
      rng_key: one key.
      target: position -> energy ``()``.
      position: one starting position, any pytree of floating-point arrays, of finite energy and gradient.
      algorithm: ``"mala"``, ``"hmc"`` or ``"nuts"``.
      num_steps: steps of adaptation, at least 1; several hundred are usual. Below 20 the mass matrix is not
        adapted.
      target_acceptance_rate: strictly between 0 and 1; ``None`` means 0.574 for MALA (the optimum in high
        dimension) and 0.8 for HMC and NUTS.
      dense_mass_matrix: estimate the full covariance rather than a diagonal.
      **parameters: further arguments of the kernel, such as ``num_integration_steps`` for HMC.

    Returns:
      ``(kernel_parameters, position)``: a dictionary such that ``nuts(target, **kernel_parameters)`` is the
      tuned kernel (``step_size``, ``inverse_mass_matrix`` and ``parameters``), and the last position.

    Raises:
      ValueError: if the algorithm is unknown, a number is out of its range, HMC lacks num_integration_steps,
        the energy or its gradient is not finite at the position, or no step size was found. Under ``jit``
        the last two cannot be raised: the step size is then NaN, or the 0 or infinity that was found.

    Warns:
      UserWarning: if more than a tenth of the last transitions diverged.

    Example:
      >>> target = lambda x: 0.5 * jnp.sum((x / jnp.array([1.0, 10.0])) ** 2)
      >>> parameters, position = warm_up(jax.random.key(0), target, jnp.zeros(2), num_steps=200)
      >>> sorted(parameters), parameters["inverse_mass_matrix"].shape, position.shape
      (['inverse_mass_matrix', 'step_size'], (2,), (2,))

    Reference:
      Hoffman & Gelman 2014, algorithm 5 (dual averaging); Stan's reference manual, "HMC algorithm
      parameters"; Roberts & Rosenthal 1998 (0.574); Seyboldt,
      Carlson & Carpenter 2026 (arXiv:2603.18845; MALA's diagonal); blackjax.
    """
    checks.rng_key("rng_key", rng_key)
    check_position("position", position)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], position)
    problem = _Problem(target, algorithm, num_steps, target_acceptance_rate, dense_mass_matrix, parameters)
    result = _tuned(rng_key, problem, one, None, "position")
    return result.parameters, jax.tree.map(lambda leaf: leaf[0], result.positions)


def warm_up_chains(
    rng_key: Array,
    target: Target,
    positions: Position,
    *,
    pool: bool = True,
    algorithm: Literal["mala", "hmc", "nuts"] = "nuts",
    num_steps: int = 1000,
    target_acceptance_rate: float | None = None,
    dense_mass_matrix: bool = False,
    **parameters: Any,
) -> WarmUp:
    """Tunes the kernels of n chains of one target, and moves all of them to its typical set.

    Pooled: one step size, adapted to the mean acceptance of all chains, and one mass matrix from the states
    of all, better estimated by n times as many states; a kernel for ``run_chains`` and ``sample``. Not
    pooled: each chain is a ``warm_up`` of its own. Then run it by ``vmap``::

        run = lambda key, tuned, x: run_chain(key, nuts(target, **tuned), x, 100)
        jax.vmap(run)(keys, tuned.parameters, tuned.positions)

    Further arguments, such as ``num_integration_steps``, are of all chains: give them to the kernel there.

    Args:
      rng_key: one key.
      target: position -> energy ``()``, of one chain.
      positions: where the chains start, leaves ``(n, ...)``, each of finite energy and gradient.
      pool: one kernel for all chains, or one for each.
      algorithm: as in ``warm_up``.
      num_steps: steps of each chain, as in ``warm_up``.
      target_acceptance_rate: as in ``warm_up``; of the mean over chains if pooled.
      dense_mass_matrix: as in ``warm_up``.
      **parameters: as in ``warm_up``.

    Returns:
      The tuned parameters and the positions. ``num_divergent`` counts divergences.

    Raises:
      ValueError: as in ``warm_up``, naming the chains; or if the positions are ragged.

    Warns:
      UserWarning: if more than a tenth of the last transitions diverged, of all chains or of one.

    Example:
      >>> target = lambda x: 0.5 * jnp.sum((x / jnp.array([1.0, 10.0])) ** 2)
      >>> tuned = warm_up_chains(jax.random.key(0), target, jnp.zeros((8, 2)), num_steps=200)
      >>> tuned.positions.shape, tuned.parameters["inverse_mass_matrix"].shape, int(tuned.num_divergent.sum())
      ((8, 2), (2,), 0)

    Reference:
      As for ``warm_up``; Hoffman, Radul & Sountsov 2021 (chains that share what they adapt).
    """
    checks.rng_key("rng_key", rng_key)
    checks.boolean("pool", pool)
    checks.batch_length("positions", positions, "a batch of chains")
    checks.floating("positions", positions)
    problem = _Problem(target, algorithm, num_steps, target_acceptance_rate, dense_mass_matrix, parameters)
    return _tuned(rng_key, problem, jax.tree.map(jnp.asarray, positions), pool, "positions")


class _Problem:
    """The arguments that both functions share, checked."""

    def __init__(
        self,
        target: Target,
        algorithm: str,
        num_steps: int,
        target_acceptance_rate: float | None,
        dense_mass_matrix: bool,
        parameters: dict[str, Any],
    ) -> None:
        self.energy = scalar_target(target)
        checks.one_of("algorithm", algorithm, _KERNELS)
        checks.positive_integer("num_steps", num_steps)
        checks.boolean("dense_mass_matrix", dense_mass_matrix)
        rate = _TARGET_ACCEPTANCE[algorithm] if target_acceptance_rate is None else target_acceptance_rate
        checks.fraction("target_acceptance_rate", rate)
        if algorithm == "hmc" and "num_integration_steps" not in parameters:
            raise ValueError(
                "algorithm='hmc' needs num_integration_steps=..., the length of its trajectories."
            )
        for tuned in ("step_size", "inverse_mass_matrix"):
            if tuned in parameters:
                raise ValueError(f"{tuned}={parameters[tuned]!r}: it is what warm_up finds.")
        make_kernel = functools.partial(_KERNELS[algorithm], target, **parameters)
        try:
            make_kernel(step_size=1.0)  # the kernel's own checks
        except TypeError as error:
            error.add_note(f"These arguments were given to {algorithm}: {sorted(parameters)}.")
            raise
        self.algorithm = algorithm
        self.make_kernel = make_kernel
        self.num_steps = num_steps
        self.rate = rate
        self.dense = dense_mass_matrix
        self.by_gradients = algorithm == "mala"
        self.parameters = parameters


def _tuned(rng_key: Array, problem: _Problem, positions: Position, pool: bool | None, name: str) -> WarmUp:
    """``pool`` None: one chain, whose batch has length 1."""
    from blackjax.adaptation.staged_adaptation import build_schedule

    wide = widest(positions)
    with checks.shapes_noted(**{name: positions}):
        finite = jax.jit(jax.vmap(functools.partial(_start_is_finite, problem.energy)))(wide)
    _refuse_starts(finite, name, one=pool is None)
    # MALA's acceptance is of one step, not of a trajectory: dual averaging needs more of them.
    last_phase = max(50, 2 * problem.num_steps // 3) if problem.algorithm == "mala" else 50
    with jax.ensure_compile_time_eval():  # known, also under jit
        schedule = np.asarray(build_schedule(problem.num_steps, final_buffer_size=last_phase))
    ends = np.flatnonzero(schedule[:, 1])
    # Dual averaging begins the last phase with steps ten times too long: its first half is not counted.
    first_counted = ((ends[-1] + 1 if ends.size else 0) + problem.num_steps) // 2

    def run(rng_key: Array, positions: Position) -> tuple[Array, Array, Position, Array, Array]:
        return _adapt(rng_key, problem, positions, schedule, first_counted)

    if pool is False:
        num_chains = checks.batch_length(name, wide)
        chains = jax.tree.map(lambda leaf: leaf[:, None], wide)
        step_size, mass, *rest = jax.jit(jax.vmap(run))(jax.random.split(rng_key, num_chains), chains)
        last, rate, diverged = jax.tree.map(lambda leaf: leaf[:, 0], rest)
    else:
        step_size, mass, last, rate, diverged = jax.jit(run)(rng_key, wide)

    # Without a finite start nothing that follows has a meaning; under jit this cannot be raised.
    finite = finite if pool is False else jnp.all(finite)
    step_size = jnp.where(finite, step_size, jnp.nan)
    _refuse_step_sizes(step_size)
    num_transitions = problem.num_steps - int(first_counted)
    _warn_of_divergences(diverged, num_transitions)
    parameters = {"step_size": step_size, "inverse_mass_matrix": mass, **problem.parameters}
    last = jax.tree.map(lambda wide, leaf: wide.astype(leaf.dtype), last, positions)
    return WarmUp(parameters, last, rate, diverged, num_transitions)


def _start_is_finite(energy: Target, position: Position) -> Array:
    value, gradient = jax.value_and_grad(lambda x: jnp.asarray(energy(x), float))(position)
    return jnp.isfinite(value) & jnp.all(jnp.isfinite(ravel_pytree(gradient)[0]))


class _Tuner(NamedTuple):
    """What is adapted: the state of dual averaging, the step size that it gives, and the matrix."""

    averaging: Any
    step_size: Array
    matrix: Any


def _adapt(
    rng_key: Array, problem: _Problem, positions: Position, schedule: np.ndarray, first_counted: int
) -> tuple[Array, Array, Position, Array, Array]:
    """Step size, inverse mass matrix, positions, and of the last phase acceptance rates and divergences."""
    from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    num_chains = checks.batch_length("positions", positions)
    dimension = ravel_pytree(positions)[0].size // num_chains
    start_averaging, average, averaged = dual_averaging_adaptation(problem.rate)
    adapt_matrix = _ratio_adaptation if problem.by_gradients else mass_matrix_adaptation
    start_matrix, add, end_of_window = adapt_matrix(not problem.dense)

    def observe(matrix: Any, states: Any) -> Any:
        rows = (states.position, states.logdensity_grad) if problem.by_gradients else states.position
        rows = jax.vmap(lambda row: ravel_pytree(row)[0])(rows)
        if num_chains == 1:
            return add(matrix, rows[0])
        return jax.lax.scan(lambda matrix, row: (add(matrix, row), None), matrix, rows)[0]

    def next_window(tuner: _Tuner) -> _Tuner:
        averaging = start_averaging(averaged(tuner.averaging))
        return _Tuner(averaging, jnp.exp(averaging.log_step_size), end_of_window(tuner.matrix))

    def step(carry: tuple[Any, _Tuner, Array, Array], xs: tuple[Array, Array, Array]) -> tuple[Any, None]:
        states, tuner, rate_sum, num_divergent = carry
        step_key, (in_window, window_ends), counts = xs
        inverse_mass = tuner.matrix.inverse_mass_matrix
        kernel = problem.make_kernel(step_size=tuner.step_size, inverse_mass_matrix=inverse_mass)
        if num_chains == 1:  # no vmap over one chain: its conditionals would become selections
            state, info = kernel.step(step_key, jax.tree.map(lambda leaf: leaf[0], states))
            states, infos = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (state, info))
        else:
            states, infos = jax.vmap(kernel.step)(jax.random.split(step_key, num_chains), states)
        averaging = average(tuner.averaging, jnp.mean(infos.acceptance_rate))
        matrix = jax.lax.cond(in_window == 1, lambda: observe(tuner.matrix, states), lambda: tuner.matrix)
        tuner = _Tuner(averaging, jnp.exp(averaging.log_step_size), matrix)
        tuner = jax.lax.cond(window_ends == 1, next_window, lambda tuner: tuner, tuner)
        diverged = getattr(infos, "is_divergent", infos.acceptance_rate == 0)
        rate_sum += jnp.where(counts, infos.acceptance_rate, 0)
        return (states, tuner, rate_sum, num_divergent + (counts & diverged)), None

    tuner = _Tuner(start_averaging(1.0), jnp.asarray(1.0), start_matrix(dimension))
    states = jax.vmap(problem.make_kernel(step_size=1.0).init)(positions)
    zeros = jnp.zeros(num_chains, tuner.step_size.dtype)
    carry = jax.tree.map(jnp.asarray, (states, tuner, zeros, jnp.zeros(num_chains, int)))
    num_steps = len(schedule)
    counts = np.arange(num_steps) >= first_counted
    xs = (jax.random.split(rng_key, num_steps), jnp.asarray(schedule), jnp.asarray(counts))
    (states, tuner, rate_sum, num_divergent), _ = jax.lax.scan(step, carry, xs)
    rates = rate_sum / (num_steps - first_counted)
    return averaged(tuner.averaging), tuner.matrix.inverse_mass_matrix, states.position, rates, num_divergent


class _RatioState(NamedTuple):
    inverse_mass_matrix: Array
    moments: Any


def _ratio_adaptation(diagonal: bool) -> tuple[Any, Any, Any]:
    """BlackJAX's ``mass_matrix_adaptation``, by sd(x) / sd(gradient): a row is x and its gradient."""
    from blackjax.adaptation.mass_matrix import welford_algorithm

    start_moments, add, moments_of = welford_algorithm(diagonal)

    def start(dimension: int) -> _RatioState:
        mass = jnp.ones(dimension) if diagonal else jnp.eye(dimension)
        return _RatioState(mass, start_moments(2 * dimension))

    def update(state: _RatioState, row: Array) -> _RatioState:
        return state._replace(moments=add(state.moments, row))

    def end_of_window(state: _RatioState) -> _RatioState:
        previous = state.inverse_mass_matrix
        found, count, _ = moments_of(state.moments)
        dimension = previous.shape[0]
        variances = found if diagonal else jnp.diagonal(found)
        of_positions, of_gradients = jnp.split(variances, 2)
        ratio = jnp.sqrt(of_positions / of_gradients)
        # A coordinate that did not move, or whose gradient is constant, keeps its scale.
        old = previous if diagonal else jnp.diagonal(previous)
        mass = jnp.where(jnp.isfinite(ratio) & (ratio > 0), ratio, old)
        if not diagonal:
            dense = _dense_ratio(found[:dimension, :dimension], found[dimension:, dimension:], mass, count)
            mass = jnp.where(jnp.all(jnp.isfinite(dense)), dense, jnp.diag(mass))
        return _RatioState(mass, start_moments(2 * dimension))

    return start, update, end_of_window


def _dense_ratio(of_positions: Array, of_gradients: Array, scale: Array, count: Array) -> Array:
    """G with G Cov(gradient) G = Cov(x), both covariances shrunk a little towards their diagonals.

    In the coordinates x / sqrt(scale) both have the same diagonal, so that both are shrunk alike. With the
    Cholesky factor L of Cov(gradient): G = L^-T (L^T Cov(x) L)^1/2 L^-1.
    """
    root = jnp.sqrt(scale)
    positions = of_positions / root[:, None] / root[None, :]
    gradients = of_gradients * root[:, None] * root[None, :]
    common = jnp.diag(jnp.diagonal(positions)) / count
    factor = cholesky(gradients + common, lower=True)
    values, vectors = jnp.linalg.eigh(factor.T @ (positions + common) @ factor)
    half = solve_triangular(factor.T, vectors * jnp.maximum(values, 0.0)[None, :] ** 0.25, lower=False)
    return half @ half.T * root[:, None] * root[None, :]


def _refuse_starts(finite: Array, name: str, one: bool) -> None:
    if checks.is_traced(finite) or np.all(finite):
        return
    bad = np.flatnonzero(~np.asarray(finite))
    where = (
        f"at {name}"
        if one
        else f"at {bad.size} of {len(finite)} {name}, the first of them {bad[:5].tolist()}"
    )
    raise ValueError(
        f"The energy or its gradient is not finite {where}: no step from there could be accepted, and the "
        f"step size would go to 0. Start where both are finite."
    )


def _refuse_step_sizes(step_size: Array) -> None:
    if checks.is_traced(step_size):
        return
    steps = np.atleast_1d(np.asarray(step_size))
    usable = np.isfinite(steps) & (steps > np.finfo(steps.dtype).tiny)
    if not np.all(usable):
        chain = int(np.argmin(usable))
        which = f" of chain {chain}" if steps.size > 1 else ""
        raise ValueError(
            f"Dual averaging ended at step_size={steps[chain]:g}{which}: the target accepted no step, "
            f"however short (an energy that is not finite around the start, or not continuous), or all, "
            f"however long (no finite mass)."
        )


def _warn_of_divergences(num_divergent: Array, num_transitions: int) -> None:
    if checks.is_traced(num_divergent):
        return
    fraction = np.asarray(num_divergent) / num_transitions
    bad = np.flatnonzero(fraction > _MANY_DIVERGENCES)
    # Of fewer than 20 transitions one divergence would be many.
    enough = (num_transitions >= 20, fraction.size * num_transitions >= 20)
    if (enough[0] and bad.size) or (enough[1] and fraction.mean() > _MANY_DIVERGENCES):
        warnings.warn(
            f"{fraction.mean():.0%} of the last {num_transitions} transitions diverged after tuning "
            f"({bad.size} of {fraction.size} chains above {_MANY_DIVERGENCES:.0%}): the target has places "
            f"that are too narrow for the step size, so samples would be biased. Other coordinates (a "
            f"non-centred form), a higher target_acceptance_rate or more num_steps can help.",
            stacklevel=4,
        )
