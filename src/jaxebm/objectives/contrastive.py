"""Maximum likelihood by contrast: the loss lowers the energy of data and raises that of the model's samples.

d log p(x) / d theta = -dE(x)/d theta + E_{x'~p}[dE(x')/d theta], so descending
``mean E(x_data) - mean E(x_model)`` in theta ascends the log-likelihood when ``x_model`` are samples of the
model. `jaxebm.objectives.negatives` defines where those samples come from (data, noise, a buffer).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, Metrics, Params, Position

__all__ = ["Contrast", "batch_energy", "binary_energy_loss", "contrastive_loss"]

Contrast: TypeAlias = Literal["likelihood", "binary"]
"""How the energies of data and of samples are compared: `contrastive_loss` or `binary_energy_loss`."""


def batch_energy(energy: EnergyFn, params: Params, xs: Position) -> Array:
    """Energies of a batch: ``vmap`` over the leading axis, under the name that batch normalisation reads.

    Args:
      energy: E(params, x) of one example.
      params: its parameters.
      xs: a batch, each leaf ``(n, ...)``.

    Returns:
      The energies, shape ``(n,)``.

    Raises:
      TypeError: if ``energy`` is not a function of two arguments, or the energy of an example no real number.
      ValueError: if ``xs`` is not a batch of at least one example, or the energy of one example not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> batch_energy(lambda params, x: params * jnp.sum(x**2), 0.5, jnp.ones((3, 2))).tolist()
      [1.0, 1.0, 1.0]
    """
    return _energies("energy", energy, params, xs)


def _energies(name: str, energy: EnergyFn, params: Params, xs: Position) -> Array:
    """Energies of a batch; errors name the caller's argument."""
    checks.function(name, energy, "params", "x")
    checks.batch_length("xs", xs)

    def one(params: Params, x: Position) -> Array:
        value = energy(params, x)
        if np.ndim(value):
            raise ValueError(
                f"{name} returned shape {np.shape(value)} for one example: an energy returns one scalar, "
                "shape (). For class logits use jaxebm.energies.marginal_energy(logits)."
            )
        checks.scalar_energy(name, value)
        return value

    with noted(name, params=params, xs=xs):
        return jax.vmap(one, (None, 0), axis_name=BATCH_AXIS)(params, xs)


@contextmanager
def noted(name: str, **arguments: Any) -> Iterator[None]:
    """Adds to an error of a user's function which argument it is, and on what shapes it was called."""
    try:
        with checks.shapes_noted(**arguments):
            yield
    except Exception as error:
        error.add_note(f"It was raised where {name}({', '.join(arguments)}) was called.")
        raise


def check_same_example_shape(name_a: str, a: Position, name_b: str, b: Position) -> None:
    """Raises ``ValueError`` unless both are batches, of examples of one structure and one shape."""
    checks.batch_length(name_a, a)
    checks.batch_length(name_b, b)
    shapes_a, shapes_b = (jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], tree) for tree in (a, b))
    if shapes_a != shapes_b:
        raise ValueError(
            f"{name_a} holds examples of shape {shapes_a} and {name_b} of shape {shapes_b}: "
            "both must be batches of the same kind of example, with the batch axis first."
        )


def energies_of_both(
    energy: EnergyFn, params: Params, x_data: Position, x_model: Position, name: str = "energy"
) -> tuple[Array, Array]:
    """Energies of data ``(n,)`` and of samples ``(m,)``, through which no gradient flows to the samples."""
    for batch, x in (("x_data", x_data), ("x_model", x_model)):
        checks.real_arrays(batch, x)
        checks.floating(batch, x)
    check_same_example_shape("x_data", x_data, "x_model", x_model)
    both = (x_data, jax.lax.stop_gradient(x_model))
    energy_data, energy_model = (_energies(name, energy, params, x) for x in both)
    return energy_data, energy_model


def check_contrast(contrast: Contrast) -> None:
    """Raises ``ValueError`` unless it is one of `Contrast`."""
    checks.one_of("contrast", contrast, get_args(Contrast))


def compare(energy_data: Array, energy_model: Array, contrast: Contrast) -> tuple[Array, Metrics]:
    """Returns the loss of the comparison of data with samples (lower is better), and its metrics."""
    mean_data, mean_model = jnp.mean(energy_data), jnp.mean(energy_model)
    gap = mean_data - mean_model
    metrics = {"energy_data": mean_data, "energy_model": mean_model, "energy_gap": gap}
    if contrast == "likelihood":
        return gap, metrics
    # -log sigmoid(-E) = softplus(E), and -log(1 - sigmoid(-E)) = softplus(-E).
    cross_entropy = jnp.mean(jax.nn.softplus(energy_data)) + jnp.mean(jax.nn.softplus(-energy_model))
    return cross_entropy, metrics | {"binary_cross_entropy": cross_entropy}


def mean_squares(energy_data: Array, energy_model: Array) -> Array:
    """The energy-L2 term: mean E(x)^2 over data, and over samples, added."""
    return jnp.mean(energy_data**2) + jnp.mean(energy_model**2)


def contrastive_loss(
    energy: EnergyFn,
    params: Params,
    x_data: Position,
    x_model: Position,
    *,
    energy_l2: float | Array = 0.0,
) -> tuple[Array, Metrics]:
    """Contrast between data and samples, whose gradient estimates that of the negative log-likelihood.

    loss = mean_i E(x_i) - mean_j E(stop_gradient(x'_j)) + alpha (mean_i E(x_i)^2 + mean_j E(x'_j)^2)

    Its value is not a likelihood (it is near zero when learning goes well): only its gradient has a meaning.

    Args:
      energy: E(params, x) of one example.
      params: the parameters, with respect to which the loss is differentiated.
      x_data: examples, each leaf ``(n, ...)``.
      x_model: samples of the model, each leaf ``(m, ...)``; gradients through them are stopped here.
      energy_l2: alpha >= 0, which keeps energies near zero; about 0.1 to 1 where training drifts.

    Returns:
      ``(loss, metrics)``: the scalar loss and ``energy_data``, ``energy_model``, ``energy_gap`` (data minus
      model).

    Raises:
      TypeError: if ``x_data`` or ``x_model`` is not floating-point, or ``energy`` no function of real values.
      ValueError: if either holds no example, their examples differ in shape, ``energy`` is not scalar or
        ``energy_l2`` is negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> energy = lambda params, x: 0.5 * params * jnp.sum(x**2)
      >>> loss, metrics = contrastive_loss(energy, 1.0, jnp.ones((4, 2)), 2.0 * jnp.ones((8, 2)))
      >>> float(loss), sorted(metrics)
      (-3.0, ['energy_data', 'energy_gap', 'energy_model'])

    Reference:
      Hinton 2002, "Training products of experts by minimizing contrastive divergence"; Du & Mordatch 2019
      (arXiv 1903.08689), equation 2 and, for the energy-L2 term, section 4.
    """
    return energy_loss(energy, params, x_data, x_model, energy_l2, "likelihood")


def binary_energy_loss(
    energy: EnergyFn,
    params: Params,
    x_data: Position,
    x_model: Position,
    *,
    energy_l2: float | Array = 0.0,
) -> tuple[Array, Metrics]:
    """Cross-entropy of classifying data against samples by their energy alone, D(x) = sigmoid(-E(x)).

    loss = mean_i softplus(E(x_i)) + mean_j softplus(-E(stop_gradient(x'_j)))
         + alpha (mean_i E(x_i)^2 + mean_j E(x'_j)^2)

    Against negatives of a fixed density q the minimiser is E(x) = log q(x) - log p_data(x): a density ratio,
    and not the energy of the data unless q is uniform. The loss is bounded below. Its gradient is small on
    examples that are already classified correctly, so energies do not diverge as under `contrastive_loss`.
    That suits negatives which descend E far from the data, as in adversarial training. Where E is 0 the loss
    is 2 log 2, and its gradient half of that of `contrastive_loss`.

    Args:
      energy: E(params, x) of one example.
      params: the parameters, with respect to which the loss is differentiated.
      x_data: examples, each leaf ``(n, ...)``.
      x_model: negatives, each leaf ``(m, ...)``; gradients through them are stopped here.
      energy_l2: alpha >= 0.

    Returns:
      ``(loss, metrics)``: the scalar loss, the metrics of `contrastive_loss`, and ``binary_cross_entropy`` in
      nats, which is 2 log 2 = 1.386 where all energies are 0.

    Raises:
      TypeError: if ``x_data`` or ``x_model`` is not floating-point, or ``energy`` no function of real values.
      ValueError: if either holds no example, their examples differ in shape, ``energy`` is not scalar or
        ``energy_l2`` is negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> energy = lambda params, x: params * jnp.sum(x)
      >>> loss, metrics = binary_energy_loss(energy, 0.0, jnp.ones((4, 2)), 2.0 * jnp.ones((8, 2)))
      >>> round(float(loss), 3), "binary_cross_entropy" in metrics
      (1.386, True)

    Reference:
      Yin, Li & Rohde 2022 (arXiv 2012.06568), "Learning energy-based models with adversarial training"; for a
      classifier's energy, Yin et al. 2025 (arXiv 2510.13872), dual adversarial training.
    """
    return energy_loss(energy, params, x_data, x_model, energy_l2, "binary")


def energy_loss(
    energy: EnergyFn,
    params: Params,
    x_data: Position,
    x_model: Position,
    energy_l2: float | Array,
    contrast: Contrast,
    name: str = "energy",
) -> tuple[Array, Metrics]:
    """The loss of a comparison; ``name`` is the caller's argument with the energy, for messages."""
    checks.non_negative_number("energy_l2", energy_l2)
    both = energies_of_both(energy, params, x_data, x_model, name)
    loss, metrics = compare(*both, contrast)
    return loss + energy_l2 * mean_squares(*both), metrics
