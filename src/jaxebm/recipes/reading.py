"""Reads a trained model back from the folder of its run, in any process, without the data set."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.data import ImageSpace
from jaxebm.recipes.build import make_network
from jaxebm.recipes.config import Config
from jaxebm.recipes.judge import open_finished, selected_step
from jaxebm.recipes.model import DESCRIPTION, Model
from jaxebm.recipes.observe import BEST_METRIC
from jaxebm.recipes.sampler import noise_of
from jaxebm.samplers import ClassGaussianInitial, GaussianInitial, NormalInitial, UniformInitial
from jaxebm.training import Checkpoints, RunFolder
from jaxebm.training.parameters import AVERAGE, fill

__all__ = ["load"]

STARTS = ".sampler_state.initial"
"""The path in a checkpoint of the distribution that chains start from."""


def load(
    path: str | Path, *, select: Literal["last", "best"] | None = None, step: int | None = None
) -> Model:
    """Loads a trained model from the folder of its run; the data set is not needed, and nothing is unpickled.

    Works for every recipe, network and data set, and for a run that was stopped midway or is still training:
    its newest checkpoint is read, and nothing in the folder is changed.

    Args:
      path: the folder of a run of ``jaxebm train`` or `jaxebm.recipes.train`.
      select: ``"last"``, the newest checkpoint, or ``"best"``, that of the least validation NLL; None does as
        the run's configuration says.
      step: one checkpoint by its number of updates, instead.

    Returns:
      A `Model`.

    Raises:
      FileNotFoundError: if there is no run, or no such checkpoint.
      ValueError: if what is there cannot be read.
      CheckpointCorruptError: if the checkpoint is damaged.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from jaxebm.data import dataset_from_arrays
      >>> from jaxebm.recipes import base_config, replace_settings, train
      >>> images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
      >>> folder = tempfile.mkdtemp()
      >>> small = replace_settings(base_config(), {
      ...     "output": folder, "epochs": 1, "data.batch_size": 16, "architecture.widths": (8,),
      ...     "sampler.num_steps": 1, "run.telemetry_every": 0, "run.progress": False, "report": False})
      >>> trained = train(small, dataset_from_arrays(images, np.arange(60) % 2))
      >>> model = load(folder)
      >>> model
      Model(recipe='tuned', network='mlp', dataset='mine', step=2)
      >>> model.class_probabilities(images[:5]).shape, model.log_density(images[:5]).shape
      ((5, 2), (5,))
      >>> model.sample(jax.random.key(0), 3, label=1, num_steps=2).shape
      (3, 4, 4, 1)
    """
    checks.instance("path", path, (str, Path), "It is the folder of a run.")
    run, config = open_finished(Path(path))
    space = _read_space(run)
    choice = config.run.select if select is None else select
    checks.one_of("select", choice, ("last", "best"))
    if step is not None:
        checks.positive_integer("step", step)
    with Checkpoints(run.checkpoints, best_metric=BEST_METRIC) as checkpoints:
        step = selected_step(checkpoints, choice) if step is None else step
        step = checkpoints.latest_step() if step is None else step
        arrays = checkpoints.read(step, prefix=AVERAGE)
        starts = checkpoints.read(step, prefix=STARTS)
    params = fill(_params_template(config, space), AVERAGE, arrays)
    initial = (
        fill(_initial_template(config, space), STARTS, starts)
        if starts
        else noise_of(config, space.image_shape)
    )
    return Model(config, params, space, initial, int(step or 0), _read_log_partition(run, int(step or 0)))


def _read_space(run: RunFolder) -> ImageSpace:
    path = run.path / DESCRIPTION
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return ImageSpace.from_json(saved["space"])
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: it describes the images of the run.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None


def _read_log_partition(run: RunFolder, step: int) -> tuple[float, float] | None:
    """The interval of the run's own card, or of a later evaluation, if it is of this checkpoint."""
    for path in (run.path / "card.json", run.path / "evaluation" / "card.json"):
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            if card["evaluated_update"] == step:
                bounds = card["likelihood"]["by_temperature"]["1"]["log_partition"]
                found = float(bounds["low"]), float(bounds["high"])
                if all(map(math.isfinite, found)):
                    return found
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue  # no card, none of the likelihood, or a file that something else wrote
    return None


def _params_template(config: Config, space: ImageSpace) -> Any:
    network = make_network(config, space.num_classes)
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(space.image_shape))


def _initial_template(config: Config, space: ImageSpace) -> Any:
    size = math.prod(space.image_shape)

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    ends: tuple[Any, Any] = (array(), array())
    if config.sampler.initial == "uniform":
        return UniformInitial(*ends, shape=space.image_shape)
    if config.sampler.initial == "normal":
        return NormalInitial(array(), shape=space.image_shape)  # type: ignore[arg-type]
    if config.sampler.initial == "gaussian":
        return GaussianInitial(array(*space.image_shape), array(size, size), *ends)  # type: ignore[arg-type]
    return ClassGaussianInitial(
        array(space.num_classes, *space.image_shape),  # type: ignore[arg-type]
        array(space.num_classes, size, size),  # type: ignore[arg-type]
        *ends,
    )
