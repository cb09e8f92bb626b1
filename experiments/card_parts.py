"""What the parts of the evaluation share: the model that is judged, and how it is applied to many images."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluation_config import EvaluationFlags
from jaxebm.data import Dataset
from jaxebm.objectives import run_labelled_chains
from jaxebm.samplers import Initial, ReplayBuffer
from jaxebm.types import Array, EnergyFn, JointEnergyFn, LogitsFn, MakeKernel, Params

__all__ = [
    "Evaluation",
    "ModelUnderTest",
    "advance",
    "flat",
    "log_probabilities",
    "map_batches",
    "start_chains",
    "without_label",
]

BATCH = 2048
"""Images a compiled call of the evaluation."""

Images = Mapping[str, np.ndarray]


class ModelUnderTest(NamedTuple):
    """What is evaluated.

    Attributes:
      logits: f(params, x) of one image; of one logit where the model knows no classes.
      params: the averaged weights.
      twin_params: of the same network trained by cross-entropy alone, or None.
      kernel: the sampler that trained it, for any target.
      num_steps: of the sampler in training, an update.
      initial: where fresh chains start.
      buffer: the replay buffer at the end of training, or None.
      conditional: whether its chains belong to classes.
    """

    logits: LogitsFn
    params: Params
    twin_params: Params | None
    kernel: MakeKernel
    num_steps: int
    initial: Initial
    buffer: ReplayBuffer | None
    conditional: bool


class Evaluation(NamedTuple):
    """One evaluation under way.

    Attributes:
      folder: where pictures and arrays go.
      model: what is judged.
      dataset: by its test split.
      images: ``train``, ``validation`` and ``test``, rescaled to [-1, 1].
      flags: what to look at.
      seed: of everything that is drawn.
      classes: whether the model tells classes apart.
    """

    folder: Path
    model: ModelUnderTest
    dataset: Dataset
    images: Images
    flags: EvaluationFlags
    seed: int
    classes: bool

    def key(self, part: int) -> Array:
        """Returns the key of one part of the evaluation, the same whatever the other parts are."""
        return jax.random.fold_in(jax.random.key(self.seed), part)


def map_batches(function: Callable[[Any], Array], images: np.ndarray, size: int = BATCH) -> np.ndarray:
    """Applies a compiled batched function block by block, so that memory does not grow with the data set."""
    return np.concatenate([np.asarray(function(images[i : i + size])) for i in range(0, len(images), size)])


def log_probabilities(logits: LogitsFn, params: Params, images: np.ndarray) -> np.ndarray:
    """Returns log p(y|x) of images (n, H, W, C), ``(n, K)``."""

    @jax.jit
    def batch(xs: Array) -> Array:
        return jax.nn.log_softmax(jax.vmap(logits, (None, 0))(params, xs))

    return map_batches(batch, images)


def flat(images: np.ndarray) -> np.ndarray:
    """Returns images as rows of pixels."""
    return images.reshape(len(images), -1)


def without_label(energy: EnergyFn) -> JointEnergyFn:
    """Returns E(x) as an energy of an image and a label that it does not look at."""

    def labelled(params: Params, x: Array, label: Array) -> Array:
        del label
        return energy(params, x)

    return labelled


def start_chains(rng_key: Array, initial: Initial, labels: Array) -> Array:
    """Returns where new chains start, one for each label."""
    return jax.vmap(initial)(jax.random.split(rng_key, len(labels)), labels)


def advance(model: ModelUnderTest, energy: JointEnergyFn) -> Callable[..., Array]:
    """Returns compiled chains on E(x, y).

    They are called with a key and, by name, params, positions, labels and num_steps.
    """
    chains = partial(run_labelled_chains, make_kernel=model.kernel, energy=energy)
    return jax.jit(chains, static_argnames="num_steps")


def num_outputs(logits: LogitsFn, params: Params, image_shape: tuple[int, ...]) -> int:
    """Returns how many logits the model has, without computing any."""
    return int(jax.eval_shape(logits, params, jnp.zeros(image_shape)).shape[0])
