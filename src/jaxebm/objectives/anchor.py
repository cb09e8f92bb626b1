"""What pins the constant of a normalised energy: at the highest noise level the data are nearly Gaussian.

Derivatives of U, or differences between levels, leave one constant free. Here it is learnt at the highest
level sigma_max, where noisy data y = x + sigma_max z are told from draws of a Gaussian q of the same mean and
variances by the log ratio -U(y; sigma_max) - log q(y) (noise-contrastive estimation). Its minimiser is
U = -log p, normalised, whatever q is; near the Gaussian it takes few examples. The logistic loss has bounded
gradients, so a U that is far off does no harm.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxebm.energies.independent_gaussian import IndependentGaussian
from jaxebm.objectives.examples import LearntLevelEnergy, over_examples, unchecked_examples
from jaxebm.objectives.joint import may_learn
from jaxebm.objectives.noisy_data import check_level_used
from jaxebm.objectives.objective import Batch
from jaxebm.trees import noisy, wide_dtype, widened
from jaxebm.types import Array, LevelEnergyFn, Metrics, Params, Position

__all__ = [
    "ErrorsOfExample",
    "anchor_loss",
    "anchored_loss",
    "fit_reference",
]


ErrorsOfExample: TypeAlias = Callable[
    [LevelEnergyFn, Params, Array, Position, Array], tuple[Array, dict[str, Array]]
]
"""``(energy, params, rng_keys, x, label) -> (loss, metrics)`` of one example and its label."""


def fit_reference(xs: Position, highest: Any) -> IndependentGaussian:
    """Returns the Gaussian of x + highest z by the moments of a batch, each leaf ``(n, ...)``."""
    xs = jax.lax.stop_gradient(jax.tree.map(widened, xs))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), xs)
    return IndependentGaussian(mean, jax.tree.map(lambda leaf: jnp.var(leaf, axis=0), xs)).at_level(highest)


def anchor_loss(
    rng_key: Array, energy_at: Any, x: Position, highest: Any, reference: IndependentGaussian
) -> Array:
    """The logistic loss of one example and one draw of the reference; log 2 where the two agree."""
    key_noise, key_reference = jax.random.split(rng_key)
    highest = jnp.asarray(highest, wide_dtype(x))
    y, _ = noisy(key_noise, x, highest)
    drawn = jax.tree.map(lambda q, x: q.astype(x.dtype), reference.sample(key_reference), x)

    def log_ratio(y: Position) -> Array:
        return -widened(energy_at(y, highest)) - reference.log_density(y)

    return 0.5 * (jax.nn.softplus(-log_ratio(y)) + jax.nn.softplus(log_ratio(drawn)))


def anchored_loss(
    learnt: LearntLevelEnergy,
    errors_of: ErrorsOfExample,
    params: Params,
    rng_key: Array,
    batch: Batch,
    *,
    num_keys: int,
    highest: Any,
    anchor_weight: float | Array,
    objective: str,
) -> tuple[Array, Metrics]:
    """The mean over a batch of ``errors_of``, and w_a times the anchor's loss against its Gaussian.

    Args:
      learnt: the energy that is told a level.
      errors_of: the loss and the metrics of one example, from ``num_keys`` random keys.
      params: parameters.
      rng_key: one key.
      batch: the batch of an update.
      num_keys: random keys that ``errors_of`` needs.
      highest: the level of the anchor.
      anchor_weight: w_a >= 0; at 0 there is no anchor.
      objective: name of the objective, for messages.

    Returns:
      The loss and the metrics, with ``anchor_loss`` among them where there is an anchor.

    Raises:
      ValueError: if the energy ignores the level, or the batch has no labels and needs them.
    """
    reference = fit_reference(unchecked_examples(batch, conditional=learnt.conditional), highest)
    with_anchor = may_learn(anchor_weight)

    def of_example(params: Params, rng_key: Array, x: Position, label: Array) -> tuple[Array, Metrics]:
        def energy(params: Params, y: Position, level: Array) -> Array:
            return learnt.energy_at(params, y, label, level)

        check_level_used(energy, params, x, objective)
        rng_keys = jax.random.split(rng_key, num_keys + 1)
        value, metrics = errors_of(energy, params, rng_keys[:-1], x, label)
        if with_anchor:
            bound = functools.partial(energy, params)
            anchor = anchor_loss(rng_keys[-1], bound, x, highest, reference)
            value, metrics = value + anchor_weight * anchor, metrics | {"anchor_loss": anchor}
        return value, metrics

    found = over_examples(
        of_example, params, rng_key, batch, conditional=learnt.conditional, objective=objective
    )
    return jax.tree.map(jnp.mean, found)
