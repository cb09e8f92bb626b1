"""The comparison of normalised energies, at toy size: exact densities, the folder, wrong settings."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normalised_energies
from jaxebm.energies import random_mixture

TOY = normalised_energies.Config(
    dimensions=(2,),
    objectives=("dual_score_matching",),
    num_steps=20,
    batch_size=16,
    widths=(8,),
    outputs=4,
    annealing_levels=5,
    chains=4,
    progress=False,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("normalised_energies") / "run"
    return output, normalised_energies.main(replace(TOY, output=output))


def test_the_exact_density_without_noise_is_that_of_the_mixture():
    target = random_mixture(40, 40.0, 1.3132617, 3)
    x = target.sample(jax.random.key(0), target.params, 20)
    expected = -jax.vmap(target.energy, (None, 0))(target.params, x) - target.log_partition(target.params)
    found = normalised_energies.log_density(target, x, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_noise_widens_each_mode():
    """In one dimension the density of a level integrates to one."""
    target = random_mixture(40, 40.0, 1.3132617, 1)
    points = jnp.linspace(-80.0, 80.0, 16001)
    density = jnp.exp(normalised_energies.log_density(target, points[:, None], 3.0))
    assert float(jnp.trapezoid(density, points)) == pytest.approx(1.0, abs=1e-3)


def test_the_folder_holds_the_card(toy_run):
    output, card = toy_run
    assert json.loads((output / "card.json").read_text()) == json.loads(json.dumps(card))
    entry = card["dimensions"]["2"]["dual_score_matching"]
    assert len(entry["error"]["mean"]) == len(entry["levels"]) == normalised_energies.CLASSIFIED_LEVELS
    assert entry["levels"][-1] == pytest.approx(TOY.lowest)
    assert np.isfinite(entry["log_partition"]["highest"])
    assert entry["classification"]["exact"] <= entry["classification"]["measure"] + 1e-3
    assert (output / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert "| 2 | dual_score_matching |" in (output / "card.md").read_text().replace("  ", " ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objectives": ("likelihood",)}, "unknown"),
        ({"dimensions": (0,)}, "dimensions"),
        ({"lowest": 300.0}, "highest=200.0"),
        ({"chains": 1}, "chains=1"),
    ],
)
def test_wrong_settings_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(TOY, **changed).check()
