"""One update against closed forms, and many updates in one dispatch against the same updates one by one.

On E(x; t) = |x - t|^2 / 2 a chain of k noiseless steps h from x ends at t + q (x - t), q = (1 - h)^k, so the
contrastive gradient is (1 - q)(t - m), m the mean of the data, and gradient descent with rate r goes as
t_n = m + (1 - r (1 - q))^n (t_0 - m). A batch of as many examples as there are is all of them, in any order.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies import MLP, ConvNet, joint_energy, refresh_statistics, trainable, training_apply
from jaxebm.objectives import (
    Objective,
    batch_energy,
    contrastive_divergence,
    ignore_label,
    jem,
    likelihood,
    persistent,
    short_run,
)
from jaxebm.samplers import ClassGaussianInitial, sgld
from jaxebm.training import REMEDIES, DivergenceError, Recovery, Sharpness, compile_steps, fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

H, K, RATE = 0.3, 3, 0.2
CONTRACTION = 1 - RATE * (1 - (1 - H) ** K)
DATA = jnp.array([[0.0, 4.0], [1.0, 4.0], [8.0, 10.0]])  # skewed: mean (3, 6)
MEAN, START = np.array([3.0, 6.0]), np.array([-1.0, 2.0])
KEY = jax.random.key(0)
CHAINS = contrastive_divergence(partial(sgld, step_size=H, noise_scale=0.0), num_steps=K)


def energy(params, x):
    return 0.5 * jnp.sum((x - params) ** 2)


def quadratic(objective=None, **options):
    arguments = {"optimizer": optax.sgd(RATE), "negatives": CHAINS, "batch_size": 3} | options
    return learner(likelihood(energy) if objective is None else objective, **arguments)


QUADRATIC = quadratic()


def state_of(learn=QUADRATIC, data=DATA, dtype=jnp.float32):
    return learn.init(KEY, jnp.asarray(START, dtype), data)


def objective_of(loss, chain_energy=None):
    """An objective of one's own: E as above, and ``loss(params, key, batch, negatives)``."""
    return Objective(ignore_label(energy) if chain_energy is None else chain_energy, loss)


# --- numbers ---


def test_updates_follow_the_closed_form():
    state, _ = compile_steps(QUADRATIC.step, 10)(state_of(), DATA)
    np.testing.assert_allclose(state.params, MEAN + CONTRACTION**10 * (START - MEAN), rtol=1e-5)
    assert int(state.step) == 10


def test_metrics_of_one_update():
    _, metrics = compile_steps(QUADRATIC.step, 1)(state_of(), DATA)
    gradient = (1 - (1 - H) ** K) * (START - MEAN)
    ends = START + (1 - H) ** K * (np.asarray(DATA) - START)
    gap = 0.5 * np.mean(np.sum((np.asarray(DATA) - START) ** 2 - (ends - START) ** 2, axis=1))
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"], RATE * np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], gap, rtol=1e-5)
    np.testing.assert_allclose(metrics["energy_gap"], gap, rtol=1e-5)


def test_metrics_are_means_over_the_updates():
    _, metrics = compile_steps(QUADRATIC.step, 4)(state_of(), DATA)
    first = (1 - (1 - H) ** K) * np.linalg.norm(START - MEAN)
    np.testing.assert_allclose(
        metrics["gradient_norm"], first * np.mean(CONTRACTION ** np.arange(4)), rtol=1e-5
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.3, 0.999])
def test_average_follows_its_closed_form(ema_decay):
    """With theta_n known, ema_n = prod d_j theta_0 + sum_i (1 - d_i) prod_{j > i} d_j theta_{i+1}."""
    state, _ = compile_steps(quadratic(ema_decay=ema_decay).step, 12)(state_of(), DATA)
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
    learn, params, data = tiny["problem"]()
    one, six = compile_steps(learn.step, 1), compile_steps(learn.step, 6)
    singles = learn.init(KEY, params, data)
    collected = []
    for _ in range(6):
        singles, metrics = one(singles, data)
        collected.append(metrics)
    together, means = six(learn.init(KEY, params, data), data)
    for a, b in zip(jax.tree.leaves(singles), jax.tree.leaves(together), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
        else:
            assert bool(jnp.all(a == b))
    for name, mean in means.items():
        np.testing.assert_allclose(
            mean, np.mean([metrics[name] for metrics in collected]), rtol=2e-5, atol=2e-6
        )


def test_negatives_are_sampled_once_whatever_the_sharpness():
    """With the samples fixed the contrast is linear in t: the same gradient anywhere, and rho |g| of rise."""
    plain, _ = compile_steps(QUADRATIC.step, 5)(state_of(), DATA)
    state, metrics = compile_steps(quadratic(sharpness=Sharpness(0.7)).step, 5)(state_of(), DATA)
    np.testing.assert_allclose(state.params, plain.params, rtol=1e-6)
    np.testing.assert_allclose(metrics["sharpness"], 0.7 * metrics["gradient_norm"], rtol=1e-4)


def test_bfloat16_parameters_and_their_average_stay_bfloat16():
    data = DATA.astype(jnp.bfloat16)
    state, _ = compile_steps(QUADRATIC.step, 20)(state_of(data=data, dtype=jnp.bfloat16), data)
    assert state.params.dtype == state.ema_params.dtype == jnp.bfloat16
    expected = MEAN + CONTRACTION**20 * (START - MEAN)
    np.testing.assert_allclose(np.asarray(state.params, np.float32), expected, atol=0.1)  # 8 bits: 2^-8 of 6


# --- networks that keep statistics ---


def test_refresh_sees_the_new_parameters_and_the_batch():
    learn = quadratic(
        objective_of(lambda params, key, batch, drawn: (jnp.sum(params["params"]), {})),
        optimizer=trainable(optax.sgd(1.0)),
        negatives=None,
        refresh=lambda params, x: params | {"seen": jnp.stack([params["params"][0], jnp.mean(x)])},
    )
    params = {"params": jnp.zeros(1), "seen": jnp.zeros(2)}
    state, metrics = compile_steps(learn.step, 1)(learn.init(KEY, params, DATA), DATA)
    np.testing.assert_allclose(state.params["seen"], [-1.0, 4.5])
    np.testing.assert_allclose(state.ema_params["seen"], [-0.9, 4.05], rtol=1e-6)  # first decay is 1 / 10
    np.testing.assert_allclose(metrics["update_norm"], 1.0)


def test_batch_statistics_move_with_the_batches():
    module = ConvNet(num_outputs=None, channels=(2,), norm="batch")
    images = jax.random.normal(jax.random.key(2), (5, 4, 4, 1)) + 3.0
    variables = jax.jit(module.init)(jax.random.key(1), images[0])

    def loss(params, key, batch, drawn):
        return jnp.mean(batch_energy(training_apply(module), params, batch.x_data)), {}

    learn = learner(
        Objective(ignore_label(module.apply), loss),
        optimizer=trainable(optax.sgd(0.0)),
        batch_size=5,
        refresh=partial(refresh_statistics, module),
    )
    state, _ = compile_steps(learn.step, 3)(learn.init(KEY, variables, images), images)
    once = jax.jit(partial(refresh_statistics, module))(variables, images)["batch_stats"]
    # s_n = 0.99 s_{n-1} + 0.01 b from s_0: s_3 - s_0 = (1 + 0.99 + 0.99^2)(s_1 - s_0) with fixed parameters.
    start = variables["batch_stats"]
    factor = 1 + 0.99 + 0.99**2
    for s0, s1, s3 in zip(*map(jax.tree.leaves, (start, once, state.params["batch_stats"])), strict=True):
        np.testing.assert_allclose(s3, s0 + factor * (s1 - s0), rtol=1e-5, atol=1e-6)
        assert not np.array_equal(s3, s0)


# --- the program ---


def test_traced_once_over_many_dispatches_and_new_data():
    traces = []

    def loss(params, key, batch, drawn):
        traces.append(None)
        return likelihood(energy).loss(params, key, batch, drawn)

    learn = quadratic(objective_of(loss))
    steps, state = compile_steps(learn.step, 2), state_of(learn)
    state, _ = steps(state, DATA)
    after_first = len(traces)
    for shift in range(5):
        state, _ = steps(state, DATA + shift)
    assert len(traces) == after_first == 1


def test_a_fit_traces_its_step_for_the_first_dispatch_only():
    traces, after_dispatches = [], []

    def loss(params, key, batch, drawn):
        traces.append(None)
        return likelihood(energy).loss(params, key, batch, drawn)

    fit(
        KEY,
        quadratic(objective_of(loss)),
        jnp.asarray(START, jnp.float32),
        DATA,
        num_steps=11,
        steps_per_dispatch=2,
        on_metrics=lambda record: after_dispatches.append(len(traces)),
    )
    assert len(after_dispatches) == 6
    assert len(set(after_dispatches)) == 1


def class_gaussian():
    """800 kB of factors, of which no digit is to be found in a program's text."""
    factors = 0.1 * jnp.tile(jnp.eye(100)[None], (20, 1, 1)) + jax.random.uniform(KEY, (20, 100, 100))
    return ClassGaussianInitial(jnp.zeros((20, 100)), factors, -1.0, 1.0)


def test_where_chains_start_is_an_argument_of_the_program_and_no_constant():
    initial = class_gaussian()
    chains = persistent(
        partial(sgld, step_size=0.1), num_steps=1, num_chains=4, capacity=20, num_classes=20, initial=initial
    )
    learn = learner(likelihood(energy), optimizer=optax.sgd(0.1), negatives=chains, batch_size=3)
    data = jnp.zeros((3, 100))
    state = learn.init(KEY, jnp.zeros(100), data)
    text = jax.jit(learn.step).lower(state, learn.place(data)).as_text()
    assert len(text) < 200_000  # a constant of 200,000 numbers takes 1.6 million digits
    steps = compile_steps(learn.step, 1)
    (new_state, _), factors = steps(state, learn.place(data)), initial.factors
    assert not factors.is_deleted()  # the state's copy is consumed, and not the user's array
    np.testing.assert_array_equal(new_state.sampler_state.initial.factors, factors)


def test_state_is_donated_and_data_is_not():
    state, data = state_of(), DATA + 0
    new_state, _ = compile_steps(QUADRATIC.step, 2)(state, data)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not data.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_state))


def test_a_fit_leaves_the_users_parameters_data_and_key():
    params, data, key = jnp.asarray(START, jnp.float32), DATA + 0, jax.random.key(3)
    first, second = (
        fit(key, QUADRATIC, params, data, num_steps=2, steps_per_dispatch=2).params for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(params, START)
    assert not data.is_deleted()


def test_every_update_and_every_consumer_has_its_own_key():
    def loss(params, key, batch, drawn):
        found = {"batch": batch.x_data[0, 0], "loss": jax.random.uniform(key), "chain": drawn.positions[0, 0]}
        return jnp.sum(params), found

    def sampler(key, batch_size):
        return jax.random.uniform(key, (batch_size, 2))

    # Steps of length 1 forget where the chain came from: what is left is the noise that it drew.
    chains = contrastive_divergence(partial(sgld, step_size=1.0), num_steps=1)
    learn = quadratic(objective_of(loss), negatives=chains)
    state, data, numbers = state_of(learn, sampler), learn.place(sampler), []
    rng_key, one = jnp.copy(state.rng_key), compile_steps(learn.step, 1)
    for step in range(4):
        state, metrics = one(state, data)
        numbers += [float(metrics[name]) for name in ("batch", "loss", "chain")]
        # A function that draws examples has the step's first key itself.
        key_batch = jax.random.split(jax.random.fold_in(rng_key, step), 3)[0]
        np.testing.assert_allclose(metrics["batch"], sampler(key_batch, 3)[0, 0], rtol=1e-6)
    assert len(set(numbers)) == 12


# --- optimisers that take more than the gradient ---


def flat(params, rng_key, batch, negatives):
    """A loss of 1 whose gradient is 1 in every parameter: it never improves."""
    total = jnp.sum(params)
    return 1.0 + total - jax.lax.stop_gradient(total), {}


def test_an_optimizer_that_watches_the_loss_is_given_it():
    """Two losses make a value; the second value is no better, and halves the rate from update 4 on."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, accumulation_size=2)
    learn = learner(objective_of(flat), optimizer=optax.chain(optax.sgd(0.1), plateau), batch_size=3)
    result = fit(KEY, learn, jnp.zeros(2), DATA, num_steps=5, steps_per_dispatch=5)
    assert result.recoveries == ()
    np.testing.assert_allclose(result.state.params, -0.1 * (1 + 1 + 1 + 0.5 + 0.5), rtol=1e-6)


def test_a_line_search_is_given_the_loss_as_a_function():
    """|t - m|^2 / 2 from t_0 along its gradient with rate 8: halved three times, the step ends at m."""

    def loss(params, rng_key, batch, negatives):
        return 0.5 * jnp.sum((params - jnp.asarray(MEAN)) ** 2), {}

    search = optax.scale_by_backtracking_linesearch(8, slope_rtol=0.5, decrease_factor=0.5)
    learn = learner(objective_of(loss), optimizer=optax.chain(optax.sgd(8.0), search), batch_size=3)
    result = fit(KEY, learn, jnp.asarray(START, jnp.float32), DATA, num_steps=1)
    np.testing.assert_allclose(result.state.params, MEAN, rtol=1e-6)


# --- what is refused before the first update ---


def not_finite(value):
    return DATA.at[1, 1].set(value)


@pytest.mark.parametrize(
    ("data", "params", "named"),
    [
        (not_finite(jnp.nan), START, "data holds 1 non-finite entries"),
        (not_finite(-jnp.inf), START, "data holds 1 non-finite entries"),
        (DATA * 1j, START, "data has dtype complex64"),
        (np.array([["a"], ["b"], ["c"]]), START, "data"),
        (DATA, np.array([0.0, np.nan]), "params holds 1 non-finite entries .* before the first update"),
        (DATA, {"w": START, "b": np.array(np.inf)}, r"params\['b'\] holds 1 non-finite"),
        (DATA, {"w": "text"}, r"params\['w'\]"),
        (DATA, lambda rng_key, x: jnp.full(2, jnp.nan), "params holds 2 non-finite"),
        (DATA, lambda: START, "params"),
        (DATA, np.ones((3, 4)), "objective.energy fails with these params"),
        (lambda rng_key, n: not_finite(jnp.nan), START, "the first batch that data draws holds 1"),
        (
            lambda rng_key, n: DATA[:2],
            START,
            "the batch that data draws has a leading axis of 2: 3 is needed",
        ),
        (lambda rng_key, n: (DATA, jnp.arange(2)), START, "the batch that data draws"),
        (lambda rng_key: DATA, START, "data"),
    ],
)
def test_bad_data_and_parameters_are_named(data, params, named):
    with pytest.raises((TypeError, ValueError), match=named):
        QUADRATIC.init(KEY, params, data)


@pytest.mark.parametrize(
    "rng_key", [0, None, np.zeros(2, np.uint32), jax.random.PRNGKey(0), jax.random.split(KEY)]
)
def test_one_rule_for_keys(rng_key):
    chains = persistent(partial(sgld, step_size=H), num_steps=1, num_chains=2, capacity=2)
    calls = (
        lambda: QUADRATIC.init(rng_key, START, DATA),
        lambda: fit(rng_key, QUADRATIC, START, DATA, num_steps=1),
        lambda: chains.init(rng_key, DATA[0]),
        lambda: CHAINS.draw(rng_key, ignore_label(energy), START, DATA, None, None),
    )
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="rng_key"):
            call()


def test_rescale_must_keep_every_example():
    with pytest.raises(ValueError, match="what rescale returns has a leading axis of 2: 3 is needed"):
        state_of(quadratic(rescale=lambda x: x[1:]))


THREE = jem(lambda params, x: params @ x, p_xy_weight=1.0)


def test_chains_of_classes_that_the_logits_do_not_have_are_refused():
    """Their energy would be that of the nearest class, or no force at all."""
    params, data = jnp.ones((3, 2)), (DATA, np.arange(3))
    for objective in (THREE, likelihood(energy)._replace(energy=joint_energy(THREE.logits))):
        for num_classes, labels in ((5, data), (3, (DATA, np.array([0, 1, 3]))), (3, drawn_labels)):
            chains = persistent(
                partial(sgld, step_size=H), num_steps=1, num_chains=15, capacity=15, num_classes=num_classes
            )
            learn = learner(objective, optimizer=optax.sgd(RATE), negatives=chains, batch_size=3)
            with pytest.raises(ValueError, match="3 classes" if labels is drawn_labels else "3 logits"):
                learn.init(KEY, params, labels)


def drawn_labels(rng_key, batch_size):
    return DATA, jnp.full(batch_size, 3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("noise", np.ones(3)),
        ("noise", "much"),
        ("ema_decay", np.full(3, 0.9)),
        ("sharpness", 5),
        ("placement", "cpu"),
        ("augment", lambda: None),
        ("augment_x_data", "other"),
        ("rescale", lambda a, b: a),
        ("refresh", 3),
        ("batch_size", 2.0),
    ],
)
def test_options_of_other_kinds_are_named(option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        quadratic(**{option: value})


# --- chains that leave at once, and x64 ---


@pytest.mark.filterwarnings("ignore:step:RuntimeWarning")
def test_chains_that_leave_at_once_end_the_run():
    """A step of 1e6 on E = t.x moves every chain by 1e6: no band could have known."""
    chains = contrastive_divergence(partial(sgld, step_size=1e6), num_steps=1)
    learn = quadratic(likelihood(lambda params, x: params @ x), negatives=chains)
    said = r"step 1: the chains have left the range of the data.*largest_chain=1.*largest_data=10"
    for recovery in (None, Recovery(remedies=REMEDIES[1:2])):
        with pytest.raises(DivergenceError, match=said):
            fit(KEY, learn, jnp.ones(2), DATA, num_steps=3, steps_per_dispatch=3, recovery=recovery)


@pytest.mark.parametrize("kind", ["contrastive_divergence", "persistent", "short_run", "jem"])
def test_float32_is_trained_in_x64(kind):
    """Data, parameters, chains and moments keep their dtype, and all numbers are finite."""
    kernel = partial(sgld, step_size=0.1)
    with jax.enable_x64(True):
        chains = {
            "contrastive_divergence": contrastive_divergence(kernel, num_steps=2),
            "short_run": short_run(kernel, num_steps=2, num_chains=6),
        }.get(kind, persistent(kernel, num_steps=2, num_chains=6, capacity=12, num_classes=3))
        key, data = jax.random.key(0), np.asarray(DATA, np.float32)
        params = MLP(3 if kind == "jem" else None, widths=(4,)).init(key, data[0])
        apply = MLP(3 if kind == "jem" else None, widths=(4,)).apply
        objective = jem(apply, p_xy_weight=0.5) if kind == "jem" else likelihood(apply)
        learn = learner(objective, optimizer=optax.adam(1e-2), negatives=chains, batch_size=3)
        given = (data, np.arange(3)) if kind == "jem" else data
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        result = fit(key, learn, params, given, num_steps=2, steps_per_dispatch=2)
        moments = [leaf for leaf in jax.tree.leaves(result.state.optimizer_state) if leaf.ndim]
        for leaf in (*jax.tree.leaves((result.state.params, result.params)), *moments):
            assert leaf.dtype == jnp.float32
            assert np.isfinite(leaf).all()
        assert result.recoveries == ()
        assert np.isfinite(list(result.history[-1].values())).all()
