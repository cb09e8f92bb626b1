"""Evaluation of a run: its card at the end of training, and again later, with any settings."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.data import DATASETS, Dataset, load_dataset
from jaxebm.data.datasets import is_loadable
from jaxebm.data.sources import SOURCES, suggested_source
from jaxebm.objectives import SamplerState
from jaxebm.recipes.build import Training, build
from jaxebm.recipes.config import UNCOMPARED, Config
from jaxebm.recipes.devices import choose_generator
from jaxebm.recipes.lock import only_writer
from jaxebm.recipes.observe import BEST_METRIC
from jaxebm.recipes.sampler import make_initial, make_kernel
from jaxebm.recipes.serialisation import as_json, from_json
from jaxebm.recipes.shell import command_for
from jaxebm.recipes.twin import load_twin
from jaxebm.report import CARD_FILES, ReportSettings, evaluate, find_outliers, summary_text, write_card
from jaxebm.training import Checkpoints, RunFolder, TrainState, fetch, open_run, read_run
from jaxebm.types import Params

__all__ = [
    "Evaluate",
    "evaluate_run",
    "judge_run",
    "load_images",
    "open_finished",
    "publish",
    "selected_step",
]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Settings of `evaluate_run`, which evaluates a run of ``jaxebm train`` from its checkpoint."""

    run: Path
    """Folder of the run."""
    output: Path | None = None
    """Folder of this evaluation; RUN/evaluation by default."""
    overwrite: bool = False
    """Replace the evaluation in the folder."""
    select: Literal["last", "best"] | None = None
    """Newest checkpoint (last) or that of the least validation NLL (best); default: that of the run."""
    dataset: str | None = None
    """Images that it was trained on, if they were your own: npz:PATH, folder:PATH; else those of the run."""
    evaluation: ReportSettings | None = None
    """Settings of the evaluation; those of the run by default."""


def evaluate_run(settings: Evaluate, dataset: Dataset | None = None) -> dict[str, Any]:
    """Reads a run, evaluates it and writes the folder of the evaluation; returns the card.

    Args:
      settings: the run, and the settings of the evaluation.
      dataset: the images that it was trained on, if they were not loaded by name.

    Returns:
      The card (docs/card.md).

    Raises:
      FileNotFoundError: if there is no run, or it has no checkpoint.
      FileExistsError: if the folder has an evaluation already, and ``overwrite`` is False.
      ValueError: for settings that are out of range.
    """
    started = time.monotonic()
    checks.instance("settings", settings, Evaluate)
    checks.one_of("select", settings.select, (None, "last", "best"))
    for name in ("run", "output"):
        if getattr(settings, name) == "":
            raise ValueError(f"{name}='': the path of a folder is needed.")
    if settings.evaluation is not None:
        checks.instance(
            "evaluation", settings.evaluation, ReportSettings, "Such as ReportSettings(tasks=False)."
        )
        settings.evaluation.check()
    run, config = open_finished(settings.run)
    looked_at = config.evaluation if settings.evaluation is None else settings.evaluation
    output = run.path / "evaluation" if settings.output is None else Path(settings.output)
    if (output / run.checkpoints.name).exists():
        raise ValueError(f"output={output} holds a run and its checkpoints: choose another folder.")
    if output.resolve().is_relative_to(run.checkpoints.resolve()):
        raise ValueError(f"output={output} lies among the checkpoints of the run: choose another folder.")
    if dataset is not None:
        checks.instance("dataset", dataset, Dataset, "jaxebm.data.dataset_from_arrays makes one.")
    if dataset is None and settings.dataset is not None:
        dataset = load_images(settings.dataset, config.data.exclude_classes)
    if dataset is None:
        if not is_loadable(config.dataset):
            raise ValueError(
                f"{run.path} was trained on a data set of the user's own, {config.dataset!r}, that no name "
                "loads. Set dataset=npz:PATH or dataset=folder:PATH, or give it to "
                "jaxebm.recipes.evaluate_run(jaxebm.recipes.Evaluate(run=...), dataset)."
            )
        dataset = load_images(config.dataset, config.data.exclude_classes)
    find_outliers(looked_at, dataset.image_shape)  # a missing set is reported before compilation
    training = build(config, dataset)
    state = restore(run, training, config.run.select if settings.select is None else settings.select)
    told = as_json(replace(settings, evaluation=looked_at))
    with only_writer(output):
        folder = open_run(output, told, overwrite=settings.overwrite, resumable=False)
        if settings.output is None:
            run.claim(output.name)  # after it was opened: what a user put there is not ours
        twin_params = load_twin(run, state.ema_params)
        card = judge_run(run, training, dataset, state, twin_params, looked_at, folder=folder)
        card |= _costs_of_training(run) | {"seconds": time.monotonic() - started}
        publish(folder, card)
    return card


def judge_run(
    run: RunFolder,
    training: Training,
    dataset: Dataset,
    state: TrainState,
    twin_params: Params | None,
    settings: ReportSettings,
    *,
    folder: RunFolder | None = None,
) -> dict[str, Any]:
    """Evaluates a state of a run; `jaxebm.recipes.train` at its end and `evaluate_run` share it.

    Args:
      run: the run's folder.
      training: as it was built from the run's configuration.
      dataset: the data set that it was trained on.
      state: the training state to evaluate, on this host.
      twin_params: parameters of the same network trained by cross-entropy alone, or None.
      settings: the settings of the evaluation.
      folder: where pictures and samples are written; the folder of the run by default.

    Returns:
      The card without the cost of training.
    """
    config = training.config
    folder = run if folder is None else folder
    folder.claim(*CARD_FILES)
    kept: SamplerState = state.sampler_state
    initial = make_initial(config, dataset) if kept.initial is None else kept.initial
    return evaluate(
        training.network.apply,
        state.ema_params,
        dataset,
        folder=folder.path,
        settings=settings,
        kernel=make_kernel(config),
        num_steps=_steps_of_chains(config),
        initial=jax.tree.map(jnp.asarray, initial),
        buffer=kept.buffer,
        conditional=config.sampler.chains == "conditional",
        path=training.network.path if config.uses_levels else None,
        twin_params=twin_params,
        seed=config.seed,
        records=run.read_metrics(),
        recoveries=run.read_recoveries(),
        progress=config.run.progress,
        details={
            "experiment": "jem",
            "dataset": config.dataset,
            "updates": training.num_steps,
            "evaluated_update": int(state.step),
            "config": run.config,
            **({"command": command_for(config)} if is_loadable(config.dataset) else {}),
        },
    )


def _steps_of_chains(config: Config) -> int:
    """Steps of the chains of an update; of those of recovery likelihood, at all levels, and the last one."""
    steps = config.sampler.num_steps
    return (config.levels.count - 1) * steps + 1 if config.recovers else steps


def publish(run: RunFolder, card: dict[str, Any], *, shown: bool = True) -> None:
    """Writes a card from `judge_run`, which claimed its files; prints its summary if ``shown``."""
    write_card(run.path, card)
    if shown:
        print(f"{summary_text(card)}\n\nwritten to {run.path}: report.html, card.md, card.json and pictures")


def open_finished(path: Path) -> tuple[RunFolder, Config]:
    """Returns a run's folder and its configuration, for one device.

    Raises:
      FileNotFoundError: if there is no run, or it has no checkpoint.
      ValueError: if its configuration cannot be read.
    """
    path = Path(path)
    run = read_run(path)
    try:
        config = from_json(Config, {**run.config, "output": str(path)}, where=str(path / "config.json"))
    except ValueError as error:
        raise ValueError(
            f"{error} A run of jaxebm train or jaxebm.recipes.train is needed; of a run of your own "
            "jaxebm.training.fit, jaxebm.training.read_params reads the parameters."
        ) from None
    config.check()
    strata = config.parallel.strata or config.devices
    alone = replace(
        config.parallel,
        strata=strata,
        shard_parameters=False,
        distributed=False,
        coordinator=None,
        processes=None,
        process_id=None,
    )
    settings = replace(config.run, resume_step=None)
    return run, replace(config, devices=1, parallel=alone, run=settings)


def restore(run: RunFolder, training: Training, select: str) -> TrainState:
    """Returns the state of a checkpoint, on this host.

    Raises:
      FileNotFoundError: if there is none, or with ``best`` none that has validation metrics.
      CheckpointCorruptError: if it is damaged.
      CheckpointMismatchError: if it is of other data or another configuration.
    """
    manifest = {"config": run.config, "data": training.fingerprint}
    with Checkpoints(
        run.checkpoints, best_metric=BEST_METRIC, manifest=manifest, uncompared=UNCOMPARED
    ) as checkpoints:
        step = selected_step(checkpoints, select)
        key = jax.random.key(training.config.seed, impl=choose_generator(training.config.parallel))
        state = training.learner.init(key, training.params, training.data)  # for its shapes
        return fetch(checkpoints.restore(state, step))


def selected_step(checkpoints: Checkpoints, select: str) -> int | None:
    """Returns the step of the best checkpoint with ``select="best"``; None, the newest, with ``"last"``.

    Raises:
      FileNotFoundError: with ``"best"``, if no checkpoint has validation metrics.
    """
    if select != "best":
        return None
    step = checkpoints.best_step()
    if step is None:
        raise FileNotFoundError(
            f"no checkpoint in {checkpoints.directory} has a {BEST_METRIC}: use select='last' for the newest "
            "one, or train with run.select='best'."
        )
    return step


def load_images(dataset: str, exclude_classes: Sequence[int]) -> Dataset:
    """Loads a data set by the setting ``dataset``, which a message about an unknown one names.

    Raises:
      ValueError: if the name is unknown, or what it names cannot be used.
    """
    if not is_loadable(dataset):
        hint = suggested_source(dataset)
        raise ValueError(f"dataset={dataset!r}: choose one of {', '.join(DATASETS)}, or {SOURCES}.{hint}")
    return load_dataset(dataset, exclude_classes=exclude_classes)


def _costs_of_training(run: RunFolder) -> dict[str, Any]:
    """The cost of training, from the card of the run; None if it has no card."""
    names = ("seconds_training", "seconds_compiling", "device_memory")
    path = run.path / "card.json"
    card = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: card.get(name) for name in names}
