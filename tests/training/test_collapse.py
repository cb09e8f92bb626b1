"""Each kind of slow collapse is found in records made to show it, and none in those of a healthy run."""

import numpy as np
import pytest

from jaxebm.training import SLOW_COLLAPSE, Finding, measure_collapse, slow_collapse

# Of the default digits JEM, seed 0: every third record of 19.
HEALTHY = {
    "energy_gap": (0.161, 0.245, 0.151, 0.084, 0.01, -0.067, -0.06),
    "chain_spread": (1.116, 0.997, 0.996, 0.996, 0.997, 0.999, 0.997),
    "sample_grain": (1.0067,) * 7,
    "frozen_chains": (0.0,) * 7,
    "saturated_chains": (0.282, 0.333, 0.329, 0.34, 0.349, 0.357, 0.361),
    # Of dual score matching on MNIST, seed 0.
    "score_error": (0.528, 0.132, 0.112, 0.097, 0.09, 0.086, 0.084),
}


def records(**changes):
    """Twenty-one records of the healthy run, with other series in the place of some metrics."""
    steps = np.linspace(0.0, 1.0, 21)
    series = {name: np.interp(steps, np.linspace(0, 1, 7), values) for name, values in HEALTHY.items()}
    series |= {name: values(steps) for name, values in changes.items()}
    return [{name: float(values[index]) for name, values in series.items()} for index in range(21)]


def test_a_healthy_run_has_none():
    assert slow_collapse(records()) == ()
    assert list(measure_collapse(records())) == list(SLOW_COLLAPSE)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        # A network too small for its chains: -153 nats after 7600 updates, and no fault.
        ({"energy_gap": lambda s: -153.0 * s}, ["gap_below", "gap_drifts"]),
        ({"energy_gap": lambda s: 40.0 * np.minimum(5.0 * s, 1.0)}, ["gap_above"]),
        ({"energy_gap": lambda s: 9.0 * s}, ["gap_drifts"]),
        ({"energy_gap": lambda s: 5.0 * np.cos(100.0 * s)}, []),  # noise is no drift
        ({"chain_spread": lambda s: np.exp(-2.0 * s)}, ["samples_alike"]),
        ({"chain_spread": lambda s: np.exp(2.0 * s)}, ["samples_wander"]),
        ({"sample_grain": lambda s: 1.0 + s}, ["grain"]),
        ({"sample_grain": lambda s: 1.0 / (1.0 + s)}, ["grain"]),
        ({"frozen_chains": lambda s: 0.95 * s}, ["chains_stuck"]),
        ({"saturated_chains": lambda s: 0.95 * s}, ["chains_stuck"]),
        # CIFAR-10 at a learning rate of 2e-3: learnt until update 1000, then lost.
        ({"score_error": lambda s: np.where(s < 0.5, 0.484 - 0.5 * s, 0.484)}, ["error_rises"]),
        ({"score_error": lambda s: 0.2 + 0.02 * np.cos(50.0 * s)}, []),  # noise is no rise
    ],
)
def test_each_kind_is_found_and_no_other(changes, names):
    findings = slow_collapse(records(**changes))
    assert [finding.name for finding in findings] == names
    for finding in findings:
        assert isinstance(finding, Finding)
        assert finding.threshold == SLOW_COLLAPSE[finding.name].threshold
        assert f"{finding.measure:.3g}" in finding.text


def test_measures_have_the_values_of_their_formulas():
    found = measure_collapse(records(energy_gap=lambda s: 20.0 * s, sample_grain=lambda s: 0.5 + 0.0 * s))
    assert found["gap_below"] == found["gap_above"] == pytest.approx(20.0 * 0.975)  # the last two of 21
    assert found["gap_drifts"] == pytest.approx(11.0)  # 11 records between the second quarter and the last
    assert found["grain"] == pytest.approx(2.0)
    # Two records are a tenth of 21: the least mean of two in a row is that of the first two, .5 and .55.
    found = measure_collapse(records(score_error=lambda s: 0.5 + s))
    assert found["error_rises"] == pytest.approx(1.475 / 0.525)


def test_what_is_not_finite_or_not_measured_is_left_out():
    assert measure_collapse(records()[:9]) == measure_collapse([]) == {}
    broken = [record | {"energy_gap": float("nan")} for record in records()]
    assert "gap_below" not in measure_collapse(broken)
    assert measure_collapse([{"loss": 1.0}] * 30) == {}


@pytest.mark.parametrize("bad", [None, 3, [1.0, 2.0], {"loss": 1.0}])
def test_records_of_other_kinds_are_named(bad):
    with pytest.raises(TypeError, match="records"):
        slow_collapse(bad)
