r"""How far samples are from a density, by the gradient of its energy: without log Z or other samples."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.evaluation.samples.discrepancy import check_points, exact_product, flat_points, squared_distances
from jaxebm.evaluation.samples.scale import power_of_two
from jaxebm.samplers.langevin import scalar_target
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, Params, Position

__all__ = ["SteinDiscrepancy", "kernel_stein_discrepancy"]

_ORDINARY = (1e-5, 1e5)
"""Sizes of points at which (c^2 + |x - x'|^2)^(beta - 2) is in the range of float32."""


class SteinDiscrepancy(NamedTuple):
    """Two estimates of the squared kernel Stein discrepancy, each ``()``.

    Attributes:
      u_statistic: unbiased, 0 on average for exact samples, so it may be negative.
      v_statistic: never negative; its square root is Gorham & Mackey's discrepancy. For exact samples its
        mean is that of u(x, x) over n, not 0.
    """

    u_statistic: Array
    v_statistic: Array


def kernel_stein_discrepancy(
    energy: EnergyFn,
    params: Params,
    samples: Position,
    *,
    scale: Array | float = 1.0,
    exponent: Array | float = -0.5,
    block_size: int = 256,
) -> SteinDiscrepancy:
    r"""Squared discrepancy of samples from exp(-E), by the gradient of E alone.

    .. math:: \mathrm{KSD}^2 = \mathbb{E}\, u(x, x'), \qquad
              u = s^T s' k + s^T \nabla_{x'} k + s'^T \nabla_x k + \mathrm{tr} \nabla_x \nabla_{x'} k

    with the score s = -dE/dx and the inverse multiquadric k(x, x') = (c^2 + |x - x'|^2)^beta. It is 0 for
    samples of the density and no others. The score does not know how much mass each of two far modes has:
    samples that miss a mode get a small value, the smaller the farther away it is.

    Args:
      energy: ``energy(params, x) -> ()``, of one example.
      params: its parameters.
      samples: leaves ``(n, ...)``, n at least 2, floating-point.
      scale: c > 0, ``()``, in units of the position. Hold it fixed to compare values.
      exponent: beta in (-1, 0), ``()``; these kernels notice samples that escape to infinity, as a Gaussian
        one does not.
      block_size: rows of pairs, and gradients, at once.

    Returns:
      A ``SteinDiscrepancy``, in units of position^(2 beta - 2), so that it overflows or vanishes at scales
      where this does; NaN where the energy of a sample or its gradient is
      not finite.

    Raises:
      ValueError: if there are fewer than two samples, one is not finite, a number is out of its range, or the
        energy is not a scalar.
      TypeError: if the samples are not floating-point.

    Example:
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> x = jax.random.normal(jax.random.key(0), (500, 2))
      >>> near, far = (kernel_stein_discrepancy(energy, mean, x).u_statistic for mean in (0.0, 1.0))
      >>> bool(abs(near) < 0.02), bool(far > 0.5)
      (True, True)

    Reference:
      Liu, Lee & Jordan 2016 (arXiv:1602.03253), sections 3 and 4; Gorham & Mackey 2017 (arXiv:1703.01717),
      theorem 8 for the kernel.
    """
    checks.function("energy", energy, "params", "x")
    checks.positive("scale", scale)
    checks.one_number("scale", scale)
    checks.number("exponent", exponent)
    if not checks.is_traced(exponent) and not -1 < exponent < 0:
        raise ValueError(f"exponent={exponent!r}: a number in (-1, 0), both ends excluded, is needed.")
    checks.positive_integer("block_size", block_size)
    check_points("samples", samples)
    return _stein(energy, params, samples, scale, exponent, block_size, _is_extreme(samples, scale))


def _is_extreme(samples: Position, scale: Array | float) -> bool:
    """Returns whether powers of the distances may leave float32; False where samples or scale are traced."""
    if any(map(checks.is_traced, (*jax.tree.leaves(samples), scale))):
        return False
    extent = max(float(np.max(np.abs(np.asarray(leaf, float)))) for leaf in jax.tree.leaves(samples))
    return not _ORDINARY[0] < max(extent, float(scale)) < _ORDINARY[1]


def _scores(energy: EnergyFn, params: Params, samples: Position, block_size: int) -> Array:
    """Returns -dE/dx of every sample, ``(n, D)``, in blocks, the last one padded with the first samples."""
    target = scalar_target(functools.partial(energy, params))
    count = jax.tree.leaves(samples)[0].shape[0]
    block = min(block_size, count)
    indices = np.arange(-(-count // block) * block).reshape(-1, block) % count

    def gradient(x: Position) -> Position:
        energy, slope = jax.value_and_grad(target)(x)
        # Where the energy is NaN or infinite its derivative is often 0, which is no score.
        return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(energy), leaf, jnp.nan), slope)

    gradients = jax.lax.map(
        jax.vmap(gradient, axis_name=BATCH_AXIS),
        jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], samples),
    )
    return -flat_points(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), gradients))[:count]


@functools.partial(jax.jit, static_argnames=("energy", "block_size", "at_any_scale"))
def _stein(
    energy: EnergyFn,
    params: Params,
    samples: Position,
    scale: Array,
    exponent: Array,
    block_size: int,
    at_any_scale: bool,
) -> SteinDiscrepancy:
    scores = _scores(energy, params, samples, block_size)
    x = flat_points(samples)
    if not at_any_scale:
        x = x - jnp.mean(x, axis=0, keepdims=True)
        return _discrepancy(x, scores, scale, exponent, block_size)
    # With x = a x', c = a c' and s = b s', u is (a^beta m)^2 times a polynomial in b / m and 1 / (a m).
    a, b = power_of_two(x, jnp.asarray(scale, x.dtype)), power_of_two(scores)
    x = x / a
    x = x - jnp.mean(x, axis=0, keepdims=True)
    m = jnp.maximum(b, 1 / a)
    found = _discrepancy(x, scores / b, scale / a, exponent, block_size, (b / m, 1 / a / m))
    factor = a**exponent * m
    count, dimension = x.shape
    itself = jnp.square(jnp.linalg.norm(scores / b, axis=1) * b * scale**exponent)
    itself = jnp.mean(itself) - 2 * exponent * dimension * scale ** (2 * exponent - 2)
    with_itself = ((count - 1) * found.u_statistic + itself / factor / factor) / count
    return SteinDiscrepancy(found.u_statistic * factor * factor, with_itself * factor * factor)


def _discrepancy(
    x: Array,
    scores: Array,
    scale: Array,
    exponent: Array,
    block_size: int,
    weights: tuple[Array, Array] | None = None,
) -> SteinDiscrepancy:
    """The statistics of centred points; ``weights``: of a score and of a derivative of the kernel."""
    count, dimension = x.shape
    along = jnp.sum(scores * x, axis=1)

    def row(at: tuple[Array, Array, Array]) -> Array:
        index, point, score = at
        squared = squared_distances(point, x)
        base = scale**2 + squared
        # (s - s')^T (x - x'), multiplied out
        cross = jnp.sum(score * point) + along - exact_product(x, score) - exact_product(scores, point)
        first = base ** (exponent - 1)
        parts = (
            exact_product(scores, score) * base**exponent,
            2 * exponent * (cross + dimension) * first,
            4 * exponent * (exponent - 1) * squared * first / base,
        )
        if weights is not None:
            p, q = weights
            parts = (
                p * p * parts[0],
                2 * exponent * (p * q * cross + q * q * dimension) * first,
                q * q * parts[2],
            )
        values = parts[0] - parts[1] - parts[2]
        return jnp.sum(jnp.where(jnp.arange(count) == index, 0.0, values))

    sums = jax.lax.map(row, (jnp.arange(count), x, scores), batch_size=min(block_size, count))
    itself = jnp.sum(jnp.square(scores), axis=1) * scale ** (2 * exponent)
    itself = itself - 2 * exponent * dimension * scale ** (2 * exponent - 2)
    between = jnp.mean(sums) / (count - 1)
    return SteinDiscrepancy(between, ((count - 1) * between + jnp.mean(itself)) / count)
