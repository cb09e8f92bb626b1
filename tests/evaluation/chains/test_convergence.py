"""Diagnostics of histories against processes of known autocorrelation, and slow float64 transcriptions."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from jaxebm.evaluation.chains.convergence import (
    effective_sample_size,
    integrated_autocorrelation_time,
    monte_carlo_standard_error,
    r_hat,
    rank_normalised_r_hat,
    summarise_chains,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")

RHOS = np.array([0.0, 0.5, 0.9, -0.4])
NUM_CHAINS, NUM_STEPS, REPLICATES = 4, 1000, 100


@pytest.fixture(scope="module")
def autoregressive():
    """AR(1) of variance 1 and each coefficient, many times: ``(chains, steps, coefficients, replicates)``."""
    noise = np.random.default_rng(0).normal(size=(NUM_CHAINS, NUM_STEPS, len(RHOS), REPLICATES))
    history = np.empty_like(noise)
    for column, rho in enumerate(RHOS):
        driven = noise[:, :, column] * np.sqrt(1 - rho**2)
        driven[:, 0] = noise[:, 0, column]  # begun in equilibrium
        history[:, :, column] = scipy.signal.lfilter([1.0], [1.0, -rho], driven, axis=1)
    return history


@pytest.fixture(scope="module")
def times_and_errors(autoregressive):
    history = jnp.asarray(autoregressive, jnp.float32)
    with jax.numpy_rank_promotion("raise"):  # conftest's comes later than a module's fixtures
        estimates = integrated_autocorrelation_time(history), monte_carlo_standard_error(history)
    return [np.asarray(estimate, np.float64) for estimate in estimates]


def variance_of_mean(rho, num_steps):
    """Exact, of the mean of one AR(1) chain of variance 1."""
    lags = np.arange(1, num_steps)
    return (1 + 2 * np.sum((1 - lags / num_steps) * rho**lags)) / num_steps


def test_autocorrelation_time_of_an_ar1_process(times_and_errors):
    """(1 + rho) / (1 - rho), on average over replicates to 5 standard errors and 3% for the truncation."""
    times, _ = times_and_errors
    exact = (1 + RHOS) / (1 - RHOS)
    error = times.std(axis=1, ddof=1) / np.sqrt(REPLICATES)
    assert np.all(np.abs(times.mean(axis=1) - exact) < 5 * error + 0.03 * exact)
    assert np.all(times.std(axis=1) < 0.3 * exact)  # one estimate alone is of use


def test_standard_error_is_the_spread_of_the_mean(times_and_errors, autoregressive):
    """Its mean square over replicates, against the exact variance and against the means themselves."""
    _, errors = times_and_errors
    exact = np.array([variance_of_mean(rho, NUM_STEPS) / NUM_CHAINS for rho in RHOS])
    assert np.all(np.abs(np.square(errors).mean(axis=1) / exact - 1) < 0.08)  # a few per cent by truncation
    # (mean / standard error)^2 is nearly chi-squared of one degree, whose variance is 2.
    ratios = np.square(autoregressive.mean(axis=(0, 1)) / errors).mean(axis=1)
    assert np.all(np.abs(ratios - 1) < 5 * np.sqrt(2 / REPLICATES))


# Small histories: a column is one case, all of one shape, so that each diagnostic is compiled once.


def slow_r_hat(draws):
    within = draws.var(axis=1, ddof=1).mean()
    between = draws.shape[1] * draws.mean(axis=1).var(ddof=1)
    return np.sqrt((between / within + draws.shape[1] - 1) / draws.shape[1])


def slow_rank_normalised_r_hat(draws):
    """Vehtari et al. 2021, section 4, in float64."""

    def scores(values):
        ranks = scipy.stats.rankdata(values).reshape(values.shape)
        return scipy.stats.norm.ppf((ranks - 0.375) / (values.size + 0.25))

    half = draws.shape[1] // 2
    split = np.concatenate([draws[:, :half], draws[:, -half:]])
    return max(slow_r_hat(scores(split)), slow_r_hat(scores(np.abs(split - np.median(split)))))


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4, 200))
    first = np.arange(4)[:, None] == 0
    columns = {
        "agreeing": draws,
        "one_shifted": draws + 2.0 * first,
        "one_wide": draws * np.where(first, 5.0, 1.0),
        "drifting": draws + np.linspace(-2.0, 2.0, 200),
        "cubed": draws**3,
        "cauchy": np.tan(np.pi * (scipy.stats.norm.cdf(draws) - 0.5)),
        "far": np.round(64 * draws) / 64 + 2.0**17,  # exact in float32
        "infinite": np.where((draws == draws.max()), np.inf, draws),
        "missing": np.where((draws == draws.max()), np.nan, draws),
        "stuck_together": np.zeros_like(draws),
        "stuck_apart": np.broadcast_to(np.arange(4.0)[:, None], draws.shape),
    }
    history = np.stack(list(columns.values()), axis=2).astype(np.float32)
    diagnostics = {
        "r_hat": r_hat,
        "rank": rank_normalised_r_hat,
        "mean": effective_sample_size,
        "bulk": partial(effective_sample_size, kind="bulk"),
        "time": integrated_autocorrelation_time,
    }
    with jax.numpy_rank_promotion("raise"):  # compiled once, as the same is in force in tests
        found = {name: np.asarray(diagnostic(history)) for name, diagnostic in diagnostics.items()}
    by_name = {kind: dict(zip(columns, values, strict=True)) for kind, values in found.items()}
    exact = {name: history[:, :, i].astype(np.float64) for i, name in enumerate(columns)}
    return {"array": history, "history": exact, **by_name}


def test_the_parts_of_a_summary_are_the_functions(cases):
    history, finite = jnp.asarray(cases["array"]), np.isfinite(cases["array"]).all(axis=(0, 1))
    with pytest.warns(RuntimeWarning, match=r"1 of 4 chains \(\d\) hold draws that are not finite"):
        summary = summarise_chains(history)
    for part, kind in (
        (summary.effective_sample_size, "mean"),
        (summary.autocorrelation_time, "time"),
        (summary.r_hat, "rank"),
    ):
        np.testing.assert_array_equal(part, list(cases[kind].values()))
    np.testing.assert_array_equal(summary.tail_effective_sample_size, effective_sample_size(history, "tail"))
    np.testing.assert_array_equal(summary.standard_error, monte_carlo_standard_error(history))
    assert summary.acceptance_rate is None
    exact = cases["array"].astype(np.float64)[:, :, finite]
    np.testing.assert_allclose(summary.mean[finite], exact.mean(axis=(0, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(summary.standard_deviation[finite], exact.std(axis=(0, 1), ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(summary.tail_effective_sample_size), ~finite)
    # Indicators of independent draws are independent: all 800 count, but for the noise of their few tails.
    assert 500 < summary.tail_effective_sample_size[0] < 1000


@pytest.mark.parametrize(
    "name", ["agreeing", "one_shifted", "one_wide", "drifting", "cubed", "cauchy", "far"]
)
def test_r_hats_equal_their_slow_transcriptions(cases, name):
    draws = cases["history"][name]
    assert cases["r_hat"][name] == pytest.approx(slow_r_hat(draws), rel=1e-4)
    assert cases["rank"][name] == pytest.approx(slow_rank_normalised_r_hat(draws), rel=1e-4)


def test_what_each_r_hat_sees(cases):
    plain, rank = cases["r_hat"], cases["rank"]
    assert plain["agreeing"] < 1.02
    assert rank["agreeing"] < 1.02
    assert plain["one_shifted"] > 1.2
    assert rank["one_shifted"] > 1.2
    # Width and drift are what the improved one is for.
    assert plain["one_wide"] < 1.02
    assert rank["one_wide"] > 1.2
    assert plain["drifting"] < 1.02
    assert rank["drifting"] > 1.2
    # Monotone maps leave ranks: the bulk part of the cubed and Cauchy draws is that of the normal ones.
    assert rank["cauchy"] < 1.02
    assert cases["bulk"]["cauchy"] == pytest.approx(cases["bulk"]["agreeing"], rel=1e-3)


def test_the_level_of_a_quantity_costs_no_digits(cases):
    """Energies of 1e5 that vary by 1: their float32 means, of which R-hat is made, would be off by 0.01."""
    assert abs(cases["r_hat"]["far"] - slow_r_hat(cases["history"]["far"])) < 2e-6
    assert cases["mean"]["far"] == pytest.approx(cases["mean"]["agreeing"], rel=1e-2)


def test_disagreeing_chains_have_few_draws(cases):
    assert cases["mean"]["agreeing"] > 600
    assert cases["mean"]["one_shifted"] < 20


@pytest.mark.parametrize("name", ["infinite", "missing"])
def test_what_is_not_finite_is_not_a_number(cases, name):
    assert all(np.isnan(cases[kind][name]) for kind in ("r_hat", "rank", "mean", "bulk", "time"))


def test_chains_that_never_move(cases):
    assert cases["mean"]["stuck_together"] == 0
    assert cases["mean"]["stuck_apart"] == 0
    assert cases["time"]["stuck_apart"] == np.inf
    assert cases["r_hat"]["stuck_apart"] == np.inf
    assert np.isnan(cases["r_hat"]["stuck_together"])


@pytest.mark.parametrize("exponent", [110, 60, -62, -90])
def test_every_diagnostic_is_the_same_at_any_scale(cases, exponent):
    """Of order 1e33, 1e18, 1e-19 and 1e-27: squares that overflow or vanish in float32."""
    factor = np.float32(2.0**exponent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        summary, scaled = (summarise_chains(cases["array"] * unit) for unit in (np.float32(1), factor))
    for part in ("effective_sample_size", "tail_effective_sample_size", "autocorrelation_time", "r_hat"):
        np.testing.assert_array_equal(getattr(scaled, part), getattr(summary, part))
    for part in ("standard_deviation", "standard_error"):
        np.testing.assert_array_equal(getattr(scaled, part), getattr(summary, part) * factor)
    # An entry whose draws vanish beside the largest may round, not those of ordinary spread.
    np.testing.assert_allclose(scaled.mean, summary.mean * factor, rtol=1e-6)
    np.testing.assert_array_equal(r_hat(cases["array"] * factor), list(cases["r_hat"].values()))


@pytest.fixture(scope="module")
def draws():
    """Of the shape of the cases, so that no diagnostic is compiled again."""
    return np.random.default_rng(2).normal(size=(4, 200, 11)).astype(np.float32)


def test_the_mean_of_draws_whose_sum_is_out_of_range_is_finite(draws):
    summary = summarise_chains(np.where(np.arange(200)[:, None] % 2 == 0, 2e38, 3e38 + 0 * draws))
    np.testing.assert_allclose(summary.mean, 2.5e38, rtol=1e-6)
    np.testing.assert_allclose(summary.standard_deviation, 0.5e38 * np.sqrt(800 / 799), rtol=1e-5)


def test_numbers_that_the_precision_of_jax_does_not_hold_are_refused():
    draws = np.random.default_rng(0).normal(size=(2, 8))
    for factor in (1e60, 1e-60):
        with pytest.raises(ValueError, match="history has dtype float64 and a largest absolute value"):
            effective_sample_size(draws * factor)


def test_pytrees_are_judged_leaf_by_leaf(cases):
    history = cases["array"]
    tree = {"a": history, "b": (history[:, :, ::-1],)}
    for diagnostic, kind in (
        (r_hat, "r_hat"),
        (rank_normalised_r_hat, "rank"),
        (effective_sample_size, "mean"),
        (integrated_autocorrelation_time, "time"),
    ):
        found, expected = diagnostic(tree), np.array(list(cases[kind].values()))
        np.testing.assert_array_equal(found["a"], expected)
        np.testing.assert_array_equal(found["b"][0], expected[::-1])
    with pytest.warns(RuntimeWarning, match="not finite"):
        summary = summarise_chains(tree)
    assert jax.tree.structure(summary.mean) == jax.tree.structure(tree)
    errors = monte_carlo_standard_error(tree)
    np.testing.assert_array_equal(summary.standard_error["b"][0], errors["b"][0])
    assert summary.never_moved.shape == (4,)
    with pytest.raises(ValueError, match="history has leaves that begin with"):
        r_hat({"a": history, "b": history[:, :100]})
    with pytest.raises(ValueError, match="history has no arrays"):
        r_hat({})


def test_chains_that_never_moved_are_named(draws):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not summarise_chains(draws).never_moved.any()
    frozen = draws.copy()
    frozen[1:3] = frozen[1:3, :1]
    with pytest.warns(RuntimeWarning, match=r"2 of 4 chains \(1, 2\) never moved"):
        summary = summarise_chains({"a": frozen, "b": frozen})
    assert summary.never_moved.tolist() == [False, True, True, False]
    moved = frozen.copy()
    moved[1, 5, 0] += 1.0  # one entry of one step is a move
    with pytest.warns(RuntimeWarning, match=r"1 of 4 chains \(2\) never moved"):
        summarise_chains({"a": frozen, "b": moved})


def test_divergences_are_counted_and_said(draws):
    divergent = np.zeros((4, 200), bool)
    divergent[3, 7] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one of 800 is below 1%
        summary = summarise_chains(draws, is_divergent=divergent)
    assert summary.divergences.tolist() == [0, 0, 0, 1]
    divergent[1, :100] = True
    with pytest.warns(
        RuntimeWarning, match=r"101 transitions diverged, 12.6% of all, in 2 of 4 chains \(1, 3\)"
    ):
        summary = summarise_chains(draws, is_divergent=divergent)
    np.testing.assert_allclose(summary.divergence_rate, [0, 0.5, 0, 1 / 200])
    with warnings.catch_warnings():  # nothing is known, and nothing is said, inside jit
        warnings.simplefilter("error")
        traced = jax.eval_shape(lambda *given: summarise_chains(given[0], None, given[1]), draws, divergent)
    assert traced.divergences.shape == (4,)
    with pytest.raises(ValueError, match="is_divergent has shape"):
        summarise_chains(draws, is_divergent=divergent.T)
    with pytest.raises(TypeError, match="is_divergent has dtype"):
        summarise_chains(draws, is_divergent=divergent.astype(np.float32))


@pytest.mark.parametrize(
    ("x64", "dtype"), [(True, jnp.float16), (True, jnp.float32), (True, jnp.float64), (False, jnp.bfloat16)]
)
def test_every_floating_dtype_in_both_modes(x64, dtype):
    with jax.enable_x64(x64):
        history = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64)), dtype)
        summary = summarise_chains(history, jnp.ones((2, 64)), jnp.zeros((2, 64), bool))
        exact = slow_rank_normalised_r_hat(np.asarray(history, np.float64))
        assert float(summary.r_hat) == pytest.approx(exact, rel=1e-4)
        assert summary.effective_sample_size > 60


def test_a_single_chain_has_no_r_hat_and_acceptance_is_by_chain():
    draws = jax.random.normal(jax.random.key(0), (1, 64))
    summary = summarise_chains(draws, jnp.full((1, 64), 0.25))
    assert np.isnan(summary.r_hat)
    assert summary.effective_sample_size > 20
    np.testing.assert_allclose(summary.acceptance_rate, [0.25])


@pytest.mark.parametrize(
    ("function", "history", "message"),
    [
        (effective_sample_size, jnp.zeros(5), "history has shape"),
        (effective_sample_size, jnp.zeros((2, 3)), "4 steps"),
        (monte_carlo_standard_error, jnp.zeros((2, 3)), "4 steps"),
        (integrated_autocorrelation_time, jnp.zeros((0, 9)), "at least 1 chain and"),
        (r_hat, jnp.zeros((1, 9)), "at least 2 chains"),
        (rank_normalised_r_hat, jnp.zeros((1, 9)), "at least 2 chains"),
        (summarise_chains, jnp.zeros(5), "history has shape"),
    ],
)
def test_bad_shapes_are_refused(function, history, message):
    with pytest.raises(ValueError, match=message):
        function(history)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="kind='middle'"):
        effective_sample_size(jnp.zeros((2, 9)), "middle")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="acceptance has shape"):
        summarise_chains(jnp.zeros((2, 9)), jnp.zeros((2, 8)))
    with pytest.raises(TypeError, match="history has dtype int32"):
        r_hat(jnp.zeros((2, 9), jnp.int32))
