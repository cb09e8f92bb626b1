"""What objectives without chains share: which examples they learn from, and a mean over them.

Such an objective takes an energy E(params, x), which learns from ``batch.x_data``, or an energy of
`jaxebm.energies.joint_energy`, E(params, x, y), which learns from the labelled examples and their classes.
The same holds of energies that are told a level. Within an objective both are functions of x and a label.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.levels import JointLevelEnergy, at_level
from jaxebm.objectives.contrastive import noted
from jaxebm.objectives.objective import Batch, Loss, Objective, ignore_label, is_conditional, labelled
from jaxebm.trees import dimension
from jaxebm.types import BATCH_AXIS, Array, JointEnergyFn, Params, Position

__all__ = [
    "LearntEnergy",
    "LearntLevelEnergy",
    "example_size",
    "examples_of",
    "learnt_energy",
    "learnt_level_energy",
    "objective_at",
    "over_examples",
    "unchecked_examples",
]


class LearntEnergy(NamedTuple):
    """An energy as objectives without chains use it.

    Attributes:
      energy: E(params, x, label) of one example.
      conditional: whether it depends on the label.
    """

    energy: JointEnergyFn
    conditional: bool


class LearntLevelEnergy(NamedTuple):
    """An energy that is told a level, as objectives without chains use it.

    Attributes:
      energy_at: E(params, x, label, level) of one example.
      conditional: whether it depends on the label.
    """

    energy_at: Callable[[Params, Position, Array, Array], Array]
    conditional: bool


def learnt_energy(energy: Any, name: str = "energy") -> LearntEnergy:
    """Returns E(x, label) of an energy of x, or of x and a class; raises ``TypeError`` if it is neither."""
    if is_conditional(energy):
        return LearntEnergy(energy, True)
    checks.function_of_example(name, energy, "params", "x")
    return LearntEnergy(ignore_label(energy), False)


def learnt_level_energy(energy_at: Any, name: str = "energy_at") -> LearntLevelEnergy:
    """The same of an energy that is told a level."""
    if isinstance(energy_at, JointLevelEnergy):
        return LearntLevelEnergy(energy_at, True)
    checks.function_of_example(name, energy_at, "params", "x", "level")

    def of_label(params: Params, x: Position, label: Array, level: Array) -> Array:
        del label
        value = energy_at(params, x, level)
        checks.scalar_energy(name, value)
        return value

    return LearntLevelEnergy(of_label, False)


def objective_at(energy_at: Any, level: float | Array, loss: Loss) -> Objective:
    """Returns the objective of an energy that is told a level, whose energy is that at ``level``."""
    energy = at_level(energy_at, level)
    return Objective(energy if is_conditional(energy) else ignore_label(energy), loss)


def examples_of(batch: Batch, objective: str, *, conditional: bool) -> tuple[Position, Array]:
    """Returns the examples that are learnt from, and their labels: zeros where the energy ignores them.

    Args:
      batch: the batch of an update.
      objective: name of the objective, for messages.
      conditional: whether the labelled examples are learnt from, with their labels.

    Raises:
      TypeError: if the examples are not floating-point.
      ValueError: if the batch is ragged, or has no labels and ``conditional`` is set.
    """
    name = "batch.x_labelled" if conditional else "batch.x_data"
    if conditional:
        x, labels = labelled(batch, objective)
    else:
        x = batch.x_data
        labels = jnp.zeros(checks.batch_length(name, x), jnp.int32)
    checks.real_arrays(name, x)
    checks.floating(name, x)
    checks.batch_length(name, x)
    return jax.tree.map(jnp.asarray, x), labels


def unchecked_examples(batch: Batch, *, conditional: bool) -> Position:
    """The examples of `examples_of`, None where the batch has none."""
    return batch.x_labelled if conditional else batch.x_data


def example_size(batch: Batch, *, conditional: bool) -> int:
    """Returns the number of entries of one of these examples."""
    xs = unchecked_examples(batch, conditional=conditional)
    return dimension(xs) // checks.batch_length("batch", xs)


def over_examples(
    function: Callable[[Params, Array, Position, Array], Any],
    params: Params,
    rng_key: Array,
    batch: Batch,
    *,
    conditional: bool,
    objective: str,
) -> Any:
    """Maps ``function(params, rng_key, x, label)`` of one example over the examples that are learnt from.

    Args:
      function: of one example; its energies are differentiated inside.
      params: parameters.
      rng_key: one key, split into one for each example.
      batch: the batch of an update.
      conditional: whether the labelled examples are learnt from, with their labels.
      objective: name of the objective, for messages.

    Returns:
      What ``function`` returns, with a leading axis of n.

    Raises:
      TypeError: if the examples are not floating-point.
      ValueError: if the batch has no labels and ``conditional`` is set.
    """
    x, labels = examples_of(batch, objective, conditional=conditional)
    rng_keys = jax.random.split(rng_key, checks.batch_length("x", x))
    with noted("energy", params=params, x=x):
        return jax.vmap(function, (None, 0, 0, 0), axis_name=BATCH_AXIS)(params, rng_keys, x, labels)
