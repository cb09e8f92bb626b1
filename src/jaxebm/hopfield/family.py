"""The common formula of the associative memories: an energy, and the step that lowers it.

    E(x) = q/2 |x|^2 - b.x - Phi(beta s(x)) / beta,     s_mu(x) = xi_mu.x + c_mu

K memories xi_mu are the rows of Xi, and Phi is convex (`jaxebm.hopfield.lagrangians`). The last term of E,
concave, lies below its tangent; so with the weights w = grad Phi(beta s(x)), the minimum of q/2 |x|^2 - b.x -
w.Xi x is never higher:

    x <- (b + Xi^T w) / q   for real states (q = 1),        x <- sign(b + Xi^T w)   for spins (q = 0).

Spins and bits have a second rule, that of the papers on dense and exponential memories: each coordinate goes
where E is lower, all others being as they are, x_i <- argmin E(x_i | x_j, j != i). `UpdateRule` names both.

`jaxebm.hopfield.memories` has the cases.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.hopfield.lagrangians import Exponential, Lagrangian, Power, check_lagrangian
from jaxebm.hopfield.validation import COLUMNS, memory_arrays, vector
from jaxebm.types import Array

__all__ = [
    "LEVELS",
    "AssociativeMemory",
    "PatternMemory",
    "States",
    "UpdateRule",
    "check_rule",
    "energy",
    "moved",
    "settle",
    "update",
]

States: TypeAlias = Literal["reals", "spins", "bits"]
LEVELS: dict[str, tuple[float, float]] = {"spins": (-1.0, 1.0), "bits": (0.0, 1.0)}
"""The two values of a coordinate of a discrete state."""
UpdateRule: TypeAlias = Literal["tangent", "difference"]
"""The synchronous step: by the tangent bound, which descends, or by differences of energy."""


class AssociativeMemory(Protocol):
    """The protocol of a memory for retrieval; every method takes one state x, shape (D,)."""

    @property
    def states(self) -> States:
        """The possible values of a coordinate of x."""
        ...

    @property
    def dimension(self) -> int:
        """D."""
        ...

    def energy(self, x: Array) -> Array:
        """Returns E(x), shape ()."""
        ...

    def update(self, x: Array) -> Array:
        """Returns the next state, all coordinates at once."""
        ...


def energy(memory: AssociativeMemory, x: Array) -> Array:
    """Returns the energy of a state: an ``EnergyFn`` whose parameters are the memory.

    Args:
      memory: any memory of this package.
      x: shape (D,).

    Returns:
      E(x), shape (). The density that belongs to it is exp(-beta E(x)) / Z: see
      `jaxebm.hopfield.density_energy`.

    Raises:
      TypeError: if ``memory`` is no memory, or x no array of real numbers.
      ValueError: if x has another shape.

    Example:
      >>> from jaxebm.hopfield.memories import modern
      >>> memory = modern(jnp.eye(3), beta=4.0)
      >>> bool(energy(memory, jnp.array([1.0, 0.0, 0.0])) < energy(memory, jnp.array([-1.0, 0.0, 0.0])))
      True
    """
    memory_arrays("memory", memory)
    vector("x", x, memory.dimension, COLUMNS)
    return memory.energy(jnp.asarray(x))


def update(memory: AssociativeMemory, x: Array, *, rule: UpdateRule = "tangent") -> Array:
    """Returns the state after one synchronous step.

    Two rules, of spins and bits:

    - "tangent": x <- sign(b + Xi^T grad Phi(beta s(x))) (couplings: sign(W x + b)), the minimum of the
      tangent bound. Each spin is part of the overlaps that decide about it, so it tends to stay; the energy
      never rises (if Phi is convex, or W positive semidefinite).
    - "difference": x_i <- argmin E(x_i | x_j, j != i), the step of Krotov & Hopfield 2016 and of Demircigil
      et al. 2017, and of sign(W x + b) with W_ii = 0. The spin itself is left out. The functions of
      `jaxebm.hopfield.capacity` are about it; the energy may rise, and a pair of states may take turns.

    They are not near each other: of 2^15 memories of 30 spins in the exponential network, 3 spins flipped,
    the first recalls 86%, the second 37%.

    Args:
      memory: any memory of this package.
      x: shape (D,).
      rule: "tangent" or "difference". Real states have only the first.

    Returns:
      The next state, shape (D,). Spins and bits on which no force acts stay as they are.

    Raises:
      TypeError: if ``memory`` is no memory, or x no array of real numbers.
      ValueError: if x has another shape, or the rule is unknown or not one of real states.

    Example:
      >>> from jaxebm.hopfield.memories import classical
      >>> memory = classical([[1, 1, -1, -1, 1]])
      >>> print(update(memory, jnp.array([-1.0, 1.0, -1.0, -1.0, 1.0])))
      [ 1.  1. -1. -1.  1.]
      >>> print(update(memory, jnp.array([-1.0, 1.0, -1.0, -1.0, 1.0]), rule="difference"))
      [ 1.  1. -1. -1.  1.]

    Reference:
      Krotov & Hopfield 2016 (arXiv:1606.01164), eq. 3; Demircigil et al. 2017 (arXiv:1702.01929), eq. 3.
    """
    memory_arrays("memory", memory)
    vector("x", x, memory.dimension, COLUMNS)
    check_rule(memory, rule)
    return moved(memory, jnp.asarray(x), rule)


def check_rule(memory: AssociativeMemory, rule: Any) -> None:
    """Raises ``ValueError`` unless ``rule`` is one of `UpdateRule` that the memory has."""
    checks.one_of("rule", rule, ("tangent", "difference"))
    if rule == "difference" and (memory.states == "reals" or not hasattr(memory, "preferences")):
        raise ValueError(
            f"rule='difference' of a {type(memory).__name__} of real states: only spins and bits have a "
            f"difference of energy between their two values. Take rule='tangent'."
        )


def moved(memory: Any, x: Array, rule: UpdateRule) -> Array:
    """Returns the state after one synchronous step by a rule of `UpdateRule`, without checks."""
    if rule == "tangent":
        return memory.update(x)
    return settle(memory.states, x, memory.preferences(memory.carry(x), x, exact=False))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PatternMemory:
    """A memory of the family at the head of this module; a pytree, whose arrays can be learnt.

    Attributes:
      patterns: Xi, shape (K, D).
      beta: the inverse temperature, shape ().
      bias: b, shape (D,), or None for 0.
      offsets: c, shape (K,), or None for 0.
      lagrangian: Phi; static.
      states: "reals" (then q = 1, unless the similarity is a distance), "spins" or "bits"; static.
      similarity: "dot", s = xi.x + c, or "distance", s = c - |x - xi|^2 / 2; static.

    Raises:
      TypeError: if the Lagrangian is none.
      ValueError: if states and similarity are unknown or do not fit, or a bias is given with a Lagrangian
        that does not share its scale.

    Example:
      >>> from jaxebm.hopfield.lagrangians import Softmax
      >>> memory = PatternMemory(
      ...     patterns=jnp.eye(2), beta=jnp.ones(()), bias=None, offsets=None, lagrangian=Softmax())
      >>> print(energy(memory, jnp.zeros(2)))  # |x|^2 / 2 - ln(mean e^0)
      0.0
    """

    patterns: Array
    beta: Array
    bias: Array | None
    offsets: Array | None
    lagrangian: Lagrangian = field(metadata={"static": True})
    states: States = field(default="reals", metadata={"static": True})
    similarity: Literal["dot", "distance"] = field(default="dot", metadata={"static": True})

    def __post_init__(self) -> None:
        check_lagrangian("lagrangian", self.lagrangian)
        checks.one_of("states", self.states, ("reals", "spins", "bits"))
        checks.one_of("similarity", self.similarity, ("dot", "distance"))
        if self.bias is not None and isinstance(self.lagrangian, Power | Exponential):
            raise ValueError(
                f"bias is given with {self.lagrangian}: steps of this network are computed up to a positive "
                f"factor, which a bias does not share. Leave it None."
            )
        if self.similarity == "distance" and self.states != "reals":
            raise ValueError(f"states={self.states!r}: with similarity='distance', states must be 'reals'.")

    @property
    def dimension(self) -> int:
        """D."""
        return self.patterns.shape[1]

    @property
    def num_memories(self) -> int:
        """K."""
        return self.patterns.shape[0]

    @property
    def curvature(self) -> float:
        """q: 1 for real states; 0 for spins and bits, and where the similarity holds |x|^2 already."""
        return 1.0 if self.states == "reals" and self.similarity == "dot" else 0.0

    @property
    def symmetric(self) -> bool:
        """Whether the Jacobian of `residual` is symmetric: here it is the Hessian of E."""
        return True

    def similarities(self, x: Array) -> Array:
        """Returns s(x), shape (K,)."""
        overlaps = x @ self.patterns.T
        if self.similarity == "distance":
            # Differences, not |x|^2 - 2 xi.x + |xi|^2, which cancels where x is near a memory.
            overlaps = -0.5 * jnp.sum((self.patterns - x[None, :]) ** 2, axis=1)
        return overlaps if self.offsets is None else overlaps + self.offsets

    def weights(self, x: Array) -> Array:
        """Returns w = grad Phi(beta s(x)), shape (K,): how much of each memory is recalled."""
        return self.lagrangian.gradient(self.beta * self.similarities(x))

    def energy(self, x: Array) -> Array:
        """Returns E(x), shape ()."""
        value = -self.lagrangian.value(self.beta * self.similarities(x)) / self.beta
        if self.curvature:
            value = value + 0.5 * jnp.sum(x**2)
        return value if self.bias is None else value - self.bias @ x

    def update(self, x: Array) -> Array:
        """Returns the minimum of the tangent bound at x, shape (D,)."""
        z = self.beta * self.similarities(x)
        if self.states != "reals":
            weights = self.lagrangian.gradient(self.lagrangian.rescale(z))
            return settle(self.states, x, self._pull(weights))
        weights = self.lagrangian.gradient(z)
        if self.curvature:
            return self._pull(weights)
        # The bound is sum_mu w_mu |x - xi_mu|^2 / 2 - b.x: the weighted mean of the memories that are near.
        total = jnp.sum(weights)
        return jnp.where(total > 0, self._pull(weights) / jnp.where(total > 0, total, 1.0), x)

    def residual(self, x: Array) -> Array:
        """Returns dE/dx, shape (D,), which is 0 where real states rest."""
        return jax.grad(self.energy)(x)

    def _pull(self, weights: Array) -> Array:
        pull = weights @ self.patterns
        return pull if self.bias is None else pull + self.bias

    # One coordinate at a time: the overlaps are carried, so that a visit costs K and not K D.

    def carry(self, x: Array) -> Array:
        """Returns s(x), shape (K,): which is updated while coordinates change one by one."""
        return self.similarities(x)

    def preference(self, carry: Array, x: Array, index: Array, column: Array, *, exact: bool) -> Array:
        """Returns E with x[index] low, minus E with it high, shape ().

        Args:
          carry: of x.
          x: a state, shape (D,).
          index: of the coordinate, shape ().
          column: of Xi, shape (K,), at that index.
          exact: whether the size matters; if only the sign does, it is got without overflow.
        """
        low, high = LEVELS[self.states]
        levels = jnp.stack([low - x[index], high - x[index]])
        z = self.beta * (carry[None, :] + levels[:, None] * column[None, :])
        low_value, high_value = jax.vmap(self.lagrangian.value)(z if exact else self.lagrangian.rescale(z))
        difference = high_value - low_value
        if not exact:  # then what is within the rounding error of the sums is a tie
            error = 8 * jnp.finfo(difference.dtype).eps * (jnp.abs(high_value) + jnp.abs(low_value))
            difference = jnp.where(jnp.abs(difference) <= error, 0.0, difference)
        preference = difference / self.beta
        return preference if self.bias is None else preference + (high - low) * self.bias[index]

    def preferences(self, carry: Array, x: Array, *, exact: bool = False) -> Array:
        """Returns, for every coordinate, the sign of E with it low minus E with it high, shape (D,).

        One by one rather than by vmap: all coordinates at once would hold D times K numbers.
        """

        def at(coordinate: tuple[Array, Array]) -> Array:
            index, column = coordinate
            return self.preference(carry, x, index, column, exact=exact)

        return jax.lax.map(at, (jnp.arange(self.dimension), self.columns()))

    def columns(self) -> Array:
        """Returns Xi^T, shape (D, K), whose rows `preference` and `carried` take."""
        return self.patterns.T

    def carried(self, carry: Array, column: Array, change: Array) -> Array:
        """Returns the carry after the coordinate has changed by ``change``."""
        return carry + change * column


def settle(states: States, x: Array, force: Array) -> Array:
    """Sets each coordinate to the level to which the force points; without a force it stays.

    Args:
      states: "spins" or "bits".
      x: shape (D,).
      force: minus the slope of the energy, shape (D,).

    Returns:
      The next state, shape (D,).

    Example:
      >>> print(settle("spins", jnp.array([1.0, 1.0, -1.0]), jnp.array([2.0, -0.5, 0.0])))
      [ 1. -1. -1.]
    """
    low, high = LEVELS[states]
    return jnp.where(force > 0, high, jnp.where(force < 0, low, x)).astype(x.dtype)
