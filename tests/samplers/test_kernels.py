"""What every kernel of the package keeps, from one table of constructors."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, polygamma

from jaxebm.samplers.chains import run_chain, run_chains
from jaxebm.samplers.descent import steepest_descent
from jaxebm.samplers.inner_updates import first_layer_sgld
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.metropolis import hmc, mala, nuts
from jaxebm.samplers.preconditioned import preconditioned_sgld
from jaxebm.samplers.proximal import proximal_sgld, ridge
from jaxebm.samplers.underdamped import underdamped

pytestmark = pytest.mark.usefixtures("cheap_compilation")

SHAPE = 2.0
"""exp(-E) is the law of the logarithm of a Gamma(SHAPE) variable: smooth, with a long tail to the left."""


def energy(position):
    """Seven independent log-Gamma variables in two leaves of different shapes."""
    return sum(jnp.sum(jnp.exp(leaf) - SHAPE * leaf) for leaf in jax.tree.leaves(position))


def unadjusted_law(step_size):
    """``(mean, variance)`` of the Gaussian that x moves to."""
    return lambda x: (x - step_size * slope(x), 2 * step_size + 0 * x)


def forgetful_law(step_size):
    """With decay 0 the preconditioner is a function of x, and damping 1 bounds it."""

    def law(x):
        preconditioner = 1 / (1 + np.abs(slope(x)))
        return x - step_size * preconditioner * slope(x), 2 * step_size * preconditioner

    return law


def split_law(step_size):
    """Of E(x) = (E(x) - x^2 / 2) + x^2 / 2, its second part by its proximal map."""
    shrink = 1 / (1 + step_size)
    return lambda x: (shrink * (x - step_size * (slope(x) - x)), 2 * step_size * shrink**2 + 0 * x)


def slope(x):
    return np.exp(x) - SHAPE


def split(target, step_size):
    @functools.wraps(target)
    def smooth(position):
        return target(position) - sum(0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(position))

    return proximal_sgld(smooth, ridge(1.0), step_size)


def split_at_nothing(target, step_size):
    """With the identity for its first layer, two inner updates are one Langevin step of twice the size."""

    class InTwo:
        __call__ = staticmethod(target)
        first = staticmethod(lambda x: x)
        rest = staticmethod(functools.wraps(target)(lambda x, h: target(h)))

    return first_layer_sgld(InTwo(), step_size, jnp.sqrt(2 * step_size), num_inner_steps=2)


class Case(NamedTuple):
    make: Callable  # (target, step_size) -> Kernel
    step_size: float
    num_steps: int
    law: Callable | None = None  # step_size -> law: of a kernel whose bias is known, x -> (mean, variance)


CASES = {
    "sgld": Case(sgld, 0.1, 150, unadjusted_law),
    "preconditioned_sgld": Case(
        functools.partial(preconditioned_sgld, decay=0.0, damping=1.0), 0.2, 100, forgetful_law
    ),
    "proximal_sgld": Case(split, 0.25, 60, split_law),
    "first_layer_sgld": Case(split_at_nothing, 0.05, 150, lambda step_size: unadjusted_law(2 * step_size)),
    # Biased too, of order h^2, but far below the error bars: from h = 0.3 to 0.5 the mean was measured to
    # fall by 0.0002 and the variance by 0.0007.
    "underdamped": Case(functools.partial(underdamped, friction=2.0), 0.3, 60),
    "mala": Case(mala, 0.2, 150),
    "hmc": Case(lambda target, step_size: hmc(target, step_size, 5), 0.3, 30),
    "nuts": Case(lambda target, step_size: nuts(target, step_size, max_num_doublings=4), 0.4, 15),
}
# Nothing random about these: of what a kernel keeps, all but its law.
NOISELESS = {
    "steepest_descent": Case(steepest_descent, 0.1, 5),
    "steepest_descent_linf": Case(functools.partial(steepest_descent, norm="linf"), 0.1, 5),
}
ALL_CASES = CASES | NOISELESS
BLACKJAX = ("mala", "hmc", "nuts")
"""These draw their numbers in BlackJAX, in float64 under x64."""
all_kernels = pytest.mark.parametrize("name", list(ALL_CASES))
all_samplers = pytest.mark.parametrize("name", list(CASES))

NUM_CHAINS = 2_000
START = {"a": jnp.full((NUM_CHAINS, 3), 1.0), "b": jnp.full((NUM_CHAINS, 2, 2), -1.0)}


def exact_central_moments():
    return digamma(SHAPE), polygamma(1, SHAPE), polygamma(2, SHAPE)


def central_moments_of(law):
    """Of the stationary law of x <- N(law(x)), from its transition matrix on a fine grid.

    The trapezoid rule on a smooth, decaying integrand is exact to rounding once the spacing is well below the
    standard deviation of a step.
    """
    x = np.linspace(-12.0, 5.0, 800)
    mean, variance = law(x)
    transition = np.exp(-((x[None, :] - mean[:, None]) ** 2) / (2 * variance[:, None]))
    transition /= transition.sum(axis=1, keepdims=True)
    law = np.full(x.size, 1 / x.size)
    for _ in range(12):  # law P^4096
        transition = transition @ transition
    law = law @ transition
    centre = law @ x
    return centre, law @ (x - centre) ** 2, law @ (x - centre) ** 3


@pytest.fixture(scope="module")
def runs():
    """Final positions and infos of every kernel, and how often each was traced over two calls."""
    results = {}
    for name, case in ALL_CASES.items():

        def run(rng_key, positions, step_size, case=case):
            kernel = case.make(energy, step_size)
            states, history = run_chains(
                rng_key, kernel, positions, case.num_steps, collect=lambda state, info: _acceptance(info)
            )
            return states.position, history

        chex.clear_trace_counter()  # it knows a function by its code, which is the same for every kernel
        traced_once = jax.jit(chex.assert_max_traces(run, n=1))
        traced_once(jax.random.key(1), START, 0.5 * case.step_size)
        results[name] = traced_once(jax.random.key(0), START, case.step_size)  # raises if traced again
    return results


def _acceptance(info):
    return getattr(info, "acceptance_rate", jnp.ones(()))


@all_kernels
def test_pytree_in_pytree_out_finite_and_traced_once(runs, name):
    positions, acceptance = runs[name]
    chex.assert_trees_all_equal_shapes_and_dtypes(positions, START)
    chex.assert_tree_all_finite((positions, acceptance))
    assert acceptance.shape == (NUM_CHAINS, ALL_CASES[name].num_steps)
    if name in BLACKJAX:
        assert 0.3 < float(acceptance.mean()) < 0.999


@all_samplers
def test_stationary_moments_of_a_skewed_target(runs, name):
    # Only the last states are used, one for each chain: exactly independent, so the error bars are exact.
    positions, _ = runs[name]
    x = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(positions)]).astype(np.float64)
    case = CASES[name]
    exact = exact_central_moments()
    mean, variance, third = central_moments_of(case.law(case.step_size)) if case.law else exact
    for power, expected in ((1, 0.0), (2, variance), (3, third)):
        term = (x - mean) ** power
        assert abs(term.mean() - expected) < 5 * term.std() / np.sqrt(x.size), power
    assert third < -0.2  # a kernel with the sign of the energy wrong could not pass
    if case.law:  # nor one without the bias that is predicted
        assert abs(variance - exact[1]) > 5 * ((x - mean) ** 2).std() / np.sqrt(x.size)


def test_the_grid_knows_the_unadjusted_law():
    # Its bias is of first order in the step, so halving the step halves it; that of the third moment is even
    # smaller.
    exact = np.array(exact_central_moments())
    coarse, fine = (np.array(central_moments_of(unadjusted_law(h))) - exact for h in (0.04, 0.02))
    np.testing.assert_allclose(coarse[:2] / fine[:2], 2, rtol=0.05)
    assert abs(fine[2]) < abs(coarse[2]) / 2


@all_kernels
def test_one_position_without_batch(name):
    case = ALL_CASES[name]
    position = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    state, history = run_chain(jax.random.key(0), case.make(energy, case.step_size), position, 2)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.position, position)
    assert history is None


def positions_of(dtype):
    return {"a": jnp.zeros(3, dtype), "b": jnp.zeros((2, 2), dtype)}


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
@all_kernels
def test_every_floating_dtype_is_kept(name, x64):
    # Shapes and dtypes are decided by tracing, so that nothing compiles here.
    case = ALL_CASES[name]
    with jax.enable_x64(x64):
        for dtype in ("bfloat16", "float16", "float32", *(("float64",) if x64 else ())):
            position = positions_of(dtype)
            for step_size in (case.step_size, jnp.array(case.step_size)):  # float64 under x64
                kernel = case.make(energy, step_size)
                state, _ = jax.eval_shape(lambda key: run_chain(key, kernel, position, 2), jax.random.key(0))  # noqa: B023
                chex.assert_trees_all_equal_shapes_and_dtypes(state.position, position)


@pytest.mark.parametrize("name", [name for name in ALL_CASES if name not in BLACKJAX])
def test_a_float32_chain_is_the_same_under_x64(name):
    case = ALL_CASES[name]
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            kernel = case.make(energy, jnp.float32(case.step_size))
            run = jax.jit(lambda key, start: run_chain(key, kernel, start, 3)[0].position)  # noqa: B023
            found.append(run(jax.random.key(3), positions_of("float32")))
    chex.assert_trees_all_equal_shapes_and_dtypes(*found)
    chex.assert_trees_all_close(*found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_narrow_chains_run_and_move(x64):
    # Leaves of every dtype in one position, and one program for the fastest of the kernels.
    with jax.enable_x64(x64):
        position = {dtype: jnp.zeros(2, dtype) for dtype in ("bfloat16", "float16", "float32")}
        step_size = jnp.float32(0.1)
        for name in ("sgld", "underdamped"):
            state, _ = run_chain(jax.random.key(0), CASES[name].make(energy, step_size), position, 2)
            chex.assert_trees_all_equal_shapes_and_dtypes(state.position, position)
            chex.assert_tree_all_finite(state.position)
            assert all(np.all(leaf != 0) for leaf in state.position.values())


@all_samplers
def test_only_typed_keys_are_taken(name):
    kernel = CASES[name].make(energy, 0.1)
    state = jax.eval_shape(kernel.init, positions_of("float32"))
    for key in (0, jax.random.PRNGKey(0)):
        with pytest.raises(TypeError, match=r"rng_key.*typed key"):
            jax.eval_shape(lambda state: kernel.step(key, state), state)  # noqa: B023


@all_kernels
def test_a_schedule_given_as_step_size_is_refused(name):
    with pytest.raises(ValueError, match=r"step_size has shape \(3,\).*run_annealed_chain"):
        ALL_CASES[name].make(energy, jnp.full(3, 0.1))


@all_samplers
def test_one_seed_one_chain(name):
    case = CASES[name]
    kernel = case.make(energy, case.step_size)
    position = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    step = jax.jit(lambda rng_key: kernel.step(rng_key, kernel.init(position))[0])
    first, second, other = (step(jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, second)
    assert not np.array_equal(first.position["a"], other.position["a"])


@all_kernels
def test_integer_positions_are_refused(name):
    with pytest.raises(TypeError, match="floating"):
        ALL_CASES[name].make(energy, 0.1).init(jnp.arange(3))


@all_kernels
def test_a_bad_step_size_is_named(name):
    with pytest.raises(ValueError, match=r"step_size=-0.1.*greater than 0"):
        ALL_CASES[name].make(energy, -0.1)


@all_kernels
def test_an_energy_that_is_not_a_scalar_is_named(name):
    def elementwise(x):
        return x**2

    with pytest.raises(ValueError, match=r"elementwise.*\(3,\).*scalar"):
        run_chain(jax.random.key(0), ALL_CASES[name].make(elementwise, 0.1), jnp.ones(3), 1)
