"""What a user hands over as training data, and how it is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import Examples, as_examples

X, LABELS = np.zeros((3, 2), np.float32), np.array([0, 1, 0])


def draw(rng_key, batch_size):
    return jax.random.normal(rng_key, (batch_size, 2))


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(np.uint8), jnp.asarray(LABELS)])
@pytest.mark.parametrize("pair", [tuple, list])
def test_examples_and_their_labels(labels, pair):
    examples = as_examples(pair((X, labels)))
    assert examples.x is X
    assert examples.labels is labels
    assert examples.unlabelled is None
    assert examples.x_data is X
    assert not examples.is_sampler


@pytest.mark.parametrize(
    "x",
    [
        X,
        {"a": X, "b": np.zeros(3)},
        (X, X, X),
        {"x": X, "n": LABELS},
    ],
    ids=["array", "dict", "triple", "integers in a dict"],
)
def test_anything_else_is_examples_without_labels(x):
    examples = as_examples(x)
    assert examples.x is x
    assert examples.labels is None


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (np.zeros((3, 1), int), r"labels of shape \(3, 1\)"),
        (np.eye(3), r"labels of shape \(3, 3\).*argmax"),
        (np.zeros(3), "labels of dtype float64"),
        ([[0], [1, 2], [0]], "labels that are not an array"),
        (np.array([0, -1, 1]), "the label -1.*unlabelled"),
    ],
)
def test_a_pair_is_read_as_labelled_and_says_so(labels, named):
    with pytest.raises((ValueError, TypeError), match=named):
        as_examples((X, labels))


def test_a_pair_that_looks_labelled_can_be_given_as_it_is_meant():
    examples = as_examples(Examples((X, LABELS)))
    assert examples.labels is None
    assert examples.x[1] is LABELS


def test_unlabelled_examples_are_what_p_x_learns_from():
    unlabelled = np.ones((5, 2), np.float32)
    assert as_examples(Examples(X, LABELS, unlabelled)).x_data is unlabelled


def test_it_reads_traced_data():
    @jax.jit
    def shapes(data):
        examples = as_examples(data)
        assert examples.labels is not None
        return examples.x_data

    np.testing.assert_array_equal(shapes((X, LABELS)), X)
    np.testing.assert_array_equal(shapes(Examples(X, LABELS)), X)


def test_a_function_passes_through_jit_and_is_not_traced_again():
    traces = []

    @jax.jit
    def first(data):
        traces.append(None)
        assert data.is_sampler
        return data.x(jax.random.key(0), 4)

    for _ in range(2):
        np.testing.assert_array_equal(first(as_examples(draw)), draw(jax.random.key(0), 4))
        assert as_examples(as_examples(draw)).x is not draw
    assert len(traces) == 1
    again = as_examples(as_examples(draw))
    assert again == as_examples(again)


@pytest.mark.parametrize(
    ("data", "kind", "named"),
    [
        ((X, np.array([0, 1])), ValueError, r"labels of shape \(2,\) for 3 examples"),
        (Examples(X, np.zeros((3, 4), int)), ValueError, r"labels of shape \(3, 4\)"),
        (Examples(X, np.zeros(3)), TypeError, "labels of dtype float64"),
        (np.zeros((0, 2)), ValueError, "data has leaves of shapes"),
        ({"a": X, "b": np.zeros(4)}, ValueError, "data has leaves of shapes"),
        (3.0, ValueError, "data has leaves"),
        ({}, ValueError, "data has no arrays"),
        (Examples(X, LABELS, np.zeros((0, 2))), ValueError, "data.unlabelled has leaves"),
        (
            Examples(X, LABELS, np.zeros((5, 3), np.float32)),
            ValueError,
            r"data.unlabelled holds examples of float32\(3,\) and data.x of float32\(2,\)",
        ),
        (
            Examples(X, LABELS, np.zeros((5, 2), np.uint8)),
            ValueError,
            r"data.unlabelled holds examples of uint8\(2,\) and data.x of float32\(2,\).*scaled alike",
        ),
        (Examples(X, LABELS, {"a": X}), ValueError, "data.unlabelled holds examples"),
        (Examples(draw, LABELS), ValueError, "data.x is a function.*no labels"),
        (Examples(draw, None, X), ValueError, "data.x is a function"),
    ],
)
def test_bad_data_are_named(data, kind, named):
    with pytest.raises(kind, match=named):
        as_examples(data)


def test_double_precision_is_one_kind_with_single_precision_where_it_becomes_that():
    assert as_examples(Examples(X, LABELS, np.zeros((5, 2)))).unlabelled.dtype == np.float64
