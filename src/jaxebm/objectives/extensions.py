"""Extensions of an objective: cross-entropy, adversarial training, the KL term of improved CD."""

import jax

from jaxebm import checks
from jaxebm.objectives.adversarial import adversarial_examples
from jaxebm.objectives.joint import classification_loss
from jaxebm.objectives.last_step import last_step_loss
from jaxebm.objectives.negatives import Augment, Negatives
from jaxebm.objectives.objective import Batch, Objective, check_negatives, labelled
from jaxebm.types import Array, JointEnergyFn, LogitsFn, MakeKernel, Metrics, Params

__all__ = ["with_adversarial_examples", "with_classification", "with_last_step"]


def with_adversarial_examples(
    objective: Objective,
    logits: LogitsFn,
    *,
    radius: float | Array,
    num_steps: int = 10,
    state_clamp: tuple[float, float] | None = (-1.0, 1.0),
) -> Objective:
    """Adversarial training: the labelled examples of each batch are moved to where their class is unlikely.

    x* = argmax over the L2 ball of this radius of -log p(y | x) (`jaxebm.objectives.adversarial_examples`).

    Args:
      objective: the objective that is then minimised at x*.
      logits: the classifier that is attacked, f(params, x) of one example.
      radius: radius of the ball, at least 0, in units of x.
      num_steps: steps of the attack, each of length ``2 radius / num_steps``.
      state_clamp: ``(low, high)`` that every entry stays in, or None.

    Returns:
      An objective with the same energy.

    Raises:
      TypeError: if ``objective`` or ``logits`` has the wrong type.
      ValueError: if ``radius`` is not one number of at least 0, ``num_steps`` not an integer of at least 1,
        or ``state_clamp`` no pair of numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxebm.objectives.objective import classifier
      >>> logits = lambda params, x: params @ x
      >>> plain = classifier(logits)
      >>> robust = with_adversarial_examples(plain, logits, radius=0.5)
      >>> batch, none = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2)), Negatives(None, None)
      >>> key = jax.random.key(0)
      >>> bool(robust.loss(jnp.eye(2), key, batch, none)[0] > plain.loss(jnp.eye(2), key, batch, none)[0])
      True

    Reference:
      Madry et al. 2018 (arXiv 1706.06083), equation 2.1.
    """
    checks.instance("objective", objective, Objective)
    checks.function_of_example("logits", logits, "params", "x")
    checks.non_negative_number("radius", radius)
    checks.positive_integer("num_steps", num_steps)
    if state_clamp is not None:
        checks.interval("state_clamp", state_clamp)

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        key_attack, key_loss = jax.random.split(rng_key)
        x, labels = labelled(batch, "with_adversarial_examples")
        moved = adversarial_examples(
            key_attack,
            logits,
            params,
            x,
            labels,
            radius=radius,
            num_steps=num_steps,
            state_clamp=state_clamp,
        )
        return objective.loss(params, key_loss, batch._replace(x_labelled=moved), negatives)

    return objective._replace(loss=loss)


def with_classification(
    objective: Objective,
    logits: LogitsFn,
    *,
    weight: float | Array = 1.0,
    label_smoothing: float | Array = 0.0,
    augment: Augment | None = None,
    training_logits: LogitsFn | None = None,
) -> Objective:
    """Adds a classifier's cross-entropy, as JEM does, to an objective of the same network.

    loss + w CE, CE = -mean log p(y | x) over the labelled examples, p(y | x) = softmax f(x).

    With an energy made of the same logits (`jaxebm.energies.marginal_energy`, ``joint_energy``) one network
    is a classifier and an energy-based model, learnt by any objective.

    Args:
      objective: the objective to which the term is added.
      logits: f(params, x) of one example, shape ``(K,)``.
      weight: w >= 0.
      label_smoothing: share of the target that is spread evenly over the classes, in [0, 1].
      augment: ``(rng_key, x) -> x`` of one example, applied for the cross-entropy alone: the energy learns
        the examples as they are.
      training_logits: what is differentiated instead of ``logits``, as in `jaxebm.objectives.jem`.

    Returns:
      An objective with the same energy, for labelled data. Its metrics have ``cross_entropy`` and
      ``train_accuracy``, too.

    Raises:
      TypeError: if ``objective`` or logits have the wrong type.
      ValueError: if ``weight`` is not one number of at least 0, ``label_smoothing`` is out of range, or the
        objective learns classes already; from the loss, if the data have no labels.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxebm.energies import marginal_energy
      >>> from jaxebm.objectives.score_matching import score_matching
      >>> logits = lambda params, x: params @ x
      >>> hybrid = with_classification(score_matching(marginal_energy(logits)), logits, weight=0.5)
      >>> batch, none = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2)), Negatives(None, None)
      >>> sorted(hybrid.loss(jnp.eye(2), jax.random.key(0), batch, none)[1])[:2]
      ['cross_entropy', 'laplacian']

    Reference:
      Grathwohl et al. 2020 (arXiv 1912.03263), section 4, with another objective for log p(x).
    """
    checks.instance("objective", objective, Objective)
    if objective.logits is not None:
        raise ValueError(
            "objective learns classes already (objective.logits is set): its cross-entropy would count twice."
        )
    checks.function_of_example("logits", logits, "params", "x")
    checks.non_negative_number("weight", weight)
    checks.in_range("label_smoothing", label_smoothing, 0.0, 1.0)
    checks.one_number("label_smoothing", label_smoothing)
    if augment is not None:
        checks.function_of_example("augment", augment, "rng_key", "x")
    if training_logits is not None:
        checks.function_of_example("training_logits", training_logits, "params", "x")
    learnt = logits if training_logits is None else training_logits

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        x, labels = labelled(batch, "with_classification")
        key_loss = rng_key
        if augment is not None:
            key_loss, key_augment = jax.random.split(rng_key)
            x = jax.vmap(augment)(jax.random.split(key_augment, len(labels)), x)
        value, metrics = objective.loss(params, key_loss, batch, negatives)
        cross_entropy, found = classification_loss(learnt, params, x, labels, label_smoothing=label_smoothing)
        return value + weight * cross_entropy, metrics | found

    return objective._replace(loss=loss, logits=logits)


def with_last_step(
    objective: Objective,
    make_kernel: MakeKernel,
    *,
    weight: float | Array = 1.0,
    entropy_weight: float | Array = 0.3,
    energy: JointEnergyFn | None = None,
) -> Objective:
    """Improved contrastive divergence: adds the sampler's KL term, through one more step of each chain.

    loss + w [mean E(step(x_model)) - w_H H] (`jaxebm.objectives.last_step_loss`), H the nearest-neighbour
    entropy of the positions after the steps.

    Args:
      objective: the objective to which the term is added.
      make_kernel: binds the kernel of the step, which must be differentiable, as `jaxebm.samplers.sgld` is.
      weight: w >= 0.
      entropy_weight: w_H >= 0.
      energy: the energy on which the step is taken; that of the objective by default.

    Returns:
      An objective with the same energy.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a weight is not one number of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from functools import partial
      >>> from jaxebm.objectives.objective import likelihood
      >>> from jaxebm.samplers import sgld
      >>> plain = likelihood(lambda params, x: 0.5 * params * jnp.sum(x**2))
      >>> improved = with_last_step(plain, partial(sgld, step_size=0.1, noise_scale=0.0))
      >>> batch = Batch(None, None, jnp.ones((4, 1)))
      >>> samples = Negatives(jnp.array([[1.0], [3.0]]), jnp.zeros(2, int))
      >>> sorted(improved.loss(1.0, jax.random.key(0), batch, samples)[1])[-2:]
      ['last_step_energy', 'neighbour_entropy']

    Reference:
      Du, Li, Tenenbaum & Mordatch 2021 (arXiv 2012.01316), equations 4 to 9.
    """
    checks.instance("objective", objective, Objective)
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.non_negative_number("weight", weight)
    checks.non_negative_number("entropy_weight", entropy_weight)
    if energy is not None:
        checks.function_of_example("energy", energy, "params", "x", "label")
    stepped = objective.energy if energy is None else energy

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        key_loss, key_step = jax.random.split(rng_key)
        check_negatives(negatives, "with_last_step")
        value, metrics = objective.loss(params, key_loss, batch, negatives)
        more, found = last_step_loss(
            key_step,
            make_kernel,
            stepped,
            params,
            negatives.positions,
            negatives.labels,  # pyright: ignore[reportArgumentType]
            entropy_weight=entropy_weight,
        )
        return value + weight * more, metrics | found

    return objective._replace(loss=loss)
