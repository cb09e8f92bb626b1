"""Adversarial examples for training: the images near the data with the highest loss, found by PGD."""

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.classifier import log_class_probability
from jaxebm.samplers.descent import DescentNorm, projected_gradient_descent
from jaxebm.types import Array, LogitsFn, Params

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
      ValueError: if ``radius`` is negative, ``num_steps`` not an integer of at least 1, or lengths differ.
      TypeError: if ``x`` is not floating-point.

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
    checks.non_negative("radius", radius)
    checks.floating("x", x)
    checks.positive_integer("num_steps", num_steps)
    if jnp.shape(labels) != jnp.shape(x)[:1]:
        raise ValueError(
            f"labels has shape {jnp.shape(labels)}: {jnp.shape(x)[:1]} is needed, one for each x."
        )
    # A radius of 0 would make steps of length 0, which are refused; the projection undoes any step.
    length = jnp.maximum(2.0 * radius / num_steps, 1e-12) if step_size is None else step_size
    params = jax.lax.stop_gradient(params)
    log_probability = log_class_probability(logits)

    def attack(key: Array, center: Array, label: Array) -> Array:
        key_start, key_chain = jax.random.split(key)

        def target(position: Array) -> Array:  # descending log p(y|x) ascends the loss
            return log_probability(params, position)[label]

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
