"""Published recipes as configurations, and functions that build, train, reload and evaluate a JEM."""

from jaxebm.recipes.build import Training, build
from jaxebm.recipes.config import (
    ArchitectureConfig,
    Config,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
)
from jaxebm.recipes.devices import ParallelConfig
from jaxebm.recipes.judge import Evaluate, evaluate_run
from jaxebm.recipes.model import LogDensityBounds, Model
from jaxebm.recipes.published import RECIPES, Recipe, base_config
from jaxebm.recipes.reading import load
from jaxebm.recipes.run import TrainedRun, train
from jaxebm.recipes.serialisation import as_json, from_json, replace_settings

__all__ = [
    "RECIPES",
    "ArchitectureConfig",
    "Config",
    "DataConfig",
    "Evaluate",
    "LogDensityBounds",
    "Model",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "Recipe",
    "RunConfig",
    "SamplerConfig",
    "TrainedRun",
    "Training",
    "as_json",
    "base_config",
    "build",
    "evaluate_run",
    "from_json",
    "load",
    "replace_settings",
    "train",
]
