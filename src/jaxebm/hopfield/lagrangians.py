"""The convex functions Phi that define the associative memories.

In E(x) = q/2 |x|^2 - b.x - Phi(beta (Xi x + c)) / beta, Phi decides how sharply a memory is separated from
the others: its gradient turns the overlaps with all memories into the weights with which they are recalled.
In the terms of Krotov & Hopfield, Phi is the Lagrangian of the hidden neurons and its gradient their
activation function; the same objects describe the layers of `jaxebm.hopfield.HierarchicalMemory`.

Each is a frozen dataclass that compares by value, so that it can be a static part of a compiled program.

Reference:
  Krotov & Hopfield 2021, "Large associative memory problem in neurobiology and machine learning" (arXiv
  2008.06996), table 1.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.hopfield.tsallis import entmax, entmax_conjugate
from jaxebm.types import Array

__all__ = [
    "Entmax",
    "Exponential",
    "Lagrangian",
    "LayerNormalisation",
    "LogCosh",
    "LogSumRelu",
    "Power",
    "Quadratic",
    "Softmax",
    "Softplus",
    "Spherical",
    "check_lagrangian",
]


class Lagrangian(Protocol):
    """A function Phi of all the overlaps z of a state, and its gradient."""

    def value(self, z: Array) -> Array:
        """Returns Phi(z), shape (), of z, shape (K,)."""
        ...

    def gradient(self, z: Array) -> Array:
        """Returns d Phi / dz, shape (K,)."""
        ...

    def rescale(self, z: Array) -> Array:
        """Moves z, of any shape, by a symmetry of Phi that multiplies its gradients by one positive number.

        Where Phi grows fast, the *sign* of a weighted sum of gradients, or of a difference of values, is got
        from the moved z without overflow.
        """
        ...


def check_lagrangian(name: str, value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` has the functions of a Lagrangian."""
    if not (callable(getattr(value, "value", None)) and callable(getattr(value, "gradient", None))):
        raise TypeError(
            f"{name} is a {type(value).__name__}: {name} must be a Lagrangian, such as "
            f"jaxebm.hopfield.Softmax()."
        )


class _Lagrangian:
    """The default: no symmetry is used."""

    def rescale(self, z: Array) -> Array:
        return z


@dataclass(frozen=True)
class Quadratic(_Lagrangian):
    """Phi(z) = |z|^2 / 2: the classical network with Hebb's rule (Hopfield 1982).

    Example:
      >>> print(Quadratic().value(jnp.array([3.0, 4.0])))
      12.5
    """

    def value(self, z: Array) -> Array:
        """Returns |z|^2 / 2."""
        return 0.5 * jnp.sum(z**2)

    def gradient(self, z: Array) -> Array:
        """Returns z."""
        return z


@dataclass(frozen=True)
class Power(_Lagrangian):
    """Phi(z) = sum relu(z)^n / n, or sum z^n / n: dense associative memory (Krotov & Hopfield 2016).

    Attributes:
      degree: n, an integer of at least 2.
      rectified: whether negative overlaps count for nothing. Without it, an odd power is not convex.

    Raises:
      ValueError: if the degree is no integer of at least 2.
      TypeError: if ``rectified`` is no boolean.

    Example:
      >>> print(Power(degree=3, rectified=True).gradient(jnp.array([-1.0, 2.0])))
      [0. 4.]
    """

    degree: int
    rectified: bool = True

    def __post_init__(self) -> None:
        checks.integer("degree", self.degree, 2)
        checks.boolean("rectified", self.rectified)

    def _base(self, z: Array) -> Array:
        return jax.nn.relu(z) if self.rectified else z

    def value(self, z: Array) -> Array:
        """Returns sum relu(z)^n / n."""
        return jnp.sum(self._base(z) ** self.degree) / self.degree

    def gradient(self, z: Array) -> Array:
        """Returns relu(z)^(n-1)."""
        return self._base(z) ** (self.degree - 1)

    def rescale(self, z: Array) -> Array:
        """Returns z / max |z|: Phi is homogeneous."""
        greatest = jnp.max(jnp.abs(z))
        return z / jnp.where(greatest > 0, greatest, 1.0)


@dataclass(frozen=True)
class Exponential(_Lagrangian):
    """Phi(z) = sum e^z: exponential capacity (Demircigil et al. 2017).

    Example:
      >>> print(Exponential().value(jnp.zeros(3)))
      3.0
    """

    def value(self, z: Array) -> Array:
        """Returns sum e^z."""
        return jnp.sum(jnp.exp(z))

    def gradient(self, z: Array) -> Array:
        """Returns e^z."""
        return jnp.exp(z)

    def rescale(self, z: Array) -> Array:
        """Returns z - max z: adding a number to all z multiplies Phi."""
        return z - jnp.max(z)


@dataclass(frozen=True)
class Softmax(_Lagrangian):
    """Phi(z) = logsumexp(z) - ln K: the modern network, whose weights are those of attention.

    Example:
      >>> print(Softmax().gradient(jnp.zeros(4)))
      [0.25 0.25 0.25 0.25]
    """

    def value(self, z: Array) -> Array:
        """Returns logsumexp(z) - ln K, which is 0 at z = 0."""
        return jax.nn.logsumexp(z) - math.log(z.size)

    def gradient(self, z: Array) -> Array:
        """Returns softmax(z)."""
        return jax.nn.softmax(z)


@dataclass(frozen=True)
class Softplus(_Lagrangian):
    """Phi(z) = sum log(1 + e^z): the hidden units of a restricted Boltzmann machine, summed out.

    Example:
      >>> print(Softplus().gradient(jnp.zeros(2)))
      [0.5 0.5]
    """

    def value(self, z: Array) -> Array:
        """Returns sum log(1 + e^z)."""
        return jnp.sum(jax.nn.softplus(z))

    def gradient(self, z: Array) -> Array:
        """Returns sigmoid(z)."""
        return jax.nn.sigmoid(z)


@dataclass(frozen=True)
class Entmax(_Lagrangian):
    """Phi(z) = max_p p.z - Omega(p) + Omega(uniform), Tsallis' negative entropy Omega: sparse recall.

    Its gradient, alpha-entmax, gives exactly no weight to memories that are far enough. alpha = 1 is
    `Softmax`, 2 is sparsemax.

    Attributes:
      alpha: at least 1.

    Raises:
      ValueError: if alpha is below 1.

    Example:
      >>> print(Entmax(alpha=2.0).gradient(jnp.array([-2.0, 0.0, 0.5])))
      [0.   0.25 0.75]

    Reference:
      Santos et al. 2024, "Hopfield-Fenchel-Young networks" (arXiv 2411.08590).
    """

    alpha: float

    def __post_init__(self) -> None:
        checks.positive("alpha", self.alpha)
        checks.one_number("alpha", self.alpha)
        if self.alpha < 1:
            raise ValueError(
                f"alpha={self.alpha!r}: alpha must be at least 1 (1 is softmax, 2 is sparsemax)."
            )

    def value(self, z: Array) -> Array:
        """Returns the conjugate of Omega, which is 0 at z = 0."""
        return entmax_conjugate(z, self.alpha)

    def gradient(self, z: Array) -> Array:
        """Returns entmax(z)."""
        return entmax(z, self.alpha)


@dataclass(frozen=True)
class LogSumRelu(_Lagrangian):
    """Phi(z) = log(epsilon + sum relu(1 + z)): with distances, Epanechnikov's kernel (Hoover et al. 2025).

    Not convex itself, but the logarithm of a convex function, which is all that descent needs: its weights,
    divided by their sum, are those of the convex function.

    Attributes:
      epsilon: at least 0; above 0 the energy is finite where no memory is near.

    Raises:
      ValueError: if epsilon is negative.

    Example:
      >>> print(LogSumRelu(epsilon=0.0).gradient(jnp.array([0.0, 1.0, -2.0])))
      [0.33333334 0.33333334 0.        ]
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        checks.non_negative("epsilon", self.epsilon)
        checks.one_number("epsilon", self.epsilon)

    def value(self, z: Array) -> Array:
        """Returns log(epsilon + sum relu(1 + z)), -inf of slope 0 where no memory is near and epsilon = 0."""
        total = self.epsilon + jnp.sum(jax.nn.relu(1.0 + z))
        near = total > 0
        return jnp.where(near, jnp.log(jnp.where(near, total, 1.0)), -jnp.inf)

    def gradient(self, z: Array) -> Array:
        """Returns [z > -1] / (epsilon + sum relu(1 + z)), and 0 where no memory is near."""
        near = (z > -1.0).astype(z.dtype)
        total = self.epsilon + jnp.sum(jax.nn.relu(1.0 + z))
        return near / jnp.where(total > 0, total, 1.0)


@dataclass(frozen=True)
class LogCosh(_Lagrangian):
    """Phi(z) = sum log cosh(gain z) / gain: neurons with activation tanh(gain z).

    Attributes:
      gain: positive.

    Raises:
      ValueError: if the gain is not positive.

    Example:
      >>> print(jnp.round(LogCosh(gain=2.0).gradient(jnp.array([0.0, 0.5])), 3))
      [0.    0.762]
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("gain", self.gain)
        checks.one_number("gain", self.gain)

    def value(self, z: Array) -> Array:
        """Returns sum log cosh(gain z) / gain."""
        scaled = jnp.abs(self.gain * z)  # log cosh u = |u| + log(1 + e^(-2|u|)) - log 2
        return jnp.sum(scaled + jnp.log1p(jnp.exp(-2 * scaled)) - math.log(2)) / self.gain

    def gradient(self, z: Array) -> Array:
        """Returns tanh(gain z)."""
        return jnp.tanh(self.gain * z)


@dataclass(frozen=True)
class Spherical(_Lagrangian):
    """Phi(z) = sqrt(|z|^2 + epsilon): neurons whose activations lie on a sphere, z / |z|.

    Attributes:
      epsilon: positive, so that 0 is a state like any other.

    Raises:
      ValueError: if epsilon is not positive.

    Example:
      >>> print(jnp.round(Spherical(epsilon=1e-6).gradient(jnp.array([3.0, 4.0])), 3))
      [0.6 0.8]
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        checks.positive("epsilon", self.epsilon)
        checks.one_number("epsilon", self.epsilon)

    def value(self, z: Array) -> Array:
        """Returns sqrt(|z|^2 + epsilon)."""
        return jnp.sqrt(jnp.sum(z**2) + self.epsilon)

    def gradient(self, z: Array) -> Array:
        """Returns z / sqrt(|z|^2 + epsilon)."""
        return z / self.value(z)


@dataclass(frozen=True)
class LayerNormalisation(_Lagrangian):
    """Phi(z) = D sqrt(var z + epsilon): neurons normalised as by a layer normalisation without scale and
    shift.

    Attributes:
      epsilon: positive.

    Raises:
      ValueError: if epsilon is not positive.

    Example:
      >>> print(jnp.round(LayerNormalisation(epsilon=1e-5).gradient(jnp.array([1.0, 3.0])), 3))
      [-1.  1.]
    """

    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        checks.positive("epsilon", self.epsilon)
        checks.one_number("epsilon", self.epsilon)

    def value(self, z: Array) -> Array:
        """Returns D sqrt(var z + epsilon)."""
        return z.size * jnp.sqrt(jnp.var(z) + self.epsilon)

    def gradient(self, z: Array) -> Array:
        """Returns (z - mean z) / sqrt(var z + epsilon)."""
        return cast(Array, (z - jnp.mean(z)) / jnp.sqrt(jnp.var(z) + self.epsilon))
