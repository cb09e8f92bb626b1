"""How states are drawn: kernels, the chains that run them, where chains start and where they are kept."""

from jaxebm.samplers.chains import Collect, run_annealed_chain, run_chain, run_chains, sample
from jaxebm.samplers.conventions import CONVENTIONS, Convention, LangevinNumbers, from_convention
from jaxebm.samplers.descent import DescentNorm, project_to_ball, projected_gradient_descent, steepest_descent
from jaxebm.samplers.gaussian_fits import fit_class_gaussians, fit_gaussian
from jaxebm.samplers.heated import HeatedState, heated_sgld
from jaxebm.samplers.initial import (
    ClassGaussianInitial,
    GaussianInitial,
    Initial,
    NormalInitial,
    UniformInitial,
    uniform_like,
)
from jaxebm.samplers.inner_updates import TargetInTwo, first_layer_sgld
from jaxebm.samplers.langevin import LangevinInfo, LangevinState, langevin_temperature, scalar_target, sgld
from jaxebm.samplers.metropolis import RoundedState, hmc, mala, nuts
from jaxebm.samplers.momentum import MomentumForm, MomentumState, momentum_descent
from jaxebm.samplers.noise_levels import annealed_langevin, geometric_levels, power_levels
from jaxebm.samplers.preconditioned import PreconditionedState, preconditioned_sgld
from jaxebm.samplers.predictor_corrector import Predictor, predictor_corrector
from jaxebm.samplers.probability_flow import (
    Divergence,
    FlowLogDensity,
    FlowSamples,
    probability_flow,
    probability_flow_log_density,
)
from jaxebm.samplers.proximal import Proximal, box, projected, proximal_sgld, ridge, soft_threshold
from jaxebm.samplers.replay import BufferDraw, ReplayBuffer, draw, init_buffer, write
from jaxebm.samplers.sequential import SMCResult, sequential_monte_carlo
from jaxebm.samplers.step_schedules import cyclical_schedule, polynomial_schedule
from jaxebm.samplers.temperature_ladders import Ladder, tune_ladder
from jaxebm.samplers.tempering import TemperingInfo, TemperingState, check_ladder, parallel_tempering
from jaxebm.samplers.underdamped import UnderdampedInfo, UnderdampedState, underdamped
from jaxebm.samplers.warm_up import WarmUp, warm_up, warm_up_chains
from jaxebm.samplers.watch import SamplingWarning

__all__ = [
    "CONVENTIONS",
    "BufferDraw",
    "ClassGaussianInitial",
    "Collect",
    "Convention",
    "DescentNorm",
    "Divergence",
    "FlowLogDensity",
    "FlowSamples",
    "GaussianInitial",
    "HeatedState",
    "Initial",
    "Ladder",
    "LangevinInfo",
    "LangevinNumbers",
    "LangevinState",
    "MomentumForm",
    "MomentumState",
    "NormalInitial",
    "PreconditionedState",
    "Predictor",
    "Proximal",
    "ReplayBuffer",
    "RoundedState",
    "SMCResult",
    "SamplingWarning",
    "TargetInTwo",
    "TemperingInfo",
    "TemperingState",
    "UnderdampedInfo",
    "UnderdampedState",
    "UniformInitial",
    "WarmUp",
    "annealed_langevin",
    "box",
    "check_ladder",
    "cyclical_schedule",
    "draw",
    "first_layer_sgld",
    "fit_class_gaussians",
    "fit_gaussian",
    "from_convention",
    "geometric_levels",
    "heated_sgld",
    "hmc",
    "init_buffer",
    "langevin_temperature",
    "mala",
    "momentum_descent",
    "nuts",
    "parallel_tempering",
    "polynomial_schedule",
    "power_levels",
    "preconditioned_sgld",
    "predictor_corrector",
    "probability_flow",
    "probability_flow_log_density",
    "project_to_ball",
    "projected",
    "projected_gradient_descent",
    "proximal_sgld",
    "ridge",
    "run_annealed_chain",
    "run_chain",
    "run_chains",
    "sample",
    "scalar_target",
    "sequential_monte_carlo",
    "sgld",
    "soft_threshold",
    "steepest_descent",
    "tune_ladder",
    "underdamped",
    "uniform_like",
    "warm_up",
    "warm_up_chains",
    "write",
]
