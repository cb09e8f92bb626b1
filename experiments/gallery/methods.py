"""The methods of density_2d.py and objective_gallery.py, for any data: how each builds its energy, its
objective, its negatives and its samples.

A constructor here returns ``(settings, space) -> Problem``. A `Space` is what a method needs to know of its
data: gallery/objectives.py has that of the plane, gallery/digit_objectives.py that of the digits, each with
its table of all methods.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp

from jaxebm import objectives
from jaxebm.energies import MLP, CouplingFlow, LevelMLP, preconditioned_energy, tempered
from jaxebm.objectives import NegativeSampler, Objective, Proposal, persistent
from jaxebm.samplers import Initial, geometric_levels, run_chains
from jaxebm.training import InitParams
from jaxebm.types import Array, EnergyFn, Kernel, LevelEnergyFn, MakeKernel, Params, Target

__all__ = [
    "Draw",
    "Method",
    "Phase",
    "Problem",
    "Settings",
    "Space",
    "cooperative",
    "energy_matching",
    "equilibrium_matching",
    "flow_contrastive",
    "likelihood",
    "of_energy",
    "of_levels",
    "of_proposal",
    "recovery",
    "without_noise",
]

Draw: TypeAlias = Callable[[Array, Params, int], Array]
"""``(rng_key, params, num_samples) -> xs (num_samples, ...)``."""


Settings: TypeAlias = Any
"""The flags of density_2d.py, or the settings of the digits, which have the same names."""


class Phase(NamedTuple):
    """A part of the training: the objective, its negatives, and its share of the updates."""

    objective: Objective
    negatives: NegativeSampler | None = None
    share: float = 1.0


class Problem(NamedTuple):
    """What is trained and judged.

    Attributes:
      init: parameters from a key and an example.
      phases: each goes on from the averaged parameters of the one before.
      energy: what is judged, E(params, x), as exp(-E) / Z; None where the method learns no density.
      draw: the method's own sampler.
      gradients_per_sample: of ``draw``, gradients of the network in x for each sample.
      loop_gradients: gradients in x that chains and other loops take in an update, for each example of the
        batch.
    """

    init: InitParams
    phases: tuple[Phase, ...]
    energy: EnergyFn | None
    draw: Draw
    gradients_per_sample: int
    loop_gradients: float = 0.0


class Space(NamedTuple):
    """What a method needs to know of the data.

    Attributes:
      shape: of one example.
      mean: about the mean of all entries.
      spread: about their standard deviation.
      source_scale: standard deviation of the noise from which paths to the data start.
      smallest_level: the lowest noise level of energies that are told one.
      make_energy: ``(settings) -> (network, energy)``: a density, tilted by a Gaussian.
      make_potential: the same for energies of which the slope alone is learnt.
      make_kernel: ``(settings) -> make_kernel`` of the chains on an energy.
      transition_gradients: gradients of a transition of these.
      initial: where they start.
      proposal: noise whose density is known.
      draw: ``(settings, energy) -> draw``: chains on an energy that was learnt without a sampler.
      gradients_per_sample: ``(settings) -> gradients`` of that.
      draw_levels: ``(rng_key, energy_at, params, xs, highest) -> xs``, from xs with noise of ``highest``.
      level_gradients: gradients of that.
    """

    shape: tuple[int, ...]
    mean: float
    spread: float
    source_scale: float
    smallest_level: float
    make_energy: Callable[[Settings], tuple[Any, EnergyFn]]
    make_potential: Callable[[Settings], tuple[Any, EnergyFn]]
    make_kernel: Callable[[Settings], MakeKernel]
    transition_gradients: int
    initial: Initial
    proposal: Proposal
    draw: Callable[[Settings, EnergyFn], Draw]
    gradients_per_sample: Callable[[Settings], int]
    draw_levels: Callable[[Array, LevelEnergyFn, Params, Array, float], Array]
    level_gradients: int


Build: TypeAlias = Callable[[Settings, Space], Problem]


class Method(NamedTuple):
    """An objective, as a script knows it.

    Attributes:
      build: ``(settings, space) -> Problem``.
      defaults: the settings that were tuned for it, where they differ from those of maximum likelihood.
      chain_flags: those of density_2d.py about the chains of the training that it reads.
    """

    build: Build
    defaults: Mapping[str, Any]
    chain_flags: tuple[str, ...] = ()


def _judged(objective: Objective) -> EnergyFn:
    """The energy of an objective, of x alone."""
    no_label = jnp.zeros((), jnp.int32)
    return lambda params, x: objective.energy(params, x, no_label)


def _of_density(settings: Settings, space: Space, init: InitParams, phase: Phase, cost: float) -> Problem:
    """The problem of a method that learns one density and brings no sampler of its own."""
    energy = _judged(phase.objective)
    draw, gradients = space.draw(settings, energy), space.gradients_per_sample(settings)
    return Problem(init, (phase,), energy, draw, gradients, cost)


def without_noise(energy: EnergyFn, params: Params, xs: Array, level: float) -> Array:
    """Returns the expected clean xs given noisy ones: x - level^2 dE/dx, of the energy at that level."""
    return xs - level**2 * jax.vmap(jax.grad(energy, 1), (None, 0))(params, xs)


# Maximum likelihood


def likelihood(settings: Settings, space: Space) -> Problem:
    """Persistent contrastive divergence."""
    network, energy = space.make_energy(settings)
    objective = objectives.likelihood(energy, energy_l2=settings.energy_l2)
    phase = Phase(objective, _persistent_chains(settings, space))
    return _of_density(settings, space, network.init, phase, _of_chains(settings, space))


def _persistent_chains(settings: Settings, space: Space, temperature: float = 1.0) -> NegativeSampler:
    """Persistent chains of the space's kernel on the objective's energy, over a temperature."""
    kernel = space.make_kernel(settings)

    def heated(target: Target) -> Kernel:
        return kernel(lambda x: target(x) / temperature)

    return persistent(
        kernel if temperature == 1.0 else heated,
        num_steps=settings.sampler_steps,
        initial=space.initial,
        num_chains=settings.num_chains,
        capacity=settings.num_chains,
        restart_probability=settings.restart_probability,
    )


def _of_chains(settings: Settings, space: Space) -> float:
    """Gradients of the persistent chains for each example."""
    transitions = settings.sampler_steps * settings.num_chains / settings.batch_size
    return space.transition_gradients * transitions


# One energy, no chains


def _plain(make: Callable[[EnergyFn, Space], Objective], loop_gradients: float = 0.0) -> Build:
    """The constructor of an objective of one energy that needs no chains."""

    def build(settings: Settings, space: Space) -> Problem:
        network, energy = space.make_energy(settings)
        return _of_density(settings, space, network.init, Phase(make(energy, space)), loop_gradients)

    return build


def of_energy(constructor: Callable[..., Objective], *, loop_gradients: float = 0.0, **options: Any) -> Build:
    """An objective of an energy alone."""
    return _plain(lambda energy, space: constructor(energy, **options), loop_gradients)


def of_proposal(constructor: Callable[..., Objective], **options: Any) -> Build:
    """An objective of an energy and a proposal."""
    return _plain(lambda energy, space: constructor(energy, space.proposal, **options))


# A second network


def flow_contrastive(num_layers: int, widths: tuple[int, ...]) -> Build:
    """An energy against a flow of these layers."""

    def build(settings: Settings, space: Space) -> Problem:
        network, energy = space.make_energy(settings)
        flow = CouplingFlow(num_layers=num_layers, widths=widths)
        objective = objectives.flow_contrastive(energy, flow, alternate=False, likelihood_weight=1.0)

        def init(rng_key: Array, x: Array) -> Params:
            key_energy, key_flow = jax.random.split(rng_key)
            return {"energy": network.init(key_energy, x), "flow": flow.init(key_flow, x)}

        return _of_density(settings, space, init, Phase(objective), 0.0)

    return build


def cooperative(latent_size: int, noise_level: float, **options: Any) -> Build:
    """An energy and a generator: a perceptron of two layers, with noise."""

    def build(settings: Settings, space: Space) -> Problem:
        network, energy = space.make_energy(settings)
        size = jnp.zeros(space.shape).size
        module = MLP(size, widths=settings.widths[:2], activation=settings.activation)

        def generator(params: Params, latent: Array) -> Array:
            return cast(Array, module.apply(params, latent)).reshape(space.shape)

        chains: Any = {
            "make_kernel": space.make_kernel(settings),
            "latent_size": latent_size,
            "num_steps": settings.sampler_steps,
            "noise_level": noise_level,
        }
        objective = objectives.cooperative(energy, generator, **options, **chains)

        def init(rng_key: Array, x: Array) -> Params:
            key_energy, key_generator = jax.random.split(rng_key)
            latent = jnp.zeros(latent_size)
            return {"energy": network.init(key_energy, x), "generator": module.init(key_generator, latent)}

        def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
            return objectives.cooperative_samples(
                rng_key, energy, generator, params, jnp.zeros(space.shape), num_samples, **chains
            )

        cost = space.transition_gradients * settings.sampler_steps
        return Problem(init, (Phase(objective),), _judged(objective), draw, cost, loop_gradients=cost)

    return build


# Energies that are told the noise level


def _level_energy(settings: Settings, space: Space, *, unit_slope: bool) -> tuple[Any, LevelEnergyFn]:
    """Returns an init function and the energy: a Gaussian of the data's spread, and an MLP told the level."""
    network = LevelMLP(None, widths=settings.widths, activation=settings.activation)

    def init(rng_key: Array, x: Array) -> Params:
        return network.init(rng_key, x, 1.0)

    def rest(params: Params, x: Array, level: Array) -> Array:
        return cast(Array, network.apply(params, settings.input_gain * x, level))

    return init, preconditioned_energy(rest, mean=space.mean, scale=space.spread, unit_slope=unit_slope)


def _at_highest(rng_key: Array, space: Space, highest: float, num_samples: int) -> Array:
    """Draws of the Gaussian that data with noise of the highest level nearly are."""
    scale = (highest**2 + space.spread**2) ** 0.5
    return space.mean + scale * jax.random.normal(rng_key, (num_samples, *space.shape))


def of_levels(
    constructor: Callable[..., Objective], highest: float, *, unit_slope: bool = False, **options: Any
) -> Build:
    """The constructor of an objective of all levels up to ``highest`` times the spread of the data."""

    def build(settings: Settings, space: Space) -> Problem:
        init, energy_at = _level_energy(settings, space, unit_slope=unit_slope)
        top = highest * space.spread
        objective = constructor(energy_at, lowest=space.smallest_level, highest=top, **options)

        def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
            key_start, key_chains = jax.random.split(rng_key)
            xs = _at_highest(key_start, space, top, num_samples)
            return space.draw_levels(key_chains, energy_at, params, xs, top)

        return Problem(init, (Phase(objective),), _judged(objective), draw, space.level_gradients)

    return build


def recovery(highest: float, num_levels: int, *, denoise: bool = False, **chains: Any) -> Build:
    """Recovery likelihood with so many levels, from ``highest`` times the spread of the data.

    Its samples are those of the training; ``denoise`` removes the noise of the lowest level.
    """

    def build(settings: Settings, space: Space) -> Problem:
        init, energy_at = _level_energy(settings, space, unit_slope=True)
        top = highest * space.spread
        levels = geometric_levels(top, space.smallest_level, num_levels)
        objective = objectives.recovery_likelihood(energy_at, levels=levels, **chains)
        energy = _judged(objective)

        def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
            key_start, key_chains = jax.random.split(rng_key)
            xs = _at_highest(key_start, space, top, num_samples)
            xs = objectives.recovery_samples(key_chains, energy_at, params, xs, levels, **chains)
            return without_noise(energy, params, xs, space.smallest_level) if denoise else xs

        steps = chains["num_steps"]
        gradients = (num_levels - 1) * steps + int(denoise)
        return Problem(init, (Phase(objective),), energy, draw, gradients, loop_gradients=steps)

    return build


# A potential whose gradient leads from noise to data


def _from_noise(space: Space, energy: EnergyFn, make_kernel: MakeKernel, num_steps: int) -> Draw:
    """Draws with chains that start from the noise at which the paths of the training start."""

    def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
        key_start, key_chains = jax.random.split(rng_key)
        xs = space.source_scale * jax.random.normal(key_start, (num_samples, *space.shape))
        kernel = make_kernel(partial(energy, params))
        return jax.jit(lambda xs: run_chains(key_chains, kernel, xs, num_steps)[0].position)(xs)

    return draw


def energy_matching(
    temperature: float,
    contrastive_weight: float,
    make_kernel: MakeKernel,
    num_steps: int,
    *,
    denoise: bool = False,
) -> Build:
    """Both phases, half of the updates each; samples by so many steps of the kernel.

    ``denoise`` removes the noise of the lowest level from them, with the energy of phase 2.
    """

    def build(settings: Settings, space: Space) -> Problem:
        network, energy = space.make_potential(settings)
        scale = space.source_scale
        make = partial(objectives.energy_matching, energy, source_scale=scale, coupling="independent")
        chains = _persistent_chains(settings, space, temperature)
        phases = (
            Phase(make(), share=0.5),
            Phase(make(contrastive_weight=contrastive_weight), chains, share=0.5),
        )
        chains_from_noise = _from_noise(space, energy, make_kernel, num_steps)
        judged = tempered(energy, temperature)

        def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
            xs = chains_from_noise(rng_key, params, num_samples)
            return without_noise(judged, params, xs, space.smallest_level) if denoise else xs

        cost = 0.5 * _of_chains(settings, space)
        return Problem(network.init, phases, judged, draw, num_steps + int(denoise), loop_gradients=cost)

    return build


def equilibrium_matching(make_kernel: MakeKernel, num_steps: int) -> Build:
    """Descent by so many steps of the kernel; no density is learnt."""

    def build(settings: Settings, space: Space) -> Problem:
        network, energy = space.make_potential(settings)
        objective = objectives.equilibrium_matching(energy, source_scale=space.source_scale)
        draw = _from_noise(space, energy, make_kernel, num_steps)
        return Problem(network.init, (Phase(objective),), None, draw, num_steps)

    return build
