"""What ``sample(..., check=True)`` watches while chains run, and what it says afterwards."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import BATCH_AXIS, Array, Kernel, Position, Target

__all__ = ["Findings", "SamplingWarning", "WatchedState", "find", "tell", "watched"]


class SamplingWarning(UserWarning):
    """Chains ran, but did not sample: they never moved, or their transitions diverged."""


class WatchedState(NamedTuple):
    """The state of a kernel, and what its chain did so far.

    Attributes:
      state: of the kernel.
      has_moved: whether a transition has changed the position, ``()``.
      num_divergent: divergent transitions, ``()``.
    """

    state: Any
    has_moved: Array
    num_divergent: Array

    @property
    def position(self) -> Position:
        """The position of the kernel's state."""
        return self.state.position


class Findings(NamedTuple):
    """What was found over all chains, integers ``()``.

    Attributes:
      num_not_finite: chains whose last position holds NaN or infinity.
      num_lost_at_start: chains that started where the energy is NaN or infinite.
      num_lost: chains of finite positions that ended where the energy is NaN or infinite.
      num_still: chains that no transition has moved.
      num_divergent: divergent transitions of all chains.
    """

    num_not_finite: Array
    num_lost_at_start: Array
    num_lost: Array
    num_still: Array
    num_divergent: Array


def watched(kernel: Kernel) -> Kernel:
    """Returns the kernel with a state that also counts; it draws the same samples."""

    def init(position: Position, rng_key: Array | None = None) -> WatchedState:
        state = kernel.init(position, rng_key=rng_key)
        return WatchedState(state, jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def step(rng_key: Array, watched: WatchedState) -> tuple[WatchedState, Any]:
        state, info = kernel.step(rng_key, watched.state)
        leaves = zip(jax.tree.leaves(state.position), jax.tree.leaves(watched.position), strict=True)
        moves = jnp.stack([jnp.any(new != old) for new, old in leaves]).any()
        divergent = jnp.asarray(getattr(info, "is_divergent", False), jnp.int32)
        return WatchedState(state, watched.has_moved | moves, watched.num_divergent + divergent), info

    return Kernel(init, step)


def find(target: Target, positions: Position, states: WatchedState) -> Findings:
    """Returns the findings over n chains that started from ``positions``, leaves ``(n, ...)``."""

    def is_finite(position: Position) -> Array:
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(position)]).all()

    energies = jax.vmap(target, axis_name=BATCH_AXIS)
    finite = jax.vmap(is_finite)(states.position)
    return Findings(
        jnp.sum(~finite),
        jnp.sum(~jnp.isfinite(energies(positions))),
        jnp.sum(finite & ~jnp.isfinite(energies(states.position))),
        jnp.sum(~states.has_moved),
        jnp.sum(states.num_divergent),
    )


def tell(findings: Findings, num_chains: int, num_steps: int, parameters: Mapping[str, Any]) -> None:
    """Raises or warns of what was found.

    Args:
      findings: of concrete numbers.
      num_chains: n.
      num_steps: transitions of each chain.
      parameters: of the kernel; the message shows the step size.

    Raises:
      FloatingPointError: if a chain ended at NaN or infinity.
      ValueError: inside of ``jit``, where no number is known.

    Warns:
      SamplingWarning: if chains never moved, ended at an energy that is not finite, or diverged.
    """
    if any(checks.is_traced(count) for count in findings):
        raise ValueError(
            "check=True inside of jit, vmap or grad, where no number is known: call sample outside, or leave "
            "check off."
        )
    not_finite, at_start, lost, still, divergent = (int(count) for count in findings)
    step_size = parameters.get("step_size")
    step = "the step size" if step_size is None else f"step_size={step_size}"
    started = (
        f" {at_start} of {num_chains} chains started where the energy is NaN or infinite." if at_start else ""
    )
    if not_finite:
        raise FloatingPointError(
            f"check=True: {not_finite} of {num_chains} chains ended at NaN or infinity after {num_steps} "
            f"steps.{started} The first guess is a step that is too large for this energy: lower {step}."
        )
    if lost:
        _warn(
            f"check=True: {lost} of {num_chains} chains ended where the energy is NaN or infinite: these are "
            f"no samples.{started} Start where the energy is finite, and use a kernel that refuses such "
            f"proposals (mala, hmc, nuts)."
        )
    if still:
        _warn(
            f"check=True: {still} of {num_chains} chains never moved in {num_steps} steps: their samples are "
            f"where they started.{started} The first guess is {step}: too large, and every proposal is "
            f"refused; or too small, and a step is below the precision of the positions."
        )
    if divergent:
        transitions = num_chains * num_steps
        _warn(
            f"check=True: {divergent} of {transitions} transitions ({divergent / transitions:.2%}) diverged: "
            f"the energy along a trajectory was not kept, and the samples miss the regions where this "
            f"happens. The first guess is {step}: lower it, tune the kernel by warm_up, or reparametrise."
        )


def _warn(message: str) -> None:
    warnings.warn(message, SamplingWarning, stacklevel=4)  # the caller of sample
