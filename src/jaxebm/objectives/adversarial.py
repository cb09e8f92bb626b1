"""Adversarial examples for training: the images near the data with the highest loss, found by PGD."""

from typing import get_args

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.classifier import log_class_probability, only_of_class
from jaxebm.objectives.contrastive import noted
from jaxebm.samplers.descent import DescentNorm, projected_gradient_descent
from jaxebm.types import BATCH_AXIS, Array, LogitsFn, Params

__all__ = ["adversarial_examples"]


def adversarial_examples(
    rng_key: Array,
    logits: LogitsFn,
    params: Params,
    x: Array,
    labels: Array,
    *,
    radius: float | Array,
    num_steps: int = 10,
    norm: DescentNorm = "l2",
    step_size: float | Array | None = None,
    state_clamp: tuple[float, float] | None = (-1.0, 1.0),
) -> Array:
    r"""Moves each example to where its class is least likely, within a ball around it (adversarial training).

    .. math:: x_i^* = \arg\max_{\|x - x_i\| \le r} -\log p(y_i | x)

    approximated by projected gradient ascent from a random place in the ball. Nothing here is differentiated
    with respect to the parameters (Danskin's theorem): training minimises the loss at x*.

    Args:
      rng_key: one key, split into one key per example.
      logits: f(params, x) of one example, shape ``(K,)``.
      params: parameters of the logits; gradients through them are stopped.
      x: examples, ``(n, ...)``.
      labels: their classes, integers ``(n,)``.
      radius: r >= 0, in units of x.
      num_steps: gradient steps, at least 1.
      norm: norm of the ball and of the steps, ``"l2"`` or ``"linf"``.
      step_size: length of a step; by default 2 r / num_steps, which can cross the ball.
      state_clamp: ``(low, high)`` that every entry stays in, or None.

    Returns:
      The adversarial examples, with the shape and dtype of ``x``; no gradient flows through them.

    Raises:
      TypeError: if an argument has the wrong type, ``x`` is not floating-point or ``labels`` not integer.
      ValueError: if a number is out of range, lengths differ, or ``labels`` lie outside 0..K-1. The example
        of a traced label that is out of range becomes NaN, because it cannot be checked.

    Example:
      >>> logits = lambda params, x: params @ x
      >>> x, labels = jnp.array([[0.5, 0.0]]), jnp.array([0])
      >>> moved = adversarial_examples(
      ...     jax.random.key(0), logits, jnp.eye(2), x, labels, radius=0.5, step_size=0.25)
      >>> [f"{change:.2f}" for change in (moved - x)[0]]  # away from the own class, towards the other
      ['-0.35', '0.35']

    Reference:
      Madry et al. 2018 (arXiv 1706.06083), equations 2.1 and 2.2; in an energy-based model, Yin et al. 2025
      (arXiv 2510.13872), section 3.2.
    """
    checks.rng_key("rng_key", rng_key)
    checks.function("logits", logits, "params", "x")
    checks.non_negative_number("radius", radius)
    checks.array("x", x)
    checks.floating("x", x)
    checks.positive_integer("num_steps", num_steps)
    checks.one_of("norm", norm, get_args(DescentNorm))
    if step_size is not None:
        checks.positive_number("step_size", step_size)
    if state_clamp is not None:
        checks.interval("state_clamp", state_clamp)
    num_examples = checks.batch_length("x", x)
    checks.array("labels", labels, (num_examples,), f"({num_examples},), one for each x,")
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    with noted("logits", params=params, x=x):
        batched = jax.vmap(logits, (None, 0), axis_name=BATCH_AXIS)
        shape = jax.eval_shape(batched, params, x).shape
    if len(shape) != 2:
        raise ValueError(
            f"logits returned shape {shape[1:]} for one example: (K,), one per class, is needed."
        )
    checks.integer_labels("labels", labels, shape[1])
    # A radius of 0 would make steps of length 0, which are refused; the projection undoes any step.
    length = jnp.maximum(2.0 * radius / num_steps, 1e-12) if step_size is None else step_size
    params = jax.lax.stop_gradient(params)
    log_probability = log_class_probability(logits)

    def attack(key: Array, center: Array, label: Array) -> Array:
        key_start, key_chain = jax.random.split(key)

        def target(position: Array) -> Array:  # descending log p(y|x) ascends the loss
            values = only_of_class(log_probability(params, position), label, "labels")
            return values.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

        noise = radius * jax.random.uniform(key_start, center.shape, center.dtype, -1.0, 1.0)
        return projected_gradient_descent(
            key_chain,
            lambda index: target,
            jnp.arange(num_steps),
            center + noise,
            step_size=length,
            norm=norm,
            center=center,
            radius=radius,
            state_clamp=state_clamp,
        )

    keys = jax.random.split(rng_key, x.shape[0])
    return jax.lax.stop_gradient(jax.vmap(attack)(keys, x, labels))
