"""Warm-up: what it learns, of one chain and of many, and what it refuses."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.chains import run_chain, run_chains
from jaxebm.samplers.metropolis import hmc, mala, nuts
from jaxebm.samplers.warm_up import warm_up, warm_up_chains

pytestmark = pytest.mark.usefixtures("cheap_compilation")

SCALES = jnp.array([1.0, 10.0])


def stretched(x):
    """A Gaussian with standard deviations 1 and 10."""
    return 0.5 * jnp.sum((x / SCALES) ** 2)


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
    with pytest.raises(ValueError, match=r"step_size=0\.1"):
        warm_up(key, stretched, start, step_size=0.1)
    with pytest.raises(TypeError, match="dense_mass_matrix"):
        warm_up(key, stretched, start, dense_mass_matrix=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="position"):
        warm_up(key, stretched, jnp.arange(2))
    with pytest.raises(ValueError, match=r"positions.*a batch of chains"):
        warm_up_chains(key, stretched, jnp.zeros(()))


def test_mala_learns_the_scales_of_its_target():
    scales = jnp.array([0.01, 1.0, 30.0])
    parameters, _ = warm_up(
        jax.random.key(0),
        lambda x: 0.5 * jnp.sum((x / scales) ** 2),
        jnp.zeros(3),
        algorithm="mala",
        num_steps=300,
    )
    # On a Gaussian x / (dE/dx) is the variance in every state, mixed or not.
    np.testing.assert_allclose(parameters["inverse_mass_matrix"], scales**2, rtol=1e-3)
    assert 0.3 < float(parameters["step_size"]) < 3  # that of a standard normal in three dimensions


BAD_STARTS = {
    "energy": lambda x: jnp.where(x[0] > 0, jnp.nan, jnp.sum(x**2)),
    "infinite energy": lambda x: jnp.where(x[0] > 0, jnp.inf, 0.0) + jnp.sum(x**2),
    "gradient": lambda x: jnp.sum(jnp.sqrt(jnp.square(x - 1.0))),  # 0 / 0 at 1
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_a_start_without_energy_or_gradient_is_named(case):
    target = BAD_STARTS[case]
    for algorithm in ("mala", "nuts"):
        with pytest.raises(ValueError, match="energy or its gradient is not finite at position"):
            warm_up(jax.random.key(0), target, jnp.ones(2), algorithm=algorithm, num_steps=2)
    positions = jnp.array([[-1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    with pytest.raises(ValueError, match=r"not finite at 1 of 3 positions, the first of them \[1\]"):
        warm_up_chains(jax.random.key(0), target, positions, num_steps=2)


def test_under_jit_a_bad_start_gives_no_step_size():
    tune = jax.jit(
        lambda x: warm_up(jax.random.key(0), BAD_STARTS["energy"], x, algorithm="mala", num_steps=3)[0]
    )
    assert np.isnan(tune(jnp.ones(2))["step_size"])
    assert np.isfinite(tune(-jnp.ones(2))["step_size"])


@pytest.mark.parametrize(
    "target",
    [
        lambda x: jnp.where(jnp.all(x == 0), 0.0, jnp.inf) + 0 * jnp.sum(x),  # nothing is accepted
        lambda x: 0 * jnp.sum(x),  # everything is
    ],
)
def test_a_step_size_without_a_limit_is_refused(target):
    with pytest.raises(ValueError, match="Dual averaging ended at step_size="):
        warm_up(jax.random.key(0), target, jnp.zeros(2), algorithm="mala", num_steps=1000)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("algorithm", ["mala", "hmc", "nuts"])
def test_warm_up_keeps_the_dtype(algorithm, dtype, x64):
    more = {"num_integration_steps": 2} if algorithm == "hmc" else {}
    with jax.enable_x64(x64):
        start = jnp.ones((2, 3), dtype)

        def tune(start):
            pooled = warm_up_chains(
                jax.random.key(0),
                lambda x: 0.5 * jnp.sum(x**2),
                start,
                algorithm=algorithm,
                num_steps=25,
                **more,
            )
            return pooled.positions, pooled.parameters["step_size"]

        # Traced, not run, for one that is run see below.
        positions, step_size = jax.eval_shape(tune, start)
        assert positions.dtype == start.dtype
        assert step_size.dtype == jnp.result_type(float)
        if (algorithm, dtype, x64) == ("mala", "bfloat16", False):
            positions, step_size = jax.jit(tune)(start)
            assert np.all(np.isfinite(np.asarray(positions, float)))
            assert np.isfinite(step_size)


# Many chains: eight schools (Rubin 1981) in the form without a funnel, tau half-Cauchy(5), mu normal(0, 5).

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
MU, TAU = 4.41, 3.59
"""Of 16,000 draws by NUTS."""


def schools(x, centred):
    tau = jnp.exp(x["log_tau"])
    effects = x["z"] if centred else x["mu"] + tau * x["z"]
    prior = (
        0.5 * jnp.sum(((x["z"] - x["mu"]) / tau) ** 2) + 8 * x["log_tau"]
        if centred
        else 0.5 * jnp.sum(x["z"] ** 2)
    )
    likelihood = 0.5 * jnp.sum(((EFFECTS - effects) / ERRORS) ** 2)
    return likelihood + prior + 0.5 * (x["mu"] / 5) ** 2 + jnp.log1p((tau / 5) ** 2) - x["log_tau"]


def near_zero(num_chains):
    draw = 0.1 * jax.random.normal(jax.random.key(1), (num_chains, 10))
    return {"log_tau": draw[:, 0], "mu": draw[:, 1], "z": draw[:, 2:]}


def summary(state, info):
    return state.position["mu"], jnp.exp(state.position["log_tau"]), info.is_divergent


@pytest.mark.parametrize("pool", [True, False])
def test_many_chains_from_near_zero_reach_the_posterior(pool):
    num_chains = 16
    target = functools.partial(schools, centred=False)
    start = near_zero(num_chains)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = warm_up_chains(
            jax.random.key(0),
            target,
            start,
            pool=pool,
            algorithm="hmc",
            num_steps=200,
            num_integration_steps=8,
        )
    parameters = {name: tuned.parameters[name] for name in ("step_size", "inverse_mass_matrix")}
    assert parameters["step_size"].shape == (() if pool else (num_chains,))
    assert parameters["inverse_mass_matrix"].shape == ((10,) if pool else (num_chains, 10))
    assert tuned.num_divergent.shape == tuned.acceptance_rate.shape == (num_chains,)
    assert tuned.num_transitions == 25
    assert float(tuned.acceptance_rate.min()) > 0.4

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None if pool else 0, 0))
    def run(rng_key, tuned_parameters, position):
        kernel = hmc(target, num_integration_steps=8, **tuned_parameters)
        return run_chain(rng_key, kernel, position, 150, collect=summary)[1]

    keys = jax.random.split(jax.random.key(2), num_chains)
    mu, tau, divergent = run(keys, parameters, tuned.positions)
    assert float(divergent.mean()) < 0.02
    for draws, exact in ((mu, MU), (tau, TAU)):
        means = np.asarray(draws, np.float64).mean(axis=1)
        assert abs(means.mean() - exact) < 4.5 * means.std(ddof=1) / np.sqrt(num_chains)


def test_divergences_are_counted_and_said():
    # Neal's funnel: no step size suits both its mouth and its neck, and from the neck HMC diverges.
    def funnel(x):
        return 0.5 * (x[0] / 3) ** 2 + 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) + 0.5 * 9 * x[0]

    mouth, neck = jnp.zeros((24, 10)).at[:, 0].set(4.0), jnp.zeros((8, 10)).at[:, 0].set(-9.0)
    with pytest.warns(UserWarning, match=r"% of the last 25 transitions diverged after tuning"):
        tuned = warm_up_chains(
            jax.random.key(0), funnel, jnp.concatenate([mouth, neck]),
            algorithm="hmc", num_steps=200, target_acceptance_rate=0.6, num_integration_steps=5,
        )  # fmt: skip
    fraction = np.asarray(tuned.num_divergent) / tuned.num_transitions
    assert fraction[24:].mean() > 0.1
    assert np.all((fraction >= 0) & (fraction <= 1))


def test_the_dense_matrix_of_mala_is_the_covariance_of_a_gaussian():
    """From positions and gradients it is exact but for the shrinkage, though one chain has hardly mixed."""
    covariance = np.array([[100.0, 0.9], [0.9, 0.02]])
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    found, _ = warm_up(
        jax.random.key(0),
        lambda x: 0.5 * x @ precision @ x,
        jnp.ones(2),
        algorithm="mala",
        num_steps=600,
        dense_mass_matrix=True,
    )
    np.testing.assert_allclose(found["inverse_mass_matrix"], covariance, rtol=0.1)
