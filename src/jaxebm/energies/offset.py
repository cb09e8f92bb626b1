"""An energy with an offset of its own, so that exp(-E(x) - b) can be learnt to be a normalised density.

Score matching, denoising and contrastive divergence leave an additive constant of the energy undetermined.
Objectives that learn it (`jaxebm.objectives.noise_contrastive`, ``self_normalised``, ``flow_contrastive``)
need an energy that can take any value: a network with a bias on its output, or `with_offset` of any energy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.classifier import JointEnergy
from jaxebm.types import Array, EnergyFn, Params, Position

__all__ = ["OffsetParams", "offset_params", "with_offset"]


class OffsetParams(TypedDict):
    """``energy``, the parameters of the energy, and ``offset``, b, shape ()."""

    energy: Params
    offset: Array


@dataclass(frozen=True)
class _OffsetEnergy:
    energy: EnergyFn

    @property
    def kind(self) -> str:
        """``"joint"`` for an energy of x and a class, as that of `jaxebm.energies.split_energy`."""
        joint = isinstance(self.energy, JointEnergy) or getattr(self.energy, "kind", None) == "joint"
        return "joint" if joint else "marginal"

    def __call__(self, params: Params, x: Position, /, *label: Any) -> Array:
        if not (isinstance(params, Mapping) and {"energy", "offset"} <= set(params)):
            raise ValueError(
                "params must be a dict with the entries 'energy' and 'offset': offset_params(params) of "
                "jaxebm.energies makes one of the parameters of the energy."
            )
        value = self.energy(params["energy"], x, *label)
        checks.scalar_energy("energy", value)
        return value + params["offset"]


def with_offset(energy: EnergyFn) -> EnergyFn:
    r"""Adds a learnt offset to an energy.

    .. math:: U(x) = E(x) + b

    Where exp(-U) is a normalised density, b = log Z, the log-partition of E. Gradients in x, and so chains,
    do not depend on b.

    Args:
      energy: E(params, x) of one example, or an energy of `jaxebm.energies.joint_energy`.

    Returns:
      ``energy(params, x) -> ()`` of parameters ``{"energy": ..., "offset": ()}``, as `offset_params` makes
      them. Equal for equal energies, so that it may be a static argument of ``jax.jit``.

    Raises:
      TypeError: if ``energy`` is no function of two arguments; from the energy, if it returns something else
        than one real scalar.
      ValueError: from the energy, if its parameters are no such dict.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = with_offset(lambda params, x: 0.5 * jnp.sum((x - params) ** 2))
      >>> float(energy(offset_params(jnp.zeros(2), 3.0), jnp.ones(2)))
      4.0

    Reference:
      Gutmann & Hyvarinen 2012 (JMLR 13, pages 307 to 361), section 2.2, where c = -b.
    """
    if not (isinstance(energy, JointEnergy) or getattr(energy, "kind", None) == "joint"):
        checks.function("energy", energy, "params", "x")
    return _OffsetEnergy(energy)


def offset_params(params: Params, offset: Array | float = 0.0) -> OffsetParams:
    """Returns the parameters of `with_offset`: those of the energy, and b.

    Args:
      params: parameters of the energy.
      offset: b, one number; log Z of the energy at the start, where it is roughly known.

    Returns:
      ``{"energy": params, "offset": b}``, b in float32, or wider if it is.

    Raises:
      ValueError: if ``offset`` is not one finite number.
      TypeError: if it is no real number, or ``params`` hold no arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> sorted(offset_params(jnp.zeros(2), 3.0))
      ['energy', 'offset']
    """
    checks.real_arrays("params", params)
    checks.number("offset", offset)
    offset = jnp.asarray(offset)
    wide = jnp.promote_types(offset.dtype, jnp.float32)
    return {"energy": params, "offset": offset.astype(wide)}
