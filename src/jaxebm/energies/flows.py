"""A small normalising flow of affine couplings: a density that can be both evaluated and sampled in one pass.

It serves as the noise of `jaxebm.objectives.flow_contrastive`, as a proposal, and, learnt by maximum
likelihood, as a normalised energy, ``-flow.apply(variables, x, method="log_density")``.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxebm import checks
from jaxebm.cpu.noise import standard_normal
from jaxebm.energies.network_layers import ACTIVATIONS, he_normal
from jaxebm.energies.target import LOG_TWO_PI
from jaxebm.trees import wide_dtype
from jaxebm.types import Array

__all__ = ["CouplingFlow"]


class CouplingFlow(nn.Module):
    r"""Normalising flow of affine coupling layers (RealNVP) on one array of any shape with d >= 2 entries.

    .. math:: z_0 = e^{-a} (x - m), \qquad z_b \leftarrow (z_b - t_l(z_a))\, e^{-s_l(z_a)}, \qquad
        \log q(x) = \log N(z_L; 0, I) - \sum a - \sum_l \sum s_l(z_a)

    Each layer moves one half b of the entries by what a perceptron makes of the other half a; the halves
    change places, and every two layers they are drawn anew. Log-scales stay below a bound, s = S tanh(r / S),
    so that no layer can overflow. At initialisation q is the standard normal.

    ``module.init(rng_key, x)`` reads the shape of one example x; then

        log_density = module.apply(variables, x, method="log_density")                       # ()
        xs = module.apply(variables, rng_key, 100, method="sample")                          # (100, ...)
        xs, log_densities = module.apply(variables, rng_key, 100, method="sample_and_log_density")

    ``module.apply(variables, x)`` is the log-density, too.

    Attributes:
      num_layers: L, the number of coupling layers.
      widths: Units of each hidden layer of the perceptrons.
      activation: A name in `jaxebm.energies.ACTIVATIONS`.
      max_log_scale: S > 0, the bound of each layer's log-scales.

    Raises:
      ValueError: If an integer is below 1, the activation is unknown, ``max_log_scale`` is not above 0, or x
        has fewer than two entries or another shape than at initialisation.
      TypeError: If x is not floating-point.

    Example:
      >>> module = CouplingFlow(num_layers=2, widths=(8,))
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros(2))
      >>> round(float(jax.jit(module.apply)(variables, jnp.zeros(2))), 4)
      -1.8379
      >>> draw = lambda rng_key: module.apply(variables, rng_key, 5, method="sample")
      >>> jax.jit(draw)(jax.random.key(1)).shape
      (5, 2)

    Reference:
      Dinh, Sohl-Dickstein & Bengio 2017 (arXiv 1605.08803), section 3.
    """

    num_layers: int = 8
    widths: Sequence[int] = (64, 64)
    activation: str = "swish"
    max_log_scale: float = 2.0

    def __call__(self, x: Array) -> Array:
        """Returns log q(x), shape (), of one x."""
        return self.log_density(x)

    def log_density(self, x: Array) -> Array:
        """Returns log q(x), shape (), in float32 or wider, of one x."""
        z, log_determinant = self.transform(x)
        return _log_normal(jnp.ravel(z)) + log_determinant

    def sample(self, rng_key: Array, num_samples: int) -> Array:
        """Returns independent draws, (num_samples, ...), each of the shape of one x."""
        return self.sample_and_log_density(rng_key, num_samples)[0]

    def sample_and_log_density(self, rng_key: Array, num_samples: int) -> tuple[Array, Array]:
        """Returns draws (num_samples, ...) and their log q, (num_samples,), from one pass.

        Both are differentiable in the variables, the draws at fixed normals.
        """
        checks.rng_key("rng_key", rng_key)
        checks.positive_integer("num_samples", num_samples)
        location = self.get_variable("params", "location")
        if location is None:
            raise ValueError("variables are missing: module.init(rng_key, x) makes them, from one example x.")
        z = standard_normal(rng_key, (num_samples, *location.shape), location.dtype)
        variables = self.variables
        flow = self.clone(parent=None)

        def draw(one: Array) -> tuple[Array, Array]:
            pair: Any = flow.apply(variables, one, inverse=True, method="transform")
            return pair[0], _log_normal(jnp.ravel(one)) - pair[1]

        return jax.vmap(draw)(z)

    @nn.compact
    def transform(self, x: Array, inverse: bool = False) -> tuple[Array, Array]:
        """Returns z(x) and log |det dz/dx|; with ``inverse``, x(z) and log |det dx/dz|."""
        self._check(x)
        shape, dtype = jnp.shape(x), wide_dtype(x)
        initialised = self.get_variable("params", "location")
        if initialised is not None and initialised.shape != shape:
            raise ValueError(
                f"x has shape {shape} where the flow was initialised for {initialised.shape}: x must be one "
                f"example, without a batch axis; batch with jax.vmap."
            )
        location = self.param("location", nn.initializers.zeros_init(), shape, dtype)
        log_scale = self.param("log_scale", nn.initializers.zeros_init(), shape, dtype)
        y = jnp.ravel(x).astype(dtype)
        location, log_scale = jnp.ravel(location), jnp.ravel(log_scale)
        log_determinant = jnp.zeros((), dtype)
        if not inverse:
            y = (y - location) * jnp.exp(-log_scale)
        for layer in reversed(range(self.num_layers)) if inverse else range(self.num_layers):
            y, change = self._couple(y, layer, inverse)
            log_determinant += change
        if inverse:
            y = y * jnp.exp(log_scale) + location
        total = jnp.sum(log_scale)
        return jnp.reshape(y, shape), log_determinant + (total if inverse else -total)

    def _couple(self, y: Array, layer: int, inverse: bool) -> tuple[Array, Array]:
        """One layer: moves half of the entries, and returns the log-determinant."""
        kept, moved = _halves(y.size, layer)
        hidden = y[kept]
        for level, width in enumerate(self.widths):
            hidden = nn.Dense(width, kernel_init=he_normal, name=f"layer_{layer}_hidden_{level}")(hidden)
            hidden = ACTIVATIONS[self.activation](hidden)
        last = nn.Dense(
            2 * moved.size, kernel_init=nn.initializers.zeros_init(), name=f"layer_{layer}_output"
        )(hidden)
        shift, raw = jnp.split(last.astype(y.dtype), 2)
        log_scale = self.max_log_scale * jnp.tanh(raw / self.max_log_scale)
        if inverse:
            return y.at[moved].set(y[moved] * jnp.exp(log_scale) + shift), jnp.sum(log_scale)
        return y.at[moved].set((y[moved] - shift) * jnp.exp(-log_scale)), -jnp.sum(log_scale)

    def _check(self, x: Array) -> None:
        if self.name is not None:
            checks.text("name", self.name)
        checks.positive_integer("num_layers", self.num_layers)
        checks.instance("widths", self.widths, (tuple, list), "One number a layer.")
        for width in self.widths:
            checks.positive_integer("widths", width)
        checks.one_of("activation", self.activation, ACTIVATIONS)
        checks.positive_number("max_log_scale", self.max_log_scale)
        checks.array("x", x)
        checks.floating("x", x)
        if math.prod(jnp.shape(x)) < 2:
            raise ValueError(f"x has shape {jnp.shape(x)}: a coupling needs at least two entries.")


def _halves(size: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """The entries that a layer keeps and those that it moves; the next layer changes them, of each pair."""
    order = np.random.default_rng(layer // 2).permutation(size)
    first, second = order[: size // 2], order[size // 2 :]
    return (first, second) if layer % 2 == 0 else (second, first)


def _log_normal(z: Array) -> Array:
    return -0.5 * (jnp.sum(z**2) + z.size * LOG_TWO_PI)
