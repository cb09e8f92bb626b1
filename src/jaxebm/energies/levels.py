"""Energies that are told a noise level: E(x; sigma), the energy of x = data + sigma n with n ~ N(0, I).

A network of ``(params, x, level)`` is such an energy, or gives class logits from which `marginal_energy_at`
and `joint_energy_at` make one. `at_level` binds the level: what is left is an ordinary energy, which every
sampler and evaluation takes. As the energies of `jaxebm.energies.classifier`, equal parts give equal
energies, so that they may be static arguments of ``jax.jit``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxebm import checks
from jaxebm.energies.classifier import joint_energy, marginal_energy
from jaxebm.types import Array, LevelEnergyFn, LevelLogitsFn, Params, Position

__all__ = ["JointLevelEnergy", "at_level", "joint_energy_at", "marginal_energy_at"]


@dataclass(frozen=True, eq=False)
class _AtLevel:
    function: Any
    level: Any

    def __call__(self, params: Params, x: Position, /) -> Any:
        value = self.function(params, x, self.level)
        checks.instance("what energy_at returns", value, (jax.Array, np.ndarray, np.generic, float))
        checks.array("what energy_at returns", value)
        checks.floating("what energy_at returns", value)
        return value

    def _identity(self) -> Any:
        # A traced level is no constant: such a function equals itself alone.
        return (self.function, id(self) if checks.is_traced(self.level) else float(self.level))

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _AtLevel) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


@dataclass(frozen=True)
class _MarginalLevelEnergy:
    logits_at: LevelLogitsFn

    def __call__(self, params: Params, x: Position, level: Array, /) -> Array:
        return marginal_energy(_AtLevel(self.logits_at, level))(params, x)


@dataclass(frozen=True)
class JointLevelEnergy:
    """E(x, y; sigma) = -f(x; sigma)[y] of logits f; made by `joint_energy_at`."""

    logits_at: LevelLogitsFn

    def __call__(self, params: Params, x: Position, y: Array, level: Array, /) -> Array:
        """Returns the energy of one example, one class and one level, shape ()."""
        return joint_energy(_AtLevel(self.logits_at, level))(params, x, y)


def at_level(energy_at: LevelEnergyFn | LevelLogitsFn | JointLevelEnergy, level: Array | float) -> Any:
    r"""Returns the energy (or the logits) of one noise level.

    .. math:: E_\sigma(x) = E(x; \sigma)

    Args:
      energy_at: ``energy_at(params, x, level) -> ()``; logits ``(K,)``; or an energy of `joint_energy_at`.
      level: sigma >= 0, one number, in the units of x.

    Returns:
      ``energy(params, x)``, logits of the same arguments, or ``energy(params, x, y)`` of a joint energy.

    Raises:
      TypeError: if ``energy_at`` is no function of these three arguments.
      ValueError: if ``level`` is not one number of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = at_level(lambda mean, x, level: 0.5 * jnp.sum((x - mean) ** 2) / (1 + level**2), 2.0)
      >>> print(energy(0.0, jnp.array([3.0, 1.0])))
      1.0
    """
    checks.non_negative_number("level", level)
    if isinstance(energy_at, JointLevelEnergy):
        return joint_energy(_AtLevel(energy_at.logits_at, level))
    checks.function("energy_at", energy_at, "params", "x", "level")
    return _AtLevel(energy_at, level)


def marginal_energy_at(logits_at: LevelLogitsFn) -> LevelEnergyFn:
    """Returns the energy of x at each noise level that a classifier told the level defines.

    E(x; sigma) = -log sum_y exp(f(x; sigma)[y]).

    Args:
      logits_at: f, ``logits_at(params, x, level) -> (K,)`` for one example.

    Returns:
      ``energy_at(params, x, level) -> ()``.

    Raises:
      TypeError: if ``logits_at`` is no function of three arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> energy_at = marginal_energy_at(lambda params, x, level: params @ x / (1 + level))
      >>> round(float(energy_at(jnp.eye(2), jnp.zeros(2), 1.0)), 4)
      -0.6931

    Reference:
      Grathwohl et al. 2020 (arXiv 1912.03263), equation 7, at one level.
    """
    checks.function("logits_at", logits_at, "params", "x", "level")
    return _MarginalLevelEnergy(logits_at)


def joint_energy_at(logits_at: LevelLogitsFn) -> JointLevelEnergy:
    """Returns the energy of the pair (x, y) at each noise level that a classifier told the level defines.

    E(x, y; sigma) = -f(x; sigma)[y].

    Args:
      logits_at: f, ``logits_at(params, x, level) -> (K,)`` for one example.

    Returns:
      ``energy_at(params, x, y, level) -> ()``. Objectives learn it from labelled examples.

    Raises:
      TypeError: if ``logits_at`` is no function of three arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> energy_at = joint_energy_at(lambda params, x, level: params @ x / (1 + level))
      >>> float(energy_at(jnp.eye(2), jnp.array([1.0, 3.0]), 1, 0.5))
      -2.0

    Reference:
      Grathwohl et al. 2020 (arXiv 1912.03263), equation 5, at one level.
    """
    checks.function("logits_at", logits_at, "params", "x", "level")
    return JointLevelEnergy(logits_at)


def uses_level(function_at: Callable[..., Any], params: Params, x: Position) -> bool:
    """Returns whether what ``function_at(params, x, level)`` returns depends on the level, from its program.

    Nothing is computed. Give the gradient in x of an energy to find one whose level only adds a constant.
    """
    return depends_on_last(function_at, params, x, np.float32(1.0))


def depends_on_last(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether what a function returns depends on its last argument, one array, by its program.

    What the program computes from it and does not use is no dependence. Loops and branches are not looked
    into: an argument that enters one counts.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _needed(jaxpr, [True] * len(jaxpr.outvars))[-1]


_CALLS = (
    *("jit", "pjit", "closed_call", "core_call"),
    *("custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"),
)
"""JAX's operations that call one inner program with their own arguments, once."""


def _needed(jaxpr: Any, outputs: Sequence[bool]) -> list[bool]:
    """Which arguments of a program those of its outputs need that are marked."""
    needed = {id(variable) for variable, marked in zip(jaxpr.outvars, outputs, strict=True) if marked}
    for equation in reversed(jaxpr.eqns):
        wanted = [id(variable) in needed for variable in equation.outvars]
        if not any(wanted):
            continue
        inner = _called(equation)
        used = [True] * len(equation.invars) if inner is None else _needed(inner, wanted)
        needed |= {id(variable) for variable, use in zip(equation.invars, used, strict=True) if use}
    return [id(variable) in needed for variable in jaxpr.invars]


def _called(equation: Any) -> Any:
    """The inner program of a call; None of any other operation."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if inner is None:
        return None
    inner = getattr(inner, "jaxpr", inner)  # with its constants, or without
    sizes = (len(inner.invars), len(inner.outvars))
    return inner if sizes == (len(equation.invars), len(equation.outvars)) else None
