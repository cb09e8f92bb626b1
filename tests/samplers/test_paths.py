"""The energy between two others: its values and derivatives, and its ends where the other is infinite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers import mala, parallel_tempering, run_chain
from jaxebm.samplers.paths import between


def test_it_is_the_weighted_sum_and_so_are_its_derivatives():
    values, slopes = jax.value_and_grad(between, argnums=(0, 1, 2))(0.25, 3.0, 5.0)
    np.testing.assert_allclose(values, 3.5)
    np.testing.assert_allclose(slopes, (2.0, 0.75, 0.25))


@pytest.mark.parametrize("other", [jnp.inf, jnp.nan])
def test_the_other_energy_has_no_part_at_the_ends(other):
    assert between(0.0, 2.0, other) == 2.0
    assert between(1.0, other, 2.0) == 2.0


def test_a_reference_of_bounded_support_does_not_confine_the_target():
    """Replicas at b = 0, .5, 1 of N(0, 1), the hot one uniform on (-1, 1): the cold one has variance 1."""

    def reference(x):
        return jnp.where(jnp.abs(x[0]) < 1, 0.0, jnp.inf)

    tempering = parallel_tempering(
        lambda x: 0.5 * jnp.sum(x**2),
        partial(mala, step_size=0.5),
        jnp.array([0.0, 0.5, 1.0]),
        reference=reference,
    )
    run = jax.jit(
        partial(run_chain, kernel=tempering, num_steps=20_000, collect=lambda s, i: s.position[-1, 0])
    )
    _, cold = run(jax.random.key(0), position=jnp.zeros((3, 1)))
    assert jnp.max(jnp.abs(cold)) > 3
    assert abs(float(jnp.var(cold)) - 1) < 0.1  # sd of the estimate about .02, of some 5000 independent draws
