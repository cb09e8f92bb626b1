"""The methods of density_2d.py in the plane.

`METHODS` is the one table: a constructor of gallery/methods.py, and the flags of density_2d.py that were
tuned for it. The energy of every method is the same MLP, tilted by a broad Gaussian; methods that are told a
noise level have the same MLP with the level.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gallery.densities import draw_samples, local_and_global, make_energy, make_initial, window
from gallery.methods import (
    Draw,
    Method,
    Settings,
    Space,
    cooperative,
    energy_matching,
    equilibrium_matching,
    flow_contrastive,
    likelihood,
    of_energy,
    of_levels,
    of_proposal,
    recovery,
)
from jaxebm import objectives
from jaxebm.data import ToyDensity
from jaxebm.objectives import Proposal
from jaxebm.samplers import annealed_langevin, geometric_levels, heated_sgld, mala, momentum_descent
from jaxebm.types import Array, EnergyFn, LevelEnergyFn, MakeKernel, Params

__all__ = ["CHAIN_FLAGS", "METHODS", "plane", "uniform_proposal"]

CHAIN_FLAGS = ("energy_l2", "num_chains", "sampler_steps", "restart_probability")
"""Flags about the chains of the training, which most methods do without."""
SMALLEST_LEVEL = 0.03
"""In units of the plane. What is learnt is the density smoothed by it: .005 nats away on rings, whose width
is .08, and less on the others."""
NUM_LEVELS, STEPS_PER_LEVEL = 20, 20
"""Of the annealed Langevin dynamics that draws from noise; 401 gradients a sample."""


def plane(density: ToyDensity) -> Space:
    """Returns what the methods need to know of a two-dimensional density."""
    low, high = window(density)
    # About the standard deviation, and that of the noise from which paths to the data start.
    spread = 0.5 * density.bounds[1]

    def energy(settings: Settings) -> tuple[Any, EnergyFn]:
        return make_energy(density, settings.widths, settings.activation, settings.input_gain)

    def kernel(settings: Settings) -> MakeKernel:
        return partial(local_and_global, step_size=settings.sampler_step_size, low=low, high=high)

    def draw(settings: Settings, energy: EnergyFn) -> Draw:
        def chains(rng_key: Array, params: Params, num_samples: int) -> Array:
            return draw_samples(
                rng_key,
                density,
                energy,
                params,
                num_samples=num_samples,
                num_steps=settings.sample_steps,
                step_size=settings.sampler_step_size,
            )

        return chains

    return Space(
        shape=(2,),
        mean=0.0,
        spread=spread,
        source_scale=spread,
        smallest_level=SMALLEST_LEVEL,
        make_energy=energy,
        make_potential=energy,
        make_kernel=kernel,
        transition_gradients=2,
        initial=make_initial(density),
        proposal=uniform_proposal(density),
        draw=draw,
        gradients_per_sample=lambda settings: 2 * settings.sample_steps,
        draw_levels=_anneal,
        level_gradients=NUM_LEVELS * STEPS_PER_LEVEL + 1,
    )


def uniform_proposal(density: ToyDensity) -> Proposal:
    """Returns the uniform density on the window as noise for contrasts."""
    low, high = window(density)
    log_density = -2.0 * float(jnp.log(high - low))

    def sample(rng_key: Array, num_samples: int) -> Array:
        return jax.random.uniform(rng_key, (num_samples, 2), minval=low, maxval=high)

    return Proposal(sample, lambda x: jnp.full((), log_density, x.dtype))


def _anneal(rng_key: Array, energy_at: LevelEnergyFn, params: Params, xs: Array, highest: float) -> Array:
    """Annealed Langevin dynamics down to the smallest level, whose noise it removes."""
    levels = geometric_levels(highest, SMALLEST_LEVEL, NUM_LEVELS)
    step = 0.1 * SMALLEST_LEVEL**2
    return annealed_langevin(rng_key, energy_at, params, xs, levels, step, STEPS_PER_LEVEL, denoise=True)


TEMPERATURE = 0.5
"""Of energy matching: exp(-V / T) is its density."""
HEATED = partial(heated_sgld, step_size=0.005, temperature=TEMPERATURE, cold_steps=160, heating_steps=40)
"""Its samples."""
DESCENT = partial(momentum_descent, step_size=0.01, momentum=0.0)
"""Those of equilibrium matching."""
RECOVERY: Mapping[str, Any] = {"num_steps": 20, "step_factor": 0.7, "kernel": mala}
"""Chains of recovery likelihood: Langevin steps with acceptance, because learnt energies are steeper than
those of one point, where plain steps of this size diverge; and so many that chains forget where they began.
With 10 steps of .2 energies were about twice too steep."""

METHODS: Mapping[str, Method] = {
    "likelihood": Method(likelihood, {}, CHAIN_FLAGS),
    "explicit_score_matching": Method(of_energy(objectives.score_matching), {"updates": 3000}),
    "hutchinson": Method(of_energy(objectives.score_matching, trace="hutchinson"), {"updates": 3000}),
    "sliced": Method(of_energy(objectives.sliced_score_matching), {"updates": 3000}),
    "finite_difference": Method(of_energy(objectives.finite_difference_score_matching), {"updates": 3000}),
    "denoising": Method(of_energy(objectives.denoising_score_matching, noise_level=0.1), {}),
    "multilevel_denoising": Method(of_levels(objectives.denoising_at_levels, 2.5), {}),
    "noise_contrastive": Method(of_proposal(objectives.noise_contrastive, ratio=8), {"updates": 2000}),
    "conditional_noise_contrastive": Method(
        of_energy(objectives.conditional_noise_contrastive, noise_scale=1.0, num_samples=4),
        {"updates": 2000},
    ),
    "flow_contrastive": Method(
        flow_contrastive(8, (64, 64)), {"updates": 2000, "learning_rate": 1e-3, "gradient_clip": 1.0}
    ),
    "energy_discrepancy": Method(of_energy(objectives.energy_discrepancy, num_samples=4), {"updates": 2000}),
    "self_normalised": Method(of_proposal(objectives.self_normalised, num_samples=4096), {"updates": 3000}),
    "recovery_likelihood": Method(recovery(2.5, 7, **RECOVERY), {"updates": 2000}),
    "dual_score_matching": Method(of_levels(objectives.dual_score_matching, 5.0), {"gradient_clip": 1.0}),
    "level_classification": Method(of_levels(objectives.level_classification, 5.0), {"updates": 3000}),
    "energy_matching": Method(energy_matching(TEMPERATURE, 20.0, HEATED, 600), {}, CHAIN_FLAGS[1:]),
    "equilibrium_matching": Method(equilibrium_matching(DESCENT, 200), {"updates": 2000}),
    "cooperative": Method(
        cooperative(8, 0.3, num_latent_steps=5),
        {"updates": 1000, "batch_size": 256, "learning_rate": 1e-3, "sampler_steps": 15},
        ("sampler_steps",),
    ),
}
"""By the names that ``density_2d.py --objective`` takes."""
