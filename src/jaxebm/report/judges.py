"""Independent classifiers, trained on real images alone, and the images that samples are compared with."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

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
"""At most this many training images are what the independent classifier and network are trained on."""
REFERENCES_PER_CLASS = 500
"""At most this many training images of each class, the first ones, are what samples are compared with."""

Predict = Callable[[np.ndarray], np.ndarray]


class Judges(NamedTuple):
    """Classifiers that never saw the model, and what samples are compared with.

    Attributes:
      predict: A support vector machine on pixels; 0 where there is one class.
      network: In whose features samples are compared, or None.
      real: Training images of all classes, ``(n, H, W, C)``.
      labels: Their classes, ``(n,)``.
      features: Their features, ``(n, F)``, or None.
      radii: `squared_radii` of those images by view, pixels and features, ``(n,)`` each.
    """

    predict: Predict
    network: FeatureNetwork | None
    real: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None
    radii: Mapping[str, np.ndarray]


def independent_judges(evaluation: Evaluation) -> Judges:
    """Trains the independent classifiers on real images, a fixed subset of many; take it by `once`."""
    dataset, train = evaluation.dataset, evaluation.images["train"]
    label = dataset.train.label
    rows = np.random.default_rng(0).permutation(len(train))[:CLASSIFIER_IMAGES]
    chosen = first_of_each_class(label, dataset.num_classes, REFERENCES_PER_CLASS)
    network = features = None
    several = dataset.num_classes > 1  # of one class there is nothing to tell: every image is of it
    if evaluation.settings.features and several:
        key = jax.random.key(0)  # the same judge for every seed of the model
        network = fit_feature_network(key, train[rows], label[rows], dataset.num_classes)
        features = network.features(train[chosen])
    predict = fit_independent_classifier(train[rows], label[rows]) if several else _of_one_class
    radii = {"pixels": squared_radii(flat(train[chosen]), NEIGHBOURS)}
    if features is not None:
        radii["features"] = squared_radii(features, NEIGHBOURS)
    return Judges(predict, network, train[chosen], label[chosen], features, radii)


def _of_one_class(images: np.ndarray) -> np.ndarray:
    return np.zeros(len(images), np.int64)


def first_of_each_class(labels: np.ndarray, num_classes: int, count: int) -> np.ndarray:
    """Returns the indices of the first ``count`` members of each class, class after class."""
    return np.concatenate([np.flatnonzero(labels == y)[:count] for y in range(num_classes)])
