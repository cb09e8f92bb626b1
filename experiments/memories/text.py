"""The card of hopfield.py as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxebm.report.markdown import markdown_table
from memories.images import CORRUPTIONS
from memories.plots import PICTURES

__all__ = ["as_markdown"]


def _table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    return [*markdown_table(head, ([name, *row] for name, row in rows.items())), ""]


def _accuracies(networks: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[str]]:
    return {
        name: [f"{entry['mean']:.2f} ({entry['sd']:.2f})" for entry in row] for name, row in networks.items()
    }


def as_markdown(card: Mapping[str, Any]) -> str:
    """Returns the card as text."""
    lines = [
        f"# Associative memories on {card['dataset']}, seed {card['seed']}",
        "",
        f"Part of the memories recalled, mean and standard deviation over {card['draws']} choices of them.",
        "",
    ]
    for kind, found in card["accuracy"].items():
        lines += [f"{card['num_memories']} memories, {CORRUPTIONS[kind]}:", ""]
        head = ["network", *(f"{level:g}" for level in found["levels"])]
        lines += _table(head, _accuracies(found["networks"]))
    counts = card["by_count"]
    lines += [f"{counts['flips']:.0%} of the pixels flipped, by number of memories:", ""]
    lines += _table(["network", *map(str, counts["counts"])], _accuracies(counts["networks"]))

    masked = card["masked"]
    lines += [
        f"Recall from the upper half, {masked['memories']} memories, {masked['exact_ties']} ties left out:",
        "",
        *_table(
            ["similarity", "recalled"], {name: [f"{rate:.3f}"] for name, rate in masked["recalled"].items()}
        ),
    ]
    diffusion = card["diffusion"]
    ended = f"{diffusion['ends_on_a_memory']:.0%} of {diffusion['chains']} chains from noise end on a memory"
    lines += [
        f"Diffusion backwards: {ended}, on {diffusion['different_memories']} different ones.",
        "",
    ]
    if card["capacity"]:
        lines += _capacities(card["capacity"])
    shown = [name for name in PICTURES if card["capacity"] or name != "capacity"]
    lines += [*(f"![{name}]({name}.png)" for name in shown), "", f"{card['seconds']:.0f} s.", ""]
    return "\n".join(lines)


def _capacities(capacity: Mapping[str, Any]) -> list[str]:
    hebb, modern, basins = capacity["hebb"], capacity["modern"], capacity["exponential"]
    measured = [f"{entry['mean']:.3f} ({entry['error']:.3f})" for entry in hebb["measured"]]
    return [
        f"Hebb's rule, {hebb['dimension']} spins, overlap with the start (standard error), by K / D:",
        "",
        *_table(
            ["", *(f"{load:g}" for load in hebb["loads"])],
            {"measured": measured, "theory": [f"{value:.3f}" for value in hebb["theory"]]},
        ),
        f"Exponential network, {basins[0]['dimension']} spins, recalled in one step of the theorem's rule "
        f"(standard error), by ln K / D:",
        "",
        *_table(
            ["flipped", *(f"{rate:.3g}" for rate in basins[0]["rates"]), "all recalled below"],
            {
                f"{basin['radius']:.0%}": [
                    *(f"{entry['mean']:.3f} ({entry['error']:.3f})" for entry in basin["measured"]),
                    f"{basin['bound']:.3f}",
                ]
                for basin in basins
            },
        ),
        f"Modern network: {modern['violations']} violations of the error bound in {modern['trials']} trials.",
        "",
    ]
