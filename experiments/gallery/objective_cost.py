"""What an update of an objective costs, in gradients of the energy in x."""

from typing import Any

import jax
import jax.numpy as jnp

from gallery.methods import Phase, Problem
from jaxebm.objectives import Batch, Negatives
from jaxebm.types import Array, Params

__all__ = ["gradients_per_update"]


def gradients_per_update(problem: Problem, batch_size: int, shape: tuple[int, ...] = (2,)) -> float:
    """Returns the cost of an update for each example, in gradients dE/dx of one example.

    The floating-point operations of the gradient of the loss, as XLA counts them, over those of dE/dx; and
    the gradients of chains and other loops, which are counted by hand: XLA counts the body of a loop once.

    Args:
      problem: a method on its data.
      batch_size: examples of an update.
      shape: of one example.

    Returns:
      The cost. Where a method has phases, the mean over updates.
    """
    params = jax.eval_shape(problem.init, jax.random.key(0), jnp.zeros(shape))
    x = jnp.zeros((batch_size, *shape))

    def slopes(params: Params, x: Array) -> Array:
        energy = problem.phases[0].objective.energy
        return jax.vmap(lambda one: jax.grad(energy, 1)(params, one, jnp.zeros((), jnp.int32)))(x)

    def of_phase(phase: Phase) -> float:
        none = phase.negatives is None
        negatives = Negatives(None, None) if none else Negatives(x, jnp.zeros(batch_size, jnp.int32))

        def gradient(params: Params, rng_key: Array) -> Any:
            batch = Batch(None, None, x)
            return jax.grad(phase.objective.loss, has_aux=True)(params, rng_key, batch, negatives)

        return _operations(gradient, params, jax.random.key(0))

    shares = sum(phase.share for phase in problem.phases)
    operations = sum(phase.share * of_phase(phase) for phase in problem.phases) / shares
    return operations / _operations(slopes, params, x) + problem.loop_gradients


def _operations(function: Any, *arguments: Any) -> float:
    counted: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return float(counted["flops"])
