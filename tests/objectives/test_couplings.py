"""The pairs of noise and data are those of least total distance; paths are straight and times even."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxebm.objectives import couple, draw_paths

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def squared_distances(noise, data):
    return np.sum((np.asarray(noise)[:, None] - np.asarray(data)[None]) ** 2, axis=-1)


def test_pairs_are_those_of_the_best_of_all_permutations():
    data, noise = jax.random.normal(jax.random.key(0), (2, 6, 3))
    cost = squared_distances(noise, data)
    best = min(sum(cost[i, j] for j, i in enumerate(order)) for order in itertools.permutations(range(6)))
    paired = couple(noise, data)
    np.testing.assert_allclose(jnp.sum((paired - data) ** 2), best, rtol=1e-5)
    # A permutation: nothing is drawn twice.
    chex.assert_trees_all_equal(jnp.sort(paired, axis=0), jnp.sort(noise, axis=0))


def test_pairs_agree_with_scipy_and_are_made_within_blocks():
    data, noise = jax.random.normal(jax.random.key(1), (2, 200, 2)) * jnp.array([[[1.0, 3.0]]])
    paired = np.asarray(couple(noise, data))
    for rows in (slice(0, 128), slice(128, 200)):
        cost = squared_distances(noise[rows], data[rows])
        least = cost[linear_sum_assignment(cost)].sum()
        np.testing.assert_allclose(np.sum((paired[rows] - data[rows]) ** 2), least, rtol=1e-5)


def test_noise_stays_within_its_class():
    data, noise = jax.random.normal(jax.random.key(4), (2, 40, 2)) * 5.0
    labels = jnp.arange(40) % 3
    paired = np.asarray(couple(noise, data, labels))
    for label in range(3):
        rows = np.asarray(labels) == label
        cost = squared_distances(np.asarray(noise)[rows], np.asarray(data)[rows])
        least = cost[linear_sum_assignment(cost)].sum()
        np.testing.assert_allclose(np.sum((paired[rows] - np.asarray(data)[rows]) ** 2), least, rtol=1e-5)


def test_examples_of_several_leaves_are_paired_as_a_whole():
    data = {"a": jnp.array([[0.0], [10.0]]), "b": jnp.array([0.0, 1.0])}
    noise = {"a": jnp.array([[9.0], [1.0]]), "b": jnp.array([5.0, 7.0])}
    chex.assert_trees_all_equal(
        couple(noise, data), {"a": jnp.array([[1.0], [9.0]]), "b": jnp.array([7.0, 5.0])}
    )


@pytest.mark.parametrize("coupling", ["optimal", "independent"])
def test_paths_are_straight_from_noise_of_the_given_scale_to_the_data(coupling):
    data = jnp.tile(jnp.array([3.0, -1.0]), (512, 1))  # one point: the noise keeps its distribution
    paths = draw_paths(jax.random.key(2), data, coupling=coupling, source_scale=2.0)
    time = paths.time[:, None]
    chex.assert_trees_all_close(paths.position + (1 - time) * paths.velocity, data, atol=1e-5)
    noise = paths.position - time * paths.velocity
    error = 2.0 / np.sqrt(2 * noise.size)
    assert abs(float(jnp.std(noise)) - 2.0) < 4 * error
    assert np.array_equal(np.floor(np.sort(paths.time) * 512), np.arange(512))  # one in each 512th


def test_the_time_of_a_datum_does_not_depend_on_its_place():
    """Batches of several strata hold one stratum after another."""
    draw = jax.jit(jax.vmap(lambda key: draw_paths(key, jnp.ones((8, 1)), coupling="independent").time))
    times = draw(jax.random.split(jax.random.key(5), 4000))
    error = np.sqrt(1 / 12 / 4000)
    assert np.all(np.abs(times.mean(axis=0) - 0.5) < 5 * error)


def test_positions_keep_their_dtype():
    paths = draw_paths(jax.random.key(0), jnp.ones((4, 2), jnp.bfloat16))
    assert (paths.position.dtype, paths.velocity.dtype, paths.time.dtype) == (
        jnp.bfloat16,
        jnp.float32,
        jnp.float32,
    )


def test_pairs_are_optimal_far_from_zero():
    data, noise = jax.random.normal(jax.random.key(6), (2, 30, 2))
    far = 1e3 + 0.01 * data
    # A shift of all data changes no assignment; in float64, where the shift costs no digits.
    least = linear_sum_assignment(squared_distances(noise, np.asarray(far, np.float64) - 1e3))
    chosen = np.asarray(couple(noise, far))
    np.testing.assert_array_equal(chosen[least[1]], np.asarray(noise)[least[0]])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="coupling='sinkhorn'"):
        draw_paths(jax.random.key(0), jnp.ones((4, 2)), coupling="sinkhorn")
    with pytest.raises(ValueError, match="source_scale"):
        draw_paths(jax.random.key(0), jnp.ones((4, 2)), source_scale=0.0)
    with pytest.raises(ValueError, match="noise"):
        couple(jnp.ones((4, 3)), jnp.ones((4, 2)))
    with pytest.raises(TypeError, match="labels has dtype float32"):
        couple(jnp.ones((4, 2)), jnp.ones((4, 2)), jnp.ones(4))
    with pytest.raises(ValueError, match="labels"):
        draw_paths(jax.random.key(0), jnp.ones((4, 2)), jnp.zeros(3, int))
    with pytest.raises(TypeError, match="data"):
        couple(jnp.ones((4, 3)), jnp.ones((4, 3), jnp.int32))
