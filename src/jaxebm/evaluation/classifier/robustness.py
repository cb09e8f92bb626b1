r"""Accuracy under attack: how far may inputs change before the classifier errs?

An attack (`jaxebm.evaluation.classifier.attacks`) gives an *upper bound* of the accuracy that holds within a
ball: a stronger one may find more. So report its steps, restarts and draws with the figure.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxebm import checks
from jaxebm.evaluation.classifier.attacks import (
    AttackLoss,
    attack_checked,
    attack_settings,
    checked_examples,
    draw_logits,
    in_chunks,
)
from jaxebm.evaluation.classifier.refinement import DefendedFn
from jaxebm.samplers.descent import DescentNorm
from jaxebm.types import BATCH_AXIS, Array, Params

__all__ = ["robust_accuracy"]


def robust_accuracy(
    rng_key: Array,
    defended: DefendedFn,
    params: Params,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: DescentNorm,
    radii: Sequence[float] | np.ndarray,
    num_steps: int = 40,
    num_restarts: int = 1,
    loss: AttackLoss = "cross_entropy",
    state_clamp: tuple[float, float] | None = (-1.0, 1.0),
    num_expectation_samples: int = 1,
    num_evaluation_samples: int = 1,
    chunk_size: int = 100,
) -> np.ndarray:
    r"""Accuracy under attack, over a range of radii.

    a(r) = (1/n) \#{i: x_i is classified rightly, and so is what the attack found at every radius up to r}.
    An example that fell at a smaller radius lies in the larger ball as well, so it is not attacked again
    and counts as fallen: the curve falls by construction. a(0) is the clean accuracy. Every judgement, of
    clean examples too, is by the mean logits of ``num_evaluation_samples`` draws of the defence's noise
    that no attack has seen.

    Args:
      rng_key: one typed key.
      defended: as in ``attack``; hashable, and made once.
      params: its parameters.
      images: ``(n, ...)`` examples, inside of ``state_clamp``.
      labels: ``(n,)`` integers.
      norm: as in ``attack``.
      radii: radii of at least 0, in any order, in units of the images; steps are 2.5 * radius / num_steps.
      num_steps: as in ``attack``.
      num_restarts: as in ``attack``.
      loss: as in ``attack``.
      state_clamp: as in ``attack``.
      num_expectation_samples: as in ``attack``.
      num_evaluation_samples: draws of the defence's noise a judgement; 1 is a single use of the classifier.
      chunk_size: as in ``attack_batch``.

    Returns:
      ``(len(radii),)`` float64 in [0, 1], in the order of ``radii``. One program serves all radii.

    Raises:
      ValueError, TypeError, FloatingPointError: as ``attack_batch``; ValueError if radii is empty, not one-
        dimensional, or holds a negative or non-finite number.

    Example:
      >>> from jaxebm.evaluation.classifier.refinement import deterministic
      >>> images, labels = np.array([[0.3, 0.1], [0.1, 0.8], [0.5, 0.6]]), np.array([0, 1, 0])
      >>> robust_accuracy(jax.random.key(0), deterministic(jnp.matmul), jnp.eye(2), images, labels,
      ...                 norm="linf", radii=(0.0, 0.2, 0.5), num_steps=10).round(2).tolist()
      [0.67, 0.33, 0.0]

    Reference:
      As ``attack``; curves over radii after JEM (arXiv 1912.03263), figure 6.
    """
    checks.array("radii", radii)
    radii_array = np.asarray(radii, np.float64)
    if radii_array.ndim != 1 or radii_array.size == 0:
        raise ValueError(f"radii has shape {radii_array.shape}: (n,) with n >= 1 radii is needed.")
    checks.non_negative("radii", radii_array)
    checks.positive_integer("num_evaluation_samples", num_evaluation_samples)
    checks.positive_integer("chunk_size", chunk_size)
    settings = attack_settings(norm, loss, num_steps, num_restarts, num_expectation_samples)
    pixels, classes = checked_examples(rng_key, defended, params, images, labels, state_clamp)
    chunk_size = min(chunk_size, len(classes))
    judge = partial(_predict_chunk, params, defended, num_evaluation_samples)
    clean_key, attacks_key = jax.random.split(rng_key)

    predicted, _ = in_chunks(judge, clean_key, (pixels, classes), chunk_size)
    standing = np.flatnonzero(predicted == classes)
    accuracy = {0.0: standing.size / classes.size}
    for index, radius in enumerate(np.unique(radii_array[radii_array > 0])):
        if standing.size:
            attack_key, judge_key = jax.random.split(jax.random.fold_in(attacks_key, index))
            result = attack_checked(
                attack_key,
                defended,
                params,
                pixels[standing],
                classes[standing],
                float(radius),
                None,
                state_clamp,
                chunk_size,
                **settings,
            )
            attacked = (result.x_adversarial, classes[standing])
            predicted, _ = in_chunks(judge, judge_key, attacked, chunk_size)
            standing = standing[predicted == classes[standing]]
        accuracy[float(radius)] = standing.size / classes.size
    return np.array([accuracy[float(radius)] for radius in radii_array])


@partial(jax.jit, static_argnames=("defended", "num_samples"))
def _predict_chunk(
    params: Params, defended: DefendedFn, num_samples: int, rng_keys: Array, images: Array, labels: Array
) -> tuple[Array, Array]:
    """Returns the class of the mean logits, and these."""
    del labels

    def one(rng_key: Array, x: Array) -> Array:
        return draw_logits(defended, jax.random.split(rng_key, num_samples), params, x).mean(axis=0)

    logits = jax.vmap(one, axis_name=BATCH_AXIS)(rng_keys, images)
    return jnp.argmax(logits, axis=1), logits
