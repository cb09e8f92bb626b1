"""Remedies change the flags, and keep the temperature."""

from dataclasses import replace

import pytest

import density_2d
import jem
from jaxebm.samplers import langevin_temperature
from jaxebm.training import LADDER, remedies_in_force
from recoveries import recovery_for


@pytest.mark.parametrize("config", [jem.Config(), density_2d.Config()])
def test_remedies_change_the_flags(config):
    made = []
    recovery = recovery_for(config, made.append)
    recovery.remake(remedies_in_force(LADDER, 1))
    recovery.remake(remedies_in_force(LADDER, 3))
    assert [one.sampler_steps for one in made] == [2 * config.sampler_steps] * 2
    assert [one.sampler_step_size for one in made] == [config.sampler_step_size / 2] * 2
    assert [one.energy_l2 for one in made] == [0.0, 0.1]
    if hasattr(config, "sampler_noise"):
        before, after = (
            float(langevin_temperature(step_size=one.sampler_step_size, noise_scale=one.sampler_noise))
            for one in (config, made[0])
        )
        assert after == pytest.approx(before)


def test_an_energy_l2_of_the_user_stays():
    made = []
    recovery_for(replace(jem.Config(), energy_l2=0.7), made.append).remake(remedies_in_force(LADDER, 3))
    assert made[0].energy_l2 == 0.7


def test_no_recovery():
    assert recovery_for(replace(jem.Config(), recovery=False), None) is None
    assert recovery_for(jem.Config(), None, "host").keep_on == "host"
