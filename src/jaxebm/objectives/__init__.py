"""Training objectives: losses that return (loss, metrics), and the samplers of their negatives."""

from jaxebm.objectives.adversarial import adversarial_examples
from jaxebm.objectives.contrastive import (
    Contrast,
    batch_energy,
    binary_energy_loss,
    contrastive_loss,
)
from jaxebm.objectives.couplings import Coupling, Paths, couple, draw_paths
from jaxebm.objectives.energy_matching import energy_matching
from jaxebm.objectives.equilibrium_matching import equilibrium_matching, truncated_decay
from jaxebm.objectives.extensions import with_adversarial_examples, with_classification, with_last_step
from jaxebm.objectives.joined_negatives import join_negatives
from jaxebm.objectives.joint import classification_loss, joint_loss
from jaxebm.objectives.labelled_chains import run_labelled_chains
from jaxebm.objectives.last_step import last_step_loss, nearest_neighbour_entropy
from jaxebm.objectives.negatives import (
    Augment,
    Negatives,
    NegativeSampler,
    SamplerState,
    chains_of,
    contrastive_divergence,
    no_negatives,
    persistent,
    short_run,
)
from jaxebm.objectives.objective import (
    Batch,
    Loss,
    Objective,
    classifier,
    ignore_label,
    jem,
    likelihood,
)

__all__ = [
    "Augment",
    "Batch",
    "Contrast",
    "Coupling",
    "Loss",
    "NegativeSampler",
    "Negatives",
    "Objective",
    "Paths",
    "SamplerState",
    "adversarial_examples",
    "batch_energy",
    "binary_energy_loss",
    "chains_of",
    "classification_loss",
    "classifier",
    "contrastive_divergence",
    "contrastive_loss",
    "couple",
    "draw_paths",
    "energy_matching",
    "equilibrium_matching",
    "ignore_label",
    "jem",
    "join_negatives",
    "joint_loss",
    "last_step_loss",
    "likelihood",
    "nearest_neighbour_entropy",
    "no_negatives",
    "persistent",
    "run_labelled_chains",
    "short_run",
    "truncated_decay",
    "with_adversarial_examples",
    "with_classification",
    "with_last_step",
]
