"""Straight paths from noise to data: which noise goes with which datum, and the points on the way.

x_t = (1 - t) x_0 + t x_1, x_0 noise, x_1 data, t in [0, 1]. With the coupling that minimises the total
squared distance within a batch, paths hardly cross, and the mean velocity at a point varies little.
"""

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from jaxebm import checks
from jaxebm.trees import normal_like, wide_dtype, widened
from jaxebm.types import Array, Position

__all__ = ["Coupling", "Paths", "couple", "draw_paths"]

Coupling: TypeAlias = Literal["optimal", "independent"]
"""How noise and data are paired: by the assignment of least total squared distance, or at random."""

BLOCK = 128
"""Most examples that are assigned at once: the assignment costs O(n^3) operations."""


class Paths(NamedTuple):
    """One point on the straight path of each datum of a batch.

    Attributes:
      position: x_t, each leaf ``(n, ...)``.
      time: t in [0, 1), ``(n,)``; stratified over the batch, in random order.
      velocity: x_1 - x_0, each leaf ``(n, ...)``.
    """

    position: Position
    time: Array
    velocity: Position


def check_coupling(coupling: Coupling) -> None:
    """Raises ``ValueError`` unless it is one of `Coupling`."""
    checks.one_of("coupling", coupling, get_args(Coupling))


def couple(noise: Position, data: Position, labels: Array | None = None) -> Position:
    """Returns the noise in the order in which it lies closest to the data.

    The permutation pi that minimises sum_i |noise_pi(i) - data_i|^2, within blocks of at most 128 examples:
    the optimal transport between the two batches.

    Args:
      noise: each leaf ``(n, ...)``.
      data: each leaf ``(n, ...)``, of the same shapes.
      labels: classes of the data, ``(n,)``: noise is then exchanged within a class only, and stays
        independent of the class, as it is where samples of a given class are drawn. None exchanges freely.

    Returns:
      The permuted noise; the data keep their order, and so their labels.

    Raises:
      TypeError: if a leaf is not floating-point.
      ValueError: if the two differ in structure or shapes, or hold no example.

    Example:
      >>> couple(jnp.array([[5.0], [-5.0], [0.0]]), jnp.array([[-1.0], [0.1], [1.0]])).tolist()
      [[-5.0], [0.0], [5.0]]

    Reference:
      Pooladian et al. 2023 (arXiv 2304.14772) and Tong et al. 2024 (arXiv 2302.00482), minibatch couplings;
      Kuhn 1955, the Hungarian algorithm (``optax.assignment.hungarian_algorithm``).
    """
    for name, tree in (("noise", noise), ("data", data)):
        checks.batch_length(name, tree)
        checks.real_arrays(name, tree)
        checks.floating(name, tree)
    checks.same_shapes("noise", noise, "those of data", data)
    length = checks.batch_length("data", data)
    if labels is not None:
        checks.array("labels", labels, (length,), f"({length},), one class for each example,")
        if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
            raise TypeError(f"labels has dtype {jnp.result_type(labels)}: integer class labels are needed.")

    def flat(tree: Position) -> Array:
        return jnp.concatenate([widened(leaf).reshape(length, -1) for leaf in jax.tree.leaves(tree)], axis=1)

    # |a - b|^2 up to terms that no permutation changes. About the means: far from 0, products lose digits.
    ends, starts = flat(data), flat(noise)
    ends, starts = (rows - jnp.mean(rows, axis=0, keepdims=True) for rows in (ends, starts))
    cost = -ends @ starts.T
    if labels is not None:
        # More than any exchange can gain: the identity is a permutation within classes.
        reach = 2.0 * length * jnp.max(jnp.abs(cost)) + 1.0
        cost = jnp.where(labels[:, None] == labels[None, :], cost, reach)
    blocks = range(0, length, BLOCK)
    order = [first + _assign(cost[first : first + BLOCK, first : first + BLOCK]) for first in blocks]
    return jax.tree.map(lambda leaf: leaf[jnp.concatenate(order)], noise)


def _assign(cost: Array) -> Array:
    """The column of each row, ``(n,)``, of the assignment with the least total cost."""
    rows, columns = optax.assignment.hungarian_algorithm(jax.lax.stop_gradient(cost))
    return columns[jnp.argsort(rows)]


def draw_paths(
    rng_key: Array,
    data: Position,
    labels: Array | None = None,
    *,
    coupling: Coupling = "optimal",
    source_scale: float | Array = 1.0,
) -> Paths:
    """Draws noise for each datum, pairs them, and draws one point on each path.

    x_0 ~ N(0, s^2 I), x_t = (1 - t) x_0 + t x_1, t_i = (pi(i) + u_i) / n with u_i ~ U(0, 1), pi a permutation

    Times are stratified: the t of each datum is uniform on [0, 1], and a batch covers [0, 1] evenly.

    Args:
      rng_key: one key.
      data: x_1, each leaf ``(n, ...)``.
      labels: classes, ``(n,)``, within which pairs are optimal; None pairs regardless of classes.
      coupling: ``"optimal"`` or ``"independent"``.
      source_scale: s > 0, standard deviation of the noise, in the units of x.

    Returns:
      The `Paths`.

    Raises:
      TypeError: if the data are not floating-point or ``rng_key`` is not a typed key.
      ValueError: if ``coupling`` is unknown, ``source_scale`` not positive, or there is no example.

    Example:
      >>> paths = draw_paths(jax.random.key(0), jnp.ones((4, 2)))
      >>> back = paths.position - paths.time[:, None] * paths.velocity  # x_0
      >>> bool(jnp.allclose(back + paths.velocity, 1.0, atol=1e-5))
      True

    Reference:
      Lipman et al. 2023 (arXiv 2210.02747) and Liu et al. 2023 (arXiv 2209.03003), straight paths.
    """
    checks.rng_key("rng_key", rng_key)
    checks.real_arrays("data", data)
    checks.floating("data", data)
    length = checks.batch_length("data", data)
    check_coupling(coupling)
    checks.positive_number("source_scale", source_scale)
    key_noise, key_time, key_order = jax.random.split(rng_key, 3)
    noise = jax.tree.map(lambda n: (source_scale * n).astype(n.dtype), normal_like(key_noise, data))
    if coupling == "optimal":
        noise = couple(noise, data, labels)
    dtype = wide_dtype(data)
    time = (jnp.arange(length) + jax.random.uniform(key_time, (length,), dtype)) / length
    time = jax.random.permutation(key_order, time.astype(dtype))

    def between(start: Array, end: Array) -> Array:
        t = time.reshape(-1, *[1] * (end.ndim - 1))
        return ((1 - t) * start + t * widened(end)).astype(end.dtype)

    velocity = jax.tree.map(lambda end, start: widened(end) - start, data, noise)
    return Paths(jax.tree.map(between, noise, data), time, velocity)
