"""Exact kernels leave their target as it is: chains that start at exact samples end at exact samples.

The targets are narrow, curved, skewed and apart; the steps are so large that proposals are refused. What does
not leave them alone is found by each of the three criteria.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from jaxebm.energies import (
    double_well,
    funnel,
    funnel_transform,
    gaussian,
    gaussian_mixture,
    reparametrise,
    skewed,
)
from jaxebm.evaluation import energy_distance, kolmogorov_smirnov
from jaxebm.samplers import (
    LangevinState,
    hmc,
    mala,
    nuts,
    parallel_tempering,
    run_chains,
    scalar_target,
)
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

FALSE_ALARM = 1e-6
"""Probability that a right kernel fails one comparison; the seeds are fixed."""
STANDARD_ERRORS = 5
NUM_CHAINS = 3_000
NUM_SPLITS = 400


def conditioned():
    """Condition number 1000, along oblique axes."""
    axes = np.array([[0.8, -0.6], [0.6, 0.8]])
    covariance = axes * np.array([1.0, 1e-3]) @ axes.T
    return gaussian([1.0, -1.0], (covariance + covariance.T) / 2)


def straightened_funnel():
    target, transform = funnel(dimension=2, scale=3.0), funnel_transform()

    def sample(rng_key, params, num_samples):
        return jax.vmap(transform.inverse, (None, 0))(params, target.sample(rng_key, params, num_samples))

    def moments(params):
        return jnp.zeros(2), jnp.eye(2)

    return target._replace(energy=reparametrise(target.energy, transform), sample=sample, moments=moments)


TARGETS = {
    "gaussian": conditioned(),
    "skewed": skewed(),
    "funnel": straightened_funnel(),
    "double_well": double_well(barrier=2.0, tilt=1.0, dimension=2),
    "mixture": gaussian_mixture([1.0, 2.0, 0.5], [[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]], [0.5, 0.8, 0.4]),
}
INVERSE_TEMPERATURES = np.array([0.0, 0.4, 1.0])


class Problem(NamedTuple):
    """One target, in arrays; stacked over all of them they run through one program.

    ``standardise`` is the matrix that brings x - mean to principal axes of variance 1, where a narrow
    direction shows as well as a wide one.
    """

    mean: Any
    covariance: Any
    standardise: Any
    starts: Any
    ladder_starts: Any
    fresh: Any
    bound: Any


def difference(problem, x):
    """A bounded D: exp(-E + (1 - b) D) is drawn exactly by rejection from exact samples of exp(-E)."""
    return 2 * jnp.sin(jnp.sum(problem.standardise @ (x - problem.mean)))


@jax.jit
def draw_exact(rng_keys):
    return [
        (*target.moments(target.params), target.sample(rng_key, target.params, 10 * NUM_CHAINS))
        for target, rng_key in zip(TARGETS.values(), rng_keys, strict=True)
    ]


def make_problem(mean, covariance, samples):
    variances, axes = np.linalg.eigh(covariance)
    standardise = (axes / np.sqrt(variances)).T
    starts, fresh, halves, *rest = np.split(samples, 10)
    rest = np.concatenate(rest)
    differences = 2 * np.sin(((rest - mean) @ standardise.T).sum(axis=1))
    uniform = np.random.default_rng(0).uniform(size=len(rest))
    rungs, used = [], 0
    for b in INVERSE_TEMPERATURES[:-1]:
        accepted = used + np.flatnonzero(uniform[used:] < np.exp((1 - b) * (differences[used:] - 2)))
        rungs.append(rest[accepted[:NUM_CHAINS]])
        used = accepted[NUM_CHAINS - 1] + 1
    ladder_starts = np.stack([*rungs, starts], axis=1)
    bound = energy_distance_bound((halves[:2000] - mean) @ standardise.T)
    return Problem(mean, covariance, standardise, starts, ladder_starts, fresh, bound)


def energy_distance_bound(points):
    """The quantile of the energy distance of two sets of ``NUM_CHAINS`` exact samples.

    From random halves of fewer, as it goes with one over their number: it is a weighted sum of chi-squares,
    less its mean. Its tail is that of the gamma distribution with the same three moments.
    """
    n = len(points) // 2
    distances = scipy.spatial.distance.cdist(points, points).astype(np.float32)
    signs = np.tile(np.repeat(np.float32([1, -1]), n), (NUM_SPLITS, 1))
    np.random.default_rng(0).permuted(signs, axis=1, out=signs)
    within_less_between = np.sum((signs @ distances) * signs, axis=1, dtype=np.float64)
    total = distances.sum(dtype=np.float64)
    halves = (total - within_less_between) / 2 / n**2 - (total + within_less_between) / 2 / (n * (n - 1))
    skewness = scipy.stats.skew(halves)
    quantile = scipy.stats.pearson3(skewness, halves.mean(), halves.std(ddof=1)).isf(FALSE_ALARM)
    return quantile * n / NUM_CHAINS


@pytest.fixture(scope="module")
def problems():
    drawn = jax.device_get(draw_exact(jax.random.split(jax.random.key(0), len(TARGETS))))
    return Problem(
        *(
            np.stack(field).astype(np.float32)
            for field in zip(*(make_problem(*one) for one in drawn), strict=True)
        )
    )


class Case(NamedTuple):
    """``make(target, step_size, problem)`` and how it runs; ``step_sizes`` in the order of the targets."""

    make: Callable
    step_sizes: tuple[float, ...]
    num_steps: int
    starts: str = "starts"


def make_tempering(target, step_size, problem):
    return parallel_tempering(
        target,
        mala,
        jnp.asarray(INVERSE_TEMPERATURES),
        reference=lambda x: target(x) - difference(problem, x),
        kernel_schedule={"step_size": jnp.full(3, step_size)},
    )


EXACT = {
    "mala": Case(lambda target, step_size, _: mala(target, step_size), (1.2e-3, 0.25, 0.9, 0.12, 0.15), 20),
    "hmc": Case(
        lambda target, step_size, problem: hmc(target, step_size, 3, problem.covariance),
        (1.4, 0.7, 1.4, 0.5, 0.45),
        10,
    ),
    "nuts": Case(
        lambda target, step_size, problem: nuts(target, step_size, problem.covariance, max_num_doublings=4),
        (1.4, 0.7, 1.4, 0.5, 0.45),
        4,
    ),
    "parallel_tempering": Case(make_tempering, (1.2e-3, 0.25, 0.9, 0.12, 0.15), 12, "ladder_starts"),
}


def accepting_by(exponent):
    """Metropolis with the proposals of MALA, accepted with probability e^exponent(E, E')."""

    def make(target, step_size, _):
        energy_and_gradient = jax.value_and_grad(scalar_target(target))

        def step(rng_key, state):
            noise_key, accept_key = jax.random.split(rng_key)
            energy, gradient = energy_and_gradient(state.position)
            noise = jax.random.normal(noise_key, gradient.shape)
            proposal = state.position - step_size * gradient + jnp.sqrt(2 * step_size) * noise
            accepted = jnp.log(jax.random.uniform(accept_key)) < exponent(energy, target(proposal))
            return LangevinState(jnp.where(accepted, proposal, state.position)), None

        return Kernel(lambda position, rng_key=None: LangevinState(position), step)

    return make


WRONG = {
    "wrong sign": Case(accepting_by(lambda here, there: there - here), (1.2e-3, 0.1, 0.9, 0.05, 0.1), 40),
    "no correction": Case(accepting_by(lambda here, there: here - there), (4e-4, 0.1, 0.3, 0.05, 0.3), 40),
}


@pytest.fixture(scope="module")
def run(problems):
    """``run(case) -> (positions (targets, n, 2), acceptances)``, by one program a case."""

    def rates(state, info):
        return [getattr(info, name) for name in ("acceptance_rate", "swap_acceptance") if hasattr(info, name)]

    def run(case):
        def one_target(at):
            index, step_size, problem = at
            branches = [target.target for target in TARGETS.values()]
            kernel = case.make(lambda x: jax.lax.switch(index, branches, x), step_size, problem)
            rng_key = jax.random.fold_in(jax.random.key(1), index)
            starts = getattr(problem, case.starts)
            states, found = run_chains(rng_key, kernel, starts, case.num_steps, collect=rates)
            position = states.position
            return position if position.ndim == 2 else position[:, -1], jax.tree.map(jnp.mean, found)

        numbers = jnp.arange(len(TARGETS)), jnp.array(case.step_sizes), problems
        return jax.device_get(jax.jit(functools.partial(jax.lax.map, one_target))(numbers))

    return run


def compare(problem, positions):
    """``{criterion: (found, bound)}`` of final states against fresh exact samples, all on principal axes."""
    moved, fresh = ((x - problem.mean) @ problem.standardise.T for x in (positions, problem.fresh))
    features = [
        np.stack([u, v, u * u, u * v, v * v, u**3, v**3]).astype(np.float64) for u, v in (moved.T, fresh.T)
    ]
    errors = np.sqrt(sum(values.var(axis=1) for values in features) / NUM_CHAINS)
    sigmas = np.abs(features[0].mean(axis=1) - features[1].mean(axis=1)) / errors
    return {
        "moments, in standard errors": (sigmas.max(), STANDARD_ERRORS),
        "Kolmogorov-Smirnov": (-kolmogorov_smirnov(moved, fresh).smallest_p_value, -FALSE_ALARM),
        "energy distance": (float(energy_distance(moved, fresh)), problem.bound),
    }


@pytest.mark.parametrize("name", EXACT)
def test_exact_kernels_leave_every_target_as_it_is(name, problems, run):
    positions, acceptances = run(EXACT[name])
    for index, target in enumerate(TARGETS):
        problem = jax.tree.map(lambda leaf, index=index: leaf[index], problems)
        assert np.all(np.abs(positions[index] - problem.starts).max(axis=0) > 0)
        for rates in acceptances:
            assert 0.3 < rates[index] < 0.95, f"{target}: {rates[index]}"
        for criterion, (found, bound) in compare(problem, positions[index]).items():
            assert found < bound, f"{target}, {criterion}: {found}"


@pytest.mark.parametrize("name", WRONG)
def test_each_criterion_finds_what_does_not(name, problems, run):
    positions, _ = run(WRONG[name])
    for index, target in enumerate(TARGETS):
        problem = jax.tree.map(lambda leaf, index=index: leaf[index], problems)
        for criterion, (found, bound) in compare(problem, positions[index]).items():
            assert found > bound, f"{target}, {criterion}: {found}"
