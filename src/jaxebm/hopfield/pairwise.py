"""Networks given by couplings: any symmetric matrix of weights, with spins (1982) or graded neurons (1984).

`jaxebm.hopfield.storage` has the rules that turn patterns into weights.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.target import check_shape
from jaxebm.hopfield.family import LEVELS, States, settle
from jaxebm.hopfield.lagrangians import LogCosh
from jaxebm.hopfield.validation import pattern_matrix, vector
from jaxebm.types import Array

__all__ = ["GradedMemory", "PairwiseMemory", "graded", "pairwise"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairwiseMemory:
    """Spins or bits with couplings, E(x) = -x.Wx / 2 - b.x; a pytree, whose arrays can be learnt.

    Attributes:
      weights: W, shape (D, D), symmetric.
      bias: b, shape (D,).
      states: "spins" or "bits"; static.

    Raises:
      ValueError: if the states are others.

    Example:
      >>> from jaxebm.hopfield.family import energy
      >>> memory = PairwiseMemory(weights=jnp.ones((2, 2)), bias=jnp.zeros(2), states="bits")
      >>> print(energy(memory, jnp.array([1.0, 1.0])))
      -2.0
    """

    weights: Array
    bias: Array
    states: States = field(default="spins", metadata={"static": True})

    def __post_init__(self) -> None:
        checks.one_of("states", self.states, tuple(LEVELS))

    @property
    def dimension(self) -> int:
        """D."""
        return self.weights.shape[0]

    def fields(self, x: Array) -> Array:
        """Returns the local fields h = W x + b, shape (D,)."""
        return x @ self.weights + self.bias  # W is symmetric; under vmap, x @ W keeps the queries' axis first

    def energy(self, x: Array) -> Array:
        """Returns -x.Wx / 2 - b.x, shape ()."""
        return -0.5 * x @ self.fields(x) - 0.5 * self.bias @ x

    def update(self, x: Array) -> Array:
        """Returns all coordinates at the level to which their field points: sign(W x + b) for spins.

        This descends if W is positive semidefinite; if not, a pair of states can take turns for ever.
        """
        return settle(self.states, x, self.fields(x))

    # One coordinate at a time: the fields are carried, so that a flip costs D and not D^2.

    def carry(self, x: Array) -> Array:
        """Returns the fields of x, shape (D,): which are updated while coordinates change one by one."""
        return self.fields(x)

    def preferences(self, carry: Array, x: Array, *, exact: bool = True) -> Array:
        """Returns, for every coordinate, E with it low minus E with it high, shape (D,).

        Args:
          carry: of x.
          x: a state, shape (D,).
          exact: whether the size matters; if only the sign does, what is within rounding is a tie, 0.
        """
        low, high = LEVELS[self.states]
        own = jnp.diagonal(self.weights)
        preferences = (high - low) * (carry - own * x + 0.5 * (high + low) * own)
        if exact:
            return preferences
        terms = jnp.abs(self.weights) @ jnp.abs(x) + jnp.abs(self.bias) + jnp.abs(own)
        error = 8 * jnp.finfo(preferences.dtype).eps * (high - low) * terms
        return jnp.where(jnp.abs(preferences) <= error, 0.0, preferences)

    def preference(self, carry: Array, x: Array, index: Array, column: Array, *, exact: bool) -> Array:
        """Returns E with x[index] low, minus E with it high, shape ().

        Args:
          carry: of x.
          x: a state, shape (D,).
          index: of the coordinate, shape ().
          column: of W, shape (D,), at that index.
          exact: no matter here; every preference is exact.
        """
        del exact
        low, high = LEVELS[self.states]
        return (high - low) * (carry[index] - column[index] * (x[index] - 0.5 * (high + low)))

    def columns(self) -> Array:
        """Returns W, shape (D, D), whose rows `preference` and `carried` take."""
        return self.weights

    def carried(self, carry: Array, column: Array, change: Array) -> Array:
        """Returns the carry after the coordinate has changed by ``change``."""
        return carry + change * column


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradedMemory:
    """Neurons with a graded response, of which a state x is the potentials u; a pytree.

    v = tanh(gain u),  du/dt = -u + W v + b,
    E = -v.Wv / 2 - b.v + sum int_0^v artanh(s) / gain ds = -v.Wv / 2 - b.v + u.v - sum ln cosh(gain u) /
    gain.

    Along the flow dE/dt = -sum v'(u) (du/dt)^2 <= 0. The energy is written in u, because v, as a float,
    reaches 1 at moderate u and says no more.

    Attributes:
      weights: W, shape (D, D), symmetric.
      bias: b, shape (D,).
      gain: steepness of the response, shape ().
      states: "reals".

    Raises:
      ValueError: if the states are others.

    Example:
      >>> from jaxebm.hopfield.family import energy
      >>> memory = GradedMemory(weights=jnp.zeros((2, 2)), bias=jnp.zeros(2), gain=jnp.ones(()))
      >>> print(energy(memory, jnp.zeros(2)))
      0.0
    """

    weights: Array
    bias: Array
    gain: Array
    states: States = field(default="reals", metadata={"static": True})

    def __post_init__(self) -> None:
        checks.one_of("states", self.states, ("reals",))

    @property
    def dimension(self) -> int:
        """D."""
        return self.weights.shape[0]

    @property
    def symmetric(self) -> bool:
        """Whether the Jacobian of `residual`, 1 - W dv/du, is symmetric."""
        return False

    def activations(self, x: Array) -> Array:
        """Returns v = tanh(gain u), shape (D,), in (-1, 1)."""
        return jnp.tanh(self.gain * x)

    def energy(self, x: Array) -> Array:
        """Returns E of the potentials x, shape ()."""
        v = self.activations(x)
        response = x @ v - LogCosh().value(self.gain * x) / self.gain
        return response - 0.5 * v @ (self.weights @ v) - self.bias @ v

    def update(self, x: Array) -> Array:
        """Returns the potentials W v + b to which the neurons relax, shape (D,)."""
        return self.weights @ self.activations(x) + self.bias

    def residual(self, x: Array) -> Array:
        """Returns -du/dt = u - W v - b, shape (D,)."""
        return x - self.update(x)


def _symmetric(weights: Any) -> Array:
    matrix = pattern_matrix("weights", weights)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"weights has shape {matrix.shape}: (D, D) is needed.")
    if not checks.is_traced(matrix):
        values = np.asarray(matrix)
        asymmetry = float(np.max(np.abs(values - values.T)))
        if asymmetry > 1e-5 * max(float(np.max(np.abs(values))), 1e-30):
            raise ValueError(
                f"weights differs from its transpose by up to {asymmetry:.3g}: a symmetric matrix is needed, "
                f"because only then is there an energy. Take 0.5 * (weights + weights.T), if that is meant."
            )
    return matrix


def _bias(bias: Any, weights: Array) -> Array:
    if bias is None:
        return jnp.zeros(weights.shape[:1], weights.dtype)
    vector("bias", bias, weights.shape[0], "one number for each coordinate")
    checks.finite("bias", bias)
    return jnp.asarray(bias, weights.dtype)


def pairwise(weights: Any, bias: Any = None, *, states: States = "spins") -> PairwiseMemory:
    """Returns a network of binary neurons with given couplings.

    E(x) = -x.Wx / 2 - b.x. Asynchronous retrieval descends for any diagonal, since it leaves a neuron's
    coupling with itself out; synchronous retrieval descends if W is positive semidefinite, as Hebb's with its
    diagonal is.

    Args:
      weights: W, shape (D, D), symmetric.
      bias: b, shape (D,); None for 0.
      states: "spins", {-1, 1}, or "bits", {0, 1}.

    Returns:
      The memory.

    Raises:
      ValueError: if the weights are not square, symmetric and finite, or the states are real.

    Example:
      >>> from jaxebm.hopfield.storage import hebb
      >>> from jaxebm.hopfield.family import energy
      >>> memory = pairwise(hebb(jnp.array([[1.0, -1.0, 1.0, 1.0]])))
      >>> print(energy(memory, jnp.array([1.0, -1.0, 1.0, 1.0])))
      -2.0

    Reference:
      Hopfield 1982, "Neural networks and physical systems with emergent collective computational abilities".
    """
    if not isinstance(states, str) or states not in LEVELS:
        raise ValueError(
            f"states={states!r}: 'spins' or 'bits' is needed; `graded` makes neurons with real states."
        )
    matrix = _symmetric(weights)
    return PairwiseMemory(matrix, _bias(bias, matrix), states)


def graded(weights: Any, bias: Any = None, *, gain: Any = 1.0) -> GradedMemory:
    """Returns a network of neurons with a graded response, tanh(gain u).

    du/dt = -u + W v + b, v = tanh(gain u). As the gain grows its stable states become those of `pairwise`.
    Retrieve it with a ``step_size`` below 1, which is Euler's method on that equation; a step of 1 can
    oscillate.

    Args:
      weights: W, shape (D, D), symmetric.
      bias: b, shape (D,); None for 0.
      gain: positive.

    Returns:
      The memory; its states are the potentials u.

    Raises:
      ValueError: if the weights are not square, symmetric and finite, or the gain is not positive.

    Example:
      >>> memory = graded([[0.0, 1.0], [1.0, 0.0]], gain=2.0)
      >>> x = jnp.array([0.5, 0.1])
      >>> bool(memory.energy(x + 0.1 * (memory.update(x) - x)) < memory.energy(x))
      True

    Reference:
      Hopfield 1984, "Neurons with graded response have collective computational properties like those of
      two-state neurons", eq. 5 and 7.
    """
    matrix = _symmetric(weights)
    checks.array("gain", gain)
    check_shape("gain", gain, (), "a scalar, shape (),")
    checks.positive("gain", gain)
    return GradedMemory(matrix, _bias(bias, matrix), jnp.asarray(gain, matrix.dtype))
