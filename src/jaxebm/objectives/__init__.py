"""How parameters learn: losses that return (loss, metrics), and where their negatives come from."""

from jaxebm.objectives.adversarial import adversarial_examples
from jaxebm.objectives.contrastive import (
    EnergyObjective,
    batch_energy,
    binary_energy_loss,
    contrastive_loss,
)
from jaxebm.objectives.joint import classification_loss, joint_loss
from jaxebm.objectives.labelled_chains import run_labelled_chains
from jaxebm.objectives.last_step import last_step_loss, nearest_neighbour_entropy
from jaxebm.objectives.negatives import (
    Augment,
    Negatives,
    NegativeSampler,
    contrastive_divergence,
    no_negatives,
    persistent,
    short_run,
)

__all__ = [
    "Augment",
    "EnergyObjective",
    "NegativeSampler",
    "Negatives",
    "adversarial_examples",
    "batch_energy",
    "binary_energy_loss",
    "classification_loss",
    "contrastive_divergence",
    "contrastive_loss",
    "joint_loss",
    "last_step_loss",
    "nearest_neighbour_entropy",
    "no_negatives",
    "persistent",
    "run_labelled_chains",
    "short_run",
]
