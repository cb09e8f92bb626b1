"""Evaluation of trained models, one folder per question; every public function is importable from here.

- `partition`: log Z, exact or between two bounds, and the likelihood of data;
- `chains`: do chains converge, and to the energy's own distribution?
- `samples`: are the samples like the data?
- `classifier`: accuracy, calibration, out-of-distribution scores, attacks and robustness.
"""

from jaxebm.evaluation.chains.convergence import (
    ChainSummary,
    effective_sample_size,
    integrated_autocorrelation_time,
    monte_carlo_standard_error,
    r_hat,
    rank_normalised_r_hat,
    summarise_chains,
)
from jaxebm.evaluation.chains.probe import ChainProbe, LongRunDrift, long_run_drift, probe_chains
from jaxebm.evaluation.chains.stein import SteinDiscrepancy, kernel_stein_discrepancy
from jaxebm.evaluation.chains.telemetry import (
    BufferSummary,
    EnergyGap,
    buffer_summary,
    energy_gap,
    make_telemetry,
)
from jaxebm.evaluation.classifier.attacks import AttackLoss, AttackResult, attack, attack_batch
from jaxebm.evaluation.classifier.calibration import (
    ReliabilityCurve,
    accuracy,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
)
from jaxebm.evaluation.classifier.multiscale import ScoreNorms, fit_score_norms, score_norms_score
from jaxebm.evaluation.classifier.ood import (
    OOD_SCORES,
    auprc,
    auroc,
    confidence_score,
    false_positive_rate,
    gradient_norm_score,
    joint_maximum_score,
    log_density_score,
    typicality_score,
)
from jaxebm.evaluation.classifier.ood_sets import (
    OOD_SETS,
    constant_images,
    interpolations,
    permute_pixels,
    uniform_noise,
)
from jaxebm.evaluation.classifier.refinement import DefendedFn, deterministic, refine, refined_logits
from jaxebm.evaluation.classifier.robustness import robust_accuracy
from jaxebm.evaluation.partition.annealing_path import Base, anneal
from jaxebm.evaluation.partition.bounded import BoxProblem, restrict_to_box
from jaxebm.evaluation.partition.dequantisation import dequantised_log_likelihood
from jaxebm.evaluation.partition.importance_sampling import (
    AISResult,
    LogPartitionInterval,
    annealed_importance_sampling,
    interval_of_bounds,
    log_partition_interval,
    reverse_annealed_importance_sampling,
)
from jaxebm.evaluation.partition.level_annealing import (
    level_importance_sampling,
    reverse_level_importance_sampling,
)
from jaxebm.evaluation.partition.level_classification import LevelClassification, classify_levels
from jaxebm.evaluation.partition.likelihood import bits_per_dimension, log_likelihood
from jaxebm.evaluation.partition.path_fitting import (
    AnnealingPath,
    fit_annealing_path,
    linear_schedule,
    sigmoid_schedule,
)
from jaxebm.evaluation.partition.quadrature import (
    enumerate_states,
    grid,
    kl_divergence_on_grid,
    log_density_on_grid,
    log_partition_by_enumeration,
    log_partition_on_grid,
)
from jaxebm.evaluation.samples.discrepancy import (
    KolmogorovSmirnov,
    energy_distance,
    kolmogorov_smirnov,
    maximum_mean_discrepancy,
    median_bandwidth,
)
from jaxebm.evaluation.samples.features import FeatureNetwork, fit_feature_network, fit_independent_classifier
from jaxebm.evaluation.samples.frechet import (
    FidelityNotAvailableError,
    InceptionScore,
    StandardFidelity,
    frechet_distance,
    inception_score,
    standard_fidelity,
)
from jaxebm.evaluation.samples.generation import (
    PRDC,
    ClassPRDC,
    NearestNeighbours,
    class_agreement,
    nearest_neighbours,
    prdc,
    prdc_by_class,
    squared_radii,
    within_range,
)

__all__ = [
    "OOD_SCORES",
    "OOD_SETS",
    "PRDC",
    "AISResult",
    "AnnealingPath",
    "AttackLoss",
    "AttackResult",
    "Base",
    "BoxProblem",
    "BufferSummary",
    "ChainProbe",
    "ChainSummary",
    "ClassPRDC",
    "DefendedFn",
    "EnergyGap",
    "FeatureNetwork",
    "FidelityNotAvailableError",
    "InceptionScore",
    "KolmogorovSmirnov",
    "LevelClassification",
    "LogPartitionInterval",
    "LongRunDrift",
    "NearestNeighbours",
    "ReliabilityCurve",
    "ScoreNorms",
    "StandardFidelity",
    "SteinDiscrepancy",
    "accuracy",
    "anneal",
    "annealed_importance_sampling",
    "attack",
    "attack_batch",
    "auprc",
    "auroc",
    "bits_per_dimension",
    "brier_score",
    "buffer_summary",
    "class_agreement",
    "classify_levels",
    "confidence_score",
    "constant_images",
    "dequantised_log_likelihood",
    "deterministic",
    "effective_sample_size",
    "energy_distance",
    "energy_gap",
    "enumerate_states",
    "expected_calibration_error",
    "false_positive_rate",
    "fit_annealing_path",
    "fit_feature_network",
    "fit_independent_classifier",
    "fit_score_norms",
    "fit_temperature",
    "frechet_distance",
    "gradient_norm_score",
    "grid",
    "inception_score",
    "integrated_autocorrelation_time",
    "interpolations",
    "interval_of_bounds",
    "joint_maximum_score",
    "kernel_stein_discrepancy",
    "kl_divergence_on_grid",
    "kolmogorov_smirnov",
    "level_importance_sampling",
    "linear_schedule",
    "log_density_on_grid",
    "log_density_score",
    "log_likelihood",
    "log_partition_by_enumeration",
    "log_partition_interval",
    "log_partition_on_grid",
    "long_run_drift",
    "make_telemetry",
    "maximum_mean_discrepancy",
    "median_bandwidth",
    "monte_carlo_standard_error",
    "nearest_neighbours",
    "negative_log_likelihood",
    "permute_pixels",
    "prdc",
    "prdc_by_class",
    "probe_chains",
    "r_hat",
    "rank_normalised_r_hat",
    "refine",
    "refined_logits",
    "reliability_curve",
    "restrict_to_box",
    "reverse_annealed_importance_sampling",
    "reverse_level_importance_sampling",
    "robust_accuracy",
    "score_norms_score",
    "sigmoid_schedule",
    "squared_radii",
    "standard_fidelity",
    "summarise_chains",
    "typicality_score",
    "uniform_noise",
    "within_range",
]
