"""Flow-contrastive estimation: each player's gradient, who learns when, and a truth that both stay at."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies import (
    CouplingFlow,
    gaussian,
    gaussian_mixture,
    joint_energy,
    offset_params,
    with_offset,
)
from jaxebm.objectives import Batch, Negatives, Proposal, flow_contrastive, noise_contrastive
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)
NONE = Negatives(None, None)
MIXTURE = gaussian_mixture([0.6, 1.4], [[-1.0, 0.5], [1.5, -0.5]], [0.6, 1.0])
ENERGY = with_offset(MIXTURE.energy)
FLOW = CouplingFlow(num_layers=2, widths=(4,))


def random_flow_variables(scale):
    leaves, structure = jax.tree.flatten(jax.eval_shape(FLOW.init, KEY, jnp.zeros(2)))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        structure, [jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    )


def draw_mixture(rng_key, num_samples):
    return MIXTURE.sample(rng_key, MIXTURE.params, num_samples)


def flow_log_density(variables, x):
    return FLOW.apply(variables, x, method="log_density")


VARIABLES = random_flow_variables(0.5)
PARAMS = {"energy": offset_params(MIXTURE.params, math.log(2.0)), "flow": VARIABLES}
BATCH = Batch(None, None, draw_mixture(KEY, 200))


@pytest.fixture(scope="module")
def plain():
    """Loss and gradients of plain NCE against the flow, in both sets of parameters, with the same noise."""

    def loss(params):
        proposal = Proposal(
            lambda rng_key, num_samples: FLOW.apply(params["flow"], rng_key, num_samples, method="sample"),
            lambda x: flow_log_density(params["flow"], x),
        )
        return noise_contrastive(ENERGY, proposal).loss(params["energy"], KEY, BATCH, NONE)

    (value, metrics), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)
    return value, metrics, slopes


THRESHOLDS = jnp.array([0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


@pytest.fixture(scope="module")
def gradients():
    """The same of the objective, for each threshold, by ``alternate``."""

    @jax.jit
    def of_both(thresholds):
        def one(threshold, alternate):
            objective = flow_contrastive(ENERGY, FLOW, accuracy=threshold, alternate=alternate, weight=0.5)
            (value, metrics), slopes = jax.value_and_grad(objective.loss, has_aux=True)(
                PARAMS, KEY, BATCH, NONE
            )
            return value, metrics, slopes

        return {
            alternate: jax.vmap(lambda t, a=alternate: one(t, a))(thresholds) for alternate in (True, False)
        }

    return of_both(THRESHOLDS)


def test_the_energy_descends_and_the_flow_ascends_the_same_loss(plain, gradients):
    accuracy = float(plain[1]["accuracy"])
    assert 0.5 < accuracy < 0.9
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(plain[2]["flow"])) > 1e-2
    for alternate, (value, metrics, slopes) in gradients.items():
        np.testing.assert_allclose(value, 0.5 * float(plain[0]), rtol=1e-5)
        np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
        for index, threshold in enumerate(THRESHOLDS):
            flow_learns = accuracy > threshold
            assert bool(metrics["flow_learns"][index]) == flow_learns
            factors = {"energy": 0.0 if alternate and flow_learns else 0.5, "flow": -0.5 * flow_learns}
            for player, factor in factors.items():
                found = jax.tree.map(lambda leaf, index=index: leaf[index], slopes[player])
                wanted = jax.tree.map(lambda leaf, factor=factor: factor * leaf, plain[2][player])
                chex.assert_trees_all_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_likelihood_of_the_flow_is_added():
    objective = flow_contrastive(ENERGY, FLOW, accuracy=1.0, likelihood_weight=3.0)
    slopes, metrics = jax.jit(jax.grad(objective.loss, has_aux=True))(PARAMS, KEY, BATCH, NONE)

    def log_likelihood(variables):
        return jnp.mean(jax.vmap(flow_log_density, (None, 0))(variables, BATCH.x_data))

    wanted, slope = jax.jit(jax.value_and_grad(log_likelihood))(VARIABLES)
    np.testing.assert_allclose(metrics["flow_log_likelihood"], wanted, rtol=1e-5)
    chex.assert_trees_all_close(
        slopes["flow"], jax.tree.map(lambda leaf: -3 * leaf, slope), rtol=1e-3, atol=1e-5
    )


def test_the_energy_stays_at_the_truth_whatever_the_flow(gradient_scores):
    objective = flow_contrastive(ENERGY, FLOW, accuracy=1.0)
    moved = MIXTURE.params._replace(means=MIXTURE.params.means + 0.3)
    wrong = PARAMS | {"energy": offset_params(moved, math.log(2.0))}
    assert np.max(np.abs(gradient_scores(objective, PARAMS, draw_mixture))) < 5
    assert np.max(np.abs(gradient_scores(objective, wrong, draw_mixture))) > 20


def test_both_players_stay_where_both_densities_are_the_truth(gradient_scores):
    # Data of a skewed flow, and as energy the same flow with parameters of its own.
    def draw(rng_key, num_samples):
        return FLOW.apply(VARIABLES, rng_key, num_samples, method="sample")

    objective = flow_contrastive(
        lambda params, x: -flow_log_density(params, x), FLOW, accuracy=0.0, alternate=False
    )
    truth = {"energy": VARIABLES, "flow": VARIABLES}
    value, _ = jax.jit(objective.loss)(truth, KEY, Batch(None, None, draw(KEY, 100)), NONE)
    np.testing.assert_allclose(value, 2 * math.log(2), rtol=1e-4)
    # With the energy at the truth a wrong flow is driven towards it.
    wrong = truth | {"flow": random_flow_variables(0.3)}
    assert np.max(np.abs(gradient_scores(objective, truth, draw))) < 5
    assert np.max(np.abs(gradient_scores(objective, wrong, draw))) > 20


def test_a_short_fit_learns_both_with_a_learning_rate_each():
    target = gaussian([1.0, -0.5], [[2.0, 0.8], [0.8, 0.6]])
    data = target.sample(KEY, target.params, 2048)
    energy = with_offset(target.energy)
    start = offset_params(target.params._replace(mean=jnp.zeros(2), precision=jnp.eye(2)))
    variables = jax.jit(FLOW.init)(KEY, jnp.zeros(2))
    optimizer = optax.partition(
        {"energy": optax.adam(0.02), "flow": optax.adam(0.01)}, {"energy": "energy", "flow": "flow"}
    )
    learn = learner(
        flow_contrastive(energy, FLOW, accuracy=0.55), optimizer=optimizer, batch_size=256, ema_decay=0.98
    )
    found = fit(KEY, learn, {"energy": start, "flow": variables}, data, num_steps=600)
    params = found.params["energy"]
    log_partition = float(target.log_partition(params["energy"]))
    np.testing.assert_allclose(params["offset"], log_partition, atol=0.1)
    np.testing.assert_allclose(params["energy"].mean, target.params.mean, atol=0.2)

    def log_likelihood(variables):
        return float(jnp.mean(jax.jit(jax.vmap(flow_log_density, (None, 0)))(variables, data)))

    best = float(jnp.mean(jax.vmap(target.log_density)(data)))
    assert log_likelihood(found.params["flow"]) > best - 0.1 > log_likelihood(variables)


def test_an_energy_of_classes_and_the_energy_of_the_pair():
    def logits(params, x):
        return params @ x

    objective = flow_contrastive(joint_energy(logits), FLOW)
    params = {"energy": jnp.eye(2), "flow": VARIABLES}
    batch = Batch(BATCH.x_data, jnp.arange(200) % 2, BATCH.x_data)
    value, metrics = jax.jit(objective.loss)(params, KEY, batch, NONE)
    # Samples take the labels of the data: E(x, y) = -x[y].
    wanted = -np.mean(np.asarray(BATCH.x_data)[np.arange(200), np.arange(200) % 2])
    assert np.isfinite(value)
    np.testing.assert_allclose(metrics["energy_data"], wanted, rtol=1e-4)
    assert float(objective.energy(params, jnp.array([3.0, 4.0]), 1)) == -4.0


def test_what_is_no_flow_or_not_its_parameters_is_refused():
    with pytest.raises(TypeError, match="flow is the class CouplingFlow"):
        flow_contrastive(ENERGY, CouplingFlow)
    with pytest.raises(TypeError, match="no log_density and no sample_and_log_density"):
        flow_contrastive(ENERGY, gaussian([0.0], [[1.0]]).energy)
    objective = flow_contrastive(ENERGY, FLOW)
    with pytest.raises(ValueError, match="entries 'energy' and 'flow'"):
        objective.loss(PARAMS["energy"], KEY, BATCH, NONE)
    with pytest.raises(ValueError, match="entries 'energy' and 'flow'"):
        objective.energy(jnp.zeros(2), BATCH.x_data[0], 0)
    with pytest.raises(ValueError, match="accuracy=1"):
        flow_contrastive(ENERGY, FLOW, accuracy=1.5)
