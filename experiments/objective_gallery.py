"""Every objective on every two-dimensional density and on digits: likelihood, samples, cost, failures.

    python experiments/objective_gallery.py
    python experiments/objective_gallery.py --densities two_moons rings eight_gaussians
    python experiments/objective_gallery.py --objectives noise_contrastive sliced --resume
    python experiments/objective_gallery.py --parts digits

    expected  the tables of docs/objectives.md
    time      about a minute for each objective and density, and as much for each on the digits
    device    two CPU cores

A cell of the plane is `density_2d.py --objective NAME` with the flags that were tuned for it
(gallery/objectives.py), judged by KL(data || model) on a grid and by the energy distance of samples to exact
ones. A cell of the digits is the same objective on the embedded images, without labels, with the settings of
gallery/digit_objectives.py. It is judged as the evaluation card does: an interval of the likelihood of the
test images in bits per dimension, on the box of the pixels, and samples in the features of an independent
network.

An objective whose training diverges is reported, and the others go on. A finished cell is kept: ``--resume``
does the missing ones, also of objectives, densities and parts that are added.

Writes cells/, card.json, card.md, densities.png: what each objective learnt, and digits.png: its samples.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import density_2d
from gallery.densities import on_grid
from gallery.digits import digit_cell, make_judge, test_images, training_images
from gallery.objective_cost import gradients_per_update
from gallery.objective_plots import digit_samples, learnt_densities
from gallery.objective_tables import density_tables, digit_table
from gallery.objectives import METHODS
from jaxebm import checks
from jaxebm.data import TOY_DENSITIES, ToyDensity
from jaxebm.evaluation import energy_distance
from jaxebm.recipes.command_line import RunFlags, as_json, publish_card, run_experiment
from jaxebm.training import DivergenceError, RunFolder, open_run

QUICK: Mapping[str, Any] = {
    "widths": (16,),
    "updates": 20,
    "batch_size": 32,
    "num_chains": 32,
    "sample_steps": 10,
}
"""Flags of density_2d.py for a test of the script."""
QUICK_DIGITS: Mapping[str, Any] = {**QUICK, "widths": (16, 16)}
"""Settings of the digits for the same."""
JUDGE_EPOCHS, QUICK_JUDGE_EPOCHS = 12, 1
"""Of the independent network."""
PARTS = ("densities", "digits")
DENSITY_SIDE = 100
"""Points along each side of a picture."""
SHOWN = 12
"""Samples of each objective in the picture of the digits."""


@dataclass(frozen=True)
class Config(RunFlags):
    """Learn every density and the digits with every objective, and compare."""

    parts: tuple[str, ...] = PARTS
    """What is learnt: densities, digits, or both."""
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
    """Samples of each model, compared with as many exact ones; of digits as many as there are test images."""
    likelihood_steps: int = 150
    """Temperatures of the annealed importance sampling that bounds the likelihood of the digits."""
    likelihood_chains: int = 32
    """Annealed chains in each direction."""
    output: Path = Path("runs/objective_gallery")
    """Folder of this run."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        for name, known in (("parts", PARTS), ("objectives", METHODS), ("densities", TOY_DENSITIES)):
            chosen = getattr(self, name)
            unknown = [one for one in chosen if one not in known]
            if unknown or not chosen:
                raise ValueError(f"{name}={chosen}: unknown {unknown}; choose among {', '.join(known)}.")
        checks.positive_integer("grid_points", self.grid_points)
        for name in ("num_samples", "likelihood_steps", "likelihood_chains"):
            checks.integer(name, getattr(self, name), 2)


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


Cell = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Figures, and the arrays of a picture."""


def kept(config: Config, run: RunFolder, name: str, make: Callable[[], Cell]) -> dict[str, Any]:
    """Returns the figures of a cell, from the folder where it has them; else they are made and written."""
    path = run.path / f"cells/{name}.json"
    if not path.exists():
        if config.progress:
            print(name, flush=True)
        path.parent.mkdir(exist_ok=True)
        figures, arrays = make()
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)  # pyright: ignore[reportArgumentType]
        run.write(f"cells/{name}.npz", packed.getvalue())
        run.write_json(f"cells/{name}.json", figures)  # last: a cell with it is whole
    return json.loads(path.read_text())


def cells(config: Config, run: RunFolder) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the figures of every cell of the plane, by objective and density."""
    return {
        objective: {
            density: kept(
                config,
                run,
                f"{objective}-{density}",
                partial(cell, config, objective, TOY_DENSITIES[density]),
            )
            for density in config.densities
        }
        for objective in config.objectives
    }


def digit_cells(config: Config, run: RunFolder) -> dict[str, dict[str, Any]]:
    """Returns the figures of every objective on the digits, and those of test images beside them."""
    epochs = QUICK_JUDGE_EPOCHS if config.quick else JUDGE_EPOCHS
    images = test_images(config.num_samples)

    def reference() -> Cell:
        return make_judge(epochs).measure(images), {"samples": images[:SHOWN]}

    def learnt(objective: str) -> Cell:
        return digit_cell(
            objective,
            seed=config.seed,
            changes=QUICK_DIGITS if config.quick else {},
            judge=make_judge(epochs),
            num_samples=len(images),
            likelihood_steps=config.likelihood_steps,
            likelihood_chains=config.likelihood_chains,
        )

    found = {"test_images": kept(config, run, "test_images-digits", reference)}
    for objective in config.objectives:
        found[objective] = kept(config, run, f"{objective}-digits", partial(learnt, objective))
    return found


def as_markdown(config: Config, card: Mapping[str, Any]) -> str:
    """Returns the tables of the parts that were asked for, and their pictures."""
    lines = [f"# Objectives, seed {config.seed}", ""]
    if "cells" in card:
        lines += density_tables(card["cells"], config.densities, config.num_samples)
        lines += ["![what each objective learnt](densities.png)", ""]
    if "digits" in card:
        lines += digit_table(card["digits"], config.likelihood_steps, config.likelihood_chains)
        lines += ["![samples of each objective](digits.png)", ""]
    return "\n".join(lines)


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
        uncompared=("output", "overwrite", "progress", "resume", "parts", "objectives", "densities"),
    )
    card: dict[str, Any] = {"schema": 2, "experiment": "objective_gallery", "seed": config.seed}
    if "densities" in config.parts:
        found = card["cells"] = cells(config, run)
        learnt_densities(
            run.file("densities.png"),
            {name: TOY_DENSITIES[name] for name in config.densities},
            {o: {d: read_arrays(run, o, d) for d in config.densities} for o in config.objectives},
            {o: {d: found[o][d].get("kl") for d in config.densities} for o in config.objectives},
        )
    if "digits" in config.parts:
        card["digits"] = digit_cells(config, run)
        samples = {name: read_arrays(run, name, "digits").get("samples") for name in card["digits"]}
        digit_samples(run.file("digits.png"), training_images(SHOWN), samples, card["digits"], SHOWN)
    card |= {"seconds": time.monotonic() - started, "config": as_json(replace(config, progress=True))}
    publish_card(run, card, as_markdown(config, card))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
