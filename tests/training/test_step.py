"""One update against closed forms, and many updates in one dispatch against the same updates one by one.

On E(x; t) = |x - t|^2 / 2 a chain of k noiseless steps h from x ends at t + q (x - t), q = (1 - h)^k, so the
contrastive gradient is (1 - q)(t - m), m the mean of the data, and gradient descent with rate r goes as
t_n = m + (1 - r (1 - q))^n (t_0 - m).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies.networks import ConvNet, refresh_statistics, trainable, training_apply
from jaxebm.objectives import contrastive_divergence, contrastive_loss, no_negatives
from jaxebm.objectives.contrastive import batch_energy
from jaxebm.samplers import sgld
from jaxebm.training import Sharpness, compile_steps, init_state, make_train_step

pytestmark = pytest.mark.usefixtures("cheap_compilation")

H, K, RATE = 0.3, 3, 0.2
CONTRACTION = 1 - RATE * (1 - (1 - H) ** K)
DATA = jnp.array([[0.0, 4.0], [1.0, 4.0], [8.0, 10.0]])  # skewed: mean (3, 6)
MEAN, START = np.array([3.0, 6.0]), np.array([-1.0, 2.0])
PARTS = {
    "optimizer": optax.sgd(RATE),
    "negatives": contrastive_divergence(partial(sgld, step_size=H, noise_scale=0.0), num_steps=K),
}


def energy(params, x):
    return 0.5 * jnp.sum((x - params) ** 2)


def quadratic_step(loss=None, **options):
    def contrast(params, key, batch, drawn):
        return contrastive_loss(energy, params, batch, drawn.positions)

    return make_train_step(
        energy=lambda params, x, label: energy(params, x),
        loss=loss or contrast,
        next_batch=lambda key, data, streams: (data, streams),
        start_of=lambda batch: (batch, jnp.zeros(len(batch), jnp.int32)),
        **PARTS | options,
    )


def quadratic_state(dtype=jnp.float32):
    return init_state(jax.random.key(0), jnp.asarray(START, dtype), **PARTS)


def test_updates_follow_the_closed_form():
    steps = compile_steps(quadratic_step(), 10)
    state, _ = steps(quadratic_state(), DATA)
    np.testing.assert_allclose(state.params, MEAN + CONTRACTION**10 * (START - MEAN), rtol=1e-5)
    assert int(state.step) == 10


def test_metrics_of_one_update():
    _, metrics = compile_steps(quadratic_step(), 1)(quadratic_state(), DATA)
    gradient = (1 - (1 - H) ** K) * (START - MEAN)
    ends = START + (1 - H) ** K * (np.asarray(DATA) - START)
    gap = 0.5 * np.mean(np.sum((np.asarray(DATA) - START) ** 2 - (ends - START) ** 2, axis=1))
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"], RATE * np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], gap, rtol=1e-5)
    np.testing.assert_allclose(metrics["energy_gap"], gap, rtol=1e-5)


def test_metrics_are_means_over_the_updates():
    _, metrics = compile_steps(quadratic_step(), 4)(quadratic_state(), DATA)
    first = (1 - (1 - H) ** K) * np.linalg.norm(START - MEAN)
    np.testing.assert_allclose(
        metrics["gradient_norm"], first * np.mean(CONTRACTION ** np.arange(4)), rtol=1e-5
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.3, 0.999])
def test_average_follows_its_closed_form(ema_decay):
    """With theta_n known, ema_n = prod d_j theta_0 + sum_i (1 - d_i) prod_{j > i} d_j theta_{i+1}."""
    state, _ = compile_steps(quadratic_step(ema_decay=ema_decay), 12)(quadratic_state(), DATA)
    decays = np.minimum(ema_decay, (1 + np.arange(12)) / (10 + np.arange(12)))
    expected = np.prod(decays) * START
    for i in range(12):
        theta = MEAN + CONTRACTION ** (i + 1) * (START - MEAN)
        expected = expected + (1 - decays[i]) * np.prod(decays[i + 1 :]) * theta
    np.testing.assert_allclose(state.ema_params, expected, rtol=1e-5)
    if ema_decay == 0.0:
        np.testing.assert_array_equal(state.ema_params, state.params)


def test_grouping_of_updates_changes_nothing_but_rounding(tiny):
    """Keys and batches do not depend on it: integers agree exactly, floats to the rounding of fused loops."""
    step, make_state, data = tiny["problem"]()
    one, six = compile_steps(step, 1), compile_steps(step, 6)
    singles = make_state()
    collected = []
    for _ in range(6):
        singles, metrics = one(singles, data)
        collected.append(metrics)
    together, means = six(make_state(), data)
    for a, b in zip(jax.tree.leaves(singles), jax.tree.leaves(together), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
        else:
            assert bool(jnp.all(a == b))
    for name, mean in means.items():
        np.testing.assert_allclose(
            mean, np.mean([metrics[name] for metrics in collected]), rtol=2e-5, atol=2e-6
        )


def test_traced_once_over_many_dispatches_and_new_data():
    traces = []

    def loss(params, key, batch, drawn):
        traces.append(None)
        return contrastive_loss(energy, params, batch, drawn.positions)

    steps = compile_steps(quadratic_step(loss=loss), 2)
    state, _ = steps(quadratic_state(), DATA)
    after_first = len(traces)
    for shift in range(5):
        state, _ = steps(state, DATA + shift)
    assert len(traces) == after_first == 1


def test_state_is_donated_and_data_is_not():
    state, data = quadratic_state(), DATA + 0
    new_state, _ = compile_steps(quadratic_step(), 2)(state, data)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not data.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_state))


def test_every_update_and_every_consumer_has_its_own_key():
    def next_batch(key, data, streams):
        return (data, jax.random.uniform(key)), streams

    seen = []
    step = make_train_step(
        energy=lambda params, x, label: energy(params, x),
        loss=lambda params, key, batch, drawn: (
            energy(params, drawn.positions[0]),
            {"batch": batch[1], "loss_key": jax.random.uniform(key)},
        ),
        next_batch=next_batch,
        start_of=lambda batch: (batch[0], jnp.zeros(3, jnp.int32)),
        **PARTS,
    )
    one, state = compile_steps(step, 1), quadratic_state()
    for _ in range(4):
        state, metrics = one(state, DATA)
        seen += [float(metrics["batch"]), float(metrics["loss_key"])]
    assert len(set(seen)) == 8


def test_labels_of_the_start_reach_the_chains():
    """Energies with their wells at 10 and 20 pull the chains of classes 1 and 2 there."""
    parts = PARTS | {
        "negatives": contrastive_divergence(partial(sgld, step_size=0.5, noise_scale=0.0), num_steps=30)
    }
    step = make_train_step(
        energy=lambda params, x, label: 0.5 * jnp.sum((x - 10.0 * label) ** 2),
        loss=lambda params, key, batch, drawn: (
            jnp.sum(params),
            {"one": jnp.mean(drawn.positions[0]), "two": jnp.mean(drawn.positions[1])},
        ),
        next_batch=lambda key, data, streams: (data, streams),
        start_of=lambda batch: (batch, jnp.array([1, 2])),
        **parts,
    )
    _, metrics = compile_steps(step, 1)(init_state(jax.random.key(0), jnp.zeros(2), **parts), DATA[:2])
    np.testing.assert_allclose([metrics["one"], metrics["two"]], [10.0, 20.0], rtol=1e-5)


def test_negatives_are_sampled_once_whatever_the_sharpness():
    """With the samples fixed the contrast is linear in t: the same gradient anywhere, and rho |g| of rise."""
    plain, _ = compile_steps(quadratic_step(), 5)(quadratic_state(), DATA)
    state, metrics = compile_steps(quadratic_step(sharpness=Sharpness(0.7)), 5)(quadratic_state(), DATA)
    np.testing.assert_allclose(state.params, plain.params, rtol=1e-6)
    np.testing.assert_allclose(metrics["sharpness"], 0.7 * metrics["gradient_norm"], rtol=1e-4)


def test_refresh_sees_the_new_parameters_and_the_batch():
    parts = {"optimizer": trainable(optax.sgd(1.0)), "negatives": no_negatives()}
    step = make_train_step(
        energy=lambda params, x, label: jnp.zeros(()),
        loss=lambda params, key, batch, drawn: (jnp.sum(params["params"]), {}),
        next_batch=lambda key, data, streams: (data, streams),
        refresh=lambda params, batch: params | {"seen": jnp.stack([params["params"][0], jnp.mean(batch)])},
        **parts,
    )
    params = {"params": jnp.zeros(1), "seen": jnp.zeros(2)}
    state, metrics = compile_steps(step, 1)(init_state(jax.random.key(0), params, **parts), DATA)
    np.testing.assert_allclose(state.params["seen"], [-1.0, 4.5])
    np.testing.assert_allclose(state.ema_params["seen"], [-0.9, 4.05], rtol=1e-6)  # first decay is 1 / 10
    np.testing.assert_allclose(metrics["update_norm"], 1.0)


def test_batch_statistics_move_with_the_batches():
    module = ConvNet(num_outputs=None, channels=(2,), norm="batch")
    images = jax.random.normal(jax.random.key(2), (5, 4, 4, 1)) + 3.0
    variables = jax.jit(module.init)(jax.random.key(1), images[0])
    parts = {"optimizer": trainable(optax.sgd(0.0)), "negatives": no_negatives()}
    step = make_train_step(
        energy=lambda params, x, label: module.apply(params, x),
        loss=lambda params, key, batch, drawn: (
            jnp.mean(batch_energy(training_apply(module), params, batch)),
            {},
        ),
        next_batch=lambda key, data, streams: (data, streams),
        refresh=lambda params, batch: refresh_statistics(module, params, batch),
        **parts,
    )
    make_state = jax.jit(partial(init_state, **parts))
    state, _ = compile_steps(step, 3)(make_state(jax.random.key(0), variables), images)
    once = jax.jit(partial(refresh_statistics, module))(variables, images)["batch_stats"]
    # s_n = 0.99 s_{n-1} + 0.01 b from s_0: s_3 - s_0 = (1 + 0.99 + 0.99^2)(s_1 - s_0) with fixed parameters.
    start = variables["batch_stats"]
    factor = 1 + 0.99 + 0.99**2
    for s0, s1, s3 in zip(*map(jax.tree.leaves, (start, once, state.params["batch_stats"])), strict=True):
        np.testing.assert_allclose(s3, s0 + factor * (s1 - s0), rtol=1e-5, atol=1e-6)
        assert not np.array_equal(s3, s0)


def test_bfloat16_parameters_and_their_average_stay_bfloat16():
    state, _ = compile_steps(quadratic_step(), 20)(quadratic_state(jnp.bfloat16), DATA.astype(jnp.bfloat16))
    assert state.params.dtype == state.ema_params.dtype == jnp.bfloat16
    expected = MEAN + CONTRACTION**20 * (START - MEAN)
    np.testing.assert_allclose(np.asarray(state.params, np.float32), expected, atol=0.1)  # 8 bits: 2^-8 of 6


@pytest.mark.parametrize("ema_decay", [-0.1, 1.0, 1.5, float("nan")])
def test_bad_decay_is_refused(ema_decay):
    with pytest.raises(ValueError, match="ema_decay"):
        quadratic_step(ema_decay=ema_decay)


@pytest.mark.parametrize("num_steps", [0, -1, 2.5, True])
def test_bad_number_of_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        compile_steps(quadratic_step(), num_steps)
