"""Training of a JEM from its configuration, in a run folder that can be resumed, reloaded and evaluated."""

import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxebm import checks
from jaxebm.data import Dataset
from jaxebm.recipes.build import Training, build
from jaxebm.recipes.config import UNCOMPARED, Config
from jaxebm.recipes.devices import choose_generator, join_processes, open_shared_run
from jaxebm.recipes.judge import judge_run, load_images, publish
from jaxebm.recipes.lock import only_writer
from jaxebm.recipes.model import DESCRIPTION, Model, describe, model_of
from jaxebm.recipes.observe import BEST_METRIC
from jaxebm.recipes.serialisation import as_json, from_json
from jaxebm.recipes.twin import load_twin, pretraining_config, save_twin, twin_config
from jaxebm.report import find_outliers
from jaxebm.training import Checkpointing, FitResult, RunFolder, fetch, fit
from jaxebm.types import Params

__all__ = ["TrainedRun", "run_training", "train"]


class TrainedRun(NamedTuple):
    """The result of `train`.

    Attributes:
      model: the trained model, with the averaged weights.
      result: the result of `jaxebm.training.fit`.
      card: the evaluation (docs/card.md); None without a report, and on all processes except the first.
      folder: the folder of the run.
    """

    model: Model
    result: FitResult
    card: dict[str, Any] | None
    folder: Path

    def __repr__(self) -> str:
        return f"TrainedRun(model={self.model!r}, folder={str(self.folder)!r})"


def train(config: Config, dataset: Dataset | None = None) -> TrainedRun:
    """Trains, evaluates and writes the run's folder, as the command ``jaxebm train``.

    Args:
      config: such as ``base_config("jem", network="convnet")``, changed by `replace_settings`.
      dataset: your own images (`jaxebm.data.dataset_from_arrays`), with their name in ``config.dataset``;
        None loads ``config.dataset``.

    Returns:
      A `TrainedRun`.

    Raises:
      ValueError: for settings that are out of range or do not fit the data or each other.
      FileExistsError: if the folder is not empty and the configuration neither resumes nor overwrites it.
      DatasetNotAvailableError: if a data set is not available.
      DivergenceError: if the run diverges and no remedy helps.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from jaxebm.data import dataset_from_arrays
      >>> from jaxebm.recipes import replace_settings
      >>> images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
      >>> small = replace_settings(Config(), {
      ...     "output": tempfile.mkdtemp(), "epochs": 1, "data.batch_size": 16, "architecture.widths": (8,),
      ...     "sampler.num_steps": 1, "run.telemetry_every": 0, "run.progress": False, "report": False})
      >>> trained = train(small, dataset_from_arrays(images, np.arange(60) % 2))
      >>> trained.model.step, trained.card is None
      (2, True)
    """
    started = time.monotonic()
    checks.instance("config", config, Config, "jaxebm.recipes.base_config makes one.")
    checks.instance(
        "dataset", dataset, (Dataset, type(None)), "jaxebm.data.dataset_from_arrays makes one of arrays."
    )
    config = from_json(Config, as_json(config))  # converts text to paths and lists to tuples
    config.check()
    join_processes(config.parallel)
    if dataset is None:
        dataset = load_images(config.dataset, config.data.exclude_classes)
    else:
        if config.data.exclude_classes:
            raise ValueError("data.exclude_classes is only for data sets that are loaded by name.")
        config = replace(config, dataset=dataset.name)
    if config.report:
        find_outliers(config.evaluation, dataset.image_shape)  # a missing set is reported now, not at the end
    _check_pretraining(config)
    training = build(config, dataset)  # before the folder is made, because it checks the settings
    with only_writer(config.output) if jax.process_index() == 0 else nullcontext():
        return _train(config, dataset, training, started)


def _train(config: Config, dataset: Dataset, training: Training, started: float) -> TrainedRun:
    begins = config.resume and not (config.output / "config.json").exists()
    run = open_shared_run(
        config.output,
        as_json(config),
        resume=config.resume,
        overwrite=config.overwrite,
        uncompared=UNCOMPARED,
    )
    first = jax.process_index() == 0
    if first and begins and config.run.progress:
        print(f"{config.output} holds no run to resume: a new one begins.", file=sys.stderr)
    if first and not (config.resume and (run.path / DESCRIPTION).is_file()):
        run.write_json(DESCRIPTION, describe(dataset))  # that of a resumed run stays: its data may differ
    if config.run.pretrain_epochs:
        training = training._replace(params=_pretrain(config, dataset, run))
    result = run_training(training, run)
    state = fetch(result.state if result.best_state is None else result.best_state)
    model = model_of(config, dataset, state)
    if not config.report:
        if first and config.run.progress:
            print(f"written to {config.output}")
        return TrainedRun(model, result, None, config.output)
    # That of a call that was interrupted in the evaluation is the same, number for number.
    twin_params = load_twin(run, result.params) if config.resume and config.run.twin else None
    if config.run.twin and config.generative and twin_params is None:
        if first and config.run.progress:
            print("training the same network by cross-entropy alone, for comparison", file=sys.stderr)
        twin_params = fetch(run_training(build(twin_config(config), dataset)).params)
    if not first:
        return TrainedRun(model, result, None, config.output)  # only one process evaluates
    if twin_params is not None:
        save_twin(run, twin_params)
    card = judge_run(run, training, dataset, state, twin_params, config.evaluation)
    card |= {
        "seconds": time.monotonic() - started,
        "seconds_training": result.seconds,
        "seconds_compiling": result.compile_seconds,
        "device_memory": result.device_memory._asdict() if result.device_memory else None,
    }
    publish(run, card, shown=config.run.progress)
    return TrainedRun(model, result, card, config.output)


def run_training(training: Training, run: RunFolder | None = None) -> FitResult:
    """Runs the updates of a training, in a run's folder or without one.

    Args:
      training: from `jaxebm.recipes.build`.
      run: the folder, or None to write nothing.
    """
    config, settings = training.config, training.config.run
    checkpointing = None
    if run is not None:
        checkpointing = Checkpointing(
            run,
            every=settings.checkpoint_every,
            keep=settings.keep_checkpoints,
            resume_step=settings.resume_step,
            best_metric=BEST_METRIC if settings.select == "best" else None,
            fingerprint=training.fingerprint,
        )
    return fit(
        jax.random.key(config.seed, impl=choose_generator(config.parallel)),
        training.learner,
        training.params,
        training.data,
        num_steps=training.num_steps,
        steps_per_dispatch=settings.steps_per_dispatch,
        checkpointing=checkpointing,
        recovery=training.recovery,
        observe=training.observe,
        observe_every=settings.telemetry_every or training.num_steps,
        progress=settings.progress and run is not None,
    )


def _check_pretraining(config: Config) -> None:
    """Raises for a pretraining that could not start, before the folder of the run is touched."""
    if not config.run.pretrain_epochs:
        return
    first = pretraining_config(config)
    first.check()
    folder = first.output
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} holds files that no run wrote: move them, or choose another output.")


def _pretrain(config: Config, dataset: Dataset, run: RunFolder) -> Params:
    """Returns the averaged weights after training by cross-entropy alone, as a separate run in the folder."""
    first = pretraining_config(config)
    training = build(first, dataset)
    folder = open_shared_run(
        first.output,
        as_json(first),
        resume=config.resume,
        overwrite=config.overwrite,
        uncompared=UNCOMPARED,
    )
    run.claim(first.output.name)  # after it was opened: what a user put there is not ours
    if jax.process_index() == 0 and not (folder.path / DESCRIPTION).is_file():
        folder.write_json(DESCRIPTION, describe(dataset))
    return fetch(run_training(training, folder).params)
