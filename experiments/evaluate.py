"""Evaluate a finished or interrupted run of experiments/jem.py again, with any flags of the evaluation.

    python experiments/evaluate.py runs/jem                               # the card that the run ended with
    python experiments/evaluate.py runs/jem --ood-sets mnist omniglot     # against other data sets, too
    python experiments/evaluate.py runs/jem --attack-images 1000 --attack-steps 40 --output runs/attacked
    python experiments/evaluate.py runs/jem --select best                 # the least validation NLL

Flags that are not given are those of the run. Same flags, same weights, same card: experiments/jem.py ends
with the function that this script calls. Writes card.json (schema in docs/card.md), card.md, report.html,
samples.npz and pictures into RUN/evaluation, or --output.
"""

import dataclasses
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from card_ood import find_outliers
from command_line import as_json, run_experiment
from evaluation_config import EvaluationFlags
from jaxebm.data import Dataset, load_dataset
from jaxebm.training import Checkpoints, RunFolder, TrainState, fetch, open_run, write_atomically
from jaxebm.types import Params
from jem_card import ModelUnderTest, evaluate, write_card
from jem_config import Config, has_small_network
from jem_parts import BEST_METRIC, Training, prepare
from jem_sampler import make_initial, make_kernel

__all__ = ["EvaluateConfig", "load_twin", "main", "measure_run", "save_twin"]

TWIN = "twin.npz"
"""The parameters of the run's twin."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationFlags):
    """Evaluate a run of experiments/jem.py from its checkpoint."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    output: Path | None = None
    """Folder of this evaluation; RUN/evaluation by default."""
    overwrite: bool = False
    """Replace the evaluation in the folder."""
    select: Literal["last", "best"] | None = None
    """The newest checkpoint, or that of the least validation NLL; what the run itself does by default."""


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Reads the run, evaluates it and writes the folder of the evaluation; returns the card."""
    started = time.monotonic()
    config.check()
    run, trained = open_finished(config.run)
    output = config.run / "evaluation" if config.output is None else config.output
    if (output / run.checkpoints.name).exists():
        raise ValueError(f"--output {output} holds a run and its checkpoints: choose another folder.")
    dataset = load_dataset(trained.dataset, exclude_classes=trained.exclude_classes)
    find_outliers(config, dataset.image_shape)  # what is missing is told before anything is compiled
    training = prepare(trained, dataset)
    state = restore(run, training, trained.select if config.select is None else config.select)
    folder = open_run(output, as_json(config), overwrite=config.overwrite, resumable=False)
    twin_params = load_twin(run, state.ema_params)
    card = measure_run(run, training, dataset, state, twin_params, config, folder=folder)
    card |= _costs_of_training(run) | {"seconds": time.monotonic() - started}
    write_card(folder, card)
    return card


def measure_run(
    run: RunFolder,
    training: Training,
    dataset: Dataset,
    state: TrainState,
    twin_params: Params | None,
    flags: EvaluationFlags,
    *,
    folder: RunFolder | None = None,
) -> dict[str, Any]:
    """Evaluates a state of a run; experiments/jem.py at its end and this script share it.

    Args:
      run: the run's folder.
      training: as it was prepared from the run's configuration.
      dataset: what it was trained on.
      state: what to evaluate, on this host.
      twin_params: of the same network trained by cross-entropy alone, or None.
      flags: those of the evaluation.
      folder: where pictures and samples go; the run's own by default.

    Returns:
      The card, but for its costs.
    """
    config = training.config
    buffered = config.generative and config.negatives == "persistent"
    model = ModelUnderTest(
        logits=training.logits,
        params=state.ema_params,
        twin_params=twin_params,
        kernel=make_kernel(config),
        num_steps=config.sampler_steps,
        initial=make_initial(config, dataset),
        buffer=state.memory if buffered else None,
        conditional=config.chains == "conditional",
    )
    card = evaluate(run if folder is None else folder, model, dataset, flags, seed=config.seed, history=run)
    names = {field.name for field in dataclasses.fields(EvaluationFlags)}
    return card | {
        "experiment": "jem",
        "dataset": config.dataset,
        "seed": config.seed,
        "updates": training.num_steps,
        "evaluated_update": int(state.step),
        "config": run.config,
        "evaluation": {name: value for name, value in _plain(as_json(flags)).items() if name in names},
        "recoveries": run.read_recoveries(),
    }


def open_finished(path: Path) -> tuple[RunFolder, Config]:
    """Returns a run's folder and its configuration, for one device.

    Raises:
      FileNotFoundError: if there is no run of experiments/jem.py, or it has no checkpoint.
      ValueError: if its configuration cannot be read.
    """
    run = RunFolder(path)
    if not (path / "config.json").is_file() or not run.checkpoints.is_dir():
        raise FileNotFoundError(
            f"{path} holds no run: the folder of a run of experiments/jem.py, with config.json and "
            f"{run.checkpoints.name}/, is needed."
        )
    try:
        saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of this kind too
        raise ValueError(f"{path / 'config.json'} is no readable configuration: {error}.") from None
    known = {field.name for field in dataclasses.fields(Config)}
    unknown = sorted(set(saved) - known) if isinstance(saved, dict) else ["no settings by name"]
    if unknown:
        raise ValueError(
            f"{path / 'config.json'} is not of this version's experiments/jem.py: {', '.join(unknown)}."
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
    }
    values["output"] = path
    config = Config(**values)
    config.check()
    strata = config.strata or config.devices
    alone: dict[str, Any] = {"devices": 1, "distributed": False, "shard_parameters": False}
    alone |= dict.fromkeys(("coordinator", "processes", "process_id", "resume_step"))
    return RunFolder(path, saved), replace(config, strata=strata, **alone)


def restore(run: RunFolder, training: Training, select: str) -> TrainState:
    """Returns the state of a checkpoint, on this host.

    Raises:
      FileNotFoundError: if there is none, or with ``best`` none that was judged on validation images.
      CheckpointCorruptError: if it is damaged.
      CheckpointMismatchError: if it is of other data or another configuration.
    """
    manifest = {"config": run.config, "data": training.fingerprint}
    with Checkpoints(run.checkpoints, best_metric=BEST_METRIC, manifest=manifest) as checkpoints:
        step = None
        if select == "best":
            step = checkpoints.best_step()
            if step is None:
                raise FileNotFoundError(
                    f"no checkpoint in {run.checkpoints} has a {BEST_METRIC}: evaluate the newest one with "
                    "--select last, or train with --select best."
                )
        return fetch(checkpoints.restore(training.state, step))


def save_twin(run: RunFolder, params: Params) -> None:
    """Keeps the parameters of the twin beside its run, for later evaluations."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"config": json.dumps(_comparable(run.config)), **_by_path(params)}
    np.savez(stream, **arrays)
    write_atomically(run.path / TWIN, stream.getvalue())


def load_twin(run: RunFolder, template: Params) -> Params | None:
    """Returns the parameters of the run's twin, or None where the run has none.

    Args:
      run: its folder.
      template: parameters of the same network.
    """
    if not (run.path / TWIN).is_file():
        return None
    with np.load(run.path / TWIN) as saved:
        arrays = dict(saved)
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _by_path(template).items()}
    of_another_run = str(arrays.pop("config")) != json.dumps(_comparable(run.config))
    if of_another_run or {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()} != expected:
        return None  # left by a run that was here before
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in expected])


def _by_path(params: Params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a twin depends on, and more, but not where it lies nor what is looked at."""
    ignored = {"output", "overwrite", "resume", "resume_step", "progress"}
    ignored |= {field.name for field in dataclasses.fields(EvaluationFlags)}
    return {name: _plain(value) for name, value in sorted(config.items()) if name not in ignored}


def _plain(value: Any) -> Any:
    """As it would be read back from JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def _costs_of_training(run: RunFolder) -> dict[str, Any]:
    """What training took, as the run's own card says; None where it never came to one."""
    names = ("seconds_training", "seconds_compiling", "device_memory")
    path = run.path / "card.json"
    card = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: card.get(name) for name in names}


def defaults_for(arguments: Sequence[str]) -> EvaluateConfig:
    """Returns the flags of the evaluation with which the run that is named in the arguments ended."""
    before = ""
    for argument in arguments:
        path = Path(argument) / "config.json"
        if not argument.startswith("-") and before != "--output" and path.is_file():
            try:
                _, config = open_finished(Path(argument))
            except (OSError, ValueError):
                break  # `main` tells of it
            names = [field.name for field in dataclasses.fields(EvaluationFlags)]
            return EvaluateConfig(run=Path(argument), **{name: getattr(config, name) for name in names})
        before = argument
    return EvaluateConfig(run=Path())


def of_small_network(config: EvaluateConfig) -> bool:
    """Whether XLA's settings for small networks suit the run; experiments/jem.py ran under the same ones."""
    try:
        _, trained = open_finished(config.run)
    except (OSError, ValueError):
        return False  # `main` tells of it
    return has_small_network(trained)


if __name__ == "__main__":
    defaults = defaults_for(sys.argv[1:])
    run_experiment(EvaluateConfig, main, default=defaults, small_networks=of_small_network)
