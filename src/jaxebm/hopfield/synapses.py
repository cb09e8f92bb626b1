"""Synapses: the connections between the layers of a hierarchical associative memory.

A synapse is an energy of the activations of some layers, as a Lagrangian is a function of the states of one.
Each here is a frozen dataclass without numbers of its own: its parameters are arguments, and can be learnt.

Reference:
  Hoover et al. 2022, "A universal abstraction for hierarchical Hopfield networks" (HAMUX).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array, Params

__all__ = ["BiasSynapse", "DenseSynapse", "FunctionSynapse", "RecurrentSynapse", "Synapse"]


class Synapse(Protocol):
    """An energy of the activations of some layers; hashable, because it is a static part of a program."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that it joins."""
        ...

    def energy(self, params: Params, /, *activations: Array) -> Array:
        """Returns E_s, shape (), of its parameters and the activations of its layers in their order."""
        ...

    def init(self, rng_key: Array, /, *shapes: tuple[int, ...]) -> Params:
        """Returns initial parameters, for layers of these shapes."""
        ...


def _weights(synapse: Synapse, params: Any, needed: tuple[int, ...], meaning: str) -> Array:
    checks.array("params", params)
    if np.shape(params) != needed:
        raise ValueError(
            f"params of {synapse} has shape {np.shape(params)}: {needed} is needed, {meaning}. (States are "
            f"those of one example; leave a batch to jax.vmap.)"
        )
    return jnp.asarray(params)


@dataclass(frozen=True)
class DenseSynapse:
    """E = -g_first . W g_second, both flattened; params: W, one row for each neuron of the first layer.

    Attributes:
      first: a layer, for example the hidden one: then the rows of W are the memories.
      second: another layer.

    Raises:
      TypeError: if a name is no string.
      ValueError: if the two are one, which is a `RecurrentSynapse`.

    Example:
      >>> patterns = jnp.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])
      >>> hidden, visible = jnp.array([0.0, 1.0]), jnp.array([1.0, -1.0, 0.0])
      >>> float(DenseSynapse("hidden", "visible").energy(patterns, hidden, visible))
      -2.0
    """

    first: str
    second: str

    def __post_init__(self) -> None:
        checks.text("first", self.first)
        checks.text("second", self.second)
        if self.first == self.second:
            raise ValueError(
                f"first and second are both {self.first!r}: use RecurrentSynapse({self.first!r})."
            )

    @property
    def layers(self) -> tuple[str, str]:
        """The two layers."""
        return self.first, self.second

    def energy(self, params: Params, /, *activations: Array) -> Array:
        """Returns -g_first . W g_second."""
        first, second = activations
        needed = (first.size, second.size)
        weights = _weights(self, params, needed, f"neurons of {self.first!r} by neurons of {self.second!r}")
        return -jnp.vdot(first, weights @ second.reshape(-1))

    def init(self, rng_key: Array, /, *shapes: tuple[int, ...]) -> Array:
        """Returns normal weights whose greatest singular value is near 1."""
        checks.rng_key("rng_key", rng_key)
        rows, columns = (math.prod(shape) for shape in shapes)
        return jax.random.normal(rng_key, (rows, columns)) / (math.sqrt(rows) + math.sqrt(columns))


@dataclass(frozen=True)
class RecurrentSynapse:
    """E = -g . W g / 2, of a layer with itself; params: W, of which only the symmetric part matters.

    Attributes:
      layer: the layer.

    Raises:
      TypeError: if the name is no string.

    Example:
      >>> print(RecurrentSynapse("visible").energy(jnp.eye(2), jnp.array([1.0, 2.0])))
      -2.5
    """

    layer: str

    def __post_init__(self) -> None:
        checks.text("layer", self.layer)

    @property
    def layers(self) -> tuple[str]:
        """The layer."""
        return (self.layer,)

    def energy(self, params: Params, /, *activations: Array) -> Array:
        """Returns -g . W g / 2."""
        (activation,) = activations
        needed = (activation.size, activation.size)
        weights = _weights(self, params, needed, f"neurons of {self.layer!r} by the same neurons")
        return -0.5 * jnp.vdot(activation, weights @ activation.reshape(-1))

    def init(self, rng_key: Array, /, *shapes: tuple[int, ...]) -> Array:
        """Returns symmetric normal weights whose eigenvalues lie near [-1, 1]."""
        checks.rng_key("rng_key", rng_key)
        size = math.prod(shapes[0])
        weights = jax.random.normal(rng_key, (size, size))
        return (weights + weights.T) / math.sqrt(8 * size)


@dataclass(frozen=True)
class BiasSynapse:
    """E = -b . g: an input from outside; params: b, of the layer's shape.

    Attributes:
      layer: the layer.

    Raises:
      TypeError: if the name is no string.

    Example:
      >>> print(BiasSynapse("visible").energy(jnp.array([1.0, 0.5]), jnp.array([1.0, 2.0])))
      -2.0
    """

    layer: str

    def __post_init__(self) -> None:
        checks.text("layer", self.layer)

    @property
    def layers(self) -> tuple[str]:
        """The layer."""
        return (self.layer,)

    def energy(self, params: Params, /, *activations: Array) -> Array:
        """Returns -b . g."""
        (activation,) = activations
        bias = _weights(self, params, activation.shape, f"one number for each neuron of {self.layer!r}")
        return -jnp.vdot(bias, activation)

    def init(self, rng_key: Array, /, *shapes: tuple[int, ...]) -> Array:
        """Returns zeros."""
        del rng_key
        return jnp.zeros(shapes[0])


@dataclass(frozen=True)
class FunctionSynapse:
    """Any differentiable energy of the activations of any number of layers.

    Attributes:
      layers: names of the layers.
      function: ``(params, *activations) -> ()``, the activations in the shapes of their layers. It is
        compared by identity: define it once, because a new function is compiled again.
      init_function: ``(rng_key, *shapes) -> params``, for ``init``.

    Example:
      A convolution between a signal and its features, and a synapse that joins three layers:

      >>> def convolution(kernel, signal, features):
      ...     return -jnp.vdot(features, jnp.convolve(signal, kernel, mode="same"))
      >>> def gate(strength, first, second, opening):
      ...     return -strength * jnp.vdot(first, second * opening)
      >>> synapse = FunctionSynapse(("signal", "features"), convolution)
      >>> float(synapse.energy(jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 2.0, 3.0]), jnp.ones(3)))
      -9.0
      >>> FunctionSynapse(("a", "b", "c"), gate).layers
      ('a', 'b', 'c')
    """

    layers: tuple[str, ...]
    function: Callable[..., Array]
    init_function: Callable[..., Params] | None = None

    def __post_init__(self) -> None:
        # A string would be read letter by letter, a list is not hashable.
        if not isinstance(self.layers, tuple) or not all(isinstance(name, str) for name in self.layers):
            raise TypeError(f"layers={self.layers!r}: a tuple of names is needed.")
        if not callable(self.function):
            checks.function("function", self.function, "params", *self.layers)
        if self.init_function is not None:
            checks.function("init_function", self.init_function, "rng_key", *self.layers)

    def energy(self, params: Params, /, *activations: Array) -> Array:
        """Returns the function's energy."""
        checks.function("function", self.function, "params", *self.layers)
        return self.function(params, *activations)

    def init(self, rng_key: Array, /, *shapes: tuple[int, ...]) -> Params:
        """Returns what ``init_function`` returns.

        Raises:
          ValueError: if there is no ``init_function``.
        """
        if self.init_function is None:
            raise ValueError(f"{self} has no init_function: give it one, or make its parameters yourself.")
        return self.init_function(rng_key, *shapes)
