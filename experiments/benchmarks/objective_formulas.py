"""Each objective without chains by hand: its random numbers, and its formula at numbers that are given.

A formula is the plainest program of the derivatives that its equation needs: one ``vmap``, no metrics, no
checks, no classes. Random numbers follow the key as in the objective, so that both give the same gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import objectives
from jaxebm.energies import tilt
from jaxebm.objectives import Objective
from jaxebm.objectives.couplings import draw_paths
from jaxebm.objectives.level_classification import default_num_levels
from jaxebm.types import Array, EnergyFn

__all__ = ["FORMULAS", "Formula", "Problem"]

LOWEST, HIGHEST, NOISE, POINTS, CLASSES = 0.1, 10.0, 0.5, 4, 4
STEP = 0.25
"""A large step, so that rounding changes the gradient little and the two can be compared; times do not
depend on it."""


class Problem(NamedTuple):
    """Energies, their parameters, and data.

    Attributes:
      title: what it is.
      x: examples, ``(n, ...)``.
      energy: E(params, x) of one example.
      energy_at: E(params, x, level) of one example.
      flow: a flow of such examples.
      proposal: a Gaussian fitted to the examples.
      params: parameters by kind: ``energy``, ``level`` and ``flow``.
      exact: whether the exact Laplacian is computed; it costs d products of the Hessian with a vector.
    """

    title: str
    x: Array
    energy: EnergyFn
    energy_at: Any
    flow: Any
    proposal: Any
    params: dict[str, Any]
    exact: bool


class Formula(NamedTuple):
    """One objective.

    Attributes:
      derivatives: what is evaluated for each example, before the derivative by the parameters.
      make: ``(problem) -> Objective``.
      draw: ``(problem, rng_key, x) -> numbers``, those that the objective draws from that key.
      loss: ``(problem, params, numbers, x) -> ()``.
      params: the kind of its parameters.
      tolerance: tolerated difference of losses and of gradients, relative to the largest number.
    """

    derivatives: str
    make: Callable[[Problem], Objective]
    draw: Callable[[Problem, Array, Array], Any]
    loss: Callable[[Problem, Any, Any, Array], Array]
    params: str = "energy"
    tolerance: float = 1e-3


def _each(function: Callable[[Array, Array], Any], rng_key: Array, x: Array) -> Any:
    """``function(rng_key, x)`` of each example, with a key of its own."""
    return jax.vmap(function)(jax.random.split(rng_key, len(x)), x)


def _normals(rng_key: Array, x: Array) -> Array:
    return _each(lambda key, one: jax.random.normal(key, one.shape), rng_key, x)


def _columns(values: Array, like: Array) -> Array:
    """``(n,)`` as ``(n, 1, ...)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _squares(values: Array) -> Array:
    return jnp.sum(values**2, axis=tuple(range(1, values.ndim)))


def _energies(problem: Problem, params: Any, *points: Array) -> list[Array]:
    """Energies of several batches, from one."""
    values = jax.vmap(problem.energy, (None, 0))(params, jnp.concatenate(points))
    return jnp.split(values, [sum(map(len, points[: i + 1])) for i in range(len(points) - 1)])


def _slopes(problem: Problem, params: Any, x: Array) -> Array:
    return jax.vmap(jax.grad(problem.energy, 1), (None, 0))(params, x)


# Score matching.


def _no_draw(problem: Problem, rng_key: Array, x: Array) -> tuple[()]:
    del problem, rng_key, x
    return ()


def _exact(problem: Problem, params: Any, numbers: Any, x: Array) -> Array:
    del numbers
    basis = jnp.eye(x[0].size).reshape(-1, *x.shape[1:])

    def one(x: Array) -> Array:
        slope = partial(jax.grad(problem.energy, 1), params)
        along = jax.vmap(lambda v: jax.jvp(slope, (x,), (v,)), out_axes=(None, 0))
        gradient, products = along(basis)
        return 0.5 * jnp.sum(gradient**2) - jnp.sum(basis * products)

    return jnp.mean(jax.vmap(one)(x))


def _draw_signs(problem: Problem, rng_key: Array, x: Array) -> Array:
    del problem
    return _each(lambda key, one: jax.random.rademacher(key, one.shape, one.dtype), rng_key, x)


def _sliced(problem: Problem, params: Any, signs: Array, x: Array) -> Array:
    def one(x: Array, v: Array) -> Array:
        slope = partial(jax.grad(problem.energy, 1), params)
        gradient, product = jax.jvp(slope, (x,), (v,))
        return 0.5 * jnp.sum(gradient**2) - jnp.sum(v * product)

    return jnp.mean(jax.vmap(one)(x, signs))


def _draw_directions(problem: Problem, rng_key: Array, x: Array) -> Array:
    del problem

    def one(key: Array, x: Array) -> Array:
        normal = jax.random.normal(jax.random.split(key, 1)[0], x.shape)
        return STEP * normal / jnp.sqrt(jnp.sum(normal**2))

    return _each(one, rng_key, x)


def _finite_difference(problem: Problem, params: Any, moves: Array, x: Array) -> Array:
    here, forward, backward = _energies(problem, params, x, x + moves, x - moves)
    terms = (forward - backward) ** 2 / 8 - ((forward - here) + (backward - here))
    return x[0].size / STEP**2 * jnp.mean(terms)


# Denoising.


def _draw_normals(problem: Problem, rng_key: Array, x: Array) -> Array:
    del problem
    return _normals(rng_key, x)


def _denoising(problem: Problem, params: Any, z: Array, x: Array) -> Array:
    return jnp.mean(_squares(NOISE * _slopes(problem, params, x + NOISE * z) - z))


def _draw_levels(problem: Problem, rng_key: Array, x: Array) -> tuple[Array, Array]:
    del problem
    key_levels, key_noise = jax.random.split(rng_key)
    heights = (jax.random.uniform(key_levels) + jnp.arange(len(x)) / len(x)) % 1.0
    return LOWEST * (HIGHEST / LOWEST) ** heights, _normals(key_noise, x)


def _at_levels(problem: Problem, params: Any, numbers: tuple[Array, Array], x: Array) -> Array:
    levels, z = numbers
    wide = _columns(levels, x)
    slopes = jax.vmap(jax.grad(problem.energy_at, 1), (None, 0, 0))(params, x + wide * z, levels)
    return jnp.mean(_squares(wide * slopes - z))


# Contrast with noise.


def _draw_noise(problem: Problem, rng_key: Array, x: Array) -> tuple[Array, Array, Array]:
    noise = problem.proposal.sample(jax.random.split(rng_key)[0], len(x))
    log_density = jax.vmap(problem.proposal.log_density)
    return noise, log_density(x), log_density(noise)


def _noise_contrastive(problem: Problem, params: Any, numbers: tuple[Array, ...], x: Array) -> Array:
    noise, log_q_data, log_q_noise = numbers
    data, other = _energies(problem, params, x, noise)
    return jnp.mean(jax.nn.softplus(data + log_q_data)) + jnp.mean(jax.nn.softplus(-other - log_q_noise))


def _self_normalised(problem: Problem, params: Any, numbers: tuple[Array, ...], x: Array) -> Array:
    noise, log_q_data, _ = numbers
    data, other = _energies(problem, params, x, noise)
    return jnp.mean(data - log_q_data) + jnp.mean(jnp.exp(-other)) - 1


def _draw_moves(problem: Problem, rng_key: Array, x: Array) -> Array:
    del problem
    return NOISE * jax.random.normal(jax.random.split(rng_key)[0], x.shape)


def _conditional(problem: Problem, params: Any, moves: Array, x: Array) -> Array:
    data, other = _energies(problem, params, x, x + moves)
    return 2 * jnp.mean(jax.nn.softplus(data - other))


def _log_normal(z: Array) -> Array:
    return -0.5 * (_squares(z) + z[0].size * jnp.log(2 * jnp.pi))


def _flow_contrastive(problem: Problem, params: Any, z: Array, x: Array) -> Array:
    # The flow ascends: the same value, the opposite gradient.
    ascending = jax.tree.map(lambda leaf: jax.lax.stop_gradient(2 * leaf) - leaf, params["flow"])
    apply = partial(problem.flow.apply, ascending)
    noise, determinants = jax.vmap(partial(apply, inverse=True, method="transform"))(z)
    log_q_data, log_q_noise = jax.vmap(apply)(x), _log_normal(z) - determinants
    return _noise_contrastive(problem, params["energy"], (noise, log_q_data, log_q_noise), x)


def _draw_neighbours(problem: Problem, rng_key: Array, x: Array) -> Array:
    """Points around each example, ``(POINTS, n, ...)``."""
    del problem

    def one(key: Array, x: Array) -> Array:
        first, second = jax.random.split(key)
        return x + jax.random.normal(first, x.shape) + jax.random.normal(second, (POINTS, *x.shape))

    return jnp.moveaxis(_each(one, rng_key, x), 1, 0)


def _discrepancy(problem: Problem, params: Any, points: Array, x: Array) -> Array:
    data, *others = _energies(problem, params, x, *points)
    differences = data - jnp.stack([data, *others])
    return jnp.mean(jax.nn.logsumexp(differences, axis=0)) - jnp.log(POINTS)


# Normalised energies of all levels.


def _anchor_points(keys: Array, x: Array) -> tuple[Array, Array, Array, Array]:
    """Data under the most noise, draws of a Gaussian of their moments, and log q of both."""
    mean, variance = jnp.mean(x, axis=0, keepdims=True), jnp.var(x, axis=0, keepdims=True) + HIGHEST**2
    pairs = jax.vmap(jax.random.split)(keys)
    normal = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
    data, drawn = x + HIGHEST * normal(pairs[:, 0]), mean + jnp.sqrt(variance) * normal(pairs[:, 1])

    def log_density(points: Array) -> Array:
        terms = (points - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return -0.5 * jnp.sum(terms, axis=tuple(range(1, points.ndim)))

    return data, drawn, log_density(data), log_density(drawn)


def _anchor(energies: Array, log_q: tuple[Array, Array]) -> Array:
    data, drawn = jnp.split(energies, 2)
    return 0.5 * jnp.mean(jax.nn.softplus(data + log_q[0]) + jax.nn.softplus(-drawn - log_q[1]))


def _draw_dual(problem: Problem, rng_key: Array, x: Array) -> dict[str, Any]:
    del problem
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(rng_key, len(x)))
    low, high = jnp.log(LOWEST), jnp.log(HIGHEST)
    levels = jnp.exp(jax.vmap(lambda key: jax.random.uniform(key, (), minval=low, maxval=high))(keys[:, 0]))
    z = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys[:, 1])
    return {"levels": levels, "z": z, "anchor": _anchor_points(keys[:, 2], x)}


def _dual(problem: Problem, params: Any, numbers: dict[str, Any], x: Array) -> Array:
    levels, z, (data, drawn, *log_q) = numbers["levels"], numbers["z"], numbers["anchor"]
    wide, size = _columns(levels, x), x[0].size
    both = jax.vmap(jax.grad(problem.energy_at, (1, 2)), (None, 0, 0))
    slopes, by_level = both(params, x + wide * z, levels)
    energies = jax.vmap(problem.energy_at, (None, 0, None))(params, jnp.concatenate([data, drawn]), HIGHEST)
    by_level_error = (levels * by_level - size + _squares(z)) ** 2 / (2 * size)
    terms = _squares(wide * slopes - z) / size + by_level_error / size
    return jnp.mean(terms) + _anchor(energies, (log_q[0], log_q[1]))


def _draw_windows(problem: Problem, rng_key: Array, x: Array) -> dict[str, Any]:
    del problem
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(jax.random.split(rng_key, len(x)))
    count = max(CLASSES, default_num_levels(LOWEST, HIGHEST, x[0].size))
    sequence = jnp.geomspace(LOWEST, HIGHEST, count, dtype=jnp.float32)
    start = jax.vmap(lambda key: jax.random.randint(key, (), 0, count - CLASSES + 1))(keys[:, 0])
    true = jax.vmap(lambda key: jax.random.randint(key, (), 0, CLASSES))(keys[:, 1])
    classes = (true[:, None] + jnp.arange(CLASSES)[None, :]) % CLASSES
    z = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys[:, 2])
    levels = sequence[start[:, None] + classes].T  # (CLASSES, n), that of the noise first
    return {"levels": levels, "z": z, "anchor": _anchor_points(keys[:, 3], x)}


def _level_classification(problem: Problem, params: Any, numbers: dict[str, Any], x: Array) -> Array:
    levels, z, (data, drawn, *log_q) = numbers["levels"], numbers["z"], numbers["anchor"]
    wide, size, n = _columns(levels[0], x), x[0].size, len(x)
    y = x + wide * z
    own, slopes = jax.vmap(jax.value_and_grad(problem.energy_at, 1), (None, 0, 0))(params, y, levels[0])
    others = (CLASSES - 1) * [y]
    told = jnp.concatenate([levels[1:].ravel(), jnp.full(2 * n, HIGHEST)])
    energies = jax.vmap(problem.energy_at, (None, 0, 0))(
        params, jnp.concatenate([*others, data, drawn]), told
    )
    rest, last = jnp.split(energies, [(CLASSES - 1) * n])
    window = jnp.concatenate([own[None], rest.reshape(CLASSES - 1, n)])
    cross_entropies = own + jax.nn.logsumexp(-window, axis=0)
    terms = (_squares(wide * slopes - z) + 4.0 * cross_entropies) / size
    return jnp.mean(terms) + _anchor(last, (log_q[0], log_q[1]))


# Velocities from noise to data.


def _draw_pairs(coupling: Any) -> Callable[[Problem, Array, Array], Any]:
    return lambda problem, rng_key, x: draw_paths(rng_key, x, coupling=coupling)


def _energy_matching(problem: Problem, params: Any, paths: Any, x: Array) -> Array:
    return jnp.mean(_squares(_slopes(problem, params, paths.position) + paths.velocity)) / x[0].size


def _equilibrium_matching(problem: Problem, params: Any, paths: Any, x: Array) -> Array:
    factor = _columns(4 * jnp.minimum(1.0, (1 - paths.time) / 0.2), x)
    residuals = _slopes(problem, params, paths.position) + factor * paths.velocity
    return jnp.mean(_squares(residuals)) / x[0].size


def _told(make: Callable[..., Objective]) -> Callable[[Problem], Objective]:
    return lambda problem: make(problem.energy_at, lowest=LOWEST, highest=HIGHEST)


def _of_energy(make: Callable[..., Objective], **options: Any) -> Callable[[Problem], Objective]:
    return lambda problem: make(problem.energy, **options)


def _tilted(problem: Problem) -> Objective:
    corrected = tilt(problem.energy, problem.proposal.log_density)
    return objectives.self_normalised(corrected, problem.proposal, num_samples=len(problem.x))


_SLICED = ("1 gradient, 1 Hessian-vector product", _draw_signs, _sliced)

FORMULAS: dict[str, Formula] = {
    "score-matching": Formula(
        "1 gradient, d Hessian-vector products", _of_energy(objectives.score_matching), _no_draw, _exact
    ),
    "score-matching-hutchinson": Formula(
        _SLICED[0], _of_energy(objectives.score_matching, trace="hutchinson"), *_SLICED[1:]
    ),
    "sliced-score-matching": Formula(_SLICED[0], _of_energy(objectives.sliced_score_matching), *_SLICED[1:]),
    "finite-difference-score-matching": Formula(
        "3 energies",
        _of_energy(objectives.finite_difference_score_matching, step=STEP),
        _draw_directions,
        _finite_difference,
        tolerance=2e-2,  # rounding: 3e-8 of an energy times 4 d / step^2
    ),
    "denoising-score-matching": Formula(
        "1 gradient",
        _of_energy(objectives.denoising_score_matching, noise_level=NOISE),
        _draw_normals,
        _denoising,
    ),
    "denoising-at-levels": Formula(
        "1 gradient", _told(objectives.denoising_at_levels), _draw_levels, _at_levels, "level"
    ),
    "noise-contrastive": Formula(
        "2 energies",
        lambda problem: objectives.noise_contrastive(problem.energy, problem.proposal),
        _draw_noise,
        _noise_contrastive,
    ),
    "conditional-noise-contrastive": Formula(
        "2 energies",
        _of_energy(objectives.conditional_noise_contrastive, noise_scale=NOISE),
        _draw_moves,
        _conditional,
    ),
    "flow-contrastive": Formula(
        "2 energies, 2 passes of the flow",
        lambda problem: objectives.flow_contrastive(problem.energy, problem.flow, accuracy=0.0),
        lambda problem, rng_key, x: jax.random.normal(jax.random.split(rng_key)[0], x.shape),
        _flow_contrastive,
        "flow",
    ),
    "energy-discrepancy": Formula(
        "5 energies",
        _of_energy(objectives.energy_discrepancy, num_samples=POINTS),
        _draw_neighbours,
        _discrepancy,
    ),
    "self-normalised": Formula("2 energies", _tilted, _draw_noise, _self_normalised),
    "dual-score-matching": Formula(
        "1 gradient, 2 energies", _told(objectives.dual_score_matching), _draw_dual, _dual, "level"
    ),
    "level-classification": Formula(
        "1 gradient, 5 energies",
        _told(objectives.level_classification),
        _draw_windows,
        _level_classification,
        "level",
    ),
    **{
        f"{name}-{coupling}": Formula(
            "1 gradient", _of_energy(make, coupling=coupling), _draw_pairs(coupling), loss
        )
        for name, make, loss in (
            ("energy-matching", objectives.energy_matching, _energy_matching),
            ("equilibrium-matching", objectives.equilibrium_matching, _equilibrium_matching),
        )
        for coupling in ("independent", "optimal")
    },
}
"""By the name of the objective's function, with hyphens."""
