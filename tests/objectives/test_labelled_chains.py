"""Chains of a class each, and the target that an energy makes of itself."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import joint_energy
from jaxebm.objectives import contrastive_divergence, last_step_loss, persistent, short_run
from jaxebm.objectives.labelled_chains import bind_target, run_labelled_chains
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.types import Kernel

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
X, LABELS = jnp.array([[1.0, 2.0], [-3.0, 0.5], [0.0, 4.0]]), jnp.array([2, 0, 1], jnp.int32)
DOWNHILL = partial(sgld, step_size=0.1, noise_scale=0.0)


def wells(params, x, label):
    return 0.5 * params * jnp.sum((x - label) ** 2)


class Bound(NamedTuple):
    """A target that a kernel may ask for its minimum."""

    params: jax.Array
    label: jax.Array

    def __call__(self, x):
        return wells(self.params, x, self.label)

    def minimum(self):
        return 1.0 * self.label


class Wells:
    """An energy with a target of its own."""

    def __call__(self, params, x, label):
        return wells(params, x, label)

    def bind(self, params, label):
        return Bound(params, label)


def halfway(target):
    """A kernel that needs more of its target than its values."""
    init = sgld(target, 0.1).init

    def step(rng_key, state):
        return state._replace(position=0.5 * (state.position + target.minimum())), None

    return Kernel(init, step)


def test_an_energy_without_bind_is_closed_over():
    target = bind_target(wells, 2.0, LABELS[0])
    np.testing.assert_allclose(target(X[0]), wells(2.0, X[0], 2))


def test_an_energy_with_bind_makes_the_target_itself():
    target = bind_target(Wells(), 2.0, LABELS[0])
    assert type(target) is Bound
    np.testing.assert_allclose(target(X[0]), wells(2.0, X[0], 2))


@pytest.mark.parametrize("energy", [wells, Wells()], ids=["closure", "bound"])
def test_chains_descend_to_their_own_class_by_the_closed_form(energy):
    ends = jax.jit(lambda x: run_labelled_chains(KEY, DOWNHILL, energy, 2.0, x, LABELS, 3))(X)
    minima = np.asarray(LABELS, np.float32)[:, None]
    np.testing.assert_allclose(ends, minima + 0.8**3 * (X - minima), rtol=1e-5)


def test_a_kernel_sees_the_bound_target():
    minima = np.asarray(LABELS, np.float32)[:, None]
    ends = jax.jit(lambda x: run_labelled_chains(KEY, halfway, Wells(), 2.0, x, LABELS, 2))(X)
    np.testing.assert_allclose(ends, minima + 0.25 * (X - minima), rtol=1e-6)
    loss, _ = jax.jit(lambda x: last_step_loss(KEY, halfway, Wells(), 2.0, x, LABELS, entropy_weight=0.0))(X)
    np.testing.assert_allclose(loss, np.mean(0.25 * np.sum((X - minima) ** 2, axis=1)), rtol=1e-6)
    with pytest.raises(AttributeError, match="minimum"):
        jax.eval_shape(lambda x: run_labelled_chains(KEY, halfway, wells, 2.0, x, LABELS, 1), X)


INITIAL = UniformInitial(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    "make",
    [
        contrastive_divergence,
        partial(short_run, initial=INITIAL, num_chains=3),
        partial(persistent, initial=INITIAL, num_chains=3, capacity=6),
    ],
    ids=["contrastive_divergence", "short_run", "persistent"],
)
def test_every_sampler_binds_so(make):
    sampler = make(halfway, num_steps=60)
    draw = jax.jit(lambda x: sampler.draw(KEY, Wells(), 2.0, x, LABELS, sampler.init(KEY, x[0]))[0])
    negatives = draw(X)
    minima = np.asarray(negatives.labels, np.float32)[:, None]
    np.testing.assert_allclose(negatives.positions, np.broadcast_to(minima, (3, 2)), atol=1e-6)


class TestClasses:
    """Of three classes 0, 1, 2 the chain of another would move by its noise alone, were it not refused."""

    logits = staticmethod(lambda params, x: params @ x)
    params, start = jnp.ones((3, 2)), jnp.zeros((2, 2))
    kernel = partial(sgld, step_size=0.1)

    @pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0, 100]])
    def test_a_class_that_does_not_exist_is_refused(self, labels):
        energy = joint_energy(self.logits)
        with pytest.raises(ValueError, match=r"labels spans .*0\.\.2 for 3 classes"):
            run_labelled_chains(
                jax.random.key(0), self.kernel, energy, self.params, self.start, jnp.array(labels), 1
            )

    def test_traced_it_gives_nan_and_leaves_the_others(self):
        energy = joint_energy(self.logits)

        @jax.jit
        def run(labels):
            return run_labelled_chains(
                jax.random.key(0), self.kernel, energy, self.params, self.start, labels, 1
            )

        found, whole = run(jnp.array([1, 3])), run(jnp.array([1, 2]))
        assert np.isnan(found[1]).all()
        np.testing.assert_array_equal(found[0], whole[0])

    def test_fractions_are_no_classes(self):
        energy, key = joint_energy(self.logits), jax.random.key(0)
        with pytest.raises(TypeError, match="labels has dtype float32: integer class labels"):
            run_labelled_chains(key, self.kernel, energy, self.params, self.start, jnp.ones(2), 1)
