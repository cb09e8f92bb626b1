"""Attacks against classifiers whose smallest successful change is known, and against another program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.classifier import attacks
from jaxebm.evaluation.classifier.attacks import attack, attack_batch
from jaxebm.evaluation.classifier.refinement import deterministic, refine
from jaxebm.samplers import sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation")
KEY = jax.random.key(0)
DUAL = {"l2": 2, "linf": 1}
"""Which norm of the slope a ball of the norm sees."""


def linear(params, x):
    weight, bias = params
    return weight @ x + bias


DIMENSION = 6
PARAMS = (
    jnp.asarray(np.random.default_rng(0).normal(size=(2, DIMENSION)), jnp.float32),
    jnp.array([0.3, -0.2]),
)


def linear_examples(n=60):
    """Points with the classes that the classifier gives them, and their signed margins, all positive."""
    xs = np.random.default_rng(1).uniform(-1, 1, (n, DIMENSION)).astype(np.float32)
    logits = xs @ np.asarray(PARAMS[0]).T + np.asarray(PARAMS[1])
    return xs, logits.argmax(1), np.abs(logits[:, 0] - logits[:, 1])


def slope():
    return np.asarray(PARAMS[0][0] - PARAMS[0][1])


@pytest.mark.parametrize(("norm", "loss"), [("l2", "cross_entropy"), ("l2", "margin"), ("linf", "margin")])
def test_a_linear_classifier_falls_exactly_beyond_its_distance(norm, loss):
    """The nearest point of the other class is margin / |w_1 - w_0|_* away, in the dual norm."""
    xs, labels, margins = linear_examples()
    distance = margins / np.linalg.norm(slope(), DUAL[norm])
    for radius in np.quantile(distance, [0.1, 0.5, 0.9]):
        result = attack_batch(
            KEY,
            deterministic(linear),
            PARAMS,
            xs,
            labels,
            norm=norm,
            radius=radius,
            num_steps=20,
            step_size=2 * radius,  # on the sphere each step brings an l2 attack to a third of its angle
            loss=loss,
            state_clamp=None,
            chunk_size=60,
        )
        clear = np.abs(distance / radius - 1) > 1e-3
        np.testing.assert_array_equal(result.success[clear], (distance < radius)[clear])
        change = np.linalg.norm(result.x_adversarial - xs, {"l2": 2, "linf": np.inf}[norm], axis=1)
        np.testing.assert_allclose(change, radius, rtol=1e-4)  # the best point lies on the sphere
        # The loss that is reported is that of the point that is returned.
        logits = result.x_adversarial @ np.asarray(PARAMS[0]).T + np.asarray(PARAMS[1])
        rows = np.arange(len(xs))
        margin = logits[rows, 1 - labels] - logits[rows, labels]
        expected = margin if loss == "margin" else np.log1p(np.exp(margin))
        np.testing.assert_allclose(result.loss, expected, rtol=1e-4, atol=1e-5)


def test_the_box_is_kept_and_limits_the_attack_exactly():
    """In linf each entry gains |w_i| times the smaller of the radius and the room that the box leaves it."""
    xs, labels, margins = linear_examples()
    radius = 0.3
    towards = np.where(labels[:, None] == 0, -np.sign(slope())[None, :], np.sign(slope())[None, :])
    room = np.where(towards > 0, 1 - xs, xs + 1)
    gain = np.sum(np.abs(slope())[None, :] * np.minimum(radius, room), axis=1)
    options = {"norm": "linf", "radius": radius, "num_steps": 20, "chunk_size": 60}
    boxed = attack_batch(KEY, deterministic(linear), PARAMS, xs, labels, **options)
    np.testing.assert_array_equal(boxed.success, gain > margins)
    assert np.abs(boxed.x_adversarial).max() <= 1.0
    assert np.sum(radius * np.abs(slope()).sum() > margins) > boxed.success.sum()


def test_the_gradient_runs_through_a_refinement():
    """A chain that contracts by c before a linear classifier w.x: the distance grows by exactly 1 / c."""
    halfway = refine(partial(sgld, step_size=0.2, noise_scale=0.0), lambda params, x: 0.5 * jnp.sum(x**2), 3)
    xs, labels, _ = linear_examples()

    def defended(rng_key, params, x):
        return linear(params, halfway(rng_key, None, x))

    logits = 0.8**3 * xs @ np.asarray(PARAMS[0]).T + np.asarray(PARAMS[1])
    right = logits.argmax(1) == labels
    distance = np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(slope()) / 0.8**3
    radius = np.median(distance)
    result = attack_batch(
        KEY,
        defended,
        PARAMS,
        xs,
        labels,
        norm="l2",
        radius=radius,
        num_steps=20,
        step_size=2 * radius,
        state_clamp=None,
        chunk_size=60,
    )
    clear = right & (np.abs(distance / radius - 1) > 1e-3)
    np.testing.assert_array_equal(result.success[clear], (distance < radius)[clear])


def mlp(params, x):
    return params["out"] @ jnp.tanh(params["in"] @ x + params["bias"])


def numpy_attack(rng, params, xs, labels, radius, num_steps, num_restarts):
    """Projected gradient ascent on the cross-entropy in linf, written out for a batch, as another program."""
    fooled = np.zeros(len(xs), bool)
    rows, step = np.arange(len(xs)), 2.5 * radius / num_steps
    for _ in range(num_restarts):
        moved = np.clip(xs + rng.uniform(-radius, radius, xs.shape), -1, 1)
        for _ in range(num_steps):
            hidden = np.tanh(moved @ params["in"].T + params["bias"])
            logits = hidden @ params["out"].T
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[rows, labels] -= 1.0
            gradient = ((p @ params["out"]) * (1 - hidden**2)) @ params["in"]
            moved = np.clip(np.clip(moved + step * np.sign(gradient), xs - radius, xs + radius), -1, 1)
        logits = np.tanh(moved @ params["in"].T + params["bias"]) @ params["out"].T
        fooled |= logits.argmax(1) != labels
    return fooled


def test_it_finds_what_another_program_finds_on_a_network():
    rng = np.random.default_rng(2)
    params = {
        "in": rng.normal(size=(30, 12)),
        "bias": rng.normal(size=30),
        "out": rng.normal(size=(5, 30)),
    }
    xs = rng.uniform(-1, 1, (300, 12))
    labels = (np.tanh(xs @ params["in"].T + params["bias"]) @ params["out"].T).argmax(1)
    as_float32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    for radius in (0.05, 0.12):
        result = attack_batch(
            KEY,
            deterministic(mlp),
            as_float32,
            xs,
            labels,
            norm="linf",
            radius=radius,
            num_steps=20,
            num_restarts=3,
            chunk_size=300,
        )
        expected = numpy_attack(rng, params, xs, labels, radius, 20, 3)
        assert 0.1 < expected.mean() < 0.9
        assert np.mean(result.success == expected) > 0.98
        assert result.success.mean() == pytest.approx(expected.mean(), abs=0.015)


def test_restarts_count_and_the_first_success_is_kept():
    """The loss rises on both sides of x, and only the right one crosses the boundary: half the starts win."""

    def logits(params, x):
        height = jnp.where(x[0] > 0, 1.5 * x[0], -0.5 * x[0])
        return jnp.stack([1.0, height])

    xs, labels = np.zeros((400, 1)), np.zeros(400, int)
    run = partial(
        attack_batch,
        KEY,
        deterministic(logits),
        None,
        xs,
        labels,
        norm="linf",
        radius=1.0,
        num_steps=5,
        chunk_size=400,
    )
    for num_restarts in (1, 2):
        result = run(num_restarts=num_restarts)
        chance = 1 - 0.5**num_restarts
        assert abs(result.success.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / 400)
        np.testing.assert_array_equal(result.success, result.x_adversarial[:, 0] > 2 / 3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_starts_are_uniform_in_the_ball(norm):
    """|x' - x|^2 has mean D / (D + 2) r^2 in l2; an entry has mean square r^2 / 3 in linf."""
    dimension, n, radius = 5, 2000, 0.7
    center = np.full((n, dimension), 0.2)
    result = attack_batch(
        KEY,
        deterministic(linear),
        (jnp.ones((2, dimension)), jnp.zeros(2)),
        center,
        np.zeros(n, int),
        norm=norm,
        radius=radius,
        num_steps=1,
        step_size=1e-9,
        state_clamp=None,
        chunk_size=n,
    )
    offset = (result.x_adversarial - 0.2) / radius
    assert np.abs(offset.mean(0)).max() < 5 / np.sqrt(n)
    if norm == "l2":
        squared = np.sum(offset**2, axis=1)
        assert squared.max() <= 1 + 1e-5
        assert abs(squared.mean() - dimension / (dimension + 2)) < 5 * squared.std() / np.sqrt(n)
    else:
        assert np.abs(offset).max() <= 1 + 1e-5
        assert np.abs((offset**2).mean(0) - 1 / 3).max() < 5 * np.sqrt(4 / 45 / n)


def test_expectation_over_noise_lowers_the_gradients_variance_as_one_over_n():
    """One l2 step goes along the mean of n noisy slopes: 1 - cos of its angle to the truth falls as 1 / n."""
    dimension, noise = 8, 0.3

    def defended(rng_key, params, x):
        noisy = jnp.zeros(dimension).at[0].set(1.0) + noise * jax.random.normal(rng_key, (dimension,))
        return jnp.stack([0.0, noisy @ x])

    xs, labels = np.zeros((300, dimension)), np.zeros(300, int)
    off = {}
    for n in (4, 64):
        result = attack_batch(
            KEY,
            defended,
            None,
            xs,
            labels,
            norm="l2",
            radius=1e-3,
            num_steps=1,
            step_size=100.0,  # so long that the projection leaves its direction only
            loss="margin",
            state_clamp=None,
            num_expectation_samples=n,
            chunk_size=300,
        )
        off[n] = np.mean(1 - result.x_adversarial[:, 0] / 1e-3)
        expected = (dimension - 1) * noise**2 / (2 * n)
        assert off[n] == pytest.approx(expected, rel=0.25)
    assert off[4] / off[64] == pytest.approx(16, rel=0.25)


def test_each_step_draws_the_defences_noise_anew():
    """Slopes of a random sign: 8 steps end 8 lengths away with one draw for all, and nearer with eight."""

    def defended(rng_key, params, x):
        return jnp.stack([0.0, jax.random.rademacher(rng_key, (), jnp.float32) * x[0]])

    result = attack_batch(
        KEY,
        defended,
        None,
        np.zeros((200, 1)),
        np.zeros(200, int),
        norm="linf",
        radius=1000.0,
        num_steps=8,
        step_size=100.0,
        loss="margin",
        state_clamp=None,
        chunk_size=200,
    )
    # Where the walk did not meet the ball it is start + 100 times the sum of eight signs, an even number: its
    # variance is that of the start, r^2 / 3, and 8 * 100^2; one sign for all would clip nearly all of them.
    assert np.mean(np.abs(result.x_adversarial) > 999) < 0.3
    assert result.x_adversarial.std() < 800


def test_one_program_serves_all_radii_steps_boxes_and_parameters():
    xs, labels, _ = linear_examples(20)
    run = partial(attack_batch, KEY, deterministic(linear), norm="l2", num_steps=3, chunk_size=7)
    run(PARAMS, xs, labels, radius=0.1)
    programs = attacks._attack_chunk._cache_size()
    run(PARAMS, xs[:9], labels[:9], radius=0.2, step_size=0.05, state_clamp=(-2.0, 2.0))
    run(jax.tree.map(lambda leaf: 2 * leaf, PARAMS), xs, labels, radius=0.3)
    assert attacks._attack_chunk._cache_size() == programs


def test_chunks_do_not_change_what_is_found():
    xs, labels, _ = linear_examples(20)
    run = partial(
        attack_batch, KEY, deterministic(linear), PARAMS, xs, labels, norm="l2", radius=0.1, num_steps=3
    )
    for whole, chunked in zip(run(chunk_size=20), run(chunk_size=7), strict=True):
        np.testing.assert_allclose(whole, chunked, rtol=1e-6)


GOOD = {"norm": "l2", "radius": 0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm='l1': norm must be one of 'l2', 'linf'"),
        ({"radius": 0.0}, "radius=0.0"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_restarts": 0}, "num_restarts=0"),
        ({"num_expectation_samples": 1.0}, "num_expectation_samples=1.0"),
        ({"step_size": -1.0}, "step_size=-1.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    xs, labels, _ = linear_examples(3)
    with pytest.raises(ValueError, match=message):
        attack(KEY, deterministic(linear), PARAMS, xs[0], labels[0], **{**GOOD, **options})
    with pytest.raises(ValueError, match=message):
        attack_batch(KEY, deterministic(linear), PARAMS, xs, labels, **{**GOOD, **options})


def test_bad_examples_are_named():
    xs, labels, _ = linear_examples(3)
    run = partial(attack_batch, KEY, deterministic(linear), PARAMS, **GOOD)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\)"):
        run(xs, labels[:2])
    with pytest.raises(ValueError, match=r"labels spans 0\.\.2|labels spans 2\.\.2"):
        run(xs, np.full(3, 2))
    with pytest.raises(TypeError, match="images has dtype int"):
        run(xs.astype(int), labels)
    with pytest.raises(ValueError, match=r"images spans -3\.\.3: it must lie in state_clamp=\(-1\.0, 1\.0\)"):
        run(3 * np.sign(xs), labels)
    with pytest.raises(ValueError, match="images holds 1 non-finite"):
        run(np.where(np.arange(18).reshape(3, 6) == 4, np.nan, xs), labels)
    with pytest.raises(ValueError, match="chunk_size=0"):
        run(xs, labels, chunk_size=0)
    with pytest.raises(ValueError, match=r"x spans 2\.\.2"):
        attack(KEY, deterministic(linear), PARAMS, jnp.full(6, 2.0), 0, **GOOD)
    with pytest.raises(ValueError, match=r"label has shape \(1,\)"):
        attack(KEY, deterministic(linear), PARAMS, xs[0], labels[:1], **GOOD)
    with pytest.raises(ValueError, match=r"defended\(rng_key, params, x\) has shape \(1, 2\)"):
        attack_batch(KEY, lambda key, params, x: linear(params, x)[None], PARAMS, xs, labels, **GOOD)


def test_a_loss_that_is_not_finite_is_said():
    xs, labels, _ = linear_examples(3)
    broken = jax.tree.map(lambda leaf: leaf * jnp.inf, PARAMS)
    with pytest.raises(FloatingPointError, match="not finite at 3 of 3"):
        attack_batch(KEY, deterministic(linear), broken, xs, labels, num_steps=1, chunk_size=3, **GOOD)


def test_a_label_out_of_range_is_refused_and_a_traced_one_has_no_loss():
    xs = linear_examples(3)[0]
    run = partial(attack, KEY, deterministic(linear), PARAMS, num_steps=1, **GOOD)
    for label in (2, -1):
        with pytest.raises(ValueError, match=f"label spans {label}..{label}"):
            run(xs[0], label)
    for loss in attacks._LOSSES.values():
        losses = jax.jit(jax.vmap(loss, (None, 0)))(jnp.array([1.0, 2.0]), jnp.array([-1, 0, 1, 2]))
        assert np.isnan(losses).tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="two classes or more"):
        attack(KEY, deterministic(lambda params, x: linear(params, x)[:1]), PARAMS, xs[0], 0, **GOOD)


def test_what_is_no_function_key_or_number_is_named():
    xs, labels, _ = linear_examples(3)
    run = partial(attack_batch, KEY, deterministic(linear), PARAMS, xs, labels)
    with pytest.raises(TypeError, match="rng_key has dtype uint32"):
        attack_batch(jax.random.PRNGKey(0), deterministic(linear), PARAMS, xs, labels, **GOOD)
    with pytest.raises(TypeError, match="defended"):
        attack_batch(KEY, lambda params, x: x, PARAMS, xs, labels, **GOOD)
    with pytest.raises(ValueError, match="radius has shape"):
        run(norm="l2", radius=np.ones(3))
    with pytest.raises(ValueError, match="state_clamp='wide'"):
        run(**GOOD, state_clamp="wide")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError) as caught:
        attack_batch(KEY, deterministic(linear), (PARAMS[0].T, 0.0), xs, labels, **GOOD)
    assert any("params of" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_narrow_examples_under_x64(dtype):
    with jax.enable_x64(True):
        xs, labels, _ = linear_examples(3)
        result = attack_batch(
            KEY,
            deterministic(linear),
            PARAMS,
            jnp.asarray(xs, dtype),
            labels,
            norm="l2",
            radius=9.0,
            num_steps=5,
            state_clamp=None,
        )
        assert result.x_adversarial.dtype == dtype
        assert result.success.all()
