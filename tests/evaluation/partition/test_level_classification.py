"""Classification of noise levels by energies: its exact value, and what energies of wrong constants lose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from jaxebm.evaluation import classify_levels

pytestmark = pytest.mark.usefixtures("cheap_compilation")

LEVELS = np.array([4.0, 2.0, 1.0, 0.3])
MEANS, WEIGHTS, SCALE = np.array([-3.0, 2.0]), np.array([0.8, 0.2]), 0.5


def mixture_at(params, x, level):
    """-log p of a skewed mixture under noise; params are constants added at the levels, and the weights."""
    constants, weights = params
    variance = SCALE**2 + level**2
    terms = jnp.log(weights) - 0.5 * (x[0] - MEANS) ** 2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)
    return -jax.nn.logsumexp(terms) + jnp.interp(level, LEVELS[::-1], constants[::-1])


def data(n):
    keys = jax.random.split(jax.random.key(0))
    component = jax.random.choice(keys[0], 2, (n,), p=jnp.asarray(WEIGHTS))
    return jnp.asarray(MEANS)[component][:, None] + SCALE * jax.random.normal(keys[1], (n, 1))


def exact(constants, weights):
    """By quadrature over y, for each level."""
    y = np.linspace(-30, 30, 20_001)

    def log_density(weights, level):
        scale = np.hypot(SCALE, level)
        return logsumexp(norm.logpdf(y, MEANS[:, None], scale), b=np.asarray(weights)[:, None], axis=0)

    energies = np.stack([c - log_density(weights, s) for c, s in zip(constants, LEVELS, strict=True)])
    losses = energies + logsumexp(-energies, axis=0)
    truth = np.exp([log_density(WEIGHTS, s) for s in LEVELS])
    return np.sum(truth * losses) * (y[1] - y[0]) / len(LEVELS)


@pytest.mark.parametrize(
    ("constants", "weights"),
    [
        ((0.0, 0.0, 0.0, 0.0), (0.8, 0.2)),
        ((7.0, 7.0, 7.0, 7.0), (0.8, 0.2)),
        ((0.0, 1.0, 0.0, -2.0), (0.2, 0.8)),
    ],
)
def test_the_cross_entropy_is_that_of_quadrature(constants, weights):
    params = jnp.asarray(constants), jnp.asarray(weights)
    found = classify_levels(jax.random.key(1), mixture_at, params, data(4000), LEVELS, batch_size=1000)
    expected = exact(np.array(constants), np.array(weights))
    assert abs(float(found.cross_entropy) - expected) < 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.03


def test_the_truth_is_best_and_wrong_constants_and_weights_cost():
    truth = exact(np.zeros(4), WEIGHTS)
    assert truth < exact(np.array([0.0, 0.5, 0.0, 0.0]), WEIGHTS) - 0.01
    assert truth < exact(np.zeros(4), np.array([0.2, 0.8])) - 0.01
    apart = classify_levels(
        jax.random.key(2),
        lambda params, x, level: 0.5 * jnp.sum(x**2) / level**2 + x.size * jnp.log(level),
        None,
        jnp.zeros((20, 64)),
        np.array([100.0, 10.0, 1.0]),
    )
    assert float(apart.accuracy) == 1.0
    assert float(apart.cross_entropy) < 1e-4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"levels": np.array([1.0, 2.0])}, ValueError, "levels"),
        ({"levels": np.array([1.0])}, ValueError, "levels"),
        ({"levels": np.array([1.0, 0.0])}, ValueError, "levels"),
        ({"xs": jnp.zeros((0, 1))}, ValueError, "xs"),
        ({"xs": jnp.zeros((3, 1), int)}, TypeError, "xs"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"energy_at": lambda x: x}, TypeError, "energy_at"),
        ({"energy_at": lambda params, x, level: x}, ValueError, "energy_at"),
        ({"rng_key": 0}, TypeError, "rng_key"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    given = {
        "rng_key": jax.random.key(0),
        "energy_at": mixture_at,
        "params": (jnp.zeros(4), jnp.asarray(WEIGHTS)),
        "xs": data(4),
        "levels": LEVELS,
    } | change
    with pytest.raises(error, match=message):
        classify_levels(**given)
