"""Learners of every kind of data, network and objective that users have, through the one call that trains."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxebm.data import Examples
from jaxebm.energies import MLP, from_nnx, unbatched
from jaxebm.objectives import (
    Objective,
    classifier,
    contrastive_divergence,
    ignore_label,
    jem,
    likelihood,
    persistent,
    short_run,
    with_adversarial_examples,
    with_last_step,
)
from jaxebm.samplers import sgld
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# As NumPy makes them: in double precision, with 64-bit labels.
X, LABELS = RNG.normal(size=(40, 3)), RNG.integers(0, 2, size=40)
KERNEL = partial(sgld, step_size=0.1)
CHAINS = persistent(KERNEL, num_steps=2, num_chains=8, capacity=16)


def trained(objective, params, data, negatives=None, num_steps=2, **options):
    """The result, after a look at what every run has to leave: other parameters, all numbers finite."""
    options = {"optimizer": optax.adam(1e-2), "batch_size": 8} | options
    learn = learner(objective, negatives=negatives, **options)
    result = fit(KEY, learn, params, data, num_steps=num_steps, steps_per_dispatch=2)
    start = learn.init(KEY, params, data).params
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, result.state.params)
    assert any(jax.tree.leaves(changed))
    assert jax.tree.structure(result.params) == jax.tree.structure(start)
    for leaf in jax.tree.leaves((result.params, result.state.params)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
    for record in result.history:
        assert np.isfinite(list(record.values())).all()
    assert int(result.state.step) == num_steps
    return result


# --- networks ---


def test_parameters_are_made_by_the_module():
    network = MLP(None, widths=(4,))
    result = trained(likelihood(network.apply, energy_l2=0.1), network.init, X, CHAINS)
    assert jax.tree.leaves(result.params)[-1].shape == (4, 1)


class Batched(nn.Module):
    """A linen module as most people write one: it wants a batch."""

    @nn.compact
    def __call__(self, xs):
        return nn.Dense(2)(nn.tanh(nn.Dense(4)(xs.reshape(len(xs), -1))))


def test_a_linen_module_that_wants_a_batch():
    network = Batched()
    params = network.init(KEY, jnp.zeros((1, 3)))
    result = trained(jem(unbatched(network.apply)), params, (X, LABELS), CHAINS)
    assert {"cross_entropy", "energy_gap", "chain_spread"} <= result.history[-1].keys()


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, xs):
        return self.out(nnx.tanh(self.norm(self.hidden(xs))))


def test_an_nnx_module():
    model = Network(nnx.Rngs(0))
    logits, params = from_nnx(model)
    chains = persistent(KERNEL, num_steps=2, num_chains=8, capacity=16, num_classes=2)
    result = trained(jem(logits, p_xy_weight=0.5), params, (X, LABELS), chains)
    nnx.update(model, result.params)
    np.testing.assert_array_equal(model.hidden.kernel[...], result.params["hidden"]["kernel"][...])


def test_chains_of_fewer_classes_than_the_labels_are_refused():
    """By default all chains are of class 0: with E(x, y) no other class would be contrasted."""
    conditional, marginal = jem(MLP(2).apply, p_xy_weight=0.5), jem(MLP(2, widths=(4,)).apply)
    with pytest.raises(ValueError, match="num_classes=1, and the labels of data go up to 1"):
        learner(conditional, optimizer=optax.sgd(0.1), negatives=CHAINS, batch_size=8).init(
            KEY, MLP(2).init, (X, np.arange(40) % 2)
        )
    learner(marginal, optimizer=optax.sgd(0.1), negatives=CHAINS, batch_size=8).init(
        KEY, MLP(2, widths=(4,)).init, (X, LABELS)
    )


@pytest.mark.parametrize(
    ("objective", "labels", "named"),
    [
        (jem(MLP(2, widths=(4,)).apply), np.arange(40) % 3, "the label 2, and there are 2 logits"),
        (likelihood(MLP(2, widths=(4,)).apply), LABELS, r"energy has shape \(2,\) for one example"),
        (jem(lambda params, xs: xs @ params), LABELS, "unbatched"),
        (jem(MLP(None, widths=(4,)).apply), LABELS, r"logits has shape \(\) for one example"),
    ],
)
def test_functions_and_labels_that_do_not_fit_are_refused_before_any_update(objective, labels, named):
    learn = learner(objective, optimizer=optax.sgd(0.1), negatives=CHAINS, batch_size=8)
    params = MLP(2, widths=(4,)).init
    if "unbatched" in named:
        params = jnp.zeros((4, 2))
    if "logits has shape" in named:
        params = MLP(None, widths=(4,)).init
    with pytest.raises(ValueError, match=named):
        learn.init(KEY, params, (X, labels))


@pytest.mark.parametrize("make", [likelihood, jem, classifier])
def test_a_module_in_the_place_of_its_function_is_refused(make):
    with pytest.raises(TypeError, match=r"module MLP.*module\.apply"):
        make(MLP(2))


def test_accumulated_gradients_are_no_fault_of_the_optimiser():
    """`optax.MultiSteps` empties its accumulator: its state shrinks to nothing every few updates."""
    network = MLP(None, widths=(4,))
    optimizer = optax.MultiSteps(optax.sgd(1e-2), 2)
    result = trained(likelihood(network.apply), network.init, X, CHAINS, num_steps=6, optimizer=optimizer)
    assert result.recoveries == ()


def test_a_bound_kernel_is_refused():
    with pytest.raises(TypeError, match="make_kernel is a kernel that is bound"):
        persistent(sgld(lambda x: jnp.sum(x**2), step_size=0.1), num_steps=1, num_chains=2)


# --- data ---


def test_x_may_be_any_pytree():
    """Two arrays an example; chains, noise and batches follow its structure, from the default start on."""

    def energy(params, x):
        return jnp.sum((x["image"] - params["image"]) ** 2) + (x["scale"] - params["scale"]) ** 2

    data = {"image": 2.0 + RNG.normal(size=(40, 2, 2)), "scale": RNG.normal(size=40)}
    params = {"image": jnp.zeros((2, 2)), "scale": jnp.zeros(())}
    # The gradient leads to where the chains' mean, and so the well, is that of the data: 2 in each entry.
    result = trained(
        likelihood(energy),
        params,
        data,
        CHAINS,
        num_steps=60,
        optimizer=optax.sgd(0.1),
        noise=0.01,
        batch_size=40,
    )
    positions = result.state.sampler_state.buffer.positions
    assert jax.tree.map(jnp.shape, positions) == {"image": (16, 2, 2), "scale": (16,)}
    np.testing.assert_allclose(result.state.params["image"], data["image"].mean(axis=0), atol=0.8)


@pytest.mark.parametrize("make", [partial(short_run, num_chains=8), contrastive_divergence])
def test_unlabelled_data_with_chains_that_keep_nothing(make):
    network = MLP(None, widths=(4,))
    trained(likelihood(network.apply), network.init, X, make(KERNEL, num_steps=2))


def test_more_examples_without_labels():
    network = MLP(2, widths=(4,))
    data = Examples(X, LABELS, RNG.normal(size=(90, 3)))
    result = trained(jem(network.apply, p_x_weight=0.5), network.init, data, CHAINS)
    assert result.state.streams.labelled.permutation.shape == (40,)
    assert result.state.streams.x_data.permutation.shape == (90,)


def test_data_drawn_by_a_function_learn_its_law():
    """E(x; t) = |x - t|^2 / 2: the mean of the draws, 3, within 5 standard deviations of an AR(1) process."""

    def draw(rng_key, batch_size):
        return 3.0 + jax.random.normal(rng_key, (batch_size, 1))

    def energy(params, x):
        return 0.5 * jnp.sum((x - params) ** 2)

    # A step of 1 on a Hessian of 1 ends at t + N(0, 2), wherever it began; only the mean of that counts.
    chains = contrastive_divergence(partial(sgld, step_size=1.0), num_steps=1)
    result = trained(
        likelihood(energy),
        jnp.zeros(1),
        draw,
        chains,
        num_steps=400,
        optimizer=optax.sgd(0.05),
        batch_size=64,
    )
    deviation = np.sqrt(0.05**2 * (1 + 2) / 64 / (1 - 0.95**2))
    assert abs(float(result.state.params[0]) - 3.0) < 5 * deviation


def test_bytes_are_rescaled():
    network = MLP(2, widths=(4,))
    pixels = RNG.integers(0, 256, size=(40, 2, 2), dtype=np.uint8)
    result = trained(
        jem(network.apply),
        network.init,
        (pixels, LABELS),
        CHAINS,
        rescale=lambda x: x.astype(jnp.float32) / 127.5 - 1.0,
    )
    assert result.state.sampler_state.buffer.positions.dtype == jnp.float32


def test_bfloat16_parameters():
    network = MLP(2, widths=(4,))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), network.init(KEY, jnp.zeros(3)))
    result = trained(jem(network.apply), params, (X, LABELS), CHAINS)
    assert {leaf.dtype for leaf in jax.tree.leaves((result.params, result.state.params))} == {
        jnp.dtype(jnp.bfloat16)
    }


# --- objectives ---


def test_an_objective_of_ones_own_without_negatives():
    """Least squares through an energy: no chains, no labels, and none of their metrics."""

    def energy(params, x):
        return params @ x

    def loss(params, rng_key, batch, negatives):
        assert negatives.positions is None
        assert batch.labels is None
        energies = jax.vmap(energy, (None, 0))(params, batch.x_data)
        return jnp.mean((energies - 1.0) ** 2), {"energy_data": jnp.mean(energies)}

    result = trained(Objective(ignore_label(energy), loss), jnp.zeros(3), X)
    assert "chain_spread" not in result.history[-1]
    assert result.state.sampler_state == type(result.state.sampler_state)()


def test_a_classifier_learns_its_classes():
    network = MLP(2, widths=(8,))
    labels = (X[:, 0] > 0).astype(int)
    result = trained(
        classifier(network.apply), network.init, (X, labels), num_steps=60, optimizer=optax.adam(0.05)
    )
    assert result.history[0]["cross_entropy"] > 3 * result.history[-1]["cross_entropy"]
    assert "energy_gap" not in result.history[-1]


def test_everything_at_once():
    network = MLP(2, widths=(4,))
    chains = persistent(KERNEL, num_steps=2, num_chains=8, capacity=16, num_classes=2)
    objective = jem(network.apply, p_xy_weight=0.5, contrast="binary", energy_l2=0.1, label_smoothing=0.1)
    objective = with_adversarial_examples(objective, network.apply, radius=0.1, num_steps=2)
    result = trained(with_last_step(objective, KERNEL), network.init, (X, LABELS), chains)
    assert {"joint_energy_gap", "joint_binary_cross_entropy", "neighbour_entropy"} <= result.history[
        -1
    ].keys()
