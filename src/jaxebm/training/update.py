"""One training update as a pure function: batch, negatives, gradient of the loss, update, metrics."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxebm import checks
from jaxebm.data.examples import Examples, as_examples
from jaxebm.objectives.labelled_chains import class_logits
from jaxebm.objectives.negatives import NegativeSampler, no_negatives
from jaxebm.objectives.objective import Objective, is_conditional
from jaxebm.training.batches import AugmentExample, Preparation, start_streams
from jaxebm.training.chain_measures import measure_chains, reach_of
from jaxebm.training.health import sample_norm
from jaxebm.training.manifest import is_key
from jaxebm.training.placement import Placement
from jaxebm.training.sharpness import Sharpness, ascend
from jaxebm.training.state import Learner, TrainState, TrainStep, init_health
from jaxebm.types import BATCH_AXIS, Array, Metrics, Params, Position

__all__ = ["InitParams", "learner"]

InitParams: TypeAlias = Callable[[Array, Position], Params]
"""``(rng_key, example) -> params``, such as the ``init`` of a Flax module."""


def learner(
    objective: Objective,
    *,
    optimizer: optax.GradientTransformation,
    negatives: NegativeSampler | None = None,
    batch_size: int = 64,
    noise: float = 0.0,
    augment: AugmentExample | None = None,
    augment_x_data: AugmentExample | Literal["same"] | None = "same",
    rescale: Callable[[Position], Position] | None = None,
    ema_decay: float = 0.999,
    refresh: Callable[[Params, Position], Params] | None = None,
    sharpness: Sharpness | None = None,
    placement: Placement | None = None,
) -> Learner:
    """Makes the learner of an objective: its initial state and its update.

    theta <- theta + f optimizer(d loss(theta; batch, negatives) / d theta), negatives ~ chains on
    ``objective.energy``, f = 1 unless a recovery has lowered ``health.learning_rate_factor``
    ema <- d ema + (1 - d) theta,  d = min(ema_decay, (1 + step) / (10 + step)), so that the average forgets
    early parameters sooner; step counts the updates done before this one.

    From labelled data an update takes two batches: labelled examples, and examples for log p(x), drawn
    independently from the same arrays or from ``unlabelled`` ones (`jaxebm.data.Examples`). Every example
    is used once per epoch, in a new random order. Examples are rescaled, augmented and get their noise in
    this order, inside the compiled update.

    Args:
      objective: from `jaxebm.objectives.likelihood`, ``jem``, ``classifier``, or your own.
      optimizer: an Optax transformation. One that takes more than the gradient is given ``value``, the loss,
        ``grad`` and ``value_fn`` (params -> loss of the same batch and negatives), as
        ``optax.contrib.reduce_on_plateau`` and line searches need.
      negatives: the sampler of the negatives, such as `jaxebm.objectives.persistent`; None for an objective
        that needs none.
      batch_size: examples per update, of each of the two batches.
      noise: standard deviation of Gaussian noise on all examples, in units of the rescaled x.
      augment: ``(rng_key, x) -> x`` of one rescaled example; None does not augment.
      augment_x_data: the same for the examples of log p(x), for data with labels; ``"same"`` takes
        ``augment``.
      rescale: maps a batch of stored examples to what the model sees, such as `jaxebm.data.Dataset.rescale`.
      ema_decay: in [0, 1); 0 makes the average equal to the parameters.
      refresh: ``(params, x_data) -> params`` after the update, for a network that keeps statistics in its
        variables (`jaxebm.energies.refresh_statistics`).
      sharpness: takes the gradient at the point that `jaxebm.training.ascend` returns, with the same batch,
        negatives and key, at the cost of a second gradient of the loss; None takes it at theta.
      placement: where batches, chains and parameters lie on several devices; None for one device.

    Returns:
      A `Learner`. Its metrics are those of the loss, at theta, and ``loss``, ``gradient_norm``,
      ``update_norm``, ``optimizer_norm`` (of some entries of its state before the update) and those of
      `jaxebm.training.measure_chains`. With ``sharpness`` there is also ``sharpness``, the loss at
      the ascended point minus that at theta, and ``gradient_norm`` is of the gradient there.

    Raises:
      TypeError: if an argument has the wrong type, or a function takes other arguments.
      ValueError: if ``ema_decay`` lies outside [0, 1), ``batch_size`` is not an integer of at least 1 or not
        a multiple of the placement's strata, or ``noise`` is negative; from ``init``, if data or parameters
        are not finite, the data hold fewer examples than a batch, or they, the negatives' classes and the
        options do not fit together.

    Example:
      >>> from functools import partial
      >>> from jaxebm.objectives import contrastive_divergence, likelihood
      >>> from jaxebm.samplers import sgld
      >>> from jaxebm.training import compile_steps
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> chains = contrastive_divergence(partial(sgld, step_size=0.5), num_steps=4)
      >>> learn = learner(likelihood(energy), negatives=chains, optimizer=optax.sgd(0.1))
      >>> data = jnp.full((64, 1), 3.0)
      >>> state = learn.init(jax.random.key(0), jnp.zeros(1), data)
      >>> state, metrics = compile_steps(learn.step, 200)(state, learn.place(data))
      >>> abs(float(state.params[0]) - 3.0) < 0.3
      True
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective is {_kind(objective)}: an Objective is needed, such as likelihood(energy) or "
            "jem(logits) of jaxebm.objectives."
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer is {_kind(optimizer)}: an Optax one is needed, such as optax.adam(1e-3).")
    if negatives is not None and not isinstance(negatives, NegativeSampler):
        raise TypeError(
            f"negatives is {_kind(negatives)}: a NegativeSampler is needed, such as persistent(...) of "
            "jaxebm.objectives, or None."
        )
    for name, function, arguments in (
        ("augment", augment, ("rng_key", "x")),
        ("augment_x_data", None if augment_x_data == "same" else augment_x_data, ("rng_key", "x")),
        ("rescale", rescale, ("x",)),
        ("refresh", refresh, ("params", "x_data")),
    ):
        if function is not None:
            checks.function(name, function, *arguments)
    checks.positive_integer("batch_size", batch_size)
    checks.non_negative_number("noise", noise)
    checks.in_range("ema_decay", ema_decay, 0.0, 1.0)
    checks.one_number("ema_decay", ema_decay)
    if ema_decay == 1:
        raise ValueError("ema_decay=1: the average would not change; use a number in [0, 1), such as 0.999.")
    hint = "Sharpness(rho) of jaxebm.training makes one."
    checks.instance("sharpness", sharpness, (Sharpness, type(None)), hint)
    hint = "make_placement of jaxebm.training makes one."
    checks.instance("placement", placement, (Placement, type(None)), hint)
    num_strata = 1 if placement is None else placement.num_strata
    if batch_size % num_strata:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of the placement's {num_strata} strata: each gives "
            "an equal share of a batch."
        )
    samples = negatives is not None
    negatives = no_negatives() if negatives is None else negatives
    update = optax.with_extra_args_support(optimizer).update
    prepare = Preparation(
        batch_size, noise, augment, augment if augment_x_data == "same" else augment_x_data, rescale
    )

    def init(rng_key: Array, params: Params, data: Any) -> TrainState:
        checks.rng_key("rng_key", rng_key)
        examples = as_examples(data)
        prepare.check(examples)
        example = prepare.example(examples)
        keys = jax.random.split(rng_key, 4)
        sampler_key, run_key = jax.random.split(keys[0])
        if _is_function(params):
            checks.function("params", params, "rng_key", "example")
            params = jax.jit(params)(keys[1], example)
        _check_params(params)
        num_classes = _check_functions(objective, params, example, examples, negatives, samples=samples)
        _check_classes(objective, negatives, examples)
        if examples.is_sampler:
            prepare.check_first(_batch_keys(run_key, 0)[0], examples, num_classes)
        streams = () if examples.is_sampler else start_streams(keys[2], keys[3], examples, num_strata)
        state = _with_copies(
            params,
            jax.jit(optimizer.init)(params),
            negatives.init(sampler_key, example),
            streams,
            run_key,
        )
        return state if placement is None else placement.place_state(state)

    def place(data: Any) -> Examples:
        examples = as_examples(data)
        if placement is None:
            return jax.tree.map(jnp.asarray, examples)
        if examples.is_sampler:
            raise ValueError("data is a function that draws examples: it cannot be spread over devices.")
        return placement.place_data(examples)

    return Learner(
        init,
        _make_step(objective, update, negatives, prepare, ema_decay, refresh, sharpness, placement),
        place,
    )


def _make_step(
    objective: Objective,
    optimizer_update: Callable[..., tuple[Any, Any]],
    negatives: NegativeSampler,
    prepare: Preparation,
    ema_decay: float,
    refresh: Callable[[Params, Position], Params] | None,
    sharpness: Sharpness | None,
    placement: Placement | None,
) -> TrainStep:
    value_and_gradient = jax.value_and_grad(objective.loss, has_aux=True)

    def train_step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        key_batch, key_negatives, key_loss = _batch_keys(state.rng_key, state.step)
        batch, streams = prepare(key_batch, data, state.streams)
        whole_params = state.params
        if placement is not None:
            batch, whole_params = placement.shard_batch(batch), placement.gather(state.params)
        # Chains that start at data start at the labelled examples if there are any.
        x_start = batch.x_data if batch.labels is None else batch.x_labelled
        samples, sampler_state = negatives.draw(
            key_negatives, objective.energy, whole_params, x_start, batch.labels, state.sampler_state
        )

        (value, metrics), gradient = value_and_gradient(whole_params, key_loss, batch, samples)
        if sharpness is not None:
            ascended = ascend(whole_params, gradient, sharpness.rho, adaptive=sharpness.adaptive)
            (ascended_value, _), gradient = value_and_gradient(ascended, key_loss, batch, samples)
            metrics = metrics | {"sharpness": ascended_value - value}
        if placement is not None:
            gradient = placement.scatter(gradient)
        updates, optimizer_state = optimizer_update(
            gradient,
            state.optimizer_state,
            state.params,
            value=value,
            grad=gradient,
            value_fn=lambda params: objective.loss(params, key_loss, batch, samples)[0],
        )
        updates = optax.tree.scale(state.health.learning_rate_factor, updates)
        params = optax.apply_updates(state.params, updates)
        if refresh is not None:
            params = refresh(params, batch.x_data)

        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        # The float32 decay would widen the average of bfloat16 parameters.
        ema_params = optax.tree.cast_like(ema_params, params)
        metrics = metrics | {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "optimizer_norm": sample_norm(state.optimizer_state),
            "largest_data": reach_of((batch.x_labelled, batch.x_data)),
        }
        if samples.positions is not None:
            metrics |= measure_chains(x_start, samples.positions, samples.displacement)
        new_state = state._replace(
            step=state.step + 1,
            params=params,
            optimizer_state=optimizer_state,
            ema_params=ema_params,
            sampler_state=sampler_state,
            streams=streams,
        )
        return (new_state if placement is None else placement.constrain(new_state)), metrics

    return train_step


def _batch_keys(rng_key: Array, step: Array | int) -> Array:
    """The three keys of an update: of its batch, its negatives and its loss."""
    return jax.random.split(jax.random.fold_in(rng_key, step), 3)


def _check_params(params: Params) -> None:
    """Raises unless all initial parameters are finite numbers; the message names the first that is not."""
    checks.arrays("params", params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = f"params{jax.tree_util.keystr(path)}"
        if is_key(leaf):  # that a module keeps for its dropout
            continue
        checks.array(name, leaf)
        if checks.is_traced(leaf) or not getattr(leaf, "is_fully_addressable", True):
            continue
        values = np.asarray(leaf)
        if bad := int(values.size - np.count_nonzero(np.isfinite(values))):
            raise ValueError(
                f"{name} holds {bad} non-finite entries (NaN or infinity) of {values.size} before the first "
                "update: initialise it with finite numbers."
            )


def _check_classes(objective: Objective, negatives: NegativeSampler, examples: Examples) -> None:
    """Raises ``ValueError`` if chains run on E(x, y) and the sampler has fewer classes than the data."""
    if examples.labels is None or negatives.num_classes is None or not is_conditional(objective.energy):
        return
    num_classes = int(np.max(np.asarray(examples.labels))) + 1
    if negatives.num_classes < num_classes:
        raise ValueError(
            f"negatives has num_classes={negatives.num_classes}, and the labels of data go up to "
            f"{num_classes - 1}: chains on E(x, y) need num_classes={num_classes}."
        )


def _check_functions(
    objective: Objective,
    params: Params,
    example: Position,
    examples: Examples,
    negatives: NegativeSampler,
    *,
    samples: bool,
) -> int | None:
    """Returns the number of classes, if it is known, or raises where energy or logits do not fit one example.

    Only shapes are computed.
    """

    def shape_of(function: Any, name: str, *label: Any) -> tuple[int, ...]:
        def one(params: Params, x: Position) -> Any:
            return function(params, x, *label)

        batched = jax.vmap(one, (None, 0), axis_name=BATCH_AXIS)
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), example)
        try:
            return jax.eval_shape(batched, params, batch).shape[1:]
        except Exception as error:  # whatever the function of a user raises
            shapes = jax.tree.map(jnp.shape, example)
            raise ValueError(
                f"objective.{name} fails with these params on one example of shape {shapes}: {error}\n"
                "A network that takes a batch becomes a function of one example by "
                "jaxebm.unbatched(module.apply); its parameters are initialised with a batch of one."
            ) from error

    num_classes = None
    logits = class_logits(objective.energy) if objective.logits is None else objective.logits
    if logits is not None:
        shape = shape_of(logits, "logits")
        if len(shape) != 1:
            raise ValueError(f"objective.logits has shape {shape} for one example: (K,) is needed.")
        num_classes = shape[0]
        needed = f"class numbers 0..{num_classes - 1} are needed"
        if examples.labels is not None and (most := int(np.max(np.asarray(examples.labels)))) >= num_classes:
            raise ValueError(f"data has the label {most}, and there are {num_classes} logits: {needed}.")
        if (negatives.num_classes or 0) > num_classes:
            raise ValueError(
                f"negatives has num_classes={negatives.num_classes}, and there are {num_classes} logits: "
                f"chains would belong to classes that do not exist; {needed}."
            )
    if samples:
        shape = shape_of(objective.energy, "energy", jnp.zeros((), jnp.int32))
        if shape != ():
            raise ValueError(f"objective.energy has shape {shape} for one example: a scalar () is needed.")
    return num_classes


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _is_function(params: Any) -> bool:
    """Whether the parameters are an ``init`` function; a pytree of arrays may be callable, too."""
    is_leaf = jax.tree_util.all_leaves([params])
    return callable(params) and (is_leaf or isinstance(params, jax.tree_util.Partial))


@jax.jit
def _with_copies(
    params: Params, optimizer_state: optax.OptState, sampler_state: Any, streams: Any, rng_key: Array
) -> TrainState:
    """The state before the first update; every leaf is a separate array, because the step donates them."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=optimizer_state,
        ema_params=params,
        sampler_state=sampler_state,
        streams=streams,
        rng_key=rng_key,
        health=init_health(),
    )
    return jax.tree.map(jnp.copy, state)
