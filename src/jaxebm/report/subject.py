"""Common parts of the questions: the model, its application to many images, and cached results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.data import Dataset
from jaxebm.report.settings import ReportSettings
from jaxebm.samplers import Initial, ReplayBuffer
from jaxebm.types import Array, EnergyFn, LevelLogitsFn, LogitsFn, MakeKernel, Params

__all__ = [
    "Evaluation",
    "Images",
    "LevelPath",
    "ModelUnderTest",
    "as_logits",
    "flat",
    "log_probabilities",
    "map_batches",
    "test_logits",
]

BATCH = 2048
"""Images per compiled call of the evaluation."""

Images = Mapping[str, np.ndarray]
Result = TypeVar("Result")


class LevelPath(NamedTuple):
    """How a model that is told noise levels draws: from noise of the highest level down to the lowest.

    Each step is one gradient, the last one removes the noise. With ``num_levels`` the others are those of the
    conditional chains of `jaxebm.objectives.recovery_samples` through as many geometric levels, else there is
    a level for each step.

    Attributes:
      logits_at: f(params, x, level) of one image in [-1, 1], ``(K,)``.
      lowest: The last noise level, above 0, in units of those images.
      highest: The first one, several times the spread of the images.
      guidance: Weight of log p(y | x; level) in samples of a class; 1 is p(x | y) itself.
      state_clamp: ``(low, high)`` to which the entries of the last image are clipped, or None.
      num_levels: Levels of the conditional chains, at least 2, those of training; None for no such chains.
      step_factor: Steps of these chains, over the least variance of an image given a noisier one; below 2.
      mean: Mean of the entries of the images, about which these chains start.
      normalised: Whether -E of all levels is log p but for one constant, as dual score matching learns it.
    """

    logits_at: LevelLogitsFn
    lowest: float
    highest: float
    guidance: float = 1.0
    state_clamp: tuple[float, float] | None = None
    num_levels: int | None = None
    step_factor: float = 0.2
    mean: float = 0.0
    normalised: bool = False

    @property
    def least_steps(self) -> int:
        """Steps that a path takes at least: two levels; or one at each level but the first, and the last."""
        return 2 if self.num_levels is None else self.num_levels


class ModelUnderTest(NamedTuple):
    """The model that is evaluated.

    Attributes:
      logits: f(params, x) of one image in [-1, 1], ``(K,)``; one logit where the model has no classes.
      params: Its parameters.
      kernel: The sampler, for any target.
      num_steps: Sampler steps in one update of training.
      initial: The initial distribution of fresh chains.
      twin_params: Parameters of the same network trained by cross-entropy alone, or None.
      buffer: The replay buffer at the end of training, or None.
      conditional: Whether the buffer's chains belong to classes.
      path: How fresh chains go through noise levels; None where the model knows one level alone.
    """

    logits: LogitsFn
    params: Params
    kernel: MakeKernel
    num_steps: int
    initial: Initial
    twin_params: Params | None = None
    buffer: ReplayBuffer | None = None
    conditional: bool = False
    path: LevelPath | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """One evaluation in progress, the argument of every judge.

    Attributes:
      model: The model that is evaluated.
      dataset: The data set, whose test split is used.
      settings: Settings of the evaluation.
      seed: Seed of all random numbers.
      folder: Where pictures and arrays are written; None writes nothing.
      records: The metrics that training logged, in order, each with its ``step``.
      recoveries: The recoveries that training logged.
    """

    model: ModelUnderTest
    dataset: Dataset
    settings: ReportSettings
    seed: int = 0
    folder: Path | None = None
    records: Sequence[Mapping[str, Any]] = ()
    recoveries: Sequence[Mapping[str, Any]] = ()
    _computed: dict[Callable[..., Any], Any] = field(default_factory=dict, init=False)

    @cached_property
    def images(self) -> Images:
        """``train``, ``validation`` and ``test``, each ``(n, H, W, C)``, rescaled to [-1, 1]."""
        dataset = self.dataset
        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        return {name: np.asarray(dataset.rescale(split.image)) for name, split in splits.items()}

    @cached_property
    def classes(self) -> bool:
        """Whether the model has more than one class."""
        example = jax.ShapeDtypeStruct(self.dataset.image_shape, np.float32)
        return jax.eval_shape(self.model.logits, self.model.params, example).shape[0] > 1

    def key(self, part: int) -> Array:
        """Returns the key of one part of the evaluation, which does not depend on the other parts."""
        return jax.random.fold_in(jax.random.key(self.seed), part)

    def once(self, compute: Callable[["Evaluation"], Result]) -> Result:
        """Returns ``compute(self)``, computed only once, for results that several questions need."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]

    def draw(self, function: Callable[..., None], name: str, *arguments: Any, **options: Any) -> None:
        """Calls ``function(folder / name, *arguments, **options)``, or nothing where there is no folder."""
        if self.folder is not None:
            function(self.folder / name, *arguments, **options)


@dataclass(frozen=True)
class _MinusEnergy:
    """An energy as one logit, -E(x). Instances of equal energies are equal, as the cache of jit requires."""

    energy: EnergyFn

    def __call__(self, params: Params, x: Array, /) -> Array:
        return -jnp.reshape(self.energy(params, x), (1,))


def as_logits(
    model: LogitsFn | EnergyFn, params: Params, dataset: Dataset, *, name: str = "params"
) -> LogitsFn:
    """Returns a model of one image as a function that returns logits; nothing is computed.

    Args:
      model: ``logits(params, x) -> (K,)``, or ``energy(params, x) -> ()``, which becomes the one logit -E.
      params: Its parameters.
      dataset: The data set to whose images it will be applied.
      name: The name of the parameters in messages.

    Returns:
      ``logits(params, x) -> (K,)``.

    Raises:
      TypeError: If ``model`` cannot be called, or returns no floating-point array.
      ValueError: If it fails on one image, or has neither one logit nor one per class.
    """
    if not callable(model):
        raise TypeError(f"model={model!r} is not a function: logits(params, x) or energy(params, x) needed.")
    shape = dataset.image_shape
    try:
        found = jax.eval_shape(model, params, jax.ShapeDtypeStruct(shape, np.float32))
    except Exception as error:  # any error of the user's function
        raise ValueError(f"model({name}, x) fails on one image x of shape {shape}: {error}") from error
    if not isinstance(found, jax.ShapeDtypeStruct) or not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(
            f"model({name}, x) returns {found}: logits (K,) or an energy () is needed, floating-point."
        )
    if found.shape == ():
        return _MinusEnergy(model)
    if len(found.shape) != 1 or found.shape[0] not in (1, dataset.num_classes):
        raise ValueError(
            f"model({name}, x) returns shape {found.shape} for one image of shape {shape}: an energy (), one "
            f"logit (1,), or as many as '{dataset.name}' has classes, ({dataset.num_classes},), are needed."
        )
    return model


def map_batches(function: Callable[[Any], Array], images: np.ndarray, size: int = BATCH) -> np.ndarray:
    """Applies a compiled batched function in blocks, so that memory does not grow with the data set."""
    return np.concatenate([np.asarray(function(images[i : i + size])) for i in range(0, len(images), size)])


def log_probabilities(logits: LogitsFn, params: Params, images: np.ndarray) -> np.ndarray:
    """Returns log p(y|x) of images (n, H, W, C), ``(n, K)``."""

    @jax.jit
    def batch(xs: Array) -> Array:
        return jax.nn.log_softmax(jax.vmap(logits, (None, 0))(params, xs))

    return map_batches(batch, images)


def test_logits(evaluation: Evaluation) -> np.ndarray:
    """Returns f(x) of the test images, ``(n, K)``; call it through `Evaluation.once`."""
    model = evaluation.model
    batch = jax.jit(jax.vmap(partial(model.logits, model.params)))
    return map_batches(batch, evaluation.images["test"])


def flat(images: np.ndarray) -> np.ndarray:
    """Returns images as rows of pixels."""
    return images.reshape(len(images), -1)
