"""A weighted walk from one energy to another: what annealed importance sampling is made of.

The path is geometric, E_t(x) = (1 - t) E_0(x) + t E_1(x). Each chain carries its log weight beside its
position, so memory does not grow with the number of temperatures.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.target import AnalyticTarget
from jaxebm.samplers.chains import run_annealed_chain, run_chain
from jaxebm.samplers.langevin import scalar_target
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, Kernel, Params, Position, Target

__all__ = ["Base", "anneal", "linear_schedule", "sigmoid_schedule"]


class Base(NamedTuple):
    """Where the path begins; an ``AnalyticTarget`` is one already. It must have mass wherever the energy has.

    Attributes:
      energy: ``energy(params, x) -> ()``, E_0.
      params: its parameters.
      log_partition: ``log_partition(params) -> ()``, the exact log Z_0, in nats.
      sample: ``sample(rng_key, params, num_samples)`` -> independent exact draws, leaves
        ``(num_samples, ...)``.
    """

    energy: EnergyFn
    params: Params
    log_partition: Callable[[Params], Array]
    sample: Callable[[Array, Params, int], Position]


def linear_schedule(num_temperatures: int) -> Array:
    """Returns t_k = k / (T - 1), shape ``(num_temperatures,)``, for T of at least 2.

    Example:
      >>> linear_schedule(5).tolist()
      [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return jnp.asarray(
        np.linspace(0.0, 1.0, _at_least_two("num_temperatures", num_temperatures)), dtype=float
    )


def sigmoid_schedule(num_temperatures: int, steepness: float = 4.0) -> Array:
    r"""Returns a schedule whose steps are short near both ends, where distributions change fast.

    .. math:: t_k = \frac{s_k - s_0}{s_{T-1} - s_0}, \qquad s_k = \mathrm{sigmoid}(\delta (2 k / (T - 1) - 1))

    Args:
      num_temperatures: T, at least 2.
      steepness: delta > 0; toward 0 the schedule is linear.

    Returns:
      t, shape ``(num_temperatures,)``, from 0 to 1.

    Raises:
      ValueError: if num_temperatures is not an integer of at least 2, or the steepness is not positive.

    Example:
      >>> [round(t, 3) for t in sigmoid_schedule(5).tolist()]
      [0.0, 0.105, 0.5, 0.895, 1.0]

    Reference:
      Grosse, Ghahramani & Adams 2015 (arXiv:1511.02543), whose released code has delta = 4.
    """
    checks.positive("steepness", steepness)
    along = np.linspace(-1.0, 1.0, _at_least_two("num_temperatures", num_temperatures))
    curve = np.tanh(0.5 * steepness * along)  # 2 sigmoid - 1, which the normalisation does not see
    return jnp.asarray((curve - curve[0]) / (curve[-1] - curve[0]), dtype=float)


def anneal(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    base: Base | AnalyticTarget,
    make_kernel: Callable[..., Kernel],
    schedule: Array,
    positions: Position,
    num_steps_per_temperature: int = 1,
    *,
    kernel_schedule: Mapping[str, Any] | None = None,
) -> tuple[Array, Position]:
    r"""Walks chains along the path and weighs each step, compiled: forward or backward, as the schedule runs.

    .. math:: \log w = \sum_{k=1}^{T-1} E_{t_{k-1}}(x_{k-1}) - E_{t_k}(x_{k-1})

    x_k comes from x_{k-1} by a kernel that leaves exp(-E_{t_k}) invariant: each difference is taken *before*
    the move. Where x_0 is distributed as exp(-E_{t_0}), E[w] is the ratio of the last Z to the first exactly,
    however badly the kernel mixes. A kernel that is not invariant (``sgld``) breaks this.

    One program is compiled for each energy, base, kernel and shape; new parameters, schedules and kernel
    parameters run it again. Energies and kernels are recognised by identity: define them once.

    Args:
      rng_key: one key.
      energy: ``energy(params, x) -> ()``, E_1.
      params: its parameters.
      base: E_0; only its energy and parameters are used.
      make_kernel: ``make_kernel(target) -> Kernel``. The floats and arrays that a ``functools.partial`` holds
        by keyword are traced, so ``partial(mala, step_size=0.1)`` may be written anew for each call.
      schedule: t, ``(T,)`` in [0, 1], T at least 2. The chains start at t_0, unmoved; the last move is at
        t_{T-1}.
      positions: where the n chains start, leaves ``(n, ...)``.
      num_steps_per_temperature: steps of the kernel at each temperature, at least 1.
      kernel_schedule: keyword arguments that change along the path, leaves ``(T, ...)``: at t_k the kernel is
        ``make_kernel(target, **{name: value[k]})``, as ``{"step_size": 0.5 / (1 + 9 * schedule)}``.

    Returns:
      ``(log_weights, positions)``: ``(n,)``, and where the chains ended, leaves ``(n, ...)``.

    Raises:
      ValueError: if the schedule, positions or ``kernel_schedule`` have another shape, a number is out of its
        range, a kernel refuses its parameters, or an energy is not a scalar.

    Example:
      >>> from jaxebm.energies import gaussian
      >>> from jaxebm.samplers import mala
      >>> base, wide = gaussian([0.0], [[1.0]]), gaussian([0.0], [[4.0]])
      >>> log_weights, positions = anneal(
      ...     jax.random.key(0), wide.energy, wide.params, base, functools.partial(mala, step_size=0.5),
      ...     linear_schedule(20), base.sample(jax.random.key(1), base.params, 500))
      >>> log_weights.shape, positions.shape
      ((500,), (500, 1))

    Reference:
      Neal 2001, Annealed importance sampling, section 2.
    """
    shape = jnp.shape(schedule)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"schedule has shape {shape}: (T,) with at least two temperatures is needed.")
    checks.in_range("schedule", schedule, 0.0, 1.0)
    checks.batch_length("positions", positions)
    checks.positive_integer("num_steps_per_temperature", num_steps_per_temperature)
    varying = dict(kernel_schedule or {})
    for name, value in varying.items():
        if (found := checks.batch_length(f"kernel_schedule[{name!r}]", value)) != shape[0]:
            raise ValueError(
                f"kernel_schedule[{name!r}] has length {found}: {shape[0]} are needed, as in schedule."
            )
    first = jax.tree.map(lambda leaf: leaf[0], varying)
    make_kernel(functools.partial(energy, params), **first)  # its own checks, while the numbers can be seen
    function, static, traced = _unbind(make_kernel)
    ends = _anneal(
        rng_key,
        (base.params, params, traced, varying),
        jnp.asarray(schedule, dtype=float),
        positions,
        energies=(base.energy, energy),
        make_kernel=function,
        static=static,
        num_steps=num_steps_per_temperature,
    )
    return ends.log_weight, ends.position


class _Weighted(NamedTuple):
    """A position that carries the log weight of the way to it, so that no history is needed.

    ``excess`` is what rounding has added to ``log_weight``. Without it (Kahan's sum) the float32 log weights
    of a gap of 500 nats were measured 0.005 nats off after 1,000 temperatures and 0.35 after 100,000, all
    chains alike, so that no standard error shows it.
    """

    position: Position
    log_weight: Array
    excess: Array


class _WeightedState(NamedTuple):
    position: _Weighted


def _weighted(kernel: Kernel, log_weight_increment: Target, num_steps: int) -> Kernel:
    """A kernel over ``_Weighted``: it weighs the change of target where it stands, and only then moves."""

    def init(position: _Weighted, rng_key: Array | None = None) -> _WeightedState:
        del rng_key
        return _WeightedState(position)

    def step(rng_key: Array, state: _WeightedState) -> tuple[_WeightedState, None]:
        x, log_weight, excess = state.position
        increment = log_weight_increment(x) - excess
        total = log_weight + increment
        moved, _ = run_chain(rng_key, kernel, x, num_steps)
        return _WeightedState(_Weighted(moved.position, total, (total - log_weight) - increment)), None

    return Kernel(init, step)


@functools.partial(jax.jit, static_argnames=("energies", "make_kernel", "static", "num_steps"))
def _anneal(
    rng_key: Array,
    parameters: tuple[Params, Params, dict[str, Any], dict[str, Any]],
    schedule: Array,
    positions: Position,
    *,
    energies: tuple[EnergyFn, EnergyFn],
    make_kernel: Callable[..., Kernel],
    static: tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]],
    num_steps: int,
) -> _Weighted:
    base_params, params, constant, varying = parameters
    begin = scalar_target(functools.partial(energies[0], base_params))
    end = scalar_target(functools.partial(energies[1], params))
    arguments, keywords = static

    def wide(value: Array) -> Array:
        return jnp.asarray(value, schedule.dtype)  # an energy may be bfloat16, or the constant 0

    def kernel_at(at: dict[str, Any]) -> Kernel:
        def target(x: Position) -> Array:
            return (1 - at["t"]) * wide(begin(x)) + at["t"] * wide(end(x))

        def log_weight_increment(x: Position) -> Array:
            return (at["t"] - at["previous_t"]) * (wide(begin(x)) - wide(end(x)))

        kernel = make_kernel(target, *arguments, **dict(keywords), **constant, **at["varying"])
        return _weighted(kernel, log_weight_increment, num_steps)

    def one_chain(chain_key: Array, position: Position) -> _Weighted:
        start = _Weighted(position, jnp.zeros(()), jnp.zeros(()))
        state, _ = run_annealed_chain(chain_key, kernel_at, steps, start)
        return state.position

    varying = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1:], varying)
    steps = {"previous_t": schedule[:-1], "t": schedule[1:], "varying": varying}
    rng_keys = jax.random.split(rng_key, checks.batch_length("positions", positions))
    return jax.vmap(one_chain, axis_name=BATCH_AXIS)(rng_keys, positions)


def _unbind(make_kernel: Callable[..., Kernel]) -> tuple[Callable[..., Kernel], Any, dict[str, Any]]:
    """Takes a ``functools.partial`` apart: what is compiled in, and the keywords that hold numbers alone."""
    if not isinstance(make_kernel, functools.partial):
        return make_kernel, ((), ()), {}

    def holds_numbers(value: Any) -> bool:
        leaves = jax.tree.leaves(value)
        return bool(leaves) and all(
            isinstance(leaf, float | np.ndarray | np.generic | jax.Array) for leaf in leaves
        )

    traced = {name: value for name, value in make_kernel.keywords.items() if holds_numbers(value)}
    rest = tuple(item for item in make_kernel.keywords.items() if item[0] not in traced)
    return make_kernel.func, (make_kernel.args, rest), traced


def _at_least_two(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 2:
        raise ValueError(f"{name}={value!r}: {name} must be an integer of at least 2.")
    return int(value)
