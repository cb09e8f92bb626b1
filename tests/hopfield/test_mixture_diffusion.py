"""Diffusion over the memories, run backwards: its laws, whatever the number of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxebm.hopfield.memories import modern
from jaxebm.hopfield.mixture import as_gaussian_mixture, reverse_diffusion

pytestmark = pytest.mark.usefixtures("cheap_compilation")

FIVE_SIGMA = scipy.stats.norm.sf(5)
PLANE = np.array([[1.2, 0.3], [-0.5, 0.9], [0.1, -0.4], [-1.0, -1.1]])


def assert_counts(chosen, probabilities):
    counts = np.bincount(np.asarray(chosen), minlength=len(probabilities))
    expected = len(chosen) * probabilities
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert statistic < scipy.stats.chi2.isf(FIVE_SIGMA, len(probabilities) - 1)


def nearest(x, patterns):
    """Which memory is nearest, and how far it is."""
    distances = np.linalg.norm(np.asarray(x)[:, None, :] - patterns[None, :, :], axis=2)
    return distances.argmin(1), distances.min(1)


NUM_CHAINS = 10_000
LEVELS = {"one_step": [2.0, 0.0], "many_steps": [*np.geomspace(2.0, 0.02, 40), 0.0]}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_one_huge_step_of_diffusion_and_many_small_ones_have_one_law(levels):
    """Ends are memories: equally often from the first level's density, by Bayes' rule from a given x."""
    start_key, run_key, point_key = jax.random.split(jax.random.key(10), 3)
    x = jnp.array([1.5, 0.5])

    @jax.jit
    def run(patterns, levels):
        component = jnp.arange(NUM_CHAINS) % 4
        starts = patterns[component] + levels[0] * jax.random.normal(start_key, (NUM_CHAINS, 2))
        chains = jax.vmap(reverse_diffusion, (0, None, 0, None))
        from_density = chains(jax.random.split(run_key, NUM_CHAINS), patterns, starts, levels)
        points = jnp.broadcast_to(x, (NUM_CHAINS, 2))
        return from_density, chains(jax.random.split(point_key, NUM_CHAINS), patterns, points, levels)

    patterns = PLANE.astype(np.float32)
    from_density, from_point = run(patterns, jnp.asarray(levels))
    for ends, law in (
        (from_density, np.full(4, 0.25)),
        (
            from_point,
            scipy.special.softmax(-np.sum((PLANE - np.asarray(x)) ** 2, axis=1) / (2 * levels[0] ** 2)),
        ),
    ):
        chosen, distance = nearest(ends, patterns)
        np.testing.assert_array_equal(distance, 0)
        assert_counts(chosen, law)


def test_diffusion_that_stops_early_has_the_mixture_of_that_level():
    levels = np.linspace(1.5, 0.4, 6)
    start_key, run_key, exact_key = jax.random.split(jax.random.key(11), 3)

    @jax.jit
    def run(patterns, levels):
        first, last = (
            as_gaussian_mixture(modern(patterns, level**-2, equal_weights=True))
            for level in levels[jnp.array([0, -1])]
        )
        starts = first.sample(start_key, first.params, NUM_CHAINS)
        keys = jax.random.split(run_key, NUM_CHAINS)
        ends = jax.vmap(reverse_diffusion, (0, None, 0, None))(keys, patterns, starts, levels)
        energies = jax.vmap(last.energy, (None, 0))
        exact = last.sample(exact_key, last.params, NUM_CHAINS)
        return [jnp.column_stack([energies(last.params, x), x]) for x in (ends, exact)]

    ends, exact = run(PLANE.astype(np.float32), jnp.asarray(levels))
    for found, expected in zip(ends.T, exact.T, strict=True):  # the energy and both coordinates
        assert scipy.stats.ks_2samp(found, expected).pvalue > 1e-6


def test_the_probability_flow_transports_quantiles():
    """In one dimension the flow is monotone, so P(X < x) is the same at both ends, for dense levels."""
    patterns, levels = np.array([[-1.0], [0.2], [1.5]]), np.geomspace(3.0, 0.1, 400)
    starts = np.linspace(-6, 6, 41)

    @jax.jit
    def run(patterns, levels, starts):
        def flow(x):
            return reverse_diffusion(jax.random.key(0), patterns, x, levels, deterministic=True)

        return jax.vmap(flow)(starts)

    ends = np.asarray(run(patterns.astype(np.float32), jnp.asarray(levels), starts[:, None]))[:, 0]
    before = scipy.stats.norm.cdf((starts[:, None] - patterns.T) / levels[0]).mean(1)
    after = scipy.stats.norm.cdf((ends[:, None] - patterns.T) / levels[-1]).mean(1)
    np.testing.assert_allclose(after, before, atol=0.01)

    to_zero = np.asarray(run(patterns.astype(np.float32), jnp.append(levels, 0.0), starts[:, None]))
    which, distance = nearest(to_zero, patterns)
    assert np.mean(distance < 0.01) > 0.9  # all but those that a quantile between two memories sends astray
    assert set(which) == {0, 1, 2}


def test_with_a_single_memory_the_flow_is_a_straight_line():
    """x' = xi + (s / sigma)(x - xi), however many the steps."""
    pattern, x = np.array([[1.0, -2.0, 0.5]]), jnp.array([4.0, 4.0, 4.0])
    for levels in ([3.0, 1.0], [3.0, 2.9, 1.7, 1.0]):
        end = reverse_diffusion(jax.random.key(0), pattern, x, levels, deterministic=True)
        np.testing.assert_allclose(end, pattern[0] + (x - pattern[0]) / 3, atol=1e-5)


def test_noise_levels_must_fall():
    arguments = jax.random.key(0), PLANE, jnp.zeros(2)
    for levels in ([1.0, 1.0], [1.0, 2.0], [1.0, 0.0, 0.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="noise_levels"):
            reverse_diffusion(*arguments, levels)
    with pytest.raises(ValueError, match=r"noise_levels=.*at least 0"):
        reverse_diffusion(*arguments, [1.0, -1.0])
    for levels in ([1.0], 1.0, [[1.0, 0.0]]):
        with pytest.raises(ValueError, match=r"\(T,\) with T >= 2 is needed"):
            reverse_diffusion(*arguments, levels)
    with pytest.raises(ValueError, match=r"x has shape \(3,\): \(2,\)"):
        reverse_diffusion(jax.random.key(0), PLANE, jnp.zeros(3), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"\(K, D\) is needed"):
        reverse_diffusion(jax.random.key(0), PLANE[0], jnp.zeros(2), [1.0, 0.0])
