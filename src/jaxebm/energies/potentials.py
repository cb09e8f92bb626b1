"""Potential forms: a scalar energy from a network whose output has the shape of x, or beside a Gaussian.

In the signs of this package an energy is low at the data and ``x <- x - step grad E`` moves to them. Papers
that write a potential g whose gradient points to the data have E = -g.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.target import LOG_TWO_PI
from jaxebm.trees import widened
from jaxebm.types import Array, LevelEnergyFn, LevelLogitsFn, Params, Position

__all__ = ["inner_product_energy", "preconditioned_energy", "preconditioned_logits", "squared_norm_energy"]


def _check_output(output: Any, x: Position) -> None:
    checks.same_shapes("the output of field", output, "x", x)
    checks.floating("the output of field", output)


def _check_field(field: Any) -> None:
    try:
        checks.function_of_example("field", field, "params", "x")
    except TypeError as error:
        try:
            checks.function_of_example("field", field, "params", "x", "level")
        except TypeError:
            raise error from None


@dataclass(frozen=True)
class _InnerProduct:
    field: Any

    def __call__(self, params: Params, x: Position, /, *level: Array) -> Array:
        output = self.field(params, x, *level)
        _check_output(output, x)
        products = jax.tree.map(lambda x, f: jnp.sum(widened(x) * widened(f)), x, output)
        return -jax.tree.reduce(jnp.add, products)


@dataclass(frozen=True)
class _SquaredNorm:
    field: Any

    def __call__(self, params: Params, x: Position, /, *level: Array) -> Array:
        output = self.field(params, x, *level)
        _check_output(output, x)
        return 0.5 * jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(widened(leaf) ** 2), output))


def inner_product_energy(field: Callable[..., Any]) -> Any:
    """Returns the energy of the inner product of x and a network's output.

    E(x) = -x . f(x), or E(x; sigma) = -x . f(x; sigma).

    Equilibrium matching fits the gradient of g(x) = x . f(x) to directions from noise to data, and ascends g:
    E = -g. Where f is itself near a gradient field, E has its inductive bias: grad E = -f - (df/dx)^T x.

    Args:
      field: f, ``field(params, x)`` or ``field(params, x, level)`` of one example, in the shape of x, such as
        the ``apply`` of `jaxebm.energies.EnergyUNet`.

    Returns:
      ``energy(params, x) -> ()``, which takes the level too if the field does.

    Raises:
      TypeError: if ``field`` is no function of two arguments; from the energy, if its output is not of a
        floating-point dtype.
      ValueError: from the energy, if the output has another shape than x.

    Example:
      >>> energy = inner_product_energy(lambda matrix, x: matrix @ x)
      >>> float(energy(2 * jnp.eye(2), jnp.array([1.0, 3.0])))
      -20.0

    Reference:
      Wang & Du 2025 (arXiv 2510.02300), explicit energies; Guth et al. 2025 (arXiv 2506.05310), section 3.
    """
    _check_field(field)
    return _InnerProduct(field)


def squared_norm_energy(field: Callable[..., Any]) -> Any:
    """Returns the energy of the squared norm of a network's output.

    E(x) = |f(x)|^2 / 2, or E(x; sigma) = |f(x; sigma)|^2 / 2; at least 0.

    Equilibrium matching fits the gradient of g(x) = -|f(x)|^2 / 2 to directions from noise to data, and
    ascends g: E = -g, bounded below, and 0 where the field vanishes.

    Args:
      field: f, ``field(params, x)`` or ``field(params, x, level)`` of one example, in the shape of x, such as
        the ``apply`` of `jaxebm.energies.EnergyUNet`.

    Returns:
      ``energy(params, x) -> ()``, which takes the level too if the field does.

    Raises:
      TypeError: if ``field`` is no function of two arguments; from the energy, if its output is not of a
        floating-point dtype.
      ValueError: from the energy, if the output has another shape than x.

    Example:
      >>> energy = squared_norm_energy(lambda centre, x: x - centre)
      >>> float(energy(jnp.ones(2), jnp.array([1.0, 3.0])))
      2.0

    Reference:
      Wang & Du 2025 (arXiv 2510.02300), explicit energies; Salimans & Ho 2021, "Should EBMs model the
      energy or the score?".
    """
    _check_field(field)
    return _SquaredNorm(field)


def _gain(level: Array, scale: float) -> Array:
    """sqrt(level^2 + scale^2) / level: with it, slopes of the network are of order one at every level."""
    return jnp.sqrt(1 + (scale / widened(level)) ** 2)


def _gaussian(x: Array, level: Array, mean: float, scale: float) -> tuple[Array, Array]:
    """Returns x in units of the spread at this level, and -log N(x; mean, scale^2 + level^2)."""
    variance = widened(level) ** 2 + scale**2
    inputs = (widened(x) - mean) / jnp.sqrt(variance)
    energy = 0.5 * jnp.sum(inputs**2) + 0.5 * jnp.size(x) * (jnp.log(variance) + LOG_TWO_PI)
    return inputs.astype(jnp.result_type(x)), energy


@dataclass(frozen=True)
class _Preconditioned:
    network: Any
    mean: float
    scale: float
    unit_slope: bool

    def __call__(self, params: Params, x: Array, level: Array, /) -> Array:
        inputs, gaussian = _gaussian(x, level, self.mean, self.scale)
        rest = self.network(params, inputs, level / self.scale)
        checks.scalar_energy("network", rest)
        gain = _gain(level, self.scale) if self.unit_slope else 1.0
        return gaussian + gain * widened(rest)


@dataclass(frozen=True)
class _PreconditionedLogits:
    network: Any
    mean: float
    scale: float
    unit_slope: bool

    def __call__(self, params: Params, x: Array, level: Array, /) -> Array:
        inputs, gaussian = _gaussian(x, level, self.mean, self.scale)
        logits = self.network(params, inputs, level / self.scale)
        checks.array("the output of network", logits, (None,), "(K,), logits of one example,")
        gain = _gain(level, self.scale) if self.unit_slope else 1.0
        return gain * widened(logits) - gaussian


def preconditioned_energy(
    network: LevelEnergyFn, *, mean: float = 0.0, scale: float = 1.0, unit_slope: bool = False
) -> LevelEnergyFn:
    r"""Returns -log p_sigma of a Gaussian plus a network: a normalised energy begins near its magnitude.

    .. math::

      U(y; \sigma) = \tfrac{1}{2} |u|^2 + \tfrac{d}{2} \log (2 \pi v) + F(u; \sigma / s), \quad
      v = \sigma^2 + s^2, \quad u = (y - m) / \sqrt{v}

    The Gaussian is that of data of mean m and standard deviation s with noise sigma, so F tends to 0 at
    levels above s, and sees inputs and levels of order one. Without it a network would have to learn
    d log(highest / lowest) nats.

    With ``unit_slope`` F is multiplied by sqrt(v) / sigma. Then sigma dU/dy = (sigma / sqrt(v)) u + dF/du,
    which finds the noise z: dF/du is of order one at every level, also where sigma is far below s.

    Args:
      network: F, ``network(params, u, relative_level) -> ()`` of one example, such as the ``apply`` of
        `jaxebm.energies.LevelMLP`.
      mean: m, the mean over all entries of the data.
      scale: s > 0, the standard deviation over all entries of the data.
      unit_slope: whether F is multiplied by sqrt(v) / sigma; then levels must be above 0.

    Returns:
      ``energy_at(params, y, level) -> ()`` of arrays y.

    Raises:
      TypeError: if ``network`` is no function of three arguments; from the energy, if it gives no
        real number.
      ValueError: if ``mean`` is not one finite number, or ``scale`` not a positive one; from the energy, if
        the network's output is no scalar.

    Example:
      >>> energy_at = preconditioned_energy(lambda params, u, level: params * level, scale=2.0)
      >>> round(float(energy_at(0.0, jnp.zeros(2), 0.0)), 4)  # log(2 pi 2^2)
      3.2242

    Reference:
      Karras et al. 2022 (arXiv 2206.00364), section 5, of a denoiser, which ``unit_slope`` follows; of
      an energy, OuYang et al. 2026 (arXiv 2601.21025).
    """
    checks.function_of_example("network", network, "params", "x", "level")
    checks.number("mean", mean)
    checks.positive_number("scale", scale)
    checks.boolean("unit_slope", unit_slope)
    return _Preconditioned(network, mean, scale, unit_slope)


def preconditioned_logits(
    network: LevelLogitsFn, *, mean: float = 0.0, scale: float = 1.0, unit_slope: bool = False
) -> LevelLogitsFn:
    r"""The same of a classifier: its energies are those of a Gaussian less the logits of a network.

    .. math::

      f(y; \sigma)_k = F(u; \sigma / s)_k - \tfrac{1}{2} |u|^2 - \tfrac{d}{2} \log (2 \pi v)

    p(k | y) = softmax_k f is that of F, without ``unit_slope``. The energies of
    `jaxebm.energies.marginal_energy_at` and `jaxebm.energies.joint_energy_at` begin near the magnitude of a
    normalised energy, as in `jaxebm.energies.preconditioned_energy`.

    Args:
      network: F, ``network(params, u, relative_level) -> (K,)`` of one example, such as the ``apply`` of
        `jaxebm.energies.LevelConvNet`.
      mean: m, the mean over all entries of the data.
      scale: s > 0, the standard deviation over all entries of the data.
      unit_slope: whether F is multiplied by sqrt(v) / sigma, as there; then p(k | y) is that of the product.

    Returns:
      ``logits_at(params, y, level) -> (K,)`` of arrays y.

    Raises:
      TypeError: if ``network`` is no function of three arguments.
      ValueError: if ``mean`` is not one finite number, or ``scale`` not a positive one; from the logits, if
        the network's output is no vector.

    Example:
      >>> logits_at = preconditioned_logits(lambda params, u, level: params @ u, scale=2.0)
      >>> jax.nn.softmax(logits_at(jnp.eye(2), jnp.zeros(2), 1.0)).tolist()
      [0.5, 0.5]

    Reference:
      Grathwohl et al. 2020 (arXiv 1912.03263), section 4, with the reference of `preconditioned_energy`.
    """
    checks.function_of_example("network", network, "params", "x", "level")
    checks.number("mean", mean)
    checks.positive_number("scale", scale)
    checks.boolean("unit_slope", unit_slope)
    return _PreconditionedLogits(network, mean, scale, unit_slope)
