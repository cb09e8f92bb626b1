"""The card of a run: at its end, and again of an old one, with any settings of the evaluation."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxebm.data import DATASETS, Dataset, load_dataset
from jaxebm.objectives import SamplerState
from jaxebm.recipes.build import Training, build
from jaxebm.recipes.config import UNCOMPARED, Config
from jaxebm.recipes.devices import choose_generator
from jaxebm.recipes.observe import BEST_METRIC
from jaxebm.recipes.sampler import make_initial, make_kernel
from jaxebm.recipes.serialisation import as_json, from_json
from jaxebm.recipes.shell import command_for
from jaxebm.recipes.twin import load_twin
from jaxebm.report import CARD_FILES, ReportSettings, evaluate, find_outliers, write_card
from jaxebm.training import Checkpoints, RunFolder, TrainState, fetch, open_run, read_run
from jaxebm.types import Params

__all__ = ["Evaluate", "evaluate_run", "judge_run", "open_finished", "publish"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What `evaluate_run` evaluates: a run of ``jaxebm train``, from its checkpoint."""

    run: Path
    """Folder of the run."""
    output: Path | None = None
    """Folder of this evaluation; RUN/evaluation by default."""
    overwrite: bool = False
    """Replace the evaluation in the folder."""
    select: Literal["last", "best"] | None = None
    """The newest checkpoint, or that of the least validation NLL; what the run itself does by default."""
    evaluation: ReportSettings | None = None
    """What to look at, and what that may cost; the settings of the run itself by default."""


def evaluate_run(settings: Evaluate, dataset: Dataset | None = None) -> dict[str, Any]:
    """Reads a run, evaluates it and writes the folder of the evaluation; returns the card.

    Args:
      settings: which run, and what to look at.
      dataset: the images that it was trained on, where they were not loaded by name.

    Returns:
      The card (docs/card.md).

    Raises:
      FileNotFoundError: if there is no run, or it has no checkpoint.
      FileExistsError: if there is an evaluation in the folder already, and ``overwrite`` is False.
      ValueError: for settings that are out of range.
    """
    started = time.monotonic()
    if settings.select not in (None, "last", "best"):
        raise ValueError(f"select={settings.select!r}: 'last', 'best' or None is needed.")
    if settings.evaluation is not None:
        settings.evaluation.check()
    run, config = open_finished(settings.run)
    looked_at = config.evaluation if settings.evaluation is None else settings.evaluation
    output = run.path / "evaluation" if settings.output is None else Path(settings.output)
    if (output / run.checkpoints.name).exists():
        raise ValueError(f"output={output} holds a run and its checkpoints: choose another folder.")
    if dataset is None:
        if not _has_known_name(config):
            raise ValueError(
                f"{run.path} was trained on a data set of the user's own, {config.dataset!r}, that no name "
                "loads: give it to jaxebm.recipes.evaluate_run(settings, dataset)."
            )
        dataset = load_dataset(config.dataset, exclude_classes=config.data.exclude_classes)
    find_outliers(looked_at, dataset.image_shape)  # what is missing is told before compiling
    training = build(config, dataset)
    state = restore(run, training, config.run.select if settings.select is None else settings.select)
    if settings.output is None:
        run.claim(output.name)
    told = as_json(replace(settings, evaluation=looked_at))
    folder = open_run(output, told, overwrite=settings.overwrite, resumable=False)
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
      dataset: what it was trained on.
      state: what to evaluate, on this host.
      twin_params: of the same network trained by cross-entropy alone, or None.
      settings: those of the evaluation.
      folder: where pictures and samples go; the run's own by default.

    Returns:
      The card, but for its costs.
    """
    config = training.config
    folder = run if folder is None else folder
    folder.claim(*CARD_FILES)
    kept = state.sampler_state if isinstance(state.sampler_state, SamplerState) else SamplerState()
    initial = make_initial(config, dataset) if kept.initial is None else kept.initial
    return evaluate(
        training.network.apply,
        state.ema_params,
        dataset,
        folder=folder.path,
        settings=settings,
        kernel=make_kernel(config),
        num_steps=config.sampler.num_steps,
        initial=jax.tree.map(jnp.asarray, initial),
        buffer=kept.buffer,
        conditional=config.sampler.chains == "conditional",
        twin_params=twin_params,
        seed=config.seed,
        records=run.read_metrics(),
        recoveries=run.read_recoveries(),
        details={
            "experiment": "jem",
            "dataset": config.dataset,
            "updates": training.num_steps,
            "evaluated_update": int(state.step),
            "config": run.config,
            **({"command": command_for(config)} if _has_known_name(config) else {}),
        },
    )


def publish(run: RunFolder, card: dict[str, Any], *, shown: bool = True) -> None:
    """Writes the card for machines and for readers; prints the latter and where they are, if ``shown``."""
    run.claim(*CARD_FILES)
    text = write_card(run.path, card)
    if shown:
        print(f"{text}\nwritten to {run.path}")


def open_finished(path: Path) -> tuple[RunFolder, Config]:
    """Returns a run's folder and its configuration, for one device.

    Raises:
      FileNotFoundError: if there is no run, or it has no checkpoint.
      ValueError: if its configuration cannot be read.
    """
    path = Path(path)
    run = read_run(path)
    config = from_json(Config, {**run.config, "output": str(path)}, where=str(path / "config.json"))
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
      FileNotFoundError: if there is none, or with ``best`` none that was judged on validation images.
      CheckpointCorruptError: if it is damaged.
      CheckpointMismatchError: if it is of other data or another configuration.
    """
    manifest = {"config": run.config, "data": training.fingerprint}
    with Checkpoints(
        run.checkpoints, best_metric=BEST_METRIC, manifest=manifest, uncompared=UNCOMPARED
    ) as checkpoints:
        step = None
        if select == "best":
            step = checkpoints.best_step()
            if step is None:
                raise FileNotFoundError(
                    f"no checkpoint in {run.checkpoints} has a {BEST_METRIC}: evaluate the newest one with "
                    "select='last', or train with run.select='best'."
                )
        key = jax.random.key(training.config.seed, impl=choose_generator(training.config.parallel))
        state = training.learner.init(key, training.params, training.data)  # for its shapes
        return fetch(checkpoints.restore(state, step))


def _has_known_name(config: Config) -> bool:
    """Whether `jaxebm.data.load_dataset` finds the images of a run; a user's own arrays have any name."""
    return config.dataset in DATASETS or config.dataset.startswith("npz:")


def _costs_of_training(run: RunFolder) -> dict[str, Any]:
    """What training took, as the run's own card says; None where it never came to one."""
    names = ("seconds_training", "seconds_compiling", "device_memory")
    path = run.path / "card.json"
    card = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: card.get(name) for name in names}
