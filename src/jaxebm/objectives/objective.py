"""Objectives: a pair of the energy on which chains run and the loss that compares data with samples.

In one update the learner (`jaxebm.training.learner`) draws a batch, the negative sampler runs chains on
``objective.energy``, and ``objective.loss`` is differentiated. `likelihood`, `jem` and `classifier` make
objectives from an energy or from a classifier's logits; `with_adversarial_examples` and `with_last_step`
extend an objective; a pair of your own functions is an objective, too.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxebm import checks
from jaxebm.energies.classifier import JointEnergy, joint_energy, marginal_energy
from jaxebm.objectives.contrastive import Contrast, check_contrast, energy_loss
from jaxebm.objectives.joint import classification_loss, joint_loss, may_learn
from jaxebm.objectives.negatives import Negatives
from jaxebm.types import Array, EnergyFn, JointEnergyFn, LogitsFn, Metrics, Params, Position

__all__ = [
    "Batch",
    "Loss",
    "Objective",
    "classifier",
    "ignore_label",
    "jem",
    "likelihood",
]


class Batch(NamedTuple):
    """The examples of one update, rescaled, augmented and with noise added.

    Attributes:
      x_labelled: labelled examples, each leaf ``(n, ...)``; None where the data have no labels.
      labels: their classes, integers ``(n,)``; None where the data have no labels.
      x_data: examples that log p(x) learns from, each leaf ``(n, ...)``, drawn independently of the labelled
        ones, from the same arrays or from unlabelled ones.
    """

    x_labelled: Position | None
    labels: Array | None
    x_data: Position


Loss: TypeAlias = Callable[[Params, Array, Batch, Negatives], tuple[Array, Metrics]]
"""``(params, rng_key, batch, negatives) -> (loss, metrics)``; it stops the gradient at the negatives."""


class Objective(NamedTuple):
    """The training objective of a learner.

    Attributes:
      energy: E(params, x, label) of one example, on which chains run; it may ignore the label.
      loss: ``(params, rng_key, batch, negatives) -> (loss, metrics)``. Where the learner has no negative
        sampler, ``negatives.positions`` is None.
      logits: f(params, x) of one example where the objective learns classes, with which a learner checks the
        labels; else None.

    Example:
      A custom objective, which keeps E at the data close to 1 and needs no chains:

      >>> import jax, jax.numpy as jnp
      >>> def energy(params, x):
      ...     return params * jnp.sum(x**2)
      >>> def loss(params, rng_key, batch, negatives):
      ...     energies = jax.vmap(energy, (None, 0))(params, batch.x_data)
      ...     return jnp.mean((energies - 1.0) ** 2), {"energy_data": jnp.mean(energies)}
      >>> mine = Objective(ignore_label(energy), loss)
      >>> float(mine.energy(2.0, jnp.ones(3), 0))
      6.0
    """

    energy: JointEnergyFn
    loss: Loss
    logits: LogitsFn | None = None


@dataclass(frozen=True)
class _IgnoreLabel:
    energy: EnergyFn

    def __call__(self, params: Params, x: Position, y: Array, /) -> Array:
        del y
        value = self.energy(params, x)
        if shape := getattr(value, "shape", ()):
            raise ValueError(f"energy has shape {shape} for one example: a scalar () is needed.")
        checks.scalar_energy("energy", value)
        return value


def is_conditional(energy: Any) -> bool:
    """Returns whether an energy of this package depends on the class; False for the energies of a user."""
    return isinstance(energy, JointEnergy) or getattr(energy, "kind", None) == "joint"


def ignore_label(energy: EnergyFn) -> JointEnergyFn:
    """Returns E(x) as an energy of x and a label that it ignores; equal for equal energies.

    Args:
      energy: E(params, x) of one example.

    Returns:
      ``energy(params, x, label) -> ()``; the energy itself where it has a method ``bind``, which makes its
      own targets (`jaxebm.energies.split_energy`).

    Raises:
      TypeError: if ``energy`` is not a function of two arguments; from the energy, if it returns something
        else than one real scalar.
      ValueError: from the energy, if what it returns is no scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = ignore_label(lambda params, x: params * jnp.sum(x**2))
      >>> float(energy(0.5, jnp.ones(2), 3))
      1.0
    """
    if hasattr(energy, "bind"):
        return energy  # type: ignore[return-value]
    checks.function("energy", energy, "params", "x")
    return _IgnoreLabel(energy)  # type: ignore[return-value]


def likelihood(
    energy: EnergyFn,
    *,
    energy_l2: float | Array = 0.0,
    contrast: Contrast = "likelihood",
    weight: float | Array = 1.0,
    training_energy: EnergyFn | None = None,
) -> Objective:
    """Maximum likelihood of p(x) = exp(-E(x)) / Z, from data and samples of the model.

    loss = w [mean E(x_data) - mean E(x_model) + alpha (mean E(x_data)^2 + mean E(x_model)^2)]

    Its gradient estimates that of -w log p(x) (`jaxebm.objectives.contrastive_loss`).

    Args:
      energy: E(params, x) of one example, such as the ``apply`` of a Flax module with a scalar output.
      energy_l2: alpha >= 0, which keeps energies near zero; about 0.1 to 1 where training drifts.
      contrast: ``"likelihood"``, or ``"binary"``: the cross-entropy of classifying data against samples by
        sigmoid(-E) (`jaxebm.objectives.binary_energy_loss`).
      weight: w >= 0.
      training_energy: what is differentiated instead of ``energy``, for a network that normalises by the
        batch while it learns (`jaxebm.energies.training_apply`); chains always run on ``energy``.

    Returns:
      An objective for data with or without labels.

    Raises:
      TypeError: if an energy is not a function of two arguments.
      ValueError: if ``energy_l2`` or ``weight`` is not one number of at least 0, or ``contrast`` unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> objective = likelihood(lambda params, x: 0.5 * params * jnp.sum(x**2))
      >>> batch = Batch(None, None, jnp.ones((4, 2)))
      >>> samples = Negatives(2.0 * jnp.ones((8, 2)), None)
      >>> float(objective.loss(1.0, jax.random.key(0), batch, samples)[0])
      -3.0

    Reference:
      Hinton 2002, "Training products of experts by minimizing contrastive divergence".
    """
    check_contrast(contrast)
    # One that makes its own targets may want the label, too.
    checks.function_of_example("energy", energy, "params", "x", *(["label"] if _needs_label(energy) else []))
    name, learnt = "energy", energy
    if training_energy is not None:
        checks.function_of_example("training_energy", training_energy, "params", "x")
        name, learnt = "training_energy", training_energy
    checks.non_negative_number("energy_l2", energy_l2)
    checks.non_negative_number("weight", weight)

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del rng_key
        check_negatives(negatives, "likelihood")
        samples = negatives.positions
        value, metrics = energy_loss(learnt, params, batch.x_data, samples, energy_l2, contrast, name)
        return weight * value, metrics

    return Objective(ignore_label(energy), loss)


def jem(
    logits: LogitsFn,
    *,
    p_y_given_x_weight: float | Array = 1.0,
    p_x_weight: float | Array = 1.0,
    p_xy_weight: float = 0.0,
    chains: Literal["marginal", "conditional"] | None = None,
    contrast: Contrast = "likelihood",
    energy_l2: float | Array = 0.0,
    label_smoothing: float | Array = 0.0,
    training_logits: LogitsFn | None = None,
    chain_energy: JointEnergyFn | None = None,
) -> Objective:
    """JEM: a classifier that is an energy-based model of its inputs, log p(x, y) = log p(y | x) + log p(x).

    loss = w_{y|x} CE + w_x [mean E(x_data) - mean E(x_model)] + w_xy [mean E(x, y) - mean E(x', y')]

    with E(x) = -logsumexp f(x) and E(x, y) = -f(x)[y] (`jaxebm.objectives.joint_loss`).

    Args:
      logits: f(params, x) of one example, shape ``(K,)``.
      p_y_given_x_weight: w_{y|x} >= 0, the weight of the cross-entropy.
      p_x_weight: w_x >= 0.
      p_xy_weight: w_xy >= 0; needs ``chains="conditional"``.
      chains: the energy on which chains run: ``"marginal"``, E(x), or ``"conditional"``, E(x, y) of the
        class of each chain. By default conditional if ``p_xy_weight`` is above 0.
      contrast: ``"likelihood"`` or ``"binary"``, as in `likelihood`.
      energy_l2: alpha >= 0, weight of the squared energies.
      label_smoothing: label smoothing of the cross-entropy, in [0, 1].
      training_logits: what is differentiated instead of ``logits``, for a network that normalises by the
        batch while it learns (`jaxebm.energies.training_apply`); chains always run on ``logits``.
      chain_energy: E(params, x, label) on which chains run instead, such as
        `jaxebm.energies.split_energy` of the same network.

    Returns:
      An objective for labelled data, with or without additional unlabelled data.

    Raises:
      TypeError: if logits or ``chain_energy`` are not functions of these arguments.
      ValueError: if a weight is not one number of at least 0, all weights are zero, ``label_smoothing`` is
        out of range, ``chains`` or ``contrast`` is unknown, or ``p_xy_weight`` is above 0 with marginal
        chains.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> objective = jem(lambda params, x: params @ x, p_x_weight=0.5)
      >>> batch = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2))
      >>> loss, metrics = objective.loss(jnp.eye(2), None, batch, Negatives(0.5 * jnp.eye(2), None))
      >>> sorted(metrics)
      ['cross_entropy', 'energy_data', 'energy_gap', 'energy_model', 'train_accuracy']

    Reference:
      Grathwohl et al. 2020 (arXiv 1912.03263), equations 5 to 7 and algorithm 1.
    """
    check_contrast(contrast)
    checks.function_of_example("logits", logits, "params", "x")
    if training_logits is not None:
        checks.function_of_example("training_logits", training_logits, "params", "x")
    if chain_energy is not None:
        checks.function_of_example("chain_energy", chain_energy, "params", "x", "label")
    for name, weight in (
        ("p_y_given_x_weight", p_y_given_x_weight),
        ("p_x_weight", p_x_weight),
        ("p_xy_weight", p_xy_weight),
        ("energy_l2", energy_l2),
    ):
        checks.non_negative_number(name, weight)
    checks.in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    checks.one_number("label_smoothing", label_smoothing)
    if not may_learn(p_y_given_x_weight, p_x_weight, p_xy_weight):
        raise ValueError("p_y_given_x_weight, p_x_weight and p_xy_weight are all 0: nothing would be learnt.")
    if chains is None:
        chains = "conditional" if p_xy_weight > 0 else "marginal"
    checks.one_of("chains", chains, ("marginal", "conditional"))
    if p_xy_weight > 0 and chains == "marginal":
        raise ValueError("chains='marginal': p_xy_weight needs samples of p(x, y), chains='conditional'.")
    if chain_energy is None:
        conditional = chains == "conditional"
        chain_energy = joint_energy(logits) if conditional else ignore_label(marginal_energy(logits))
    learnt = logits if training_logits is None else training_logits

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del rng_key
        x, labels = labelled(batch, "jem")
        check_negatives(negatives, "jem")
        return joint_loss(
            learnt,
            params,
            x,
            labels,
            batch.x_data,
            negatives.positions,
            labels_model=negatives.labels,
            p_y_given_x_weight=p_y_given_x_weight,
            p_x_weight=p_x_weight,
            p_xy_weight=p_xy_weight,
            contrast=contrast,
            energy_l2=energy_l2,
            label_smoothing=label_smoothing,
        )

    return Objective(chain_energy, loss, logits)


def classifier(
    logits: LogitsFn, *, label_smoothing: float | Array = 0.0, training_logits: LogitsFn | None = None
) -> Objective:
    """A classifier alone: the cross-entropy -mean log p(y | x), p(y | x) = softmax f(x).

    It needs no negatives. Its energy is E(x) = -logsumexp f(x), which the loss does not constrain.

    Args:
      logits: f(params, x) of one example, shape ``(K,)``.
      label_smoothing: share of the target that is spread evenly over the classes, in [0, 1].
      training_logits: what is differentiated instead of ``logits``, as in `jem`.

    Returns:
      An objective for labelled data.

    Raises:
      TypeError: if logits are not functions of two arguments.
      ValueError: if ``label_smoothing`` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> objective = classifier(lambda params, x: params @ x)
      >>> batch = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2))
      >>> round(float(objective.loss(jnp.eye(2), None, batch, Negatives(None, None))[0]), 4)
      0.3133
    """
    checks.function_of_example("logits", logits, "params", "x")
    if training_logits is not None:
        checks.function_of_example("training_logits", training_logits, "params", "x")
    checks.in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    checks.one_number("label_smoothing", label_smoothing)
    learnt = logits if training_logits is None else training_logits

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del rng_key, negatives
        x, labels = labelled(batch, "classifier")
        return classification_loss(learnt, params, x, labels, label_smoothing=label_smoothing)

    return Objective(ignore_label(marginal_energy(logits)), loss, logits)


def _needs_label(energy: Any) -> bool:
    """Whether an energy that makes its own targets takes a label that has no default."""
    if not hasattr(energy, "bind"):
        return False
    required = [each for each in inspect.signature(energy).parameters.values() if each.default is each.empty]
    return len(required) > 2


def labelled(batch: Batch, name: str) -> tuple[Any, Array]:
    """Returns the labelled examples and their labels, or raises; ``name`` is the objective's."""
    if batch.x_labelled is None or batch.labels is None:
        raise ValueError(
            f"{name} needs labels, and the data have none: give data=(x, labels), one integer for each "
            "example."
        )
    return batch.x_labelled, batch.labels


def check_negatives(negatives: Negatives, name: str) -> None:
    """Raises ``ValueError`` if there are no samples; ``name`` is the objective's."""
    if negatives.positions is None:
        raise ValueError(
            f"{name} compares data with samples of the model: give the learner negatives=, such as "
            "persistent(...) of jaxebm.objectives."
        )
