"""The two-dimensional experiment: its kernel is exact, and at small size it learns what it is shown."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import density_2d
from gallery import densities
from jaxebm.data import TOY_DENSITIES
from jaxebm.energies import skewed
from jaxebm.recipes.command_line import run_experiment
from jaxebm.samplers import run_chains

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")


def test_the_cycle_of_kernels_keeps_a_skewed_target():
    target = skewed()
    kernel = densities.local_and_global(partial(target.energy, target.params), 0.1, -8.0, 8.0)
    start = target.sample(jax.random.key(0), target.params, 20_000)
    states, _ = jax.jit(lambda key, xs: run_chains(key, kernel, xs, 20))(jax.random.key(1), start)
    mean, covariance = target.moments(target.params)
    x = np.asarray(states.position, np.float64)
    error = np.sqrt(np.diag(covariance) / len(x))  # independent chains: one effective sample each
    assert np.all(np.abs(x.mean(0) - mean) < 5 * error)
    centred = (x - np.asarray(mean)) ** 2
    assert np.all(np.abs(centred.mean(0) - np.diag(covariance)) < 5 * centred.std(0) / np.sqrt(len(x)))


def test_it_learns_a_density_and_writes_its_folder(tmp_path: Path):
    config = density_2d.Config(
        densities=("two_moons",),
        output=tmp_path / "run",
        progress=False,
        widths=(32, 32),
        updates=600,
        batch_size=64,
        learning_rate=1e-2,
        ema_decay=0.98,
        num_chains=64,
        grid_points=120,
        num_samples=200,
        sample_steps=50,
        annealing_steps=10,
        annealing_chains=50,
    )
    card = density_2d.main(config)
    assert json.loads((tmp_path / "run" / "card.json").read_text())["kl"] == card["kl"]
    # KL(data || N(0, s^2 I)), the tilt alone, is about 2 nats.
    assert 0 <= card["kl"]["two_moons"] < 0.6
    assert card["densities"]["two_moons"]["mass_at_edge"] < 1e-3
    log_z = card["densities"]["two_moons"]["log_partition"]
    assert log_z["low"] <= log_z["quadrature"] <= log_z["high"]
    assert (tmp_path / "run" / "two_moons" / "density.png").read_bytes().startswith(b"\x89PNG")
    resumed = density_2d.main(replace(config, resume=True))
    assert resumed["kl"] == card["kl"]


TINY = {
    "densities": ("two_moons",),
    "progress": False,
    "widths": (16,),
    "updates": 20,
    "batch_size": 32,
    "num_chains": 32,
    "grid_points": 40,
    "num_samples": 50,
    "sample_steps": 5,
    "annealing_steps": 4,
    "annealing_chains": 20,
}


def test_a_method_in_two_phases_goes_on_from_the_first_and_resumes(tmp_path: Path):
    config = density_2d.config_of("energy_matching", output=tmp_path / "run", **TINY)
    card = density_2d.main(config)
    folder = tmp_path / "run" / "two_moons"
    steps = [json.loads((folder / name / "metrics.jsonl").read_text())["step"] for name in (".", "phase_2")]
    assert steps == [10, 10]
    resumed = density_2d.main(replace(config, resume=True))
    assert resumed["kl"] == card["kl"]


def test_a_method_without_a_density_says_so(tmp_path: Path):
    settings = {name: value for name, value in TINY.items() if name != "num_chains"}
    card = density_2d.main(density_2d.config_of("equilibrium_matching", output=tmp_path / "run", **settings))
    assert card["kl"] == {"two_moons": None}
    assert "| two_moons | - | - | - |" in (tmp_path / "run" / "card.md").read_text()
    assert (tmp_path / "run" / "two_moons" / "density.png").read_bytes().startswith(b"\x89PNG")


def test_the_flag_of_an_objective_brings_its_settings(tmp_path: Path):
    seen = []
    arguments = [
        "--objective",
        "dual_score_matching",
        "--batch-size",
        "64",
        "--output",
        str(tmp_path / "run"),
    ]
    run_experiment(density_2d.Config, seen.append, arguments, base=density_2d.base)
    assert seen == [density_2d.config_of("dual_score_matching", batch_size=64, output=tmp_path / "run")]
    assert seen[0].gradient_clip > 0 == density_2d.Config().gradient_clip


BAD = [
    {"objective": "moments"},
    {"gradient_clip": -1.0},
    {"densities": ("two_suns",)},
    {"densities": ()},
    {"sampler_step_size": 0.0},
]


@pytest.mark.parametrize("changes", BAD)
def test_bad_settings_are_refused(changes: dict):
    with pytest.raises(ValueError, match=next(iter(changes))):
        density_2d.Config(**changes).check()


@pytest.mark.parametrize(
    ("objective", "flag", "value"),
    [
        ("noise_contrastive", "num_chains", 64),
        ("dual_score_matching", "sampler_steps", 7),
        ("energy_matching", "energy_l2", 0.5),
        ("cooperative", "restart_probability", 0.1),
    ],
)
def test_flags_of_chains_that_an_objective_does_without_are_refused(objective, flag, value, capsys):
    arguments = ["--objective", objective, f"--{flag.replace('_', '-')}", str(value)]
    with pytest.raises(SystemExit) as stopped:
        run_experiment(density_2d.Config, density_2d.main, arguments, base=density_2d.base)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{objective} makes no use of it" in said
    assert f"{flag}={value}: " in said
    density_2d.config_of("likelihood", **{flag: value}).check()


def test_each_objective_takes_the_flags_that_were_tuned_for_it():
    for objective in density_2d.METHODS:
        density_2d.config_of(objective).check()


def test_the_energy_is_normalisable_before_training():
    density = TOY_DENSITIES["spiral"]
    network, energy = densities.make_energy(density, (128, 128, 128), "swish")
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros(2))
    far = jnp.array([[1e3, 0.0], [0.0, -1e3]])
    assert np.all(np.asarray(jax.jit(jax.vmap(partial(energy, params)))(far)) > 1e3)
