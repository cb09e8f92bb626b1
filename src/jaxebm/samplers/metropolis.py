"""Exact samplers: MALA, HMC and NUTS of BlackJAX, with this package's protocol (log density = -energy).

States and infos are BlackJAX's: every state has ``position``, every info ``acceptance_rate``. BlackJAX's own
arithmetic needs one dtype throughout, that of ``jnp.result_type(float)``: float32, or float64 under
``jax_enable_x64``. Positions of that dtype are BlackJAX's. For narrower ones (16-bit; float32 under x64) the
chain runs in that dtype, inside a ``RoundedState``.

BlackJAX is imported where it is first used: importing it starts JAX's backend, and a user of this package may
still have to choose devices or call ``jax.distributed.initialize``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cholesky, solve_triangular

from jaxebm import checks
from jaxebm.samplers.langevin import scalar_target
from jaxebm.trees import dimension
from jaxebm.types import Array, Kernel, Position, Target

__all__ = ["RoundedState", "hmc", "mala", "nuts"]

_SCHEDULES = "Steps that change along a chain are given to run_annealed_chain."


class RoundedState(NamedTuple):
    """The state of ``mala``, ``hmc`` and ``nuts`` at a position narrower than BlackJAX's arithmetic.

    The chain that leaves exp(-E) invariant is the wide one: the energy is evaluated at its position, and
    nothing is rounded between its steps. To round after each step instead would break detailed balance by
    the rounding. That happens where a chain starts again from ``position`` at each step
    (``run_annealed_chain`` without ``keep_state``; ``parallel_tempering`` and ``sequential_monte_carlo`` at
    each of their rounds): the error of the law is then of the order of the rounding, 2^-9 of a position in
    bfloat16.

    Attributes:
      position: of ``chain``, rounded to the dtypes of the given position.
      chain: BlackJAX's state in float32, or float64 under x64.
    """

    position: Position
    chain: Any


def mala(target: Target, step_size: Array | float, inverse_mass_matrix: Array | None = None) -> Kernel:
    r"""The Metropolis-adjusted Langevin algorithm: a Langevin step, then accepted or rejected.

    .. math:: x' = x - \epsilon\, M^{-1} \partial E / \partial x + \sqrt{2 \epsilon}\, M^{-1/2} n, \qquad
              \min\{1, e^{E(x) - E(x')} q(x | x') / q(x' | x)\}

    With M^-1 near the covariance of the target all directions relax in about 1 / epsilon steps; without it
    the step suits the narrowest direction only. ``warm_up`` learns both.

    Args:
      target: position -> energy ``()``.
      step_size: epsilon > 0, ``()``, the same number as ``sgld``'s.
      inverse_mass_matrix: M^-1 over the flattened position, in units of position^2, as in ``hmc``.

    Returns:
      A kernel over BlackJAX's ``MALAState`` and ``MALAInfo`` (``acceptance_rate``, ``is_accepted``). Its
      state caches the energy and gradient, so begin from a position, not a state, whenever the target has
      changed. Positions of 16 bits are in a ``RoundedState``.

    Raises:
      ValueError: if the step is not positive, if the inverse mass matrix is not positive definite or has
        another shape, or if the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = mala(lambda x: 0.5 * jnp.sum(x**2), step_size=0.1)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3)))
      >>> state.position.shape, bool(info.acceptance_rate > 0.5)
      ((3,), True)

    Reference:
      Roberts & Tweedie 1996, Exponential convergence of Langevin distributions and their discrete
      approximations; Roberts & Stramer 2002, Langevin diffusions and Metropolis-Hastings algorithms (M);
      blackjax.mala.
    """
    _check_step_size(step_size)
    _check_inverse_mass(inverse_mass_matrix)
    log_density = _log_density(target)
    import blackjax

    transition: Any = blackjax.mala.build_kernel()

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        if inverse_mass_matrix is None:
            return transition(rng_key, state, log_density, step_size)
        mass = _inverse_mass(inverse_mass_matrix, state.position)
        return _preconditioned_langevin(rng_key, state, log_density, step_size, mass)

    return _kernel(blackjax.mala.init, step, log_density, inverse_mass_matrix)


def _preconditioned_langevin(
    rng_key: Array, state: Any, log_density: Target, step_size: Array | float, inverse_mass: Array
) -> tuple[Any, Any]:
    """``blackjax.mala`` in the coordinates y = M^1/2 x, written in x: a rejected step leaves x as it is."""
    from blackjax.mcmc.mala import MALAInfo, MALAState
    from blackjax.mcmc.proposal import compute_asymmetric_acceptance_ratio, static_binomial_sampling

    position, unravel = ravel_pytree(state.position)
    diagonal = inverse_mass.ndim == 1
    root = jnp.sqrt(inverse_mass) if diagonal else cholesky(inverse_mass, lower=True)

    def product(matrix: Array, vector: Array) -> Array:
        return matrix * vector if diagonal else jnp.matmul(matrix, vector, precision="highest")

    def transition_energy(start: Any, end: Any) -> Array:
        drift = product(inverse_mass, ravel_pytree(end.logdensity_grad)[0])
        shift = ravel_pytree(start.position)[0] - ravel_pytree(end.position)[0] - step_size * drift
        noise = shift / root if diagonal else solve_triangular(root, shift, lower=True)
        return -end.logdensity + 0.25 / step_size * jnp.sum(jnp.square(noise))

    proposal_key, accept_key = jax.random.split(rng_key)
    noise = jax.random.normal(proposal_key, position.shape, position.dtype)
    drift = product(inverse_mass, ravel_pytree(state.logdensity_grad)[0])
    moved = unravel(position + step_size * drift + jnp.sqrt(2 * step_size) * product(root, noise))
    proposal = MALAState(moved, *jax.value_and_grad(log_density)(moved))
    log_acceptance = compute_asymmetric_acceptance_ratio(transition_energy)(state, proposal)
    state, (accepted, rate, _) = static_binomial_sampling(accept_key, log_acceptance, state, proposal)
    return state, MALAInfo(rate, accepted)  # pyright: ignore[reportArgumentType]


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
        order): ``(d,)`` a diagonal, ``(d, d)`` dense, symmetric and positive definite, ``None`` the identity.

    Returns:
      A kernel over BlackJAX's ``HMCState`` and ``HMCInfo``, whose ``is_divergent`` marks trajectories that
      lost the energy by more than 1000. Positions of 16 bits are in a ``RoundedState``.

    Raises:
      ValueError: if the step or the number of steps is not positive, if the inverse mass matrix is not
        positive definite or has another shape, or if the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = hmc(lambda x: 0.5 * jnp.sum(x**2), step_size=0.5, num_integration_steps=3)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3)))
      >>> state.position.shape, bool(info.acceptance_rate > 0.5)
      ((3,), True)

    Reference:
      Neal 2011, MCMC using Hamiltonian dynamics (arXiv:1206.1901); blackjax.hmc.
    """
    _check_step_size(step_size)
    _check_num_integration_steps(num_integration_steps)
    _check_inverse_mass(inverse_mass_matrix)
    log_density = _log_density(target)
    import blackjax

    transition: Any = blackjax.hmc.build_kernel()

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        mass = _inverse_mass(inverse_mass_matrix, state.position)
        return transition(rng_key, state, log_density, step_size, mass, num_integration_steps)

    return _kernel(blackjax.hmc.init, step, log_density, inverse_mass_matrix)


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
      A kernel over BlackJAX's ``HMCState`` and ``NUTSInfo``, whose ``is_divergent`` is as in ``hmc``. Under
      ``vmap`` all chains wait for the longest trajectory. Positions of 16 bits are in a ``RoundedState``.

    Raises:
      ValueError: if the step is not positive, if max_num_doublings is not an integer of at least 1, if the
        inverse mass matrix is not positive definite or has another shape, or if the energy is not a scalar.
      TypeError: if the position is not floating-point.

    Example:
      >>> kernel = nuts(lambda x: 0.5 * jnp.sum(x**2), step_size=0.5)
      >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3)))
      >>> state.position.shape, bool(info.acceptance_rate > 0.5)
      ((3,), True)

    Reference:
      Hoffman & Gelman 2014, The no-U-turn sampler; Betancourt 2017 (arXiv:1701.02434), app. A; blackjax.nuts.
    """
    _check_step_size(step_size)
    checks.positive_integer("max_num_doublings", max_num_doublings)
    _check_inverse_mass(inverse_mass_matrix)
    log_density = _log_density(target)
    import blackjax

    transition: Any = blackjax.nuts.build_kernel()

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        mass = _inverse_mass(inverse_mass_matrix, state.position)
        return transition(rng_key, state, log_density, step_size, mass, max_num_doublings)

    return _kernel(blackjax.nuts.init, step, log_density, inverse_mass_matrix)


def _log_density(target: Target) -> Target:
    energy = scalar_target(target)
    return lambda position: -jnp.asarray(energy(position), _wide_dtype(position))


def check_position(name: str, position: Any) -> None:
    """Raises unless it is a pytree of at least one floating-point array."""
    checks.floating(name, position)
    if not jax.tree.leaves(position):
        raise ValueError(f"{name}={position!r} holds no array: {name} must be a pytree of arrays.")


def _wide_dtype(position: Position) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(float), jnp.result_type(*jax.tree.leaves(position)))


def widest(position: Position) -> Position:
    """Returns a position in the dtype of BlackJAX's arithmetic: float32, or float64 under x64."""
    dtype = _wide_dtype(position)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), position)


def _kernel(blackjax_init: Any, wide_step: Any, log_density: Target, inverse_mass_matrix: Any) -> Kernel:
    """A kernel from BlackJAX's functions, which keeps the dtypes of the position."""

    def init(position: Position, rng_key: Array | None = None) -> Any:
        del rng_key
        check_position("position", position)
        position = jax.tree.map(jnp.asarray, position)
        if inverse_mass_matrix is not None:
            _inverse_mass(inverse_mass_matrix, position)
        dtype = _wide_dtype(position)
        if all(leaf.dtype == dtype for leaf in jax.tree.leaves(position)):
            return blackjax_init(position, log_density)
        return RoundedState(position, blackjax_init(widest(position), log_density))

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        checks.rng_key("rng_key", rng_key)
        if not isinstance(state, RoundedState):
            return wide_step(rng_key, state)
        chain, info = wide_step(rng_key, state.chain)
        position = jax.tree.map(lambda wide, leaf: wide.astype(leaf.dtype), chain.position, state.position)
        return RoundedState(position, chain), info

    return Kernel(init, step)


def _inverse_mass(inverse_mass_matrix: Array | None, position: Position) -> Array:
    dtype = _wide_dtype(position)
    size = dimension(position)
    if inverse_mass_matrix is None:
        return jnp.ones(size, dtype)
    shape = jnp.shape(inverse_mass_matrix)
    if shape not in ((size,), (size, size)):
        raise ValueError(
            f"inverse_mass_matrix has shape {shape}: the position holds {size} numbers, so "
            f"({size},) for a diagonal, ({size}, {size}) for a dense matrix or None for the "
            f"identity is needed."
        )
    return jnp.asarray(inverse_mass_matrix, dtype)


def _check_step_size(step_size: Any) -> None:
    checks.positive("step_size", step_size)
    checks.one_number("step_size", step_size, _SCHEDULES)


def _check_num_integration_steps(num_integration_steps: Any) -> None:
    name = "num_integration_steps"
    checks.positive(name, num_integration_steps)
    checks.one_number(name, num_integration_steps)
    dtype = jnp.result_type(num_integration_steps)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name}={num_integration_steps!r} has dtype {dtype}: {name} must be an integer.")


def _check_inverse_mass(inverse_mass_matrix: Any) -> None:
    """Raises unless it is None, traced, a positive diagonal or a symmetric positive definite matrix.

    Judged in JAX's default float, in which the kernels factorise it: a matrix that is indefinite once rounded
    would give momenta of NaN, and chains that never move.
    """
    if inverse_mass_matrix is None:
        return
    name = "inverse_mass_matrix"
    checks.array(name, inverse_mass_matrix)
    shape = np.shape(inverse_mass_matrix)
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != shape[1]):
        raise ValueError(
            f"{name} has shape {shape}: (d,) for a diagonal or (d, d) for a dense matrix is needed."
        )
    if checks.is_traced(inverse_mass_matrix):
        return
    matrix = np.asarray(inverse_mass_matrix, jnp.result_type(float))
    accepted = "the covariance of the momenta is its inverse, so it must be"
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"{name} holds non-finite entries: {accepted} finite.")
    if matrix.ndim == 1:
        if not np.all(matrix >= np.finfo(matrix.dtype).tiny):
            raise ValueError(f"{name} has a smallest entry of {matrix.min():g}: {accepted} greater than 0.")
        return
    if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5 * np.abs(matrix).max(initial=0.0)):
        raise ValueError(f"{name} is not symmetric: {accepted} symmetric and positive definite.")
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        smallest = float(np.linalg.eigvalsh(matrix.astype(np.float64)).min())
        raise ValueError(
            f"{name} has a smallest eigenvalue of {smallest:g}: {accepted} positive definite, in "
            f"{matrix.dtype}."
        ) from None
