"""A Gaussian of independent entries over any pytree: what noisy data are close to at a high noise level."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxebm.energies.target import LOG_TWO_PI
from jaxebm.trees import normal_like, widened
from jaxebm.types import Array, Position

__all__ = ["IndependentGaussian"]


class IndependentGaussian(NamedTuple):
    """N(mean, variance) in each entry: ``mean`` and ``variance`` in the structure of one example."""

    mean: Position
    variance: Position

    def at_level(self, level: Array | float) -> "IndependentGaussian":
        """Returns the distribution of x + level z, z standard normal: each variance is larger by level^2."""
        variance = jax.tree.map(
            lambda leaf: widened(leaf) + jnp.square(jnp.asarray(level, widened(leaf).dtype)), self.variance
        )
        return IndependentGaussian(self.mean, variance)

    def sample(self, rng_key: Array) -> Position:
        """Returns one draw, in the dtype of the mean."""
        noise = normal_like(rng_key, self.mean)
        return jax.tree.map(
            lambda mean, variance, z: (mean + jnp.sqrt(variance) * z).astype(mean.dtype), *self, noise
        )

    def log_density(self, x: Position) -> Array:
        """Returns log N(x; mean, variance), shape ()."""

        def term(mean: Array, variance: Array, x: Array) -> Array:
            squares = (widened(x) - mean) ** 2 / variance
            return -0.5 * jnp.sum(squares + jnp.log(variance) + LOG_TWO_PI)

        return jax.tree.reduce(jnp.add, jax.tree.map(term, *self, x))
