"""The modern network as a density: exact log Z, samples and score, missing coordinates, and diffusion.

exp(-beta E(x)) of the modern network is a mixture of Gaussians around the memories,

    exp(-beta E(x)) = 1/K sum_mu e^(beta (c_mu + |xi_mu + b|^2 / 2)) exp(-beta |x - xi_mu - b|^2 / 2),

so everything about it is known. Its step is the mean of the memory given a noisy one, E[xi | x] at noise
variance 1 / beta, and its gradient the score: beta (update(x) - x) = d log p / dx. Raising beta is then
diffusion run backwards.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.analytic import GaussianMixtureParams, gaussian_mixture
from jaxebm.energies.target import LOG_TWO_PI, AnalyticTarget, compiled_sampler
from jaxebm.hopfield.family import PatternMemory, States
from jaxebm.hopfield.lagrangians import LogSumRelu, Softmax
from jaxebm.hopfield.memories import modern
from jaxebm.hopfield.validation import COLUMNS, memory_arrays, pattern_matrix, vector
from jaxebm.types import Array

__all__ = [
    "MaskedMemory",
    "as_epanechnikov_mixture",
    "as_gaussian_mixture",
    "density_energy",
    "marginalise",
    "reverse_diffusion",
]


def density_energy(memory: PatternMemory, x: Array) -> Array:
    """Returns beta E(x): the ``EnergyFn`` of the density exp(-beta E(x)) / Z that belongs to a memory.

    Args:
      memory: a `PatternMemory`.
      x: shape (D,).

    Returns:
      beta E(x), shape ().

    Raises:
      ValueError: if x has another shape.

    Example:
      >>> memory = modern(jnp.eye(2), beta=4.0)
      >>> from jaxebm.samplers import sample
      >>> sample(jax.random.key(0), density_energy, memory, jnp.zeros((8, 2)), 50, step_size=0.05).shape
      (8, 2)
    """
    if not isinstance(memory, PatternMemory):
        raise TypeError(
            f"memory is a {type(memory).__name__}: memory must be a PatternMemory, which has a beta."
        )
    memory_arrays("memory", memory)
    vector("x", x, memory.dimension, COLUMNS)
    return memory.beta * memory.energy(jnp.asarray(x))


def _require(memory: Any, lagrangian: type, constructors: str) -> None:
    if not isinstance(memory, PatternMemory) or not isinstance(memory.lagrangian, lagrangian):
        kind = getattr(memory, "lagrangian", type(memory).__name__)
        raise ValueError(f"memory has {kind}: a network made by {constructors} is needed.")
    memory_arrays("memory", memory)


def _log_masses(memory: PatternMemory) -> Array:
    """Of the components: beta (c + |xi + b|^2 / 2), shape (K,)."""
    centres = _centres(memory)
    offsets = 0.0 if memory.offsets is None else memory.offsets
    return memory.beta * (offsets + 0.5 * jnp.sum(centres**2, axis=1))


def _centres(memory: PatternMemory) -> Array:
    return memory.patterns if memory.bias is None else memory.patterns + memory.bias[None, :]


@functools.cache
def _mixture_functions(dimension: int) -> AnalyticTarget:
    """The functions of a Gaussian mixture: one object a dimension, so that nothing recompiles."""
    with jax.ensure_compile_time_eval():  # the first call may be in a trace, whose values must not be stored
        return gaussian_mixture([1.0], [[0.0] * dimension], [1.0])


def as_gaussian_mixture(memory: PatternMemory) -> AnalyticTarget:
    """Returns the density of a modern network: a Gaussian mixture with exact log Z, moments and sampler.

    Its energy is beta E(x), exactly, so that log Z is that of exp(-beta E(x)); in the published normalisation
    log Z = -ln K - beta M^2 / 2 + (D/2) ln(2 pi / beta) + ln sum_mu e^(beta |xi_mu|^2 / 2).

    Args:
      memory: from `jaxebm.hopfield.modern`; its arrays may be traced.

    Returns:
      The target, with ``log_partition``, ``sample``, ``moments``, ``score`` and ``log_density``.

    Raises:
      ValueError: if the memory is another one.

    Example:
      >>> target = as_gaussian_mixture(modern(jnp.eye(2), beta=1.0))
      >>> round(float(target.log_partition(target.params)), 4)  # ln(2 pi): all norms are M
      1.8379

    Reference:
      Ramsauer et al. 2020 (arXiv 2008.02217), eq. 2; Ambrogioni 2023, "In search of dispersed memories:
      generative diffusion models are associative memory networks" (arXiv 2309.17290).
    """
    _require(memory, Softmax, "jaxebm.hopfield.modern")
    dimension = memory.dimension
    log_weights = _log_masses(memory) - math.log(memory.num_memories)
    log_weights = log_weights + 0.5 * dimension * (LOG_TWO_PI - jnp.log(memory.beta))
    scales = jnp.broadcast_to(memory.beta**-0.5, log_weights.shape)
    params = GaussianMixtureParams(log_weights, _centres(memory), scales)
    return _mixture_functions(dimension)._replace(params=params)


def _epanechnikov_log_partition(memory: PatternMemory) -> Array:
    """K balls of radius r = sqrt(2 / beta), each of mass r^D pi^(D/2) / Gamma(D/2 + 1) * 2 / (D + 2)."""
    dimension = memory.dimension
    unit_ball = 0.5 * dimension * math.log(math.pi) - math.lgamma(0.5 * dimension + 1)
    mean_height = math.log(2 / (dimension + 2))
    return (
        math.log(memory.num_memories)
        + unit_ball
        + mean_height
        + 0.5 * dimension * (math.log(2) - jnp.log(memory.beta))
    )


@compiled_sampler
def _epanechnikov_sample(rng_key: Array, memory: PatternMemory, num_samples: int) -> Array:
    """The first D of D + 4 coordinates of a uniform point of the unit sphere have density ~ 1 - |u|^2."""
    component_key, point_key = jax.random.split(rng_key)
    component = jax.random.randint(component_key, (num_samples,), 0, memory.num_memories)
    normal = jax.random.normal(point_key, (num_samples, memory.dimension + 4), memory.patterns.dtype)
    sphere = normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
    return memory.patterns[component] + jnp.sqrt(2 / memory.beta) * sphere[:, : memory.dimension]


def _epanechnikov_moments(memory: PatternMemory) -> tuple[Array, Array]:
    mean = jnp.mean(memory.patterns, axis=0)
    offsets = memory.patterns - mean[None, :]
    within = 2 / (memory.beta * (memory.dimension + 4))
    return mean, offsets.T @ offsets / memory.num_memories + within * jnp.eye(
        memory.dimension, dtype=mean.dtype
    )


def as_epanechnikov_mixture(memory: PatternMemory) -> AnalyticTarget:
    """Returns the density of an Epanechnikov network: as many parabolic balls as memories.

    exp(-beta E(x)) = sum_mu relu(1 - beta |x - xi_mu|^2 / 2), log Z = ln(K 2 / (D + 2) pi^(D/2) / Gamma(D/2 +
    1)) + (D/2) ln(2 / beta).

    Args:
      memory: from `jaxebm.hopfield.epanechnikov` with ``epsilon=0``: otherwise there is no finite Z.

    Returns:
      The target; its params are the memory.

    Raises:
      ValueError: if the memory is another one, or epsilon is not 0.

    Example:
      >>> from jaxebm.hopfield.memories import epanechnikov
      >>> target = as_epanechnikov_mixture(epanechnikov([[0.0]], beta=2.0, epsilon=0.0))
      >>> round(float(jnp.exp(target.log_partition(target.params))), 4)  # integral of 1 - x^2 from -1 to 1
      1.3333

    Reference:
      Hoover et al. 2025, "Dense associative memory with Epanechnikov energy" (arXiv 2506.10801).
    """
    _require(memory, LogSumRelu, "jaxebm.hopfield.epanechnikov")
    if isinstance(memory.lagrangian, LogSumRelu) and memory.lagrangian.epsilon != 0:
        raise ValueError(
            f"epsilon={memory.lagrangian.epsilon}: it adds a constant to the density everywhere, whose "
            f"integral is infinite; make the memory with epsilon=0."
        )
    return AnalyticTarget(
        density_energy,
        memory,
        _epanechnikov_log_partition,
        _epanechnikov_sample,
        _epanechnikov_moments,
        memory.dimension,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedMemory:
    """A modern network for queries with missing coordinates, which are integrated out.

    Attributes:
      memory: the whole network.
      observed: shape (D,), 1.0 where the query is known, else 0.0.

    Example:
      >>> from jaxebm.hopfield.family import update
      >>> memory = modern([[1.0, 5.0], [2.0, -3.0]], beta=50.0, equal_weights=True)
      >>> print(jnp.round(update(MaskedMemory(memory, jnp.array([1.0, 0.0])), jnp.array([1.1, 0.0])), 2))
      [1. 5.]
    """

    memory: PatternMemory
    observed: Array

    @property
    def states(self) -> States:
        """ "reals"."""
        return "reals"

    @property
    def dimension(self) -> int:
        """D."""
        return self.memory.dimension

    @property
    def symmetric(self) -> bool:
        """Whether the Jacobian of `residual` is symmetric: no, because missing coordinates have no effect."""
        return False

    def scores(self, x: Array) -> Array:
        """Returns beta (xi_o.x_o + c + |(xi + b)_m|^2 / 2), shape (K,), o observed and m missing."""
        memory = self.memory
        missing_mass = 0.5 * (_centres(memory) ** 2 @ (1.0 - self.observed))
        offsets = missing_mass if memory.offsets is None else missing_mass + memory.offsets
        return memory.beta * (jnp.where(self.observed > 0, x, 0.0) @ memory.patterns.T + offsets)

    def weights(self, x: Array) -> Array:
        """Returns p(mu | x_o), shape (K,): how probable each memory is, given what is observed."""
        return self.memory.lagrangian.gradient(self.scores(x))

    def energy(self, x: Array) -> Array:
        """Returns -ln p(x_o) / beta up to a constant, shape ()."""
        seen = jnp.where(self.observed > 0, x, 0.0)
        value = 0.5 * jnp.sum(seen**2) - self.memory.lagrangian.value(self.scores(x)) / self.memory.beta
        return value if self.memory.bias is None else value - self.memory.bias @ seen

    def update(self, x: Array) -> Array:
        """Returns E[xi + b | x_o], shape (D,): all coordinates, recalled from the observed ones."""
        return self.weights(x) @ _centres(self.memory)

    def residual(self, x: Array) -> Array:
        """Returns x - update(x), shape (D,), which is 0 where x rests."""
        return x - self.update(x)


def marginalise(memory: PatternMemory, observed: Any) -> MaskedMemory:
    """Returns a modern network for queries with only some known coordinates.

    p(mu | x_o) = softmax_mu beta (xi_o.x_o + c_mu + |(xi_mu + b)_m|^2 / 2): the missing coordinates m are
    integrated out of the mixture, instead of being set to a value.
    `retrieve` on the result fills them in; one step of it is the exact posterior mean.

    Args:
      memory: from `jaxebm.hopfield.modern`. With ``equal_weights=True`` the scores are -beta |x_o - xi_o|^2 /
        2, where all memories have the same prior probability, as needed for recall from a part.
      observed: shape (D,), booleans, True where the query is known. What the query holds elsewhere has no
        effect.

    Returns:
      A memory for `retrieve` and `trajectory`.

    Raises:
      ValueError: if the memory is another one, the shape is wrong, or nothing is observed.
      TypeError: if ``observed`` is not boolean.

    Example:
      >>> from jaxebm.hopfield.retrieval import retrieve
      >>> memory = modern([[1.0, 5.0], [2.0, -3.0]], beta=50.0, equal_weights=True)
      >>> half = marginalise(memory, jnp.array([True, False]))
      >>> print(jnp.round(retrieve(half, jnp.array([1.1, 0.0])).state, 2))
      [1. 5.]

    Reference:
      Marginals of a Gaussian mixture; the network's density is `as_gaussian_mixture`.
    """
    _require(memory, Softmax, "jaxebm.hopfield.modern")
    vector("observed", observed, memory.dimension, "True for each coordinate that is known")
    mask = jnp.asarray(observed)
    if mask.dtype != bool:
        raise TypeError(f"observed has dtype {mask.dtype}: booleans are needed.")
    if not checks.is_traced(observed) and not np.any(np.asarray(observed)):
        raise ValueError(
            "observed is False everywhere: at least one coordinate must be known to recall from."
        )
    return MaskedMemory(memory, mask.astype(memory.patterns.dtype))


def reverse_diffusion(
    rng_key: Array, patterns: Any, x: Array, noise_levels: Any, *, deterministic: bool = False
) -> Array:
    """Runs diffusion over the stored memories backwards, exactly: annealing of the modern network's beta = 1
    / sigma^2.

    The data are the memories, each as likely as any other; at noise level sigma their density is that of the
    modern network with equal weights. A stochastic step from sigma to s draws the memory, xi ~ p(xi | x), and
    then x' ~ N(xi + (s/sigma)^2 (x - xi), s^2 (1 - (s/sigma)^2) I), which is exact for any two levels: if x
    has the density of the first level, the result has that of the last, however few the steps. A
    deterministic step follows the probability flow, x' = u + (s/sigma) (x - u) with u = update(x) = E[xi |
    x], exact as the levels become dense.

    Args:
      rng_key: one key; unused if deterministic.
      patterns: Xi, shape (K, D).
      x: where to start, shape (D,): a memory with noise of the first level, or that noise alone if it is
        great.
      noise_levels: sigma_0 > sigma_1 > ... >= 0, shape (T,), T >= 2. A last level of 0 ends on a memory.
      deterministic: the probability flow, instead of the stochastic steps.

    Returns:
      The last x, shape (D,).

    Raises:
      ValueError: if a shape is wrong, or the levels do not fall or are negative.

    Example:
      >>> patterns = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> levels = jnp.array([10.0, 1.0, 0.1, 0.0])
      >>> x = reverse_diffusion(jax.random.key(1), patterns, jnp.array([3.0, -7.0]), levels)
      >>> bool(jnp.any(jnp.all(x[None, :] == patterns, axis=1)))
      True

    Reference:
      Song et al. 2021, "Score-based generative modeling through stochastic differential equations" (arXiv
      2011.13456), with the exact score; Ambrogioni 2023 (arXiv 2309.17290).
    """
    checks.rng_key("rng_key", rng_key)
    checks.boolean("deterministic", deterministic)
    matrix = pattern_matrix("patterns", patterns)
    vector("x", x, matrix.shape[1], "one number for each column of patterns")
    checks.finite("x", x)
    checks.array("noise_levels", noise_levels)
    levels = jnp.asarray(noise_levels, matrix.dtype)
    if levels.ndim != 1 or levels.size < 2:
        raise ValueError(f"noise_levels has shape {levels.shape}: (T,) with T >= 2 is needed.")
    checks.non_negative("noise_levels", noise_levels)
    if not checks.is_traced(noise_levels) and not np.all(np.diff(noise_levels) < 0):
        raise ValueError(f"noise_levels={noise_levels!r}: every level must be below the one before it.")

    def step(x: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        level, following, step_key = at
        memory = modern(matrix, level**-2, equal_weights=True)
        shrink = following / level
        if deterministic:
            centre = memory.update(x)
            return centre + shrink * (x - centre), None
        memory_key, noise_key = jax.random.split(step_key)
        log_posterior = memory.beta * memory.similarities(x)
        centre = matrix[jax.random.categorical(memory_key, log_posterior)]
        noise = following * jnp.sqrt(1 - shrink**2) * jax.random.normal(noise_key, x.shape, x.dtype)
        return centre + shrink**2 * (x - centre) + noise, None

    step_keys = jax.random.split(rng_key, levels.size - 1)
    return jax.lax.scan(step, jnp.asarray(x, matrix.dtype), (levels[:-1], levels[1:], step_keys))[0]
