"""Statistics of batch and spectral normalisation, while a network is trained and after.

They are kept in the collection ``"batch_stats"``, beside ``"params"``; `jaxebm.energies.networks` tells how
trainers and samplers share them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax
from flax import linen as nn

from jaxebm import checks
from jaxebm.types import BATCH_AXIS, Array, LogitsFn, Params

__all__ = ["refresh_statistics", "trainable", "training_apply"]

_STATISTICS = "batch_stats"


@dataclasses.dataclass(frozen=True)
class _TrainingApply:
    """A frozen class and not a closure: two for equal modules are equal, so ``jit`` does not trace again."""

    module: nn.Module

    def __call__(self, params: Params, x: Array, /) -> Array:
        return self.module.apply(params, x, train=True, mutable=[_STATISTICS])[0]


def training_apply(module: nn.Module) -> LogitsFn:
    """Returns f(variables, x) that normalises with the statistics of the current batch, and stores nothing.

    Objectives differentiate this one while training with ``norm="batch"``; ``refresh_statistics`` then moves
    the running averages that the plain ``module.apply`` reads. Equal modules give equal functions, fit to be
    static.

    Args:
      module: A module of `jaxebm.energies.networks`.

    Returns:
      A ``LogitsFn`` (or ``EnergyFn``, by the module's ``num_outputs``); with batch normalisation it must run
      inside ``jax.vmap(..., axis_name=BATCH_AXIS)``, and raises ``ValueError`` elsewhere.

    Raises:
      TypeError: If ``module`` is no Flax module.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxebm.energies.networks import ConvNet
      >>> module = ConvNet(num_outputs=10, channels=(8,), norm="batch")
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))
      >>> xs = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
      >>> jax.vmap(training_apply(module), (None, 0), axis_name=BATCH_AXIS)(variables, xs).shape
      (16, 10)
    """
    checks.instance("module", module, nn.Module)
    return _TrainingApply(module)


def refresh_statistics(module: nn.Module, variables: Params, xs: Array) -> Params:
    """Moves the running statistics by one pass over a batch.

    s <- m s + (1 - m) s(xs), with Flax's momentum m = 0.99.

    For spectral normalisation the pass is one power iteration per kernel. Pure: run it inside the compiled
    step, after the update.

    Args:
      module: A module of `jaxebm.energies.networks`.
      variables: ``{"params": ..., "batch_stats": ...}``.
      xs: A batch of examples, shape (B, ...).

    Returns:
      The variables with new ``"batch_stats"``; ``variables`` itself where the module keeps none.

    Raises:
      TypeError: If ``module`` is no Flax module, ``variables`` no mapping, or an array not of real numbers.
      ValueError: If ``variables`` have no collection "params", or ``xs`` no leading axis of at least 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxebm.energies.networks import ConvNet
      >>> module = ConvNet(num_outputs=10, channels=(8,), norm="batch")
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))
      >>> sorted(refresh_statistics(module, variables, jnp.ones((16, 8, 8, 1))))
      ['batch_stats', 'params']
    """
    checks.instance("module", module, nn.Module)
    checks.instance("variables", variables, Mapping, "module.init returns such.")
    if "params" not in variables:
        raise ValueError(
            f"variables has the collections {list(variables)}: 'params' is needed, as module.init returns it."
        )
    checks.real_arrays("variables", variables)
    checks.real_arrays("xs", xs)
    checks.batch_length("xs", xs, "a batch of examples")
    if _STATISTICS not in variables:
        return variables

    def pass_over(x: Array) -> Params:
        return module.apply(variables, x, train=True, mutable=[_STATISTICS])[1]

    # Averages over the axis are the same for every example: out_axes=None takes them once.
    with checks.shapes_noted(variables=variables, xs=xs):
        updated = jax.vmap(pass_over, out_axes=None, axis_name=BATCH_AXIS)(xs)
    return {**variables, **updated}


def trainable(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Restricts an optimiser to the collection ``"params"``: the other collections do not change.

    So the whole variables of a module can be what a trainer learns. Norms, decays and moments see
    ``"params"`` only.

    Args:
      optimizer: Any Optax transformation.

    Returns:
      A transformation of ``{"params": ..., ...}``, with zero updates outside ``"params"``.

    Raises:
      TypeError: If ``optimizer`` is no Optax transformation.
      ValueError: On ``init``, if the tree has no collection ``"params"``.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = trainable(optax.sgd(1.0))
      >>> variables = {"params": jnp.ones(2), "batch_stats": jnp.ones(2)}
      >>> updates, _ = optimizer.update(variables, optimizer.init(variables), variables)
      >>> float(updates["params"][0]), float(updates["batch_stats"][0])
      (-1.0, 0.0)
    """

    checks.instance("optimizer", optimizer, optax.GradientTransformation)

    def labels(variables: Mapping[str, Any]) -> dict[str, str]:
        if not isinstance(variables, Mapping) or "params" not in variables:
            raise ValueError(
                f"variables is {type(variables).__name__} without the collection 'params': trainable works "
                f"on what module.init returns; for bare parameters use the optimizer itself."
            )
        return {collection: "learnt" if collection == "params" else "fixed" for collection in variables}

    return optax.partition({"learnt": optimizer, "fixed": optax.set_to_zero()}, labels)
