"""What the tests of objectives without chains share."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.objectives import Batch, Negatives


@lru_cache(maxsize=1)
def _gradients(objective, sample, num_batches, batch_size, seed):
    """The compiled function of the parameters, kept while only they change."""
    rng_keys = jax.random.split(jax.random.key(seed), num_batches)

    @jax.jit
    def gradients(params):
        def gradient(rng_key):
            key_data, key_loss = jax.random.split(rng_key)
            batch = Batch(None, None, sample(key_data, batch_size))
            return jax.grad(objective.loss, has_aux=True)(params, key_loss, batch, Negatives(None, None))[0]

        found = jax.lax.map(gradient, rng_keys)
        return jnp.concatenate([leaf.reshape(num_batches, -1) for leaf in jax.tree.leaves(found)], axis=1)

    return gradients


def _gradient_scores(objective, params, sample, *, num_batches=64, batch_size=256, seed=0):
    found = np.asarray(_gradients(objective, sample, num_batches, batch_size, seed)(params), np.float64)
    errors = found.std(axis=0, ddof=1) / np.sqrt(num_batches)
    return found.mean(axis=0) / np.where(errors > 0, errors, 1.0)


@pytest.fixture(scope="session")
def gradient_scores():
    """``gradient_scores(objective, params, sample)``: the mean gradient of a loss in standard errors.

    Over 64 batches of 256 draws of ``sample(rng_key, num_samples)``, one number for each parameter. Where the
    gradient of the expected loss is zero, |t| of 63 degrees of freedom exceeds 5 once in 200,000.
    """
    return _gradient_scores
