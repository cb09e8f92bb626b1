"""Errors about memories and queries: they name the argument, what was wrong and what is accepted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.validation import pattern_matrix, spins, vector


def test_a_pattern_matrix_keeps_its_floats_and_widens_integers():
    for given in ([[1, -1, 1]], np.array([[1, -1, 1]], np.int8), np.array([[1.0, -1.0, 1.0]])):
        matrix = pattern_matrix("patterns", given)
        assert isinstance(matrix, jax.Array)
        assert matrix.dtype == jnp.float32
        np.testing.assert_array_equal(matrix, [[1, -1, 1]])
    assert pattern_matrix("patterns", np.array([[True, False]])).dtype == jnp.float32
    assert pattern_matrix("patterns", jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        assert pattern_matrix("patterns", np.array([[1, 2]])).dtype == jnp.float64
        assert pattern_matrix("patterns", np.ones((1, 2), np.float32)).dtype == jnp.float32


@pytest.mark.parametrize("patterns", [1.0, [1.0, 2.0], np.ones((2, 3, 4)), np.ones((0, 3)), np.ones((3, 0))])
def test_a_pattern_matrix_has_memories_and_coordinates(patterns):
    with pytest.raises(
        ValueError, match=r"stored has shape \(.*\): \(K, D\) is needed, K >= 1 memories of D >= 1"
    ):
        pattern_matrix("stored", patterns)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_pattern_matrix_is_finite(bad):
    with pytest.raises(ValueError, match=r"stored holds 1 non-finite entries .* of 4"):
        pattern_matrix("stored", [[1.0, bad], [0.0, 2.0]])


def test_spins_are_minus_one_and_one():
    spins("query", np.array([-1, 1, 1]))
    spins("query", jnp.array([[-1.0, 1.0]]))
    spins("query", [0, -1, 1], unknown=True)
    with pytest.raises(
        ValueError, match=r"query holds 1 entries of 3 that are no spins, such as 0: -1 and 1 are"
    ):
        spins("query", [0, -1, 1])
    with pytest.raises(
        ValueError, match=r"query holds 2 entries of 3 .* such as 0.5: -1, 0 \(unknown\) and 1 are"
    ):
        spins("query", [0.5, -2.0, 0.0], unknown=True)
    with pytest.raises(ValueError, match="no spins, such as nan"):
        spins("query", [np.nan, 1.0], unknown=True)


def test_grey_values_are_told_where_to_go():
    with pytest.raises(
        ValueError, match=r"real states .*; binary images become spins by 2 \* \(x > 0.5\) - 1"
    ):
        spins("patterns", [[0.2, 0.9]])


def test_a_vector_has_its_length():
    vector("bias", [1.0, 2.0], 2, "one number each")
    for value in (1.0, [1.0], [[1.0, 2.0]], np.ones(3)):
        with pytest.raises(ValueError, match=r"bias has shape \(.*\): \(2,\) is needed, one number each\."):
            vector("bias", value, 2, "one number each")


def test_traced_values_pass_but_traced_shapes_do_not():
    @jax.jit
    def check(values):
        spins("query", values)
        vector("query", values, 2, "two")
        return pattern_matrix("patterns", values[None, :])

    np.testing.assert_array_equal(check(jnp.array([0.5, 3.0])), [[0.5, 3.0]])
    assert np.isnan(check(jnp.array([jnp.nan, 3.0]))[0, 0])
    with pytest.raises(ValueError, match=r"query has shape \(3,\): \(2,\)"):
        check(jnp.ones(3))
