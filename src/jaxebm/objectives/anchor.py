"""What pins the constant of a normalised energy: at the highest noise level the data are nearly Gaussian.

Derivatives of U, or differences between levels, leave one constant free. Here it is learnt at the highest
level sigma_max, where noisy data y = x + sigma_max z are told from draws of a Gaussian q of the same mean and
variances by the log ratio -U(y; sigma_max) - log q(y) (noise-contrastive estimation). Its minimiser is
U = -log p, normalised, whatever q is; near the Gaussian it takes few examples. The logistic loss has bounded
gradients, so a U that is far off does no harm.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm.energies.target import LOG_TWO_PI
from jaxebm.trees import noisy, normal_like, wide_dtype, widened
from jaxebm.types import Array, Position

__all__ = [
    "GaussianReference",
    "anchor_loss",
    "fit_reference",
]


class GaussianReference(NamedTuple):
    """A Gaussian with independent entries: ``mean`` and ``variance`` in the structure of one example."""

    mean: Position
    variance: Position

    def sample(self, rng_key: Array) -> Position:
        """Returns one draw."""
        return jax.tree.map(
            lambda mean, variance, z: mean + jnp.sqrt(variance) * z,
            *self,
            normal_like(rng_key, self.mean),
        )

    def log_density(self, y: Position) -> Array:
        """Returns log q(y), shape ()."""
        terms = jax.tree.map(
            lambda mean, variance, y: jnp.sum(
                -0.5 * (widened(y) - mean) ** 2 / variance - 0.5 * jnp.log(variance) - 0.5 * LOG_TWO_PI
            ),
            *self,
            y,
        )
        return jax.tree.reduce(jnp.add, terms)


def fit_reference(xs: Position, highest: Any) -> GaussianReference:
    """Returns the Gaussian of x + highest z by the moments of a batch, each leaf ``(n, ...)``."""
    xs = jax.lax.stop_gradient(jax.tree.map(widened, xs))

    def variance(leaf: Array) -> Array:
        return jnp.var(leaf, axis=0) + jnp.square(jnp.asarray(highest, leaf.dtype))

    return GaussianReference(
        jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), xs), jax.tree.map(variance, xs)
    )


def anchor_loss(
    rng_key: Array, energy_at: Any, x: Position, highest: Any, reference: GaussianReference
) -> Array:
    """The logistic loss of one example and one draw of the reference; log 2 where the two agree."""
    key_noise, key_reference = jax.random.split(rng_key)
    highest = jnp.asarray(highest, wide_dtype(x))
    y, _ = noisy(key_noise, x, highest)
    drawn = jax.tree.map(lambda q, x: q.astype(x.dtype), reference.sample(key_reference), x)

    def log_ratio(y: Position) -> Array:
        return -widened(energy_at(y, highest)) - reference.log_density(y)

    return 0.5 * (jax.nn.softplus(-log_ratio(y)) + jax.nn.softplus(log_ratio(drawn)))
