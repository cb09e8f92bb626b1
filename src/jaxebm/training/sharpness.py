"""Sharpness-aware minimisation: the gradient is taken where the loss is highest within a small ball."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxebm import checks
from jaxebm.trees import widened
from jaxebm.types import Array, Params

__all__ = ["Sharpness", "ascend"]


@dataclass(frozen=True)
class Sharpness:
    """Radius and metric of the ascent that `learner` makes before it takes the gradient.

    Attributes:
      rho: radius of the ascent, above 0: in units of the parameters, or relative to them where adaptive.
        The papers use about 0.05 plain and 0.5 to 2 adaptive.
      adaptive: whether each parameter's share of the ascent is scaled by its size.

    Raises:
      TypeError: if ``rho`` is no number, or ``adaptive`` not True or False.
      ValueError: if ``rho`` is not one finite number above 0.

    Example:
      >>> Sharpness(0.05)
      Sharpness(rho=0.05, adaptive=False)
    """

    rho: float | Array
    adaptive: bool = False

    def __post_init__(self) -> None:
        checks.positive_number("sharpness.rho", self.rho)
        checks.boolean("sharpness.adaptive", self.adaptive)


def ascend(
    params: Params,
    gradient: Params,
    rho: float | Array,
    *,
    adaptive: bool = False,
    stabiliser: float | Array = 0.01,
) -> Params:
    r"""Moves parameters to where the loss is highest within a small ball, to first order.

    .. math::

        \theta + \rho \frac{g}{\|g\|}, \qquad \text{or adaptive} \qquad
        \theta + \rho \frac{T^2 g}{\|T g\|}, \quad T = \mathrm{diag}(|\theta| + \eta)

    The first maximises the linearised loss over \|e\| <= rho, the second over \|T^-1 e\| <= rho. With eta = 0
    the second does not depend on how a network's weights are scaled between its layers, whereas the first
    reaches further where weights are small.

    Args:
      params: theta. Of the variables of a Flax module only the collection ``"params"`` moves; the others,
        such as running statistics, do not move and do not count in the norm. A tuple of variables works too.
      gradient: g, with the structure and shapes of ``params``.
      rho: radius, above 0.
      adaptive: whether to take the second formula.
      stabiliser: eta >= 0; 0.01 in the paper. With eta = 0 a weight at zero would not move. Here T has this
        form for every parameter; in the released code of the paper T = 1 for biases and similar parameters.

    Returns:
      The parameters at the ascended point, in their dtypes; where all of g is zero, the parameters.

    Raises:
      TypeError: if ``params`` or ``gradient`` hold something else than arrays.
      ValueError: if ``rho`` is not one positive number, ``stabiliser`` is negative, or the gradient has not
        the structure and shapes of ``params``.

    Example:
      >>> ascend(jnp.array([1.0, 1.0]), jnp.array([3.0, 4.0]), 0.5).tolist()  # 0.5 (0.6, 0.8) further
      [1.2999999523162842, 1.399999976158142]
      >>> variables = {"params": jnp.zeros(1), "batch_stats": jnp.zeros(1)}
      >>> moved = ascend(variables, {"params": jnp.ones(1), "batch_stats": jnp.ones(1)}, 0.5)
      >>> float(moved["params"][0]), float(moved["batch_stats"][0])
      (0.5, 0.0)

    Reference:
      Foret et al. 2021 (arXiv 2010.01412), equation 2; adaptive, Kwon et al. 2021 (arXiv 2102.11600),
      equations 3 and 4.
    """
    checks.positive_number("rho", rho)
    checks.boolean("adaptive", adaptive)
    checks.non_negative_number("stabiliser", stabiliser)
    for name, tree in (("params", params), ("gradient", gradient)):
        checks.real_arrays(name, tree)
    checks.same_shapes("gradient", gradient, "params", params)
    params, gradient = jax.tree.map(jnp.asarray, (params, gradient))
    gradient = jax.tree.map(widened, _learnt(gradient))
    if adaptive:
        scales = jax.tree.map(lambda leaf: jnp.abs(widened(leaf)) + stabiliser, params)
    else:
        scales = jax.tree.map(lambda leaf: jnp.ones((), widened(leaf).dtype), params)
    scaled = jax.tree.map(jnp.multiply, scales, gradient)
    norm = optax.tree.norm(scaled)
    # A zero gradient cannot be normalised: 0 / 1 instead of 0 / 0.
    length = rho / jnp.where(norm > 0, norm, 1.0)

    def move(leaf: Array, scale: Array, slope: Array) -> Array:
        return (widened(leaf) + length * scale * slope).astype(leaf.dtype)

    return jax.tree.map(move, params, scales, scaled)


def _is_variables(node: Any) -> bool:
    return isinstance(node, Mapping) and "params" in node


def _learnt(gradient: Params) -> Params:
    """The gradient, with zeros outside of the collection ``"params"`` of Flax variables."""

    def only_params(node: Any) -> Any:
        if not _is_variables(node):
            return node
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if path[0].key == "params" else jnp.zeros_like(leaf), node
        )

    return jax.tree.map(only_params, gradient, is_leaf=_is_variables)
