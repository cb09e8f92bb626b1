"""Underdamped Langevin dynamics: the splitting by hand, and its exact law on quadratics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.chains import run_annealed_chain, run_chain, run_chains
from jaxebm.samplers.underdamped import UnderdampedState, underdamped

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CHAINS = 10_000
# stiffness, step size, friction, temperature, mass; h^2 k / (4 m) up to 0.72
CASES = np.array(
    [
        [1.0, 0.5, 1.0, 1.0, 1.0],
        [4.0, 0.8, 0.7, 2.0, 3.0],
        [2.0, 1.2, 5.0, 0.5, 1.0],
        [1.0, 1.7, 2.0, 1.0, 1.0],
        [0.5, 0.3, 20.0, 1.0, 0.1],
    ]
)


def stationary_covariance(stiffness, step_size, friction, temperature, mass):
    """Of (x, p) after a step of B A O A B, from its own matrices: S = M S M^T + L L^T, solved in float64."""
    half = step_size / 2
    kick = np.array([[1, 0], [-half * stiffness, 1]])
    drift = np.array([[1, half / mass], [0, 1]])
    kept = np.exp(-friction * step_size)
    rub = np.diag([1, kept])
    matrix = kick @ drift @ rub @ drift @ kick
    noise = kick @ drift @ np.array([[0.0], [np.sqrt((1 - kept**2) * mass * temperature)]])
    flat = np.linalg.solve(np.eye(4) - np.kron(matrix, matrix), (noise @ noise.T).ravel())
    return flat.reshape(2, 2), np.abs(np.linalg.eigvals(matrix)).max()


def test_the_closed_form_is_the_splittings_own():
    for stiffness, step_size, friction, temperature, mass in CASES:
        covariance, contraction = stationary_covariance(stiffness, step_size, friction, temperature, mass)
        warm = 1 - step_size**2 * stiffness / (4 * mass)
        exact = np.diag([temperature / stiffness, mass * temperature * warm])
        np.testing.assert_allclose(covariance, exact, rtol=1e-10, atol=1e-12)
        assert contraction < 1


@pytest.fixture(scope="module")
def quadratics():
    """Last states of many chains on each quadratic, and their last kinetic temperatures: one program."""

    @jax.jit
    @jax.vmap
    def run(rng_key, case):
        stiffness, step_size, friction, temperature, mass = case
        kernel = underdamped(
            lambda x: 0.5 * stiffness * x**2, step_size, friction, temperature=temperature, mass=mass
        )
        # From the right law of x; p is drawn by init. What is tested is that both stay.
        scale = jnp.sqrt(temperature / stiffness)
        starts = scale * jax.random.normal(jax.random.fold_in(rng_key, 1), (NUM_CHAINS,))
        states, _ = run_chains(rng_key, kernel, starts, 60)
        return states.position, states.momentum

    keys = jax.random.split(jax.random.key(0), len(CASES))
    return [np.asarray(leaf, np.float64) for leaf in run(keys, jnp.asarray(CASES, jnp.float32))]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_law_on_a_quadratic_is_exact(quadratics, case):
    stiffness, step_size, _, temperature, mass = CASES[case]
    x, p = (leaf[case] for leaf in quadratics)
    var_x = temperature / stiffness
    var_p = mass * temperature * (1 - step_size**2 * stiffness / (4 * mass))
    bound = 5 * np.sqrt(2 / NUM_CHAINS)
    assert abs(np.mean(x**2) / var_x - 1) < bound
    assert abs(np.mean(p**2) / var_p - 1) < bound
    assert abs(np.mean(x * p)) < 5 * np.sqrt(var_x * var_p / NUM_CHAINS)


def test_a_far_start_is_forgotten():
    kernel = underdamped(lambda x: 0.5 * x**2, 0.5, 2.0)
    run = jax.jit(lambda key: run_chains(key, kernel, jnp.full(NUM_CHAINS, 30.0), 80)[0].position)
    x = np.asarray(run(jax.random.key(1)), np.float64)  # critically damped: (1 + 40) exp(-40) of the start
    assert abs(x.mean()) < 5 / np.sqrt(NUM_CHAINS)
    assert abs(np.mean(x**2) - 1) < 5 * np.sqrt(2 / NUM_CHAINS)


def test_one_step_is_b_a_o_a_b():
    # At temperature 0, on a quartic, over a pytree with a mass for each leaf.
    step_size, friction = 0.3, 1.5
    mass = {"a": jnp.array([1.0, 4.0]), "b": jnp.array(2.0)}
    start = {"a": jnp.array([1.0, -1.5]), "b": jnp.array([0.5])}
    kernel = underdamped(
        lambda x: sum(jnp.sum(leaf**4) / 4 for leaf in jax.tree.leaves(x)),
        step_size,
        friction,
        temperature=0.0,
        mass=mass,
    )
    _, history = run_chain(
        jax.random.key(0),
        kernel,
        start,
        4,
        collect=lambda state, info: (state.position, state.momentum, info),
    )
    x, p, m = np.array([1.0, -1.5, 0.5]), np.zeros(3), np.array([1.0, 4.0, 2.0])
    for i in range(4):
        info = history[2]
        assert float(info.energy[i]) == pytest.approx(np.sum(x**4) / 4, rel=1e-5)
        assert float(info.gradient_norm[i]) == pytest.approx(np.linalg.norm(x**3), rel=1e-5)
        assert float(info.kinetic_temperature[i]) == pytest.approx(np.mean(p**2 / m), rel=1e-5)
        p = p - step_size / 2 * x**3
        x = x + step_size / 2 * p / m
        p = np.exp(-friction * step_size) * p
        x = x + step_size / 2 * p / m
        p = p - step_size / 2 * x**3
        for found, expected in ((history[0], x), (history[1], p)):
            np.testing.assert_allclose(np.append(found["a"][i], found["b"][i]), expected, rtol=1e-4)


def test_the_kicks_of_the_bath():
    # On a flat energy p is an Ornstein-Uhlenbeck process: from 0, one step leaves variance (1 - c^2) m T.
    step_size, friction, temperature, mass = 0.4, 1.5, 2.0, 3.0
    kernel = underdamped(lambda x: jnp.sum(0 * x), step_size, friction, temperature=temperature, mass=mass)
    state, _ = kernel.step(jax.random.key(2), kernel.init(jnp.zeros(NUM_CHAINS)))
    p, x = np.asarray(state.momentum, np.float64), np.asarray(state.position, np.float64)
    variance = (1 - np.exp(-2 * friction * step_size)) * mass * temperature
    assert abs(np.mean(p**2) / variance - 1) < 5 * np.sqrt(2 / NUM_CHAINS)
    np.testing.assert_allclose(x, step_size / 2 * p / mass, rtol=1e-5)


def test_one_gradient_a_step_and_none_stale():
    calls = []

    def energy(x):
        calls.append(1)
        return jnp.sum(jnp.cosh(x))

    kernel = underdamped(energy, 0.3, 1.0)
    state = kernel.init(jnp.array([0.5, -1.0]))
    before = len(calls)
    state, _ = jax.jit(kernel.step)(jax.random.key(0), state)
    assert len(calls) - before == before == 1
    np.testing.assert_allclose(state.gradient, np.sinh(state.position), rtol=1e-5)
    assert float(state.energy) == pytest.approx(np.sum(np.cosh(state.position)), rel=1e-5)


def test_init_draws_the_momentum_or_starts_at_rest():
    mass = {"a": jnp.array(4.0), "b": jnp.array(0.5)}
    kernel = underdamped(lambda x: jnp.sum(x["a"]) + jnp.sum(x["b"]), 0.1, 1.0, temperature=3.0, mass=mass)
    position = {"a": jnp.zeros(NUM_CHAINS), "b": jnp.zeros(NUM_CHAINS)}
    drawn = kernel.init(position, jax.random.key(3)).momentum
    for name, variance in (("a", 12.0), ("b", 1.5)):
        square = np.mean(np.asarray(drawn[name], np.float64) ** 2)
        assert abs(square / variance - 1) < 5 * np.sqrt(2 / NUM_CHAINS)
    rest = kernel.init(position)
    assert isinstance(rest, UnderdampedState)
    assert not np.any(rest.momentum["a"])


def test_kept_momenta_carry_the_chain():
    # On a slope of 1, hardly rubbed: n steps of h from rest go (n h)^2 / 2, n fresh starts only n h^2 / 2.
    num_steps, step_size = 20, 0.1
    run = partial(
        run_annealed_chain,
        jax.random.key(3),
        lambda h: underdamped(lambda x: -jnp.sum(x), h, 1e-5, temperature=0.0),
        jnp.full(num_steps, step_size),
        jnp.zeros(1),
    )
    fresh, kept = run()[0], run(keep_state=True)[0]
    assert float(kept.position[0]) == pytest.approx((num_steps * step_size) ** 2 / 2, rel=1e-3)
    assert float(fresh.position[0]) == pytest.approx(num_steps * step_size**2 / 2, rel=1e-3)


def test_bfloat16_positions_keep_float32_momenta():
    kernel = underdamped(lambda x: 0.5 * jnp.sum(x**2), 0.1, 1.0)
    state, _ = run_chain(jax.random.key(0), kernel, jnp.ones(3, jnp.bfloat16), 2)
    assert state.position.dtype == jnp.bfloat16
    assert state.momentum.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"friction": 0.0}, "friction"),
        ({"temperature": -1.0}, "temperature"),
        ({"mass": 0.0}, "mass"),
        ({"mass": jnp.array([1.0, -1.0])}, "mass"),
    ],
)
def test_bad_parameters_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        underdamped(jnp.sum, **{"step_size": 0.1, "friction": 1.0, **arguments})


@pytest.mark.parametrize("mass", [jnp.ones(2), {"a": 1.0}])
def test_a_mass_of_another_shape_is_refused(mass):
    with pytest.raises(ValueError, match=r"mass.*\(3,\)"):
        underdamped(jnp.sum, 0.1, 1.0, mass=mass).init(jnp.zeros(3))
