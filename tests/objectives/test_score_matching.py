"""Score matching against its closed form, against quadrature, and on exact samples at the true parameters."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import ANALYTIC_TARGETS, MLP, joint_energy
from jaxebm.objectives import (
    Batch,
    Negatives,
    finite_difference_score_matching,
    score_matching,
    sliced_score_matching,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

KEY, NONE = jax.random.key(0), Negatives(None, None)
RNG = np.random.default_rng(0)
EXACT, HUTCHINSON = score_matching, partial(score_matching, trace="hutchinson")
SLICED, PLAIN = sliced_score_matching, partial(sliced_score_matching, variance_reduced=False)
DIFFERENCES = finite_difference_score_matching


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def evaluated(objective, params, xs, rng_key=KEY):
    """``((loss, metrics), gradient)`` of a batch without labels."""
    return jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(
        params, rng_key, Batch(None, None, xs), NONE
    )


def gaussian_energy(params, x):
    offset = x - params["mean"]
    return 0.5 * offset @ params["precision"] @ offset


def network_energy(params, x):
    return jnp.sum(params["readout"] * jnp.sin(params["weights"] @ x)) + 0.1 * jnp.sum(x**4)


def network(size):
    return {"weights": normal(5, size), "readout": normal(5)}


# --- closed forms ---


@pytest.mark.parametrize("size", [3, 11])
def test_explicit_score_matching_has_its_closed_form_on_a_gaussian(size):
    """J = tr(P C P) / 2 - tr P, C = mean (x - mean)(x - mean)': zero slope at P = covariance^-1."""
    xs = normal(40, size) @ (jnp.eye(size) + 0.3 * normal(size, size) / size**0.5) + 1.0
    root = normal(size, size) / size**0.5
    params = {"mean": normal(size), "precision": root @ root.T + jnp.eye(size)}

    def closed(params):
        offsets = xs - params["mean"][None]
        scatter = offsets.T @ offsets / len(xs)
        symmetric = 0.5 * (params["precision"] + params["precision"].T)
        square, laplacian = jnp.trace(symmetric @ scatter @ symmetric), jnp.trace(symmetric)
        return 3.0 * (0.5 * square - laplacian), {"score_norm": jnp.sqrt(square), "laplacian": laplacian}

    objective = score_matching(gaussian_energy, weight=3.0)
    wanted = jax.jit(jax.value_and_grad(closed, has_aux=True))(params)
    chex.assert_trees_all_close(evaluated(objective, params, xs), wanted, rtol=2e-4, atol=1e-3)

    covariance = jnp.cov(xs.T, bias=True).reshape(size, size)
    truth = {"mean": jnp.mean(xs, axis=0), "precision": jnp.linalg.inv(covariance)}
    (_, metrics), gradient = evaluated(objective, truth, xs)
    scale = jnp.max(jnp.abs(truth["precision"]))
    chex.assert_trees_all_close(gradient, jax.tree.map(jnp.zeros_like, gradient), atol=1e-3 * scale)
    np.testing.assert_allclose(metrics["laplacian"], metrics["score_norm"] ** 2, rtol=1e-3)


def test_positions_may_be_trees():
    def energy(params, x):
        return network_energy(params, jnp.concatenate([x["a"].ravel(), x["b"][None]]))

    def losses(energy, xs):
        batch = Batch(None, None, xs)
        return [
            make(energy).loss(params, KEY, batch, NONE)[0] for make in (EXACT, SLICED, PLAIN, DIFFERENCES)
        ]

    xs, params = normal(4, 5), network(5)
    tree = {"a": xs[:, :4].reshape(4, 2, 2), "b": xs[:, 4]}
    found, wanted = jax.jit(lambda tree, xs: (losses(energy, tree), losses(network_energy, xs)))(tree, xs)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
    # Each leaf has its key, so the others use other noise.
    assert np.all(np.isfinite(found))


# --- unbiased ---


@pytest.mark.parametrize(
    ("make", "energy"),
    [
        (partial(HUTCHINSON, num_probes=3), network_energy),
        (partial(PLAIN, num_projections=2), network_energy),
        # Differences of a quadratic energy have no error, whatever the step.
        (partial(DIFFERENCES, step=0.7, num_directions=2), gaussian_energy),
    ],
)
def test_random_directions_are_unbiased(make, energy):
    xs = normal(3, 3)
    params = network(3) if energy is network_energy else {"mean": normal(3), "precision": normal(3, 3)}
    wanted = evaluated(score_matching(energy), params, xs)
    of_key = partial(evaluated, make(energy), params, xs)
    (loss, metrics), gradient = jax.vmap(of_key)(jax.random.split(KEY, 3000))
    for many, one in zip(
        jax.tree.leaves((loss, metrics["laplacian"], gradient)),
        jax.tree.leaves((wanted[0][0], wanted[0][1]["laplacian"], wanted[1])),
        strict=True,
    ):
        error = np.std(many, axis=0, ddof=1) / np.sqrt(len(many)) + 1e-4 * np.abs(one) + 1e-5
        assert np.all(np.abs(np.mean(many, axis=0) - one) < 4.5 * error)


def test_the_variance_reduced_form_is_the_trace_by_random_probes():
    xs, params = normal(3, 3), network(3)
    probes, projections = HUTCHINSON(network_energy, num_probes=2), SLICED(network_energy, num_projections=2)
    found, wanted = (evaluated(objective, params, xs) for objective in (projections, probes))
    chex.assert_trees_all_close(found, wanted, rtol=1e-6)


# --- the truth ---


@pytest.mark.parametrize(
    ("make", "name"), [(EXACT, "skewed"), (PLAIN, "skewed"), (SLICED, "gaussian_mixture")]
)
def test_the_gradient_is_zero_at_the_true_parameters(make, name, gradient_scores):
    target = ANALYTIC_TARGETS[name]()

    def sample(rng_key, num_samples):
        return target.sample(rng_key, target.params, num_samples)

    objective = make(target.energy)
    assert np.abs(gradient_scores(objective, target.params, sample)).max() < 5
    if make is PLAIN:  # 64 batches tell other parameters from the truth
        elsewhere = jax.tree.map(lambda leaf: 1.2 * leaf + 0.1, target.params)
        assert np.abs(gradient_scores(objective, elsewhere, sample)).max() > 10


def log_gamma_energy(params, x):
    """x = log of a Gamma(shape) variable, stretched: skewed."""
    return jnp.exp(params["stretch"] * x) - params["shape"] * params["stretch"] * x


def mixture_energy(params, x):
    return -jax.nn.logsumexp(params["log_weights"] - 0.5 * ((x - params["means"]) / params["scales"]) ** 2)


TRUTHS = [
    (log_gamma_energy, {"shape": 2.0, "stretch": 0.7}),
    (mixture_energy, {"log_weights": [0.0, 0.8], "means": [-1.5, 1.0], "scales": [0.6, 0.9]}),
]


@pytest.mark.parametrize(("energy", "truth"), TRUTHS)
def test_by_quadrature_the_gradient_is_zero_and_that_of_differences_of_second_order(energy, truth):
    """On a line the directions are 1 and -1, which give equal losses: no number of the loss is random."""
    with jax.enable_x64(True):
        params = {name: jnp.asarray(value) for name, value in truth.items()}
        xs = jnp.linspace(-25.0, 12.0, 4001)
        density = jax.nn.softmax(-jax.vmap(energy, (None, 0))(params, xs))

        def expected(objective, params):
            def one(x):
                return objective.loss(params, jax.random.key(0), Batch(None, None, x[None]), NONE)[0]

            return jnp.sum(density * jax.vmap(one)(xs))

        def gradients(params, step):
            makes = (EXACT, HUTCHINSON, PLAIN, partial(DIFFERENCES, step=step))
            return [jax.grad(partial(expected, make(energy)))(params) for make in makes]

        compiled = jax.jit(gradients)
        *exact, coarse = compiled(params, 0.1)
        chex.assert_trees_all_close(exact, jax.tree.map(jnp.zeros_like, exact), atol=1e-9)
        fine = compiled(params, 0.05)[-1]
        chex.assert_trees_all_close(coarse, jax.tree.map(lambda leaf: 4 * leaf, fine), rtol=0.05)
        chex.assert_trees_all_close(fine, jax.tree.map(jnp.zeros_like, fine), atol=0.02)


# --- labels, dtypes ---


@pytest.mark.parametrize("make", [EXACT, DIFFERENCES])
def test_the_energy_of_a_class_learns_from_the_examples_of_the_class(make):
    def logits(params, x):
        return -0.5 * params * jnp.sum(x**2)

    xs, params = normal(6, 1), jnp.array([0.5, 2.0])
    labels = jnp.array([0, 0, 0, 1, 1, 1])
    objective = make(joint_energy(logits))
    batch = Batch(xs, labels, normal(4, 1))
    found = jax.jit(jax.grad(lambda params: objective.loss(params, KEY, batch, NONE)[0]))(params)
    wanted = 0.5 * (params * jnp.array([jnp.mean(xs[:3] ** 2), jnp.mean(xs[3:] ** 2)]) - 1)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert float(objective.energy(params, jnp.ones(1), 1)) == 1.0
    with pytest.raises(ValueError, match="score_matching needs labels"):
        objective.loss(params, KEY, Batch(None, None, xs), NONE)


def test_sums_are_in_float32_for_narrow_positions_and_for_float32_under_x64():
    def shapes(make, params, xs):
        objective = make(lambda params, x: 0.5 * params * jnp.sum(x**2))
        return jax.eval_shape(partial(evaluated, objective), params, xs)

    with jax.enable_x64(True):
        xs = normal(4, 9)
        for make in (EXACT, HUTCHINSON, PLAIN, DIFFERENCES):
            assert {leaf.dtype for leaf in jax.tree.leaves(shapes(make, jnp.float32(2.0), xs))} == {xs.dtype}
        narrow = jnp.bfloat16(2.0), xs.astype(jnp.bfloat16)
        for make in (EXACT, HUTCHINSON, PLAIN):
            assert {leaf.dtype for leaf in jax.tree.leaves(shapes(make, *narrow)[0])} == {xs.dtype}
        with pytest.raises(TypeError, match=r"the examples have dtype bfloat16.*float32 or wider"):
            shapes(DIFFERENCES, *narrow)
        objective = DIFFERENCES(lambda params, x: jnp.sum(params * x**2).astype(jnp.bfloat16))
        with pytest.raises(TypeError, match=r"energy returned dtype bfloat16: .*float32 or wider"):
            evaluated(objective, 2.0, xs)


# --- what is refused ---


@pytest.mark.parametrize("make", [EXACT, PLAIN])
def test_energies_without_second_derivatives_are_refused(make):
    module = MLP(1, (4,), activation="relu")
    params = jax.eval_shape(module.init, KEY, jnp.ones(2))
    for energy in (lambda params, x: module.apply(params, x).reshape(()), lambda params, x: jnp.sum(x)):
        with pytest.raises(ValueError, match=r"energy has second derivatives of zero.*swish, softplus"):
            jax.eval_shape(partial(evaluated, make(energy)), params, normal(4, 2))


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: score_matching(network_energy, trace="half"), ValueError, "trace='half'"),
        (lambda: score_matching(network_energy, num_probes=0), ValueError, "num_probes=0"),
        (lambda: score_matching(network_energy, weight=-1.0), ValueError, "weight=-1.0"),
        (lambda: score_matching(lambda x: x), TypeError, "energy"),
        (lambda: sliced_score_matching(network_energy, num_projections=0), ValueError, "num_projections=0"),
        (lambda: sliced_score_matching(network_energy, variance_reduced=2), TypeError, "variance_reduced=2"),
        (lambda: finite_difference_score_matching(network_energy, step=0.0), ValueError, "step=0.0"),
        (
            lambda: finite_difference_score_matching(network_energy, num_directions=0),
            ValueError,
            "num_directions",
        ),
    ],
)
def test_bad_options_are_refused_when_the_objective_is_made(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_what_an_energy_returns_is_judged_in_the_loss():
    for make in (EXACT, DIFFERENCES):
        with pytest.raises(ValueError, match="shape"):
            evaluated(make(lambda params, x: params * x), 1.0, normal(4, 2))
        with pytest.raises(TypeError, match="floating-point"):
            evaluated(make(network_energy), network(2), jnp.ones((4, 2), int))
