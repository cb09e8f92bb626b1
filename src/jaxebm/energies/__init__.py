"""What is modelled: every public function here is an energy or makes one."""

from jaxebm.energies.analytic import (
    ANALYTIC_TARGETS,
    funnel,
    gaussian,
    gaussian_mixture,
    skewed,
)
from jaxebm.energies.classifier import (
    class_conditional_target,
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
from jaxebm.energies.convolution import (
    Convolution,
    Padding,
    convolve,
    convolve_direct,
    convolve_patches,
    extract_patches,
)
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
from jaxebm.energies.target import AnalyticTarget
from jaxebm.energies.wells import double_well, ring

__all__ = [
    "ACTIVATIONS",
    "ANALYTIC_TARGETS",
    "MLP",
    "NORMS",
    "AnalyticTarget",
    "ConvNet",
    "Convolution",
    "Padding",
    "WideResNet",
    "clamp",
    "class_conditional_target",
    "convolve",
    "convolve_direct",
    "convolve_patches",
    "double_well",
    "extract_patches",
    "fill",
    "funnel",
    "gaussian",
    "gaussian_log_reference",
    "gaussian_mixture",
    "joint_energy",
    "log_class_probability",
    "marginal_energy",
    "mixture",
    "negation",
    "product",
    "refresh_statistics",
    "ring",
    "skewed",
    "tempered",
    "tilt",
    "trainable",
    "training_apply",
]
