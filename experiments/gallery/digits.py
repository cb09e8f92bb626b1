"""The digits half of objective_gallery.py: an objective learns images alone, judged as the card judges."""

import math
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from gallery.digit_objectives import DIGIT_METHODS, digit_space, settings_of
from gallery.objective_cost import gradients_per_update
from gallery.phases import train
from jaxebm.data import Dataset, load_dataset
from jaxebm.evaluation import FeatureNetwork, fit_feature_network, frechet_distance, prdc, squared_radii
from jaxebm.report.likelihood import LikelihoodSettings, bound_likelihood
from jaxebm.report.subject import as_logits
from jaxebm.training import DivergenceError
from jaxebm.types import Array, EnergyFn, Params

__all__ = ["SampleJudge", "digit_cell", "load_digits", "make_judge", "test_images", "training_images"]

NEIGHBOURS = 5
"""k of precision and coverage."""


class SampleJudge(NamedTuple):
    """The network in whose features samples are compared with the training images."""

    network: FeatureNetwork
    features: np.ndarray
    radii: np.ndarray

    def measure(self, images: np.ndarray) -> dict[str, float | None]:
        """Returns the Fréchet distance, precision and coverage of images (n, H, W, C) in [-1, 1]."""
        if len(images) <= NEIGHBOURS:
            return dict.fromkeys(("frechet_distance", "precision", "coverage"))
        found = self.network.features(images)
        quality = prdc(self.features, found, k=NEIGHBOURS, real_radii=self.radii)
        return {
            "frechet_distance": float(frechet_distance(self.features, found)),
            "precision": float(quality.precision),
            "coverage": float(quality.coverage),
        }


@cache
def load_digits() -> Dataset:
    """Returns the embedded digits."""
    return load_dataset("digits")


@cache
def make_judge(epochs: int) -> SampleJudge:
    """Trains the independent network, the same for every objective and seed."""
    dataset = load_digits()
    images = _rescaled(dataset.train.image)
    network = fit_feature_network(
        jax.random.key(0), images, dataset.train.label, dataset.num_classes, epochs=epochs
    )
    features = network.features(images)
    return SampleJudge(network, features, squared_radii(features, NEIGHBOURS))


def test_images(num_images: int) -> np.ndarray:
    """Returns the first test images, in [-1, 1]; all of them where there are fewer."""
    return _rescaled(load_digits().test.image[:num_images])


def training_images(num_images: int) -> np.ndarray:
    """Returns the first training images, in [-1, 1]."""
    return _rescaled(load_digits().train.image[:num_images])


def _rescaled(images: np.ndarray) -> np.ndarray:
    return np.asarray(load_digits().rescale(images))


def digit_cell(
    objective: str,
    *,
    seed: int,
    changes: Mapping[str, Any],
    judge: SampleJudge,
    num_samples: int,
    likelihood_steps: int,
    likelihood_chains: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains one objective on the digits.

    Args:
      objective: a name of `DIGIT_METHODS`.
      seed: of all random numbers.
      changes: settings that differ from those tuned for the objective.
      judge: of the samples.
      num_samples: samples that are judged.
      likelihood_steps: temperatures of the annealing that bounds log Z.
      likelihood_chains: annealed chains in each direction.

    Returns:
      Its figures, and the arrays of its picture; of a training that diverged the failure alone.
    """
    dataset = load_digits()
    space = digit_space(dataset)
    settings = settings_of(objective, seed=seed, **changes)
    try:
        trained = train(
            settings,
            lambda settings: DIGIT_METHODS[objective].build(settings, space),
            dataset.train.image,
            rescale=dataset.rescale,
            noise=settings.data_noise,
        )
    except DivergenceError as error:
        return {"failure": str(error)}, {}
    problem, params = trained.problem, trained.params
    key_samples, key_likelihood = jax.random.split(jax.random.key(seed))
    started = time.monotonic()
    drawn = np.asarray(problem.draw(key_samples, params, num_samples))
    seconds_sampling = time.monotonic() - started
    finite = drawn[np.all(np.isfinite(drawn), axis=(1, 2, 3))]
    images = np.clip(finite, -1.0, 1.0)
    started = time.monotonic()
    bounds = LikelihoodSettings((1.0,), likelihood_steps, likelihood_chains)
    figures: dict[str, Any] = {
        **_likelihood(key_likelihood, problem.energy, params, bounds),
        "seconds_likelihood": time.monotonic() - started,
        **judge.measure(images),
        "finite_samples": len(finite) / len(drawn),
        "seconds_training": trained.seconds,
        "seconds_sampling": seconds_sampling,
        "updates": settings.updates,
        "batch_size": settings.batch_size,
        "gradients_per_update": gradients_per_update(problem, settings.batch_size, space.shape),
        "gradients_per_sample": problem.gradients_per_sample,
        "recoveries": len(trained.recoveries),
        "failure": None,
    }
    return figures, {"samples": images}


def _likelihood(
    rng_key: Array, energy: EnergyFn | None, params: Params, settings: LikelihoodSettings
) -> dict[str, Any]:
    """The interval of bits per dimension of the test images, and whether its bounds are in order."""
    none = {"bits_per_dimension": None, "consistent": None}
    if energy is None:
        return none
    dataset = load_digits()
    entry = bound_likelihood(rng_key, as_logits(energy, params, dataset), params, dataset, settings)
    assert entry is not None  # digits have discrete grey values
    found = entry["by_temperature"]["1"]
    bits = found["bits_per_dimension"]
    if not all(map(math.isfinite, bits.values())):
        return none
    return {"bits_per_dimension": bits, "consistent": found["consistent"]}
