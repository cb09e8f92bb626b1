"""Stratified selections: sizes, the very rows of every published figure, and unfit arguments."""

import numpy as np
import pytest

from jaxebm.data import load_dataset, stratified_holdout, stratified_split, stratified_subset

LABEL = np.repeat(np.arange(3), [20, 10, 4])


def test_holdout_keeps_the_proportions_of_the_classes() -> None:
    rest, held_out = stratified_holdout(LABEL, 17)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held_out])), np.arange(34))
    np.testing.assert_array_equal(np.bincount(LABEL[held_out]), [10, 5, 2])
    np.testing.assert_array_equal(held_out[:5], stratified_holdout(LABEL, 17)[1][:5])


def test_split_is_the_same_every_time() -> None:
    train, validation, test = stratified_split(LABEL)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation, test])), np.arange(len(LABEL)))
    np.testing.assert_array_equal(validation, [10, 17, 23, 33])
    np.testing.assert_array_equal(test, [1, 8, 18, 19, 22, 25, 32])
    assert [len(part) for part in stratified_split(np.zeros(3, np.int32))] == [1, 1, 1]


def test_split_by_other_fractions() -> None:
    parts = stratified_split(LABEL, validation_fraction=0.25, test_fraction=0.5)
    counts = [np.bincount(LABEL[part]).tolist() for part in parts]
    assert counts == [[5, 3, 1], [5, 2, 1], [10, 5, 2]]


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.0, 0.2), "validation_fraction=0.0"),
        ((0.1, 1.0), "test_fraction=1.0"),
        ((0.1, float("nan")), "test_fraction=nan"),
        ((0.5, 0.5), "leave none of the 20 examples of class 0 to train on"),
        ((0.25, 0.65), "leave none of the 4 examples of class 2 to train on"),
    ],
)
def test_impossible_fractions_are_named(fractions: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stratified_split(LABEL, *fractions)


def test_subset_takes_the_first_of_each_class_in_a_shuffled_order() -> None:
    label = load_dataset("digits").train.label
    rows = stratified_subset(label, 3, seed=5)
    order = np.random.default_rng(5).permutation(len(label))
    expected = np.concatenate([order[label[order] == y][:3] for y in range(10)])
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(label[rows], np.repeat(np.arange(10), 3))
    assert set(rows[:3]) != set(stratified_subset(label, 3, seed=6)[:3])
    np.testing.assert_array_equal(np.sort(stratified_subset(LABEL, 4, seed=0))[-4:], [30, 31, 32, 33])


@pytest.mark.parametrize("number", [0, 5, 1.5])
def test_impossible_numbers_of_labels_are_named(number: int) -> None:
    with pytest.raises(ValueError, match=f"labels_per_class={number}"):
        stratified_subset(LABEL, number, seed=0)
    with pytest.raises(ValueError, match="labels_per_class=1: the smallest class has 0 examples"):
        stratified_subset(np.array([0, 2]), 1, seed=0)
