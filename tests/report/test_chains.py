"""Chains through the levels of recovery likelihood: their law in closed form, and what they cost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.report import LevelPath
from jaxebm.report.chains import advance_along
from jaxebm.samplers import geometric_levels

MEANS, VARIANCE, NUM_LEVELS = (-2.0, 3.0), 0.25, 4


def gaussian_logits(params, x, level):
    """Two classes, N(-2, .25) and N(3, .25), under noise."""
    variance = params + level**2
    return -0.5 * (x[0] - jnp.array(MEANS)) ** 2 / variance - 0.5 * jnp.log(variance)


PATH = LevelPath(
    gaussian_logits, lowest=0.1, highest=8.0, guidance=1.0, num_levels=NUM_LEVELS, step_factor=0.4, mean=0.5
)


def closed_form(mean, num_steps):
    """Mean and variance at the end of the chains for one class, whose every step is linear."""
    levels = np.asarray(geometric_levels(PATH.highest, PATH.lowest, NUM_LEVELS), np.float64)
    each, longer = divmod(num_steps - 1, NUM_LEVELS - 1)
    lengths = [each] * (NUM_LEVELS - 1 - longer) + [each + 1] * longer
    offset, variance = PATH.mean - mean, PATH.highest**2
    for (higher, lower), length in zip(itertools.pairwise(levels), lengths, strict=True):
        spread = higher**2 - lower**2
        step = PATH.step_factor * spread * lower**2 / higher**2
        curvature = 1 / spread + 1 / (VARIANCE + lower**2)
        kept, noise = 1.0, 0.0  # x = kept y + noise n, from x = y
        for _ in range(length):
            kept = (1 - step * curvature) * kept + step / spread
            noise = (1 - step * curvature) ** 2 * noise + 2 * step
        offset, variance = kept * offset, kept**2 * variance + noise
    kept = 1 - PATH.lowest**2 / (VARIANCE + PATH.lowest**2)  # the last step
    return mean + kept * offset, kept**2 * variance


@pytest.mark.parametrize("num_steps", [4, 12])
def test_recovering_chains_of_a_gaussian_have_the_moments_of_their_closed_form(num_steps):
    n = 4000
    starts, labels = jax.random.normal(jax.random.key(0), (n, 1)), jnp.arange(n) % 2
    x = advance_along(PATH)(jax.random.key(1), jnp.array(VARIANCE), starts, labels, num_steps=num_steps)
    x = np.asarray(x, np.float64)[:, 0]
    for label, mean in enumerate(MEANS):
        found = x[label::2]
        expected, variance = closed_form(mean, num_steps)
        assert abs(found.mean() - expected) < 5 * np.sqrt(variance / len(found))
        spread = np.mean((found - expected) ** 2)
        assert abs(spread - variance) < 5 * variance * np.sqrt(2 / len(found))


def test_long_recovering_chains_draw_the_class():
    n = 2000
    path = PATH._replace(num_levels=8, step_factor=0.1)
    noisy = VARIANCE + path.lowest**2
    starts, labels = jax.random.normal(jax.random.key(0), (n, 1)), jnp.ones(n, int)
    x = advance_along(path)(jax.random.key(1), jnp.array(VARIANCE), starts, labels, num_steps=7 * 60 + 1)
    x = np.asarray(x, np.float64)[:, 0]
    variance = VARIANCE**2 / noisy  # of expected clean values
    assert abs(x.mean() - MEANS[1]) < 5 * np.sqrt(variance / n)
    biased = 1 / (1 - path.step_factor / 2)  # of unadjusted steps, at most
    error = 5 * np.sqrt(2 / n)
    assert 1 - error < x.var() / variance < biased + error


def test_a_recovering_path_takes_one_gradient_a_step_and_stays_in_range():
    seen = []

    def counted(params, x, level):
        jax.debug.callback(lambda level: seen.append(float(level)), level)
        return gaussian_logits(params, x, level)

    path = PATH._replace(logits_at=counted, state_clamp=(-1.0, 1.0))
    run = advance_along(path)
    x = run(jax.random.key(0), jnp.array(VARIANCE), jnp.ones((1, 1)), jnp.ones(1, int), num_steps=8)
    jax.effects_barrier()
    levels = np.asarray(geometric_levels(path.highest, path.lowest, NUM_LEVELS))
    found, counts = np.unique(np.round(seen, 4), return_counts=True)
    np.testing.assert_allclose(found, levels[:0:-1], atol=1e-4)
    assert x.shape == (1, 1)
    assert float(jnp.abs(x)[0, 0]) <= 1.0
    assert counts.tolist() == [4, 2, 2]  # upwards; the last step is at the lowest level, too


def test_the_fewest_steps_of_a_path():
    assert PATH.least_steps == 4
    assert PATH._replace(num_levels=None).least_steps == 2
