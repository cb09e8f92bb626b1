"""What the tests of the recipes share: small images, settings that cost little, a finished run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxebm.data import Dataset, dataset_from_arrays
from jaxebm.recipes import Config, TrainedRun, base_config, replace_settings, train
from jaxebm.recipes.config_checks import NEGATIVES

CHEAP: dict[str, Any] = {
    "epochs": 2,
    "architecture.widths": (8,),
    "architecture.channels": (4,),
    "data.batch_size": 14,  # 6 batches of 84 images an epoch
    "sampler.num_chains": 9,
    "sampler.num_steps": 2,
    "sampler.buffer_size": 36,
    "objective.adversarial_steps": 2,
    "run.steps_per_dispatch": 3,
    "run.checkpoint_every": 3,
    "run.telemetry_every": 0,
    "run.twin": False,
    "run.progress": False,
    "evaluation.samples_per_class": 7,
    "evaluation.sample_steps": (2,),
    "evaluation.features": False,
    "evaluation.tasks": False,
    "evaluation.attack_images": 0,
    "evaluation.long_run_factors": (),
    "evaluation.likelihood_steps": 0,
}
"""Twelve updates of a small network, and a card of which other tests look at the questions."""


@contextmanager
def settings_of_jax(**values: Any) -> Iterator[None]:
    """Other settings of JAX within a block."""
    before = {name: jax.config.values[name] for name in values}
    for given in (values, before):
        for name, value in given.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it looks at its settings once
        if given is values:
            yield


@pytest.fixture(scope="session")
def compiled_before(programs_folder: str) -> dict[str, Any]:
    """Settings by which programs are compiled without optimisations, and kept for all tests here."""
    return {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": programs_folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


@pytest.fixture(scope="module", autouse=True)
def cheap_programs(compiled_before: dict[str, Any]) -> Iterator[None]:
    """Where each program runs for milliseconds, its compilation is most of the time."""
    with settings_of_jax(**compiled_before):
        yield


@pytest.fixture(scope="session")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Images of 4 x 4 in three classes, 40 each; their brightness tells them apart."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 40)
    return (rng.integers(0, 60, (120, 4, 4)) + 90 * label[:, None, None]).astype(np.uint8), label


@pytest.fixture(scope="session")
def blobs(arrays: tuple[np.ndarray, np.ndarray]) -> Dataset:
    return dataset_from_arrays(*arrays, name="blobs", class_names=("dark", "grey", "bright"))


@pytest.fixture(scope="session")
def toy() -> Callable[..., Config]:
    """Returns ``(changes, **choices) -> Config``: cheap settings, the changes by dotted name above them."""

    def make(changes: Mapping[str, Any] | None = None, **choices: str) -> Config:
        base = base_config(**choices)
        kept = {name: value for name, value in CHEAP.items() if base.uses_chains or name not in NEGATIVES}
        return replace_settings(base, kept | dict(changes or {}))

    return make


class Finished(NamedTuple):
    """A run that was trained on a file which is no longer there, and its images."""

    trained: TrainedRun
    config: Config
    dataset: Dataset
    file: Path

    @property
    def folder(self) -> Path:
        return self.trained.folder


@pytest.fixture(scope="session")
def finished(
    toy: Callable[..., Config],
    arrays: tuple[np.ndarray, np.ndarray],
    compiled_before: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """A run with a card, telemetry, a twin and an interval for log Z."""
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "images.npz"
    np.savez(file, image=arrays[0], label=arrays[1])
    config = toy(
        {
            "output": folder / "run",
            "run.twin": True,
            "run.telemetry_every": 6,
            "evaluation.sample_steps": (2, 4),
            "evaluation.likelihood_steps": 6,
            "evaluation.likelihood_chains": 4,
        },
        dataset=f"npz:{file}",
    )
    with settings_of_jax(**compiled_before):
        trained = train(config)
    file.unlink()
    return Finished(trained, config, dataset_from_arrays(*arrays, name=config.dataset), file)
