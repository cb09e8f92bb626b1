"""Curved surfaces in the plane: Rosenbrock's banana-shaped valley and the Mueller-Brown potential.

Energy, log Z, score, moments and exact sampler are as in ``jaxebm.energies.analytic``, which exports both.
Neither has a symmetry, and along both a sampler must turn: in a valley far longer than it is wide, or through
three basins joined by a bent path.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.target import (
    AnalyticTarget,
    array,
    check_shape,
    compiled_sampler,
    infinite_energy,
    scalar,
)
from jaxebm.types import Array

__all__ = ["mueller_brown", "rosenbrock"]


# Rosenbrock


class RosenbrockParams(NamedTuple):
    """``curvature``, ``centre`` and ``temperature``, each of shape ()."""

    curvature: Array
    centre: Array
    temperature: Array


def _rosenbrock_energy(params: RosenbrockParams, x: Array) -> Array:
    check_shape("x", x, (2 * (np.size(x) // 2),), "(dimension,), an even number,")
    first, second = x[0::2], x[1::2]
    valley = params.curvature * (second - first**2) ** 2 + (first - params.centre) ** 2
    return jnp.sum(valley) / params.temperature


def _rosenbrock_log_partition(dimension: int, params: RosenbrockParams) -> Array:
    return 0.5 * dimension * (jnp.log(math.pi * params.temperature) - 0.5 * jnp.log(params.curvature))


@functools.partial(compiled_sampler, static=("dimension",))
def _rosenbrock_sample(
    rng_key: Array, params: RosenbrockParams, num_samples: int, *, dimension: int
) -> Array:
    normal = jax.random.normal(rng_key, (num_samples, dimension // 2, 2))
    first = params.centre + jnp.sqrt(0.5 * params.temperature) * normal[..., 0]
    second = first**2 + jnp.sqrt(0.5 * params.temperature / params.curvature) * normal[..., 1]
    return jnp.stack([first, second], axis=-1).reshape(num_samples, dimension)


def _rosenbrock_moments(dimension: int, params: RosenbrockParams) -> tuple[Array, Array]:
    mean, variance = params.centre, 0.5 * params.temperature
    covariance = 2 * mean * variance  # Cov(x_0, x_0^2)
    square_variance = 4 * mean**2 * variance + 2 * variance**2  # Var(x_0^2)
    pair_mean = jnp.stack([mean, mean**2 + variance])
    last = square_variance + variance / params.curvature
    pair_covariance = jnp.stack([variance, covariance, covariance, last]).reshape(2, 2)
    num_pairs = dimension // 2
    return jnp.tile(pair_mean, num_pairs), jnp.kron(jnp.eye(num_pairs), pair_covariance)


def rosenbrock(
    curvature: float = 100.0, centre: float = 1.0, temperature: float = 20.0, dimension: int = 2
) -> AnalyticTarget:
    """Returns Rosenbrock's valley as a density, in independent pairs of coordinates.

    E(x) = sum_{i = 0, 2, ...} [curvature (x_{i+1} - x_i^2)^2 + (x_i - centre)^2] / temperature,
    log Z = d/2 (log(pi temperature) - log(curvature) / 2).

    x_i is normal with variance temperature/2 and, given it, x_{i+1} is normal around x_i^2 with variance
    temperature / (2 curvature): this gives the sampler and the moments. The defaults are Goodman and Weare's:
    a valley of deviation 0.3 in x_1, which rises to x_1 of about 100.

    Args:
      curvature: b of the function b (y - x^2)^2 + (a - x)^2, positive.
      centre: its a, at (a, a^2) lies the minimum; any finite number.
      temperature: the divisor of the function, positive.
      dimension: d, even, at least 2.

    Returns:
      The target; its params are ``(curvature, centre, temperature)``.

    Raises:
      ValueError: if the curvature or temperature is not positive, the centre not finite, or the dimension not
        an even integer of at least 2.

    Example:
      >>> target = rosenbrock(curvature=100.0, centre=1.0)
      >>> mean, covariance = target.moments(target.params)
      >>> print(mean)
      [ 1. 11.]

    Reference:
      Rosenbrock, Computer Journal 3, 1960; Goodman and Weare, "Ensemble samplers with affine invariance",
      2010; Pagani, Wiegand and Nadarajah, "An n-dimensional Rosenbrock distribution for Markov
      chain Monte Carlo testing", 2022 (the pairs are their even Rosenbrock).
    """
    checks.positive("curvature", curvature)
    checks.positive("temperature", temperature)
    checks.positive_integer("dimension", dimension)
    if dimension % 2:
        raise ValueError(f"dimension={dimension}: dimension must be even, it counts pairs of coordinates.")
    return AnalyticTarget(
        _rosenbrock_energy,
        RosenbrockParams(
            scalar("curvature", curvature), scalar("centre", centre), scalar("temperature", temperature)
        ),
        functools.partial(_rosenbrock_log_partition, dimension),
        functools.partial(_rosenbrock_sample, dimension=dimension),
        functools.partial(_rosenbrock_moments, dimension),
        dimension,
    )


# Mueller-Brown

# V(x) = sum_k A_k exp((x - c_k)' Q_k (x - c_k)): three wells, and last the wall that confines them.
_AMPLITUDES = np.array([-200.0, -100.0, -170.0, 15.0])
_CENTRES = np.array([[1.0, 0.0], [0.0, 0.5], [-0.5, 1.5], [-1.0, 1.0]])
_FORMS = np.array(
    [
        [[-1.0, 0.0], [0.0, -10.0]],
        [[-1.0, 0.0], [0.0, -10.0]],
        [[-6.5, 5.5], [5.5, -6.5]],
        [[0.7, 0.3], [0.3, 0.7]],
    ]
)
_LOWEST = -146.69952  # V at its deepest minimum, (-0.558, 1.442)
_TEMPERATURES = (1.0, 1000.0)  # below, the grids are too coarse for the wells
_QUADRATURE_NODES = 384
_ENVELOPE_CELLS = 256


class MuellerBrownParams(NamedTuple):
    """``temperature``, shape ()."""

    temperature: Array


def _mueller_brown_exponents(x: Array) -> tuple[Array, Array]:
    """The exponents q_k = d' Q_k d of the four terms, shape (4,), and their gradients, shape (4, 2)."""
    offsets = x[None, :] - array(_CENTRES)
    half_gradients = jnp.einsum("kij,kj->ki", array(_FORMS), offsets)
    return jnp.sum(offsets * half_gradients, axis=1), 2 * half_gradients


def _mueller_brown_surface(x: Array) -> Array:
    return jnp.sum(array(_AMPLITUDES) * jnp.exp(_mueller_brown_exponents(x)[0]))


def _mueller_brown_energy(params: MuellerBrownParams, x: Array) -> Array:
    check_shape("x", x, (2,), "(2,)")
    wall = _mueller_brown_exponents(x)[0][-1]
    # Where exp would overflow, the gradient is inf - inf. A NaN compares false here, and stays one.
    near = wall < 0.9 * math.log(float(jnp.finfo(wall.dtype).max))
    centre = array(_CENTRES[-1])
    surface = _mueller_brown_surface(jnp.where(near, x, centre.astype(x.dtype)))
    return jnp.where(near, surface / params.temperature, infinite_energy(x - centre))


def _mueller_brown_square(temperature: Array) -> Array:
    """Half the side of a square around the wall's centre, outside which E exceeds its minimum by 40.

    The wells together are at least -470, so it is enough that 15 exp(q) = 470 + lowest + 40 temperature for
    the wall's q; and of the points where it has this q, none lies further along an axis than the root of q
    times 1.75, the diagonal of the form's inverse.
    """
    q = jnp.log((470.0 + _LOWEST + 40.0 * temperature) / 15.0)
    return jnp.sqrt(1.75 * q)


def _centred_grid(half_width: Array, coordinates: Array) -> Array:
    """The points (n^2, 2) of the square at the n ``coordinates`` in [-1, 1] of each axis, row by row."""
    first, second = (float(centre) + half_width * coordinates for centre in _CENTRES[-1])
    return jnp.stack(jnp.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)


def _mueller_brown_quadrature(params: MuellerBrownParams) -> tuple[Array, Array]:
    """Nodes (n^2, 2) and the log of their weights in integral exp(-E) dx, by the trapezoidal rule.

    On an analytic integrand that is negligible at the edges the rule converges exponentially, once the nodes
    lie closer than the narrowest deviation: at temperature 1 the deepest well's is 0.016, their distance
    0.012.
    """
    half_width = _mueller_brown_square(jax.lax.stop_gradient(params.temperature))
    nodes = _centred_grid(half_width, jnp.linspace(-1.0, 1.0, _QUADRATURE_NODES))
    energies = jax.vmap(_mueller_brown_energy, (None, 0))(params, nodes)
    return nodes, 2 * jnp.log(2 * half_width / (_QUADRATURE_NODES - 1)) - energies


def _mueller_brown_log_partition(params: MuellerBrownParams) -> Array:
    return jax.nn.logsumexp(_mueller_brown_quadrature(params)[1])


def _mueller_brown_moments(params: MuellerBrownParams) -> tuple[Array, Array]:
    nodes, log_weights = _mueller_brown_quadrature(params)
    probabilities = jax.nn.softmax(log_weights)
    mean = probabilities @ nodes
    offsets = nodes - mean[None, :]
    return mean, (probabilities[:, None] * offsets).T @ offsets


def _mueller_brown_bound(x: Array, half_width: Array) -> Array:
    """A number that V does not fall below in the square of this half width around x, by Taylor's theorem.

    V(x + d) >= V(x) - |dV/dx| . |d| - |d|^2 / 2 max |Hessian|, and the Hessian of A exp(q) is at most
    |A| exp(q) (|dq/dx|^2 + 2 |Q|), in norm.
    """
    radius = math.sqrt(2) * half_width
    norms = array(np.abs(np.linalg.eigvalsh(_FORMS)).max(axis=1))
    exponents, exponent_gradients = _mueller_brown_exponents(x)
    steepest = jnp.linalg.norm(exponent_gradients, axis=1) + 2 * norms * radius
    highest = array(np.abs(_AMPLITUDES)) * jnp.exp(exponents + steepest * radius)
    curvature = jnp.sum(highest * (steepest**2 + 2 * norms))
    value, gradient = jax.value_and_grad(_mueller_brown_surface)(x)
    return value - half_width * jnp.sum(jnp.abs(gradient)) - 0.5 * radius**2 * curvature


@compiled_sampler
def _mueller_brown_sample(rng_key: Array, params: MuellerBrownParams, num_samples: int) -> Array:
    """Exact rejection from a density above exp(-E) that is constant on each of 256 x 256 cells.

    The accepted fraction is 0.83 at temperature 20, 0.30 at 1.
    """
    temperature, cells = params.temperature, _ENVELOPE_CELLS
    half_width = _mueller_brown_square(temperature)
    half_cell = half_width / cells
    corners = (2 * jnp.arange(cells) - cells) / cells  # of the cells, on the axis [-1, 1]
    middles = _centred_grid(half_width, corners + 1 / cells)
    bounds = (jax.vmap(_mueller_brown_bound, (0, None))(middles, half_cell) / temperature).reshape(cells, -1)
    # First the row, then the column in it: sums of 256 numbers keep the digits that one of 65 536 would lose.
    row_masses = jnp.cumsum(jax.nn.softmax(jax.nn.logsumexp(-bounds, axis=1)))
    column_masses = jnp.cumsum(jax.nn.softmax(-bounds, axis=1), axis=1)

    def propose(rng_key: Array) -> tuple[Array, Array]:
        row_key, column_key, offset_key, accept_key = jax.random.split(rng_key, 4)
        row = _first_above(row_masses, row_key)
        column = _first_above(column_masses[row], column_key)
        offset = jax.random.uniform(offset_key, (2,), minval=-1.0)
        x = middles[row * cells + column] + half_cell * offset
        log_acceptance = bounds[row, column] - _mueller_brown_energy(params, x)
        return x, jnp.log(jax.random.uniform(accept_key)) < log_acceptance

    def retry(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rng_key, propose_key = jax.random.split(carry[0])
        return rng_key, *propose(propose_key)

    def first_accepted(rng_key: Array) -> Array:
        # The proposal's uniform numbers are of the default type, which may be wider than the params'.
        dtype = jnp.promote_types(half_cell.dtype, jnp.zeros(()).dtype)
        nothing_yet = (rng_key, jnp.zeros(2, dtype), jnp.zeros((), bool))
        return jax.lax.while_loop(lambda carry: ~carry[2], retry, nothing_yet)[1]

    return jax.vmap(first_accepted)(jax.random.split(rng_key, num_samples))


def _first_above(cumulative: Array, rng_key: Array) -> Array:
    """Draws an index from cumulative masses, whose last need not be quite 1."""
    threshold = cumulative[-1] * jax.random.uniform(rng_key)
    return jnp.minimum(jnp.searchsorted(cumulative, threshold, side="right"), cumulative.size - 1)


def mueller_brown(temperature: float = 20.0) -> AnalyticTarget:
    """Returns the Mueller-Brown surface as a density: three basins along a bent path, oblique to the axes.

    E(x) = sum_k A_k exp[a_k (x_0 - u_k)^2 + b_k (x_0 - u_k)(x_1 - v_k) + c_k (x_1 - v_k)^2] / temperature,

    with A = (-200, -100, -170, 15), a = (-1, -1, -6.5, 0.7), b = (0, 0, 11, 0.6), c = (-10, -10, -6.5, 0.7),
    u = (1, 0, -0.5, -1) and v = (0, 0.5, 1.5, 1).

    The minima are -146.70 at (-0.558, 1.442), -108.17 at (0.623, 0.028) and -80.77 at (-0.050, 0.467); the
    saddle between the first and the others is -40.66 at (-0.822, 0.624). At temperature 20 the way out of the
    deepest basin is 5.3 kT high, and the other two hold 19% of the mass; at 10, 10.6 kT and 2.6%. log Z and
    the moments are quadratures on a grid, exact to float32 and differentiable; the samples are exact.

    Args:
      temperature: the divisor of the surface, from 1 to 1000.

    Returns:
      The target, of dimension 2; its params are ``(temperature,)``.

    Raises:
      ValueError: if the temperature is out of this range.

    Example:
      >>> target = mueller_brown(temperature=20.0)
      >>> round(20 * float(target.target(jnp.array([-0.5582, 1.4417]))), 2)
      -146.7

    Reference:
      Mueller and Brown, "Location of saddle points and minimum energy paths by a constrained simplex
      optimization procedure", Theoretica Chimica Acta 53, 1979, footnote 7.
    """
    checks.in_range("temperature", temperature, *_TEMPERATURES)
    params = MuellerBrownParams(scalar("temperature", temperature))
    return AnalyticTarget(
        _mueller_brown_energy,
        params,
        _mueller_brown_log_partition,
        _mueller_brown_sample,
        _mueller_brown_moments,
        2,
    )
