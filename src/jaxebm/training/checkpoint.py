"""Checkpoints of everything, by Orbax: written aside and renamed, so a kill leaves the last one whole."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxebm import checks
from jaxebm.training.health import check_state
from jaxebm.training.state import TrainState

__all__ = ["CheckpointMismatchError", "Checkpoints"]


class CheckpointMismatchError(ValueError):
    """Raised when a checkpoint does not fit the run that wants to resume from it."""


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Flattens a state to plain arrays by path; typed keys become their data."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for path, leaf in leaves
    }


def _from_arrays(template: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    def restore(path: Any, leaf: Any) -> jax.Array:
        array = jax.numpy.asarray(arrays[jax.tree_util.keystr(path)])
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array

    return jax.tree_util.tree_map_with_path(restore, template)


class Checkpoints:
    """The checkpoints of one run, newest last.

    Args:
      directory: where they live; made if missing.
      max_to_keep: older ones are removed, at least 1.

    Raises:
      ValueError: if ``max_to_keep`` is not an integer of at least 1.

    Example:
      >>> import tempfile
      >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
      ...     print(checkpoints.latest_step())
      None
    """

    def __init__(self, directory: str | Path, *, max_to_keep: int = 2) -> None:
        checks.positive_integer("max_to_keep", max_to_keep)
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        # Writing while training goes on would let a kill land between two files; a state here is a few
        # megabytes.
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, enable_async_checkpointing=False)
        # Named here, because a manager that has not saved yet could not read what another process saved.
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes ``state``, unless its step is already there.

        Args:
          state: the whole training state.

        Raises:
          DivergenceError: if parameters or chains are not finite; such a state would replace a good one.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        check_state(state)
        self._manager.save(step, args=ocp.args.StandardSave(_to_arrays(state)))
        self._manager.wait_until_finished()

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Reads a checkpoint into the structure of ``template``.

        Args:
          template: a state of the same configuration, for instance a new one.
          step: which checkpoint; the newest by default.

        Returns:
          The state, bit for bit as it was saved.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          CheckpointMismatchError: if it holds other arrays than ``template``.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self.directory}."
            )
        expected = _to_arrays(template)
        metadata = self._manager.item_metadata(step)
        found = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in dict(metadata).items()}
        wanted = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in expected.items()}
        differing = sorted(
            name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
        )
        if differing:
            name = differing[0]
            raise CheckpointMismatchError(
                f"the checkpoint in {self.directory} is of another configuration: {len(differing)} arrays "
                f"differ, the first is {name}: saved {found.get(name, 'nothing')}, needed "
                f"{wanted.get(name, 'nothing')}. Resume with the configuration in config.json, or start "
                "elsewhere with another --output."
            )
        arrays = self._manager.restore(step, args=ocp.args.StandardRestore(expected))
        return _from_arrays(template, arrays)
