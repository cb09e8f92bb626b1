"""The card on paper: card.json for machines (its schema: docs/card.md), card.md and report.html to read."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from card_html import write_report
from card_sections import Card, Section, sections_of
from card_summary import summary_of
from command_line import publish_card
from jaxebm.training import RunFolder
from markdown_tables import markdown_table

__all__ = ["write_card"]


def write_card(run: RunFolder, card: Card) -> None:
    """Writes card.json, card.md and report.html, and prints the second.

    Raises:
      ValueError: if a number outside ``config`` is not finite.
    """
    _check_finite("", {name: value for name, value in card.items() if name != "config"})
    write_report(run.path, card)
    publish_card(run, card, _markdown(card))


def _check_finite(path: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _check_finite(f"{path}.{name}", entry)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_finite(f"{path}[{index}]", entry)
    elif isinstance(value, float) and not np.isfinite(value):
        raise ValueError(f"card{path} is {value}: a card holds finite numbers only.")


def _markdown(card: Card) -> str:
    """The card for a reader of text: the numbers and the names of the pictures; report.html says more."""
    lines = [f"# JEM on {card['dataset']}, seed {card['seed']}", ""]
    lines += [*markdown_table(["", "this run", "beside it"], summary_of(card)), ""]
    lines += ["Pictures, and what each number means: report.html.", ""]
    for section in sections_of(card):
        lines += [*_section(section), ""]
    lines += ["## Configuration", "", "```json", json.dumps(card["config"], indent=2), "```", ""]
    return "\n".join(lines)


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}"]
    for table in section.tables:
        lines += [
            "",
            *([f"{table.caption}:", ""] if table.caption else []),
            *markdown_table(table.header, table.rows),
        ]
    for note in section.notes:
        lines += ["", note]
    for picture in section.pictures:
        lines += ["", f"![{picture.name}]({picture.name}.png)"]
    return lines
