r"""Likelihoods of discrete data under a density: each level stands for the cell around it.

P(x) = \int_{cell} p(x + u) du is what can be compared with other models of the same bytes; the density at x
itself cannot, and grows without bound as a model learns that data lie on a grid.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.evaluation.partition.likelihood import check_log_partition
from jaxebm.samplers.langevin import scalar_target
from jaxebm.trees import dimension
from jaxebm.types import Array, EnergyFn, Params, Position

__all__ = ["dequantised_log_likelihood"]


def dequantised_log_likelihood(
    rng_key: Array,
    energy: EnergyFn,
    params: Params,
    data: Position,
    log_partition: Array | float,
    bin_width: Array | float,
    *,
    num_draws: int = 1,
    batch_size: int = 256,
) -> Array:
    r"""Lower bound of the log of the mass that a density gives to the cell of each example, in nats.

    .. math:: \log \frac1m \sum_{j=1}^m e^{-E(x + u_j) - \log Z} + D \log h, \qquad
              u_j \sim U[-h/2, h/2]^D

    Its expectation is at most log P(x), whatever m: with one draw it is uniform dequantisation, and it rises
    toward log P(x) with m. With the upper end of an interval for log Z it stays a lower bound. In bits:
    ``bits_per_dimension(result, D)``, with no ``bin_width`` there. A draw with an energy of +inf adds 0 to
    the mean; one of NaN makes the result of its own example NaN.

    Args:
      rng_key: one key, for the u.
      energy: ``energy(params, x) -> ()``, of a density on cells that reach half a level beyond the outermost
        levels.
      params: its parameters.
      data: n examples at the levels' own values, leaves ``(n, ...)`` of floating-point numbers.
      log_partition: log Z in nats, ``()``.
      bin_width: h > 0, the distance of neighbouring levels in the units of x, ``()``.
      num_draws: m, at least 1.
      batch_size: examples evaluated at once.

    Returns:
      ``(n,)``, in nats.

    Raises:
      ValueError: if data is empty or ragged, a number is out of its range, or the energy is not a scalar.
      TypeError: if data is not floating-point, or another argument of another type.

    Example:
      A uniform density gives each of 256 bytes its share, 8 bits:

      >>> from jaxebm.evaluation.partition.likelihood import bits_per_dimension
      >>> bytes_ = jnp.array([[0.0, 17.0], [255.0, 3.0]])
      >>> values = dequantised_log_likelihood(
      ...     jax.random.key(0), lambda params, x: 0.0, None, bytes_, 2 * math.log(256), 1.0)
      >>> [round(float(bits), 4) for bits in bits_per_dimension(values, 2)]
      [8.0, 8.0]

    Reference:
      Theis, van den Oord & Bethge 2016 (arXiv:1511.01844), section 3.1; Ho et al. 2019 (Flow++,
      arXiv:1902.00275), section 3.1, for several draws.
    """
    checks.rng_key("rng_key", rng_key)
    checks.function("energy", energy, "params", "x")
    checks.arrays("params", params)
    checks.real_arrays("data", data)
    checks.floating("data", data)
    check_log_partition(log_partition)
    checks.positive_number("bin_width", bin_width)
    checks.positive_integer("num_draws", num_draws)
    checks.positive_integer("batch_size", batch_size)
    size = min(batch_size, checks.batch_length("data", data))
    with checks.shapes_noted(params=params, data=data):
        log_masses = _log_masses(
            rng_key, params, data, bin_width, energy=energy, num_draws=num_draws, batch_size=size
        )
    return log_masses - log_partition


@functools.partial(jax.jit, static_argnames=("energy", "num_draws", "batch_size"))
def _log_masses(
    rng_key: Array,
    params: Params,
    data: Position,
    bin_width: Array | float,
    *,
    energy: EnergyFn,
    num_draws: int,
    batch_size: int,
) -> Array:
    target = scalar_target(functools.partial(energy, params))

    def log_mass(at: tuple[Array, Position]) -> Array:
        rng_key, x = at
        leaves, structure = jax.tree.flatten(x)

        def draw(log_sum: Array, rng_key: Array) -> tuple[Array, None]:
            keys = jax.random.split(rng_key, len(leaves))
            moved = [
                leaf + bin_width * jax.random.uniform(key, leaf.shape, leaf.dtype, -0.5, 0.5)
                for key, leaf in zip(keys, leaves, strict=True)
            ]
            log_density = -jnp.asarray(target(jax.tree.unflatten(structure, moved)), dtype=float)
            return jnp.logaddexp(log_sum, log_density), None

        log_sum, _ = jax.lax.scan(draw, jnp.asarray(-jnp.inf), jax.random.split(rng_key, num_draws))
        return log_sum - math.log(num_draws) + dimension(x) * jnp.log(bin_width)

    keys = jax.random.split(rng_key, checks.batch_length("data", data))
    return jax.lax.map(log_mass, (keys, data), batch_size=batch_size)
