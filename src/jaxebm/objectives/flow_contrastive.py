"""Flow-contrastive estimation: the noise against which an energy learns is a flow that learns, too."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.examples import examples_of, learnt_energy
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.noise_contrastive import classification
from jaxebm.objectives.objective import Batch, Objective
from jaxebm.objectives.proposals import as_noise, energies_with_noise
from jaxebm.types import Array, EnergyFn, Metrics, Params, Position

__all__ = ["flow_contrastive"]


def flow_contrastive(
    energy: EnergyFn,
    flow: Any,
    *,
    accuracy: float | Array = 0.6,
    alternate: bool = False,
    likelihood_weight: float | Array = 0.0,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Flow-contrastive estimation: noise-contrastive estimation against a flow that follows the data.

    .. math:: L = \mathrm{mean}\, \mathrm{softplus}(-G(x_{data}))
        + \mathrm{mean}\, \mathrm{softplus}(G(x_{flow})), \qquad G(x) = -E(x) - \log q(x)

    The energy descends L, which makes exp(-E) the normalised density of the data, whatever the flow q is. The
    flow ascends L, through its density and through its samples, while the classifier sigmoid(G) tells more
    than ``accuracy`` of the batch apart; that lowers the Jensen-Shannon divergence between q and the data.
    The nearer q is to the data the better the energy learns. One backward pass gives both gradients; each
    player follows its own, with its own sign.

    Parameters are ``{"energy": ..., "flow": ...}``, and ``objective.energy`` reads the first. One optimiser
    has a learning rate for each:

        optimizer = optax.partition(
            {"energy": optax.adam(1e-3), "flow": optax.adam(7e-4)}, {"energy": "energy", "flow": "flow"}
        )

    Args:
      energy: E(params, x) of one example that can take any value (a network with a bias, or
        `jaxebm.energies.with_offset`), or an energy of ``joint_energy``, which learns -log p(x | y).
      flow: a Flax module with the methods ``log_density(x)`` and
        ``sample_and_log_density(rng_key, num_samples)``, such as `jaxebm.energies.CouplingFlow`.
      accuracy: share of data and samples that must be told apart before the flow learns, in [0, 1]; 0 lets
        it learn always, 1 never.
      alternate: whether the energy rests in the updates in which the flow learns, as in public code of the
        method. Energies that learn in all updates were nearer to the data: KL of 0.014 against 0.023 nats on
        two moons, and 0.025 against 0.091 on eight Gaussians (one seed, 3000 updates, a network of 3 x 128).
      likelihood_weight: v >= 0, adds the maximum likelihood of the flow, -v mean log q(x_data), in all
        updates: it brings a flow that starts far from the data to them.
      weight: w >= 0, of all terms.

    Returns:
      An objective without chains. Metrics: ``accuracy``, ``flow_learns`` (0 or 1), ``energy_data``,
      ``energy_noise``, and ``flow_log_likelihood``, mean log q(x_data) in nats.

    Raises:
      TypeError: if ``energy`` is no such function, or ``flow`` no module with these methods.
      ValueError: if ``accuracy`` lies outside [0, 1], or a weight is not one number of at least 0; from the
        loss, if the parameters are no such dict, or the samples have not the shape of the data.

    Example:
      >>> from jaxebm.energies import CouplingFlow, offset_params, with_offset
      >>> flow = CouplingFlow(num_layers=1, widths=(4,))
      >>> energy = with_offset(lambda precision, x: 0.5 * precision * jnp.sum(x**2))
      >>> objective = flow_contrastive(energy, flow)
      >>> key = jax.random.key(0)
      >>> variables = jax.jit(flow.init)(key, jnp.zeros(2))
      >>> params = {"energy": offset_params(jnp.array(1.0)), "flow": variables}
      >>> batch, none = Batch(None, None, jnp.ones((8, 2))), Negatives(None, None)
      >>> sorted(jax.jit(objective.loss)(params, key, batch, none)[1])
      ['accuracy', 'energy_data', 'energy_noise', 'flow_learns', 'flow_log_likelihood']

    Reference:
      Gao, Nijkamp, Kingma, Xu, Dai & Wu 2020 (arXiv 1912.00589), section 3.
    """
    learnt = learnt_energy(energy)
    _check_flow(flow)
    checks.in_range("accuracy", accuracy, 0.0, 1.0)
    checks.one_number("accuracy", accuracy)
    checks.boolean("alternate", alternate)
    checks.non_negative_number("likelihood_weight", likelihood_weight)
    checks.non_negative_number("weight", weight)
    options = {"conditional": learnt.conditional, "objective": "flow_contrastive"}

    def contrast(params: Params, rng_key: Array, batch: Batch) -> tuple[Array, Metrics]:
        """L and the metrics, differentiable in both sets of parameters."""
        x, labels = examples_of(batch, **options)
        length = len(labels)
        key_noise, key_energy = jax.random.split(rng_key)
        noise, log_q_noise = flow.apply(params["flow"], key_noise, length, method="sample_and_log_density")
        noise = as_noise("flow.sample_and_log_density", noise, length, x)
        log_q_data = log_densities(params["flow"], x)
        energy_data, energy_noise = energies_with_noise(
            learnt, params["energy"], key_energy, batch, noise, options["objective"]
        )
        value, found = classification(-energy_data - log_q_data, -energy_noise - log_q_noise)
        metrics = {
            "accuracy": found,
            "energy_data": jnp.mean(energy_data),
            "energy_noise": jnp.mean(energy_noise),
            "flow_log_likelihood": jnp.mean(log_q_data),
        }
        return value, metrics

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        _check_params(params)
        fixed = jax.lax.stop_gradient({"energy": params["energy"], "flow": params["flow"]})
        value, pullback, metrics = jax.vjp(lambda both: contrast(both, rng_key, batch), fixed, has_aux=True)
        (slopes,) = pullback(jnp.ones_like(value))
        flow_learns = (metrics["accuracy"] > accuracy).astype(value.dtype)
        factors = {"energy": 1 - flow_learns if alternate else 1.0, "flow": -flow_learns}
        directions = {
            player: jax.tree.map(
                lambda slope, factor=factor: (factor * slope).astype(slope.dtype), slopes[player]
            )
            for player, factor in factors.items()
        }
        value = weight * with_gradient(value, {player: params[player] for player in factors}, directions)
        if checks.is_traced(likelihood_weight) or likelihood_weight != 0:
            x, _ = examples_of(batch, **options)
            value -= weight * likelihood_weight * jnp.mean(log_densities(params["flow"], x))
        return value, metrics | {"flow_learns": flow_learns}

    def log_densities(flow_params: Params, xs: Position) -> Array:
        return jax.vmap(lambda x: flow.apply(flow_params, x, method="log_density"))(xs)

    def energy_of(params: Params, x: Position, label: Array) -> Array:
        _check_params(params)
        return learnt.energy(params["energy"], x, label)

    return Objective(energy_of, loss)


@jax.custom_jvp
def with_gradient(value: Array, params: Params, slopes: Params) -> Array:
    """Returns ``value``, whose gradient in ``params`` is ``slopes``: two players share one backward pass."""
    del params, slopes
    return value


@with_gradient.defjvp
def _with_gradient_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    value, _, slopes = primals
    products = jax.tree.map(jnp.vdot, slopes, tangents[1])
    return value, sum(jax.tree.leaves(products), jnp.zeros_like(value)).astype(value.dtype)


def _check_flow(flow: Any) -> None:
    needed = ("apply", "log_density", "sample_and_log_density")
    missing = [name for name in needed if not callable(getattr(flow, name, None))]
    if missing or isinstance(flow, type):
        raise TypeError(
            f"flow is {'the class' if isinstance(flow, type) else 'of type'} "
            f"{getattr(flow, '__name__', type(flow).__name__)}"
            + (f", which has no {' and no '.join(missing)}" if missing else "")
            + ": flow must be a Flax module with the methods log_density(x) and "
            "sample_and_log_density(rng_key, num_samples), such as jaxebm.energies.CouplingFlow()."
        )


def _check_params(params: Any) -> None:
    if not (isinstance(params, Mapping) and {"energy", "flow"} <= set(params)):
        found = f"the entries {sorted(params)}" if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f"params has {found}: a dict with the entries 'energy' and 'flow' is needed, the parameters of "
            "the energy and the variables of the flow."
        )
