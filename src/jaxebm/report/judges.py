"""Independent classifiers, trained on real images only, and the reference images for samples."""

from collections.abc import Callable, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

import jax
import numpy as np

from jaxebm.data import Dataset
from jaxebm.evaluation import (
    FeatureNetwork,
    fit_feature_network,
    fit_independent_classifier,
    squared_radii,
)
from jaxebm.report.subject import Evaluation, flat

__all__ = ["NEIGHBOURS", "Judges", "first_of_each_class", "independent_judges"]

NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
CLASSIFIER_IMAGES = 5000
"""Greatest number of training images for the independent classifier and network."""
REFERENCES_PER_CLASS = 500
"""Greatest number of training images of each class, the first ones, with which samples are compared."""

Predict = Callable[[np.ndarray], np.ndarray]


class Judges(NamedTuple):
    """Classifiers that do not depend on the model, and the reference images for samples.

    Attributes:
      predict: A support vector machine on pixels; returns 0 if there is one class.
      network: The network in whose features samples are compared, or None.
      real: Training images of all classes, ``(n, H, W, C)``.
      labels: Their classes, ``(n,)``.
      features: Their features, ``(n, F)``, or None.
      radii: `squared_radii` of those images by view, pixels and features, ``(n,)`` each; empty where
        there are too few images for nearest neighbours.
    """

    predict: Predict
    network: FeatureNetwork | None
    real: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None
    radii: Mapping[str, np.ndarray]


_TRAINED: WeakKeyDictionary[Dataset, dict[bool, Judges]] = WeakKeyDictionary()
"""By data set, and whether features are asked for: they do not depend on the model."""


def independent_judges(evaluation: Evaluation) -> Judges:
    """Trains the independent classifiers on a fixed subset of the real images, once for each data set."""
    known = _TRAINED.setdefault(evaluation.dataset, {})
    features = evaluation.settings.features
    if features not in known:
        known[features] = _train_judges(evaluation)
    return known[features]


def _train_judges(evaluation: Evaluation) -> Judges:
    dataset, train = evaluation.dataset, evaluation.images["train"]
    label = dataset.train.label
    rows = np.random.default_rng(0).permutation(len(train))[:CLASSIFIER_IMAGES]
    chosen = first_of_each_class(label, dataset.num_classes, REFERENCES_PER_CLASS)
    network = features = None
    several = dataset.num_classes > 1  # with one class, every image is of that class
    if evaluation.settings.features and several:
        key = jax.random.key(0)  # the same judge for every seed of the model
        network = fit_feature_network(key, train[rows], label[rows], dataset.num_classes)
        features = network.features(train[chosen])
    predict = fit_independent_classifier(train[rows], label[rows]) if several else _of_one_class
    views = {"pixels": flat(train[chosen])} | ({} if features is None else {"features": features})
    enough = len(chosen) > NEIGHBOURS
    radii = {name: squared_radii(points, NEIGHBOURS) for name, points in views.items() if enough}
    return Judges(predict, network, train[chosen], label[chosen], features, radii)


def _of_one_class(images: np.ndarray) -> np.ndarray:
    return np.zeros(len(images), np.int64)


def first_of_each_class(labels: np.ndarray, num_classes: int, count: int) -> np.ndarray:
    """Returns the indices of the first ``count`` members of each class, one class after another."""
    return np.concatenate([np.flatnonzero(labels == y)[:count] for y in range(num_classes)])
