"""Running kernels: the only place in the package where ``lax.scan`` meets a kernel.

A chain starts from a position, never from a stored state: a state may cache the energy and the gradient of
parameters that have been updated since. A chain returns only its last state, unless it is asked to collect
more.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.cpu.noise import fold_in
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.watch import Findings, find, tell, watched
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, Kernel, Params, Position

__all__ = ["Collect", "run_annealed_chain", "run_chain", "run_chains", "sample"]

Collect: TypeAlias = Callable[[Any, Any], Any]
"""``(state, info) -> pytree``: what to keep of one step."""


def _nothing(state: Any, info: Any) -> None:
    del state, info


def run_chain(
    rng_key: Array, kernel: Kernel, position: Position, num_steps: int, *, collect: Collect = _nothing
) -> tuple[Any, Any]:
    """Runs one chain from a position.

    Args:
      rng_key: one key.
      kernel: this package's or BlackJAX's (anything with ``init(position, rng_key)`` and
        ``step(rng_key, state)``).
      position: initial position, without a batch axis. The state is always initialised from it.
      num_steps: number of steps, a Python integer of at least 1.
      collect: ``(state, info) -> pytree``, called after each step. Memory grows with num_steps by what it
        returns, so the default returns nothing.

    Returns:
      ``(state, history)``: the last state, and the outputs of ``collect`` stacked to leaves
      ``(num_steps, ...)``.

    Raises:
      ValueError: if num_steps is not a positive integer, the position empty, or the energy not a scalar.
      TypeError: if rng_key is not a typed key, the kernel not bound to a target, or collect no function of a
        state and an info.

    Example:
      >>> kernel = sgld(lambda x: 0.5 * jnp.sum(x**2), step_size=0.1)
      >>> state, energies = run_chain(
      ...     jax.random.key(0), kernel, jnp.ones(2), 5, collect=lambda state, info: info.energy)
      >>> state.position.shape, energies.shape
      ((2,), (5,))
    """
    checks.rng_key("rng_key", rng_key)
    checks.bound_kernel("kernel", kernel)
    checks.positive_integer("num_steps", num_steps)
    _check_position(position)
    checks.function("collect", collect, "state", "info")
    init_key, steps_key = jax.random.split(rng_key)

    def step(state: Any, index: Array) -> tuple[Any, Any]:
        # Folding the index in, rather than splitting num_steps keys, keeps memory free of num_steps.
        state, info = kernel.step(fold_in(steps_key, index), state)
        return state, collect(state, info)

    with checks.shapes_noted(position=position):
        return jax.lax.scan(step, kernel.init(position, rng_key=init_key), jnp.arange(num_steps))


def run_chains(
    rng_key: Array, kernel: Kernel, positions: Position, num_steps: int, *, collect: Collect = _nothing
) -> tuple[Any, Any]:
    """Runs many independent chains of one kernel: ``run_chain`` under ``vmap``.

    The mapped axis is named ``jaxebm.types.BATCH_AXIS``, so that an energy with batch normalisation averages
    over the chains.

    Args:
      rng_key: one key, split into one per chain; or ``(n,)`` keys, one per chain, which can be sharded like
        the positions.
      kernel: as in ``run_chain``.
      positions: leaves ``(n, ...)``.
      num_steps: number of steps, a Python integer of at least 1.
      collect: as in ``run_chain``, of one chain.

    Returns:
      ``(states, history)`` with leaves ``(n, ...)`` and ``(n, num_steps, ...)``.

    Raises:
      ValueError: if the leaves of positions disagree about n or n is 0, if the keys are not one per chain, if
        num_steps is not a positive integer, or if the energy is not a scalar.
      TypeError: if rng_key is not a typed key, the kernel not bound to a target, or collect no function of a
        state and an info.

    Example:
      >>> kernel = sgld(lambda x: 0.5 * jnp.sum(x**2), step_size=0.1)
      >>> states, history = run_chains(jax.random.key(0), kernel, jnp.ones((8, 2)), 5)
      >>> states.position.shape, history
      ((8, 2), None)
    """
    checks.bound_kernel("kernel", kernel)
    checks.positive_integer("num_steps", num_steps)
    checks.function("collect", collect, "state", "info")
    rng_keys = checks.rng_keys("rng_key", rng_key, _num_chains(positions), "chains in positions")

    def one_chain(chain_key: Array, position: Position) -> tuple[Any, Any]:
        return run_chain(chain_key, kernel, position, num_steps, collect=collect)

    with checks.shapes_noted(positions=positions):
        return jax.vmap(one_chain, axis_name=BATCH_AXIS)(rng_keys, positions)


def run_annealed_chain(
    rng_key: Array,
    kernel_at: Callable[[Any], Kernel],
    schedule: Any,
    position: Position,
    *,
    collect: Collect = _nothing,
    keep_state: bool = False,
) -> tuple[Any, Any]:
    """Runs one chain whose kernel changes at every step: annealing, tempering, decaying step sizes.

    By default each step starts from a position alone, with a state initialised by its own kernel. That is
    correct for every kernel and every target, because no cached value of the last target is used. It also
    drops the memory of a state: the momenta of ``underdamped``, the square average of
    ``preconditioned_sgld``. ``keep_state=True`` passes the state from kernel to kernel instead. That is
    correct if the target stays the same along the schedule (step sizes, noise, friction), or if the state
    caches nothing of it. It is wrong for ``mala``, ``hmc``, ``nuts`` and ``underdamped`` on a target
    that changes: they would use the energy or the gradient of the last one.

    Args:
      rng_key: one key.
      kernel_at: one slice of the schedule -> the kernel of that step. It is called while tracing, so the
        slice holds traced values.
      schedule: pytree with leaves ``(num_steps, ...)``, or one array.
      position: where the chain starts, without a batch axis.
      collect: as in ``run_chain``.
      keep_state: whether a step takes over the last step's state, rather than its position only.

    Returns:
      ``(state, history)``: the last state, made by the last kernel, and leaves ``(num_steps, ...)``.

    Raises:
      ValueError: if the leaves of the schedule disagree about num_steps or it is 0, if the position is empty,
        or if the energy is not a scalar.
      TypeError: if rng_key is not a typed key, kernel_at or collect no such function, or what kernel_at
        returns is not a kernel.

    Example:
      From temperature 10 down to 1, with one kernel per temperature:

      >>> energy = lambda x: 0.5 * jnp.sum(x**2)
      >>> cooling = {"inverse_temperature": jnp.linspace(0.1, 1.0, 5)}
      >>> kernel_at = lambda at: sgld(lambda x: at["inverse_temperature"] * energy(x), step_size=0.1)
      >>> state, _ = run_annealed_chain(jax.random.key(0), kernel_at, cooling, jnp.ones(2))
      >>> state.position.shape
      (2,)
    """
    checks.rng_key("rng_key", rng_key)
    checks.function("kernel_at", kernel_at, "schedule_slice")
    num_steps = checks.batch_length("schedule", schedule, "a schedule of steps")
    _check_position(position)
    checks.function("collect", collect, "state", "info")
    checks.boolean("keep_state", keep_state)
    init_key, steps_key = jax.random.split(rng_key)

    def kernel_of(schedule_slice: Any) -> Kernel:
        kernel = kernel_at(schedule_slice)
        checks.bound_kernel("kernel_at(schedule_slice)", kernel)
        return kernel

    def step(state: Any, at: tuple[Array, Any]) -> tuple[Any, Any]:
        index, schedule_slice = at
        kernel = kernel_of(schedule_slice)
        state_key, step_key = jax.random.split(fold_in(steps_key, index))
        if not keep_state:  # the target may have changed, and cached values with it
            state = kernel.init(state.position, rng_key=state_key)
        state, info = kernel.step(step_key, state)
        return state, collect(state, info)

    with checks.shapes_noted(schedule=schedule, position=position):
        first = kernel_of(jax.tree.map(lambda leaf: leaf[0], schedule))
        return jax.lax.scan(step, first.init(position, rng_key=init_key), (jnp.arange(num_steps), schedule))


def sample(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    positions: Position,
    num_steps: int,
    *,
    kernel: Callable[..., Kernel] = sgld,
    collect: Collect | None = None,
    check: bool = False,
    **kernel_parameters: Any,
) -> Any:
    """Draws samples from exp(-E(x)) with many chains, compiled.

    Compiled once for each energy, kernel, collect, num_steps and shape: new values of params, positions, step
    sizes and other floats or arrays run the same program. Integers, booleans and strings among the kernel's
    parameters are compiled in (they may set shapes, as nuts' ``max_num_doublings`` does), so write
    ``step_size=1.0``, not ``1``. ``energy``, ``kernel`` and ``collect`` are recognised by identity: define
    them once, outside of any loop.

    Args:
      rng_key: one key, or ``(n,)`` keys, as in ``run_chains``.
      energy: ``energy(params, x) -> ()``, of one example.
      params: its parameters.
      positions: where the n chains start, leaves ``(n, ...)``.
      num_steps: number of steps, a Python integer of at least 1.
      kernel: ``kernel(target, **kernel_parameters) -> Kernel``: ``sgld``, ``mala``, ``hmc``, ``nuts`` or
        yours.
      collect: ``(state, info) -> pytree`` of one chain and step, to keep a history.
      check: says afterwards what went wrong. Chains that end at NaN or infinity raise an error; chains that
        never moved, and transitions that the kernel calls divergent (``info.is_divergent`` of ``hmc`` and
        ``nuts``), give a ``SamplingWarning`` with their numbers. It compiles a program of its own, which
        draws the same samples and keeps two numbers a chain; it reads its result, so it waits for the chains
        and does not run inside of ``jit``.
      **kernel_parameters: arguments of the kernel besides its target.

    Returns:
      The last positions, leaves ``(n, ...)``; or ``(positions, history)`` with history leaves
      ``(n, num_steps, ...)`` if ``collect`` is given.

    Raises:
      ValueError: if positions is empty or ragged, if a parameter is refused by the kernel, or if the energy
        is not a scalar.
      TypeError: if the positions are not floating-point, if rng_key is not a typed key, or if the kernel does
        not take such parameters.
      FloatingPointError: with ``check``, if a chain ended at a NaN or infinite position.

    Example:
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> positions = sample(jax.random.key(0), energy, jnp.ones(2), jnp.zeros((500, 2)), 100, step_size=0.1)
      >>> positions.shape, bool(jnp.all(jnp.abs(positions.mean(0) - 1) < 0.3))
      ((500, 2), True)
    """
    checks.function("energy", energy, "params", "x")
    checks.positive_integer("num_steps", num_steps)
    checks.kernel_constructor("kernel", kernel)
    if collect is not None:
        checks.function("collect", collect, "state", "info")
    checks.boolean("check", check)
    rng_keys = checks.rng_keys("rng_key", rng_key, _num_chains(positions), "chains in positions")
    checks.kernel_parameters("kernel", kernel, kernel_parameters)
    # The kernel's own checks, while the numbers can be seen.
    kernel(partial(energy, params), **kernel_parameters)
    leaves, structure = jax.tree.flatten(kernel_parameters)
    traced = [leaf for leaf in leaves if _is_number(leaf)]
    static = tuple(None if _is_number(leaf) else leaf for leaf in leaves)
    with checks.shapes_noted(params=params, positions=positions):
        states, history, findings = _sample(
            rng_keys,
            energy,
            params,
            positions,
            num_steps,
            kernel,
            collect or _nothing,
            check,
            traced,
            static,
            structure,
        )
    if findings is not None:
        tell(findings, len(rng_keys), num_steps, kernel_parameters)
    return states.position if collect is None else (states.position, history)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float | np.ndarray | np.generic | jax.Array)


@partial(
    jax.jit, static_argnames=("energy", "num_steps", "kernel", "collect", "check", "static", "structure")
)
def _sample(
    rng_keys: Array,
    energy: EnergyFn,
    params: Params,
    positions: Position,
    num_steps: int,
    kernel: Callable[..., Kernel],
    collect: Collect,
    check: bool,
    traced: list[Array],
    static: tuple[Any, ...],
    structure: Any,
) -> tuple[Any, Any, Findings | None]:
    remaining = iter(traced)
    leaves = [next(remaining) if leaf is None else leaf for leaf in static]
    kernel_parameters = jax.tree.unflatten(structure, leaves)
    target = partial(energy, params)
    bound = kernel(target, **kernel_parameters)
    if not check:
        return *run_chains(rng_keys, bound, positions, num_steps, collect=collect), None
    watched_states, history = run_chains(
        rng_keys,
        watched(bound),
        positions,
        num_steps,
        collect=lambda state, info: collect(state.state, info),
    )
    return watched_states.state, history, find(target, positions, watched_states)


def _check_position(position: Position) -> None:
    checks.arrays("position", position)
    if not any(np.size(leaf) for leaf in jax.tree.leaves(position)):
        shapes = jax.tree.map(np.shape, position)
        raise ValueError(f"position has shape {shapes}: a position of at least one number is needed.")


def _num_chains(positions: Position) -> int:
    return checks.batch_length("positions", positions, "a batch of chains")
