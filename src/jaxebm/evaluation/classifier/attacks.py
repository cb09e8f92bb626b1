r"""Adversarial attacks: small changes of an input that make a classifier err, found by a chain.

It is ``projected_gradient_descent`` on minus the classifier's loss, started at random in a ball around the
example, kept in the ball and in the box of valid images. What is attacked is ``(rng_key, params, x) -> (K,)``
(`jaxebm.evaluation.classifier.refinement`), since a defence may use noise: then the gradient is averaged over
its draws.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxebm import checks
from jaxebm.evaluation.classifier.refinement import DefendedFn
from jaxebm.samplers.descent import DescentNorm, projected_gradient_descent
from jaxebm.trees import wide_dtype
from jaxebm.types import BATCH_AXIS, Array, Params

__all__ = ["AttackLoss", "AttackResult", "attack", "attack_batch"]

AttackLoss = Literal["cross_entropy", "margin"]
"""The loss that an attack maximises: -log p(label|x), or the largest other logit minus that of the label."""

_Clamp = tuple[Array | float, Array | float] | None
_RELATIVE_STEP = 2.5
"""Length of all steps together over the radius: enough to cross the ball (Madry et al. 2018)."""


class AttackResult(NamedTuple):
    """The best result of an attack.

    Attributes:
      x_adversarial: the example it ended at, in the ball and in the box.
      success: whether the classifier gives it another class than the label.
      loss: the attacked loss there, in nats (cross-entropy) or units of logits (margin).
    """

    x_adversarial: Any
    success: Any
    loss: Any


def _of_label(values: Array, label: Array) -> Array:
    """The entry of the label, NaN for a traced label that is out of range."""
    return values.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def _cross_entropy(logits: Array, label: Array) -> Array:
    return -_of_label(jax.nn.log_softmax(logits), label)


def _margin(logits: Array, label: Array) -> Array:
    others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
    return jnp.max(others) - _of_label(logits, label)


_LOSSES: dict[str, Callable[[Array, Array], Array]] = {"cross_entropy": _cross_entropy, "margin": _margin}


def attack(
    rng_key: Array,
    defended: DefendedFn,
    params: Params,
    x: Array,
    label: Array | int,
    *,
    norm: DescentNorm,
    radius: Array | float,
    num_steps: int = 40,
    step_size: Array | float | None = None,
    num_restarts: int = 1,
    loss: AttackLoss = "cross_entropy",
    state_clamp: _Clamp = (-1.0, 1.0),
    num_expectation_samples: int = 1,
) -> AttackResult:
    r"""Projected gradient ascent on the loss of one example, from random starts: "PGD", untargeted.

    x' <- Pi(x' + step_size * d(g)), g = (1/n) sum_i d loss(f(x', noise_i), label) / dx', with n =
    ``num_expectation_samples`` fresh draws of the defence's noise at every step (expectation over
    transformation, EOT), d(g) = g / |g| or sign(g), and Pi onto the ball and the box. Of the restarts, the
    first that succeeds is kept, and otherwise the one of highest loss; both are judged by the mean logits
    and losses of n draws, new ones and the same for all restarts.

    Args:
      rng_key: one typed key: starts, and the noise of the defence.
      defended: ``(rng_key, params, x) -> (K,)``; ``deterministic(logits)`` or ``refined_logits(...)``.
      params: its parameters.
      x: one example, floating point, any shape, inside of ``state_clamp``.
      label: its class, one integer ``()``.
      norm: ``"linf"``, the largest change of an entry, or ``"l2"``, the Euclidean length of the change.
      radius: of the ball, above 0, ``()``, in units of x: with pixels in [-1, 1], 8/255 of [0, 1] is 16/255.
      num_steps: steps from each start.
      step_size: length of a step in the same units; ``None`` means 2.5 * radius / num_steps.
      num_restarts: random starts, uniform in the ball.
      loss: ``"cross_entropy"`` or ``"margin"``. Cross-entropy's slope vanishes in float32 where the
        classifier is very sure; the margin's does not.
      state_clamp: ``(low, high)``, the box of valid examples, or ``None``.
      num_expectation_samples: draws of the defence's noise a step; 1 is right where it uses none.

    Returns:
      An ``AttackResult`` of one example. ``defended`` only needs to be differentiable.

    Raises:
      ValueError: if the radius or the step is not positive, x empty or outside of the box (numbers only:
        traced values pass), the norm or the loss unknown, the label not one of the classes (the loss of a
        traced one is NaN), the logits not of rank one with two classes or more, or a count not a positive
        integer.
      TypeError: if x is not floating point, the label not an integer, rng_key not a typed key, or defended no
        such function.

    Example:
      >>> from jaxebm.evaluation.classifier.refinement import deterministic
      >>> logits = lambda params, x: params @ x  # class 0 where x[0] > x[1]
      >>> x = jnp.array([0.3, 0.1])
      >>> for radius in (0.05, 0.2):  # an entry each must move by more than 0.1
      ...     result = attack(jax.random.key(0), deterministic(logits), jnp.eye(2), x, 0,
      ...                     norm="linf", radius=radius)
      ...     print(bool(result.success))
      False
      True

    Reference:
      Madry et al. 2018 (arXiv 1706.06083), section 2.1; Athalye et al. 2018 (arXiv 1802.00420), section 4,
      for EOT; margin after Carlini & Wagner 2017 (arXiv 1608.04644).
    """
    checks.rng_key("rng_key", rng_key)
    checks.function("defended", defended, "rng_key", "params", "x")
    attack_settings(norm, loss, num_steps, num_restarts, num_expectation_samples)
    checks.positive_number("radius", radius)
    if step_size is not None:
        checks.positive_number("step_size", step_size)
    checks.array("x", x)
    checks.floating("x", x)
    _check_box("x", x, state_clamp)
    checks.array("label", label, (), "one class, shape (),")
    with checks.shapes_noted(params=params, x=x):
        num_classes = _num_classes(rng_key, defended, params, x)
    checks.integer_labels("label", label, num_classes)
    step = _RELATIVE_STEP * radius / num_steps if step_size is None else step_size
    x, label, loss_of = jnp.asarray(x), jnp.asarray(label), _LOSSES[loss]
    restarts_key, judge_key = jax.random.split(rng_key)

    def expected_loss(noise_keys: Array, position: Array) -> tuple[Array, Array]:
        """Returns the mean loss and the mean logits over draws of the defence's noise."""
        draws = draw_logits(defended, noise_keys, params, position)
        return jnp.mean(jax.vmap(loss_of, (0, None))(draws, label)), jnp.mean(draws, axis=0)

    def ascend(restart_key: Array) -> Array:
        start_key, chain_key, noise_key = jax.random.split(restart_key, 3)
        # The schedule of this chain is the noise of the defence, new in every step.
        noise = jax.random.split(noise_key, (num_steps, num_expectation_samples))
        return projected_gradient_descent(
            chain_key,
            lambda noise_keys: lambda position: -expected_loss(noise_keys, position)[0],
            noise,
            _uniform_in_ball(start_key, x, norm, radius),
            step_size=step,
            norm=norm,
            center=x,
            radius=radius,
            state_clamp=state_clamp,
        )

    found = jax.vmap(ascend)(jax.random.split(restarts_key, num_restarts))
    judges = jax.random.split(judge_key, num_expectation_samples)
    losses, mean_logits = jax.vmap(partial(expected_loss, judges))(found)
    succeeded = jnp.argmax(mean_logits, axis=1) != label
    best = jnp.where(jnp.any(succeeded), jnp.argmax(succeeded), jnp.argmax(losses))
    return AttackResult(found[best], succeeded[best], losses[best])


def attack_batch(
    rng_key: Array,
    defended: DefendedFn,
    params: Params,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: DescentNorm,
    radius: float,
    num_steps: int = 40,
    step_size: float | None = None,
    num_restarts: int = 1,
    loss: AttackLoss = "cross_entropy",
    state_clamp: tuple[float, float] | None = (-1.0, 1.0),
    num_expectation_samples: int = 1,
    chunk_size: int = 100,
) -> AttackResult:
    """Attacks many examples, compiled, some at a time: ``attack`` under ``vmap``.

    Compiled once for each defence, norm, loss, set of counts and shape of a chunk: another radius, step,
    box or other parameters run the same program. What is found for an example depends on its place in the
    batch and not on the size of chunks.

    Args:
      rng_key: one typed key.
      defended: as in ``attack``; hashable, and made once.
      params: its parameters.
      images: ``(n, ...)`` examples.
      labels: ``(n,)`` integers.
      norm, radius, num_steps, step_size, num_restarts, loss, state_clamp, num_expectation_samples: as in
        ``attack``.
      chunk_size: examples at once; fewer are filled up to it. Memory grows with chunk_size * num_restarts *
        num_expectation_samples.

    Returns:
      ``AttackResult(x_adversarial (n, ...), success (n,), loss (n,))`` of NumPy arrays.

    Raises:
      ValueError, TypeError: as ``attack``, or if labels are not ``(n,)`` or out of range.
      FloatingPointError: if the loss of an attacked example is not finite.

    Example:
      >>> from jaxebm.evaluation.classifier.refinement import deterministic
      >>> images, labels = np.array([[0.3, 0.1], [0.1, 0.8]]), np.array([0, 1])
      >>> result = attack_batch(jax.random.key(0), deterministic(jnp.matmul), jnp.eye(2), images, labels,
      ...                       norm="linf", radius=0.2, num_steps=10)
      >>> result.success.tolist()
      [True, False]

    Reference:
      As ``attack``.
    """
    settings = attack_settings(norm, loss, num_steps, num_restarts, num_expectation_samples)
    checks.positive_integer("chunk_size", chunk_size)
    checks.positive_number("radius", radius)
    if step_size is not None:
        checks.positive_number("step_size", step_size)
    checked = checked_examples(rng_key, defended, params, images, labels, state_clamp)
    return attack_checked(
        rng_key, defended, params, *checked, radius, step_size, state_clamp, chunk_size, **settings
    )


def attack_checked(
    rng_key: Array,
    defended: DefendedFn,
    params: Params,
    images: np.ndarray,
    labels: np.ndarray,
    radius: float,
    step_size: float | None,
    state_clamp: tuple[float, float] | None,
    chunk_size: int,
    **settings: Any,
) -> AttackResult:
    """``attack_batch`` after its checks: what `jaxebm.evaluation.classifier.robustness` repeats."""
    step = _RELATIVE_STEP * radius / settings["num_steps"] if step_size is None else step_size
    run = partial(_attack_chunk, params, float(radius), float(step), state_clamp, defended, **settings)
    result = AttackResult(*in_chunks(run, rng_key, (images, labels), chunk_size))
    bad = np.count_nonzero(~np.isfinite(result.loss))
    if bad:
        raise FloatingPointError(
            f"the loss is not finite at {bad} of {len(labels)} attacked examples: they cannot be evaluated."
        )
    return result


def attack_settings(
    norm: str, loss: str, num_steps: int, num_restarts: int, num_expectation_samples: int
) -> dict[str, Any]:
    """Returns the static arguments of an attack by name, or raises ``ValueError``."""
    checks.one_of("norm", norm, get_args(DescentNorm))
    checks.one_of("loss", loss, tuple(_LOSSES))
    counts = {
        "num_steps": num_steps,
        "num_restarts": num_restarts,
        "num_expectation_samples": num_expectation_samples,
    }
    for name, value in counts.items():
        checks.positive_integer(name, value)
    return {"norm": norm, "loss": loss, **counts}


def checked_examples(
    rng_key: Array,
    defended: DefendedFn,
    params: Params,
    images: ArrayLike,
    labels: ArrayLike,
    state_clamp: tuple[float, float] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels as NumPy arrays fit to be attacked, or raises."""
    checks.rng_key("rng_key", rng_key)
    checks.function("defended", defended, "rng_key", "params", "x")
    checks.array("images", images)
    checks.floating("images", images)
    num_examples = checks.batch_length("images", images)
    checks.finite("images", images)
    checks.array("labels", labels)
    pixels, classes = np.asarray(jnp.asarray(images)), np.asarray(labels)  # in JAX's precision
    _check_box("images", pixels, state_clamp)
    if classes.shape != (num_examples,):
        raise ValueError(
            f"labels has shape {classes.shape}: {(num_examples,)} is needed, one label for each of images."
        )
    with checks.shapes_noted(params=params, images=pixels):
        num_classes = _num_classes(rng_key, defended, params, pixels[0])
    checks.integer_labels("labels", classes, num_classes)
    return pixels, classes.astype(np.int32)


def in_chunks(
    run: Callable[..., Any], rng_key: Array, arrays: tuple[np.ndarray, ...], chunk_size: int
) -> list[np.ndarray]:
    """Maps a compiled ``(rng_keys, *arrays) -> tuple of arrays`` over chunks of equal size, a key per row."""
    num_rows = len(arrays[0])
    rng_keys = jax.random.split(rng_key, num_rows)
    found = []
    for start in range(0, num_rows, chunk_size):
        # The last chunk is padded with its last row, so that all chunks use one program.
        rows = np.minimum(np.arange(start, start + chunk_size), num_rows - 1)
        outputs = run(rng_keys[rows], *(array[rows] for array in arrays))
        found.append([np.asarray(output)[: num_rows - start] for output in outputs])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def draw_logits(defended: DefendedFn, noise_keys: Array, params: Params, x: Array) -> Array:
    """Logits (n, K) of one example under n draws of the defence's noise."""
    if noise_keys.shape[0] == 1:  # a batch axis of one is slower for a deterministic classifier
        return defended(noise_keys[0], params, x)[None]
    return jax.vmap(defended, (0, None, None))(noise_keys, params, x)


def _check_box(name: str, examples: Any, state_clamp: _Clamp) -> None:
    if np.size(examples) == 0:
        raise ValueError(f"{name} has shape {np.shape(examples)}: at least one entry is needed.")
    if state_clamp is None:
        return
    checks.interval("state_clamp", state_clamp)
    if any(map(checks.is_traced, (examples, *state_clamp))):
        return
    low, high = state_clamp
    found = float(np.min(examples)), float(np.max(examples))
    if not (low <= found[0] and found[1] <= high):
        raise ValueError(
            f"{name} spans {found[0]:g}..{found[1]:g}: it must lie in state_clamp={state_clamp!r}, a pair "
            f"(low, high) with low < high; None for no box."
        )


def _uniform_in_ball(rng_key: Array, x: Array, norm: str, radius: Array | float) -> Array:
    dtype = wide_dtype(x)
    if norm == "linf":
        return x + radius * jax.random.uniform(rng_key, x.shape, dtype, -1.0, 1.0)
    direction_key, length_key = jax.random.split(rng_key)
    direction = jax.random.normal(direction_key, x.shape, dtype)
    # A ball of radius s holds s^D of the volume.
    length = jax.random.uniform(length_key, (), dtype) ** (1 / x.size)
    return x + radius * length * direction / jnp.linalg.norm(direction.ravel())


def _num_classes(rng_key: Array, defended: DefendedFn, params: Params, x: Any) -> int:
    shape = jax.eval_shape(defended, rng_key, params, x).shape
    if len(shape) != 1:
        raise ValueError(
            f"defended(rng_key, params, x) has shape {shape}: it must be (num_classes,) for one example x; "
            f"batch with attack_batch or robust_accuracy."
        )
    if shape[0] < 2:
        raise ValueError(f"defended(rng_key, params, x) has shape {shape}: two classes or more are needed.")
    return shape[0]


@partial(
    jax.jit,
    static_argnames=(
        "defended",
        "norm",
        "num_steps",
        "num_restarts",
        "loss",
        "num_expectation_samples",
    ),
)
def _attack_chunk(
    params: Params,
    radius: float,
    step_size: float,
    state_clamp: _Clamp,
    defended: DefendedFn,
    rng_keys: Array,
    images: Array,
    labels: Array,
    **settings: Any,
) -> AttackResult:
    def one(rng_key: Array, x: Array, label: Array) -> AttackResult:
        return attack(
            rng_key,
            defended,
            params,
            x,
            label,
            radius=radius,
            step_size=step_size,
            state_clamp=state_clamp,
            **settings,
        )

    return jax.vmap(one, axis_name=BATCH_AXIS)(rng_keys, images, labels)
