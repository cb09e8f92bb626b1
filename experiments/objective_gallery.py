"""Every objective on every two-dimensional density: exact divergence, samples, cost, failures.

    python experiments/objective_gallery.py
    python experiments/objective_gallery.py --densities two_moons rings eight_gaussians
    python experiments/objective_gallery.py --objectives noise_contrastive sliced --resume

    expected  the table of docs/objectives.md
    time      about a minute for each objective and density
    device    two CPU cores

Each cell is `density_2d.py --objective NAME` with the flags that were tuned for it (gallery/objectives.py),
judged by KL(data || model) on a grid and by the energy distance of samples to exact ones. An objective whose
training diverges is reported, and the others go on. A finished cell is kept: ``--resume`` does the missing
ones, also of objectives and densities that are added.

Writes cells/, card.json, card.md, and densities.png: what each objective learnt.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import density_2d
from gallery.densities import on_grid
from gallery.objective_cost import gradients_per_update
from gallery.objective_plots import learnt_densities
from gallery.objectives import METHODS
from jaxebm import checks
from jaxebm.data import TOY_DENSITIES, ToyDensity
from jaxebm.evaluation import energy_distance
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.report.markdown import markdown_table
from jaxebm.training import DivergenceError, RunFolder, open_run

QUICK: Mapping[str, Any] = {
    "widths": (16,),
    "updates": 20,
    "batch_size": 32,
    "num_chains": 32,
    "sample_steps": 10,
}
"""Flags of density_2d.py for a test of the script."""
DENSITY_SIDE = 100
"""Points along each side of a picture."""


@dataclass(frozen=True)
class Config(RunFlags):
    """Learn every density with every objective, and compare."""

    objectives: tuple[str, ...] = tuple(METHODS)
    """Objectives, by the names that density_2d.py takes."""
    densities: tuple[str, ...] = tuple(TOY_DENSITIES)
    """Densities: two_moons, pinwheel, rings, eight_gaussians, checkerboard, spiral."""
    resume: bool = False
    """Do the cells that are missing in the folder."""
    quick: bool = False
    """Tiny networks and 20 updates, to try the script."""
    grid_points: int = 400
    """Quadrature points per axis."""
    num_samples: int = 2000
    """Samples of each model, compared with as many exact ones."""
    output: Path = Path("runs/objective_gallery")
    """Folder of this run."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        for name, known in (("objectives", METHODS), ("densities", TOY_DENSITIES)):
            chosen = getattr(self, name)
            unknown = [one for one in chosen if one not in known]
            if unknown or not chosen:
                raise ValueError(f"{name}={chosen}: unknown {unknown}; choose among {', '.join(known)}.")
        checks.positive_integer("grid_points", self.grid_points)
        checks.integer("num_samples", self.num_samples, 2)


def cell(config: Config, objective: str, density: ToyDensity) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains one objective on one density; returns its figures, and the arrays of its picture."""
    settings = density_2d.config_of(
        objective, seed=config.seed, progress=False, **(QUICK if config.quick else {})
    )
    try:
        trained = density_2d.train(settings, density, None)
    except DivergenceError as error:
        return {"failure": str(error)}, {}
    problem, params = trained.problem, trained.params
    key_model, key_exact, key_other = jax.random.split(jax.random.key(config.seed), 3)
    started = time.monotonic()
    samples = problem.draw(key_model, params, config.num_samples)
    samples = np.asarray(samples)
    seconds_sampling = time.monotonic() - started
    exact, other = (density.sample(key, config.num_samples) for key in (key_exact, key_other))
    finite = bool(np.all(np.isfinite(samples)))
    figures: dict[str, Any] = {
        "kl": None,
        "energy_distance": float(energy_distance(samples, exact)) if finite else None,
        "energy_distance_of_exact_samples": float(energy_distance(other, exact)),
        "samples_finite": finite,
        "seconds_training": trained.seconds,
        "seconds_sampling": seconds_sampling,
        "updates": settings.updates,
        "gradients_per_update": gradients_per_update(problem, settings.batch_size),
        "gradients_per_sample": problem.gradients_per_sample,
        "recoveries": len(trained.recoveries),
        "failure": None,
    }
    arrays = {"samples": samples}
    if problem.energy is not None:
        model = on_grid(density, problem.energy, params, config.grid_points)
        figures["kl"] = model.kl if np.isfinite(model.kl) else None
        picture = on_grid(density, problem.energy, params, DENSITY_SIDE)
        arrays["density"] = np.exp(np.asarray(picture.log_model)).reshape(DENSITY_SIDE, DENSITY_SIDE)
    return figures, arrays


def cells(config: Config, run: RunFolder) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the figures of every cell, by objective and density; those in the folder are read."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for objective in config.objectives:
        found[objective] = {}
        for density in config.densities:
            name = f"cells/{objective}-{density}"
            path = run.path / f"{name}.json"
            if not path.exists():
                if config.progress:
                    print(f"{objective}: {density}", flush=True)
                path.parent.mkdir(exist_ok=True)
                figures, arrays = cell(config, objective, TOY_DENSITIES[density])
                packed = io.BytesIO()
                np.savez_compressed(packed, **arrays)  # pyright: ignore[reportArgumentType]
                run.write(f"{name}.npz", packed.getvalue())
                run.write_json(f"{name}.json", figures)  # last: a cell with it is whole
            found[objective][density] = json.loads(path.read_text())
    return found


def as_markdown(config: Config, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns one table of divergences and costs, and one of samples."""
    divergences = markdown_table(
        ("objective", *config.densities, "gradients an update", "updates", "training, s"),
        [
            (objective, *(_text(by[name], "kl", ".4f") for name in config.densities), *_costs(by))
            for objective, by in found.items()
        ],
    )
    distances = markdown_table(
        ("objective", *config.densities, "gradients a sample"),
        [
            (
                objective,
                *(_text(by[name], "energy_distance", ".4f") for name in config.densities),
                _mean(by, "gradients_per_sample", ".0f"),
            )
            for objective, by in found.items()
        ],
    )
    lines = [
        f"# Objectives on two-dimensional densities, seed {config.seed}",
        "",
        "KL(data || model) by quadrature, in nats; `-` where no density is learnt. Gradients an update: its",
        "cost in gradients of the energy in x for each example. Times include compilation.",
        "",
        *divergences,
        "",
        f"Squared energy distance of {config.num_samples} samples to as many exact ones.",
        "",
        *distances,
        "",
        *_failures(found),
        "![what each objective learnt](densities.png)",
        "",
    ]
    return "\n".join(lines)


def _text(figures: Mapping[str, Any], name: str, form: str) -> str:
    if figures["failure"]:
        return "diverged"
    return "-" if figures[name] is None else format(figures[name], form)


def _mean(by_density: Mapping[str, Mapping[str, Any]], name: str, form: str) -> str:
    values = [one[name] for one in by_density.values() if not one["failure"]]
    return format(np.mean(values), form) if values else "-"


def _costs(by_density: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, str]:
    columns = (("gradients_per_update", ".1f"), ("updates", ".0f"), ("seconds_training", ".0f"))
    first, second, third = (_mean(by_density, name, form) for name, form in columns)
    return first, second, third


def _failures(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    lines = [
        f"- {objective}, {density}: {figures['failure']}"
        for objective, by_density in found.items()
        for density, figures in by_density.items()
        if figures["failure"]
    ]
    return [*lines, ""] if lines else []


def read_arrays(run: RunFolder, objective: str, density: str) -> dict[str, np.ndarray]:
    """Returns the arrays of one cell's picture."""
    with np.load(run.path / f"cells/{objective}-{density}.npz") as arrays:
        return dict(arrays)


def main(config: Config) -> dict[str, Any]:
    """Evaluates every cell and writes the card; returns it."""
    started = time.monotonic()
    config.check()
    settings = as_json(config)
    run = open_run(
        config.output,
        settings,
        resume=config.resume,
        overwrite=config.overwrite,
        uncompared=("output", "overwrite", "progress", "resume", "objectives", "densities"),
    )
    found = cells(config, run)
    learnt_densities(
        run.file("densities.png"),
        {name: TOY_DENSITIES[name] for name in config.densities},
        {o: {d: read_arrays(run, o, d) for d in config.densities} for o in config.objectives},
        {o: {d: found[o][d].get("kl") for d in config.densities} for o in config.objectives},
    )
    card = {
        "schema": 1,
        "experiment": "objective_gallery",
        "seed": config.seed,
        "cells": found,
        "seconds": time.monotonic() - started,
        "config": as_json(replace(config, progress=True)),
    }
    publish_card(run, card, as_markdown(config, found))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
