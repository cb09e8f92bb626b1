r"""Are the samples good, diverse, new, and of the requested class?

Precision, recall, density and coverage (PRDC) compare two sets of points through nearest neighbours; class
agreement says whether a classifier (`jaxebm.evaluation.samples.features` fits independent ones) sees the
class that was meant; nearest training neighbours tell a new sample from a copy.

Arrays on the host, float64. Distances are sums of squared differences, not the faster |a|^2 + |b|^2 - 2ab,
whose rounding makes exact ties (a sample copied from the data) fall on either side of a strict inequality.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

from jaxebm import checks
from jaxebm.evaluation.samples.scale import extreme_unit

__all__ = [
    "PRDC",
    "ClassPRDC",
    "NearestNeighbours",
    "class_agreement",
    "nearest_neighbours",
    "prdc",
    "prdc_by_class",
    "squared_radii",
    "within_range",
]

_BLOCK_ENTRIES = 2**22
"""Distances held at once: 32 MiB of float64."""


class PRDC(NamedTuple):
    """Fidelity (precision, density) and diversity (recall, coverage) of samples; see ``prdc``.

    Attributes:
      precision: fraction of fake points inside some real ball, in [0, 1].
      recall: fraction of real points inside some fake ball, in [0, 1].
      density: mean number of real balls around a fake point, over k; 1 expected of a perfect model, may
        exceed 1.
      coverage: fraction of real balls that hold a fake point, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


class ClassPRDC(NamedTuple):
    """``PRDC`` within each class.

    Attributes:
      mean: unweighted mean over classes.
      precision: ``(K,)``.
      recall: ``(K,)``.
      density: ``(K,)``.
      coverage: ``(K,)``.
    """

    mean: PRDC
    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray


class NearestNeighbours(NamedTuple):
    """The k nearest references of each query, nearest first.

    Attributes:
      indices: ``(n, k)`` rows of the references; of equally near ones the lower index comes first.
      distances: ``(n, k)`` Euclidean distances, in units of the points.
    """

    indices: np.ndarray
    distances: np.ndarray


def flattened_points(name: str, points: ArrayLike) -> np.ndarray:
    """Returns ``points`` (n, ...) as finite float64 (n, D)."""
    checks.array(name, points)
    checks.finite(name, points)
    array = np.asarray(points, np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}: non-empty (n, D), or (n, ...) to be flattened, is needed."
        )
    return array.reshape(array.shape[0], -1)


def _flattened_pair(
    first_name: str, first: ArrayLike, second_name: str, second: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    for name, points in ((first_name, first), (second_name, second)):
        checks.array(name, points)
    if np.shape(first)[1:] != np.shape(second)[1:]:
        raise ValueError(
            f"{first_name} has points of shape {np.shape(first)[1:]} and {second_name} of shape "
            f"{np.shape(second)[1:]}: they must be equal."
        )
    return flattened_points(first_name, first), flattened_points(second_name, second)


def _distance_blocks(queries: np.ndarray, references: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slices of queries with their squared distances to all references, some 32 MiB at once.

    On all processors: scipy leaves the interpreter free while it counts.
    """
    block = max(1, _BLOCK_ENTRIES // references.shape[0])
    processors = os.cpu_count() or 1
    with ThreadPoolExecutor(processors) as pool:
        for start in range(0, queries.shape[0], block):
            rows = slice(start, min(start + block, queries.shape[0]))
            parts = np.array_split(queries[rows], max(1, min(processors, (rows.stop - start) // 16)))
            squared = pool.map(lambda part: cdist(part, references, "sqeuclidean"), parts)
            yield rows, np.concatenate(list(squared))


def squared_radii(points: ArrayLike, k: int = 5) -> np.ndarray:
    r"""Squared distance from each point to its k-th nearest other point.

    For ``prdc`` of several sets against the same real points, most of whose time it takes.

    Args:
      points: ``(n, D)``, or ``(n, ...)`` which is flattened.
      k: which neighbour.

    Returns:
      ``(n,)``, float64.

    Raises:
      ValueError: for fewer than k + 1 points, or non-finite entries.

    Example:
      >>> squared_radii(np.array([[0.0], [1.0], [3.0]]), k=1).tolist()
      [1.0, 1.0, 4.0]

    Reference:
      Kynkäänniemi et al. 2019 (arXiv 1904.06991), equation 1.
    """
    checks.positive_integer("k", k)
    flat = flattened_points("points", points)
    _enough_points("points", flat, k)
    unit = extreme_unit(flat)
    return _squared_radii(flat / unit, k) * unit * unit


def _squared_radii(points: np.ndarray, k: int) -> np.ndarray:
    radii = np.empty(points.shape[0])
    for rows, squared in _distance_blocks(points, points):
        # A point is not its own neighbour.
        squared[np.arange(squared.shape[0]), np.arange(rows.start, rows.stop)] = np.inf
        radii[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii


def _enough_points(name: str, points: np.ndarray, k: int) -> None:
    if points.shape[0] < k + 1:
        raise ValueError(
            f"{name} holds {points.shape[0]} points: at least k + 1 = {k + 1} are needed for a ball that "
            f"reaches the k-th nearest other point."
        )


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5, *, real_radii: np.ndarray | None = None) -> PRDC:
    r"""Precision, recall, density and coverage of fake points against real ones.

    With B(x; S) the open ball about x whose radius reaches the k-th nearest other point of S:
    precision = (1/m) \sum_j 1[fake_j in some B(real_i; real)],
    recall = (1/n) \sum_i 1[real_i in some B(fake_j; fake)],
    density = (1/(k m)) \sum_j \sum_i 1[fake_j in B(real_i; real)],
    coverage = (1/n) \sum_i 1[some fake_j in B(real_i; real)].
    When both sets come from one continuous distribution, density is 1 and coverage is
    1 - (n-1)...(n-k) / ((m+n-1)...(m+n-k)) in expectation. All four depend on n, m and k: state them. The
    ball of a point that coincides with k others is empty.

    Args:
      real: ``(n, D)``, or ``(n, ...)`` which is flattened.
      fake: ``(m, D)``, or ``(m, ...)``.
      k: which neighbour sets the radius.
      real_radii: ``squared_radii(real, k)`` where it is known already.

    Returns:
      A ``PRDC`` of floats. Memory stays within blocks of 32 MiB; time is O((n + m)^2 D), 20 s on one core at
      n = m = 10,000 with the D = 128 features of a network (`jaxebm.evaluation.samples.features`).

    Raises:
      ValueError: for fewer than k + 1 points in either set, non-finite entries, or shapes that do not agree,
        those of the radii included.

    Example:
      >>> real = np.arange(4.0)[:, None]
      >>> prdc(real, np.array([[0.5], [0.6], [9.0]]), k=1)
      PRDC(precision=0.6666666666666666, recall=0.75, density=1.3333333333333333, coverage=0.5)

    Reference:
      Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models" (arXiv 2002.09797),
      section 3 and lemma 2; precision and recall after Kynkäänniemi et al. 2019 (arXiv 1904.06991), equations
      1 and 2.
    """
    checks.positive_integer("k", k)
    real_points, fake_points = _flattened_pair("real", real, "fake", fake)
    _enough_points("real", real_points, k)
    _enough_points("fake", fake_points, k)
    unit = extreme_unit(real_points, fake_points)
    real_points, fake_points = real_points / unit, fake_points / unit
    if real_radii is None:
        real_radii = _squared_radii(real_points, k)
    else:
        expected = real_points.shape[:1]
        checks.array("real_radii", real_radii, expected, f"{expected}, one a real point,")
        checks.non_negative("real_radii", real_radii)
        real_radii = np.asarray(real_radii) / unit / unit
    fake_radii = _squared_radii(fake_points, k)

    balls_around_fake = np.zeros(fake_points.shape[0])
    real_recalled, real_covered = np.empty((2, real_points.shape[0]), bool)
    for rows, squared in _distance_blocks(real_points, fake_points):
        in_real_ball = squared < real_radii[rows, None]
        balls_around_fake += in_real_ball.sum(axis=0)
        real_covered[rows] = in_real_ball.any(axis=1)
        real_recalled[rows] = (squared < fake_radii[None, :]).any(axis=1)
    return PRDC(
        precision=float(np.mean(balls_around_fake > 0)),
        recall=float(np.mean(real_recalled)),
        density=float(np.mean(balls_around_fake) / k),
        coverage=float(np.mean(real_covered)),
    )


def prdc_by_class(
    real: ArrayLike,
    real_labels: ArrayLike,
    fake: ArrayLike,
    fake_labels: ArrayLike,
    num_classes: int,
    k: int = 5,
) -> ClassPRDC:
    """PRDC of each class's samples against that class's data, and the mean over classes.

    Unlike ``prdc`` on everything at once, it sees a model that draws the right images under the wrong class,
    or covers some classes only.

    Args:
      real: ``(n, D)``, or ``(n, ...)``.
      real_labels: ``(n,)`` integers in 0..num_classes-1.
      fake: ``(m, D)``, or ``(m, ...)``.
      fake_labels: ``(m,)`` the requested classes.
      num_classes: K.
      k: which neighbour sets the radius.

    Returns:
      A ``ClassPRDC``.

    Raises:
      ValueError: as ``prdc``, naming the class; or for labels of the wrong shape or range.
      TypeError: for labels that are not integers.

    Example:
      >>> points, labels = np.arange(12.0)[:, None], np.repeat([0, 1], 6)
      >>> prdc_by_class(points, labels, points + 0.5, labels, num_classes=2, k=1).precision.shape
      (2,)

    Reference:
      Naeem et al. 2020 (arXiv 2002.09797), section 3, applied within each class.
    """
    checks.positive_integer("num_classes", num_classes)
    checks.positive_integer("k", k)
    real_points, fake_points = _flattened_pair("real", real, "fake", fake)
    for name, points, labels in (("real", real_points, real_labels), ("fake", fake_points, fake_labels)):
        if np.shape(labels) != points.shape[:1]:
            raise ValueError(
                f"{name}_labels has shape {np.shape(labels)}: {points.shape[:1]} is needed, as {name} has."
            )
        checks.integer_labels(f"{name}_labels", labels, num_classes)
    per_class = []
    for one_class in range(num_classes):
        real_members = real_points[np.asarray(real_labels) == one_class]
        fake_members = fake_points[np.asarray(fake_labels) == one_class]
        _enough_points(f"class {one_class} of real", real_members, k)
        _enough_points(f"class {one_class} of fake", fake_members, k)
        per_class.append(prdc(real_members, fake_members, k))
    table = np.array(per_class).T
    return ClassPRDC(PRDC(*table.mean(axis=1).tolist()), *table)


def class_agreement(predicted: ArrayLike, intended: ArrayLike) -> float:
    r"""Fraction of samples to which a classifier assigns the class they were drawn for.

    agreement = (1/m) \sum_j 1[predicted_j = intended_j]. The classifier should not be the generator itself.

    Args:
      predicted: ``(m,)`` integers.
      intended: ``(m,)`` integers.

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: if the arrays are empty or differ in shape.
      TypeError: if either is not integer.

    Example:
      >>> class_agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 3]))
      0.75
    """
    checks.array("predicted", predicted)
    checks.array("intended", intended)
    predicted_classes, intended_classes = np.asarray(predicted), np.asarray(intended)
    for name, classes in (("predicted", predicted_classes), ("intended", intended_classes)):
        if classes.ndim != 1 or classes.size == 0 or classes.shape != predicted_classes.shape:
            raise ValueError(
                f"{name} has shape {classes.shape}: predicted and intended must be (m,) alike, with m >= 1."
            )
        if not np.issubdtype(classes.dtype, np.integer):
            raise TypeError(f"{name} has dtype {classes.dtype}: integer class labels are needed.")
    return float(np.mean(predicted_classes == intended_classes))


def nearest_neighbours(queries: ArrayLike, references: ArrayLike, k: int = 1) -> NearestNeighbours:
    """The k nearest references of each query in Euclidean distance, nearest first.

    With samples as queries and training data as references, a distance of zero is a copy.

    Args:
      queries: ``(n, D)``, or ``(n, ...)`` which is flattened.
      references: ``(m, D)``, or ``(m, ...)``.
      k: how many, at most m.

    Returns:
      ``NearestNeighbours(indices (n, k), distances (n, k))``; memory stays within blocks of 32 MiB.

    Raises:
      ValueError: for fewer than k references, non-finite entries, or shapes that do not agree.

    Example:
      >>> neighbours = nearest_neighbours(np.array([[0.9], [7.0]]), np.array([[0.0], [1.0], [4.0]]))
      >>> neighbours.indices.tolist(), np.round(neighbours.distances, 3).tolist()
      ([[1], [2]], [[0.1], [3.0]])
    """
    checks.positive_integer("k", k)
    query_points, reference_points = _flattened_pair("queries", queries, "references", references)
    if reference_points.shape[0] < k:
        raise ValueError(f"references holds {reference_points.shape[0]} points: at least k = {k} are needed.")
    unit = extreme_unit(query_points, reference_points)
    query_points, reference_points = query_points / unit, reference_points / unit
    indices = np.empty((query_points.shape[0], k), np.intp)
    distances = np.empty((query_points.shape[0], k))
    for rows, squared in _distance_blocks(query_points, reference_points):
        indices[rows] = np.argsort(squared, axis=1, kind="stable")[:, :k]
        distances[rows] = np.sqrt(np.take_along_axis(squared, indices[rows], axis=1))
    return NearestNeighbours(indices, distances * unit)


def within_range(images: ArrayLike, low: float, high: float) -> float:
    r"""Fraction of pixels that lie in [low, high]; a NaN lies outside.

    Below 1, chains have left the cube of valid images, and pictures clipped for display hide it.

    Args:
      images: array of any shape.
      low: the least valid value, -inf for none.
      high: the greatest valid value, inf for none.

    Returns:
      A float in [0, 1].

    Raises:
      ValueError: if ``images`` is empty, low > high, or either is no single number.
      TypeError: if any of them is no real number.

    Example:
      >>> within_range(np.array([-1.0, 0.0, 1.0, 1.5]), -1.0, 1.0)
      0.75
    """
    checks.array("images", images)
    pixels = np.asarray(images)
    if pixels.size == 0:
        raise ValueError(f"images has shape {pixels.shape}: at least one pixel is needed.")
    for name, value in (("low", low), ("high", high)):
        checks.array(name, value, (), "one number, shape (),")
    if not low <= high:
        raise ValueError(f"low={low!r} and high={high!r}: low must be at most high.")
    return float(np.mean((pixels >= low) & (pixels <= high)))
