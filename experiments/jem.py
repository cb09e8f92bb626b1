"""JEM: train one network as classifier and energy-based model at once, and say honestly what it learnt.

    python experiments/jem.py                       # digits: 98.3% (sd .20), ECE .011, trained in 54 s
    python experiments/jem.py --network convnet     # 99.0% (sd .30), ECE .014
    python experiments/jem.py --dataset mnist --network convnet     # 99.4% (seed 0), 25 minutes on 2 CPUs
    python experiments/jem.py --recipe sadajem --network convnet         # a published recipe, see docs/jem.md
    python experiments/jem.py --dataset npz:PATH    # your own arrays `image` and `label`

Accuracies are of the test split over 5 seeds; all figures, with their spread, are in experiments/RESULTS.md.
Writes a folder: config.json, metrics.jsonl, checkpoints/, card.json (schema in docs/card.md), card.md,
samples.npz and pictures.

Reference: Grathwohl et al. 2020, "Your classifier is secretly an energy based model" (arXiv 1912.03263).
"""

import sys
import time
from dataclasses import replace
from typing import Any

import jax

from card_ood import find_outliers
from command_line import as_json, run_experiment
from devices import join_processes, open_shared_run
from evaluate import measure_run, save_twin
from jaxebm.data import Dataset, load_dataset
from jaxebm.training import fetch
from jaxebm.types import Params
from jem_card import write_card
from jem_config import Config, has_small_network, recipe_for
from jem_parts import prepare, train


def classifier_of(config: Config) -> Config:
    """Returns the flags of the same network as a classifier: cross-entropy alone."""
    return replace(
        config,
        p_x_weight=0.0,
        p_xy_weight=0.0,
        p_y_given_x_weight=1.0,
        last_step_weight=0.0,
        freeze_statistics=False,
        pretrain_epochs=0,
        select="last",
    )


def pretrain(config: Config, dataset: Dataset) -> Params:
    """Returns the averaged weights after ``--pretrain-epochs`` of cross-entropy, in a run of their own."""
    first = replace(
        classifier_of(config),
        epochs=config.pretrain_epochs,
        output=config.output / "pretraining",
        decay_epochs=tuple(epoch for epoch in config.decay_epochs if epoch < config.pretrain_epochs),
        schedule="cosine" if config.schedule == "constant" else config.schedule,
        resume_step=None,
    )
    training = prepare(first, dataset)
    run = open_shared_run(first.output, as_json(first), resume=config.resume, overwrite=config.overwrite)
    return fetch(train(training, run).state.ema_params)


def main(config: Config) -> dict[str, Any]:
    """Trains, evaluates and writes the run's folder; returns the card."""
    started = time.monotonic()
    config.check()
    join_processes(config)
    dataset = load_dataset(config.dataset, exclude_classes=config.exclude_classes)
    find_outliers(config, dataset.image_shape)  # what is missing is told now, not after the training
    training = prepare(config, dataset)  # before the folder is made, for what it refuses
    run = open_shared_run(config.output, as_json(config), resume=config.resume, overwrite=config.overwrite)
    if config.pretrain_epochs:
        training = prepare(config, dataset, pretrain(config, dataset))
    result = train(training, run)
    state = fetch(result.state if result.best_state is None else result.best_state)

    twin_params = None
    if config.twin and config.generative:
        twin = replace(classifier_of(config), adversarial_radius=0.0)
        twin_params = fetch(train(prepare(twin, dataset)).state.ema_params)
    if jax.process_index() > 0:
        return {}  # one process evaluates
    if twin_params is not None:
        save_twin(run, twin_params)
    card = measure_run(run, training, dataset, state, twin_params, config)
    card |= {
        "seconds": time.monotonic() - started,
        "seconds_training": result.seconds,
        "seconds_compiling": result.compile_seconds,
        "device_memory": result.memory._asdict() if result.memory else None,
    }
    write_card(run, card)
    return card


if __name__ == "__main__":
    run_experiment(Config, main, default=recipe_for(sys.argv[1:]), small_networks=has_small_network)
