"""Single parts of the questions, by hand: temperature scaling, diverged chains, data of one class."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxebm.data import Dataset, Split
from jaxebm.evaluation import squared_radii
from jaxebm.report import Evaluation, ReportSettings
from jaxebm.report.chains import Samples, finite
from jaxebm.report.classes import judge_predictions, scale
from jaxebm.report.judges import Judges, independent_judges
from jaxebm.report.markdown import escape_markdown
from jaxebm.report.out_of_distribution import outlier_sets
from jaxebm.report.samples import _judge
from jaxebm.report.subject import flat
from jaxebm.report.training_history import TRAINING_HISTORY
from jaxebm.training import SLOW_COLLAPSE, slow_collapse

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def test_temperature_scaling_by_hand():
    logits = np.array([[3.0, 0.0], [0.0, 1.0]])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(scale(log_p, 2.0)), expected, rtol=1e-12)
    measures = judge_predictions(scale(log_p, 2.0), np.array([0, 0]))
    assert measures["accuracy"] == 0.5
    assert measures["nll"] == pytest.approx(-np.log(expected[:, 0]).mean())


def test_chains_that_diverged_are_counted_and_left_out():
    images = np.zeros((4, 2, 2, 1))
    images[1, 0, 0, 0], images[3, 1, 1, 0] = np.nan, np.inf
    kept = finite(Samples(images, np.arange(4)))
    assert kept.images.shape == (2, 2, 2, 1)
    np.testing.assert_array_equal(kept.labels, [0, 2])
    assert finite(Samples(images[1:2], None)).images.shape == (0, 2, 2, 1)


def test_images_of_one_class_need_no_judge_of_classes():
    image = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), np.uint8)
    split = Split(image, np.zeros(30, np.int32))
    dataset = Dataset("mine", split, split, split, 1, (0, 255), ("thing",))
    evaluation = Evaluation(SimpleNamespace(), dataset, ReportSettings())
    judges = evaluation.once(independent_judges)
    assert judges.network is judges.features is None
    np.testing.assert_array_equal(judges.predict(evaluation.images["test"]), 0)
    np.testing.assert_array_equal(judges.real, dataset.rescale(image))
    assert set(outlier_sets(evaluation)) == {"uniform_noise", "constant", "permuted_pixels"}
    assert evaluation.once(independent_judges) is judges


@pytest.mark.parametrize(
    ("card", "notes"),
    [
        ({"recoveries": []}, ["No update diverged"]),
        ({"recoveries": [], "recovery": False}, ["Recovery was off."]),
        (
            {
                "recoveries": [
                    {"said": "step 9: loss_a", "back_to": 4, "remedy": "x", "in_force": "y"},
                ]
            },
            ["The run recovered 1 time (", "step 9: loss\\_a: back to step 4 with x; in force: y."],
        ),
    ],
)
def test_recoveries_are_told(card, notes):
    (section,) = TRAINING_HISTORY.sections({"telemetry": None} | card)
    assert len(section.notes) == len(notes)
    assert all(found.startswith(note) for found, note in zip(section.notes, notes, strict=True))
    assert [picture.name for picture in section.pictures] == ["training"]


def a_run(**changes):
    """Records of training that goes as it should, the last tenth of it changed."""
    healthy = {"energy_gap": 0.1, "chain_spread": 0.9, "frozen_chains": 0.0}
    return [{"step": step} | healthy | (changes if step > 36 else {}) for step in range(1, 41)]


def history(records):
    dataset = SimpleNamespace()
    return TRAINING_HISTORY.judge(Evaluation(SimpleNamespace(), dataset, ReportSettings(), records=records))


def test_a_slow_change_has_a_measure_and_a_word():
    card = history(a_run(chain_spread=0.2))
    entry = card["slow_changes"]["samples_alike"]
    assert entry["measure"] == pytest.approx(0.2)
    assert (entry["threshold"], entry["side"]) == (SLOW_COLLAPSE["samples_alike"].threshold, "below")
    assert [name for name, found in card["slow_changes"].items() if found["text"]] == ["samples_alike"]
    _, section = TRAINING_HISTORY.sections(card)
    assert section.title == "Slow changes"
    (found,) = slow_collapse(a_run(chain_spread=0.2))
    assert section.notes == [escape_markdown(found.text)]
    words = {row[0]: (row[1], row[-1]) for row in section.tables[0].rows}
    assert words["spread of samples over that of data, alike"] == ("0.2", "unusual")
    assert words["drift of the energy gap"][1] == "usual"
    (row,) = TRAINING_HISTORY.summary(card)
    assert row[:2] == ("slow changes in training", "1")
    json.dumps(card, allow_nan=False)


def test_nothing_is_said_of_a_run_that_goes_as_it_should():
    card = history(a_run())
    assert TRAINING_HISTORY.summary(card) == []
    _, section = TRAINING_HISTORY.sections(card)
    assert section.notes == ["Nothing unusual."]
    assert {row[-1] for row in section.tables[0].rows} == {"usual"}
    short = history(a_run()[:5])
    assert short["slow_changes"] == {}
    assert [section.title for section in TRAINING_HISTORY.sections(short)] == ["Training"]
    assert history([])["slow_changes"] is None


def judges_of(real: np.ndarray, labels: np.ndarray) -> Judges:
    network = SimpleNamespace(features=lambda images: images.reshape(len(images), -1)[:, :3], name="stub")
    enough = len(real) > 5
    radii = {"pixels": squared_radii(flat(real)), "features": squared_radii(network.features(real))}
    return Judges(
        lambda images: np.zeros(len(images), np.int64),
        network,  # type: ignore[arg-type]
        real,
        labels,
        network.features(real),
        radii if enough else {},
    )


@pytest.mark.parametrize("with_classes", [True, False])
@pytest.mark.parametrize(("drawn", "whole"), [(14, 14), (12, 12), (10, 10), (2, 2), (1, 1), (8, 1), (8, 0)])
def test_samples_are_judged_however_few_there_are(drawn: int, whole: int, with_classes: bool):
    """Two classes; the last chains diverged. What cannot be measured is absent, and nothing is not finite."""
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (24, 3, 3, 1)).astype(np.float32)
    images = rng.uniform(-1, 1, (drawn, 3, 3, 1)).astype(np.float32)
    images[whole:] = np.nan
    labels = np.arange(drawn) % 2 if with_classes else None
    evaluation = SimpleNamespace(dataset=SimpleNamespace(num_classes=2))
    entry = _judge(Samples(images, labels), evaluation, judges_of(real, np.arange(24) % 2))  # type: ignore[arg-type]
    json.dumps(entry, allow_nan=False)
    assert (entry["count"], entry["finite"]) == (drawn, whole / drawn)
    assert (
        ("coverage" in entry) == ("coverage" in entry["features"]) == (whole >= (12 if with_classes else 6))
    )
    assert ("frechet_distance" in entry["features"]) == (whole > 1)
    assert ("in_range" in entry) == (("class_agreement" if with_classes else "class_shares") in entry)
    assert ("in_range" in entry) == (whole > 0)


def test_few_images_of_data_have_no_neighbours_either():
    real = np.random.default_rng(0).uniform(-1, 1, (24, 3, 3, 1)).astype(np.float32)
    evaluation = SimpleNamespace(dataset=SimpleNamespace(num_classes=2))
    labels = np.arange(24) % 2
    for kept, classes, measured in (
        (24, True, True),
        (10, True, False),
        (10, False, True),
        (3, False, False),
    ):
        judges = judges_of(real, labels)._replace(real=real[:kept], labels=labels[:kept], radii={})
        judges = judges._replace(features=real[:kept].reshape(kept, -1)[:, :3])
        if measured and not classes:
            views = {"pixels": flat(real[:kept]), "features": judges.features}
            judges = judges._replace(radii={name: squared_radii(xs) for name, xs in views.items()})
        samples = Samples(real, labels if classes else None)
        assert ("coverage" in _judge(samples, evaluation, judges)) == measured  # type: ignore[arg-type]
