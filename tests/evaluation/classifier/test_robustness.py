"""Accuracy over radii against the exact curve of a linear classifier, and against the laws it must obey."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.classifier import attacks
from jaxebm.evaluation.classifier.refinement import deterministic
from jaxebm.evaluation.classifier.robustness import robust_accuracy

pytestmark = pytest.mark.usefixtures("cheap_compilation")
KEY = jax.random.key(0)
WEIGHT = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (80, 6)).astype(np.float32)
LABELS = np.random.default_rng(2).integers(0, 2, 80)


def linear(params, x):
    return params @ x


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_the_curve_of_a_linear_classifier_is_exact(norm, dual):
    """a(r) = mean of 1[signed margin / |w_1 - w_0|_* > r]; wrong examples have a negative margin."""
    slope = np.asarray(WEIGHT[1] - WEIGHT[0])
    distance = (2 * LABELS - 1) * (IMAGES @ slope) / np.linalg.norm(slope, dual)
    # In any order, and in the widest gaps between distances near some quantiles: PGD ends within 1% of them.
    sorted_distance = np.sort(distance[distance > 0])
    gaps = [
        max(range(at - 3, at + 3), key=lambda i: sorted_distance[i + 1] / sorted_distance[i])
        for at in (len(sorted_distance) // 4, len(sorted_distance) * 3 // 4, len(sorted_distance) // 2)
    ]
    radii = np.array([0.0, *(np.sqrt(sorted_distance[i] * sorted_distance[i + 1]) for i in gaps)])
    programs = attacks._attack_chunk._cache_size()
    curve = robust_accuracy(
        KEY,
        deterministic(linear),
        WEIGHT,
        IMAGES,
        LABELS,
        norm=norm,
        radii=radii,
        num_steps=60,
        state_clamp=None,
    )
    np.testing.assert_allclose(curve, np.mean(distance[:, None] > radii[None, :], axis=0), atol=1e-9)
    assert curve[2] < curve[3] < curve[1] < curve[0]
    assert attacks._attack_chunk._cache_size() == programs + 1


def test_the_curve_falls_even_where_attacks_fail_at_larger_radii():
    """A classifier that errs in a shell only: a large step jumps over it, yet what fell stays fallen."""

    def shell(params, x):
        return jnp.stack([0.5, jnp.exp(-50 * (jnp.abs(x[0]) - 0.3) ** 2)])

    images, labels = np.zeros((20, 1)), np.zeros(20, int)
    run = partial(
        robust_accuracy,
        KEY,
        deterministic(shell),
        None,
        images,
        labels,
        norm="linf",
        num_steps=4,
    )
    curve = run(radii=(0.0, 0.1, 0.3, 0.9))
    np.testing.assert_array_equal(curve[:3], [1.0, 1.0, 0.0])
    assert curve[3] == 0.0
    assert run(radii=(0.9,))[0] > 0.2  # alone, the largest radius fails on some


def test_every_judgement_draws_new_noise_and_averages():
    """Logits of noise around a weak truth: one draw errs by the normal law, the mean of many does not."""
    signal, n = 0.5, 2000

    def defended(rng_key, params, x):
        return jnp.stack([0.0, signal * jnp.sign(x[0])]) + jnp.sqrt(0.5) * jax.random.normal(rng_key, (2,))

    images = np.where(np.arange(n)[:, None] % 2, 0.9, -0.9)
    labels = np.arange(n) % 2
    run = partial(
        robust_accuracy, KEY, defended, None, images, labels, norm="linf", num_steps=1, chunk_size=n
    )
    # The attack cannot help: within 0.1 the sign of x does not change, and its gradient is 0.
    once = 0.69146  # Phi(0.5), the difference of the noises being N(0, 1)
    curve = run(radii=(0.0, 0.1))
    assert abs(curve[0] - once) < 4 * np.sqrt(once * (1 - once) / n)
    assert abs(curve[1] - once**2) < 4 * np.sqrt(once**2 * (1 - once**2) / n)  # two independent judgements
    sixteen = 0.97725  # Phi(0.5 * 4)
    averaged = run(radii=(0.0,), num_evaluation_samples=16)
    assert abs(averaged[0] - sixteen) < 4 * np.sqrt(sixteen * (1 - sixteen) / n)


def test_nothing_left_to_attack():
    """A classifier that is always wrong is wrong at every radius, and nothing is attacked."""
    run = partial(robust_accuracy, KEY, deterministic(linear), WEIGHT, IMAGES, norm="l2", num_steps=1)
    wrong = 1 - np.asarray(IMAGES @ np.asarray(WEIGHT).T).argmax(1)
    np.testing.assert_array_equal(run(wrong, radii=(0.0, 1.0)), [0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radii": ()}, r"radii has shape \(0,\)"),
        ({"radii": 0.1}, r"radii has shape \(\)"),
        ({"radii": (0.1, -0.1)}, "radii=.*finite and at least 0"),
        ({"radii": (0.1, np.inf)}, "radii=.*finite and at least 0"),
        ({"norm": "l1"}, "norm='l1'"),
        ({"num_evaluation_samples": 0}, "num_evaluation_samples=0"),
        ({"chunk_size": -3}, "chunk_size=-3"),
        ({"state_clamp": (0.0, 1.0)}, "images spans -0.99.*state_clamp"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        robust_accuracy(
            KEY,
            deterministic(linear),
            WEIGHT,
            IMAGES,
            LABELS,
            **{"norm": "l2", "radii": (0.1,), **options},
        )
