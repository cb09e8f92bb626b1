"""Negatives of several samplers in one batch, such as chains from noise beside chains from data."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.negatives import Negatives, NegativeSampler
from jaxebm.types import Array, JointEnergyFn, Params, Position

__all__ = ["join_negatives"]


def join_negatives(*samplers: NegativeSampler) -> NegativeSampler:
    """Draws negatives with several samplers and joins them, in this order.

    Energy matching takes half of its negatives from noise and half from data, for example:
    ``join_negatives(short_run(...), contrastive_divergence(...))``.

    Args:
      samplers: one or more samplers of negatives, as of `jaxebm.objectives.persistent`.

    Returns:
      A sampler whose state is the tuple of theirs. Its ``num_classes`` is the greatest of theirs.

    Raises:
      TypeError: if one is not a `NegativeSampler`.
      ValueError: if none is given; from ``draw``, if one draws no negatives.

    Example:
      >>> from functools import partial
      >>> from jaxebm.objectives.negatives import contrastive_divergence, short_run
      >>> from jaxebm.samplers.langevin import sgld
      >>> kernel = partial(sgld, step_size=0.1)
      >>> both = join_negatives(
      ...     short_run(kernel, num_steps=5, num_chains=8), contrastive_divergence(kernel, num_steps=5))
      >>> energy = lambda params, x, y: 0.5 * jnp.sum(x**2)
      >>> state = both.init(jax.random.key(0), jnp.zeros(2))
      >>> data = jnp.ones((4, 2))
      >>> negatives, state = both.draw(jax.random.key(1), energy, None, data, None, state)
      >>> negatives.positions.shape
      (12, 2)

    Reference:
      Balcerak et al. 2025 (arXiv 2504.10612), algorithm 2.
    """
    if not samplers:
        raise ValueError("samplers is empty: give one or more samplers of negatives, such as short_run(...).")
    for index, sampler in enumerate(samplers):
        checks.instance(f"samplers[{index}]", sampler, NegativeSampler, "short_run(...) makes one.")
    classes = [sampler.num_classes for sampler in samplers if sampler.num_classes is not None]

    def init(rng_key: Array, example: Position) -> Any:
        keys = jax.random.split(rng_key, len(samplers))
        return tuple(sampler.init(key, example) for key, sampler in zip(keys, samplers, strict=True))

    def draw(
        rng_key: Array,
        energy: JointEnergyFn,
        params: Params,
        x_data: Position,
        labels: Array | None,
        sampler_state: Any,
    ) -> tuple[Negatives, Any]:
        keys = jax.random.split(rng_key, len(samplers))
        parts, states, measured = [], [], True
        for key, sampler, state in zip(keys, samplers, sampler_state, strict=True):
            part, state = sampler.draw(key, energy, params, x_data, labels, state)
            if part.positions is None:
                raise ValueError("samplers hold one that draws no negatives: leave it out.")
            length = checks.batch_length("negatives.positions", part.positions)
            measured = measured and part.displacement is not None
            moved = jnp.zeros(length) if part.displacement is None else part.displacement
            of_class = jnp.zeros(length, jnp.int32) if part.labels is None else part.labels
            parts.append(Negatives(part.positions, of_class, moved))
            states.append(state)
        joined: Negatives = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return joined if measured else joined._replace(displacement=None), tuple(states)

    return NegativeSampler(init, draw, max(classes, default=None))
