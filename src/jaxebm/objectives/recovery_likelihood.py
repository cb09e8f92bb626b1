"""Diffusion recovery likelihood: the energy of each noise level learns to recover x from a noisier y.

The law of x given y is close to a Gaussian however many modes the data have, so that short chains follow it,
from y. Samples are drawn from noise in the same way, level by level.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.levels import JointLevelEnergy
from jaxebm.objectives.examples import learnt_level_energy, objective_at, over_examples
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.noisy_data import check_level_used
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.samplers.chains import run_chain
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.noise_levels import bound_level_energy, chain_arrays, check_level_chains, check_levels
from jaxebm.trees import dimension, euclidean_norm, noisy, wide_dtype, widened
from jaxebm.types import BATCH_AXIS, Array, Kernel, LevelEnergyFn, Metrics, Params, Position, Target

__all__ = ["recovery_likelihood", "recovery_samples"]


def recovery_likelihood(
    energy_at: LevelEnergyFn | JointLevelEnergy,
    *,
    levels: Array,
    num_steps: int = 30,
    step_factor: float | Array = 0.2,
    kernel: Callable[..., Kernel] = sgld,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Maximum likelihood of x at one noise level given y at the next higher one, for every pair of levels.

    .. math:: p(x \mid y) \propto \exp\left(-E(x; \sigma_{i+1}) - |y - x|^2 / (2 s_i^2)\right), \qquad
              s_i^2 = \sigma_i^2 - \sigma_{i+1}^2

    .. math:: w \left[E(x; \sigma_{i+1}) - E(\tilde x; \sigma_{i+1})\right]

    For each example one pair of levels is drawn, x = data + sigma_{i+1} z, y = x + s_i z', and
    x' (with the tilde) is the end of a chain on p(x | y) that starts at y, on parameters without gradient.
    The chains are run inside of the loss, because each has its own y: give the learner no ``negatives``.

    The step is ``step_factor`` v_i, v_i = s_i^2 sigma_{i+1}^2 / sigma_i^2: the least variance that x can have
    given y, where all data are one point, so that a step is stable at any levels. Other data spread x given y
    up to about s_i^2. There K steps c keep a share a of y, with r = sigma_i / sigma_{i+1}:

    .. math:: a = (1 - c / r^2)^K

    Where chains forget y, a = 0, the gradient is that of the conditional likelihood up to the step's bias,
    and -E is the log-density at its level up to a constant. Else they start too wide and stay so, and E is
    learnt too steep along directions in which data are wide, by a factor of about (2 - a^2) / (2 - 2 a): 1.24
    with K = 30, c = .2 and r = 2, 1.96 with K = 10 and r = 1.92. Long steps and many levels are the remedy,
    with `jaxebm.samplers.mala` where ``sgld`` diverges.

    The published settings are T = 6, 30 steps of b^2 s^2 / 2 with b^2 = 2e-4, and a network f with E = f /
    (b s)^2: a ``step_factor`` of about 4e-4. Such chains hardly forget y, and the energies that are learnt
    with them draw images but are no log-densities.

    An update costs ``num_steps`` gradients in x for each example, and the gradient of two energies.

    Args:
      energy_at: E(params, x, level) of one example; or an energy of `jaxebm.energies.joint_energy_at`, which
        learns from the labelled examples.
      levels: sigma_1 > ... > sigma_L > 0, ``(L,)``, L at least 2, in the units of x: T = L - 1 energies are
        learnt, those of all levels but the first, where samples start; `jaxebm.samplers.geometric_levels`
        makes them. A last level well below the detail of the data stands for the data.
      num_steps: K, steps of a chain, at least 1.
      step_factor: step over v_i, ``()``, below 2. Unadjusted steps c raise the variance of x given y by a
        factor of at most 1 / (1 - c / 2).
      kernel: ``kernel(target, step_size=...)``, `jaxebm.samplers.sgld` or another of one step size.
      weight: w >= 0.

    Returns:
      An objective, whose energy is that of the last level. Metrics: ``energy_data``, ``energy_model`` and
      ``energy_gap`` of x and x'; ``displacement``, how far a chain moved in units of s, per coordinate: 1.4
      or less where y is recovered.

    Raises:
      TypeError: if ``energy_at`` is no function of three arguments or ``kernel`` binds no kernel.
      ValueError: if the levels do not fall or are not positive, a number is out of range; from the loss, if a
        joint energy gets no labels, or there are several levels and the energy ignores them.

    Example:
      >>> energy_at = lambda variance, x, level: 0.5 * jnp.sum(x**2) / (variance + level**2)
      >>> objective = recovery_likelihood(energy_at, levels=jnp.array([4.0, 2.0, 1.0]), num_steps=5)
      >>> batch = Batch(None, None, jax.random.normal(jax.random.key(0), (64, 2)))
      >>> loss, metrics = jax.jit(objective.loss)(1.0, jax.random.key(1), batch, Negatives(None, None))
      >>> sorted(metrics)
      ['displacement', 'energy_data', 'energy_gap', 'energy_model']

    Reference:
      Gao, Song, Poole, Wu & Kingma 2021 (arXiv 2012.08125), equations 5 to 10 and algorithm 1, for noise of
      growing variance.
    """
    learnt = learnt_level_energy(energy_at)
    check_levels(levels, 2)
    _check_chains(num_steps, step_factor, kernel)
    checks.non_negative_number("weight", weight)
    levels = jnp.asarray(levels, float)
    num_pairs = levels.shape[0] - 1

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        frozen = jax.lax.stop_gradient(params)

        def of_example(params: Params, rng_key: Array, x: Position, label: Array) -> tuple[Array, ...]:
            key_pair, key_x, key_y, key_chain = jax.random.split(rng_key, 4)
            # In the precision of the example: under x64, float64 levels would widen float32 energies.
            wide = wide_dtype(x)

            def energy(params: Params, x: Position, level: Array) -> Array:
                return learnt.energy_at(params, x, label, level)

            if num_pairs > 1:
                check_level_used(energy, params, x, "recovery_likelihood")
            pair = jax.random.randint(key_pair, (), 0, num_pairs)
            higher, lower = levels[pair].astype(wide), levels[pair + 1].astype(wide)
            x, _ = noisy(key_x, x, lower)
            spread = jnp.sqrt(higher**2 - lower**2)
            y, _ = noisy(key_y, x, spread)
            target = _conditional(lambda x: energy(frozen, x, lower), y, spread)
            bound = kernel(target, step_size=step_factor * jnp.square(spread * lower / higher))
            end = run_chain(key_chain, bound, y, num_steps)[0].position
            recovered = jax.lax.stop_gradient(end)
            moved = jax.tree.map(lambda end, start: widened(end) - widened(start), recovered, y)
            distance = euclidean_norm(moved) / (spread * dimension(x) ** 0.5)
            return energy(params, x, lower), energy(params, recovered, lower), distance

        found = over_examples(
            of_example,
            params,
            rng_key,
            batch,
            conditional=learnt.conditional,
            objective="recovery_likelihood",
        )
        energy_data, energy_model, displacement = map(jnp.mean, found)
        gap = energy_data - energy_model
        return weight * gap, {
            "energy_data": energy_data,
            "energy_model": energy_model,
            "energy_gap": gap,
            "displacement": displacement,
        }

    return objective_at(energy_at, levels[-1], loss)


def recovery_samples(
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Position,
    levels: Array,
    *,
    num_steps: int = 30,
    step_factor: float | Array = 0.2,
    kernel: Callable[..., Kernel] = sgld,
) -> Position:
    r"""Draws from noise, level by level, with the conditional chains of `recovery_likelihood`; compiled.

    At each level after the first the position y becomes the condition, and a chain of ``num_steps`` steps on
    E(x; sigma_{i+1}) + |y - x|^2 / (2 s_i^2) starts from it; the kernel keeps its state, such as a momentum,
    within the level. Chains that forget y draw exact samples, if the first positions and the energies are
    exact.

    A sample costs (L - 1) ``num_steps`` gradients with ``sgld``. Compiled once for each energy, kernel, shape
    and number of steps; ``energy_at`` and ``kernel`` are recognised by identity.

    Args:
      rng_key: one key, split into one per chain.
      energy_at: E(params, x, level) of one example.
      params: its parameters.
      positions: where the n chains start, leaves ``(n, ...)``: draws from the law at the first level, such as
        sigma_1 times standard normals where that level hides the data.
      levels: sigma_1 > ... > sigma_L > 0, ``(L,)``, those of the training.
      num_steps: steps at each level, at least 1.
      step_factor: step over v_i, ``()``, below 2.
      kernel: ``kernel(target, step_size=...)``.

    Returns:
      The last positions, leaves ``(n, ...)``, of the dtypes given; they keep noise of the last level.

    Raises:
      ValueError: if the levels do not fall or are not positive, a number is out of range, positions is
        ragged, or the energy is not a scalar.
      TypeError: if the positions are not floating-point, rng_key is not a typed key, energy_at no function
        of parameters, a position and a level, or kernel binds no kernel.

    Example:
      Data all at 3:

      >>> energy_at = lambda mean, x, level: 0.5 * jnp.sum((x - mean) ** 2) / level**2
      >>> starts = 8.0 * jax.random.normal(jax.random.key(0), (4, 1))
      >>> levels = jnp.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.1])
      >>> x = recovery_samples(jax.random.key(1), energy_at, jnp.array(3.0), starts, levels)
      >>> bool(jnp.all(jnp.abs(x - 3) < 0.5))
      True

    Reference:
      Gao et al. 2021 (arXiv 2012.08125), algorithm 2.
    """
    check_level_chains(rng_key, energy_at, positions, levels)
    _check_chains(num_steps, step_factor, kernel)
    with checks.shapes_noted(params=params, positions=positions):
        return _recovery_samples(
            rng_key,
            params,
            *chain_arrays(positions, levels, step_factor),
            energy_at=energy_at,
            num_steps=num_steps,
            kernel=kernel,
        )


@functools.partial(jax.jit, static_argnames=("energy_at", "num_steps", "kernel"))
def _recovery_samples(
    rng_key: Array,
    params: Params,
    positions: Position,
    levels: Array,
    step_factor: Array,
    *,
    energy_at: LevelEnergyFn,
    num_steps: int,
    kernel: Callable[..., Kernel],
) -> Position:
    def one_chain(chain_key: Array, position: Position) -> Position:
        def one_level(y: Position, at: tuple[Array, ...]) -> tuple[Position, None]:
            rng_key, level, spread, step_size = at
            target = functools.partial(bound_level_energy(energy_at, params), level)
            bound = kernel(_conditional(target, y, spread), step_size=step_size)
            return run_chain(rng_key, bound, y, num_steps)[0].position, None

        rng_keys = jax.random.split(chain_key, lower.shape[0])
        return jax.lax.scan(one_level, position, (rng_keys, lower, spreads, step_sizes))[0]

    higher, lower = levels[:-1], levels[1:]
    spreads = jnp.sqrt(higher**2 - lower**2)
    step_sizes = step_factor * jnp.square(spreads * lower / higher)
    rng_keys = jax.random.split(rng_key, checks.batch_length("positions", positions))
    return jax.vmap(one_chain, axis_name=BATCH_AXIS)(rng_keys, positions)


def _check_chains(num_steps: int, step_factor: float | Array, kernel: Callable[..., Kernel]) -> None:
    checks.positive_integer("num_steps", num_steps)
    checks.kernel_constructor("kernel", kernel)
    checks.kernel_parameters("kernel", kernel, {"step_size": step_factor})
    checks.below_two("step_factor", step_factor, "longer steps diverge where all data are one point")


def _conditional(energy: Target, y: Position, spread: Array) -> Target:
    """Returns E(x) + |y - x|^2 / (2 s^2), the energy of x given y = x + s z."""

    def target(x: Position) -> Array:
        offset = jax.tree.map(lambda x, y: widened(x) - widened(y), x, y)
        return energy(x) + 0.5 * jnp.square(euclidean_norm(offset) / spread)

    return target
