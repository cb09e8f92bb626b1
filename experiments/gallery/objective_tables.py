"""The tables of objective_gallery.py: divergences in the plane, likelihood of digits, samples of both."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxebm.report.markdown import markdown_table

__all__ = ["density_tables", "digit_table"]

Figures = Mapping[str, Any]


def density_tables(
    found: Mapping[str, Mapping[str, Figures]], densities: Sequence[str], num_samples: int
) -> list[str]:
    """Returns one table of divergences and costs, and one of samples, as lines of Markdown.

    Args:
      found: figures by objective and density.
      densities: the columns.
      num_samples: samples that were compared.
    """
    divergences = markdown_table(
        ("objective", *densities, "gradients an update", "updates", "training, s"),
        [
            (objective, *(_text(by[name], "kl", ".4f") for name in densities), *_costs(by))
            for objective, by in found.items()
        ],
    )
    distances = markdown_table(
        ("objective", *densities, "gradients a sample"),
        [
            (
                objective,
                *(_text(by[name], "energy_distance", ".4f") for name in densities),
                _mean(by, "gradients_per_sample", ".0f"),
            )
            for objective, by in found.items()
        ],
    )
    return [
        "## Two-dimensional densities",
        "",
        "KL(data || model) by quadrature, in nats; `-` where no density is learnt. Gradients an update: its",
        "cost in gradients of the energy in x for each example. Times include compilation.",
        "",
        *divergences,
        "",
        f"Squared energy distance of {num_samples} samples to as many exact ones.",
        "",
        *distances,
        "",
        *_failures(
            {f"{objective}, {density}": one for objective, by in found.items() for density, one in by.items()}
        ),
    ]


def digit_table(found: Mapping[str, Figures], num_steps: int, num_chains: int) -> list[str]:
    """Returns the table of the digits as lines of Markdown.

    Args:
      found: figures by objective, and of ``test_images``.
      num_steps: temperatures of annealing.
      num_chains: annealed chains in each direction.
    """
    columns = (
        ("frechet_distance", ".1f"),
        ("precision", ".2f"),
        ("coverage", ".2f"),
        ("gradients_per_sample", ".0f"),
        ("gradients_per_update", ".1f"),
        ("updates", ".0f"),
        ("seconds_training", ".0f"),
    )
    rows = []
    for name, figures in found.items():
        label = "test images, for comparison" if name == "test_images" else name
        rows.append((label, _bits(figures), *(_text(figures, column, form) for column, form in columns)))
    header = (
        "objective",
        "bits per dimension",
        "Fréchet distance",
        "precision",
        "coverage",
        "gradients a sample",
        "gradients an update",
        "updates",
        "training, s",
    )
    unordered = any(figures.get("consistent") is False for figures in found.values())
    broken = [
        f"- {name}: {1 - figures['finite_samples']:.0%} of its samples are not finite, and are left out."
        for name, figures in found.items()
        if figures.get("finite_samples", 1.0) < 1.0
    ]
    return [
        "## Digits",
        "",
        "The embedded digits, 8 x 8 pixels, without labels. Bits per dimension of the test images on the",
        f"box of the pixels: both bounds, by annealed importance sampling over {num_steps} temperatures with",
        f"{num_chains} chains in each direction; `-` where no density is learnt or no bound is finite.",
        "Samples are compared with training images in the features of an independent network. Gradients an",
        "update: its cost in gradients of the energy in x for each example. Times include compilation.",
        "",
        *markdown_table(header, rows),
        "",
        *(["\\*: the bounds contradict each other, annealing has not converged.", ""] if unordered else []),
        *([*broken, ""] if broken else []),
        *_failures({f"{name}, digits": figures for name, figures in found.items()}),
    ]


def _bits(figures: Figures) -> str:
    """Both bounds, with a star where the lower one exceeds the upper one."""
    if figures.get("failure"):
        return "diverged"
    bounds = figures.get("bits_per_dimension")
    if bounds is None:
        return "-"
    return f"{bounds['low']:.2f} to {bounds['high']:.2f}" + ("" if figures["consistent"] else " \\*")


def _text(figures: Figures, name: str, form: str) -> str:
    if figures.get("failure"):
        return "diverged"
    value = figures.get(name)
    return "-" if value is None else format(value, form)


def _mean(by_density: Mapping[str, Figures], name: str, form: str) -> str:
    values = [one[name] for one in by_density.values() if not one["failure"]]
    return format(np.mean(values), form) if values else "-"


def _costs(by_density: Mapping[str, Figures]) -> tuple[str, str, str]:
    columns = (("gradients_per_update", ".1f"), ("updates", ".0f"), ("seconds_training", ".0f"))
    first, second, third = (_mean(by_density, name, form) for name, form in columns)
    return first, second, third


def _failures(found: Mapping[str, Figures]) -> list[str]:
    lines = [f"- {name}: {figures['failure']}" for name, figures in found.items() if figures.get("failure")]
    return [*lines, ""] if lines else []
