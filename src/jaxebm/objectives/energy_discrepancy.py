r"""Energy discrepancy: data have a lower energy than points near them, in proportion to the density there.

An example is moved by noise, and each of M points is moved from there by noise again; the loss compares the
energy of the example with theirs. It needs energies alone: no chain and no derivative in x.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.examples import learnt_energy
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.neighbours import energies_around
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.trees import normal_like, widened
from jaxebm.types import Array, EnergyFn, JointEnergyFn, Metrics, Params, Position

__all__ = ["energy_discrepancy"]


def energy_discrepancy(
    energy: EnergyFn | JointEnergyFn,
    *,
    noise_variance: float | Array = 1.0,
    num_samples: int = 4,
    stabilisation: float | Array = 1.0,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Energy discrepancy with Gaussian noise.

    .. math:: L = \frac{1}{n} \sum_i \log \Big[ \frac{w}{M} + \frac{1}{M} \sum_{j=1}^{M}
              \exp\big( E(x_i) - E(x_i + \sqrt{t} \, \xi_i + \sqrt{t} \, \xi_{ij}) \big) \Big],
              \qquad \xi \sim N(0, I)

    As t grows it goes from score matching to maximum likelihood: a small t sees little of the weights of
    modes that are far apart, a large one moves points so far that all comparisons are easy and their
    gradients vanish. Take sqrt(t) between the width of a mode and the distance of two.

    With w = 1 it is exact for every M: the loss asks which of x_i and the M points around its noisy copy is
    the example, and the best answer is softmax(-E) with E = -log p. (With M = 1 it is conditional
    noise-contrastive estimation with noise of variance 2 t.) For another w it is exact as M grows alone, with
    an error of order 1 / M; w = 0 with M = 1 has no minimum.

    It costs 1 + M energies for each example, evaluated as one batch. Noise leaves a box on whose edge the
    data lie: then E learns the edge first, and a t of a few squared grey levels is needed for images.

    Args:
      energy: E(params, x) of one example; or E(params, x, y) of `jaxebm.energies.joint_energy`, which learns
        p(x | y) from labelled examples.
      noise_variance: t > 0, in squared units of x.
      num_samples: M, points for each example, at least 1.
      stabilisation: w >= 0.
      weight: a factor of the loss, >= 0.

    Returns:
      An objective that needs no negatives. Its metrics: ``energy_data``, ``energy_perturbed``, the means over
      examples and over their points, and ``energy_gap``, data minus points.

    Raises:
      TypeError: if ``energy`` is no function of parameters and an example, or the examples are not
        floating-point.
      ValueError: if ``noise_variance`` is not one number above 0, ``num_samples`` no integer of at least 1,
        or ``stabilisation`` or ``weight`` not one number of at least 0.

    Example:
      A constant energy: log(1 / 4 + 1).

      >>> objective = energy_discrepancy(lambda params, x: params + 0.0 * jnp.sum(x), num_samples=4)
      >>> batch = Batch(None, None, jnp.zeros((8, 2)))
      >>> loss, metrics = objective.loss(1.0, jax.random.key(0), batch, Negatives(None, None))
      >>> round(float(loss), 4)
      0.2231

    Reference:
      Schroeder, Ou, Lim, Li, Vollmer & Duncan 2023 (arXiv 2307.06431), "Energy discrepancies: a
      score-independent loss for energy-based models", with its w-stabilisation.
    """
    learnt = learnt_energy(energy)
    checks.positive_number("noise_variance", noise_variance)
    checks.positive_integer("num_samples", num_samples)
    checks.non_negative_number("stabilisation", stabilisation)
    checks.non_negative_number("weight", weight)

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        points_around = partial(_points, scale=jnp.sqrt(noise_variance), num_samples=num_samples)
        energies = widened(
            energies_around(learnt, points_around, params, rng_key, batch, objective="energy_discrepancy")
        )
        differences = energies[:, :1] - energies
        # The first column, 0, is the example itself, and stands for the w in the sum.
        counts = jnp.ones((1, 1 + num_samples), energies.dtype).at[:, 0].set(stabilisation)
        value = jnp.mean(jax.nn.logsumexp(differences, axis=1, b=counts)) - jnp.log(num_samples)
        energy_data, energy_perturbed = jnp.mean(energies[:, 0]), jnp.mean(energies[:, 1:])
        metrics = {
            "energy_data": energy_data,
            "energy_perturbed": energy_perturbed,
            "energy_gap": energy_data - energy_perturbed,
        }
        return weight * value, metrics

    return Objective(learnt.energy, loss)


def _points(rng_key: Array, x: Position, scale: Array, num_samples: int) -> Position:
    """x, and the points around its noisy copy: leaves ``(1 + num_samples, ...)``."""
    key_copy, key_points = jax.random.split(rng_key)
    # One draw of the shape of all points: the noise of a batch costs as much as a small energy.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_samples, *leaf.shape), leaf.dtype), x)
    noise, noises = normal_like(key_copy, x), normal_like(key_points, shapes)

    def move(leaf: Array, noise: Array, noises: Array) -> Array:
        moved = (widened(leaf) + scale * noise)[None] + scale * noises
        return jnp.concatenate([leaf[None], moved.astype(leaf.dtype)])

    return jax.tree.map(move, x, noise, noises)
