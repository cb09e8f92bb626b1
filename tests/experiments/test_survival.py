"""Survival: what is counted, one run of it at toy size, and what a wrong number is told."""

import json
from dataclasses import replace

import numpy as np
import pytest

import survival
from jaxebm.recipes import replace_settings
from survival import Config, survive

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")


def record(seed, recovery, *, diverged=False, recoveries=0, accuracy=0.98):
    one = {"step": 30, "remedy": "fresh noise", "faults": ["energy_gap"]}
    measured = dict.fromkeys(survival.MEASURES, accuracy)
    return {
        "seed": seed,
        "recovery": recovery,
        "diverged": diverged,
        "ended": "step 40: the loss or another metric is not finite" if diverged else "",
        "recoveries": [one] * recoveries,
        "gaps": [[10, 0.5], [20, -0.5], [30, -2000.0 if diverged else 0.0]],
        "seconds": 1.0,
        **({} if diverged else measured),
    }


RECORDS = [
    *(record(seed, False, diverged=seed < 2) for seed in range(5)),
    *(record(seed, True, recoveries=2 * (seed < 2), accuracy=0.97 + 0.01 * seed) for seed in range(4)),
    record(4, True, diverged=True, recoveries=6),
]


def test_what_is_counted():
    found = survival.summarise(RECORDS)
    assert found["without_recovery"] == {"runs": 5, "diverged": 2}
    assert found["with_recovery"] == {
        "runs": 5,
        "finished": 4,
        "recovered": 2,
        "recoveries": 10,
        "by_remedy": {"fresh noise": 10},
        "by_fault": {"energy_gap": 10},
    }
    entry = found["measures"]["accuracy"]
    assert entry["recovered"]["mean"] == pytest.approx(0.975)
    assert entry["difference"] == pytest.approx(-0.02)
    # Two means of two numbers .01 apart: each has variance .01^2 / 2 / 2.
    assert entry["standard_error"] == pytest.approx(np.sqrt(2 * 0.01**2 / 4))
    text = survival.as_markdown(Config(seeds=5), found)
    assert "Without recovery 2 of 5 diverged. With it 4 of 5 finished; 2 of them recovered, 10 times" in text
    assert "-0.0200 (0.0071)" in text


def test_the_picture(tmp_path):
    survival.draw(tmp_path / "survival.png", RECORDS)
    assert (tmp_path / "survival.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("step_size", "diverges"), [(1.0, False), (1e6, True)])
def test_a_run_is_judged_or_says_why_not(step_size, diverges):
    """A step of a million leaves no chain near the data, which ends the run without recovery at once."""
    changes = {
        "sampler.step_size": step_size,
        "sampler.num_steps": 2,
        "sampler.buffer_size": 100,
        "architecture.widths": (16,),
    }
    flags = replace_settings(survival.setting(Config(epochs=1), seed=0, recovery=False), changes)
    found = survive(flags, samples_per_class=7)
    json.dumps(found)
    assert found["diverged"] is diverges
    assert [step for step, _ in found["gaps"]] == ([] if diverges else [10, 19])
    assert (set(survival.MEASURES) <= set(found)) is not diverges


@pytest.mark.slow
def test_the_script_goes_on_where_it_was_left(tmp_path):
    config = Config(
        output=tmp_path / "run", seeds=1, epochs=1, workers=1, samples_per_class=7, progress=False
    )
    card = survival.main(config)
    lines = (tmp_path / "run" / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert card["with_recovery"]["finished"] == card["with_recovery"]["runs"] == 1
    (tmp_path / "run" / "runs.jsonl").write_text(lines[0] + "\n")
    again = survival.main(replace(config, resume=True))
    assert again["measures"] == card["measures"]


@pytest.mark.parametrize("name", ["seeds", "epochs", "workers", "samples_per_class"])
def test_bad_numbers_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        survival.main(replace(Config(output=tmp_path), **{name: 0}))
