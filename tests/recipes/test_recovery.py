"""Remedies change the sampler and the objective, and keep the temperature."""

from dataclasses import replace
from typing import Any

import pytest

from jaxebm.recipes import Config, base_config, replace_settings
from jaxebm.recipes.recovery import SamplerNumbers, recovery_for, refine
from jaxebm.samplers import langevin_temperature
from jaxebm.training import REMEDIES, remedies_in_force


def made_by(config: Config, *failures: int) -> list[Config]:
    """The configurations of the learners that a recovery makes after as many failures."""
    made: list[Any] = []
    recovery = recovery_for(config, made.append)  # type: ignore[arg-type]
    assert recovery is not None
    for count in failures:
        recovery.remake(remedies_in_force(REMEDIES, count))
    return made


def test_remedies_change_the_settings():
    config = Config()
    made = made_by(config, 1, 3)
    assert [one.sampler.num_steps for one in made] == [2 * config.sampler.num_steps] * 2
    assert [one.sampler.step_size for one in made] == [config.sampler.step_size / 2] * 2
    assert [one.objective.energy_l2 for one in made] == [0.0, 0.1]
    for one in made:
        changed = replace(one, sampler=config.sampler, objective=config.objective)
        assert changed == config


def test_remedies_shorten_the_steps_of_recovery_likelihood():
    config = base_config("drl")
    (made,) = made_by(config, 1)
    assert made.levels == replace(config.levels, step_factor=config.levels.step_factor / 2)


def test_the_temperature_stays():
    before = SamplerNumbers(20, 0.2, 0.1, 0.0)
    after = refine(before, remedies_in_force(REMEDIES, 1))
    temperatures = [
        float(langevin_temperature(step_size=one.step_size, noise_scale=one.noise)) for one in (before, after)
    ]
    assert temperatures[1] == pytest.approx(temperatures[0])


def test_an_energy_l2_of_the_user_stays():
    (made,) = made_by(replace_settings(Config(), {"objective.energy_l2": 0.7}), 3)
    assert made.objective.energy_l2 == 0.7


def test_no_recovery():
    unused: Any = None
    assert recovery_for(replace_settings(Config(), {"run.recovery": False}), unused) is None
    on_host = recovery_for(Config(), unused, "host")
    assert on_host is not None
    assert on_host.keep_on == "host"
