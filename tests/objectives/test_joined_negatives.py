"""Negatives of several samplers: their order, their classes and their states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.objectives import Negatives, join_negatives
from jaxebm.objectives.negatives import NegativeSampler, no_negatives

KEY = jax.random.key(0)
DATA, DATA_LABELS = jnp.array([[1.0], [2.0]]), jnp.array([4, 3])


def counting(first, size, *, labels=True, displacement=True, num_classes=None):
    """A sampler that draws first, first + 1, ..., counts its draws and keeps what it is given."""
    given = []

    def init(rng_key, example):
        given.append((rng_key, example))
        return jnp.asarray(first)

    def draw(rng_key, energy, params, x_data, labels_of_data, state):
        given.append((rng_key, energy, params, x_data, labels_of_data, state))
        numbers = first + jnp.arange(size, dtype=jnp.float32)
        of_class = jnp.full(size, num_classes or 7) if labels else None
        return Negatives({"x": numbers[:, None]}, of_class, numbers / 10 if displacement else None), state + 1

    sampler = NegativeSampler(init, draw, num_classes)
    return sampler, given


def drawn(sampler, state):
    return sampler.draw(KEY, "energy", "params", DATA, DATA_LABELS, state)


def test_order_labels_and_states_are_kept():
    (one, given_one), (two, given_two) = counting(0, 3, num_classes=5), counting(100, 2, num_classes=2)
    both = join_negatives(one, two)
    state = both.init(KEY, jnp.zeros(1))
    assert [int(each) for each in state] == [0, 100]
    negatives, state = drawn(both, state)
    np.testing.assert_array_equal(negatives.positions["x"][:, 0], [0, 1, 2, 100, 101])
    np.testing.assert_array_equal(negatives.labels, [5, 5, 5, 2, 2])
    np.testing.assert_allclose(negatives.displacement, np.array([0, 1, 2, 100, 101]) / 10)
    assert [int(each) for each in state] == [1, 101]
    _, state = drawn(both, state)
    assert [int(each) for each in state] == [2, 102]
    assert both.num_classes == 5
    # Each sampler has keys of its own, and what the whole is given.
    for number in (0, 1):
        keys = [jax.random.key_data(given[number][0]) for given in (given_one, given_two)]
        assert not np.array_equal(*keys)
    assert given_one[1][1:5] == given_two[1][1:5] == ("energy", "params", DATA, DATA_LABELS)


def test_a_sampler_without_classes_gives_zeros_and_one_that_measures_nothing_hides_the_rest():
    plain, _ = counting(0, 2, labels=False)
    classes, _ = counting(10, 1, num_classes=3)
    unmeasured, _ = counting(20, 1, displacement=False)
    both = join_negatives(plain, classes)
    negatives, _ = drawn(both, both.init(KEY, jnp.zeros(1)))
    np.testing.assert_array_equal(negatives.labels, [0, 0, 3])
    assert both.num_classes == 3
    both = join_negatives(plain, unmeasured)
    negatives, _ = drawn(both, both.init(KEY, jnp.zeros(1)))
    assert negatives.displacement is None
    assert both.num_classes is None


def test_one_sampler_is_joined_to_itself():
    one, _ = counting(3, 2, num_classes=4)
    alone = join_negatives(one)
    negatives, state = drawn(alone, alone.init(KEY, jnp.zeros(1)))
    np.testing.assert_array_equal(negatives.positions["x"][:, 0], [3, 4])
    assert [int(each) for each in state] == [4]


def test_what_is_no_sampler_is_refused():
    one, _ = counting(0, 1)
    with pytest.raises(ValueError, match="samplers is empty"):
        join_negatives()
    with pytest.raises(TypeError, match=r"samplers\[1\] is of type str"):
        join_negatives(one, "chains")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"samplers\[0\] is of type list"):
        join_negatives([one])  # type: ignore[arg-type]
    joined = join_negatives(one, no_negatives())
    with pytest.raises(ValueError, match="samplers hold one that draws no negatives"):
        drawn(joined, joined.init(KEY, jnp.zeros(1)))
