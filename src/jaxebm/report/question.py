"""A question of the evaluation: its judge (computation), its summary, its sections and their parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from jaxebm.report.subject import Evaluation

__all__ = [
    "Card",
    "Picture",
    "Question",
    "Section",
    "SummaryRow",
    "Table",
    "as_text",
    "plural",
    "table_row",
]

Card: TypeAlias = Mapping[str, Any]
"""The entries of docs/card.md: names, numbers, lists and mappings, as in JSON."""
SummaryRow: TypeAlias = tuple[str, str, str]
"""A name, its value, and values for comparison."""


class Table(NamedTuple):
    """Cells as text; the first column has names."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG in the folder of the card: its name without the extension, and its caption."""

    name: str
    caption: str


class Section(NamedTuple):
    """One section of the card, in Markdown.

    Attributes:
      title: The title of the section.
      meaning: How to read the numbers.
      notes: Further text of this card, one paragraph each.
      tables: The numbers.
      pictures: The pictures.
    """

    title: str
    meaning: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


class Question(NamedTuple):
    """One question that an evaluation answers; `jaxebm.report.QUESTIONS` lists those of the card.

    Attributes:
      name: The name of the question.
      judge: ``(evaluation) -> entries`` of the card. It writes its pictures through `Evaluation.draw`.
      summary: ``(card) -> rows``, the most important figures; empty if the card has no answer.
      sections: ``(card) -> sections``; empty if the card has no answer.
      files: The names of all files and folders that the judge may write.
    """

    name: str
    judge: Callable[[Evaluation], Mapping[str, Any]]
    summary: Callable[[Card], Sequence[SummaryRow]]
    sections: Callable[[Card], Sequence[Section]]
    files: tuple[str, ...] = ()


def as_text(value: float | str | None) -> str:
    """Returns a cell of a table: four significant digits of a number, a dash for None.

    Example:
      >>> as_text(0.123456), as_text(None), as_text("10")
      ('0.1235', '-', '10')
    """
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def plural(count: int | str, word: str) -> str:
    """Returns a number with its noun.

    Example:
      >>> plural(1, "step"), plural("10", "step")
      ('1 step', '10 steps')
    """
    return f"{count} {word}{'s' * (str(count) != '1')}"


def table_row(name: str, *values: float | str | None) -> list[str]:
    """Returns the cells of one row of a `Table`.

    Example:
      >>> table_row("accuracy", 0.9666666, None)
      ['accuracy', '0.9667', '-']
    """
    return [name, *(as_text(value) for value in values)]
