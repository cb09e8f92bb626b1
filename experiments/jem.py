"""JEM: train one network as classifier and energy-based model at once, and say honestly what it learnt.

    python experiments/jem.py                       # digits: 98.3% (sd .20), ECE .011, 70 s on 2 CPU cores
    python experiments/jem.py --network convnet     # 98.9% (sd .20), ECE .014, 104 s on 2 CPU cores
    python experiments/jem.py --dataset mnist --network convnet          # wants a GPU
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

from command_line import as_json, run_experiment
from devices import join_processes, open_shared_run
from jaxebm.data import load_dataset
from jaxebm.training import fetch
from jem_card import ModelUnderTest, evaluate, write_card
from jem_config import Config, recipe_for
from jem_likelihood import LikelihoodSettings
from jem_parts import make_initial, make_kernel, prepare, train


def main(config: Config) -> dict[str, Any]:
    """Trains, evaluates and writes the run's folder; returns the card."""
    started = time.monotonic()
    config.check()
    join_processes(config)
    dataset = load_dataset(config.dataset, exclude_classes=config.exclude_classes)
    training = prepare(config, dataset)
    run = open_shared_run(config.output, as_json(config), resume=config.resume, overwrite=config.overwrite)
    result = train(training, run)
    state = fetch(result.state if result.best_state is None else result.best_state)

    twin_params = None
    if config.twin and config.generative:
        twin = replace(config, p_x_weight=0.0, p_xy_weight=0.0, p_y_given_x_weight=1.0, select="last")
        twin_params = fetch(train(prepare(twin, dataset)).state.ema_params)
    if jax.process_index() > 0:
        return {}  # one process evaluates
    buffered = config.generative and config.negatives == "persistent"
    model = ModelUnderTest(
        logits=training.logits,
        params=state.ema_params,
        twin_params=twin_params,
        kernel=make_kernel(config),
        initial=make_initial(config, dataset),
        buffer=state.memory if buffered else None,
        conditional=config.chains == "conditional",
    )
    card = evaluate(
        run,
        model,
        dataset,
        seed=config.seed,
        samples_per_class=config.samples_per_class,
        sample_steps=config.sample_steps,
        likelihood=LikelihoodSettings(
            config.likelihood_temperatures, config.likelihood_steps, config.likelihood_chains
        ),
    )
    card |= {
        "experiment": "jem",
        "dataset": config.dataset,
        "seed": config.seed,
        "updates": training.num_steps,
        "config": as_json(config),
        "recoveries": list(result.recoveries),
        "evaluated_update": int(state.step),
        "seconds": time.monotonic() - started,
        "seconds_training": result.seconds,
        "seconds_compiling": result.compile_seconds,
        "device_memory": result.memory._asdict() if result.memory else None,
    }
    write_card(run, card)
    return card


def has_small_network(config: Config) -> bool:
    """Whether XLA's settings for small networks suit it."""
    return config.network == "mlp" or (config.network == "convnet" and config.dataset == "digits")


if __name__ == "__main__":
    run_experiment(Config, main, default=recipe_for(sys.argv[1:]), small_networks=has_small_network)
