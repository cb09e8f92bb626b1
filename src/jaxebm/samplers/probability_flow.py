"""The probability flow of an energy that is told its level: samples without noise, and log-densities.

The flow carries the density at one noise level into that at another, so it maps noise to data and back. Its
equation is solved by diffrax, which is imported when a function here is called.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxebm import checks
from jaxebm.trees import dimension, wide_dtype
from jaxebm.types import BATCH_AXIS, Array, LevelEnergyFn, Params, Position

__all__ = ["Divergence", "FlowLogDensity", "FlowSamples", "probability_flow", "probability_flow_log_density"]

Divergence = Literal["exact", "hutchinson"]
"""How the Laplacian of an energy is computed: as the trace of its Hessian, or by random probes."""

_STAGES = 6
"""Gradients of one step of the solver, Tsit5, whose last stage is the first of the next step."""
_AT_START = 1
"""The gradient at the start of a solution."""


class FlowSamples(NamedTuple):
    """What ``probability_flow`` returns.

    Attributes:
      positions: the ends of the flow, leaves ``(n, ...)``.
      num_gradients: gradients of the energy that each took, integers ``(n,)``.
    """

    positions: Position
    num_gradients: Array


class FlowLogDensity(NamedTuple):
    """What ``probability_flow_log_density`` returns.

    Attributes:
      log_density: log p(x; lowest), in nats, ``(n,)``.
      standard_error: of the mean over the probes, ``(n,)``: 0 for an exact divergence, NaN for one probe. The
        solver's error is bounded by the tolerance instead.
      noise: where each example is carried to at the highest level, leaves ``(n, ...)``.
      num_gradients: gradients of the energy that each took, integers ``(n,)``; with each go the products of
        the Hessian that the divergence needs: d for an exact one, or one for each probe.
    """

    log_density: Array
    standard_error: Array
    noise: Position
    num_gradients: Array


def probability_flow(
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Position,
    *,
    highest: Array | float,
    lowest: Array | float,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> FlowSamples:
    r"""Carries positions from noise to data along the probability flow, compiled; no random number is used.

    .. math:: dx / d\sigma = \sigma\, \partial E(x; \sigma) / \partial x

    from sigma = ``highest`` down to ``lowest``. If the positions follow the law at the highest level, the
    ends follow that at the lowest, up to the tolerance. Steps are chosen by the solver (Tsit5) in log sigma.

    ``energy_at`` is recognised by identity: define it once. New parameters and levels run the same program.

    Args:
      energy_at: ``energy_at(params, x, level) -> ()``, x one example and level ``()``.
      params: its parameters.
      positions: where the n solutions start, leaves ``(n, ...)``: draws from the law at the highest level,
        such as ``highest`` times standard normals where that level hides the data.
      highest: sigma_max, the first level, ``()``.
      lowest: sigma_min > 0, the last one, below the first: the noise that remains in the samples.
      tolerance: of the solver, for the error of a step relative to |x|, and absolutely where |x| is below 1.
      max_steps: most steps of a solution.

    Returns:
      The ends of the flow, of the dtypes given, and the number of gradients of each. Inside of ``jit``, where
      no error can be raised, a solution that took too many steps is NaN.

    Raises:
      ValueError: if the levels are not 0 < lowest < highest, a number is out of range, positions is ragged,
        or the energy is not a scalar.
      TypeError: if the positions are not floating-point, or energy_at is no function of parameters, a
        position and a level.
      ModuleNotFoundError: if diffrax is not installed.
      RuntimeError: if a solution was not finished within max_steps.

    Example:
      The flow of data from N(0, 1) multiplies by the ratio of the standard deviations:

      >>> energy_at = lambda variance, x, level: 0.5 * jnp.sum(x**2) / (variance + level**2)
      >>> found = probability_flow(
      ...     energy_at, 1.0, jnp.array([[10.0], [-20.0]]), highest=99**0.5, lowest=1e-3)
      >>> [round(float(x), 2) for x in found.positions.ravel()]
      [1.0, -2.0]

    Reference:
      Song et al. 2021 (arXiv:2011.13456), section 4.3 and appendix D.1, for noise of growing variance; Karras
      et al. 2022 (arXiv:2206.00364), equation 1.
    """
    _check("probability_flow", energy_at, positions, lowest, highest, tolerance, max_steps)
    wide = wide_dtype(positions)
    with checks.shapes_noted(params=params, positions=positions), jax.numpy_rank_promotion("allow"):
        ends, _, num_gradients, finished = _solve_all(
            _no_probes(positions),
            params,
            jax.tree.map(jnp.asarray, positions),
            jnp.asarray(highest, wide),
            jnp.asarray(lowest, wide),
            jnp.asarray(tolerance, wide),
            energy_at=energy_at,
            divergence=None,
            max_steps=max_steps,
        )
    _check_finished(finished, max_steps, tolerance)
    return FlowSamples(ends, num_gradients)


def probability_flow_log_density(
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Position,
    *,
    lowest: Array | float,
    highest: Array | float,
    divergence: Divergence = "exact",
    num_probes: int = 1,
    log_prior: Callable[[Position], Array] | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
) -> FlowLogDensity:
    r"""Log-densities by the probability flow: that of the noise at its end, and the volume that it changed.

    .. math:: \log p(x; \sigma_{min}) = \log p(x(\sigma_{max}); \sigma_{max})
              + \int_{\sigma_{min}}^{\sigma_{max}} \sigma\, \Delta E(x(\sigma); \sigma)\, d\sigma

    Energies need not be normalised. It is the density of the samples of ``probability_flow``, exactly, and
    that of data under noise of ``lowest`` if E is the true energy at every level.

    Args:
      rng_key: one key, split into one per example; only Hutchinson's estimate draws from it.
      energy_at: ``energy_at(params, x, level) -> ()``, x one example and level ``()``.
      params: its parameters.
      positions: the n examples, leaves ``(n, ...)``, with noise of the lowest level or so little of it that
        it makes no difference.
      lowest: sigma_min > 0, the level of the density, ``()``.
      highest: sigma_max, above it, where the density is known.
      divergence: ``"exact"``, the trace of the Hessian, d products with it; or ``"hutchinson"``, the mean of
        v^T Hess E v over random signs v, fixed along a solution: unbiased up to the tolerance.
      num_probes: number of v, at least 1.
      log_prior: ``log_prior(x) -> ()``, the log-density at the highest level; None is N(0, sigma_max^2 I),
        whose error is about the squared norm of the data's mean over 2 sigma_max^2, and d times their
        variance over it.
      tolerance: of the solver, for the errors of x and of the log-density.
      max_steps: most steps of a solution.

    Returns:
      The log-densities with their standard errors, the noise that each example is carried to, and the
      number of gradients. Inside of ``jit``, a solution that took too many steps is NaN.

    Raises:
      ValueError: if the levels are not 0 < lowest < highest, a number is out of range, positions is ragged,
        or the energy or the prior is not a scalar.
      TypeError: if the positions are not floating-point, rng_key is not a typed key, energy_at is no function
        of parameters, a position and a level, or log_prior none of a position.
      ModuleNotFoundError: if diffrax is not installed.
      RuntimeError: if a solution was not finished within max_steps.

    Example:
      Of data from N(0, 1), at level 0.001; log p(0) = -log(2 pi) / 2:

      >>> energy_at = lambda variance, x, level: 0.5 * jnp.sum(x**2) / (variance + level**2)
      >>> found = probability_flow_log_density(
      ...     jax.random.key(0), energy_at, 1.0, jnp.zeros((1, 1)), lowest=1e-3, highest=100.0)
      >>> round(float(found.log_density[0]), 3)
      -0.919

    Reference:
      Song et al. 2021 (arXiv:2011.13456), equation 39 and appendix D.2; Grathwohl et al. 2019
      (arXiv:1810.01367), the fixed probe.
    """
    checks.rng_key("rng_key", rng_key)
    _check("probability_flow_log_density", energy_at, positions, lowest, highest, tolerance, max_steps)
    checks.one_of("divergence", divergence, get_args(Divergence))
    checks.positive_integer("num_probes", num_probes)
    if log_prior is not None:
        checks.function("log_prior", log_prior, "x")
    length = checks.batch_length("positions", positions)
    num_entries = dimension(positions) // length
    wide = wide_dtype(positions)
    probes = _no_probes(positions)
    if divergence == "hutchinson":
        probes = jax.random.rademacher(rng_key, (length, num_probes, num_entries), wide)
    highest = jnp.asarray(highest, wide)
    with checks.shapes_noted(params=params, positions=positions), jax.numpy_rank_promotion("allow"):
        noise, changes, num_gradients, finished = _solve_all(
            probes,
            params,
            jax.tree.map(jnp.asarray, positions),
            jnp.asarray(lowest, wide),
            highest,
            jnp.asarray(tolerance, wide),
            energy_at=energy_at,
            divergence=divergence,
            max_steps=max_steps,
        )
    _check_finished(finished, max_steps, tolerance)
    prior = jax.vmap(_gaussian_prior(highest) if log_prior is None else _checked_prior(log_prior))
    error = jnp.std(changes, axis=1, ddof=1) / num_probes**0.5 if num_probes > 1 else jnp.nan
    error = jnp.broadcast_to(0.0 if divergence == "exact" else error, (length,)).astype(changes.dtype)
    return FlowLogDensity(prior(noise) + jnp.mean(changes, axis=1), error, noise, num_gradients)


@functools.partial(jax.jit, static_argnames=("energy_at", "divergence", "max_steps"))
def _solve_all(
    probes: Array,
    params: Params,
    positions: Position,
    first: Array,
    last: Array,
    tolerance: Array,
    *,
    energy_at: LevelEnergyFn,
    divergence: Divergence | None,
    max_steps: int,
) -> tuple[Position, Array, Array, Array]:
    """Solves from the first level to the last; returns ends, log-volumes ``(n, ...)``, costs, successes."""
    import diffrax

    def one(position: Position, probe: Array) -> tuple[Position, Array, Array, Array]:
        wide = jax.tree.map(lambda leaf: leaf.astype(wide_dtype(leaf)), position)
        flat, unravel = ravel_pytree(wide)
        num_changes = 0 if divergence is None else len(probe) if divergence == "hutchinson" else 1
        start = (flat, jnp.zeros(num_changes, flat.dtype))

        term = _velocity(energy_at, params, unravel, probe, divergence)
        # Here an error of the energy is its own; some releases of diffrax would hide it behind one of types.
        jax.eval_shape(term, jnp.log(first), start, None)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(term),  # type: ignore[arg-type]
            diffrax.Tsit5(),
            t0=jnp.log(first),
            t1=jnp.log(last),
            dt0=None,
            y0=start,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=max_steps,
            throw=False,
        )
        finished = solution.result == diffrax.RESULTS.successful
        end, changes = jax.tree.map(lambda leaf: jnp.where(finished, leaf[-1], jnp.nan), solution.ys)
        end = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), unravel(end), position)
        num_gradients = _STAGES * jnp.asarray(solution.stats["num_steps"], jnp.int32) + _AT_START
        return end, changes, num_gradients, jnp.asarray(finished)

    return jax.vmap(one, axis_name=BATCH_AXIS)(positions, probes)


def _velocity(
    energy_at: LevelEnergyFn,
    params: Params,
    unravel: Callable[[Array], Position],
    probe: Array,
    divergence: Divergence | None,
) -> Callable[[Array, tuple[Array, Array], None], tuple[Array, Array]]:
    """Returns d(x, log-volume) / d log sigma, as diffrax calls it; x is one flat array."""

    def velocity(log_level: Array, state: tuple[Array, Array], args: None) -> tuple[Array, Array]:
        del args
        level = jnp.exp(log_level)

        def energy(flat: Array) -> Array:
            value = energy_at(params, unravel(flat), level)
            checks.scalar_energy("energy_at", value)
            return value

        rate = jnp.square(level)  # sigma d sigma = sigma^2 d log sigma
        flat, volumes = state
        if divergence is None:
            return (rate * jax.grad(energy)(flat)).astype(flat.dtype), jnp.zeros_like(volumes)
        slope, hessian_product = jax.linearize(jax.grad(energy), flat)
        directions = jnp.eye(flat.size, dtype=flat.dtype) if divergence == "exact" else probe
        curvatures = jnp.sum(directions * jax.vmap(hessian_product)(directions), axis=1)
        laplacians = jnp.sum(curvatures, keepdims=True) if divergence == "exact" else curvatures
        return (rate * slope).astype(flat.dtype), (rate * laplacians).astype(volumes.dtype)

    return velocity


def _no_probes(positions: Position) -> Array:
    return jnp.zeros((checks.batch_length("positions", positions), 0, 0))


def _gaussian_prior(level: Array) -> Callable[[Position], Array]:
    def log_density(x: Position) -> Array:
        scaled = [leaf.astype(wide_dtype(leaf)) / level for leaf in jax.tree.leaves(x)]
        log_scale = jnp.log(level * math.sqrt(2 * math.pi))
        return -sum(
            (0.5 * jnp.sum(leaf**2) + leaf.size * log_scale for leaf in scaled),
            start=jnp.zeros((), level.dtype),
        )

    return log_density


def _checked_prior(log_prior: Callable[[Position], Array]) -> Callable[[Position], Array]:
    def checked(x: Position) -> Array:
        value = log_prior(x)
        checks.scalar_energy("log_prior", value)
        return value

    return checked


def _check(
    name: str, energy_at: Any, positions: Any, lowest: Any, highest: Any, tolerance: Any, max_steps: Any
) -> None:
    checks.function("energy_at", energy_at, "params", "x", "level")
    checks.batch_length("positions", positions)
    checks.floating("positions", positions)
    for level_name, level in (("lowest", lowest), ("highest", highest)):
        checks.positive_number(level_name, level)
    if not (checks.is_traced(lowest) or checks.is_traced(highest)) and not lowest < highest:
        raise ValueError(
            f"lowest={lowest!r} is not below highest={highest!r}: two different levels of noise."
        )
    checks.fraction("tolerance", tolerance)
    checks.positive_integer("max_steps", max_steps)
    try:
        import diffrax  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs diffrax: pip install diffrax, or jaxebm[ode].") from error


def _check_finished(finished: Array, max_steps: int, tolerance: Any) -> None:
    if checks.is_traced(finished):
        return
    failed = int(jnp.sum(~finished))
    if failed:
        raise RuntimeError(
            f"max_steps={max_steps}: {failed} of {len(finished)} solutions were not finished within so many "
            f"steps of tolerance={tolerance}. Raise either, unless the energy or its gradient is not finite "
            "or not smooth on the way."
        )
