"""Denoising finds the density of noisy data: closed forms, exact samples, energies known at every level."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.energies import ANALYTIC_TARGETS, at_level, joint_energy, joint_energy_at
from jaxebm.objectives import Batch, Negatives, denoising_at_levels, denoising_score_matching
from jaxebm.training import fit, learner

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY, NONE = jax.random.key(0), Negatives(None, None)
RNG = np.random.default_rng(0)
MIXTURE, GAUSSIAN = ANALYTIC_TARGETS["gaussian_mixture"](), ANALYTIC_TARGETS["gaussian"]()


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def evaluated(objective, params, xs, rng_key=KEY):
    """``((loss, metrics), gradient)`` of a batch without labels."""
    return jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(
        params, rng_key, Batch(None, None, xs), NONE
    )


def sampler(target):
    return lambda rng_key, num_samples: target.sample(rng_key, target.params, num_samples)


def smoothed_mixture(params, level):
    """A mixture of Gaussians under noise is one of wider Gaussians."""
    return params._replace(scales=jnp.sqrt(params.scales**2 + level**2))


def smoothed_gaussian(params, level):
    covariance = jnp.linalg.inv(params.precision) + level**2 * jnp.eye(2)
    return params._replace(precision=jnp.linalg.inv(covariance))


def mixture_at(params, x, level):
    return MIXTURE.energy(smoothed_mixture(params, level), x)


def isotropic(params, x):
    return 0.5 * jnp.exp(-params["log_variance"]) * jnp.sum((x - params["mean"]) ** 2)


def isotropic_at(params, x, level):
    return 0.5 * jnp.sum((x - params["mean"]) ** 2) / (jnp.exp(params["log_variance"]) + level**2)


# --- one level ---


def test_the_expected_loss_of_a_gaussian_has_its_closed_form():
    """E norm(s k (x + s z - m) - z)^2 = s^2 k^2 norm(x - m)^2 + (s^2 k - 1)^2 d."""
    xs, sigma = 0.7 * normal(20, 3), 0.8
    params = {"log_variance": jnp.array(0.4), "mean": normal(3)}

    def closed(params):
        precision = jnp.exp(-params["log_variance"])
        square = jnp.mean(jnp.sum((xs - params["mean"][None]) ** 2, axis=1))
        return sigma**2 * precision**2 * square + 3 * (sigma**2 * precision - 1) ** 2

    objective = denoising_score_matching(isotropic, noise_level=sigma)
    rng_keys = jax.random.split(KEY, 4000)
    (loss, metrics), gradient = jax.vmap(partial(evaluated, objective, params, xs))(rng_keys)
    value, slope = jax.value_and_grad(closed)(params)
    wanted = [slope["log_variance"], slope["mean"], value, value / 3]
    found = [gradient["log_variance"], gradient["mean"], loss, metrics["denoising_error"]]
    for many, one in zip(found, wanted, strict=True):
        error = np.std(many, axis=0, ddof=1) / np.sqrt(len(many))
        assert np.all(np.abs(np.mean(many, axis=0) - one) < 4.5 * error)
    # Its minimiser has the variance of the noisy data.
    noisy = {"log_variance": jnp.log(jnp.mean(jnp.var(xs, axis=0)) + sigma**2), "mean": jnp.mean(xs, axis=0)}
    chex.assert_trees_all_close(jax.grad(closed)(noisy), jax.tree.map(jnp.zeros_like, noisy), atol=1e-5)


@pytest.mark.parametrize(
    ("target", "smoothed", "level"), [(GAUSSIAN, smoothed_gaussian, 1.5), (MIXTURE, smoothed_mixture, 0.4)]
)
def test_the_gradient_is_zero_at_the_smoothed_density(target, smoothed, level, gradient_scores):
    objective = denoising_score_matching(target.energy, noise_level=level)
    assert np.abs(gradient_scores(objective, smoothed(target.params, level), sampler(target))).max() < 5
    assert np.abs(gradient_scores(objective, target.params, sampler(target))).max() > 10


# --- many levels ---


@pytest.mark.parametrize("num_levels", [None, 3])
def test_the_gradient_is_zero_at_the_energies_of_all_levels(num_levels, gradient_scores):
    objective = denoising_at_levels(mixture_at, lowest=0.1, highest=4.0, num_levels=num_levels)
    assert np.abs(gradient_scores(objective, MIXTURE.params, sampler(MIXTURE))).max() < 5
    if num_levels is None:
        elsewhere = MIXTURE.params._replace(means=MIXTURE.params.means + 0.2)
        assert np.abs(gradient_scores(objective, elsewhere, sampler(MIXTURE))).max() > 10


def test_levels_are_log_uniform_and_evenly_spaced_in_every_batch():
    """The gradient of s sum(x) is s in every coordinate, so the metrics show the mean of s^2."""

    def told(params, x, level):
        return params * level * jnp.sum(x)

    def of_keys(objective, xs, num_keys):
        def metrics(rng_key):
            return objective.loss(1.0, rng_key, Batch(None, None, xs), NONE)[1]

        return jax.jit(jax.vmap(metrics))(jax.random.split(KEY, num_keys))

    low, high, xs = 0.1, 5.0, jnp.zeros((1200, 2))
    for num_levels, wanted in (
        (None, (high**2 - low**2) / (2 * np.log(high / low))),
        (4, np.mean(np.geomspace(low, high, 4) ** 2)),
    ):
        objective = denoising_at_levels(told, lowest=low, highest=high, num_levels=num_levels)
        metrics = of_keys(objective, xs, 20)
        np.testing.assert_allclose(metrics["score_norm"] ** 2, 2 * wanted, rtol=0.01)
        # Batches of one example: each level is log-uniform.
        metrics = of_keys(objective, xs[:1], 4000)
        squares = np.asarray(metrics["score_norm"]) ** 2
        assert abs(squares.mean() - 2 * wanted) < 4.5 * squares.std() / np.sqrt(4000)
        assert squares.min() > 2 * low**2 * 0.99
        assert squares.max() < 2 * high**2 * 1.01
        if num_levels is not None:
            np.testing.assert_allclose(
                np.unique(squares.round(3)), 2 * np.geomspace(low, high, 4) ** 2, atol=2e-3
            )


def test_every_level_counts_alike():
    objective = denoising_at_levels(
        lambda params, x, level: 1e-9 * level * jnp.sum(x), lowest=1e-3, highest=1e3, weight=0.5
    )
    (loss, metrics), _ = evaluated(objective, 1.0, jnp.zeros((5000, 4)))
    np.testing.assert_allclose(loss, 0.5 * 4, rtol=0.05)
    for half in ("denoising_error", "denoising_error_low", "denoising_error_high"):
        np.testing.assert_allclose(metrics[half], 1.0, rtol=0.05)
    (_, metrics), _ = evaluated(objective, 1.0, jnp.zeros((1, 4)))  # one of the halves is empty
    chex.assert_tree_all_finite(metrics)


def test_training_at_all_levels_recovers_the_data_and_not_the_noise():
    data = 0.5 * normal(2000, 2) + jnp.array([[1.0, -2.0]])
    objective = denoising_at_levels(isotropic_at, lowest=0.1, highest=3.0)
    learn = learner(objective, optimizer=optax.adam(0.03), batch_size=256, ema_decay=0.98)
    start = {"log_variance": jnp.array(1.0), "mean": jnp.zeros(2)}
    found = fit(KEY, learn, start, data, num_steps=300).params
    np.testing.assert_allclose(found["mean"], jnp.mean(data, axis=0), atol=0.05)
    np.testing.assert_allclose(jnp.exp(found["log_variance"]), 0.25, rtol=0.1)


# --- energies, trees, dtypes ---


def test_the_energy_of_the_objective_is_that_of_the_lowest_level():
    x = normal(2)
    objective = denoising_at_levels(mixture_at, lowest=0.3, highest=1.0)
    np.testing.assert_allclose(objective.energy(MIXTURE.params, x, 0), mixture_at(MIXTURE.params, x, 0.3))
    one = denoising_score_matching(MIXTURE.energy, noise_level=0.3)
    np.testing.assert_allclose(one.energy(MIXTURE.params, x, 0), MIXTURE.energy(MIXTURE.params, x))


def test_the_energy_of_a_class_learns_from_the_examples_of_the_class():
    def logits_at(params, x, level):
        return -0.5 * jnp.sum((x[None] - params) ** 2, axis=1) / (0.25 + level**2)

    means, labels = jnp.array([[0.0, 0.0], [3.0, 1.0]]), jnp.arange(600) % 2
    xs = means[labels] + 0.5 * normal(600, 2)
    batch = Batch(xs, labels, jnp.full((7, 2), jnp.nan))
    energy_at = joint_energy_at(logits_at)
    for objective in (
        denoising_at_levels(energy_at, lowest=0.1, highest=2.0),
        denoising_score_matching(joint_energy(at_level(logits_at, 0.7)), noise_level=0.7),
    ):
        compiled = jax.jit(jax.grad(objective.loss, has_aux=True))
        right, wrong = (compiled(params, KEY, batch, NONE)[1] for params in (means, means[::-1]))
        assert float(right["denoising_error"]) < 0.7 * float(wrong["denoising_error"])
        assert float(objective.energy(means, means[1], 1)) == 0.0
        with pytest.raises(ValueError, match=r"denoising.* needs labels"):
            objective.loss(means, KEY, Batch(None, None, xs), NONE)


def test_positions_may_be_trees_and_keep_their_dtype():
    seen = []

    def energy_at(params, x, level):
        seen.append((x["a"].dtype, x["b"].dtype, level.dtype))
        return params * (jnp.sum(x["a"] ** 2) + jnp.sum(x["b"].astype(jnp.float32) ** 2)) / (1 + level)

    with jax.enable_x64(True):
        xs = {"a": normal(6, 2, 2), "b": jnp.zeros(6, jnp.bfloat16)}
        objective = denoising_at_levels(energy_at, lowest=0.1, highest=1.0)
        (loss, metrics), gradient = evaluated(objective, jnp.float32(0.0), xs)
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("bfloat16"), jnp.dtype("float32"))}
    assert {value.dtype for value in (loss, gradient, *metrics.values())} == {jnp.dtype("float32")}
    np.testing.assert_allclose(loss, 5 * metrics["denoising_error"], rtol=1e-6)


# --- what is refused ---


@pytest.mark.parametrize(
    "energy_at",
    [
        lambda params, x, level: params * jnp.sum(x**2),
        lambda params, x, level: params * jnp.sum(x**2) + jnp.log(level),
        jax.jit(lambda params, x, level: params * jnp.sum(x**2)),
        joint_energy_at(lambda params, x, level: params * x),
    ],
)
def test_an_energy_that_ignores_the_level_is_refused(energy_at):
    objective = denoising_at_levels(energy_at, lowest=0.1, highest=1.0)
    batch = Batch(normal(4, 2), jnp.zeros(4, int), normal(4, 2))
    with pytest.raises(ValueError, match="energy_at ignores the level that it is told"):
        objective.loss(1.0, KEY, batch, NONE)


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: denoising_score_matching(isotropic, noise_level=0.0), ValueError, "noise_level=0.0"),
        (lambda: denoising_score_matching(isotropic, noise_level=-1.0), ValueError, "noise_level=-1.0"),
        (lambda: denoising_score_matching(isotropic_at, noise_level=1.0), TypeError, "energy"),
        (lambda: denoising_score_matching(isotropic, noise_level=1.0, weight=-1.0), ValueError, "weight=-1"),
        (lambda: denoising_at_levels(isotropic_at, lowest=0.0, highest=1.0), ValueError, "lowest=0.0"),
        (
            lambda: denoising_at_levels(isotropic_at, lowest=1.0, highest=1.0),
            ValueError,
            "highest=1.0.*lowest",
        ),
        (lambda: denoising_at_levels(isotropic_at, lowest=0.1, highest=-2.0), ValueError, "highest=-2.0"),
        (lambda: denoising_at_levels(isotropic, lowest=0.1, highest=1.0), TypeError, "energy_at"),
        (
            lambda: denoising_at_levels(isotropic_at, lowest=0.1, highest=1.0, num_levels=1),
            ValueError,
            "num_levels=1",
        ),
    ],
)
def test_bad_options_are_refused_when_the_objective_is_made(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_what_an_energy_returns_is_judged_in_the_loss():
    with pytest.raises(ValueError, match="shape"):
        evaluated(denoising_score_matching(lambda params, x: params * x, noise_level=1.0), 1.0, normal(4, 2))
    objective = denoising_at_levels(lambda params, x, level: params * x * level, lowest=0.1, highest=1.0)
    with pytest.raises(ValueError, match="shape"):
        evaluated(objective, 1.0, normal(4, 2))
    with pytest.raises(TypeError, match="floating-point"):
        evaluated(objective, 1.0, jnp.ones((4, 2), int))
