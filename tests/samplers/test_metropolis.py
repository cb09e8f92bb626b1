"""BlackJAX's kernels behind the protocol: the mapping of parameters, and tuning."""

import blackjax
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.chains import run_chain, run_chains
from jaxebm.samplers.metropolis import hmc, mala, nuts, warm_up

SCALES = jnp.array([1.0, 10.0])


def stretched(x):
    """A Gaussian with standard deviations 1 and 10."""
    return 0.5 * jnp.sum((x / SCALES) ** 2)


def log_density(x):
    return -stretched(x)


MASS = jnp.array([1.0, 100.0])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: mala(stretched, 0.3), lambda: blackjax.mala(log_density, 0.3)),
        (lambda: hmc(stretched, 0.3, 4), lambda: blackjax.hmc(log_density, 0.3, jnp.ones(2), 4)),
        (lambda: hmc(stretched, 0.3, 4, MASS), lambda: blackjax.hmc(log_density, 0.3, MASS, 4)),
        (lambda: nuts(stretched, 0.3), lambda: blackjax.nuts(log_density, 0.3, jnp.ones(2))),
        (lambda: nuts(stretched, 0.3, MASS), lambda: blackjax.nuts(log_density, 0.3, MASS)),
    ],
    ids=["mala", "hmc", "hmc with mass", "nuts", "nuts with mass"],
)
def test_the_kernels_are_blackjaxs_own_with_log_density_minus_energy(ours, theirs):
    position = jnp.array([0.5, -3.0])
    mine, other = ours(), theirs()
    left, right = mine.init(position, rng_key=jax.random.key(9)), other.init(position)
    chex.assert_trees_all_close(left, right)
    chex.assert_trees_all_close(
        jax.jit(mine.step)(jax.random.key(0), left), jax.jit(other.step)(jax.random.key(0), right), rtol=1e-5
    )


def test_num_integration_steps_may_be_traced():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(num_integration_steps):
        kernel = hmc(stretched, 0.3, num_integration_steps)
        return kernel.step(jax.random.key(0), kernel.init(jnp.ones(2)))[0].position

    for steps in (2, 5):
        expected = hmc(stretched, 0.3, steps)
        expected = expected.step(jax.random.key(0), expected.init(jnp.ones(2)))[0].position
        np.testing.assert_allclose(run(steps), expected, rtol=1e-5)


def test_a_mass_matrix_of_another_shape_is_refused():
    for make in (lambda mass: hmc(stretched, 0.3, 2, mass), lambda mass: nuts(stretched, 0.3, mass)):
        kernel = make(jnp.ones(3))
        with pytest.raises(ValueError, match=r"inverse_mass_matrix has shape \(3,\).*\(2,\)"):
            kernel.step(jax.random.key(0), kernel.init(jnp.ones(2)))


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="num_integration_steps"):
        hmc(stretched, 0.1, 0)
    with pytest.raises(ValueError, match="max_num_doublings"):
        nuts(stretched, 0.1, max_num_doublings=2.5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dense", [False, True])
def test_nuts_warm_up_finds_the_scales_and_its_parameters_fit_the_kernel(dense):
    parameters, position = warm_up(
        jax.random.key(0), stretched, jnp.zeros(2), num_steps=600, dense_mass_matrix=dense
    )
    mass = np.asarray(parameters["inverse_mass_matrix"])
    assert mass.shape == ((2, 2) if dense else (2,))
    variances = np.diag(mass) if dense else mass
    # Stan's last window holds about 300 correlated draws: within a factor of 2 is far outside of chance.
    np.testing.assert_array_less(np.abs(np.log(variances / np.array([1.0, 100.0]))), np.log(2))

    kernel = nuts(stretched, **parameters)
    states, acceptance = run_chains(
        jax.random.key(1),
        kernel,
        jnp.tile(position[None], (500, 1)),
        10,
        collect=lambda state, info: info.acceptance_rate,
    )
    assert 0.65 < float(acceptance.mean()) < 0.95  # 0.8 was asked for
    variance = np.mean(np.asarray(states.position, np.float64) ** 2, axis=0)
    assert np.all(np.abs(variance / np.array([1.0, 100.0]) - 1) < 5 * np.sqrt(2 / 500))


def test_hmc_warm_up_hands_back_the_trajectory_length():
    position = {"u": jnp.zeros(1), "v": jnp.zeros((1, 1))}

    def target(x):
        return stretched(jnp.concatenate([x["u"], x["v"][0]]))

    parameters, position = warm_up(
        jax.random.key(0), target, position, algorithm="hmc", num_steps=300, num_integration_steps=5
    )
    assert set(parameters) == {"step_size", "inverse_mass_matrix", "num_integration_steps"}
    state, info = run_chain(
        jax.random.key(1),
        hmc(target, **parameters),
        position,
        200,
        collect=lambda state, info: info.acceptance_rate,
    )
    assert state.position["v"].shape == (1, 1)
    assert 0.6 < float(info.mean()) < 0.97


@pytest.mark.parametrize("rate", [None, 0.8])
def test_mala_warm_up_reaches_the_asked_acceptance(rate):
    def target(x):
        return 0.5 * jnp.sum((x / 0.03) ** 2)  # far stiffer than the first step of 1

    parameters, position = warm_up(
        jax.random.key(0),
        target,
        jnp.zeros(10),
        algorithm="mala",
        num_steps=3000,
        target_acceptance_rate=rate,
    )
    _, acceptance = run_chains(
        jax.random.key(1),
        mala(target, **parameters),
        jnp.tile(position[None], (500, 1)),
        50,
        collect=lambda state, info: info.acceptance_rate,
    )
    # Dual averaging leaves an error of order 1 / sqrt(steps) in the average step; .05 is about three of them.
    assert abs(float(acceptance[:, 25:].mean()) - (rate or 0.574)) < 0.05


def test_warm_up_refuses_what_it_cannot_do():
    key, start = jax.random.key(0), jnp.zeros(2)
    with pytest.raises(ValueError, match="algorithm='sgld'"):
        warm_up(key, stretched, start, algorithm="sgld")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_integration_steps"):
        warm_up(key, stretched, start, algorithm="hmc")
    with pytest.raises(ValueError, match="target_acceptance_rate"):
        warm_up(key, stretched, start, target_acceptance_rate=1.0)
    with pytest.raises(ValueError, match="num_steps"):
        warm_up(key, stretched, start, num_steps=0)
    with pytest.raises(ValueError, match="dense_mass_matrix"):
        warm_up(key, stretched, start, algorithm="mala", dense_mass_matrix=True)
    with pytest.raises(TypeError, match="position"):
        warm_up(key, stretched, jnp.arange(2))
