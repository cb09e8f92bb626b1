"""The few figures of the card that say most, each with what it should be compared with."""

from collections.abc import Mapping
from typing import Any

from card_sections import NORMS, Card

__all__ = ["Figure", "summary_of"]

Figure = tuple[str, str, str]
"""A name, its value, and what stands beside it for comparison."""


def summary_of(card: Card) -> list[Figure]:
    """Returns what a reader should see first."""
    cost = f"{card['updates']} updates, {card['parameters']} parameters, {card['environment']['device']}"
    return [
        *_classes(card),
        *_robustness(card),
        *_density(card),
        *_samples(card),
        ("seconds in all", f"{card['seconds']:.0f}", cost),
    ]


def _classes(card: Card) -> list[Figure]:
    if card["accuracy"] is None:
        return []
    twin, scaled = card["twin"], card["temperature_scaled"]["twin"]
    beside = {
        name: "" if twin is None else f"cross-entropy twin {twin[name]:.4f}" for name in ("accuracy", "ece")
    }
    if scaled and scaled["temperature"] is not None:
        beside["ece"] += f", temperature-scaled {scaled['ece']:.4f}"
    return [
        ("test accuracy", f"{card['accuracy']:.4f}", beside["accuracy"]),
        ("calibration error (ECE)", f"{card['ece']:.4f}", beside["ece"]),
    ]


def _robustness(card: Card) -> list[Figure]:
    """At the middle radius of each norm, of the classifier alone; what refinement adds stands beside it."""
    figures = []
    for norm, name in NORMS.items():
        entry: Mapping[str, Any] | None = (card["robustness"] or {}).get(norm)
        if entry is None:
            continue
        middle = len(entry["radii"]) // 2
        (_, alone), *others = entry["refined"].items()
        beside = [f"{curve[middle]:.3f} after {steps} sampler steps" for steps, curve in others]
        if entry["twin"]:
            beside.append(f"cross-entropy twin {entry['twin'][middle]:.3f}")
        title = f"accuracy, {name} attack of radius {entry['radii'][middle]:g}"
        figures.append((title, f"{alone[middle]:.3f}", ", ".join(beside)))
    return figures


def _density(card: Card) -> list[Figure]:
    density = card["ood"]["log_density"]
    hardest = min(density, key=density.__getitem__)
    figures = [("AUROC of log p(x), hardest set", f"{density[hardest]:.3f}", hardest.replace("_", " "))]
    likelihood = (card["likelihood"] or {}).get("by_temperature", {}).get("1")
    if likelihood:
        bounds = likelihood["bits_per_dimension"]
        beside = f"uniform noise {card['likelihood']['uniform_bits_per_dimension']:.3f}"
        if not likelihood["consistent"]:
            beside += "; the bounds contradict each other: not converged"
        figures.append(("bits per dimension", f"{bounds['low']:.3f} to {bounds['high']:.3f}", beside))
    return figures


def _samples(card: Card) -> list[Figure]:
    fresh, test = card["samples"]["fresh"] or card["samples"]["unconditional"], card["samples"]["test"]
    steps, longest = list(fresh["by_steps"].items())[-1]
    figures = []
    for name in ("class_agreement", "precision", "coverage"):
        if name in longest:
            beside = f"{steps} steps from noise" + (f"; test images {test[name]:.3f}" if name in test else "")
            figures.append((f"fresh samples: {name.replace('_', ' ')}", f"{longest[name]:.3f}", beside))
    if "features" in longest:
        distances: Mapping[str, Any] = {
            name: entry["features"]["frechet_distance"]
            for name, entry in (("fresh", longest), ("test", test))
        }
        beside = f"features of an independent network; test images {distances['test']:.3g}"
        figures.append(("fresh samples: Fréchet distance", f"{distances['fresh']:.3g}", beside))
    return figures
