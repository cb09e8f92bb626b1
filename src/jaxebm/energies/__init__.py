"""Energies: every public function here is an energy or makes one."""

from jaxebm.cpu.convolution import (
    Convolution,
    Padding,
    convolve,
    convolve_direct,
    convolve_patches,
    extract_patches,
)
from jaxebm.energies.adapters import from_nnx, unbatched
from jaxebm.energies.analytic import ANALYTIC_TARGETS, funnel, gaussian, skewed
from jaxebm.energies.classifier import (
    class_conditional_target,
    complement_energy,
    joint_energy,
    log_class_probability,
    marginal_energy,
)
from jaxebm.energies.compose import (
    clamp,
    fill,
    gaussian_log_reference,
    mixture,
    negation,
    product,
    tempered,
    tilt,
)
from jaxebm.energies.flows import CouplingFlow
from jaxebm.energies.guidance import clamp_at, guided_energy, guided_energy_at
from jaxebm.energies.level_networks import EnergyUNet, LevelConvNet, LevelMLP, level_features
from jaxebm.energies.levels import at_level, joint_energy_at, marginal_energy_at
from jaxebm.energies.many_modes import (
    GaussianMixtureParams,
    gaussian_mixture,
    many_well,
    mode_probabilities,
    nearest_mode,
    random_mixture,
    responsibilities,
    right_hand_probability,
)
from jaxebm.energies.multiscale import average_pool, multiscale_energy
from jaxebm.energies.networks import (
    ACTIVATIONS,
    MLP,
    NORMS,
    ConvNet,
    WideResNet,
    refresh_statistics,
    trainable,
    training_apply,
)
from jaxebm.energies.offset import offset_params, with_offset
from jaxebm.energies.potentials import (
    inner_product_energy,
    preconditioned_energy,
    preconditioned_logits,
    squared_norm_energy,
)
from jaxebm.energies.reparametrise import Bijection, box_transform, funnel_transform, reparametrise
from jaxebm.energies.submodules import (
    SplitEnergy,
    SplitTarget,
    first_submodule,
    split_energy,
    submodule_input,
    submodule_output,
)
from jaxebm.energies.surfaces import mueller_brown, rosenbrock
from jaxebm.energies.target import AnalyticTarget
from jaxebm.energies.wells import double_well, ring

__all__ = [
    "ACTIVATIONS",
    "ANALYTIC_TARGETS",
    "MLP",
    "NORMS",
    "AnalyticTarget",
    "Bijection",
    "ConvNet",
    "Convolution",
    "CouplingFlow",
    "EnergyUNet",
    "GaussianMixtureParams",
    "LevelConvNet",
    "LevelMLP",
    "Padding",
    "SplitEnergy",
    "SplitTarget",
    "WideResNet",
    "at_level",
    "average_pool",
    "box_transform",
    "clamp",
    "clamp_at",
    "class_conditional_target",
    "complement_energy",
    "convolve",
    "convolve_direct",
    "convolve_patches",
    "double_well",
    "extract_patches",
    "fill",
    "first_submodule",
    "from_nnx",
    "funnel",
    "funnel_transform",
    "gaussian",
    "gaussian_log_reference",
    "gaussian_mixture",
    "guided_energy",
    "guided_energy_at",
    "inner_product_energy",
    "joint_energy",
    "joint_energy_at",
    "level_features",
    "log_class_probability",
    "many_well",
    "marginal_energy",
    "marginal_energy_at",
    "mixture",
    "mode_probabilities",
    "mueller_brown",
    "multiscale_energy",
    "nearest_mode",
    "negation",
    "offset_params",
    "preconditioned_energy",
    "preconditioned_logits",
    "product",
    "random_mixture",
    "refresh_statistics",
    "reparametrise",
    "responsibilities",
    "right_hand_probability",
    "ring",
    "rosenbrock",
    "skewed",
    "split_energy",
    "squared_norm_energy",
    "submodule_input",
    "submodule_output",
    "tempered",
    "tilt",
    "trainable",
    "training_apply",
    "unbatched",
    "with_offset",
]
