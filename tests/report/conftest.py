"""What the tests of the report share: a small data set, a linear classifier, cheap settings."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import Dataset, Split
from jaxebm.report import ReportSettings
from jaxebm.samplers import ReplayBuffer

SHAPE = (6, 6, 1)
LIGHT: dict[str, Any] = {
    "samples_per_class": 7,
    "sample_steps": (1, 2),
    "long_run_factors": (2,),
    "long_run_chains": 8,
    "likelihood_steps": 3,
    "likelihood_chains": 4,
    "features": False,
    "attack_images": 6,
    "attack_radii_linf": (0.1,),
    "attack_radii_l2": (),
    "attack_steps": 2,
    "attack_restarts": 1,
    "refinement_steps": (0, 1),
    "task_images": 8,
    "task_steps": 2,
}
"""What every question costs in these tests."""


class Toy(NamedTuple):
    """Three classes of images about a prototype each, and a linear classifier of them."""

    dataset: Dataset
    params: dict[str, Any]
    twin_params: dict[str, Any]
    buffer: ReplayBuffer
    settings: ReportSettings


@pytest.fixture(scope="session")
def toy() -> Toy:
    rng = np.random.default_rng(0)
    prototypes = rng.uniform(0, 16, (3, *SHAPE))

    def split(count):
        label = (np.arange(count) % 3).astype(np.int32)
        image = np.rint(prototypes[label] + rng.normal(0, 3, (count, *SHAPE))).clip(0, 16)
        return Split(image.astype(np.float32), label)

    names = ("plain", "with_under_scores", "a|b <i>*c*")
    held_out = Split(split(9).image[:, ::-1], np.full(9, 3, np.int32))
    dataset = Dataset("toy", split(60), split(30), split(90), 3, (0.0, 16.0), names, held_out)
    centred = dataset.rescale(prototypes).reshape(3, -1)
    weights = jnp.asarray(0.2 * centred)
    params = {"weights": weights, "biases": jnp.asarray(-0.1 * np.sum(centred**2, axis=1), jnp.float32)}
    twin_params = {"weights": 0.3 * weights, "biases": params["biases"]}
    buffer = ReplayBuffer(
        positions=jnp.asarray(dataset.rescale(split(24).image)),
        labels=jnp.arange(24, dtype=jnp.int32) % 3,
        ages=jnp.arange(24, dtype=jnp.int32),
    )
    return Toy(dataset, params, twin_params, buffer, ReportSettings(**LIGHT))
