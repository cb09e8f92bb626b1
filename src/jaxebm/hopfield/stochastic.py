"""Recall at a temperature above zero: the stochastic Hopfield network, which is a Boltzmann machine.

p(x) = exp(-E(x) / T) / Z over the spins. At T -> 0 Glauber's dynamics becomes `retrieve_asynchronously`. The
kernels here run in `jaxebm.samplers.run_chain` like any other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.target import check_shape
from jaxebm.hopfield.family import LEVELS, PatternMemory
from jaxebm.hopfield.lagrangians import Quadratic
from jaxebm.hopfield.pairwise import PairwiseMemory
from jaxebm.hopfield.validation import COLUMNS, memory_arrays, vector
from jaxebm.types import Array, Kernel

__all__ = ["GibbsInfo", "GibbsState", "as_pairwise", "block_gibbs", "gaussian_hidden_energy", "glauber"]


class GibbsState(NamedTuple):
    """The state of a chain over spins or bits.

    Attributes:
      position: x, shape (D,).
      carry: what depends on x and is kept up to date: overlaps (K,) or fields (D,).
    """

    position: Array
    carry: Array


class GibbsInfo(NamedTuple):
    """Information about one step.

    Attributes:
      energy: E of the new position, shape (). Computed only if it is collected.
      flips: how many coordinates changed, shape (), int32.
    """

    energy: Array
    flips: Array


def _check(memory: Any, temperature: Any) -> None:
    if callable(memory) and not isinstance(memory, PatternMemory | PairwiseMemory):
        raise TypeError(
            f"memory is the function {checks.function_name(memory)}: a memory is needed, not a target. Where "
            f"a constructor of a target is wanted, give lambda target, temperature: glauber(memory, "
            f"temperature)."
        )
    if not isinstance(memory, PatternMemory | PairwiseMemory) or memory.states == "reals":
        raise ValueError(
            f"memory is a {type(memory).__name__} of real states: spins or bits are needed. Real states are "
            f"sampled by jaxebm.samplers on jaxebm.hopfield.density_energy."
        )
    memory_arrays("memory", memory)
    checks.array("temperature", temperature)
    check_shape("temperature", temperature, (), "a scalar, shape (),")
    checks.positive("temperature", temperature)


def glauber(memory: PatternMemory | PairwiseMemory, temperature: Any = 1.0) -> Kernel:
    """Returns Glauber's dynamics: each coordinate in turn is drawn given all others.

    P(x_i = 1 | the others) = sigmoid((E(x_i = -1) - E(x_i = 1)) / T). One step is one sweep over the D
    coordinates, which leaves exp(-E / T) invariant. The overlaps or fields are carried: a visit costs K or D.

    Args:
      memory: of spins or bits.
      temperature: T, positive, in the units of the energy.

    Returns:
      A kernel over `GibbsState` and `GibbsInfo`.

    Raises:
      ValueError: if the memory's states are real, the temperature is not positive, or a position has another
      shape.

    Example:
      >>> from jaxebm.hopfield.memories import classical
      >>> from jaxebm.samplers import run_chain
      >>> memory = classical(jnp.ones((1, 100)))
      >>> state, _ = run_chain(jax.random.key(0), glauber(memory, 0.5), jnp.ones(100), 20)
      >>> bool(jnp.mean(state.position) > 0.8)  # m = tanh(m / T) = .9575
      True

    Reference:
      Glauber 1963, "Time-dependent statistics of the Ising model"; Amit, Gutfreund & Sompolinsky 1985.
    """
    _check(memory, temperature)
    low, high = LEVELS[memory.states]
    columns = memory.columns()

    def init(position: Array, rng_key: Array | None = None) -> GibbsState:
        del rng_key
        vector("position", position, memory.dimension, COLUMNS)
        position = jnp.asarray(position, columns.dtype)
        return GibbsState(position, memory.carry(position))

    def step(rng_key: Array, state: GibbsState) -> tuple[GibbsState, GibbsInfo]:
        checks.rng_key("rng_key", rng_key)
        noise = jax.random.logistic(rng_key, (memory.dimension,), columns.dtype)

        def visit(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, kept, flips = carry
            column = columns[index]
            preference = memory.preference(kept, x, index, column, exact=True)
            # P(preference / T + logistic noise > 0) = sigmoid(preference / T)
            drawn = jnp.where(preference / temperature + noise[index] > 0, high, low).astype(x.dtype)
            change = drawn - x[index]
            kept = memory.carried(kept, column, change)
            return x.at[index].set(drawn), kept, flips + (change != 0).astype(jnp.int32)

        start = (state.position, state.carry, jnp.zeros((), jnp.int32))
        x, kept, flips = jax.lax.fori_loop(0, memory.dimension, visit, start)
        return GibbsState(x, kept), GibbsInfo(memory.energy(x), flips)

    return Kernel(init, step)


def _check_quadratic(memory: Any) -> None:
    if not isinstance(memory, PatternMemory) or not isinstance(memory.lagrangian, Quadratic):
        raise ValueError(f"memory={type(memory).__name__}: a classical network, kept as patterns, is needed.")
    memory_arrays("memory", memory)


def gaussian_hidden_energy(memory: PatternMemory, x: Array, hidden: Array) -> Array:
    """Returns the energy of spins and Gaussian hidden units together: the classical network as an RBM.

    E(x, h) = |h|^2 / 2 - sqrt(beta) h.Xi x - b.x. Its minimum over h is the network's E(x); and at every
    temperature integrating exp(-E(x, h) / T) over h gives (2 pi T)^(K/2) exp(-E(x) / T).

    Args:
      memory: from `jaxebm.hopfield.classical`.
      x: spins, shape (D,).
      hidden: h, shape (K,), one unit for each memory.

    Returns:
      E(x, h), shape ().

    Raises:
      ValueError: if the memory is another one, or a shape is wrong.

    Example:
      >>> from jaxebm.hopfield.memories import classical
      >>> memory = classical([[1, -1, 1, 1]])
      >>> x = memory.patterns[0]
      >>> float(gaussian_hidden_energy(memory, x, jnp.array([2.0]))), float(memory.energy(x))
      (-2.0, -2.0)

    Reference:
      Barra, Bernacchia, Santucci & Contucci 2012, "On the equivalence of Hopfield networks and Boltzmann
      machines" (arXiv 1105.2790).
    """
    _check_quadratic(memory)
    vector("x", x, memory.dimension, COLUMNS)
    vector("hidden", hidden, memory.num_memories, "one number for each memory")
    x, hidden = jnp.asarray(x), jnp.asarray(hidden)
    coupled = 0.5 * jnp.sum(hidden**2) - jnp.sqrt(memory.beta) * (hidden @ (memory.patterns @ x))
    return coupled if memory.bias is None else coupled - memory.bias @ x


def block_gibbs(memory: PatternMemory, temperature: Any = 1.0) -> Kernel:
    """Returns block Gibbs sampling of the classical network through its Gaussian hidden units.

    h | x ~ N(sqrt(beta) Xi x, T I),  P(x_i = 1 | h) = sigmoid(2 (sqrt(beta) Xi^T h + b)_i / T) for spins:
    given the hidden units all spins are independent, and are drawn at once.

    Args:
      memory: from `jaxebm.hopfield.classical`.
      temperature: T, positive, in the units of the energy.

    Returns:
      A kernel over `GibbsState` and `GibbsInfo`; it leaves exp(-E / T) invariant, as `glauber` does.

    Raises:
      ValueError: if the memory is another one, or the temperature is not positive.

    Example:
      >>> from jaxebm.hopfield.memories import classical
      >>> from jaxebm.samplers import run_chain
      >>> memory = classical(jnp.ones((1, 100)))
      >>> state, _ = run_chain(jax.random.key(0), block_gibbs(memory, 0.5), jnp.ones(100), 20)
      >>> bool(jnp.mean(state.position) > 0.8)
      True

    Reference:
      Barra et al. 2012 (arXiv 1105.2790), section 2.
    """
    _check(memory, temperature)
    _check_quadratic(memory)
    low, high = LEVELS[memory.states]
    scale = jnp.sqrt(memory.beta)

    def init(position: Array, rng_key: Array | None = None) -> GibbsState:
        del rng_key
        vector("position", position, memory.dimension, COLUMNS)
        position = jnp.asarray(position, memory.patterns.dtype)
        return GibbsState(position, memory.carry(position))

    def step(rng_key: Array, state: GibbsState) -> tuple[GibbsState, GibbsInfo]:
        checks.rng_key("rng_key", rng_key)
        hidden_key, spin_key = jax.random.split(rng_key)
        noise = jax.random.normal(hidden_key, state.carry.shape, state.carry.dtype)
        hidden = scale * state.carry + jnp.sqrt(temperature) * noise
        field = scale * (hidden @ memory.patterns)
        field = field if memory.bias is None else field + memory.bias
        logistic = jax.random.logistic(spin_key, field.shape, field.dtype)
        drawn = jnp.where((high - low) * field / temperature + logistic > 0, high, low)
        drawn = drawn.astype(state.position.dtype)
        flips = jnp.sum(drawn != state.position, dtype=jnp.int32)
        return GibbsState(drawn, memory.carry(drawn)), GibbsInfo(memory.energy(drawn), flips)

    return Kernel(init, step)


def as_pairwise(memory: PatternMemory) -> PairwiseMemory:
    """Returns the Boltzmann machine of a classical network: W = beta Xi^T Xi and the same bias.

    Args:
      memory: from `jaxebm.hopfield.classical`.

    Returns:
      The memory as couplings, with the same energy at every state.

    Raises:
      ValueError: if the memory is another one.

    Example:
      >>> from jaxebm.hopfield.memories import classical
      >>> memory = classical([[1, -1, 1, 1]])
      >>> float(as_pairwise(memory).energy(memory.patterns[0])), float(memory.energy(memory.patterns[0]))
      (-2.0, -2.0)

    Reference:
      Ackley, Hinton & Sejnowski 1985, "A learning algorithm for Boltzmann machines".
    """
    _check_quadratic(memory)
    weights = memory.beta * (memory.patterns.T @ memory.patterns)
    bias = jnp.zeros(memory.dimension, weights.dtype) if memory.bias is None else memory.bias
    return PairwiseMemory(weights, bias, memory.states)
