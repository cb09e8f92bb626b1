"""JEM's three log-likelihoods against their exact gradients, on a classifier of enumerable inputs."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies.classifier import joint_energy, log_class_probability, marginal_energy
from jaxebm.evaluation.partition.quadrature import enumerate_states, log_partition_by_enumeration
from jaxebm.objectives.contrastive import binary_energy_loss, contrastive_loss
from jaxebm.objectives.joint import classification_loss, joint_loss
from jaxebm.types import BATCH_AXIS

pytestmark = pytest.mark.usefixtures("cheap_compilation")

DIMENSION, NUM_CLASSES = 4, 3
RNG = np.random.default_rng(1)


def logits(params, x):
    hidden = jnp.tanh(params["weights"] @ x + params["bias"])
    return params["readout"] @ hidden + params["offset"]


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {
    "weights": normal(6, DIMENSION),
    "bias": normal(6),
    "readout": 0.7 * normal(NUM_CLASSES, 6),
    "offset": normal(NUM_CLASSES),
}
STATES = enumerate_states(DIMENSION)
# Every pair (x, y), the sample space of the joint model.
PAIR_X = jnp.repeat(STATES, NUM_CLASSES, axis=0)
PAIR_Y = jnp.tile(jnp.arange(NUM_CLASSES), len(STATES))


def skewed(num_examples):
    """Spins that are mostly up, but for the last, and classes that go with the first."""
    x = np.where(RNG.random((num_examples, DIMENSION)) < [0.8, 0.9, 0.6, 0.1], 1.0, -1.0)
    y = np.where(x[:, 0] > 0, RNG.choice(3, num_examples, p=[0.7, 0.2, 0.1]), 2)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)


X_LABELLED, LABELS = skewed(12)
X_DATA, _ = skewed(20)
X_MODEL, LABELS_MODEL = normal(7, DIMENSION), jnp.arange(7) % NUM_CLASSES


# --- the exact model ---


def log_partition(params):
    return log_partition_by_enumeration(marginal_energy(logits), params, STATES)


def log_p_x(params, x):
    return -jax.vmap(marginal_energy(logits), (None, 0))(params, x) - log_partition(params)


def log_p_xy(params, x, y):
    return -jax.vmap(joint_energy(logits), (None, 0, 0))(params, x, y) - log_partition(params)


def log_p_y_given_x(params, x, y):
    log_probabilities = jax.vmap(log_class_probability(logits), (None, 0))(params, x)
    return jnp.sum(log_probabilities * jax.nn.one_hot(y, NUM_CLASSES), axis=1)


def test_the_joint_log_likelihood_is_the_sum_of_its_two_factors():
    def joint(params):
        return log_p_xy(params, PAIR_X, PAIR_Y)

    def product(params):
        return log_p_y_given_x(params, PAIR_X, PAIR_Y) + log_p_x(params, PAIR_X)

    @jax.jit
    def values_and_gradients(params):
        values = joint(params), product(params), log_p_x(params, STATES)
        return *values, jax.jacrev(joint)(params), jax.jacrev(product)(params)

    whole, factors, marginal, *gradients = values_and_gradients(PARAMS)
    np.testing.assert_allclose(whole, factors, atol=2e-6)
    np.testing.assert_allclose(np.sum(np.exp(whole)), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(np.exp(marginal)), 1, rtol=1e-5)
    chex.assert_trees_all_close(*gradients, atol=1e-5)  # at every pair


WEIGHTS = {"y_given_x": (1.0, 0.0, 0.0), "x": (0.0, 1.0, 0.0), "xy": (0.0, 0.0, 1.0), "all": (0.7, 1.3, 0.4)}


@partial(jax.jit, static_argnames="w_xy")
def gradient_of_loss(params, x_model, labels_model, w_y_given_x, w_x, w_xy):
    def loss(params):
        return joint_loss(
            logits,
            params,
            X_LABELLED,
            LABELS,
            X_DATA,
            x_model,
            labels_model=labels_model,
            p_y_given_x_weight=w_y_given_x,
            p_x_weight=w_x,
            p_xy_weight=w_xy,
        )[0]

    return jax.grad(loss)(params)


@jax.jit
@jax.grad
def gradient_of_negative_log_likelihood(params, w_y_given_x, w_x, w_xy):
    return -(
        w_y_given_x * jnp.mean(log_p_y_given_x(params, X_LABELLED, LABELS))
        + w_x * jnp.mean(log_p_x(params, X_DATA))
        + w_xy * jnp.mean(log_p_xy(params, X_LABELLED, LABELS))
    )


@pytest.fixture(scope="module", params=WEIGHTS)
def exact(request):
    """Gradients of the loss with each pair (x, y) as the only sample, and of the exact log-likelihood."""
    w_y_given_x, w_x, w_xy = WEIGHTS[request.param]
    gradient = partial(gradient_of_loss, w_y_given_x=w_y_given_x, w_x=w_x, w_xy=w_xy)
    per_pair = jax.vmap(gradient, (None, 0, 0))(PARAMS, PAIR_X[:, None], PAIR_Y[:, None])
    return gradient, per_pair, gradient_of_negative_log_likelihood(PARAMS, w_y_given_x, w_x, w_xy)


PROBABILITIES = np.exp(np.asarray(jax.jit(log_p_xy)(PARAMS, PAIR_X, PAIR_Y), np.float64))
PROBABILITIES /= PROBABILITIES.sum()


def moments(per_pair):
    mean = jax.tree.map(lambda leaf: np.tensordot(PROBABILITIES, np.asarray(leaf, np.float64), 1), per_pair)
    spread = jax.tree.map(
        lambda leaf, centre: np.sqrt(np.tensordot(PROBABILITIES, (np.asarray(leaf) - centre) ** 2, 1)),
        per_pair,
        mean,
    )
    return mean, spread


def test_the_expected_gradient_is_that_of_the_weighted_log_likelihoods(exact):
    _, per_pair, wanted = exact
    mean, _ = moments(per_pair)
    chex.assert_trees_all_close(mean, wanted, atol=1e-5)
    assert optax.tree.norm(wanted) > 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_with_exact_samples_the_gradient_is_within_its_error(exact, seed):
    gradient, per_pair, wanted = exact
    _, spread = moments(per_pair)
    num_samples = 20_000
    picked = np.random.default_rng(seed).choice(len(PAIR_X), num_samples, p=PROBABILITIES)
    estimate = gradient(PARAMS, np.asarray(PAIR_X)[picked], np.asarray(PAIR_Y)[picked])
    sigmas = jax.tree.map(
        lambda a, b, s: np.max(np.abs(a - b) / (s / np.sqrt(num_samples) + 2e-6)), estimate, wanted, spread
    )
    assert max(jax.tree.leaves(sigmas)) < 5


# --- what the loss is made of ---


def call(**changes):
    arguments = {
        "logits": logits,
        "params": PARAMS,
        "x_labelled": X_LABELLED,
        "labels": LABELS,
        "x_data": X_DATA,
        "x_model": X_MODEL,
        "labels_model": LABELS_MODEL,
    } | changes
    return joint_loss(**arguments)


def compiled_call(**changes):
    """`call` of the parameters as one program: op by op, each of them would be compiled by itself."""
    return jax.jit(lambda params: call(params=params, **changes))(PARAMS)


def test_value_and_metrics_of_batches_of_three_sizes():
    # Semi-supervised: 12 labelled, 20 unlabelled and 7 sampled examples.
    loss, metrics = compiled_call(p_y_given_x_weight=0.5, p_x_weight=2.0, p_xy_weight=3.0, energy_l2=0.1)
    examples = jnp.concatenate([X_LABELLED, X_DATA, X_MODEL])
    values = np.asarray(jax.jit(jax.vmap(logits, (None, 0)))(PARAMS, examples), np.float64)
    f_labelled, f_data, f_model = np.split(values, [12, 32])
    rows = np.arange(12)
    marginal_labelled = -np.log(np.sum(np.exp(f_labelled), axis=1))
    marginal_data = -np.log(np.sum(np.exp(f_data), axis=1))
    marginal_model = -np.log(np.sum(np.exp(f_model), axis=1))
    wanted = {
        "cross_entropy": np.mean(-f_labelled[rows, LABELS] - marginal_labelled),
        "train_accuracy": np.mean(np.argmax(f_labelled, axis=1) == LABELS),
        "energy_data": marginal_data.mean(),
        "energy_model": marginal_model.mean(),
        "energy_gap": marginal_data.mean() - marginal_model.mean(),
        "joint_energy_gap": np.mean(f_model[np.arange(7), LABELS_MODEL]) - np.mean(f_labelled[rows, LABELS]),
    }
    assert set(metrics) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    squares = np.mean(marginal_data**2) + np.mean(marginal_model**2)
    squares_xy = np.mean(f_labelled[rows, LABELS] ** 2) + np.mean(f_model[np.arange(7), LABELS_MODEL] ** 2)
    total = 0.5 * wanted["cross_entropy"] + 2 * wanted["energy_gap"] + 3 * wanted["joint_energy_gap"]
    np.testing.assert_allclose(loss, total + 0.1 * (squares + squares_xy), rtol=1e-4)

    # Each bracket bounds its own energies: p(x, y) by itself leaves E(x) alone.
    loss, _ = compiled_call(p_y_given_x_weight=0.0, p_x_weight=0.0, p_xy_weight=3.0, energy_l2=0.1)
    np.testing.assert_allclose(loss, 3 * wanted["joint_energy_gap"] + 0.1 * squares_xy, rtol=1e-4)


def test_without_p_x_it_is_a_plain_classifier():
    plain = jax.jit(
        jax.value_and_grad(lambda params: classification_loss(logits, params, X_LABELLED, LABELS)[0])
    )
    joint = jax.jit(
        jax.value_and_grad(lambda params: call(params=params, labels_model=None, p_x_weight=0.0)[0])
    )
    chex.assert_trees_all_close(joint(PARAMS), plain(PARAMS), rtol=1e-5, atol=1e-7)
    assert "joint_energy_gap" not in jax.eval_shape(lambda: call(labels_model=None))[1]


@pytest.mark.parametrize("contrast", ["likelihood", "binary"])
@pytest.mark.parametrize("left_out", ["p_y_given_x_weight", "p_x_weight", "p_xy_weight"])
def test_a_bracket_of_weight_0_gives_no_gradient_and_keeps_its_metrics(left_out, contrast):
    """The loss is linear in its weights; a traced weight of 0 differentiates every bracket."""
    weights = {"p_y_given_x_weight": 0.5, "p_x_weight": 2.0, "p_xy_weight": 3.0}

    def value_and_gradient(**weights):
        def loss(params):
            return call(params=params, contrast=contrast, **weights)

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(PARAMS)
        return {"loss": value, "gradient": gradient}, metrics

    @jax.jit
    def both(one):
        # A weight of p(x, y) is known before tracing: there the bracket itself is taken away.
        alone = {name: 1.0 if name == left_out else 0.0 for name in weights}
        found, metrics = value_and_gradient(**weights | {left_out: 0.0})
        whole, all_metrics = value_and_gradient(**weights)
        bracket, _ = value_and_gradient(**alone)
        rest = jax.tree.map(lambda a, b: a - weights[left_out] * b, whole, bracket)
        traced = {} if left_out == "p_xy_weight" else value_and_gradient(**weights | {left_out: one - 1.0})[0]
        return found, metrics, rest, all_metrics, traced

    found, metrics, rest, all_metrics, traced = both(1.0)
    chex.assert_trees_all_close(found, rest, rtol=1e-4, atol=1e-5)
    if traced:
        chex.assert_trees_all_close(found, traced, rtol=1e-5, atol=1e-6)
    gone = {"joint_energy_gap", "joint_binary_cross_entropy"} if left_out == "p_xy_weight" else set()
    assert set(metrics) == set(all_metrics) - gone
    chex.assert_trees_all_close(metrics, {name: all_metrics[name] for name in metrics}, rtol=1e-5)


def test_energy_l2_alone_still_learns_at_a_weight_of_0():
    """The penalty of E(x) is in use unless p(x, y) has the only bracket: then E(x) is left alone."""

    def gradient(**options):
        return jax.grad(lambda params: call(params=params, **options)[0])(PARAMS)

    def penalty(params):
        energies = [jax.vmap(marginal_energy(logits), (None, 0))(params, x) for x in (X_DATA, X_MODEL)]
        return 0.2 * sum(jnp.mean(each**2) for each in energies)

    with_l2, without, alone = jax.jit(
        lambda: (gradient(p_x_weight=0.0, energy_l2=0.2), gradient(p_x_weight=0.0), jax.grad(penalty)(PARAMS))
    )()
    chex.assert_trees_all_close(with_l2, jax.tree.map(jnp.add, without, alone), rtol=1e-4, atol=1e-5)


def test_a_bracket_of_weight_0_costs_no_gradient():
    """Of 12 labelled, 20 other and 7 sampled examples the gradient passes 19, and not 12 + 27 + 7 more."""

    def flops(**weights):
        gradient = jax.jit(jax.grad(lambda params: call(params=params, **weights)[0]))
        return gradient.lower(PARAMS).compile().cost_analysis()["flops"]

    of_all = flops(p_y_given_x_weight=1.0, p_x_weight=1.0, p_xy_weight=1.0)
    assert flops(p_y_given_x_weight=0.0, p_x_weight=0.0, p_xy_weight=1.0) < 0.7 * of_all
    assert flops(p_y_given_x_weight=1.0, p_x_weight=0.0) < 0.7 * of_all
    assert flops(p_y_given_x_weight=0.0, p_x_weight=1.0) < 0.9 * of_all


def test_energy_l2_is_not_weighted_by_p_x():
    def energy_l2_alone(params):
        return contrastive_loss(marginal_energy(logits), params, X_DATA, X_MODEL, energy_l2=0.2)[0]

    def joint(params):
        return call(params=params, p_y_given_x_weight=0.0, p_x_weight=0.5, energy_l2=0.2)[0]

    def half_the_gap(params):
        return 0.5 * contrastive_loss(marginal_energy(logits), params, X_DATA, X_MODEL)[0]

    gradients = jax.jit(lambda params: [jax.grad(f)(params) for f in (joint, energy_l2_alone, half_the_gap)])
    of_joint, of_l2, of_half = gradients(PARAMS)
    chex.assert_trees_all_close(
        of_joint, jax.tree.map(jnp.subtract, of_l2, of_half), rtol=1e-5, atol=1e-6
    )  # (gap + squares) - gap / 2


def test_the_binary_contrast_takes_the_place_of_both_energy_terms():
    """CE + w_x binary(E(x)) + w_xy binary(E(x, y)) + alpha squares, each made by itself."""
    weights = {"p_y_given_x_weight": 0.5, "p_x_weight": 2.0, "p_xy_weight": 3.0}

    def joint(params):
        return call(params=params, energy_l2=0.1, contrast="binary", **weights)

    def parts(params):
        marginal = marginal_energy(logits)
        cross_entropy, _ = classification_loss(logits, params, X_LABELLED, LABELS)
        binary, _ = binary_energy_loss(marginal, params, X_DATA, X_MODEL)
        penalised, _ = binary_energy_loss(marginal, params, X_DATA, X_MODEL, energy_l2=0.1)
        of_pairs = jax.vmap(joint_energy(logits), (None, 0, 0))
        fixed_model = jax.lax.stop_gradient(X_MODEL)
        binary_xy = -jnp.mean(jax.nn.log_sigmoid(-of_pairs(params, X_LABELLED, LABELS)))
        binary_xy -= jnp.mean(jax.nn.log_sigmoid(of_pairs(params, fixed_model, LABELS_MODEL)))
        squares_xy = jnp.mean(of_pairs(params, X_LABELLED, LABELS) ** 2)
        squares_xy += jnp.mean(of_pairs(params, fixed_model, LABELS_MODEL) ** 2)
        loss = 0.5 * cross_entropy + 2 * binary + 3 * binary_xy + penalised - binary + 0.1 * squares_xy
        return loss, {"binary_cross_entropy": binary, "joint_binary_cross_entropy": binary_xy}

    both = jax.jit(lambda params: [jax.value_and_grad(f, has_aux=True)(params) for f in (joint, parts)])
    ((loss, metrics), gradient), ((wanted, wanted_metrics), wanted_gradient) = both(PARAMS)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    chex.assert_trees_all_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    likelihood = compiled_call(energy_l2=0.1, **weights)[1]
    chex.assert_trees_all_close({name: metrics[name] for name in likelihood}, likelihood, rtol=1e-5)
    assert set(metrics) == {*likelihood, *wanted_metrics}


def test_without_p_xy_there_is_one_binary_cross_entropy():
    _, metrics = jax.eval_shape(lambda: call(labels_model=None, contrast="binary"))
    assert "binary_cross_entropy" in metrics
    assert "joint_binary_cross_entropy" not in metrics


def test_a_small_weight_keeps_its_precision():
    @jax.jit
    def gradient(params, weight):
        return jax.grad(lambda p: call(params=p, p_y_given_x_weight=0.0, p_x_weight=weight)[0])(params)

    scaled = jax.tree.map(lambda leaf: leaf * 1e6, gradient(PARAMS, 1e-6))
    chex.assert_trees_all_close(scaled, gradient(PARAMS, 1.0), rtol=1e-4, atol=1e-6)


def test_no_gradient_flows_through_the_samples():
    def loss(x, contrast):
        return call(x_model=x, p_xy_weight=1.0, energy_l2=0.1, contrast=contrast)[0]

    of_samples = jax.jit(jax.grad(loss), static_argnums=1)
    for contrast in ("likelihood", "binary"):
        np.testing.assert_array_equal(of_samples(X_MODEL, contrast), 0)


def test_batch_normalised_logits_see_the_batch_axis():
    def normalised(params, x):
        return logits(params, x - jax.lax.pmean(x, BATCH_AXIS))

    def by_hand(x):
        return x - jnp.mean(x, axis=0, keepdims=True)

    options = {"p_xy_weight": 0.5, "energy_l2": 0.1}
    centred = {"x_labelled": by_hand(X_LABELLED), "x_data": by_hand(X_DATA), "x_model": by_hand(X_MODEL)}
    loss, metrics = compiled_call(logits=normalised, **options)
    wanted, wanted_metrics = compiled_call(**options, **centred)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    chex.assert_trees_all_close(metrics, wanted_metrics, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_optaxs(label_smoothing):
    @jax.jit
    def ours_and_optaxs(params):
        ours = classification_loss(logits, params, X_LABELLED, LABELS, label_smoothing=label_smoothing)
        values = jax.vmap(logits, (None, 0))(params, X_LABELLED)
        targets = optax.smooth_labels(jax.nn.one_hot(LABELS, NUM_CLASSES), label_smoothing)
        smooth = jnp.mean(optax.softmax_cross_entropy(values, targets))
        return *ours, smooth, jnp.mean(optax.softmax_cross_entropy_with_integer_labels(values, LABELS))

    loss, metrics, smooth, plain = ours_and_optaxs(PARAMS)
    np.testing.assert_allclose(loss, smooth, rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], plain, rtol=1e-5)  # never smoothed


@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
def test_a_traced_label_out_of_range_is_loud(label):
    loss = jax.jit(lambda labels: call(labels=labels)[0])(LABELS.at[3].set(label))
    assert np.isnan(loss)
    loss = jax.jit(lambda labels: call(labels_model=labels, p_xy_weight=1.0)[0])(
        LABELS_MODEL.at[0].set(label)
    )
    assert np.isnan(loss)


def test_new_values_do_not_recompile():
    w_xy = jnp.array(0.5)  # an array is as good as a number, where it is known

    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(labels, w_y_given_x, w_x, energy_l2, label_smoothing):
        options = {"p_y_given_x_weight": w_y_given_x, "p_x_weight": w_x, "p_xy_weight": w_xy}
        return call(labels=labels, energy_l2=energy_l2, label_smoothing=label_smoothing, **options)

    for value in (0.0, 0.3):
        chex.assert_tree_all_finite(loss(LABELS[::-1], value, 1.0 - value, value, value))


def test_labels_may_be_numpy():
    labels_model = np.asarray(LABELS_MODEL, np.int64)
    on_host = compiled_call(labels=np.asarray(LABELS), labels_model=labels_model, p_xy_weight=1)
    chex.assert_trees_all_close(on_host, compiled_call(p_xy_weight=1.0))


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ({"x_labelled": jnp.ones((12, 4), jnp.uint8)}, TypeError, "x_labelled has dtype uint8"),
        ({"x_data": jnp.ones((12, 4), jnp.int32)}, TypeError, "x_data has dtype int32"),
        ({"x_model": jnp.ones((12, 4), bool)}, TypeError, "x_model has dtype bool"),
        ({"x_labelled": jnp.ones((12, 5))}, ValueError, r"x_labelled .*\(5,\) and x_data of shape \(4,\)"),
        ({"x_model": jnp.ones((7, 5))}, ValueError, "x_model of shape"),
        ({"x_model": None}, ValueError, "x_model"),
        ({"x_data": jnp.ones((0, 4))}, ValueError, "x_data"),
        ({"labels": LABELS.astype(jnp.float32)}, TypeError, "labels has dtype float32"),
        ({"labels": LABELS[:5]}, ValueError, r"labels has shape \(5,\): \(12,\) is needed.*x_labelled"),
        ({"labels": jax.nn.one_hot(LABELS, 3)}, ValueError, r"labels has shape \(12, 3\)"),
        ({"labels": np.full(12, 3)}, ValueError, r"labels spans 3\.\.3: .*0\.\.2"),
        ({"labels": np.full(12, -1)}, ValueError, r"labels spans -1\.\.-1"),
        ({"p_y_given_x_weight": -1.0}, ValueError, "p_y_given_x_weight=-1.0"),
        ({"p_x_weight": -0.5}, ValueError, "p_x_weight=-0.5"),
        ({"p_xy_weight": -0.5}, ValueError, "p_xy_weight=-0.5"),
        ({"p_x_weight": float("inf")}, ValueError, "p_x_weight=inf"),
        (
            {"p_y_given_x_weight": 0.0, "p_x_weight": 0.0},
            ValueError,
            "p_y_given_x_weight, p_x_weight and p_xy_weight are all 0",
        ),
        ({"p_xy_weight": 1.0, "labels_model": None}, ValueError, "labels_model is None: p_xy_weight"),
        ({"p_xy_weight": 1.0, "labels_model": LABELS}, ValueError, r"labels_model has shape \(12,\): \(7,\)"),
        ({"p_xy_weight": 1.0, "labels_model": np.full(7, 9)}, ValueError, r"labels_model spans 9\.\.9"),
        ({"p_xy_weight": 1.0, "labels_model": np.ones(7)}, TypeError, "labels_model has dtype float"),
        ({"energy_l2": -1.0}, ValueError, "energy_l2=-1.0"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing=1.5.*between 0.0 and 1.0"),
        ({"contrast": "ratio"}, ValueError, r"contrast='ratio'.*'likelihood', 'binary'"),
        ({"logits": lambda params, x: jnp.sum(x)}, ValueError, r"logits returned shape \(\)"),
    ],
)
def test_bad_input_is_refused_while_tracing(arguments, kind, named):
    with pytest.raises(kind, match=named):
        jax.eval_shape(lambda: call(**arguments))


def test_a_traced_p_xy_weight_is_refused():
    with pytest.raises(TypeError, match="p_xy_weight is traced"):
        jax.eval_shape(lambda weight: call(p_xy_weight=weight), 1.0)


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ({"x": jnp.ones((12, 4), jnp.uint8)}, TypeError, "x has dtype uint8"),
        ({"x": jnp.ones((0, 4)), "labels": jnp.zeros(0, jnp.int32)}, ValueError, "x has leaves"),
        ({"labels": LABELS[:3]}, ValueError, r"labels has shape \(3,\): \(12,\)"),
        ({"labels": LABELS + 0.0}, TypeError, "labels has dtype"),
        ({"labels": np.asarray(LABELS) + 2}, ValueError, "labels spans"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing=-0.1"),
    ],
)
def test_classification_refuses_bad_input_while_tracing(arguments, kind, named):
    arguments = {"x": X_LABELLED, "labels": LABELS} | arguments
    with pytest.raises(kind, match=named):
        jax.eval_shape(lambda: classification_loss(logits, PARAMS, **arguments))
