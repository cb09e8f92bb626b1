"""Noise-contrastive estimation: an energy learns the data by telling them from noise of known density.

`noise_contrastive` takes its noise from a proposal (`jaxebm.objectives.gaussian_proposal`), and learns log Z,
too. `conditional_noise_contrastive` moves each example a little, and needs no density and no log Z.
"""

import math

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.examples import examples_of, learnt_energy
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.objectives.proposals import (
    ProposalLike,
    checked_energy,
    draw,
    energies_with_noise,
    log_densities,
)
from jaxebm.trees import normal_like, wide_dtype, widened
from jaxebm.types import Array, EnergyFn, Metrics, Params

__all__ = ["conditional_noise_contrastive", "noise_contrastive"]


def noise_contrastive(
    energy: EnergyFn, proposal: ProposalLike, *, ratio: int = 1, weight: float | Array = 1.0
) -> Objective:
    r"""Noise-contrastive estimation (NCE): logistic regression of data against noise of known density q.

    .. math:: L = w [\mathrm{mean}\, \mathrm{softplus}(-G(x_{data}))
        + \nu\, \mathrm{mean}\, \mathrm{softplus}(G(x_{noise}))], \qquad
        G(x) = -E(x) - \log q(x) - \log \nu

    Where the energy can take any value, the minimiser is E = -log p: exp(-E) is normalised, and `-E` is the
    log-density. So the energy needs a constant of its own to learn, such as the bias of a network's output or
    `jaxebm.energies.with_offset`. An energy of `jaxebm.energies.joint_energy` learns -log p(x | y) from the
    labelled examples; noise is compared under the labels of the data.

    Args:
      energy: E(params, x) of one example, or an energy of ``joint_energy``.
      proposal: the noise q: whatever has ``sample(rng_key, num_samples)`` and ``log_density(x)``, such as
        `jaxebm.objectives.gaussian_proposal`. It should cover the data, and be close to them.
      ratio: nu, how much noise is drawn for each example; more lowers the variance.
      weight: w >= 0.

    Returns:
      An objective without chains. Metrics: ``accuracy``, the share of data and noise that is told apart (of
      E = -log q it is the larger share, 1/2 for ratio 1), ``energy_data`` and ``energy_noise``.

    Raises:
      TypeError: if ``energy`` is no such function, or the proposal lacks one of its functions.
      ValueError: if ``ratio`` is no integer of at least 1, or ``weight`` not one number of at least 0; from
        the loss, if the noise has not the shape of the data.

    Example:
      >>> import numpy as np
      >>> from jaxebm.energies import offset_params, with_offset
      >>> from jaxebm.objectives.proposals import gaussian_proposal
      >>> data = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
      >>> energy = with_offset(lambda scale, x: 0.5 * jnp.sum((x / scale) ** 2))
      >>> objective = noise_contrastive(energy, gaussian_proposal(data, widening=1.5))
      >>> batch, none = Batch(None, None, jnp.asarray(data)), Negatives(None, None)
      >>> truth, wrong = (offset_params(jnp.array(1.0), offset) for offset in (0.919, 3.0))
      >>> loss = lambda params: objective.loss(params, jax.random.key(0), batch, none)[0]
      >>> bool(loss(truth) < loss(wrong))
      True

    Reference:
      Gutmann & Hyvarinen 2012 (JMLR 13, pages 307 to 361), section 2.2.
    """
    learnt = checked_energy(energy, proposal, "ratio", ratio, weight)
    options = {"conditional": learnt.conditional, "objective": "noise_contrastive"}

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        x, labels = examples_of(batch, **options)
        key_noise, key_energy = jax.random.split(rng_key)
        noise = draw(proposal, key_noise, ratio * len(labels), x)
        energy_data, energy_noise = energies_with_noise(
            learnt, params, key_energy, batch, noise, options["objective"]
        )
        log_ratio_data = -energy_data - log_densities(proposal, x) - math.log(ratio)
        log_ratio_noise = -energy_noise - log_densities(proposal, noise) - math.log(ratio)
        value, accuracy = classification(log_ratio_data, log_ratio_noise, ratio)
        metrics = {
            "accuracy": accuracy,
            "energy_data": jnp.mean(energy_data),
            "energy_noise": jnp.mean(energy_noise),
        }
        return weight * value, metrics

    return Objective(learnt.energy, loss)


def classification(log_ratio_data: Array, log_ratio_noise: Array, ratio: int = 1) -> tuple[Array, Array]:
    """Returns the cross-entropy of data against noise, a mean for each example, and the accuracy.

    Where a log-ratio is 0 one half counts as right.
    """
    cross_entropy = jnp.mean(jax.nn.softplus(-log_ratio_data)) + ratio * jnp.mean(
        jax.nn.softplus(log_ratio_noise)
    )
    right_data, right_noise = (
        jnp.mean(jnp.heaviside(each, 0.5)) for each in (log_ratio_data, -log_ratio_noise)
    )
    return cross_entropy, (right_data + ratio * right_noise) / (1 + ratio)


def conditional_noise_contrastive(
    energy: EnergyFn, *, noise_scale: float | Array, num_samples: int = 1, weight: float | Array = 1.0
) -> Objective:
    r"""Conditional noise-contrastive estimation: logistic regression of each example against its neighbours.

    .. math:: L = 2 w\, \mathrm{mean}_{i,j}\, \mathrm{softplus}(E(x_i) - E(x_i + \epsilon n_{ij})), \qquad
        n_{ij} \sim N(0, I)

    The minimiser is E = -log p up to a constant, at any epsilon: the constant cancels. As epsilon goes to 0,
    (L - 2 log 2) 2 / epsilon^2 becomes the loss of explicit score matching, with more variance the smaller
    epsilon is; so neighbours come in pairs on opposite sides, whose errors of first order cancel. Between
    modes further apart than a few epsilon, little is learnt about their masses. An energy of
    `jaxebm.energies.joint_energy` learns -log p(x | y), up to a constant for each class.

    Args:
      energy: E(params, x) of one example, or an energy of ``joint_energy``.
      noise_scale: epsilon > 0, the standard deviation of the noise, in units of x; about that of the data, or
        the distance of neighbouring examples.
      num_samples: neighbours of each example; an even number has pairs alone.
      weight: w >= 0.

    Returns:
      An objective without chains. Metrics: ``accuracy``, the share of pairs in which the example has the
      lower energy, ``energy_data``, and ``energy_gap``, E of the data minus E of their neighbours.

    Raises:
      TypeError: if ``energy`` is no such function.
      ValueError: if ``noise_scale`` is not one number above 0, ``num_samples`` no integer of at least 1, or
        ``weight`` not one number of at least 0.

    Example:
      >>> objective = conditional_noise_contrastive(lambda mean, x: jnp.sum((x - mean) ** 2), noise_scale=0.5)
      >>> batch, none = Batch(None, None, 2.0 + jnp.zeros((100, 1))), Negatives(None, None)
      >>> loss = lambda mean: objective.loss(mean, jax.random.key(0), batch, none)[0]
      >>> bool(loss(2.0) < loss(0.0))
      True

    Reference:
      Ceylan & Gutmann 2018 (arXiv 1806.03664), with symmetric noise.
    """
    learnt = learnt_energy(energy)
    checks.positive_number("noise_scale", noise_scale)
    checks.positive_integer("num_samples", num_samples)
    checks.non_negative_number("weight", weight)
    options = {"conditional": learnt.conditional, "objective": "conditional_noise_contrastive"}

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        x, labels = examples_of(batch, **options)
        length = len(labels)
        key_noise, key_energy = jax.random.split(rng_key)
        num_normals = (num_samples + 1) // 2 * length
        wide = jax.tree.map(lambda leaf: jnp.zeros((num_normals, *leaf.shape[1:]), wide_dtype(leaf)), x)

        def near(leaf: Array, normal: Array) -> Array:
            """The neighbours, block by block: each block has one of every example."""
            noise = noise_scale * jnp.concatenate([normal, -normal])[: num_samples * length]
            return (jnp.concatenate([widened(leaf)] * num_samples) + noise).astype(leaf.dtype)

        neighbours = jax.tree.map(near, x, normal_like(key_noise, wide))
        energy_data, energy_near = energies_with_noise(
            learnt, params, key_energy, batch, neighbours, options["objective"]
        )
        gaps = energy_data[None, :] - energy_near.reshape(num_samples, length)
        metrics = {
            "accuracy": jnp.mean(jnp.heaviside(-gaps, 0.5)),
            "energy_data": jnp.mean(energy_data),
            "energy_gap": jnp.mean(gaps),
        }
        return 2 * weight * jnp.mean(jax.nn.softplus(gaps)), metrics

    return Objective(learnt.energy, loss)
