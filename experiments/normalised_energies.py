"""Is -E really log p? Energies that are told noise levels, on forty modes in 2, 16 and 128 dimensions.

    python experiments/normalised_energies.py
    python experiments/normalised_energies.py --dimensions 128 --objectives level_classification

    expected  experiments/RESULTS.md, "Normalised energies": dual score matching at 4,000 updates
    time      one and a half minutes for each dimension of it
    device    two CPU cores

Each objective learns one energy E(x; sigma) of draws of a mixture of forty normals. -E at the lowest level is
compared with the exact log-density of noisy draws (smoothed by the same noise), and its normalisation with
three estimates of log Z, 0 for a normalised energy: importance sampling at the highest level, and both bounds
of annealing through the levels. `classify_levels` tells whether the energies of all levels fit together.

Writes card.json, card.md and a picture of the errors at every level to the output folder.

Reference: Guth et al. 2025 (arXiv 2506.05310); OuYang et al. 2026 (arXiv 2601.21025), table 1.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gallery.plots import level_errors
from jaxebm import checks, objectives
from jaxebm.energies import (
    AnalyticTarget,
    LevelMLP,
    marginal_energy_at,
    preconditioned_logits,
    random_mixture,
)
from jaxebm.evaluation import (
    classify_levels,
    interval_of_bounds,
    level_importance_sampling,
    reverse_level_importance_sampling,
)
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.report.markdown import markdown_table
from jaxebm.samplers import geometric_levels, hmc
from jaxebm.training import fit, learner, open_run
from jaxebm.types import Array, LevelEnergyFn, Params

EXTENT, WIDTH, MODES = 40.0, 1.3132617, 40
"""Half the side of the cube that holds the means, the standard deviation of each mode, and their number."""
OBJECTIVES: Mapping[str, Callable[..., Any]] = {
    "dual_score_matching": objectives.dual_score_matching,
    "level_classification": objectives.level_classification,
    "denoising_at_levels": objectives.denoising_at_levels,
}
"""By name; the last one leaves a constant of every level and every mode open."""
KERNEL = partial(hmc, num_integration_steps=3)
EVALUATED = 1000
"""Draws that the energies are compared on."""
CLASSIFIED_LEVELS = 20
"""Levels among which `classify_levels` tells."""


@dataclass(frozen=True)
class Config(RunFlags):
    """Learn normalised energies of forty modes, and compare them with the exact log-density."""

    dimensions: tuple[int, ...] = (2, 16, 128)
    """Dimensions of the mixture, evaluated separately."""
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Any of dual_score_matching, level_classification, denoising_at_levels."""
    num_steps: int = 6000
    """Updates."""
    batch_size: int = 256
    """Draws of the mixture in each update."""
    learning_rate: float = 1e-3
    """Of Adam at the first update; it falls to 0 along a cosine."""
    widths: tuple[int, ...] = (256, 256, 256)
    """Units of each hidden layer."""
    outputs: int = 64
    """Outputs f of the network: E = -log sum exp f, so that each may take over a mode."""
    lowest: float = 0.5
    """The lowest noise level; the modes have a standard deviation of 1.31."""
    highest: float = 200.0
    """The highest noise level; the means lie in a cube of side 80."""
    annealing_levels: int = 300
    """Levels of the annealing that bounds log Z."""
    chains: int = 100
    """Annealed chains in each direction."""
    output: Path = Path("runs/normalised_energies")
    """Folder of this run."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives:
            raise ValueError(
                f"objectives={self.objectives}: unknown {unknown}; choose among {', '.join(OBJECTIVES)}."
            )
        for name in ("dimensions", "widths"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: integers of at least 1 are needed.")
        for name, least in (
            ("num_steps", 1),
            ("batch_size", 2),
            ("outputs", 1),
            ("annealing_levels", 2),
            ("chains", 2),
        ):
            checks.integer(name, getattr(self, name), least)
        for name in ("learning_rate", "lowest", "highest"):
            checks.positive_number(name, getattr(self, name))
        if self.lowest >= self.highest:
            raise ValueError(f"highest={self.highest}: it must be above lowest={self.lowest}.")


def log_density(target: AnalyticTarget, y: Array, level: Array | float) -> Array:
    """Returns the exact log p of noisy draws y, ``(n,)``: each mode is wider by the noise."""
    means = target.params.means
    variance = WIDTH**2 + level**2
    squares = jax.vmap(lambda y: jnp.sum((y[None] - means) ** 2, axis=1))(y)
    constant = jnp.log(MODES) + 0.5 * y.shape[1] * jnp.log(2 * jnp.pi * variance)
    return jax.nn.logsumexp(-0.5 * squares / variance, axis=1) - constant


def learn(config: Config, name: str, target: AnalyticTarget) -> tuple[LevelEnergyFn, Params, Any]:
    """Returns the energy, its parameters and the last metrics of training."""
    network: Any = LevelMLP(config.outputs, widths=config.widths)
    logits_at = preconditioned_logits(network.apply, scale=EXTENT / 3**0.5)
    energy_at = marginal_energy_at(logits_at)
    objective = OBJECTIVES[name](energy_at, lowest=config.lowest, highest=config.highest)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule, b2=0.99))
    learning = learner(objective, optimizer=optimizer, batch_size=config.batch_size, ema_decay=0.995)
    result = fit(
        jax.random.key(config.seed),
        learning,
        lambda rng_key, x: network.init(rng_key, x, 1.0),
        lambda rng_key, n: target.sample(rng_key, target.params, n),
        num_steps=config.num_steps,
        progress=config.progress,
    )
    return energy_at, result.params, result.history[-1]


def evaluate(config: Config, energy_at: LevelEnergyFn, params: Params, target: AnalyticTarget) -> Any:
    """Returns the errors of -E at every level, the estimates of log Z, and the measure of its levels."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 7)
    x = target.sample(keys[0], target.params, EVALUATED)
    noise = jax.random.normal(keys[1], x.shape)
    levels = geometric_levels(config.highest, config.lowest, CLASSIFIED_LEVELS)

    @jax.jit
    def minus_energy(params: Params, y: Array, level: Array) -> Array:
        return -jax.vmap(energy_at, (None, 0, None))(params, y, level)

    errors = np.stack(
        [minus_energy(params, x + s * noise, s) - log_density(target, x + s * noise, s) for s in levels]
    )

    def exact_at(_: None, y: Array, level: Array) -> Array:
        return -log_density(target, y[None], level)[0]

    problem = (energy_at, params, x.mean(axis=0), x.var(axis=0))
    path = geometric_levels(config.highest, config.lowest, config.annealing_levels)
    highest = level_importance_sampling(keys[2], *problem, path[:1], KERNEL, EVALUATED)
    forward = level_importance_sampling(keys[3], *problem, path, KERNEL, config.chains)
    samples = x[: config.chains] + config.lowest * noise[: config.chains]
    reverse = reverse_level_importance_sampling(keys[4], *problem, path, KERNEL, samples)
    interval = interval_of_bounds(forward, reverse)
    measure = classify_levels(keys[5], energy_at, params, x, levels)
    exact = classify_levels(keys[5], exact_at, None, x, levels)
    return {
        "error": {"mean": errors.mean(axis=1).tolist(), "sd": errors.std(axis=1, ddof=1).tolist()},
        "levels": np.asarray(levels).tolist(),
        "log_partition": {
            "highest": float(highest.log_partition),
            "standard_error": float(highest.standard_error),
            "low": float(interval.low),
            "high": float(interval.high),
        },
        "classification": {"measure": float(measure.cross_entropy), "exact": float(exact.cross_entropy)},
    }


def as_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table as text."""
    header = (
        "dimension",
        "objective",
        "error of log p, nats: mean (sd over draws)",
        "log Z at the highest level (standard error)",
        "log Z at the lowest, interval",
        "classification measure (exact)",
        "seconds",
    )
    rows = []
    for dimension, by_objective in results.items():
        for name, one in by_objective.items():
            found, error, measure = one["log_partition"], one["error"], one["classification"]
            cells = (
                dimension,
                name,
                f"{error['mean'][-1]:+.2f} ({error['sd'][-1]:.2f})",
                f"{found['highest']:.3f} ({found['standard_error']:.3f})",
                f"{found['low']:.2f} to {found['high']:.2f}",
                f"{measure['measure']:.2f} ({measure['exact']:.2f})",
                f"{one['seconds']:.0f}",
            )
            rows.append([str(cell) for cell in cells])
    title = "# Energies as log-densities, at the lowest noise level"
    return "\n".join([title, "", *markdown_table(header, rows), "", "![errors](errors.png)", ""])


def main(config: Config) -> dict[str, Any]:
    """Learns, compares and writes the card; returns it."""
    started = time.monotonic()
    config.check()
    run = open_run(config.output, as_json(config), overwrite=config.overwrite, resumable=False)
    results: dict[str, dict[str, Any]] = {}
    for dimension in config.dimensions:
        target = random_mixture(MODES, EXTENT, WIDTH, dimension)
        results[str(dimension)] = {}
        for name in config.objectives:
            if config.progress:
                print(f"{dimension} dimensions, {name}", flush=True)
            begun = time.monotonic()
            energy_at, params, last = learn(config, name, target)
            entry = evaluate(config, energy_at, params, target)
            entry |= {"seconds": time.monotonic() - begun, "training": {k: float(v) for k, v in last.items()}}
            results[str(dimension)][name] = entry
    level_errors(run.file("errors.png"), results)
    card = {
        "schema": 1,
        "experiment": "normalised_energies",
        "seed": config.seed,
        "dimensions": results,
        "seconds": time.monotonic() - started,
        "config": as_json(config),
    }
    publish_card(run, card, as_markdown(results))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
