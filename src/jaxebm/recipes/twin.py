"""The same network as a plain classifier: the twin, with which a run is compared, and its pretraining."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxebm.recipes.config import UNCOMPARED, Config
from jaxebm.training import RunFolder
from jaxebm.types import Params

__all__ = ["classifier_config", "load_twin", "pretraining_config", "save_twin", "twin_config"]

TWIN = "twin.npz"
"""The file of the parameters of the run's twin."""


def classifier_config(config: Config) -> Config:
    """Returns the configuration of the same network trained by cross-entropy alone."""
    return replace(
        config,
        objective=replace(
            config.objective, p_x_weight=0.0, p_xy_weight=0.0, p_y_given_x_weight=1.0, last_step_weight=0.0
        ),
        architecture=replace(config.architecture, freeze_statistics=False),
        run=replace(config.run, pretrain_epochs=0, select="last"),
    )


def twin_config(config: Config) -> Config:
    """Returns the configuration of a run's twin: a classifier, trained without adversarial examples."""
    plain = classifier_config(config)
    return replace(
        plain,
        resume=False,
        objective=replace(plain.objective, adversarial_radius=0.0),
        run=replace(plain.run, resume_step=None),
    )


def pretraining_config(config: Config) -> Config:
    """Returns the configuration of a run's pretraining, in the folder ``pretraining`` of the run."""
    plain, epochs = classifier_config(config), config.run.pretrain_epochs
    decay_epochs = tuple(epoch for epoch in config.optimizer.decay_epochs if epoch < epochs)
    in_steps = config.optimizer.schedule == "steps" and decay_epochs
    optimizer = replace(
        plain.optimizer, decay_epochs=decay_epochs, schedule="steps" if in_steps else "cosine"
    )
    return replace(
        plain,
        epochs=epochs,
        output=config.output / "pretraining",
        optimizer=optimizer,
        run=replace(plain.run, resume_step=None),
    )


def save_twin(run: RunFolder, params: Params) -> None:
    """Saves the parameters of the twin in the folder of the run, for later evaluations."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"config": json.dumps(_comparable(run.config)), **_by_path(params)}
    np.savez(stream, **arrays)
    run.write(TWIN, stream.getvalue())


def load_twin(run: RunFolder, template: Params) -> Params | None:
    """Returns the parameters of the run's twin, or None where the run has none.

    Args:
      run: the folder of the run.
      template: parameters of the same network.

    Raises:
      ValueError: if its file is damaged.
    """
    if not (run.path / TWIN).is_file():
        return None
    try:
        with np.load(run.path / TWIN, allow_pickle=False) as saved:
            arrays = dict(saved)
        of_another_run = str(arrays.pop("config")) != json.dumps(_comparable(run.config))
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{run.path / TWIN}, the same network trained by cross-entropy alone, is damaged ({error}): "
            "remove it; resume=True trains it again."
        ) from None
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _by_path(template).items()}
    if of_another_run or {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()} != expected:
        return None  # from an earlier run in this folder
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in expected])


def _by_path(params: Params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a twin: without paths and the settings of the evaluation."""
    ignored = {name for name in UNCOMPARED if "." not in name} | {"evaluation"}
    groups = {name.partition(".")[::2] for name in UNCOMPARED if "." in name}
    kept: dict[str, Any] = {}
    for name, value in sorted(config.items()):
        if name in ignored:
            continue
        if isinstance(value, Mapping):
            value = {inner: entry for inner, entry in value.items() if (name, inner) not in groups}
        kept[name] = value
    return json.loads(json.dumps(kept))
