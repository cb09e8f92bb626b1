"""Where the model's samples come from during training: data, noise, or a buffer of persistent chains.

Each constructor returns a `NegativeSampler`, two pure functions in the style of an Optax transformation:
``init`` makes the state that is kept in the training state, ``draw`` returns samples and the new state. The
initial distribution is part of that state, so its arrays are arguments of the compiled program and not
constants.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxebm import checks
from jaxebm.objectives.labelled_chains import SHARDING, map_chains, run_labelled_chains
from jaxebm.samplers.initial import ClassGaussianInitial, Initial, uniform_like
from jaxebm.samplers.replay import BufferDraw, ReplayBuffer, check_strata, draw, init_buffer, write
from jaxebm.types import Array, JointEnergyFn, MakeKernel, Params, Position

__all__ = [
    "Augment",
    "NegativeSampler",
    "Negatives",
    "SamplerState",
    "chains_of",
    "contrastive_divergence",
    "no_negatives",
    "persistent",
    "short_run",
]

Augment: TypeAlias = Callable[[Array, Position], Position]
"""``(rng_key, position) -> position`` of one chain: a random change of the same shapes and dtypes."""


class Negatives(NamedTuple):
    """Samples of the model.

    Attributes:
      positions: each leaf ``(n, ...)``.
      labels: the class that each chain belongs to, ``(n,)``; zeros where there are no classes.
      displacement: how far each chain moved in this draw, ``(n,)`` float32: the root of its mean squared
        displacement over the entries of a position, from where it started (restarted or not).

    All are None for a sampler that draws no samples (`no_negatives`).
    """

    positions: Position
    labels: Array | None
    displacement: Array | None = None


class SamplerState(NamedTuple):
    """What a negative sampler keeps from one update to the next.

    Attributes:
      buffer: the persistent chains, or None where chains do not persist after an update.
      initial: the initial distribution, a pytree of arrays that no update changes; None where no chain starts
        from one.
    """

    buffer: ReplayBuffer | None = None
    initial: Initial | None = None


class NegativeSampler(NamedTuple):
    """How negatives are drawn.

    Attributes:
      init: ``(rng_key, example) -> sampler_state``, any pytree of arrays; the example is one x, of which only
        the shapes matter.
      draw: ``(rng_key, energy, params, x_data, labels, sampler_state) -> (Negatives, sampler_state)``, where
        ``energy(params, x, label)`` may ignore the label (marginal chains) or use it (class-conditional
        chains).
      num_classes: number of classes that its chains belong to; None where they take the labels of the
        batch.
    """

    init: Callable[[Array, Position], Any]
    draw: Callable[..., tuple[Negatives, Any]]
    num_classes: int | None = None


def chains_of(sampler_state: Any) -> Any:
    """Returns the part of a sampler's state that updates change: the buffer of a `SamplerState`.

    Example:
      >>> chains_of(SamplerState(buffer=None)) is None
      True
    """
    return sampler_state.buffer if isinstance(sampler_state, SamplerState) else sampler_state


def _check_classes(initial: Initial | None, num_classes: int) -> None:
    if isinstance(initial, ClassGaussianInitial) and initial.num_classes < num_classes:
        raise ValueError(
            f"num_classes={num_classes}, but initial has Gaussians of {initial.num_classes} classes: one for "
            f"each class is needed (fit_class_gaussians)."
        )


def _starts(initial: Initial | None, example: Position) -> Initial:
    """The initial distribution as a pytree of arrays; uniform noise on [-1, 1) by default."""
    initial = uniform_like(example) if initial is None else initial
    if jax.tree_util.all_leaves([initial]):  # a plain function: it passes through jit without arrays
        return jax.tree_util.Partial(initial)
    return jax.tree.map(jnp.asarray, initial)


def _check_initial(initial: Any) -> None:
    if initial is not None:
        checks.function("initial", initial, "rng_key", "label")


def _check_sharding(sharding: Any) -> None:
    checks.instance("sharding", sharding, (NamedSharding, type(None)), SHARDING)


def _displacement(start: Position, end: Position) -> Array:
    """sqrt(mean |end - start|^2) of each chain, the mean over all entries of all leaves."""

    def squares(before: Array, after: Array) -> Array:
        # Differences of 16-bit positions are taken in 32 bits.
        moved = jnp.asarray(after, jnp.float32) - jnp.asarray(before, jnp.float32)
        return jnp.sum(moved**2, axis=tuple(range(1, moved.ndim)))

    totals = jax.tree.leaves(jax.tree.map(squares, start, end))
    sizes = [leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(end)]
    return jnp.sqrt(sum(totals, start=jnp.zeros(())) / sum(sizes))


def _no_state(rng_key: Array, example: Position) -> SamplerState:
    del rng_key, example
    return SamplerState()


# Compiled separately, with the initial distribution as an argument: as a constant of a larger program, that
# of JEM++ on CIFAR-10 (377 MB) takes most of a minute to compile.
_init_buffer = jax.jit(init_buffer, static_argnames=("capacity", "num_classes", "num_strata"))


def contrastive_divergence(
    make_kernel: MakeKernel, *, num_steps: int, sharding: NamedSharding | None = None
) -> NegativeSampler:
    """CD-k: chains of k steps that start at the data of the batch; no state.

    Args:
      make_kernel: binds a kernel to a target, ``partial(sgld, step_size=...)``.
      num_steps: k, kernel steps.
      sharding: how the chains are split over devices, ``jaxebm.training.Placement.split``; None for one.

    Returns:
      A sampler with one negative per example of the batch.

    Raises:
      TypeError: if ``make_kernel`` binds no kernel, or ``sharding`` has the wrong type.
      ValueError: if ``num_steps`` is not an integer of at least 1; from ``draw``, if ``x_data`` is None.

    Example:
      >>> from functools import partial
      >>> from jaxebm.samplers.langevin import sgld
      >>> sampler = contrastive_divergence(partial(sgld, step_size=0.5), num_steps=1)
      >>> energy = lambda params, x, label: 0.5 * jnp.sum(x**2)
      >>> x_data = jnp.ones((4, 2))
      >>> state = sampler.init(jax.random.key(0), x_data[0])
      >>> negatives, state = sampler.draw(jax.random.key(1), energy, None, x_data, None, state)
      >>> negatives.positions.shape
      (4, 2)

    Reference:
      Hinton 2002, "Training products of experts by minimizing contrastive divergence".
    """
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.positive_integer("num_steps", num_steps)
    _check_sharding(sharding)

    def sample(
        rng_key: Array,
        energy: JointEnergyFn,
        params: Params,
        x_data: Position,
        labels: Array | None,
        sampler_state: Any,
    ) -> tuple[Negatives, Any]:
        checks.rng_key("rng_key", rng_key)
        if x_data is None:
            raise ValueError(
                "x_data is None: contrastive divergence starts its chains at the data of the batch."
            )
        if labels is None:
            labels = jnp.zeros(checks.batch_length("x_data", x_data), jnp.int32)
        positions = run_labelled_chains(
            rng_key, make_kernel, energy, params, x_data, labels, num_steps, sharding
        )
        return Negatives(positions, labels, _displacement(x_data, positions)), sampler_state

    return NegativeSampler(_no_state, sample)


def short_run(
    make_kernel: MakeKernel,
    *,
    num_steps: int,
    num_chains: int,
    initial: Initial | None = None,
    num_classes: int = 1,
    sharding: NamedSharding | None = None,
) -> NegativeSampler:
    """Short-run negatives: every chain starts from a new draw of ``initial``.

    Args:
      make_kernel: binds a kernel to a target.
      num_steps: kernel steps.
      num_chains: negatives per draw.
      initial: ``(rng_key, label) -> position``; None takes uniform noise on [-1, 1) in the shape of an
        example (`jaxebm.samplers.uniform_like`).
      num_classes: chain i belongs to class i modulo this number.
      sharding: how the chains are split over devices, ``jaxebm.training.Placement.split``; None for one.

    Returns:
      A sampler of ``num_chains`` negatives.

    Raises:
      TypeError: if ``make_kernel``, ``initial`` or ``sharding`` has the wrong type.
      ValueError: if a count is not an integer of at least 1.

    Example:
      >>> from functools import partial
      >>> import jax, jax.numpy as jnp
      >>> from jaxebm.samplers.langevin import sgld
      >>> sampler = short_run(partial(sgld, step_size=0.1), num_steps=5, num_chains=8)
      >>> energy = lambda params, x, y: 0.5 * jnp.sum(x**2)
      >>> state = sampler.init(jax.random.key(0), jnp.zeros(2))
      >>> negatives, state = sampler.draw(jax.random.key(1), energy, None, None, None, state)
      >>> negatives.positions.shape
      (8, 2)

    Reference:
      Nijkamp et al. 2019 (arXiv 1904.09770), "Learning non-convergent non-persistent short-run MCMC".
    """
    checks.kernel_constructor("make_kernel", make_kernel)
    _check_initial(initial)
    _check_sharding(sharding)
    for name, value in (("num_steps", num_steps), ("num_chains", num_chains), ("num_classes", num_classes)):
        checks.positive_integer(name, value)
    _check_classes(initial, num_classes)

    def sample(
        rng_key: Array,
        energy: JointEnergyFn,
        params: Params,
        x_data: Position,
        labels: Array | None,
        sampler_state: Any,
    ) -> tuple[Negatives, Any]:
        del x_data, labels
        checks.rng_key("rng_key", rng_key)
        key_start, key_chain = jax.random.split(rng_key)
        chain_labels = jnp.arange(num_chains, dtype=jnp.int32) % num_classes
        start = jax.vmap(sampler_state.initial)(jax.random.split(key_start, num_chains), chain_labels)
        positions = run_labelled_chains(
            key_chain, make_kernel, energy, params, start, chain_labels, num_steps, sharding
        )
        return Negatives(positions, chain_labels, _displacement(start, positions)), sampler_state

    def init(rng_key: Array, example: Position) -> SamplerState:
        del rng_key
        return SamplerState(initial=_starts(initial, example))

    return NegativeSampler(init, sample, num_classes)


def persistent(
    make_kernel: MakeKernel,
    *,
    num_steps: int,
    num_chains: int,
    initial: Initial | None = None,
    capacity: int = 10_000,
    restart_probability: float = 0.05,
    num_classes: int = 1,
    num_strata: int = 1,
    augment: Augment | None = None,
    sharding: NamedSharding | None = None,
) -> NegativeSampler:
    """Persistent negatives (PCD): chains are kept in a replay buffer, with occasional restarts.

    Args:
      make_kernel: binds a kernel to a target.
      num_steps: kernel steps per draw.
      num_chains: negatives per draw; their slots are unique, and what was read from a slot goes back to it.
      initial: ``(rng_key, label) -> position``, for the first filling and for restarts; None takes uniform
        noise on [-1, 1) in the shape of an example (`jaxebm.samplers.uniform_like`).
      capacity: slots of the buffer, at least ``num_chains`` and a multiple of ``num_classes * num_strata``.
      restart_probability: probability that a drawn chain is restarted, in [0, 1].
      num_classes: slot i belongs to class i modulo this number.
      num_strata: contiguous blocks of slots; each block gives ``num_chains / num_strata`` chains of every
        draw. Any number of devices that divides it draws the same negatives, each from its own slots.
      augment: ``(rng_key, position) -> position`` of the same shapes, such as a random flip, crop or blur:
        applied to every drawn chain that is not restarted, before its steps, so that chains reach modes
        that the kernel's own steps would not reach. `Negatives.displacement` is measured from the augmented
        position. None does not augment.
      sharding: how slots and chains are split over devices, ``jaxebm.training.Placement.split``; None for
        one device.

    Returns:
      A sampler whose state is a `SamplerState` with a `ReplayBuffer`.

    Raises:
      TypeError: if ``make_kernel``, ``initial``, ``augment`` or ``sharding`` has the wrong type.
      ValueError: if a count is not an integer of at least 1, the buffer is smaller than ``num_chains``,
        ``num_strata`` does not divide ``capacity`` and ``num_chains``, the sharding's devices do not divide
        ``num_strata``, or ``restart_probability`` lies outside [0, 1]; from ``init``, if ``capacity`` is not
        a multiple of ``num_classes * num_strata``; from ``draw``, if ``augment`` changes a shape.

    Example:
      >>> from functools import partial
      >>> import jax, jax.numpy as jnp
      >>> from jaxebm.samplers.langevin import sgld
      >>> sampler = persistent(partial(sgld, step_size=0.1), num_steps=5, num_chains=8, capacity=100)
      >>> state = sampler.init(jax.random.key(0), jnp.zeros(2))
      >>> energy = lambda params, x, y: 0.5 * jnp.sum(x**2)
      >>> negatives, state = sampler.draw(jax.random.key(1), energy, None, None, None, state)
      >>> negatives.positions.shape, int(jnp.sum(state.buffer.ages > 0))
      ((8, 2), 8)

    Reference:
      Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient";
      with restarts, Du & Mordatch 2019 (arXiv 1903.08689), algorithm 1; with augmentation, Du et al. 2021
      (arXiv 2012.01316, "data augmentation transitions").
    """
    checks.kernel_constructor("make_kernel", make_kernel)
    _check_initial(initial)
    _check_sharding(sharding)
    if augment is not None:
        checks.function("augment", augment, "rng_key", "position")
    counts = {
        "num_steps": num_steps,
        "num_chains": num_chains,
        "capacity": capacity,
        "num_classes": num_classes,
    }
    for name, value in counts.items():
        checks.positive_integer(name, value)
    _check_classes(initial, num_classes)
    checks.in_range("restart_probability", restart_probability, 0.0, 1.0)
    checks.one_number("restart_probability", restart_probability)
    if capacity < num_chains:
        raise ValueError(
            f"capacity={capacity} is smaller than num_chains={num_chains}: a draw takes unique slots, so the "
            "buffer must hold at least one slot per chain."
        )
    check_strata(num_strata, capacity, num_chains, sharding)

    def sample(
        rng_key: Array,
        energy: JointEnergyFn,
        params: Params,
        x_data: Position,
        labels: Array | None,
        sampler_state: Any,
    ) -> tuple[Negatives, Any]:
        del x_data, labels
        checks.rng_key("rng_key", rng_key)
        # Splitting off another key would change the results of runs that do not augment.
        keys = jax.random.split(rng_key) if augment is None else jax.random.split(rng_key, 3)
        key_draw, key_chain = keys[0], keys[1]
        drawn = draw(
            key_draw,
            sampler_state.buffer,
            num_chains,
            restart_probability,
            sampler_state.initial,
            num_strata=num_strata,
            sharding=sharding,
        )
        if augment is not None:
            drawn = _augmented(keys[2], augment, drawn, sharding)
        positions = run_labelled_chains(
            key_chain, make_kernel, energy, params, drawn.positions, drawn.labels, num_steps, sharding
        )
        samples = Negatives(positions, drawn.labels, _displacement(drawn.positions, positions))
        buffer = write(sampler_state.buffer, drawn, positions, num_steps, sharding=sharding)
        return samples, sampler_state._replace(buffer=buffer)

    def init(rng_key: Array, example: Position) -> SamplerState:
        checks.rng_key("rng_key", rng_key)
        starts = _starts(initial, example)
        buffer = _init_buffer(
            rng_key, starts, capacity=capacity, num_classes=num_classes, num_strata=num_strata
        )
        return SamplerState(buffer, starts)

    return NegativeSampler(init, sample, num_classes)


def _augmented(
    rng_key: Array, augment: Augment, drawn: BufferDraw, sharding: NamedSharding | None
) -> BufferDraw:
    """The draw with its chains augmented, except for restarted ones."""

    def change(key: Array, position: Position, restarted: Array) -> Position:
        changed = augment(key, position)
        before, after = (jax.tree.map(jnp.shape, tree) for tree in (position, changed))
        if before != after:
            raise ValueError(
                f"augment returned shapes {after} for a position of shapes {before}: it must keep them."
            )
        return jax.tree.map(
            lambda old, new: jnp.where(restarted, old, jnp.asarray(new, old.dtype)), position, changed
        )

    return drawn._replace(positions=map_chains(change, rng_key, drawn.positions, drawn.restarted, sharding))


def no_negatives() -> NegativeSampler:
    """No samples at all, for losses that need none, such as a plain classifier's.

    Returns:
      A sampler whose negatives are ``Negatives(None, None)``.

    Example:
      >>> no_negatives().draw(None, None, None, None, None, SamplerState())[0].positions is None
      True
    """

    def sample(
        rng_key: Array,
        energy: JointEnergyFn,
        params: Params,
        x_data: Position,
        labels: Array | None,
        sampler_state: Any,
    ) -> tuple[Negatives, Any]:
        del rng_key, energy, params, x_data, labels
        return Negatives(None, None), sampler_state

    return NegativeSampler(_no_state, sample)
