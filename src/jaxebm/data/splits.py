"""Stratified selections of labelled examples: every part gets its share of every class.

There are three, because published results depend on their random numbers:

- `stratified_holdout` makes two parts with scikit-learn's random numbers and rounding, for digits and
  tensorflow-datasets;
- `stratified_split` makes three parts, with rounding for each class and numpy's frozen generator, for arrays
  of a user, without scikit-learn;
- `stratified_subset` takes the same number of each class, in an order that depends on a seed, for few labels.

The last two share `_divide`. scikit-learn uses another order of random numbers and another rounding: its
sizes of the classes add up to a given total.
"""

from typing import Any

import numpy as np

from jaxebm import checks

__all__ = ["stratified_holdout", "stratified_split", "stratified_subset"]


def _checked(label: Any) -> np.ndarray:
    label = np.asarray(label)
    checks.one_label_each("label", label, label.size)
    if label.size == 0 or label.min() < 0:
        raise ValueError("label is empty or has negative entries: class numbers 0..K-1 are needed.")
    return label


def stratified_holdout(label: np.ndarray, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides 0..n-1 into two parts with the proportions of the classes, always in the same way.

    Args:
      label: Integer labels (n,), each class at least twice.
      num_held_out: Size of the second part, an integer from the number of classes to n minus that.

    Returns:
      The indices of both parts, in random order: (n - num_held_out,) and (num_held_out,).

    Raises:
      ImportError: If scikit-learn is not installed.
      ValueError: If ``num_held_out`` is not such an integer, or a label is negative or there once only.
      TypeError: If the labels are not integers.

    Example:
      >>> rest, held_out = stratified_holdout(np.repeat([0, 1], [20, 10]), 6)
      >>> len(rest), np.bincount(np.repeat([0, 1], [20, 10])[held_out]).tolist()
      (24, [4, 2])

    Reference:
      Pedregosa et al., "Scikit-learn", JMLR 12, 2011: ``train_test_split``.
    """
    label = _checked(label)
    values, counts = np.unique(label, return_counts=True)
    if np.any(counts == 1):
        raise ValueError(f"label has one example only of class {values[counts == 1][0]}: two are needed.")
    checks.integer("num_held_out", num_held_out, len(values), len(label) - len(values))
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(label))
    rest, held_out = train_test_split(rows, test_size=num_held_out, stratify=label, random_state=0)
    return np.asarray(rest), np.asarray(held_out)


def stratified_split(
    label: np.ndarray, validation_fraction: float = 0.1, test_fraction: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divides 0..n-1 into train, validation and test, each with every class, always in the same way.

    From each class of n_k examples, max(1, round(fraction * n_k)) go to validation and to test; the rest is
    train.

    Args:
      label: Integer labels (n,), each class at least three times.
      validation_fraction: Part of each class for validation, between 0 and 1.
      test_fraction: Part of each class for test, between 0 and 1.

    Returns:
      The indices of train, validation and test, each sorted.

    Raises:
      ValueError: If a fraction is not between 0 and 1, a label is negative, or a class would have no training
        example.
      TypeError: If the labels are not integers.

    Example:
      >>> train, validation, test = stratified_split(np.repeat([0, 1], 10))
      >>> len(train), len(validation), len(test)
      (14, 2, 4)
    """
    validation, test = fraction_of_each_class(
        label, validation_fraction=validation_fraction, test_fraction=test_fraction
    )
    return np.setdiff1d(np.arange(len(label)), np.concatenate([validation, test])), validation, test


def fraction_of_each_class(label: np.ndarray, **fractions: float) -> list[np.ndarray]:
    """Takes parts of 0..n-1, each with its fraction of every class, and leaves at least one of every class.

    Args:
      label: Integer labels (n,), each class at least once more than there are parts.
      **fractions: The fraction of each part, between 0 and 1, by its name in the message.

    Returns:
      The indices of the parts, each sorted, without an index that is in two.

    Raises:
      ValueError: If a fraction is not between 0 and 1, a label is negative, or a class would have none left.
      TypeError: If the labels are not integers.
    """
    label = _checked(label)
    for name, fraction in fractions.items():
        checks.fraction(name, fraction)
    random = np.random.RandomState(0)  # numpy guarantees its stream, unlike that of default_rng
    values, counts = np.unique(label, return_counts=True)
    ordered = [random.permutation(np.flatnonzero(label == value)) for value in values]
    # The last part comes first: published splits of three parts are in this order.
    last_first = list(reversed(fractions.values()))
    sizes = [tuple(max(1, round(fraction * count)) for fraction in last_first) for count in counts.tolist()]
    for value, count, size in zip(values, counts, sizes, strict=True):
        if sum(size) >= count:
            named = " and ".join(f"{name}={fraction}" for name, fraction in fractions.items())
            raise ValueError(
                f"{named} leave none of the {count} examples of class {value} to train on: use smaller "
                f"fractions."
            )
    *parts, _ = _divide(ordered, sizes)
    return [np.sort(part) for part in reversed(parts)]


def stratified_subset(label: np.ndarray, labels_per_class: int, seed: int) -> np.ndarray:
    """Takes the same number of examples of each class, at random.

    Args:
      label: Integer labels (n,) in 0..K-1.
      labels_per_class: How many of each class, an integer of at least 1.
      seed: Seed of the selection, an integer from 0 to 2^32 - 1.

    Returns:
      Indices (K * labels_per_class,), one class after another.

    Raises:
      ValueError: If ``labels_per_class`` is not an integer of at least 1, some class has fewer examples, a
        label is negative, or ``seed`` out of its range.
      TypeError: If the labels are not integers.

    Example:
      >>> label = np.array([1, 0, 1, 0, 1])
      >>> [int(row) % 2 for row in stratified_subset(label, 2, seed=0)]  # here odd rows are of class 0
      [1, 1, 0, 0]
    """
    label = _checked(label)
    checks.positive_integer("labels_per_class", labels_per_class)
    checks.seed("seed", seed)
    values, counts = np.unique(label, return_counts=True)
    # Counted only where there is no gap: a label of 10^12 must not take memory.
    scarce = int(counts.min()) if values[-1] == len(values) - 1 else 0
    if labels_per_class > scarce:
        raise ValueError(
            f"labels_per_class={labels_per_class}: the smallest class has {scarce} examples; label spans "
            f"0..{values[-1]}."
        )
    order = np.random.default_rng(seed).permutation(len(label))
    ordered = [order[label[order] == value] for value in range(int(label.max()) + 1)]
    return _divide(ordered, [(labels_per_class,)] * len(ordered))[0]


def _divide(ordered: list[np.ndarray], sizes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Cuts the examples of each class, in their order, into parts of given sizes and a rest.

    Args:
      ordered: The indices of each class's examples, K arrays.
      sizes: The sizes of the first P parts, for each of the K classes.

    Returns:
      P + 1 arrays of indices, one class after another; the last array has the remaining ones.
    """
    pieces = [np.split(members, np.cumsum(size)) for members, size in zip(ordered, sizes, strict=True)]
    return [np.concatenate(part) for part in zip(*pieces, strict=True)]
