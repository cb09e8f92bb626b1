"""Single parts of the questions, by hand: temperature scaling, diverged chains, data of one class."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxebm.data import Dataset, Split
from jaxebm.report import Evaluation, ReportSettings
from jaxebm.report.chains import Samples, finite
from jaxebm.report.classes import judge_predictions, scale
from jaxebm.report.judges import independent_judges
from jaxebm.report.out_of_distribution import outlier_sets
from jaxebm.report.training_history import TRAINING_HISTORY

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
    with pytest.raises(RuntimeError, match=r"all 1 chains diverged.*state_clamp"):
        finite(Samples(images[1:2], None))


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
            ["The run recovered 1 times", "step 9: loss\\_a: back to step 4 with x; in force: y."],
        ),
    ],
)
def test_recoveries_are_told(card, notes):
    (section,) = TRAINING_HISTORY.sections({"telemetry": None} | card)
    assert len(section.notes) == len(notes)
    assert all(found.startswith(note) for found, note in zip(section.notes, notes, strict=True))
    assert [picture.name for picture in section.pictures] == ["training"]
