"""One HTML page for a run: the card, its tables and pictures, in a single file that needs nothing else."""

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from card_sections import Card, Picture, Section, Table, sections_of
from card_summary import summary_of
from command_line import as_json
from jaxebm.training import write_atomically
from jem_config import Config, recipe_for

__all__ = ["command_of", "write_report"]

UNSAID = ("overwrite", "resume", "resume_step", "progress")
"""Flags of how a run is started, not of what it computes."""
CHOOSING = ("recipe", "network", "task", "dataset")
"""Flags that choose the defaults of the others."""

STYLE = """
:root { --ink: #1f2933; --quiet: #5b6775; --line: #dfe4ea;
  --paper: #ffffff; --ground: #f5f7f9; --accent: #0b6e99; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --quiet: #9aa6b2; --line: #333c46;
    --paper: #1b2129; --ground: #12171d; --accent: #5cb8dd; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1.5rem; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.page { display: grid; grid-template-columns: 13rem minmax(0, 62rem); gap: 2.5rem; justify-content: center;
  padding: 2.5rem 1.5rem 5rem; }
nav { position: sticky; top: 2.5rem; align-self: start; font-size: .9rem; }
nav b { display: block; color: var(--quiet); font-size: .75rem; letter-spacing: .08em;
  text-transform: uppercase; }
nav ol { list-style: none; margin: .6rem 0; padding: 0; border-left: 2px solid var(--line); }
nav a { display: block; padding: .2rem 0 .2rem .9rem; color: var(--quiet); text-decoration: none; }
nav a:hover { color: var(--accent); }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 0 0 .6rem; }
p { margin: 0 0 1rem; }
.lead, .meaning { color: var(--quiet); }
.meaning { max-width: 48rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.6rem 1.8rem; margin-top: 1.5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .8rem;
  margin-top: 1.5rem; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: .9rem 1.1rem; }
.tile dt { color: var(--quiet); font-size: .82rem; }
.tile dd { margin: 0; font-size: 1.55rem; font-weight: 650; color: var(--accent); line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tile small { display: block; color: var(--quiet); font-size: .78rem; line-height: 1.35; }
.wide { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 50%; }
caption { caption-side: top; text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .36rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--quiet); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody tr:last-child td { border-bottom: 0; }
figure { margin: 1.2rem 0 0; }
figure img { display: block; max-width: 100%; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .5rem; }
figcaption { color: var(--quiet); font-size: .86rem; margin-top: .4rem; }
pre { overflow-x: auto; background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; font-size: .82rem; line-height: 1.5; }
pre.command { white-space: pre-wrap; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 62rem) {
  .page { grid-template-columns: minmax(0, 1fr); gap: 0; padding: 1.5rem 1rem 3rem; }
  nav { position: static; margin-bottom: 1.5rem; }
  nav ol { display: flex; flex-wrap: wrap; border: 0; }
  nav a { padding: .15rem .9rem .15rem 0; }
}
@media print { nav { display: none; } .page { display: block; } section { break-inside: avoid; } }
"""


def write_report(folder: Path, card: Card) -> None:
    """Writes ``report.html`` beside a card's pictures, which it takes in; missing ones are left out.

    Args:
      folder: where the pictures are.
      card: as documented in docs/card.md.
    """
    sections = sections_of(card)
    titles = [*(section.title for section in sections), "How to get it again"]
    links = "".join(f'<li><a href="#{_anchor(title)}">{escape(title)}</a></li>' for title in titles)
    heading = f"JEM on {card['dataset']}"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(heading)}</title><style>{STYLE}</style></head><body><div class=page>",
        f'<nav><b>Contents</b><ol><li><a href="#top">Summary</a></li>{links}</ol></nav>',
        f'<main><header id="top"><h1>{escape(heading)}</h1>{_lead(card)}</header>',
        _tiles(summary_of(card)),
        *(_section(folder, section) for section in sections),
        _reproduction(card),
        "</main></div></body></html>\n",
    ]
    write_atomically(folder / "report.html", "\n".join(parts))


def command_of(config: Mapping[str, Any]) -> str:
    """Returns the command that trains a run anew: the flags that differ from the defaults of its recipe.

    Args:
      config: the run's configuration, as in its config.json.
    """
    standard = as_json(Config())
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    given = standard | {name: value for name, value in saved.items() if name in standard}
    chosen = {name: given[name] for name in CHOOSING if given[name] != standard[name]}
    arguments = [part for name, value in chosen.items() for part in _flag(name, value)]
    defaults = as_json(recipe_for(arguments))
    for name, value in given.items():
        if name not in (*UNSAID, *CHOOSING) and value != defaults[name]:
            arguments += _flag(name, value)
    return shlex.join(["python", "experiments/jem.py", *arguments])


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{flag}", *(str(one) for one in values)]


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _lead(card: Card) -> str:
    versions = card["environment"]
    said = (
        f"Seed {card['seed']}, {card['evaluated_update']} of {card['updates']} updates, "
        f"{card['parameters']:,} parameters, on {versions['device']} with jaxebm {versions['jaxebm']} and "
        f"JAX {versions['jax']}. All figures are of the test split; whatever was chosen was chosen on the "
        "validation split."
    )
    return f'<p class="lead">{escape(said)}</p>'


def _tiles(rows: Sequence[tuple[str, str, str]]) -> str:
    tiles = (
        f'<dl class="tile" style="margin:0"><dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
        f"<small>{escape(beside)}</small></dl>"
        for name, value, beside in rows
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _section(folder: Path, section: Section) -> str:
    return "\n".join(
        [
            f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>',
            f'<p class="meaning">{escape(section.meaning)}</p>',
            *(_table(table) for table in section.tables),
            *(f"<p>{escape(note)}</p>" for note in section.notes),
            *(_figure(folder, picture) for picture in section.pictures),
            "</section>",
        ]
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(folder: Path, picture: Picture) -> str:
    path = folder / f"{picture.name}.png"
    if not path.is_file():
        return ""
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    caption = escape(picture.caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _reproduction(card: Card) -> str:
    config = escape(json.dumps(card["config"], indent=2))
    flags = escape(json.dumps(card["evaluation"], indent=2))
    return (
        f'<section id="{_anchor("How to get it again")}"><h2>How to get it again</h2>'
        '<p class="meaning">The command trains and evaluates the run; experiments/evaluate.py evaluates it '
        "again, with other flags.</p>"
        f'<pre class="command">{escape(command_of(card["config"]))}</pre>'
        f"<details><summary>Every flag of the run</summary><pre>{config}</pre></details>"
        f"<details><summary>Flags of this evaluation</summary><pre>{flags}</pre></details></section>"
    )
