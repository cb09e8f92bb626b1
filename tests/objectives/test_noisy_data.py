"""How noise levels are drawn: the law of one level, and levels that cover a batch evenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxebm.objectives.noisy_data import LevelLaw, check_level_used, floating_levels, spread_evenly
from jaxebm.types import BATCH_AXIS


@pytest.mark.parametrize("median", [None, 0.05, 2.0, 1e3])
def test_levels_follow_their_law(median):
    """Quantiles against the law itself: uniform or normal in log sigma, cut off at both ends."""
    law = LevelLaw(0.1, 20.0, median, 0.9).check()
    shares = np.linspace(0.005, 0.995, 101)
    levels = np.asarray(law.quantile(jnp.asarray(shares, jnp.float32)), np.float64)
    ends = np.log([0.1, 20.0])
    base = scipy.stats.uniform(ends[0], np.diff(ends)[0])
    if median is not None:
        base = scipy.stats.norm(np.log(median), 0.9)
    below, above = base.cdf(ends)
    tolerance = 2e-3 if median != 1e3 else 0.1  # far from the median in float32
    np.testing.assert_allclose((base.cdf(np.log(levels)) - below) / (above - below), shares, atol=tolerance)
    assert levels.min() >= 0.1 * (1 - 1e-6)
    assert levels.max() <= 20.0 * (1 + 1e-6)


def test_the_uniform_law_is_geometric_and_each_level_as_wide_as_its_share():
    law = LevelLaw(0.1, 10.0).check()
    np.testing.assert_allclose(law.quantile(jnp.array([0.0, 0.5])), [0.1, 1.0], rtol=1e-6)
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            assert LevelLaw(1, 4, 2).check().quantile(jnp.zeros(3, dtype)).dtype == dtype


@pytest.mark.parametrize("start", [0.0, 0.3, 0.999])
def test_shares_of_a_batch_cover_the_interval_evenly(start):
    def share(index):
        del index
        return spread_evenly(jnp.asarray(start, jnp.float32))

    found = np.asarray(jax.vmap(share, axis_name=BATCH_AXIS)(jnp.arange(8)))
    np.testing.assert_allclose(found, (start + np.arange(8) / 8) % 1, atol=1e-6)
    assert sorted(np.floor(found * 8)) == list(range(8))  # one in each eighth


@pytest.mark.parametrize(
    ("law", "named"),
    [
        (LevelLaw(0.0, 1.0), "lowest=0.0"),
        (LevelLaw(1.0, 1.0), "highest=1.0: highest must be above lowest=1.0"),
        (LevelLaw(0.1, np.inf), "highest=inf"),
        (LevelLaw(0.1, 1.0, 0.0), "level_median=0.0"),
        (LevelLaw(0.1, 1.0, None, -1.0), "level_spread=-1.0"),
        (LevelLaw(0.1, np.ones(2)), r"highest has shape \(2,\)"),
    ],
)
def test_levels_without_a_law_are_refused(law, named):
    with pytest.raises(ValueError, match=named):
        law.check()


def test_ends_become_floating_point_numbers_and_traced_ones_pass():
    assert floating_levels(1, np.float32(4)) == (1.0, 4.0)
    assert all(type(level) is float for level in floating_levels(1, jnp.float32(4)))
    found = jax.eval_shape(lambda low: floating_levels(low, 3.0), jnp.bfloat16(1.0))
    assert found[0].dtype == jnp.float32
    with pytest.raises(TypeError, match="lowest"):
        floating_levels("low", 1.0)


def test_an_energy_must_read_its_level():
    x = jnp.ones(2)
    check_level_used(lambda params, x, level: params * jnp.sum(x) * level, 1.0, x, "mine")
    with pytest.raises(ValueError, match="energy_at ignores the level that it is told: mine learns"):
        check_level_used(lambda params, x, level: params * jnp.sum(x), 1.0, x, "mine")
