"""Exact samplers: MALA, HMC and NUTS of BlackJAX, with this package's protocol (log density = -energy).

States and infos are BlackJAX's: every state has ``position``, every info ``acceptance_rate``.

BlackJAX is imported where it is first used: importing it starts JAX's backend, and a user of this package may
still have to choose devices or call ``jax.distributed.initialize``.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.chains import run_chain
from jaxebm.samplers.langevin import scalar_target
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["hmc", "mala", "nuts", "warm_up"]


def mala(target: Target, step_size: Array | float) -> Kernel:
    r"""The Metropolis-adjusted Langevin algorithm: a Langevin step, then accepted or rejected.

    .. math:: x' = x - \epsilon\, \partial E / \partial x + \sqrt{2 \epsilon}\, n, \qquad
              \min\{1, e^{E(x) - E(x')} q(x | x') / q(x' | x)\}

    Args:
      target: position -> energy ``()``.
      step_size: epsilon > 0, ``()``, the same number as ``sgld``'s.

    Returns:
      A kernel over BlackJAX's ``MALAState`` and ``MALAInfo`` (``acceptance_rate``, ``is_accepted``). Its
      state caches the energy and gradient, so begin from a position, not a state, whenever the target has
      changed.

    Raises:
      ValueError: if the step is not positive or the energy not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = mala(lambda x: 0.5 * jnp.sum(x**2), step_size=0.1)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3)))
      >>> state.position.shape, bool(info.acceptance_rate > 0.5)
      ((3,), True)

    Reference:
      Roberts & Tweedie 1996, Exponential convergence of Langevin distributions and their discrete
      approximations; blackjax.mala.
    """
    checks.positive("step_size", step_size)
    log_density = _log_density(target)
    import blackjax

    transition: Any = blackjax.mala.build_kernel()

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        return transition(rng_key, state, log_density, step_size)

    return Kernel(_init(blackjax.mala.init, log_density), step)


def hmc(
    target: Target,
    step_size: Array | float,
    num_integration_steps: Array | int,
    inverse_mass_matrix: Array | None = None,
) -> Kernel:
    r"""Hamiltonian Monte Carlo with leapfrog trajectories of fixed length.

    .. math:: H(x, p) = E(x) + p^T M^{-1} p / 2, \qquad p \sim N(0, M)

    Args:
      target: position -> energy ``()``.
      step_size: leapfrog step > 0, ``()``. One step of size h is a MALA step of epsilon = h^2 / 2.
      num_integration_steps: leapfrog steps in a trajectory, at least 1; it may be traced.
      inverse_mass_matrix: M^-1 over the flattened position of d numbers (``jax.flatten_util.ravel_pytree``
        order): ``(d,)`` a diagonal, ``(d, d)`` dense, ``None`` the identity.

    Returns:
      A kernel over BlackJAX's ``HMCState`` and ``HMCInfo``.

    Raises:
      ValueError: if the step or the number of steps is not positive, if the mass matrix has another shape, or
        if the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = hmc(lambda x: 0.5 * jnp.sum(x**2), step_size=0.5, num_integration_steps=3)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3)))
      >>> state.position.shape, bool(info.acceptance_rate > 0.5)
      ((3,), True)

    Reference:
      Neal 2011, MCMC using Hamiltonian dynamics (arXiv:1206.1901); blackjax.hmc.
    """
    checks.positive("step_size", step_size)
    checks.positive("num_integration_steps", num_integration_steps)
    log_density = _log_density(target)
    import blackjax

    transition: Any = blackjax.hmc.build_kernel()

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        mass = _inverse_mass(inverse_mass_matrix, state.position)
        return transition(rng_key, state, log_density, step_size, mass, num_integration_steps)

    return Kernel(_init(blackjax.hmc.init, log_density), step)


def nuts(
    target: Target,
    step_size: Array | float,
    inverse_mass_matrix: Array | None = None,
    max_num_doublings: int = 10,
) -> Kernel:
    """The no-U-turn sampler: Hamiltonian Monte Carlo that chooses the length of each trajectory itself.

    Args:
      target: position -> energy ``()``.
      step_size: leapfrog step > 0, ``()``.
      inverse_mass_matrix: M^-1 over the flattened position, as in ``hmc``.
      max_num_doublings: a trajectory has at most 2**max_num_doublings leapfrog steps. It sets array shapes,
        so it is a Python integer, never traced.

    Returns:
      A kernel over BlackJAX's ``HMCState`` and ``NUTSInfo``. Under ``vmap`` all chains wait for the longest
      trajectory.

    Raises:
      ValueError: if the step is not positive, if max_num_doublings is not an integer of at least 1, if the
        mass matrix has another shape, or if the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = nuts(lambda x: 0.5 * jnp.sum(x**2), step_size=0.5)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3)))
      >>> state.position.shape, bool(info.acceptance_rate > 0.5)
      ((3,), True)

    Reference:
      Hoffman & Gelman 2014, The no-U-turn sampler; Betancourt 2017 (arXiv:1701.02434), app. A; blackjax.nuts.
    """
    checks.positive("step_size", step_size)
    checks.positive_integer("max_num_doublings", max_num_doublings)
    log_density = _log_density(target)
    import blackjax

    transition: Any = blackjax.nuts.build_kernel()

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        mass = _inverse_mass(inverse_mass_matrix, state.position)
        return transition(rng_key, state, log_density, step_size, mass, max_num_doublings)

    return Kernel(_init(blackjax.nuts.init, log_density), step)


def _log_density(target: Target) -> Target:
    energy = scalar_target(target)
    return lambda position: -energy(position)


def _init(blackjax_init: Any, log_density: Target) -> Any:
    def init(position: Position, rng_key: Array | None = None) -> Any:
        del rng_key
        checks.floating("position", position)
        return blackjax_init(jax.tree.map(jnp.asarray, position), log_density)

    return init


def _inverse_mass(inverse_mass_matrix: Array | None, position: Position) -> Array:
    leaves = jax.tree.leaves(position)
    dimension = sum(leaf.size for leaf in leaves)
    if inverse_mass_matrix is None:
        return jnp.ones(dimension, jnp.result_type(*leaves))
    shape = jnp.shape(inverse_mass_matrix)
    if shape not in ((dimension,), (dimension, dimension)):
        raise ValueError(
            f"inverse_mass_matrix has shape {shape}: the position holds {dimension} numbers, so "
            f"({dimension},) for a diagonal, ({dimension}, {dimension}) for a dense matrix or None for the "
            f"identity is needed."
        )
    return jnp.asarray(inverse_mass_matrix)


_TARGET_ACCEPTANCE = {"mala": 0.574, "hmc": 0.8, "nuts": 0.8}


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
    """Tunes the kernel of one chain to a target, and moves the chain to the typical set of the target.

    HMC and NUTS: Stan's schedule of windows, which adapts the step size and the mass matrix. MALA: dual
    averaging of the step size. No history is kept. Samples drawn while tuning are not samples of the target,
    so none are returned.

    Args:
      rng_key: one key.
      target: position -> energy ``()``.
      position: one starting position, any pytree of floating-point arrays.
      algorithm: ``"mala"``, ``"hmc"`` or ``"nuts"``.
      num_steps: steps of adaptation, at least 1; several hundred are usual.
      target_acceptance_rate: strictly between 0 and 1; ``None`` means 0.574 for MALA (the optimum in high
        dimension) and 0.8 for HMC and NUTS.
      dense_mass_matrix: estimate the full covariance rather than its diagonal (HMC and NUTS).
      **parameters: further arguments of the kernel, such as ``num_integration_steps`` for HMC.

    Returns:
      ``(kernel_parameters, position)``: a dictionary such that ``nuts(target, **kernel_parameters)`` is the
      tuned kernel (``step_size``; ``inverse_mass_matrix`` for HMC and NUTS; and ``parameters``), and the last
      position.

    Raises:
      ValueError: if the algorithm is unknown, a number is out of its range, HMC lacks num_integration_steps,
        or a mass matrix is requested for MALA.

    Example:
      >>> target = lambda x: 0.5 * jnp.sum((x / jnp.array([1.0, 10.0])) ** 2)
      >>> parameters, position = warm_up(jax.random.key(0), target, jnp.zeros(2), num_steps=200)
      >>> sorted(parameters), parameters["inverse_mass_matrix"].shape, position.shape
      (['inverse_mass_matrix', 'step_size'], (2,), (2,))

    Reference:
      Hoffman & Gelman 2014, algorithm 5 (dual averaging); Stan's reference manual, "HMC algorithm
      parameters"; Roberts & Rosenthal 1998 (0.574).
    """
    if algorithm not in _TARGET_ACCEPTANCE:
        raise ValueError(f"algorithm={algorithm!r}: one of {sorted(_TARGET_ACCEPTANCE)} is needed.")
    checks.positive_integer("num_steps", num_steps)
    checks.floating("position", position)
    rate = _TARGET_ACCEPTANCE[algorithm] if target_acceptance_rate is None else target_acceptance_rate
    if not 0 < rate < 1:
        raise ValueError(
            f"target_acceptance_rate={rate!r}: target_acceptance_rate must be strictly between 0 and 1."
        )

    import blackjax
    from blackjax.adaptation.base import get_filter_adapt_info_fn
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    if algorithm == "mala":
        if dense_mass_matrix or parameters:
            raise ValueError(
                f"MALA has only a step size: dense_mass_matrix and {sorted(parameters)} do not apply to it."
            )
        run = jax.jit(partial(run_chain, kernel=_adaptive_mala(target, rate), num_steps=num_steps))
        state, _ = run(rng_key, position=position)
        _, _, final = dual_averaging_adaptation(rate)
        return {"step_size": final(state.adaptation)}, state.position

    if algorithm == "hmc" and "num_integration_steps" not in parameters:
        raise ValueError("algorithm='hmc' needs num_integration_steps=..., the length of its trajectories.")
    adaptation: Any = blackjax.window_adaptation(
        getattr(blackjax, algorithm),
        _log_density(target),
        is_mass_matrix_diagonal=not dense_mass_matrix,
        target_acceptance_rate=rate,
        adaptation_info_fn=get_filter_adapt_info_fn(),  # the default keeps every state of the run
        **parameters,
    )
    results, _ = adaptation.run(rng_key, jax.tree.map(jnp.asarray, position), num_steps)
    return dict(results.parameters), results.state.position


class _AdaptiveState(NamedTuple):
    chain: Any
    adaptation: Any

    @property
    def position(self) -> Position:
        return self.chain.position


def _adaptive_mala(target: Target, target_acceptance_rate: float) -> Kernel:
    """MALA whose state carries the dual averaging of its own step size, so that ``run_chain`` can run it."""
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    start, update, _ = dual_averaging_adaptation(target_acceptance_rate)
    first_step_size = jnp.asarray(1.0)

    def init(position: Position, rng_key: Array | None = None) -> _AdaptiveState:
        return _AdaptiveState(mala(target, first_step_size).init(position, rng_key), start(first_step_size))

    def step(rng_key: Array, state: _AdaptiveState) -> tuple[_AdaptiveState, Any]:
        chain, info = mala(target, jnp.exp(state.adaptation.log_step_size)).step(rng_key, state.chain)
        return _AdaptiveState(chain, update(state.adaptation, info.acceptance_rate)), info

    return Kernel(init, step)
