"""Training objectives: losses that return (loss, metrics), and the samplers of their negatives."""

from jaxebm.objectives.adversarial import adversarial_examples
from jaxebm.objectives.contrastive import (
    Contrast,
    batch_energy,
    binary_energy_loss,
    contrastive_loss,
)
from jaxebm.objectives.cooperative import cooperative, cooperative_samples
from jaxebm.objectives.couplings import Coupling, Paths, couple, draw_paths
from jaxebm.objectives.denoising import denoising_at_levels, denoising_score_matching
from jaxebm.objectives.dual_score_matching import dual_score_matching
from jaxebm.objectives.energy_discrepancy import energy_discrepancy
from jaxebm.objectives.energy_matching import energy_matching
from jaxebm.objectives.equilibrium_matching import equilibrium_matching, truncated_decay
from jaxebm.objectives.extensions import with_adversarial_examples, with_classification, with_last_step
from jaxebm.objectives.flow_contrastive import flow_contrastive
from jaxebm.objectives.joined_negatives import join_negatives
from jaxebm.objectives.joint import classification_loss, joint_loss
from jaxebm.objectives.labelled_chains import run_labelled_chains
from jaxebm.objectives.last_step import last_step_loss, nearest_neighbour_entropy
from jaxebm.objectives.level_classification import level_classification
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
from jaxebm.objectives.noise_contrastive import conditional_noise_contrastive, noise_contrastive
from jaxebm.objectives.objective import (
    Batch,
    Loss,
    Objective,
    classifier,
    ignore_label,
    jem,
    likelihood,
)
from jaxebm.objectives.proposals import Proposal, gaussian_proposal, proposal_of
from jaxebm.objectives.recovery_likelihood import recovery_likelihood, recovery_samples
from jaxebm.objectives.score_matching import (
    Trace,
    finite_difference_score_matching,
    score_matching,
    sliced_score_matching,
)
from jaxebm.objectives.self_normalised import self_normalised

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
    "Proposal",
    "SamplerState",
    "Trace",
    "adversarial_examples",
    "batch_energy",
    "binary_energy_loss",
    "chains_of",
    "classification_loss",
    "classifier",
    "conditional_noise_contrastive",
    "contrastive_divergence",
    "contrastive_loss",
    "cooperative",
    "cooperative_samples",
    "couple",
    "denoising_at_levels",
    "denoising_score_matching",
    "draw_paths",
    "dual_score_matching",
    "energy_discrepancy",
    "energy_matching",
    "equilibrium_matching",
    "finite_difference_score_matching",
    "flow_contrastive",
    "gaussian_proposal",
    "ignore_label",
    "jem",
    "join_negatives",
    "joint_loss",
    "last_step_loss",
    "level_classification",
    "likelihood",
    "nearest_neighbour_entropy",
    "no_negatives",
    "noise_contrastive",
    "persistent",
    "proposal_of",
    "recovery_likelihood",
    "recovery_samples",
    "run_labelled_chains",
    "score_matching",
    "self_normalised",
    "short_run",
    "sliced_score_matching",
    "truncated_decay",
    "with_adversarial_examples",
    "with_classification",
    "with_last_step",
]
