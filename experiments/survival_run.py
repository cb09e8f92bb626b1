"""One run of experiments/survival.py: trained, whatever comes of it, and judged."""

import math
import tempfile
import time
import warnings
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.data import Dataset, load_dataset
from jaxebm.energies import joint_energy
from jaxebm.evaluation import prdc_by_class
from jaxebm.objectives import run_labelled_chains
from jaxebm.training import DivergenceError, TrainState, open_run
from jem_config import Config
from jem_parts import Training, make_initial, make_kernel, prepare, train

__all__ = ["RUNAWAY_GAP", "survive"]

RUNAWAY_GAP = 100.0
"""|E(data) - E(samples)| in nats, mean over the last dispatch, at which a finite run has diverged."""
SAMPLE_STEPS = 100
NEIGHBOURS = 5


@cache
def _digits() -> Dataset:
    return load_dataset("digits")


def survive(config: Config, samples_per_class: int) -> dict[str, Any]:
    """Trains one seed and returns what became of it, as plain values for JSON.

    Args:
      config: flags of experiments/jem.py.
      samples_per_class: fresh chains of each class.

    Returns:
      seed, recovery (whether it could), diverged, ended (the error, if one ended it), recoveries (their
      records), gaps (pairs of update and energy gap, of the updates that counted in the end), seconds; and,
      if it has not diverged, accuracy and what `prdc_by_class` measures of its samples.
    """
    started = time.monotonic()
    training = prepare(replace(config, steps_per_dispatch=10, checkpoint_every=10**9), _digits())
    ended, state = "", None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # recoveries are in the record
        run = open_run(folder, {})
        try:
            state = train(training, run).state
        except DivergenceError as error:
            ended = str(error).split(". ")[0]
        records, recoveries = run.read_metrics(), run.read_recoveries()
    gaps = [(record["step"], record["energy_gap"]) for record in records]
    diverged = state is None or abs(gaps[-1][1]) > RUNAWAY_GAP
    record: dict[str, Any] = {
        "seed": config.seed,
        "recovery": config.recovery,
        "diverged": diverged,
        "ended": ended,
        "recoveries": recoveries,
        "gaps": gaps,
    }
    if state is not None and not diverged:
        record |= _judge(training, state, samples_per_class)
    return record | {"seconds": time.monotonic() - started}


def _judge(training: Training, state: TrainState, samples_per_class: int) -> dict[str, float]:
    """Test accuracy and fresh chains of the setting's own sampler, whatever remedies were in force."""
    dataset, config = _digits(), training.config
    logits = jax.jit(jax.vmap(partial(training.logits, state.ema_params)))
    classes = np.argmax(logits(jnp.asarray(dataset.rescale(dataset.test.image))), axis=1)
    labels = jnp.repeat(jnp.arange(dataset.num_classes, dtype=jnp.int32), samples_per_class)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    start = jax.vmap(make_initial(config, dataset))(jax.random.split(keys[0], len(labels)), labels)
    advance = jax.jit(
        partial(
            run_labelled_chains,
            make_kernel=make_kernel(config),
            energy=joint_energy(training.logits),
            num_steps=SAMPLE_STEPS,
        )
    )
    samples = np.asarray(advance(keys[1], params=state.ema_params, positions=start, labels=labels))
    real = np.asarray(dataset.rescale(dataset.train.image)).reshape(len(dataset.train.label), -1)
    generated = samples.reshape(len(samples), -1)
    quality = prdc_by_class(
        real, dataset.train.label, generated, np.asarray(labels), dataset.num_classes, k=NEIGHBOURS
    ).mean
    measured = {name: float(value) for name, value in quality._asdict().items()}
    if not all(math.isfinite(value) for value in measured.values()):
        raise RuntimeError(f"seed {config.seed}: the samples' measures are not finite, {measured}.")
    return {"accuracy": float(np.mean(classes == dataset.test.label))} | measured
