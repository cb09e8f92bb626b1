"""Self-normalised likelihood: an energy learns the data and its own log Z, by importance sampling alone."""

import jax
import jax.numpy as jnp

from jaxebm.objectives.examples import examples_of
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.objectives.proposals import (
    ProposalLike,
    checked_energy,
    draw,
    energies_with_noise,
    log_densities,
)
from jaxebm.types import Array, EnergyFn, Metrics, Params

__all__ = ["self_normalised"]


def self_normalised(
    energy: EnergyFn, proposal: ProposalLike, *, num_samples: int = 256, weight: float | Array = 1.0
) -> Objective:
    r"""Self-normalised likelihood: a bound of the log-likelihood that is tight where exp(-U) is normalised.

    .. math:: L = w [\mathrm{mean}\, U(x_{data}) + \mathrm{mean}\, e^{-U(x') - \log q(x')} - 1], \qquad
        x' \sim q

    For U(x) = E(x) + b (`jaxebm.energies.with_offset`) this is mean E + b + e^{-b} Z_hat - 1, Z_hat the
    estimate of Z by importance sampling from q. In b the minimum is at b = log Z, where L is the negative
    log-likelihood; log(t) <= t - 1 makes L larger elsewhere. Unlike log Z_hat, Z_hat has no bias, and neither
    has the gradient. It needs an energy that can take any value: `with_offset`, or the bias of a network. An
    energy of `jaxebm.energies.joint_energy` learns -log p(x | y) from the labelled examples.

    The variance is that of the weights e^{-U} / q: the proposal must have the wider tails. A network alone
    may fall far below -log q where samples are rare, and one such sample then spoils an update. So let it
    learn a correction of the proposal, ``jaxebm.energies.tilt(energy, proposal.log_density)``, whose weights
    e^{-E} start near 1, or clip the gradient, ``optax.clip_by_global_norm(1.0)`` (on two moons, 3000 updates
    of a network of 3 x 128: KL 0.009 nats by either, 0.13 without). Where weights are large at the start the
    loss is, too: let `jaxebm.energies.offset_params` start near log Z.

    Args:
      energy: U(params, x) of one example, with an offset of its own; or an energy of ``joint_energy``.
      proposal: q: whatever has ``sample(rng_key, num_samples)`` and ``log_density(x)``, such as
        `jaxebm.objectives.gaussian_proposal` with a ``widening`` above 1.
      num_samples: samples x' of one update.
      weight: w >= 0.

    Returns:
      An objective without chains. Metrics: ``energy_data``; ``log_mass``, the estimate of log of the integral
      of exp(-U), which goes to 0; ``log_likelihood``, mean -U(x_data) - log_mass, in nats; and
      ``sample_efficiency``, (sum w)^2 / (m sum w^2), the share of the m samples that count.

    Raises:
      TypeError: if ``energy`` is no such function, or the proposal lacks one of its functions.
      ValueError: if ``num_samples`` is no integer of at least 1, or ``weight`` not one number of at least 0;
        from the loss, if the samples have not the shape of the data.

    Example:
      >>> import numpy as np
      >>> from jaxebm.energies import offset_params, with_offset
      >>> from jaxebm.objectives.proposals import gaussian_proposal
      >>> data = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
      >>> energy = with_offset(lambda scale, x: 0.5 * jnp.sum((x / scale) ** 2))
      >>> objective = self_normalised(energy, gaussian_proposal(data, widening=1.5), num_samples=5000)
      >>> params = offset_params(jnp.array(1.0), 0.5 * float(np.log(2 * np.pi)))
      >>> batch, none = Batch(None, None, jnp.asarray(data)), Negatives(None, None)
      >>> loss, metrics = objective.loss(params, jax.random.key(0), batch, none)
      >>> bool(jnp.abs(metrics["log_mass"]) < 0.05)
      True

    Reference:
      Senetaire, Jeha, Mattei & Frellsen 2025 (arXiv 2503.07021), the self-normalised log-likelihood.
    """
    learnt = checked_energy(energy, proposal, "num_samples", num_samples, weight)
    options = {"conditional": learnt.conditional, "objective": "self_normalised"}

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        x, _ = examples_of(batch, **options)
        key_samples, key_energy = jax.random.split(rng_key)
        samples = draw(proposal, key_samples, num_samples, x)
        energies, energies_of_samples = energies_with_noise(
            learnt, params, key_energy, batch, samples, options["objective"]
        )
        energy_data = jnp.mean(energies)
        log_weights = -energies_of_samples - log_densities(proposal, samples)
        value = energy_data + jnp.mean(jnp.exp(log_weights)) - 1
        log_total = jax.nn.logsumexp(log_weights)
        log_mass = log_total - jnp.log(num_samples)
        metrics = {
            "energy_data": energy_data,
            "log_mass": log_mass,
            "log_likelihood": -energy_data - log_mass,
            "sample_efficiency": jnp.exp(log_total + log_mass - jax.nn.logsumexp(2 * log_weights)),
        }
        return weight * value, metrics

    return Objective(learnt.energy, loss)
