"""What a learner makes of data: batches, their order, scale, augmentation and noise; and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.data import Examples
from jaxebm.objectives import Objective, contrastive_divergence, ignore_label, likelihood
from jaxebm.samplers import sgld
from jaxebm.training import compile_steps, learner, make_placement

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY = jax.random.key(0)


def energy(params, x):
    return 0.5 * jnp.sum((x - params) ** 2)


def seen(params, key, batch, negatives):
    """A loss that shows what it is given."""
    return 0.0 * jnp.sum(params), {"batch": batch, "samples": negatives}


def showing(chain_energy=None, **options):
    """A learner whose metrics are its batches."""
    objective = Objective(ignore_label(energy) if chain_energy is None else chain_energy, seen)
    return learner(objective, **({"optimizer": optax.sgd(0.1), "batch_size": 3} | options))


def run(learn, data, num_updates):
    """What `seen` showed of each update."""
    step, state, shown = jax.jit(learn.step), learn.init(KEY, jnp.zeros(2), data), []
    for _ in range(num_updates):
        state, metrics = step(state, learn.place(data))
        shown.append(jax.tree.map(np.asarray, metrics))
    return shown


X, LABELS = np.arange(12.0, dtype=np.float32).reshape(6, 2), np.array([3, 1, 4, 1, 5, 9])


# --- batches ---


def test_every_example_comes_once_an_epoch_with_its_label():
    learn = showing(batch_size=2)
    shown = [each["batch"] for each in run(learn, (X, LABELS), 6)]
    for epoch in (shown[:3], shown[3:]):
        x, labels = (
            np.concatenate([getattr(batch, name) for batch in epoch]) for name in ("x_labelled", "labels")
        )
        order = (x[:, 0] / 2).astype(int)
        assert sorted(order) == list(range(6))
        np.testing.assert_array_equal(labels, LABELS[order])
        x_data = np.concatenate([batch.x_data for batch in epoch])
        assert sorted(x_data[:, 0] / 2) == list(range(6))
    # The two batches of an update are drawn independently.
    assert any(not np.array_equal(batch.x_labelled, batch.x_data) for batch in shown)


def test_unlabelled_examples_take_the_place_of_the_labelled_ones_in_x_data():
    learn = showing(batch_size=2)
    unlabelled = -1.0 - np.arange(16.0, dtype=np.float32).reshape(8, 2)
    shown = [each["batch"] for each in run(learn, Examples(X, LABELS, unlabelled), 4)]
    assert all(np.all(batch.x_labelled >= 0) for batch in shown)
    x_data = np.concatenate([batch.x_data for batch in shown])
    np.testing.assert_array_equal(np.sort(x_data[:, 0]), np.sort(unlabelled[:, 0]))


def test_without_labels_there_is_one_batch():
    for data in (X, Examples(X, unlabelled=X + 100)):
        (shown,) = run(showing(), data, 1)
        assert shown["batch"].x_labelled is None
        assert shown["batch"].labels is None
        assert shown["batch"].x_data.shape == (3, 2)
    assert shown["batch"].x_data.min() >= 100


def test_examples_are_rescaled_augmented_and_given_noise_in_this_order():
    def augment(key, x):
        return x + jnp.round(x) + jax.random.bernoulli(key)

    learn = showing(batch_size=2000, noise=0.01, rescale=lambda x: x / 255.0, augment=augment)
    pixels = np.full((2000, 2), 153, np.uint8)  # 0.6 after the rescaling, 1.6 or 2.6 after the augmentation
    (shown,) = run(learn, (pixels, np.zeros(2000, int)), 1)
    batch, shifts = shown["batch"], []
    for x in (batch.x_labelled, batch.x_data):
        shift = np.round(x - 1.6)
        noise = x - 1.6 - shift
        np.testing.assert_allclose(noise.std(), 0.01, rtol=5 / np.sqrt(2 * noise.size))
        assert abs(noise.mean()) < 5 * 0.01 / np.sqrt(noise.size)
        np.testing.assert_array_equal(shift[:, 0], shift[:, 1])  # one key an example, not an entry
        assert abs(shift.mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)
        shifts.append(shift[:, 0])
    # Labelled and other examples have keys of their own.
    assert abs(np.corrcoef(*shifts)[0, 1]) < 5 / np.sqrt(2000)
    assert abs(np.corrcoef(batch.x_labelled[:, 0] % 1, batch.x_data[:, 0] % 1)[0, 1]) < 5 / np.sqrt(2000)


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, (True, True)),
        ({"augment_x_data": None}, (True, False)),
        ({"augment": None, "augment_x_data": lambda key, x: x + 100}, (False, True)),
    ],
)
def test_the_examples_of_p_x_may_be_augmented_apart(options, moved):
    options = {"augment": lambda key, x: x + 100} | options
    learn = showing(**options)
    (shown,) = run(learn, (X, LABELS), 1)
    batch = shown["batch"]
    assert (np.all(batch.x_labelled >= 100), np.all(batch.x_data >= 100)) == moved


def test_noise_of_a_pytree_is_independent_in_its_leaves_and_spares_integers():
    data = {"a": np.zeros((4000, 1), np.float32), "b": np.zeros((4000, 1), np.float32), "n": np.arange(4000)}
    (shown,) = run(showing(batch_size=4000, noise=2.0), data, 1)
    x = shown["batch"].x_data
    for name in ("a", "b"):
        np.testing.assert_allclose(x[name].std(), 2.0, rtol=5 / np.sqrt(8000))
    assert abs(np.corrcoef(x["a"][:, 0], x["b"][:, 0])[0, 1]) < 5 / np.sqrt(4000)
    np.testing.assert_array_equal(np.sort(x["n"]), data["n"])


def test_labels_reach_the_chains_that_start_at_the_data():
    """Energies with their wells at 10 and 20 pull the chains of classes 1 and 2 there."""

    def wells(params, x, label):
        return 0.5 * jnp.sum((x - 10.0 * label) ** 2)

    chains = contrastive_divergence(partial(sgld, step_size=0.5, noise_scale=0.0), num_steps=30)
    (shown,) = run(showing(wells, negatives=chains, batch_size=2), (X[:2], jnp.array([1, 2])), 1)
    np.testing.assert_array_equal(shown["samples"].labels, shown["batch"].labels)
    np.testing.assert_allclose(shown["samples"].positions[:, 0], 10.0 * shown["batch"].labels, rtol=1e-5)


# --- what is refused before anything compiles ---


@pytest.mark.parametrize("ema_decay", [-0.1, 1.0, 1.5, float("nan")])
def test_bad_decay_is_refused(ema_decay):
    with pytest.raises(ValueError, match="ema_decay"):
        showing(ema_decay=ema_decay)


@pytest.mark.parametrize("num_steps", [0, -1, 2.5, True])
def test_bad_number_of_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        compile_steps(pytest.fail, num_steps)


@pytest.mark.parametrize(
    ("options", "kind", "named"),
    [
        ({"objective": energy}, TypeError, "objective is a function: .*likelihood"),
        ({"optimizer": 1e-3}, TypeError, "optimizer is a float: .*adam"),
        ({"negatives": partial(sgld, step_size=0.1)}, TypeError, "negatives is a partial: .*persistent"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 2.0}, ValueError, "batch_size=2.0"),
        ({"noise": -0.1}, ValueError, "noise=-0.1"),
        ({"augment": 3}, TypeError, "augment must be a function"),
        ({"augment_x_data": "other"}, TypeError, "augment_x_data must be a function"),
        ({"rescale": 255.0}, TypeError, "rescale must be a function"),
        ({"refresh": True}, TypeError, "refresh must be a function"),
        ({"sharpness": 0.05}, TypeError, r"sharpness .*Sharpness\(rho\)"),
        (
            {"batch_size": 9, "placement": make_placement(1, num_strata=2)},
            ValueError,
            "batch_size=9 .*2 strata",
        ),
    ],
)
def test_bad_options_are_refused_at_once(options, kind, named):
    with pytest.raises(kind, match=named):
        learner(**({"objective": likelihood(energy), "optimizer": optax.sgd(0.1)} | options))


def one_by_one(key, batch_size):
    return jnp.zeros((batch_size, 2))


@pytest.mark.parametrize(
    ("options", "data", "named"),
    [
        ({"batch_size": 7}, X, "batch_size=7 exceeds the 6 examples of data:"),
        ({}, Examples(X, LABELS, X[:2]), "batch_size=3 exceeds the 2 examples of data.unlabelled:"),
        ({}, None, "data has no arrays"),
        ({"noise": 0.1}, one_by_one, "function that draws examples: noise"),
        ({"augment": lambda key, x: x}, one_by_one, "augment"),
        ({"augment_x_data": lambda key, x: x}, one_by_one, "augment"),
        ({"rescale": jnp.sqrt}, one_by_one, "rescale"),
        ({"augment_x_data": lambda key, x: x}, X, "augment_x_data is only for data with labels"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_made(options, data, named):
    with pytest.raises(ValueError, match=named):
        showing(**options).init(KEY, pytest.fail, data)


def test_a_function_may_draw_labels_too():
    def draw(rng_key, batch_size):
        labels = jnp.arange(batch_size) % 2
        return labels[:, None] + jax.random.uniform(rng_key, (batch_size, 2)), labels

    [(batch, _)] = [(one["batch"], one["samples"]) for one in run(showing(), draw, 1)]
    np.testing.assert_array_equal(batch.labels, [0, 1, 0])
    np.testing.assert_array_equal(jnp.floor(batch.x_labelled[:, 0]), batch.labels)
    np.testing.assert_array_equal(batch.x_data, batch.x_labelled)


def test_a_function_of_data_cannot_be_placed():
    learn = showing(placement=make_placement(1))
    with pytest.raises(ValueError, match=r"data is a function that draws examples: .*devices"):
        learn.place(one_by_one)
