"""Reads parameters from the checkpoints of a run, in any process, without its data, optimiser or sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.training.checkpoint import Checkpoints
from jaxebm.training.run_folder import read_run
from jaxebm.types import Params

__all__ = ["AVERAGE", "fill", "read_params"]

AVERAGE = ".ema_params"
"""The path of the averaged parameters in a checkpoint."""


def read_params(path: str | Path, template: Params, *, step: int | None = None) -> Params:
    """Reads the averaged parameters of a run that `jaxebm.training.fit` checkpointed.

    Nothing in the folder is changed, and nothing is unpickled. Of a run of `jaxebm.recipes.train`,
    `jaxebm.load` returns the whole model.

    Args:
      path: the folder of the run, that `jaxebm.training.open_run` made.
      template: parameters of the same structure and shapes, or their shapes, such as
        ``jax.eval_shape(network.init, rng_key, example)``.
      step: the step of the checkpoint; the newest by default.

    Returns:
      The parameters, of the structure of ``template``.

    Raises:
      TypeError: if an argument has the wrong type.
      FileNotFoundError: if there is no run, or no such checkpoint.
      ValueError: if the checkpoint holds other parameters than ``template``.
      CheckpointCorruptError: if the checkpoint is damaged.

    Example:
      >>> import tempfile, optax
      >>> from jaxebm.objectives import Objective, ignore_label
      >>> from jaxebm.training import Checkpointing, fit, learner, open_run
      >>> def loss(params, rng_key, batch, negatives):
      ...     return jnp.mean((batch.x_data - params) ** 2), {}
      >>> mine = Objective(ignore_label(jnp.subtract), loss)
      >>> learn = learner(mine, optimizer=optax.sgd(0.5))
      >>> folder = open_run(tempfile.mkdtemp(), {"rate": 0.5})
      >>> result = fit(jax.random.key(0), learn, jnp.zeros(()), jnp.full(64, 3.0), num_steps=10,
      ...              checkpointing=Checkpointing(folder))
      >>> float(read_params(folder.path, jnp.zeros(()))) == float(result.params)
      True
    """
    _check_template(template)
    if step is not None:
        checks.integer("step", step, 0)
    run = read_run(path)
    with Checkpoints(run.checkpoints) as checkpoints:
        return fill(template, AVERAGE, checkpoints.read(step, prefix=AVERAGE))


def _check_template(template: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(template)
    if not leaves:
        raise TypeError(f"template={template!r} holds no arrays: parameters, or their shapes, are needed.")
    for path, leaf in leaves:
        name = f"template{jax.tree_util.keystr(path)}"
        if isinstance(leaf, jax.ShapeDtypeStruct):
            leaf = np.empty(0, leaf.dtype)
        checks.arrays(name, leaf)
        checks.array(name, leaf)


def fill(template: Any, prefix: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """Puts arrays where the leaves of a template are, by their path after a prefix.

    Args:
      template: a pytree of arrays or of their shapes.
      prefix: of every path.
      arrays: from `jaxebm.training.Checkpoints.read`.

    Returns:
      The pytree.

    Raises:
      ValueError: if an array is missing, or of another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    found = []
    for path, leaf in leaves:
        name, shape = prefix + jax.tree_util.keystr(path), jnp.shape(leaf)
        if name not in arrays or arrays[name].shape != shape:
            there = f"shape {arrays[name].shape}" if name in arrays else "nothing"
            raise ValueError(f"the checkpoint has {there} at {name}, and template has shape {shape} there.")
        found.append(jnp.asarray(arrays[name]))
    return jax.tree.unflatten(structure, found)
