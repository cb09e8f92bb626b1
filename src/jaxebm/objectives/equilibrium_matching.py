"""Equilibrium matching: a gradient that points from noise to data everywhere and vanishes at the data."""

import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.couplings import Coupling, check_coupling, draw_paths
from jaxebm.objectives.energy_matching import mean_velocity_error
from jaxebm.objectives.examples import examples_of, learnt_energy
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.types import Array, EnergyFn, JointEnergyFn, Metrics, Params

__all__ = ["equilibrium_matching", "truncated_decay"]


def truncated_decay(time: Array | float, *, start: float = 0.8, height: float | Array = 4.0) -> Array:
    r"""The factor of the velocity in equilibrium matching: constant, then linear down to 0 at the data.

    .. math:: c(t) = h \min(1, (1 - t) / (1 - a))

    Args:
      time: t in [0, 1], any shape.
      start: a in [0, 1), where the decay begins.
      height: h > 0.

    Returns:
      c(t), of the shape of ``time``.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> print(truncated_decay(jnp.array([0.0, 0.8, 0.9, 1.0])).round(3))
      [4. 4. 2. 0.]

    Reference:
      Wang & Du 2025 (arXiv 2510.02300), equation 7 and section 5.
    """
    checks.array("time", time)
    checks.in_range("time", time, 0.0, 1.0)
    _check_decay(start, height)
    return height * jnp.minimum(1.0, (1.0 - jnp.asarray(time)) / (1.0 - start))


def _check_decay(start: float, height: float | Array) -> None:
    checks.one_number("start", start)
    checks.in_range("start", start, 0.0, 1.0)
    if not checks.is_traced(start) and float(start) == 1.0:
        raise ValueError("start=1.0: the decay needs an interval, so start must be below 1.")
    checks.positive_number("height", height)


def equilibrium_matching(
    energy: EnergyFn | JointEnergyFn,
    *,
    start: float = 0.8,
    height: float | Array = 4.0,
    scale: float | Array = 1.0,
    coupling: Coupling = "independent",
    source_scale: float | Array = 1.0,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Equilibrium matching: grad V = c(t) (x_0 - x_1) on the straight paths from noise to data, V = k E.

    .. math:: w\, \frac{1}{d} E\, |\nabla_x V(x_t) + c(t) (x_1 - x_0)|^2

    The energy is not told t. c falls to 0 at the data (`truncated_decay`), so that data are minima of V and
    descent of any length stays there: samples are drawn by gradient descent with a step and a momentum of
    one's choice (`jaxebm.samplers.momentum_descent`). exp(-V) is not the density of the data: V says where
    data are, and not how much of them.

    Args:
      energy: E(params, x) of one example, such as the potential forms `jaxebm.energies.inner_product_energy`
        and ``squared_norm_energy`` of a network with the shape of x; or E(params, x, y) of
        `jaxebm.energies.joint_energy`, which learns from the labelled examples.
      start: a in [0, 1), where c begins to fall.
      height: h > 0, the value of c before.
      scale: k > 0, as in `jaxebm.objectives.energy_matching`.
      coupling: pairs of noise and data, ``"independent"`` as published or ``"optimal"``.
      source_scale: s > 0, standard deviation of the noise x_0, in the units of x.
      weight: w >= 0.

    Returns:
      An objective. Its metric is ``velocity_error``, the mean square of an entry of the residual.

    Raises:
      TypeError: if the energy is not a function of its arguments.
      ValueError: if a number is out of range or ``coupling`` unknown; from the loss, if a joint energy gets
        no labels.

    Example:
      >>> import jax
      >>> objective = equilibrium_matching(lambda params, x: 0.5 * params * jnp.sum(x**2))
      >>> batch = Batch(None, None, jnp.zeros((512, 2)))
      >>> loss = lambda params: objective.loss(params, jax.random.key(0), batch, Negatives(None, None))[0]
      >>> float(loss(4.0)) < float(loss(0.0))
      True

    Reference:
      Wang & Du 2025 (arXiv 2510.02300), equations 4 to 7, section 3.3 for the energy forms.
    """
    learnt = learnt_energy(energy)
    _check_decay(start, height)
    for name, value in (("scale", scale), ("source_scale", source_scale)):
        checks.positive_number(name, value)
    checks.non_negative_number("weight", weight)
    check_coupling(coupling)

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        x, labels = examples_of(batch, "equilibrium_matching", conditional=learnt.conditional)
        of_class = labels if learnt.conditional else None
        paths = draw_paths(rng_key, x, of_class, coupling=coupling, source_scale=source_scale)
        factor = truncated_decay(paths.time, start=start, height=height)
        error = mean_velocity_error(learnt, params, paths, labels, scale, factor)
        return weight * error, {"velocity_error": error}

    return Objective(learnt.energy, loss)
