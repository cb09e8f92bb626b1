"""The tasks of a model that is told noise levels: along its path from noise to images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.energies import clamp_at, fill, marginal_energy_at
from jaxebm.report.subject import LevelPath
from jaxebm.samplers import power_levels, predictor_corrector
from jaxebm.types import Array, LevelEnergyFn, LevelLogitsFn, Params

__all__ = [
    "Relation",
    "compose_along",
    "denoise_along",
    "fill_along",
    "num_filling_gradients",
    "num_filling_levels",
    "relation_energy_at",
]

Relation = Literal["this", "and", "or", "not"]
"""How two classes a and b are composed: a alone, a and b, a or b, a and not b."""

SIGNAL_TO_NOISE = 0.4
"""r of the corrector of inpainting, one step at each level."""


def denoise_along(
    path: LevelPath, params: Params, rng_key: Array, noisy: np.ndarray, noise: float, num_steps: int
) -> np.ndarray:
    """Removes Gaussian noise, by a path of p(x) from the level that equals it.

    One step is the posterior mean x - noise^2 dE/dx, which has the least mean squared error; many draw from
    the posterior.

    Args:
      path: The levels and logits of the model.
      params: Its parameters.
      rng_key: One key.
      noisy: Images with noise, ``(n, H, W, C)``.
      noise: The noise's standard deviation. Below the lowest level the images are returned as they are.
      num_steps: Gradients of the model for each image, at least 1.

    Returns:
      The images, ``(n, H, W, C)``.
    """
    if noise < path.lowest:
        return noisy
    energy_at = marginal_energy_at(path.logits_at)
    levels = _levels(noise, path, num_steps)
    return np.asarray(_draw(path, rng_key, energy_at, params, jnp.asarray(noisy), levels))


def num_filling_levels(num_steps: int) -> int:
    """Returns the number of levels of `fill_along`: those that ``num_steps`` gradients pay, at least one."""
    return max(1, (num_steps + 2) // 4)


def num_filling_gradients(num_steps: int) -> int:
    """Returns the cost of `fill_along` in gradients of the model for each image, 2 (2 L - 1) for L levels.

    There is a predictor and a corrector between two levels, and the last step; each costs two gradients.
    """
    return 2 * (2 * num_filling_levels(num_steps) - 1)


def fill_along(path: LevelPath, mask: Array, scale: float, num_steps: int) -> Callable[..., Array]:
    """Returns chains that draw the hidden pixels of images, given those seen, to be compiled.

    Args:
      path: The levels and logits of the model.
      mask: True where a pixel is seen, ``(H, W, C)``.
      scale: Standard deviation of a pixel of the data.
      num_steps: The most gradients of the model for each image; 2 where it is 1.

    Returns:
      A function of a key, params, positions (standard normals, ``(n, H, W, C)``) and observed (images, whose
      hidden pixels are not read).
    """
    energy_at = marginal_energy_at(path.logits_at)

    def run(rng_key: Array, params: Params, positions: Array, observed: Array) -> Array:
        levels = _levels(path.highest, path, num_filling_levels(num_steps))

        def one(rng_key: Array, position: Array, values: Array) -> Array:
            # Each image has its own conditional energy.
            given = clamp_at(energy_at, mask, values, scale)
            drawn = _draw(path, rng_key, given, params, levels[0] * position[None], levels, 1)[0]
            return fill(drawn, mask, values)

        return jax.vmap(one)(jax.random.split(rng_key, len(observed)), positions, observed)

    return run


def compose_along(
    path: LevelPath,
    params: Params,
    rng_key: Array,
    positions: Array,
    relation: Relation,
    classes: tuple[int, int],
    num_steps: int,
) -> np.ndarray:
    """Draws images of two composed classes; ``"this"`` are the ordinary samples of the first one.

    Args:
      path: The levels, logits and guidance of the model.
      params: Its parameters.
      rng_key: One key.
      positions: Standard normals, ``(n, H, W, C)``.
      relation: How the classes are composed.
      classes: a and b.
      num_steps: Gradients of the model for each image, at least 1.

    Returns:
      The images, ``(n, H, W, C)``.
    """
    energy_at = relation_energy_at(path.logits_at, relation, classes, path.guidance)
    levels = _levels(path.highest, path, num_steps)
    return np.asarray(_draw(path, rng_key, energy_at, params, levels[0] * positions, levels))


@dataclass(frozen=True)
class _RelationEnergy:
    logits_at: LevelLogitsFn
    relation: Relation
    classes: tuple[int, int]
    strength: float

    def __call__(self, params: Params, x: Array, level: Array, /) -> Array:
        values = self.logits_at(params, x, level)
        if max(self.classes) >= len(values):
            raise ValueError(
                f"path.logits_at returns {len(values)} logits: one for each class of the data is needed."
            )
        log_p = _log_probability(jax.nn.log_softmax(values), self.relation, *self.classes)
        return -jax.nn.logsumexp(values) - self.strength * log_p


def relation_energy_at(
    logits_at: LevelLogitsFn, relation: Relation, classes: tuple[int, int], strength: float
) -> LevelEnergyFn:
    """Returns the energy of two composed classes at each noise level.

    E(x; sigma) - s log p(relation | x; sigma), where p(this) = p(a), p(and) = p(a) p(b), p(or) = p(a) + p(b)
    and p(not) = p(a) (1 - p(b)), each given x. It costs one gradient of the network, and composes at every
    level probabilities of the same noisy image, whatever their number.

    Args:
      logits_at: f, ``logits_at(params, x, level) -> (K,)`` for one image.
      relation: How the classes are composed.
      classes: a and b, which differ.
      strength: s >= 0; for ``"this"`` the energy is that of `jaxebm.energies.guided_energy_at`.

    Returns:
      ``energy_at(params, x, level) -> ()``.

    Reference:
      Du et al. 2023 (arXiv 2302.11552), section 4; Liu et al. 2022 (arXiv 2206.01714), equation 11.
    """
    return _RelationEnergy(logits_at, relation, classes, strength)


def _log_probability(log_p: Array, relation: Relation, this: int, that: int) -> Array:
    """log p(relation | x), of the log-probabilities of all classes, ``(K,)``."""
    if relation == "and":
        return log_p[this] + log_p[that]
    if relation == "or":
        return jnp.logaddexp(log_p[this], log_p[that])
    if relation == "not":  # 1 - p(b) is the sum of all others, and exact where p(b) is 1
        return log_p[this] + jax.nn.logsumexp(jnp.delete(log_p, that, assume_unique_indices=True))
    return log_p[this]


def _levels(first: float, path: LevelPath, num_steps: int) -> Array:
    """Levels from the first down to the path's lowest; the first alone where there is no room below."""
    if num_steps == 1 or first == path.lowest:
        return jnp.asarray([first])
    return power_levels(first, path.lowest, num_steps)


def _draw(
    path: LevelPath,
    rng_key: Array,
    energy_at: LevelEnergyFn,
    params: Params,
    positions: Array,
    levels: Array,
    num_corrector_steps: int = 0,
) -> Array:
    """Chains with ancestral noise down the levels, and at the end the expected clean images, clipped."""
    images = predictor_corrector(
        rng_key,
        energy_at,
        params,
        positions,
        levels,
        predictor="ancestral",
        num_corrector_steps=num_corrector_steps,
        signal_to_noise=SIGNAL_TO_NOISE,
    )
    return images if path.state_clamp is None else jnp.clip(images, *path.state_clamp)
