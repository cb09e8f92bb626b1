"""Classification of noise levels (DiffCLF): differences of energies between levels are log density ratios."""

import math

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.levels import JointLevelEnergy
from jaxebm.objectives.anchor import anchored_loss
from jaxebm.objectives.examples import learnt_level_energy, objective_at
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.noisy_data import floating_levels
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.objectives.second_derivatives import square_norm
from jaxebm.trees import dimension, noisy, wide_dtype, widened
from jaxebm.types import Array, LevelEnergyFn, Metrics, Params, Position

__all__ = ["level_classification"]


def level_classification(
    energy_at: LevelEnergyFn | JointLevelEnergy,
    *,
    lowest: float,
    highest: float,
    num_levels: int | None = None,
    num_classes: int = 4,
    classification_weight: float | Array = 4.0,
    anchor_weight: float | Array = 1.0,
    weight: float | Array = 1.0,
) -> Objective:
    r"""A normalised energy, learnt by classifying the noise level of y = x + sigma_j z, beside denoising.

    .. math::

      \frac{w}{d} \, \mathbb{E}\Big[|\sigma_j \nabla_y U - z|^2
      + w_c \Big(U(y; \sigma_j) + \log \sum_{i \in W} e^{-U(y; \sigma_i)}\Big)\Big] + w \, w_a A

    W is a window of K neighbours in the geometric sequence of levels, drawn uniformly, and j uniform in it.
    The cross-entropy of softmax_i(-U(y; sigma_i)) is least where all differences of energies are those of
    -log p_sigma. The denoising term alone says nothing of the weights of separate modes, the cross-entropy
    does. The free energies F_j of the paper are part of U here. What stays free is one constant, which A pins
    at the highest level, as in `jaxebm.objectives.dual_score_matching`.

    Neighbours must overlap: the log ratio of two levels has a standard deviation of about
    log(sigma_{j+1} / sigma_j) sqrt(2 d). By default the levels are so many that it is at most 1. An update
    costs one gradient and K - 1 values of the energy an example, for any number of levels.

    Args:
      energy_at: U(params, x, level) of one example, which must use the level; or one of
        `jaxebm.energies.joint_energy_at`, which then learns -log p(x | y) of each class.
      lowest: the smallest noise level, above 0, in units of x. -U there is log p of the data smoothed by it.
      highest: the largest noise level, above ``lowest``: five to ten times the spread of the data.
      num_levels: length of the geometric sequence, at least ``num_classes``; by default
        1 + log(highest / lowest) sqrt(2 d), rounded up.
      num_classes: K, at least 2.
      classification_weight: w_c >= 0; 0 is denoising alone. Much above 10 the noise of the classes hides the
        gradient from the network.
      anchor_weight: w_a >= 0; 0 leaves the constant to the network.
      weight: w >= 0.

    Returns:
      An objective for data with or without labels; its energy is that at the lowest level: -E is log p(x).
      Metrics: ``score_error``, the first term over d; ``level_cross_entropy`` (log K by guessing) and
      ``level_accuracy`` of the classification; ``anchor_loss``, A, .693 where noisy data cannot be told from
      the Gaussian.

    Raises:
      TypeError: if ``energy_at`` is no function of three arguments, or an option has the wrong type.
      ValueError: if 0 < lowest < highest does not hold, a count is too small, or a weight is not one number
        of at least 0; from the loss, if the energy ignores the level.

    Example:
      >>> from jaxebm.objectives.objective import Batch
      >>> from jaxebm.objectives.negatives import Negatives
      >>> def energy_at(log_variance, x, level):  # N(0, exp(log_variance) I), smoothed
      ...     variance = jnp.exp(log_variance) + level**2
      ...     return 0.5 * jnp.sum(x**2) / variance + 0.5 * x.size * jnp.log(2 * jnp.pi * variance)
      >>> objective = level_classification(energy_at, lowest=0.1, highest=10.0)
      >>> batch = Batch(None, None, jax.random.normal(jax.random.key(0), (64, 2)))
      >>> loss, metrics = objective.loss(0.0, jax.random.key(1), batch, Negatives(None, None))
      >>> sorted(metrics)
      ['anchor_loss', 'level_accuracy', 'level_cross_entropy', 'score_error']

    Reference:
      OuYang, Grenioux & Hernandez-Lobato 2026 (arXiv 2601.21025), the multi-level loss.
    """
    learnt = learnt_level_energy(energy_at)
    lowest, highest = floating_levels(lowest, highest)
    checks.integer("num_classes", num_classes, 2)
    if num_levels is not None:
        checks.integer("num_levels", num_levels, num_classes)
    for name, value in (
        ("classification_weight", classification_weight),
        ("anchor_weight", anchor_weight),
        ("weight", weight),
    ):
        checks.non_negative_number(name, value)

    def errors_of(
        energy: LevelEnergyFn, params: Params, rng_keys: Array, x: Position, label: Array
    ) -> tuple[Array, dict[str, Array]]:
        del label
        key_window, key_class, key_noise = rng_keys
        count = num_levels or max(num_classes, default_num_levels(lowest, highest, dimension(x)))
        levels = jnp.geomspace(lowest, highest, count, dtype=wide_dtype(x))
        start = jax.random.randint(key_window, (), 0, count - num_classes + 1)
        true_class = jax.random.randint(key_class, (), 0, num_classes)
        others = (true_class + jnp.arange(1, num_classes)) % num_classes
        level = levels[start + true_class]
        y, z = noisy(key_noise, x, level)
        own, score = jax.value_and_grad(energy, 1)(params, y, level)
        # One by one: on small networks a vmap within that over examples takes 1.25 times as long.
        rest = [energy(params, y, other) for other in levels[start + others]]
        energies = widened(jnp.stack([own, *rest]))
        residual = jax.tree.map(lambda s, z: level * widened(s) - z, score, z)
        found = {
            "score_error": square_norm(residual) / dimension(x),
            "level_cross_entropy": energies[0] + jax.nn.logsumexp(-energies),
            "level_accuracy": (jnp.argmin(energies) == 0).astype(energies.dtype),
        }
        classes = found["level_cross_entropy"] / dimension(x)
        return found["score_error"] + classification_weight * classes, found

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        value, metrics = anchored_loss(
            learnt,
            errors_of,
            params,
            rng_key,
            batch,
            num_keys=3,
            highest=highest,
            anchor_weight=anchor_weight,
            objective="level_classification",
        )
        return weight * value, metrics

    return objective_at(energy_at, lowest, loss)


def default_num_levels(lowest: float, highest: float, size: int) -> int:
    """So many levels that the log ratio of neighbours has a standard deviation of at most 1."""
    for name, value in (("lowest", lowest), ("highest", highest)):
        if checks.is_traced(value):
            raise TypeError(f"{name} is traced: give num_levels, which otherwise depends on its value.")
    return 1 + math.ceil(math.log(float(highest) / float(lowest)) * math.sqrt(2 * size))
