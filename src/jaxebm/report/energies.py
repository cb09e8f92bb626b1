"""What are the energies of data, samples and other images? All on one axis."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxebm.energies import marginal_energy
from jaxebm.report.figures import FILLED, OUTLINED, PALETTE, drawing, legend_below
from jaxebm.report.out_of_distribution import log_densities, typical_log_densities
from jaxebm.report.question import Card, Picture, Question, Section, SummaryRow, Table, plural, table_row
from jaxebm.report.samples import longest_samples
from jaxebm.report.subject import Evaluation, Images, map_batches

__all__ = ["ENERGIES"]


def judge(evaluation: Evaluation) -> dict[str, Any]:
    """Mean and standard deviation of E(x) on data and fresh samples, plotted with those of other sets."""
    model = evaluation.model
    batch = jax.jit(jax.vmap(partial(marginal_energy(model.logits), model.params)))
    fresh = f"fresh, {plural(evaluation.settings.sample_steps[-1], 'step')}"
    others = evaluation.once(log_densities)
    energies = {"train": -evaluation.once(typical_log_densities), "test": -others["test"]}
    samples = evaluation.once(longest_samples).images
    if len(samples):
        energies[fresh] = map_batches(batch, samples)
    if evaluation.folder is not None:
        outside = {name.replace("_", " "): -values for name, values in others.items() if name != "test"}
        energy_histogram(evaluation.folder / "energies.png", energies | outside)
    entry: dict[str, Any] = {
        name.split(",")[0]: {"mean": float(np.mean(values)), "sd": float(np.std(values))}
        for name, values in energies.items()
    }
    entry.setdefault("fresh", None)  # all chains diverged
    return {"energy": entry}


def energy_histogram(path: Path, energies: Images) -> None:
    """Draws histograms of E(x) = -log p(x) - log Z of several sets on one axis.

    Values beyond the axis are counted in its first and last bins.
    """
    values = np.concatenate([np.asarray(value, float) for value in energies.values()])
    low, high = np.quantile(values, [0.005, 0.995])
    bins = list(np.linspace(low, max(high, low + 1e-6), 60))
    with drawing(path, figsize=(6.4, 4.2)) as (figure, axes):
        axis = axes[0, 0]
        for index, (name, value) in enumerate(energies.items()):
            style = FILLED if index < 3 else OUTLINED  # data and samples filled, to tell them from the others
            color = PALETTE[index % len(PALETTE)]
            shown = np.clip(value, low, high)
            axis.hist(shown, bins, density=True, label=name, color=color, linewidth=1.4, **style)
        axis.set(xlabel="energy E(x), low is likely", ylabel="density", yscale="log", title="Energies")
        legend_below(axis, fontsize=7, ncols=4)
        figure.tight_layout()


def summary(card: Card) -> list[SummaryRow]:
    """No row, because the scale of energies has no meaning."""
    del card
    return []


def sections(card: Card) -> list[Section]:
    """Means and standard deviations, and the histogram."""
    if "energy" not in card:
        return []
    names = {"train": "training images", "test": "test images", "fresh": "fresh samples"}
    rows = [
        table_row(title, *(card["energy"][name] or {"mean": None, "sd": None}).values())
        for name, title in names.items()
    ]
    section = Section(
        "Energies",
        "E(x) = -logsumexp f(x), low where the model finds an image likely. Training and test images should "
        "have equal energies, and fresh samples those of data.",
        tables=[Table("E(x), nats", ["", "mean", "standard deviation"], rows)],
        pictures=[Picture("energies", "Energies of all sets on one axis; low is likely.")],
    )
    return [section]


ENERGIES = Question("energies", judge, summary, sections, ("energies.png",))
