"""The methods of density_2d.py: how each builds its energy, its objective, its negatives and its judgement.

`METHODS` is the one table. An entry has a constructor, ``(settings, density) -> Problem``, and the flags of
density_2d.py that were tuned for it. The energy of every method is the same MLP, tilted by a broad Gaussian;
methods that are told a noise level have the same MLP with the level.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp

from gallery.densities import local_and_global, make_energy, make_initial, window
from jaxebm import objectives
from jaxebm.data import ToyDensity
from jaxebm.energies import MLP, CouplingFlow, LevelMLP, preconditioned_energy, tempered
from jaxebm.objectives import NegativeSampler, Objective, Proposal, persistent
from jaxebm.samplers import (
    annealed_langevin,
    geometric_levels,
    heated_sgld,
    mala,
    momentum_descent,
    run_chains,
)
from jaxebm.training import InitParams
from jaxebm.types import Array, EnergyFn, LevelEnergyFn, MakeKernel, Params, Target

__all__ = ["CHAIN_FLAGS", "METHODS", "Draw", "Method", "Phase", "Problem", "Settings", "uniform_proposal"]

Draw: TypeAlias = Callable[[Array, Params, int], Array]
"""``(rng_key, params, num_samples) -> xs (num_samples, 2)``."""


Settings: TypeAlias = Any
"""The flags of density_2d.py, whose ``Config`` this is."""


class Phase(NamedTuple):
    """A part of the training: the objective, its negatives, and its share of the updates."""

    objective: Objective
    negatives: NegativeSampler | None = None
    share: float = 1.0


class Problem(NamedTuple):
    """What density_2d.py trains and judges.

    Attributes:
      init: parameters from a key and an example.
      phases: each goes on from the averaged parameters of the one before.
      energy: what is judged, E(params, x), as exp(-E) / Z; None where the method learns no density.
      draw: the method's own sampler; None for chains of `local_and_global` on the energy.
      gradients_per_sample: of ``draw``, gradients of the network in x for each sample.
      chain_gradients: gradients in x that chains take in an update, for each example of the batch.
    """

    init: InitParams
    phases: tuple[Phase, ...]
    energy: EnergyFn | None
    draw: Draw | None = None
    gradients_per_sample: int = 0
    chain_gradients: float = 0.0


CHAIN_FLAGS = ("energy_l2", "num_chains", "sampler_steps", "restart_probability")
"""Flags about the chains of the training, which most methods do without."""


class Method(NamedTuple):
    """An objective, as density_2d.py knows it.

    Attributes:
      build: ``(settings, density) -> Problem``.
      defaults: the flags that were tuned for it, where they differ from those of maximum likelihood.
      chain_flags: those of `CHAIN_FLAGS` that its training reads.
    """

    build: Callable[[Settings, ToyDensity], Problem]
    defaults: Mapping[str, Any]
    chain_flags: tuple[str, ...] = ()


def _judged(objective: Objective) -> EnergyFn:
    """The energy of an objective, of x alone."""
    no_label = jnp.zeros((), jnp.int32)
    return lambda params, x: objective.energy(params, x, no_label)


def _spread(density: ToyDensity) -> float:
    """About the standard deviation of a density, and the one of the noise from which paths to it start."""
    return 0.5 * density.bounds[1]


# Maximum likelihood


def _likelihood(settings: Settings, density: ToyDensity) -> Problem:
    network, energy = make_energy(density, settings.widths, settings.activation, settings.input_gain)
    objective = objectives.likelihood(energy, energy_l2=settings.energy_l2)
    chains = persistent_chains(settings, density)
    return Problem(network.init, (Phase(objective, chains),), energy, chain_gradients=_of_chains(settings))


def persistent_chains(settings: Settings, density: ToyDensity, temperature: float = 1.0) -> NegativeSampler:
    """Returns persistent chains of `local_and_global` on the objective's energy, over a temperature."""
    low, high = window(density)
    kernel: MakeKernel = partial(local_and_global, step_size=settings.sampler_step_size, low=low, high=high)

    def heated(target: Target) -> Any:
        return kernel(lambda x: target(x) / temperature)

    return persistent(
        kernel if temperature == 1.0 else heated,
        num_steps=settings.sampler_steps,
        initial=make_initial(density),
        num_chains=settings.num_chains,
        capacity=settings.num_chains,
        restart_probability=settings.restart_probability,
    )


def _of_chains(settings: Settings) -> float:
    """Gradients for each example: a transition of `local_and_global` takes two."""
    return 2 * settings.sampler_steps * settings.num_chains / settings.batch_size


# One energy, no chains


def _plain(make: Callable[[EnergyFn, ToyDensity], Objective]) -> Callable[..., Problem]:
    """The constructor of an objective of one energy that needs no chains."""

    def build(settings: Settings, density: ToyDensity) -> Problem:
        network, energy = make_energy(density, settings.widths, settings.activation, settings.input_gain)
        objective = make(energy, density)
        return Problem(network.init, (Phase(objective),), _judged(objective))

    return build


def _of_energy(constructor: Callable[..., Objective], **options: Any) -> Callable[..., Problem]:
    return _plain(lambda energy, density: constructor(energy, **options))


def _of_proposal(constructor: Callable[..., Objective], **options: Any) -> Callable[..., Problem]:
    return _plain(lambda energy, density: constructor(energy, uniform_proposal(density), **options))


def uniform_proposal(density: ToyDensity) -> Proposal:
    """Returns the uniform density on the window as noise for contrasts."""
    low, high = window(density)
    log_density = -2.0 * float(jnp.log(high - low))

    def sample(rng_key: Array, num_samples: int) -> Array:
        return jax.random.uniform(rng_key, (num_samples, 2), minval=low, maxval=high)

    return Proposal(sample, lambda x: jnp.full((), log_density, x.dtype))


# A second network


def _flow_contrastive(settings: Settings, density: ToyDensity) -> Problem:
    network, energy = make_energy(density, settings.widths, settings.activation, settings.input_gain)
    flow = CouplingFlow(num_layers=8, widths=(64, 64))
    objective = objectives.flow_contrastive(energy, flow, alternate=False, likelihood_weight=1.0)

    def init(rng_key: Array, x: Array) -> Params:
        key_energy, key_flow = jax.random.split(rng_key)
        return {"energy": network.init(key_energy, x), "flow": flow.init(key_flow, x)}

    return Problem(init, (Phase(objective),), _judged(objective))


LATENTS, NOISE = 8, 0.3
"""Of the generator of cooperative learning: latent variables, and the standard deviation of its own noise."""


def _cooperative(settings: Settings, density: ToyDensity) -> Problem:
    network, energy = make_energy(density, settings.widths, settings.activation, settings.input_gain)
    generator = MLP(2, widths=settings.widths[:2], activation=settings.activation)
    low, high = window(density)
    kernel = partial(local_and_global, step_size=settings.sampler_step_size, low=low, high=high)
    chains = {
        "make_kernel": kernel,
        "latent_size": LATENTS,
        "num_steps": settings.sampler_steps,
        "noise_level": NOISE,
    }
    objective = objectives.cooperative(energy, generator.apply, num_latent_steps=5, **chains)

    def init(rng_key: Array, x: Array) -> Params:
        key_energy, key_generator = jax.random.split(rng_key)
        latent = jnp.zeros(LATENTS)
        return {"energy": network.init(key_energy, x), "generator": generator.init(key_generator, latent)}

    def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
        return objectives.cooperative_samples(
            rng_key, energy, generator.apply, params, jnp.zeros(2), num_samples, **chains
        )

    cost = 2 * settings.sampler_steps
    return Problem(init, (Phase(objective),), _judged(objective), draw, cost, chain_gradients=cost)


# Energies that are told the noise level

SMALLEST_LEVEL = 0.03
"""In units of the plane. What is learnt is the density smoothed by it: .005 nats away on rings, whose width
is .08, and less on the others."""


def _level_energy(
    settings: Settings, density: ToyDensity, *, unit_slope: bool = False
) -> tuple[Any, LevelEnergyFn]:
    """Returns an init function and the energy: a Gaussian of the data's spread, and an MLP told the level."""
    network = LevelMLP(None, widths=settings.widths, activation=settings.activation)

    def init(rng_key: Array, x: Array) -> Params:
        return network.init(rng_key, x, 1.0)

    def rest(params: Params, x: Array, level: Array) -> Array:
        return cast(Array, network.apply(params, settings.input_gain * x, level))

    return init, preconditioned_energy(rest, scale=_spread(density), unit_slope=unit_slope)


def _of_levels(
    constructor: Callable[..., Objective], highest: float, **options: Any
) -> Callable[..., Problem]:
    """The constructor of an objective of all levels up to ``highest`` times the spread of the data."""

    def build(settings: Settings, density: ToyDensity) -> Problem:
        init, energy_at = _level_energy(settings, density)
        top = highest * _spread(density)
        objective = constructor(energy_at, lowest=SMALLEST_LEVEL, highest=top, **options)
        levels = geometric_levels(top, SMALLEST_LEVEL, NUM_LEVELS)
        start = (top**2 + _spread(density) ** 2) ** 0.5

        def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
            key_start, key_chains = jax.random.split(rng_key)
            x = start * jax.random.normal(key_start, (num_samples, 2))
            step = 0.1 * SMALLEST_LEVEL**2
            return annealed_langevin(
                key_chains, energy_at, params, x, levels, step, STEPS_PER_LEVEL, denoise=True
            )

        cost = NUM_LEVELS * STEPS_PER_LEVEL + 1
        return Problem(init, (Phase(objective),), _judged(objective), draw, cost)

    return build


NUM_LEVELS, STEPS_PER_LEVEL = 20, 20
"""Of the annealed Langevin dynamics that draws from noise; 401 gradients a sample."""
RECOVERY_LEVELS, RECOVERY_STEPS = 7, 20
"""Levels of recovery likelihood, and steps of each of its chains: these are so long that chains forget where
they began. With 10 steps of .2 energies were about twice too steep."""
RECOVERY_CHAINS: Mapping[str, Any] = {"num_steps": RECOVERY_STEPS, "step_factor": 0.7, "kernel": mala}
"""Langevin steps with acceptance: learnt energies are steeper than those of one point, where plain steps of
this size diverge."""


def _recovery(settings: Settings, density: ToyDensity) -> Problem:
    init, energy_at = _level_energy(settings, density, unit_slope=True)
    top = 2.5 * _spread(density)
    levels = geometric_levels(top, SMALLEST_LEVEL, RECOVERY_LEVELS)
    objective = objectives.recovery_likelihood(energy_at, levels=levels, **RECOVERY_CHAINS)

    def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
        key_start, key_chains = jax.random.split(rng_key)
        start = (top**2 + _spread(density) ** 2) ** 0.5 * jax.random.normal(key_start, (num_samples, 2))
        return objectives.recovery_samples(key_chains, energy_at, params, start, levels, **RECOVERY_CHAINS)

    cost = (len(levels) - 1) * RECOVERY_STEPS
    return Problem(init, (Phase(objective),), _judged(objective), draw, cost, chain_gradients=RECOVERY_STEPS)


# A potential whose gradient leads from noise to data

TEMPERATURE = 0.5
"""Of energy matching: exp(-V / T) is its density."""


def _from_noise(density: ToyDensity, energy: EnergyFn, make_kernel: MakeKernel, num_steps: int) -> Draw:
    """Draws with chains that start from the noise at which the paths of the training start."""

    def draw(rng_key: Array, params: Params, num_samples: int) -> Array:
        key_start, key_chains = jax.random.split(rng_key)
        x = _spread(density) * jax.random.normal(key_start, (num_samples, 2))
        kernel = make_kernel(partial(energy, params))
        return jax.jit(lambda x: run_chains(key_chains, kernel, x, num_steps)[0].position)(x)

    return draw


def _energy_matching(settings: Settings, density: ToyDensity) -> Problem:
    network, energy = make_energy(density, settings.widths, settings.activation, settings.input_gain)
    make = partial(objectives.energy_matching, energy, source_scale=_spread(density), coupling="independent")
    phases = (
        Phase(make(), share=0.5),
        Phase(make(contrastive_weight=20.0), persistent_chains(settings, density, TEMPERATURE), share=0.5),
    )
    kernel = partial(heated_sgld, step_size=0.005, temperature=TEMPERATURE, cold_steps=160, heating_steps=40)
    draw = _from_noise(density, energy, kernel, 600)
    judged = tempered(energy, TEMPERATURE)
    return Problem(network.init, phases, judged, draw, 600, chain_gradients=0.5 * _of_chains(settings))


def _equilibrium_matching(settings: Settings, density: ToyDensity) -> Problem:
    network, energy = make_energy(density, settings.widths, settings.activation, settings.input_gain)
    objective = objectives.equilibrium_matching(energy, source_scale=_spread(density))
    kernel = partial(momentum_descent, step_size=0.01, momentum=0.0)
    return Problem(network.init, (Phase(objective),), None, _from_noise(density, energy, kernel, 200), 200)


METHODS: Mapping[str, Method] = {
    "likelihood": Method(_likelihood, {}, CHAIN_FLAGS),
    "explicit_score_matching": Method(_of_energy(objectives.score_matching), {"updates": 3000}),
    "hutchinson": Method(_of_energy(objectives.score_matching, trace="hutchinson"), {"updates": 3000}),
    "sliced": Method(_of_energy(objectives.sliced_score_matching), {"updates": 3000}),
    "finite_difference": Method(_of_energy(objectives.finite_difference_score_matching), {"updates": 3000}),
    "denoising": Method(_of_energy(objectives.denoising_score_matching, noise_level=0.1), {}),
    "multilevel_denoising": Method(_of_levels(objectives.denoising_at_levels, 2.5), {}),
    "noise_contrastive": Method(_of_proposal(objectives.noise_contrastive, ratio=8), {"updates": 2000}),
    "conditional_noise_contrastive": Method(
        _of_energy(objectives.conditional_noise_contrastive, noise_scale=1.0, num_samples=4),
        {"updates": 2000},
    ),
    "flow_contrastive": Method(
        _flow_contrastive, {"updates": 2000, "learning_rate": 1e-3, "gradient_clip": 1.0}
    ),
    "energy_discrepancy": Method(_of_energy(objectives.energy_discrepancy, num_samples=4), {"updates": 2000}),
    "self_normalised": Method(_of_proposal(objectives.self_normalised, num_samples=4096), {"updates": 3000}),
    "recovery_likelihood": Method(_recovery, {"updates": 2000}),
    "dual_score_matching": Method(_of_levels(objectives.dual_score_matching, 5.0), {"gradient_clip": 1.0}),
    "level_classification": Method(_of_levels(objectives.level_classification, 5.0), {"updates": 3000}),
    "energy_matching": Method(_energy_matching, {}, CHAIN_FLAGS[1:]),
    "equilibrium_matching": Method(_equilibrium_matching, {"updates": 2000}),
    "cooperative": Method(
        _cooperative,
        {"updates": 1000, "batch_size": 256, "learning_rate": 1e-3, "sampler_steps": 15},
        ("sampler_steps",),
    ),
}
"""By the names that ``density_2d.py --objective`` takes."""
