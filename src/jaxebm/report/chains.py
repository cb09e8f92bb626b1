"""Chains of an evaluation: their initial distribution, their runs, and which of them diverged."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.energies import guided_energy_at
from jaxebm.objectives import run_labelled_chains
from jaxebm.report.subject import Evaluation, LevelPath
from jaxebm.samplers import Initial, power_levels, predictor_corrector
from jaxebm.types import Array, JointEnergyFn, MakeKernel, Params

__all__ = ["Samples", "advance", "advance_along", "finite", "fresh_chains", "is_finite", "start_chains"]


class Samples(NamedTuple):
    """Images and their intended classes; None for images without classes."""

    images: np.ndarray
    labels: np.ndarray | None


def start_chains(rng_key: Array, initial: Initial, labels: Array) -> Array:
    """Returns the initial positions of new chains, one for each label."""
    return jax.vmap(initial)(jax.random.split(rng_key, len(labels)), labels)


def advance(kernel: MakeKernel, energy: JointEnergyFn) -> Callable[..., Array]:
    """Returns compiled chains on E(x, y).

    They are called with a key and, by name, params, positions, labels and num_steps.
    """
    chains = partial(run_labelled_chains, make_kernel=kernel, energy=energy)
    return jax.jit(chains, static_argnames="num_steps")


def advance_along(path: LevelPath) -> Callable[..., Array]:
    """Returns compiled chains from noise to data through the levels of a path, called as those of `advance`.

    Each of ``num_steps`` is one gradient: a step to the next level, with ancestral noise, and at the end the
    expected clean image. The positions are standard normals; a chain starts from ``highest`` times its own.
    A chain is of the class of its label. A model of one logit has no classes.
    """
    energy_at = guided_energy_at(path.logits_at, path.guidance)

    def run(rng_key: Array, params: Params, positions: Array, labels: Array, num_steps: int) -> Array:
        levels = power_levels(path.highest, path.lowest, num_steps)

        def one(rng_key: Array, position: Array, label: Array) -> Array:
            def energy_of_class(params: Params, x: Array, level: Array) -> Array:
                return energy_at(params, x, label, level)

            start = path.highest * position[None]
            return predictor_corrector(
                rng_key, energy_of_class, params, start, levels, predictor="ancestral", num_corrector_steps=0
            )[0]

        images = jax.vmap(one)(jax.random.split(rng_key, len(labels)), positions, labels)
        return images if path.state_clamp is None else jnp.clip(images, *path.state_clamp)

    return jax.jit(run, static_argnames="num_steps")


def fresh_chains(
    rng_key: Array, evaluation: Evaluation, energy: JointEnergyFn, labels: Array, steps: Sequence[int]
) -> dict[int, np.ndarray]:
    """Runs new chains on E(x, y), from the same initial positions for each number of steps.

    None goes on from a shorter one: a kernel may change its noise with the number of steps, or stop. A model
    that is told noise levels draws along its path instead, a class for each label: its samples of p(x) are
    those of p(x | y) of random classes.

    Args:
      rng_key: One key.
      evaluation: The evaluation, with its model.
      energy: E(params, x, y).
      labels: The class of each chain, ``(n,)``.
      steps: Increasing numbers of sampler steps.

    Returns:
      The positions of the chains after each of ``steps``, ``(n, H, W, C)`` each.
    """
    model = evaluation.model
    keys = jax.random.split(rng_key, len(steps) + 1)
    starts = start_chains(keys[0], model.initial, labels)
    run = advance(model.kernel, energy) if model.path is None else advance_along(model.path)
    return {
        total: np.asarray(run(key, params=model.params, positions=starts, labels=labels, num_steps=total))
        for key, total in zip(keys[1:], steps, strict=True)
    }


def is_finite(images: np.ndarray) -> np.ndarray:
    """Returns which images are finite, ``(n,)``."""
    return np.asarray(np.isfinite(images).all(axis=(1, 2, 3)))


def finite(samples: Samples) -> Samples:
    """Leaves out the chains that diverged, which can happen without a clamp; the card counts them."""
    images, labels = samples
    whole = is_finite(images)
    return Samples(images[whole], None if labels is None else labels[whole])
