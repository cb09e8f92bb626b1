r"""How far samples are from a density, by the gradient of its energy: without log Z or other samples."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.evaluation.samples.discrepancy import check_points, exact_product, flat_points, squared_distances
from jaxebm.samplers.langevin import scalar_target
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, Params, Position

__all__ = ["SteinDiscrepancy", "kernel_stein_discrepancy"]


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
      A ``SteinDiscrepancy``.

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
    checks.positive("scale", scale)
    if not checks.is_traced(exponent) and not -1 < exponent < 0:
        raise ValueError(f"exponent={exponent!r}: a number in (-1, 0), both ends excluded, is needed.")
    checks.positive_integer("block_size", block_size)
    check_points("samples", samples)
    return _stein(energy, params, samples, scale, exponent, block_size)


def _scores(energy: EnergyFn, params: Params, samples: Position, block_size: int) -> Array:
    """Returns -dE/dx of every sample, ``(n, D)``, in blocks, the last one padded with the first samples."""
    target = scalar_target(functools.partial(energy, params))
    count = jax.tree.leaves(samples)[0].shape[0]
    block = min(block_size, count)
    indices = np.arange(-(-count // block) * block).reshape(-1, block) % count
    gradients = jax.lax.map(
        jax.vmap(jax.grad(target), axis_name=BATCH_AXIS),
        jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], samples),
    )
    return -flat_points(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), gradients))[:count]


@functools.partial(jax.jit, static_argnames=("energy", "block_size"))
def _stein(
    energy: EnergyFn,
    params: Params,
    samples: Position,
    scale: Array,
    exponent: Array,
    block_size: int,
) -> SteinDiscrepancy:
    scores = _scores(energy, params, samples, block_size)
    x = flat_points(samples)
    x = x - jnp.mean(x, axis=0, keepdims=True)
    count, dimension = x.shape
    along = jnp.sum(scores * x, axis=1)

    def row(at: tuple[Array, Array, Array]) -> Array:
        index, point, score = at
        squared = squared_distances(point, x)
        base = scale**2 + squared
        # (s - s')^T (x - x'), multiplied out
        cross = jnp.sum(score * point) + along - exact_product(x, score) - exact_product(scores, point)
        first = base ** (exponent - 1)
        values = (
            exact_product(scores, score) * base**exponent
            - 2 * exponent * (cross + dimension) * first
            - 4 * exponent * (exponent - 1) * squared * first / base
        )
        return jnp.sum(jnp.where(jnp.arange(count) == index, 0.0, values))

    sums = jax.lax.map(row, (jnp.arange(count), x, scores), batch_size=min(block_size, count))
    itself = jnp.sum(jnp.square(scores), axis=1) * scale ** (2 * exponent)
    itself = itself - 2 * exponent * dimension * scale ** (2 * exponent - 2)
    between = jnp.mean(sums) / (count - 1)
    return SteinDiscrepancy(between, ((count - 1) * between + jnp.mean(itself)) / count)
