"""Proposals against SciPy's densities, against their own samples, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from jaxebm.data import TOY_DENSITIES
from jaxebm.energies import gaussian_mixture, joint_energy
from jaxebm.objectives import (
    Batch,
    Negatives,
    Proposal,
    gaussian_proposal,
    noise_contrastive,
    proposal_of,
    self_normalised,
)
from jaxebm.objectives.examples import learnt_energy
from jaxebm.objectives.proposals import check_proposal, energies_with_noise
from jaxebm.samplers import fit_gaussian

pytestmark = pytest.mark.usefixtures("cheap_compilation")

RNG = np.random.default_rng(0)
MIXING = np.array([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-0.5, 0.2, 0.05]])
FLAT = RNG.normal(size=(400, 3)) @ MIXING.T + np.array([1.0, -2.0, 0.5])
DATA = {"a": FLAT[:, :1].astype(np.float32), "b": FLAT[:, 1:].reshape(-1, 2, 1).astype(np.float32)}
KEY = jax.random.key(0)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_gaussian_has_the_widened_moments_of_the_data(covariance):
    proposal = gaussian_proposal(DATA, widening=1.5, covariance=covariance, regularisation=0.01)
    fitted = np.cov(FLAT.T, bias=True)
    fitted = np.diag(np.diag(fitted)) if covariance == "diagonal" else fitted
    fitted = 1.5**2 * (fitted + 0.01 * np.eye(3))
    wanted = multivariate_normal(FLAT.mean(axis=0), fitted)

    found = jax.jit(jax.vmap(proposal.log_density))(DATA)
    np.testing.assert_allclose(found, wanted.logpdf(FLAT), rtol=1e-4, atol=1e-4)

    draws = jax.jit(proposal.sample, static_argnums=1)(KEY, 40_000)
    assert jax.tree.map(np.shape, draws) == {"a": (40_000, 1), "b": (40_000, 2, 1)}
    flat = np.concatenate([draws["a"], draws["b"][..., 0]], axis=1)
    # Five standard errors of a mean, and about as much of a covariance.
    np.testing.assert_allclose(flat.mean(axis=0), FLAT.mean(axis=0), atol=5 * np.sqrt(fitted.max() / 40_000))
    np.testing.assert_allclose(np.cov(flat.T), fitted, atol=8 * fitted.max() / np.sqrt(40_000))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_draws_keep_the_dtype_of_the_data_and_densities_are_wide(dtype):
    with jax.enable_x64(True):
        proposal = gaussian_proposal(jnp.asarray(FLAT, dtype))
        draws = proposal.sample(KEY, 4)
        assert draws.dtype == dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        assert proposal.log_density(draws[0]).dtype == wide


def test_proposal_of_a_target_is_normalised_and_draws_from_it():
    target = gaussian_mixture([1.0, 2.0], [[-1.0, 0.0], [2.0, 1.0]], [0.5, 1.0])
    proposal = proposal_of(target)
    x = jnp.array([0.3, 0.2])
    np.testing.assert_allclose(proposal.log_density(x), target.log_density(x), rtol=1e-6)
    np.testing.assert_array_equal(proposal.sample(KEY, 5), target.sample(KEY, target.params, 5))


def test_toy_densities_are_proposals():
    check_proposal("proposal", TOY_DENSITIES["rings"])


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (fit_gaussian(FLAT), r"GaussianInitial, which has no sample"),
        (Proposal(lambda rng_key, num_samples: None, None), r"no log_density\(x\): the density"),
        (gaussian_mixture([1.0], [[0.0]], [1.0]), r"proposal=proposal_of\(target\)"),
        (Proposal(lambda rng_key: None, lambda x: 0.0), r"proposal\.sample.*takes \(rng_key\)"),
        (Proposal(lambda rng_key, num_samples: None, lambda params, x: 0.0), r"proposal\.log_density"),
    ],
)
@pytest.mark.parametrize("objective", [noise_contrastive, self_normalised])
def test_a_proposal_without_density_is_refused(objective, proposal, message):
    with pytest.raises(TypeError, match=message):
        objective(lambda params, x: jnp.sum(x), proposal)


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (gaussian_proposal(FLAT[:, :2]), r"proposal\.sample gave 8 examples of shapes \(8, 2\): \(8, 3\)"),
        (Proposal(lambda rng_key, num_samples: jnp.zeros((3, 3)), lambda x: 0.0), r"shapes \(3, 3\)"),
        (
            Proposal(lambda rng_key, num_samples: jnp.zeros((num_samples, 3)), lambda x: -(x**2)),
            r"proposal\.log_density returned shape \(3,\)",
        ),
    ],
)
def test_noise_of_another_shape_is_refused(proposal, message):
    objective = noise_contrastive(lambda params, x: jnp.sum(x), proposal)
    batch = Batch(None, None, jnp.zeros((8, 3)))
    with pytest.raises(ValueError, match=message):
        objective.loss(None, KEY, batch, Negatives(None, None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widening": 0.0}, "widening=0.0"),
        ({"regularisation": -1.0}, "regularisation=-1.0"),
        ({"covariance": "spherical"}, "covariance='spherical'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        gaussian_proposal(FLAT, **options)


@pytest.mark.parametrize(("count", "rows"), [(2, [0, 3]), (4, [0, 1, 3, 4]), (8, [0, 1, 2, 3, 4, 5, 0, 1])])
def test_noise_takes_labels_from_the_whole_batch(count, rows):
    """A batch sorted by class: the first rows alone would be one class."""
    learnt = learnt_energy(joint_energy(lambda params, x: -params))
    xs, labels = jnp.zeros((6, 1)), jnp.arange(6)
    _, energies = energies_with_noise(
        learnt, jnp.arange(6.0), KEY, Batch(xs, labels, xs), jnp.zeros((count, 1)), "test"
    )
    assert energies.tolist() == rows  # -logit of the label is the label
