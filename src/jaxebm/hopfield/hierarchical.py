"""Hierarchical associative memory: layers joined by synapses, and one energy that never rises.

A layer l has internal states x_l and a convex Lagrangian L_l, whose gradient is its activation
g_l = grad L_l(x_l). A synapse is an energy of the activations of some layers. Together,

    E(x) = sum_l [x_l . g_l - L_l(x_l)] + sum_s E_s(g),
    tau_l dx_l/dt = -dE/dg_l = -x_l - sum_s dE_s/dg_l,

so that dE/dt = -sum_l tau_l dx_l/dt . (Hessian of L_l) dx_l/dt <= 0, whatever the layers and synapses are.
Memories Xi as the synapse between a `Quadratic` and a softmax layer are the modern network; one symmetric
synapse of a `LogCosh` layer with itself is the graded network of 1984; more layers make memories of memories.

Reference:
  Krotov & Hopfield 2021, "Large associative memory problem in neurobiology and machine learning" (arXiv
  2008.06996); Krotov 2021, "Hierarchical associative memory" (arXiv 2107.06446).
"""

import numbers
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.hopfield.lagrangians import Lagrangian, check_lagrangian
from jaxebm.hopfield.synapses import Synapse
from jaxebm.types import Array, Params

__all__ = ["HierarchicalMemory", "HierarchicalRetrieval", "Tempered"]

States: TypeAlias = Mapping[str, Array]
"""Layer name -> array of any shape: the internal states x_l, or what belongs to them one for one."""
StepSize: TypeAlias = Array | float | Mapping[str, Array | float]
"""dt / tau: one number, or one for each layer."""
Clamped: TypeAlias = Collection[str] | Mapping[str, Array]
"""Names of the fixed layers, or layer name -> boolean mask of the fixed neurons."""


@dataclass(frozen=True)
class Tempered:
    """L(z) = Phi(beta z) / beta, with activation grad Phi(beta z): a Lagrangian at another temperature.

    Attributes:
      lagrangian: Phi.
      beta: inverse temperature, a positive Python number. Like all of a Lagrangian it is static: another
        value is compiled again. (To learn it, scale a synapse instead.)

    Example:
      >>> from jaxebm.hopfield.lagrangians import Softmax
      >>> [round(float(p), 3) for p in Tempered(Softmax(), beta=2.0).gradient(jnp.array([0.0, 1.0]))]
      [0.119, 0.881]
    """

    lagrangian: Lagrangian
    beta: float

    def __post_init__(self) -> None:
        if not isinstance(self.beta, numbers.Real):
            raise TypeError(f"beta={self.beta!r}: beta is static and must be a Python number, not an array.")
        checks.positive("beta", self.beta)
        check_lagrangian("lagrangian", self.lagrangian)

    def value(self, z: Array) -> Array:
        """Returns Phi(beta z) / beta."""
        return self.lagrangian.value(self.beta * z) / self.beta

    def gradient(self, z: Array) -> Array:
        """Returns grad Phi(beta z)."""
        return self.lagrangian.gradient(self.beta * z)

    def rescale(self, z: Array) -> Array:
        """Moves beta z by a symmetry of Phi."""
        return self.lagrangian.rescale(self.beta * z) / self.beta


class HierarchicalRetrieval(NamedTuple):
    """The final state of the dynamics.

    Attributes:
      states: layer name -> internal states.
      energy: that of the states, shape ().
      steps: Euler steps made, shape ().
      converged: whether no force on a free neuron exceeds the tolerance, shape (); False where it diverged.
    """

    states: dict[str, Array]
    energy: Array
    steps: Array
    converged: Array


@dataclass(frozen=True, init=False)
class HierarchicalMemory:
    """Layers with Lagrangians, joined by synapses.

    It is a static description, hashable and without numbers of its own. ``params`` is a tuple or list with
    the parameters of each synapse in order; ``states`` is a dict from layer name to internal states x_l of
    any shape, of one example. ``energy`` is an EnergyFn; every method can be batched by ``jax.vmap``.

    The energy falls along the dynamics if every Lagrangian is convex (`LogSumRelu` is not, nor an odd `Power`
    that is not rectified), and in steps if these are small. It is bounded below if, say, all activations are
    bounded.

    Attributes:
      layers: pairs of name and Lagrangian; given as a mapping.
      synapses: such as `DenseSynapse`: anything with ``layers``, ``energy`` and ``init``.

    Raises:
      TypeError: if an argument, a Lagrangian or a synapse is of another type.
      ValueError: if there is no layer, or a synapse names a layer that there is not.

    Example:
      The modern network, shown half of a memory:

      >>> from jaxebm.hopfield.lagrangians import Quadratic, Softmax
      >>> from jaxebm.hopfield.synapses import DenseSynapse
      >>> layers = {"visible": Quadratic(), "hidden": Tempered(Softmax(), beta=8.0)}
      >>> memory = HierarchicalMemory(layers, [DenseSynapse("hidden", "visible")])
      >>> patterns = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]])
      >>> query = {"visible": jnp.array([1.0, -1.0, 0.0, 0.0]), "hidden": jnp.zeros(2)}
      >>> found = memory.retrieve([patterns], query, step_size=0.2)
      >>> [round(float(v), 2) for v in found.states["visible"]], bool(found.converged)
      ([1.0, -1.0, 1.0, -1.0], True)
    """

    layers: tuple[tuple[str, Lagrangian], ...]
    synapses: tuple[Synapse, ...]

    def __init__(self, layers: Mapping[str, Lagrangian], synapses: Sequence[Synapse]) -> None:
        if not isinstance(layers, Mapping):
            raise TypeError(f"layers is a {type(layers).__name__}: a dict {{name: Lagrangian}} is needed.")
        if not isinstance(synapses, Sequence) or isinstance(synapses, str):
            raise TypeError(f"synapses is a {type(synapses).__name__}: a list of synapses is needed.")
        object.__setattr__(self, "layers", tuple(layers.items()))
        object.__setattr__(self, "synapses", tuple(synapses))
        if not self.layers:
            raise ValueError("layers is empty: at least one is needed, as {name: Lagrangian}.")
        for name, lagrangian in self.layers:
            checks.text("a name in layers", name)
            check_lagrangian(f"layers[{name!r}]", lagrangian)
        for index, synapse in enumerate(self.synapses):
            if not (hasattr(synapse, "layers") and callable(getattr(synapse, "energy", None))):
                raise TypeError(
                    f"synapses[{index}] is a {type(synapse).__name__}: a synapse is needed, such as "
                    f"jaxebm.hopfield.DenseSynapse."
                )
            self._check_known(str(synapse), synapse.layers)

    def init_params(self, rng_key: Array, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Params, ...]:
        """Returns initial parameters, one entry per synapse, for layers of these shapes."""
        checks.rng_key("rng_key", rng_key)
        self._check_names("shapes", shapes)
        rng_keys = jax.random.split(rng_key, len(self.synapses))
        return tuple(
            synapse.init(synapse_key, *(shapes[name] for name in synapse.layers))
            for synapse, synapse_key in zip(self.synapses, rng_keys, strict=True)
        )

    def activations(self, states: States) -> dict[str, Array]:
        """Returns g_l = grad L_l(x_l), of the states' shapes."""
        states = self._checked(states)
        return {
            name: phi.gradient(states[name].ravel()).reshape(states[name].shape) for name, phi in self.layers
        }

    def energy(self, params: Sequence[Params], states: States, /) -> Array:
        """Returns E = sum_l [x_l . g_l - L_l(x_l)] + sum_s E_s(g), shape ()."""
        states = self._checked(states)
        activations = self.activations(states)
        energy = self._synaptic_energy(params, activations)
        for name, phi in self.layers:
            energy += jnp.vdot(states[name], activations[name]) - phi.value(states[name].ravel())
        return energy

    def forces(self, params: Sequence[Params], states: States) -> dict[str, Array]:
        """Returns -dE/dg_l = -x_l - sum_s dE_s/dg_l, of the states' shapes: zero where the memory rests."""
        states = self._checked(states)
        slopes = jax.grad(self._synaptic_energy, argnums=1)(params, self.activations(states))
        return {name: -state - slopes[name] for name, state in states.items()}

    def step(
        self, params: Sequence[Params], states: States, step_size: StepSize, clamped: Clamped = ()
    ) -> dict[str, Array]:
        """Returns x_l - (dt / tau_l) dE/dg_l: one Euler step of all layers at once.

        Args:
          params: one entry a synapse.
          states: layer name -> internal states.
          step_size: dt / tau, positive: one number, or one for each layer by name. At 1 a layer jumps to
            where the others draw it. If these are clamped, and the synapses are linear in its activation
            (dense ones and biases are), no step up to 1 raises the energy, however strong the synapses.
          clamped: names of layers to hold, or layer name -> boolean mask of the neurons to hold. Holding a
            *part* of a layer keeps the energy falling only where each activation depends on its own state
            alone (which excludes `Softmax`, `Entmax`, `Spherical` and `LayerNormalisation`).

        Raises:
          ValueError: if names or shapes do not fit, or the step is not positive.
          TypeError: if states are not floating-point or masks not boolean.
        """
        states = self._checked(states)
        return _move(states, self.forces(params, states), self._rates(states, step_size, clamped))

    def retrieve(
        self,
        params: Sequence[Params],
        states: States,
        *,
        step_size: StepSize = 0.1,
        max_steps: int = 1000,
        tolerance: float = 1e-4,
        clamped: Clamped = (),
    ) -> HierarchicalRetrieval:
        """Follows the dynamics until no force exceeds the tolerance; new values do not recompile.

        It has no reverse derivative, because its number of steps is open: learn through ``trajectory``.

        Args:
          params: one entry a synapse.
          states: where to start: layer name -> internal states.
          step_size: as in ``step``.
          max_steps: greatest number of steps, at least 1.
          tolerance: greatest |force| on a free neuron at which to stop, at least 0.
          clamped: as in ``step``.

        Returns:
          The states, their energy, the steps made, and whether the forces came below the tolerance.

        Raises:
          ValueError: if names or shapes do not fit, states are not finite, or a number is out of range.
          TypeError: if states are not floating-point or masks not boolean.
        """
        checks.positive_integer("max_steps", max_steps)
        checks.non_negative("tolerance", tolerance)
        checks.one_number("tolerance", tolerance)
        states = self._checked(states)
        checks.finite("states", states)
        return _retrieve(self, params, states, self._rates(states, step_size, clamped), max_steps, tolerance)

    def trajectory(
        self,
        params: Sequence[Params],
        states: States,
        num_steps: int,
        step_size: StepSize,
        clamped: Clamped = (),
    ) -> dict[str, Array]:
        """Returns the start and the states after each step, leaves (num_steps + 1, ...); differentiable.

        The arguments and errors are those of ``step``; num_steps is a Python integer of at least 1.
        """
        checks.positive_integer("num_steps", num_steps)
        states = self._checked(states)
        return _trajectory(self, params, states, self._rates(states, step_size, clamped), num_steps)

    def _synaptic_energy(self, params: Sequence[Params], activations: States) -> Array:
        if not isinstance(params, tuple | list):
            raise TypeError(f"params is of type {type(params).__name__}: a tuple or list is needed.")
        if len(params) != len(self.synapses):
            raise ValueError(
                f"params has {len(params)} entries: {len(self.synapses)} are needed, one a synapse."
            )
        total = jnp.zeros((), jnp.result_type(*activations.values()))
        for synapse, synapse_params in zip(self.synapses, params, strict=True):
            energy = synapse.energy(synapse_params, *(activations[name] for name in synapse.layers))
            if jnp.shape(energy) != ():
                raise ValueError(f"{synapse} returned shape {jnp.shape(energy)}: an energy has shape ().")
            total += energy
        return total

    def _rates(self, states: States, step_size: StepSize, clamped: Clamped) -> dict[str, Array]:
        """Returns dt / tau of each neuron, 0 where it is held: a value, so that changes do not recompile."""
        sizes = step_size if isinstance(step_size, Mapping) else dict.fromkeys(states, step_size)
        self._check_names("step_size", sizes)
        names = [clamped] if isinstance(clamped, str) else clamped
        masks = clamped if isinstance(clamped, Mapping) else dict.fromkeys(names, True)
        self._check_known("clamped", masks)
        rates = {}
        for name, state in states.items():
            if np.shape(sizes[name]) != ():
                raise ValueError(f"step_size has shape {np.shape(sizes[name])}: a layer has one number.")
            checks.positive("step_size", sizes[name])
            mask = jnp.asarray(masks.get(name, False))
            if mask.shape not in ((), state.shape):
                raise ValueError(f"clamped[{name!r}] has shape {mask.shape}: {state.shape} is needed.")
            if mask.dtype != bool:
                raise TypeError(f"clamped[{name!r}] has dtype {mask.dtype}: a boolean mask is needed.")
            rate = jnp.where(mask, 0.0, jnp.asarray(sizes[name], state.dtype))
            rates[name] = jnp.broadcast_to(rate, state.shape)
        return rates

    def _checked(self, states: States) -> dict[str, Array]:
        self._check_names("states", states)
        for name, state in states.items():
            checks.floating(f"states[{name!r}]", state)
        return {name: jnp.asarray(states[name]) for name, _ in self.layers}

    def _check_names(self, what: str, given: Mapping[str, Any]) -> None:
        if not isinstance(given, Mapping):
            raise TypeError(f"{what} is of type {type(given).__name__}: a dict by layer name is needed.")
        self._check_known(what, given)
        missing = [name for name, _ in self.layers if name not in given]
        if missing:
            raise ValueError(f"{what} lacks the layers {missing}: an entry is needed for each layer.")

    def _check_known(self, what: str, names: Collection[str]) -> None:
        known = [name for name, _ in self.layers]
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"{what} names unknown layers {unknown}: the layers are {known}.")


def _move(states: States, forces: States, rates: States) -> dict[str, Array]:
    return {
        name: jnp.where(rates[name] > 0, state + rates[name] * forces[name], state).astype(state.dtype)
        for name, state in states.items()
    }


@partial(jax.jit, static_argnums=0)
def _retrieve(
    memory: HierarchicalMemory, params: Any, states: States, rates: States, max_steps: Array, tolerance: Array
) -> HierarchicalRetrieval:
    def greatest(forces: States) -> Array:
        free = [jnp.where(rates[name] > 0, jnp.abs(force), 0.0) for name, force in forces.items()]
        return jnp.max(jnp.stack([jnp.max(force) for force in free]))

    def unfinished(carry: tuple[States, States, Array]) -> Array:
        _, forces, steps = carry
        return (greatest(forces) > tolerance) & (steps < max_steps)  # False, too, once the forces are NaN

    def step(carry: tuple[States, States, Array]) -> tuple[States, States, Array]:
        states, forces, steps = carry
        states = _move(states, forces, rates)
        return states, memory.forces(params, states), steps + 1

    start = (states, memory.forces(params, states), jnp.zeros((), int))
    states, forces, steps = jax.lax.while_loop(unfinished, step, start)
    return HierarchicalRetrieval(
        dict(states), memory.energy(params, states), steps, greatest(forces) <= tolerance
    )


@partial(jax.jit, static_argnums=(0, 4))
def _trajectory(
    memory: HierarchicalMemory, params: Any, states: States, rates: States, num_steps: int
) -> dict[str, Array]:
    def step(states: States, _: None) -> tuple[States, States]:
        states = _move(states, memory.forces(params, states), rates)
        return states, states

    _, history = jax.lax.scan(step, states, length=num_steps)
    return {name: jnp.concatenate([state[None], history[name]]) for name, state in states.items()}
