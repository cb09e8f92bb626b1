"""The class of analytic targets, and the checks and the compiled sampler that their modules share."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array, EnergyFn, Params, Target

__all__ = ["LOG_TWO_PI", "AnalyticTarget", "array", "check_shape", "compiled_sampler", "scalar"]

LOG_TWO_PI = math.log(2 * math.pi)


class AnalyticTarget(NamedTuple):
    """An energy with its exact log Z, score, moments and sampler.

    Attributes:
      energy: ``energy(params, x) -> ()``, x of shape (dimension,).
      params: NamedTuple of arrays; everything below is a differentiable function of it (samples excepted).
      log_partition: ``log_partition(params) -> ()``, log Z = log integral exp(-E(x)) dx.
      sample: ``sample(rng_key, params, num_samples) -> (num_samples, dimension)``, independent exact draws.
      moments: ``moments(params) -> (mean (dimension,), covariance (dimension, dimension))``.
      dimension: the number of coordinates of x.
    """

    energy: EnergyFn
    params: Params
    log_partition: Callable[[Params], Array]
    sample: Callable[[Array, Params, int], Array]
    moments: Callable[[Params], tuple[Array, Array]]
    dimension: int

    @property
    def target(self) -> Target:
        """The energy with its parameters bound: x -> E(x), as a sampler takes it."""
        return functools.partial(self.energy, self.params)

    def score(self, x: Array) -> Array:
        """Returns the score d log p(x) / dx = -dE(x)/dx of one x, both of shape (dimension,)."""
        return -jax.grad(self.energy, argnums=1)(self.params, x)

    def log_density(self, x: Array) -> Array:
        """Returns the normalised log p(x) = -E(x) - log Z, shape (), of one x of shape (dimension,)."""
        return -self.energy(self.params, x) - self.log_partition(self.params)


def array(value: Any) -> Array:
    """Returns ``value`` as an array of the default width: float32, or float64 where x64 is enabled."""
    return jnp.asarray(value, dtype=float)


def check_shape(name: str, value: Any, shape: tuple[int | None, ...], accepted: str) -> None:
    """Raises ``ValueError`` unless ``value`` has this shape, in which None stands for any length.

    Args:
      name: the argument's name, for the message.
      value: an array, traced or not, or a number.
      shape: the required shape.
      accepted: its description in the message: "{accepted} is needed."

    Raises:
      ValueError: if the number of axes, or the length of one, is another.

    Example:
      >>> check_shape("mean", jnp.zeros(3), (None,), "(d,)")
    """
    found = np.shape(value)
    if len(found) != len(shape) or any(s is not None and s != f for s, f in zip(shape, found, strict=True)):
        raise ValueError(f"{name} has shape {found}: {accepted} is needed.")


def scalar(name: str, value: Any) -> Array:
    """Returns ``value`` as an array of shape (), or raises ``ValueError`` by ``name`` if it has another."""
    check_shape(name, value, (), "a scalar, shape (),")
    return array(value)


def compiled_sampler(draw: Callable[..., Array], static: tuple[str, ...] = ()) -> Callable[..., Array]:
    """Decorates a sampler: it is compiled once for each ``num_samples``, which is checked beforehand.

    Args:
      draw: ``draw(rng_key, params, num_samples, **static) -> (num_samples, dimension)``.
      static: names of further keyword arguments that set shapes.

    Returns:
      The sampler, with the arguments of ``draw``; it raises ValueError unless num_samples is an integer of at
      least 1.
    """
    compiled = jax.jit(draw, static_argnames=("num_samples", *static))

    @functools.wraps(draw)
    def sample(rng_key: Array, params: Params, num_samples: int, **dimension: int) -> Array:
        checks.positive_integer("num_samples", num_samples)
        return compiled(rng_key, params, num_samples=num_samples, **dimension)

    return sample
