"""The class of analytic targets, and what their modules share: checks, tails, the compiled sampler."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.trees import widened
from jaxebm.types import Array, EnergyFn, Params, Target

__all__ = [
    "LOG_TWO_PI",
    "AnalyticTarget",
    "array",
    "check_shape",
    "compiled_sampler",
    "infinite_energy",
    "log_sum_exp",
    "norm",
    "scalar",
]

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
    """Returns ``value`` as an array of shape (), or raises unless it is one finite real number."""
    check_shape(name, value, (), "a scalar, shape (),")
    checks.number(name, value)
    return array(value)


def log_sum_exp(terms: Array) -> Array:
    """Returns log sum_i exp(terms_i), with a gradient where every term is -infinity, too.

    There the value is -infinity, and all terms count alike in the gradient, which softmax leaves undefined.
    So a mixture is drawn back from where its components overflow.

    Args:
      terms: shape (n,).

    Returns:
      Shape ().

    Example:
      >>> distant = lambda x: log_sum_exp(-((x - jnp.array([1.0, 3.0])) ** 2))
      >>> [round(float(value), 3) for value in jax.value_and_grad(distant)(2.0)]
      [-0.307, 0.0]
      >>> float(distant(1e30))
      -inf
    """
    nowhere = jnp.isneginf(jnp.max(terms))
    return jnp.where(nowhere, jnp.mean(terms), jax.nn.logsumexp(jnp.where(nowhere, 0.0, terms)))


def norm(x: Array) -> Array:
    """Returns |x|, with the gradient x / |x| at any finite x, and 0 at 0.

    The squares of entries beyond 1e15, or below 1e-15, are not summed: they would be infinite, or vanish.

    Args:
      x: shape (d,).

    Returns:
      Shape ().

    Example:
      >>> float(norm(jnp.array([3.0, 4.0]))), jax.grad(norm)(jnp.array([0.0, -1e30])).tolist()
      (5.0, [0.0, -1.0])
    """
    x = widened(x)  # float16 has no 1e30
    squared = jnp.sum(x**2)
    usual = (squared > 1e-30) & (squared < 1e30)
    unit = x / jnp.where(jnp.any(x != 0), jnp.max(jnp.abs(x)), 1.0)
    direction = unit / jnp.sqrt(jnp.maximum(jnp.sum(unit**2), 1.0))  # 1 at least, unless x is 0
    along = jnp.sum(x * jax.lax.stop_gradient(direction))
    return jnp.where(usual, jnp.sqrt(jnp.where(usual, squared, 1.0)), along)


def infinite_energy(offset: Array) -> Array:
    """Returns the energy +infinity of a point where an energy overflows, with the gradient ``offset``.

    So a chain that is lost in the tails is drawn back, where inf - inf would have made its position NaN. NaN
    offsets give NaN.

    Args:
      offset: from the centre to the point, or another direction in which the energy rises, shape (d,).

    Returns:
      Shape ().

    Example:
      >>> energy, slope = jax.value_and_grad(infinite_energy)(jnp.array([2.0, -1.0]))
      >>> float(energy), slope.tolist()
      (inf, [2.0, -1.0])
    """
    bounds = jnp.finfo(offset.dtype)
    offset = jnp.clip(offset, bounds.min, bounds.max)
    constant = jax.lax.stop_gradient(offset)
    return jnp.inf + constant @ (offset - constant)


def compiled_sampler(draw: Callable[..., Array], static: tuple[str, ...] = ()) -> Callable[..., Array]:
    """Decorates a sampler: it is compiled once for each ``num_samples``, which is checked beforehand.

    Args:
      draw: ``draw(rng_key, params, num_samples, **static) -> (num_samples, dimension)``.
      static: names of further keyword arguments that set shapes.

    Returns:
      The sampler, with the arguments of ``draw``; it raises unless rng_key is one typed key and num_samples
      an integer of at least 1.
    """
    compiled = jax.jit(draw, static_argnames=("num_samples", *static))

    @functools.wraps(draw)
    def sample(rng_key: Array, params: Params, num_samples: int, **dimension: int) -> Array:
        checks.rng_key("rng_key", rng_key)
        checks.positive_integer("num_samples", num_samples)
        return compiled(rng_key, params, num_samples=num_samples, **dimension)

    return sample
