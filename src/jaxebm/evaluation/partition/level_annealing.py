r"""log Z of an energy that is told the noise level, by annealing through its levels.

At a high level noisy data are nearly Gaussian, and the levels below are a path to the lowest one that the
energy itself has learnt. Between two levels each chain is contracted towards the mean as a Gaussian of the
data's variances would be, so that the noise itself costs no weight: only what differs from the Gaussian does.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.independent_gaussian import IndependentGaussian
from jaxebm.evaluation.partition.importance_sampling import AISResult, result_of_weights
from jaxebm.samplers.binding import StaticKernel, bind_once, unbind
from jaxebm.samplers.chains import run_annealed_chain, run_chain
from jaxebm.samplers.langevin import scalar_target
from jaxebm.samplers.noise_levels import check_levels
from jaxebm.trees import widened
from jaxebm.types import BATCH_AXIS, Array, Kernel, LevelEnergyFn, Params, Position

__all__ = ["level_importance_sampling", "reverse_level_importance_sampling"]


def level_importance_sampling(
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    mean: Position,
    variance: Position,
    levels: Array,
    make_kernel: Callable[..., Kernel],
    num_chains: int,
    *,
    step_size: float | Array = 0.2,
    num_steps_per_level: int = 1,
) -> AISResult:
    r"""A lower bound of log Z at the lowest level, in expectation, annealed from a Gaussian at the highest.

    .. math::

      \log \hat Z = \log \frac1n \sum_i w_i, \qquad
      \log w = \log \frac{e^{-E(x_1; \sigma_1)}}{q(x_1)}
      + \sum_{k=2}^{L} E(x_{k-1}; \sigma_{k-1}) - E(S_k x_{k-1}; \sigma_k) + \log |\det S_k|

    x_1 comes from q = N(m, sigma_1^2 + v). S_k contracts towards m by sqrt((sigma_k^2 + v) / (sigma_{k-1}^2 +
    v)) in each entry, which carries q of one level to that of the next exactly, and x_k comes from
    S_k x_{k-1} by a kernel that leaves exp(-E(.; sigma_k)) invariant. E[w] = Z exactly, however badly the
    kernel mixes. With one level it is importance sampling of that level: of a normalised energy whose
    derivative by the level is learnt, log Z there is log Z at every level.

    One gradient of E costs as in the kernel; an ``hmc`` of m steps takes about m L gradients a chain.

    Args:
      rng_key: one key.
      energy_at: ``energy_at(params, x, level) -> ()`` of one example, defined once.
      params: its parameters.
      mean: m, of the clean data, in the structure and shape of one example.
      variance: v >= 0 of each entry of the clean data, likewise.
      levels: sigma_1 > ... > sigma_L > 0, ``(L,)``, L at least 1. sigma_1 should be several times the spread
        of the data. More levels tighten the bound: its gap falls as 1 / L.
      make_kernel: ``make_kernel(target, step_size=...) -> Kernel``, an invariant one, such as
        ``partial(hmc, num_integration_steps=5)``.
      num_chains: n, at least 2.
      step_size: of the kernel, in units of the level: it is given ``step_size * sigma_k``, above 0.
      num_steps_per_level: steps of the kernel at each level.

    Returns:
      An `AISResult`, whose positions are near exp(-E(.; sigma_L)).

    Raises:
      TypeError: if an argument is of another type, or ``energy_at`` no function of three arguments.
      ValueError: if the levels do not fall, mean and variance have other shapes, a variance is negative, a
        count is too small, or the kernel refuses its step.

    Example:
      >>> from functools import partial
      >>> from jaxebm.samplers import hmc, power_levels
      >>> energy_at = lambda scale, x, level: 0.5 * jnp.sum(x**2) / (scale**2 + level**2)
      >>> result = level_importance_sampling(
      ...     jax.random.key(0), energy_at, 2.0, jnp.zeros(3), jnp.ones(3), power_levels(10.0, 0.1, 20),
      ...     partial(hmc, num_integration_steps=3), num_chains=500)
      >>> exact = 1.5 * jnp.log(2 * jnp.pi * (2.0**2 + 0.1**2))
      >>> bool(abs(result.log_partition - exact) < 4 * result.standard_error)
      True

    Reference:
      Neal 2001, Annealed importance sampling; Wu, Koehler & Noe 2020 (arXiv 2002.06707), equation 16, for
      deterministic maps between the levels.
    """
    static, numbers = _check(
        rng_key, energy_at, params, mean, variance, levels, make_kernel, step_size, num_steps_per_level
    )
    checks.integer("num_chains", num_chains, 2)
    with checks.shapes_noted(params=params, mean=mean):
        found = _forward(
            rng_key,
            (params, numbers, step_size),
            IndependentGaussian(mean, variance),
            jnp.asarray(levels, float),
            energy_at=energy_at,
            make_kernel=static,
            num_chains=num_chains,
            num_steps=num_steps_per_level,
        )
    return result_of_weights(jnp.zeros(()), 1, found.log_weight, found.position)


def reverse_level_importance_sampling(
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    mean: Position,
    variance: Position,
    levels: Array,
    make_kernel: Callable[..., Kernel],
    exact_samples: Position,
    *,
    step_size: float | Array = 0.2,
    num_steps_per_level: int = 1,
) -> AISResult:
    r"""An upper bound of log Z at the lowest level, in expectation: annealed back from exact samples of it.

    .. math:: \log \hat Z = -\log \frac1n \sum_i w_i, \qquad E[w] = 1 / Z

    with the weights of `level_importance_sampling` along the reversed path. As there, only exact samples give
    a bound; those of a sampler, such as `jaxebm.samplers.predictor_corrector` with noise of the lowest level,
    give one that is as good as they are. `jaxebm.evaluation.interval_of_bounds` makes both an interval.

    Args:
      rng_key: one key.
      energy_at: as in `level_importance_sampling`, with the next three.
      params: its parameters.
      mean: m, in the structure of one example.
      variance: v, likewise.
      levels: the same levels, falling; they are run backward.
      make_kernel: as there.
      exact_samples: n samples of exp(-E(.; sigma_L)), leaves ``(n, ...)``, n at least 2. They have noise of
        the lowest level: they are not clean.
      step_size: as there.
      num_steps_per_level: as there.

    Returns:
      An `AISResult`, whose positions are near the Gaussian of the highest level.

    Raises:
      TypeError: as in `level_importance_sampling`.
      ValueError: as there, and if there are fewer than two samples, or of another shape.

    Example:
      >>> from functools import partial
      >>> from jaxebm.samplers import hmc, power_levels
      >>> energy_at = lambda scale, x, level: 0.5 * jnp.sum(x**2) / (scale**2 + level**2)
      >>> samples = jnp.sqrt(2.0**2 + 0.1**2) * jax.random.normal(jax.random.key(1), (500, 3))
      >>> result = reverse_level_importance_sampling(
      ...     jax.random.key(0), energy_at, 2.0, jnp.zeros(3), jnp.ones(3), power_levels(10.0, 0.1, 20),
      ...     partial(hmc, num_integration_steps=3), samples)
      >>> exact = 1.5 * jnp.log(2 * jnp.pi * (2.0**2 + 0.1**2))
      >>> bool(abs(result.log_partition - exact) < 4 * result.standard_error)
      True

    Reference:
      Grosse, Ghahramani & Adams 2015 (arXiv 1511.02543), section 3.
    """
    static, numbers = _check(
        rng_key, energy_at, params, mean, variance, levels, make_kernel, step_size, num_steps_per_level
    )
    checks.real_arrays("exact_samples", exact_samples)
    count = checks.batch_length("exact_samples", exact_samples)
    if count < 2:
        raise ValueError(f"exact_samples holds {count} example: a standard error needs at least 2.")
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], leaf.dtype), exact_samples)
    checks.same_shapes("mean", mean, "those of one of exact_samples", one)
    with checks.shapes_noted(params=params, exact_samples=exact_samples):
        found = _backward(
            rng_key,
            (params, numbers, step_size),
            IndependentGaussian(mean, variance),
            jnp.asarray(levels, float),
            exact_samples,
            energy_at=energy_at,
            make_kernel=static,
            num_steps=num_steps_per_level,
        )
    return result_of_weights(jnp.zeros(()), -1, found.log_weight, found.position)


def _check(
    rng_key: Any,
    energy_at: Any,
    params: Any,
    mean: Any,
    variance: Any,
    levels: Any,
    make_kernel: Any,
    step_size: Any,
    num_steps: Any,
) -> tuple[StaticKernel, dict[str, Any]]:
    """Raises unless the arguments are of their kinds; returns the kernel's static and traced parts."""
    checks.rng_key("rng_key", rng_key)
    checks.function("energy_at", energy_at, "params", "x", "level")
    checks.arrays("params", params)
    checks.floating("mean", mean)
    checks.floating("variance", variance)
    checks.same_shapes("variance", variance, "those of mean", mean)
    for leaf in jax.tree.leaves(variance):
        checks.non_negative("variance", leaf)
    check_levels(levels)
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.positive_number("step_size", step_size)
    checks.positive_integer("num_steps_per_level", num_steps)
    lowest = jnp.asarray(levels, float)[-1]
    bind_once(make_kernel, lambda x: energy_at(params, x, lowest), {"step_size": step_size * lowest})
    return unbind(make_kernel)


class _Weighted(NamedTuple):
    position: Position
    log_weight: Array


class _WeightedState(NamedTuple):
    position: _Weighted


def _contract(x: Position, gaussian: IndependentGaussian, old: Array, new: Array) -> tuple[Any, Array]:
    """Returns S x, which carries N(m, old^2 + v) to N(m, new^2 + v), and log |det S|."""
    mean, variance = gaussian
    factor = jax.tree.map(lambda v: jnp.sqrt((new**2 + v) / (old**2 + v)), variance)
    moved = jax.tree.map(lambda x, m, factor: (m + (x - m) * factor).astype(x.dtype), x, mean, factor)
    logs = jax.tree.map(lambda leaf: jnp.sum(jnp.log(widened(leaf))), factor)
    return moved, jax.tree.reduce(jnp.add, logs)


def _level_kernels(
    parameters: tuple[Params, dict[str, Any], Array],
    gaussian: IndependentGaussian,
    energy_at: LevelEnergyFn,
    make_kernel: StaticKernel,
    num_steps: int,
) -> tuple[Callable[[Position, Array], Array], Callable[[dict[str, Array]], Kernel]]:
    """Returns E of a position and a level, and the step from ``old`` to ``new``: weigh, contract, move."""
    params, numbers, step_size = parameters

    def energy(x: Position, level: Array) -> Array:
        return jnp.asarray(scalar_target(lambda x: energy_at(params, x, level))(x), float)

    def kernel_at(at: dict[str, Array]) -> Kernel:
        def init(position: _Weighted, rng_key: Array | None = None) -> _WeightedState:
            del rng_key
            return _WeightedState(position)

        def step(rng_key: Array, state: _WeightedState) -> tuple[_WeightedState, None]:
            x, log_weight = state.position
            moved, log_determinant = _contract(x, gaussian, at["old"], at["new"])
            log_weight = log_weight + energy(x, at["old"]) - energy(moved, at["new"]) + log_determinant

            def target(x: Position) -> Array:
                return energy_at(params, x, at["new"])

            kernel = make_kernel.bind(target, numbers, {"step_size": step_size * at["new"]})
            last, _ = run_chain(rng_key, kernel, moved, num_steps)
            return _WeightedState(_Weighted(last.position, log_weight)), None

        return Kernel(init, step)

    return energy, kernel_at


@functools.partial(jax.jit, static_argnames=("energy_at", "make_kernel", "num_chains", "num_steps"))
def _forward(
    rng_key: Array,
    parameters: tuple[Params, dict[str, Any], Array],
    gaussian: IndependentGaussian,
    levels: Array,
    *,
    energy_at: LevelEnergyFn,
    make_kernel: StaticKernel,
    num_chains: int,
    num_steps: int,
) -> _Weighted:
    energy, kernel_at = _level_kernels(parameters, gaussian, energy_at, make_kernel, num_steps)
    highest = gaussian.at_level(levels[0])

    def one_chain(rng_key: Array) -> _Weighted:
        key_start, key_chain = jax.random.split(rng_key)
        x = highest.sample(key_start)
        start = _Weighted(x, -energy(x, levels[0]) - highest.log_density(x))
        if levels.size == 1:
            return start
        steps = {"old": levels[:-1], "new": levels[1:]}
        return run_annealed_chain(key_chain, kernel_at, steps, start)[0].position

    return jax.vmap(one_chain, axis_name=BATCH_AXIS)(jax.random.split(rng_key, num_chains))


@functools.partial(jax.jit, static_argnames=("energy_at", "make_kernel", "num_steps"))
def _backward(
    rng_key: Array,
    parameters: tuple[Params, dict[str, Any], Array],
    gaussian: IndependentGaussian,
    levels: Array,
    positions: Position,
    *,
    energy_at: LevelEnergyFn,
    make_kernel: StaticKernel,
    num_steps: int,
) -> _Weighted:
    energy, kernel_at = _level_kernels(parameters, gaussian, energy_at, make_kernel, num_steps)
    highest = gaussian.at_level(levels[0])

    def one_chain(rng_key: Array, position: Position) -> _Weighted:
        end = _Weighted(position, jnp.zeros(()))
        if levels.size > 1:
            steps = {"old": levels[:0:-1], "new": levels[-2::-1]}
            end = run_annealed_chain(rng_key, kernel_at, steps, end)[0].position
        x, log_weight = end
        return _Weighted(x, log_weight + energy(x, levels[0]) + highest.log_density(x))

    rng_keys = jax.random.split(rng_key, checks.batch_length("positions", positions))
    return jax.vmap(one_chain, axis_name=BATCH_AXIS)(rng_keys, positions)
