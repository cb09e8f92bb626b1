"""The protocols of the package.

An energy-based model is a pure function ``energy(params, x)`` from one example to one scalar, low where data
live: p(x) = exp(-E(x)) / Z. Energies are unbatched; a batch is ``jax.vmap(energy, (None, 0))(params, xs)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

__all__ = [
    "BATCH_AXIS",
    "Array",
    "EnergyFn",
    "JointEnergyFn",
    "Kernel",
    "LevelEnergyFn",
    "LevelLogitsFn",
    "LogitsFn",
    "MakeKernel",
    "Metrics",
    "Params",
    "Position",
    "Target",
]

Array: TypeAlias = jax.Array
Params: TypeAlias = Any
"""Any pytree of arrays: what is learnt."""
Position: TypeAlias = Any
"""Any pytree of arrays: one state x of a chain, without a batch axis."""
Metrics: TypeAlias = dict[str, Array]
"""Scalars by name, computed with a loss."""

Target: TypeAlias = Callable[[Position], Array]
"""An energy with its parameters bound, ``functools.partial(energy, params)``: a position in, a scalar out."""

BATCH_AXIS = "batch"
"""The axis that the package's own ``vmap`` over examples names; batch normalisation averages over it."""


class EnergyFn(Protocol):
    """E(x) of one example (any pytree): a scalar, low where data live."""

    def __call__(self, params: Params, x: Position, /) -> Array:
        """Returns the energy, shape ``()``."""
        ...


class JointEnergyFn(Protocol):
    """E(x, y) of one example x and one class y: a scalar."""

    def __call__(self, params: Params, x: Position, y: Array, /) -> Array:
        """Returns the energy, shape ``()``."""
        ...


class LogitsFn(Protocol):
    """f(x), the K class logits of one example."""

    def __call__(self, params: Params, x: Position, /) -> Array:
        """Returns the logits, shape ``(K,)``."""
        ...


class LevelEnergyFn(Protocol):
    """E(x; sigma): the energy of x = data + sigma n, n ~ N(0, I), for one example and one noise level."""

    def __call__(self, params: Params, x: Position, level: Array, /) -> Array:
        """Returns the energy, shape ``()``; the level sigma has shape ``()``."""
        ...


class LevelLogitsFn(Protocol):
    """f(x; sigma), the K class logits of one example at a noise level."""

    def __call__(self, params: Params, x: Position, level: Array, /) -> Array:
        """Returns the logits, shape ``(K,)``; the level sigma has shape ``()``."""
        ...


class Kernel(NamedTuple):
    """A Markov kernel, in BlackJAX's shape, so that either package's runner runs the other's kernels.

    Attributes:
      init: ``(position, rng_key=None) -> state``; the state has a field ``position``.
      step: ``(rng_key, state) -> (state, info)``.
    """

    init: Callable[..., Any]
    step: Callable[[Array, Any], tuple[Any, Any]]


MakeKernel: TypeAlias = Callable[[Target], Kernel]
"""Binds a kernel to any target: ``functools.partial(sgld, step_size=0.1)``."""
