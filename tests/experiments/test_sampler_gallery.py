"""The gallery of samplers: its judgements are those of theory where there is one, and it fills its folder."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import sampler_gallery
from gallery import plots
from gallery.judge import SAMPLERS, SHRINKING, Budget, judge
from gallery.targets import TARGETS
from jaxebm.recipes.command_line import run_experiment

TARGET = "funnel, non-centred"
"""The standard normal in two dimensions: what SGLD does there is known."""
TOY = sampler_gallery.Config(
    targets=(TARGET,),
    samplers=("sgld", "mala", "sequential_monte_carlo"),
    chains=64,
    gradients=1000,
    progress=False,
)
LOG_PARTITION_ERRORS = {"mala": 0.0045, "sequential_monte_carlo": 0.0095}
"""Standard errors, measured over 30 keys; MALA's is that of annealed importance sampling."""
PICTURES = ("errors", "trajectories", "marginals")

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory):
    """``(folder, card, setting)``"""
    output, settings = tmp_path_factory.mktemp("gallery") / "run", []
    make_setting = sampler_gallery.make_setting

    def make_and_keep(*arguments):
        settings.append(make_setting(*arguments))
        return settings[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_gallery, "make_setting", make_and_keep)
        card = sampler_gallery.main(replace(TOY, output=output))
    (setting,) = settings
    return output, card, setting


def test_the_folder_holds_what_it_should(toy_run):
    output, card, _ = toy_run
    assert json.loads((output / "card.json").read_text()) == json.loads(json.dumps(card))
    assert list(card["targets"]) == [TARGET]
    assert set(card["targets"][TARGET]) == set(TOY.samplers)
    text = (output / "card.md").read_text()
    assert f"## {TARGET}" in text
    assert all(f"| {sampler} |" in text for sampler in TOY.samplers)
    for name in PICTURES:
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in text
    with pytest.raises(FileExistsError, match="overwrite"):
        sampler_gallery.main(replace(TOY, output=output))


def test_exact_samplers_find_the_exact_answers(toy_run):
    """Within 5 standard errors: of means 1 / sqrt(n), of deviations 1 / sqrt(2 n), n effective samples.

    Those of 1024 particles, moved after they were resampled, were measured: at least 550.
    """
    _, card, _ = toy_run
    entries = card["targets"][TARGET]
    counts = {"mala": entries["mala"]["effective_samples"], "sequential_monte_carlo": 550}
    for sampler, effective in counts.items():
        entry = entries[sampler]
        assert not entry["diverged"]
        assert entry["mean_error"] < 5 * effective**-0.5
        assert entry["deviation_error"] < 5 * (2 * effective) ** -0.5
        assert entry["kolmogorov"] < 2.69 * effective**-0.5
        assert 0.4 < entry["acceptance_rate"] < 0.8
        assert abs(entry["log_partition_error"]) < 5 * LOG_PARTITION_ERRORS[sampler]
    assert entries["mala"]["r_hat"] < 1.01
    assert entries["sequential_monte_carlo"]["r_hat"] is None
    assert entries["sequential_monte_carlo"]["effective_samples_per_second"] is None


def test_the_bias_of_sgld_is_found_and_is_the_one_that_it_has(toy_run):
    """x <- (1 - e) x + sqrt(2 e) n has the variance 1 / (1 - e / 2), and its annealing gives no log Z."""
    _, card, setting = toy_run
    sgld = card["targets"][TARGET]["sgld"]
    step_size = SHRINKING * float(setting.tuned["mala"]["step_size"])
    expected = (1 - step_size / 2) ** -0.5 - 1
    error = (1 + expected) * (2 * sgld["effective_samples"]) ** -0.5
    assert expected > 4 * error
    assert abs(sgld["deviation_error"] - expected) < 5 * error
    assert sgld["log_partition_error"] < -5 * LOG_PARTITION_ERRORS["mala"]
    assert sgld["acceptance_rate"] is None
    assert not sgld["diverged"]


def test_a_diverged_chain_is_told_and_drawn(toy_run, tmp_path):
    """At a step of 40 the standard normal is left for good; JSON has no NaN for that."""
    _, card, setting = toy_run
    setting = setting._replace(tuned={"mala": {"step_size": 40.0 / SHRINKING}})
    judgement = judge(jax.random.key(0), "sgld", setting, Budget(2, 100))
    entry = sampler_gallery.as_entry(judgement)
    assert entry["diverged"]
    assert all(entry[name] is None for name in ("mean_error", "deviation_error", "kolmogorov", "r_hat"))
    assert all(value is None or np.isfinite(value) for value in entry.values())
    results = {TARGET: card["targets"][TARGET] | {"sgld": entry}}
    json.dumps(results, allow_nan=False)
    assert "| sgld (diverged) | - | - | - |" in sampler_gallery.as_markdown(TOY, results)
    plots.error_map(tmp_path / "errors.png", results)
    for picture in (plots.trajectories, plots.marginals):
        picture(tmp_path / f"{picture.__name__}.png", {TARGET: setting}, {TARGET: {"sgld": judgement}})
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("skewed", "donut")}, r"targets=.*unknown \['donut'\]; choose among 'gaussian"),
        ({"targets": ()}, "targets="),
        ({"samplers": ("gibbs",)}, r"samplers=.*unknown \['gibbs'\]; choose among 'sgld'"),
        ({"samplers": ()}, "samplers="),
        ({"chains": 1}, "chains=1.*at least 2 chains"),
        ({"chains": 2.5}, "chains"),
        ({"gradients": 99}, "gradients=99.*100 gradients"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TOY, **changes).check()


def test_the_defaults_are_everything():
    config = sampler_gallery.Config()
    config.check()
    assert (config.targets, config.samplers) == (tuple(TARGETS), SAMPLERS)


def test_an_unknown_name_ends_with_one_line(tmp_path: Path, capsys):
    arguments = ["--targets", "donut", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(sampler_gallery.Config, sampler_gallery.main, arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: targets=('donut',): unknown ['donut']")
    assert not (tmp_path / "run").exists()
