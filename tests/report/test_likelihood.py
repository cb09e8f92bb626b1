"""Bits per dimension of a classifier whose log Z is known: a linear one, on images of two pixels."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxebm.data import Dataset, Split
from jaxebm.report.likelihood import COVERAGE, LikelihoodSettings, bound_likelihood
from jaxebm.report.subject import LevelPath

LEVELS = 17
BIN_WIDTH = 2 / (LEVELS - 1)
WEIGHTS = np.array([[2.0, 1.0], [-1.5, 3.0], [0.5, -4.0]])
BIASES = np.array([0.0, -0.5, 1.0])
TEMPERATURES = (1.0, 2.0)
SETTINGS = LikelihoodSettings(TEMPERATURES, steps=20, chains=64)

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def logits(params, x):
    weights, biases = params
    return weights @ x.reshape(-1) + biases


PARAMS = (jnp.asarray(WEIGHTS, jnp.float32), jnp.asarray(BIASES, jnp.float32))


def log_mass(low, high, temperature):
    """Of a rectangle, by Gauss and Legendre: log of the integral of (sum_k e^f_k(x))^(1 / T)."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half, middle = (high - low) / 2, (high + low) / 2
    values = np.stack(np.meshgrid(*(middle[:, None] + half[:, None] * nodes), indexing="ij"), axis=-1)
    exponents = scipy.special.logsumexp(values @ WEIGHTS.T + BIASES, axis=-1) / temperature
    return scipy.special.logsumexp(exponents, b=np.outer(weights, weights) * half.prod())


def exact(temperature, images):
    """``(log Z, mean log P)`` of images at levels in [-1, 1], each the mass of its cell."""
    end = np.full(2, 1 + BIN_WIDTH / 2)
    log_partition = log_mass(-end, end, temperature)
    masses = [log_mass(x - BIN_WIDTH / 2, x + BIN_WIDTH / 2, temperature) for x in images]
    return log_partition, np.mean(masses) - log_partition


def make_dataset(value_range=(0.0, LEVELS - 1.0)):
    low, high = value_range
    level = np.random.default_rng(0).integers(0, LEVELS, (300, 1, 2, 1)).astype(np.float32)
    split = Split(low + (high - low) * level / (LEVELS - 1), np.arange(300, dtype=np.int32) % 3)
    return Dataset("pairs", split, split, split, 3, value_range, ("a", "b", "c"))


@pytest.fixture(scope="module")
def entry():
    found = bound_likelihood(jax.random.key(0), logits, PARAMS, make_dataset(), SETTINGS)
    assert found is not None
    return found


def test_quadrature_is_the_closed_form_and_cells_are_all_there_is():
    """At T = 1, Z = sum_k e^b_k prod_i 2 sinh(w_ki L) / w_ki."""
    end = 1 + BIN_WIDTH / 2
    log_partition, _ = exact(1.0, [np.zeros(2)])
    closed = np.log(np.exp(BIASES) @ np.prod(2 * np.sinh(WEIGHTS * end) / WEIGHTS, axis=1))
    np.testing.assert_allclose(log_partition, closed, rtol=1e-12)
    levels = np.linspace(-1, 1, LEVELS)
    masses = [exact(2.0, [np.array(pair)])[1] for pair in itertools.product(levels, levels)]
    np.testing.assert_allclose(np.exp(masses).sum(), 1.0, rtol=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_interval_holds_the_exact_answers(entry, temperature):
    """Energies vary by 0.1 within a cell: 300 times 20 draws leave the mean log P an error of 0.0013 nats."""
    dataset = make_dataset()
    images = dataset.rescale(dataset.test.image).reshape(-1, 2).astype(np.float64)
    log_partition, mean = exact(temperature, images)
    found = entry["by_temperature"][f"{temperature:g}"]
    assert found["consistent"]
    assert found["log_partition"]["low"] < log_partition < found["log_partition"]["high"]
    assert found["log_partition"]["high"] - found["log_partition"]["low"] < 0.5
    nats, bits = found["nats"], found["bits_per_dimension"]
    assert nats["low"] < mean < nats["high"]
    # Taken back from the interval, the mean of the images' energies over their cells is that of quadrature.
    for end, other in (("low", "high"), ("high", "low")):
        np.testing.assert_allclose(
            nats[end] + found["log_partition"][other], mean + log_partition, atol=5 * 0.0013
        )
        np.testing.assert_allclose(bits[other], -nats[end] / (2 * math.log(2)), rtol=1e-5)
    assert bits["low"] < -mean / (2 * math.log(2)) < bits["high"]
    assert abs(found["settling"]["mean"]) < 5 * found["settling"]["standard_error"]
    assert all(10 < count < SETTINGS.chains + 1e-3 for count in found["effective_sample_size"].values())


def test_what_was_spent_is_told(entry):
    assert entry["uniform_bits_per_dimension"] == math.log2(LEVELS)
    assert (entry["steps"], entry["chains"], entry["coverage"]) == (20, 64, COVERAGE)
    assert set(entry["by_temperature"]) == {"1", "2"}
    assert entry["seconds"] > 0
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_continuous_pixels_have_no_cells(value_range):
    dataset = make_dataset(value_range)
    assert bound_likelihood(jax.random.key(0), logits, PARAMS, dataset, SETTINGS) is None


def test_nothing_is_done_where_nothing_is_asked():
    settings = SETTINGS._replace(steps=0)
    assert bound_likelihood(jax.random.key(0), logits, PARAMS, make_dataset(), settings) is None


PATH_MEAN, PATH_SCALE, PATH_OFFSET = 0.2, 0.5, 3.0


def logits_at(params, x, level):
    """Logits of two equal classes whose marginal is a Gaussian with noise, normalised but for an offset."""
    variance = PATH_SCALE**2 + level**2
    log_density = -0.5 * jnp.sum((x - PATH_MEAN) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
    return jnp.full(2, log_density + params - jnp.log(2.0))


def test_along_levels_the_interval_and_the_constant_are_exact():
    """At the lowest level a Gaussian of known log Z: masses of cells by its distribution function."""
    dataset, lowest = make_dataset(), 0.1
    settings = LikelihoodSettings((1.0,), steps=30, chains=64)
    params = jnp.asarray(PATH_OFFSET)
    path = LevelPath(logits_at, lowest, 8.0, normalised=True)

    def at_lowest(params, x):
        return logits_at(params, x, lowest)

    found = bound_likelihood(jax.random.key(3), at_lowest, params, dataset, settings, path=path)
    entry, normalised = found["by_temperature"]["1"], found["normalised"]
    assert entry["consistent"]
    assert entry["log_partition"]["low"] < PATH_OFFSET < entry["log_partition"]["high"]
    assert entry["log_partition"]["high"] - entry["log_partition"]["low"] < 1.0
    assert abs(normalised["log_partition"] - PATH_OFFSET) < 5 * normalised["standard_error"] + 1e-3
    images = np.asarray(dataset.rescale(dataset.test.image), float).reshape(-1, 2)
    spread = math.hypot(PATH_SCALE, lowest)
    ends = (images + BIN_WIDTH / 2 - PATH_MEAN) / spread, (images - BIN_WIDTH / 2 - PATH_MEAN) / spread
    masses = np.log(scipy.special.ndtr(ends[0]) - scipy.special.ndtr(ends[1])).sum(axis=1).mean()
    assert normalised["nats"] == pytest.approx(masses, abs=0.02)
    assert normalised["bits_per_dimension"] == pytest.approx(-normalised["nats"] / (2 * math.log(2)))
    # E log N(x + sigma z) over z, of the test images.
    squares = ((images - PATH_MEAN) ** 2).sum(axis=1).mean() + 2 * lowest**2
    noisy = -0.5 * squares / spread**2 - math.log(2 * math.pi * spread**2)
    assert normalised["log_density_of_noisy_images"] == pytest.approx(noisy, abs=0.06)
    json.dumps(found, allow_nan=False)
