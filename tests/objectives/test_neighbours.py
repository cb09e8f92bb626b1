"""Energies of points around examples, against one energy at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import joint_energy
from jaxebm.objectives import Batch
from jaxebm.objectives.examples import learnt_energy
from jaxebm.objectives.neighbours import energies_around

KEY = jax.random.key(0)
XS = jnp.arange(6.0).reshape(3, 2)
LABELS = jnp.array([2, 0, 1])


def shifted(rng_key, x):
    """Each example and two points beside it, one of them random."""
    noise = jax.random.normal(rng_key, ())
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1.0, leaf + noise]), x)


def energy(params, x):
    return params * jnp.sum(x**2)


def around(function, batch, points=shifted, params=0.5):
    return energies_around(learnt_energy(function), points, params, KEY, batch, objective="mine")


def test_energies_stand_by_example_and_point_and_each_example_has_its_key():
    found = around(energy, Batch(None, None, XS))
    noise = jax.vmap(jax.random.normal)(jax.random.split(KEY, 3))
    wanted = [
        [energy(0.5, x), energy(0.5, x + 1), energy(0.5, x + n)] for x, n in zip(XS, noise, strict=True)
    ]
    np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-5)
    assert len(np.unique(noise)) == 3


def test_points_have_the_class_of_their_example():
    def logits(params, x):
        return params * jnp.array([1.0, 10.0, 100.0]) * jnp.sum(x)

    # What is not read is NaN.
    found = around(joint_energy(logits), Batch(XS, LABELS, jnp.full_like(XS, jnp.nan)))
    scales = np.array([100.0, 1.0, 10.0])
    np.testing.assert_allclose(found[:, 0], -0.5 * scales * np.asarray(XS).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], -0.5 * scales * (np.asarray(XS).sum(axis=1) + 2), rtol=1e-6)


def test_examples_may_be_trees():
    def of_tree(params, x):
        return params * (jnp.sum(x["a"] ** 2) + x["b"] ** 2)

    found = around(of_tree, Batch(None, None, {"a": XS[:, :1], "b": XS[:, 1]}))
    np.testing.assert_allclose(found, around(energy, Batch(None, None, XS)), rtol=1e-6)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="mine needs labels"):
        around(joint_energy(lambda params, x: params * x), Batch(None, None, XS))
    with pytest.raises(ValueError, match="points has"):
        around(energy, Batch(None, None, XS), points=lambda rng_key, x: jnp.sum(x))
    with pytest.raises(TypeError, match=r"batch\.x_data has dtype int32"):
        around(energy, Batch(None, None, XS.astype(int)))
