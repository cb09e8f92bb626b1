"""Any objective on two-dimensional densities, with exact KL(data || model) by quadrature.

    python experiments/density_2d.py                                  # maximum likelihood, all six
    python experiments/density_2d.py --densities spiral --seed 1
    python experiments/density_2d.py --objective noise_contrastive

    expected  KL in nats, mean (sd) over seeds 0 and 1: two_moons .0021 (.0001), pinwheel .0070 (.0002), rings
              .0078 (.0001), eight_gaussians .0021 (.0003), checkerboard .0509 (.0064), spiral .0088 (.0004)
    time      about a minute per density
    device    two CPU cores

An MLP energy, tilted by a broad Gaussian so that it can be normalised, learns from exact samples of each
density, by default by persistent contrastive divergence. A transition of the chains is one MALA step and one
uniform proposal over the window, accepted or rejected by Metropolis-Hastings: with local moves alone the
masses of separate modes could not be learnt. ``--objective`` takes any name of the table in
gallery/objectives.py, and with it the flags that were tuned for it; docs/objectives.md compares them.

Writes a folder for each density (config.json, metrics.jsonl, checkpoints/, card.json, density.png: true
density, learnt density and samples), and card.json and card.md for all in the output folder.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gallery.densities import bound_log_partition, on_grid, window
from gallery.density_plots import density_panels
from gallery.methods import Problem
from gallery.objectives import CHAIN_FLAGS, METHODS, plane
from gallery.phases import Trained
from gallery.phases import train as train_phases
from jaxebm import checks
from jaxebm.data import TOY_DENSITIES, ToyDensity
from jaxebm.evaluation import kl_divergence_on_grid
from jaxebm.recipes.command_line import ResumableFlags, as_json, publish_card, run_experiment
from jaxebm.report.markdown import markdown_table
from jaxebm.training import Checkpointing, RunFolder, open_run
from jaxebm.types import Array, Params


@dataclass(frozen=True)
class Config(ResumableFlags):
    """Learn two-dimensional densities and measure the exact Kullback-Leibler divergence."""

    objective: str = "likelihood"
    """What is minimised (docs/objectives.md lists the names); `--objective NAME --help` shows the defaults of
    the flags below that were tuned for it."""
    densities: tuple[str, ...] = tuple(TOY_DENSITIES)
    """Densities to learn: two_moons, spiral, eight_gaussians, rings, pinwheel, checkerboard."""
    output: Path = Path("runs/density_2d")
    """Folder of this run; each density gets a folder inside."""

    widths: tuple[int, ...] = (128, 128, 128)
    """Widths of the hidden layers."""
    activation: str = "swish"
    """swish, gelu, softplus, elu, relu or leaky_relu."""
    updates: int = 4000
    """Optimiser updates."""
    batch_size: int = 512
    """Exact samples of the density per update."""
    learning_rate: float = 4e-3
    """Greatest learning rate: linear warm-up, then cosine decay to a hundredth."""
    gradient_clip: float = 0.0
    """Greatest norm of the gradient of the loss; 0 clips nothing."""
    input_gain: float = 1.0
    """What standardised inputs of the network are multiplied by: above 1, fine detail is learnt sooner."""
    ema_decay: float = 0.999
    """Decay of the average of the weights, which the evaluation uses."""
    energy_l2: float = 0.0
    """Weight of E(x)^2 on data and samples, against drift."""

    num_chains: int = 512
    """Persistent chains, all advanced at every update."""
    sampler_steps: int = 5
    """Transitions per update."""
    sampler_step_size: float = 0.02
    """Step size of MALA, in squared units of the plane."""
    restart_probability: float = 0.0
    """Probability that a chain is restarted, uniformly over the window."""

    grid_points: int = 400
    """Quadrature points per axis."""
    num_samples: int = 5000
    """Samples in the picture, from new chains."""
    sample_steps: int = 500
    """Transitions of these chains."""
    annealing_steps: int = 100
    """Temperatures of annealed importance sampling, whose log Z is compared with quadrature."""
    annealing_chains: int = 500
    """Chains of annealed importance sampling in each direction."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        checks.one_of("objective", self.objective, tuple(METHODS))
        unknown = [name for name in self.densities if name not in TOY_DENSITIES]
        if unknown or not self.densities:
            raise ValueError(
                f"densities={self.densities}: unknown {unknown}; choose among {', '.join(TOY_DENSITIES)}."
            )
        for name in ("updates", "batch_size", "num_chains", "sampler_steps"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("grid_points", "num_samples", "sample_steps", "annealing_steps", "annealing_chains"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("learning_rate", "sampler_step_size", "input_gain"):
            checks.positive_number(name, getattr(self, name))
        checks.non_negative_number("gradient_clip", self.gradient_clip)
        tuned = config_of(self.objective)
        for name in CHAIN_FLAGS:
            users = [objective for objective, method in METHODS.items() if name in method.chain_flags]
            if self.objective not in users and getattr(self, name) != getattr(tuned, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: objective={self.objective} makes no use of it; it is for "
                    f"{', '.join(users)}."
                )


def config_of(objective: str, **changes: Any) -> Config:
    """Returns the configuration tuned for an objective, with changes."""
    checks.one_of("objective", objective, tuple(METHODS))
    return replace(Config(objective=objective), **(dict(METHODS[objective].defaults) | changes))


def base(first: Config) -> Config:
    """Returns the defaults of the flags, for the objective among them."""
    return config_of(first.objective)


def make_problem(config: Config, density: ToyDensity) -> Problem:
    """Returns the energy, the objective and the sampler of the chosen method."""
    return METHODS[config.objective].build(config, plane(density))


def learn(config: Config, density: ToyDensity, run: RunFolder) -> dict[str, Any]:
    """Trains on one density, evaluates, draws, and returns its card."""
    trained = train(config, density, run)
    # The learner splits the key of the seed in three; the last one is free for the evaluation.
    judge_key = jax.random.split(jax.random.key(config.seed), 3)[2]
    card = judge(judge_key, config, density, trained.problem, trained.params, run)
    card["seconds_training"] = trained.seconds
    card["recoveries"] = list(trained.recoveries)
    run.write_json("card.json", card)
    return card


def train(config: Config, density: ToyDensity, run: RunFolder | None) -> Trained:
    """Trains phase by phase; without a folder nothing is written.

    The checkpoints of the first phase are in the folder of the run, those of a second in one inside it.
    """
    return train_phases(
        config,
        lambda config: make_problem(config, density),
        density.sample,
        checkpointing=lambda phase: _checkpointing(config, run, phase),
    )


def _checkpointing(config: Config, run: RunFolder | None, phase: int) -> Checkpointing | None:
    if run is None:
        return None
    if phase > 0:
        name = f"phase_{phase + 1}"
        run.claim(name)
        run = open_run(run.path / name, run.config, resume=True, uncompared=run.uncompared)
    return Checkpointing(run, every=1000, resume_step=config.resume_step if phase == 0 else None)


def judge(
    rng_key: Array, config: Config, density: ToyDensity, problem: Problem, params: Params, run: RunFolder
) -> dict[str, Any]:
    """Returns the divergences between the density and the model, by quadrature, and draws both."""
    samples = problem.draw(rng_key, params, config.num_samples)
    picture = partial(density_panels, run.file("density.png"), density, samples=np.asarray(samples))
    if problem.energy is None:
        picture(None, title=f"{density.name}: samples; no density is learnt")
        return {"density": density.name, "kl": None, "reverse_kl": None, "log_partition": None}

    energy = problem.energy
    points, log_cell, log_true, log_model, kl = on_grid(density, energy, params, config.grid_points)
    high = window(density)[1]
    at_edge = jnp.any(jnp.abs(points) > 0.97 * high, axis=1)
    reverse_kl = None
    if density.name != "checkerboard":  # which is zero between its squares, where no model is
        reverse_kl = float(kl_divergence_on_grid(log_model, log_true, log_cell))
    picture(np.asarray(log_model), title=f"{density.name}: KL(data || model) = {kl:.3f} nats")
    peak = jnp.argmax(log_model)  # log p = -E - log Z, at any point
    log_partition = float(-energy(params, points[peak]) - log_model[peak])
    bounds = bound_log_partition(
        jax.random.fold_in(rng_key, 2),
        density,
        energy,
        params,
        points,
        log_model,
        grid_points=config.grid_points,
        num_temperatures=config.annealing_steps,
        num_chains=config.annealing_chains,
    )
    return {
        "density": density.name,
        "kl": kl,
        "reverse_kl": reverse_kl,
        "log_partition": {"quadrature": log_partition} | bounds,
        "mass_at_edge": float(jnp.sum(jnp.where(at_edge, jnp.exp(log_model + log_cell), 0.0))),
    }


def _row(name: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    log_z = card["log_partition"]
    if log_z is None:
        return (name, "-", "-", "-", f"{card['seconds_training']:.0f}")
    interval = f"{log_z['low']:.3f} to {log_z['high']:.3f}"
    return (
        name,
        f"{card['kl']:.4f}",
        f"{log_z['quadrature']:.3f}",
        interval,
        f"{card['seconds_training']:.0f}",
    )


def as_markdown(config: Config, cards: Mapping[str, dict[str, Any]]) -> str:
    """Returns the card of all densities as text."""
    header = ("density", "KL(data, model), nats", "log Z, quadrature", "log Z, annealing, 99%", "training, s")
    lines = [
        f"# Two-dimensional densities by {config.objective}, seed {config.seed}",
        "",
        *markdown_table(header, (_row(name, card) for name, card in cards.items())),
        "",
        *(f"![{name}]({name}/density.png)" for name in cards),
        "",
    ]
    return "\n".join(lines)


def main(config: Config) -> dict[str, Any]:
    """Learns every density and writes the cards; returns them."""
    started = time.monotonic()
    config.check()
    settings = as_json(config)
    open_folder = partial(
        open_run,
        config=settings,
        resume=config.resume,
        overwrite=config.overwrite,
        uncompared=("output", "overwrite", "progress", "resume", "resume_step"),
    )
    run = open_folder(config.output)
    cards = {}
    for name in config.densities:
        if config.progress:
            print(name, flush=True)
        cards[name] = learn(config, TOY_DENSITIES[name], open_folder(config.output / name))
    card = {
        "schema": 1,
        "experiment": "density_2d",
        "seed": config.seed,
        "kl": {name: one["kl"] for name, one in cards.items()},
        "densities": cards,
        "seconds": time.monotonic() - started,
        "config": settings,
    }
    publish_card(run, card, as_markdown(config, cards))
    return card


if __name__ == "__main__":
    run_experiment(
        Config,
        main,
        base=base,
        small_networks=lambda config: True,
    )
