"""BlackJAX's kernels behind the protocol: the mapping of parameters, dtypes, and MALA's preconditioner."""

import functools

import blackjax
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, polygamma

from jaxebm.samplers.chains import run_chains
from jaxebm.samplers.metropolis import RoundedState, hmc, mala, nuts

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


@pytest.mark.parametrize("make", [mala, hmc, nuts])
@pytest.mark.parametrize(
    ("mass", "message"),
    [
        (np.array([1.0, 0.0]), "smallest entry of 0.*greater than 0"),
        (np.array([1.0, -2.0]), "smallest entry of -2"),
        (np.array([1.0, 1e-60]), "smallest entry of 0"),  # 0 in float32
        (np.array([1.0, np.nan]), "non-finite"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "smallest eigenvalue of -1.*positive definite"),
        (np.zeros((2, 2)), "smallest eigenvalue of 0"),
        (-np.eye(2), "positive definite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (np.array([[np.inf, 0.0], [0.0, 1.0]]), "non-finite"),
        (np.array([[1.0, 1.0], [1.0, 1.0 + 1e-12]]), "positive definite"),  # singular in float32
        (np.ones((2, 3)), r"shape \(2, 3\)"),
        (2.0, r"shape \(\)"),
    ],
)
def test_a_mass_matrix_that_would_freeze_the_chain_is_refused(make, mass, message):
    steps = {"num_integration_steps": 2} if make is hmc else {}
    with pytest.raises(ValueError, match=f"inverse_mass_matrix.*{message}"):
        make(stretched, 0.1, inverse_mass_matrix=mass, **steps)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="num_integration_steps"):
        hmc(stretched, 0.1, 0)
    with pytest.raises(ValueError, match=r"num_integration_steps=2\.5"):
        hmc(stretched, 0.1, 2.5)  # pyright: ignore[reportArgumentType]
    for make in (mala, nuts):
        with pytest.raises(ValueError, match="position=None holds no array"):
            make(stretched, 0.1).init(None)
        with pytest.raises(ValueError, match=r"step_size has shape \(3,\).*run_annealed_chain"):
            make(stretched, jnp.ones(3))
    with pytest.raises(ValueError, match="max_num_doublings"):
        nuts(stretched, 0.1, max_num_doublings=2.5)  # pyright: ignore[reportArgumentType]


# MALA's preconditioner


def skewed(x):
    """Two log-Gamma(2) variables, mixed: exp(-E) has skewness in both coordinates."""
    z = jnp.stack([x[0], x[1] - 2 * x[0]])
    return jnp.sum(jnp.exp(z) - 2 * z)


def preconditioned_step(mass, rng_key, position, step_size):
    kernel = mala(skewed, step_size, mass)
    return kernel.step(rng_key, kernel.init(position))


@pytest.mark.parametrize("dense", [False, True])
def test_malas_preconditioner_is_a_change_of_coordinates(dense):
    # x = L y: a step with L L^T is MALA's own step in y, number for number.
    mass = np.array([[0.5, 0.9], [0.9, 3.0]]) if dense else np.array([0.5, 3.0])
    root = np.linalg.cholesky(mass) if dense else np.diag(np.sqrt(mass))
    whitened = mala(lambda y: skewed(jnp.asarray(root, jnp.float32) @ y), 0.3)
    position = jnp.array([0.4, 1.1])
    start = whitened.init(jnp.asarray(np.linalg.solve(root, position), jnp.float32))
    keys = jax.random.split(jax.random.key(0), 50)
    step = jax.jit(jax.vmap(lambda key: preconditioned_step(jnp.asarray(mass), key, position, 0.3)))
    state, info = step(keys)
    other, other_info = jax.jit(jax.vmap(lambda key: whitened.step(key, start)))(keys)
    np.testing.assert_allclose(info.acceptance_rate, other_info.acceptance_rate, rtol=2e-3, atol=1e-5)
    np.testing.assert_array_equal(info.is_accepted, other_info.is_accepted)
    np.testing.assert_allclose(state.position, other.position @ root.T, rtol=1e-4, atol=1e-5)
    rejected = ~np.asarray(info.is_accepted)
    assert rejected.any()
    np.testing.assert_array_equal(state.position[rejected], jnp.tile(position, (rejected.sum(), 1)))


def test_preconditioned_mala_is_exact_on_a_skewed_target():
    mass = jnp.array([[0.6, 1.2], [1.2, 3.0]])
    kernel = mala(skewed, 0.5, mass)
    start = jnp.zeros((4_000, 2))
    states, _ = jax.jit(lambda key, x: run_chains(key, kernel, x, 60))(jax.random.key(0), start)
    x = np.asarray(states.position, np.float64)
    for z in (x[:, 0], x[:, 1] - 2 * x[:, 0]):
        for power, exact in ((1, 0.0), (2, polygamma(1, 2)), (3, polygamma(2, 2))):
            term = (z - digamma(2)) ** power
            assert abs(term.mean() - exact) < 5 * term.std() / np.sqrt(z.size), power


# Dtypes


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "make",
    [
        functools.partial(mala, step_size=0.5),
        functools.partial(mala, step_size=0.5, inverse_mass_matrix=np.array([1.0, 2.0, 0.5])),
        functools.partial(hmc, step_size=np.float64(0.5), num_integration_steps=2),
        functools.partial(nuts, step_size=0.5, max_num_doublings=2),
    ],
    ids=["mala", "mala with mass", "hmc", "nuts"],
)
def test_positions_keep_their_dtype(make, dtype, x64):
    with jax.enable_x64(x64):
        kernel = make(mixed_energy)
        position = mixed_position(dtype)
        first = jax.eval_shape(kernel.init, position)
        # Traced, not run: a dtype that changes on the way ends in an error of JAX.
        state, _ = jax.eval_shape(
            lambda key, state: jax.lax.scan(
                lambda state, _: (kernel.step(key, state)[0], None), state, None, 2
            ),
            jax.random.key(0),
            first,
        )
        chex.assert_trees_all_equal_dtypes(state.position, position)
        narrow = any(leaf.dtype != jnp.result_type(float) for leaf in jax.tree.leaves(position))
        assert isinstance(state, RoundedState) == narrow


def mixed_energy(x):
    return 0.5 * jnp.sum(jnp.square(x["a"])) + jnp.sum(jnp.square(x["b"]))


def mixed_position(dtype):
    return {"a": jnp.ones(2, dtype), "b": jnp.ones(1, jnp.float32)}


@pytest.mark.parametrize(("dtype", "x64"), [("float16", False), ("bfloat16", False), ("float32", True)])
def test_the_chain_of_a_narrow_position_is_that_of_the_wide_one(dtype, x64):
    with jax.enable_x64(x64):
        kernel = hmc(mixed_energy, np.float64(0.5), 2, np.array([1.0, 2.0, 0.5]))
        position = mixed_position(dtype)
        wide = jax.tree.map(lambda leaf: leaf.astype(float), position)
        run = jax.jit(
            lambda x: kernel.step(jax.random.key(1), kernel.step(jax.random.key(0), kernel.init(x))[0])[0]
        )
        state, other = run(position), run(wide)
        chex.assert_trees_all_close(state.chain, other, rtol=1e-6)
        rounded = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), other.position, position)
        chex.assert_trees_all_equal(state.position, rounded)
        assert np.any(state.position["a"] != position["a"])


def test_steps_below_the_rounding_of_bfloat16_are_not_lost():
    # At 100 neighbours in bfloat16 are 0.5 apart, and a step is 0.01: a chain that rounded would never move.
    kernel = mala(lambda x: 0.5 * jnp.sum(jnp.square((x - 100) / 0.01)), 5e-5)
    start = jnp.full((500, 1), 100.0, jnp.bfloat16)
    states, _ = jax.jit(lambda key, x: run_chains(key, kernel, x, 50))(jax.random.key(0), start)
    assert states.position.dtype == jnp.bfloat16
    deviation = np.asarray(states.chain.position, np.float64) - 100
    assert abs(deviation.var() / 1e-4 - 1) < 5 * np.sqrt(2 / 500)
