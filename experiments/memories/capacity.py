"""Capacity of the networks of hopfield.py for random patterns, compared with theory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.hopfield import (
    dense,
    dense_bit_error,
    exponential,
    exponential_capacity_rate,
    hebb,
    hebb_overlap,
    minimum_probability_flow,
    modern,
    pairwise,
    projection,
    retrieval_error_bound,
    retrieve_asynchronously,
    storkey,
    update,
)
from jaxebm.types import Array

__all__ = [
    "dense_errors",
    "exponential_basins",
    "hebb_curve",
    "measure_capacities",
    "modern_errors",
    "stable_fractions",
]


def _spins(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.choice([-1.0, 1.0], shape).astype(np.float32)


def _mean_and_error(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "error": float(np.std(values, ddof=1) / np.sqrt(len(values)))}


def hebb_curve(
    seed: int, loads: Sequence[float], *, dimension: int, num_networks: int, num_starts: int
) -> dict[str, Any]:
    """Returns the overlap of asynchronous recall with the pattern it started at, against K / D.

    Args:
      seed: of the patterns.
      loads: K / D.
      dimension: D.
      num_networks: independent networks a load.
      num_starts: patterns of each that recall starts from.
    """
    recall = jax.jit(jax.vmap(retrieve_asynchronously, (None, 0)))
    measured = []
    for load in loads:
        means = []
        for index in range(num_networks):
            rng = np.random.default_rng([seed, index])
            patterns = jnp.asarray(_spins(rng, round(load * dimension), dimension))
            starts = patterns[:num_starts]
            found = recall(pairwise(hebb(patterns)), starts)
            means.append(float(jnp.mean(jnp.sum(found.state * starts, axis=1))) / dimension)
        measured.append(_mean_and_error(means))
    curve = np.linspace(min(loads), max(loads), 201)
    return {
        "loads": list(loads),
        "measured": measured,
        "theory": [float(value) for value in hebb_overlap(jnp.asarray(loads))],
        "curve": {
            "loads": curve.tolist(),
            "overlaps": np.asarray(hebb_overlap(jnp.asarray(curve, jnp.float32))).tolist(),
        },
        "dimension": dimension,
    }


RULES: dict[str, Callable[[Array], Array]] = {
    "Hebb": hebb,
    "Storkey": storkey,
    "projection": projection,
    "probability flow": lambda patterns: minimum_probability_flow(patterns)[0],
}


@jax.jit
def _stable(weights: Array, patterns: Array) -> Array:
    bare = weights - jnp.diag(jnp.diagonal(weights))
    return jnp.mean(jnp.all(patterns * (patterns @ bare) > 0, axis=1))


def stable_fractions(
    seed: int, counts: Sequence[int], *, dimension: int, num_networks: int
) -> dict[str, Any]:
    """Returns which part of the stored patterns is a fixed point, W_ii = 0, for each storage rule.

    Projection keeps its diagonal: at K = D - 1 it is all but 1, and what is left is below rounding.
    """
    fractions: dict[str, list[dict[str, float]]] = {name: [] for name in RULES}
    for count in counts:
        for name, rule in RULES.items():
            values = []
            for index in range(num_networks):
                patterns = jnp.asarray(_spins(np.random.default_rng([seed, count, index]), count, dimension))
                weights = rule(patterns)
                if name == "projection":
                    values.append(float(jnp.mean(jnp.all(patterns * (patterns @ weights) > 0, axis=1))))
                else:
                    values.append(float(_stable(weights, patterns)))
            fractions[name].append(_mean_and_error(values))
    return {"counts": list(counts), "dimension": dimension, "fractions": fractions}


@jax.jit
def _wrong_bits(memory: Any, patterns: Array) -> Array:
    """Which part of the bits of stored patterns would flip, each by its exact difference of energy."""

    def wants_to_flip(x: Array) -> Array:
        carry = memory.carry(x)

        def at(index: Array) -> Array:
            return memory.preference(carry, x, index, memory.patterns[:, index], exact=False)

        return jax.lax.map(at, jnp.arange(x.size)) * x < 0

    return jnp.mean(jax.vmap(wants_to_flip)(patterns))


def dense_errors(
    seed: int, loads: Sequence[float], *, degree: int, dimension: int, num_networks: int
) -> dict[str, Any]:
    """Returns the error of one bit after one step at a stored pattern, F(z) = z^n, against K / D^(n-1).

    The step is the law's, which leaves the bit itself out of the overlaps (the rule "difference").
    """
    measured, theory = [], []
    for load in loads:
        count = round(load * dimension ** (degree - 1))
        errors = []
        for index in range(num_networks):
            patterns = _spins(np.random.default_rng([seed, index]), count, dimension)
            memory = dense(patterns, degree, rectified=False)
            errors.append(float(_wrong_bits(memory, jnp.asarray(patterns[:50]))))
        measured.append(_mean_and_error(errors))
        theory.append(float(dense_bit_error(count, dimension, degree, rectified=False)))
    return {
        "loads": list(loads),
        "measured": measured,
        "theory": theory,
        "degree": degree,
        "dimension": dimension,
    }


def exponential_basins(
    seed: int, rates: Sequence[float], *, radius: float, dimension: int, num_networks: int
) -> dict[str, Any]:
    """Returns which part of e^(rate D) patterns is recalled in one step from radius D flipped bits.

    The step is the theorem's, which leaves each spin itself out of the overlaps that decide about it.
    """
    recall = jax.jit(jax.vmap(partial(update, rule="difference"), (None, 0)))
    measured = []
    for rate in rates:
        fractions = []
        for index in range(num_networks):
            rng = np.random.default_rng([seed, index])
            patterns = _spins(rng, max(round(np.exp(rate * dimension)), 2), dimension)
            targets = patterns[:100]
            flips = np.argsort(rng.random(targets.shape), axis=1) < round(radius * dimension)
            found = recall(exponential(patterns), jnp.asarray(np.where(flips, -targets, targets)))
            fractions.append(float(jnp.mean(jnp.all(found == targets, axis=1))))
        measured.append(_mean_and_error(fractions))
    bound = float(exponential_capacity_rate(radius))
    return {
        "rates": list(rates),
        "measured": measured,
        "bound": bound,
        "radius": radius,
        "dimension": dimension,
    }


def modern_errors(seed: int, num_trials: int) -> dict[str, Any]:
    """Returns the modern network's error after one step, and its bound, over random networks.

    The bound is 2 (K - 1) M exp(-beta (Delta_i - 2 M max(|xi - x_i|, |x_i* - x_i|))), x_i* the fixed point
    near x_i.
    """

    @partial(jax.jit, static_argnames="dimension")
    @partial(jax.vmap, in_axes=(0, None))
    def trial(rng_key: Array, dimension: int) -> tuple[Array, Array]:
        keys = jax.random.split(rng_key, 4)
        patterns = jax.random.normal(keys[0], (10, dimension))
        beta = jnp.exp(jax.random.uniform(keys[1], minval=-2.0, maxval=2.0))
        step = 0.3 * jax.random.uniform(keys[2]) * jax.random.normal(keys[3], (dimension,))
        memory = modern(patterns, beta)
        state = patterns[0] + step / jnp.sqrt(dimension)
        fixed = jax.lax.fori_loop(0, 50, lambda _, x: memory.update(x), patterns[0])
        distance = jnp.maximum(jnp.linalg.norm(state - patterns[0]), jnp.linalg.norm(fixed - patterns[0]))
        error = jnp.linalg.norm(memory.update(state) - patterns[0])
        return error, retrieval_error_bound(patterns, beta, distance)[0]

    errors, bounds = [], []
    for dimension in (8, 32, 128):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), dimension), -(-num_trials // 3))
        error, bound = trial(keys, dimension)
        errors.append(np.asarray(error))
        bounds.append(np.asarray(bound))
    error, bound = np.concatenate(errors), np.concatenate(bounds)
    # In float32 a recalled pattern is exact only to about 1e-6 of its norm, for any bound.
    violations = int(np.sum(error > bound + 1e-4))
    return {"trials": len(error), "violations": violations, "error": error, "bound": bound}


def measure_capacities(seed: int, dimension: int, num_networks: int) -> dict[str, Any]:
    """Measures all of the above.

    Args:
      seed: of the patterns.
      dimension: spins of the networks whose overlap curve is measured.
      num_networks: random networks for each point of a curve.

    Returns:
      What each function returns, by ``hebb``, ``stable``, ``dense``, ``exponential`` (one for each radius)
      and ``modern``.
    """
    loads = (0.05, 0.1, 0.12, 0.138, 0.15, 0.16, 0.18, 0.2)
    counts = (10, 20, 40, 60, 100, 150, 199)
    rates = tuple(float(rate) for rate in np.round(np.linspace(0.02, 0.24, 8), 3))
    dense_loads = (0.05, 0.1, 0.2, 0.4)
    return {
        "hebb": hebb_curve(seed, loads, dimension=dimension, num_networks=num_networks, num_starts=20),
        "stable": stable_fractions(seed, counts, dimension=200, num_networks=num_networks),
        "dense": dense_errors(seed, dense_loads, degree=3, dimension=100, num_networks=num_networks),
        "exponential": [
            exponential_basins(seed, rates, radius=radius, dimension=40, num_networks=num_networks)
            for radius in (0.1, 0.2, 0.3)
        ],
        "modern": modern_errors(seed, 10_000),
    }
