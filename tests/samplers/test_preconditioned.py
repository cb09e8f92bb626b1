"""Preconditioned Langevin dynamics: RMSprop's arithmetic, and the bias that its docstring tells of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.chains import run_annealed_chain, run_chain, run_chains
from jaxebm.samplers.preconditioned import preconditioned_sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CHAINS = 10_000
DAMPING = 0.5


def test_the_papers_lines_on_a_pytree():
    # Five steps without noise against algorithm 1 in NumPy; the energy is quartic, so that V moves.
    decay, damping, step_size = 0.7, 0.1, 0.3
    start = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}
    kernel = preconditioned_sgld(
        lambda x: sum(jnp.sum(leaf**4) / 4 for leaf in jax.tree.leaves(x)),
        step_size,
        decay=decay,
        damping=damping,
        noise_scale=0.0,
    )
    state, history = run_chain(jax.random.key(0), kernel, start, 5, collect=lambda state, info: info)
    x = np.array([1.0, -2.0, 0.5])
    average = x**6  # the square of the first gradient
    for i in range(5):
        gradient = x**3
        assert float(history.energy[i]) == pytest.approx(np.sum(x**4) / 4, rel=1e-5)
        assert float(history.gradient_norm[i]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
        average = decay * average + (1 - decay) * gradient**2
        x = x - step_size * gradient / (damping + np.sqrt(average))
    found = np.concatenate([state.position["a"], state.position["b"][0]])
    np.testing.assert_allclose(found, x, rtol=1e-5)
    found = np.concatenate([state.square_average["a"], state.square_average["b"][0]])
    np.testing.assert_allclose(found, average, rtol=1e-5)


def test_noise_is_scaled_by_the_root_of_the_preconditioner():
    stiffness = jnp.array([1.0, 100.0])
    step_size, damping = 0.02, 1e-5
    kernel = preconditioned_sgld(lambda x: 0.5 * jnp.sum(stiffness * x**2), step_size, damping=damping)
    state = kernel.init(jnp.array([1.0, 1.0]))
    keys = jax.random.split(jax.random.key(0), NUM_CHAINS)
    moved = np.asarray(jax.jit(jax.vmap(lambda key: kernel.step(key, state)[0].position))(keys), np.float64)
    variance = 2 * step_size / np.array([1.0, 100.0])  # 2 epsilon G with G = 1 / |gradient|
    mean = 1 - step_size  # the drift is epsilon in both, whatever the stiffness
    assert np.all(np.abs(moved.mean(0) - mean) < 5 * np.sqrt(variance / NUM_CHAINS) + 1e-5)
    assert np.all(np.abs(moved.var(0) / variance - 1) < 5 * np.sqrt(2 / NUM_CHAINS) + 1e-5)


# --- the bias ---


def no_averaging_variance(step_size):
    """Stationary variance on x^2 / 2 at decay 0, from the transition matrix on a fine grid."""
    x = np.linspace(-7.0, 7.0, 401)
    preconditioner = 1 / (DAMPING + np.abs(x))
    mean = x - step_size * preconditioner * x
    variance = 2 * step_size * preconditioner
    transition = np.exp(-((x[None, :] - mean[:, None]) ** 2) / (2 * variance[:, None]))
    transition /= transition.sum(axis=1, keepdims=True)
    values, vectors = np.linalg.eig(transition.T)
    law = np.real(vectors[:, np.argmax(np.real(values))])
    law /= law.sum()
    return law @ x**2


def self_consistent_variance(step_size):
    """As the decay goes to 1: sgld with the step epsilon G of its own root mean square gradient."""
    variance = 1.0
    for _ in range(100):
        variance = 1 / (1 - step_size / (DAMPING + np.sqrt(variance)) / 2)
    return variance


# (step size, decay): the same program, compiled once.
SETTINGS = [(0.1, 0.0), (0.1, 0.9), (0.1, 0.99), (0.02, 0.9)]


@pytest.fixture(scope="module")
def mean_squares():
    """Mean square of a standard normal's chains after 500 steps, and its standard error, for each setting."""

    @jax.jit
    def run(step_size, decay):
        kernel = preconditioned_sgld(lambda x: 0.5 * x**2, step_size, decay=decay, damping=DAMPING)
        starts = jax.random.normal(jax.random.key(1), (NUM_CHAINS,))
        states, _ = run_chains(jax.random.key(0), kernel, starts, 500)
        return jnp.square(states.position)

    squares = [np.asarray(run(*setting), np.float64) for setting in SETTINGS]
    return {
        setting: (x.mean(), x.std() / np.sqrt(x.size)) for setting, x in zip(SETTINGS, squares, strict=True)
    }


def test_without_averaging_the_law_is_the_transition_matrixs(mean_squares):
    found, error = mean_squares[0.1, 0.0]
    assert abs(found - no_averaging_variance(0.1)) < 5 * error


def test_without_averaging_the_bias_does_not_vanish_with_the_step():
    # exp(-E) (damping + |x|): integrals of |x|^n exp(-x^2 / 2) are sqrt(2 pi), 2, sqrt(2 pi), 4.
    root = np.sqrt(2 * np.pi)
    limit = (DAMPING * root + 4) / (DAMPING * root + 2)
    coarse, fine = no_averaging_variance(0.1), no_averaging_variance(0.05)
    assert limit > 1.6
    # Richardson's extrapolation: what is left of first order cancels.
    assert 2 * fine - coarse == pytest.approx(limit, abs=0.01)


def test_averaging_takes_the_bias_away(mean_squares):
    (none, error), (short, _), (long, long_error) = (mean_squares[0.1, decay] for decay in (0.0, 0.9, 0.99))
    assert none > short + 5 * error
    assert short > long + 5 * error
    # At most a tenth of the bias without averaging is left, where V averages over 6 relaxation times.
    limit = self_consistent_variance(0.1)
    assert abs(long - limit) < 0.1 * (none - limit) + 5 * long_error


def test_a_smaller_step_forgets_more(mean_squares):
    coarse, coarse_error = mean_squares[0.1, 0.9]
    fine, fine_error = mean_squares[0.02, 0.9]
    assert fine - coarse > 5 * np.hypot(coarse_error, fine_error)


def test_a_kept_preconditioner_is_sgld_with_its_own_step():
    # decay 1: G = 1 / (damping + stiffness |start|) for ever, so the variance is known exactly.
    stiffness, start, step_size = 4.0, 2.0, 1.5
    kernel = preconditioned_sgld(lambda x: 0.5 * stiffness * x**2, step_size, decay=1.0, damping=DAMPING)
    states, _ = jax.jit(lambda key: run_chains(key, kernel, jnp.full(NUM_CHAINS, start), 60))(
        jax.random.key(2)
    )
    x = np.asarray(states.position, np.float64)
    preconditioned = step_size / (DAMPING + stiffness * start)
    variance = (1 / stiffness) / (1 - preconditioned * stiffness / 2)
    assert abs(np.mean(x**2) - variance) < 5 * variance * np.sqrt(2 / NUM_CHAINS)


def test_a_schedule_keeps_the_memory_only_if_asked():
    schedule = jnp.array([0.1, 0.2, 0.3])

    def kernel_at(step_size):
        return preconditioned_sgld(lambda x: jnp.sum(x**4) / 4, step_size, decay=1.0, noise_scale=0.0)

    kept, _ = run_annealed_chain(jax.random.key(0), kernel_at, schedule, jnp.array([2.0]), keep_state=True)
    afresh, _ = run_annealed_chain(jax.random.key(0), kernel_at, schedule, jnp.array([2.0]))
    np.testing.assert_allclose(kept.square_average, [64.0])
    assert float(afresh.square_average[0]) < 60.0


def test_bfloat16_positions_average_in_float32():
    kernel = preconditioned_sgld(lambda x: 0.5 * jnp.sum(x**2), 0.1)
    state, _ = run_chain(jax.random.key(0), kernel, jnp.ones(3, jnp.bfloat16), 2)
    assert state.position.dtype == jnp.bfloat16
    assert state.square_average.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": 0.1, "decay": 1.1}, "decay"),
        ({"step_size": 0.1, "decay": -0.1}, "decay"),
        ({"step_size": 0.1, "damping": 0.0}, "damping"),
        ({"step_size": 0.1, "noise_scale": -1.0}, "noise_scale"),
    ],
)
def test_bad_parameters_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        preconditioned_sgld(jnp.sum, **arguments)


def test_the_gradient_through_a_step_is_finite_where_the_energy_is_flat():
    # At the mode V = 0, and the root of it has the derivative 0: x moves by 1 - step G E'' there.
    kernel = preconditioned_sgld(lambda x: jnp.sum(x**2) / 2, 0.1, decay=0.0, damping=0.5, noise_scale=0.0)

    def moved(x):
        return kernel.step(jax.random.key(0), kernel.init(x))[0].position

    np.testing.assert_allclose(jax.jacobian(moved)(jnp.zeros(2)), (1 - 0.1 / 0.5) * np.eye(2), rtol=1e-6)


@pytest.mark.parametrize("name", ["step_size", "decay", "damping", "noise_scale"])
def test_one_number_is_needed_not_several(name):
    arguments = {"step_size": 0.1, name: jnp.full(2, 0.3)}
    with pytest.raises(ValueError, match=rf"{name} has shape \(2,\)"):
        preconditioned_sgld(jnp.sum, **arguments)
