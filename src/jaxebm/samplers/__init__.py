"""How states are drawn: kernels, the chains that run them, where chains start and where they rest."""

from jaxebm.samplers.chains import Collect, run_annealed_chain, run_chain, run_chains, sample
from jaxebm.samplers.initial import (
    ClassGaussianInitial,
    GaussianInitial,
    Initial,
    UniformInitial,
    fit_class_gaussians,
    fit_gaussian,
)
from jaxebm.samplers.langevin import LangevinInfo, LangevinState, langevin_temperature, scalar_target, sgld
from jaxebm.samplers.metropolis import hmc, mala, nuts, warm_up
from jaxebm.samplers.replay import BufferDraw, ReplayBuffer, draw, init_buffer, write

__all__ = [
    "BufferDraw",
    "ClassGaussianInitial",
    "Collect",
    "GaussianInitial",
    "Initial",
    "LangevinInfo",
    "LangevinState",
    "ReplayBuffer",
    "UniformInitial",
    "draw",
    "fit_class_gaussians",
    "fit_gaussian",
    "hmc",
    "init_buffer",
    "langevin_temperature",
    "mala",
    "nuts",
    "run_annealed_chain",
    "run_chain",
    "run_chains",
    "sample",
    "scalar_target",
    "sgld",
    "warm_up",
    "write",
]
