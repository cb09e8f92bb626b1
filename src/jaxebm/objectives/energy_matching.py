"""Energy matching: the gradient of one potential is the velocity from noise to data."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxebm import checks
from jaxebm.objectives.contrastive import check_same_example_shape, noted
from jaxebm.objectives.couplings import Coupling, Paths, check_coupling, draw_paths
from jaxebm.objectives.examples import LearntEnergy, examples_of, learnt_energy
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.objective import Batch, Objective, check_negatives
from jaxebm.trees import widened
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, JointEnergyFn, Metrics, Params, Position

__all__ = ["energy_matching"]


def energy_matching(
    energy: EnergyFn | JointEnergyFn,
    *,
    scale: float | Array = 1.0,
    coupling: Coupling = "optimal",
    source_scale: float | Array = 1.0,
    contrastive_weight: float | Array = 0.0,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Energy matching: one potential V = c E whose negative gradient carries noise to data.

    .. math:: w \left[ \frac{1}{d} E\, |\nabla_x V(x_t) + x_1 - x_0|^2
              + \lambda\, (E\, V(x_1) - E_{x' \sim chains} V(x')) \right]

    x_0 ~ N(0, s^2 I) is noise, x_1 data, x_t = (1 - t) x_0 + t x_1, t ~ U(0, 1). The first term (phase 1)
    needs no chain. Its minimiser is the potential whose -grad V is closest to the mean velocity at each
    point: descent from noise, over a time of about 1, ends near the data. It does not make exp(-V / T) the
    density of the data: that is the second term (phase 2, ``contrastive_weight`` above 0), for which the
    learner draws negatives on E: half from noise by `jaxebm.samplers.heated_sgld`, half from data
    (`jaxebm.objectives.join_negatives`). Train phase 1 first, then go on from its parameters with a small
    weight of the contrast.

    An update costs one gradient of E in x and its derivative by the parameters, about four evaluations of E.

    Args:
      energy: E(params, x) of one example; or E(params, x, y) of `jaxebm.energies.joint_energy`, which learns
        p(x | y) from the labelled examples.
      scale: c > 0. V has a slope of the order of |x_1 - x_0|, and outputs of a network are of order 1: 10 to
        1000 on images. Chains of V at temperature T with a step dt are chains of E with the step c dt and
        temperature T / c.
      coupling: pairs of noise and data within a batch, and within a class for an energy of E(x, y):
        ``"optimal"`` transport (`jaxebm.objectives.couple`) or ``"independent"``.
      source_scale: s > 0, standard deviation of the noise, in the units of x.
      contrastive_weight: lambda >= 0.
      weight: w >= 0.

    Returns:
      An objective. Its metrics have ``velocity_error``, the mean square of an entry of grad V + x_1 - x_0,
      and with the contrast ``energy_data``, ``energy_model`` and ``energy_gap``.

    Raises:
      TypeError: if the energy is not a function of its arguments.
      ValueError: if ``scale`` or ``source_scale`` is not positive, a weight is negative, or ``coupling``
        unknown; from the loss, if a joint energy gets no labels, or the contrast no negatives.

    Example:
      >>> objective = energy_matching(lambda params, x: 0.5 * params * jnp.sum(x**2))
      >>> batch = Batch(None, None, jnp.zeros((64, 2)))  # all data at 0: the velocity points there
      >>> loss = lambda params: objective.loss(params, jax.random.key(0), batch, Negatives(None, None))[0]
      >>> float(loss(1.5)) < float(loss(0.0))
      True

    Reference:
      Balcerak et al. 2025 (arXiv 2504.10612), equations 4 to 9, algorithms 1 and 2.
    """
    learnt = learnt_energy(energy)
    for name, value in (("scale", scale), ("source_scale", source_scale)):
        checks.positive_number(name, value)
    for name, value in (("contrastive_weight", contrastive_weight), ("weight", weight)):
        checks.non_negative_number(name, value)
    check_coupling(coupling)
    contrasts = checks.is_traced(contrastive_weight) or float(contrastive_weight) > 0

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        x, labels = examples_of(batch, "energy_matching", conditional=learnt.conditional)
        of_class = labels if learnt.conditional else None
        paths = draw_paths(rng_key, x, of_class, coupling=coupling, source_scale=source_scale)
        error = mean_velocity_error(learnt, params, paths, labels, scale, jnp.ones_like(paths.time))
        metrics = {"velocity_error": error}
        if not contrasts:
            return weight * error, metrics
        check_negatives(negatives, "energy_matching with contrastive_weight above 0")
        found = _contrast(learnt, params, x, labels, negatives)
        return weight * (error + contrastive_weight * scale * found["energy_gap"]), metrics | found

    return Objective(learnt.energy, loss)


def mean_velocity_error(
    learnt: LearntEnergy, params: Params, paths: Paths, labels: Array, scale: Any, factor: Array
) -> Array:
    """Returns mean |c grad E(x_t, y) + k velocity|^2 / d, with k = ``factor`` of shape ``(n,)``."""

    def error(params: Params, x: Position, label: Array, velocity: Position, factor: Array) -> Array:
        slope = jax.grad(learnt.energy, argnums=1)(params, x, label)
        residual = jax.tree.map(lambda g, v: scale * widened(g) + factor * widened(v), slope, velocity)
        return optax.tree.norm(residual, squared=True) / optax.tree.size(x)

    with noted("energy", params=params, x=paths.position):
        errors = jax.vmap(error, (None, 0, 0, 0, 0), axis_name=BATCH_AXIS)(
            params, paths.position, labels, paths.velocity, factor
        )
    return jnp.mean(errors)


def _contrast(
    learnt: LearntEnergy, params: Params, x: Position, labels: Array, negatives: Negatives
) -> Metrics:
    check_same_example_shape("batch.x_data", x, "negatives.positions", negatives.positions)
    energies = jax.vmap(learnt.energy, (None, 0, 0), axis_name=BATCH_AXIS)
    data = jnp.mean(energies(params, x, labels))
    samples = jax.lax.stop_gradient(negatives.positions)
    of_samples = negatives.labels
    if of_samples is None:
        if learnt.conditional:
            raise ValueError(
                "negatives have no labels: energy_matching of E(x, y) compares data with samples of classes."
            )
        of_samples = jnp.zeros(checks.batch_length("negatives.positions", samples), jnp.int32)
    model = jnp.mean(energies(params, samples, of_samples))
    return {"energy_data": data, "energy_model": model, "energy_gap": data - model}
