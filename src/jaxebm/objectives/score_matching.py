r"""Score matching: the gradient of the energy learns that of -log p(x), by second derivatives of the energy.

    J = mean [ norm(dE/dx)^2 / 2 - tr d^2 E/dx^2 ]

is half the mean squared difference of dE/dx and -d log p(x)/dx, up to a constant of the data. So neither Z
nor chains are needed. `score_matching` computes it, exactly or with random probes of the trace,
`sliced_score_matching` its projections on random directions, and `finite_difference_score_matching` these
from energies alone, up to an error of order step^2. Where the model can be the density of the data, the
parameters for which it is minimise J.

They see the data through derivatives at the data alone, which sets three limits:

* The density must be smooth and vanish at the edge of its support. Pixels that pile up at 0 or 1, integers
  and repeated examples have infinite curvature, and the loss falls without bound. Add noise
  (``learner(noise=...)``), or take `jaxebm.objectives.denoising_score_matching`.
* The energy must have second derivatives: use swish, softplus or gelu. The Laplacian of a network of ``relu``
  is zero wherever it is defined. `score_matching` and `sliced_score_matching` refuse an energy whose second
  derivatives are zero by its program; they cannot see that only a part of it is.
* The weights of modes that are far apart hardly show in the derivatives: they are learnt slowly or not at
  all. Every objective of scores alone has this limit.

At the truth, mean tr d^2 E/dx^2 = mean norm(dE/dx)^2: the metric ``laplacian`` is ``score_norm`` squared.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.examples import LearntEnergy, example_size, learnt_energy, over_examples
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.neighbours import energies_around
from jaxebm.objectives.objective import Batch, Loss, Objective
from jaxebm.objectives.second_derivatives import (
    Slope,
    check_curved,
    inner_product,
    on_the_sphere,
    signs,
    square_norm,
    with_curvatures,
    with_laplacian,
)
from jaxebm.trees import widened
from jaxebm.types import Array, EnergyFn, JointEnergyFn, Metrics, Params, Position

__all__ = ["Trace", "finite_difference_score_matching", "score_matching", "sliced_score_matching"]

Trace: TypeAlias = Literal["exact", "hutchinson"]
"""How the trace of the Hessian is computed: by every coordinate, or by random probes."""


def score_matching(
    energy: EnergyFn | JointEnergyFn,
    *,
    trace: Trace = "exact",
    num_probes: int = 1,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Explicit score matching: the score of the data, without its density.

    .. math:: L = w \, \frac{1}{n} \sum_i \Big[ \tfrac{1}{2} \|\nabla E(x_i)\|^2
              - \operatorname{tr} \nabla^2 E(x_i) \Big]

    ``trace="exact"`` sums all d second derivatives; ``"hutchinson"`` takes the mean of v' (d^2 E/dx^2) v over
    random signs v, which is unbiased, and exact where the Hessian is diagonal. For each example the first
    costs d products of the Hessian with a vector and one gradient, the second ``num_probes`` products and one
    gradient; a product costs about as much as a gradient. So take the exact one up to some ten coordinates.
    What data and energies this needs is said in `jaxebm.objectives.score_matching`.

    Args:
      energy: E(params, x) of one example, twice differentiable in x; or E(params, x, y) of
        `jaxebm.energies.joint_energy`, which learns p(x | y) from labelled examples.
      trace: ``"exact"`` or ``"hutchinson"``.
      num_probes: vectors v for each example, drawn anew in every update; with ``"hutchinson"`` alone.
      weight: w >= 0.

    Returns:
      An objective that needs no negatives. Its metrics: ``score_norm``, the root of the mean square of
      norm(dE/dx), and ``laplacian``, the mean trace.

    Raises:
      TypeError: if ``energy`` is no function of parameters and an example, or the examples are not
        floating-point.
      ValueError: if ``trace`` is unknown, ``num_probes`` no integer of at least 1, ``weight`` not one number
        of at least 0; from the loss, if all second derivatives of the energy are zero.

    Example:
      A Gaussian of precision k, for which the loss is k^2 norm(x)^2 / 2 - k d:

      >>> objective = score_matching(lambda k, x: 0.5 * k * jnp.sum(x**2))
      >>> batch = Batch(None, None, jnp.array([[1.0, 2.0], [0.0, 1.0]]))
      >>> loss, metrics = objective.loss(2.0, jax.random.key(0), batch, Negatives(None, None))
      >>> float(loss), float(metrics["laplacian"])
      (2.0, 4.0)

    Reference:
      Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching", theorem 1;
      Hutchinson 1989, for the trace.
    """
    learnt = learnt_energy(energy)
    checks.one_of("trace", trace, get_args(Trace))
    checks.positive_integer("num_probes", num_probes)
    checks.non_negative_number("weight", weight)

    def one(slope: Slope, rng_key: Array, x: Position) -> tuple[Array, Array]:
        if trace == "exact":
            gradient, laplacian = with_laplacian(slope, x)
        else:
            gradient, curvatures = with_curvatures(slope, x, signs(rng_key, x, num_probes))
            laplacian = jnp.mean(curvatures)
        return square_norm(gradient), laplacian

    return Objective(learnt.energy, _loss_of_slopes(learnt, one, weight, "score_matching"))


def sliced_score_matching(
    energy: EnergyFn | JointEnergyFn,
    *,
    num_projections: int = 1,
    variance_reduced: bool = True,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Sliced score matching: scores compared along random directions.

    .. math:: L = w \, \frac{1}{n m} \sum_{ij} \Big[ \tfrac{1}{2} (v_{ij}^\top \nabla E(x_i))^2
              - v_{ij}^\top \nabla^2 E(x_i) \, v_{ij} \Big]

    with directions v of random signs, E[v v'] = I, so that its mean is the loss of `score_matching`. The
    variance-reduced form puts norm(dE/dx)^2, the mean of the first square, in its place. It costs nothing
    more here, and is `score_matching` with Hutchinson's trace. Both cost one gradient and
    ``num_projections`` products of the Hessian with a vector for each example.

    Args:
      energy: E(params, x) of one example, twice differentiable in x; or E(params, x, y) of
        `jaxebm.energies.joint_energy`, which learns p(x | y) from labelled examples.
      num_projections: m, directions for each example, drawn anew in every update.
      variance_reduced: whether the square is replaced by its mean.
      weight: w >= 0.

    Returns:
      An objective that needs no negatives. Its metrics are those of `score_matching`; without the variance
      reduction, ``score_norm`` is that along the directions, of the same mean square.

    Raises:
      TypeError: if ``energy`` is no function of parameters and an example, ``variance_reduced`` not True or
        False, or the examples are not floating-point.
      ValueError: if ``num_projections`` is no integer of at least 1, ``weight`` not one number of at least 0;
        from the loss, if all second derivatives of the energy are zero.

    Example:
      >>> objective = sliced_score_matching(lambda k, x: 0.5 * k * jnp.sum(x**2))
      >>> batch = Batch(None, None, jnp.array([[1.0, 2.0], [0.0, 1.0]]))
      >>> float(objective.loss(2.0, jax.random.key(0), batch, Negatives(None, None))[0])
      2.0

    Reference:
      Song, Garg, Shi & Ermon 2019 (arXiv 1905.07088), equations 7 and 8.
    """
    learnt = learnt_energy(energy)
    checks.positive_integer("num_projections", num_projections)
    checks.boolean("variance_reduced", variance_reduced)
    checks.non_negative_number("weight", weight)

    def one(slope: Slope, rng_key: Array, x: Position) -> tuple[Array, Array]:
        directions = signs(rng_key, x, num_projections)
        gradient, curvatures = with_curvatures(slope, x, directions)
        if variance_reduced:
            square = square_norm(gradient)
        else:
            square = jnp.mean(jnp.square(jax.vmap(inner_product, (None, 0))(gradient, directions)))
        return square, jnp.mean(curvatures)

    return Objective(learnt.energy, _loss_of_slopes(learnt, one, weight, "sliced_score_matching"))


def finite_difference_score_matching(
    energy: EnergyFn | JointEnergyFn,
    *,
    step: float | Array = 0.05,
    num_directions: int = 1,
    weight: float | Array = 1.0,
) -> Objective:
    r"""Sliced score matching from differences of energies: no derivative with respect to x.

    .. math:: L = w \, \frac{1}{n m} \sum_{ij} \frac{d}{\epsilon^2} \Big[ \tfrac{1}{8} (E^+ - E^-)^2
              - (E^+ + E^- - 2 E) \Big], \qquad E^\pm = E(x_i \pm \epsilon u_{ij})

    with u uniform on the unit sphere. Times the number d of coordinates, so that it is the loss of
    `score_matching` up to an error of order epsilon^2. It costs 1 + 2 m energies for each example, evaluated
    as one batch.

    A smaller step is less biased and more noisy: rounding changes each term by about 4 d r |E| / epsilon^2,
    r = 6e-8 for float32. So choose epsilon as a fraction of the smallest width of the density, such as 1/20,
    and keep energies from growing.

    Args:
      energy: E(params, x) of one example, both float32 or wider; or E(params, x, y) of
        `jaxebm.energies.joint_energy`, which learns p(x | y) from labelled examples.
      step: epsilon > 0, a length in the units of x.
      num_directions: m, directions u for each example, drawn anew in every update.
      weight: w >= 0.

    Returns:
      An objective that needs no negatives. Its metrics are those of `score_matching`, from differences.

    Raises:
      TypeError: if ``energy`` is no function of parameters and an example, the examples are not
        floating-point, or the examples or their energies are narrower than float32.
      ValueError: if ``step`` is not one number above 0, ``num_directions`` no integer of at least 1, or
        ``weight`` not one number of at least 0.

    Example:
      >>> objective = finite_difference_score_matching(lambda k, x: 0.5 * k * x**2)
      >>> batch = Batch(None, None, jnp.array([1.0, 2.0]))
      >>> loss, metrics = objective.loss(2.0, jax.random.key(0), batch, Negatives(None, None))
      >>> round(float(loss), 2)  # k^2 x^2 / 2 - k
      3.0

    Reference:
      Pang, Xu, Li, Song, Ermon & Zhu 2020 (arXiv 2007.03317), equation 9 with the step inside the loss.
    """
    learnt = learnt_energy(energy)
    checks.positive_number("step", step)
    checks.positive_integer("num_directions", num_directions)
    checks.non_negative_number("weight", weight)
    name = "finite_difference_score_matching"

    def points_around(rng_key: Array, x: Position) -> Position:
        def move(leaf: Array, direction: Array) -> Array:
            if jnp.finfo(leaf.dtype).bits < 32:
                raise TypeError(
                    f"the examples have dtype {leaf.dtype}, to which points that are a step apart would be "
                    f"rounded; float32 or wider is needed."
                )
            both = jnp.concatenate([direction, -direction])
            return jnp.concatenate([leaf[None], (widened(leaf)[None] + step * both).astype(leaf.dtype)])

        return jax.tree.map(move, x, on_the_sphere(rng_key, x, num_directions))

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        energies = energies_around(learnt, points_around, params, rng_key, batch, objective=name)
        if jnp.finfo(energies.dtype).bits < 32:
            raise TypeError(
                f"energy returned dtype {energies.dtype}: its digits are lost in differences between points "
                f"that are a step apart; float32 or wider is needed."
            )
        here, forward, backward = jnp.split(energies, [1, 1 + num_directions], axis=1)
        size = example_size(batch, conditional=learnt.conditional)
        slopes = (forward - backward) / (2 * step)
        curvatures = ((forward - here) + (backward - here)) / step**2
        return _loss(size * jnp.mean(jnp.square(slopes)), size * jnp.mean(curvatures), weight)

    return Objective(learnt.energy, loss)


def _loss_of_slopes(
    learnt: LearntEnergy,
    one: Callable[[Slope, Array, Position], tuple[Array, Array]],
    weight: float | Array,
    name: str,
) -> Loss:
    """The loss of ``one(dE/dx, rng_key, x)``, which returns a square and a trace for one example."""

    def of_example(params: Params, rng_key: Array, x: Position, label: Array) -> tuple[Array, Array]:
        slope = jax.grad(lambda position: learnt.energy(params, position, label))
        check_curved(slope, x)
        return one(slope, rng_key, x)

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        squares, traces = over_examples(
            of_example, params, rng_key, batch, conditional=learnt.conditional, objective=name
        )
        return _loss(jnp.mean(squares), jnp.mean(traces), weight)

    return loss


def _loss(square: Array, laplacian: Array, weight: float | Array) -> tuple[Array, Metrics]:
    """w (mean square / 2 - mean trace), and the metrics of both."""
    metrics = {"score_norm": jnp.sqrt(square), "laplacian": laplacian}
    return weight * (0.5 * square - laplacian), metrics
