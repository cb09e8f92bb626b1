"""Chains of an evaluation: their initial distribution, their runs, and which of them diverged."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.energies import guided_energy_at
from jaxebm.objectives import recovery_samples, run_labelled_chains
from jaxebm.report.subject import Evaluation, LevelPath
from jaxebm.samplers import Initial, geometric_levels, power_levels, predictor_corrector
from jaxebm.types import Array, JointEnergyFn, LevelEnergyFn, MakeKernel, Params

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

    With ``num_levels`` the steps before that last one are those of the conditional chains of recovery
    likelihood, as many at each level, and one more at the last ones where they cannot be divided. They start
    about ``mean``.
    """
    energy_at = guided_energy_at(path.logits_at, path.guidance)
    through = _through_levels if path.num_levels is None else _recovering

    def run(rng_key: Array, params: Params, positions: Array, labels: Array, num_steps: int) -> Array:
        def one(rng_key: Array, position: Array, label: Array) -> Array:
            def energy_of_class(params: Params, x: Array, level: Array) -> Array:
                return energy_at(params, x, label, level)

            return through(path, rng_key, energy_of_class, params, position[None], num_steps)[0]

        images = jax.vmap(one)(jax.random.split(rng_key, len(labels)), positions, labels)
        return images if path.state_clamp is None else jnp.clip(images, *path.state_clamp)

    return jax.jit(run, static_argnames="num_steps")


def _through_levels(
    path: LevelPath,
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Array,
    num_steps: int,
) -> Array:
    """A level for each step."""
    levels = power_levels(path.highest, path.lowest, num_steps)
    return predictor_corrector(
        rng_key,
        energy_at,
        params,
        path.highest * positions,
        levels,
        predictor="ancestral",
        num_corrector_steps=0,
    )


def _recovering(
    path: LevelPath,
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Array,
    num_steps: int,
) -> Array:
    """Conditional chains through the levels that the model learnt, longer by a step at the last ones."""
    assert path.num_levels is not None
    levels = geometric_levels(path.highest, path.lowest, path.num_levels)
    each, longer = divmod(num_steps - 1, path.num_levels - 1)
    turn = path.num_levels - 1 - longer
    x = path.mean + path.highest * positions
    for key, part, length in zip(
        jax.random.split(rng_key), (levels[: turn + 1], levels[turn:]), (each, each + 1), strict=True
    ):
        if len(part) > 1:
            x = recovery_samples(
                key, energy_at, params, x, part, num_steps=length, step_factor=path.step_factor
            )
    slope = jax.vmap(jax.grad(energy_at, argnums=1), (None, 0, None))(params, x, levels[-1])
    return x - levels[-1] ** 2 * slope


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
