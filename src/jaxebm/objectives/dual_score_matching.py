"""Dual score matching: an energy told the noise level learns its gradient and its derivative by the level."""

import functools

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.classifier import only_of_class
from jaxebm.energies.levels import JointLevelEnergy, at_level
from jaxebm.objectives.anchor import anchored_loss
from jaxebm.objectives.examples import learnt_level_energy, objective_at
from jaxebm.objectives.joint import may_learn
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.noisy_data import LevelLaw, spread_evenly
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.objectives.second_derivatives import square_norm
from jaxebm.trees import dimension, noisy, wide_dtype, widened
from jaxebm.types import Array, LevelEnergyFn, LevelLogitsFn, Metrics, Params, Position

__all__ = ["dual_score_matching"]


def dual_score_matching(
    energy_at: LevelEnergyFn | JointLevelEnergy,
    *,
    lowest: float,
    highest: float,
    level_median: float | Array | None = None,
    level_spread: float | Array = 1.2,
    data_scale: float | Array | None = None,
    level_weight: float | Array = 1.0,
    class_weight: float | Array = 0.0,
    anchor_weight: float | Array = 1.0,
    weight: float | Array = 1.0,
) -> Objective:
    r"""A normalised energy: U(y; sigma) = -log p_sigma(y) of y = x + sigma z, learnt by its two derivatives.

    .. math::

      \frac{w}{d} \, \mathbb{E}\Big[|\sigma \nabla_y U - z|^2
      + \tfrac{w_l}{2 d} (\sigma \partial_\sigma U - d + |z|^2)^2\Big] + w \, w_a A

    log sigma is uniform between the lowest and the highest level, and the conditional mean of each target
    given y is the derivative of -log p_sigma, so both terms have the same minimiser. In t = sigma^2 the
    second one fits dU/dt to d / (2 t) - |y - x|^2 / (2 t^2). Each is weighted by one over the variance of its
    noise, 1 an entry of z and 2 d, which is the same at every level: every level counts alike. A larger w_l
    drowns the first in the noise of the second. One gradient of the energy gives both derivatives.

    The derivatives leave one constant free. A pins it at the highest level, where noisy data are nearly
    Gaussian: the logistic loss of telling them from a Gaussian of the batch's mean and variances by
    -U - log q (noise-contrastive estimation), whose minimiser is normalised whatever q is.

    **Images.** What they show is decided at middle levels: ``level_median`` draws more of those, with
    log sigma normal and cut off at both ends. ``data_scale`` s weighs the first term by 1 + sigma^2 / s^2,
    which makes it the error of the denoised image in units of what a network has to find (Karras et al.
    2022). Neither changes the minimiser. For classes, ``class_weight`` adds w_c times the cross-entropy of
    p(k | y; sigma) = softmax_k f(y; sigma) of the noisy examples, whose logits are computed anyway: a
    classifier at every level, which guidance needs.

    **Choice of levels.** ``lowest``: -U is log p of the data smoothed by it; below the width of their finest
    detail. ``highest``: five to ten times their spread. **Choice of network.** U spans
    d log(highest / lowest) nats: `jaxebm.energies.preconditioned_energy` leaves to the network what differs
    from a Gaussian.

    Args:
      energy_at: U(params, x, level) of one example, which must use the level; or one of
        `jaxebm.energies.joint_energy_at`, which then learns -log p(x | y) of each class.
      lowest: the smallest noise level, above 0, in units of x.
      highest: the largest noise level, above ``lowest``.
      level_median: median of the levels, above 0; None draws log sigma uniformly.
      level_spread: standard deviation of log sigma around the median, above 0.
      data_scale: s > 0, the standard deviation over all entries of the data, for the weight of the first
        term; None weighs every level alike.
      level_weight: w_l >= 0, weight of the derivative by the level.
      class_weight: w_c >= 0; above 0 ``energy_at`` must be one of `jaxebm.energies.joint_energy_at`.
      anchor_weight: w_a >= 0; 0 leaves the constant to the network, such as one that is pinned by
        `jaxebm.energies.preconditioned_energy`.
      weight: w >= 0.

    Returns:
      An objective for data with or without labels; its energy is that at the lowest level: -E is log p(x).
      Metrics: ``score_error`` and ``level_error``, the means of the first term over d and of the second over
      2 d, at most about 1 once learnt; ``anchor_loss``, A, which is log 2 = .693 where noisy data cannot be
      told from the Gaussian; with ``class_weight`` ``noisy_cross_entropy``.

    Raises:
      TypeError: if ``energy_at`` is no function of three arguments, or an option has the wrong type.
      ValueError: if 0 < lowest < highest does not hold, a weight is not one number of at least 0, another
        number is not above 0, or there is a ``class_weight`` without classes; from the loss, if the energy
        ignores the level.

    Example:
      >>> from jaxebm.objectives.objective import Batch
      >>> from jaxebm.objectives.negatives import Negatives
      >>> def energy_at(log_variance, x, level):  # N(0, exp(log_variance) I), smoothed
      ...     variance = jnp.exp(log_variance) + level**2
      ...     return 0.5 * jnp.sum(x**2) / variance + 0.5 * x.size * jnp.log(2 * jnp.pi * variance)
      >>> objective = dual_score_matching(energy_at, lowest=0.1, highest=10.0)
      >>> batch = Batch(None, None, jax.random.normal(jax.random.key(0), (64, 2)))
      >>> loss, metrics = objective.loss(0.0, jax.random.key(1), batch, Negatives(None, None))
      >>> sorted(metrics)
      ['anchor_loss', 'level_error', 'score_error']

    Reference:
      Guth, Kadkhodaie & Simoncelli 2025 (arXiv 2506.05310), section 2. They pin the constant after training.
      Karras et al. 2022 (arXiv 2206.00364), section 5 and table 1, for the levels and weights of images:
      a median of exp(-1.2) for data of standard deviation .5.
    """
    learnt = learnt_level_energy(energy_at)
    law = LevelLaw(lowest, highest, level_median, level_spread).check()
    lowest, highest = law.lowest, law.highest
    if data_scale is not None:
        checks.positive_number("data_scale", data_scale)
    for name, value in (
        ("level_weight", level_weight),
        ("class_weight", class_weight),
        ("anchor_weight", anchor_weight),
        ("weight", weight),
    ):
        checks.non_negative_number(name, value)
    with_classes = may_learn(class_weight)
    logits_at = energy_at.logits_at if isinstance(energy_at, JointLevelEnergy) else None
    if with_classes and logits_at is None:
        raise ValueError(
            f"class_weight={class_weight!r}: energy_at knows no classes; make it by "
            "jaxebm.energies.joint_energy_at, or leave class_weight at 0."
        )

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        key_levels, key_examples = jax.random.split(rng_key)
        start = jax.random.uniform(key_levels, dtype=jnp.float32)

        def errors_of(
            energy: LevelEnergyFn, params: Params, rng_keys: Array, x: Position, label: Array
        ) -> tuple[Array, dict[str, Array]]:
            level = law.quantile(spread_evenly(start).astype(wide_dtype(x)))
            y, z = noisy(rng_keys[0], x, level)
            found: dict[str, Array] = {}
            if with_classes and logits_at is not None:
                bound_logits = functools.partial(_energy_and_logits, logits_at, params, label)
                (score, by_level), values = jax.grad(bound_logits, (0, 1), has_aux=True)(y, level)
                found["noisy_cross_entropy"] = -jax.nn.log_softmax(values)[label]
            else:
                score, by_level = jax.grad(energy, (1, 2))(params, y, level)
            found |= scaled_errors(score, by_level, z, level)
            value = found["score_error"]
            if data_scale is not None:
                value = value * (1 + (level / data_scale) ** 2)
            value = value + level_weight * found["level_error"] / dimension(x)
            if with_classes:
                value = value + class_weight * found["noisy_cross_entropy"]
            return value, found

        value, metrics = anchored_loss(
            learnt,
            errors_of,
            params,
            key_examples,
            batch,
            num_keys=1,
            highest=highest,
            anchor_weight=anchor_weight,
            objective="dual_score_matching",
        )
        return weight * value, metrics

    return objective_at(energy_at, lowest, loss)


def _energy_and_logits(
    logits_at: LevelLogitsFn, params: Params, label: Array, y: Position, level: Array
) -> tuple[Array, Array]:
    """E(y, label; sigma) and the logits that it is one of."""
    values = only_of_class(widened(at_level(logits_at, level)(params, y)), label, "label")
    return -values[label], values


def scaled_errors(score: Position, by_level: Array, z: Position, level: Array) -> dict[str, Array]:
    """Returns the two terms of one example, in units of their noise: of the gradient, of the derivative."""
    size = dimension(z)
    residual = jax.tree.map(lambda score, z: level * widened(score) - z, score, z)
    target = size - square_norm(z)
    return {
        "score_error": square_norm(residual) / size,
        "level_error": (level * widened(by_level) - target) ** 2 / (2 * size),
    }
