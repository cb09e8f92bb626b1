"""Annealed Langevin dynamics: one chain through a family of energies, from much noise to little."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.samplers.chains import run_annealed_chain
from jaxebm.samplers.langevin import scalar_target, sgld
from jaxebm.trees import wide_dtype, widened
from jaxebm.types import BATCH_AXIS, Array, Kernel, LevelEnergyFn, Params, Position

__all__ = ["annealed_langevin", "geometric_levels", "power_levels"]


def geometric_levels(first: float, last: float, num_levels: int) -> Array:
    r"""Returns a geometric sequence of falling noise levels, shape ``(num_levels,)``.

    .. math:: \sigma_i = \sigma_1 (\sigma_L / \sigma_1)^{(i - 1) / (L - 1)}

    Args:
      first: sigma_1, about the largest distance between two data (Song & Ermon 2020, technique 1).
      last: sigma_L, positive and below ``first``: the noise that remains in the samples.
      num_levels: L, at least 2.

    Returns:
      The levels.

    Raises:
      ValueError: if the levels do not fall, are not positive, or are fewer than two.

    Example:
      >>> geometric_levels(8.0, 1.0, 4).tolist()
      [8.0, 4.0, 2.0, 1.0]
    """
    check_ends(first, last, num_levels)
    return jnp.asarray(np.geomspace(first, last, num_levels), dtype=float)


def power_levels(first: float, last: float, num_levels: int, *, power: float = 7.0) -> Array:
    r"""Returns falling noise levels that are equally spaced in sigma^(1 / power), shape ``(num_levels,)``.

    .. math:: \sigma_i = \Big(\sigma_1^{1 / \rho}
              + \tfrac{i - 1}{L - 1} (\sigma_L^{1 / \rho} - \sigma_1^{1 / \rho})\Big)^\rho

    Large powers put more of the levels near the last one; a geometric sequence is the limit of an infinite
    power, equal steps are a power of 1.

    Args:
      first: sigma_1, several times the spread of the data.
      last: sigma_L, positive and below ``first``: the noise that remains in the samples.
      num_levels: L, at least 2.
      power: rho >= 1.

    Returns:
      The levels.

    Raises:
      ValueError: if the levels do not fall, are not positive, or are fewer than two, or the power is below 1.

    Example:
      >>> power_levels(9.0, 1.0, 3, power=2.0).tolist()
      [9.0, 4.0, 1.0]

    Reference:
      Karras et al. 2022 (arXiv:2206.00364), equation 5, with rho = 7.
    """
    check_ends(first, last, num_levels)
    checks.number("power", power)
    if power < 1:
        raise ValueError(f"power={power!r}: a number of at least 1 is needed.")
    roots = np.linspace(first ** (1 / power), last ** (1 / power), num_levels)
    levels = roots**power
    levels[0], levels[-1] = first, last  # exactly
    return jnp.asarray(levels, dtype=float)


def check_ends(first: float, last: float, num_levels: int) -> None:
    """Raises unless there are at least two levels from ``first`` down to a positive ``last``."""
    checks.positive_number("first", first)
    checks.positive_number("last", last)
    checks.integer("num_levels", num_levels, 2)
    if not last < first:
        raise ValueError(f"last={last!r} is not below first={first!r}: the noise must fall.")


def annealed_langevin(
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Position,
    levels: Array,
    step_size: Array | float,
    num_steps_per_level: int,
    *,
    denoise: bool = False,
) -> Position:
    r"""Draws with many chains through falling noise levels, compiled.

    .. math:: \epsilon_i = \epsilon\, \sigma_i^2 / \sigma_L^2, \qquad
              x \leftarrow x - \epsilon_i\, \partial E_{\sigma_i} / \partial x + \sqrt{2 \epsilon_i}\, n

    The step grows with the square of the level, so that noise and gradient keep one proportion throughout. In
    this package's convention the step is the factor of the gradient: the paper's epsilon is twice
    ``step_size``. Its algorithm is not exact at any level; what is left is the bias of ``sgld`` and of too
    few steps.

    Compiled once for each energy, shape and number of steps: new parameters, levels and steps run the same
    program. ``energy_at`` is recognised by identity: define it once.

    Args:
      rng_key: one key, split into one per chain.
      energy_at: ``energy_at(params, x, level) -> ()``, x one example and level ``()``.
      params: its parameters.
      positions: where the n chains start, leaves ``(n, ...)``: about as wide as the first level.
      levels: sigma_1 > ... > sigma_L > 0, ``(L,)``, as from ``geometric_levels``.
      step_size: epsilon > 0, the step at the *last* level, ``()``, in units of position^2 per unit of
        energy. Above 2 sigma_L^2 the chains are unstable; well below it they are accurate.
      num_steps_per_level: steps at each level, at least 1.
      denoise: end with x - sigma_L^2 dE/dx, the expected clean x given the noisy one (Tweedie), without which
        the samples keep noise of the last level.

    Returns:
      The last positions, leaves ``(n, ...)``, of the dtypes given.

    Raises:
      ValueError: if the levels do not fall or a number is not positive, if positions is ragged, or if the
        energy is not a scalar.
      TypeError: if the positions are not floating-point, rng_key is not a typed key, or energy_at no function
        of parameters, a position and a level.

    Example:
      Data all at 3, whose energy under noise is known:

      >>> energy_at = lambda mean, x, level: 0.5 * jnp.sum((x - mean) ** 2) / level**2
      >>> levels = geometric_levels(10.0, 0.1, 5)
      >>> x = annealed_langevin(
      ...     jax.random.key(0), energy_at, jnp.array(3.0), jnp.zeros((8, 1)), levels, 0.001, 50,
      ...     denoise=True)
      >>> bool(jnp.all(jnp.abs(x - 3) < 1e-3))
      True

    Reference:
      Song & Ermon 2019 (arXiv:1907.05600), algorithm 1; Song & Ermon 2020 (arXiv:2006.09011);
      Jolicoeur-Martineau et al. 2020 (arXiv:2009.05475), the last denoising.
    """
    check_level_chains(rng_key, energy_at, positions, levels, at_least=1)
    checks.positive_number("step_size", step_size)
    checks.positive_integer("num_steps_per_level", num_steps_per_level)
    checks.boolean("denoise", denoise)
    with checks.shapes_noted(params=params, positions=positions):
        return _annealed_langevin(
            rng_key,
            params,
            *chain_arrays(positions, levels, step_size),
            energy_at=energy_at,
            num_steps_per_level=num_steps_per_level,
            denoise=denoise,
        )


def check_level_chains(
    rng_key: Any, energy_at: Any, positions: Any, levels: Any, *, at_least: int = 2, name: str = "positions"
) -> None:
    """Raises unless these are a key, an energy told a level, a batch ``name`` and levels that fall."""
    checks.rng_key("rng_key", rng_key)
    checks.function("energy_at", energy_at, "params", "x", "level")
    check_levels(levels, at_least)
    checks.real_arrays(name, positions)
    checks.batch_length(name, positions, "a batch of examples")
    checks.floating(name, positions)


def chain_arrays(positions: Position, *numbers: Array | float) -> tuple[Any, ...]:
    """Returns the positions and these numbers as arrays, the numbers in the precision of the chains.

    Under x64, float64 levels would widen the energies of float32 positions.
    """
    wide = wide_dtype(positions)
    return jax.tree.map(jnp.asarray, positions), *(jnp.asarray(each, wide) for each in numbers)


def bound_level_energy(energy_at: LevelEnergyFn, params: Params) -> Callable[[Array, Position], Array]:
    """Returns ``(level, x) -> energy``, which raises unless the energy is a scalar."""

    def energy(level: Array, x: Position) -> Array:
        value = energy_at(params, x, level)
        checks.scalar_energy("energy_at", value)
        return value

    return energy


def check_levels(levels: Any, at_least: int = 1) -> None:
    """Raises ``ValueError`` unless these are positive levels that fall, ``(L,)``; traced numbers pass."""
    checks.array("levels", levels)
    shape = np.shape(levels)
    if len(shape) != 1 or shape[0] < at_least:
        raise ValueError(f"levels has shape {shape}: (L,) with at least {at_least} levels is needed.")
    checks.positive("levels", levels)
    if not checks.is_traced(levels) and not np.all(np.diff(np.asarray(levels, float)) < 0):
        raise ValueError(f"levels={np.asarray(levels)}: they must fall, from much noise to little.")


@functools.partial(jax.jit, static_argnames=("energy_at", "num_steps_per_level", "denoise"))
def _annealed_langevin(
    rng_key: Array,
    params: Params,
    positions: Position,
    levels: Array,
    step_size: Array,
    *,
    energy_at: LevelEnergyFn,
    num_steps_per_level: int,
    denoise: bool,
) -> Position:
    energy = bound_level_energy(energy_at, params)

    def kernel_at(level: Array) -> Kernel:
        return sgld(functools.partial(energy, level), step_size * jnp.square(level / levels[-1]))

    def clean(x: Position) -> Position:
        slope = jax.grad(scalar_target(functools.partial(energy, levels[-1])))(x)

        def expected(leaf: Array, slope: Array) -> Array:
            return (widened(leaf) - jnp.square(levels[-1]) * widened(slope)).astype(leaf.dtype)

        return jax.tree.map(expected, x, slope)

    def one_chain(chain_key: Array, position: Position) -> Any:
        state, _ = run_annealed_chain(chain_key, kernel_at, schedule, position)
        return clean(state.position) if denoise else state.position

    schedule = jnp.repeat(levels, num_steps_per_level)
    rng_keys = jax.random.split(rng_key, checks.batch_length("positions", positions))
    return jax.vmap(one_chain, axis_name=BATCH_AXIS)(rng_keys, positions)
