"""Predictor-corrector sampling: one chain from noise to data through an energy that is told its level."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.samplers.chains import run_annealed_chain
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.noise_levels import bound_level_energy, chain_arrays, check_level_chains
from jaxebm.types import BATCH_AXIS, Array, Kernel, LevelEnergyFn, Params, Position

__all__ = ["Predictor", "predictor_corrector"]

Predictor = Literal["reverse_diffusion", "ancestral", "flow"]
"""The step from one level to the next: how much noise it adds."""


def predictor_corrector(
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Position,
    levels: Array,
    *,
    predictor: Predictor = "reverse_diffusion",
    num_corrector_steps: int = 1,
    signal_to_noise: Array | float = 0.16,
    denoise: bool = True,
) -> Position:
    r"""Draws with many chains from noise to data, compiled: a step to each level, then Langevin steps at it.

    The predictor goes from level sigma_i to the next, sigma_{i+1} < sigma_i, with tau = sigma_i^2 -
    sigma_{i+1}^2; the corrector takes M steps of ``sgld`` at the new level, which remove a part of its error:

    .. math:: x \leftarrow x - \tau\, \partial E_{\sigma_i} / \partial x + \nu n, \qquad
              x \leftarrow x - \epsilon\, \partial E_{\sigma_{i+1}} / \partial x + \sqrt{2 \epsilon}\, n,
              \quad \epsilon = 2 r^2 \sigma_{i+1}^2

    with nu^2 = tau for ``"reverse_diffusion"``, the discretised reverse of the diffusion that adds noise, and
    nu^2 = tau sigma_{i+1}^2 / sigma_i^2 for ``"ancestral"``, which is exact where all data are one point. The
    predictor ``"flow"`` adds no noise, nu = 0, and has tau = sigma_i (sigma_i - sigma_{i+1}): Euler's step of
    the probability flow, also known as DDIM. The error of each falls with the number of levels, which
    ``power_levels`` places. The paper's corrector takes epsilon = 2 r^2 |n|^2 / |dE/dx|^2; here both norms
    are their means at the level, d and d / sigma^2, so that the step depends on neither the noise nor the
    gradient, and each corrector keeps the law of its level up to the bias of ``sgld``.

    **Its cost**, in gradients of the energy for each sample: (L - 1) (1 + M), and one more for ``denoise``.

    Compiled once for each energy, shape and number of steps: new parameters and levels run the same program.
    ``energy_at`` is recognised by identity: define it once.

    Args:
      rng_key: one key, split into one per chain.
      energy_at: ``energy_at(params, x, level) -> ()``, x one example and level ``()``.
      params: its parameters.
      positions: where the n chains start, leaves ``(n, ...)``: draws from the law at the first level, such as
        sigma_1 times standard normals where that level hides the data.
      levels: sigma_1 > ... > sigma_L > 0, ``(L,)``, as from ``geometric_levels`` or ``power_levels``. L is at
        least 2, or 1 with ``denoise``: then the expected clean x is all that is computed.
      predictor: ``"reverse_diffusion"``, ``"ancestral"`` or ``"flow"``.
      num_corrector_steps: M >= 0, Langevin steps at each new level; 0 is a predictor alone.
      signal_to_noise: r > 0, ``()``; below 1, where the corrector of a Gaussian becomes unstable.
      denoise: end with x - sigma_L^2 dE/dx, the expected clean x given the noisy one (Tweedie).

    Returns:
      The last positions, leaves ``(n, ...)``, of the dtypes given.

    Raises:
      ValueError: if the levels do not fall or are not positive, a number is out of range, the predictor is
        unknown, positions is ragged, or the energy is not a scalar.
      TypeError: if the positions are not floating-point, rng_key is not a typed key, or energy_at no function
        of parameters, a position and a level.

    Example:
      Data all at 3, whose energy under noise is known:

      >>> energy_at = lambda mean, x, level: 0.5 * jnp.sum((x - mean) ** 2) / level**2
      >>> starts = 10.0 * jax.random.normal(jax.random.key(0), (8, 1))
      >>> x = predictor_corrector(
      ...     jax.random.key(1), energy_at, jnp.array(3.0), starts, jnp.array([10.0, 5.0, 1.0, 0.1]))
      >>> bool(jnp.all(jnp.abs(x - 3) < 1e-3))
      True

    Reference:
      Song et al. 2021 (arXiv:2011.13456), algorithms 2 and 4, appendices E, F and G; the last denoising,
      Jolicoeur-Martineau et al. 2020 (arXiv:2009.05475). ``"flow"``: Song, Meng & Ermon 2021
      (arXiv:2010.02502), equation 13; Karras et al. 2022 (arXiv:2206.00364), algorithm 1 by Euler's method.
    """
    checks.one_of("predictor", predictor, get_args(Predictor))
    checks.integer("num_corrector_steps", num_corrector_steps, 0)
    checks.fraction("signal_to_noise", signal_to_noise)
    checks.boolean("denoise", denoise)
    check_level_chains(rng_key, energy_at, positions, levels, at_least=1 if denoise else 2)
    with checks.shapes_noted(params=params, positions=positions):
        return _predictor_corrector(
            rng_key,
            params,
            *chain_arrays(positions, levels, signal_to_noise),
            energy_at=energy_at,
            predictor=predictor,
            num_corrector_steps=num_corrector_steps,
            denoise=denoise,
        )


@functools.partial(jax.jit, static_argnames=("energy_at", "predictor", "num_corrector_steps", "denoise"))
def _predictor_corrector(
    rng_key: Array,
    params: Params,
    positions: Position,
    levels: Array,
    signal_to_noise: Array,
    *,
    energy_at: LevelEnergyFn,
    predictor: Predictor,
    num_corrector_steps: int,
    denoise: bool,
) -> Position:
    energy = bound_level_energy(energy_at, params)

    def kernel_at(at: dict[str, Array]) -> Kernel:
        # Both are a step along the gradient and noise: one program for the whole path.
        return sgld(functools.partial(energy, at["level"]), at["step_size"], at["noise_scale"])

    def one_chain(chain_key: Array, position: Position) -> Position:
        return run_annealed_chain(chain_key, kernel_at, schedule, position)[0].position

    schedule = _schedule(levels, predictor, num_corrector_steps, signal_to_noise, denoise)
    rng_keys = jax.random.split(rng_key, checks.batch_length("positions", positions))
    return jax.vmap(one_chain, axis_name=BATCH_AXIS)(rng_keys, positions)


def _schedule(
    levels: Array, predictor: Predictor, num_corrector_steps: int, signal_to_noise: Array, denoise: bool
) -> dict[str, Array]:
    """The level, the step and the noise of every step, each ``(num_steps,)``."""
    before, after = levels[:-1], levels[1:]
    removed = jnp.square(before) - jnp.square(after)
    if predictor == "flow":
        step, added = before * (before - after), jnp.zeros_like(after)
    else:
        share = jnp.square(after / before) if predictor == "ancestral" else jnp.ones_like(after)
        step, added = removed, jnp.sqrt(removed * share)
    corrector = 2 * jnp.square(signal_to_noise * after)

    def rows(predicted: Array, corrected: Array) -> Array:
        repeated = jnp.repeat(corrected[:, None], num_corrector_steps, axis=1)
        return jnp.concatenate([predicted[:, None], repeated], axis=1).ravel()

    schedule = {
        "level": rows(before, after),
        "step_size": rows(step, corrector),
        "noise_scale": rows(added, jnp.sqrt(2 * corrector)),
    }
    if denoise:  # Tweedie's formula is a step of the last level's variance, without noise
        last = {"level": levels[-1], "step_size": jnp.square(levels[-1]), "noise_scale": 0 * levels[-1]}
        schedule = {name: jnp.append(schedule[name], value) for name, value in last.items()}
    return schedule
