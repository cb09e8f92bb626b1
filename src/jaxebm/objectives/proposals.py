"""Proposals: noise that can be drawn, and whose log-density is known.

Objectives that compare data with known noise (`jaxebm.objectives.noise_contrastive`, ``self_normalised``)
take any object with two functions, ``sample(rng_key, num_samples)`` and ``log_density(x)``: a `Proposal`, or
a density of `jaxebm.data.TOY_DENSITIES`. The closer it is to the data, the lower their variance; where it is
too narrow, the energy beyond it is not learnt.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxebm import checks
from jaxebm.cpu.noise import standard_normal
from jaxebm.energies.target import LOG_TWO_PI, AnalyticTarget
from jaxebm.objectives.contrastive import noted
from jaxebm.objectives.examples import LearntEnergy, examples_of, learnt_energy, over_examples
from jaxebm.objectives.objective import Batch
from jaxebm.trees import widened
from jaxebm.types import Array, Params, Position

__all__ = ["Covariance", "Proposal", "ProposalLike", "check_proposal", "gaussian_proposal", "proposal_of"]

Covariance: TypeAlias = Literal["full", "diagonal"]
"""Which covariance a Gaussian proposal has."""


class ProposalLike(Protocol):
    """Whatever has the two functions of a `Proposal`."""

    @property
    def sample(self) -> Callable[[Array, int], Position]:
        """``(rng_key, num_samples) -> xs``."""
        ...

    @property
    def log_density(self) -> Callable[[Position], Array]:
        """``x -> log q(x)``."""
        ...


class Proposal(NamedTuple):
    """A distribution q of noise.

    Attributes:
      sample: ``(rng_key, num_samples) -> xs``, independent draws, each leaf ``(num_samples, ...)``.
      log_density: ``x -> log q(x)``, normalised, shape ``()``, of one x.

    Example:
      >>> uniform = Proposal(
      ...     sample=lambda rng_key, num_samples: jax.random.uniform(rng_key, (num_samples, 2)),
      ...     log_density=lambda x: jnp.where(jnp.all((x >= 0) & (x < 1)), 0.0, -jnp.inf),
      ... )
      >>> float(uniform.log_density(jnp.array([0.5, 0.2])))
      0.0
    """

    sample: Callable[[Array, int], Position]
    log_density: Callable[[Position], Array]


def gaussian_proposal(
    data: Position,
    *,
    widening: float = 1.0,
    covariance: Covariance = "full",
    regularisation: float = 1e-4,
) -> Proposal:
    r"""Fits a Gaussian to data, and widens it.

    .. math:: q = N(\mu, w^2 (S + \lambda I)), \qquad \mu = \tfrac1n \sum_i x_i, \qquad
        S = \tfrac1n \sum_i (x_i - \mu)(x_i - \mu)^T

    With a diagonal covariance S has its diagonal alone: for images, where the (d, d) matrix of a full one
    costs memory and time. A widening of 1 to 2 keeps the weights p / q of the tails bounded.

    Args:
      data: examples in the scale that the model sees, each leaf ``(n, ...)``, floating-point; any pytree.
      widening: w > 0, the factor of all standard deviations.
      covariance: ``"full"`` or ``"diagonal"``.
      regularisation: lambda > 0, in squared units of the data; it makes the covariance positive definite.

    Returns:
      The proposal. Its draws have the shapes and dtypes of the data.

    Raises:
      TypeError: if the data are no floating-point arrays.
      ValueError: if the data hold no example or non-finite ones, ``widening`` or ``regularisation`` is not
        one number above 0, or ``covariance`` is unknown.

    Example:
      >>> proposal = gaussian_proposal(np.random.default_rng(0).normal(size=(500, 3)), widening=1.5)
      >>> proposal.sample(jax.random.key(0), 7).shape
      (7, 3)
      >>> float(proposal.log_density(jnp.zeros(3))) > float(proposal.log_density(jnp.ones(3)))
      True

    Reference:
      Gutmann & Hyvarinen 2012 (JMLR 13, pages 307 to 361), on the choice of the noise.
    """
    checks.real_arrays("data", data)
    checks.floating("data", data)
    checks.batch_length("data", data, "a batch of examples, (n, ...),")
    checks.finite("data", data)
    checks.positive_number("widening", widening)
    checks.positive_number("regularisation", regularisation)
    checks.one_of("covariance", covariance, get_args(Covariance))
    rows = [np.asarray(leaf).astype(np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(data)]
    flat = np.concatenate(rows, axis=1)
    centre = flat.mean(axis=0)
    example = jax.tree.map(lambda leaf: jnp.zeros(np.shape(leaf)[1:], jnp.result_type(leaf)), data)
    # float64 on the host: a covariance of 784 pixels has eigenvalues that float32 rounds off.
    if covariance == "diagonal":
        scale = widening * np.sqrt(flat.var(axis=0) + regularisation)
        return _gaussian(example, centre, scale, 1 / scale, np.sum(np.log(scale)))
    offsets = flat - centre
    matrix = offsets.T @ offsets / len(flat) + regularisation * np.eye(len(centre))
    factor = widening * np.linalg.cholesky(matrix)
    return _gaussian(example, centre, factor, np.linalg.inv(factor), np.sum(np.log(np.diagonal(factor))))


def _gaussian(
    example: Position, centre: np.ndarray, factor: np.ndarray, whitening: np.ndarray, log_scale: float
) -> Proposal:
    """N(centre, L L^T) in the shape of an example; ``factor`` is L (d, d), or its diagonal (d,)."""
    zeros, unflatten = ravel_pytree(example)
    dtype = jnp.promote_types(zeros.dtype, jnp.float32)
    mean, forward, backward = (jnp.asarray(value, dtype) for value in (centre, factor, whitening))
    log_normaliser = float(log_scale + 0.5 * centre.size * LOG_TWO_PI)

    def times(matrix: Array, xs: Array) -> Array:
        if matrix.ndim == 1:
            return matrix * xs
        # The rounding of a fast matrix product would make the density that of another Gaussian.
        return jnp.matmul(matrix, xs, precision=jax.lax.Precision.HIGHEST)

    def sample(rng_key: Array, num_samples: int) -> Position:
        checks.rng_key("rng_key", rng_key)
        checks.positive_integer("num_samples", num_samples)
        normal = standard_normal(rng_key, (num_samples, mean.size), dtype)
        return jax.vmap(lambda row: unflatten((mean + times(forward, row)).astype(zeros.dtype)))(normal)

    def log_density(x: Position) -> Array:
        checks.same_shapes("x", x, "one example of the data", example)
        white = times(backward, widened(ravel_pytree(x)[0]) - mean)
        return -0.5 * jnp.sum(white**2) - log_normaliser

    return Proposal(sample, log_density)


def proposal_of(target: AnalyticTarget) -> Proposal:
    """Returns an analytic target as a proposal: its exact sampler, and its normalised log-density.

    log q(x) = -E(x) - log Z.

    Args:
      target: such as `jaxebm.energies.gaussian_mixture`; its params are bound.

    Returns:
      The proposal.

    Raises:
      TypeError: if ``target`` is no analytic target.

    Example:
      >>> from jaxebm.energies import gaussian
      >>> proposal = proposal_of(gaussian([0.0, 1.0], [[2.0, 1.0], [1.0, 2.0]]))
      >>> proposal.sample(jax.random.key(0), 5).shape
      (5, 2)
    """
    checks.instance("target", target, AnalyticTarget, "Such as jaxebm.energies.gaussian(mean, covariance).")
    log_partition = target.log_partition(target.params)
    return Proposal(
        lambda rng_key, num_samples: target.sample(rng_key, target.params, num_samples),
        lambda x: -target.energy(target.params, x) - log_partition,
    )


def check_proposal(name: str, proposal: Any) -> None:
    """Raises ``TypeError`` unless ``proposal`` can be drawn from and has a density.

    Args:
      name: the argument's name, for the message.
      proposal: the argument.

    Raises:
      TypeError: if it has no function ``sample(rng_key, num_samples)`` or none ``log_density(x)``.

    Example:
      >>> check_proposal("proposal", gaussian_proposal(np.zeros((2, 1))))
    """
    kind = type(proposal).__name__
    if isinstance(proposal, AnalyticTarget):
        raise TypeError(f"{name} is an AnalyticTarget: give {name}=proposal_of(target).")
    for part, arguments, why in (
        ("sample", ("rng_key", "num_samples"), "it must give samples"),
        ("log_density", ("x",), "the density of its samples must be known"),
    ):
        function = getattr(proposal, part, None)
        if function is None:
            raise TypeError(
                f"{name} is of type {kind}, which has no {part}({', '.join(arguments)}): {why}. A Proposal "
                f"has both functions; gaussian_proposal(data) of jaxebm.objectives makes one."
            )
        checks.function(f"{name}.{part}", function, *arguments)


def draw(proposal: ProposalLike, rng_key: Array, num_samples: int, like: Position) -> Position:
    """Returns draws of a proposal in the shapes and dtypes of the batch ``like``, or raises."""
    with noted("proposal.sample", num_samples=num_samples):
        noise = proposal.sample(rng_key, num_samples)
    return as_noise("proposal.sample", noise, num_samples, like)


def as_noise(name: str, noise: Any, num_samples: int, like: Position) -> Position:
    """Returns ``noise`` in the dtypes of the batch ``like``; raises unless it is a batch of such examples."""
    checks.real_arrays(name, noise)
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_samples, *leaf.shape[1:]), leaf.dtype), like)
    found, needed = (jax.tree.map(np.shape, tree) for tree in (noise, wanted))
    if found != needed:
        raise ValueError(
            f"{name} gave {num_samples} examples of shapes {found}: {needed} is needed, as the data have it."
        )
    return jax.tree.map(lambda leaf, one: jnp.asarray(leaf).astype(one.dtype), noise, wanted)


def log_densities(proposal: ProposalLike, xs: Position) -> Array:
    """Returns log q of a batch, shape ``(n,)``, in float32 or wider."""

    def one(x: Position) -> Array:
        value = proposal.log_density(x)
        checks.scalar_energy("proposal.log_density", value)
        return widened(value)

    with noted("proposal.log_density", xs=xs):
        return jax.vmap(one)(xs)


def checked_energy(
    energy: Any, proposal: Any, counted: str, count: Any, weight: float | Array
) -> LearntEnergy:
    """Checks what objectives with a proposal take, and returns the energy; ``counted`` names the count."""
    learnt = learnt_energy(energy)
    check_proposal("proposal", proposal)
    checks.positive_integer(counted, count)
    checks.non_negative_number("weight", weight)
    return learnt


def energies_with_noise(
    learnt: LearntEnergy, params: Params, rng_key: Array, batch: Batch, noise: Position, objective: str
) -> tuple[Array, Array]:
    """Returns energies of the learnt examples and of noise, ``(n,)`` and ``(m,)``, from one pass.

    Noise takes the labels of the examples in turn; fewer draws than examples take those of examples that are
    evenly spread over the batch. The energies are float32 or wider.
    """
    x, labels = examples_of(batch, objective, conditional=learnt.conditional)
    length = len(labels)
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), x, noise)
    if learnt.conditional:
        labels = jnp.asarray(labels)
        count = checks.batch_length("noise", noise)
        turns = np.arange(count) % length if count >= length else np.arange(count) * length // count
        batch = Batch(both, jnp.concatenate([labels, labels[turns]]), both)
    else:
        batch = Batch(None, None, both)

    def of_one(params: Params, rng_key: Array, x: Position, label: Array) -> Array:
        del rng_key
        return widened(learnt.energy(params, x, label))

    energies = over_examples(
        of_one, params, rng_key, batch, conditional=learnt.conditional, objective=objective
    )
    return energies[:length], energies[length:]
