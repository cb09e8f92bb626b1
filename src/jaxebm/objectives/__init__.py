"""How parameters learn: losses that return (loss, metrics), and where their negatives come from."""

from jaxebm.objectives.contrastive import batch_energy, contrastive_loss
from jaxebm.objectives.joint import classification_loss, joint_loss
from jaxebm.objectives.negatives import (
    Negatives,
    NegativeSampler,
    contrastive_divergence,
    no_negatives,
    persistent,
    run_labelled_chains,
    short_run,
)

__all__ = [
    "NegativeSampler",
    "Negatives",
    "batch_energy",
    "classification_loss",
    "contrastive_divergence",
    "contrastive_loss",
    "joint_loss",
    "no_negatives",
    "persistent",
    "run_labelled_chains",
    "short_run",
]
