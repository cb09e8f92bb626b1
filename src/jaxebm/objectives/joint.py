"""JEM: one network that is a classifier and an energy-based model at once.

log p(x, y) = log p(y | x) + log p(x). The first term is the exact cross-entropy; only the second goes through the
sampler. Maximising log p(x, y) through joint samples is the alternative, and each term has a weight of its own.
"""

import jax
import jax.numpy as jnp
import optax

from jaxebm import checks
from jaxebm.energies.classifier import joint_energy, marginal_energy
from jaxebm.objectives.contrastive import check_same_example_shape, contrastive_loss
from jaxebm.types import BATCH_AXIS, Array, LogitsFn, Metrics, Params, Position

__all__ = ["classification_loss", "joint_loss"]


def classification_loss(
    logits: LogitsFn, params: Params, x: Position, labels: Array, *, label_smoothing: float | Array = 0.0
) -> tuple[Array, Metrics]:
    """Mean cross-entropy, -mean_i log p(y_i | x_i) with p(y | x) = softmax f(x).

    Args:
      logits: f(params, x) of one example, shape ``(K,)``.
      params: what is differentiated.
      x: labelled examples, each leaf ``(n, ...)``.
      labels: their classes, integers ``(n,)`` in 0..K-1.
      label_smoothing: share of the target that is spread evenly over the classes, in [0, 1].

    Returns:
      ``(loss, metrics)`` with ``cross_entropy`` (of the labels themselves, in nats) and ``train_accuracy``.

    Raises:
      TypeError: if ``x`` is not floating-point or ``labels`` not integer.
      ValueError: if ``labels`` lie outside 0..K-1, lengths differ or logits are not of rank one.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = lambda params, x: params @ x
      >>> loss, metrics = classification_loss(logits, jnp.eye(2), jnp.eye(2), jnp.array([0, 1]))
      >>> round(float(loss), 4), float(metrics["train_accuracy"])
      (0.3133, 1.0)
    """
    checks.floating("x", x)
    checks.in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    values = jax.vmap(logits, (None, 0), axis_name=BATCH_AXIS)(params, x)
    if values.ndim != 2:
        raise ValueError(f"logits returned shape {values.shape[1:]} for one example: shape (K,), one per class, is needed.")
    if jnp.shape(labels) != values.shape[:1]:
        raise ValueError(f"labels has shape {jnp.shape(labels)}: one label for each of the {values.shape[0]} examples is needed.")
    checks.integer_labels("labels", labels, values.shape[1])
    log_probabilities = jax.nn.log_softmax(values)
    log_likelihood = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    cross_entropy = -jnp.mean(log_likelihood)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, values.shape[1], dtype=values.dtype), label_smoothing)
    loss = jnp.mean(optax.softmax_cross_entropy(values, targets))
    accuracy = jnp.mean(jnp.argmax(values, axis=1) == labels)
    return loss, {"cross_entropy": cross_entropy, "train_accuracy": accuracy}


def joint_loss(
    logits: LogitsFn,
    params: Params,
    x_labelled: Position,
    labels: Array,
    x_data: Position,
    x_model: Position,
    *,
    labels_model: Array | None = None,
    p_y_given_x_weight: float = 1.0,
    p_x_weight: float | Array = 1.0,
    p_xy_weight: float = 0.0,
    energy_l2: float | Array = 0.0,
    label_smoothing: float | Array = 0.0,
) -> tuple[Array, Metrics]:
    """JEM's objective, a weighted sum of three log-likelihoods.

    loss = w_{y|x} CE(x_l, y_l)
         + w_x  [mean E(x_d) - mean E(x')]                with E(x) = -logsumexp_y f(x)[y]
         + w_xy [mean E(x_l, y_l) - mean E(x', y')]       with E(x, y) = -f(x)[y]
         + alpha (mean E(x_d)^2 + mean E(x')^2)

    Labelled and unlabelled batches come apart, so that semi-supervised learning is the same call with more
    unlabelled examples; fully supervised learning may pass the same batch twice, or two noisy copies of it.

    Args:
      logits: f(params, x) of one example, shape ``(K,)``.
      params: what is differentiated.
      x_labelled: labelled examples, each leaf ``(n, ...)``.
      labels: their classes, integers ``(n,)`` in 0..K-1.
      x_data: examples for log p(x), labelled or not, each leaf ``(m, ...)``.
      x_model: samples of the model, each leaf ``(k, ...)``; gradients through them are stopped.
      labels_model: classes of the samples, ``(k,)``; needed where ``p_xy_weight`` is not 0.
      p_y_given_x_weight: w_{y|x} >= 0, a number known before tracing.
      p_x_weight: w_x >= 0; 0 leaves a plain classifier.
      p_xy_weight: w_xy >= 0, a number known before tracing.
      energy_l2: alpha >= 0.
      label_smoothing: for the cross-entropy only.

    Returns:
      ``(loss, metrics)``: ``cross_entropy``, ``train_accuracy``, ``energy_data``, ``energy_model``, ``energy_gap``
      and, with ``p_xy_weight``, ``joint_energy_gap``.

    Raises:
      TypeError: for images that are not floating-point or labels that are not integer.
      ValueError: for labels out of range, batches that do not fit together, negative weights, all weights zero, or
        ``p_xy_weight`` without ``labels_model``.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = lambda params, x: params @ x
      >>> x = jnp.eye(2)
      >>> loss, metrics = joint_loss(logits, jnp.eye(2), x, jnp.array([0, 1]), x, 0.5 * x)
      >>> sorted(metrics)
      ['cross_entropy', 'energy_data', 'energy_gap', 'energy_model', 'train_accuracy']

    Reference:
      Grathwohl et al. 2020 (arXiv 1912.03263), equations 5 to 7 and algorithm 1.
    """
    weights = {"p_y_given_x_weight": p_y_given_x_weight, "p_x_weight": p_x_weight, "p_xy_weight": p_xy_weight}
    for name, weight in weights.items():
        checks.non_negative(name, weight)
    if not any(checks.is_traced(weight) or weight != 0 for weight in weights.values()):
        raise ValueError("p_y_given_x_weight, p_x_weight and p_xy_weight are all 0: nothing would be learnt.")
    check_same_example_shape("x_labelled", x_labelled, "x_data", x_data)
    cross_entropy, metrics = classification_loss(logits, params, x_labelled, labels, label_smoothing=label_smoothing)
    contrast, energy_metrics = contrastive_loss(marginal_energy(logits), params, x_data, x_model, energy_l2=energy_l2)
    # The contrast is gap + alpha * squares: the weight w_x belongs to the gap alone.
    gap = energy_metrics["energy_gap"]
    loss = p_y_given_x_weight * cross_entropy + p_x_weight * gap + (contrast - gap)
    metrics |= energy_metrics
    if p_xy_weight != 0:
        if labels_model is None:
            raise ValueError("labels_model is None: p_xy_weight needs the classes of the samples in x_model.")
        energies = jax.vmap(joint_energy(logits), (None, 0, 0), axis_name=BATCH_AXIS)
        joint_data = jnp.mean(energies(params, x_labelled, labels))
        joint_model = jnp.mean(energies(params, jax.lax.stop_gradient(x_model), labels_model))
        metrics["joint_energy_gap"] = joint_data - joint_model
        loss += p_xy_weight * metrics["joint_energy_gap"]
    return loss, metrics
