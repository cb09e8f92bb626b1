r"""Densities on a box: exp(-E(x)) on [low, high]^D, and the annealing problem for their log Z.

A network's energy need not be integrable over all of space; over the box that data live in it always is. The
box is mapped onto all of space, x = low + (high - low) sigmoid(z), so that kernels which know no walls leave
the density exactly invariant.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.reparametrise import Bijection, box_transform, reparametrise
from jaxebm.evaluation.partition.annealing_path import Base
from jaxebm.types import Array, EnergyFn, Params

__all__ = ["BoxProblem", "restrict_to_box"]


class BoxProblem(NamedTuple):
    """The density exp(-E(x)) on a box, in unbounded coordinates z.

    Attributes:
      energy: ``energy(params, z) -> ()``, E(x(z)) - log |dx/dz|; its log Z is that of E over the box.
      base: the uniform density on the box in the same coordinates; log Z_0 = D log(high - low).
      transform: the map of z to x, and its inverse.
    """

    energy: EnergyFn
    base: Base
    transform: Bijection


@dataclass(frozen=True)
class _Flat:
    """The energy 0 of every x; all instances are equal, so that nothing is compiled twice."""

    def __call__(self, params: Params, x: Array, /) -> Array:
        del params
        return jnp.zeros((), jnp.result_type(x))


@dataclass(frozen=True)
class _Checked:
    """The same energy, whose output must be one real scalar; equal for equal energies."""

    energy: EnergyFn

    def __call__(self, params: Params, x: Array, /) -> Array:
        value = self.energy(params, x)
        checks.scalar_energy(checks.function_name(self.energy), value)
        return value


def restrict_to_box(energy: EnergyFn, shape: tuple[int, ...], low: float, high: float) -> BoxProblem:
    r"""Writes an energy on a box in unbounded coordinates, with the uniform density to anneal from.

    .. math:: \log Z = \log \int_{[low, high]^D} e^{-E(x)} dx

    Make the problem once and keep it: its functions are recognised by identity.

    Args:
      energy: ``energy(params, x) -> ()``, a number all over the box, its walls included; +inf is density 0.
      shape: of one x; D is its size.
      low: lower end of every coordinate.
      high: upper end, above ``low``.

    Returns:
      A `BoxProblem`: ``annealed_importance_sampling(rng_key, problem.energy, params, problem.base, ...)``.

    Raises:
      ValueError: unless low < high, both finite, and every entry of shape is a positive integer.
      TypeError: if energy is no function of two arguments, shape no tuple, or an end no number.

    Example:
      A normal cut off at one deviation has the mass erf(1 / sqrt(2)) of the whole:

      >>> from functools import partial
      >>> from jaxebm.evaluation.partition.importance_sampling import annealed_importance_sampling
      >>> from jaxebm.evaluation.partition.path_fitting import linear_schedule
      >>> from jaxebm.samplers import mala
      >>> problem = restrict_to_box(lambda params, x: 0.5 * jnp.sum(x**2), (1,), -1.0, 1.0)
      >>> result = annealed_importance_sampling(
      ...     jax.random.key(0), problem.energy, None, problem.base, partial(mala, step_size=1.0),
      ...     linear_schedule(10), num_chains=1000)
      >>> exact = 0.5 * math.log(2 * math.pi) + math.log(math.erf(0.5**0.5))
      >>> bool(abs(result.log_partition - exact) < 4 * result.standard_error + 1e-4)
      True
    """
    checks.function("energy", energy, "params", "x")
    checks.instance("shape", shape, (tuple, list))
    for length in shape:
        checks.positive_integer("shape", length)
    checks.number("low", low)
    checks.number("high", high)
    transform = box_transform(low, high)
    dimension = math.prod(shape)

    def log_volume(params: Params) -> Array:
        del params
        return jnp.asarray(dimension * math.log(high - low))

    def sample(rng_key: Array, params: Params, num_samples: int) -> Array:
        del params
        return jax.random.logistic(rng_key, (num_samples, *shape))  # sigmoid of which is uniform

    base = Base(reparametrise(_Flat(), transform), None, log_volume, sample)
    return BoxProblem(reparametrise(_Checked(energy), transform), base, transform)
