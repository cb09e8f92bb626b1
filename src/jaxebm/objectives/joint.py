"""JEM: one network that is a classifier and an energy-based model at once.

log p(x, y) = log p(y | x) + log p(x). The first term is the exact cross-entropy; only the second goes through
the sampler. Maximising log p(x, y) through joint samples is the alternative; each term has its own weight.
"""

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.classifier import marginal_energy
from jaxebm.objectives.contrastive import (
    Contrast,
    check_contrast,
    check_same_example_shape,
    compare,
    energies_of_both,
    mean_squares,
    noted,
)
from jaxebm.types import BATCH_AXIS, Array, LogitsFn, Metrics, Params, Position

__all__ = ["classification_loss", "joint_loss"]


def _batch_logits(logits: LogitsFn, params: Params, x: Position) -> Array:
    with noted("logits", params=params, x=x):
        values = jax.vmap(logits, (None, 0), axis_name=BATCH_AXIS)(params, x)
    checks.instance("what logits returns", values, jax.Array)
    checks.array("what logits returns", values)
    if values.ndim != 2:
        raise ValueError(
            f"logits returned shape {values.shape[1:]} for one example: shape (K,), one per class, is needed."
        )
    return values


def _check_labels_shape(name: str, labels: Array, num_examples: int, examples: str) -> None:
    checks.array(name, labels)
    if jnp.shape(labels) != (num_examples,):
        raise ValueError(
            f"{name} has shape {jnp.shape(labels)}: ({num_examples},) is needed, one label for each example "
            f"of {examples}."
        )


def _of_labels(values: Array, name: str, labels: Array) -> Array:
    """The entry of each row of ``values (n, K)`` at its label; NaN for a traced label out of range."""
    checks.integer_labels(name, labels, values.shape[1])

    def entry(row: Array, label: Array) -> Array:
        # Plain indexing would silently take the nearest class, and -1 the last.
        return row.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    # Row by row: with the rows' own numbers among the indices, devices that share a batch would exchange it.
    return jax.vmap(entry)(values, labels)


def may_learn(*weights: float | Array) -> bool:
    """Whether any weight may differ from 0; the value of a traced weight is not known."""
    return any(checks.is_traced(weight) or float(weight) != 0 for weight in weights)


def _cross_entropy(values: Array, labels: Array, label_smoothing: float | Array) -> tuple[Array, Metrics]:
    log_probabilities = jax.nn.log_softmax(values)
    cross_entropy = -jnp.mean(_of_labels(log_probabilities, "labels", labels))
    # Smoothed targets are (1 - s) one_hot + s / K, so their cross-entropy is this mixture.
    loss = (1 - label_smoothing) * cross_entropy - label_smoothing * jnp.mean(log_probabilities)
    accuracy = jnp.mean(jnp.argmax(values, axis=1) == labels)
    return loss, {"cross_entropy": cross_entropy, "train_accuracy": accuracy}


def classification_loss(
    logits: LogitsFn, params: Params, x: Position, labels: Array, *, label_smoothing: float | Array = 0.0
) -> tuple[Array, Metrics]:
    """Mean cross-entropy, -mean_i log p(y_i | x_i) with p(y | x) = softmax f(x).

    Args:
      logits: f(params, x) of one example, shape ``(K,)``.
      params: the parameters, with respect to which the loss is differentiated.
      x: labelled examples, each leaf ``(n, ...)``.
      labels: their classes, integers ``(n,)`` in 0..K-1.
      label_smoothing: share of the target that is spread evenly over the classes, in [0, 1].

    Returns:
      ``(loss, metrics)`` with ``cross_entropy`` (of the labels themselves, in nats) and ``train_accuracy``.

    Raises:
      TypeError: if ``x`` is not floating-point or ``labels`` not integer.
      ValueError: if ``labels`` lie outside 0..K-1, lengths differ, there is no example or logits are not of
        rank one. A traced label that is out of range makes the loss NaN, because it cannot be checked.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = lambda params, x: params @ x
      >>> loss, metrics = classification_loss(logits, jnp.eye(2), jnp.eye(2), jnp.array([0, 1]))
      >>> round(float(loss), 4), float(metrics["train_accuracy"])
      (0.3133, 1.0)
    """
    checks.function("logits", logits, "params", "x")
    checks.real_arrays("x", x)
    checks.floating("x", x)
    checks.in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    checks.one_number("label_smoothing", label_smoothing)
    _check_labels_shape("labels", labels, checks.batch_length("x", x), "x")
    return _cross_entropy(_batch_logits(logits, params, x), labels, label_smoothing)


def joint_loss(
    logits: LogitsFn,
    params: Params,
    x_labelled: Position,
    labels: Array,
    x_data: Position,
    x_model: Position,
    *,
    labels_model: Array | None = None,
    p_y_given_x_weight: float | Array = 1.0,
    p_x_weight: float | Array = 1.0,
    p_xy_weight: float = 0.0,
    energy_l2: float | Array = 0.0,
    label_smoothing: float | Array = 0.0,
    contrast: Contrast = "likelihood",
) -> tuple[Array, Metrics]:
    """JEM's objective, a weighted sum of three log-likelihoods.

    loss = w_{y|x} CE(x_l, y_l)
         + w_x  [mean E(x_d) - mean E(x')]                with E(x) = -logsumexp_y f(x)[y]
         + w_xy [mean E(x_l, y_l) - mean E(x', y')]       with E(x, y) = -f(x)[y]
         + alpha [mean E^2 over data + mean E^2 over samples]    of each bracket in use

    With ``contrast="binary"`` the two brackets become mean softplus(E) over the data + mean softplus(-E)
    over the samples, as in `jaxebm.objectives.binary_energy_loss` (dual adversarial training).

    Labelled and unlabelled batches are separate arguments, so that semi-supervised learning is the same call
    with more unlabelled examples. Supervised learning may pass the same batch twice, or two noisy copies.

    Args:
      logits: f(params, x) of one example, shape ``(K,)``.
      params: the parameters, with respect to which the loss is differentiated.
      x_labelled: labelled examples, each leaf ``(n, ...)``.
      labels: their classes, integers ``(n,)`` in 0..K-1.
      x_data: examples for log p(x), labelled or not, each leaf ``(m, ...)``.
      x_model: samples of the model, each leaf ``(k, ...)``; gradients through them are stopped.
      labels_model: classes of the samples, integers ``(k,)`` in 0..K-1; needed unless ``p_xy_weight`` is 0.
      p_y_given_x_weight: w_{y|x} >= 0.
      p_x_weight: w_x >= 0; 0 leaves a plain classifier.
      p_xy_weight: w_xy >= 0, a number known before tracing.
      energy_l2: alpha >= 0, for E(x, y) where w_xy is not 0, and for E(x) unless w_x is 0 and w_xy is not.
      label_smoothing: for the cross-entropy only.
      contrast: ``"likelihood"`` or ``"binary"``, how both terms compare data with samples.

    Returns:
      ``(loss, metrics)``: ``cross_entropy``, ``train_accuracy``, ``energy_data``, ``energy_model``,
      ``energy_gap`` and, with ``p_xy_weight``, ``joint_energy_gap``; for ``"binary"`` also
      ``binary_cross_entropy`` and ``joint_binary_cross_entropy``.

    Raises:
      TypeError: for images that are not floating-point, labels that are not integer or a traced
        ``p_xy_weight``.
      ValueError: for labels out of range, batches that do not fit together, negative weights, all weights
        zero, ``p_xy_weight`` without ``labels_model``, or an unknown ``contrast``.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = lambda params, x: params @ x
      >>> x = jnp.eye(2)
      >>> loss, metrics = joint_loss(logits, jnp.eye(2), x, jnp.array([0, 1]), x, 0.5 * x)
      >>> sorted(metrics)
      ['cross_entropy', 'energy_data', 'energy_gap', 'energy_model', 'train_accuracy']

    Reference:
      Grathwohl et al. 2020 (arXiv 1912.03263), equations 5 to 7 and algorithm 1; Yin et al. 2025 (arXiv
      2510.13872) for ``"binary"``.
    """
    check_contrast(contrast)
    checks.function("logits", logits, "params", "x")
    weights = {"p_y_given_x_weight": p_y_given_x_weight, "p_x_weight": p_x_weight, "p_xy_weight": p_xy_weight}
    for name, weight in weights.items():
        checks.non_negative_number(name, weight)
    if checks.is_traced(p_xy_weight):
        raise TypeError("p_xy_weight is traced: it must be a number known before tracing, such as 1.0.")
    if not may_learn(*weights.values()):
        raise ValueError("p_y_given_x_weight, p_x_weight and p_xy_weight are all 0: nothing would be learnt.")
    with_joint = float(p_xy_weight) != 0
    if with_joint and labels_model is None:
        raise ValueError("labels_model is None: p_xy_weight needs the classes of the samples in x_model.")
    checks.non_negative_number("energy_l2", energy_l2)
    checks.in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    checks.one_number("label_smoothing", label_smoothing)
    checks.real_arrays("x_labelled", x_labelled)
    checks.floating("x_labelled", x_labelled)
    check_same_example_shape("x_labelled", x_labelled, "x_data", x_data)
    _check_labels_shape("labels", labels, checks.batch_length("x_labelled", x_labelled), "x_labelled")

    def learns(*weights: float | Array) -> Params:
        """The parameters, without gradients where every weight is 0, because only metrics are needed then."""
        return params if may_learn(*weights) else jax.lax.stop_gradient(params)

    # A bracket of p(x, y) alone bounds its own energies: E(x) starts at -log K, which is no error.
    bounds_marginal = not with_joint or may_learn(p_x_weight)
    marginal_l2 = energy_l2 if bounds_marginal else 0.0
    values = _batch_logits(logits, learns(p_y_given_x_weight, p_xy_weight), x_labelled)
    classes = values if may_learn(p_y_given_x_weight) else jax.lax.stop_gradient(values)
    cross_entropy, metrics = _cross_entropy(classes, labels, label_smoothing)
    both = energies_of_both(
        marginal_energy(logits), learns(p_x_weight, marginal_l2), x_data, x_model, "logits"
    )
    if labels_model is not None:  # checked also where no weight needs them
        _check_labels_shape("labels_model", labels_model, checks.batch_length("x_model", x_model), "x_model")
    p_x_loss, energy_metrics = compare(*both, contrast)
    loss = p_y_given_x_weight * cross_entropy + p_x_weight * p_x_loss
    if bounds_marginal:
        loss += energy_l2 * mean_squares(*both)
    metrics |= energy_metrics
    if with_joint and labels_model is not None:
        values_model = _batch_logits(logits, params, jax.lax.stop_gradient(x_model))
        both = (
            -_of_labels(values, "labels", labels),
            -_of_labels(values_model, "labels_model", labels_model),
        )
        p_xy_loss, joint_metrics = compare(*both, contrast)
        loss += p_xy_weight * p_xy_loss + energy_l2 * mean_squares(*both)
        reported = ("energy_gap", "binary_cross_entropy")
        metrics |= {f"joint_{name}": joint_metrics[name] for name in reported if name in joint_metrics}
    return loss, metrics
