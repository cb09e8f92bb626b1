"""The KL term that contrastive divergence leaves out: how the samples depend on the parameters.

`jaxebm.objectives.contrastive_loss` stops gradients at the samples. The chain that made them depends on the
parameters too: this term trains the chains to end at low energies, and to spread out.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxebm import checks
from jaxebm.objectives.contrastive import check_same_example_shape, noted
from jaxebm.objectives.labelled_chains import bind_target, check_labels, map_chains
from jaxebm.types import Array, JointEnergyFn, MakeKernel, Metrics, Params, Position

__all__ = ["last_step_loss", "nearest_neighbour_entropy"]

_SMALLEST_DISTANCE = 1e-6
"""The least distance between neighbours; closer ones get no gradient, because log 0 has none."""


def nearest_neighbour_entropy(xs: Position, references: Position | None = None) -> Array:
    r"""Nearest-neighbour estimate of the entropy of the distribution of ``xs``, per dimension, up to a
    constant.

    .. math:: \hat H = \frac{1}{n} \sum_i \log \min_j \|x_i - r_j\|

    Kozachenko and Leonenko's estimator is d times this, plus log(m) + log V_d + 0.577, where m is the number
    of candidate neighbours, V_d the volume of the unit ball in d dimensions and 0.577 Euler's constant.
    Maximising it moves each sample away from its nearest neighbour.

    Args:
      xs: n examples, each leaf ``(n, ...)``; an example is flattened, its leaves joined. The gradient flows
        into these.
      references: m >= 1 examples of the same shapes among which the nearest is found, such as slots of the
        replay buffer that these chains were not drawn from; the gradient through them is stopped. A copy of
        x_i among them counts as a neighbour at distance 1e-6, and does not move x_i. None takes the other
        members of ``xs``, at least one: x_i itself is left out, and the gradient flows to both members of
        a pair.

    Returns:
      The estimate in nats per dimension, ``()``, float32 or wider.

    Raises:
      TypeError: if ``xs`` or ``references`` is not floating-point.
      ValueError: if the two differ in the shape of an example, either holds none, or ``references`` is None
        and ``xs`` holds only one.

    Example:
      >>> float(nearest_neighbour_entropy(jnp.array([[0.0], [1.0], [3.0]])))  # log 1, log 1 and log 2
      0.23104906...

    Reference:
      Kozachenko & Leonenko 1987, "Sample estimate of the entropy of a random vector"; Du et al. 2021 (arXiv
      2012.01316), whose released code takes 100 slots of the buffer as references.
    """
    checks.real_arrays("xs", xs)
    checks.floating("xs", xs)
    points = _flatten(xs, checks.batch_length("xs", xs))
    if references is None:
        if len(points) == 1:
            raise ValueError(
                "xs holds one example and references is None: a neighbour is needed, from at least two xs or "
                "from references."
            )
        others = points
    else:
        checks.real_arrays("references", references)
        checks.floating("references", references)
        check_same_example_shape("xs", xs, "references", references)
        others = jax.lax.stop_gradient(_flatten(references, checks.batch_length("references", references)))
    nearest = _nearest(*jax.lax.stop_gradient((points, others)), with_itself=references is not None)
    # Computed from the difference, which keeps the digits that the matrix product in `_nearest` loses.
    squares = jnp.sum(jnp.square(points - others[nearest]), axis=1)
    # log sqrt(s) = log(s) / 2, because the gradient of the root at 0 is not finite.
    return jnp.mean(0.5 * jnp.log(jnp.maximum(squares, _SMALLEST_DISTANCE**2)))


def _flatten(tree: Position, num_examples: int) -> Array:
    leaves = [leaf.reshape(num_examples, -1) for leaf in map(jnp.asarray, jax.tree.leaves(tree))]
    joined = jnp.concatenate(leaves, axis=1)
    return joined.astype(jnp.promote_types(joined.dtype, jnp.float32))


def _nearest(points: Array, others: Array, *, with_itself: bool) -> Array:
    """Which of ``others (m, d)`` is nearest to each of ``points (n, d)``: integers ``(n,)``.

    By one matrix product, |x|^2 - 2 x.r + |r|^2, instead of all n m d differences.
    """
    # Centred, because far from the origin the three terms would cancel.
    center = jnp.mean(others, axis=0, keepdims=True)
    points, others = points - center, others - center
    products = jnp.matmul(points, others.T, precision=jax.lax.Precision.HIGHEST)
    # |x|^2 is the same for all others.
    distances = jnp.sum(jnp.square(others), axis=1)[None, :] - 2 * products
    if not with_itself:
        distances = jnp.where(jnp.eye(len(points), dtype=bool), jnp.inf, distances)
    return jnp.argmin(distances, axis=1)


def last_step_loss(
    rng_key: Array,
    make_kernel: MakeKernel,
    energy: JointEnergyFn,
    params: Params,
    positions: Position,
    labels: Array,
    *,
    references: Position | None = None,
    entropy_weight: float | Array = 1.0,
    sharding: NamedSharding | None = None,
) -> tuple[Array, Metrics]:
    r"""The KL term of improved contrastive divergence, through one more step of each chain.

    .. math::

        \hat x_i = \mathrm{step}_\theta(\mathrm{stop}(x_i)), \qquad
        L = \frac{1}{n} \sum_i E(\hat x_i, y_i; \mathrm{stop}(\theta))
            - w \, \frac{1}{n} \sum_i \log \min_j \|\hat x_i - r_j\|

    Contrastive divergence descends KL(p_data || p) - KL(q || p), q being where the chains end; its usual
    gradient leaves out how q depends on the parameters. This is that part, truncated to the last step: the
    energy after the step, minus the entropy after it. Add it to `contrastive_loss`. Its gradient takes
    second derivatives of E, in x and in the parameters, and costs about three gradients. No gradient flows
    through entries whose gradient the kernel clips, or whose position it clamps.

    Args:
      rng_key: one key, split into one key per chain.
      make_kernel: binds a kernel to a target; its step must be differentiable, such as that of ``sgld``.
      energy: E(params, x, label), shape ``()``; bound as by `run_labelled_chains`.
      params: the parameters, with respect to which the loss is differentiated.
      positions: where the chains ended, each leaf ``(n, ...)``; gradients through them are stopped here.
      labels: one class per chain, ``(n,)``; zeros where there are no classes.
      references: as in `nearest_neighbour_entropy`; None takes the other chains after the step.
      entropy_weight: w >= 0; 0.3 in the code that the paper's authors released.
      sharding: how the chains are split over devices, ``jaxebm.training.Placement.split``; None for one.

    Returns:
      ``(loss, metrics)`` with ``last_step_energy`` and ``neighbour_entropy``, the two averages of L.

    Raises:
      TypeError: if an argument has the wrong type, or ``positions`` or ``references`` is not floating-point.
      ValueError: if ``entropy_weight`` is not one number of at least 0, ``labels`` are not one per chain or
        out of range, or as `nearest_neighbour_entropy`.

    Example:
      One noiseless step on E(x) = k x^2 / 2 leads to (1 - 0.1 k) x, and a larger k leads closer to 0:

      >>> from functools import partial
      >>> from jaxebm.samplers.langevin import sgld
      >>> def loss(k):
      ...     return last_step_loss(
      ...         jax.random.key(0), partial(sgld, step_size=0.1, noise_scale=0.0),
      ...         lambda k, x, label: 0.5 * k * jnp.sum(x**2), k, jnp.array([[1.0], [3.0]]),
      ...         jnp.array([0, 0]), entropy_weight=0.0)[0]
      >>> print(jax.grad(loss)(2.0))  # -0.1 k (1 - 0.1 k) mean x^2
      -0.8

    Reference:
      Du, Li, Tenenbaum & Mordatch 2021 (arXiv 2012.01316), "Improved contrastive divergence training of
      energy-based models": the loss L_KL.
    """
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.function("energy", energy, "params", "x", "label")
    checks.non_negative_number("entropy_weight", entropy_weight)
    checks.real_arrays("positions", positions)
    checks.floating("positions", positions)
    check_labels(energy, params, positions, labels)

    def last_step(key: Array, position: Position, label: Array) -> tuple[Position, Array]:
        kernel = make_kernel(bind_target(energy, params, label))
        key_init, key_step = jax.random.split(key)
        state, _ = kernel.step(key_step, kernel.init(position, rng_key=key_init))
        return state.position, energy(jax.lax.stop_gradient(params), state.position, label)

    with noted("energy", params=params, positions=positions):
        moved, energies = map_chains(last_step, rng_key, jax.lax.stop_gradient(positions), labels, sharding)
    mean_energy, entropy = jnp.mean(energies), nearest_neighbour_entropy(moved, references)
    metrics = {"last_step_energy": mean_energy, "neighbour_entropy": entropy}
    return mean_energy - entropy_weight * entropy, metrics
