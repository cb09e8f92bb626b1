"""Mean and standard deviation over runs, as the tables of experiments/RESULTS.md.

    for seed in 0 1 2 3 4; do python experiments/jem.py --seed $seed --output runs/jem-$seed; done
    python experiments/summarise.py --runs runs/jem-*

    python experiments/summarise.py --runs runs/jem-* runs/dat-* --compare --picture chains.png

    expected  the tables of experiments/RESULTS.md, from the runs that it names
    time      seconds
    device    none

Reads the card.json of each run. By default the runs must differ only in their seed, and every number of the
card has a row. With --compare they may be of several kinds, such as recipes: a row for each kind shows its
command, and a column its most important figures; --picture draws their chains.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxebm.recipes.command_line import refuse_existing, run_experiment
from jaxebm.recipes.config import UNCOMPARED
from jaxebm.recipes.config import Config as JemConfig
from jaxebm.recipes.serialisation import from_json
from jaxebm.recipes.shell import command_for
from jaxebm.report.figures import image_grids
from jaxebm.report.markdown import markdown_table

VARYING = UNCOMPARED | {"progress", "resume_step", "seed"}
"""Settings in which runs of one kind may differ, by dotted name."""
LISTED = ("config", "environment", "evaluation", "schema", "seed")
"""Entries of the card that are not results."""

FRESH = "samples.fresh.by_steps."
COMPARED: dict[str, Mapping[str, str]] = {
    "Classes": {
        "accuracy": "accuracy",
        "NLL": "nll",
        "ECE": "ece",
        "adaptive ECE": "adaptive_ece",
        "Brier": "brier",
        "accuracy of the twin": "twin.accuracy",
        "ECE of the twin": "twin.ece",
        "accuracy on validation data": "validation.accuracy",
    },
    "Out of distribution: AUROC of log p(x)": {"": "ood.log_density."},
    "Robustness: accuracy under attack": {
        "L-infinity, radius": "robustness.linf.0.",
        "L-infinity, after 10 sampler steps, radius": "robustness.linf.10.",
        "L-infinity, of the twin, radius": "robustness.linf.twin.",
        "L2, radius": "robustness.l2.0.",
        "L2, after 10 sampler steps, radius": "robustness.l2.10.",
        "L2, of the twin, radius": "robustness.l2.twin.",
    },
    "Samples: fresh chains of each class": {
        "class agreement": FRESH + "*.class_agreement",
        "precision": FRESH + "*.precision",
        "recall": FRESH + "*.recall",
        "coverage": FRESH + "*.coverage",
        "Fréchet": FRESH + "*.features.frechet_distance",
    },
    "Likelihood and tasks": {
        "bits per dimension, at least": "likelihood.by_temperature.1.bits_per_dimension.low",
        "at most": "likelihood.by_temperature.1.bits_per_dimension.high",
        "inpainting keeps the class": "tasks.inpainting.class_kept",
        "its mean squared error": "tasks.inpainting.mse",
        "that of the mean image": "tasks.inpainting.mse_mean_fill",
        "energy gap on validation data": "telemetry.energy_gap",
        "recoveries": "recoveries",
    },
}
"""By table: rows, and the dotted names of their entries. A * matches any one part of the name and a dot at
the end any rest: one row for each match."""


@dataclass(frozen=True)
class Config:
    """Print mean and standard deviation over finished runs."""

    runs: tuple[Path, ...]
    """Folders with a card.json."""
    compare: bool = False
    """Compare runs of several kinds; without it, runs may differ only in their seed."""
    picture: Path | None = None
    """With --compare: a PNG file for the first fresh chains of each class, of the first run of each kind."""
    overwrite: bool = False
    """Replace the picture if it exists."""

    def __post_init__(self) -> None:
        if self.picture is None:
            return
        if not self.compare:
            raise ValueError("picture is drawn of several kinds of runs: add --compare.")
        if self.picture.suffix != ".png":
            raise ValueError(f"picture is {self.picture}: a name that ends in .png is needed.")
        if not self.picture.parent.is_dir():
            raise ValueError(f"picture is {self.picture}: there is no folder {self.picture.parent}.")
        refuse_existing("picture", self.picture, overwrite=self.overwrite)


CHAINS = 3
"""Chains of a class in the picture."""
Card = dict[str, Any]


def read_cards(runs: tuple[Path, ...]) -> list[Card]:
    """Reads the cards of finished runs."""
    cards = []
    for run in runs:
        card = run / "card.json"
        if not card.is_file():
            raise FileNotFoundError(f"{card} is missing: the run is not finished; continue it with --resume.")
        cards.append(json.loads(card.read_text()) | {"folder": str(run)})
    if not cards:
        raise ValueError("runs is empty: name at least one folder with a card.json.")
    return cards


def group(cards: Sequence[Card]) -> list[list[Card]]:
    """Groups the cards whose settings differ only in the seed, in the given order."""
    groups: list[list[Card]] = []
    for card in cards:
        alike = (kind for kind in groups if not _differing(kind[0], card))
        kind = next(alike, None)
        if kind is None:
            groups.append([card])
        else:
            kind.append(card)
    for kind in groups:
        seeds = [card["seed"] for card in kind]
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds {seeds} repeat: each seed counts once.")
    return groups


def _differing(first: Card, second: Card) -> list[str]:
    one, other = (settings(card["config"]) for card in (first, second))
    return sorted(name for name in (one.keys() | other.keys()) - VARYING if one.get(name) != other.get(name))


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a configuration to its settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def numbers(card: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flattens a card to its numbers by dotted name; curves of accuracy over radii, too."""
    found: dict[str, float] = {}
    for name, value in card.items():
        if not prefix and name in LISTED:
            continue
        if not prefix and name == "recoveries":
            found[name] = float(len(value))
        elif not prefix and name == "robustness":
            found |= _curves(value or {})
        elif isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[prefix + name] = float(value)
    return found


def _curves(robustness: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for norm in ("linf", "l2"):
        entry = robustness.get(norm)
        if entry is None:
            continue
        curves = entry["refined"] | ({"twin": entry["twin"]} if entry["twin"] else {})
        for which, curve in curves.items():
            for radius, accuracy in zip(entry["radii"], curve, strict=True):
                if radius:
                    found[f"robustness.{norm}.{which}.{radius:g}"] = accuracy
    return found


def table(cards: Sequence[Card]) -> str:
    """Returns the markdown table: mean, standard deviation (n - 1), lowest and highest of every number."""
    found = [numbers(card) for card in cards]
    rows = []
    for name in found[0]:
        values = np.array([card[name] for card in found if name in card])
        sd = values.std(ddof=1) if len(values) > 1 else float("nan")
        rows.append([name, *(f"{value:.4f}" for value in (values.mean(), sd, values.min(), values.max()))])
    seeds = f"n = {len(cards)}, seeds {', '.join(str(card['seed']) for card in cards)}"
    return f"{seeds}\n\n" + _markdown(["quantity", "mean", "sd", "lowest", "highest"], rows)


def comparison(groups: Sequence[Sequence[Card]]) -> str:
    """Returns the markdown tables of several kinds of runs: where they come from, then mean (sd) of each."""
    names = _short_names(groups)
    values = [[numbers(card) for card in kind] for kind in groups]
    parts = [_origins(names, groups)]
    known = list(dict.fromkeys(name for kind in values for card in kind for name in card))
    for title, wanted in COMPARED.items():
        rows = [
            [label, *(_mean_and_sd([card[name] for card in kind if name in card]) for kind in values)]
            for what, pattern in wanted.items()
            for label, name in _fitting(what, pattern, known)
        ]
        if rows:
            parts.append(f"### {title}\n\n" + _markdown(["", *names], rows))
    return "\n\n".join(parts)


def draw_chains(path: Path, groups: Sequence[Sequence[Card]]) -> None:
    """Draws fresh chains of each kind's first run: one column per class, the first of each, no selection."""
    chains = [_first_chains(Path(kind[0]["folder"]) / "samples.npz") for kind in groups]
    columns = {count for count, _ in chains}
    if len(columns) > 1:
        raise ValueError(f"picture: runs of {sorted(columns)} classes have no columns in common.")
    sheets = {
        f"{name}, {steps} steps": (images.astype(np.float32).clip(-1.0, 1.0) + 1.0) / 2.0
        for name, (_, by_steps) in zip(_short_names(groups), chains, strict=True)
        for steps, images in by_steps.items()
    }
    across = max(len(by_steps) for _, by_steps in chains)
    image_grids(path, sheets, columns=columns.pop(), per_row=across)


def _first_chains(file: Path) -> tuple[int, dict[int, np.ndarray]]:
    """Returns the number of classes and, by steps, chains in rows that have one of each class.

    Without classes there are as many chains in the place of ten.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: --picture draws the chains that it holds.")
    with np.load(file) as saved:
        arrays = dict(saved)
    prefix, classes, chosen = "unconditional_", 10, np.arange(10 * CHAINS)
    if "label" in arrays:
        prefix, label = "fresh_", arrays["label"]
        classes, count = int(label.max()) + 1, min(CHAINS, int(np.bincount(label).min()))
        chosen = np.stack([np.flatnonzero(label == y)[:count] for y in range(classes)], axis=1).ravel()
    steps = sorted(int(name.removeprefix(prefix)) for name in arrays if name.startswith(prefix))
    return classes, {number: arrays[f"{prefix}{number}"][chosen] for number in steps}


def _short_names(groups: Sequence[Sequence[Card]]) -> list[str]:
    """The shortest description of the settings in which a kind differs from the others."""
    configs = [kind[0]["config"] for kind in groups]
    names = [
        name
        for name in ("recipe", "dataset", "network", "task")
        if len({config.get(name) for config in configs}) > 1
    ]
    shorts = [" ".join(str(config.get(name)) for name in names) or "run" for config in configs]
    repeated = {short for short in shorts if shorts.count(short) > 1}
    return [f"{short} {at + 1}" if short in repeated else short for at, short in enumerate(shorts)]


def _origins(names: Sequence[str], groups: Sequence[Sequence[Card]]) -> str:
    def of(kind: Sequence[Card], name: str) -> str:
        return ", ".join(sorted({str(card["environment"].get(name, "not noted")) for card in kind}))

    rows = []
    for short, kind in zip(names, groups, strict=True):
        alike = {name: value for name, value in kind[0]["config"].items() if name not in VARYING}
        command = command_for(from_json(JemConfig, alike, where=f"{kind[0]['folder']}/card.json"))
        seconds, training = ([card[name] for card in kind] for name in ("seconds", "seconds_training"))
        rows.append(
            [
                short,
                f"`{command} --seed S`",
                ", ".join(str(card["seed"]) for card in kind),
                *(of(kind, name) for name in ("date", "commit", "device", "processors")),
                *(_mean_and_sd(taken, digits=0) for taken in (seconds, training)),
            ]
        )
    header = ["run", "command", "seeds", "date", "commit", "device", "processors", "seconds", "of training"]
    return _markdown(header, rows)


def _fitting(what: str, pattern: str, known: Sequence[str]) -> list[tuple[str, str]]:
    """Returns a label and the name of each number that fits the pattern."""
    if pattern.endswith("."):
        names = [name for name in known if name.startswith(pattern)]
        return [(f"{what} {name.removeprefix(pattern).replace('_', ' ')}".strip(), name) for name in names]
    if "*" not in pattern:
        return [(what, pattern)] if pattern in known else []
    before, after = pattern.split("*")
    parts = [name[len(before) :].removesuffix(after) for name in known if name.startswith(before)]
    fitting = [part for part in dict.fromkeys(parts) if "." not in part and before + part + after in known]
    return [(f"{what}, {part} steps", before + part + after) for part in fitting]


def _mean_and_sd(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ({np.std(values, ddof=1):.{digits}f})"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_table(header, rows))


def main(config: Config) -> None:
    """Prints the tables."""
    groups = group(read_cards(config.runs))
    if config.compare:
        others = ", ".join(sorted({kind[0]["experiment"] for kind in groups} - {"jem"}))
        if others:
            raise ValueError(f"compare is about runs of experiments/jem.py, not of {others}: leave it out.")
        print(comparison(groups))
        if config.picture is not None:
            draw_chains(config.picture, groups)
            print(f"\nchains: {config.picture}")
        return
    if len(groups) > 1:
        differing = ", ".join(_differing(groups[0][0], groups[1][0]))
        raise ValueError(
            f"runs differ in {differing}: a mean over them has no meaning; --compare compares them."
        )
    print(table(groups[0]))


if __name__ == "__main__":
    run_experiment(Config, main)
